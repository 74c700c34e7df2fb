package lockservice

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestReadersShareAndWritersAreNotOvertaken(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b, c, d := w.peer(1), w.peer(2), w.peer(3), w.peer(4)
		first, err := a.RLock(t.Context(), "n")
		second, err2 := b.RLock(t.Context(), "n")
		if err != nil || err2 != nil || first.Token() != second.Token() {
			t.Fatalf("%v, %v; tokens %v and %v", err, err2, first.Token(), second.Token())
		}
		if _, err := c.TryLock(t.Context(), "n"); !errors.Is(err, ErrLocked) {
			t.Errorf("alone beside those who share: %v", err)
		}
		written := make(chan *Handle)
		go func() { written <- mustLock(t, c, "n") }()
		synctest.Wait()
		time.Sleep(2 * w.delay)
		if _, err := d.TryRLock(t.Context(), "n"); !errors.Is(err, ErrLocked) {
			t.Errorf("a reader overtakes a writer: %v", err)
		}
		read := make(chan *Handle)
		go func() {
			h, err := d.RLock(t.Context(), "n")
			if err != nil {
				t.Error(err)
			}
			read <- h
		}()
		time.Sleep(2 * w.delay)
		if i := mustInfo(t, a, "n"); !i.Shared || i.Holding != 2 || len(i.Holders) != 2 || i.Waiting != 2 || i.Waiters[0].Shared || !i.Waiters[1].Shared {
			t.Errorf("%+v", i)
		}
		mustRelease(t, first)
		mustRelease(t, second)
		writer := <-written
		if writer.Token() <= first.Token() {
			t.Errorf("token %v after %v", writer.Token(), first.Token())
		}
		mustRelease(t, writer)
		reader := <-read
		if reader.Token() <= writer.Token() {
			t.Errorf("token %v after %v", reader.Token(), writer.Token())
		}
		mustRelease(t, reader)
	})
}

func TestSemaphoreHasSoManyHolders(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		const permits, workers = 3, 9
		var mu sync.Mutex
		var holding, most int
		tokens := make(map[Token]bool)
		var wg sync.WaitGroup
		for i := range workers {
			p := w.peer(byte(i + 1))
			wg.Go(func() {
				for range 3 {
					h, err := p.Semaphore("n", permits).Acquire(t.Context())
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					holding++
					most = max(most, holding)
					if tokens[h.Token()] {
						t.Errorf("token %v twice", h.Token())
					}
					tokens[h.Token()] = true
					mu.Unlock()
					time.Sleep(300 * time.Millisecond)
					mu.Lock()
					holding--
					mu.Unlock()
					mustRelease(t, h)
				}
			})
		}
		wg.Wait()
		if most != permits {
			t.Errorf("%d held it at a time", most)
		}
	})
}

func TestNameIsOneThingAtATime(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		p, q := w.peer(1), w.peer(2)
		h, err := p.Semaphore("n", 3).Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for want, ask := range map[string]func() (*Handle, error){
			"semaphore of 5": func() (*Handle, error) { return q.Semaphore("n", 5).Acquire(t.Context()) },
			"a lock":         func() (*Handle, error) { return q.Lock(t.Context(), "n") },
			"as a lock":      func() (*Handle, error) { return q.RLock(t.Context(), "n") },
			"semaphore of 4": func() (*Handle, error) { return q.Semaphore("n", 4).TryAcquire(t.Context()) },
		} {
			_, err := ask()
			if !errors.Is(err, ErrMode) || !strings.Contains(err.Error(), `lock "n"`) || !strings.Contains(err.Error(), "semaphore of 3") || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %v", want, err)
			}
		}
		for _, n := range []int{0, -1, PermitsMax + 1} {
			sent := q.client.commands()
			if _, err := q.Semaphore("m", n).Acquire(t.Context()); !errors.Is(err, ErrShape) || q.client.commands() != sent {
				t.Errorf("%d permits: %v", n, err)
			}
		}
		mustRelease(t, h)
		mustRelease(t, mustLock(t, q, "n")) // nobody has it: it becomes what is asked for
		if _, err := q.Lock(t.Context(), "n", WithLockDelay(LockDelayMax+1)); !errors.Is(err, ErrShape) {
			t.Errorf("lock delay: %v", err)
		}
		if _, err := q.Lock(t.Context(), "n", WithValue(strings.Repeat("v", ValueBytesMax+1))); !errors.Is(err, ErrShape) {
			t.Errorf("value: %v", err)
		}
		if _, err := q.Lock(t.Context(), "n", WithValue("\xff")); !errors.Is(err, ErrShape) {
			t.Errorf("value: %v", err)
		}
	})
}

