package placement

import (
	"slices"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/quorum"
)

type stepKind uint8

const (
	stepNone   stepKind = iota
	stepLearn           // peer becomes a learner, with the aim of add and remove
	stepVoters          // promote and remove, in one joint change
	stepDrop            // member ceases to be a learner
	stepHand            // leadership goes to member
)

// step is one step of the plan.
type step struct {
	kind    stepKind
	peer    keyspace.NodeID // of learn and drop
	store   order.StoreID   // of learn
	member  order.ReplicaID // of drop and hand
	list    bool            // drop: for its own fault
	promote []order.ReplicaID
	add     []keyspace.NodeID // whom learn or promote brings
	remove  []Removal
}

// same reports whether s and t are the same step; what a drop is for does not matter.
func (s step) same(t step) bool {
	return s.kind == t.kind && s.peer == t.peer && s.store == t.store && s.member == t.member &&
		slices.Equal(s.promote, t.promote) && slices.Equal(s.add, t.add) && slices.Equal(s.remove, t.remove)
}

// urgent reports whether somebody waits for s in order to leave.
func (s step) urgent() bool {
	return slices.ContainsFunc(s.remove, func(r Removal) bool { return r.Why == Leaving })
}

// choice is what the plan wants now.
type choice struct {
	step    step
	busy    bool              // there is work, now or soon: keep looking up
	stuck   bool              // voters have failed, nobody is known that could take their place, and nothing will come of waiting
	until   automaton.Instant // there is nothing to do but to wait whether suspicions pass, and before this nobody is needed; else 0
	release []keyspace.NodeID // peers that want to leave and for which nothing will be done
}

// standing is a member as the plan sees it.
type standing struct {
	order.Member
	why  Reason // it has to go; 0 if not
	live bool   // not under suspicion
}

// site is a place where a voter could be: a member that stays, or a candidate.
type site struct {
	peer     keyspace.NodeID
	store    order.StoreID
	stranger bool // not a member yet
	green    bool // a stranger that has not been up for as long as the root wants
}

// choose computes the next step from the view and from what is known of the peers.
func (p *Planner) choose(now automaton.Instant) choice {
	members := p.standings(now)
	pool, ripe, promising := p.pool(members, now)
	c := choice{busy: promising || len(p.down) > 0 || len(p.wishes) > 0}
	waits := !promising && len(p.wishes)+len(p.listed) == 0

	var gone, stay, learners []standing
	sites := slices.Clone(pool)
	for _, m := range members {
		switch {
		case m.Role == order.Learner:
			learners = append(learners, m)
		case m.why != 0:
			gone = append(gone, m)
		default:
			stay = append(stay, m)
		}
		if m.why == 0 {
			sites = append(sites, site{peer: m.Peer, store: m.Store})
		}
	}
	slices.SortFunc(sites, p.before)
	want := sites[:min(len(sites), 2*p.cfg.F+1)]

	if s := p.failing(learners, now); s.kind != stepNone {
		c.step, c.busy = s, true
		return c
	}
	if len(gone) > 0 {
		c.busy = true
		p.replaceGone(&c, gone, stay, learners, pool, ripe, now)
		return c
	}
	work := false
	c.step, work = p.improve(want, stay, learners, now, false)
	if waits && !work && c.step.kind == stepNone && now >= p.restAt {
		c.until = p.doubtful(members)
	}
	c.busy = c.busy || work
	return c
}

// doubtful returns when it is time to look for somebody who could take the place of a member under suspicion; 0 if none is.
func (p *Planner) doubtful(members []standing) (at automaton.Instant) {
	for _, m := range members {
		if since, ok := p.down[m.Peer]; ok {
			if due := since.Add(p.cfg.Times.Fail - min(p.cfg.Times.Fail, p.cfg.Times.Every/2)); at == 0 || due < at {
				at = due
			}
		}
	}
	return at
}

