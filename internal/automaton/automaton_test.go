package automaton

import (
	"testing"
	"time"
)

func TestShrinkAndStretchBracketTheLease(t *testing.T) {
	for _, d := range []time.Duration{0, 1, 999, time.Second, 15 * time.Second, time.Minute, 24 * 365 * time.Hour} {
		for _, p := range []Drift{0, 1, DriftDefault, 100_000} {
			s, l := p.Shrink(d), p.Stretch(d)
			if s > d || l < d {
				t.Errorf("ρ=%d d=%v: shrink %v, stretch %v do not bracket it", p, d, s, l)
			}
			// The holder's share, run on the slowest clock, must end before the replica's wait on the fastest.
			if slow, fast := p.Stretch(s), d; slow > fast+2 {
				t.Errorf("ρ=%d d=%v: stretch(shrink) = %v passes the lease", p, d, slow)
			}
		}
	}
	if got, want := DriftDefault.Stretch(1010*time.Millisecond), 1030404041*time.Nanosecond; got != want {
		t.Errorf("stretch(1.01 s) = %v, want %v", got, want)
	}
}

func TestInstantSaturates(t *testing.T) {
	if got := Never.Add(time.Hour); got != Never {
		t.Errorf("Never + 1h = %d", got)
	}
	if got := Instant(5).Add(-7); got != -2 {
		t.Errorf("5 - 7 = %d", got)
	}
	if got := Instant(9).Sub(4); got != 5 {
		t.Errorf("9 - 4 = %v", got)
	}
}
