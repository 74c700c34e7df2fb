package coherence

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"latchkey/coherence/appmanager"
	"latchkey/coherence/manager"
	"latchkey/coherence/pb"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/session"
)

var (
	testApp = AppKey("app")
	nodeA   = protocol.NodeRef{ID: keyspace.NodeID{1}, Inc: 1}
	nodeB   = protocol.NodeRef{ID: keyspace.NodeID{2}, Inc: 1}
)

// rig is a machine and what it has said.
type rig struct {
	t    testing.TB
	m    *Machine
	said []protocol.Message
	duty *duty // the last one
}

func newRig(t testing.TB, gen uint64) *rig { return &rig{t: t, m: NewMachine(order.GroupID{Gen: gen})} }

// tell has a manager told a message, and manager what these say to each other.
func (r *rig) tell(m protocol.Message) []protocol.Message {
	r.t.Helper()
	r.said = nil
	r.order(m)
	return r.said
}

func (r *rig) order(m protocol.Message) {
	r.t.Helper()
	event, err := pb.EncodeObjectEvent(manager.Event{Kind: manager.Receive, Msg: &m})
	object := m.Object
	if m.To.Party == protocol.AppManager {
		object = keyspace.Key{}
		event, err = pb.EncodeAppEvent(appmanager.Event{Kind: appmanager.Receive, Msg: &m})
	}
	if err != nil {
		r.t.Fatalf("%v: %v", &m, err)
	}
	r.apply(object, event)
}

// event has the application's manager take an event that is no message.
func (r *rig) event(ev appmanager.Event) {
	r.t.Helper()
	b, err := pb.EncodeAppEvent(ev)
	if err != nil {
		r.t.Fatal(err)
	}
	r.apply(keyspace.Key{}, b)
}

func (r *rig) apply(object keyspace.Key, event []byte) {
	r.m.ApplyOwn(session.Context{Post: func(v any) {
		if d := v.(said).duty; d != nil {
			r.duty = d
		}
		for _, m := range v.(said).messages {
			if m.To.Party == protocol.Node {
				r.said = append(r.said, m)
			} else {
				r.order(m)
			}
		}
	}}, inputOf(testApp, object, event))
}

func (r *rig) create(n protocol.NodeRef, e protocol.Epoch) []protocol.Message {
	r.t.Helper()
	return r.tell(protocol.Message{Kind: protocol.Create, From: protocol.At(n), To: protocol.Address{Party: protocol.AppManager}, Epoch: e,
		Thread: protocol.ThreadID{n.ID[0]}, Node: n, Flag: true})
}

func (r *rig) end(n protocol.NodeRef, e protocol.Epoch) []protocol.Message {
	r.t.Helper()
	return r.tell(protocol.Message{Kind: protocol.Terminated, From: protocol.At(n), To: protocol.Address{Party: protocol.AppManager}, Epoch: e,
		Thread: protocol.ThreadID{n.ID[0]}})
}

func (r *rig) object(kind protocol.Kind, n protocol.NodeRef, name string, e protocol.Epoch, seq protocol.ReqSeq) []protocol.Message {
	r.t.Helper()
	return r.tell(protocol.Message{Kind: kind, From: protocol.At(n), To: protocol.Address{Party: protocol.ObjectManager}, Epoch: e,
		Object: ObjectKey("app", name), Requester: n, Seq: seq})
}

// expect compares the kinds of what was said.
func expect(t testing.TB, said []protocol.Message, kinds ...protocol.Kind) {
	t.Helper()
	for i := range max(len(said), len(kinds)) {
		if i >= len(said) || i >= len(kinds) || said[i].Kind != kinds[i] {
			t.Fatalf("said %v, want %v", said, kinds)
		}
	}
}

