package durabletest

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"latchkey/coherence/durable"
	"latchkey/coherence/durable/cachedobject"
	"latchkey/coherence/durable/register"
	"latchkey/coherence/durable/store"
	"latchkey/coherence/protocol"
	"latchkey/internal/automaton"
	"latchkey/internal/sim"
)

// Periods of what drivers do.
const (
	simTick    = 50 * time.Millisecond
	simRepeat  = 250 * time.Millisecond
	simHosts   = 3
	simPatient = 60 * time.Second
)

// simulated is a group whose log is abstract: what its leader proposes is ordered after a while, unless another was elected meanwhile. Leaders that
// were deposed are not told, and may hear late that a round of theirs was confirmed.
type simulated struct {
	checks  world // its oracle, log and bounds; it has no nodes
	rand    *rand.Rand
	sim     *sim.World
	params  durable.Params
	hosts   [simHosts]*simHost
	nodes   []*simNode
	term    uint64
	leader  int // -1: none
	healed  bool
	report  simReport
	objects []string                 // the last is the listing of the others, if it is one
	listed  map[seen]durable.Version // of the listing, by the version of the object that was created or deleted
	ends    map[seen]time.Duration   // before which no clock within the drift has counted the TTL
}

type seen struct {
	object  string
	version durable.Version
}

type simReport struct{ reads, hits, writes, conflicts, unknown, locks, elections, crashes, expiries int }

type simHost struct {
	w       *simulated
	env     *sim.Env
	store   *store.Store
	reg     *register.Register
	term    uint64
	applied int
}

type simNode struct {
	w      *simulated
	env    *sim.Env
	at     int
	core   *cachedobject.Node
	calls  map[uint64]simCall
	id     uint64
	locked string
	hit    bool
	after  int // calls that ended since the healing
}

type simCall struct {
	object int
	kind   cachedobject.CallKind
	since  durable.Version
}

func runSim(seed uint64, m durable.Mutant) (w *simulated, err error) {
	r := rand.New(rand.NewPCG(seed, 0x51))
	pick := func(ds ...time.Duration) time.Duration { return ds[r.IntN(len(ds))] }
	w = &simulated{rand: r, leader: -1, objects: names[:1+r.IntN(len(names))], listed: map[seen]durable.Version{}, ends: map[seen]time.Duration{}}
	if r.IntN(3) == 0 {
		w.objects = []string{"d/x", "d/y", "d/"}
	}
	rho := automaton.Drift([]int{10_000, 50_000, 200_000}[r.IntN(3)])
	w.params = durable.Params{Lease: pick(time.Second, 2*time.Second, 5*time.Second), Drift: rho}
	w.checks = world{
		setup:  &setup{objects: len(w.objects), mutant: m, bound: true},
		oracle: store.New(store.Config{}), made: map[key]durable.Version{}, refused: map[key]bool{},
	}
	w.checks.oracle.Sabotage(m)
	faults := sim.Draw(seed, sim.Scale{Delay: 60 * time.Millisecond, Timeout: time.Second, Heal: 20 * time.Second, Drift: rho})
	clients := 2 + r.IntN(3)
	w.nodes = make([]*simNode, clients)
	w.sim = sim.New(sim.Config{Seed: seed, Nodes: simHosts + clients, Faults: faults, CrashLimit: 2}, w.boot)
	w.sim.Check = w.look
	every := pick(700*time.Millisecond, 3*time.Second, 10*time.Second)
	w.sim.At(10*time.Millisecond, func() { w.elect() })
	w.recur(every)
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	if err := w.sim.Run(faults.Heal); err != nil {
		return w, err
	}
	w.healed = true
	w.elect()
	limit := faults.Heal + simPatient
	progressed := func() bool {
		for _, n := range w.nodes {
			if n == nil || n.after < 20 {
				return false
			}
		}
		return true
	}
	if err := w.sim.RunUntil(limit, progressed); err != nil {
		return w, err
	}
	if !progressed() {
		return w, errors.New("live: somebody waits, and all goes well")
	}
	return w, nil
}

// recur elects somebody again and again while there are faults.
func (w *simulated) recur(every time.Duration) {
	w.sim.At(w.sim.Now()+time.Duration(w.rand.ExpFloat64()*float64(every)), func() {
		if !w.healed {
			w.elect()
			w.recur(every)
		}
	})
}

// soon runs f after what a message and its answer take.
func (w *simulated) soon(f func()) {
	w.sim.At(w.sim.Now()+time.Duration(w.rand.Int64N(int64(50*time.Millisecond))), f)
}

