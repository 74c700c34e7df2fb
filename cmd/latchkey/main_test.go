package main

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"latchkey/lockservice"
	"latchkey/node/api"
	"latchkey/node/api/apitest"
)

// childMain is what this test's program does when it is run as the command of a lock. Systems on which that is tested set it.
var childMain func(mode string)

// killedMain is what it does in place of its tests when killedVariable says when it is to be killed. Systems on which that is tested set it.
var killedMain func(at string)

const killedVariable = "KILLED_AT" // not one of latchkey's, which it would read

// binary is the program under test, built once.
var binary string

func TestMain(m *testing.M) {
	if mode := os.Getenv("LATCHKEY_TEST_CHILD"); mode != "" {
		childMain(mode)
		return
	}
	if at := os.Getenv(killedVariable); at != "" {
		killedMain(at)
		return
	}
	heedSignals()
	dir, err := os.MkdirTemp("", "latchkey-cli")
	if err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "latchkey")
	if out, err := exec.Command("go", "build", "-ldflags=-s -w", "-o", binary, ".").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		os.Exit(1)
	}
	flag.Set("test.parallel", "12") // they wait for daemons and leases, more than for a processor
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// heedSignals has the programs that the tests start heed the signals that end programs, whether or not this one was started by a nohup or
// in the background of a shell: what is ignored is inherited, and latchkey lets it be.
func heedSignals() {
	for _, s := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT} {
		if signal.Ignored(s) {
			signal.Notify(make(chan os.Signal, 1), s) // still without effect here, while programs start with the default
		}
	}
}

// hold takes a lock for as long as the test runs.
func (d *daemon) hold(name string) lockservice.Grant {
	d.t.Helper()
	g, err := d.Acquire(context.Background(), lockservice.Request{Name: name, TTL: 15 * time.Second})
	if err != nil {
		d.t.Fatal(err)
	}
	return g
}

// waitMax bounds every wait of these tests.
const waitMax = time.Minute

// daemon is an API server in this process, over locks that the test controls.
type daemon struct {
	*apitest.Backend
	t      testing.TB
	dir    string // short, so that sockets fit
	socket string
	server *api.Server
	stops  chan struct{} // one for each shutdown asked for
}

func newDaemon(t testing.TB, hook func(*apitest.Backend)) *daemon {
	t.Helper()
	d := &daemon{Backend: apitest.NewBackend(), t: t, dir: shortDir(t), stops: make(chan struct{}, 1)}
	d.socket = filepath.Join(d.dir, "api.sock")
	if hook != nil {
		hook(d.Backend)
	}
	l, err := api.Listen(d.socket)
	if err != nil {
		t.Fatal(err)
	}
	d.server, err = api.NewServer(api.Config{Node: apitest.Node{ShutOut: d.Backend.ShutOut}, Locks: d.Backend, Shutdown: func() { d.stops <- struct{}{} }})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- d.server.Serve(l) }()
	t.Cleanup(func() {
		d.server.Close()
		<-done
	})
	return d
}

func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (d *daemon) until(what string, ok func() bool) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), waitMax)
	defer cancel()
	if !d.Until(ctx, ok) {
		d.t.Fatalf("never: %s", what)
	}
}

// buffer is what a program or a terminal shows while it runs.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// Bytes returns a copy.
func (b *buffer) Bytes() []byte { return []byte(b.String()) }

// Len returns how much it is.
func (b *buffer) Len() int { return len(b.String()) }

// process is a started latchkey.
type process struct {
	*exec.Cmd
	t        testing.TB
	out, err buffer
	ended    chan struct{}
	code     int
}

// command prepares latchkey with these arguments, with nothing of ours in its environment but env.
func command(t testing.TB, env []string, args ...string) *process {
	p := &process{Cmd: exec.Command(binary, args...), t: t, ended: make(chan struct{})}
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "LATCHKEY_") && !strings.HasPrefix(kv, "NOTIFY_SOCKET=") {
			p.Env = append(p.Env, kv)
		}
	}
	p.Env = append(p.Env, env...)
	p.Stdout, p.Stderr = &p.out, &p.err
	return p
}

func (p *process) start() *process {
	p.t.Helper()
	if err := p.Start(); err != nil {
		p.t.Fatal(err)
	}
	go func() {
		err := p.Wait()
		var exit *exec.ExitError
		switch {
		case errors.As(err, &exit):
			p.code = exit.ExitCode()
		case err != nil:
			p.code = -2
		}
		close(p.ended)
	}()
	p.t.Cleanup(func() {
		p.Process.Kill()
		<-p.ended
	})
	return p
}

