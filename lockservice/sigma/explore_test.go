package sigma

import (
	"encoding/binary"
	"flag"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"testing"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
)

var exploreFlag = flag.Int("explore", 8_000, "how many states each exploration visits at most; 0 is all")

// The exploration tries every order of events of the automata as they are shipped, in a small world: messages are delivered at any
// time or never, entries of the log are applied at any time, timers fire late or never. Time is one clock that moves in steps of
// half a TTL, so a holder and a replica that count a lease from the same message end it in the same step, and drift is none of the
// exploration's business: the simulation has it. Lamport clocks are left out of a state's name, since nobody asks anew.
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
	release bool // holders may give back, waiters cancel
	deep    bool // depth first, which goes far; breadth first finds the shortest schedule
	seen    map[uint64]bool
	seed    maphash.Seed
	todo    []*universe
	max     int
	path    error
}

func (r *Replica) clone() *Replica {
	c := *r
	c.locks = make(map[string]*lock, len(r.locks))
	c.due, c.idle = slices.Clone(r.due), idleList{}
	for n, l := range r.locks {
		k := l.clone()
		k.prev, k.next, k.idle = nil, nil, false
		c.locks[n] = k
		if l.at >= 0 {
			c.due[l.at] = k
		}
	}
	for l := r.idle.first; l != nil; l = l.next {
		c.idle.push(c.locks[l.name])
	}
	c.frozen.locks = maps.Clone(r.frozen.locks)
	for n, l := range c.frozen.locks {
		c.frozen.locks[n] = l.clone()
	}
	c.perPeer, c.reported, c.parked = maps.Clone(r.perPeer), maps.Clone(r.reported), make(map[string][]parkedMessage)
	for n, p := range r.parked {
		c.parked[n] = slices.Clone(p)
	}
	c.incoming = make(map[keyspace.NodeID]*incoming)
	for n, in := range r.incoming {
		k := *in
		k.pieces = slices.Clone(in.pieces)
		c.incoming[n] = &k
	}
	return &c
}

func (l *lock) clone() *lock {
	k := *l
	k.queue, k.candidates, k.ended = slices.Clone(l.queue), slices.Clone(l.candidates), slices.Clone(l.ended)
	return &k
}

func (c *Client) clone() *Client {
	k := *c
	k.seats = slices.Clone(c.seats)
	return &k
}

// names: everything of a state that the future depends on, as bytes.

type namer []byte

func (b *namer) num(vs ...int64) {
	for _, v := range vs {
		*b = binary.AppendVarint(*b, v)
	}
}

func (b *namer) bit(vs ...bool) {
	for _, v := range vs {
		if v {
			*b = append(*b, 1)
		} else {
			*b = append(*b, 0)
		}
	}
}

func (b *namer) wish(w *wish) {
	b.num(int64(w.req.Session[0]), int64(w.req.Seq), int64(w.reqTS), int64(w.cs), int64(w.tok), int64(w.seen), int64(w.ttl))
	b.bit(w.heard)
}

func (b *namer) lock(l *lock) {
	b.num(int64(l.rec), int64(l.gid.Inc), int64(l.gid.N), int64(l.prop), int64(l.exp), int64(l.delay), int64(l.wake), int64(len(l.queue)), int64(len(l.candidates)), int64(len(l.ended)))
	b.bit(l.owned, l.asked, l.idle)
	if l.owned {
		b.wish(&l.owner)
	}
	for i := range l.queue {
		b.wish(&l.queue[i])
	}
	for i := range l.candidates {
		c := &l.candidates[i]
		b.wish(&c.wish)
		b.num(int64(c.until), int64(c.votes))
		b.bit(c.claimed)
	}
	for _, e := range l.ended {
		b.num(int64(e.Session[0]), int64(e.Seq))
	}
}

func (b *namer) message(m *Message) {
	b.num(int64(m.Kind), int64(m.View.Num), int64(m.Req.Session[0]), int64(m.Req.Seq), int64(m.ReqTS), int64(m.CS), int64(m.Tok), int64(m.GID.Inc),
		int64(m.GID.N), int64(m.Owner.Session[0]), int64(m.Owner.Seq), int64(m.Chunk))
	b.bit(m.Older, m.Ack)
	if m.Report != nil {
		for _, e := range m.Report.Entries {
			for _, p := range e.Parties {
				b.num(1, int64(p.Req.Session[0]), int64(p.CS), int64(p.Left))
			}
			for _, p := range e.Queue {
				b.num(2, int64(p.Req.Session[0]), int64(p.CS))
			}
			for _, q := range e.Ended {
				b.num(3, int64(q.Session[0]), int64(q.Seq))
			}
		}
	}
}

func nameReplica(r *Replica, timer automaton.Instant, applied int) string {
	var b namer
	b.num(int64(r.log.View.Num), int64(r.floor), int64(r.grants), int64(r.suspendAt), int64(r.settleAt), int64(r.embargo), int64(r.pullAt), int64(timer), int64(applied))
	b.bit(r.booting, r.settled, r.suspended, r.frozen.true)
	for _, l := range r.locks {
		b.lock(l)
	}
	for _, l := range r.frozen.locks {
		b.lock(l)
	}
	for _, n := range sortedKeys(r.reported) {
		b.num(int64(n[0]))
	}
	for _, p := range r.parked {
		for i := range p {
			b.message(&p[i].msg)
		}
	}
	for _, n := range sortedKeys(r.incoming) {
		b.num(int64(n[0]), int64(r.incoming[n].view.Num), int64(r.incoming[n].missing))
		for _, p := range r.incoming[n].pieces {
			for _, e := range p {
				b.num(int64(e.at), int64(len(e.Parties)), int64(len(e.Queue)))
				for _, q := range e.Parties {
					b.num(int64(q.Req.Session[0]), int64(q.Left))
				}
			}
		}
	}
	return string(b)
}

