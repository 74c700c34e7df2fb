package replicagroup

import (
	"container/list"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/pb"
	"latchkey/replicagroup/placement"
)

// plan drives the plan of view changes of one leadership (placement.Planner): it carries out what the automaton asks for and feeds it
// what comes of that. It belongs to the goroutine of its replica's shard. What it asks others comes back as events that name the
// leadership, so that answers to a former one count for nothing.
type plan struct {
	replica *replica
	core    *placement.Planner
	term    uint64
	anchor  keyspace.Preimage

	events   []placement.PlanEvent // to be stepped; see feed
	stepping bool

	wake automaton.Instant // the automaton's; Never if it wants none
	beat automaton.Instant // of the next [plan.look]; Never while there is nothing to look at

	resting *list.Element // in the patrol of plans that rest; nil unless it is, or was until a moment ago

	// The maps are nil until they are needed.
	refs    map[uint64]uint64            // the automaton's, by the engine's, of the changes that have no outcome yet
	near    []peer.ID                    // strangers that answered last, which are asked again
	joining map[order.ReplicaID]*joining // learners
	leavers map[keyspace.NodeID]leaver   // who waits to be let go
}

// joining is a learner's way into the group.
type joining struct {
	started bool // it has said that its replica runs
	asking  bool
	next    automaton.Instant // when it is told again
}

// leaver waits for the answer to its wish to leave, until a moment at the latest.
type leaver struct {
	call  caller
	until automaton.Instant
}

// planBegin begins the plan of a leadership.
func (r *replica) planBegin() {
	s := r.shard
	if s.host.neighbours == nil {
		return // members are fixed
	}
	if box, e := s.box, (anchoredEvent{r.group}); !s.host.locator.anchored(r.group.Prefix, func() { box.Put(e) }) {
		return
	}
	anchor, err := r.anchor()
	if err != nil {
		if !placement.IsOwn(r.group) { // which knows its own as soon as it has begun
			log.Errorw("a group without an anchor is not planned", "group", r.group, "err", err)
		}
		return
	}
	status := r.engine.Status()
	p := &plan{
		replica: r, term: status.Term, anchor: anchor, wake: automaton.Never, beat: automaton.Never,
	}
	p.core = placement.NewPlanner(placement.PlannerConfig{
		Prefix: r.group.Prefix, Anchor: anchor, F: s.host.genesis.F, Self: s.host.overlay.Node(), Term: status.Term, Times: &s.host.plan,
	})
	r.plan = p
	p.down(r.view) // before it plans anything
	p.seen(order.ViewNote{View: r.view, Joint: r.view.Joint()})
	for _, a := range s.appeared {
		if s.now < a.at.Add(s.host.plan.Idle) && r.plan == p {
			p.feed(placement.Appeared{Peer: a.peer})
		}
	}
}

// anchoredEvent says that the anchor of a group is known by now, which was not when its leadership began here.
type anchoredEvent struct{ group order.GroupID }

func (e anchoredEvent) handle(s *shard) {
	if r, ok := s.replicas[e.group.Life()]; ok && r.leading && r.plan == nil {
		r.planBegin()
		r.planStirred()
	}
}

// down tells the automaton which members of a view are under suspicion.
func (p *plan) down(v order.View) {
	for _, m := range v.Members {
		if p.replica.shard.suspects(m.Peer) {
			p.feed(placement.PeerState{Peer: m.Peer, Live: false})
		}
	}
}

// anchor returns the preimage of the point at which the group should live: the anchor of its prefix, or the key whose own group it is,
// which an own group knows from when it has begun.
func (r *replica) anchor() (keyspace.Preimage, error) {
	if own, is := r.own(); is {
		if phase, name := own.Phase(); phase != placement.OwnEmpty {
			return keyspace.Preimage(name), nil
		}
	}
	return r.shard.host.locator.anchor(r.group.Prefix)
}

// planEnd ends it with the leadership. Who waits asks the next leader.
func (r *replica) planEnd() {
	p := r.plan
	if p == nil {
		return
	}
	r.plan = nil
	for _, l := range p.leavers {
		l.call.Reply(nil)
	}
	r.shard.timers.Stop(timerKey{r, timerPlan})
	if p.resting != nil {
		r.shard.host.neighbours.strike(p.resting)
	}
	r.shard.host.unpublish(r.group)
}

// planView tells the plan of a view that was applied.
func (r *replica) planView(n order.ViewNote) {
	if r.plan != nil {
		r.plan.seen(n)
	}
}

