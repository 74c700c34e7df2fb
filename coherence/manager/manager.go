package manager

import (
	"encoding/binary"
	"fmt"
	"slices"

	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
)

// State is where a manager is. States print as the paper spells them.
type State uint8

// The states.
const (
	Idle State = iota
	WaitReadAck
	WaitConfirm
	WaitInvAck
	WaitWriteAck
)

// String spells the state.
func (s State) String() string {
	return [...]string{"IDLE", "WAIT_READ_ACK", "WAIT_CONFIRM", "WAIT_INV_ACK", "WAIT_WRITE_ACK"}[s]
}

// Request is a READ or a WRITE that waits.
type Request struct {
	Kind      protocol.Kind
	Requester protocol.NodeRef
	Seq       protocol.ReqSeq
}

// CopiesMax bounds the copy set and the queue of one object: protocol.NodesMax nodes, and a checkpoint, which always finds room.
const CopiesMax = 1<<10 + 1

// reader is a node that the manager waits for a READ_ACK of.
type reader struct {
	node protocol.NodeRef
	seq  protocol.ReqSeq
}

// Config is what a manager is made with.
type Config struct {
	App, Object keyspace.Key
	Epoch       protocol.Epoch
	Life        protocol.Life // of the group that hosts it, greater when the group has lost its state (R16)
}

// Manager is the manager of one object (RR-5059 section 3.1, appendix A.1). All replicas of its group step it with the same events in the
// order of the group's log. Not safe for concurrent use. The zero value is not usable; see [New].
type Manager struct {
	cfg    Config
	mutant protocol.Mutant
	// fired tells a test which transitions of appendix A.1 are taken.
	fired func(string)

	state State
	epoch protocol.Epoch
	// pending holds at most one request of each node (R2).
	pending []Request
	// owner is nobody until the first touch is done. Outside WAIT_WRITE_ACK it is the true owner (lemma 5, I6).
	owner        protocol.NodeRef
	newOwner     protocol.NodeRef // nobody in IDLE and WAIT_READ_ACK
	currentWrite protocol.ReqSeq  // of newOwner
	lastInv      protocol.InvSeq
	// copySet holds every node but the owner that may have a readable copy (lemma 3, I5). In order.
	copySet []protocol.NodeRef
	// waiting is empty but in WAIT_READ_ACK. In order of nodes.
	waiting  []reader
	suspects protocol.Suspects

	// touched: the application manager has noted that the object is being touched (R16). asked: report number reports is on its way.
	touched, asked bool
	reports        protocol.ReqSeq
}

// New makes the manager of an object that nobody has touched in this epoch.
func New(cfg Config) *Manager { return &Manager{cfg: cfg, epoch: cfg.Epoch} }

// EventKind says what an [Event] is.
type EventKind uint8

// The events.
const (
	Receive EventKind = iota + 1 // Msg
	Suspect                      // a failure detector suspects Node
	Trust                        // it has taken that back
)

// Event is an input. The group's log orders them.
type Event struct {
	Kind EventKind
	Msg  *protocol.Message // not kept
	Node protocol.NodeRef
}

// Step takes an event, then every spontaneous transition until none is enabled, and appends what has to be sent to out. An input that
// matches no transition is late or a duplicate, and is dropped.
func (m *Manager) Step(ev Event, out []protocol.Message) []protocol.Message {
	switch ev.Kind {
	case Receive:
		return m.receive(ev.Msg, out)
	case Suspect:
		return m.run(m.suspect(ev.Node, false, out))
	case Trust:
		m.suspects.Remove(ev.Node)
	}
	return out
}

// State returns where the manager is.
func (m *Manager) State() State { return m.state }

// Epoch returns the epoch it serves.
func (m *Manager) Epoch() protocol.Epoch { return m.epoch }

// Owner returns who has the master copy, nobody before the first touch.
func (m *Manager) Owner() protocol.NodeRef { return m.owner }

// NewOwner returns whose write is being handled.
func (m *Manager) NewOwner() protocol.NodeRef { return m.newOwner }

// LastInv returns the number of the last write that was begun.
func (m *Manager) LastInv() protocol.InvSeq { return m.lastInv }

// HasCopy reports whether n is in the copy set.
func (m *Manager) HasCopy(n protocol.NodeRef) bool { return slices.Contains(m.copySet, n) }

