package node

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"latchkey/lockservice"
	"latchkey/node/config"
)

func profile(t *testing.T, p config.Profile, listen ...string) config.Config {
	t.Helper()
	c, err := config.Default(p)
	if err != nil {
		t.Fatal(err)
	}
	c.Network.Listen = listen
	return c
}

func newKey(t *testing.T) crypto.PrivKey {
	t.Helper()
	k, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// hostOf returns a host as a daemon has it.
func hostOf(t *testing.T, c config.Config, psk pnet.PSK, r *Refusals, before ...libp2p.Option) host.Host {
	t.Helper()
	opts, err := HostOptions(c, newKey(t), psk, r)
	if err != nil {
		t.Fatal(err)
	}
	h, err := libp2p.New(append(before, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func info(h host.Host) peer.AddrInfo { return peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()} }

// eventually waits until ok holds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(waitMax); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", waitMax, what)
		}
	}
}

const (
	anyTCP  = "/ip4/127.0.0.1/tcp/0"
	anyWS   = "/ip4/127.0.0.1/tcp/0/ws"
	anyQUIC = "/ip4/127.0.0.1/udp/0/quic-v1"
)

func key(b byte) pnet.PSK { return slices.Repeat(pnet.PSK{b}, 32) }

func TestOnlyTheSwarmKeyOpensADoorAndTheRestIsCounted(t *testing.T) {
	t.Parallel()
	for _, listen := range []string{anyTCP, anyWS} {
		var r Refusals
		h := hostOf(t, profile(t, config.Private, listen), key(1), &r)
		friend := hostOf(t, profile(t, config.Private, anyTCP, anyWS), key(1), nil)
		if err := friend.Connect(within(t, waitMax), info(h)); err != nil {
			t.Fatalf("%s: with the key: %v", listen, err)
		}
		leaver := hostOf(t, profile(t, config.Private, anyTCP, anyWS), key(1), nil)
		if err := leaver.Connect(within(t, waitMax), info(h)); err != nil {
			t.Fatal(err)
		}
		leaver.Close()
		eventually(t, "it has left", func() bool { return len(h.Network().Peers()) == 1 })
		if got := r.Counts(); len(got) != 0 {
			t.Errorf("%s: a friend was counted: %v", listen, got)
		}

		strangers := map[string]host.Host{
			"another key": hostOf(t, profile(t, config.Private, anyTCP), key(2), nil),
			"no key":      hostOf(t, profile(t, config.Public, anyTCP, anyWS), nil, nil),
		}
		want := uint64(0)
		for name, s := range strangers {
			// What each takes the other's bytes for may be the length of something long, so both may wait for more.
			if err := s.Connect(within(t, time.Second), info(h)); err == nil {
				t.Errorf("%s: %s got in", listen, name)
			}
			want++
			eventually(t, name+" is counted", func() bool { return r.Counts()[RefusedHandshake] == want })
		}

		if listen != anyTCP {
			continue // the web server answers garbage by itself
		}
		_, at, err := manet.DialArgs(h.Addrs()[0])
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(conn, strings.Repeat("garbage\n", 200))
		io.Copy(io.Discard, conn) // until the other side hangs up
		conn.Close()
		eventually(t, "garbage is counted", func() bool { return r.Counts()[RefusedHandshake] == want+1 })
		if n := len(h.Network().Peers()); n != 1 {
			t.Errorf("%s: %d peers", listen, n)
		}
	}
}

func TestHostsSpeakWhatTheirOverlayCan(t *testing.T) {
	for _, c := range []struct {
		listen string
		psk    pnet.PSK
		ok     bool
	}{
		{anyTCP, key(1), true}, {anyWS, key(1), true}, {anyQUIC, key(1), false},
		{anyTCP, nil, true}, {anyWS, nil, true}, {anyQUIC, nil, true},
		{"/ip4/127.0.0.1/udp/0/quic-v1/webtransport", nil, false}, {"/ip4/127.0.0.1/udp/0/webrtc-direct", nil, false},
	} {
		_, err := HostOptions(profile(t, config.Public, c.listen), newKey(t), c.psk, nil)
		if c.ok != (err == nil) || !c.ok && (!errors.Is(err, ErrTransport) || !strings.Contains(err.Error(), c.listen)) {
			t.Errorf("%s with key %v: %v", c.listen, c.psk != nil, err)
		}
	}
	bad := profile(t, config.Private, anyTCP)
	bad.Network.Announce = []string{"nowhere"}
	if _, err := HostOptions(bad, newKey(t), nil, nil); err == nil || !strings.Contains(err.Error(), "announce") {
		t.Errorf("a bad address to announce: %v", err)
	}
}

