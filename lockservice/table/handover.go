package table

import (
	"container/heap"
	"fmt"
	"maps"
	"slices"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/invariant"
	"latchkey/lockservice/sigma"
)

// One name, one mode (lock-protocols.md section 10.1). In a group whose voters lock by protocol sigma, the table has only the names
// that it locks itself, also those nobody has or wants; all others are the voters'. A request of the table's own for one of those makes
// the table begin a handover (M1): the voters seal the name and report who may hold it (M2); with the reports of a majority the name is
// the table's (M3), and each named one is a candidate until its lease is over or it speaks up. Names go back when a view ends (M6).

// Limits of a handover.
const (
	SaidMax       = 64 // requests that are known to hold nothing; the oldest is forgotten, and its lease waited for
	CandidatesMax = 64 // of one lock; for further ones the lock waits until their leases are over
)

// handover is a [HandoverState] with the end of the first candidate's lease.
type handover struct {
	HandoverState
	due *due // nil without candidates
}

func (h HandoverState) clone() HandoverState {
	h.Reporters, h.Candidates, h.Said = slices.Clone(h.Reporters), slices.Clone(h.Candidates), slices.Clone(h.Said)
	return h
}

// mode says who locks a name that the table has.
func (l *lock) mode() sigma.Mode {
	if l.hand != nil && l.hand.Pending {
		return sigma.ModePending
	}
	return sigma.ModeGroup
}

// Mode says who locks a name.
func (t *Table) Mode(name string) sigma.Mode {
	if l := t.locks[name]; l != nil {
		return l.mode()
	}
	if t.need == 0 {
		return sigma.ModeGroup
	}
	return sigma.ModeSigma
}

// Modes returns the names that the voters do not lock, by rising name, and has Changes go on from here.
func (t *Table) Modes() []sigma.NameMode {
	t.noted, t.changed = true, make(map[string]struct{})
	modes := make([]sigma.NameMode, 0, len(t.locks))
	for _, name := range slices.Sorted(maps.Keys(t.locks)) {
		modes = append(modes, sigma.NameMode{Name: name, Mode: t.locks[name].mode()})
	}
	return modes
}

// Changes returns the names whose mode may have changed since the last call of it or of Modes, by rising name, nil before the first.
func (t *Table) Changes() []sigma.NameMode {
	if len(t.changed) == 0 {
		return nil
	}
	modes := make([]sigma.NameMode, 0, len(t.changed))
	for _, name := range slices.Sorted(maps.Keys(t.changed)) {
		modes = append(modes, sigma.NameMode{Name: name, Mode: t.Mode(name)})
	}
	clear(t.changed)
	return modes
}

// Changed reports whether Changes has something to tell.
func (t *Table) Changed() bool { return len(t.changed) > 0 }

func (t *Table) note(name string) {
	if t.noted {
		t.changed[name] = struct{}{}
	}
}

// setHand replaces the handover of a lock.
func (l *lock) setHand(t *Table, h *handover) {
	if l.hand != nil && l.hand.due != nil {
		heap.Remove(&t.due, l.hand.due.at)
		l.hand.due = nil
	}
	l.hand = h
}

// handOver is SetMode to group (M1).
func (t *Table) handOver(l *lock) {
	l.setHand(t, &handover{HandoverState: HandoverState{Pending: true}})
	t.note(l.name)
}

// Prepare has the table lock a name that voters lock, so that it can be carved out, and reports whether it does already.
func (t *Table) Prepare(name string) bool {
	l := t.locks[name]
	if l == nil && t.need > 0 && t.roomForName(name) {
		l = t.insert(name, 0)
		t.handOver(l)
	}
	return t.need == 0 || l != nil && (l.hand == nil || !l.hand.Pending)
}

