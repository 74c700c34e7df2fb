package appmanager

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
)

// BegunMax bounds the threads that a node remembers to have begun in an epoch (R9). Further ones are not begun.
const BegunMax = 1 << 16

// Phase is what a thread on a node does.
type Phase uint8

// The phases.
const (
	Frozen Phase = iota // a restart creates it, and has not said UNFREEZE
	Runs
	Stops  // at a safe point, for a checkpoint
	Asks   // at a safe point, to migrate
	Leaves // its state travels
)

// String names the phase.
func (p Phase) String() string { return [...]string{"frozen", "runs", "stops", "asks", "leaves"}[p] }

// NodeConfig is what a [Node] is made with.
type NodeConfig struct {
	Self protocol.NodeRef
	App  keyspace.Key
}

// Node is the part of an application on one node that its manager talks to: which threads are there, and who has to know. Copies of objects are
// package cachedcopy's. Not safe for concurrent use. The zero value is not usable; see [NewNode].
type Node struct {
	cfg     NodeConfig
	mutant  protocol.Mutant
	epoch   protocol.Epoch
	threads map[protocol.ThreadID]local
	// begun holds the threads that this node has begun in this epoch, also after they left, and with which migration they came last (R9).
	begun map[protocol.ThreadID]protocol.MigSeq
	// notices and creates are repeated until the manager answers.
	notices, creates []protocol.Message
	// held is the highest checkpoint this node was told of, and resumed the highest RESUME: threads stop while held is the higher (C2).
	held, resumed protocol.CheckpointID
	manifest      protocol.Hash // what the epoch began from; values of objects that nobody has touched in it are there
}

type local struct {
	phase Phase
	mig   protocol.MigSeq // the last one it came by, or that was granted to it
	to    protocol.NodeRef
	guest bool
	hash  protocol.Hash // of its state, where it stands still
}

// NewNode makes a node without threads.
func NewNode(cfg NodeConfig) *Node {
	return &Node{cfg: cfg, epoch: 1, threads: make(map[protocol.ThreadID]local), begun: make(map[protocol.ThreadID]protocol.MigSeq)}
}

// NodeEventKind says what a [NodeEvent] is.
type NodeEventKind uint8

// The events.
const (
	NodeReceive NodeEventKind = iota + 1 // Msg
	NewThread                            // create Thread at Node, from Hash, by Parent, or as a Guest of this node
	SafePoint                            // Thread is at a safe point, its state stored as Hash. It goes on unless a [Halt] says otherwise
	Move                                 // Thread, at a safe point with Hash, wants to go on at Node
	Stay                                 // it no longer wants to
	End                                  // Thread has ended
	NodeRepeat                           // time to say again what is not answered
)

// NodeEvent is an input.
type NodeEvent struct {
	Kind   NodeEventKind
	Msg    *protocol.Message
	Thread protocol.ThreadID
	Parent protocol.ThreadID
	Node   protocol.NodeRef // NewThread, Move; End: where masters might go
	Hash   protocol.Hash
	Guest  bool
	// Checkpoint is the one that a NewThread's state was stored for, 0 for a guest.
	Checkpoint protocol.CheckpointID
}

// NodeActionKind says what a [NodeAction] is.
type NodeActionKind uint8

// The actions. A driver performs those of one step in their order.
const (
	NodeSend    NodeActionKind = iota + 1 // Msg
	Run                                   // begin Thread from Hash, or let it go on if it is there
	Halt                                  // Thread waits at its safe point for a Run
	Enter                                 // this node executes a thread now: step ThreadsHere at every copy
	Leave                                 // none any more: step ThreadsGone at every copy, hint Node, before the next action (R10)
	CreatedHere                           // the manager knows of Thread, at Node, or has Refused it: Parent has its name, or it was stored for no later a checkpoint than Checkpoint
	NewEpoch                              // the application has been restarted: end all threads, step Destroy at every copy
)

// NodeAction is an output.
type NodeAction struct {
	Kind    NodeActionKind
	Msg     protocol.Message
	Thread  protocol.ThreadID
	Node    protocol.NodeRef
	Hash    protocol.Hash
	Epoch   protocol.Epoch
	Refused bool

	Parent     protocol.ThreadID
	Checkpoint protocol.CheckpointID
}

// Epoch returns the epoch the node knows of.
func (n *Node) Epoch() protocol.Epoch { return n.epoch }

// Executes reports whether a thread is there.
func (n *Node) Executes() bool { return len(n.threads) > 0 }

// Phase returns what a thread does, and false when it is not there.
func (n *Node) Phase(t protocol.ThreadID) (Phase, bool) {
	l, ok := n.threads[t]
	return l.phase, ok
}

