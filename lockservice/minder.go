package lockservice

import (
	"sync"
	"time"
)

// minder begins the loops of holds that last, of one service: a hold needs its loop only after a while, and most are over by then. One timer
// serves them all, and is touched only by one that is due before all others: setting and stopping a timer for each hold would cost an
// uncontended lock more than its automaton does.
type minder struct {
	begin func(*keeper) // begins a loop; it must not block

	mu    sync.Mutex
	holds keepers     // whose loop has not begun
	timer *time.Timer // nil until the first one
	wakes time.Time   // when it runs out; zero when it is not set
}

// keepers is a list, in the order in which they came.
type keepers struct{ first, last *keeper }

// minding is a keeper's place in the list.
type minding struct {
	prev, next *keeper
	in         bool
	due        time.Time
}

func (l *keepers) add(k *keeper) {
	k.mind.prev, k.mind.next, k.mind.in = l.last, nil, true
	if l.last == nil {
		l.first = k
	} else {
		l.last.mind.next = k
	}
	l.last = k
}

func (l *keepers) remove(k *keeper) {
	m := &k.mind
	if m.prev == nil {
		l.first = m.next
	} else {
		m.prev.mind.next = m.next
	}
	if m.next == nil {
		l.last = m.prev
	} else {
		m.next.mind.prev = m.prev
	}
	m.prev, m.next, m.in = nil, nil, false
}

// put has a keeper's loop begin after a while, unless drop comes first.
func (m *minder) put(k *keeper, after time.Duration) {
	due := time.Now().Add(after)
	m.mu.Lock()
	defer m.mu.Unlock()
	k.mind.due = due
	m.holds.add(k)
	m.armLocked(due, after)
}

func (m *minder) drop(k *keeper) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if k.mind.in {
		m.holds.remove(k)
	}
}

func (m *minder) armLocked(due time.Time, after time.Duration) {
	if !m.wakes.IsZero() && !due.Before(m.wakes) {
		return
	}
	if m.wakes = due; m.timer == nil {
		m.timer = time.AfterFunc(after, m.expired)
	} else {
		m.timer.Reset(after)
	}
}

// expired begins the loops that are due.
func (m *minder) expired() {
	m.mu.Lock()
	defer m.mu.Unlock()
	now, next := time.Now(), time.Time{}
	m.wakes = time.Time{}
	for k := m.holds.first; k != nil; {
		after := k.mind.next
		switch {
		case !k.mind.due.After(now):
			m.holds.remove(k)
			m.begin(k)
		case next.IsZero() || k.mind.due.Before(next):
			next = k.mind.due
		}
		k = after
	}
	if !next.IsZero() {
		m.armLocked(next, next.Sub(now))
	}
}

// stop gives the timer up, once no hold is left.
func (m *minder) stop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.timer != nil {
		m.timer.Stop()
	}
}
