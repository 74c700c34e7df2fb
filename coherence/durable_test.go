package coherence

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"latchkey/coherence/access"
	"latchkey/coherence/durable"
	"latchkey/coherence/durable/copies"
	"latchkey/coherence/durable/durabletest"
	"latchkey/coherence/durable/store"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
	"latchkey/internal/driver"
)

// durables is the durable application of several nodes of one group that is led in this process, in virtual time.
func durables(t *testing.T, n int, f func(t *testing.T, leader *durabletest.Leader, apps []*Durable)) {
	synctest.Test(t, func(t *testing.T) {
		params := durable.Params{Lease: 2 * time.Second, Drift: 10_000}
		ctx, cancel := context.WithCancel(context.Background())
		leader := durabletest.NewLeader(ctx, params, func(err error) { t.Error(err) })
		var apps []*Durable
		for i := range n {
			self := protocol.NodeRef{ID: keyspace.NodeID{byte(i + 1)}, Inc: 1}
			s := &Service{}
			s.durable = copies.New(copies.Config{Self: self, Clock: driver.NewClock(), Params: params, Router: leader.Link(self.ID, func(g keyspace.Prefix, m []durable.Message) {
				s.durable.Receive(g, m)
			})})
			d, err := s.Durable("app")
			if err != nil {
				t.Fatal(err)
			}
			apps = append(apps, d)
		}
		defer func() {
			for _, d := range apps {
				d.s.durable.Close()
			}
			cancel()
			time.Sleep(time.Second)
		}()
		time.Sleep(3 * time.Second)
		f(t, leader, apps)
	})
}

func increment(b []byte) ([]byte, error) {
	n, _ := strconv.Atoi(string(b))
	return strconv.AppendInt(nil, int64(n)+1, 10), nil
}

func TestDurableObjectsAreWrittenOnConditions(t *testing.T) {
	durables(t, 2, func(t *testing.T, _ *durabletest.Leader, apps []*Durable) {
		ctx := t.Context()
		x, y := apps[0].Object("x"), apps[1].Object("x")
		if b, err := x.Get(ctx); b != nil || err != nil {
			t.Fatalf("what nobody wrote: %q, %v", b, err)
		}
		v, err := x.Write(ctx, []byte("1"), IfAbsent())
		if err != nil || v != 1 {
			t.Fatalf("created as %d: %v", v, err)
		}
		var conflict *ConflictError
		if _, err := y.Write(ctx, nil, IfAbsent()); !errors.As(err, &conflict) || !errors.Is(err, ErrConflict) || string(conflict.Found.Bytes) != "1" || conflict.Found.Version != v {
			t.Errorf("created twice: %v", err)
		}
		if _, err := y.CompareAndSwap(ctx, v+1<<40, []byte("2")); !errors.Is(err, ErrConflict) {
			t.Errorf("a version of another generation: %v", err)
		}
		if v, err = y.CompareAndSwap(ctx, v, []byte{}); err != nil || v != 2 {
			t.Errorf("%d, %v", v, err)
		}
		if got, err := x.Read(ctx); err != nil || !got.Exists || got.Bytes == nil || len(got.Bytes) != 0 || got.Version != v {
			t.Errorf("an empty value: %+v, %v", got, err)
		}
		if existed, err := y.Delete(ctx, IfVersion(1)); existed || !errors.Is(err, ErrConflict) {
			t.Errorf("deleted another version: %v, %v", existed, err)
		}
		if existed, err := y.Delete(ctx); !existed || err != nil {
			t.Errorf("deleted: %v, %v", existed, err)
		}
		if existed, err := y.Delete(ctx); existed || err != nil {
			t.Errorf("deleted twice: %v, %v", existed, err)
		}
		if existed, err := x.Delete(ctx, IfVersion(3)); existed || err != nil {
			t.Errorf("deleted what was deleted: %v, %v", existed, err)
		}
		if got, err := x.Read(ctx); err != nil || got.Exists || got.Version != 3 {
			t.Errorf("after the delete: %+v, %v", got, err)
		}
		if v, err := x.Write(ctx, []byte("3"), IfVersion(3)); err != nil || v != 4 {
			t.Errorf("created anew as %d, %v", v, err)
		}
	})
}

