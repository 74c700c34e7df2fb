package replicagroup

import (
	"maps"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht/keyspace"
)

func (h *Host) watches() map[peer.ID]int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.watched)
}

// A host watches the peers of its groups for ever, and who its clients call while they do.
func TestWhoIsWatched(t *testing.T) {
	w := newWorld(t, 5, 1)
	ctx := deadline(t, 20*time.Second)
	key := keyspace.Preimage("watched").Key()
	before := make(map[*testPeer]map[peer.ID]int)
	for range 2 { // the second time no group is new
		for _, p := range w.peers {
			before[p] = p.groups.watches()
			c := p.groups.NewClient()
			if _, err := c.Do(ctx, key, "count", number(1)); err != nil {
				t.Fatal(err)
			}
			leader, err := p.groups.Leader(ctx, key)
			if err != nil {
				t.Fatal(err)
			}
			during := p.groups.watches()
			if id := peer.ID(leader.ID); during[id] == 0 {
				t.Errorf("%v does not watch the leader %v, which its client calls", p.overlay.Self(), id)
			}
			c.Close()
		}
	}
	for _, p := range w.peers {
		after := p.groups.watches()
		if !maps.Equal(after, before[p]) {
			t.Errorf("%v watches %v, and %v before its clients came", p.overlay.Self(), after, before[p])
		}
		all, err := p.groups.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range all {
			for _, m := range r.Descriptor.Peers {
				if after[peer.ID(m.ID)] == 0 {
					t.Errorf("%v does not watch %v, which it shares group %v with", p.overlay.Self(), peer.ID(m.ID), r.Group)
				}
			}
		}
		p.groups.Close()
		if left := p.groups.watches(); len(left) > 0 {
			t.Errorf("%v watches %v after its end", p.overlay.Self(), left)
		}
	}
}