func TestOptionsBeforeTheDaemonsWin(t *testing.T) {
	t.Parallel()
	var used atomic.Bool
	own := libp2p.Transport(func(u transport.Upgrader, m network.ResourceManager) (*tcp.TcpTransport, error) {
		used.Store(true)
		return tcp.NewTCPTransport(u, m, nil)
	})
	var r Refusals
	h := hostOf(t, profile(t, config.Test, anyTCP), key(1), &r, own, libp2p.ResourceManager(&network.NullResourceManager{}))
	if !used.Load() {
		t.Error("the transport is not the one that was set before")
	}
	if err := hostOf(t, profile(t, config.Test, anyTCP), key(2), nil).Connect(within(t, waitMax), info(h)); err == nil {
		t.Error("a stranger got in")
	}
	eventually(t, "refusals are counted with another resource manager too", func() bool { return r.Counts()[RefusedHandshake] == 1 })
}

func TestAnnouncedAddressesTakeTheOwnOnesPlace(t *testing.T) {
	c := profile(t, config.Private, anyTCP)
	c.Network.Announce = []string{"/dns4/peer.example/tcp/4001", "/ip4/192.0.2.7/tcp/4001"}
	h, other := hostOf(t, c, key(1), nil), hostOf(t, profile(t, config.Private, anyTCP), key(1), nil)
	told := func(addrs []ma.Multiaddr) bool {
		return len(addrs) == 2 && !slices.ContainsFunc(addrs, func(a ma.Multiaddr) bool { return !slices.Contains(c.Network.Announce, a.String()) })
	}
	if !told(h.Addrs()) {
		t.Errorf("tells %v", h.Addrs())
	}
	listening, err := h.Network().InterfaceListenAddresses()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Connect(within(t, waitMax), peer.AddrInfo{ID: h.ID(), Addrs: listening}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other has heard of it", func() bool {
		return slices.ContainsFunc(other.Peerstore().Addrs(h.ID()), func(a ma.Multiaddr) bool { return a.String() == c.Network.Announce[1] })
	})

	circuit := ma.StringCast("/ip4/192.0.2.1/tcp/1/p2p/12D3KooWRMjeT3GuYch6bQJetZyFu6zcGc9bwcTz6VJWNV6wbbvU/p2p-circuit")
	if got := announced(nil)([]ma.Multiaddr{ma.StringCast(anyTCP), circuit}); len(got) != 1 || !got[0].Equal(circuit) {
		t.Errorf("by way of a relay: %v", got)
	}
}

func TestOnePeersStreamsAreBounded(t *testing.T) {
	test := profile(t, config.Test, anyTCP)
	unlimited := libp2p.ResourceManager(&network.NullResourceManager{})
	h, greedy := hostOf(t, test, key(1), nil), hostOf(t, test, key(1), nil, unlimited)
	for _, id := range []protocol.ID{"/a", "/b", "/c"} {
		h.SetStreamHandler(id, func(s network.Stream) { io.Copy(s, s) }) // an echo until the stream ends
	}
	if err := greedy.Connect(within(t, waitMax), info(h)); err != nil {
		t.Fatal(err)
	}
	echoes := func(from host.Host, id protocol.ID) bool {
		s, err := from.NewStream(within(t, waitMax), h.ID(), id)
		if err != nil {
			return false
		}
		t.Cleanup(func() { s.Reset() })
		s.SetDeadline(time.Now().Add(waitMax))
		_, err = s.Write([]byte("x"))
		if err == nil {
			_, err = io.ReadFull(s, make([]byte, 1))
		}
		return err == nil
	}
	served := make(map[protocol.ID]int)
	for range streamsInPerProtocolMax + 8 {
		for _, id := range []protocol.ID{"/a", "/b", "/c"} {
			if echoes(greedy, id) {
				served[id]++
			}
		}
	}
	total := 0
	for id, n := range served {
		if total += n; n > streamsInPerProtocolMax {
			t.Errorf("%d streams of %s", n, id)
		}
	}
	// One or two are libp2p's own.
	if total > streamsInPerPeerMax || total < streamsInPerPeerMax-4 {
		t.Errorf("%d streams were served, %v, of at most %d", total, served, streamsInPerPeerMax)
	}
	if !connected(h, greedy) {
		t.Error("the connection was closed")
	}

	// One that does not even wait for answers may lose its connection. The others notice nothing.
	flood, honest := hostOf(t, test, key(1), nil, unlimited), hostOf(t, test, key(1), nil)
	for _, from := range []host.Host{flood, honest} {
		if err := from.Connect(within(t, waitMax), info(h)); err != nil {
			t.Fatal(err)
		}
	}
	for range 2000 {
		s, err := flood.NewStream(network.WithNoDial(within(t, waitMax), "flood"), h.ID(), "/a")
		if err != nil {
			break
		}
		s.SetWriteDeadline(time.Now().Add(time.Second))
		if _, err := s.Write([]byte("x")); err != nil {
			break
		}
	}
	if !echoes(honest, "/a") {
		t.Error("an honest peer is not served")
	}
}

