package replicagroup

import (
	"context"
	"encoding/binary"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/internal/protofield"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/pb"
	"latchkey/replicagroup/placement"
	"latchkey/replicagroup/session"
)

// A service may ask more of a group's members than to execute its log: protocols in which the voters of a view answer by themselves,
// without the log, and need it only to agree on the views. What runs there, beside the log, is a [Voter]: one at each replica of the
// group, in the turns of the replica's shard. It hears in the log's order of what the service's machine has executed, of what
// stands in the local log and is not executed, of messages and of time; it answers peers, and has the group's leader propose commands
// of the group's own.
//
// A group that sleeps is not woken by messages to its voters, nor by their answers and timers: ordering is at rest, and voters are
// not. Only what they have proposed, and the question whether they have caught up after a start, wakes it.

// VoterService makes the voters of one service of the prefixes' groups, and reads their messages. Its methods may be called by several
// goroutines at once.
type VoterService interface {
	// Service names the service: its machine is what the voters follow, and the commands of the group's own go to it.
	Service() string
	// Overlay names the overlay's service by which the messages of voters and of their clients travel, one way.
	Overlay() string
	// Read decodes a message. Where mine is false it is for no voter, and Read has passed it on itself; it must not block. An error
	// resets the peer's stream.
	Read(from keyspace.NodeID, data []byte) (to order.GroupID, msg any, mine bool, err error)
	// Free takes back a message of Read of which the host has no more use: what handles it keeps nothing of it beyond its call. Not every
	// message comes back.
	Free(msg any)
	// New makes the voter of a replica that starts. Its methods and this are never called at the same time.
	New(s *Seat) Voter
	// Absent answers a message for a group that has no replica here. send is [Seat.Send].
	Absent(from keyspace.NodeID, to order.GroupID, msg any, send func(to keyspace.NodeID, msg []byte))
}

// Voter runs beside the log at one replica. Its methods are called one at a time, on several goroutines, and must not block.
type Voter interface {
	// Follow tells that the machine has executed an entry, or has had its state replaced by a snapshot.
	Follow()
	// Foresee tells that [Seat.Prospects] has changed, but for those that the machine has executed.
	Foresee()
	// CaughtUp answers [Seat.CatchUp]: everything that was committed when it was called, the machine has executed.
	CaughtUp()
	// Receive takes a message of an authenticated peer.
	Receive(from keyspace.NodeID, msg any)
	// Expire tells that the time of [Seat.Arm] has come.
	Expire()
	// Lost tells that the last connection to a peer has gone, or that the peer is suspected of having stopped. Either may be wrong, and nobody
	// says when it was.
	Lost(n keyspace.NodeID)
	// Vet reports, at the leader, whether a command of the group's own that a member's voter asks for is to be proposed.
	Vet(author keyspace.NodeID, data []byte) bool
	// Ready reports, at the leader, whether it is time for another change of the voters, as far as this voter knows. A while later it is
	// asked again; nothing but a plan's own changes waits for it, and it must not be false for long.
	Ready() bool
	// Idle reports whether this voter has nothing, so that nobody minds if [Seat.Machine] is another one with the same state from now on,
	// of which nothing has been followed. Where the group sleeps the machine is put away then until somebody asks for it.
	Idle() bool
}

// Under policy lease a group answers only while the root grants it a lease (leases.go), and so must its voters, each by itself. The
// leader has the lease; a voter asks it how long it will last when somebody wants something of the voter, and before it is over
// if somebody still does. Who asks a voter that has not been asked for long waits for that.
type voterLease struct {
	until   automaton.Instant
	jumps   uint64 // of the clock, when it was asked for
	asked   automaton.Instant
	waiting []*voterEvent // for the leader's answer
}

// voterWaitingMax bounds the messages that wait at one voter until it knows of its group's lease. More are dropped.
const voterWaitingMax = 256

// leased reports whether what this voter says may leave.
func (s *Seat) leased() bool {
	r, l := s.r, s.lease
	switch {
	case r.lease == nil:
		return true
	case r.leading:
		return r.leased()
	}
	c := r.shard.host.clock
	return c.Now() < l.until && c.Jumps() == l.jumps
}

