package raft

import (
	"bytes"
	"errors"
	"slices"
	"testing"
	"time"

	etcd "go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"latchkey/replicagroup/order"
)

func TestOnlyTheLeaderTakesProposalsAndReads(t *testing.T) {
	for _, role := range everyRole[:3] {
		e := inRole(t, role)
		var out order.Actions
		e.Step(order.Propose{Ref: 1, Cmd: command(1)}, &out)
		e.Step(order.Read{Ref: 2}, &out)
		want := []order.Outcome{{Ref: 1, Err: order.ErrNotLeader}, {Ref: 2, Err: order.ErrNotLeader}}
		if !slices.Equal(out.Done, want) {
			t.Errorf("%v: %+v", role, out.Done)
		}
	}
}

func TestATooLargeCommandIsRefused(t *testing.T) {
	e := inRole(t, etcd.StateLeader)
	var out order.Actions
	e.Step(order.Propose{Ref: 1, Cmd: order.Command{Data: make([]byte, order.DataBytesMax+1)}}, &out)
	e.Step(order.Propose{Ref: 2, Stamp: order.Stamp{At: -1}, Cmd: command(2)}, &out)
	if len(out.Done) != 2 || !errors.Is(out.Done[0].Err, order.ErrTooLarge) || !errors.Is(out.Done[1].Err, order.ErrMalformed) {
		t.Errorf("%+v", out.Done)
	}
}

func TestTooMuchUncommittedIsBusy(t *testing.T) {
	e := inRole(t, etcd.StateLeader)
	var out order.Actions
	taken := 0
	cmd := command(1)
	cmd.Data = make([]byte, order.DataBytesMax)
	for ref := uint64(0); ; ref++ {
		out.Reset()
		e.Step(order.Propose{Ref: ref, Cmd: cmd}, &out)
		if len(out.Done) > 0 {
			if !errors.Is(out.Done[0].Err, order.ErrBusy) {
				t.Fatalf("%+v", out.Done)
			}
			break
		}
		taken++
	}
	if bytes := taken * order.DataBytesMax; bytes < uncommittedBytesMax-2*order.DataBytesMax || bytes > uncommittedBytesMax {
		t.Errorf("%d bytes taken, the limit is %d", bytes, uncommittedBytesMax)
	}
}

func together(from, to uint64) order.ProposeAll {
	var all order.ProposeAll
	for ref := from; ref <= to; ref++ {
		all.List = append(all.List, order.Propose{Ref: ref, Stamp: order.Stamp{Boot: 1}, Cmd: command(ref)})
	}
	return all
}

func TestCommandsProposedTogetherAreStoredAndSentTogether(t *testing.T) {
	e := inRole(t, etcd.StateLeader)
	var out order.Actions
	e.Step(together(1, 100), &out)
	if len(out.Persist) != 1 || len(out.Done) != 0 {
		t.Errorf("%d writes, outcomes %+v", len(out.Persist), out.Done)
	}
	to := make(map[order.ReplicaID]int)
	for _, s := range out.Send {
		if to[s.To]++; to[s.To] > 1 {
			t.Errorf("%d messages to member %d", to[s.To], s.To)
		}
	}
	if len(to) == 0 {
		t.Error("nothing was sent")
	}
}

func TestCommandsProposedTogetherAreEachAnswered(t *testing.T) {
	w := newWorld(t, 1, 3, 0)
	w.startAll()
	lead := w.awaitLeader(10 * time.Second)
	all := together(1, 1000) // more than one append holds
	for i := range all.List {
		all.List[i].Cmd.Data = append(make([]byte, 200), all.List[i].Cmd.Data...)
	}
	all.List[49].Cmd.Data = make([]byte, order.DataBytesMax+1)
	w.step(lead, all)
	if !w.run(10*time.Second, func() bool { return len(lead.done) == len(all.List) }) {
		t.Fatalf("%d of %d commands answered", len(lead.done), len(all.List))
	}
	last := uint64(0)
	for _, p := range all.List {
		o := lead.done[p.Ref]
		switch {
		case p.Ref == 50:
			if !errors.Is(o.Err, order.ErrTooLarge) {
				t.Errorf("too large a command: %+v", o)
			}
		case o.Err != nil || last != 0 && o.Index != last+1:
			t.Errorf("command %d: %+v after %d", p.Ref, o, last)
		default:
			last = o.Index
			if line := lineOf(w.log[o.Index]); line != lineOf(order.Entry{Index: o.Index, Kind: order.Normal, Cmd: p.Cmd}) {
				t.Errorf("command %d: entry %d is %s", p.Ref, o.Index, line)
			}
		}
	}
	w.agree(10 * time.Second)
}

