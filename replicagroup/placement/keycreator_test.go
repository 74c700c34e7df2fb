package placement

import (
	"errors"
	"testing"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/replicagroup/order"
)

// keyWorld is a leader of a prefix's group: its creator beside its keys. Every peer hosts, and starts what it is told to.
type keyWorld struct {
	creator *Creator
	keys    *Keys
	now     automaton.Instant
	looked  []keyspace.Preimage
	starts  []Descriptor
	answers map[uint64]AnswerEnsure
	parts   toyParts
	silent  bool // members do not say that they have started
}

func newKeyWorld(t *testing.T) (*keyWorld, []string) {
	k, names := newTestKeys(0)
	w := &keyWorld{creator: NewKeyCreator(genesis(3), k.parent.Prefix), keys: k, answers: make(map[uint64]AnswerEnsure)}
	w.step(t, LeaderChange{Leading: true})
	return w, names
}

// step feeds an event, and what comes of what the creator then asks for.
func (w *keyWorld) step(t *testing.T, ev CreatorEvent) {
	t.Helper()
	for events := []CreatorEvent{ev}; len(events) > 0; events = events[1:] {
		for _, a := range w.creator.Step(events[0], w.now, nil) {
			switch a := a.(type) {
			case LookUp:
				w.looked = append(w.looked, a.Anchor)
				closest := Closest{Prefix: a.Prefix}
				for _, h := range hosts(5) {
					closest.Peers = append(closest.Peers, h.Peer)
				}
				events = append(events, closest)
			case AskHost:
				for _, h := range hosts(5) {
					if h.Node() == a.Peer.Node() {
						events = append(events, HostAnswer{Prefix: a.Prefix, Peer: h.Node(), Store: h.Store, OK: true})
					}
				}
			case Propose:
				t.Errorf("a command of a directory: %+v", a.Command)
			case ProposeKey:
				res := keyApply(t, w.keys, 0, &w.parts, a.Command)
				if res.Status == NotReady {
					events = append(events, NotCommitted{Prefix: a.Prefix, Ref: a.Ref, Err: ErrNotReady})
				}
				if a.Command.Kind == Out && (res.Status == OK || res.Status == Exists) || a.Command.Kind == Change && res.Child.State == Reviving && res.Child.Started == 0 {
					events = append(events, Committed{Child: res.Child})
				}
			case SendStart:
				w.starts = append(w.starts, a.Descriptor)
				if m, ok := a.Descriptor.View.MemberAt(a.Peer.Node()); ok && !w.silent {
					events = append(events, Started{Group: a.Descriptor.Group, Peer: m.Peer, Replica: m.ID, Store: m.Store})
				}
			case AnswerEnsure:
				w.answers[a.Ref] = a
			}
		}
	}
}

func TestKeyCreatorMakesOwnGroupsAtTheirKeys(t *testing.T) {
	w, names := newKeyWorld(t)
	p := KeyPrefix(keyspace.Preimage(names[0]).Key())
	w.step(t, Ensure{Prefix: p, Ref: 1, Name: keyspace.Preimage(names[0])})
	ch, ok := w.keys.Lookup(p)
	if !ok || !ch.AllStarted() || w.creator.Open() != 0 || w.answers[1].Err != nil || w.answers[1].Descriptor.Group != ch.Group {
		t.Fatalf("made: %+v, answer %+v", ch, w.answers[1])
	}
	if len(w.looked) != 1 || w.looked[0] != keyspace.Preimage(names[0]) {
		t.Errorf("looked up %q", w.looked)
	}
	for i, peer := range ch.Peers { // the 2f+1 closest of those there are
		closer := 0
		for _, h := range hosts(5) {
			if keyspace.CompareDistance(keyspace.Preimage(names[0]).Key(), h.Node(), peer.Node()) < 0 {
				closer++
			}
		}
		if closer > 2 {
			t.Errorf("member %d has %d peers closer to the key", i, closer)
		}
	}
	w.step(t, ReviveLost{Ref: 2, Known: ch, Name: keyspace.Preimage(names[0])})
	again, _ := w.keys.Lookup(p)
	if KeyGen(again.Group.Gen) != 1 || again.State != Live || w.answers[2].Descriptor.Group != again.Group {
		t.Errorf("revived: %+v, answer %+v", again, w.answers[2])
	}
	w.step(t, Ensure{Prefix: p, Ref: 3, Known: again, Name: keyspace.Preimage(names[0])})
	if w.answers[3].Descriptor.Group != again.Group {
		t.Errorf("asked again: %+v", w.answers[3])
	}
}

// Whoever wants an own group of a key that cannot be given away yet is told at once to ask again, and then gets it.
func TestKeyCreatorTellsThatAKeyIsNotReady(t *testing.T) {
	w, names := newKeyWorld(t)
	name := keyspace.Preimage(names[0])
	p := KeyPrefix(name.Key())
	w.parts.unknown = true
	w.step(t, Ensure{Prefix: p, Ref: 1, Name: name})
	if err := w.answers[1].Err; !errors.Is(err, ErrNotReady) || errors.Is(err, ErrRefused) || w.creator.Open() != 0 {
		t.Fatalf("answer %v, %d open", err, w.creator.Open())
	}
	w.parts.unknown = false
	w.step(t, Ensure{Prefix: p, Ref: 2, Name: name})
	if ch, ok := w.keys.Lookup(p); !ok || w.answers[2].Err != nil || w.answers[2].Descriptor.Group != ch.Group {
		t.Errorf("own group %+v, answer %+v", ch, w.answers[2])
	}
}

