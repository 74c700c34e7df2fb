package replicagroup

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/internal/driver"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/pb"
	"latchkey/replicagroup/session"
)

// shard owns a share of the host's replicas. One goroutine runs them all, a turn at a time: it takes every event that has
// arrived, steps the engines, writes what all of them want stored in one batch, and then lets go of the messages, one batch
// per peer. Everybody else reaches the replicas through box. But what a peer has sent is handled on the goroutine that has read it, when it
// finds the shard at rest ([shard.handleNow]): waking another one would cost a lock half its time.
type shard struct {
	host *Host
	box  *driver.Mailbox[shardEvent]
	// asides are questions that are answered within a turn: with thousands of groups that elect leaders, one may take many seconds.
	asides *driver.Mailbox[statusEvent]
	// engineBytes counts the engine messages in box. (Those of commands and queries are counted by the overlay, per peer.)
	engineBytes atomic.Int64

	// turns guards what follows. It is free only while run waits for events.
	turns     sync.Mutex
	wakes     automaton.Instant // when the timer of run runs out, if ever
	broken    error             // of the store, between two turns: run ends with it
	replicas  map[order.Life]*replica
	parting   []*replica                            // stopped for good in this turn
	down      map[keyspace.NodeID]automaton.Instant // peers under suspicion, since when
	drowsy    []*replica                            // that are to be told of a suspicion, when their turn comes
	resting   []*replica                            // whose engines begin when their turn comes
	stirring  []stirring                            // of both, at most stirringMax
	starts    int                                   // how many engines began at the start, without waiting for a turn
	appeared  []appearance                          // peers that became reachable not long ago; at most appearedMax
	timers    driver.Timers[timerKey]
	now       automaton.Instant // of this turn
	actions   order.Actions
	outputs   session.Outputs
	proposers []*replica      // those that have gathered commands to propose
	spare     []order.Propose // storage of what the next one gathers
	persists  []persist
	storing   []persist // storage of those that are being stored
	prompt    bool      // somebody waits for what this turn sends, and for nothing else it does: see [replica.lags]
	writes    []Write
	out       map[peer.ID]*outgoing
	outOrder  []peer.ID         // peers of out that have messages, in the order of their first one
	spareAt   automaton.Instant // when timerSpare runs out; Never when it is not set
	reply     []byte            // storage of one reply
	parked    []byte            // what a replica has put away last; never changed
}

// outgoing gathers one turn's engine messages to one peer, behind spare ones of former turns: a pb.EngineBatch under way.
type outgoing struct {
	batch []byte
	due   bool              // there is more than spare messages in it
	sent  automaton.Instant // the last one
}

// persist is an order.Persist of a replica that waits for this turn's write.
type persist struct {
	replica *replica
	seq     uint64
	sync    bool
}

type timerKey struct {
	replica *replica
	kind    order.TimerKind
}

// shardEvent is an event for a shard: exactly one of these.
type shardEvent interface{ handle(s *shard) }

type (
	// startEvent starts a replica from what its store has of it.
	startEvent struct {
		replica *replica
		inTurn  bool // it may wait for its turn
	}
	// engineEvent is a message of another replica's engine.
	engineEvent struct {
		from  peer.ID
		group order.GroupID
		to    order.ReplicaID
		store order.StoreID // meant for
		recv  order.Recv
	}
	// linkEvent says that a peer can be reached again, or no longer.
	linkEvent struct {
		peer keyspace.NodeID
		up   bool
	}
	// suspectEvent is the opinion that a peer has stopped, or that it has not after all.
	suspectEvent struct {
		peer keyspace.NodeID
		down bool
	}
	// commandEvent asks for a command to be executed.
	commandEvent struct {
		group order.GroupID
		view  uint64
		cmd   order.Command
		call  caller
		// foreign: the peer may not command this. Only who leads refuses it; others name the leader, which may be that very peer, whose
		// client would else believe that it has found whom to ask.
		foreign bool
	}
	// queryEvent asks for a linearizable read.
	queryEvent struct {
		group   order.GroupID
		view    uint64
		from    keyspace.NodeID
		service string
		data    []byte
		call    caller
	}
	// statusEvent asks for the state of all replicas.
	statusEvent struct {
		answer chan<- []ReplicaStatus
	}
)

// caller is whoever waits for the answer to a command or query.
type caller interface {
	Reply(data []byte)
}

func newShard(h *Host) *shard {
	s := &shard{
		host:     h,
		wakes:    automaton.Never,
		box:      driver.NewMailbox[shardEvent](mailboxMax),
		asides:   driver.NewMailbox[statusEvent](0), // all are put by this process
		replicas: make(map[order.Life]*replica),
		down:     make(map[keyspace.NodeID]automaton.Instant),
		out:      make(map[peer.ID]*outgoing),
		spareAt:  automaton.Never,
	}
	s.turns.Lock()
	return s
}

