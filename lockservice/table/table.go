package table

import (
	"bytes"
	"cmp"
	"container/heap"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/internal/invariant"
	"latchkey/lockservice/sigma"
)

// Limits of a table, each refused with the reason beside it. Together they keep a snapshot below what an ordering engine
// takes (48 MiB): 16 MiB of names, 4 of values, and up to 120 bytes for each owner and waiter.
const (
	LocksMax              = 1 << 16               // locks held or waited for; TooManyLocks
	NameBytesTotalMax     = 16 << 20              // length of their names together; TooManyLocks
	WaitersMax            = 1 << 17               // of all locks; TooManyWaiters
	RequestsMax           = LocksMax + WaitersMax // owners and waiters of all locks; TooManyWaiters
	WaitersPerLockMax     = 1024                  // TooManyWaiters
	RequestsPerSessionMax = 1024                  // held or waiting; TooManyRequests
	RequestsPerPeerMax    = 1 << 13               // of all sessions of one peer; TooManyRequests
	HoldersPerLockMax     = 1024                  // permits of a semaphore; BadPermits. One more that shares a lock waits
	DelayMax              = time.Minute           // lock delay; BadDelay
	ValueBytesMax         = 512                   // of one request; TooManyValues
	ValueBytesTotalMax    = 4 << 20               // of all; TooManyValues
	BreaksMax             = 64                    // that are remembered; the oldest is forgotten
)

const (
	// ClaimWithin bounds how long a grant that came out of the queue waits for its waiter to confirm it. Until then nobody holds by it, so it
	// may end at any time. The push of the grant is repeated every second meanwhile.
	ClaimWithin = 3 * time.Second
	// silentFor is how much longer than half of the TTL that it asks for a waiter may be unheard of when its turn comes. Those that live ask where
	// they stand after a third of it at the latest.
	silentFor = 2 * time.Second
)

// ErrState is matched by every error about a [State] that no table can have.
var ErrState = errors.New("table: impossible state")

// Config fixes what all replicas of a group have in common.
type Config struct {
	Drift      automaton.Drift
	OverlayGen uint8
	GroupGen   uint16
	TTLMin     time.Duration // above zero
	TTLMax     time.Duration
	// Fresh is the log time before which nothing is granted: zero in the first generation of a group, stretch(TTLMax) in
	// every later one, whose predecessor may have granted leases nobody here knows of.
	Fresh time.Duration
	// First is what the counter begins above: the generation of a key ([CounterMax]).
	First uint64
	// Voters says that the group's voters lock by protocol sigma whatever the table does not, once there is a view ([Table.View]).
	Voters bool
}

// Table is the lock table of one group. Not safe for concurrent use.
type Table struct {
	cfg     Config
	now     time.Duration // log time of the last step
	counter uint64        // of the last token given out

	locks map[string]*lock
	// due holds what time will bring: the end of every lease, and the moments at which locks are to be settled.
	due dues
	// requests holds, per client, what it owns or waits for. Sum = owners + waiters.
	requests map[Client]map[request]struct{}
	perPeer  map[keyspace.NodeID]int // how many of them are whose
	owners   int                     // of all locks
	waiting  int                     // waiters of all locks
	bytes    int                     // length of all names in locks
	values   int                     // length of all values of owners and waiters
	breaks   []BreakState            // the latest, the oldest first

	// need is how many voters of the view have to say who may hold a name before the table locks it (M3). 0: there is no view, and no
	// other protocol.
	need    int
	turns   int  // of all locks
	noted   bool // changed is kept
	changed map[string]struct{}

	mutant Mutant
}

type request struct {
	name string
	req  uint64
}

// lock exists while it is held, waited for, or not to be granted yet. Invariants: no request occurs twice, as owner or in the
// queue; either one owner, or several that all share, with one token, or up to permits of a semaphore, each with its own; unless
// wake is set, the head of the queue cannot be granted.
type lock struct {
	name    string
	permits int // of a semaphore; 0 for a lock
	owners  []*owner
	queue   []WaiterState
	// hand is what is known of those who may hold it by protocol sigma; nil once nobody may. As long as there is one nobody else is
	// granted it.
	hand *handover
	// turns has the order of those who waited at the voters; turnsDue is when it is forgotten, nil while more voters are to report.
	turns    []Turn
	turnsDue *due
	// away: another group's table has it, and voters keep their hands off it.
	away bool
	// wake is when the lock is to be settled; until then nobody is granted it. Nil: it is settled. It stands at [unsettled] when
	// a session's end has made room: the locks of other sessions that end at the same entry are to leave first.
	wake *due
}

// unsettled is earlier than every log time at which a step is taken.
const unsettled time.Duration = 0

