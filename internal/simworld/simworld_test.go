package simworld

import (
	"flag"
	"strings"
	"testing"
)

var (
	seedsFlag  = flag.Uint64("seeds", 500, "how many worlds each simulation draws")
	seedFlag   = flag.Uint64("seed", 0, "the world that TestReplay runs")
	engineFlag = flag.String("engine", "ideal", "its engine")
	mutantFlag = flag.String("mutant", "none", "its mutant")
)

// run runs worlds until one fails.
func run(from, to uint64, e Engine, m Mutant) (sum Report, seed uint64, err error) {
	for seed = from; seed < to; seed++ {
		rep, err := Run(Draw(seed, e, m))
		sum.Events += rep.Events
		sum.Acquired += rep.Acquired
		sum.Handed += rep.Handed
		sum.Passed += rep.Passed
		sum.Lost += rep.Lost
		sum.Sessions += rep.Sessions
		sum.Entries += rep.Entries
		if err != nil {
			return sum, seed, err
		}
	}
	return sum, seed, nil
}

func TestLocksKeepTheirPromises(t *testing.T) {
	for _, e := range []Engine{Ideal, Raft} {
		t.Run(e.String(), func(t *testing.T) {
			n := *seedsFlag
			if testing.Short() {
				n /= 10
			}
			if e == Raft {
				n /= 10
			}
			sum, _, err := run(0, n, e, None)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d worlds: %+v", n, sum)
		})
	}
}

// TestEveryMutantIsCaught plants each mistake and waits for the check that is there for it. Some do other harm first: a log
// time that follows foreign clocks may stand still for an hour, which is no progress.
func TestEveryMutantIsCaught(t *testing.T) {
	checks := map[Mutant]string{
		FromArrival: "exclusion", RetryMoves: "exclusion", Unconfirmed: "exclusion", IgnoreDrift: "exclusion",
		ForgetResults: "once only", ForeignStamps: "exclusion", SameToken: "tokens", StaleRelease: "exclusion",
		Mixed: "tokens", Impatient: "exclusion", ExtraPermit: "exclusion", Overtake: "order",
	}
	const seedsMax = 5000
	if testing.Short() {
		t.Skip("takes seconds")
	}
	for _, m := range Mutants() {
		t.Run(m.String(), func(t *testing.T) {
			t.Parallel()
			for seed := uint64(0); seed < seedsMax; seed++ {
				_, err := Run(Draw(seed, Ideal, m))
				if err != nil && strings.Contains(err.Error(), checks[m]+":") {
					t.Logf("seed %d: %v", seed, err)
					return
				}
			}
			t.Errorf("not caught in %d worlds", seedsMax)
		})
	}
}

func TestEqualSeedsMakeEqualWorlds(t *testing.T) {
	for _, e := range []Engine{Ideal, Raft} {
		for seed := range uint64(5) {
			a, errA := Run(Draw(seed, e, None))
			b, errB := Run(Draw(seed, e, None))
			if a != b || errA != nil || errB != nil {
				t.Errorf("%v, seed %d: %+v, %v, then %+v, %v", e, seed, a, errA, b, errB)
			}
		}
	}
}

// TestTheWorldIsBusy guards the simulation against testing nothing: every kind of event it is about occurs.
func TestTheWorldIsBusy(t *testing.T) {
	sum, _, err := run(0, 60, Ideal, None)
	if err != nil {
		t.Fatal(err)
	}
	if sum.Acquired < 1000 || sum.Handed < 500 || sum.Lost < 5 || sum.Sessions < 10 {
		t.Errorf("60 worlds saw only %+v", sum)
	}
}

func TestReplay(t *testing.T) {
	if *seedFlag == 0 {
		t.Skip("replays the world of -seed")
	}
	for _, e := range []Engine{Ideal, Raft} {
		for m := None; m < mutants; m++ {
			if e.String() == *engineFlag && m.String() == *mutantFlag {
				rep, err := Run(Draw(*seedFlag, e, m))
				t.Logf("%+v", rep)
				if err != nil {
					t.Error(err)
				}
			}
		}
	}
}

func BenchmarkWorld(b *testing.B) {
	for _, e := range []Engine{Ideal, Raft} {
		b.Run(e.String(), func(b *testing.B) {
			b.ReportAllocs()
			var events uint64
			for seed := uint64(0); b.Loop(); seed++ {
				rep, err := Run(Draw(seed, e, None))
				if err != nil {
					b.Fatal(err)
				}
				events += rep.Events
			}
			b.ReportMetric(float64(events)/b.Elapsed().Seconds(), "events/s")
		})
	}
}
