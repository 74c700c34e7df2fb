package lockservice

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"latchkey/internal/automaton"
	"latchkey/lockservice/hold"
)

// callPart bounds one renewal or release: it fails after TTL/3. The automaton repeats an unanswered one much sooner, but at
// most [hold.RenewalsMax] are under way at a time.
const callPart = 3

var errNoAnswer = errors.New("no answer within a third of the TTL")

// checkEvery is how often the keeper of a held lock looks at its clock even if no timer is due: Go's timers stand still while
// the machine is suspended, and the lease does not. After a suspend the loss is noticed within this much running time.
func checkEvery(ttl time.Duration) time.Duration {
	return min(max(ttl/20, 50*time.Millisecond), 500*time.Millisecond)
}

// keeper drives the automaton of one hold. One goroutine at a time touches it: that of Lock's caller until the first answer, then its
// loop, or, where the hold is over before that has anything to do, that of Release's caller until the first answer. Calls to the backend
// that the loop makes run in goroutines of their own and come back as events.
type keeper struct {
	h       *Handle
	backend Backend

	turn  sync.Mutex // held by Lock's caller while it asks; guards the next
	begun bool       // the loop runs, or has no need to, or a release has its place
	mind  minding    // belongs to the service's minder, which begins the loop of a hold that lasts

	clock  Clock
	drift  automaton.Drift
	want   Request // all but what is the same in every one
	queued func(int)
	ask    context.Context // of the call of Lock: ends the wait, and means nothing once the lock is held

	core  *hold.Hold
	now   automaton.Instant // of the last step
	armed automaton.Instant // when core wants to be woken
	timer *time.Timer       // of the loop; nil before it runs
	jumps uint64            // of the clock, as last seen
	acts  []hold.Action
	space [4]hold.Action // of acts, as a rule

	asking   hold.Call // what the caller of Lock or Release asks of the backend itself, before the loop runs
	hasAsked bool      // asking is to be asked

	calls   context.Context // of calls in the background: ends with the loop; nil before the first of them
	cancel  context.CancelFunc
	running sync.WaitGroup // of calls in the background
	results chan result    // of them
	doubts  chan struct{}  // has an element when the hold is said to be over

	grant   Grant // of the present attempt
	lastErr error // of the last renewal, nil when it was answered
	told    bool  // ready is closed
	over    bool
}

// result is the end of one call.
type result struct {
	event hold.Event
	grant Grant // of an acquire that succeeded
	kind  hold.CallKind
	err   error
}

// newHandle prepares the wish for one lock. ctx ends the wait for it, and stop ends ctx.
func newHandle(ctx context.Context, stop context.CancelCauseFunc, s *Service, name string, c config) *Handle {
	h := &Handle{
		service: s, name: name, ttl: c.ttl, noRenew: c.noRenew, jumps: s.clock.Jumps(), stop: stop,
	}
	h.holds.values = ctx
	return h
}

// keep asks for the lock, on the goroutine of the caller, who waits for the answer anyway: a lock that is free is then held
// without waking anybody. What comes after that it leaves to a goroutine, which keeps the lock until it is released or lost,
// or the service ends, and which then leaves the service.
func (h *Handle) keep(ask context.Context, c config, limits Limits) {
	drift := automaton.Drift(limits.DriftPPM)
	k := &h.keeper
	*k = keeper{
		h: h, backend: h.service.backend, clock: h.service.clock, drift: drift, queued: c.queued, ask: ask,
		want:  c.request(h.name),
		core:  hold.New(hold.Config{TTL: h.ttl, Drift: drift, Try: c.try}),
		armed: automaton.Never, jumps: h.jumps,
	}
	k.acts = k.space[:0]
	k.turn.Lock() // whoever closes the service may release before the caller is through
	defer k.turn.Unlock()
	k.step(hold.Begin{})
	k.askAll(ask)
	switch {
	case k.over:
		k.begun = true
		k.end()
	case k.told:
		// Nothing has to be done for a while, and a short hold is over by then: the loop need not run before.
		h.service.minder.put(k, k.wait(k.now))
	default:
		k.begun = true
		go k.run()
	}
}

// begin answers true once, to whoever has to see to the end of the hold.
func (k *keeper) begin() bool {
	k.turn.Lock()
	defer k.turn.Unlock()
	if k.begun {
		return false
	}
	k.begun = true
	k.h.service.minder.drop(k)
	return true
}

// loop keeps the lock until it is released or lost. It returns at once when that is done or under way.
func (k *keeper) loop() {
	if k.begin() {
		k.run()
	}
}

// release begins the release of a hold whose handle says that it is released: on the goroutine of the caller, who waits for the answer
// anyway, where the loop does not run yet. What is left to be repeated is the loop's.
func (k *keeper) release(ctx context.Context) {
	switch {
	case !k.begin(): // the loop sees it
	case ctx.Err() == nil && k.giveBack(ctx): // else nothing would be asked
		k.end()
	default:
		go k.run()
	}
}

// askAll asks the backend for what the automaton wants asked, on the goroutine of the caller, whose context ends the waiting.
func (k *keeper) askAll(ctx context.Context) {
	for k.hasAsked {
		k.hasAsked = false
		k.took(k.ended(ctx, k.asking, k.grant))
	}
}

