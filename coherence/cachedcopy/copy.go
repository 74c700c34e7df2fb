package cachedcopy

import (
	"encoding/binary"
	"fmt"
	"slices"

	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
)

// State is where a copy is. States print as the paper spells them.
type State uint8

// The states.
const (
	Invalid State = iota
	WaitCopyRead
	WaitCopyWrite
	Shared
	OwnerShared
	OwnerExclusive
	WaitWrite
)

// String spells the state.
func (s State) String() string {
	return [...]string{"INVALID", "WAIT_COPY_READ", "WAIT_COPY_WRITE", "SHARED", "OWNER_SHARED", "OWNER_EXCLUSIVE", "WAIT_WRITE"}[s]
}

// Master reports whether the copy is the one all others come from.
func (s State) Master() bool { return s >= OwnerShared }

// Right is what threads may do with a copy.
type Right uint8

// The rights.
const (
	NoAccess Right = iota
	ReadOnly
	ReadWrite
)

// String names the right.
func (r Right) String() string { return [...]string{"none", "read", "write"}[r] }

// DeferredMax bounds the events that wait for a [Release]. Further messages are dropped: their senders repeat them.
const DeferredMax = 64

// Config is what a copy is made with.
type Config struct {
	Self    protocol.NodeRef
	App     keyspace.Key
	Object  keyspace.Key
	Epoch   protocol.Epoch
	Threads bool // the node executes a thread
	Direct  bool // it asks for a readable copy where the master is likely to be, before it asks the manager
}

// Copy is one node's copy of one object. Not safe for concurrent use: see the package comment for whose it is. The zero value is not usable;
// see [New].
type Copy struct {
	cfg    Config
	mutant protocol.Mutant
	fired  func(string)

	epoch protocol.Epoch
	state State
	value *protocol.Cell // nil without the right to read
	// lki is the last number of a write that the copy knows of, lastReq that of its last request. Neither decreases within an epoch (I8).
	lki     protocol.InvSeq
	lastReq protocol.ReqSeq
	// base is the first request since the state last was none of WAIT_COPY_READ and WAIT_COPY_WRITE.
	base protocol.ReqSeq
	// bound: has sent WRITE_CONFIRM for lastReq, so the manager counts on it. Only in WAIT_COPY_WRITE and WAIT_WRITE.
	bound bool
	// out is the master that was handed over last, until that is known to be done (R4).
	out retained
	// likely is who is thought to have the master, nobody where nothing is known.
	likely protocol.NodeRef
	// direct is who was asked for a readable copy without the manager, in request lastReq or the last one before it.
	direct protocol.NodeRef
	// serving is nil unless the copy is a MASTER that has readers of its own.
	serving  *serving
	threads  bool             // the node executes a thread
	hint     protocol.NodeRef // where the last thread went
	held     bool
	deferred []Event
	broken   int // messages that a correct protocol does not send
}

// retained is a COPY of a master that may have to be sent again. The zero value is none.
type retained struct {
	requester protocol.NodeRef
	seq       protocol.ReqSeq
	lastInv   protocol.InvSeq
	value     *protocol.Cell
}

// serving is what a master knows of those who have a readable copy of it without the manager's knowing.
type serving struct {
	readers  []protocol.NodeRef // in order, not empty
	revoking retained           // a FORWARDED_WRITE that waits until they have none any more
}

// New makes a copy in INVALID.
func New(cfg Config) *Copy { return &Copy{cfg: cfg, epoch: cfg.Epoch, threads: cfg.Threads} }

// EventKind says what an [Event] is.
type EventKind uint8

// The events.
const (
	Receive     EventKind = iota + 1 // Msg
	ReadFault                        // a thread reads without the right; Node may have the master, where the copy knows nothing better
	WriteFault                       // a thread writes without the right
	Hold                             // nothing takes a right away until Release
	Release                          // ends a Hold
	ThreadsGone                      // the last thread has left the node, for Node if it migrated
	ThreadsHere                      // a thread is there
	Destroy                          // the epoch is over; Epoch is the next
	Repeat                           // time to say again what the copy waits for (R4)
)

// Event is an input.
type Event struct {
	Kind  EventKind
	Msg   *protocol.Message
	Node  protocol.NodeRef
	Epoch protocol.Epoch
}

// ActionKind says what an [Action] is.
type ActionKind uint8

