package placement

import (
	"slices"
	"testing"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/replicagroup/order"
)

// begin shows the planner a first view with a voter at each of these peers, and lets everybody answer look-ups.
func (r *rig) begin(answering int, voters ...int) {
	for i := range answering {
		r.answering[i] = r.now.Add(-time.Hour)
	}
	v := order.View{Next: order.ReplicaID(len(voters) + 1)}
	for k, i := range voters {
		v.Members = append(v.Members, r.member(k+1, i, order.Voter))
	}
	r.tell(ViewSeen{View: v})
}

// drive plays voters that endorse everything they should and an engine that does what it is told at once, for a while. Peers
// in dead say nothing. It returns what the engine was asked.
func (r *rig) drive(d time.Duration, dead map[int]bool) (done []PlanAction) {
	end := r.now.Add(d)
	todo := r.pending
	r.pending = nil
	for {
		for len(todo) > 0 {
			a := todo[0]
			todo = append(todo[1:], r.obey(a, dead)...)
			switch a.(type) {
			case Learn, ChangeVoters, DropLearner, TransferTo, MayGo:
				done = append(done, a)
			}
		}
		if r.now >= end {
			return done
		}
		todo = r.run(min(time.Second, end.Sub(r.now)), true)
		for _, m := range r.view.Members {
			if m.Role == order.Learner && !dead[r.number[m.Peer]] {
				todo = append(todo, r.do(Progress{Member: m.ID, Match: 100, Commit: 100})...)
			}
		}
	}
}

func (r *rig) obey(a PlanAction, dead map[int]bool) []PlanAction {
	next := r.view
	next.Members = append([]order.Member(nil), r.view.Members...)
	next.Num++
	remove := func(ids ...order.ReplicaID) { next.Members = without(next.Members, ids...) }
	switch a := a.(type) {
	case Endorse:
		m, _ := r.view.Member(a.To)
		if i := r.number[m.Peer]; dead[i] || r.mute[i] {
			return nil
		}
		v := a.Question.Endorses(r.view, r.point, func(n keyspace.NodeID) Reach {
			if dead[r.number[n]] {
				return Suspected
			}
			return Reached
		})
		return r.do(EndorseAnswer{Term: a.Question.Term, Round: a.Question.Round, View: a.Question.View, From: a.To, Verdict: v})
	case Learn:
		next.Members = append(next.Members, order.Member{ID: next.Next, Peer: a.Peer, Store: a.Store, Role: order.Learner})
		next.Next++
	case DropLearner:
		remove(a.Member)
	case ChangeVoters:
		next.Members = altered(next.Members, a.Promote, a.Remove)
	default:
		return nil
	}
	return r.do(ViewSeen{View: next})
}

// places returns the peers of the voters and of the learners.
func (r *rig) places() (voters, learners int, at map[int]bool) {
	at = make(map[int]bool)
	for _, m := range r.view.Members {
		if m.Role == order.Voter {
			voters++
		} else {
			learners++
		}
		at[r.number[m.Peer]] = true
	}
	return voters, learners, at
}

func TestSizesWhileTheOverlayGrows(t *testing.T) {
	for _, c := range []struct{ f, peers, voters, learners int }{
		{1, 1, 1, 0}, {1, 2, 1, 1}, {1, 3, 3, 0}, {1, 4, 3, 0}, {1, 9, 3, 0},
		{2, 1, 1, 0}, {2, 2, 1, 1}, {2, 3, 3, 0}, {2, 4, 3, 1}, {2, 5, 5, 0}, {2, 6, 5, 0}, {2, 9, 5, 0},
		{3, 6, 5, 1}, {3, 7, 7, 0}, {3, 8, 7, 0},
	} {
		r := newRig(c.f, 0)
		r.begin(c.peers, 0)
		r.drive(10*time.Minute, nil)
		voters, learners, at := r.places()
		if voters != c.voters || learners != c.learners {
			t.Errorf("f=%d, %d peers: %d voters and %d learners, want %d and %d", c.f, c.peers, voters, learners, c.voters, c.learners)
		}
		for i := range c.voters + c.learners {
			if !at[i] {
				t.Errorf("f=%d, %d peers: peer %d is not a member, it is among the closest", c.f, c.peers, i)
			}
		}
		if more := r.drive(10*time.Minute, nil); len(more) != 0 {
			t.Errorf("f=%d, %d peers: then %s", c.f, c.peers, r.show(more))
		}
	}
}

