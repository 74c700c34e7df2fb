package lockservice

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/lockservice/sigma"
	sigmapb "latchkey/lockservice/sigma/pb"
	"latchkey/replicagroup"
	"latchkey/replicagroup/order"
)

// voters are the replicas of one group in this process, driven by virtual time: each message takes delay, and may be lost.
type voters struct {
	tb    testing.TB
	delay time.Duration

	mu       sync.Mutex
	log      sigma.LogState
	group    sigmapb.Group
	replicas map[keyspace.NodeID]*voter
	peers    map[keyspace.NodeID]*sigmaPeer
	located  SigmaGroup // what a look-up finds
	looked   int
	unfound  func(look int) error // what ails a look-up, by its number from 1; nil: nothing ails any
	sent     int                  // messages of either side
	lost     func(from, to keyspace.NodeID, m *sigma.Message) bool
}

type voter struct {
	world *voters
	id    keyspace.NodeID
	clock *testClock
	core  *sigma.Replica
	timer *time.Timer
}

func node(name string) keyspace.NodeID { return keyspace.NodeIDOf(name) }

func nodesAt(names ...string) (ns []keyspace.NodeID) {
	for _, n := range names {
		ns = append(ns, node(n))
	}
	return sorted(ns)
}

func newVoters(tb testing.TB, names ...string) *voters {
	w := &voters{tb: tb, delay: 5 * time.Millisecond, replicas: make(map[keyspace.NodeID]*voter), peers: make(map[keyspace.NodeID]*sigmaPeer)}
	w.group = sigmapb.Group{Gen: 1<<32 | 3}
	w.log = sigma.LogState{
		Descriptor: sigma.Descriptor{View: sigma.ViewID{Gen: 3, Num: 1}, Members: nodesAt(names...)}, Base: 100, Ceil: 100 + sigma.Block, Cap: sigma.CapFor(worldTTLMax),
	}
	w.located = SigmaGroup{Group: w.group, Voters: w.log.Members}
	for _, n := range names {
		w.add(n)
	}
	return w
}

// add starts a replica at the present state of the log.
func (w *voters) add(name string) *voter {
	v := &voter{world: w, id: node(name), clock: newTestClock(0)}
	v.core = sigma.NewReplica(sigma.ReplicaConfig{Self: v.id, Inc: 1, Drift: automaton.DriftDefault, TTLMin: TTLMin, TTLMax: worldTTLMax}, w.log)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.replicas[v.id] = v
	v.timer = time.AfterFunc(time.Hour, func() { v.step(sigma.Event{Kind: sigma.Timer}) })
	w.tb.Cleanup(func() { v.timer.Stop() })
	return v
}

// apply appends an entry to the group's log, and has every replica apply it.
func (w *voters) apply(e sigma.Entry) {
	w.mu.Lock()
	e.From = w.log.View
	w.log, _ = w.log.Apply(e)
	state := w.log
	var all []*voter
	for _, v := range w.replicas {
		all = append(all, v)
	}
	w.mu.Unlock()
	for _, v := range all {
		v.step(sigma.Event{Kind: sigma.Applied, State: &state})
	}
}

func (v *voter) step(ev sigma.Event) {
	w := v.world
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.replicas[v.id] != v {
		return
	}
	ev.Now = v.clock.Now()
	for _, a := range v.core.Step(ev, nil) {
		switch a.Kind {
		case sigma.Arm:
			v.timer.Reset(v.clock.real(max(0, a.At.Sub(ev.Now))))
		case sigma.Send:
			b, err := sigmapb.EncodeFrame(nil, w.group, &a.Msg)
			if err != nil {
				w.tb.Error(err)
			}
			w.sendLocked(v.id, a.To, b)
		}
	}
}

// kill ends a replica for good.
func (w *voters) kill(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.replicas, node(name))
}

