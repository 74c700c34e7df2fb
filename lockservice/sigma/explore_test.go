package sigma

import (
	"flag"
	"fmt"
	"hash/maphash"
	"slices"
	"testing"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
)

var (
	exploreFlag = flag.Int("explore", 4_000, "how many states each exploration visits at most; 0 is all")
	onlyFlag    = flag.String("explore.only", "", "only the exploration of this name")
)

// The exploration tries every order of events of the automata as they are shipped, in a small world: messages are delivered at any
// time or never, entries of the log are applied at any time, timers fire late or never. Time is one clock that moves in steps of
// half a TTL, so a holder and a replica that count a lease from the same message end it in the same step, and drift is none of the
// exploration's business: the simulation has it. Lamport clocks are left out of a state's name, since nobody asks anew. What is on its way and
// can do nothing any more, whatever comes, is taken for lost: see stale.
type universe struct {
	now   automaton.Instant
	reps  []*explored[Replica] // shared between universes: a step copies the one it changes
	cls   []*explored[Client]
	mail  []post // sorted by name
	last  Token  // of the last hold
	ticks int
	gave  [2]bool
}

type explored[T any] struct {
	core    *T
	timer   automaton.Instant
	applied int
	name    string
}

type post struct {
	from, to keyspace.NodeID
	msg      Message
	name     string
}

const (
	exploreTTL  = 10 * time.Second
	exploreTick = exploreTTL / 2
)

type exploration struct {
	log     []Entry
	states  []LogState // after each
	ticks   int
	release bool   // holders may give back, waiters cancel
	patient bool   // clients leave it to the voters to say only after a while that they wait
	idle    bool   // nobody has anything yet: clients have just asked
	alone   bool   // the holder is the only client
	next    []byte // the voters of a view that follows; nil: none does
	deep    bool   // depth first, which goes far; breadth first finds the shortest schedule
	seen    map[uint64]struct{}
	seed    maphash.Seed
	todo    []*universe
	max     int
	path    error
}

// stale reports whether a message can do nothing any more to who gets it, whatever comes.
func (x *exploration) stale(u *universe, p *post) bool {
	for i, c := range u.cls {
		if clientNode(i) == p.to {
			return c.core.Stale(p.from, &p.msg)
		}
	}
	for _, e := range u.reps {
		if e.core.cfg.Self != p.to {
			continue
		}
		told := e.applied == len(x.log)
		for i, c := range u.cls {
			told = told && (clientNode(i) != p.from || c.core.view.View.Compare(e.core.log.View) >= 0)
		}
		return e.core.Stale(p.from, &p.msg, told)
	}
	return false
}

func (x *exploration) post(u *universe, from keyspace.NodeID, out []Action) (timer automaton.Instant, armed bool) {
	for i := range out {
		switch a := &out[i]; a.Kind {
		case Send:
			p := post{from: from, to: a.To, msg: a.Msg}
			p.name = string(p.msg.AppendState([]byte{from[0], a.To[0]}))
			at, dup := slices.BinarySearchFunc(u.mail, p.name, func(q post, n string) int {
				switch {
				case q.name < n:
					return -1
				case q.name > n:
					return 1
				}
				return 0
			})
			if !dup {
				u.mail = slices.Insert(u.mail, at, p)
			}
		case Arm:
			timer, armed = a.At, true
		case Acquired:
			if a.Tok <= u.last && x.path == nil {
				x.path = fmt.Errorf("I6: token %d after %d", a.Tok, u.last)
			}
			u.last = a.Tok
		}
	}
	return timer, armed
}

func nameState(b stateBytes, timer automaton.Instant, applied int) string {
	b.num(int64(timer), int64(applied))
	return string(b)
}

func (u *universe) copy() *universe {
	v := *u
	v.reps, v.cls, v.mail = slices.Clone(u.reps), slices.Clone(u.cls), slices.Clone(u.mail)
	return &v
}

// step gives an event to a node of a copy of u.
func (x *exploration) step(u *universe, to keyspace.NodeID, ev Event) *universe {
	ev.Now = u.now
	for i, r := range u.reps {
		if r.core.cfg.Self == to {
			n := &explored[Replica]{core: r.core.Clone(), timer: r.timer, applied: r.applied}
			if ev.Kind == Timer {
				n.timer = automaton.Never
			}
			if ev.Kind == Applied {
				n.applied++
			}
			if t, armed := x.post(u, to, n.core.Step(ev, nil)); armed {
				n.timer = t
			}
			if err := n.core.Check(); err != nil && x.path == nil {
				x.path = err
			}
			n.name = nameState(n.core.AppendState(nil), n.timer, n.applied)
			u.reps[i] = n
		}
	}
	for i, c := range u.cls {
		if clientNode(i) == to {
			n := &explored[Client]{core: c.core.Clone(), timer: c.timer}
			if ev.Kind == Timer {
				n.timer = automaton.Never
			}
			if t, armed := x.post(u, to, n.core.Step(ev, nil)); armed {
				n.timer = t
			}
			n.name = nameState(n.core.AppendState(nil), n.timer, 0)
			u.cls[i] = n
		}
	}
	return u
}

