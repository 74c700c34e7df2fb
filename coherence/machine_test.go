package coherence

import (
	"bytes"
	"fmt"
	"testing"

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
		why = v.(said).why
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
		if i, err := decodeInfo(m.Query(session.Context{}, testApp[:])); err != nil {
			t.Errorf("%v, %v", i, err)
		}
	})
}
