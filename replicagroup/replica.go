package replicagroup

import (
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/internal/invariant"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/pb"
	"latchkey/replicagroup/placement"
	"latchkey/replicagroup/session"
)

// Timers of the host itself, beside those of the engine.
const (
	timerDeadline order.TimerKind = 0xf0 + iota // a machine has something to end by log time
	timerResend                                 // repeat awaited outputs
	timerNews                                   // no leader was heard of for a while
	timerParting                                // the group has removed this replica, by what others say
	timerPlan                                   // of the plan of view changes
	timerLease                                  // the root's leader looks for groups whose lease is over
	timerRouse                                  // of the shard, not of a replica: further replicas hear of a suspicion
	timerBegin                                  // likewise: the engines of further replicas begin
	timerVoter                                  // of the voter
	timerDesk                                   // of the leader of a service
	timerSpare                                  // of the shard: spare messages have waited long enough
)

// hostTimers are those that run beside the engine's.
var hostTimers = []order.TimerKind{timerDeadline, timerResend, timerNews, timerParting, timerPlan, timerLease, timerVoter, timerDesk}

// replica is one group's replica on this host: an engine that orders and a table of sessions and machines that executes.
// It belongs to its shard's goroutine.
type replica struct {
	shard      *shard
	group      order.GroupID
	self       order.ReplicaID
	view       order.View            // as of what was delivered; joint for the time a change takes
	descriptor *placement.Descriptor // of the last settled view; others keep it, too, and nobody changes it
	later      *placement.Descriptor // the newest that others told of; nil, or of a later view when it was told
	fellows    []peer.ID             // the peers of view and later
	engine     order.Orderer
	table      *session.Table // nil while it is put away; see state
	parked     []byte         // instead of table

	events   []order.Event // to be stepped; see step
	epochs   []epoch       // of the engine's timers
	held     []order.Send  // wait for their persist, by rising After
	lagging  []order.Entry // delivered and not yet executed; see lags
	storedTo uint64        // every persist up to here is stored

	applied       uint64
	gatheredBytes int   // of the data of entries since the last snapshot
	gathered      int32 // and how many they are
	asked         int32 // how often in a row the members were asked for news

	nextRef uint64
	inputs  int32 // proposals of inputs under way
	waiters int32 // callers in waiting, reads, blocked and lines
	// These maps are nil in a replica that has slept since they were used.
	waiting     map[commandKey][]caller // commands proposed here, by what names them
	proposals   map[uint64]commandKey   // by Ref
	proposing   []order.Propose         // gathered in this turn; empty unless shard.proposers has the replica
	reads       map[uint64]*queryEvent  // by Ref: wait for their read point
	rare        *rare                   // nil while there is nothing in it
	plan        *plan                   // of view changes, while this replica leads
	ring        *keyring                // of the keys that have own groups, while this replica of a prefix's group leads; nil until it is needed
	*contention                         // nil before it is asked for something

	lease    *leaseCell // nil: it needs none to answer
	granting *granting  // nil but at the root's replicas under policy lease
	seat     *Seat      // of the voter; nil: there is none
	desk     *Desk      // of the leader; nil: there is none, or nothing to do for it

	leaderless automaton.Instant // unless led: since when
	ledSince   automaton.Instant // when it knew that it leads, if it does

	// Flags stand together, for there may be ten thousand replicas.
	stepping, leading bool
	ticking           bool // a tick is proposed and not yet applied
	resending         bool // timerResend is set
	halted            bool
	parks             bool // the host can make its machines again
	awake             bool // the engine is
	led               bool // a leader is known
	parting           bool // by what others say
	aside             bool // what it has is put aside when it ends
	inLine            bool // of inquiries
	hesitates         bool // it is one of shard.drowsy, or was until a moment ago
	trusts            bool // and has not heard that a member is not suspected any more
	resting           bool // its engine has not begun: it is one of shard.resting, or was until a moment ago
}

// rare is what few replicas have at a time.
type rare struct {
	encoded  []byte       // replica.descriptor
	links    []order.Link // of members, that came or went while it hesitates and that it has not heard of
	partings []chan<- error
	blocked  []blockedRead // have their read point and wait for it to be applied
}

