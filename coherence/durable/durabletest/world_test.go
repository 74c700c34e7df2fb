package durabletest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"strings"
	"time"

	"latchkey/coherence/durable"
	"latchkey/coherence/durable/cachedobject"
	"latchkey/coherence/durable/register"
	"latchkey/coherence/durable/store"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
)

// Clocks advance by 4 or 6 units in a tick of 5, which is a drift of 20 %. So a lease of D ticks lasts at a slow holder, and an arbiter with
// a fast clock waits, for D ticks exactly: the worst that can be. Leases are given in units, since D ticks are 5·D: a mistake about drift
// shows only where a lease is no whole number of ticks.
const (
	slow  = 4
	mean  = 5
	fast  = 6
	drift = automaton.Drift(200_000)
)

// setup is what does not change in a world.
type setup struct {
	nodes, objects, terms int
	lease                 int // in units
	reads, writes, locks  int // of each node
	budget                budget
	listing               bool // objects stand in a directory, which is read too
	apart                 bool // node 1 writes, and the others read
	cas                   bool // writes expect the version that the node has seen last
	absent                bool // node 1 writes if there is nothing, and others write or delete
	anchors               bool // a leader may hear late that its round was confirmed
	rates                 []int
	fixed                 bool // requests keep their numbers: exploration has to end
	mutant                durable.Mutant
	bound                 bool // check that nobody waits for more than one lease
}

// budget is what may still go wrong.
type budget struct{ dups, losses, crashes, evicts, giveUps, renewals int8 }

var names = [...]string{"x", "y"}

func (s *setup) name(o int) string {
	switch {
	case !s.listing:
		return names[o]
	case o == s.objects-1:
		return "d/"
	}
	return "d/" + names[o]
}

func (s *setup) params() durable.Params {
	return durable.Params{Lease: time.Duration(s.lease), Drift: drift}
}

// world is a state of everything. What it points at is shared between worlds and never changed: a move copies what it changes.
type world struct {
	*setup
	oracle  *store.Store // all that is committed
	log     []logged
	leaders []*leader
	nodes   []*node
	net     []*post
	budget  budget
	done    [3]durable.Version      // of each object, what was completed
	made    map[key]durable.Version // by each write
	refused map[key]bool            // writes that were told to have failed
	broken  error
}

type key struct {
	node protocol.NodeRef
	seq  durable.Seq
}

type logged struct {
	term uint64
	cmd  store.Command // of no object: a leader's first
}

type leader struct {
	term     uint64
	rate     int
	now      automaton.Instant
	store    *store.Store
	reg      *register.Register
	applied  int             // entries of the log
	proposed []store.Command // that are not committed
	wants    bool            // a confirmed round
	round    automaton.Instant
	flying   bool // a confirmed round, of which it has not heard
	digest   digest
}

type node struct {
	up                   bool
	rate                 int
	inc                  uint64
	now                  automaton.Instant
	core                 *cachedobject.Node
	reads, writes, locks int8
	calls                [8]call // that wait
	lastID               uint64
	digest               digest
}

type call struct {
	id     uint64
	object int
	kind   cachedobject.CallKind
	since  durable.Version // done when it began
}

type post struct {
	up     bool // to a leader
	msg    durable.Message
	digest digest
}

type digest [2]uint64

var digestSeeds = [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}

func digestOf(b []byte) digest {
	return digest{maphash.Bytes(digestSeeds[0], b), maphash.Bytes(digestSeeds[1], b)}
}

func nodeID(i int) keyspace.NodeID { return keyspace.NodeID{0, 0, 0, byte(i + 1)} }

func newWorld(s *setup) *world {
	w := &world{setup: s, budget: s.budget, oracle: store.New(store.Config{}), made: map[key]durable.Version{}, refused: map[key]bool{}}
	w.oracle.Sabotage(s.mutant)
	for i := range s.nodes {
		w.nodes = append(w.nodes, w.newNode(i, 1, s.rate(i, slow)))
		w.nodes[i].reads, w.nodes[i].writes, w.nodes[i].locks = int8(s.reads), int8(s.writes), int8(s.locks)
		if s.apart && i > 0 {
			w.nodes[i].writes = 0
		} else if s.apart {
			w.nodes[i].reads = 0
		}
		w.nodes[i].seal(i)
	}
	w.elect()
	// Before the first term there was nobody: it has not to be waited for.
	for w.leaders[0].now < automaton.Instant(w.params().Arbiter()) {
		w.tick()
	}
	return w
}

