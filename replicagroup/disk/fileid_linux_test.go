package disk

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A file system gives a removed file's number to the next one. That one is another file all the same.
func TestAFileOfTheSameNumberIsAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	stat := func() (s unix.Statx_t) {
		t.Helper()
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_INO|unix.STATX_BTIME, &s); err != nil {
			t.Skip(err)
		}
		return s
	}
	first, id := stat(), fileID(path)
	if id == 0 || first.Mask&unix.STATX_BTIME == 0 {
		t.Skip("this file system does not say when a file was made")
	}
	if err := os.WriteFile(path, []byte("changed"), 0o600); err != nil {
		t.Fatal(err)
	}
	if fileID(path) != id {
		t.Error("a file that was written to has another id")
	}
	// The moment has the coarse steps of the kernel's clock.
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if s := stat(); s.Ino == first.Ino && s.Btime != first.Btime {
			if fileID(path) == id {
				t.Error("another file has the same id")
			}
			return
		}
	}
	t.Skip("this file system does not give numbers out again")
}
