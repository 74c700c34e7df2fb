package lockservice

import (
	"context"
	"fmt"
	"time"

	"latchkey/internal/automaton"
)

// Backend is where locks are kept: the groups of an overlay ([NewGroupBackend]) or, for a program beside a daemon, that
// daemon's API. It keeps no time: whoever calls counts a lease from before the call that granted or renewed it.
//
// All methods are safe for concurrent use, block until they have an answer or ctx ends, and then return an error that
// matches context.Cause(ctx). One Backend is one session towards a group: its grants live and die with that session.
type Backend interface {
	// Acquire asks for the lock and blocks while the request is queued. When ctx ends first, the queue is left in the
	// background. Errors: [ErrLocked] when r.Try and the lock is not free, [ErrNoQuorum], [ErrOutcomeUnknown], [ErrLimit],
	// [ErrName], [ErrTTL], [ErrShape], [ErrMode], [ErrClosed].
	Acquire(ctx context.Context, r Request) (Grant, error)
	// Renew makes one attempt to start the lease anew. [ErrNotHeld]: the grant has ended and the lock is lost. Any other
	// error tells nothing about the grant, which lives as long as its lease.
	Renew(ctx context.Context, g Grant) error
	// Release ends the grant. [ErrNotHeld]: it had ended already.
	Release(ctx context.Context, g Grant) error
	// Break ends every hold under a token as if its lease were over, and tells whose it was. [ErrNotHeld]: there is none.
	Break(ctx context.Context, name string, token Token) (Party, error)
	// Info tells who holds a lock and who waits. A lock nobody has asked for is free.
	Info(ctx context.Context, name string) (Info, error)
	// Limits tells the bounds on TTLs that hold in the overlay.
	Limits(ctx context.Context) (Limits, error)
}

// Notifier is a [Backend] that hears of changes of a lock's state, so that who watches it need not ask again and again.
type Notifier interface {
	// Changes calls fn whenever the state of a lock may have changed since fn was called last: soon after it was called itself, after
	// changes, and once in a while. Changes that follow each other fast may be told as one. fn must not block. It blocks until ctx ends, or
	// until changes cannot be heard of any longer, and says why.
	Changes(ctx context.Context, name string, fn func()) error
}

// Ender is a [Backend] that hears that a hold was taken away before its holder asks.
type Ender interface {
	// Ended blocks until a grant has ended, as far as is known, other than by its Release, and returns nil then; a Renew tells for sure. It
	// hears of a [Backend.Break] as a rule, and misses what was broken before it was called, or while messages are lost. Else it
	// returns the cause of ctx, or why nothing can be heard.
	Ended(ctx context.Context, g Grant) error
}

// Request asks for a lock.
type Request struct {
	Name string
	TTL  time.Duration // within the overlay's limits
	Try  bool          // do not queue
	// Shared asks to have the lock beside others that share it.
	Shared bool
	// Protocol says how the lock is to be kept.
	Protocol Protocol
	// Permits, above 0, asks for one permit of a semaphore of so many: at most [PermitsMax], and not Shared.
	Permits int
	Delay   time.Duration // lock delay, at most [LockDelayMax]
	Value   string        // for whoever asks who holds the lock; at most [ValueBytesMax] bytes of UTF-8
	// Queued, when set, is told the place in the queue (1 is next) on entering it and whenever an answer names it. It is
	// called on the goroutine that called Acquire, and must not block.
	Queued func(position int)
}

// Grant is one grant of a lock, and names it in Renew and Release.
type Grant struct {
	Name   string
	Token  Token
	TTL    time.Duration
	Holder string // who holds it, for people and logs: session, and peer where known
	Req    uint64 // the request it answers, unique in the backend's session
	// Waited tells that the grant came out of the queue, so its lease began at a time unknown here. It is no hold before a
	// Renew has confirmed it.
	Waited bool
	// Since, when it is not 0, is from when the lease counts for sure, by the backend's [Clock]: a [Service] on the same clock holds
	// without a Renew even if it has waited.
	Since automaton.Instant
}

// Party names a client of the lock service.
type Party struct {
	Session string // id of its session with the group, in hexadecimal
	Peer    string // the peer the session lives on: its peer id where known, else its node id
}

// String returns session and peer.
func (p Party) String() string {
	if p.Peer == "" {
		return p.Session
	}
	return fmt.Sprintf("%s@%s", p.Session, p.Peer)
}

// Info is the state of one lock as the group sees it.
type Info struct {
	Name      string
	Held      bool
	Holder    Party         // zero when free; the first where several hold it
	Token     Token         // of its grant; zero when free
	TTL       time.Duration // of its grant
	LeaseLeft time.Duration // by the group's clock: when its hold ends unless renewed. Not for use by the holder
	Confirmed bool          // it holds; false while it has yet to take up a grant that came out of the queue
	Value     string        // that it gave ([WithValue], [Service.Elect])
	Permits   int           // of a semaphore in use; 0: it is none
	Shared    bool          // those who hold it share it
	Holding   int           // how many hold it
	Holders   []Holder      // all of them, in the order of their grants, where they share it or have permits; may be cut off
	Protocol  Protocol      // that locks the name now: [ProtocolSigma] or [ProtocolGroup]
	TakenOver bool          // the group's table takes it over from the voters, who have yet to say who may hold it
	DelayLeft time.Duration // for how long it is granted to nobody, because of a lock delay or a group that was revived
	Waiters   []Waiter      // in the order they will be granted
	Waiting   int           // how many wait; above len(Waiters) when the list was cut off
	Breaks    []BrokenLock  // what was broken of this name lately, the oldest first; the group remembers the last few of all its locks
}

// Holder is one of several holders of a lock.
type Holder struct {
	Party
	Token     Token
	TTL       time.Duration
	LeaseLeft time.Duration
	Confirmed bool
}

// BrokenLock says that a lock was broken ([Service.Break]).
type BrokenLock struct {
	Token   Token
	Holder  Party     // the first of those who were ended
	Holders int       // how many
	By      Party     // who broke it
	At      time.Time // when, by the clock of who broke it
}

// Waiter is a queued request.
type Waiter struct {
	Party
	TTL        time.Duration // the lease it asks for
	WaitingFor time.Duration // how long it has waited, by the group's clock
	Shared     bool
}

// Limits are the bounds an overlay sets, the same at every peer.
type Limits struct {
	TTLMin, TTLMax, TTLDefault time.Duration
	// DriftPPM bounds how far the rate of any clock is from real time, in parts per million. Holders use that much less
	// of a lease.
	DriftPPM int64
}

// CheckTTL reports whether a lease may be this long. The error matches [ErrTTL] and names the bounds.
func (l Limits) CheckTTL(ttl time.Duration) error {
	if ttl < l.TTLMin || ttl > l.TTLMax {
		return fmt.Errorf("%w: %v; this overlay allows %v to %v", ErrTTL, ttl, l.TTLMin, l.TTLMax)
	}
	return nil
}

// LimitsOf returns the limits of an overlay whose genesis names this longest TTL and drift.
func LimitsOf(ttlMax time.Duration, driftPPM int64) Limits {
	return Limits{TTLMin: TTLMin, TTLMax: ttlMax, TTLDefault: min(TTLDefault, ttlMax), DriftPPM: driftPPM}
}