// View tells that a view of so many voters, of which need are a majority, begins, and appends what waiters must be told to out. It cancels
// handovers that voters still have to report for: in the new view they do so anew (M5). Names that nobody has, may have or wants are the
// voters' again (M6).
func (t *Table) View(now time.Duration, need int, out []Grant) []Grant {
	out = t.Tick(now, out)
	t.need = need
	for _, name := range slices.Sorted(maps.Keys(t.locks)) {
		l := t.locks[name]
		pending := l.hand != nil && l.hand.Pending
		switch {
		case l.idle(), pending && len(l.queue) == 0, t.mutant == MutantModeReset && len(l.owners) > 0:
			t.note(name)
			t.giveBack(l)
		case pending:
			t.note(name)
			h := &handover{HandoverState: HandoverState{Pending: true, Said: l.hand.Said}}
			if t.mutant == MutantKeptReports {
				h.Reporters, h.Candidates = l.hand.Reporters, l.hand.Candidates
			}
			l.setHand(t, h)
			t.endTurns(l)
			t.watch(l)
		}
	}
	return out
}

// giveBack forgets a lock, with whoever has something there.
func (t *Table) giveBack(l *lock) {
	for len(l.owners) > 0 {
		t.free(l, l.owners[0])
	}
	for len(l.queue) > 0 {
		t.leave(l, len(l.queue)-1)
	}
	t.drop(l)
}

// Len returns how many names the table has.
func (t *Table) Len() int { return len(t.locks) }

// Idle counts the names that the table locks and nobody has, may have or wants: a view change would give them back.
func (t *Table) Idle() (n int) {
	for _, l := range t.locks {
		if t.need > 0 && l.idle() {
			n++
		}
	}
	return n
}

// Report is what a voter says of a name that it has sealed in this view (M2, M3), and appends what waiters must be told to out. Only the
// first report of a voter counts, and none after those of a majority.
func (t *Table) Report(now time.Duration, voter keyspace.NodeID, e sigma.ReportEntry, out []Grant) []Grant {
	out = t.Tick(now, out)
	l := t.locks[e.Name]
	if l == nil || l.hand == nil || !l.hand.Pending || slices.Contains(l.hand.Reporters, voter) {
		return out
	}
	h := l.hand
	h.Reporters = append(h.Reporters, voter)
	for _, q := range e.Ended {
		h.over(q)
		t.turnEnded(l, q)
	}
	if e.DelayLeft > 0 {
		t.delay(l, t.cfg.Drift.Stretch(min(e.DelayLeft, DelayMax)))
	}
	for _, p := range e.Parties {
		if t.mutant != MutantNoCandidates {
			t.named(l, p)
		}
		t.noteTurn(l, p)
	}
	for _, p := range e.Queue {
		t.noteTurn(l, p)
	}
	l.inTurn()
	need := t.need
	if t.mutant == MutantOneModeReport {
		need = 1
	}
	if len(h.Reporters) >= need {
		if h.Pending = false; t.mutant == MutantReportedToken {
			for _, p := range e.Parties {
				t.counter = t.counterOf(Token(p.Tok))
			}
		}
		t.note(l.name)
		t.turnsKnown(l)
	}
	t.watch(l)
	return t.resolve(l, out)
}

// named makes a request a candidate, or one for longer.
func (t *Table) named(l *lock, p sigma.ReportParty) {
	h := l.hand
	if h.isOver(p.Req) {
		return
	}
	// What is left is of the sending, which was before this entry's log time, and counted on a clock that may be slow; log time may be
	// fast.
	until := later(t.now, t.cfg.Drift.Stretch(min(max(0, p.Left), t.cfg.Drift.Stretch(t.cfg.TTLMax))))
	delay := min(max(0, p.Delay), DelayMax)
	for i := range h.Candidates {
		switch c := &h.Candidates[i]; {
		case c.Wish == p.Req && t.mutant == MutantShortestLease:
			c.Until = min(c.Until, until)
			return
		case c.Wish == p.Req:
			c.Until, c.Token = max(c.Until, until), max(c.Token, Token(p.Tok))
			return
		}
	}
	if until <= t.now {
		t.delay(l, delay)
		return
	}
	if len(h.Candidates) >= CandidatesMax {
		t.wakeAt(l, until)
		return
	}
	h.Candidates = append(h.Candidates, CandidateState{Wish: p.Req, Peer: p.Node, Until: until, Delay: delay, Token: Token(p.Tok)})
}

// watch has the end of the first candidate's lease looked at.
func (t *Table) watch(l *lock) {
	h := l.hand
	if h.due != nil {
		heap.Remove(&t.due, h.due.at)
		h.due = nil
	}
	if len(h.Candidates) == 0 {
		return
	}
	first := slices.MinFunc(h.Candidates, func(a, b CandidateState) int { return int(min(1, max(-1, a.Until-b.Until))) })
	h.due = &due{when: first.Until, lock: l, hand: true}
	heap.Push(&t.due, h.due)
}

