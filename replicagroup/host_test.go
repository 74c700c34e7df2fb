package replicagroup

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/placement"
	"latchkey/replicagroup/session"
)

// waitMax bounds every wait of these tests for what should come, and on an idle machine does within seconds.
const waitMax = 4 * time.Minute

func TestMain(m *testing.M) {
	flag.Set("test.parallel", "12") // they wait for elections and for patience to end, more than for a processor
	debug.SetGCPercent(400)         // their heaps are small: with Go's default much of their time is spent on collecting them
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/ipfs/go-log/writer.(*MirrorWriter).logRoutine"))
}

// counter is a machine that adds numbers, and pushes each sum to whoever asked for it.
type counter struct{ sum uint64 }

func (m *counter) Apply(c session.Context, data []byte) []byte {
	if len(data) != 8 {
		return nil
	}
	m.sum += binary.BigEndian.Uint64(data)
	c.Emit(c.Client, m.Snapshot())
	return m.Snapshot()
}
func (m *counter) Query(session.Context, []byte) []byte         { return m.Snapshot() }
func (m *counter) Tick(session.Context)                         {}
func (m *counter) SessionEnded(session.Context, order.ClientID) {}
func (m *counter) Deadline() (time.Duration, bool)              { return 0, false }
func (m *counter) Resend(session.Context)                       {}
func (m *counter) Snapshot() []byte                             { return binary.BigEndian.AppendUint64(nil, m.sum) }
func (m *counter) Restore(b []byte) error {
	if len(b) != 8 {
		return errors.New("counter: not eight bytes")
	}
	m.sum = binary.BigEndian.Uint64(b)
	return nil
}

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// world is a small overlay on real hosts.
type world struct {
	genesis   placement.Genesis
	peers     []*testPeer
	plan      placement.PlanTimes // zero: the defaults, which change nothing within the time of a test
	fixed     bool                // nothing changes but by the test's hand
	options   func(i int) []libp2p.Option
	genesisBy []func(*placement.Genesis)
	configure func(*Config) // of every host; nil: nothing
}

type testPeer struct {
	host    host.Host
	options []libp2p.Option // of the host of its next life
	prepare func(h *Host)   // before groups start
	overlay *dht.Overlay
	groups  *Host
	store   *MemoryStore
	told    func(p peer.ID, suspected bool) // what groups gave to OnSuspect

	beforeWrite atomic.Pointer[func([]Write)] // see diesBefore
	// deaf, when set, says to whom engine messages are lost.
	deaf atomic.Pointer[func(to peer.ID) bool]
}

// told is an overlay that takes note of who wants to know of suspicions.
type told struct {
	*dht.Overlay
	peer *testPeer
}

func (o told) OnSuspect(f func(p peer.ID, suspected bool)) {
	o.peer.told = f
	o.Overlay.OnSuspect(f)
}

func (o told) Send(to peer.ID, key keyspace.Key, service string, msg []byte) error {
	if deaf := o.peer.deaf.Load(); deaf != nil && service == serviceEngine && (*deaf)(to) {
		return nil
	}
	return o.Overlay.Send(to, key, service, msg)
}

// newWorld starts n peers of which 2f+1 have founded the overlay.
func newWorld(t testing.TB, n, f int, change ...func(*placement.Genesis)) *world {
	t.Helper()
	return (&world{genesisBy: change}).begin(t, n, f, min(n, 2*f+1))
}

// newWorldOn makes the hosts with further options.
func newWorldOn(t testing.TB, n, f int, options func(i int) []libp2p.Option) *world {
	t.Helper()
	return (&world{options: options}).begin(t, n, f, min(n, 2*f+1))
}

// newFixedWorld does the same, and groups keep their members, but for what the test does.
func newFixedWorld(t testing.TB, n, f int, change ...func(*placement.Genesis)) *world {
	t.Helper()
	return (&world{fixed: true, genesisBy: change}).begin(t, n, f, min(n, 2*f+1))
}

// newPlannedWorld starts n peers, of which the first ones have founded the overlay, whose groups follow the peers within seconds.
func newPlannedWorld(t testing.TB, n, f, founders int) *world {
	t.Helper()
	return (&world{plan: placement.TestnetPlanTimes()}).begin(t, n, f, founders)
}

