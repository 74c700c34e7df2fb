package coherencetest

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"time"

	"latchkey/coherence"
	"latchkey/coherence/appmanager"
	"latchkey/coherence/manager"
	"latchkey/coherence/pb"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
	"latchkey/internal/sim"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/raft"
	"latchkey/replicagroup/session"
)

// A world whose managers are the machines of real replica groups: coherence.Machine behind a session table and the ordering engine, on simulated
// disks. Leaders change, members are replaced, and up to f of a view are down at a time. In half of the worlds all who use objects are guests, as the nodes
// are that have an application open; in the others there are threads, which move, and checkpoints, of which only those are kept that count.

const (
	raftHeartbeat = 100 * time.Millisecond
	raftCompact   = 64 // entries between two snapshots
	raftDigest    = 16 // entries between two comparisons of whole states
)

type raftGroup struct {
	w       *simulated
	at      int
	id      order.GroupID
	view    order.View // the newest that a replica has told of
	home    map[order.ReplicaID]int
	disks   map[order.ReplicaID]*raftDisk
	running map[order.ReplicaID]*raftReplica
	states  map[uint64][32]byte
	stores  byte
	changes uint64 // questions for changes of the view
	cuts    map[protocol.CheckpointID]bool
}

// posted is what coherence.Machine posts.
type posted interface {
	Messages() []protocol.Message
	Concerns(f func(object keyspace.Key, n protocol.NodeRef, suspected bool))
	Duty() (coherence.Duty, bool)
}

type raftDisk struct {
	store order.StoreID
	first order.View
	join  bool
	image order.Image
	gone  bool // removed from the group
}

type raftFrame struct {
	group    int
	from, to order.ReplicaID
	store    order.StoreID
	msg      order.Message
}

type raftReplica struct {
	h       *host
	g       *raftGroup
	id      order.ReplicaID
	disk    *raftDisk
	engine  *raft.Engine
	table   *session.Table
	outputs session.Outputs
	timers  map[order.TimerKind]func()

	events   []order.Event
	busy     bool
	unstored []order.Persist // on their way to the disk, in order
	held     []order.Send    // wait for them
	stored   uint64
	applied  uint64
	compact  uint64
	ref      uint64
	led      bool
	halted   bool
}

func raftPeer(host int) keyspace.NodeID { return nodeID(host + 1) }

// found makes the groups of a world.
func (w *simulated) found() {
	for at := range w.cfg.raft {
		g := &raftGroup{w: w, at: at, home: map[order.ReplicaID]int{}, disks: map[order.ReplicaID]*raftDisk{},
			running: map[order.ReplicaID]*raftReplica{}, states: map[uint64][32]byte{}, cuts: map[protocol.CheckpointID]bool{}}
		g.view = order.View{Num: 1, Next: order.ReplicaID(2*w.cfg.f + 2)}
		for i, host := range w.rand.Perm(w.cfg.hosts)[:2*w.cfg.f+1] {
			m := order.Member{ID: order.ReplicaID(i + 1), Peer: raftPeer(host), Store: g.newStore(), Role: order.Voter}
			g.view.Members = append(g.view.Members, m)
			g.home[m.ID] = host
		}
		for _, m := range g.view.Members {
			g.disks[m.ID] = &raftDisk{store: m.Store, first: g.view}
		}
		w.raft = append(w.raft, g)
	}
}

func (g *raftGroup) newStore() order.StoreID {
	g.stores++
	return order.StoreID{byte(g.at + 1), g.stores}
}

// raftOf is the group that keeps a manager.
func (w *simulated) raftOf(object int) *raftGroup { return w.raft[(object+1)%len(w.raft)] }

