package replicagroup

import (
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/session"
)

// A service may have something to do at the leader of a group alone, in memory: to know who has copies of what the group's machine keeps,
// for instance. What does it is a [Leader]: one for each time that a replica leads, from when it has applied the first entry of its term,
// and so everything that former leaders had acknowledged. It runs in the turns of the replica's shard. It hears what the machine has executed, in
// the log's order, and messages and time; it answers nodes, proposes commands of the group's own, and asks whether it leads still.
//
// There is one only while there is something for it to do: from the first message, or from the first entry of the service, until it is idle in
// a group that sleeps. A message wakes nothing; what the leader then asks for may.

// LeaderService makes the leaders of one service of the prefixes' groups, and reads their messages. Its methods may be called by several
// goroutines at once.
type LeaderService interface {
	// Service names the service: what its machine posts is for the leader, and the commands that it proposes go to the machine.
	Service() string
	// Asks and Answers name the overlay's services by which messages come to leaders and go to nodes, one way.
	Asks() string
	Answers() string
	// Read decodes a message. An error resets the peer's stream.
	Read(from keyspace.NodeID, data []byte) (to order.GroupID, msg any, err error)
	// New makes the leader of a group: elected is when the replica knew that it leads, confirmed an instant before which nobody else had
	// been elected since.
	New(d *Desk, elected, confirmed automaton.Instant) Leader
	// Used reports whether a machine needs a leader though nobody has asked for anything.
	Used(m session.Machine) bool
	// Decline encodes the answer to a message that nobody here takes.
	Decline(to order.GroupID, e Elsewhere) []byte
}

// Leader does what a service does at the leader of one group. Its methods are called one at a time, on several goroutines, and must not
// block.
type Leader interface {
	// Executed tells what the machine has posted of an entry, which it has executed, and none after it.
	Executed(posted any)
	// Failed tells that a command proposed as n may have come to nothing. It may be told more than once.
	Failed(n uint64)
	// Confirmed answers [Desk.Confirm]: at the instant of asking nobody else had been elected.
	Confirmed(at automaton.Instant)
	// Unconfirmed tells that [Desk.Confirm] is not answered: it may be asked again.
	Unconfirmed()
	// Receive takes a message of an authenticated peer.
	Receive(from keyspace.NodeID, msg any)
	// Expire tells that the time of [Desk.Arm] has come.
	Expire()
	// Idle reports whether it has nothing that a later leader would not have, so that it may end while this replica leads.
	Idle() bool
	// End tells that it is over. It may say so to nodes by [Desk.Dismiss], and do nothing else.
	End()
}

// Elsewhere says why a message was not taken.
type Elsewhere struct {
	Why        Why
	Leader     keyspace.NodeID // zero: not known
	Descriptor []byte          // of the group, encoded; nil: not known
}

// Why says why a message was not taken.
type Why uint8

// The reasons.
const (
	NotLeading Why = iota + 1 // the replica here does not lead
	NotHosted                 // there is no replica of that generation here
	GoneBy                    // that generation is over
	TooMuch                   // too much of that peer waits here, or the group may not answer now
)

// Limits of what nodes may have a leader do.
const (
	// leaderMessagesMax and leaderBytesMax bound the messages of one peer to leaders that wait for their shards. More are declined.
	leaderMessagesMax = 1024
	leaderBytesMax    = 16 << 20
	// openingMax and openingBytesMax bound the messages that wait until a leader has applied the first entry of its term. More are declined.
	openingMax      = 1024
	openingBytesMax = 16 << 20
	// ledProposalsMax bounds the commands of one leader that are proposed and not executed. [Desk.Propose] takes no more.
	ledProposalsMax = 2048
)

// openingRetry is how long a replica waits before it asks again whether it leads.
const openingRetry = 100 * time.Millisecond

// Desk is a leader's place at its replica. Its methods are called from the leader's own methods only.
type Desk struct {
	r        *replica
	leader   Leader // nil until the replica has applied the first entry of its term
	elected  automaton.Instant
	term     uint64
	jumps    uint64            // of the clock
	anew     uint64            // how often it has begun again in this term
	ref      uint64            // of the read under way; 0: none
	asked    automaton.Instant // when it was asked for
	point    uint64            // that is to be applied before leader begins; 0: not known
	proposed int               // commands under way
	waiting  []*leadEvent      // until leader begins
	bytes    int               // of them
}

// Group returns the group.
func (d *Desk) Group() order.GroupID { return d.r.group }

// Term returns a number that is higher than that of every earlier leader of this generation of the group.
func (d *Desk) Term() uint64 { return d.term<<16 | d.anew&0xffff }

// Now returns the time of what is being handled: after whatever led to it, by the host's clock.
func (d *Desk) Now() automaton.Instant { return d.r.shard.now }

// Machine returns the service's machine, as of the last entry executed. It is not to be changed.
func (d *Desk) Machine() session.Machine {
	return d.r.state().Machine(d.r.shard.host.leaders.Service())
}