func (w *voters) sendLocked(from, to keyspace.NodeID, frame []byte) {
	g, m, err := sigmapb.DecodeFrame(frame)
	if err != nil {
		w.tb.Errorf("a frame of %v: %v", from, err)
		return
	}
	w.sent++
	if w.lost != nil && w.lost(from, to, &m) {
		return
	}
	time.AfterFunc(w.delay, func() {
		w.mu.Lock()
		v, p := w.replicas[to], w.peers[to]
		w.mu.Unlock()
		switch {
		case v != nil:
			v.step(sigma.Event{Kind: sigma.Receive, From: from, Msg: &m})
		case p != nil:
			p.sigma.Deliver(from, g, &m)
		}
	})
}

func (w *voters) messages() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sent
}

func (w *voters) lose(f func(from, to keyspace.NodeID, m *sigma.Message) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lost = f
}

// sigmaPeer is a client of the voters: a [SigmaNet], with its service.
type sigmaPeer struct {
	*Service
	world   *voters
	id      keyspace.NodeID
	clock   *testClock
	sigma   *Sigma
	backend Backend
}

func (w *voters) peer(name string) *sigmaPeer {
	p := &sigmaPeer{world: w, id: node(name), clock: newTestClock(0)}
	p.sigma = NewSigma(SigmaConfig{Net: p, Limits: LimitsOf(worldTTLMax, int64(automaton.DriftDefault)), Clock: p.clock, Self: name})
	p.backend = p.sigma.NewBackend(noTable{})
	p.Service = New(p.backend, WithClock(p.clock))
	w.mu.Lock()
	w.peers[p.id] = p
	w.mu.Unlock()
	w.tb.Cleanup(func() {
		p.Service.Close()
		p.sigma.Close()
	})
	return p
}

// noTable is a group whose table refuses everything.
type noTable struct{}

func (noTable) Do(context.Context, keyspace.Key, string, []byte) ([]byte, error) {
	return nil, replicagroup.ErrRefused
}

func (noTable) Query(context.Context, keyspace.Key, string, []byte) ([]byte, error) {
	return nil, replicagroup.ErrRefused
}

func (noTable) Notify(string, func(order.GroupID, []byte)) {}

func (p *sigmaPeer) Locate(context.Context, keyspace.Key, bool) (SigmaGroup, error) {
	p.world.mu.Lock()
	defer p.world.mu.Unlock()
	p.world.looked++
	if f := p.world.unfound; f != nil {
		if err := f(p.world.looked); err != nil {
			return SigmaGroup{}, err
		}
	}
	return p.world.located, nil
}

func (p *sigmaPeer) Send(to keyspace.NodeID, _ keyspace.Key, frame []byte) {
	p.world.mu.Lock()
	defer p.world.mu.Unlock()
	p.world.sendLocked(p.id, to, frame)
}

func (p *sigmaPeer) lock(name string, opts ...Option) *Handle {
	p.world.tb.Helper()
	h, err := p.Lock(context.Background(), name, opts...)
	if err != nil {
		p.world.tb.Fatalf("lock %q: %v", name, err)
	}
	return h
}

// amongVoters runs a test in virtual time with three voters.
func amongVoters(t *testing.T, f func(t *testing.T, w *voters)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newVoters(t, "a", "b", "c")) })
}

func TestSigmaUncontendedLockTakesOneRoundTripAndNoLookUp(t *testing.T) {
	amongVoters(t, func(t *testing.T, w *voters) {
		p := w.peer("p")
		last := Token(0)
		for i := range 5 {
			before, sent := time.Now(), w.messages()
			h := p.lock("n")
			want := 2 * w.delay
			if i == 0 {
				want *= 2 // the group's view is learned
			}
			if d := time.Since(before); d != want || h.Token() <= last {
				t.Errorf("lock %d took %v, want %v; token %v after %v", i, d, want, h.Token(), last)
			}
			last = h.Token()
			mustRelease(t, h)
			synctest.Wait()
			time.Sleep(w.delay)
			if n := w.messages() - sent; i > 0 && n != 12 {
				t.Errorf("%d messages; REQ, GRANT, RELEASE and RELEASED to and from each of three voters are 12", n)
			}
		}
		if st := p.sigma.Stats(); w.looked != 1 || st != (SigmaStats{Acquired: 5, OneRound: 4}) {
			t.Errorf("%d look-ups, %+v", w.looked, st)
		}
	})
}