func TestOfCommandsProposedTogetherThoseWithoutRoomAreBusy(t *testing.T) {
	e := inRole(t, etcd.StateLeader)
	all := together(1, 2*uncommittedBytesMax/order.DataBytesMax)
	for i := range all.List {
		all.List[i].Cmd.Data = make([]byte, order.DataBytesMax)
	}
	small := order.Propose{Ref: 1000, Cmd: command(1)}
	all.List = append(all.List, small)
	var out order.Actions
	e.Step(all, &out)
	refused := make(map[uint64]bool)
	for _, o := range out.Done {
		if refused[o.Ref] || !errors.Is(o.Err, order.ErrBusy) {
			t.Errorf("%+v", o)
		}
		refused[o.Ref] = true
	}
	taken := 0
	for _, p := range all.List {
		if !refused[p.Ref] {
			taken += len(p.Cmd.Data)
		}
	}
	if taken < uncommittedBytesMax-2*order.DataBytesMax || taken > uncommittedBytesMax {
		t.Errorf("%d bytes taken, the limit is %d", taken, uncommittedBytesMax)
	}
	if refused[small.Ref] {
		t.Error("a small command was refused for those before it, and would have had room")
	}
}

func TestCommandsProposedTogetherAreEachRefused(t *testing.T) {
	for _, role := range everyRole[:3] {
		e := inRole(t, role)
		var out order.Actions
		e.Step(together(1, 2), &out)
		want := []order.Outcome{{Ref: 1, Err: order.ErrNotLeader}, {Ref: 2, Err: order.ErrNotLeader}}
		if !slices.Equal(out.Done, want) {
			t.Errorf("%v: %+v", role, out.Done)
		}
	}
	e := inRole(t, etcd.StateLeader)
	e.halted = true
	var out order.Actions
	e.Step(together(1, 2), &out)
	if want := []order.Outcome{{Ref: 1, Err: order.ErrHalted}, {Ref: 2, Err: order.ErrHalted}}; !slices.Equal(out.Done, want) {
		t.Errorf("halted: %+v", out.Done)
	}
}

func TestADeposedLeaderDropsItsProposalsAndReadsOnce(t *testing.T) {
	e := inRole(t, etcd.StateLeader)
	var out order.Actions
	e.Step(order.Propose{Ref: 1, Cmd: command(1)}, &out)
	e.Step(order.Read{Ref: 2}, &out)
	e.Step(order.Read{Ref: 3}, &out) // joins the round after
	if len(out.Done)+len(out.ReadOK) > 0 {
		t.Fatalf("answered early: %+v %+v", out.Done, out.ReadOK)
	}
	e.Step(recvOf(message(pb.MsgHeartbeat, 3, 7)), &out)
	want := []order.Outcome{
		{Ref: 1, Index: 17, Err: order.ErrDropped}, {Ref: 2, Err: order.ErrNotLeader}, {Ref: 3, Err: order.ErrNotLeader},
	}
	if !slices.Equal(out.Done, want) {
		t.Errorf("%+v", out.Done)
	}
	out.Reset()
	e.Step(recvOf(message(pb.MsgHeartbeat, 1, 8)), &out)
	e.Step(order.Stored{Seq: e.seq}, &out)
	if len(out.Done) > 0 {
		t.Errorf("again: %+v", out.Done)
	}
}

