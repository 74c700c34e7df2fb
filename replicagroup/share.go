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
	// A command that takes longer than slackFactor times the shortest of about the last leastFor, and slackMore, makes the window
	// smaller; others make it larger. What was the shortest is forgotten only for commands that had few others beside them (see
	// [contention.note]): otherwise a flood would become the measure of itself, and the window would grow with every leastFor.
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
	// inform says with which view in mind it asks, and who is to hear the answer instead.
	inform(with func(view uint64, call caller) caller)
}

func (e *commandEvent) author() keyspace.NodeID                 { return e.cmd.Author }
func (e *commandEvent) caller() caller                          { return e.call }
func (e *commandEvent) inform(with func(uint64, caller) caller) { e.call = with(e.view, e.call) }
func (e *commandEvent) begin(r *replica) bool {
	if r.state().Refuses(e.cmd) {
		r.waiters--
		r.shard.host.refuse(e.call, &pb.Reply{Status: pb.Status_LIMIT})
		return false
	}
	return r.propose(e)
}

func (e *queryEvent) author() keyspace.NodeID                 { return e.from }
func (e *queryEvent) caller() caller                          { return e.call }
func (e *queryEvent) inform(with func(uint64, caller) caller) { e.call = with(e.view, e.call) }
func (e *queryEvent) begin(r *replica) bool                   { return r.read(e) }

// ask takes what a peer asks for: it begins at once or joins the peer's line, or is answered that it cannot.
func (r *replica) ask(e asked) {
	r.decide()
	e.inform(r.inform)
	if !r.ready(e.caller()) {
		return
	}
	if r.contention == nil {
		r.contention = newContention()
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
		r.shard.host.refuse(e.caller(), busy())
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

// disperse answers everybody who waits in a line of a replica that has halted: nobody's turn comes.
func (r *replica) disperse() {
	if r.contention == nil {
		return
	}
	for author, s := range r.shares {
		s.running = 0
		r.serveLine(author, s)
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
		if r.ready(e.caller()) { // it may have ceased to be while this waited
			r.begin(e, s)
		} else {
			r.waiters--
		}
	}
	if r.contention != nil && s.running == 0 && len(s.line) == 0 && r.shares[author] == s { // it may have halted meanwhile
		delete(r.shares, author)
		r.spare = s
	}
}

// over ends one thing under way of a peer, and lets its next one begin.
func (r *replica) over(author keyspace.NodeID) {
	if r.contention == nil {
		return
	}
	if s := r.shares[author]; s != nil {
		s.running--
		r.serveLine(author, s)
	}
}

// contention is the replica's memory of who asks, and of how long commands take. A replica has none before it is asked for something,
// nor after it has slept.
type contention struct {
	shares    map[keyspace.NodeID]*share // of peers that wait for answers
	spare     *share                     // empty, for the next peer that has none
	latest    keyspace.NodeID            // who asked last
	contended automaton.Instant          // until when several peers count as asking

	window  int               // how many may be under way while they do
	sampled commandKey        // a command that is timed; the zero key: none
	began   automaton.Instant // when it began
	quiet   bool              // few others were under way then

	// The shortest times of one, in this half of leastFor and in the one before, which end when a command that counts comes after
	// them; 0: none. least is the shorter one.
	least, latter, former time.Duration
	halfUntil             automaton.Instant
}

func newContention() *contention {
	return &contention{window: windowFirst, shares: make(map[keyspace.NodeID]*share)}
}

// sample times this command, unless another one is being timed.
func (r *replica) sample(key commandKey) {
	if r.sampled != (commandKey{}) {
		return
	}
	r.sampled, r.began = key, r.shard.host.clock.Now()
	underWay, few := 0, max(windowFirst, len(r.shares))
	for _, s := range r.shares {
		if underWay += s.running; underWay > few {
			break
		}
	}
	r.quiet = underWay <= few
}

// took notes how long the sampled command took.
func (r *replica) took(key commandKey) {
	if r.contention != nil && key == r.sampled {
		r.sampled = commandKey{}
		now := r.shard.host.clock.Now()
		r.note(now.Sub(r.began), now)
	}
}

// note widens or narrows the window for a command that took d. A command that began among many others may show that the shortest
// time is shorter than was known, never that it is longer. As a window that stays too narrow lets no more than a few be under way,
// what has become slower for good is noticed all the same.
func (c *contention) note(d time.Duration, now automaton.Instant) {
	d = max(d, 1)
	if c.quiet || c.least == 0 || d < c.least {
		if now > c.halfUntil {
			c.former, c.latter, c.halfUntil = c.latter, d, now.Add(leastFor/2)
		}
		c.latter = min(c.latter, d)
		if c.least = c.latter; c.former > 0 {
			c.least = min(c.latter, c.former)
		}
	}
	if d <= slackFactor*c.least+slackMore {
		c.window = min(c.window+max(1, c.window/8), waitersMax)
	} else {
		c.window = max(c.window*3/4, 1)
	}
}
