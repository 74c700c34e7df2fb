package replicagroup

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/internal/driver"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/session"
)

// busyEngine leads and has no room for anything.
type busyEngine struct{ asked int }

func (e *busyEngine) Step(ev order.Event, out *order.Actions) {
	if p, ok := ev.(order.Propose); ok {
		e.asked++
		out.Done = append(out.Done, order.Outcome{Ref: p.Ref, Err: order.ErrBusy})
	}
}
func (e *busyEngine) Hash() [32]byte                  { return [32]byte{} }
func (e *busyEngine) Status() order.Status            { return order.Status{} }
func (e *busyEngine) Leader() (order.ReplicaID, bool) { return 1, true }
func (e *busyEngine) Quiesced() bool                  { return false }

// overdue is a machine that always has something to end.
type overdue struct{ counter }

func (*overdue) Deadline() (time.Duration, bool) { return 0, true }

// A tick that is due and finds no room is repeated after a pause. Repeated at once, it kept the turn from ever ending, and so
// from making room.
func TestRefusedTickDoesNotKeepATurnFromEnding(t *testing.T) {
	d := testDescriptor()
	d.View.Members[0].PeerID = testMember(1).PeerID // as the watcher is called
	h := &Host{clock: driver.NewClock(), id: d.Group.Overlay, overlay: new(watcher)}
	s := newShard(h)
	engine := new(busyEngine)
	r := newReplica(1, &d, engine, map[string]session.Machine{"count": new(overdue)}, 1)
	s.now = h.clock.Now()
	startEvent{replica: r}.handle(s)
	if engine.asked == 0 {
		t.Fatal("a new leader proposed no tick")
	}
	for before := engine.asked; engine.asked == before; {
		done := make(chan error, 1)
		go func() { done <- s.turn(nil) }()
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(waitMax):
			t.Fatal("the turn does not end")
		}
	}
}

// storingEngine has something to store when it starts.
type storingEngine struct{ busyEngine }

func (e *storingEngine) Step(ev order.Event, out *order.Actions) {
	if _, ok := ev.(order.Rand); ok {
		out.Persist = append(out.Persist, order.Persist{Seq: 1, Records: []order.Record{{Kind: order.RecordState}}, Sync: true})
	}
}

// countingStore counts what is written.
type countingStore struct {
	*MemoryStore
	batches, syncs, groups int
}

func (s *countingStore) Write(batch []Write, sync bool) error {
	s.batches++
	s.groups += len(batch)
	if sync {
		s.syncs++
	}
	return nil
}

// What all groups of a turn have to store is stored by one write and one sync (replica-groups.md section 3.3, group commit).
func TestATurnOfManyGroupsIsStoredOnce(t *testing.T) {
	const groups = 100
	store := &countingStore{MemoryStore: NewMemoryStore()}
	h := &Host{clock: driver.NewClock(), store: store, overlay: new(watcher)}
	s := newShard(h)
	var batch []shardEvent
	for i := range groups {
		d := testDescriptor()
		d.Group.Gen, d.View.Members[0].PeerID = uint64(i), testMember(1).PeerID // as the watcher is called
		batch = append(batch, startEvent{replica: newReplica(1, &d, new(storingEngine), nil, 1)})
	}
	if err := s.turn(batch); err != nil || store.groups != groups || store.batches != 1 || store.syncs != 1 {
		t.Errorf("%d groups were stored by %d writes and %d syncs, %v", store.groups, store.batches, store.syncs, err)
	}
}

// postbox counts the engine messages that are sent to each peer, batch by batch.
type postbox struct {
	watcher
	sent map[peer.ID][]int
}

func (o *postbox) Send(to peer.ID, _ keyspace.Key, _ string, msg []byte) error {
	events, err := decoder{}.engineBatch(msg)
	o.sent[to] = append(o.sent[to], len(events))
	return err
}

