package access

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"latchkey/coherence/cachedcopy"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
	"latchkey/internal/history"
	"latchkey/testnet/litmus"
)

// quiet is the copy of a node that is alone, with whatever right a test gives it.
type quiet struct {
	object      *Object
	right       cachedcopy.Right
	reads, asks int
	held        bool
	deferred    []cachedcopy.Right
}

func (q *quiet) ReadFault()  { q.reads++ }
func (q *quiet) WriteFault() { q.asks++ }
func (q *quiet) Hold()       { q.held = true }
func (q *quiet) Release() {
	q.held = false
	for _, r := range q.deferred {
		q.take(r)
	}
	q.deferred = nil
}
func (q *quiet) Store(*protocol.Cell) bool { return q.right == cachedcopy.ReadWrite }

func (q *quiet) take(r cachedcopy.Right) {
	if r == cachedcopy.NoAccess {
		q.give(r, nil)
	} else {
		q.give(r, q.object.cell.Load())
	}
}

func (q *quiet) give(r cachedcopy.Right, c *protocol.Cell) {
	q.right = r
	q.object.SetRight(r, c)
}

// grant gives the right with a value; revoke takes it away, after a hold.
func (q *quiet) grant(r cachedcopy.Right, value string) {
	q.object.Apply(func() { q.give(r, &protocol.Cell{Bytes: []byte(value)}) })
}

func (q *quiet) revoke(r cachedcopy.Right) {
	q.object.Apply(func() {
		if q.held {
			q.deferred = append(q.deferred, r)
		} else {
			q.take(r)
		}
	})
}

// now is the right, as others leave it.
func (q *quiet) now() (r cachedcopy.Right) {
	q.object.Apply(func() { r = q.right })
	return r
}

func alone(e *Epoch, key byte) (*Object, *quiet) {
	q := &quiet{}
	o := New(e, keyspace.Key{key}, func(*Object) Copy { return q })
	q.object = o
	return o, q
}

func get(t *testing.T, o *Object) string {
	t.Helper()
	b, err := o.Get(t.Context())
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func TestHitsAskNobody(t *testing.T) {
	o, q := alone(NewEpoch(Config{}), 1)
	q.grant(cachedcopy.ReadWrite, "old")
	if v := get(t, o); v != "old" {
		t.Error(v)
	}
	value := []byte("new")
	if err := o.Set(t.Context(), value); err != nil {
		t.Error(err)
	}
	value[0] = 'x' // the caller's, still
	err := o.View(t.Context(), func(b []byte) error {
		if string(b) != "new" {
			t.Errorf("%s", b)
		}
		_ = append(b, "spoils nobody's"...)
		return errors.ErrUnsupported
	})
	if err != errors.ErrUnsupported {
		t.Error(err)
	}
	if err := o.Update(t.Context(), func(b []byte) ([]byte, error) { return append(b, "er"...), nil }); err != nil || get(t, o) != "newer" {
		t.Errorf("%s, %v", get(t, o), err)
	}
	q.revoke(cachedcopy.ReadOnly)
	if get(t, o) != "newer" || q.reads+q.asks > 0 {
		t.Errorf("%d + %d faults", q.reads, q.asks)
	}
}

// A hit by View costs no allocation. How long it takes is BenchmarkHit's to say.
func TestViewAllocatesNothing(t *testing.T) {
	o, q := alone(NewEpoch(Config{}), 1)
	q.grant(cachedcopy.ReadOnly, "value")
	ctx, sum := t.Context(), 0
	look := func(b []byte) error { sum += len(b); return nil }
	if n := testing.AllocsPerRun(100, func() { o.View(ctx, look) }); n != 0 {
		t.Errorf("View: %v allocations", n)
	}
	if n := testing.AllocsPerRun(100, func() { o.View(ctx, func(b []byte) error { sum += len(b); return nil }) }); n != 0 {
		t.Errorf("View with a function made for it: %v allocations", n)
	}
	if n := testing.AllocsPerRun(100, func() { o.Get(ctx) }); n != 1 {
		t.Errorf("Get: %v allocations", n)
	}
}

// Those who wait are served in their order at the moment the right comes, although it goes right afterwards.
func TestWaitersAreServedBeforeTheRightGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, q := alone(NewEpoch(Config{}), 1)
		var all sync.WaitGroup
		found := make([]string, 3)
		in := func(f func()) {
			all.Go(f)
			synctest.Wait()
		}
		in(func() { found[0] = get(t, o) })
		in(func() {
			if err := o.Set(t.Context(), []byte("mine")); err != nil {
				t.Error(err)
			}
		})
		in(func() { found[1] = get(t, o) })
		if q.reads == 0 || q.asks == 0 {
			t.Errorf("%d reads and %d writes asked for", q.reads, q.asks)
		}
		o.Apply(func() { // the mutex is held from the grant to the revocation
			q.give(cachedcopy.ReadWrite, &protocol.Cell{Bytes: []byte("theirs")})
			o.serveLocked()
			found[2] = string(o.cell.Load().Bytes)
			q.give(cachedcopy.NoAccess, nil)
		})
		all.Wait()
		if got := fmt.Sprint(found); got != "[theirs mine mine]" {
			t.Error(got)
		}
	})
}

