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
	protocol.DirectKept:   {direct(layer(2, 3, budget{})), "I"},
	protocol.DirectStale:  {direct(layer(2, 3, budget{})), "I4"},
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

// TestTheSimulationCatchesMutants takes one rule away at a time and draws worlds until one breaks, of the shape in which that takes least. R5 and R11 are
// not for safety: without them all is well, and slower. R8, any-stopped, stale-none and
// guests take a thousand worlds and more; all have their traces.
func TestTheSimulationCatchesMutants(t *testing.T) {
	const any = shapes // of which there is nothing too much
	for m, c := range map[protocol.Mutant]struct {
		shape
		by string
	}{
		protocol.WithoutR1: {lateObjects, "I"}, protocol.WithoutR2: {any, "R2:"}, protocol.WithoutR3: {hastyGuests, "L:"}, protocol.WithoutR4: {any, "L:"},
		protocol.WithoutR6: {quickReturns, ""}, protocol.WithoutR7: {hastyGuests, "I2"}, protocol.WithoutBound: {hastyGuests, "L:"},
		protocol.WithoutR9: {any, "R9:"}, protocol.WithoutR10: {lateThreads, "I"}, protocol.WithoutR12: {lateThreads, "R12:"}, protocol.WithoutR13: {lateThreads, "I"},
		protocol.WithoutR14: {any, "L:"}, protocol.WithoutR15: {quickReturns, "L:"}, protocol.WithoutR16: {hastyGuests, "C5:"}, protocol.WithoutR17: {any, "R17:"},
		protocol.WithoutEpoch: {any, "R9:"}, protocol.LateTouch: {hastyGuests, "C5:"}, protocol.WithoutWithhold: {any, "C5:"}, protocol.WithoutStop: {any, "C3:"},
		protocol.WithoutCarryOver: {hastyGuests, "C5:"}, protocol.BlankNone: {hastyGuests, "C5:"},
		protocol.Disbelief: {lateThreads, "L:"}, protocol.Unwatched: {any, "L:"},
	} {
		if *mutantFlag != "" && *mutantFlag != m.String() {
			continue
		}
		t.Run(m.String(), func(t *testing.T) {
			t.Parallel()
			for seed := uint64(1); seed <= 1000; seed++ {
				draw := drawShaped(seed, c.shape)
				draw.mutant = m
				if _, err := runSeed(draw); err != nil && strings.Contains(err.Error(), c.by) {
					t.Logf("seed %d: %.150v", seed, err)
					return
				}
			}
			t.Errorf("not caught by %s in 1000 worlds", c.by)
		})
	}
}
