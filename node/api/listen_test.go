package api_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"latchkey/internal/filelock"
	"latchkey/node/api"
)

// stale leaves a socket at path as a daemon does that was killed.
func stale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
}

func entries(t *testing.T, dir string) (names []string) {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		names = append(names, e.Name())
	}
	return names
}

// Of several that find the socket of a dead daemon at once, one may have its place.
func TestOneOfManyGetsTheSocketOfADeadDaemon(t *testing.T) {
	for range 100 {
		dir := t.TempDir()
		path := filepath.Join(dir, "api.sock")
		stale(t, path)
		var got [4]net.Listener
		var errs [len(got)]error
		var wg sync.WaitGroup
		start := make(chan struct{})
		for i := range got {
			wg.Go(func() {
				<-start
				got[i], errs[i] = api.Listen(path)
			})
		}
		close(start)
		wg.Wait()
		n := 0
		for i, l := range got {
			if l != nil {
				n++
				defer l.Close()
			} else if !errors.Is(errs[i], api.ErrInUse) {
				t.Error(errs[i])
			}
		}
		if n != 1 {
			t.Fatalf("%d of %d listen", n, len(got))
		}
	}
}

// Between the look at a dead daemon's socket and its own, a daemon has the lock: nobody else may act on what it has seen.
func TestASocketIsLockedBeforeItIsLookedAt(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "api.sock")
	stale(t, path)
	lock, err := filelock.Take(path + ".lock")
	if err != nil {
		t.Fatal(err)
	}
	if l, err := api.Listen(path); !errors.Is(err, api.ErrInUse) {
		t.Fatalf("%v, %v", l, err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Error("the refused one has removed the socket")
	}
	if err := lock.Release(); err != nil { // as a killed daemon leaves it
		t.Error(err)
	}
	l, err := api.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	l.Close()
	if left := entries(t, dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := api.Listen(path); !errors.Is(err, api.ErrInUse) {
		t.Error(err)
	}
	if left := entries(t, dir); len(left) != 1 {
		t.Errorf("a refused one left %v", left)
	}
}
