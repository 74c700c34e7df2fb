package access

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"latchkey/coherence/cachedcopy"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
)

// WaitersMax bounds the calls that wait for one object on one node. Further ones fail with [ErrBusy].
const WaitersMax = 1 << 14

var (
	// ErrRestarted matches the error of every call of an epoch that is over. It may have been performed; nobody will see it.
	ErrRestarted = errors.New("coherence: application restarted")
	// ErrBusy matches the error of a call that gave up: too many wait already, or an Update took too long. It was not performed.
	ErrBusy = errors.New("coherence: object busy")
	// ErrTooLarge matches the error of a write of more than [protocol.ValueMax] bytes. It was not performed.
	ErrTooLarge = errors.New("coherence: value too large")
)

// Copy decides which right the node has to an object: the automaton of its cached copy, with somebody who sends what it says.
// Its methods are called under the object's mutex and never block. They, and whoever hands messages to it within
// [Object.Apply], say by [Object.SetRight] what becomes of the right, before anything is sent that tells others of it.
type Copy interface {
	// ReadFault and WriteFault ask for a right. They are called again while it is waited for.
	ReadFault()
	WriteFault()
	// Store replaces the value if the right to write is there, and reports whether it was.
	Store(*protocol.Cell) bool
	// Hold keeps the right to write until Release, at which what would have taken it away meanwhile is taken up.
	Hold()
	Release()
}

// Object is a shared object as one node has it in one epoch. Safe for concurrent use. Calls on it are linearizable, if the
// copies of all nodes are coherent; two goroutines are two threads, with no order between them but Go's own.
//
// Calls wait for other nodes when the right is not there. When their ctx ends they fail with its cause and have not been
// performed; the request goes on without them, and what it brings is kept like any copy.
type Object struct {
	cell  atomic.Pointer[protocol.Cell] // nil without the right to read; all that a read which finds it touches, with epoch.over
	epoch *Epoch
	key   keyspace.Key

	mu      sync.Mutex // short: not held while somebody waits or a function of the application runs
	copy    Copy
	right   cachedcopy.Right
	holder  *hold // who keeps all others from writing, on this node too
	waiters []*waiter
	changed chan struct{} // closed when the value goes or comes; nil: nobody watches

	mutant Mutant
}

// Mutant is a deliberate mistake. Tests plant each and have to see it break a promise. Nobody else uses it.
type Mutant uint8

// The mutants.
const (
	NoMutant Mutant = iota
	// Unpinned: the right to write is checked under one hold of the mutex and used under the next.
	Unpinned
	// Buffered: a write returns before it is performed.
	Buffered
	// Stale: a value is handed out that was there before the right had gone.
	Stale
	// Blind: an update does not see what was written since it looked.
	Blind
	// Uncut: calls of an epoch that is over succeed.
	Uncut
	// Keyless: holds end for nobody.
	Keyless
	// Hasty: a value is handed out for a moment after the others have been told that the right to it is gone.
	Hasty
)

// New makes an object of an epoch, of which the node has no copy yet. The key orders objects that are updated within each other.
// newCopy makes its copy and may keep the object, but calls nothing of it yet.
func New(e *Epoch, key keyspace.Key, newCopy func(*Object) Copy) *Object {
	o := &Object{epoch: e, key: key, mutant: e.mutant}
	o.copy = newCopy(o)
	return o
}

// Sabotage plants a mistake, for tests, before the object is used.
func (o *Object) Sabotage(m Mutant) { o.mutant = m }

// Apply has f take steps of the copy, such as for a message that came for it, and lets those go on who waited for what that brings.
func (o *Object) Apply(f func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f()
	o.serveLocked()
}

// SetRight says what threads may do from now on, and the value, nil for NoAccess. It is for the copy, within Apply and its own
// methods.
func (o *Object) SetRight(r cachedcopy.Right, c *protocol.Cell) {
	if (r == cachedcopy.NoAccess) != (c == nil) {
		panic(fmt.Sprintf("coherence: right %v with value %v", r, c))
	}
	if r == cachedcopy.NoAccess && o.right > r {
		o.epoch.counters.Invalidations.Add(1)
	}
	o.right = r
	if c == nil && o.mutant == Stale {
		return
	}
	if c == nil && o.mutant == Hasty {
		time.AfterFunc(20*time.Millisecond, func() {
			o.mu.Lock()
			defer o.mu.Unlock()
			if o.right == cachedcopy.NoAccess {
				o.cell.Store(nil)
			}
		})
		return
	}
	o.cell.Store(c)
	o.changedLocked()
}

// Fail has all calls that wait fail with err, since what they wait for is not to be had. What they asked for may come yet, and serves later ones.
func (o *Object) Fail(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, w := range o.waiters {
		w.err = err
		if w.ready != nil {
			close(w.ready)
		}
	}
	o.waiters = nil
}

// waiter is a call that waits for a right. What it waits for is done for it, when the right is there.
type waiter struct {
	do    action
	cell  *protocol.Cell // to be stored; or what was found
	hold  *hold          // of an update that holds; in place once done
	done  bool           // under the object's mutex
	ready chan struct{}  // nil until it has to wait
	err   error          // why it fails
}

type action uint8

const (
	read action = iota
	store
	begin // an update
)

// need is the right that a waiter waits for.
func (w *waiter) need() cachedcopy.Right {
	if w.do == read {
		return cachedcopy.ReadOnly
	}
	return cachedcopy.ReadWrite
}