// wait returns the exit code; -1 is death by a signal.
func (p *process) wait() int {
	p.t.Helper()
	select {
	case <-p.ended:
		return p.code
	case <-time.After(waitMax):
		p.t.Fatalf("%v does not end; it wrote %q and %q", p.Args, p.out.String(), p.err.String())
		return 0
	}
}

// run runs latchkey to its end beside d.
func (d *daemon) run(args ...string) *process {
	d.t.Helper()
	p := command(d.t, []string{"LATCHKEY_API=" + d.socket}, args...).start()
	p.wait()
	return p
}

// lines is what p wrote to stderr; all of its errors are one line.
func (p *process) oneLine() string {
	p.t.Helper()
	s := strings.TrimSuffix(p.err.String(), "\n")
	if strings.Contains(s, "\n") || strings.Contains(s, "goroutine ") || strings.Contains(s, "Usage:") {
		p.t.Errorf("%v: more than one line: %q", p.Args[1:], s)
	}
	return s
}

func TestWrongUsageIsExit2AndOneLine(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, nil)
	long := strings.Repeat("x", 1025)
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"frobnicate"}, `unknown verb "frobnicate"`},
		{[]string{"lokc"}, "did you mean lock"},
		{[]string{"--frob"}, "unknown flag: --frob"},
		{[]string{"lock", "n", "--frob"}, "unknown flag: --frob"},
		{[]string{"id", "extra"}, "usage: latchkey id"},
		{[]string{"key"}, "usage: latchkey key NAME"},
		{[]string{"lock", "info"}, "latchkey: lock info: got 0 arguments"},
		{[]string{"-o", "yaml", "id"}, "text, json or jsonl"},
		{[]string{"--log-level", "loud", "id"}, "debug, info, warn or error"},
		{[]string{"--timeout", "-1s", "id"}, "--timeout"},
		{[]string{"--timeout", "soon", "id"}, "--timeout"},
		{[]string{"help", "lokc"}, "unknown verb"},
		{[]string{"completion", "tcsh"}, "bash, zsh or fish"},
		{[]string{"completion"}, "usage:"},
		{[]string{"lock"}, "which lock?"},
		{[]string{"lock", "n", "cmd"}, "put -- before a command: latchkey lock n -- cmd"},
		{[]string{"lock", "n", "sh", "-c", "x"}, "put -- before a command: latchkey lock n -- sh"},
		{[]string{"lock", "release", "n"}, "lock release --force n"},
		{[]string{"lock", "release", "--force"}, "usage: latchkey lock release --force NAME"},
		{[]string{"lock", "release", "--force", "n", "--token", "0"}, "above 0"},
		{[]string{"lock", "ls", "n", "m"}, "usage: latchkey lock ls"},
		{[]string{"object"}, "which verb?"},
		{[]string{"object", "get", "x"}, "name an object as APP/NAME"},
		{[]string{"object", "get", "a/x/../y"}, `a part that is empty, "." or ".."`},
		{[]string{"object", "get", "a/x//y"}, `a part that is empty, "." or ".."`},
		{[]string{"object", "get", "a/x", "--epoch", "1"}, "--epoch is about volatile objects"},
		{[]string{"object", "get", "--volatile", "a/x", "--stale"}, "--stale is about durable objects"},
		{[]string{"object", "rm", "--volatile", "a/x", "--if-version", "1"}, "--if-version is about durable objects"},
		{[]string{"object", "rm", "a/x", "--if-version", "-1"}, "want a whole number"},
		{[]string{"object", "set", "a/x", "v", "--if-version", "1", "--if-absent"}, "exclude each other"},
		{[]string{"object", "set", "a/x", "v", "--ttl", "1ms"}, "--ttl 1ms: between 1s"},
		{[]string{"object", "set", "a/x", "v", "--ttl", "0"}, "--ttl 0s: between 1s"},
		{[]string{"object", "ls", "a/.."}, `a part that is empty, "." or ".."`},
		{[]string{"object", "ls", "a", "--limit", "0"}, "--limit 0"},
		{[]string{"object", "update", "a/x", "true"}, "usage: latchkey object update"},
		{[]string{"object", "update", "a/x", "--ttl", "1ms", "--", "true"}, "--ttl 1ms: between 1s"},
		{[]string{"object", "update", "--volatile", "a/x", "--ttl", "1m", "--", "true"}, "--ttl is about durable objects"},
		{[]string{"object", "get", "--volatile", "x"}, "name an object as APP/NAME"},
		{[]string{"object", "get", "--volatile", "a/"}, "name an object as APP/NAME"},
		{[]string{"object", "get", "--volatile", "a/x\x01"}, "control characters"},
		{[]string{"object", "get", "--volatile", "a/" + long}, "1 to 1024 are allowed"},
		{[]string{"object", "set", "--volatile", "a/x"}, "usage: latchkey object set"},
		{[]string{"object", "set", "--volatile", "a/x", strings.Repeat("x", 1<<17-1), "--file", "f"}, "exclude each other"},
		{[]string{"object", "update", "--volatile", "a/x"}, "usage: latchkey object update"},
		{[]string{"object", "update", "--volatile", "a/x", "true"}, "usage: latchkey object update"},
		{[]string{"object", "update", "--volatile", "--hold", "1h", "a/x", "--", "true"}, "--hold 1h0m0s"},
		{[]string{"object", "ls", "--volatile", "--limit", "0", "a"}, "--limit 0"},
		{[]string{"app", "info", "a\n"}, "control characters"},
		{[]string{"lock", "ls", "--limit", "-1"}, "no limit"},
		{[]string{"lock", "ls", "a\nb"}, "unusable lock name"},
		{[]string{"lock", "ls", "--here", "n"}, "leave PREFIX out"},
		{[]string{"lock", "ls", "--", "n"}, "latchkey lock -- ls"},
		{[]string{"lock", "watch", "--", "a"}, "latchkey lock -- watch"},
		{[]string{"lock", "watch"}, "usage: latchkey lock watch NAME"},
		{[]string{"lock", "n", "-n", "0"}, "1 to 1024"},
		{[]string{"lock", "n", "-n", "1025"}, "1 to 1024"},
		{[]string{"lock", "n", "-n", "2", "--shared"}, "exclude each other"},
		{[]string{"lock", "n", "--lock-delay", "61s"}, "0 to 1m0s"},
		{[]string{"elect"}, "usage: latchkey elect"},
		{[]string{"elect", "n", "v", "w"}, "usage: latchkey elect"},
		{[]string{"elect", "n", "v", "--"}, "no command after --"},
		{[]string{"elect", "n", long}, "512 are allowed"},
		{[]string{"observe"}, "usage: latchkey observe NAME"},
		{[]string{"observe", ""}, "empty"},
		{[]string{"lock", "n", "--ttl", "15"}, "write 15s"},
		{[]string{"lock", "n", "--api", os.TempDir()}, "is a directory"},
		{[]string{"-o", "json", "lock", "n", "--try", "--wait", "1s"}, `{"error":"lock: --try and --wait exclude each other","code":2}`},
		{[]string{"lock", "n", "cmd", "--", "x"}, "put -- before a command"},
		{[]string{"lock", "info"}, "usage: latchkey lock info NAME"},
		{[]string{"lock", "n", "--try", "--wait", "1s"}, "exclude each other"},
		{[]string{"lock", "n", "--wait", "-1s"}, "--wait"},
		{[]string{"lock", "n", "--ttl", "0s"}, "--ttl"},
		{[]string{"lock", "n", "--ttl", "900ms"}, "1s to 1m0s"},
		{[]string{"lock", "n", "--ttl", "61s"}, "1s to 1m0s"},
		{[]string{"lock", "n", "-E", "256"}, "0 to 255"},
		{[]string{"lock", "n", "--protocol", "sigma", "--shared"}, "use auto or group"},
		{[]string{"lock", "n", "--protocol", "sigma", "-n", "3"}, "use auto or group"},
		{[]string{"elect", "n", "value", "--protocol", "sigma"}, "use auto or group"},
		{[]string{"elect", "n", "--protocol", "sigma", "--", "true"}, "use auto or group"},
		{[]string{"lock", "n", "--wait", "abc"}, `--wait abc: want a duration, like 30s or 2m; see latchkey lock --help`},
		{[]string{"lock", "n", "-n", "x"}, `--permits x: want a whole number; see`},
		{[]string{"lock", "n", "-n", "99999999999999999999"}, `--permits 99999999999999999999: the number is too large; see`},
		{[]string{"init", "--sigma=maybe"}, "--sigma=maybe: want true or false; see latchkey init --help"},
		{[]string{"init", "--own-groups", "--regenesis", "lease"}, "init: --own-groups does not go together with --regenesis lease"},
		{[]string{"lock", "n", "--protocol", "backoff"}, "knows nothing of who holds it by sigma or group"},
		{[]string{"lock", "n", "--protocol", "x"}, "use auto, sigma or group"},
		{[]string{"lock", "", "--", "true"}, "empty"},
		{[]string{"lock", long, "--", "true"}, "1025 bytes"},
		{[]string{"lock", "a\nb", "--", "true"}, "control character"},
		{[]string{"lock", "a\xffb", "--", "true"}, "not UTF-8"},
		{[]string{"lock", "info", "a\tb"}, "control character"},
		{[]string{"key", long}, "1025 bytes"},
		{[]string{"--api", "tcp://127.0.0.1:1", "id"}, "names no unix socket"},
		{[]string{"--api", "http://127.0.0.1:1/x", "id"}, "and nothing else"},
		{[]string{"--api", "http://127.0.0.1:1", "--api-token-file", "/nowhere", "id"}, "--api-token-file /nowhere"},
		{[]string{"--api", "/" + strings.Repeat("d", 200), "id"}, "this system allows"},
		{[]string{"daemon", "--listen", "here"}, "--listen here"},
		{[]string{"lock", "n", "--"}, "no command after --"},
		{[]string{"lock", "info", "--", "true"}, "lock -- info -- CMD"},
		{[]string{"init", "--depth", "0"}, "init: --depth 0: want 1 to 12"},
		{[]string{"init", "--depth", "13"}, "init: --depth 13: want 1 to 12"},
		{[]string{"init", "--f", "4"}, "init: --f 4: want 0 to 3"},
		{[]string{"init", "--name", strings.Repeat("n", 65)}, "65 bytes"},
		{[]string{"init", "--profile", "huge"}, "want private, public"},
		{[]string{"init", "--profile", "client"}, "hosts none"},
		{[]string{"init", "--listen", "here"}, "multiaddr"},
		{[]string{"init", "--listen", "/ip4/127.0.0.1/udp/0/quic-v1"}, "TCP and WebSocket only"},
		{[]string{"daemon", "--bootstrap", "there"}, "--bootstrap there"},
		{[]string{"daemon", "--init-profile", "test"}, "goes with --init"},
		{[]string{"invite", "--expires", "1ms"}, "want 1s to"},
		{[]string{"invite", "--peer", "x"}, "want a peer id"},
		{[]string{"overlay"}, "which verb?"},
		{[]string{"overlay", "frobnicate"}, "unknown verb"},
		{[]string{"overlay", "admin", "lst"}, "did you mean ls"},
		{[]string{"overlay", "admin", "allow"}, "which peer?"},
		{[]string{"overlay", "admin", "revoke", "x"}, "want a peer id"},
		{[]string{"join", "--prepare", "token"}, "--prepare"},
		{[]string{"join"}, "an invitation, or -"},
		{[]string{"join", "a", "b"}, "an invitation, or -"},
		{[]string{"join", "frobnicate"}, "latchkey invite prints it"},
		{[]string{"config"}, "which verb?"},
		{[]string{"config", "sho"}, "did you mean show"},
		{[]string{"config", "get"}, "usage:"},
		{[]string{"config", "set", "network.mode"}, "usage:"},
	} {
		p := d.run(c.args...)
		if says := p.oneLine(); p.code != exitUsage || !strings.Contains(says, c.says) || p.out.Len() != 0 {
			t.Errorf("latchkey %.60q: exit %d, stdout %q, stderr %q; want 2 and %q", c.args, p.code, p.out.String(), says, c.says)
		}
	}
	for _, call := range d.Calls() {
		t.Errorf("wrong usage reached the daemon: %+v", call)
	}
}

