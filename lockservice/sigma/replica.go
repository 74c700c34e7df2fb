package sigma

import (
	"bytes"
	"cmp"
	"maps"
	"slices"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/internal/invariant"
	"latchkey/replicagroup/quorum"
)

// ReplicaConfig fixes one life of a replica.
type ReplicaConfig struct {
	Self   keyspace.NodeID
	Inc    uint64 // grows with every start of this host (gid, section 1.1)
	Drift  automaton.Drift
	TTLMin time.Duration // above zero
	TTLMax time.Duration
	// Restarted says that an earlier life on this host may have granted something in this group: nothing is served before
	// [Barrier] (S8).
	Restarted bool
	// Table is what was recorded of the replica of a former life of this host, whose place this one takes: nil, or a table of the view
	// that the replica is made with, and then Restarted is false. The driver has applied everything that was committed when this life
	// began, as before [Barrier].
	Table *Table
	// Waited is how long, at the first event, this life of the host has been: what S8 waits for is over the sooner. Where a view was
	// applied in it already, it is how long ago that was. With a Table it is how long this life of the host has been.
	Waited time.Duration
	// Rest is what a replica of this life left behind that had nothing any more ([Replica.Rest]): this one takes its place.
	Rest Rest
	// Fresh is how long the first view of a generation waits for leases of the former one (section 9.8): zero in the first
	// generation ever, stretch(TTLMax) in others. It counts from the first event.
	Fresh time.Duration

	block  Token // of tests; [Block]
	piece  int   // of tests; [ReportEntriesMax]
	mutant mutant
}

// Rest is all that a replica that has nothing leaves behind.
type Rest struct {
	Floor  Token  // at least every number that may have been used
	Clock  uint64 // Lamport
	Grants uint64 // given in this life
}

// Replica is what one voter keeps of all locks of one group. Not safe for concurrent use.
//
// Invariants, numbered as in lock-protocols.md section 6: (I1) a lock has at most one owner, and a gid is used once; (I2) a
// lock's rec never falls, and an offered number is above it unless it is the asker's own; (I9) a request that is remembered as
// ended is never granted. And of section 9: every number offered is at most the ceiling; nothing is granted by a replica that
// is no member, or not settled, suspended or under embargo; a frozen table was settled.
type Replica struct {
	cfg ReplicaConfig
	log LogState // as applied here
	now automaton.Instant

	clock  uint64 // Lamport
	grants uint64 // N of the last gid

	started   bool              // the first event has come
	born      automaton.Instant // when this life began, or the last view that was applied before the barrier
	booting   bool              // S8: before the barrier
	settled   bool
	suspended bool
	suspendAt automaton.Instant // S1; Never
	settleAt  automaton.Instant // S4(b); means something while not settled
	embargo   automaton.Instant // S8: nothing is granted before
	pullAt    automaton.Instant
	reportAt  automaton.Instant // when a name is to be reported to the log; Never
	armed     automaton.Instant

	// floor is at least the rec of every name that is not in locks.
	floor   Token
	locks   map[string]*lock
	due     dueHeap // locks somebody has or wants, by when to look at them; lazily kept, too early at worst
	idle    idleList
	queued  int                     // waiters of all locks
	perPeer map[keyspace.NodeID]int // owners, candidates and waiters of this node

	frozen   frozen                        // the table of the view before
	incoming map[keyspace.NodeID]*incoming // reports on their way, of log.View-1 or early ones of log.View
	reported map[keyspace.NodeID]bool      // whose report is complete
	whole    uint32                        // the same, by place in log.Prev
	parked   map[string][]parkedMessage    // messages of views to come
	parkedN  int
	modes    map[string]*handed   // names that are not in mode sigma
	asked    [3]automaton.Instant // when an entry of each kind may be proposed again
	wantCap  time.Duration        // the longest lease that waits for RaiseTTL

	tracking   tracking
	dirty      []*lock  // to be recorded at the end of the step
	backlog    []string // names to be recorded, while catching
	savedFloor Token    // of the head
	headDue    bool
}

type parkedMessage struct {
	from keyspace.NodeID
	msg  Message
}

// wish is a request as a replica knows it.
type wish struct {
	req   Req
	reqTS uint64
	node  keyspace.NodeID
	ttl   time.Duration
	delay time.Duration
	cs    automaton.Instant // the latest heard; of the client's clock
	tok   Token             // held
	seen  automaton.Instant
	heard bool              // in this view
	owed  automaton.Instant // when it is to be told that it is queued; 0: it has been
}

