package raft

import (
	"container/heap"
	goflag "flag" // the package has a function of that name
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"latchkey/dht/keyspace"
	"latchkey/internal/invariant"
	"latchkey/replicagroup/order"
)

// seedsFlag is how many elections are held; groups that suffer mishaps are 30 to 1,000 of them, and 60 at least.
var seedsFlag = goflag.Int("seeds", 2000, "how many simulated elections")

// world runs a group in virtual time over a network and disks with faults, all drawn from one seed.
type world struct {
	tb    testing.TB
	rng   *rand.Rand
	cfg   Config
	now   time.Duration
	queue eventQueue
	count uint64
	nodes map[order.ReplicaID]*node
	cut   map[[2]order.ReplicaID]bool

	delay, jitter time.Duration // of a message; store takes half of it
	loss, dup     float64
	drop          func(*pb.Message) bool // loses what it says
	log           map[uint64]order.Entry // what anybody delivered, by index: agreement
	leaders       map[uint64]order.ReplicaID
	known         map[order.ReplicaID]order.Member // every member there ever was
	views         map[uint64]order.ViewNote        // by number
	newest        order.ViewNote
	trace         func(format string, args ...any)
	twins         bool // every replica has a twin that keeps what a sleeper lets go of, and must do the same
	dozed         int  // steps that ended in a replica that has let go of it
}

type node struct {
	id         order.ReplicaID
	eng        *Engine
	twin       *Engine // see world.twins
	up         bool
	life       int
	disk       disk
	writes     []order.Persist
	outbox     []order.Send // wait for writes
	stored     uint64
	machine    []string // one line an entry from the start or snapshot
	last       uint64   // applied
	compactAt  uint64   // compact when this many entries are kept, 0 never
	done       map[uint64]order.Outcome
	reads      map[uint64]uint64
	applyDelay time.Duration
	sent       map[string]int
	join       *order.View // it was added in this view
	halt       string
	prospects  []order.Prospect
}

// disk is a store as package order describes it.
type disk struct {
	state   []byte
	snap    *order.Record
	entries []order.Record
}

func (d *disk) write(r order.Record) {
	switch r.Kind {
	case order.RecordState:
		d.state = r.Data
	case order.RecordSnapshot:
		d.snap = &r
		i := 0
		for i < len(d.entries) && d.entries[i].Index <= r.Index {
			i++
		}
		d.entries = slices.Clone(d.entries[i:])
		if len(d.entries) > 0 && d.entries[0].Index != r.Index+1 {
			d.entries = nil
		}
	case order.RecordEntry:
		for i, e := range d.entries {
			if e.Index >= r.Index {
				d.entries = slices.Clone(d.entries[:i])
				break
			}
		}
		d.entries = append(d.entries, r)
	}
}

func (d *disk) image() order.Image {
	return order.Image{State: d.state, Snapshot: d.snap, Entries: slices.Clone(d.entries)}
}

type queued struct {
	at  time.Duration
	seq uint64
	run func()
}

type eventQueue []queued

func (q eventQueue) Len() int { return len(q) }
func (q eventQueue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}
func (q eventQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *eventQueue) Push(v any)   { *q = append(*q, v.(queued)) }
func (q *eventQueue) Pop() any {
	old := *q
	v := old[len(old)-1]
	*q = old[:len(old)-1]
	return v
}

func testView(voters, learners int) order.View {
	v := order.View{Num: 1, Next: order.ReplicaID(voters + learners + 1)}
	for i := range voters + learners {
		m := order.Member{ID: order.ReplicaID(i + 1), Peer: keyspace.NodeID{byte(i + 1)}, Store: order.StoreID{byte(i + 1)}, Role: order.Voter}
		if i >= voters {
			m.Role = order.Learner
		}
		v.Members = append(v.Members, m)
	}
	return v
}

var testGroup = order.GroupID{Overlay: order.OverlayID{1}, Gen: 3}

func newWorld(tb testing.TB, seed uint64, voters, learners int) *world {
	w := &world{
		tb: tb, rng: rand.New(rand.NewPCG(seed, 1)), nodes: map[order.ReplicaID]*node{}, cut: map[[2]order.ReplicaID]bool{},
		delay: time.Millisecond, jitter: 4 * time.Millisecond,
		log: map[uint64]order.Entry{}, leaders: map[uint64]order.ReplicaID{},
		cfg: Config{Group: testGroup, View: testView(voters, learners)},
	}
	w.known, w.views = map[order.ReplicaID]order.Member{}, map[uint64]order.ViewNote{}
	w.newest = order.ViewNote{View: w.cfg.View, Index: genesisIndex}
	w.views[w.newest.View.Num] = w.newest
	for _, m := range w.cfg.View.Members {
		w.add(m)
	}
	return w
}

