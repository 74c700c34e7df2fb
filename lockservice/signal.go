package lockservice

import (
	"context"
	"sync"
)

// signal is something that happens once. Its channel is made only when somebody waits: of a lock that is free, and given back by who took
// it, nobody does. The zero value has not happened.
type signal struct {
	mu   sync.Mutex
	over bool
	c    chan struct{}
}

// happened is the channel of signals that nobody had waited for.
var happened = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// give makes it happen, and answers whether it had not before.
func (s *signal) give() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return false
	}
	if s.over = true; s.c != nil {
		close(s.c)
	}
	return true
}

// given returns a channel that is closed once it has happened. What was done before is then seen.
func (s *signal) given() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.c != nil:
	case s.over:
		return happened
	default:
		s.c = make(chan struct{})
	}
	return s.c
}

// holdContext is the context of a hold, made when it is asked for.
type holdContext struct {
	mu     sync.Mutex
	values context.Context // whose values it carries
	over   bool
	cause  error // why, where it is not canceled for no reason
	ctx    context.Context
	cancel context.CancelCauseFunc
}

// end ends it with a cause, unless it has ended.
func (c *holdContext) end(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return
	}
	if c.over, c.cause = true, cause; c.cancel != nil {
		c.cancel(cause)
	}
}

func (c *holdContext) ended() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.over
}

func (c *holdContext) context() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx == nil {
		c.ctx, c.cancel = context.WithCancelCause(context.WithoutCancel(c.values))
		if c.over {
			c.cancel(c.cause)
		}
	}
	return c.ctx
}