// Wants reports whether a START or a THREAD would begin a thread here, so that a driver has its state at hand before it steps the message.
func (n *Node) Wants(in *protocol.Message) bool {
	last, ok := n.begun[in.Thread]
	return (in.Kind == protocol.Start || in.Kind == protocol.Transfer) && in.Epoch >= n.epoch && in.To.Node == n.cfg.Self &&
		(in.Epoch > n.epoch || !ok || last < in.Migration)
}

// Checkpoint returns the highest checkpoint that the node was told of in this epoch.
func (n *Node) Checkpoint() protocol.CheckpointID { return max(n.held, n.resumed) }

// Manifest names the checkpoint that holds the values of objects nobody has touched in this epoch; zero for none, where they are initial.
func (n *Node) Manifest() protocol.Hash { return n.manifest }

// Holds reports whether threads stop at their safe points.
func (n *Node) Holds() bool { return n.held > n.resumed }

// Waits reports whether a [NodeRepeat] would say something.
func (n *Node) Waits() bool {
	if len(n.notices)+len(n.creates) > 0 {
		return true
	}
	for _, l := range n.threads {
		if l.phase != Runs {
			return true
		}
	}
	return false
}

// Sabotage plants a mistake, for tests.
func (n *Node) Sabotage(mutant protocol.Mutant) { n.mutant = mutant }

func (n *Node) put(out []NodeAction, to protocol.Address, msg protocol.Message) []NodeAction {
	msg.From, msg.To, msg.Epoch = protocol.At(n.cfg.Self), to, n.epoch
	return append(out, NodeAction{Kind: NodeSend, Msg: msg})
}

func (n *Node) tell(out []NodeAction, msg protocol.Message) []NodeAction {
	return n.put(out, protocol.Address{Party: protocol.AppManager}, msg)
}

// Step takes an event and appends what has to be done to out.
func (n *Node) Step(ev NodeEvent, out []NodeAction) []NodeAction {
	l, here := n.threads[ev.Thread]
	switch ev.Kind {
	case NodeReceive:
		return n.receive(ev.Msg, out)
	case NewThread:
		msg := protocol.Message{Kind: protocol.Create, Thread: ev.Thread, Parent: ev.Parent, Node: ev.Node, Hash: ev.Hash, Flag: ev.Guest, Checkpoint: ev.Checkpoint}
		if len(n.creates) < protocol.ThreadsMax {
			n.creates = append(n.creates, msg)
			if ev.Guest && n.mutant == protocol.WithoutGuests {
				return n.created(&msg, out)
			}
			return n.tell(out, msg)
		}
	case SafePoint:
		if here && l.phase == Runs && n.Holds() && !l.guest {
			l.phase, l.hash = Stops, ev.Hash
			n.threads[ev.Thread] = l
			out = append(out, NodeAction{Kind: Halt, Thread: ev.Thread})
			return n.report(ev.Thread, &l, out)
		}
	case Move:
		if here && l.phase == Runs && !l.guest && ev.Node != n.cfg.Self {
			l.phase, l.to, l.hash = Asks, ev.Node, ev.Hash
			n.threads[ev.Thread] = l
			out = append(out, NodeAction{Kind: Halt, Thread: ev.Thread})
			if n.Holds() {
				out = n.report(ev.Thread, &l, out)
			}
			return n.ask(ev.Thread, &l, out)
		}
	case Stay:
		if here && l.phase == Asks {
			return n.goOn(ev.Thread, l, out)
		}
	case End:
		if here && l.phase == Runs {
			return n.gone(ev.Thread, ev.Node, protocol.Message{Kind: protocol.Terminated, Thread: ev.Thread}, out)
		}
	case NodeRepeat:
		return n.repeat(out)
	}
	return out
}

