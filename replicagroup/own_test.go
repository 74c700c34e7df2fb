package replicagroup

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/pb"
	"latchkey/replicagroup/placement"
	"latchkey/replicagroup/session"
)

// tally is a counter for each key: a machine that can be split. A command or query is eight bytes and a name.
type tally struct{ sums map[string]uint64 }

func newTally(order.GroupID) session.Machine { return &tally{make(map[string]uint64)} }

func more(name string, n uint64) []byte { return append(number(n), name...) }

func (m *tally) Apply(_ session.Context, data []byte) []byte {
	m.sums[string(data[8:])] += binary.BigEndian.Uint64(data)
	return number(m.sums[string(data[8:])])
}
func (m *tally) Query(_ session.Context, data []byte) []byte  { return number(m.sums[string(data[8:])]) }
func (m *tally) Tick(session.Context)                         {}
func (m *tally) SessionEnded(session.Context, order.ClientID) {}
func (m *tally) Deadline() (time.Duration, bool)              { return 0, false }
func (m *tally) Resend(session.Context)                       {}
func (m *tally) Snapshot() []byte {
	var b []byte
	for _, name := range slices.Sorted(maps.Keys(m.sums)) {
		b = append(append(b, byte(len(name))), more(name, m.sums[name])...)
	}
	return b
}
func (m *tally) Restore(b []byte) error {
	m.sums = make(map[string]uint64)
	for len(b) > 9 {
		m.sums[string(b[9:9+b[0]])] = binary.BigEndian.Uint64(b[1:])
		b = b[9+b[0]:]
	}
	return nil
}
func (m *tally) KeyOf(data []byte, _ bool) (keyspace.Key, bool) {
	return keyspace.Preimage(data[8:]).Key(), true
}
func (m *tally) Carve(_ session.Context, name string) ([]byte, []session.PartClient) {
	part := more(name, m.sums[name])
	delete(m.sums, name)
	return part, nil
}
func (m *tally) Graft(_ session.Context, part []byte) error {
	m.sums[string(part[8:])] = binary.BigEndian.Uint64(part)
	return nil
}

// ownWorld is an overlay with own groups, and a name whose key's prefix has a group of three of its peers.
type ownWorld struct {
	*world
	name   keyspace.Preimage
	prefix placement.Descriptor
}

func newOwnWorld(t *testing.T, ctx context.Context, n int) *ownWorld {
	t.Helper()
	return newOwnWorldOf(t, ctx, n, newTally)
}

func newOwnWorldOf(t *testing.T, ctx context.Context, n int, tallies MachineFactory) *ownWorld {
	t.Helper()
	w := &ownWorld{world: &world{fixed: true, configure: func(c *Config) { c.Services = map[string]MachineFactory{"tally": tallies} }, genesisBy: []func(*placement.Genesis){func(g *placement.Genesis) {
		g.OwnGroups, g.TTLMax, g.Lease = true, 2*time.Second, 4*time.Second
	}}}}
	w.begin(t, n, 1, 3)
	// Of the members of the prefix's group at least two are not of the root, which a test may lose.
	for i := range 300 {
		w.name = keyspace.Preimage(fmt.Sprint("name ", i))
		d, err := w.peers[0].groups.Locate(ctx, w.name.Key())
		for errors.Is(err, ErrNoQuorum) && ctx.Err() == nil {
			d, err = w.peers[0].groups.Locate(ctx, w.name.Key())
		}
		if err != nil {
			t.Fatal(err)
		}
		if w.prefix = d; len(w.outside(d)) >= 2 {
			return w
		}
	}
	t.Fatal("every group has two members of the root")
	return nil
}

// outside returns the members of a group that are not of the root.
func (w *ownWorld) outside(d placement.Descriptor) (outside []*testPeer) {
	for _, p := range w.peers[len(w.genesis.Founders):] {
		if _, member := d.View.MemberAt(dht.NodeIDOf(p.host.ID())); member {
			outside = append(outside, p)
		}
	}
	return outside
}

