package raft

import (
	"bytes"
	"errors"
	"math"
	"reflect"
	"slices"
	"testing"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"latchkey/replicagroup/order"
)

func testEntry(term, index, seq uint64) *pb.Entry {
	data, err := order.AppendCommand(nil, order.Stamp{Boot: 1}, command(seq))
	if err != nil {
		panic(err)
	}
	return &pb.Entry{Term: new(term), Index: new(index), Data: data}
}

func testSnapshot(index, term uint64, data string) *pb.Snapshot {
	s := snapshot{group: testGroup, index: index, term: term, view: testView(3, 0), data: []byte(data)}
	return s.message(encodeSnapshot(s))
}

// testMessages has one message of each type that members exchange.
func testMessages() []*pb.Message {
	base := func(t pb.MessageType) *pb.Message {
		return &pb.Message{
			Type: t.Enum(), From: new(uint64(1)), To: new(uint64(2)), Term: new(uint64(7)), LogTerm: new(uint64(6)), Index: new(uint64(300)),
			Commit: new(uint64(299)), RejectHint: new(uint64(0)), Reject: new(false),
		}
	}
	app := base(pb.MsgApp)
	app.Entries = []*pb.Entry{testEntry(6, 301, 1), {Term: new(uint64(7)), Index: new(uint64(302))}, testEntry(7, 303, 2)}
	resp := base(pb.MsgAppResp)
	resp.Reject, resp.RejectHint = new(true), new(uint64(250))
	beat := base(pb.MsgHeartbeat)
	beat.Context = []byte{1, 0, 0, 0, 0, 0, 0, 0}
	snap := base(pb.MsgSnap)
	snap.Snapshot = testSnapshot(298, 6, "state")
	return []*pb.Message{
		app, base(pb.MsgApp), resp, beat, base(pb.MsgHeartbeatResp), snap, base(pb.MsgVote), base(pb.MsgVoteResp), base(pb.MsgPreVote),
		base(pb.MsgPreVoteResp),
	}
}

func TestMessagesRoundTrip(t *testing.T) {
	for _, m := range testMessages() {
		b := appendMessage(nil, m)
		if size := headSize(m) + len(m.GetSnapshot().GetData()); len(b) > size {
			t.Errorf("%v takes %d bytes, counted %d", m.GetType(), len(b), size)
		}
		got, err := decodeMessage(b)
		if err != nil {
			t.Errorf("%v: %v", m.GetType(), err)
		} else if !proto.Equal(got, m) {
			t.Errorf("sent %v\ngot %v", m, got)
		}
	}
}

func TestTruncatedMessagesAreRefused(t *testing.T) {
	for _, m := range testMessages() {
		b := appendMessage(nil, m)
		head := len(b)
		if m.GetType() == pb.MsgSnap {
			head -= len("state") // a machine's state is whatever is left
		}
		for n := range head {
			if _, err := decodeMessage(b[:n]); !errors.Is(err, ErrMalformed) {
				t.Errorf("%v cut to %d of %d bytes: %v", m.GetType(), n, len(b), err)
			}
		}
		if _, err := decodeMessage(append(b, 0)); m.GetType() != pb.MsgSnap && !errors.Is(err, ErrMalformed) {
			t.Errorf("%v with a byte more: %v", m.GetType(), err)
		}
	}
}

func TestMessageLimitsHoldAtTheirEdge(t *testing.T) {
	s := snapshot{group: testGroup, index: 20, term: 2, view: testView(3, 0), data: make([]byte, SnapshotBytesMax)}
	b := encodeSnapshot(s)
	if _, err := decodeSnapshot(b); err != nil {
		t.Errorf("the largest snapshot: %v", err)
	}
	if _, err := decodeSnapshot(append(b, 0)); !errors.Is(err, ErrMalformed) {
		t.Errorf("a byte more: %v", err)
	}

	m := testMessages()[0]
	cmd := order.Command{Client: order.ClientID{1}, Service: "0123456789abcdef0123456789abcdef", Data: make([]byte, order.DataBytesMax)}
	data, err := order.AppendCommand(nil, order.Stamp{}, cmd)
	if err != nil {
		t.Fatal(err)
	}
	m.Entries = []*pb.Entry{{Term: new(uint64(7)), Index: new(uint64(301)), Data: data}}
	if _, err := decodeMessage(appendMessage(nil, m)); err != nil {
		t.Errorf("the largest command: %v", err)
	}
	m.Entries[0].Data = make([]byte, messageBytesMax)
	if _, err := decodeMessage(appendMessage(nil, m)); !errors.Is(err, ErrMalformed) {
		t.Errorf("a message above the limit: %v", err)
	}
	m = testMessages()[3]
	m.Context = make([]byte, contextBytesMax+1)
	if _, err := decodeMessage(appendMessage(nil, m)); !errors.Is(err, ErrMalformed) {
		t.Errorf("a context above the limit: %v", err)
	}
}

