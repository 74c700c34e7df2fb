package testnet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"latchkey/internal/durablefile"
	"latchkey/node/api"
)

// Bounds of the control socket.
const (
	requestBytesMax = 4 << 10
	answerBytesMax  = 1 << 20
	headerTimeout   = 5 * time.Second
	bodyTimeout     = 5 * time.Second
	answerTimeout   = 30 * time.Second // of a request that waits for peers
	dumpTimeout     = 10 * time.Minute // of one for the state
	closeTimeout    = time.Second
)

var (
	// ErrRunning is matched when another testnet has the directory.
	ErrRunning = errors.New("testnet: one is running already")
	// ErrNotRunning is matched when no testnet answers in the directory.
	ErrNotRunning = errors.New("testnet: none is running")
	// ErrPaused and ErrNotPaused are matched when a peer cannot do what was asked for because it is paused, or is not.
	ErrPaused    = errors.New("testnet: peer is paused")
	ErrNotPaused = errors.New("testnet: peer is not paused")
	// ErrStarting is matched while a testnet's peers are not up yet.
	ErrStarting = errors.New("testnet: still starting")
)

// DefaultDir returns the directory of a testnet that is given none: "latchkey-testnet" in XDG_RUNTIME_DIR where that is set, else
// "latchkey/testnet" in the user's cache directory, else "latchkey-testnet-" and the user's number in the directory for temporary files.
func DefaultDir() string {
	if run := os.Getenv("XDG_RUNTIME_DIR"); run != "" {
		return filepath.Join(run, "latchkey-testnet")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return filepath.Join(os.TempDir(), "latchkey-testnet-"+strconv.Itoa(os.Getuid()))
	}
	return filepath.Join(cache, "latchkey", "testnet")
}

func controlSocket(dir string) string { return filepath.Join(dir, "control.sock") }

// Control answers other processes of the same user about one testnet, in JSON over HTTP on a unix socket: GET /status, GET
// /logs/N, GET /state (a state, not JSON), and POST /kill/N, /restart/N, /pause/N, /resume/N, /leave/N, /join, /partition, /heal and /latency. It also keeps a
// second testnet out of the directory.
type Control struct {
	listener net.Listener
	server   *http.Server
	testnet  atomic.Pointer[Testnet] // nil until it is up
	done     chan struct{}
	made     []string // directories that Claim made, the deepest last
}

// Claim takes dir for a testnet, makes it if needed, removes what a testnet left there that was killed, and begins to answer that
// the testnet is starting. A directory that is there must be this user's alone. Errors: [ErrRunning], [ErrOptions], [api.ErrAddr] when the socket's path is too long.
func Claim(dir string) (*Control, error) {
	made, l, err := claimDir(dir)
	if err != nil {
		return nil, err
	}
	if err := sweep(dir); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	c := &Control{listener: l, done: make(chan struct{}), made: made}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", c.handle(func(_ *http.Request, t Testnet) (any, error) { return t.Status(), nil }))
	mux.HandleFunc("GET /logs/{n}", c.handle(func(r *http.Request, t Testnet) (any, error) {
		path, err := t.Logs(numberIn(r))
		return logsAnswer{path}, err
	}))
	mux.HandleFunc("POST /kill/{n}", c.handle(func(r *http.Request, t Testnet) (any, error) { return nothing, t.Kill(numberIn(r)) }))
	mux.HandleFunc("POST /pause/{n}", c.handle(func(r *http.Request, t Testnet) (any, error) { return nothing, t.Pause(numberIn(r)) }))
	mux.HandleFunc("POST /resume/{n}", c.handle(func(r *http.Request, t Testnet) (any, error) { return nothing, t.Resume(numberIn(r)) }))
	mux.HandleFunc("POST /restart/{n}", c.handle(func(r *http.Request, t Testnet) (any, error) {
		return nothing, t.Restart(r.Context(), numberIn(r))
	}))
	mux.HandleFunc("POST /leave/{n}", c.handle(func(r *http.Request, t Testnet) (any, error) {
		return nothing, t.Leave(r.Context(), numberIn(r))
	}))
	mux.HandleFunc("POST /join", c.handle(func(r *http.Request, t Testnet) (any, error) {
		i, err := t.Join(r.Context())
		return joinAnswer{i}, err
	}))
	mux.HandleFunc("POST /partition", c.handle(func(r *http.Request, t Testnet) (any, error) {
		var q partitionRequest
		if err := decodeRequest(r.Body, &q); err != nil {
			return nil, err
		}
		return nothing, t.Partition(r.Context(), q.Sides...)
	}))
	mux.HandleFunc("POST /heal", c.handle(func(r *http.Request, t Testnet) (any, error) { return nothing, t.Heal(r.Context()) }))
	mux.HandleFunc("POST /latency", c.handle(func(r *http.Request, t Testnet) (any, error) {
		var q latencyRequest
		if err := decodeRequest(r.Body, &q); err != nil {
			return nil, err
		}
		return nothing, t.Latency(r.Context(), q.Latency)
	}))
	mux.HandleFunc("GET /state", c.dump)
	c.server = &http.Server{
		Handler: http.MaxBytesHandler(mux, requestBytesMax), ReadHeaderTimeout: headerTimeout, IdleTimeout: time.Minute, MaxHeaderBytes: requestBytesMax,
	}
	go func() {
		defer close(c.done)
		_ = c.server.Serve(l) // ends with Close
	}()
	return c, nil
}

