package raft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	etcd "go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"latchkey/replicagroup/order"
)

// inRole returns replica 2 of three in a role, with entries 11 to 15 in its log, 11 to 13 of them committed, in term 5 (as a
// pre-candidate, and where the others say nothing).
func inRole(tb testing.TB, role etcd.StateType) *Engine {
	tb.Helper()
	var ents []*pb.Entry
	for i := uint64(11); i <= 15; i++ {
		ents = append(ents, testEntry(5, i, i))
	}
	view := testView(3, 1)
	view.Next = 6 // 5 was removed
	s := snapshot{group: testGroup, index: genesisIndex, term: genesisTerm, view: view}
	img := order.Image{
		State:    encodeState(state{5, 0, 13}),
		Snapshot: &order.Record{Kind: order.RecordSnapshot, Index: genesisIndex, Data: encodeSnapshot(s)},
		Entries:  appendEntries(nil, ents),
	}
	e, err := New(Config{Group: testGroup, Self: 2, Store: order.StoreID{2}, View: view}, img)
	if err != nil {
		tb.Fatal(err)
	}
	var out order.Actions
	do := func(ev order.Event) {
		e.Step(ev, &out)
		e.Step(order.Stored{Seq: e.seq}, &out)
		e.Step(order.Applied{Index: e.delivered}, &out)
	}
	hear := func(t pb.MessageType, from, term uint64, more func(*pb.Message)) {
		m := message(t, from, term)
		if more != nil {
			more(m)
		}
		do(recvOf(m))
	}
	do(order.Rand{Bits: 7})
	switch role {
	case etcd.StateFollower:
		hear(pb.MsgHeartbeat, 1, 5, nil)
	case etcd.StatePreCandidate, etcd.StateCandidate, etcd.StateLeader:
		do(order.Timer{Kind: tickTimer, Epoch: e.clock.epoch})
		if role == etcd.StatePreCandidate {
			break
		}
		hear(pb.MsgPreVoteResp, 1, 6, nil)
		if role == etcd.StateCandidate {
			break
		}
		hear(pb.MsgVoteResp, 1, 6, nil)
		hear(pb.MsgAppResp, 1, 6, func(m *pb.Message) { m.Index = new(uint64(16)) })
	}
	if e.role != role {
		tb.Fatalf("%v instead of %v", e.role, role)
	}
	return e
}

var everyRole = []etcd.StateType{etcd.StateFollower, etcd.StatePreCandidate, etcd.StateCandidate, etcd.StateLeader}

func message(t pb.MessageType, from, term uint64) *pb.Message {
	return &pb.Message{Type: t.Enum(), From: new(from), To: new(uint64(2)), Term: new(term)}
}

func recvOf(m *pb.Message) order.Recv {
	return order.Recv{From: order.ReplicaID(m.GetFrom()), Store: order.StoreID{byte(m.GetFrom())}, Msg: appendMessage(nil, m)}
}