func TestCancelledWriteIsNotPerformed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, q := alone(NewEpoch(Config{}), 1)
		cause := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		var all sync.WaitGroup
		all.Go(func() {
			if err := o.Set(ctx, []byte("never")); err != cause {
				t.Error(err)
			}
		})
		all.Go(func() {
			err := o.Update(ctx, func([]byte) ([]byte, error) { t.Error("called"); return nil, nil })
			if err != cause {
				t.Error(err)
			}
		})
		synctest.Wait()
		cancel(cause)
		all.Wait()
		q.grant(cachedcopy.ReadWrite, "kept")
		if v := get(t, o); v != "kept" {
			t.Error(v)
		}
		if err := o.Set(ctx, []byte("never")); err != cause {
			t.Errorf("a call that came too late: %v", err)
		}
	})
}

// Who gives a read up leaves it to the others: the copy that has been asked for comes to them.
func TestCancelledReadLeavesTheFaultToOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, q := alone(NewEpoch(Config{}), 1)
		cause := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		var all sync.WaitGroup
		all.Go(func() {
			if b, err := o.Get(ctx); err != cause || b != nil {
				t.Errorf("%q, %v", b, err)
			}
		})
		all.Go(func() {
			if err := o.View(ctx, func([]byte) error { t.Error("called"); return nil }); err != cause {
				t.Error(err)
			}
		})
		all.Go(func() {
			if v := get(t, o); v != "kept" {
				t.Error(v)
			}
		})
		synctest.Wait()
		cancel(cause)
		synctest.Wait()
		q.grant(cachedcopy.ReadOnly, "kept")
		all.Wait()
		if v := get(t, o); v != "kept" {
			t.Error(v)
		}
	})
}

// Promise 4: whatever an application's function does, others get at the object meanwhile; it may use the object itself.
func TestFunctionsRunUnpinned(t *testing.T) {
	o, q := alone(NewEpoch(Config{}), 1)
	q.grant(cachedcopy.ReadWrite, "a")
	err := o.View(t.Context(), func(b []byte) error {
		if err := o.Set(t.Context(), []byte("b")); err != nil {
			t.Error(err)
		}
		q.revoke(cachedcopy.NoAccess)
		if string(b) != "a" {
			t.Errorf("the value changed under the function: %s", b)
		}
		q.grant(cachedcopy.ReadWrite, "c")
		return nil
	})
	if err != nil || get(t, o) != "c" {
		t.Error(err, get(t, o))
	}
}

func TestUpdateRunsAgainAfterARaceAndThenHolds(t *testing.T) {
	o, q := alone(NewEpoch(Config{}), 1)
	q.grant(cachedcopy.ReadWrite, "0")
	calls := 0
	err := o.Update(t.Context(), func(b []byte) ([]byte, error) {
		calls++
		if q.held != (calls == racesMax+1) {
			t.Errorf("call %d: held is %v", calls, q.held)
		}
		q.revoke(cachedcopy.NoAccess)
		if !q.held {
			q.grant(cachedcopy.ReadWrite, fmt.Sprint(calls))
		}
		return append(b, '+'), nil
	})
	if err != nil || calls != racesMax+1 {
		t.Errorf("%d calls: %v", calls, err)
	}
	if q.right != cachedcopy.NoAccess || q.held {
		t.Errorf("what was put off did not come: %v", q.right)
	}
	if o.cell.Load() != nil || o.epoch.holding.Load() != 0 {
		t.Error("something is left")
	}
}

