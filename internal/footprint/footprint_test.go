package footprint

import (
	"context"
	"runtime"
	"runtime/debug"
	"testing"
	"testing/synctest"
	"time"
)

func TestWorth(t *testing.T) {
	const mb = 1 << 20
	for name, c := range map[string]struct {
		now  sample
		want bool
	}{
		"garbage of an idle process":     {sample{objects: 80 * mb, live: 40 * mb}, true},
		"free and not given back":        {sample{objects: 40 * mb, live: 40 * mb, free: 30 * mb}, true},
		"little":                         {sample{objects: 24 * mb, live: 8 * mb}, false},
		"a small share":                  {sample{objects: 500 * mb, live: 400 * mb}, false},
		"it works":                       {sample{objects: 80 * mb, live: 40 * mb, collections: collectionsMax + 1}, false},
		"a collection is not over":       {sample{objects: 39 * mb, live: 40 * mb}, false},
		"one that ended between the two": {sample{objects: 80 * mb, live: 40 * mb, collections: collectionsMax}, true},
	} {
		if got := c.now.worth(sample{}); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

var ballast []byte

// What a process no longer needs is given back, though nothing makes it collect.
func TestMemoryIsGivenBack(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // a collection that runs while the ballast is made would take it for needed
	runtime.GC()
	if s := look(); s.objects == 0 || s.live == 0 || s.collections == 0 {
		t.Fatalf("the runtime does not tell: %+v", s)
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		ballast = make([]byte, 4*least)
		ballast = nil
		before := look()
		done := make(chan struct{})
		go func() { Keep(ctx); close(done) }()
		for range 3 {
			time.Sleep(every) // of the bubble
		}
		cancel()
		<-done
		if now := look(); now.objects+now.free+2*least > before.objects+before.free {
			t.Errorf("%+v, was %+v", now, before)
		}
	})
}

// A start lasts until the process is idle, or works for long.
func TestAStartEnds(t *testing.T) {
	for name, tc := range map[string]struct {
		works bool
		looks int // that it lasts
	}{"idle": {false, 1}, "at work": {true, startMax}} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			if Starts() {
				t.Fatal("before it has begun")
			}
			go func() { Keep(ctx); close(done) }()
			time.Sleep(every / 2) // of the bubble: between two looks
			for i := range tc.looks {
				if !Starts() {
					t.Errorf("%s: over after %d looks", name, i)
				}
				if tc.works {
					for range collectionsMax + 1 {
						runtime.GC()
					}
				}
				time.Sleep(every)
			}
			if Starts() {
				t.Errorf("%s: not over after %d looks", name, tc.looks)
			}
			cancel()
			<-done
		})
	}
}
