package placement

import (
	"maps"
	"slices"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/internal/invariant"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/quorum"
)

// neighboursMax bounds the peers a planner knows beside the members: the closest that answered.
const neighboursMax = 2 * CandidatesMax

// PlannerConfig is what a [Planner] begins with.
type PlannerConfig struct {
	Prefix keyspace.Prefix
	Anchor keyspace.Preimage
	F      int             // crashes to survive: at most 2F+1 voters
	Self   keyspace.NodeID // the leader's own peer
	Term   uint64          // of this leadership; another one for every leadership of the group at this node
	Times  *PlanTimes      // which nobody changes
}

// neighbour is what is known of a peer by its answers.
type neighbour struct {
	Neighbour
	since automaton.Instant // up without a break since then, as far as we know
	back  automaton.Instant // when it last came back from being suspected
	at    automaton.Instant // of its last answer
}

// wish is a peer's wish to leave.
type wish struct {
	first, last automaton.Instant
	answered    bool // by MayGo, since the last LeaveWish
}

// catchUp is a member's progress.
type catchUp struct {
	match, moved uint64
	began        automaton.Instant // when it was first seen, or last seen near the end
	advanced     automaton.Instant
	refused      automaton.Instant // when voters began to refuse it without a yes between; Never if they do not
	near         bool
	markCommit   uint64 // what was committed at mark
	mark         automaton.Instant
}

// inquiry is a round of endorsement.
type inquiry struct {
	step     step
	verdicts map[order.ReplicaID]Verdict
	until    automaton.Instant
}

// Planner is the leader's plan of its group's view changes: it makes the group follow the 2f+1 closest peers, one endorsed
// step at a time (replica-groups.md section 3.5, rule G6). It has no memory that matters: what to do next is computed from
// the present view and from what is known of the peers, so a new leader goes on where the former one stopped, learners left
// behind included. A driver makes one for each leadership and drops it when leadership ends. Not safe for concurrent use.
//
// It never changes anything unless that improves the group:
//
//   - a voter that leaves, lost its store, failed or no longer hosts is replaced by the closest candidate; if there is none
//     and two such voters could go together, they do, for the group then survives more than before. One that is alone of its
//     kind stays: n voters of which one is gone survive as many crashes as n-2 that are all there, and it may come back.
//   - with two caught-up learners and room for them, the group grows by both at once.
//   - a voter that is not among the 2f+1 closest is replaced by a closer peer, the farthest first.
//   - with an even number of peers, at most 2f, the odd one is a learner.
//
// One change is in flight at a time. Changes of voters are [PlanTimes.Damp] apart unless the victim leaves, failed or lost its
// store.
type Planner struct {
	cfg   PlannerConfig
	point keyspace.Key

	view    order.View
	began   automaton.Instant // this leadership
	changed automaton.Instant // the voters, or this leadership began

	// Flags stand together, for there may be thousands of plans that rest.
	begun   bool
	joint   bool
	asleep  bool // the group is
	resting bool // nobody is looked up before something happens; see rest
	owed    bool // a look-up, for somebody has appeared or the patrol wants it: none is put off, and no rest begins, before it
	flying  bool // change ref is in flight, made for view flyingFrom
	done    bool // it stands, and its view has not come yet

	// Those of peers are nil in a plan that never had anything to put there, and in one that rests.
	near     map[keyspace.NodeID]*neighbour        // at most neighboursMax, and members
	down     map[keyspace.NodeID]automaton.Instant // members and neighbours under suspicion, since when
	wishes   map[keyspace.NodeID]*wish             // of members, and of those who were
	listed   map[keyspace.NodeID]automaton.Instant // until when; at most ListedMax
	progress map[order.ReplicaID]*catchUp          // of members; nil in a plan that rests, unless there is a learner

	lookAt, lookedAt automaton.Instant
	answered         automaton.Instant // when those who answer near the anchor were last known, be it nobody
	idle             time.Duration     // the present pause between look-ups
	restAt           automaton.Instant // not before: somebody has appeared who may not answer yet

	round      uint64
	asking     *inquiry // nil when no endorsement is under way
	refused    *step    // not tried again before refusedTo; nil: none
	refusedTo  automaton.Instant
	ref        uint64
	flyingFrom uint64
	handed     map[order.ReplicaID]bool // voters that leadership was offered to in this view
	handingTo  automaton.Instant        // wait that long for the last one; 0 if none

	wake  automaton.Instant // the next instant that the present computation depends on
	armed automaton.Instant
}