// The actions.
const (
	Send      ActionKind = iota + 1 // Msg
	SetRight                        // threads may do Right from now on, with Value, nil for NoAccess
	Destroyed                       // every call of the epochs before the copy's has failed
)

// Action is an output. A driver performs the actions of a step in their order.
type Action struct {
	Kind  ActionKind
	Msg   protocol.Message
	Right Right
	Value *protocol.Cell
}

// State returns where the copy is.
func (c *Copy) State() State { return c.state }

// Epoch returns the epoch the copy is of.
func (c *Copy) Epoch() protocol.Epoch { return c.epoch }

// Value returns the value, nil without the right to read.
func (c *Copy) Value() *protocol.Cell { return c.value }

// Right returns what threads may do.
func (c *Copy) Right() Right { return rightIn(c.state) }

func rightIn(s State) Right {
	switch s {
	case Shared, OwnerShared, WaitWrite:
		return ReadOnly
	case OwnerExclusive:
		return ReadWrite
	}
	return NoAccess
}

// Waits reports whether a [Repeat] would say something.
func (c *Copy) Waits() bool {
	return c.state == WaitCopyRead || c.state == WaitCopyWrite || c.state == WaitWrite || c.state.Master() && !c.threads || c.out != retained{} || c.recalls()
}

// Leavable reports whether the node may go without harm to the others (section 6.2). What is retained may be needed for a moment still.
func (c *Copy) Leavable() bool { return !c.state.Master() && !c.bound && c.out == retained{} }

// Serves reports whether n is among those that have a readable copy of this master without the manager.
func (c *Copy) Serves(n protocol.NodeRef) bool {
	return c.serving != nil && slices.Contains(c.serving.readers, n)
}

// recalls reports whether the copy waits for its own readers.
func (c *Copy) recalls() bool { return c.serving != nil && c.serving.revoking != retained{} }

// Likely returns who is thought to have the master, nobody where nothing is known.
func (c *Copy) Likely() protocol.NodeRef { return c.likely }

// Direct returns whom the copy asked for a readable copy without the manager.
func (c *Copy) Direct() protocol.NodeRef { return c.direct }

// Broken returns how many messages came that a correct protocol does not send.
func (c *Copy) Broken() int { return c.broken }

// Observe has f told the number of each transition of appendix A.2 when it is taken.
func (c *Copy) Observe(f func(transition string)) { c.fired = f }

// Sabotage plants a mistake, for tests.
func (c *Copy) Sabotage(mutant protocol.Mutant) { c.mutant = mutant }

func (c *Copy) fire(transition string) {
	if c.fired != nil {
		c.fired(transition)
	}
}

// Store is a write hit: it replaces the value if the right to write is there, and reports whether it was. v is not nil, and not changed any
// more.
func (c *Copy) Store(v *protocol.Cell) bool {
	if c.state != OwnerExclusive {
		return false
	}
	c.value = v
	return true
}

// Wants reports whether in is a COPY, a FIRST_TOUCH or a BECOME_OWNER that [Copy.Step] would accept. Of a FIRST_TOUCH it means that it needs a value, of
// a BECOME_OWNER that the copy asks for the right to write.
func (c *Copy) Wants(in *protocol.Message) bool {
	if in.Epoch != c.epoch && c.mutant != protocol.WithoutEpoch || in.To.Node != c.cfg.Self && c.mutant != protocol.WithoutR6 {
		return false
	}
	switch in.Kind {
	case protocol.FirstTouch:
		return c.state == WaitCopyRead && in.Seq == c.lastReq || c.state == WaitCopyWrite && c.base <= in.Seq && in.Seq <= c.lastReq
	case protocol.Copy:
		if in.Flag && (in.From.Node != c.direct || in.LastInv < c.lki && c.mutant != protocol.DirectStale) {
			// One that the manager knows nothing of, of a master that is about to be handed over or has been: who sent it has counted this node
			// among its readers, and has heard from it that it has no copy of that master any more (testdata/direct_stale.txt).
			return false
		}
		return in.Seq == c.lastReq && (c.state == WaitCopyRead && c.kind(in, protocol.ReadCopy) || c.state == WaitCopyWrite && c.kind(in, protocol.MasterCopy))
	case protocol.BecomeOwner:
		return (c.threads || c.mutant == protocol.WithoutR11) && !c.state.Master() && c.state != WaitCopyWrite
	}
	return false
}