// CompareOrder compares two requests, made at Lamport times, by the order in which they are served: (reqTS, session, seq).
func CompareOrder(ts uint64, q Req, otherTS uint64, other Req) int {
	return cmp.Or(cmp.Compare(ts, otherTS), bytes.Compare(q.Session[:], other.Session[:]), cmp.Compare(q.Seq, other.Seq))
}

// before orders a queue: (reqTS, session, seq).
func (w *wish) compare(v *wish) int {
	return CompareOrder(w.reqTS, w.req, v.reqTS, v.req)
}

type candidate struct {
	wish
	until   automaton.Instant
	votes   int
	claimed bool
	offered Token // for people
}

// lock is the state of one name.
type lock struct {
	name  string
	rec   Token // the highest number that may ever have been used, as far as known
	owned bool
	owner wish
	gid   GID
	prop  Token
	exp   automaton.Instant
	asked bool // the owner was told that somebody older waits

	settled bool              // whoever may hold it is known, though the view may not be settled yet
	word    uint32            // whose word of it is in, by place in log.Prev
	pullAt  automaton.Instant // when those of the view before may be asked for it again

	queue      []wish
	candidates []candidate
	ended      []ended
	delay      automaton.Instant // lock-delay: nothing is granted before
	freed      automaton.Instant // the last release
	rate       time.Duration     // smoothed time between releases

	dirty, saved bool // to be recorded; there is a record of it

	at         int // place in due, -1
	wake       automaton.Instant
	idle       bool
	idleAt     automaton.Instant
	prev, next *lock // in the idle list
}

type ended struct {
	Req
	at automaton.Instant
}

func (l *lock) live() bool { return l.owned || len(l.queue) > 0 || len(l.candidates) > 0 }

// NewReplica returns a replica at a state of the group's log.
func NewReplica(cfg ReplicaConfig, log LogState) *Replica {
	invariant.Check(cfg.TTLMin > 0 && cfg.TTLMin <= cfg.TTLMax && log.Valid(), "a replica's configuration", cfg)
	if cfg.block == 0 {
		cfg.block = Block
	}
	if cfg.piece == 0 {
		cfg.piece = ReportEntriesMax
	}
	r := &Replica{
		cfg: cfg, log: log, booting: cfg.Restarted, settled: true, floor: max(log.Base, cfg.Rest.Floor),
		clock: cfg.Rest.Clock, grants: cfg.Rest.Grants, suspendAt: automaton.Never,
		pullAt: automaton.Never, reportAt: automaton.Never, armed: automaton.Never,
		locks: make(map[string]*lock), perPeer: make(map[keyspace.NodeID]int), incoming: make(map[keyspace.NodeID]*incoming),
		reported: make(map[keyspace.NodeID]bool), parked: make(map[string][]parkedMessage),
		modes: make(map[string]*handed),
	}
	if t := cfg.Table; t != nil {
		r.floor, r.clock = max(r.floor, t.Head.Floor), max(r.clock, t.Head.Clock)
		r.savedFloor, r.tracking = r.floor, tracked
	}
	return r
}

// State returns the log's state as applied here.
func (r *Replica) State() LogState { return r.log }

// Rest returns what a replica leaves behind that has nothing: it may be dropped then, and made anew with that when somebody asks
// something of it, or the view changes. ok is false while it has something.
func (r *Replica) Rest() (rest Rest, ok bool) {
	ok = r.settled && !r.booting && !r.suspended && r.suspendAt == automaton.Never && r.embargo == 0 &&
		r.pullAt == automaton.Never && r.reportAt == automaton.Never && len(r.locks) == 0 && len(r.backlog) == 0 && r.frozen.until == 0 && r.parkedN == 0 && len(r.incoming) == 0
	return Rest{r.floor, r.clock, r.grants}, ok
}

// Settled reports whether the present view grants here, or will when an embargo ends.
func (r *Replica) Settled() bool { return r.settled && !r.booting }

// Embargoed reports whether it waits for leases that it may have forgotten (S8).
func (r *Replica) Embargoed() bool { return r.booting || r.now < r.embargo }

// Granting reports whether it grants, as of the last event.
func (r *Replica) Granting() bool { return r.granting() }

