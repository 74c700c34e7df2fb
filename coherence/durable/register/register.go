package register

import (
	"bytes"
	"cmp"
	"maps"
	"slices"
	"time"

	"latchkey/coherence/durable"
	"latchkey/coherence/durable/store"
	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
)

// Register is the register of one leader. Not safe for concurrent use.
type Register struct {
	cfg    durable.Params
	store  *store.Store // as this replica has applied it; the register only reads it
	mutant durable.Mutant

	leads      bool
	tenure     durable.Tenure
	now        automaton.Instant
	anchored   bool
	anchor     automaton.Instant // c: when the newest round was sent that a majority has confirmed
	confirming bool              // another round was asked for
	waitUntil  automaton.Instant // until then leases of former leaders may last

	sessions map[keyspace.NodeID]*session
	nextEnd  automaton.Instant // no session is over before
	objects  map[string]*object
	busy     map[string]struct{} // objects with an operation, or with requests that wait
	// unsettled are the objects whose last write is committed, and not settled.
	unsettled  map[string]struct{}
	expiries   map[string]expiry
	nextExpiry automaton.Instant                   // none is due before
	renewals   map[keyspace.NodeID]durable.Message // that wait for a confirmed round
	copies     int
	queued     int                      // requests that wait, and operations of nodes
	held       int                      // bytes of their values
	loads      map[keyspace.NodeID]load // of each node that has some
	idle       bool                     // nothing was proposed since the last Repeat

	out   []Action
	dirty []string // objects that something may go on with
}

// session is what is known of one session of a node. Everything in it ends at base + d(1+ρ) (D8).
type session struct {
	ssn         durable.Session
	base        automaton.Instant // the anchor of the newest grant
	outstanding int               // invalidations that it has not acknowledged
	copies      map[string]struct{}
	owned       map[string]struct{} // objects that it has the exclusive right to write; nil until there is one
}

type object struct {
	copies map[keyspace.NodeID]*copied
	op     *op
	reads  []durable.Message // READs that wait, one of each node
	queue  []durable.Message // STOREs and WRITEs that wait, the first first
	behind []string          // of a listing: objects to be created or deleted once its operation is settled
	owner  owner
}

type copied struct {
	seq         durable.Seq // of the request that brought it
	invalidated bool        // an acknowledgement is awaited
}

// owner has the exclusive right to write; nobody has it if seq is 0.
type owner struct {
	node keyspace.NodeID
	ssn  durable.Session
	seq  durable.Seq
}

// op is a write that is not settled.
type op struct {
	msg       durable.Message // the STORE; zero of an expiry
	cmd       store.Command
	parts     []part
	awaited   int  // acknowledgements
	proposed  bool // false: propose it again
	committed bool
}

// part is an object that an operation changes: the one that is written, and the listing of its directory.
type part struct {
	name string
	old  store.Object    // what is shown until the operation is settled
	next durable.Version // which copies have to be older than; 0 if the operation will change nothing
}

func (p *op) part(name string) *part {
	for i := range p.parts {
		if p.parts[i].name == name {
			return &p.parts[i]
		}
	}
	return nil
}

type expiry struct {
	version durable.Version
	at      automaton.Instant
}

// New returns the register of a replica that does not lead. It reads s, which its driver applies entries to between two steps.
func New(cfg durable.Params, s *store.Store) *Register { return &Register{cfg: cfg, store: s} }

// Sabotage plants a mistake. It is for tests.
func (r *Register) Sabotage(m durable.Mutant) { r.mutant = m }

// Leads reports whether the register is in use.
func (r *Register) Leads() bool { return r.leads }

// Waits reports whether there is anything that a later leader would not know, or would have to do: then it needs a [Tick] at [Register.Next].
func (r *Register) Waits() bool {
	return r.leads && (len(r.busy) > 0 || len(r.renewals) > 0 || len(r.sessions) > 0 || len(r.expiries) > 0 || r.unmarked())
}

// Repeats reports whether something is under way that may have to be said again: then it needs [Repeat]. Who has copies and what is to be deleted in
// time need none.
func (r *Register) Repeats() bool {
	return r.leads && (len(r.busy) > 0 || len(r.renewals) > 0 || r.waited() && r.unmarked())
}

