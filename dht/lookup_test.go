package dht

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	kaddht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht/keyspace"
)

func ids(infos []peer.AddrInfo) []peer.ID {
	ids := make([]peer.ID, len(infos))
	for i, info := range infos {
		ids[i] = info.ID
	}
	return ids
}

// setIs checks o's answer for the r closest to at.
func setIs(t *testing.T, o *Overlay, at keyspace.Preimage, want []peer.ID) {
	t.Helper()
	infos, err := o.ReplicaSet(within(t), at, len(want))
	if err != nil {
		t.Fatal(err)
	}
	if got := ids(infos); !slices.Equal(got, want) {
		t.Errorf("replica set of %q at %s: %v, want %v", at, o.Self(), got, want)
	}
	for _, info := range infos {
		if len(info.Addrs) == 0 {
			t.Errorf("no address of %s", info.ID)
		}
	}
}

func TestSevenHostsAgreeOnReplicaSetsAsSoonAsTheyAreUp(t *testing.T) {
	start := time.Now()
	os := mesh(t, 7, nil)
	for i := range 10 {
		at := keyspace.Preimage(fmt.Sprint("lock ", i))
		for _, o := range os {
			setIs(t, o, at, trueSet(os, at, 3))
		}
	}
	t.Logf("up and right in %v", time.Since(start))
	for _, o := range os {
		if st := o.Stats(); st.Lookups != 10 {
			t.Errorf("%d look-ups for ten keys", st.Lookups)
		}
		near := o.NeighbourSet(6)
		if want := trueSet(os, keyspace.Preimage(o.Self()), 7)[1:]; !slices.Equal(near, want) {
			t.Errorf("neighbours of %s: %v, want %v", o.Self(), near, want)
		}
		for _, p := range os {
			if got, ok := o.PeerOf(p.Node()); !ok || got != p.Self() {
				t.Errorf("PeerOf(%s) = %s, %v", p.Node(), got, ok)
			}
		}
		if peers := o.Peers(); len(peers) != 6 || !peers[0].Routing || !peers[0].Connected || peers[0].Node != NodeIDOf(peers[0].ID) {
			t.Errorf("peers: %+v", peers)
		}
	}
}

func TestAskersShareOneLookup(t *testing.T) {
	os := mesh(t, 3, nil)
	o := os[0]
	for range lookupsMax { // no look-up can begin
		o.sets.limit <- struct{}{}
	}
	const askers = 20
	var waiting sync.WaitGroup
	for range askers {
		waiting.Go(func() { setIs(t, o, "k", trueSet(os, "k", 3)) })
	}
	eventually(t, "all have asked", func() bool { return o.Stats().LookupsShared == askers-1 })
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if _, err := o.ReplicaSet(ctx, "k", 3); err != cause {
		t.Errorf("an asker without time: %v", err)
	}
	for range lookupsMax {
		<-o.sets.limit
	}
	waiting.Wait()
	if n := o.Stats().Lookups; n != 1 {
		t.Errorf("%d look-ups", n)
	}
}

func TestReplicaSetFollowsThoseWhoComeAndGo(t *testing.T) {
	os := mesh(t, 4, nil)
	o := os[0]
	at := keyspace.Preimage("k")
	setIs(t, o, at, trueSet(os, at, 4))

	late := newOverlay(t, newHost(t, 99), nil, WithBootstrap(infoOf(o.host)))
	all := append(slices.Clone(os), late)
	want := trueSet(all, at, 5)
	eventually(t, "the new node is in its place", func() bool {
		infos, err := o.ReplicaSet(t.Context(), at, 5)
		return err == nil && slices.Equal(ids(infos), want)
	})
	if n := o.Stats().Lookups; n != 1 {
		t.Errorf("%d look-ups: one who joins is put in its place without", n)
	}

	if err := late.WaitPeers(within(t), 4); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	late.Close()
	late.host.Close()
	want = trueSet(os, at, 4)
	eventually(t, "the dead node is out", func() bool {
		infos, err := o.ReplicaSet(t.Context(), at, 5)
		return err == nil && slices.Equal(ids(infos), want)
	})
	t.Logf("out after %v", time.Since(start))
	if o.kad.RoutingTable().Find(late.Self()) != "" {
		t.Error("still in the routing table")
	}
	lookups := o.Stats().Lookups
	setIs(t, o, at, want)
	if n := o.Stats().Lookups; n != lookups {
		t.Error("the corrected set is not cached")
	}
}