// standings returns the members, the closest to the anchor first.
func (p *Planner) standings(now automaton.Instant) []standing {
	list := make([]standing, 0, len(p.view.Members))
	for _, m := range p.view.Members {
		s := standing{Member: m, live: true}
		if n := p.near[m.Peer]; n != nil && !p.reached(n.at.Add(p.cfg.Times.Fresh), now) {
			switch {
			case n.Store != m.Store:
				s.why = LostStore
			case !n.Hosts:
				s.why = NotHosting
			}
		}
		if since, ok := p.down[m.Peer]; ok {
			s.live = false
			if p.reached(since.Add(p.cfg.Times.Fail), now) {
				s.why = Failed
			}
		}
		if p.wishes[m.Peer] != nil {
			s.why = Leaving
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b standing) int {
		if d := keyspace.CompareDistance(p.point, a.Peer, b.Peer); d != 0 {
			return d
		}
		return int(a.ID) - int(b.ID)
	})
	return list
}

// pool returns the candidates, in no order: peers that could begin to learn. A peer whose replica lost its store is a
// candidate with its new one. ripe is when the next one will be, Never if none is known, and promising reports that one may
// soon be of use.
//
// Deviation from section 3.5, step 1, where the 2f+1 closest are taken from all peers that answered, and a candidate must
// then be stable: peers that keep coming and going near the anchor, or that are on the list, would fill those places for ever
// and a dead voter would never be replaced (TestFlappersNearTheAnchorDoNotStopTheRepair).
func (p *Planner) pool(members []standing, now automaton.Instant) (pool []site, ripe automaton.Instant, promising bool) {
	ripe = automaton.Never
	for peer, n := range p.near {
		_, suspected := p.down[peer]
		if !n.Hosts || suspected || p.wishes[peer] != nil || p.reached(n.at.Add(p.cfg.Times.Fresh), now) {
			continue
		}
		taken := slices.ContainsFunc(members, func(m standing) bool {
			return m.Store == n.Store || m.Peer == peer && m.Role == order.Learner
		})
		if taken {
			continue
		}
		if until, ok := p.listed[peer]; ok && !p.reached(until, now) {
			continue
		}
		if at := n.since.Add(p.cfg.Times.Stable); !p.reached(at, now) {
			ripe = min(ripe, at)
			closer := func(m standing) bool { return keyspace.Closer(p.point, peer, m.Peer) }
			promising = promising || len(members) < 2*p.cfg.F+1 || slices.ContainsFunc(members, closer)
			continue
		}
		green := p.cfg.Prefix.Len == 0 && !p.reached(n.since.Add(p.cfg.Times.Season), now)
		pool = append(pool, site{peer: peer, store: n.Store, stranger: true, green: green})
	}
	return pool, ripe, promising
}

// before orders the places where a voter could be, the one that is wanted most first: by distance, and for the root those before that are
// members or have been up for [PlanTimes].Season. Where most peers come for minutes, the closest ones are often a majority of voters that go
// before they can be replaced; and who has been up for long is likely to stay. In simulation a root is then without a majority for less of
// the time; it need not change its voters less often (one seed, in which a quarter of restarts lose the disk: see docs/deviations.md and
// TestARootAmongVisitorsStaysWithThoseWhoStay).
//
// Deviation from section 6.5, where uptime goes before distance for members too: one that stays is not replaced for its age. It was the
// best that there was, and whether it ages is seen by itself.
func (p *Planner) before(a, b site) int {
	if a.green != b.green {
		if b.green {
			return -1
		}
		return 1
	}
	return keyspace.CompareDistance(p.point, a.peer, b.peer)
}

// failing drops a learner that died, hangs, was refused for too long, or is no learner any more.
func (p *Planner) failing(learners []standing, now automaton.Instant) step {
	for _, l := range learners {
		t, c := p.cfg.Times, p.progress[l.ID]
		s := step{kind: stepDrop, peer: l.Peer, member: l.ID}
		switch {
		case l.why == Failed,
			!c.near && p.reached(c.advanced.Add(t.Learn), now),
			!c.near && p.reached(c.began.Add(t.LearnTo), now),
			c.refused != automaton.Never && p.reached(c.refused.Add(t.Learn), now):
			s.list = true
			return s
		case l.why != 0:
			return s
		}
	}
	return step{}
}