// String prints a group, and what its leader would say again.
func (g *raftGroup) String() string {
	s := fmt.Sprintf("\ngroup %d, view %d:", g.at, g.view.Num)
	for id := order.ReplicaID(1); id < g.view.Next; id++ {
		r := g.running[id]
		if r == nil {
			continue
		}
		st := r.engine.Status()
		s += fmt.Sprintf(" %d@n%d(term %d, commit %d, last %d, applied %d, leader %d %v stored %d held %d unst %d busy %v ev %d)", id, g.home[id]+1, st.Term, st.Commit, st.Last, st.Applied, st.Leader, st.Leading, r.stored, len(r.held), len(r.unstored), r.busy, len(r.events))
		if !r.leads() {
			continue
		}
		s += " leads"
		r.outputs.Reset()
		r.table.Resend(&r.outputs)
		for _, o := range r.outputs.List {
			if p, ok := o.Posted.(interface{ Messages() []protocol.Message }); ok {
				for _, m := range p.Messages() {
					s += "\n   " + wire(&m)
				}
			}
		}
	}
	return s
}

// start starts a replica from its disk.
func (g *raftGroup) start(id order.ReplicaID, h *host) {
	d := g.disks[id]
	if d.gone || g.running[id] != nil {
		return
	}
	r := &raftReplica{h: h, g: g, id: id, disk: d, timers: map[order.TimerKind]func(){}}
	e, err := raft.New(raft.Config{
		Group: g.id, Self: id, Store: d.store, View: d.first, Join: d.join, Heartbeat: raftHeartbeat, ElectionTicks: 5, Quiesce: -1,
	}, order.Image{State: d.image.State, Snapshot: d.image.Snapshot, Entries: slices.Clone(d.image.Entries)})
	if err != nil {
		g.w.fail("replica %d of group %d does not start: %w", id, g.at, err)
		return
	}
	r.engine = e
	r.reset()
	g.running[id] = r
	h.env.After(0, func() { r.step(order.Rand{Bits: h.env.Rand().Uint64(), Now: time.Duration(h.env.Now())}) })
}

func (r *raftReplica) reset() {
	r.table = session.NewTable(0, map[string]session.Machine{coherence.ServiceName: coherence.NewMachine(r.g.id)})
}

// bootRaft starts the replicas of a host.
func (h *host) bootRaft() {
	for _, g := range h.w.raft {
		for id := order.ReplicaID(1); id < g.view.Next; id++ {
			if at, ok := g.home[id]; ok && at == h.at {
				g.start(id, h)
			}
		}
	}
}

// killedRaft loses what the disks have not reported as stored, but for a drawn part of it.
func (h *host) killedRaft() {
	for _, g := range h.w.raft {
		for id, r := range g.running {
			if r.h == h {
				delete(g.running, id)
			}
		}
	}
}

func (d *raftDisk) write(records []order.Record) {
	im := &d.image
	for _, rec := range records {
		switch rec.Kind {
		case order.RecordState:
			im.State = rec.Data
		case order.RecordEntry:
			i, _ := slices.BinarySearchFunc(im.Entries, rec.Index, func(e order.Record, index uint64) int { return int(int64(e.Index - index)) })
			im.Entries = append(slices.Clip(im.Entries[:i]), rec)
		case order.RecordSnapshot:
			im.Snapshot = &rec
			im.Entries = slices.DeleteFunc(slices.Clone(im.Entries), func(e order.Record) bool { return e.Index <= rec.Index })
		}
	}
}

func (r *raftReplica) leads() bool {
	_, leading := r.engine.Leader()
	return leading && !r.halted
}

// step feeds an event to the engine, carries out what it asks for, and so on with the events that come of that.
func (r *raftReplica) step(ev order.Event) {
	r.events = append(r.events, ev)
	if r.busy {
		return
	}
	r.busy = true
	var a order.Actions
	for len(r.events) > 0 && r.h.env.Alive() && !r.halted {
		next := r.events[0]
		r.events = r.events[1:]
		a.Reset()
		r.engine.Step(next, &a)
		r.perform(&a)
	}
	r.busy = false
	if leads := r.leads(); leads != r.led {
		if r.led = leads; leads {
			r.g.w.report.leaders++
			r.resend()
		}
	}
}

