package coherence

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/coherence/access"
	"latchkey/coherence/appmanager"
	"latchkey/coherence/cachedcopy"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
)

// forgetful is an overlay whose answers are what a test says.
type forgetful struct {
	detecting
	asked   int
	answers []func(done func([]byte, error)) // of the questions, in their order
}

func (o *forgetful) Node() keyspace.NodeID                  { return nodeA.ID }
func (o *forgetful) PeerOf(keyspace.NodeID) (peer.ID, bool) { return "b", true }
func (o *forgetful) Go(_ peer.ID, _ keyspace.Key, _ string, _ []byte, _ time.Duration, done func([]byte, error)) {
	o.asked++
	o.answers[0](done)
	o.answers = o.answers[1:]
}

func lonely(o Overlay) *App {
	s := NewService(o, nil)
	a := &App{s: s, name: "app", key: testApp, self: nodeA, threads: make(map[protocol.ThreadID]*Thread), part: newPart()}
	a.ctx, a.cancel = context.WithCancelCause(s.ctx)
	a.node = appmanager.NewNode(appmanager.NodeConfig{Self: nodeA, App: testApp})
	return a
}

// TestNoObjectLosesItsNameWithAnAnswer: who is to own an object that it knows nothing of asks who hands it over what it is called, and takes it when it
// knows. One lost answer left the object without a name for good: nobody could list it.
func TestNoObjectLosesItsNameWithAnAnswer(t *testing.T) {
	lost := func(done func([]byte, error)) { done(nil, errors.New("lost")) }
	named := func(done func([]byte, error)) { done([]byte("d/x"), nil) }
	wrong := func(done func([]byte, error)) { done([]byte("d/y"), nil) }
	for what, c := range map[string]struct {
		answers []func(func([]byte, error))
		asked   int // before it is taken
		name    string
	}{
		"at once":            {[]func(func([]byte, error)){named}, 1, "d/x"},
		"after two are lost": {[]func(func([]byte, error)){lost, lost, named}, 3, "d/x"},
		"never":              {[]func(func([]byte, error)){lost, lost, lost}, 3, ""},
		"another one":        {[]func(func([]byte, error)){wrong}, 1, ""},
	} {
		o := &forgetful{answers: c.answers}
		a := lonely(o)
		key := ObjectKey("app", "d/x")
		k := &copyOf{key: key}
		said := 0
		automaton := cachedcopy.New(cachedcopy.Config{Self: nodeA, App: testApp, Object: key, Epoch: 1, Threads: true})
		k.object, k.cached = access.NewCached(access.NewEpoch(access.Config{}), key, automaton, func(protocol.Message) { said++ })
		m := &protocol.Message{Kind: protocol.BecomeOwner, From: protocol.Address{Party: protocol.AppManager}, To: protocol.At(nodeA), Epoch: 1, Object: key, Requester: nodeB}
		for i := 0; said == 0; i++ {
			if i > nameTries {
				t.Fatalf("%s: never taken", what)
			}
			if a.learnName(k, m) {
				k.cached.Step(cachedcopy.Event{Kind: cachedcopy.Receive, Msg: m})
			}
		}
		if k.called() != c.name || o.asked != c.asked {
			t.Errorf("%s: it is called %q after %d questions, want %q after %d", what, k.called(), o.asked, c.name, c.asked)
		}
	}
}

// TestEveryHandOverIsAskedAbout: who once owned an object without a name asks the next one that hands it over. It never asked again, and nobody could list
// the object.
func TestEveryHandOverIsAskedAbout(t *testing.T) {
	nodeD := protocol.NodeRef{ID: keyspace.NodeID{4}, Inc: 1}
	lost := func(done func([]byte, error)) { done(nil, errors.New("lost")) }
	empty := func(done func([]byte, error)) { done(nil, nil) }
	named := func(done func([]byte, error)) { done([]byte("d/x"), nil) }
	for what, answers := range map[string][]func(func([]byte, error)){
		"of who does not know": {empty, named},
		"with lost answers":    {lost, lost, lost, lost, lost, named},
	} {
		o := &forgetful{answers: answers}
		a := lonely(o)
		key := ObjectKey("app", "d/x")
		k := &copyOf{key: key}
		var said []protocol.Message
		automaton := cachedcopy.New(cachedcopy.Config{Self: nodeA, App: testApp, Object: key, Epoch: 1, Threads: true})
		k.object, k.cached = access.NewCached(access.NewEpoch(access.Config{}), key, automaton, func(m protocol.Message) { said = append(said, m) })
		take := func(m protocol.Message) {
			m.To, m.Epoch, m.Object = protocol.At(nodeA), 1, key
			if m.Kind != protocol.BecomeOwner || a.learnName(k, &m) {
				k.cached.Step(cachedcopy.Event{Kind: cachedcopy.Receive, Msg: &m})
			}
		}
		manager := protocol.Address{Party: protocol.ObjectManager}
		handOver := func(from protocol.NodeRef) {
			said = nil
			for range nameTries + 1 {
				take(protocol.Message{Kind: protocol.BecomeOwner, From: protocol.Address{Party: protocol.AppManager}, Requester: from})
			}
			if len(said) != 1 || said[0].Kind != protocol.Write {
				t.Fatalf("%s: told that it is to own the object, it says %v", what, said)
			}
		}
		handOver(nodeB)
		take(protocol.Message{Kind: protocol.Copy, From: protocol.At(nodeB), Seq: said[0].Seq, Copy: protocol.MasterCopy, LastInv: 1, Value: &protocol.Cell{}})
		asked := o.asked
		take(protocol.Message{Kind: protocol.BecomeOwner, From: protocol.Address{Party: protocol.AppManager}, Requester: nodeB})
		if k.called() != "" || o.asked != asked {
			t.Fatalf("%s: the owner, of what is called %q, asked %d times more", what, k.called(), o.asked-asked)
		}
		take(protocol.Message{Kind: protocol.ForwardedWrite, From: manager, Requester: nodeD, Seq: 1, LastInv: 2})
		take(protocol.Message{Kind: protocol.TransferDone, From: manager, LastInv: 2})
		handOver(nodeD)
		if k.called() != "d/x" || len(o.answers) > 0 {
			t.Errorf("%s: it is called %q, and %d answers are left", what, k.called(), len(o.answers))
		}
	}
}