// receive hands a message to the voter, as soon as it may answer. It answers whether that is now.
func (s *Seat) receive(e *voterEvent) bool {
	if s.r.lease != nil && !s.r.leading && s.lease.until.Sub(s.Now()) < s.r.shard.host.genesis.Lease/2 {
		s.askLease()
	}
	switch {
	case s.leased():
		s.voter.Receive(e.from, e.msg)
	case len(s.lease.waiting) < voterWaitingMax:
		s.lease.waiting = append(s.lease.waiting, e)
		return false
	default:
		s.r.shard.host.counters.voterDropped.Add(1)
	}
	return true
}

// askLease asks the leader how long the group's lease lasts.
func (s *Seat) askLease() {
	r, l := s.r, s.lease
	now, h := s.Now(), s.r.shard.host
	leader, _ := r.engine.Leader()
	m, ok := r.member(leader)
	if !ok || l.asked != 0 && now.Sub(l.asked) < leaseAskPause {
		return
	}
	l.asked = now
	box, group, jumps := r.shard.box, r.group, h.clock.Jumps()
	h.overlay.Go(peer.ID(m.PeerID), keyspace.Key{}, serviceVoterLease, appendGroup(nil, 1, group), askTimeout, func(b []byte, err error) {
		if err == nil && len(b) == 8 {
			// Its clock and this one may be off, each by the bound.
			left := min(time.Duration(binary.BigEndian.Uint64(b)), h.genesis.Lease)
			box.Put(voterLeaseEvent{group, now.Add(h.genesis.Drift.Shrink(h.genesis.Drift.Shrink(max(left, 0)))), jumps})
		}
	})
}

// leaseAskPause is the shortest time between two such questions of one voter.
const leaseAskPause = 100 * time.Millisecond

// voterLeaseEvent is the leader's answer.
type voterLeaseEvent struct {
	group order.GroupID
	until automaton.Instant
	jumps uint64
}

func (e voterLeaseEvent) handle(s *shard) {
	r, ok := s.replicas[e.group.Life()]
	if !ok || r.seat == nil || r.seat.lease == nil || r.halted {
		return
	}
	l := r.seat.lease
	l.until, l.jumps = e.until, e.jumps
	waiting := l.waiting
	l.waiting = nil
	for _, w := range waiting {
		if r.seat.receive(w) {
			w.free(s.host)
		}
	}
}

// leaseAskEvent is a voter's question to the leader.
type leaseAskEvent struct {
	group order.GroupID
	from  keyspace.NodeID
	call  caller
}

func (e leaseAskEvent) handle(s *shard) {
	var left []byte
	if r, ok := s.replicas[e.group.Life()]; ok && r.leading && r.lease != nil && r.leased() {
		_, is := r.view.MemberAt(e.from)
		if l := r.lease.Load(); is && l != nil { // it may have been taken away this moment
			left = binary.BigEndian.AppendUint64(nil, uint64(max(0, l.until.Sub(s.now))))
		}
	}
	e.call.Reply(left)
}

// handleVoterLease answers how long the lease of a group lasts that is led here: nothing, where it has none.
func (h *Host) handleVoterLease(req *dht.Request) error {
	group, _, err := h.decode.ownFrame(req.Data)
	if err == nil {
		h.submit(group, leaseAskEvent{group, dht.NodeIDOf(req.From), req}, req)
	}
	return err
}

// Services of the overlay by which the voters' hosts speak to the leader's.
const (
	servicePropose    = "group/propose"
	serviceVoterLease = "group/voterlease"
)

// Limits of what peers may have voters do.
const (
	// voterMessagesMax and voterBytesMax bound the messages of one peer to voters that wait for their shards. More are dropped, and
	// whoever wants an answer asks again.
	voterMessagesMax = 2048
	voterBytesMax    = 16 << 20
	// ownProposalsMax bounds the commands of the group's own that one replica has proposed and that are not executed. More are
	// dropped, and their voters ask again.
	ownProposalsMax = 256
	// catchUpRetry is how long a replica waits before it asks again how far the log is committed.
	catchUpRetry = time.Second
)