func nameClient(c *Client, timer automaton.Instant) string {
	var b namer
	b.num(int64(c.state), int64(c.view.View.Num), int64(c.tok), int64(c.deadline), int64(c.next), int64(c.asked), int64(c.patient), int64(c.rounds), int64(c.giveUp), int64(timer))
	for i := range c.seats {
		s := &c.seats[i]
		b.num(int64(s.gid.Inc), int64(s.gid.N), int64(s.prop), int64(s.echo), int64(s.put), int64(s.ownerGID.N), int64(s.owner.Session[0]))
		b.bit(s.live, s.yielded, s.older, s.heard, s.answered, s.released)
	}
	return string(b)
}

func (x *exploration) post(u *universe, from keyspace.NodeID, out []Action) (timer automaton.Instant, armed bool) {
	for i := range out {
		switch a := &out[i]; a.Kind {
		case Send:
			p := post{from: from, to: a.To, msg: a.Msg}
			var b namer
			b.num(int64(from[0]), int64(a.To[0]))
			b.message(&p.msg)
			p.name = string(b)
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
			n := &explored[Replica]{core: r.core.clone(), timer: r.timer, applied: r.applied}
			if ev.Kind == Timer {
				n.timer = automaton.Never
			}
			if ev.Kind == Applied {
				n.applied++
			}
			if t, armed := x.post(u, to, n.core.Step(ev, nil)); armed {
				n.timer = t
			}
			if err := n.core.check(); err != nil && x.path == nil {
				x.path = err
			}
			n.name = nameReplica(n.core, n.timer, n.applied)
			u.reps[i] = n
		}
	}
	for i, c := range u.cls {
		if clientNode(i) == to {
			n := &explored[Client]{core: c.core.clone(), timer: c.timer}
			if ev.Kind == Timer {
				n.timer = automaton.Never
			}
			if t, armed := x.post(u, to, n.core.Step(ev, nil)); armed {
				n.timer = t
			}
			n.name = nameClient(n.core, n.timer)
			u.cls[i] = n
		}
	}
	return u
}

func clientNode(i int) keyspace.NodeID { return id(byte(10 + i)) }

// visit notes a state, and checks I5 in it.
func (x *exploration) visit(u *universe) error {
	var h maphash.Hash
	h.SetSeed(x.seed)
	var b namer
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
	if k := h.Sum64(); !x.seen[k] {
		x.seen[k] = true
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
	x.seen, x.seed = make(map[uint64]bool), maphash.MakeSeed()
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
	for b := byte(1); b < 4; b++ {
		u.reps = append(u.reps, &explored[Replica]{timer: automaton.Never, core: NewReplica(ReplicaConfig{
			Self: id(b), Inc: 1, TTLMin: 1, TTLMax: 10 * exploreTTL, mutant: m,
		}, log)})
	}
	for i := range 2 {
		u.cls = append(u.cls, &explored[Client]{timer: automaton.Never, core: NewClient(ClientConfig{
			Name: "n", Req: Req{Session{byte(10 + i)}, 1}, TTL: exploreTTL, View: log.Descriptor, mutant: m,
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
	u = x.step(u, id(11), Event{Kind: Begin})
	for _, l := range [][2]byte{{10, 1}, {1, 10}, {10, 3}, {3, 10}, {11, 2}, {2, 11}} {
		play(l[0], l[1])
	}
	u.mail = nil
	return u
}

func explore(m mutant, next []byte, x *exploration) (int, bool, error) {
	if next != nil {
		x.log = []Entry{{Kind: EntryView, From: ViewID{1, 1}, Members: ids(next...)}}
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
		name string
		next []byte
		exploration
	}{
		{"one view, releases", nil, exploration{release: true}},
		{"one view, two steps of time", nil, exploration{ticks: 2}},
		{"view of 1", []byte{1}, exploration{}},
		{"view of 1, releases", []byte{1}, exploration{release: true}},
		{"view of 1, three steps of time", []byte{1}, exploration{ticks: 3}},
		{"view of 1, three steps of time, depth first", []byte{1}, exploration{ticks: 3, deep: true}},
		{"null change, three steps of time, depth first", []byte{1, 2, 3}, exploration{ticks: 3, deep: true}},
	} {
		x := k.exploration
		x.max = limit
		n, all, err := explore(mutantNone, k.next, &x)
		t.Logf("%s: %d states, complete %v", k.name, n, all)
		if err != nil {
			t.Errorf("%s: after %d states: %v", k.name, n, err)
		}
	}
}

// TestTheExplorationCatchesMutants guards it against looking at nothing. What needs longer schedules than it reaches in seconds is
// caught by those of sigma_test.go.
func TestTheExplorationCatchesMutants(t *testing.T) {
	for m, x := range map[mutant]*exploration{
		mutantNoCandidates: {ticks: 3, max: 5000}, mutantSmallBase: {ticks: 3, deep: true, max: 20_000},
	} {
		n, _, err := explore(m, []byte{1}, x)
		t.Logf("%v: %d states: %v", m, n, err)
		if err == nil {
			t.Errorf("%v: not caught in %d states", m, n)
		}
	}
}