// grantLocked does what w waits for, if that can be.
func (o *Object) grantLocked(w *waiter, holds bool) bool {
	if o.right < w.need() || w.do != read && o.holder != nil || w.hold != nil && !holds {
		return false
	}
	switch w.do {
	case store:
		if !o.storeLocked(w.cell) {
			return false
		}
	case begin:
		if w.hold != nil {
			o.holdLocked(w.hold)
		}
		fallthrough
	case read:
		w.cell = o.cell.Load()
	}
	w.done = true
	if w.ready != nil {
		close(w.ready)
	}
	return true
}

// storeLocked is a write: it takes effect now.
func (o *Object) storeLocked(c *protocol.Cell) bool {
	if !o.copy.Store(c) {
		return false
	}
	o.cell.Store(c)
	o.changedLocked()
	return true
}

// serveLocked lets all go on who can, in their order, and asks for what the others wait for.
func (o *Object) serveLocked() {
	for {
		o.passLocked(true)
		need := cachedcopy.NoAccess
		for _, w := range o.waiters {
			need = max(need, w.need())
		}
		was := o.right
		switch {
		case need <= was: // they wait for a holder
			return
		case need == cachedcopy.ReadWrite:
			o.copy.WriteFault()
		default:
			o.copy.ReadFault()
		}
		if o.right <= was {
			return
		}
	}
}

// passLocked lets all go on who can; those who would hold the right only if holds.
func (o *Object) passLocked(holds bool) {
	o.waiters = slices.DeleteFunc(o.waiters, func(w *waiter) bool { return o.grantLocked(w, holds) })
}

// wait has w done. It returns when that is so, or not to be.
func (o *Object) wait(ctx context.Context, w *waiter) error {
	o.mu.Lock()
	switch {
	case o.epoch.over.Load():
		o.mu.Unlock()
		return ErrRestarted
	case ctx.Err() != nil:
		o.mu.Unlock()
		return context.Cause(ctx)
	case len(o.waiters) >= WaitersMax:
		o.mu.Unlock()
		return fmt.Errorf("%w: %d calls wait for it", ErrBusy, WaitersMax)
	}
	o.waiters = append(o.waiters, w)
	o.serveLocked()
	if w.done {
		o.mu.Unlock()
		o.epoch.counters.hit()
		return nil
	}
	w.ready = make(chan struct{})
	if o.right < w.need() { // else it waits for somebody on this node
		o.epoch.counters.Misses.Add(1)
	}
	o.mu.Unlock()
	if o.mutant != Keyless {
		o.epoch.yield(o.key)
	}
	var err error
	select {
	case <-w.ready:
		return w.err
	case <-o.epoch.done:
		err = ErrRestarted
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if w.done || w.err != nil { // at the last moment
		return w.err
	}
	o.waiters = slices.DeleteFunc(o.waiters, func(v *waiter) bool { return v == w })
	return err
}

// find returns the value at one instant of the call.
func (o *Object) find(ctx context.Context) (*protocol.Cell, error) {
	if o.epoch.over.Load() && o.mutant != Uncut {
		return nil, ErrRestarted
	}
	if c := o.cell.Load(); c != nil {
		o.epoch.counters.hit()
		return c, nil
	}
	w := &waiter{do: read}
	if err := o.wait(ctx, w); err != nil {
		return nil, err
	}
	return w.cell, nil
}

// cut returns err, or ErrRestarted when the epoch is over.
func (o *Object) cut(err error) error {
	if o.epoch.over.Load() && o.mutant != Uncut {
		return ErrRestarted
	}
	return err
}

// View calls fn with the value at one instant of the call, and returns its error. fn must not change the value; it may keep it.
// Nothing is pinned while fn runs, so the value may be an old one by then, and fn may use this object and others. It is not called
// when View waits in vain. If it panics, so does View.
func (o *Object) View(ctx context.Context, fn func([]byte) error) error {
	c, err := o.find(ctx)
	if err != nil {
		return err
	}
	return o.cut(fn(c.Bytes))
}

// Get returns a copy of the value at one instant of the call.
func (o *Object) Get(ctx context.Context) ([]byte, error) {
	c, err := o.find(ctx)
	if err != nil {
		return nil, err
	}
	b := bytes.Clone(c.Bytes)
	if err := o.cut(nil); err != nil {
		return nil, err
	}
	return b, nil
}

// Set writes a copy of value. It returns when no other copy has the old value any more.
func (o *Object) Set(ctx context.Context, value []byte) error {
	c, err := newCell(value)
	if err != nil {
		return err
	}
	w := &waiter{do: store, cell: c}
	switch o.mutant {
	case Buffered:
		go o.wait(context.WithoutCancel(ctx), w)
		return nil
	case Unpinned:
		if err := o.wait(ctx, &waiter{do: begin}); err != nil {
			return err
		}
		time.Sleep(time.Millisecond)
		o.Apply(func() { o.storeLocked(c) })
		return nil
	}
	if err := o.wait(ctx, w); err != nil {
		return err
	}
	return o.cut(nil)
}

// Prefetch asks for a right that will be needed soon, and waits for nothing.
func (o *Object) Prefetch(r cachedcopy.Right) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.right >= r || o.epoch.over.Load():
	case r == cachedcopy.ReadWrite:
		o.copy.WriteFault()
	default:
		o.copy.ReadFault()
	}
	o.serveLocked()
}

// newCell copies a value that somebody else may change.
func newCell(value []byte) (*protocol.Cell, error) {
	if len(value) > protocol.ValueMax {
		return nil, fmt.Errorf("%w: %d bytes, of %d", ErrTooLarge, len(value), protocol.ValueMax)
	}
	b := make([]byte, len(value)) // with no room behind it, so that nobody appends to it in place
	copy(b, value)
	return &protocol.Cell{Bytes: b}, nil
}