// Seat is a voter's place at its replica. Its methods are called from the voter's own methods only.
type Seat struct {
	r         *replica
	service   string
	voter     Voter
	restarted bool
	asking    bool
	catchUp   uint64 // the index that it has to apply; 0: none, or not known yet
	own       int    // proposals under way here
	prospects []Prospect
	lease     *voterLease // nil where it needs none
}

// Prospect is an [order.Prospect] that stands.
type Prospect struct {
	order.Prospect
	Since automaton.Instant // when this host heard of it
}

// Group returns the group.
func (s *Seat) Group() order.GroupID { return s.r.group }

// Self returns this node.
func (s *Seat) Self() keyspace.NodeID { return s.r.shard.host.overlay.Node() }

// Replica returns this replica's id in the group.
func (s *Seat) Replica() order.ReplicaID { return s.r.self }

// Now returns the time of what is being handled, by the host's clock, which goes on while the machine sleeps where the system has such a
// clock.
func (s *Seat) Now() automaton.Instant { return s.r.shard.now }

// Machine returns the service's machine, as of the last entry executed. It is not to be changed, nor kept beyond the method of the voter
// that has asked for it.
func (s *Seat) Machine() session.Machine { return s.r.state().Machine(s.service) }

// Restarted reports whether this replica ran in an earlier life of the host, whose voter may have promised what this one does not know.
func (s *Seat) Restarted() bool { return s.restarted }

// Start returns a number that grows with every start of the host's store.
func (s *Seat) Start() uint64 { return s.r.shard.host.start }

// Leading reports whether this replica leads, and may answer for its group.
func (s *Seat) Leading() bool { return s.r.leading && s.r.leased() }

// Prospects returns what stands in the local log and the machine has not executed, by rising index. It is not to be changed, and is good
// until the voter returns.
func (s *Seat) Prospects() []Prospect { return s.prospects }

// Send sends a message by the service's overlay service. It may be lost: among others, it is where the group must have the root's lease
// to answer, and this replica does not know that it has. It does not block.
func (s *Seat) Send(to keyspace.NodeID, msg []byte) {
	if s.leased() {
		s.r.shard.host.sendVoter(to, msg)
	}
}

// Arm asks for [Voter.Expire] at an instant, in place of the one asked for before; [automaton.Never] is none.
func (s *Seat) Arm(at automaton.Instant) {
	key := timerKey{s.r, timerVoter}
	if at == automaton.Never {
		s.r.shard.timers.Stop(key)
	} else {
		s.r.shard.timers.Set(key, at)
	}
}

// Propose has the leader propose a command of the group's own, unless its voter objects. It may be lost. It wakes a group that sleeps.
func (s *Seat) Propose(data []byte) {
	r := s.r
	if r.leading {
		s.propose(s.Self(), data)
		return
	}
	leader, _ := r.engine.Leader()
	m, ok := r.member(leader)
	if !ok {
		return
	}
	if err := r.shard.host.overlay.Send(peer.ID(m.PeerID), keyspace.Key{}, servicePropose, encodeProposal(r.group, data)); err != nil {
		log.Debugw("a voter's proposal is lost", "group", r.group, "err", err)
	}
}

// ownCommand marks the proposals of the group's own: nobody waits for them.
const ownCommand = "own"

func (s *Seat) propose(author keyspace.NodeID, data []byte) {
	r := s.r
	if !s.Leading() || s.own >= ownProposalsMax || !s.voter.Vet(author, data) {
		return
	}
	if r.proposals == nil {
		r.waiting, r.proposals = make(map[commandKey][]caller), make(map[uint64]commandKey)
	}
	s.own++
	r.nextRef++
	r.proposals[r.nextRef] = commandKey{author: author, session: ownCommand}
	r.step(order.Propose{Ref: r.nextRef, Stamp: r.shard.stamp(), Cmd: order.Command{Author: author, Service: s.service, Data: data}})
}

