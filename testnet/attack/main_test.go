package attack

import (
	"flag"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// attackTime is how long each attack goes on while the honest client works.
var attackTime = flag.Duration("attack.time", 300*time.Millisecond, "how long each attack lasts; a benchmark's, ten times as long")

// attackNice is the niceness of attackers.
var attackNice = flag.Int("attack.nice", -1, "the attackers' niceness; negative: they get the processor that nobody else wants")

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		os.Exit(childMain(role))
	}
	goleak.VerifyTestMain(m)
}
