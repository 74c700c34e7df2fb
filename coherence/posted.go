package coherence

import (
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
)

// What a machine posts, for who drives machines without a [Service]: simulations do. They tell a machine things by
// [Machine.ApplyOwn], whose input is the application's key, the object's or zero, and an event as package pb encodes it.

// Messages returns what managers of an application say.
func (s said) Messages() []protocol.Message { return s.messages }

// Concerns calls f for each node that a manager counts on: that of an object, or the application's where that is zero. suspected says what the
// manager thinks.
func (s said) Concerns(f func(object keyspace.Key, n protocol.NodeRef, suspected bool)) {
	for _, c := range s.concerns {
		f(c.object, c.node, c.suspected)
	}
}
