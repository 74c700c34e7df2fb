package copies

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"latchkey/coherence/durable"
	"latchkey/coherence/durable/durabletest"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
	"latchkey/internal/driver"
)

// TestAWriteIsSeenByAllAndHitsAskNobody: a value is read where it is, until somebody writes.
func TestAWriteIsSeenByAllAndHitsAskNobody(t *testing.T) {
	play(t, func(w *world) {
		a, b := w.node(1), w.node(2)
		x, y := a.Object(prefix, "app/x"), b.Object(prefix, "app/x")
		if f, err := y.Get(soon(time.Second)); err != nil || f.Value != nil || f.Version != 0 {
			t.Fatalf("what nobody wrote: %+v, %v", f, err)
		}
		v := w.set(x, "1")
		if f := w.get(y, "1"); f.Version != v {
			t.Errorf("version %v, written as %v", f.Version, v)
		}
		reads := w.Sent(durable.Read)
		for range 100 {
			w.get(y, "1")
			w.get(x, "1") // its own write left it a copy
		}
		if n := w.Sent(durable.Read); n != reads {
			t.Errorf("%d reads asked the group", n-reads)
		}
		if v2 := w.set(x, "2"); v2 != v+1 {
			t.Errorf("version %v after %v", v2, v)
		}
		if _, ok := y.Load(); ok {
			t.Error("a copy is there that a write that has returned has replaced")
		}
		w.get(y, "2")
		st := b.Stats()
		if st.Misses != 3 || st.Invalidations != 2 || st.Objects != 1 {
			t.Errorf("%+v", st)
		}
	})
}

// TestConditionsAreTheLogs: a condition is of the version, and what is there comes with the answer.
func TestConditionsAreTheLogs(t *testing.T) {
	play(t, func(w *world) {
		x := w.node(1).Object(prefix, "app/x")
		v := w.set(x, "1")
		write := func(c Write, made bool, want string) Found {
			t.Helper()
			f, did, err := x.Write(soon(time.Second), c)
			if err != nil || did != made || (f.Value == nil) != (want == "") || f.Value != nil && string(f.Value.Bytes) != want {
				t.Fatalf("%+v: %+v, %v, %v", c, f, did, err)
			}
			return f
		}
		write(Write{Expect: durable.Absent, Value: value("no")}, false, "1")
		write(Write{Expect: durable.Exact, Wanted: v + 1, Value: value("no")}, false, "1")
		f := write(Write{Expect: durable.Exact, Wanted: v, Value: value("2")}, true, "2")
		f = write(Write{Expect: durable.Exact, Wanted: f.Version, Delete: true}, true, "")
		write(Write{Expect: durable.Exact, Wanted: f.Version, Value: value("3")}, true, "3")
		if _, _, err := x.Write(soon(time.Second), Write{Delete: true, TTL: time.Hour}); !errors.Is(err, ErrRefused) {
			t.Errorf("a write that cannot be: %v", err)
		}
	})
}

// TestHitsLastAsLongAsTheyAreHit: the lease is renewed for copies that are hit, by two messages for all of them; without hits it lapses, and nothing is
// sent any more.
func TestHitsLastAsLongAsTheyAreHit(t *testing.T) {
	play(t, func(w *world) {
		a := w.node(1)
		var all []*Object
		for i := range 50 {
			o := a.Object(prefix, fmt.Sprintf("app/%d", i))
			w.set(o, "v")
			all = append(all, o)
		}
		for _, o := range all { // some leases were too short to use
			w.get(o, "v")
		}
		reads := w.Sent(durable.Read)
		for range 200 {
			time.Sleep(100 * time.Millisecond)
			for _, o := range all {
				w.get(o, "v")
			}
		}
		if n := w.Sent(durable.Read); n != reads {
			t.Errorf("%d reads asked the group", n-reads)
		}
		if n := w.Sent(durable.Renew); n == 0 || n > 20 { // 20 s, of which each half lease may have one
			t.Errorf("%d renewals within 20 s", n)
		}
		time.Sleep(5 * time.Second)
		before := w.Sent(durable.Renew)
		time.Sleep(time.Minute)
		if n := w.Sent(durable.Renew) - before; n != 0 {
			t.Errorf("%d renewals for copies that nobody reads", n)
		}
		if _, ok := all[0].Load(); ok {
			t.Error("a copy outlives its lease")
		}
		w.get(all[0], "v")
		if st := a.Stats(); st.Refused != 1 {
			t.Errorf("%+v", st)
		}
	})
}

