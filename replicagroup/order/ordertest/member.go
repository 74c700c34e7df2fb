package ordertest

import (
	"time"

	"latchkey/internal/history"
	"latchkey/internal/sim"
	"latchkey/replicagroup/order"
)

// frame carries an engine's message from member to member.
type frame struct {
	from, to order.ReplicaID
	store    order.StoreID
	msg      order.Message
}

// ask is a client's message: a command, or with read set a linearizable read.
type ask struct {
	number uint64 // of the client's operation
	read   bool
	key    uint64
	cmd    order.Command
}

// reply answers an ask. With redirect set nothing was done; hint may name the leader.
type reply struct {
	number   uint64
	redirect bool
	hint     order.ReplicaID
	answer   history.Answer
}

// waiter is a client whose ask the engine has.
type waiter struct {
	from sim.NodeID
	ask
	late bool // asked of a replica that was removed
	at   sim.Time
}

// later is something to do once the machine has executed index.
type later struct {
	index uint64
	do    func()
}

// member is one life of a replica: an engine, its machine, and the driver between them and the world.
type member struct {
	c       *cluster
	env     *sim.Env
	id      order.ReplicaID
	disk    *disk
	engine  order.Orderer // nil when the factory refused
	machine *machine

	events   []order.Event
	stepping bool
	actions  order.Actions

	writing  []order.Persist // on their way to the disk, in order
	storedTo uint64          // reported to the engine
	held     []order.Send    // wait for storedTo
	timers   map[order.TimerKind]func()
	next     uint64 // index that the next delivery must have; 0 at the start
	todo     []any  // order.Entry and order.Install for the machine
	applying bool
	blocked  []later

	nextRef   uint64
	proposed  map[uint64]waiter
	reading   map[uint64]waiter
	changing  map[uint64]uint64 // by Ref of a change, the view it is to follow
	compacted uint64

	view      order.View      // the newest it told of, or began with
	owed      []uint64        // indexes of delivered changes whose view it has not told of
	prospects map[uint64]bool // entries that it has told of and not delivered
	installed uint64          // index of the last snapshot installed
	stranger  order.ReplicaID // it sent to this one, which no view names

	leader order.ReplicaID
	ready  bool
	halted bool
	last   frame    // the newest that came
	free   sim.Time // when a slow disk has written everything
}

// boot starts a replica from its disk.
func (c *cluster) boot(e *sim.Env) *member {
	m := &member{
		c: c, env: e, id: c.disks[e.ID()].self, disk: c.disks[e.ID()], machine: newMachine(), timers: make(map[order.TimerKind]func()),
		proposed: make(map[uint64]waiter), reading: make(map[uint64]waiter),
		changing: make(map[uint64]uint64), prospects: make(map[uint64]bool),
	}
	c.running[e.ID()] = m
	if m.id == 0 {
		return m // no replica here yet
	}
	m.machine.forgetful = c.mistakes.forgetful
	named := c.ids[m.id]
	store := m.disk.store
	if c.impostor {
		store = named.Store
	}
	cfg := Config{Group: groupID, Self: m.id, Store: store, View: c.founded, Quiesce: c.quiesce, LeaseReads: c.leases, Drift: c.faults.Drift}
	if m.disk.join != nil {
		cfg.View, cfg.Join = *m.disk.join, true
	}
	engine, err := c.factory(cfg, m.disk.image())
	if err != nil {
		if named.Store == store {
			c.fail("replica %d does not start from its own disk: %v", m.id, err)
		}
		c.refused++
		return m
	}
	m.engine = engine
	m.view = engine.Status().View
	if cfg.Join && m.view.Num == cfg.View.Num {
		m.view = order.View{} // it has been told of it; its log may begin earlier
	}
	m.step(order.Rand{Bits: e.Rand().Uint64(), Now: m.now()})
	if !c.quiet {
		m.nuisance()
	}
	return m
}

// now reads the node's clock.
func (m *member) now() time.Duration { return time.Duration(m.env.Now()) }

// counts reports whether the member is the one that the view names, rather than one that lost its disk since.
func (m *member) counts() bool {
	named, is := m.c.view.Member(m.id)
	return is && m.engine != nil && named.Store == m.disk.store
}