// begin starts n peers of which the first ones, an odd number up to founders, have founded the overlay.
func (w *world) begin(t testing.TB, n, f, founders int) *world {
	t.Helper()
	w.genesis = placement.Defaults()
	w.genesis.Name, w.genesis.F, w.genesis.RootKey = t.Name(), f, make(ed25519.PublicKey, ed25519.PublicKeySize)
	w.genesis.Nonce[0] = 1
	for _, c := range w.genesisBy {
		c(&w.genesis)
	}
	var first []peer.AddrInfo
	for i := range n {
		p := w.add(t)
		info := peer.AddrInfo{ID: p.host.ID(), Addrs: p.host.Addrs()}
		first = append(first, info)
		if i < founders {
			w.genesis.Founders = append(w.genesis.Founders, placement.Host{Peer: peerOfInfo(info), Store: p.store.ID()})
		}
	}
	if k := len(w.genesis.Founders); k%2 == 0 {
		w.genesis.Founders = w.genesis.Founders[:k-1]
	}
	for i, p := range w.peers {
		if i < len(w.genesis.Founders) {
			if err := Found(p.store, w.genesis, dht.NodeIDOf(p.host.ID())); err != nil {
				t.Fatal(err)
			}
		}
		w.start(t, p, first[:1])
	}
	ctx, cancel := context.WithTimeout(t.Context(), waitMax)
	defer cancel()
	for _, p := range w.peers {
		if err := p.overlay.WaitPeers(ctx, n-1); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// add makes a further peer, which does not run yet.
func (w *world) add(t testing.TB) *testPeer {
	t.Helper()
	var options []libp2p.Option
	if w.options != nil {
		options = w.options(len(w.peers))
	}
	h, err := libp2p.New(append(options, libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableRelay(), libp2p.DisableMetrics())...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	p := &testPeer{host: h, store: NewMemoryStore()}
	w.peers = append(w.peers, p)
	return p
}

func (w *world) start(t testing.TB, p *testPeer, bootstrap []peer.AddrInfo) {
	t.Helper()
	w.startWith(t, p, bootstrap, func(*Config) {})
}

func (w *world) startWith(t testing.TB, p *testPeer, bootstrap []peer.AddrInfo, change func(*Config)) {
	t.Helper()
	var err error
	p.overlay, err = dht.New(p.host, dht.WithOverlayID(w.genesis.ID()), dht.WithBootstrap(bootstrap...), dht.WithBoot(p.boot()))
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Genesis: w.genesis, Overlay: told{p.overlay, p}, Store: frail{p.store, p}, Plan: w.plan, Fixed: w.fixed,
		Distrusts: func(q peer.ID, s order.StoreID) bool { return p.overlay.Refuses(q, s) },
		Distrust:  func(q peer.ID, s order.StoreID) { p.overlay.Refuse(q, s) },
		Services: map[string]MachineFactory{
			"count": func(order.GroupID) session.Machine { return new(counter) },
			"blob":  func(order.GroupID) session.Machine { return new(blob) },
		}}
	if w.configure != nil {
		w.configure(&cfg)
	}
	change(&cfg)
	p.groups, err = New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	p.overlay.OnAccused(p.groups.Accused)
	p.overlay.OnAlarm(func(a dht.Alarm) {
		if p.overlay.Refuses(a.Peer, a.Store) {
			p.groups.Distrusted(a.Peer, a.Store)
		}
	})
	if p.prepare != nil {
		p.prepare(p.groups)
	}
	if err := p.groups.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.overlay.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.groups.Close()
		p.overlay.Close()
	})
}

// boot is the start of its store that the peer's present life is.
func (p *testPeer) boot() dht.Boot {
	b := p.store.BootNonce()
	return dht.Boot{Store: p.store.ID(), Count: b.Count, Nonce: b.Nonce}
}

func deadline(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeoutCause(t.Context(), d, fmt.Errorf("no answer in %v", d))
	t.Cleanup(cancel)
	return ctx
}

func TestOneNodeOverlayServes(t *testing.T) {
	w := newWorld(t, 1, 0)
	c := w.peers[0].groups.NewClient()
	key := keyspace.Preimage("k").Key()
	for i := range uint64(3) {
		got, err := c.Do(deadline(t, waitMax), key, "count", number(5))
		if err != nil || binary.BigEndian.Uint64(got) != 5*(i+1) {
			t.Fatalf("command %d: %x, %v", i, got, err)
		}
	}
}

