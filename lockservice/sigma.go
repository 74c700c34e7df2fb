package lockservice

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/lockservice/pb"
	"latchkey/lockservice/sigma"
	sigmapb "latchkey/lockservice/sigma/pb"
	"latchkey/lockservice/table"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/quorum"
	"latchkey/replicagroup/session"
)

var _ session.Insider = (*Machine)(nil)

// What the group's log has to say to the voters that lock by protocol sigma (lock-protocols.md sections 9.2, 10.1 and 10.2).
//
// There is one counter of tokens: what the table gives out next and the ceiling of what voters may offer are the same number (M4). A
// view's range is taken from it when the view begins.
//
// The first view begins when every lease of an earlier generation is over by log time, as the table's first grant does. So voters of
// a new generation need no wait of their own (section 9.8).

// sigmaState is what a [Machine] keeps of it. Its LogState lacks the ceiling, which is the table's counter.
type sigmaState struct {
	on     bool
	log    sigma.LogState    // without members: no view has begun
	ids    []order.ReplicaID // of the group's voters
	voters []keyspace.NodeID // their nodes; where a view has begun, its members

	heard bool // Follow was called: changes are noted from then on
	whole bool // the state was replaced
	moved bool // the log's state has changed since the last Follow
}

func (s *sigmaState) begin(cfg MachineConfig) {
	s.on = cfg.Sigma > 0 && !cfg.Own
	s.log.View.Gen = uint32(cfg.Gen)
	if s.on {
		s.log.Cap = sigma.CapFor(cfg.Sigma)
	}
}

// waits reports whether the first view begins as soon as the time has come.
func (m *Machine) waits() bool {
	return m.sigma.on && len(m.sigma.log.Members) == 0 && len(m.sigma.voters) > 0
}

// open begins the first view when its time has come.
func (m *Machine) open(c session.Context) {
	if m.waits() && c.Now >= m.cfg.Fresh {
		m.change(c, sigma.Entry{Kind: sigma.EntryView, From: m.sigma.log.View, Members: m.sigma.voters})
	}
}

// Sigma returns what the log says to the voters that lock by protocol sigma. It has no members as long as no view has begun; then
// nothing is to be served. Members are not to be changed.
func (m *Machine) Sigma() sigma.LogState {
	s := m.sigma.log
	s.Ceil = sigma.Token(m.table.Top())
	return s
}

// change executes an entry about the whole group.
func (m *Machine) change(c session.Context, e sigma.Entry) {
	before := m.Sigma()
	next, did := before.Apply(e)
	if !did {
		return
	}
	m.table.Reserve(uint64(next.Ceil - before.Ceil))
	m.sigma.log, m.sigma.voters, m.sigma.moved = next, next.Members, true
	if next.View != before.View {
		m.grants = m.table.View(c.Now, quorum.Majority(len(next.Members)), m.grants[:0])
		m.emit(c)
	}
}

// FirstView implements [session.Insider].
func (m *Machine) FirstView(v order.View) {
	m.sigma.ids, m.sigma.voters = coming(v)
	m.open(session.Context{})
}

// NextView implements [session.Insider]. Other voters end the view of protocol sigma and begin the next one, at the entry that begins
// the joint phase: it is the old voters that commit it.
func (m *Machine) NextView(c session.Context, v order.View) {
	ids, voters := coming(v)
	if !m.sigma.on || slices.Equal(ids, m.sigma.ids) {
		return
	}
	m.sigma.ids, m.sigma.voters = ids, voters
	if len(m.sigma.log.Members) > 0 {
		m.change(c, sigma.Entry{Kind: sigma.EntryView, From: m.sigma.log.View, Members: voters})
	}
	m.open(c)
}

// coming returns who votes in a view, or will when its joint phase is over: the members' ids, of which one that lost its disk has
// another, and their nodes; both rising.
func coming(v order.View) (ids []order.ReplicaID, nodes []keyspace.NodeID) {
	for _, m := range v.Members {
		if m.Role == order.Voter || m.Role == order.Joining {
			ids, nodes = append(ids, m.ID), append(nodes, m.Peer)
		}
	}
	slices.Sort(ids)
	slices.SortFunc(nodes, func(a, b keyspace.NodeID) int { return bytes.Compare(a[:], b[:]) })
	return ids, slices.Compact(nodes)
}

// ApplyOwn implements [session.Insider]: it executes an entry that a replica asked for ([sigma.Propose]), as pb.EncodeEntry of package
// sigma/pb writes it, or that the leader's host proposed: a null change, which has no members. One that cannot be read, is of another
// view or not for its author to say does nothing.
func (m *Machine) ApplyOwn(c session.Context, data []byte) {
	e, err := sigmapb.DecodeEntry(data)
	if err != nil || !m.sigma.on || len(e.Members) > 0 {
		return
	}
	m.open(c)
	switch e.Kind {
	case sigma.EntryReport, sigma.EntryOver:
		if e.From != m.sigma.log.View || !slices.Contains(m.sigma.log.Members, c.Author) || e.Kind == sigma.EntryReport && e.Node != c.Author {
			return
		}
		if e.Kind == sigma.EntryReport {
			m.grants = m.table.Report(c.Now, e.Node, e.Report, m.grants[:0])
		} else {
			m.grants = m.table.Over(c.Now, e.Name, e.Req, e.Node, m.grants[:0])
		}
		m.emit(c)
	default:
		m.change(c, e)
	}
}