// forbidden lists what the guard refuses, with the role in which it matters. Where panics is set the library itself goes down
// over it, which the test shows.
var forbidden = []struct {
	name   string
	role   etcd.StateType
	panics bool
	make   func() *pb.Message
}{
	{"commit beyond the log in a heartbeat", etcd.StateFollower, true, func() *pb.Message {
		m := message(pb.MsgHeartbeat, 1, 5)
		m.Commit = new(uint64(16))
		return m
	}},
	{"the same from a new leader", etcd.StateCandidate, true, func() *pb.Message {
		m := message(pb.MsgHeartbeat, 1, 9)
		m.Commit = new(uint64(1000))
		return m
	}},
	{"context of the wrong length in an answer", etcd.StateLeader, true, func() *pb.Message {
		m := message(pb.MsgHeartbeatResp, 1, 6)
		m.Context = []byte{1, 2, 3}
		return m
	}},
	{"context of the wrong length in a heartbeat", etcd.StateFollower, false, func() *pb.Message {
		m := message(pb.MsgHeartbeat, 1, 5)
		m.Context = []byte{1, 2, 3}
		return m
	}},
	{"read round that was not begun", etcd.StateLeader, false, func() *pb.Message {
		m := message(pb.MsgHeartbeatResp, 1, 6)
		m.Context = binary.LittleEndian.AppendUint64(nil, 1)
		return m
	}},
	{"acknowledgement beyond the log", etcd.StateLeader, false, func() *pb.Message {
		m := message(pb.MsgAppResp, 1, 6)
		m.Index = new(uint64(17))
		return m
	}},
	{"pre-vote that overrides the lease", etcd.StateFollower, false, func() *pb.Message {
		m := message(pb.MsgPreVote, 3, 6)
		m.Context = []byte(transferContext)
		m.LogTerm, m.Index = new(uint64(5)), new(uint64(15))
		return m
	}},
	{"context in a vote", etcd.StateFollower, false, func() *pb.Message {
		m := message(pb.MsgVote, 3, 6)
		m.Context = make([]byte, contextBytesMax)
		return m
	}},
	{"no term", etcd.StateFollower, false, func() *pb.Message { return message(pb.MsgApp, 1, 0) }},
	{"no term in a vote", etcd.StateFollower, false, func() *pb.Message { return message(pb.MsgVote, 1, 0) }},
	{"term out of this world", etcd.StateFollower, false, func() *pb.Message { return message(pb.MsgVote, 1, math.MaxUint64) }},
	{"term far ahead", etcd.StateFollower, false, func() *pb.Message { return message(pb.MsgApp, 1, 5+termLeapMax+1) }},
	{"index that wraps", etcd.StateFollower, false, func() *pb.Message {
		m := message(pb.MsgApp, 1, 5)
		m.Index, m.Entries = new(uint64(math.MaxUint64)), []*pb.Entry{testEntry(5, 0, 1)}
		return m
	}},
	{"hint that wraps", etcd.StateLeader, false, func() *pb.Message {
		m := message(pb.MsgAppResp, 1, 6)
		m.Reject, m.RejectHint = new(true), new(uint64(math.MaxUint64))
		return m
	}},
	{"entry of a later term than its message", etcd.StateFollower, false, func() *pb.Message {
		m := message(pb.MsgApp, 1, 5)
		m.Index, m.LogTerm, m.Entries = new(uint64(15)), new(uint64(5)), []*pb.Entry{testEntry(6, 16, 1)}
		return m
	}},
	{"terms that fall", etcd.StateFollower, false, func() *pb.Message {
		m := message(pb.MsgApp, 1, 5)
		m.Index, m.LogTerm, m.Entries = new(uint64(15)), new(uint64(5)), []*pb.Entry{testEntry(4, 16, 1)}
		return m
	}},
	{"log of a later term than its message", etcd.StateFollower, false, func() *pb.Message {
		m := message(pb.MsgApp, 1, 5)
		m.Index, m.LogTerm = new(uint64(15)), new(uint64(6))
		return m
	}},
	{"entry that is no command", etcd.StateFollower, false, func() *pb.Message {
		m := message(pb.MsgApp, 1, 5)
		m.Index, m.LogTerm = new(uint64(15)), new(uint64(5))
		m.Entries = []*pb.Entry{{Term: new(uint64(5)), Index: new(uint64(16)), Data: []byte("change the members")}}
		return m
	}},
	{"snapshot of a view that we left", etcd.StateFollower, false, func() *pb.Message {
		s := snapshot{group: testGroup, index: 40, term: 5, view: testView(4, 0)}
		s.view.Members = slices.Delete(s.view.Members, 1, 2)
		m := message(pb.MsgSnap, 1, 5)
		m.Snapshot = s.message(encodeSnapshot(s))
		return m
	}},
	{"snapshot of a view with our id elsewhere", etcd.StateFollower, false, func() *pb.Message {
		s := snapshot{group: testGroup, index: 40, term: 5, view: testView(4, 0)}
		s.view.Members[1].Store = order.StoreID{99}
		m := message(pb.MsgSnap, 1, 5)
		m.Snapshot = s.message(encodeSnapshot(s))
		return m
	}},
	{"change that cannot be read", etcd.StateFollower, false, func() *pb.Message {
		m := message(pb.MsgApp, 1, 5)
		m.Index, m.LogTerm = new(uint64(15)), new(uint64(5))
		m.Entries = []*pb.Entry{{Type: pb.EntryConfChangeV2.Enum(), Term: new(uint64(5)), Index: new(uint64(16)), Data: []byte("change the members")}}
		return m
	}},
	{"change without end", etcd.StateFollower, false, func() *pb.Message {
		m := message(pb.MsgApp, 1, 5)
		m.Index, m.LogTerm = new(uint64(15)), new(uint64(5))
		data, _ := proto.Marshal(&pb.ConfChangeV2{Context: make([]byte, changeBytesMax)})
		m.Entries = []*pb.Entry{{Type: pb.EntryConfChangeV2.Enum(), Term: new(uint64(5)), Index: new(uint64(16)), Data: data}}
		return m
	}},
	{"snapshot of another group", etcd.StateFollower, false, func() *pb.Message {
		s := snapshot{group: order.GroupID{Overlay: order.OverlayID{2}}, index: 40, term: 5, view: testView(3, 1)}
		m := message(pb.MsgSnap, 1, 5)
		m.Snapshot = s.message(encodeSnapshot(s))
		return m
	}},
	{"snapshot of a later term than its message", etcd.StateFollower, false, func() *pb.Message {
		s := snapshot{group: testGroup, index: 40, term: 6, view: testView(3, 1)}
		m := message(pb.MsgSnap, 1, 5)
		m.Snapshot = s.message(encodeSnapshot(s))
		return m
	}},
	{"snapshot at an index that wraps", etcd.StateFollower, false, func() *pb.Message {
		s := snapshot{group: testGroup, index: math.MaxUint64, term: 5, view: testView(3, 1)}
		m := message(pb.MsgSnap, 1, 5)
		m.Snapshot = s.message(encodeSnapshot(s))
		return m
	}},
	{"entries before every log", etcd.StateFollower, false, func() *pb.Message { return message(pb.MsgApp, 1, 5) }},
	{"empty proposal", etcd.StateLeader, true, func() *pb.Message { return message(pb.MsgProp, 1, 6) }},
	{"read of another member", etcd.StateLeader, false, func() *pb.Message { return message(pb.MsgReadIndex, 1, 6) }},
	{"answer to a read", etcd.StateFollower, false, func() *pb.Message { return message(pb.MsgReadIndexResp, 1, 5) }},
	{"transfer of leadership", etcd.StateFollower, false, func() *pb.Message { return message(pb.MsgTransferLeader, 1, 5) }},
	{"order to campaign from one that does not lead", etcd.StateFollower, false, func() *pb.Message { return message(pb.MsgTimeoutNow, 3, 5) }},
	{"order to campaign in another term", etcd.StateFollower, false, func() *pb.Message { return message(pb.MsgTimeoutNow, 1, 6) }},
	{"order to a leader to campaign", etcd.StateLeader, false, func() *pb.Message { return message(pb.MsgTimeoutNow, 1, 6) }},
	{"order to forget the leader", etcd.StateFollower, false, func() *pb.Message { return message(pb.MsgForgetLeader, 1, 5) }},
	{"snapshot without snapshot", etcd.StateFollower, false, func() *pb.Message { return message(pb.MsgSnap, 1, 5) }},
}

