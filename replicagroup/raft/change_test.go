package raft

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"

	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
)

func newcomer(i byte) *order.Newcomer {
	return &order.Newcomer{Peer: keyspace.NodeID{i}, Store: order.StoreID{i}, PeerID: fmt.Sprintf("peer %d", i)}
}

// ask asks the leader for a change of the newest view and returns what became of it.
func (w *world) ask(c order.Change) error {
	w.tb.Helper()
	lead := w.awaitLeader(5 * time.Second)
	c.From, c.Ref = w.newest.View.Num, 1<<40+w.count
	w.step(lead, c)
	if !w.run(5*time.Second, func() bool { _, ok := lead.done[c.Ref]; return ok }) {
		w.tb.Fatalf("no outcome of %+v", c)
	}
	return lead.done[c.Ref].Err
}

// reach asks for changes until the newest view is one that satisfies done.
func (w *world) reach(c order.Change, done func(order.View) bool) {
	w.tb.Helper()
	for range 100 {
		if done(w.newest.View) {
			return
		}
		if err := w.ask(c); err != nil && !errors.Is(err, order.ErrBusy) && !errors.Is(err, order.ErrDropped) && !errors.Is(err, order.ErrNotLeader) {
			w.tb.Fatalf("%+v in %+v: %v", c, w.newest.View, err)
		}
		w.run(time.Second, func() bool { return done(w.newest.View) })
	}
	w.tb.Fatalf("%+v: still %+v", c, w.newest.View)
}

// replace replaces a voter by a new peer and returns the new id.
func (w *world) replace(old order.ReplicaID, by byte) order.ReplicaID {
	w.tb.Helper()
	id := w.newest.View.Next
	w.reach(order.Change{Learn: newcomer(by)}, func(v order.View) bool { return v.Next > id })
	if lead := w.awaitLeader(5 * time.Second); lead.id == old {
		w.run(10*time.Second, func() bool {
			for _, v := range w.newest.View.Voters() {
				if v != old {
					w.step(lead, order.Transfer{To: v})
					break
				}
			}
			w.pass(electionTimeout / 2)
			l := w.leader()
			return l != nil && l.id != old
		})
	}
	w.reach(order.Change{Promote: []order.ReplicaID{id}, Remove: []order.ReplicaID{old}}, func(v order.View) bool {
		_, is := v.Member(old)
		return !is && !v.Joint()
	})
	return id
}

func TestEveryMemberIsReplacedAndTheGroupGoesOn(t *testing.T) {
	for _, voters := range []int{1, 3, 5} {
		for _, compact := range []uint64{0, 5} {
			w := newWorld(t, uint64(voters), voters, 0)
			w.startAll()
			for _, n := range w.nodes {
				n.compactAt = compact
			}
			ref := uint64(0)
			for i := range voters {
				w.commit(w.awaitLeader(5*time.Second), ref+1, ref+10)
				ref += 10
				w.replace(order.ReplicaID(i+1), byte(100+i))
			}
			if w.newest.View.Next != order.ReplicaID(2*voters+1) || len(w.newest.View.Members) != voters || w.newest.View.Joint() {
				t.Fatalf("%+v", w.newest)
			}
			w.commit(w.awaitLeader(5*time.Second), ref+1, ref+10)
			w.pass(lingerElections*electionTimeout + time.Second)
			for i := range voters {
				if n := w.nodes[order.ReplicaID(i+1)]; n.up || n.halt != order.Removed {
					t.Errorf("%d voters: replica %d: up %v, halt %q", voters, n.id, n.up, n.halt)
				}
			}
			w.agree(5 * time.Second)
			for _, id := range w.newest.View.Voters() {
				n := w.nodes[id]
				if st := n.eng.Status(); !sameView(st.View, w.newest.View) {
					t.Errorf("%d has view %+v", id, st.View)
				}
				w.crash(id)
				w.start(id)
			}
			w.commit(w.awaitLeader(5*time.Second), ref+11, ref+20)
			w.agree(5 * time.Second)
		}
	}
}

