package raft

import (
	"slices"
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"latchkey/replicagroup/order"
)

func TestAGroupElectsCommitsAndAgrees(t *testing.T) {
	for _, voters := range []int{1, 2, 3, 5, 7} {
		w := newWorld(t, 1, voters, 1)
		w.startAll()
		lead := w.awaitLeader(time.Second)
		w.commit(lead, 1, 20)
		w.agree(time.Second)
		if lead.last != genesisIndex+1+20 {
			t.Errorf("%d voters: applied %d", voters, lead.last)
		}
		for id, n := range w.nodes {
			if n.eng.Dropped() != 0 {
				t.Errorf("%d voters: %d dropped %d messages of honest members", voters, id, n.eng.Dropped())
			}
		}
	}
}

// As many are told of an entry at once as it takes to commit it, and those who do not answer are not among them next time.
func TestAMajorityIsToldAtOnce(t *testing.T) {
	for _, voters := range []int{1, 2, 3, 4, 5, 7} {
		w := newWorld(t, 1, voters, 1)
		w.startAll()
		lead := w.awaitLeader(time.Second)
		w.commit(lead, 1, 3)
		w.agree(time.Second)
		ref := uint64(3)
		told := func() (first []order.ReplicaID) {
			ref++
			var out order.Actions
			lead.eng.Step(timed(order.Propose{Ref: ref, Stamp: order.Stamp{Boot: 1, At: w.now}, Cmd: command(ref)}, w.now), &out)
			learner := false
			for _, s := range out.Send {
				if s.To == order.ReplicaID(voters+1) {
					learner = !s.Spare
				} else if !s.Spare {
					first = append(first, s.To)
				}
			}
			if len(out.Send) != voters || len(first) != voters/2 || !learner {
				t.Errorf("%d voters: of %d messages %d voters get theirs at once, the learner %v", voters, len(out.Send), len(first), learner)
			}
			w.perform(lead, &out)
			return first
		}
		mute := told()
		if (voters-1)/2 < len(mute) {
			continue // they cannot all be done without
		}
		w.drop = func(m *pb.Message) bool { return slices.Contains(mute, order.ReplicaID(m.GetFrom())) }
		if !w.run(time.Second, func() bool { _, ok := lead.done[ref]; return ok }) {
			t.Fatalf("%d voters: nothing is committed without %v", voters, mute)
		}
		for _, id := range told() {
			if slices.Contains(mute, id) {
				t.Errorf("%d voters: %d is told at once, and does not answer", voters, id)
			}
		}
	}
}

// Nobody can be done without while two majorities are needed, and nothing but entries can wait.
func TestWhatIsNotSpare(t *testing.T) {
	w := newWorld(t, 1, 3, 0)
	w.startAll()
	lead := w.awaitLeader(time.Second)
	w.commit(lead, 1, 3)
	w.agree(time.Second)
	spare := 0
	step := func(ev order.Event) {
		var out order.Actions
		lead.eng.Step(timed(ev, w.now), &out)
		for _, s := range out.Send {
			if s.Spare {
				spare++
			}
		}
		w.perform(lead, &out)
	}
	step(order.Read{Ref: 100, Now: w.now})
	if spare != 0 {
		t.Error("a heartbeat is spare")
	}
	lead.eng.joint = true
	step(order.Propose{Ref: 101, Stamp: order.Stamp{Boot: 1, At: w.now}, Cmd: command(101)})
	if lead.eng.joint = false; spare != 0 {
		t.Error("an append is spare in a joint view")
	}
}

func TestAKilledLeaderIsReplacedAndReturns(t *testing.T) {
	w := newWorld(t, 2, 3, 0)
	w.startAll()
	old := w.awaitLeader(time.Second)
	w.commit(old, 1, 5)
	w.crash(old.id)
	next := w.awaitLeader(3 * time.Second)
	if next == old {
		t.Fatal("the dead lead")
	}
	w.commit(next, 6, 10)
	w.start(old.id)
	w.agree(2 * time.Second)
	if got := len(old.machine); got < 10 {
		t.Errorf("%d entries at the one that returned", got)
	}
}

func TestAFarMemberGetsASnapshot(t *testing.T) {
	w := newWorld(t, 3, 3, 0)
	w.startAll()
	lead := w.awaitLeader(time.Second)
	w.crash(2)
	if lead.id == 2 {
		lead = w.awaitLeader(3 * time.Second)
	}
	w.commit(lead, 1, trailingEntriesMax+200)
	w.agree(time.Second)
	w.step(lead, order.Compact{Index: lead.last, Data: dataOf(lead.machine)})
	w.start(2)
	w.agree(3 * time.Second)
	if lead.sent["MsgSnap"] == 0 {
		t.Error("no snapshot was needed")
	}
	w.crash(2)
	w.start(2)
	w.agree(3 * time.Second)
	w.commit(w.awaitLeader(3*time.Second), 5000, 5010)
	w.agree(3 * time.Second)
}
