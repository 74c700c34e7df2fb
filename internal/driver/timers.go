package driver

import (
	"container/heap"
	"maps"
	"slices"

	"latchkey/internal/automaton"
)

// Timers is a set of timers of one owner, each named by a key. Setting a key again replaces its timer. Like the automata it
// serves it belongs to one goroutine and reads no clock. The zero value is ready.
type Timers[K comparable] struct {
	byKey map[K]*timer[K]
	heap  timerHeap[K]
	seq   uint64
	most  int // armed at once, since storage was last given back
}

type timer[K comparable] struct {
	key   K
	at    automaton.Instant
	seq   uint64 // breaks ties by age, so that expiry order is repeatable
	index int
}

// Set arms key's timer for at, replacing an earlier one.
func (t *Timers[K]) Set(key K, at automaton.Instant) {
	if t.byKey == nil {
		t.byKey = make(map[K]*timer[K])
	}
	t.seq++
	if old, ok := t.byKey[key]; ok {
		old.at, old.seq = at, t.seq
		heap.Fix(&t.heap, old.index)
		return
	}
	n := &timer[K]{key: key, at: at, seq: t.seq}
	t.byKey[key] = n
	heap.Push(&t.heap, n)
	t.most = max(t.most, len(t.heap))
}

// Stop disarms key's timer, if there is one.
func (t *Timers[K]) Stop(key K) {
	if old, ok := t.byKey[key]; ok {
		heap.Remove(&t.heap, old.index)
		delete(t.byKey, key)
		t.shrink()
	}
}

// shrinkMin is how many timers' storage is not worth giving back.
const shrinkMin = 1024

// shrink gives storage back that once was needed for many more timers: a map never does by itself. What that costs, those have paid
// that were stopped since.
func (t *Timers[K]) shrink() {
	if t.most < shrinkMin || len(t.heap) > t.most/8 {
		return
	}
	t.most = len(t.heap)
	t.heap = slices.Clone(t.heap)
	byKey := make(map[K]*timer[K], len(t.byKey))
	maps.Copy(byKey, t.byKey)
	t.byKey = byKey
}

// Next returns when the earliest timer runs out, [automaton.Never] when none is armed.
func (t *Timers[K]) Next() automaton.Instant {
	if len(t.heap) == 0 {
		return automaton.Never
	}
	return t.heap[0].at
}

// Expired removes and returns one timer that has run out by now, the earliest first.
func (t *Timers[K]) Expired(now automaton.Instant) (key K, ok bool) {
	if len(t.heap) == 0 || t.heap[0].at > now {
		return key, false
	}
	n := heap.Pop(&t.heap).(*timer[K])
	delete(t.byKey, n.key)
	t.shrink()
	return n.key, true
}

type timerHeap[K comparable] []*timer[K]

func (h timerHeap[K]) Len() int { return len(h) }
func (h timerHeap[K]) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].seq < h[j].seq
}
func (h timerHeap[K]) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *timerHeap[K]) Push(x any) {
	n := x.(*timer[K])
	n.index = len(*h)
	*h = append(*h, n)
}
func (h *timerHeap[K]) Pop() any {
	old := *h
	n := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return n
}
