package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"latchkey/coherence/protocol"
	"latchkey/testnet"
)

// objectAt runs latchkey to its end beside peer i of a testnet.
func objectAt(t *testing.T, dir string, i int, stdin string, args ...string) *process {
	t.Helper()
	p := command(t, []string{"LATCHKEY_API=" + filepath.Join(dir, fmt.Sprint(i), "api.sock")}, args...)
	p.Stdin = strings.NewReader(stdin)
	p.start().wait()
	return p
}

// comesTrue waits for a condition.
func comesTrue(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(waitMax); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(pollEvery)
	}
}

func TestObjectsFromTheCommandLine(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	ctx, cancel := context.WithTimeout(t.Context(), waitMax)
	defer cancel()
	net, err := testnet.Up(ctx, testnet.Options{N: 3, Dir: dir, Depth: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer net.Close()
	long := filepath.Join(dir, "long")
	if err := os.WriteFile(long, bytes.Repeat([]byte{0, 255}, protocol.ValueMax/2), 0o600); err != nil {
		t.Fatal(err)
	}
	v := "--volatile"
	for _, c := range []struct {
		peer      int
		stdin     string
		args      []string
		code      int
		out, says string
	}{
		{0, "", []string{"object", "get", v, "demo/x"}, exitNotFound, "", `nobody has application "demo" open`},
		{0, "", []string{"object", "watch", v, "demo/x"}, exitNotFound, "", `nobody has application "demo" open`},
		{0, "", []string{"object", "ls", v, "demo"}, exitNotFound, "", `nobody has application "demo" open`},
		{0, "", []string{"app", "info", "demo"}, exitNotFound, "", `nobody has application "demo" open`},
		{0, "", []string{"app", "close", "demo"}, exitNotFound, "", `not open on this peer`},
		{0, "7\n", []string{"object", "set", v, "demo/dir/n", "-"}, exitOK, "", ""},
		{1, "", []string{"object", "get", v, "demo/dir/n"}, exitOK, "7\n", ""},
		{1, "", []string{"object", "get", v, "demo/other"}, exitNotFound, "", "has no value in execution"},
		{1, "", []string{"object", "set", v, "demo/long", "--file", long}, exitOK, "", ""},
		{2, "", []string{"object", "update", v, "demo/dir/n", "--", "sh", "-c", `read n; echo $((n + 1)) $LATCHKEY_OBJECT >&2; echo $((n + 1))`}, exitOK, "", "8 demo/dir/n"},
		{0, "", []string{"object", "get", v, "demo/dir/n"}, exitOK, "8\n", ""},
		{0, "", []string{"object", "update", v, "demo/dir/n", "--", "sh", "-c", "echo lost; exit 9"}, 9, "", ""},
		{0, "", []string{"object", "update", v, "demo/dir/n", "--", "no-such-command"}, exitNoCommand, "", "cannot run the command"},
		{0, "", []string{"object", "update", v, "demo/dir/n", "--", "cat", long, long}, exitUsage, "", "printed more than 1048576 bytes"},
		{0, "", []string{"object", "update", v, "--hold", "1s", "demo/dir/n", "--", "sleep", "60"}, exitLost, "", "nothing was written"},
		{1, "", []string{"object", "get", v, "demo/dir/n"}, exitOK, "8\n", ""},
		{2, "", []string{"object", "ls", v, "demo/dir/"}, exitOK, "dir/n  2", ""},
		{2, "", []string{"object", "get", v, "--epoch", "99", "demo/dir/n"}, exitFailure, "", "and not 99"},
		{1, "", []string{"object", "rm", v, "demo/dir/n"}, exitOK, "", ""},
		{0, "", []string{"object", "rm", v, "demo/dir/n"}, exitNotFound, "", "has no value"},
		{2, "", []string{"app", "ls"}, exitOK, "demo", ""},
		{0, "", []string{"app", "info", "demo"}, exitOK, "3, with those who have it open", ""},
		{0, "", []string{"status"}, exitOK, "of 1 applications", ""},
		{0, "", []string{"object", "set", v, "demo/kept", "saved"}, exitOK, "", ""},
		{2, "", []string{"app", "checkpoint", "demo"}, exitOK, "checkpoint", ""},
		{2, "", []string{"app", "checkpoint", "nosuch"}, exitNotFound, "", `nobody has application "nosuch" open`},
		{2, "", []string{"app", "restart", "nosuch"}, exitNotFound, "", `nobody has application "nosuch" open`},
		{0, "", []string{"object", "set", v, "demo/kept", "changed"}, exitOK, "", ""},
		{2, "", []string{"app", "restart", "demo"}, exitOK, "begins anew", ""},
		{1, "", []string{"app", "info", "demo"}, exitOK, "from checkpoint 1, in execution 2: somebody asked for it at peer " + net.ID(2).String(), ""},
	} {
		p := objectAt(t, dir, c.peer, c.stdin, c.args...)
		if p.code != c.code || !strings.Contains(p.out.String(), c.out) || !strings.Contains(p.oneLine(), c.says) || c.says == "" && p.err.Len() > 0 {
			t.Errorf("peer %d, %v: %d, %q, %q", c.peer, c.args, p.code, p.out.String(), p.err.String())
		}
	}
	// What was saved is there again, once each daemon has told that the application has begun anew.
	for i := range 3 {
		comesTrue(t, fmt.Sprintf("peer %d hears of the restart", i), func() bool {
			return strings.Contains(objectAt(t, dir, i, "", "object", "get", v, "demo/kept").err.String(), "has begun anew")
		})
		if p := objectAt(t, dir, i, "", "object", "get", v, "demo/kept"); p.code != exitOK || p.out.String() != "saved" {
			t.Errorf("peer %d after a restart: %d, %q, %q", i, p.code, p.out.String(), p.err.String())
		}
	}
	p := objectAt(t, dir, 0, "", "object", "get", v, "demo/long", "-o", "json")
	var got struct {
		Epoch  string  `json:"epoch"`
		Bytes  int     `json:"bytes"`
		Value  *string `json:"value"`
		Base64 []byte  `json:"value_base64"`
	}
	if err := json.Unmarshal(p.out.Bytes(), &got); err != nil || got.Bytes != protocol.ValueMax || got.Value != nil || len(got.Base64) != got.Bytes || got.Base64[1] != 255 {
		t.Errorf("%v: %d bytes, %v", err, got.Bytes, got.Value)
	}

	// The application begins anew with the failure of one who has it open, and everybody is told once.
	if err := net.Kill(1); err != nil {
		t.Fatal(err)
	}
	for {
		p := objectAt(t, dir, 0, "", "object", "get", v, "demo/long", "-o", "json")
		if p.code == exitOK { // it is not known yet
			continue
		}
		if p.code != exitFailure || !strings.Contains(p.oneLine(), "has begun anew") {
			t.Errorf("%d, %q", p.code, p.err.String())
		}
		break
	}
	if p := objectAt(t, dir, 2, "", "app", "info", "demo"); p.code != exitOK || !strings.Contains(p.out.String(), "in execution 3: peer "+net.ID(1).String()+" did not answer") {
		t.Errorf("%d, %q, %q", p.code, p.out.String(), p.err.String())
	}
	for _, c := range []struct {
		peer, code int
		says       string
		args       []string
	}{
		{0, exitOK, "", []string{"object", "set", v, "demo/long", "short"}},
		{2, exitFailure, "has begun anew", []string{"object", "get", v, "demo/long"}},
		{2, exitOK, "", []string{"object", "get", v, "demo/long"}},
		{2, exitOK, "", []string{"app", "close", "demo"}},
		{2, exitNotFound, "not open on this peer", []string{"app", "close", "demo"}},
	} {
		if p := objectAt(t, dir, c.peer, "", c.args...); p.code != c.code || !strings.Contains(p.oneLine(), c.says) {
			t.Errorf("peer %d, %v: %d, %q", c.peer, c.args, p.code, p.err.String())
		}
	}
}

// TestUpdatesOfOneObjectWaitForEachOther has many commands increment a number, each of which runs once.
func TestUpdatesOfOneObjectWaitForEachOther(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	ctx, cancel := context.WithTimeout(t.Context(), waitMax)
	defer cancel()
	net, err := testnet.Up(ctx, testnet.Options{N: 3, Dir: dir, Depth: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer net.Close()
	var all []*process
	for i := range 9 {
		p := command(t, []string{"LATCHKEY_API=" + filepath.Join(dir, fmt.Sprint(i%3), "api.sock")}, "object", "update", "--volatile", "demo/n", "--",
			"sh", "-c", "read n; echo x >>"+filepath.Join(dir, "ran")+"; echo $((n + 1))")
		all = append(all, p.start())
	}
	for _, p := range all {
		if p.wait() != exitOK {
			t.Errorf("%d: %q", p.code, p.err.String())
		}
	}
	ran, err := os.ReadFile(filepath.Join(dir, "ran"))
	if p := objectAt(t, dir, 0, "", "object", "get", "--volatile", "demo/n"); p.out.String() != "9\n" || err != nil || len(ran) != 2*9 {
		t.Errorf("%q after %d runs, %v", p.out.String(), len(ran)/2, err)
	}
	// Who waits in vain has run nothing.
	holder := command(t, []string{"LATCHKEY_API=" + filepath.Join(dir, "0", "api.sock")}, "object", "update", "--volatile", "demo/n", "--", "sh", "-c",
		"touch "+filepath.Join(dir, "held")+"; while [ -e "+filepath.Join(dir, "held")+" ]; do sleep 0.05; done; echo 10").start()
	for _, err := os.Stat(filepath.Join(dir, "held")); err != nil; _, err = os.Stat(filepath.Join(dir, "held")) {
		select {
		case <-holder.ended:
			t.Fatal(holder.err.String())
		default:
		}
	}
	if p := objectAt(t, dir, 1, "", "object", "update", "--volatile", "--wait", "100ms", "demo/n", "--", "touch", filepath.Join(dir, "ran2")); p.code != exitNotAcquired {
		t.Errorf("%d: %q", p.code, p.err.String())
	}
	if _, err := os.Stat(filepath.Join(dir, "ran2")); err == nil {
		t.Error("it ran")
	}
	os.Remove(filepath.Join(dir, "held"))
	if holder.wait() != exitOK {
		t.Errorf("%d: %q", holder.code, holder.err.String())
	}
}

// TestDurableObjectsFromTheCommandLine: what one daemon's clients write, those of another read, and no death of a peer changes it.
func TestDurableObjectsFromTheCommandLine(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	ctx, cancel := context.WithTimeout(t.Context(), waitMax)
	defer cancel()
	net, err := testnet.Up(ctx, testnet.Options{N: 5, Dir: dir, Depth: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer net.Close()
	long := filepath.Join(dir, "long")
	if err := os.WriteFile(long, bytes.Repeat([]byte{0, 255}, protocol.ValueMax/2), 0o600); err != nil {
		t.Fatal(err)
	}
	watch := command(t, []string{"LATCHKEY_API=" + filepath.Join(dir, "4", "api.sock")}, "object", "watch", "demo/dir/n", "-o", "jsonl")
	watch.start()
	defer func() { watch.Process.Kill(); watch.wait() }()
	comesTrue(t, "nothing is there", func() bool { return strings.Contains(watch.out.String(), "\n") })
	listing := command(t, []string{"LATCHKEY_API=" + filepath.Join(dir, "3", "api.sock")}, "object", "watch", "demo/dir/", "-o", "jsonl")
	listing.start()
	defer func() { listing.Process.Kill(); listing.wait() }()
	comesTrue(t, "nothing is in the directory", func() bool { return strings.Contains(listing.out.String(), "\n") })
	for _, c := range []struct {
		peer      int
		stdin     string
		args      []string
		code      int
		out, says string
	}{
		{0, "", []string{"object", "get", "demo/dir/n"}, exitNotFound, "", "demo/dir/n does not exist"},
		{0, "", []string{"object", "rm", "demo/dir/n"}, exitNotFound, "", "does not exist"},
		{0, "", []string{"object", "get", "demo/never", "--stale"}, exitNotFound, "", "has seen nothing"},
		{0, "", []string{"object", "ls", "demo/dir"}, exitOK, "no object of demo/dir/", ""},
		{0, "7\n", []string{"object", "set", "demo/dir/n", "-", "--if-version", "0"}, exitOK, "", ""},
		{1, "", []string{"object", "get", "demo/dir/n"}, exitOK, "7\n", ""},
		{1, "", []string{"object", "get", "demo/dir/n", "--stale"}, exitOK, "7\n", "was the present value"},
		{1, "", []string{"object", "get", "--volatile", "demo/dir/n"}, exitNotFound, "", "nobody has application"}, // which is another one
		{1, "", []string{"object", "get", "demo/dir/n", "-o", "json"}, exitOK, `"version": "1"`, ""},
		{2, "", []string{"object", "info", "demo/dir/n", "-o", "json"}, exitOK, `"version": "1"`, ""},
		{2, "", []string{"object", "info", "demo/dir/n"}, exitOK, "version  1\n", ""},
		{2, "", []string{"object", "set", "demo/dir/n", "8", "--if-absent"}, exitFailure, "", "it has version 1"},
		{2, "", []string{"object", "set", "demo/dir/n", "8", "--if-version", "5"}, exitFailure, "", "it has version 1"},
		{2, "", []string{"object", "set", "demo/dir/n", "8", "--if-version", "1", "-o", "json"}, exitOK, `"version": "2"`, ""},
		{3, "", []string{"object", "update", "demo/dir/n", "--", "sh", "-c", "read n; echo $LATCHKEY_OBJECT $LATCHKEY_VERSION >&2; echo $((n + 1))"}, exitOK, "", "demo/dir/n 2"},
		{0, "", []string{"object", "get", "demo/dir/n"}, exitOK, "9\n", ""},
		{0, "", []string{"object", "update", "demo/dir/n", "--", "sh", "-c", "echo lost; exit 9"}, 9, "", ""},
		{0, "", []string{"object", "update", "demo/dir/n", "--", "cat", long, long}, exitUsage, "", "printed more than 1048576 bytes"},
		{0, "", []string{"object", "update", "--hold", "1s", "demo/dir/n", "--", "sleep", "60"}, exitLost, "", "nothing was written"},
		{0, "", []string{"object", "update", "demo/made", "--", "wc", "-c"}, exitOK, "", ""}, // of nothing
		{1, "", []string{"object", "get", "demo/made"}, exitOK, "0\n", ""},
		{1, "", []string{"object", "set", "demo/long", "--file", long}, exitOK, "", ""},
		{1, "", []string{"object", "set", "demo/dir/empty", "", "--ttl", "1h"}, exitOK, "", ""},
		{3, "", []string{"object", "get", "demo/dir/empty"}, exitOK, "", ""}, // it exists
		{2, "", []string{"object", "ls", "demo"}, exitOK, "NAME\nlong\nmade\n", ""},
		{2, "", []string{"object", "ls", "demo/dir/"}, exitOK, "NAME\ndir/empty\ndir/n\n", ""},
		{2, "", []string{"object", "ls", "demo/dir", "--limit", "1"}, exitOK, "NAME\ndir/empty\n", "--after dir/empty goes on"},
		{2, "", []string{"object", "ls", "demo/dir", "--after", "dir/empty"}, exitOK, "NAME\ndir/n\n", ""},
		{2, "", []string{"object", "update", "demo/made", "--ttl", "1h", "--", "cat"}, exitOK, "", ""},
		{2, "", []string{"object", "watch", "demo/made", "--after", "9"}, exitFailure, "", `"made" has version 2`},
		{2, "", []string{"object", "watch", "demo/dir/", "--after", "9"}, exitFailure, "", `"dir/" has version 2`},
		{2, "", []string{"object", "rm", "demo/dir/n", "--if-version", "1"}, exitFailure, "", "it has version 3"},
		{2, "", []string{"object", "rm", "demo/dir/n", "--if-version", "3"}, exitOK, "", ""},
		{3, "", []string{"object", "info", "demo/dir/n"}, exitNotFound, "", "it was deleted, as version 4"},
		{3, "", []string{"object", "set", "demo/dir/n", "again", "-o", "json"}, exitOK, `"version": "5"`, ""},
	} {
		p := objectAt(t, dir, c.peer, c.stdin, c.args...)
		if p.code != c.code || !strings.Contains(p.out.String(), c.out) || !strings.Contains(p.oneLine(), c.says) || c.says == "" && p.err.Len() > 0 {
			t.Errorf("peer %d, %v: %d, %q, %q", c.peer, c.args, p.code, p.out.String(), p.err.String())
		}
	}

	// A directory's watch tells what was made and deleted in it, and nothing of what was written.
	var told []string
	comesTrue(t, "the watch of the directory tells its last version", func() bool {
		told = nil
		for line := range strings.Lines(listing.out.String()) {
			var c directoryChange
			if err := json.Unmarshal([]byte(line), &c); err == nil {
				told = append(told, fmt.Sprintln(c.Directory, c.Version, c.Names, c.Added, c.Removed, c.Lagged))
			}
		}
		return len(told) > 0 && strings.HasPrefix(told[len(told)-1], "dir/ 4")
	})
	if got := strings.Join(told, ""); got != "dir/ 0 0 [] [] false\ndir/ 1 1 [n] [] false\ndir/ 2 2 [empty] [] false\ndir/ 3 1 [] [n] false\ndir/ 4 2 [n] [] false\n" {
		t.Errorf("%s", got)
	}

	// Whoever dies, leads the group or watches nothing.
	p := objectAt(t, dir, 4, "", "object", "info", "demo/dir/n", "-o", "json")
	var at struct{ Group struct{ Leader string } }
	if err := json.Unmarshal(p.out.Bytes(), &at); err != nil {
		t.Fatal(err, p.out.String(), p.err.String())
	}
	killed := 0
	for i := range 4 {
		if net.ID(i).String() == at.Group.Leader {
			killed = i
		}
	}
	if err := net.Kill(killed); err != nil {
		t.Fatal(err)
	}
	if p := objectAt(t, dir, 4, "", "object", "update", "demo/dir/n", "--", "tr", "a-z", "A-Z"); p.code != exitOK {
		t.Errorf("%d, %q", p.code, p.err.String())
	}
	if p := objectAt(t, dir, (killed+1)%4, "", "object", "get", "demo/dir/n"); p.out.String() != "AGAIN" {
		t.Errorf("%d, %q, %q", p.code, p.out.String(), p.err.String())
	}
	comesTrue(t, "the watch tells the last version", func() bool { return strings.Contains(watch.out.String(), `"AGAIN"`) })
	var last uint64
	for line := range strings.Lines(watch.out.String()) {
		var v struct {
			Version uint64 `json:",string"`
			Lagged  bool
			Exists  bool
		}
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatal(err, line)
		}
		if v.Version > 0 && v.Version <= last || v.Lagged != (v.Version > last+1) || v.Exists == (v.Version == 0 || v.Version == 4) {
			t.Errorf("after version %d: %s", last, line)
		}
		last = v.Version
	}
	if last != 6 {
		t.Errorf("%q", watch.out.String())
	}
}

// pollEvery is how often one looks at what a process that goes on has printed.
const pollEvery = 5 * time.Millisecond
