package sim

import (
	"math/rand/v2"
	"slices"
	"time"
)

type link struct{ from, to NodeID }

// network holds the state of the links.
type network struct {
	rand *rand.Rand
	last map[link]Time // when the newest message of a link arrives, to keep order where order is kept
	cut  Cut
}

func (n *network) blocked(from, to NodeID) bool { return n.cut != nil && from != to && n.cut(from, to) }

// selfDelay is how long a message to oneself takes.
const selfDelay = time.Microsecond

func (w *World) send(from, to NodeID, msg any) {
	if from == to {
		w.push(event{at: w.now + selfDelay, kind: messageEvent, node: to, from: from, msg: msg})
		return
	}
	n, f := &w.net, &w.cfg.Faults
	faulty := f.active(w.now)
	if n.blocked(from, to) || faulty && n.chance(f.Loss) {
		return
	}
	copies := 1
	if faulty && n.chance(f.Duplicate) {
		copies = 2
	}
	for range copies {
		at := w.now + w.delay(from, to)
		l := link{from, to}
		if faulty && n.chance(f.Reorder) {
			at += n.upTo(f.ReorderBy) // it may overtake and be overtaken
		} else {
			at = max(at, n.last[l]) // same time: the queue keeps the order of sending
			n.last[l] = at
		}
		w.push(event{at: at, kind: messageEvent, node: to, from: from, msg: msg})
	}
}

// delay draws how long a message travels.
func (w *World) delay(from, to NodeID) time.Duration {
	if w.cfg.Delay != nil {
		return w.cfg.Delay(w.net.rand, from, to)
	}
	f := &w.cfg.Faults
	return f.DelayMin + w.net.upTo(f.DelayMax-f.DelayMin)
}

// chance reports true with probability p. It draws nothing when p is 0, so a fault that is off costs nothing.
func (n *network) chance(p float64) bool { return p > 0 && n.rand.Float64() < p }

func (n *network) upTo(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return time.Duration(n.rand.Int64N(int64(d) + 1))
}

// Cut says which directed links are cut: messages from from to to are lost, also those already travelling when they
// would arrive.
type Cut func(from, to NodeID) bool

// SetCut replaces the present cut; nil heals every link. Drawn faults use the same, so a test draws its partitions or sets
// them, not both.
func (w *World) SetCut(c Cut) { w.net.cut = c }

// Split cuts the nodes into sides that cannot reach each other. A node on no side reaches nobody.
func Split(sides ...[]NodeID) Cut {
	side := sideOf(sides)
	return func(from, to NodeID) bool {
		a, okA := side[from]
		b, okB := side[to]
		return !okA || !okB || a != b
	}
}

// OneWay loses what the first nodes send to the second, and nothing else.
func OneWay(from, to []NodeID) Cut {
	return func(f, t NodeID) bool { return slices.Contains(from, f) && slices.Contains(to, t) }
}

// Bridged is [Split] with one node more that both sides can reach.
func Bridged(bridge NodeID, sides ...[]NodeID) Cut {
	split := Split(sides...)
	return func(from, to NodeID) bool { return from != bridge && to != bridge && split(from, to) }
}

func sideOf(sides [][]NodeID) map[NodeID]int {
	m := make(map[NodeID]int)
	for i, s := range sides {
		for _, id := range s {
			m[id] = i
		}
	}
	return m
}
