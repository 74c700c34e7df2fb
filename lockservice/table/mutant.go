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
)

// Sabotage plants a mistake into t.
func Sabotage(t *Table, m Mutant) { t.mutant = m }
