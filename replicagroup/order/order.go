package order

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"latchkey/dht/keyspace"
)

// OverlayID is the hash of an overlay's genesis document.
type OverlayID [32]byte

// String returns the first eight hexadecimal digits: the id8 of protocol ids and of messages to people.
func (o OverlayID) String() string { return hex.EncodeToString(o[:4]) }

// Hex returns the whole id in hexadecimal.
func (o OverlayID) Hex() string { return hex.EncodeToString(o[:]) }

// GroupID names one life of one group. Two groups with the same Prefix and different Gen are different groups. It is
// comparable. The root group has the empty prefix.
type GroupID struct {
	Overlay OverlayID
	Prefix  keyspace.Prefix
	Gen     uint64 // overlay generation << 32 | group generation
}

// String prints the prefix, and the generation once there was more than one.
func (g GroupID) String() string {
	if g.Gen == 0 {
		return g.Prefix.String()
	}
	return fmt.Sprintf("%v@%d.%d", g.Prefix, g.Gen>>32, uint32(g.Gen))
}

// Life names a group among those of one overlay: what is kept for each of ten thousand groups names them so.
type Life struct {
	Prefix keyspace.Prefix
	Gen    uint64
}

// Life returns the group's name among those of its overlay.
func (g GroupID) Life() Life { return Life{g.Prefix, g.Gen} }

// In returns the group that l names in an overlay.
func (l Life) In(o OverlayID) GroupID { return GroupID{Overlay: o, Prefix: l.Prefix, Gen: l.Gen} }

// Compare orders groups by prefix and generation; groups of different overlays never meet in one process.
func (g GroupID) Compare(h GroupID) int { return g.Life().Compare(h.Life()) }

// Compare orders lives by prefix and generation.
func (l Life) Compare(m Life) int {
	if c := l.Prefix.Compare(m.Prefix); c != 0 {
		return c
	}
	return cmp.Compare(l.Gen, m.Gen)
}

// ReplicaID is a member's name inside its group, handed out by the group's own log and never used twice in a [GroupID].
// Zero stands for none.
type ReplicaID uint64

// StoreID is a random value made when a peer's store was empty. A peer that lost its disk has another one and so is never
// taken for its former self (replica-groups.md section 3.6). The zero value is no store.
type StoreID [16]byte

// String returns the first eight hexadecimal digits.
func (s StoreID) String() string { return hex.EncodeToString(s[:4]) }

// Role says what a member does in its group.
type Role uint8

// Roles of a member.
const (
	Voter   Role = iota + 1 // votes, and is counted for commits
	Learner                 // receives the log and is not counted
	Joining                 // in a joint view: a voter of the coming view and not of the former
	Leaving                 // in a joint view: a voter of the former view and not of the coming
)

// String returns "voter", "learner", "joining" or "leaving".
func (r Role) String() string {
	switch r {
	case Voter:
		return "voter"
	case Learner:
		return "learner"
	case Joining:
		return "joining"
	case Leaving:
		return "leaving"
	}
	return fmt.Sprintf("Role(%d)", uint8(r))
}

// PeerIDBytesMax bounds [Member.PeerID]; libp2p's have 34 to 42 bytes today.
const PeerIDBytesMax = 64

// Member is one replica of a group.
type Member struct {
	ID    ReplicaID
	Peer  keyspace.NodeID
	Store StoreID
	Role  Role
	// PeerID is the name that Peer is the hash of: the bytes of the libp2p peer id. It is in the log, so that whoever learns of
	// a member there can reach it. Automata do not look inside; it is empty where no driver needs one.
	PeerID string
}

// View is one numbered membership of a group; the views of a group are totally ordered.
type View struct {
	Num     uint64
	Members []Member  // by rising ID
	Next    ReplicaID // the next id to hand out; above every id ever used in the group
}

// Member returns the member with this id.
func (v View) Member(id ReplicaID) (Member, bool) {
	for _, m := range v.Members {
		if m.ID == id {
			return m, true
		}
	}
	return Member{}, false
}

// MemberAt returns the member that lives at this peer. A peer that lost its store may be two members for a while, the lost one
// comes first then; [View.At] tells them apart.
func (v View) MemberAt(peer keyspace.NodeID) (Member, bool) {
	for _, m := range v.Members {
		if m.Peer == peer {
			return m, true
		}
	}
	return Member{}, false
}

