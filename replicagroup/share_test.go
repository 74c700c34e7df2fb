package replicagroup

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/internal/driver"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/pb"
	"latchkey/replicagroup/placement"
	"latchkey/replicagroup/session"
)

// slowEngine leads, and orders what was proposed when it is told to.
type slowEngine struct {
	refs []uint64
	cmds []order.Command
	next uint64 // index of the next entry
	due  int
	halt bool
}

func (e *slowEngine) Step(ev order.Event, out *order.Actions) {
	switch ev := ev.(type) {
	case order.Propose:
		e.refs, e.cmds = append(e.refs, ev.Ref), append(e.cmds, ev.Cmd)
	case order.ProposeAll:
		for _, p := range ev.List {
			e.refs, e.cmds = append(e.refs, p.Ref), append(e.cmds, p.Cmd)
		}
	case order.Timer:
		if e.halt {
			out.Halt = &order.Halt{Reason: "told to"}
			return
		}
		for ; e.due > 0; e.due-- {
			e.next++
			out.Deliver = append(out.Deliver, order.Entry{Index: e.next, Kind: order.Normal, Cmd: e.cmds[0]})
			out.Done = append(out.Done, order.Outcome{Ref: e.refs[0]})
			e.refs, e.cmds = e.refs[1:], e.cmds[1:]
		}
	}
}
func (e *slowEngine) Hash() [32]byte                  { return [32]byte{} }
func (e *slowEngine) Status() order.Status            { return order.Status{} }
func (e *slowEngine) Leader() (order.ReplicaID, bool) { return 1, true }
func (e *slowEngine) Quiesced() bool                  { return false }

// asker is a peer that asks a replica.
type asker struct {
	t       *testing.T
	node    keyspace.NodeID
	sent    uint64
	answers []pb.Status
}

func (a *asker) Reply(data []byte) {
	var r pb.Reply
	if err := proto.Unmarshal(data, &r); err != nil {
		a.t.Error(err)
	}
	a.answers = append(a.answers, r.Status)
}

func (a *asker) ask(s *shard, r *replica, n int) {
	for range n {
		a.sent++
		(&commandEvent{group: r.group, cmd: order.Command{
			Client: order.ClientID{1: a.node[0]}, Seq: a.sent, Author: a.node, Service: "count",
		}, call: a}).handle(s)
	}
	s.propose()
}

// asked returns a leading replica whose engine orders when told, and peers that can ask it.
func newAsked(t *testing.T) (s *shard, r *replica, e *slowEngine, peers []*asker) {
	d := testDescriptor()
	d.Peers[0].ID = testMember(1).PeerID // as the watcher is called
	d.View.Members[0].PeerID, d.View.Members[0].Peer = d.Peers[0].ID, d.Peers[0].Node()
	h := &Host{clock: driver.NewClock(), id: d.Group.Overlay, overlay: new(watcher)}
	h.locator = &locator{}
	s, e = newShard(h), new(slowEngine)
	r = newReplica(1, &d, e, map[string]session.Machine{"count": new(counter)}, 1)
	s.now = h.clock.Now()
	startEvent{replica: r}.handle(s)
	e.refs, e.cmds = nil, nil // the first tick
	for i := range 2 {
		peers = append(peers, &asker{t: t, node: keyspace.NodeID{byte(i + 1)}})
	}
	return s, r, e, peers
}

// order has the engine order n commands.
func (e *slowEngine) order(r *replica, n int) {
	e.due = n
	r.step(order.Timer{})
	r.shard.propose()
}

func TestAPeerAloneIsNotHeldBack(t *testing.T) {
	s, r, e, peers := newAsked(t)
	peers[0].ask(s, r, 1000)
	if len(e.cmds) != 1000 {
		t.Errorf("%d of 1000 commands under way", len(e.cmds))
	}
}

func TestAPeersCommandsWaitInItsOwnLine(t *testing.T) {
	s, r, e, peers := newAsked(t)
	flood, honest := peers[0], peers[1]
	honest.ask(s, r, 1)
	flood.ask(s, r, 500)
	running := len(e.cmds) - 1
	if running > windowFirst || running == 0 {
		t.Fatalf("%d commands of one peer under way while another asks", running)
	}
	for i := range 20 {
		e.order(r, 1+len(e.cmds)-1) // what is under way, the honest one among it
		if len(honest.answers) != i+1 {
			t.Fatalf("round %d: %d answers", i, len(honest.answers))
		}
		before := len(e.cmds)
		honest.ask(s, r, 1)
		if len(e.cmds) != before+1 {
			t.Fatalf("round %d: the honest command waits behind %d others", i, before)
		}
		r.window = windowFirst // its growth is another test's
	}
	for len(e.cmds) > 0 {
		e.order(r, len(e.cmds))
	}
	if len(flood.answers) != 500 || r.waiters != 0 || len(r.shares) != 0 {
		t.Errorf("%d of 500 answered, %d waiters and %d shares left", len(flood.answers), r.waiters, len(r.shares))
	}
}