func TestAGroupGrowsByTwoAndShrinksAgain(t *testing.T) {
	w := newWorld(t, 7, 1, 0)
	w.startAll()
	w.commit(w.awaitLeader(time.Second), 1, 5)
	for _, i := range []byte{50, 51} {
		next := w.newest.View.Next
		w.reach(order.Change{Learn: newcomer(i)}, func(v order.View) bool { return v.Next > next })
	}
	w.reach(order.Change{Promote: []order.ReplicaID{2, 3}}, func(v order.View) bool { return len(v.Voters()) == 3 && !v.Joint() })
	w.commit(w.awaitLeader(time.Second), 6, 10)
	w.agree(2 * time.Second)
	lead := w.leader()
	w.drop = func(m *pb.Message) bool { return m.GetType() == pb.MsgHeartbeatResp }
	w.step(lead, order.Read{Ref: 5000}) // waits for an answer of those that go
	gone := slices.DeleteFunc(w.newest.View.Voters(), func(id order.ReplicaID) bool { return id == lead.id })
	w.reach(order.Change{Remove: gone}, func(v order.View) bool { return len(v.Voters()) == 1 && !v.Joint() })
	if !w.run(time.Second, func() bool { _, ok := lead.reads[5000]; return ok }) {
		t.Error("a read hangs whose round lost its voters")
	}
	w.drop = nil
	w.commit(lead, 11, 15)
	next := w.newest.View.Next
	w.reach(order.Change{Learn: newcomer(60)}, func(v order.View) bool { return v.Next > next })
	w.reach(order.Change{Remove: []order.ReplicaID{next}}, func(v order.View) bool { return len(v.Members) == 1 })
}

func TestChangesAreAnsweredOnce(t *testing.T) {
	w := newWorld(t, 3, 3, 0)
	w.startAll()
	lead := w.awaitLeader(electionTimeout)
	for i, c := range []struct {
		at     *node
		change order.Change
		want   error
	}{
		{w.nodes[lead.id%3+1], order.Change{From: 1, Learn: newcomer(9)}, order.ErrNotLeader},
		{lead, order.Change{From: 2, Learn: newcomer(9)}, order.ErrStale},
		{lead, order.Change{From: 1, Learn: newcomer(1)}, order.ErrChange},
		{lead, order.Change{From: 1, Learn: newcomer(9)}, nil},
		{lead, order.Change{From: 1, Learn: newcomer(10)}, order.ErrBusy},
		{lead, order.Change{From: 1, Learn: newcomer(1)}, order.ErrBusy},
	} {
		c.change.Ref = uint64(1000 + i)
		w.step(c.at, c.change)
		if c.want == nil {
			continue
		}
		if d, ok := c.at.done[c.change.Ref]; !ok || !errors.Is(d.Err, c.want) {
			t.Errorf("%+v: %v %+v", c.change, ok, d)
		}
	}
	w.run(time.Second, func() bool { return len(lead.done) == 5 })
	if d := lead.done[1003]; d.Err != nil || d.Index != w.newest.Index || w.log[d.Index].Kind != order.ViewChange || w.log[d.Index].View != 2 {
		t.Errorf("%+v, entry %+v", d, w.log[d.Index])
	}
	w.agree(time.Second)
	st := lead.eng.Status()
	if st.Match[4] != st.Last || st.Behind[4] != 0 {
		t.Errorf("the learner is at %d of %d", st.Match[4], st.Last)
	}
}

