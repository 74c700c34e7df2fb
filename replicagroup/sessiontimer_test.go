package replicagroup

import (
	"testing"
	"time"

	"latchkey/internal/automaton"
	"latchkey/internal/driver"
	"latchkey/replicagroup/order"
)

// A timer that was put off is left to run out early, and has to be set again then: an idle session lives by it.
func TestATimerThatRunsOutEarlyIsSetAgain(t *testing.T) {
	ctx := deadline(t, waitMax)
	h := &Host{clock: driver.NewClock(), sessions: make(map[order.ClientID]addressee)}
	s := newGroupSession(&Client{host: h}, order.GroupID{})
	wakes := func() automaton.Instant {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.wakes
	}
	now := h.clock.Now()
	soon, late := now.Add(50*time.Millisecond), now.Add(time.Hour)
	s.mu.Lock()
	s.armLocked(soon, now)
	s.armLocked(late, now)
	if s.wakes != soon || s.due != late {
		t.Errorf("wakes at %d, due at %d; want %d and %d", s.wakes, s.due, soon, late)
	}
	s.mu.Unlock()
	for wakes() != late {
		if err := pause(ctx, time.Millisecond); err != nil {
			t.Fatalf("wakes at %d, want %d", wakes(), late)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.armLocked(soon, h.clock.Now()) // brought forward
	if s.wakes != soon {
		t.Errorf("wakes at %d, want %d", s.wakes, soon)
	}
	s.timer.Stop()
}