func TestALeaderCutOffStepsDown(t *testing.T) {
	w := newWorld(t, 1, 3, 0)
	w.startAll()
	old := w.awaitLeader(electionTimeout)
	w.commit(old, 1, 3)
	var rest []order.ReplicaID
	for _, id := range w.ids() {
		if id != old.id {
			rest = append(rest, id)
		}
	}
	w.split([]order.ReplicaID{old.id}, rest)
	w.propose(old, 100)
	w.step(old, order.Read{Ref: 101})
	w.pass(3 * electionTimeout)
	if err := old.done[100].Err; !errors.Is(err, order.ErrDropped) {
		t.Errorf("proposal of the one cut off: %v", err)
	}
	if err := old.done[101].Err; !errors.Is(err, order.ErrNotLeader) || len(old.reads) > 0 {
		t.Errorf("read of the one cut off: %v, %v", err, old.reads)
	}
	w.commit(w.awaitLeader(electionTimeout), 200, 202)
	w.split()
	w.agree(2 * electionTimeout)
	for _, n := range w.nodes {
		if slices.Contains(n.machine, lineOf(order.Entry{Index: 14, Kind: order.Normal, Cmd: command(100)})) {
			t.Errorf("%d executed the dropped command where another stands", n.id)
		}
	}
}

func TestReadsThatWaitShareOneRound(t *testing.T) {
	w := newWorld(t, 1, 3, 0)
	w.startAll()
	lead := w.awaitLeader(electionTimeout)
	w.commit(lead, 1, 5)
	beats := lead.sent["MsgHeartbeat"]
	from := w.now
	for ref := range uint64(1000) {
		w.step(lead, order.Read{Ref: ref})
	}
	// The first goes alone, the others wait for it and then go together.
	if !w.run(HeartbeatDefault, func() bool { return len(lead.reads) == 1000 }) {
		t.Fatalf("%d reads answered", len(lead.reads))
	}
	timers := int((w.now-from)/HeartbeatDefault) + 1
	if n := lead.sent["MsgHeartbeat"] - beats; n > 2*(2+timers) {
		t.Errorf("%d heartbeats for 1000 reads", n)
	}
	for ref, index := range lead.reads {
		if index != lead.eng.commit {
			t.Errorf("read %d at %d, committed %d", ref, index, lead.eng.commit)
		}
	}
}

// A read that came after a round began may follow a write that the round's answers do not cover.
func TestAReadNeverJoinsTheRoundUnderWay(t *testing.T) {
	w := newWorld(t, 1, 3, 0)
	w.startAll()
	lead := w.awaitLeader(electionTimeout)
	w.delay, w.jitter = 20*time.Millisecond, 0
	w.step(lead, order.Read{Ref: 1})
	w.commit(lead, 1, 1) // takes longer than the round; its outcome is known before read 2
	w.step(lead, order.Read{Ref: 2})
	w.run(HeartbeatDefault, func() bool { return len(lead.reads) == 2 })
	if lead.reads[2] < lead.done[1].Index {
		t.Errorf("read at %d after a write at %d", lead.reads[2], lead.done[1].Index)
	}
}

func TestAFreshLeaderAnswersReadsOnlyAfterAnEntryOfItsTerm(t *testing.T) {
	e := inRole(t, etcd.StateCandidate)
	var out order.Actions
	e.Step(recvOf(message(pb.MsgVoteResp, 1, 6)), &out)
	e.Step(order.Stored{Seq: e.seq}, &out)
	out.Reset()
	e.Step(order.Read{Ref: 1}, &out)
	if _, leading := e.Leader(); leading || e.role != etcd.StateLeader || len(out.Send)+len(out.ReadOK) > 0 {
		t.Fatalf("%v, leading %v: %+v", e.role, leading, out)
	}
	ack := message(pb.MsgAppResp, 1, 6)
	ack.Index = new(uint64(16))
	e.Step(recvOf(ack), &out)
	if _, leading := e.Leader(); leading || len(out.Deliver) == 0 {
		t.Fatalf("leads before its entry was applied")
	}
	out.Reset()
	e.Step(order.Applied{Index: 16}, &out)
	if _, leading := e.Leader(); !leading || len(out.Send) != 3 {
		t.Fatalf("leading %v, %d messages begin the round", leading, len(out.Send))
	}
	resp := message(pb.MsgHeartbeatResp, 1, 6)
	resp.Context = []byte{1, 0, 0, 0, 0, 0, 0, 0}
	e.Step(recvOf(resp), &out)
	if !slices.Equal(out.ReadOK, []order.ReadPoint{{Ref: 1, Index: 16}}) {
		t.Errorf("%+v", out.ReadOK)
	}
}