// elect has a host that is up begin a term. The log it has then is whole.
func (w *simulated) elect() {
	i := w.rand.IntN(simHosts)
	h := w.hosts[i]
	if h == nil || !h.env.Alive() {
		w.soon(func() { w.elect() })
		return
	}
	w.term++
	w.report.elections++
	w.leader, h.term = i, w.term
	w.checks.log = append(w.checks.log, logged{term: w.term})
	w.checks.oracle.Apply(uint64(len(w.checks.log)), w.sim.Now(), store.Command{})
	h.store = w.checks.oracle.Clone()
	h.applied = len(w.checks.log)
	h.reg = register.New(w.params, h.store)
	h.reg.Sabotage(w.checks.mutant)
	h.step(register.Event{Kind: register.Lead, Tenure: durable.Tenure{Term: w.term}, At: h.env.Now()})
}

func (w *simulated) boot(e *sim.Env) sim.Process {
	if e.Life() > 1 {
		w.report.crashes++
	}
	if i := int(e.ID()); i < simHosts {
		h := &simHost{w: w, env: e, store: store.New(store.Config{})}
		h.reg = register.New(w.params, h.store)
		w.hosts[i] = h
		if w.leader == i { // it was the leader before it crashed
			w.leader = -1
		}
		h.every(simTick, register.Tick)
		h.every(simRepeat, register.Repeat)
		if e.Life() > 1 && w.leader < 0 {
			w.soon(func() { w.elect() })
		}
		return h
	}
	n := &simNode{w: w, env: e, at: int(e.ID()) - simHosts, calls: map[uint64]simCall{}}
	n.core = cachedobject.New(cachedobject.Config{Self: protocol.NodeRef{ID: nodeID(n.at), Inc: e.Life()}, Params: w.params})
	n.core.Sabotage(w.checks.mutant)
	w.nodes[n.at] = n
	n.every(simRepeat, func() {
		if n.core.Waits() {
			n.step(cachedobject.Event{Kind: cachedobject.Repeat})
		}
	})
	n.every(w.params.Lease/3, func() {
		if n.hit { // copies that are not hit are not renewed
			n.hit = false
			n.step(cachedobject.Event{Kind: cachedobject.Extend})
		}
	})
	n.think()
	return n
}

func (h *simHost) Killed() {}

func (h *simHost) every(d time.Duration, k register.EventKind) {
	h.env.After(d, func() {
		h.step(register.Event{Kind: k})
		h.every(d, k)
	})
}

func (h *simHost) Receive(_ sim.NodeID, msg any) {
	m := msg.(durable.Message)
	h.step(register.Event{Kind: register.Receive, Msg: &m})
}

func (h *simHost) step(ev register.Event) {
	ev.Now = h.env.Now()
	owed := h.reg.Owed()
	for _, a := range h.reg.Step(ev, nil) {
		switch a.Kind {
		case register.Send:
			h.env.Send(sim.NodeID(simHosts+int(a.Msg.Node[3])-1), a.Msg)
		case register.Propose:
			h.propose(a.Cmd)
		case register.Confirm:
			h.round()
		}
	}
	if err := h.reg.Check(); err != nil {
		h.w.sim.Fail(err)
	}
	for o, base := range h.reg.Owed() {
		if was, ok := owed[o]; ok && base > was {
			h.w.sim.Fail(fmt.Errorf("bound: the lease of n%d moves while a write of %s waits for it", o.Node[3], o.Object))
		}
	}
}

// round has a majority confirm a round. The leader may hear of it after it was deposed.
func (h *simHost) round() {
	sent, term := h.env.Now(), h.term
	h.w.soon(func() {
		if h.w.term != term || !h.env.Alive() {
			return // the majority follows another
		}
		h.env.After(time.Duration(h.w.rand.Int64N(int64(300*time.Millisecond))), func() {
			if h.term == term {
				h.step(register.Event{Kind: register.Confirmed, At: sent})
			}
		})
	})
}

// propose has a command ordered, and the leader hear of it later.
func (h *simHost) propose(c store.Command) {
	term, w := h.term, h.w
	w.soon(func() {
		if w.term != term {
			return
		}
		w.commit(term, c)
		index := len(w.checks.log)
		h.env.After(time.Duration(w.rand.Int64N(int64(50*time.Millisecond))), func() {
			for h.term == term && h.applied < index {
				e := &w.checks.log[h.applied]
				h.applied++
				res := h.store.Apply(uint64(h.applied), w.sim.Now(), e.cmd)
				h.step(register.Event{Kind: register.Committed, Cmd: &e.cmd, Result: res})
			}
		})
	})
}

