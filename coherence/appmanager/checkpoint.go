package appmanager

import (
	"maps"
	"slices"

	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
)

// The checkpoint is one more reader (section 8.2): it reads every object through the object managers, and keeps its INVALIDATE_ACKs back until
// it has read all. A readable copy of everything at one instant is the cut (I3).

// reader is the manager as a reader of the present checkpoint.
func (m *Manager) reader() protocol.NodeRef {
	return protocol.NodeRef{ID: keyspace.NodeID(m.cfg.App), Inc: uint64(m.id)}
}

// hold tells every node that threads have to stop (C1).
func (m *Manager) hold(out []Action) []Action {
	for _, n := range m.nodes() {
		out = m.tell(out, n, protocol.Message{Kind: protocol.Checkpoint, Checkpoint: m.id})
	}
	return out
}

// stopped begins to read once every thread has stopped (C3, C4).
func (m *Manager) stopped(out []Action) []Action {
	if m.state != Stopping || m.counts.unstopped > 0 && m.mutant != protocol.WithoutStop {
		return out
	}
	m.state = Reading
	m.reads = make(map[keyspace.Key]read)
	for o := range m.touched {
		m.reads[o] = read{}
	}
	m.unread = len(m.reads)
	return m.cut(m.ask(out))
}

// ask sends READ for what is not read yet. A checkpoint is a reader of its own, so its request is the first.
func (m *Manager) ask(out []Action) []Action {
	for _, o := range slices.SortedFunc(maps.Keys(m.reads), compareKeys) {
		if !m.reads[o].done {
			out = m.object(out, protocol.Message{Kind: protocol.Read, Object: o, Requester: m.reader(), Seq: 1})
		}
	}
	return out
}

// readerReceives handles what object managers and owners send to a reader.
func (m *Manager) readerReceives(in *protocol.Message, out []Action) []Action {
	r, ok := m.reads[in.Object]
	// What is for another checkpoint counts for nothing, and is acknowledged at once.
	mine := ok && m.state == Reading && (in.To.Node == m.reader() || m.mutant == protocol.WithoutR6)
	reply := protocol.Message{Object: in.Object, Requester: in.To.Node}
	switch in.Kind {
	case protocol.NoCopy: // a declined first touch
		switch {
		case !mine || r.done:
			return out
		case in.Life > m.touched[in.Object] && m.mutant != protocol.BlankNone: // R16: its group does not know
			return m.restart(out)
		}
		r.done = true
		m.unread--
		m.reads[in.Object] = r
		return m.cut(out)
	case protocol.Copy:
		reply.Kind, reply.Seq = protocol.ReadAck, in.Seq
		out = m.object(out, reply)
		if mine && !r.done && in.Copy == protocol.ReadCopy {
			r.done, r.hash = true, in.Hash
			m.unread--
			m.reads[in.Object] = r
			return m.cut(out)
		}
	case protocol.Invalidate:
		if mine && r.done && m.mutant != protocol.WithoutWithhold {
			r.withheld = max(r.withheld, in.LastInv) // C4
			m.reads[in.Object] = r
			return out
		}
		reply.Kind, reply.LastInv = protocol.InvalidateAck, in.LastInv
		out = m.object(out, reply)
	}
	return out
}

// cut: everything is read, now (C5). Threads need not wait for what follows.
func (m *Manager) cut(out []Action) []Action {
	if m.unread > 0 {
		return out
	}
	m.state, m.cutAt = Saving, m.next()
	out = m.resume(out)
	m.reads = nil
	return append(out, Action{Kind: Save, Checkpoint: m.id, Manifest: m.cutAt})
}

// resume acknowledges what was kept back, and lets threads go on.
func (m *Manager) resume(out []Action) []Action {
	for _, o := range slices.SortedFunc(maps.Keys(m.reads), compareKeys) {
		if r := m.reads[o]; r.withheld > 0 {
			out = m.object(out, protocol.Message{Kind: protocol.InvalidateAck, Object: o, Requester: m.reader(), LastInv: r.withheld})
			r.withheld = 0
			m.reads[o] = r
		}
	}
	for _, n := range m.nodes() {
		out = m.tell(out, n, protocol.Message{Kind: protocol.Resume, Checkpoint: m.id})
	}
	return out
}

// abort gives a checkpoint up; the previous one stays in force (C6).
func (m *Manager) abort(out []Action) []Action {
	switch m.state {
	case Stopping, Reading, Saving:
		m.state = Running
		out = m.resume(out)
		m.reads, m.unread, m.cutAt = nil, 0, Manifest{}
	}
	return out
}

// next is the manifest of the present cut: the previous one overwritten by what was read (C5), since a restart begins with objects that nobody
// has touched. Threads are those that stopped for it.
func (m *Manager) next() Manifest {
	n := Manifest{Objects: maps.Clone(m.manifest.Objects), Threads: make(map[protocol.ThreadID]protocol.Hash)}
	if n.Objects == nil || m.mutant == protocol.WithoutCarryOver {
		n.Objects = make(map[keyspace.Key]protocol.Hash)
	}
	for o, r := range m.reads {
		if r.hash != (protocol.Hash{}) {
			n.Objects[o] = r.hash
		}
	}
	for id, t := range m.threads {
		if !t.guest && t.stopped == m.id {
			n.Threads[id] = t.hash
		}
	}
	return n
}