// Step consumes one event and appends actions to out. It never blocks or fails: what fits nothing is dropped.
func (r *Replica) Step(ev Event, out []Action) []Action {
	r.now = max(r.now, ev.Now)
	if !r.started {
		r.started = true
		r.born = r.now.Add(-r.cfg.Waited)
		if r.cfg.Fresh > 0 {
			r.embargo = r.now.Add(r.cfg.Fresh)
		}
		if t := r.cfg.Table; t != nil {
			r.cfg.Table = nil
			r.takeUp(t)
		}
	}
	switch ev.Kind {
	case Receive:
		out = r.receive(ev.From, ev.Msg, out)
	case Timer:
		r.armed = automaton.Never
	case Applied, Jumped:
		out = r.follow(*ev.State, ev.Modes, ev.Kind == Jumped, out)
	case Appended: // S1
		if ev.Entry.Kind == EntryView && ev.Entry.From == r.log.View && r.suspendAt == automaton.Never && !r.suspended {
			since := ev.Since
			if since == 0 {
				since = r.now
			}
			r.suspendAt = since.Add(SuspendAfter)
		}
	case Truncated: // S1
		out = r.resume(out)
	case Barrier:
		if r.booting {
			r.booting = false
			out = r.restarted(out)
		}
	case Gone:
		out = r.gone(ev.From, out)
	}
	out = r.save(r.elapse(out))
	return r.arm(out)
}

// gone lets go of the waiters of a node that seems to have stopped, so that none of them is granted and then waited for. One that lives asks again, and
// has its place by when its request was made. What the node owns, or claims, it may hold.
func (r *Replica) gone(n keyspace.NodeID, out []Action) []Action {
	if r.perPeer[n] == 0 {
		return out
	}
	for _, name := range r.names() {
		l := r.locks[name]
		for i := len(l.queue) - 1; i >= 0; i-- {
			if w := &l.queue[i]; w.node == n && w.tok == 0 {
				r.dequeue(l, i)
			}
		}
		out = r.rest(l, out)
	}
	return out
}

// resume lifts the suspension.
func (r *Replica) resume(out []Action) []Action {
	was := r.suspended
	r.suspended, r.suspendAt = false, automaton.Never
	if was {
		out = r.grantAll(out)
	}
	return out
}

// restarted begins S8's embargo. What this host forgot, it gave before it started; and the leases of the views before the one that it
// finds ended with that one's beginning, which was before it was applied here. So it counts from the later of the two, and not from
// the barrier.
func (r *Replica) restarted(out []Action) []Action {
	if r.cfg.mutant != mutantNoEmbargo {
		r.embargo = max(r.embargo, r.born.Add(r.cfg.Drift.Stretch(SuspendAfter+r.log.Cap)))
	}
	if r.cfg.mutant != mutantCounterZero {
		r.floor = r.log.Ceil // the counter is not kept anywhere else (section 2.3): grants after the next Raise or View
	}
	r.settled = true
	return out
}

// serving reports whether this replica takes part in the present view.
func (r *Replica) serving() bool {
	return !r.booting && !r.suspended && has(r.log.Members, r.cfg.Self)
}

// granting is S7, as far as it is about the replica.
func (r *Replica) granting() bool { return r.serving() && r.settled && r.now >= r.embargo }

func (r *Replica) receive(from keyspace.NodeID, m *Message, out []Action) []Action {
	if m.TS >= tsMax || m.ReqTS >= tsMax || r.booting {
		return out
	}
	r.clock = max(r.clock, m.TS) + 1
	switch m.Kind {
	case Reported:
		return r.receiveReport(from, m, out)
	case Pull:
		return r.receivePull(from, m, out)
	case Inspect:
		return r.inspect(from, m, out)
	case Request, Yield, Release, Install:
	default:
		return out
	}
	if m.View.Gen != r.log.View.Gen {
		return r.send(from, Message{Kind: WrongGen, Name: m.Name, Req: m.Req}, out)
	}
	switch c := m.View.Compare(r.log.View); {
	case r.cfg.mutant == mutantAnyView:
	case c > 0:
		r.park(from, m)
		return out
	case c < 0 && m.Kind == Release && has(r.log.Members, r.cfg.Self):
		// The request is over for good, whatever view it lived in. Its client learns where its other replicas are now.
		if h := r.modes[m.Name]; h != nil {
			return r.elsewhere(h, from, m, out)
		}
		return r.moved(from, m.Name, m.Req, r.release(from, m, out))
	case c < 0 && r.cfg.mutant == mutantNoSeal && r.frozen.true && m.View == r.frozen.view:
		if l := r.frozen.locks[m.Name]; l != nil && l.owned && l.owner.req == m.Req {
			out = r.renew(l, m, out)
			out = r.answerGrant(l, Grant, out)
			out[len(out)-1].Msg.View = m.View
		}
		return out
	case c < 0:
		return r.moved(from, m.Name, m.Req, out)
	}
	if !has(r.log.Members, r.cfg.Self) {
		return r.moved(from, m.Name, m.Req, out)
	}
	if r.suspended {
		return out
	}
	if h := r.modes[m.Name]; h != nil && !(r.cfg.mutant == mutantNoModeSeal && h.mode == ModePending) { // M1
		return r.elsewhere(h, from, m, out)
	}
	switch m.Kind {
	case Request:
		return r.request(from, m, out)
	case Yield:
		return r.yield(from, m, out)
	case Release:
		return r.release(from, m, out)
	default:
		return r.install(from, m, out)
	}
}

