package main

import (
	"bufio"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// startDaemon starts a real daemon on dir and returns once it is ready, with its READY line.
func startDaemon(t *testing.T, dir string, env []string, args ...string) (*process, string) {
	t.Helper()
	p := command(t, env, append([]string{"--path", dir, "daemon"}, args...)...)
	p.Stdout = nil
	out, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.start()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("no READY line: %v; exit %d, %s", err, p.wait(), p.err.String())
	}
	go io.Copy(io.Discard, out)
	return p, line
}

// at runs latchkey beside the daemon of dir.
func at(t *testing.T, dir string, args ...string) *process {
	t.Helper()
	p := command(t, nil, append([]string{"--path", dir}, args...)...).start()
	p.wait()
	return p
}

// expect checks a failure: its code, and that one line says so.
func expect(t *testing.T, p *process, code int, says ...string) {
	t.Helper()
	line := p.oneLine()
	for _, s := range says {
		if p.code != code || !strings.Contains(line, s) {
			t.Errorf("%v: exit %d, %q; want %d and %q", p.Args[1:], p.code, line, code, s)
		}
	}
}

// A daemon answers Prometheus where it is told to, and nowhere else.
func TestDaemonTellsMetricsWhenAsked(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	ok(t, at(t, dir, "init", "--profile", "test"))
	expect(t, at(t, dir, "daemon", "--metrics", "9464"), exitUsage, "metrics.listen", "want HOST:PORT like 127.0.0.1:9464")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	expect(t, at(t, dir, "daemon", "--metrics", taken.Addr().String()), exitFailure, "metrics.listen", "address already in use")

	d, line := startDaemon(t, dir, nil, "--metrics", ":0")
	_, addr, told := strings.Cut(strings.TrimSpace(line), " metrics=")
	if !told || !strings.HasPrefix(addr, "127.0.0.1:") {
		t.Fatalf("READY line %q", line)
	}
	r, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r.Body)
	r.Body.Close()
	for _, want := range []string{"latchkey_groups{state=\"serving\"} ", "latchkey_groups_led 1", "go_goroutines", "latchkey_twins_refused_total 0"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%v: no %s in %s", err, want, b)
		}
	}
	at(t, dir, "shutdown")
	if code := d.wait(); code != 0 {
		t.Errorf("exit %d, %s", code, d.err.String())
	}
	d, line = startDaemon(t, dir, nil)
	if strings.Contains(line, "metrics") {
		t.Errorf("READY line %q of a daemon without metrics", line)
	}
	at(t, dir, "shutdown")
	d.wait()
}

// TestLifeOfADirectory follows one directory of a founder from before init to the loss of its store and so of its overlay.
func TestLifeOfADirectory(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(shortDir(t), "peer")
	expect(t, at(t, dir, "daemon"), exitFailure, "latchkey init or latchkey join", dir)

	p := at(t, dir, "-o", "json", "init", "--profile", "test", "--name", "farm")
	var made struct{ Path, Peer, Overlay, Overlay_name string }
	if err := json.Unmarshal(p.out.Bytes(), &made); err != nil || p.code != 0 || made.Path != dir || len(made.Overlay) != 64 || made.Overlay_name != "farm" {
		t.Fatalf("init: exit %d, %s, %v, %s", p.code, p.out.String(), err, p.err.String())
	}
	identity, err := os.ReadFile(filepath.Join(dir, "identity.key"))
	if err != nil {
		t.Fatal(err)
	}
	// The root key is there for its owner only, and init says once that a copy should be kept.
	root, err := os.Stat(filepath.Join(dir, "root.key"))
	if err != nil || root.Mode().Perm() != 0o600 || root.Size() != 32 || !strings.Contains(p.out.String(), filepath.Join(dir, "root.key")) {
		t.Errorf("root.key: %v, %v; init said %s", root, err, p.out.String())
	}
	if p := at(t, filepath.Join(shortDir(t), "other"), "init", "--profile", "test"); p.code != 0 || !strings.Contains(p.out.String(), "root.key elsewhere") {
		t.Errorf("init: exit %d, %s", p.code, p.out.String())
	}
	expect(t, at(t, dir, "init"), exitFailure, "use another directory")
	if now, _ := os.ReadFile(filepath.Join(dir, "identity.key")); string(now) != string(identity) {
		t.Fatal("the second init changed the identity")
	}

	// Trouble with the socket costs the directory nothing.
	expect(t, at(t, dir, "daemon", "--api", "/"+strings.Repeat("d", 200)), exitUsage, "this system allows")

	d, ready := startDaemon(t, dir, nil)
	if !strings.HasPrefix(ready, "READY peer="+made.Peer+" api="+dir+"/api.sock listen=/ip4/127.0.0.1/tcp/") {
		t.Errorf("it says %q", ready)
	}
	expect(t, at(t, dir, "daemon"), exitFailure, "directory is in use", dir)
	if p := at(t, dir, "lock", "n", "--", "sh", "-c", "exit $LATCHKEY_FENCE"); p.code != 1 {
		t.Errorf("the first token of an overlay: exit %d, %s", p.code, p.err.String())
	}
	if p := at(t, dir, "key", "n"); p.code != 0 || !strings.Contains(p.out.String(), made.Peer) {
		t.Errorf("key: exit %d, %s %s", p.code, p.out.String(), p.err.String())
	}
	if p := at(t, dir, "shutdown"); p.code != 0 {
		t.Errorf("shutdown: exit %d, %s", p.code, p.err.String())
	}
	if d.wait() != 0 {
		t.Errorf("the daemon ended with %d, %s", d.code, d.err.String())
	}
	expect(t, at(t, dir, "id"), exitUnreachable, "latchkey daemon --path "+dir)

	// It comes back, and without its store it founds nothing.
	d, _ = startDaemon(t, dir, nil)
	if p := at(t, dir, "lock", "n", "--", "sh", "-c", "exit $LATCHKEY_FENCE"); p.code < 2 || p.code > 9 {
		t.Errorf("the token after a restart: exit %d, %s", p.code, p.err.String())
	}
	ok(t, at(t, dir, "shutdown"))
	d.wait()
	if err := os.RemoveAll(filepath.Join(dir, "store")); err != nil {
		t.Fatal(err)
	}
	expect(t, at(t, dir, "daemon"), exitFailure, "root group is lost", "latchkey init --path "+dir)
}

