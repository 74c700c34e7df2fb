package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/host/autorelay"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	relayproto "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/libp2p/go-libp2p/p2p/transport/websocket"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"go.uber.org/fx"

	"latchkey/dht"
	"latchkey/node/config"
)

// connGrace is how long a new connection is safe from the connection manager.
const connGrace = 20 * time.Second

// Of relays, for a peer that others cannot reach: how many it keeps, how long it first waits for more candidates than one, and
// how often it looks for others.
const (
	relaysMax     = 2
	relayDelay    = 10 * time.Second
	relayInterval = 15 * time.Second
	relayBackoff  = 5 * time.Minute
)

// ErrTransport is matched by errors about an address that the host cannot listen at, because it does not speak its transport.
var ErrTransport = errors.New("node: no such transport")

// HostOptions returns what a daemon's libp2p host is made with: identity, listening addresses, transports, the resource manager with
// its limits (limits.go), and the connection manager; with network.nat also port mapping, AutoNAT, relays and hole punching, so that
// peers behind a NAT get out and are reached, and publicly reachable ones help them. With a swarm key the transports are TCP and
// WebSocket; without, TCP and QUIC, and WebSocket when it is listened at. r may be nil; otherwise it counts those who fail to
// authenticate, and is for [WithRefusals].
//
// Options placed before these may set another transport, resource manager, connection manager or connection gater, and win. Errors match
// [ErrTransport] or are about an address.
func HostOptions(c config.Config, key crypto.PrivKey, psk pnet.PSK, r *Refusals) ([]libp2p.Option, error) {
	n := c.Network
	listen, err := multiaddrs("listen", n.Listen)
	if err != nil {
		return nil, err
	}
	announce, err := multiaddrs("announce", n.Announce)
	if err != nil {
		return nil, err
	}
	// Dialling from the port one listens at is for punching holes into NATs. Elsewhere it only lets two peers that dial each other
	// at the same moment get in each other's way: over TCP that makes one connection, of which each takes itself for the dialler.
	var tcpOptions []any
	if !n.NAT {
		tcpOptions = append(tcpOptions, tcp.DisableReuseport())
	}
	transports := []libp2p.Option{libp2p.Transport(tcp.NewTCPTransport, tcpOptions...)}
	spoken := "TCP and WebSocket, as this overlay has a swarm key"
	speaks := func(a ma.Multiaddr) bool { return !has(a, ma.P_UDP) }
	switch {
	case psk != nil:
		transports = append(transports, libp2p.Transport(websocket.New))
	default:
		transports = append(transports, libp2p.Transport(quic.NewTransport))
		if slices.ContainsFunc(listen, func(a ma.Multiaddr) bool { return has(a, ma.P_WS) || has(a, ma.P_WSS) }) {
			transports = append(transports, libp2p.Transport(websocket.New))
		}
		spoken = "TCP, QUIC and WebSocket"
		speaks = func(a ma.Multiaddr) bool {
			return !has(a, ma.P_WEBTRANSPORT) && !has(a, ma.P_WEBRTC_DIRECT) && (!has(a, ma.P_UDP) || has(a, ma.P_QUIC_V1))
		}
	}
	for _, a := range listen {
		if !speaks(a) {
			return nil, fmt.Errorf("%w: cannot listen at %s: a peer speaks %s", ErrTransport, a, spoken)
		}
	}
	opts := []libp2p.Option{
		libp2p.Identity(key),
		func(*libp2p.Config) error { return checkFree(listen) },
		libp2p.ListenAddrs(listen...),
		libp2p.UserAgent("latchkey/" + Version()),
		libp2p.DisableMetrics(),
		unless(func(c *libp2p.Config) bool { return len(c.Transports) > 0 }, libp2p.ChainOptions(transports...)),
		unless(func(c *libp2p.Config) bool { return c.ConnManager != nil }, func(c *libp2p.Config) error {
			m, err := connmgr.NewConnManager(n.ConnsLow, n.ConnsHigh, connmgr.WithGracePeriod(connGrace))
			if err != nil {
				return fmt.Errorf("node: conns_low, conns_high: %w", err)
			}
			return c.Apply(libp2p.ConnectionManager(m))
		}),
		func(c *libp2p.Config) error {
			m := c.ResourceManager
			if m == nil {
				var err error
				if m, err = newResourceManager(n); err != nil {
					return fmt.Errorf("node: resource manager: %w", err)
				}
			}
			if r != nil {
				m = r.watch(m)
			}
			c.ResourceManager = m
			return nil
		},
	}
	if psk != nil {
		opts = append(opts, libp2p.PrivateNetwork(psk))
	}
	if len(announce) > 0 {
		opts = append(opts, libp2p.AddrsFactory(announced(announce)))
	}
	if n.NAT {
		var candidates relayCandidates
		if slices.ContainsFunc(listen, func(a ma.Multiaddr) bool { return !manet.IsIPLoopback(a) }) {
			opts = append(opts, libp2p.NATPortMap())
		}
		opts = append(opts,
			libp2p.EnableNATService(), // AutoNAT v1 says whether we are reachable, v2 by which address
			libp2p.EnableAutoNATv2(),
			libp2p.EnableRelay(),
			libp2p.EnableRelayService(), // which runs while we are publicly reachable
			libp2p.EnableHolePunching(),
			libp2p.EnableAutoRelayWithPeerSource(candidates.find, autorelay.WithNumRelays(relaysMax), autorelay.WithMinCandidates(1),
				autorelay.WithBootDelay(relayDelay), autorelay.WithMinInterval(relayInterval), autorelay.WithBackoff(relayBackoff)),
			libp2p.WithFxOption(fx.Invoke(candidates.on)),
		)
	} else {
		opts = append(opts, libp2p.DisableRelay())
	}
	return opts, nil
}

