package api_test

import (
	"bufio"
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
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/durationpb"

	"latchkey/lockservice"
	"latchkey/node/api"
	"latchkey/node/api/apitest"
	latchkeyv1 "latchkey/node/api/latchkey/v1"
	"latchkey/node/api/latchkey/v1/latchkeyv1connect"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a daemon's API at a real socket, and a client of it.
type world struct {
	*apitest.Backend
	t      testing.TB
	socket string
	server *api.Server
	client *api.Client
	locks  lockservice.Backend // the client's
}

func newWorld(t testing.TB, hook func(*apitest.Backend, *api.Config)) *world {
	t.Helper()
	w := &world{Backend: apitest.NewBackend(), t: t, socket: filepath.Join(t.TempDir(), "api.sock")}
	cfg := api.Config{Node: apitest.Node{ShutOut: "fake is revoked"}, Locks: w.Backend, Version: "v1.2.3"}
	if hook != nil {
		hook(w.Backend, &cfg)
	}
	w.serve(cfg)
	w.client = w.dial()
	w.locks = w.client.LockBackend()
	return w
}

// serve starts a daemon; an earlier one must be closed.
func (w *world) serve(cfg api.Config) {
	w.t.Helper()
	l, err := api.Listen(w.socket)
	if err != nil {
		w.t.Fatal(err)
	}
	s, err := api.NewServer(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.server = s
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	w.t.Cleanup(func() {
		s.Close()
		if err := <-done; err != nil {
			w.t.Errorf("Serve: %v", err)
		}
	})
}

func (w *world) dial() *api.Client {
	w.t.Helper()
	c, err := api.Dial(w.socket)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	return c
}

func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if !w.Until(ctx, ok) {
		w.t.Fatalf("never: %s", what)
	}
}

func request(name string) lockservice.Request {
	return lockservice.Request{Name: name, TTL: 30 * time.Second}
}

func (w *world) mustAcquire(name string) lockservice.Grant {
	w.t.Helper()
	g, err := w.locks.Acquire(w.t.Context(), request(name))
	if err != nil {
		w.t.Fatal(err)
	}
	return g
}

func TestLockLivesThroughTheDaemon(t *testing.T) {
	w := newWorld(t, nil)
	ctx := t.Context()
	g := w.mustAcquire("n")
	if g.Token <= 1<<60 || g.TTL != 30*time.Second || g.Waited || g.Holder == "" {
		t.Fatalf("granted %+v", g)
	}
	if err := w.locks.Renew(ctx, g); err != nil {
		t.Fatal(err)
	}
	i, err := w.locks.Info(ctx, "n")
	if err != nil || !i.Held || i.Token != g.Token || i.TTL != g.TTL || i.LeaseLeft <= 0 || i.Holder.Session == "" {
		t.Fatalf("info %+v, %v", i, err)
	}
	if err := w.locks.Release(ctx, g); err != nil {
		t.Fatal(err)
	}
	if err := w.locks.Release(ctx, g); !errors.Is(err, lockservice.ErrNotHeld) {
		t.Fatalf("second release: %v", err)
	}
	if err := w.locks.Renew(ctx, g); !errors.Is(err, lockservice.ErrNotHeld) {
		t.Fatalf("renewal after release: %v", err)
	}
	l, err := w.locks.Limits(ctx)
	if err != nil || l != apitest.Limits {
		t.Fatalf("limits %+v, %v", l, err)
	}
}

func TestWaiterIsToldItsPlacesThenGranted(t *testing.T) {
	w := newWorld(t, nil)
	first := w.mustAcquire("n")
	second := make(chan lockservice.Grant, 1)
	go func() {
		g, _ := w.locks.Acquire(t.Context(), request("n"))
		second <- g
	}()
	w.until("the second waits", func() bool { _, n := w.State("n"); return n == 1 })

	var places []int
	third := make(chan lockservice.Grant, 1)
	told := make(chan int, 8)
	go func() {
		r := request("n")
		r.Queued = func(p int) { told <- p }
		g, _ := w.locks.Acquire(t.Context(), r)
		third <- g
	}()
	places = append(places, <-told)
	if err := w.locks.Release(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	g := <-second
	if !g.Waited || g.Token <= first.Token {
		t.Fatalf("second was granted %+v after %+v", g, first)
	}
	places = append(places, <-told)
	if places[0] != 2 || places[1] != 1 {
		t.Fatalf("the third was told places %v", places)
	}
	if err := w.locks.Release(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	if g := <-third; !g.Waited || g.Token == 0 {
		t.Fatalf("third was granted %+v", g)
	}
}

// TestEverySentinelTravels has the backend fail with each sentinel in each call; the client must match the same one, and no
// other.
func TestEverySentinelTravels(t *testing.T) {
	sentinels := []error{
		lockservice.ErrLocked, lockservice.ErrLost, lockservice.ErrNotHeld, lockservice.ErrNoQuorum, lockservice.ErrOutcomeUnknown,
		lockservice.ErrName, lockservice.ErrTTL, lockservice.ErrWait, lockservice.ErrLimit, lockservice.ErrClosed,
		lockservice.ErrStaleToken, lockservice.ErrGuardFile, lockservice.ErrMode, lockservice.ErrShape,
	}
	var fail error
	w := newWorld(t, func(b *apitest.Backend, _ *api.Config) {
		b.OnAcquire = func(context.Context, lockservice.Request) error { return fail }
		b.OnRenew = func(context.Context, lockservice.Grant) error { return fail }
		b.OnRelease = func(context.Context, lockservice.Grant) error { return fail }
		b.OnInfo = func(context.Context, string) error { return fail }
	})
	ctx := t.Context()
	for i, want := range sentinels {
		fail = nil
		g := w.mustAcquire(fmt.Sprint("n", i))
		fail = fmt.Errorf("backend: %w: with a detail", want)
		calls := map[string]func() error{
			"acquire": func() error { _, err := w.locks.Acquire(ctx, request("m")); return err },
			"renew":   func() error { return w.locks.Renew(ctx, g) },
			"info":    func() error { _, err := w.locks.Info(ctx, "m"); return err },
		}
		if want != lockservice.ErrNotHeld { // after which nothing is left to release
			calls["release"] = func() error { return w.locks.Release(ctx, g) }
		}
		for op, call := range calls {
			err := call()
			for _, s := range sentinels {
				if errors.Is(err, s) != (s == want) {
					t.Errorf("%s failed with %v; at the client errors.Is(%v) is %v", op, want, s, errors.Is(err, s))
				}
			}
			if err == nil || !strings.HasSuffix(err.Error(), "with a detail") {
				t.Errorf("%s: the client reads %v", op, err)
			}
			if errors.Is(err, api.ErrUnreachable) {
				t.Errorf("%s: %v passes for silence", op, err)
			}
		}
	}
	fail = errors.New("something else")
	if _, err := w.locks.Info(ctx, "n"); err == nil || err.Error() != "something else" {
		t.Errorf("an error of no kind reads %v", err)
	}
}

func TestTryTellsWhoHoldsTheLock(t *testing.T) {
	w := newWorld(t, nil)
	w.mustAcquire("n")
	r := request("n")
	r.Try = true
	_, err := w.locks.Acquire(t.Context(), r)
	var locked *lockservice.LockedError
	if !errors.As(err, &locked) || !errors.Is(err, lockservice.ErrLocked) {
		t.Fatal(err)
	}
	if want := (lockservice.LockedError{Name: "n", Holder: lockservice.Party{Session: "s1", Peer: "12D3KooWfake"}}); *locked != want {
		t.Errorf("%+v, want %+v", *locked, want)
	}
}

func TestClientThatLeavesWhileWaitingLeavesTheQueue(t *testing.T) {
	w := newWorld(t, nil)
	w.mustAcquire("n")
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := w.locks.Acquire(ctx, request("n"))
		done <- err
	}()
	w.until("it waits", func() bool { _, n := w.State("n"); return n == 1 })
	cause := errors.New("have it your way")
	cancel(cause)
	if err := <-done; !errors.Is(err, cause) {
		t.Errorf("the waiter reads %v, want the cause of its context", err)
	}
	w.until("it has left the queue", func() bool { _, n := w.State("n"); return n == 0 })
}

// streamJSON opens an Acquire as a program with nothing but an HTTP/1.1 client would.
func (w *world) streamJSON(body string) (net.Conn, *bufio.Reader) {
	w.t.Helper()
	conn, err := net.Dial("unix", w.socket)
	if err != nil {
		w.t.Fatal(err)
	}
	frame := append([]byte{0, 0, 0, 0, byte(len(body))}, body...)
	fmt.Fprintf(conn, "POST /latchkey.v1.LockService/Acquire HTTP/1.1\r\nHost: x\r\nContent-Type: application/connect+json\r\nContent-Length: %d\r\n\r\n%s", len(frame), frame)
	return conn, bufio.NewReader(conn)
}

func TestKilledHTTP1ClientLeavesTheQueue(t *testing.T) {
	w := newWorld(t, nil)
	w.mustAcquire("n")
	conn, _ := w.streamJSON(`{"name":"n","ttl":"5s"}`)
	w.until("it waits", func() bool { _, n := w.State("n"); return n == 1 })
	conn.Close()
	w.until("it has left the queue", func() bool { _, n := w.State("n"); return n == 0 })
}

func TestKilledClientThatHoldsReleasesNothing(t *testing.T) {
	w := newWorld(t, nil)
	conn, r := w.streamJSON(`{"name":"n","ttl":"5s"}`)
	for line := ""; !strings.Contains(line, `"token"`); {
		var err error
		if line, err = r.ReadString('}'); err != nil {
			t.Fatal(err)
		}
	}
	conn.Close()
	w.server.Close() // waits for the call to end
	if token, _ := w.State("n"); token == 0 {
		t.Error("the lock was released when its holder went away")
	}
	for _, c := range w.Calls() {
		if c.Op == "release" {
			t.Error("the daemon released a lock that a client holds")
		}
	}
}

// TestGrantForAClientAlreadyGoneIsGivenBack lets the backend grant after the client has left.
func TestGrantForAClientAlreadyGoneIsGivenBack(t *testing.T) {
	w := newWorld(t, func(b *apitest.Backend, _ *api.Config) {
		b.OnAcquire = func(ctx context.Context, _ lockservice.Request) error { <-ctx.Done(); return nil }
	})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := w.locks.Acquire(ctx, request("n")); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	w.until("it is released", func() bool {
		calls := w.Calls()
		return len(calls) > 0 && calls[len(calls)-1].Op == "release" && calls[len(calls)-1].Err == nil
	})
	if token, _ := w.State("n"); token != 0 {
		t.Error("still held")
	}
}

func TestGrantsEndWithTheDaemonThatGaveThem(t *testing.T) {
	w := newWorld(t, nil)
	g := w.mustAcquire("n")
	w.server.Close()
	if err := w.locks.Renew(t.Context(), g); !errors.Is(err, api.ErrUnreachable) {
		t.Errorf("renewal without a daemon: %v", err)
	}
	w.serve(api.Config{Node: apitest.Node{}, Locks: w.Backend})
	if err := w.locks.Renew(t.Context(), g); !errors.Is(err, lockservice.ErrNotHeld) {
		t.Errorf("renewal at another daemon: %v", err)
	}
	if token, _ := w.State("n"); token != g.Token {
		t.Error("the restart released the lock")
	}
}

func TestForeignGrantIsNotHeld(t *testing.T) {
	w := newWorld(t, nil)
	g := w.mustAcquire("n")
	for what, forged := range map[string]lockservice.Grant{
		"name":  {Name: "m", Token: g.Token, Req: g.Req},
		"token": {Name: "n", Token: g.Token - 1, Req: g.Req},
		"req":   {Name: "n", Token: g.Token, Req: g.Req + 1},
	} {
		if err := w.locks.Release(t.Context(), forged); !errors.Is(err, lockservice.ErrNotHeld) {
			t.Errorf("release with another %s: %v", what, err)
		}
	}
	for _, c := range w.Calls() {
		if c.Op == "release" {
			t.Error("a grant nobody was given reached the backend")
		}
	}
}

func TestLostGrantIsForgotten(t *testing.T) {
	w := newWorld(t, func(b *apitest.Backend, _ *api.Config) {
		b.OnRenew = func(context.Context, lockservice.Grant) error { return lockservice.ErrNotHeld }
	})
	g := w.mustAcquire("n")
	for range 2 {
		if err := w.locks.Renew(t.Context(), g); !errors.Is(err, lockservice.ErrNotHeld) {
			t.Fatal(err)
		}
	}
	if calls := w.Calls(); len(calls) != 2 { // the acquire and one renewal
		t.Errorf("the backend saw %+v", calls)
	}
}

// TestReleaseWithoutADaemonIsNotRepeated: a daemon that is started again knows nothing of the grant.
func TestReleaseWithoutADaemonIsNotRepeated(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	h, err := w.client.Locks().Lock(t.Context(), "n", lockservice.WithTTL(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	w.server.Close()
	for range 2 { // the first may have found out that the connection had ended
		if _, err = w.client.Version(t.Context()); errors.Is(err, api.ErrGone) {
			break
		}
	}
	if !errors.Is(err, api.ErrGone) || !errors.Is(err, api.ErrUnreachable) {
		t.Errorf("of a daemon that has ended: %v", err)
	}
	if err := h.Release(t.Context()); !errors.Is(err, api.ErrGone) || !errors.Is(err, lockservice.ErrClosed) || errors.Is(err, lockservice.ErrOutcomeUnknown) {
		t.Errorf("release: %v", err)
	}
}

func TestDrainEndsWaitersAndLetsHoldersRelease(t *testing.T) {
	w := newWorld(t, nil)
	g := w.mustAcquire("n")
	done := make(chan error, 1)
	go func() {
		_, err := w.locks.Acquire(context.Background(), request("n"))
		done <- err
	}()
	w.until("it waits", func() bool { _, n := w.State("n"); return n == 1 })
	w.server.Drain()
	if err := <-done; !errors.Is(err, lockservice.ErrClosed) {
		t.Errorf("the waiter reads %v", err)
	}
	if _, n := w.State("n"); n != 0 {
		t.Error("it is still queued")
	}
	if _, err := w.locks.Acquire(t.Context(), request("m")); !errors.Is(err, lockservice.ErrClosed) {
		t.Errorf("a new acquire: %v", err)
	}
	if err := w.locks.Release(t.Context(), g); err != nil {
		t.Errorf("release while draining: %v", err)
	}
}

func TestNodeCalls(t *testing.T) {
	var stops atomic.Int32
	w := newWorld(t, func(_ *apitest.Backend, c *api.Config) { c.Shutdown = func() { stops.Add(1) } })
	ctx := t.Context()
	want := apitest.Node{ShutOut: "fake is revoked"}
	if got, err := w.client.ID(ctx); err != nil || fmt.Sprint(got) != fmt.Sprint(want.Info()) {
		t.Errorf("id %+v, %v", got, err)
	}
	if got, err := w.client.Peers(ctx); err != nil || fmt.Sprint(got) != fmt.Sprint(want.Peers()) {
		t.Errorf("peers %+v, %v", got, err)
	}
	wantStatus, _ := want.Status(ctx)
	if got, err := w.client.Status(ctx); err != nil || !reflect.DeepEqual(got, wantStatus) {
		t.Errorf("status %+v, %v", got, err)
	}
	wantKey, _ := want.Key(ctx, "n")
	got, err := w.client.Key(ctx, "n")
	if err != nil || fmt.Sprint(*got.Group) != fmt.Sprint(*wantKey.Group) || got.Hash != "ff" || len(got.Closest) != 2 {
		t.Errorf("key %+v, %v", got, err)
	}
	wantGroups, _ := want.HostedGroups(ctx)
	if got, err := w.client.Groups(ctx); err != nil || !reflect.DeepEqual(got, wantGroups) {
		t.Errorf("groups %+v, %v", got, err)
	}
	wantStanding, _ := want.GroupStanding(ctx, "a3/8")
	if got, err := w.client.Group(ctx, "a3/8"); err != nil || !reflect.DeepEqual(got, wantStanding) || got.Majority() {
		t.Errorf("group %+v, %v", got, err)
	}
	wantRevived, _ := want.ReviveGroup(ctx, "a3/8", 6, false)
	if got, err := w.client.Revive(ctx, "a3/8", 6, false); err != nil || !reflect.DeepEqual(got, wantRevived) || got.Generation != 7 {
		t.Errorf("revive %+v, %v", got, err)
	}
	if _, err := w.client.Group(ctx, "77/8"); !errors.Is(err, api.ErrNoGroup) || !strings.Contains(err.Error(), "77/8") {
		t.Errorf("a prefix without a group: %v", err)
	}
	if _, err := w.client.Revive(ctx, "a4/8", 0, false); !errors.Is(err, api.ErrAlive) || !strings.Contains(err.Error(), "12D3KooWone") {
		t.Errorf("revive of a healthy group: %v", err)
	}
	for name, remove := range map[string]bool{"n": false, "own": true} {
		wantServed, _ := want.OwnGroup(ctx, name, remove)
		if got, err := w.client.OwnGroup(ctx, name, remove); err != nil || !reflect.DeepEqual(got, wantServed) {
			t.Errorf("own group of %q: %+v, %v", name, got, err)
		}
		if _, err := w.client.OwnGroup(ctx, name, !remove); !errors.Is(err, api.ErrOwn) || !strings.Contains(err.Error(), name) {
			t.Errorf("own group of %q once more: %v", name, err)
		}
	}
	wantGraves, _ := want.Graves(ctx)
	if got, err := w.client.Graves(ctx); err != nil || !reflect.DeepEqual(got, wantGraves) {
		t.Errorf("graves %+v, %v", got, err)
	}
	if got, err := w.client.DeleteGrave(ctx, "a3/8", 1); err != nil || !reflect.DeepEqual(got, wantGraves.Graves[1:]) {
		t.Errorf("deleted %+v, %v", got, err)
	}
	if _, err := w.client.DeleteGrave(ctx, "a3/8", 2); !errors.Is(err, api.ErrNoGroup) {
		t.Errorf("a grave that is not there: %v", err)
	}
	wantProposal, _ := want.ProposeRoot(ctx)
	if got, err := w.client.ProposeRoot(ctx); err != nil || !reflect.DeepEqual(got, wantProposal) {
		t.Errorf("proposal %+v, %v", got, err)
	}
	wantReseeded, _ := want.Reseed(ctx, []byte("signed"), true)
	if got, err := w.client.Reseed(ctx, []byte("signed"), true); err != nil || got != wantReseeded {
		t.Errorf("reseed %+v, %v", got, err)
	}
	if _, err := w.client.Reseed(ctx, []byte("forged"), true); !errors.Is(err, api.ErrReseed) {
		t.Errorf("a forged document: %v", err)
	}
	if _, err := w.client.Revive(ctx, "nonsense", 0, false); !errors.Is(err, api.ErrPrefix) {
		t.Errorf("revive of no prefix: %v", err)
	}
	if v, err := w.client.Version(ctx); err != nil || v.Version != "v1.2.3" || v.Go == "" || v.Platform == "" {
		t.Errorf("version %+v, %v", v, err)
	}
	if err := w.client.Shutdown(ctx); err != nil || stops.Load() != 1 {
		t.Errorf("shutdown: %v, called %d times", err, stops.Load())
	}
}

func TestNamesAreCheckedOnBothSides(t *testing.T) {
	w := newWorld(t, nil)
	long := strings.Repeat("x", lockservice.NameBytesMax+1)
	for _, name := range []string{"", long, "a\nb", "\xff"} {
		if _, err := w.locks.Acquire(t.Context(), request(name)); !errors.Is(err, lockservice.ErrName) {
			t.Errorf("%.10q: client: %v", name, err)
		}
		if name == "\xff" {
			continue // JSON cannot carry it
		}
		body, _ := json.Marshal(map[string]string{"name": name})
		code, answer := w.post("LockService/Info", "application/json", body)
		if code != http.StatusBadRequest || !strings.Contains(answer, "REASON_NAME") {
			t.Errorf("%.10q: server: %d %s", name, code, answer)
		}
	}
	if len(w.Calls()) != 0 {
		t.Errorf("the backend saw %v", w.Calls())
	}
}

// post is a call over HTTP/1.1, without any of our client.
func (w *world) post(procedure, contentType string, body []byte) (int, string) {
	w.t.Helper()
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", w.socket) }}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, "http://latchkey/latchkey.v1."+procedure, bytes.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	res, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(b)
}

func TestPlainJSONOverHTTP1(t *testing.T) {
	w := newWorld(t, nil)
	w.mustAcquire("n")
	for _, contentType := range []string{"application/json", "application/json; charset=utf-8"} {
		code, body := w.post("LockService/Info", contentType, []byte(`{"name":"n"}`))
		var got map[string]any
		if err := json.Unmarshal([]byte(body), &got); err != nil || code != http.StatusOK {
			t.Fatalf("%s: %d %s", contentType, code, body)
		}
		if got["token"] != "1152921504606846977" || got["ttl"] != "30s" || got["held"] != true {
			t.Errorf("%v", got)
		}
		if waiting, ok := got["waiting"]; !ok || waiting != "0" {
			t.Errorf("a field that is zero is left out: %v", got)
		}
	}
}

func TestBadRequestsGetOneClearAnswer(t *testing.T) {
	w := newWorld(t, nil)
	oversize := []byte(`{"name":"` + strings.Repeat("x", api.RequestBytesMax) + `"}`)
	endless := bytes.Repeat([]byte(" "), 10*api.RequestBytesMax)
	for _, c := range []struct {
		what, procedure, contentType string
		body                         []byte
		code                         int
		says                         string
	}{
		{"unknown field", "LockService/Info", "application/json", []byte(`{"name":"n","shared":true}`), 400, "shared"},
		{"no JSON", "LockService/Info", "application/json", []byte(`{"name"`), 400, "invalid_argument"},
		{"wrong type", "LockService/Info", "application/json", []byte(`{"name":7}`), 400, "name"},
		{"not UTF-8", "LockService/Info", "application/json", []byte("{\"name\":\"\xff\"}"), 400, "UTF-8"},
		{"empty", "LockService/Info", "application/json", nil, 400, "empty body"},
		{"no protobuf", "LockService/Info", "application/proto", []byte{0xff, 0xff}, 400, "invalid_argument"},
		{"protobuf, not UTF-8", "LockService/Info", "application/proto", []byte{10, 1, 0xff}, 400, "UTF-8"},
		{"oversize", "LockService/Info", "application/json", oversize, 429, "resource_exhausted"},
		{"endless", "LockService/Info", "application/json", endless, 429, "resource_exhausted"},
		{"TTL beyond the range", "LockService/Acquire", "application/connect+json", frame(`{"name":"n","ttl":"3600s"}`), 200, "REASON_TTL"},
		{"TTL that is none", "LockService/Acquire", "application/connect+json", frame(`{"name":"n","ttl":"-1s"}`), 200, "REASON_TTL"},
		{"truncated frame", "LockService/Acquire", "application/connect+json", frame(`{"name":"n"}`)[:9], 200, "promised 12 bytes"},
		{"frame of 4 GiB", "LockService/Acquire", "application/connect+json", []byte{0, 255, 255, 255, 255, '{'}, 200, "resource_exhausted"},
		{"unknown method", "LockService/Steal", "application/json", []byte(`{}`), 404, "not found"},
		{"unknown service", "Nothing/Id", "application/json", []byte(`{}`), 404, "no such procedure"},
		{"unknown encoding", "LockService/Info", "text/plain", []byte(`{}`), 415, ""},
	} {
		code, body := w.post(c.procedure, c.contentType, c.body)
		if code != c.code || !strings.Contains(body, c.says) {
			t.Errorf("%s: %d %.200s; want %d and %q", c.what, code, body, c.code, c.says)
		}
	}
	if len(w.Calls()) != 0 && w.Calls()[0].Op != "acquire" {
		t.Errorf("the backend saw %v", w.Calls())
	}
	if _, err := w.client.ID(t.Context()); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func frame(s string) []byte { return append([]byte{0, 0, 0, 0, byte(len(s))}, s...) }

func TestGRPCAndGRPCWebAreSpoken(t *testing.T) {
	w := newWorld(t, nil)
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: &protocols, DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", w.socket) }}
	defer tr.CloseIdleConnections()
	for what, opt := range map[string]connect.ClientOption{"gRPC": connect.WithGRPC(), "gRPC-Web": connect.WithGRPCWeb()} {
		c := latchkeyv1connect.NewLockServiceClient(&http.Client{Transport: tr}, "http://x", opt)
		stream, err := c.Acquire(t.Context(), &latchkeyv1.AcquireRequest{Name: what, Ttl: durationpb.New(time.Second)})
		if err != nil || !stream.Receive() || stream.Msg().GetGranted().GetToken() == 0 {
			t.Fatalf("%s: %v, %v", what, err, stream.Err())
		}
		stream.Close()
		_, err = c.Renew(t.Context(), &latchkeyv1.RenewRequest{Name: what})
		if connect.CodeOf(err) != connect.CodeFailedPrecondition {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestSocketIsTheOwnersAlone(t *testing.T) {
	w := newWorld(t, nil)
	info, err := os.Stat(w.socket)
	if err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Fatalf("%v, %v", info.Mode(), err)
	}
	if _, err := w.client.ID(t.Context()); err != nil { // so Serve has begun
		t.Fatal(err)
	}
	w.server.Close()
	if _, err := os.Lstat(w.socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Close: %v", err)
	}
}

func TestSocketOfALiveDaemonIsRefusedAndOfADeadOneReplaced(t *testing.T) {
	w := newWorld(t, nil)
	if _, err := api.Listen(w.socket); !errors.Is(err, api.ErrInUse) {
		t.Fatalf("live: %v", err)
	}
	if _, err := w.client.ID(t.Context()); err != nil {
		t.Fatalf("the live daemon after the attempt: %v", err)
	}
	dead := filepath.Join(t.TempDir(), "api.sock")
	l, err := net.Listen("unix", dead)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	again, err := api.Listen(dead)
	if err != nil {
		t.Fatalf("dead: %v", err)
	}
	again.Close()

	file := filepath.Join(t.TempDir(), "api.sock")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := api.Listen(file); !errors.Is(err, api.ErrInUse) {
		t.Errorf("a file: %v", err)
	}
	if b, _ := os.ReadFile(file); string(b) != "precious" {
		t.Error("Listen removed a file that is no socket")
	}
}

func TestSocketPathTooLongNamesTheLimit(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, strings.Repeat("d", 200), "api.sock")
	for what, open := range map[string]func(string) error{
		"listen": func(p string) error { _, err := api.Listen(p); return err },
		"dial":   func(p string) error { _, err := api.Dial(p); return err },
	} {
		err := open(path)
		if !errors.Is(err, api.ErrAddr) || !strings.Contains(err.Error(), "107") && !strings.Contains(err.Error(), "103") || !strings.Contains(err.Error(), "--api") {
			t.Errorf("%s: %v", what, err)
		}
	}
	// The limit named is the real one: a path of just that length works.
	long := filepath.Join("/tmp", strings.Repeat("s", 200))[:api.SocketPathMax]
	os.Remove(long)
	l, err := api.Listen(long)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := api.Listen(long + "s"); !errors.Is(err, api.ErrAddr) {
		t.Errorf("one byte more: %v", err)
	}
}

func TestSilenceIsUnreachable(t *testing.T) {
	c, err := api.Dial(filepath.Join(t.TempDir(), "nobody.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.ID(t.Context()); !errors.Is(err, api.ErrUnreachable) || errors.Is(err, lockservice.ErrOutcomeUnknown) {
		t.Errorf("id: %v", err)
	}
	_, err = c.LockBackend().Acquire(t.Context(), request("n"))
	if !errors.Is(err, api.ErrUnreachable) || errors.Is(err, lockservice.ErrOutcomeUnknown) {
		t.Errorf("acquire: %v: what was never sent has no unknown outcome", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	cancel(cause)
	if _, err := c.ID(ctx); !errors.Is(err, cause) {
		t.Errorf("with its context ended: %v", err)
	}
}

// TestConnectionCutAfterSendingLeavesTheOutcomeOpen kills the daemon between a request and its answer.
func TestConnectionCutAfterSendingLeavesTheOutcomeOpen(t *testing.T) {
	reached := make(chan struct{})
	release := make(chan struct{})
	w := newWorld(t, func(b *apitest.Backend, _ *api.Config) {
		b.OnRelease = func(context.Context, lockservice.Grant) error { close(reached); <-release; return nil }
	})
	g := w.mustAcquire("n")
	done := make(chan error, 1)
	go func() { done <- w.locks.Release(context.Background(), g) }()
	<-reached
	go w.server.Close() // cuts the call off when it does not end
	err := <-done
	close(release)
	if !errors.Is(err, api.ErrUnreachable) || !errors.Is(err, lockservice.ErrOutcomeUnknown) {
		t.Errorf("release: %v", err)
	}
}

func TestParseAddr(t *testing.T) {
	for in, want := range map[string]string{
		"/run/a.sock": "/run/a.sock", "unix:///run/a.sock": "/run/a.sock", "a.sock": "a.sock", "/run//x/../a.sock": "/run/a.sock",
		"": "", "unix://a.sock": "", "http://127.0.0.1:80": "", "tcp://x": "", "a\x00b": "", "unix://": "", strings.Repeat("x", 5000): "",
	} {
		got, err := api.ParseAddr(in)
		if got != want || errors.Is(err, api.ErrAddr) != (want == "") {
			t.Errorf("ParseAddr(%.40q) = %q, %v", in, got, err)
		}
	}
}

// FuzzParseAddr: an accepted address is a path that the system takes, and stays the same when parsed again.
func FuzzParseAddr(f *testing.F) {
	for _, s := range []string{"/run/a.sock", "unix:///a", "http://x", "", "a/../..", strings.Repeat("y", 108)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		path, err := api.ParseAddr(s)
		if err != nil {
			if !errors.Is(err, api.ErrAddr) {
				t.Fatalf("%q: %v", s, err)
			}
			return
		}
		if path == "" || len(path) > api.SocketPathMax || strings.ContainsRune(path, 0) {
			t.Fatalf("%q gives %q", s, path)
		}
		if again, err := api.ParseAddr(path); err != nil || again != path {
			t.Fatalf("%q gives %q, and that gives %q, %v", s, path, again, err)
		}
	})
}

// FuzzDecodeRequest feeds arbitrary bodies to every procedure: none may panic, hang or get past the checks of names.
func FuzzDecodeRequest(f *testing.F) {
	var slipped atomic.Value // a name that should not have got this far
	s, err := api.NewServer(api.Config{Node: apitest.Node{}, Locks: refusing{&slipped}, Durables: noDurables{}})
	if err != nil {
		f.Fatal(err)
	}
	h := s.Handler()
	procedures := []string{"NodeService/Id", "NodeService/Key", "LockService/Acquire", "LockService/Renew", "LockService/Release", "LockService/Info", "LockService/Break", "LockService/List",
		"DurableService/Get", "DurableService/Set", "DurableService/Remove", "DurableService/Hold", "DurableService/Commit", "DurableService/Watch",
		"DurableService/WatchDirectory", "DurableService/List", "DurableService/Info"}
	types := []string{"application/json", "application/proto", "application/connect+json", "application/connect+proto", "application/grpc", "application/grpc-web+proto"}
	f.Add(uint8(2), uint8(2), frame(`{"name":"n","try":true}`))
	f.Add(uint8(5), uint8(0), []byte(`{"name":"n"}`))
	f.Add(uint8(3), uint8(1), []byte{10, 1, 'n', 16, 1, 24, 1})
	f.Add(uint8(9), uint8(0), []byte(`{"app":"a","name":"n","value":"dg==","condition":{"version":"1"},"ttl":"5s"}`))
	f.Add(uint8(14), uint8(2), frame(`{"app":"a","directory":"d","after":"7"}`))
	f.Fuzz(func(t *testing.T, procedure, contentType uint8, body []byte) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "/latchkey.v1."+procedures[int(procedure)%len(procedures)], bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", types[int(contentType)%len(types)])
		h.ServeHTTP(discard{http.Header{}}, r)
		if name := slipped.Load(); name != nil {
			t.Fatalf("the backend was asked for %q", name)
		}
	})
}

// refusing is a backend that refuses everything, and notes names that it should not have been asked for.
type refusing struct{ slipped *atomic.Value }

func (b refusing) check(name string) error {
	if lockservice.CheckName(name) != nil {
		b.slipped.Store(name)
	}
	return lockservice.ErrNoQuorum
}

func (b refusing) Acquire(_ context.Context, r lockservice.Request) (lockservice.Grant, error) {
	return lockservice.Grant{}, b.check(r.Name)
}
func (b refusing) Renew(_ context.Context, g lockservice.Grant) error   { return b.check(g.Name) }
func (b refusing) Release(_ context.Context, g lockservice.Grant) error { return b.check(g.Name) }
func (b refusing) Break(_ context.Context, name string, _ lockservice.Token) (lockservice.Party, error) {
	return lockservice.Party{}, b.check(name)
}
func (b refusing) Info(_ context.Context, name string) (lockservice.Info, error) {
	return lockservice.Info{}, b.check(name)
}
func (b refusing) Limits(context.Context) (lockservice.Limits, error) { return apitest.Limits, nil }

type discard struct{ h http.Header }

func (d discard) Header() http.Header         { return d.h }
func (d discard) Write(b []byte) (int, error) { return len(b), nil }
func (d discard) WriteHeader(int)             {}
func (d discard) Flush()                      {}

func TestTheEndOfALockIsHeardThroughTheDaemon(t *testing.T) {
	w := newWorld(t, nil)
	e := w.locks.(lockservice.Ender)
	g, err := w.locks.Acquire(t.Context(), lockservice.Request{Name: "n", TTL: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	heard := make(chan error, 1)
	go func() { heard <- e.Ended(t.Context(), g) }()
	if _, err := w.locks.Break(t.Context(), "n", g.Token); err != nil {
		t.Fatal(err)
	}
	if err := <-heard; err != nil {
		t.Errorf("of a lock that was broken: %v", err)
	}
	stranger := g
	stranger.Req += 100
	if err := e.Ended(t.Context(), stranger); !errors.Is(err, lockservice.ErrNotHeld) {
		t.Errorf("of another's grant: %v", err)
	}
	if g, err = w.locks.Acquire(t.Context(), lockservice.Request{Name: "n", TTL: time.Minute}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { heard <- e.Ended(ctx, g) }()
	cancel()
	if err := <-heard; !errors.Is(err, context.Canceled) {
		t.Errorf("of one that is not waited for any more: %v", err)
	}
	go func() { heard <- e.Ended(t.Context(), g) }()
	w.server.Drain()
	if err := <-heard; !errors.Is(err, lockservice.ErrClosed) {
		t.Errorf("through a daemon that stops: %v", err)
	}
}

func TestAListThroughTheDaemon(t *testing.T) {
	w := newWorld(t, func(b *apitest.Backend, _ *api.Config) {
		b.OnList = func() error { return errors.New("lockservice: silent") }
		b.OnUnsure = func() bool { return true }
	})
	for _, name := range []string{"a", "b", "c"} {
		if _, err := w.locks.Acquire(t.Context(), lockservice.Request{Name: name, TTL: time.Minute}); err != nil {
			t.Fatal(err)
		}
	}
	l := w.locks.(lockservice.Lister)
	var names, groups []string
	err := l.List(t.Context(), "", func(p lockservice.ListPage) error {
		for _, i := range p.Locks {
			if names = append(names, i.Name); !i.Held || i.Token == 0 || i.TTL != time.Minute {
				t.Errorf("%+v", i)
			}
		}
		if p.Err != nil {
			groups = append(groups, fmt.Sprint(p.Group, " ", p.Err, " ", p.Unsure))
		}
		return nil
	})
	if err != nil || !slices.Equal(names, []string{"a", "b", "c"}) || !slices.Equal(groups, []string{"b4/8 silent true"}) {
		t.Errorf("%v, %v, %v", names, groups, err)
	}
	stop := errors.New("stop")
	if err := l.List(t.Context(), "", func(lockservice.ListPage) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("a list that is stopped: %v", err)
	}
	if err := l.List(t.Context(), "a\nb", func(lockservice.ListPage) error { return nil }); !errors.Is(err, lockservice.ErrName) {
		t.Errorf("of a prefix that no name has: %v", err)
	}
}
