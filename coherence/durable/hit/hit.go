package hit

import (
	"sync/atomic"
	"time"

	"latchkey/coherence/durable/cachedobject"
	"latchkey/internal/driver"
)

// Tolerance is how far wall time and monotonic time may move against each other within a lease. A machine that sleeps for less keeps its copies
// for that much longer, so leases are published shorter by it.
const Tolerance = 5 * time.Millisecond

// Lease is what all copies of one group on one node are read by. Safe for concurrent use, but for Publish, which belongs to the automaton's
// driver.
type Lease struct {
	clock   *driver.Clock
	began   time.Time
	current atomic.Pointer[published] // nil: none is held
	hot     atomic.Bool
	hits    atomic.Uint64 // of which one in Sample is counted
}

// Sample is how many hits one stands for that is counted: to count each would have all threads write to one place.
const Sample = 1 << sampleBits

const (
	sampleBits = 6
	// spread takes the time of a hit to a number between which and others there is no pattern: the golden ratio, in 64 bits.
	spread = 0x9E37_79B9_7F4A_7C15
)

// Hits returns how many copies were read, about.
func (l *Lease) Hits() uint64 { return l.hits.Load() * Sample }

type published struct {
	tags  cachedobject.Lease
	end   time.Duration // monotonic, since began
	ahead time.Duration // of wall time, when it was published
}

// NewLease returns the lease of an automaton whose driver goes by clock. There is none at first.
func NewLease(clock *driver.Clock) *Lease { return &Lease{clock: clock, began: time.Now()} }

// looks is how often the clocks are read before they count as moved. Go reads wall time first and monotonic time then, and on a busy machine
// a thread may be put aside in between: wall time seems to be behind then.
const looks = 3

// glance returns monotonic time, and how far wall time is ahead of it.
func (l *Lease) glance() (mono, ahead time.Duration) {
	now := time.Now()
	mono = now.Sub(l.began)
	return mono, time.Duration(now.UnixNano()) - mono
}

// Publish is called after each step of the automaton that changed its lease, before what it says is sent.
func (l *Lease) Publish(tags cachedobject.Lease) {
	mono, ahead := l.glance() // before the driver's clock: the end comes a little too early, and not too late
	for range looks - 1 {
		_, again := l.glance()
		ahead = max(ahead, again)
	}
	left := tags.End.Sub(l.clock.Now()) - Tolerance
	if !tags.Held || left <= 0 {
		l.current.Store(nil)
		return
	}
	l.current.Store(&published{tags, mono + left, ahead})
}

// Hot reports whether a copy was hit since it was last asked: then the lease is to be renewed.
func (l *Lease) Hot() bool { return l.hot.Load() && l.hot.Swap(false) }

// allows reports whether a copy that was loaded before may be read at this reading of the clocks.
func (p *published) allows(c *cachedobject.Cell, mono, ahead time.Duration) bool {
	moved := ahead - p.ahead
	return mono < p.end && moved < Tolerance && -moved < Tolerance && c.Tenure == p.tags.Tenure && c.Session == p.tags.Session
}

// Copy is one object's copy. Safe for concurrent use.
type Copy struct {
	lease *Lease
	cell  atomic.Pointer[cachedobject.Cell]
}

// NewCopy returns a copy that is not there yet.
func NewCopy(l *Lease) *Copy { return &Copy{lease: l} }

// Publish replaces the copy, by nil if there is none any more. An acknowledgement that it is gone is sent afterwards.
func (c *Copy) Publish(cell *cachedobject.Cell) { c.cell.Store(cell) }

// Load returns the copy, if it may be read. The value in it is not to be changed. Otherwise the automaton has to be asked.
func (c *Copy) Load() (*cachedobject.Cell, bool) {
	cell := c.cell.Load()
	l := c.lease
	p := l.current.Load()
	if cell == nil || p == nil {
		return nil, false
	}
	for range looks {
		mono, ahead := l.glance() // after both loads
		if !p.allows(cell, mono, ahead) {
			continue
		}
		if !l.hot.Load() { // most hits only read what all share
			l.hot.Store(true)
		}
		if uint64(mono)*spread>>(64-sampleBits) == 0 { // the clock was read anyway, and a random number costs a tenth of the hit
			l.hits.Add(1)
		}
		return cell, true
	}
	return nil, false
}

// Has reports whether there is a copy, that may be read or not.
func (c *Copy) Has() bool { return c.cell.Load() != nil }
