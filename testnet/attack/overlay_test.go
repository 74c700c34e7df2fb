package attack

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/pnet"

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

// sinkProtocol is of streams that the honest peers read and throw away, outside the overlay: no program can do less with what it is sent.
const sinkProtocol = "/latchkey-test/sink/1.0.0"

const waitMax = time.Minute // for what takes milliseconds on an idle machine

// world is an overlay of three hosting peers, each a process of its own, and one client in this one, whose locks are kept by the peer
// under attack.
type world struct {
	peers   []*honest // the founder first
	host    host.Host // the client's
	client  *node.Node
	genesis placement.Genesis
	victim  int    // of peers: leads the group of lock
	lock    string // what the client takes
}

// honest is a hosting peer's process.
type honest struct {
	*child
	introduction
}

// probe asks the peer how it is.
func (h *honest) probe(t testing.TB) (p probe) {
	t.Helper()
	h.ask(t, askProbe, &p)
	return p
}

// memory asks the peer what it takes.
func (h *honest) memory(t testing.TB) (m memory) {
	t.Helper()
	h.ask(t, askMemory, &m)
	return m
}

func (h *honest) ask(t testing.TB, what string, v any) {
	t.Helper()
	if err := h.lines.Encode(what); err != nil {
		t.Fatal(err)
	}
	h.next(t, v)
}

// newHost returns a host with the limits of a daemon's.
func newHost() (host.Host, error) {
	c, err := config.Default(config.Test)
	if err != nil {
		return nil, err
	}
	c.Network.Listen = []string{"/ip4/127.0.0.1/tcp/0"}
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, err
	}
	opts, err := node.HostOptions(c, key, networkKey, nil)
	if err != nil {
		return nil, err
	}
	return libp2p.New(opts...)
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
	var genesis []byte
	for range 3 {
		h := &honest{child: newChild(t, role{Peer: &peerOrder{Genesis: genesis}}, nil)}
		h.next(t, &h.introduction)
		genesis = h.Genesis
		w.peers = append(w.peers, h)
		t.Cleanup(func() {
			if err := h.end(); err != nil {
				t.Errorf("an honest peer: %v", err)
			}
		})
	}
	var err error
	if w.genesis, err = placement.DecodeGenesis(genesis); err != nil {
		t.Fatal(err)
	}
	if w.host, err = newHost(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.host.Close() })
	if w.client, err = node.New(w.host, node.WithOverlay(w.genesis), node.ClientOnly()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.client.Close() })
	if err := w.client.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := w.client.Overlay().WaitPeers(ctx, len(w.peers)); err != nil {
		t.Fatal(err)
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
		for j, p := range w.peers[1:] {
			if key.Group.Leader == p.ID && len(key.Group.Members) == len(w.peers) {
				w.lock, w.victim = name, j+1
				return
			}
		}
	}
	t.Fatal("no peer but the founder leads a group")
}

// attacked returns the peer under attack.
func (w *world) attacked() *honest { return w.peers[w.victim] }

// order returns what attackers have to know.
func (w *world) order(t testing.TB, s scenario) order {
	t.Helper()
	h, id := w.attacked(), w.genesis.ID()
	o := order{Kind: s.kind, Peers: s.peers, Streams: s.streams, Least: s.least, Overlay: id[:], Depth: w.genesis.Depth, Target: h.ID, Addrs: h.Addrs}
	d, err := w.client.Groups().Locate(within(t), keyspace.Preimage(w.lock).Key())
	if err == nil {
		o.Descriptor, err = d.Encode()
	}
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// sink has attackers send to the attacked process's sink what s has them send to its peer, as many messages a second, while the honest
// client works.
func (w *world) sink(t testing.TB, s scenario, rate float64, honest func()) {
	t.Helper()
	o := w.order(t, s)
	o.Sink, o.Rate, o.Least = true, rate, 0
	g := attackWith(t, o)
	honest()
	g.stop()
	eventually(t, "the attackers' connections are gone", func() bool { return w.strangers(w.attacked().probe(t)).Conns == 0 })
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

// strangers counts what peers other than ours have at a peer.
func (w *world) strangers(p probe) (all inbound) {
	for _, h := range w.peers {
		delete(p.Inbound, h.ID)
	}
	delete(p.Inbound, w.host.ID().String())
	for _, in := range p.Inbound {
		all.Conns += in.Conns
		all.Streams += in.Streams
	}
	return all
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