// TestIncrementsSurviveLeadersAndLoss: several peers count together while leaders change and messages are lost.
func TestIncrementsSurviveLeadersAndLoss(t *testing.T) {
	play(t, func(w *world) {
		const nodes, each = 4, 60
		w.Lose(0.05)
		over := make(chan struct{})
		go func() {
			for {
				select {
				case <-over:
					return
				case <-time.After(3 * time.Second):
					w.Elect()
				}
			}
		}()
		var wg sync.WaitGroup
		for n := range nodes {
			o := w.node(byte(n+1)).Object(prefix, "app/n")
			wg.Go(func() {
				for i := range each {
					for {
						var f Found
						var err error
						if i%3 == 0 {
							f, err = o.Lock(context.Background())
						} else {
							f, err = o.Get(context.Background())
						}
						if err != nil {
							t.Error(err)
							return
						}
						_, made, err := o.Write(context.Background(), Write{Expect: durable.Exact, Wanted: f.Version, Value: number(numberOf(f.Value) + 1), Holds: i%3 == 0})
						if i%3 == 0 {
							o.Unlock()
						}
						if err != nil {
							t.Error(err)
							return
						}
						if made {
							break
						}
					}
				}
			})
		}
		wg.Wait()
		close(over)
		w.Lose(0)
		f, err := w.node(9).Object(prefix, "app/n").Get(soon(10 * time.Second))
		if err != nil || numberOf(f.Value) != nodes*each {
			t.Errorf("%d, %v; want %d", numberOf(f.Value), err, nodes*each)
		}
	})
}

// TestWhoIsCutOffKnowsIt: reads end with the lease, writes fail as what they are, and what was last seen is there for who asks for it by name.
func TestWhoIsCutOffKnowsIt(t *testing.T) {
	play(t, func(w *world) {
		a, b := w.node(1), w.node(2)
		x := a.Object(prefix, "app/x")
		v := w.set(x, "1")
		w.get(x, "1")
		w.Cut(a.cfg.Self.ID, true)
		w.get(x, "1") // as long as the lease lasts
		began := time.Now()
		if w.set(b.Object(prefix, "app/x"), "2") == 0 || time.Since(began) > params.Arbiter()+time.Second {
			t.Errorf("a writer waited for %v", time.Since(began))
		}
		if _, ok := x.Load(); ok {
			t.Fatal("a stale hit")
		}
		if _, err := x.Get(soon(3 * time.Second)); !errors.Is(err, ErrStale) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a read: %v", err)
		}
		if f, age, ok := x.Stale(); !ok || string(f.Value.Bytes) != "1" || f.Version != v || age < 3*time.Second || age > 10*time.Second {
			t.Errorf("%+v, %v old, %v", f, age, ok)
		}
		if _, _, err := a.Object(prefix, "app/y").Write(soon(time.Second), Write{Value: value("3")}); !errors.Is(err, ErrOutcomeUnknown) {
			t.Errorf("a write that was sent: %v", err)
		}
		if _, err := x.Lock(soon(time.Second)); !errors.Is(err, ErrNoQuorum) {
			t.Errorf("a write that was not: %v", err)
		}
		all, sought := w.Sought()
		if all == 0 || sought == 0 || sought > 8 {
			t.Errorf("%d times all voters were asked, %d times a leader was looked for", all, sought)
		}
		w.Cut(a.cfg.Self.ID, false)
		w.get(x, "2")
	})
}

// TestTurnsGoRound: who has the turn keeps it as long as it likes, and readers go on meanwhile.
func TestTurnsGoRound(t *testing.T) {
	play(t, func(w *world) {
		a, b := w.node(1).Object(prefix, "app/x"), w.node(2).Object(prefix, "app/x")
		w.set(a, "0")
		f, err := a.Lock(soon(time.Second))
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan error, 1)
		go func() {
			_, err := b.Lock(soon(time.Minute))
			got <- err
		}()
		w.get(b, "0")
		time.Sleep(20 * time.Second) // many leases
		select {
		case err := <-got:
			t.Fatalf("two have the turn: %v", err)
		default:
		}
		w.get(b, "0")
		if _, made, err := a.Write(soon(time.Second), Write{Holds: true, Expect: durable.Exact, Wanted: f.Version, Value: value("1")}); !made || err != nil {
			t.Errorf("who has the turn is outrun: %v, %v", made, err)
		}
		a.Unlock()
		if err := <-got; err != nil {
			t.Fatal(err)
		}
		w.get(b, "1")
		b.Unlock()
		if n := a.group.pins + b.group.pins; n != 0 {
			t.Errorf("%d pins are left", n)
		}
	})
}