// kind reports whether in carries k. R14: the paper has the receiver's state decide.
func (c *Copy) kind(in *protocol.Message, k protocol.Transferred) bool {
	return in.Copy == k || c.mutant == protocol.WithoutR14
}

// Step takes an event and appends what has to be done to out. A message that matches no row is late or a duplicate, and is dropped.
func (c *Copy) Step(ev Event, out []Action) []Action {
	if c.held && c.takes(ev) { // R17
		if !c.has(ev) && len(c.deferred) < DeferredMax {
			if ev.Msg != nil {
				m := *ev.Msg
				ev.Msg = &m
			}
			c.deferred = append(c.deferred, ev)
		}
		return out
	}
	switch ev.Kind {
	case Receive:
		out = c.receive(ev.Msg, out)
	case ReadFault:
		out = c.readFault(ev.Node, out)
	case WriteFault:
		out = c.writeFault(out)
	case Hold:
		c.held = c.mutant != protocol.WithoutR17
	case Release:
		c.held = false
		todo := c.deferred
		c.deferred = nil
		for _, ev := range todo {
			out = c.Step(ev, out)
		}
	case ThreadsGone:
		c.threads, c.hint = false, ev.Node
		if c.state.Master() || c.state == WaitCopyWrite && c.bound {
			out = c.inject(out)
		}
	case ThreadsHere:
		c.threads = true
	case Destroy:
		if ev.Epoch > c.epoch {
			out = c.destroy(ev.Epoch, out)
		}
	case Repeat:
		out = c.repeat(out)
	}
	return c.leave(out)
}

// takes reports whether ev would take a right away.
func (c *Copy) takes(ev Event) bool {
	switch ev.Kind {
	case WriteFault:
		return c.state == Shared // 10
	case ThreadsGone:
		return c.state == Shared // silently
	case Receive:
	default:
		return false
	}
	m := ev.Msg
	if m.Epoch != c.epoch || m.To.Node != c.cfg.Self {
		return false
	}
	switch m.Kind {
	case protocol.Read:
		return c.state == OwnerExclusive
	case protocol.InvalidateAck, protocol.Refused:
		return c.recalls() && c.serving.revoking.requester != c.cfg.Self
	case protocol.ForwardedRead:
		return c.state == OwnerExclusive && (m.LastInv >= c.lki || c.mutant == protocol.WithoutR5)
	case protocol.ForwardedWrite:
		return c.state.Master() && m.LastInv > c.lki && !(c.state == WaitWrite && m.Requester == c.cfg.Self)
	case protocol.Invalidate:
		return c.state == Shared && m.LastInv > c.lki
	case protocol.BecomeOwner:
		return c.state == Shared
	}
	return false
}

// has reports whether the same waits already.
func (c *Copy) has(ev Event) bool {
	return slices.ContainsFunc(c.deferred, func(d Event) bool {
		return d.Kind == ev.Kind && (ev.Msg == nil || *d.Msg == *ev.Msg)
	})
}

// set changes the state, and tells the driver when rights or the value change.
func (c *Copy) set(s State, v *protocol.Cell, out []Action) []Action {
	was, old := c.Right(), c.value
	c.state, c.value = s, v
	if r := c.Right(); r != was || v != old {
		out = append(out, Action{Kind: SetRight, Right: r, Value: v})
	}
	return out
}

func (c *Copy) put(out []Action, m protocol.Message) []Action {
	m.From, m.Epoch, m.Object = protocol.At(c.cfg.Self), c.epoch, c.cfg.Object
	if m.Kind == protocol.Copy && m.To.Node.ID == keyspace.NodeID(c.cfg.App) {
		m.To.Party = protocol.AppManager // a checkpoint reads (C4): the driver stores the value, and sends its hash instead
	}
	return append(out, Action{Kind: Send, Msg: m})
}

// tell sends to the object's manager, in the node's own name.
func (c *Copy) tell(out []Action, m protocol.Message) []Action {
	m.To, m.Requester = protocol.Address{Party: protocol.ObjectManager}, c.cfg.Self
	return c.put(out, m)
}