func TestCommandsFromEveryPeerTakeEffectOnce(t *testing.T) {
	w := newWorld(t, 5, 1)
	key := keyspace.Preimage("shared").Key()
	ctx := deadline(t, waitMax)
	const each = 40
	var wg sync.WaitGroup
	for _, p := range w.peers {
		c := p.groups.NewClient()
		for range 4 {
			wg.Go(func() {
				for range each / 4 {
					if _, err := c.Do(ctx, key, "count", number(1)); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
	}
	wg.Wait()
	got, err := w.peers[4].groups.NewClient().Query(ctx, key, "count", nil)
	if err != nil || binary.BigEndian.Uint64(got) != each*5 {
		t.Errorf("sum %x, %v, want %d", got, err, each*5)
	}
	// Every peer was told of one and the same group: the first commit won.
	var members []peer.ID
	for i, p := range w.peers {
		d, err := p.groups.Locate(ctx, key)
		if err != nil {
			t.Fatal(err)
		}
		if len(d.Peers) != 3 {
			t.Errorf("peer %d sees %d members", i, len(d.Peers))
		}
		for j, m := range d.Peers {
			if i == 0 {
				members = append(members, peer.ID(m.ID))
			} else if members[j] != peer.ID(m.ID) {
				t.Errorf("peer %d sees another group than peer 0", i)
			}
		}
	}
	hosting := 0
	for _, p := range w.peers {
		all, err := p.groups.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range all {
			if r.Group.Prefix == w.genesis.PrefixOf(key) {
				hosting++
			}
		}
	}
	if hosting != 3 {
		t.Errorf("%d replicas of the group exist, want 3", hosting)
	}
}

func TestPushReachesTheSession(t *testing.T) {
	w := newWorld(t, 3, 1)
	c := w.peers[2].groups.NewClient()
	pushed := make(chan []byte, 8)
	c.Notify("count", func(_ order.GroupID, data []byte) { pushed <- data })
	ctx := deadline(t, waitMax)
	if _, err := c.Do(ctx, keyspace.Preimage("x").Key(), "count", number(7)); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-pushed:
		if binary.BigEndian.Uint64(got) != 7 {
			t.Errorf("pushed %x", got)
		}
	case <-ctx.Done():
		t.Error("nothing was pushed")
	}
}

func TestLeaderLossCostsTimeOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 5, 1)
	key := keyspace.Preimage("survivor").Key()
	ctx := deadline(t, waitMax)
	c := w.peers[0].groups.NewClient()
	if _, err := c.Do(ctx, key, "count", number(1)); err != nil {
		t.Fatal(err)
	}
	leader, err := w.peers[0].groups.Leader(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	var client *testPeer
	for _, p := range w.peers {
		if string(p.host.ID()) != leader.ID {
			client = p
		}
	}
	c = client.groups.NewClient()
	if _, err := c.Do(ctx, key, "count", number(1)); err != nil {
		t.Fatal(err)
	}
	for _, p := range w.peers {
		if string(p.host.ID()) == leader.ID {
			p.store.Detach()
			p.host.Close()
		}
	}
	start := time.Now()
	got, err := c.Do(ctx, key, "count", number(1))
	if err != nil || binary.BigEndian.Uint64(got) != 3 {
		t.Fatalf("after the leader's death: %x, %v", got, err)
	}
	t.Logf("the group answered %v after its leader died", time.Since(start))
}

func TestCallerThatLeavesLearnsWhatItCanKnow(t *testing.T) {
	w := newWorld(t, 1, 0)
	c := w.peers[0].groups.NewClient()
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if _, err := c.Do(ctx, keyspace.Key{}, "count", number(1)); !errors.Is(err, cause) {
		t.Errorf("Do under an ended context: %v", err)
	}
	if _, err := c.Do(deadline(t, waitMax), keyspace.Key{}, "nobody", number(1)); err == nil {
		t.Error("unknown service was served")
	}
	if _, err := c.Do(t.Context(), keyspace.Key{}, "count", make([]byte, order.DataBytesMax+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large a command: %v", err)
	}
	// What the other side would take for garbage never leaves.
	before := w.peers[0].overlay.Stats()
	for _, service := range []string{"", "\xff", string(make([]byte, order.ServiceBytesMax+1))} {
		if _, err := c.Do(t.Context(), keyspace.Key{}, service, nil); !errors.Is(err, ErrRefused) {
			t.Errorf("command for service %q: %v", service, err)
		}
		if _, err := c.Query(t.Context(), keyspace.Key{}, service, nil); !errors.Is(err, ErrRefused) {
			t.Errorf("query of service %q: %v", service, err)
		}
	}
	if _, err := c.Query(t.Context(), keyspace.Key{}, "count", make([]byte, order.DataBytesMax+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large a query: %v", err)
	}
	if after := w.peers[0].overlay.Stats(); len(after.StreamsReset) != len(before.StreamsReset) {
		t.Errorf("streams were reset: %v", after.StreamsReset)
	}
	c.Close()
	if _, err := c.Do(t.Context(), keyspace.Key{}, "count", number(1)); !errors.Is(err, ErrClosed) {
		t.Errorf("Do after Close: %v", err)
	}
}

func TestAFullHostRunsNoFurtherGroup(t *testing.T) {
	w := newWorld(t, 1, 0)
	h := w.peers[0].groups
	d := w.genesis.RootDescriptor()
	d.Group.Prefix = keyspace.PrefixOf(keyspace.Preimage("one more").Key(), w.genesis.Depth)
	m := d.View.Members[0]
	fill := func(n int) {
		h.mu.Lock()
		defer h.mu.Unlock()
		for i := uint64(1); len(h.hosted) < n; i++ {
			h.hosted[order.Life{Gen: i}] = true
		}
	}
	fill(groupsMax)
	if err := h.run(d, m.ID, order.Image{}, false, false); err == nil || !strings.Contains(err.Error(), "16384 groups") {
		t.Errorf("one group above the limit: %v", err)
	}
	h.mu.Lock()
	delete(h.hosted, order.Life{Gen: 1})
	h.mu.Unlock()
	if err := w.peers[0].store.Create(Identity{Group: d.Group, Self: m.ID}); err != nil {
		t.Fatal(err)
	}
	if err := h.run(d, m.ID, order.Image{}, false, false); err != nil {
		t.Errorf("the last group that has room: %v", err)
	}
}