// gone reports whether the member has told of a view that removes it.
func (m *member) gone() bool {
	_, is := m.view.Member(m.id)
	return !is && m.id < m.view.Next
}

// nuisance makes the driver report what drivers may report at any time: links that break and come back, and suspicions.
func (m *member) nuisance() {
	m.env.After(time.Duration(m.env.Rand().ExpFloat64()*float64(5*patience)), func() {
		other := m.c.view.Members[m.env.Rand().IntN(len(m.c.view.Members))].ID
		if other != m.id {
			switch m.env.Rand().IntN(4) {
			case 0:
				m.step(order.Suspect{Member: other, Now: m.now()})
				m.env.After(patience/2, func() { m.step(order.Trust{Member: other}) })
			case 1:
				m.step(order.Link{To: other, Up: true})
			default:
				m.step(order.Link{To: other, Up: false})
				m.env.After(patience/10, func() { m.step(order.Link{To: other, Up: true}) })
			}
		}
		m.nuisance()
	})
}

// Receive implements [sim.Process].
func (m *member) Receive(from sim.NodeID, msg any) {
	switch msg := msg.(type) {
	case frame:
		if msg.to == m.id {
			m.last = msg
			m.step(order.Recv{From: msg.from, Store: msg.store, Msg: msg.msg, Now: m.now()})
		}
	case ask:
		m.ask(from, msg)
	}
}

// Killed implements [sim.Process].
func (m *member) Killed() {
	m.c.running[m.env.ID()] = nil
	if err := m.disk.crash(m.env.Rand()); err != nil {
		m.c.fail("replica %d: %v", m.id, err)
	}
}

// ask hands a client's request to the engine.
func (m *member) ask(from sim.NodeID, a ask) {
	if m.engine == nil || m.halted {
		return
	}
	m.nextRef++
	if a.read {
		if m.c.mistakes.readAtOnce {
			m.answer(from, reply{number: a.number, answer: m.machine.read(a.key)}, m.machine.index)
			return
		}
		m.reading[m.nextRef] = waiter{from, a, m.gone(), m.c.world.Now()}
		m.step(order.Read{Ref: m.nextRef, Now: m.now()})
		return
	}
	a.cmd.Author = peerOf(from)
	m.proposed[m.nextRef] = waiter{from, a, m.gone(), m.c.world.Now()}
	if m.c.mistakes.answerEarly && m.ready {
		m.answer(from, reply{number: a.number}, 0)
	}
	m.step(order.Propose{
		Ref: m.nextRef, Stamp: order.Stamp{Boot: m.env.Life()<<8 | uint64(m.id), At: time.Duration(m.env.Now())}, Cmd: a.cmd,
	})
}

// answer sends a client its answer, which rests on the log up to index.
func (m *member) answer(to sim.NodeID, r reply, index uint64) {
	if !m.env.Alive() {
		return
	}
	m.c.answered(index)
	if m.c.answers != nil {
		if err := m.c.answers(m, m.c.callers[int(to)-m.c.hosts]); err != nil {
			m.c.fail("%w", err)
		}
	}
	m.env.Send(to, r)
}

// step feeds an event to the engine, carries out what it asks for, and goes on with the events that come of that.
func (m *member) step(ev order.Event) {
	m.events = append(m.events, ev)
	if m.stepping || m.engine == nil || m.halted {
		return
	}
	m.stepping = true
	for i := 0; i < len(m.events) && m.env.Alive() && !m.halted; i++ {
		m.actions.Reset()
		m.engine.Step(m.events[i], &m.actions)
		if m.c.trace {
			h := m.engine.Hash()
			m.c.world.Mix(digestActions(h[:], &m.actions))
			m.c.trail = append(m.c.trail, m.c.world.Hash())
		}
		m.perform(&m.actions)
		m.observe()
	}
	m.events, m.stepping = m.events[:0], false
}

// observe notices a change of who leads.
func (m *member) observe() {
	if !m.env.Alive() {
		return
	}
	if m.stranger != 0 {
		m.c.fail("I10: replica %d sends to replica %d", m.id, m.stranger)
	}
	leader, ready := m.engine.Leader()
	if leader == m.id && (m.leader != leader || ready && !m.ready) {
		m.c.leads(m, ready)
	}
	m.leader, m.ready = leader, ready
}