// ask numbers a new request.
func (c *Copy) ask(kind protocol.Kind, first bool, out []Action) []Action {
	c.lastReq++
	c.bound, c.direct = false, protocol.NodeRef{}
	if first {
		c.base = c.lastReq
	}
	return c.tell(out, protocol.Message{Kind: kind, Seq: c.lastReq})
}

func (c *Copy) readFault(guess protocol.NodeRef, out []Action) []Action {
	switch c.state {
	case Invalid:
		c.fire("6")
		c.state = WaitCopyRead
		whom := c.likely
		if whom.IsZero() {
			whom = guess
		}
		if whom.IsZero() || whom == c.cfg.Self || !c.cfg.Direct {
			return c.ask(protocol.Read, true, out)
		}
		c.lastReq++
		c.base, c.bound, c.direct = c.lastReq, false, whom
		return c.put(out, protocol.Message{Kind: protocol.Read, To: protocol.At(c.direct), Requester: c.cfg.Self, Seq: c.lastReq})
	case WaitCopyRead:
		c.fire("22")
	case WaitCopyWrite:
		c.fire("23")
	}
	return out
}

func (c *Copy) writeFault(out []Action) []Action {
	switch c.state {
	case Invalid:
		c.fire("1")
		c.state = WaitCopyWrite
		return c.ask(protocol.Write, true, out)
	case Shared:
		c.fire("10")
		out = c.set(WaitCopyWrite, nil, out)
		return c.ask(protocol.Write, true, out)
	case OwnerShared:
		c.fire("11")
		out = c.set(WaitWrite, c.value, out)
		return c.ask(protocol.Write, true, out)
	case WaitCopyRead:
		c.fire("19")
		c.state = WaitCopyWrite
		return c.ask(protocol.Write, false, out)
	case WaitCopyWrite:
		c.fire("20")
	case WaitWrite:
		c.fire("21")
	}
	return out
}

func (c *Copy) receive(m *protocol.Message, out []Action) []Action {
	if m.Epoch < c.epoch && c.mutant != protocol.WithoutEpoch {
		// Rule E. A manager that has missed its REINIT would go on asking for ever; any message of the newer epoch reinitialises it
		// (testdata/r07_lost_reinit.txt).
		if m.From.Party == protocol.ObjectManager && c.mutant != protocol.LostReinit {
			out = c.tell(out, protocol.Message{Kind: protocol.Refused})
		}
		return out
	}
	if m.Epoch > c.epoch {
		out = c.destroy(m.Epoch, out)
	}
	if m.To.Node != c.cfg.Self && c.mutant != protocol.WithoutR6 {
		// R6. The paper's counters start at 0 in every life, and what was meant for the former one would answer this one's requests
		// (testdata/r06_return.txt).
		if c.cfg.Self.Succeeds(m.To.Node) {
			refused := protocol.Message{Kind: protocol.Refused, Requester: c.cfg.Self, To: protocol.Address{Party: protocol.ObjectManager}}
			switch {
			case m.From.Party == protocol.AppManager:
				refused.To.Party = protocol.AppManager
			case ForNode(m):
				refused.To = m.From
			}
			out = c.put(out, refused)
		}
		return out
	}
	switch m.Kind {
	case protocol.Read:
		return c.directRead(m, out)
	case protocol.NoCopy:
		if m.From.Party == protocol.Node && m.From.Node == c.direct && m.Seq == c.lastReq {
			return c.askManager(out)
		}
	case protocol.InvalidateAck:
		n := m.From.Node
		if m.From.Party == protocol.AppManager { // for one that executes no thread
			n = m.Requester
		}
		if c.recalls() && m.LastInv == c.serving.revoking.lastInv {
			return c.forget(func(r protocol.NodeRef) bool { return r == n }, out)
		}
	case protocol.Refused:
		if m.From.Node.Succeeds(c.direct) {
			out = c.askManager(out)
		}
		return c.forget(m.From.Node.Succeeds, out) // R15
	case protocol.FirstTouch:
		return c.firstTouch(m, out)
	case protocol.Copy:
		return c.copy(m, out)
	case protocol.ForwardedRead:
		return c.forwardedRead(m, out)
	case protocol.ForwardedWrite:
		return c.forwardedWrite(m, out)
	case protocol.Invalidate:
		return c.invalidate(m, out)
	case protocol.WriteConfirm: // 26
		c.fire("26")
		if (c.state == WaitCopyWrite || c.state == WaitWrite) && m.Seq == c.lastReq {
			c.bound = c.mutant != protocol.WithoutBound
			return c.tell(out, protocol.Message{Kind: protocol.WriteConfirm, Seq: m.Seq, LastInv: m.LastInv})
		}
		return c.tell(out, protocol.Message{Kind: protocol.WriteInvalidate, Seq: m.Seq, LastInv: m.LastInv})
	case protocol.TransferDone: // R4
		if c.out.lastInv <= m.LastInv {
			c.out = retained{}
		}
	case protocol.BecomeOwner:
		if !c.threads && c.mutant != protocol.WithoutR11 { // R11: let another one be chosen
			return c.put(out, protocol.Message{Kind: protocol.Injection, To: protocol.Address{Party: protocol.AppManager}, Requester: m.Requester})
		}
		if !c.state.Master() && c.state != WaitCopyWrite {
			return c.writeFault(out)
		}
	}
	return out
}

