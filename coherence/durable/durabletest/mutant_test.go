package durabletest

import (
	"flag"
	"strings"
	"testing"

	"latchkey/coherence/durable"
)

var mutantFlag = flag.String("mutant", "", "the one mistake to look for in drawn worlds, until it shows")

// drawn says by what drawn worlds show a mistake soon. The stories show the others, and most of these.
var drawn = map[durable.Mutant]string{
	durable.LeaseFromReply: "", durable.AckBeforeCommit: "acknowledged", durable.AckBeforeInvalidated: "stale", durable.AckBeforeRevoke: "stale",
	durable.ReaderUnregistered: "stale", durable.GrantWithoutAnchor: "stale", durable.RenewDuringInvalidation: "bound",
	durable.CopyDuringInvalidation: "bound", durable.NoDedup: "twice", durable.ReleaseAny: "exclusive", durable.OwnerWithoutLease: "live",
	durable.NoCondition: "",
}

// TestEveryMistakeShows takes one rule away at a time, and waits for what it was there for: in a story, or in the first worlds that are drawn.
func TestEveryMistakeShows(t *testing.T) {
	told := map[durable.Mutant]bool{}
	for _, group := range all {
		for _, s := range group {
			for _, m := range s.mutants {
				told[m] = true
			}
		}
	}
	for m := durable.NoMutant + 1; m < durable.Mutants; m++ {
		by, soon := drawn[m]
		most := uint64(400)
		if *mutantFlag != "" {
			if *mutantFlag != m.String() {
				continue
			}
			soon, most = true, 100_000
		}
		if !soon {
			if !told[m] {
				t.Errorf("nothing shows the mistake %v", m)
			}
			continue
		}
		t.Run(m.String(), func(t *testing.T) {
			for seed := uint64(1); seed <= most; seed++ {
				s, r, weights := draw(seed, m)
				if _, err := run(s, r, weights, func(*world, move) {}); err != nil && strings.HasPrefix(err.Error(), by) {
					t.Logf("seed %d: %v", seed, err)
					return
				}
			}
			t.Errorf("it does not show in %d worlds", most)
		})
	}
}

// TestTheSimulationNotices takes rules away whose absence shows in the first worlds. Others need more of them, or a story.
func TestTheSimulationNotices(t *testing.T) {
	for m, by := range map[durable.Mutant]string{
		durable.NoFloor: "stale", durable.DropWithoutSeq: "stale", durable.ForgetConflict: "refused",
		durable.ShowUnsettled: "stale", durable.NoDedup: "twice",
	} {
		t.Run(m.String(), func(t *testing.T) {
			for seed := uint64(1); seed <= 100; seed++ {
				if _, err := runSim(seed, m); err != nil && strings.Contains(err.Error(), by) {
					return
				}
			}
			t.Error("it does not show in 100 worlds")
		})
	}
}
