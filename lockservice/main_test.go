package lockservice

import (
	"runtime/debug"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	debug.SetGCPercent(400) // simulated worlds come and go by the thousand and are small
	goleak.VerifyTestMain(m)
}