// Suspects reports whether n is suspected.
func (m *Manager) Suspects(n protocol.NodeRef) bool { return m.suspects.Has(n) }

// Concerns lists the nodes whose failure would hold the manager up: a host watches them with its failure detector, and no others. In order.
func (m *Manager) Concerns() []protocol.NodeRef {
	var ns []protocol.NodeRef
	for _, n := range []protocol.NodeRef{m.owner, m.newOwner} {
		if !n.IsZero() {
			ns = append(ns, n)
		}
	}
	ns = append(ns, m.copySet...)
	for _, w := range m.waiting {
		ns = append(ns, w.node)
	}
	for _, r := range m.pending {
		ns = append(ns, r.Requester)
	}
	slices.SortFunc(ns, protocol.NodeRef.Compare)
	ns = slices.Compact(ns)
	return slices.DeleteFunc(ns, m.checkpoint)
}

// checkpoint reports whether n is the application manager as a reader (C4).
func (m *Manager) checkpoint(n protocol.NodeRef) bool { return n.ID == keyspace.NodeID(m.cfg.App) }

func (m *Manager) fire(transition string) {
	if m.fired != nil {
		m.fired(transition)
	}
}

// Observe has f told the number of each transition of appendix A.1 when it is taken.
func (m *Manager) Observe(f func(transition string)) { m.fired = f }

// Sabotage plants a mistake, for tests.
func (m *Manager) Sabotage(mutant protocol.Mutant) { m.mutant = mutant }

func (m *Manager) send(out []protocol.Message, to protocol.NodeRef, msg protocol.Message) []protocol.Message {
	msg.To = protocol.At(to)
	if m.checkpoint(to) {
		msg.To.Party = protocol.AppManager
	}
	return m.put(out, msg)
}

func (m *Manager) put(out []protocol.Message, msg protocol.Message) []protocol.Message {
	msg.From, msg.Epoch, msg.Object = protocol.Address{Party: protocol.ObjectManager}, m.epoch, m.cfg.Object
	return append(out, msg)
}

// restart forgets everything but the epoch and who has reported (R7: the initial state is known).
func (m *Manager) restart(epoch protocol.Epoch) {
	*m = Manager{cfg: m.cfg, mutant: m.mutant, fired: m.fired, epoch: epoch}
}

