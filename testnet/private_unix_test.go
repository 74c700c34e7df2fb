//go:build unix

package testnet

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestADirectoryThatOthersCouldWriteIsNotClaimed(t *testing.T) {
	dir := shortDir(t)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	refused := func(dir, says string) {
		t.Helper()
		c, err := Claim(dir)
		if !errors.Is(err, ErrOptions) || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, %v; want %s", c, err, says)
		}
	}
	for _, mode := range []os.FileMode{0o777, 0o720, 0o702} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		refused(dir, "chmod go-w")
	}
	if err := os.Chmod(dir, 0o755); err != nil { // as mkdir makes it
		t.Fatal(err)
	}
	link := filepath.Join(filepath.Dir(dir), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	refused(link, "no directory")
	if os.Geteuid() == 0 {
		if err := os.Chown(dir, 65534, -1); err != nil {
			t.Fatal(err)
		}
		refused(dir, "another user")
		if err := os.Chown(dir, 0, -1); err != nil {
			t.Fatal(err)
		}
	}
	if left := tree(t, dir); len(left) > 0 {
		t.Errorf("a refused claim left %v", left)
	}
	claim(t, dir)
}

func TestTheDirectoryOfLastResortIsOneOfTheUsersOwn(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", "")
	t.Setenv("XDG_CACHE_HOME", "")
	t.Setenv("HOME", "")
	want := filepath.Join(os.TempDir(), "latchkey-testnet-"+strconv.Itoa(os.Getuid()))
	if dir := DefaultDir(); dir != want {
		t.Errorf("%s, want %s", dir, want)
	}
}