// Who holds a lock that is taken away hears of it at once, and not when its lease is renewed, a third of the TTL later, or over.
func TestBrokenHoldsHearOfItAtOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		p, q, operator := w.peer(1), w.peer(2), w.peer(3)
		short := mustLock(t, p, "short", WithTTL(time.Minute))
		mustRelease(t, short) // so that nobody listens for it
		share := func(p *peer) *Handle {
			h, err := p.RLock(t.Context(), "shared", WithTTL(time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			return h
		}
		held := []*Handle{
			mustLock(t, p, "n", WithTTL(time.Minute)), mustLock(t, p, "fixed", WithTTL(time.Minute), WithoutRenewal()),
			share(p), share(q),
		}
		waits := make(chan *Handle)
		go func() { waits <- mustLock(t, q, "n", WithTTL(time.Minute)) }()
		time.Sleep(5 * time.Second)
		for _, h := range held[:3] {
			if _, err := operator.Break(t.Context(), h.Name(), h.Token()); err != nil {
				t.Fatal(err)
			}
		}
		broken := time.Now()
		for i, h := range held {
			<-h.Context().Done()
			if err := context.Cause(h.Context()); time.Since(broken) > time.Second || !errors.Is(err, ErrLost) || !errors.Is(err, ErrNotHeld) {
				t.Errorf("hold %d of %q: %v after it was broken: %v", i, h.Name(), time.Since(broken), err)
			}
		}
		next := <-waits
		time.Sleep(5 * time.Second)
		if _, err := operator.Break(t.Context(), "n", next.Token()); err != nil { // which came out of the queue
			t.Fatal(err)
		}
		broken = time.Now()
		if <-next.Context().Done(); time.Since(broken) > time.Second {
			t.Errorf("the next holder hears of it after %v", time.Since(broken))
		}
		if n := len(p.backend.(*groupBackend).waiting); n != 0 {
			t.Errorf("%d still listen", n)
		}
	})
}

func TestBrokenLockGoesToTheNextAndIsRemembered(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		p, q, operator := w.peer(1), w.peer(2), w.peer(3)
		h := mustLock(t, p, "n", WithTTL(9*time.Second))
		if _, err := operator.Break(t.Context(), "n", h.Token()+1); !errors.Is(err, ErrNotHeld) {
			t.Errorf("another token: %v", err)
		}
		holder, err := operator.Break(t.Context(), "n", h.Token())
		if err != nil || holder.String() != h.Holder() {
			t.Fatalf("%v, %v; held by %v", holder, err, h.Holder())
		}
		next := mustLock(t, q, "n")
		if next.Token() <= h.Token() {
			t.Errorf("token %v after %v", next.Token(), h.Token())
		}
		i := mustInfo(t, q, "n")
		if len(i.Breaks) != 1 || i.Breaks[0].Token != h.Token() || i.Breaks[0].Holder != holder || i.Breaks[0].By.Session == "" || i.Breaks[0].At.IsZero() {
			t.Errorf("%+v", i.Breaks)
		}
		<-h.Context().Done() // at its next renewal
		if err := context.Cause(h.Context()); !errors.Is(err, ErrLost) || !errors.Is(err, ErrNotHeld) {
			t.Errorf("the broken hold ended with %v", err)
		}
		if err := h.Release(t.Context()); !errors.Is(err, ErrLost) {
			t.Errorf("its release: %v", err)
		}
		mustRelease(t, next)
		operator.Close()
		if _, err := operator.Break(t.Context(), "n", 1); !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

func TestLockDelayFollowsTheEndOfALease(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		p, q := w.peer(1), w.peer(2)
		h := mustLock(t, p, "n", WithTTL(2*time.Second), WithLockDelay(30*time.Second))
		p.client.set(func() { p.client.cut = true })
		start := time.Now()
		next := mustLock(t, q, "n")
		if d := time.Since(start); d < 30*time.Second || h.Context().Err() == nil {
			t.Errorf("granted after %v", d)
		}
		mustRelease(t, next)
	})
}