func (w *world) add(m order.Member) *node {
	n := &node{id: m.ID, done: map[uint64]order.Outcome{}, reads: map[uint64]uint64{}, sent: map[string]int{}}
	w.nodes[m.ID], w.known[m.ID] = n, m
	return n
}

// noted checks a view that a replica tells of: everybody tells the same under one number. Who is new in it is started.
func (w *world) noted(n *node, v order.ViewNote) {
	if v.Joint != v.View.Joint() || checkView(v.View) != nil {
		w.tb.Fatalf("%d: bad view %+v", n.id, v)
	}
	if old, ok := w.views[v.View.Num]; ok {
		if !sameView(old.View, v.View) {
			w.tb.Fatalf("%d: view %+v, elsewhere %+v", n.id, v, old)
		}
		return
	}
	if v.View.Num != w.newest.View.Num+1 {
		w.tb.Fatalf("%d: view %d after %d", n.id, v.View.Num, w.newest.View.Num)
	}
	w.views[v.View.Num], w.newest = v, v
	for _, m := range v.View.Members {
		if _, ok := w.known[m.ID]; !ok {
			w.add(m).join = &v.View
			w.after(w.delay, func() { w.start(m.ID) })
		}
	}
}

func (w *world) ids() []order.ReplicaID { return slices.Sorted(maps.Keys(w.nodes)) }

func (w *world) startAll() {
	for _, id := range w.ids() {
		w.start(id)
	}
}

func (w *world) start(id order.ReplicaID) {
	w.tb.Helper()
	n, m := w.nodes[id], w.member(id)
	cfg := w.cfg
	cfg.Self, cfg.Store = id, m.Store
	if n.join != nil {
		cfg.View, cfg.Join = *n.join, true
	}
	eng, err := New(cfg, n.disk.image())
	if err != nil {
		w.tb.Fatalf("start %d: %v", id, err)
	}
	n.eng, n.up, n.stored, n.writes, n.outbox = eng, true, 0, nil, nil
	n.machine, n.last = nil, eng.Status().Applied
	if n.last > genesisIndex {
		n.last = genesisIndex // its snapshot comes first
	}
	n.life++
	if n.twin = nil; w.twins {
		if n.twin, err = New(cfg, n.disk.image()); err != nil {
			w.tb.Fatal(err)
		}
		n.twin.sleepless = true
	}
	w.step(n, order.Rand{Bits: w.rng.Uint64()})
}

func (w *world) member(id order.ReplicaID) order.Member {
	return w.known[id]
}

// crash stops a replica; a random prefix of what it was writing becomes durable, the last record of it perhaps torn off.
func (w *world) crash(id order.ReplicaID) {
	n := w.nodes[id]
	n.up = false
	n.life++
	var recs []order.Record
	for _, p := range n.writes {
		recs = append(recs, p.Records...)
	}
	if len(recs) > 0 {
		for _, r := range recs[:w.rng.IntN(len(recs)+1)] {
			n.disk.write(r)
		}
	}
}

func (w *world) after(d time.Duration, run func()) {
	w.count++
	heap.Push(&w.queue, queued{at: w.now + d, seq: w.count, run: run})
}

// at runs something on a node unless it has been restarted meanwhile.
func (w *world) at(n *node, d time.Duration, run func()) {
	life := n.life
	w.after(d, func() {
		if n.up && n.life == life {
			run()
		}
	})
}

// run lets virtual time pass until cond holds, at most d.
func (w *world) run(d time.Duration, cond func() bool) bool {
	end := w.now + d
	for !cond() {
		if len(w.queue) == 0 || w.queue[0].at > end {
			w.now = end
			return cond()
		}
		q := heap.Pop(&w.queue).(queued)
		w.now = q.at
		q.run()
	}
	return true
}

func (w *world) pass(d time.Duration) { w.run(d, func() bool { return false }) }

