package sigma

// mutant is a deliberate mistake. The simulation plants each one and has to catch it; nobody else can.
type mutant uint8

// The mutants: of sections 1 to 3 and 6, then of 9.10.
const (
	mutantNone           mutant = iota
	mutantExpiryFree            // a lease that ran out does not consume its number
	mutantYieldCounted          // a yielded grant still counts
	mutantNoEmbargo             // a restarted replica grants at once
	mutantCounterZero           // a restarted replica forgets the numbers it has offered
	mutantFromArrival           // D is counted from the arrival of GRANT
	mutantNoInstall             // unequal offers: the highest is used without a second round
	mutantYieldOnce             // a lost YIELD is not repeated
	mutantAnyInstall            // INSTALL is taken whatever grant it names
	mutantNoCap                 // leases longer than the cap are granted before RaiseTTL is applied
	mutantNoSeal                // a sealed table goes on renewing
	mutantOneReport             // one report settles
	mutantNoCandidates          // candidates are ignored
	mutantSmallBase             // a view's range begins where the former one began
	mutantOneCandidate          // one of several candidates is kept
	mutantClaimOverrules        // a claim is granted beside a silent rival
	mutantShortestLease         // the shortest remaining lease of the reports is taken
	mutantHalfLease             // half of a remaining lease is taken
	mutantEmptyReport           // a restarted or unsettled replica reports what it has
	mutantAnyView               // messages of any view are accepted
	mutantNoSettleByTime        // without reports nobody ever settles
	mutantNoSuspend             // a replica that lags behind its own log goes on (S1)

	mutantNoModeSeal      // a name that is pending is served on (M1)
	mutantEmptyModeReport // a restarted or unsettled replica reports what it has of a name (M2)
	mutantSealedLeftOut   // the sealed table of a name is left out of the report of the view (M5)
	mutantModesForgotten  // a new view begins with every name in mode sigma
	mutantGrantsKept      // a client keeps its grants when it goes to the log (M7)

	mutantOneNameReport // one report settles a name
	mutantPieceIsAll    // a piece of a report counts as the whole
	mutantCountedTwice  // a reporter that answers for a name and sends its report counts twice

	mutantGrantUnsaved    // a grant is not recorded
	mutantInstallUnsaved  // nor the number that an INSTALL has raised
	mutantFloorUnsaved    // nor the numbers of names that nobody has
	mutantNoVoid          // what is recorded of a view stands while the next one grants
	mutantLeaseFromRecord // a lease that is taken up is taken to be over
	mutantOldTable        // a host takes up the records of a life before the last one
	mutants
)

// String names the mutant.
func (m mutant) String() string {
	return [...]string{"none", "expiry-free", "yield-counted", "no-embargo", "counter-zero", "from-arrival", "no-install", "yield-once",
		"any-install", "no-cap", "no-seal", "one-report", "no-candidates", "small-base", "one-candidate", "claim-overrules",
		"shortest-lease", "half-lease", "empty-report", "any-view", "no-settle-by-time", "no-suspend",
		"no-mode-seal", "empty-mode-report", "sealed-left-out", "modes-forgotten", "grants-kept",
		"one-name-report", "piece-is-all", "counted-twice",
		"grant-unsaved", "install-unsaved", "floor-unsaved", "no-void", "lease-from-record", "old-table"}[m]
}

// Mutant plants one of the mistakes about modes from other packages' simulations.
type Mutant = mutant

// The mutants of modes.
const (
	MutantNone            = mutantNone
	MutantNoModeSeal      = mutantNoModeSeal
	MutantEmptyModeReport = mutantEmptyModeReport
	MutantSealedLeftOut   = mutantSealedLeftOut
	MutantModesForgotten  = mutantModesForgotten
	MutantGrantsKept      = mutantGrantsKept
)

// Sabotage plants a mistake into r.
func (r *Replica) Sabotage(m Mutant) { r.cfg.mutant = m }

// Sabotage plants a mistake into c.
func (c *Client) Sabotage(m Mutant) { c.cfg.mutant = m }
