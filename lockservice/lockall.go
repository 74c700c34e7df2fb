package lockservice

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// LockAllMax bounds the names of one [Service.LockAll].
const LockAllMax = 128

// Handles are several locks that are held together. Its methods are safe for concurrent use.
type Handles struct {
	held   []*Handle // by name
	ctx    context.Context
	cancel context.CancelCauseFunc
}

// LockAll takes several locks: all of them, or none. It takes one after the other in the order of their names, whatever order they
// are given in, so callers of LockAll never wait for each other in a circle; one that holds a lock already by other means may. A
// name given twice is one lock. Locks it holds while it waits for the others are renewed, and if one of them is lost, or ctx ends, all
// are given back.
//
// Errors: [ErrName] for a bad name or none at all, [ErrLimit] for more than [LockAllMax], [ErrLost] when one was lost while it waited
// for another, otherwise as [Service.Lock].
func (s *Service) LockAll(ctx context.Context, names ...string) (*Handles, error) {
	return s.LockSet(ctx, names)
}

// LockSet is LockAll with options, which are those of every lock. A limit of [WithWait] is for all together.
func (s *Service) LockSet(ctx context.Context, names []string, opts ...Option) (*Handles, error) {
	names = slices.Compact(slices.Sorted(slices.Values(names)))
	switch {
	case len(names) == 0:
		return nil, fmt.Errorf("%w: no lock is named", ErrName)
	case len(names) > LockAllMax:
		return nil, fmt.Errorf("%w: %d locks at once, at most %d", ErrLimit, len(names), LockAllMax)
	}
	for _, name := range names { // before the first is taken
		if err := CheckName(name); err != nil {
			return nil, err
		}
	}
	c := configOf(opts)
	if c.wait > 0 {
		limit, stop := context.WithTimeoutCause(ctx, c.wait, fmt.Errorf("%w of %v", ErrWait, c.wait))
		defer stop()
		ctx, c.wait = limit, 0
	}
	all := &Handles{}
	all.ctx, all.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	waiting, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	defer context.AfterFunc(all.ctx, func() { stop(context.Cause(all.ctx)) })()
	for _, name := range names {
		h, err := s.lock(waiting, name, c)
		if err != nil {
			if cause := context.Cause(all.ctx); cause != nil {
				err = fmt.Errorf("lockservice: lock %q: %w", name, cause)
			}
			all.giveBack(min(s.ttlOf(c), closeTimeout))
			return nil, err
		}
		all.held = append(all.held, h)
		context.AfterFunc(h.Context(), func() { all.cancel(context.Cause(h.Context())) })
	}
	if cause := context.Cause(all.ctx); cause != nil { // lost when the last was granted
		all.giveBack(min(s.ttlOf(c), closeTimeout))
		return nil, cause
	}
	return all, nil
}

// ttlOf is how long what is not given back lasts at most.
func (s *Service) ttlOf(c config) time.Duration {
	if l := s.limits.Load(); c.ttl == 0 && l != nil {
		return l.TTLDefault
	}
	return max(c.ttl, TTLMin)
}

// giveBack releases what has been taken of a set that will not be whole.
func (a *Handles) giveBack(limit time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := a.Release(ctx); err != nil {
		log.Debugw("a lock of a set that is not taken could not be given back and lapses", "err", err)
	}
}

// All returns the handles, by name.
func (a *Handles) All() []*Handle { return slices.Clone(a.held) }

// Handle returns the handle of one of the locks, nil when it is none of them.
func (a *Handles) Handle(name string) *Handle {
	for _, h := range a.held {
		if h.Name() == name {
			return h
		}
	}
	return nil
}

// Context ends when any of the locks may be lost, with a cause that matches [ErrLost], or at Release, with one that matches
// [ErrNotHeld]. See [Handle.Context].
func (a *Handles) Context() context.Context { return a.ctx }

// Release gives all of them back, at the same time. It is idempotent, and joins what [Handle.Release] says of each.
func (a *Handles) Release(ctx context.Context) error {
	errs := make([]error, len(a.held))
	var wg sync.WaitGroup
	for i, h := range a.held {
		wg.Go(func() { errs[i] = h.Release(ctx) })
	}
	wg.Wait()
	a.cancel(errReleased)
	return errors.Join(errs...)
}
