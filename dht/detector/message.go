package detector

import (
	"time"

	"latchkey/internal/automaton"
)

// Peer names a watched process, such as by the bytes of its libp2p peer id.
type Peer string

// Event is an input of a [Detector]: one of the types below.
type Event interface{ isEvent() }

type (
	// Watch begins to watch a peer, or changes how. An active watch notices a silent peer in about half a second, another one in
	// two. Who watches bounds how many.
	Watch struct {
		Peer   Peer
		Active bool
	}
	// Unwatch ends a watch and forgets the peer.
	Unwatch struct{ Peer Peer }
	// Tick is the passing of time. A driver gives one at [Detector.Next], and before it [Heard] for every peer that was heard since
	// the last one.
	Tick struct{}
	// Heard says that the peer has shown a sign of life: a message of any kind, or a new connection.
	Heard struct{ Peer Peer }
	// Beat is a ping of the peer, or its answer to one. It need not be told as Heard besides.
	Beat struct {
		Peer   Peer
		Nonce  uint64 // of the peer's start
		Answer bool
		Echo   automaton.Instant // of an answer: when we sent the ping, as the peer repeats it
	}
	// Lost says that the last connection to the peer is gone.
	Lost struct{ Peer Peer }
)

func (Watch) isEvent()   {}
func (Unwatch) isEvent() {}
func (Tick) isEvent()    {}
func (Heard) isEvent()   {}
func (Beat) isEvent()    {}
func (Lost) isEvent()    {}

// Action is an output of a [Detector]: one of the types below.
type Action interface{ isAction() }

type (
	// Ping asks the driver to send a ping, with our nonce and the present instant for the answer to repeat.
	Ping struct{ Peer Peer }
	// Suspect says that the peer seems to have stopped.
	Suspect struct {
		Peer    Peer
		Silence time.Duration // counted in our own ticks; 0: the connection was lost
	}
	// Trust takes a suspicion back.
	Trust struct{ Peer Peer }
	// Alarm says that two processes use the peer's identity: their boot nonces replace each other.
	Alarm struct {
		Peer   Peer
		Nonces [2]uint64 // the former and the present
	}
)

func (Ping) isAction()    {}
func (Suspect) isAction() {}
func (Trust) isAction()   {}
func (Alarm) isAction()   {}
