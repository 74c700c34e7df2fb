package placement

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
)

// viewed returns a child's descriptor in a later view, whose members are these peers: those that were members keep their ids.
func viewed(ch Child, num uint64, peers ...int) Descriptor {
	d := ch.Descriptor
	old, next := d.View, d.View.Next
	d.View, d.Peers = order.View{Num: num}, nil
	for _, i := range peers {
		h := host(i)
		m, ok := old.MemberAt(h.Node())
		if !ok {
			m = order.Member{ID: next, Peer: h.Node(), PeerID: h.ID, Store: h.Store, Role: order.Voter}
			next++
		}
		d.View.Members = append(d.View.Members, m)
		d.Peers = append(d.Peers, h.Peer)
	}
	d.View.Next = next
	return d
}

// snapshot1 encodes a directory as version 1 did.
func snapshot1(d *Directory) []byte {
	b := binary.BigEndian.AppendUint32([]byte{1}, uint32(len(d.children)))
	for _, p := range d.sorted() {
		ch := d.children[p]
		b = appendDescriptor(append(b, ch.Started), ch.Descriptor)
	}
	return b
}

func TestASnapshotOfVersion1IsRead(t *testing.T) {
	d := NewDirectory(genesis(3), order.GroupID{})
	for i := range 4 {
		apply(t, d, Command{Kind: Create, Prefix: prefix(i), Members: hosts(3)})
		apply(t, d, Command{Kind: Reported, Prefix: prefix(i), Replica: 2, Store: host(1).Store})
	}
	again := NewDirectory(genesis(3), order.GroupID{})
	if err := again.Restore(snapshot1(d)); err != nil || !bytes.Equal(again.Snapshot(), d.Snapshot()) {
		t.Fatalf("restored to something else: %v", err)
	}
}

func TestAnUpdateTakesLaterViewsOfTheLiveGeneration(t *testing.T) {
	d := NewDirectory(genesis(3), order.GroupID{})
	update := func(to Descriptor) Result {
		return apply(t, d, Command{Kind: Update, Prefix: to.Group.Prefix, Descriptor: to})
	}
	first := child(t, 1)
	if res := update(first.Descriptor); res.Status != NotFound {
		t.Errorf("of nothing: %v", res.Status)
	}
	apply(t, d, Command{Kind: Create, Prefix: prefix(1), Members: hosts(3)})
	apply(t, d, Command{Kind: Reported, Prefix: prefix(1), Replica: 2, Store: host(1).Store})
	later := viewed(first, 5, 0, 1, 7)
	res := update(later)
	if res.Status != OK || !reflect.DeepEqual(res.Child.Descriptor, later) {
		t.Fatalf("a later view: %v, %+v", res.Status, res.Child)
	}
	// Replica 1 has yet to report in; whoever came since was started by the group itself.
	if res.Child.Started != 0b110 {
		t.Errorf("started %03b, want 110", res.Child.Started)
	}
	for _, view := range []Descriptor{first.Descriptor, viewed(first, 4, 2)} {
		if res := update(view); res.Status != Stale || !reflect.DeepEqual(res.Child.Descriptor, later) {
			t.Errorf("view %d: %v, %+v", view.View.Num, res.Status, res.Child.View)
		}
	}
	if res := update(later); res.Status != OK {
		t.Errorf("a repeat: %v", res.Status)
	}
	for _, gen := range []uint64{1, 1 << 32} {
		other := viewed(first, 9, 3)
		other.Group.Gen = gen
		if res := update(other); res.Status != WrongGen || !reflect.DeepEqual(res.Child.Descriptor, later) {
			t.Errorf("generation %d: %v", gen, res.Status)
		}
	}
	long := viewed(first, 9, 3)
	long.Group.Prefix = keyspace.PrefixOf(keyspace.Key{1}, DepthDefault+1)
	if res := update(long); res.Status != BadPrefix {
		t.Errorf("another depth: %v", res.Status)
	}
	if _, err := (Command{Kind: Update, Prefix: prefix(2), Descriptor: later}).Encode(); !errors.Is(err, ErrMalformed) {
		t.Errorf("an update of another prefix than its descriptor's: %v", err)
	}
}

