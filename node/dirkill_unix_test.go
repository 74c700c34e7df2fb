//go:build unix

package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"latchkey/node/config"
)

// Of the child process of these tests: the directory to make, whether as init or as join does, and what befalls it.
const (
	childDir  = "NODE_TEST_DIR"
	childKind = "NODE_TEST_KIND"
	childFate = "NODE_TEST_FATE" // the number of the step at which it is killed, or "nobody": it is another user
)

// TestChildMakesDirectory is not a test: it is what the child does.
func TestChildMakesDirectory(t *testing.T) {
	dir, fate := os.Getenv(childDir), os.Getenv(childFate)
	if dir == "" {
		t.Skip("it is for the child process of other tests")
	}
	if fate == "nobody" {
		if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(nobody), syscall.Setuid(nobody)); err != nil {
			t.Fatal(err)
		}
		_, _, err := InitDir(dir, InitOptions{Profile: config.Test})
		fmt.Printf("result: %v\n", err)
		return
	}
	last, err := strconv.Atoi(fate)
	if err != nil {
		t.Fatal(err)
	}
	s := joinerSpec(t)
	if os.Getenv(childKind) == "init" {
		s = founderSpec(t)
	}
	n := 0
	err = createDir(dir, s, func(string) error {
		if n++; n > last {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // until it arrives
		}
		return nil
	})
	if err == nil { // one step past the last: it is killed just before it would say that it is done
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	t.Fatal(err)
}

// nobody is a user id that owns nothing.
const nobody = 65534

// child runs TestChildMakesDirectory in a process of its own.
func child(t *testing.T, dir, kind, fate string) (output string, err error) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), self, "-test.run=^TestChildMakesDirectory$", "-test.v")
	c.Env = append(os.Environ(), childDir+"="+dir, childKind+"="+kind, childFate+"="+fate)
	b, err := c.CombinedOutput()
	return string(b), err
}

// A process that is killed at any step of init or join leaves a directory that is not initialised, that says to run it again,
// or that is complete; and running it again gets through in the first two cases.
func TestKilledInitAndJoinLeaveNothingHalf(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts some thirty processes")
	}
	for kind, spec := range map[string]DirSpec{"init": founderSpec(t), "join": joinerSpec(t)} {
		all := steps(t, spec)
		marked, done := slices.Index(all, "sync the mark"), slices.Index(all, "sync the end of it")
		if marked < 0 || done < 0 {
			t.Fatalf("steps %q", all)
		}
		for i := range len(all) + 1 {
			t.Run(fmt.Sprintf("%s killed after %d of %d steps", kind, i, len(all)), func(t *testing.T) {
				t.Parallel()
				dir := filepath.Join(t.TempDir(), "peer")
				out, err := child(t, dir, kind, strconv.Itoa(i))
				var exit *exec.ExitError
				if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
					t.Fatalf("the child was not killed: %v\n%s", err, out)
				}
				d, err := OpenDir(dir)
				switch {
				case i < marked && errors.Is(err, ErrNotInitialised):
				case i >= marked && i < done && errors.Is(err, ErrUnfinished):
				case i >= done && err == nil:
					if err := CreateDir(dir, spec); !errors.Is(err, ErrExists) {
						t.Errorf("made over a complete directory: %v", err)
					}
					if _, err := os.Stat(filepath.Join(dir, unfinishedFile)); err == nil {
						t.Error("a complete directory is marked")
					}
					if err := d.Close(); err != nil {
						t.Error(err)
					}
					return
				default:
					t.Fatalf("open: %v", err)
				}
				if err := CreateDir(dir, spec); err != nil {
					t.Fatalf("run again: %v", err)
				}
				checkHolds(t, dir, spec)
			})
		}
	}
}

func TestOnlyRootMayWriteHere(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("it becomes another user, which takes root")
	}
	dir, err := os.MkdirTemp("", "latchkey-") // that of the test is closed to other users
	if err != nil {
		t.Skip(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o555); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, filepath.Join(dir, "peer")} {
		out, err := child(t, path, "init", "nobody")
		if err != nil || !strings.Contains(out, "permission denied") || !strings.Contains(out, dir) {
			t.Errorf("%s: %v\n%s", path, err, out)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	// A directory that one may enter but not list is in order as a parent.
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	peer := filepath.Join(dir, "peer")
	if err := errors.Join(os.Mkdir(peer, 0o700), os.Chown(peer, nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	if out, err := child(t, peer, "init", "nobody"); err != nil || !strings.Contains(out, "result: <nil>") {
		t.Errorf("below a directory that cannot be listed: %v\n%s", err, out)
	}
}

func TestSharedSecretIsNoticed(t *testing.T) {
	path := filepath.Join(t.TempDir(), swarmKeyFile)
	for mode, want := range map[fs.FileMode]bool{0o600: false, 0o400: false, 0o640: true, 0o604: true, 0o620: true} {
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || shared(info) != want {
			t.Errorf("mode %v: shared is %v, %v", mode, !want, err)
		}
		os.Remove(path)
	}
}
