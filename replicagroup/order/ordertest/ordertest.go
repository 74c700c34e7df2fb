package ordertest

import (
	"flag"
	"testing"
	"time"

	"latchkey/internal/automaton"
	"latchkey/replicagroup/order"
)

// Config says which replica an engine is to be.
type Config struct {
	Group order.GroupID
	Self  order.ReplicaID
	Store order.StoreID // of the disk the engine's image comes from
	View  order.View    // the group's first; with Join, one that names the replica
	Join  bool          // the replica is new in a group that exists
	// Quiesce is how long the group has nothing to do before it sleeps; 0 leaves that to the engine, less than 0 is never.
	Quiesce time.Duration
	// LeaseReads lets the leader answer reads without asking the members, on clocks that keep to Drift.
	LeaseReads bool
	Drift      automaton.Drift
}

// Factory makes an engine that continues from an image; an empty image is a new replica. An error is right only where
// the store is not the one that the view names for the replica.
type Factory func(Config, order.Image) (order.Orderer, error)

// patience is what engines under test wait before they replace a silent leader, and the unit of every length here.
const patience = time.Second

// A test is one conformance test.
type test struct {
	name string // number in replica-groups.md section 8, and the claim
	run  func(s suite) error
}

// suite is what a test runs against.
type suite struct {
	factory  Factory
	mistakes mistakes // planted into the driver; none but in the package's own tests
	seed     uint64   // added to every seed
	// effort scales the number of seeds and operations: 1 is what [Run] does without -short.
	effort float64
}

// count scales n by the effort, but not below 1.
func (s suite) count(n int) int { return max(1, int(float64(n)*s.effort)) }

// tests lists the suite in the order of section 8.
var tests = []test{
	{"01SameSeedGivesTheSameSteps", determinism},
	{"02OneOrderOnBadLinks", totalOrder},
	{"03CommandSentThriceTakesEffectOnce", noDuplication},
	{"04CrashAtEveryPoint", crashEverywhere},
	{"05MajorityDownAcknowledgesNothing", majorityDown},
	{"06RestartOfAllKeepsWhatWasAcknowledged", restartAll},
	{"07LostDiskNeverCountsAgain", lostDisk},
	{"08OnlyAMajoritySideAcknowledges", primaryOnly},
	{"09LateJoinerTakesALargeSnapshot", lateJoiner},
	{"10EveryMemberReplacedUnderCommands", replaceAll},
	{"11ChangesRaceCrashesAndEachOther", racingChanges},
	{"12PartitionedLeaderAnswersNoStaleRead", staleReads},
	{"13HistoriesAreLinearizable", linearizability},
	{"15SlowMemberStopsNobody", backPressure},
	{"16ThousandGroupsOutliveANode", manyGroups},
	{"17MembersLeaveUnnoticed", gracefulLeave},
	{"19GroupsSleepAndWake", sleeping},
	{"20DisksSlowerThanElections", slowDisks},
	{"21LeasesOfClocksThatDrift", leaseReads},
}

// The seeds of the tests are fixed, so that what passed once passes again. These flags look further.
var (
	seedFlag   = flag.Uint64("ordertest.seed", 0, "conformance suite: first seed; 0 is what every run tests")
	effortFlag = flag.Float64("ordertest.effort", 0, "conformance suite: how much to do; 1 is a usual run, 0.1 one with -short")
)

// Run puts the engine that f makes under the suite. With -short it does a tenth of the work; the flags -ordertest.seed and
// -ordertest.effort choose other seeds and more of them.
func Run(t *testing.T, f Factory) {
	s := suite{factory: f, seed: *seedFlag, effort: *effortFlag}
	switch {
	case s.effort > 0:
	case testing.Short():
		s.effort = 0.1
	default:
		s.effort = 1
	}
	for _, c := range tests {
		t.Run(c.name, func(t *testing.T) {
			if err := c.run(s); err != nil {
				t.Fatalf("%v\nagain: go test -run '^%s$' -ordertest.seed=%d -ordertest.effort=%g", err, t.Name(), s.seed, s.effort)
			}
		})
	}
}
