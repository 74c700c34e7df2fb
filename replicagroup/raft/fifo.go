package raft

// fifo is a queue that reuses its storage. Its users bound its length. The zero value is ready, and small: there may be ten thousand
// engines with nothing to queue.
type fifo[T any] struct{ *queue[T] }

type queue[T any] struct {
	items []T
	head  int
}

func (q fifo[T]) len() int {
	if q.queue == nil {
		return 0
	}
	return len(q.items) - q.head
}

// all returns the queue's elements, valid until the next push or pop.
func (q fifo[T]) all() []T {
	if q.queue == nil {
		return nil
	}
	return q.items[q.head:]
}

func (q *fifo[T]) push(v T) {
	if q.queue == nil {
		q.queue = new(queue[T])
	}
	q.items = append(q.items, v)
}

// first returns the oldest element, nil when there is none; it may be changed in place.
func (q fifo[T]) first() *T {
	if q.len() == 0 {
		return nil
	}
	return &q.items[q.head]
}

// last returns the newest element, nil when there is none.
func (q fifo[T]) last() *T {
	if q.len() == 0 {
		return nil
	}
	return &q.items[len(q.items)-1]
}

// pop removes the oldest element. The dead part in front is at most as long as the living one, so a queue that never runs
// empty does not grow for ever.
func (q fifo[T]) pop() {
	var zero T
	q.items[q.head] = zero
	if q.head++; q.head*2 >= len(q.items) {
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
}

// rest gives the storage of an empty queue back.
func (q *fifo[T]) rest() {
	if q.len() == 0 {
		q.queue = nil
	}
}
