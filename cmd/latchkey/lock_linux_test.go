package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"latchkey/lockservice"
	"latchkey/node/api"
	"latchkey/node/api/apitest"
)

func init() { childMain = runChild }

// runChild is what this test's program does as the command of a lock. It tells what happens to it in the file
// LATCHKEY_TEST_LOG, a line each: what, when in nanoseconds since 1970.
func runChild(mode string) {
	log, err := os.OpenFile(os.Getenv("LATCHKEY_TEST_LOG"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	tell := func(what string) { fmt.Fprintf(log, "%s %d\n", what, time.Now().UnixNano()) }
	signals := make(chan os.Signal, 8)
	switch mode {
	case "env":
		for _, name := range []string{"LATCHKEY_LOCK", "LATCHKEY_FENCE", "LATCHKEY_HOLDER", "LATCHKEY_API"} {
			fmt.Printf("%s=%s\n", name, os.Getenv(name))
		}
		fmt.Printf("group=%v\n", unix.Getpgrp() == os.Getpid())
		in, _ := io.ReadAll(os.Stdin)
		fmt.Printf("stdin=%s\n", in)
		fmt.Fprintln(os.Stderr, "and stderr")
		os.Exit(7)
	case "stubborn": // does not end by TERM
		signal.Notify(signals, syscall.SIGTERM)
		tell("started")
		tick := time.NewTicker(5 * time.Millisecond)
		for {
			select {
			case <-signals:
				tell("term")
			case <-tick.C:
				tell("alive")
			}
		}
	case "polite": // ends by TERM, with success
		signal.Notify(signals, syscall.SIGTERM)
		tell("started")
		<-signals
		tell("term")
		os.Exit(0)
	case "parent": // has a stubborn child
		c := self("stubborn", os.Getenv("LATCHKEY_TEST_LOG"))
		c.Start()
		c.Wait()
	case "orphaner": // leaves a child behind that lives until its standard input closes
		c := self("lingerer", os.Getenv("LATCHKEY_TEST_LOG"))
		c.Stdin = os.Stdin
		c.Start()
	case "lingerer":
		tell("started")
		io.Copy(io.Discard, os.Stdin)
		tell("ended")
	case "signals": // tells each signal, ends at QUIT
		signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
		tell("started")
		for s := range signals {
			tell(s.String())
			if s == syscall.SIGQUIT {
				os.Exit(9)
			}
		}
	case "sleep":
		tell("started")
		time.Sleep(time.Minute)
	case "stuck": // is told to end and does not
		ctx, _ := interruptible(context.Background())
		tell("started")
		<-ctx.Done()
		tell("asked to end")
		select {}
	case "writer", "late-writer":
		runWriter(mode, tell)
	case "terminal":
		runTerminal(tell)
	case "shell":
		runShell(tell)
	}
}

// self is this test's program as a command.
func self(mode, log string) *exec.Cmd {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	c := exec.Command(exe)
	c.Env = append(os.Environ(), "LATCHKEY_TEST_CHILD="+mode, "LATCHKEY_TEST_LOG="+log)
	return c
}

// TestOneWishToEndToldTwice: what ends a whole process group may signal us twice at once, and that is no hurry.
func TestOneWishToEndToldTwice(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, nil)
	p := &process{Cmd: self("stuck", filepath.Join(d.dir, "log")), t: t, ended: make(chan struct{})}
	p.start()
	d.told("started", false)
	asked := time.Now()
	p.Process.Signal(syscall.SIGINT)
	p.Process.Signal(syscall.SIGTERM)
	d.told("asked to end", false)
	d.until("another signal ends it", func() bool {
		p.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.ended:
			return true
		case <-time.After(20 * time.Millisecond):
			return false
		}
	})
	if took := time.Since(asked); took < insistAfter || p.code != exitSignal+int(syscall.SIGTERM) {
		t.Errorf("exit %d after %v", p.code, took)
	}
}

