package attack

import (
	"flag"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// attackTime is how long each attack goes on while the honest client works.
var attackTime = flag.Duration("attack.time", 300*time.Millisecond, "how long each attack lasts")

func TestMain(m *testing.M) {
	if order := os.Getenv(orderEnv); order != "" {
		os.Exit(attackerMain(order))
	}
	goleak.VerifyTestMain(m)
}