// NewPlanner returns the plan of a leadership that begins; it does nothing before the first [ViewSeen].
func NewPlanner(cfg PlannerConfig) *Planner {
	return &Planner{cfg: cfg, point: cfg.Anchor.Key(),
		idle: cfg.Times.Every, armed: automaton.Never, answered: -automaton.Never}
}

// Step consumes one event and appends what is to be done to out. It never blocks and never fails: an event that fits nothing
// is stale and is dropped.
func (p *Planner) Step(ev PlanEvent, now automaton.Instant, out []PlanAction) []PlanAction {
	p.follow(now)
	switch ev := ev.(type) {
	case ViewSeen:
		out = p.viewSeen(ev, now, out)
	case Candidates:
		p.candidates(ev.Peers, now)
		if !ev.Partial {
			p.answered = now
		}
	case PeerState:
		p.peerState(ev, now)
	case Progress:
		p.progressed(ev, now)
	case EndorseAnswer:
		p.endorsed(ev)
	case ChangeDone:
		if p.flying && !p.done && ev.Ref == p.ref {
			if p.done = ev.OK; !ev.OK { // its view may come yet: try again a little later
				p.flying = false
			}
		}
	case LeaveWish:
		p.leaveWish(ev.Peer, now)
	case Sleeping:
		if p.asleep = ev.On; !ev.On {
			p.rouse(p.lookedAt.Add(p.cfg.Times.Idle))
		}
	case Appeared:
		p.appeared(ev.Peer, now)
	case Rouse:
		p.owe(now)
	case Wake:
		p.armed = automaton.Never
	}
	if !p.begun {
		return out
	}
	p.wake = automaton.Never
	out = p.plan(now, out)
	if p.wake != p.armed {
		p.armed = p.wake
		out = append(out, Arm{At: p.wake})
	}
	if p.resting && !slices.ContainsFunc(p.view.Members, func(m order.Member) bool { return m.Role == order.Learner }) {
		p.progress = nil
	}
	return out
}

// reached reports whether t has come, and if not sees to it that the plan is computed anew then.
func (p *Planner) reached(t, now automaton.Instant) bool {
	if now >= t {
		return true
	}
	p.wake = min(p.wake, t)
	return false
}

func (p *Planner) viewSeen(ev ViewSeen, now automaton.Instant, out []PlanAction) []PlanAction {
	if p.begun && ev.View.Num <= p.view.Num {
		return out
	}
	if !p.begun {
		p.begun, p.began, p.changed, p.lookAt = true, now, now, now
	}
	if ev.Joint {
		p.joint = true
		return out
	}
	if !slices.Equal(p.view.Voters(), ev.View.Voters()) {
		p.changed = now
	}
	p.rouse(max(now, p.lookedAt.Add(p.cfg.Times.Every)))
	p.view, p.joint = ev.View, false
	p.handed, p.handingTo = nil, 0
	if p.flying && ev.View.Num > p.flyingFrom {
		p.flying = false
	}
	member := func(peer keyspace.NodeID) bool { _, ok := p.view.MemberAt(peer); return ok }
	p.follow(now)
	maps.DeleteFunc(p.progress, func(id order.ReplicaID, _ *catchUp) bool { _, ok := p.view.Member(id); return !ok })
	maps.DeleteFunc(p.down, func(peer keyspace.NodeID, _ automaton.Instant) bool { return !member(peer) && p.near[peer] == nil })
	return append(out, Publish{View: ev.View})
}

// follow begins to follow the progress of members that is not followed yet.
func (p *Planner) follow(now automaton.Instant) {
	for _, m := range p.view.Members {
		if p.progress[m.ID] == nil {
			put(&p.progress, m.ID, &catchUp{began: now, advanced: now, refused: automaton.Never})
		}
	}
}