type owner struct {
	OwnerState
	due due
}

// New returns an empty table. It panics when the TTL bounds are not 0 < TTLMin <= TTLMax: they come from a validated genesis.
func New(cfg Config) *Table {
	invariant.Check(cfg.TTLMin > 0 && cfg.TTLMin <= cfg.TTLMax, "TTL bounds", cfg)
	return &Table{cfg: cfg, counter: cfg.First}
}

// Step executes one command at a log time, after everything that is over by then has ended, and appends what waiters must
// be told to out. Log time never goes back; an earlier one counts as the latest known.
func (t *Table) Step(now time.Duration, by Caller, cmd Command, out []Grant) (Answer, []Grant) {
	out = t.Tick(now, out)
	switch c := cmd.(type) {
	case Acquire:
		return t.acquire(by, c, out)
	case Renew:
		return t.renew(by.Client, c), out
	case Release:
		return t.release(by.Client, c, out)
	case Break:
		return t.breakHold(by, c, out)
	}
	return Answer{}, out
}

// Tick ends every lease that is over at this log time, by rising (end, name), and grants what thereby falls free.
func (t *Table) Tick(now time.Duration, out []Grant) []Grant {
	t.now = max(t.now, now)
	for len(t.due) > 0 && t.due[0].when <= t.now {
		switch d := t.due[0]; {
		case d.owner != nil:
			out = t.expire(d.lock, d.owner, out)
		case d.hand:
			out = t.outlived(d.lock, out)
		case d.turns:
			out = t.turnsOver(d.lock, out)
		default:
			out = t.woken(d.lock, out)
		}
	}
	return out
}

func (t *Table) fresh() bool { return t.now >= t.cfg.Fresh }

func (t *Table) ttlFits(d time.Duration) bool { return d >= t.cfg.TTLMin && d <= t.cfg.TTLMax }

// fits reports why no table takes a request like this, zero when one may.
func (t *Table) fits(ttl, delay time.Duration, shared bool, permits, value int) Reason {
	switch {
	case !t.ttlFits(ttl):
		return BadTTL
	case delay < 0 || delay > DelayMax:
		return BadDelay
	case permits < 0 || permits > HoldersPerLockMax || shared && permits > 0:
		return BadPermits
	case value > ValueBytesMax:
		return BadValue
	}
	return 0
}

func (t *Table) acquire(by Caller, a Acquire, out []Grant) (Answer, []Grant) {
	l := t.locks[a.Name]
	if l != nil {
		if ans, live := l.state(by.Client, a.Req, t); live {
			return ans, out
		}
	}
	w := WaiterState{
		Client: by.Client, Peer: by.Peer, Req: a.Req, TTL: a.TTL, Since: t.now, Shared: a.Shared, Delay: a.Delay, Value: a.Value,
		Wish: a.Wish, Held: a.Held, Heard: t.now,
	}
	reason := t.fits(a.TTL, a.Delay, a.Shared, a.Permits, len(a.Value))
	elsewhere := l == nil && t.need > 0
	if l != nil && l.idle() {
		l.permits = a.Permits
	}
	handing := elsewhere || l != nil && l.hand != nil
	w.Try = a.Try && handing
	free := l == nil && t.fresh() && !elsewhere || l != nil && len(l.queue) == 0 && t.admits(l, w)
	if t.mutant == MutantOvertake && l != nil && a.Shared {
		free = t.admits(l, w)
	}
	no := func(r Reason) (Answer, []Grant) { return Answer{Kind: Refused, Reason: r}, out }
	switch {
	case reason != 0:
		return no(reason)
	case elsewhere && a.Wish != (sigma.Req{}): // it has heard of a mode that is over (M7)
		return Answer{Kind: Elsewhere}, out
	case a.Held != 0 && (l == nil || !l.hand.mayClaim(by, a.Wish) || !t.offered(a.Held)): // M3
		return Answer{Kind: NotHeld}, out
	case a.Held == 0 && l != nil && l.permits != a.Permits:
		return Answer{Kind: Refused, Reason: BadMode, Permits: l.permits}, t.disclaim(l, by, a.Wish, out)
	case t.exhausted():
		return no(TokensExhausted)
	case a.Try && !free && !handing:
		ans := Answer{Kind: Locked}
		if l != nil {
			ans.Position = len(l.queue)
		}
		if l != nil && len(l.owners) > 0 {
			ans.Holder = t.holder(l.owners[0])
		}
		return ans, out
	case len(t.requests[by.Client]) >= RequestsPerSessionMax, t.perPeer[by.Peer] >= RequestsPerPeerMax:
		return no(TooManyRequests)
	case l == nil && !t.roomForName(a.Name):
		return no(TooManyLocks)
	case !free && l != nil && (len(l.queue) >= WaitersPerLockMax || t.waiting >= WaitersMax), t.owners+t.waiting >= RequestsMax:
		return no(TooManyWaiters)
	case t.values+len(a.Value) > ValueBytesTotalMax:
		return no(TooManyValues)
	}
	if l == nil {
		l = t.insert(a.Name, a.Permits)
		switch {
		case elsewhere: // SetMode (M1)
			t.handOver(l)
		case !t.fresh():
			t.wakeAt(l, t.cfg.Fresh)
		}
	}
	t.remember(by, request{a.Name, a.Req}, a.Value)
	turn := l.come(&w)
	if free {
		o := t.grant(l, w, false)
		return Answer{Kind: Granted, Token: t.token(o.Counter)}, out
	}
	l.queue = append(l.queue, w)
	t.waiting++
	if turn {
		l.inTurn()
	}
	if a.Wish != (sigma.Req{}) {
		out = t.resolve(l, out)
	}
	ans, live := l.state(by.Client, a.Req, t)
	if !live {
		ans = Answer{Kind: NotHeld}
	}
	return ans, out
}

