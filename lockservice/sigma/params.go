package sigma

import "time"

// Limits of a replica's table. What a client is told beyond them stands beside each; a client that more than n-m replicas
// refuse gives up with [ErrRefused].
const (
	LocksMax           = 1 << 17 // names in use; the longest idle one is forgotten first, then TooManyLocks
	WaitersPerLockMax  = 1024    // TooManyWaiters
	WaitersMax         = 1 << 17 // of all locks; TooManyWaiters
	RequestsPerPeerMax = 1 << 15 // owned or waiting, of all sessions of one peer; TooManyRequests
	EndedPerLockMax    = 256     // finished requests remembered of one name; the oldest is forgotten
	ParkedPerNameMax   = 64      // messages of a view not applied yet, of one name; dropped, and the client asks again
	ParkedMax          = 4096    // of all names; dropped
)

// Limits of what is sent and read.
const (
	MembersMax       = 32                                                     // of a view
	ReportEntriesMax = 64                                                     // names in one piece of a report, so that a piece fits a frame
	ReportQueueMax   = 8                                                      // waiters of one name in a report; the others ask by themselves
	HandOverQueueMax = 64                                                     // waiters of the one name in a report to the group's log, which keeps their order; the others come after them
	InspectQueueMax  = 128                                                    // waiters of one name that an INSPECTED lists, beside their number
	ReportEndedMax   = 16                                                     // finished requests of one name in a report; a forgotten one costs a grant that its client gives back
	CandidatesMax    = 30                                                     // of one name in a report
	reportWindow     = 64                                                     // pieces on their way at a time
	ChunksMax        = (2*LocksMax + ReportEntriesMax - 1) / ReportEntriesMax // pieces of a report
)

const (
	// Block is how many numbers an entry adds to a view's range (section 9.2).
	Block Token = 1 << 16
	// CounterMax is the last number of a generation: 40 bits of a token.
	CounterMax Token = 1<<40 - 1
	// SuspendAfter is T_a: a replica that has a View in its log for so long, and has not applied it, stops.
	SuspendAfter = 2 * time.Second
	// DelayMax bounds a lock-delay.
	DelayMax = 60 * time.Second

	// queuedAfter is how long a replica keeps QUEUED back from a patient request: long beside a hand-over, and short beside TTL/30, after
	// which its client would ask again.
	queuedAfter  = 10 * time.Millisecond
	pullEvery    = 300 * time.Millisecond // S2
	proposeEvery = time.Second            // a Raise that is not applied is asked for again
	// tsMax bounds Lamport clocks: a message beyond it is dropped, so that no clock wraps.
	tsMax = 1 << 62
)

// Parts of the TTL (section 3, 1.4).
const (
	guardPart  = 10 // the loss is reported TTL/10 before D
	renewPart  = 3  // a renewal is due TTL/3 after the last confirmed one was sent; waiters poll at least as often
	repeatPart = 30 // what is unanswered is repeated after TTL/30
	enterPart  = 5  // a hold is not entered with less than TTL/5 left
	pollMin    = time.Second
	lookupEach = 3 // every third poll or renewal asks one look-up
)