// Next returns when a [Tick] has something to do at last; [automaton.Never] where it has nothing.
func (r *Register) Next() automaton.Instant {
	if !r.leads {
		return automaton.Never
	}
	next := min(r.nextEnd, r.nextExpiry)
	if r.now < r.waitUntil && (len(r.busy) > 0 || r.unmarked()) {
		next = min(next, r.waitUntil)
	}
	return next
}

// Sessions returns the nodes that have one, rising.
func (r *Register) Sessions() []keyspace.NodeID {
	return slices.SortedFunc(maps.Keys(r.sessions), compareNodes)
}

// Step takes an event and appends what has to be done to out. A message that no rule takes is late or a duplicate, and is dropped.
func (r *Register) Step(ev Event, out []Action) []Action {
	r.out = out
	switch {
	case ev.Kind == Lead:
		r.lead(ev)
	case ev.Kind == Follow:
		*r = Register{cfg: r.cfg, store: r.store, mutant: r.mutant, out: r.out}
	case r.leads:
		r.now = max(r.now, ev.Now)
		r.expire()
		r.take(ev)
	}
	r.proceed()
	out, r.out = r.out, nil
	return out
}

func (r *Register) lead(ev Event) {
	*r = Register{
		cfg: r.cfg, store: r.store, mutant: r.mutant, out: r.out, leads: true, tenure: ev.Tenure, now: ev.Now, nextEnd: automaton.Never,
		sessions: map[keyspace.NodeID]*session{}, objects: map[string]*object{}, busy: map[string]struct{}{}, unsettled: map[string]struct{}{},
		loads: map[keyspace.NodeID]load{}, nextExpiry: automaton.Never, expiries: map[string]expiry{}, renewals: map[keyspace.NodeID]durable.Message{},
	}
	// Every lease of a former leader ends within d of its last confirmed round, which was before this leader was elected (section 5).
	r.waitUntil = ev.At.Add(r.cfg.Arbiter())
	switch r.mutant {
	case durable.NoWait:
		r.waitUntil = ev.At
	case durable.WaitWithoutDrift:
		r.waitUntil = ev.At.Add(r.cfg.Lease)
	}
	r.store.Expiring(func(name string, o store.Object) { r.expires(name, o) })
}

func (r *Register) take(ev Event) {
	switch ev.Kind {
	case Confirmed:
		if !r.anchored || ev.At > r.anchor {
			r.anchored, r.anchor = true, ev.At
		}
		r.confirming = false
		r.retry()
	case Unconfirmed: // whoever comes next asks again, and Repeat has those ask that wait
		r.confirming = false
	case Receive:
		r.receive(*ev.Msg)
	case Committed:
		r.committed(ev.Cmd, ev.Result)
	case Failed:
		if o := r.objects[ev.Cmd.Object]; o != nil && o.op != nil && !o.op.committed && r.isOf(o.op, ev.Cmd) {
			o.op.proposed = false
		}
	case Tick:
		r.due()
		r.retry()
	case Repeat:
		r.confirming = false
		r.due()
		r.retry()
		r.repeat()
	}
}

// serves reports whether this leader may show what it has: nobody else leads yet (S).
func (r *Register) serves() bool {
	return r.anchored && r.now < r.anchor.Add(r.cfg.Holder()) || r.mutant == durable.GrantWithoutAnchor
}

// lease is how long what is granted now may be used. It counts from the request's sending, which was before now.
func (r *Register) lease() time.Duration {
	if r.mutant == durable.GrantWithoutAnchor {
		return r.cfg.Holder()
	}
	return r.cfg.Holder() - r.now.Sub(r.anchor)
}

func (r *Register) waited() bool { return r.now >= r.waitUntil }

// shown reports whether nobody can have an older copy of an object by a former leader's grant.
func (r *Register) shown(name string) bool {
	return r.waited() || r.store.Settled(name) || r.mutant == durable.ShowUnsettled
}

// confirm asks for another round.
func (r *Register) confirm() {
	if !r.confirming {
		r.confirming = true
		r.out = append(r.out, Action{Kind: Confirm})
	}
}

