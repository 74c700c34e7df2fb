package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"latchkey/internal/history"
	"latchkey/lockservice"
	"latchkey/node/api"
)

// dialed returns a session of the lock service at the daemon of dir.
func dialed(t *testing.T, dir string) lockservice.Backend {
	t.Helper()
	c, err := api.Dial(filepath.Join(dir, "api.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.LockBackend()
}

// until returns a context that ends with the test, or when it has taken too long.
func until(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), waitMax)
	t.Cleanup(cancel)
	return ctx
}

// take takes a lock and leaves it to its lease.
func take(t *testing.T, b lockservice.Backend, name string, ttl time.Duration) lockservice.Grant {
	t.Helper()
	g, err := b.Acquire(until(t), lockservice.Request{Name: name, TTL: ttl})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// holds expects that a grant of before still stands.
func holds(t *testing.T, b lockservice.Backend, g lockservice.Grant) {
	t.Helper()
	i, err := b.Info(until(t), g.Name)
	if err != nil || !i.Held || i.Token != g.Token {
		t.Errorf("%s was granted with token %v, and now: %+v, %v", g.Name, g.Token, i, err)
	}
	if _, err := b.Acquire(until(t), lockservice.Request{Name: g.Name, TTL: time.Second, Try: true}); !errors.Is(err, lockservice.ErrLocked) {
		t.Errorf("%s is held, and another one gets %v", g.Name, err)
	}
}

// A sole founder has everything that it ever acknowledged, however its daemon ended.
func TestFounderComesBackWithItsLockTable(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	initTest(t, dir)
	d, _ := startDaemon(t, dir, nil)
	b := dialed(t, dir)
	const ttl = 8 * time.Second
	before := time.Now()
	lapses := take(t, b, "lapses", ttl)
	kept := take(t, b, "kept", 50*time.Second)
	var last lockservice.Token
	for round, end := range []func(){
		func() { d.Process.Kill(); d.wait() },
		func() {
			ok(t, at(t, dir, "shutdown"))
			if d.wait() != 0 {
				t.Errorf("shutdown: exit %d, %s", d.code, d.err.String())
			}
		},
		func() { d.Process.Kill(); d.wait() },
	} {
		for range 5 {
			g := take(t, b, "rising", ttl)
			if err := b.Release(until(t), g); err != nil {
				t.Fatal(err)
			}
			if g.Token <= last {
				t.Errorf("round %d: token %v after %v", round, g.Token, last)
			}
			last = g.Token
		}
		end()
		d, _ = startDaemon(t, dir, nil)
		b = dialed(t, dir)
		holds(t, b, kept)
	}
	// A lease ends by log time, which does not run while nobody leads: it may get longer by a restart, and not shorter.
	again := take(t, b, "lapses", ttl)
	if took := time.Since(before); took < ttl || again.Token <= lapses.Token {
		t.Errorf("a lease of %v ended after %v; token %v after %v", ttl, took, again.Token, lapses.Token)
	}
}

// However early in its start a daemon is killed, the next one starts: also the first start of a joiner, which makes its store.
func TestDaemonKilledWhileItStarts(t *testing.T) {
	t.Parallel()
	base := shortDir(t)
	founder := filepath.Join(base, "a")
	initTest(t, founder)
	d, _ := startDaemon(t, founder, nil)
	token, _ := invited(t, founder)
	take(t, dialed(t, founder), "n", time.Second)
	d.Process.Kill()
	d.wait()
	for i := range 12 {
		joiner := filepath.Join(base, fmt.Sprint("j", i))
		ok(t, fed(t, joiner, token+"\n", "join", "-", "--profile", "test"))
		for _, dir := range []string{founder, joiner} {
			p := command(t, nil, "--path", dir, "daemon").start()
			select {
			case <-p.ended:
				t.Fatalf("%s: exit %d, %s", dir, p.code, p.err.String())
			case <-time.After(time.Duration(i) * 8 * time.Millisecond): // what comes at this time is the machine's choice
			}
			p.Process.Kill()
			p.wait()
		}
		d, _ = startDaemon(t, joiner, nil)
		d.Process.Kill()
		d.wait()
	}
	startDaemon(t, founder, nil)
	if g := take(t, dialed(t, founder), "n", time.Second); g.Token < 2 {
		t.Errorf("token %v", g.Token)
	}
}

// load takes and gives back locks through a daemon until the daemon is gone or stop is closed, and writes down what it is told.
func load(ctx context.Context, h *history.History, client int, b lockservice.Backend, names []string, ttl time.Duration, done *atomic.Int64) {
	for i := client; ctx.Err() == nil; i++ {
		name := names[i%len(names)]
		id := h.Call(client, history.Acquire(name))
		g, err := b.Acquire(ctx, lockservice.Request{Name: name, TTL: ttl})
		if err == nil && g.Waited {
			err = b.Renew(ctx, g)
		}
		if err != nil {
			if errors.Is(err, lockservice.ErrLocked) || errors.Is(err, lockservice.ErrNotHeld) {
				h.NoEffect(id)
				continue
			}
			return // it stays open
		}
		h.Return(id, history.Answer{Token: uint64(g.Token)})
		id = h.Call(client, history.Release(name, uint64(g.Token)))
		switch err := b.Release(ctx, g); {
		case err == nil:
			h.Return(id, history.Answer{OK: true})
		case errors.Is(err, lockservice.ErrNotHeld):
			h.Return(id, history.Answer{})
		default:
			return
		}
		done.Add(1)
	}
}

// Every member of every group is killed at once, amid work, and nothing that was acknowledged is lost.
func TestAllKilledAtOnceComeBackWithEveryLockAndToken(t *testing.T) {
	t.Parallel()
	base := shortDir(t)
	dirs := []string{filepath.Join(base, "a"), filepath.Join(base, "b"), filepath.Join(base, "c")}
	ok(t, at(t, dirs[0], "init", "--profile", "test", "--f", "1"))
	token := ""
	daemons := make([]*process, len(dirs))
	for i, dir := range dirs {
		if i > 0 {
			ok(t, fed(t, dir, token+"\n", "join", "-", "--profile", "test"))
		}
		daemons[i], _ = startDaemon(t, dir, nil)
		if i == 0 {
			token, _ = invited(t, dir)
		}
	}
	meeting(t, dirs...)

	const ttl = 4 * time.Second // nobody works that long
	names := []string{"n0", "n1", "n2", "n3", "n4", "n5", "n6"}
	h := history.New()
	var kept []lockservice.Grant
	client := 0
	for round := range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		var done atomic.Int64
		first := client
		for _, dir := range dirs {
			b := dialed(t, dir)
			for _, g := range kept {
				holds(t, b, g)
			}
			for range 2 {
				client++
				id := client
				wg.Go(func() { load(ctx, h, id, b, names, ttl, &done) })
			}
			kept = append(kept, take(t, b, fmt.Sprintf("kept%d by %s", round, filepath.Base(dir)), 50*time.Second))
		}
		eventually(t, "there was load", func() bool { return done.Load() >= 60 })
		if round == 2 {
			cancel()
			wg.Wait()
			break
		}
		for _, d := range daemons {
			d.Process.Kill()
		}
		for _, d := range daemons {
			d.wait()
		}
		for c := first + 1; c <= client; c++ {
			h.Killed(c) // whatever they hold ends with its lease
		}
		cancel()
		wg.Wait()
		for i, dir := range dirs {
			daemons[i], _ = startDaemon(t, dir, nil)
		}
	}
	if err := h.CheckLock(time.Minute).Err(); err != nil {
		t.Error(err)
	}
	if err := h.CheckTokens(); err != nil {
		t.Error(err)
	}
	for _, dir := range dirs {
		b := dialed(t, dir)
		for _, g := range kept {
			holds(t, b, g)
		}
	}
}

