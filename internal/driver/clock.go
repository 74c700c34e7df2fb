package driver

import (
	"crypto/rand"
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"latchkey/internal/automaton"
)

// jumpMin is how far wall time may run ahead of monotonic time between two readings before that counts as a jump.
const jumpMin = time.Second

// Clock is a monotonic clock that goes on counting while the machine is suspended, where the system has one. It never
// runs faster than real time beyond the drift that the overlay allows for, so leases may be counted by it on both ends.
// It is safe for concurrent use.
//
// The system's suspend-aware clock costs ten times what wall and monotonic time together cost, which are read without a call of the
// system. It differs from monotonic time by what the machine has slept, and so does wall time. So Now goes by monotonic time and the
// difference last seen, as long as wall time has kept its own, and asks the system again after agreedFor at the latest: a sleep could go
// unnoticed for so long if the wall clock were set back right after it by just its length.
type Clock struct {
	start int64 // of suspendAware, when it exists
	began time.Time
	nonce uint64

	agreeing sync.Mutex                // held by who changes agreed
	agreed   atomic.Pointer[agreement] // nil where the system has no suspend-aware clock

	ahead atomic.Int64 // where it has none: wall minus monotonic at the last reading
	jumps atomic.Uint64
}

// agreement is how the clocks of the system stood to each other when they were last read together. All times are nanoseconds.
type agreement struct {
	ahead  int64 // wall minus monotonic time
	offset int64 // suspend-aware minus monotonic time
	until  int64 // the monotonic time to which it holds
}

const (
	agreedFor = int64(time.Millisecond)
	// aheadMax is how far wall time may have moved against monotonic time before the system is asked. Between the readings of the two
	// some tens of nanoseconds pass.
	aheadMax = int64(20 * time.Microsecond)
	// readingMax is how long the readings of an agreement should take together; they are repeated a few times if they are interrupted.
	readingMax = int64(20 * time.Microsecond)
)

// holds reports whether an agreement can be gone by.
func (a *agreement) holds(mono, ahead int64) bool {
	return mono < a.until && ahead-a.ahead < aheadMax && a.ahead-ahead < aheadMax
}

// renewed returns the agreement after the suspend-aware clock was read between two readings of monotonic time. The offset changes only
// when the machine has slept: else instants would move against each other by how long the readings took.
func (a *agreement) renewed(before, ahead, aware, after int64) *agreement {
	n := &agreement{ahead: ahead, offset: aware - before, until: after + agreedFor}
	if a != nil && aware-after <= a.offset {
		n.offset = a.offset
	}
	return n
}

// NewClock starts a clock at 0 with a fresh boot nonce.
func NewClock() *Clock {
	c := &Clock{began: time.Now(), nonce: nonce()}
	c.start, _ = suspendAware()
	c.agree()
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
	mono, ahead := c.glance()
	a := c.agreed.Load()
	if a == nil || !a.holds(mono, ahead) {
		if mono, a = c.agree(); a == nil {
			if before := c.ahead.Swap(ahead); ahead-before > int64(jumpMin) || before-ahead > int64(jumpMin) {
				c.jumps.Add(1)
			}
			return automaton.Instant(mono)
		}
	}
	return automaton.Instant(mono + a.offset)
}

// glance reads monotonic time since the start, and how much further wall time has come.
func (c *Clock) glance() (mono, ahead int64) {
	now := time.Now()
	mono = int64(now.Sub(c.began))
	return mono, int64(now.Round(0).Sub(c.began.Round(0))) - mono
}

// agree reads all clocks, unless another has just done so, and answers the monotonic time as well; a is nil where the system has no
// suspend-aware clock.
func (c *Clock) agree() (mono int64, a *agreement) {
	c.agreeing.Lock()
	defer c.agreeing.Unlock()
	old := c.agreed.Load()
	mono, ahead := c.glance()
	if old != nil && old.holds(mono, ahead) {
		return mono, old
	}
	for range 4 {
		aware, ok := suspendAware()
		if !ok {
			return mono, nil
		}
		after, _ := c.glance()
		a = old.renewed(mono, ahead, aware-c.start, after)
		if after-mono <= readingMax {
			mono = after
			break
		}
		mono, ahead = c.glance()
	}
	c.agreed.Store(a)
	return mono, a
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
