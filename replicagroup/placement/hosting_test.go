package placement

import (
	"errors"
	"reflect"
	"slices"
	"testing"

	"latchkey/replicagroup/order"
)

// child returns the directory's child of prefix i with members 0, 1, 2.
func child(t testing.TB, i int) Child {
	t.Helper()
	return apply(t, NewDirectory(genesis(3), order.GroupID{}), Command{Kind: Create, Prefix: prefix(i), Members: hosts(3)}).Child
}

// memberOne returns the hosting side of peer 1, which is replica 2 of every child.
func memberOne(change func(*HostingConfig)) *Hosting {
	cfg := HostingConfig{Genesis: genesis(3), Self: host(1).Node(), Store: host(1).Store}
	if change != nil {
		change(&cfg)
	}
	return NewHosting(cfg)
}

// one returns the only action of a step.
func one[A HostingAction](t *testing.T, h *Hosting, ev HostingEvent) A {
	t.Helper()
	out := h.Step(ev, nil)
	if len(out) != 1 {
		t.Fatalf("%T gave %v, want one action", ev, out)
	}
	a, ok := out[0].(A)
	if !ok {
		t.Fatalf("%T gave %T", ev, out[0])
	}
	return a
}

func TestAMemberStartsOnceAfterTheParentConfirmed(t *testing.T) {
	h, ch := memberOne(nil), child(t, 1)
	if c := one[Confirm](t, h, StartReplica{Ref: 1, Parent: true, Descriptor: ch.Descriptor}); c.Group != ch.Group {
		t.Fatalf("confirms %v", c.Group)
	}
	for ref := range uint64(3) { // repeats wait for the same confirmation
		if out := h.Step(StartReplica{Ref: 2 + ref, Parent: true, Descriptor: ch.Descriptor}, nil); len(out) != 0 {
			t.Fatalf("a repeat gave %v", out)
		}
	}
	if r := one[Run](t, h, Confirmed{Group: ch.Group, Child: ch}); r.Replica != 2 || r.Descriptor.Group != ch.Group {
		t.Fatalf("runs %+v", r)
	}
	if out := h.Step(Confirmed{Group: ch.Group, Child: ch}, nil); len(out) != 0 {
		t.Fatalf("a second confirmation gave %v", out)
	}
	out := h.Step(Running{Group: ch.Group}, nil)
	for i, a := range out {
		if a := a.(AnswerStart); a.Ref != uint64(i+1) || a.Err != nil || a.Replica != 2 || a.Store != host(1).Store {
			t.Errorf("answer %d is %+v", i, a)
		}
	}
	if len(out) != 4 {
		t.Errorf("%d answers", len(out))
	}
	if a := one[AnswerStart](t, h, StartReplica{Ref: 9, Parent: true, Descriptor: ch.Descriptor}); a.Err != nil || a.Replica != 2 {
		t.Errorf("when it runs a Start is answered %+v", a)
	}
	if out := h.Step(Running{Group: ch.Group}, nil); len(out) != 0 {
		t.Errorf("a stray Running gave %v", out)
	}
}

func TestAReplicaInTheStoreIsNotStartedAgain(t *testing.T) {
	ch := child(t, 1)
	h := memberOne(func(c *HostingConfig) { c.Hosted = []Hosted{{Group: ch.Group, Replica: 2}} })
	if a := one[AnswerStart](t, h, StartReplica{Parent: true, Descriptor: ch.Descriptor}); a.Err != nil || a.Replica != 2 {
		t.Errorf("%+v", a)
	}
	h = memberOne(func(c *HostingConfig) { c.Hosted = []Hosted{{Group: ch.Group, Replica: 3}} })
	if a := one[AnswerStart](t, h, StartReplica{Parent: true, Descriptor: ch.Descriptor}); !errors.Is(a.Err, ErrNotMember) {
		t.Errorf("under an earlier replica id: %+v", a)
	}
}

// later returns a child's descriptor after host i has become a learner of its group as replica id, which was the next one.
func later(ch Child, id order.ReplicaID, i int) Descriptor {
	d := ch.Descriptor
	d.View.Num, d.View.Next = d.View.Num+uint64(id), id+1
	d.View.Members = append(slices.Clone(d.View.Members),
		order.Member{ID: id, Peer: host(i).Node(), Store: host(i).Store, Role: order.Learner, PeerID: host(i).ID})
	d.Peers = append(slices.Clone(d.Peers), host(i).Peer)
	return d
}