func (m *Manager) receive(in *protocol.Message, out []protocol.Message) []protocol.Message {
	// R7: any message of a newer epoch reinitialises; REINIT is a hint. One of the present epoch must not: it would forget the owner.
	if in.Epoch > m.epoch || m.mutant == protocol.WithoutR7 && in.Kind == protocol.Reinit && in.Epoch == m.epoch {
		m.restart(in.Epoch)
	}
	if in.Epoch < m.epoch && m.mutant != protocol.WithoutEpoch {
		// Rule E. The paper leaves a survivor to find out by itself; it is told.
		if in.From.Party == protocol.Node {
			out = m.send(out, in.From.Node, protocol.Message{Kind: protocol.Destroy})
		}
		return out
	}
	n := in.Requester
	switch in.From.Party {
	case protocol.Node:
		out = m.returned(in.From.Node, out)
		if in.Kind == protocol.Refused {
			return m.run(out)
		}
		if n != in.From.Node {
			return out // nobody speaks for another
		}
	case protocol.AppManager:
	default:
		return out
	}
	switch in.Kind {
	case protocol.Write:
		if m.state == Idle {
			m.fire("1")
		} else {
			m.fire("14")
		}
		m.enqueue(Request{in.Kind, n, in.Seq})
	case protocol.Read:
		if m.checkpoint(n) {
			out = m.returned(n, out) // a later checkpoint: the earlier one is over, and has no copy
		}
		switch {
		case m.state == WaitReadAck && n == m.owner: // 12, for a request of before its acquisition
			m.fire("12")
		case m.state == WaitReadAck && len(m.pending) == 0:
			m.fire("12")
			out = m.grantRead(n, in.Seq, out)
		default:
			if m.state == Idle {
				m.fire("4")
			} else {
				m.fire("13")
			}
			m.enqueue(Request{in.Kind, n, in.Seq})
		}
	case protocol.ReadAck: // 6
		if i, ok := m.waitingFor(n); ok && m.state == WaitReadAck && m.waiting[i].seq == in.Seq {
			m.fire("6")
			m.waiting = slices.Delete(m.waiting, i, i+1)
		}
	case protocol.WriteConfirm: // 9
		if m.state == WaitConfirm && n == m.newOwner && in.LastInv == m.lastInv {
			m.fire("9")
			m.state = WaitInvAck
			out = m.invalidate(out)
			out = m.askAll(out)
		}
	case protocol.WriteInvalidate:
		switch {
		case m.state == WaitConfirm && n == m.newOwner && in.LastInv == m.lastInv: // 15: last_inv keeps its new value; gaps are harmless
			m.fire("15")
			m.newOwner, m.state = protocol.NodeRef{}, Idle
		case m.state == WaitWriteAck && m.owner.IsZero() && n == m.newOwner && in.Seq == m.currentWrite && in.LastInv == 0:
			// 15', R3: an owner never declines, so nobody has touched the object.
			m.fire("15'")
			m.newOwner, m.state = protocol.NodeRef{}, Idle
		}
	case protocol.InvalidateAck: // 10
		if m.state == WaitInvAck && in.LastInv == m.lastInv {
			m.fire("10")
			m.forgetCopy(n)
		}
	case protocol.WriteAck: // 3
		if m.state == WaitWriteAck && n == m.newOwner && in.LastInv == m.lastInv {
			m.fire("3")
			if old := m.owner; !old.IsZero() && old != n {
				out = m.send(out, old, protocol.Message{Kind: protocol.TransferDone, LastInv: m.lastInv}) // R4
			}
			m.owner, m.newOwner, m.copySet, m.state = n, protocol.NodeRef{}, nil, Idle
			if m.mutant == protocol.LateTouch {
				m.asked = true
				out = m.report(out)
			}
		}
	case protocol.TransferDone: // R4: the node asks, since ours may have been lost
		if in.LastInv < m.lastInv || in.LastInv == m.lastInv && m.state != WaitWriteAck {
			out = m.send(out, n, protocol.Message{Kind: protocol.TransferDone, LastInv: in.LastInv})
		}
	case protocol.Touched: // R16: the receipt
		switch {
		case in.From.Party != protocol.AppManager || !m.asked || in.Seq != m.reports || in.Life != m.cfg.Life:
		case in.Flag: // there is no room. It is asked again, since an execution that begins anew may have some
			for _, r := range m.pending {
				if !m.checkpoint(r.Requester) {
					out = m.send(out, r.Requester, protocol.Message{Kind: protocol.NoCopy, Requester: r.Requester, Seq: r.Seq, Flag: true})
				}
			}
		default:
			m.asked, m.touched = false, true
		}
	case protocol.NotSuspect: // R12
		if in.From.Party == protocol.AppManager {
			m.suspects.Remove(n)
		}
	}
	return m.run(out)
}

// run takes spontaneous transitions until none is enabled.
func (m *Manager) run(out []protocol.Message) []protocol.Message {
	for {
		switch {
		case m.state == WaitReadAck && len(m.waiting) == 0:
			m.fire("7")
			m.state = Idle
		case m.state == WaitInvAck && m.onlyNewOwner():
			m.fire("11")
			m.state = WaitWriteAck
			out = m.forward(out)
			out = m.askAll(out)
		case m.state == Idle && m.owner.IsZero() && m.untouched(&out):
			return out
		case m.state == Idle && len(m.pending) > 0:
			out = m.next(out)
		default:
			return out
		}
	}
}

// untouched answers checkpoints while nobody has the object (C4), and reports whether a first touch has to wait for the application manager.
//
// Deviation from R16, which reports the first commit of transition 3: by then the owner may have written, and its thread may have stopped for a
// checkpoint that knows nothing of the object, or the group may have lost its state. The report comes before the grant.
// testdata/r16_blank.txt and c4_touch.txt show both. A checkpoint is answered out of turn, since what stands before it may wait for a receipt that
// the application manager does not give before its answer; and what was reported is reported again after it, or the object could come to life
// behind the checkpoint's back. The answer names the group's life: one that has lost its state does not know whether somebody has the object
// (testdata/c4_blank_none.txt).
func (m *Manager) untouched(out *[]protocol.Message) bool {
	m.pending = slices.DeleteFunc(m.pending, func(r Request) bool {
		if !m.checkpoint(r.Requester) {
			return false
		}
		*out = m.send(*out, r.Requester, protocol.Message{Kind: protocol.NoCopy, Requester: r.Requester, Seq: r.Seq, Life: m.cfg.Life})
		if m.mutant != protocol.StaleNone {
			m.touched = false
			if m.asked {
				m.reports++ // a receipt that is on its way is of before the answer
				*out = m.report(*out)
			}
		}
		return true
	})
	if len(m.pending) == 0 || m.touched || m.mutant == protocol.WithoutR16 || m.mutant == protocol.LateTouch {
		return false
	}
	if !m.asked {
		m.asked = true
		m.reports++
		*out = m.report(*out)
	}
	return true
}

