package table

import (
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
)

// Limits of a table, each refused with the reason beside it. Together they keep a snapshot well below what an ordering engine
// takes (48 MiB): 16 MiB of names, and some 70 bytes for each owner and waiter.
const (
	LocksMax              = 1 << 16  // locks held or waited for; TooManyLocks
	NameBytesTotalMax     = 16 << 20 // length of their names together; TooManyLocks
	WaitersMax            = 1 << 17  // of all locks; TooManyWaiters
	WaitersPerLockMax     = 1024     // TooManyWaiters
	RequestsPerSessionMax = 1024     // held or waiting; TooManyRequests
	RequestsPerPeerMax    = 1 << 13  // of all sessions of one peer; TooManyRequests
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
}

// Table is the lock table of one group. Not safe for concurrent use.
type Table struct {
	cfg     Config
	now     time.Duration // log time of the last step
	counter uint64        // of the last token given out

	locks map[string]*lock
	// leases holds the locks that have an owner, by (end of lease, name).
	leases leases
	// requests holds, per client, what it owns or waits for. Sum = owners + waiters.
	requests map[Client]map[request]struct{}
	perPeer  map[keyspace.NodeID]int // how many of them are whose
	waiting  int                     // waiters of all locks
	bytes    int                     // length of all names in locks
	// stale holds the locks that wait for Config.Fresh; empty from then on.
	stale map[string]struct{}

	mutant Mutant
}

type request struct {
	name string
	req  uint64
}

// lock exists while it is held or waited for. Invariants: at most one owner; no request occurs twice, as owner or in the
// queue; without an owner somebody waits, and the table is not fresh yet.
type lock struct {
	name  string
	owner *OwnerState
	queue []WaiterState
	at    int // place in leases; -1 without an owner
}

// New returns an empty table. It panics when the TTL bounds are not 0 < TTLMin <= TTLMax: they come from a validated genesis.
func New(cfg Config) *Table {
	invariant.Check(cfg.TTLMin > 0 && cfg.TTLMin <= cfg.TTLMax, "TTL bounds", cfg)
	return &Table{cfg: cfg}
}

// Step executes one command at a log time, after everything that is over by then has ended, and appends what waiters must
// be told to out. Log time never goes back; an earlier one counts as the latest known.
func (t *Table) Step(now time.Duration, by Caller, cmd Command, out []Grant) (Answer, []Grant) {
	out = t.Tick(now, out)
	switch c := cmd.(type) {
	case Acquire:
		return t.acquire(by, c), out
	case Renew:
		return t.renew(by.Client, c), out
	case Release:
		return t.release(by.Client, c, out)
	}
	return Answer{}, out
}

// Tick ends every lease that is over at this log time, by rising (end, name), and grants what thereby falls free.
func (t *Table) Tick(now time.Duration, out []Grant) []Grant {
	t.now = max(t.now, now)
	if len(t.stale) > 0 && t.fresh() {
		for _, name := range slices.Sorted(maps.Keys(t.stale)) {
			out = t.next(t.locks[name], out)
		}
		clear(t.stale)
	}
	for len(t.leases) > 0 && t.leases[0].owner.Ends <= t.now {
		out = t.free(t.leases[0], out)
	}
	return out
}

func (t *Table) fresh() bool { return t.now >= t.cfg.Fresh }

func (t *Table) ttlFits(d time.Duration) bool { return d >= t.cfg.TTLMin && d <= t.cfg.TTLMax }

func (t *Table) acquire(by Caller, a Acquire) Answer {
	l := t.locks[a.Name]
	if l != nil {
		if ans, live := l.state(by.Client, a.Req, t); live {
			return ans
		}
	}
	switch {
	case !t.ttlFits(a.TTL):
		return Answer{Kind: Refused, Reason: BadTTL}
	case t.counter >= CounterMax:
		return Answer{Kind: Refused, Reason: TokensExhausted}
	case a.Try && (l != nil || !t.fresh()):
		ans := Answer{Kind: Locked}
		if l != nil {
			ans.Position = len(l.queue)
		}
		if l != nil && l.owner != nil {
			ans.Holder = t.holder(l.owner)
		}
		return ans
	case len(t.requests[by.Client]) >= RequestsPerSessionMax, t.perPeer[by.Peer] >= RequestsPerPeerMax:
		return Answer{Kind: Refused, Reason: TooManyRequests}
	case l == nil && (len(t.locks) >= LocksMax || t.bytes+len(a.Name) > NameBytesTotalMax):
		return Answer{Kind: Refused, Reason: TooManyLocks}
	case l != nil && (len(l.queue) >= WaitersPerLockMax || t.waiting >= WaitersMax):
		return Answer{Kind: Refused, Reason: TooManyWaiters}
	}
	free := l == nil
	if free {
		l = &lock{name: a.Name, at: -1}
		t.insert(l)
	}
	w := WaiterState{Client: by.Client, Peer: by.Peer, Req: a.Req, TTL: a.TTL, Since: t.now}
	t.remember(by, request{a.Name, a.Req})
	if free && t.fresh() {
		t.grant(l, w, false)
		return Answer{Kind: Granted, Token: t.token(l.owner.Counter)}
	}
	if free {
		t.noteStale(a.Name)
	}
	l.queue = append(l.queue, w)
	t.waiting++
	return Answer{Kind: Queued, Position: len(l.queue) - 1}
}