func TestEveryVerbHasAnExample(t *testing.T) {
	t.Parallel()
	root := (&app{printer: printer{out: io.Discard, err: io.Discard}}).root()
	for _, c := range root.Commands() {
		for _, v := range append(c.Commands(), c) {
			if v.Example == "" && !v.Hidden {
				t.Errorf("%s has no example", v.CommandPath())
			}
		}
	}
	p := command(t, nil, "lock", "--help").start()
	if p.wait() != 0 || !strings.Contains(p.out.String(), "Examples:") || !strings.Contains(p.out.String(), "latchkey lock -- info") {
		t.Errorf("lock --help: exit %d, %s", p.code, p.out.String())
	}
}

func TestNoDaemonIsExit3AndSaysHowToStartOne(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	absent := filepath.Join(dir, "absent")
	for _, c := range []struct {
		path string
		args []string
		says string
	}{
		{dir, []string{"id"}, "latchkey daemon --path " + dir},
		{dir, []string{"peers"}, "latchkey daemon"},
		{dir, []string{"key", "n"}, "latchkey daemon"},
		{dir, []string{"lock", "n", "--", "true"}, "latchkey daemon"},
		{dir, []string{"lock", "n"}, "latchkey daemon"},
		{dir, []string{"lock", "n", "--try"}, "latchkey daemon"},
		{dir, []string{"lock", "info", "n"}, "latchkey daemon"},
		{dir, []string{"shutdown"}, "latchkey daemon"},
		{absent, []string{"id"}, "latchkey init --path " + absent + " && latchkey daemon --path " + absent},
	} {
		p := command(t, nil, append([]string{"--path", c.path}, c.args...)...).start()
		if code, says := p.wait(), p.oneLine(); code != exitUnreachable || !strings.Contains(says, c.says) || !strings.Contains(says, "api.sock") {
			t.Errorf("%v: exit %d, %q; want 3 and %q", c.args, code, says, c.says)
		}
	}
}