// Voters returns the ids of the voting members, rising; in a joint view those of both halves.
func (v View) Voters() []ReplicaID {
	var ids []ReplicaID
	for _, m := range v.Members {
		if m.Role != Learner {
			ids = append(ids, m.ID)
		}
	}
	slices.Sort(ids)
	return ids
}

// ClientID is a client session: 128 random bits drawn when the session is opened, never used again after a restart. The
// zero value is no client; the group's own entries carry it.
type ClientID [16]byte

// String returns the first eight hexadecimal digits.
func (c ClientID) String() string { return hex.EncodeToString(c[:4]) }

// Command is what a client asks a group's state machine to do. Each (Client, Seq) takes effect at most once; a repeat gets
// the stored result.
type Command struct {
	Client ClientID
	Seq    uint64 // from 1, one more for each command of the client
	Acked  uint64 // the client has the answers of every command up to here
	// Author is the peer on whose authenticated stream the command reached the leader. The leader's host sets it; what a
	// client puts here is overwritten.
	Author  keyspace.NodeID
	Service string // which of the group's services executes it
	Data    []byte
}

// Stamp is the leader's clock at the moment it took the command: its boot nonce and the time since that boot, by a clock
// that goes on while the machine sleeps. Machines add the difference of consecutive stamps of one nonce to their log time.
type Stamp struct {
	Boot uint64 // random, per process start; 0 stands for no stamp
	At   time.Duration
}

// EntryKind says what an [Entry] is.
type EntryKind uint8

// Kinds of entries.
const (
	Normal     EntryKind = iota + 1 // carries a command
	Noop                            // the engine's own; carries nothing, yet takes an index
	ViewChange                      // begins Change, which a [ViewNote] of the same step describes; carries nothing else
)

// Entry is one element of the group's log as its state machine sees it.
type Entry struct {
	Index uint64
	View  uint64 // the view under which it was delivered; of a ViewChange the one that it begins
	Kind  EntryKind
	Stamp Stamp
	Cmd   Command
	// Change is the view that a ViewChange begins, nil in other entries. It is not to be changed.
	Change *View
}

// Errors in [Outcome.Err].
var (
	// ErrNotLeader: this replica does not lead; nothing was proposed. [Status.Leader] may name the one that does.
	ErrNotLeader = errors.New("order: this replica does not lead the group")
	// ErrDropped: the proposal lost its place in the log, or the leader changed before its fate was known. It may still take
	// effect; a repeat under the same (client, seq) finds out.
	ErrDropped = errors.New("order: outcome unknown: leadership changed under the proposal")
	// ErrBusy: too much is under way already; nothing was proposed.
	ErrBusy = errors.New("order: too much under way")
	// ErrHalted: the engine has stopped for good; see [Halt].
	ErrHalted = errors.New("order: replica halted")
)

// Message is an engine's message to another replica, encoded. Drivers carry it and do not look inside.
type Message []byte

// Event is an input of an [Orderer].
//
// Some carry Now: the driver's clock, as the time since its start, which goes on while the machine sleeps and never goes back. An
// engine compares it with itself alone. One that does not answer reads on a lease has no use for it, and then it may be left out.
type Event interface{ isEvent() }

// The events.
type (
	// Recv hands over a message that arrived. From and Store are what the frame claims, after the driver has checked that
	// the sending peer is that member's peer; the engine drops a message whose Store is not the one of its view. A replica that
	// lags behind has not heard of members whose ids are at or above its view's Next, and may depend on them: a driver hands
	// over a message of such a one only if it knows by other means, such as a later descriptor, who that member is.
	Recv struct {
		From  ReplicaID
		Store StoreID
		Msg   Message
		Now   time.Duration
	}
	// Timer reports that a timer set by [SetTimer] has run out. A stale epoch is ignored.
	Timer struct {
		Kind  TimerKind
		Epoch uint64
		Now   time.Duration
	}
	// Propose asks for a command's place in the log. Every Propose is answered by exactly one [Outcome] with its Ref.
	Propose struct {
		Ref   uint64
		Stamp Stamp
		Cmd   Command
	}
	// ProposeAll is a Propose of each in turn, at the price of little more than one: they travel and are stored together. The
	// engine does not keep List.
	ProposeAll struct{ List []Propose }
	// Read asks for a linearizable read point. Every Read is answered by exactly one [ReadPoint] or [Outcome] with its Ref.
	Read struct {
		Ref uint64
		Now time.Duration
	}
	// Stored reports that Persist Seq is durable. A driver whose store fails stops the replica instead.
	Stored struct{ Seq uint64 }
	// Applied reports that the machine has executed everything up to Index.
	Applied struct{ Index uint64 }
	// Link reports that messages to a member can flow again, or no longer.
	Link struct {
		To ReplicaID
		Up bool
	}
	// Suspect is the opinion of the node's failure detector about a member: it may be wrong, and costs only time then. It holds
	// until a Trust takes it back. A driver repeats it for whoever is suspected already when an engine starts or tells of a
	// view.
	Suspect struct {
		Member ReplicaID
		Now    time.Duration
	}
	// Trust takes a Suspect back.
	Trust struct{ Member ReplicaID }
	// Carried reports how the last Send with a Snapshot to a member fares. A driver that never does so is taken to have sent it
	// at once. One that does reports Underway at least every second: an engine that hears nothing for a while sends anew.
	Carried struct {
		To    ReplicaID
		State Carriage
	}
	// Compact hands over a snapshot of the machine as of Index, made locally; the log below may go.
	Compact struct {
		Index uint64
		Data  []byte
	}
	// Rand feeds random bits: the only source of randomness. A driver sends one before the first timer runs.
	Rand struct {
		Bits uint64
		Now  time.Duration
	}
)

