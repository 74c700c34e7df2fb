package replicagroup

import (
	"context"
	"encoding/binary"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/pb"
	"latchkey/replicagroup/placement"
	"latchkey/replicagroup/session"
)

// A group forgets a session that it has not heard of for a while: after a partition, or a long sleep of the client's machine. The
// client must then go on under another one, whatever it was about to do.
func TestAClientGoesOnWhenTheGroupHasForgottenItsSession(t *testing.T) {
	w := newWorld(t, 3, 1)
	key := keyspace.Preimage("forgotten").Key()
	client := w.peers[1]
	c := client.groups.NewClient()
	for want := uint64(1); want <= 3; want++ {
		ctx, cancel := context.WithTimeout(t.Context(), waitMax)
		defer cancel()
		got, err := c.Do(ctx, key, "count", number(1))
		if err != nil || binary.BigEndian.Uint64(got) != want {
			t.Fatalf("command %d: %x, %v", want, got, err)
		}
		c.mu.Lock()
		s := c.sessions[order.GroupID{Prefix: w.genesis.PrefixOf(key)}]
		c.mu.Unlock()
		s.mu.Lock()
		d, id := s.descriptor, s.id
		s.mu.Unlock()
		end := encodeCommand(d.Group, d.View.Num, order.Command{Client: id, Service: session.Service, Data: session.CloseData()})
		for i, ended := 0, false; !ended; i++ { // at the leader, whoever that is
			to := d.Peers[i%len(d.Peers)]
			b, err := client.overlay.Call(ctx, peer.ID(to.ID), keyspace.Key{}, serviceCommand, end)
			if err != nil {
				t.Fatal(err)
			}
			r, err := client.groups.decode.reply(b)
			if err != nil {
				t.Fatal(err)
			}
			ended = r.status == pb.Status_OK
		}
	}
}

// A voter that is cut off answers nothing until the asker's patience is at its end. The next search must begin with another.
func TestTheNextSearchBeginsAfterTheVoterThatWasSilent(t *testing.T) {
	w := newWorld(t, 3, 1)
	h := w.peers[0].groups
	root := h.genesis.RootDescriptor()
	first := root.View.Members[0].Peer
	h.locator.led(root.Group, first)
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // the asker's patience
	for i := range 4 {
		if want := root.View.Members[i%3].Peer; h.locator.leader(root.Group) != want {
			t.Fatalf("search %d begins with %v, want %v", i, h.locator.leader(root.Group), want)
		}
		nothing := func(placement.Descriptor) []byte { return nil }
		if err := h.askLeader(ctx, root, keyspace.Key{}, serviceLocate, nothing, nil); err == nil {
			t.Fatal("somebody answered")
		}
	}
	h.locator.silent(root.Group, root.View.Members[2].Peer, first)
	if h.locator.leader(root.Group) != root.View.Members[1].Peer {
		t.Error("the silence of another changed who is believed to lead")
	}
}
