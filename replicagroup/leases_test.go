package replicagroup

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/placement"
)

// leased makes the overlays of a test have policy lease with the shortest lease there is.
func leased(g *placement.Genesis) {
	g.Regenesis, g.Lease, g.DeadAfter = placement.Leased, placement.LeaseMin, 0
}

func TestGroupsAnswerUnderALease(t *testing.T) {
	ctx := deadline(t, 30*time.Second)
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
	ctx := deadline(t, 90*time.Second)
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

// A group whose root is away stops answering when its lease is over, and answers again when the root is back.
func TestAGroupWithoutTheRootStopsAnswering(t *testing.T) {
	ctx := deadline(t, 90*time.Second)
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
	ctx := deadline(t, 60*time.Second)
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
