package coherencetest

import (
	"bytes"
	"encoding/binary"
	"testing"

	"latchkey/coherence/appmanager"
	"latchkey/coherence/cachedcopy"
	"latchkey/coherence/manager"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
)

func bigNode(i int) (n protocol.NodeRef) {
	binary.BigEndian.PutUint32(n.ID[:], uint32(i+1))
	n.Inc = 1
	return n
}

func bigThread(i int) (t protocol.ThreadID) {
	binary.BigEndian.PutUint32(t[:], uint32(i+1))
	return t
}

// TestRequestsOfTooManyNodesAreDropped: the queue of an object holds NodesMax requests.
func TestRequestsOfTooManyNodesAreDropped(t *testing.T) {
	m := manager.New(manager.Config{App: appKey, Object: objectKey(1), Epoch: 1})
	for i := range protocol.NodesMax + 1 {
		m.Step(manager.Event{Kind: manager.Receive, Msg: &protocol.Message{
			Kind: protocol.Write, Epoch: 1, From: protocol.At(bigNode(i)), Requester: bigNode(i), Seq: 1,
		}}, nil)
	}
	if n := len(m.Concerns()); n != protocol.NodesMax {
		t.Errorf("requests of %d nodes wait", n)
	}
}

// TestTooManyCopiesAreNotGranted: readers beyond NodesMax get none, and a checkpoint always gets one.
func TestTooManyCopiesAreNotGranted(t *testing.T) {
	m := manager.New(manager.Config{App: appKey, Object: objectKey(1), Epoch: 1})
	owner := bigNode(protocol.NodesMax + 1)
	give := func(msg protocol.Message) []protocol.Message {
		msg.Epoch = 1
		if msg.From.Party == protocol.Nobody {
			msg.From = protocol.At(msg.Requester)
		}
		return m.Step(manager.Event{Kind: manager.Receive, Msg: &msg}, nil)
	}
	am := protocol.Address{Party: protocol.AppManager}
	give(protocol.Message{Kind: protocol.Write, Requester: owner, Seq: 1})
	give(protocol.Message{Kind: protocol.Touched, From: am, Seq: 1})
	give(protocol.Message{Kind: protocol.WriteAck, Requester: owner})
	granted := 0
	for i := range protocol.NodesMax + 1 {
		granted += len(give(protocol.Message{Kind: protocol.Read, Requester: bigNode(i), Seq: 1}))
	}
	if granted != protocol.NodesMax {
		t.Errorf("%d copies are granted", granted)
	}
	if out := give(protocol.Message{Kind: protocol.Read, From: am, Requester: protocol.NodeRef{ID: keyspace.NodeID(appKey), Inc: 1}, Seq: 1}); len(out) != 1 {
		t.Errorf("a checkpoint that reads is answered %v", out)
	}
	for i := range protocol.NodesMax {
		give(protocol.Message{Kind: protocol.ReadAck, Requester: bigNode(i), Seq: 1})
	}
	if _, err := manager.Restore(manager.Config{App: appKey, Object: objectKey(1)}, m.Snapshot()); err != nil {
		t.Errorf("the fullest state: %v", err)
	}
}

// TestSuspicionsAreBounded: those that concern nobody give way.
func TestSuspicionsAreBounded(t *testing.T) {
	m := manager.New(manager.Config{App: appKey, Object: objectKey(1), Epoch: 1})
	for i := range protocol.NodesMax {
		m.Step(manager.Event{Kind: manager.Suspect, Node: bigNode(i)}, nil)
	}
	if !m.Suspects(bigNode(0)) {
		t.Error("a suspicion is forgotten below the limit")
	}
	m.Step(manager.Event{Kind: manager.Suspect, Node: bigNode(protocol.NodesMax)}, nil)
	if !m.Suspects(bigNode(protocol.NodesMax)) || m.Suspects(bigNode(0)) {
		t.Error("a suspicion that concerns nobody keeps a new one out")
	}
}