// state answers the present state of a request that is alive.
func (l *lock) state(c Client, req uint64, t *Table) (ans Answer, live bool) {
	if o := l.owner; o != nil && o.Client == c && o.Req == req {
		return Answer{Kind: Granted, Token: t.token(o.Counter), Waited: o.Waited && !o.Confirmed}, true
	}
	if i := l.place(c, req); i >= 0 {
		return Answer{Kind: Queued, Position: i}, true
	}
	return Answer{}, false
}

// place returns a request's place in the queue, -1 when it has none.
func (l *lock) place(c Client, req uint64) int {
	return slices.IndexFunc(l.queue, func(w WaiterState) bool { return w.Client == c && w.Req == req })
}

// owns reports whether a request, as its client names it, has the lock. Token 0 names whatever the request has.
func (t *Table) owns(l *lock, c Client, req uint64, tok Token) bool {
	if l == nil || l.owner == nil || l.owner.Client != c {
		return false
	}
	if t.mutant == MutantStaleRelease {
		return true
	}
	return l.owner.Req == req && (tok == 0 || tok == t.token(l.owner.Counter))
}

func (t *Table) renew(c Client, r Renew) Answer {
	l := t.locks[r.Name]
	switch {
	case !t.ttlFits(r.TTL):
		return Answer{Kind: Refused, Reason: BadTTL}
	case t.owns(l, c, r.Req, r.Token):
		o := l.owner
		// Renewals may reach the log out of order or with another TTL: what was promised once stays.
		o.Ends = max(o.Ends, later(t.now, t.cfg.Drift.Stretch(r.TTL)))
		o.TTL, o.Confirmed = r.TTL, true
		heap.Fix(&t.leases, l.at)
		return Answer{Kind: Held, Token: t.token(o.Counter)}
	case l != nil && r.Token == 0:
		if i := l.place(c, r.Req); i >= 0 {
			l.queue[i].TTL = r.TTL
			return Answer{Kind: Queued, Position: i}
		}
	}
	return Answer{Kind: NotHeld}
}

func (t *Table) release(c Client, r Release, out []Grant) (Answer, []Grant) {
	l := t.locks[r.Name]
	switch {
	case t.owns(l, c, r.Req, r.Token):
		return Answer{Kind: Released}, t.free(l, out)
	case l != nil && l.place(c, r.Req) >= 0:
		t.leave(l, l.place(c, r.Req))
		return Answer{Kind: Released}, out
	}
	return Answer{Kind: NotHeld}, out
}

// leave takes the i-th waiter out of a queue.
func (t *Table) leave(l *lock, i int) {
	w := l.queue[i]
	l.queue = slices.Delete(l.queue, i, i+1)
	t.waiting--
	t.forget(Caller{w.Client, w.Peer}, request{l.name, w.Req})
	t.dropIdle(l)
}

// free ends the owner's hold and grants the lock to the first waiter.
func (t *Table) free(l *lock, out []Grant) []Grant {
	heap.Remove(&t.leases, l.at)
	t.forget(Caller{l.owner.Client, l.owner.Peer}, request{l.name, l.owner.Req})
	l.owner, l.at = nil, -1
	return t.next(l, out)
}

// next grants a lock without an owner to its first waiter. Out of tokens, the waiters are sent away: their polls find
// nothing, they ask again and are told why.
func (t *Table) next(l *lock, out []Grant) []Grant {
	for len(l.queue) > 0 && t.counter >= CounterMax {
		t.leave(l, len(l.queue)-1)
	}
	if len(l.queue) == 0 {
		t.dropIdle(l)
		return out
	}
	w := l.queue[0]
	l.queue = slices.Delete(l.queue, 0, 1)
	t.waiting--
	t.grant(l, w, true)
	return append(out, t.told(l))
}

