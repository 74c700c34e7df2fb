package testnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"latchkey/node/api"
)

// shortDir returns a directory whose sockets have paths that every system takes.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "tn")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "net")
}

func claim(t *testing.T, dir string) *Control {
	t.Helper()
	c, err := Claim(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestATestnetIsControlledFromAnotherProcess(t *testing.T) {
	dir := shortDir(t)
	remote := Dial(dir)
	if _, err := remote.Status(short(t)); !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), dir) {
		t.Errorf("before it runs: %v", err)
	}
	c := claim(t, dir)
	if _, err := remote.Status(short(t)); !errors.Is(err, ErrStarting) {
		t.Errorf("while it starts: %v", err)
	}
	if _, err := Claim(dir); !errors.Is(err, ErrRunning) {
		t.Errorf("a second testnet in the directory: %v", err)
	}
	n := up(t, Options{N: 3, Dir: dir})
	c.Serve(n)

	st, err := remote.Status(short(t))
	if err != nil || len(st.Peers) != 3 || st.F != 1 || st.Seed != SeedDefault {
		t.Fatalf("%+v, %v", st, err)
	}
	daemon, err := api.Dial(st.Peers[2].API)
	if err != nil {
		t.Fatal(err)
	}
	defer daemon.Close()
	if id, err := daemon.ID(short(t)); err != nil || id.Peer != st.Peers[2].Peer {
		t.Errorf("peer 2's API is that of %q, %v", id.Peer, err)
	}
	if h, err := daemon.Locks().Lock(short(t), "by API"); err != nil {
		t.Error(err)
	} else if err := h.Release(short(t)); err != nil {
		t.Error(err)
	}

	if err := remote.Kill(short(t), 2); err != nil {
		t.Fatal(err)
	}
	if _, err := daemon.ID(short(t)); !errors.Is(err, api.ErrUnreachable) {
		t.Errorf("the API of a killed peer: %v", err)
	}
	if st, err := remote.Status(short(t)); err != nil || st.Peers[2].Up || !st.Peers[1].Up {
		t.Errorf("after the kill: %+v, %v", st, err)
	}
	if err := remote.Kill(short(t), 2); !errors.Is(err, ErrDown) {
		t.Errorf("second kill: %v", err)
	}
	if err := remote.Restart(short(t), 2); err != nil {
		t.Fatal(err)
	}
	if id, err := daemon.ID(short(t)); err != nil || id.Peer != st.Peers[2].Peer {
		t.Errorf("peer 2's API after the restart: %q, %v", id.Peer, err)
	}
	if err := remote.Restart(short(t), 2); !errors.Is(err, ErrUp) {
		t.Errorf("second restart: %v", err)
	}
	for _, i := range []int{-1, 3, 1 << 40} {
		if err := remote.Kill(short(t), i); !errors.Is(err, ErrNoPeer) || !strings.Contains(err.Error(), "0 to 2") {
			t.Errorf("kill %d: %v", i, err)
		}
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := remote.Status(short(t)); !errors.Is(err, ErrNotRunning) {
		t.Errorf("after it ended: %v", err)
	}
}

// recorder is a testnet that notes what it is asked for, and answers everything with one error.
type recorder struct {
	Testnet
	asked []string
	err   error
}

func (r *recorder) note(format string, args ...any) error {
	r.asked = append(r.asked, fmt.Sprintf(format, args...))
	return r.err
}

func (r *recorder) Kill(i int, _ ...func()) error          { return r.note("kill %d", i) }
func (r *recorder) Restart(_ context.Context, i int) error { return r.note("restart %d", i) }
func (r *recorder) Pause(i int) error                      { return r.note("pause %d", i) }
func (r *recorder) Resume(i int) error                     { return r.note("resume %d", i) }
func (r *recorder) Join(context.Context) (int, error)      { return 7, r.note("join") }
func (r *recorder) Leave(_ context.Context, i int) error   { return r.note("leave %d", i) }
func (r *recorder) Heal(context.Context) error             { return r.note("heal") }
func (r *recorder) Logs(i int) (string, error)             { return "a path", r.note("logs %d", i) }
func (r *recorder) Partition(_ context.Context, sides ...[]int) error {
	return r.note("partition %v", sides)
}
func (r *recorder) Latency(_ context.Context, d time.Duration) error { return r.note("latency %v", d) }

func TestEveryRequestAndItsErrorGoThroughTheSocket(t *testing.T) {
	dir := shortDir(t)
	c, net, remote := claim(t, dir), &recorder{}, Dial(dir)
	c.Serve(net)
	ctx := short(t)
	all := func() (errs []error) {
		n, err := remote.Join(ctx)
		path, err2 := remote.Logs(ctx, 6)
		if net.err == nil && (n != 7 || path != "a path") {
			t.Errorf("joined as %d, logs in %q", n, path)
		}
		return append(errs, err, err2, remote.Kill(ctx, 1), remote.Restart(ctx, 2), remote.Pause(ctx, 3), remote.Resume(ctx, 4),
			remote.Leave(ctx, 5), remote.Partition(ctx, []int{0, 1}, []int{2}), remote.Heal(ctx), remote.Latency(ctx, 20*time.Millisecond))
	}
	for _, err := range all() {
		if err != nil {
			t.Error(err)
		}
	}
	want := []string{"join", "logs 6", "kill 1", "restart 2", "pause 3", "resume 4", "leave 5", "partition [[0 1] [2]]", "heal", "latency 20ms"}
	if !slices.Equal(net.asked, want) {
		t.Errorf("asked for %q, want %q", net.asked, want)
	}
	for _, sentinel := range []error{ErrNoPeer, ErrDown, ErrUp, ErrPaused, ErrNotPaused, ErrMode, ErrFull, ErrOptions, ErrClosed, ErrStarting} {
		net.err = fmt.Errorf("%w: and why", sentinel)
		for _, err := range all() {
			if !errors.Is(err, sentinel) || err.Error() != net.err.Error() {
				t.Errorf("%v came through as %v", net.err, err)
			}
		}
	}
}

func TestRequestsThatMakeNoSenseAreRefused(t *testing.T) {
	dir := shortDir(t)
	c, net := claim(t, dir), &recorder{}
	c.Serve(net)
	client := Dial(dir).http
	for _, tc := range []struct{ path, body string }{
		{"partition", ""}, {"partition", "[]"}, {"partition", `{"side":[[0]]}`}, {"partition", `{"sides":[["x"]]}`},
		{"partition", `{"sides":[[0` + strings.Repeat(",1", requestBytesMax) + `]]}`}, {"latency", `{"latency_ns":"1s"}`},
		{"latency", `{"latency_ns":1} {"latency_ns":2}`}, {"latency", `{"latency_ns":1}garbage`},
	} {
		resp, err := client.Post("http://testnet/"+tc.path, "application/json", strings.NewReader(tc.body))
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err := decodeAnswer(resp.StatusCode, body, nil); !errors.Is(err, ErrOptions) {
			t.Errorf("%s %.40q: %v", tc.path, tc.body, err)
		}
	}
	if len(net.asked) > 0 {
		t.Errorf("asked for %v", net.asked)
	}
}

// Whoever does not finish a request, needed or not, is not waited for, while one that takes long to answer is.
func TestARequestThatIsNotFinishedEnds(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	c, testnet := claim(t, dir), &slow{joining: make(chan struct{})}
	c.Serve(testnet)
	joined := make(chan error, 1)
	go func() {
		_, err := Dial(dir).Join(t.Context())
		joined <- err
	}()
	<-testnet.joining
	var conns []net.Conn
	for _, path := range []string{"/heal", "/latency", "/kill/0"} {
		conn, err := net.Dial("unix", controlSocket(dir))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conns = append(conns, conn)
		if _, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{", path); err != nil {
			t.Fatal(err)
		}
	}
	for _, conn := range conns {
		conn.SetReadDeadline(time.Now().Add(4 * bodyTimeout))
		if answer, err := io.ReadAll(conn); err != nil || !strings.Contains(string(answer), "has not come whole") {
			t.Errorf("%q, %v", answer, err)
		}
	}
	close(testnet.joining)
	if err := <-joined; err != nil || len(testnet.asked) > 0 {
		t.Errorf("%v; asked for %v", err, testnet.asked)
	}
}

// slow is a testnet whose Join takes until joining is closed, and whose context must not end before.
type slow struct {
	recorder
	joining chan struct{}
}

func (s *slow) Join(ctx context.Context) (int, error) {
	s.joining <- struct{}{}
	select {
	case <-s.joining:
		return 0, nil
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

func TestADirectoryTooDeepForSocketsIsRefusedClearly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("x", 200))
	if _, err := Claim(dir); !errors.Is(err, api.ErrAddr) {
		t.Errorf("claim: %v", err)
	}
	if _, err := Dial(dir).Status(t.Context()); !errors.Is(err, api.ErrAddr) {
		t.Errorf("dial: %v", err)
	}
}

func TestOnlyItsOwnerMayControlATestnet(t *testing.T) {
	dir := shortDir(t)
	claim(t, dir)
	for _, path := range []string{dir, controlSocket(dir)} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
}

func FuzzDecodeAnswer(f *testing.F) {
	f.Add(200, []byte(`{"seed":"1","peers":[{"n":0}]}`))
	f.Add(409, []byte(`{"reason":"down","error":"x"}`))
	f.Add(500, []byte(`{}`))
	f.Fuzz(func(t *testing.T, code int, body []byte) {
		var st Status
		if err := decodeAnswer(code, body, &st); err == nil && code != http.StatusOK {
			t.Errorf("answer %d is no error", code)
		}
	})
}