func TestAReviveMakesTheNextGeneration(t *testing.T) {
	d := NewDirectory(genesis(3), order.GroupID{})
	revive := func(gen uint64, members ...Host) Result {
		return apply(t, d, Command{Kind: Revive, Prefix: prefix(1), Gen: gen, Members: members})
	}
	if res := revive(0, hosts(3)...); res.Status != NotFound {
		t.Errorf("of nothing: %v", res.Status)
	}
	first := apply(t, d, Command{Kind: Create, Prefix: prefix(1), Members: hosts(3)}).Child
	apply(t, d, Command{Kind: Update, Prefix: prefix(1), Descriptor: viewed(first, 6, 0, 1, 7)})
	for name, c := range map[string]struct {
		cmd  Command
		want Status
	}{
		"a generation to come": {Command{Kind: Revive, Prefix: prefix(1), Gen: 1, Members: hosts(3)}, WrongGen},
		"nobody":               {Command{Kind: Revive, Prefix: prefix(1)}, BadMember},
		"an even number":       {Command{Kind: Revive, Prefix: prefix(1), Members: hosts(2)}, BadMember},
		"more than 2f+1":       {Command{Kind: Revive, Prefix: prefix(1), Members: hosts(5)}, BadMember},
		"the root":             {Command{Kind: Revive, Members: hosts(3)}, BadPrefix},
	} {
		if res := apply(t, d, c.cmd); res.Status != c.want {
			t.Errorf("%s: %v, want %v", name, res.Status, c.want)
		}
	}
	res := revive(0, host(4), host(1), host(2))
	ch := res.Child
	if res.Status != OK || ch.Group.Gen != 1 || ch.View.Num != 0 || ch.State != Reviving || ch.Former != (Former{Gen: 0, View: 6}) ||
		ch.Peers[0].ID != host(4).ID || ch.View.Members[0].ID != 1 {
		t.Fatalf("revived: %v, %+v", res.Status, ch)
	}
	// A late copy, and a second operator, change nothing and are told what there is.
	if res := revive(0, hosts(3)...); res.Status != WrongGen || !reflect.DeepEqual(res.Child, ch) {
		t.Errorf("a second time: %v, %+v", res.Status, res.Child)
	}
	if res := apply(t, d, Command{Kind: Update, Prefix: prefix(1), Descriptor: viewed(first, 9, 0, 1, 7)}); res.Status != WrongGen {
		t.Errorf("an update of the lost generation: %v", res.Status)
	}
	// Replica 2 of both generations lives in one store: only a report that names the new one counts.
	report := func(gen uint64, i int) Child {
		res := apply(t, d, Command{Kind: Reported, Prefix: prefix(1), Gen: gen, Replica: order.ReplicaID(i + 1), Store: ch.View.Members[i].Store})
		if want := map[bool]Status{true: OK, false: NotFound}[gen == 1]; res.Status != want {
			t.Fatalf("report of generation %d: %v", gen, res.Status)
		}
		now, _ := d.Lookup(prefix(1))
		return now
	}
	report(0, 1)
	if now := report(1, 1); now.State != Reviving || now.Started != 0b10 {
		t.Errorf("after one report: %v, %b", now.State, now.Started)
	}
	if now := report(1, 0); now.State != Live || now.Former != ch.Former {
		t.Errorf("after a majority's: %v, %+v", now.State, now.Former)
	}
	if again := revive(1, hosts(1)...).Child; again.Group.Gen != 2 || again.Former != (Former{Gen: 1}) {
		t.Errorf("revived again: %+v", again)
	}
	l, err := DecodeListing(d.Query(ListQuery(keyspace.Prefix{})))
	if err != nil || len(l.Children) != 1 || l.Children[0].State != Reviving || l.Children[0].Gen != 2 {
		t.Errorf("listed: %+v, %v", l, err)
	}
}

// The bound on generations is that of tokens, at its edge.
func TestTheLastGenerationCannotBeRevived(t *testing.T) {
	d := NewDirectory(genesis(3), order.GroupID{})
	apply(t, d, Command{Kind: Create, Prefix: prefix(1), Members: hosts(3)})
	for gen := range uint64(PrefixGenMax) {
		if res := apply(t, d, Command{Kind: Revive, Prefix: prefix(1), Gen: gen, Members: hosts(3)}); res.Status != OK || res.Child.Group.Gen != gen+1 {
			t.Fatalf("generation %d: %v, %v", gen, res.Status, res.Child.Group)
		}
	}
	if res := apply(t, d, Command{Kind: Revive, Prefix: prefix(1), Gen: PrefixGenMax, Members: hosts(3)}); res.Status != Exhausted {
		t.Fatalf("one more: %v", res.Status)
	}
}