func (r *Register) send(m durable.Message) {
	m.Tenure = r.tenure
	r.out = append(r.out, Action{Kind: Send, Msg: m})
}

// reply answers a request.
func (r *Register) reply(kind durable.Kind, to *durable.Message, m durable.Message) {
	m.Kind, m.Node, m.Session, m.Seq, m.Object = kind, to.Node, to.Session, to.Seq, to.Object
	r.send(m)
}

// tell answers with what there is of an object.
func (r *Register) tell(kind durable.Kind, to *durable.Message, o store.Object, l time.Duration, exclusive bool) {
	m := durable.Message{Version: o.Version, Lease: l, Exclusive: exclusive}
	switch {
	case o.Value == nil:
	case kind == durable.Copy && to.Version == o.Version:
		m.Content = durable.Same
	default:
		m.Content, m.Value = durable.Whole, o.Value
	}
	r.reply(kind, to, m)
}

func (r *Register) at(name string) *object {
	o := r.objects[name]
	if o == nil {
		o = &object{copies: map[keyspace.NodeID]*copied{}}
		r.objects[name] = o
	}
	return o
}

// touch notes that something may go on with an object.
func (r *Register) touch(name string) { r.dirty = append(r.dirty, name) }

// retry touches all objects with something that waits.
func (r *Register) retry() {
	for _, name := range slices.Sorted(maps.Keys(r.busy)) {
		r.touch(name)
	}
	for _, n := range slices.SortedFunc(maps.Keys(r.renewals), compareNodes) {
		m := r.renewals[n]
		delete(r.renewals, n)
		r.renew(&m)
	}
}

func compareNodes(a, b keyspace.NodeID) int { return bytes.Compare(a[:], b[:]) }

// proceed does what can be done with the objects that were touched, until nothing more can.
func (r *Register) proceed() {
	for len(r.dirty) > 0 {
		name := r.dirty[0]
		r.dirty = r.dirty[1:]
		o := r.objects[name]
		if o == nil {
			continue
		}
		if o.op != nil {
			r.settle(o.op)
		}
		r.serveReads(name, o)
		r.serveQueue(name, o)
		if o.op == nil && len(o.behind) > 0 { // the first of them, and if it does not need the listing after all, the next
			r.touch(o.behind[0])
			r.touch(name)
			o.behind = slices.Delete(o.behind, 0, 1)
		}
		if o.op != nil || len(o.reads)+len(o.queue)+len(o.behind) > 0 {
			r.busy[name] = struct{}{}
		} else if delete(r.busy, name); len(o.copies) == 0 && o.owner.seq == 0 {
			delete(r.objects, name)
		}
	}
	r.dirty = nil
}

// load is what one node has that waits or is under way.
type load struct{ requests, bytes int }

func weight(m *durable.Message) int {
	if m.Value == nil {
		return 0
	}
	return len(m.Value.Bytes)
}

// full reports whether there is no room for a request.
func (r *Register) full(m *durable.Message) bool {
	l, n := r.loads[m.Node], weight(m)
	return r.queued >= QueuedMax || l.requests >= QueuedPerNode || r.queued > 0 && r.held+n > QueuedBytesMax ||
		l.requests > 0 && l.bytes+n > QueuedBytesPerNode
}

// hold counts a request that begins to wait or to be under way; release that it has ended.
func (r *Register) hold(m *durable.Message) {
	l, n := r.loads[m.Node], weight(m)
	r.loads[m.Node] = load{l.requests + 1, l.bytes + n}
	r.queued++
	r.held += n
}

func (r *Register) release(m *durable.Message) {
	l, n := r.loads[m.Node], weight(m)
	if l = (load{l.requests - 1, l.bytes - n}); l.requests == 0 {
		delete(r.loads, m.Node)
	} else {
		r.loads[m.Node] = l
	}
	r.queued--
	r.held -= n
}

func (r *Register) serveReads(name string, o *object) {
	waiting := o.reads
	o.reads = nil
	for i := range waiting {
		if !r.read(name, o, &waiting[i]) {
			o.reads = append(o.reads, waiting[i])
		} else {
			r.release(&waiting[i])
		}
	}
}