func TestReadsAreBounded(t *testing.T) {
	e := inRole(t, etcd.StateLeader)
	var out order.Actions
	for ref := range uint64(readsMax + 1) {
		e.Step(order.Read{Ref: ref}, &out)
	}
	if len(out.Done) > 0 { // one in its round, readsMax that wait
		t.Fatalf("refused below the limit: %+v", out.Done)
	}
	e.Step(order.Read{Ref: 9999}, &out)
	if len(out.Done) != 1 || !errors.Is(out.Done[0].Err, order.ErrBusy) {
		t.Errorf("above the limit: %+v", out.Done)
	}
}

func TestNothingLeavesBeforeWhatItRestsOnIsDurable(t *testing.T) {
	e := inRole(t, etcd.StateFollower)
	m := message(pb.MsgApp, 1, 5)
	m.Index, m.LogTerm, m.Entries = new(uint64(15)), new(uint64(5)), []*pb.Entry{testEntry(5, 16, 1)}
	var out order.Actions
	e.Step(recvOf(m), &out)
	if len(out.Persist) != 1 || !out.Persist[0].Sync || len(out.Send) != 1 || out.Send[0].After != out.Persist[0].Seq {
		t.Errorf("append: %+v", out)
	}
	// An answer with nothing to write of its own waits for the writes under way all the same.
	seq := out.Persist[0].Seq
	out.Reset()
	m.Entries = nil
	e.Step(recvOf(m), &out)
	if len(out.Persist) != 0 || len(out.Send) != 1 || out.Send[0].After != seq {
		t.Errorf("empty append: %+v", out)
	}
	e.Step(order.Stored{Seq: seq}, &out)
	out.Reset()
	e.Step(recvOf(m), &out)
	if len(out.Send) != 1 || out.Send[0].After != 0 {
		t.Errorf("empty append with nothing under way: %+v", out)
	}
	// A vote.
	out.Reset()
	v := message(pb.MsgVote, 3, 9)
	v.LogTerm, v.Index = new(uint64(5)), new(uint64(16))
	_ = e.raft.ForgetLeader()
	e.Step(recvOf(v), &out)
	if len(out.Persist) != 1 || !out.Persist[0].Sync || len(out.Send) != 1 || out.Send[0].After != out.Persist[0].Seq {
		t.Errorf("vote: %+v", out)
	}
	st, err := decodeState(out.Persist[0].Records[0].Data)
	if err != nil || st.term != 9 || st.vote != 3 {
		t.Errorf("vote: persisted %+v, %v", st, err)
	}
}

func TestTheFirstWriteMakesTheFirstConfigurationDurable(t *testing.T) {
	view := testView(3, 0)
	e, err := New(Config{Group: testGroup, Self: 1, Store: order.StoreID{1}, View: view}, order.Image{})
	if err != nil {
		t.Fatal(err)
	}
	var out order.Actions
	e.Step(order.Rand{}, &out)
	if len(out.Persist) != 1 || !out.Persist[0].Sync || len(out.Install) != 0 || len(out.Timers) != 1 {
		t.Fatalf("%+v", out)
	}
	var d disk
	for _, r := range out.Persist[0].Records {
		d.write(r)
	}
	// The view of the image counts, not the one of the configuration.
	again, err := New(Config{Group: testGroup, Self: 1, Store: order.StoreID{1}}, d.image())
	if err != nil {
		t.Fatal(err)
	}
	if got := again.Status(); !sameView(got.View, view) || got.First != genesisIndex+1 || got.Last != genesisIndex || got.Term != genesisTerm {
		t.Errorf("%+v", got)
	}
}

func TestARestartContinuesFromTheImage(t *testing.T) {
	w := newWorld(t, 1, 3, 0)
	for _, n := range w.nodes {
		n.compactAt = 7
	}
	w.startAll()
	w.commit(w.awaitLeader(electionTimeout), 1, 20)
	w.agree(electionTimeout)
	for _, id := range w.ids() {
		n := w.nodes[id]
		before, lines := n.eng.Status(), slices.Clone(n.machine)
		for len(n.writes) > 0 {
			w.pass(time.Millisecond)
		}
		w.crash(id)
		w.start(id)
		after := n.eng.Status()
		if after.Term < before.Term || after.Last < before.Last || after.First != before.First || n.eng.vote == 0 {
			t.Errorf("%d: %+v became %+v", id, before, after)
		}
		if n.last < before.First-1 || !slices.Equal(n.machine, lines[:len(n.machine)]) {
			t.Errorf("%d: the machine came back with %v", id, n.machine)
		}
	}
	w.commit(w.awaitLeader(2*electionTimeout), 30, 33)
	w.agree(electionTimeout)
}

