package order

import (
	"errors"
	"fmt"
	"slices"

	"latchkey/dht/keyspace"
)

// MembersMax bounds the members of a view, learners included.
const MembersMax = 64

// Errors in the [Outcome] of a [Change], beside [ErrNotLeader], [ErrBusy] and [ErrDropped].
var (
	// ErrStale: the change was asked of another view than the present one; nothing was proposed.
	ErrStale = errors.New("order: the view has changed")
	// ErrChange is matched when no valid view would come of a change; nothing was proposed.
	ErrChange = errors.New("order: change cannot be made")
)

// Removed is the [Halt] reason of a replica that its group has removed: no error, it has done its part.
const Removed = "removed from the group"

// Change asks the leader for the next view. It is exactly one of three steps:
//
//   - Learn: a peer's store becomes a learner, under the id that the present view hands out next.
//   - One learner in Remove and nothing else: it goes.
//   - Promote and Remove, at least one voter among them: the change goes through a joint view, in which both the former voters
//     and the new ones must agree by majority (roles [Joining] and [Leaving]). The engine leaves it by itself.
//
// Every Change is answered by exactly one [Outcome] with its Ref: nil once the entry that begins the change has been
// delivered, else [ErrNotLeader], [ErrStale], [ErrBusy] while another change or a [Transfer] is under way, [ErrChange], or
// [ErrDropped]. How many voters a group should have, and that the number is odd, is for who asks.
type Change struct {
	Ref     uint64
	From    uint64 // the number of the view it is to follow
	Learn   *Newcomer
	Promote []ReplicaID // learners
	Remove  []ReplicaID // members
}

// Newcomer is who is to become a learner. Its peer may be a member already, by another store that it has lost.
type Newcomer struct {
	Peer   keyspace.NodeID
	Store  StoreID
	PeerID string // see [Member]; at most [PeerIDBytesMax] bytes, more is [ErrChange]
}

// Transfer asks the leader to hand leadership to another voter. It ends by that voter's leading, or by nothing within an
// election time-out, meanwhile the leader answers proposals with [ErrBusy]. A replica that does not lead ignores it, as does a
// leader while a change is under way.
type Transfer struct{ To ReplicaID }

func (Change) isEvent()   {}
func (Transfer) isEvent() {}

// ViewNote tells the driver of a view: that of a [ViewChange] entry at Index, or of a snapshot for Index, if it is another than
// the driver knew. It stands when the entry is delivered or the snapshot installed: entries before Index were decided under
// former views.
type ViewNote struct {
	View  View
	Index uint64
	Joint bool // View.Joint()
}

// Joint reports whether v is the middle of a change of voters.
func (v View) Joint() bool {
	return slices.ContainsFunc(v.Members, func(m Member) bool { return m.Role == Joining || m.Role == Leaving })
}

// At returns the member that lives at this peer with this store.
func (v View) At(peer keyspace.NodeID, store StoreID) (Member, bool) {
	i := slices.IndexFunc(v.Members, func(m Member) bool { return m.Peer == peer && m.Store == store })
	if i < 0 {
		return Member{}, false
	}
	return v.Members[i], true
}

// Change returns the view that comes of applying c, the joint one for a change of voters, or an error that matches [ErrStale]
// or [ErrChange]. It is a function of the two alone. v must not be joint.
func (v View) Change(c Change) (View, error) {
	bad := func(format string, args ...any) (View, error) {
		return View{}, fmt.Errorf("%w: %s", ErrChange, fmt.Sprintf(format, args...))
	}
	switch {
	case c.From != v.Num:
		return View{}, fmt.Errorf("%w: asked of view %d, which is %d now", ErrStale, c.From, v.Num)
	case v.Joint():
		return bad("another one is under way")
	case c.Learn != nil && len(c.Promote)+len(c.Remove) > 0:
		return bad("a peer becomes a learner by a change of its own")
	case c.Learn == nil && len(c.Promote)+len(c.Remove) == 0:
		return bad("it changes nothing")
	case len(c.Promote)+len(c.Remove) > MembersMax:
		return bad("it names %d members, at most %d", len(c.Promote)+len(c.Remove), MembersMax)
	}
	next := View{Num: v.Num + 1, Members: slices.Clone(v.Members), Next: v.Next}
	if c.Learn != nil {
		if _, ok := v.At(c.Learn.Peer, c.Learn.Store); ok {
			return bad("the peer is a member already")
		}
		if len(v.Members) >= MembersMax {
			return bad("the group has %d members already", len(v.Members))
		}
		if len(c.Learn.PeerID) > PeerIDBytesMax {
			return bad("a peer id of %d bytes, at most %d", len(c.Learn.PeerID), PeerIDBytesMax)
		}
		next.Members = append(next.Members,
			Member{ID: v.Next, Peer: c.Learn.Peer, Store: c.Learn.Store, Role: Learner, PeerID: c.Learn.PeerID})
		next.Next++
		return next, nil
	}
	turn := func(id ReplicaID, from, to Role) bool {
		for i := range next.Members {
			if m := &next.Members[i]; m.ID == id && m.Role == from {
				m.Role = to
				return true
			}
		}
		return false
	}
	for _, id := range c.Promote {
		if !turn(id, Learner, Joining) {
			return bad("replica %d is no learner", id)
		}
	}
	dropped := 0
	for _, id := range c.Remove {
		if turn(id, Voter, Leaving) {
			continue
		}
		i := slices.IndexFunc(next.Members, func(m Member) bool { return m.ID == id && m.Role == Learner })
		if i < 0 {
			return bad("replica %d cannot be removed", id)
		}
		next.Members = slices.Delete(next.Members, i, i+1)
		dropped++
	}
	if !next.Joint() && dropped > 1 {
		return bad("learners are dropped one by one")
	}
	if !slices.ContainsFunc(next.Members, func(m Member) bool { return m.Role == Voter || m.Role == Joining }) {
		return bad("no voter would be left")
	}
	return next, nil
}

// Settle returns the view that ends a joint one.
func (v View) Settle() View {
	next := View{Num: v.Num + 1, Next: v.Next, Members: make([]Member, 0, len(v.Members))}
	for _, m := range v.Members {
		switch m.Role {
		case Leaving:
			continue
		case Joining:
			m.Role = Voter
		}
		next.Members = append(next.Members, m)
	}
	return next
}