func (r *Register) serveQueue(name string, o *object) {
	for len(o.queue) > 0 {
		m, done := o.queue[0], false
		if m.Kind == durable.Write {
			done = r.right(name, o, &m)
		} else {
			done = r.write(name, o, &m)
		}
		if !done {
			return
		}
		o.queue = slices.Delete(o.queue, 0, 1)
		r.release(&m)
	}
}

func (r *Register) receive(m durable.Message) {
	switch m.Kind {
	case durable.Read, durable.Write, durable.Store:
		if s := r.sessions[m.Node]; s != nil && m.Session.After(s.ssn) {
			r.session(m.Node, m.Session) // D5, whether or not it can be answered now
		}
		r.ask(m)
	case durable.Release:
		// D11: of this grant, and no other.
		if o := r.objects[m.Object]; o != nil && o.owner.seq != 0 && o.owner.node == m.Node &&
			(o.owner.ssn == m.Session && o.owner.seq == m.Seq && m.Tenure == r.tenure || r.mutant == durable.ReleaseAny) {
			if s := r.sessions[m.Node]; s != nil {
				delete(s.owned, m.Object)
			}
			o.owner = owner{}
			r.touch(m.Object)
		}
	case durable.InvalidateAck:
		r.acknowledged(&m)
	case durable.Renew:
		r.renew(&m)
	case durable.Dropped: // D10
		s, o := r.sessions[m.Node], r.objects[m.Object]
		if s == nil || o == nil || s.ssn != m.Session || m.Tenure != r.tenure {
			return
		}
		if c := o.copies[m.Node]; c != nil && !c.invalidated && (c.seq == m.Seq || r.mutant == durable.DropWithoutSeq) {
			r.unregister(m.Object, o, m.Node)
			r.touch(m.Object)
		}
	}
}

// ask puts a request where it waits for its turn, which may come at once.
func (r *Register) ask(m durable.Message) {
	o := r.at(m.Object)
	r.touch(m.Object)
	same := func(q durable.Message) bool { return q.Node == m.Node && q.Kind == m.Kind }
	if m.Kind == durable.Read {
		if i := slices.IndexFunc(o.reads, same); i >= 0 {
			if q := &o.reads[i]; m.Session.After(q.Session) || m.Session == q.Session && m.Seq >= q.Seq {
				*q = m // both weigh nothing
			}
			return
		}
	} else if i := slices.IndexFunc(o.queue, func(q durable.Message) bool {
		return same(q) && (m.Kind == durable.Write || q.Writer() == m.Writer() && q.Seq == m.Seq)
	}); i >= 0 {
		if q := &o.queue[i]; m.Session.After(q.Session) || m.Session == q.Session && m.Seq >= q.Seq {
			r.release(q)
			r.hold(&m)
			*q = m // with the session that it has now
		}
		return
	}
	if m.Kind == durable.Store && o.op != nil && o.op.msg.Writer() == m.Writer() && o.op.msg.Seq == m.Seq && r.mutant != durable.NoDedup {
		if m.Session.After(o.op.msg.Session) {
			o.op.msg.Session = m.Session // a repeat: it is answered in the session that the node has now
		}
		return
	}
	if r.full(&m) {
		return
	}
	r.hold(&m)
	switch {
	case m.Kind == durable.Read:
		o.reads = append(o.reads, m)
	case o.owner.seq != 0 && o.owner.node == m.Node: // the others wait for it
		o.queue = slices.Insert(o.queue, 0, m)
	default:
		o.queue = append(o.queue, m)
	}
}

// read answers a READ, and reports false if it has to wait.
func (r *Register) read(name string, o *object, m *durable.Message) bool {
	if !r.serves() {
		r.confirm()
		return false
	}
	if o.op != nil && !(r.mutant == durable.ShowEarly && o.op.committed) { // D2
		if !r.shown(name) && r.mutant != durable.UncachedWhileWaiting {
			return false
		}
		old := o.op.part(name).old
		if r.mutant == durable.UncachedNew {
			old = r.store.Lookup(name)
		}
		r.tell(durable.Copy, m, old, 0, false)
		return true
	}
	if !r.shown(name) {
		return false
	}
	var l time.Duration
	if s := r.session(m.Node, m.Session); s != nil {
		l = r.register(name, o, s, m)
	} else if r.sessions[m.Node] != nil {
		return true // D5
	}
	r.tell(durable.Copy, m, r.store.Lookup(name), l, false)
	return true
}