// suspect makes the leader suspect peers, and everybody not to hear from them.
func (r *rig) suspect(dead map[int]bool, peers ...int) {
	for _, i := range peers {
		dead[i] = true
		delete(r.answering, i)
		r.tell(PeerState{Peer: r.node(i)})
	}
}

// Section 3.5 gives an overlay of N peers the largest odd number of voters up to N: a group of 5 would shrink to 3 and a
// learner when one peer of 5 dies, one of 3 to 1 and a learner. Neither survives more crashes than before, and both make the
// return of the peer a matter of minutes: nothing is done.
func TestAGroupThatCannotBeRepairedDoesNotShrinkForNothing(t *testing.T) {
	for _, c := range []struct{ f, peers, dead, voters int }{
		{1, 3, 1, 3}, {2, 5, 1, 5}, {2, 5, 2, 3}, {3, 7, 1, 7}, {3, 7, 2, 5}, {3, 7, 3, 5},
	} {
		r, dead := newRig(c.f, 0), make(map[int]bool)
		var all []int
		for i := range c.peers {
			all = append(all, i)
		}
		r.begin(c.peers, all...)
		r.drive(time.Minute, dead)
		r.suspect(dead, all[c.peers-c.dead:]...)
		r.drive(10*time.Minute, dead)
		if voters, learners, _ := r.places(); voters != c.voters || learners != 0 {
			t.Errorf("f=%d, %d of %d dead: %d voters and %d learners, want %d", c.f, c.dead, c.peers, voters, learners, c.voters)
		}
	}
}

// With an even number of peers the learner takes the place of a dead voter as soon as it counts as dead.
func TestTheSpareLearnerTakesTheDeadVotersPlace(t *testing.T) {
	r, dead := newRig(2, 0), make(map[int]bool)
	r.begin(4, 0)
	r.drive(10*time.Minute, dead)
	r.suspect(dead, 1)
	before := r.now
	for len(r.drive(time.Second, dead)) == 0 {
		if r.now.Sub(before) > time.Minute {
			t.Fatal("nothing happens")
		}
	}
	voters, learners, at := r.places()
	if wait := r.now.Sub(before); voters != 3 || learners != 0 || at[1] || wait > 32*time.Second {
		t.Errorf("after %v: %d voters, %d learners, at %v", wait, voters, learners, at)
	}
}

// Section 3.5 takes the 2f+1 closest of all that answered, and then wants the candidate to be stable: peers that come and go
// next to the anchor would fill those places for ever.
func TestFlappersNearTheAnchorDoNotStopTheRepair(t *testing.T) {
	r, dead := newRig(1, 10), make(map[int]bool)
	r.begin(0, 10, 11, 12)
	for i := 10; i < 14; i++ {
		r.answering[i] = -1 << 60
	}
	r.suspect(dead, 12)
	for range 20 {
		for i := range 6 { // up again and again, never for a minute
			r.answering[i] = r.now
		}
		r.drive(10*time.Second, dead)
	}
	if _, _, at := r.places(); at[12] || !at[13] {
		t.Errorf("the dead voter was not replaced: %v", at)
	}
}

// The 2f+1 closest are those that answered: taken literally, a voter that is under suspicion for a moment and missed by a
// look-up is not among them and is replaced at once, whatever T_fail says.
func TestAMomentOfSuspicionMakesNobodyAVictim(t *testing.T) {
	r := newRig(1, 0)
	r.begin(6, 0, 1, 2)
	for range 60 {
		r.tell(PeerState{Peer: r.node(1)})
		delete(r.answering, 1)
		if out := r.drive(25*time.Second, nil); len(out) != 0 {
			t.Fatalf("after %v: %s", r.now, r.show(out))
		}
		r.tell(PeerState{Peer: r.node(1), Live: true})
		r.answering[1] = r.now
		if out := r.drive(time.Second, nil); len(out) != 0 {
			t.Fatalf("after %v: %s", r.now, r.show(out))
		}
	}
}