// While an update holds, writes of its own node wait too, and go before those of others.
func TestWritesOfTheSameNodeWaitForAHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, q := alone(NewEpoch(Config{}), 1)
		q.grant(cachedcopy.ReadWrite, "0")
		var all sync.WaitGroup
		calls, last := 0, ""
		err := o.Update(t.Context(), func(b []byte) ([]byte, error) {
			if calls++; calls <= racesMax {
				q.grant(cachedcopy.ReadWrite, fmt.Sprint(calls))
				return nil, nil
			}
			all.Go(func() {
				if err := o.Set(t.Context(), []byte("set")); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
			q.object.Apply(func() {
				q.deferred = append(q.deferred, cachedcopy.NoAccess)
			})
			if get(t, o) != string(b) {
				t.Errorf("%s is not %s: it did not wait", get(t, o), b)
			}
			return []byte("updated"), nil
		})
		all.Wait()
		if last = string(q.lastStored()); err != nil || last != "" {
			t.Error(err, last)
		}
		if q.right != cachedcopy.NoAccess {
			t.Error("what was put off did not come")
		}
	})
}

// lastStored is what can be read still.
func (q *quiet) lastStored() []byte {
	if c := q.object.cell.Load(); c != nil {
		return c.Bytes
	}
	return nil
}

func TestHoldEndsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, q := alone(NewEpoch(Config{UpdateHold: time.Second}), 1)
		q.grant(cachedcopy.ReadWrite, "0")
		calls, begin := 0, time.Now()
		err := o.Update(t.Context(), func(b []byte) ([]byte, error) {
			if calls++; calls <= racesMax {
				q.grant(cachedcopy.ReadWrite, fmt.Sprint(calls))
				return b, nil
			}
			q.revoke(cachedcopy.NoAccess)
			if q.now() != cachedcopy.ReadWrite {
				t.Error("it did not hold")
			}
			time.Sleep(time.Second)
			synctest.Wait()
			if q.now() != cachedcopy.NoAccess || time.Since(begin) != time.Second {
				t.Error("it holds on")
			}
			q.grant(cachedcopy.ReadWrite, "theirs")
			return []byte("too late"), nil
		})
		if !errors.Is(err, ErrBusy) || calls != racesMax+1 || get(t, o) != "theirs" {
			t.Errorf("%d calls: %v; %s", calls, err, get(t, o))
		}
	})
}

func TestFunctionThatPanicsChangesNothing(t *testing.T) {
	o, q := alone(NewEpoch(Config{}), 1)
	q.grant(cachedcopy.ReadWrite, "kept")
	calls := 0
	bad := func(b []byte) ([]byte, error) {
		if calls++; calls <= racesMax {
			q.grant(cachedcopy.ReadWrite, "kept")
			return b, nil
		}
		if !q.held {
			t.Error("no hold to be lost")
		}
		panic("no")
	}
	var p *PanicError
	if err := o.Update(t.Context(), bad); !errors.As(err, &p) || p.Value != "no" || !strings.Contains(err.Error(), "panicked: no") || len(p.Stack) == 0 {
		t.Error(err)
	}
	calls = 0
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		o.Update(context.Background(), func(b []byte) ([]byte, error) {
			if calls++; calls <= racesMax {
				q.grant(cachedcopy.ReadWrite, "kept")
				return b, nil
			}
			runtime.Goexit()
			return nil, nil
		})
	}()
	<-gone
	wrong := errors.New("wrong")
	if err := o.Update(t.Context(), func([]byte) ([]byte, error) { return nil, wrong }); err != wrong {
		t.Error(err)
	}
	if q.held || o.holder != nil || get(t, o) != "kept" {
		t.Errorf("held is %v, value %s", q.held, get(t, o))
	}
}