// What one peer may have open with the host ends where docs/limits.md says, whoever opens it, and not before.
func TestLimitsOfTheHostHoldAtTheirEdge(t *testing.T) {
	m, err := newResourceManager(profile(t, config.Private).Network)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	local := ma.StringCast("/ip4/127.0.0.1/tcp/1")
	// until counts how often something can be done, and undoes it.
	until := func(open func() (done func(), err error)) (n int) {
		for n < 10_000 {
			done, err := open()
			if err != nil {
				if !errors.Is(err, network.ErrResourceLimitExceeded) {
					t.Errorf("refused with %v", err)
				}
				return n
			}
			defer done()
			n++
		}
		return n
	}
	conn := func(dir network.Direction, p peer.ID) func() (func(), error) {
		return func() (func(), error) {
			c, err := m.OpenConnection(dir, true, local)
			if err == nil && p != "" {
				if err = c.SetPeer(p); err != nil {
					c.Done()
				}
			}
			if err != nil {
				return nil, err
			}
			return c.Done, nil
		}
	}
	stream := func(dir network.Direction, p func() peer.ID, protocols func() protocol.ID) func() (func(), error) {
		return func() (func(), error) {
			s, err := m.OpenStream(p(), dir)
			if err != nil {
				return nil, err
			}
			if protocols != nil {
				if err := s.SetProtocol(protocols()); err != nil {
					s.Done()
					return nil, err
				}
			}
			return s.Done, nil
		}
	}
	one := randomPeer(t)
	same := func() peer.ID { return one }
	another := func() peer.ID { return randomPeer(t) }
	single := func() protocol.ID { return "/a" }
	n := 0
	each := func() protocol.ID { n++; return protocol.ID(fmt.Sprint("/", n)) }
	for what, c := range map[string]struct{ got, want int }{
		"connections from a peer":                           {until(conn(network.DirInbound, one)), connsPerPeerMax},
		"connections to a peer":                             {until(conn(network.DirOutbound, one)), connsPerPeerMax},
		"connections that have not authenticated":           {until(conn(network.DirInbound, "")), connsPendingMax},
		"streams that a peer opened":                        {until(stream(network.DirInbound, same, each)), streamsInPerPeerMax},
		"streams with a peer":                               {until(stream(network.DirOutbound, same, each)), streamsPerPeerMax},
		"streams that a peer opened, of one protocol":       {until(stream(network.DirInbound, same, single)), streamsInPerProtocolMax},
		"streams with a peer, of one protocol":              {until(stream(network.DirOutbound, same, single)), streamsPerProtocolMax},
		"streams of all that have not named a protocol yet": {until(stream(network.DirInbound, another, nil)), streamsPendingMax},
	} {
		if c.got != c.want {
			t.Errorf("%s: %d, want %d", what, c.got, c.want)
		}
	}
	var windows [3]network.StreamManagementScope
	for i := range windows {
		if windows[i], err = m.OpenStream(one, network.DirInbound); err != nil {
			t.Fatal(err)
		}
		defer windows[i].Done()
		if err := windows[i].SetProtocol("/a"); err != nil {
			t.Fatal(err)
		}
	}
	const most = network.ReservationPriorityAlways
	if err := errors.Join(windows[0].ReserveMemory(memoryPerPeerMax/2, most), windows[1].ReserveMemory(memoryPerPeerMax/2, most)); err != nil {
		t.Errorf("a peer's windows: %v", err)
	}
	if err := windows[2].ReserveMemory(1, most); !errors.Is(err, network.ErrResourceLimitExceeded) {
		t.Errorf("a byte more: %v", err)
	}
}

func TestManyPeersAtOneAddressAreForLocalNetworks(t *testing.T) {
	m, err := newResourceManager(profile(t, config.Private).Network)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	const tries = 150
	for at, want := range map[string]int{
		"/ip4/127.0.0.1/tcp/1": tries, "/ip4/192.168.3.4/tcp/1": tries, "/ip6/fd00::7/tcp/1": tries, "/ip4/8.8.8.8/tcp/1": connsPerIPMax,
		"/ip6/2001:4860:4860::8888/tcp/1": connsPerIPMax,
	} {
		got := 0
		var scopes []network.ConnManagementScope
		for range tries {
			s, err := m.OpenConnection(network.DirInbound, true, ma.StringCast(at))
			if err != nil {
				continue
			}
			scopes = append(scopes, s)
			if err := s.SetPeer(randomPeer(t)); err != nil {
				t.Fatal(err)
			}
			got++
		}
		if got != want {
			t.Errorf("%s: %d connections, want %d", at, got, want)
		}
		for _, s := range scopes {
			s.Done()
		}
	}
}

