package table

import (
	"fmt"
	"slices"
)

// check tests every invariant of the table's state. It walks the whole state: tests call it after every step.
func (t *Table) check() error {
	owners, waiters, wakes, values, turns := 0, 0, 0, 0, 0
	for name, l := range t.locks {
		if l.name != name || len(l.owners) == 0 && len(l.queue) == 0 && l.wake == nil && l.hand == nil && !l.away && t.need == 0 {
			return fmt.Errorf("lock %q is kept for nobody", name)
		}
		if w := l.wake; w != nil {
			if wakes++; w.owner != nil || w.lock != l || w.at >= len(t.due) || t.due[w.at] != w {
				return fmt.Errorf("lock %q: not to be settled where it stands", name)
			}
		} else if len(l.queue) > 0 && t.admits(l, l.queue[0]) || !t.fresh() {
			return fmt.Errorf("lock %q: the first waiter could be granted, or the table is not fresh", name)
		}
		if h := l.hand; h != nil {
			if len(l.owners) > 0 || l.away || !h.Pending && len(h.Candidates) == 0 || len(h.Candidates) > CandidatesMax || len(h.Said) > SaidMax {
				return fmt.Errorf("lock %q: %d owners beside a handover of %d candidates, pending %v", name, len(l.owners), len(h.Candidates), h.Pending)
			}
			if (h.due != nil) != (len(h.Candidates) > 0) {
				return fmt.Errorf("lock %q: nobody looks when the leases of its candidates end", name)
			}
			for _, c := range h.Candidates {
				if c.Until <= t.now || c.Until < h.due.when || h.isOver(c.Wish) {
					return fmt.Errorf("lock %q: candidate %v until %v, now %v", name, c.Wish, c.Until, t.now)
				}
			}
			if h.due != nil {
				wakes++
			}
		}
		turns += len(l.turns)
		if (l.turnsDue != nil) != (len(l.turns) > 0 && (l.hand == nil || !l.hand.Pending)) || len(l.turns) > TurnsMax || !slices.IsSortedFunc(l.turns, compareTurns) {
			return fmt.Errorf("lock %q: %d turns, to be forgotten: %v", name, len(l.turns), l.turnsDue != nil)
		}
		if l.turnsDue != nil {
			if wakes++; l.turnsDue.when <= t.now {
				return fmt.Errorf("lock %q: turns until %v, now %v", name, l.turnsDue.when, t.now)
			}
		}
		seen := make(map[request]bool)
		note := func(c Client, req uint64, value string) error {
			r := request{string(c[:]), req}
			if _, known := t.requests[c][request{name, req}]; seen[r] || !known {
				return fmt.Errorf("lock %q: request %d of %v stands twice (%v) or is not in the index", name, req, c, seen[r])
			}
			seen[r] = true
			values += len(value)
			return nil
		}
		if l.permits > 0 && len(l.owners) > l.permits || len(l.owners) > HoldersPerLockMax {
			return fmt.Errorf("lock %q: %d owners of %d permits", name, len(l.owners), l.permits)
		}
		tokens := make(map[uint64]bool)
		for i, o := range l.owners {
			owners++
			if d := o.due; d.owner != o || d.lock != l || d.at >= len(t.due) || t.due[d.at] != &o.due || d.when != o.Ends {
				return fmt.Errorf("lock %q: the lease of %v is not where it stands", name, o.Client)
			}
			if l.permits == 0 && i > 0 && (!o.Shared || !l.owners[0].Shared || o.Counter != l.owners[0].Counter) {
				return fmt.Errorf("lock %q: %v beside %v", name, o.OwnerState, l.owners[0].OwnerState)
			}
			if tokens[o.Counter] && (l.permits > 0 || i == 0) || o.Counter == 0 || o.Counter > t.counter {
				return fmt.Errorf("lock %q: token %d of %d, or of two permits", name, o.Counter, t.counter)
			}
			tokens[o.Counter] = true
			if o.Ends <= t.now {
				return fmt.Errorf("lock %q: lease over at %v, now %v", name, o.Ends, t.now)
			}
			if err := note(o.Client, o.Req, o.Value); err != nil {
				return err
			}
		}
		for _, w := range l.queue {
			if (w.Held != 0 || w.Try) && l.hand == nil {
				return fmt.Errorf("lock %q: %v waits for a mode", name, w.Client)
			}
			if err := note(w.Client, w.Req, w.Value); err != nil {
				return err
			}
		}
		waiters += len(l.queue)
	}
	indexed := 0
	for _, rs := range t.requests {
		indexed += len(rs)
	}
	if turns != t.turns || turns > TurnsTotalMax {
		return fmt.Errorf("%d turns, counted %d", t.turns, turns)
	}
	if owners != t.owners || waiters != t.waiting || indexed != owners+waiters || len(t.due) != owners+wakes || values != t.values {
		return fmt.Errorf("%d owners, counted %d; %d waiters, counted %d; %d requests; %d due, %d to be settled; %d bytes of values, counted %d",
			owners, t.owners, waiters, t.waiting, indexed, len(t.due), wakes, values, t.values)
	}
	byPeer := 0
	for p, n := range t.perPeer {
		if byPeer += n; n <= 0 {
			return fmt.Errorf("peer %v is kept for %d requests", p, n)
		}
	}
	if byPeer != indexed {
		return fmt.Errorf("%d requests of all peers, %d of all clients", byPeer, indexed)
	}
	for i, d := range t.due {
		if p := (i - 1) / 2; d.at != i || i > 0 && t.due.Less(i, p) {
			return fmt.Errorf("due %d of %q out of order", i, d.lock.name)
		}
	}
	return nil
}