// copyTree copies the files below a directory, sockets aside.
func copyTree(t *testing.T, to, from string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(from, path)
		switch target := filepath.Join(to, rel); {
		case err != nil:
			return err
		case e.IsDir():
			return os.MkdirAll(target, 0o700)
		case e.Type().IsRegular():
			b, err := os.ReadFile(path)
			return errors.Join(err, os.WriteFile(target, b, 0o600))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A copy of a peer's directory is refused, while the daemon of the original runs and later, until somebody says that it is restored.
func TestCopiedDirectoryIsRefused(t *testing.T) {
	t.Parallel()
	base := shortDir(t)
	a, b := filepath.Join(base, "a"), filepath.Join(base, "b")
	initTest(t, a)
	startDaemon(t, a, nil)
	token, _ := invited(t, a)
	ok(t, fed(t, b, token+"\n", "join", "-", "--profile", "test"))
	d, _ := startDaemon(t, b, nil)
	lockFrom(t, a, b)
	free := []string{"--listen", "/ip4/127.0.0.1/tcp/0"}
	for _, of := range []string{a, b} {
		copyTree(t, of+"2", of)
		expect(t, at(t, of+"2", append([]string{"daemon"}, free...)...), exitFailure, "copy of a store", "--moved", "--restored", of+"2/store")
	}
	expect(t, at(t, a+"2", append([]string{"daemon", "--restored"}, free...)...), exitFailure, "alone founded", "--moved", "run the original")
	for _, flags := range [][]string{{"--restored", "--volatile"}, {"--moved", "--volatile"}, {"--restored", "--moved"}} {
		expect(t, at(t, b+"2", append([]string{"daemon"}, flags...)...), exitUsage, "exclude each other")
	}

	ok(t, at(t, b, "shutdown"))
	d.wait()
	restored, _ := startDaemon(t, b+"2", nil, "--restored")
	was := ok(t, at(t, b+"2", "id")).out.String()
	ok(t, at(t, b+"2", "shutdown"))
	restored.wait()
	if says := restored.err.String(); !strings.Contains(says, "the store has the new id ") || !strings.Contains(says, "Leave --restored out") {
		t.Errorf("it says %q", says)
	}
	startDaemon(t, b+"2", nil)
	if is := ok(t, at(t, b+"2", "id")).out.String(); is != was {
		t.Errorf("it was %s, and without --restored it is %s", was, is)
	}
}

// A founder that moves to another disk takes its overlay along: its store looks like a copy.
func TestMovedFounderGoesOn(t *testing.T) {
	t.Parallel()
	base := shortDir(t)
	from, to := filepath.Join(base, "from"), filepath.Join(base, "to")
	initTest(t, from)
	d, _ := startDaemon(t, from, nil)
	was := ok(t, at(t, from, "id")).out.String()
	ok(t, at(t, from, "lock", "n", "--", "true"))
	ok(t, at(t, from, "shutdown"))
	d.wait()
	copyTree(t, to, from)
	if err := os.RemoveAll(from); err != nil {
		t.Fatal(err)
	}
	expect(t, at(t, to, "daemon"), exitFailure, "copy of a store", "--moved")
	d, _ = startDaemon(t, to, nil, "--moved")
	if is := ok(t, at(t, to, "id")).out.String(); is != was {
		t.Errorf("it was %s, and moved it is %s", was, is)
	}
	ok(t, at(t, to, "lock", "n", "--", "true"))
	ok(t, at(t, to, "shutdown"))
	d.wait()
	startDaemon(t, to, nil)
}

func TestVolatileDaemon(t *testing.T) {
	t.Parallel()
	base := shortDir(t)
	a, b := filepath.Join(base, "a"), filepath.Join(base, "b")
	initTest(t, a)
	expect(t, at(t, a, "daemon", "--volatile"), exitFailure, "store.volatile", "founder", a+"/store")
	startDaemon(t, a, nil)
	token, _ := invited(t, a)
	ok(t, fed(t, b, token+"\n", "join", "-", "--profile", "test"))
	for _, how := range [][]string{{"--volatile"}, nil} {
		var env []string
		if how == nil {
			env = []string{"LATCHKEY_STORE_VOLATILE=true"}
		}
		d, _ := startDaemon(t, b, env, how...)
		if how != nil { // what it hosts is lost with it
			lockFrom(t, a, b)
		}
		ok(t, at(t, b, "shutdown"))
		d.wait()
		if _, err := os.Stat(filepath.Join(b, "store")); err == nil {
			t.Error("a volatile daemon wrote a store")
		}
	}
	d, _ := startDaemon(t, b, nil)
	ok(t, at(t, b, "shutdown"))
	d.wait()
	expect(t, at(t, b, "daemon", "--volatile"), exitFailure, "store.volatile", b+"/store")
}