// A key that was taken back while a member had not started yet is given away anew: what its last own group was is no answer.
func TestKeyCreatorForgetsAnOwnGroupThatWasTakenBack(t *testing.T) {
	w, names := newKeyWorld(t)
	name := keyspace.Preimage(names[0])
	p := KeyPrefix(name.Key())
	w.silent = true
	w.step(t, Ensure{Prefix: p, Ref: 1, Name: name})
	ch, ok := w.keys.Lookup(p)
	if !ok || w.creator.Open() != 1 {
		t.Fatalf("own group %+v, %d open", ch, w.creator.Open())
	}
	if res := keyApply(t, w.keys, 0, new(toyParts), KeyCommand{Kind: Adopt, Name: string(name), Gen: ch.Group.Gen}); res.Status != OK {
		t.Fatalf("adopt: %+v", res)
	}
	w.silent = false
	w.step(t, Ensure{Prefix: p, Ref: 2, Name: name})
	if again, ok := w.keys.Lookup(p); !ok || again.Group.Gen <= ch.Group.Gen || w.answers[2].Descriptor.Group != again.Group {
		t.Errorf("given again: %+v, answer %+v, after %v", again, w.answers[2], ch.Group)
	}
}

func TestKeyCreatorRefusesOtherKeys(t *testing.T) {
	w, names := newKeyWorld(t)
	first := KeyPrefix(keyspace.Preimage(names[0]).Key())
	far := "elsewhere"
	for i := 0; w.keys.parent.Prefix.Contains(keyspace.Preimage(far).Key()); i++ {
		far += "."
	}
	for ref, e := range map[uint64]Ensure{
		1: {Prefix: first, Name: keyspace.Preimage(names[1])},
		2: {Prefix: first},
		3: {Prefix: KeyPrefix(keyspace.Preimage(far).Key()), Name: keyspace.Preimage(far)},
		4: {Prefix: prefix(1), Name: keyspace.Preimage(names[0])},
	} {
		e.Ref = ref
		if w.step(t, e); !errors.Is(w.answers[ref].Err, ErrPrefix) {
			t.Errorf("%+v: %v", e, w.answers[ref].Err)
		}
	}
	if !w.keys.Open() {
		t.Error("a key went out")
	}
}

// A leader that dies between an Out and the start of the own group is followed by one that finds it in its keys.
func TestNextLeaderStartsTheOwnGroup(t *testing.T) {
	w, names := newKeyWorld(t)
	w.silent = true
	p := KeyPrefix(keyspace.Preimage(names[0]).Key())
	w.step(t, Ensure{Prefix: p, Ref: 1, Name: keyspace.Preimage(names[0])})
	starting, handing := w.keys.Unfinished()
	if len(starting) != 1 || len(handing) != 1 {
		t.Fatalf("%d start, %d are handed over", len(starting), len(handing))
	}
	next := &keyWorld{creator: NewKeyCreator(genesis(3), w.keys.parent.Prefix), keys: w.keys, answers: make(map[uint64]AnswerEnsure)}
	next.step(t, LeaderChange{Leading: true, Unstarted: starting})
	if ch, _ := w.keys.Lookup(p); !ch.AllStarted() || next.creator.Open() != 0 {
		t.Errorf("after the next leader: %+v", ch)
	}
}

func TestPeersHostOwnGroupsOnlyWhereTheOverlayHasThem(t *testing.T) {
	for _, own := range []bool{false, true} {
		g := genesis(3)
		g.OwnGroups = own
		h := NewHosting(HostingConfig{Genesis: g, Self: host(0).Node(), Store: host(0).Store})
		p := KeyPrefix(keyspace.Preimage("a key").Key())
		out := h.Step(WillYouHost{Ref: 1, Prefix: p}, nil)
		if a := out[0].(AnswerHost); a.OK != own {
			t.Errorf("own groups %v: will host %v", own, a.OK)
		}
		d := describe(order.GroupID{Overlay: g.ID(), Prefix: p, Gen: OwnGen(0, 0, 1)}, hosts(3))
		out = h.Step(StartReplica{Ref: 2, From: host(1).Node(), Parent: true, Descriptor: d}, nil)
		if _, asks := out[0].(Confirm); asks != own {
			t.Fatalf("own groups %v: told to start: %+v", own, out)
		}
		if !own {
			continue
		}
		out = h.Step(Confirmed{Group: d.Group, Child: Child{Descriptor: d}}, nil)
		if run, ok := out[0].(Run); !ok || run.Descriptor.Group != d.Group {
			t.Errorf("confirmed: %+v", out)
		}
		h.Step(Running{Group: d.Group}, nil)
		live := d.Group
		live.Gen = OwnGen(0, 0, 2)
		if out = h.Step(Superseded{Live: live}, nil); len(out) != 1 || out[0].(Bury).Group != d.Group {
			t.Errorf("its next life: %+v", out)
		}
	}
}
