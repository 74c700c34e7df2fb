package lockservice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	logging "github.com/ipfs/go-log/v2"

	"latchkey/internal/automaton"
	"latchkey/internal/driver"
)

var log = logging.Logger("latchkey/lock")

// Clock is the time by which a holder counts its lease. It must go on while the machine sleeps, or report that it may have
// missed some.
type Clock interface {
	Now() automaton.Instant
	// Jumps counts the suspends and clock jumps noticed where the clock stops in them; a rise means that every lock may be
	// lost.
	Jumps() uint64
}

// closeTimeout bounds how long [Service.Close] waits for releases to be answered.
const closeTimeout = 5 * time.Second

// ServiceOption configures a [Service].
type ServiceOption func(*Service)

// WithClock sets the clock that leases are counted by. Default: the system's suspend-aware clock.
func WithClock(c Clock) ServiceOption { return func(s *Service) { s.clock = c } }

// Service takes locks over a [Backend], which it owns. It is safe for concurrent use.
type Service struct {
	backend Backend
	clock   Clock
	limits  atomic.Pointer[Limits] // nil until the backend has told them

	closing context.Context // ends first at Close: nobody waits for a lock any longer
	close   context.CancelFunc
	life    context.Context // ends last: nothing is renewed or released any longer
	end     context.CancelFunc
	loops   sync.WaitGroup // one per handle

	mu      sync.Mutex
	closed  bool
	handles map[*Handle]struct{} // whose loop runs
	done    chan struct{}        // closed when Close has done its work
}

// New returns a service over b. It starts nothing; each lock has a goroutine while it is waited for or held.
func New(b Backend, opts ...ServiceOption) *Service {
	s := &Service{backend: b, handles: make(map[*Handle]struct{}), done: make(chan struct{})}
	s.closing, s.close = context.WithCancel(context.Background())
	s.life, s.end = context.WithCancel(context.Background())
	for _, o := range opts {
		o(s)
	}
	if s.clock == nil {
		s.clock = driver.NewClock()
	}
	return s
}

// Option configures one lock.
type Option func(*config)

type config struct {
	ttl     time.Duration
	wait    time.Duration
	queued  func(int)
	try     bool
	noRenew bool
}

// WithTTL sets how long one grant lasts without renewal. Default 15 s (or the overlay's maximum, if lower), 1 s to the
// overlay's maximum, else [ErrTTL]. A longer TTL survives longer pauses; a crashed holder blocks others as long.
func WithTTL(d time.Duration) Option { return func(c *config) { c.ttl = d } }

// WithWait limits how long Lock waits, apart from ctx. Past it the error matches [ErrWait], and also [ErrLocked] if the
// request stood in the queue. 0, the default, is no limit.
func WithWait(d time.Duration) Option { return func(c *config) { c.wait = d } }

// WithQueued has fn told the place in the queue while Lock waits (1 is next). fn must not block.
func WithQueued(fn func(position int)) Option { return func(c *config) { c.queued = fn } }

// WithoutRenewal makes a lease of fixed length: the lock is lost after the TTL (less drift and guard), whatever its holder
// does. It suits work that must not go on for long, such as a holder that may hang.
func WithoutRenewal() Option { return func(c *config) { c.noRenew = true } }

// Lock waits until the caller holds the lock named name and returns its handle.
//
// It blocks on the lock's group; ctx, or the limit of [WithWait], ends the wait: the queue is left in the background, and a
// grant already made is given back or lapses by itself within the TTL. ctx does not end a hold. Locks are granted in the order
// in which requests reach the group. Locks are not re-entrant: who asks again for what it holds queues behind itself, as
// strangers do.
//
// The lease is renewed until Release. Mutual exclusion needs clock rates within the overlay's drift; without that, and for
// code that is delayed between a check and its effect, pass [Handle.Token] to the resource, which then refuses older tokens
// ([Guard]).
//
// Errors: [ErrName], [ErrTTL], [ErrNoQuorum] when too few replicas answer, [ErrOutcomeUnknown], [ErrLimit], [ErrWait],
// [ErrClosed] after Close, otherwise context.Cause(ctx). Source: lock-protocols.md sections 3, 3.1 and 7.
func (s *Service) Lock(ctx context.Context, name string, opts ...Option) (*Handle, error) {
	var c config
	for _, o := range opts {
		o(&c)
	}
	return s.lock(ctx, name, c)
}

