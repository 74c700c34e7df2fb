package dht

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	ma "github.com/multiformats/go-multiaddr"
)

// deadPeer returns the address of nobody: a port that was free a moment ago.
func deadPeer(t *testing.T, seed uint64) peer.AddrInfo {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ma.StringCast(fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", l.Addr().(*net.TCPAddr).Port))
	l.Close()
	return peer.AddrInfo{ID: newHost(t, seed).ID(), Addrs: []ma.Multiaddr{addr}}
}

// silentPeer returns the address of somebody who accepts and says nothing.
func silentPeer(t *testing.T, seed uint64) peer.AddrInfo {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	addr := ma.StringCast(fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", l.Addr().(*net.TCPAddr).Port))
	return peer.AddrInfo{ID: newHost(t, seed).ID(), Addrs: []ma.Multiaddr{addr}}
}

func TestBootstrapTellsHowItWent(t *testing.T) {
	seed := newOverlay(t, newHost(t, 1), nil)
	dead := deadPeer(t, 2)
	began := time.Now()
	// The seed is named twice, as a configuration with two addresses of one peer does.
	o := newOverlay(t, newHost(t, 3), nil, WithBootstrap(dead, infoOf(seed.host), infoOf(seed.host)))
	eventually(t, "both attempts have ended", func() bool {
		all := o.Bootstrap()
		return len(all) == 2 && !all[0].At.IsZero() && !all[1].At.IsZero()
	})
	for _, p := range o.Bootstrap() {
		if failed := p.Err != nil; failed != (p.Info.ID == dead.ID) || p.At.Before(began) || len(p.Info.Addrs) != 1 {
			t.Errorf("%+v", p)
		}
	}
}

// The host asks a peer once for each connection what it speaks. One that was too busy to answer in time was connected from then on, and of
// no use: nobody dialled it again.
func TestAPeerThatWasTooBusyToSayWhatItSpeaksIsAskedAgain(t *testing.T) {
	t.Parallel()
	busy := newHost(t, 1)
	asked, over := make(chan struct{}, 16), make(chan struct{})
	busy.SetStreamHandler(identify.ID, func(s network.Stream) {
		asked <- struct{}{}
		<-over
		s.Reset()
	})
	newOverlay(t, newHost(t, 2), nil, WithBootstrap(infoOf(busy)))
	defer close(over)
	for range 2 {
		select {
		case <-asked:
		case <-within(t).Done():
			t.Fatal("it is not asked again")
		}
	}
}

func TestTheLongestWaitForABootstrapPeerIsTenSeconds(t *testing.T) {
	if wait := bootstrapMax*5/4 + dialTimeout; wait > 10*time.Second {
		t.Errorf("%v: the longest pause, drawn out, and a dial that began before the peer came up", wait)
	}
}

func TestASilentBootstrapPeerHoldsUpNobody(t *testing.T) {
	seed := newOverlay(t, newHost(t, 1), nil)
	o := newOverlay(t, newHost(t, 2), nil, WithBootstrap(silentPeer(t, 3), infoOf(seed.host)))
	began := time.Now()
	if err := o.WaitPeers(within(t), 1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it has looked itself up", func() bool { return o.Stats().SelfLookups > 0 })
	if d := time.Since(began); d > dialTimeout/2 {
		t.Errorf("in the overlay after %v, though one bootstrap peer was there at once", d)
	}
}

// dropAll closes o's connections, and back returns when it is connected to n nodes again and knows them.
func dropAll(o *Overlay) {
	for _, p := range o.host.Network().Peers() {
		o.host.Network().ClosePeer(p)
	}
}

func back(t *testing.T, o *Overlay, n int, what string) {
	t.Helper()
	eventually(t, what, func() bool {
		return len(o.host.Network().Peers()) == n && o.kad.RoutingTable().Size() == n
	})
}

func TestANodeThatLostEverybodyBootstrapsAgain(t *testing.T) {
	os := mesh(t, 3, nil)
	o, seed := os[2], os[0]
	selfLookups := o.Stats().SelfLookups
	dropAll(o)
	back(t, o, 2, "back after all connections died")
	eventually(t, "it looks around again", func() bool { return o.Stats().SelfLookups > selfLookups })

	// The table alone is lost, the connections live.
	for _, p := range o.kad.RoutingTable().ListPeers() {
		o.kad.RoutingTable().RemovePeer(p)
	}
	back(t, o, 2, "back after the routing table was emptied")

	// The only peer it was told of has gone for good, so others that it has met must do.
	seed.Close()
	seed.host.Close()
	eventually(t, "the seed is forgotten", func() bool { return o.kad.RoutingTable().Size() == 1 })
	dropAll(o)
	back(t, o, 1, "back after all connections died and the seed is gone")
}

func TestIslandsFindEachOtherByThePeerTheyWereToldOf(t *testing.T) {
	seedHost := newHost(t, 1)
	info := infoOf(seedHost)
	seedHost.Close()
	// Two who find each other while the seed is away.
	a := newOverlay(t, newHost(t, 2), nil, WithBootstrap(info))
	b := newOverlay(t, newHost(t, 3), nil, WithBootstrap(info, infoOf(a.host)))
	a.Discovered(infoOf(b.host))
	for _, o := range []*Overlay{a, b} {
		if err := o.WaitPeers(within(t), 1); err != nil {
			t.Fatal(err)
		}
	}
	seed := newOverlay(t, newHostAt(t, 1, info.Addrs[0].String()), nil)
	if seed.kad.RoutingTable().Size() != 0 {
		t.Fatal("the seed is in the island already")
	}
	a.boot.mu.Lock()
	a.boot.checked = time.Now().Add(-islandInterval) // as if it had been a minute ago
	a.boot.mu.Unlock()
	a.changed()
	for _, o := range []*Overlay{a, b, seed} {
		if err := o.WaitPeers(within(t), 2); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPeersOfAFormerLifeAreRemembered(t *testing.T) {
	a := newOverlay(t, newHost(t, 1), nil)
	a.Remember(peer.AddrInfo{})
	a.Remember(infoOf(a.host))                  // oneself
	a.Remember(peer.AddrInfo{ID: peer.ID("b")}) // nowhere
	if n := len(a.boot.seen.entries); n != 0 {
		t.Errorf("%d peers remembered", n)
	}
	for i := range uint64(seenMax + 8) {
		a.Remember(peer.AddrInfo{ID: nobody(i), Addrs: a.host.Addrs()})
	}
	if n := len(a.boot.seen.entries); n != seenMax {
		t.Errorf("%d peers remembered, at most %d may be", n, seenMax)
	}
	b := newOverlay(t, newHost(t, 2), nil)
	c, err := New(newHost(t, 3), WithOverlayID(testOverlay))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Remember(infoOf(b.host))
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitPeers(within(t), 1); err != nil {
		t.Fatal(err)
	}
	if told := c.Bootstrap(); len(told) != 0 {
		t.Errorf("told of %v", told)
	}
}