func (r *Replica) park(from keyspace.NodeID, m *Message) {
	q := r.parked[m.Name]
	if len(q) >= ParkedPerNameMax || r.parkedN >= ParkedMax {
		return
	}
	r.parked[m.Name] = append(q, parkedMessage{from, *m})
	r.parkedN++
}

// request is REQ (section 1.3).
func (r *Replica) request(from keyspace.NodeID, m *Message, out []Action) []Action {
	if reason := r.unfit(m); reason != 0 {
		return r.send(from, Message{Kind: Refused, Name: m.Name, Req: m.Req, Reason: reason}, out)
	}
	l := r.locks[m.Name]
	if l == nil {
		if l = r.insert(m.Name); l == nil {
			return r.send(from, Message{Kind: Refused, Name: m.Name, Req: m.Req, Reason: TooManyLocks}, out)
		}
	}
	if !r.known(l) {
		out = r.pullName(l, r.settleName(l, out))
	}
	out = r.tick(l, out)
	if l.over(m.Req) { // I9
		return r.rest(l, out)
	}
	if l.owned && l.owner.req.Session == m.Req.Session {
		switch {
		case l.owner.node != from || l.owner.req.Seq > m.Req.Seq:
			return out
		case l.owner.req == m.Req:
			if m.TTL > r.log.Cap && r.cfg.mutant != mutantNoCap {
				return r.askCap(m.TTL, out) // 10.2: nor renewed
			}
			out = r.renew(l, m, out)
			return r.answerGrant(l, Grant, out)
		}
		r.consume(l) // a newer request of the session
		l.end(l.owner.req, r.now)
		r.disown(l)
	}
	if i := l.candidate(m.Req.Session); i >= 0 {
		var taken bool
		if taken, out = r.candidateSays(l, i, from, m, out); taken {
			return out
		}
	}
	w := wish{req: m.Req, reqTS: m.ReqTS, node: from, ttl: m.TTL, delay: m.Delay, cs: m.CS, tok: m.Tok, seen: r.now, heard: true}
	if i := l.waiter(m.Req.Session); i >= 0 {
		old := &l.queue[i]
		switch {
		case old.node != from || old.req.Seq > m.Req.Seq:
			return out
		case old.req == m.Req && old.reqTS == m.ReqTS:
			old.seen, old.cs, old.tok, old.heard, old.owed = r.now, max(old.cs, m.CS), m.Tok, true, 0
			out = r.grant(l, out)
			return r.answer(l, m.Req, out)
		}
		if old.req != m.Req {
			l.end(old.req, r.now)
		}
		r.dequeue(l, i)
	}
	if reason := r.full(l, from); reason != 0 {
		out = r.send(from, Message{Kind: Refused, Name: m.Name, Req: m.Req, Reason: reason}, out)
		return r.rest(l, out)
	}
	r.enqueue(l, w)
	out = r.grant(l, out)
	if m.Patient && l.owned && l.owner.req != m.Req {
		r.owe(l, m.Req.Session)
	} else {
		out = r.answer(l, m.Req, out)
	}
	return r.inquire(l, out)
}

// owe has a request told in a while that it is queued, unless it is granted before.
func (r *Replica) owe(l *lock, s Session) {
	w := &l.queue[l.waiter(s)]
	w.owed = r.now.Add(queuedAfter)
	r.watch(l, w.owed)
}

// pay tells those whose time has come.
func (r *Replica) pay(l *lock, out []Action) []Action {
	for i := range l.queue {
		if w := &l.queue[i]; w.owed != 0 && r.now >= w.owed {
			w.owed = 0
			out = r.answerQueued(l, w, i, out)
		}
	}
	return out
}

// unfit says why a request cannot be taken at all.
func (r *Replica) unfit(m *Message) Reason {
	switch {
	case m.TTL < r.cfg.TTLMin || m.TTL > r.cfg.TTLMax || m.Delay < 0 || m.Delay > DelayMax:
		return BadTTL
	case m.Tok > r.log.Ceil && r.cfg.mutant != mutantAnyView: // A2': not even to its own holder
		return BadToken
	}
	return 0
}

func (r *Replica) full(l *lock, from keyspace.NodeID) Reason {
	switch {
	case r.perPeer[from] >= RequestsPerPeerMax:
		return TooManyRequests
	case !l.owned && len(l.queue) == 0: // goes through at once, or is the only one
		return 0
	case len(l.queue) >= WaitersPerLockMax || r.queued >= WaitersMax:
		return TooManyWaiters
	}
	return 0
}

