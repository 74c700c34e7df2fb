package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"

	"latchkey/internal/footprint"
)

// heapRoom is how much the heap may grow from one garbage collection to the next, however little of it is in use. A peer keeps about
// ten MiB and turns over several hundred KiB in a millisecond of work: with Go's default, which is as much room as is in use, a tenth of
// what it does would be to look through the same ten MiB again. With this much it is a fourth of that, for as much more memory.
const heapRoom = 24 << 20

// startPercent is the setting for a peer that begins with more than heapRoom, as one with thousands of groups does. What it keeps is made
// among garbage, and the room for that is never given back whole: with half of the usual holes ten thousand groups take 5 MB less. The
// collections cost a second or two of all that the start takes.
const startPercent = 30

// heapPercent returns the setting of the garbage collector that leaves heapRoom where live bytes are in use, or as much as is in use where
// that is more, but for a peer that starts. It is bounded since the runtime multiplies it by four MiB for the least heap that it collects at all.
func heapPercent(live uint64, starts bool) int {
	if starts && live > heapRoom {
		return startPercent
	}
	return int(min(max(100, 100*heapRoom/max(live, 1)), 100*heapRoom/(4<<20)))
}

// tuneGC has the garbage collector leave heapRoom, from now on. It is for this program's process, and not for those of others that have
// peers in them. Who sets GOGC decides that himself.
func tuneGC() {
	if os.Getenv("GOGC") == "" {
		afterGC(debug.SetGCPercent(100))
	}
}

// afterGC sets it anew for what was in use at the last collection, and has the next one call it again. percent is what is set.
func afterGC(percent int) {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	// A change stops the world for a moment, so small ones are left out.
	if want := heapPercent(live[0].Value.Uint64(), footprint.Starts()); want > percent+percent/8 || want < percent-percent/8 {
		debug.SetGCPercent(want)
		percent = want
	}
	runtime.SetFinalizer(new([16]byte), func(*[16]byte) { afterGC(percent) })
}
