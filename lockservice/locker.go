package lockservice

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// lockerPause is how long a [Locker] waits before it asks again when the lock's group cannot be asked.
const lockerPause = time.Second

// Locker is a lock as a [sync.Locker], for code that takes one. What sync.Locker cannot say is lost with it: a lease may end while
// the code believes in its lock. Code that can should look at Context, or use [Service.Lock].
//
// It is safe for concurrent use. Goroutines that use one Locker exclude each other in this process too, so that Unlock ends the hold
// of whoever calls it.
type Locker struct {
	service *Service
	name    string
	opts    []Option

	turn chan struct{} // has an element from Lock to Unlock
	held atomic.Pointer[Handle]
}

var _ sync.Locker = (*Locker)(nil)

// Locker returns the lock named name as a [sync.Locker].
func (s *Service) Locker(name string, opts ...Option) *Locker {
	return &Locker{service: s, name: name, opts: opts, turn: make(chan struct{}, 1)}
}

// Lock waits until the caller holds the lock. While the group cannot be asked it goes on trying. It panics when there is no use in
// that: the name or an option is unusable, the name is a semaphore, or the service is closed.
func (l *Locker) Lock() {
	l.turn <- struct{}{}
	for {
		h, err := l.service.Lock(context.Background(), l.name, l.opts...)
		if err == nil {
			l.held.Store(h)
			return
		}
		for _, hopeless := range []error{ErrName, ErrTTL, ErrShape, ErrMode, ErrClosed} {
			if errors.Is(err, hopeless) {
				<-l.turn
				panic(fmt.Sprintf("lockservice: Locker.Lock %q: %v", l.name, err))
			}
		}
		log.Warnw("a Locker waits and asks again", "lock", l.name, "err", err)
		select {
		case <-time.After(lockerPause):
		case <-l.service.closing.Done(): // asked once more, and refused
		}
	}
}

// Unlock gives the lock back. It waits for the answer for a TTL at most; without one the lease runs out by itself, as after a loss.
// Like that of a [sync.Mutex] it panics when the Locker is not locked.
func (l *Locker) Unlock() {
	h := l.held.Swap(nil)
	if h == nil {
		panic(fmt.Sprintf("lockservice: Unlock of %q, which is not locked", l.name))
	}
	defer func() { <-l.turn }()
	ctx, cancel := context.WithTimeout(context.Background(), h.TTL())
	defer cancel()
	if err := h.Release(ctx); err != nil {
		log.Warnw("a Locker's lock was lost, or could not be given back", "lock", l.name, "token", h.Token(), "err", err)
	}
}

// Handle returns the present hold, for its token and its context; nil while it is not locked.
func (l *Locker) Handle() *Handle { return l.held.Load() }
