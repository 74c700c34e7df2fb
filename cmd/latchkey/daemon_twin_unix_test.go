//go:build unix

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"latchkey/node/api"
)

// three starts an overlay of three peers, all of which are in the group of the lock "n".
func three(t *testing.T) (dirs []string, daemons []*process) {
	t.Helper()
	base := shortDir(t)
	for _, name := range []string{"a", "b", "c"} {
		dir := filepath.Join(base, name)
		if len(dirs) == 0 {
			initTest(t, dir)
		} else {
			token, _ := invited(t, dirs[0])
			ok(t, fed(t, dir, token+"\n", "join", "-", "--profile", "test"))
		}
		d, _ := startDaemon(t, dir, nil)
		dirs, daemons = append(dirs, dir), append(daemons, d)
	}
	meeting(t, dirs...)
	lockFrom(t, dirs...)
	return dirs, daemons
}

// alarmsAt returns what the daemon of dir says in its status.
func alarmsAt(t *testing.T, dir string) []api.Alarm {
	t.Helper()
	var s api.Status
	if err := json.Unmarshal(ok(t, at(t, dir, "status", "-o", "json")).out.Bytes(), &s); err != nil {
		t.Fatal(err)
	}
	return s.Alarms
}

// accused expects that a daemon stops by itself, since others have heard its store twice, and says so in one line.
func accused(t *testing.T, d *process) {
	t.Helper()
	select {
	case <-d.ended:
	case <-time.After(waitMax):
		t.Fatalf("%v: one of two goes on; it says %s", d.Args, d.err.String())
	}
	lines := 0
	for line := range strings.Lines(d.err.String()) {
		if strings.HasPrefix(line, "latchkey: ") && strings.Contains(line, "runs in two places") && strings.Contains(line, "--restored") {
			lines++
		}
	}
	if d.code != exitFailure || lines != 1 {
		t.Errorf("%v: exit %d; it says %s", d.Args, d.code, d.err.String())
	}
}

// alarmed expects that one of the daemons of dirs alarms, and that whoever does names the peer, once: in its own words, in its status
// and in the status's words. Not each of them must have heard both before these stopped.
func alarmed(t *testing.T, peer string, dirs []string, daemons []*process) {
	t.Helper()
	witnesses := 0
	eventually(t, "an alarm", func() bool {
		witnesses = 0
		for _, dir := range dirs {
			witnesses += len(alarmsAt(t, dir))
		}
		return witnesses > 0
	})
	for i, dir := range dirs {
		alarms := alarmsAt(t, dir)
		text, says := ok(t, at(t, dir, "status")).out.String(), daemons[i].err.String()
		n := len(alarms)
		if n > 1 || n > 0 && (alarms[0].Peer != peer || !alarms[0].Refused || alarms[0].Store == "") {
			t.Errorf("%s: alarms %+v", dir, alarms)
		}
		if strings.Count(text, "ALARM") != n || n > 0 && !strings.Contains(text, "of peer "+peer+" runs in two places") {
			t.Errorf("status at %s says %s", dir, text)
		}
		if strings.Count(says, "of peer "+peer+" runs in two places") != n {
			t.Errorf("%s says %s", dir, says)
		}
	}
}

// copyOf copies the directory of a daemon, which stands still meanwhile, so that the copy is as if made in an instant.
func copyOf(t *testing.T, to, from string, d *process) {
	t.Helper()
	if err := d.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	copyTree(t, to, from)
	if err := d.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(to, "api.sock")); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
}

var free = []string{"--listen", "/ip4/127.0.0.1/tcp/0"}

// Somebody starts the copy of a running peer's directory, and vouches wrongly that the original has not run since. The others
// refuse both; both stop; the group goes on without; and the peer comes back under a new store id.
func TestCopyOfARunningPeerIsRefusedWithItsOriginal(t *testing.T) {
	t.Parallel()
	dirs, daemons := three(t)
	a, b, c := dirs[0], dirs[1], dirs[2]
	peer := peerOf(t, b)
	copied := b + "2"
	copyOf(t, copied, b, daemons[1])
	twin, _ := startDaemon(t, copied, nil, append([]string{"--moved"}, free...)...)
	accused(t, twin)
	accused(t, daemons[1])
	others, theirs := []string{a, c}, []*process{daemons[0], daemons[2]}
	alarmed(t, peer, others, theirs)
	lockFrom(t, others...)

	// Neither is let in while it claims that store, not even alone.
	again, _ := startDaemon(t, b, nil, free...)
	accused(t, again)
	back, _ := startDaemon(t, b, nil, append([]string{"--restored"}, free...)...)
	lockFrom(t, b)
	if alarms := alarmsAt(t, b); len(alarms) > 0 {
		t.Errorf("the peer itself alarms: %+v", alarms)
	}
	alarmed(t, peer, others, theirs) // still once each
	ok(t, at(t, b, "shutdown"))
	back.wait()
}

// The store alone is copied, to a peer of another identity, which is no member with it.
func TestStoreOfAnotherPeerDoesNotRun(t *testing.T) {
	t.Parallel()
	dirs, daemons := three(t)
	other := dirs[1] + "2"
	token, _ := invited(t, dirs[0])
	ok(t, fed(t, other, token+"\n", "join", "-", "--profile", "test"))
	copyOf(t, filepath.Join(other, "store"), filepath.Join(dirs[1], "store"), daemons[1])
	expect(t, at(t, other, "daemon", "--moved"), exitFailure, "is not at this peer", "its own or an empty one")
	lockFrom(t, dirs...)
}

// A backup is put back as if it had only been moved: those who have heard of later starts know better.
func TestBackupThatIsPassedOffAsMovedIsRefused(t *testing.T) {
	t.Parallel()
	dirs, daemons := three(t)
	b := dirs[1]
	peer := peerOf(t, b)
	backup := b + ".backup"
	copyOf(t, backup, b, daemons[1])
	d := daemons[1]
	for range 4 {
		d.Process.Kill()
		d.wait()
		d, _ = startDaemon(t, b, nil)
		lockFrom(t, b) // the others have heard of it
	}
	d.Process.Kill()
	d.wait()
	if err := os.RemoveAll(b); err != nil {
		t.Fatal(err)
	}
	copyTree(t, b, backup)
	expect(t, at(t, b, append([]string{"daemon"}, free...)...), exitFailure, "copy of a store", "--restored")
	back, _ := startDaemon(t, b, nil, append([]string{"--moved"}, free...)...)
	accused(t, back)
	alarmed(t, peer, []string{dirs[0], dirs[2]}, []*process{daemons[0], daemons[2]})
}

// An ordinary crash and restart is nothing unusual, however often.
func TestKilledAndRestartedTwentyTimesIsNotAlarming(t *testing.T) {
	t.Parallel()
	dirs, daemons := three(t)
	b, d := dirs[1], daemons[1]
	for range 20 {
		d.Process.Kill()
		d.wait()
		d, _ = startDaemon(t, b, nil)
	}
	lockFrom(t, b)
	meeting(t, dirs...)
	for i, dir := range dirs {
		if alarms := alarmsAt(t, dir); len(alarms) > 0 {
			t.Errorf("%s: alarms %+v", dir, alarms)
		}
		if i == 1 {
			continue
		}
		if says := daemons[i].err.String(); strings.Contains(says, "places") {
			t.Errorf("%s says %s", dir, says)
		}
	}
}
