package coherencetest

import (
	"runtime/debug"
	"testing"
)

// Simulated worlds come and go by the hundred and are small: with Go's default much of the tests' time is spent on collecting them.
func TestMain(m *testing.M) {
	debug.SetGCPercent(400)
	m.Run()
}
