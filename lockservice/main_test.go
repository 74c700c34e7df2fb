package lockservice

import (
	"flag"
	"runtime/debug"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	flag.Set("test.parallel", "8") // they wait for elections and leases, more than for a processor
	debug.SetGCPercent(400)        // simulated worlds come and go by the thousand and are small
	goleak.VerifyTestMain(m)
}
