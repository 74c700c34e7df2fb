package replicagroup

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
)

// kill ends a peer without a word and returns its disk.
func (p *testPeer) kill() *MemoryStore {
	disk := p.store.Detach()
	p.host.Close()
	p.groups.Close()
	p.overlay.Close()
	return disk
}

// reborn makes a host with the identity of a killed peer, at another port.
func (p *testPeer) reborn(t *testing.T) {
	t.Helper()
	key := p.host.Peerstore().PrivKey(p.host.ID())
	h, err := libp2p.New(append(p.options, libp2p.Identity(key), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableRelay(), libp2p.DisableMetrics())...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	p.host = h
}

// restart brings a killed peer back, with the same identity, on a disk.
func (w *world) restart(t *testing.T, p *testPeer, disk *MemoryStore) {
	t.Helper()
	p.reborn(t)
	p.store = disk
	var others []peer.AddrInfo
	for _, o := range w.peers {
		if o != p && len(o.host.Addrs()) > 0 {
			others = append(others, peer.AddrInfo{ID: o.host.ID(), Addrs: o.host.Addrs()})
		}
	}
	w.start(t, p, others)
}

// replicaOf waits until a peer's replica of a group satisfies ok.
func replicaOf(t *testing.T, ctx context.Context, p *testPeer, g order.GroupID, ok func(order.Status) bool) {
	t.Helper()
	for {
		all, err := p.groups.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range all {
			if r.Group == g && ok(r.Status) {
				return
			}
		}
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			t.Fatalf("replica of %v at %v: %v", g, p.overlay.Node(), err)
		}
	}
}

func TestKilledPeersComeBackWithTheirDisksAndAllTheyPromised(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3, 1)
	ctx := deadline(t, waitMax)
	key := keyspace.Preimage("kept").Key()
	c := w.peers[0].groups.NewClient()
	for range 50 {
		if _, err := c.Do(ctx, key, "count", number(1)); err != nil {
			t.Fatal(err)
		}
	}
	// Two at once, which is more than the group can bear: nothing may be acknowledged until one is back.
	disk1, disk2 := w.peers[1].kill(), w.peers[2].kill()
	short, cancel := context.WithTimeoutCause(ctx, 300*time.Millisecond, errors.New("patience"))
	defer cancel()
	if _, err := c.Do(short, key, "count", number(1)); !errors.Is(err, ErrOutcomeUnknown) && !errors.Is(err, ErrNoQuorum) {
		t.Errorf("a minority answered: %v", err)
	}
	w.restart(t, w.peers[1], disk1)
	got, err := w.peers[1].groups.NewClient().Query(ctx, key, "count", nil)
	if sum := binary.BigEndian.Uint64(got); err != nil || sum != 50 && sum != 51 { // the unacknowledged one may have survived
		t.Errorf("sum %d, %v after a restart", sum, err)
	}
	w.restart(t, w.peers[2], disk2)
	g := order.GroupID{Overlay: w.genesis.ID(), Prefix: w.genesis.PrefixOf(key)}
	replicaOf(t, ctx, w.peers[2], g, func(s order.Status) bool { return s.Applied >= 60 })
}

func TestPeerThatLostItsDiskIsNotTakenForItsFormerSelf(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3, 1)
	ctx := deadline(t, waitMax)
	key := keyspace.Preimage("kept").Key()
	c := w.peers[0].groups.NewClient()
	if _, err := c.Do(ctx, key, "count", number(1)); err != nil {
		t.Fatal(err)
	}
	w.peers[2].kill()
	w.restart(t, w.peers[2], NewMemoryStore())
	for range 20 {
		if _, err := c.Do(ctx, key, "count", number(1)); err != nil {
			t.Fatal(err)
		}
	}
	all, err := w.peers[2].groups.Status(ctx)
	if err != nil || len(all) != 0 {
		t.Errorf("%d replicas run at the peer with the empty disk, %v", len(all), err)
	}
	// With another member gone the group has one voter left, whatever runs on the third peer.
	w.peers[1].kill()
	short, cancel := context.WithTimeoutCause(ctx, 2*time.Second, errors.New("patience"))
	defer cancel()
	if _, err := c.Do(short, key, "count", number(1)); err == nil {
		t.Error("a peer with an empty disk was counted as a voter")
	}
	// The peer can still use what others keep, and reaches nobody in vain.
	if n := w.peers[2].groups.Counters().StrayMessages; n == 0 {
		t.Error("no engine message came to the peer under its former store id: the test shows nothing")
	}
}

func TestOnlyFounderWithoutItsDiskFoundsNothing(t *testing.T) {
	w := newWorld(t, 1, 0)
	p := w.peers[0]
	p.kill()
	p.reborn(t)
	overlay, err := dht.New(p.host, dht.WithOverlayID(w.genesis.ID()))
	if err != nil {
		t.Fatal(err)
	}
	defer overlay.Close()
	groups, err := New(Config{Genesis: w.genesis, Overlay: overlay, Store: NewMemoryStore()})
	if err != nil {
		t.Fatal(err)
	}
	defer groups.Close()
	if err := groups.Start(t.Context()); !errors.Is(err, ErrRootLost) {
		t.Errorf("start of a founder with an empty disk: %v", err)
	}
}