// CatchUp asks for [Voter.CaughtUp]: a linearizable read of how far the log is committed, repeated until it succeeds. A second one before
// the answer does nothing. It wakes a group that sleeps.
func (s *Seat) CatchUp() {
	if s.asking {
		return
	}
	s.asking, s.catchUp = true, 0
	r, h := s.r, s.r.shard.host
	d, group, self := *r.descriptor, r.group, r.self
	req := marshal(&pb.QueryRequest{Group: groupToPB(group), View: d.View.Num, Service: session.IndexService})
	h.spawn(func() {
		for {
			var index uint64
			ctx, cancel := context.WithTimeout(h.ctx, commandTimeout)
			err := h.askLeader(ctx, d, keyspace.Key{}, serviceQuery, func(placement.Descriptor) []byte { return req }, func(a reply) (done bool, _ error) {
				if a.status == pb.Status_OK {
					index, done = session.DecodeIndex(a.data)
				}
				return done, nil
			})
			cancel()
			if err == nil {
				h.shardOf(group).box.Put(caughtUpEvent{group, self, index})
				return
			}
			h.mu.Lock()
			hosted := h.hosted[group.Life()]
			h.mu.Unlock()
			if !hosted || pause(h.ctx, catchUpRetry) != nil {
				return
			}
		}
	})
}

// caughtUpEvent says how far the log was committed when a replica asked.
type caughtUpEvent struct {
	group order.GroupID
	self  order.ReplicaID
	index uint64
}

func (e caughtUpEvent) handle(s *shard) {
	if r, ok := s.replicas[e.group.Life()]; ok && r.self == e.self && r.seat != nil && !r.halted {
		r.seat.catchUp = e.index
		r.seat.caughtUp()
	}
}

func (s *Seat) caughtUp() {
	if s.asking && s.catchUp > 0 && s.r.applied >= s.catchUp {
		s.asking = false
		s.voter.CaughtUp()
	}
}

// follow tells the voter of what the machine has executed.
func (s *Seat) follow() {
	n := 0
	for n < len(s.prospects) && s.prospects[n].Index <= s.r.applied {
		n++
	}
	if s.prospects = s.prospects[n:]; len(s.prospects) == 0 {
		s.prospects = nil
	}
	s.voter.Follow()
	s.caughtUp()
}

// foresee takes note of what stands in the log.
func (s *Seat) foresee(all []order.Prospect) {
	changed := false
	for _, p := range all {
		switch {
		case p.Void:
			n := len(s.prospects)
			for n > 0 && s.prospects[n-1].Index >= p.Index {
				n--
			}
			changed = changed || n < len(s.prospects)
			s.prospects = s.prospects[:n:n]
		case p.Index > s.r.applied && (p.Cmd == nil || p.Cmd.Service == s.service):
			s.prospects = append(s.prospects, Prospect{p, s.Now()})
			changed = true
		}
	}
	if changed {
		s.voter.Foresee()
	}
}

// voterLoads counts, per peer, the messages to voters, or to leaders, that wait for their shards.
type voterLoads struct {
	mu    sync.Mutex
	peers map[peer.ID]voterLoad
}

type voterLoad struct{ messages, bytes int }

func (l *voterLoads) take(p peer.ID, bytes int) bool {
	return l.takeAtMost(p, bytes, voterMessagesMax, voterBytesMax)
}

func (l *voterLoads) takeAtMost(p peer.ID, bytes, messagesMax, bytesMax int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	load := l.peers[p]
	if load.messages >= messagesMax || load.messages > 0 && load.bytes+bytes > bytesMax {
		return false
	}
	if l.peers == nil {
		l.peers = make(map[peer.ID]voterLoad)
	}
	l.peers[p] = voterLoad{load.messages + 1, load.bytes + bytes}
	return true
}

func (l *voterLoads) release(p peer.ID, bytes int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	load := l.peers[p]
	if load = (voterLoad{load.messages - 1, load.bytes - bytes}); load.messages == 0 {
		delete(l.peers, p)
	} else {
		l.peers[p] = load
	}
}

// voterEvent is a message for a group's voter, or, with own set, a command that a member's voter asks the leader for.
type voterEvent struct {
	peer  peer.ID
	from  keyspace.NodeID
	bytes int
	group order.GroupID
	msg   any
	own   []byte
}

// voterEvents are those that are over, for the next ones: each lock costs six.
var voterEvents = sync.Pool{New: func() any { return new(voterEvent) }}

// free ends an event that nobody will look at again.
func (e *voterEvent) free(h *Host) {
	if e.msg != nil {
		h.voters.Free(e.msg)
	}
	*e = voterEvent{}
	voterEvents.Put(e)
}

