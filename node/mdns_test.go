package node

import (
	"slices"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"latchkey/node/config"
)

func TestNeighboursTakeWhatTheLocalNetworkSaysWithCare(t *testing.T) {
	h := hostOf(t, profile(t, config.Test, anyTCP), key(1), nil)
	var found []peer.AddrInfo
	n := &neighbours{host: h, found: func(p peer.AddrInfo) { found = append(found, p) }}
	loopback, lan := ma.StringCast("/ip4/127.0.0.1/tcp/1"), ma.StringCast("/ip4/192.168.0.1/tcp/1")
	other := randomPeer(t)
	for _, p := range []peer.AddrInfo{
		{ID: h.ID(), Addrs: []ma.Multiaddr{lan}},     // ourselves
		{ID: other},                                  // nowhere
		{ID: other, Addrs: []ma.Multiaddr{loopback}}, // on its own machine
		{ID: other, Addrs: []ma.Multiaddr{loopback, lan, ma.StringCast("/ip4/0.0.0.0/tcp/1")}},
	} {
		given := slices.Clone(p.Addrs)
		n.HandlePeerFound(p)
		if !slices.EqualFunc(p.Addrs, given, ma.Multiaddr.Equal) {
			t.Errorf("it changed the slice of its caller: %v", p.Addrs)
		}
	}
	if len(found) != 1 || found[0].ID != other || len(found[0].Addrs) != 1 || !found[0].Addrs[0].Equal(lan) {
		t.Errorf("found %v", found)
	}
}

func TestAHostOnTheLoopbackShowsItselfToNobody(t *testing.T) {
	n := &neighbours{host: hostOf(t, profile(t, config.Test, anyTCP), key(1), nil)}
	if addrs := n.addrs(); len(addrs) != 0 {
		t.Errorf("it would show %v", addrs)
	}
	if err := n.start(); err != nil {
		t.Fatal(err)
	}
	n.stop()
	n.stop()
}

func TestOverlaysHaveServiceNamesOfTheirOwn(t *testing.T) {
	a, b := mdnsName([32]byte{1}), mdnsName([32]byte{2})
	name, protocol, _ := strings.Cut(a, ".")
	if a == b || len(name) > 16 || !strings.HasPrefix(name, "_") || protocol != "_udp" {
		t.Errorf("%s and %s", a, b)
	}
}

func TestAWatcherThatWasStoppedDoesNotStart(t *testing.T) {
	h := hostOf(t, profile(t, config.Test, anyTCP), key(1), nil)
	var w watcher
	w.stop()
	if err := w.start(h, "test", nil, func(<-chan any) { t.Error("it runs") }); err != nil {
		t.Error(err)
	}
	w.stop()
}
