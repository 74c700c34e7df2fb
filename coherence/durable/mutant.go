package durable

import "fmt"

// Mutant is a deliberate mistake: the protocol without one of its rules. Tests plant each and have to see it break. Nobody else uses it.
type Mutant uint8

// The mutants of durable-objects.md section 11, and ours behind them.
const (
	NoMutant                Mutant = iota
	NoWait                         // a new leader does not wait (D9)
	WaitWithoutDrift               // it waits d
	ArbiterWithoutDrift            // a session is over after d (D8)
	LeaseFromReply                 // a lease is counted from its answer (D15)
	AckBeforeCommit                // a write is acknowledged before it is in the log (D9)
	AckBeforeInvalidated           // a write is acknowledged before other copies are gone (D9)
	AckBeforeRevoke                // INVALIDATE_ACK leaves before the cell is taken away (D16)
	ReaderUnregistered             // a copy is granted and not registered (D1)
	NoFloor                        // an answer may be older than an INVALIDATE that overtook it (D16)
	DropWithoutSeq                 // a notice of eviction drops whichever copy there is (D10)
	WriterExempt                   // the writer's own copy is never invalidated (D6)
	NoNewSession                   // a session that has lapsed goes on (D7)
	SessionLease                   // a copy is cached by the session's lease, not its own (D15)
	GrantWithoutAnchor             // a leader grants whole leases, confirmed or not (D1)
	RenewUnknown                   // a leader renews a session it does not know (D10)
	RenewDuringInvalidation        // a session is renewed while it owes an acknowledgement (D10)
	CopyDuringInvalidation         // and by a copy of another object (D3)
	ShowUnsettled                  // a new leader shows what may be unsettled
	ShowEarly                      // a write is shown before it is settled
	NoDedup                        // a STORE that comes twice is made twice (D4)
	RepeatEarly                    // a repeat is answered before the write is settled (D4)
	ReadOwnMeanwhile               // the writer reads its copy while its STORE is under way
	AckAnyVersion                  // an INVALIDATE_ACK counts for any write
	OldSession                     // an earlier session is taken for the present one (D5)
	KeepOverTenure                 // copies outlive the tenure that granted them (D15)
	ReleaseAny                     // a RELEASE of any grant counts (D11)
	OwnerWithoutLease              // the exclusive right does not end with its session (D5, D8)
	NoCondition                    // the log does not check what a write expects
	MarkEarly                      // writes count as settled that are not (D13)
	UncachedNew                    // a reader is given the new value, for once, before it is settled (D2)
	UncachedWhileWaiting           // and so by a new leader that waits (D2)
	ForgetConflict                 // a write that failed by its condition may be made when it comes again (ours)
	Mutants
)

var mutantNames = [Mutants]string{"none", "no-wait", "wait-without-drift", "arbiter-without-drift", "lease-from-reply", "ack-before-commit",
	"ack-before-invalidated", "ack-before-revoke", "reader-unregistered", "no-floor", "drop-without-seq", "writer-exempt", "no-new-session",
	"session-lease", "grant-without-anchor", "renew-unknown", "renew-during-invalidation", "copy-during-invalidation", "show-unsettled", "show-early",
	"no-dedup", "repeat-early", "read-own-meanwhile", "ack-any-version", "old-session", "keep-over-tenure", "release-any", "owner-without-lease",
	"no-condition", "mark-early", "uncached-new", "uncached-while-waiting", "forget-conflict"}

// String names the mutant.
func (m Mutant) String() string {
	if m < Mutants {
		return mutantNames[m]
	}
	return fmt.Sprintf("Mutant(%d)", uint8(m))
}
