package testnet

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"latchkey/node/api"
)

// shortDir returns a directory whose sockets have paths that every system takes.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "tn")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "net")
}

func claim(t *testing.T, dir string) *Control {
	t.Helper()
	c, err := Claim(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestATestnetIsControlledFromAnotherProcess(t *testing.T) {
	dir := shortDir(t)
	remote := Dial(dir)
	if _, err := remote.Status(short(t)); !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), dir) {
		t.Errorf("before it runs: %v", err)
	}
	c := claim(t, dir)
	if _, err := remote.Status(short(t)); !errors.Is(err, ErrStarting) {
		t.Errorf("while it starts: %v", err)
	}
	if _, err := Claim(dir); !errors.Is(err, ErrRunning) {
		t.Errorf("a second testnet in the directory: %v", err)
	}
	n := up(t, Options{N: 3, Dir: dir})
	c.Serve(n)

	st, err := remote.Status(short(t))
	if err != nil || len(st.Peers) != 3 || st.F != 1 || st.Seed != SeedDefault {
		t.Fatalf("%+v, %v", st, err)
	}
	daemon, err := api.Dial(st.Peers[2].API)
	if err != nil {
		t.Fatal(err)
	}
	defer daemon.Close()
	if id, err := daemon.ID(short(t)); err != nil || id.Peer != st.Peers[2].Peer {
		t.Errorf("peer 2's API is that of %q, %v", id.Peer, err)
	}
	if h, err := daemon.Locks().Lock(short(t), "by API"); err != nil {
		t.Error(err)
	} else if err := h.Release(short(t)); err != nil {
		t.Error(err)
	}

	if err := remote.Kill(short(t), 2); err != nil {
		t.Fatal(err)
	}
	if _, err := daemon.ID(short(t)); !errors.Is(err, api.ErrUnreachable) {
		t.Errorf("the API of a killed peer: %v", err)
	}
	if st, err := remote.Status(short(t)); err != nil || st.Peers[2].Up || !st.Peers[1].Up {
		t.Errorf("after the kill: %+v, %v", st, err)
	}
	if err := remote.Kill(short(t), 2); !errors.Is(err, ErrDown) {
		t.Errorf("second kill: %v", err)
	}
	if err := remote.Restart(short(t), 2); err != nil {
		t.Fatal(err)
	}
	if id, err := daemon.ID(short(t)); err != nil || id.Peer != st.Peers[2].Peer {
		t.Errorf("peer 2's API after the restart: %q, %v", id.Peer, err)
	}
	if err := remote.Restart(short(t), 2); !errors.Is(err, ErrUp) {
		t.Errorf("second restart: %v", err)
	}
	for _, i := range []int{-1, 3, 1 << 40} {
		if err := remote.Kill(short(t), i); !errors.Is(err, ErrNoPeer) || !strings.Contains(err.Error(), "0 to 2") {
			t.Errorf("kill %d: %v", i, err)
		}
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := remote.Status(short(t)); !errors.Is(err, ErrNotRunning) {
		t.Errorf("after it ended: %v", err)
	}
}

func TestADirectoryTooDeepForSocketsIsRefusedClearly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("x", 200))
	if _, err := Claim(dir); !errors.Is(err, api.ErrAddr) {
		t.Errorf("claim: %v", err)
	}
	if _, err := Dial(dir).Status(t.Context()); !errors.Is(err, api.ErrAddr) {
		t.Errorf("dial: %v", err)
	}
}

func TestOnlyItsOwnerMayControlATestnet(t *testing.T) {
	dir := shortDir(t)
	claim(t, dir)
	for _, path := range []string{dir, controlSocket(dir)} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
}

func FuzzDecodeAnswer(f *testing.F) {
	f.Add(200, []byte(`{"seed":"1","peers":[{"n":0}]}`))
	f.Add(409, []byte(`{"reason":"down","error":"x"}`))
	f.Add(500, []byte(`{}`))
	f.Fuzz(func(t *testing.T, code int, body []byte) {
		var st Status
		if err := decodeAnswer(code, body, &st); err == nil && code != http.StatusOK {
			t.Errorf("answer %d is no error", code)
		}
	})
}