func TestAFullReplicaStillTakesAFewOfEachPeer(t *testing.T) {
	s, r, _, peers := newAsked(t)
	r.waiters = waitersMax
	peers[0].ask(s, r, assuredMax+1)
	if len(peers[0].answers) != 1 || peers[0].answers[0] != pb.Status_BUSY {
		t.Errorf("the one above what is assured was answered %v", peers[0].answers)
	}
	peers[1].ask(s, r, 1)
	if len(peers[1].answers) != 0 {
		t.Errorf("another peer's first was answered %v", peers[1].answers)
	}
}

func TestWindowFollowsHowLongACommandTakes(t *testing.T) {
	s, r, e, peers := newAsked(t)
	one := func(took time.Duration) {
		peers[0].ask(s, r, 1)
		r.began = r.began.Add(-took)
		e.order(r, 1)
	}
	one(time.Millisecond)
	for range 100 {
		one(time.Millisecond)
	}
	wide := r.window
	if wide < 100*windowFirst {
		t.Errorf("window %d after a hundred commands of one duration", wide)
	}
	for range 100 {
		one(10 * time.Millisecond)
	}
	if r.window != 1 {
		t.Errorf("window %d after a hundred slow commands", r.window)
	}
}

// load is what a replica is asked in model time: one peer keeps as many commands under way as it may while another asks for one at a
// time, or asks alone. A command takes base, and 50 µs for each of the others.
type load struct {
	r     *replica
	flood *share
	now   automaton.Instant
	base  time.Duration
	alone int // commands of the flood when it asks alone; 0: another peer asks too
}

func newLoad(t *testing.T) *load {
	_, r, _, _ := newAsked(t)
	l := &load{r: r, flood: new(share), base: time.Millisecond}
	r.contention = newContention()
	r.shares[keyspace.NodeID{1}] = l.flood
	return l
}

func (l *load) takes() time.Duration {
	return l.base + time.Duration(l.flood.running)*50*time.Microsecond
}

// run lets the load last for a while, and returns how long a command took at most.
func (l *load) run(d time.Duration) (most time.Duration) {
	for until := l.now.Add(d); l.now < until; {
		delete(l.r.shares, keyspace.NodeID{2})
		if l.flood.running = l.alone; l.alone == 0 {
			l.r.shares[keyspace.NodeID{2}] = &share{running: 1}
			l.flood.running = max(1, l.r.window/len(l.r.shares))
		}
		l.r.sample(commandKey{seq: 1})
		l.r.sampled = commandKey{}
		took := l.takes()
		most = max(most, took)
		l.now = l.now.Add(took)
		l.r.note(took, l.now)
	}
	return most
}

func TestAFloodIsNotTheMeasureOfItself(t *testing.T) {
	l := newLoad(t)
	// Twice what a command takes beside a few others, and an eighth of a window too many.
	allowed := (slackFactor*(l.base+windowFirst*50*time.Microsecond) + slackMore) * 9 / 8
	for minute := range 20 {
		if most := l.run(time.Minute); most > allowed {
			t.Fatalf("minute %d: a command took %v, at most %v was to be allowed; the window is %d", minute, most, allowed, l.r.window)
		}
	}
	l.alone = 1000
	l.run(10 * time.Minute)
	l.alone = 0
	if most := l.run(10 * time.Minute); most > allowed {
		t.Errorf("after the flood was alone: a command took %v; the window is %d", most, l.r.window)
	}
}

func TestTheWindowRecoversFromWhatHasBecomeSlower(t *testing.T) {
	for name, crowd := range map[string]int{"two peers": 0, "more peers than the first window": 2 * windowFirst} {
		l := newLoad(t)
		for i := range crowd {
			l.r.shares[keyspace.NodeID{3, byte(i)}] = &share{running: 1}
		}
		l.run(time.Minute)
		l.base *= 10
		l.run(10 * time.Second)
		if l.r.window != 1 {
			t.Errorf("%s: window %d when commands have just become slow", name, l.r.window)
		}
		l.run(2 * leastFor)
		if l.r.window <= windowFirst {
			t.Errorf("%s: window %d when commands have been slow for a while", name, l.r.window)
		}
	}
}

