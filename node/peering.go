package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	ma "github.com/multiformats/go-multiaddr"

	"latchkey/node/api"
)

// readPeer reads what an operator calls a peer: a multiaddr that ends in /p2p/ID, or an id, with the addresses that are known of it.
func (n *Node) readPeer(text string) (peer.AddrInfo, error) {
	bad := func(why string) (peer.AddrInfo, error) {
		return peer.AddrInfo{}, fmt.Errorf("%w: %.200q: %s", api.ErrPeer, text, why)
	}
	var info peer.AddrInfo
	if len(text) > 0 && text[0] == '/' {
		a, err := ma.NewMultiaddr(text)
		if err != nil {
			return bad("it is no multiaddr: " + err.Error())
		}
		i, err := peer.AddrInfoFromP2pAddr(a)
		if err != nil {
			return bad("the multiaddr does not end in /p2p/ and a peer id")
		}
		info = *i
	} else {
		id, err := peer.Decode(text)
		if err != nil {
			return bad("want a peer id, as in latchkey peers, or a multiaddr that ends in /p2p/ and one")
		}
		info.ID = id
	}
	if info.ID == n.host.ID() {
		return bad("that is this peer itself")
	}
	if len(info.Addrs) == 0 {
		info.Addrs = n.host.Peerstore().Addrs(info.ID)
	}
	return info, nil
}

// at returns the address of a connection with a peer; empty: there is none.
func (n *Node) at(p peer.ID) string {
	for _, c := range n.host.Network().ConnsToPeer(p) {
		return c.RemoteMultiaddr().String()
	}
	return ""
}

// Connect implements [api.Node]: it connects to a peer, and returns why not as [Diagnose] finds it. Errors: [api.ErrPeer],
// [api.ErrConnect].
func (n *Node) Connect(ctx context.Context, to string) (api.Connection, error) {
	p, err := n.readPeer(to)
	if err != nil {
		return api.Connection{}, err
	}
	c := api.Connection{Peer: p.ID.String(), Addr: n.at(p.ID), Already: true}
	if c.Addr != "" {
		return c, nil
	}
	if len(p.Addrs) == 0 {
		return api.Connection{}, fmt.Errorf("%w: no address of %s is known; give a multiaddr like /ip4/192.0.2.1/tcp/4701/p2p/%s", api.ErrPeer, p.ID, p.ID)
	}
	if err := Diagnose(ctx, n.host, n.genesis, n.psk, p); err != nil {
		if context.Cause(ctx) != nil && errors.Is(err, ErrUnreachable) {
			return api.Connection{}, fmt.Errorf("%w: %w: %w", api.ErrConnect, err, context.Cause(ctx))
		}
		return api.Connection{}, fmt.Errorf("%w: %w", api.ErrConnect, err)
	}
	c.Already = false
	if c.Addr = n.at(p.ID); c.Addr == "" {
		return api.Connection{}, fmt.Errorf("%w: %s was connected and has gone again", api.ErrConnect, p.ID)
	}
	return c, nil
}

// Disconnect implements [api.Node]: it ends the connections with a peer, and returns how many there were. Either side may connect again
// at once.
func (n *Node) Disconnect(_ context.Context, who string) (int, error) {
	p, err := n.readPeer(who)
	if err != nil {
		return 0, err
	}
	conns := len(n.host.Network().ConnsToPeer(p.ID))
	if conns == 0 {
		return 0, fmt.Errorf("%w: %s is not connected", api.ErrPeer, p.ID)
	}
	if err := n.host.Network().ClosePeer(p.ID); err != nil {
		return 0, fmt.Errorf("node: disconnect %s: %w", p.ID, err)
	}
	return conns, nil
}

// pingTimeout bounds one ping, whatever ctx says.
const pingTimeout = 10 * time.Second

// Ping implements [api.Node]: it measures one round trip by libp2p's protocol for that, and connects first where that is needed. Errors:
// those of Connect.
func (n *Node) Ping(ctx context.Context, who string) (api.Pong, error) {
	c, err := n.Connect(ctx, who)
	if err != nil {
		return api.Pong{}, err
	}
	id, err := peer.Decode(c.Peer)
	if err != nil {
		return api.Pong{}, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, pingTimeout, fmt.Errorf("no answer within %v", pingTimeout))
	defer cancel()
	const why = "it is connected"
	r, ok := <-ping.Ping(network.WithAllowLimitedConn(network.WithNoDial(ctx, why), why), n.host, id)
	switch {
	case !ok: // ctx has ended
		return api.Pong{}, fmt.Errorf("%w: ping %s at %s: %w", api.ErrConnect, id, c.Addr, context.Cause(ctx))
	case r.Error != nil:
		return api.Pong{}, fmt.Errorf("%w: ping %s at %s: %w", api.ErrConnect, id, c.Addr, r.Error)
	}
	return api.Pong{Peer: c.Peer, Addr: c.Addr, RoundTrip: r.RTT, RoundTripUS: r.RTT.Microseconds()}, nil
}
