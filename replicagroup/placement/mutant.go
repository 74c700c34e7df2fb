package placement

// mutant is a deliberate mistake of a [Directory], with which the tests prove that they would notice. There is none outside
// of tests.
type mutant uint8

const (
	mutantReviveAnyGen   mutant = iota + 1 // a Revive need not name the generation that is lost
	mutantReviveSameGen                    // a revived group keeps its generation
	mutantUpdateAnyGen                     // a view of any generation is taken
	mutantUpdateBack                       // an earlier view is taken
	mutantReportAnyGen                     // a report counts for whatever generation there is
	mutantNoQuarantine                     // a new root creates groups at once
	mutantInheritLive                      // what a former root knew of counts as what lives
	mutantInheritNoFloor                   // an earlier generation takes the place of one that a former root knew
	mutantInheritFree                      // a prefix whose group only a former root knew gets another one
)

// Mistakes of a [LeaseHolder] or a [LeaseGrantor]. Two more that the tests try need no name: a wait without a margin, or with too
// small a one.
const (
	mutantCountFromReply    mutant = iota + 0x40 // a lease counts from the answer
	mutantRenewDead                              // a dead generation gets its lease renewed
	mutantNewLeaderNoWait                        // a new leader of the parent takes silence before its time for its own
	mutantGrantInQuarantine                      // a new root grants while leases of the former one may last
	mutantUnconfirmed                            // a leader grants without asking whether it still leads
)
