package transfer

import (
	"fmt"
	"slices"

	"latchkey/internal/automaton"
	"latchkey/replicagroup/order"
)

// End says how a stream of a transfer has ended.
type End uint8

// The ends.
const (
	Delivered End = iota + 1 // the receiver has everything
	Broken                   // the stream did not open, was lost, or stalled
	Deferred                 // the receiver has no room, or the place was given up
	Rejected                 // the receiver will not have it
)

// String returns the end's name.
func (e End) String() string {
	switch e {
	case Delivered:
		return "delivered"
	case Broken:
		return "broken"
	case Deferred:
		return "deferred"
	case Rejected:
		return "rejected"
	}
	return fmt.Sprintf("End(%d)", uint8(e))
}

// Orders is what a [Queue] asks of its driver.
type Orders struct {
	Begin []Key // open a stream for each
	Cut   []Key // end the stream, and report its end
	Told  []Told
}

// Told is news for the owner of a transfer. After Arrived or Failed the queue knows it no more.
type Told struct {
	Key   Key
	State order.Carriage
}

// Queue is the sending side of a node: which transfers run and which wait, when one that broke is tried again, and when it is
// given up. The zero value is ready.
//
// Invariants: line holds every transfer once, in the order of their turns; at most OutMax of them have a stream.
type Queue struct {
	byKey   map[Key]*carriage
	line    []*carriage
	running int
}

// carriage is one transfer of a queue.
type carriage struct {
	key    Key
	peer   string
	stream bool              // begun and not ended
	cut    bool              // told to end it
	again  bool              // it has other bytes since it began: the end of the stream counts for nothing
	gone   bool              // dropped: its end is waited for
	waits  automaton.Instant // since when the receiver has no room; Never: it has, or is not asked
	ready  automaton.Instant // it stands back until then
	fails  int               // streams in a row on which nothing moved
	moved  bool              // since it was last reported
	told   automaton.Instant // when that was
}

// Len returns how many transfers it knows.
func (q *Queue) Len() int { return len(q.line) }

// Running returns how many have a stream.
func (q *Queue) Running() int { return q.running }

// Want adds a transfer to a peer. If it is known already, same says that its bytes are the ones of before, and then nothing changes.
// With other bytes it begins anew.
func (q *Queue) Want(k Key, peer string, same bool, now automaton.Instant, out *Orders) {
	if q.byKey == nil {
		q.byKey = make(map[Key]*carriage)
	}
	c := q.byKey[k]
	switch {
	case c != nil && same && !c.gone:
	case c != nil && c.stream:
		c.again, c.gone, c.peer, c.fails = true, false, peer, 0
		c.end(out)
	case c != nil:
		c.peer, c.fails, c.ready = peer, 0, now
	case len(q.line) >= OutQueueMax:
		out.Told = append(out.Told, Told{k, order.Failed})
	default:
		c = &carriage{key: k, peer: peer, waits: automaton.Never, ready: now, told: now}
		q.byKey[k] = c
		q.line = append(q.line, c)
	}
	q.fill(now, out)
}

// Drop forgets a transfer; its owner hears no more of it.
func (q *Queue) Drop(k Key, now automaton.Instant, out *Orders) {
	c := q.byKey[k]
	switch {
	case c == nil:
	case c.stream:
		c.gone, c.again = true, false
		c.end(out)
	default:
		q.remove(c)
	}
	q.fill(now, out)
}

// Waiting says that the receiver has no room yet.
func (q *Queue) Waiting(k Key, now automaton.Instant, out *Orders) {
	if c := q.byKey[k]; c != nil && c.stream && c.waits == automaton.Never {
		c.waits = now
	}
	q.fill(now, out)
}

// Admitted says that the receiver has room.
func (q *Queue) Admitted(k Key) {
	if c := q.byKey[k]; c != nil && c.stream {
		c.waits = automaton.Never
	}
}

// Moved says that bytes went over.
func (q *Queue) Moved(k Key) {
	if c := q.byKey[k]; c != nil && c.stream {
		c.moved, c.waits = true, automaton.Never
		c.fails = 0
	}
}

// Ended says that the stream of a transfer is over. Every Begin is answered by one.
func (q *Queue) Ended(k Key, how End, now automaton.Instant, out *Orders) {
	c := q.byKey[k]
	if c == nil || !c.stream {
		return
	}
	c.stream, c.cut, c.waits = false, false, automaton.Never
	q.running--
	switch {
	case c.gone:
		q.remove(c)
	case c.again:
		c.again, c.ready = false, now
	case how == Delivered:
		q.over(c, order.Arrived, out)
	case how == Rejected:
		q.over(c, order.Failed, out)
	case how == Deferred:
		c.ready = now.Add(BusyPause)
		q.line = append(slices.DeleteFunc(q.line, func(o *carriage) bool { return o == c }), c)
	default:
		if c.fails++; c.fails >= TriesMax {
			q.over(c, order.Failed, out)
		} else {
			c.ready = now.Add(RetryMin << (c.fails - 1))
		}
	}
	q.fill(now, out)
}

// Tick does what is due at now; see [Queue.Next].
func (q *Queue) Tick(now automaton.Instant, out *Orders) {
	for _, c := range q.line {
		if now < c.told.Add(ReportEvery) || c.gone {
			continue
		}
		// A stream on which nothing moves is not reported: whoever has patience for it loses it in time.
		if !c.stream || c.moved || c.waits != automaton.Never {
			out.Told = append(out.Told, Told{c.key, order.Underway})
		}
		c.told, c.moved = now, false
	}
	q.fill(now, out)
}

// Next returns when [Queue.Tick] is due, at the latest; Never when nothing waits.
func (q *Queue) Next() automaton.Instant {
	next := automaton.Never
	for _, c := range q.line {
		next = min(next, c.told.Add(ReportEvery))
		if !c.stream && q.running < OutMax {
			next = min(next, c.ready)
		}
		if c.stream && c.waits != automaton.Never && !c.cut {
			next = min(next, c.waits.Add(WaitMax))
		}
	}
	return next
}

// fill begins those whose turn it is. A place that waits for a busy receiver is taken back for one that is for another peer.
func (q *Queue) fill(now automaton.Instant, out *Orders) {
	for _, c := range q.line {
		if c.stream || c.gone || c.ready > now {
			continue
		}
		if q.running < OutMax {
			c.stream = true
			q.running++
			out.Begin = append(out.Begin, c.key)
			continue
		}
		for _, w := range q.line {
			if w.stream && w.waits != automaton.Never && now >= w.waits.Add(WaitMax) && w.peer != c.peer {
				w.end(out)
			}
		}
		return
	}
}

// end asks for the end of a stream, once.
func (c *carriage) end(out *Orders) {
	if !c.cut {
		c.cut = true
		out.Cut = append(out.Cut, c.key)
	}
}

func (q *Queue) over(c *carriage, s order.Carriage, out *Orders) {
	out.Told = append(out.Told, Told{c.key, s})
	q.remove(c)
}

func (q *Queue) remove(c *carriage) {
	delete(q.byKey, c.key)
	q.line = slices.DeleteFunc(q.line, func(o *carriage) bool { return o == c })
}
