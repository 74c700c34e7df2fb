package lockservice

import (
	"context"
	"errors"
	"sync"
	"time"
)

// Meter counts what becomes of the locks that are asked for through some backends, for monitoring. The zero value is ready; one that is nil
// counts nothing. Its methods are safe for concurrent use.
type Meter struct {
	mu      sync.Mutex
	counts  Counts
	waiting int
	holds   map[metered]meteredHold
}

// Counts are what a [Meter] has counted.
type Counts struct {
	Held    int // now: granted, neither given back nor lost, and their leases are not over
	Waiting int // calls now that have asked for a lock and have no answer yet

	Sigma, Group uint64                        // locks granted, by the protocol that they were asked for by
	Waits        [len(WaitBuckets) + 1]uint64  // of them, how many were waited for no longer than each of WaitBuckets, and longer
	WaitTime     time.Duration                 // of all of them together
	Lost         uint64                        // holds whose group has ended them, or that were neither renewed nor given back in time
	Refused      [len(refusalNames) + 1]uint64 // calls that got no lock, by [Refusals]; the last for any other reason
}

// WaitBuckets are the upper bounds of [Counts].Waits.
var WaitBuckets = [...]time.Duration{
	time.Millisecond, 5 * time.Millisecond, 25 * time.Millisecond, 100 * time.Millisecond, 500 * time.Millisecond, 2500 * time.Millisecond, 10 * time.Second, time.Minute,
}

var refusalNames = [...]struct {
	name string
	err  error
}{{"locked", ErrLocked}, {"wait", ErrWait}, {"limit", ErrLimit}, {"no_quorum", ErrNoQuorum}, {"unknown", ErrOutcomeUnknown}, {"closed", ErrClosed}, {"cancelled", context.Canceled}}

// Refusals names the reasons of [Counts].Refused.
func Refusals() []string {
	names := make([]string, 0, len(refusalNames)+1)
	for _, r := range refusalNames {
		names = append(names, r.name)
	}
	return append(names, "other")
}

// metered is a grant. Numbers of requests are one backend's.
type metered struct {
	backend any
	req     uint64
}

type meteredHold struct {
	ends time.Time // of the lease, about
	over bool      // given back, perhaps
}

// Counts returns the counts.
func (m *Meter) Counts() Counts {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sweepLocked(time.Now())
	c := m.counts
	c.Waiting = m.waiting
	for _, h := range m.holds {
		if !h.over {
			c.Held++
		}
	}
	return c
}

// sweepLocked lets go of holds whose leases are over.
func (m *Meter) sweepLocked(now time.Time) {
	for k, h := range m.holds {
		if now.After(h.ends) {
			m.endLocked(k, !h.over)
		}
	}
}

func (m *Meter) endLocked(k metered, lost bool) {
	if _, ok := m.holds[k]; !ok {
		return
	}
	delete(m.holds, k)
	if lost {
		m.counts.Lost++
	}
}

// acquire counts a call of acquire, which does the work.
func (m *Meter) acquire(ctx context.Context, b any, r Request, acquire func(context.Context, Request) (Grant, error)) (Grant, error) {
	if m == nil {
		return acquire(ctx, r)
	}
	m.mu.Lock()
	m.waiting++
	m.mu.Unlock()
	begun := time.Now()
	g, err := acquire(ctx, r)
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.waiting--
	if err != nil {
		m.counts.Refused[refusalOf(err)]++
		return g, err
	}
	if g.Req > sigmaReqs {
		m.counts.Sigma++
	} else {
		m.counts.Group++
	}
	took, i := now.Sub(begun), 0
	for i < len(WaitBuckets) && took > WaitBuckets[i] {
		i++
	}
	m.counts.Waits[i]++
	m.counts.WaitTime += took
	if m.holds == nil {
		m.holds = make(map[metered]meteredHold)
	}
	if n := len(m.holds); n >= meterSweep && n&(n-1) == 0 { // nobody has asked for the counts for long
		m.sweepLocked(now)
	}
	m.holds[metered{b, g.Req}] = meteredHold{ends: now.Add(g.TTL)}
	return g, nil
}

// meterSweep is the least number of holds at which those that are over are looked for.
const meterSweep = 1 << 10

// refusalOf returns the place of a reason.
func refusalOf(err error) int {
	for i, r := range refusalNames {
		if errors.Is(err, r.err) {
			return i
		}
	}
	return len(refusalNames)
}

// renewed counts the end of a renewal.
func (m *Meter) renewed(b any, g Grant, err error) error {
	if m == nil || err != nil && !errors.Is(err, ErrNotHeld) {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	k := metered{b, g.Req}
	if h, ok := m.holds[k]; ok && err == nil {
		h.ends = time.Now().Add(g.TTL)
		m.holds[k] = h
	} else {
		m.endLocked(k, !h.over)
	}
	return err
}

// released counts the end of a release.
func (m *Meter) released(b any, g Grant, err error) error {
	if m == nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	k := metered{b, g.Req}
	switch h, ok := m.holds[k]; {
	case err == nil:
		m.endLocked(k, false)
	case errors.Is(err, ErrNotHeld):
		m.endLocked(k, !h.over)
	case ok: // it may have been executed, and is not renewed any more
		h.over = true
		m.holds[k] = h
	}
	return err
}
