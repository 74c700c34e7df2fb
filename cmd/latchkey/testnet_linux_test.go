package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"latchkey/node/api"
	"latchkey/testnet"
)

// liveNet is "testnet up" of the real binary, as another process.
type liveNet struct {
	t   *testing.T
	dir string
	*process
}

// upLive starts a testnet in dir and returns once it says that it is up.
func upLive(t *testing.T, dir string, args ...string) *liveNet {
	t.Helper()
	p := command(t, nil, append([]string{"testnet", "up", "--dir", dir}, args...)...)
	p.Stdout = nil
	out, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.start()
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		io.WriteString(&p.out, lines.Text()+"\n")
		if strings.Contains(lines.Text(), "Ctrl-C") {
			go io.Copy(io.Discard, out)
			return &liveNet{t, dir, p}
		}
	}
	t.Fatalf("testnet up: exit %d, %s", p.wait(), p.err.String())
	return nil
}

// verb runs a verb of testnet, and expects exit code want.
func (n *liveNet) verb(want int, line string, commandLine ...string) *process {
	n.t.Helper()
	args := append(append([]string{"testnet"}, strings.Fields(line)...), "--dir", n.dir)
	p := command(n.t, nil, append(args, commandLine...)...)
	if code := p.start().wait(); code != want {
		n.t.Errorf("%s %v: exit %d, want %d: %s%s", line, commandLine, code, want, p.out.String(), p.err.String())
	}
	return p
}

// lock takes and releases a lock through a peer.
func (n *liveNet) lock(want, peer int, name string, flags ...string) *process {
	n.t.Helper()
	args := append([]string{"--", binary, "lock", name, "--ttl", "2s"}, flags...)
	return n.verb(want, "run "+strconv.Itoa(peer), append(args, "--", "true")...)
}

func (n *liveNet) status() testnet.Status {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), waitMax)
	defer cancel()
	st, err := testnet.Dial(n.dir).Status(ctx)
	if err != nil {
		n.t.Fatal(err)
	}
	return st
}

// mesh checks that each of these peers says now that it is connected to all others of them.
func (n *liveNet) mesh(numbers ...int) {
	n.t.Helper()
	peers := n.status().Peers
	for _, i := range numbers {
		daemon, err := api.Dial(peers[i].API)
		if err != nil {
			n.t.Fatal(err)
		}
		defer daemon.Close()
		ctx, cancel := context.WithTimeout(context.Background(), waitMax)
		defer cancel()
		known, err := daemon.Peers(ctx)
		if err != nil {
			n.t.Fatal(err)
		}
		for _, j := range numbers {
			if j != i && !slices.ContainsFunc(known, func(p api.Peer) bool { return p.Peer == peers[j].Peer && p.Connected }) {
				n.t.Errorf("peer %d is not connected to %d", i, j)
			}
		}
	}
}

// processState is the letter that the kernel has for how a process is, and its parent; 0 when there is none.
func processState(pid int) (state byte, parent int) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0
	}
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	parent, _ = strconv.Atoi(string(fields[1]))
	return fields[0][0], parent
}

// remains returns the processes and sockets that have to do with a directory, and the files in it.
func remains(t *testing.T, dir string) (left []string) {
	t.Helper()
	commands, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range commands {
		if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte(dir)) {
			left = append(left, path)
		}
	}
	sockets, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(sockets)) {
		if strings.Contains(line, dir) {
			left = append(left, line)
		}
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	return append(left, files...)
}

