package hold

import (
	"math"
	"slices"
	"time"

	"latchkey/internal/automaton"
	"latchkey/internal/invariant"
)

// Parts of the TTL, and the bound on unanswered calls.
const (
	guardPart  = 10 // the loss is reported TTL/10 before D
	renewPart  = 3  // a renewal is due TTL/3 after the last confirmed one was sent; a waiter polls as often
	repeatPart = 30 // an unanswered call is repeated after TTL/30
	// RenewalsMax is how many renewals may be unanswered at a time; the next one waits for the oldest to be answered or
	// reported as failed.
	RenewalsMax = 3
)

// Config fixes one hold.
type Config struct {
	TTL   time.Duration // above zero; the same in every call of the hold
	Drift automaton.Drift
	Try   bool // do not wait
}

// Guard returns how long before D the loss of a hold with this TTL is reported.
func Guard(ttl time.Duration) time.Duration { return ttl / guardPart }

// Hold is one wish for one lock, from the asking to the end. Not safe for concurrent use.
type Hold struct {
	cfg   Config
	state State
	now   automaton.Instant

	attempt uint64
	token   uint64
	// asked is the first sending of an acquire of this attempt. [void] after a jump.
	asked automaton.Instant
	// deadline is the D of the last confirmed call. It only grows within a hold.
	deadline automaton.Instant
	position int // last reported, -1 before

	calls  []call // unanswered, oldest first; at most RenewalsMax and one more
	lastID uint64
	// next is when the present state sends its next call.
	next automaton.Instant
	// armed is what the driver was asked for last.
	armed automaton.Instant
	// giveUp is when an unanswered release is left to the end of the lease.
	giveUp automaton.Instant
	// unsure says that a release may have been executed, so that NotHeld is a success.
	unsure bool

	mutant Mutant
}

// call is an unanswered call. sent is [void] once the clock has jumped.
type call struct {
	id      uint64
	kind    CallKind
	attempt uint64
	sent    automaton.Instant
}

// void is a sending so long ago that no lease counted from it is alive.
const void automaton.Instant = math.MinInt64

// New returns an idle hold.
func New(cfg Config) *Hold {
	invariant.Check(cfg.TTL > 0, "TTL above zero", cfg)
	return &Hold{cfg: cfg, position: -1, next: automaton.Never, armed: automaton.Never}
}

// State returns where the hold stands.
func (h *Hold) State() State { return h.state }

// Token returns the fencing token, zero before the lock was granted.
func (h *Hold) Token() uint64 { return h.token }

// Deadline returns D. It means something once the lock has been acquired.
func (h *Hold) Deadline() automaton.Instant { return h.deadline }

// Valid reports whether the lock is held at an instant: neither lost nor given back, and before D.
func (h *Hold) Valid(now automaton.Instant) bool { return h.state == StateHeld && now < h.deadline }

// Step consumes one event, taken at an instant of the node's own clock, and appends actions to out. An event that does not
// fit the state is stale and is dropped. The instant is read before Step is called: calls count as sent at it.
func (h *Hold) Step(ev Event, now automaton.Instant, out []Action) []Action {
	h.now = max(h.now, now)
	// First of all: whatever this event brings, it is too late for a hold whose time is up.
	if h.state == StateHeld && h.now >= h.guard() {
		out = h.lose(ErrExpired, out)
	}
	switch ev := ev.(type) {
	case Begin:
		if h.state == StateIdle {
			out = h.ask(out)
		}
	case Answer:
		if c, ok := h.answered(ev.Call); ok {
			out = h.answer(c, ev, out)
		}
	case Failed:
		if c, ok := h.answered(ev.Call); ok {
			out = h.failed(c, out)
		}
	case Pushed:
		if ev.Attempt == h.attempt && (h.state == StateWaiting || h.state == StateAcquiring) {
			out = h.offered(ev.Token, out)
		}
	case Doubt:
		if h.state == StateHeld {
			h.next = h.now
		}
	case Timer:
		h.armed = automaton.Never // it has fired, or will not
	case Release:
		out = h.release(out)
	case Jump:
		out = h.jump(out)
	}
	if h.now >= h.next {
		out = h.due(out)
	}
	return h.arm(out)
}

