package ordertest

import (
	"testing"

	"latchkey/replicagroup/order"
	"latchkey/replicagroup/raft"
)

func raftFactory(c Config, img order.Image) (order.Orderer, error) {
	return raft.New(raft.Config{
		Group: c.Group, Self: c.Self, Store: c.Store, View: c.View, Join: c.Join, Quiesce: c.Quiesce,
		LeaseReads: c.LeaseReads, Drift: c.Drift,
	}, img)
}

func TestSuiteAcceptsRaft(t *testing.T) { Run(t, raftFactory) }