// rate is that of a process: nodes come first, then leaders by term.
func (s *setup) rate(i, otherwise int) int {
	if i < len(s.rates) {
		return s.rates[i]
	}
	return otherwise
}

func (w *world) newNode(i int, inc uint64, rate int) *node {
	n := &node{up: true, inc: inc, rate: rate}
	n.core = cachedobject.New(cachedobject.Config{Self: protocol.NodeRef{ID: nodeID(i), Inc: inc}, Params: w.params(), Fixed: w.fixed})
	n.core.Sabotage(w.mutant)
	return n
}

func (n *node) seal(i int) {
	b := protocol.AppendBools([]byte{1, byte(i), byte(n.inc), byte(n.reads), byte(n.writes), byte(n.locks), byte(n.rate), byte(n.lastID)}, n.up)
	if n.up {
		b = n.core.Append(b, n.now)
	}
	for _, c := range n.calls {
		b = binary.AppendUvarint(append(b, byte(c.id), byte(c.object), byte(c.kind)), uint64(c.since))
	}
	n.digest = digestOf(b)
}

func (l *leader) seal() {
	b := binary.AppendUvarint(append([]byte{2}, byte(l.term), byte(l.rate), byte(l.applied)), uint64(len(l.proposed)))
	for _, c := range l.proposed {
		b = binary.AppendUvarint(append(b, c.Object...), uint64(c.Seq))
		b = c.By.Append(b)
		b = binary.AppendUvarint(append(b, byte(len(c.Mark.Except))), c.Mark.Index)
	}
	b = protocol.AppendBools(b, l.wants, l.flying)
	if l.flying {
		b = binary.AppendUvarint(b, uint64(min(l.now.Sub(l.round), 100)))
	}
	// Log time stands, so the store is the same for the same log.
	l.digest = digestOf(l.reg.Append(l.store.Append(b)))
}

func (w *world) clone() *world {
	v := *w
	v.leaders, v.nodes, v.net = slices.Clone(w.leaders), slices.Clone(w.nodes), slices.Clone(w.net)
	return &v
}

// digest names the state. Messages have no order.
func (w *world) digest() digest {
	var d digest
	add := func(e digest) { d[0] += e[0]; d[1] += e[1] }
	for _, n := range w.nodes {
		add(n.digest)
	}
	for _, l := range w.leaders {
		add(l.digest)
	}
	for _, p := range w.net {
		add(p.digest)
	}
	g := w.budget
	b := append([]byte{4}, byte(g.dups), byte(g.losses), byte(g.crashes), byte(g.evicts), byte(g.giveUps), byte(g.renewals), byte(len(w.log)))
	for _, v := range w.done {
		b = binary.AppendUvarint(b, uint64(v))
	}
	for _, k := range slices.SortedFunc(maps.Keys(w.refused), func(a, b key) int { return bytes.Compare(a.append(nil), b.append(nil)) }) {
		b = k.append(b)
	}
	add(digestOf(w.oracle.Append(b)))
	return d
}

func (k key) append(b []byte) []byte { return binary.AppendUvarint(k.node.Append(b), uint64(k.seq)) }

func (w *world) fail(format string, args ...any) {
	if w.broken == nil {
		w.broken = fmt.Errorf(format, args...)
	}
}

func (w *world) send(up bool, m durable.Message) {
	b := []byte{3, 0}
	if up {
		b[1] = 1
	}
	p := &post{up, m, digestOf(m.Append(b))}
	if !slices.ContainsFunc(w.net, func(q *post) bool { return q.digest == p.digest }) {
		w.net = append(w.net, p)
	}
}

func (w *world) latest() int { return len(w.leaders) - 1 }