func TestSigmaLockIsRenewedForAsLongAsItIsHeld(t *testing.T) {
	amongVoters(t, func(t *testing.T, w *voters) {
		p, q := w.peer("p"), w.peer("q")
		h := p.lock("n", WithTTL(3*time.Second))
		got := make(chan *Handle)
		go func() { got <- q.lock("n", WithTTL(3*time.Second)) }()
		for range 100 {
			time.Sleep(time.Second)
			if h.Context().Err() != nil || h.Remaining() < time.Second {
				t.Fatalf("%v remain: %v", h.Remaining(), context.Cause(h.Context()))
			}
		}
		before := time.Now()
		go mustRelease(t, h)
		next := <-got
		if d := time.Since(before); d != 2*w.delay {
			t.Errorf("handed over in %v, one message each way takes %v", d, 2*w.delay)
		}
		if next.Token() <= h.Token() {
			t.Errorf("token %v after %v", next.Token(), h.Token())
		}
		if left := next.Remaining(); left < 1900*time.Millisecond { // it has asked within the last third
			t.Errorf("%v remain of a fresh hold", left)
		}
		mustRelease(t, next)
	})
}

func TestSigmaWaitersAreServedInOrderAndToldTheirPlace(t *testing.T) {
	amongVoters(t, func(t *testing.T, w *voters) {
		h := w.peer("first").lock("n")
		var mu sync.Mutex
		var order []int
		places := make([][]int, 6)
		var wg sync.WaitGroup
		for i := range places {
			p := w.peer(fmt.Sprint("p", i))
			time.Sleep(50 * time.Millisecond)
			wg.Go(func() {
				g := p.lock("n", WithQueued(func(n int) { places[i] = append(places[i], n) }))
				mu.Lock()
				order = append(order, i)
				mu.Unlock()
				mustRelease(t, g)
			})
		}
		time.Sleep(time.Second)
		if err := func() error { _, err := w.peer("try").TryLock(t.Context(), "n"); return err }(); !errors.Is(err, ErrLocked) {
			t.Errorf("a try: %v", err)
		}
		mustRelease(t, h)
		wg.Wait()
		if !slices.Equal(order, []int{0, 1, 2, 3, 4, 5}) {
			t.Errorf("served in the order %v", order)
		}
		for i, p := range places {
			if len(p) == 0 || p[0] != i+1 {
				t.Errorf("waiter %d was told places %v", i, p)
			}
		}
	})
}

func TestSigmaHolderThatIsCutOffIsLostBeforeAnotherHolds(t *testing.T) {
	amongVoters(t, func(t *testing.T, w *voters) {
		p, q := w.peer("p"), w.peer("q")
		h := p.lock("n", WithTTL(2*time.Second))
		w.lose(func(from, to keyspace.NodeID, _ *sigma.Message) bool { return from == p.id || to == p.id })
		got := make(chan time.Time)
		go func() {
			g := q.lock("n", WithTTL(2*time.Second))
			got <- time.Now()
			mustRelease(t, g)
		}()
		<-h.Context().Done()
		lost := time.Now()
		if !errors.Is(context.Cause(h.Context()), ErrLost) {
			t.Error(context.Cause(h.Context()))
		}
		if next := <-got; !next.After(lost) {
			t.Errorf("lost at %v, the next held at %v", lost, next)
		}
		if err := p.backend.Renew(t.Context(), h.grant); !errors.Is(err, ErrNotHeld) {
			t.Errorf("renewed a lost lock: %v", err)
		}
	})
}