// under prepares latchkey lock with this test's program as its command. args come before the --.
func (d *daemon) under(mode string, args ...string) *process {
	d.t.Helper()
	c := self(mode, filepath.Join(d.dir, "log"))
	p := command(d.t, []string{
		"LATCHKEY_API=" + d.socket, "LATCHKEY_TEST_CHILD=" + mode, "LATCHKEY_TEST_LOG=" + filepath.Join(d.dir, "log"),
	}, append(append([]string{"lock"}, args...), "--", c.Path)...)
	return p
}

// told waits until the child has told of what, and returns when that was. With last, it takes the last time of many.
func (d *daemon) told(what string, last bool) (at time.Time) {
	d.t.Helper()
	d.until("the child tells "+what, func() bool {
		at = d.said(what, last)
		return !at.IsZero()
	})
	return at
}

// said is told without waiting: zero for what the child has not told.
func (d *daemon) said(what string, last bool) (at time.Time) {
	d.t.Helper()
	b, err := os.ReadFile(filepath.Join(d.dir, "log"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		i := strings.LastIndexByte(line, ' ')
		if ns, err := strconv.ParseInt(strings.TrimSpace(line[i+1:]), 10, 64); err == nil && i > 0 && line[:i] == what && strings.HasSuffix(line, "\n") {
			if at = time.Unix(0, ns); !last {
				break
			}
		}
	}
	return at
}

// answered returns when the backend last answered op without error.
func (d *daemon) answered(op string) (at time.Time) {
	for _, c := range d.Calls() {
		if c.Op == op && c.Err == nil {
			at = c.At
		}
	}
	return at
}

func TestCommandRunsUnderTheLock(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, nil)
	p := d.under("env", "n")
	p.Stdin = strings.NewReader("some input")
	p.start()
	if p.wait() != 7 {
		t.Errorf("exit %d; the child ended with 7", p.code)
	}
	want := "LATCHKEY_LOCK=n\nLATCHKEY_FENCE=1152921504606846977\nLATCHKEY_HOLDER=session@1\nLATCHKEY_API=" + d.socket + "\ngroup=true\nstdin=some input\n"
	if got := p.out.String(); got != want {
		t.Errorf("the child saw\n%swant\n%s", got, want)
	}
	if got := p.err.String(); got != "and stderr\n" {
		t.Errorf("stderr %q", got)
	}
	if token, _ := d.State("n"); token != 0 {
		t.Error("the lock is still held")
	}
}

func TestLockEndsAsItsCommandDid(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, nil)
	script := filepath.Join(d.dir, "noexec")
	if err := os.WriteFile(script, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
	}{
		{[]string{"n", "--", "true"}, 0},
		{[]string{"n", "--", "sh", "-c", "exit 3"}, 3},
		{[]string{"n", "--", "sh", "-c", "exit 255"}, 255},
		{[]string{"n", "--", "sh", "-c", "kill -KILL $$"}, 137},
		{[]string{"n", "--", "sh", "-c", "kill -INT $$"}, 130},
		{[]string{"n", "--", "no-such-command-anywhere"}, 127},
		{[]string{"n", "--", filepath.Join(d.dir, "nothing")}, 127},
		{[]string{"n", "--", d.dir}, 126},
		{[]string{"n", "--", script}, 126},
		{[]string{"--", "info", "--", "sh", "-c", "exit 4"}, 4},
		{[]string{"--ttl", "2s", "n", "--", "sh", "-c", `test "$1" = -- && test "$2" = --ttl`, "sh", "--", "--ttl"}, 0},
	} {
		if p := d.run(append([]string{"lock"}, c.args...)...); p.code != c.code {
			t.Errorf("lock %q: exit %d, want %d; %s", c.args, p.code, c.code, p.err.String())
		}
		for _, name := range []string{"n", "info"} {
			if token, _ := d.State(name); token != 0 {
				t.Fatalf("lock %q left %s held", c.args, name)
			}
		}
	}
}

func TestNotAcquiredInTimeIsExit75(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, nil)
	d.hold("n")
	for _, c := range []struct {
		args string
		code int
	}{
		// A wait so short that the lock's group may not answer within it is an outage, not a lock that is taken.
		{"n --try", 75}, {"n --wait 0", 75}, {"n --wait 2s", 75}, {"n --try -E 0", 0}, {"n --wait 2s -E 9", 9},
	} {
		p := d.run(append([]string{"lock"}, append(strings.Fields(c.args), "--", "true")...)...)
		if says := p.oneLine(); p.code != c.code || !strings.Contains(says, "@12D3KooWfake holds it, token ") {
			t.Errorf("lock %s: exit %d, want %d; %q", c.args, p.code, c.code, says)
		}
	}
	d.until("nobody waits", func() bool { _, n := d.State("n"); return n == 0 })
}