// perform carries out the actions of one step. A crash on the way ends it: nothing after it happens.
func (m *member) perform(a *order.Actions) {
	for _, v := range a.Views {
		m.c.introduce(v.View) // messages of the same step may be for its new members
	}
	for _, p := range a.Prospects {
		m.prospect(p)
	}
	for _, p := range a.Persist {
		if !m.persist(p) {
			return
		}
	}
	for _, t := range a.Timers {
		m.setTimer(t)
	}
	for _, s := range a.Send {
		if s.After > m.storedTo && !m.c.mistakes.sendEarly {
			m.held = append(m.held, s)
		} else if !m.send(s) {
			return
		}
	}
	for _, in := range a.Install {
		m.install(in)
	}
	for _, e := range a.Deliver {
		m.deliver(e)
	}
	for _, v := range a.Views {
		m.c.noted(m, v)
	}
	if len(m.owed) > 0 {
		m.c.fail("I10: replica %d does not tell of the view that the entry at %d begins", m.id, m.owed[0])
	}
	for _, d := range a.Done {
		m.done(d)
	}
	for _, r := range a.ReadOK {
		m.readOK(r)
	}
	if a.Halt != nil {
		m.halted = true
	}
	if a.Halt != nil && (a.Halt.Reason != order.Removed || !m.gone()) {
		m.c.fail("replica %d halted: %s", m.id, a.Halt.Reason)
	}
	m.apply()
}

// persist begins to write a batch. It reports whether the member survived the crash points around it.
func (m *member) persist(p order.Persist) bool {
	if !m.c.point(m) {
		return false
	}
	p.Records = m.disk.keep(p.Records, m.c.mistakes)
	if m.c.mistakes.neverSyncs {
		p.Sync = false
	}
	m.disk.write(p)
	m.writing = append(m.writing, p)
	// The writes end in order whatever their times say: each end takes the first of them.
	took := (m.c.syncTime/2 + time.Duration(m.env.Rand().Int64N(int64(m.c.syncTime)))) * m.slowness()
	if !p.Sync {
		took = took/10 + 1
	}
	if m.slowness() > 1 { // one after the other
		now := m.c.world.Now()
		m.free = max(m.free, now) + took
		took = m.free - now
	}
	m.env.After(took, m.written)
	if m.c.mistakes.storedEarly {
		m.stored(p.Seq)
	}
	return m.c.point(m)
}

// slowness is how many times longer everything takes here than elsewhere.
func (m *member) slowness() time.Duration { return time.Duration(max(1, m.c.slow[m.env.ID()])) }

// written ends the oldest write under way.
func (m *member) written() {
	p := m.writing[0]
	m.writing = m.writing[1:]
	if err := m.disk.stored(p.Seq, p.Sync); err != nil {
		m.c.fail("replica %d: %v", m.id, err)
		return
	}
	if !m.c.mistakes.storedEarly {
		m.stored(p.Seq)
	}
}

// stored lets go of the messages that waited for a persist, and tells the engine.
func (m *member) stored(seq uint64) {
	m.storedTo = seq
	held := m.held
	m.held = nil
	for _, s := range held {
		if s.After > seq {
			m.held = append(m.held, s)
		} else if !m.send(s) {
			return
		}
	}
	m.step(order.Stored{Seq: seq})
}

// send puts a message on the network. It reports whether the member survived the crash points around it.
func (m *member) send(s order.Send) bool {
	if !m.c.point(m) {
		return false
	}
	if s.After > m.disk.through {
		m.c.fail("I12: replica %d sends a message that waits for persist %d, stored is %d", m.id, s.After, m.disk.through)
	}
	to, known := m.c.home[s.To]
	if s.To == m.id || !known {
		m.stranger = s.To // for observe: what is wrong with the view, if that is, says more
		return true
	}
	if named := m.c.ids[m.id]; named.Store != m.disk.store && !m.c.impostor {
		m.c.fail("I11: replica %d speaks from store %v, the view names %v", m.id, m.disk.store, named.Store)
	}
	m.c.sent++
	if s.Snapshot != nil && m.c.carry > 0 {
		m.carry(to, s)
		return m.c.point(m)
	}
	m.env.Send(to, frame{from: m.id, to: s.To, store: m.disk.store, msg: s.Whole()})
	return m.c.point(m)
}

