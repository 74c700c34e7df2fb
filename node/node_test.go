package node

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"runtime/debug"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	kaddht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"

	"latchkey/lockservice"
	"latchkey/replicagroup"
)

// waitMax bounds every wait of these tests for what should come, and on an idle machine does within moments.
const waitMax = time.Minute

func TestMain(m *testing.M) {
	flag.Set("test.parallel", "12") // they wait for peers and for patience to end, more than for a processor
	debug.SetGCPercent(400)         // their heaps are small: with Go's default much of their time is spent on collecting them
	goleak.VerifyTestMain(m)
}

func newHost(t *testing.T) host.Host {
	t.Helper()
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableRelay(), libp2p.DisableMetrics())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), d, fmt.Errorf("no answer in %v", d))
	t.Cleanup(cancel)
	return ctx
}

// overlay starts nodes on hosts, the first of which founds.
func overlay(t *testing.T, hosts []host.Host, extra func(i int) []Option) []*Node {
	t.Helper()
	one := 1
	genesis, store, err := Found(hosts[0], FoundOptions{Name: "test", F: &one})
	if err != nil {
		t.Fatal(err)
	}
	var nodes []*Node
	for i, h := range hosts {
		opts := []Option{WithOverlay(genesis)}
		if i == 0 {
			opts = append(opts, WithStore(store))
		}
		if extra != nil {
			opts = append(opts, extra(i)...)
		}
		n, err := New(h, opts...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.Close() })
		if err := n.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, n)
	}
	ctx := within(t, waitMax)
	for _, n := range nodes[1:] {
		if err := n.Overlay().WaitPeers(ctx, 1); err != nil {
			t.Fatal(err)
		}
	}
	return nodes
}

func TestNewSaysWhatIsMissing(t *testing.T) {
	h := newHost(t)
	g, store, err := Found(h, FoundOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		host host.Host
		opts []Option
	}{
		"no host":             {nil, []Option{WithOverlay(g)}},
		"no overlay":          {h, nil},
		"client with a store": {h, []Option{WithOverlay(g), ClientOnly(), WithStore(store)}},
	} {
		if _, err := New(c.host, c.opts...); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestLatchkeyLeavesTheApplicationsHostAlone(t *testing.T) {
	t.Parallel()
	hosts := []host.Host{newHost(t), newHost(t), newHost(t)}
	var apps []*kaddht.IpfsDHT
	for _, h := range hosts {
		d, err := kaddht.New(h, kaddht.Mode(kaddht.ModeServer), kaddht.ProtocolPrefix("/application"))
		if err != nil {
			t.Fatal(err)
		}
		apps = append(apps, d)
		t.Cleanup(func() { d.Close() })
	}
	// A peer that speaks the application's protocols only.
	stranger := newHost(t)
	d, err := kaddht.New(stranger, kaddht.Mode(kaddht.ModeServer), kaddht.ProtocolPrefix("/application"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	nodes := overlay(t, hosts, nil)
	ctx := within(t, waitMax)
	for _, h := range hosts {
		if err := h.Connect(ctx, peer.AddrInfo{ID: stranger.ID(), Addrs: stranger.Addrs()}); err != nil {
			t.Fatal(err)
		}
	}
	for i, a := range apps {
		for a.RoutingTable().Find(stranger.ID()) == "" {
			if err := waitFor(ctx); err != nil {
				t.Fatalf("the application's own table of host %d does not know its peer: %v", i, err)
			}
		}
	}
	if err := nodes[1].Overlay().WaitPeers(ctx, 2); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		info, err := nodes[1].Key(ctx, fmt.Sprint("key ", i))
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range info.Closest {
			if id == stranger.ID().String() {
				t.Fatal("a peer that does not speak latchkey was found")
			}
		}
	}
	for _, n := range nodes {
		if err := errors.Join(n.Close(), n.Close()); err != nil {
			t.Error(err)
		}
	}
	// The hosts are still the application's.
	if err := hosts[1].Connect(ctx, peer.AddrInfo{ID: hosts[2].ID(), Addrs: hosts[2].Addrs()}); err != nil {
		t.Errorf("after latchkey closed: %v", err)
	}
}

// waitFor lets a condition that nobody signals be looked at again.
func waitFor(ctx context.Context) error {
	select {
	case <-time.After(5 * time.Millisecond):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func TestClientOnlyNodeTakesLocksAndHostsNothing(t *testing.T) {
	t.Parallel()
	hosts := []host.Host{newHost(t), newHost(t), newHost(t), newHost(t)}
	nodes := overlay(t, hosts, func(i int) []Option {
		if i == 3 {
			return []Option{ClientOnly()}
		}
		return nil
	})
	ctx := within(t, waitMax)
	client := nodes[3]
	for i := range 10 {
		h, err := client.Locks().Lock(ctx, fmt.Sprint("lock ", i))
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Release(ctx); err != nil {
			t.Fatal(err)
		}
		info, err := nodes[0].Key(ctx, fmt.Sprint("lock ", i))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range append(info.Group.Members, info.Closest...) {
			if m == client.ID().String() {
				t.Fatalf("the client is near %q or a member of its group", info.Name)
			}
		}
	}
	if all, err := client.Groups().Status(ctx); err != nil || len(all) != 0 {
		t.Errorf("the client runs %d replicas, %v", len(all), err)
	}
	if info := client.Info(); info.Store != "" {
		t.Errorf("the client has store %s", info.Store)
	}
}

func TestSessionsOfOneNodeAreStrangersToEachOther(t *testing.T) {
	nodes := overlay(t, []host.Host{newHost(t)}, nil)
	ctx := within(t, waitMax)
	a, b := nodes[0].NewLocks(), nodes[0].NewLocks()
	held, err := a.Lock(ctx, "one")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.TryLock(ctx, "one"); !errors.Is(err, lockservice.ErrLocked) {
		t.Errorf("another session: %v", err)
	}
	if _, err := a.TryLock(ctx, "one"); !errors.Is(err, lockservice.ErrLocked) {
		t.Errorf("the same session again: %v", err)
	}
	if err := held.Release(ctx); err != nil {
		t.Fatal(err)
	}
	again, err := b.TryLock(ctx, "one")
	if err != nil || again.Token() <= held.Token() {
		t.Errorf("after release: token %v after %v, %v", again, held.Token(), err)
	}
}

func TestNodeStopsWhenItsStoreIsTakenAway(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	g, store, err := Found(h, FoundOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n, err := New(h, WithOverlay(g), WithStore(store))
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx := within(t, waitMax)
	held, err := n.Locks().Lock(ctx, "x", lockservice.WithTTL(2*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	store.Detach()
	go n.Locks().TryLock(ctx, "y") // something to store
	select {
	case <-n.Done():
	case <-ctx.Done():
		t.Fatal("the node went on without its store")
	}
	if err := n.Err(); !errors.Is(err, replicagroup.ErrStore) {
		t.Errorf("it stopped because of %v", err)
	}
	select {
	case <-held.Context().Done():
		if err := context.Cause(held.Context()); !errors.Is(err, lockservice.ErrLost) {
			t.Errorf("the lock ended with %v", err)
		}
	case <-ctx.Done():
		t.Error("the holder was not told")
	}
}