func (r *raftReplica) perform(a *order.Actions) {
	for _, v := range a.Views {
		r.g.told(v.View)
	}
	for _, p := range a.Persist {
		p.Records = slices.Clone(p.Records)
		r.unstored = append(r.unstored, p)
		r.h.env.After(r.h.draw(3*time.Millisecond), r.store)
	}
	for _, t := range a.Timers {
		if stop := r.timers[t.Kind]; stop != nil {
			stop()
		}
		delete(r.timers, t.Kind)
		if t.After >= 0 {
			r.timers[t.Kind] = r.h.env.After(t.After, func() { r.step(order.Timer{Kind: t.Kind, Epoch: t.Epoch, Now: time.Duration(r.h.env.Now())}) })
		}
	}
	for _, m := range a.Send {
		if m.After > r.stored {
			r.held = append(r.held, m)
		} else {
			r.send(m)
		}
	}
	for _, in := range a.Install {
		r.reset()
		if in.Data != nil {
			if err := r.table.Restore(in.Data); err != nil {
				r.g.w.fail("replica %d of group %d installs at %d: %w", r.id, r.g.at, in.Index, err)
			}
		}
		r.applied, r.compact = in.Index, in.Index
		r.step(order.Applied{Index: in.Index})
	}
	for _, e := range a.Deliver {
		r.apply(e)
	}
	if len(a.Deliver) > 0 {
		r.step(order.Applied{Index: r.applied})
		if r.applied-r.compact >= raftCompact {
			r.compact = r.applied
			r.step(order.Compact{Index: r.applied, Data: r.table.Snapshot()})
		}
	}
	if a.Halt != nil {
		if r.halted = true; a.Halt.Reason != order.Removed {
			r.g.w.fail("replica %d of group %d halts: %s", r.id, r.g.at, a.Halt.Reason)
		}
		r.disk.gone = true
		delete(r.g.running, r.id)
	}
}

// apply executes an entry. All replicas do the same.
func (r *raftReplica) apply(e order.Entry) {
	r.outputs.Reset()
	r.table.Apply(e, &r.outputs)
	r.applied = e.Index
	r.g.w.report.entries++
	for _, o := range r.outputs.List {
		if p, ok := o.Posted.(posted); ok {
			if d, ok := p.Duty(); ok {
				r.g.cut(d)
			}
		}
	}
	if e.Index%raftDigest == 0 {
		d := r.table.Digest()
		if was, ok := r.g.states[e.Index]; !ok {
			r.g.states[e.Index] = d
		} else if was != d {
			r.g.w.fail("agreement: replicas of group %d have different states after entry %d", r.g.at, e.Index)
		}
	}
	if r.leads() || r.h.env.Rand().IntN(20) == 0 { // one that has led may go on speaking
		r.say()
	}
}

// say performs what the machine has posted.
func (r *raftReplica) say() {
	for _, o := range slices.Clone(r.outputs.List) {
		p, ok := o.Posted.(posted)
		if !ok {
			continue
		}
		for _, m := range p.Messages() {
			r.h.send(m)
		}
		p.Concerns(r.concern)
		if d, ok := p.Duty(); ok {
			r.do(d)
		}
	}
}