// setTimer sets, replaces or stops a timer.
func (m *member) setTimer(t order.SetTimer) {
	// Now and then the old timer is not stopped: its epoch is stale, and the engine has to know that.
	if stop := m.timers[t.Kind]; stop != nil && (m.c.quiet || m.env.Rand().IntN(8) > 0) {
		stop()
	}
	delete(m.timers, t.Kind)
	if t.After >= 0 {
		m.timers[t.Kind] = m.env.After(t.After, func() { m.step(order.Timer{Kind: t.Kind, Epoch: t.Epoch, Now: m.now()}) })
	}
}

// prospect takes note of what is to come.
func (m *member) prospect(p order.Prospect) {
	if p.Cmd != nil {
		m.c.fail("prospects: replica %d takes a client's command at %d for the group's own", m.id, p.Index)
	}
	if !p.Void {
		m.prospects[p.Index] = true
		return
	}
	for i := range m.prospects {
		if i >= p.Index {
			delete(m.prospects, i)
		}
	}
}

// foretold checks that an entry that changes the voters was told of.
func (m *member) foretold(e order.Entry) {
	if e.Kind == order.ViewChange && e.Change == nil {
		m.c.fail("prospects: replica %d delivers a change of the view at %d without the view", m.id, e.Index)
		return
	}
	if e.Kind == order.ViewChange && e.Change.Joint() && !m.prospects[e.Index] {
		m.c.fail("prospects: replica %d delivers a change of the voters at %d that it has not told of", m.id, e.Index)
	}
	delete(m.prospects, e.Index)
	if last := m.engine.Status().Last; len(m.prospects) > 0 {
		for i := range m.prospects {
			if i > last {
				m.c.fail("prospects: replica %d has told of an entry at %d, its log ends at %d", m.id, i, last)
			}
		}
	}
}

// install and deliver take what the machine has to execute: I2.
func (m *member) install(in order.Install) {
	if in.Index < m.next {
		m.c.fail("I2: replica %d installs a snapshot at %d, it has delivered up to %d", m.id, in.Index, m.next-1)
	}
	m.next, m.installed = in.Index+1, in.Index
	for i := range m.prospects {
		if i <= in.Index {
			delete(m.prospects, i)
		}
	}
	m.todo = append(m.todo, in)
}

func (m *member) deliver(e order.Entry) {
	m.foretold(e)
	if m.c.mistakes.deliverSkips && e.Kind == order.Normal && m.env.Rand().IntN(20) == 0 {
		return
	}
	if m.next == 0 && m.c.first != 0 {
		m.next = m.c.first
	}
	if m.next != 0 && e.Index != m.next {
		m.c.fail("I2: replica %d delivers %d, expected %d", m.id, e.Index, m.next)
	}
	m.next = e.Index + 1
	m.c.delivered(m, e)
	if e.Kind == order.ViewChange {
		m.c.changes[e.Index] = e.View
		m.owed = append(m.owed, e.Index)
	}
	m.todo = append(m.todo, e)
	if m.c.mistakes.deliverTwice && m.env.Rand().IntN(20) == 0 {
		m.c.mistakes.deliverTwice = false
		m.deliver(e)
	}
}

// apply executes what was delivered, at once or after a while.
func (m *member) apply() {
	if len(m.todo) == 0 || m.applying || !m.env.Alive() {
		return
	}
	if m.c.applyTime == 0 {
		m.execute()
		return
	}
	m.applying = true
	m.env.After(m.c.applyTime*m.slowness(), func() {
		m.applying = false
		m.execute()
	})
}

