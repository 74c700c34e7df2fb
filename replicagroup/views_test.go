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
	"latchkey/replicagroup/placement"
	"latchkey/replicagroup/session"
)

// touch runs a function on the goroutine that owns a peer's replica of a group.
type touch struct {
	group order.GroupID
	do    func(r *replica)
	done  chan<- bool
}

func (e touch) handle(s *shard) {
	r, ok := s.replicas[e.group.Life()]
	if ok {
		e.do(r)
	}
	e.done <- ok
}

func (p *testPeer) touch(g order.GroupID, do func(r *replica)) bool {
	done := make(chan bool, 1)
	return p.groups.shardOf(g).box.Put(touch{g, do, done}) && <-done
}

// leader waits until a peer leads a group, with no change under way, and returns it with the view.
func (w *world) leader(t *testing.T, ctx context.Context, g order.GroupID) (leader *testPeer, v order.View) {
	t.Helper()
	for {
		for _, p := range w.peers {
			if p.groups.Err() != nil || p.groups.ctx.Err() != nil {
				continue
			}
			p.touch(g, func(r *replica) {
				if r.leading && !r.view.Joint() {
					leader, v = p, r.view
				}
			})
		}
		if leader != nil {
			return leader, v
		}
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			t.Fatalf("nobody leads %v: %v", g, err)
		}
	}
}

// change has a group's leader change the view, until somebody leads in a view that is as wanted.
func (w *world) change(t *testing.T, ctx context.Context, g order.GroupID, next func(v order.View) order.Change, wanted func(v order.View) bool) order.View {
	t.Helper()
	for {
		leader, v := w.leader(t, ctx, g)
		if wanted(v) {
			return v
		}
		leader.touch(g, func(r *replica) {
			if r.leading && r.view.Num == v.Num {
				c := next(v)
				r.nextRef++
				c.Ref, c.From = r.nextRef, v.Num
				r.step(c)
			}
		})
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			t.Fatalf("view %+v stays: %v", v, err)
		}
	}
}

// join makes a peer a learner of a group, starts its replica, and waits until it has what the others have.
func (w *world) join(t *testing.T, ctx context.Context, g order.GroupID, p *testPeer) order.ReplicaID {
	t.Helper()
	who := &order.Newcomer{Peer: p.overlay.Node(), Store: p.store.ID(), PeerID: string(p.host.ID())}
	is := func(v order.View) bool { _, ok := v.At(who.Peer, who.Store); return ok }
	v := w.change(t, ctx, g, func(order.View) order.Change { return order.Change{Learn: who} }, is)
	m, _ := v.At(who.Peer, who.Store)
	leader, _ := w.leader(t, ctx, g)
	var d placement.Descriptor
	leader.touch(g, func(r *replica) { d = *r.descriptor })
	if err := p.groups.retire(g, m.ID); err != nil {
		t.Fatal(err)
	}
	if err := p.store.Create(Identity{Group: g, Self: m.ID, Descriptor: encodeDescriptor(d)}); err != nil {
		t.Fatal(err)
	}
	if err := p.groups.run(d, m.ID, order.Image{}, true, false); err != nil {
		t.Fatal(err)
	}
	var commit uint64
	leader.touch(g, func(r *replica) { commit = r.engine.Status().Commit })
	replicaOf(t, ctx, p, g, func(s order.Status) bool { return s.Applied >= commit })
	return m.ID
}

// replace makes the learner a voter in place of another member.
func (w *world) replace(t *testing.T, ctx context.Context, g order.GroupID, learner, victim order.ReplicaID) {
	t.Helper()
	w.change(t, ctx, g, func(order.View) order.Change {
		return order.Change{Promote: []order.ReplicaID{learner}, Remove: []order.ReplicaID{victim}}
	}, func(v order.View) bool {
		m, _ := v.Member(learner)
		_, old := v.Member(victim)
		return m.Role == order.Voter && !old
	})
}