// do is what a leader's host does for the manager of an application.
func (r *raftReplica) do(d coherence.Duty) {
	w := r.g.w
	if d.Checkpoint > 0 {
		if _, ok := w.begun[d.Checkpoint]; !ok {
			w.begun[d.Checkpoint] = w.sim.Now()
		}
		if w.sim.Now()-w.begun[d.Checkpoint] > 4*time.Second {
			r.propose(-1, simInput{am: appmanager.Event{Kind: appmanager.Abort, Checkpoint: d.Checkpoint}})
		}
	}
	if d.Save != nil {
		name := protocol.Hash{2, byte(d.Checkpoint >> 8), byte(d.Checkpoint)}
		w.saved[name] = *d.Save
		r.h.env.After(r.h.draw(100*time.Millisecond), func() {
			r.propose(-1, simInput{am: appmanager.Event{Kind: appmanager.Saved, Checkpoint: d.Checkpoint, Hash: name}})
		})
	}
	if len(d.Unplaced) > 0 {
		r.h.env.After(r.h.draw(50*time.Millisecond), func() {
			var ps []appmanager.Placement
			for _, t := range d.Unplaced {
				if o := w.hosts[r.h.env.Rand().IntN(len(w.hosts))]; o != nil {
					ps = append(ps, appmanager.Placement{Thread: t, Node: o.self})
				}
			}
			r.propose(-1, simInput{am: appmanager.Event{Kind: appmanager.Place, Epoch: d.Epoch, Places: ps}})
		})
	}
	if d.Saved > 0 {
		for name := range w.saved {
			if id := protocol.CheckpointID(name[1])<<8 | protocol.CheckpointID(name[2]); id <= d.Saved && !slices.Contains(d.Roots, name) {
				delete(w.saved, name)
			}
		}
	}
}

// cut checks a checkpoint at the instant in which the first replica makes it: it has the last write of every object, and no thread runs.
func (g *raftGroup) cut(d coherence.Duty) {
	if d.Save == nil || g.cuts[d.Checkpoint] {
		return
	}
	g.cuts[d.Checkpoint] = true
	g.w.report.checkpoints++
	for o := range g.w.cfg.objects {
		live, touched := g.w.last[epochObject{d.Epoch, o}]
		h := d.Save.Objects[objectKey(o+1)]
		if v := binary.BigEndian.Uint32(h[1:]); touched && v != live {
			g.w.fail("C5: checkpoint %d has version %d of x%d, and the last write made %d", d.Checkpoint, v, o+1, live)
		}
	}
	for _, h := range g.w.hosts {
		if h == nil || h.node.Epoch() != d.Epoch {
			continue
		}
		for t, s := range h.threads {
			if s.runs && !s.guest {
				g.w.fail("C3: %v runs at %v at the cut", t, h.self)
			}
		}
	}
}

// concern is the failure detector of a group's leader.
func (r *raftReplica) concern(object keyspace.Key, n protocol.NodeRef, suspected bool) {
	w, rnd := r.g.w, r.h.env.Rand()
	down := w.hosts[nodeOf(n)] == nil
	patient := object == (keyspace.Key{}) && (w.cfg.patient || rnd.IntN(10) > 0) // an application's manager hears only of who has been suspected for long
	if !down && !patient && !w.healed {
		down = rnd.Float64() < w.cfg.doubt
	}
	if down == suspected {
		return
	}
	if object == (keyspace.Key{}) {
		ev := appmanager.Event{Kind: appmanager.Suspect, Node: n}
		if !down {
			ev.Kind = appmanager.Trust
		}
		r.propose(-1, simInput{am: ev})
		return
	}
	ev := manager.Event{Kind: manager.Suspect, Node: n}
	if !down {
		ev.Kind = manager.Trust
	}
	r.propose(objectOf(object), simInput{om: ev})
}

// propose has the group order what a manager is told, where the replica leads.
func (r *raftReplica) propose(object int, in simInput) {
	if !r.leads() {
		return
	}
	var key keyspace.Key
	event, err := []byte(nil), error(nil)
	if object < 0 {
		event, err = pb.EncodeAppEvent(in.am)
	} else {
		key = objectKey(object + 1)
		event, err = pb.EncodeObjectEvent(in.om)
	}
	if err != nil {
		r.g.w.fail("an event is not ordered: %w", err)
		return
	}
	r.ref++
	r.step(order.Propose{
		Ref: r.ref, Stamp: order.Stamp{Boot: r.h.env.Life()<<8 | uint64(r.id), At: time.Duration(r.h.env.Now())},
		Cmd: order.Command{Author: raftPeer(r.h.at), Service: coherence.ServiceName, Data: append(append(slices.Clone(appKey[:]), key[:]...), event...)},
	})
}