// register notes that a node gets a copy, and returns for how long it may use it (D1).
func (r *Register) register(name string, o *object, s *session, m *durable.Message) time.Duration {
	c := o.copies[m.Node]
	switch {
	case !r.serves():
		r.confirm()
		return 0
	case s.outstanding > 0 && r.mutant != durable.CopyDuringInvalidation: // D3: it would put off the end of the session, which a writer waits for
		return 0
	case c == nil && r.copies >= CopiesMax:
		return 0
	}
	if r.now > r.anchor.Add(r.cfg.Holder()/2) {
		r.confirm() // for those who come next
	}
	s.base = r.anchor
	if r.mutant == durable.ReaderUnregistered {
		return r.lease()
	}
	if c == nil {
		c = &copied{}
		o.copies[m.Node] = c
		s.copies[name] = struct{}{}
		r.copies++
	}
	c.seq = max(c.seq, m.Seq)
	return r.lease()
}

func (r *Register) unregister(name string, o *object, n keyspace.NodeID) {
	if c := o.copies[n]; c != nil {
		if c.invalidated {
			r.sessions[n].outstanding--
			if o.op != nil {
				o.op.awaited--
			}
		}
		delete(o.copies, n)
		delete(r.sessions[n].copies, name)
		r.copies--
	}
}

// session returns the session that a request is of, which it opens; nil if it is an earlier one (D5), or there are too many.
func (r *Register) session(n keyspace.NodeID, ssn durable.Session) *session {
	s := r.sessions[n]
	if s != nil && s.ssn != ssn {
		if !ssn.After(s.ssn) && r.mutant != durable.OldSession {
			return nil
		}
		r.forget(n)
		s = nil
	}
	if s == nil {
		if len(r.sessions) >= SessionsMax {
			return nil
		}
		s = &session{ssn: ssn, base: r.now, copies: map[string]struct{}{}}
		if r.anchored {
			s.base = r.anchor
		}
		r.sessions[n] = s
		r.nextEnd = min(r.nextEnd, s.base.Add(r.cfg.Lease))
	}
	return s
}

// forget ends a node's session: it has none of its copies and rights any more.
func (r *Register) forget(n keyspace.NodeID) {
	s := r.sessions[n]
	for _, name := range slices.Sorted(maps.Keys(s.copies)) {
		r.unregister(name, r.objects[name], n)
		r.touch(name)
	}
	delete(r.sessions, n)
	if r.mutant == durable.OwnerWithoutLease {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(s.owned)) {
		r.objects[name].owner = owner{}
		r.touch(name)
	}
}

// expire ends the sessions whose leases are over by every clock (D8).
func (r *Register) expire() {
	if r.now < r.nextEnd {
		return
	}
	after := r.cfg.Arbiter()
	if r.mutant == durable.ArbiterWithoutDrift {
		after = r.cfg.Lease
	}
	r.nextEnd = automaton.Never
	for _, n := range slices.SortedFunc(maps.Keys(r.sessions), compareNodes) {
		if end := r.sessions[n].base.Add(after); r.now >= end {
			r.forget(n)
		} else {
			r.nextEnd = min(r.nextEnd, end)
		}
	}
}

