package sigma

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
)

// Session names one line of requests for one name: a fresh random number made by the client's process, never used again after
// a restart. A session wants one name once at a time; two wishes of one process for one name have two sessions.
type Session [16]byte

// String returns the first eight hexadecimal digits.
func (s Session) String() string { return fmt.Sprintf("%x", s[:4]) }

// Req names one request. Seq grows by one with each request of the session.
type Req struct {
	Session Session
	Seq     uint64
}

// String names the request.
func (q Req) String() string { return fmt.Sprintf("%v/%d", q.Session, q.Seq) }

// GID numbers the grants of one replica: Inc grows with every start of its host, N with every grant of this start.
type GID struct{ Inc, N uint64 }

// Compare orders the grants of one replica.
func (g GID) Compare(h GID) int {
	return cmp.Or(cmp.Compare(g.Inc, h.Inc), cmp.Compare(g.N, h.N))
}

// Token is a fencing token, or the number a grant proposes for one.
type Token uint64

// ViewID names a view of a group: its number within a generation. Views are ordered.
type ViewID struct {
	Gen uint32
	Num uint64
}

// Compare orders views.
func (v ViewID) Compare(w ViewID) int {
	return cmp.Or(cmp.Compare(v.Gen, w.Gen), cmp.Compare(v.Num, w.Num))
}

// String names the view.
func (v ViewID) String() string { return fmt.Sprintf("%d.%d", v.Gen, v.Num) }

// Descriptor says who the replicas of a view are. Members are not changed once it is made.
type Descriptor struct {
	View    ViewID
	Members []keyspace.NodeID // rising, no one twice, 1 to [MembersMax]
}

// Valid reports whether a descriptor that came from outside can be used.
func (d Descriptor) Valid() bool {
	if len(d.Members) == 0 || len(d.Members) > MembersMax {
		return false
	}
	for i := 1; i < len(d.Members); i++ {
		if bytes.Compare(d.Members[i-1][:], d.Members[i][:]) >= 0 {
			return false
		}
	}
	return true
}

// Mode says which protocol a name is locked by (rules M1 to M6). A name whose mode nobody has heard of is in [ModeSigma].
type Mode uint8

// The modes.
const (
	ModeSigma   Mode = iota // by the voters of the view
	ModePending             // the voters have stopped, and tell the log who may hold it
	ModeGroup               // by the table in the group's log
	modes
)

// String names the mode.
func (m Mode) String() string {
	names := [...]string{"sigma", "pending", "group"}
	if int(m) < len(names) {
		return names[m]
	}
	return fmt.Sprintf("Mode(%d)", uint8(m))
}

// NameMode is the mode of a name.
type NameMode struct {
	Name string
	Mode Mode
}

func has(members []keyspace.NodeID, n keyspace.NodeID) bool { return slices.Contains(members, n) }

// Kind says what a [Message] is. The names are those of lock-protocols.md sections 1.1 and 9.3.
type Kind uint8

// The kinds of messages.
const (
	Request   Kind = iota + 1 // REQ, client to replica: asks, polls and renews
	Yield                     // YIELD, client to replica: gives a grant back into the queue
	Release                   // RELEASE, client to replica: the request is over for good
	Install                   // INSTALL, client to replica: raises the number of a grant
	Grant                     // GRANT, replica to client
	Inquire                   // INQUIRE, replica to client: a GRANT behind which somebody older waits
	Queued                    // QUEUED, replica to client
	Released                  // answers a RELEASE that asks for it
	Moved                     // MOVED, replica to client: a newer view, and who is in it
	WrongGen                  // replica to client: the group has another generation
	Refused                   // replica to client: Reason
	Reported                  // REPORT, replica to replica: a piece of a sealed table, or all that it has of Name
	Pull                      // PULL, replica to replica: asks for pieces of a sealed table, or for Name
	Inspect                   // client to replica: who has Name, for people
	Inspected                 // answers with what this replica knows: a Report of that one name, in one entry or several. Not agreed with the others
	List                      // client to who runs a replica: which names from Name on are in use, for people. Name may be empty
	Listed                    // answers with a Report of the first of them, by rising name; Ack says that there are more
	kinds
)