// elect begins a term. What is in the log the new leader has; what its predecessor has proposed and is not in the log never will be.
func (w *world) elect() {
	if at := w.latest(); at >= 0 && !w.anchors {
		w.stepLeader(at, register.Event{Kind: register.Confirmed, At: w.leaders[at].now}) // up to now it did lead
	}
	l := &leader{term: uint64(len(w.leaders) + 1)}
	l.rate = w.rate(len(w.nodes)+len(w.leaders), fast)
	w.log = append(slices.Clip(w.log), logged{term: l.term})
	w.oracle = w.oracle.Clone()
	w.oracle.Apply(uint64(len(w.log)), 0, store.Command{})
	l.store, l.applied = w.oracle.Clone(), len(w.log)
	l.reg = register.New(w.params(), l.store)
	l.reg.Sabotage(w.mutant)
	w.leaders = append(w.leaders, l)
	w.stepLeader(w.latest(), register.Event{Kind: register.Lead, Tenure: durable.Tenure{Term: l.term}, At: l.now})
}

func (w *world) stepLeader(at int, ev register.Event) {
	l := *w.leaders[at]
	w.leaders[at] = &l
	l.store = l.store.Clone()
	l.reg = l.reg.Clone(l.store)
	if ev.Kind == register.Committed { // the next entry of the log
		ev.Cmd = &w.log[l.applied].cmd
		l.applied++
		ev.Result = l.store.Apply(uint64(l.applied), 0, *ev.Cmd)
	}
	w.step(at, &l, ev)
	if !w.anchors && at == w.latest() && l.wants {
		l.wants = false
		w.step(at, &l, register.Event{Kind: register.Confirmed, At: l.now})
	}
	l.wants = l.wants && w.anchors
	l.seal()
}

func (w *world) step(at int, l *leader, ev register.Event) {
	ev.Now = l.now
	owed := l.reg.Owed()
	if !w.anchors && at == w.latest() && ev.Kind != register.Lead && ev.Kind != register.Confirmed { // it is confirmed all the time
		w.step(at, l, register.Event{Kind: register.Confirmed, At: l.now})
	}
	for _, a := range l.reg.Step(ev, nil) {
		switch a.Kind {
		case register.Send:
			w.send(false, a.Msg)
		case register.Propose:
			l.proposed = append(slices.Clip(l.proposed), a.Cmd)
		case register.Confirm:
			l.wants = true
		}
	}
	if err := l.reg.Check(); err != nil {
		w.fail("%v", err)
	}
	if w.bound {
		for o, base := range l.reg.Owed() {
			if was, ok := owed[o]; ok && base > was {
				w.fail("bound: the lease of n%d moves while a write of %s waits for it", o.Node[3], o.Object)
			}
		}
	}
}

// commit appends the first proposal of the leader to the log.
func (w *world) commit() {
	at := w.latest()
	l := *w.leaders[at]
	c := l.proposed[0]
	l.proposed = l.proposed[1:]
	l.seal()
	w.leaders[at] = &l
	k := key{c.By, c.Seq}
	had := w.oracle.Lookup(c.Object)
	w.oracle = w.oracle.Clone()
	w.log = append(slices.Clip(w.log), logged{l.term, c})
	res := w.oracle.Apply(uint64(len(w.log)), 0, c)
	if res.Outcome != store.Applied {
		return
	}
	if _, twice := w.made[k]; twice {
		w.fail("twice: %v's write %d is applied twice", c.By, c.Seq)
	}
	if w.refused[k] {
		w.fail("refused: %v's write %d is applied, though it was told to have failed", c.By, c.Seq)
	}
	if c.Expect == durable.Exact && had.Version != c.Wanted {
		w.fail("condition: %v's write %d expects version %d, and was applied to %d", c.By, c.Seq, c.Wanted, had.Version)
	}
	w.made = maps.Clone(w.made)
	w.made[k] = res.Version
}

func (w *world) stepNode(i int, ev cachedobject.Event) {
	n := *w.nodes[i]
	w.nodes[i] = &n
	n.core = n.core.Clone()
	ev.Now = n.now
	for _, a := range n.core.Step(ev, nil) {
		switch a.Kind {
		case cachedobject.Send:
			w.send(true, a.Msg)
		case cachedobject.Done:
			w.complete(&n, i, a)
		}
	}
	n.seal(i)
	if err := n.core.Check(); err != nil {
		w.fail("%v", err)
	}
}