func newcomer() *Hosting {
	return memberOne(func(c *HostingConfig) { c.Self, c.Store = host(5).Node(), host(5).Store })
}

func TestANewcomerJoinsOnAMembersWordOnceTheParentKnowsTheGroup(t *testing.T) {
	h, ch := newcomer(), child(t, 1)
	d := later(ch, 4, 5)
	if a := one[AnswerStart](t, h, StartReplica{Ref: 1, From: host(6).Node(), Descriptor: d}); !errors.Is(a.Err, ErrSender) {
		t.Errorf("told by a stranger: %+v", a)
	}
	if a := one[AnswerStart](t, h, StartReplica{Ref: 1, From: host(0).Node(), Descriptor: ch.Descriptor}); !errors.Is(a.Err, ErrNotMember) {
		t.Errorf("told of a view without it: %+v", a)
	}
	if c := one[Confirm](t, h, StartReplica{Ref: 2, From: host(0).Node(), Descriptor: d}); c.Group != ch.Group {
		t.Fatalf("confirms %v", c.Group)
	}
	if r := one[Run](t, h, Confirmed{Group: ch.Group, Child: ch}); r.Replica != 4 || !r.Join || r.Former != 0 || !reflect.DeepEqual(r.Descriptor, d) {
		t.Fatalf("runs %+v", r)
	}
	if a := one[AnswerStart](t, h, Running{Group: ch.Group}); a.Ref != 2 || a.Err != nil || a.Replica != 4 {
		t.Errorf("%+v", a)
	}
	if a := one[AnswerStart](t, h, StartReplica{Ref: 3, From: host(1).Node(), Descriptor: d}); a.Err != nil || a.Replica != 4 {
		t.Errorf("told again: %+v", a)
	}
}

func TestAJoinThatTheParentDoesNotConfirmDoesNotRun(t *testing.T) {
	ch := child(t, 1)
	gone := ch
	gone.Group.Gen = 1
	without := later(ch, 5, 6) // a later view than the message's, in which the newcomer is no more
	for name, ev := range map[string]Confirmed{
		"no such group":        {Group: ch.Group},
		"the parent is away":   {Group: ch.Group, Child: ch, Err: errors.New("no quorum")},
		"a later generation":   {Group: ch.Group, Child: gone},
		"it was removed since": {Group: ch.Group, Child: Child{Descriptor: without}},
	} {
		h := newcomer()
		h.Step(StartReplica{Ref: 4, From: host(0).Node(), Descriptor: later(ch, 4, 5)}, nil)
		if a := one[AnswerStart](t, h, ev); a.Ref != 4 || !errors.Is(a.Err, ErrUnconfirmed) {
			t.Errorf("%s: %+v", name, a)
		}
	}
}

func TestAMemberThatNeverStartedJoinsALaterView(t *testing.T) {
	h, ch := memberOne(nil), child(t, 1)
	ch.Descriptor = later(ch, 4, 5) // what the parent has heard since
	one[Confirm](t, h, StartReplica{Parent: true, Descriptor: ch.Descriptor})
	if r := one[Run](t, h, Confirmed{Group: ch.Group, Child: ch}); r.Replica != 2 || !r.Join {
		t.Errorf("runs %+v: it cannot found what has moved on", r)
	}
}

func TestTheRootIsJoinedOnTheWordOfAMemberThatThisPeerKnows(t *testing.T) {
	g := genesis(3)
	root := Child{Descriptor: g.RootDescriptor()}
	d := later(root, 4, 5)
	h := newcomer()
	if a := one[AnswerStart](t, h, StartReplica{From: host(6).Node(), Parent: true, Descriptor: d}); !errors.Is(a.Err, ErrSender) {
		t.Errorf("the root has no parent: %+v", a)
	}
	one[Confirm](t, h, StartReplica{From: host(1).Node(), Descriptor: d})
	if r := one[Run](t, h, Confirmed{Group: root.Group, Child: root}); r.Replica != 4 || !r.Join {
		t.Errorf("runs %+v", r)
	}
	// One that calls itself a member, and is none of the view this peer knows.
	h, d = newcomer(), later(root, 4, 6)
	d.View.Members = append(d.View.Members, later(root, 5, 5).View.Members[3])
	d.Peers, d.View.Next = append(d.Peers, host(5).Peer), 6
	one[Confirm](t, h, StartReplica{From: host(6).Node(), Descriptor: d})
	if a := one[AnswerStart](t, h, Confirmed{Group: root.Group, Child: root}); !errors.Is(a.Err, ErrSender) {
		t.Errorf("told by a stranger: %+v", a)
	}
}