// commit appends to the log, and checks what that does.
func (w *simulated) commit(term uint64, c store.Command) {
	k := key{c.By, c.Seq}
	had := w.checks.oracle.Lookup(c.Object)
	w.checks.log = append(w.checks.log, logged{term, c})
	res := w.checks.oracle.Apply(uint64(len(w.checks.log)), w.sim.Now(), c)
	if res.Outcome != store.Applied {
		return
	}
	if res.Listing {
		w.listed[seen{c.Object, res.Version}] = w.checks.oracle.Lookup("d/").Version
	}
	if c.TTL > 0 {
		rho := float64(w.params.Drift) / 1e6
		w.ends[seen{c.Object, res.Version}] = w.sim.Now() + time.Duration(float64(c.TTL)/(1-rho)) - time.Microsecond
	}
	if c.By.IsZero() {
		w.report.expiries++
		if end := w.ends[seen{c.Object, c.Wanted}]; w.sim.Now() < end {
			w.checks.fail("TTL: %s is deleted %v too early", c.Object, end-w.sim.Now())
		}
		return
	}
	_, twice := w.checks.made[k]
	switch {
	case twice:
		w.checks.fail("twice: %v's write %d is applied twice", c.By, c.Seq)
	case w.checks.refused[k]:
		w.checks.fail("refused: %v's write %d is applied, though it was told to have failed", c.By, c.Seq)
	case c.Expect == durable.Exact && had.Version != c.Wanted, c.Expect == durable.Absent && had.Value != nil:
		w.checks.fail("condition: %v's write %d was applied to version %d", c.By, c.Seq, had.Version)
	}
	w.checks.made[k] = res.Version
}

// raise notes that a version was seen. Who has seen that an object was created or deleted finds it so in the listing.
func (w *simulated) raise(o int, v durable.Version) {
	w.checks.raise(o, v)
	if l, ok := w.listed[seen{w.objects[o], v}]; ok {
		w.checks.raise(len(w.objects)-1, l)
	}
}

// look lets every copy be hit that can be, whoever is paused.
func (w *simulated) look() error {
	for range 2 {
		for _, n := range w.nodes {
			if n == nil || !n.env.Alive() {
				continue
			}
			for o, name := range w.objects {
				if c := n.core.Readable(name, n.env.Now()); c != nil {
					if c.Version < w.checks.done[o] {
						w.checks.fail("stale: n%d has version %d of %s, and %d was seen", n.at+1, c.Version, name, w.checks.done[o])
					}
					w.raise(o, c.Version)
				}
			}
		}
	}
	return w.checks.broken
}

func (n *simNode) Killed() {}

func (n *simNode) every(d time.Duration, f func()) {
	n.env.After(d, func() {
		f()
		n.every(d, f)
	})
}

func (n *simNode) Receive(_ sim.NodeID, msg any) {
	m := msg.(durable.Message)
	n.step(cachedobject.Event{Kind: cachedobject.Receive, Msg: &m})
}

func (n *simNode) step(ev cachedobject.Event) {
	ev.Now = n.env.Now()
	for _, a := range n.core.Step(ev, nil) {
		switch a.Kind {
		case cachedobject.Send:
			to := n.w.leader
			if to < 0 || n.env.Rand().IntN(8) == 0 { // it may not know who leads
				to = n.env.Rand().IntN(simHosts)
			}
			n.env.Send(sim.NodeID(to), a.Msg)
		case cachedobject.Done:
			n.complete(a)
		}
	}
	if err := n.core.Check(); err != nil {
		n.w.sim.Fail(err)
	}
}

func (n *simNode) complete(a cachedobject.Action) {
	c, w := n.calls[a.Call], n.w
	delete(n.calls, a.Call)
	n.after++
	if !w.healed {
		n.after = 0
	}
	k := key{protocol.NodeRef{ID: nodeID(n.at), Inc: n.env.Life()}, a.Seq}
	switch a.Outcome {
	case cachedobject.Found, cachedobject.Locked, cachedobject.Mismatch:
		if a.Version < c.since {
			w.checks.fail("stale: n%d reads version %d of %s, and %d was there when it began", n.at+1, a.Version, w.objects[c.object], c.since)
		}
		w.raise(c.object, a.Version)
		w.report.reads++
		if _, made := w.checks.made[k]; a.Outcome == cachedobject.Mismatch {
			if made {
				w.checks.fail("refused: n%d is told that its write failed, and it was made", n.at+1)
			}
			w.checks.refused[k] = true
			w.report.conflicts++
		}
	case cachedobject.Written:
		if w.checks.made[k] != a.Version {
			w.checks.fail("acknowledged: n%d is told that it made version %d, and the log has %d", n.at+1, a.Version, w.checks.made[k])
		}
		w.raise(c.object, a.Version)
		w.report.writes++
	case cachedobject.Unknown:
		w.report.unknown++
	}
	if c.kind != cachedobject.Lock || a.Outcome != cachedobject.Locked {
		return
	}
	w.report.locks++
	n.locked = w.objects[c.object]
	n.env.After(time.Duration(n.env.Rand().Int64N(int64(100*time.Millisecond))), func() { // the update
		n.call(c.object, cachedobject.Call{Kind: cachedobject.Holder, Expect: durable.Exact, Wanted: a.Version, Value: n.value()})
		n.env.After(time.Duration(n.env.Rand().Int64N(int64(400*time.Millisecond))), func() {
			name := n.locked
			n.locked = ""
			n.step(cachedobject.Event{Kind: cachedobject.Unlock, Object: name})
		})
	})
}

