package node

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"latchkey/dht"
	"latchkey/replicagroup/placement"
)

var keyA, keyB = pnet.PSK(bytes.Repeat([]byte("a"), 32)), pnet.PSK(bytes.Repeat([]byte("b"), 32))

// keyedHost returns a host on a loopback port, under a swarm key unless that is nil.
func keyedHost(t *testing.T, psk pnet.PSK) host.Host {
	t.Helper()
	opts := []libp2p.Option{libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableRelay(), libp2p.DisableMetrics()}
	if psk != nil {
		opts = append(opts, libp2p.PrivateNetwork(psk))
	}
	h, err := libp2p.New(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// founded starts a node that founds an overlay on h.
func founded(t *testing.T, h host.Host) *Node {
	t.Helper()
	g, store, err := Found(h, FoundOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n, err := New(h, WithOverlay(g), WithStore(store))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return n
}

// answering returns the address of a TCP server that is no libp2p peer.
func answering(t *testing.T, serve func(net.Conn)) ma.Multiaddr {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		var open []net.Conn
		for {
			c, err := l.Accept()
			if err != nil {
				for _, c := range open {
					c.Close()
				}
				return
			}
			open = append(open, c)
			serve(c)
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return addrOf(t, l)
}

func addrOf(t *testing.T, l net.Listener) ma.Multiaddr {
	t.Helper()
	a, err := manet.FromNetAddr(l.Addr())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// webserver returns the address of one.
func webserver(t *testing.T) ma.Multiaddr {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{}
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(l) }()
	t.Cleanup(func() { s.Close(); <-done })
	return addrOf(t, l)
}

func TestDiagnoseTellsWhyNot(t *testing.T) {
	t.Parallel()
	private, public, other := founded(t, keyedHost(t, keyA)), founded(t, keyedHost(t, nil)), founded(t, keyedHost(t, keyA))
	bare, closed := keyedHost(t, keyA), keyedHost(t, keyA)
	away := closed.Addrs()
	closed.Close()
	next := keyedHost(t, keyA)
	id := private.Genesis().ID()
	v2 := strings.Replace(string(dht.ControlProtocol(id)), "1.0.0", "2.0.0", 1)
	next.SetStreamHandler(protocol.ID(v2), func(s network.Stream) { s.Reset() })
	guarded := keyedHost(t, keyA)
	picky, err := dht.New(guarded, dht.WithOverlayID(id), dht.WithHello(nil, func(peer.ID, []byte) error { return errors.New("not on the list") }))
	if err != nil {
		t.Fatal(err)
	}
	if err := picky.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { picky.Close() })

	at := func(id peer.ID, addrs ...ma.Multiaddr) peer.AddrInfo { return peer.AddrInfo{ID: id, Addrs: addrs} }
	self := func(n *Node) peer.AddrInfo { return at(n.ID(), n.host.Addrs()...) }
	port := func(a ma.Multiaddr) string { p, _ := a.ValueForProtocol(ma.P_TCP); return "/tcp/" + p }
	silence := answering(t, func(net.Conn) {})
	quic := ma.StringCast("/ip4/127.0.0.1/udp/1/quic-v1")

	cases := []struct {
		name    string
		psk     pnet.PSK
		genesis placement.Genesis
		who     peer.AddrInfo
		want    error
		says    []string
	}{
		{"right key", keyA, private.Genesis(), self(private), nil, nil},
		{"public overlay", nil, public.Genesis(), self(public), nil, nil},
		{"wrong key", keyB, private.Genesis(), self(private), ErrSwarmKey, []string{"another one than ours", port(private.host.Addrs()[0])}},
		{"a key where there is none", keyA, private.Genesis(), self(public), ErrSwarmKey, []string{"uses no swarm key"}},
		{"no key where there is one", nil, private.Genesis(), self(private), ErrSwarmKey, []string{"asks for a swarm key, and we have none"}},
		{"another overlay", keyA, private.Genesis(), self(other), ErrOtherOverlay,
			[]string{hex.EncodeToString(id[:4]), other.Genesis().ID().Hex()[:8], other.ID().String()}},
		{"another peer", keyA, private.Genesis(), at(bare.ID(), private.host.Addrs()...), ErrOtherPeer, []string{private.ID().String(), bare.ID().String()}},
		{"another peer, public", nil, public.Genesis(), at(bare.ID(), public.host.Addrs()...), ErrOtherPeer, []string{public.ID().String()}},
		{"no latchkey", keyA, private.Genesis(), at(bare.ID(), bare.Addrs()...), ErrNotLatchkey, []string{"speaks no latchkey"}},
		{"another protocol version", keyA, private.Genesis(), at(next.ID(), next.Addrs()...), ErrVersion, []string{"control/2.0.0"}},
		{"a peer that refuses us", keyA, private.Genesis(), at(guarded.ID(), guarded.Addrs()...), ErrRefused, []string{guarded.ID().String()}},
		{"a web server", keyA, private.Genesis(), at(bare.ID(), webserver(t)), ErrNotLatchkey, []string{"does not speak libp2p"}},
		{"a web server, without a key", nil, public.Genesis(), at(bare.ID(), webserver(t)), ErrNotLatchkey, []string{"does not speak libp2p"}},
		{"silence", keyA, private.Genesis(), at(bare.ID(), silence), ErrUnreachable, []string{"says nothing"}},
		{"silence, without a key", nil, public.Genesis(), at(bare.ID(), silence), ErrUnreachable, []string{"says nothing"}},
		{"hanging up", keyA, private.Genesis(), at(bare.ID(), answering(t, func(c net.Conn) { c.Close() })), ErrUnreachable, []string{"ends them at once"}},
		{"nobody", keyA, private.Genesis(), at(closed.ID(), away...), ErrUnreachable, []string{"connection refused", port(away[0])}},
		{"nowhere", keyA, private.Genesis(), at(closed.ID()), ErrUnreachable, []string{"no address"}},
		{"a transport that keys exclude", keyA, private.Genesis(), at(closed.ID(), quic), ErrUnreachable, []string{"no transport"}},
		{"several addresses", keyB, private.Genesis(), at(private.ID(), away[0], silence, private.host.Addrs()[0], quic), ErrSwarmKey, []string{"another one than ours"}},
		{"several of nobody", keyA, private.Genesis(), at(closed.ID(), away[0], quic), ErrUnreachable, []string{"failed too: 1"}},
	}
	t.Run("each", func(t *testing.T) {
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				h := keyedHost(t, c.psk)
				before := h.Mux().Protocols()
				patience := waitMax
				if strings.HasPrefix(c.name, "silence") {
					patience = 3 * time.Second // it is all that ends it
				}
				err := Diagnose(within(t, patience), h, c.genesis, c.psk, c.who)
				if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
					t.Fatalf("%v; want %v", err, c.want)
				}
				for _, v := range verdicts {
					if v != c.want && errors.Is(err, v) {
						t.Errorf("%v is %v too", err, v)
					}
				}
				for _, s := range c.says {
					if !strings.Contains(err.Error(), s) {
						t.Errorf("%v: nothing of %q", err, s)
					}
				}
				if text := fmt.Sprint(err); strings.ContainsAny(text, "\r\n") || strings.Contains(text, "aaaaaaaa") || strings.Contains(text, "bbbbbbbb") {
					t.Errorf("not one line, or with a key: %q", text)
				}
				if after := h.Mux().Protocols(); len(after) != len(before) {
					t.Errorf("it leaves %v", after)
				}
			})
		}
	})
	// Those who were turned away never got to the overlay's protocols; those who were let in said hello and no more.
	for name, n := range map[string]*Node{"private": private, "public": public, "other": other} {
		s := n.Overlay().Stats()
		if want := map[string]uint64{"private": 1, "public": 1}[name]; s.StreamsAccepted != want || len(s.StreamsReset) != 0 || s.MessagesReceived != 0 {
			t.Errorf("%s: %d hellos accepted, want %d; %d messages; resets %v", name, s.StreamsAccepted, want, s.MessagesReceived, s.StreamsReset)
		}
	}
}