func (c *Copy) firstTouch(m *protocol.Message, out []Action) []Action {
	switch {
	case c.Wants(m):
		if c.state == WaitCopyRead {
			c.fire("7")
		} else {
			c.fire("2")
		}
		c.bound, c.out = false, retained{}
		out = c.set(OwnerExclusive, m.Value, out)
		out = c.tell(out, protocol.Message{Kind: protocol.WriteAck})
		return c.arrived(out)
	case c.state.Master():
		if c.lki == 0 && c.mutant != protocol.WithoutR4 { // R4
			out = c.tell(out, protocol.Message{Kind: protocol.WriteAck})
		}
	case c.mutant != protocol.WithoutR3:
		// R3. The paper's FIRST_TOUCH has no number and cannot be declined; a node that became INVALID silently would leave the manager
		// in WAIT_WRITE_ACK for ever (testdata/r03_decline.txt).
		out = c.tell(out, protocol.Message{Kind: protocol.WriteInvalidate, Seq: m.Seq})
	}
	return out
}

func (c *Copy) copy(m *protocol.Message, out []Action) []Action {
	switch wanted := c.Wants(m); {
	case wanted && c.state == WaitCopyRead:
		c.fire("8")
		c.lki, c.likely = m.LastInv, m.From.Node
		out = c.set(Shared, m.Value, out)
		if m.Flag {
			return out
		}
		return c.tell(out, protocol.Message{Kind: protocol.ReadAck, Seq: m.Seq})
	case wanted:
		c.fire("5")
		c.lki, c.bound, c.out = m.LastInv, false, retained{}
		out = c.set(OwnerExclusive, m.Value, out)
		out = c.tell(out, protocol.Message{Kind: protocol.WriteAck, LastInv: m.LastInv})
		return c.arrived(out)
	}
	c.fire("24")
	switch {
	case m.Flag: // it may be late
		if m.From.Node == c.direct && m.Seq == c.lastReq {
			return c.askManager(out)
		}
	case m.Copy == protocol.ReadCopy || c.mutant == protocol.WithoutR14:
		return c.tell(out, protocol.Message{Kind: protocol.ReadAck, Seq: m.Seq})
	case c.state.Master() && c.lki == m.LastInv && c.mutant != protocol.WithoutR4: // R14, R4: the WRITE_ACK may have been lost
		return c.tell(out, protocol.Message{Kind: protocol.WriteAck, LastInv: m.LastInv})
	}
	return out
}

func (c *Copy) forwardedRead(m *protocol.Message, out []Action) []Action {
	if m.LastInv < c.lki && c.mutant != protocol.WithoutR5 {
		return out // R5: sent before this node was owner
	}
	switch c.state {
	case OwnerExclusive:
		c.fire("3")
		out = c.set(OwnerShared, c.value, out)
	case OwnerShared:
		c.fire("17")
	case WaitWrite:
		c.fire("18")
	default:
		return out // not the owner
	}
	return c.put(out, protocol.Message{Kind: protocol.Copy, To: protocol.At(m.Requester), Seq: m.Seq, LastInv: c.lki, Value: c.value})
}