func TestTheGuardRefusesWhatNoHonestMemberSends(t *testing.T) {
	for _, c := range forbidden {
		t.Run(c.name, func(t *testing.T) {
			e := inRole(t, c.role)
			m := c.make()
			before, dropped := e.Hash(), e.Dropped()
			r := recvOf(m)
			if _, err := e.admit(r); !errors.Is(err, errRefused) && !errors.Is(err, ErrMalformed) {
				t.Fatalf("admitted: %v", err)
			}
			var out order.Actions
			e.Step(r, &out)
			if e.Hash() != before || e.Dropped() != dropped+1 || len(out.Send)+len(out.Persist) > 0 {
				t.Errorf("it had an effect: %+v", out)
			}
		})
	}
}

// stepRaw hands a message to the library past the guard and reports the panic it causes, "" for none.
func stepRaw(e *Engine, m *pb.Message) (msg string) {
	defer func() {
		if r := recover(); r != nil {
			msg = fmt.Sprint(r)
		}
	}()
	_ = e.raft.Step(proto.Clone(m).(*pb.Message))
	return ""
}

// Each of these would end the process, and with it every group on the node. When a new version of the library stops doing
// that, this test says so and the rule may go.
func TestTheLibraryPanicsWithoutTheGuard(t *testing.T) {
	for _, c := range forbidden {
		if c.panics && stepRaw(inRole(t, c.role), c.make()) == "" {
			t.Errorf("%s: no panic", c.name)
		}
	}
	// Two liars out of three confirm a read round that was not begun.
	e := inRole(t, etcd.StateLeader)
	got := ""
	for _, from := range []uint64{1, 3} {
		m := message(pb.MsgHeartbeatResp, from, 6)
		m.Context = binary.LittleEndian.AppendUint64(nil, 1000)
		got += stepRaw(e, m)
	}
	if got == "" {
		t.Error("unknown read round: no panic")
	}
	// A snapshot with a voter named twice.
	m := message(pb.MsgSnap, 1, 5)
	m.Snapshot = testSnapshot(40, 5, "")
	m.Snapshot.Metadata.ConfState = &pb.ConfState{Voters: []uint64{2, 2, 3}}
	if stepRaw(inRole(t, etcd.StateFollower), m) == "" {
		t.Error("odd configuration: no panic")
	}
	// Indexes that do not follow the message's: they cannot be written down in our encoding.
	m = message(pb.MsgApp, 1, 5)
	m.Index, m.LogTerm = new(uint64(15)), new(uint64(5))
	m.Entries = []*pb.Entry{testEntry(4, 12, 1)}
	if stepRaw(inRole(t, etcd.StateFollower), m) == "" {
		t.Error("entry below the commit index: no panic")
	}
}