// rarely returns where that is kept.
func (r *replica) rarely() *rare {
	if r.rare == nil {
		r.rare = new(rare)
	}
	return r.rare
}

// epoch is the newest epoch of a kind of timer.
type epoch struct {
	kind  order.TimerKind
	epoch uint64
}

// epochOf returns where a kind's epoch is kept.
func (r *replica) epochOf(kind order.TimerKind) *uint64 {
	for i := range r.epochs {
		if r.epochs[i].kind == kind {
			return &r.epochs[i].epoch
		}
	}
	r.epochs = append(r.epochs, epoch{kind: kind})
	return &r.epochs[len(r.epochs)-1].epoch
}

// commandKey names a command. The author is part of it, so that nobody can wait for the answer to another's command; and so
// is the data of commands about the session itself, which have no sequence number of their own.
type commandKey struct {
	client  order.ClientID
	seq     uint64
	author  keyspace.NodeID
	session string
}

type blockedRead struct {
	index uint64
	query *queryEvent
}

func keyOf(c order.Command) commandKey {
	key := commandKey{client: c.Client, seq: c.Seq, author: c.Author}
	if c.Service == session.Service {
		key.session = string(c.Data)
	}
	return key
}

// start makes the replica its shard's, and has its engine begin, unless it is one of many that do so in turn (see sleep.go).
func (r *replica) start(s *shard, inTurn bool) {
	r.shard = s
	switch h := s.host; {
	case h.leases == nil:
	case r.group.Prefix.Len == 0:
		r.granting = newGranting(h.genesis, r)
	default:
		r.lease = new(leaseCell)
	}
	if v := former(r.view); v.Num > r.descriptor.View.Num {
		if d, ok := r.describe(v); ok {
			r.descriptor = d
			s.host.locator.keep(d)
		}
	}
	if r.later != nil && r.later.View.Num < r.view.Num { // of one that joins they are the same, and its log begins with an earlier one
		r.later = nil
	}
	r.meet()
	if r.seat != nil {
		if r.lease != nil {
			r.seat.lease = new(voterLease)
		}
		r.seat.voter = s.host.voters.New(r.seat)
	}
	r.led = true // as if it were known, so that not knowing one is a change
	if inTurn && s.starts >= startsAtOnce {
		r.rest()
		return
	}
	s.starts++
	r.launch()
	if inTurn {
		s.stirs(r)
	}
}

// launch has the engine begin.
func (r *replica) launch() {
	r.step(order.Rand{Bits: r.shard.host.random(), Now: time.Duration(r.shard.now)})
	r.doubt()
	r.afterStep()
}

// step feeds one event to the engine and carries out what it asks for, and so on with the events that come of that.
func (r *replica) step(ev order.Event) {
	if r.halted {
		return
	}
	r.decide()
	r.events = append(r.events, ev)
	if r.stepping {
		return
	}
	r.stepping = true
	for i := 0; i < len(r.events) && !r.halted; i++ {
		if len(r.lagging) > 0 {
			r.deliver(r.lagging)
			clear(r.lagging)
			r.lagging = r.lagging[:0]
		}
		a := &r.shard.actions
		a.Reset()
		r.engine.Step(r.events[i], a)
		r.perform(a)
	}
	clear(r.events)
	r.events = r.events[:0]
	r.stepping = false
	r.afterStep()
}

// perform carries out the actions of one step.
func (r *replica) perform(a *order.Actions) {
	s, before := r.shard, r.view
	for _, n := range a.Views { // first, since messages may be for members that they are the first to name
		r.setView(n)
		if r.leading {
			r.planView(n)
		}
	}
	for _, p := range a.Persist {
		s.writes = append(s.writes, Write{Group: r.group, Records: p.Records})
		s.persists = append(s.persists, persist{replica: r, seq: p.Seq, sync: p.Sync})
	}
	for _, t := range a.Timers {
		key := timerKey{r, t.Kind}
		if t.After < 0 {
			s.timers.Stop(key)
			continue
		}
		*r.epochOf(t.Kind) = t.Epoch
		s.timers.Set(key, s.due(t))
	}
	for _, m := range a.Send {
		if m.After > r.storedTo {
			r.held = append(r.held, m)
		} else {
			r.send(m)
		}
	}
	if r.seat != nil && len(a.Prospects) > 0 {
		r.seat.foresee(a.Prospects)
	}
	for _, in := range a.Install {
		first := before
		for _, n := range a.Views {
			if n.Index == in.Index {
				first = n.View
			}
		}
		r.install(in, first)
	}
	if len(a.Deliver) > 0 {
		if r.lags(a) {
			r.lagging = append(r.lagging, a.Deliver...)
		} else {
			r.deliver(a.Deliver)
		}
	}
	for _, d := range a.Done {
		r.done(d)
	}
	for _, p := range a.ReadOK {
		r.readOK(p)
	}
	if a.Halt != nil {
		r.halt(a.Halt.Reason)
	}
}

