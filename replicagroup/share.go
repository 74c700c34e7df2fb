package replicagroup

import (
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/replicagroup/pb"
)

// A replica that leads is asked by many peers, and what one of them asks for must not keep the others waiting. So each peer has
// a share: while several peers ask, only so many of one peer's commands and queries are under way at a time, and the rest
// wait in a line of that peer's own, in the order they came. A peer that asks alone is not held back.
//
// How many may be under way is found out by how long one takes: when it takes longer than it would alone, more of them only make a
// longer queue, in the log and in front of every member's processor, and everybody else's next command stands behind it.
const (
	// windowFirst is how many may be under way, of all peers, before anything is known; each may have one.
	windowFirst = 16
	// A command that takes longer than slackFactor times the shortest of the last leastFor, and slackMore, makes the window
	// smaller; others make it larger.
	slackFactor = 2
	slackMore   = 250 * time.Microsecond
	leastFor    = 30 * time.Second
	// contendedFor is how long two peers count as asking at once after one followed on the other.
	contendedFor = time.Second
	// assuredMax is how many commands and queries of one peer a replica has room for even when others have taken all there is
	// ([waitersMax]).
	assuredMax = 16
)

// share is what one peer has asked of a replica and has no answer to.
type share struct {
	running int     // under way
	line    []asked // waiting for their turn, the first first
}

// asked is a command or query that may have to wait.
type asked interface {
	author() keyspace.NodeID
	caller() caller
	// begin starts it, or answers it, at a replica that is ready for it, and reports whether something is under way because of it.
	begin(r *replica) bool
	wants() (view uint64)
}

func (e *commandEvent) author() keyspace.NodeID { return e.cmd.Author }
func (e *commandEvent) caller() caller          { return e.call }
func (e *commandEvent) wants() uint64           { return e.view }
func (e *commandEvent) begin(r *replica) bool {
	if r.table.Refuses(e.cmd) {
		r.waiters--
		e.call.Reply(marshal(&pb.Reply{Status: pb.Status_LIMIT}))
		return false
	}
	return r.propose(e)
}

func (e *queryEvent) author() keyspace.NodeID { return e.from }
func (e *queryEvent) caller() caller          { return e.call }
func (e *queryEvent) wants() uint64           { return e.view }
func (e *queryEvent) begin(r *replica) bool   { return r.read(e) }

// ask takes what a peer asks for: it begins at once or joins the peer's line, or is answered that it cannot.
func (r *replica) ask(e asked) {
	if !r.ready(e.wants(), e.caller()) {
		return
	}
	author, now := e.author(), r.shard.now
	if author != r.latest {
		if !r.latest.IsZero() {
			r.contended = now.Add(contendedFor)
		}
		r.latest = author
	}
	s := r.shares[author]
	if s == nil {
		if s = r.spare; s == nil {
			s = new(share)
		}
		r.shares[author], r.spare = s, nil
	}
	if r.waiters >= waitersMax && s.running+len(s.line) >= assuredMax {
		e.caller().Reply(marshal(busy()))
		return
	}
	r.waiters++
	if len(s.line) == 0 && r.allows(s) {
		r.begin(e, s)
	} else {
		s.line = append(s.line, e)
	}
	r.serveLine(author, s)
}

// allows reports whether one more of a peer may be under way.
func (r *replica) allows(s *share) bool {
	return s.running < max(1, r.window/len(r.shares)) || r.shard.now > r.contended
}

func (r *replica) begin(e asked, s *share) {
	s.running++
	if !e.begin(r) {
		s.running--
	}
}

// serveLine begins what a peer's share allows.
func (r *replica) serveLine(author keyspace.NodeID, s *share) {
	for len(s.line) > 0 && r.allows(s) {
		e := s.line[0]
		s.line[0] = nil
		if s.line = s.line[1:]; len(s.line) == 0 {
			s.line = nil
		}
		if r.ready(e.wants(), e.caller()) { // it may have ceased to be while this waited
			r.begin(e, s)
		} else {
			r.waiters--
		}
	}
	if s.running == 0 && len(s.line) == 0 && r.shares[author] == s {
		delete(r.shares, author)
		r.spare = s
	}
}

// over ends one thing under way of a peer, and lets its next one begin.
func (r *replica) over(author keyspace.NodeID) {
	if s := r.shares[author]; s != nil {
		s.running--
		r.serveLine(author, s)
	}
}

// contention is the replica's memory of who asks, and of how long commands take.
type contention struct {
	shares    map[keyspace.NodeID]*share // of peers that wait for answers
	spare     *share                     // empty, for the next peer that has none
	latest    keyspace.NodeID            // who asked last
	contended automaton.Instant          // until when several peers count as asking

	window     int               // how many may be under way while they do
	sampled    commandKey        // a command that is timed; the zero key: none
	began      automaton.Instant // when it began
	least      time.Duration     // the shortest time of one
	leastUntil automaton.Instant // until then; a new one is taken afterwards
}

// sample times this command, unless another one is being timed.
func (r *replica) sample(key commandKey) {
	if r.sampled == (commandKey{}) {
		r.sampled, r.began = key, r.shard.host.clock.Now()
	}
}

// took notes how long the sampled command took, and widens or narrows the window.
func (r *replica) took(key commandKey) {
	if key != r.sampled {
		return
	}
	r.sampled = commandKey{}
	now := r.shard.host.clock.Now()
	d := now.Sub(r.began)
	if d < r.least || now > r.leastUntil {
		r.least, r.leastUntil = d, now.Add(leastFor)
	}
	if d <= slackFactor*r.least+slackMore {
		r.window = min(r.window+max(1, r.window/8), waitersMax)
	} else {
		r.window = max(r.window*3/4, 1)
	}
}