func (Recv) isEvent()       {}
func (Timer) isEvent()      {}
func (Propose) isEvent()    {}
func (ProposeAll) isEvent() {}
func (Read) isEvent()       {}
func (Stored) isEvent()     {}
func (Applied) isEvent()    {}
func (Link) isEvent()       {}
func (Suspect) isEvent()    {}
func (Trust) isEvent()      {}
func (Carried) isEvent()    {}
func (Compact) isEvent()    {}
func (Rand) isEvent()       {}

// TimerKind names a timer of an engine; each kind runs at most once at a time.
type TimerKind uint8

// Send asks the driver to carry a message to a member. With After > 0 it leaves only once [Stored] After was reported.
//
// Where Snapshot is set, the message is Msg followed by it, as [Send.Whole] joins them, and may be large: a driver may take it
// another way than other messages, and later, and tells by [Carried] how it fares. Every replica that has the same snapshot of a
// group sends the same bytes, whoever they are for, so one may go on where another broke off. They are shared and must not be
// changed.
//
// Spare says that the group can do without it for now, since enough other members are told the same: a driver may keep it for a
// moment, so that it goes along with others.
type Send struct {
	To       ReplicaID
	Msg      Message
	Snapshot []byte
	After    uint64
	Spare    bool
}

// Whole returns the message to be handed over by [Recv].
func (s Send) Whole() Message {
	if len(s.Snapshot) == 0 {
		return s.Msg
	}
	b := make(Message, 0, len(s.Msg)+len(s.Snapshot))
	return append(append(b, s.Msg...), s.Snapshot...)
}

// Carriage says how a [Send] with a snapshot fares.
type Carriage uint8

// States of a carriage.
const (
	Underway Carriage = iota + 1 // it moves, or waits for its turn
	Arrived                      // the member's engine has been given it
	Failed                       // the driver has given it up
)

// String returns "underway", "arrived" or "failed".
func (c Carriage) String() string {
	switch c {
	case Underway:
		return "underway"
	case Arrived:
		return "arrived"
	case Failed:
		return "failed"
	}
	return fmt.Sprintf("Carriage(%d)", uint8(c))
}

// RecordKind says what a [Record] is.
type RecordKind uint8

// Kinds of records. A store keeps, per group, the last State, the last Snapshot, and the entries above the snapshot.
const (
	RecordState    RecordKind = iota + 1 // replaces the former state
	RecordEntry                          // entry Index; every stored entry at or above Index is void
	RecordSnapshot                       // machine state as of Index; stored entries up to Index may go
)

// Record is one thing to be made durable. Data is the engine's own encoding.
type Record struct {
	Kind  RecordKind
	Index uint64 // of entries and snapshots
	Data  []byte
}

// Persist asks the driver to make records durable, in order, and to report [Stored] Seq. Without Sync it may be reported
// before it has reached the disk.
type Persist struct {
	Seq     uint64
	Records []Record
	Sync    bool
}

// Image is what a store gives back when a replica starts again: exactly what was persisted.
type Image struct {
	State    []byte
	Snapshot *Record
	Entries  []Record // by rising index, gap-free, above the snapshot
}