func TestAFrameThatSpeaksForAnotherIsDropped(t *testing.T) {
	good := message(pb.MsgHeartbeat, 1, 5)
	for name, r := range map[string]order.Recv{
		"removed sender":    {From: 5, Store: order.StoreID{5}, Msg: recvOf(good).Msg},
		"reserved sender":   {From: math.MaxUint64, Store: order.StoreID{9}, Msg: recvOf(good).Msg},
		"self":              {From: 2, Store: order.StoreID{2}, Msg: recvOf(good).Msg},
		"no sender":         {From: 0, Msg: recvOf(good).Msg},
		"another store":     {From: 1, Store: order.StoreID{77}, Msg: recvOf(good).Msg},
		"no store":          {From: 1, Msg: recvOf(good).Msg},
		"another's message": {From: 3, Store: order.StoreID{3}, Msg: recvOf(good).Msg},
		"another's address": recvOf(&pb.Message{Type: pb.MsgHeartbeat.Enum(), From: new(uint64(1)), To: new(uint64(3)), Term: new(uint64(5))}),
		"nothing":           {From: 1, Store: order.StoreID{1}},
		"another version":   {From: 1, Store: order.StoreID{1}, Msg: append([]byte{9}, recvOf(good).Msg[1:]...)},
		"type of no name":   recvOf(message(pb.MessageType(77), 1, 5)),
		"storage response":  recvOf(message(pb.MsgStorageAppendResp, 1, 5)),
		"local: hup":        recvOf(message(pb.MsgHup, 1, 5)),
		"local: beat":       recvOf(message(pb.MsgBeat, 1, 5)),
		"local: quorum":     recvOf(message(pb.MsgCheckQuorum, 1, 5)),
		"local: snapshot":   recvOf(message(pb.MsgSnapStatus, 1, 5)),
		"local: unreached":  recvOf(message(pb.MsgUnreachable, 1, 5)),
	} {
		for _, role := range everyRole {
			e := inRole(t, role)
			before := e.Hash()
			var out order.Actions
			if e.Step(r, &out); e.Hash() != before || e.Dropped() != 1 || len(out.Send)+len(out.Persist) > 0 {
				t.Errorf("%s in %v had an effect: %+v", name, role, out)
			}
		}
	}
	e := inRole(t, etcd.StateFollower)
	if _, err := e.admit(recvOf(good)); err != nil {
		t.Errorf("the good one: %v", err)
	}
}