func (t *Table) roomForName(name string) bool {
	return len(t.locks) < LocksMax && t.bytes+len(name) <= NameBytesTotalMax
}

// admits reports whether a lock has room for a request beside its owners. Those who wait before it are not its business.
func (t *Table) admits(l *lock, w WaiterState) bool {
	n := len(l.owners)
	switch {
	case l.wake != nil, l.hand != nil, l.away, l.awaited(&w) && t.mutant != MutantImpatientTurns:
		return false
	case l.permits > 0:
		return n < l.permits || t.mutant == MutantExtraPermit && n == l.permits
	case n == 0:
		return true
	case t.mutant == MutantMixed && w.Shared, t.mutant == MutantImpatient && l.owners[0].Shared:
		return true
	}
	return w.Shared && l.owners[0].Shared && n < HoldersPerLockMax
}

// state answers the present state of a request that is alive.
func (l *lock) state(c Client, req uint64, t *Table) (ans Answer, live bool) {
	for _, o := range l.owners {
		if o.Client == c && o.Req == req {
			return Answer{Kind: Granted, Token: t.token(o.Counter), Waited: o.unclaimed()}, true
		}
	}
	if i := l.place(c, req); i >= 0 {
		l.queue[i].Heard = t.now
		return Answer{Kind: Queued, Position: i}, true
	}
	return Answer{}, false
}

// place returns a request's place in the queue, -1 when it has none.
func (l *lock) place(c Client, req uint64) int {
	return slices.IndexFunc(l.queue, func(w WaiterState) bool { return w.Client == c && w.Req == req })
}

// owned returns what a request, as its client names it, owns of a lock; nil when that is nothing. Token 0 names whatever the
// request has.
func (t *Table) owned(l *lock, c Client, req uint64, tok Token) *owner {
	if l == nil {
		return nil
	}
	for _, o := range l.owners {
		if o.Client == c && (t.mutant == MutantStaleRelease || o.Req == req && (tok == 0 || tok == t.token(o.Counter))) {
			return o
		}
	}
	return nil
}

func (t *Table) renew(c Client, r Renew) Answer {
	l := t.locks[r.Name]
	o := t.owned(l, c, r.Req, r.Token)
	switch {
	case !t.ttlFits(r.TTL):
		return Answer{Kind: Refused, Reason: BadTTL}
	case o != nil:
		// Renewals may reach the log out of order or with another TTL: what was promised once stays.
		o.Ends = max(o.Ends, later(t.now, t.cfg.Drift.Stretch(r.TTL)))
		o.TTL, o.Confirmed = r.TTL, true
		o.due.when = o.Ends
		heap.Fix(&t.due, o.due.at)
		return Answer{Kind: Held, Token: t.token(o.Counter)}
	case l != nil && r.Token == 0:
		if i := l.place(c, r.Req); i >= 0 {
			l.queue[i].TTL, l.queue[i].Heard = r.TTL, t.now
			return Answer{Kind: Queued, Position: i}
		}
	}
	return Answer{Kind: NotHeld}
}

