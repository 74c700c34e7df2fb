package dht

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"

	"latchkey/dht/keyspace"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testOverlay = [32]byte{1, 2, 3, 4, 5}

const waitMax = time.Minute // for what takes milliseconds on an idle machine

// newHost returns a host on a loopback port of its own. Hosts made with equal seeds have equal ids.
func newHost(t testing.TB, seed uint64) host.Host {
	t.Helper()
	return newHostAt(t, seed, "/ip4/127.0.0.1/tcp/0")
}

func newHostAt(t testing.TB, seed uint64, addr string) host.Host {
	t.Helper()
	var s [ed25519.SeedSize]byte
	binary.BigEndian.PutUint64(s[:], seed)
	key, err := crypto.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed(s[:]))
	if err != nil {
		t.Fatal(err)
	}
	h, err := libp2p.New(libp2p.Identity(key), libp2p.ListenAddrStrings(addr), libp2p.DisableRelay(),
		libp2p.DisableMetrics(), libp2p.ResourceManager(&network.NullResourceManager{}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func infoOf(h host.Host) peer.AddrInfo { return peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()} }

// newOverlay returns a started overlay on h.
func newOverlay(t testing.TB, h host.Host, setUp func(*Overlay), opts ...Option) *Overlay {
	t.Helper()
	o, err := New(h, append([]Option{WithOverlayID(testOverlay)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	o.Handle("echo", func(r *Request) { r.Reply(r.Data) })
	if setUp != nil {
		setUp(o)
	}
	if err := o.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.Close() })
	return o
}

// pair returns two overlays whose hosts know each other's addresses. Neither has a seed, so they speak only when told to.
func pair(t testing.TB, setUp func(*Overlay), opts ...Option) (a, b *Overlay) {
	t.Helper()
	a, b = newOverlay(t, newHost(t, 1), setUp, opts...), newOverlay(t, newHost(t, 2), setUp, opts...)
	a.Learn(infoOf(b.host))
	b.Learn(infoOf(a.host))
	return a, b
}

// mesh returns n overlays that all know each other.
func mesh(t testing.TB, n int, setUp func(*Overlay), opts ...Option) []*Overlay {
	t.Helper()
	os := make([]*Overlay, n)
	var seeds []peer.AddrInfo
	for i := range os {
		os[i] = newOverlay(t, newHost(t, uint64(i+1)), setUp, append(opts, WithBootstrap(seeds...))...)
		if i == 0 {
			seeds = append(seeds, infoOf(os[0].host))
		}
	}
	ctx := within(t)
	for _, o := range os {
		if err := o.WaitPeers(ctx, n-1); err != nil {
			t.Fatal(err)
		}
	}
	return os
}

func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitMax)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits until ok holds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(waitMax); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", waitMax, what)
		}
	}
}

// trueSet is the answer that a look-up should give.
func trueSet(os []*Overlay, at keyspace.Preimage, r int) []peer.ID {
	nodes := make([]keyspace.NodeID, len(os))
	byNode := make(map[keyspace.NodeID]peer.ID)
	for i, o := range os {
		nodes[i] = o.Node()
		byNode[o.Node()] = o.Self()
	}
	keyspace.SortByDistance(at.Key(), nodes)
	var ids []peer.ID
	for _, n := range nodes[:min(r, len(nodes))] {
		ids = append(ids, byNode[n])
	}
	return ids
}
