package sigma

import "latchkey/internal/automaton"

// dueHeap holds names by when to look at them. A name knows its place; container/heap would cost an interface call for each
// comparison.
type dueHeap []*lock

// push adds a name, or moves it to an earlier instant.
func (h *dueHeap) push(l *lock, at automaton.Instant) {
	l.wake = at
	if l.at < 0 {
		l.at = len(*h)
		*h = append(*h, l)
	}
	h.up(l.at)
}

func (h *dueHeap) remove(l *lock) {
	if l.at < 0 {
		return
	}
	q := *h
	i, n := l.at, len(q)-1
	last := q[n]
	q[n] = nil
	*h = q[:n]
	l.at = -1
	if i < n {
		q[i], last.at = last, i
		h.up(i)
		h.down(last.at)
	}
}

func (h *dueHeap) up(i int) {
	q := *h
	for p := (i - 1) / 2; i > 0 && q[i].wake < q[p].wake; i, p = p, (p-1)/2 {
		h.swap(i, p)
	}
}

func (h *dueHeap) down(i int) {
	q := *h
	for c := 2*i + 1; c < len(q); c = 2*i + 1 {
		if c+1 < len(q) && q[c+1].wake < q[c].wake {
			c++
		}
		if q[i].wake <= q[c].wake {
			return
		}
		h.swap(i, c)
		i = c
	}
}

func (h *dueHeap) swap(i, j int) {
	q := *h
	q[i], q[j] = q[j], q[i]
	q[i].at, q[j].at = i, j
}

// idleList holds names nobody has or wants, the longest idle first.
type idleList struct{ first, last *lock }

func (s *idleList) push(l *lock) {
	l.idle, l.prev, l.next = true, s.last, nil
	if s.last != nil {
		s.last.next = l
	} else {
		s.first = l
	}
	s.last = l
}

func (s *idleList) remove(l *lock) {
	if !l.idle {
		return
	}
	if l.prev != nil {
		l.prev.next = l.next
	} else {
		s.first = l.next
	}
	if l.next != nil {
		l.next.prev = l.prev
	} else {
		s.last = l.prev
	}
	l.idle, l.prev, l.next = false, nil, nil
}