// A daemon that is stopped takes connections, since the system does, and says nothing. Its groups are not to blame.
func TestDaemonThatDoesNotAnswerInTime(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(shortDir(t), "api.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, args := range [][]string{{"id"}, {"lock", "info", "n"}, {"key", "n"}, {"lock", "n", "--try", "-E", "0"}} {
		p := command(t, nil, append([]string{"--api", socket, "--timeout", "500ms"}, args...)...).start()
		if code, says := p.wait(), p.oneLine(); code != exitFailure || !strings.Contains(says, "daemon at "+socket+" did not answer within 500ms") || strings.Contains(says, "group") {
			t.Errorf("%q: exit %d, %s", args, code, says)
		}
	}
	p := command(t, nil, "--api", socket, "lock", "n", "--wait", "300ms").start()
	if code, says := p.wait(), p.oneLine(); code != exitFailure || !strings.Contains(says, "daemon at "+socket+" did not answer") {
		t.Errorf("exit %d, %s", code, says)
	}
}

func TestInformationInEachFormat(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, nil)
	d.hold("held")
	revision := "" // of the checkout we test, unless it is none
	if b, err := buildinfo.ReadFile(binary); err == nil {
		for _, s := range b.Settings {
			if s.Key == "vcs.revision" {
				revision = s.Value[:12]
			}
		}
	}
	for _, c := range []struct {
		args string
		want []string
	}{
		{"id", []string{"peer     12D3KooWfake\n", "overlay  0badcafe fake\n", "listens  /ip4/127.0.0.1/tcp/1/p2p/12D3KooWfake\n"}},
		{"id -o json", []string{"{\n  \"peer\": \"12D3KooWfake\"", `"overlay_name": "fake"`, `"store": "57"`}},
		{"id -o jsonl", []string{`{"peer":"12D3KooWfake",`}},
		{"peers", []string{"12D3KooWone  connected  /ip4/127.0.0.1/tcp/2\n", "12D3KooWtwo  away"}},
		{"peers -o json", []string{`"peers": [`, `"connected": true`}},
		{"peers -o jsonl", []string{`{"peer":"12D3KooWone","node":"01","addrs":["/ip4/127.0.0.1/tcp/2"],"connected":true}` + "\n" + `{"peer":"12D3KooWtwo","node":"02","addrs":[],"connected":false}`}},
		{"key n", []string{"hash       ff\n", "closest 2  12D3KooWtwo\n", "leader     12D3KooWone, connected yes\n", "member     12D3KooWtwo, connected no\n", "bears 0 failures, of which it has 1 if who is not connected here is down\n"}},
		{"key n -o json", []string{`"generation": "1152921504606846976"`, `"view": "2"`, `"bears_failures": 0`, "\"members_connected\": [\n      \"12D3KooWone\"\n    ]"}},
		{"lock info held", []string{"state    held\n", "token    1152921504606846977\n", "lease    15s, free in"}},
		{"lock info held -o json", []string{`"token": "1152921504606846977"`, `"ttl_ms": 15000`, `"waiters": []`, `"held": true`, `"peer": "12D3KooWfake"`}},
		{"lock info free", []string{"state    free\n", "replica  12D3KooW"}},
		{"lock ls --here", []string{"no locks are held through this daemon\n"}},
		{"lock ls --here -o json", []string{`"locks": []`}},
		{"lock ls", []string{"NAME  TOKEN                FREE IN", "held  1152921504606846977  ", "0        held   s1@12D3KooWfake\n"}}, // its lease runs meanwhile
		{"lock ls hel -o json", []string{`"name": "held"`, `"waiting": 0`, `"token": "1152921504606846977"`}},
		{"lock ls -o jsonl --limit 0", []string{`{"name":"held","held":true,`}},
		{"lock ls other", []string{"nobody holds or waits for a lock that begins with \"other\"\n"}},
		{"lock ls other -o json", []string{`"locks": []`}},
		{"lock info free -o jsonl", []string{`"held":false,"holder":null,"token":"0"`}},
		{"version", []string{"latchkey ", runtime.Version()}},
		{"--version", []string{"latchkey ", runtime.Version()}},
		{"version", []string{revision}},
		{"version -o json", []string{`"revision": "` + revision, `"platform": "` + runtime.GOOS + "/" + runtime.GOARCH + `"`}},
		{"completion bash", []string{"__start_latchkey"}},
		{"completion zsh", []string{"#compdef latchkey"}},
		{"completion fish", []string{"complete -c latchkey"}},
		{"__complete lo", []string{"lock\t"}},
		{"__complete completion z", []string{"zsh"}},
		{"help key", []string{"latchkey key nightly"}},
	} {
		p := d.run(strings.Fields(c.args)...)
		if p.code != 0 {
			t.Errorf("%s: exit %d, %s", c.args, p.code, p.err.String())
		}
		for _, want := range c.want {
			if !strings.Contains(p.out.String(), want) {
				t.Errorf("%s: no %q in\n%s", c.args, want, p.out.String())
			}
		}
	}
}

