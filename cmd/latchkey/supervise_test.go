package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"latchkey/lockservice"
)

// lapsing is a lease that nobody renews.
type lapsing struct{ ctx context.Context }

func (lapsing) TTL() time.Duration         { return time.Minute }
func (lapsing) Remaining() time.Duration   { return 15 * time.Second }
func (l lapsing) Context() context.Context { return l.ctx }

// endless is a work that ends when the test says so.
type endless struct {
	ended chan struct{}
	asked bool
}

func (w *endless) done() <-chan struct{} { return w.ended }
func (w *endless) pass(syscall.Signal)   {}
func (w *endless) terminate()            { w.asked = true }
func (w *endless) kill()                 {}
func (w *endless) tend()                 {}
func (w *endless) result() error         { return nil }

// TestLossIsToldWhileTheWorkGoesOn has a work that ends only once its loss was told.
func TestLossIsToldWhileTheWorkGoesOn(t *testing.T) {
	t.Parallel()
	w := &endless{ended: make(chan struct{})}
	var told error
	lost := supervise(lapsing{t.Context()}, w, nil, func(lost error) {
		if !w.asked {
			t.Error("told before the work was asked to end")
		}
		told = lost
		close(w.ended)
	})
	if !errors.Is(lost, lockservice.ErrLost) || lost != told {
		t.Errorf("lost by %v, and %v was told", lost, told)
	}
}

// broken is a hold that its group has ended, long before its lease would be over.
type broken struct{ ctx context.Context }

func (broken) TTL() time.Duration         { return time.Minute }
func (broken) Remaining() time.Duration   { return 50 * time.Second }
func (b broken) Context() context.Context { return b.ctx }

// stubborn is a work that ends when it is killed.
type stubborn struct{ endless }

func (w *stubborn) kill() { close(w.ended) }

func TestWorkThatOutlivesItsBrokenLockIsKilledAtOnce(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	w := &stubborn{endless{ended: make(chan struct{})}}
	cancel(&lockservice.LostError{Name: "n", Cause: lockservice.ErrNotHeld})
	start := time.Now()
	lost := supervise(broken{ctx}, w, nil, func(error) {})
	if took := time.Since(start); !errors.Is(lost, lockservice.ErrNotHeld) || !w.asked || took > 20*time.Second {
		t.Errorf("lost by %v, asked to end %v, dead after %v", lost, w.asked, took)
	}
}

func TestAnInterruptionIsToldOnceWhateverItEnded(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	broke := errors.New("it broke")
	if err := interruption(ctx, broke); err != broke {
		t.Errorf("without one: %v", err)
	}
	cause := &interruptError{syscall.SIGTERM}
	cancel(cause)
	if err := interruption(ctx, errors.Join(fmt.Errorf("peer 1: %w", cause), fmt.Errorf("peer 2: %w", cause))); err != cause {
		t.Errorf("with one: %v", err)
	}
}