// NetworkLock is Lock.
func (s *Service) NetworkLock(ctx context.Context, name string, opts ...Option) (*Handle, error) {
	return s.Lock(ctx, name, opts...)
}

// TryLock takes the lock if it is free, and else returns an error that matches [ErrLocked] (a [*LockedError]), without
// queueing. It blocks for a round trip to the lock's group; otherwise it is as Lock.
func (s *Service) TryLock(ctx context.Context, name string, opts ...Option) (*Handle, error) {
	c := config{}
	for _, o := range opts {
		o(&c)
	}
	c.try = true
	return s.lock(ctx, name, c)
}

func (s *Service) lock(ctx context.Context, name string, c config) (*Handle, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.closing, func() { cancel(ErrClosed) })()
	if c.wait > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeoutCause(ctx, c.wait, fmt.Errorf("%w of %v", ErrWait, c.wait))
		defer stop()
	}
	limits, err := s.overlayLimits(ctx)
	if err != nil {
		return nil, err
	}
	if c.ttl == 0 {
		c.ttl = limits.TTLDefault
	}
	if err := limits.CheckTTL(c.ttl); err != nil {
		return nil, err
	}
	h := newHandle(ctx, s, name, c)
	if !s.enter(h) {
		return nil, ErrClosed
	}
	h.keep(ctx, c, limits, func() { s.leave(h) })
	<-h.ready
	if errors.Is(h.err, ErrWait) && h.queued.Load() {
		return nil, fmt.Errorf("%w: %w", h.err, ErrLocked)
	}
	if h.err != nil {
		return nil, h.err
	}
	return h, nil
}

// overlayLimits asks the backend once: an overlay never changes them.
func (s *Service) overlayLimits(ctx context.Context) (Limits, error) {
	if l := s.limits.Load(); l != nil {
		return *l, nil
	}
	l, err := s.backend.Limits(ctx)
	if err == nil {
		s.limits.Store(&l)
	}
	return l, err
}

// enter counts a handle in, unless the service is closed. Close waits until it has left.
func (s *Service) enter(h *Handle) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.handles[h] = struct{}{}
	s.loops.Add(1)
	return true
}

func (s *Service) leave(h *Handle) {
	s.mu.Lock()
	delete(s.handles, h)
	s.mu.Unlock()
	s.loops.Done()
}

// Info tells who holds a lock and who waits for it. A lock nobody has asked for is free. It blocks for a round trip to the
// lock's group. Errors: [ErrName], [ErrNoQuorum], [ErrClosed], otherwise context.Cause(ctx).
func (s *Service) Info(ctx context.Context, name string) (Info, error) {
	if s.closing.Err() != nil {
		return Info{}, ErrClosed
	}
	if err := CheckName(name); err != nil {
		return Info{}, err
	}
	return s.backend.Info(ctx, name)
}

// Close ends the service in good order: waiting calls return [ErrClosed], every lock still held is released (its context
// ends first), and the backend is closed if it is an [io.Closer]. It blocks until all is answered, at most 5 s; what has not
// been released by then lapses with its lease, as after a crash. It is idempotent. The error joins what could not be
// released.
func (s *Service) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		<-s.done
		return nil
	}
	s.closed = true
	var held []*Handle
	for h := range s.handles {
		held = append(held, h)
	}
	s.mu.Unlock()
	defer close(s.done)

	s.close()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	errs := make([]error, len(held)+1)
	var wg sync.WaitGroup
	for i, h := range held {
		wg.Go(func() {
			<-h.ready // who still waited has been told ErrClosed, and its request is taken back
			if err := h.Release(ctx); err != nil && h.err == nil {
				errs[i] = fmt.Errorf("lockservice: close: %w", err)
			}
		})
	}
	wg.Wait()
	s.end()
	s.loops.Wait()
	if c, ok := s.backend.(io.Closer); ok {
		errs[len(held)] = c.Close()
	}
	return errors.Join(errs...)
}
