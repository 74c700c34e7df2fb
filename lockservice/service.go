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
	minder  minder

	mu      sync.Mutex
	closed  bool
	handles map[*Handle]struct{} // whose loop runs
	done    chan struct{}        // closed when Close has done its work
}

// New returns a service over b. It starts nothing; each lock has a goroutine while it is waited for or held.
func New(b Backend, opts ...ServiceOption) *Service {
	s := &Service{backend: b, handles: make(map[*Handle]struct{}), done: make(chan struct{})}
	s.closing, s.close = context.WithCancel(context.Background())
	s.minder.begin = func(k *keeper) { go k.loop() }
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
	shared  bool
	permits int
	delay   time.Duration
	value   string

	protocol Protocol
}

// request is what is asked of the backend. What it is told of the queue is not in it.
func (c *config) request(name string) Request {
	return Request{
		Name: name, TTL: c.ttl, Try: c.try, Shared: c.shared, Permits: c.permits, Delay: c.delay, Value: c.value, Protocol: c.protocol,
	}
}

func configOf(opts []Option) config {
	var c config
	for _, o := range opts {
		o(&c)
	}
	return c
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

// WithLockDelay keeps the lock from everybody for a while after this hold has ended by its lease, or was broken; not after a
// release. It suits resources that cannot check tokens, and holders that may go on for a moment. 0, the default, to
// [LockDelayMax], else [ErrShape]. Who shares a lock, or has a permit, sets it for all.
func WithLockDelay(d time.Duration) Option { return func(c *config) { c.delay = d } }

// WithValue has value, at most [ValueBytesMax] bytes of UTF-8, told to whoever asks who holds the lock ([Info]), as that of the
// first holder. Else [ErrShape].
func WithValue(value string) Option { return func(c *config) { c.value = value } }

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
// Errors: [ErrName], [ErrTTL], [ErrShape], [ErrNoQuorum] when too few replicas answer, [ErrOutcomeUnknown], [ErrLimit], [ErrWait],
// [ErrClosed] after Close, otherwise context.Cause(ctx). Source: lock-protocols.md sections 3, 3.1 and 7.
func (s *Service) Lock(ctx context.Context, name string, opts ...Option) (*Handle, error) {
	return s.lock(ctx, name, configOf(opts))
}

// NetworkLock is Lock.
func (s *Service) NetworkLock(ctx context.Context, name string, opts ...Option) (*Handle, error) {
	return s.Lock(ctx, name, opts...)
}

// TryLock takes the lock if it is free, and else returns an error that matches [ErrLocked] (a [*LockedError]), without
// queueing. It blocks for a round trip to the lock's group; otherwise it is as Lock.
func (s *Service) TryLock(ctx context.Context, name string, opts ...Option) (*Handle, error) {
	c := configOf(opts)
	c.try = true
	return s.lock(ctx, name, c)
}

// RLock takes the lock to share it: with others that share it, and with nobody who does not. Who waits to have it alone is not
// overtaken by who comes later to share it, so neither starves. Those who share it at a time have one token, above that of
// everybody before them: a [Guard] takes what each of them sends, until somebody else has had the lock. Otherwise, and in its
// errors, it is as Lock; while the name is a semaphore it fails with [ErrMode].
func (s *Service) RLock(ctx context.Context, name string, opts ...Option) (*Handle, error) {
	c := configOf(opts)
	c.shared = true
	return s.lock(ctx, name, c)
}

// TryRLock is RLock without waiting, as [Service.TryLock] is Lock. It fails with [ErrLocked] also where somebody waits to have the
// lock alone.
func (s *Service) TryRLock(ctx context.Context, name string, opts ...Option) (*Handle, error) {
	c := configOf(opts)
	c.shared, c.try = true, true
	return s.lock(ctx, name, c)
}

// Semaphore is a name of which several may hold a permit at a time.
type Semaphore struct {
	service *Service
	name    string
	permits int
}

// Semaphore returns the semaphore called name with n permits, 1 to [PermitsMax], else asking for one fails with [ErrShape]. It asks nobody: whether the name is in use with
// another number, or as a lock, is seen when a permit is asked for, which then fails with [ErrMode]. A name may be used as something
// else once nobody has it or waits for it.
func (s *Service) Semaphore(name string, n int) *Semaphore { return &Semaphore{s, name, n} }

// Acquire waits for a permit, first come first served. Each has a token of its own, which is above those of all earlier ones; as
// several are valid at a time, a [Guard] cannot check them: it would refuse all but the latest. Otherwise it is as [Service.Lock].
func (m *Semaphore) Acquire(ctx context.Context, opts ...Option) (*Handle, error) {
	return m.acquire(ctx, configOf(opts))
}

// TryAcquire takes a permit if one is free and nobody waits for it, and else fails with [ErrLocked].
func (m *Semaphore) TryAcquire(ctx context.Context, opts ...Option) (*Handle, error) {
	c := configOf(opts)
	c.try = true
	return m.acquire(ctx, c)
}

func (m *Semaphore) acquire(ctx context.Context, c config) (*Handle, error) {
	if m.permits < 1 {
		return nil, fmt.Errorf("%w: %d permits; a semaphore has 1 to %d", ErrShape, m.permits, PermitsMax)
	}
	c.permits = m.permits
	return m.service.lock(ctx, m.name, c)
}

func (s *Service) lock(ctx context.Context, name string, c config) (*Handle, error) {
	if err := errors.Join(CheckName(name), checkShape(c.request(name))); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
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
		return nil, ofLock(name, err)
	}
	h := newHandle(ctx, cancel, s, name, c)
	if !s.enter(h) {
		return nil, ErrClosed
	}
	h.keep(ctx, c, limits)
	<-h.ready.given()
	if errors.Is(h.err, ErrWait) && h.queued.Load() {
		return nil, fmt.Errorf("%w: %w", h.err, ErrLocked)
	}
	if errors.Is(h.err, ErrMode) {
		return nil, ofLock(name, h.err)
	}
	if h.err != nil {
		return nil, h.err
	}
	return h, nil
}

