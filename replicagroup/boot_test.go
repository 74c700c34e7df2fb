package replicagroup

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/pb"
)

// An accusation is as good as who brings it forward.
func TestOnlyFellowsAreBelievedThatAStoreRunsTwice(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3, 1)
	p, fellow := w.peers[0], w.peers[1]
	stranger, err := peer.Decode("12D3KooWRMjeT3GuYch6bQJetZyFu6zcGc9bwcTz6VJWNV6wbbvU")
	if err != nil {
		t.Fatal(err)
	}
	p.groups.Accused(stranger)
	c := p.groups.NewClient()
	ctx := deadline(t, waitMax)
	if _, err := c.Do(ctx, keyspace.Preimage("k").Key(), "count", number(1)); err != nil || p.groups.Err() != nil {
		t.Fatalf("accused by a stranger: %v, %v", err, p.groups.Err())
	}
	for range 2 {
		p.groups.Accused(fellow.host.ID())
	}
	select {
	case <-p.groups.Done():
	case <-ctx.Done():
		t.Fatal("accused by a fellow, and it goes on")
	}
	err = p.groups.Err()
	for _, says := range []string{fellow.host.ID().String(), p.store.ID().String(), "--restored"} {
		if !errors.Is(err, ErrTwin) || !strings.Contains(err.Error(), says) {
			t.Errorf("it stops with %v, which is to say %q", err, says)
		}
	}
	other := fellow.groups.NewClient()
	if _, err := other.Do(ctx, keyspace.Preimage("k").Key(), "count", number(1)); err != nil {
		t.Errorf("the others: %v", err)
	}

	// A client has no store that could run twice.
	client, err := New(Config{Genesis: w.genesis, Overlay: told{must(dht.New(w.peers[2].host, dht.WithOverlayID(w.genesis.ID()))), new(testPeer)}})
	if err != nil {
		t.Fatal(err)
	}
	client.Accused(fellow.host.ID())
	if client.Err() != nil {
		t.Errorf("a client stops: %v", client.Err())
	}
	client.Close()
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// What is said in the name of a store that runs twice does not reach an engine, whoever is its peer's fellow.
func TestMessagesOfADistrustedStoreAreDropped(t *testing.T) {
	w := newWorld(t, 1, 0)
	from := w.peers[0].host.ID()
	bad, good := order.StoreID{1}, order.StoreID{2}
	h, err := New(Config{Genesis: w.genesis, Overlay: told{must(dht.New(w.peers[0].host, dht.WithOverlayID(w.genesis.ID()))), new(testPeer)},
		Store: NewMemoryStore(), Distrusts: func(p peer.ID, s order.StoreID) bool { return p == from && s == bad }})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	h.fellows.Store(&map[peer.ID]bool{from: true})
	g := w.genesis.RootGroup()
	for i, s := range []order.StoreID{bad, good, bad} {
		msg := appendEngineMessage(nil, g, 1, 2, s, order.StoreID{3}, []byte("x"))
		if err := h.handleEngine(&dht.Request{From: from, Data: msg}); err != nil {
			t.Fatal(err)
		}
		if n := h.Counters().StrayMessages; n != uint64(i/2+1) {
			t.Errorf("after %d messages %d were dropped", i+1, n)
		}
	}
	if !h.distrusted(from, bad) || h.distrusted(from, good) || h.distrusted("another", bad) {
		t.Error("the wrong ones are distrusted")
	}
	if w.peers[0].groups.distrusted(from, bad) {
		t.Error("a host that knows of no copies distrusts somebody")
	}
}

// A member's directory is copied and started beside it, and the copy goes on whatever it is told: the leader replaces the member.
func TestAMemberWhoseStoreRunsTwiceIsReplaced(t *testing.T) {
	t.Parallel()
	w := newPlannedWorld(t, 4, 1, 3)
	ctx := deadline(t, waitMax)
	key := keyspace.Preimage("twice").Key()
	prefix := w.genesis.PrefixOf(key)
	if _, err := w.peers[0].groups.NewClient().Do(ctx, key, "count", number(0)); err != nil {
		t.Fatal(err)
	}
	w.settled(t, ctx, keyspace.Prefix{}, "three voters", voters(3))
	victim, r := w.settled(t, ctx, prefix, "three voters", voters(3))
	client := w.peers[slices.IndexFunc(w.peers, func(p *testPeer) bool {
		m, ok := r.Status.View.MemberAt(p.overlay.Node())
		return !ok || m.Role == order.Learner
	})]
	l := w.load(t, key, 5*time.Millisecond, client)

	h, err := libp2p.New(libp2p.Identity(victim.host.Peerstore().PrivKey(victim.host.ID())), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"),
		libp2p.DisableRelay(), libp2p.DisableMetrics())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	boot := victim.boot()
	boot.Count, boot.Nonce = boot.Count+2, boot.Nonce^1
	var others []peer.AddrInfo
	for _, p := range w.others(victim) {
		others = append(others, peer.AddrInfo{ID: p.host.ID(), Addrs: p.host.Addrs()})
	}
	twin, err := dht.New(h, dht.WithOverlayID(w.genesis.ID()), dht.WithBoot(boot), dht.WithBootstrap(others...))
	if err != nil {
		t.Fatal(err)
	}
	defer twin.Close()
	if err := twin.Start(ctx); err != nil {
		t.Fatal(err)
	}
	talk, stop := context.WithCancel(ctx)
	var talking sync.WaitGroup
	defer talking.Wait()
	defer stop()
	talking.Go(func() {
		for pause(talk, 20*time.Millisecond) == nil {
			for _, p := range others {
				twin.Send(p.ID, keyspace.Key{}, serviceEngine, nil)
			}
		}
	})
	select {
	case <-victim.groups.Done():
	case <-ctx.Done():
		t.Fatal("one of two goes on")
	}
	if err := victim.groups.Err(); !errors.Is(err, ErrTwin) {
		t.Errorf("it stops with %v", err)
	}
	for _, p := range []keyspace.Prefix{{}, prefix} {
		_, r := w.settled(t, ctx, p, "three voters without it", without(3, victim))
		t.Log(showView(r.Status.View))
	}
	gap, slowest := l.reset()
	t.Logf("longest gap %v, slowest command %v", gap, slowest)
	l.end(ctx, key, client)
}

