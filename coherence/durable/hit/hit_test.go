package hit

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"latchkey/coherence/durable"
	"latchkey/coherence/durable/cachedobject"
	"latchkey/coherence/protocol"
	"latchkey/internal/driver"
)

var (
	tenure  = durable.Tenure{Term: 1}
	session = durable.Session{Inc: 1, N: 1}
)

func cell(v durable.Version) *cachedobject.Cell {
	return &cachedobject.Cell{Value: &protocol.Cell{Bytes: []byte{byte(v)}}, Version: v, Tenure: tenure, Session: session}
}

func held(c *driver.Clock, d time.Duration) cachedobject.Lease {
	return cachedobject.Lease{Tenure: tenure, Session: session, End: c.Now().Add(d), Held: true}
}

func newCopy() (*driver.Clock, *Lease, *Copy) {
	clock := driver.NewClock()
	l := NewLease(clock)
	return clock, l, NewCopy(l)
}

// TestAHitReadsTheClock: nothing else than time tells a thread that the lease is over.
func TestAHitReadsTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &Lease{began: time.Now()}
		c := NewCopy(l)
		c.Publish(cell(1))
		if _, ok := c.Load(); ok {
			t.Error("a hit without a lease")
		}
		mono, ahead := l.glance()
		l.current.Store(&published{cachedobject.Lease{Tenure: tenure, Session: session, Held: true}, mono + time.Second, ahead})
		time.Sleep(time.Second - 1)
		if got, ok := c.Load(); !ok || got.Version != 1 {
			t.Error("no hit within the lease")
		}
		if !l.Hot() || l.Hot() {
			t.Error("a hit is to be told once")
		}
		time.Sleep(time.Nanosecond)
		if _, ok := c.Load(); ok {
			t.Error("a hit after the lease")
		}
	})
}

// TestHitsAreCounted: one in so many, whatever the time between them.
func TestHitsAreCounted(t *testing.T) {
	for _, every := range []time.Duration{1, 59, time.Microsecond, 15625 * time.Microsecond, time.Second} {
		synctest.Test(t, func(t *testing.T) {
			l := &Lease{began: time.Now()}
			c := NewCopy(l)
			c.Publish(cell(1))
			_, ahead := l.glance()
			l.current.Store(&published{cachedobject.Lease{Tenure: tenure, Session: session, Held: true}, 1 << 62, ahead})
			const hits = 20_000
			for range hits {
				if _, ok := c.Load(); !ok {
					t.Fatal("no hit")
				}
				time.Sleep(every)
			}
			if n := l.Hits(); n < hits*9/10 || n > hits*11/10 {
				t.Errorf("%d hits, one each %v, are counted as %d", hits, every, n)
			}
		})
	}
}

// TestWhoSleptHitsNothing: wall time went on, monotonic time stood still; and who sets the wall clock is asked again.
func TestWhoSleptHitsNothing(t *testing.T) {
	clock, l, c := newCopy()
	l.Publish(held(clock, time.Minute))
	p, x := l.current.Load(), cell(1)
	c.Publish(x)
	for _, moved := range []time.Duration{Tolerance, time.Hour, -Tolerance, -time.Hour} {
		if p.allows(x, 0, p.ahead+moved) {
			t.Errorf("a hit, and the clocks have moved by %v", moved)
		}
	}
	if moved := Tolerance - 1; !p.allows(x, 0, p.ahead+moved) || !p.allows(x, 0, p.ahead-moved) {
		t.Error("a clock that is corrected a little ends the lease")
	}
	for range 100 { // until the clock can be read at once
		if _, ok := c.Load(); ok {
			return
		}
	}
	t.Error("no hit")
}

func TestALeaseIsPublishedShorter(t *testing.T) {
	clock, l, c := newCopy()
	c.Publish(cell(1))
	before, _ := l.glance()
	lease := held(clock, time.Minute)
	l.Publish(lease)
	after, _ := l.glance()
	if end := l.current.Load().end; end < before+time.Minute-Tolerance-time.Second || end > after+time.Minute-Tolerance {
		t.Errorf("it ends at %v, published between %v and %v", end, before, after)
	}
	lease.End = clock.Now().Add(Tolerance / 2)
	l.Publish(lease)
	if _, ok := c.Load(); ok {
		t.Error("a lease within the tolerance is used")
	}
	lease = held(clock, time.Minute)
	lease.Held = false
	l.Publish(lease)
	if _, ok := c.Load(); ok {
		t.Error("a lease that is not held is used")
	}
}

func TestACopyOfAnotherSessionOrTenureIsNoHit(t *testing.T) {
	clock, l, c := newCopy()
	l.Publish(held(clock, time.Minute))
	for _, change := range []func(*cachedobject.Cell){
		func(x *cachedobject.Cell) { x.Tenure.Term++ },
		func(x *cachedobject.Cell) { x.Tenure.Gen++ },
		func(x *cachedobject.Cell) { x.Session.N++ },
		func(x *cachedobject.Cell) { x.Session.Inc++ },
	} {
		x := cell(1)
		change(x)
		c.Publish(x)
		if _, ok := c.Load(); ok {
			t.Errorf("%+v is a hit", x)
		}
	}
	c.Publish(nil)
	if _, ok := c.Load(); ok {
		t.Error("a copy that is gone is a hit")
	}
}

func TestAHitAllocatesNothing(t *testing.T) {
	clock, l, c := newCopy()
	l.Publish(held(clock, time.Hour))
	c.Publish(cell(1))
	if n := testing.AllocsPerRun(1000, func() { c.Load() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestWhatIsGoneIsNotReadAgain: once a copy was taken away, no read that begins later finds it, however the lease goes on.
func TestWhatIsGoneIsNotReadAgain(t *testing.T) {
	clock, l, c := newCopy()
	var readers sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		readers.Go(func() {
			last := durable.Version(0)
			for {
				select {
				case <-stop:
					return
				default:
				}
				if x, ok := c.Load(); ok {
					if x.Version < last {
						t.Errorf("version %d after %d", x.Version, last)
						return
					}
					last = x.Version
				}
			}
		})
	}
	for v := range durable.Version(5000) {
		c.Publish(nil)
		l.Publish(held(clock, time.Minute))
		c.Publish(cell(v + 1))
	}
	close(stop)
	readers.Wait()
}

func BenchmarkHit(b *testing.B) {
	clock, l, c := newCopy()
	l.Publish(held(clock, time.Hour))
	c.Publish(cell(1))
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := c.Load(); !ok {
			l.Publish(held(clock, time.Hour)) // the machine's clock was set, or is too busy to be read at once
		}
	}
}

// BenchmarkClock is what a hit is measured by.
func BenchmarkClock(b *testing.B) {
	for b.Loop() {
		_ = time.Now()
	}
}