func TestSnapshotsAndStatesRoundTrip(t *testing.T) {
	s := snapshot{group: testGroup, index: 20, term: 2, view: testView(3, 2), data: []byte("x")}
	if got, err := decodeSnapshot(encodeSnapshot(s)); err != nil || !reflect.DeepEqual(got, s) {
		t.Errorf("%+v, %v; want %+v", got, err, s)
	}
	st := state{term: 1, vote: 2, commit: 3}
	if got, err := decodeState(encodeState(st)); err != nil || got != st {
		t.Errorf("%+v, %v", got, err)
	}
}

func FuzzDecodeMessage(f *testing.F) {
	for _, m := range testMessages() {
		f.Add(appendMessage(nil, m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeMessage(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Errorf("%v", err)
			}
			return
		}
		again, err := decodeMessage(appendMessage(nil, m))
		if err != nil || !proto.Equal(m, again) {
			t.Errorf("%v became %v, %v", m, again, err)
		}
	})
}

func FuzzDecodeSnapshot(f *testing.F) {
	f.Add(testSnapshot(20, 2, "state").GetData())
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decodeSnapshot(b)
		if err != nil {
			return
		}
		if err := checkView(s.view); err != nil {
			t.Errorf("decoded a bad view: %v", err)
		}
		if again, err := decodeSnapshot(encodeSnapshot(s)); err != nil || !reflect.DeepEqual(s, again) {
			t.Errorf("%+v became %+v, %v", s, again, err)
		}
	})
}

// FuzzDecodeImage starts a replica from whatever a disk may give back: an error, or an engine that runs.
func FuzzDecodeImage(f *testing.F) {
	snap, ents := testSnapshot(20, 2, "state").GetData(), appendEntries(nil, []*pb.Entry{testEntry(2, 21, 1), testEntry(3, 22, 2)})
	f.Add(encodeState(state{3, 1, 21}), snap, uint64(20), uint64(21), ents[0].Data, ents[1].Data)
	f.Add([]byte(nil), snap, uint64(20), uint64(21), ents[0].Data, ents[1].Data)
	f.Add(encodeState(state{1, 0, 10}), []byte(nil), uint64(10), uint64(11), []byte{1}, []byte(nil))
	f.Fuzz(func(t *testing.T, st, snap []byte, at, first uint64, e1, e2 []byte) {
		img := order.Image{State: st, Snapshot: &order.Record{Kind: order.RecordSnapshot, Index: at, Data: snap}}
		if len(e1) > 0 {
			img.Entries = append(img.Entries, order.Record{Kind: order.RecordEntry, Index: first, Data: e1})
		}
		if len(e2) > 0 {
			img.Entries = append(img.Entries, order.Record{Kind: order.RecordEntry, Index: first + 1, Data: e2})
		}
		e, err := New(Config{Group: testGroup, Self: 1, Store: order.StoreID{1}}, img)
		if err != nil {
			if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrConfig) && !errors.Is(err, ErrWrongStore) {
				t.Errorf("%v", err)
			}
			return
		}
		var out order.Actions
		e.Step(order.Rand{Bits: 1}, &out)
		for range 30 {
			e.Step(order.Stored{Seq: e.seq}, &out)
			e.Step(order.Timer{Kind: tickTimer, Epoch: e.clock.epoch}, &out)
		}
		e.Hash()
	})
}

func TestAnImageThatContradictsItselfIsRefused(t *testing.T) {
	good := func() order.Image {
		return order.Image{
			State:    encodeState(state{3, 1, 21}),
			Snapshot: &order.Record{Kind: order.RecordSnapshot, Index: 20, Data: testSnapshot(20, 2, "state").GetData()},
			Entries:  appendEntries(nil, []*pb.Entry{testEntry(2, 21, 1), testEntry(3, 22, 2)}),
		}
	}
	cfg := Config{Group: testGroup, Self: 1, Store: order.StoreID{1}}
	if _, err := New(cfg, good()); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*order.Image){
		"no snapshot":            func(i *order.Image) { i.Snapshot = nil },
		"no state":               func(i *order.Image) { i.State = nil },
		"short state":            func(i *order.Image) { i.State = i.State[1:] },
		"snapshot cut":           func(i *order.Image) { i.Snapshot.Data = i.Snapshot.Data[:40] },
		"snapshot misfiled":      func(i *order.Image) { i.Snapshot.Index = 19 },
		"gap":                    func(i *order.Image) { i.Entries = i.Entries[1:] },
		"gap after the first":    func(i *order.Image) { i.Entries[1].Index++ },
		"entry cut":              func(i *order.Image) { i.Entries[0].Data = i.Entries[0].Data[:5] },
		"command cut":            func(i *order.Image) { i.Entries[0].Data = i.Entries[0].Data[:30] },
		"terms fall":             func(i *order.Image) { i.Entries[0], i.Entries[1] = at(21, i.Entries[1]), at(22, i.Entries[0]) },
		"commit beyond the end":  func(i *order.Image) { i.State = encodeState(state{3, 1, 23}) },
		"vote for nobody":        func(i *order.Image) { i.State = encodeState(state{3, math.MaxUint64, 21}) },
		"unknown kind":           func(i *order.Image) { i.Entries[0].Data = slices.Clone(i.Entries[0].Data); i.Entries[0].Data[9] = 7 },
		"term out of this world": func(i *order.Image) { i.State = encodeState(state{termMax + 1, 0, 21}) },
		"unknown version":        func(i *order.Image) { i.Entries[0].Data = append([]byte{9}, i.Entries[0].Data[1:]...) },
	} {
		img := good()
		spoil(&img)
		if _, err := New(cfg, img); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	other := cfg
	other.Group.Gen++
	if _, err := New(other, good()); !errors.Is(err, ErrMalformed) {
		t.Errorf("image of another group: %v", err)
	}
	other = cfg
	other.Store = order.StoreID{77}
	if _, err := New(other, good()); !errors.Is(err, ErrWrongStore) {
		t.Errorf("another store: %v", err)
	}
	other = cfg
	other.Self = 8 // of a later view: it may have begun with this snapshot
	if _, err := New(other, good()); err != nil {
		t.Errorf("later member: %v", err)
	}
	other.Self = 0
	if _, err := New(other, good()); !errors.Is(err, ErrConfig) {
		t.Errorf("no member: %v", err)
	}
}