// A leader that is held up is succeeded, and finds out before it can act again.
func TestLeaderThatPausesIsSucceeded(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		p, q, o := w.peer(1), w.peer(2), w.peer(3)
		seen, err := o.Observe(t.Context(), "n")
		if err != nil {
			t.Fatal(err)
		}
		if l := <-seen; l != (Leader{}) {
			t.Errorf("before: %+v", l)
		}
		first, err := p.Elect(t.Context(), "n", "first", WithTTL(3*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		if l := <-seen; !l.Elected || l.Value != "first" || l.Term != first.Term() {
			t.Errorf("%+v", l)
		}
		p.client.set(func() { p.client.cut = true }) // as when it does not run
		second, err := q.Elect(t.Context(), "n", "second")
		if err != nil {
			t.Fatal(err)
		}
		if first.Context().Err() == nil || second.Term() <= first.Term() {
			t.Errorf("two leaders, terms %v and %v", first.Term(), second.Term())
		}
		for l := range seen {
			if l.Value == "second" {
				if l.Term != second.Term() || l.Holder.String() != second.Holder() {
					t.Errorf("%+v", l)
				}
				break
			}
			if l.Elected {
				t.Errorf("%+v", l)
			}
		}
		if err := second.Resign(t.Context()); err != nil {
			t.Error(err)
		}
		if l := <-seen; l.Elected {
			t.Errorf("after it resigned: %+v", l)
		}
		o.client.set(func() { o.client.down = true })
		if l := <-seen; !errors.Is(l.Err, ErrNoQuorum) {
			t.Errorf("while the group is away: %+v", l)
		}
		o.Close()
		for range seen { // it is closed
		}
		if _, err := o.Observe(t.Context(), "n"); !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

func TestWatchTellsChangesOnly(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		p, o := w.peer(1), w.peer(2)
		ctx, cancel := context.WithCancel(t.Context())
		events, err := o.Watch(ctx, "n")
		if err != nil {
			t.Fatal(err)
		}
		if ev := <-events; ev.Info.Held {
			t.Errorf("%+v", ev)
		}
		h := mustLock(t, p, "n", WithTTL(3*time.Second))
		if ev := <-events; ev.Info.Token != h.Token() {
			t.Errorf("%+v", ev)
		}
		time.Sleep(10 * time.Second) // renewals are no change
		select {
		case ev := <-events:
			t.Errorf("%+v", ev)
		default:
		}
		mustRelease(t, h)
		last := mustLock(t, p, "n")
		time.Sleep(3 * WatchEvery) // of what nobody has read, the latest is told
		if ev := <-events; ev.Info.Token != last.Token() {
			t.Errorf("%+v", ev)
		}
		cancel()
		if ev, open := <-events; open {
			t.Errorf("after its end: %+v", ev)
		}
		if _, err := o.Watch(t.Context(), ""); !errors.Is(err, ErrName) {
			t.Error(err)
		}
		mustRelease(t, last)
	})
}

func TestLockAllNeverDeadlocks(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var wg sync.WaitGroup
		for i := range 4 {
			p := w.peer(byte(i + 1))
			names := []string{"a", "b", "c", "b"}
			if i%2 == 1 {
				slices.Reverse(names)
			}
			wg.Go(func() {
				for range 5 {
					all, err := p.LockAll(t.Context(), names...)
					if err != nil {
						t.Error(err)
						return
					}
					if got := fmt.Sprintf("%d %s %s %v", len(all.All()), all.All()[0].Name(), all.Handle("c").Name(), all.Handle("d")); got != "3 a c <nil>" {
						t.Error(got)
					}
					time.Sleep(50 * time.Millisecond)
					if err := all.Release(t.Context()); err != nil {
						t.Error(err)
					}
					if !errors.Is(context.Cause(all.Context()), ErrNotHeld) || all.Release(t.Context()) != nil {
						t.Errorf("after the release: %v", context.Cause(all.Context()))
					}
				}
			})
		}
		wg.Wait()
	})
}

