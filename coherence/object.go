package coherence

import (
	"context"
	"errors"
	"time"

	"latchkey/coherence/access"
	"latchkey/coherence/cachedcopy"
)

// Object is a shared object of an application. What all nodes read and write is sequentially consistent, over all objects: there is one order of
// all accesses that keeps the order of every goroutine. One that nobody has written is empty. Safe for concurrent use; two goroutines are two
// threads, with no order between them but Go's own.
//
// A call that finds a copy with the right it needs sends nothing. Else it waits for other nodes; when its ctx ends it fails with its cause and has
// not been performed. Errors beside: [ErrRestarted], [ErrClosed], [ErrBusy], [ErrTooLarge], [ErrName], [ErrTooMany].
type Object struct {
	app    *App
	thread *Thread // nil: it is for somebody else than a thread
	name   string
	copy   *copyOf
	err    error // why there is none
}

// Object returns an object of the application. It sends nothing. A name that is none shows in every call ([ErrName]). Objects whose names share what
// stands before the last slash are kept by one group.
func (a *App) Object(name string) *Object { return a.object(name, nil) }

func (a *App) object(name string, t *Thread) *Object {
	o := &Object{app: a, thread: t, name: name}
	if o.err = checkName("an object", name); o.err == nil {
		if o.copy, o.err = a.copy(ObjectKey(a.name, name), t != nil); o.err == nil && o.copy.name.Load() == nil {
			o.copy.name.Store(&name)
		}
	}
	return o
}

// ready says why a call is not begun.
func (o *Object) ready() error {
	switch {
	case o.err != nil:
		return o.err
	case o.thread != nil:
		return o.thread.failed()
	case o.app.closing.Load():
		return ErrClosed
	}
	return nil
}

// Name returns the object's name.
func (o *Object) Name() string { return o.name }

// failure says why a call failed. What a thread has begun that is not here any more does not succeed.
func (o *Object) failure(err error) error {
	if o.thread != nil {
		if err2 := o.thread.failed(); err2 != nil {
			return err2
		}
	}
	if err != nil && o.app.closing.Load() && errors.Is(err, ErrRestarted) {
		return ErrClosed
	}
	return err
}

// Get returns a copy of the value at one instant of the call.
func (o *Object) Get(ctx context.Context) ([]byte, error) {
	if err := o.ready(); err != nil {
		return nil, err
	}
	b, err := o.copy.object.Get(ctx)
	return b, o.failure(err)
}

// View calls fn with the value at one instant of the call, and returns its error. fn must not change the value; it may keep it. Nothing is pinned
// while fn runs, so the value may be an old one by then, and fn may use this object and others.
func (o *Object) View(ctx context.Context, fn func(value []byte) error) error {
	if err := o.ready(); err != nil {
		return err
	}
	return o.failure(o.copy.object.View(ctx, fn))
}

// Set writes a copy of value, of at most [protocol.ValueMax] bytes. It returns when no other copy has the old value any more.
func (o *Object) Set(ctx context.Context, value []byte) error {
	if err := o.ready(); err != nil {
		return err
	}
	return o.failure(o.copy.object.Set(ctx, value))
}

// Update replaces the value by what fn makes of it, with no write of anybody in between; see [access.Object.Update] for when fn runs again and what
// it may do. An error of fn leaves the value and is returned; if fn panics, that is an [access.PanicError].
func (o *Object) Update(ctx context.Context, fn func(value []byte) ([]byte, error)) error {
	if err := o.ready(); err != nil {
		return err
	}
	return o.failure(o.copy.object.Update(ctx, fn))
}

// Hold waits for the right to write and keeps it, for d at most, for one write whose making must not be repeated and may take longer than an Update
// does; see [access.Object.Hold].
func (o *Object) Hold(ctx context.Context, d time.Duration) (*access.Held, error) {
	if err := o.ready(); err != nil {
		return nil, err
	}
	h, err := o.copy.object.Hold(ctx, d)
	return h, o.failure(err)
}

// State returns what this node has of the object, as the paper spells it, and how many bytes its value has, 0 where there is no copy.
func (o *Object) State() (state string, bytes int) {
	if o.err != nil {
		return "", 0
	}
	o.copy.cached.Inspect(func(k *cachedcopy.Copy) {
		if state = k.State().String(); k.Value() != nil {
			bytes = len(k.Value().Bytes)
		}
	})
	return state, bytes
}

// Info asks the object's group what its manager knows of it. It blocks until the group answers or ctx ends.
func (o *Object) Info(ctx context.Context) (ObjectInfo, error) {
	if o.err != nil {
		return ObjectInfo{}, o.err
	}
	b, err := o.app.s.client.Query(ctx, o.copy.key, ServiceName, append(append([]byte{}, o.app.key[:]...), o.copy.key[:]...))
	if err != nil {
		return ObjectInfo{}, err
	}
	return decodeObjectInfo(b)
}

// Watch calls fn with the value, and again each time it may have become another one, until ctx ends or fn returns an error, which it returns. Of
// values that follow each other fast only the last is sure to be seen; the same one may be seen twice.
func (o *Object) Watch(ctx context.Context, fn func(value []byte) error) error {
	if err := o.ready(); err != nil {
		return err
	}
	return o.failure(o.copy.object.Watch(ctx, fn))
}

// Prefetch asks for a copy that will be needed soon, to be written if write is set, and waits for nothing.
func (o *Object) Prefetch(write bool) {
	if o.ready() != nil {
		return
	}
	r := cachedcopy.ReadOnly
	if write {
		r = cachedcopy.ReadWrite
	}
	o.copy.object.Prefetch(r)
}
