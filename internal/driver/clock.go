package driver

import (
	"crypto/rand"
	"encoding/binary"
	"sync/atomic"
	"time"

	"latchkey/internal/automaton"
)

// jumpMin is how far wall time may run ahead of monotonic time between two readings before that counts as a jump.
const jumpMin = time.Second

// Clock is a monotonic clock that goes on counting while the machine is suspended, where the system has one. It never
// runs faster than real time beyond the drift that the overlay allows for, so leases may be counted by it on both ends.
// It is safe for concurrent use.
type Clock struct {
	start int64 // of suspendAware, when it exists
	began time.Time
	nonce uint64
	ahead atomic.Int64 // wall minus monotonic at the last reading
	jumps atomic.Uint64
}

// NewClock starts a clock at 0 with a fresh boot nonce.
func NewClock() *Clock {
	c := &Clock{began: time.Now(), nonce: nonce()}
	c.start, _ = suspendAware()
	return c
}

// nonce draws a random number that is never 0.
func nonce() uint64 {
	var b [8]byte
	for {
		rand.Read(b[:]) // never fails: crypto/rand crashes the program instead
		if n := binary.BigEndian.Uint64(b[:]); n != 0 {
			return n
		}
	}
}

// Now returns the time since the clock was started.
func (c *Clock) Now() automaton.Instant {
	if now, ok := suspendAware(); ok {
		return automaton.Instant(now - c.start)
	}
	now := time.Now()
	mono := now.Sub(c.began)
	// Round strips the monotonic reading, so this difference is of wall times.
	ahead := int64(now.Round(0).Sub(c.began.Round(0)) - mono)
	if before := c.ahead.Swap(ahead); ahead-before > int64(jumpMin) || before-ahead > int64(jumpMin) {
		c.jumps.Add(1)
	}
	return automaton.Instant(mono)
}

// SuspendAware reports whether the system has a clock that counts suspended time. Where it has none, [Clock.Jumps] tells afterwards that
// Now may have missed some.
func (c *Clock) SuspendAware() bool {
	_, ok := suspendAware()
	return ok
}

// Nonce names this start of this clock; it is random and never 0. Readings of two clocks are compared only when their
// nonces are equal.
func (c *Clock) Nonce() uint64 { return c.nonce }

// Jumps counts how often wall time and monotonic time moved apart by more than a second. It stays 0 where the system has a
// clock that counts suspended time. Where it rises, the machine may have slept without Now noticing: a holder of a lease
// must then treat it as lost.
func (c *Clock) Jumps() uint64 { return c.jumps.Load() }