func (t *Table) release(c Client, r Release, out []Grant) (Answer, []Grant) {
	l := t.locks[r.Name]
	if o := t.owned(l, c, r.Req, r.Token); o != nil {
		t.free(l, o)
		return Answer{Kind: Released}, t.settle(l, out)
	}
	if l != nil {
		if i := l.place(c, r.Req); i >= 0 {
			w := t.leave(l, i)
			if l.hand != nil && w.Wish != (sigma.Req{}) { // also the holder's own: it has given the lock back
				l.hand.says(w.Wish, w.Peer)
				return Answer{Kind: Released}, t.resolve(l, out)
			}
			return Answer{Kind: Released}, t.settle(l, out) // who stood behind it may share what is held
		}
	}
	return Answer{Kind: NotHeld}, out
}

// breakHold ends every hold of a lock that has this token. Its waiters see it as the end of a lease.
func (t *Table) breakHold(by Caller, b Break, out []Grant) (Answer, []Grant) {
	l := t.locks[b.Name]
	switch {
	case l == nil && t.need > 0 && !t.roomForName(b.Name):
		return Answer{Kind: Refused, Reason: TooManyLocks}, out
	case l == nil && t.need > 0: // who has it by protocol sigma is ended where the table locks it
		l = t.insert(b.Name, 0)
		t.handOver(l)
		return Answer{Kind: Queued}, out
	case l == nil:
		return Answer{Kind: NotHeld}, out
	case l.hand != nil && l.hand.Pending:
		return Answer{Kind: Queued}, out
	case l.hand != nil:
		return t.breakCandidate(l, by, b, out)
	}
	var ended []*owner
	for _, o := range l.owners {
		if b.Token != 0 && t.token(o.Counter) == b.Token {
			ended = append(ended, o)
		}
	}
	if len(ended) == 0 {
		return Answer{Kind: NotHeld}, out
	}
	first := t.holder(ended[0])
	t.noteBreak(BreakState{
		Name: b.Name, Token: b.Token, Holder: Caller{first.Session, first.Peer}, Holders: len(ended), By: by, Now: t.now, At: b.At,
	})
	var delay time.Duration
	for _, o := range ended {
		delay = max(delay, o.Delay)
		t.free(l, o)
	}
	t.delay(l, delay)
	return Answer{Kind: Broken, Token: b.Token, Holder: first}, t.settle(l, out)
}

func (t *Table) noteBreak(b BreakState) {
	if len(t.breaks) >= BreaksMax {
		t.breaks = slices.Delete(t.breaks, 0, 1)
	}
	t.breaks = append(t.breaks, b)
}

// leave takes the i-th waiter out of a queue. The lock is to be settled then.
func (t *Table) leave(l *lock, i int) WaiterState {
	w := l.queue[i]
	l.queue = slices.Delete(l.queue, i, i+1)
	t.waiting--
	t.forget(Caller{w.Client, w.Peer}, request{l.name, w.Req}, w.Value)
	return w
}

// expire ends an owner's hold because its lease is over. Who has not even taken up its grant was no holder: no lock delay follows, and what else
// its session wants of the lock, and has not asked for since, waits behind all others, so that a peer that is dead does not keep them waiting once
// for each of its waiters.
func (t *Table) expire(l *lock, o *owner, out []Grant) []Grant {
	t.free(l, o)
	if !o.unclaimed() {
		t.delay(l, o.Delay)
	} else {
		granted := o.Ends - t.claimWithin(o.TTL)
		slices.SortStableFunc(l.queue, func(a, b WaiterState) int { return cmp.Compare(a.lags(o.Client, granted), b.lags(o.Client, granted)) })
	}
	return t.settle(l, out)
}

// unclaimed reports whether an owner came out of the queue and has not confirmed that it is there: it holds nothing yet.
func (o *owner) unclaimed() bool { return o.Waited && !o.Confirmed }

// lags is 1 for a waiter of a session that has not been heard of since an instant.
func (w *WaiterState) lags(c Client, since time.Duration) int {
	if w.Client == c && w.Heard <= since {
		return 1
	}
	return 0
}

// silent reports whether a waiter is taken to be gone: it has not asked where it stands for too long.
func (t *Table) silent(w *WaiterState) bool {
	return t.now-w.Heard > w.TTL/2+silentFor
}

// claimWithin is how long a grant out of the queue waits for its waiter.
func (t *Table) claimWithin(ttl time.Duration) time.Duration {
	return min(t.cfg.Drift.Stretch(ttl), ClaimWithin)
}

// delay keeps a lock from being granted for a while from now on.
func (t *Table) delay(l *lock, d time.Duration) {
	if d > 0 {
		t.wakeAt(l, later(t.now, d))
	}
}

// wakeAt has a lock settled at a log time and not before. A later time that is set already stays.
func (t *Table) wakeAt(l *lock, when time.Duration) {
	if l.wake == nil {
		l.wake = &due{when: when, lock: l}
		heap.Push(&t.due, l.wake)
	} else if when > l.wake.when {
		l.wake.when = when
		heap.Fix(&t.due, l.wake.at)
	}
}