// newGroup has the group of a key made and returns its id, its members and the others.
func (w *world) newGroup(t *testing.T, ctx context.Context, c *Client, key keyspace.Key) (g order.GroupID, members, others []*testPeer) {
	t.Helper()
	if _, err := c.Do(ctx, key, "count", number(1)); err != nil {
		t.Fatal(err)
	}
	g = order.GroupID{Overlay: w.genesis.ID(), Prefix: w.genesis.PrefixOf(key)}
	_, v := w.leader(t, ctx, g)
	for _, p := range w.peers {
		if _, ok := v.MemberAt(p.overlay.Node()); ok {
			members = append(members, p)
		} else {
			others = append(others, p)
		}
	}
	return g, members, others
}

func at(v order.View, p *testPeer) order.ReplicaID {
	m, _ := v.At(p.overlay.Node(), p.store.ID())
	return m.ID
}

// All members of a group are replaced, one by one, while clients use it, who never hear of any of it.
func TestAGroupOutlivesItsMembers(t *testing.T) {
	t.Parallel()
	w := newFixedWorld(t, 6, 1)
	ctx := deadline(t, waitMax)
	key := keyspace.Preimage("outlived").Key()
	user := w.peers[5].groups.NewClient()
	g, members, others := w.newGroup(t, ctx, user, key)

	sum, stop, stopped := uint64(1), make(chan struct{}), make(chan struct{})
	var longest time.Duration
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			began := time.Now()
			got, err := user.Do(ctx, key, "count", number(1))
			sum++
			if err != nil || binary.BigEndian.Uint64(got) != sum {
				t.Errorf("%x, %v; want %d", got, err, sum)
				return
			}
			longest = max(longest, time.Since(began))
		}
	}()
	for i := range members {
		id := w.join(t, ctx, g, others[i])
		_, v := w.leader(t, ctx, g)
		w.replace(t, ctx, g, id, at(v, members[i]))
	}
	close(stop)
	<-stopped
	t.Logf("%d commands, the longest took %v", sum, longest)

	_, v := w.leader(t, ctx, g)
	for _, p := range others {
		if m, ok := v.At(p.overlay.Node(), p.store.ID()); !ok || m.Role != order.Voter || m.PeerID != string(p.host.ID()) {
			t.Errorf("%v is no voter in %+v", p.host.ID(), v)
		}
	}
	for _, p := range members {
		if !p.touch(g, func(*replica) {}) {
			t.Errorf("the replica at %v has not gone on for those that may still need its vote", p.host.ID())
		}
	}
	// A peer that has never heard of the group, and one that knew its first members only, find it.
	for _, p := range []*testPeer{w.peers[0], w.peers[3]} {
		got, err := p.groups.NewClient().Do(ctx, key, "count", number(1))
		if sum++; err != nil || binary.BigEndian.Uint64(got) != sum {
			t.Errorf("%x, %v; want %d", got, err, sum)
		}
	}
	// One that was removed comes back, under another id, before its former replica has ended by itself.
	back := w.join(t, ctx, g, members[0])
	if back <= 3 {
		t.Errorf("replica id %d was given out twice", back)
	}
	if !members[0].touch(g, func(r *replica) {
		if r.self != back || r.table.Machine("count").(*counter).sum != sum {
			t.Errorf("replica %d has sum %d, want %d with %d", r.self, r.table.Machine("count").(*counter).sum, back, sum)
		}
	}) {
		t.Error("it has no replica")
	}
}