// tryPutEngine adds an engine message, unless there is no room.
func (s *shard) tryPutEngine(e *engineEvent) {
	n := int64(len(e.recv.Msg))
	if s.engineBytes.Add(n) > engineBytesMax || !s.box.TryPut(e) {
		s.engineBytes.Add(-n)
	}
}

// run is the shard's goroutine. It ends when the mailbox is closed, or with an error when the store fails: a host that
// cannot keep what it promises must not go on, so turns is never free again.
func (s *shard) run() error {
	wake := time.NewTimer(time.Hour)
	defer wake.Stop()
	var batch []shardEvent
	for {
		// Most turns leave the next timer as it was.
		if next := s.timers.Next(); next != s.wakes {
			wait := time.Hour
			if next != automaton.Never {
				wait = next.Sub(s.host.clock.Now())
			}
			wake.Reset(max(wait, 0))
			s.wakes = next
		}
		s.turns.Unlock()
		asked, expired := false, false
		select {
		case <-s.box.Wake():
		case <-s.asides.Wake():
			asked = true
		case <-wake.C:
			expired = true
		}
		s.turns.Lock()
		if s.broken != nil {
			return s.broken
		}
		if asked { // not before: somebody else may be handling a message
			s.answer()
		}
		if expired {
			s.wakes = automaton.Never // set it again even if it was early: it goes by another clock than ours
		}
		var closed bool
		batch, closed = s.box.Take(batch)
		if closed {
			return nil
		}
		if err := s.turn(batch); err != nil {
			return err
		}
		clear(batch) // the next turn may be long in coming, and events hold what came with them
	}
}

// nowEvent is an event that may be handled before the next turn.
type nowEvent interface {
	shardEvent
	// lone reports whether there is no use in waiting for others like it, which a turn would handle together with it.
	lone(s *shard) bool
}

// handleNow handles what a peer has sent on the goroutine that has read it, unless a turn is under way or events wait, which come first.
// What it brings about is proposed and sent at once, and stored where that takes no time. The rest is left to the next turn: a disk
// would keep the peer's other messages waiting.
func (s *shard) handleNow(e nowEvent) bool {
	if !s.turns.TryLock() {
		return false
	}
	defer s.turns.Unlock()
	if s.broken != nil || !s.box.Empty() || !e.lone(s) {
		return false
	}
	s.now = s.host.clock.Now()
	s.prompt = s.host.volatile
	e.handle(s)
	if s.host.volatile {
		s.broken = s.settle()
		s.prompt = false
	} else {
		s.propose()
		s.flush()
	}
	if len(s.persists)+len(s.proposers)+len(s.parting) > 0 || s.timers.Next() < s.wakes || s.broken != nil {
		s.box.Nudge()
	}
	return true
}

// engineEvents are the messages of a peer's engines that came in one batch.
type engineEvents []engineEvent

// nowBytesMax bounds the command, or the batch of engine messages, that is handled on the goroutine that has read it. A larger one may be
// long in executing, and the peer's other messages would wait.
const nowBytesMax = 4 << 10

// soon reports whether a request may be handled on the goroutine that has read it.
func soon(req *dht.Request) bool { return req.Alone() && len(req.Data) <= nowBytesMax }

// takeEngines hands over the messages that came by req, as far as there is room.
func (h *Host) takeEngines(events engineEvents, req *dht.Request) {
	if len(events) == 0 {
		return
	}
	if s := h.shardOf(events[0].group); soon(req) && h.allOf(s, events) && s.handleNow(events) {
		return
	}
	for i := range events {
		h.shardOf(events[i].group).tryPutEngine(&events[i]) // a full mailbox loses it, as a network may
	}
}

// allOf reports whether all messages are for replicas of one shard.
func (h *Host) allOf(s *shard, events engineEvents) bool {
	for i := range events[1:] {
		if h.shardOf(events[i+1].group) != s {
			return false
		}
	}
	return true
}

// lone reports whether no leader waits for more than one command to be acknowledged.
func (es engineEvents) lone(s *shard) bool {
	for i := range es {
		if r, ok := s.replicas[es[i].group.Life()]; ok && len(r.proposals) > 1 {
			return false
		}
	}
	return true
}

// handle handles messages that were not put into the mailbox.
func (es engineEvents) handle(s *shard) {
	for i := range es {
		es[i].deliver(s)
	}
}