// TestATestnetOfProcesses goes through the life of one, from the command line alone.
func TestATestnetOfProcesses(t *testing.T) {
	t.Parallel()
	n := upLive(t, socketDir(t), "--mode", "process", "-n", "5")
	if says := n.out.String(); !strings.Contains(says, "of CPU time; each its own process, f = 1") {
		t.Errorf("up says %s", says)
	}
	first := n.status()
	if first.Mode != testnet.ModeProcess || len(first.Peers) != 5 {
		t.Fatalf("%+v", first)
	}
	for _, p := range first.Peers {
		if _, parent := processState(p.PID); !p.Up || parent != n.Process.Pid {
			t.Errorf("%+v: child of %d, not of %d", p, parent, n.Process.Pid)
		}
		if group, err := syscall.Getpgid(p.PID); err != nil || group != p.PID { // or Ctrl-C at a terminal would reach it
			t.Errorf("peer %d is in process group %d: %v", p.N, group, err)
		}
	}
	n.mesh(0, 1, 2, 3, 4)
	n.verb(exitOK, "run", "--", binary, "id")

	// The group's members, two of which are its majority.
	n.lock(exitOK, 0, "shared")
	var key struct{ Group struct{ Members []string } }
	if err := json.Unmarshal(n.verb(exitOK, "run 0", "--", binary, "-o", "json", "key", "shared").out.Bytes(), &key); err != nil || len(key.Group.Members) != 3 {
		t.Fatalf("key: %v, %+v", err, key)
	}
	var members, minority []int
	for _, p := range first.Peers {
		if slices.Contains(key.Group.Members, p.Peer) {
			members = append(members, p.N)
		}
	}
	majority := members[1:]
	for _, p := range first.Peers {
		if !slices.Contains(majority, p.N) {
			minority = append(minority, p.N)
		}
	}
	cut := minority[0]

	says := n.verb(exitOK, "partition "+sidesText([][]int{minority, majority})).out.String()
	if !strings.HasPrefix(says, "partition "+sidesText([][]int{minority, majority})) {
		t.Errorf("partition says %q", says)
	}
	n.lock(exitOK, majority[0], "shared")
	// A leader that is cut off may have taken the request, which makes its outcome unknown.
	if p := n.lock(exitFailure, cut, "shared", "--timeout", "2s", "--try"); !strings.Contains(p.err.String(), "gave no answer") && !strings.Contains(p.err.String(), "outcome unknown") {
		t.Errorf("on the minority's side: %s", p.err.String())
	}
	if says := n.verb(exitOK, "ls").out.String(); !strings.Contains(says, "SIDE") || !strings.Contains(says, "partition "+sidesText([][]int{minority, majority})) {
		t.Errorf("ls says %s", says)
	}
	n.verb(exitOK, "heal")
	n.lock(exitOK, cut, "shared")

	// A paused member is really frozen, and what it missed it is told when it goes on.
	frozen := members[2]
	n.verb(exitOK, fmt.Sprint("pause ", frozen))
	pid := n.status().Peers[frozen].PID
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil || len(threads) < 2 {
		t.Fatalf("threads of the paused peer: %q, %v", threads, err)
	}
	for _, thread := range threads {
		tid, _ := strconv.Atoi(filepath.Base(thread))
		if state, _ := processState(tid); state != 'T' {
			t.Errorf("thread %d of the paused peer is in state %c", tid, state)
		}
	}
	if says := n.verb(exitOK, "ls").out.String(); !strings.Contains(says, "paused") {
		t.Errorf("ls says %s", says)
	}
	for _, line := range []string{"pause", "leave", "restart"} {
		n.verb(exitFailure, fmt.Sprintf("%s %d", line, frozen))
	}
	if p := n.verb(exitUnreachable, fmt.Sprint("run ", frozen), "--", "true"); !strings.Contains(p.err.String(), "is paused") {
		t.Errorf("run at a paused peer: %s", p.err.String())
	}
	n.lock(exitOK, members[0], "shared")
	n.verb(exitOK, fmt.Sprint("partition ", frozen))
	n.verb(exitOK, fmt.Sprint("resume ", frozen))
	if state, _ := processState(n.status().Peers[frozen].PID); state == 'T' {
		t.Error("a resumed peer's process is stopped")
	}
	n.lock(exitFailure, frozen, "shared", "--timeout", "300ms", "--try")
	n.verb(exitOK, "heal")
	n.lock(exitOK, frozen, "shared")
	n.verb(exitFailure, fmt.Sprint("resume ", frozen))

	// A killed peer comes back as itself, in another process.
	victim := minority[len(minority)-1]
	n.verb(exitOK, fmt.Sprint("kill ", victim))
	if p := n.status().Peers[victim]; p.Up || p.PID != 0 || p.Fault != "" {
		t.Errorf("a killed peer: %+v", p)
	}
	n.verb(exitFailure, fmt.Sprint("kill ", victim))
	for _, line := range []string{"pause", "resume", "leave"} {
		if p := n.verb(exitUnreachable, fmt.Sprintf("%s %d", line, victim)); !strings.Contains(p.err.String(), "latchkey testnet restart") {
			t.Errorf("%s of a peer that is down: %s", line, p.err.String())
		}
	}
	n.verb(exitUsage, fmt.Sprintf("kill %d,9", frozen)) // nobody, since there is no 9
	n.verb(exitOK, fmt.Sprintf("restart %d", victim))
	if was, is := first.Peers[victim], n.status().Peers[victim]; is.PID == was.PID || is.Peer != was.Peer || is.Addr != was.Addr || !is.Up {
		t.Errorf("it was %+v and is %+v", was, is)
	}
	n.mesh(0, 1, 2, 3, 4)
	n.lock(exitOK, victim, "shared")

	// A newcomer, which is on no side that was named.
	n.verb(exitOK, "partition 0-3")
	if out := n.verb(exitOK, "join -o jsonl").out.String(); out != `{"n":5,"done":"joined"}`+"\n" {
		t.Errorf("join says %s", out)
	}
	for _, p := range n.status().Peers {
		if p.Side == 0 != (p.N <= 3) {
			t.Errorf("peer %d is on side %d", p.N, p.Side)
		}
	}
	n.mesh(4, 5)
	n.lock(exitFailure, 5, "shared", "--timeout", "300ms", "--try")
	n.verb(exitOK, "heal")
	n.lock(exitOK, 5, "shared")
	n.verb(exitOK, "leave 5")
	if p := n.status().Peers[5]; p.Up || !p.Left || p.Fault != "" {
		t.Errorf("who left: %+v", p)
	}
	if says := n.verb(exitOK, "logs 5").out.String(); !strings.HasPrefix(says, "READY peer="+n.status().Peers[5].Peer) {
		t.Errorf("logs says %q", says)
	}
	if p := n.verb(exitUnreachable, "run 5", "--", "true"); !strings.Contains(p.err.String(), "restart 5") {
		t.Errorf("run at who left: %s", p.err.String())
	}

	n.verb(exitOK, "latency 30ms")
	start := time.Now()
	n.lock(exitOK, minority[0], "another")
	if took := time.Since(start); took < 60*time.Millisecond {
		t.Errorf("with 30 ms each way, a lock of others took %v", took)
	}

	syscall.Kill(n.status().Peers[victim].PID, syscall.SIGKILL) // by somebody else
	eventually(t, "the end of a daemon is seen", func() bool { return !n.status().Peers[victim].Up })
	if says := n.verb(exitOK, "ls").out.String(); !strings.Contains(says, "ENDED BY ITSELF") || !strings.Contains(says, "signal: killed") {
		t.Errorf("ls says %s", says)
	}

	n.verb(exitOK, fmt.Sprint("pause ", frozen)) // must not hold up the end
	n.Process.Signal(syscall.SIGINT)
	if code := n.wait(); code != exitOK || n.err.Len() > 0 {
		t.Errorf("Ctrl-C: exit %d, %s", code, n.err.String())
	}
	if left := remains(t, n.dir); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestATestnetThatIsKilledTakesItsPeersAlongAndTheNextOneCleansUp(t *testing.T) {
	t.Parallel()
	dir := socketDir(t)
	for end, args := range map[syscall.Signal][]string{syscall.SIGTERM: {"--mode", "process", "-n", "4"}, syscall.SIGHUP: {"-n", "4"}} {
		n := upLive(t, dir, args...)
		pids := []int{n.Process.Pid}
		for _, p := range n.status().Peers {
			pids = append(pids, max(p.PID, n.Process.Pid))
		}
		n.Process.Kill()
		n.wait()
		eventually(t, "all processes are gone", func() bool {
			return !slices.ContainsFunc(pids, func(pid int) bool { s, _ := processState(pid); return s != 0 && s != 'Z' })
		})
		if left := remains(t, dir); len(left) == 0 {
			t.Error("a killed testnet left nothing: this test proves nothing")
		}
		next := upLive(t, dir, "-n", "3", "--mode", "process")
		if _, err := os.Stat(filepath.Join(dir, "3")); err == nil {
			t.Error("the next testnet did not clean up")
		}
		next.Process.Signal(end)
		if code := next.wait(); code != exitOK {
			t.Errorf("%v: exit %d", end, code)
		}
		if left := remains(t, dir); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	}
}

func TestATestnetInterruptedWhileItStartsLeavesNothing(t *testing.T) {
	t.Parallel()
	for _, seen := range []string{"control.sock", "2/identity.key", "1/daemon.log", "0/api.sock"} {
		dir := socketDir(t)
		p := command(t, nil, "testnet", "up", "--mode", "process", "--dir", dir).start()
		eventually(t, seen, func() bool { _, err := os.Lstat(filepath.Join(dir, seen)); return err == nil })
		p.Process.Signal(syscall.SIGINT)
		if code := p.wait(); code != exitSignal+int(syscall.SIGINT) && code != exitOK { // it may have been up
			t.Errorf("interrupted at %s: exit %d, %s", seen, code, p.err.String())
		}
		if left := remains(t, dir); len(left) > 0 {
			t.Errorf("interrupted at %s, left behind: %q", seen, left)
		}
	}
}

func TestATestnetThatCannotStartLeavesNothingOfItsOwn(t *testing.T) {
	t.Parallel()
	dir := socketDir(t)
	if err := os.MkdirAll(filepath.Join(dir, "1", "photos"), 0o700); err != nil {
		t.Fatal(err)
	}
	p := command(t, nil, "testnet", "up", "--mode", "process", "--dir", dir).start()
	if code, says := p.wait(), p.oneLine(); code != exitFailure || !strings.Contains(says, "photos") || !strings.Contains(says, "choose another --dir") {
		t.Errorf("exit %d, %s", code, says)
	}
	if left := remains(t, dir); !slices.Equal(left, []string{filepath.Join(dir, "1")}) {
		t.Errorf("left: %q", left)
	}
}

// TestCtrlCAtATerminal: the terminal sends INT to the whole foreground, and shows how far the start is.
func TestCtrlCAtATerminalTakesATestnetDown(t *testing.T) {
	t.Parallel()
	dir := socketDir(t)
	user, program := openTerminal(t)
	shown, read := &buffer{}, make(chan struct{})
	go func() {
		defer close(read)
		io.Copy(shown, user) // ends when nobody has the terminal any more
	}()
	p := command(t, nil, "testnet", "up", "--mode", "process", "-n", "3", "--dir", dir)
	p.Stdin, p.Stdout, p.Stderr = program, program, program
	p.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	p.start()
	program.Close()
	eventually(t, "it is up", func() bool { return strings.Contains(shown.String(), "Ctrl-C ends it") })
	fmt.Fprint(user, "\x03")
	if code := p.wait(); code != exitOK {
		t.Errorf("exit %d", code)
	}
	eventually(t, "all that was written to the terminal is read", func() bool {
		select {
		case <-read:
			return true
		default:
			return false
		}
	})
	for _, want := range []string{"starting peers", "[" + strings.Repeat("#", 24) + "] 3/3", "taking the testnet down"} {
		if !strings.Contains(shown.String(), want) {
			t.Errorf("the terminal shows %q, and nothing of %q", shown.String(), want)
		}
	}
	if left := remains(t, dir); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// TestTwoSignalsAtOnceTakeATestnetDown: timeout(1) signals its child and then its whole group.
func TestTwoSignalsAtOnceTakeATestnetDown(t *testing.T) {
	t.Parallel()
	home := shortDir(t)
	p := command(t, []string{"XDG_RUNTIME_DIR=" + home}, "testnet", "up", "-n", "3")
	shown := &buffer{}
	p.Stdout = shown
	p.start()
	eventually(t, "it is up", func() bool { return strings.Contains(shown.String(), "Ctrl-C ends it") })
	p.Process.Signal(syscall.SIGTERM)
	p.Process.Signal(syscall.SIGINT)
	if code := p.wait(); code != exitOK {
		t.Errorf("exit %d, %s", code, p.err.String())
	}
	if left := remains(t, home); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}