// Send sends a message to a node. It may be lost: among others, it is where the group must have the root's lease to answer, and has none. It
// does not block.
func (d *Desk) Send(to keyspace.NodeID, msg []byte) {
	if d.r.leased() {
		d.r.shard.host.sendLed(to, msg)
	}
}

// Dismiss tells a node that this replica does not lead any more.
func (d *Desk) Dismiss(to keyspace.NodeID) {
	h := d.r.shard.host
	h.sendLed(to, h.leaders.Decline(d.r.group, d.r.elsewhere(NotLeading)))
}

// Arm asks for [Leader.Expire] at an instant, in place of the one asked for before; [automaton.Never] is none.
func (d *Desk) Arm(at automaton.Instant) {
	key := timerKey{d.r, timerDesk}
	if d.r.desk != d { // it has ended meanwhile, and the timer is another one's
		return
	}
	if at == automaton.Never {
		d.r.shard.timers.Stop(key)
	} else {
		d.r.shard.timers.Set(key, at)
	}
}

// Confirm asks whether this replica leads still. One question is under way at a time; further ones are the same. It wakes a group that sleeps.
func (d *Desk) Confirm() {
	r := d.r
	if d.ref != 0 || r.desk != d {
		return
	}
	r.nextRef++
	d.ref, d.asked = r.nextRef, r.shard.now
	r.step(order.Read{Ref: d.ref, Now: r.shardTime()})
}

// Propose proposes commands of the group's own, one behind the other and none between them of this leader, under a number that
// [Leader.Failed] names if one of them may be lost. Each is at most [order.DataBytesMax] long. It is false, and does nothing, where
// there is no room for all. It wakes a group that sleeps.
func (d *Desk) Propose(n uint64, commands ...[]byte) bool {
	if d.r.desk != d || d.proposed+len(commands) > ledProposalsMax {
		return false
	}
	r, h := d.r, d.r.shard.host
	if r.proposals == nil {
		r.waiting, r.proposals = make(map[commandKey][]caller), make(map[uint64]commandKey)
	}
	for _, data := range commands {
		d.proposed++
		r.nextRef++
		r.proposals[r.nextRef] = commandKey{session: ledCommand, seq: n}
		r.gather(order.Propose{Ref: r.nextRef, Stamp: r.shard.stamp(), Cmd: order.Command{Author: h.overlay.Node(), Service: h.leaders.Service(), Data: data}})
	}
	return true
}

// ledCommand marks the proposals of leaders, whose sequence number is that of the proposal.
const ledCommand = "led"

// shardTime is the time of this turn as engines are told it.
func (r *replica) shardTime() time.Duration { return time.Duration(r.shard.now) }

// lead has the replica's leader begin, unless it has or nobody leads here.
func (r *replica) lead() {
	h := r.shard.host
	if h.leaders == nil || r.desk != nil || !r.leading || r.halted || r.group.Prefix.Len == 0 {
		return
	}
	r.desk = &Desk{r: r, elected: r.ledSince, term: r.engine.Status().Term, jumps: h.clock.Jumps()}
	r.desk.Confirm()
}

// unlead ends the replica's leader.
func (r *replica) unlead() {
	d := r.desk
	if d == nil {
		return
	}
	r.desk = nil
	r.shard.timers.Stop(timerKey{r, timerDesk})
	if d.leader != nil {
		d.leader.End()
	}
	for _, e := range d.waiting {
		r.shard.host.decline(e, r.elsewhere(NotLeading))
	}
}

// elsewhere says of a group who leads it.
func (r *replica) elsewhere(why Why) Elsewhere {
	e := Elsewhere{Why: why, Descriptor: r.encoded()}
	leader, _ := r.engine.Leader()
	if m, ok := r.view.Member(leader); ok && leader != r.self {
		e.Leader = m.Peer
	}
	return e
}

// current is false where the clock may have stood still while the machine slept: whoever counts by it has to begin anew, as a later leader.
func (d *Desk) current() bool {
	r, h := d.r, d.r.shard.host
	jumps := h.clock.Jumps()
	if jumps == d.jumps {
		return true
	}
	anew := d.anew + 1
	r.unlead()
	if !r.leading || r.halted {
		return false
	}
	r.ledSince = h.clock.Now()
	r.desk = &Desk{r: r, elected: r.ledSince, term: d.term, anew: anew, jumps: jumps, proposed: d.proposed}
	r.desk.Confirm()
	return false
}

// readOK takes an answer to Confirm.
func (d *Desk) readOK(p order.ReadPoint) {
	d.ref = 0
	switch {
	case !d.current():
	case d.leader != nil:
		d.leader.Confirmed(d.asked)
	default:
		d.point = max(p.Index, 1)
		d.open()
	}
}

// open has the leader begin once everything is applied that was committed when it asked. The first entry of its term is, before it
// may ask. What an earlier leader of its term has proposed comes first: nobody would tell it of that.
func (d *Desk) open() {
	if d.leader != nil || d.point == 0 || d.r.applied < d.point || d.proposed > 0 {
		return
	}
	d.leader = d.r.shard.host.leaders.New(d, d.elected, d.asked)
	waiting := d.waiting
	d.waiting, d.bytes = nil, 0
	for _, e := range waiting {
		d.leader.Receive(e.from, e.msg)
	}
}