// TestWhatIsTooMuchIsForgotten: what is hit stays, and all are read again without a mistake.
func TestWhatIsTooMuchIsForgotten(t *testing.T) {
	for name, limit := range map[string]func(*Config){
		"objects": func(c *Config) { c.ObjectsMax = 10 },
		"bytes":   func(c *Config) { c.BytesMax = 10 * (entryBytes + 1000 + 7) },
	} {
		t.Run(name, func(t *testing.T) {
			play(t, func(w *world) {
				a := w.node(1, limit)
				var all []*Object
				for i := range 40 {
					o := a.Object(prefix, fmt.Sprintf("app/%03d", i))
					w.set(o, strings.Repeat("x", 1000))
					all = append(all, o)
					w.get(all[0], strings.Repeat("x", 1000))
				}
				if st := a.Stats(); st.Objects != 10 || st.Evictions < 30 || st.Evictions > 31 || st.Bytes > 10*(entryBytes+1007) || st.Misses > 2 {
					t.Errorf("%+v", st)
				}
				for _, o := range all {
					w.get(o, strings.Repeat("x", 1000))
				}
				if st := a.Stats(); st.Objects != 10 || st.Misses == 0 {
					t.Errorf("%+v", st)
				}
				w.set(w.node(2).Object(prefix, all[3].Name()), "y")
				w.get(all[3], "y")
			})
		})
	}
}

// TestCloseEndsCalls: nobody waits for a service that is closed.
func TestCloseEndsCalls(t *testing.T) {
	play(t, func(w *world) {
		a := w.node(1)
		x := a.Object(prefix, "app/x")
		w.Kill()
		got := make(chan error, 2)
		go func() { _, err := x.Get(context.Background()); got <- err }()
		go func() {
			_, _, err := a.Object(prefix, "app/y").Write(context.Background(), Write{Value: value("1")})
			got <- err
		}()
		synctest.Wait()
		if n := a.Stats().Waiting; n != 2 {
			t.Errorf("%d calls wait", n)
		}
		a.Close()
		for range 2 {
			if err := <-got; !errors.Is(err, ErrClosed) {
				t.Errorf("a call of a closed service: %v", err)
			}
		}
		if _, err := x.Get(context.Background()); !errors.Is(err, ErrClosed) {
			t.Errorf("a later one: %v", err)
		}
		if n := a.Stats().Waiting; n != 0 {
			t.Errorf("%d calls wait", n)
		}
	})
}

// TestAHintIsFollowedAtOnce: requests are said again when somebody else seems to lead, but no faster than now and then.
func TestAHintIsFollowedAtOnce(t *testing.T) {
	play(t, func(w *world) {
		a := w.node(1)
		x := a.Object(prefix, "app/x")
		w.Kill()
		got := make(chan error, 1)
		go func() { _, err := x.Get(context.Background()); got <- err }()
		synctest.Wait()
		w.Elect()
		for range 100 {
			a.Again(prefix)
		}
		began := time.Now()
		if err := <-got; err != nil || time.Since(began) > repeatFirst/2 {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		if n := w.Sent(durable.Read); n > 2 {
			t.Errorf("%d reads", n)
		}
	})
}

// TestAHitAllocatesNothing, and takes no step of the automaton.
func TestAHitAllocatesNothing(t *testing.T) {
	play(t, func(w *world) {
		x := w.node(1).Object(prefix, "app/x")
		w.set(x, "1")
		w.get(x, "1")
		ctx := context.Background()
		before := x.group.last
		if n := testing.AllocsPerRun(1000, func() {
			if f, err := x.Get(ctx); err != nil || f.Value == nil {
				t.Error(err)
			}
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
		if x.group.last != before {
			t.Error("hits were calls of the automaton")
		}
	})
}

// BenchmarkGet is a hit, beside the one look at the clock that it cannot do without.
func BenchmarkGet(b *testing.B) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	leader := durabletest.NewLeader(ctx, params, func(err error) { b.Error(err) })
	self := protocol.NodeRef{ID: keyspace.NodeID{1}, Inc: 1}
	var s *Service
	s = New(Config{Self: self, Clock: driver.NewClock(), Params: params, Router: leader.Link(self.ID, func(g keyspace.Prefix, m []durable.Message) { s.Receive(g, m) })})
	defer s.Close()
	x := s.Object(prefix, "app/x")
	if _, _, err := x.Write(ctx, Write{Value: value("1")}); err != nil {
		b.Fatal(err)
	}
	b.Run("hit", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := x.Get(ctx); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("clock", func(b *testing.B) {
		for b.Loop() {
			_ = time.Now()
		}
	})
}