// write begins a STORE, or answers it, and reports false if it has to wait (D4).
func (r *Register) write(name string, o *object, m *durable.Message) bool {
	if o.op != nil {
		return false
	}
	cmd := store.Command{
		Object: name, By: m.Writer(), Seq: m.Seq, Expect: m.Expect, Wanted: m.Wanted, Delete: m.Delete, Value: m.Value, TTL: m.TTL,
	}
	if seq, made, known := r.store.Last(name, m.Writer()); known && m.Seq <= seq && r.mutant != durable.NoDedup {
		switch {
		case m.Seq < seq:
			return true
		case !r.shown(name) && r.mutant != durable.RepeatEarly:
			return false
		case made > 0:
			r.reply(durable.Stored, m, durable.Message{Version: made})
			return true
		case !r.serves():
			r.confirm()
			return false
		}
		r.tell(durable.Conflict, m, r.store.Lookup(name), 0, false)
		return true
	}
	if w := o.owner; w.seq != 0 && w.node != m.Node {
		r.recall(name, o)
		return false
	}
	if r.store.Fails(name, m.Expect, m.Wanted) { // it fails for ever: no entry is needed
		switch {
		case !r.shown(name):
			return false
		case !r.serves():
			r.confirm()
			return false
		}
		var l time.Duration
		if s := r.session(m.Node, m.Session); s != nil {
			l = r.register(name, o, s, m)
		}
		r.tell(durable.Conflict, m, r.store.Lookup(name), l, false)
		return true
	}
	if d := r.objects[durable.Directory(name)]; d != nil && d.op != nil && r.store.Lists(&cmd) {
		if !slices.Contains(d.behind, name) {
			d.behind = append(d.behind, name)
		}
		return false
	}
	r.begin(name, o, &op{msg: *m, cmd: cmd}, r.store.Meets(name, m.Expect, m.Wanted))
	return true
}

// begin proposes an operation, and tells all who have copies to drop them.
func (r *Register) begin(name string, o *object, p *op, applies bool) {
	writer := r.sessions[p.msg.Node]
	if p.msg.Kind != 0 {
		writer = r.session(p.msg.Node, p.msg.Session) // nil of an earlier one: it is executed all the same (D5)
		r.hold(&p.msg)
	}
	names := []string{name}
	if applies && r.store.Lists(&p.cmd) {
		names = append(names, durable.Directory(name))
	}
	for i, part1 := range names {
		q := part{name: part1, old: r.store.Lookup(part1)}
		if applies {
			q.next = r.store.Next(part1)
		}
		p.parts = append(p.parts, q)
		po := r.at(part1)
		po.op = p
		r.touch(part1)
		if !applies {
			continue
		}
		for _, n := range slices.SortedFunc(maps.Keys(po.copies), compareNodes) {
			c := po.copies[n]
			// D6. One who has given up and read again has a copy that this STORE does not replace.
			if i == 0 && p.msg.Kind != 0 && n == p.msg.Node &&
				(writer != nil && writer.ssn == p.msg.Session && c.seq < p.msg.Seq || r.mutant == durable.WriterExempt) {
				continue
			}
			c.invalidated = true
			r.sessions[n].outstanding++
			p.awaited++
			r.invalidate(part1, n, q.next)
		}
	}
	r.propose(p)
}

func (r *Register) propose(p *op) {
	p.proposed = true
	r.idle = false
	p.cmd.Mark = r.mark()
	r.out = append(r.out, Action{Kind: Propose, Cmd: p.cmd})
}

func (r *Register) invalidate(name string, n keyspace.NodeID, v durable.Version) {
	r.send(durable.Message{Kind: durable.Invalidate, Node: n, Session: r.sessions[n].ssn, Object: name, Version: v})
}

func (r *Register) acknowledged(m *durable.Message) {
	s, o := r.sessions[m.Node], r.objects[m.Object]
	if s == nil || o == nil || o.op == nil || s.ssn != m.Session || m.Tenure != r.tenure {
		return
	}
	c := o.copies[m.Node]
	if c == nil || !c.invalidated || o.op.part(m.Object).next != m.Version && r.mutant != durable.AckAnyVersion {
		return
	}
	r.unregister(m.Object, o, m.Node)
	r.touch(m.Object)
}

func (r *Register) isOf(p *op, c *store.Command) bool {
	return p.cmd.Object == c.Object && p.cmd.By == c.By && p.cmd.Seq == c.Seq && p.cmd.Wanted == c.Wanted
}