func at(index uint64, r order.Record) order.Record {
	r.Index = index
	return r
}

// A write cut short loses its state record first. What is left must not be mistaken for a promise.
func TestATornWriteRaisesTheTermWithoutAVote(t *testing.T) {
	img := order.Image{
		State:    encodeState(state{2, 3, 20}), // voted for 3 in term 2; the entry of term 3 came with a state that is lost
		Snapshot: &order.Record{Kind: order.RecordSnapshot, Index: 20, Data: testSnapshot(20, 2, "").GetData()},
		Entries:  appendEntries(nil, []*pb.Entry{testEntry(3, 21, 1)}),
	}
	e, err := New(Config{Group: testGroup, Self: 1, Store: order.StoreID{1}}, img)
	if err != nil {
		t.Fatal(err)
	}
	if e.state != (state{3, 0, 20}) {
		t.Errorf("%+v", e.state)
	}
}

// A store keeps entries above a snapshot that came from a leader, though they are of another history.
func TestEntriesAReceivedSnapshotContradictsAreForgotten(t *testing.T) {
	img := order.Image{
		State:    encodeState(state{5, 0, 20}),
		Snapshot: &order.Record{Kind: order.RecordSnapshot, Index: 20, Data: testSnapshot(20, 4, "").GetData()},
		Entries:  appendEntries(nil, []*pb.Entry{testEntry(3, 21, 1), testEntry(3, 22, 2)}),
	}
	e, err := New(Config{Group: testGroup, Self: 1, Store: order.StoreID{1}}, img)
	if err != nil {
		t.Fatal(err)
	}
	if st := e.Status(); st.Last != 20 {
		t.Errorf("kept up to %d", st.Last)
	}
}

func TestConfigIsChecked(t *testing.T) {
	good := Config{Group: testGroup, Self: 1, Store: order.StoreID{1}, View: testView(3, 1)}
	if _, err := New(good, order.Image{}); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Config){
		"no members":       func(c *Config) { c.View.Members = nil },
		"no voter":         func(c *Config) { c.View = testView(0, 1) },
		"not a member":     func(c *Config) { c.Self = 9 },
		"order":            func(c *Config) { c.View.Members[0], c.View.Members[1] = c.View.Members[1], c.View.Members[0] },
		"id 0":             func(c *Config) { c.View.Members[0].ID = 0 },
		"reserved id":      func(c *Config) { c.View.Members[3].ID = 1<<64 - 2; c.View.Next = 1<<64 - 1 },
		"next id":          func(c *Config) { c.View.Next = 4 },
		"role":             func(c *Config) { c.View.Members[2].Role = 0 },
		"too many members": func(c *Config) { c.View = testView(order.MembersMax+1, 0) },
		"heartbeat":        func(c *Config) { c.Heartbeat = -1 },
		"ticks":            func(c *Config) { c.ElectionTicks = 1 },
		"prefix":           func(c *Config) { c.Group.Prefix.Len = 999 },
	} {
		c := good
		c.View = testView(3, 1)
		spoil(&c)
		if _, err := New(c, order.Image{}); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNothingSharedIsOverwritten(t *testing.T) {
	// A record, a message and a delivered command alias buffers; a later write must not reach into an earlier one's.
	recs := appendEntries(nil, []*pb.Entry{testEntry(1, 1, 1), testEntry(1, 2, 2)})
	second := bytes.Clone(recs[1].Data)
	_ = append(recs[0].Data, 0xff)
	if !bytes.Equal(recs[1].Data, second) {
		t.Error("appending to one record changed the next")
	}
}
