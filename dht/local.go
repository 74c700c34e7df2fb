package dht

import (
	"context"
	"fmt"
	"sync"

	"latchkey/dht/pb"
)

// local carries the messages of a node to itself: in order, on a goroutine of its own, never on the caller's stack.
type local struct {
	o    *Overlay
	link *link // holds our calls to ourselves; it never has a stream

	mu     sync.Mutex
	queue  []localItem
	bytes  int // of messages queued; answers are bounded by the calls
	msgs   int
	idle   bool
	wakeup chan struct{}
}

type localItem struct {
	item
	service *service // of a message
}

func newLocal(o *Overlay) *local {
	return &local{o: o, link: newLink(o, o.self), wakeup: make(chan struct{}, 1)}
}

// post queues a message to ourselves, bounded as a bulk outbox in bytes and as a control one in messages.
func (q *local) post(it *item, service string, c *call) error {
	if !q.o.up.Load() {
		return ErrClosed
	}
	q.mu.Lock()
	if q.o.shutOut.Load() {
		q.mu.Unlock()
		return fmt.Errorf("%w: ourselves: %w", ErrUnreachable, errNotAdmitted)
	}
	if q.msgs >= outboxMessagesMax[Control] || q.bytes+len(it.payload) > outboxBytesMax[Bulk] {
		q.mu.Unlock()
		return fmt.Errorf("%w: to ourselves: %d messages, %d bytes", ErrOutboxFull, q.msgs, q.bytes)
	}
	if c != nil {
		if err := q.link.await(it.id, c); err != nil {
			q.mu.Unlock()
			return err
		}
	}
	q.msgs++
	q.bytes += len(it.payload)
	copied := *it
	copied.payload = append([]byte(nil), it.payload...)
	copied.service = []byte(service)
	q.pushLocked(localItem{copied, q.o.handlers[service]})
	return nil
}

// shutOut ends what we have asked of ourselves: no answer of later counts. It is called once no request is taken any more.
func (q *local) shutOut() {
	q.mu.Lock() // whoever has taken one has noted the call
	q.link.mu.Lock()
	_, calls := q.link.loseLocked()
	q.link.mu.Unlock()
	q.mu.Unlock()
	endAll(calls, fmt.Errorf("%w: ourselves: %w", ErrLinkLost, errNotAdmitted))
}

// answer queues the answer to a request of ours.
func (q *local) answer(it *item) {
	copied := *it
	copied.payload = append([]byte(nil), it.payload...)
	q.mu.Lock()
	q.pushLocked(localItem{item: copied})
}

// pushLocked unlocks q.mu.
func (q *local) pushLocked(it localItem) {
	q.queue = append(q.queue, it)
	wake := q.idle
	q.idle = false
	q.mu.Unlock()
	if wake {
		q.wakeup <- struct{}{}
	}
}

func (q *local) run() {
	var batch []localItem
	for context.Cause(q.o.ctx) == nil {
		q.mu.Lock()
		batch, q.queue = q.queue, batch[:0]
		q.idle = len(batch) == 0
		q.mu.Unlock()
		if len(batch) == 0 {
			select {
			case <-q.wakeup:
			case <-q.o.ctx.Done():
			}
			continue
		}
		for i := range batch {
			q.dispatch(&batch[i], len(batch) == 1)
			batch[i] = localItem{}
		}
	}
}

func (q *local) dispatch(it *localItem, alone bool) {
	switch it.kind {
	case pb.Kind_KIND_REPLY, pb.Kind_KIND_ERROR:
		q.link.complete(&it.item, it.payload)
	default:
		q.mu.Lock()
		q.msgs--
		q.bytes -= len(it.payload)
		q.mu.Unlock()
		q.o.serve(q.link, nil, &it.item, it.service, it.payload, alone)
	}
}