// complete checks what a call is told.
func (w *world) complete(n *node, i int, a cachedobject.Action) {
	at := slices.IndexFunc(n.calls[:], func(c call) bool { return c.id == a.Call })
	c := n.calls[at]
	n.calls[at] = call{}
	k := key{protocol.NodeRef{ID: nodeID(i), Inc: n.inc}, a.Seq}
	switch a.Outcome {
	case cachedobject.Found, cachedobject.Locked, cachedobject.Mismatch:
		if a.Version < c.since {
			w.fail("stale: n%d reads version %d of %s, and %d was there when it began", i+1, a.Version, w.name(c.object), c.since)
		}
		w.raise(c.object, a.Version)
		if a.Outcome == cachedobject.Mismatch {
			if _, made := w.made[k]; made {
				w.fail("refused: n%d is told that its write failed, and it was made", i+1)
			}
			w.refused = maps.Clone(w.refused)
			w.refused[k] = true
		}
	case cachedobject.Written:
		if w.made[k] != a.Version {
			w.fail("acknowledged: n%d is told that it made version %d of %s, and the log has %d", i+1, a.Version, w.name(c.object), w.made[k])
		}
		w.raise(c.object, a.Version)
	}
	if a.Outcome == cachedobject.Locked {
		n.calls[at] = call{id: a.Call, object: c.object, kind: 0xff} // until it unlocks
	}
}

// raise notes that a version was seen.
func (w *world) raise(o int, v durable.Version) {
	w.done[o] = max(w.done[o], v)
}

// look lets every copy be hit that can be.
func (w *world) look() {
	for range 2 {
		for i, n := range w.nodes {
			if !n.up {
				continue
			}
			for o := range w.objects {
				if c := n.core.Readable(w.name(o), n.now); c != nil {
					if c.Version < w.done[o] {
						w.fail("stale: n%d has version %d of %s, and %d was seen", i+1, c.Version, w.name(o), w.done[o])
					}
					w.raise(o, c.Version)
				}
			}
		}
	}
	for o := range w.objects {
		owners := 0
		for _, n := range w.nodes {
			if n.up && n.core.Exclusive(w.name(o), n.now) {
				owners++
			}
		}
		if owners > 1 {
			w.fail("exclusive: %d nodes have the right to write %s", owners, w.name(o))
		}
	}
}

func (w *world) tick() {
	for i := range w.nodes {
		n := *w.nodes[i]
		n.now = n.now.Add(time.Duration(n.rate))
		n.core = n.core.Clone()
		n.seal(i)
		w.nodes[i] = &n
	}
	for at := range w.leaders {
		l := *w.leaders[at]
		l.now = l.now.Add(time.Duration(l.rate))
		w.leaders[at] = &l
		w.stepLeader(at, register.Event{Kind: register.Tick})
	}
}

// answered reports whether nobody waits.
func (w *world) answered() bool {
	for _, n := range w.nodes {
		for _, c := range n.calls {
			if n.up && c.id != 0 && c.kind != 0xff {
				return false
			}
		}
	}
	return true
}

type moveKind uint8

const (
	deliver moveKind = iota
	commit
	learn
	round
	hear
	repeatNode
	repeatLeader
	tick // the last that goes well
	read
	write
	lock
	unlock
	evict
	extend
	elect
	duplicate
	lose
	giveUp
	crash
)

var moveNames = [...]string{"deliver", "commit", "learn", "round", "hear", "repeat", "repeat leader", "tick", "read", "write", "lock", "unlock", "evict",
	"extend", "elect", "duplicate", "lose", "give up", "crash"}

type move struct {
	kind         moveKind
	node, leader int
	object       int
	post         int
	text         string
}

func (m move) String() string {
	return fmt.Sprintf("%s n%d t%d o%d %s", moveNames[m.kind], m.node+1, m.leader+1, m.object, m.text)
}