// checkFree refuses TCP addresses that another process listens at. libp2p itself would share the port with another libp2p host,
// each getting some of the connections, and goes on without an address as long as there is one more.
func checkFree(listen []ma.Multiaddr) error {
	for _, a := range listen {
		tcpAddr, _ := ma.SplitFunc(a, func(c ma.Component) bool { return c.Code() == ma.P_WS || c.Code() == ma.P_WSS || c.Code() == ma.P_TLS })
		network, addr, err := manet.DialArgs(tcpAddr)
		if err != nil || !strings.HasPrefix(network, "tcp") {
			continue
		}
		l, err := net.Listen(network, addr)
		if err != nil {
			var call *os.SyscallError
			if errors.As(err, &call) {
				err = call.Err
			}
			return fmt.Errorf("%s: %w; another process may have the port: see network.listen", a, err)
		}
		if err := l.Close(); err != nil {
			return fmt.Errorf("%s: %w", a, err)
		}
	}
	return nil
}

// unless applies an option if nothing before it has set what it sets.
func unless(set func(*libp2p.Config) bool, o libp2p.Option) libp2p.Option {
	return func(c *libp2p.Config) error {
		if set(c) {
			return nil
		}
		return o(c)
	}
}

func multiaddrs(field string, texts []string) ([]ma.Multiaddr, error) {
	addrs := make([]ma.Multiaddr, len(texts))
	for i, t := range texts {
		var err error
		if addrs[i], err = ma.NewMultiaddr(t); err != nil {
			return nil, fmt.Errorf("node: network.%s: %q: %w", field, t, err)
		}
	}
	return addrs, nil
}

// has reports whether a multiaddr contains a protocol.
func has(a ma.Multiaddr, code int) bool {
	return slices.ContainsFunc(a, func(c ma.Component) bool { return c.Code() == code })
}

// announced returns what a peer tells others of where it is: the announced addresses in place of its own, and those by way of
// its relays.
func announced(instead []ma.Multiaddr) func([]ma.Multiaddr) []ma.Multiaddr {
	return func(own []ma.Multiaddr) []ma.Multiaddr {
		addrs := slices.Clone(instead)
		for _, a := range own {
			if has(a, ma.P_CIRCUIT) {
				addrs = append(addrs, a)
			}
		}
		return addrs
	}
}

// relayCandidates finds relays among the peers of the overlay that the host is connected to.
type relayCandidates struct{ host host.Host }

// on is called while the host is made.
func (r *relayCandidates) on(h host.Host) { r.host = h }

// find is autorelay's peer source.
func (r *relayCandidates) find(_ context.Context, n int) <-chan peer.AddrInfo {
	found := make(chan peer.AddrInfo, n)
	defer close(found)
	for _, p := range r.host.Network().Peers() {
		protocols, err := r.host.Peerstore().GetProtocols(p)
		if err != nil || !slices.Contains(protocols, relayproto.ProtoIDv2Hop) || !slices.ContainsFunc(protocols, isLatchkey) {
			continue
		}
		if len(found) == n {
			break
		}
		found <- r.host.Peerstore().PeerInfo(p)
	}
	return found
}

// isLatchkey reports whether a protocol is one of some overlay's.
func isLatchkey(p protocol.ID) bool { return strings.HasPrefix(string(p), dht.ProtocolFamily) }
