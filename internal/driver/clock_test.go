package driver

import (
	"testing"
	"time"
)

// Between calls of the system the clock goes by monotonic time. A sleep shows in wall time, or else when the system is asked again.
func TestAClockNoticesSleepWithoutAskingTheSystemEachTime(t *testing.T) {
	const ms = int64(time.Millisecond)
	var none *agreement
	a := none.renewed(100, 7, 105, 110)
	if a.offset != 5 || !a.holds(110, 7) || !a.holds(110+agreedFor-1, 7+aheadMax-1) {
		t.Fatalf("%+v", a)
	}
	for name, at := range map[string][2]int64{
		"its time is over":          {110 + agreedFor, 7},
		"the machine slept":         {200, 7 + 30*ms},
		"the wall clock was set":    {200, 7 - ms},
		"the readings were far off": {200, 7 + aheadMax},
	} {
		if a.holds(at[0], at[1]) {
			t.Errorf("%s, and it still holds", name)
		}
	}
	for name, c := range map[string]struct {
		before, aware, after, offset int64
	}{
		"nothing has happened":           {1000, 1004, 1010, 5},
		"interrupted before the reading": {1000, 9005, 9010, 5},
		"interrupted after the reading":  {1000, 1005, 9010, 5},
		"slept":                          {1000, 1005 + 30*ms, 1010, 5 + 30*ms},
		"slept while others interrupted": {1000, 1005 + 30*ms, 1010 + ms, 5 + 30*ms},
	} {
		if b := a.renewed(c.before, 7, c.aware, c.after); b.offset != c.offset {
			t.Errorf("%s: the offset becomes %d, want %d", name, b.offset, c.offset)
		}
	}
}

func BenchmarkNow(b *testing.B) {
	for c := NewClock(); b.Loop(); {
		c.Now()
	}
}