// admit has a message handled at once, or puts it into its shard's mailbox, unless its peer has too many there already. The event is not the
// caller's any more.
func (h *Host) admit(e *voterEvent) {
	if h.shardOf(e.group).handleNow(voterNow{e}) {
		return
	}
	if !h.voterLoads.take(e.peer, e.bytes) {
		h.counters.voterDropped.Add(1)
		return
	}
	if !h.shardOf(e.group).box.TryPut(e) {
		h.voterLoads.release(e.peer, e.bytes)
		h.counters.voterDropped.Add(1)
	}
}

func (e *voterEvent) handle(s *shard) {
	s.host.voterLoads.release(e.peer, e.bytes)
	e.deliver(s)
}

// voterNow is a message that was not put into the mailbox.
type voterNow struct{ *voterEvent }

func (e voterNow) lone(*shard) bool { return true }

func (e voterNow) handle(s *shard) { e.deliver(s) }

func (e *voterEvent) deliver(s *shard) {
	h := s.host
	r, ok := s.replicas[e.group.Life()]
	ok = ok && !r.halted && r.seat != nil
	switch {
	case e.own == nil && ok:
		r.decide()
		if r.seat.receive(e) {
			e.free(h)
		}
	case e.own == nil:
		h.voters.Absent(e.from, e.group, e.msg, h.sendVoter)
		e.free(h)
	case ok && r.leading:
		if m, is := r.view.MemberAt(e.from); is && m.Role != order.Learner {
			r.seat.propose(e.from, e.own)
		}
	}
}

// sendVoter sends a message of a voter.
func (h *Host) sendVoter(to keyspace.NodeID, msg []byte) {
	p, ok := h.overlay.PeerOf(to)
	if !ok {
		return
	}
	if err := h.overlay.Send(p, keyspace.Key{}, h.voters.Overlay(), msg); err != nil {
		log.Debugw("a voter's message is lost", "peer", p, "err", err)
	}
}

// handleVoter takes messages to voters.
func (h *Host) handleVoter(req *dht.Request) error {
	if !req.OneWay() {
		return malformed("a message to a voter awaits an answer")
	}
	from := req.Node()
	to, msg, mine, err := h.voters.Read(from, req.Data)
	if err != nil || !mine {
		return err
	}
	to.Overlay = h.id
	e := voterEvents.Get().(*voterEvent)
	*e = voterEvent{peer: req.From, from: from, bytes: len(req.Data), group: to, msg: msg}
	h.admit(e)
	return nil
}

// handlePropose takes what members' voters ask the leader for.
func (h *Host) handlePropose(req *dht.Request) error {
	group, data, err := h.decode.ownFrame(req.Data)
	if err != nil {
		return err
	}
	if len(data) == 0 || len(data) > order.DataBytesMax || !req.OneWay() {
		return malformed("a voter's proposal of %d bytes", len(data))
	}
	if fellows := h.fellows.Load(); fellows == nil || !(*fellows)[req.From] {
		h.counters.strayMessages.Add(1)
		return nil
	}
	h.admit(&voterEvent{peer: req.From, from: req.Node(), bytes: len(req.Data), group: group, own: data})
	return nil
}

// encodeProposal encodes a command of the group's own for its leader: the group in field 1, the command's data in field 2.
func encodeProposal(g order.GroupID, data []byte) []byte {
	b := appendGroup(make([]byte, 0, commandOverhead+len(data)), 1, g)
	return protofield.AppendBytes(b, 2, data)
}

// ownFrame decodes what encodeProposal wrote. The data aliases b.
func (d decoder) ownFrame(b []byte) (g order.GroupID, data []byte, err error) {
	var group groupFields
	r := protofield.Read(b)
	for r.Next() {
		switch r.Field() {
		case protofield.Bytes(1):
			if err := group.read(r.Bytes()); err != nil {
				return g, nil, malformed("frame between members: %v", err)
			}
		case protofield.Bytes(2):
			data = r.Bytes()
		}
	}
	if err = r.Err(); err == nil {
		g, err = d.groupOf(group)
	}
	if err != nil {
		return order.GroupID{}, nil, malformed("frame between members: %v", err)
	}
	return g, data, nil
}
