package table

// Mutant is a deliberate mistake. The simulator plants each one and has to catch it; nobody else uses them.
type Mutant uint8

// The mutants of a [Table].
const (
	MutantNone         Mutant = iota
	MutantSameToken           // a hand-over passes the token on instead of drawing a new one
	MutantStaleRelease        // a command of an older request touches a newer hold of its client
	MutantMixed               // somebody who shares is granted beside somebody who does not
	MutantExtraPermit         // a semaphore has one permit too many
	MutantOvertake            // who shares does not wait for those before him who do not
	MutantImpatient           // who does not share is granted beside those who do
	MutantCarveCounter        // a lock that is carved out takes no counter along
	MutantGraftCounter        // a table that takes a lock over goes on counting where it was

	MutantOneModeReport  // one voter's report is enough (M3)
	MutantNoCandidates   // what voters report is ignored
	MutantReportedToken  // the next token is one more than what voters have offered
	MutantShortestLease  // the shortest lease that is reported of a candidate counts
	MutantClaimOverrules // a claim is granted beside a silent rival
	MutantKeptReports    // a view change leaves reports standing (M5)
	MutantModeReset      // a view change makes every name one of protocol sigma
	MutantImpatientTurns // what falls free is kept for nobody
	MutantBackAtOnce     // a name goes back inside the view, as soon as it is free
)

// Sabotage plants a mistake into t.
func Sabotage(t *Table, m Mutant) { t.mutant = m }