// moves lists what can happen; the first quiet ones belong to a run in which all goes well.
func (w *world) moves() (ms []move, quiet int) {
	for i, p := range w.net {
		if !p.up {
			ms = append(ms, move{kind: deliver, post: i})
			continue
		}
		for l := range w.leaders {
			ms = append(ms, move{kind: deliver, post: i, leader: l})
		}
	}
	if len(w.leaders[w.latest()].proposed) > 0 {
		ms = append(ms, move{kind: commit})
	}
	for at, l := range w.leaders {
		if l.applied < len(w.log) && w.log[l.applied].term <= l.term {
			ms = append(ms, move{kind: learn, leader: at})
		}
		if w.anchors && at == w.latest() && l.wants && !l.flying {
			ms = append(ms, move{kind: round, leader: at})
		}
		if l.flying {
			ms = append(ms, move{kind: hear, leader: at})
		}
		if l.reg.Waits() && !w.travels(-1) {
			ms = append(ms, move{kind: repeatLeader, leader: at})
		}
	}
	for i, n := range w.nodes {
		if n.up && n.core.Waits() && !w.travels(i) {
			ms = append(ms, move{kind: repeatNode, node: i})
		}
	}
	ms = append(ms, move{kind: tick})
	quiet = len(ms)
	for i, n := range w.nodes {
		if !n.up {
			continue
		}
		free := slices.ContainsFunc(n.calls[:], func(c call) bool { return c.id == 0 })
		for o := range w.objects {
			if free && n.reads > 0 {
				ms = append(ms, move{kind: read, node: i, object: o})
			}
			if listing := w.listing && o == w.objects-1; free && !listing {
				if n.writes > 0 {
					ms = append(ms, move{kind: write, node: i, object: o})
				}
				if n.locks > 0 {
					ms = append(ms, move{kind: lock, node: i, object: o})
				}
			}
			if w.budget.evicts > 0 && n.core.Readable(w.name(o), n.now) != nil {
				ms = append(ms, move{kind: evict, node: i, object: o})
			}
		}
		for _, c := range n.calls {
			switch {
			case c.kind == 0xff:
				ms = append(ms, move{kind: unlock, node: i, object: c.object})
			case c.id != 0 && w.budget.giveUps > 0:
				ms = append(ms, move{kind: giveUp, node: i, object: int(c.id)})
			}
		}
		if w.budget.renewals > 0 && n.core.Lease().Held && n.now < n.core.Lease().End {
			ms = append(ms, move{kind: extend, node: i})
		}
		if w.budget.crashes > 0 {
			ms = append(ms, move{kind: crash, node: i})
		}
	}
	for i, p := range w.net {
		if w.budget.dups > 0 {
			for l := range w.leaders {
				if p.up || l == 0 {
					ms = append(ms, move{kind: duplicate, post: i, leader: l})
				}
			}
		}
		if w.budget.losses > 0 {
			ms = append(ms, move{kind: lose, post: i})
		}
	}
	if len(w.leaders) < w.terms {
		ms = append(ms, move{kind: elect})
	}
	return ms, quiet
}

// travels reports whether a message of a node is under way; of -1, one that leaders repeat, or its answer.
func (w *world) travels(i int) bool {
	return slices.ContainsFunc(w.net, func(p *post) bool {
		if i >= 0 {
			return p.msg.Node == nodeID(i)
		}
		switch p.msg.Kind {
		case durable.Invalidate, durable.InvalidateAck, durable.Recall, durable.Release:
			return true
		}
		return false
	})
}

func (w *world) apply(m move) *world {
	v := w.clone()
	v.make(m)
	v.look()
	return v
}

