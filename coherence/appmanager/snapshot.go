package appmanager

import (
	"fmt"

	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
)

// Snapshot returns the whole state but what [Config] holds: what a replica that joins is given, and what a restart begins from. Equal states have
// equal snapshots. A [Node] needs none: a process that is started anew is another incarnation, and knows of no thread (R6, R15).
func (m *Manager) Snapshot() []byte { return m.Append([]byte{protocol.StateVersion}) }

// Restore makes a manager in the state of a [Manager.Snapshot], which it does not keep. A state that no manager can be in, and one of another
// version, match [protocol.ErrState].
func Restore(cfg Config, snapshot []byte) (*Manager, error) {
	m := New(cfg)
	r := protocol.ReadState(snapshot)
	m.state, m.epoch = State(r.Uint()), protocol.Epoch(r.Uint())
	m.id, m.savedID = protocol.CheckpointID(r.Uint()), protocol.CheckpointID(r.Uint())
	if m.state > Restarting || m.epoch == 0 || m.savedID > m.id {
		r.Fail("state %d of epoch %d", uint8(m.state), m.epoch)
	}
	readThreads(r, protocol.ThreadsMax, func(id protocol.ThreadID) {
		t := thread{at: r.Node(), to: r.Node(), mig: protocol.MigSeq(r.Uint()), stopped: protocol.CheckpointID(r.Uint()), guest: r.Bool(), started: r.Bool()}
		r.Fill(t.hash[:])
		if !t.to.IsZero() && (t.at.IsZero() || t.at == t.to) {
			r.Fail("%v moves from %v to %v", id, t.at, t.to)
		}
		m.set(id, t)
	})
	for range r.Entries(r.Uint(), EndedMax) {
		var id protocol.ThreadID
		r.Fill(id[:])
		m.ended = append(m.ended, id)
		m.over[id] = struct{}{}
	}
	if len(m.over) != len(m.ended) {
		r.Fail("a thread has ended twice")
	}
	m.suspects = r.Suspects()
	asked := r.Uint()
	queries := r.Uint()
	m.asked = r.Nodes(asked, protocol.NodesMax)
	for i := range r.Entries(queries, QueriesMax) {
		var q query
		r.Fill(q.object[:])
		q.node, q.asker, q.ack, q.seq, q.inv = r.Node(), r.Node(), protocol.Kind(r.Uint()), protocol.ReqSeq(r.Uint()), protocol.InvSeq(r.Uint())
		if m.queries = append(m.queries, q); i > 0 && m.queries[i-1].compare(q) >= 0 || q.ack != protocol.ReadAck && q.ack != protocol.InvalidateAck {
			r.Fail("queries out of order, or for %v", q.ack)
		}
	}
	readKeys(r, func(o keyspace.Key) { m.touched[o] = protocol.Life(r.Uint()) })
	readKeys(r, func(o keyspace.Key) {
		if m.reads == nil {
			m.reads = make(map[keyspace.Key]read)
		}
		x := read{done: r.Bool()}
		r.Fill(x.hash[:])
		x.withheld = protocol.InvSeq(r.Uint())
		if !x.done {
			m.unread++
		}
		m.reads[o] = x
	})
	m.added, m.manifest.Threads, m.cutAt.Threads = readThreadHashes(r), readThreadHashes(r), readThreadHashes(r)
	m.manifest.Objects, m.cutAt.Objects = readObjectHashes(r), readObjectHashes(r)
	r.Fill(m.hash[:])
	if err := r.End(); err != nil {
		return nil, fmt.Errorf("appmanager: %w", err)
	}
	m.fresh = m.unsaved()
	if err := m.Check(); err != nil {
		return nil, fmt.Errorf("%w: %w", protocol.ErrState, err)
	}
	return m, nil
}

// readThreads reads a number of threads, most at most, each after the one before it; f reads what follows its name.
func readThreads(r *protocol.StateReader, most int, f func(protocol.ThreadID)) {
	var before protocol.ThreadID
	for i := range r.Entries(r.Uint(), most) {
		var id protocol.ThreadID
		if r.Fill(id[:]); i > 0 && compareThreads(before, id) >= 0 {
			r.Fail("threads out of order")
		}
		f(id)
		before = id
	}
}

// readKeys does the same with objects.
func readKeys(r *protocol.StateReader, f func(keyspace.Key)) {
	var before keyspace.Key
	for i := range r.Entries(r.Uint(), protocol.ObjectsMax) {
		var o keyspace.Key
		if r.Fill(o[:]); i > 0 && compareKeys(before, o) >= 0 {
			r.Fail("objects out of order")
		}
		f(o)
		before = o
	}
}

func readThreadHashes(r *protocol.StateReader) map[protocol.ThreadID]protocol.Hash {
	hs := make(map[protocol.ThreadID]protocol.Hash)
	readThreads(r, protocol.ThreadsMax, func(id protocol.ThreadID) {
		var h protocol.Hash
		r.Fill(h[:])
		hs[id] = h
	})
	return hs
}

func readObjectHashes(r *protocol.StateReader) map[keyspace.Key]protocol.Hash {
	hs := make(map[keyspace.Key]protocol.Hash)
	readKeys(r, func(o keyspace.Key) {
		var h protocol.Hash
		r.Fill(h[:])
		hs[o] = h
	})
	return hs
}
