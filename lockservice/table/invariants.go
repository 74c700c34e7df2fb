package table

import "fmt"

// check tests every invariant of the table's state. It walks the whole state: tests call it after every step.
func (t *Table) check() error {
	owners, waiters, stale := 0, 0, 0
	tokens := make(map[uint64]string)
	for name, l := range t.locks {
		if l.name != name || l.owner == nil && len(l.queue) == 0 {
			return fmt.Errorf("lock %q is kept for nobody", name)
		}
		if (l.owner == nil) != (l.at < 0) || l.owner != nil && (l.at >= len(t.leases) || t.leases[l.at] != l) {
			return fmt.Errorf("lock %q: owner %v at place %d of %d leases", name, l.owner, l.at, len(t.leases))
		}
		if _, is := t.stale[name]; is != (l.owner == nil) {
			return fmt.Errorf("lock %q: waits for freshness %v, owner %v", name, is, l.owner)
		}
		seen := make(map[WaiterState]bool)
		note := func(c Client, req uint64) error {
			r := WaiterState{Client: c, Req: req}
			if _, known := t.requests[c][request{name, req}]; seen[r] || !known {
				return fmt.Errorf("lock %q: request %d of %v stands twice (%v) or is not in the index", name, req, c, seen[r])
			}
			seen[r] = true
			return nil
		}
		if o := l.owner; o != nil {
			owners++
			if other, twice := tokens[o.Counter]; twice || o.Counter == 0 || o.Counter > t.counter {
				return fmt.Errorf("lock %q: token %d of %d, also of %q", name, o.Counter, t.counter, other)
			}
			tokens[o.Counter] = name
			if o.Ends <= t.now {
				return fmt.Errorf("lock %q: lease over at %v, now %v", name, o.Ends, t.now)
			}
			if err := note(o.Client, o.Req); err != nil {
				return err
			}
		} else if stale++; t.fresh() {
			return fmt.Errorf("lock %q: waiters and no owner", name)
		}
		for _, w := range l.queue {
			if err := note(w.Client, w.Req); err != nil {
				return err
			}
		}
		waiters += len(l.queue)
	}
	indexed := 0
	for _, rs := range t.requests {
		indexed += len(rs)
	}
	if owners != len(t.leases) || waiters != t.waiting || indexed != owners+waiters || stale != len(t.stale) {
		return fmt.Errorf("%d owners, %d leases; %d waiters, counted %d; %d requests; %d of %d stale",
			owners, len(t.leases), waiters, t.waiting, indexed, stale, len(t.stale))
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
	for i, l := range t.leases {
		if p := (i - 1) / 2; l.at != i || i > 0 && t.leases.Less(i, p) {
			return fmt.Errorf("lease %d of %q out of order", i, l.name)
		}
	}
	return nil
}
