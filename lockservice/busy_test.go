package lockservice

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"latchkey/dht/keyspace"
	"latchkey/lockservice/pb"
	"latchkey/replicagroup"
	"latchkey/replicagroup/order"
)

// crowded is a client of groups with no room for a waiter's first polls.
type crowded struct{ polls int }

func (g *crowded) Do(_ context.Context, _ keyspace.Key, _ string, data []byte) ([]byte, error) {
	var c pb.Command
	if err := proto.Unmarshal(data, &c); err != nil {
		return nil, err
	}
	switch c.Op.(type) {
	case *pb.Command_Acquire:
		return proto.Marshal(&pb.Result{Status: pb.Status_STATUS_QUEUED, Position: 1})
	case *pb.Command_Renew:
		if g.polls++; g.polls < 3 {
			return nil, fmt.Errorf("%w: 1024 commands wait", replicagroup.ErrBusy)
		}
		return proto.Marshal(&pb.Result{Status: pb.Status_STATUS_HELD, Token: 7})
	}
	return proto.Marshal(&pb.Result{Status: pb.Status_STATUS_RELEASED})
}

func (*crowded) Query(context.Context, keyspace.Key, string, []byte) ([]byte, error) { return nil, nil }
func (*crowded) Notify(string, func(order.GroupID, []byte))                          {}

// The place in the queue is in the group's log; that nothing can be sent for a moment does not cost it.
func TestWaiterKeepsItsPlaceWhileNothingCanBeSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := new(crowded)
		b := NewGroupBackend(g, GroupConfig{Limits: LimitsOf(time.Minute, 10_000)})
		grant, err := b.Acquire(t.Context(), Request{Name: "x", TTL: time.Second})
		if err != nil || grant.Token != 7 || g.polls != 3 {
			t.Errorf("granted %v after %d polls, %v", grant.Token, g.polls, err)
		}
	})
}
