package table

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"latchkey/internal/invariant"
)

// Carve takes one lock or semaphore out of the table, with its owners and its waiters, and returns a state that holds nothing else: what another
// table goes on with ([Table.Graft]). A lock that nobody has or waits for gives a state without locks. The state's counter is
// this table's in either case, so that every token the other table draws is above every one drawn here.
//
// What is known of holds that were broken stays. It takes the time of a snapshot and of reading it: locks move when people say so, not in the course of work.
func (t *Table) Carve(name string) State {
	whole := t.State()
	s := State{Now: whole.Now, Counter: whole.Counter}
	if t.mutant == MutantCarveCounter {
		s.Counter = 0
	}
	i, found := slices.BinarySearchFunc(whole.Locks, name, func(l LockState, name string) int { return strings.Compare(l.Name, name) })
	if !found {
		return s
	}
	s.Locks = []LockState{whole.Locks[i]}
	whole.Locks = slices.Delete(whole.Locks, i, i+1)
	err := t.become(whole)
	invariant.Check(err == nil, "a table is possible without one of its locks", err)
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
	whole := t.State()
	whole.Counter = max(whole.Counter, s.Counter)
	if t.mutant == MutantGraftCounter {
		whole.Counter = max(t.counter, s.Locks[0].top())
	}
	l := s.Locks[0].shifted(s.Now, whole.Now)
	i, found := slices.BinarySearchFunc(whole.Locks, l.Name, func(l LockState, name string) int { return strings.Compare(l.Name, name) })
	if found {
		return fmt.Errorf("%w: lock %q is here already", ErrState, l.Name)
	}
	whole.Locks = slices.Insert(whole.Locks, i, l)
	return t.become(whole)
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
	for i := range l.Queue {
		if w := &l.Queue[i]; w.Since <= from {
			w.Since = max(0, to-(from-w.Since))
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

// become replaces the state of the table.
func (t *Table) become(s State) error {
	n, err := Restore(t.cfg, s)
	if err != nil {
		return err
	}
	n.mutant = t.mutant
	*t = *n
	return nil
}