// lags reports whether entries are executed only when what came with them is stored and acknowledged, which is what a leader waits for: as
// a rule an append brings the news that the entry before it is committed. Who follows need not execute it first. It does so in
// the same turn, before the engine learns that the write is done.
func (r *replica) lags(a *order.Actions) bool {
	return r.shard.prompt && !r.leading && len(a.Persist) > 0 && len(a.Views)+len(a.Install)+len(a.Done)+len(a.ReadOK) == 0 && a.Halt == nil
}

// release lets go of the messages that waited for a persist, which is stored.
func (r *replica) release(seq uint64) {
	invariant.Check(seq > r.storedTo, "persists are stored in order", seq)
	r.storedTo = seq
	n := 0
	for n < len(r.held) && r.held[n].After <= seq {
		r.send(r.held[n])
		n++
	}
	r.held = append(r.held[:0], r.held[n:]...)
}

func (r *replica) send(m order.Send) {
	if to, ok := r.member(m.To); ok && to.PeerID != "" {
		r.shard.send(peer.ID(to.PeerID), r, m, to.Store)
	}
}

// install replaces the machines' state by the leader's snapshot, which is of a view. Without data it is the empty one, which a replica
// that has only just joined has.
func (r *replica) install(in order.Install, view order.View) {
	if in.Data == nil {
		invariant.Check(r.applied <= in.Index, "only an empty machine begins at the beginning", r.applied)
		r.state().FirstView(view)
	} else if err := r.state().Restore(in.Data); err != nil {
		r.halt("snapshot of the leader cannot be read: " + err.Error())
		return
	}
	r.applied, r.gathered, r.gatheredBytes = in.Index, 0, 0
	if r.seat != nil {
		r.seat.follow()
	}
	r.step(order.Applied{Index: in.Index})
}

// deliver executes entries in order, answers who waits for them, and reports them applied.
func (r *replica) deliver(entries []order.Entry) {
	s := r.shard
	_, leading := r.engine.Leader()
	commands := uint64(0)
	for _, e := range entries {
		invariant.Check(e.Index == r.applied+1, "entries are delivered without gaps", e.Index)
		s.outputs.Reset()
		res := r.state().Apply(e, &s.outputs)
		r.applied = e.Index
		if r.seat != nil {
			r.seat.follow()
		}
		if e.Kind == order.Normal {
			if e.Cmd.Service != session.TickService {
				commands++
			}
			if res.Status == session.Moved {
				r.answer(keyOf(e.Cmd), marshal(r.keyMoved(e.Cmd.Service, e.Cmd.Data, false)))
			}
			r.result(keyOf(e.Cmd), statusToPB(res.Status), res.Data)
			if e.Cmd.Service == placement.OwnService {
				r.ownChanged()
			}
		}
		if leading && s.host.leaders != nil && len(s.outputs.List) > 0 {
			r.executed(&s.outputs)
		}
		if leading && len(s.outputs.List) > 0 {
			if r.leased() {
				s.host.push(r.group, &s.outputs)
			}
			r.resendLater()
		}
		r.gathered++
		r.gatheredBytes += len(e.Cmd.Data)
		if r.gathered >= compactEvery || r.gatheredBytes >= compactBytes {
			// Where a snapshot is taken depends on the log alone, so those of all replicas are alike, and a transfer that one of them
			// began can be continued by another.
			r.gathered, r.gatheredBytes = 0, 0
			r.step(order.Applied{Index: r.applied})
			r.step(order.Compact{Index: r.applied, Data: r.state().Snapshot()})
			s.host.counters.snapshots.Add(1)
		}
	}
	if leading && commands > 0 {
		s.host.counters.commands.Add(commands)
	}
	r.serveBlocked()
	if r.desk != nil {
		r.desk.open()
	}
	r.step(order.Applied{Index: r.applied})
}