// spared returns a peer that is a member of none of these groups.
func (w *ownWorld) spared(t *testing.T, of ...placement.Descriptor) *testPeer {
	t.Helper()
	for _, p := range slices.Backward(w.peers) {
		if !slices.ContainsFunc(of, func(d placement.Descriptor) bool { _, m := d.View.MemberAt(dht.NodeIDOf(p.host.ID())); return m }) {
			return p
		}
	}
	t.Fatal("every peer is a member")
	return nil
}

// adders adds ones from several peers until it is stopped, and tells how many took effect for certain, and how many more may have.
type adders struct {
	sure, maybe atomic.Uint64
	gap         atomic.Int64 // the longest time between two answers to one of them
	stop        func()
}

func (w *ownWorld) adding(t *testing.T, ctx context.Context, from ...*testPeer) *adders {
	t.Helper()
	a := new(adders)
	whole := ctx // a command is not given up because enough were sent, but with the test
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for _, p := range from {
		c := p.groups.NewClient()
		wg.Go(func() {
			last := time.Now()
			for ctx.Err() == nil {
				_, err := c.Do(whole, w.name.Key(), "tally", more(string(w.name), 1))
				switch {
				case err == nil:
					a.sure.Add(1)
				case errors.Is(err, ErrOutcomeUnknown):
					a.maybe.Add(1)
				default:
					t.Errorf("add at %v: %v", p.overlay.Node(), err)
					return
				}
				now := time.Now()
				a.gap.Store(max(a.gap.Load(), int64(now.Sub(last))))
				last = now
			}
		})
	}
	a.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(a.stop)
	return a
}

func (w *ownWorld) check(t *testing.T, ctx context.Context, by *testPeer, a *adders) {
	t.Helper()
	a.stop()
	got, err := by.groups.NewClient().Query(ctx, w.name.Key(), "tally", more(string(w.name), 0))
	if sum := sumOf(t, got, err); sum < a.sure.Load() || sum > a.sure.Load()+a.maybe.Load() {
		t.Errorf("the sum is %d; %d commands took effect for certain, and at most %d more", sum, a.sure.Load(), a.maybe.Load())
	}
	t.Logf("%d commands, %d unknown, longest pause %v", a.sure.Load(), a.maybe.Load(), time.Duration(a.gap.Load()))
}

func (w *ownWorld) give(t *testing.T, ctx context.Context, by *testPeer) placement.Descriptor {
	t.Helper()
	d, err := by.groups.GiveOwnGroup(ctx, w.name)
	for errors.Is(err, ErrNoQuorum) && ctx.Err() == nil { // a search for a group ends after a while, on a busy machine too
		d, err = by.groups.GiveOwnGroup(ctx, w.name)
	}
	if err != nil && !errors.Is(err, ErrHasOwn) {
		t.Fatal(err)
	}
	return d
}

func (w *ownWorld) takeBack(t *testing.T, ctx context.Context, by *testPeer) {
	t.Helper()
	if err := by.groups.TakeBackKey(ctx, w.name); err != nil && !errors.Is(err, ErrNoOwn) {
		t.Fatal(err)
	}
}

// Each command takes effect at most once, also one that is under way while its key moves, and none that was answered is missing. The log
// tells for how long nobody had an answer.
func TestCommandsTakeEffectOnceWhileTheirKeyMoves(t *testing.T) {
	t.Parallel()
	ctx := deadline(t, waitMax)
	w := newOwnWorld(t, ctx, 6)
	a := w.adding(t, ctx, w.peers[1], w.peers[4], w.peers[5])
	var last order.GroupID
	for range 4 {
		own := w.give(t, ctx, w.peers[2])
		if own.Group.Gen <= last.Gen || !placement.IsOwn(own.Group) {
			t.Errorf("own group %v after %v", own.Group, last)
		}
		if last = own.Group; len(own.View.Members) != 3 {
			t.Errorf("%d members", len(own.View.Members))
		}
		if _, err := w.peers[0].groups.GiveOwnGroup(ctx, w.name); !errors.Is(err, ErrHasOwn) {
			t.Errorf("given twice: %v", err)
		}
		for before := a.sure.Load(); a.sure.Load() < before+50; { // it serves
			if err := pause(ctx, time.Millisecond); err != nil {
				t.Fatal(err)
			}
		}
		w.takeBack(t, ctx, w.peers[3])
		if err := w.peers[0].groups.TakeBackKey(ctx, w.name); !errors.Is(err, ErrNoOwn) {
			t.Errorf("taken back twice: %v", err)
		}
	}
	if a.maybe.Load() > 0 {
		t.Errorf("%d commands have an unknown outcome, and nobody has failed", a.maybe.Load())
	}
	w.check(t, ctx, w.peers[0], a)
}