func TestSigmaOneVoterDoesNotMatter(t *testing.T) {
	amongVoters(t, func(t *testing.T, w *voters) {
		p := w.peer("p")
		mustRelease(t, p.lock("n"))
		w.kill("b")
		for range 3 {
			before := time.Now()
			h := p.lock("n", WithTTL(3*time.Second))
			if d := time.Since(before); d != 2*w.delay {
				t.Errorf("took %v", d)
			}
			time.Sleep(5 * time.Second)
			if h.Context().Err() != nil {
				t.Errorf("lost: %v", context.Cause(h.Context()))
			}
			before = time.Now()
			mustRelease(t, h)
			if d := time.Since(before); d != 2*w.delay {
				t.Errorf("the release took %v", d)
			}
		}
		w.kill("c")
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if _, err := p.Lock(ctx, "n"); !errors.Is(err, ErrNoQuorum) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("one of three voters: %v", err)
		}
		if _, err := p.TryLock(ctx, "n"); !errors.Is(err, ErrNoQuorum) {
			t.Errorf("a try among one of three voters: %v", err)
		}
	})
}

func TestSigmaWhoStopsWaitingLeavesTheQueue(t *testing.T) {
	amongVoters(t, func(t *testing.T, w *voters) {
		p, q, r := w.peer("p"), w.peer("q"), w.peer("r")
		h := p.lock("n")
		_, err := q.Lock(t.Context(), "n", WithWait(time.Second))
		if !errors.Is(err, ErrWait) || !errors.Is(err, ErrLocked) {
			t.Errorf("a wait that is over: %v", err)
		}
		got := make(chan *Handle)
		go func() { got <- r.lock("n") }()
		time.Sleep(100 * time.Millisecond)
		before := time.Now()
		go mustRelease(t, h)
		mustRelease(t, <-got)
		if d := time.Since(before); d > 5*w.delay {
			t.Errorf("whoever came after one that left waited for %v", d)
		}
		mustRelease(t, q.lock("n")) // its line is used again
	})
}

func TestSigmaLocksFollowTheirGroup(t *testing.T) {
	amongVoters(t, func(t *testing.T, w *voters) {
		p, q := w.peer("p"), w.peer("q")
		h := p.lock("n", WithTTL(4*time.Second))
		got := make(chan *Handle, 1)
		go func() { got <- q.lock("n", WithTTL(4*time.Second)) }()
		time.Sleep(time.Second)
		w.add("d")
		w.apply(sigma.Entry{Kind: sigma.EntryView, Members: nodesAt("b", "c", "d")})
		time.Sleep(time.Second)
		w.kill("a")
		w.kill("b") // b and a are gone: c and d must know it all
		time.Sleep(10 * time.Second)
		if h.Context().Err() != nil {
			t.Fatalf("lost in a view change: %v", context.Cause(h.Context()))
		}
		select {
		case <-got:
			t.Fatal("two holders")
		default:
		}
		mustRelease(t, h)
		g := <-got
		if g.Token() <= h.Token() {
			t.Errorf("token %v after %v", g.Token(), h.Token())
		}
		mustRelease(t, g)
		before, looked := time.Now(), w.looked
		mustRelease(t, p.lock("other"))
		if d := time.Since(before); d != 4*w.delay || w.looked != looked {
			t.Errorf("a lock in the new view took %v and %d look-ups", d, w.looked-looked)
		}
	})
}

// TestSigmaEndsWhereTheTableRefuses: when the table has taken a name and refuses who comes, a holder is told at once, and a waiter is not
// left waiting.
func TestSigmaEndsWhereTheTableRefuses(t *testing.T) {
	amongVoters(t, func(t *testing.T, w *voters) {
		p, q := w.peer("p"), w.peer("q")
		h := p.lock("n", WithTTL(4*time.Second))
		failed := make(chan error, 1)
		go func() {
			_, err := q.Lock(context.Background(), "n", WithTTL(4*time.Second))
			failed <- err
		}()
		time.Sleep(time.Second)
		state := w.log
		for _, n := range nodesAt("a", "b", "c") {
			w.replicas[n].step(sigma.Event{Kind: sigma.Applied, State: &state, Modes: []sigma.NameMode{{Name: "n", Mode: sigma.ModePending}}})
		}
		if err := <-failed; !errors.Is(err, ErrLimit) {
			t.Errorf("the waiter: %v", err)
		}
		<-h.Context().Done()
		if cause := context.Cause(h.Context()); !errors.Is(cause, ErrLost) {
			t.Errorf("the holder: %v", cause)
		}
	})
}