// outlived drops the candidates whose leases are over.
func (t *Table) outlived(l *lock, out []Grant) []Grant {
	var delay time.Duration
	l.hand.Candidates = slices.DeleteFunc(l.hand.Candidates, func(c CandidateState) bool {
		if c.Until > t.now {
			return false
		}
		delay = max(delay, c.Delay)
		t.turnOver(l, c.Wish, c.Peer)
		return true
	})
	t.delay(l, delay)
	t.watch(l)
	return t.resolve(l, out)
}

// over notes that a request holds nothing, whoever names it.
func (h *handover) over(q sigma.Req) {
	h.Candidates = slices.DeleteFunc(h.Candidates, func(c CandidateState) bool { return c.Wish.Session == q.Session && c.Wish.Seq <= q.Seq })
	if h.isOver(q) {
		return
	}
	if len(h.Said) >= SaidMax {
		h.Said = slices.Delete(h.Said, 0, 1)
	}
	h.Said = append(h.Said, q)
}

func (h *handover) isOver(q sigma.Req) bool {
	return slices.ContainsFunc(h.Said, func(s sigma.Req) bool { return s.Session == q.Session && s.Seq >= q.Seq })
}

// says is over, of the peer whose request it is.
func (h *handover) says(q sigma.Req, peer keyspace.NodeID) {
	if !slices.ContainsFunc(h.Candidates, func(c CandidateState) bool { return c.Wish.Session == q.Session && c.Peer != peer }) {
		h.over(q)
	}
}

// mayClaim reports whether a request may hold a lock: it is named, or there is more to come.
func (h *handover) mayClaim(by Caller, q sigma.Req) bool {
	return h != nil && q != (sigma.Req{}) && (h.Pending || slices.ContainsFunc(h.Candidates, func(c CandidateState) bool { return c.Wish == q && c.Peer == by.Peer }))
}

// offered reports whether a token is one that voters can have offered.
func (t *Table) offered(tok Token) bool {
	return tok != 0 && t.token(t.counterOf(tok)) == tok && t.counterOf(tok) <= t.counter
}

// counterOf returns a token's counter, with the generation of a key that it may have.
func (t *Table) counterOf(tok Token) uint64 {
	return uint64(tok &^ t.token(0))
}

// disclaim notes that a request that is refused here has dropped its grants.
func (t *Table) disclaim(l *lock, by Caller, q sigma.Req, out []Grant) []Grant {
	if q == (sigma.Req{}) {
		return out
	}
	return t.overAt(l, q, by.Peer, out)
}

// Over tells that a request is over for good: its client told a voter so that had sealed the name.
func (t *Table) Over(now time.Duration, name string, q sigma.Req, peer keyspace.NodeID, out []Grant) []Grant {
	out = t.Tick(now, out)
	if l := t.locks[name]; l != nil {
		out = t.overAt(l, q, peer, out)
	}
	return out
}

func (t *Table) overAt(l *lock, q sigma.Req, peer keyspace.NodeID, out []Grant) []Grant {
	if l.hand == nil && len(l.turns) == 0 {
		return out
	}
	t.turnOver(l, q, peer)
	if l.hand != nil {
		l.hand.says(q, peer)
	}
	return t.resolve(l, out)
}

// resolve is M3 for what is known now: candidates that wait hold nothing; the only one left has what it claims; without candidates the
// lock is the table's alone.
func (t *Table) resolve(l *lock, out []Grant) []Grant {
	h := l.hand
	if h == nil || h.Pending {
		return t.settle(l, out)
	}
	h.Candidates = slices.DeleteFunc(h.Candidates, func(c CandidateState) bool {
		return slices.ContainsFunc(l.queue, func(w WaiterState) bool {
			return w.Peer == c.Peer && w.Wish.Session == c.Wish.Session && (w.Wish.Seq > c.Wish.Seq || w.Wish == c.Wish && w.Held == 0)
		})
	})
	if claim := l.claim(); claim >= 0 && l.wake == nil && (len(h.Candidates) == 1 || t.mutant == MutantClaimOverrules) {
		h.Candidates = nil
		out = append(out, t.told(l, t.adopt(l, claim)))
	}
	t.watch(l)
	for i := len(l.queue) - 1; i >= 0; i-- { // what is claimed and may not be held is lost
		if w := l.queue[i]; w.Held != 0 && !h.mayClaim(Caller{w.Client, w.Peer}, w.Wish) {
			t.leave(l, i)
		}
	}
	if len(h.Candidates) == 0 {
		l.setHand(t, nil)
	}
	return t.settle(l, out)
}