// Promise 5: when End has returned, nothing succeeds, whatever it had reached.
func TestCallsOfAnOldEpochFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		e := NewEpoch(Config{})
		o, q := alone(e, 1)
		waits, _ := alone(e, 2)
		q.grant(cachedcopy.ReadWrite, "old")
		var all sync.WaitGroup
		fails := func(name string, f func() error) {
			all.Go(func() {
				if err := f(); !errors.Is(err, ErrRestarted) {
					t.Errorf("%s: %v", name, err)
				}
			})
		}
		inView, inUpdate := make(chan struct{}), make(chan struct{})
		fails("a View under way", func() error { return o.View(ctx, func([]byte) error { <-inView; return nil }) })
		fails("a View that fails anyway", func() error { return o.View(ctx, func([]byte) error { <-inView; return errors.ErrUnsupported }) })
		fails("an Update under way", func() error {
			return o.Update(ctx, func(b []byte) ([]byte, error) { <-inUpdate; return b, nil })
		})
		fails("a Get that waits", func() error { _, err := waits.Get(ctx); return err })
		fails("a Set that waits", func() error { return waits.Set(ctx, nil) })
		fails("an Update that waits", func() error { return waits.Update(ctx, func(b []byte) ([]byte, error) { return b, nil }) })
		synctest.Wait()
		e.End()
		e.End()
		close(inView)
		close(inUpdate)
		all.Wait()
		for name, f := range map[string]func() error{
			"View": func() error { return o.View(ctx, func([]byte) error { t.Error("called"); return nil }) },
			"Get":  func() error { _, err := o.Get(ctx); return err },
			"Set":  func() error { return o.Set(ctx, nil) },
			"Update": func() error {
				return o.Update(ctx, func(b []byte) ([]byte, error) { t.Error("called"); return b, nil })
			},
		} {
			if err := f(); !errors.Is(err, ErrRestarted) {
				t.Errorf("%s after the end: %v", name, err)
			}
		}
		waits.Prefetch(cachedcopy.ReadWrite)
		if len(waits.waiters)+len(o.waiters) > 0 {
			t.Error("somebody waits still")
		}
	})
}

// Without the cut a call that began before the restart tells its caller an old value: the mistake that promise 5 is about.
func TestWithoutTheCutAnOldValueIsReturned(t *testing.T) {
	e := NewEpoch(Config{})
	o, q := alone(e, 1)
	o.Sabotage(Uncut)
	q.grant(cachedcopy.ReadOnly, "old")
	if err := o.View(t.Context(), func([]byte) error { e.End(); return nil }); err != nil {
		t.Error(err)
	}
}

func TestLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := NewEpoch(Config{})
		o, q := alone(e, 1)
		q.grant(cachedcopy.ReadWrite, "")
		if err := o.Set(t.Context(), make([]byte, protocol.ValueMax)); err != nil {
			t.Error(err)
		}
		if err := o.Set(t.Context(), make([]byte, protocol.ValueMax+1)); !errors.Is(err, ErrTooLarge) {
			t.Error(err)
		}
		err := o.Update(t.Context(), func(b []byte) ([]byte, error) { return append(b, 0), nil })
		if !errors.Is(err, ErrTooLarge) || len(get(t, o)) != protocol.ValueMax {
			t.Error(err)
		}
		q.revoke(cachedcopy.NoAccess)
		var all sync.WaitGroup
		o.Apply(func() { // as if so many waited
			for range WaitersMax - 1 {
				o.waiters = append(o.waiters, &waiter{do: read, ready: make(chan struct{})})
			}
		})
		all.Go(func() { get(t, o) })
		synctest.Wait()
		if _, err := o.Get(t.Context()); !errors.Is(err, ErrBusy) {
			t.Error(err)
		}
		q.grant(cachedcopy.ReadOnly, "")
		all.Wait()
	})
}

func TestRightAndValueGoTogether(t *testing.T) {
	o, _ := alone(NewEpoch(Config{}), 1)
	for _, f := range []func(){func() { o.SetRight(cachedcopy.ReadOnly, nil) }, func() { o.SetRight(cachedcopy.NoAccess, &protocol.Cell{}) }} {
		func() {
			defer func() {
				if recover() == nil {
					t.Error("taken")
				}
			}()
			f()
		}()
	}
}

func TestPrefetchWaitsForNothing(t *testing.T) {
	o, q := alone(NewEpoch(Config{}), 1)
	o.Prefetch(cachedcopy.ReadOnly)
	o.Prefetch(cachedcopy.ReadWrite)
	if q.reads != 1 || q.asks != 1 {
		t.Error(q.reads, q.asks)
	}
	q.grant(cachedcopy.ReadWrite, "")
	o.Prefetch(cachedcopy.ReadOnly)
	if q.reads != 1 || q.asks != 1 {
		t.Error(q.reads, q.asks)
	}
}

