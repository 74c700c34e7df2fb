//go:build unix

package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/internal/durablefile"
	"latchkey/node"
	"latchkey/node/allowlist"
	"latchkey/node/api"
	"latchkey/node/config"
)

func init() { killedMain = runKilled }

// runKilled is latchkey with the arguments of this process, which is killed before it changes the disk for the at-th time, from 0 on.
func runKilled(at string) {
	last, err := strconv.Atoi(at)
	if err != nil {
		panic(err)
	}
	self, err := os.FindProcess(os.Getpid())
	if err != nil {
		panic(err)
	}
	n := 0
	durablefile.Before = func(string, string) {
		if n == last {
			self.Kill()
			select {} // until it arrives
		}
		n++
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// killedAt runs latchkey in a process that is killed at a change to the disk, and reports whether it got so far.
func killedAt(t *testing.T, at int, env []string, args ...string) bool {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := command(t, append(env, killedVariable+"="+strconv.Itoa(at)), args...)
	c.Path = self
	switch c.start().wait() {
	case -1:
		return true
	case 0:
		return false
	}
	t.Fatalf("%v: exit %d, %s", args, c.code, c.err.String())
	return false
}

// here runs latchkey in this process.
func here(args ...string) (code int, out, err string) {
	var o, e bytes.Buffer
	code = run(args, &o, &e)
	return code, o.String(), e.String()
}

// A verb that changes the directory of a peer, killed before each of its changes to the disk, has made the whole change or none: the peer
// runs, and the verb run again has it made.
func TestKilledVerbsHaveMadeTheirChangeOrNone(t *testing.T) {
	t.Parallel()
	base := shortDir(t)
	dir := filepath.Join(base, "peer")
	must := func(args ...string) {
		t.Helper()
		if code, _, says := here(append([]string{"--path", dir}, args...)...); code != exitOK {
			t.Fatalf("%v: exit %d, %s", args, code, says)
		}
	}
	must("init", "--profile", "test")
	opens := func() error {
		d, err := node.OpenDir(dir)
		if err != nil {
			return err
		}
		return d.Close()
	}
	const other = "12D3KooWFk4oM6LEbuCoddHBdFerfQRMNKX9i6pLgDkGNAmysFZd"
	id, err := peer.Decode(other)
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	list := func() *allowlist.List {
		t.Helper()
		l, err := node.ReadAllowList(dir)
		if err != nil && !errors.Is(err, node.ErrNoList) {
			t.Fatal(err)
		}
		return l
	}
	kind := func() allowlist.Kind {
		e, _ := list().Find(id)
		return e.Kind
	}
	field := func(name string) string {
		t.Helper()
		code, out, says := here("--path", dir, "config", "get", name)
		if code != exitOK {
			t.Fatal(says)
		}
		return strings.TrimSpace(out)
	}
	read := func(name string) []byte {
		t.Helper()
		b, err := os.ReadFile(file(name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	write := func(name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(file(name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// What the directory held when all was done that a case begins with.
	conf := read("config.yaml")
	must("overlay", "admin", "init")
	key, first := read("admin.key"), read("allow.list")
	must("overlay", "admin", "allow", other)
	allowed := read("allow.list")
	edited := file("edited")
	write("edited", bytes.Replace(conf, []byte("network:\n"), []byte("network:\n  conns_high: 777\n"), 1))
	forth := filepath.Join(base, "next")

	for name, c := range map[string]struct {
		args  []string
		env   []string
		begin func()        // brings about what is before
		made  func() bool   // whether the change has been made; anything but the one or the other fails the test
		half  func() string // what is to be said of a change half made; empty: nothing is
		steps int
	}{
		"overlay admin init": {
			args:  []string{"overlay", "admin", "init"},
			begin: func() { os.Remove(file("admin.key")); os.Remove(file("allow.list")) },
			made:  func() bool { return list() != nil },
			half: func() string {
				if _, err := os.Stat(file("admin.key")); err == nil && list() == nil {
					return "overlay admin init was interrupted; run it again"
				}
				return ""
			},
			steps: 10,
		},
		"overlay admin init --new-key": {
			args:  []string{"overlay", "admin", "init", "--new-key"},
			begin: func() { write("admin.key", key); write("allow.list", allowed) },
			made:  func() bool { return list().Admin() == 2 },
			half: func() string {
				if !bytes.Equal(read("admin.key"), key) && list().Admin() == 1 {
					return "overlay admin init --new-key again"
				}
				return ""
			},
			steps: 10,
		},
		"overlay admin allow": {
			args:  []string{"overlay", "admin", "allow", other},
			begin: func() { write("admin.key", key); write("allow.list", first) },
			made:  func() bool { return list().Number() == 2 && kind() == allowlist.Member },
			steps: 5,
		},
		"overlay admin revoke": {
			args:  []string{"overlay", "admin", "revoke", other},
			begin: func() { write("admin.key", key); write("allow.list", allowed) },
			made:  func() bool { return list().Number() == 3 && kind() == allowlist.Revoked },
			steps: 5,
		},
		"config set": {
			args:  []string{"config", "set", "network.conns_high", "555"},
			begin: func() { write("config.yaml", conf) },
			made:  func() bool { return field("network.conns_high") == "555" },
			steps: 5,
		},
		"config edit": {
			args:  []string{"config", "edit"},
			env:   []string{"EDITOR=cp " + edited, "VISUAL="},
			begin: func() { write("config.yaml", conf); os.Remove(file("config.draft.yaml")) },
			made: func() bool {
				switch draft, err := os.ReadFile(file("config.draft.yaml")); {
				case errors.Is(err, os.ErrNotExist), err == nil && (bytes.Equal(draft, conf) || bytes.Equal(draft, read("edited"))):
				default:
					t.Errorf("the next edit would go on with %q, %v", draft, err)
				}
				return field("network.conns_high") == "777"
			},
			steps: 11,
		},
		"token new": {
			args:  []string{"token", "new", "ci", "--scope", "read"},
			begin: func() { os.Remove(file("tokens.json")) },
			made: func() bool {
				tokens, err := api.ReadTokens(file("tokens.json"))
				if err != nil {
					t.Error(err)
				}
				return len(tokens) == 1
			},
			steps: 5,
		},
		"join --prepare": {
			args:  []string{"--path", forth, "join", "--prepare"},
			begin: func() { os.RemoveAll(forth) },
			made:  func() bool { _, err := os.Stat(filepath.Join(forth, "joining.key")); return err == nil },
			steps: 5,
		},
	} {
		args := append([]string{"--path", dir}, c.args...)
		was, n := false, 0
		for ; ; n++ {
			c.begin()
			if c.made() {
				t.Fatalf("%s: made before it begins", name)
			}
			killed := killedAt(t, n, c.env, args...)
			made := c.made()
			if was && !made || !killed && !made {
				t.Errorf("%s: killed %v after %d changes: it was made before and is not now, or never", name, killed, n)
			}
			was = made
			if err := opens(); err != nil {
				t.Errorf("%s: killed after %d changes: %v", name, n, err)
			}
			if c.half != nil && c.half() != "" {
				if code, _, says := here("--path", dir, "overlay", "admin", "allow", other); code != exitFailure || !strings.Contains(says, c.half()) {
					t.Errorf("%s: killed after %d changes; then allow: exit %d, %s", name, n, code, says)
				}
			}
			if !made {
				again := command(t, c.env, args...).start()
				if again.wait() != exitOK || !c.made() {
					t.Errorf("%s: killed after %d changes and run again: exit %d, %s", name, n, again.code, again.err.String())
				}
			}
			if !killed {
				break
			}
		}
		if n != c.steps {
			t.Errorf("%s: %d changes to the disk, and not %d: the test does not see all, or there are others", name, n, c.steps)
		}
	}
	// What the killed have left beside the files goes when the peer starts, once it is old.
	left, err := filepath.Glob(file(".*.tmp"))
	if err != nil || len(left) == 0 {
		t.Fatalf("nothing was left by the killed: %v", err)
	}
	long := time.Now().Add(-time.Hour)
	for _, path := range left {
		if err := os.Chtimes(path, long, long); err != nil {
			t.Fatal(err)
		}
	}
	d, _ := startDaemon(t, dir, nil)
	for _, name := range []string{"admin.key", "allow.list", "config.yaml"} {
		if left, err := filepath.Glob(file("." + name + ".*.tmp")); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	}
	ok(t, at(t, dir, "lock", "n", "--", "true"))
	ok(t, at(t, dir, "shutdown"))
	d.wait()
}

// TestKilledInitsAndChangesOfTheConfiguration kills the program itself, at drawn moments: whatever is left, what is run next works.
func TestKilledInitsAndChangesOfTheConfiguration(t *testing.T) {
	t.Parallel()
	base := shortDir(t)
	for i := range 8 {
		dir := filepath.Join(base, strconv.Itoa(i))
		kill := func(args ...string) {
			p := command(t, nil, append([]string{"--path", dir}, args...)...).start()
			select {
			case <-p.ended:
			case <-time.After(time.Duration(5*i) * time.Millisecond): // not to let something happen, but to vary what has
				p.Process.Kill()
				p.wait()
			}
		}
		kill("init", "--profile", "test")
		if code, _, says := here("--path", dir, "init", "--profile", "test"); code != exitOK && !strings.Contains(says, "initialised already") {
			t.Errorf("init killed after %d ms; then: exit %d, %s", 5*i, code, says)
		}
		kill("overlay", "admin", "init")
		if code, _, says := here("--path", dir, "overlay", "admin", "init"); code != exitOK && !strings.Contains(says, "--new-key makes another") {
			t.Errorf("overlay admin init killed after %d ms; then: exit %d, %s", 5*i, code, says)
		}
		kill("config", "set", "network.conns_high", "555")
		c, err := config.Load(node.ConfigFile(dir), nil, nil)
		if high := c.Network.ConnsHigh; err != nil || high != 555 && high != 192 {
			t.Errorf("config set killed after %d ms: %d, %v", 5*i, high, err)
		}
	}
}