func TestLeadershipIsHandedOver(t *testing.T) {
	w := newWorld(t, 3, 3, 1)
	w.startAll()
	old := w.awaitLeader(electionTimeout)
	w.commit(old, 1, 5)
	term := old.eng.term
	w.step(old, order.Transfer{To: old.id})
	w.step(old, order.Transfer{To: 4}) // a learner
	w.step(old, order.Transfer{To: 9})
	w.step(w.nodes[old.id%3+1], order.Transfer{To: old.id}) // does not lead
	w.pass(electionTimeout / 2)
	if w.leader() != old || old.eng.term != term {
		t.Fatal("leadership moved to nobody")
	}
	to := old.id%3 + 1
	w.propose(old, 6)
	w.step(old, order.Transfer{To: to})
	w.propose(old, 7)
	if d := old.done[7]; !errors.Is(d.Err, order.ErrBusy) {
		t.Errorf("a proposal during the handover: %+v", d)
	}
	from := w.now
	if !w.run(electionTimeout, func() bool { l := w.leader(); return l != nil && l.id == to }) {
		t.Fatal("no handover")
	}
	if took := w.now - from; took > 5*(w.delay+w.jitter) {
		t.Errorf("it took %v", took)
	}
	w.commit(w.nodes[to], 8, 10)
	w.agree(electionTimeout)
	// To one that cannot be reached: the leader goes on after an election time-out.
	lead := w.leader()
	far := lead.id%3 + 1
	w.crash(far)
	w.step(lead, order.Transfer{To: far})
	w.pass(electionTimeout + HeartbeatDefault)
	w.commit(lead, 11, 12)
}

// The end of a joint view must not depend on entries that come later: the one who leads proposes it, whoever that is.
func TestAJointViewIsLeftAfterItsLeaderDied(t *testing.T) {
	for seed := range uint64(40) {
		w := newWorld(t, seed, 3, 0)
		w.startAll()
		w.awaitLeader(electionTimeout)
		w.reach(order.Change{Learn: newcomer(9)}, func(v order.View) bool { return v.Next == 5 })
		w.agree(electionTimeout)
		lead := w.leader()
		victim := lead.id%3 + 1
		w.step(lead, order.Change{Ref: 77, From: w.newest.View.Num, Promote: []order.ReplicaID{4}, Remove: []order.ReplicaID{victim}})
		w.pass(w.some(30 * time.Millisecond))
		w.crash(lead.id)
		w.pass(2 * electionTimeout)
		next := w.awaitLeader(5 * time.Second)
		if seed%2 == 0 {
			w.start(lead.id)
		}
		if w.newest.View.Num == 2 { // the change was lost
			continue
		}
		if !w.run(5*time.Second, func() bool { return !w.newest.View.Joint() }) {
			t.Fatalf("seed %d: still %+v, leader %d", seed, w.newest, next.id)
		}
		w.commit(w.awaitLeader(5*time.Second), 100, 103)
	}
}

// Those who stay may not know that the joint view is over when those who know are gone. The removed one's vote is needed then.
func TestARemovedReplicaStillVotes(t *testing.T) {
	w := newWorld(t, 5, 3, 0)
	w.startAll()
	w.awaitLeader(electionTimeout)
	w.reach(order.Change{Learn: newcomer(9)}, func(v order.View) bool { return v.Next == 5 })
	w.agree(electionTimeout)
	lead := w.leader()
	victim, stays := lead.id%3+1, (lead.id+1)%3+1
	w.step(lead, order.Change{Ref: 77, From: 2, Promote: []order.ReplicaID{4}, Remove: []order.ReplicaID{victim}})
	// Only the victim hears that the end is committed.
	w.drop = func(m *pb.Message) bool {
		return w.newest.View.Num == 4 && m.GetTo() != uint64(victim) || m.GetCommit() > w.newest.Index && w.newest.View.Joint() && m.GetTo() != uint64(victim)
	}
	if !w.run(electionTimeout, func() bool { return w.nodes[victim].eng.view.Num == 4 }) {
		t.Fatal("the removed one does not hear of it")
	}
	w.crash(lead.id)
	w.drop = nil
	for _, id := range []order.ReplicaID{stays, 4} {
		if num := w.nodes[id].eng.view.Num; num != 3 {
			t.Fatalf("%d knows view %d already", id, num)
		}
	}
	w.commit(w.awaitLeader(5*time.Second), 100, 103)
	if err := w.ask(order.Change{Remove: []order.ReplicaID{victim}}); !errors.Is(err, order.ErrChange) {
		t.Errorf("removed twice: %v", err)
	}
}