// lease returns D for a call sent at an instant.
func (h *Hold) lease(sent automaton.Instant) automaton.Instant {
	if h.mutant == MutantFromArrival {
		sent = h.now
	}
	if sent == void {
		return void
	}
	return sent.Add(h.cfg.Drift.Shrink(h.cfg.TTL))
}

// guard returns when the loss of the present hold is reported.
func (h *Hold) guard() automaton.Instant { return h.deadline.Add(-Guard(h.cfg.TTL)) }

func (h *Hold) pause() automaton.Instant { return h.now.Add(h.cfg.TTL / repeatPart) }

// call sends a call of the present attempt.
func (h *Hold) call(kind CallKind, token uint64, out []Action) []Action {
	h.lastID++
	h.calls = append(h.calls, call{id: h.lastID, kind: kind, attempt: h.attempt, sent: h.now})
	invariant.Check(len(h.calls) <= RenewalsMax+1, "bounded calls", h)
	return append(out, Call{
		ID: h.lastID, Kind: kind, Attempt: h.attempt, Token: token, TTL: h.cfg.TTL, Try: h.cfg.Try && kind == Acquire,
	})
}

// answered takes an unanswered call off the list.
func (h *Hold) answered(id uint64) (call, bool) {
	for i, c := range h.calls {
		if c.id == id {
			h.calls = append(h.calls[:i], h.calls[i+1:]...)
			return c, true
		}
	}
	return call{}, false
}

func (h *Hold) outstanding(kind CallKind) int {
	n := 0
	for _, c := range h.calls {
		if c.kind == kind {
			n++
		}
	}
	return n
}

// ask starts a new attempt. What is still unanswered of the former one no longer matters.
func (h *Hold) ask(out []Action) []Action {
	h.calls = h.calls[:0]
	h.state, h.token, h.asked, h.next = StateAcquiring, 0, h.now, automaton.Never
	h.attempt++
	h.position = -1
	return h.call(Acquire, 0, out)
}

// offered takes a grant that is not a hold yet.
func (h *Hold) offered(token uint64, out []Action) []Action {
	h.state, h.token = StateConfirming, token
	if h.mutant == MutantUnconfirmed {
		return h.hold(h.now, out)
	}
	h.next = h.now // due sends the renewal that confirms it
	return out
}

// hold enters or prolongs the hold by a call that was sent at an instant. What has too little left is not entered.
func (h *Hold) hold(sent automaton.Instant, out []Action) []Action {
	d := h.lease(sent)
	if h.state == StateHeld {
		if d > h.deadline {
			h.deadline = d
			h.next = max(h.now, sent.Add(h.cfg.TTL/renewPart))
			out = append(out, Renewed{Deadline: d})
		}
		return out
	}
	if h.now >= d.Add(-Guard(h.cfg.TTL)) {
		return h.offered(h.token, out)
	}
	h.state, h.deadline = StateHeld, d
	h.next = max(h.now, sent.Add(h.cfg.TTL/renewPart))
	return append(out, Acquired{Token: h.token, Deadline: d})
}

func (h *Hold) answer(c call, a Answer, out []Action) []Action {
	if h.state == StateReleasing {
		return h.releaseAnswer(c, a, out)
	}
	switch c.kind {
	case Acquire:
		return h.acquireAnswer(a, out)
	case Renew:
		return h.renewAnswer(c, a, out)
	}
	return out
}

func (h *Hold) acquireAnswer(a Answer, out []Action) []Action {
	if h.state != StateAcquiring { // a push came first
		return out
	}
	switch a.Kind {
	case Granted:
		h.token = a.Token
		if a.Since > 0 && h.asked != void { // after a jump it may be an instant of the time before
			return h.hold(a.Since, out)
		}
		if a.Waited {
			return h.offered(a.Token, out)
		}
		return h.hold(h.asked, out)
	case Queued:
		h.state = StateWaiting
		h.next = h.now.Add(h.cfg.TTL / renewPart)
		return h.wait(a.Position, out)
	case Locked:
		return h.done(ErrLocked, out)
	case Refused:
		return h.done(a.Err, out)
	}
	return out
}

func (h *Hold) wait(position int, out []Action) []Action {
	if position == h.position {
		return out
	}
	h.position = position
	return append(out, Waiting{Position: position})
}