// shape is a built-in litmus program.
func shape(t *testing.T, name string) *litmus.Program {
	for _, p := range litmus.Builtin() {
		if p.Name == name {
			return p
		}
	}
	t.Fatal(name)
	return nil
}

var runsFlag = flag.Int("litmus.runs", 40, "how often each litmus program runs")

// runs runs a program on the real automata, with messages that take drawn times, until something forbidden is seen. There are new
// nodes for every 50 runs, with a seed of their own.
func runs(t *testing.T, p *litmus.Program, m Mutant, count int) *litmus.Result {
	sum := &litmus.Result{Program: p, Counts: make(map[string]int)}
	for seed := uint64(0); count > sum.Runs && sum.Err() == nil || seed == 0; seed++ {
		synctest.Test(t, func(t *testing.T) {
			pause := drawn(seed)
			w := newOverlay(4, func() { pause("") })
			w.mutant = m
			r := litmus.Run(t.Context(), p, w, litmus.Options{Runs: min(count-sum.Runs, 50), Peers: len(w.refs), Seed: seed, Delay: 8 * time.Millisecond})
			time.Sleep(time.Second) // virtual: for what a mistake has left for later
			w.travel.Wait()
			if err := w.check(); err != nil && m == NoMutant {
				t.Errorf("%s, seed %d: %v", p.Name, seed, err)
			}
			sum.Runs, sum.Failed, sum.Failure = sum.Runs+r.Runs, r.Failed, r.Failure
			for text, n := range r.Counts {
				sum.Counts[text] += n
			}
			if r.Err() != nil && m == NoMutant {
				t.Errorf("seed %d: %v", seed, r.Err())
			}
		})
	}
	return sum
}

func TestNoForbiddenOutcomeWithDrawnDelays(t *testing.T) {
	t.Parallel()
	for _, p := range litmus.Builtin() {
		r := runs(t, p, NoMutant, *runsFlag)
		if r.Err() != nil {
			t.Errorf("%v\n%s", r.Err(), r.Table())
		}
		t.Log(r.Table())
	}
}

// Each mistake of the access path shows a forbidden outcome: a write that is buffered, a store after the pin has gone, a value that
// outlives the right to it.
func TestPlantedMistakesShowForbiddenOutcomes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		Mutant
		shape string
	}{
		{Buffered, "SB"}, {Buffered, "MP"}, {Unpinned, "CoWR"}, {Unpinned, "SB+RR"}, {Stale, "MP"},
	} {
		r := runs(t, shape(t, c.shape), c.Mutant, 2000)
		t.Logf("mistake %d: %v", c.Mutant, r.Err())
		if !errors.Is(r.Err(), litmus.ErrForbidden) {
			t.Errorf("mistake %d: %v\n%s", c.Mutant, r.Err(), r.Table())
		}
	}
}

// A copy that acknowledges the loss of its right before the value is taken away, with a home that does all else right.
func TestAcknowledgementBeforeTheLossShowsForbiddenOutcomes(t *testing.T) {
	t.Parallel()
	var r *litmus.Result
	synctest.Test(t, func(t *testing.T) {
		for seed := uint64(0); seed < 40; seed++ {
			c := newCluster(4, drawn(seed))
			c.hasty = true
			r = litmus.Run(t.Context(), shape(t, "MP"), c, litmus.Options{Runs: 50, Peers: c.nodes, Seed: seed, Delay: 2 * time.Millisecond})
			time.Sleep(time.Second) // virtual: for messages on their way
			if r.Err() != nil {
				return
			}
		}
	})
	if !errors.Is(r.Err(), litmus.ErrForbidden) {
		t.Errorf("%v\n%s", r.Err(), r.Table())
	}
}