// A voter in a minority misses a whole replacement. The one that came in its absence must be able to lead it.
func TestAVoterThatMissedAChangeFollowsTheNewMembers(t *testing.T) {
	w := newWorld(t, 6, 3, 0)
	w.startAll()
	w.awaitLeader(electionTimeout)
	lead := w.leader()
	victim, late := lead.id%3+1, (lead.id+1)%3+1
	w.split([]order.ReplicaID{late}, []order.ReplicaID{lead.id, victim, 4})
	id := w.replace(victim, 9)
	w.commit(lead, 1, 5)
	w.crash(lead.id)
	w.crash(victim)
	w.split()
	next := w.awaitLeader(10 * time.Second)
	if next.id != id {
		t.Fatalf("%d leads without the log", next.id)
	}
	w.commit(next, 10, 12)
	w.agree(5 * time.Second)
}

// A write cut short leaves the end of a joint view in the log and not how far the log was committed. A replica that took the
// former voters for its own would lead them, although others have left them.
func TestALogThatEndsAJointViewIsCommittedUpToIt(t *testing.T) {
	change, err := encodeChange(order.Change{From: 1, Promote: []order.ReplicaID{4}, Remove: []order.ReplicaID{3}})
	if err != nil {
		t.Fatal(err)
	}
	kind := pb.EntryConfChangeV2.Enum()
	s := snapshot{group: testGroup, index: genesisIndex, term: genesisTerm, view: testView(3, 1)}
	img := order.Image{
		State:    encodeState(state{2, 0, genesisIndex}),
		Snapshot: &order.Record{Kind: order.RecordSnapshot, Index: genesisIndex, Data: encodeSnapshot(s)},
		Entries: appendEntries(nil, []*pb.Entry{
			testEntry(2, 11, 1), {Type: kind, Term: new(uint64(2)), Index: new(uint64(12)), Data: change},
			testEntry(2, 13, 2), {Type: kind, Term: new(uint64(2)), Index: new(uint64(14))},
		}),
	}
	e, err := New(Config{Group: testGroup, Self: 1, Store: order.StoreID{1}}, img)
	if err != nil {
		t.Fatal(err)
	}
	var out order.Actions
	e.Step(order.Rand{}, &out)
	if e.commit != 12 || !e.joint || len(out.Views) != 1 || !out.Views[0].Joint {
		t.Errorf("commit %d, view %+v", e.commit, e.view)
	}
}

// A driver may report a snapshot of an index below a change of the view that it has been given already.
func TestASnapshotHoldsTheViewOfItsIndex(t *testing.T) {
	w := newWorld(t, 1, 1, 0)
	w.startAll()
	lead := w.awaitLeader(electionTimeout)
	w.commit(lead, 1, 3)
	w.pass(HeartbeatDefault)
	e := lead.eng
	at := e.applied
	var out order.Actions
	e.Step(order.Change{Ref: 9, From: 1, Learn: newcomer(9)}, &out)
	e.Step(order.Stored{Seq: e.seq}, &out)
	if len(out.Views) != 1 || e.view.Num != 2 || e.applied != at {
		t.Fatalf("%+v", out)
	}
	out.Reset()
	for index, num := range map[uint64]uint64{at: 1, at + 1: 2} {
		if v := e.viewOf(index); v.Num != num {
			t.Errorf("view %d at %d", v.Num, index)
		}
	}
	e.Step(order.Compact{Index: at, Data: []byte("m")}, &out)
	if s, err := decodeSnapshot(out.Persist[0].Records[0].Data); err != nil || s.view.Num != 1 {
		t.Errorf("a snapshot at %d holds view %d, %v", at, s.view.Num, err)
	}
	out.Reset()
	e.Step(order.Applied{Index: at + 1}, &out)
	e.Step(order.Compact{Index: at + 1, Data: []byte("m")}, &out)
	if s, err := decodeSnapshot(out.Persist[0].Records[0].Data); err != nil || s.view.Num != 2 || len(e.views) != 1 {
		t.Errorf("a snapshot at %d holds view %d, %v; %d views kept", at+1, s.view.Num, err, len(e.views))
	}
}