// A member that was away while the group moved on hears of it from those that it knew.
func TestWhoWasAwayHearsWhatBecameOfTheGroup(t *testing.T) {
	t.Parallel()
	w := newFixedWorld(t, 6, 1)
	ctx := deadline(t, waitMax)
	key := keyspace.Preimage("absent").Key()
	g, members, others := w.newGroup(t, ctx, w.peers[0].groups.NewClient(), key)
	user := others[2].groups.NewClient()
	leader, _ := w.leader(t, ctx, g)
	var away, removed *testPeer // one stays a member, the other does not
	for _, p := range members {
		if p != leader {
			away, removed = removed, p
		}
	}
	disks := map[*testPeer]*MemoryStore{removed: removed.kill()}
	_, v := w.leader(t, ctx, g)
	id := at(v, removed)
	first := w.join(t, ctx, g, others[0])
	w.replace(t, ctx, g, first, id)
	disks[away] = away.kill()
	w.leader(t, ctx, g)
	w.join(t, ctx, g, others[1])
	if _, err := user.Do(ctx, key, "count", number(1)); err != nil {
		t.Fatal(err)
	}
	w.restart(t, away, disks[away])
	w.restart(t, removed, disks[removed])
	_, v = w.leader(t, ctx, g)
	replicaOf(t, ctx, away, g, func(s order.Status) bool { return s.View.Num >= v.Num })
	for told := false; !told; {
		if !removed.touch(g, func(r *replica) { told = r.parting && !r.leading }) {
			t.Fatal("it ended before its time")
		}
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			t.Fatalf("a removed member was not told: %v", err)
		}
	}
	if err := removed.groups.retire(g, id+1); err != nil {
		t.Fatal(err)
	}
	if left, _ := removed.store.Replicas(); len(left) > 1 || len(left) == 1 && left[0].Group == g {
		t.Errorf("its store still has %v", left)
	}
	if err := removed.store.Create(Identity{Group: g, Self: id}); err == nil {
		t.Error("its id can be used again")
	}
}

// Nobody but a member of the root, as a peer knows it, is believed about the root while one of them answers.
func TestWhoIsBelievedAboutTheRoot(t *testing.T) {
	w := newFixedWorld(t, 5, 1)
	ctx := deadline(t, waitMax)
	forged := w.genesis.RootDescriptor()
	forged.View.Num = 7
	liar, asker := w.peers[3].groups, w.peers[4].groups
	liar.locator.put(forged)
	if d, _ := liar.locator.cached(keyspace.Prefix{}); d.View.Num != 7 {
		t.Fatal("the liar does not even believe itself")
	}
	if d, err := asker.locator.locate(ctx, keyspace.Prefix{}, true); err != nil || d.View.Num != 0 {
		t.Errorf("view %d, %v", d.View.Num, err)
	}
	for _, p := range w.peers[:3] {
		p.kill()
	}
	if d, err := asker.locator.locate(ctx, keyspace.Prefix{}, true); err != nil || d.View.Num != 7 {
		t.Errorf("with its members gone: view %d, %v", d.View.Num, err)
	}
}

// An engine's message counts only if it comes from the peer and the store of the member that it names.
func TestWhoSpeaksForAMember(t *testing.T) {
	w := newFixedWorld(t, 4, 1)
	ctx := deadline(t, waitMax)
	user := w.peers[0].groups.NewClient()
	g, members, others := w.newGroup(t, ctx, user, keyspace.Preimage("impostor").Key())
	p := members[0]
	_, v := w.leader(t, ctx, g)
	self, other := at(v, p), v.Members[0]
	if other.ID == self {
		other = v.Members[1]
	}
	newcomer := order.Member{ID: v.Next, Peer: others[0].overlay.Node(), Store: others[0].store.ID(), Role: order.Learner, PeerID: string(others[0].host.ID())}
	stray := func(from peer.ID, id order.ReplicaID, store order.StoreID) bool {
		before := p.groups.Counters().StrayMessages
		e := &engineEvent{from: from, group: g, to: self, store: p.store.ID(), recv: order.Recv{From: id, Store: store, Msg: []byte{0}}}
		p.groups.shardOf(g).box.Put(e)
		p.touch(g, func(*replica) {}) // the event before this one is over
		return p.groups.Counters().StrayMessages > before
	}
	if stray(peer.ID(other.PeerID), other.ID, other.Store) {
		t.Error("a member is not heard")
	}
	if !stray(peer.ID(newcomer.PeerID), other.ID, other.Store) || !stray(peer.ID(other.PeerID), other.ID, newcomer.Store) {
		t.Error("somebody else speaks for a member")
	}
	if !stray(peer.ID(newcomer.PeerID), newcomer.ID, newcomer.Store) {
		t.Error("a stranger is heard")
	}
	// Once a member has told of a view with the newcomer in it, the newcomer is heard, though the log does not name it yet.
	var d placement.Descriptor
	p.touch(g, func(r *replica) { d = *r.descriptor })
	d.View.Members = append(append([]order.Member(nil), d.View.Members...), newcomer)
	d.View.Num, d.View.Next = d.View.Num+1, d.View.Next+1
	d.Peers = append(append([]placement.Peer(nil), d.Peers...), peerOfInfo(others[0].overlay.Info(others[0].host.ID())))
	p.groups.news(d)
	if stray(peer.ID(newcomer.PeerID), newcomer.ID, newcomer.Store) {
		t.Error("a member of a later view is not heard")
	}
	if !stray(peer.ID(other.PeerID), newcomer.ID, newcomer.Store) || !stray(peer.ID(newcomer.PeerID), newcomer.ID, other.Store) {
		t.Error("somebody else speaks for a member of a later view")
	}
	if dht.NodeIDOf(peer.ID(newcomer.PeerID)) != newcomer.Peer {
		t.Fatal("the test is wrong")
	}
}