func (m *Manager) report(out []protocol.Message) []protocol.Message {
	return m.put(out, protocol.Message{Kind: protocol.Touched, To: protocol.Address{Party: protocol.AppManager}, Life: m.cfg.Life, Seq: m.reports})
}

// next takes the head of the queue.
func (m *Manager) next(out []protocol.Message) []protocol.Message {
	h := m.pending[0]
	if (m.owner.IsZero() || h.Kind == protocol.Write) && m.suspects.Has(h.Requester) && m.mutant != protocol.WithoutR8 {
		// R8, before anything is promised: who is suspected wrongly asks again. He is believed then, as long as nobody says the same of him once
		// more. A detector watches only those that the manager is concerned about, which he is not any more, and would never take its opinion
		// back (testdata/r08_wrong_suspicion.txt).
		m.pending = slices.Delete(m.pending, 0, 1)
		if m.mutant != protocol.Disbelief {
			m.suspects.Remove(h.Requester)
		}
		return out
	}
	switch {
	case m.owner.IsZero():
		m.fire("2")
		m.take(h)
		m.state = WaitWriteAck
		out = m.forward(out)
		return m.askAll(out)
	case h.Kind == protocol.Read:
		m.fire("5")
		m.state = WaitReadAck
		for len(m.pending) > 0 && m.pending[0].Kind == protocol.Read {
			r := m.pending[0]
			m.pending = slices.Delete(m.pending, 0, 1)
			out = m.grantRead(r.Requester, r.Seq, out)
		}
		if m.suspects.Has(m.owner) && len(m.waiting) > 0 {
			out = m.ask(m.owner, out)
		}
		return out
	default:
		m.fire("8")
		m.take(h)
		m.lastInv++
		m.state = WaitConfirm
		return m.send(out, m.newOwner, m.confirm())
	}
}

// take makes the head of the queue the new owner.
func (m *Manager) take(h Request) {
	m.pending = slices.Delete(m.pending, 0, 1)
	m.newOwner, m.currentWrite = h.Requester, h.Seq
}

func (m *Manager) confirm() protocol.Message {
	return protocol.Message{Kind: protocol.WriteConfirm, Requester: m.newOwner, Seq: m.currentWrite, LastInv: m.lastInv}
}

// forward sends what WAIT_WRITE_ACK waits for.
func (m *Manager) forward(out []protocol.Message) []protocol.Message {
	if m.owner.IsZero() {
		return m.send(out, m.newOwner, protocol.Message{Kind: protocol.FirstTouch, Seq: m.currentWrite}) // R3: with the number
	}
	return m.send(out, m.owner, protocol.Message{Kind: protocol.ForwardedWrite, Requester: m.newOwner, Seq: m.currentWrite, LastInv: m.lastInv})
}

func (m *Manager) invalidate(out []protocol.Message) []protocol.Message {
	for _, n := range m.copySet {
		if n != m.newOwner {
			msg := protocol.Message{Kind: protocol.Invalidate, LastInv: m.lastInv}
			if !m.checkpoint(n) {
				msg.Requester = m.newOwner // whom to ask next
			}
			out = m.send(out, n, msg)
		}
	}
	return out
}

func (m *Manager) onlyNewOwner() bool {
	return len(m.copySet) == 0 || len(m.copySet) == 1 && m.copySet[0] == m.newOwner
}

