package placement

import (
	"flag"
	"testing"
	"time"

	"latchkey/internal/automaton"
	"latchkey/replicagroup/order"
)

var leaseFull = flag.Bool("lease.full", false, "search the lease rule unit by unit of time (test 47), not in coarser steps")

// Conformance test 47: an exhaustive search of the lease rule, with the automata that run, at the parameters of section 6.5: 10 %
// drift, a lease of 30 units, a margin of 7. A unit has ten parts here, so that a clock at either bound gains whole ones.
//
// The world is one child that answers as long as its lease lasts, one renewal under way at most, two leaders of the parent of
// which the second may be elected at any time, and clocks that each run at a bound. Whatever can take time may take any: messages,
// rounds, the time until somebody is woken, and whether a proposed command is committed, or inherited or lost with its leader.
// The next generation counts as answering from the moment its command is committed.
const (
	searchDrift automaton.Drift = 100_000
	searchUnit                  = 10 // parts
	searchLease                 = 30 * searchUnit
	searchBase                  = automaton.Instant(1 << 30) // any time that is late enough
)

type stage uint8

const (
	stageIdle stage = iota
	stageSent
	stageWaiting1 // the first leader of the parent waits for its round
	stageReady1   // and has its majority
	stageWaiting2
	stageReady2
	stageGranted // the answer travels
)

// situation is a state of the world, with everything relative to now and cut off where more makes no difference.
type situation struct {
	left      int16 // of the child's lease
	sent      int16 // how long ago the renewal was
	granted   int16 // how long ago the leader of the parent did grant, by its clock
	stage     stage
	second    bool // the second leader is elected
	proposed1 bool // by the first
	proposed2 bool
	committed bool
	stale     bool // the first leader does not know of the commit
}

type leaseSearch struct {
	step          int16 // of time, in units
	child         int16 // parts per unit of each clock
	parents       [2]int16
	wait          time.Duration
	mutant        mutant
	group         order.GroupID
	before, after *Directory
	seen          map[situation]struct{}
	todo          []situation
	broken        int
}

func newLeaseSearch(step int16, child, parent1, parent2 int16, margin time.Duration, m mutant) *leaseSearch {
	g := genesis(1)
	s := &leaseSearch{step: step, child: child, parents: [2]int16{parent1, parent2}, mutant: m,
		wait:  (30 + margin) * searchUnit,
		group: order.GroupID{Overlay: g.ID(), Prefix: prefix(1)}, seen: make(map[situation]struct{})}
	directory := func() *Directory {
		d := NewDirectory(g, g.RootGroup())
		d.children[s.group.Prefix] = Child{Descriptor: describe(s.group, hosts(1)), Started: 1}
		return d
	}
	s.before, s.after = directory(), directory()
	next := s.group
	next.Gen++
	s.after.children[s.group.Prefix] = Child{Descriptor: describe(next, hosts(1)), Started: 1}
	return s
}

// grantor makes the automaton of one leader in a situation.
func (s *leaseSearch) grantor(w situation, second bool) *LeaseGrantor {
	t := &LeaseGrantor{directory: s.before, wait: s.wait, pause: 1, leading: true, watches: make(map[order.GroupID]*watch), armed: automaton.Never, mutant: s.mutant}
	if w.committed && (second || !w.stale) {
		t.directory = s.after
	}
	if proposed := w.proposed1 && !second || w.proposed2 && second; t.directory == s.before {
		t.watches[s.group] = &watch{granted: searchBase - automaton.Instant(w.granted), silent: automaton.Never, proposed: proposed}
	}
	return t
}

func (s *leaseSearch) grantedAgo(t *LeaseGrantor, before int16) int16 {
	if w := t.watches[s.group]; w != nil {
		return int16(min(searchBase.Sub(w.granted), s.wait))
	}
	return before
}

// answered puts the answer to a renewal on its way, if there was one.
func (s *leaseSearch) answered(w situation, second bool, t *LeaseGrantor, out []GrantorAction) (situation, bool) {
	for _, a := range out {
		a, ok := a.(AnswerRenew)
		if !ok {
			continue
		}
		if w.stage = stageIdle; a.OK && len(a.Refused) == 0 {
			w.stage = stageGranted
		}
		if second == w.second { // what a deposed leader remembers ends nothing
			w.granted = s.grantedAgo(t, w.granted)
		}
		return w, true
	}
	return w, false
}

func (s *leaseSearch) add(w situation) {
	if w.stage == stageIdle {
		w.sent = 0
	}
	if w.committed {
		w.granted = 0 // nobody waits for anything any more
	}
	if _, ok := s.seen[w]; ok {
		return
	}
	s.seen[w] = struct{}{}
	if w.committed && w.left > 0 {
		s.broken++
		return
	}
	s.todo = append(s.todo, w)
}

func (s *leaseSearch) run() {
	s.add(situation{left: 0, granted: 0})
	for len(s.todo) > 0 && s.broken == 0 {
		w := s.todo[len(s.todo)-1]
		s.todo = s.todo[:len(s.todo)-1]
		s.tick(w)
		s.renewal(w)
		s.parent(w)
	}
}

