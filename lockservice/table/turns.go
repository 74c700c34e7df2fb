package table

import (
	"container/heap"
	"fmt"
	"slices"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/lockservice/sigma"
)

// Turns: who waited at the voters when a name was taken over keeps its place (M2, section 7: first come, first granted). Voters report the order of
// their queues, and those who are named in it come before all others of the table, in that order, whenever they ask here. They are told to at
// once. What falls free meanwhile is kept for them for a moment, since those who are first need not be the first to be heard.

const (
	// TurnsMax bounds the turns of one lock. Who is behind them waits in the order in which it asks here.
	TurnsMax = 64
	// TurnsTotalMax bounds those of all locks, which a snapshot has. Of more names the order is lost.
	TurnsTotalMax = 1 << 15
	// turnsFor is how long turns are known for once a majority of the voters has reported. One that has not asked by then is as one that comes.
	turnsFor = time.Second
)

// Turn is the place of one that waited at the voters.
type Turn struct {
	Wish  sigma.Req
	Peer  keyspace.NodeID
	ReqTS uint64
	Come  bool // it has asked here
}

func (n Turn) is(w *WaiterState) bool { return n.Wish == w.Wish && n.Peer == w.Peer }

// noteTurn notes the place of a request that a voter names.
func (t *Table) noteTurn(l *lock, p sigma.ReportParty) {
	if p.Req == (sigma.Req{}) || l.hand.isOver(p.Req) || slices.ContainsFunc(l.turns, func(n Turn) bool { return n.Wish == p.Req }) {
		return
	}
	n := Turn{Wish: p.Req, Peer: p.Node, ReqTS: p.ReqTS}
	n.Come = slices.ContainsFunc(l.queue, func(w WaiterState) bool { return n.is(&w) })
	at, _ := slices.BinarySearchFunc(l.turns, n, compareTurns)
	l.turns = slices.Insert(l.turns, at, n)
	if t.turns++; len(l.turns) > TurnsMax || t.turns > TurnsTotalMax {
		l.turns = l.turns[:len(l.turns)-1]
		t.turns--
	}
}

func compareTurns(a, b Turn) int { return sigma.CompareOrder(a.ReqTS, a.Wish, b.ReqTS, b.Wish) }

// turnsKnown is told when all that voters say of their queues is.
func (t *Table) turnsKnown(l *lock) {
	if len(l.turns) > 0 {
		t.turnsUntil(l, later(t.now, turnsFor))
	}
}

func (t *Table) turnsUntil(l *lock, when time.Duration) {
	l.turnsDue = &due{when: when, lock: l, turns: true}
	heap.Push(&t.due, l.turnsDue)
}

// endTurns forgets the turns of a lock.
func (t *Table) endTurns(l *lock) {
	if l.turnsDue != nil {
		heap.Remove(&t.due, l.turnsDue.at)
	}
	t.turns -= len(l.turns)
	l.turns, l.turnsDue = nil, nil
}

// turnsOver grants what was kept for those who have not come.
func (t *Table) turnsOver(l *lock, out []Grant) []Grant {
	t.endTurns(l)
	return t.resolve(l, out)
}

// turnOver forgets the turns of a session's requests up to one that is over.
func (t *Table) turnOver(l *lock, q sigma.Req, peer keyspace.NodeID) {
	before := len(l.turns)
	l.turns = slices.DeleteFunc(l.turns, func(n Turn) bool { return n.Wish.Session == q.Session && n.Wish.Seq <= q.Seq && n.Peer == peer })
	if t.turns -= before - len(l.turns); len(l.turns) == 0 {
		t.endTurns(l)
	}
}

// turnEnded does the same for what a voter has heard of.
func (t *Table) turnEnded(l *lock, q sigma.Req) {
	for _, n := range l.turns {
		if n.Wish.Session == q.Session && n.Wish.Seq <= q.Seq {
			t.turnOver(l, q, n.Peer)
			return
		}
	}
}

// come notes that one that may have a turn has asked here, so that nothing is kept for it any more, and reports whether it has one.
func (l *lock) come(w *WaiterState) bool {
	i := slices.IndexFunc(l.turns, func(n Turn) bool { return n.is(w) })
	if i >= 0 {
		l.turns[i].Come = true
	}
	return i >= 0
}

// inTurn puts those who have turns first. The others stay as they are.
func (l *lock) inTurn() {
	if len(l.turns) > 0 {
		slices.SortStableFunc(l.queue, func(a, b WaiterState) int { return l.turn(&a) - l.turn(&b) })
	}
}

func (l *lock) turn(w *WaiterState) int {
	if i := slices.IndexFunc(l.turns, func(n Turn) bool { return n.is(w) }); i >= 0 {
		return i
	}
	return len(l.turns)
}

// awaited reports whether somebody whose turn is before that of a waiter has not come yet.
func (l *lock) awaited(w *WaiterState) bool {
	return l.turnsDue != nil && slices.ContainsFunc(l.turns[:l.turn(w)], func(n Turn) bool { return !n.Come })
}

// restoreTurns takes over the turns of a stored lock.
func (t *Table) restoreTurns(l *lock, ls LockState) error {
	pending := l.hand != nil && l.hand.Pending
	good := slices.IsSortedFunc(ls.Turns, compareTurns)
	for i, n := range ls.Turns {
		good = good && n.Wish != (sigma.Req{}) && (i == 0 || n.Wish != ls.Turns[i-1].Wish)
	}
	if !good || len(ls.Turns) > TurnsMax || t.turns+len(ls.Turns) > TurnsTotalMax || len(ls.Turns) > 0 && t.need == 0 ||
		(ls.TurnsUntil != 0) != (len(ls.Turns) > 0 && !pending) || ls.TurnsUntil != 0 && (ls.TurnsUntil <= t.now || ls.TurnsUntil > later(t.now, turnsFor)) {
		return fmt.Errorf("%w: lock %q: %d turns until %v at %v", ErrState, ls.Name, len(ls.Turns), ls.TurnsUntil, t.now)
	}
	l.turns = slices.Clone(ls.Turns)
	if t.turns += len(l.turns); ls.TurnsUntil != 0 {
		t.turnsUntil(l, ls.TurnsUntil)
	}
	return nil
}