// answer tells a request where it stands.
func (r *Replica) answer(l *lock, q Req, out []Action) []Action {
	if l.owned && l.owner.req == q {
		return out // the grant said it
	}
	for i := range l.queue {
		if l.queue[i].req == q {
			return r.answerQueued(l, &l.queue[i], i, out)
		}
	}
	for i := range l.candidates {
		if l.candidates[i].req == q {
			return r.answerQueued(l, &l.candidates[i].wish, 0, out)
		}
	}
	return out
}

func (r *Replica) answerQueued(l *lock, w *wish, place int, out []Action) []Action {
	m := Message{Kind: Queued, Name: l.name, Req: w.req, Position: place}
	if l.owned {
		m.Owner, m.GID = l.owner.req, l.gid
		place++
	}
	m.Wait = l.rate*time.Duration(place) + l.rate/2 // T_w = T_CS·(P + 1/2)
	switch {
	case !r.known(l):
		m.Embargo = max(1, r.settleAt.Sub(r.now))
	case r.now < r.embargo:
		m.Embargo = r.embargo.Sub(r.now)
	}
	return r.send(w.node, m, out)
}

// inquire tells the owner once that somebody older waits.
func (r *Replica) inquire(l *lock, out []Action) []Action {
	if l.asked || !r.older(l) {
		return out
	}
	l.asked = true
	return r.answerGrant(l, Inquire, out)
}

// older reports whether somebody waits who would be granted if the owner yielded. One that waits for the log would not: the
// owner would be granted again, and yield again, without end.
func (r *Replica) older(l *lock) bool {
	if !l.owned {
		return false
	}
	for i := range l.queue {
		w := &l.queue[i]
		if w.compare(&l.owner) >= 0 {
			return false
		}
		if w.ttl <= r.log.Cap && r.now.Sub(w.seen) < w.ttl {
			return true
		}
	}
	return false
}

func (r *Replica) answerGrant(l *lock, k Kind, out []Action) []Action {
	return r.send(l.owner.node, Message{
		Kind: k, Name: l.name, Req: l.owner.req, GID: l.gid, Tok: l.prop, CS: l.owner.cs, Older: r.older(l),
	}, out)
}

// renew starts the owner's lease anew. The latest cs is echoed: the lease runs from now, which is after every cs heard.
func (r *Replica) renew(l *lock, m *Message, out []Action) []Action {
	l.owner.cs, l.owner.seen = max(l.owner.cs, m.CS), r.now
	l.owner.tok = max(l.owner.tok, m.Tok)
	l.exp = max(l.exp, r.now.Add(l.owner.ttl))
	return out
}

func (r *Replica) yield(from keyspace.NodeID, m *Message, out []Action) []Action {
	l := r.locks[m.Name]
	if l == nil {
		return out
	}
	out = r.tick(l, out)
	if !l.owned || l.owner.req != m.Req || l.owner.node != from || l.gid != m.GID {
		return out
	}
	w := l.owner
	w.seen = r.now
	r.disown(l) // rec stays: the number was not used (section 2.2)
	r.enqueue(l, w)
	out = r.grant(l, out)
	return r.answer(l, m.Req, out)
}

// release is RELEASE, of this view or, where the table is this view's, of an older one.
func (r *Replica) release(from keyspace.NodeID, m *Message, out []Action) []Action {
	out = r.over(from, m, out)
	if m.Ack { // after the grant that comes of it: that is what somebody waits for
		out = r.send(from, Message{Kind: Released, Name: m.Name, Req: m.Req}, out)
	}
	return out
}

// over takes the request of a RELEASE out.
func (r *Replica) over(from keyspace.NodeID, m *Message, out []Action) []Action {
	l := r.locks[m.Name]
	if l == nil {
		if l = r.insert(m.Name); l == nil {
			return out
		}
	}
	out = r.tick(l, out)
	if !l.from(m.Req, from) {
		return r.rest(l, out)
	}
	if m.Tok <= r.log.Ceil { // A3'
		l.rec = max(l.rec, m.Tok)
	}
	r.mark(l)
	l.end(m.Req, r.now)
	if l.owned && l.owner.req == m.Req { // with tok 0 the number is not used: the client vouches for it
		if l.freed != 0 {
			l.rate += (r.now.Sub(l.freed) - l.rate) / 8
		}
		l.freed = r.now
		r.disown(l)
	}
	r.sweepOf(l, m.Req.Session) // S5(ii) among others
	out = r.grant(l, out)
	return r.rest(l, out)
}