// planDone tells the plan of an outcome, and reports whether it was of one of its changes.
func (r *replica) planDone(d order.Outcome) bool {
	if r.plan == nil {
		return false
	}
	ref, ok := r.plan.refs[d.Ref]
	if ok {
		delete(r.plan.refs, d.Ref)
		if d.Err != nil {
			log.Debugw("a change of the view was not made", "group", r.group, "err", d.Err)
		}
		r.plan.feed(placement.ChangeDone{Ref: ref, OK: d.Err == nil})
	}
	return ok
}

// planPeer tells the plan what the failure detector says of a peer.
func (r *replica) planPeer(n keyspace.NodeID, live bool) {
	if r.plan != nil {
		r.plan.feed(placement.PeerState{Peer: n, Live: live})
	}
}

// planStirred tells the plan that the group fell asleep or woke up.
func (r *replica) planStirred() {
	p := r.plan
	if p == nil {
		return
	}
	if p.feed(placement.Sleeping{On: !r.awake}); r.plan == p && r.awake {
		p.beat = min(p.beat, r.shard.now) // there may be a learner
		p.arm()
	}
}

// planExpired does what the plan wanted done at this time.
func (r *replica) planExpired() {
	p := r.plan
	if p == nil {
		return
	}
	now := r.shard.now
	if p.beat <= now {
		p.look()
	}
	if r.plan == p && p.wake <= now {
		p.wake = automaton.Never
		p.feed(placement.Wake{})
	}
	p.arm()
}

// arm keeps the timer at the next moment the plan wants.
func (p *plan) arm() {
	r := p.replica
	if r.plan != p {
		return
	}
	key := timerKey{r, timerPlan}
	if at := min(p.wake, p.beat); at == automaton.Never {
		r.shard.timers.Stop(key)
	} else {
		r.shard.timers.Set(key, at)
	}
}

// seen tells the automaton of a view and of the state of its new members.
func (p *plan) seen(n order.ViewNote) {
	p.feed(placement.ViewSeen{View: n.View, Joint: n.Joint})
	p.down(n.View)
	for id := range p.joining {
		if m, ok := n.View.Member(id); !ok || m.Role == order.Voter {
			delete(p.joining, id)
		}
	}
	p.beat = min(p.beat, p.replica.shard.now) // there may be a learner
	p.arm()
}

// feed gives the automaton an event and carries out what it asks for, and so on with the events that come of that.
func (p *plan) feed(ev placement.PlanEvent) {
	p.events = append(p.events, ev)
	if p.stepping {
		return
	}
	p.stepping = true
	var space [8]placement.PlanAction
	for i := 0; i < len(p.events); i++ {
		for _, a := range p.core.Step(p.events[i], p.replica.shard.now, space[:0]) {
			if p.replica.plan != p {
				return // leadership has ended under it
			}
			p.perform(a)
		}
	}
	clear(p.events)
	p.events = p.events[:0]
	if p.resting != nil {
		p.events = nil // there may be thousands that rest
	}
	p.stepping = false
	p.arm()
}

func (p *plan) perform(a placement.PlanAction) {
	r, s := p.replica, p.replica.shard
	switch a := a.(type) {
	case placement.LookUp:
		box, group, term := s.box, r.group, p.term
		s.host.neighbours.candidates(a.Anchor, a.N, r.fellows, p.near, func(found around) { box.Put(foundEvent{group, term, found}) })
	case placement.Arm:
		p.wake = a.At
	case placement.Endorse:
		p.ask(a)
	case placement.Learn:
		id, ok := s.host.overlay.PeerOf(a.Peer)
		if !ok { // it has answered a moment ago, so this is a very full overlay
			p.feed(placement.ChangeDone{Ref: a.Ref})
			return
		}
		log.Infow("a peer is to join", "group", r.group, "view", a.From, "peer", id)
		p.change(a.Ref, order.Change{From: a.From, Learn: &order.Newcomer{Peer: a.Peer, Store: a.Store, PeerID: string(id)}})
	case placement.ChangeVoters:
		if r.seat != nil && !r.seat.voter.Ready() {
			p.feed(placement.ChangeDone{Ref: a.Ref}) // it is tried again a little later
			return
		}
		log.Infow("voters are to change", "group", r.group, "view", a.From, "join", a.Promote, "leave", a.Remove)
		p.change(a.Ref, order.Change{From: a.From, Promote: a.Promote, Remove: a.Remove})
	case placement.DropLearner:
		log.Infow("a learner is to go", "group", r.group, "view", a.From, "replica", a.Member)
		p.change(a.Ref, order.Change{From: a.From, Remove: []order.ReplicaID{a.Member}})
	case placement.TransferTo:
		log.Infow("leadership is handed over", "group", r.group, "to", a.Member)
		r.step(order.Transfer{To: a.Member})
	case placement.MayGo:
		if l, ok := p.leavers[a.Peer]; ok {
			delete(p.leavers, a.Peer)
			l.call.Reply(marshal(&pb.LeaveReply{MayGo: true, Leads: true}))
		}
	case placement.Rests:
		p.near = nil
		if p.resting == nil {
			p.resting = s.host.neighbours.rest(p, s.now)
		}
	case placement.Publish:
		if d, ok := r.describe(a.View); ok {
			s.host.publish(d)
		}
	}
}