// claimDir takes a directory for a testnet, and returns which of it and those above it it has made, the deepest last.
func claimDir(dir string) (made []string, l net.Listener, err error) {
	if _, err := api.ParseAddr(controlSocket(dir)); err != nil {
		return nil, nil, fmt.Errorf("testnet: %w", err)
	}
	if made, err = missing(dir); err != nil {
		return nil, nil, fmt.Errorf("testnet: directory: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("testnet: directory: %w", err)
	}
	if err := checkPrivate(dir); err != nil {
		return nil, nil, err
	}
	l, err = api.Listen(controlSocket(dir))
	if errors.Is(err, api.ErrInUse) {
		return nil, nil, fmt.Errorf("%w in %s; stop it, or choose another --dir", ErrRunning, dir)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("testnet: %w", err)
	}
	if len(made) == 0 {
		made = madeBefore(dir)
	} else if err := os.WriteFile(filepath.Join(dir, madeFile), []byte(strconv.Itoa(len(made))+"\n"), 0o600); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("testnet: %w", err), l.Close())
	}
	return made, l, nil
}

// madeFile tells, in the directory of a testnet, how many directories were made for it, itself the last: if it is killed the next one there
// removes them.
const madeFile = "testnet.made"

// madeBefore returns what a testnet has made of a directory and those above it that was killed there, the deepest last.
func madeBefore(dir string) (made []string) {
	b, err := durablefile.Read(filepath.Join(dir, madeFile), 16)
	n, bad := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || bad != nil {
		return nil
	}
	for dir, err = filepath.Abs(dir); err == nil && len(made) < n && filepath.Dir(dir) != dir; dir = filepath.Dir(dir) {
		made = append(made, dir)
	}
	slices.Reverse(made)
	return made
}

// Serve lets c answer for t, which is up.
func (c *Control) Serve(t Testnet) { c.testnet.Store(&t) }

// missing returns those of dir and the directories above it that do not exist, the deepest last.
func missing(dir string) (all []string, err error) {
	dir, err = filepath.Abs(dir)
	for err == nil {
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			slices.Reverse(all)
			return all, nil
		}
		all = append(all, dir)
		dir = filepath.Dir(dir)
	}
	return nil, err
}

// Close stops answering and gives the directory up: what Claim made of it is removed if it is empty. It does not close the
// testnet.
func (c *Control) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	err := c.server.Shutdown(ctx)
	if err != nil {
		err = c.server.Close()
	}
	<-c.done
	if len(c.made) > 0 {
		if gone := os.Remove(filepath.Join(c.made[len(c.made)-1], madeFile)); !errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, gone)
		}
	}
	for _, dir := range slices.Backward(c.made) {
		if os.Remove(dir) != nil {
			break // somebody uses it
		}
	}
	return err
}

