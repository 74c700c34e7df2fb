package copies

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"latchkey/coherence/access"
	"latchkey/coherence/durable"
	"latchkey/coherence/durable/cachedobject"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
)

// Errors of calls.
var (
	// ErrClosed matches the error of every call after [Service.Close].
	ErrClosed = errors.New("coherence: closed")
	// ErrStale matches the error of a read for which there is no copy that is surely the present one, and whose group does not answer.
	ErrStale = errors.New("coherence: no present copy")
	// ErrNoQuorum matches the error of a write whose group does not answer. It was not made.
	ErrNoQuorum = errors.New("coherence: the object's group does not answer")
	// ErrOutcomeUnknown matches the error of a write that was sent, and of which nobody knows whether it has taken place, or will yet.
	ErrOutcomeUnknown = errors.New("coherence: outcome unknown")
	// ErrBusy matches the error of a call that was not made, since too many wait, or have written the object in the last minutes.
	ErrBusy = access.ErrBusy
	// ErrFull matches the error of a write for which its group has no room. It was not made.
	ErrFull = errors.New("coherence: group full")
	// ErrRefused matches the error of a write that cannot be, as the group sees it. It was not made.
	ErrRefused = errors.New("coherence: write refused")
)

// Object is one durable object as threads of this node reach it. Safe for concurrent use.
type Object struct {
	group *group
	name  string
	entry atomic.Pointer[entry] // what the group had of it at the last call; it may have been evicted since
}

// Object returns the object with a full name, in the group of a prefix. It sends nothing.
func (s *Service) Object(g keyspace.Prefix, name string) *Object {
	return &Object{group: s.group(g), name: name}
}

// Name returns the full name.
func (o *Object) Name() string { return o.name }

// Found is what an object was at one instant of a call.
type Found struct {
	Value   *protocol.Cell // nil: there is none. Not to be changed
	Version durable.Version
}

// Load returns the copy that is here, if it may be read. It waits for nothing and sends nothing.
func (o *Object) Load() (Found, bool) {
	e := o.entry.Load()
	if e == nil {
		return Found{}, false
	}
	c, ok := e.copy.Load()
	if !ok {
		return Found{}, false
	}
	if !e.hit.Load() { // most hits only read what all share
		e.hit.Store(true)
	}
	return Found{c.Value, c.Version}, true
}

// Get returns what the object is at one instant of the call. Errors: [ErrStale] with the cause of ctx, if the group does not answer.
func (o *Object) Get(ctx context.Context) (Found, error) {
	if f, ok := o.Load(); ok {
		return f, nil
	}
	s := o.group.s
	s.misses.Add(1)
	if e := o.entry.Load(); e != nil && e.copy.Has() {
		s.refused.Add(1)
	}
	a, err := o.call(ctx, cachedobject.Call{Kind: cachedobject.Get})
	return Found{a.Value, a.Version}, err
}

// Write is what is to be made of an object.
type Write struct {
	Expect durable.Expect
	Wanted durable.Version // of Exact
	Delete bool
	Value  *protocol.Cell // not to be changed any more
	TTL    time.Duration  // 0: none
	// Holds says that whoever has the object locked writes.
	Holds bool
}

// Write makes a write, and returns when no copy has what was there before. If its condition fails, made is false and f tells what is there; else f has the
// version that it made. Errors: [ErrNoQuorum], [ErrOutcomeUnknown], [ErrBusy], [ErrFull], [ErrRefused].
func (o *Object) Write(ctx context.Context, w Write) (f Found, made bool, err error) {
	c := cachedobject.Call{Kind: cachedobject.Put, Expect: w.Expect, Wanted: w.Wanted, Delete: w.Delete, Value: w.Value, TTL: w.TTL}
	if w.Holds {
		c.Kind = cachedobject.Holder
	}
	a, err := o.call(ctx, c)
	if made = err == nil && a.Outcome == cachedobject.Written; made {
		o.group.s.stores.Add(1)
		a.Value = w.Value
	}
	return Found{a.Value, a.Version}, made, err
}

// Lock waits for the turn to write, which is kept until [Object.Unlock] or until the group gives it to somebody else, since this node was not heard
// of for a lease: a write is to expect the version that was found. Other threads of this node wait for their turn too.
func (o *Object) Lock(ctx context.Context) (Found, error) {
	a, err := o.call(ctx, cachedobject.Call{Kind: cachedobject.Lock})
	if err != nil {
		return Found{}, err
	}
	o.Pin()
	return Found{a.Value, a.Version}, nil
}

// Unlock ends the turn.
func (o *Object) Unlock() {
	o.Unpin()
	g := o.group
	g.mu.Lock()
	send := g.whither(false)
	g.step(cachedobject.Event{Kind: cachedobject.Unlock, Object: o.name}, &send)
	g.mu.Unlock()
	g.send(send)
}

// Pin has the lease on the copies of the object's group renewed until [Object.Unpin], whether or not they are hit.
func (o *Object) Pin() { o.pin(1) }