// explore runs a program in every order of its steps and messages, as far as so many runs go, laying down the first depth choices. The
// program is made anew for each; it gets the schedule and returns what is wrong at the end.
func explore(t *testing.T, depth, runs int, program func(t *testing.T, s *schedule) (judge func() error)) (count int, all bool, err error) {
	path := []int{}
	for count = 0; count < runs && err == nil; count++ {
		var widths []int
		synctest.Test(t, func(t *testing.T) {
			s := &schedule{path: path, depth: depth, stepMax: 2000, paused: make(map[string]chan struct{})}
			judge := program(t, s)
			steps, ok := s.run()
			if !ok {
				err = fmt.Errorf("no end after %d steps", steps)
			} else {
				err = judge()
			}
			widths = s.widths
			if err != nil {
				err = fmt.Errorf("order %v: %w", path, err)
			}
		})
		path = append(path, make([]int, max(min(len(widths), depth)-len(path), 0))...)
		for len(path) > 0 && path[len(path)-1] == widths[len(path)-1]-1 {
			path = path[:len(path)-1]
		}
		if len(path) == 0 {
			return count + 1, true, err
		}
		path[len(path)-1]++
	}
	return count, false, err
}

// litmusProgram has each peer of p at a node of its own, in a cluster where another one owns what it uses first.
func litmusProgram(p *litmus.Program, m Mutant) func(*testing.T, *schedule) func() error {
	return func(t *testing.T, s *schedule) func() error {
		c := newCluster(len(p.Peers), s.pause)
		c.mutant = m
		for _, o := range p.Objects[1:] {
			c.at(0, o) // so that peer 0 does not own the first
		}
		c.at(0, p.Objects[0])
		registers := make([]int, len(p.Registers))
		ended := make([]bool, len(p.Peers))
		for i, statements := range p.Peers {
			go func() {
				for j, st := range statements {
					s.pause(fmt.Sprintf("peer %d.%d", i, j))
					var err error
					if st.Writes() {
						err = c.Write(t.Context(), i, p.Objects[st.Object], st.Value)
					} else {
						registers[st.Register], err = c.Read(t.Context(), i, p.Objects[st.Object])
					}
					if err != nil {
						t.Error(err)
					}
				}
				ended[i] = true
			}()
		}
		return func() error {
			for i, over := range ended {
				if !over {
					c.end(s)
					return fmt.Errorf("peer %d waits for ever", i)
				}
			}
			o := litmus.Outcome(registers)
			for _, f := range p.Finally {
				h := c.objects[p.Objects[f]]
				o = append(o, number(h.copies[h.owner].cell.Bytes))
			}
			if !p.Allows(o) {
				return fmt.Errorf("%s", p.Text(o))
			}
			return nil
		}
	}
}

// end lets nobody wait any more.
func (c *cluster) end(s *schedule) {
	for _, e := range c.epochs {
		e.End()
	}
	s.run()
}

func TestEveryOrderOfTwoPeersIsAllowed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		shape string
		depth int
	}{{"SB", 11}, {"MP", 11}, {"2+2W", 11}, {"CoWR", 40}, {"CoRR", 40}, {"CoRW", 40}} {
		count, all, err := explore(t, c.depth, 4000, litmusProgram(shape(t, c.shape), NoMutant))
		t.Logf("%s: %d orders of the first %d steps, all: %v", c.shape, count, c.depth, all)
		if err != nil {
			t.Errorf("%s: %v", c.shape, err)
		}
	}
	if _, _, err := explore(t, 40, 4000, litmusProgram(shape(t, "MP"), Stale)); err == nil {
		t.Error("a value that outlives its right is not noticed")
	}
}

// nested has node 0 update y inside of x, and node 1 x inside of y, and judges that both have happened, each some number of times.
func nested(m Mutant) func(*testing.T, *schedule) func() error {
	return func(t *testing.T, s *schedule) func() error {
		c := newCluster(2, s.pause)
		c.mutant = m
		pauses := make([]int, 2)
		inner := make([]map[string]int, 2)
		ended := make([]bool, 2)
		add := func(b []byte) ([]byte, error) { return encode(number(b) + 1), nil }
		c.at(0, "x")
		c.at(0, "y")
		for i, names := range [][]string{{"x", "y"}, {"y", "x"}} {
			inner[i] = make(map[string]int)
			wait := func() {
				pauses[i]++
				s.pause(fmt.Sprintf("node %d.%04d", i, pauses[i]))
			}
			go func() {
				wait()
				err := c.at(i, names[0]).Update(t.Context(), func(b []byte) ([]byte, error) {
					wait()
					err := c.at(i, names[1]).Update(t.Context(), func(b []byte) ([]byte, error) {
						wait()
						return add(b)
					})
					if err != nil {
						return nil, err
					}
					inner[i][names[1]]++
					return add(b)
				})
				if err != nil && !errors.Is(err, ErrRestarted) {
					t.Error(err)
				}
				ended[i] = err == nil
			}()
		}
		return func() error {
			if !ended[0] || !ended[1] {
				c.end(s)
				return errors.New("they wait for each other")
			}
			for i, name := range []string{"x", "y"} {
				h := c.objects[name]
				if got, want := number(h.copies[h.owner].cell.Bytes), 1+inner[1-i][name]; got != want {
					return fmt.Errorf("%s is %d after %d updates", name, got, want)
				}
			}
			return nil
		}
	}
}

