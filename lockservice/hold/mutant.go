package hold

// Mutant is a deliberate mistake. The simulator plants each one and has to catch it; nobody else uses them.
type Mutant uint8

// The mutants of a [Hold].
const (
	MutantNone        Mutant = iota
	MutantFromArrival        // D is counted from the arrival of the answer
	MutantRetryMoves         // a repeated acquire counts from its last sending
	MutantUnconfirmed        // a grant out of the queue is a hold at once
)

// Sabotage plants a mistake into h.
func Sabotage(h *Hold, m Mutant) { h.mutant = m }