func clientNode(i int) keyspace.NodeID { return id(byte(10 + i)) }

// visit notes a state, and checks I5 in it.
func (x *exploration) visit(u *universe) error {
	u.mail = slices.DeleteFunc(u.mail, func(p post) bool { return x.stale(u, &p) }) // which is this state's own
	var h maphash.Hash
	h.SetSeed(x.seed)
	b := stateBytes{}
	b.num(int64(u.now), int64(u.last))
	b.bit(u.gave[:]...)
	_, _ = h.Write(b)
	for _, r := range u.reps {
		_, _ = h.WriteString(r.name)
	}
	for _, c := range u.cls {
		_, _ = h.WriteString(c.name)
	}
	for i := range u.mail {
		_, _ = h.WriteString(u.mail[i].name)
	}
	k := h.Sum64()
	if _, ok := x.seen[k]; !ok {
		x.seen[k] = struct{}{}
		x.todo = append(x.todo, u)
	}
	holders := 0
	for _, c := range u.cls {
		if s := c.core.state; (s == ClientHeld || s == ClientLost) && u.now < c.core.deadline {
			holders++
		}
	}
	if holders > 1 && x.path == nil {
		x.path = fmt.Errorf("I5: %d holders", holders)
	}
	return x.path
}

func (x *exploration) pop() (u *universe) {
	if last := len(x.todo) - 1; x.deep {
		u, x.todo = x.todo[last], x.todo[:last]
		return u
	}
	u, x.todo[0] = x.todo[0], nil
	x.todo = x.todo[1:]
	return u
}

// run explores from a state. It reports how many states it saw and whether these are all.
func (x *exploration) run(from *universe) (states int, complete bool, err error) {
	defer func() {
		states = len(x.seen)
		if p := recover(); p != nil {
			err = fmt.Errorf("invariant: %v", p)
		}
	}()
	x.seen, x.seed = make(map[uint64]struct{}), maphash.MakeSeed()
	if err := x.visit(from); err != nil {
		return 0, false, err
	}
	for len(x.todo) > 0 {
		if x.max > 0 && len(x.seen) > x.max {
			return 0, false, nil
		}
		u := x.pop()
		for i := range u.mail {
			v := u.copy()
			p := v.mail[i]
			v.mail = slices.Delete(v.mail, i, i+1)
			if err := x.visit(x.step(v, p.to, Event{Kind: Receive, From: p.from, Msg: &p.msg})); err != nil {
				return 0, false, err
			}
		}
		for _, r := range u.reps {
			if r.applied < len(x.log) {
				if err := x.visit(x.step(u.copy(), r.core.cfg.Self, Event{Kind: Applied, State: &x.states[r.applied]})); err != nil {
					return 0, false, err
				}
			}
			if r.timer <= u.now {
				if err := x.visit(x.step(u.copy(), r.core.cfg.Self, Event{Kind: Timer})); err != nil {
					return 0, false, err
				}
			}
		}
		for i, c := range u.cls {
			if c.timer <= u.now {
				if err := x.visit(x.step(u.copy(), clientNode(i), Event{Kind: Timer})); err != nil {
					return 0, false, err
				}
			}
			if x.release && !u.gave[i] {
				v := u.copy()
				v.gave[i] = true
				if err := x.visit(x.step(v, clientNode(i), Event{Kind: GiveBack})); err != nil {
					return 0, false, err
				}
			}
		}
		if u.ticks < x.ticks {
			v := u.copy()
			v.ticks++
			v.now = v.now.Add(exploreTick)
			if err := x.visit(v); err != nil {
				return 0, false, err
			}
		}
	}
	return 0, true, nil
}