// grantRead lets a reader have a copy.
func (m *Manager) grantRead(n protocol.NodeRef, seq protocol.ReqSeq, out []protocol.Message) []protocol.Message {
	if n == m.owner {
		return out
	}
	at, has := slices.BinarySearchFunc(m.copySet, n, protocol.NodeRef.Compare)
	if !has && len(m.copySet) >= protocol.NodesMax && !m.checkpoint(n) {
		return out // it asks again; the next write makes room
	}
	i, ok := m.waitingFor(n)
	switch {
	case ok && seq <= m.waiting[i].seq && m.mutant != protocol.WithoutR1:
		// R1. The paper stores any number. An older READ that comes late would hide the newer one: its READ_ACK would end WAIT_READ_ACK
		// while the newer COPY travels, and a stale copy would become readable after the next write (testdata/r01_*.txt).
		return out
	case ok:
		m.waiting[i].seq = seq
	default:
		m.waiting = slices.Insert(m.waiting, i, reader{n, seq})
	}
	if !has {
		m.copySet = slices.Insert(m.copySet, at, n)
	}
	out = m.send(out, m.owner, protocol.Message{Kind: protocol.ForwardedRead, Requester: n, Seq: seq, LastInv: m.lastInv}) // R5: with last_inv
	if m.suspects.Has(n) {
		out = m.ask(n, out)
	}
	return out
}

// enqueue appends a request. R2: at most one of each node; a newer number takes the older one's place. The paper's queue grows with every
// duplicate.
func (m *Manager) enqueue(r Request) {
	if m.mutant == protocol.WithoutR2 {
		m.pending = append(m.pending, r)
		return
	}
	for i, q := range m.pending {
		if q.Requester.ID != r.Requester.ID {
			continue
		}
		if r.Requester.Inc > q.Requester.Inc || r.Requester == q.Requester && r.Seq > q.Seq {
			m.pending[i] = r
		}
		return
	}
	if m.checkpoint(r.Requester) || len(m.pending) < protocol.NodesMax && len(m.copySet) < protocol.NodesMax {
		m.pending = append(m.pending, r)
	}
}

func (m *Manager) waitingFor(n protocol.NodeRef) (int, bool) {
	return slices.BinarySearchFunc(m.waiting, n, func(r reader, n protocol.NodeRef) int { return r.node.Compare(n) })
}

func (m *Manager) forgetCopy(n protocol.NodeRef) {
	if i, ok := slices.BinarySearchFunc(m.copySet, n, protocol.NodeRef.Compare); ok {
		m.copySet = slices.Delete(m.copySet, i, i+1)
	}
}

// returned applies R15: who speaks is a later start of nodes that the manager counts on. These are gone, with their copies.
func (m *Manager) returned(n protocol.NodeRef, out []protocol.Message) []protocol.Message {
	if m.mutant == protocol.WithoutR15 {
		return out
	}
	gone := func(o protocol.NodeRef) bool { return n.Succeeds(o) }
	m.copySet = slices.DeleteFunc(m.copySet, gone)
	m.waiting = slices.DeleteFunc(m.waiting, func(r reader) bool { return gone(r.node) })
	m.pending = slices.DeleteFunc(m.pending, func(r Request) bool { return gone(r.Requester) })
	for _, o := range []protocol.NodeRef{m.owner, m.newOwner} {
		if gone(o) && !m.suspects.Final(o) {
			out = m.suspect(o, true, out)
		}
	}
	return out
}

// suspect records a suspicion and does what section 6.3 says.
func (m *Manager) suspect(n protocol.NodeRef, final bool, out []protocol.Message) []protocol.Message {
	if m.suspects.Full() {
		concerns := m.Concerns()
		m.suspects.Keep(func(n protocol.NodeRef) bool {
			_, ok := slices.BinarySearchFunc(concerns, n, protocol.NodeRef.Compare)
			return ok
		})
	}
	m.suspects.Add(n, final)
	if m.state == WaitConfirm && n == m.newOwner && m.mutant != protocol.WithoutR8 {
		// R8. The paper restarts the application. Nothing has been granted: drop the request; who is suspected wrongly asks again.
		m.newOwner, m.state = protocol.NodeRef{}, Idle
		return out
	}
	return m.ask(n, out)
}

// askAll does what section 6.3 says of everybody who is suspected, in a state just entered.
func (m *Manager) askAll(out []protocol.Message) []protocol.Message {
	if m.suspects.Empty() {
		return out
	}
	for _, n := range m.suspects.Nodes() {
		out = m.ask(n, out)
	}
	return out
}