func TestLockAllTakesAllOrNone(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		p, q := w.peer(1), w.peer(2)
		b := mustLock(t, q, "b")
		if _, err := p.LockSet(t.Context(), []string{"b", "a"}, WithWait(time.Second)); !errors.Is(err, ErrWait) {
			t.Errorf("one is held by another: %v", err)
		}
		if i := mustInfo(t, q, "a"); i.Held {
			t.Errorf("the other is kept: %+v", i)
		}
		// One that is lost while another is waited for.
		failed := make(chan error)
		go func() {
			_, err := p.LockSet(t.Context(), []string{"a", "b"}, WithTTL(2*time.Second))
			failed <- err
		}()
		time.Sleep(time.Second)
		if _, err := q.Break(t.Context(), "a", mustInfo(t, q, "a").Token); err != nil {
			t.Fatal(err)
		}
		if err := <-failed; !errors.Is(err, ErrLost) {
			t.Errorf("one of them is lost: %v", err)
		}
		time.Sleep(time.Second)
		if i := mustInfo(t, q, "b"); i.Waiting != 0 {
			t.Errorf("it still waits: %+v", i)
		}
		mustRelease(t, b)
		// Once it has all, the loss of one ends all.
		all, err := p.LockAll(t.Context(), "a", "b")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := q.Break(t.Context(), "a", all.Handle("a").Token()); err != nil {
			t.Fatal(err)
		}
		<-all.Context().Done()
		if !errors.Is(context.Cause(all.Context()), ErrLost) {
			t.Errorf("one of them is lost: %v", context.Cause(all.Context()))
		}
		if err := all.Release(t.Context()); !errors.Is(err, ErrLost) {
			t.Error(err)
		}
		for want, names := range map[error][]string{ErrName: {}, ErrLimit: slices.Collect(func(yield func(string) bool) {
			for i := range LockAllMax + 1 {
				if !yield(fmt.Sprint(i)) {
					return
				}
			}
		})} {
			if _, err := p.LockAll(t.Context(), names...); !errors.Is(err, want) {
				t.Errorf("%d names: %v", len(names), err)
			}
		}
		sent := p.client.commands()
		if _, err := p.LockAll(t.Context(), "a", ""); !errors.Is(err, ErrName) || p.client.commands() != sent {
			t.Errorf("a bad name: %v", err)
		}
	})
}

func TestLockerExcludesInOneProcessToo(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		l, other := w.peer(1).Locker("n"), w.peer(2).Locker("n")
		var wg sync.WaitGroup
		v := 0
		for i := range 6 {
			l := []*Locker{l, other}[i%2]
			wg.Go(func() {
				l.Lock()
				defer l.Unlock()
				if l.Handle() == nil {
					t.Error("no handle while it is locked")
				}
				was := v
				time.Sleep(100 * time.Millisecond)
				v = was + 1
			})
		}
		wg.Wait()
		if v != 6 || l.Handle() != nil {
			t.Errorf("%d of 6, handle %v", v, l.Handle())
		}
		panics := func(what string, f func()) {
			t.Helper()
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", what)
				}
			}()
			f()
		}
		panics("unlock of what is not locked", l.Unlock)
		bad := w.peer(3)
		panics("a bad name", bad.Locker("").Lock)
		bad.Close()
		panics("after Close", bad.Locker("n").Lock)
	})
}