// claim returns the place of a candidate's claim, -1 when there is none.
func (l *lock) claim() int {
	return slices.IndexFunc(l.queue, func(w WaiterState) bool {
		return w.Held != 0 && l.hand.mayClaim(Caller{w.Client, w.Peer}, w.Wish)
	})
}

// adopt makes the i-th waiter the owner of what it claims. It holds a lock: those who wait for permits of a semaphore are sent away, and
// are told so when they ask again.
func (t *Table) adopt(l *lock, i int) *owner {
	invariant.Check(len(l.owners) == 0, "a claim is granted alone", l)
	w := l.queue[i]
	t.leave(l, i)
	if l.permits > 0 {
		for j := len(l.queue) - 1; j >= 0; j-- {
			if l.queue[j].Held == 0 {
				t.leave(l, j)
			}
		}
		l.permits = 0
	}
	t.remember(Caller{w.Client, w.Peer}, request{l.name, w.Req}, w.Value)
	o := &owner{OwnerState: OwnerState{
		Client: w.Client, Peer: w.Peer, Req: w.Req, Counter: t.counterOf(w.Held), TTL: w.TTL, Ends: later(t.now, t.cfg.Drift.Stretch(w.TTL)),
		Waited: true, Confirmed: true, Delay: w.Delay, Value: w.Value, Wish: w.Wish,
	}}
	t.own(l, o)
	return o
}

// breakCandidate ends what a candidate may hold (section 7): it acts as the end of its lease.
func (t *Table) breakCandidate(l *lock, by Caller, b Break, out []Grant) (Answer, []Grant) {
	h := l.hand
	i := slices.IndexFunc(h.Candidates, func(c CandidateState) bool { return b.Token != 0 && c.Token == b.Token })
	if i < 0 {
		return Answer{Kind: NotHeld}, out
	}
	c := h.Candidates[i]
	holder := Holder{Session: Client(c.Wish.Session), Peer: c.Peer, Token: b.Token, Left: c.Until - t.now}
	t.noteBreak(BreakState{Name: b.Name, Token: b.Token, Holder: Caller{holder.Session, c.Peer}, Holders: 1, By: by, Now: t.now, At: b.At})
	h.Candidates = slices.Delete(h.Candidates, i, i+1)
	t.turnOver(l, c.Wish, c.Peer)
	t.watch(l)
	t.delay(l, c.Delay)
	return Answer{Kind: Broken, Token: b.Token, Holder: holder}, t.resolve(l, out)
}

// restoreHand takes over the handover of a stored lock.
func (t *Table) restoreHand(l *lock, ls LockState) error {
	if ls.Hand == nil {
		return nil
	}
	h := &handover{HandoverState: ls.Hand.clone()}
	if len(ls.Owners) > 0 || !h.Pending && len(h.Candidates) == 0 || h.Pending && t.need == 0 || len(h.Candidates) > CandidatesMax ||
		len(h.Said) > SaidMax || len(h.Reporters) > sigma.MembersMax {
		return fmt.Errorf("%w: lock %q with %d owners, pending %v, %d candidates", ErrState, ls.Name, len(ls.Owners), h.Pending, len(h.Candidates))
	}
	for i, c := range h.Candidates {
		twice := slices.ContainsFunc(h.Candidates[:i], func(o CandidateState) bool { return o.Wish == c.Wish })
		if twice || c.Until <= t.now || c.Delay < 0 || c.Delay > DelayMax {
			return fmt.Errorf("%w: lock %q: candidate %v until %v at %v", ErrState, ls.Name, c.Wish, c.Until, t.now)
		}
	}
	l.hand = h
	t.watch(l)
	return nil
}