func TestAPeerJoinsBesideItsRemovedSelf(t *testing.T) {
	ch := child(t, 1)
	d := later(ch, 4, 1)
	d.View.Members, d.Peers = slices.Delete(d.View.Members, 1, 2), slices.Delete(d.Peers, 1, 2)
	h := memberOne(func(c *HostingConfig) { c.Hosted = []Hosted{{Group: ch.Group, Replica: 2}} })
	one[Confirm](t, h, StartReplica{From: host(0).Node(), Descriptor: d})
	if r := one[Run](t, h, Confirmed{Group: ch.Group, Child: ch}); r.Replica != 4 || r.Former != 2 || !r.Join {
		t.Errorf("runs %+v", r)
	}
	if out := h.Step(Retired{Tombstone{Group: ch.Group, Replica: 2}}, nil); len(out) != 0 {
		t.Errorf("the end of the former replica gave %v", out)
	}
	if a := one[AnswerStart](t, h, Running{Group: ch.Group}); a.Err != nil || a.Replica != 4 {
		t.Errorf("%+v", a)
	}
	if a := one[AnswerStart](t, h, StartReplica{Parent: true, Descriptor: ch.Descriptor}); !errors.Is(a.Err, ErrRetired) {
		t.Errorf("told to start its former self: %+v", a)
	}
	// It lost its store: the view names both the lost replica and the new one.
	d = later(ch, 4, 1)
	d.View.Members[3].Store = storeID(77)
	h = memberOne(func(c *HostingConfig) { c.Store = storeID(77) })
	one[Confirm](t, h, StartReplica{From: host(0).Node(), Descriptor: d})
	if r := one[Run](t, h, Confirmed{Group: ch.Group, Child: ch}); r.Replica != 4 || r.Former != 0 {
		t.Errorf("with a new store it runs %+v", r)
	}
}

func TestAProbeTellsWhetherAPeerHostsAndHasRoom(t *testing.T) {
	if a := one[AnswerProbe](t, memberOne(nil), Probe{Ref: 3}); a != (AnswerProbe{Ref: 3, Store: host(1).Store, Hosts: true, Room: true}) {
		t.Errorf("%+v", a)
	}
	full := memberOne(func(c *HostingConfig) {
		for i := range HostedMax {
			c.Hosted = append(c.Hosted, Hosted{Group: order.GroupID{Prefix: prefix(i), Gen: uint64(i)}, Replica: 1})
		}
	})
	if a := one[AnswerProbe](t, full, Probe{}); !a.Hosts || a.Room {
		t.Errorf("a full peer: %+v", a)
	}
	if a := one[AnswerProbe](t, memberOne(func(c *HostingConfig) { c.Declines = true }), Probe{}); a.Hosts || a.Room {
		t.Errorf("a client: %+v", a)
	}
}

func TestAMemberRefusesWhatIsNotItsToStart(t *testing.T) {
	tomb := func(gen uint64, id order.ReplicaID) func(*HostingConfig) {
		return func(c *HostingConfig) {
			g := child(t, 1).Group
			g.Gen = gen
			c.Tombstones = []Tombstone{{Group: g, Replica: id}, {Group: g, Replica: id - 1}}
		}
	}
	for name, c := range map[string]struct {
		cfg    func(*HostingConfig)
		change func(*Descriptor)
		want   error
	}{
		"another overlay":          {nil, func(d *Descriptor) { d.Group.Overlay[0]++ }, ErrOverlay},
		"another depth":            {nil, func(d *Descriptor) { d.Group.Prefix.Len-- }, ErrOverlay},
		"not a member":             {func(c *HostingConfig) { c.Self = host(8).Node() }, nil, ErrNotMember},
		"its store was lost":       {func(c *HostingConfig) { c.Store = storeID(200) }, nil, ErrStore},
		"a peer that hosts none":   {func(c *HostingConfig) { c.Declines = true }, nil, ErrNotHosting},
		"removed before":           {tomb(0, 2), nil, ErrRetired},
		"a later replica removed":  {tomb(0, 5), nil, ErrRetired},
		"an older life":            {tomb(1, 1), nil, ErrRetired},
		"a removed predecessor":    {tomb(0, 1), nil, nil},
		"a new life of the prefix": {tomb(0, 2), func(d *Descriptor) { d.Group.Gen = 1 }, nil},
	} {
		h, d := memberOne(c.cfg), child(t, 1).Descriptor
		if c.change != nil {
			c.change(&d)
		}
		out := h.Step(StartReplica{Parent: true, Descriptor: d}, nil)
		if c.want == nil {
			if _, ok := out[0].(Confirm); !ok {
				t.Errorf("%s: %v, want a Confirm", name, out)
			}
			continue
		}
		if a, ok := out[0].(AnswerStart); !ok || !errors.Is(a.Err, c.want) {
			t.Errorf("%s: %v, want %v", name, out, c.want)
		}
	}
}

