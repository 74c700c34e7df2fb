package lockservice

import (
	"errors"
	"fmt"
	"time"
)

// Sentinels. Every error of this package matches one of them, or the cause of the caller's context.
var (
	// ErrLocked is matched when a try failed, or a wait limit passed, because somebody else holds the lock, or nobody may have it for
	// now, as in a lock delay. errors.As finds a [*LockedError] where more is known.
	ErrLocked = errors.New("lockservice: the lock is not free")
	// ErrLost is matched when the holder must stop touching the resource: the lease is over, or nearly so and could not be
	// renewed. errors.As finds the [*LostError].
	ErrLost = errors.New("lockservice: lock lost")
	// ErrNotHeld is matched when the group does not know the grant that is to be renewed or released: it has ended already.
	// It is also the cause of a handle's context after its release.
	ErrNotHeld = errors.New("lockservice: lock not held")
	// ErrNoQuorum is matched when too few replicas of the lock's group answered.
	ErrNoQuorum = errors.New("lockservice: too few replicas answer")
	// ErrOutcomeUnknown is matched when a request was sent and nobody can tell whether it took effect. A lock that may have
	// been granted this way is given back, or lapses within its TTL.
	ErrOutcomeUnknown = errors.New("lockservice: outcome unknown")
	// ErrName is matched when a lock's name breaks the rules of [CheckName].
	ErrName = errors.New("lockservice: unusable lock name")
	// ErrMode is matched when a name is in use as something else: as a lock when a semaphore is asked for, or as a semaphore of
	// another number. It becomes what is asked for once nobody has it or waits for it.
	ErrMode = errors.New("lockservice: the name is in use as something else")
	// ErrShape is matched when no lock can be asked for like this, whatever its name is in use as: a number of permits that no
	// semaphore has, or shared ones, a lock delay outside 0 to [LockDelayMax], a value that is too long or is
	// not UTF-8, a protocol that does not keep such a lock or that the overlay does not run.
	ErrShape = errors.New("lockservice: no lock is like that")
	// ErrTTL is matched when a TTL is outside the bounds of the overlay ([Limits]).
	ErrTTL = errors.New("lockservice: TTL out of bounds")
	// ErrWait is matched when the limit of [WithWait] passed before the lock was held.
	ErrWait = errors.New("lockservice: not acquired within the wait limit")
	// ErrLimit is matched when the group refused because one of its limits is reached: locks, waiters of a lock, requests of
	// a session, tokens.
	ErrLimit = errors.New("lockservice: limit reached")
	// ErrClosed is matched after Close.
	ErrClosed = errors.New("lockservice: closed")
	// ErrStaleToken is matched when a guard refuses a token lower than one it has seen.
	ErrStaleToken = errors.New("lockservice: stale token")
	// ErrGuardFile is matched when a [FileGuard] finds a file that it did not write, or that is damaged. It never
	// overwrites one.
	ErrGuardFile = errors.New("lockservice: not a guard's file")
)

// LockedError tells who holds the lock that was tried. It unwraps to [ErrLocked].
type LockedError struct {
	Name    string
	Holder  Party // zero when nobody is known to hold it: a lock delay runs, say, or its group was revived a moment ago
	Waiting int   // how many wait for it
}

func (e *LockedError) Error() string {
	if e.Holder == (Party{}) {
		return fmt.Sprintf("lockservice: %q is not free, though nobody is known to hold it: a lock delay runs, or its group has begun anew", e.Name)
	}
	return fmt.Sprintf("lockservice: %q is locked by %v, with %d waiting", e.Name, e.Holder, e.Waiting)
}

// Unwrap returns [ErrLocked].
func (e *LockedError) Unwrap() error { return ErrLocked }

// LostError is the cause with which a handle's context ends when its lock is lost. It unwraps to [ErrLost] and to Cause.
type LostError struct {
	Name  string
	Token Token
	Since time.Duration // from the sending of the last confirmed renewal (or of the grant), on the holder's clock
	Cause error         // why no renewal came; nil when none is known
}

func (e *LostError) Error() string {
	s := fmt.Sprintf("lockservice: lock %q lost: token %v, last confirmed %v ago", e.Name, e.Token, e.Since.Round(time.Millisecond))
	if e.Cause != nil {
		s += ": " + e.Cause.Error()
	}
	return s
}

// Unwrap returns [ErrLost] and the cause.
func (e *LostError) Unwrap() []error {
	if e.Cause == nil {
		return []error{ErrLost}
	}
	return []error{ErrLost, e.Cause}
}