// WantsView reports whether names lie idle in the table in a view of this age, so that a null change is due, which gives them back to the
// voters (M6): any for idleFor, or so many that the table may become full.
func (m *Machine) WantsView(age, idleFor time.Duration) bool {
	n := m.table.Len()
	if len(m.sigma.log.Members) == 0 || n == 0 || n <= idleMax && age < idleFor {
		return false
	}
	idle := m.table.Idle()
	return idle > idleMax || idle > 0 && age >= idleFor
}

// idleMax is how many idle names a group's table keeps before its leader asks for a null change, however young the view is.
const idleMax = table.LocksMax / 4

// Follow returns what the entries since its last call mean to the replica that this host runs: a [sigma.Applied], or a [sigma.Jumped] the
// first time and after Restore. ok is false when they mean nothing to it, and as long as no view has begun. The replica begins with
// the state of the first event. Hosts that run no replica do not call it.
func (m *Machine) Follow() (ev sigma.Event, ok bool) {
	s := &m.sigma
	if len(s.log.Members) == 0 || s.heard && !s.whole && !s.moved && !m.table.Changed() {
		return ev, false
	}
	state := m.Sigma()
	if !s.heard || s.whole {
		ev = sigma.Event{Kind: sigma.Jumped, State: &state, Modes: m.table.Modes()}
	} else {
		ev = sigma.Event{Kind: sigma.Applied, State: &state, Modes: m.table.Changes()}
	}
	s.heard, s.whole, s.moved = true, false, false
	return ev, true
}

// stored returns the state as a snapshot has it, nil where the group does not run the protocol.
func (s *sigmaState) stored() *pb.Sigma {
	if !s.on {
		return nil
	}
	out := &pb.Sigma{View: s.log.View.Num, Members: bytesOf(s.log.Members), Prev: bytesOf(s.log.Prev), Base: uint64(s.log.Base), CapNs: int64(s.log.Cap)}
	if len(s.log.Members) == 0 {
		out.Voters = bytesOf(s.voters)
	}
	for _, id := range s.ids {
		out.Ids = append(out.Ids, uint64(id))
	}
	return out
}

func bytesOf(nodes []keyspace.NodeID) (out [][]byte) {
	for i := range nodes {
		out = append(out, nodes[i][:])
	}
	return out
}

// restore takes over what stored returned. Snapshots of an earlier version have none: then the first view begins with the next change
// of voters.
func (s *sigmaState) restore(p *pb.Sigma, top uint64) error {
	if !s.on {
		return nil
	}
	next := sigmaState{on: true, heard: s.heard, whole: true, log: sigma.LogState{Cap: s.log.Cap}}
	next.log.View.Gen = s.log.View.Gen
	if p != nil {
		var err error
		next.log.View.Num, next.log.Base, next.log.Cap = p.View, sigma.Token(p.Base), time.Duration(p.CapNs)
		for _, l := range []struct {
			to   *[]keyspace.NodeID
			from [][]byte
		}{{&next.log.Members, p.Members}, {&next.log.Prev, p.Prev}, {&next.voters, p.Voters}} {
			if *l.to, err = nodesOf(l.from); err != nil {
				return err
			}
		}
		if len(p.Ids) > sigma.MembersMax {
			return fmt.Errorf("%w: %d voters, at most %d", errMalformed, len(p.Ids), sigma.MembersMax)
		}
		for _, id := range p.Ids {
			next.ids = append(next.ids, order.ReplicaID(id))
		}
		if len(next.log.Members) > 0 {
			next.voters = next.log.Members
		}
		if (len(p.Members) > 0) != (p.View > 0) || p.Base > top || p.CapNs <= 0 {
			return fmt.Errorf("%w: view %d of %d members, tokens above %d, up to %d", errMalformed, p.View, len(p.Members), p.Base, top)
		}
	}
	*s = next
	return nil
}

func nodesOf(bs [][]byte) (out []keyspace.NodeID, err error) {
	if len(bs) > sigma.MembersMax {
		return nil, fmt.Errorf("%w: %d members, at most %d", errMalformed, len(bs), sigma.MembersMax)
	}
	for i, b := range bs {
		var n keyspace.NodeID
		if len(b) != len(n) || i > 0 && bytes.Compare(bs[i-1], b) >= 0 {
			return nil, fmt.Errorf("%w: a member of %d bytes, or out of order", errMalformed, len(b))
		}
		copy(n[:], b)
		out = append(out, n)
	}
	return out, nil
}