// woken settles a lock whose time has come.
func (t *Table) woken(l *lock, out []Grant) []Grant {
	heap.Remove(&t.due, l.wake.at)
	l.wake = nil
	return t.resolve(l, out)
}

// free ends an owner's hold. The lock is to be settled then.
func (t *Table) free(l *lock, o *owner) {
	heap.Remove(&t.due, o.due.at)
	t.forget(Caller{o.Client, o.Peer}, request{l.name, o.Req}, o.Value)
	i := slices.Index(l.owners, o)
	l.owners = slices.Delete(l.owners, i, i+1)
	t.owners--
}

// settle grants a lock to as many waiters as have room, the first first: none is overtaken. Out of tokens, the waiters are sent
// away: their polls find nothing, they ask again and are told why.
func (t *Table) settle(l *lock, out []Grant) []Grant {
	for len(l.queue) > 0 && t.exhausted() {
		t.leave(l, len(l.queue)-1)
	}
	for len(l.queue) > 0 && t.admits(l, l.queue[0]) && !t.exhausted() {
		w := l.queue[0]
		t.leave(l, 0)
		if t.silent(&w) {
			continue // it asks anew, should it live
		}
		t.remember(Caller{w.Client, w.Peer}, request{l.name, w.Req}, w.Value)
		out = append(out, t.told(l, t.grant(l, w, true)))
	}
	if l.hand == nil { // those who do not wait have waited for the mode only
		for i := len(l.queue) - 1; i >= 0; i-- {
			if l.queue[i].Try {
				t.leave(l, i)
			}
		}
	}
	t.dropIdle(l)
	return out
}

func (t *Table) told(l *lock, o *owner) Grant {
	return Grant{Client: o.Client, Name: l.name, Req: o.Req, Token: t.token(o.Counter)}
}

// grant makes a request an owner. Who joins others that share gets their token: a resource that remembers the highest one then
// takes what each of them sends, and nothing of theirs once somebody else has had the lock.
func (t *Table) grant(l *lock, w WaiterState, waited bool) *owner {
	invariant.Check(t.admits(l, w) && !t.exhausted() && t.fresh(), "room for the owner, a token for it, no grant too early", l)
	counter := t.counter
	switch {
	case l.permits == 0 && w.Shared && len(l.owners) > 0:
		counter = l.owners[0].Counter
	case t.mutant != MutantSameToken || !waited:
		t.counter++
		counter = t.counter
	}
	o := &owner{OwnerState: OwnerState{
		Client: w.Client, Peer: w.Peer, Req: w.Req, Counter: counter, TTL: w.TTL, Ends: later(t.now, t.cfg.Drift.Stretch(w.TTL)),
		Waited: waited, Shared: w.Shared, Delay: w.Delay, Value: w.Value, Wish: w.Wish,
	}}
	if waited {
		o.Ends = later(t.now, t.claimWithin(w.TTL))
	}
	t.own(l, o)
	return o
}

func (t *Table) own(l *lock, o *owner) {
	o.due = due{when: o.Ends, lock: l, owner: o}
	heap.Push(&t.due, &o.due)
	l.owners = append(l.owners, o)
	t.owners++
}

// dropIdle forgets a lock that nobody has or wants. Its next token is above its last since the counter is the table's. Where voters
// lock the names that the table does not have, it stays until the view ends (M6).
func (t *Table) dropIdle(l *lock) {
	switch {
	case t.need > 0:
		if t.mutant == MutantBackAtOnce && l.idle() {
			t.note(l.name)
			t.drop(l)
		}
	case l.idle(), len(l.owners) == 0 && len(l.queue) == 0 && !t.fresh() && !l.away:
		t.drop(l)
	}
}

// idle reports whether nobody has the lock, may have it or wants it.
func (l *lock) idle() bool {
	return len(l.owners) == 0 && len(l.queue) == 0 && l.hand == nil && !l.away && (l.wake == nil || l.wake.when <= unsettled)
}

func (t *Table) drop(l *lock) {
	if l.wake != nil {
		heap.Remove(&t.due, l.wake.at)
	}
	l.setHand(t, nil)
	t.endTurns(l)
	delete(t.locks, l.name)
	t.bytes -= len(l.name)
}

// Maps are made when they are needed: most of a node's groups have no lock.

func (t *Table) insert(name string, permits int) *lock {
	if t.locks == nil {
		t.locks = make(map[string]*lock)
	}
	l := &lock{name: name, permits: permits}
	t.locks[name] = l
	t.bytes += len(name)
	return l
}