// result answers everybody who waits for a command that was executed.
func (r *replica) result(key commandKey, status pb.Status, data []byte) {
	if _, ok := r.waiting[key]; ok {
		if !r.leased() { // it has taken effect, and who asks again will hear of it from whoever may answer
			r.answer(key, marshal(&pb.Reply{Status: pb.Status_DROPPED}))
			return
		}
		r.shard.reply = appendResult(r.shard.reply[:0], status, data)
		r.answer(key, r.shard.reply)
	}
}

// answer replies to everybody who waits for a command. Callers copy the reply.
func (r *replica) answer(key commandKey, reply []byte) {
	calls, ok := r.waiting[key]
	if !ok {
		return
	}
	delete(r.waiting, key)
	r.waiters -= int32(len(calls))
	r.took(key)
	for _, c := range calls {
		c.Reply(reply)
	}
	r.over(key.author)
}

func (r *replica) done(d order.Outcome) {
	if q, ok := r.reads[d.Ref]; ok {
		delete(r.reads, d.Ref)
		r.waiters--
		q.call.Reply(marshal(r.failed(d.Err)))
		r.over(q.from)
		return
	}
	if r.desk != nil && r.desk.ref == d.Ref {
		r.desk.failed()
		return
	}
	key, ok := r.proposals[d.Ref]
	if !ok && r.planDone(d) {
		return
	}
	if !ok {
		r.ticking = false // a tick has no waiter, and its outcome comes with its delivery
		return
	}
	delete(r.proposals, d.Ref)
	switch own := key.seq == 0 && key.client == (order.ClientID{}); {
	case key.session == ledCommand && key.client == (order.ClientID{}):
		if r.desk != nil {
			r.desk.done(key.seq, d.Err)
		}
	case own && key.session == ownCommand:
		r.seat.own--
	case own && key.session == inputCommand:
		r.inputs--
	case d.Err != nil:
		r.answer(key, marshal(r.failed(d.Err)))
	}
}

// failed is the answer to a command or query that the engine did not take through.
func (r *replica) failed(err error) *pb.Reply {
	switch err {
	case order.ErrNotLeader:
		return r.notLeader()
	case order.ErrBusy:
		return busy()
	}
	reply := r.notLeader()
	reply.Status = pb.Status_DROPPED
	return reply
}

func (r *replica) notLeader() *pb.Reply {
	reply := &pb.Reply{Status: pb.Status_NOT_LEADER}
	leader, _ := r.engine.Leader()
	if m, ok := r.view.Member(leader); ok && leader != r.self {
		reply.Leader = m.Peer[:]
	}
	return reply
}

// ready says whether this replica can take a request, and answers it when not. The log gives commands their order in whatever
// view, so who asks with another one in mind is served and told of the present one.
func (r *replica) ready(call caller) bool {
	switch {
	case r.halted:
		r.shard.host.absent(r.group, call)
	case !r.leading:
		call.Reply(marshal(r.notLeader()))
	case !r.leased():
		call.Reply(marshal(noLease()))
	default:
		return true
	}
	return false
}

func busy() *pb.Reply { return &pb.Reply{Status: pb.Status_BUSY} }

// propose proposes a command, unless the same one is under way here, whose answer then serves both.
func (r *replica) propose(e *commandEvent) bool {
	key := keyOf(e.cmd)
	calls, under := r.waiting[key]
	if r.waiting == nil {
		r.waiting, r.proposals = make(map[commandKey][]caller), make(map[uint64]commandKey)
	}
	r.waiting[key] = append(calls, e.call)
	if under {
		return false
	}
	r.nextRef++
	r.proposals[r.nextRef] = key
	r.sample(key)
	r.gather(order.Propose{Ref: r.nextRef, Stamp: r.shard.stamp(), Cmd: e.cmd})
	return true
}

