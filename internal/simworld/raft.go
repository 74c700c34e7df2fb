package simworld

import (
	"slices"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/sim"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/raft"
)

// frame carries a message of the engine.
type frame struct {
	from  order.ReplicaID
	store order.StoreID
	msg   order.Message
}

// disk is what survives a replica's crash.
type disk struct{ image order.Image }

func (d *disk) write(r order.Record) {
	im := &d.image
	switch r.Kind {
	case order.RecordState:
		im.State = r.Data
	case order.RecordEntry:
		i, _ := slices.BinarySearchFunc(im.Entries, r.Index, func(e order.Record, index uint64) int { return int(int64(e.Index - index)) })
		im.Entries = append(slices.Clip(im.Entries[:i]), r)
	case order.RecordSnapshot:
		im.Snapshot = &r
		keep := slices.IndexFunc(im.Entries, func(e order.Record) bool { return e.Index == r.Index+1 })
		if keep < 0 {
			im.Entries = nil
		} else {
			im.Entries = slices.Clone(im.Entries[keep:])
		}
	}
}

// compactEvery is how many entries a replica executes between two snapshots.
const compactEvery = 200

// raftEngine drives one life of a real engine.
type raftEngine struct {
	s    *server
	raft *raft.Engine
	view order.View
	self order.Member
	disk *disk

	events    []order.Event
	busy      bool
	unstored  []order.Persist // on their way to the disk, in order
	held      []order.Send    // wait for them
	stored    uint64
	applied   uint64
	compacted uint64
}

// view is the group's only view.
func raftView(w *World) order.View {
	v := order.View{Num: 1, Next: order.ReplicaID(w.cfg.Replicas + 1)}
	for i := range w.cfg.Replicas {
		v.Members = append(v.Members, order.Member{
			ID: order.ReplicaID(i + 1), Peer: w.peer(sim.NodeID(i)), Store: order.StoreID{1, byte(i)}, Role: order.Voter,
		})
	}
	return v
}

func bootRaft(s *server) engine {
	v := raftView(s.w)
	id := int(s.env.ID())
	e := &raftEngine{s: s, view: v, self: v.Members[id], disk: &s.w.disks[id]}
	eng, err := raft.New(raft.Config{
		Self: e.self.ID, Store: e.self.Store, View: v, Heartbeat: s.w.cfg.Heartbeat, ElectionTicks: 5,
	}, order.Image{State: e.disk.image.State, Snapshot: e.disk.image.Snapshot, Entries: slices.Clone(e.disk.image.Entries)})
	if err != nil {
		s.w.sim.Fail(err)
		return e
	}
	e.raft = eng
	// The first step belongs to the running process, not to its construction.
	s.env.After(0, func() {
		e.step(order.Rand{Bits: s.env.Rand().Uint64()})
		s.after()
	})
	return e
}

func (e *raftEngine) leading() bool {
	_, leading := e.raft.Leader()
	return leading
}

func (e *raftEngine) hint() keyspace.NodeID {
	leader, _ := e.raft.Leader()
	m, _ := e.view.Member(leader)
	return m.Peer
}

// killed loses what the disk has not reported as stored, but for a drawn prefix of it.
func (e *raftEngine) killed() {
	for _, p := range e.unstored {
		for _, r := range p.Records {
			if e.s.w.rand.IntN(2) == 0 {
				return
			}
			e.disk.write(r)
		}
	}
}

func (e *raftEngine) receive(_ sim.NodeID, msg any) {
	if f, ok := msg.(frame); ok {
		e.step(order.Recv{From: f.from, Store: f.store, Msg: f.msg})
	}
}

func (e *raftEngine) propose(ref uint64, s order.Stamp, cmd order.Command) {
	e.step(order.Propose{Ref: ref, Stamp: s, Cmd: cmd})
}

// step feeds one event to the engine and carries out what it asks for, and so on with the events that come of that.
func (e *raftEngine) step(ev order.Event) {
	e.events = append(e.events, ev)
	if e.busy {
		return
	}
	e.busy = true
	var a order.Actions
	for len(e.events) > 0 && e.s.env.Alive() {
		next := e.events[0]
		e.events = e.events[1:]
		a.Reset()
		e.raft.Step(next, &a)
		e.perform(&a)
	}
	e.busy = false
}

func (e *raftEngine) perform(a *order.Actions) {
	for _, p := range a.Persist {
		p.Records = slices.Clone(p.Records)
		e.unstored = append(e.unstored, p)
		e.s.env.After(time.Duration(e.s.env.Rand().Int64N(int64(e.s.w.cfg.Commit)+1)), e.store)
	}
	for _, t := range a.Timers {
		if t.After >= 0 { // a stopped timer's epoch is stale when it fires
			e.s.env.After(t.After, func() {
				e.step(order.Timer{Kind: t.Kind, Epoch: t.Epoch})
				e.s.after()
			})
		}
	}
	for _, m := range a.Send {
		if m.After > e.stored {
			e.held = append(e.held, m)
		} else {
			e.send(m)
		}
	}
	for _, in := range a.Install {
		e.s.reset()
		if err := e.s.table.Restore(in.Data); err != nil {
			e.s.w.sim.Fail(err)
		}
		e.applied, e.compacted = in.Index, in.Index
		e.step(order.Applied{Index: in.Index})
	}
	for _, entry := range a.Deliver {
		e.s.apply(entry)
		e.applied = entry.Index
	}
	if len(a.Deliver) > 0 {
		e.step(order.Applied{Index: e.applied})
		if e.applied-e.compacted >= compactEvery {
			e.compacted = e.applied
			e.step(order.Compact{Index: e.applied, Data: e.s.table.Snapshot()})
		}
	}
	for _, d := range a.Done {
		index := d.Index
		if d.Err != nil {
			index = 0
		}
		e.s.decided(d.Ref, index, d.Err == order.ErrNotLeader)
	}
}

// store makes the oldest write durable.
func (e *raftEngine) store() {
	p := e.unstored[0]
	e.unstored = e.unstored[1:]
	for _, r := range p.Records {
		e.disk.write(r)
	}
	e.stored = p.Seq
	n := 0
	for n < len(e.held) && e.held[n].After <= e.stored {
		e.send(e.held[n])
		n++
	}
	e.held = e.held[n:]
	e.step(order.Stored{Seq: p.Seq})
	e.s.after()
}

func (e *raftEngine) send(m order.Send) {
	e.s.env.Send(sim.NodeID(m.To-1), frame{from: e.self.ID, store: e.self.Store, msg: m.Whole()})
}
