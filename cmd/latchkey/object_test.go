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