// opened returns a machine with an application that two nodes have open, and an object that the first owns and the second is about to read.
func opened(t testing.TB) *rig {
	r := newRig(t, 0)
	expect(t, r.create(nodeA, 1), protocol.Created)
	expect(t, r.create(nodeB, 1), protocol.Created)
	expect(t, r.object(protocol.Write, nodeA, "x", 1, 1), protocol.FirstTouch)
	expect(t, r.object(protocol.WriteAck, nodeA, "x", 1, 0))
	expect(t, r.object(protocol.Read, nodeB, "x", 1, 1), protocol.ForwardedRead)
	return r
}

func TestASnapshotIsTheWholeState(t *testing.T) {
	r := opened(t)
	b := r.m.Snapshot()
	other := newRig(t, 0)
	if err := other.m.Restore(b); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(other.m.Snapshot(), b) {
		t.Error("restored, its snapshot is another one")
	}
	var resent [2]int
	for i, m := range []*Machine{r.m, other.m} {
		m.Resend(session.Context{Post: func(v any) { resent[i] += len(v.(said).messages) + len(v.(said).concerns) }})
	}
	if resent[0] == 0 || resent[0] != resent[1] {
		t.Errorf("resends %d, and restored %d", resent[0], resent[1])
	}
	expect(t, other.object(protocol.ReadAck, nodeB, "x", 1, 1))
	expect(t, other.object(protocol.Write, nodeB, "x", 1, 2), protocol.WriteConfirm)
	for i := range b {
		if err := newRig(t, 0).m.Restore(b[:i]); i > 0 && err == nil {
			t.Errorf("%d of %d bytes are restored", i, len(b))
		}
	}
	if err := newRig(t, 1).m.Restore(b); err == nil {
		t.Error("the state of an earlier generation is restored")
	}
}

func TestAGroupThatNobodyUsesHasNoState(t *testing.T) {
	m := NewMachine(order.GroupID{})
	if b := m.Snapshot(); b != nil {
		t.Errorf("%x", b)
	}
	if err := m.Restore(nil); err != nil {
		t.Error(err)
	}
}

func TestAnApplicationThatNobodyHasOpenIsForgotten(t *testing.T) {
	r := opened(t)
	r.end(nodeA, 1)
	r.end(nodeB, 1)
	if len(r.m.apps) != 0 || r.m.objects != 0 {
		t.Fatalf("%d applications and %d objects are left", len(r.m.apps), r.m.objects)
	}
	// What is of the execution that is over finds that out, and makes nothing.
	expect(t, r.create(nodeA, 1), protocol.Destroy)
	expect(t, r.object(protocol.Read, nodeB, "x", 1, 2)) // asks the application's manager, and is told
	if len(r.m.apps) != 0 {
		t.Error("a message of an execution that is over brings it back")
	}
	expect(t, r.create(nodeA, 2), protocol.Created)
	expect(t, r.object(protocol.Read, nodeA, "x", 2, 1), protocol.FirstTouch)
}

// TestALateEndEndsNothing: a node has left, and says so once more after the failure of the last other one, which left the checkpoint to go on from. It
// ended the application, and its checkpoint was collected.
func TestALateEndEndsNothing(t *testing.T) {
	r := newRig(t, 0)
	r.create(nodeA, 1)
	r.create(nodeB, 1)
	r.event(appmanager.Event{Kind: appmanager.Begin})
	r.event(appmanager.Event{Kind: appmanager.Saved, Checkpoint: 1, Hash: protocol.Hash{1}})
	expect(t, r.end(nodeA, 1), protocol.Terminated)
	r.event(appmanager.Event{Kind: appmanager.Suspect, Node: nodeB})
	for _, e := range []protocol.Epoch{1, 2, 3} { // of before, forged, and of an execution that is to come
		r.end(nodeA, e)
		i, err := decodeInfo(r.m.Query(session.Context{}, testApp[:]))
		if err != nil || !i.Open || i.Epoch != 2 || i.Saved != 1 || i.Manifest != (protocol.Hash{1}) {
			t.Fatalf("after an end of execution %d: %+v, %v", e, i, err)
		}
	}
	expect(t, r.create(nodeA, 2), protocol.Created)
	expect(t, r.end(nodeA, 2), protocol.Terminated)
	if r.m.apps[testApp] != nil || r.duty == nil || !r.duty.collect || len(r.duty.roots) > 0 {
		t.Errorf("the last one has left, and %+v is to be done", r.duty)
	}
}

