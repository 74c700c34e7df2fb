package replicagroup

import (
	"container/list"
	"context"
	"slices"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/internal/driver"
	"latchkey/replicagroup/placement"
)

// looker is an overlay of some peers that counts look-ups.
type looker struct {
	Overlay
	peers     []peer.AddrInfo
	lookUps   int
	meanwhile func() // what happens during one
}

func (o *looker) ReplicaSet(_ context.Context, at keyspace.Preimage, n int) ([]peer.AddrInfo, error) {
	o.lookUps++
	if o.meanwhile != nil {
		o.meanwhile()
	}
	peers := slices.SortedFunc(slices.Values(o.peers), func(a, b peer.AddrInfo) int {
		return keyspace.CompareDistance(at.Key(), dht.NodeIDOf(a.ID), dht.NodeIDOf(b.ID))
	})
	return peers[:min(n, len(peers))], nil
}

func newLooker(n int) (*looker, *neighbours) {
	o := &looker{}
	for i := range n {
		o.peers = append(o.peers, peer.AddrInfo{ID: peer.ID([]byte{byte(i)})})
	}
	h := &Host{clock: driver.NewClock(), overlay: o, plan: placement.DefaultPlanTimes(), ctx: context.Background()}
	h.neighbours = newNeighbours(h)
	return o, h.neighbours
}

// One look-up that finds fewer peers than it asked for serves all anchors until somebody comes or goes; in a larger overlay each
// anchor needs its own.
func TestTheWholeOverlayIsLookedUpOnce(t *testing.T) {
	ask := func(n *neighbours, anchor keyspace.Preimage, now automaton.Instant) {
		t.Helper()
		infos, err := n.around(look{anchor: anchor, n: placement.CandidatesMax}, now)
		closest := func(a, b peer.AddrInfo) int {
			return keyspace.CompareDistance(anchor.Key(), dht.NodeIDOf(a.ID), dht.NodeIDOf(b.ID))
		}
		if err != nil || len(infos) == 0 || !slices.IsSortedFunc(infos, closest) {
			t.Errorf("around %s are %v, %v", anchor, infos, err)
		}
	}
	small, n := newLooker(5)
	for _, anchor := range []keyspace.Preimage{"first", "second", "third"} {
		ask(n, anchor, 0)
	}
	if small.lookUps != 1 {
		t.Errorf("%d look-ups in an overlay of five", small.lookUps)
	}
	if n.linked(); n.whole != nil {
		t.Error("what was found is used after somebody came")
	}
	ask(n, "first", 1)
	ask(n, "first", automaton.Instant(n.host.plan.Every))
	if small.lookUps != 3 {
		t.Errorf("%d look-ups, want one more after somebody came and one more later", small.lookUps)
	}
	small.meanwhile = n.linked
	ask(n, "first", automaton.Instant(2*n.host.plan.Every))
	if n.whole != nil {
		t.Error("what was found is used though somebody came meanwhile")
	}
	large, n := newLooker(placement.CandidatesMax)
	ask(n, "first", 0)
	ask(n, "second", 0)
	if large.lookUps != 2 {
		t.Errorf("%d look-ups around two anchors in an overlay of twenty", large.lookUps)
	}
}

// The patrol rouses each plan that rests after the longest pause at the earliest, at its pace however many there are, and not one whose
// leadership is over. It ends with the last.
func TestThePatrolKeepsItsPace(t *testing.T) {
	const plans = 3 * patrolShare
	_, n := newLooker(1)
	n.patrols = true // here
	idle := n.host.plan.Idle
	var places []*list.Element
	for range plans {
		places = append(places, n.rest(&plan{replica: &replica{shard: new(shard)}}, 0))
	}
	over := places[7].Value.(rested).plan
	n.strike(places[7])
	now, roused := automaton.Instant(0), 0
	for {
		r, wait, ok := n.turn(now)
		if !ok {
			break
		}
		if r.plan != nil {
			if roused++; now < automaton.Instant(idle) || r.plan == over {
				t.Fatalf("plan %d is roused at %v", roused, now)
			}
		}
		if now += automaton.Instant(wait); wait <= 0 {
			t.Fatal("the patrol does not pause")
		}
	}
	if want := idle + (plans-1)*(idle/patrolShare); roused != plans-1 || now != automaton.Instant(want) || n.patrols {
		t.Errorf("%d of %d plans are roused by %v, want %v", roused, plans-1, now, want)
	}
}