// TestSigmaClientsFindAGroupThatHasMovedAway: nobody of the view that a client knows is left to tell it of another.
func TestSigmaClientsFindAGroupThatHasMovedAway(t *testing.T) {
	for _, generation := range []bool{false, true} {
		t.Run(fmt.Sprintf("generation=%v", generation), func(t *testing.T) {
			amongVoters(t, func(t *testing.T, w *voters) {
				p := w.peer("p")
				mustRelease(t, p.lock("n"))
				time.Sleep(time.Second)
				for _, n := range []string{"a", "b", "c"} {
					w.kill(n)
				}
				w.mu.Lock()
				if generation {
					w.group.Gen++
					w.log.View = sigma.ViewID{Gen: w.group.ViewGen(), Num: 1}
				} else {
					w.log.View.Num = 7
				}
				w.log.Members = nodesAt("d", "e", "f")
				w.log.Base, w.log.Ceil = w.log.Ceil, w.log.Ceil+sigma.Block
				w.located = SigmaGroup{Group: w.group, Voters: w.log.Members}
				w.mu.Unlock()
				for _, n := range []string{"d", "e", "f"} {
					w.add(n)
				}
				before := time.Now()
				h := p.lock("n")
				if d := time.Since(before); d > 10*time.Second {
					t.Errorf("it took %v", d)
				}
				mustRelease(t, h)
				if w.looked > 4 {
					t.Errorf("%d look-ups", w.looked)
				}
			})
		})
	}
}

// TestSigmaWaitsForItsGroupToBeFound: a group that nobody has asked for yet has to be made, which fails for a while where one of those who
// make it is frozen. Whoever waits for the lock waits for that, too, tries included, as by protocol group.
func TestSigmaWaitsForItsGroupToBeFound(t *testing.T) {
	amongVoters(t, func(t *testing.T, w *voters) {
		passing := fmt.Errorf("%w: the group was not found in 5s", replicagroup.ErrNoQuorum)
		until := 0
		w.unfound = func(look int) error {
			if look <= until {
				return passing
			}
			return nil
		}
		for i, take := range []func(*Service, context.Context, string, ...Option) (*Handle, error){(*Service).Lock, (*Service).TryLock} {
			until = w.looked + 20
			h, err := take(w.peer(fmt.Sprint("p", i)).Service, t.Context(), "n")
			if err != nil {
				t.Fatal(err)
			}
			if w.looked != until+1 {
				t.Errorf("%d look-ups, %d of them in vain", w.looked, until)
			}
			mustRelease(t, h)
		}
	})
}