// change asks the engine for the next view.
func (p *plan) change(ref uint64, c order.Change) {
	r := p.replica
	r.nextRef++
	c.Ref = r.nextRef
	if p.refs == nil {
		p.refs = make(map[uint64]uint64)
	}
	p.refs[c.Ref] = ref
	r.step(c)
}

// ask puts a question to a member.
func (p *plan) ask(a placement.Endorse) {
	r, s := p.replica, p.replica.shard
	m, ok := r.view.Member(a.To)
	if !ok {
		return
	}
	box, group, term := s.box, r.group, p.term
	req := encodeQuestion(r.group, a.To, a.Question)
	s.host.overlay.Go(peer.ID(m.PeerID), keyspace.Key{}, serviceEndorse, req, s.host.plan.Answer, func(b []byte, err error) {
		if err != nil {
			return // the automaton waits no longer than that
		}
		if v, ok := decodeVerdict(b); ok {
			v.From = a.To
			box.Put(planEvent{group, term, v})
		}
	})
}

// look tells the automaton how far the members have come, tells learners to start, and answers those who have waited to leave for
// as long as they may. It does so again and again while there is a learner or one that wants to leave.
func (p *plan) look() {
	r, s := p.replica, p.replica.shard
	p.beat = automaton.Never
	learners := false
	for _, m := range r.view.Members {
		learners = learners || m.Role == order.Learner
	}
	for n, l := range p.leavers {
		if l.until <= s.now {
			delete(p.leavers, n)
			l.call.Reply(marshal(&pb.LeaveReply{Leads: true}))
		}
	}
	switch {
	case len(p.leavers) > 0:
		p.beat = s.now.Add(lookFast) // somebody waits, and its shutdown with it
	case !r.awake: // learners have all there is
		return
	case learners:
		p.beat = s.now.Add(lookEvery)
	default:
		return
	}
	p.progress()
	if r.plan != p {
		return
	}
	for _, m := range r.view.Members {
		if m.Role == order.Learner {
			p.start(m)
		}
	}
}

// progress tells the automaton how far the members have come.
func (p *plan) progress() {
	for _, report := range p.reports() {
		p.feed(report)
	}
}

// reports says how far the other members have come that were heard of, or that a snapshot is on its way to: one that takes long to
// move is no reason to give a learner up.
func (p *plan) reports() (list []placement.Progress) {
	r := p.replica
	status := r.engine.Status()
	for _, m := range status.View.Members {
		if m.ID == r.self {
			continue
		}
		report := placement.Progress{Member: m.ID, Match: status.Match[m.ID], Commit: status.Commit}
		if m.Role == order.Learner {
			report.Moved = r.shard.host.Moved(r.group, m.ID)
		}
		if report.Match > 0 || report.Moved > 0 {
			list = append(list, report)
		}
	}
	return list
}

// start tells a learner to start its replica, again and again until it says that it has.
func (p *plan) start(m order.Member) {
	r, s := p.replica, p.replica.shard
	j := p.joining[m.ID]
	if j == nil {
		j = new(joining)
		if p.joining == nil {
			p.joining = make(map[order.ReplicaID]*joining)
		}
		p.joining[m.ID] = j
	}
	if _, ok := r.descriptor.View.Member(m.ID); j.started || j.asking || s.now < j.next || !ok {
		return
	}
	j.asking, j.next = true, s.now.Add(lookEvery)
	box, group, term := s.box, r.group, p.term
	msg := marshal(&pb.StartRequest{Descriptor_: encodeDescriptor(*r.descriptor)})
	s.host.overlay.Go(peer.ID(m.PeerID), keyspace.Key{}, serviceStart, msg, askTimeout, func(b []byte, err error) {
		var reply pb.StartReply
		started := err == nil && proto.Unmarshal(b, &reply) == nil && reply.Started
		box.Put(startedEvent{group, term, m.ID, started})
	})
}

