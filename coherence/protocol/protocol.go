package protocol

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"strings"

	"latchkey/dht/keyspace"
)

// NodeRef is one start of one node. Inc is its incarnation, strictly greater at every start of the process (R6). The zero value is nobody.
// The application manager as a reader of checkpoint n (rule C4) has the application's key as its ID, and n as its Inc.
type NodeRef struct {
	ID  keyspace.NodeID
	Inc uint64
}

// IsZero reports whether it is nobody.
func (n NodeRef) IsZero() bool { return n == NodeRef{} }

// Compare orders nodes by ID and then by incarnation.
func (n NodeRef) Compare(o NodeRef) int {
	return cmp.Or(bytes.Compare(n.ID[:], o.ID[:]), cmp.Compare(n.Inc, o.Inc))
}

// Succeeds reports whether n is a later start of the same node than o.
func (n NodeRef) Succeeds(o NodeRef) bool { return n.ID == o.ID && n.Inc > o.Inc }

// String names the node by the first four bytes of its ID, and its incarnation after the first; nobody is _.
func (n NodeRef) String() string {
	if n.IsZero() {
		return "_"
	}
	if n.Inc <= 1 {
		return "n" + short(n.ID[:])
	}
	return fmt.Sprintf("n%s.%d", short(n.ID[:]), n.Inc)
}

// short is the first four bytes, as a number.
func short(id []byte) string { return fmt.Sprintf("%x", binary.BigEndian.Uint32(id)) }

// Name is how messages print an object: x and the first four bytes of its key.
func Name(object keyspace.Key) string { return "x" + short(object[:]) }

// Append writes n to a state's canonical form.
func (n NodeRef) Append(b []byte) []byte {
	return binary.AppendUvarint(append(b, n.ID[:]...), n.Inc)
}

// The counters are types of their own, so that none is taken for another.
type (
	// Epoch counts the executions of an application, from 1; every restart begins a new one.
	Epoch uint64
	// ReqSeq numbers the requests of one node for one object; reads and writes share it. The first is 1.
	ReqSeq uint64
	// InvSeq numbers the writes that an object's manager has handled (last_inv of the paper).
	InvSeq uint64
	// MigSeq numbers the migrations of one thread within an epoch (R13).
	MigSeq uint64
	// CheckpointID numbers the checkpoints within an epoch (C1).
	CheckpointID uint64
	// Life is which life of its replica group a manager lives in: a group that has lost its state, and begins anew, has a greater one (R16).
	Life uint64
	// ThreadID names a thread of an application. Its creator draws it, but for the first [ThreadNameBytes], which are of its name: of two
	// threads with one name the second is refused while the first has not ended.
	ThreadID [16]byte
	// Hash is the SHA-256 of a chunk.
	Hash [32]byte
)

// ThreadNameBytes is how much of a [ThreadID] its thread's name gives.
const ThreadNameBytes = 8

// String returns t and the first four bytes.
func (t ThreadID) String() string { return "t" + short(t[:]) }

// Cell is a value of an object. It is never changed once it is made, so that everybody who has a pointer to it may read it at any time.
type Cell struct{ Bytes []byte }

// ValueMax bounds a value, in bytes. Drivers refuse larger ones before an automaton sees them.
const ValueMax = 1 << 20

// Bounds that the automata share.
const (
	NodesMax   = 1 << 10 // nodes of one application that have copies or requests of one object, and suspicions; further requests are dropped, and repeated by those who made them
	ObjectsMax = 1 << 17 // objects touched in one epoch, or in the checkpoint it began from; the first touch of another one is not granted
	ThreadsMax = 1 << 14 // threads of one application, and those that a restart would create; creating another one is refused
)

// Party is a kind of participant.
type Party uint8

// The parties.
const (
	Nobody        Party = iota
	Node                // a node, by send
	ObjectManager       // the object's manager, by route_replica to the object's key
	AppManager          // the application's manager, by route_replica to the application's key
)

// Address is a participant. Object is in the message.
type Address struct {
	Party Party
	Node  NodeRef // of Party Node
}

// At is the address of a node.
func At(n NodeRef) Address { return Address{Node, n} }

// String prints om, am or the node.
func (a Address) String() string {
	switch a.Party {
	case Node:
		return a.Node.String()
	case ObjectManager:
		return "om"
	case AppManager:
		return "am"
	}
	return "_"
}

// Kind says what a message is.
type Kind uint8