func (c *Copy) forwardedWrite(m *protocol.Message, out []Action) []Action {
	if c.state.Master() && m.LastInv > c.lki {
		if m.Requester == c.cfg.Self {
			if c.state != WaitWrite { // cannot happen
				c.broken++
				return out
			}
			if c.revoke(m, &out) {
				return out
			}
			c.fire("12")
			c.lki, c.bound, c.out = m.LastInv, false, retained{}
			out = c.set(OwnerExclusive, c.value, out)
			return c.tell(out, protocol.Message{Kind: protocol.WriteAck, LastInv: m.LastInv})
		}
		if c.revoke(m, &out) {
			return out
		}
		c.lki, c.likely = m.LastInv, m.Requester
		handed := retained{m.Requester, m.Seq, m.LastInv, c.value}
		if c.mutant != protocol.WithoutR4 {
			c.out = handed
		}
		switch c.state {
		case OwnerShared:
			c.fire("4")
			out = c.set(Invalid, nil, out)
		case OwnerExclusive:
			c.fire("13")
			out = c.set(Invalid, nil, out)
		case WaitWrite:
			c.fire("14")
			c.base = c.lastReq
			out = c.set(WaitCopyWrite, nil, out)
		}
		return c.hand(handed, out)
	}
	switch {
	case c.mutant == protocol.WithoutR4:
	case c.out != retained{} && c.out.lastInv == m.LastInv: // R4: the COPY may have been lost
		out = c.hand(c.out, out)
	case c.state.Master() && c.lki == m.LastInv: // R4: the WRITE_ACK may have been lost
		out = c.tell(out, protocol.Message{Kind: protocol.WriteAck, LastInv: m.LastInv})
	}
	return out
}

// directRead serves a reader of whom the manager does not know. It is this copy that takes the right away again, before it lets anybody write.
func (c *Copy) directRead(m *protocol.Message, out []Action) []Action {
	n := m.From.Node
	if n != m.Requester || n == c.cfg.Self {
		return out // nobody speaks for another
	}
	out = c.forget(n.Succeeds, out) // R15
	var readers []protocol.NodeRef
	if c.serving != nil {
		readers = c.serving.readers
	}
	at, has := slices.BinarySearchFunc(readers, n, protocol.NodeRef.Compare)
	late := c.recalls()
	if !c.state.Master() || late && c.mutant != protocol.DirectLate || !has && len(readers) >= protocol.NodesMax {
		return c.put(out, protocol.Message{Kind: protocol.NoCopy, To: m.From, Requester: n, Seq: m.Seq})
	}
	if c.state == OwnerExclusive {
		c.fire("3")
		out = c.set(OwnerShared, c.value, out)
	}
	if !has && !late {
		if c.serving == nil {
			c.serving = new(serving)
		}
		c.serving.readers = slices.Insert(readers, at, n)
	}
	return c.put(out, protocol.Message{Kind: protocol.Copy, To: m.From, Seq: m.Seq, LastInv: c.lki, Value: c.value, Flag: true})
}

// revoke takes the copies of its own readers back before a FORWARDED_WRITE is obeyed, and reports whether there are any. Who writes next reads nothing
// meanwhile: it has confirmed.
func (c *Copy) revoke(m *protocol.Message, out *[]Action) bool {
	s := c.serving
	if s == nil {
		return false
	}
	s.readers = slices.DeleteFunc(s.readers, func(n protocol.NodeRef) bool { return n == m.Requester })
	if len(s.readers) == 0 || c.mutant == protocol.DirectKept {
		c.serving = nil
		return false
	}
	if s.revoking.lastInv != m.LastInv {
		s.revoking = retained{requester: m.Requester, seq: m.Seq, lastInv: m.LastInv}
		*out = c.recall(*out)
	}
	return true
}

func (c *Copy) recall(out []Action) []Action {
	for _, n := range c.serving.readers {
		out = c.put(out, protocol.Message{Kind: protocol.Invalidate, To: protocol.At(n), Requester: c.serving.revoking.requester, LastInv: c.serving.revoking.lastInv})
	}
	return out
}

// forget: those readers have no copy any more. What waited for the last of them goes on.
func (c *Copy) forget(gone func(protocol.NodeRef) bool, out []Action) []Action {
	s := c.serving
	if s == nil {
		return out
	}
	if s.readers = slices.DeleteFunc(s.readers, gone); len(s.readers) > 0 {
		return out
	}
	c.serving = nil
	if r := s.revoking; r != (retained{}) {
		return c.forwardedWrite(&protocol.Message{Kind: protocol.ForwardedWrite, Requester: r.requester, Seq: r.seq, LastInv: r.lastInv}, out)
	}
	return out
}