func TestDurableNamesValuesAndTimesAreBounded(t *testing.T) {
	durables(t, 1, func(t *testing.T, _ *durabletest.Leader, apps []*Durable) {
		ctx := t.Context()
		for _, name := range []string{"", "a\x00", "a\nb", "/a", "a/", "a//b", "..", "a/../b", "./a", strings.Repeat("x", NameBytesMax+1), "\xff"} {
			if err := apps[0].Object(name).Set(ctx, nil); !errors.Is(err, ErrName) {
				t.Errorf("%.20q: %v", name, err)
			}
			if name != "" && name != "a/" {
				if _, err := apps[0].Directory(name).List(ctx, "", 0); !errors.Is(err, ErrName) {
					t.Errorf("directory %.20q: %v", name, err)
				}
			}
		}
		if _, err := apps[0].s.Durable("a/b"); !errors.Is(err, ErrName) {
			t.Errorf("an application with a slash: %v", err)
		}
		x := apps[0].Object(strings.Repeat("x", NameBytesMax))
		if err := x.Set(ctx, make([]byte, protocol.ValueMax)); err != nil {
			t.Errorf("the longest: %v", err)
		}
		if err := x.Set(ctx, make([]byte, protocol.ValueMax+1)); !errors.Is(err, ErrTooLarge) {
			t.Errorf("too long a value: %v", err)
		}
		for ttl, ok := range map[time.Duration]bool{store.TTLMin: true, store.TTLMax: true, store.TTLMin - 1: false, store.TTLMax + 1: false, -1: false, 0: false} {
			if _, err := x.Write(ctx, nil, WithTTL(ttl)); (err == nil) != ok || !ok && !errors.Is(err, ErrTTL) {
				t.Errorf("%v: %v", ttl, err)
			}
		}
	})
}