// candidates takes the answers of peers, and forgets those that have not answered for a while.
func (p *Planner) candidates(peers []Neighbour, now automaton.Instant) {
	for _, c := range peers {
		if c.Peer.IsZero() || c.Store == (order.StoreID{}) {
			continue
		}
		n := p.near[c.Peer]
		if n == nil {
			n = &neighbour{back: -automaton.Never}
			put(&p.near, c.Peer, n)
		}
		// What the detector says of members holds. A stranger that answers is back.
		if _, member := p.view.MemberAt(c.Peer); !member {
			p.trust(c.Peer, now)
		}
		n.Neighbour, n.at = c, now
		n.since = max(now.Add(-c.Up), n.back)
		if w := p.wishes[c.Peer]; w != nil && n.since > w.last {
			delete(p.wishes, c.Peer) // it left, and has started again
		}
	}
	var strangers []keyspace.NodeID
	for peer, n := range p.near {
		if _, member := p.view.MemberAt(peer); now >= n.at.Add(p.cfg.Times.Fresh) {
			p.forget(peer)
		} else if !member {
			strangers = append(strangers, peer)
		}
	}
	if len(strangers) > neighboursMax {
		keyspace.SortByDistance(p.point, strangers)
		for _, peer := range strangers[neighboursMax:] {
			p.forget(peer)
		}
	}
}

func (p *Planner) forget(peer keyspace.NodeID) {
	delete(p.near, peer)
	if _, member := p.view.MemberAt(peer); !member {
		delete(p.down, peer)
	}
}

// trust notes that a peer is live. One that was suspected begins to be stable now.
func (p *Planner) trust(peer keyspace.NodeID, now automaton.Instant) {
	if _, was := p.down[peer]; !was {
		return
	}
	delete(p.down, peer)
	p.unsettle(peer, now)
}

// unsettle makes a peer's stability count from now.
func (p *Planner) unsettle(peer keyspace.NodeID, now automaton.Instant) {
	if n := p.near[peer]; n != nil {
		n.back, n.since = now, now
	}
}

func (p *Planner) peerState(ev PeerState, now automaton.Instant) {
	_, member := p.view.MemberAt(ev.Peer)
	switch {
	case ev.Live:
		p.trust(ev.Peer, now)
	case !member && p.near[ev.Peer] == nil && p.begun, ev.Peer == p.cfg.Self:
	default:
		if _, was := p.down[ev.Peer]; !was {
			put(&p.down, ev.Peer, now)
		}
		if w := p.wishes[ev.Peer]; w != nil && !w.answered {
			delete(p.wishes, ev.Peer) // it has other troubles now; who was told that it may go has left, and the next one that leaves is not alone
		}
	}
}

func (p *Planner) progressed(ev Progress, now automaton.Instant) {
	c := p.progress[ev.Member]
	if c == nil {
		return
	}
	if ev.Match > c.match || ev.Moved > c.moved {
		c.advanced = now
	}
	c.match, c.moved = ev.Match, ev.Moved
	c.near = ev.Match+Within >= ev.Commit || c.markCommit > 0 && ev.Match >= c.markCommit && now <= c.mark.Add(p.cfg.Times.Lag)
	if c.near {
		c.began, c.advanced = now, now
	}
	if c.markCommit == 0 || ev.Match >= c.markCommit || now > c.mark.Add(p.cfg.Times.Lag) {
		c.markCommit, c.mark = ev.Commit, now
	}
}

func (p *Planner) endorsed(ev EndorseAnswer) {
	if p.asking == nil || ev.Term != p.cfg.Term || ev.Round != p.round || ev.View != p.view.Num {
		return
	}
	m, ok := p.view.Member(ev.From)
	_, again := p.asking.verdicts[ev.From]
	if ok && !again && (m.Role == order.Voter || slices.Contains(p.asking.step.promote, m.ID)) {
		p.asking.verdicts[ev.From] = ev.Verdict
	}
}

func (p *Planner) leaveWish(peer keyspace.NodeID, now automaton.Instant) {
	_, member := p.view.MemberAt(peer)
	w := p.wishes[peer]
	switch {
	case w != nil:
		w.last, w.answered = now, false
	case member || p.near[peer] != nil:
		put(&p.wishes, peer, &wish{first: now, last: now})
		p.lookAt = min(p.lookAt, max(now, p.lookedAt.Add(p.cfg.Times.Every)))
	}
}