func (m *member) execute() {
	todo := m.todo
	m.todo = nil
	for _, t := range todo {
		switch t := t.(type) {
		case order.Entry:
			_, effect := m.machine.apply(t)
			m.c.executed(m, t, effect)
		case order.Install:
			if t.Data == nil { // where the log begins
				if m.c.first != 0 && t.Index+1 != m.c.first {
					m.c.fail("I2: replica %d begins with nothing at %d, the log begins at %d", m.id, t.Index, m.c.first)
				}
				m.machine = newMachine()
				m.machine.index, m.machine.forgetful = t.Index, m.c.mistakes.forgetful
				continue
			}
			restored, err := restoreMachine(t.Data[:max(0, len(t.Data)-m.c.ballast)])
			if err != nil || restored.index != t.Index {
				m.c.fail("I2: replica %d installs at %d: %w", m.id, t.Index, errSnapshot)
				return
			}
			if c := m.c; t.Index-c.first >= uint64(len(c.chains)) || c.chains[t.Index-c.first] != restored.chain {
				c.fail("I1: replica %d installs a state at %d that no machine had there", m.id, t.Index)
				return
			}
			restored.forgetful = m.machine.forgetful
			m.machine = restored
		}
	}
	index := m.machine.index
	m.step(order.Applied{Index: index})
	n := 0
	for _, l := range m.blocked {
		if l.index <= index {
			l.do()
		} else {
			m.blocked[n] = l
			n++
		}
	}
	m.blocked = m.blocked[:n]
	m.compact(index)
}

// compact hands the engine a snapshot now and then.
func (m *member) compact(index uint64) {
	if m.c.compactEvery == 0 || index-m.compacted < m.c.compactEvery || !m.env.Alive() {
		return
	}
	m.compacted = index
	snap := append(m.machine.snapshot(), make([]byte, m.c.ballast)...)
	if m.c.mistakes.staleSnapshot {
		index--
	}
	m.step(order.Compact{Index: index, Data: snap})
}

// when runs f once the machine has executed index.
func (m *member) when(index uint64, f func()) {
	if m.machine.index >= index {
		f()
		return
	}
	m.blocked = append(m.blocked, later{index, f})
}

// done answers a proposal or a read that failed.
func (m *member) done(d order.Outcome) {
	if from, ok := m.changing[d.Ref]; ok {
		delete(m.changing, d.Ref)
		m.c.changed(m, from, d)
		return
	}
	if w, ok := m.reading[d.Ref]; ok {
		delete(m.reading, d.Ref)
		if d.Err == nil {
			m.c.fail("replica %d answers read %d with an outcome without error", m.id, d.Ref)
		}
		m.redirect(w)
		return
	}
	w, ok := m.proposed[d.Ref]
	if !ok {
		m.c.fail("replica %d answers proposal %d, which is not open: %+v", m.id, d.Ref, d)
		return
	}
	delete(m.proposed, d.Ref)
	if d.Err != nil {
		m.redirect(w)
		return
	}
	if w.late {
		m.c.fail("I7: replica %d takes a command, though view %d has removed it", m.id, m.view.Num)
	}
	if d.Index >= m.next {
		m.c.fail("replica %d says that proposal %d stands at %d, delivered is %d", m.id, d.Ref, d.Index, m.next-1)
		return
	}
	m.when(d.Index, func() {
		s := m.machine.sessions[w.cmd.Client]
		if s == nil {
			m.c.fail("replica %d says that proposal %d stands at %d: its client is unknown there", m.id, d.Ref, d.Index)
			return
		}
		if a, ok := s.results[w.cmd.Seq]; ok {
			m.answer(w.from, reply{number: w.number, answer: a}, d.Index)
		} else if s.acked < w.cmd.Seq {
			m.c.fail("replica %d says that proposal %d stands at %d: it was not executed", m.id, d.Ref, d.Index)
		}
	})
}

// redirect tells a client to ask elsewhere, or the same again: the outcome of its command is not known here.
func (m *member) redirect(w waiter) {
	hint, _ := m.engine.Leader()
	m.env.Send(w.from, reply{number: w.number, redirect: true, hint: hint})
}

// readOK serves a read.
func (m *member) readOK(r order.ReadPoint) {
	w, ok := m.reading[r.Ref]
	if !ok {
		m.c.fail("replica %d gives a read point to %d, which is not open", m.id, r.Ref)
		return
	}
	delete(m.reading, r.Ref)
	m.c.confirms(m, w.at)
	if w.late {
		m.c.fail("I7: replica %d answers a read, though view %d has removed it", m.id, m.view.Num)
	}
	m.when(r.Index, func() { m.answer(w.from, reply{number: w.number, answer: m.machine.read(w.key)}, r.Index) })
}