// What goes over the socket beside [Status].
type (
	// failure is the answer to a request that failed.
	failure struct {
		Reason string `json:"reason"`
		Error  string `json:"error"`
	}
	partitionRequest struct {
		Sides [][]int `json:"sides"`
	}
	latencyRequest struct {
		Latency time.Duration `json:"latency_ns"`
	}
	joinAnswer struct {
		N int `json:"n"`
	}
	logsAnswer struct {
		Path string `json:"path"`
	}
)

// nothing is the answer to a request that asks for nothing but to be done.
var nothing = struct{}{}

// reasons name the errors that a client can match. The first that matches is told.
var reasons = []struct {
	name     string
	sentinel error
}{
	{"no_peer", ErrNoPeer}, {"down", ErrDown}, {"up", ErrUp}, {"paused", ErrPaused}, {"not_paused", ErrNotPaused}, {"mode", ErrMode}, {"full", ErrFull},
	{"running", ErrRunning}, {"state", ErrState}, {"options", ErrOptions}, {"starting", ErrStarting}, {"closed", ErrClosed}, {"foreign", ErrForeign},
}

func reasonOf(err error) (reason string, code int) {
	for _, r := range reasons {
		if errors.Is(err, r.sentinel) {
			return r.name, http.StatusConflict
		}
	}
	return "failed", http.StatusInternalServerError
}

// numberIn returns the peer's number in the request's path, or -1.
func numberIn(r *http.Request) int {
	i, err := strconv.Atoi(r.PathValue("n"))
	if err != nil {
		return -1
	}
	return i
}

// decodeRequest reads the body of a request, which is bounded by requestBytesMax, into into.
func decodeRequest(body io.Reader, into any) error {
	d := json.NewDecoder(body)
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("%w: the request makes no sense: %w", ErrOptions, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("%w: the request makes no sense: something follows it", ErrOptions)
	}
	return nil
}

// receive reads the body of a request, whatever it is for, within bodyTimeout. The server's own bound would hold until the answer, and
// some answers take longer.
func receive(w http.ResponseWriter, r *http.Request) error {
	c := http.NewResponseController(w)
	_ = c.SetReadDeadline(time.Now().Add(bodyTimeout)) // the connections of a socket have deadlines
	body, err := io.ReadAll(r.Body)
	if err != nil {
		w.Header().Set("Connection", "close") // the deadline stays, so that nobody waits for the rest
		return fmt.Errorf("%w: the request has not come whole: %w", ErrOptions, err)
	}
	_ = c.SetReadDeadline(time.Time{})
	r.Body = io.NopCloser(bytes.NewReader(body))
	return nil
}

// dump answers with the testnet's state, which ends early when that fails half-way.
func (c *Control) dump(w http.ResponseWriter, r *http.Request) {
	err := receive(w, r)
	t := c.testnet.Load()
	if err == nil && t == nil {
		err = ErrStarting
	}
	begun := false
	if err == nil {
		ctx, cancel := context.WithTimeoutCause(r.Context(), dumpTimeout, fmt.Errorf("testnet: it took longer than %v", dumpTimeout))
		defer cancel()
		err = (*t).Dump(ctx, writerFunc(func(b []byte) (int, error) {
			if !begun {
				begun = true
				w.Header().Set("Content-Type", "application/octet-stream")
			}
			return w.Write(b)
		}))
	}
	switch {
	case err != nil && begun:
		panic(http.ErrAbortHandler) // who reads must not take it for whole
	case err != nil:
		reason, code := reasonOf(err)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(failure{reason, err.Error()})
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// handle adapts fn, whose request's context ends after answerTimeout.
func (c *Control) handle(fn func(r *http.Request, t Testnet) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var answer any
		err := receive(w, r)
		if t := c.testnet.Load(); err == nil && t == nil {
			err = ErrStarting
		} else if err == nil {
			ctx, cancel := context.WithTimeoutCause(r.Context(), answerTimeout, fmt.Errorf("testnet: it took longer than %v", answerTimeout))
			defer cancel()
			answer, err = fn(r.WithContext(ctx), *t)
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