// TestWhatThreadsLeaveIsCollected: the state that a thread was created with is stored for a checkpoint that may never be begun. It stayed with its keepers for
// good when the application was over.
func TestWhatThreadsLeaveIsCollected(t *testing.T) {
	r := newRig(t, 0)
	r.create(nodeA, 1)
	thread := protocol.Message{From: protocol.At(nodeA), To: protocol.Address{Party: protocol.AppManager}, Epoch: 1, Thread: protocol.ThreadID{9}}
	begun, over := thread, thread
	begun.Kind, begun.Node, begun.Hash, begun.Checkpoint = protocol.Create, nodeA, protocol.Hash{7}, 1
	over.Kind = protocol.Terminated
	expect(t, r.tell(begun), protocol.Start, protocol.Created)
	expect(t, r.tell(over), protocol.Terminated)
	expect(t, r.end(nodeA, 1), protocol.Terminated)
	if r.duty == nil || !r.duty.collect || r.duty.saved != 1 || len(r.duty.roots) > 0 {
		t.Fatalf("%+v is to be done", r.duty)
	}
	if i, err := decodeInfo(r.m.Query(session.Context{}, testApp[:])); err != nil || i.Open || i.Checkpoint != 1 {
		t.Errorf("the next application stores for checkpoint %d, %v: what is collected", i.Checkpoint+1, err)
	}
	r.duty = nil
	r.create(nodeA, 2)
	r.end(nodeA, 2)
	if r.duty != nil {
		t.Errorf("nothing was stored, and %+v is to be done", r.duty)
	}
}

// TestARestoredReplicaPostsWhatTheOthersDo: of the end of an application that was not the first of its group. One that had lived through its founding
// knew that nothing was stored for it; one that was restored did not, and had it collected.
func TestARestoredReplicaPostsWhatTheOthersDo(t *testing.T) {
	for _, begun := range []bool{false, true} {
		lived := newRig(t, 0)
		lived.create(nodeA, 1)
		lived.end(nodeA, 1)
		lived.create(nodeA, 2)
		if begun {
			lived.event(appmanager.Event{Kind: appmanager.Begin})
		}
		restored := newRig(t, 0)
		if err := restored.m.Restore(lived.m.Snapshot()); err != nil {
			t.Fatal(err)
		}
		for _, r := range []*rig{lived, restored} {
			r.duty = nil
			expect(t, r.end(nodeA, 2), protocol.Terminated)
			if collects := r.duty != nil && r.duty.collect; collects != begun {
				t.Errorf("restored: %v; a checkpoint was begun: %v; %+v is to be done", r == restored, begun, r.duty)
			}
		}
		if !bytes.Equal(lived.m.Snapshot(), restored.m.Snapshot()) {
			t.Error("the two go on with different states")
		}
	}
}

func TestAGroupThatLostItsStateBeginsAboveItsFormerEpochs(t *testing.T) {
	r := newRig(t, 1)
	said := r.create(nodeA, 7)
	expect(t, said, protocol.Destroy)
	if e := said[0].Epoch; e != 1<<32+1 {
		t.Errorf("epoch %d", e)
	}
	expect(t, r.create(nodeA, said[0].Epoch), protocol.Created)
}