func (t *Table) told(l *lock) Grant {
	return Grant{Client: l.owner.Client, Name: l.name, Req: l.owner.Req, Token: t.token(l.owner.Counter)}
}

func (t *Table) grant(l *lock, w WaiterState, waited bool) {
	invariant.Check(l.owner == nil && t.counter < CounterMax && t.fresh(), "one owner per lock, a token for each, no grant too early", l)
	if t.mutant != MutantSameToken || !waited {
		t.counter++
	}
	l.owner = &OwnerState{
		Client: w.Client, Peer: w.Peer, Req: w.Req, Counter: t.counter, TTL: w.TTL, Ends: later(t.now, t.cfg.Drift.Stretch(w.TTL)),
		Waited: waited,
	}
	heap.Push(&t.leases, l)
}

// dropIdle forgets a lock that nobody has or wants. Its next token is above its last since the counter is the table's.
func (t *Table) dropIdle(l *lock) {
	if l.owner == nil && len(l.queue) == 0 {
		delete(t.locks, l.name)
		t.bytes -= len(l.name)
		delete(t.stale, l.name)
	}
}

// Maps are made when they are needed: most of a node's groups have no lock.

func (t *Table) insert(l *lock) {
	if t.locks == nil {
		t.locks = make(map[string]*lock)
	}
	t.locks[l.name] = l
	t.bytes += len(l.name)
}

func (t *Table) noteStale(name string) {
	if t.stale == nil {
		t.stale = make(map[string]struct{})
	}
	t.stale[name] = struct{}{}
}

func (t *Table) remember(by Caller, r request) {
	if t.requests == nil {
		t.requests, t.perPeer = make(map[Client]map[request]struct{}), make(map[keyspace.NodeID]int)
	}
	if t.requests[by.Client] == nil {
		t.requests[by.Client] = make(map[request]struct{})
	}
	t.requests[by.Client][r] = struct{}{}
	t.perPeer[by.Peer]++
}

func (t *Table) forget(by Caller, r request) {
	delete(t.requests[by.Client], r)
	if len(t.requests[by.Client]) == 0 {
		delete(t.requests, by.Client)
	}
	if t.perPeer[by.Peer]--; t.perPeer[by.Peer] == 0 {
		delete(t.perPeer, by.Peer)
	}
}

// SessionEnded takes a client's waiters out of all queues. What it holds runs out by itself: its program may live on. A
// lease that is over at this log time ends at the step that follows, so that no lock goes to a waiter whose session ends at
// the same entry.
func (t *Table) SessionEnded(_ time.Duration, c Client, out []Grant) []Grant {
	for _, r := range slices.SortedFunc(maps.Keys(t.requests[c]), compareRequests) {
		if l := t.locks[r.name]; l.place(c, r.req) >= 0 {
			t.leave(l, l.place(c, r.req))
		}
	}
	return out
}

func compareRequests(a, b request) int {
	return cmp.Or(strings.Compare(a.name, b.name), cmp.Compare(a.req, b.req))
}

// Deadline returns the earliest log time at which Tick has something to do.
func (t *Table) Deadline() (logTime time.Duration, ok bool) {
	logTime = math.MaxInt64
	if len(t.leases) > 0 {
		logTime, ok = t.leases[0].owner.Ends, true
	}
	if len(t.stale) > 0 {
		logTime, ok = min(logTime, t.cfg.Fresh), true
	}
	return logTime, ok
}