func TestCompactTakesAppliedIndexesOnly(t *testing.T) {
	e := inRole(t, etcd.StateFollower) // 11 to 13 applied, 14 and 15 not committed
	var out order.Actions
	for _, index := range []uint64{0, genesisIndex, 14, 15, 99} {
		out.Reset()
		if e.Step(order.Compact{Index: index}, &out); len(out.Persist) > 0 || e.Status().First != 11 {
			t.Errorf("compacted at %d: %+v", index, out)
		}
	}
	if e.Step(order.Compact{Index: 13, Data: make([]byte, SnapshotBytesMax+1)}, &out); len(out.Persist) > 0 {
		t.Error("took a snapshot above the limit")
	}
	e.Step(order.Compact{Index: 13, Data: []byte("m")}, &out)
	if len(out.Persist) != 1 || !out.Persist[0].Sync || len(out.Persist[0].Records) != 1 || e.Status().First != 14 || e.Status().Last != 15 {
		t.Errorf("%+v %+v", out, e.Status())
	}
	rec := out.Persist[0].Records[0]
	if s, err := decodeSnapshot(rec.Data); err != nil || rec.Index != 13 || s.index != 13 || s.term != 5 || string(s.data) != "m" {
		t.Errorf("record %d: %+v, %v", rec.Index, s, err)
	}
	out.Reset()
	if e.Step(order.Compact{Index: 13, Data: []byte("m")}, &out); len(out.Persist) > 0 {
		t.Error("compacted twice at one index")
	}
}

func TestTheTrailingLogIsBounded(t *testing.T) {
	l := &memLog{}
	l.restore(testSnapshot(10, 1, ""))
	big := &pb.Entry{Term: new(uint64(1)), Data: make([]byte, trailingBytesMax/4)}
	for i := uint64(11); i <= 10+3*trailingEntriesMax; i++ {
		e := &pb.Entry{Term: new(uint64(1)), Index: new(i)}
		if i > 10+2*trailingEntriesMax {
			e.Data = big.Data
		}
		l.append([]*pb.Entry{e})
	}
	l.digest()
	at := uint64(10 + 2*trailingEntriesMax)
	l.compact(testSnapshot(at, 1, ""), at)
	if l.first() != at-trailingEntriesMax+1 || l.last() != 10+3*trailingEntriesMax {
		t.Errorf("log %d..%d after a snapshot at %d", l.first(), l.last(), at)
	}
	at += 100
	l.compact(testSnapshot(at, 1, ""), at)
	if l.first() != at-4+1 {
		t.Errorf("log from %d after a snapshot at %d of large entries", l.first(), at)
	}
	if l.ents[0].GetIndex() != l.first() {
		t.Errorf("first entry %d, log from %d", l.ents[0].GetIndex(), l.first())
	}
}

// Who was sent a snapshot finds what came after it, within bounds, however long the snapshot took.
func TestTheLogIsKeptForWhoGetsASnapshot(t *testing.T) {
	fill := func(n uint64, data []byte) *memLog {
		l := &memLog{}
		l.restore(testSnapshot(10, 1, ""))
		for i := uint64(11); i <= 10+n; i++ {
			l.append([]*pb.Entry{{Term: new(uint64(1)), Index: new(i), Data: data}})
		}
		return l
	}
	const many = pursuitEntriesMax + 5000
	for _, c := range []struct {
		data            []byte
		at, need, first uint64
	}{
		{nil, 6000, 6000, 6000 - trailingEntriesMax + 1},
		{nil, 6000, 5900, 6000 - trailingEntriesMax + 1},
		{nil, 6000, 3000, 3001},
		{nil, 6000, 0, 11},
		{nil, many, 0, many - pursuitEntriesMax + 1},
		{make([]byte, pursuitBytesMax/100), 600, 0, 501},
	} {
		l := fill(c.at-10, c.data)
		l.compact(testSnapshot(c.at, 1, ""), c.need)
		if l.first() != c.first || l.last() != c.at {
			t.Errorf("entries of %d bytes, snapshot at %d, needed after %d: log %d..%d, want it from %d", len(c.data), c.at, c.need, l.first(), l.last(), c.first)
		}
	}
}