func TestDaemonStopsGracefullyBySignal(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		dir := shortDir(t)
		if p := at(t, dir, "init", "--profile", "test"); p.code != 0 {
			t.Fatal(p.err.String())
		}
		// A service manager's socket: it hears of the start and of the end.
		notified, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer notified.Close()
		hear := func() string {
			b := make([]byte, 64)
			notified.SetReadDeadline(time.Now().Add(waitMax))
			n, err := notified.Read(b)
			if err != nil {
				t.Fatal(err)
			}
			return string(b[:n])
		}
		d, line := startDaemon(t, dir, []string{"NOTIFY_SOCKET=" + filepath.Join(dir, "notify")}, "-o", "json")
		var ready struct {
			Ready     bool
			Peer, API string
		}
		if err := json.Unmarshal([]byte(line), &ready); err != nil || !ready.Ready || ready.Peer == "" || ready.API != filepath.Join(dir, "api.sock") {
			t.Errorf("%q, %v", line, err)
		}
		if got := hear(); got != "READY=1" {
			t.Errorf("the service manager hears %q", got)
		}
		d.Process.Signal(sig)
		if got := hear(); got != "STOPPING=1" {
			t.Errorf("the service manager hears %q", got)
		}
		if d.wait() != 0 {
			t.Errorf("%v: exit %d, %s", sig, d.code, d.err.String())
		}
		if _, err := os.Lstat(filepath.Join(dir, "api.sock")); err == nil {
			t.Error("the socket is left behind")
		}
	}
}

// TestStoppingDaemonTellsItsWaiters: a waiter of a stopping daemon is told, and not left hanging.
func TestStoppingDaemonTellsItsWaiters(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	if p := at(t, dir, "init", "--profile", "test"); p.code != 0 {
		t.Fatal(p.err.String())
	}
	d, _ := startDaemon(t, dir, nil)
	holder := command(t, nil, "--path", dir, "lock", "n", "--ttl", "10s")
	holder.Stdout = nil
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	holder.start()
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	waiter := command(t, nil, "--path", dir, "lock", "n", "--", "true").start()
	for limit := time.Now().Add(waitMax); !strings.Contains(at(t, dir, "-o", "json", "lock", "info", "n").out.String(), `"waiting": 1`); {
		if time.Now().After(limit) {
			t.Fatal("it never waits")
		}
	}
	d.Process.Signal(syscall.SIGTERM)
	if waiter.wait() != exitUnreachable {
		t.Errorf("the waiter: exit %d, %s", waiter.code, waiter.err.String())
	}
	if holder.wait() != exitLost {
		t.Errorf("the holder: exit %d, %s", holder.code, holder.err.String())
	}
	if d.wait() != 0 {
		t.Errorf("the daemon: exit %d, %s", d.code, d.err.String())
	}
}