// Spare messages to a peer leave once in a while, or with what is not spare; the first do at once.
func TestSpareMessagesGoTogether(t *testing.T) {
	o := &postbox{sent: make(map[peer.ID][]int)}
	h := &Host{clock: driver.NewClock(), overlay: o, store: NewMemoryStore()}
	s := newShard(h)
	r := &replica{self: 1}
	begun := automaton.Instant(time.Hour)
	turn := func(after time.Duration, to peer.ID, spare bool, want ...int) {
		t.Helper()
		s.now = begun.Add(after)
		if key, ok := s.timers.Expired(s.now); ok && key.kind == timerSpare {
			s.spareAt = automaton.Never
		}
		if to != "" {
			s.send(to, r, order.Send{To: 2, Msg: order.Message("m"), Spare: spare}, order.StoreID{})
		}
		if s.flush(); !slices.Equal(o.sent["p"], want) {
			t.Errorf("after %v batches of %v messages are sent, want %v", after, o.sent["p"], want)
		}
	}
	turn(0, "p", true, 1)
	turn(1, "p", true, 1)
	turn(2, "p", true, 1)
	turn(3, "q", false, 1)
	if at := s.timers.Next(); at != begun.Add(spareEvery) {
		t.Errorf("the shard wakes for them at %v", at)
	}
	turn(spareEvery, "", false, 1, 2)
	turn(spareEvery+1, "p", true, 1, 2)
	turn(spareEvery+2, "p", false, 1, 2, 2)
	turn(spareEvery+3, "p", true, 1, 2, 2)
	turn(2*spareEvery+2, "", false, 1, 2, 2, 1)
	if len(s.outOrder) > 0 {
		t.Errorf("messages are left for %v", s.outOrder)
	}
}

// A group is asked for more commands at once than its engine takes in one go, and gets them all in.
func TestATurnOfManyCommandsIsTakenInSlices(t *testing.T) {
	w := newWorld(t, 1, 0)
	ctx := deadline(t, waitMax)
	key := keyspace.Preimage("k").Key()
	p := w.peers[0]
	if _, err := p.groups.NewClient().Do(ctx, key, "count", number(1)); err != nil {
		t.Fatal(err)
	}
	const clients, each = 24, 64
	answers := make(chan error, clients*each)
	for range clients {
		c := p.groups.NewClient()
		for range each {
			go func() {
				_, err := c.Do(ctx, key, "count", number(1))
				answers <- err
			}()
		}
	}
	for range clients * each {
		if err := <-answers; err != nil {
			t.Fatal(err)
		}
	}
	got, err := p.groups.NewClient().Query(ctx, key, "count", nil)
	if err != nil || string(got) != string(number(clients*each+1)) {
		t.Errorf("sum %x, %v", got, err)
	}
}

func TestKnownGroupIsNotForgottenWhileNobodyCanBeAsked(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3, 1)
	w.peers[1].kill()
	w.peers[2].kill()
	l := w.peers[0].groups.locator
	d := w.genesis.RootDescriptor()
	d.Group.Prefix = keyspace.PrefixOf(keyspace.Preimage("k").Key(), w.genesis.Depth)
	l.put(d)
	got, err := l.locate(deadline(t, waitMax), d.Group.Prefix, true)
	if err != nil || got.Group != d.Group {
		t.Errorf("searched again, the group is %v, %v", got.Group, err)
	}
}

// askedEvent is a question for the state that comes while a turn is under way; checkEvent looks whether it was answered.
type askedEvent struct{ answer chan []ReplicaStatus }

func (e askedEvent) handle(s *shard) { s.asides.Put(statusEvent{e.answer}) }

type checkEvent struct {
	answer   chan []ReplicaStatus
	answered *int
}

func (e checkEvent) handle(*shard) { *e.answered = len(e.answer) }