// Who waits for a lock that nobody holds, and that is granted to nobody for a while, is told so: while they wait, and when they give up.
func TestWaitersHearThatALockIsGrantedToNobody(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, func(b *apitest.Backend) { b.Delay = time.Now().Add(time.Hour) })
	p := d.run("lock", "n", "--wait", (groupTimeoutDefault + 2*time.Second).String(), "--", "true")
	lines := strings.Split(strings.TrimSpace(p.err.String()), "\n")
	const nobody = "nobody holds it, and it is granted to nobody for 59m"
	if p.code != exitNotAcquired || len(lines) != 2 || !strings.Contains(lines[0], nobody) || !strings.HasSuffix(lines[0], "(waiting on)") ||
		!strings.Contains(lines[1], "not acquired within the wait limit") || !strings.Contains(lines[1], nobody) {
		t.Errorf("exit %d, %s", p.code, p.err.String())
	}
}

// TestLeaseThatMayBeLostStopsTheCommand stops answering renewals under a command that ignores TERM. Its own clock readings
// tell when it got TERM and when it was killed; the backend's tell when the lease ends. The moments are parts of the TTL, and a busy
// machine is late by the same time whatever the TTL is: one that is too late for a short TTL is held to a longer one.
func TestLeaseThatMayBeLostStopsTheCommand(t *testing.T) {
	for ttl := 2 * time.Second; ; ttl *= 2 {
		err := loseLease(t, ttl)
		if err == nil {
			return
		}
		if ttl > 10*time.Second {
			t.Fatal(err)
		}
		t.Log(err)
	}
}

// loseLease returns what came at another moment than it should.
func loseLease(t *testing.T, ttl time.Duration) error {
	var deaf atomic.Bool
	d := newDaemon(t, func(b *apitest.Backend) {
		b.OnRenew = func(ctx context.Context, _ lockservice.Grant) error {
			if deaf.Load() {
				<-ctx.Done()
				return context.Cause(ctx)
			}
			return nil
		}
	})
	p := d.under("stubborn", "n", "--ttl", ttl.String()).start()
	d.until("it was renewed once", func() bool { return !d.answered("renew").IsZero() })
	deaf.Store(true)
	if p.wait() != exitLost {
		t.Errorf("exit %d, want 76", p.code)
	}
	confirmed := d.answered("renew") // no earlier than the sending, so the lease ends no later than a TTL from here
	if says := p.oneLine(); !strings.Contains(says, `lock "n" may be lost`) {
		t.Errorf("it says %q", says)
	}
	if d.said("term", false).IsZero() {
		return errors.New("the child was killed before it could tell of TERM")
	}
	term, last := d.told("term", false).Sub(confirmed), d.told("alive", true).Sub(confirmed)
	t.Logf("TTL %v: TERM %v and last sign of life %v after the last renewal", ttl, term, last)
	// On the holder's clock D is 0.98 TTL after the sending: TERM at 0.647 TTL, KILL at 0.88.
	if term < ttl*60/100 || term > ttl*75/100 {
		return fmt.Errorf("TERM came %v after the last renewal, want about %v", term, ttl*647/1000)
	}
	if last < ttl*80/100 || last > ttl*98/100 {
		return fmt.Errorf("the child was last alive %v after the last renewal, want about %v, and less than %v", last, ttl*88/100, ttl*98/100)
	}
	return nil
}