// Two of three voters leave, and the third, which would be left alone, has died unnoticed. The two that leave are a majority of
// the voters, and must not agree to that.
func TestVotersToBeMustAnswer(t *testing.T) {
	r, dead := newRig(1, 0), make(map[int]bool)
	r.begin(3, 0, 1, 2)
	dead[2] = true // nobody knows
	r.tell(LeaveWish{Peer: r.node(0)})
	r.tell(LeaveWish{Peer: r.node(1)})
	for range 30 {
		for _, a := range r.drive(2*time.Second, dead) {
			if c, ok := a.(ChangeVoters); ok {
				t.Fatalf("%s", r.show([]PlanAction{c}))
			}
		}
		r.tell(LeaveWish{Peer: r.node(0)})
		r.tell(LeaveWish{Peer: r.node(1)})
	}
}

func TestALearnerThatNeverAnswersIsDropped(t *testing.T) {
	r, dead := newRig(1, 0), make(map[int]bool)
	r.begin(5, 0, 1, 2)
	r.suspect(dead, 2)
	r.mute = map[int]bool{3: true} // peer 3 receives the log and is not suspected; it answers nothing
	var dropped bool
	for range 200 {
		for _, m := range r.view.Members {
			if r.number[m.Peer] == 3 {
				r.tell(Progress{Member: m.ID, Match: 100, Commit: 100})
			}
		}
		for _, a := range r.drive(time.Second, dead) {
			_, ok := a.(DropLearner)
			dropped = dropped || ok
		}
	}
	if _, _, at := r.places(); !dropped || at[3] {
		t.Errorf("dropped: %v, members %v", dropped, at)
	}
}

// One that moves all the time and never gets near the end of the log has ten minutes.
func TestALearnerThatMovesForEverIsDropped(t *testing.T) {
	r := newRig(1, 0)
	r.begin(2, 0)
	r.drive(0, nil)
	began := r.now
	for i := range uint64(700) {
		for _, a := range append(r.do(Progress{Member: 2, Match: i, Commit: 1000 + 1000*i}), r.run(time.Second, true)...) {
			if _, ok := a.(DropLearner); ok {
				if after := r.now.Sub(began); after < 10*time.Minute || after > 10*time.Minute+2*time.Second {
					t.Errorf("dropped after %v", after)
				}
				return
			}
		}
	}
	t.Error("it learns for ever")
}

func TestLeadershipGoesToALiveVoterWithTheLongestLog(t *testing.T) {
	r := newRig(2, 0)
	r.begin(5, 0, 1, 2, 3, 4)
	r.drive(0, nil)
	for id, match := range map[order.ReplicaID]uint64{2: 90, 3: 80, 4: 100, 5: 85} {
		r.do(Progress{Member: id, Match: match, Commit: 100})
	}
	r.do(PeerState{Peer: r.node(3)}) // replica 4, the longest
	r.do(LeaveWish{Peer: r.node(4)}) // replica 5 leaves too
	var to []order.ReplicaID
	for _, a := range append(r.do(LeaveWish{Peer: r.node(0)}), r.run(20*time.Second, false)...) {
		if a, ok := a.(TransferTo); ok {
			to = append(to, a.Member)
		}
	}
	if len(to) != 2 || to[0] != 2 || to[1] != 3 {
		t.Errorf("offered to %v, want 2 and then 3", to)
	}
}

func TestAPeerThatRestartsDoesNotWantToLeaveAnyMore(t *testing.T) {
	r := newRig(1, 0)
	r.begin(4, 0, 1, 2)
	r.do(ChangeDone{})
	r.run(10*time.Second, false)
	r.do(LeaveWish{Peer: r.node(1)})
	r.now = r.now.Add(3 * time.Second)
	r.answering[1] = r.now.Add(-time.Second)
	r.do(r.found())
	if len(r.wishes) != 0 || r.choose(r.now).step.kind != stepNone {
		t.Errorf("it is still taken for leaving: %+v", r.choose(r.now))
	}
}

