package raft

import (
	"errors"
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"latchkey/internal/automaton"
	"latchkey/replicagroup/order"
)

// leased returns a group that reads on leases, its leader, and how long a lease lasts.
func leased(t *testing.T, seed uint64, voters int) (*world, *node, time.Duration) {
	w := newWorld(t, seed, voters, 0)
	w.cfg.LeaseReads, w.cfg.Drift, w.cfg.Quiesce = true, 10*automaton.DriftDefault, time.Minute
	w.startAll()
	lead := w.awaitLeader(4 * electionTimeout)
	w.pass(3 * HeartbeatDefault)
	return w, lead, w.cfg.Drift.Shrink(electionTimeout)
}

// answered reports whether a read is answered in the step that asks for it.
func (w *world) answered(n *node, ref uint64) bool {
	w.step(n, order.Read{Ref: ref})
	_, ok := n.reads[ref]
	return ok
}

// alone cuts a replica off.
func (w *world) alone(id order.ReplicaID) {
	var rest []order.ReplicaID
	for _, other := range w.ids() {
		if other != id {
			rest = append(rest, other)
		}
	}
	w.split([]order.ReplicaID{id}, rest)
}

func TestALeaseLastsAndIsRenewed(t *testing.T) {
	w, lead, lasts := leased(t, 1, 3)
	if w.answered(lead, 1) {
		t.Fatal("answered before a majority has confirmed anything")
	}
	began := w.now
	w.pass(HeartbeatDefault)
	if _, ok := lead.reads[1]; !ok {
		t.Fatal("not answered by a round")
	}
	w.alone(lead.id)
	for ref := uint64(2); ; ref++ {
		ok := w.answered(lead, ref)
		if inside := w.now-began < lasts; ok != inside {
			t.Fatalf("%v after the round began: answered %v, a lease lasts %v", w.now-began, ok, lasts)
		}
		if !ok {
			break
		}
		w.pass(lasts / 50)
	}
	w.split()
	w.pass(3 * electionTimeout)

	// While reads come it is renewed in time: none waits.
	lead = w.awaitLeader(3 * electionTimeout)
	w.answered(lead, 1000)
	w.pass(HeartbeatDefault)
	rounds := lead.eng.rounds
	for ref := uint64(1001); ref < 1301; ref++ {
		if !w.answered(lead, ref) {
			t.Fatalf("read %d waits", ref)
		}
		w.pass(electionTimeout / 20)
	}
	if n := lead.eng.rounds - rounds; n == 0 || n > 50 {
		t.Errorf("%d rounds for 300 reads in 15 election time-outs", n)
	}
}

func TestADriverThatTellsNoTimeGetsNoLease(t *testing.T) {
	view := testView(1, 0)
	e, err := New(Config{Group: testGroup, Self: 1, Store: view.Members[0].Store, View: view, LeaseReads: true}, order.Image{})
	if err != nil {
		t.Fatal(err)
	}
	var out order.Actions
	do := func(ev order.Event) {
		out.Reset()
		e.Step(ev, &out)
	}
	do(order.Rand{Bits: 1})
	for range 20 { // it keeps still for ever: its time does not pass
		do(order.Stored{Seq: e.seq})
		do(order.Timer{Kind: tickTimer, Epoch: e.clock.epoch})
		do(order.Applied{Index: e.delivered})
	}
	if do(order.Read{Ref: 1}); len(out.ReadOK) > 0 {
		t.Errorf("%+v", out)
	}
	cfg := Config{Group: testGroup, Self: 1, Store: view.Members[0].Store, View: view, LeaseReads: true, Drift: 1e6}
	if _, err := New(cfg, order.Image{}); !errors.Is(err, ErrConfig) {
		t.Errorf("a drift of 100 %%: %v", err)
	}
}

// A replica whose clock is not to be trusted that far promises what the others do, and asks for each read.
func TestAReplicaThatOnlyPromisesReadsByRounds(t *testing.T) {
	w := newWorld(t, 5, 3, 0)
	w.cfg.LeaseReads, w.cfg.PromisesOnly, w.cfg.Quiesce = true, true, time.Minute
	w.startAll()
	lead := w.awaitLeader(4 * electionTimeout)
	w.pass(3 * HeartbeatDefault)
	for ref := uint64(1); ref < 10; ref++ {
		if w.answered(lead, ref) {
			t.Fatalf("read %d was answered on a lease", ref)
		}
		w.pass(HeartbeatDefault)
		if _, ok := lead.reads[ref]; !ok {
			t.Fatalf("read %d was not answered by a round", ref)
		}
	}
	if keeper := w.nodes[lead.id%3+1]; !keeper.eng.promised() {
		t.Error("a follower has promised nothing")
	}
}

