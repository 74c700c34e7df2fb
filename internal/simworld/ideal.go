package simworld

import (
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/sim"
	"latchkey/replicagroup/order"
)

// idealLog is a log that decides at once. What is left of an ordering engine's life are its leaders, who come and go, and
// the proposals and answers that are lost with them.
type idealLog struct {
	w        *World
	entries  []order.Entry // entry i has index i+1
	leader   sim.NodeID
	snapshot []byte // of the machine after the first at entries
	at       uint64
}

const (
	idealSnapshotEvery = 64
	idealNoLeader      = sim.NodeID(-1)
)

// newIdealLog elects a first leader, and others at drawn times until the faults are over.
func newIdealLog(w *World) *idealLog {
	l := &idealLog{w: w, leader: idealNoLeader}
	var turn func()
	turn = func() {
		l.elect()
		if w.sim.Now() < w.cfg.Faults.Heal {
			w.sim.At(w.sim.Now()+time.Duration(w.rand.ExpFloat64()*float64(w.cfg.Reign)), turn)
		}
	}
	w.sim.At(w.cfg.Faults.DelayMax, turn)
	return l
}

// elect picks a leader among those that are up; the former one may be among them.
func (l *idealLog) elect() {
	up := make([]*idealEngine, 0, l.w.cfg.Replicas)
	for i := range l.w.cfg.Replicas {
		if s := l.w.servers[i]; s != nil && s.env.Alive() {
			up = append(up, s.engine.(*idealEngine))
		}
	}
	l.leader = idealNoLeader
	if len(up) == 0 {
		l.electSoon()
		return
	}
	e := up[l.w.rand.IntN(len(up))]
	l.leader = e.s.env.ID()
	e.catchUp(uint64(len(l.entries)))
	e.s.after()
}

// electSoon leaves the group without a leader for a while.
func (l *idealLog) electSoon() {
	l.leader = idealNoLeader
	l.w.sim.At(l.w.sim.Now()+l.w.cfg.Election, func() {
		if l.leader == idealNoLeader {
			l.elect()
		}
	})
}

// idealEngine is one replica's view of the log.
type idealEngine struct {
	log     *idealLog
	s       *server
	applied uint64
}

// bootIdeal starts a replica with the log's snapshot.
func bootIdeal(s *server) engine {
	l := s.w.ideal
	e := &idealEngine{log: l, s: s, applied: l.at}
	if l.at > 0 {
		if err := s.table.Restore(l.snapshot); err != nil {
			s.w.sim.Fail(err)
		}
	}
	return e
}

func (e *idealEngine) receive(sim.NodeID, any) {}
func (e *idealEngine) leading() bool           { return e.log.leader == e.s.env.ID() && e.s.env.Alive() }

func (e *idealEngine) hint() keyspace.NodeID {
	if e.log.leader == idealNoLeader {
		return keyspace.NodeID{}
	}
	return e.s.w.peer(e.log.leader)
}

func (e *idealEngine) killed() {
	if e.log.leader == e.s.env.ID() {
		e.log.electSoon()
	}
}

// propose gives the command its place at once; the answer follows when the disk and the other voters would have it.
func (e *idealEngine) propose(ref uint64, s order.Stamp, cmd order.Command) {
	l := e.log
	if l.w.faulty() && l.w.rand.Float64() < l.w.cfg.Dropped {
		e.s.env.After(l.w.cfg.Commit, func() {
			e.s.decided(ref, 0, false)
			e.s.after()
		})
		return
	}
	index := uint64(len(l.entries)) + 1
	l.entries = append(l.entries, order.Entry{Index: index, View: 1, Kind: order.Normal, Stamp: s, Cmd: cmd})
	e.s.env.After(l.w.cfg.Commit, func() {
		e.catchUp(index)
		if e.leading() {
			e.s.decided(ref, index, false)
		} else {
			e.s.decided(ref, 0, false)
		}
		e.s.after()
	})
}

func (e *idealEngine) catchUp(index uint64) {
	for e.applied < index {
		e.applied++
		e.s.apply(e.log.entries[e.applied-1])
		if l := e.log; e.applied%idealSnapshotEvery == 0 && e.applied > l.at {
			l.snapshot, l.at = e.s.table.Snapshot(), e.applied
		}
	}
}