func (n *simNode) value() *protocol.Cell {
	n.id++
	return &protocol.Cell{Bytes: []byte{byte(n.at), byte(n.env.Life()), byte(n.id >> 8), byte(n.id)}}
}

func (n *simNode) call(object int, c cachedobject.Call) {
	n.id++
	c.ID = n.id
	n.calls[c.ID] = simCall{object, c.Kind, n.w.checks.done[object]}
	n.step(cachedobject.Event{Kind: cachedobject.Begin, Object: n.w.objects[object], Call: c})
}

// think does something now and then.
func (n *simNode) think() {
	r := n.env.Rand()
	n.env.After(time.Duration(1+r.Int64N(int64(80*time.Millisecond))), func() {
		defer n.think()
		o := r.IntN(len(n.w.objects))
		name := n.w.objects[o]
		if c := n.core.Readable(name, n.env.Now()); c != nil {
			n.hit = true
			n.w.report.hits++
		}
		listing := durable.IsListing(name)
		if len(n.calls) >= 4 {
			if r.IntN(40) == 0 {
				id := slices.Max(slices.Collect(maps.Keys(n.calls)))
				n.step(cachedobject.Event{Kind: cachedobject.GiveUp, Object: n.w.objects[n.calls[id].object], Call: cachedobject.Call{ID: id}})
			}
			return
		}
		switch x := r.IntN(20); {
		case x < 12 || listing && x < 19:
			n.call(o, cachedobject.Call{Kind: cachedobject.Get})
		case x < 14:
			n.call(o, cachedobject.Call{Kind: cachedobject.Put, Value: n.value()})
		case x == 14:
			n.call(o, cachedobject.Call{Kind: cachedobject.Put, Value: n.value(), TTL: store.TTLMin + time.Duration(r.Int64N(int64(3*time.Second)))})
		case x == 15:
			n.call(o, cachedobject.Call{Kind: cachedobject.Put, Expect: durable.Absent, Value: n.value()})
		case x == 16:
			n.call(o, cachedobject.Call{Kind: cachedobject.Put, Delete: true})
		case x == 17:
			if c, _ := n.core.Stale(name); c != nil {
				n.call(o, cachedobject.Call{Kind: cachedobject.Put, Expect: durable.Exact, Wanted: c.Version, Value: n.value()})
			}
		case x == 18 && n.locked == "":
			for _, c := range n.calls {
				if c.kind == cachedobject.Lock {
					return
				}
			}
			n.call(o, cachedobject.Call{Kind: cachedobject.Lock})
		case x == 19:
			n.step(cachedobject.Event{Kind: cachedobject.Evict, Object: name})
		}
	})
}

// TestSimulation runs groups on hosts and clocks that fail: leaders that crash or are deposed and not told, nodes that are paused, cut off or
// start again, messages that are lost, doubled and late, clocks at the bounds of their rates.
func TestSimulation(t *testing.T) {
	worlds := max(1, *seedsFlag/15)
	var sum simReport
	for seed := range worlds {
		if *seedFlag != 0 {
			seed = *seedFlag - 1
		}
		w, err := runSim(seed+1, durable.NoMutant)
		if err != nil {
			t.Fatalf("seed %d: %v\n%+v %v\nreplay: go test ./coherence/durable/durabletest -run TestSimulation -seed %d", seed+1, err, w.params, w.sim, seed+1)
		}
		r := w.report
		sum.reads, sum.hits, sum.writes, sum.conflicts = sum.reads+r.reads, sum.hits+r.hits, sum.writes+r.writes, sum.conflicts+r.conflicts
		sum.unknown, sum.locks, sum.elections, sum.crashes = sum.unknown+r.unknown, sum.locks+r.locks, sum.elections+r.elections, sum.crashes+r.crashes
		sum.expiries += r.expiries
	}
	t.Logf("%d worlds: %+v", worlds, sum)
	if *seedFlag == 0 && (sum.hits == 0 || sum.writes == 0 || sum.conflicts == 0 || sum.locks == 0 || sum.elections == 0 || sum.crashes == 0 || sum.expiries == 0) {
		t.Error("something never happens")
	}
}

func TestTheSimulationRepeats(t *testing.T) {
	var hashes [2]uint64
	for i := range hashes {
		w, err := runSim(3, durable.NoMutant)
		if err != nil {
			t.Fatal(err)
		}
		hashes[i] = w.sim.Hash()
	}
	if hashes[0] != hashes[1] {
		t.Error("one seed makes two worlds")
	}
}
