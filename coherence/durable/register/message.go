package register

import (
	"latchkey/coherence/durable"
	"latchkey/coherence/durable/store"
	"latchkey/internal/automaton"
)

// Limits of a register.
const (
	CopiesMax   = 1 << 20 // copies that are registered; beyond it answers may be used once
	SessionsMax = 1 << 14 // nodes that have copies; beyond it answers may be used once
	QueuedMax   = 4096    // requests that wait, or are under way; more are dropped, and repeated by who made them

	// QueuedPerNode, QueuedBytesMax and QueuedBytesPerNode bound them further: those of one node, and the values of all and of one. One
	// request may have any value where nothing else waits.
	QueuedPerNode      = 1024
	QueuedBytesMax     = 64 << 20
	QueuedBytesPerNode = 16 << 20
)

// EventKind says what has happened.
type EventKind uint8

// The events.
const (
	Lead        EventKind = iota + 1 // this replica leads, in Tenure, as it knew at At, and has applied the first entry of its term
	Follow                           // it leads no more
	Confirmed                        // a majority has confirmed the round that was sent at At
	Receive                          // Msg came, from Msg.Node itself
	Committed                        // the entry with Cmd was applied, with Result
	Failed                           // the proposal of Cmd may have come to nothing
	Tick                             // time has passed
	Repeat                           // time to say again what is waited for
	Unconfirmed                      // the round that was asked for came to nothing
)

// Event is an input. Now is the leader's clock, and never goes back.
type Event struct {
	Kind   EventKind
	Now    automaton.Instant
	At     automaton.Instant
	Tenure durable.Tenure
	Msg    *durable.Message
	Cmd    *store.Command
	Result store.Result
}

// ActionKind says what is to be done.
type ActionKind uint8

// The actions.
const (
	Send    ActionKind = iota + 1 // Msg to Msg.Node
	Propose                       // Cmd for the group's log
	Confirm                       // have a round confirmed by a majority
)

// Action is an output.
type Action struct {
	Kind ActionKind
	Msg  durable.Message
	Cmd  store.Command
}