// The messages of the object layer: appendix A, then ours.
const (
	Read            Kind = iota + 1 // READ: wants a readable copy
	Write                           // WRITE: wants the master copy, writable
	WriteConfirm                    // WRITE_CONFIRM: do you still want it? And back: yes
	WriteInvalidate                 // WRITE_INVALIDATE: no. Also declines a FIRST_TOUCH (R3)
	ForwardedWrite                  // FORWARDED_WRITE: hand the master over
	WriteAck                        // WRITE_ACK: I am the owner
	ReadAck                         // READ_ACK: the COPY has arrived, used or not
	Invalidate                      // INVALIDATE: drop the copy
	InvalidateAck                   // INVALIDATE_ACK: dropped
	FirstTouch                      // FIRST_TOUCH: nobody has it; create it and own it
	Copy                            // COPY: the value
	ForwardedRead                   // FORWARDED_READ: R5; the paper sends READ itself to the owner
	TransferDone                    // TRANSFER_DONE: the retained master may be freed (R4). From a node: may it be?
	Refused                         // REFUSED: addressed to an earlier incarnation of the sender (R6)
	NoCopy                          // NONE: nobody has touched it (C4), to the application manager as a reader. To a node: there is no room for it

	// Between object managers and the application manager.
	Touched    // TOUCHED: an object is about to be touched for the first time. Back: noted (R16)
	Query      // QUERY: does this node execute a thread? The answer is the acknowledgement itself
	RestartReq // RESTART_REQ: the application cannot go on, since Requester is lost
	NotSuspect // NOT_SUSPECT: the application manager does not think so (R12)
	Reinit     // REINIT: a new epoch (R7)

	// Between nodes and the application manager.
	Injection       // INJECTION: an owner without threads asks for another one; Requester is it
	BecomeOwner     // BECOME_OWNER: take the master over from Requester
	Create          // CREATE: a thread. Back: CREATED
	Created         // CREATED: the receipt
	Start           // START: run a thread; frozen after a restart
	Started         // STARTED: the receipt
	Unfreeze        // UNFREEZE: begin
	Migrate         // MIGRATE?: may this thread move?
	Grant           // GRANT: it may
	Transfer        // THREAD: a thread's state, node to node
	Arrived         // ARRIVED: the receipt, node to node
	Moved           // MOVED: it has moved. Back: noted
	MigrationFailed // MIGRATION_FAILED: it has not. Back: noted
	Terminated      // TERMINATED: it has ended. Back: noted
	Destroy         // DESTROY: the epoch is over
	Checkpoint      // CHECKPOINT: stop threads at their next safe points (C1)
	Stopped         // STOPPED: one has (C2)
	Resume          // RESUME: go on (C5)
	kinds
)

var kindNames = [kinds]string{"Kind(0)", "READ", "WRITE", "WRITE_CONFIRM", "WRITE_INVALIDATE", "FORWARDED_WRITE", "WRITE_ACK", "READ_ACK",
	"INVALIDATE", "INVALIDATE_ACK", "FIRST_TOUCH", "COPY", "FORWARDED_READ", "TRANSFER_DONE", "REFUSED", "NONE",
	"TOUCHED", "QUERY", "RESTART_REQ", "NOT_SUSPECT", "REINIT",
	"INJECTION", "BECOME_OWNER", "CREATE", "CREATED", "START", "STARTED", "UNFREEZE", "MIGRATE?", "GRANT", "THREAD", "ARRIVED", "MOVED",
	"MIGRATION_FAILED", "TERMINATED", "DESTROY", "CHECKPOINT", "STOPPED", "RESUME"}