// A lock whose lease may be lost because nobody answers ends with its command: it gives the lock back if it can, for a second, and waits
// for no answer beyond that. It used to be six.
func TestLossEndsWithTheCommandWhenNobodyAnswers(t *testing.T) {
	t.Parallel()
	silent := func(ctx context.Context, _ lockservice.Grant) error { <-ctx.Done(); return context.Cause(ctx) }
	d := newDaemon(t, func(b *apitest.Backend) { b.OnRenew, b.OnRelease = silent, silent })
	p := d.under("polite", "n", "--ttl", "2s").start()
	if p.wait() != exitLost {
		t.Errorf("exit %d, want 76; %s", p.code, p.err.String())
	}
	if late := time.Since(d.told("term", false)); late > 4*time.Second {
		t.Errorf("it ended %v after its command was asked to", late)
	}
}

func TestForcedReleaseStopsTheCommandAtOnce(t *testing.T) {
	t.Parallel()
	const ttl = time.Minute // whose third passes before it asks
	d := newDaemon(t, nil)
	p := d.under("polite", "n", "--ttl", ttl.String()).start()
	d.told("started", false)
	if out := d.run("lock", "release", "--force", "n"); out.code != exitOK {
		t.Fatalf("exit %d, %s", out.code, out.err.String())
	}
	forced := time.Now()
	if p.wait() != exitLost {
		t.Errorf("exit %d, want 76", p.code)
	}
	if says := p.oneLine(); !strings.Contains(says, `lock "n" was taken away by release --force, so its work is stopped: token 1152921504606846977, by operator`) {
		t.Errorf("it says %q", says)
	}
	if late := d.told("term", false).Sub(forced); late > ttl/6 {
		t.Errorf("TERM came %v after the lock was taken away", late)
	}
}

func TestLossThatIsToldStopsTheCommandAtOnce(t *testing.T) {
	const ttl = 6 * time.Second // which would have it told after 4 s
	d := newDaemon(t, func(b *apitest.Backend) {
		b.OnRenew = func(context.Context, lockservice.Grant) error { return lockservice.ErrNotHeld }
	})
	p := d.under("polite", "n", "--ttl", ttl.String()).start()
	if p.wait() != exitLost {
		t.Errorf("exit %d, want 76, though the child succeeded", p.code)
	}
	if says := p.oneLine(); !strings.Contains(says, `lock "n" is lost, so its work is stopped: its group has ended the hold with token 1152921504606846977, last confirmed`) {
		t.Errorf("it says %q", says)
	}
	var told time.Time
	for _, c := range d.Calls() {
		if c.Op == "renew" {
			told = c.At
			break
		}
	}
	if late := d.told("term", false).Sub(told); late > ttl/4 {
		t.Errorf("TERM came %v after the loss was known", late)
	}
}

func TestGrandchildrenAreKilledToo(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, func(b *apitest.Backend) {
		b.OnRenew = func(context.Context, lockservice.Grant) error { return errors.New("no") }
	})
	p := d.under("parent", "n", "--ttl", "5s").start()
	if p.wait() != exitLost {
		t.Errorf("exit %d, want 76", p.code)
	}
	d.told("term", false)
	last := d.told("alive", true)
	if late := last.Sub(d.answered("acquire").Add(5 * time.Second)); late > 0 {
		t.Errorf("the grandchild was alive %v after the lock's end", late)
	}
	time.Sleep(50 * time.Millisecond) // ten of its ticks
	if now := d.told("alive", true); now != last {
		t.Error("the grandchild lives on")
	}
}

func TestLockIsHeldUntilTheWholeGroupHasEnded(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, nil)
	p := d.under("orphaner", "n", "--ttl", "1s")
	in, err := p.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.start()
	d.told("started", false)
	d.until("the orphan's lock is renewed", func() bool { return !d.answered("renew").IsZero() })
	if token, _ := d.State("n"); token == 0 {
		t.Fatal("released while a process of the group lives")
	}
	in.Close()
	if p.wait() != 0 {
		t.Errorf("exit %d", p.code)
	}
	if ended, released := d.told("ended", false), d.answered("release"); released.Before(ended) {
		t.Errorf("released %v before the last process ended", ended.Sub(released))
	}
}

func TestSignalsArePassedOn(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, nil)
	p := d.under("signals", "n").start()
	d.told("started", false)
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT} {
		if err := p.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
		d.told(s.String(), false)
	}
	if p.wait() != 9 {
		t.Errorf("exit %d, the child ended with 9", p.code)
	}
}

