package testnet

import (
	"slices"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht"
	"latchkey/dht/keyspace"
)

// Kademlia makes no full mesh of many peers: of them all, only the closest are waited for.
func TestAPeerIsWaitedForUntilItIsConnectedToTheClosestOthers(t *testing.T) {
	var places []*place
	for i := range PeersMax {
		s := &place{index: i, key: identity(SeedDefault, i)}
		var err error
		if s.id, err = peer.IDFromPrivateKey(s.key); err != nil {
			t.Fatal(err)
		}
		places = append(places, s)
	}
	me, others := places[7], slices.Delete(slices.Clone(places), 7, 8)
	if got := closestPlaces(me.id, others[:closeMax]); len(got) != closeMax {
		t.Errorf("of %d others, %d are waited for", closeMax, len(got))
	}
	got := closestPlaces(me.id, others)
	if len(got) != closeMax {
		t.Fatalf("of %d others, %d are waited for, want %d", len(others), len(got), closeMax)
	}
	key := keyspace.Key(dht.NodeIDOf(me.id))
	farthest := dht.NodeIDOf(got[closeMax-1].id)
	for _, s := range others {
		closer := keyspace.CompareDistance(key, dht.NodeIDOf(s.id), farthest) <= 0
		if closer != slices.Contains(got, s) {
			t.Errorf("peer %d: closer than the farthest that is waited for is %v, waited for is %v", s.index, closer, !closer)
		}
	}
}