// String spells the kind as the paper does.
func (k Kind) String() string {
	if k < kinds {
		return kindNames[k]
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// Transferred says which copy a COPY carries (R14).
type Transferred uint8

// The two.
const (
	ReadCopy Transferred = iota
	MasterCopy
)

// String names it.
func (t Transferred) String() string { return [...]string{"read", "master"}[t&1] }

// Message is what the automata tell each other. Fields that a kind does not need are zero. It may be compared.
type Message struct {
	Kind     Kind
	From, To Address
	Epoch    Epoch
	Object   keyspace.Key // of the object layer, Touched, Query, RestartReq, Injection, BecomeOwner

	Requester NodeRef // whose request, acknowledgement, copy, thread or suspicion it is about
	Seq       ReqSeq  // of the request. Touched: number of the report
	LastInv   InvSeq
	Copy      Transferred // Copy
	Value     *Cell       // Copy; FirstTouch, where the driver puts the initial value before the copy sees it
	Ack       Kind        // Query: ReadAck or InvalidateAck
	Life      Life        // Touched, NoCopy

	Thread     ThreadID     // Create to Terminated, Stopped
	Migration  MigSeq       // Start, Grant to MigrationFailed, Stopped
	Node       NodeRef      // Injection: hint. Create, Migrate, Grant: destination. Transfer: source. Final
	Checkpoint CheckpointID // Checkpoint, Stopped, Resume; Start: threads stop for it. Create: the state is stored for it. Created: refused, since it is not late enough
	Hash       Hash         // Copy to the application manager: of the value's chunk. Create, Start, Transfer, Stopped: of the thread's state
	Manifest   Hash         // Start, Created, Transfer: of the checkpoint that holds the values of objects not touched in this epoch
	Parent     ThreadID     // Create: of the thread that creates, zero for somebody outside. Created: refused, since that one has the name
	Flag       bool         // Create: a guest. Started, Start: frozen. Created: refused. RestartReq: Requester has been started anew. Touched, NoCopy: there is no room
}

// String prints the message as traces do: kind, and the fields its kind has.
func (m *Message) String() string {
	var b strings.Builder
	b.WriteString(m.Kind.String())
	if m.Object != (keyspace.Key{}) {
		b.WriteString(" " + Name(m.Object))
	}
	if !m.Requester.IsZero() {
		fmt.Fprintf(&b, " req=%v", m.Requester)
	}
	if m.Seq > 0 {
		fmt.Fprintf(&b, " seq=%d", m.Seq)
	}
	switch m.Kind {
	case WriteConfirm, WriteInvalidate, ForwardedWrite, WriteAck, Invalidate, InvalidateAck, Copy, ForwardedRead, TransferDone:
		fmt.Fprintf(&b, " inv=%d", m.LastInv)
	}
	if m.Kind == Copy {
		fmt.Fprintf(&b, " %v", m.Copy)
	}
	if m.Value != nil {
		fmt.Fprintf(&b, " value=%x", m.Value.Bytes)
	}
	if m.Kind == Query {
		fmt.Fprintf(&b, " %v", m.Ack)
		if m.LastInv > 0 {
			fmt.Fprintf(&b, " inv=%d", m.LastInv)
		}
	}
	if m.Life > 0 {
		fmt.Fprintf(&b, " life=%d", m.Life)
	}
	if m.Thread != (ThreadID{}) {
		fmt.Fprintf(&b, " %v", m.Thread)
	}
	if m.Migration > 0 {
		fmt.Fprintf(&b, " mig=%d", m.Migration)
	}
	if !m.Node.IsZero() {
		fmt.Fprintf(&b, " node=%v", m.Node)
	}
	if m.Checkpoint > 0 {
		fmt.Fprintf(&b, " id=%d", m.Checkpoint)
	}
	if m.Hash != (Hash{}) {
		fmt.Fprintf(&b, " hash=%x", m.Hash[:1])
	}
	if m.Flag {
		b.WriteString(" flag")
	}
	if m.Epoch > 1 {
		fmt.Fprintf(&b, " epoch=%d", m.Epoch)
	}
	return b.String()
}

// Append writes all of the message to a state's canonical form.
func (m *Message) Append(b []byte) []byte {
	b = append(b, byte(m.Kind), byte(m.From.Party), byte(m.To.Party), byte(m.Copy), byte(m.Ack))
	b = m.Requester.Append(m.To.Node.Append(m.From.Node.Append(b)))
	b = append(b, m.Object[:]...)
	for _, v := range [...]uint64{uint64(m.Epoch), uint64(m.Seq), uint64(m.LastInv), uint64(m.Life), uint64(m.Migration), uint64(m.Checkpoint)} {
		b = binary.AppendUvarint(b, v)
	}
	b = m.Value.Append(b)
	b = append(append(append(b, m.Thread[:]...), m.Hash[:]...), m.Parent[:]...)
	b = append(b, m.Manifest[:]...)
	return AppendBools(m.Node.Append(b), m.Flag)
}

// Append writes the value, or that there is none, to a state's canonical form.
func (c *Cell) Append(b []byte) []byte {
	if c == nil {
		return append(b, 0)
	}
	return append(binary.AppendUvarint(b, uint64(len(c.Bytes))+1), c.Bytes...)
}

// AppendBools writes truth values, a byte each.
func AppendBools(b []byte, vs ...bool) []byte {
	for _, v := range vs {
		if v {
			b = append(b, 1)
		} else {
			b = append(b, 0)
		}
	}
	return b
}
