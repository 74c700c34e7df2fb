package raft

import (
	"fmt"
	"slices"
	"testing"
	"time"

	etcd "go.etcd.io/raft/v3"

	"latchkey/replicagroup/order"
)

const electionTimeout = ElectionTicksDefault * HeartbeatDefault

// Test 18 of replica-groups.md section 8: with the engine's own timers a leader is found within 2 election time-outs after
// the old one died, in 99.9 % of elections, without help from a failure detector.
func TestALeaderIsFoundWithinTwoElectionTimeouts(t *testing.T) {
	elections := *seedsFlag
	if testing.Short() {
		elections = 1000 // of fewer, one late one is already more than one of a thousand
	}
	var took []time.Duration
	for seed := uint64(0); len(took) < elections; seed++ {
		w := newWorld(t, seed, 3+2*int(seed%2), 0)
		w.startAll()
		for range 20 {
			w.awaitLeader(10 * electionTimeout)
			w.pass(w.some(electionTimeout))
			old := w.leader()
			if old == nil {
				continue
			}
			w.crash(old.id)
			from := w.now
			w.awaitLeader(20 * electionTimeout)
			took = append(took, w.now-from)
			w.start(old.id)
			w.pass(electionTimeout)
		}
	}
	slices.Sort(took)
	late := 0
	for _, d := range took {
		if d > 2*electionTimeout {
			late++
		}
	}
	n := len(took)
	t.Logf("%d elections: median %v, 99 %% %v, 99.9 %% %v, longest %v; %d late", n, took[n/2], took[n*99/100], took[n*999/1000], took[n-1], late)
	if late*1000 > n {
		t.Errorf("%d of %d elections took longer than %v", late, n, 2*electionTimeout)
	}
}

// The library draws time-outs from a random source of the process; if the engine let it, equal runs would differ.
func TestEqualRunsAreEqual(t *testing.T) {
	seeds := 25
	if testing.Short() {
		seeds = 5
	}
	for seed := range uint64(seeds) {
		var traces [2][]string
		for i := range traces {
			w := newWorld(t, seed, 3, 1)
			w.trace = func(format string, args ...any) { traces[i] = append(traces[i], fmt.Sprintf(format, args...)) }
			w.mishaps(4 * time.Second)
		}
		if len(traces[0]) < 1000 {
			t.Fatalf("seed %d: only %d steps", seed, len(traces[0]))
		}
		for i := range traces[0] {
			if i >= len(traces[1]) || traces[0][i] != traces[1][i] {
				t.Fatalf("seed %d: the runs part at step %d: %s", seed, i, traces[0][i])
			}
		}
	}
}

func TestSuspicionReplacesADeadLeaderInAFewHeartbeats(t *testing.T) {
	for _, voters := range []int{3, 5} {
		var longest time.Duration
		for seed := range uint64(100) {
			w := newWorld(t, seed, voters, 0)
			w.startAll()
			old := w.awaitLeader(electionTimeout)
			// Everybody has heard of it: a member that knows no leader has nobody to suspect, and waits for its time-out.
			w.pass(2*HeartbeatDefault + w.some(electionTimeout))
			w.crash(old.id)
			from := w.now
			for _, id := range w.ids() {
				if n := w.nodes[id]; n != old {
					// Detectors do not agree on the moment.
					w.at(n, w.some(HeartbeatDefault/2), func() { w.step(n, order.Suspect{Member: old.id}) })
				}
			}
			w.awaitLeader(2 * electionTimeout)
			longest = max(longest, w.now-from)
		}
		t.Logf("%d voters: at most %v", voters, longest)
		if longest > 5*HeartbeatDefault {
			t.Errorf("%d voters: a suspected leader was replaced after %v only", voters, longest)
		}
	}
}

func TestOneWrongSuspicionDeposesNobody(t *testing.T) {
	for seed := range uint64(50) {
		w := newWorld(t, seed, 3, 0)
		w.startAll()
		lead := w.awaitLeader(electionTimeout)
		w.pass(electionTimeout)
		term := lead.eng.term
		for i := range 30 {
			for _, id := range w.ids() {
				if n := w.nodes[id]; n != lead && id == order.ReplicaID(i%2)+2 || n != lead && lead.id != 1 && id == 1 {
					w.step(n, order.Suspect{Member: lead.id})
					break
				}
			}
			w.pass(HeartbeatDefault + w.some(HeartbeatDefault))
		}
		w.pass(2 * electionTimeout)
		if now := w.leader(); now != lead || lead.eng.term != term {
			t.Fatalf("seed %d: leader %d of term %d lost to a wrong suspicion", seed, lead.id, term)
		}
	}
}

