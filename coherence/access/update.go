package access

import (
	"cmp"
	"context"
	"fmt"
	"runtime/debug"
	"time"

	"latchkey/coherence/cachedcopy"
)

// racesMax is how often an Update may lose the object to others before it holds it.
const racesMax = 2

// PanicError is the error of an [Object.Update] whose function panicked. The value is unchanged.
type PanicError struct {
	Value any
	Stack []byte
}

// Error tells the value that fn panicked with.
func (e *PanicError) Error() string { return fmt.Sprintf("coherence: function panicked: %v", e.Value) }

// Update replaces the value by what fn makes of it, with no write of anybody in between. An error of fn leaves the value, and is
// returned; if fn panics, that is a [PanicError].
//
// fn runs with nothing locked, and runs again when somebody else has written meanwhile; after two such races the object is kept
// from others while it runs, at most for [Config].UpdateHold and until somebody here waits for an object with a smaller key.
// When that was too short, and the object is lost again, [ErrBusy]. fn must not change the value it is given; what it
// returns is copied. It may use other objects: an Update in fn is an atomic step of its own, which is not undone when fn runs
// again, but repeated. It must not update the same object, for which it would wait in vain.
func (o *Object) Update(ctx context.Context, fn func([]byte) ([]byte, error)) error {
	for race := 0; ; race++ {
		if done, err := o.try(ctx, race >= racesMax, fn); done || err != nil {
			return o.cut(err)
		}
	}
}

// try runs fn once, and reports false if somebody else wrote meanwhile.
func (o *Object) try(ctx context.Context, holds bool, fn func([]byte) ([]byte, error)) (done bool, err error) {
	w := &waiter{do: begin}
	if holds {
		w.hold = &hold{object: o}
	}
	if err := o.wait(ctx, w); err != nil {
		return false, err
	}
	if holds {
		defer o.end(w.hold, false) // also when fn ends its goroutine
	}
	value, err := call(fn, w.cell.Bytes)
	if err != nil {
		return false, err
	}
	c, err := newCell(value)
	if err != nil {
		return false, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	same := o.right == cachedcopy.ReadWrite && o.cell.Load() == w.cell
	if o.mutant == Blind {
		same = o.right == cachedcopy.ReadWrite
	}
	if same && (o.holder == nil || o.holder == w.hold) && o.storeLocked(c) {
		return true, nil
	}
	if holds && w.hold.expired {
		return false, fmt.Errorf("%w: others need it, and the update took more than %v", ErrBusy, o.epoch.updateHold)
	}
	return false, nil
}

// call runs fn, whatever it does.
func call(fn func([]byte) ([]byte, error), value []byte) (_ []byte, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &PanicError{v, debug.Stack()}
		}
	}()
	return fn(value)
}

// holdLocked keeps the right for h.
func (o *Object) holdLocked(h *hold) {
	o.holder = h
	o.copy.Hold()
	o.epoch.add(h)
	h.timer = time.AfterFunc(cmp.Or(h.lasts, o.epoch.updateHold), func() { o.end(h, true) })
}

// end ends h, if it has not ended yet. Whoever waits for this node's right is served first, then others take it away, and then
// the next may hold it.
func (o *Object) end(h *hold, expired bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.holder != h {
		return
	}
	h.expired = expired
	h.timer.Stop()
	o.epoch.remove(h)
	o.holder = nil
	o.passLocked(false)
	o.copy.Release()
	o.serveLocked()
	if h.ended != nil {
		close(h.ended)
	}
}