func TestWhatTheParentDoesNotConfirmDoesNotRun(t *testing.T) {
	ch := child(t, 1)
	elsewhere := apply(t, NewDirectory(genesis(3), order.GroupID{}), Command{Kind: Create, Prefix: prefix(1), Members: []Host{host(5)}}).Child
	later := child(t, 1)
	later.Group.Gen = 1
	moved := child(t, 1)
	moved.View.Members[1].ID, moved.View.Members[2].ID, moved.View.Next = 3, 4, 5
	for name, ev := range map[string]Confirmed{
		"no such child":           {Group: ch.Group},
		"the parent is away":      {Group: ch.Group, Child: ch, Err: errors.New("no quorum")},
		"other members":           {Group: ch.Group, Child: elsewhere},
		"another life":            {Group: ch.Group, Child: later},
		"another replica id here": {Group: ch.Group, Child: moved},
		"another prefix":          {Group: ch.Group, Child: child(t, 2)},
	} {
		h := memberOne(nil)
		h.Step(StartReplica{Ref: 4, Parent: true, Descriptor: ch.Descriptor}, nil)
		if a := one[AnswerStart](t, h, ev); a.Ref != 4 || !errors.Is(a.Err, ErrUnconfirmed) {
			t.Errorf("%s: %+v", name, a)
		}
		if out := h.Step(Confirmed{Group: ch.Group, Child: ch}, nil); len(out) != 0 {
			t.Errorf("%s: a confirmation nobody waits for gave %v", name, out)
		}
		if name == "another life" { // which the parent has told: there is nothing to ask any more
			if a := one[AnswerStart](t, h, StartReplica{Parent: true, Descriptor: ch.Descriptor}); !errors.Is(a.Err, ErrRetired) {
				t.Errorf("%s: the repeat is answered %+v", name, a)
			}
			continue
		}
		one[Confirm](t, h, StartReplica{Parent: true, Descriptor: ch.Descriptor}) // the repeat asks anew
	}
}

func TestAReplicaThatCannotRunIsReportedSo(t *testing.T) {
	h, ch, broken := memberOne(nil), child(t, 1), errors.New("disk full")
	h.Step(StartReplica{Parent: true, Descriptor: ch.Descriptor}, nil)
	h.Step(Confirmed{Group: ch.Group, Child: ch}, nil)
	if a := one[AnswerStart](t, h, Running{Group: ch.Group, Err: broken}); !errors.Is(a.Err, broken) || a.Replica != 0 {
		t.Errorf("%+v", a)
	}
	one[Confirm](t, h, StartReplica{Parent: true, Descriptor: ch.Descriptor})
}

func TestARemovedReplicaStaysRemoved(t *testing.T) {
	h, ch := memberOne(nil), child(t, 1)
	gone := Retired{Tombstone{Group: ch.Group, Replica: 2}}
	h.Step(StartReplica{Parent: true, Descriptor: ch.Descriptor}, nil)
	h.Step(Confirmed{Group: ch.Group, Child: ch}, nil)
	h.Step(gone, nil) // while it starts
	if a := one[AnswerStart](t, h, Running{Group: ch.Group}); !errors.Is(a.Err, ErrRetired) {
		t.Errorf("removed while starting: %+v", a)
	}
	h = memberOne(func(c *HostingConfig) { c.Hosted = []Hosted{{Group: ch.Group, Replica: 2}} })
	h.Step(gone, nil)
	if a := one[AnswerStart](t, h, StartReplica{Parent: true, Descriptor: ch.Descriptor}); !errors.Is(a.Err, ErrRetired) {
		t.Errorf("removed while running: %+v", a)
	}
}

