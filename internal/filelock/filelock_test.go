package filelock

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
)

func TestALockHasOneHolderAtATime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	l, err := Take(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Take(path); !errors.Is(err, ErrHeld) {
		t.Error(err)
	}
	for range 2 {
		if err := l.Release(); err != nil {
			t.Error(err)
		}
	}
	if l, err = Take(path); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := l.Remove(); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := Take(filepath.Join(path, "nowhere")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// The file goes with each holder, so that others have opened one that is gone.
func TestALockWhoseFileIsRemovedHasOneHolderAtATime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	var holders, turns atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for turns.Load() < 300 {
				l, err := Take(path)
				if errors.Is(err, ErrHeld) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				if n := holders.Add(1); n != 1 {
					t.Errorf("%d holders", n)
				}
				turns.Add(1)
				runtime.Gosched()
				holders.Add(-1)
				if err := l.Remove(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// A holder whose file somebody has taken away does not remove the next one's.
func TestAHolderRemovesOnlyItsOwnFile(t *testing.T) {
	if !removesOpen {
		t.Skip("files that are open stay")
	}
	path := filepath.Join(t.TempDir(), "lock")
	former, err := Take(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	next, err := Take(path)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Remove()
	if err := former.Remove(); err != nil {
		t.Error(err)
	}
	if _, err := Take(path); !errors.Is(err, ErrHeld) {
		t.Error(err)
	}
}