// Who asks for the state of the replicas does not wait until a turn is over, which may hold the messages of thousands of groups.
func TestAQuestionForTheStateIsAnsweredWithinATurn(t *testing.T) {
	s, _ := newSleepers(3, false)
	answer, answered := make(chan []ReplicaStatus, 1), 0
	batch := []shardEvent{askedEvent{answer}}
	for len(batch) < sliceMax {
		batch = append(batch, watchEvent{})
	}
	batch = append(batch, checkEvent{answer, &answered})
	if err := s.turn(batch); err != nil || answered != 1 {
		t.Fatalf("%d answers within the turn, %v", answered, err)
	}
	if all := <-answer; len(all) != 3 {
		t.Errorf("%d of 3 replicas", len(all))
	}
}

// While a message to a voter is handled on the goroutine that has read it, nobody else looks at the replicas.
func TestAQuestionForTheStateWaitsForAMessageThatIsHandled(t *testing.T) {
	s, _ := newSleepers(3, false)
	ended := make(chan error, 1)
	go func() { ended <- s.run() }()
	s.turns.Lock() // as handleNow does: free only while run waits
	answer := make(chan []ReplicaStatus, 1)
	s.asides.Put(statusEvent{answer})
	for range 10_000 { // long enough for run to have answered too early, most of the time
		runtime.Gosched()
		if len(answer) > 0 {
			t.Fatal("the question was answered meanwhile")
		}
	}
	s.turns.Unlock()
	if all := <-answer; len(all) != 3 {
		t.Errorf("%d of 3 replicas", len(all))
	}
	s.box.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// refusingStore fails every write.
type refusingStore struct{ countingStore }

func (s *refusingStore) Write([]Write, bool) error {
	s.batches++
	return ErrStore
}

// startNow is a startEvent that may be handled before the next turn.
type startNow struct {
	startEvent
	alone bool
}

func (e startNow) lone(*shard) bool { return e.alone }

// What is handled on the goroutine that has read it is stored there if that takes no time, and else in the next turn. A store that fails
// ends the shard all the same.
func TestWhatIsHandledAtOnceWaitsForNoDisk(t *testing.T) {
	shardWith := func(store Store) (*shard, startNow) {
		_, volatile := store.(*MemoryStore)
		s := newShard(&Host{clock: driver.NewClock(), store: store, volatile: volatile, overlay: new(watcher)})
		d := testDescriptor()
		d.View.Members[0].PeerID = testMember(1).PeerID // as the watcher is called
		return s, startNow{startEvent{replica: newReplica(1, &d, new(storingEngine), nil, 1)}, true}
	}
	disk := &countingStore{MemoryStore: NewMemoryStore()}
	s, start := shardWith(disk)
	if s.handleNow(start) {
		t.Fatal("it was handled within a turn")
	}
	s.turns.Unlock()
	start.alone = false
	if s.handleNow(start) {
		t.Fatal("it was handled by itself though others like it are expected")
	}
	start.alone = true
	s.box.TryPut(watchEvent{})
	if s.handleNow(start) {
		t.Fatal("it was handled before what came earlier")
	}
	s.box.Take(nil)
	if !s.handleNow(start) || disk.batches != 0 || len(s.persists) != 1 {
		t.Fatalf("%d writes, %d to do", disk.batches, len(s.persists))
	}
	select {
	case <-s.box.Wake():
	default:
		t.Error("nobody is woken to store it")
	}

	refusing := &refusingStore{countingStore{MemoryStore: NewMemoryStore()}}
	s, start = shardWith(refusing)
	s.host.volatile = true
	s.turns.Unlock()
	if !s.handleNow(start) || refusing.batches != 1 {
		t.Fatalf("%d writes", refusing.batches)
	}
	if s.handleNow(start) {
		t.Error("it goes on though the store has failed")
	}
	s.turns.Lock()
	if err := s.run(); !errors.Is(err, ErrStore) {
		t.Errorf("the shard ends with %v", err)
	}
}

// A command that finds others under way joins those that gather for the next turn, and so do acknowledgements.
func TestMessagesOfManyAreHandledTogether(t *testing.T) {
	s, r, _, _ := newAsked(t)
	cmd, acks := &commandEvent{group: r.group}, engineEvents{{group: r.group}}
	if !cmd.lone(s) || !acks.lone(s) {
		t.Error("what comes alone waits for a turn")
	}
	r.waiters, r.proposals = 1, map[uint64]commandKey{1: {}}
	if cmd.lone(s) || !acks.lone(s) {
		t.Error("the second command is handled by itself, or the acknowledgement of the only one is not")
	}
	if r.proposals[2] = (commandKey{}); acks.lone(s) {
		t.Error("an acknowledgement is handled by itself while several are awaited")
	}
}

// followingEngine gets an append that brings entry 2 and the news that entry 1 is committed.
type followingEngine struct {
	busyEngine
	note func(what string)
}

func (e *followingEngine) Leader() (order.ReplicaID, bool) { return 2, false }

func (e *followingEngine) Step(ev order.Event, out *order.Actions) {
	switch ev := ev.(type) {
	case order.Recv:
		out.Persist = append(out.Persist, order.Persist{Seq: 1, Records: []order.Record{{Kind: order.RecordState}}, Sync: true})
		out.Send = append(out.Send, order.Send{To: 2, Msg: order.Message("ack"), After: 1})
		out.Deliver = append(out.Deliver, order.Entry{Index: 1, Kind: order.Noop})
		out.Prospects = append(out.Prospects, order.Prospect{Index: 2})
	case order.Propose: // whatever comes of it, entry 1 is executed before entry 2
		out.Deliver = append(out.Deliver, order.Entry{Index: 2, Kind: order.Noop})
	case order.Stored:
		e.note("stored")
	case order.Applied:
		e.note(fmt.Sprint("told of ", ev.Index))
	}
}

type notingStore struct {
	*MemoryStore
	note func(what string)
}

func (s notingStore) Write([]Write, bool) error {
	s.note("write")
	return nil
}

type notingOverlay struct {
	watcher
	note func(what string)
}

func (o *notingOverlay) Send(peer.ID, keyspace.Key, string, []byte) error {
	o.note("acknowledge")
	return nil
}

// stepNow steps a replica's engine.
type stepNow struct{ r *replica }

func (e stepNow) handle(*shard)    { e.r.step(order.Recv{}) }
func (e stepNow) lone(*shard) bool { return true }

// A leader waits for a follower's acknowledgement, and for nothing else that the follower does: what the append tells to be committed is
// executed after that, and still within the turn. Nothing is acknowledged that is not stored.
func TestAFollowerAcknowledgesBeforeItExecutes(t *testing.T) {
	var r *replica
	var notes []string
	note := func(what string) { notes = append(notes, fmt.Sprint(what, ", executed ", r.applied)) }
	h := &Host{clock: driver.NewClock(), store: notingStore{NewMemoryStore(), note}, overlay: &notingOverlay{note: note}, volatile: true}
	s := newShard(h)
	d := testDescriptor()
	d.View.Members = []order.Member{testMember(1), testMember(2)}
	r = newReplica(1, &d, &followingEngine{note: note}, nil, 1)
	r.shard = s
	s.turns.Unlock()
	if !s.handleNow(stepNow{r}) {
		t.Fatal("an idle shard does not handle it at once")
	}
	want := []string{"write, executed 0", "acknowledge, executed 0", "stored, executed 1", "told of 1, executed 1"}
	if !slices.Equal(notes, want) {
		t.Errorf("%q, want %q", notes, want)
	}
	if len(r.lagging) > 0 || s.prompt {
		t.Errorf("%d entries are left to be executed", len(r.lagging))
	}
	r = newReplica(1, &d, &followingEngine{note: note}, nil, 1)
	r.shard, r.seat = s, &Seat{r: r, voter: &proposingVoter{replica: r}}
	if s.handleNow(stepNow{r}); r.applied != 2 {
		t.Errorf("it has executed %d entries of two", r.applied)
	}
}

// proposingVoter proposes something when it hears of what stands in the log, while the replica executes a step.
type proposingVoter struct {
	noting
	replica *replica
}

func (v *proposingVoter) Foresee() { v.replica.step(order.Propose{}) }