func TestEntriesHandedOutOutliveATruncation(t *testing.T) {
	l := &memLog{}
	l.restore(testSnapshot(10, 1, ""))
	l.append([]*pb.Entry{testEntry(1, 11, 1), testEntry(1, 12, 2), testEntry(1, 13, 3)})
	got, err := l.Entries(11, 14, 1<<20)
	if err != nil || len(got) != 3 {
		t.Fatal(got, err)
	}
	l.append([]*pb.Entry{testEntry(2, 12, 4)})
	if got[1].GetTerm() != 1 || l.last() != 12 {
		t.Errorf("an entry that a message refers to became one of term %d", got[1].GetTerm())
	}
	if got, err := l.Entries(11, 13, 0); err != nil || len(got) != 1 {
		t.Errorf("at least one entry: %v, %v", got, err)
	}
}

// Lost without a word from the links, a snapshot is sent again after a while; the library itself would wait for ever.
func TestALostSnapshotIsSentAgain(t *testing.T) {
	for how, told := range map[string]func(to order.ReplicaID) []order.Event{
		"not told": nil,
		"link": func(to order.ReplicaID) []order.Event {
			return []order.Event{order.Link{To: to}, order.Link{To: to, Up: true}}
		},
		"failure": func(to order.ReplicaID) []order.Event {
			return []order.Event{order.Carried{To: to, State: order.Failed}}
		},
	} {
		w, lead, far := lostSnapshot(t)
		from := w.now
		if told != nil {
			for _, ev := range told(far) {
				w.step(lead, ev)
			}
		}
		w.agree(4 * electionTimeout)
		took := w.now - from
		if lead.sent["MsgSnap"] < 2 {
			t.Errorf("%s: no second snapshot", how)
		}
		if (told != nil) != (took < 5*HeartbeatDefault) {
			t.Errorf("%s: it took %v", how, took)
		}
	}
}

// lostSnapshot returns a leader whose first snapshot to a member was lost.
func lostSnapshot(t *testing.T) (w *world, lead *node, far order.ReplicaID) {
	t.Helper()
	w = newWorld(t, 3, 3, 0)
	w.startAll()
	lead = w.awaitLeader(electionTimeout)
	far = w.ids()[0]
	if far == lead.id {
		far = w.ids()[1]
	}
	w.crash(far)
	w.commit(lead, 1, trailingEntriesMax+50)
	w.pass(0)
	w.step(lead, order.Compact{Index: lead.last, Data: dataOf(lead.machine)})
	w.drop = func(m *pb.Message) bool { return m.GetType() == pb.MsgSnap }
	w.start(far)
	if !w.run(electionTimeout, func() bool { return lead.sent["MsgSnap"] > 0 }) {
		t.Fatal("no snapshot")
	}
	w.drop = nil
	return w, lead, far
}

// While the driver says that a snapshot is under way, the leader sends no other; from the last word on its patience runs anew.
func TestASnapshotUnderWayIsNotSentAgain(t *testing.T) {
	w, lead, far := lostSnapshot(t)
	for range 4 * electionTimeout / time.Second {
		w.step(lead, order.Carried{To: far, State: order.Underway})
		w.step(lead, order.Carried{To: 99, State: order.Failed}) // nobody
		w.step(lead, order.Carried{To: lead.id, State: order.Failed})
		w.pass(time.Second)
	}
	if n := lead.sent["MsgSnap"]; n != 1 {
		t.Errorf("%d snapshots went out while one was under way", n)
	}
	w.step(lead, order.Carried{To: far, State: order.Arrived})
	from := w.now
	w.agree(4 * electionTimeout)
	if n := lead.sent["MsgSnap"]; n != 2 {
		t.Errorf("%d snapshots after one arrived and was not acknowledged", n)
	}
	if took := w.now - from; took < 2*electionTimeout {
		t.Errorf("it was given up after %v", took)
	}
}