// becomes tells h's bus how reachable it is, as its AutoNAT would; forcing a whole host private leaks goroutines in go-libp2p
// v0.51.
func becomes(t *testing.T, h host.Host, r network.Reachability) {
	t.Helper()
	e, err := h.EventBus().Emitter(new(event.EvtLocalReachabilityChanged), eventbus.Stateful)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	if err := e.Emit(event.EvtLocalReachabilityChanged{Reachability: r}); err != nil {
		t.Fatal(err)
	}
}

// publicOverlay founds an overlay on a public server and returns it and what makes further nodes.
func publicOverlay(t *testing.T, founder host.Host, r *Refusals) (*Node, func(h host.Host, r *Refusals, opts ...Option) *Node) {
	t.Helper()
	one := 0
	g, store, err := Found(founder, FoundOptions{Name: "public", F: &one})
	if err != nil {
		t.Fatal(err)
	}
	start := func(h host.Host, r *Refusals, opts ...Option) *Node {
		n, err := New(h, append([]Option{WithOverlay(g), WithRefusals(r), WithBootstrap(info(founder))}, opts...)...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.Close() })
		if err := n.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		return n
	}
	return start(founder, r, WithStore(store)), start
}

func TestAPublicOverlayOverQUICAlone(t *testing.T) {
	t.Parallel()
	var r Refusals
	founder, start := publicOverlay(t, hostOf(t, profile(t, config.Public, anyQUIC), nil, &r), &r)
	// One that nobody outside reaches uses the overlay and hosts nothing.
	behind := hostOf(t, profile(t, config.Public, anyQUIC), nil, nil)
	becomes(t, behind, network.ReachabilityPrivate)
	natted := start(behind, new(Refusals), WithAutoMode())
	open := start(hostOf(t, profile(t, config.Public, anyQUIC), nil, nil, libp2p.ForceReachabilityPublic()), new(Refusals), WithAutoMode())
	eventually(t, "each knows whether it is reached", func() bool {
		return natted.Overlay().Reachability() == network.ReachabilityPrivate && open.Overlay().Reachability() == network.ReachabilityPublic
	})
	eventually(t, "the servers know each other, and not the client", func() bool {
		f, o, n := founder.Overlay().DHT().RoutingTable(), open.Overlay().DHT().RoutingTable(), natted.Overlay().DHT().RoutingTable()
		return f.Size() == 1 && f.Find(open.ID()) != "" && o.Size() == 1 && n.Size() == 2
	})
	if natted.Overlay().Hosting() || !open.Overlay().Hosting() {
		t.Errorf("hosting: %v behind a NAT, %v in the open", natted.Overlay().Hosting(), open.Overlay().Hosting())
	}
	for i, n := range []*Node{natted, open, founder} {
		hold, err := n.Locks().Lock(within(t, waitMax), "one", lockservice.WithTTL(5*time.Second))
		if err != nil {
			t.Fatalf("node %d: %v", i, err)
		}
		if err := hold.Release(within(t, waitMax)); err != nil {
			t.Errorf("node %d: %v", i, err)
		}
	}
	for i := range 20 { // whatever the name, no replica is behind the NAT
		k, err := founder.Key(within(t, waitMax), fmt.Sprint("name ", i))
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(k.Group.Members, natted.ID().String()) {
			t.Errorf("the group of name %d has a replica behind the NAT", i)
		}
	}
	if s, err := natted.Status(t.Context()); err != nil || s.Groups != 0 || s.Mode != "auto" || s.Hosting || s.Reachability != "private" {
		t.Errorf("%+v, %v", s, err)
	}
	for _, c := range founder.host.Network().Conns() {
		if !has(c.RemoteMultiaddr(), ma.P_QUIC_V1) {
			t.Errorf("a connection at %s", c.RemoteMultiaddr())
		}
	}
	if got := r.Counts(); len(got) != 0 {
		t.Errorf("refused: %v", got)
	}
}

// Without that, libp2p lets two of its hosts share a port, and each gets some of the connections.
func TestPortOfAnotherPeerIsRefused(t *testing.T) {
	for _, p := range []config.Profile{config.Test, config.Public} {
		first := hostOf(t, profile(t, p, "/ip4/127.0.0.1/tcp/0"), nil, nil)
		c := profile(t, p, first.Addrs()[0].String(), "/ip4/127.0.0.1/tcp/0")
		opts, err := HostOptions(c, newKey(t), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if h, err := libp2p.New(opts...); err == nil {
			h.Close()
			t.Errorf("%s: two hosts listen at %s", p, c.Network.Listen[0])
		} else if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), c.Network.Listen[0]) {
			t.Errorf("%s: %v", p, err)
		}
	}
}