// turn handles a batch of events and every timer that has run out, then stores, then sends.
func (s *shard) turn(batch []shardEvent) error {
	s.now = s.host.clock.Now()
	for i, ev := range batch {
		if ev.handle(s); i%sliceMax == sliceMax-1 {
			if err := s.settle(); err != nil {
				return err
			}
		}
		if i%answerEvery == answerEvery-1 {
			s.answer()
		}
	}
	for i := 1; ; i++ {
		key, ok := s.timers.Expired(s.now)
		if !ok {
			break
		}
		if i%answerEvery == 0 {
			s.answer()
		}
		switch key.kind {
		case timerRouse:
			s.rouse()
			continue
		case timerBegin:
			s.begin()
			continue
		case timerSpare: // settle sends them
			s.spareAt = automaton.Never
			continue
		}
		key.replica.expired(key.kind)
	}
	if err := s.settle(); err != nil || len(s.parting) == 0 {
		return err
	}
	return s.bury()
}

// answer answers the questions that have come meanwhile.
func (s *shard) answer() {
	select {
	case <-s.asides.Wake():
	default:
	}
	asked, _ := s.asides.Take(nil)
	for _, q := range asked {
		q.handle(s)
	}
}

// settle stores what the replicas want stored and sends what they want sent, until they want nothing more.
func (s *shard) settle() error {
	for s.propose(); len(s.persists) > 0; s.propose() {
		s.flush() // what need not wait for the store is on its way meanwhile
		if err := s.store(); err != nil {
			return err
		}
	}
	s.flush()
	return nil
}

// propose hands the engines the commands that have gathered, those of one group together.
func (s *shard) propose() {
	for i := 0; i < len(s.proposers); i++ {
		s.proposers[i].proposeAll()
	}
	clear(s.proposers)
	s.proposers = s.proposers[:0]
}

// stamp is this turn's reading of the host's clock, for the log time of entries proposed in it.
func (s *shard) stamp() order.Stamp {
	return order.Stamp{Boot: s.host.clock.Nonce(), At: time.Duration(s.now)}
}

// store writes what all replicas of this turn want stored, at once, and tells them.
func (s *shard) store() error {
	stored, sync := s.persists, false
	s.persists, s.storing = s.storing[:0], stored
	for _, p := range stored {
		sync = sync || p.sync
	}
	err := s.host.store.Write(s.writes, sync)
	clear(s.writes)
	s.writes = s.writes[:0]
	if err != nil {
		return err
	}
	for _, p := range stored {
		p.replica.release(p.seq)
	}
	s.flush() // others wait for what was released
	for _, p := range stored {
		p.replica.step(order.Stored{Seq: p.seq})
	}
	return nil
}

// send adds a message of a replica's engine to what this turn sends to a peer, whose store is the one it is meant for.
func (s *shard) send(to peer.ID, r *replica, m order.Send, store order.StoreID) {
	if len(m.Snapshot) > transferBytesMin {
		s.host.transfers.send(to, r, m, store)
		return
	}
	o, ok := s.out[to]
	if !ok {
		o = new(outgoing)
		s.out[to] = o
	}
	if len(o.batch) == 0 {
		s.outOrder = append(s.outOrder, to)
	} else if len(o.batch)+len(m.Msg)+len(m.Snapshot) > batchBytesMax {
		s.sendBatch(to, o)
	}
	o.batch = appendEngineMessage(o.batch, r.group, r.self, m.To, s.host.storeID, store, m.Whole())
	o.due = o.due || !m.Spare
}

// flush sends what has gathered. A peer that has nothing to get but spare messages gets them once in spareEvery: a busy group tells a
// member that its majority can do without of many entries at a time, which saves both ends most of the messages.
func (s *shard) flush() {
	kept := s.outOrder[:0]
	for _, to := range s.outOrder {
		o := s.out[to]
		at := o.sent.Add(spareEvery)
		if o.due || at <= s.now {
			s.sendBatch(to, o)
			continue
		}
		kept = append(kept, to)
		if at < s.spareAt {
			s.spareAt = at
			s.timers.Set(timerKey{kind: timerSpare}, at)
		}
	}
	s.outOrder = kept
}

// sendBatch hands a batch to the overlay, which copies it. A message that cannot leave is lost, which engines allow for.
func (s *shard) sendBatch(to peer.ID, o *outgoing) {
	if len(o.batch) == 0 {
		return
	}
	if err := s.host.overlay.Send(to, keyspace.Key{}, serviceEngine, o.batch); err != nil {
		log.Debugw("engine messages dropped", "peer", to, "bytes", len(o.batch), "err", err)
	}
	o.due, o.sent = false, s.now
	if o.batch = o.batch[:0]; cap(o.batch) > 2*batchBytesMax {
		o.batch = nil // it held something large
	}
}

