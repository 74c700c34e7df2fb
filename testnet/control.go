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
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"latchkey/node/api"
)

// Bounds of the control socket.
const (
	requestBytesMax = 4 << 10
	answerBytesMax  = 1 << 20
	headerTimeout   = 5 * time.Second
	restartTimeout  = 30 * time.Second
	closeTimeout    = time.Second
)

var (
	// ErrRunning is matched when another testnet has the directory.
	ErrRunning = errors.New("testnet: one is running already")
	// ErrNotRunning is matched when no testnet answers in the directory.
	ErrNotRunning = errors.New("testnet: none is running")
	// ErrStarting is matched while a testnet's peers are not up yet.
	ErrStarting = errors.New("testnet: still starting")
)

// DefaultDir returns the directory of a testnet that is given none: "latchkey-testnet" in XDG_RUNTIME_DIR where that is set, else
// "latchkey/testnet" in the user's cache directory, else in the directory for temporary files.
func DefaultDir() string {
	if run := os.Getenv("XDG_RUNTIME_DIR"); run != "" {
		return filepath.Join(run, "latchkey-testnet")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	return filepath.Join(cache, "latchkey", "testnet")
}

func controlSocket(dir string) string { return filepath.Join(dir, "control.sock") }

// Control answers other processes of the same user about one testnet, in JSON over HTTP on a unix socket: GET /status, POST
// /kill/N, POST /restart/N. It also keeps a second testnet out of the directory.
type Control struct {
	listener net.Listener
	server   *http.Server
	network  atomic.Pointer[Network] // nil until it is up
	done     chan struct{}
}

// Claim takes dir for a testnet, makes it if needed, and begins to answer that the testnet is starting. Errors: [ErrRunning],
// [api.ErrAddr] when the socket's path is too long.
func Claim(dir string) (*Control, error) {
	if _, err := api.ParseAddr(controlSocket(dir)); err != nil {
		return nil, fmt.Errorf("testnet: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("testnet: directory: %w", err)
	}
	l, err := api.Listen(controlSocket(dir))
	if errors.Is(err, api.ErrInUse) {
		return nil, fmt.Errorf("%w in %s; stop it, or choose another --dir", ErrRunning, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("testnet: %w", err)
	}
	c := &Control{listener: l, done: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", c.handle(func(_ context.Context, n *Network, _ int) (any, error) { return n.Status(), nil }))
	mux.HandleFunc("POST /kill/{n}", c.handle(func(_ context.Context, n *Network, i int) (any, error) { return struct{}{}, n.Kill(i) }))
	mux.HandleFunc("POST /restart/{n}", c.handle(func(ctx context.Context, n *Network, i int) (any, error) {
		return struct{}{}, n.Restart(ctx, i)
	}))
	c.server = &http.Server{
		Handler: http.MaxBytesHandler(mux, requestBytesMax), ReadHeaderTimeout: headerTimeout, IdleTimeout: time.Minute, MaxHeaderBytes: requestBytesMax,
	}
	go func() {
		defer close(c.done)
		_ = c.server.Serve(l) // ends with Close
	}()
	return c, nil
}

// Serve lets c answer for n, which is up.
func (c *Control) Serve(n *Network) { c.network.Store(n) }

// Close stops answering and gives the directory up. It does not close the network.
func (c *Control) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	err := c.server.Shutdown(ctx)
	if err != nil {
		err = c.server.Close()
	}
	<-c.done
	return err
}

// failure is the answer to a request that failed.
type failure struct {
	Reason string `json:"reason"`
	Error  string `json:"error"`
}

// reasons name the errors that a client can match.
var reasons = map[string]error{"no_peer": ErrNoPeer, "down": ErrDown, "up": ErrUp, "starting": ErrStarting, "closed": ErrClosed}

func reasonOf(err error) (reason string, code int) {
	for name, sentinel := range reasons {
		if errors.Is(err, sentinel) {
			return name, http.StatusConflict
		}
	}
	return "failed", http.StatusInternalServerError
}

// handle adapts fn, which gets the number in the request's path, or -1.
func (c *Control) handle(fn func(ctx context.Context, n *Network, i int) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		i, err := strconv.Atoi(r.PathValue("n"))
		if err != nil {
			i = -1
		}
		n := c.network.Load()
		var answer any
		err = ErrStarting
		if n != nil {
			ctx, cancel := context.WithTimeout(r.Context(), restartTimeout)
			defer cancel()
			answer, err = fn(ctx, n, i)
		}
		w.Header().Set("Content-Type", "application/json")
		if err != nil {
			reason, code := reasonOf(err)
			w.WriteHeader(code)
			answer = failure{reason, err.Error()}
		}
		_ = json.NewEncoder(w).Encode(answer) // the client may have gone
	}
}

// Remote speaks to the testnet that has a directory, usually in another process. Its methods are safe for concurrent use;
// errors match those of [Network], [ErrNotRunning], or context.Cause(ctx).
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
	return st, r.call(ctx, http.MethodGet, "/status", &st)
}

// Kill kills peer i. See [Network.Kill].
func (r *Remote) Kill(ctx context.Context, i int) error {
	return r.call(ctx, http.MethodPost, "/kill/"+strconv.Itoa(i), nil)
}

// Restart starts peer i again and waits until it is back. See [Network.Restart].
func (r *Remote) Restart(ctx context.Context, i int) error {
	return r.call(ctx, http.MethodPost, "/restart/"+strconv.Itoa(i), nil)
}

func (r *Remote) call(ctx context.Context, method, path string, into any) error {
	if _, err := api.ParseAddr(controlSocket(r.dir)); err != nil {
		return fmt.Errorf("testnet: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://testnet"+path, nil)
	if err != nil {
		return fmt.Errorf("testnet: %w", err)
	}
	resp, err := r.http.Do(req)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if op := (*net.OpError)(nil); errors.As(err, &op) && op.Op == "dial" {
		return fmt.Errorf("%w in %s", ErrNotRunning, r.dir)
	}
	if err != nil {
		return fmt.Errorf("testnet: no answer from the one in %s: %w", r.dir, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, answerBytesMax))
	if err != nil {
		return fmt.Errorf("testnet: answer cut off: %w", err)
	}
	return decodeAnswer(resp.StatusCode, body, into)
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
	if sentinel, ok := reasons[f.Reason]; ok {
		return &remoteError{f.Error, sentinel}
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
