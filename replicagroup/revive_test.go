package replicagroup

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/internal/driver"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/placement"
)

// lostWorld is an overlay of eight in which a group can lose its majority while the root lives: at least two members of the
// key's group are not of the root.
type lostWorld struct {
	*world
	key     keyspace.Key
	group   placement.Descriptor
	outside []*testPeer // members that are not of the root
	others  []*testPeer // peers that are no members
}

func newLostWorld(t *testing.T, ctx context.Context, change ...func(*placement.Genesis)) *lostWorld {
	t.Helper()
	w := &lostWorld{world: newWorld(t, 8, 1, change...)}
	w.pick(t, ctx)
	return w
}

// pick finds such a key.
func (w *lostWorld) pick(t *testing.T, ctx context.Context) {
	t.Helper()
	for i := range 200 {
		w.key = keyspace.Preimage(fmt.Sprint("key ", i)).Key()
		d, err := w.peers[0].groups.Locate(ctx, w.key)
		for errors.Is(err, ErrNoQuorum) && ctx.Err() == nil { // on a busy machine a new group may need longer than a search waits
			d, err = w.peers[0].groups.Locate(ctx, w.key)
		}
		if err != nil {
			t.Fatal(err)
		}
		w.group, w.outside, w.others = d, nil, nil
		for k, p := range w.peers {
			_, member := d.View.MemberAt(p.overlay.Node())
			switch {
			case member && k >= len(w.genesis.Founders):
				w.outside = append(w.outside, p)
			case !member:
				w.others = append(w.others, p)
			}
		}
		if len(d.View.Members) == 3 && len(w.outside) >= 2 {
			return
		}
	}
	t.Fatal("every group has two members of the root")
}

// runs reports whether a peer runs a replica of a group.
func (p *testPeer) runs(t *testing.T, ctx context.Context, g order.GroupID) bool {
	t.Helper()
	all, err := p.groups.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(all, func(r ReplicaStatus) bool { return r.Group == g })
}

// untilBuried waits until a peer has put its replica of a group aside.
func (p *testPeer) untilBuried(t *testing.T, ctx context.Context, g order.GroupID) {
	t.Helper()
	for {
		graves, err := p.store.Graves()
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(graves, func(i Grave) bool { return i.Group == g }) && !p.runs(t, ctx, g) {
			return
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			t.Fatalf("%v did not bury its replica of %v: %v; buried are %v", p.overlay.Node(), g, err, graves)
		}
	}
}

func sumOf(t *testing.T, b []byte, err error) uint64 {
	t.Helper()
	if err != nil || len(b) != 8 {
		t.Fatalf("answer %x, %v", b, err)
	}
	return binary.BigEndian.Uint64(b)
}