func TestReplicaSetIsLookedUpAgainAfterItsLifetime(t *testing.T) {
	os := mesh(t, 3, nil)
	o := os[0]
	setIs(t, o, "k", trueSet(os, "k", 3))
	o.sets.mu.Lock()
	o.sets.cache.all(func(s *replicaSet) { s.at = s.at.Add(-ReplicaSetLifetime) })
	o.sets.mu.Unlock()
	setIs(t, o, "k", trueSet(os, "k", 3))
	if n := o.Stats().Lookups; n != 2 {
		t.Errorf("%d look-ups", n)
	}
}

// Who is asked may not have noticed yet that a peer is gone. What such a look-up finds must not be taken for the truth for minutes.
func TestLookupThatNamesWhoHasJustLeftIsNotKept(t *testing.T) {
	os := mesh(t, 3, nil)
	o, gone := os[0], os[1]
	o.sets.left(gone.Self())
	for i := range uint64(2) {
		setIs(t, o, "k", trueSet(os, "k", 3))
		if n := o.Stats().Lookups; n != i+1 {
			t.Errorf("%d look-ups for question %d", n, i+1)
		}
	}
	o.sets.joined(member{gone.Self(), gone.Node()})
	for range 2 {
		setIs(t, o, "k", trueSet(os, "k", 3))
	}
	if n := o.Stats().Lookups; n != 3 {
		t.Errorf("%d look-ups: a peer that is back counts as gone", n)
	}
	o.sets.mu.Lock()
	o.sets.departed.put(gone.Self(), time.Now().Add(-departedFor))
	o.sets.mu.Unlock()
	setIs(t, o, "other", trueSet(os, "other", 3))
	setIs(t, o, "other", trueSet(os, "other", 3))
	if n := o.Stats().Lookups; n != 4 {
		t.Errorf("%d look-ups: a peer counts as just gone for ever", n)
	}
}

// Kademlia takes a newcomer into its tables a moment after the newcomer has said what it is. A look-up in between went by without it, and was
// kept: for two minutes nobody would have had it in the set.
func TestALookupThatMissesWhoHasJustComeIsCorrected(t *testing.T) {
	o := mesh(t, 2, nil)[0]
	ctx := within(t)
	stranger := func(seed uint64) member {
		id := newHost(t, seed).ID()
		return member{id, NodeIDOf(id)}
	}
	in := func(at keyspace.Preimage, m member) bool {
		t.Helper()
		set, err := o.ReplicaSet(ctx, at, 20)
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(set, func(i peer.AddrInfo) bool { return i.ID == m.peer })
	}
	cached := func(at keyspace.Preimage) bool {
		o.sets.mu.Lock()
		defer o.sets.mu.Unlock()
		_, ok := o.sets.cache.get(at)
		return ok
	}
	sure, perhaps := stranger(101), stranger(102)
	o.sets.joined(sure)
	if !in("a", sure) || !cached("a") {
		t.Errorf("who has come is in the set: %v, which is kept: %v", in("a", sure), cached("a"))
	}
	o.sets.left(sure.peer)
	if in("b", sure) {
		t.Error("who has left is in the set")
	}
	o.sets.mayHaveJoined(perhaps)
	if in("c", perhaps) || cached("c") {
		t.Errorf("who may have come is in the set: %v, which is kept: %v", in("c", perhaps), cached("c"))
	}
	for _, a := range []arrival{{sure, true, time.Now().Add(-arrivedFor)}, {perhaps, false, time.Now().Add(-arrivedFor)}} {
		o.sets.arrived.put(a.peer, a)
	}
	if in("d", sure) || !cached("d") {
		t.Errorf("who came long ago: in the set %v, which is kept: %v", in("d", sure), cached("d"))
	}
}