// giveBack releases on the goroutine of the caller, who waits for the answer anyway. It answers false where something is left to be
// repeated, by the loop.
func (k *keeper) giveBack(ctx context.Context) bool {
	k.h.holds.end(errReleased)
	k.step(hold.Release{})
	k.askAll(ctx)
	return k.over
}

// end lets go of whatever is still under way.
func (k *keeper) end() {
	if k.cancel != nil {
		k.cancel()
	}
	k.h.ended.give()
	k.running.Wait()
	k.h.service.leave(k.h)
}

// prepare makes what calls in the background need.
func (k *keeper) prepare() {
	if k.calls == nil {
		k.calls, k.cancel = context.WithCancel(context.Background())
		k.results, k.doubts = make(chan result), make(chan struct{}, 1)
	}
}

func (k *keeper) run() {
	defer k.end()
	k.prepare()
	asked, release := k.ask.Done(), k.h.release.given()
	k.timer = time.NewTimer(0) // look at the clock at once: the loop may have been started by its first timer
	defer k.timer.Stop()
	select {
	case <-release:
	default:
		if k.told {
			k.listen()
		}
	}
	for !k.over {
		if k.told {
			asked = nil
		}
		select {
		case r := <-k.results:
			k.took(r)
		case <-k.timer.C:
			k.step(hold.Timer{})
		case <-k.doubts:
			k.doubt()
		case <-asked:
			asked = nil
		case <-release:
			release = nil
			k.h.holds.end(errReleased)
			k.step(hold.Release{})
		case <-k.h.service.life.Done():
			k.abandon()
		}
		k.giveUp()
	}
}

// listen has the backend tell when the hold is taken away. Holds so short that their loop does not run before their release have nobody
// listen.
func (k *keeper) listen() {
	e, ok := k.backend.(Ender)
	if !ok {
		return
	}
	g := k.grant
	k.running.Go(func() {
		if e.Ended(k.calls, g) == nil {
			k.doubts <- struct{}{} // there is room, as it listens once
		}
	})
}

// doubt asks whether the lock is still held. A lease of fixed length must not be renewed, so there the word is taken for it.
func (k *keeper) doubt() {
	switch {
	case k.core.State() != hold.StateHeld:
	case k.h.noRenew:
		k.lose(k.clock.Now(), ErrNotHeld)
	default:
		k.step(hold.Doubt{})
	}
}

// giveUp ends a wish whose caller has stopped waiting. A call of Acquire ends with its context by itself; what is left to
// do is to give back a grant that is being confirmed.
func (k *keeper) giveUp() {
	if k.told || k.ask.Err() == nil || k.core.State() != hold.StateConfirming {
		return
	}
	k.fail(fmt.Errorf("lockservice: lock %q: %w", k.h.name, context.Cause(k.ask)))
	k.step(hold.Release{})
}

// took feeds the end of a call to the automaton.
func (k *keeper) took(r result) {
	switch r.kind {
	case hold.Acquire:
		k.grant = r.grant
	case hold.Renew:
		k.lastErr = r.err
	}
	k.step(r.event)
}

// step feeds one event. The clock is read first: calls that come out of it count as sent then.
func (k *keeper) step(ev hold.Event) {
	now := k.clock.Now()
	k.now = now
	k.acts = k.acts[:0]
	if j := k.clock.Jumps(); j != k.jumps {
		k.jumps = j
		k.acts = k.core.Step(hold.Jump{}, now, k.acts)
	}
	k.acts = k.core.Step(ev, now, k.acts)
	for _, a := range k.acts {
		k.perform(a, now)
	}
	if k.timer != nil {
		k.timer.Reset(k.wait(now))
	}
}

// wait is how long the loop may sleep.
func (k *keeper) wait(now automaton.Instant) time.Duration {
	wake := k.armed.Sub(now)
	if k.core.State() == hold.StateHeld {
		wake = min(wake, checkEvery(k.h.ttl))
	}
	return max(0, wake)
}

func (k *keeper) perform(a hold.Action, now automaton.Instant) {
	switch a := a.(type) {
	case hold.Call:
		k.call(a)
	case hold.Arm:
		k.armed = a.At
	case hold.Acquired:
		k.h.grant = k.grant
		k.h.deadline.Store(int64(a.Deadline))
		k.told = true
		k.h.ready.give()
		if k.timer != nil { // else the loop does so when it begins
			k.listen()
		}
	case hold.Renewed:
		k.h.deadline.Store(int64(a.Deadline))
	case hold.Lost:
		k.lose(now, k.why(a.Cause))
	case hold.Done:
		k.done(a.Err)
	}
	// hold.Waiting and hold.Abandon do not occur: a backend's Acquire returns when it is granted, and it ends with its context.
}