func TestHaltAnswersWhoStandsInLine(t *testing.T) {
	s, r, e, peers := newAsked(t)
	peers[1].ask(s, r, 1)
	peers[0].ask(s, r, 100)
	e.halt = true
	r.step(order.Timer{})
	if len(peers[0].answers) != 100 || len(peers[1].answers) != 1 || r.waiters != 0 || r.contention != nil {
		t.Errorf("%d and %d answered, %d waiters left", len(peers[0].answers), len(peers[1].answers), r.waiters)
	}
}

func TestStrangersHaveNothingToSayToEngines(t *testing.T) {
	w := newWorld(t, 3, 0) // the first peer alone is the root group
	ctx := deadline(t, waitMax)
	p, stranger := w.peers[0], w.peers[1]
	if err := stranger.overlay.Send(p.overlay.Self(), keyspace.Key{}, serviceEngine, []byte("not even decoded")); err != nil {
		t.Fatal(err)
	}
	for p.groups.Counters().StrayMessages == 0 {
		if err := pause(ctx, time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
	if c := p.groups.Counters(); c.StrayMessages != 1 || c.Malformed != 0 {
		t.Errorf("counted: %+v", c)
	}
}

func TestEngineMessagesThatWaitAreBoundedByBytes(t *testing.T) {
	s, r, _, _ := newAsked(t)
	large := make([]byte, engineBytesMax/4)
	put := func() bool {
		before := s.engineBytes.Load()
		s.tryPutEngine(&engineEvent{group: r.group, recv: order.Recv{Msg: large}})
		return s.engineBytes.Load() != before
	}
	for i := range 4 {
		if !put() {
			t.Fatalf("message %d: no room", i)
		}
	}
	if put() {
		t.Error("one more was taken")
	}
	events, _ := s.box.Take(nil)
	if s.host.store = NewMemoryStore(); len(events) != 4 {
		t.Fatalf("%d messages wait", len(events))
	}
	events[0].handle(s)
	if !put() {
		t.Error("after one was handled there is no room")
	}
}

func TestOnlyTheParentAsksToHost(t *testing.T) {
	w := newWorld(t, 3, 0)
	ctx := deadline(t, waitMax)
	prefix := keyspace.PrefixOf(keyspace.Preimage("k").Key(), w.genesis.Depth)
	req := marshal(&pb.HostRequest{Prefix: groupToPB(order.GroupID{Prefix: prefix}).Prefix})
	for i, want := range []bool{true, false} { // the founder, and another
		var m pb.HostReply
		b, err := w.peers[i].overlay.Call(ctx, w.peers[2].overlay.Self(), keyspace.Key{}, serviceHost, req)
		if err == nil {
			err = proto.Unmarshal(b, &m)
		}
		if err != nil || m.Ok != want {
			t.Errorf("peer %d: %v, %v", i, m.Ok, err)
		}
	}
}

func TestOnePeersNewGroupsAreBounded(t *testing.T) {
	w := newWorld(t, 1, 0)
	h := w.peers[0].groups
	c := newCreator(h, placement.NewCreator(h.genesis, nil)) // of its own, whose goroutine does not run
	var from dht.Request
	c.asking[from.From] = ensuresPerPeerMax
	if c.admit(&from) {
		t.Error("one more was taken")
	}
	if n := h.Counters().Busy; n != 1 {
		t.Errorf("counted %d times", n)
	}
	c.asking[from.From]--
	if !c.admit(&from) || c.asking[from.From] != ensuresPerPeerMax {
		t.Error("the last one was refused")
	}
}

func TestNobodyIsBelievedAboutOthersGroups(t *testing.T) {
	w := newWorld(t, 1, 0)
	h := w.peers[0].groups
	asked := w.genesis.RootDescriptor()
	asked.Group.Prefix = keyspace.PrefixOf(keyspace.Preimage("a").Key(), w.genesis.Depth)
	other := asked
	for name := "b"; other.Group.Prefix == asked.Group.Prefix; name += "b" {
		other.Group.Prefix = keyspace.PrefixOf(keyspace.Preimage(name).Key(), w.genesis.Depth)
	}
	for _, c := range []struct {
		about placement.Descriptor
		taken bool
	}{{other, false}, {asked, true}} {
		h.corrected(asked, reply{descriptor: c.about})
		if _, ok := h.locator.cached(c.about.Group.Prefix); ok != c.taken {
			t.Errorf("%v: remembered: %v", c.about.Group, ok)
		}
	}
}
