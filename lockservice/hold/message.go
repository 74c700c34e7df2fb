package hold

import (
	"errors"
	"fmt"
	"time"

	"latchkey/internal/automaton"
)

// Why a hold is over, in [Lost] and [Done].
var (
	ErrExpired        = errors.New("hold: no renewal was confirmed in time")
	ErrJump           = errors.New("hold: the clock jumped")
	ErrNotHeld        = errors.New("hold: not held any more")
	ErrLocked         = errors.New("hold: locked by another")
	ErrOutcomeUnknown = errors.New("hold: release unanswered, the lease will run out")
)

// Event is an input of a [Hold].
type Event interface{ isEvent() }

// The events.
type (
	// Begin starts asking. It counts once.
	Begin struct{}
	// Answer is the answer to a call.
	Answer struct {
		Call     uint64
		Kind     AnswerKind
		Token    uint64            // Granted; Held
		Waited   bool              // Granted: it came out of the queue
		Since    automaton.Instant // Granted: the lease counts from then for sure, by the clock of the steps; 0 where that is not known
		Position int               // Queued
		Err      error             // Refused
	}
	// Failed says that a call has no answer: it may have been executed or not. The hold asks again after a pause.
	Failed struct{ Call uint64 }
	// Pushed says that the table has granted an attempt out of the queue.
	Pushed struct {
		Attempt uint64
		Token   uint64
	}
	// Doubt says that the hold may have been ended by others: a renewal is sent at once, which tells.
	Doubt struct{}
	// Timer says that the instant of the last [Arm] has come. One that comes early or late does no harm.
	Timer struct{}
	// Release gives the hold, or the wish for it, back. It counts once.
	Release struct{}
	// Jump says that the clock may have jumped, or the machine has slept without its clock going on.
	Jump struct{}
)

func (Begin) isEvent()   {}
func (Answer) isEvent()  {}
func (Failed) isEvent()  {}
func (Pushed) isEvent()  {}
func (Doubt) isEvent()   {}
func (Timer) isEvent()   {}
func (Release) isEvent() {}
func (Jump) isEvent()    {}

// AnswerKind says what an [Answer] is.
type AnswerKind uint8

// The kinds of answers.
const (
	Granted AnswerKind = iota + 1
	Queued
	Locked
	Held
	NotHeld
	Released
	Refused
)

// Action is an output of a [Hold].
type Action interface{ isAction() }

// The actions.
type (
	// Call asks the driver for a call to the lock table. Every Call is answered by exactly one [Answer] or [Failed] with its ID.
	// The driver takes care that a call is executed at most once, however often it is sent.
	Call struct {
		ID   uint64
		Kind CallKind
		// Attempt counts the requests of this hold from 1. The driver gives each attempt of each hold a request number of its
		// own, which it never uses for another.
		Attempt uint64
		Token   uint64 // Renew: zero polls. GiveBack: zero gives up whatever the attempt has
		TTL     time.Duration
		Try     bool // Acquire
	}
	// Abandon says that the answer to an acquire is no longer wanted. A driver that can end the wait does so and reports
	// Failed; one that cannot lets it finish.
	Abandon struct{ Call uint64 }
	// Arm asks for a [Timer] event at an instant, in place of the one asked for before. Never means none.
	Arm struct{ At automaton.Instant }
	// Waiting tells the place in the queue: how many stand in front, the holder not counted.
	Waiting struct{ Position int }
	// Acquired says that the lock is held from now on.
	Acquired struct {
		Token    uint64
		Deadline automaton.Instant // D
	}
	// Renewed moves the deadline.
	Renewed struct{ Deadline automaton.Instant }
	// Lost says that the holder must stop. The cause matches ErrExpired, ErrJump or ErrNotHeld.
	Lost struct{ Cause error }
	// Done says that nothing more will happen. Err is nil after a release, or why there is nothing held: ErrLocked,
	// ErrNotHeld, ErrOutcomeUnknown, or the reason of a refusal.
	Done struct{ Err error }
)

func (Call) isAction()     {}
func (Abandon) isAction()  {}
func (Arm) isAction()      {}
func (Waiting) isAction()  {}
func (Acquired) isAction() {}
func (Renewed) isAction()  {}
func (Lost) isAction()     {}
func (Done) isAction()     {}

// CallKind says what a [Call] asks for.
type CallKind uint8

// The kinds of calls.
const (
	Acquire  CallKind = iota + 1
	Renew             // the table's Renew
	GiveBack          // the table's Release
)

// String names the kind.
func (k CallKind) String() string {
	switch k {
	case Acquire:
		return "acquire"
	case Renew:
		return "renew"
	case GiveBack:
		return "release"
	}
	return fmt.Sprintf("CallKind(%d)", uint8(k))
}

// State is where a [Hold] stands.
type State uint8

// The states; see the package documentation.
const (
	StateIdle State = iota
	StateAcquiring
	StateWaiting
	StateConfirming
	StateHeld
	StateLost
	StateReleasing
	StateDone
)

// String names the state.
func (s State) String() string {
	names := [...]string{"IDLE", "ACQUIRING", "WAITING", "CONFIRMING", "HELD", "LOST", "RELEASING", "DONE"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}
