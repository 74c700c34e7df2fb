package testnet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"latchkey/node/api"
)

// Remote speaks to the testnet that has a directory, usually in another process. Its methods are safe for concurrent use;
// errors match those of [Testnet], [ErrNotRunning], or context.Cause(ctx).
type Remote struct {
	dir  string
	http http.Client
}

// Dial returns a client of the testnet in dir. Nothing is sent yet.
func Dial(dir string) *Remote {
	var d net.Dialer
	return &Remote{dir: dir, http: http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", controlSocket(dir))
		},
	}}}
}

// Status returns the testnet's state.
func (r *Remote) Status(ctx context.Context) (Status, error) {
	var st Status
	return st, r.call(ctx, http.MethodGet, "/status", nil, &st)
}

// Kill kills peer i. See [Testnet].
func (r *Remote) Kill(ctx context.Context, i int) error { return r.post(ctx, "/kill/"+strconv.Itoa(i)) }

// Restart starts peer i again and waits until it is back. See [Testnet].
func (r *Remote) Restart(ctx context.Context, i int) error {
	return r.post(ctx, "/restart/"+strconv.Itoa(i))
}

// Pause freezes peer i. See [Testnet].
func (r *Remote) Pause(ctx context.Context, i int) error {
	return r.post(ctx, "/pause/"+strconv.Itoa(i))
}

// Resume lets peer i go on. See [Testnet].
func (r *Remote) Resume(ctx context.Context, i int) error {
	return r.post(ctx, "/resume/"+strconv.Itoa(i))
}

// Leave ends peer i in an orderly way. See [Testnet].
func (r *Remote) Leave(ctx context.Context, i int) error {
	return r.post(ctx, "/leave/"+strconv.Itoa(i))
}

// Join adds a peer and returns its number. See [Testnet].
func (r *Remote) Join(ctx context.Context) (int, error) {
	var a joinAnswer
	return a.N, r.call(ctx, http.MethodPost, "/join", nil, &a)
}

// Partition divides the peers. See [Testnet].
func (r *Remote) Partition(ctx context.Context, sides ...[]int) error {
	return r.call(ctx, http.MethodPost, "/partition", partitionRequest{sides}, nil)
}

// Heal ends the partition. See [Testnet].
func (r *Remote) Heal(ctx context.Context) error { return r.post(ctx, "/heal") }

// Latency delays everything between two peers. See [Testnet].
func (r *Remote) Latency(ctx context.Context, d time.Duration) error {
	return r.call(ctx, http.MethodPost, "/latency", latencyRequest{d}, nil)
}

// Logs returns the file that peer i's output goes to. See [Testnet].
func (r *Remote) Logs(ctx context.Context, i int) (path string, err error) {
	var a logsAnswer
	err = r.call(ctx, http.MethodGet, "/logs/"+strconv.Itoa(i), nil, &a)
	return a.Path, err
}

// Dump writes the testnet's state. See [Testnet]. It does not look at what it writes: a testnet that ends in the midst of it is an
// error, and [OpenState] tells whether a file is whole.
func (r *Remote) Dump(ctx context.Context, to io.Writer) error {
	resp, err := r.send(ctx, http.MethodGet, "/state", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		answer, err := io.ReadAll(io.LimitReader(resp.Body, answerBytesMax))
		if err != nil {
			return fmt.Errorf("testnet: answer cut off: %w", err)
		}
		return decodeAnswer(resp.StatusCode, answer, nil)
	}
	if n, err := io.Copy(to, io.LimitReader(resp.Body, 2*StateBytesMax)); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("testnet: the state is cut off after %d bytes: %w", n, err)
	}
	return nil
}

func (r *Remote) post(ctx context.Context, path string) error {
	return r.call(ctx, http.MethodPost, path, nil, nil)
}

// send sends one request, with ask as its body unless that is nil. The caller closes the answer's body.
func (r *Remote) send(ctx context.Context, method, path string, ask any) (*http.Response, error) {
	if _, err := api.ParseAddr(controlSocket(r.dir)); err != nil {
		return nil, fmt.Errorf("testnet: %w", err)
	}
	var body io.Reader
	if ask != nil {
		b, err := json.Marshal(ask)
		if err != nil {
			return nil, fmt.Errorf("testnet: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://testnet"+path, body)
	if err != nil {
		return nil, fmt.Errorf("testnet: %w", err)
	}
	resp, err := r.http.Do(req)
	if op := (*net.OpError)(nil); err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	} else if errors.As(err, &op) && op.Op == "dial" {
		err = fmt.Errorf("%w in %s", ErrNotRunning, r.dir)
	} else if err != nil {
		err = fmt.Errorf("testnet: no answer from the one in %s: %w", r.dir, err)
	}
	return resp, err
}

// call sends one request, with ask as its body unless that is nil, and reads the answer into into.
func (r *Remote) call(ctx context.Context, method, path string, ask, into any) error {
	resp, err := r.send(ctx, method, path, ask)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, answerBytesMax))
	if err != nil {
		return fmt.Errorf("testnet: answer cut off: %w", err)
	}
	return decodeAnswer(resp.StatusCode, answer, into)
}

// decodeAnswer reads the body of an answer into what was asked for, or into the error it stands for.
func decodeAnswer(code int, body []byte, into any) error {
	if code == http.StatusOK {
		if into == nil {
			return nil
		}
		if err := json.Unmarshal(body, into); err != nil {
			return fmt.Errorf("testnet: answer makes no sense: %w", err)
		}
		return nil
	}
	var f failure
	if err := json.Unmarshal(body, &f); err != nil || f.Error == "" {
		return fmt.Errorf("testnet: answered %d: %q", code, bytes.TrimSpace(body[:min(len(body), 200)]))
	}
	for _, r := range reasons {
		if r.name == f.Reason {
			return &remoteError{f.Error, r.sentinel}
		}
	}
	return errors.New(f.Error)
}

// remoteError is an error of the other process, told in its words.
type remoteError struct {
	text     string
	sentinel error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.sentinel }
