package twins

// Mutant is a deliberate mistake. The simulator plants each one and has to catch it; nobody else uses them.
type Mutant uint8

// The mutants of a [Judge].
const (
	MutantNone       Mutant = iota
	MutantAnyWord           // every word of an earlier start is taken for a sign of its life
	MutantAnyAnswer         // every answer is, also one to a question from before the later start was heard of
	MutantCountsOnly        // nonces are not compared
)

// Sabotage plants a mistake into j.
func Sabotage(j *Judge, m Mutant) { j.mutant = m }