func TestLookupDuringAChangeIsNotKept(t *testing.T) {
	for name, change := range map[string]func(o, p *Overlay){
		"joined":          func(o, p *Overlay) { o.sets.joined(member{p.Self(), p.Node()}) },
		"left":            func(o, p *Overlay) { o.sets.left(p.Self()) },
		"may have joined": func(o, p *Overlay) { o.sets.mayHaveJoined(member{p.Self(), p.Node()}) },
	} {
		os := mesh(t, 2, nil)
		o := os[0]
		for range lookupsMax {
			o.sets.limit <- struct{}{}
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			o.ReplicaSet(t.Context(), "k", 1)
		}()
		eventually(t, "asked", func() bool {
			o.sets.mu.Lock()
			defer o.sets.mu.Unlock()
			return len(o.sets.flights) == 1
		})
		change(o, os[1])
		for range lookupsMax {
			<-o.sets.limit
		}
		<-done
		o.ReplicaSet(t.Context(), "k", 1)
		if n := o.Stats().Lookups; n != 2 {
			t.Errorf("%s: %d look-ups", name, n)
		}
	}
}

func TestReplicaSetCacheIsBounded(t *testing.T) {
	m := newLRU[int, int](3)
	for i := range 3 {
		m.put(i, i)
	}
	m.get(0)
	m.put(1, 10)
	m.put(3, 3) // drops 2, not used longest
	for i, want := range []bool{true, true, false, true} {
		if _, ok := m.get(i); ok != want {
			t.Errorf("%d: %v", i, ok)
		}
	}
	if v, _ := m.get(1); v != 10 || len(m.entries) != 3 || m.order.Len() != 3 {
		t.Errorf("value %d, %d entries, %d in order", v, len(m.entries), m.order.Len())
	}
}

func TestReplicaSetKeepsTheClosest(t *testing.T) {
	s := replicaSet{key: keyspace.Preimage("k").Key()}
	var nodes []keyspace.NodeID
	for i := range 3 * membersMax {
		m := member{peer: peer.ID(fmt.Sprint(i))}
		m.node = NodeIDOf(m.peer)
		nodes = append(nodes, m.node)
		before := slices.Clone(s.members)
		kept := s.members
		s.insert(m)
		s.insert(m)
		if !slices.Equal(kept, before) {
			t.Fatal("a slice that others hold was changed")
		}
	}
	keyspace.SortByDistance(s.key, nodes)
	for i, m := range s.members {
		if m.node != nodes[i] {
			t.Fatalf("place %d", i)
		}
	}
	if len(s.members) != membersMax {
		t.Errorf("%d members", len(s.members))
	}
}

func TestLoneNodeIsItsOwnReplicaSet(t *testing.T) {
	o := newOverlay(t, newHost(t, 1), nil)
	setIs(t, o, "k", []peer.ID{o.Self()})
	if reply, err := o.Route(within(t), "k", "echo", []byte("me")); err != nil || string(reply) != "me" {
		t.Errorf("%q, %v", reply, err)
	}
	if _, err := o.ReplicaSet(within(t), "", 1); !errors.Is(err, ErrLookup) {
		t.Errorf("an empty preimage: %v", err)
	}
	client := newOverlay(t, newHost(t, 2), nil, WithClientMode())
	if _, err := client.ReplicaSet(within(t), "k", 1); !errors.Is(err, ErrLookup) {
		t.Errorf("a client that knows nobody: %v", err)
	}
}

func TestClientsAreInNoReplicaSet(t *testing.T) {
	os := mesh(t, 3, nil)
	client := newOverlay(t, newHost(t, 77), nil, WithClientMode(), WithBootstrap(infoOf(os[0].host)))
	if err := client.WaitPeers(within(t), 3); err != nil {
		t.Fatal(err)
	}
	for i := range 8 { // with four nodes, one key in four is closest to the client
		at := keyspace.Preimage(fmt.Sprint(i))
		for _, o := range append(os, client) {
			setIs(t, o, at, trueSet(os, at, 3))
		}
	}
	if infos, _ := client.ReplicaSet(within(t), "0", 9); len(infos) != 3 {
		t.Errorf("a set of %d", len(infos))
	}
	if reply, err := os[1].Call(within(t), client.Self(), keyspace.Key{}, "echo", []byte("push")); err == nil && string(reply) != "push" {
		t.Errorf("%q", reply)
	}
}