// checked is what a directory may be asked at random, and a record of what came of it: per prefix the chain of generations and, of
// the live one, the chain of views (I10), and the bits of each report.
type checked struct {
	dir   *Directory
	gens  map[keyspace.Prefix][]Child
	views map[order.GroupID]uint64
	bits  map[order.GroupID]map[order.StoreID]bool
}

func newChecked(m mutant) *checked {
	c := &checked{dir: NewDirectory(genesis(3), order.GroupID{}), gens: make(map[keyspace.Prefix][]Child), views: make(map[order.GroupID]uint64),
		bits: make(map[order.GroupID]map[order.StoreID]bool)}
	c.dir.mutant = m
	return c
}

// apply executes a command and checks what the directory holds of its prefix then.
func (c *checked) apply(cmd Command) error {
	b, err := cmd.Encode()
	if err != nil {
		return err
	}
	before, had := c.dir.Lookup(cmd.Prefix)
	res, err := DecodeResult(c.dir.Apply(0, b))
	if err != nil {
		return err
	}
	now, has := c.dir.Lookup(cmd.Prefix)
	if !has {
		return nil
	}
	if res.Status.holds() && !reflect.DeepEqual(res.Child, now) {
		return fmt.Errorf("answered %v of %+v, and holds %+v", res.Status, res.Child, now)
	}
	chain := c.gens[cmd.Prefix]
	switch {
	case !had:
		if now.Group.Gen != 0 || now.State != Live {
			return fmt.Errorf("created as generation %d, %v", now.Group.Gen, now.State)
		}
		c.gens[cmd.Prefix] = append(chain, now)
	case now.Group != before.Group:
		// I10: generations form a chain, and only a Revive that names the lost one forges a link.
		if cmd.Kind != Revive || cmd.Gen != before.Group.Gen || now.Group.Gen <= before.Group.Gen || now.Former != (Former{before.Group.Gen, before.View.Num}) {
			return fmt.Errorf("I10: %v of generation %d made %v after %v, former %+v", cmd.Kind, cmd.Gen, now.Group, before.Group, now.Former)
		}
		c.gens[cmd.Prefix] = append(chain, now)
	case cmd.Kind == Revive && res.Status == OK:
		return fmt.Errorf("I8: revived without a new generation: tokens of %v would come again", now.Group)
	case now.View.Num < c.views[now.Group]:
		return fmt.Errorf("I10: %v went back from view %d to %d", now.Group, c.views[now.Group], now.View.Num)
	}
	c.views[now.Group] = now.View.Num
	if cmd.Kind == Reported {
		g := now.Group
		g.Gen = cmd.Gen
		if c.bits[g] == nil {
			c.bits[g] = make(map[order.StoreID]bool)
		}
		c.bits[g][cmd.Store] = true
	}
	// Who counts as started has reported in for this very generation, or came by a later view.
	for i, m := range now.View.Members {
		if now.Started>>i&1 == 1 && int(m.ID) <= len(c.gens[cmd.Prefix][len(c.gens[cmd.Prefix])-1].View.Members) && !c.bits[now.Group][m.Store] {
			return fmt.Errorf("I7: replica %d of %v counts as started and never said so", m.ID, now.Group)
		}
	}
	if now.State == Reviving == now.majority() && now.Group.Gen > 0 {
		return fmt.Errorf("%v is %v with %b started", now.Group, now.State, now.Started)
	}
	return nil
}

// schedule runs random commands, late copies among them, and returns the first thing that is wrong.
func schedule(seed uint64, m mutant) error {
	chance := rand.New(rand.NewPCG(seed, 41))
	c, sent := newChecked(m), []Command{}
	pick := func() []Host {
		all := chance.Perm(8)[:1+2*chance.IntN(2)]
		var list []Host
		for _, i := range all {
			list = append(list, host(i))
		}
		return list
	}
	for step := range 120 {
		p := prefix(chance.IntN(2))
		ch, _ := c.dir.Lookup(p)
		cmd := Command{Prefix: p}
		switch k := chance.IntN(10); {
		case k == 0 || ch.IsZero():
			cmd.Kind, cmd.Members = Create, pick()
		case k < 4:
			at := chance.IntN(len(ch.View.Members))
			cmd.Kind, cmd.Gen = Reported, ch.Group.Gen
			cmd.Replica, cmd.Store = ch.View.Members[at].ID, ch.View.Members[at].Store
		case k < 6:
			cmd.Kind, cmd.Gen, cmd.Members = Revive, ch.Group.Gen, pick()
		case k < 8:
			cmd.Kind, cmd.Descriptor = Update, viewed(ch, ch.View.Num+uint64(chance.IntN(3)), chance.Perm(8)[:3]...)
			slices.SortFunc(cmd.Descriptor.View.Members, func(a, b order.Member) int { return int(a.ID) - int(b.ID) })
			cmd.Descriptor.Peers = nil
			for _, m := range cmd.Descriptor.View.Members {
				for i := range 8 {
					if host(i).Node() == m.Peer {
						cmd.Descriptor.Peers = append(cmd.Descriptor.Peers, host(i).Peer)
					}
				}
			}
		default: // a late copy
			if len(sent) == 0 {
				continue
			}
			cmd = sent[chance.IntN(len(sent))]
		}
		sent = append(sent, cmd)
		if err := c.apply(cmd); err != nil {
			return fmt.Errorf("seed %d, step %d: %w", seed, step, err)
		}
		if chance.IntN(20) == 0 { // a snapshot in between changes nothing
			d := NewDirectory(genesis(3), order.GroupID{})
			if err := d.Restore(c.dir.Snapshot()); err != nil {
				return fmt.Errorf("seed %d, step %d: %w", seed, step, err)
			}
			d.mutant, c.dir = m, d
		}
	}
	return nil
}