// wish tells the automaton that a peer wants to leave; call is answered once it may, or after a while.
func (p *plan) wish(n keyspace.NodeID, call caller) {
	r, s := p.replica, p.replica.shard
	if former, ok := p.leavers[n]; ok {
		former.call.Reply(marshal(&pb.LeaveReply{Leads: true}))
		delete(p.leavers, n)
	}
	if _, member := r.view.MemberAt(n); !member {
		call.Reply(marshal(&pb.LeaveReply{MayGo: true, Leads: true}))
		return
	}
	if p.leavers == nil {
		p.leavers = make(map[keyspace.NodeID]leaver)
	}
	p.leavers[n] = leaver{call, s.now.Add(leaveEvery)}
	p.progress() // leadership goes to the voter with the longest log
	if r.plan != p {
		call.Reply(nil)
		return
	}
	p.feed(placement.LeaveWish{Peer: n})
	if r.plan == p {
		p.beat = min(p.beat, s.now.Add(lookFast))
		p.arm()
	}
}

type (
	// planEvent is the answer to something that a plan has asked.
	planEvent struct {
		group order.GroupID
		term  uint64
		event placement.PlanEvent
	}
	// foundEvent is the answer to a look-up.
	foundEvent struct {
		group order.GroupID
		term  uint64
		found around
	}
	// startedEvent tells whether a learner's replica runs.
	startedEvent struct {
		group   order.GroupID
		term    uint64
		member  order.ReplicaID
		started bool
	}
	// endorseEvent asks a replica whether it endorses a change.
	endorseEvent struct {
		group order.GroupID
		to    order.ReplicaID
		from  keyspace.NodeID
		ask   placement.Question
		call  caller
	}
)

type (
	// rouseEvent is for a plan whose turn in the patrol has come.
	rouseEvent struct{ plan *plan }
	// appearedEvent says that a peer was heard of for the first time, or now says something else of itself.
	appearedEvent struct{ peer keyspace.NodeID }
)

func (e rouseEvent) handle(*shard) {
	e.plan.resting = nil
	if e.plan.replica.plan == e.plan {
		e.plan.feed(placement.Rouse{})
	}
}

func (e appearedEvent) handle(s *shard) {
	for _, r := range s.replicas {
		if r.plan != nil {
			r.plan.feed(placement.Appeared{Peer: e.peer})
		}
	}
}

// appearance is a peer that became reachable, and when.
type appearance struct {
	peer keyspace.NodeID
	at   automaton.Instant
}

// noteAppearance tells the plans of a peer that became reachable, and remembers it for those that begin soon: what the peer says of itself
// may take a while to be known.
func (s *shard) noteAppearance(n keyspace.NodeID) {
	s.appeared = slices.DeleteFunc(s.appeared, func(a appearance) bool { return a.peer == n || s.now >= a.at.Add(s.host.plan.Idle) })
	s.appeared = append(s.appeared, appearance{n, s.now})
	s.appeared = s.appeared[max(0, len(s.appeared)-appearedMax):]
	appearedEvent{n}.handle(s)
}

// planOf returns the plan of a leadership, or nil when that is over.
func (s *shard) planOf(g order.GroupID, term uint64) *plan {
	if r, ok := s.replicas[g.Life()]; ok && r.plan != nil && r.plan.term == term {
		return r.plan
	}
	return nil
}

func (e planEvent) handle(s *shard) {
	if p := s.planOf(e.group, e.term); p != nil {
		p.feed(e.event)
	}
}

// handle tells the automaton of a look-up. Of members the failure detector tells whether they are there, of others only whether they
// answer.
func (e foundEvent) handle(s *shard) {
	p := s.planOf(e.group, e.term)
	if p == nil {
		return
	}
	p.near = nil // the former slice may be in use
	for _, n := range e.found.answered {
		if _, member := p.replica.view.MemberAt(n.Peer); member {
			continue
		}
		if id, ok := s.host.overlay.PeerOf(n.Peer); ok {
			p.near = append(p.near, id)
		}
	}
	for _, n := range e.found.silent {
		if _, member := p.replica.view.MemberAt(n); !member {
			p.feed(placement.PeerState{Peer: n, Live: false})
		}
	}
	p.feed(placement.Candidates{Peers: e.found.answered, Partial: e.found.failed})
}

func (e startedEvent) handle(s *shard) {
	p := s.planOf(e.group, e.term)
	if p == nil || p.joining[e.member] == nil {
		return
	}
	j := p.joining[e.member]
	j.asking, j.started = false, e.started
}