// plan does what is to be done now.
func (p *Planner) plan(now automaton.Instant, out []PlanAction) []PlanAction {
	for _, peer := range slices.SortedFunc(maps.Keys(p.wishes), keyspace.NodeID.Compare) {
		w := p.wishes[peer]
		// As long as its last answer may be remembered, which does not say that it leaves.
		if p.reached(w.last.Add(max(p.cfg.Times.Stable, p.cfg.Times.Fresh)), now) {
			delete(p.wishes, peer)
		} else if _, member := p.view.MemberAt(peer); !member && !p.joint {
			out = p.release(peer, out)
		}
	}
	maps.DeleteFunc(p.listed, func(_ keyspace.NodeID, until automaton.Instant) bool { return now >= until })
	c := p.choose(now)
	out = p.lookUp(c, now, out)
	if p.joint || p.flying {
		p.asking = nil
		return out
	}
	for _, peer := range c.release {
		out = p.release(peer, out)
	}
	if p.asking != nil && !p.asking.step.same(c.step) {
		p.asking = nil // overtaken by events
	}
	switch {
	case c.step.kind == stepNone, p.refused != nil && c.step.same(*p.refused) && !p.reached(p.refusedTo, now):
		return out
	case c.step.kind == stepHand:
		return p.hand(c.step, now, out)
	case c.step.kind == stepDrop:
		return p.perform(c.step, now, out)
	case p.asking == nil:
		out = p.ask(c.step, now, out)
	}
	return p.count(now, out)
}

// release lets a peer go that wants to, once for each time it says so.
func (p *Planner) release(peer keyspace.NodeID, out []PlanAction) []PlanAction {
	if w := p.wishes[peer]; w != nil && !w.answered {
		w.answered = true
		return append(out, MayGo{Peer: peer})
	}
	return out
}

// lookUp keeps what is known of the candidates fresh while there is work, and lets the pauses grow while there is none.
func (p *Planner) lookUp(c choice, now automaton.Instant, out []PlanAction) []PlanAction {
	switch {
	case now < c.until && !p.owed && p.idles() && p.answered >= max(p.began, p.lookedAt):
		p.forgetAll()
		p.idle, p.resting, p.lookAt = p.cfg.Times.Every, false, c.until
		p.wake = automaton.Never // it was for what is forgotten now
	case c.busy && !(c.stuck && (p.resting || p.mayRest(c, now))):
		p.idle, p.resting = p.cfg.Times.Every, false
		p.lookAt = min(p.lookAt, max(now, p.lookedAt.Add(p.idle)))
	case p.resting:
		return out
	case p.mayRest(c, now):
		return p.rest(out)
	}
	if !p.reached(p.lookAt, now) {
		return out
	}
	p.lookedAt, p.lookAt, p.owed = now, now.Add(p.idle), false
	p.idle = min(2*p.idle, p.cfg.Times.Idle)
	p.reached(p.lookAt, now)
	return append(out, LookUp{Prefix: p.cfg.Prefix, Anchor: p.cfg.Anchor, N: CandidatesMax})
}

// A plan whose group sleeps rests when there is nothing to do, or nothing can be done for members that are gone, for a peer may lead thousands
// of such groups, and a look-up for each every minute would be all it ever did. What could change the plan's mind then is told to it: a suspicion, a wish to leave, a view, a peer
// that appears near the anchor. What is not, since it happened among peers that this one has no connection to, the driver's patrol
// finds ([Rouse]). What the plan knew of the candidates is forgotten; it would be too old by the next look-up in any case, as it is
// between the look-ups of a group that is awake ([PlanTimes].Fresh).
//
// Nor does it look anybody up while a member is under suspicion and has not failed yet: who could take its place is asked just before it is
// to be taken, once. Else the death of a peer would have thousands of plans look around every ten seconds.

// idles reports whether the group sleeps and nothing is under way for it.
func (p *Planner) idles() bool { return p.asleep && !p.joint && !p.flying && p.asking == nil }

