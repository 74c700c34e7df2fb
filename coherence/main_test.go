package coherence

import (
	"flag"
	"runtime/debug"
	"testing"
)

func TestMain(m *testing.M) {
	flag.Set("test.parallel", "6") // they wait for elections and for patience to end, more than for a processor
	debug.SetGCPercent(400)        // their heaps are small: with Go's default much of their time is spent on collecting them
	m.Run()
}