func (n *Node) receive(in *protocol.Message, out []NodeAction) []NodeAction {
	if in.Epoch < n.epoch && n.mutant != protocol.WithoutEpoch {
		return out // rule E
	}
	if in.Epoch > n.epoch {
		out = n.restart(in.Epoch, out)
	}
	if in.To.Node != n.cfg.Self && n.mutant != protocol.WithoutR6 { // R6
		if n.cfg.Self.Succeeds(in.To.Node) {
			out = n.tell(out, protocol.Message{Kind: protocol.Refused, Requester: n.cfg.Self})
		}
		return out
	}
	l, here := n.threads[in.Thread]
	switch in.Kind {
	case protocol.Created:
		return n.created(in, out)
	case protocol.Start:
		n.manifest = in.Manifest
		n.held = max(n.held, in.Checkpoint)
		out = n.begin(in, out)
		if _, ok := n.begun[in.Thread]; !ok {
			return out
		}
		l, here := n.threads[in.Thread]
		return n.tell(out, protocol.Message{Kind: protocol.Started, Thread: in.Thread, Flag: here && l.phase == Frozen})
	case protocol.Unfreeze:
		for _, t := range n.sorted() {
			if l := n.threads[t]; l.phase == Frozen {
				out = n.goOn(t, l, out)
			}
		}
	case protocol.Grant:
		return n.granted(in, out)
	case protocol.Transfer:
		n.manifest = in.Manifest
		out = n.begin(in, out)
		if m, ok := n.begun[in.Thread]; ok && m >= in.Migration {
			out = n.put(out, in.From, protocol.Message{Kind: protocol.Arrived, Thread: in.Thread, Migration: in.Migration})
		}
	case protocol.Arrived:
		if here && l.phase == Leaves && in.Migration == l.mig && in.From.Node == l.to {
			return n.gone(in.Thread, l.to, protocol.Message{Kind: protocol.Moved, Thread: in.Thread, Migration: l.mig}, out)
		}
	case protocol.Moved, protocol.MigrationFailed, protocol.Terminated:
		n.notices = slices.DeleteFunc(n.notices, func(m protocol.Message) bool {
			return m.Kind == in.Kind && m.Thread == in.Thread && m.Migration <= in.Migration
		})
	case protocol.Checkpoint:
		if in.Checkpoint > n.held {
			n.held = in.Checkpoint
			for _, t := range n.sorted() { // who stands still says so under the new number
				l := n.threads[t]
				out = n.report(t, &l, out)
			}
		}
	case protocol.Resume:
		if in.Checkpoint > n.resumed {
			n.resumed = in.Checkpoint
			for _, t := range n.sorted() {
				if l := n.threads[t]; l.phase == Stops && !n.Holds() {
					out = n.goOn(t, l, out)
				}
			}
		}
	}
	return out
}

// created: the manager knows of a thread. A guest may begin to use objects only now.
func (n *Node) created(in *protocol.Message, out []NodeAction) []NodeAction {
	i := slices.IndexFunc(n.creates, func(m protocol.Message) bool { return m.Thread == in.Thread })
	if i < 0 {
		return out
	}
	guest := n.creates[i].Flag
	n.manifest = in.Manifest
	n.creates = slices.Delete(n.creates, i, i+1)
	refused := in.Flag && in.Kind == protocol.Created
	if guest && !refused {
		out = n.enter(out)
		n.threads[in.Thread] = local{phase: Runs, guest: true}
	}
	created := NodeAction{Kind: CreatedHere, Thread: in.Thread, Node: in.Node, Refused: refused}
	if refused {
		created.Parent, created.Checkpoint = in.Parent, in.Checkpoint
	}
	return append(out, created)
}

// begin runs a thread that a START or a THREAD brings, once (R9: the paper's START has no such memory, and a repeated one runs the thread again).
func (n *Node) begin(in *protocol.Message, out []NodeAction) []NodeAction {
	last, ok := n.begun[in.Thread]
	if ok && last >= in.Migration && n.mutant != protocol.WithoutR9 || !ok && len(n.begun) >= BegunMax {
		return out
	}
	out = n.enter(out)
	n.begun[in.Thread] = in.Migration
	l := local{mig: in.Migration, hash: in.Hash}
	if in.Kind == protocol.Start && in.Flag {
		n.threads[in.Thread] = l
		return out
	}
	return n.goOn(in.Thread, l, out)
}

// goOn lets a thread that stands still run, or has it stop for the checkpoint that is under way.
func (n *Node) goOn(t protocol.ThreadID, l local, out []NodeAction) []NodeAction {
	l.to = protocol.NodeRef{}
	if n.Holds() {
		l.phase = Stops
		n.threads[t] = l
		return n.report(t, &l, out)
	}
	l.phase = Runs
	n.threads[t] = l
	return append(out, NodeAction{Kind: Run, Thread: t, Hash: l.hash})
}

func (n *Node) granted(in *protocol.Message, out []NodeAction) []NodeAction {
	l, here := n.threads[in.Thread]
	if !here || in.Migration <= l.mig {
		return out // of a migration that is over, or under way
	}
	l.mig = in.Migration
	n.begun[in.Thread] = in.Migration
	if l.phase != Asks || in.Node != l.to {
		n.threads[in.Thread] = l
		return n.notice(out, protocol.Message{Kind: protocol.MigrationFailed, Thread: in.Thread, Migration: in.Migration})
	}
	l.phase = Leaves
	n.threads[in.Thread] = l
	return n.transfer(in.Thread, &l, out)
}

func (n *Node) transfer(t protocol.ThreadID, l *local, out []NodeAction) []NodeAction {
	return n.put(out, protocol.At(l.to), protocol.Message{Kind: protocol.Transfer, Thread: t, Migration: l.mig, Hash: l.hash, Manifest: n.manifest})
}

