package wire

import (
	"context"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// Transport is libp2p's TCP on a [Wire]: plain sockets below, libp2p's upgrader (security, multiplexer, resource
// manager, gater) above. It does not reuse the listening port for dialling, so a peer that restarts needs only that
// port to be free.
type Transport struct {
	wire     *Wire
	upgrader transport.Upgrader
	rcmgr    network.ResourceManager
}

var _ transport.Transport = (*Transport)(nil)

// Transport is the constructor that libp2p.Transport takes: libp2p.New(libp2p.Transport(w.Transport), ...). A host made
// so has no other way to the network than w.
func (w *Wire) Transport(u transport.Upgrader, r network.ResourceManager) (*Transport, error) {
	if r == nil {
		r = &network.NullResourceManager{}
	}
	return &Transport{wire: w, upgrader: u, rcmgr: r}, nil
}

// Dial connects to p at raddr. ctx bounds the dial and the handshakes.
func (t *Transport) Dial(ctx context.Context, raddr ma.Multiaddr, p peer.ID) (transport.CapableConn, error) {
	scope, err := t.rcmgr.OpenConnection(network.DirOutbound, true, raddr)
	if err != nil {
		return nil, err
	}
	c, err := t.dial(ctx, raddr, p, scope)
	if err != nil {
		scope.Done()
		return nil, err
	}
	return c, nil
}

func (t *Transport) dial(ctx context.Context, raddr ma.Multiaddr, p peer.ID, scope network.ConnManagementScope) (transport.CapableConn, error) {
	if err := scope.SetPeer(p); err != nil {
		return nil, err
	}
	netw, addr, err := manet.DialArgs(raddr)
	if err != nil {
		return nil, err
	}
	c, err := t.wire.Dial(ctx, netw, addr)
	if err != nil {
		return nil, err
	}
	mc, err := manet.WrapNetConn(c)
	if err != nil {
		c.Close()
		return nil, err
	}
	dir := network.DirOutbound
	if ok, client, _ := network.GetSimultaneousConnect(ctx); ok && !client {
		dir = network.DirInbound
	}
	return t.upgrader.Upgrade(ctx, t, mc, dir, p, scope)
}

// Listen listens on laddr.
func (t *Transport) Listen(laddr ma.Multiaddr) (transport.Listener, error) {
	netw, addr, err := manet.DialArgs(laddr)
	if err != nil {
		return nil, err
	}
	l, err := t.wire.Listen(netw, addr)
	if err != nil {
		return nil, err
	}
	ml, err := manet.WrapNetListener(l)
	if err != nil {
		l.Close()
		return nil, err
	}
	return t.upgrader.UpgradeGatedMaListener(t, t.upgrader.GateMaListener(ml)), nil
}

// CanDial reports whether addr is an IP address with a TCP port and nothing else.
func (t *Transport) CanDial(addr ma.Multiaddr) bool {
	ps := addr.Protocols()
	return len(ps) == 2 && (ps[0].Code == ma.P_IP4 || ps[0].Code == ma.P_IP6) && ps[1].Code == ma.P_TCP
}

// Protocols returns TCP.
func (t *Transport) Protocols() []int { return []int{ma.P_TCP} }

// Proxy returns false.
func (t *Transport) Proxy() bool { return false }

// String names the transport in libp2p's logs.
func (t *Transport) String() string { return "TCP on a wire" }