// TestDurableUpdatesCount: updates of several peers are atomic, through elections and losses, and one that is asked to runs its function once.
func TestDurableUpdatesCount(t *testing.T) {
	durables(t, 4, func(t *testing.T, leader *durabletest.Leader, apps []*Durable) {
		const each = 25
		leader.Lose(0.03)
		var wg sync.WaitGroup
		for i, d := range apps {
			o := d.Object("n")
			wg.Go(func() {
				for range each {
					var err error
					if i%2 == 0 {
						err = o.Update(t.Context(), increment)
					} else {
						ran := 0
						for err = ErrConflict; errors.Is(err, ErrConflict); {
							ran = 0
							err = o.UpdateOnce(t.Context(), func(b []byte) ([]byte, error) { ran++; return increment(b) })
						}
						if ran != 1 {
							t.Errorf("ran %d times", ran)
						}
					}
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		go func() {
			for range 3 {
				time.Sleep(2 * time.Second)
				leader.Elect()
			}
		}()
		wg.Wait()
		leader.Lose(0)
		time.Sleep(10 * time.Second)
		if b, err := apps[0].Object("n").Get(t.Context()); string(b) != fmt.Sprint(4*each) || err != nil {
			t.Errorf("%s, %v", b, err)
		}
	})
}

// TestFunctionsOfDurableUpdatesMayFail: what they do to themselves they do not do to the object, or to the next.
func TestFunctionsOfDurableUpdatesMayFail(t *testing.T) {
	durables(t, 2, func(t *testing.T, _ *durabletest.Leader, apps []*Durable) {
		ctx := t.Context()
		x := apps[0].Object("x")
		x.Set(ctx, []byte("1"))
		mine := errors.New("mine")
		for name, update := range map[string]func(context.Context, func([]byte) ([]byte, error)) error{"Update": x.Update, "UpdateOnce": x.UpdateOnce} {
			if err := update(ctx, func([]byte) ([]byte, error) { return nil, mine }); err != mine {
				t.Errorf("%s: %v", name, err)
			}
			var p *access.PanicError
			if err := update(ctx, func([]byte) ([]byte, error) { panic("mine") }); !errors.As(err, &p) || p.Value != "mine" {
				t.Errorf("%s: %v", name, err)
			}
			if err := update(ctx, func([]byte) ([]byte, error) { return make([]byte, protocol.ValueMax+1), nil }); !errors.Is(err, ErrTooLarge) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := apps[1].Object("x").UpdateOnce(ctx, increment); err != nil {
			t.Error(err)
		}
		if b, _ := x.Get(ctx); string(b) != "2" {
			t.Errorf("%s", b)
		}
	})
}

// TestATurnThatWasLostWritesNothingOver (durable-objects.md section 14, test 14, the paused owner): its write fails iff somebody has written.
func TestATurnThatWasLostWritesNothingOver(t *testing.T) {
	for _, written := range []bool{false, true} {
		durables(t, 2, func(t *testing.T, leader *durabletest.Leader, apps []*Durable) {
			ctx := t.Context()
			x := apps[0].Object("x")
			h, err := x.Hold(ctx)
			if err != nil {
				t.Fatal(err)
			}
			leader.Cut(keyspace.NodeID{1}, true)
			if written {
				began := time.Now()
				if err := apps[1].Object("x").UpdateOnce(ctx, increment); err != nil || time.Since(began) > 4*time.Second {
					t.Errorf("after %v: %v", time.Since(began), err)
				}
			} else {
				time.Sleep(10 * time.Second)
			}
			leader.Cut(keyspace.NodeID{1}, false)
			if _, err := h.Commit(ctx, []byte("late")); errors.Is(err, ErrConflict) != written || !written && err != nil {
				t.Errorf("somebody else has written: %v; %v", written, err)
			}
		})
	}
}

// TestAWatchTellsEveryVersionInOrder (durable-objects.md section 14, test 15): through changes of the leader and losses, and where it is too slow it says so.
func TestAWatchTellsEveryVersionInOrder(t *testing.T) {
	durables(t, 2, func(t *testing.T, leader *durabletest.Leader, apps []*Durable) {
		ctx, cancel := context.WithCancel(t.Context())
		x, y := apps[0].Object("x"), apps[1].Object("x")
		var mu sync.Mutex
		var seen []Change
		last := func() Change { mu.Lock(); defer mu.Unlock(); return seen[len(seen)-1] }
		done := make(chan error)
		slow := make(chan struct{})
		go func() {
			done <- y.Watch(ctx, 0, func(c Change) error {
				mu.Lock()
				seen = append(seen, c)
				mu.Unlock()
				if string(c.Bytes) == "slow" {
					<-slow
				}
				return nil
			})
		}()
		time.Sleep(time.Second)
		if c := last(); c.Exists || c.Version != 0 || c.Lagged {
			t.Fatalf("at first %+v", c)
		}
		leader.Lose(0.1)
		for i := range 20 {
			if err := x.Set(ctx, fmt.Append(nil, i)); err != nil {
				t.Fatal(err)
			}
			if i%5 == 0 {
				leader.Elect()
			}
			time.Sleep(8 * time.Second) // a lost message costs some repeats
			if c := last(); string(c.Bytes) != fmt.Sprint(i) || c.Version != Version(i+1) || c.Lagged {
				t.Fatalf("version %d is told as %+v", i+1, c)
			}
		}
		leader.Lose(0)
		x.Set(ctx, []byte("slow"))
		time.Sleep(5 * time.Second)
		for range 3 {
			x.Update(ctx, func([]byte) ([]byte, error) { return []byte("fast"), nil })
		}
		close(slow)
		time.Sleep(5 * time.Second)
		if c := last(); c.Version != 24 || !c.Lagged {
			t.Errorf("after a while %+v", c)
		}
		x.Delete(ctx)
		time.Sleep(5 * time.Second)
		if c := last(); c.Exists || c.Version != 25 || c.Lagged {
			t.Errorf("after the delete %+v", c)
		}
		for i := 1; i < len(seen); i++ {
			if a, b := seen[i-1].Version, seen[i].Version; b <= a || b != a+1 && !seen[i].Lagged {
				t.Errorf("%d after %d, lagged %v", b, a, seen[i].Lagged)
			}
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		for after, lagged := range map[Version]bool{24: false, 3: true} { // where one left off
			if err := y.Watch(t.Context(), after, func(c Change) error {
				if c.Version != 25 || c.Lagged != lagged {
					t.Errorf("after %d %+v", after, c)
				}
				return errors.New("enough")
			}); err == nil || err.Error() != "enough" {
				t.Error(err)
			}
		}
		// What is not there yet is refused, rather than waited for; of an object that is not there at all that is told.
		none := func(Change) error { return errors.New("told") }
		short, cancel := context.WithTimeout(t.Context(), time.Minute) // of the bubble
		defer cancel()
		for after, of := range map[Version]*DurableObject{26: y, 25 + 1<<40: y} {
			if err := of.Watch(short, after, none); !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), "version 25") {
				t.Errorf("after %d: %v", after, err)
			}
		}
		if err := apps[1].Object("z").Watch(t.Context(), 9, func(c Change) error {
			return fmt.Errorf("%d, %v, %v", c.Version, c.Exists, c.Lagged)
		}); err == nil || err.Error() != "0, false, true" {
			t.Error(err)
		}
		if renewals := leader.Sent(durable.Renew); renewals == 0 {
			t.Error("a watch does not keep its lease")
		}
	})
}

// TestAWatchTellsNothingBeforeOldCopiesAreGone: who hears of a version may tell a friend, whose read is to be no older.
func TestAWatchTellsNothingBeforeOldCopiesAreGone(t *testing.T) {
	durables(t, 3, func(t *testing.T, leader *durabletest.Leader, apps []*Durable) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		friend := apps[2].Object("x")
		go apps[1].Object("x").Watch(ctx, 0, func(c Change) error {
			if now, ok := friend.object.Load(); ok && now.Version < c.Version {
				t.Errorf("%d is told, and %d can be read", c.Version, now.Version)
			}
			return nil
		})
		for i := range 10 {
			friend.Get(ctx)
			friend.Get(ctx)
			leader.Cut(keyspace.NodeID{3}, i%2 == 0) // it acknowledges nothing
			apps[0].Object("x").Set(ctx, fmt.Append(nil, i))
			leader.Cut(keyspace.NodeID{3}, false)
		}
	})
}

func TestDurableObjectsExpire(t *testing.T) {
	durables(t, 2, func(t *testing.T, _ *durabletest.Leader, apps []*Durable) {
		ctx := t.Context()
		x, y := apps[0].Object("d/x"), apps[1].Object("d/x")
		x.Write(ctx, []byte("1"), WithTTL(5*time.Second))
		time.Sleep(4 * time.Second)
		if b, err := y.Get(ctx); string(b) != "1" || err != nil {
			t.Errorf("too early: %q, %v", b, err)
		}
		time.Sleep(2 * time.Second)
		if got, err := y.Read(ctx); got.Exists || err != nil || got.Version != 2 {
			t.Errorf("it stays: %+v, %v", got, err)
		}
		if l, err := apps[1].Directory("d").List(ctx, "", 0); len(l.Names) != 0 || err != nil {
			t.Errorf("%+v, %v", l, err)
		}
		// What is written in a turn may have one too, and no other condition.
		h, err := y.Hold(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, opt := range []WriteOption{WithTTL(time.Millisecond), IfAbsent()} {
			if _, err := h.Commit(ctx, nil, opt); err == nil {
				t.Error("a turn's write is made on another condition")
			}
		}
		if _, err := h.Commit(ctx, []byte("2"), WithTTL(5*time.Second)); err != nil {
			t.Error(err)
		}
		time.Sleep(4 * time.Second)
		if b, err := x.Get(ctx); string(b) != "2" || err != nil {
			t.Errorf("too early: %q, %v", b, err)
		}
		time.Sleep(2 * time.Second)
		if got, err := x.Read(ctx); got.Exists || err != nil || got.Version != 4 {
			t.Errorf("it stays: %+v, %v", got, err)
		}
	})
}

// TestADirectoryListsWhatThereIs: it changes with what is created and deleted, and not with what is written; it is paged and watched.
func TestADirectoryListsWhatThereIs(t *testing.T) {
	durables(t, 2, func(t *testing.T, _ *durabletest.Leader, apps []*Durable) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		d := apps[0].Directory("d")
		if d.Name() != "d/" || apps[0].Directory("").Name() != "" {
			t.Errorf("%q", d.Name())
		}
		var mu sync.Mutex
		var seen []string
		go apps[1].Directory("d/").Watch(ctx, 0, func(l Listing, lagged bool) error {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, fmt.Sprint(l.Names, lagged))
			return nil
		})
		time.Sleep(time.Second)
		list := func(after string, limit int, more bool, want ...string) Version {
			t.Helper()
			l, err := d.List(ctx, after, limit)
			if err != nil || fmt.Sprint(l.Names) != fmt.Sprint(want) || l.More != more {
				t.Errorf("%+v, %v; want %v", l, err, want)
			}
			return l.Version
		}
		list("", 0, false)
		for _, name := range []string{"d/b", "d/a", "d/c", "d/sub/x", "other"} {
			apps[0].Object(name).Set(ctx, nil)
			time.Sleep(time.Second)
		}
		v := list("", 0, false, "a", "b", "c")
		list("", 2, true, "a", "b")
		list("b", 2, false, "c")
		list("bb", 2, false, "c")
		list("c", 2, false)
		apps[0].Object("d/a").Set(ctx, []byte("1"))
		if now := list("", 0, false, "a", "b", "c"); now != v {
			t.Errorf("the listing of version %d has version %d after a write", v, now)
		}
		apps[1].Object("d/b").Delete(ctx)
		if now := list("", 0, false, "a", "c"); now != v+1 {
			t.Errorf("the listing of version %d has version %d after a delete", v, now)
		}
		time.Sleep(time.Second)
		if l, err := apps[0].Directory("").List(ctx, "", 0); err != nil || fmt.Sprint(l.Names) != "[other]" {
			t.Errorf("%+v, %v", l, err)
		}
		mu.Lock()
		defer mu.Unlock()
		if got := fmt.Sprint(seen); got != "[[] false [b] false [a b] false [a b c] false [a c] false]" {
			t.Errorf("a watch is told %s", got)
		}
	})
}

func TestVarsOfDurableObjects(t *testing.T) {
	durables(t, 2, func(t *testing.T, _ *durabletest.Leader, apps []*Durable) {
		ctx := t.Context()
		v, w := NewVar(apps[0].Object("v"), JSON[[]int]{}), NewVar(apps[1].Object("v"), JSON[[]int]{})
		if err := v.Update(ctx, func(l []int) ([]int, error) { return append(l, 7), nil }); err != nil {
			t.Error(err)
		}
		if l, err := w.Load(ctx); fmt.Sprint(l) != "[7]" || err != nil {
			t.Error(l, err)
		}
		if did, err := w.CompareAndSwap(ctx, []int{7}, []int{8}); !did || err != nil {
			t.Error(did, err)
		}
	})
}

func TestADurableHitAllocatesNothing(t *testing.T) {
	durables(t, 1, func(t *testing.T, _ *durabletest.Leader, apps []*Durable) {
		ctx, x := t.Context(), apps[0].Object("x")
		x.Set(ctx, []byte("1"))
		x.Get(ctx)
		look := func(b []byte) error {
			if len(b) != 1 {
				t.Errorf("%q", b)
			}
			return nil
		}
		if n := testing.AllocsPerRun(1000, func() {
			if err := x.View(ctx, look); err != nil {
				t.Error(err)
			}
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	})
}

// TestALongListingIsPaged: pages have all names of the longest directory there is, each once.
func TestALongListingIsPaged(t *testing.T) {
	const names, limit = 1 << 16, 4096
	var text strings.Builder
	for i := range names {
		fmt.Fprintf(&text, "%06d\n", i)
	}
	found := copies.Found{Value: &protocol.Cell{Bytes: []byte(text.String())}, Version: 7}
	after, seen := "", 0
	for {
		page := listed(found, after, limit)
		if len(page.Names) > limit || page.Version != 7 || len(page.Names) == 0 || page.Names[0] != fmt.Sprintf("%06d", seen) {
			t.Fatalf("%d names after %q", len(page.Names), after)
		}
		seen, after = seen+len(page.Names), page.Names[len(page.Names)-1]
		if !page.More {
			break
		}
	}
	if seen != names {
		t.Errorf("%d names", seen)
	}
}