// A change whose outcome was unknown has begun after all: nothing is asked for before it is through.
func TestNothingIsAskedForInAJointPhase(t *testing.T) {
	r := newRig(1, 0)
	r.begin(4, 0, 1, 2)
	for _, ev := range []PlanEvent{LeaveWish{Peer: r.node(1)}, r.answer(3, Yes), ChangeDone{Ref: 1, OK: false}} {
		r.do(ev)
	}
	joint := r.view
	joint.Num++
	r.do(ViewSeen{View: joint, Joint: true})
	if out := r.run(50*time.Second, false); len(out) != 0 {
		t.Errorf("in the joint phase: %s", r.show(out))
	}
	joint.Num++
	if out := append(r.do(ViewSeen{View: joint}), r.run(20*time.Second, false)...); len(out) < 2 {
		t.Errorf("after it: %s", r.show(out))
	}
}

// A group of three, one voter gone for good: only a peer of whom enough is known takes its place.
func TestWhoIsACandidate(t *testing.T) {
	for name, c := range map[string]struct {
		change func(r *rig, n *Neighbour)
		want   bool
	}{
		"a peer that has been up for an hour": {func(*rig, *Neighbour) {}, true},
		"one that is in client mode":          {func(_ *rig, n *Neighbour) { n.Hosts = false }, false},
		"one that names no store":             {func(_ *rig, n *Neighbour) { n.Store = order.StoreID{} }, false},
		"a copy of a member's directory":      {func(r *rig, n *Neighbour) { n.Store = r.store(0) }, false},
		"one that has just come up":           {func(_ *rig, n *Neighbour) { n.Up = 10 * time.Second }, false},
		"one that wants to leave":             {func(r *rig, n *Neighbour) { r.do(Candidates{Peers: []Neighbour{*n}}); r.do(LeaveWish{Peer: n.Peer}) }, false},
		"one under suspicion": {func(r *rig, n *Neighbour) {
			r.do(Candidates{Peers: []Neighbour{*n}})
			r.do(PeerState{Peer: n.Peer})
			n.Peer = keyspace.NodeID{}
		}, false},
		"one that was suspected a moment ago": {func(r *rig, n *Neighbour) {
			r.do(Candidates{Peers: []Neighbour{*n}})
			r.do(PeerState{Peer: n.Peer})
			r.do(PeerState{Peer: n.Peer, Live: true})
		}, false},
		"one that answered half a minute ago": {func(r *rig, n *Neighbour) {
			r.do(Candidates{Peers: []Neighbour{*n}})
			r.now = r.now.Add(30 * time.Second)
			n.Peer = keyspace.NodeID{}
		}, false},
		"one on the list": {func(r *rig, n *Neighbour) { r.list(n.Peer, r.now) }, false},
	} {
		r := newRig(1, 0)
		r.now = r.now.Add(time.Hour)
		r.begin(0, 0, 1, 2)
		r.do(PeerState{Peer: r.node(2)})
		r.now = r.now.Add(29 * time.Second)
		n := Neighbour{Peer: r.node(5), Store: r.store(5), Up: time.Hour, Hosts: true}
		c.change(r, &n)
		var out []PlanAction
		if !n.Peer.IsZero() {
			out = r.do(Candidates{Peers: []Neighbour{n}})
		}
		out = append(out, r.run(2*time.Second, false)...)
		if asked := len(out) > 0; asked != c.want {
			t.Errorf("%s: %s", name, r.show(out))
		}
	}
}

func TestALearnerUnderSuspicionIsNotPromoted(t *testing.T) {
	r, dead := newRig(1, 0), make(map[int]bool)
	r.begin(4, 0, 1, 2)
	r.suspect(dead, 2)
	for learners := 0; learners == 0; _, learners, _ = r.places() {
		if r.drive(500*time.Millisecond, dead); r.now > 1<<36 {
			t.Fatal("nobody learns")
		}
	}
	r.do(PeerState{Peer: r.node(3)})
	if out := r.do(Progress{Member: 4, Match: 100, Commit: 100}); len(out) > 0 {
		t.Errorf("suspected: %s", r.show(out))
	}
	if out := r.do(PeerState{Peer: r.node(3), Live: true}); len(out) == 0 {
		t.Error("trusted again, and nothing is asked")
	}
}