// Two updates nested in opposite orders: without the order of keys they wait for each other until the holds run out, with it
// they do not, whatever the order of their steps. No time passes here, so that no hold can run out.
func TestNestedUpdatesDoNotWaitForEachOther(t *testing.T) {
	t.Parallel()
	count, all, err := explore(t, 9, 3000, nested(NoMutant))
	t.Logf("%d orders, all: %v", count, all)
	if err != nil {
		t.Error(err)
	}
	count, _, err = explore(t, 14, 20000, nested(Keyless))
	if err == nil || !strings.Contains(err.Error(), "wait for each other") {
		t.Errorf("without the order of keys, in %d orders: %v", count, err)
	}
}

// counted has three threads of two nodes count one object up, and judges that none was in vain.
func counted(m Mutant) func(*testing.T, *schedule) func() error {
	return func(t *testing.T, s *schedule) func() error {
		c := newCluster(2, s.pause)
		c.mutant = m
		ended := 0
		for i, node := range []int{0, 1, 1} {
			pauses := 0
			go func() {
				wait := func() {
					pauses++
					s.pause(fmt.Sprintf("thread %d.%04d", i, pauses))
				}
				wait()
				err := c.at(node, "x").Update(t.Context(), func(b []byte) ([]byte, error) {
					wait()
					return encode(number(b) + 1), nil
				})
				if err != nil {
					t.Error(err)
				}
				ended++
			}()
		}
		return func() error {
			h := c.objects["x"]
			if got := number(h.copies[h.owner].cell.Bytes); ended != 3 || got != 3 {
				return fmt.Errorf("%d after %d updates", got, ended)
			}
			return nil
		}
	}
}

func TestNoUpdateIsLost(t *testing.T) {
	t.Parallel()
	count, all, err := explore(t, 9, 3000, counted(NoMutant))
	t.Logf("%d orders, all: %v", count, all)
	if err != nil {
		t.Error(err)
	}
	if _, _, err := explore(t, 9, 3000, counted(Blind)); err == nil {
		t.Error("an update that does not look again is not noticed")
	}
}

// Threads of several nodes at once, for the race detector, and with every call recorded and judged.
func TestThreadsOfManyNodes(t *testing.T) {
	t.Parallel()
	const nodes, threads, calls = 3, 2, 150
	c := newOverlay(nodes, runtime.Gosched)
	h := history.New()
	var all sync.WaitGroup
	for node := range nodes {
		for thread := range threads {
			client := node*threads + thread
			all.Go(func() {
				for i := range calls {
					name := string(rune('x' + i*7%3))
					o, value := c.at(node, name), uint64(client*calls+i+1)
					switch (client + i) % 4 {
					case 0:
						id := h.Call(client, history.Write(name, value))
						if err := o.Set(t.Context(), encode(int(value))); err != nil {
							t.Error(err)
						}
						h.Return(id, history.Answer{})
					case 1:
						// What it finds is known only afterwards; that it is called does not depend on it.
						var found uint64
						begun := h.Call(client, history.Op{Kind: history.KindCAS, Key: name, Value: value})
						err := o.Update(t.Context(), func(b []byte) ([]byte, error) {
							found = uint64(number(b))
							return encode(int(value)), nil
						})
						if err != nil {
							t.Error(err)
						}
						h.Swapped(begun, found)
					default:
						id := h.Call(client, history.Read(name))
						var found int
						err := o.View(t.Context(), func(b []byte) error { found = number(b); return nil })
						if err != nil {
							t.Error(err)
						}
						h.Return(id, history.Answer{Value: uint64(found)})
					}
				}
			})
		}
	}
	all.Wait()
	c.travel.Wait()
	if err := c.check(); err != nil {
		t.Error(err)
	}
	if r := h.CheckSequential(0); r.Verdict != history.Ok || r.Judged != nodes*threads*calls {
		t.Errorf("%d judged: %v", r.Judged, r.Err())
	}
	if err := h.CheckRegister(time.Minute).Err(); err != nil {
		t.Error(err)
	}
}