func (h *Hold) renewAnswer(c call, a Answer, out []Action) []Action {
	switch {
	case a.Kind == Held && (h.token == 0 || h.token == a.Token):
		h.token = a.Token
		return h.hold(c.sent, out)
	case a.Kind == Queued && h.state == StateWaiting:
		return h.wait(a.Position, out)
	case a.Kind == Refused && h.state != StateHeld:
		return h.done(a.Err, out)
	case a.Kind == NotHeld && h.state == StateHeld:
		return h.lose(ErrNotHeld, out)
	case a.Kind == NotHeld && (h.state == StateWaiting || h.state == StateConfirming):
		return h.ask(out)
	}
	return out
}

// failed makes room for the repetition of a call that has no answer.
func (h *Hold) failed(c call, out []Action) []Action {
	switch h.state {
	case StateReleasing:
		h.unsure = h.unsure || c.kind == GiveBack
		h.next = h.pause()
	case StateAcquiring, StateWaiting, StateConfirming, StateHeld:
		h.next = min(h.next, h.pause())
	}
	return out
}

// due sends what the present state has to send next, and sets when to look again.
func (h *Hold) due(out []Action) []Action {
	h.next = automaton.Never
	switch h.state {
	case StateAcquiring:
		if h.outstanding(Acquire) == 0 {
			if h.mutant == MutantRetryMoves {
				h.asked = h.now
			}
			out = h.call(Acquire, 0, out)
		}
	case StateWaiting, StateConfirming, StateHeld:
		h.next = h.pause()
		if h.outstanding(Renew) == RenewalsMax {
			break
		}
		out = h.call(Renew, h.token, out)
		if h.state == StateWaiting {
			h.next = h.now.Add(h.cfg.TTL / renewPart)
		}
	case StateReleasing:
		return h.giveBack(out)
	}
	return out
}

// lose ends the hold, for good: no call is waited for any more. The lock is not given back, since the holder's work may go on
// for a while.
func (h *Hold) lose(cause error, out []Action) []Action {
	h.state, h.next = StateLost, automaton.Never
	h.calls = h.calls[:0]
	return append(out, Lost{Cause: cause})
}

func (h *Hold) jump(out []Action) []Action {
	for i := range h.calls {
		h.calls[i].sent = void
	}
	h.asked = void
	if h.state == StateHeld {
		return h.lose(ErrJump, out)
	}
	return out
}

func (h *Hold) release(out []Action) []Action {
	switch h.state {
	case StateIdle:
		return h.done(nil, out)
	case StateReleasing, StateDone:
		return out
	}
	h.state = StateReleasing
	h.giveUp = h.now.Add(h.cfg.Drift.Stretch(h.cfg.TTL))
	h.next = h.now
	h.calls = slices.DeleteFunc(h.calls, func(c call) bool { return c.kind != Acquire })
	for _, c := range h.calls {
		// giveBack waits for it: a release that overtakes the acquire would leave a grant behind that nobody wants.
		out = append(out, Abandon{Call: c.id})
	}
	return out
}

func (h *Hold) releaseAnswer(c call, a Answer, out []Action) []Action {
	switch c.kind {
	case Acquire:
		switch a.Kind {
		case Granted, Queued:
			h.token, h.next = a.Token, h.now
			return out
		case Locked:
			return h.done(ErrLocked, out)
		}
		return h.done(a.Err, out)
	case GiveBack:
		switch {
		case a.Kind == NotHeld && !h.unsure && h.token != 0:
			return h.done(ErrNotHeld, out)
		case a.Kind == Refused:
			return h.done(a.Err, out)
		}
		return h.done(nil, out)
	}
	return out
}

// giveBack sends the release, again if need be, until the lease has run out anyway.
func (h *Hold) giveBack(out []Action) []Action {
	if h.now >= h.giveUp {
		return h.done(ErrOutcomeUnknown, out)
	}
	h.next = h.giveUp
	if h.outstanding(GiveBack)+h.outstanding(Acquire) == 0 {
		out = h.call(GiveBack, h.token, out)
	}
	return out
}

func (h *Hold) done(err error, out []Action) []Action {
	h.state, h.next = StateDone, automaton.Never
	h.calls = h.calls[:0]
	return append(out, Done{Err: err})
}

// arm asks for a timer at the earliest instant at which something is to be done, when that has changed.
func (h *Hold) arm(out []Action) []Action {
	at := h.next
	if h.state == StateHeld {
		at = min(at, h.guard())
	}
	if at == h.armed {
		return out
	}
	h.armed = at
	return append(out, Arm{At: at})
}