// ask asks the application manager about a suspect that the present state waits for (section 6.3).
func (m *Manager) ask(n protocol.NodeRef, out []protocol.Message) []protocol.Message {
	msg := protocol.Message{Kind: protocol.Query, To: protocol.Address{Party: protocol.AppManager}, Requester: n}
	i, reading := m.waitingFor(n)
	switch {
	case m.state == WaitReadAck && n == m.owner && len(m.waiting) > 0, m.state == WaitWriteAck && (n == m.owner || n == m.newOwner):
		msg.Kind = protocol.RestartReq
		msg.Flag = m.suspects.Final(n) // R12: otherwise the application manager forms its own opinion
	case m.state == WaitReadAck && reading:
		msg.Ack, msg.Seq = protocol.ReadAck, m.waiting[i].seq
	case m.state == WaitInvAck && n != m.newOwner && m.HasCopy(n):
		msg.Ack, msg.LastInv = protocol.InvalidateAck, m.lastInv
	default:
		return out
	}
	return m.put(out, msg)
}

// Resend appends what the present state waits for, once more (R4, section 7). It changes nothing, so it needs no place in the group's log: a
// leader calls it now and then, and a new leader at once.
func (m *Manager) Resend(out []protocol.Message) []protocol.Message {
	if m.mutant == protocol.WithoutR4 {
		return out
	}
	switch m.state {
	case Idle:
		if m.asked {
			out = m.report(out)
		}
	case WaitReadAck:
		for _, w := range m.waiting {
			out = m.send(out, m.owner, protocol.Message{Kind: protocol.ForwardedRead, Requester: w.node, Seq: w.seq, LastInv: m.lastInv})
		}
	case WaitConfirm:
		out = m.send(out, m.newOwner, m.confirm())
	case WaitInvAck:
		out = m.invalidate(out)
	case WaitWriteAck:
		out = m.forward(out)
	}
	return m.askAll(out)
}

// Clone returns a copy that shares nothing: what a replica that joins is given.
func (m *Manager) Clone() *Manager {
	c := *m
	c.pending, c.copySet, c.waiting = slices.Clone(m.pending), slices.Clone(m.copySet), slices.Clone(m.waiting)
	c.suspects = m.suspects.Clone()
	return &c
}

// Append writes the whole state in canonical form: equal states give equal bytes.
func (m *Manager) Append(b []byte) []byte {
	b = binary.AppendUvarint(append(b, byte(m.state)), uint64(m.epoch))
	b = binary.AppendUvarint(b, uint64(len(m.pending)))
	for _, r := range m.pending {
		b = binary.AppendUvarint(r.Requester.Append(append(b, byte(r.Kind))), uint64(r.Seq))
	}
	b = m.newOwner.Append(m.owner.Append(b))
	for _, v := range [...]uint64{uint64(m.currentWrite), uint64(m.lastInv), uint64(m.reports), uint64(len(m.copySet))} {
		b = binary.AppendUvarint(b, v)
	}
	for _, n := range m.copySet {
		b = n.Append(b)
	}
	b = binary.AppendUvarint(b, uint64(len(m.waiting)))
	for _, w := range m.waiting {
		b = binary.AppendUvarint(w.node.Append(b), uint64(w.seq))
	}
	return protocol.AppendBools(m.suspects.Append(b), m.touched, m.asked)
}

// String prints the state as traces do.
func (m *Manager) String() string {
	s := fmt.Sprintf("%v owner=%v", m.state, m.owner)
	if !m.newOwner.IsZero() {
		s += fmt.Sprintf(" new=%v", m.newOwner)
	}
	if m.lastInv > 0 {
		s += fmt.Sprintf(" inv=%d", m.lastInv)
	}
	if len(m.copySet) > 0 {
		s += fmt.Sprintf(" copies=%v", m.copySet)
	}
	for _, w := range m.waiting {
		s += fmt.Sprintf(" waiting[%v]=%d", w.node, w.seq)
	}
	for _, r := range m.pending {
		s += fmt.Sprintf(" pending=%v(%v,%d)", r.Kind, r.Requester, r.Seq)
	}
	if m.epoch > 1 {
		s += fmt.Sprintf(" epoch=%d", m.epoch)
	}
	return s
}