// A fellow that has heard both tells the others, who may have heard one only: they refuse as it does. Nobody else is believed, nor
// is anybody about strangers.
func TestFellowsTellEachOtherOfAStoreThatRunsTwice(t *testing.T) {
	t.Parallel()
	w := newFixedWorld(t, 4, 1)
	ctx := deadline(t, waitMax)
	witness, victim, third, outsider := w.peers[0], w.peers[1], w.peers[2], w.peers[3]
	distrusted := func(p *testPeer) bool { return p.groups.distrusted(victim.host.ID(), victim.store.ID()) }
	say := func(from, to, about *testPeer) {
		t.Helper()
		id := about.store.ID()
		msg := marshal(&pb.TwinNotice{Peer: []byte(about.host.ID()), Store: id[:]})
		if err := from.overlay.Send(to.host.ID(), keyspace.Key{}, serviceTwin, msg); err != nil {
			t.Fatal(err)
		}
	}
	say(outsider, third, victim)
	say(outsider, third, third)
	for third.groups.Counters().StrayMessages < 2 {
		if err := pause(ctx, time.Millisecond); err != nil {
			t.Fatal("a stranger's word is not counted as one")
		}
	}
	if distrusted(third) || third.groups.Err() != nil {
		t.Error("a stranger is believed")
	}
	say(witness, third, outsider)
	witness.overlay.Refuse(victim.host.ID(), victim.store.ID())
	for !distrusted(third) {
		if err := pause(ctx, time.Millisecond); err != nil {
			t.Fatal("the other fellow was not told")
		}
	}
	if third.groups.distrusted(outsider.host.ID(), outsider.store.ID()) {
		t.Error("believed about a stranger")
	}
	select {
	case <-victim.groups.Done():
	case <-ctx.Done():
		t.Fatal("the member itself goes on")
	}
	// One that was down hears of it when it is back.
	disk := third.kill()
	w.restart(t, third, disk)
	for !distrusted(third) {
		if err := pause(ctx, time.Millisecond); err != nil {
			t.Fatal("one that was down is not told")
		}
	}
}

func TestNoticesThatAreKeptAreBounded(t *testing.T) {
	w := newFixedWorld(t, 1, 0)
	h := w.peers[0].groups
	for i := range noticesMax + 1 {
		for range 2 {
			h.Distrusted("p", order.StoreID{1, byte(i)})
		}
	}
	if n := len(h.notices.list); n != noticesMax || h.notices.list[0].store[1] != 1 {
		t.Errorf("%d notices are kept, the first about %v", n, h.notices.list[0].store)
	}
}

// Who hears a store in two places may be of the root alone, and its fellows share groups with the store's peer that it does not.
func TestFellowsAreToldOfStrangersForAWhile(t *testing.T) {
	var n notices
	fellow, stranger := notice{peer: "fellow", store: order.StoreID{1}}, notice{peer: "stranger", store: order.StoreID{2}}
	n.list = []pending{{notice: fellow}, {notice: stranger}}
	fellows := map[peer.ID]bool{"fellow": true, "other": true}
	for i := range strangerNoticesMax {
		if got := n.due(fellows); !slices.Equal(got, []notice{fellow, stranger}) {
			t.Fatalf("time %d: told of %v", i, got)
		}
	}
	if got := n.due(fellows); !slices.Equal(got, []notice{fellow}) {
		t.Errorf("in the end: told of %v", got)
	}
	fellows["stranger"] = true
	if got := n.due(fellows); !slices.Equal(got, []notice{fellow, stranger}) {
		t.Errorf("it became a fellow: told of %v", got)
	}
}

func FuzzNotice(f *testing.F) {
	f.Add(marshal(&pb.TwinNotice{Peer: []byte("p"), Store: make([]byte, 16)}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := decodeNotice(b)
		if err != nil {
			return
		}
		if n.peer == "" || len(n.peer) > order.PeerIDBytesMax {
			t.Errorf("%x: peer %q", b, n.peer)
		}
		if again, err := decodeNotice(marshal(&pb.TwinNotice{Peer: []byte(n.peer), Store: n.store[:]})); err != nil || again != n {
			t.Errorf("%x: %+v, and then %+v, %v", b, n, again, err)
		}
	})
}

// Every handle on a memory store is another start of it.
func TestAMemoryStoreCountsItsStarts(t *testing.T) {
	s := NewMemoryStore()
	seen := map[uint64]bool{}
	for i := range uint64(5) {
		b := s.BootNonce()
		if b.Count != i+1 || b.Nonce == 0 || seen[b.Nonce] || b != s.BootNonce() {
			t.Errorf("start %d: %+v, and then %+v", i+1, b, s.BootNonce())
		}
		seen[b.Nonce] = true
		s = s.Detach()
	}
}