func (t *Table) remember(by Caller, r request, value string) {
	if t.requests == nil {
		t.requests, t.perPeer = make(map[Client]map[request]struct{}), make(map[keyspace.NodeID]int)
	}
	if t.requests[by.Client] == nil {
		t.requests[by.Client] = make(map[request]struct{})
	}
	t.requests[by.Client][r] = struct{}{}
	t.perPeer[by.Peer]++
	t.values += len(value)
}

func (t *Table) forget(by Caller, r request, value string) {
	delete(t.requests[by.Client], r)
	if len(t.requests[by.Client]) == 0 {
		delete(t.requests, by.Client)
	}
	if t.perPeer[by.Peer]--; t.perPeer[by.Peer] == 0 {
		delete(t.perPeer, by.Peer)
	}
	t.values -= len(value)
}

// SessionEnded takes a client's waiters out of all queues. What it holds runs out by itself: its program may live on. Who
// stood behind them and has room now is granted by the step that follows, as is what a lease leaves that is over at this log time,
// so that no lock goes to a waiter whose session ends at the same entry.
func (t *Table) SessionEnded(_ time.Duration, c Client, out []Grant) []Grant {
	for _, r := range slices.SortedFunc(maps.Keys(t.requests[c]), compareRequests) {
		l := t.locks[r.name]
		if i := l.place(c, r.req); i >= 0 {
			if w := t.leave(l, i); l.hand != nil && w.Wish != (sigma.Req{}) && w.Held == 0 {
				l.hand.says(w.Wish, w.Peer) // one that claims may live on, and believe in its lease
				t.watch(l)
				t.wakeAt(l, unsettled)
			}
			if t.dropIdle(l); len(l.queue) > 0 && t.admits(l, l.queue[0]) {
				t.wakeAt(l, unsettled)
			}
		}
	}
	return out
}

func compareRequests(a, b request) int {
	return cmp.Or(strings.Compare(a.name, b.name), cmp.Compare(a.req, b.req))
}

// Deadline returns the earliest log time at which Tick has something to do.
func (t *Table) Deadline() (logTime time.Duration, ok bool) {
	if len(t.due) == 0 {
		return math.MaxInt64, false
	}
	return t.due[0].when, true
}

// Resend appends every grant that its waiter has not confirmed, by rising name, in the order of the grants.
func (t *Table) Resend(out []Grant) []Grant {
	var names []string
	for _, d := range t.due {
		if d.owner != nil && d.owner.unclaimed() {
			names = append(names, d.lock.name)
		}
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		l := t.locks[name]
		for _, o := range l.owners {
			if o.unclaimed() {
				out = append(out, t.told(l, o))
			}
		}
	}
	return out
}

// Info describes a lock as of a log time.
func (t *Table) Info(now time.Duration, name string) Info {
	info := Info{Locks: len(t.locks), Waiting: t.waiting}
	for _, b := range t.breaks {
		if b.Name == name {
			info.Breaks = append(info.Breaks, b)
		}
	}
	l, ok := t.locks[name]
	if !ok && t.need == 0 {
		info.Mode = sigma.ModeGroup
	}
	if !ok {
		return info
	}
	now = max(now, t.now)
	info.Permits = l.permits
	info.Mode = l.mode()
	if l.hand != nil {
		info.Candidates = slices.Clone(l.hand.Candidates)
	}
	for _, o := range l.owners {
		h := t.holder(o)
		h.Left = max(0, o.Ends-now)
		info.Holders = append(info.Holders, h)
	}
	if len(info.Holders) > 0 {
		info.Held, info.Holder = true, info.Holders[0]
	}
	if l.wake != nil {
		info.Delay = max(0, l.wake.when-now)
	}
	for _, w := range l.queue {
		info.Waiters = append(info.Waiters, Waiter{
			Client: w.Client, Session: sessionOf(w.Client, w.Wish), Peer: w.Peer, Req: w.Req, TTL: w.TTL, Since: now - w.Since, Shared: w.Shared,
		})
	}
	return info
}

func (t *Table) holder(o *owner) Holder {
	return Holder{
		Client: o.Client, Session: sessionOf(o.Client, o.Wish), Peer: o.Peer, Req: o.Req, Token: t.token(o.Counter), TTL: o.TTL, Left: o.Ends - t.now,
		Confirmed: o.Confirmed || !o.Waited, Shared: o.Shared, Value: o.Value,
	}
}

// sessionOf returns the session that people know a client's request by: one that has come from protocol sigma keeps the name that it had there.
func sessionOf(c Client, wish sigma.Req) Client {
	if wish != (sigma.Req{}) {
		return Client(wish.Session)
	}
	return c
}