// mayRest reports whether nothing is to be done, now or by the mere passing of time: the last look-up has been answered, and nobody who is
// known now could become of use later.
func (p *Planner) mayRest(c choice, now automaton.Instant) bool {
	return p.idles() && !p.owed && c.step.kind == stepNone && (len(p.down) == 0 || c.stuck) &&
		len(p.wishes)+len(p.listed) == 0 &&
		p.answered >= max(p.began, p.lookedAt) && now < p.lookAt && p.reached(p.restAt, now)
}

// rest begins the rest of a plan that may.
func (p *Planner) rest(out []PlanAction) []PlanAction {
	p.forgetAll()
	p.resting, p.lookAt = true, automaton.Never
	p.wake = automaton.Never // it was for what is forgotten now
	return append(out, Rests{})
}

// forgetAll forgets what is known of others than members, when nobody wants to leave and nobody is listed.
func (p *Planner) forgetAll() {
	p.near, p.wishes, p.listed = nil, nil, nil
	maps.DeleteFunc(p.down, func(peer keyspace.NodeID, _ automaton.Instant) bool {
		_, member := p.view.MemberAt(peer)
		return !member
	})
	if len(p.down) == 0 {
		p.down = nil
	}
}

// rouse ends a rest: the next look-up is due.
func (p *Planner) rouse(due automaton.Instant) {
	if p.resting {
		p.resting, p.lookAt = false, due
	}
}

// owe is rouse, and a plan that is about to rest, or waits whether a suspicion passes, looks up first.
func (p *Planner) owe(due automaton.Instant) {
	p.rouse(due)
	p.owed = true
}

// appeared looks at a peer that may matter to the group: a member that is back, perhaps without its store, or a peer that could become
// one. The latter may not answer yet, or not be found, so the plan does not rest for a while.
func (p *Planner) appeared(peer keyspace.NodeID, now automaton.Instant) {
	_, member := p.view.MemberAt(peer)
	closer := func(m order.Member) bool { return keyspace.Closer(p.point, peer, m.Peer) }
	switch {
	case !p.begun, peer == p.cfg.Self:
		return
	case member:
	case len(p.view.Members) < 2*p.cfg.F+1, len(p.down) > 0, slices.ContainsFunc(p.view.Members, closer):
		p.restAt = now.Add(p.cfg.Times.Idle)
	default:
		return
	}
	p.owe(max(now, p.lookedAt.Add(p.cfg.Times.Every)))
}

// ask begins a round of endorsement among the voters and those to be promoted. The leader has endorsed its own plan.
func (p *Planner) ask(s step, now automaton.Instant, out []PlanAction) []PlanAction {
	p.round++
	p.asking = &inquiry{step: s, verdicts: make(map[order.ReplicaID]Verdict), until: now.Add(p.cfg.Times.Answer)}
	q := Question{Term: p.cfg.Term, Round: p.round, View: p.view.Num, Add: s.add, Remove: s.remove}
	for _, m := range p.view.Members {
		switch {
		case m.Role != order.Voter && !slices.Contains(s.promote, m.ID):
		case m.Peer == p.cfg.Self && m.Role == order.Voter:
			p.asking.verdicts[m.ID] = Yes
		default:
			out = append(out, Endorse{To: m.ID, Question: q})
		}
	}
	return out
}

// count goes on when enough have endorsed, and gives up for a while when that cannot be any more. Enough are a majority of
// the voters and, where voters change, also everybody who is promoted and a majority of the voters to be.
//
// Deviation from section 3.5, step 4, which asks for the first majority only. A joint change needs both, and one that begins
// without the second takes the group down: of three voters of which two leave, the third, left alone, may have died a moment ago
// (TestVotersToBeMustAnswer).
func (p *Planner) count(now automaton.Instant, out []PlanAction) []PlanAction {
	a := p.asking
	verdicts := slices.Collect(maps.Values(a.verdicts))
	suspected, lagging := slices.Contains(verdicts, CandidateDown), slices.Contains(verdicts, OtherView)
	switch {
	case p.enough(a, func(v Verdict) bool { return v == Yes }):
		p.asking = nil
		for _, id := range a.step.promote {
			p.progress[id].refused = automaton.Never
		}
		return p.perform(a.step, now, out)
	case p.enough(a, func(v Verdict) bool { return v == Yes || v == 0 }) && !p.reached(a.until, now):
		return out
	}
	p.asking = nil
	if suspected { // it is not as stable as it seems from here
		for _, peer := range a.step.add {
			p.unsettle(peer, now)
		}
	}
	for _, id := range a.step.promote {
		if suspected || a.verdicts[id] != Yes { // what does not answer, or nobody reaches, is no use for ever
			p.progress[id].refused = min(p.progress[id].refused, now)
		}
	}
	p.putOff(a.step, now, lagging) // who lags has caught up soon
	return out
}

