package durablefile

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"
)

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func checkFile(t *testing.T, path, want string, mode fs.FileMode) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil || string(b) != want {
		t.Errorf("%s holds %q, %v; want %q", path, b, err, want)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode && runtime.GOOS != "windows" {
		t.Errorf("%s: mode %v, %v", path, info.Mode(), err)
	}
}

func TestCreateMakesAFileOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := Create(path, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Create(path, []byte("two"), 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second time: %v", err)
	}
	checkFile(t, path, "one", 0o600)
}

func TestReplaceIsWholeOrNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f [1]*")
	if err := Replace(path, []byte("one"), 0o644); err != nil {
		t.Fatal(err)
	}
	checkFile(t, path, "one", 0o644)
	if err := Replace(path, []byte("two"), 0o600); err != nil {
		t.Fatal(err)
	}
	checkFile(t, path, "two", 0o600)
	if all := names(t, dir); len(all) != 1 {
		t.Errorf("left: %v", all)
	}
	// What cannot be replaced leaves nothing either.
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Replace(filepath.Join(dir, "d"), []byte("x"), 0o600); err == nil {
		t.Error("a directory was replaced")
	}
	if err := Replace(filepath.Join(dir, "no", "f"), []byte("x"), 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a directory: %v", err)
	}
	if all := names(t, dir); len(all) != 2 {
		t.Errorf("left: %v", all)
	}
}

func TestContentThatFailsHalfWayChangesNothing(t *testing.T) {
	dir := t.TempDir()
	path, why := filepath.Join(dir, "f"), errors.New("torn")
	if err := Replace(path, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := ReplaceWith(path, 0o644, func(w io.Writer) error {
		if _, err := w.Write([]byte("tw")); err != nil {
			t.Error(err)
		}
		return why
	})
	if !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
	checkFile(t, path, "one", 0o600)
	if all := names(t, dir); len(all) != 1 {
		t.Errorf("left: %v", all)
	}
}

func TestReplaceInTheWorkingDirectory(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := Replace("f", []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	checkFile(t, "f", "one", 0o600)
}

// Readers see one content or another, never a part or none.
func TestReplaceShowsWholeFilesToReaders(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("an open file cannot be replaced on Windows")
	}
	path := filepath.Join(t.TempDir(), "f")
	contents := [][]byte{bytes.Repeat([]byte("a"), 10_000), bytes.Repeat([]byte("b"), 20_000)}
	if err := Replace(path, contents[0], 0o600); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, c := range contents {
		wg.Go(func() {
			for range 50 {
				if err := Replace(path, c, 0o600); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for {
		b, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(b, contents[0]) && !bytes.Equal(b, contents[1]) {
			t.Fatalf("read %d bytes, %v", len(b), err)
		}
		select {
		case <-done:
			return
		default:
		}
	}
}

// What a killed call left goes with the next one, once it is certain that nobody is at work on it.
func TestReplaceSweepsUpAfterTheKilled(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f[a]")
	old, young, other := filepath.Join(dir, ".f[a].1.tmp"), filepath.Join(dir, ".f[a].2.tmp"), filepath.Join(dir, ".fa.3.tmp")
	for _, p := range []string{old, young, other} {
		if err := os.WriteFile(p, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	long := time.Now().Add(-2 * staleAfter)
	if err := errors.Join(os.Chtimes(old, long, long), os.Chtimes(other, long, long)); err != nil {
		t.Fatal(err)
	}
	if err := Replace(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if all := names(t, dir); len(all) != 3 {
		t.Errorf("left: %v", all)
	}
	if _, err := os.Stat(old); err == nil {
		t.Error("what a killed call left is still there")
	}
}
