package replicagroup

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/internal/protofield"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/pb"
	"latchkey/replicagroup/placement"
	"latchkey/replicagroup/raft"
)

var rootKey = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{5}, ed25519.SeedSize))

// untilKnows waits until a peer's root is of a generation of the overlay.
func (p *testPeer) untilKnows(t *testing.T, ctx context.Context, gen uint64) {
	t.Helper()
	for p.groups.rootGroup().Gen>>32 != gen {
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			t.Fatalf("%v has a root of generation %d: %v", p.overlay.Node(), p.groups.rootGroup().Gen>>32, err)
		}
	}
}

func sign(t *testing.T, w *world, p *testPeer) []byte {
	t.Helper()
	r, err := p.groups.ProposeRoot(deadline(t, waitMax))
	if err != nil {
		t.Fatal(err)
	}
	doc, err := r.Sign(w.genesis, rootKey)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// signBare is sign for a root that begins with nothing, as where no member of the former one is left.
func signBare(t *testing.T, w *world, p *testPeer) []byte {
	t.Helper()
	r, err := p.groups.ProposeRoot(deadline(t, waitMax))
	if err != nil {
		t.Fatal(err)
	}
	r.State = [32]byte{}
	doc, err := r.Sign(w.genesis, rootKey)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// Conformance test 44: the root is lost for good; a peer that is left founds another one, which adopts the groups that survived, with what
// they know, and makes none anew before they had time to come.
func TestAnOverlayGetsANewRoot(t *testing.T) {
	t.Parallel()
	ctx := deadline(t, waitMax)
	lease := 4 * time.Second
	w := &lostWorld{world: newWorld(t, 8, 1, func(g *placement.Genesis) {
		g.RootKey, g.Lease = rootKey.Public().(ed25519.PublicKey), lease
	})}
	w.pick(t, ctx)
	p, group := w.group.Group.Prefix, w.group.Group
	dead := w.peers[:2] // of the root's three
	for _, q := range dead {
		if _, member := w.group.View.MemberAt(q.overlay.Node()); member && len(w.outside) < 2 {
			t.Fatal("the group dies with the root")
		}
	}
	founder := w.peers[7]
	c := founder.groups.NewClient()
	got, err := c.Do(ctx, w.key, "count", number(5))
	if sum := sumOf(t, got, err); sum != 5 {
		t.Fatalf("sum %d", sum)
	}
	early := signBare(t, w.world, founder)

	disks := []*MemoryStore{dead[0].kill(), dead[1].kill()}
	got, err = c.Do(ctx, w.key, "count", number(1)) // groups go on without a root
	if sum := sumOf(t, got, err); sum != 6 {
		t.Fatalf("sum %d", sum)
	}

	// What is not signed by the root key is worth nothing.
	forged := bytes.Clone(early)
	forged[len(forged)-1]++
	if err := founder.groups.Reseed(forged); !errors.Is(err, ErrReseed) || founder.groups.reseeded() {
		t.Fatalf("a forged document: %v", err)
	}
	if err := founder.groups.Reseed(early); err != nil {
		t.Fatal(err)
	}
	reseeded := time.Now()
	if err := founder.groups.Reseed(early); err != nil {
		t.Errorf("the same document again: %v", err)
	}
	for _, q := range w.peers[2:] {
		q.untilKnows(t, ctx, 1)
	}
	if root := founder.groups.rootGroup(); root.Gen != 1<<32 {
		t.Errorf("the root is %v", root)
	}

	// The group that survived is adopted under its own generation, and has lost nothing.
	for {
		child, err := w.peers[4].groups.Child(ctx, p)
		if err == nil && child.Group == group {
			break
		}
		if err != nil && !errors.Is(err, ErrNoGroup) {
			t.Fatal(err)
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			t.Fatal("the surviving group was not adopted")
		}
	}
	got, err = w.peers[5].groups.NewClient().Do(ctx, w.key, "count", number(1))
	if sum := sumOf(t, got, err); sum != 7 {
		t.Errorf("sum %d after the adoption", sum)
	}

	// A prefix that nobody came for gets a group of the new generation, when survivors have had their time.
	var other keyspace.Key
	for i := 0; ; i++ {
		other = keyspace.Preimage(fmt.Sprint("new ", i)).Key()
		if _, known := founder.groups.Known(w.genesis.PrefixOf(other)); !known && w.genesis.PrefixOf(other) != p {
			break
		}
	}
	for said := false; !said && time.Since(reseeded) < lease/2; { // once the new root has a leader, it says so
		short, cancel := context.WithTimeoutCause(ctx, 300*time.Millisecond, errors.New("patience"))
		_, err := w.peers[6].groups.locator.ensure(short, w.genesis.PrefixOf(other))
		cancel()
		said = err != nil && strings.Contains(err.Error(), "may have survived")
		if err == nil || !said && !errors.Is(err, ErrNoQuorum) {
			t.Fatalf("asked for a group %v after the root: %v", time.Since(reseeded), err)
		}
	}
	got, err = w.peers[6].groups.NewClient().Do(ctx, other, "count", number(2))
	if sum := sumOf(t, got, err); sum != 2 {
		t.Errorf("sum %d in a new group", sum)
	}
	if waited := time.Since(reseeded); waited < w.genesis.Drift.Shrink(lease) {
		t.Errorf("a group was made after %v, want %v at least", waited, lease)
	}
	if child, err := w.peers[6].groups.Child(ctx, w.genesis.PrefixOf(other)); err != nil || child.Group.Gen != 1<<32 {
		t.Errorf("it is %v, %v", child.Group, err)
	}

	// Members of the former root come back with their disks: they are told, and put it aside.
	for i, q := range dead {
		w.restart(t, q, disks[i])
	}
	for _, q := range w.peers[:3] {
		q.untilKnows(t, ctx, 1)
		q.untilBuried(t, ctx, w.genesis.RootGroup())
	}
	if _, err := dead[0].groups.Child(ctx, p); err != nil {
		t.Errorf("a former member does not find the new root: %v", err)
	}

	// An older document, and another one of the same generation, change nothing.
	r := placement.Reseed{Overlay: w.genesis.ID(), OverlayGen: 1, Founders: []placement.Host{{Peer: peerOfInfo(peer.AddrInfo{ID: w.peers[3].host.ID()}), Store: w.peers[3].store.ID()}}}
	rival, err := r.Sign(w.genesis, rootKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.peers[3].groups.Reseed(rival); !errors.Is(err, ErrReseed) || w.peers[3].runs(t, ctx, r.RootGroup()) {
		t.Errorf("a second root of the same generation: %v", err)
	}
}

// The founder of a new root keeps the document, and begins the root once, when it was killed in between too; a store that is not the one
// that was named never does.
func TestANewRootBeginsOnceInTheStoreThatIsNamed(t *testing.T) {
	w := newWorld(t, 2, 0, func(g *placement.Genesis) { g.RootKey = rootKey.Public().(ed25519.PublicKey) })
	ctx := deadline(t, waitMax)
	p := w.peers[1]
	doc, state := sign(t, w, p), p.groups.inherits
	broken := errors.New("disk full")
	p.groups.onReseed = func(_, _ []byte) error { return broken }
	if err := p.groups.Reseed(doc); !errors.Is(err, broken) || p.groups.reseeded() {
		t.Fatalf("a document that cannot be kept: %v", err)
	}
	store := p.kill()
	start := func(s *MemoryStore) *Host {
		t.Helper()
		p.reborn(t)
		p.store = s
		w.startWith(t, p, []peer.AddrInfo{{ID: w.peers[0].host.ID(), Addrs: w.peers[0].host.Addrs()}}, func(c *Config) { c.Reseed, c.ReseedState = doc, state })
		return p.groups
	}
	kept := state
	state = nil // what was kept is gone: the root does not begin, and another one may
	if h := start(store); p.runs(t, ctx, h.rootGroup()) {
		t.Error("a root began without what it is to begin with")
	}
	state, store = kept, p.kill()
	for i := range 3 {
		if i == 1 { // it was killed right before the beginning was written
			store = NewMemoryStoreAs(store.ID())
			if err := store.Create(Identity{Group: order.GroupID{Overlay: w.genesis.ID(), Gen: 1 << 32}, Self: 1, Descriptor: encodeDescriptor(p.groups.firstRoot())}); err != nil {
				t.Fatal(err)
			}
		}
		h := start(store)
		if m, ok := h.firstRoot().View.MemberAt(dht.NodeIDOf(p.host.ID())); !ok || m.ID != 1 || !p.runs(t, ctx, h.rootGroup()) {
			t.Fatal("the new root does not run in the store that is named")
		}
		store = p.kill()
	}
	h := start(NewMemoryStore())
	if p.runs(t, ctx, h.rootGroup()) {
		t.Error("the new root began again in another store")
	}
	if _, err := New(Config{Genesis: w.genesis, Overlay: told{p.overlay, p}, Reseed: doc[1:]}); !errors.Is(err, placement.ErrMalformed) && !errors.Is(err, placement.ErrReseed) {
		t.Errorf("a damaged document was taken: %v", err)
	}
	if _, err := (&Host{}).ProposeRoot(ctx); !errors.Is(err, ErrReseed) {
		t.Errorf("a host without a store would found: %v", err)
	}
}

// Conformance test 44 with a member of the former root left: the new root begins with what that one knows. A group whose majority is down for
// far longer than survivors are waited for is not made anew, and comes back with all it had.
func TestANewRootGoesOnFromASurvivor(t *testing.T) {
	t.Parallel()
	ctx := deadline(t, waitMax)
	lease := time.Second
	w := &lostWorld{world: newWorld(t, 8, 1, func(g *placement.Genesis) {
		g.RootKey, g.Lease = rootKey.Public().(ed25519.PublicKey), lease
	})}
	w.pick(t, ctx)
	founder := w.others[slices.IndexFunc(w.others, func(p *testPeer) bool { return !slices.Contains(w.peers[:3], p) })]
	got, err := founder.groups.NewClient().Do(ctx, w.key, "count", number(5))
	if sum := sumOf(t, got, err); sum != 5 {
		t.Fatalf("sum %d", sum)
	}
	down := append(slices.Clone(w.outside[:2]), w.peers[:2]...) // the group's majority, and the root's
	disks := make([]*MemoryStore, len(down))
	for i, p := range down {
		disks[i] = p.kill()
	}
	proposal, err := founder.groups.ProposeRoot(ctx)
	if err != nil || !proposal.Inherits() || proposal.Survivor != w.peers[2].host.ID() || proposal.Groups == 0 {
		t.Fatalf("proposed %+v, %v", proposal, err)
	}
	doc, err := proposal.Sign(w.genesis, rootKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.peers[2].groups.Reseed(doc); err != nil { // others need not have the state
		t.Fatal(err)
	}
	if err := founder.groups.Reseed(doc); err != nil {
		t.Fatal(err)
	}
	reseeded := time.Now()
	p := w.group.Group.Prefix
	for {
		child, err := founder.groups.Child(ctx, p)
		if err == nil && child.Group == w.group.Group && child.State == placement.Inherited {
			break
		}
		if err != nil && !errors.Is(err, ErrNoQuorum) {
			t.Fatalf("%+v, %v", child, err)
		}
	}
	for time.Since(reseeded) < 3*lease { // it is asked for all the time, and not made
		d, err := founder.groups.locator.ensure(ctx, p)
		if err == nil && d.Group != w.group.Group {
			t.Fatalf("a second group: %v", d.Group)
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
	for i, q := range down[:2] {
		w.restart(t, q, disks[i])
	}
	got, err = founder.groups.NewClient().Do(ctx, w.key, "count", number(1))
	if sum := sumOf(t, got, err); sum != 6 {
		t.Errorf("sum %d after the group came back", sum)
	}
	for {
		child, err := founder.groups.Child(ctx, p)
		if err == nil && child.Group == w.group.Group && child.State == placement.Live {
			break
		}
		if pause(ctx, 20*time.Millisecond) != nil {
			t.Fatalf("it is not adopted: %+v, %v", child, err)
		}
	}
}

func TestEachPeerIsToldOfTheRootOnceInAWhile(t *testing.T) {
	t.Parallel()
	var told turns
	if now := automaton.Instant(1); !told.take("a", now) || told.take("a", now) || !told.take("b", now) {
		t.Error("two at once, or one peer in another's way")
	}
	if at := automaton.Instant(1).Add(rootStatePause); told.take("a", at-1) || !told.take("a", at) || told.take("a", at) || len(told.last) != 1 {
		t.Errorf("after %v: %v", rootStatePause, told.last)
	}

	w := newWorld(t, 2, 0)
	ctx := deadline(t, waitMax)
	asker, member := w.peers[1].groups, w.peers[0].host.ID()
	var err error
	for err == nil { // until two have come within the pause
		_, err = asker.survivor(ctx, member, w.genesis.RootGroup())
	}
	if !strings.Contains(err.Error(), ErrBusy.Error()) {
		t.Fatalf("one question too many: %v", err)
	}
	if all := asker.survivors(ctx, w.genesis.RootDescriptor()); len(all) != 1 || all[0].peer != member {
		t.Errorf("whoever asks on is told: %+v", all)
	}
	if none, err := w.peers[0].groups.survivor(ctx, w.peers[1].host.ID(), w.genesis.RootGroup()); err != nil || none.Present {
		t.Errorf("a peer that has no replica of the root: %v, %v", none, err)
	}
}

func TestAQuestionForTheRootIsShort(t *testing.T) {
	ask := marshal(&pb.RootStateRequest{Gen: 5})
	ask = protofield.AppendBytes(ask, 9, make([]byte, rootStateAskMax-2-len(ask))) // a field to come
	if g, err := testDecoder.rootStateAsk(ask); len(ask) != rootStateAskMax || err != nil || g.Gen != 5 {
		t.Errorf("%d bytes: %v, %v", len(ask), g, err)
	}
	if _, err := testDecoder.rootStateAsk(append(ask, 0x50, 1)); !errors.Is(err, errMalformed) {
		t.Errorf("a longer one: %v", err)
	}
	if rootStateBytesMax < raft.SnapshotBytesMax {
		t.Error("a root has more in its snapshot than it may tell")
	}
	// An answer goes whole, up to the most that a snapshot may hold.
	answer := func(size int) []byte {
		return marshal(&pb.RootStateReply{Present: true, Index: 9, Directory: make([]byte, size)})
	}
	full := answer(rootStateBytesMax)
	if m, err := decodeRootState(full); err != nil || len(m.Directory) != rootStateBytesMax {
		t.Errorf("an answer with all that there may be: %v", err)
	}
	if _, err := decodeRootState(answer(rootStateBytesMax + 1)); !errors.Is(err, errMalformed) {
		t.Errorf("a larger one: %v", err)
	}
	if len(full) > dht.MessageBytesMax {
		t.Errorf("%d bytes do not go as one message of the overlay", len(full))
	}
}
