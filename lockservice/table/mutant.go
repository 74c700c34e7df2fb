package table

// Mutant is a deliberate mistake. The simulator plants each one and has to catch it; nobody else uses them.
type Mutant uint8

// The mutants of a [Table].
const (
	MutantNone         Mutant = iota
	MutantSameToken           // a hand-over passes the token on instead of drawing a new one
	MutantStaleRelease        // a command of an older request touches a newer hold of its client
)

// Sabotage plants a mistake into t.
func Sabotage(t *Table, m Mutant) { t.mutant = m }