// gather has a command proposed with the others of this turn.
func (r *replica) gather(p order.Propose) {
	if len(r.proposing) == 0 {
		r.shard.proposers = append(r.shard.proposers, r)
		r.proposing, r.shard.spare = r.shard.spare, nil
	}
	r.proposing = append(r.proposing, p)
}

// proposeAll proposes what has gathered. What comes of it may gather more.
func (r *replica) proposeAll() {
	all := r.proposing
	r.proposing = nil
	if r.granting != nil {
		all = r.granting.allowed(all)
	}
	r.step(order.ProposeAll{List: all})
	clear(all)
	r.shard.spare = all[:0]
}

func (r *replica) read(e *queryEvent) bool {
	r.nextRef++
	if r.reads == nil {
		r.reads = make(map[uint64]*queryEvent)
	}
	r.reads[r.nextRef] = e
	r.step(order.Read{Ref: r.nextRef, Now: time.Duration(r.shard.now)})
	return true
}

func (r *replica) readOK(p order.ReadPoint) {
	q, ok := r.reads[p.Ref]
	if !ok && r.desk != nil && r.desk.ref == p.Ref {
		r.desk.readOK(p)
	}
	if !ok {
		return
	}
	delete(r.reads, p.Ref)
	if r.applied < p.Index {
		rare := r.rarely()
		rare.blocked = append(rare.blocked, blockedRead{p.Index, q})
		return
	}
	r.serve(q)
}

func (r *replica) serveBlocked() {
	rare := r.rare
	if rare == nil {
		return
	}
	keep := rare.blocked[:0]
	for _, b := range rare.blocked {
		if b.index <= r.applied {
			r.serve(b.query)
		} else {
			keep = append(keep, b)
		}
	}
	clear(rare.blocked[len(keep):])
	rare.blocked = keep
}

func (r *replica) serve(q *queryEvent) {
	r.waiters--
	status, data := r.state().Query(q.service, q.from, q.data)
	if status == session.Moved {
		q.call.Reply(marshal(r.keyMoved(q.service, q.data, true)))
	} else if r.leased() {
		q.call.Reply(marshal(&pb.Reply{Status: statusToPB(status), Data: data}))
	} else {
		q.call.Reply(marshal(noLease()))
	}
	r.over(q.from)
}

// expired handles a timer that has run out.
func (r *replica) expired(kind order.TimerKind) {
	switch kind {
	case timerDeadline:
		r.tick()
	case timerResend:
		r.resend()
	case timerNews:
		r.askNews()
	case timerParting:
		r.part()
	case timerPlan:
		r.planExpired()
	case timerLease:
		r.granting.step(placement.Wake{})
	case timerDesk:
		if r.desk != nil {
			r.desk.expired()
		}
		if !r.awake {
			r.park()
		}
	case timerVoter:
		if r.seat.voter.Expire(); !r.awake {
			r.park()
		}
	default:
		r.step(order.Timer{Kind: kind, Epoch: *r.epochOf(kind), Now: time.Duration(r.shard.now)})
	}
	r.afterStep()
}

// afterStep notices a change of leadership and keeps the host's own timers in step with the machines.
func (r *replica) afterStep() {
	leader, leading := r.engine.Leader()
	leading = leading && !r.halted
	stirred := r.stir()
	r.noteLeader(leader)
	if leading != r.leading {
		r.leading = leading
		r.ticking = false
		if r.lease != nil {
			r.shard.host.leases.lead(r, leading)
		}
		if r.granting != nil {
			r.granting.lead(leading)
		}
		if leading {
			r.planBegin()
		} else {
			r.planEnd()
		}
		if r.group.Prefix.Len == 0 {
			r.shard.host.creator.feed(placement.LeaderChange{Leading: leading, Unstarted: r.directory().Unstarted()})
		}
		r.ringLeads(leading)
		if leading {
			r.ledSince = r.shard.host.clock.Now()
			if l := r.shard.host.leaders; l != nil && r.group.Prefix.Len > 0 && (r.table != nil || len(r.parked) > 0) && l.Used(r.state().Machine(l.Service())) {
				r.lead()
			}
			log.Debugw("leading", "group", r.group, "view", r.view.Num, "applied", r.applied)
			// The first stamp of a new leader adds nothing to log time; what comes after it does.
			r.tick()
			r.resend()
			if r.shard.host.reseeded() {
				r.shard.host.auditDue() // the new root may not know of this group
			}
		} else {
			r.unlead()
			r.shard.timers.Stop(timerKey{r, timerDeadline})
			r.shard.timers.Stop(timerKey{r, timerResend})
			r.resending = false
		}
	}
	if r.leading && r.table != nil { // else nothing was executed
		r.armDeadline()
	}
	if stirred && !r.awake {
		r.park()
	}
	if stirred { // last, since what the plan then does may lead back here
		r.planStirred()
	}
}