func TestAStuckDiskStopsIntakeAtTheLimit(t *testing.T) {
	e := inRole(t, etcd.StateLeader)
	var out order.Actions
	refused := 0
	for i := range uint64(persistsMax + 10) {
		out.Reset()
		e.Step(order.Propose{Ref: i, Cmd: command(i)}, &out)
		for _, d := range out.Done {
			if !errors.Is(d.Err, order.ErrBusy) {
				t.Fatalf("proposal %d: %v", i, d.Err)
			}
			refused++
		}
	}
	if refused != 10 || e.writes.len() != persistsMax {
		t.Errorf("%d refused, %d writes under way", refused, e.writes.len())
	}
	if _, err := e.admit(recvOf(message(pb.MsgHeartbeatResp, 1, 6))); !errors.Is(err, errRefused) {
		t.Errorf("message over the limit: %v", err)
	}
	e.Step(order.Stored{Seq: e.seq}, &out)
	if _, err := e.admit(recvOf(message(pb.MsgHeartbeatResp, 1, 6))); err != nil {
		t.Errorf("message after the disk caught up: %v", err)
	}
}

// chaos turns fuzz input into structured messages and other events.
type chaos struct{ b []byte }

func (c *chaos) byte() byte {
	if len(c.b) == 0 {
		return 0
	}
	v := c.b[0]
	c.b = c.b[1:]
	return v
}

// number is mostly near the edges of what e has, sometimes anything.
func (c *chaos) number(near ...uint64) uint64 {
	v := c.byte()
	switch {
	case v >= 250:
		return math.MaxUint64 - uint64(v-250)
	case v >= 240:
		return 1 << (c.byte() % 64)
	case v >= 220:
		return uint64(c.byte())
	}
	return near[int(v)%len(near)] + uint64(v/16%5) - 2
}

func (c *chaos) message(e *Engine) *pb.Message {
	types := []pb.MessageType{
		pb.MsgApp, pb.MsgAppResp, pb.MsgHeartbeat, pb.MsgHeartbeatResp, pb.MsgSnap, pb.MsgVote, pb.MsgVoteResp, pb.MsgPreVote, pb.MsgPreVoteResp,
		pb.MsgApp, pb.MsgAppResp, pb.MsgTimeoutNow,
	}
	t := pb.MessageType(c.byte())
	if t > 30 {
		t = types[int(t)%len(types)]
	}
	from := uint64(c.byte()%8) + 1
	m := message(t, from, c.number(e.term, e.term+1))
	if c.byte()%4 > 0 {
		m.Term = new(e.term)
	}
	m.LogTerm = new(c.number(e.term, 5, 1))
	m.Index = new(c.number(e.log.last(), e.commit, e.log.snapIndex))
	m.Commit = new(c.number(e.commit, e.log.last()))
	m.Reject, m.RejectHint = new(c.byte()%3 == 0), new(c.number(e.log.last(), e.commit))
	if c.byte()%4 == 0 {
		m.Context = binary.LittleEndian.AppendUint64(nil, c.number(e.asked, 1))[:8-min(8, c.byte()/32)]
	}
	switch t {
	case pb.MsgVote:
		if c.byte()%4 == 0 {
			m.Context = []byte(transferContext)
		}
	case pb.MsgApp:
		term := m.GetLogTerm()
		for i := range c.byte() % 5 {
			if c.byte()%8 == 0 {
				term = c.number(term, e.term)
			}
			ent := testEntry(term, m.GetIndex()+1+uint64(i), uint64(c.byte()))
			switch c.byte() % 16 {
			case 0:
				ent.Data = nil
			case 1:
				ent.Data = []byte{c.byte()}
			case 2:
				ent.Type, ent.Data = pb.EntryConfChangeV2.Enum(), nil
			case 3, 4, 5, 6:
				ent.Type = pb.EntryConfChangeV2.Enum()
				ent.Data, _ = encodeChange(c.change(e))
			}
			m.Entries = append(m.Entries, ent)
		}
	case pb.MsgSnap:
		s := snapshot{group: testGroup, index: m.GetIndex(), term: m.GetLogTerm(), view: e.view, data: []byte("chaos")}
		if c.byte()%8 == 0 {
			s.view = testView(int(c.byte()%4), int(c.byte()%3))
			for i := range s.view.Members {
				s.view.Members[i].Role = order.Role(c.byte()%6 + c.byte()%2)
			}
			s.view.Next += order.ReplicaID(c.byte() % 3)
		}
		m.Snapshot = s.message(encodeSnapshot(s))
	}
	return m
}