// committed notes that a command stands in the log, and what it did.
func (r *Register) committed(c *store.Command, res store.Result) {
	o := r.objects[c.Object]
	if o == nil || o.op == nil || o.op.committed || !r.isOf(o.op, c) {
		return
	}
	p := o.op
	if res.Outcome == store.Applied {
		p.committed = true
		for i := range p.parts {
			r.unsettled[p.parts[i].name] = struct{}{}
			r.renumber(&p.parts[i])
		}
		r.touch(c.Object)
		return
	}
	r.end(p)
	switch {
	case p.msg.Kind == 0:
		delete(r.expiries, c.Object)
	case r.mutant == durable.ForgetConflict && res.Outcome == store.Conflicted:
		r.tell(durable.Conflict, &p.msg, r.store.Lookup(c.Object), 0, false)
	case res.Outcome == store.Refused:
		r.reply(durable.Refused, &p.msg, durable.Message{Reason: res.Reason})
	default: // it is answered as a repeat of itself
		o.queue = slices.Insert(o.queue, 0, p.msg)
		r.hold(&p.msg)
	}
}

// renumber takes note of the version that a command has made. It is above the one that was foreseen if the log has forgotten objects meanwhile,
// whose versions were greater.
func (r *Register) renumber(q *part) {
	made := r.store.Lookup(q.name).Version
	if made == q.next {
		return
	}
	q.next = made
	copies := r.objects[q.name].copies
	for _, n := range slices.SortedFunc(maps.Keys(copies), compareNodes) {
		if copies[n].invalidated { // acknowledgements name the version
			r.invalidate(q.name, n, made)
		}
	}
}

// end takes an operation away. What it waits for is waited for no longer.
func (r *Register) end(p *op) {
	if p.msg.Kind != 0 {
		r.release(&p.msg)
	}
	for _, q := range p.parts {
		o := r.objects[q.name]
		for n, c := range o.copies {
			if c.invalidated {
				c.invalidated = false
				r.sessions[n].outstanding--
			}
		}
		o.op = nil
		delete(r.unsettled, q.name)
		r.touch(q.name)
	}
}

// settle ends an operation that nobody can have missed (D9).
func (r *Register) settle(p *op) {
	switch {
	case !p.committed && r.mutant != durable.AckBeforeCommit, !r.waited(), p.awaited > 0 && r.mutant != durable.AckBeforeInvalidated:
		return
	}
	r.end(p)
	name := p.cmd.Object
	r.expires(name, r.store.Lookup(name))
	if p.msg.Kind == 0 {
		return
	}
	var l time.Duration
	if s := r.session(p.msg.Node, p.msg.Session); s != nil {
		l = r.register(name, r.objects[name], s, &p.msg)
	}
	r.reply(durable.Stored, &p.msg, durable.Message{Version: p.parts[0].next, Lease: l})
}

// right answers a WRITE, and reports false if it has to wait (D11).
func (r *Register) right(name string, o *object, m *durable.Message) bool {
	switch {
	case !r.serves():
		r.confirm()
		return false
	case !r.waited() || o.op != nil:
		return false
	case o.owner.seq != 0 && o.owner.node != m.Node:
		r.recall(name, o)
		return false
	}
	s := r.session(m.Node, m.Session)
	if s == nil || o.owner.seq > m.Seq && o.owner.ssn == m.Session {
		return true
	}
	l := r.register(name, o, s, m)
	if l <= 0 {
		return r.copies >= CopiesMax // the right ends with the session, so it needs one that can be ended
	}
	o.owner = owner{m.Node, m.Session, m.Seq}
	if s.owned == nil {
		s.owned = map[string]struct{}{}
	}
	s.owned[name] = struct{}{}
	r.tell(durable.Copy, m, r.store.Lookup(name), l, true)
	return true
}

func (r *Register) recall(name string, o *object) {
	r.send(durable.Message{Kind: durable.Recall, Node: o.owner.node, Session: o.owner.ssn, Seq: o.owner.seq, Object: name})
}

// renew answers a RENEW (D10).
func (r *Register) renew(m *durable.Message) {
	s := r.sessions[m.Node]
	if r.mutant == durable.RenewUnknown && m.Tenure != r.tenure && r.serves() {
		r.out = append(r.out, Action{Kind: Send, Msg: durable.Message{
			Kind: durable.Lease, Node: m.Node, Session: m.Session, Seq: m.Seq, Tenure: m.Tenure, Lease: r.lease(),
		}})
	}
	switch {
	case s == nil || s.ssn != m.Session || m.Tenure != r.tenure:
		return
	case !r.serves() || r.now > r.anchor.Add(r.cfg.Holder()/2): // an answer that lasts is worth a round: else the node asks again soon
		r.renewals[m.Node] = *m
		r.confirm()
		return
	}
	var l time.Duration
	if s.outstanding == 0 || r.mutant == durable.RenewDuringInvalidation {
		s.base, l = r.anchor, r.lease()
	}
	r.reply(durable.Lease, m, durable.Message{Lease: l})
	for _, name := range slices.Sorted(maps.Keys(s.copies)) {
		if o := r.objects[name]; s.outstanding > 0 && o.copies[m.Node].invalidated {
			r.invalidate(name, m.Node, o.op.part(name).next)
		}
	}
}