// slowTally is a tally that can give a name away only when it was asked for the notReadyth time.
type slowTally struct {
	*tally
	asked int
}

// notReady is so often that whoever wants the own group is told to ask again.
const notReady = 15

func (m *slowTally) Prepare(session.Context, string) bool {
	m.asked++
	return m.asked > notReady
}

// A group that does not know yet who has something at a key is asked again until it does: who wants an own group hears nothing of that.
func TestAKeyMovesWhenItsGroupIsReady(t *testing.T) {
	t.Parallel()
	ctx := deadline(t, waitMax)
	w := newOwnWorldOf(t, ctx, 6, func(g order.GroupID) session.Machine {
		m := &slowTally{tally: newTally(g).(*tally)}
		if placement.IsOwn(g) {
			m.asked = notReady
		}
		return m
	})
	by := w.spared(t, w.prefix)
	if _, err := by.groups.NewClient().Do(ctx, w.name.Key(), "tally", more(string(w.name), 2)); err != nil {
		t.Fatal(err)
	}
	if own := w.give(t, ctx, by); !placement.IsOwn(own.Group) {
		t.Errorf("own group %v", own.Group)
	}
	if got, err := by.groups.NewClient().Query(ctx, w.name.Key(), "tally", more(string(w.name), 0)); sumOf(t, got, err) != 2 {
		t.Error("the key has not taken its sum along")
	}
}

// An own group that was taken back goes on to say what became of its commands, also when the key has its next own group, at the same peers.
func TestAnOwnGroupThatWasTakenBackKnowsItsCommands(t *testing.T) {
	t.Parallel()
	ctx := deadline(t, waitMax)
	w := newOwnWorld(t, ctx, 6)
	first := w.give(t, ctx, w.peers[0])
	user := w.spared(t, first)
	c := user.groups.NewClient()
	if _, err := c.Do(ctx, w.name.Key(), "tally", more(string(w.name), 1)); err != nil {
		t.Fatal(err)
	}
	s, err := c.session(first.Group)
	if err != nil {
		t.Fatal(err)
	}
	// ask sends a command under a number that the client does not use, and has not acknowledged, until somebody knows.
	ask := func(seq uint64) (pb.Status, []byte) {
		t.Helper()
		req := encodeCommand(first.Group, 0, order.Command{Client: s.id, Seq: seq, Service: "tally", Data: more(string(w.name), 1)})
		for {
			for _, m := range first.Peers {
				b, err := user.overlay.Call(ctx, peer.ID(m.ID), keyspace.Key{}, serviceCommand, req)
				if err != nil {
					continue
				}
				if r, err := user.groups.decode.reply(b); err == nil && (r.status == pb.Status_OK || r.status == pb.Status_KEY_MOVED) {
					return r.status, r.data
				}
			}
			if err := pause(ctx, 10*time.Millisecond); err != nil {
				t.Fatalf("nobody knows of command %d: %v", seq, err)
			}
		}
	}
	if status, sum := ask(10); status != pb.Status_OK || sumOf(t, sum, nil) != 2 {
		t.Fatalf("%v, %v", status, sum)
	}
	w.takeBack(t, ctx, user)
	if next := w.give(t, ctx, user); next.Group.Gen <= first.Group.Gen {
		t.Fatalf("own group %v after %v", next.Group, first.Group)
	}
	if status, sum := ask(10); status != pb.Status_OK || sumOf(t, sum, nil) != 2 {
		t.Errorf("executed: %v, %v", status, sum)
	}
	if status, _ := ask(11); status != pb.Status_KEY_MOVED {
		t.Errorf("never executed: %v", status)
	}
	// Whoever gives its session up, and makes another one with it, does not get those results for other commands.
	s.gone()
	again, err := c.session(first.Group)
	if err != nil {
		t.Fatal(err)
	}
	if again == s || again.id == s.id {
		t.Error("a second session under the first one's id")
	}
	if got, err := c.Do(ctx, w.name.Key(), "tally", more(string(w.name), 1)); sumOf(t, got, err) != 3 {
		t.Error("not every command has taken effect once")
	}
}

