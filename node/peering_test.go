package node

import (
	"errors"
	"strings"
	"testing"

	kaddht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht"
	"latchkey/node/api"
)

func TestAnOperatorConnectsDisconnectsAndPings(t *testing.T) {
	t.Parallel()
	hosts := []host.Host{newHost(t), newHost(t)}
	nodes := overlay(t, hosts, nil)
	a, ctx := nodes[0], within(t, waitMax)
	id := hosts[1].ID().String()
	full := hosts[1].Addrs()[0].String() + "/p2p/" + id
	for _, to := range []string{id, full} {
		eventually(t, "connected", func() bool { return connected(hosts[0], hosts[1]) })
		if c, err := a.Connect(ctx, to); err != nil || !c.Already || c.Peer != id || c.Addr == "" {
			t.Errorf("%s: %+v, %v", to, c, err)
		}
		if p, err := a.Ping(ctx, to); err != nil || p.RoundTrip <= 0 || p.Peer != id || p.RoundTripUS != p.RoundTrip.Microseconds() {
			t.Errorf("%s: %+v, %v", to, p, err)
		}
	}
	// A peer with no latchkey node is reached, and told for what it is; one whose address nobody knows is not.
	stranger := newHost(t)
	if _, err := a.Connect(ctx, stranger.Addrs()[0].String()+"/p2p/"+stranger.ID().String()); !errors.Is(err, api.ErrConnect) || !errors.Is(err, ErrNotLatchkey) {
		t.Errorf("a stranger: %v", err)
	}
	if n, err := a.Disconnect(ctx, stranger.ID().String()); err != nil && !strings.Contains(err.Error(), "not connected") || err == nil && n < 1 {
		t.Errorf("a stranger: %d, %v", n, err)
	}
	for what, c := range map[string]struct {
		to   string
		want error
	}{
		"no peer":        {"x", api.ErrPeer},
		"nothing":        {"", api.ErrPeer},
		"no multiaddr":   {"/ip4/x", api.ErrPeer},
		"no id in it":    {"/ip4/127.0.0.1/tcp/1", api.ErrPeer},
		"itself":         {hosts[0].ID().String(), api.ErrPeer},
		"no address":     {newKeyID(t), api.ErrPeer},
		"nobody answers": {"/ip4/127.0.0.1/tcp/1/p2p/" + newKeyID(t), ErrUnreachable},
		"another":        {hosts[1].Addrs()[0].String() + "/p2p/" + newKeyID(t), ErrOtherPeer},
	} {
		if _, err := a.Connect(ctx, c.to); !errors.Is(err, c.want) {
			t.Errorf("connect, %s: %v", what, err)
		}
		if _, err := a.Ping(ctx, c.to); !errors.Is(err, c.want) {
			t.Errorf("ping, %s: %v", what, err)
		}
	}
	// Whether the two are connected again a moment later is theirs to say.
	conns := hosts[0].Network().ConnsToPeer(hosts[1].ID())
	if n, err := a.Disconnect(ctx, id); err != nil || n < 1 {
		t.Errorf("%d, %v", n, err)
	}
	for _, c := range conns {
		if !c.IsClosed() {
			t.Errorf("%s is still open", c.RemoteMultiaddr())
		}
	}
	if _, err := a.Disconnect(ctx, newKeyID(t)); !errors.Is(err, api.ErrPeer) {
		t.Errorf("not connected: %v", err)
	}
}

func newKeyID(t *testing.T) string { return peerIDOf(t, newKey(t)).String() }

// A node can use a Kademlia of the application's, all of whose peers speak latchkey: it finds the others by it, runs none of its own, and
// leaves it open.
func TestANodeOnAnApplicationsKademlia(t *testing.T) {
	t.Parallel()
	const prefix = "/application"
	hosts := []host.Host{newHost(t), newHost(t), newHost(t)}
	var kads []*kaddht.IpfsDHT
	for i, h := range hosts {
		opts := []kaddht.Option{kaddht.Mode(kaddht.ModeServer), kaddht.ProtocolPrefix(prefix)}
		if i > 0 {
			opts = append(opts, kaddht.BootstrapPeers(info(hosts[0])))
		}
		d, err := kaddht.New(h, opts...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		kads = append(kads, d)
	}
	nodes := overlay(t, hosts, func(i int) []Option { return []Option{WithDHT(kads[i])} })
	ctx := within(t, waitMax)
	for i, n := range nodes {
		if n.Overlay().DHT() != kads[i] {
			t.Fatalf("node %d has a Kademlia of its own", i)
		}
		for _, p := range hosts[i].Mux().Protocols() {
			if strings.HasPrefix(string(p), dht.ProtocolFamily) && strings.Contains(string(p), "/kad/") {
				t.Errorf("node %d answers at %s", i, p)
			}
		}
		if err := n.Overlay().WaitPeers(ctx, 2); err != nil {
			t.Fatal(err)
		}
	}
	lock, err := nodes[1].Locks().Lock(ctx, "over the application's Kademlia")
	if err != nil {
		t.Fatal(err)
	}
	if err := lock.Release(ctx); err != nil {
		t.Error(err)
	}
	if err := nodes[2].Close(); err != nil {
		t.Error(err)
	}
	// It goes on without the node.
	if peers, err := kads[2].GetClosestPeers(ctx, "anything"); err != nil || len(peers) == 0 {
		t.Errorf("after the node has closed: %v, %v", peers, err)
	}
	if hosts[2].Network().Connectedness(hosts[0].ID()) != network.Connected {
		t.Error("the application's connections are closed")
	}
}

func peerIDOf(t *testing.T, k crypto.PrivKey) peer.ID {
	t.Helper()
	id, err := peer.IDFromPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return id
}
