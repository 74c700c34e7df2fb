// Package footprint gives memory back to the system that the process holds for nothing.
//
// The collector lets garbage grow until the heap has doubled, and an idle process makes so little that this takes hours; what is free it
// gives back slowly, and keeps a share. So a peer that has started with ten thousand groups, all of which sleep by then, would go on
// holding twice what it needs. [Keep] looks now and then, and has a collection give everything back where that is worth its time.
package footprint

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"
	"time"
)

const (
	// every is the time between two looks.
	every = 30 * time.Second
	// least is how little is not worth a collection.
	least = 16 << 20
	// collectionsMax is how many collections between two looks mean that the process works: it would need the memory again at once.
	collectionsMax = 2
)

// sample is what a look finds: bytes but for collections, which were ever begun.
type sample struct{ objects, live, free, collections uint64 }

const (
	objects     = "/memory/classes/heap/objects:bytes" // garbage included
	live        = "/gc/heap/live:bytes"                // after the last collection
	free        = "/memory/classes/heap/free:bytes"    // and not given back
	collections = "/gc/cycles/total:gc-cycles"
)

func look() sample {
	s := []metrics.Sample{{Name: objects}, {Name: live}, {Name: free}, {Name: collections}}
	metrics.Read(s)
	return sample{s[0].Value.Uint64(), s[1].Value.Uint64(), s[2].Value.Uint64(), s[3].Value.Uint64()}
}

// worth reports whether a collection would give back enough, by what two looks one after the other have found: more than least, and more
// than a quarter of what is needed.
func (s sample) worth(before sample) bool {
	spare := s.free + s.objects - min(s.objects, s.live)
	return s.collections-before.collections <= collectionsMax && spare > max(least, s.live/4)
}

// What stays is scattered among what was garbage when it was made, and nothing moves it: of a heap that has been twice its size on the way a
// third stays unused. So while a process starts, and what it keeps grows, it should collect early: [Starting].
const (
	startEvery = time.Second
	startOver  = 30              // so many looks without growth: it has started
	startMax   = 5 * time.Minute // or this long
)

var starting atomic.Bool

// Starting reports whether what the process keeps is growing, since it starts, and is more than a little. Whoever sets how much garbage may
// gather ought to let less of it do so meanwhile.
func Starting() bool { return starting.Load() }

// start follows the start of the process.
func start(ctx context.Context) {
	t := time.NewTicker(startEvery)
	defer t.Stop()
	defer starting.Store(false)
	still, before := 0, look()
	for began := time.Now(); still < startOver && time.Since(began) < startMax; {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		now := look()
		if still++; now.grown(before) {
			still, before = 0, now
			starting.Store(true)
		}
	}
}

// grown reports whether what is needed has grown enough since a look to have more of it come.
func (s sample) grown(before sample) bool { return s.live > max(least, before.live+before.live/50) }

// Keep gives memory back until ctx ends, and begins when the process does. One in a process is enough.
func Keep(ctx context.Context) {
	start(ctx)
	t := time.NewTicker(every)
	defer t.Stop()
	for before := look(); ; {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		now := look()
		if now.worth(before) {
			debug.FreeOSMemory()
			now = look()
		}
		before = now
	}
}