// Only who leads refuses a command about own groups of a peer that may not give it. A client that a follower refused would take that for
// the leader, and stay with it: a leader's own host, which had found another one before, never found itself.
func TestOnlyTheLeaderRefusesCommandsAboutOwnGroups(t *testing.T) {
	t.Parallel()
	ctx := deadline(t, waitMax)
	w := newOwnWorld(t, ctx, 6)
	by := w.spared(t, w.prefix)
	data, err := placement.KeyCommand{Kind: placement.Begun, Name: string(w.name)}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	req := encodeCommand(w.prefix.Group, 0, order.Command{Client: order.ClientID{1}, Seq: 1, Service: placement.OwnService, Data: data})
	for {
		answers := make(map[pb.Status]int)
		for _, m := range w.prefix.Peers {
			b, err := by.overlay.Call(ctx, peer.ID(m.ID), keyspace.Key{}, serviceCommand, req)
			if err != nil {
				t.Fatal(err)
			}
			r, err := by.groups.decode.reply(b)
			if err != nil {
				t.Fatal(err)
			}
			answers[r.status]++
		}
		switch n := len(w.prefix.Peers); {
		case answers[pb.Status_REFUSED] == 1 && answers[pb.Status_NOT_LEADER] == n-1:
			return
		case answers[pb.Status_REFUSED] == n || len(answers) > 2:
			t.Fatalf("answers %v", answers)
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil { // there is no leader, or another one
			t.Fatalf("answers %v: %v", answers, err)
		}
	}
}

// A move is finished by whoever leads the group of the prefix next: its leader dies behind the entry that gives the key away, and
// once more behind the seal of the key's own group.
func TestTheNextLeaderFinishesAMove(t *testing.T) {
	t.Parallel()
	ctx := deadline(t, waitMax)
	w := newOwnWorld(t, ctx, 7)
	user := w.spared(t, w.prefix)
	a := w.adding(t, ctx, user)
	leader, _ := w.leader(t, ctx, w.prefix.Group)
	// The leader proposes Out and dies: members have not been told to start.
	var members []placement.Host
	for _, p := range w.peers {
		if p != leader && len(members) < 3 {
			members = append(members, placement.Host{Peer: peerOfInfo(peer.AddrInfo{ID: p.host.ID(), Addrs: p.host.Addrs()}), Store: p.store.ID()})
		}
	}
	out, err := placement.KeyCommand{Kind: placement.Out, Name: string(w.name), Members: members}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	// Its keyring is gone before it could begin anything.
	leader.touch(w.prefix.Group, func(r *replica) { r.ringOf().cancel() })
	if b, err := leader.groups.internal.do(ctx, w.prefix.Group.Prefix, placement.OwnService, out); err != nil {
		t.Fatal(err)
	} else if res, err := placement.DecodeResult(b); err != nil || res.Status != placement.OK {
		t.Fatalf("out: %+v, %v", res, err)
	}
	disk := leader.kill()
	for before := a.sure.Load(); a.sure.Load() < before+20; {
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			t.Fatalf("the key is served nowhere: %v", err)
		}
	}
	w.restart(t, leader, disk)

	// Somebody seals the own group and is not heard of again: it has itself taken back.
	p := placement.KeyPrefix(w.name.Key())
	ch, err := user.groups.Child(ctx, p)
	if err != nil {
		t.Fatal(err)
	}
	next, _ := w.leader(t, ctx, w.prefix.Group)
	seal, err := placement.KeyCommand{Kind: placement.Seal, Name: string(w.name), Gen: ch.Group.Gen}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if b, err := next.groups.internal.doOwn(ctx, ch.Descriptor, placement.OwnService, seal); err != nil {
		t.Fatal(err)
	} else if res, err := placement.DecodeOwnResult(b); err != nil || res.Phase != placement.OwnSealed {
		t.Fatalf("seal: %+v, %v", res, err)
	}
	for {
		if _, err := user.groups.Child(ctx, p); errors.Is(err, ErrNoGroup) {
			break
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			t.Fatalf("the key is not taken back: %v", err)
		}
	}
	w.check(t, ctx, user, a)
}

