package replicagroup

import (
	"encoding/binary"
	"maps"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
)

func (h *Host) watches() map[peer.ID]int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.watched)
}

// A host watches the peers of its groups for ever, and who its clients call while they do.
func TestWhoIsWatched(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 5, 1)
	ctx := deadline(t, waitMax)
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
				if id := peer.ID(m.ID); id != p.overlay.Self() && after[id] == 0 {
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

// The worst that a detector can do: everybody suspects a leader that is well.
func TestASuspicionOfAllMakesAnotherLeaderAndLosesNothing(t *testing.T) {
	w := newWorld(t, 3, 1)
	ctx := deadline(t, waitMax)
	key := keyspace.Preimage("doubted").Key()
	c := w.peers[0].groups.NewClient()
	if _, err := c.Do(ctx, key, "count", number(1)); err != nil {
		t.Fatal(err)
	}
	g := order.GroupID{Overlay: w.genesis.ID(), Prefix: w.genesis.PrefixOf(key)}
	leading := func() (leader *testPeer, term uint64) {
		for _, p := range w.peers {
			replicaOf(t, ctx, p, g, func(s order.Status) bool {
				if s.Leading && s.Term > term {
					leader, term = p, s.Term
				}
				return true
			})
		}
		return leader, term
	}
	for sum := uint64(2); sum < 7; sum++ {
		before, term := leading()
		for before == nil {
			if err := pause(ctx, time.Millisecond); err != nil {
				t.Fatalf("nobody leads: %v", err)
			}
			before, term = leading()
		}
		for { // one suspicion of two voters does, unless the leader's next heartbeat comes between them
			for _, p := range w.peers {
				if p != before {
					p.told(before.overlay.Self(), true)
					p.told(before.overlay.Self(), false)
				}
			}
			if err := pause(ctx, 20*time.Millisecond); err != nil {
				t.Fatalf("nobody else leads: %v", err)
			}
			if now, later := leading(); now != nil && now != before && later > term {
				break
			}
		}
		got, err := c.Do(ctx, key, "count", number(1))
		if err != nil || binary.BigEndian.Uint64(got) != sum {
			t.Fatalf("%x, %v; want %d", got, err, sum)
		}
	}
}