// exhausted reports whether the last token of this generation of the key has been given out.
func (t *Table) exhausted() bool { return t.counter&CounterMax == CounterMax }

// Top returns the highest token that is spoken for: given out by the table, or left to others by Reserve.
func (t *Table) Top() Token { return t.token(t.counter) }

// Reserve leaves the next n tokens to others. The table gives out those above.
func (t *Table) Reserve(n uint64) { t.counter += n }

// token builds a token of this generation.
func (t *Table) token(counter uint64) Token {
	return Token(uint64(t.cfg.OverlayGen)<<56 | uint64(t.cfg.GroupGen)<<counterBits | counter)
}

// later adds without wrapping.
func later(t, d time.Duration) time.Duration {
	if s := t + d; s >= t {
		return s
	}
	return math.MaxInt64
}

// State returns the whole state. It shares nothing with the table.
func (t *Table) State() State {
	s := State{Now: t.now, Counter: t.counter, Need: t.need, Locks: make([]LockState, 0, len(t.locks)), Breaks: slices.Clone(t.breaks)}
	for _, name := range slices.Sorted(maps.Keys(t.locks)) {
		s.Locks = append(s.Locks, t.locks[name].stored())
	}
	return s
}

// stored returns a lock as a [State] has it.
func (l *lock) stored() LockState {
	ls := LockState{Name: l.name, Permits: l.permits, Queue: slices.Clone(l.queue), Away: l.away, Turns: slices.Clone(l.turns)}
	if l.turnsDue != nil {
		ls.TurnsUntil = l.turnsDue.when
	}
	if l.hand != nil {
		h := l.hand.HandoverState.clone()
		ls.Hand = &h
	}
	for _, o := range l.owners {
		ls.Owners = append(ls.Owners, o.OwnerState)
	}
	if l.wake != nil {
		ls.Until = l.wake.when // 0 of one that is unsettled, which Restore sees by its queue
	}
	return ls
}

// Restore returns a table in the given state. A state that no table can have matches [ErrState].
func Restore(cfg Config, s State) (*Table, error) {
	t := New(cfg)
	t.now, t.counter, t.need, t.breaks = s.Now, s.Counter, s.Need, slices.Clone(s.Breaks)
	if s.Now < 0 || s.Need < 0 || s.Need > 0 && !t.fresh() || s.Counter > lowMax || len(s.Locks) > LocksMax || len(s.Breaks) > BreaksMax {
		return nil, fmt.Errorf("%w: log time %v, counter %d, %d locks, %d breaks", ErrState, s.Now, s.Counter, len(s.Locks), len(s.Breaks))
	}
	for _, b := range s.Breaks {
		if b.Token == 0 || b.Holders < 1 || b.Holders > HoldersPerLockMax || b.Now < 0 || b.Now > s.Now {
			return nil, fmt.Errorf("%w: lock %q broken of %d holders with token %d at %v", ErrState, b.Name, b.Holders, b.Token, b.Now)
		}
	}
	for i, ls := range s.Locks {
		if i > 0 && ls.Name <= s.Locks[i-1].Name {
			return nil, fmt.Errorf("%w: lock %q out of order", ErrState, ls.Name)
		}
		if err := t.restoreLock(ls); err != nil {
			return nil, err
		}
	}
	if t.bytes > NameBytesTotalMax || t.waiting > WaitersMax || t.owners+t.waiting > RequestsMax || t.values > ValueBytesTotalMax {
		return nil, fmt.Errorf("%w: %d bytes of names, %d of values, %d owners, %d waiters", ErrState, t.bytes, t.values, t.owners, t.waiting)
	}
	return t, nil
}

