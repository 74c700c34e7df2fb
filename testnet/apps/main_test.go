package apps

import (
	"flag"
	"os"
	"runtime/debug"
	"testing"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == peerArg {
		os.Exit(bePeer(os.Args[2:]))
	}
	flag.Set("test.parallel", "4") // they wait for peers and their detectors, more than for a processor
	debug.SetGCPercent(400)        // their heaps are small: with Go's default much of their time is spent on collecting them
	m.Run()
}