func TestAListOfLocksSaysWhatItLacks(t *testing.T) {
	t.Parallel()
	var all, unsure atomic.Bool // groups answer, and have forgotten
	d := newDaemon(t, func(b *apitest.Backend) {
		b.OnList = func() error {
			if all.Load() {
				return nil
			}
			return errors.New("lockservice: too few replicas answer")
		}
		b.OnUnsure = unsure.Load
	})
	for _, name := range []string{"c", "a", "b"} {
		d.hold(name)
	}
	p := d.run("lock", "ls")
	if out := p.out.String(); p.code != exitFailure || strings.Count(out, "\n") != 4 || strings.Index(out, "\na ") > strings.Index(out, "\nc ") ||
		!strings.Contains(p.err.String(), "group b4/8 does not tell of its locks: too few replicas answer") || !strings.Contains(p.err.String(), "1 of the groups of the overlay gave no answer") {
		t.Errorf("exit %d, %s%s", p.code, out, p.err.String())
	}
	p = d.run("lock", "ls", "x")
	if out := p.out.String(); p.code != exitFailure || out != "nobody holds or waits for a lock that begins with \"x\", in the groups that answered\n" {
		t.Errorf("exit %d, %s%s", p.code, out, p.err.String())
	}
	if p = d.run("lock", "ls", "-o", "json"); p.code != exitFailure || !strings.Contains(p.out.String(), `"incomplete": true`) {
		t.Errorf("exit %d, %s", p.code, p.out.String())
	}
	all.Store(true)
	if p = d.run("lock", "ls", "-o", "json"); p.code != exitOK || !strings.Contains(p.out.String(), `"incomplete": false`) {
		t.Errorf("exit %d, %s", p.code, p.out.String())
	}
	unsure.Store(true)
	if p = d.run("lock", "ls", "-o", "json"); p.code != exitOK || !strings.Contains(p.out.String(), `"incomplete": true`) ||
		!strings.Contains(p.err.String(), "group b4/8 have lost what they knew") {
		t.Errorf("exit %d, %s%s", p.code, p.out.String(), p.err.String())
	}
	unsure.Store(false)
	p = d.run("lock", "ls", "--limit", "2")
	if out := p.out.String(); p.code != exitOK || strings.Count(out, "\n") != 3 || !strings.Contains(p.err.String(), "more than 2") {
		t.Errorf("exit %d, %s%s", p.code, out, p.err.String())
	}
	p = d.run("lock", "ls", "--limit", "3", "-o", "jsonl")
	if out := p.out.String(); p.code != exitOK || strings.Count(out, "\n") != 3 || p.err.String() != "" {
		t.Errorf("exit %d, %s%s", p.code, out, p.err.String())
	}
}