// ready reports whether a learner could become a voter at once.
func (p *Planner) ready(l standing) bool { return l.why == 0 && l.live && p.progress[l.ID].near }

// replaceGone replaces the voter that has to go most urgently, or lets several go together.
func (p *Planner) replaceGone(c *choice, gone, stay, learners []standing, pool []site, ripe, now automaton.Instant) {
	slices.SortStableFunc(gone, func(a, b standing) int {
		if a.why != b.why {
			return int(a.why) - int(b.why)
		}
		return keyspace.CompareDistance(p.point, b.Peer, a.Peer)
	})
	victim := gone[0]
	if i := slices.IndexFunc(gone, func(m standing) bool { return m.Peer == p.cfg.Self && m.why == Leaving }); i >= 0 {
		// A leader that leaves hands leadership over before anything else.
		if s, waiting := p.handOver(stay, now); s.kind != stepNone || waiting {
			c.step = s
			return
		}
	}
	remove := []Removal{{Member: victim.ID, Why: victim.why}}
	if i := slices.IndexFunc(learners, p.ready); i >= 0 {
		c.step = p.swap(learners[i], victim, stay, now)
		return
	}
	if len(learners) > 0 {
		return // one is learning
	}
	if len(pool) > 0 {
		s := slices.MinFunc(pool, p.before)
		c.step = step{kind: stepLearn, peer: s.peer, store: s.store, add: []keyspace.NodeID{s.peer}, remove: remove}
		return
	}
	// Nobody can take its place. Deviation from section 3.5, whose sizes would have a group of 5 shrink to 3 as soon as the
	// overlay has 4 peers, and one of 3 to 1: n voters of which one is gone survive as many crashes as n-2 that are all
	// there, need no change, and are whole again the moment it returns. So as many go as leave an odd number of voters with
	// at most one of those that are gone among them.
	excess := len(gone) + len(stay) - (len(stay) | 1)
	if len(stay) == 0 {
		excess = 0 // everybody leaves: the group stays as it is, for when they start again
	}
	settled := true
	for _, w := range p.wishes {
		settled = p.reached(w.first.Add(p.cfg.Times.Settle), now) && settled
	}
	if excess > 0 && settled {
		s := step{kind: stepVoters}
		for _, m := range gone[:excess] {
			s.remove = append(s.remove, Removal{Member: m.ID, Why: m.why})
		}
		c.step = p.sparing(s, stay, now)
		return
	}
	failed := 0
	for _, m := range gone {
		if m.why == Failed {
			failed++
		}
	}
	c.stuck = excess <= 0 && ripe == automaton.Never && failed == len(gone) && failed == len(p.down)
	if excess > 0 || now >= p.answered.Add(p.cfg.Times.Fresh) {
		return // a leader that has just begun does not know yet who could
	}
	for _, m := range gone {
		if m.why == Leaving && (len(stay) == 0 || ripe > p.wishes[m.Peer].first.Add(holdLeaver)) {
			c.release = append(c.release, m.Peer)
		}
	}
}