// from reports whether what is known of a request's session came from this node. Another number of the session makes no difference: the end of a
// later request ends those before it.
func (l *lock) from(q Req, n keyspace.NodeID) bool {
	if l.owned && l.owner.req.Session == q.Session {
		return l.owner.node == n
	}
	if i := l.waiter(q.Session); i >= 0 {
		return l.queue[i].node == n
	}
	if i := l.candidate(q.Session); i >= 0 {
		return l.candidates[i].node == n
	}
	return true
}

func (r *Replica) install(from keyspace.NodeID, m *Message, out []Action) []Action {
	l := r.locks[m.Name]
	if l == nil {
		return out
	}
	out = r.tick(l, out)
	if r.cfg.mutant == mutantAnyInstall && l.owned && m.Tok > l.prop && m.Tok <= r.log.Ceil {
		l.prop = m.Tok
	}
	if !l.owned || l.owner.req != m.Req || l.owner.node != from || l.gid != m.GID {
		return out // a late one must not raise what another has been offered (section 2.1, 5)
	}
	if m.Tok > l.prop && m.Tok <= r.log.Ceil { // A2'
		l.prop = m.Tok
		if r.cfg.mutant != mutantInstallUnsaved {
			r.mark(l)
		}
	} else if m.Tok > r.log.Ceil {
		out = r.askRaise(out)
	}
	out = r.renew(l, m, out)
	return r.answerGrant(l, Grant, out)
}

// tick ends what is over before anything else happens to a name.
func (r *Replica) tick(l *lock, out []Action) []Action {
	if l.owned && r.now >= l.exp {
		r.consume(l)
		l.delay = r.now.Add(l.owner.delay) // an expiry, not a release
		r.disown(l)
	}
	for i := 0; i < len(l.candidates); {
		if c := &l.candidates[i]; r.now >= c.until { // S5(iii)
			l.delay = max(l.delay, r.now.Add(c.delay))
			r.candidateWaits(l, i, c.claimed)
			continue
		}
		i++
	}
	return r.grant(l, out)
}

// consume makes the owner's number one that may have been used (section 2.2).
func (r *Replica) consume(l *lock) {
	if r.cfg.mutant != mutantExpiryFree {
		l.rec = max(l.rec, l.prop)
		r.mark(l)
	}
}

// grant is rule grant of section 1.3 with S6 and S7.
func (r *Replica) grant(l *lock, out []Action) []Action {
	if l.owned || !r.serving() || !r.known(l) || r.now < max(l.delay, r.embargo) {
		return out
	}
	if len(l.candidates) > 0 && r.cfg.mutant != mutantNoCandidates {
		for i := range l.candidates {
			if c := &l.candidates[i]; c.claimed && (len(l.candidates) == 1 || r.cfg.mutant == mutantClaimOverrules) {
				w := c.wish
				if l.rec >= r.log.Ceil {
					return r.askRaise(out)
				}
				for len(l.candidates) > 0 {
					r.dropCandidate(l, 0)
				}
				return r.own(l, w, out)
			}
		}
		return out
	}
	for i := 0; i < len(l.queue); {
		w := l.queue[i]
		switch {
		case r.now.Sub(w.seen) >= w.ttl: // not heard of for its TTL
			r.dequeue(l, i)
		case w.ttl > r.log.Cap && r.cfg.mutant != mutantNoCap: // 10.2; the others do not wait for the log
			out = r.askCap(w.ttl, out)
			i++
		case l.rec >= r.log.Ceil:
			return r.askRaise(out)
		default:
			r.dequeue(l, i)
			return r.own(l, w, out)
		}
	}
	return out
}

func (r *Replica) own(l *lock, w wish, out []Action) []Action {
	invariant.Check(!l.owned && !l.over(w.req), "I1, I9: one owner, and no ended request is granted", l)
	r.grants++
	l.owned, l.owner, l.asked = true, w, false
	l.owner.owed = 0
	l.gid = GID{r.cfg.Inc, r.grants}
	l.prop = l.rec + 1
	if w.tok > 0 { // A1'
		l.prop = w.tok
	}
	invariant.Check(l.prop <= r.log.Ceil, "A2': a number within the view's range", l)
	l.exp = r.now.Add(w.ttl)
	r.perPeer[w.node]++
	r.mark(l)
	r.watch(l, l.exp)
	if r.log.Ceil-l.prop < r.cfg.block/4 {
		out = r.askRaise(out)
	}
	return r.inquire(l, r.answerGrant(l, Grant, out))
}

func (r *Replica) disown(l *lock) {
	r.unpeer(l.owner.node)
	l.owned, l.owner = false, wish{}
	r.mark(l)
}