// TestSignalsThatAreIgnoredAreNotPassedOn: who starts us by nohup wants the command to outlive the terminal too.
func TestSignalsThatAreIgnoredAreNotPassedOn(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, nil)
	p := d.under("signals", "n")
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	p.Path, p.Args = sh, append([]string{"sh", "-c", `trap "" HUP; exec "$@"`, "sh"}, p.Args...)
	p.start()
	d.told("started", false)
	for _, s := range []syscall.Signal{syscall.SIGHUP, syscall.SIGQUIT} {
		if err := p.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	d.told(syscall.SIGQUIT.String(), false)
	if p.wait() != 9 {
		t.Errorf("exit %d, the child ended with 9", p.code)
	}
	if !d.said(syscall.SIGHUP.String(), false).IsZero() {
		t.Error("a command got a HUP that its lock was to ignore")
	}
}

func TestInterruptedCommandIsExit128PlusN(t *testing.T) {
	t.Parallel()
	for sig, code := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143} {
		d := newDaemon(t, nil)
		p := d.under("sleep", "n").start()
		d.told("started", false)
		p.Process.Signal(sig)
		if p.wait() != code {
			t.Errorf("%v: exit %d, want %d", sig, p.code, code)
		}
		if token, _ := d.State("n"); token != 0 {
			t.Errorf("%v: the lock is still held", sig)
		}
	}
}

func TestInterruptedWaiterLeavesTheQueueAtOnce(t *testing.T) {
	t.Parallel()
	for sig, code := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143} {
		d := newDaemon(t, nil)
		d.hold("n")
		p := d.under("env", "n").start()
		d.until("it waits", func() bool { _, n := d.State("n"); return n == 1 })
		p.Process.Signal(sig)
		if p.wait() != code || p.out.Len() > 0 {
			t.Errorf("%v: exit %d, want %d; %q", sig, p.code, code, p.out.String())
		}
		d.until("it has left the queue", func() bool { _, n := d.State("n"); return n == 0 })
	}
}

func TestKilledClientTakesItsChildAlongAndReleasesNothing(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, nil)
	p := d.under("stubborn", "n", "--ttl", "30s").start()
	d.told("alive", false)
	p.Process.Kill()
	p.wait()
	d.until("the child is silent", func() bool { return time.Since(d.told("alive", true)) > 100*time.Millisecond })
	if token, _ := d.State("n"); token == 0 || !d.answered("release").IsZero() {
		t.Error("the lock was released early")
	}
}

func TestDaemonGoneMidwayStopsTheCommand(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, nil)
	p := d.under("stubborn", "n", "--ttl", "5s").start()
	d.told("started", false)
	d.server.Close()
	if p.wait() != exitLost {
		t.Errorf("exit %d, want 76", p.code)
	}
	d.told("term", false)
	if says := p.oneLine(); !strings.Contains(says, `lock "n" may be lost`) || !strings.Contains(says, "its daemon is gone") {
		t.Errorf("it says %q", says)
	}
}

// restarted is a peer that was started a moment ago.
type restarted struct {
	apitest.Node
	at time.Time
}

func (n restarted) Status(ctx context.Context) (api.Status, error) {
	s, err := n.Node.Status(ctx)
	s.Started = n.at
	return s, err
}

func TestARestartOfTheDaemonStopsTheCommandAndIsNamed(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, nil)
	p := d.under("polite", "n", "--ttl", "6s").start()
	d.told("started", false)
	d.server.Close()
	l, err := api.Listen(d.socket)
	if err != nil {
		t.Fatal(err)
	}
	again, err := api.NewServer(api.Config{Node: restarted{at: time.Now()}, Locks: d.Backend, Shutdown: func() {}})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- again.Serve(l) }()
	t.Cleanup(func() { again.Close(); <-done })
	if p.wait() != exitLost {
		t.Errorf("exit %d, want 76", p.code)
	}
	if says := p.oneLine(); !strings.Contains(says, `the daemon was restarted, so lock "n" may be lost and its work is stopped`) {
		t.Errorf("it says %q", says)
	}
}

