package node

import (
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"

	"latchkey/node/config"
)

// soleNode starts the founder of an overlay of its own.
func soleNode(t *testing.T, h host.Host, opts ...Option) *Node {
	t.Helper()
	g, store, err := Found(h, FoundOptions{Name: t.Name()})
	if err != nil {
		t.Fatal(err)
	}
	n, err := New(h, append([]Option{WithOverlay(g), WithStore(store)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return n
}

func connected(a, b host.Host) bool { return a.Network().Connectedness(b.ID()) == network.Connected }

func TestPeersOfAnotherOverlayAreCountedAndSentAway(t *testing.T) {
	test := profile(t, config.Test, anyTCP)
	var r Refusals
	n := soleNode(t, hostOf(t, test, key(1), &r), WithRefusals(&r))
	other := soleNode(t, hostOf(t, test, key(1), nil)) // on an application's host
	if err := other.host.Connect(within(t, 10*time.Second), info(n.host)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is counted and sent away", func() bool {
		return n.Refused()[RefusedOverlay] == 1 && !connected(n.host, other.host)
	})
	eventually(t, "the other one counts us", func() bool { return other.Refused()[RefusedOverlay] == 1 })
	if got := n.Overlay().DHT().RoutingTable().Size(); got != 0 {
		t.Errorf("%d peers in the routing table", got)
	}

	// Neither who speaks no latchkey is sent away, nor anybody by a node on an application's host.
	tool := hostOf(t, test, key(1), nil)
	third := soleNode(t, hostOf(t, test, key(1), nil))
	for _, h := range []host.Host{n.host, other.host} {
		if err := tool.Connect(within(t, 10*time.Second), info(h)); err != nil {
			t.Fatal(err)
		}
	}
	if err := third.host.Connect(within(t, 10*time.Second), info(other.host)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the third is counted", func() bool { return other.Refused()[RefusedOverlay] == 2 })
	if !connected(other.host, third.host) || !connected(other.host, tool) || !connected(n.host, tool) {
		t.Error("somebody was sent away who was not to be")
	}
}

func TestPeersOfAnotherVersionAreCounted(t *testing.T) {
	test := profile(t, config.Test, anyTCP)
	var r Refusals
	n := soleNode(t, hostOf(t, test, key(1), &r), WithRefusals(&r))
	later := hostOf(t, test, key(1), nil)
	id := strings.Replace(string(n.strangers.control), "1.0.0", "9.0.0", 1)
	later.SetStreamHandler(protocol.ID(id), func(s network.Stream) { s.Reset() })
	if err := later.Connect(within(t, 10*time.Second), info(n.host)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is counted and sent away", func() bool {
		return n.Refused()[RefusedVersion] == 1 && !connected(n.host, later)
	})
}

func TestAPeerThatIsStartingIsNotRefused(t *testing.T) {
	test := profile(t, config.Test, anyTCP)
	var r Refusals
	n := soleNode(t, hostOf(t, test, key(1), &r), WithRefusals(&r))
	starting := hostOf(t, test, key(1), nil)
	starting.SetStreamHandler(protocol.ID(n.strangers.prefix+"kad/1.0.0"), func(s network.Stream) { s.Reset() })
	if err := starting.Connect(within(t, 10*time.Second), info(n.host)); err != nil {
		t.Fatal(err)
	}
	starting.SetStreamHandler(n.strangers.control, func(s network.Stream) { s.Reset() })
	// Another overlay's peer comes after it, so by the time that one is sent away, this one has been judged.
	other := soleNode(t, hostOf(t, test, key(1), nil))
	if err := other.host.Connect(within(t, 10*time.Second), info(n.host)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other is sent away", func() bool { return !connected(n.host, other.host) })
	if got := n.Refused(); !connected(n.host, starting) || len(got) != 1 || got[RefusedOverlay] != 1 {
		t.Errorf("connected %v, refused %v", connected(n.host, starting), got)
	}
}

func TestAnInboundConnectionIsCountedByItsEnd(t *testing.T) {
	var r Refusals
	inner, err := newResourceManager(profile(t, config.Private).Network)
	if err != nil {
		t.Fatal(err)
	}
	m := r.watch(inner)
	defer m.Close()
	at := ma.StringCast("/ip4/8.8.8.8/tcp/1")
	open := func(dir network.Direction) network.ConnManagementScope {
		s, err := m.OpenConnection(dir, true, at)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	expect := func(what string, handshake, limits uint64) {
		t.Helper()
		if got := r.Counts(); got[RefusedHandshake] != handshake || got[RefusedLimits] != limits {
			t.Errorf("%s: %v", what, got)
		}
	}
	open(network.DirOutbound).Done()
	expect("one of ours", 0, 0)
	known := open(network.DirInbound)
	if err := known.SetPeer(randomPeer(t)); err != nil {
		t.Fatal(err)
	}
	known.Done()
	expect("somebody known", 0, 0)
	unknown := open(network.DirInbound)
	expect("somebody who has not said who it is yet", 0, 0)
	unknown.Done()
	unknown.Done() // libp2p ends some twice
	expect("and never did", 1, 0)
	for range connsPerIPMax {
		if s, err := m.OpenConnection(network.DirInbound, true, at); err == nil {
			defer s.Done()
		}
	}
	if _, err := m.OpenConnection(network.DirInbound, true, at); err == nil {
		t.Fatal("no limit was reached")
	}
	if got := r.Counts(); got[RefusedHandshake] != 1 || got[RefusedLimits] == 0 {
		t.Errorf("beyond the limits: %v", got)
	}
}

func TestAHandshakeThatFailsOverQUICIsCounted(t *testing.T) {
	var r Refusals
	public := profile(t, config.Public, anyQUIC)
	h, other := hostOf(t, public, nil, &r), hostOf(t, public, nil, nil)
	// Whoever expects another peer hangs up before it says who it is.
	if err := other.Connect(within(t, 10*time.Second), peer.AddrInfo{ID: randomPeer(t), Addrs: h.Addrs()}); err == nil {
		t.Fatal("it took one peer for another")
	}
	eventually(t, "it is counted", func() bool { return r.Counts()[RefusedHandshake] == 1 })
	if err := other.Connect(within(t, 10*time.Second), info(h)); err != nil {
		t.Error(err)
	}
	other.Close()
	eventually(t, "it has left", func() bool { return len(h.Network().Peers()) == 0 })
	if got := r.Counts(); len(got) != 1 || got[RefusedHandshake] != 1 {
		t.Errorf("in the end: %v", got)
	}
}