// TestWhoLeavesDoesNotAskForNames: it refuses what it is to own at once (R11).
func TestWhoLeavesDoesNotAskForNames(t *testing.T) {
	o := new(forgetful)
	a := lonely(o)
	key := ObjectKey("app", "d/x")
	k := &copyOf{key: key}
	automaton := cachedcopy.New(cachedcopy.Config{Self: nodeA, App: testApp, Object: key, Epoch: 1})
	var said []protocol.Message
	k.object, k.cached = access.NewCached(access.NewEpoch(access.Config{}), key, automaton, func(m protocol.Message) { said = append(said, m) })
	m := &protocol.Message{Kind: protocol.BecomeOwner, From: protocol.Address{Party: protocol.AppManager}, To: protocol.At(nodeA), Epoch: 1, Object: key, Requester: nodeB}
	if !a.learnName(k, m) {
		t.Fatalf("it asks %d times first", o.asked)
	}
	k.cached.Step(cachedcopy.Event{Kind: cachedcopy.Receive, Msg: m})
	if len(said) != 1 || said[0].Kind != protocol.Injection {
		t.Errorf("says %v", said)
	}
}

// TestNobodyIsAskedWhoIsNotKnown: the introduction takes a while, and three repetitions used up the tries before it was there.
func TestNobodyIsAskedWhoIsNotKnown(t *testing.T) {
	begin := time.Unix(1, 0)
	var n naming
	for i, c := range []struct {
		from      protocol.NodeRef
		known     bool
		after     time.Duration
		ask, take bool
	}{
		{from: nodeB},
		{from: nodeB, after: 1},
		{from: nodeB, after: 2},
		{from: nodeB, after: namesTimeout - 1},
		{from: nodeB, after: namesTimeout - 1, known: true, ask: true},
		{from: nodeB, after: namesTimeout, known: true}, // not answered yet
		{from: nodeA, after: namesTimeout},              // nor that
	} {
		if ask, take := n.next(c.from, c.known, begin.Add(c.after)); ask != c.ask || take != c.take {
			t.Errorf("%d: asks %v, takes %v, want %v, %v", i, ask, take, c.ask, c.take)
		}
	}
	n = naming{}
	n.next(nodeB, false, begin)
	if ask, take := n.next(nodeB, false, begin.Add(namesTimeout)); ask || !take {
		t.Error("it waits for ever for a node that nobody knows")
	}
	if ask, take := n.next(nodeA, false, begin.Add(namesTimeout)); ask || take {
		t.Error("what it has waited for one counts for another")
	}
}

// TestAThreadOfAServiceThatEndsIsNotOver: its function returns since its context has ended. The application's manager must not take that for its end, and
// forget the thread.
func TestAThreadOfAServiceThatEndsIsNotOver(t *testing.T) {
	for _, ends := range []bool{false, true} {
		a := lonely(new(forgetful))
		id := protocol.ThreadID{9}
		a.mu.Lock()
		a.node.Step(appmanager.NodeEvent{Kind: appmanager.NodeReceive, Msg: &protocol.Message{Kind: protocol.Start, To: protocol.At(nodeA), Epoch: 1, Thread: id}}, nil)
		th := &Thread{app: a, id: id, saved: &saved{name: "t", kind: "k"}}
		th.ctx, th.cancel = context.WithCancelCause(a.ctx)
		a.threads[id] = th
		a.mu.Unlock()
		th.run(func(ctx context.Context, _ *Thread) error {
			if ends {
				a.s.end()
				<-ctx.Done()
			}
			return context.Cause(ctx)
		})
		if told := a.node.Waits(); told == ends {
			t.Errorf("the service ends: %v; its manager is told that the thread has ended: %v", ends, told)
		}
	}
}
