package lockservice

import (
	"context"

	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
)

// Groups is what the group backend needs of a client of replica groups; *replicagroup.Client is one. A Groups is one
// session per group.
type Groups interface {
	// Do has a command executed once, in order, by the group that owns key.
	Do(ctx context.Context, key keyspace.Key, service string, data []byte) ([]byte, error)
	// Query reads the group's state linearizably.
	Query(ctx context.Context, key keyspace.Key, service string, data []byte) ([]byte, error)
	// Notify has fn called with what the service pushes to this client. fn must not block.
	Notify(service string, fn func(group order.GroupID, data []byte))
}

// GroupConfig configures [NewGroupBackend].
type GroupConfig struct {
	Limits Limits // of the overlay: [LimitsOf]
	// PeerName turns a node into what people know it by, its peer id. When it is nil or does not know, the node id is used.
	PeerName func(keyspace.NodeID) (string, bool)
}

// NewGroupBackend returns the backend of protocol group: locks are commands of the log of the group that owns the key.
func NewGroupBackend(g Groups, cfg GroupConfig) Backend { panic("not yet") }