// Resend appends every grant that its waiter has not confirmed, by rising name.
func (t *Table) Resend(out []Grant) []Grant {
	first := len(out)
	for _, l := range t.leases {
		if l.owner.Waited && !l.owner.Confirmed {
			out = append(out, t.told(l))
		}
	}
	slices.SortFunc(out[first:], func(a, b Grant) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Info describes a lock as of a log time.
func (t *Table) Info(now time.Duration, name string) Info {
	info := Info{Locks: len(t.locks), Waiting: t.waiting}
	l, ok := t.locks[name]
	if !ok {
		return info
	}
	now = max(now, t.now)
	if l.owner != nil {
		info.Held, info.Holder = true, t.holder(l.owner)
		info.Holder.Left = max(0, l.owner.Ends-now)
	}
	for _, w := range l.queue {
		info.Waiters = append(info.Waiters, Waiter{Client: w.Client, Peer: w.Peer, Req: w.Req, TTL: w.TTL, Since: now - w.Since})
	}
	return info
}

func (t *Table) holder(o *OwnerState) Holder {
	return Holder{
		Client: o.Client, Peer: o.Peer, Req: o.Req, Token: t.token(o.Counter), TTL: o.TTL, Left: o.Ends - t.now, Confirmed: o.Confirmed || !o.Waited,
	}
}

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
	s := State{Now: t.now, Counter: t.counter, Locks: make([]LockState, 0, len(t.locks))}
	for _, name := range slices.Sorted(maps.Keys(t.locks)) {
		l := t.locks[name]
		ls := LockState{Name: name, Queue: slices.Clone(l.queue)}
		if l.owner != nil {
			o := *l.owner
			ls.Owner = &o
		}
		s.Locks = append(s.Locks, ls)
	}
	return s
}

// Restore returns a table in the given state. A state that no table can have matches [ErrState].
func Restore(cfg Config, s State) (*Table, error) {
	t := New(cfg)
	t.now, t.counter = s.Now, s.Counter
	if s.Now < 0 || s.Counter > CounterMax || len(s.Locks) > LocksMax {
		return nil, fmt.Errorf("%w: log time %v, counter %d, %d locks", ErrState, s.Now, s.Counter, len(s.Locks))
	}
	counters := make(map[uint64]struct{})
	for i, ls := range s.Locks {
		if i > 0 && ls.Name <= s.Locks[i-1].Name {
			return nil, fmt.Errorf("%w: lock %q out of order", ErrState, ls.Name)
		}
		if len(ls.Queue) > WaitersPerLockMax || ls.Owner == nil && (len(ls.Queue) == 0 || t.fresh()) {
			return nil, fmt.Errorf("%w: lock %q without an owner, or with %d waiters", ErrState, ls.Name, len(ls.Queue))
		}
		if err := t.restoreLock(ls, counters); err != nil {
			return nil, err
		}
	}
	if t.bytes > NameBytesTotalMax || t.waiting > WaitersMax {
		return nil, fmt.Errorf("%w: %d bytes of names, %d waiters", ErrState, t.bytes, t.waiting)
	}
	return t, nil
}

func (t *Table) restoreLock(ls LockState, counters map[uint64]struct{}) error {
	l := &lock{name: ls.Name, at: -1, queue: slices.Clone(ls.Queue)}
	t.insert(l)
	add := func(by Caller, req uint64) error {
		_, twice := t.requests[by.Client][request{ls.Name, req}]
		if twice || len(t.requests[by.Client]) >= RequestsPerSessionMax || t.perPeer[by.Peer] >= RequestsPerPeerMax {
			return fmt.Errorf("%w: request %d of client %v twice at lock %q, or one too many", ErrState, req, by.Client, ls.Name)
		}
		t.remember(by, request{ls.Name, req})
		return nil
	}
	if ls.Owner == nil {
		t.noteStale(ls.Name)
	} else {
		o := *ls.Owner
		if _, twice := counters[o.Counter]; twice || o.Counter == 0 || o.Counter > t.counter || o.Ends <= t.now || !t.ttlFits(o.TTL) {
			return fmt.Errorf("%w: lock %q: token counter %d of %d, TTL %v, lease to %v at %v",
				ErrState, ls.Name, o.Counter, t.counter, o.TTL, o.Ends, t.now)
		}
		counters[o.Counter] = struct{}{}
		if err := add(Caller{o.Client, o.Peer}, o.Req); err != nil {
			return err
		}
		l.owner = &o
		heap.Push(&t.leases, l)
	}
	for _, w := range l.queue {
		if !t.ttlFits(w.TTL) || w.Since < 0 || w.Since > t.now {
			return fmt.Errorf("%w: waiter of lock %q: TTL %v, since %v at %v", ErrState, ls.Name, w.TTL, w.Since, t.now)
		}
		if err := add(Caller{w.Client, w.Peer}, w.Req); err != nil {
			return err
		}
		t.waiting++
	}
	return nil
}

// leases is a heap of locks by (end of lease, name), a total order: what it pops does not depend on how it was filled.
type leases []*lock

func (h leases) Len() int { return len(h) }
func (h leases) Less(i, j int) bool {
	if a, b := h[i].owner.Ends, h[j].owner.Ends; a != b {
		return a < b
	}
	return h[i].name < h[j].name
}
func (h leases) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = i, j
}
func (h *leases) Push(x any) {
	l := x.(*lock)
	l.at = len(*h)
	*h = append(*h, l)
}
func (h *leases) Pop() any {
	old := *h
	l := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return l
}