func (s *leaseSearch) tick(w situation) {
	rate := s.parents[0]
	if w.second {
		rate = s.parents[1]
	}
	w.left = max(0, w.left-s.child*s.step)
	w.sent = min(searchLease, w.sent+s.child*s.step)
	w.granted = min(int16(s.wait), w.granted+rate*s.step)
	s.add(w)
}

// renewal moves the one renewal on.
func (s *leaseSearch) renewal(w situation) {
	if w.stage != stageIdle { // it may be lost at any place
		lost := w
		lost.stage = stageIdle
		s.add(lost)
	}
	switch w.stage {
	case stageIdle:
		w.stage, w.sent = stageSent, 0
		s.add(w)
	case stageSent:
		s.arrive(w, false)
		if w.second {
			s.arrive(w, true)
		}
	case stageWaiting1: // a majority answers a round of the first leader only while it has elected nobody else
		if !w.second {
			w.stage = stageReady1
			s.add(w)
		}
	case stageWaiting2:
		w.stage = stageReady2
		s.add(w)
	case stageReady1, stageReady2:
		second := w.stage == stageReady2
		t := s.grantor(w, second)
		t.running, t.round, t.current = true, 1, []Renew{{Ref: 1, Groups: []order.GroupID{s.group}}}
		next, ok := s.answered(w, second, t, t.Step(RoundEnded{Round: 1, OK: true, Own: automaton.Never}, searchBase, nil))
		if !ok {
			panic("a round ended and nobody was answered")
		}
		s.add(next)
	case stageGranted:
		l := &lease{until: searchBase.Add(time.Duration(w.left)), asked: true}
		h := &LeaseHolder{length: searchLease, leases: map[order.GroupID]*lease{s.group: l}, waiting: map[order.GroupID]*lease{s.group: l},
			round: 1, sent: searchBase - automaton.Instant(w.sent), next: automaton.Never, armed: automaton.Never, mutant: s.mutant}
		h.Step(Renewed{Round: 1}, searchBase, nil)
		w.left, w.stage = int16(max(0, l.until.Sub(searchBase))), stageIdle
		s.add(w)
	}
}

func (s *leaseSearch) arrive(w situation, second bool) {
	t := s.grantor(w, second)
	out := t.Step(Renew{Ref: 1, Groups: []order.GroupID{s.group}}, searchBase, nil)
	if next, ok := s.answered(w, second, t, out); ok {
		s.add(next)
		return
	}
	if w.stage = stageWaiting1; second {
		w.stage = stageWaiting2
	}
	s.add(w)
}

// parent lets the leader of the parent look for dead groups, lets its command be committed, and elects the second one.
func (s *leaseSearch) parent(w situation) {
	if w.committed {
		return
	}
	t := s.grantor(w, w.second)
	if out := t.Step(Wake{}, searchBase, nil); len(out) > 0 {
		if _, ok := out[0].(CallRoll); ok { // nobody answers, since nobody has to
			out = t.Step(RollCalled{Group: s.group}, searchBase, nil)
		}
		if _, ok := out[0].(Regenerate); ok && t.MayRevive(s.group, searchBase) {
			proposed := w
			proposed.proposed1, proposed.proposed2 = w.proposed1 || !w.second, w.proposed2 || w.second
			s.add(proposed)
		}
	}
	if w.proposed1 && !w.second || w.proposed2 {
		done := w
		done.committed, done.stale = true, w.second
		s.add(done)
	}
	if w.second {
		return
	}
	elected := w
	elected.second = true
	n := s.grantor(elected, true)
	n.leading = false
	n.Step(Leads{On: true}, searchBase, nil)
	elected.granted = s.grantedAgo(n, 0)
	s.add(elected)
	if w.proposed1 { // what the first has proposed may be in the log of the second
		elected.committed, elected.stale = true, true
		s.add(elected)
	}
}

func TestTheLeaseRuleSearchedToTheEnd(t *testing.T) {
	margin := searchDrift.Stretch(30) - 30
	if margin != 7 {
		t.Fatalf("margin %d", margin)
	}
	step := int16(3)
	if *leaseFull {
		step = 1
	}
	search := func(margin time.Duration, m mutant) (states, broken int) {
		for rates := range 8 {
			rate := func(bit int) int16 { return int16(9 + 2*(rates>>bit&1)) }
			s := newLeaseSearch(step, rate(0), rate(1), rate(2), margin, m)
			s.run()
			states += len(s.seen)
			broken += s.broken
		}
		return states, broken
	}
	states, broken := search(margin, 0)
	t.Logf("%d states", states)
	if broken > 0 {
		t.Error("two generations answer at one time")
	}
	if states < 10_000 {
		t.Errorf("only %d states: the search goes nowhere", states)
	}
	for name, c := range map[string]struct {
		margin time.Duration
		mutant mutant
	}{
		"no margin":                              {0, 0},
		"a margin of 1":                          {1, 0},
		"the lease counts from the answer":       {margin, mutantCountFromReply},
		"a dead generation is renewed":           {margin, mutantRenewDead},
		"a new leader does not wait":             {margin, mutantNewLeaderNoWait},
		"a deposed leader grants without asking": {margin, mutantUnconfirmed},
	} {
		states, broken := search(c.margin, c.mutant)
		t.Logf("%s: found after %d states", name, states)
		if broken == 0 {
			t.Errorf("%s: not noticed", name)
		}
	}
}