func TestAListOfLocksEndsByItsDeadline(t *testing.T) {
	t.Parallel()
	for want, root := range map[string]func(context.Context) error{
		"latchkey: lock ls: not all groups of the overlay told of their locks within 3s, and those of the others are missing (see --timeout)": func(ctx context.Context) error {
			<-ctx.Done()
			return context.Cause(ctx)
		},
		"latchkey: lock ls: the root group does not answer, and nobody else knows which groups there are; latchkey group info root tells who of it is missing": func(ctx context.Context) error {
			<-ctx.Done()
			return fmt.Errorf("%w: the root group: %w", lockservice.ErrNoQuorum, context.Cause(ctx))
		},
	} {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			d := newDaemon(t, func(b *apitest.Backend) { b.OnRoot = root })
			d.hold("n")
			p := d.run("lock", "ls", "--timeout", "3s") // the daemon itself has so long, too, on a busy machine
			if out := p.out.String(); p.code != exitFailure || strings.TrimSpace(p.err.String()) != want || strings.Contains(out, "nobody holds or waits for a lock\n") {
				t.Errorf("exit %d, %s%s", p.code, out, p.err.String())
			}
		})
	}
}

func TestShutdownWaitsUntilTheSocketIsGone(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, nil)
	p := command(t, []string{"LATCHKEY_API=" + d.socket}, "shutdown").start()
	<-d.stops
	select {
	case <-p.ended:
		t.Fatal("shutdown ended while the daemon still answered")
	case <-time.After(100 * time.Millisecond): // enough for a few of its looks
	}
	d.server.Close()
	if p.wait() != 0 {
		t.Errorf("exit %d, %s", p.code, p.err.String())
	}
}