// mark tells the log what is settled, as far as this leader knows (D13): while it waits, no more than its predecessors have told.
func (r *Register) mark() store.Mark {
	was := r.store.Mark()
	if r.mutant == durable.MarkEarly {
		return store.Mark{Index: r.store.Index()}
	}
	if !r.waited() {
		return was
	}
	type open struct {
		name  string
		index uint64
	}
	var unsettled []open
	for name := range r.unsettled {
		unsettled = append(unsettled, open{name, r.store.Lookup(name).Index})
	}
	slices.SortFunc(unsettled, func(a, b open) int { return cmp.Or(cmp.Compare(a.index, b.index), cmp.Compare(a.name, b.name)) })
	m := store.Mark{Index: r.store.Index()}
	if len(unsettled) > store.ExceptionsMax {
		m.Index = unsettled[store.ExceptionsMax].index - 1
	}
	for _, u := range unsettled {
		if u.index <= m.Index {
			m.Except = append(m.Except, u.name)
		}
	}
	slices.Sort(m.Except)
	if m.Index <= was.Index {
		return was
	}
	return m
}

// unmarked reports whether nothing is under way, and the log does not say of something that it is settled.
func (r *Register) unmarked() bool {
	m := r.store.Mark()
	return len(r.busy) == 0 && (m.Index < r.store.Written() || len(m.Except) > 0)
}

func (r *Register) expires(name string, o store.Object) {
	if o.TTL == 0 {
		delete(r.expiries, name)
		return
	}
	// The whole TTL by this leader's clock, from the commit or from its election: never too early by any clock.
	e := expiry{o.Version, r.now.Add(r.cfg.Drift.Stretch(o.TTL))}
	r.expiries[name] = e
	r.nextExpiry = min(r.nextExpiry, e.at)
}

// due deletes what has outlived its TTL.
func (r *Register) due() {
	if r.now < r.nextExpiry {
		return
	}
	r.nextExpiry = automaton.Never
	for _, name := range slices.Sorted(maps.Keys(r.expiries)) {
		e := r.expiries[name]
		if r.now < e.at {
			r.nextExpiry = min(r.nextExpiry, e.at)
			continue
		}
		o := r.at(name)
		r.touch(name)
		cmd := store.Command{Object: name, Wanted: e.version, Delete: true}
		if d := r.objects[durable.Directory(name)]; o.op != nil || d != nil && d.op != nil {
			r.nextExpiry = r.now // after that
			continue
		}
		delete(r.expiries, name)
		if now := r.store.Lookup(name); now.Version == e.version && now.TTL > 0 {
			r.begin(name, o, &op{cmd: cmd}, true)
		}
	}
}

// repeat says again what is waited for.
func (r *Register) repeat() {
	for _, name := range slices.Sorted(maps.Keys(r.busy)) {
		o := r.objects[name]
		if o.op != nil {
			q := o.op.part(name)
			for _, n := range slices.SortedFunc(maps.Keys(o.copies), compareNodes) {
				if o.copies[n].invalidated {
					r.invalidate(name, n, q.next)
				}
			}
			if !o.op.proposed && o.op.cmd.Object == name {
				r.propose(o.op)
			}
		}
		if len(o.queue) > 0 && o.owner.seq != 0 && o.queue[0].Node != o.owner.node {
			r.recall(name, o)
		}
	}
	if r.idle && r.waited() && r.unmarked() {
		r.out = append(r.out, Action{Kind: Propose, Cmd: store.Command{Mark: r.mark()}})
	}
	r.idle = true
}