func TestGenerationsAndViewsFormChains(t *testing.T) {
	for seed := range uint64(500) {
		if err := schedule(seed, 0); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPlantedMistakesOfTheDirectoryAreCaught(t *testing.T) {
	for m := mutantReviveAnyGen; m <= mutantReportAnyGen; m++ {
		caught := 0
		for seed := range uint64(300) {
			if schedule(seed, m) != nil {
				caught++
			}
		}
		if caught == 0 {
			t.Errorf("mistake %d was not caught", m)
		}
		t.Logf("mistake %d: caught by %d of 300 seeds", m, caught)
	}
}

// reviving leads a creator to the question whom to revive prefix 1 with.
func reviving(t *testing.T, d *Directory) (*Creator, Child) {
	t.Helper()
	apply(t, d, Command{Kind: Create, Prefix: prefix(1), Members: hosts(3)})
	lost, _ := d.Lookup(prefix(1))
	c := leading()
	out := c.Step(ReviveLost{Ref: 9, Known: lost}, 0, nil)
	if _, ok := out[0].(LookUp); !ok {
		t.Fatalf("a revival begins with %v", out)
	}
	return c, lost
}

// answerYes has every peer that is asked say yes, and returns what the creator wants then.
func answerYes(c *Creator, out []CreatorAction) []CreatorAction {
	for i := 0; i < len(out); i++ {
		if a, ok := out[i].(AskHost); ok {
			for k := range 10 {
				if host(k).ID == a.Peer.ID {
					out = c.Step(HostAnswer{Prefix: a.Prefix, Peer: a.Peer.Node(), Store: host(k).Store, OK: true}, 0, out)
				}
			}
		}
	}
	return out
}

func the[A CreatorAction](t *testing.T, out []CreatorAction) (found A) {
	t.Helper()
	n := 0
	for _, a := range out {
		if a, ok := a.(A); ok {
			found, n = a, n+1
		}
	}
	if n != 1 {
		t.Fatalf("%d of %T in %v", n, found, out)
	}
	return found
}

func TestACreatorRevivesALostGroup(t *testing.T) {
	d := NewDirectory(genesis(3), order.GroupID{})
	c, lost := reviving(t, d)
	out := answerYes(c, c.Step(Closest{Prefix: prefix(1), Peers: peersOf([]Host{host(4), host(5), host(6)})}, 0, nil))
	cmd := the[Propose](t, out).Command
	if cmd.Kind != Revive || cmd.Gen != 0 || cmd.Prefix != prefix(1) || len(cmd.Members) != 3 {
		t.Fatalf("proposes %+v", cmd)
	}
	// Somebody who needs the group meanwhile waits for the new one, and news of the lost one ends nothing.
	if out := c.Step(Ensure{Prefix: prefix(1), Ref: 10, Known: lost}, 0, nil); len(out) != 0 {
		t.Fatalf("an Ensure during a revival: %v", out)
	}
	if out := c.Step(Committed{lost}, 0, nil); len(out) != 0 {
		t.Fatalf("news of the lost generation: %v", out)
	}
	if out := c.Step(ReviveLost{Ref: 11, Known: lost}, 0, nil); len(out) != 0 {
		t.Fatalf("asked a second time: %v", out)
	}
	ch := apply(t, d, cmd).Child
	starts := 0
	for _, a := range c.Step(Committed{ch}, 0, nil) {
		if s, ok := a.(SendStart); ok && s.Descriptor.Group.Gen == 1 {
			starts++
		}
	}
	if starts != 3 {
		t.Fatalf("%d Starts", starts)
	}
	report := func(i int) []CreatorAction {
		m := ch.View.Members[i]
		out := c.Step(Started{Group: ch.Group, Peer: m.Peer, Replica: m.ID, Store: m.Store}, 0, nil)
		if p := the[Propose](t, out).Command; p.Kind != Reported || p.Gen != 1 {
			t.Fatalf("reports %+v", p)
		}
		return out
	}
	report(0)
	told := 0
	for _, a := range report(1) {
		if a, ok := a.(AnswerEnsure); ok && a.Err == nil && a.Descriptor.Group == ch.Group {
			told++
		}
	}
	if told != 3 {
		t.Errorf("%d were told of the new generation, want both operators and who waited", told)
	}
	answers(t, c.Step(ReviveLost{Ref: 12, Known: lost}, 0, nil), ErrCreating) // late: the next one is on its way
}

func TestARevivalThatFails(t *testing.T) {
	closest := Closest{Prefix: prefix(1), Peers: peersOf(hosts(3))}
	c, lost := reviving(t, NewDirectory(genesis(3), order.GroupID{}))
	ref := the[Propose](t, answerYes(c, c.Step(closest, 0, nil))).Ref
	answers(t, c.Step(NotCommitted{Prefix: prefix(1), Ref: ref, Err: fmt.Errorf("%w: wrong generation", ErrRefused)}, 0, nil), ErrRefused)
	if c.Open() != 0 {
		t.Errorf("%d open after a refusal", c.Open())
	}
	answers(t, c.Step(ReviveLost{Ref: 1}, 0, nil), ErrPrefix)
	c.Step(ReviveLost{Ref: 2, Known: lost}, 0, nil)
	answers(t, c.Step(LeaderChange{}, 0, nil), ErrNotLeader)
	answers(t, c.Step(ReviveLost{Ref: 3, Known: lost}, 0, nil), ErrNotLeader)
}

// Members of the lost generation that never reported in keep its creation open; a revival is not held up by that.
func TestARevivalEndsTheStartingOfTheLostGeneration(t *testing.T) {
	d := NewDirectory(genesis(3), order.GroupID{})
	c := leading()
	c.Step(Ensure{Prefix: prefix(1), Ref: 1}, 0, nil)
	lost := apply(t, d, Command{Kind: Create, Prefix: prefix(1), Members: hosts(3)}).Child
	c.Step(Committed{lost}, 0, nil)
	out := c.Step(ReviveLost{Ref: 2, Known: lost}, 0, nil)
	if a := the[AnswerEnsure](t, out); a.Ref != 1 || !errors.Is(a.Err, ErrUndecided) {
		t.Errorf("who waited for the lost generation was told %+v", a)
	}
	the[LookUp](t, out)
	m := lost.View.Members[0]
	if out := c.Step(Started{Group: lost.Group, Peer: m.Peer, Replica: m.ID, Store: m.Store}, 0, nil); len(out) != 0 {
		t.Errorf("a late start of the lost generation: %v", out)
	}
}

// An Update that removes a member which never started ends the Starts to it.
func TestACreatorFollowsTheViewsOfAChild(t *testing.T) {
	d := NewDirectory(genesis(3), order.GroupID{})
	c := leading()
	c.Step(Ensure{Prefix: prefix(1), Ref: 1}, 0, nil)
	ch := apply(t, d, Command{Kind: Create, Prefix: prefix(1), Members: hosts(3)}).Child
	c.Step(Committed{ch}, 0, nil)
	for i := range 2 {
		m := ch.View.Members[i]
		c.Step(Started{Group: ch.Group, Peer: m.Peer, Replica: m.ID, Store: m.Store}, 0, nil)
		ch = apply(t, d, Command{Kind: Reported, Prefix: prefix(1), Replica: m.ID, Store: m.Store}).Child
	}
	if c.Open() != 1 {
		t.Fatalf("%d open while a member is silent", c.Open())
	}
	c.Step(Committed{apply(t, d, Command{Kind: Update, Prefix: prefix(1), Descriptor: viewed(ch, 3, 0, 1, 7)}).Child}, 0, nil)
	if c.Open() != 0 {
		t.Errorf("%d open after the silent member was replaced", c.Open())
	}
}

// revived returns the child of prefix 1 after it was revived with the same members.
func revived(t testing.TB) Child {
	d := NewDirectory(genesis(3), order.GroupID{})
	apply(t, d, Command{Kind: Create, Prefix: prefix(1), Members: hosts(3)})
	return apply(t, d, Command{Kind: Revive, Prefix: prefix(1), Members: hosts(3)}).Child
}

func TestAMemberBuriesWhatTheParentSaysIsOver(t *testing.T) {
	old, next := child(t, 1), revived(t)
	hosted := func(c *HostingConfig) {
		c.Hosted = []Hosted{{Group: child(t, 2).Group, Replica: 2}, {Group: old.Group, Replica: 2}}
	}
	h := memberOne(hosted)
	// Whoever speaks of a later generation may lie: the parent is asked, once at a time, and nothing happens meanwhile.
	if c := one[Confirm](t, h, HeardOf{next.Group}); c.Group != next.Group {
		t.Fatalf("confirms %v", c.Group)
	}
	for _, ev := range []HostingEvent{HeardOf{next.Group}, Confirmed{Group: next.Group, Err: errors.New("no answer")}} {
		if out := h.Step(ev, nil); len(out) != 0 {
			t.Fatalf("%T gave %v", ev, out)
		}
	}
	one[Confirm](t, h, HeardOf{next.Group})
	if out := h.Step(Confirmed{Group: next.Group, Child: old}, nil); len(out) != 0 {
		t.Fatalf("a lie gave %v", out)
	}
	one[Confirm](t, h, HeardOf{next.Group})
	if b := one[Bury](t, h, Confirmed{Group: next.Group, Child: next}); b.Group != old.Group || b.Replica != 2 {
		t.Fatalf("buries %+v", b)
	}
	if a := one[AnswerStart](t, h, StartReplica{Parent: true, Descriptor: old.Descriptor}); !errors.Is(a.Err, ErrRetired) {
		t.Errorf("the old generation starts again: %+v", a)
	}
	for _, ev := range []HostingEvent{HeardOf{next.Group}, HeardOf{old.Group}, Superseded{next.Group}, Superseded{child(t, 2).Group}} {
		if out := h.Step(ev, nil); len(out) != 0 {
			t.Errorf("%+v then gave %v", ev, out)
		}
	}
	if b := one[Bury](t, memberOne(hosted), Superseded{next.Group}); b.Group != old.Group {
		t.Errorf("what the parent lists buries %+v", b)
	}
	root := next.Group
	root.Prefix = keyspace.Prefix{}
	for _, g := range []order.GroupID{root, {Prefix: prefix(1), Gen: 4}} {
		if out := memberOne(hosted).Step(Superseded{g}, nil); len(out) != 0 {
			t.Errorf("%v buries %v", g, out)
		}
	}
}

// A member of both generations puts the old one aside before it runs the new one.
func TestAStartOfTheNextGenerationBuriesTheOldOne(t *testing.T) {
	old, next := child(t, 1), revived(t)
	h := memberOne(func(c *HostingConfig) { c.Hosted = []Hosted{{Group: old.Group, Replica: 2}} })
	one[Confirm](t, h, StartReplica{Parent: true, Ref: 4, Descriptor: next.Descriptor})
	out := h.Step(Confirmed{Group: next.Group, Child: next}, nil)
	if len(out) != 2 {
		t.Fatalf("confirmed: %v", out)
	}
	b, buries := out[0].(Bury)
	r, runs := out[1].(Run)
	if !buries || !runs || b.Group != old.Group || r.Descriptor.Group != next.Group {
		t.Fatalf("confirmed: %v", out)
	}
}

// The old generation was starting when the new one became known: what comes to run is buried at once.
func TestAReplicaThatStartsTooLateIsBuried(t *testing.T) {
	old, next := child(t, 1), revived(t)
	h := memberOne(nil)
	one[Confirm](t, h, StartReplica{Parent: true, Ref: 4, Descriptor: old.Descriptor})
	one[Run](t, h, Confirmed{Group: old.Group, Child: old})
	if out := h.Step(Superseded{next.Group}, nil); len(out) != 0 {
		t.Fatalf("superseded: %v", out)
	}
	out := h.Step(Running{Group: old.Group}, nil)
	if len(out) != 2 {
		t.Fatalf("running: %v", out)
	}
	b, buries := out[0].(Bury)
	a, answers := out[1].(AnswerStart)
	if !buries || !answers || b.Group != old.Group || !errors.Is(a.Err, ErrRetired) {
		t.Errorf("running: %v", out)
	}
}