func TestChangesRoundTrip(t *testing.T) {
	many := order.Change{From: 1 << 60}
	for i := range order.ReplicaID(order.MembersMax) {
		many.Remove = append(many.Remove, 1<<61+i)
	}
	for _, c := range []order.Change{
		{From: 3, Learn: newcomer(7)}, {From: 3, Promote: []order.ReplicaID{4, 5}, Remove: []order.ReplicaID{1}}, {From: 3, Remove: []order.ReplicaID{300}}, many,
	} {
		data, err := encodeChange(c)
		if err != nil || len(data) > changeBytesMax {
			t.Fatalf("%d bytes, %v", len(data), err)
		}
		got, err := decodeChange(data)
		if err != nil || fmt.Sprintf("%+v %+v", got, got.Learn) != fmt.Sprintf("%+v %+v", c, c.Learn) {
			if c.Learn == nil || err != nil || *got.Learn != *c.Learn || got.From != c.From {
				t.Errorf("%+v became %+v, %v", c, got, err)
			}
		}
	}
}

func FuzzDecodeChange(f *testing.F) {
	for _, c := range []order.Change{{From: 3, Learn: newcomer(7)}, {From: 3, Promote: []order.ReplicaID{4, 5}, Remove: []order.ReplicaID{1}}} {
		data, _ := encodeChange(c)
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeChange(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Errorf("%v", err)
			}
			return
		}
		c.From = 1
		v := testView(3, 2)
		if next, err := v.Change(c); err == nil && (checkView(next) != nil || next.Joint() && checkView(next.Settle()) != nil) {
			t.Errorf("%+v makes %+v", c, next)
		}
	})
}

func TestALeaderThatRemovesItselfIsReplacedAtOnce(t *testing.T) {
	w := newWorld(t, 4, 3, 0)
	w.startAll()
	lead := w.awaitLeader(electionTimeout)
	w.reach(order.Change{Learn: newcomer(9)}, func(v order.View) bool { return v.Next == 5 })
	w.agree(electionTimeout)
	w.propose(lead, 1)
	w.step(lead, order.Change{Ref: 77, From: 2, Promote: []order.ReplicaID{4}, Remove: []order.ReplicaID{lead.id}})
	w.propose(lead, 2)
	from := w.now
	w.run(electionTimeout, func() bool { return lead.eng.view.Num == 4 })
	w.propose(lead, 3)
	w.step(lead, order.Read{Ref: 4})
	if d := lead.done[3]; !errors.Is(d.Err, order.ErrNotLeader) || !errors.Is(lead.done[4].Err, order.ErrNotLeader) {
		t.Errorf("it goes on: %+v, %+v", d, lead.done[4])
	}
	next := w.awaitLeader(electionTimeout)
	if took := w.now - from; next == lead || took > electionTimeout/2 {
		t.Errorf("%d leads after %v", next.id, took)
	}
	w.commit(next, 10, 12)
}

func TestViewsBecomeTheLibrarysConfiguration(t *testing.T) {
	v := testView(5, 1)
	v.Members[0].Role, v.Members[4].Role = order.Leaving, order.Joining
	for _, c := range []struct {
		index uint64
		view  order.View
		self  order.ReplicaID
		want  string
	}{
		{20, testView(3, 1), 1, "[1 2 3] [] [4] false"},
		{20, testView(3, 1), 5, "[1 2 3] [] [4 5] false"}, // added later
		{20, v, 2, "[2 3 4 5] [1 2 3 4] [6] true"},
		{0, testView(3, 1), 4, "[] [] [] false"}, // has joined and heard nothing
	} {
		cs := snapshot{index: c.index, view: c.view}.conf(c.self)
		if got := fmt.Sprint(cs.GetVoters(), cs.GetVotersOutgoing(), cs.GetLearners(), cs.GetAutoLeave()); got != c.want {
			t.Errorf("%v at %d: %s, want %s", c.view, c.self, got, c.want)
		}
	}
	s := snapshot{group: testGroup, index: 20, term: 2, view: v}
	if got, err := decodeSnapshot(encodeSnapshot(s)); err != nil || !sameView(got.view, v) {
		t.Errorf("%+v, %v", got, err)
	}
	for i := range v.Members {
		v.Members[i].Role = order.Joining
	}
	if checkView(v) == nil {
		t.Error("a joint view without former voters passed")
	}
}

