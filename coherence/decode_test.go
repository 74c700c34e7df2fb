package coherence

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"testing"
	"time"

	"latchkey/coherence/appmanager"
	"latchkey/coherence/chunks"
	"latchkey/coherence/manager"
	"latchkey/coherence/pb"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
)

func TestSavedThreadsAreReadAsWritten(t *testing.T) {
	long := bytes.Repeat([]byte{'x'}, 1<<20)
	for _, s := range []saved{
		{name: "n", kind: "k", args: []byte{}},
		{name: "n", kind: "k", prefers: "p", args: []byte("args"), begun: true, state: []byte("state")},
		{name: string(long[:NameBytesMax]), kind: string(long[:KindBytesMax]), prefers: string(long[:peerBytesMax]), args: long[:ArgsBytesMax], begun: true, state: long[:StateBytesMax]},
	} {
		b := s.encode()
		if len(b) > 1<<20 {
			t.Errorf("%d bytes are no chunk", len(b))
		}
		got, err := decodeSaved(b)
		if err != nil || !reflect.DeepEqual(*got, s) {
			t.Errorf("%v: %+v for %+v", err, got, s)
		}
		if _, err := decodeSaved(append(b, 0)); !errors.Is(err, ErrThreadState) {
			t.Errorf("a byte more: %v", err)
		}
		if len(b) < 100 {
			for i := range b {
				if _, err := decodeSaved(b[:i]); !errors.Is(err, ErrThreadState) {
					t.Errorf("%d bytes: %v", i, err)
				}
			}
		}
	}
	for what, s := range map[string]saved{
		"state": {name: "n", kind: "k", begun: true, state: long[:StateBytesMax+1]}, "arguments": {name: "n", kind: "k", args: long[:ArgsBytesMax+1]},
		"name": {name: string(long[:NameBytesMax+1]), kind: "k"}, "kind": {name: "n", kind: string(long[:KindBytesMax+1])}, "no kind": {name: "n"}, "no name": {kind: "k"},
	} {
		if _, err := decodeSaved(s.encode()); !errors.Is(err, ErrThreadState) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func FuzzDecodeSaved(f *testing.F) {
	f.Add((&saved{name: "n", kind: "k", prefers: "p", args: []byte("args"), begun: true, state: []byte("state")}).encode())
	f.Add((&saved{name: "n", kind: "k"}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decodeSaved(b)
		if err != nil {
			return
		}
		if again, err := decodeSaved(s.encode()); err != nil || !reflect.DeepEqual(again.encode(), s.encode()) {
			t.Errorf("%+v becomes %+v, %v", s, again, err)
		}
	})
}

func FuzzDecodeInfo(f *testing.F) {
	i := Info{Open: true, Epoch: 3, Threads: 2, State: appmanager.Stopping, Checkpoint: 4, Saved: 2, Manifest: protocol.Hash{1}, Objects: 9,
		Nodes:   []protocol.NodeRef{{ID: keyspace.NodeID{1}, Inc: 7}},
		Running: []RunningThread{{ID: protocol.ThreadID{5}, At: protocol.NodeRef{ID: keyspace.NodeID{1}, Inc: 7}, Migration: 2, Stopped: true}}}
	f.Add(i.encode())
	f.Add((&Info{}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		i, err := decodeInfo(b)
		if err != nil {
			return
		}
		if again, err := decodeInfo(i.encode()); err != nil || !reflect.DeepEqual(again, i) {
			t.Errorf("%+v becomes %+v, %v", i, again, err)
		}
	})
}

// FuzzQuestionsAboutApplications has a peer ask anything, and answer anything.
func FuzzQuestionsAboutApplications(f *testing.F) {
	app := AppKey("app")
	for _, do := range []string{askHost, askMove, askPlace, askBegin, askAbort, askWhy, askRestart} {
		b, _ := json.Marshal(question{Version: hostsVersion, Do: do, App: app[:], Thread: make([]byte, 16), Node: make([]byte, 32), Wanted: []wanted{{Name: "n", Kind: "k"}},
			Hosts: []hostOf{{ID: make([]byte, 32), Kinds: []string{"k"}}}})
		f.Add(b)
	}
	b, _ := json.Marshal(answer{Version: hostsVersion, Open: true, Kinds: []string{"k"}, Threads: []HostThread{{Name: "n"}}, Places: []int{1}})
	f.Add(b)
	b, _ = json.Marshal(question{Version: hostsVersion, Do: askMove, App: app[:]})
	f.Add(b)
	s := &Service{leads: make(map[keyspace.Key]*leading), apps: map[keyspace.Key]*App{
		app: {name: "app", part: newPart(), node: appmanager.NewNode(appmanager.NodeConfig{App: app})}}}
	f.Fuzz(func(t *testing.T, b []byte) {
		if q, app, err := decodeQuestion(b); err == nil && q.Do != askBegin && q.Do != askAbort && q.Do != askRestart { // which a leader takes
			if r := s.answer("p", app, &q); q.Version == hostsVersion && q.Do == askMove && r.Err == "" {
				t.Error("a thread moves that is not there")
			}
		}
		if a, err := decodeAnswer(b); err == nil && a.Version != hostsVersion {
			t.Error("another version is understood")
		}
	})
}

func TestAnswersOfAnotherVersionAreRefused(t *testing.T) {
	b, _ := json.Marshal(answer{Version: hostsVersion + 1})
	if _, err := decodeAnswer(b); err == nil {
		t.Error("understood")
	}
	if _, _, err := decodeQuestion(make([]byte, questionBytesMax+1)); err == nil {
		t.Error("a long question is read")
	}
	if _, err := decodeAnswer(make([]byte, answerBytesMax+1)); err == nil {
		t.Error("a long answer is read")
	}
}

func TestPoliciesChooseAmongThoseThatCan(t *testing.T) {
	hosts := []Host{
		{Node: protocol.NodeRef{ID: keyspace.NodeID{3}}, Peer: "c", Kinds: []string{"a", "k"}, Threads: 1},
		{Node: protocol.NodeRef{ID: keyspace.NodeID{2}}, Peer: "b", Kinds: []string{"a"}},
		{Node: protocol.NodeRef{ID: keyspace.NodeID{1}}, Peer: "a", Kinds: []string{"k"}, Threads: 1},
	}
	for i, c := range []struct {
		p    Policy
		w    Wanted
		want int
	}{
		{Spread, Wanted{Kind: "a"}, 1}, {Spread, Wanted{Kind: "k"}, 2}, {Spread, Wanted{Kind: "z"}, -1},
		{Spread, Wanted{Kind: "k", Prefers: "c"}, 0}, {Spread, Wanted{Kind: "k", Prefers: "b"}, 2},
		{PolicyFunc(func(Wanted, []Host) int { return 0 }), Wanted{Kind: "k"}, 0}, {PolicyFunc(func(Wanted, []Host) int { return 7 }), Wanted{Kind: "k"}, 2},
	} {
		if got := choose(c.p, c.w, hosts); got != c.want {
			t.Errorf("%d: %d, want %d", i, got, c.want)
		}
	}
}

// TestIncarnationsRiseThoughTheClockIsSetBack begins a process whose store knows of later incarnations than its clock would draw (R6).
func TestIncarnationsRiseThoughTheClockIsSetBack(t *testing.T) {
	store := new(chunks.MemoryStore)
	late := uint64(time.Now().Add(24 * time.Hour).UnixNano())
	former := &Service{inc: late}
	if err := former.Remember(store); err != nil {
		t.Fatal(err)
	}
	last := former.draw()
	if next := former.draw(); next <= last || last <= late {
		t.Errorf("%d after %d", next, last)
	}
	last = former.draw()
	s := new(Service)
	if err := s.Remember(store); err != nil {
		t.Fatal(err)
	}
	if first := s.draw(); first <= last {
		t.Errorf("%d after %d of the process before", first, last)
	}
	if _, err := chunks.NewKeeper(store); err != nil {
		t.Errorf("a keeper of the same store: %v", err)
	}
}

// TestWhatIsOfAnEarlierEpochIsForgotten loses every REINIT: one message about another object is enough (R7).
func TestWhatIsOfAnEarlierEpochIsForgotten(t *testing.T) {
	r := opened(t)
	if r.m.objects != 1 {
		t.Fatalf("%d managers", r.m.objects)
	}
	expect(t, r.object(protocol.Read, nodeB, "z", 7, 1)) // it waits for the application's manager, which knows of no such epoch
	if a := r.m.apps[testApp]; r.m.objects != 1 || len(a.objects) != 1 || a.objects[ObjectKey("app", "x")] != nil {
		t.Errorf("%d managers are left", r.m.objects)
	}
	expect(t, r.object(protocol.Read, nodeA, "x", 1, 2), protocol.Destroy)
	other := newRig(t, 0)
	if err := other.m.Restore(r.m.Snapshot()); err != nil {
		t.Fatal(err)
	}
	expect(t, other.object(protocol.Read, nodeA, "x", 1, 2), protocol.Destroy)
}

// TestWhereThereIsNoRoomSomebodySaysSo has an application manager without room for another object.
func TestWhereThereIsNoRoomSomebodySaysSo(t *testing.T) {
	om := manager.New(manager.Config{App: testApp, Object: keyspace.Key{1}, Epoch: 1, Life: 1})
	am, node := protocol.Address{Party: protocol.AppManager}, protocol.At(nodeA)
	out := om.Step(manager.Event{Kind: manager.Receive, Msg: &protocol.Message{Kind: protocol.Read, From: node, Epoch: 1, Object: keyspace.Key{1}, Requester: nodeA, Seq: 3}}, nil)
	expect(t, out, protocol.Touched)
	refused := out[0]
	refused.From, refused.To, refused.Flag = am, protocol.Address{Party: protocol.ObjectManager}, true
	out = om.Step(manager.Event{Kind: manager.Receive, Msg: &refused}, nil)
	expect(t, out, protocol.NoCopy)
	if out[0].To != node || !out[0].Flag || out[0].Seq != 3 {
		t.Errorf("says %v to %v", &out[0], out[0].To)
	}
	if _, err := pb.EncodeFrame(nil, testApp, &out[0]); err != nil {
		t.Error(err)
	}
	expect(t, om.Resend(nil), protocol.Touched) // it goes on asking
	refused.Flag = false
	expect(t, om.Step(manager.Event{Kind: manager.Receive, Msg: &refused}, nil), protocol.FirstTouch)
}
