package memory

import (
	"flag"
	"runtime/debug"
	"testing"
)

func TestMain(m *testing.M) {
	flag.Set("test.parallel", "4") // they wait for peers and their detectors, more than for a processor
	debug.SetGCPercent(400)        // their heaps are small: with Go's default much of their time is spent on collecting them
	m.Run()
}
