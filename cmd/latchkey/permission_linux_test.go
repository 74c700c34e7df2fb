package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// nobody is a user that owns nothing here.
const nobody = 65534

// What the system does not permit is told in one line, with what stands in the way and what to do; and changes nothing.
func TestWhatIsNotPermittedIsOneLine(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it becomes another user, which takes root")
	}
	home, err := os.MkdirTemp("", "latchkey-") // those of the test are closed to other users
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	if err := os.Chmod(home, 0o755); err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(home, "latchkey")
	if b, err := os.ReadFile(binary); err != nil || os.WriteFile(exe, b, 0o755) != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(home, "peer")
	as := func(args ...string) *process {
		p := command(t, nil, append([]string{"--path", dir}, args...)...)
		p.Path, p.Args[0] = exe, exe
		p.Dir = home
		p.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		p.start().wait()
		return p
	}
	refused := func(code int, in string, args ...string) {
		t.Helper()
		p := as(args...)
		if says := p.err.String(); p.code != code || strings.Count(says, "\n") != 1 || !strings.Contains(says, "permission denied") ||
			!strings.Contains(says, in+" belongs to user root") || !strings.Contains(says, "say it as user root") {
			t.Errorf("%v: exit %d, %s", args, p.code, says)
		}
	}
	refused(exitFailure, home, "init", "--profile", "test")
	if err := os.Mkdir(dir, 0o700); err != nil || os.Chown(dir, nobody, nobody) != nil {
		t.Fatal(err)
	}
	if p := as("init", "--profile", "test"); p.code != 0 {
		t.Fatal(p.err.String())
	}
	for _, file := range []string{"identity.key", "genesis", "swarm.key", "config.yaml", "daemon.lock", "store", "store/LOCK", "store/STORE"} {
		path := filepath.Join(dir, file)
		info, err := os.Lstat(path)
		if err == nil {
			err = os.Chown(path, 0, 0)
		}
		if err == nil {
			err = os.Chmod(path, info.Mode().Perm()&0o700)
		}
		if err != nil {
			t.Fatal(err)
		}
		refused(exitFailure, path, "daemon")
		if err := os.Chown(path, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(dir, 0, 0); err != nil {
		t.Fatal(err)
	}
	refused(exitFailure, dir, "daemon")
	refused(exitUnreachable, dir, "status")
	refused(exitFailure, dir, "invite")
	if err := os.Chown(dir, nobody, nobody); err != nil || os.Chmod(dir, 0o500) != nil {
		t.Fatal(err)
	}
	if p := as("daemon"); p.code != exitFailure || !strings.Contains(p.err.String(), dir+" is yours and has mode 0500: change that with chmod") {
		t.Errorf("a directory that is not writable: exit %d, %s", p.code, p.err.String())
	}
	if permissionAdvice(fs.ErrNotExist) != "" || permissionAdvice(fs.ErrPermission) != "" || permissionAdvice(nil) != "" {
		t.Error("advice where there is nothing to say")
	}
}