// The plan wants no lease from the start of a transfer until one election time-out after it failed. But the order to campaign may
// take longer than that on its way, and those who are asked then keep no promise.
func TestALateTransferFindsNoLease(t *testing.T) {
	w, old, _ := leased(t, 2, 3)
	var late *pb.Message
	w.drop = func(m *pb.Message) bool {
		if m.GetType() == pb.MsgTimeoutNow {
			late = m
		}
		return m.GetType() == pb.MsgTimeoutNow
	}
	to := w.nodes[old.id%3+1]
	w.answered(old, 1)
	w.pass(HeartbeatDefault)
	w.step(old, order.Transfer{To: to.id})
	if late == nil {
		t.Fatal("no order to campaign")
	}
	if w.answered(old, 2) {
		t.Fatal("answered on a lease while leadership is handed over")
	}
	w.pass(3 * electionTimeout)
	if w.leader() != old {
		t.Fatal("the transfer did not fail")
	}
	w.answered(old, 3)
	w.pass(HeartbeatDefault)
	if _, ok := old.reads[3]; !ok {
		t.Fatal("no read after a transfer that failed")
	}
	w.alone(old.id)
	w.step(to, order.Recv{From: old.id, Store: w.member(old.id).Store, Msg: appendMessage(nil, late)})
	if !w.run(electionTimeout/4, func() bool { return w.leader() == to }) {
		t.Fatal("the late order has no effect: this test shows nothing")
	}
	w.commit(to, 10, 10)
	if w.answered(old, 4) {
		t.Errorf("a leader answers a read %v after another one has committed something", HeartbeatDefault)
	}
}

func TestNoLeaseAsleepAndNoneFromBefore(t *testing.T) {
	w := newWorld(t, 3, 3, 0)
	w.cfg.LeaseReads, w.cfg.Quiesce = true, 2*HeartbeatDefault
	w.startAll()
	lead := w.awaitLeader(4 * electionTimeout)
	w.awaitSleep()
	w.answered(lead, 1)
	w.pass(HeartbeatDefault / 2)
	if !w.answered(lead, 2) {
		t.Fatal("no lease awake")
	}
	w.awaitSleep()
	if w.now+time.Hour-lead.eng.lease.confirmed > electionTimeout {
		t.Fatal("it slept too late: this test shows nothing")
	}
	if w.answered(lead, 3) {
		t.Error("answered on a lease from before it slept")
	}
}

// Who has promised votes for nobody, whoever asks, but for the leader itself and its chosen successor.
func TestAPromiseIsKept(t *testing.T) {
	w, old, _ := leased(t, 4, 3)
	keeper, rival := w.nodes[old.id%3+1], w.nodes[(old.id+1)%3+1]
	w.pass(HeartbeatDefault) // a heartbeat has come
	heard := w.now
	w.crash(old.id)
	w.step(keeper, order.Suspect{Member: old.id})
	w.step(rival, order.Suspect{Member: old.id})
	for w.leader() == nil {
		if w.run(HeartbeatDefault/10, func() bool { return w.leader() != nil }); w.now-heard > 3*electionTimeout {
			t.Fatal("nobody takes over")
		}
		if keeper.eng.promised() && (keeper.eng.term > old.eng.term || rival.eng.role > 1) {
			t.Fatalf("a promise is not kept: %+v", keeper.eng.Status())
		}
	}
	if d := w.now - heard; d < electionTimeout-2*HeartbeatDefault || d > electionTimeout+5*HeartbeatDefault {
		t.Errorf("another leader %v after the old one was heard", d)
	}

	// Nor does one that has just started.
	lead := w.leader()
	w.crash(keeper.id)
	w.crash(rival.id)
	from := w.now
	w.start(keeper.id)
	w.start(rival.id)
	w.start(old.id)
	w.awaitLeader(5 * electionTimeout)
	if d := w.now - from; d < electionTimeout {
		t.Errorf("%d leads %v after all have started, %d did before", w.leader().id, d, lead.id)
	}
}