func (w *world) step(n *node, ev order.Event) {
	var out order.Actions
	ev = timed(ev, w.now)
	n.eng.Step(ev, &out)
	if n.eng.raft != nil && n.eng.raft.HasReady() {
		w.tb.Fatalf("%d: the library still has something after %T", n.id, ev)
	}
	if n.twin != nil {
		var same order.Actions
		if n.twin.Step(ev, &same); !reflect.DeepEqual(out, same) || n.eng.Hash() != n.twin.Hash() {
			w.tb.Fatalf("%d: after %T %+v\ncomes %+v\nwithout sleep %+v", n.id, ev, ev, out, same)
		}
	}
	if n.eng.raft == nil {
		w.dozed++
	}
	if w.trace != nil {
		w.trace("%v %d %T -> %x", w.now, n.id, ev, n.eng.Hash())
	}
	w.perform(n, &out)
	if lead, leading := n.eng.Leader(); leading {
		term := n.eng.Status().Term
		if other, ok := w.leaders[term]; ok && other != lead {
			w.tb.Fatalf("two leaders in term %d: %d and %d", term, other, lead)
		}
		w.leaders[term] = lead
	}
}

func (w *world) perform(n *node, out *order.Actions) {
	n.prospects = append(n.prospects, out.Prospects...)
	for _, p := range out.Persist {
		n.writes = append(n.writes, p)
		w.at(n, w.delay/2+w.some(w.jitter/2), func() { w.store(n, p.Seq) })
	}
	for _, s := range out.Send {
		if s.After > n.stored {
			n.outbox = append(n.outbox, s)
		} else {
			w.carry(n, s)
		}
	}
	for _, t := range out.Timers {
		if t.After >= 0 {
			w.at(n, t.After, func() { w.step(n, order.Timer{Kind: t.Kind, Epoch: t.Epoch}) })
		}
	}
	for _, in := range out.Install {
		if in.Index <= n.last {
			w.tb.Fatalf("%d: snapshot %d over %d", n.id, in.Index, n.last)
		}
		n.last, n.machine = in.Index, machineOf(in.Data)
		w.at(n, 0, func() { w.step(n, order.Applied{Index: in.Index}) })
	}
	for _, e := range out.Deliver {
		w.apply(n, e)
	}
	for _, v := range out.Views {
		w.noted(n, v)
	}
	if out.Halt != nil {
		n.up, n.halt = false, out.Halt.Reason
	}
	for _, d := range out.Done {
		if old, ok := n.done[d.Ref]; ok {
			w.tb.Fatalf("%d: second outcome for %d: %+v after %+v", n.id, d.Ref, d, old)
		}
		n.done[d.Ref] = d
	}
	for _, r := range out.ReadOK {
		if _, ok := n.reads[r.Ref]; ok {
			w.tb.Fatalf("%d: second read point for %d", n.id, r.Ref)
		}
		n.reads[r.Ref] = r.Index
	}
}

func (w *world) apply(n *node, e order.Entry) {
	if e.Index != n.last+1 {
		w.tb.Fatalf("%d: entry %d delivered after %d", n.id, e.Index, n.last)
	}
	if old, ok := w.log[e.Index]; ok && lineOf(old) != lineOf(e) {
		w.tb.Fatalf("%d: entry %d is %s, elsewhere %s", n.id, e.Index, lineOf(e), lineOf(old))
	}
	w.log[e.Index] = e
	n.last = e.Index
	n.machine = append(n.machine, lineOf(e))
	w.at(n, n.applyDelay, func() {
		w.step(n, order.Applied{Index: e.Index})
		if st := n.eng.Status(); n.compactAt > 0 && st.Applied >= st.First && st.Applied-st.First+1 >= n.compactAt && st.Applied == n.last {
			w.step(n, order.Compact{Index: n.last, Data: dataOf(n.machine)})
		}
	})
}

func lineOf(e order.Entry) string {
	return fmt.Sprintf("%d %d %v %s", e.Index, e.Kind, e.Cmd.Client, e.Cmd.Data)
}

// dataOf and machineOf are the test machine's snapshot format.
func dataOf(lines []string) []byte {
	var b []byte
	for _, l := range lines {
		b = append(append(b, l...), '\n')
	}
	return b
}

func machineOf(b []byte) []string {
	var lines []string
	for l := range slices.Values(splitLines(string(b))) {
		lines = append(lines, l)
	}
	return lines
}

func splitLines(s string) []string {
	var lines []string
	for len(s) > 0 {
		i := 0
		for s[i] != '\n' {
			i++
		}
		lines, s = append(lines, s[:i]), s[i+1:]
	}
	return lines
}