func (e startEvent) handle(s *shard) {
	if _, ok := s.replicas[e.replica.group.Life()]; !ok {
		s.replicas[e.replica.group.Life()] = e.replica
		e.replica.start(s, e.inTurn)
	}
}

func (e *engineEvent) handle(s *shard) {
	e.take(s)
}

// take steps the engine that the message is for. It is false when there is none, or the sender is not whom it says.
func (e *engineEvent) take(s *shard) bool {
	s.engineBytes.Add(-int64(len(e.recv.Msg)))
	return e.deliver(s)
}

func (e *engineEvent) deliver(s *shard) bool {
	r := s.addressee(e)
	if r != nil {
		e.recv.Now = time.Duration(s.now)
		r.step(e.recv)
	}
	return r != nil
}

// addressee returns the replica that an engine message is for; nil, and counted, if it may not be handed over.
func (s *shard) addressee(e *engineEvent) *replica {
	r, ok := s.replicas[e.group.Life()]
	if !ok {
		s.host.rumour(e.group)
	}
	if ok && e.to == r.self && e.store == s.host.store.ID() {
		if m, ok := r.member(e.recv.From); ok && m.PeerID == string(e.from) && m.Store == e.recv.Store {
			return r
		}
	}
	s.host.counters.strayMessages.Add(1)
	return nil
}

// lostPeer tells the voters of a peer that seems to have stopped.
func (s *shard) lostPeer(n keyspace.NodeID) {
	for _, r := range s.replicas {
		if r.seat != nil && r.seat.voter != nil {
			r.seat.voter.Lost(n)
		}
	}
}

func (e linkEvent) handle(s *shard) {
	if !e.up {
		s.lostPeer(e.peer)
	}
	before := len(s.drowsy)
	for _, r := range s.replicas {
		if r.resting {
			continue // it has been told nothing yet that a link could have lost
		}
		for _, m := range r.view.Members {
			if m.Peer != e.peer || m.ID == r.self {
				continue
			}
			link := order.Link{To: m.ID, Up: e.up}
			if !r.engine.Quiesced() {
				r.step(link)
			} else if leader, leading := r.engine.Leader(); leader == m.ID || leading && e.up { // it would wake
				s.line(r)
				r.unheard(link)
			}
		}
	}
	s.lineUp(before)
	if e.up && s.host.neighbours != nil {
		s.noteAppearance(e.peer)
	}
}

func (e suspectEvent) handle(s *shard) {
	if e.down {
		if !s.suspects(e.peer) {
			s.down[e.peer] = s.now
			s.lostPeer(e.peer)
		}
	} else {
		delete(s.down, e.peer)
	}
	before := len(s.drowsy)
	for _, r := range s.replicas {
		if r.resting {
			continue // it is told when it begins
		}
		for _, m := range r.view.Members {
			if m.Peer != e.peer || m.ID == r.self {
				continue
			}
			switch {
			case e.down && s.hesitate(r, m.ID):
			case e.down:
				r.step(order.Suspect{Member: m.ID, Now: time.Duration(s.now)})
			case r.leading && r.engine.Quiesced(): // it wakes if the member lacks something
				r.trusts = true
				s.line(r)
			default:
				r.step(order.Trust{Member: m.ID})
			}
		}
		if r.leading {
			r.planPeer(e.peer, !e.down)
			if !r.hesitates {
				r.poll()
			}
		}
	}
	s.lineUp(before)
}

// lone reports whether nothing else that was asked for is under way.
func (e *commandEvent) lone(s *shard) bool {
	r, ok := s.replicas[e.group.Life()]
	return !ok || r.waiters == 0
}

func (e *commandEvent) handle(s *shard) {
	if r, ok := s.replicas[e.group.Life()]; !ok {
		s.host.absent(e.group, e.call)
	} else if e.foreign {
		if r.ready(e.call) {
			e.call.Reply(marshal(&pb.Reply{Status: pb.Status_REFUSED}))
		}
	} else if !r.settled(e) {
		r.ask(e)
	}
}

func (e *queryEvent) handle(s *shard) {
	if r, ok := s.replicas[e.group.Life()]; ok {
		r.ask(e)
	} else {
		s.host.absent(e.group, e.call)
	}
}

func (e statusEvent) handle(s *shard) {
	all := make([]ReplicaStatus, 0, len(s.replicas))
	for _, r := range s.replicas {
		phase, key := r.phase()
		all = append(all, ReplicaStatus{
			Key: key, Phase: phase,
			Group: r.group, Descriptor: *r.descriptor, Status: r.engine.Status(), Halted: r.halted, Leaderless: r.silence(), Leaves: r.leaves(),
			Unleased: r.leading && !r.leased(),
		})
	}
	e.answer <- all
}
