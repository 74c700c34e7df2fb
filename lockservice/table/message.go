package table

import (
	"fmt"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/lockservice/sigma"
)

// Client is a client session.
type Client [16]byte

// String returns the first eight hexadecimal digits.
func (c Client) String() string { return fmt.Sprintf("%x", c[:4]) }

// Token is a fencing token: it rises with every grant. Zero stands for none.
type Token uint64

const (
	counterBits = 40
	// CounterMax is the last number a table gives out in one generation. A table counts further than that only from where a lock
	// began that it has taken over ([Table.Graft]): the generation of a key stands above these bits, in the lowest ones of
	// Config.GroupGen, which are zero there.
	CounterMax = 1<<counterBits - 1

	keyGenBits = 6
	lowMax     = 1<<(counterBits+keyGenBits) - 1 // of a counter with the generation of a key
)

// Caller says who sent a command.
type Caller struct {
	Client Client
	Peer   keyspace.NodeID
}

// Command is what a client asks of the table.
type Command interface{ isCommand() }

// The commands.
type (
	// Acquire asks for a lock. Asked again for a request that is alive, it answers the present state of that request and
	// changes nothing. Answers: Granted, Queued, Locked (only with Try), Refused. Of one with a Wish also Elsewhere, and NotHeld
	// when its hold is over.
	//
	// Where voters lock the name by protocol sigma, an Acquire without a Wish takes it from them, and is queued until they have said
	// who may hold it; also with Try, and one that would have to wait then is gone: it is to ask again.
	//
	// A name is either a lock, held by one or shared, or a semaphore of Permits permits, for as long as anybody has it or waits
	// for it: who asks for it as something else meanwhile is refused with BadMode.
	Acquire struct {
		Name    string
		Req     uint64 // never used twice by its client, other than to ask again
		TTL     time.Duration
		Try     bool          // do not queue
		Shared  bool          // beside others that share; not of a semaphore
		Permits int           // 0: a lock. 1 to [HoldersPerLockMax]: one permit of a semaphore of so many
		Delay   time.Duration // how long nobody is granted the lock after this hold has ended by its lease: 0 to [DelayMax]
		Value   string        // told to whoever asks who holds the lock; at most [ValueBytesMax]
		// Wish names the request by which protocol sigma knows this one, zero for none: it has been told that the name is locked here
		// now (M7). Held is the token that it holds there, zero for none: then it has dropped every grant it had.
		Wish sigma.Req
		Held Token
	}
	// Renew starts the lease of a grant anew and so confirms it; a lease never gets shorter. With Token 0 it is a waiter's
	// poll, which confirms a grant that has been made meanwhile. Answers: Held, Queued (only with Token 0), NotHeld, Refused.
	Renew struct {
		Name  string
		Req   uint64
		Token Token
		TTL   time.Duration
	}
	// Release gives up what a request has: its place in the queue, or its grant, if that is the one named; Token 0 names any.
	// Answers: Released, NotHeld.
	Release struct {
		Name  string
		Req   uint64
		Token Token
	}
	// Break ends what is held under a token, as if its lease were over: a lock, a permit, or all holds that share it. It is
	// for operators, and kept in a list. Answers: Broken, NotHeld, Refused; Queued when the table does not know yet who may have the
	// lock by protocol sigma, and then it is to be asked again.
	Break struct {
		Name  string
		Token Token
		At    int64 // wall clock of who breaks, in nanoseconds since 1970: for people
	}
)

func (Acquire) isCommand() {}
func (Break) isCommand()   {}
func (Renew) isCommand()   {}
func (Release) isCommand() {}

// Kind says what an [Answer] is.
type Kind uint8

// The kinds of answers.
const (
	Granted   Kind = iota + 1 // the lock is granted: Token, Waited
	Queued                    // waiting: Position
	Locked                    // Try found it taken: Position and Holder, zero while a new generation waits for leases of the former one
	Held                      // renewed: Token
	NotHeld                   // the request has nothing here
	Released                  // given back
	Refused                   // Reason
	Broken                    // ended by force: Holder, the first where several shared the token
	Elsewhere                 // voters lock the name by protocol sigma
)