// change is one that may or may not fit e's view.
func (c *chaos) change(e *Engine) order.Change {
	ch := order.Change{From: e.view.Num + uint64(c.byte()%8/7)}
	if c.byte()%3 == 0 {
		ch.Learn = newcomer(c.byte() % 12)
	}
	ids := func() (ids []order.ReplicaID) {
		for range c.byte() % 3 {
			ids = append(ids, order.ReplicaID(c.byte()%8))
		}
		return ids
	}
	if ch.Learn == nil || c.byte()%8 == 0 {
		ch.Promote, ch.Remove = ids(), ids()
	}
	return ch
}

// run feeds e until the input ends, and the engine's own events between.
func (c *chaos) run(tb testing.TB, e *Engine) {
	var out order.Actions
	ref := uint64(0)
	for len(c.b) > 0 {
		out.Reset()
		var ev order.Event
		switch op := c.byte() % 16; op {
		case 0:
			n := min(int(c.byte()), len(c.b))
			ev = order.Recv{From: order.ReplicaID(op%4 + 1), Store: order.StoreID{op%4 + 1}, Msg: c.b[:n:n]}
			c.b = c.b[n:]
		case 1, 2:
			ev = order.Stored{Seq: c.number(e.seq, e.stored)}
		case 3:
			ev = order.Applied{Index: c.number(e.delivered, e.applied)}
		case 4:
			ev = order.Timer{Kind: tickTimer, Epoch: e.clock.epoch}
		case 5:
			ref++
			ev = order.Propose{Ref: ref, Cmd: command(ref)}
			switch c.byte() % 8 {
			case 0, 1, 2:
				ch := c.change(e)
				ch.Ref = ref
				ev = ch
			case 3:
				ev = order.Transfer{To: order.ReplicaID(c.byte() % 8)}
			}
		case 6:
			ref++
			ev = order.Read{Ref: ref}
		case 7:
			switch v := order.ReplicaID(c.byte()); v / 8 % 4 {
			case 0:
				ev = order.Suspect{Member: v % 8}
			case 1:
				ev = order.Compact{Index: c.number(e.applied, e.log.last()), Data: []byte("machine")}
			default:
				ev = order.Link{To: v % 8, Up: v > 128}
			}
		default:
			ev = recvOf(c.message(e))
		}
		e.Step(ev, &out)
		if e.raft.HasReady() {
			tb.Fatalf("the library still has something after %+v", ev)
		}
		e.Hash()
		e.Status()
	}
}

// FuzzRecv steps arbitrary and structured messages of lying members into an engine in each role, among its own events. It may
// end up with nonsense in its log, as Raft does not bear liars; it may not panic.
func FuzzRecv(f *testing.F) {
	for seed := range 8 {
		b := make([]byte, 600)
		for i := range b {
			b[i] = byte((i*i*(seed+3) + i*seed*7) >> 3)
		}
		f.Add(byte(seed), b)
	}
	f.Fuzz(func(t *testing.T, role byte, b []byte) {
		c := chaos{b}
		c.run(t, inRole(t, everyRole[int(role)%len(everyRole)]))
	})
}

// The same with pseudo-random input, so that the ordinary test run has some of it.
func TestLyingMembersCannotStopTheProcess(t *testing.T) {
	var clock electionClock
	rounds := 2000
	if testing.Short() {
		rounds = 200
	}
	for i := range rounds {
		b := make([]byte, 0, 1200)
		for len(b) < 1200 {
			b = binary.LittleEndian.AppendUint64(b, clock.next())
		}
		c := chaos{b}
		c.run(t, inRole(t, everyRole[i%len(everyRole)]))
	}
}
