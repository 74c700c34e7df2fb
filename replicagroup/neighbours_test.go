package replicagroup

import (
	"container/list"
	"context"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/internal/driver"
	"latchkey/replicagroup/pb"
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

func (o *looker) Self() peer.ID { return "self" }

func (o *looker) Go(_ peer.ID, _ keyspace.Key, _ string, _ []byte, _ time.Duration, done func([]byte, error)) {
	done(marshal(&pb.ProbeReply{UpMs: 1, Hosts: true, Room: true, Store: make([]byte, 16)}), nil)
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

// A peer that one look-up finds for the first time is made known to the plans of all groups that are led here, so that those it is near to
// do not wait for their turns in the patrol. That is once; and not for fellows, who are linked, and tell of themselves.
func TestANewcomerFoundByOneGroupIsKnownToAll(t *testing.T) {
	o, n := newLooker(4)
	n.host.shards = []*shard{newShard(n.host), newShard(n.host)}
	n.host.fellows.Store(&map[peer.ID]bool{o.peers[0].ID: true, o.Self(): true})
	find := func() (told [2][]keyspace.NodeID) {
		asked := make(chan around, 1)
		n.candidates("anchor", placement.CandidatesMax, nil, nil, func(a around) { asked <- a })
		<-asked
		for i, s := range n.host.shards {
			events, _ := s.box.Take(nil)
			for _, e := range events {
				told[i] = append(told[i], e.(appearedEvent).peer)
			}
		}
		return told
	}
	for i, told := range find() {
		if len(told) != 3 || slices.Contains(told, dht.NodeIDOf(o.peers[0].ID)) {
			t.Errorf("shard %d is told of %d newcomers, want 3", i, len(told))
		}
	}
	if told := find(); len(told[0])+len(told[1]) > 0 {
		t.Errorf("told again of %v", told)
	}
	o.peers = append(o.peers, peer.AddrInfo{ID: "new"})
	n.linked() // or the look-up is not made
	if told := find(); !slices.Equal(told[0], []keyspace.NodeID{dht.NodeIDOf("new")}) {
		t.Errorf("told of %v when a peer has joined", told[0])
	}
}

// Whom the patrol is for: a peer that joins looks itself up, and so makes a connection to the twenty closest to it. Groups that it belongs
// to are led by peers that are close to the same anchor, and nearly always among the twenty, in overlays of whatever size.
func TestWhoLeadsNearANewcomerIsNearlyAlwaysAmongItsClosest(t *testing.T) {
	const voters, closest, joins = 5, 20, 100
	r := rand.New(rand.NewPCG(1, 2))
	draw := func() (k keyspace.Key) {
		for i := range k {
			k[i] = byte(r.Uint32())
		}
		return k
	}
	for _, peers := range []int{30, 300, 3000} {
		var all []keyspace.NodeID
		for range peers {
			all = append(all, keyspace.NodeID(draw()))
		}
		led, missed := 0, 0
		for range joins {
			self := keyspace.NodeID(draw())
			all := append(slices.Clip(all), self)
			keyspace.SortByDistance(keyspace.Key(self), all)
			linked, near := all[:closest+1], slices.Clone(all[:min(len(all), 10*closest)])
			for range 20 { // anchors near the newcomer
				anchor := keyspace.Key(self)
				copy(anchor[1:], func() []byte { k := draw(); return k[1:] }())
				if peers < 300 {
					anchor = draw()
				}
				keyspace.SortByDistance(anchor, near)
				if !slices.Contains(near[:voters], self) {
					continue
				}
				for _, leader := range near[:voters] {
					if leader != self {
						if led++; !slices.Contains(linked, leader) {
							missed++
						}
					}
				}
			}
		}
		t.Logf("%d peers: of %d that may lead a group of a newcomer it does not meet %d", peers, led, missed)
		if led < 100 || missed*100 > led {
			t.Errorf("%d peers: %d of %d that may lead a group of a newcomer are not among its closest", peers, missed, led)
		}
	}
}