// askManager: whoever was asked for a copy directly has none. The manager knows.
func (c *Copy) askManager(out []Action) []Action {
	if c.state != WaitCopyRead {
		return out
	}
	c.likely, c.direct = protocol.NodeRef{}, protocol.NodeRef{}
	return c.tell(out, protocol.Message{Kind: protocol.Read, Seq: c.lastReq})
}

// ForNode reports whether it is a node that has to hear that a message came too late for an incarnation, and not a manager.
func ForNode(m *protocol.Message) bool {
	return m.From.Party == protocol.Node && (m.Kind == protocol.Read || m.Kind == protocol.Invalidate || m.Kind == protocol.Copy && m.Flag)
}

func (c *Copy) hand(r retained, out []Action) []Action {
	return c.put(out, protocol.Message{Kind: protocol.Copy, To: protocol.At(r.requester), Copy: protocol.MasterCopy, Seq: r.seq, LastInv: r.lastInv, Value: r.value})
}

func (c *Copy) invalidate(m *protocol.Message, out []Action) []Action {
	direct := m.From.Party == protocol.Node
	switch {
	case direct && m.From.Node != c.direct: // Nothing of it is here, and nothing that travels would be taken. Nobody takes away what others gave
	case m.LastInv <= c.lki:
		if c.mutant == protocol.WithoutR4 {
			return out
		} // R4: the acknowledgement may have been lost
	case c.state == Shared:
		c.fire("9")
		c.lki = m.LastInv
		out = c.set(Invalid, nil, out)
	case c.state == WaitCopyRead: // the request stays outstanding
		c.fire("15")
		c.lki = m.LastInv
	case c.state == WaitCopyWrite:
		c.fire("16")
		c.lki = m.LastInv
	case c.state == Invalid:
		c.fire("25")
	default: // a MASTER: cannot happen (I7)
		if direct {
			return out
		}
		c.broken++
		return out
	}
	if !m.Requester.IsZero() && m.Requester != c.cfg.Self && m.LastInv >= c.lki {
		c.likely = m.Requester
	}
	if direct {
		if c.state == WaitCopyRead && m.From.Node == c.direct && c.mutant != protocol.DirectStale { // it serves no reader any more
			likely := c.likely
			out = c.askManager(out)
			c.likely = likely
		}
		return c.put(out, protocol.Message{Kind: protocol.InvalidateAck, To: m.From, Requester: c.cfg.Self, LastInv: m.LastInv})
	}
	return c.tell(out, protocol.Message{Kind: protocol.InvalidateAck, LastInv: m.LastInv})
}

// leave applies row S: without a thread on the node a shared copy, or the wait for one, ends silently. A bound writer goes on, since the
// manager counts on it.
func (c *Copy) leave(out []Action) []Action {
	if c.threads || c.held {
		return out
	}
	switch {
	case c.state == Shared, c.state == WaitCopyRead, c.state == WaitCopyWrite && !c.bound:
		c.bound = false
		return c.set(Invalid, nil, out)
	}
	return out
}

// arrived: a master that comes to a node without threads goes on to one with (section 6.4).
func (c *Copy) arrived(out []Action) []Action {
	if c.threads {
		return out
	}
	return c.inject(out)
}

func (c *Copy) inject(out []Action) []Action {
	if !c.state.Master() {
		return out // bound: first the master has to come
	}
	return c.put(out, protocol.Message{Kind: protocol.Injection, To: protocol.Address{Party: protocol.AppManager}, Requester: c.cfg.Self, Node: c.hint})
}

// repeat says again what is waited for, with the same numbers (R4).
func (c *Copy) repeat(out []Action) []Action {
	if c.mutant == protocol.WithoutR4 {
		return out
	}
	switch c.state {
	case WaitCopyRead:
		out = c.tell(out, protocol.Message{Kind: protocol.Read, Seq: c.lastReq})
	case WaitCopyWrite, WaitWrite:
		out = c.tell(out, protocol.Message{Kind: protocol.Write, Seq: c.lastReq})
	}
	if c.recalls() {
		out = c.recall(out)
		for _, n := range c.serving.readers { // they may be gone
			out = c.put(out, protocol.Message{Kind: protocol.Query, To: protocol.Address{Party: protocol.AppManager}, Requester: n,
				Ack: protocol.InvalidateAck, LastInv: c.serving.revoking.lastInv})
		}
	}
	if !c.threads {
		out = c.inject(out)
	}
	if c.out != (retained{}) {
		out = c.tell(out, protocol.Message{Kind: protocol.TransferDone, LastInv: c.out.lastInv})
	}
	return out
}