func TestForcedReleaseEndsTheHoldItNames(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, nil)
	c, err := api.Dial(d.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	held, err := c.Locks().Lock(t.Context(), "n")
	if err != nil {
		t.Fatal(err)
	}
	token := held.Token().String()
	if says := d.run("lock", "ls", "--here").out.String(); !strings.Contains(says, "NAME  TOKEN") || !strings.Contains(says, token+"  15s  alone") {
		t.Errorf("ls: %s", says)
	}
	var info lockInfo
	if err := json.Unmarshal(d.run("lock", "info", "n", "-o", "json").out.Bytes(), &info); err != nil {
		t.Fatal(err)
	}
	if h := info.Holders; len(h) != 1 || h[0].partyInfo != *info.Holder || h[0].Token != uint64(held.Token()) || h[0].TTL != 15000 || !h[0].Confirmed {
		t.Errorf("holders of a lock that is not shared: %+v", h)
	}
	for _, step := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"lock", "release", "--force", "--token", "7", "n"}, exitNotFound, "token 7 (any more)"},
		{[]string{"lock", "release", "--force", "n"}, exitOK, `lock "n" taken from s1@12D3KooWfake, token ` + token},
		{[]string{"lock", "release", "--force", "n"}, exitNotFound, "nobody holds"},
	} {
		p := d.run(step.args...)
		if step.code == exitOK && p.err.Len() > 0 {
			t.Errorf("%v: on stderr: %s", step.args, p.err.String())
		}
		if says := p.out.String() + p.err.String(); p.code != step.code || !strings.Contains(says, step.says) {
			t.Errorf("%v: exit %d, %s", step.args, p.code, says)
		}
	}
}

func TestArgumentsOfElect(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args              []string
		dash              int
		name, value, argv string
		ok                bool
	}{
		{[]string{"n"}, -1, "n", "", "", true},
		{[]string{"n", "v"}, -1, "n", "v", "", true},
		{[]string{"n", "a", "b"}, 1, "n", "", "a b", true},
		{[]string{"n", "v", "a", "--", "b"}, 2, "n", "v", "a -- b", true},
		{[]string{"n", "v"}, 2, "", "", "", false},
		{[]string{"n", "v", "w"}, -1, "", "", "", false},
		{[]string{"n"}, 0, "", "", "", false},
		{nil, -1, "", "", "", false},
	} {
		name, value, argv, err := electArgs(c.args, c.dash)
		if (err == nil) != c.ok || name != c.name || value != c.value || strings.Join(argv, " ") != c.argv {
			t.Errorf("electArgs(%q, %d) = %q, %q, %q, %v", c.args, c.dash, name, value, argv, err)
		}
	}
}

func TestArgumentsOfLock(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args []string
		dash int
		name string
		argv string
		ok   bool
	}{
		{[]string{"n"}, -1, "n", "", true},
		{[]string{"n", "a", "b"}, 1, "n", "a b", true},
		{[]string{"n", "a", "--", "b"}, 1, "n", "a -- b", true},
		{[]string{"n"}, 1, "", "", false}, // as of a script whose command is an empty variable
		{[]string{"info", "a"}, 0, "info", "a", true},
		{[]string{"info", "--", "a"}, 0, "info", "a", true},
		{[]string{"-n"}, 0, "-n", "", true},
		{[]string{"watch", "a"}, 0, "watch", "a", true},
		{[]string{"n", "a"}, -1, "", "", false},
		{[]string{"n", "a", "b"}, 2, "", "", false},
		{nil, -1, "", "", false},
		{nil, 0, "", "", false},
	} {
		name, argv, err := lockArgs(c.args, c.dash)
		if (err == nil) != c.ok || name != c.name || strings.Join(argv, " ") != c.argv {
			t.Errorf("lockArgs(%q, %d) = %q, %q, %v", c.args, c.dash, name, argv, err)
		}
	}
}

