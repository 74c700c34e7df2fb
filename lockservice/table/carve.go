package table

import (
	"fmt"
	"slices"
	"time"

	"latchkey/internal/invariant"
)

// Carve takes one lock or semaphore out of the table, with its owners and its waiters, and returns a state that holds nothing else: what another
// table goes on with ([Table.Graft]). A lock that nobody has or waits for is its name alone. The state's counter is
// this table's in either case, so that every token the other table draws is above every one drawn here.
//
// Where voters lock the names that the table does not have, the name stays known as another group's until it is grafted back, and is
// not to be carved out before Prepare says so.
//
// What is known of holds that were broken stays.
func (t *Table) Carve(name string) State {
	s := State{Now: t.now, Counter: t.counter}
	if t.mutant == MutantCarveCounter {
		s.Counter = 0
	}
	l := t.locks[name]
	if l == nil {
		l = t.insert(name, 0)
	}
	s.Locks = []LockState{l.stored()}
	s.Locks[0].Turns, s.Locks[0].TurnsUntil = nil, 0 // those who have not come find the other table by themselves
	for len(l.owners) > 0 {
		t.free(l, l.owners[0])
	}
	for len(l.queue) > 0 {
		t.leave(l, len(l.queue)-1)
	}
	t.drop(l)
	if t.cfg.Voters { // so that none of them takes it for its own
		t.insert(name, 0).away = true
		t.note(name)
	}
	return s
}

// Graft takes over a lock that another table has carved out of itself. What was left of its lease is left of it here, from the
// present log time on: log times of two groups cannot be compared, and a lease is never shortened. Tokens go on above those of
// both tables. What no table can have carved, a lock that is here already, and one for whose requests there is no room, match
// [ErrState]; the table is then as it was.
func (t *Table) Graft(s State) error {
	if s.Now < 0 || s.Counter > lowMax || len(s.Locks) > 1 {
		return fmt.Errorf("%w: log time %v, counter %d, %d locks", ErrState, s.Now, s.Counter, len(s.Locks))
	}
	if len(s.Locks) == 0 && t.mutant == MutantGraftCounter {
		return nil
	}
	if len(s.Locks) == 0 {
		t.counter = max(t.counter, s.Counter)
		return nil
	}
	counter := max(t.counter, s.Counter)
	if t.mutant == MutantGraftCounter {
		counter = max(t.counter, s.Locks[0].top())
	}
	l := s.Locks[0].shifted(s.Now, t.now)
	here := t.locks[l.Name]
	if here != nil && !here.away && !here.idle() {
		return fmt.Errorf("%w: lock %q is here already", ErrState, l.Name)
	}
	if l.bare() {
		t.counter = counter
		t.graftBare(here, l.Name)
		return nil
	}
	alone, err := Restore(t.cfg, State{Now: t.now, Counter: counter, Locks: []LockState{l}})
	if err != nil {
		return err
	}
	if err := t.roomFor(alone); err != nil {
		return err
	}
	if here != nil {
		t.drop(here)
	}
	t.note(l.Name)
	t.counter = counter // tokens of owners are judged by it
	err = t.restoreLock(l)
	invariant.Check(err == nil, "a lock that is possible alone, and for which there is room, is possible", err)
	return nil
}

// bare reports whether nobody has or wants the lock.
func (l *LockState) bare() bool {
	return len(l.Owners) == 0 && len(l.Queue) == 0 && l.Hand == nil && l.Until == 0
}

// graftBare takes over a name that nobody has or wants. Where there is a view, the table locks it until that ends: what the voters
// may offer in this view can be below what was given out elsewhere.
func (t *Table) graftBare(here *lock, name string) {
	if here != nil {
		t.drop(here)
	}
	if t.need > 0 {
		t.insert(name, 0)
	}
	t.note(name)
}

// roomFor reports whether the limits allow what is in another table besides what is in this one.
func (t *Table) roomFor(o *Table) error {
	full := len(t.locks)+len(o.locks) > LocksMax || t.bytes+o.bytes > NameBytesTotalMax || t.waiting+o.waiting > WaitersMax ||
		t.owners+t.waiting+o.owners+o.waiting > RequestsMax || t.values+o.values > ValueBytesTotalMax
	for c, more := range o.requests {
		full = full || len(t.requests[c])+len(more) > RequestsPerSessionMax
	}
	for p, more := range o.perPeer {
		full = full || t.perPeer[p]+more > RequestsPerPeerMax
	}
	if full {
		return fmt.Errorf("%w: no room for %d locks more", ErrState, len(o.locks))
	}
	return nil
}

// shifted returns the lock as of another log time: what ends so much later ends as much later still, what has been waiting has been
// waiting as long, as far as log time reaches back.
func (l LockState) shifted(from, to time.Duration) LockState {
	shift := func(at time.Duration) time.Duration {
		if at <= from { // over, which is an impossible state and stays one
			return to
		}
		return later(to, at-from)
	}
	l.Owners, l.Queue = slices.Clone(l.Owners), slices.Clone(l.Queue)
	for i := range l.Owners {
		l.Owners[i].Ends = shift(l.Owners[i].Ends)
	}
	if l.Until > 0 {
		l.Until = shift(l.Until)
	}
	if l.Hand != nil {
		h := l.Hand.clone()
		for i := range h.Candidates {
			h.Candidates[i].Until = shift(h.Candidates[i].Until)
		}
		l.Hand = &h
	}
	for i := range l.Queue {
		if w := &l.Queue[i]; w.Since <= from {
			w.Since, w.Heard = max(0, to-(from-w.Since)), max(0, to-(from-w.Heard))
		}
	}
	return l
}

// top is the highest token counter of the lock's owners.
func (l LockState) top() (top uint64) {
	for _, o := range l.Owners {
		top = max(top, o.Counter)
	}
	return top
}

// Clients returns who has requests at the locks of a state, each with how long a lease of it may go on: 0 for who only waits.
func (s State) Clients() map[Caller]time.Duration {
	all := make(map[Caller]time.Duration)
	for _, l := range s.Locks {
		for _, o := range l.Owners {
			by := Caller{o.Client, o.Peer}
			all[by] = max(all[by], o.Ends-s.Now)
		}
		for _, w := range l.Queue {
			by := Caller{w.Client, w.Peer}
			all[by] = max(all[by], 0)
		}
	}
	return all
}