func TestReleaseAfterTheDaemonsEndTellsWhatIsLeftOfTheLease(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, nil)
	p := d.under("signals", "n", "--ttl", "1m").start()
	d.told("started", false)
	d.server.Close()
	p.Process.Signal(syscall.SIGQUIT)
	if p.wait() != 9 {
		t.Errorf("exit %d, the child ended with 9", p.code)
	}
	// The holder counts a little less than the TTL, from before it asked.
	if says := p.oneLine(); !strings.Contains(says, "its daemon is gone") || !strings.Contains(says, "lapses in about 5") {
		t.Errorf("it says %q", says)
	}
}

// tokenLine reads the line that lock prints when it has no command.
func tokenLine(t *testing.T, r io.Reader) {
	t.Helper()
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(line), &got); err != nil {
		t.Fatal(err)
	}
	if len(got) != 4 || got["lock"] != "n" || got["token"] != "1152921504606846977" || got["holder"] != "session@1" || got["ttl_ms"] != 15000.0 {
		t.Errorf("%s", line)
	}
}

// holding starts lock without a command and returns once it has printed its line.
func (d *daemon) holding(stdin io.Reader) *process {
	d.t.Helper()
	p := command(d.t, []string{"LATCHKEY_API=" + d.socket}, "lock", "n")
	p.Stdout, p.Stdin = nil, stdin
	out, err := p.StdoutPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	p.start()
	tokenLine(d.t.(*testing.T), out)
	return p
}

func TestWithoutACommandTheLockIsHeldUntilStdinCloses(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, nil)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := d.holding(r)
	r.Close()
	fmt.Fprintln(w, "what is written there means nothing")
	if token, _ := d.State("n"); token == 0 {
		t.Fatal("not held")
	}
	w.Close()
	if p.wait() != 0 {
		t.Errorf("exit %d", p.code)
	}
	if token, _ := d.State("n"); token != 0 {
		t.Error("still held")
	}
}

func TestWithoutACommandAndInputTheLockIsHeldUntilASignal(t *testing.T) {
	t.Parallel()
	for sig, code := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143} {
		d := newDaemon(t, nil)
		p := d.holding(nil) // /dev/null
		select {
		case <-p.ended:
			t.Fatal("/dev/null ended it")
		case <-time.After(100 * time.Millisecond): // it would have read its end long since
		}
		p.Process.Signal(sig)
		if p.wait() != code {
			t.Errorf("%v: exit %d, want %d", sig, p.code, code)
		}
		if token, _ := d.State("n"); token != 0 {
			t.Errorf("%v: still held", sig)
		}
	}
}

func TestWithoutACommandALossIsExit76(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, func(b *apitest.Backend) {
		b.OnRenew = func(context.Context, lockservice.Grant) error { return lockservice.ErrNotHeld }
	})
	p := command(t, []string{"LATCHKEY_API=" + d.socket}, "lock", "n", "--ttl", "1s").start()
	if p.wait() != exitLost {
		t.Errorf("exit %d, want 76; %s", p.code, p.err.String())
	}
}

func TestReleaseThatFailsIsToldAndChangesNoExitCode(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, func(b *apitest.Backend) {
		b.OnRelease = func(context.Context, lockservice.Grant) error { return lockservice.ErrNoQuorum }
	})
	p := d.run("lock", "n", "--ttl", "1s", "--", "sh", "-c", "exit 5")
	if says := p.oneLine(); p.code != 5 || !strings.Contains(says, "lapses within 1s") {
		t.Errorf("exit %d, %q", p.code, says)
	}
}

func TestTwoShellsOneAfterTheOther(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, nil)
	log := filepath.Join(d.dir, "order")
	script := `echo in >> "$0"; sleep 0.2; echo out >> "$0"`
	var ps []*process
	for range 3 {
		ps = append(ps, command(t, []string{"LATCHKEY_API=" + d.socket}, "lock", "n", "--", "sh", "-c", script, log).start())
	}
	for _, p := range ps {
		if p.wait() != 0 {
			t.Errorf("exit %d, %s", p.code, p.err.String())
		}
	}
	if b, _ := os.ReadFile(log); !bytes.Equal(b, bytes.Repeat([]byte("in\nout\n"), 3)) {
		t.Errorf("%q", b)
	}
}