// The bytes that a snapshot is made of depend on nothing but the snapshot: another leader's message to another member ends in the same.
func TestEveryLeaderSendsTheSameSnapshotBytes(t *testing.T) {
	w, lead, far := lostSnapshot(t)
	var out order.Actions
	body := func(n *node) []byte {
		t.Helper()
		snap, err := n.eng.log.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		m := &pb.Message{Type: pb.MsgSnap.Enum(), From: new(uint64(n.id)), To: new(uint64(far)), Term: new(n.eng.term), Snapshot: snap}
		out.Reset()
		n.eng.send(&out, m, 0)
		s := out.Send[0]
		if whole := appendMessage(nil, m); !bytes.Equal(s.Whole(), whole) || !bytes.HasPrefix(whole, s.Msg) || len(s.Msg)+len(s.Snapshot) != len(whole) {
			t.Errorf("%d and %d bytes do not make the message of %d", len(s.Msg), len(s.Snapshot), len(whole))
		}
		return s.Snapshot
	}
	for _, id := range w.ids() {
		if n := w.nodes[id]; id != far && n != lead {
			w.step(n, order.Compact{Index: lead.eng.log.snapIndex, Data: dataOf(lead.machine)})
			if !bytes.Equal(body(n), body(lead)) {
				t.Errorf("replica %d would send another snapshot than the leader", id)
			}
		}
	}
}

func TestASnapshotIsDurableBeforeItIsInstalled(t *testing.T) {
	e := inRole(t, etcd.StateFollower)
	s := snapshot{group: testGroup, index: 40, term: 5, view: testView(3, 1), data: []byte("state")}
	m := message(pb.MsgSnap, 1, 5)
	m.Snapshot = s.message(encodeSnapshot(s))
	app := message(pb.MsgApp, 1, 5)
	app.Index, app.LogTerm, app.Commit, app.Entries = new(uint64(40)), new(uint64(5)), new(uint64(41)), []*pb.Entry{testEntry(5, 41, 1)}
	var out order.Actions
	e.Step(recvOf(m), &out)
	e.Step(recvOf(app), &out)
	if len(out.Persist) != 2 || !out.Persist[0].Sync || len(out.Install)+len(out.Deliver) > 0 {
		t.Fatalf("%+v", out)
	}
	seq := out.Persist[0].Seq
	out.Reset()
	e.Step(order.Stored{Seq: seq}, &out)
	if len(out.Install) != 1 || out.Install[0].Index != 40 || string(out.Install[0].Data) != "state" || len(out.Deliver) > 0 {
		t.Fatalf("%+v", out)
	}
	out.Reset()
	e.Step(order.Stored{Seq: seq + 1}, &out)
	if len(out.Install) != 0 || len(out.Deliver) != 1 || out.Deliver[0].Index != 41 {
		t.Errorf("%+v", out)
	}
}

func TestAppliedMayComeInAnyPieces(t *testing.T) {
	w := newWorld(t, 1, 1, 0)
	w.startAll()
	lead := w.awaitLeader(electionTimeout)
	var out order.Actions
	for i := range uint64(10) {
		lead.eng.Step(order.Propose{Ref: i, Cmd: command(i)}, &out)
	}
	lead.eng.Step(order.Stored{Seq: lead.eng.seq}, &out)
	if len(out.Deliver) != 10 {
		t.Fatalf("%d delivered", len(out.Deliver))
	}
	first := out.Deliver[0].Index
	for _, c := range []struct{ report, want uint64 }{
		{first + 2, first + 2}, {first + 2, first + 2}, {first, first + 2}, {first + 3, first + 3}, {first + 99, first + 9},
	} {
		lead.eng.Step(order.Applied{Index: c.report}, &out)
		if got := lead.eng.Status().Applied; got != c.want || lead.eng.raft.BasicStatus().Applied != c.want {
			t.Errorf("applied %d after a report of %d, want %d", got, c.report, c.want)
		}
	}
}

func TestBehindSaysWhatMembersLack(t *testing.T) {
	w := newWorld(t, 1, 3, 1)
	w.startAll()
	lead := w.awaitLeader(electionTimeout)
	w.commit(lead, 1, 3)
	w.agree(electionTimeout)
	w.pass(HeartbeatDefault)
	w.split([]order.ReplicaID{4}, []order.ReplicaID{1, 2, 3})
	w.commit(lead, 4, 9)
	w.pass(HeartbeatDefault)
	if got := lead.eng.Status().Behind; got[4] != 6 || len(got) != 3 {
		t.Errorf("behind: %v", got)
	}
}
