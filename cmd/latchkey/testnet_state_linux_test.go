package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"latchkey/testnet"
)

// wholeOrNone checks that nothing is at a path, or a whole state of so many peers.
func wholeOrNone(t *testing.T, path string, peers int) (there bool) {
	t.Helper()
	s, err := testnet.OpenState(path)
	if os.IsNotExist(err) || err != nil && strings.Contains(err.Error(), "no such file") {
		return false
	}
	if err != nil {
		t.Error(err)
		return true
	}
	defer s.Close()
	if len(s.Peers) != peers {
		t.Errorf("a state of %d peers", len(s.Peers))
	}
	return true
}

// running waits until no peer's process stands still.
func (n *liveNet) running() {
	n.t.Helper()
	eventually(n.t, "all peers run", func() bool {
		return !slices.ContainsFunc(n.status().Peers, func(p testnet.PeerStatus) bool {
			state, _ := processState(p.PID)
			return state == 'T' || state == 0
		})
	})
}

func TestATestnetOfProcessesIsTakenUpWhereItWasDumped(t *testing.T) {
	t.Parallel()
	n := upLive(t, socketDir(t), "--mode", "process", "-n", "4", "--seed", "9", "--depth", "3")
	names := []string{"a", "b", "c"}
	tokens := make(map[string]int)
	for i, name := range names {
		tokens[name] = n.fence(i, name)
	}
	before := n.status()
	files := shortDir(t)
	state := filepath.Join(files, "net.state")
	n.verb(exitOK, "pause 3")
	if out := n.verb(exitOK, "state dump "+state).out.String(); !strings.Contains(out, "4 peers") {
		t.Errorf("dump says %q", out)
	}
	if got, _ := processState(before.Peers[3].PID); got != 'T' {
		t.Errorf("a paused peer goes on after a dump: %c", got)
	}
	n.verb(exitOK, "resume 3")
	n.running()
	if info, err := os.Stat(state); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if p := n.verb(exitFailure, "state dump "+state); !strings.Contains(p.oneLine(), "--force") {
		t.Errorf("over a file: %s", p.err.String())
	}
	n.verb(exitOK, "state dump --force "+state)
	n.verb(exitOK, "state dump "+files)
	if all, err := os.ReadDir(files); err != nil || len(all) != 2 {
		t.Errorf("files: %v, %v", all, err)
	}

	elsewhere := socketDir(t)
	p := command(t, nil, "testnet", "state", "load", state, "--dir", elsewhere).start()
	if code := p.wait(); code != exitFailure || !strings.Contains(p.oneLine(), "end it first") {
		t.Errorf("while the original runs: exit %d, %s", code, p.err.String())
	}
	if left := remains(t, elsewhere); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	for _, name := range names { // of which the state knows nothing
		n.fence(0, name)
	}
	n.Process.Signal(syscall.SIGINT)
	n.wait()

	again := upLive(t, elsewhere, "--state", state)
	after := again.status()
	if after.Overlay != before.Overlay || after.Seed != 9 || after.Depth != 3 || after.Mode != testnet.ModeProcess || len(after.Peers) != 4 {
		t.Errorf("it was %+v and is %+v", before, after)
	}
	for i := range after.Peers {
		if was, is := before.Peers[i], after.Peers[i]; is.Peer != was.Peer || is.Addr != was.Addr || !is.Up || is.Paused {
			t.Errorf("peer %d was %+v and is %+v", i, was, is)
		}
	}
	for i, name := range names {
		if got := again.fence(3-i, name); got <= tokens[name] {
			t.Errorf("lock %s has token %d after %d", name, got, tokens[name])
		}
	}
	again.verb(exitOK, "kill 0-3")
	again.verb(exitOK, "restart 0-3")
	if out := again.verb(exitOK, "join").out.String(); out != "peer 4 joined\n" {
		t.Errorf("join says %q", out)
	}
	again.mesh(0, 1, 2, 3, 4)
	for _, flags := range []string{"-n 4", "--f 1", "--seed 9", "--depth 3", "--mode process"} {
		args := append([]string{"testnet", "up", "--state", state}, strings.Fields(flags)...)
		if p := command(t, nil, args...).start(); p.wait() != exitUsage || !strings.Contains(p.oneLine(), "the state says that already") {
			t.Errorf("%s: %s", flags, p.err.String())
		}
	}
	again.Process.Signal(syscall.SIGINT)
	again.wait()
	if left := remains(t, elsewhere); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// Whoever is killed in the midst of a dump, a file that is there is whole, and the peers go on.
func TestADumpThatIsKilledLeavesAWholeFileOrNoneAndNoPeerBehind(t *testing.T) {
	t.Parallel()
	dir, files := socketDir(t), shortDir(t)
	n := upLive(t, dir, "--mode", "process", "-n", "4")
	was := n.fence(0, "a")
	rng := rand.New(rand.NewPCG(1, 2))
	whole := 0
	for i := range 30 {
		state := filepath.Join(files, fmt.Sprint(i))
		p := command(t, nil, "testnet", "state", "dump", state, "--dir", dir).start()
		time.Sleep(time.Duration(rng.Int64N(int64(60 * time.Millisecond)))) // a moment to be killed at, drawn; nothing waits for it
		p.Process.Kill()
		p.wait()
		if wholeOrNone(t, state, 4) {
			whole++
		}
	}
	t.Logf("%d of 30 dumps were done before they were killed", whole)
	n.running()
	n.fence(1, "a")

	// The testnet itself is killed in the midst of one.
	state := filepath.Join(files, "last")
	p := command(t, nil, "testnet", "state", "dump", state, "--dir", dir).start()
	time.Sleep(time.Duration(rng.Int64N(int64(30 * time.Millisecond))))
	n.Process.Kill()
	n.wait()
	if code := p.wait(); code != exitOK {
		p.oneLine()
	}
	there := wholeOrNone(t, state, 4)
	t.Logf("the last dump was done: %v", there)

	// What it has left can still be dumped, and taken up.
	post := filepath.Join(files, "post mortem")
	eventually(t, "its peers have died with it", func() bool {
		p := command(t, nil, "testnet", "state", "dump", post, "--force", "--dir", dir).start()
		return p.wait() == exitOK
	})
	again := upLive(t, dir, "--state", post)
	if got := again.fence(2, "a"); got <= was+1 {
		t.Errorf("lock a has token %d after %d and another", got, was)
	}
	again.Process.Signal(syscall.SIGINT)
	if code := again.wait(); code != exitOK {
		t.Errorf("exit %d", code)
	}
	if left := remains(t, dir); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if p := command(t, nil, "testnet", "state", "dump", post, "--force", "--dir", dir).start(); p.wait() != exitUnreachable || !strings.Contains(p.oneLine(), "testnet up") {
		t.Errorf("of no testnet: %s", p.err.String())
	}
	wholeOrNone(t, post, 4)
}