// A host that runs the overlay is not made to lose its streams by a second hello.
func TestDiagnoseOnTheNodesOwnHostDisturbsNothing(t *testing.T) {
	nodes := overlay(t, []host.Host{newHost(t), newHost(t), newHost(t)}, nil)
	lock, err := nodes[1].Locks().Lock(within(t, waitMax), "held")
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Release(context.Background())
	before, asked := nodes[1].Overlay().Stats(), nodes[0].Overlay().Stats()
	for range 5 {
		if err := Diagnose(within(t, waitMax), nodes[1].host, nodes[1].Genesis(), nil, peer.AddrInfo{ID: nodes[0].ID(), Addrs: nodes[0].host.Addrs()}); err != nil {
			t.Error(err)
		}
	}
	if after := nodes[1].Overlay().Stats(); after.StreamsOpened != before.StreamsOpened || after.StreamsAccepted != before.StreamsAccepted || len(after.StreamsReset) > 0 {
		t.Errorf("streams opened %d, accepted %d, were %d and %d", after.StreamsOpened, after.StreamsAccepted, before.StreamsOpened, before.StreamsAccepted)
	}
	if after := nodes[0].Overlay().Stats(); after.StreamsAccepted != asked.StreamsAccepted || len(after.StreamsReset) > 0 {
		t.Errorf("the one asked accepted %d streams, %d before", after.StreamsAccepted, asked.StreamsAccepted)
	}
	if lock.Context().Err() != nil {
		t.Error("the lock is lost")
	}
}

