package placement

import (
	"fmt"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
)

// PlanTimes are the waits of a [Planner] (replica-groups.md section 3.5). All are positive.
type PlanTimes struct {
	Every   time.Duration // between two attempts at a step that was refused, and between look-ups while there is work
	Fail    time.Duration // T_fail: a member suspected that long without a break has failed
	Stable  time.Duration // T_stable: a candidate has been up that long without a break; a wish to leave holds that long, and no shorter than Fresh
	Fresh   time.Duration // an answer to a look-up counts that long
	Learn   time.Duration // a learner that has not moved that long, and is not near the end of the log, is dropped
	LearnTo time.Duration // likewise one that moves and never gets there
	Listed  time.Duration // a learner that was dropped for its fault is not tried again for that long
	Damp    time.Duration // at least that long between changes of voters, unless one failed or leaves
	Idle    time.Duration // the longest pause between look-ups while there is nothing to do and the group is awake
	Answer  time.Duration // voters have that long to endorse
	Settle  time.Duration // a voter that leaves is removed without a substitute only that long after the last wish to leave
	Hand    time.Duration // leadership is handed over within that long, or another voter is tried
	Lag     time.Duration // a learner that holds what was committed that long ago has caught up, however fast the log grows
	Soon    time.Duration // between two attempts at a step for a peer that leaves, or that voters who lag did not endorse
	Season  time.Duration // a candidate for the root that has been up for less comes after those that have
}

// Within is how many entries a learner may lack when it is promoted.
const Within = 64

// holdLeaver is how long a voter that leaves, and goes after ten seconds in any case, is held back for a candidate that will have been up
// for long enough by then.
const holdLeaver = 8 * time.Second

// ListedMax bounds the list of dropped learners; the oldest are forgotten first.
const ListedMax = 64

// DefaultPlanTimes returns the waits of an ordinary overlay. Every node of an overlay should use the same, though nothing
// breaks if they do not.
func DefaultPlanTimes() PlanTimes {
	return PlanTimes{
		Every:   10 * time.Second,
		Fail:    30 * time.Second,
		Stable:  60 * time.Second,
		Fresh:   30 * time.Second,
		Learn:   60 * time.Second,
		LearnTo: 10 * time.Minute,
		Listed:  10 * time.Minute,
		Damp:    20 * time.Second,
		Idle:    60 * time.Second, // a joiner has to be up for Stable anyway
		Answer:  2 * time.Second,
		Settle:  500 * time.Millisecond, // who are stopped together are told so within that, and a shutdown waits for it
		Hand:    3 * time.Second,
		Lag:     2 * time.Second,
		Soon:    time.Second,
		Season:  time.Hour,
	}
}

// TestnetPlanTimes returns waits for overlays on one machine that come and go within minutes: a group has taken in who came
// about five seconds ago, and replaced who has been away for as long. They are too short for a network that is not loopback, where a
// peer may be silent for seconds and come back, and every move costs a copy of the group's state.
func TestnetPlanTimes() PlanTimes {
	return PlanTimes{
		Every:   time.Second,
		Fail:    5 * time.Second,
		Stable:  2 * time.Second,
		Fresh:   10 * time.Second, // longer than one frozen peer can hold up a look-up
		Learn:   10 * time.Second,
		LearnTo: time.Minute,
		Listed:  20 * time.Second,
		Damp:    2 * time.Second,
		Idle:    5 * time.Second,
		Answer:  time.Second,
		Settle:  500 * time.Millisecond,
		Hand:    2 * time.Second, // an election takes one when it must
		Lag:     time.Second,
		Soon:    250 * time.Millisecond,
		Season:  time.Hour, // longer than most of them last: the closest, as elsewhere
	}
}

// Validate says which wait is not positive, if one is not.
func (t PlanTimes) Validate() error {
	for _, w := range []struct {
		name string
		d    time.Duration
	}{
		{"Every", t.Every}, {"Fail", t.Fail}, {"Stable", t.Stable}, {"Fresh", t.Fresh}, {"Learn", t.Learn}, {"LearnTo", t.LearnTo},
		{"Listed", t.Listed}, {"Damp", t.Damp}, {"Idle", t.Idle}, {"Answer", t.Answer}, {"Settle", t.Settle}, {"Hand", t.Hand},
		{"Lag", t.Lag}, {"Soon", t.Soon}, {"Season", t.Season},
	} {
		if w.d <= 0 {
			return fmt.Errorf("placement: plan times: %s is %v, and has to be positive", w.name, w.d)
		}
	}
	return nil
}

// Neighbour is a peer near a group's anchor, by its own answer to the node that looked it up.
type Neighbour struct {
	Peer  keyspace.NodeID
	Store order.StoreID // where it would keep a replica, or keeps one
	Up    time.Duration // since its process started
	Hosts bool          // it hosts groups, is admitted, and speaks the overlay's protocol
}

// PlanEvent is an input of a [Planner].
type PlanEvent interface{ isPlanEvent() }