// why tells the cause of a loss in this package's words.
func (k *keeper) why(cause error) error {
	switch {
	case errors.Is(cause, hold.ErrNotHeld):
		if errors.Is(k.lastErr, ErrNotHeld) {
			return k.lastErr
		}
		return ErrNotHeld
	case errors.Is(cause, hold.ErrExpired) && k.h.noRenew:
		return errors.New("lockservice: taken for one TTL, without renewal")
	case errors.Is(cause, hold.ErrExpired) && k.lastErr != nil:
		return k.lastErr
	}
	return cause
}

func (k *keeper) lose(now automaton.Instant, cause error) {
	since := now.Sub(k.core.Deadline()) + k.drift.Shrink(k.h.ttl) // D is that much after the sending
	k.h.lost = &LostError{Name: k.h.name, Token: k.grant.Token, Since: since, Cause: cause}
	log.Debugw("lost", "lock", k.h.name, "token", k.grant.Token, "err", cause)
	k.h.holds.end(k.h.lost)
	k.over = true
}

// abandon stops when the service can wait no longer: what the group knows of this hold runs out.
func (k *keeper) abandon() {
	if k.core.State() == hold.StateHeld {
		k.lose(k.clock.Now(), ErrClosed)
		return
	}
	k.done(fmt.Errorf("%w: %w", ErrOutcomeUnknown, ErrClosed))
}

// done ends the loop after a release, or because there will be nothing to release.
func (k *keeper) done(err error) {
	switch {
	case errors.Is(err, hold.ErrNotHeld):
		err = fmt.Errorf("%w: release %q: the group had ended the grant", ErrNotHeld, k.h.name)
	case errors.Is(err, hold.ErrOutcomeUnknown):
		err = fmt.Errorf("%w: release %q: no answer", ErrOutcomeUnknown, k.h.name)
	}
	k.fail(err)
	k.h.released = err
	k.over = true
}

// fail tells the caller of Lock that there will be no lock, if it is still waiting.
func (k *keeper) fail(err error) {
	if !k.told {
		k.told = true
		k.h.err = err
		k.h.holds.end(err)
		k.h.ready.give()
	}
}

// call makes one call to the backend: an acquire or release before the loop runs on the caller's goroutine, any other in the background.
func (k *keeper) call(c hold.Call) {
	if k.timer == nil && c.Kind != hold.Renew {
		k.asking, k.hasAsked = c, true
		return
	}
	if c.Kind == hold.Renew && k.h.noRenew && k.core.State() == hold.StateHeld {
		return // as if it were lost on the way: the hold ends with its lease
	}
	g := k.grant
	k.prepare()
	k.running.Go(func() {
		r := k.ended(k.calls, c, g)
		select {
		case k.results <- r:
		case <-k.calls.Done():
		}
	})
}

// ended makes the call and says in the automaton's words how it ended. ctx ends the waiting for the answer, but for an acquire, which ends
// with what Lock's caller gave.
func (k *keeper) ended(ctx context.Context, c hold.Call, g Grant) result {
	r := result{kind: c.Kind}
	ans := hold.Answer{Call: c.ID}
	if c.Kind == hold.Acquire {
		r.grant, r.err = k.backend.Acquire(k.ask, k.asked())
		if r.err == nil {
			ans.Kind, ans.Token, ans.Waited, ans.Since = hold.Granted, uint64(r.grant.Token), r.grant.Waited, r.grant.Since
		} else {
			// The backend has done what can be done, and taken the request back if it had to: the caller decides.
			ans.Kind, ans.Err = hold.Refused, r.err
		}
		r.event = ans
		return r
	}
	ans.Token = c.Token
	if c.Kind == hold.Renew {
		ans.Kind = hold.Held
	} else {
		ans.Kind = hold.Released
	}
	r.err = k.bounded(ctx, c.Kind, g)
	switch {
	case errors.Is(r.err, ErrNotHeld):
		ans.Kind = hold.NotHeld
	case errors.Is(r.err, ErrClosed) && c.Kind == hold.GiveBack:
		ans.Kind, ans.Err = hold.Refused, r.err
	case r.err != nil:
		r.event = hold.Failed{Call: c.ID}
		return r
	}
	r.event = ans
	return r
}

// bounded renews or releases within a third of the TTL, as long as the service lives.
func (k *keeper) bounded(ctx context.Context, kind hold.CallKind, g Grant) error {
	if kind != hold.Renew {
		if b, ok := k.backend.(releaser); ok {
			return b.releaseWithin(ctx, k.h.service.life, k.h.ttl/callPart, g)
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, k.h.ttl/callPart, errNoAnswer)
	defer cancel()
	defer context.AfterFunc(k.h.service.life, cancel)()
	if kind == hold.Renew {
		return k.backend.Renew(ctx, g)
	}
	return k.backend.Release(ctx, g)
}

// releaser is a backend that bounds a release by itself: a context with a timer that ends with the service costs more than the release of
// a free lock does otherwise.
type releaser interface {
	// releaseWithin is Release that ends after about limit, or when life does, too.
	releaseWithin(ctx, life context.Context, limit time.Duration, g Grant) error
}

func (k *keeper) asked() Request {
	r := k.want
	r.Queued = k.inQueue
	return r
}

func (k *keeper) inQueue(position int) {
	k.h.queued.Store(true)
	if k.queued != nil {
		k.queued(position)
	}
}
