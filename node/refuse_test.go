package node

import (
	"context"
	"errors"
	"io"
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
	t.Parallel()
	test := profile(t, config.Test, anyTCP)
	var r Refusals
	n := soleNode(t, hostOf(t, test, key(1), &r), WithRefusals(&r))
	other := soleNode(t, hostOf(t, test, key(1), nil)) // on an application's host
	if err := other.host.Connect(within(t, waitMax), info(n.host)); err != nil {
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
		if err := tool.Connect(within(t, waitMax), info(h)); err != nil {
			t.Fatal(err)
		}
	}
	if err := third.host.Connect(within(t, waitMax), info(other.host)); err != nil {
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
	if err := later.Connect(within(t, waitMax), info(n.host)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is counted and sent away", func() bool {
		return n.Refused()[RefusedVersion] == 1 && !connected(n.host, later)
	})
}

// outdated is a host that knows of one peer what that peer said at first, and never learns better.
type outdated struct {
	host.Host
	peer  peer.ID
	first []protocol.ID
}

type outdatedBook struct {
	peerstore.Peerstore
	host outdated
}

func (h outdated) Peerstore() peerstore.Peerstore { return outdatedBook{h.Host.Peerstore(), h} }

func (h outdated) NewStream(ctx context.Context, p peer.ID, ids ...protocol.ID) (network.Stream, error) {
	if p == h.peer { // else the host would not ask
		if err := h.Host.Peerstore().SetProtocols(p, h.first...); err != nil {
			return nil, err
		}
	}
	return h.Host.NewStream(ctx, p, ids...)
}

func (b outdatedBook) GetProtocols(p peer.ID) ([]protocol.ID, error) {
	if p == b.host.peer {
		return b.host.first, nil
	}
	return b.Peerstore.GetProtocols(p)
}

