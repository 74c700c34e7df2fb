package lockservice

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"latchkey/internal/automaton"
)

// Handle is one held lock. It is bound to this hold: releasing it can never release a later one, also not of the same
// program. It belongs to no goroutine, and its methods are safe for concurrent use.
type Handle struct {
	service *Service
	name    string
	ttl     time.Duration
	noRenew bool

	holds holdContext

	ready signal // the lock is held, or never will be; what follows is set before
	err   error  // why it never will be
	grant Grant
	jumps uint64 // of the clock, when the lock was asked for

	stop   context.CancelCauseFunc // ends the wait for the lock, and nothing once it is held
	keeper keeper

	deadline atomic.Int64 // D, an automaton.Instant
	queued   atomic.Bool  // the request stood in the queue

	release signal // the first Release was called

	ended    signal     // the keeper has stopped; what follows is set before
	lost     *LostError // nil unless the lock was lost
	released error      // what became of the release, when the lock was not lost

	lateOnce sync.Once
	late     error // what became of a release after the loss
}

// errReleased is the cause with which a handle's context ends at its release.
var errReleased = fmt.Errorf("%w: released by its holder", ErrNotHeld)

// Name returns the lock's name.
func (h *Handle) Name() string { return h.name }

// Token returns the fencing token of this hold: above that of every earlier hold of this lock. Give it to the resource.
func (h *Handle) Token() Token { return h.grant.Token }

// Holder names this holder as others see it in [Info] and in errors: its session and, where known, its peer.
func (h *Handle) Holder() string { return h.grant.Holder }

// TTL returns how long the lease lasts without renewal.
func (h *Handle) TTL() time.Duration { return h.ttl }

// Remaining returns how much of the lease is certainly left by this machine's clock; 0 once the lock is lost or released. No
// one else can be granted the lock before it has passed. [Handle.Context] ends a tenth of the TTL earlier.
//
// A positive answer is true at the moment of asking only: the program may be held up for any time before it acts on it.
func (h *Handle) Remaining() time.Duration {
	now := h.service.clock.Now()
	if h.holds.ended() || h.service.clock.Jumps() != h.jumps {
		return 0
	}
	return max(0, automaton.Instant(h.deadline.Load()).Sub(now))
}

// Context ends when the holder must stop: with a cause that matches [ErrLost] (a [*LostError]) when the lock may be lost, a
// tenth of the TTL before anyone else can be granted it; with one that matches [ErrNotHeld] at Release. It carries the values
// of the context Lock was called with, but neither its end nor its deadline. See context.Cause.
//
// After the machine was suspended, the end may come up to half a second of running time late; Remaining is right at once.
func (h *Handle) Context() context.Context { return h.holds.context() }

// Release ends the context, gives the lock back and waits for the answer. It is idempotent: later calls return what the
// first one found.
//
// Errors: [ErrLost] if the lock was lost before (it is given back all the same, so that others need not wait for the end
// of the lease), [ErrNotHeld] if the group had ended the grant already, [ErrOutcomeUnknown] with context.Cause(ctx) if ctx
// ended first: the release is then repeated in the background until the lease is over. After any of them the lock is not
// held any more, or will not be once its TTL has passed.
func (h *Handle) Release(ctx context.Context) error {
	if h.release.give() {
		h.keeper.release(ctx)
	}
	select {
	case <-h.ended.given():
	case <-ctx.Done():
		return fmt.Errorf("%w: release %q: %w", ErrOutcomeUnknown, h.name, context.Cause(ctx))
	}
	if h.lost == nil {
		return h.released
	}
	h.lateOnce.Do(func() {
		h.late = h.lost
		if err := h.service.backend.Release(ctx, h.grant); err != nil && !errors.Is(err, ErrNotHeld) {
			h.late = errors.Join(h.lost, err)
		}
	})
	return h.late
}