// A leader that has just begun knows of nobody who could take a place, until the peers near the anchor have answered: it must not let
// a voter go for that, as it did when a leader that left had handed leadership over.
func TestNobodyIsLetGoBeforeThePeersNearTheAnchorHaveAnswered(t *testing.T) {
	for found, want := range map[string]string{
		"nobody": "may go", "a candidate": "asks", "a failed look-up": "nothing",
		"a candidate that is ripe in 5 s": "nothing", "a candidate that is ripe in 20 s": "may go",
	} {
		r := newRig(1, 0)
		v := order.View{Next: 4, Members: []order.Member{r.member(1, 0, order.Voter), r.member(2, 1, order.Voter), r.member(3, 2, order.Voter)}}
		out := r.Step(ViewSeen{View: v}, r.now, nil)
		out = r.Step(LeaveWish{Peer: r.node(1)}, r.now, out)
		if slices.ContainsFunc(out, func(a PlanAction) bool { _, ok := a.(MayGo); return ok }) {
			t.Fatalf("at once: %v", out)
		}
		switch stable := r.cfg.Times.Stable; found {
		case "a candidate":
			r.answering[3] = r.now.Add(-time.Hour)
		case "a candidate that is ripe in 5 s":
			r.answering[3] = r.now.Add(5*time.Second - stable)
		case "a candidate that is ripe in 20 s":
			r.answering[3] = r.now.Add(20*time.Second - stable)
		}
		c := r.found()
		c.Partial = found == "a failed look-up"
		got := "nothing"
		for _, a := range r.Step(c, r.now, nil) {
			switch a.(type) {
			case MayGo:
				got = "may go"
			case Endorse:
				got = "asks"
			}
		}
		if got != want {
			t.Errorf("%s answered: %s, want %s", found, got, want)
		}
	}
}

// Where the waits are short a peer's last answer, by which it hosts groups, may be remembered for longer than a peer has to be stable.
// It was then asked to join what it had left.
func TestAWishToLeaveLastsAsLongAsTheAnswerBeforeIt(t *testing.T) {
	r := newRig(1, 0)
	times := TestnetPlanTimes()
	r.cfg.Times = &times
	r.begin(0, 0, 1, 2)
	r.answering[1] = r.now.Add(-time.Hour)
	r.do(r.found())
	r.do(LeaveWish{Peer: r.node(1)})
	delete(r.answering, 1)
	r.do(ViewSeen{View: order.View{Num: 3, Next: 4, Members: []order.Member{r.member(1, 0, order.Voter)}}})
	for end := r.now.Add(r.cfg.Times.Fresh); r.now < end; r.now = r.now.Add(100 * time.Millisecond) {
		if pool, _, _ := r.pool(r.standings(r.now), r.now); len(pool) != 0 {
			t.Fatalf("%v after the start: %v is a candidate", r.now, pool)
		}
		r.do(Wake{})
	}
}

// What leaves and then is silent has left, or has failed: 30 s decide.
func TestAWishEndsWithSuspicion(t *testing.T) {
	r := newRig(1, 0)
	r.begin(0, 0, 1, 2)
	r.do(LeaveWish{Peer: r.node(1)})
	r.do(PeerState{Peer: r.node(1)})
	r.do(PeerState{Peer: r.node(0)}) // nobody suspects himself
	for _, m := range r.standings(r.now) {
		if m.why != 0 || m.Peer == r.node(0) && !m.live {
			t.Errorf("%+v", m)
		}
	}
}

// attempts returns when the planner asked to learn or to endorse, after the first time.
func (r *rig) attempts(react func(PlanAction)) (at []time.Duration) {
	first := r.now
	for r.now < first.Add(15*time.Second) {
		for _, a := range r.run(100*time.Millisecond, true) {
			switch e := a.(type) {
			case Learn:
				at = append(at, r.now.Sub(first))
			case Endorse:
				if e.To == 3 {
					at = append(at, r.now.Sub(first))
				}
			}
			react(a)
		}
	}
	return at
}

func TestWhoLeavesDoesNotWaitTenSecondsForTheNextAttempt(t *testing.T) {
	r := newRig(1, 0)
	r.begin(4, 0, 1, 2)
	r.do(LeaveWish{Peer: r.node(1)})
	r.do(r.answer(3, VictimLive))
	if at := r.attempts(func(PlanAction) { r.do(r.answer(3, VictimLive)) }); len(at) < 4 || at[0] > 4*time.Second {
		t.Errorf("asked again after %v", at)
	}
}