// libp2p may take what a peer said first for what it said last: the two come on streams of their own.
func TestAPeerThatIsStartingIsNotRefused(t *testing.T) {
	t.Parallel()
	test := profile(t, config.Test, anyTCP)
	var r Refusals
	h, starting := hostOf(t, test, key(1), &r), hostOf(t, test, key(1), nil)
	s := &strangers{
		host:     outdated{h, starting.ID(), []protocol.ID{"/latchkey/ours/kad/1.0.0"}},
		control:  "/latchkey/ours/control/1.0.0",
		prefix:   "/latchkey/ours/",
		refusals: &r,
		close:    true,
	}
	asked := make(chan struct{}, 1)
	starting.SetStreamHandler(s.control, func(s network.Stream) {
		io.Copy(io.Discard, s) // as a peer that waits for a hello; a reset at once could overtake the answer
		select {
		case asked <- struct{}{}:
		default:
		}
	})
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	defer s.stop()
	if err := starting.Connect(within(t, waitMax), info(h)); err != nil {
		t.Fatal(err)
	}
	select {
	case <-asked:
	case <-time.After(waitMax):
		t.Fatal("it was not asked")
	}
	other := soleNode(t, hostOf(t, test, key(1), nil))
	if err := other.host.Connect(within(t, waitMax), info(h)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another overlay's peer is sent away", func() bool { return !connected(h, other.host) })
	s.stop()
	if got := r.Counts(); !connected(h, starting) || len(got) != 1 || got[RefusedOverlay] != 1 {
		t.Errorf("connected %v, refused %v", connected(h, starting), got)
	}
}

func TestPeersAreAskedBeforeTheyAreRefused(t *testing.T) {
	const ours, kad, control = "/latchkey/ours/", "/latchkey/ours/kad/1.0.0", "/latchkey/ours/control/1.0.0"
	refusals := new(Refusals)
	for name, c := range map[string]struct {
		says   []protocol.ID // when it is met
		later  []protocol.ID // strangerGrace/2 later
		answer func(context.Context) error
		want   Refusal
		after  time.Duration
	}{
		"it opens our protocol soon":         {[]protocol.ID{kad}, []protocol.ID{kad, control}, nil, "", 0},
		"it speaks it and we do not know":    {[]protocol.ID{kad}, nil, func(context.Context) error { return nil }, "", 0},
		"it says so while it is being asked": {[]protocol.ID{kad}, nil, answersLater, "", 0},
		"it does not speak it":               {[]protocol.ID{kad}, nil, answersNo, RefusedVersion, strangerGrace},
		"it is of another overlay":           {[]protocol.ID{"/latchkey/other/kad/1.0.0"}, nil, answersNo, RefusedOverlay, strangerGrace},
		"it gives no answer":                 {[]protocol.ID{kad}, nil, answersNever, RefusedVersion, strangerGrace + askTimeout},
	} {
		synctest.Test(t, func(t *testing.T) {
			*refusals = Refusals{}
			h := &strangeHost{peers: map[peer.ID]bool{"p": true}, says: c.says}
			h.network, h.book = strangeNetwork{host: h}, strangeBook{host: h}
			h.answer = func(ctx context.Context) error {
				err := c.answer(ctx)
				if err == errLater {
					h.say([]protocol.ID{kad, control})
				}
				return err
			}
			s := &strangers{host: h, control: control, prefix: ours, refusals: refusals, close: true}
			events, done := make(chan any), make(chan struct{})
			go func() { defer close(done); s.run(events) }()
			events <- event.EvtPeerIdentificationCompleted{Peer: "p"}
			time.Sleep(strangerGrace / 2)
			if c.later != nil {
				h.say(c.later)
			}
			time.Sleep(c.after - strangerGrace/2 - 1)
			events <- event.EvtPeerProtocolsUpdated{Peer: "p"} // is not met twice
			synctest.Wait()
			if got := refusals.Counts(); len(got) != 0 {
				t.Errorf("%s: refused %v too soon", name, got)
			}
			time.Sleep(2 * time.Nanosecond)
			synctest.Wait()
			if got := refusals.Counts(); c.want != "" && (len(got) != 1 || got[c.want] != 1 || len(h.network.Peers()) != 0) {
				t.Errorf("%s: refused %v, want %v; left %v", name, got, c.want, h.network.Peers())
			}
			time.Sleep(time.Minute)
			if got := refusals.Counts(); c.want == "" && (len(got) != 0 || len(h.network.Peers()) != 1) || c.want != "" && got[c.want] != 1 {
				t.Errorf("%s: refused %v, want %v; left %v", name, got, c.want, h.network.Peers())
			}
			close(events)
			<-done
		})
	}
}

var errLater = errors.New("not yet")

func answersNo(context.Context) error    { return errors.New("not supported") }
func answersLater(context.Context) error { return errLater }
func answersNever(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// Who is being asked when the node closes is not refused.
func TestNobodyIsRefusedWhileANodeCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &strangeHost{peers: map[peer.ID]bool{"p": true}, says: []protocol.ID{"/latchkey/other/kad/1.0.0"}, answer: answersNever}
		h.network, h.book = strangeNetwork{host: h}, strangeBook{host: h}
		s := &strangers{host: h, control: "/latchkey/ours/control/1.0.0", prefix: "/latchkey/ours/", refusals: new(Refusals), close: true}
		events, done := make(chan any), make(chan struct{})
		go func() { defer close(done); s.run(events) }()
		events <- event.EvtPeerIdentificationCompleted{Peer: "p"}
		time.Sleep(strangerGrace + askTimeout/2)
		began := time.Now()
		close(events)
		<-done
		if got := s.refusals.Counts(); len(got) != 0 || time.Since(began) != 0 {
			t.Errorf("refused %v, closed after %v", got, time.Since(began))
		}
	})
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
	if err := other.Connect(within(t, waitMax), peer.AddrInfo{ID: randomPeer(t), Addrs: h.Addrs()}); err == nil {
		t.Fatal("it took one peer for another")
	}
	eventually(t, "it is counted", func() bool { return r.Counts()[RefusedHandshake] == 1 })
	if err := other.Connect(within(t, waitMax), info(h)); err != nil {
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
	says    []protocol.ID
	answer  func(context.Context) error // to the question whether they speak our protocol
}

type (
	strangeNetwork struct {
		network.Network
		host *strangeHost
	}
	strangeBook struct {
		peerstore.Peerstore
		host *strangeHost
	}
	strangeStream struct{ network.Stream }
)

func (strangeStream) Reset() error { return nil }

func (h *strangeHost) NewStream(ctx context.Context, _ peer.ID, _ ...protocol.ID) (network.Stream, error) {
	return strangeStream{}, h.answer(ctx)
}

func (h *strangeHost) say(ids []protocol.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.says = ids
}

func (h *strangeHost) Network() network.Network       { return h.network }
func (h *strangeHost) Peerstore() peerstore.Peerstore { return h.book }

func (b strangeBook) GetProtocols(peer.ID) ([]protocol.ID, error) {
	b.host.mu.Lock()
	defer b.host.mu.Unlock()
	return b.host.says, nil
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
			h := &strangeHost{
				peers: make(map[peer.ID]bool), takes: 100 * time.Millisecond,
				says: []protocol.ID{"/latchkey/other/control/1.0.0"}, answer: answersNo,
			}
			h.network, h.book = strangeNetwork{host: h}, strangeBook{host: h}
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
