package replicagroup

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/pb"
	"latchkey/replicagroup/placement"
)

// leased makes the overlays of a test have policy lease with the shortest lease there is.
func leased(g *placement.Genesis) {
	g.Regenesis, g.Lease, g.DeadAfter = placement.Leased, placement.LeaseMin, 0
}

func TestGroupsAnswerUnderALease(t *testing.T) {
	t.Parallel()
	ctx := deadline(t, waitMax)
	w := newWorld(t, 3, 1, leased)
	c := w.peers[0].groups.NewClient()
	key := keyspace.Preimage("leased").Key()
	for i := range uint64(3) {
		got, err := c.Do(ctx, key, "count", number(1))
		if sum := sumOf(t, got, err); sum != i+1 {
			t.Fatalf("sum %d, want %d", sum, i+1)
		}
	}
	d, err := w.peers[0].groups.Locate(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	// It is renewed: the lease that there is now is over in a second, and the group answers longer than that.
	for end := time.Now().Add(2 * placement.LeaseMin); time.Now().Before(end); {
		if _, err := c.Query(ctx, key, "count", nil); err != nil {
			t.Fatal(err)
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
	if ch, err := w.peers[0].groups.Child(ctx, d.Group.Prefix); err != nil || ch.Group.Gen != 0 {
		t.Errorf("a healthy group was revived: %v, %v", ch.Group, err)
	}
}

// Conformance test 41, under policy lease.
func TestALostGroupComesBackByItself(t *testing.T) {
	t.Parallel()
	ctx := deadline(t, waitMax)
	w := newLostWorld(t, ctx, leased)
	old := w.group.Group
	c := w.others[0].groups.NewClient()
	got, err := c.Do(ctx, w.key, "count", number(5))
	if sum := sumOf(t, got, err); sum != 5 {
		t.Fatalf("sum %d", sum)
	}
	disks := []*MemoryStore{w.outside[0].kill(), w.outside[1].kill()}
	began := time.Now()
	bound := 2*w.genesis.LeaseWait() + w.genesis.DeadAfter + 10*time.Second
	got, err = c.Do(ctx, w.key, "count", number(1))
	took := time.Since(began)
	for errors.Is(err, ErrOutcomeUnknown) { // it was lost with its session; whether with the old generation is not known to the client
		got, err = c.Do(ctx, w.key, "count", number(1))
		took = time.Since(began)
	}
	if sum := sumOf(t, got, err); sum > 2 { // twice, where the first was asked again
		t.Errorf("sum %d, want that of an empty machine", sum)
	}
	t.Logf("the group answered again after %v; the bound is %v", took, bound)
	if took > bound {
		t.Errorf("that is later than %v", bound)
	}
	live, err := w.others[0].groups.Child(ctx, old.Prefix)
	if err != nil || live.Group.Gen == 0 {
		t.Fatalf("the directory has %v, %v", live.Group, err)
	}

	// The members of the old generation put aside what they have, the one that stayed and those that return.
	for _, q := range w.peers {
		if _, member := w.group.View.MemberAt(dht.NodeIDOf(q.host.ID())); member && !slices.Contains(w.outside[:2], q) {
			q.untilBuried(t, ctx, old)
		}
	}
	for i, q := range w.outside[:2] {
		w.restart(t, q, disks[i])
	}
	for _, q := range w.outside[:2] {
		q.untilBuried(t, ctx, old)
	}
	if got, err := c.Query(ctx, w.key, "count", nil); err != nil || len(got) != 8 {
		t.Errorf("after they came back: %x, %v", got, err)
	}
}

// As many operators as may wait for one group's lease to be over do; one more is told that the root is busy.
func TestOperatorsWhoWaitForALeaseAreBounded(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(deadline(t, 60*time.Second))
	defer cancel()
	w := newWorld(t, 3, 1, func(g *placement.Genesis) { leased(g); g.Lease = placement.LeaseMax })
	key := keyspace.Preimage("doomed").Key()
	if _, err := w.peers[0].groups.NewClient().Do(ctx, key, "count", number(1)); err != nil {
		t.Fatal(err)
	}
	prefix := w.genesis.PrefixOf(key)
	if _, err := w.peers[1].groups.Child(ctx, prefix); err != nil { // finds the root's leader
		t.Fatal(err)
	}
	root, _ := w.peers[1].groups.locator.cached(keyspace.Prefix{})
	m, ok := root.View.MemberAt(w.peers[1].groups.locator.leader(root.Group))
	if !ok {
		t.Fatal("nobody leads the root")
	}
	leader, _ := root.Peer(m.ID)
	req := marshal(&pb.ReviveRequest{Prefix: groupToPB(order.GroupID{Prefix: prefix}).Prefix, Force: true})
	answers := make(chan error, doomsMax+1)
	for range doomsMax + 1 {
		go func() {
			_, _, err := w.peers[1].groups.reviveAt(ctx, peer.ID(leader.ID), req)
			answers <- err
		}()
	}
	if err := <-answers; err == nil || !strings.Contains(err.Error(), "BUSY") {
		t.Fatalf("one too many is answered %v", err)
	}
	cancel()
	for range doomsMax { // they had no answer before
		if err := <-answers; !errors.Is(err, context.Canceled) {
			t.Errorf("one that waited is answered %v", err)
		}
	}
}

// A group whose root is away stops answering when its lease is over, and answers again when the root is back.
func TestAGroupWithoutTheRootStopsAnswering(t *testing.T) {
	t.Parallel()
	ctx := deadline(t, waitMax)
	w := newLostWorld(t, ctx, func(g *placement.Genesis) { leased(g); g.DeadAfter = time.Minute })
	if len(w.outside) < 2 {
		t.Fatal("no majority beside the root")
	}
	c := w.outside[0].groups.NewClient()
	got, err := c.Do(ctx, w.key, "count", number(5))
	if sum := sumOf(t, got, err); sum != 5 {
		t.Fatalf("sum %d", sum)
	}
	// Two of the root's three go: it has no majority. The group keeps one that may be of the root, so it loses at most its third.
	var gone []*testPeer
	for _, p := range w.peers[:3] {
		_, member := w.group.View.MemberAt(p.overlay.Node())
		if !member && len(gone) < 2 {
			gone = append(gone, p)
		}
	}
	if len(gone) < 2 {
		t.Fatal("the group has two members of the root")
	}
	var disks []*MemoryStore
	for _, p := range gone {
		disks = append(disks, p.kill())
	}
	silent := time.Now().Add(w.genesis.Lease + 100*time.Millisecond) // the lease began before its round ended, a little
	for {
		short, cancel := context.WithTimeoutCause(ctx, 300*time.Millisecond, errors.New("patience"))
		sent := time.Now()
		_, err := c.Query(short, w.key, "count", nil)
		cancel()
		if err != nil {
			if !strings.Contains(err.Error(), "lease has run out") && sent.After(silent) {
				t.Errorf("nobody says why the group is silent: %v", err)
			}
			break
		}
		if sent.After(silent.Add(time.Second)) {
			t.Fatalf("the group answers %v after the root was gone", time.Since(silent)+w.genesis.Lease)
		}
	}
	// It lives: it has a leader, who says what is missing.
	for found := false; !found; {
		for _, p := range w.peers {
			if slices.Contains(gone, p) {
				continue
			}
			all, err := p.groups.Status(ctx)
			if err != nil {
				t.Fatal(err)
			}
			found = found || slices.ContainsFunc(all, func(r ReplicaStatus) bool { return r.Group == w.group.Group && r.Unleased })
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			t.Fatal("no leader says that it has no lease")
		}
	}
	for i, p := range gone {
		w.restart(t, p, disks[i])
	}
	got, err = c.Query(ctx, w.key, "count", nil)
	if sum := sumOf(t, got, err); sum != 5 {
		t.Errorf("sum %d after the root came back, want 5", sum)
	}
	if ch, err := c.host.Child(ctx, w.group.Group.Prefix); err != nil || ch.Group.Gen != 0 {
		t.Errorf("the group is %v, %v; want its first generation", ch.Group, err)
	}
}

// An operator's word ends a healthy group no sooner than its lease.
func TestAForcedRevivalWaitsForTheLease(t *testing.T) {
	t.Parallel()
	ctx := deadline(t, waitMax)
	w := newLostWorld(t, ctx, leased)
	c := w.others[0].groups.NewClient()
	if _, err := c.Do(ctx, w.key, "count", number(5)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	d, err := w.others[0].groups.Revive(ctx, w.group.Group.Prefix, 0, true)
	if err != nil || d.Group.Gen != 1 {
		t.Fatalf("forced: %v, %v", d.Group, err)
	}
	// The last grant was a third of a lease ago at most, or was about to be made.
	if took := time.Since(began); took < w.genesis.Lease/2 {
		t.Errorf("it took %v, and the lease is %v", took, w.genesis.Lease)
	}
	got, err := c.Do(ctx, w.key, "count", number(1))
	if sum := sumOf(t, got, err); sum != 1 {
		t.Errorf("sum %d", sum)
	}
}

func TestAReplicaAnswersOnlyWithinItsLease(t *testing.T) {
	h := newWorld(t, 1, 0, leased).peers[0].groups
	r := &replica{shard: h.shards[0], group: order.GroupID{Overlay: h.id, Prefix: keyspace.PrefixOf(keyspace.Key{1}, 8)}, lease: new(leaseCell)}
	now := h.clock.Now()
	for name, c := range map[string]struct {
		held *heldLease
		want bool
	}{
		"none":        {nil, false},
		"over":        {&heldLease{until: now}, false},
		"held":        {&heldLease{until: now.Add(time.Hour)}, true},
		"quarantined": {&heldLease{from: now.Add(time.Hour), until: now.Add(2 * time.Hour)}, false},
		"a jump":      {&heldLease{until: now.Add(time.Hour), jumps: h.clock.Jumps() + 1}, false},
	} {
		r.lease.Store(c.held)
		if got := r.leased(); got != c.want {
			t.Errorf("%s: answers %v", name, got)
		}
	}
	if r.lease = nil; !r.leased() {
		t.Error("a replica that needs no lease does not answer")
	}
}

// wall is a gater that keeps the peers of one side from those of the other while it stands.
type wall struct {
	mu   sync.Mutex
	side map[peer.ID]bool // nil: it does not stand
}

// gate is one peer's view of the wall.
type gate struct {
	*wall
	self func() peer.ID
}

func (g gate) lets(p peer.ID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.side == nil || g.side[p] == g.side[g.self()]
}

func (g gate) InterceptPeerDial(p peer.ID) bool                 { return g.lets(p) }
func (g gate) InterceptAddrDial(p peer.ID, _ ma.Multiaddr) bool { return g.lets(p) }
func (g gate) InterceptAccept(network.ConnMultiaddrs) bool      { return true }
func (g gate) InterceptSecured(_ network.Direction, p peer.ID, _ network.ConnMultiaddrs) bool {
	return g.lets(p)
}
func (g gate) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) { return true, 0 }

// stand builds the wall between these peers and the others, or takes it down when there are none.
func (l *wall) stand(w *world, these ...*testPeer) {
	l.mu.Lock()
	l.side = nil
	if len(these) > 0 {
		l.side = make(map[peer.ID]bool)
		for _, p := range these {
			l.side[p.host.ID()] = true
		}
	}
	l.mu.Unlock()
	for _, p := range these {
		for _, q := range w.peers {
			if !slices.Contains(these, q) {
				p.host.Network().ClosePeer(q.host.ID())
				q.host.Network().ClosePeer(p.host.ID())
			}
		}
	}
}

// A group that is cut off from the root with all its members goes on for as long as its lease, and goes on again when the network
// heals, with all it knew: the root leaves it the time.
func TestAGroupBehindAPartitionStopsAnswering(t *testing.T) {
	t.Parallel()
	ctx := deadline(t, waitMax)
	l := new(wall)
	w := &lostWorld{world: &world{genesisBy: []func(*placement.Genesis){leased, func(g *placement.Genesis) { g.DeadAfter = time.Minute }}}}
	w.options = func(i int) []libp2p.Option {
		return []libp2p.Option{libp2p.ConnectionGater(gate{l, func() peer.ID { return w.peers[i].host.ID() }})}
	}
	w.begin(t, 8, 1, 3)
	w.pick(t, ctx)
	var members, rest []*testPeer
	for _, p := range w.peers {
		if _, member := w.group.View.MemberAt(p.overlay.Node()); member {
			members = append(members, p)
		} else {
			rest = append(rest, p)
		}
	}
	c := members[0].groups.NewClient()
	got, err := c.Do(ctx, w.key, "count", number(5))
	if sum := sumOf(t, got, err); sum != 5 {
		t.Fatalf("sum %d", sum)
	}
	l.stand(w.world, members...)
	cut := time.Now()
	for {
		short, cancel := context.WithTimeoutCause(ctx, 300*time.Millisecond, errors.New("patience"))
		sent := time.Now()
		_, err := c.Query(short, w.key, "count", nil)
		cancel()
		// A round that was on its way at the cut may have been granted still; it began before.
		if err == nil && sent.Sub(cut) > w.genesis.Lease {
			t.Fatalf("the group answers what it was asked %v after it was cut off; its lease is %v", sent.Sub(cut), w.genesis.Lease)
		}
		if err != nil && strings.Contains(err.Error(), "lease has run out") {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("the group does not say why it is silent: %v", err)
		}
	}
	// The root is well meanwhile, on its side.
	if _, err := rest[0].groups.Children(ctx); err != nil {
		t.Errorf("the root, on the other side: %v", err)
	}
	l.stand(w.world)
	for _, p := range members {
		for _, q := range rest {
			if err := p.host.Connect(ctx, peer.AddrInfo{ID: q.host.ID(), Addrs: q.host.Addrs()}); err != nil {
				t.Fatal(err)
			}
		}
	}
	got, err = c.Query(ctx, w.key, "count", nil)
	if sum := sumOf(t, got, err); sum != 5 {
		t.Errorf("sum %d after the network healed, want 5", sum)
	}
	if ch, err := c.host.Child(ctx, w.group.Group.Prefix); err != nil || ch.Group.Gen != 0 {
		t.Errorf("the group is %v, %v; want its first generation", ch.Group, err)
	}
}

// Whom the root's leader grants what.
func TestWhatTheRootGrants(t *testing.T) {
	ctx := deadline(t, waitMax)
	w := newWorld(t, 3, 1, leased)
	key := keyspace.Preimage("granted").Key()
	if _, err := w.peers[0].groups.NewClient().Do(ctx, key, "count", number(1)); err != nil {
		t.Fatal(err)
	}
	live := order.GroupID{Overlay: w.genesis.ID(), Prefix: w.genesis.PrefixOf(key)}
	later, unknown := live, live
	later.Gen, unknown.Prefix = 1, w.genesis.PrefixOf(keyspace.Preimage("unused").Key())
	ask := func(groups ...order.GroupID) (refused []order.GroupID) {
		t.Helper()
		m := new(pb.RenewRequest)
		for _, g := range groups {
			m.Groups = append(m.Groups, groupToPB(g))
		}
		h := w.peers[1].groups
		d, err := h.locator.locate(ctx, keyspace.Prefix{}, false)
		if err != nil {
			t.Fatal(err)
		}
		err = h.askLeader(ctx, d, keyspace.Key{}, serviceRenew, func(placement.Descriptor) []byte { return marshal(m) }, func(r reply) (bool, error) {
			if r.status != pb.Status_OK {
				return false, nil
			}
			refused, err = refusals(r.data, groups)
			return true, err
		})
		if err != nil {
			t.Fatal(err)
		}
		return refused
	}
	if got := ask(later, live, unknown); len(got) != 2 || got[0] != later || got[1] != unknown {
		t.Errorf("refused are %v", got)
	}
	if got := ask(slices.Repeat([]order.GroupID{live}, placement.RenewGroupsMax)...); len(got) != 0 {
		t.Errorf("%d of as many as there may be are refused", len(got))
	}
	// Where there are no leases none is asked for.
	m := newWorld(t, 1, 0)
	b, err := m.peers[0].overlay.Call(ctx, m.peers[0].host.ID(), keyspace.Key{}, serviceRenew, marshal(new(pb.RenewRequest)))
	if r, _ := m.peers[0].groups.decode.reply(b); err != nil || r.status != pb.Status_REFUSED {
		t.Errorf("under policy manual: %v, %v", r.status, err)
	}
}
