package driver

import "sync"

// Mailbox is a bounded queue of events with one reader. Many goroutines put, the owner takes everything at once: a loop
// turn per batch, not per event, which is what lets a driver store and send for all its groups together.
//
// The zero value is not usable; see [NewMailbox].
type Mailbox[E any] struct {
	wake chan struct{} // holds a token when the queue may be non-empty or closed

	mu     sync.Mutex
	queue  []E
	max    int
	closed bool
}

// NewMailbox makes a mailbox that holds at most max events put by [Mailbox.TryPut].
func NewMailbox[E any](max int) *Mailbox[E] {
	return &Mailbox[E]{wake: make(chan struct{}, 1), max: max}
}

// TryPut adds an event. It never blocks, and answers false when the mailbox is full or closed: what comes from the network
// is then dropped, and its sender asks again.
func (m *Mailbox[E]) TryPut(e E) bool { return m.put(e, false) }

// Put adds an event even when the mailbox is full. It is for the owner's own events (timers, ends of local work), whose
// number is bounded by their source. It answers false when the mailbox is closed.
func (m *Mailbox[E]) Put(e E) bool { return m.put(e, true) }

func (m *Mailbox[E]) put(e E, always bool) bool {
	m.mu.Lock()
	if m.closed || !always && len(m.queue) >= m.max {
		m.mu.Unlock()
		return false
	}
	m.queue = append(m.queue, e)
	first := len(m.queue) == 1
	m.mu.Unlock()
	if first {
		m.signal()
	}
	return true
}

func (m *Mailbox[E]) signal() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// Wake is readable when [Mailbox.Take] may have something. Only the owner reads it.
func (m *Mailbox[E]) Wake() <-chan struct{} { return m.wake }

// Empty reports whether no event waits. It answers false when the mailbox is closed.
func (m *Mailbox[E]) Empty() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.queue) == 0 && !m.closed
}

// Nudge makes [Mailbox.Wake] readable without an event.
func (m *Mailbox[E]) Nudge() { m.signal() }

// spareMax is how many events' storage a mailbox takes back: what a rare flood needed is not kept for ever.
const spareMax = 1024

// Take returns all waiting events, in the order they were put, and gives the mailbox spare as its next storage. closed says
// that no further event will come.
func (m *Mailbox[E]) Take(spare []E) (events []E, closed bool) {
	if clear(spare); cap(spare) > spareMax {
		spare = nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	events, m.queue = m.queue, spare[:0]
	return events, m.closed
}

// Close refuses further events and wakes the owner. It is idempotent.
func (m *Mailbox[E]) Close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.signal()
}
