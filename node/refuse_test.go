package node

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
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

// strangeHost is connected to strangers alone, whose connections take their time to close.
type strangeHost struct {
	host.Host
	network network.Network
	book    peerstore.Peerstore
	mu      sync.Mutex
	peers   map[peer.ID]bool
	now     int // being closed
	most    int // at once, ever
	takes   time.Duration
}

type (
	strangeNetwork struct {
		network.Network
		host *strangeHost
	}
	strangeBook struct{ peerstore.Peerstore }
)

func (h *strangeHost) Network() network.Network       { return h.network }
func (h *strangeHost) Peerstore() peerstore.Peerstore { return h.book }

func (strangeBook) GetProtocols(peer.ID) ([]protocol.ID, error) {
	return []protocol.ID{"/latchkey/other/control/1.0.0"}, nil
}

func (n strangeNetwork) Peers() []peer.ID {
	n.host.mu.Lock()
	defer n.host.mu.Unlock()
	return slices.Collect(maps.Keys(n.host.peers))
}

func (n strangeNetwork) ConnsToPeer(p peer.ID) []network.Conn {
	return []network.Conn{&strangeConn{host: n.host, peer: p}}
}

type strangeConn struct {
	network.Conn
	host *strangeHost
	peer peer.ID
}

func (c *strangeConn) CloseWithError(network.ConnErrorCode) error {
	h := c.host
	h.mu.Lock()
	h.now++
	h.most = max(h.most, h.now)
	h.mu.Unlock()
	time.Sleep(h.takes)
	h.mu.Lock()
	h.now--
	delete(h.peers, c.peer)
	h.mu.Unlock()
	return nil
}

func TestStrangersThatTakeLongToCloseHoldUpNobody(t *testing.T) {
	for _, closes := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			const n = 3 * strangersMax
			h := &strangeHost{peers: make(map[peer.ID]bool), takes: 100 * time.Millisecond}
			h.network, h.book = strangeNetwork{host: h}, strangeBook{}
			s := &strangers{host: h, control: "/latchkey/ours/control/1.0.0", prefix: "/latchkey/ours/", refusals: new(Refusals), close: closes}
			events, done := make(chan any), make(chan struct{})
			go func() { defer close(done); s.run(events) }()
			began := time.Now()
			for i := range n {
				p := peer.ID(strconv.Itoa(i))
				h.mu.Lock()
				h.peers[p] = true
				h.mu.Unlock()
				events <- event.EvtPeerIdentificationCompleted{Peer: p}
				if i%32 == 31 {
					time.Sleep(strangerGrace / 4) // so that some are being closed while others come
				}
			}
			if d := time.Since(began); d > n/32*strangerGrace/4 {
				t.Errorf("closes %v: it took %v to take note of them, and nothing but the test's own pauses was due", closes, d)
			}
			time.Sleep(time.Minute)
			if got := s.refusals.Counts()[RefusedOverlay]; got != n {
				t.Errorf("closes %v: %d of %d counted", closes, got, n)
			}
			left := len(h.network.Peers())
			if closes && (left != 0 || h.most < 2 || h.most > closesMax) || !closes && (left != n || h.most != 0) {
				t.Errorf("closes %v: %d of %d are left; closed %d at once, %d may be", closes, left, n, h.most, closesMax)
			}
			close(events)
			<-done
		})
	}
}