// The events of a [Planner]. [Wake] is one too.
type (
	// ViewSeen reports a view that this replica has applied; the first one begins the plan. While Joint, a change of voters
	// is between its two halves; the view that ends it has a larger number.
	ViewSeen struct {
		View  order.View
		Joint bool
	}
	// Candidates reports peers that have just answered, in any order: to a [LookUp], or unasked, as when a peer near the
	// anchor appears. Members among them are welcome. Partial says that the look-up failed, so that others may be there.
	Candidates struct {
		Peers   []Neighbour
		Partial bool
	}
	// PeerState reports a change of the node's failure detector about a peer. Drivers report it for members, and for other
	// peers as far as they watch them; the state of every member that is not live when the plan begins or when it becomes a
	// member. A peer never reported is live.
	PeerState struct {
		Peer keyspace.NodeID
		Live bool
	}
	// Progress reports how far the leader's log has reached a member, every second or so while there is a learner.
	Progress struct {
		Member        order.ReplicaID
		Match, Commit uint64 // the member has entries up to Match; the group has committed up to Commit
		Moved         uint64 // rises while a snapshot is on its way to it, such as bytes sent
	}
	// EndorseAnswer is a voter's answer to an [Endorse], by its own stream: it repeats Term, Round and View of the question.
	EndorseAnswer struct {
		Term, Round, View uint64
		From              order.ReplicaID
		Verdict           Verdict
	}
	// ChangeDone reports what became of a [Learn], [ChangeVoters] or [DropLearner]: OK once its entry stands. Every one of
	// them is answered, or leadership ends. If not OK its fate may be unknown; the view tells.
	ChangeDone struct {
		Ref uint64
		OK  bool
	}
	// LeaveWish says that a peer wants to leave, by its own stream; repeated every second until [MayGo], for 10 s at most.
	LeaveWish struct{ Peer keyspace.NodeID }
	// Sleeping says that the group has fallen asleep, or is awake again; a plan begins in a group that is awake.
	Sleeping struct{ On bool }
	// Appeared says that a peer can be reached that could not, or says something else of itself than it did. What it says is not known
	// yet. To a peer that is of no concern to the group it does not matter.
	Appeared struct{ Peer keyspace.NodeID }
	// Rouse asks a plan that rests ([Rests]) to look up the candidates again.
	Rouse struct{}
)

func (ViewSeen) isPlanEvent()      {}
func (Candidates) isPlanEvent()    {}
func (PeerState) isPlanEvent()     {}
func (Progress) isPlanEvent()      {}
func (EndorseAnswer) isPlanEvent() {}
func (ChangeDone) isPlanEvent()    {}
func (LeaveWish) isPlanEvent()     {}
func (Sleeping) isPlanEvent()      {}
func (Appeared) isPlanEvent()      {}
func (Rouse) isPlanEvent()         {}
func (Wake) isPlanEvent()          {}

// PlanAction is an output of a [Planner].
type PlanAction interface{ isPlanAction() }

// The actions of a [Planner]. [LookUp], answered by [Candidates], and [Arm] are actions too.
type (
	// Endorse asks a voter, or a learner about its own promotion; answered by [EndorseAnswer].
	Endorse struct {
		To       order.ReplicaID
		Question Question
	}
	// Learn asks the engine to make a peer a learner, in the view after From; answered by [ChangeDone].
	Learn struct {
		Ref, From uint64
		Peer      keyspace.NodeID
		Store     order.StoreID
	}
	// ChangeVoters asks the engine for one joint change: learners that become voters, voters that are removed. The number of
	// voters stays odd. Answered by [ChangeDone].
	ChangeVoters struct {
		Ref, From       uint64
		Promote, Remove []order.ReplicaID
	}
	// DropLearner asks the engine to remove a learner; answered by [ChangeDone].
	DropLearner struct {
		Ref, From uint64
		Member    order.ReplicaID
	}
	// TransferTo asks the engine to hand leadership to a voter. If it works this plan ends.
	TransferTo struct{ Member order.ReplicaID }
	// MayGo tells a peer that wants to leave that nothing more will be done for it: it is no member any more, or nobody can
	// take its place.
	MayGo struct{ Peer keyspace.NodeID }
	// Publish says that View's descriptor should reach those who keep it (rule G5).
	Publish struct{ View order.View }
	// Rests says that the group sleeps, that there is nothing to do for it, and that no time will change that: from now on the plan looks
	// nobody up by itself. Whoever plans for many groups has all that rest look again, one after the other ([Rouse]), as often as it can
	// afford.
	Rests struct{}
)

func (LookUp) isPlanAction()       {}
func (Arm) isPlanAction()          {}
func (Endorse) isPlanAction()      {}
func (Learn) isPlanAction()        {}
func (ChangeVoters) isPlanAction() {}
func (DropLearner) isPlanAction()  {}
func (TransferTo) isPlanAction()   {}
func (MayGo) isPlanAction()        {}
func (Publish) isPlanAction()      {}
func (Rests) isPlanAction()        {}
