package simworld

import (
	"runtime/debug"
	"testing"
)

// Simulated worlds come and go by the thousand and are small: with Go's default a fourth of the tests' time is spent on collecting them.
func TestMain(m *testing.M) {
	debug.SetGCPercent(400)
	m.Run()
}
