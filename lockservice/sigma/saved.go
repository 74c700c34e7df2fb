package sigma

import (
	"maps"
	"slices"
	"time"

	"latchkey/internal/invariant"
)

// What a replica has promised outlives the death of its process where its host keeps a record of it: the replica says what is to be
// recorded before the messages of the same step leave (Save, SaveHead, Void), and one that is made with a [Table] of such records takes
// the place of the one that died, as if that had only been slow. It is for the host to know that the records are the last ones.
//
// A record may say too much, never too little: what has become free since stays promised until its lease is over. So renewals are not
// recorded: a lease that is taken up again runs anew from the start of the host's new life, which is later than anything the former
// one has heard. Waiters are not either; they ask again by themselves, with their places.
//
// While a view is not settled here, or under embargo, the table does not say all that it must, and nothing is recorded. What is
// recorded of the view before stands until something is granted in the new one. The records are whole again with SaveHead.

// Head is what is recorded of a table beside its names. Without it the records are of no use.
type Head struct {
	View  ViewID
	Floor Token // at least the rec of every name that is not recorded
	Clock uint64
}

// Saved is what is recorded of a name that somebody has, or may have.
type Saved struct {
	Rec        Token
	Owned      bool
	Owner      ReportParty // Tok is what its grant offers
	GID        GID         // of that grant
	Candidates []ReportParty
	DelayLeft  time.Duration // of a lock-delay that runs
}

// Table is what was recorded of a replica.
type Table struct {
	Head  Head
	Names map[string]Saved
}

// State returns the log's state that a replica with this table begins with, where the log has come to now: that of the table's view. ok
// is false where the log is further than the view after it, or before it, so that the table is of no use.
func (t *Table) State(now LogState) (s LogState, ok bool) {
	switch next := (ViewID{t.Head.View.Gen, t.Head.View.Num + 1}); now.View {
	case t.Head.View:
		return now, true
	case next:
		return LogState{Descriptor: Descriptor{View: t.Head.View, Members: now.Prev}, Ceil: now.Base, Cap: now.Cap}, len(now.Prev) > 0
	}
	return s, false
}

// tracking says what the records have of the present view.
type tracking uint8

const (
	untracked tracking = iota // nothing: they are of a view before, if there are any
	voided                    // nothing, and they are of no use to anybody
	catching                  // some of it
	tracked                   // all of it
)

// mark has a name recorded at the end of the step.
func (r *Replica) mark(l *lock) {
	if !l.dirty {
		l.dirty = true
		r.dirty = append(r.dirty, l)
	}
}

// savedAtOnce bounds how many names of a view that has just settled are recorded in one step.
const savedAtOnce = 256

// save says what is to be recorded of this step.
func (r *Replica) save(out []Action) []Action {
	if r.tracking < catching {
		granted := false
		for _, l := range r.dirty {
			l.dirty = false
			granted = granted || l.owned && r.locks[l.name] == l
		}
		clear(r.dirty)
		r.dirty = r.dirty[:0]
		whole := r.settled && !r.booting && r.embargo == 0 && has(r.log.Members, r.cfg.Self)
		if (whole || granted) && r.tracking == untracked && r.cfg.mutant != mutantNoVoid {
			r.tracking = voided
			out = append(out, Action{Kind: Void})
		}
		if !whole {
			return out
		}
		r.tracking, r.savedFloor, r.headDue = catching, r.floor, true
		for _, l := range r.locks {
			if r.saves(l) {
				r.backlog = append(r.backlog, l.name)
			} else {
				r.savedFloor = max(r.savedFloor, l.rec)
			}
		}
		for name, h := range r.modes { // sealed before all were known
			if h.lock != nil && r.saves(h.lock) {
				r.backlog = append(r.backlog, name)
			}
		}
		slices.Sort(r.backlog)
	}
	for _, l := range r.dirty {
		l.dirty = false
		out = r.saveName(l.name, out)
	}
	clear(r.dirty)
	r.dirty = r.dirty[:0]
	if r.tracking == catching {
		n := min(len(r.backlog), savedAtOnce)
		for _, name := range r.backlog[:n] {
			out = r.saveName(name, out)
		}
		if r.backlog = r.backlog[n:]; len(r.backlog) > 0 {
			return out
		}
		r.tracking, r.backlog = tracked, nil
	}
	if r.floor > r.savedFloor && r.cfg.mutant != mutantFloorUnsaved { // names were forgotten
		r.savedFloor, r.headDue = r.floor, true
	}
	if r.headDue {
		r.headDue = false
		out = append(out, Action{Kind: SaveHead})
	}
	return out
}