// A daemon that is starting listens before it speaks latchkey.
func TestDiagnoseWaitsForAPeerThatIsStarting(t *testing.T) {
	founder, asker := keyedHost(t, keyA), keyedHost(t, keyA)
	g, store, err := Found(founder, FoundOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n, err := New(founder, WithOverlay(g), WithStore(store))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	met := make(chan error, 1)
	var once sync.Once
	founder.Network().Notify(&network.NotifyBundle{ConnectedF: func(network.Network, network.Conn) {
		once.Do(func() { met <- n.Start(t.Context()) })
	}})
	if err := Diagnose(within(t, waitMax), asker, g, keyA, peer.AddrInfo{ID: founder.ID(), Addrs: founder.Addrs()}); err != nil {
		t.Errorf("%v; the node: %v", err, <-met)
	}
}

// One that never gets further than its first protocols may yet: it is not of another version.
func TestAPeerThatHasBegunToStartIsNoStranger(t *testing.T) {
	d := diagnosis{overlay: [32]byte{1, 2, 3, 4}}
	control := string(dht.ControlProtocol(d.overlay))
	for _, c := range []struct {
		speaks string
		want   error
	}{
		{strings.Replace(control, "control", "kad", 1), ErrUnreachable}, {strings.Replace(control, "1.0.0", "2.0.0", 1), ErrVersion},
		{strings.Replace(control, "01020304", "09020304", 1), ErrOtherOverlay}, {"/ipfs/ping/1.0.0", ErrNotLatchkey},
	} {
		if err := d.stranger(ma.StringCast("/ip4/127.0.0.1/tcp/1"), []protocol.ID{"/ipfs/id/1.0.0", protocol.ID(c.speaks)}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.speaks, err)
		}
	}
}