// A follower learns of a view a little later than the leader. A question that it could not judge is put again in a second.
func TestAVoterThatLagsIsAskedAgainSoon(t *testing.T) {
	for verdict, soon := range map[Verdict]bool{OtherView: true, VictimLive: false} {
		r, dead := newRig(1, 0), make(map[int]bool)
		r.begin(4, 0, 1, 2)
		r.drive(time.Second, dead)
		r.do(PeerState{Peer: r.node(1)})
		delete(r.answering, 1)
		if out := r.run(31*time.Second, true); len(out) == 0 {
			t.Fatal("nothing is asked")
		}
		r.do(r.answer(3, verdict))
		if at := r.attempts(func(PlanAction) {}); len(at) == 0 || at[0] < 4*time.Second != soon {
			t.Errorf("%v: asked again after %v", verdict, at)
		}
	}
}

func TestPlansThatAreFinishedCostLittle(t *testing.T) {
	r := newRig(1, 0)
	r.begin(6, 0, 1, 2)
	r.run(5*time.Minute, false)
	looked, events := r.lookUps, r.events
	r.run(time.Hour, false)
	if r.lookUps-looked > 60 || r.events-events > 60*4 {
		t.Errorf("%d look-ups and %d events in an idle hour", r.lookUps-looked, r.events-events)
	}
	// A suspicion ends the rest at once.
	r.run(55*time.Second, false)
	looked = r.lookUps
	r.do(PeerState{Peer: r.node(1)})
	if r.run(10*time.Second, false); r.lookUps == looked {
		t.Error("no look-up within 10 s of a suspicion")
	}
}

func TestAPlannersMemoryIsBounded(t *testing.T) {
	r := newRig(1, 0)
	r.begin(3, 0, 1, 2)
	for i := range 10_000 {
		n := keyspace.NodeIDOf(string(rune(i)))
		r.do(PeerState{Peer: n})
		r.do(LeaveWish{Peer: n})
		r.do(Candidates{Peers: []Neighbour{{Peer: n, Store: storeID(byte(i)), Up: time.Hour, Hosts: i%2 == 0}}})
		r.do(PeerState{Peer: n})
		r.do(Progress{Member: order.ReplicaID(i), Match: 1, Commit: 9})
		r.do(EndorseAnswer{Term: 7, Round: r.round, View: 0, From: order.ReplicaID(i), Verdict: Yes})
		r.list(n, r.now)
		r.now++
		if members := len(r.Planner.view.Members); len(r.near) > neighboursMax+members || len(r.down) > neighboursMax+members ||
			len(r.wishes) > neighboursMax+members || len(r.listed) > ListedMax || len(r.progress) > members {
			t.Fatalf("%d near, %d down, %d wishes, %d listed, %d progress", len(r.near), len(r.down), len(r.wishes), len(r.listed), len(r.progress))
		}
	}
}

func TestAPlanThatHasNotBegunDoesNothing(t *testing.T) {
	r := newRig(1, 0)
	for _, ev := range []PlanEvent{Wake{}, Candidates{}, LeaveWish{Peer: r.node(1)}, PeerState{Peer: r.node(1)}, Progress{Member: 1},
		ChangeDone{Ref: 1, OK: true}, EndorseAnswer{Term: 7, From: 1, Verdict: Yes}} {
		if out := r.Step(ev, 0, nil); len(out) != 0 {
			t.Errorf("%T: %v", ev, out)
		}
	}
}

func BenchmarkPlanOfASettledGroup(b *testing.B) {
	r := newRig(2, 0)
	r.begin(20, 0, 1, 2, 3, 4)
	found := r.found()
	var out []PlanAction
	b.ReportAllocs()
	for b.Loop() {
		out = r.Step(found, r.now, out[:0])
	}
}