// Conformance test 41, under policy manual.
func TestALostGroupIsRevivedUnderTheNextGeneration(t *testing.T) {
	t.Parallel()
	ctx := deadline(t, waitMax)
	w := newLostWorld(t, ctx)
	p, old := w.group.Group.Prefix, w.group.Group
	operator := w.others[len(w.others)-1].groups
	c := operator.NewClient()
	got, err := c.Do(ctx, w.key, "count", number(5))
	if sum := sumOf(t, got, err); sum != 5 {
		t.Fatalf("sum %d", sum)
	}

	// A healthy group is not revived, and says who answers.
	if _, err := operator.Revive(ctx, p, 0, false); !errors.Is(err, ErrAlive) || !strings.Contains(err.Error(), peer.ID(w.group.Peers[0].ID).String()) {
		t.Fatalf("revive of a healthy group: %v", err)
	}
	if _, err := operator.Revive(ctx, p, 1, false); !errors.Is(err, ErrRefused) {
		t.Errorf("revive of a generation to come: %v", err)
	}

	// It loses its majority for good: it stays down, and says so.
	disks := []*MemoryStore{w.outside[0].kill(), w.outside[1].kill()}
	short, cancel := context.WithTimeoutCause(ctx, time.Second, errors.New("patience"))
	defer cancel()
	if _, err := c.Do(short, w.key, "count", number(1)); !errors.Is(err, ErrOutcomeUnknown) && !errors.Is(err, ErrNoQuorum) {
		t.Fatalf("a minority answered: %v", err)
	}
	var minority *testPeer
	for _, q := range w.peers {
		if _, member := w.group.View.MemberAt(dht.NodeIDOf(q.host.ID())); member && !slices.Contains(w.outside[:2], q) {
			minority = q
		}
	}
	for silent := false; !silent; {
		all, err := minority.groups.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		silent = slices.ContainsFunc(all, func(r ReplicaStatus) bool { return r.Group == old && r.Leaderless > 0 })
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			t.Fatal("the member that is left does not say that it knows no leader")
		}
	}
	roll := operator.Roll(ctx, w.group)
	if here, all := roll.Voters(); here != 1 || all != 3 || roll.Majority() || strings.Count(roll.String(), "does not answer") != 2 {
		t.Errorf("roll of the lost group: %s", roll)
	}

	// Everybody revives it at once: one next generation.
	var mu sync.Mutex
	made := make(map[string]int)
	var wg sync.WaitGroup
	for _, q := range w.others {
		wg.Go(func() {
			d, err := q.groups.Revive(ctx, p, 0, false)
			if err != nil {
				t.Errorf("revive: %v", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			made[fmt.Sprint(d.Group, d.Peers)]++
			if d.Group.Gen != 1 || d.Group.Prefix != p || len(d.View.Members) != 3 {
				t.Errorf("revived as %v with %d members", d.Group, len(d.View.Members))
			}
		})
	}
	wg.Wait()
	if len(made) != 1 {
		t.Fatalf("revived %d times: %v", len(made), made)
	}

	// It answers, to a client of the old generation too, and has forgotten what that one knew.
	got, err = w.others[0].groups.NewClient().Do(ctx, w.key, "count", number(1))
	if sum := sumOf(t, got, err); sum != 1 {
		t.Errorf("sum %d, want that of an empty machine", sum)
	}
	got, err = c.Do(ctx, w.key, "count", number(1))
	if sum := sumOf(t, got, err); sum != 2 {
		t.Errorf("sum %d for a client that knew the old generation", sum)
	}
	minority.untilBuried(t, ctx, old)

	// The old members come back with their disks: they hear of it, and put aside what they have.
	for i, q := range w.outside[:2] {
		w.restart(t, q, disks[i])
	}
	for _, q := range w.outside[:2] {
		q.untilBuried(t, ctx, old)
		if s, err := q.groups.store.Replicas(); err != nil || slices.ContainsFunc(s, func(r StoredReplica) bool { return r.Group == old }) {
			t.Errorf("the store has the old replica still: %v", err)
		}
		got, err := q.groups.NewClient().Do(ctx, w.key, "count", number(1))
		if sum := sumOf(t, got, err); sum < 3 {
			t.Errorf("sum %d through a member that came back", sum)
		}
	}
	if child, err := operator.Child(ctx, p); err != nil || child.State != placement.Live || child.Former.Gen != 0 || child.Group.Gen != 1 {
		t.Errorf("the directory has %+v, %v", child, err)
	}
}

// A healthy group is revived by force only: its members are told, and stop.
func TestAForcedRevivalEndsALivingGroup(t *testing.T) {
	t.Parallel()
	ctx := deadline(t, waitMax)
	w := newLostWorld(t, ctx)
	c := w.others[0].groups.NewClient()
	if _, err := c.Do(ctx, w.key, "count", number(5)); err != nil {
		t.Fatal(err)
	}
	// Whoever lies about a later generation is not believed: every member asks the root.
	forged := w.group
	forged.Group.Gen = 9
	lie := encodeCommand(forged.Group, 0, order.Command{Client: order.ClientID{1}, Seq: 1, Service: "count", Data: number(1)})
	for _, m := range w.group.Peers {
		for { // a busy machine may have it suspected for a moment
			_, err := w.others[0].overlay.Call(ctx, peer.ID(m.ID), keyspace.Key{}, serviceCommand, lie)
			if err == nil {
				break
			}
			if !errors.Is(err, dht.ErrSuspected) || pause(ctx, 10*time.Millisecond) != nil {
				t.Fatal(err)
			}
		}
	}
	d, err := w.others[0].groups.Revive(ctx, w.group.Group.Prefix, 0, true)
	if err != nil || d.Group.Gen != 1 {
		t.Fatalf("forced: %v, %v", d.Group, err)
	}
	for _, q := range w.peers {
		if _, member := w.group.View.MemberAt(q.overlay.Node()); member {
			q.untilBuried(t, ctx, w.group.Group)
		}
	}
	// Before that, a member that has not heard of it may take a command, whose outcome nobody learns then. Nor does anybody learn that of one
	// that a busy machine does not answer in time, since its session was lost with the old generation.
	got, err := c.Do(ctx, w.key, "count", number(1))
	most := uint64(1)
	for ; errors.Is(err, ErrOutcomeUnknown) && ctx.Err() == nil; most++ {
		got, err = c.Do(ctx, w.key, "count", number(1))
	}
	if sum := sumOf(t, got, err); sum < 1 || sum > most {
		t.Errorf("sum %d, at most %d", sum, most)
	}
}

func TestWhatIsNotThereIsNotRevived(t *testing.T) {
	ctx := deadline(t, waitMax)
	w := newWorld(t, 1, 0)
	h := w.peers[0].groups
	unused := w.genesis.PrefixOf(keyspace.Preimage("unused").Key())
	if _, err := h.Revive(ctx, unused, 0, true); !errors.Is(err, ErrNoGroup) {
		t.Errorf("a prefix without a group: %v", err)
	}
	for _, p := range []keyspace.Prefix{{}, keyspace.PrefixOf(keyspace.Key{1}, w.genesis.Depth+1)} {
		if _, err := h.Revive(ctx, p, 0, true); !errors.Is(err, ErrRefused) {
			t.Errorf("prefix %v: %v", p, err)
		}
	}
	if all, err := h.Children(ctx); err != nil || len(all) != 0 {
		t.Errorf("the directory lists %v, %v", all, err)
	}
	// A lie to a peer that hosts nothing of the prefix costs the root nothing.
	g := order.GroupID{Overlay: w.genesis.ID(), Prefix: unused, Gen: 3}
	if h.outlived(g) {
		t.Error("an empty host has something that is over")
	}
}

func TestWhatTheDirectoryTakesFromOthers(t *testing.T) {
	t.Parallel()
	ctx := deadline(t, waitMax)
	w := newLostWorld(t, ctx)
	member, stranger := w.outside[0], w.others[len(w.others)-1]
	later := w.group
	later.View.Num = 7
	do := func(p *testPeer, c placement.Command) (placement.Result, error) {
		t.Helper()
		data, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if data, err = p.groups.internal.do(ctx, keyspace.Prefix{}, placement.Service, data); err != nil {
			return placement.Result{}, err
		}
		return placement.DecodeResult(data)
	}
	update := placement.Command{Kind: placement.Update, Prefix: later.Group.Prefix, Descriptor: later}
	for name, c := range map[string]placement.Command{
		"a stranger's update": update,
		"a create":            {Kind: placement.Create, Prefix: later.Group.Prefix, Members: w.genesis.Founders[:1]},
		"a revive":            {Kind: placement.Revive, Prefix: later.Group.Prefix, Members: w.genesis.Founders[:1]},
		"a report":            {Kind: placement.Reported, Prefix: later.Group.Prefix, Replica: 1, Store: w.group.View.Members[0].Store},
	} {
		if _, err := do(stranger, c); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if res, err := do(member, update); err != nil || res.Status != placement.OK {
		t.Errorf("a member's update: %v, %v", res.Status, err)
	}
	if child, err := stranger.groups.Child(ctx, later.Group.Prefix); err != nil || child.View.Num != 7 {
		t.Errorf("the directory has view %d, %v", child.View.Num, err)
	}
}

func TestABuriedReplicaIsOutOfTheWayAndItsIdUsed(t *testing.T) {
	s := NewMemoryStore()
	g := order.GroupID{Gen: 1}
	if err := s.Bury(g); err == nil {
		t.Error("a replica that never was is buried")
	}
	if err := s.Create(Identity{Group: g, Self: 3, Descriptor: []byte("d")}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // it is idempotent
		if err := s.Bury(g); err != nil {
			t.Fatal(err)
		}
	}
	all, err := s.Replicas()
	graves, graveErr := s.Graves()
	if err != nil || graveErr != nil || len(all) != 0 || len(graves) != 1 || graves[0].Group != g || graves[0].Self != 3 {
		t.Errorf("replicas %v, %v; graves %v, %v", all, err, graves, graveErr)
	}
	if err := s.Write([]Write{{Group: g}}, true); !errors.Is(err, ErrStore) {
		t.Errorf("a buried replica writes: %v", err)
	}
	if err := s.Create(Identity{Group: g, Self: 3}); err == nil {
		t.Error("its id was used again")
	}
	if err := s.Create(Identity{Group: g, Self: 4}); err != nil {
		t.Error(err)
	}
}

// Of more graves than a store keeps, the first go.
func TestTheFirstGravesMakeRoom(t *testing.T) {
	s := NewMemoryStore()
	for i := range uint64(GravesMax + 2) {
		g := order.GroupID{Gen: i}
		if err := s.Create(Identity{Group: g, Self: 1}); err != nil {
			t.Fatal(err)
		}
		if err := s.Bury(g); err != nil {
			t.Fatal(err)
		}
		if graves, err := s.Graves(); err != nil || len(graves) != min(int(i)+1, GravesMax) || graves[len(graves)-1].Group != g {
			t.Fatalf("%d graves after %d burials, %v", len(graves), i+1, err)
		}
	}
	if graves, _ := s.Graves(); graves[0].Group.Gen != 2 {
		t.Errorf("the first grave is of generation %d", graves[0].Group.Gen)
	}
	if err := s.Purge(order.GroupID{Gen: 2}, 1); err != nil {
		t.Fatal(err)
	}
	if graves, _ := s.Graves(); len(graves) != GravesMax-1 || graves[0].Group.Gen != 3 {
		t.Errorf("%d graves after one was deleted, the first of generation %d", len(graves), graves[0].Group.Gen)
	}
}

// A replica that its group has removed goes on for a while without a leader. The group is not down for that.
func TestARemovedReplicaDoesNotSayThatItsGroupIsDown(t *testing.T) {
	d := testDescriptor()
	d.View.Members[0].PeerID = testMember(1).PeerID // as the watcher is called
	h := &Host{clock: driver.NewClock(), id: d.Group.Overlay, overlay: new(watcher)}
	r := newReplica(1, &d, new(busyEngine), nil, 1)
	r.shard, r.view = newShard(h), order.View{Members: []order.Member{{ID: 1, Role: order.Voter}}, Next: 2}
	if r.leaves() || r.silence() == 0 {
		t.Errorf("a voter without a leader: leaves %v, silent for %v", r.leaves(), r.silence())
	}
	r.led = true
	if r.silence() != 0 {
		t.Errorf("a voter with a leader: silent for %v", r.silence())
	}
	r.led = false
	for name, change := range map[string]func(*replica){
		"leaving":      func(r *replica) { r.view.Members[0].Role = order.Leaving },
		"removed":      func(r *replica) { r.view.Members = nil },
		"told of that": func(r *replica) { r.parting = true },
	} {
		c := *r
		c.view.Members = []order.Member{{ID: 1, Role: order.Voter}}
		if change(&c); !c.leaves() || c.silence() != 0 {
			t.Errorf("%s: leaves %v, silent for %v", name, c.leaves(), c.silence())
		}
	}
}