// Unpin undoes a call of Pin.
func (o *Object) Unpin() { o.pin(-1) }

func (o *Object) pin(n int) {
	o.group.mu.Lock()
	defer o.group.mu.Unlock()
	o.group.pins += n
}

// Lease returns how long a lease on the object lasts at most.
func (o *Object) Lease() time.Duration { return o.group.s.cfg.Params.Holder() }

// Changed returns a channel that is closed when the copy that is here now goes or comes, or its lease may be over, that is at any time.
func (o *Object) Changed() <-chan struct{} {
	g := o.group
	g.mu.Lock()
	defer g.mu.Unlock()
	e := g.entries[o.name]
	if e == nil {
		c := make(chan struct{})
		close(c)
		return c
	}
	if e.changed == nil {
		e.changed = make(chan struct{})
	}
	return e.changed
}

// Stale returns what was last seen of the object, and how long ago it was known to be the present value.
func (o *Object) Stale() (f Found, age time.Duration, ok bool) {
	g := o.group
	g.mu.Lock()
	defer g.mu.Unlock()
	c, seen := g.core.Stale(o.name)
	if c == nil {
		return Found{}, 0, false
	}
	now := g.s.cfg.Clock.Now()
	if l := g.core.Lease(); g.entries[o.name].copy.Has() && l.Allows(c, now) {
		seen = now
	}
	return Found{c.Value, c.Version}, now.Sub(seen), true
}

// call has the group's automaton take a call, and waits for its end.
func (o *Object) call(ctx context.Context, c cachedobject.Call) (cachedobject.Action, error) {
	if ctx.Err() != nil {
		return cachedobject.Action{}, context.Cause(ctx)
	}
	g := o.group
	s := g.s
	done := make(chan cachedobject.Action, 1)
	g.mu.Lock()
	if s.ctx.Err() != nil {
		g.mu.Unlock()
		return cachedobject.Action{}, ErrClosed
	}
	g.last++
	c.ID = g.last
	g.calls[c.ID] = done
	s.waiting.Add(1)
	began := s.cfg.Clock.Now()
	send := g.whither(false)
	g.step(cachedobject.Event{Kind: cachedobject.Begin, Object: o.name, Call: c}, &send)
	if g.core.Knows(o.name) {
		o.entry.Store(g.entry(o.name))
		g.measure(o.name)
	}
	g.mu.Unlock()
	g.send(send)
	s.evict()
	var why error
	var a cachedobject.Action
	select {
	case a = <-done:
		return a, o.failure(c, a, nil, false)
	case <-ctx.Done():
		why = context.Cause(ctx)
	case <-s.ctx.Done():
		why = ErrClosed
	}
	g.mu.Lock()
	silent := g.heard < began
	send = g.whither(false)
	g.step(cachedobject.Event{Kind: cachedobject.GiveUp, Object: o.name, Call: cachedobject.Call{ID: c.ID}}, &send)
	g.mu.Unlock()
	g.send(send)
	a = <-done // given up, or ended at the last moment
	return a, o.failure(c, a, why, silent)
}

// failure says why a call failed, if it did.
func (o *Object) failure(c cachedobject.Call, a cachedobject.Action, why error, silent bool) error {
	switch a.Outcome {
	case cachedobject.Found, cachedobject.Locked, cachedobject.Written, cachedobject.Mismatch:
		return nil
	case cachedobject.Unknown:
		if a.Reason != 0 {
			return fmt.Errorf("%w: the group of %q refused the write (%v), but it was sent to several peers or repeated, and what is still under way may be made yet; read the object to know",
				ErrOutcomeUnknown, o.name, a.Reason)
		}
		if why == nil {
			return fmt.Errorf("%w: the write of %q was sent, and not answered for long; read the object to know", ErrOutcomeUnknown, o.name)
		}
		return fmt.Errorf("%w: the write of %q was sent, and its answer not waited for; read the object to know: %w", ErrOutcomeUnknown, o.name, why)
	case cachedobject.Overloaded:
		return fmt.Errorf("%w: %d calls wait for objects of the group of %q", ErrBusy, cachedobject.CallsMax, o.name)
	case cachedobject.Rejected:
		switch a.Reason {
		case durable.Busy:
			return fmt.Errorf("%w: too many peers have written %q in the last ten minutes; try again later", ErrBusy, o.name)
		case durable.Full:
			return fmt.Errorf("%w: the group of %q has no room for it; delete something that shares the group", ErrFull, o.name)
		}
		return fmt.Errorf("%w: the group of %q says: %v", ErrRefused, o.name, a.Reason)
	}
	switch { // given up
	case !silent || errors.Is(why, ErrClosed):
		return fmt.Errorf("coherence: %q: %w", o.name, why)
	case c.Kind == cachedobject.Get:
		return fmt.Errorf("%w: the group of %q does not answer: %w", ErrStale, o.name, why)
	}
	return fmt.Errorf("%w: nothing was written to %q: %w", ErrNoQuorum, o.name, why)
}