func TestStartsAreBounded(t *testing.T) {
	h := memberOne(nil)
	for i := range ConfirmingMax {
		one[Confirm](t, h, StartReplica{Parent: true, Descriptor: child(t, i).Descriptor})
	}
	if a := one[AnswerStart](t, h, StartReplica{Parent: true, Descriptor: child(t, ConfirmingMax).Descriptor}); !errors.Is(a.Err, ErrHostBusy) {
		t.Errorf("group %d: %+v", ConfirmingMax, a)
	}
	for range StartsWaitingMax - 1 {
		if out := h.Step(StartReplica{Parent: true, Descriptor: child(t, 0).Descriptor}, nil); len(out) != 0 {
			t.Fatalf("a repeat gave %v", out)
		}
	}
	if a := one[AnswerStart](t, h, StartReplica{Parent: true, Descriptor: child(t, 0).Descriptor}); !errors.Is(a.Err, ErrHostBusy) {
		t.Errorf("repeat %d: %+v", StartsWaitingMax, a)
	}
}

func TestWhoHostsSaysWhere(t *testing.T) {
	if a := one[AnswerHost](t, memberOne(nil), WillYouHost{Ref: 3, Prefix: prefix(1)}); a != (AnswerHost{Ref: 3, OK: true, Store: host(1).Store}) {
		t.Errorf("%+v", a)
	}
	if a := one[AnswerHost](t, memberOne(func(c *HostingConfig) { c.Declines = true }), WillYouHost{Prefix: prefix(1)}); a.OK {
		t.Error("a client-only peer accepts")
	}
	whole := prefix(1)
	whole.Len = 0
	if a := one[AnswerHost](t, memberOne(nil), WillYouHost{Prefix: whole}); a.OK {
		t.Error("accepts a prefix that is not of the overlay's depth")
	}
	full := memberOne(func(c *HostingConfig) {
		for i := range HostedMax {
			g := order.GroupID{Overlay: c.Genesis.ID(), Prefix: prefix(i), Gen: uint64(i)}
			c.Hosted = append(c.Hosted, Hosted{Group: g, Replica: 1})
		}
	})
	if a := one[AnswerHost](t, full, WillYouHost{Prefix: prefix(1)}); a.OK {
		t.Error("a full peer accepts")
	}
}

func TestAPeerThatDeclinesKeepsWhatItRunsAndTakesNothingMore(t *testing.T) {
	running, starting, later := child(t, 1), child(t, 2), child(t, 3)
	h := memberOne(func(c *HostingConfig) { c.Hosted = []Hosted{{Group: running.Group, Replica: 2}} })
	one[Confirm](t, h, StartReplica{Ref: 1, Parent: true, Descriptor: starting.Descriptor})
	h.Step(Declining{On: true}, nil)

	if a := one[AnswerStart](t, h, StartReplica{Parent: true, Descriptor: running.Descriptor}); a.Err != nil || a.Replica != 2 {
		t.Errorf("a replica that runs: %+v", a)
	}
	if r := one[Run](t, h, Confirmed{Group: starting.Group, Child: starting}); r.Replica != 2 {
		t.Errorf("a replica that is being started: %+v", r)
	}
	if a := one[AnswerStart](t, h, StartReplica{Parent: true, Descriptor: later.Descriptor}); !errors.Is(a.Err, ErrNotHosting) {
		t.Errorf("another Start: %+v", a)
	}
	if a := one[AnswerHost](t, h, WillYouHost{Prefix: prefix(3)}); a.OK {
		t.Errorf("asked to host: %+v", a)
	}

	h.Step(Declining{On: false}, nil)
	if a := one[AnswerHost](t, h, WillYouHost{Prefix: prefix(3)}); !a.OK {
		t.Errorf("asked to host when it takes replicas again: %+v", a)
	}
	if c := one[Confirm](t, h, StartReplica{Parent: true, Descriptor: later.Descriptor}); c.Group != later.Group {
		t.Errorf("and started: %+v", c)
	}
}
