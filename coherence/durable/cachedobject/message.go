package cachedobject

import (
	"time"

	"latchkey/coherence/durable"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
)

// Limits of a node.
const (
	CallsMax = 1 << 14 // that wait, of one group; more are [Overloaded]
	// DroppedMax bounds the evictions that go along with the next renewal. More are not told: each costs one INVALIDATE later.
	DroppedMax = 1024
	// StoreHorizon is for how long a STORE is repeated, from its first sending. It is shorter than the group remembers the writer.
	StoreHorizon = 5 * time.Minute
)

// Cell is a copy as threads find it. It is never changed.
type Cell struct {
	Value   *protocol.Cell // nil: there is none
	Version durable.Version
	Tenure  durable.Tenure
	Session durable.Session
}

// Lease says which cells may be read, and until when.
type Lease struct {
	Tenure  durable.Tenure
	Session durable.Session
	End     automaton.Instant
	Held    bool
}

// Allows reports whether a cell that was loaded before the clock showed now may be read.
func (l *Lease) Allows(c *Cell, now automaton.Instant) bool {
	return c != nil && l.Held && now < l.End && c.Tenure == l.Tenure && c.Session == l.Session
}

// CallKind says what a call wants.
type CallKind uint8

// The calls.
const (
	Get    CallKind = iota + 1 // the value
	Put                        // a write
	Lock                       // the value, and the right to write it without being outrun, until Unlock
	Holder                     // a write by whoever has it locked
)

// Call is what somebody on this node waits for. ID is the driver's.
type Call struct {
	ID     uint64
	Kind   CallKind
	Expect durable.Expect
	Wanted durable.Version
	Delete bool
	Value  *protocol.Cell
	TTL    time.Duration
}

// EventKind says what has happened.
type EventKind uint8

// The events.
const (
	Begin   EventKind = iota + 1 // Call on Object
	GiveUp                       // the call with ID Call.ID on Object is waited for no longer
	Unlock                       // whoever had locked Object is done
	Receive                      // Msg came from a member of the group
	Extend                       // copies have been hit: renew the lease
	Repeat                       // time to say again what is waited for
	Evict                        // forget Object, if nothing waits for it
	Jump                         // the clock may have stood still: no lease counts any more
)

// Reach says how many voters are sent what a step says.
type Reach uint8

// The reaches.
const (
	One     Reach = iota // who leads, as far as is known
	Several              // nobody knows who leads
	Nobody               // who is in the group is not known yet
)

// Whither says where messages go: to Voter alone if Reach is [One]. Where nobody knows who is in the group they are lost.
type Whither struct {
	Reach Reach
	Voter keyspace.NodeID
}

// Event is an input. Now is the node's clock, read after what the event tells of; it never goes back.
type Event struct {
	Kind   EventKind
	Now    automaton.Instant
	Object string
	Call   Call
	Msg    *durable.Message
	Since  automaton.Instant // of Repeat: what was sent later need not be said again
	Reach  Reach
}

// Outcome says how a call ended.
type Outcome uint8

// The outcomes.
const (
	Found      Outcome = iota + 1 // of Get, with the value
	Locked                        // of Lock, with the value
	Written                       // of Put and Holder, with the version
	Mismatch                      // of Put and Holder: the condition failed; with the value that is there. It was not and will not be made
	Rejected                      // of Put and Holder, for Reason. It was not made, and its message was sent once, to one voter
	Unknown                       // of Put and Holder: it may or may not have been made, or be made yet; with a Reason, this leader has not made it
	Overloaded                    // too many calls wait; it was not begun
	Given                         // up by its caller; a Get or Lock, or a write that was not begun
)

// ActionKind says what is to be done.
type ActionKind uint8

// The actions.
const (
	Send    ActionKind = iota + 1 // Msg to the group's leader
	Publish                       // Cell is what threads find of Object from now on, before what follows
	Done                          // the call with ID Call
)

// Action is an output. They are to be done in their order. After each step [Node.Lease] is to be published too, before messages are sent.
type Action struct {
	Kind    ActionKind
	Msg     durable.Message
	Object  string
	Cell    *Cell
	Call    uint64
	Seq     durable.Seq // of the STORE that ended
	Outcome Outcome
	Version durable.Version
	Value   *protocol.Cell
	Reason  durable.Reason
}
