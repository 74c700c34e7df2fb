package attack

import (
	"context"
	"crypto/rand"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/lockservice"
	"latchkey/node"
	"latchkey/node/config"
	"latchkey/replicagroup/placement"
)

// networkKey is the overlay's private key. The attackers have it.
var networkKey = pnet.PSK("0123456789abcdef0123456789abcdef")

// echoService answers with what it was sent: the largest answers there are.
const echoService = "attack-echo"

const waitMax = time.Minute // for what takes milliseconds on an idle machine

// world is an overlay of three hosting peers and one client, whose locks are kept by the peer under attack.
type world struct {
	nodes   []*node.Node // the founders
	hosts   []host.Host
	client  *node.Node // hosts nothing
	genesis placement.Genesis
	victim  int    // of nodes: leads the group of lock
	lock    string // what the client takes
}

// newHost returns a host with the limits of a daemon's.
func newHost(t testing.TB) host.Host {
	t.Helper()
	c, err := config.Default(config.Test)
	if err != nil {
		t.Fatal(err)
	}
	c.Network.Listen = []string{"/ip4/127.0.0.1/tcp/0"}
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	opts, err := node.HostOptions(c, key, networkKey, nil)
	if err != nil {
		t.Fatal(err)
	}
	h, err := libp2p.New(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func within(t testing.TB) context.Context {
	t.Helper()
	d := waitMax + 2**attackTime
	ctx, cancel := context.WithTimeoutCause(context.Background(), d, fmt.Errorf("not within %v", d))
	t.Cleanup(cancel)
	return ctx
}

func newWorld(t testing.TB) *world {
	t.Helper()
	ctx := within(t)
	w := new(world)
	one := 1
	for range 4 {
		w.hosts = append(w.hosts, newHost(t))
	}
	genesis, store, err := node.Found(w.hosts[0], node.FoundOptions{Name: "attacked", F: &one})
	if err != nil {
		t.Fatal(err)
	}
	w.genesis = genesis
	start := func(h host.Host, opts ...node.Option) *node.Node {
		n, err := node.New(h, append(opts, node.WithOverlay(genesis))...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.Close() })
		n.Overlay().Handle(echoService, func(r *dht.Request) { r.Reply(r.Data) })
		if err := n.Start(ctx); err != nil {
			t.Fatal(err)
		}
		return n
	}
	w.nodes = append(w.nodes, start(w.hosts[0], node.WithStore(store)), start(w.hosts[1]), start(w.hosts[2]))
	w.client = start(w.hosts[3], node.ClientOnly())
	for i, n := range append(slices.Clone(w.nodes), w.client) {
		if err := n.Overlay().WaitPeers(ctx, min(2, 3-i/3)); err != nil {
			t.Fatal(err)
		}
	}
	w.choose(t, ctx)
	return w
}

// choose finds a lock whose group is led by a peer other than the root's only founder, with all three as its members.
func (w *world) choose(t testing.TB, ctx context.Context) {
	t.Helper()
	for i := 0; ctx.Err() == nil; i++ {
		name := fmt.Sprint("honest ", i)
		key, err := w.client.Key(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		for j, n := range w.nodes[1:] {
			if key.Group.Leader == n.ID().String() && len(key.Group.Members) == len(w.nodes) {
				w.lock, w.victim = name, j+1
				return
			}
		}
	}
	t.Fatal("no peer but the founder leads a group")
}

// attacked returns the peer under attack.
func (w *world) attacked() *node.Node { return w.nodes[w.victim] }

// order returns what attackers have to know.
func (w *world) order(t testing.TB, kind string, peers, streams int) order {
	t.Helper()
	h, id := w.hosts[w.victim], w.genesis.ID()
	o := order{Kind: kind, Peers: peers, Streams: streams, Overlay: id[:], Depth: w.genesis.Depth, Target: h.ID().String()}
	for _, a := range h.Addrs() {
		o.Addrs = append(o.Addrs, a.String())
	}
	d, err := w.client.Groups().Locate(within(t), keyspace.Preimage(w.lock).Key())
	if err == nil {
		o.Descriptor, err = d.Encode()
	}
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// lockFor takes and gives back locks until the time is over, and returns how long each round took.
func (w *world) lockFor(t testing.TB, ctx context.Context, d time.Duration) []time.Duration {
	t.Helper()
	var took []time.Duration
	var last lockservice.Token
	for start := time.Now(); time.Since(start) < d || len(took) < 10; {
		begin := time.Now()
		h, err := w.client.Locks().Lock(ctx, w.lock)
		if err != nil {
			t.Fatalf("an honest lock, after %d rounds: %v", len(took), err)
		}
		if h.Token() <= last {
			t.Fatalf("token %v after %v", h.Token(), last)
		}
		last = h.Token()
		if err := h.Release(ctx); err != nil {
			t.Fatalf("an honest release, after %d rounds: %v", len(took), err)
		}
		took = append(took, time.Since(begin))
	}
	return took
}

// quantile returns the sample below which the share q of all lies.
func quantile(samples []time.Duration, q float64) time.Duration {
	sorted := slices.Sorted(slices.Values(samples))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// ratio compares two sets of samples at a quantile.
func ratio(before, during []time.Duration, q float64) float64 {
	return float64(quantile(during, q)) / float64(quantile(before, q))
}

// heap returns the bytes in use on the heap of this process, garbage collected.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// inbound counts the streams that peers other than ours have opened to the attacked one.
func (w *world) strangersStreams() (streams, conns int) {
	h := w.hosts[w.victim]
	ours := make(map[peer.ID]bool)
	for _, o := range w.hosts {
		ours[o.ID()] = true
	}
	for _, c := range h.Network().Conns() {
		if ours[c.RemotePeer()] {
			continue
		}
		conns++
		for _, s := range c.GetStreams() {
			if s.Stat().Direction == network.DirInbound {
				streams++
			}
		}
	}
	return streams, conns
}

// eventually waits until ok holds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(waitMax); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", waitMax, what)
		}
	}
}
