package placement

import (
	"fmt"
	"slices"

	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
)

// StepMax bounds what one change of voters adds: growing takes two at once, because the number of voters stays odd.
const StepMax = 2

// Reason says why a voter has to go.
type Reason uint8

// The reasons, the most pressing first.
const (
	Leaving    Reason = iota + 1 // it asked to be let go
	LostStore                    // its peer answers from another store: what the replica held is gone
	Failed                       // suspected for [PlanTimes.Fail] without a break
	NotHosting                   // its peer hosts nothing (any more), or is not admitted
	Farther                      // enough peers are closer to the anchor
)

// String returns the reason as traces print it.
func (r Reason) String() string {
	if r < Leaving || r > Farther {
		return fmt.Sprintf("Reason(%d)", uint8(r))
	}
	return [...]string{"leaving", "lost store", "failed", "not hosting", "farther"}[r-1]
}

// Removal names a voter that has to go.
type Removal struct {
	Member order.ReplicaID
	Why    Reason
}

// Question is what a leader asks every voter before it changes the group (replica-groups.md section 3.5, step 4): may Add
// become voters, and may Remove cease to be? Asked before a candidate begins to learn, and again before it is promoted; then
// the candidate is asked too.
type Question struct {
	// Term, Round and View name the question: the answer repeats them, so that one for an old view, an abandoned plan or an
	// earlier leadership of the same node counts for nothing.
	Term, Round, View uint64
	Add               []keyspace.NodeID // at most StepMax
	Remove            []Removal
}

// Reach is a voter's opinion of a peer.
type Reach uint8

// The opinions.
const (
	Unknown   Reach = iota // it does not watch the peer
	Reached                // its detector trusts the peer
	Suspected              // its detector suspects the peer
)

// Verdict is a voter's answer to a [Question].
type Verdict uint8

// The verdicts. Only Yes endorses.
const (
	Yes           Verdict = iota + 1
	OtherView             // the voter's view is another one: it lags, or the asker does
	VictimLive            // the voter reaches the victim, and the candidate is not closer
	CandidateDown         // the voter suspects the candidate
	NoSense               // the question contradicts the view it names
)

// String returns the verdict as traces and logs print it.
func (v Verdict) String() string {
	if v < Yes || v > NoSense {
		return fmt.Sprintf("Verdict(%d)", uint8(v))
	}
	return [...]string{"yes", "other view", "victim live", "candidate down", "no sense"}[v-1]
}

// Endorses is a voter's answer: view is the one it has applied, point the group's anchor, reach what its detector says. It is
// a pure function; q may come from the network. Whether q's sender leads the group is the caller's business.
//
// A peer that leaves, hosts nothing or has lost its store goes on the leader's word, though the voter may reach it and no
// closer peer takes its place: the rule "no if I reach the victim and the candidate is not closer", applied to everything,
// would refuse every graceful leave.
func (q Question) Endorses(view order.View, point keyspace.Key, reach func(keyspace.NodeID) Reach) Verdict {
	if q.View != view.Num {
		return OtherView
	}
	if !q.fits(view) {
		return NoSense
	}
	for _, c := range q.Add {
		if reach(c) == Suspected {
			return CandidateDown
		}
	}
	for _, r := range q.Remove {
		m, _ := view.Member(r.Member)
		closer := slices.ContainsFunc(q.Add, func(c keyspace.NodeID) bool { return keyspace.Closer(point, c, m.Peer) })
		switch {
		case r.Why == Failed && reach(m.Peer) == Reached && !closer:
			return VictimLive
		case r.Why == Farther && !closer:
			return NoSense
		}
	}
	return Yes
}

// fits reports whether q asks for something that can be done to view: bounded, without repeats, removing voters only, adding
// peers that are not voters or whose old replica goes, and leaving somebody.
func (q Question) fits(view order.View) bool {
	voters := len(view.Voters())
	if len(q.Add)+len(q.Remove) == 0 || len(q.Add) > StepMax || len(q.Remove) > voters || len(q.Remove)-len(q.Add) >= voters {
		return false
	}
	removed := func(id order.ReplicaID) bool {
		return slices.ContainsFunc(q.Remove, func(r Removal) bool { return r.Member == id })
	}
	for i, r := range q.Remove {
		m, ok := view.Member(r.Member)
		again := slices.ContainsFunc(q.Remove[:i], func(o Removal) bool { return o.Member == r.Member })
		if !ok || m.Role != order.Voter || r.Why < Leaving || r.Why > Farther || again {
			return false
		}
	}
	for i, c := range q.Add {
		stays := func(m order.Member) bool { return m.Peer == c && m.Role == order.Voter && !removed(m.ID) }
		if c.IsZero() || slices.Contains(q.Add[:i], c) || slices.ContainsFunc(view.Members, stays) {
			return false
		}
	}
	return true
}