func (n *Node) ask(t protocol.ThreadID, l *local, out []NodeAction) []NodeAction {
	return n.tell(out, protocol.Message{Kind: protocol.Migrate, Thread: t, Node: l.to})
}

// report says that a thread stands still at a safe point. One that asks to migrate does; a grant that was given before changes its number.
func (n *Node) report(t protocol.ThreadID, l *local, out []NodeAction) []NodeAction {
	if l.phase != Stops && l.phase != Asks || !n.Holds() {
		return out
	}
	return n.tell(out, protocol.Message{Kind: protocol.Stopped, Thread: t, Migration: l.mig, Checkpoint: n.held, Hash: l.hash})
}

// gone takes a thread away. R10: copies are invalidated before the manager is told. In the other order it would answer for a node that has
// copies still (testdata/r10_order.txt).
func (n *Node) gone(t protocol.ThreadID, hint protocol.NodeRef, msg protocol.Message, out []NodeAction) []NodeAction {
	delete(n.threads, t)
	if n.mutant == protocol.WithoutR10 {
		out = n.notice(out, msg)
	}
	if len(n.threads) == 0 {
		out = append(out, NodeAction{Kind: Leave, Node: hint})
	}
	if n.mutant == protocol.WithoutR10 {
		return out
	}
	return n.notice(out, msg)
}

// notice tells the manager, and goes on until it has heard. There is at most one of a thread that is not there and one of one that is.
func (n *Node) notice(out []NodeAction, msg protocol.Message) []NodeAction {
	n.notices = slices.DeleteFunc(n.notices, func(m protocol.Message) bool { return m.Thread == msg.Thread && m.Kind == msg.Kind })
	n.notices = append(n.notices, msg)
	return n.tell(out, msg)
}

func (n *Node) enter(out []NodeAction) []NodeAction {
	if len(n.threads) > 0 {
		return out
	}
	return append(out, NodeAction{Kind: Enter})
}

func (n *Node) repeat(out []NodeAction) []NodeAction {
	for _, m := range n.creates {
		out = n.tell(out, m)
	}
	for _, m := range n.notices {
		out = n.tell(out, m)
	}
	for _, t := range n.sorted() {
		l := n.threads[t]
		switch l.phase {
		case Frozen:
			out = n.tell(out, protocol.Message{Kind: protocol.Started, Thread: t, Flag: true})
		case Asks:
			out = n.ask(t, &l, out)
		case Leaves:
			out = n.transfer(t, &l, out)
		}
		out = n.report(t, &l, out)
	}
	return out
}

// restart: what is of an older epoch is a survivor, and ends (section 6.4).
func (n *Node) restart(epoch protocol.Epoch, out []NodeAction) []NodeAction {
	fresh := NewNode(n.cfg)
	fresh.mutant, fresh.epoch = n.mutant, epoch
	*n = *fresh
	return append(out, NodeAction{Kind: NewEpoch, Epoch: epoch})
}

func (n *Node) sorted() []protocol.ThreadID {
	return slices.SortedFunc(maps.Keys(n.threads), compareThreads)
}

// Clone returns a copy that shares nothing.
func (n *Node) Clone() *Node {
	c := *n
	c.threads, c.begun, c.notices, c.creates = maps.Clone(n.threads), maps.Clone(n.begun), slices.Clone(n.notices), slices.Clone(n.creates)
	return &c
}

// Append writes the whole state in canonical form: equal states give equal bytes.
func (n *Node) Append(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(n.epoch))
	b = binary.AppendUvarint(binary.AppendUvarint(b, uint64(n.held)), uint64(n.resumed))
	b = append(b, n.manifest[:]...)
	for _, t := range n.sorted() {
		l := n.threads[t]
		b = append(append(append(b, 1), t[:]...), byte(l.phase))
		b = l.to.Append(binary.AppendUvarint(b, uint64(l.mig)))
		b = append(protocol.AppendBools(b, l.guest), l.hash[:]...)
	}
	b = append(b, 0)
	for _, t := range slices.SortedFunc(maps.Keys(n.begun), compareThreads) {
		b = binary.AppendUvarint(append(append(b, 1), t[:]...), uint64(n.begun[t]))
	}
	b = append(b, 0)
	for _, ms := range [][]protocol.Message{n.notices, n.creates} {
		for i := range ms {
			b = ms[i].Append(append(b, 1))
		}
		b = append(b, 0)
	}
	return b
}

// String prints the state as traces do.
func (n *Node) String() string {
	s := ""
	for _, t := range n.sorted() {
		s += fmt.Sprintf(" %v:%v", t, n.threads[t].phase)
	}
	if n.epoch > 1 {
		s += fmt.Sprintf(" epoch=%d", n.epoch)
	}
	if n.Holds() {
		s += fmt.Sprintf(" holds=%d", n.held)
	}
	return s
}