// enough reports whether those whose verdict is good endorse the step under inquiry; 0 is that of who has not answered.
func (p *Planner) enough(a *inquiry, good func(Verdict) bool) bool {
	removed := func(id order.ReplicaID) bool {
		return slices.ContainsFunc(a.step.remove, func(r Removal) bool { return r.Member == id })
	}
	old, oldGood, next, nextGood := 0, 0, 0, 0
	for _, m := range p.view.Members {
		yes := 0
		if good(a.verdicts[m.ID]) {
			yes = 1
		}
		promoted := slices.Contains(a.step.promote, m.ID)
		if promoted && yes == 0 {
			return false
		}
		if m.Role == order.Voter {
			old, oldGood = old+1, oldGood+yes
		}
		if promoted || m.Role == order.Voter && !removed(m.ID) {
			next, nextGood = next+1, nextGood+yes
		}
	}
	return oldGood >= quorum.Majority(old) && (a.step.kind != stepVoters || nextGood >= quorum.Majority(next))
}

// putOff sees to it that a step is not tried again at once.
func (p *Planner) putOff(s step, now automaton.Instant, soon bool) {
	pause := p.cfg.Times.Every
	if soon || s.urgent() {
		pause = p.cfg.Times.Soon
	}
	p.refused, p.refusedTo = &s, now.Add(pause)
	p.reached(p.refusedTo, now)
}

// hand offers leadership to a voter and waits whether it takes it.
func (p *Planner) hand(s step, now automaton.Instant, out []PlanAction) []PlanAction {
	if p.handed == nil {
		p.handed = make(map[order.ReplicaID]bool)
	}
	p.handed[s.member], p.handingTo = true, now.Add(p.cfg.Times.Hand)
	p.reached(p.handingTo, now)
	return append(out, TransferTo{Member: s.member})
}

// perform asks the engine for an endorsed step, or for one that needs no endorsement.
func (p *Planner) perform(s step, now automaton.Instant, out []PlanAction) []PlanAction {
	invariant.Check(!p.flying && !p.joint, "one change in flight", s)
	p.ref++
	p.flying, p.done, p.flyingFrom = true, false, p.view.Num
	p.putOff(s, now, false) // if it fails
	switch s.kind {
	case stepLearn:
		return append(out, Learn{Ref: p.ref, From: p.view.Num, Peer: s.peer, Store: s.store})
	case stepDrop:
		if s.list {
			p.list(s.peer, now)
		}
		return append(out, DropLearner{Ref: p.ref, From: p.view.Num, Member: s.member})
	}
	change := ChangeVoters{Ref: p.ref, From: p.view.Num, Promote: s.promote}
	for _, r := range s.remove {
		change.Remove = append(change.Remove, r.Member)
	}
	n := len(p.view.Voters()) + len(change.Promote) - len(change.Remove)
	invariant.Check(n%2 == 1 && n <= 2*p.cfg.F+1, "I13: an odd number of voters, at most 2f+1", n)
	return append(out, change)
}

// list keeps a peer from being tried again for a while.
func (p *Planner) list(peer keyspace.NodeID, now automaton.Instant) {
	for len(p.listed) >= ListedMax {
		oldest := slices.MinFunc(slices.Collect(maps.Keys(p.listed)), func(a, b keyspace.NodeID) int {
			if p.listed[a] != p.listed[b] {
				return int(min(max(p.listed[a]-p.listed[b], -1), 1))
			}
			return a.Compare(b)
		})
		delete(p.listed, oldest)
	}
	put(&p.listed, peer, now.Add(p.cfg.Times.Listed))
}

// put sets m[k], where m may be nil yet.
func put[K comparable, V any](m *map[K]V, k K, v V) {
	if *m == nil {
		*m = make(map[K]V)
	}
	(*m)[k] = v
}