func TestApplicationsOwnDHT(t *testing.T) {
	var os []*Overlay
	for i := range 3 {
		h := newHost(t, uint64(i+1))
		d, err := kaddht.New(h, kaddht.Mode(kaddht.ModeServer), kaddht.ProtocolPrefix("/my-application"), kaddht.DisableValues(), kaddht.DisableProviders())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		var seeds []peer.AddrInfo
		if i > 0 {
			seeds = []peer.AddrInfo{infoOf(os[0].host)}
		}
		os = append(os, newOverlay(t, h, nil, WithDHT(d), WithBootstrap(seeds...)))
	}
	for _, o := range os {
		if err := o.WaitPeers(within(t), 2); err != nil {
			t.Fatal(err)
		}
	}
	for _, o := range os {
		setIs(t, o, "k", trueSet(os, "k", 3))
	}
	os[0].Close()
	if os[0].kad.RoutingTable().Size() != 2 {
		t.Error("the application's DHT did not survive the overlay")
	}

	auto, err := kaddht.New(os[0].host, kaddht.Mode(kaddht.ModeAutoServer), kaddht.ProtocolPrefix("/other"), kaddht.DisableValues(), kaddht.DisableProviders())
	if err != nil {
		t.Fatal(err)
	}
	defer auto.Close()
	for name, opts := range map[string][]Option{
		"no overlay id":   {},
		"unknowable mode": {WithOverlayID(testOverlay), WithDHT(auto)},
		"of another host": {WithOverlayID(testOverlay), WithDHT(os[1].kad)},
		"nameless seed":   {WithOverlayID(testOverlay), WithBootstrap(peer.AddrInfo{})},
	} {
		if _, err := New(os[0].host, opts...); !errors.Is(err, ErrOption) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBootstrapIsTriedUntilTheSeedComes(t *testing.T) {
	seed := newHost(t, 1)
	info := infoOf(seed)
	seed.Close()
	o := newOverlay(t, newHost(t, 2), nil, WithBootstrap(info))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := o.WaitPeers(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("nobody is there: %v", err)
	}
	again := newHostAt(t, 1, info.Addrs[0].String())
	newOverlay(t, again, nil)
	if err := o.WaitPeers(within(t), 1); err != nil {
		t.Error(err)
	}
}

func TestNodesThatJoinTogetherFindEachOther(t *testing.T) {
	seed := newOverlay(t, newHost(t, 1), nil)
	var os [7]*Overlay
	os[0] = seed
	hosts := make([]*Overlay, 0, 6)
	for i := 1; i < 7; i++ {
		o, err := New(newHost(t, uint64(i+1)), WithOverlayID(testOverlay), WithBootstrap(infoOf(seed.host)))
		if err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, o)
		t.Cleanup(func() { o.Close() })
	}
	start := time.Now()
	var starts sync.WaitGroup
	for _, o := range hosts {
		starts.Go(func() {
			if err := o.Start(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	starts.Wait()
	for _, o := range append(hosts, seed) {
		if err := o.WaitPeers(within(t), 6); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("after %v", time.Since(start))
}

func TestLinksAreToldInOrderAndAtOnce(t *testing.T) {
	type change struct {
		p  peer.ID
		up bool
	}
	told := make(chan change, 16)
	early := newHost(t, 3) // connected before the overlay starts
	h := newHost(t, 1)
	if err := h.Connect(within(t), infoOf(early)); err != nil {
		t.Fatal(err)
	}
	newOverlay(t, h, func(o *Overlay) { o.OnLink(func(p peer.ID, up bool) { told <- change{p, up} }) })
	expect := func(want change) {
		t.Helper()
		select {
		case got := <-told:
			if got != want {
				t.Fatalf("told %v, want %v", got, want)
			}
		case <-within(t).Done():
			t.Fatalf("not told %v", want)
		}
	}
	expect(change{early.ID(), true})
	other := newHost(t, 2)
	if err := other.Connect(within(t), infoOf(h)); err != nil {
		t.Fatal(err)
	}
	expect(change{other.ID(), true})
	start := time.Now()
	other.Network().Close() // no goodbye of ours
	expect(change{other.ID(), false})
	t.Logf("down after %v", time.Since(start))
	early.Close()
	expect(change{early.ID(), false})
	if len(told) != 0 {
		t.Errorf("told %v besides", <-told)
	}
}

func TestRouteGoesToTheClosestThatCanBeReached(t *testing.T) {
	os := mesh(t, 3, func(o *Overlay) {
		o.Handle("who", func(r *Request) { r.Reply([]byte(o.Self())) })
	})
	o := os[0]
	var at keyspace.Preimage
	for i := 0; ; i++ { // a key whose two closest are the others
		at = keyspace.Preimage(fmt.Sprint(i))
		if trueSet(os, at, 3)[2] == o.Self() {
			break
		}
	}
	set := trueSet(os, at, 3)
	if reply, err := o.Route(within(t), at, "who", nil); err != nil || peer.ID(reply) != set[0] {
		t.Fatalf("%s, %v", peer.ID(reply), err)
	}
	// The closest is believed to be there, but cannot be reached.
	dead := member{peer: peer.ID("\x00\x02no")}
	dead.node = keyspace.NodeID(at.Key())
	o.sets.joined(dead)
	if reply, err := o.Route(within(t), at, "who", nil); err != nil || peer.ID(reply) != set[0] {
		t.Errorf("past the unreachable one: %s, %v", peer.ID(reply), err)
	}
	if infos, err := o.ReplicaSet(within(t), at, 3); err != nil || !slices.Equal(ids(infos), set) {
		t.Errorf("afterwards: %v, %v", infos, err)
	}
}

func TestRouteReplicaReachesAllAndTakesTheFirstGoodAnswer(t *testing.T) {
	var served atomic.Int32
	os := mesh(t, 5, nil)
	for _, o := range os {
		o.Close()
	}
	at := keyspace.Preimage("object")
	set := trueSet(os, at, 3)
	good := set[2]
	again := make([]*Overlay, len(os))
	for i, o := range os {
		again[i] = newOverlay(t, o.host, func(o *Overlay) {
			o.Handle("manager", func(r *Request) {
				served.Add(1)
				if r.Key != at.Key() {
					t.Errorf("key %s", r.Key)
				}
				if o.Self() == good {
					r.Reply([]byte("ordered"))
				} else {
					r.Fail(errors.New("not the leader"))
				}
			})
			o.Handle("none", func(r *Request) { r.Fail(errors.New("no")) })
		})
	}
	for _, o := range again {
		if err := o.WaitPeers(within(t), 4); err != nil {
			t.Fatal(err)
		}
	}
	for _, o := range again {
		served.Store(0)
		reply, err := o.RouteReplica(within(t), 3, at, "manager", []byte("WRITE"))
		if err != nil || string(reply) != "ordered" {
			t.Fatalf("%q, %v", reply, err)
		}
		eventually(t, "all three served it", func() bool { return served.Load() == 3 })
		var remote *RemoteError
		if _, err := o.RouteReplica(within(t), 3, at, "none", nil); !errors.As(err, &remote) {
			t.Errorf("nobody answers: %v", err)
		}
	}
}

func TestStrangersProtocolsAreNotOurs(t *testing.T) {
	os := mesh(t, 2, nil)
	other, err := New(newHost(t, 50), WithOverlayID([32]byte{9}), WithBootstrap(infoOf(os[0].host)))
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	eventually(t, "connected", func() bool { return len(os[0].host.Network().ConnsToPeer(other.Self())) > 0 })
	if _, err := other.Call(within(t), os[0].Self(), keyspace.Key{}, "echo", nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("a peer of another overlay: %v", err)
	}
	setIs(t, os[0], "k", trueSet(os, "k", 2))
	if infos, _ := os[0].ReplicaSet(within(t), "k", 5); len(infos) != 2 {
		t.Errorf("a set of %d", len(infos))
	}
}