// TestSigmaTellsWhatKeptItsGroupFromBeingFound: the wait ends with the caller, the service and the peer, and not as one whose outcome is
// unknown, since nothing was sent.
func TestSigmaTellsWhatKeptItsGroupFromBeingFound(t *testing.T) {
	amongVoters(t, func(t *testing.T, w *voters) {
		var ails error
		w.unfound = func(int) error { return ails }
		ails = replicagroup.ErrNoQuorum
		before := time.Now()
		_, err := w.peer("limited").Lock(t.Context(), "n", WithWait(7*time.Second))
		if d := time.Since(before); d != 7*time.Second || !errors.Is(err, ErrNoQuorum) || !errors.Is(err, ErrWait) || errors.Is(err, ErrOutcomeUnknown) {
			t.Errorf("a wait of 7s: %v after %v", err, d)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		w.unfound = func(int) error { return context.Cause(ctx) } // as look-ups fail whose ctx ends under them
		<-ctx.Done()
		if _, err := w.peer("late").Lock(ctx, "n"); !errors.Is(err, ErrNoQuorum) || !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrOutcomeUnknown) {
			t.Errorf("a look-up that was cut short: %v", err)
		}
		w.unfound = func(int) error { return ails }
		for name, end := range map[string]func(*sigmaPeer) error{
			"service": func(p *sigmaPeer) error { return p.Close() }, "peer": func(p *sigmaPeer) error { return p.sigma.Close() },
		} {
			p, failed := w.peer(name), make(chan error, 1)
			go func() {
				_, err := p.Lock(context.Background(), "n")
				failed <- err
			}()
			synctest.Wait()
			if err := end(p); err != nil {
				t.Error(err)
			}
			if err := <-failed; !errors.Is(err, ErrClosed) {
				t.Errorf("after the %s was closed: %v", name, err)
			}
		}
		ails = replicagroup.ErrClosed
		if _, err := w.peer("stopped").Lock(t.Context(), "n"); !errors.Is(err, ErrClosed) {
			t.Errorf("a host that is closed: %v", err)
		}
		if w.messages() != 0 {
			t.Errorf("%d messages", w.messages())
		}
	})
}

// TestSigmaGrantLivesByTheCallsOfItsHolder is what a daemon's clients rely on: nobody renews for one that is gone.
func TestSigmaGrantLivesByTheCallsOfItsHolder(t *testing.T) {
	amongVoters(t, func(t *testing.T, w *voters) {
		p, q := w.peer("p"), w.peer("q")
		ctx, ttl := t.Context(), 3*time.Second
		g, err := p.backend.Acquire(ctx, Request{Name: "n", TTL: ttl})
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			time.Sleep(ttl / 2)
			if err := p.backend.Renew(ctx, g); err != nil {
				t.Fatal(err)
			}
		}
		last := time.Now()
		h := q.lock("n", WithTTL(ttl))
		if d := time.Since(last); d < ttl*9/10 || d > ttl*11/10 {
			t.Errorf("the next holds %v after the last renewal", d)
		}
		for name, err := range map[string]error{"renew": p.backend.Renew(ctx, g), "release": p.backend.Release(ctx, g)} {
			if !errors.Is(err, ErrNotHeld) {
				t.Errorf("%s of a lapsed grant: %v", name, err)
			}
		}
		mustRelease(t, h)
		time.Sleep(time.Minute)
		p.sigma.mu.Lock()
		defer p.sigma.mu.Unlock()
		if b := p.backend.(*sigmaBackend); len(p.sigma.lines)+len(p.sigma.idle)+len(b.grants) != 0 {
			t.Errorf("kept after a minute: %d lines, %d idle names, %d grants", len(p.sigma.lines), len(p.sigma.idle), len(b.grants))
		}
	})
}

func TestSigmaRefusesWhatItCannotKeep(t *testing.T) {
	amongVoters(t, func(t *testing.T, w *voters) {
		p := w.peer("p")
		ctx := t.Context()
		for want, f := range map[error]func() error{
			ErrLimit: func() error { _, err := p.RLock(ctx, "n"); return err }, // of the table, which refuses it here
			ErrTTL:   func() error { _, err := p.Lock(ctx, "n", WithTTL(time.Hour)); return err },
			ErrName:  func() error { _, err := p.Lock(ctx, ""); return err },
		} {
			if err := f(); !errors.Is(err, want) {
				t.Errorf("%v, want %v", err, want)
			}
		}
		for _, r := range []Request{{Permits: 2}, {Value: "x"}, {Shared: true}} {
			r.Name, r.TTL, r.Protocol = "n", time.Minute, ProtocolSigma
			if _, err := p.backend.Acquire(ctx, r); !errors.Is(err, ErrShape) {
				t.Errorf("%+v: %v", r, err)
			}
		}
		if w.messages() != 0 {
			t.Errorf("%d messages", w.messages())
		}
	})
}