func (t *Table) restoreLock(ls LockState) error {
	l := t.insert(ls.Name, ls.Permits)
	l.queue = slices.Clone(ls.Queue)
	until := ls.Until
	if !t.fresh() {
		until = max(until, t.cfg.Fresh) // which the first version of snapshots left out
	}
	// In this order: what follows relies on few owners and waiters.
	if len(ls.Queue) > WaitersPerLockMax || ls.Permits < 0 || len(ls.Owners) > HoldersPerLockMax || ls.Permits > HoldersPerLockMax ||
		len(ls.Owners) == 0 && len(ls.Queue) == 0 && until == 0 && t.need == 0 && !(ls.Away && t.cfg.Voters) && ls.Hand == nil {
		return fmt.Errorf("%w: lock %q of %d permits with %d owners, %d waiters", ErrState, ls.Name, ls.Permits, len(ls.Owners), len(ls.Queue))
	}
	if ls.Until < 0 || ls.Until > 0 && (ls.Until <= t.now || ls.Until > max(t.cfg.Fresh, later(t.now, max(DelayMax, t.cfg.Drift.Stretch(t.cfg.Drift.Stretch(t.cfg.TTLMax)))))) {
		return fmt.Errorf("%w: lock %q granted to nobody until %v at %v", ErrState, ls.Name, ls.Until, t.now)
	}
	if l.away = ls.Away; l.away && (len(ls.Owners) > 0 || len(ls.Queue) > 0 || ls.Hand != nil) {
		return fmt.Errorf("%w: lock %q is of another group and in use here", ErrState, ls.Name)
	}
	if err := t.restoreHand(l, ls); err != nil {
		return err
	}
	if err := t.restoreTurns(l, ls); err != nil {
		return err
	}
	add := func(by Caller, req uint64, value string) error {
		_, twice := t.requests[by.Client][request{ls.Name, req}]
		if twice || len(t.requests[by.Client]) >= RequestsPerSessionMax || t.perPeer[by.Peer] >= RequestsPerPeerMax {
			return fmt.Errorf("%w: request %d of client %v twice at lock %q, or one too many", ErrState, req, by.Client, ls.Name)
		}
		t.remember(by, request{ls.Name, req}, value)
		return nil
	}
	counters := make(map[uint64]struct{}) // two locks may have one, when one of them was taken over
	for i := range ls.Owners {
		o := &owner{OwnerState: ls.Owners[i]}
		joins := i > 0 && ls.Permits == 0
		_, twice := counters[o.Counter]
		if joins {
			twice = !o.Shared || !l.owners[0].Shared || o.Counter != l.owners[0].Counter
		}
		if twice || ls.Permits > 0 && i >= ls.Permits || o.Counter == 0 || o.Counter > t.counter || o.Ends <= t.now ||
			t.fits(o.TTL, o.Delay, o.Shared, ls.Permits, len(o.Value)) != 0 || !t.fresh() {
			return fmt.Errorf("%w: lock %q: token counter %d of %d, TTL %v, lease to %v at %v",
				ErrState, ls.Name, o.Counter, t.counter, o.TTL, o.Ends, t.now)
		}
		counters[o.Counter] = struct{}{}
		if err := add(Caller{o.Client, o.Peer}, o.Req, o.Value); err != nil {
			return err
		}
		t.own(l, o)
	}
	for _, w := range l.queue {
		if t.fits(w.TTL, w.Delay, w.Shared, ls.Permits, len(w.Value)) != 0 || w.Since < 0 || w.Since > t.now || w.Heard > t.now || l.hand == nil && (w.Held != 0 || w.Try) || w.Held != 0 && !t.offered(w.Held) {
			return fmt.Errorf("%w: waiter of lock %q: TTL %v, since %v at %v", ErrState, ls.Name, w.TTL, w.Since, t.now)
		}
		if err := add(Caller{w.Client, w.Peer}, w.Req, w.Value); err != nil {
			return err
		}
		t.waiting++
	}
	switch {
	case until > 0:
		t.wakeAt(l, until)
	case len(l.queue) > 0 && t.admits(l, l.queue[0]):
		t.wakeAt(l, unsettled)
	}
	return nil
}

// due is something that time will bring: the end of an owner's lease, or, without an owner, the moment at which a lock is to be
// settled.
type due struct {
	when  time.Duration
	lock  *lock
	owner *owner
	hand  bool // the end of a candidate's lease
	turns bool // turns are forgotten
	at    int  // place in the heap
}

// dues is a heap by (when, name of the lock), locks to be settled first, then by the owner's request: a total order, so that what it
// pops does not depend on how it was filled.
type dues []*due

func (h dues) Len() int { return len(h) }
func (h dues) Less(i, j int) bool {
	a, b := h[i], h[j]
	switch {
	case a.when != b.when:
		return a.when < b.when
	case a.lock != b.lock:
		return a.lock.name < b.lock.name
	case a.owner == nil || b.owner == nil:
		return a.rank() < b.rank()
	}
	return cmp.Or(cmp.Compare(a.owner.Counter, b.owner.Counter), bytes.Compare(a.owner.Client[:], b.owner.Client[:]), cmp.Compare(a.owner.Req, b.owner.Req)) < 0
}

func (d *due) rank() int {
	switch {
	case d.owner != nil:
		return 2
	case d.hand:
		return 1
	case d.turns:
		return 3
	}
	return 0
}

func (h dues) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = i, j
}
func (h *dues) Push(x any) {
	d := x.(*due)
	d.at = len(*h)
	*h = append(*h, d)
}
func (h *dues) Pop() any {
	old := *h
	d := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return d
}