// An own group that is lost comes back under the next generation of its key, of which tokens tell it apart, by the group of its prefix.
func TestALostOwnGroupIsRevived(t *testing.T) {
	t.Parallel()
	ctx := deadline(t, waitMax)
	w := newOwnWorld(t, ctx, 8)
	own := w.give(t, ctx, w.peers[0])
	user := w.spared(t, own, w.prefix)
	c := user.groups.NewClient()
	if _, err := c.Do(ctx, w.name.Key(), "tally", more(string(w.name), 5)); err != nil {
		t.Fatal(err)
	}
	if _, err := user.groups.Revive(ctx, own.Group.Prefix, own.Group.Gen, false); !errors.Is(err, ErrAlive) {
		t.Fatalf("revive of a healthy own group: %v", err)
	}
	var dead []*testPeer
	for _, p := range w.peers {
		_, member := own.View.MemberAt(dht.NodeIDOf(p.host.ID()))
		_, needed := w.prefix.View.MemberAt(dht.NodeIDOf(p.host.ID()))
		if member && !needed {
			dead = append(dead, p)
		}
	}
	if len(dead) < 2 { // it lives where its parent does: its members lose the replicas alone
		for _, p := range w.peers {
			if _, member := own.View.MemberAt(dht.NodeIDOf(p.host.ID())); member {
				p.touch(own.Group, func(r *replica) { r.halt("lost by the test") })
			}
		}
	}
	for _, p := range dead[:min(len(dead), 2)] {
		p.kill()
	}
	d, err := user.groups.Revive(ctx, own.Group.Prefix, own.Group.Gen, len(dead) < 2)
	if err != nil {
		t.Fatal(err)
	}
	if placement.KeyGen(d.Group.Gen) != placement.KeyGen(own.Group.Gen)+1 {
		t.Errorf("revived as %v after %v", d.Group, own.Group)
	}
	got, err := c.Do(ctx, w.name.Key(), "tally", more(string(w.name), 1))
	for errors.Is(err, ErrOutcomeUnknown) {
		got, err = c.Do(ctx, w.name.Key(), "tally", more(string(w.name), 0))
	}
	if sum := sumOf(t, got, err); sum > 1 {
		t.Errorf("the next generation knows %d of the lost one", sum)
	}
}