// resend says again what managers wait for.
func (r *raftReplica) resend() {
	r.outputs.Reset()
	r.table.Resend(&r.outputs)
	r.say()
	w := r.g.w
	if r.g == w.raftOf(-1) && w.cfg.checkpoint > 0 && !w.healed && r.h.env.Rand().Int64N(int64(w.cfg.checkpoint)) < int64(simRepeat) {
		r.propose(-1, simInput{am: appmanager.Event{Kind: appmanager.Begin}})
	}
}

// store makes the oldest write durable.
func (r *raftReplica) store() {
	p := r.unstored[0]
	r.unstored = r.unstored[1:]
	r.disk.write(p.Records)
	r.stored = p.Seq
	held := r.held
	r.held = nil
	for _, s := range held {
		if s.After > r.stored {
			r.held = append(r.held, s)
		} else {
			r.send(s)
		}
	}
	r.step(order.Stored{Seq: p.Seq})
}

func (r *raftReplica) send(m order.Send) {
	if to, ok := r.g.home[m.To]; ok {
		r.h.env.Send(sim.NodeID(to), raftFrame{r.g.at, r.id, m.To, r.disk.store, m.Whole()})
	}
}

// told notes a view, and gives its new members their replicas.
func (g *raftGroup) told(v order.View) {
	if v.Num <= g.view.Num {
		return
	}
	g.view = v
	g.w.report.views++
	for _, m := range v.Members {
		if _, ok := g.home[m.ID]; ok {
			continue
		}
		g.home[m.ID] = nodeOf(protocol.NodeRef{ID: m.Peer})
		g.disks[m.ID] = &raftDisk{store: m.Store, first: v, join: true}
		if h := g.w.hosts[g.home[m.ID]]; h != nil {
			g.start(m.ID, h)
		}
	}
}

// majority reports whether the group keeps one without a host: of both halves, where its view is the middle of a change.
func (g *raftGroup) majority(without int) bool {
	var old, next, oldUp, nextUp int
	for _, m := range g.view.Members {
		up := 0
		if g.running[m.ID] != nil && g.home[m.ID] != without {
			up = 1
		}
		if m.Role == order.Voter || m.Role == order.Leaving {
			old, oldUp = old+1, oldUp+up
		}
		if m.Role == order.Voter || m.Role == order.Joining {
			next, nextUp = next+1, nextUp+up
		}
	}
	return oldUp > old/2 && nextUp > next/2
}

// changeRaft asks a leader for the next step of a change: a learner, then its promotion in a drawn voter's place.
func (w *simulated) changeRaft() {
	g := w.raft[w.rand.IntN(len(w.raft))]
	for _, id := range g.view.Voters() {
		r := g.running[id]
		if r == nil || !r.leads() || g.view.Joint() {
			continue
		}
		v := r.engine.Status().View
		var learner, victim order.ReplicaID
		voters := v.Voters()
		victim = voters[w.rand.IntN(len(voters))]
		free := w.rand.Perm(w.cfg.hosts)
		for _, m := range v.Members {
			if m.Role == order.Learner {
				learner = m.ID
			}
			free = slices.DeleteFunc(free, func(h int) bool { return h == g.home[m.ID] })
		}
		g.changes++
		change := order.Change{Ref: 1<<40 | g.changes, From: v.Num}
		behind, known := r.engine.Status().Behind[learner]
		switch {
		case learner == 0 && len(free) > 0:
			change.Learn = &order.Newcomer{Peer: raftPeer(free[0]), Store: g.newStore()}
		case learner == 0:
			return
		case w.hosts[g.home[learner]] == nil || g.running[learner] == nil: // it went away: another one
			change.Remove = []order.ReplicaID{learner}
		case !known || behind > 64:
			return
		default:
			if victim == r.id && w.rand.IntN(2) == 0 {
				r.step(order.Transfer{To: voters[w.rand.IntN(len(voters))]})
				return
			}
			change.Promote, change.Remove = []order.ReplicaID{learner}, []order.ReplicaID{victim}
		}
		r.step(change)
		return
	}
}