// midState is the start of the design's exploration: X (client 10) holds through replicas 1 and 3, Y (11) owns replica 2. Nothing
// else is on its way.
func (x *exploration) midState(m mutant) *universe {
	log := LogState{Descriptor: Descriptor{View: ViewID{1, 1}, Members: ids(1, 2, 3)}, Base: 100, Ceil: 100 + Block, Cap: exploreTTL}
	u := &universe{now: 1}
	for b := byte(1); b <= slices.Max(append([]byte{3}, x.next...)); b++ {
		u.reps = append(u.reps, &explored[Replica]{timer: automaton.Never, core: NewReplica(ReplicaConfig{
			Self: id(b), Inc: 1, TTLMin: 1, TTLMax: 10 * exploreTTL, mutant: m,
		}, log)})
	}
	for i := range 2 {
		u.cls = append(u.cls, &explored[Client]{timer: automaton.Never, core: NewClient(ClientConfig{
			Name: "n", Req: Req{Session{byte(10 + i)}, 1}, TTL: exploreTTL, View: log.Descriptor, Patient: x.patient, mutant: m,
		})})
	}
	play := func(from, to byte) { // delivers the first such message, and drops its like
		for i := range u.mail {
			if p := u.mail[i]; p.from == id(from) && p.to == id(to) {
				u.mail = slices.Delete(u.mail, i, i+1)
				u = x.step(u, p.to, Event{Kind: Receive, From: p.from, Msg: &p.msg})
				return
			}
		}
	}
	u = x.step(u, id(10), Event{Kind: Begin})
	if !x.alone {
		u = x.step(u, id(11), Event{Kind: Begin})
	}
	if x.idle {
		return u
	}
	for _, l := range [][2]byte{{10, 1}, {1, 10}, {10, 3}, {3, 10}, {11, 2}, {2, 11}} {
		play(l[0], l[1])
	}
	u.mail = nil
	return u
}

func explore(m mutant, x *exploration) (int, bool, error) {
	if x.next != nil {
		x.log = []Entry{{Kind: EntryView, From: ViewID{1, 1}, Members: ids(x.next...)}}
	}
	u := x.midState(m)
	state := u.reps[0].core.log
	for _, e := range x.log {
		state, _ = state.Apply(e)
		x.states = append(x.states, state)
	}
	return x.run(u)
}

// TestExploration visits every state of small worlds, as far as -explore goes, and prints how many they were. A state is known by a
// hash of 64 bits: with millions of states, one may be taken for another and missed.
func TestExploration(t *testing.T) {
	t.Parallel()
	limit := *exploreFlag
	if testing.Short() {
		limit = 2000
	}
	for _, k := range []struct {
		name  string
		whole int // how many states there are, where that is known
		exploration
	}{
		{"one view, from the start", 41_615, exploration{idle: true}},
		{"one view, from the start, patient", 7_835, exploration{idle: true, patient: true}},
		{"one view, releases", 142, exploration{release: true}},
		{"one view, two steps of time", 0, exploration{ticks: 2}},
		{"one view, two steps of time, patient", 0, exploration{ticks: 2, patient: true}},
		{"view of 1", 113, exploration{next: []byte{1}}},
		{"view of 1, patient", 113, exploration{next: []byte{1}, patient: true}},
		{"view of 1, releases", 57_241, exploration{next: []byte{1}, release: true}},
		{"view of 1, from the start, patient", 0, exploration{next: []byte{1}, idle: true, patient: true, deep: true}},
		{"null change, one client", 435_440, exploration{next: []byte{1, 2, 3}, alone: true, deep: true}},
		{"a voter replaced, one client", 1_560_171, exploration{next: []byte{1, 2, 4}, alone: true, deep: true}},
		{"null change", 0, exploration{next: []byte{1, 2, 3}, deep: true}},
		{"view of 1, three steps of time", 0, exploration{next: []byte{1}, ticks: 3}},
		{"view of 1, three steps of time, depth first", 0, exploration{next: []byte{1}, ticks: 3, deep: true}},
		{"null change, three steps of time, depth first", 0, exploration{next: []byte{1, 2, 3}, ticks: 3, deep: true}},
		{"null change, three steps of time, depth first, patient", 0, exploration{next: []byte{1, 2, 3}, ticks: 3, deep: true, patient: true}},
	} {
		x := k.exploration
		if x.max = limit; *onlyFlag != "" && *onlyFlag != k.name {
			continue
		}
		small := k.whole > 0 && (limit == 0 || k.whole <= limit || limit >= wholeFrom && k.whole < 10*wholeFrom)
		if small {
			x.max = 0
		}
		n, all, err := explore(mutantNone, &x)
		t.Logf("%s: %d states, complete %v", k.name, n, all)
		if err != nil || small && (!all || n != k.whole) {
			t.Errorf("%s: after %d states, complete %v of %d: %v", k.name, n, all, k.whole, err)
		}
	}
}

// wholeFrom is the limit from which worlds that can be visited whole are, though they have more states, but not ten times as many.
const wholeFrom = 100_000

// TestTheExplorationCatchesMutants guards it against looking at nothing. What needs longer schedules than it reaches in seconds is
// caught by those of sigma_test.go.
func TestTheExplorationCatchesMutants(t *testing.T) {
	for m, x := range map[mutant]*exploration{
		mutantNoCandidates: {next: []byte{1}, ticks: 3, max: 5000}, mutantSmallBase: {next: []byte{1}, ticks: 3, deep: true, max: 40_000},
	} {
		n, _, err := explore(m, x)
		t.Logf("%v: %d states: %v", m, n, err)
		if err == nil {
			t.Errorf("%v: not caught in %d states", m, n)
		}
	}
}