// TestDeferredEventsAreBounded: what comes beyond DeferredMax under a Hold is dropped, and repeated by who sent it.
func TestDeferredEventsAreBounded(t *testing.T) {
	self := bigNode(0)
	c := cachedcopy.New(cachedcopy.Config{Self: self, App: appKey, Object: objectKey(1), Epoch: 1, Threads: true})
	c.Step(cachedcopy.Event{Kind: cachedcopy.WriteFault}, nil)
	c.Step(cachedcopy.Event{Kind: cachedcopy.Receive, Msg: &protocol.Message{
		Kind: protocol.FirstTouch, Epoch: 1, To: protocol.At(self), Seq: 1, Value: cells[0],
	}}, nil)
	c.Step(cachedcopy.Event{Kind: cachedcopy.Hold}, nil)
	for i := range cachedcopy.DeferredMax + 1 {
		c.Step(cachedcopy.Event{Kind: cachedcopy.Receive, Msg: &protocol.Message{
			Kind: protocol.ForwardedRead, Epoch: 1, To: protocol.At(self), Requester: bigNode(i + 1), Seq: 1,
		}}, nil)
	}
	copies := 0
	for _, a := range c.Step(cachedcopy.Event{Kind: cachedcopy.Release}, nil) {
		if a.Kind == cachedcopy.Send && a.Msg.Kind == protocol.Copy {
			copies++
		}
	}
	if copies != cachedcopy.DeferredMax {
		t.Errorf("%d readers are served after the hold", copies)
	}
}

func feed(m *appmanager.Manager, in protocol.Message) []appmanager.Action {
	in.Epoch = m.Epoch()
	return m.Step(appmanager.Event{Kind: appmanager.Receive, Msg: &in}, nil)
}

// TestTooManyThreadsAreRefused: the one beyond ThreadsMax. Ended ones are remembered up to EndedMax.
func TestTooManyThreadsAreRefused(t *testing.T) {
	m := appmanager.New(appmanager.Config{App: appKey})
	var parent protocol.ThreadID
	create := func(i int) protocol.Message {
		for _, a := range feed(m, protocol.Message{Kind: protocol.Create, From: protocol.At(bigNode(0)), Node: bigNode(0), Thread: bigThread(i), Parent: parent}) {
			if a.Msg.Kind == protocol.Created {
				return a.Msg
			}
		}
		return protocol.Message{}
	}
	for i := range protocol.ThreadsMax {
		if create(i).Flag {
			t.Fatalf("thread %d is refused", i)
		}
	}
	if r := create(protocol.ThreadsMax); r.Kind != protocol.Created || !r.Flag {
		t.Errorf("one too many: %v", &r)
	}
	for i := range appmanager.EndedMax {
		feed(m, protocol.Message{Kind: protocol.Terminated, From: protocol.At(bigNode(0)), Thread: bigThread(i)})
	}
	if create(0); m.Threads() != 0 {
		t.Error("an ended thread is created again")
	}
	if r := create(protocol.ThreadsMax); !r.Flag {
		t.Error("after a restart there would be one too many, and it is not refused")
	}
	parent = bigThread(0) // which a restart would have create it
	create(protocol.ThreadsMax)
	feed(m, protocol.Message{Kind: protocol.Terminated, From: protocol.At(bigNode(0)), Thread: bigThread(protocol.ThreadsMax)})
	if create(0); m.Threads() != 1 {
		t.Error("more than EndedMax threads are remembered")
	}
}

// receipts counts the TOUCHED that were answered and not refused.
func receipts(m *appmanager.Manager, touched protocol.Message) (n int) {
	for _, a := range feed(m, touched) {
		if a.Kind == appmanager.Send && a.Msg.Kind == protocol.Touched && !a.Msg.Flag {
			n++
		}
	}
	return n
}

// TestTooManyObjectsAreNotTouched: the one beyond ObjectsMax gets no receipt, so its first touch is not granted. It is told.
func TestTooManyObjectsAreNotTouched(t *testing.T) {
	m := appmanager.New(appmanager.Config{App: appKey})
	touch := func(i int) int {
		var k keyspace.Key
		binary.BigEndian.PutUint32(k[:], uint32(i+1))
		return receipts(m, protocol.Message{Kind: protocol.Touched, Object: k, Life: 1, Seq: 1})
	}
	for i := range protocol.ObjectsMax {
		if touch(i) != 1 {
			t.Fatalf("object %d gets no receipt", i)
		}
	}
	if touch(protocol.ObjectsMax) != 0 {
		t.Error("one too many gets a receipt")
	}
	if out := feed(m, protocol.Message{Kind: protocol.Touched, Object: keyspace.Key{1, 1, 1, 1}, Life: 1, Seq: 1}); len(out) != 1 || !out[0].Msg.Flag {
		t.Errorf("one too many is answered with %v", out)
	}
	if touch(0) != 1 {
		t.Error("a known one gets none")
	}
	if again, err := appmanager.Restore(appmanager.Config{App: appKey}, m.Snapshot()); err != nil || !bytes.Equal(again.Snapshot(), m.Snapshot()) {
		t.Errorf("the fullest state: %v", err)
	}
}

