package dht

import (
	"fmt"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
)

// nobody returns the id of a peer that does not exist.
func nobody(i uint64) peer.ID { return peer.ID(fmt.Sprintf("nobody %d", i)) }

func (f *finds) counts() (remembered, dials int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.all), f.dials
}

func (b *bootstrap) remembers(p peer.ID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.seen.entries[p]
	return ok
}

// Somebody without any key tells, all the time, of peers that do not exist, at an address that takes connections and says nothing.
func TestAFloodOfFindsKeepsNobodyFromThePeersItWasToldOf(t *testing.T) {
	seed, met := newOverlay(t, newHost(t, 1), nil), newOverlay(t, newHost(t, 2), nil)
	o := newOverlay(t, newHost(t, 3), nil)
	addrs, told := silentPeer(t, 4).Addrs, uint64(0)
	flood := func(n int) {
		for range n {
			told++
			o.Discovered(peer.AddrInfo{ID: nobody(told), Addrs: addrs})
		}
		if remembered, dials := o.finds.counts(); remembered > foundMax || dials > foundDialsMax {
			t.Fatalf("%d finds remembered, %d dialled at once", remembered, dials)
		}
	}
	flood(1000)
	if remembered, dials := o.finds.counts(); remembered != foundMax || dials != foundDialsMax {
		t.Fatalf("the flood is none: %d finds remembered, %d dialled", remembered, dials)
	}
	o.Remember(infoOf(met.host))
	flood(1000)
	if !o.boot.remembers(met.Self()) {
		t.Error("a peer that was met is forgotten for others that were not")
	}
	o.boot.mu.Lock()
	o.boot.peers = append(o.boot.peers, BootstrapPeer{Info: infoOf(seed.host)}) // as if it were told of now
	o.boot.mu.Unlock()
	o.dialAll()
	eventually(t, "it is connected to both", func() bool {
		flood(10)
		return o.host.Network().Connectedness(seed.Self()) == network.Connected && o.host.Network().Connectedness(met.Self()) == network.Connected
	})
	if err := o.WaitPeers(within(t), 2); err != nil {
		t.Error(err)
	}
}

func TestWrongAddressesOfABootstrapPeerDoNotStandInItsWay(t *testing.T) {
	seed, o := newOverlay(t, newHost(t, 1), nil), newOverlay(t, newHost(t, 2), nil)
	var wrong []ma.Multiaddr
	for i := range uint64(learnAddrsMax) {
		wrong = append(wrong, silentPeer(t, 10+i).Addrs...)
	}
	o.Discovered(peer.AddrInfo{ID: seed.Self(), Addrs: wrong})
	eventually(t, "it is dialled there", func() bool { return len(o.host.Peerstore().Addrs(seed.Self())) > 0 })
	if n := len(o.host.Peerstore().Addrs(seed.Self())); n > foundAddrsMax || foundAddrsMax >= swarm.DefaultPerPeerRateLimit {
		t.Errorf("dialled at %d addresses, at most %d; libp2p dials %d of a peer at once", n, foundAddrsMax, swarm.DefaultPerPeerRateLimit)
	}
	o.dial(infoOf(seed.host))
	eventually(t, "it is connected", func() bool { return o.host.Network().Connectedness(seed.Self()) == network.Connected })
}

func TestAFindThatDoesNotAnswerLeavesNothingInTheAddressBook(t *testing.T) {
	o, dead := newOverlay(t, newHost(t, 1), nil), deadPeer(t, 2)
	own := ma.StringCast("/ip4/127.0.0.1/tcp/1")
	o.Learn(peer.AddrInfo{ID: dead.ID, Addrs: []ma.Multiaddr{own}})
	o.finds.add(peer.AddrInfo{ID: dead.ID, Addrs: append(dead.Addrs, own)})
	p, ok := o.finds.next()
	if !ok {
		t.Fatal("it is not to be dialled")
	}
	o.dialFind(p)
	if addrs := o.host.Peerstore().Addrs(dead.ID); len(addrs) != 1 || !addrs[0].Equal(own) {
		t.Errorf("%v", addrs)
	}
	if remembered, dials := o.finds.counts(); remembered != 1 || dials != 0 {
		t.Errorf("%d finds remembered, %d dialled", remembered, dials)
	}
}

func TestOnlyAFindOfTheOverlayIsRememberedAsMet(t *testing.T) {
	o, friend, tool := newOverlay(t, newHost(t, 1), nil), newOverlay(t, newHost(t, 2), nil), newHost(t, 3)
	o.Discovered(peer.AddrInfo{})
	o.Discovered(infoOf(o.host))                   // oneself
	o.Discovered(peer.AddrInfo{ID: friend.Self()}) // nowhere
	if remembered, _ := o.finds.counts(); remembered != 0 {
		t.Errorf("%d finds remembered", remembered)
	}
	dead := deadPeer(t, 4)
	for _, p := range []peer.AddrInfo{infoOf(tool), dead, infoOf(friend.host)} {
		o.Discovered(p)
	}
	for _, o := range []*Overlay{o, friend} {
		if err := o.WaitPeers(within(t), 1); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the dials are over", func() bool { _, dials := o.finds.counts(); return dials == 0 })
	if !o.boot.remembers(friend.Self()) || o.boot.remembers(tool.ID()) || o.boot.remembers(dead.ID) {
		t.Error("somebody is remembered as met who was not, or the other way round")
	}
	if remembered, _ := o.finds.counts(); remembered != 1 {
		t.Errorf("%d finds remembered, and one of them was not reached", remembered)
	}
	o.Discovered(infoOf(friend.host))
	if remembered, _ := o.finds.counts(); remembered != 1 {
		t.Error("who is connected is to be dialled")
	}
}

func TestAFindIsDialledAgainWhileNobodyIsKnown(t *testing.T) {
	o, h := newOverlay(t, newHost(t, 1), nil), newHost(t, 2)
	info := infoOf(h)
	h.Close()
	o.Discovered(info)
	eventually(t, "the first dial has failed", func() bool { n, dials := o.finds.counts(); return n == 1 && dials == 0 })
	newOverlay(t, newHostAt(t, 2, info.Addrs[0].String()), nil)
	if err := o.WaitPeers(within(t), 1); err != nil {
		t.Error(err)
	}
}
