package session

// Mutant is a deliberate mistake. The simulator plants each one and has to catch it; nobody else uses them.
type Mutant uint8

// The mutants of a [Table].
const (
	MutantNone          Mutant = iota
	MutantForgetResults        // a repeated command runs again
	MutantForeignStamps        // log time follows any leader's clock reading, not the differences of one clock
)

// Sabotage plants a mistake into t.
func Sabotage(t *Table, m Mutant) { t.mutant = m }
