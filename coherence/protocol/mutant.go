package protocol

// Mutant is a deliberate mistake: the protocol without one of its rules. Tests plant each and have to see it break. Nobody else uses it.
type Mutant uint8

// The mutants. Each is the paper's behaviour, or the design's where the paper says nothing.
const (
	NoMutant         Mutant = iota
	WithoutR1               // waiting_read_ack goes backwards
	WithoutR2               // pending requests of one node queue up without bound
	WithoutR3               // a FIRST_TOUCH that is not wanted is ignored
	WithoutR4               // a reply is sent once, a master that was handed over is not retained
	WithoutR5               // a FORWARDED_READ of before the owner's acquisition downgrades it
	WithoutR6               // what was sent to an earlier incarnation is taken
	WithoutR7               // a REINIT of the present epoch reinitialises again
	WithoutR8               // a suspected writer that has not confirmed is waited for
	WithoutBound            // a confirmed writer invalidates silently
	WithoutR9               // a repeated START starts the thread again
	WithoutR10              // the node tells first and invalidates then
	WithoutR11              // BECOME_OWNER at a node without threads is obeyed
	WithoutR12              // every RESTART_REQ restarts
	WithoutR13              // MOVED counts whichever migration it is of
	WithoutR14              // any COPY answers any request
	WithoutR15              // a new incarnation is no failure
	WithoutR16              // a first touch is not reported before it is granted
	WithoutR17              // a right is taken away under a pin
	WithoutEpoch            // messages of older epochs are taken (rule E)
	LateTouch               // R16 as first written: a first touch is reported after it is committed
	WithoutWithhold         // the checkpoint's reader acknowledges INVALIDATE at once (C4)
	WithoutStop             // objects are read before all threads have stopped (C3)
	AnyStopped              // a STOPPED of any checkpoint counts (C2)
	WithoutCarryOver        // a manifest holds only what was read (C5)
	StaleNone               // an object that the checkpoint was told nobody has is touched while it reads on (C4)
	BlankNone               // a manager whose group has lost its state is believed that nobody has an object (C4)
	WithoutGuests           // callers without a thread are not known to the application manager
	Disbelief               // R8 as first written: who is suspected is not served before a detector takes that back
	Unwatched               // the application manager is not concerned about those that it suspects
	LostReinit              // a manager of an older epoch is not told of the newer one by those it asks
	DirectKept              // an owner hands over before its own readers have no copy any more
	DirectLate              // it serves another one meanwhile
	DirectStale             // a reader takes a copy of a master that it has acknowledged the end of
	Mutants
)

// String names the mutant.
func (m Mutant) String() string {
	return [...]string{"none", "R1", "R2", "R3", "R4", "R5", "R6", "R7", "R8", "bound", "R9", "R10", "R11", "R12", "R13", "R14", "R15", "R16", "R17",
		"epoch", "late-touch", "withhold", "stop", "any-stopped", "carry-over", "stale-none", "blank-none", "guests",
		"disbelief", "unwatched", "lost-reinit", "direct-kept", "direct-late", "direct-stale"}[m]
}