// improve grows the group, follows the closest peers, and keeps a learner where the number of peers is even. All voters stay.
func (p *Planner) improve(want []site, stay, learners []standing, now automaton.Instant, busy bool) (step, bool) {
	wanted := func(peer keyspace.NodeID) bool {
		return slices.ContainsFunc(want, func(s site) bool { return s.peer == peer })
	}
	n := len(stay)
	var outside *standing // the farthest voter that is not wanted
	for i := range stay {
		if !wanted(stay[i].Peer) {
			outside = &stay[i]
		}
	}
	var useful []standing // learners, the closest first
	for _, l := range learners {
		if wanted(l.Peer) || outside != nil && keyspace.Closer(p.point, l.Peer, outside.Peer) {
			useful = append(useful, l)
			continue
		}
		// A leader that has just begun does not know yet what its predecessor needed it for; and as long as a voter is under
		// suspicion it may be needed.
		down := slices.ContainsFunc(stay, func(m standing) bool { return !m.live })
		if p.reached(p.began.Add(p.cfg.Times.Every), now) && !down {
			return step{kind: stepDrop, peer: l.Peer, member: l.ID}, true
		}
		busy = true
	}
	var ready []standing
	for _, l := range useful {
		if p.ready(l) {
			ready = append(ready, l)
		}
	}
	var fresh []site
	for _, s := range want {
		if s.stranger {
			fresh = append(fresh, s)
		}
	}
	teach := func(s site) step {
		next := step{kind: stepLearn, peer: s.peer, store: s.store, add: []keyspace.NodeID{s.peer}}
		if n == 2*p.cfg.F+1 && outside != nil {
			next.remove = []Removal{{Member: outside.ID, Why: Farther}}
		}
		return next
	}
	room := len(want) - n
	if quorum.Voters(len(want), p.cfg.F) >= n+2 {
		switch {
		case len(ready) >= 2:
			if !p.reached(p.changed.Add(p.cfg.Times.Damp), now) {
				return step{}, true
			}
			return step{kind: stepVoters, promote: []order.ReplicaID{ready[0].ID, ready[1].ID}, add: []keyspace.NodeID{ready[0].Peer, ready[1].Peer}}, true
		case len(useful) < 2 && len(fresh) > 0:
			return teach(fresh[0]), true
		}
		return step{}, true
	}
	switch {
	case room > 0: // one more than voters: it learns, and is there when a voter fails
		if len(useful) == 0 && len(fresh) > 0 {
			return teach(fresh[0]), true
		}
	case outside != nil && len(ready) > 0:
		if !p.reached(p.changed.Add(p.cfg.Times.Damp), now) {
			return step{}, true
		}
		victim := *outside
		victim.why = Farther
		return p.swap(ready[0], victim, stay, now), true
	case outside != nil && len(useful) == 0 && len(fresh) > 0:
		return teach(fresh[0]), true
	case outside != nil:
		return step{}, true
	}
	return step{}, busy
}

// swap promotes a learner and removes a voter.
func (p *Planner) swap(l, victim standing, stay []standing, now automaton.Instant) step {
	return p.sparing(step{kind: stepVoters, promote: []order.ReplicaID{l.ID}, add: []keyspace.NodeID{l.Peer},
		remove: []Removal{{Member: victim.ID, Why: victim.why}}}, stay, now)
}

// sparing returns s, or, where s removes the leader, what hands leadership over first.
func (p *Planner) sparing(s step, stay []standing, now automaton.Instant) step {
	own := func(r Removal) bool { m, _ := p.view.Member(r.Member); return m.Peer == p.cfg.Self }
	if !slices.ContainsFunc(s.remove, own) {
		return s
	}
	if h, waiting := p.handOver(stay, now); h.kind != stepNone || waiting {
		return h
	}
	return s // nobody takes it: the engine removes a leader too
}

// handOver offers leadership to the voter with the longest log among those that stay and are live, to each once in a view.
func (p *Planner) handOver(stay []standing, now automaton.Instant) (s step, waiting bool) {
	if p.handingTo != 0 && !p.reached(p.handingTo, now) {
		return step{}, true
	}
	var best *standing
	for i := range stay {
		m := &stay[i]
		if !m.live || m.Peer == p.cfg.Self || p.handed[m.ID] {
			continue
		}
		if best == nil || p.progress[m.ID].match > p.progress[best.ID].match {
			best = m
		}
	}
	if best == nil {
		return step{}, false
	}
	return step{kind: stepHand, member: best.ID}, false
}