func TestTheFailureOfWhoHasItOpenEndsAnExecution(t *testing.T) {
	r := opened(t)
	event, err := pb.EncodeAppEvent(appmanager.Event{Kind: appmanager.Suspect, Node: nodeA})
	if err != nil {
		t.Fatal(err)
	}
	told, why := 0, ""
	r.m.ApplyOwn(session.Context{Post: func(v any) {
		why = v.(said).anew.String()
		for _, m := range v.(said).messages {
			if m.Kind == protocol.Destroy && m.Epoch == 2 {
				told++
			}
		}
	}}, inputOf(testApp, keyspace.Key{}, event))
	if want := fmt.Sprintf("node %v, which has it open, does not answer", nodeA); why != want {
		t.Errorf("it begins anew since %q, want %q", why, want)
	}
	if told != 2 || r.m.apps[testApp].manager != nil {
		t.Errorf("%d nodes are told", told)
	}
	expect(t, r.create(nodeB, 2), protocol.Created)
}

// TestAGroupSaysWhyApplicationsBeginAnew: also when nobody has them open any more, and after a snapshot.
func TestAGroupSaysWhyApplicationsBeginAnew(t *testing.T) {
	at := time.UnixMilli(1_700_000_000_000)
	why := func(m *Machine, app keyspace.Key) *Anew {
		t.Helper()
		a, err := decodeAnew(m.Query(session.Context{}, append(app[:len(app):len(app)], 0)))
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	ask := restartOf(1, nodeB.ID)
	x := ObjectKey("app", "x")
	for _, c := range []struct {
		ev   appmanager.Event
		want Anew
	}{
		{appmanager.Event{Kind: appmanager.Suspect, Node: nodeA}, Anew{Cause: Silent, Node: nodeA}},
		{appmanager.Event{Kind: appmanager.Receive, Msg: ask}, Anew{Cause: Asked, Node: protocol.NodeRef{ID: nodeB.ID, Inc: 1}}},
		{appmanager.Event{Kind: appmanager.Receive, Msg: &protocol.Message{Kind: protocol.Refused, From: protocol.At(protocol.NodeRef{ID: nodeA.ID, Inc: 2}),
			To: ask.To, Requester: protocol.NodeRef{ID: nodeA.ID, Inc: 2}, Epoch: 1}}, Anew{Cause: Returned, Node: protocol.NodeRef{ID: nodeA.ID, Inc: 2}}},
		{appmanager.Event{Kind: appmanager.Receive, Msg: &protocol.Message{Kind: protocol.RestartReq, From: ask.From, To: ask.To, Epoch: 1, Flag: true, Object: x,
			Requester: nodeA}}, Anew{Cause: Needed, Node: nodeA, Object: x}},
		{appmanager.Event{Kind: appmanager.Receive, Msg: &protocol.Message{Kind: protocol.Touched, From: ask.From, To: ask.To, Epoch: 1, Object: x, Life: 9, Seq: 1}},
			Anew{Cause: Blank, Object: x}},
	} {
		r := opened(t)
		r.event(appmanager.Event{Kind: appmanager.Begin})
		r.event(appmanager.Event{Kind: appmanager.Saved, Checkpoint: 1, Hash: protocol.Hash{1}}) // which is refused: x cannot be read by then
		if a := why(r.m, testApp); a != nil {
			t.Fatalf("it has not begun anew, and %v", a)
		}
		c.ev.At, c.want.At, c.want.Epoch = at.UnixMilli(), at, 2
		r.event(c.ev)
		if a := why(r.m, testApp); a == nil || *a != c.want || a.String() == "" {
			t.Errorf("%v: %+v, want %+v", c.want.Cause, a, c.want)
		}
		b := r.m.Snapshot()
		m := NewMachine(order.GroupID{})
		if err := m.Restore(b); err != nil || !bytes.Equal(m.Snapshot(), b) || *why(m, testApp) != c.want {
			t.Errorf("%v: %+v restored, %v", c.want.Cause, why(m, testApp), err)
		}
		if i, err := decodeInfo(m.Query(session.Context{}, testApp[:])); err != nil || i.Open {
			t.Errorf("%v: %+v, %v", c.want.Cause, i, err)
		}
		r.create(nodeB, 2) // opened again
		if a := why(r.m, testApp); a == nil || *a != c.want {
			t.Errorf("%v: %+v when it is open again", c.want.Cause, a)
		}
		r.end(nodeB, 2)
		if a := why(r.m, testApp); a != nil {
			t.Errorf("%v: %+v after its end", c.want.Cause, a)
		}
	}
	r := newRig(t, 0)
	for i := range AnewMax + 1 {
		app := keyspace.Key{byte(i + 1)}
		for _, ev := range []appmanager.Event{
			{Kind: appmanager.Receive, Msg: &protocol.Message{Kind: protocol.Create, From: protocol.At(nodeA), To: ask.To, Epoch: r.m.epoch, Node: nodeA, Flag: true,
				Thread: protocol.ThreadID{1}}},
			{Kind: appmanager.Suspect, Node: nodeA, At: 1 << 62},
		} {
			b, err := pb.EncodeAppEvent(ev)
			if err != nil {
				t.Fatal(err)
			}
			r.m.ApplyOwn(session.Context{Post: func(any) {}}, inputOf(app, keyspace.Key{}, b))
		}
	}
	if why(r.m, keyspace.Key{1}) != nil || why(r.m, keyspace.Key{2}) == nil || len(r.m.anew) != AnewMax {
		t.Errorf("of %d applications %d are remembered", AnewMax+1, len(r.m.anew))
	}
	if a := why(r.m, keyspace.Key{2}); !a.At.IsZero() {
		t.Errorf("a time that cannot be written down: %v", a.At)
	}
	if _, err := decodeAnew(r.m.Query(session.Context{}, testApp[:])); err == nil {
		t.Error("the answer to another question is taken")
	}
}

// TestSnapshotsOfBeforeAreRead: version 2 says nothing of why applications began anew, nor do 2 and 3 say what checkpoints are numbered after.
func TestSnapshotsOfBeforeAreRead(t *testing.T) {
	b := opened(t).m.Snapshot()
	for v := byte(snapshotOldest); v < snapshotVersion; v++ {
		m := NewMachine(order.GroupID{})
		if err := m.Restore(append([]byte{v}, b[1:len(b)-int(snapshotVersion-v)]...)); err != nil || !bytes.Equal(m.Snapshot(), b) {
			t.Errorf("version %d: %v", v, err)
		}
	}
	for _, v := range []byte{snapshotOldest - 1, snapshotVersion + 1} {
		if err := NewMachine(order.GroupID{}).Restore(append([]byte{v}, b[1:]...)); err == nil {
			t.Errorf("version %d is read", v)
		}
	}
}

func FuzzMachine(f *testing.F) {
	r := opened(f)
	f.Add(r.m.Snapshot(), []byte(nil))
	event, _ := pb.EncodeAppEvent(appmanager.Event{Kind: appmanager.Suspect, Node: nodeA})
	f.Add([]byte(nil), inputOf(testApp, keyspace.Key{}, event))
	f.Fuzz(func(t *testing.T, snapshot, input []byte) {
		m := NewMachine(order.GroupID{})
		if m.Restore(snapshot) != nil {
			m = opened(t).m
		} else if b := m.Snapshot(); !bytes.Equal(b, snapshot) && len(snapshot) > 0 {
			if again := NewMachine(order.GroupID{}); again.Restore(b) != nil || !bytes.Equal(again.Snapshot(), b) {
				t.Errorf("restored, its snapshot %x is not", b)
			}
		}
		m.ApplyOwn(session.Context{Post: func(any) {}}, input)
		m.Resend(session.Context{Post: func(any) {}})
		if err := NewMachine(order.GroupID{}).Restore(m.Snapshot()); err != nil {
			t.Errorf("a snapshot is not restored: %v", err)
		}
		_, _ = decodeInfo(input)
		_, _ = decodeAnew(input)
		if i, err := decodeInfo(m.Query(session.Context{}, testApp[:])); err != nil {
			t.Errorf("%v, %v", i, err)
		}
	})
}