func (r *Replica) unpeer(n keyspace.NodeID) {
	if r.perPeer[n]--; r.perPeer[n] <= 0 {
		delete(r.perPeer, n)
	}
}

func (r *Replica) enqueue(l *lock, w wish) {
	i := len(l.queue) // most come in order
	for i > 0 && l.queue[i-1].compare(&w) > 0 {
		i--
	}
	l.queue = slices.Insert(l.queue, i, w)
	r.queued++
	r.perPeer[w.node]++
	r.watch(l, w.seen.Add(w.ttl))
}

func (r *Replica) dequeue(l *lock, i int) {
	r.unpeer(l.queue[i].node)
	r.queued--
	l.queue = slices.Delete(l.queue, i, i+1)
}

func (l *lock) waiter(s Session) int {
	for i := range l.queue {
		if l.queue[i].req.Session == s {
			return i
		}
	}
	return -1
}

func (l *lock) candidate(s Session) int {
	for i := range l.candidates {
		if l.candidates[i].req.Session == s {
			return i
		}
	}
	return -1
}

// over reports whether a request is known to have ended.
func (l *lock) over(q Req) bool {
	for i := range l.ended {
		if l.ended[i].Session == q.Session {
			return q.Seq <= l.ended[i].Seq
		}
	}
	return false
}

func (l *lock) end(q Req, now automaton.Instant) {
	for i := range l.ended {
		if e := &l.ended[i]; e.Session == q.Session {
			e.Seq, e.at = max(e.Seq, q.Seq), now
			return
		}
	}
	if len(l.ended) >= EndedPerLockMax {
		l.ended = slices.Delete(l.ended, 0, 1)
	}
	l.ended = append(l.ended, ended{q, now})
}

// askRaise asks the leader for more numbers.
func (r *Replica) askRaise(out []Action) []Action {
	return r.propose(Entry{Kind: EntryRaise, From: r.log.View}, out)
}

// askCap asks the leader to let leases be as long as the next power of two of nanoseconds from ttl (10.2).
func (r *Replica) askCap(ttl time.Duration, out []Action) []Action {
	r.wantCap = max(r.wantCap, ttl)
	return r.propose(Entry{Kind: EntryRaiseTTL, From: r.log.View, Cap: CapFor(r.wantCap)}, out)
}

// CapFor returns the smallest cap that allows leases of d.
func CapFor(d time.Duration) time.Duration {
	c := time.Duration(1)
	for c < d {
		c <<= 1
	}
	return c
}

func (r *Replica) propose(e Entry, out []Action) []Action {
	at := &r.asked[e.Kind-EntryView]
	if r.now < *at {
		return out
	}
	*at = r.now.Add(proposeEvery)
	return append(out, Action{Kind: Propose, Entry: e})
}

func (r *Replica) send(to keyspace.NodeID, m Message, out []Action) []Action {
	m.View, m.TS = r.log.View, r.clock
	return append(out, Action{Kind: Send, To: to, Msg: m})
}

func (r *Replica) moved(to keyspace.NodeID, name string, q Req, out []Action) []Action {
	m := Message{Kind: Moved, Name: name, Req: q, Members: r.log.Members}
	if h := r.modes[name]; h != nil {
		m.Mode = h.mode
	}
	return r.send(to, m, out)
}

// grantAll looks at every name after something that held all of them back has ended.
func (r *Replica) grantAll(out []Action) []Action {
	for _, name := range r.names() {
		l := r.locks[name]
		out = r.rest(l, r.tick(l, out))
	}
	return out
}

// names returns the names somebody has or wants, in order.
func (r *Replica) names() []string {
	names := make([]string, 0, len(r.due))
	for _, l := range r.due {
		if l.live() {
			names = append(names, l.name)
		}
	}
	slices.Sort(names)
	return names
}

// elapse does what time alone brings.
func (r *Replica) elapse(out []Action) []Action {
	if r.now >= r.suspendAt {
		r.suspended = r.cfg.mutant != mutantNoSuspend
		r.suspendAt = automaton.Never
	}
	if !r.settled && !r.booting && r.now >= r.settleAt && r.cfg.mutant != mutantNoSettleByTime {
		out = r.settleByTime(out)
	}
	if r.embargo != 0 && r.now >= r.embargo && !r.booting {
		r.embargo = 0
		if r.reportAt != automaton.Never {
			r.reportAt = r.now
		}
		out = r.grantAll(out)
	}
	if r.now >= r.pullAt {
		out = r.pull(out)
	}
	out = r.reportModes(out)
	for len(r.due) > 0 && r.due[0].wake <= r.now {
		l := r.due[0]
		out = r.pay(l, r.tick(l, out))
		r.due.remove(l)
		r.watch(l, r.wakeOf(l))
		out = r.rest(l, out)
	}
	for l := r.idle.first; l != nil && r.now.Sub(l.idleAt) >= r.cfg.TTLMax; l = r.idle.first {
		r.forget(l)
	}
	if r.frozen.until != 0 && r.now >= r.frozen.until { // S2: an empty one is true now
		r.frozen.locks, r.frozen.names = nil, nil
		r.frozen.until = 0
	}
	return out
}