// tableOf returns this replica's table of a name, be it sealed (M1).
func (r *Replica) tableOf(name string) *lock {
	if l := r.locks[name]; l != nil {
		return l
	}
	if h := r.modes[name]; h != nil {
		return h.lock
	}
	return nil
}

// saves reports whether somebody has a name or may have it, so that it has a record of its own.
func (r *Replica) saves(l *lock) bool { return l.owned || len(l.candidates) > 0 || l.delay > r.now }

// saveName records a name, or that nobody has it: then its numbers are in the head.
func (r *Replica) saveName(name string, out []Action) []Action {
	l := r.tableOf(name)
	if l == nil {
		return append(out, Action{Kind: Save, Msg: Message{Name: name}})
	}
	live := r.saves(l)
	switch {
	case l.owned && r.cfg.mutant == mutantGrantUnsaved:
		return out
	case !live && l.rec > r.savedFloor && r.cfg.mutant != mutantFloorUnsaved:
		r.savedFloor, r.headDue = l.rec, true
	}
	if !live && !l.saved {
		return out
	}
	l.saved = live
	return append(out, Action{Kind: Save, Msg: Message{Name: name}})
}

// Head returns what SaveHead is to record.
func (r *Replica) Head() Head {
	return Head{View: r.log.View, Floor: r.savedFloor, Clock: r.clock}
}

// Saved returns what Save is to record of a name. ok is false where nothing is, and what was is to be deleted.
func (r *Replica) Saved(name string) (s Saved, ok bool) {
	l := r.tableOf(name)
	if l == nil || !r.saves(l) {
		return s, false
	}
	s.Rec, s.DelayLeft = l.rec, max(0, l.delay.Sub(r.now))
	if l.owned {
		s.Owned, s.GID, s.Owner = true, l.gid, r.party(&l.owner, l.exp, l.prop)
	}
	for i := range l.candidates {
		c := &l.candidates[i]
		s.Candidates = append(s.Candidates, r.party(&c.wish, c.until, max(c.tok, c.offered)))
	}
	return s, true
}

// takeUp makes what was recorded the table of this replica. Leases run from when this life of the host began.
func (r *Replica) takeUp(t *Table) {
	invariant.Check(t.Head.View == r.log.View && !r.cfg.Restarted, "a table of the view that a replica begins with", t.Head.View)
	for _, name := range slices.Sorted(maps.Keys(t.Names)) {
		s := t.Names[name]
		l := &lock{name: name, rec: s.Rec, at: -1, idleAt: r.now, saved: true}
		r.locks[name] = l
		r.idle.push(l)
		if s.DelayLeft > 0 {
			l.delay = r.born.Add(min(s.DelayLeft, DelayMax))
		}
		if s.Owned {
			l.owned, l.owner, l.gid, l.prop = true, s.Owner.wish(r.now), s.GID, s.Owner.Tok
			l.exp = r.born.Add(s.Owner.TTL)
			if r.cfg.mutant == mutantLeaseFromRecord {
				l.exp = r.born
			}
			l.owner.heard = true
			r.perPeer[l.owner.node]++
		}
		for i := range s.Candidates {
			p := &s.Candidates[i]
			l.candidates = append(l.candidates, candidate{wish: p.wish(r.now), until: r.born.Add(p.Left), votes: 1, offered: p.Tok})
			r.perPeer[p.Node]++
		}
		r.watch(l, r.wakeOf(l))
	}
}