// crashRaft ends a host, if every group keeps a majority: up to f of a view are down at a time.
func (w *simulated) crashRaft() {
	i := w.rand.IntN(w.cfg.hosts)
	if slices.ContainsFunc(w.raft, func(g *raftGroup) bool { return !g.majority(i) }) {
		return
	}
	w.sim.Crash(sim.NodeID(i))
	w.sim.At(w.sim.Now()+time.Duration(w.rand.ExpFloat64()*float64(w.cfg.down)), func() { w.sim.Restart(sim.NodeID(i)) })
}

// routeRaft sends to a manager: to whom is known to lead its group, or to all its voters.
func (h *host) routeRaft(m protocol.Message) {
	object := -1
	if m.To.Party == protocol.ObjectManager {
		object = objectOf(m.Object)
	}
	g := h.w.raftOf(object)
	all := h.env.Rand().IntN(4) == 0
	for _, id := range g.view.Voters() {
		if r := g.running[id]; all || r != nil && r.leads() {
			h.env.Send(sim.NodeID(g.home[id]), m)
		}
	}
}

// inputRaft takes a message for a manager, where its group is led here.
func (h *host) inputRaft(m *protocol.Message) {
	in, object := simInput{am: appmanager.Event{Kind: appmanager.Receive, Msg: m}}, -1
	if m.To.Party == protocol.ObjectManager {
		object = objectOf(m.Object)
		in = simInput{om: manager.Event{Kind: manager.Receive, Msg: m}}
	}
	g := h.w.raftOf(object)
	for _, id := range g.view.Voters() {
		if r := g.running[id]; r != nil && r.h == h && r.leads() {
			r.propose(object, in)
			return
		}
	}
}

// drawRaft draws a world with real groups.
func drawRaft(seed uint64) simConfig {
	c := drawConfig(seed)
	c.raft = 1 + int(seed/shapes)%2
	c.blanks = false
	if seed%2 == 0 {
		c.guests, c.threads, c.idle, c.checkpoint, c.move, c.shuttle = c.hosts, 0, 0, 0, 0, false
	} else {
		c.checkpoint = 700 * time.Millisecond
	}
	if c.view > 0 {
		c.view /= 5 // a change takes several steps
	}
	c.think = max(c.think, 5*time.Millisecond)
	return c
}

// TestSimulationWithRealGroups draws worlds whose managers are kept by real replica groups.
func TestSimulationWithRealGroups(t *testing.T) {
	t.Parallel()
	seeds := max(*seedsFlag/10, 1)
	if testing.Short() {
		seeds = min(seeds, 10)
	}
	var sum simReport
	for seed := uint64(1); seed <= seeds; seed++ {
		r, err := runSeed(drawRaft(seed))
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		sum.accesses += r.accesses
		sum.epochs += r.epochs
		sum.views += r.views
		sum.checkpoints += r.checkpoints
		sum.migrations += r.migrations
		sum.leaders += r.leaders
		sum.entries += r.entries
	}
	t.Logf("%d worlds: %d accesses, %d restarts, %d views, %d times somebody led, %d checkpoints, %d migrations, %d entries applied", seeds, sum.accesses, sum.epochs, sum.views,
		sum.leaders, sum.checkpoints, sum.migrations, sum.entries)
	if seeds >= 50 && (sum.accesses < 1000 || sum.views < 50 || sum.epochs < 10 || sum.leaders < 50 || sum.checkpoints < 10) {
		t.Error("too little happens in these worlds")
	}
}