// While its group sleeps and there is nothing to do, a plan looks nobody up and wants no timer; awake, it does as before.
func TestThePlanOfAGroupThatSleepsRests(t *testing.T) {
	r := newRig(1, 0)
	r.begin(3, 0, 1, 2)
	rests := func(ev PlanEvent, want bool) {
		t.Helper()
		rests := false
		for _, a := range r.do(ev) {
			_, is := a.(Rests)
			rests = rests || is
		}
		if rests != want || want && r.armed != automaton.Never {
			t.Errorf("%T: rests %v, wakes at %v", ev, rests, r.armed)
		}
	}
	rests(Sleeping{On: true}, true)
	if n := r.lookUps; len(r.run(time.Hour, false)) > 0 || r.lookUps != n {
		t.Errorf("%d look-ups in an hour's rest", r.lookUps-n)
	}
	rests(Rouse{}, true)
	if r.lookUps != 2 {
		t.Errorf("%d look-ups, want one at the beginning and one when roused", r.lookUps)
	}
	rests(Appeared{Peer: r.node(7)}, false) // farther than all members
	rests(Appeared{Peer: r.node(0)}, false)
	if r.lookUps != 2 {
		t.Error("a peer that is of no concern is looked for")
	}

	// Awake it goes on as if it had never slept, and one that was looked up a moment ago may rest again at once.
	rests(Sleeping{}, false)
	rests(Sleeping{On: true}, true)
	rests(Sleeping{}, false)
	n := r.lookUps
	if r.run(3*DefaultPlanTimes().Idle, false); r.lookUps < n+2 {
		t.Errorf("%d look-ups in three minutes awake", r.lookUps-n)
	}
}

// While its group sleeps, a plan waits whether a suspicion passes, and looks around once, just before somebody is needed.
func TestASuspicionIsWaitedOut(t *testing.T) {
	times := DefaultPlanTimes()
	for _, spare := range []bool{false, true} {
		r := newRig(1, 1)
		for _, i := range []int{1, 2, 3, 9} {
			if i < 9 || spare {
				r.answering[i] = r.now.Add(-time.Hour)
			}
		}
		r.begin(0, 1, 2, 3)
		r.do(Sleeping{On: true})
		r.run(time.Minute, false)
		n, events := r.lookUps, r.events
		delete(r.answering, 3)
		r.do(PeerState{Peer: r.node(3)})
		if done := r.run(times.Fail-times.Every/2-1, false); len(done) > 0 || r.lookUps != n || r.events != events+1 || len(r.near) > 0 {
			t.Errorf("spare %v: before it is time: %s, %d look-ups, %d events, %d peers known", spare, r.show(done), r.lookUps-n, r.events-events, len(r.near))
		}
		done := r.run(times.Every/2+1, false)
		if _, learns := append(done, nil)[0].(Endorse); r.lookUps != n+1 || learns != spare || r.resting == spare {
			t.Errorf("spare %v: when the member has failed: %s, %d look-ups, resting %v", spare, r.show(done), r.lookUps-n, r.resting)
		}

		// One that passes costs nothing.
		r = newRig(1, 1)
		for i := 1; i <= 3; i++ {
			r.answering[i] = r.now.Add(-time.Hour)
		}
		r.begin(0, 1, 2, 3)
		r.do(Sleeping{On: true})
		r.run(time.Minute, false)
		n = r.lookUps
		r.do(PeerState{Peer: r.node(3)})
		r.run(times.Fail/2, false)
		r.do(PeerState{Peer: r.node(3), Live: true})
		if r.run(time.Hour, false); r.lookUps != n || !r.resting {
			t.Errorf("a suspicion that passed: %d look-ups, resting %v", r.lookUps-n, r.resting)
		}
	}

	// What is to be looked at meanwhile is, and is not forgotten with the suspicion.
	for name, tc := range map[string]struct {
		suspected, lost int // the member under suspicion, and the one that lost its store; 0: none
		patrol          bool
	}{"another member": {3, 2, false}, "the member itself": {3, 3, false}, "the patrol": {3, 2, true}, "nothing lost": {3, 0, true}} {
		r := newRig(1, 1)
		for i := 1; i <= 3; i++ {
			r.answering[i] = r.now.Add(-time.Hour)
		}
		r.begin(0, 1, 2, 3)
		r.do(Sleeping{On: true})
		r.run(time.Minute, false)
		n := r.lookUps
		r.do(PeerState{Peer: r.node(tc.suspected)})
		r.run(times.Fail/6, false)
		if tc.lost > 0 {
			r.stores[tc.lost] = order.StoreID{99}
		}
		var ev PlanEvent = Appeared{Peer: r.node(tc.lost)}
		if tc.patrol {
			ev = Rouse{}
		}
		r.tell(ev)
		done := r.drive(times.Every, nil)
		if r.lookUps == n || tc.lost == 0 && r.lookUps > n+1 {
			t.Errorf("%s: %d look-ups", name, r.lookUps-n)
		}
		r.tell(PeerState{Peer: r.node(tc.suspected), Live: true})
		if done = append(done, r.drive(2*time.Minute, nil)...); slices.ContainsFunc(done, func(a PlanAction) bool { _, ok := a.(Learn); return ok }) == (tc.lost == 0) {
			t.Errorf("%s: it comes to %s", name, r.show(done))
		}
	}

	// And one that appears when its group has just been looked after, as the plan begins to rest.
	r := newRig(1, 1)
	for i := 1; i <= 3; i++ {
		r.answering[i] = r.now.Add(-time.Hour)
	}
	r.begin(0, 1, 2, 3)
	r.do(Sleeping{On: true})
	if r.run(time.Second, false); !r.resting {
		t.Fatal("it does not rest")
	}
	n := r.lookUps
	r.tell(Appeared{Peer: r.node(2)})
	if r.run(times.Every, false); r.lookUps != n+1 || !r.resting {
		t.Errorf("a member that appears right after a look-up: %d look-ups, resting %v", r.lookUps-n, r.resting)
	}
}

