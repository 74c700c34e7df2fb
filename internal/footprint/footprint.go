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
	// startMax is how many looks a start lasts at most, for a process that works from its first moment on.
	startMax = 10
)

var starts atomic.Bool

// Starts reports whether the process keeps its memory small ([Keep]) and has not been idle between two looks yet, nor for long on its way.
func Starts() bool { return starts.Load() }

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

// Keep gives memory back until ctx ends. One in a process is enough.
func Keep(ctx context.Context) {
	t := time.NewTicker(every)
	defer t.Stop()
	starts.Store(true)
	defer starts.Store(false)
	for before, looks := look(), 1; ; looks++ {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		now := look()
		if now.collections-before.collections <= collectionsMax || looks >= startMax {
			starts.Store(false)
		}
		if now.worth(before) {
			debug.FreeOSMemory()
			now = look()
		}
		before = now
	}
}
