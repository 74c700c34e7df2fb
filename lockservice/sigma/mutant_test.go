package sigma

import (
	"strings"
	"testing"
	"time"
)

// TestTheSimulationCatchesMutants plants each mistake that the simulation can find in little time and waits for the check that is
// there for it. The others are caught by the schedules of sigma_test.go and by the exploration: random search does not reach
// them, or rarely (lock-protocols.md section 9.10 saw the same).
func TestTheSimulationCatchesMutants(t *testing.T) {
	checks := map[mutant]string{
		mutantExpiryFree: "I6 duplicate", mutantYieldCounted: "I3", mutantNoInstall: "I3", mutantNoCandidates: "S7",
		mutantSmallBase: "9.2", mutantAnyView: "9.2", mutantFromArrival: "I7", mutantHalfLease: "I5", mutantNoEmbargo: "I5",
		mutantCounterZero: "I6 duplicate", mutantOneNameReport: "I5", mutantPieceIsAll: "I5", mutantCountedTwice: "I5",
		mutantGrantUnsaved: "I5", mutantFloorUnsaved: "I6 duplicate", mutantLeaseFromRecord: "I5",
		mutantOldTable: "I6 duplicate", mutantInstallUnsaved: "I6 duplicate", mutantNoVoid: "I6 duplicate",
	}
	const seedsMax = 600 // half-lease shows in one of some hundred worlds
	if testing.Short() {
		t.Skip("takes seconds")
	}
	for m := mutantNone + 1; m < mutants; m++ {
		check := checks[m]
		if check == "" {
			continue
		}
		t.Run(m.String(), func(t *testing.T) {
			t.Parallel()
			for seed := uint64(1); seed <= seedsMax; seed++ {
				c := drawHarsh(seed, m)
				if m == mutantInstallUnsaved || m == mutantNoVoid {
					c = drawKept(seed, m)
				} else if m >= mutantGrantUnsaved {
					c.keep, c.faults.CrashEvery, c.faults.CrashFor = 10, 600*time.Millisecond, 20*time.Millisecond
					c.think, c.piece, c.names = []time.Duration{5 * time.Millisecond, 300 * time.Millisecond}[seed%2], 1, 1+int(seed%3)
				} else if m >= mutantOneNameReport { // reports of several pieces
					c.piece, c.names = 1, 1+int(seed%3)
				}
				if _, err := runWorld(c); err != nil && strings.Contains(err.Error(), check+":") {
					t.Logf("seed %d: %.200v", seed, err)
					return
				}
			}
			t.Errorf("not caught in %d worlds", seedsMax)
		})
	}
}
