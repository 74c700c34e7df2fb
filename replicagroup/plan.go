package replicagroup

import (
	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
)

// The plan of a group's view changes, which its leader follows. Nothing drives it yet.

func (r *replica) planBegin()                         {}
func (r *replica) planEnd()                           {}
func (r *replica) planView(order.ViewNote)            {}
func (r *replica) planDone(order.Outcome) bool        { return false }
func (r *replica) planExpired()                       {}
func (r *replica) planPeer(_ keyspace.NodeID, _ bool) {}