// A detector gone wild makes leaders change; it cannot keep a group from ever having one.
func TestSuspectingEverybodyAllTheTimeDoesNotStopAGroup(t *testing.T) {
	w := newWorld(t, 4, 5, 0)
	w.startAll()
	w.awaitLeader(electionTimeout)
	ref := uint64(0)
	for range 200 {
		for _, id := range w.ids() {
			n := w.nodes[id]
			for _, m := range w.ids() {
				w.step(n, order.Suspect{Member: m})
			}
		}
		if lead := w.leader(); lead != nil {
			ref++
			w.propose(lead, ref)
		}
		w.pass(2 * HeartbeatDefault)
	}
	done := 0
	for _, n := range w.nodes {
		for _, d := range n.done {
			if d.Err == nil {
				done++
			}
		}
	}
	if done < 50 {
		t.Errorf("%d commands done in 40 s", done)
	}
	w.pass(5 * electionTimeout)
	w.agree(electionTimeout)
}

func TestARestartedLeaderDoesNotWaitForItsFollowersPatience(t *testing.T) {
	w := newWorld(t, 5, 3, 0)
	w.startAll()
	old := w.awaitLeader(electionTimeout)
	w.commit(old, 1, 3)
	w.pass(electionTimeout)
	w.crash(old.id)
	w.start(old.id)
	from := w.now
	w.awaitLeader(2 * electionTimeout)
	if took := w.now - from; took > 3*HeartbeatDefault {
		t.Errorf("it took %v", took)
	}
}

func TestALoneVoterLeadsAtOnce(t *testing.T) {
	w := newWorld(t, 5, 1, 0)
	w.startAll()
	w.awaitLeader(HeartbeatDefault / 2)
	w.commit(w.nodes[1], 1, 3)
	w.crash(1)
	w.start(1)
	w.awaitLeader(HeartbeatDefault / 2)
}

func TestALearnerNeverCampaigns(t *testing.T) {
	w := newWorld(t, 6, 1, 2)
	w.startAll()
	w.awaitLeader(electionTimeout)
	w.crash(1)
	w.pass(10 * electionTimeout)
	for _, id := range []order.ReplicaID{2, 3} {
		n := w.nodes[id]
		if lead, _ := n.eng.Leader(); lead != 0 || n.sent["MsgPreVote"]+n.sent["MsgVote"] > 0 {
			t.Errorf("learner %d: leader %d, sent %v", id, lead, n.sent)
		}
	}
}

func TestAFollowerForgetsItsLeaderAfterTheElectionTimeout(t *testing.T) {
	e := inRole(t, etcd.StateFollower)
	var out order.Actions
	for i := 1; i <= ElectionTicksDefault; i++ {
		if e.lead != 1 {
			t.Fatalf("leader %d after %d heartbeats of silence", e.lead, i-1)
		}
		e.Step(order.Timer{Kind: tickTimer, Epoch: e.clock.epoch}, &out)
	}
	if e.lead != 0 || e.role != etcd.StateFollower {
		t.Errorf("leader %d, %v after the time-out", e.lead, e.role)
	}
}

func TestAStaleTimerIsIgnored(t *testing.T) {
	for _, role := range everyRole {
		e := inRole(t, role)
		before := e.Hash()
		var out order.Actions
		e.Step(order.Timer{Kind: tickTimer, Epoch: e.clock.epoch - 1}, &out)
		e.Step(order.Timer{Kind: tickTimer + 1, Epoch: e.clock.epoch}, &out)
		if e.Hash() != before || len(out.Timers) > 0 {
			t.Errorf("%v: a stale timer had an effect", role)
		}
	}
}

func TestLimitsAreDrawnFromTheWholeRange(t *testing.T) {
	var c electionClock
	cfg := Config{Heartbeat: HeartbeatDefault, ElectionTicks: ElectionTicksDefault}
	seen := map[int]int{}
	for range 10_000 {
		c.draw(cfg.keep())
		seen[int(c.limit)]++
		if c.tail <= 0 || c.tail > cfg.Heartbeat {
			t.Fatalf("tail %v", c.tail)
		}
	}
	for l := ElectionTicksDefault + 2; l <= 2*ElectionTicksDefault-2; l++ {
		if seen[l] < 1200 {
			t.Errorf("limit %d drawn %d times of 10000", l, seen[l])
		}
		delete(seen, l)
	}
	if len(seen) > 0 {
		t.Errorf("limits out of range: %v", seen)
	}
}
