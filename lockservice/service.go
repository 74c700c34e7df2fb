package lockservice

import (
	"context"
	"errors"
	"time"

	"latchkey/internal/automaton"
)

// Clock is the time by which a holder counts its lease: it must go on while the machine sleeps.
type Clock interface {
	Now() automaton.Instant
	// Jumps counts the suspends and clock jumps that were noticed where the clock stops in them; a rise means that every
	// lock may be lost.
	Jumps() uint64
}

// ServiceOption configures a [Service].
type ServiceOption func(*Service)

// WithClock sets the clock that leases are counted by. Default: the system's suspend-aware clock.
func WithClock(c Clock) ServiceOption { return func(s *Service) { s.clock = c } }

// Service takes locks over a backend.
type Service struct {
	backend Backend
	clock   Clock
}

// New returns a service over b.
func New(b Backend, opts ...ServiceOption) *Service {
	s := &Service{backend: b}
	for _, o := range opts {
		o(s)
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

// WithTTL sets how long one grant lasts without renewal. Default 15 s, 1 s to the overlay's maximum, else [ErrTTL]. A
// longer TTL survives longer pauses; a crashed holder blocks others as long.
func WithTTL(d time.Duration) Option { return func(c *config) { c.ttl = d } }

// WithWait limits how long Lock waits, apart from ctx. Past it the error matches [ErrWait]; 0, the default, is no limit.
func WithWait(d time.Duration) Option { return func(c *config) { c.wait = d } }

// WithQueued has fn told the place in the queue while Lock waits (1 is next). fn must not block.
func WithQueued(fn func(position int)) Option { return func(c *config) { c.queued = fn } }

// WithoutRenewal makes a lease of fixed length: it ends after the TTL, whatever its holder does.
func WithoutRenewal() Option { return func(c *config) { c.noRenew = true } }

// Lock waits until the caller holds the lock named name and returns its handle.
func (s *Service) Lock(ctx context.Context, name string, opts ...Option) (*Handle, error) {
	return nil, errors.ErrUnsupported
}

// NetworkLock is Lock.
func (s *Service) NetworkLock(ctx context.Context, name string, opts ...Option) (*Handle, error) {
	return s.Lock(ctx, name, opts...)
}

// TryLock takes the lock if nobody has it, and else returns an error that matches [ErrLocked], without queueing.
func (s *Service) TryLock(ctx context.Context, name string, opts ...Option) (*Handle, error) {
	return nil, errors.ErrUnsupported
}

// Info tells who holds a lock and who waits for it.
func (s *Service) Info(ctx context.Context, name string) (Info, error) {
	return s.backend.Info(ctx, name)
}

// Close releases what is held and ends the service.
func (s *Service) Close() error { return nil }
