package dht

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A write is late when it takes one to two times the limit, and only then, whether or not others have ended before it.
func TestStalledWriteIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = time.Second
		begun := time.Now()
		var late atomic.Int64 // after the beginning
		for _, before := range []int{0, 1, 2, 100} {
			w := &stallWatch{limit: limit, late: func() { late.Store(int64(time.Since(begun))) }}
			for range before { // now and then one is under way when the timer runs out
				w.begin()
				time.Sleep(limit * 9 / 10)
				w.end()
				time.Sleep(limit / 7)
			}
			if late.Load() != 0 {
				t.Fatal("a write that ended is late")
			}
			at := time.Since(begun)
			w.begin()
			time.Sleep(3 * limit)
			if took := time.Duration(late.Swap(0)) - at; took < limit || took > 2*limit {
				t.Errorf("after %d others, a write that does not end is late after %v", before, took)
			}
			w.stop()
			w = &stallWatch{limit: limit, late: w.late}
			w.begin()
			w.stop()
			if time.Sleep(3 * limit); late.Load() != 0 {
				t.Error("a write is late after the end of the watch")
			}
		}
	})
}
