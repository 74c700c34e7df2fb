//go:build unix

package testnet

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"latchkey/node"
	"latchkey/node/api"
	"latchkey/node/config"
)

// script is a program that does what a shell says in place of a daemon.
func script(dir, text string) ProcessOptions {
	return ProcessOptions{Options: Options{N: 3, Dir: dir}, Program: "/bin/sh", Args: []string{"-c", text}}
}

func TestAPeerThatDoesNotComeUpIsToldByItsLastLineAndNothingStays(t *testing.T) {
	dir := shortDir(t)
	claim(t, dir)
	p, err := UpProcesses(short(t), script(dir, "cat >/dev/null; echo first; echo it hurts >&2; echo; exit 3"))
	if err == nil {
		p.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "exit status 3: it hurts") || !strings.Contains(err.Error(), "peer ") {
		t.Errorf("%v", err)
	}
	if left := tree(t, dir); !slices.Equal(left, []string{"control.sock", "control.sock.lock", madeFile}) {
		t.Errorf("left behind: %v", left)
	}
	if _, err := UpProcesses(short(t), ProcessOptions{Options: Options{N: 3, Dir: dir}, Program: "/nowhere/at/all"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no program: %v", err)
	}
	if left := tree(t, dir); !slices.Equal(left, []string{"control.sock", "control.sock.lock", madeFile}) {
		t.Errorf("left behind: %v", left)
	}
}

func TestStartingProcessesEndsWithItsContext(t *testing.T) {
	dir := shortDir(t)
	claim(t, dir)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("changed my mind")
	o := script(dir, "exec sleep 1000")
	o.Progress = func(Progress) { cancel(why) }
	if _, err := UpProcesses(ctx, o); !errors.Is(err, why) {
		t.Error(err)
	}
	if left := tree(t, dir); !slices.Equal(left, []string{"control.sock", "control.sock.lock", madeFile}) {
		t.Errorf("left behind: %v", left)
	}
}

func TestUnusableOptionsOfProcessesAreRefused(t *testing.T) {
	for _, o := range []ProcessOptions{
		{}, {Program: "/bin/true"}, {Options: Options{Dir: "x"}}, {Options: Options{Dir: "x", N: 2}, Program: "/bin/true"},
	} {
		if _, err := UpProcesses(t.Context(), o); !errors.Is(err, ErrOptions) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// litter makes files below dir; a name that ends in "sock" becomes the socket of a process that is gone.
func litter(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(name, "sock") {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			continue
		}
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		l.Close()
	}
}

func TestWhatAKilledTestnetLeftIsRemovedAndNothingElse(t *testing.T) {
	dir := shortDir(t)
	litter(t, dir, "control.sock",
		"0/testnet.peer", "0/api.sock", "0/wire.sock", "0/daemon.log", "0/identity.key", "0/genesis", "0/swarm.key", "0/store/STORE", "0/store/000001.sst",
		"0/config.yaml", "0/.config.yaml.123.tmp", "0/config.draft.yaml", "0/api.sock.lock", "0/wire.sock.lock", "0/peers.json", "0/daemon.lock", "0/unfinished", "0/reseed", "0/reseed.state",
		"1/api.sock", "8/api.sock", "8/api.sock.lock", "9/api.sock.lock", // of peers in one process
		"2/testnet.peer", "2/daemon.log", "2/notes", "2/sub/daemon.log", "2/store/STORE",
		"3/identity.key", "3/api.sock", "3/store/STORE", // somebody's peer
		"4/api.sock", "4/notes",
		"05/testnet.peer", "x/api.sock", "6", "7/testnet.peer/x",
	)
	c := claim(t, dir)
	want := []string{
		"05", "05/testnet.peer", "2", "2/notes", "2/sub", "2/sub/daemon.log", "2/testnet.peer", "3", "3/api.sock", "3/identity.key", "3/store", "3/store/STORE",
		"4", "4/api.sock", "4/notes", "6", "7", "7/testnet.peer", "7/testnet.peer/x", "control.sock", "control.sock.lock", "x", "x/api.sock",
	}
	if left := tree(t, dir); !slices.Equal(left, want) {
		t.Errorf("left are\n%v, want\n%v", left, want)
	}
	// What stays is in nobody's way but that of a peer that would need the place.
	if _, err := UpProcesses(short(t), script(dir, "exit 1")); !errors.Is(err, ErrForeign) && !strings.Contains(err.Error(), "exit status 1") {
		t.Error(err)
	}
	o := script(dir, "exit 1")
	o.N = 5
	if _, err := UpProcesses(short(t), o); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "choose another --dir") {
		t.Errorf("peer 3's directory is somebody's: %v", err)
	}
	if left := tree(t, dir); !slices.Equal(left, want) {
		t.Errorf("left are\n%v, want\n%v", left, want)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}

	l, err := net.Listen("unix", filepath.Join(dir, "2", "api.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if c, err := Claim(dir); !errors.Is(err, ErrRunning) || !strings.Contains(err.Error(), "latchkey shutdown --api") {
		t.Errorf("a peer of a former testnet lives: %v, %v", c, err)
	}
	if _, err := os.Stat(controlSocket(dir)); err == nil {
		t.Error("the refused claim left its socket behind")
	}
}

// Whoever runs a testnet may do with its peers what is done with any: found an allow-list, edit the configuration, make tokens. What that
// leaves in their directories goes with the testnet, and comes again with its state.
func TestWhatIsDoneToAPeerIsItsTestnets(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "0")
	p := &Processes{opts: ProcessOptions{Options: Options{Seed: 1}}}
	if err := p.markDir(dir); err != nil {
		t.Fatal(err)
	}
	if _, _, err := node.InitDir(dir, node.InitOptions{Profile: config.Test}); err != nil {
		t.Fatal(err)
	}
	root, err := node.ReadRootKey(node.RootKeyFile(dir))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := node.InitAdmin(t.Context(), dir, root, nil, false); err != nil {
		t.Fatal(err)
	}
	unlock, err := node.LockConfig(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	if _, err := api.MakeToken(filepath.Join(dir, api.TokensFile), "ci", []api.Scope{api.ScopeRead}, 0); err != nil {
		t.Fatal(err)
	}
	litter(t, dir, "config.draft.yaml", ".admin.key.1.tmp", ".allow.list.2.tmp", ".tokens.json.3.tmp", "peers.json", "voters", "voters.new")
	state := map[string]bool{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != markFile && !e.IsDir() {
			state[e.Name()] = stateFileOfPeer(e.Name())
		}
	}
	for name, want := range map[string]bool{
		"allow.list": true, "admin.key": true, "tokens.json": true, "config.yaml": true, "identity.key": true, "root.key": true,
		"allow.lock": false, "config.lock": false, "tokens.json.lock": false, ".admin.key.1.tmp": false,
	} {
		if got, there := state[name]; got != want || !there {
			t.Errorf("%s: it is there %v, and in a state %v; want %v", name, there, got, want)
		}
	}
	if err := removePeer(dir); err != nil {
		t.Fatal(err)
	}
	if left := tree(t, filepath.Dir(dir)); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// A testnet that is killed leaves its directory; the next one there removes it as its own, and those above it that were made for it.
func TestTheDirectoryOfAKilledTestnetGoesWithTheNext(t *testing.T) {
	base := shortDir(t)
	if err := os.Mkdir(base, 0o700); err != nil {
		t.Fatal(err)
	}
	killed := filepath.Join(base, "a", "b", "c")
	c := claim(t, killed)
	mark, err := os.ReadFile(filepath.Join(killed, madeFile))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if left := tree(t, base); len(left) > 0 {
			t.Fatalf("left: %v", left)
		}
	}
	litter(t, killed, "control.sock")
	if err := os.WriteFile(filepath.Join(killed, madeFile), mark, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := claim(t, killed).Close(); err != nil {
		t.Error(err)
	}
	if left := tree(t, base); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	// What somebody else has made, or put there, stays.
	for _, mark := range []string{"", "x", "-1", "99999999999999999999", "1"} {
		litter(t, killed, "notes")
		if err := os.WriteFile(filepath.Join(killed, madeFile), []byte(mark), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := claim(t, killed).Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(killed, "notes")); err != nil {
			t.Error(err)
		}
	}
}

func TestALogIsBoundedAndItsLastLineKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	log, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	ready := 0
	print := func(s string) string { return record(strings.NewReader(s), log, func() { ready++ }) }
	if last := print("one\nREADY peer=x\n\n"); last != "one" || ready != 1 {
		t.Errorf("last line %q, ready %d", last, ready)
	}
	if last := print("not READY \n two"); last != "two" || ready != 1 {
		t.Errorf("last line %q, ready %d", last, ready)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "one\nREADY peer=x\n\nnot READY \n two" {
		t.Errorf("the log is %q, %v", got, err)
	}
	long := strings.Repeat("x", 3*logLineBytesMax) // without an end
	print(strings.Repeat(long, 1+logBytesMax/len(long)) + "\nend\n")
	got, err := os.ReadFile(path)
	if err != nil || len(got) > logBytesMax || !strings.HasSuffix(string(got), "x\nend\n") || strings.Contains(string(got), "one") {
		t.Errorf("the log has %d bytes, %v", len(got), err)
	}
	if last := print(long); len(last) > logLineBytesMax {
		t.Errorf("a last line of %d bytes", len(last))
	}
}

// one is a testnet of one process that does what a shell says.
func one(t *testing.T, text string) *Processes {
	t.Helper()
	p := &Processes{nursery: newNursery(), opts: script("", text), places: []*place{{dir: t.TempDir()}}}
	p.life, p.end = context.WithCancelCause(context.Background())
	t.Cleanup(func() {
		p.Kill(0)
		p.watchers.Wait()
		p.nursery.close()
	})
	if err := p.start(short(t), p.places[0]); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAKillWaitsForTheEndOfTheProcess(t *testing.T) {
	p := one(t, "echo READY x; exec sleep 1000")
	pid := p.Status().Peers[0].PID
	alive := func() bool { return syscall.Kill(pid, 0) == nil }
	witnessed := false
	if err := p.Kill(0, func() { witnessed = alive() }); err != nil || !witnessed {
		t.Errorf("%v; a living process witnessed: %v", err, witnessed)
	}
	if alive() {
		t.Error("the process is still there")
	}
	if st := p.Status().Peers[0]; st.Up || st.PID != 0 || st.Fault != "" {
		t.Errorf("%+v", st)
	}
	for _, err := range []error{p.Kill(0), p.Pause(0), p.Resume(0), p.Leave(t.Context(), 0)} {
		if !errors.Is(err, ErrDown) {
			t.Errorf("of a killed peer: %v", err)
		}
	}
	for _, i := range []int{-1, 1} {
		_, err := p.Logs(i)
		for _, err := range []error{err, p.Kill(i), p.Pause(i), p.Resume(i), p.Leave(t.Context(), i), p.Restart(t.Context(), i)} {
			if !errors.Is(err, ErrNoPeer) {
				t.Errorf("peer %d: %v", i, err)
			}
		}
	}
}

func TestAProcessThatEndsByItselfIsSeen(t *testing.T) {
	p := one(t, `trap "echo the disk is full >&2; exit 7" USR1; echo READY x; while :; do sleep 0.01; done`)
	if err := syscall.Kill(p.Status().Peers[0].PID, syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	until(t, "it is seen", func() bool { return !p.Status().Peers[0].Up })
	if st := p.Status().Peers[0]; st.Fault != "exit status 7: the disk is full" || st.PID != 0 || st.Left {
		t.Errorf("%+v", st)
	}
}

func TestALeavingPeerIsAskedAndMayTakeItsTime(t *testing.T) {
	p := one(t, `trap "read x; exit 0" TERM; echo READY x; while :; do sleep 0.01; done`)
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errors.New("test: enough"))
	defer cancel()
	if err := p.Pause(0); err != nil {
		t.Fatal(err)
	}
	if err := p.Leave(ctx, 0); !errors.Is(err, ErrPaused) {
		t.Errorf("leave of a paused peer: %v", err)
	}
	if err := p.Pause(0); !errors.Is(err, ErrPaused) {
		t.Errorf("second pause: %v", err)
	}
	if st := p.Status().Peers[0]; !st.Paused || !st.Up {
		t.Errorf("%+v", st)
	}
	if err := p.Kill(0); err != nil { // which a frozen process cannot refuse
		t.Error(err)
	}
	if st := p.Status().Peers[0]; st.Paused {
		t.Errorf("%+v", st)
	}
	if err := p.start(short(t), p.places[0]); err != nil {
		t.Fatal(err)
	}
	if err := p.start(short(t), p.places[0]); !errors.Is(err, ErrUp) {
		t.Errorf("second start: %v", err)
	}
	if err := p.Resume(0); !errors.Is(err, ErrNotPaused) {
		t.Errorf("resume of a peer that is not paused: %v", err)
	}
	if err := p.Leave(short(t), 0); err != nil {
		t.Error(err)
	}
	if st := p.Status().Peers[0]; st.Up || !st.Left || st.Fault != "" {
		t.Errorf("%+v", st)
	}
}
