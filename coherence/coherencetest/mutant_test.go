package coherencetest

import (
	"flag"
	"strings"
	"testing"

	"latchkey/coherence/protocol"
)

var mutantFlag = flag.String("mutant", "", "the one mutant to look for")

// caught says in which world the exploration finds out in a moment that a rule is missing, and by what. The traces show every rule; what is here
// guards the exploration against looking at nothing.
var caught = map[protocol.Mutant]struct {
	setup
	by string
}{
	protocol.WithoutR1:    {layer(2, 2, budget{dups: 1}), "I4"},
	protocol.WithoutR2:    {layer(2, 2, budget{dups: 1}), "R2"},
	protocol.WithoutR4:    {layer(2, 2, budget{losses: 1}), "L"},
	protocol.WithoutBound: {layer(2, 2, budget{silents: 1}), "L"},
	protocol.WithoutR16:   {full(2, 2, 2, budget{blanks: 1}), "I"},
	protocol.LateTouch:    {full(2, 2, 2, budget{checkpoints: 1}), "C5"},
	protocol.WithoutR17:   {setup{nodes: 2, objects: 1, faults: 2, twoStep: true}, "R17"},
}

// TestTheExplorationCatchesMutants takes one rule away at a time and waits for what it was there for.
func TestTheExplorationCatchesMutants(t *testing.T) {
	for m := protocol.NoMutant + 1; m < protocol.Mutants; m++ {
		c, ok := caught[m]
		if !ok || *mutantFlag != "" && *mutantFlag != m.String() {
			continue
		}
		t.Run(m.String(), func(t *testing.T) {
			t.Parallel()
			c.mutant = m
			r := explore(&c.setup, 200_000, c.by == "L")
			t.Logf("%d states, depth %d, complete %v: %v", r.states, r.depth, r.complete, r.err)
			if r.err == nil || !strings.HasPrefix(r.err.Error(), c.by) {
				t.Errorf("not caught by %s: %v", c.by, r.err)
			}
			if *mutantFlag != "" {
				logPath(t, &c.setup, r.path)
			}
		})
	}
}

// TestTheSimulationCatchesMutants takes rules away whose absence shows in the first worlds. Others show later (R6 at seed 137, R7 at 296, R8 at 468,
// R9 at 42), and some not in 500: the traces have them.
func TestTheSimulationCatchesMutants(t *testing.T) {
	for m, by := range map[protocol.Mutant]string{
		protocol.WithoutR16: "C5:", protocol.WithoutStop: "C3:", protocol.WithoutCarryOver: "C5:",
		protocol.WithoutEpoch: "R9:", protocol.LateTouch: "C5:",
	} {
		t.Run(m.String(), func(t *testing.T) {
			t.Parallel()
			for seed := uint64(1); seed <= 20; seed++ {
				c := drawConfig(seed)
				c.mutant = m
				if _, err := runSeed(c); err != nil && strings.Contains(err.Error(), by) {
					return
				}
			}
			t.Errorf("not caught by %s in 20 worlds", by)
		})
	}
}