// receive takes a message, or reports that there is no room.
func (d *Desk) receive(e *leadEvent) bool {
	if d.leader != nil {
		d.leader.Receive(e.from, e.msg)
		return true
	}
	if len(d.waiting) >= openingMax || d.bytes+e.bytes > openingBytesMax {
		return false
	}
	d.waiting, d.bytes = append(d.waiting, e), d.bytes+e.bytes
	return true
}

// expired handles the desk's timer.
func (d *Desk) expired() {
	switch {
	case !d.current():
	case d.leader != nil:
		d.leader.Expire()
	default:
		d.Confirm()
	}
}

// failed takes the engine's answer to a question that it did not answer.
func (d *Desk) failed() {
	if d.ref = 0; d.leader == nil {
		d.Arm(d.Now().Add(openingRetry))
	} else if d.current() {
		d.leader.Unconfirmed()
	}
}

// done takes what became of a command.
func (d *Desk) done(n uint64, err error) {
	d.proposed = max(0, d.proposed-1) // of an earlier leader there may be some, too
	switch {
	case d.leader == nil:
		d.open()
	case err != nil:
		d.leader.Failed(n)
	}
}

// executed hands over what the leader's machine has posted, and takes it out of outs.
func (r *replica) executed(outs *session.Outputs) {
	service, kept := r.shard.host.leaders.Service(), outs.List[:0]
	for _, o := range outs.List {
		if o.Posted == nil || o.Service != service {
			kept = append(kept, o)
			continue
		}
		r.lead()
		if r.desk != nil && r.desk.leader != nil && r.desk.current() {
			r.desk.leader.Executed(o.Posted)
		}
	}
	clear(outs.List[len(kept):])
	outs.List = kept
}

// leadEvent is a message for a group's leader.
type leadEvent struct {
	peer  peer.ID
	from  keyspace.NodeID
	bytes int
	group order.GroupID
	msg   any
}

func (e *leadEvent) handle(s *shard) {
	s.host.leaderLoads.release(e.peer, e.bytes)
	e.deliver(s)
}

// leadNow is a message that was not put into the mailbox.
type leadNow struct{ *leadEvent }

func (e leadNow) lone(*shard) bool { return e.bytes <= nowBytesMax }

func (e leadNow) handle(s *shard) { e.deliver(s) }

func (e *leadEvent) deliver(s *shard) {
	h := s.host
	r, ok := s.replicas[e.group.Life()]
	if !ok || r.halted || r.group.Prefix.Len == 0 {
		h.declineAbsent(e)
		return
	}
	r.decide()
	switch {
	case !r.leading:
		h.decline(e, r.elsewhere(NotLeading))
	case !r.leased():
		h.decline(e, r.elsewhere(TooMuch))
	default:
		r.lead()
		if r.desk != nil {
			r.desk.current()
		}
		if d := r.desk; d == nil { // it has ceased to lead this moment
			h.decline(e, r.elsewhere(NotLeading))
		} else if !d.receive(e) {
			h.decline(e, r.elsewhere(TooMuch))
		}
	}
}

// declineAbsent answers a message for a group that has no replica here, with the best hint this peer has.
func (h *Host) declineAbsent(e *leadEvent) {
	h.rumour(e.group)
	w := Elsewhere{Why: NotHosted}
	if d, ok := h.locator.cached(e.group.Prefix); ok {
		w.Descriptor = encodeDescriptor(d)
		if d.Group.Gen > e.group.Gen {
			w.Why = GoneBy
		}
	}
	h.decline(e, w)
}

func (h *Host) decline(e *leadEvent, w Elsewhere) {
	h.counters.ledDeclined.Add(1)
	h.sendLed(e.from, h.leaders.Decline(e.group, w))
}

// sendLed sends a leader's message to a node.
func (h *Host) sendLed(to keyspace.NodeID, msg []byte) {
	p, ok := h.overlay.PeerOf(to)
	if !ok {
		return
	}
	if err := h.overlay.Send(p, keyspace.Key{}, h.leaders.Answers(), msg); err != nil {
		log.Debugw("a leader's message is lost", "peer", p, "err", err)
	}
}

// handleLead takes messages to leaders.
func (h *Host) handleLead(req *dht.Request) error {
	if !req.OneWay() {
		return malformed("a message to a leader awaits an answer")
	}
	from := req.Node()
	to, msg, err := h.leaders.Read(from, req.Data)
	if err != nil {
		return err
	}
	to.Overlay = h.id
	e := &leadEvent{peer: req.From, from: from, bytes: len(req.Data), group: to, msg: msg}
	s := h.shardOf(e.group)
	if s.handleNow(leadNow{e}) {
		return nil
	}
	if !h.leaderLoads.takeAtMost(e.peer, e.bytes, leaderMessagesMax, leaderBytesMax) {
		h.decline(e, Elsewhere{Why: TooMuch})
	} else if !s.box.TryPut(e) {
		h.leaderLoads.release(e.peer, e.bytes)
		h.decline(e, Elsewhere{Why: TooMuch})
	}
	return nil
}