// Whatever could change the plan's mind ends the rest.
func TestARestEndsWithWhateverMatters(t *testing.T) {
	joined := order.View{Num: 1, Next: 5}
	for name, tc := range map[string]struct {
		ev   func(r *rig) PlanEvent
		want func(a PlanAction) bool // what comes of it within two minutes
	}{
		"a closer peer": {func(r *rig) PlanEvent { r.answering[0] = r.now.Add(30 * time.Second); return Appeared{Peer: r.node(0)} },
			func(a PlanAction) bool { _, ok := a.(Learn); return ok }},
		"a closer peer, at the patrol": {func(r *rig) PlanEvent { r.answering[0] = r.now.Add(-time.Hour); return Rouse{} },
			func(a PlanAction) bool { _, ok := a.(Learn); return ok }},
		"a member without its store": {func(r *rig) PlanEvent { r.stores[2] = order.StoreID{99}; return Appeared{Peer: r.node(2)} },
			func(a PlanAction) bool { _, ok := a.(Learn); return ok }},
		"a suspicion": {func(r *rig) PlanEvent {
			r.answering[9] = r.now.Add(-time.Hour)
			delete(r.answering, 3)
			return PeerState{Peer: r.node(3)}
		}, func(a PlanAction) bool { _, ok := a.(Learn); return ok }},
		"a stranger, where a member is gone": {func(r *rig) PlanEvent {
			delete(r.answering, 3)
			r.do(PeerState{Peer: r.node(3)})
			n := r.lookUps
			if r.run(time.Hour, false); !r.resting || r.lookUps != n+1 {
				t.Errorf("nobody can take the place of a member that is gone: resting %v, %d look-ups", r.resting, r.lookUps-n)
			}
			r.answering[9] = r.now.Add(-time.Hour)
			return Appeared{Peer: r.node(9)}
		}, func(a PlanAction) bool { _, ok := a.(ChangeVoters); return ok }},
		"a wish to leave": {func(r *rig) PlanEvent { return LeaveWish{Peer: r.node(3)} },
			func(a PlanAction) bool { m, ok := a.(MayGo); return ok && m.Peer != keyspace.NodeID{} }},
		"a view": {func(r *rig) PlanEvent {
			joined.Members = append(slices.Clone(r.view.Members), r.member(4, 9, order.Learner)) // one that nobody wants
			return ViewSeen{View: joined}
		}, func(a PlanAction) bool { _, ok := a.(DropLearner); return ok }},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(1, 1)
			r.begin(0, 1, 2, 3)
			for i := 1; i <= 3; i++ {
				r.answering[i] = r.now.Add(-time.Hour)
			}
			r.drive(2*time.Minute, nil)
			r.do(Sleeping{On: true})
			r.run(10*time.Minute, false)
			if !r.resting {
				t.Fatal("it does not rest")
			}
			r.tell(tc.ev(r))
			dead := map[int]bool{3: name == "a suspicion" || name == "a stranger, where a member is gone"}
			if done := r.drive(2*time.Minute, dead); !slices.ContainsFunc(done, tc.want) {
				t.Errorf("comes to %v", done)
			}
		})
	}
}