// TestAManifestIsBounded: objects that only the last checkpoint has count, or manifests would grow with every restart.
func TestAManifestIsBounded(t *testing.T) {
	m := appmanager.New(appmanager.Config{App: appKey})
	touch := func(o keyspace.Key) int {
		return receipts(m, protocol.Message{Kind: protocol.Touched, Object: o, Life: 1, Seq: 1})
	}
	key := func(i int) (k keyspace.Key) {
		binary.BigEndian.PutUint32(k[:], uint32(i+1))
		return k
	}
	for i := range protocol.ObjectsMax {
		touch(key(i))
	}
	m.Step(appmanager.Event{Kind: appmanager.Begin}, nil)
	reader := protocol.Address{Party: protocol.AppManager, Node: protocol.NodeRef{ID: keyspace.NodeID(appKey), Inc: 1}}
	for i := range protocol.ObjectsMax {
		feed(m, protocol.Message{Kind: protocol.Copy, To: reader, Object: key(i), Seq: 1, Hash: protocol.Hash{1}})
	}
	m.Step(appmanager.Event{Kind: appmanager.Saved, Checkpoint: 1, Hash: protocol.Hash{2}}, nil)
	feed(m, protocol.Message{Kind: protocol.RestartReq, Object: key(0), Requester: bigNode(0), Flag: true})
	if m.Epoch() != 2 || touch(key(1)) != 1 {
		t.Errorf("after a restart to epoch %d a known object gets no receipt", m.Epoch())
	}
	if touch(key(protocol.ObjectsMax)) != 0 {
		t.Error("one too many gets a receipt after a restart")
	}
	if again, err := appmanager.Restore(appmanager.Config{App: appKey}, m.Snapshot()); err != nil || !bytes.Equal(again.Snapshot(), m.Snapshot()) {
		t.Errorf("the fullest state: %v", err)
	}
}

// TestTooManyQueriesAreDropped: of those that wait, QueriesMax are remembered.
func TestTooManyQueriesAreDropped(t *testing.T) {
	m := appmanager.New(appmanager.Config{App: appKey})
	feed(m, protocol.Message{Kind: protocol.Create, From: protocol.At(bigNode(0)), Node: bigNode(0), Thread: bigThread(0)})
	for i := range appmanager.QueriesMax + 1 {
		var k keyspace.Key
		binary.BigEndian.PutUint32(k[:], uint32(i+1))
		feed(m, protocol.Message{Kind: protocol.Query, Object: k, Requester: bigNode(0), Ack: protocol.ReadAck, Seq: 1})
	}
	answers := 0
	for _, a := range feed(m, protocol.Message{Kind: protocol.Terminated, From: protocol.At(bigNode(0)), Thread: bigThread(0)}) {
		if a.Msg.Kind == protocol.ReadAck {
			answers++
		}
	}
	if answers != appmanager.QueriesMax {
		t.Errorf("%d queries are answered", answers)
	}
}

// TestANodeBeginsSoManyThreads: BegunMax in an epoch.
func TestANodeBeginsSoManyThreads(t *testing.T) {
	self := bigNode(0)
	n := appmanager.NewNode(appmanager.NodeConfig{Self: self, App: appKey})
	begin := func(i int) (ran bool) {
		for _, a := range n.Step(appmanager.NodeEvent{Kind: appmanager.NodeReceive, Msg: &protocol.Message{
			Kind: protocol.Start, Epoch: 1, To: protocol.At(self), Thread: bigThread(i),
		}}, nil) {
			ran = ran || a.Kind == appmanager.Run
		}
		n.Step(appmanager.NodeEvent{Kind: appmanager.End, Thread: bigThread(i)}, nil)
		for _, k := range []protocol.Kind{protocol.Terminated} {
			n.Step(appmanager.NodeEvent{Kind: appmanager.NodeReceive, Msg: &protocol.Message{Kind: k, Epoch: 1, To: protocol.At(self), Thread: bigThread(i)}}, nil)
		}
		return ran
	}
	for i := range appmanager.BegunMax {
		if !begin(i) {
			t.Fatalf("thread %d does not run", i)
		}
	}
	if begin(appmanager.BegunMax) {
		t.Error("one too many runs")
	}
}