// SetTimer asks for a [Timer] event after a time. It replaces a running timer of the same kind. After < 0 stops it.
type SetTimer struct {
	Kind  TimerKind
	Epoch uint64
	After time.Duration
	// Beat marks a timer that may run out up to After too early. A driver lets those of many groups run out at common moments,
	// so that what they send to one peer travels together.
	Beat bool
}

// Outcome tells what became of a proposal (or, with Err set, of a read). Err nil: the command stands at Index and has been
// delivered.
type Outcome struct {
	Ref   uint64
	Index uint64
	Err   error
}

// ReadPoint answers a [Read]: serve it once the machine has applied Index. No other member had been elected leader when the engine was asked, by
// a round of messages or on a lease, whoever may have been since: what ends a while after the asking ends a while after the last moment
// before any later election.
type ReadPoint struct {
	Ref   uint64
	Index uint64
}

// Install tells the driver to replace the machine's state by a snapshot that came from the leader and is now durable. The
// driver reports [Applied] Index afterwards. Nil Data stands for the empty machine at the beginning of the group's log.
type Install struct {
	Index uint64
	Data  []byte
}

// Prospect tells of an entry that stands in this replica's own log, at Index, and is not delivered: either one that will change the
// voters, or a command of the group itself ([Own]), which is Cmd then. It is told when the entry is appended, before anything that
// would let it be committed leaves this replica, and after a restart once more, also of entries that were delivered before. Where Void
// is set, no entry stands at Index or above any more: what was told of them is void.
//
// Whoever must have stopped doing something by the time an entry takes effect elsewhere hears of it here.
type Prospect struct {
	Index uint64
	Cmd   *Command // nil: a change of the voters
	Void  bool
}

// Halt says why an engine has stopped for good.
type Halt struct{ Reason string }

// Actions collects what an engine asks of its driver. A driver reuses one value: it calls Reset before each Step. Within
// one Step, Persist comes before Deliver in meaning; Install comes before Deliver. Views stand in their order with Deliver and
// Install, by Index; messages of the step may be for members that one of them is the first to name. Prospects stand in their own
// order, and before Deliver. Halt comes last.
type Actions struct {
	Persist   []Persist
	Send      []Send
	Timers    []SetTimer
	Install   []Install
	Deliver   []Entry
	Done      []Outcome
	ReadOK    []ReadPoint
	Views     []ViewNote
	Prospects []Prospect
	Halt      *Halt
}

// Reset empties a, keeping its storage.
func (a *Actions) Reset() {
	clear(a.Persist)
	clear(a.Send)
	clear(a.Install)
	clear(a.Deliver)
	clear(a.Views)
	clear(a.Prospects)
	a.Persist, a.Send, a.Timers = a.Persist[:0], a.Send[:0], a.Timers[:0]
	a.Install, a.Deliver, a.Done, a.ReadOK = a.Install[:0], a.Deliver[:0], a.Done[:0], a.ReadOK[:0]
	a.Views, a.Prospects = a.Views[:0], a.Prospects[:0]
	a.Halt = nil
}

// Status is what an engine knows of its group. Its view is the engine's own: nobody may change it.
type Status struct {
	View    View
	Self    ReplicaID
	Leader  ReplicaID // 0 when unknown
	Leading bool      // this replica leads and has committed an entry of its own term, so its state is up to date
	Term    uint64
	Commit  uint64
	Applied uint64
	// Quiesced: the group sleeps, as far as this replica knows; see [Orderer].
	Quiesced bool
	// First and Last bound the log that is kept, so a driver can tell when to compact.
	First, Last uint64
	// Behind says, on a leader, how many entries each other member lacks.
	Behind map[ReplicaID]uint64
	// Match says, on a leader, up to where each other member is known to have the log.
	Match map[ReplicaID]uint64
}

// Orderer is a deterministic automaton that gives commands one order. Not safe for concurrent use.
type Orderer interface {
	// Step consumes one event and appends actions to out. It never blocks and never fails: an event that does not fit
	// the state is dropped.
	Step(ev Event, out *Actions)
	// Hash digests the whole protocol state, for replay tests and the explorer.
	Hash() [32]byte
	// Status reports the present state. It allocates; it is not for every step.
	Status() Status
	// Leader returns the member that leads, 0 when unknown, and whether it is this replica and ready to serve. It is cheap.
	Leader() (leader ReplicaID, leading bool)
	// Quiesced reports whether the replica sleeps: it has no timer set and waits for an event. Nothing but the driver's failure
	// detector notices then that a member has stopped. It is cheap.
	Quiesced() bool
}