// A group that has lost too many members answers nobody. That is neither a lock held by somebody else nor a reason to wait for
// ever when one was told not to. Whoever meets it is told the same.
func TestSilentGroupIsNoConflict(t *testing.T) {
	t.Parallel()
	quiet := func(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) }
	noQuorum := func(ctx context.Context) error {
		<-ctx.Done()
		return fmt.Errorf("%w: replicagroup: (last: NOT_HERE): %w", lockservice.ErrNoQuorum, context.Cause(ctx))
	}
	for _, c := range []struct {
		within time.Duration
		args   []string
	}{
		{time.Second, []string{"--timeout", "1s", "lock", "n", "--try", "--", "true"}},
		{time.Second, []string{"lock", "n", "--wait", "1s", "-E", "0", "--", "true"}},
		{time.Second, []string{"--timeout", "1s", "lock", "info", "n"}},
		{groupTimeoutDefault, []string{"lock", "n", "--try", "-E", "0"}},
		{groupTimeoutDefault, []string{"lock", "info", "n"}},
	} {
		for how, group := range map[string]func(context.Context) error{"out of time": quiet, "no quorum": noQuorum} {
			t.Run(strings.Join(c.args, " ")+", "+how, func(t *testing.T) {
				t.Parallel()
				d := newDaemon(t, func(b *apitest.Backend) {
					b.OnAcquire = func(ctx context.Context, _ lockservice.Request) error { return group(ctx) }
					b.OnInfo = func(ctx context.Context, _ string) error { return group(ctx) }
				})
				want := fmt.Sprintf("latchkey: lock \"n\": its group gave no answer within %v; it keeps prefix f0/8 and needs 2 of its 2 members, of which this daemon "+
					"is connected to 12D3KooWone and not to 12D3KooWtwo: start those that are down, or mend the network between them; if too many are gone for good, latchkey group revive f0/8", c.within)
				start := time.Now()
				p := d.run(c.args...)
				if says := p.oneLine(); p.code != exitFailure || says != want {
					t.Errorf("exit %d, %s", p.code, says)
				}
				if took := time.Since(start); took < c.within/2 || took > c.within+waitMax/2 {
					t.Errorf("it took %v", took)
				}
			})
		}
	}
}

func TestWaitingForASilentGroupIsTold(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, func(b *apitest.Backend) {
		b.OnAcquire = func(ctx context.Context, _ lockservice.Request) error { <-ctx.Done(); return context.Cause(ctx) }
	})
	shown := &buffer{}
	p := command(t, []string{"LATCHKEY_API=" + d.socket}, "lock", "n")
	p.Stderr = shown
	p.start()
	d.until("it says that the group gives no answer", func() bool { return strings.Contains(shown.String(), "gave no answer within 5s; it keeps prefix f0/8") })
}

// A peer that was revoked is not told to mend the network, and does not wait for what cannot come: be it silence, or a queue it was in.
func TestARevokedPeerIsToldSoAndWaitsForNothing(t *testing.T) {
	t.Parallel()
	const why = "our peer id was revoked; whoever holds the overlay's admin key can allow it again"
	for _, args := range [][]string{
		{"lock", "n", "--", "true"}, {"lock", "n", "--wait", "1s", "-E", "0"}, {"--timeout", "1s", "lock", "n", "--try"}, {"--timeout", "1s", "lock", "info", "n"},
		{"lock", "held"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			t.Parallel()
			d := newDaemon(t, func(b *apitest.Backend) {
				b.ShutOut = why
				b.OnAcquire = func(ctx context.Context, r lockservice.Request) error {
					if r.Name == "held" {
						return nil
					}
					<-ctx.Done()
					return context.Cause(ctx)
				}
				b.OnInfo = func(ctx context.Context, _ string) error { <-ctx.Done(); return context.Cause(ctx) }
			})
			if args[1] == "held" {
				d.hold("held")
			}
			p := d.run(args...)
			if says := p.oneLine(); p.code != exitFailure || says != "latchkey: the daemon is shut out of the overlay: "+why {
				t.Errorf("exit %d, %s", p.code, says)
			}
		})
	}
}

// Where no daemon could open its socket, no peer is made.
func TestAPathTooLongForASocketIsRefusedAtOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("x", 120))
	expect(t, at(t, dir, "init", "--profile", "test"), exitUsage, "the socket path "+dir, "choose a shorter one with --api")
	if _, err := os.Stat(dir); err == nil {
		t.Error("it was made")
	}
	if p := at(t, dir, "init", "--profile", "test", "--api", filepath.Join(shortDir(t), "s")); p.code != 0 {
		t.Errorf("with a socket elsewhere: %s", p.err.String())
	}
}