// It says what it speaks on streams of their own, and what libp2p takes for its last word may be the first one.
func TestDiagnoseAsksBeforeItCallsAPeerAnotherVersion(t *testing.T) {
	t.Parallel()
	n := founded(t, keyedHost(t, keyA))
	kad := protocol.ID(strings.Replace(string(dht.ControlProtocol(n.Genesis().ID())), "control", "kad", 1))
	asker := outdated{keyedHost(t, keyA), n.ID(), []protocol.ID{kad}}
	if err := Diagnose(within(t, waitMax), asker, n.Genesis(), keyA, peer.AddrInfo{ID: n.ID(), Addrs: n.host.Addrs()}); err != nil {
		t.Error(err)
	}
}

func TestDiagnoseEndsWithItsContext(t *testing.T) {
	silence := answering(t, func(net.Conn) {})
	h := keyedHost(t, keyA)
	n := founded(t, keyedHost(t, keyA))
	ctx, cancel := context.WithCancel(within(t, waitMax))
	cancel()
	start := time.Now()
	if err := Diagnose(ctx, h, n.Genesis(), keyA, peer.AddrInfo{ID: h.ID(), Addrs: []ma.Multiaddr{silence}}); !errors.Is(err, ErrUnreachable) {
		t.Error(err)
	}
	if took := time.Since(start); took > diagnoseMax/2 {
		t.Errorf("it took %v", took)
	}
}

// A web server waits for the rest of a request, and a dial with a swarm key for the rest of a nonce.
func TestDiagnoseDoesNotWaitForWhatCannotCome(t *testing.T) {
	h, n := keyedHost(t, keyA), founded(t, keyedHost(t, keyA))
	start := time.Now()
	if err := Diagnose(within(t, waitMax), h, n.Genesis(), keyA, peer.AddrInfo{ID: n.ID(), Addrs: []ma.Multiaddr{webserver(t)}}); !errors.Is(err, ErrNotLatchkey) {
		t.Error(err)
	}
	if took := time.Since(start); took > diagnoseMax/2 {
		t.Errorf("it took %v", took)
	}
}

func TestFirstBytesTellRealPeersApart(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		theirs, ours pnet.PSK
		want         answer
	}{{keyA, keyA, ours}, {keyA, keyB, keyed}, {keyA, nil, keyed}, {nil, keyA, open}, {nil, nil, open}} {
		got, err := lookAt(within(t, waitMax), keyedHost(t, c.theirs).Addrs()[0], c.ours)
		if got != c.want || err != nil {
			t.Errorf("their key %.1s, ours %.1s: %d, %v; want %d", []byte(c.theirs), []byte(c.ours), got, err, c.want)
		}
	}
	for _, a := range []string{"/ip4/127.0.0.1/udp/1/quic-v1", "/ip4/127.0.0.1/tcp/1/ws", "/ip4/127.0.0.1/tcp/1/p2p/" + keyedHost(t, nil).ID().String() + "/p2p-circuit"} {
		if _, err := lookAt(t.Context(), ma.StringCast(a), nil); !errors.Is(err, errNoLook) {
			t.Errorf("%s: %v", a, err)
		}
	}
}

func TestFirstBytesAreJudged(t *testing.T) {
	nonce := bytes.Repeat([]byte{0x91}, nonceBytes)
	for name, c := range map[string]struct {
		bytes []byte
		want  answer
	}{
		"plain":          {[]byte(greeting), open},
		"plain and more": {[]byte(greeting + "\x13/noise"), open},
		"a nonce":        {nonce, perhaps},
		"under some key": {append(bytes.Clone(nonce), bytes.Repeat([]byte{0x80}, len(greeting))...), keyed},
		"text":           {[]byte("SSH-2.0-OpenSSH_9.6\r\n"), foreign},
		"text, 44 bytes": {[]byte("220 mail.example.org ESMTP ready to serve.\r\n"), foreign},
		"a TLS alert":    {[]byte{0x15, 3, 1, 0, 2, 2, 70}, foreign},
		"too many":       {bytes.Repeat([]byte{0x91}, lookBytesMax), foreign},
	} {
		if got := judge(c.bytes, keyA); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}