// armDeadline keeps the timer at the moment an entry would have something to end.
func (r *replica) armDeadline() {
	key := timerKey{r, timerDeadline}
	after, ok := r.state().NextTick(r.shard.stamp())
	if !ok || r.ticking {
		r.shard.timers.Stop(key)
		return
	}
	r.shard.timers.Set(key, r.shard.now.Add(max(after, tickPause)))
}

// tick proposes an entry that carries nothing but the leader's time, so that what is over by now ends.
func (r *replica) tick() {
	if !r.leading || r.ticking {
		return
	}
	r.ticking = true
	r.nextRef++
	r.step(order.Propose{Ref: r.nextRef, Stamp: r.shard.stamp(), Cmd: order.Command{Service: session.TickService}})
}

// resend pushes again what the machines still await an effect of: a new leader does so at once, since its predecessor may
// have died before it sent, and every leader from time to time, since pushes may be lost. It ends when there is nothing left.
func (r *replica) resend() {
	r.resending = false
	if !r.leading {
		return
	}
	s := r.shard
	s.outputs.Reset()
	r.state().Resend(&s.outputs)
	if len(s.outputs.List) > 0 {
		if r.leased() {
			s.host.push(r.group, &s.outputs)
		}
		r.resendLater()
	}
}

func (r *replica) resendLater() {
	if !r.resending {
		r.resending = true
		r.shard.timers.Set(timerKey{r, timerResend}, r.shard.now.Add(resendEvery))
	}
}

// halt stops the replica for good; the rest of the host goes on.
func (r *replica) halt(reason string) {
	if r.halted {
		return
	}
	r.halted = true
	if r.lease != nil {
		r.shard.host.leases.lead(r, false)
	}
	if r.granting != nil {
		r.granting.lead(false)
	}
	r.ringLeads(false)
	r.unlead()
	if reason == order.Removed {
		r.shard.parting = append(r.shard.parting, r)
	} else {
		log.Errorw("replica halted; the group goes on without it", "group", r.group, "replica", r.self, "reason", reason)
	}
	for key := range r.waiting {
		r.answer(key, marshal(&pb.Reply{Status: pb.Status_DROPPED}))
	}
	for _, q := range r.reads {
		q.call.Reply(marshal(&pb.Reply{Status: pb.Status_NOT_HERE}))
	}
	for _, b := range r.rarely().blocked {
		b.query.call.Reply(marshal(&pb.Reply{Status: pb.Status_NOT_HERE}))
	}
	clear(r.reads)
	r.rare.blocked, r.held = nil, nil
	r.disperse()
	for _, kind := range hostTimers {
		r.shard.timers.Stop(timerKey{r, kind})
	}
	for _, e := range r.epochs {
		r.shard.timers.Stop(timerKey{r, e.kind})
	}
}

// newReplica makes a replica around an engine and machines of its own.
func newReplica(self order.ReplicaID, d *placement.Descriptor, engine order.Orderer, machines map[string]session.Machine, drift automaton.Drift) *replica {
	status := engine.Status()
	if v := status.View; v.Num == d.View.Num && v.Next == d.View.Next && slices.Equal(v.Members, d.View.Members) {
		status.View = d.View // which may be shared by many
	}
	table := session.NewTable(drift, machines)
	if status.Applied > 0 { // else it joins, and its log begins with what it is sent
		table.FirstView(status.View)
	}
	return &replica{
		applied: status.Applied, // the log begins above this
		group:   d.Group, self: self, view: status.View, descriptor: d, engine: engine,
		awake: true, later: d, table: table,
	}
}