func (w *world) make(m move) {
	switch m.kind {
	case deliver, duplicate:
		p := w.net[m.post]
		if m.kind == duplicate {
			w.budget.dups--
		} else {
			w.net = slices.Delete(w.net, m.post, m.post+1)
		}
		msg := p.msg
		if p.up {
			w.stepLeader(m.leader, register.Event{Kind: register.Receive, Msg: &msg})
		} else if i := int(msg.Node[3]) - 1; w.nodes[i].up {
			w.stepNode(i, cachedobject.Event{Kind: cachedobject.Receive, Msg: &msg})
		}
	case commit:
		w.commit()
	case learn:
		w.stepLeader(m.leader, register.Event{Kind: register.Committed})
	case round:
		l := *w.leaders[m.leader]
		l.round, l.flying, l.wants = l.now, true, false
		l.seal()
		w.leaders[m.leader] = &l
	case hear:
		l := *w.leaders[m.leader]
		l.flying = false
		w.leaders[m.leader] = &l
		w.stepLeader(m.leader, register.Event{Kind: register.Confirmed, At: l.round})
	case repeatLeader:
		w.stepLeader(m.leader, register.Event{Kind: register.Repeat})
	case repeatNode:
		w.stepNode(m.node, cachedobject.Event{Kind: cachedobject.Repeat})
	case tick:
		w.tick()
	case read, write, lock:
		w.begin(m)
	case unlock:
		n := *w.nodes[m.node]
		w.nodes[m.node] = &n
		for i, c := range n.calls {
			if c.kind == 0xff && c.object == m.object {
				n.calls[i] = call{}
			}
		}
		w.stepNode(m.node, cachedobject.Event{Kind: cachedobject.Unlock, Object: w.name(m.object)})
	case evict:
		w.budget.evicts--
		w.stepNode(m.node, cachedobject.Event{Kind: cachedobject.Evict, Object: w.name(m.object)})
	case extend:
		w.budget.renewals--
		w.stepNode(m.node, cachedobject.Event{Kind: cachedobject.Extend})
	case elect:
		w.elect()
	case lose:
		w.budget.losses--
		w.net = slices.Delete(w.net, m.post, m.post+1)
	case giveUp:
		w.budget.giveUps--
		for _, c := range w.nodes[m.node].calls {
			if c.id == uint64(m.object) {
				w.stepNode(m.node, cachedobject.Event{Kind: cachedobject.GiveUp, Object: w.name(c.object), Call: cachedobject.Call{ID: c.id}})
			}
		}
	case crash:
		w.budget.crashes--
		was := w.nodes[m.node]
		n := w.newNode(m.node, was.inc+1, was.rate)
		n.now, n.reads, n.writes, n.locks = was.now, was.reads, was.writes, was.locks
		n.seal(m.node)
		w.nodes[m.node] = n
	}
}

// begin begins a call.
func (w *world) begin(m move) {
	n := *w.nodes[m.node]
	w.nodes[m.node] = &n
	n.lastID++
	c := cachedobject.Call{ID: n.lastID, Kind: cachedobject.Get}
	held := slices.ContainsFunc(n.calls[:], func(c call) bool { return c.kind == 0xff && c.object == m.object })
	switch m.kind {
	case read:
		n.reads--
	case lock:
		n.locks--
		c.Kind = cachedobject.Lock
	case write:
		n.writes--
		c.Kind, c.Value = cachedobject.Put, &protocol.Cell{Bytes: []byte{byte(m.node), byte(n.lastID)}}
		if held {
			c.Kind = cachedobject.Holder
		}
		if seen, _ := n.core.Stale(w.name(m.object)); w.cas && seen != nil {
			c.Expect, c.Wanted = durable.Exact, seen.Version
		}
		if w.absent {
			if m.node == 0 {
				c.Expect = durable.Absent
			} else if n.writes == 0 {
				c.Delete, c.Value = true, nil
			}
		}
	}
	i := slices.IndexFunc(n.calls[:], func(c call) bool { return c.id == 0 })
	n.calls[i] = call{c.ID, m.object, c.Kind, w.done[m.object]}
	w.stepNode(m.node, cachedobject.Event{Kind: cachedobject.Begin, Object: w.name(m.object), Call: c})
}

// state prints everything.
func (w *world) state() string {
	var b strings.Builder
	fmt.Fprintf(&b, "log %d done %v", len(w.log), w.done[:w.objects])
	for _, l := range w.leaders {
		fmt.Fprintf(&b, " | t%d at %d applied %d, proposed %d", l.term, l.now, l.applied, len(l.proposed))
	}
	for i, n := range w.nodes {
		lease := n.core.Lease()
		fmt.Fprintf(&b, " | n%d at %d ssn %v lease %v to %d", i+1, n.now, lease.Session, lease.Held, lease.End)
		for o := range w.objects {
			fmt.Fprintf(&b, " %s:%d", w.name(o), n.core.State(w.name(o)))
			if c := n.core.Readable(w.name(o), n.now); c != nil {
				fmt.Fprintf(&b, "=v%d", c.Version)
			}
		}
	}
	return b.String()
}

var errStuck = errors.New("live: somebody waits, and nothing that goes well helps")