// ofLock names the lock in an error that does not.
func ofLock(name string, err error) error { return fmt.Errorf("lockservice: lock %q: %w", name, err) }

// overlayLimits asks the backend once: an overlay never changes them.
func (s *Service) overlayLimits(ctx context.Context) (Limits, error) {
	if l := s.limits.Load(); l != nil {
		return *l, nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.closing, func() { cancel(ErrClosed) })()
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
	return s.info(ctx, name)
}

func (s *Service) info(ctx context.Context, name string) (Info, error) {
	i, err := s.backend.Info(ctx, name)
	i.tidy()
	return i, err
}

// tidy shows no lease as lasting longer than its holder asked for: a group waits a little longer for its end, by as much as clocks may differ.
func (i *Info) tidy() {
	i.LeaseLeft = leaseLeft(i.LeaseLeft, i.TTL)
	for n := range i.Holders {
		h := &i.Holders[n]
		h.LeaseLeft = leaseLeft(h.LeaseLeft, h.TTL)
	}
}

func leaseLeft(left, ttl time.Duration) time.Duration {
	if ttl == 0 { // not known, of one that may hold it by grants of voters
		return left
	}
	return min(left, ttl)
}

// Break takes a lock away from its holder: every hold with this token ends as if its lease were over. The token is used up, so
// a resource that checks tokens refuses the former holder from the first write of the next one on; but that holder believes in its
// lease until it hears of it, so without such a check both may use the resource at once. As a rule it is told within a few round trips; where
// that is lost, or it has held for less than half a second, it finds out by its next renewal, or when the lease ends where it cannot
// renew. A lock delay the holder has set ([WithLockDelay]) is waited for. It is for operators, and kept in the group's state: [Info]
// shows the latest. Take the token from [Service.Info]; a hold that has come after it is left alone.
//
// It blocks for a round trip. Errors: [ErrNotHeld] when nobody holds the lock with this token, [ErrName], [ErrNoQuorum],
// [ErrOutcomeUnknown], [ErrClosed], otherwise context.Cause(ctx).
func (s *Service) Break(ctx context.Context, name string, token Token) (Party, error) {
	if s.closing.Err() != nil {
		return Party{}, ErrClosed
	}
	if err := CheckName(name); err != nil {
		return Party{}, err
	}
	holder, err := s.backend.Break(ctx, name, token)
	if err == nil {
		// No warning: in a client of a daemon nobody else reads this log, and the daemon warns in its own.
		log.Infow("broke a lock", "lock", name, "token", token, "holder", holder.String())
	}
	return holder, err
}

// Abandon closes the service as a crash would: nothing is released, waited for or renewed any longer. What is held is left to its lease, and its
// context ends with a cause that matches [ErrLost]. It blocks only as long as the backend's Close does.
func (s *Service) Abandon() {
	s.end()
	s.Close()
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
	for _, h := range held {
		h.stop(ErrClosed)
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	errs := make([]error, len(held)+1)
	var wg sync.WaitGroup
	for i, h := range held {
		wg.Go(func() {
			<-h.ready.given() // who still waited has been told ErrClosed, and its request is taken back
			if s.life.Err() != nil {
				h.keeper.loop() // which ends at once
				return
			}
			if err := h.Release(ctx); err != nil && h.err == nil {
				errs[i] = fmt.Errorf("lockservice: close: %w", err)
			}
		})
	}
	wg.Wait()
	s.end()
	s.loops.Wait()
	s.minder.stop()
	if c, ok := s.backend.(io.Closer); ok {
		errs[len(held)] = c.Close()
	}
	return errors.Join(errs...)
}
