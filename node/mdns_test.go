package node

import (
	"slices"
	"strings"
	"testing"
	"time"

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

func TestOnlyLiteralAddressesAreTakenFromTheLocalNetwork(t *testing.T) {
	relay := "/p2p/" + randomPeer(t).String() + "/p2p-circuit"
	for addr, want := range map[string]bool{
		"/ip4/192.168.0.1/tcp/1":          true,
		"/ip4/192.168.0.1/udp/1/quic-v1":  true,
		"/ip6/fd00::1/tcp/1":              true,
		"/dns4/somewhere.local/tcp/1":     false,
		"/dns/example.org/tcp/1":          false,
		"/dnsaddr/example.org":            false,
		"/ip4/192.168.0.1/tcp/1" + relay:  false,
		"/ip4/127.0.0.1/tcp/1":            false,
		"/ip6/::1/tcp/1":                  false,
		"/ip6/::ffff:127.0.0.1/tcp/1":     false,
		"/ip4/0.0.0.0/tcp/1":              false,
		"/ip4/239.1.2.3/udp/1/quic-v1":    false,
		"/ip6zone/eth0/ip6/fe80::1/tcp/1": false,
		"/p2p/" + randomPeer(t).String():  false,
		"/unix/" + "%2Ftmp%2Fsocket/ws":   false,
	} {
		a, err := ma.NewMultiaddr(addr)
		if err != nil {
			t.Fatal(err)
		}
		if got := nearby(a); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
	if nearby(nil) {
		t.Error("no address at all")
	}
}

func TestFindsAreBoundedInTime(t *testing.T) {
	h := hostOf(t, profile(t, config.Test, anyTCP), key(1), nil)
	found := 0
	n := &neighbours{host: h, found: func(peer.AddrInfo) { found++ }}
	n.rate.at = time.Now().Add(time.Hour) // nothing is added meanwhile
	p := peer.AddrInfo{ID: randomPeer(t), Addrs: []ma.Multiaddr{ma.StringCast("/ip4/192.168.0.1/tcp/1")}}
	for range 10 * findsBurst {
		n.HandlePeerFound(p)
	}
	if found != findsBurst {
		t.Errorf("%d of a flood were taken, %d may be", found, findsBurst)
	}
	var r findRate
	now, taken := time.Unix(1, 0), 0
	for range 10_000 { // a hundred seconds
		if r.allows(now) {
			taken++
		}
		now = now.Add(10 * time.Millisecond)
	}
	if most := findsBurst + 100*findsPerSecond; taken > most || taken < most-1 {
		t.Errorf("%d taken in a hundred seconds, %d may be", taken, most)
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