// destroy ends the epoch: a copy of an older execution is a survivor (section 6.4).
func (c *Copy) destroy(epoch protocol.Epoch, out []Action) []Action {
	out = append(out, Action{Kind: Destroyed})
	out = c.set(Invalid, nil, out)
	*c = Copy{cfg: c.cfg, mutant: c.mutant, fired: c.fired, epoch: epoch, broken: c.broken}
	return out
}

// Clone returns a copy of the automaton that shares nothing but values.
func (c *Copy) Clone() *Copy {
	k := *c
	k.deferred = slices.Clone(c.deferred)
	if c.serving != nil {
		k.serving = &serving{slices.Clone(c.serving.readers), c.serving.revoking}
	}
	return &k
}

// Append writes the whole state in canonical form: equal states give equal bytes.
func (c *Copy) Append(b []byte) []byte {
	b = append(b, byte(c.state))
	for _, v := range [...]uint64{uint64(c.epoch), uint64(c.lki), uint64(c.lastReq), uint64(c.base), uint64(c.out.seq), uint64(c.out.lastInv), uint64(len(c.deferred))} {
		b = binary.AppendUvarint(b, v)
	}
	b = c.out.value.Append(c.value.Append(b))
	b = c.hint.Append(c.out.requester.Append(b))
	b = protocol.AppendBools(b, c.bound, c.threads, c.held)
	if c.cfg.Direct { // else nothing comes of them
		b = c.direct.Append(c.likely.Append(b))
	}
	if s := c.serving; s != nil {
		b = s.revoking.requester.Append(b)
		for _, v := range [...]uint64{uint64(s.revoking.seq), uint64(s.revoking.lastInv), uint64(len(s.readers))} {
			b = binary.AppendUvarint(b, v)
		}
		for _, n := range s.readers {
			b = n.Append(b)
		}
	}
	for _, ev := range c.deferred {
		b = append(b, byte(ev.Kind))
		if ev.Msg != nil {
			b = ev.Msg.Append(b)
		}
	}
	return b
}

// Check tests what the fields' comments promise. Tests call it after every step.
func (c *Copy) Check() error {
	switch {
	case (c.Right() == NoAccess) != (c.value == nil):
		return fmt.Errorf("copy: value %v in %v", c.value, c.state)
	case c.bound && c.state != WaitCopyWrite && c.state != WaitWrite:
		return fmt.Errorf("copy: bound in %v", c.state)
	case c.base > c.lastReq:
		return fmt.Errorf("copy: base %d after request %d", c.base, c.lastReq)
	case c.serving != nil && (len(c.serving.readers) == 0 || c.state != OwnerShared && c.state != WaitWrite):
		return fmt.Errorf("copy: %v has readers of its own: %v", c.state, c.serving.readers)
	case len(c.deferred) > 0 && !c.held:
		return fmt.Errorf("copy: %d events deferred, and not held", len(c.deferred))
	case c.broken > 0:
		return fmt.Errorf("I7: a message came that a correct protocol does not send")
	}
	return nil
}

// String prints the state as traces do.
func (c *Copy) String() string {
	s := c.state.String()
	if c.value != nil {
		s += fmt.Sprintf(" value=%x", c.value.Bytes)
	}
	if c.lki > 0 {
		s += fmt.Sprintf(" inv=%d", c.lki)
	}
	if c.bound {
		s += " bound"
	}
	if c.out != (retained{}) {
		s += fmt.Sprintf(" out=%d", c.out.lastInv)
	}
	if c.serving != nil {
		s += fmt.Sprintf(" readers=%v", c.serving.readers)
	}
	if c.recalls() {
		s += fmt.Sprintf(" revoking=%d", c.serving.revoking.lastInv)
	}
	if c.epoch > 1 {
		s += fmt.Sprintf(" epoch=%d", c.epoch)
	}
	return s
}