func TestSigmaCloseEndsWhatWaits(t *testing.T) {
	amongVoters(t, func(t *testing.T, w *voters) {
		p, q := w.peer("p"), w.peer("q")
		h := p.lock("n")
		failed := make(chan error, 1)
		go func() {
			_, err := q.Lock(context.Background(), "n")
			failed <- err
		}()
		time.Sleep(time.Second)
		if err := q.Close(); err != nil {
			t.Error(err)
		}
		if err := <-failed; !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
		if err := p.Close(); err != nil || !errors.Is(context.Cause(h.Context()), ErrNotHeld) {
			t.Error(err, context.Cause(h.Context()))
		}
		before := time.Now()
		mustRelease(t, w.peer("r").lock("n")) // both have given it back
		if d := time.Since(before); d > 6*w.delay {
			t.Errorf("it took %v", d)
		}
		if _, err := p.backend.Acquire(t.Context(), Request{Name: "n", TTL: time.Minute}); !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	})
}

// TestSigmaContendersExcludeEachOther has many take one lock while messages get lost.
func TestSigmaContendersExcludeEachOther(t *testing.T) {
	amongVoters(t, func(t *testing.T, w *voters) {
		var n int
		w.lose(func(keyspace.NodeID, keyspace.NodeID, *sigma.Message) bool { n++; return n%11 == 0 })
		var mu sync.Mutex
		holders, last, taken := 0, Token(0), 0
		var wg sync.WaitGroup
		for i := range 12 {
			p := w.peer(fmt.Sprint("p", i))
			wg.Go(func() {
				for range 10 {
					h := p.lock("n", WithTTL(5*time.Second))
					mu.Lock()
					if holders++; holders != 1 || h.Token() <= last {
						t.Errorf("%d holders, token %v after %v", holders, h.Token(), last)
					}
					last = h.Token()
					taken++
					mu.Unlock()
					time.Sleep(time.Millisecond)
					mu.Lock()
					holders--
					mu.Unlock()
					mustRelease(t, h)
				}
			})
		}
		wg.Wait()
		if taken != 120 {
			t.Errorf("%d holds", taken)
		}
	})
}

// A release that no voter answers is given up by who waits for it after a third of the TTL, when its line repeats it next, and at once when the
// service ends; the line goes on with it.
func TestSigmaWaitForAReleaseIsBounded(t *testing.T) {
	amongVoters(t, func(t *testing.T, w *voters) {
		const ttl = 6 * time.Second
		p := w.peer("p")
		b := p.backend.(releaser)
		silent := func(_, to keyspace.NodeID, _ *sigma.Message) bool { return to != p.id }
		for _, end := range []time.Duration{time.Hour, time.Second} {
			g, err := p.backend.Acquire(t.Context(), Request{Name: "n", TTL: ttl})
			if err != nil {
				t.Fatal(err)
			}
			w.lose(silent)
			life, stop := context.WithCancel(t.Context())
			time.AfterFunc(end, stop)
			begun := time.Now()
			err = b.releaseWithin(t.Context(), life, ttl/callPart, g)
			took := time.Since(begun)
			if !errors.Is(err, ErrOutcomeUnknown) || errors.Is(err, ErrClosed) || errors.Is(err, errNoAnswer) != (end > ttl) {
				t.Errorf("%v", err)
			}
			if end < ttl && took != end || end > ttl && (took < ttl/callPart || took > ttl/2+ttl/10) {
				t.Errorf("given up after %v of a TTL of %v; the service ended after %v", took, ttl, end)
			}
			w.lose(nil)
			begun = time.Now()
			mustRelease(t, w.peer("q").lock("n", WithTTL(ttl)))
			if took := time.Since(begun); took > ttl/2+ttl/10 {
				t.Errorf("the next had to wait for %v", took)
			}
			stop()
		}
	})
}