// The root moves on like any group, and its founder is a peer like any other then: with its disk, and without.
func TestTheRootOutlivesItsFounder(t *testing.T) {
	t.Parallel()
	w := newFixedWorld(t, 3, 0)
	ctx := deadline(t, waitMax)
	founder := w.peers[0]
	root := w.genesis.RootGroup()
	id := w.join(t, ctx, root, w.peers[1])
	w.replace(t, ctx, root, id, 1)
	if err := founder.groups.retire(root, id); err != nil {
		t.Fatal(err)
	}
	serves := func(p *testPeer, name string) {
		t.Helper()
		if got, err := p.groups.NewClient().Do(ctx, keyspace.Preimage(name).Key(), "count", number(7)); err != nil || binary.BigEndian.Uint64(got) != 7 {
			t.Errorf("%s: %x, %v", name, got, err)
		}
	}
	serves(w.peers[2], "a group that only the root can make")
	w.restart(t, founder, founder.kill())
	serves(founder, "a group made for its founder")

	founder.kill()
	founder.reborn(t)
	overlay, err := dht.New(founder.host, dht.WithOverlayID(w.genesis.ID()), dht.WithBootstrap(peer.AddrInfo{ID: w.peers[2].host.ID(), Addrs: w.peers[2].host.Addrs()}))
	if err != nil {
		t.Fatal(err)
	}
	defer overlay.Close()
	cfg := Config{Genesis: w.genesis, Overlay: overlay, Store: NewMemoryStore(), Rejoins: true,
		Services: map[string]MachineFactory{"count": func(order.GroupID) session.Machine { return new(counter) }}}
	groups, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer groups.Close()
	if err := errors.Join(groups.Start(ctx), overlay.Start(ctx)); err != nil {
		t.Fatal(err)
	}
	serves(&testPeer{groups: groups}, "a group made for a founder without its disk")
	all, err := groups.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		if r.Group == root {
			t.Error("it runs a root of its own")
		}
	}
	// The very store it founded with, emptied, is another matter: the root may still count on it.
	h, err := libp2p.New(libp2p.Identity(founder.host.Peerstore().PrivKey(founder.host.ID())), libp2p.NoListenAddrs, libp2p.DisableMetrics())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if cfg.Overlay, err = dht.New(h, dht.WithOverlayID(w.genesis.ID())); err != nil {
		t.Fatal(err)
	}
	cfg.Store = NewMemoryStoreAs(w.genesis.Founders[0].Store)
	emptied, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer emptied.Close()
	if err := emptied.Start(ctx); !errors.Is(err, ErrRootLost) {
		t.Errorf("with its own store emptied: %v", err)
	}
}