// String names the kind.
func (k Kind) String() string {
	names := [...]string{"Kind(0)", "granted", "queued", "locked", "held", "not-held", "released", "refused", "broken", "elsewhere"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// Reason says why a command is refused.
type Reason uint8

// The reasons.
const (
	BadTTL          Reason = iota + 1 // outside the bounds of the configuration
	TooManyLocks                      // [LocksMax], [NameBytesTotalMax]
	TooManyWaiters                    // [WaitersPerLockMax]
	TooManyRequests                   // [RequestsPerSessionMax], [RequestsPerPeerMax]
	TokensExhausted                   // the generation has given out its last token
	BadMode                           // the name is in use as something else: Permits says as what
	BadPermits                        // more than [HoldersPerLockMax], or shared ones
	BadDelay                          // outside 0 to [DelayMax]
	TooManyValues                     // [ValueBytesTotalMax]
	BadValue                          // [ValueBytesMax]
)

// String names the reason.
func (r Reason) String() string {
	names := [...]string{"Reason(0)", "ttl out of bounds", "too many locks", "too many waiters", "too many requests of one session or peer", "tokens exhausted",
		"in use as something else", "so many permits cannot be", "lock delay out of bounds", "too many bytes of values", "value too long"}
	if int(r) < len(names) {
		return names[r]
	}
	return fmt.Sprintf("Reason(%d)", uint8(r))
}

// Answer is the result of a command. Fields that its kind does not name are zero.
type Answer struct {
	Kind     Kind
	Token    Token
	Waited   bool // the grant came out of the queue and is unconfirmed: Renew before holding
	Position int  // Queued: how many stand in front, the holder not counted. Locked: how many wait
	Holder   Holder
	Reason   Reason
	Permits  int // Refused with BadMode: what the name is in use as, as in Acquire
}

// Holder describes who has a lock.
type Holder struct {
	Client    Client
	Session   Client // that people know the request by, in either protocol: that of its Wish, else Client
	Peer      keyspace.NodeID
	Req       uint64
	Token     Token
	TTL       time.Duration // of its lease, as last granted or renewed
	Left      time.Duration // of its lease, in log time, at the moment of asking
	Confirmed bool
	Shared    bool
	Value     string
}

// Waiter describes who waits for one.
type Waiter struct {
	Client  Client
	Session Client // as of a Holder
	Peer    keyspace.NodeID
	Req     uint64
	TTL     time.Duration // of the lease it asks for
	Since   time.Duration // how long it has been waiting, in log time
	Shared  bool
}

// Info describes one lock, and the table around it.
type Info struct {
	Held    bool
	Permits int           // of a semaphore in use; 0: it is none
	Holder  Holder        // the first of Holders; zero unless Held
	Holders []Holder      // in the order in which they were granted
	Delay   time.Duration // for which nobody is granted it yet
	Waiters []Waiter      // first come, first granted
	Breaks  []BreakState  // of this lock that are still known, the oldest first
	Locks   int           // locks of the table that are held or waited for
	Waiting int           // waiters of all of them
	// Mode says who locks the name: in [sigma.ModeSigma] all there is to tell is known to the voters. Candidates may hold it by their
	// grants.
	Mode       sigma.Mode
	Candidates []CandidateState
}

// Grant is the output that tells a waiter its turn has come. It goes to the session of Client.
type Grant struct {
	Client Client
	Name   string
	Req    uint64
	Token  Token
}

// State is the whole state of a table, for snapshots: locks by rising name, owners in the order of their grants, waiters and
// breaks in theirs.
type State struct {
	Now     time.Duration // log time of the last step
	Counter uint64        // of the last token given out
	Locks   []LockState
	Breaks  []BreakState // the latest, at most [BreaksMax]
	Need    int          // majority of the view's voters; 0: there is no view
}

// LockState is one lock of a [State]. Without an owner it has waiters, or Until, or Hand, or is Away, unless there is a view.
type LockState struct {
	Name    string
	Permits int // of a semaphore; 0 for a lock
	Owners  []OwnerState
	Queue   []WaiterState
	Until   time.Duration // log time before which nobody is granted it: a new generation, or a lock delay. 0: none
	Hand    *HandoverState
	Turns   []Turn // of those who waited at the voters, in their order; at most [TurnsMax]
	// TurnsUntil is the log time until which Turns count. 0: without any, or while more voters are to say who waits.
	TurnsUntil time.Duration
	Away       bool // another group's table has it
}

// HandoverState is what is known of those who may hold a lock by protocol sigma (M2, M3).
type HandoverState struct {
	Pending    bool              // more voters are to say who may hold it
	Reporters  []keyspace.NodeID // who have, in the order in which they did
	Candidates []CandidateState  // in the order in which they were named
	Said       []sigma.Req       // that hold nothing, whoever names them; at most [SaidMax]
}

// CandidateState is one that may hold a lock.
type CandidateState struct {
	Wish  sigma.Req
	Peer  keyspace.NodeID
	Until time.Duration // log time at which its lease is over surely
	Delay time.Duration // lock-delay
	Token Token         // it was offered, for people
}

// OwnerState is an owner of a [LockState].
type OwnerState struct {
	Client    Client
	Peer      keyspace.NodeID
	Req       uint64
	Counter   uint64 // of its token; owners that share a lock share it
	TTL       time.Duration
	Ends      time.Duration
	Waited    bool // came out of the queue
	Confirmed bool // renewed at least once
	Shared    bool
	Delay     time.Duration
	Value     string
	Wish      sigma.Req // as in Acquire: what people know it by
}

// WaiterState is one waiter of a [LockState].
type WaiterState struct {
	Client Client
	Peer   keyspace.NodeID
	Req    uint64
	TTL    time.Duration
	Since  time.Duration // log time at which it came
	Heard  time.Duration // log time at which it has asked last
	Shared bool
	Delay  time.Duration
	Value  string
	Wish   sigma.Req // as in Acquire
	Held   Token     // as in Acquire; zero unless there is a Hand
	Try    bool      // it waits for the mode only
}

// BreakState says that a lock was broken.
type BreakState struct {
	Name    string
	Token   Token
	Holder  Caller // the first, where several shared the token, by the session that people know it by
	Holders int    // how many were ended
	By      Caller
	Now     time.Duration // log time
	At      int64         // wall clock of who broke it, in nanoseconds since 1970
}