// handle answers a question of a member from the view that this replica has applied. Between the halves of a change it has no
// opinion: it lags, or the asker does.
func (e endorseEvent) handle(s *shard) {
	r, ok := s.replicas[e.group.Life()]
	if !ok || r.halted || r.self != e.to {
		e.call.Reply(nil)
		return
	}
	if _, member := r.view.MemberAt(e.from); !member {
		e.call.Reply(nil)
		return
	}
	verdict := placement.OtherView
	if anchor, err := r.anchor(); err == nil && !r.view.Joint() {
		verdict = e.ask.Endorses(r.view, anchor.Key(), r.reach)
	}
	if verdict != placement.Yes {
		log.Debugw("a change is not endorsed", "group", r.group, "view", r.view.Num, "verdict", verdict, "question", e.ask)
	}
	e.call.Reply(encodeVerdict(e.ask, verdict))
}

// reach is what this peer's failure detector says of another one. It watches the members of its groups.
func (r *replica) reach(n keyspace.NodeID) placement.Reach {
	s := r.shard
	if s.suspects(n) {
		return placement.Suspected
	}
	if _, member := r.view.MemberAt(n); member || n == s.host.overlay.Node() {
		return placement.Reached
	}
	return placement.Unknown
}

func (h *Host) handleEndorse(req *dht.Request) error {
	e, err := h.decode.question(req.Data)
	if err != nil {
		return err
	}
	e.from, e.call = dht.NodeIDOf(req.From), req
	if !h.shardOf(e.group).box.TryPut(e) {
		h.counters.busy.Add(1)
		req.Reply(nil) // no answer
	}
	return nil
}

func encodeQuestion(g order.GroupID, to order.ReplicaID, q placement.Question) []byte {
	m := &pb.EndorseRequest{Group: groupToPB(g), To: uint64(to), Term: q.Term, Round: q.Round, View: q.View}
	for _, n := range q.Add {
		m.Add = append(m.Add, n[:])
	}
	for _, r := range q.Remove {
		m.Remove = append(m.Remove, &pb.Removal{Member: uint64(r.Member), Why: uint32(r.Why)})
	}
	return marshal(m)
}

// question decodes a pb.EndorseRequest. Whether it makes sense is for [placement.Question.Endorses].
func (d decoder) question(data []byte) (e endorseEvent, err error) {
	var m pb.EndorseRequest
	if err := proto.Unmarshal(data, &m); err != nil {
		return e, malformed("endorse: %v", err)
	}
	if e.group, err = d.group(m.Group); err != nil {
		return e, err
	}
	if len(m.Add) > placement.StepMax || len(m.Remove) > order.MembersMax {
		return e, malformed("endorse: %d to join and %d to leave", len(m.Add), len(m.Remove))
	}
	e.to, e.ask = order.ReplicaID(m.To), placement.Question{Term: m.Term, Round: m.Round, View: m.View}
	for _, b := range m.Add {
		var n keyspace.NodeID
		if err := fixed(n[:], b, "node id"); err != nil {
			return e, err
		}
		e.ask.Add = append(e.ask.Add, n)
	}
	for _, r := range m.Remove {
		if r.Why > uint32(placement.Farther) {
			return e, malformed("endorse: reason %d", r.Why)
		}
		e.ask.Remove = append(e.ask.Remove, placement.Removal{Member: order.ReplicaID(r.Member), Why: placement.Reason(r.Why)})
	}
	return e, nil
}

func encodeVerdict(q placement.Question, v placement.Verdict) []byte {
	return marshal(&pb.EndorseReply{Term: q.Term, Round: q.Round, View: q.View, Verdict: uint32(v)})
}

// decodeVerdict reads an answer; ok is false when it is none.
func decodeVerdict(b []byte) (a placement.EndorseAnswer, ok bool) {
	var m pb.EndorseReply
	if proto.Unmarshal(b, &m) != nil || m.Verdict < uint32(placement.Yes) || m.Verdict > uint32(placement.NoSense) {
		return a, false
	}
	return placement.EndorseAnswer{Term: m.Term, Round: m.Round, View: m.View, Verdict: placement.Verdict(m.Verdict)}, true
}

// Times of a plan's driver; those of the plan itself are [placement.PlanTimes].
const (
	// lookEvery is how often a leader looks how far its learners have come, and tells them to start; lookFast while a peer waits to
	// leave.
	lookEvery = time.Second
	lookFast  = 100 * time.Millisecond
)
