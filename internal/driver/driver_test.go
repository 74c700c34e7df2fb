package driver

import (
	"sync"
	"testing"
	"time"

	"latchkey/internal/automaton"
)

func TestClockGoesForwardAndNamesItsStart(t *testing.T) {
	c, d := NewClock(), NewClock()
	if c.Nonce() == 0 || c.Nonce() == d.Nonce() {
		t.Errorf("nonces %d and %d", c.Nonce(), d.Nonce())
	}
	last := automaton.Instant(0)
	for range 1000 {
		now := c.Now()
		if now < last {
			t.Fatalf("went back from %d to %d", last, now)
		}
		last = now
	}
	if last > automaton.Instant(time.Minute) || c.Jumps() != 0 {
		t.Errorf("after %d ns: %d jumps", last, c.Jumps())
	}
}

func TestMailboxKeepsOrderAndItsBound(t *testing.T) {
	m := NewMailbox[int](3)
	for i := range 3 {
		if !m.TryPut(i) {
			t.Fatalf("refused event %d of 3", i)
		}
	}
	if m.TryPut(3) {
		t.Error("took a fourth event")
	}
	if !m.Put(4) {
		t.Error("refused the owner's own event")
	}
	<-m.Wake()
	got, closed := m.Take(nil)
	if len(got) != 4 || got[0] != 0 || got[3] != 4 || closed {
		t.Errorf("took %v, closed %v", got, closed)
	}
	if !m.TryPut(5) {
		t.Error("refused an event after it was emptied")
	}
	m.Close()
	m.Close()
	if m.TryPut(6) || m.Put(6) {
		t.Error("took an event after Close")
	}
	<-m.Wake()
	if got, closed = m.Take(got); len(got) != 1 || got[0] != 5 || !closed {
		t.Errorf("after Close took %v, closed %v", got, closed)
	}
}

// Storage that a flood needed goes back with it.
func TestFloodsStorageIsGivenBack(t *testing.T) {
	m := NewMailbox[int](10 * spareMax)
	for i := range 10 * spareMax {
		m.TryPut(i)
	}
	flood, _ := m.Take(nil)
	if _, _ = m.Take(flood); cap(m.queue) > spareMax {
		t.Errorf("the mailbox keeps room for %d events", cap(m.queue))
	}

	var timers Timers[int]
	for i := range 10 * shrinkMin {
		timers.Set(i, automaton.Instant(i))
	}
	for i := range 9 * shrinkMin {
		timers.Stop(i)
	}
	for i := 9 * shrinkMin; i < 10*shrinkMin; i++ {
		if key, ok := timers.Expired(automaton.Instant(10 * shrinkMin)); !ok || key != i {
			t.Fatalf("%d ran out, %v; want %d", key, ok, i)
		}
	}
	if cap(timers.heap) > 2*shrinkMin {
		t.Errorf("room for %d timers is kept", cap(timers.heap))
	}
}

func TestMailboxLosesNoWakeUp(t *testing.T) {
	const writers, each = 8, 2000
	m := NewMailbox[int](writers * each)
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for i := range each {
				m.TryPut(i)
			}
		})
	}
	var batch []int
	for seen := 0; seen < writers*each; seen += len(batch) {
		<-m.Wake()
		batch, _ = m.Take(batch)
	}
	wg.Wait()
}

func TestTimersExpireByTimeThenAge(t *testing.T) {
	var ts Timers[string]
	if ts.Next() != automaton.Never {
		t.Error("an empty set has a next timer")
	}
	ts.Set("late", 30)
	ts.Set("b", 20)
	ts.Set("a", 20)
	ts.Set("gone", 1)
	ts.Set("moved", 5)
	ts.Set("moved", 25)
	ts.Stop("gone")
	ts.Stop("never set")
	var got []string
	for now := automaton.Instant(0); now <= 30; now += 10 {
		for {
			k, ok := ts.Expired(now)
			if !ok {
				break
			}
			got = append(got, k)
		}
	}
	want := []string{"b", "a", "moved", "late"}
	if len(got) != len(want) {
		t.Fatalf("expired %v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("expired %v, want %v", got, want)
		}
	}
}