// String spells the kind as the design does.
func (k Kind) String() string {
	names := [...]string{"Kind(0)", "REQ", "YIELD", "RELEASE", "INSTALL", "GRANT", "INQUIRE", "QUEUED", "RELEASED", "MOVED", "WRONG_GEN",
		"REFUSED", "REPORT", "PULL", "INSPECT", "INSPECTED", "LIST", "LISTED"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// Reason says why a request is refused.
type Reason uint8

// The reasons.
const (
	BadTTL          Reason = iota + 1 // outside the overlay's bounds
	TooManyLocks                      // [LocksMax]
	TooManyWaiters                    // [WaitersPerLockMax], [WaitersMax]
	TooManyRequests                   // [RequestsPerPeerMax]
	BadToken                          // a held token that the group has not given out
	reasons
)

// String names the reason.
func (r Reason) String() string {
	names := [...]string{"Reason(0)", "ttl out of bounds", "too many locks", "too many waiters", "too many requests of one peer",
		"a token not given out"}
	if int(r) < len(names) {
		return names[r]
	}
	return fmt.Sprintf("Reason(%d)", uint8(r))
}

// Message is what clients and replicas tell each other. Fields that its kind does not name are zero.
type Message struct {
	Kind Kind
	View ViewID
	Name string
	Req  Req
	TS   uint64 // the sender's Lamport clock

	ReqTS uint64            // Request, Release: place of the request in every queue, fixed when it was made
	CS    automaton.Instant // Request, Install: when it was sent. Grant, Inquire: the one the replica counts from
	TTL   time.Duration     // Request. Inspect, where it is not for a replica but for whoever runs it: for how long to tell that the name has changed
	Delay time.Duration     // Request: nothing is granted for so long after this request's lease has run out
	Tok   Token             // Request: held. Release: used, 0 for never. Install: to carry. Grant, Inquire: proposed
	GID   GID               // Yield, Install, Grant, Inquire. Queued: of the owner

	Older   bool // Grant, Inquire: an older request waits behind this one
	Patient bool // Request: nobody waits for QUEUED, which can be left out if a grant comes soon
	Ack     bool // Release: answer with Released. Inspected, of who runs the replica: that it will tell. Listed: there are more

	Owner    Req           // Queued: zero while nobody has it
	Position int           // Queued: how many stand in front, the owner not counted. Inspected: how many wait
	Wait     time.Duration // Queued: T_w, the predicted wait
	Embargo  time.Duration // Queued, Inspected, Listed: the replica grants nothing for so long, 0 when it does

	Members []keyspace.NodeID // Moved: of View
	Mode    Mode              // Moved: of Name; anything but sigma sends the client to the group's log (M1)
	Reason  Reason            // Refused
	Report  *Report           // Reported; Inspected; Listed
	Chunk   int               // Pull: the first piece that is missing, of the table of View
}

// descriptor reads a MOVED.
func (m *Message) descriptor() Descriptor { return Descriptor{View: m.View, Members: m.Members} }

// Report is a piece of the table that its sender sealed at the end of a view (section 9.3). Message.View is that view.
type Report struct {
	Inc     uint64 // of the reporter
	Chunk   int    // this piece's number
	Chunks  int    // of the whole table, at least 1
	Entries []ReportEntry
}

// ReportEntry is one live name: somebody owns it, may hold it, or waits.
type ReportEntry struct {
	Name      string
	Parties   []ReportParty // the owner, or the candidates that are not resolved; at most [CandidatesMax]
	Queue     []ReportParty // the first [ReportQueueMax], in a report to the log [HandOverQueueMax]
	Ended     []Req         // at most [ReportEndedMax]
	DelayLeft time.Duration // of a lock-delay that runs
}

// ReportParty is one request in a [ReportEntry].
type ReportParty struct {
	Req   Req
	ReqTS uint64
	Node  keyspace.NodeID
	CS    automaton.Instant
	TTL   time.Duration
	Delay time.Duration
	Left  time.Duration // of the lease, when sent; 0 in a queue
	Tok   Token         // the number of its grant, or the one it claims, for people; 0 in a queue
}

// EntryKind says what an [Entry] of the group's log does.
type EntryKind uint8

// The kinds of entries (section 9.2, 10.2).
const (
	EntryView     EntryKind = iota + 1 // ends view From and begins the next one, with Members; with nil of them the same ones
	EntryRaise                         // moves the ceiling of tokens
	EntryRaiseTTL                      // moves the longest lease voters grant
	EntryReport                        // ModeReport (M2): who may hold the one name of Report, a piece of its own
	EntryOver                          // Req of Node is over for good, at the name that has changed its mode (M1)
	entryKinds
)

// Entry is what the group's log says to its replicas. One whose From is not the present view does nothing.
type Entry struct {
	Kind    EntryKind
	From    ViewID
	Members []keyspace.NodeID // EntryView
	Cap     time.Duration     // EntryRaiseTTL
	Report  ReportEntry       // EntryReport
	Name    string            // EntryOver
	Req     Req               // EntryOver
	Node    keyspace.NodeID   // EntryReport: who reports. EntryOver: whose request
}

// LogState is what the entries of a group's log add up to. It is equal at all replicas that applied the same entries.
type LogState struct {
	Descriptor
	Prev []keyspace.NodeID // members of the view before, nil in the first
	Base Token             // the highest number of all views before
	Ceil Token             // the highest number of this view so far
	Cap  time.Duration     // the longest lease granted so far
}

// Apply returns the state after an entry, and whether the entry did anything to it. Those about single names do not.
func (s LogState) Apply(e Entry) (LogState, bool) { return s.apply(e, Block) }

func (s LogState) apply(e Entry, block Token) (LogState, bool) {
	if e.From != s.View {
		return s, false
	}
	switch e.Kind {
	case EntryView:
		next := Descriptor{View: ViewID{s.View.Gen, s.View.Num + 1}, Members: e.Members}
		if next.Members == nil {
			next.Members = s.Members
		}
		if !next.Valid() || counter(s.Ceil)+block > CounterMax {
			return s, false
		}
		s.Prev, s.Descriptor = s.Members, next
		s.Base, s.Ceil = s.Ceil, s.Ceil+block
		return s, true
	case EntryRaise:
		if counter(s.Ceil)+block > CounterMax { // never wraps (section 9.8)
			return s, false
		}
		s.Ceil += block
		return s, true
	case EntryRaiseTTL:
		if e.Cap <= s.Cap {
			return s, false
		}
		s.Cap = e.Cap
		return s, true
	}
	return s, false
}

func counter(t Token) Token { return t & CounterMax }

// EventKind says what an [Event] is.
type EventKind uint8

// The kinds of events.
const (
	// Receive: Msg arrived from From. Of both automata.
	Receive EventKind = iota + 1
	// Timer: the instant of the last [Arm] has come. One that comes early or late does no harm. Of both automata.
	Timer
	// Applied: entries of the log were executed. State is what they add up to, Modes the names whose mode may have changed. Of a
	// replica.
	Applied
	// Jumped: the log's state was replaced by that of a snapshot. State is the whole state, Modes every name that is not in mode
	// sigma. Of a replica.
	Jumped
	// Appended: Entry, an EntryView, stands in the local log since Since, 0 for Now, and is not known to be committed. Of a replica.
	Appended
	// Truncated: it does not stand there any more. Of a replica.
	Truncated
	// Barrier: everything that was committed when this replica started has been applied. Of a replica.
	Barrier
	// Gone: From seems to have stopped, as its connections have. It may be wrong. Of a replica.
	Gone
	// Begin starts asking. It counts once. Of a client.
	Begin
	// Renew asks for a lease that counts from now, where the lock is held. [Renewed] says that there is one. Of a client.
	Renew
	// GiveBack gives the hold, or the wish, back. It counts once. Of a client.
	GiveBack
	// Ordered is the answer to an [Order]. Of a client.
	Ordered
	// Pushed says that the group's table has granted Answer.Attempt out of the queue. Of a client.
	Pushed
	// ClockJump: the clock may have jumped, or the machine has slept without its clock going on. Of a client.
	ClockJump
	// Located: a look-up found State.Descriptor. Of a client.
	Located
)

// Event is an input of an automaton. What it points to is read during the step and not kept or changed, other than strings and
// Members.
type Event struct {
	Kind  EventKind
	Now   automaton.Instant // of the node's own clock, read before the step
	From  keyspace.NodeID
	Msg   *Message
	Entry *Entry
	State *LogState
	Modes []NameMode
	// Answer of Ordered and Pushed.
	Answer Answer
	Since  automaton.Instant
}

// ActionKind says what an [Action] is.
type ActionKind uint8

// The kinds of actions.
const (
	// Send: Msg to To. It may be lost.
	Send ActionKind = iota + 1
	// Arm asks for a Timer event at At in place of the one asked for before; [automaton.Never] means none.
	Arm
	// Propose asks the group's leader for Entry. It may be lost; it is asked for again. Of a replica.
	Propose
	// Settled says that the present view grants here. Of a replica.
	Settled
	// Save has what [Replica.Saved] says of Msg.Name recorded, or deleted where it says nothing. It and the next two are to be carried
	// out, in order and as one, before the messages of the same step leave, and at once after it. Of a replica.
	Save
	// SaveHead has what [Replica.Head] says recorded.
	SaveHead
	// Void has all that is recorded deleted: it is of no use any more.
	Void
	// Waiting tells Msg.Position, Msg.Owner and Msg.Wait, when they have changed. Of a client.
	Waiting
	// Acquired says that the lock is held: Tok, until At. Of a client.
	Acquired
	// Renewed moves the deadline to At. Of a client.
	Renewed
	// Lost says that the holder must stop: Err. Of a client.
	Lost
	// Returned says that a majority has acknowledged the release, so that others can be granted the lock. Of a client with Repeat.
	Returned
	// Done says that the wish is over: Err is nil after a release. Of ErrLocked, Msg.Owner is who has the lock, zero where
	// nobody is known to. Of a client.
	Done
	// Order asks for a command to the group's table, by Order, which locks the name now (M7). It is answered by exactly one [Ordered].
	// Of a client.
	Order
	// Lookup asks for the group's present view, to be told by Located. Of a client.
	Lookup
)

// Action is an output of an automaton.
type Action struct {
	Kind  ActionKind
	To    keyspace.NodeID
	Msg   Message
	At    automaton.Instant
	Tok   Token
	Entry Entry
	Order Command // Order
	Err   error
}

// Command is what a client asks of the table in the group's log.
type Command struct {
	ID   uint64 // of the [Ordered] that answers
	Kind CommandKind
	// Attempt counts the requests of the client from 1. The driver gives each attempt of each client a request number of its own, which
	// it never uses for another. An attempt's Acquire can come again.
	Attempt uint64
	Tok     Token // CommandAcquire: what is claimed. CommandRenew: zero asks where it stands. CommandRelease: zero gives up whatever it has
}

// CommandKind says what a [Command] is. The name, the TTL and what else it needs are the client's.
type CommandKind uint8

// The kinds of commands.
const (
	CommandAcquire CommandKind = iota + 1
	CommandRenew
	CommandRelease
)

// Answer is what the table says to a [Command].
type Answer struct {
	ID       uint64
	Attempt  uint64 // Pushed
	Kind     AnswerKind
	Tok      Token      // AnswerGranted, AnswerHeld
	Waited   bool       // AnswerGranted: it came out of the queue, and is not a hold before it is renewed
	Position int        // AnswerQueued: how many stand in front
	View     Descriptor // AnswerElsewhere: as far as known; without members a [Lookup] follows
	Err      error      // AnswerRefused
}

// AnswerKind says what an [Answer] is.
type AnswerKind uint8

// The kinds of answers.
const (
	AnswerNone AnswerKind = iota + 1 // it may have been executed or not
	AnswerGranted
	AnswerQueued
	AnswerLocked
	AnswerHeld
	AnswerNotHeld
	AnswerReleased
	AnswerElsewhere // the voters lock the name
	AnswerRefused
)

// Why a hold is over, in [Lost] and [Done].
var (
	ErrExpired  = errors.New("sigma: no renewal was confirmed in time")
	ErrJump     = errors.New("sigma: the clock jumped")
	ErrReplaced = errors.New("sigma: replicas have granted the lock to another")
	ErrLocked   = errors.New("sigma: locked by another")
	ErrRefused  = errors.New("sigma: refused by too many replicas")
)