// TestWhatIsToComeIsToldWhenItIsAppended: a leader that is cut off appends a command of the group's own and a change of the voters,
// which nobody commits; when another leads, both are void.
func TestWhatIsToComeIsToldWhenItIsAppended(t *testing.T) {
	w := newWorld(t, 1, 3, 0)
	w.startAll()
	old := w.awaitLeader(electionTimeout)
	w.commit(old, 1, 3)
	w.agree(electionTimeout)
	var rest []order.ReplicaID
	for _, id := range w.ids() {
		if id != old.id {
			rest = append(rest, id)
		}
		if n := w.nodes[id]; slices.ContainsFunc(n.prospects, func(p order.Prospect) bool { return !p.Void }) {
			t.Errorf("%d has told of %+v", id, n.prospects)
		}
		w.nodes[id].prospects = nil
	}
	w.split([]order.ReplicaID{old.id}, rest)
	own := order.Command{Service: "x", Data: []byte("y"), Author: keyspace.NodeID{1}}
	at := old.last + 1
	w.step(old, order.Propose{Ref: 100, Cmd: own})
	w.step(old, order.Change{Ref: 101, From: old.eng.view.Num, Remove: rest[:1]})
	w.step(old, order.Propose{Ref: 102, Cmd: order.Command{Service: "tick"}}) // only tells the time
	want := []order.Prospect{{Index: at, Cmd: &own}, {Index: at + 1}}
	if !reflect.DeepEqual(old.prospects, want) {
		t.Fatalf("told of %+v", old.prospects)
	}
	// After a crash it tells again what is on the disk.
	w.pass(electionTimeout / 4)
	w.crash(old.id)
	old.prospects = nil
	w.start(old.id)
	old = w.nodes[old.id]
	if !reflect.DeepEqual(old.prospects, want) {
		t.Fatalf("after a restart, told of %+v", old.prospects)
	}
	lead := w.awaitLeader(5 * electionTimeout)
	w.commit(lead, 200, 202)
	w.split()
	w.agree(5 * electionTimeout)
	if n := len(old.prospects); n != 3 || old.prospects[2].Index > at || !old.prospects[2].Void {
		t.Errorf("with another leader, told of %+v", old.prospects)
	}
	// The others hear of what a leader that is heard appends before they hear that it is committed.
	lead = w.awaitLeader(5 * electionTimeout)
	w.step(lead, order.Propose{Ref: 300, Cmd: own})
	w.pass(electionTimeout)
	for _, id := range w.ids() {
		n := w.nodes[id]
		if len(n.prospects) == 0 {
			t.Errorf("%d has told of nothing", id)
		} else if last := n.prospects[len(n.prospects)-1]; last.Void || last.Cmd == nil || last.Cmd.Service != "x" {
			t.Errorf("%d has told of %+v", id, last)
		}
	}
}

// A group may begin with a state. Its founder has it after a restart, and whoever joins gets it.
func TestAGroupThatBeginsWithAStateGivesItToThoseWhoJoin(t *testing.T) {
	w := newWorld(t, 9, 1, 0)
	image := Beginning(w.cfg.Group, w.cfg.View, dataOf([]string{"what was known"}))
	w.nodes[1].disk.write(*image.Snapshot)
	w.nodes[1].disk.state = image.State
	w.startAll()
	w.commit(w.awaitLeader(time.Second), 1, 5)
	w.crash(1)
	w.start(1)
	w.commit(w.awaitLeader(3*time.Second), 6, 10)
	for _, i := range []byte{50, 51} {
		next := w.newest.View.Next
		w.reach(order.Change{Learn: newcomer(i)}, func(v order.View) bool { return v.Next > next })
	}
	w.reach(order.Change{Promote: []order.ReplicaID{2, 3}}, func(v order.View) bool { return len(v.Voters()) == 3 && !v.Joint() })
	w.agree(2 * time.Second)
	for id, n := range w.nodes {
		if len(n.machine) < 11 || n.machine[0] != "what was known" {
			t.Errorf("replica %d has %q", id, n.machine)
		}
	}
}