// wakeOf returns when a name is to be looked at again.
func (r *Replica) wakeOf(l *lock) automaton.Instant {
	at := automaton.Never
	switch {
	case l.owned:
		at = l.exp
	case len(l.queue) > 0 && l.delay > r.now:
		at = l.delay
	case len(l.queue) > 0:
		// It waits for the log, or for the embargo of everybody: look again in a while, so that what the log was asked for is
		// asked for again.
		at = r.now.Add(proposeEvery)
	}
	for i := range l.candidates {
		at = min(at, l.candidates[i].until)
	}
	for i := range l.queue {
		if w := &l.queue[i]; w.owed != 0 {
			at = min(at, w.owed)
		}
	}
	return at
}

// watch sees to it that a name is looked at by at.
func (r *Replica) watch(l *lock, at automaton.Instant) {
	if !l.live() {
		return
	}
	r.idle.remove(l)
	if l.at < 0 || at < l.wake {
		r.due.push(l, at)
	}
}

// rest puts a name that nobody has or wants where it can be forgotten.
func (r *Replica) rest(l *lock, out []Action) []Action {
	if !l.live() && !l.idle {
		l.idleAt = r.now
		r.idle.push(l)
	} else if l.live() && l.at < 0 {
		r.watch(l, r.wakeOf(l))
	}
	return out
}

func (r *Replica) insert(name string) *lock {
	if len(r.locks) >= LocksMax {
		if r.idle.first == nil {
			return nil
		}
		r.forget(r.idle.first)
	}
	l := &lock{name: name, rec: r.floor, at: -1}
	r.locks[name] = l
	l.idleAt = r.now
	r.idle.push(l)
	return l
}

// forget drops an idle name: its rec goes into the floor of all names that are not known (section 2.3).
func (r *Replica) forget(l *lock) {
	r.floor = max(r.floor, l.rec)
	if l.saved {
		r.mark(l)
	}
	r.idle.remove(l)
	r.due.remove(l)
	delete(r.locks, l.name)
}

// arm asks for a timer when it has to come earlier than the one asked for. One that comes too early does no harm, so a
// deadline that moves back costs nothing.
func (r *Replica) arm(out []Action) []Action {
	at := min(r.suspendAt, r.pullAt, r.reportAt)
	if len(r.backlog) > 0 {
		at = r.now
	}
	if !r.settled && !r.booting {
		at = min(at, r.settleAt)
	}
	if r.embargo != 0 && !r.booting {
		at = min(at, r.embargo)
	}
	if len(r.due) > 0 {
		at = min(at, r.due[0].wake)
	}
	if r.idle.first != nil {
		at = min(at, r.idle.first.idleAt.Add(r.cfg.TTLMax))
	}
	if r.frozen.until != 0 {
		at = min(at, r.frozen.until)
	}
	if at >= r.armed {
		return out
	}
	r.armed = at
	return append(out, Action{Kind: Arm, At: at})
}

// majorityPrev is m of the view before.
func (r *Replica) majorityPrev() int { return quorum.Majority(len(r.log.Prev)) }

// Info says what this replica knows of a name, for people: not agreed with the others.
type Info struct {
	Owner   Req
	Node    keyspace.NodeID
	Offered Token
	Left    time.Duration // of the owner's lease; 0 when nobody owns it
	Waiters []Req         // oldest first
}

// Info returns what is known of a name.
func (r *Replica) Info(name string, now automaton.Instant) (info Info) {
	l := r.locks[name]
	if l == nil {
		return info
	}
	if l.owned && now < l.exp {
		info = Info{Owner: l.owner.req, Node: l.owner.node, Offered: l.prop, Left: l.exp.Sub(now)}
	}
	for i := range l.queue {
		info.Waiters = append(info.Waiters, l.queue[i].req)
	}
	return info
}

// sortedKeys returns the nodes of a map in order.
func sortedKeys[V any](m map[keyspace.NodeID]V) []keyspace.NodeID {
	return slices.SortedFunc(maps.Keys(m), func(a, b keyspace.NodeID) int { return bytes.Compare(a[:], b[:]) })
}
