// Package automaton holds the few words that every latchkey automaton speaks: a point in time and the arithmetic of
// clock drift.
//
// An automaton never reads a clock. Time reaches it as an [Instant] inside an event, taken by its driver from a
// monotonic clock that goes on counting while the machine sleeps (or, in the simulator, from the virtual clock).
package automaton

import (
	"math"
	"time"
)

// Instant is a point on one node's own clock, in nanoseconds since that driver started. Instants of different nodes, or
// of different starts of one node, are never compared. The zero value is the start.
type Instant int64

// Never is later than every instant that occurs. It stands for "no deadline".
const Never Instant = math.MaxInt64

// Add returns the instant d after t, saturating at [Never] and at the earliest instant instead of wrapping.
func (t Instant) Add(d time.Duration) Instant {
	s := t + Instant(d)
	switch {
	case d > 0 && s < t:
		return Never
	case d < 0 && s > t:
		return math.MinInt64
	}
	return s
}

// Sub returns how long t is after u.
func (t Instant) Sub(u Instant) time.Duration { return time.Duration(t - u) }

// Drift is the bound ρ on how far the rate of a node's clock may be from real time (lock-protocols.md, assumption A1):
// every clock runs between 1-ρ and 1+ρ of real time. It is kept in parts per million, so that the two formulas below
// are exact integer arithmetic and give the same answer at every replica.
type Drift int64

// DriftDefault is ρ = 1 %.
const DriftDefault Drift = 10_000

// Shrink returns how much of a lease of length d its holder may use, counted on its own clock from before it sent the
// request: d·(1-ρ)/(1+ρ), rounded down. A holder that stops then has stopped before a replica whose clock obeys ρ ends
// the lease.
func (p Drift) Shrink(d time.Duration) time.Duration {
	return scale(d, 1_000_000-int64(p), 1_000_000+int64(p), false)
}

// Stretch returns how long a replica waits, on its own clock, to be sure that d has passed on every clock that obeys ρ:
// d·(1+ρ)/(1-ρ), rounded up.
func (p Drift) Stretch(d time.Duration) time.Duration {
	return scale(d, 1_000_000+int64(p), 1_000_000-int64(p), true)
}

// scale computes d·num/den without overflow for every d up to a century.
func scale(d time.Duration, num, den int64, up bool) time.Duration {
	whole, rest := int64(d)/den, int64(d)%den
	r := rest * num
	s := whole*num + r/den
	if up && r%den != 0 {
		s++
	}
	return time.Duration(s)
}