// store makes writes up to seq durable, in order.
func (w *world) store(n *node, seq uint64) {
	for len(n.writes) > 0 && n.writes[0].Seq <= seq {
		p := n.writes[0]
		n.writes = n.writes[1:]
		for _, r := range p.Records {
			n.disk.write(r)
		}
		n.stored = p.Seq
		var rest []order.Send
		for _, s := range n.outbox {
			if s.After <= n.stored {
				w.carry(n, s)
			} else {
				rest = append(rest, s)
			}
		}
		n.outbox = rest
		w.step(n, order.Stored{Seq: p.Seq})
	}
}

func (w *world) some(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return time.Duration(w.rng.Int64N(int64(d)))
}

func (w *world) carry(n *node, s order.Send) {
	m, err := decodeMessage(s.Whole())
	invariant.Check(err == nil, "own message can be read", err)
	n.sent[m.GetType().String()]++
	copies := 1
	if w.rng.Float64() < w.loss || w.drop != nil && w.drop(m) {
		copies = 0
	} else if w.rng.Float64() < w.dup {
		copies = 2
	}
	for range copies {
		w.after(w.delay+w.some(w.jitter), func() {
			to, ok := w.nodes[s.To]
			if ok && to.up && !w.cut[[2]order.ReplicaID{n.id, s.To}] {
				w.step(to, order.Recv{From: n.id, Store: w.member(n.id).Store, Msg: s.Whole()})
			}
		})
	}
}

// split cuts the group in parts that hear nothing of each other.
func (w *world) split(parts ...[]order.ReplicaID) {
	clear(w.cut)
	for i, a := range parts {
		for j, b := range parts {
			if i != j {
				for _, x := range a {
					for _, y := range b {
						w.cut[[2]order.ReplicaID{x, y}] = true
					}
				}
			}
		}
	}
}

// leader returns the replica that leads in the highest term, nil when none does.
func (w *world) leader() *node {
	var best *node
	for _, id := range w.ids() {
		n := w.nodes[id]
		if !n.up {
			continue
		}
		if _, leading := n.eng.Leader(); leading && (best == nil || n.eng.term > best.eng.term) {
			best = n
		}
	}
	return best
}

func (w *world) awaitLeader(d time.Duration) *node {
	w.tb.Helper()
	if !w.run(d, func() bool { return w.leader() != nil }) {
		w.tb.Fatalf("no leader within %v", d)
	}
	return w.leader()
}

func command(i uint64) order.Command {
	return order.Command{Client: order.ClientID{1}, Seq: i, Service: "test", Data: fmt.Appendf(nil, "c%d", i)}
}

// propose proposes command ref at a node.
func (w *world) propose(n *node, ref uint64) {
	w.step(n, order.Propose{Ref: ref, Stamp: order.Stamp{Boot: 1, At: w.now}, Cmd: command(ref)})
}

// commit proposes commands from..to at the leader and waits until all are delivered there.
func (w *world) commit(n *node, from, to uint64) {
	w.tb.Helper()
	for ref := from; ref <= to; ref++ {
		w.propose(n, ref)
		if !w.run(5*time.Second, func() bool { _, ok := n.done[ref]; return ok }) || n.done[ref].Err != nil {
			w.tb.Fatalf("command %d: %+v", ref, n.done[ref])
		}
	}
}

// agree waits until everybody who is up has applied the same, up to the highest commit.
func (w *world) agree(d time.Duration) {
	w.tb.Helper()
	same := func() bool {
		var want *node
		for _, id := range w.ids() {
			n := w.nodes[id]
			if !n.up {
				continue
			}
			if want == nil {
				want = n
			}
			if n.last != want.last || n.eng.commit != n.last || !slices.Equal(n.machine, want.machine) {
				return false
			}
		}
		return true
	}
	if !w.run(d, same) {
		for _, id := range w.ids() {
			n := w.nodes[id]
			w.tb.Errorf("%d: up %v applied %d, %d lines; %+v", id, n.up, n.last, len(n.machine), n.eng.Status())
		}
		w.tb.FailNow()
	}
}

// timed has an event tell the time.
func timed(ev order.Event, now time.Duration) order.Event {
	now += time.Hour // when the drivers started
	switch e := ev.(type) {
	case order.Recv:
		e.Now = now
		return e
	case order.Timer:
		e.Now = now
		return e
	case order.Read:
		e.Now = now
		return e
	case order.Suspect:
		e.Now = now
		return e
	case order.Rand:
		e.Now = now
		return e
	}
	return ev
}