// ended has a node's thread read and write while its epoch ends, and judges that nothing succeeded after that.
func ended(m Mutant) func(*testing.T, *schedule) func() error {
	return func(t *testing.T, s *schedule) func() error {
		c := newCluster(2, s.pause)
		c.mutant = m
		var over atomic.Bool
		finished := false
		var wrong error
		c.at(0, "x") // which node 0 owns
		c.at(0, "y") // which node 1 owns
		go func() {
			s.pause("end")
			c.epochs[0].End()
			over.Store(true)
		}()
		go func() {
			calls := 0
			call := func(name string, f func() error) {
				calls++
				s.pause(fmt.Sprintf("call %d", calls))
				if err := f(); err == nil && over.Load() {
					wrong = fmt.Errorf("%s succeeded after the end", name)
				} else if err != nil && !over.Load() {
					wrong = fmt.Errorf("%s failed before the end: %w", name, err)
				}
			}
			x, y := c.at(0, "x"), c.at(0, "y")
			call("a View hit", func() error { return x.View(t.Context(), func([]byte) error { s.pause("within View"); return nil }) })
			call("a Get miss", func() error { _, err := y.Get(t.Context()); return err })
			call("a Set hit", func() error { return x.Set(t.Context(), nil) })
			call("a Set miss", func() error { return y.Set(t.Context(), nil) })
			call("an Update", func() error {
				return y.Update(t.Context(), func(b []byte) ([]byte, error) { s.pause("within Update"); return b, nil })
			})
			finished = true
		}()
		return func() error {
			if !finished {
				return errors.New("a call did not return")
			}
			return wrong
		}
	}
}

// Promise 5, with the epoch's end before, within and after every kind of call.
func TestNothingSucceedsAfterTheEnd(t *testing.T) {
	t.Parallel()
	count, all, err := explore(t, 40, 3000, ended(NoMutant))
	t.Logf("%d orders, all: %v", count, all)
	if err != nil || !all {
		t.Errorf("all: %v, %v", all, err)
	}
	if _, _, err := explore(t, 40, 3000, ended(Uncut)); err == nil || !strings.Contains(err.Error(), "succeeded after the end") {
		t.Errorf("without the cut: %v", err)
	}
}

func BenchmarkHit(b *testing.B) {
	o, q := alone(NewEpoch(Config{}), 1)
	q.grant(cachedcopy.ReadOnly, strings.Repeat("v", 64))
	ctx, sum := context.Background(), 0
	look := func(v []byte) error { sum += len(v); return nil }
	var lock sync.RWMutex
	value := bytes.Repeat([]byte("v"), 64)
	b.Run("View", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			o.View(ctx, look)
		}
		view := float64(b.Elapsed().Nanoseconds()) / float64(b.N)
		begin := time.Now()
		for range b.N {
			lock.RLock()
			look(value)
			lock.RUnlock()
		}
		b.ReportMetric(view/(float64(time.Since(begin).Nanoseconds())/float64(b.N)), "x-RLock")
	})
	b.Run("Get", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			o.Get(ctx)
		}
	})
	b.Run("RWMutex", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			lock.RLock()
			look(value)
			lock.RUnlock()
		}
	})
	b.Run("ViewParallel", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			n := 0
			for pb.Next() {
				o.View(ctx, func(v []byte) error { n += len(v); return nil })
			}
		})
	})
}

func BenchmarkSetHit(b *testing.B) {
	o, q := alone(NewEpoch(Config{}), 1)
	q.grant(cachedcopy.ReadWrite, "")
	value := make([]byte, 64)
	b.ReportAllocs()
	for b.Loop() {
		o.Set(context.Background(), value)
	}
}
