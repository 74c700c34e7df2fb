package lockservice

import (
	"context"
	"time"
)

// Handle is one held lock.
type Handle struct {
	grant Grant
	ctx   context.Context
}

// Name returns the lock's name.
func (h *Handle) Name() string { return h.grant.Name }

// Token returns the fencing token of this hold.
func (h *Handle) Token() Token { return h.grant.Token }

// Holder names this holder, as others see it.
func (h *Handle) Holder() string { return h.grant.Holder }

// TTL returns the length of the lease.
func (h *Handle) TTL() time.Duration { return h.grant.TTL }

// Remaining returns how much of the lease is certainly left, on this machine's clock.
func (h *Handle) Remaining() time.Duration { return 0 }

// Context ends, with a cause that matches [ErrLost], before anyone else can be granted the lock.
func (h *Handle) Context() context.Context { return h.ctx }

// Release gives the lock back. It is idempotent.
func (h *Handle) Release(ctx context.Context) error { return nil }