// Conformance test 48 on hosts: a prefix's group that is lost does not take the own groups of its keys along. Its next generation adopts
// them, and can take their keys back.
func TestAnOwnGroupOutlivesItsPrefixsGroup(t *testing.T) {
	t.Parallel()
	ctx := deadline(t, waitMax)
	w := newOwnWorld(t, ctx, 9)
	own := w.give(t, ctx, w.peers[0])
	user := w.spared(t, own, w.prefix)
	c := user.groups.NewClient()
	// Of a command that a busy machine does not answer in time nobody may know the outcome, once the prefix's group is lost and with it the
	// sessions that it had.
	sure, maybe := uint64(0), uint64(0)
	add := func(n uint64, otherwise string) {
		t.Helper()
		got, err := c.Do(ctx, w.name.Key(), "tally", more(string(w.name), n))
		for errors.Is(err, ErrOutcomeUnknown) && ctx.Err() == nil {
			maybe += n
			got, err = c.Do(ctx, w.name.Key(), "tally", more(string(w.name), n))
		}
		sure += n
		if sum := sumOf(t, got, err); sum < sure || sum > sure+maybe {
			t.Errorf("%s: the sum is %d, of %d for certain and at most %d more", otherwise, sum, sure, maybe)
		}
	}
	add(5, "the own group does not begin")
	for _, p := range w.peers { // its members may be members of the own group too, so they lose that replica alone
		if _, member := w.prefix.View.MemberAt(dht.NodeIDOf(p.host.ID())); member {
			p.touch(w.prefix.Group, func(r *replica) { r.halt("lost by the test") })
		}
	}
	add(1, "the own group does not go on")
	d, err := user.groups.Revive(ctx, w.prefix.Group.Prefix, 0, true)
	if err != nil {
		t.Fatal(err)
	}
	p := placement.KeyPrefix(w.name.Key())
	for {
		if ch, err := user.groups.Child(ctx, p); err == nil && ch.Group == own.Group {
			break
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			t.Fatalf("it was not adopted by %v: %v", d.Group, err)
		}
	}
	add(1, "the own group does not go on")
	w.takeBack(t, ctx, user) // when the quarantine is over
	add(1, "what the own group knew is lost")
}

// In other overlays nothing of this is heard of: no service more, no field more.
func TestAnOverlayWithoutOwnGroupsKnowsNoneOfIt(t *testing.T) {
	w := newWorld(t, 1, 0)
	h := w.peers[0].groups
	ctx := deadline(t, waitMax)
	if _, err := h.GiveOwnGroup(ctx, "n"); !errors.Is(err, ErrNoOwnGroups) {
		t.Errorf("give: %v", err)
	}
	if err := h.TakeBackKey(ctx, "n"); !errors.Is(err, ErrNoOwnGroups) {
		t.Errorf("take back: %v", err)
	}
	p := keyspace.PrefixOf(keyspace.Preimage("n").Key(), w.genesis.Depth)
	if m := h.machines(order.GroupID{Overlay: h.id, Prefix: p}); m[placement.OwnService] != nil || len(m) != len(h.services) {
		t.Errorf("services %v", slices.Sorted(maps.Keys(m)))
	}
	// An unknown service is answered as it always was.
	if _, err := h.internal.do(ctx, p, placement.OwnService, bytes.Repeat([]byte{1}, 8)); !errors.Is(err, ErrRefused) {
		t.Errorf("command of keys: %v", err)
	}
}

// A client remembers every own group that it has given a session up with, in bounded room: the numbers that it used there it never uses
// again under the same id.
func TestAClientForgetsNoGroupThatItGaveUp(t *testing.T) {
	own := func(i int) order.GroupID {
		p := keyspace.PrefixOf(keyspace.Preimage(fmt.Sprint("key ", i)).Key(), keyspace.PrefixBitsMax)
		return order.GroupID{Prefix: p, Gen: uint64(1 + i)}
	}
	c := &Client{over: make(map[keyspace.Prefix]uint64)}
	const n = 3*overMax + 7
	for i := range n {
		g := own(i)
		if c.isOverLocked(g) {
			t.Fatalf("%v is over before it was given up", g)
		}
		c.overLocked(g)
		if len(c.over) > overMax {
			t.Fatalf("%d are remembered one by one, at most %d", len(c.over), overMax)
		}
	}
	for i := range n {
		if g := own(i); !c.isOverLocked(g) {
			t.Fatalf("%v is forgotten", g)
		}
	}
	if next := own(n - 1); c.isOverLocked(order.GroupID{Prefix: next.Prefix, Gen: next.Gen + 1}) {
		t.Error("the one that has followed the last is taken for it")
	}
}
