package raft

import (
	"testing"
	"time"

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
