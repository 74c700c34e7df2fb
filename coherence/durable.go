package coherence

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"latchkey/coherence/access"
	"latchkey/coherence/durable"
	"latchkey/coherence/durable/copies"
	"latchkey/coherence/durable/store"
	"latchkey/coherence/protocol"
)

// Errors of calls on durable objects, beside [ErrBusy], [ErrTooLarge], [ErrName] and [ErrClosed].
var (
	// ErrConflict matches the error of a write whose condition did not hold; a [ConflictError] says what is there. It was not made.
	ErrConflict = errors.New("coherence: another version is there")
	// ErrStale matches the error of a read for which there is no copy that is surely the present one, and whose group does not answer.
	// [DurableObject.ReadStale] tells what was seen last.
	ErrStale = copies.ErrStale
	// ErrNoQuorum matches the error of a write whose group does not answer. It was not made.
	ErrNoQuorum = copies.ErrNoQuorum
	// ErrOutcomeUnknown matches the error of a write that was sent, and of which nobody knows whether it has taken place, or will yet.
	ErrOutcomeUnknown = copies.ErrOutcomeUnknown
	// ErrFull matches the error of a write for which its group has no room. It was not made.
	ErrFull = copies.ErrFull
	// ErrVersion matches the error of a watch that is to go on after a version that is not there.
	ErrVersion = errors.New("coherence: no such version")
	// ErrTTL matches the error about a time to live that is out of range.
	ErrTTL = errors.New("coherence: bad time to live")
)

// Version numbers the writes of one durable object, deletes included. It rises for ever, also when the object is deleted and made again, so it serves as
// ETag and as fencing token. 0 is an object that was never written.
type Version = durable.Version

// ConflictError says what was there instead of what a write expected.
type ConflictError struct {
	Name  string
	Found Value
}

// Error tells the version.
func (e *ConflictError) Error() string {
	if !e.Found.Exists {
		return fmt.Sprintf("coherence: %q was not written: it does not exist, at version %d", e.Name, e.Found.Version)
	}
	return fmt.Sprintf("coherence: %q was not written: it has version %d", e.Name, e.Found.Version)
}

// Unwrap returns [ErrConflict].
func (e *ConflictError) Unwrap() error { return ErrConflict }

// Value is what a durable object was at one instant.
type Value struct {
	Bytes   []byte // not to be changed; nil if it does not exist
	Version Version
	Exists  bool
}

func valueOf(f copies.Found) Value {
	v := Value{Version: f.Version, Exists: f.Value != nil}
	if v.Exists {
		v.Bytes = f.Value.Bytes
	}
	return v
}

// Durable is an application whose objects are kept by their groups: what a write has returned for is lost by no failure of f of a group's 2f+1 peers, nor by
// that of any peer that uses it, and nothing begins anew. It is there without being opened, and is over when nobody knows its name. It shares no
// object with the volatile application of the same name. Safe for concurrent use.
type Durable struct {
	s    *Service
	name string
}

// Durable returns the durable application of a name, which has no slash. It sends nothing. Errors: [ErrName].
func (s *Service) Durable(name string) (*Durable, error) {
	if err := checkName("an application", name); err != nil {
		return nil, err
	}
	if strings.Contains(name, "/") {
		return nil, fmt.Errorf("%w: the name of an application, %q, has a slash", ErrName, name)
	}
	return &Durable{s, name}, nil
}

// Name returns the application's name.
func (d *Durable) Name() string { return d.name }

// CheckDurableName says what is wrong with the name of a durable object ([ErrName]): each of the parts that slashes make of it needs to be one, and none of
// them "." or "..".
func CheckDurableName(name string) error {
	if err := checkName("an object", name); err != nil {
		return err
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." || part == ".." {
			return fmt.Errorf(`%w: the name of an object, %.80q, has a part that is empty, "." or ".."`, ErrName, name)
		}
	}
	return nil
}

// Object returns an object of the application. It sends nothing. A name that is none shows in every call ([ErrName]).
func (d *Durable) Object(name string) *DurableObject {
	o := &DurableObject{name: name}
	if o.err = CheckDurableName(name); o.err == nil {
		o.object = d.object(name)
	}
	return o
}

func (d *Durable) object(name string) *copies.Object {
	full := d.name + "/" + name
	return d.s.durable.Object(d.s.genesis.PrefixOf(durable.KeyOf(full)), full)
}

// DurableObject is an object whose value its group keeps. Peers that read it keep copies, and read them again without asking anybody until somebody
// writes; no read is older than a write that has returned, also for who is cut off or was stopped. What all peers read and write is linearizable
// per object, and sequentially consistent over all. Safe for concurrent use.
//
// Calls block on the object's group until ctx ends. Reads fail then with [ErrStale] if the group did not answer, writes with [ErrNoQuorum] if nothing
// was sent and with [ErrOutcomeUnknown] if something was; the errors match the cause of ctx too.
type DurableObject struct {
	name   string
	object *copies.Object
	err    error // why there is none
}

// Name returns the object's name.
func (o *DurableObject) Name() string { return o.name }

// Read returns what the object is at one instant of the call. It allocates nothing if the copy here is a present one.
func (o *DurableObject) Read(ctx context.Context) (Value, error) {
	if o.err != nil {
		return Value{}, o.err
	}
	f, err := o.object.Get(ctx)
	if err != nil {
		return Value{}, err
	}
	return valueOf(f), nil
}

// Get returns a copy of the value at one instant of the call, nil if there is none.
func (o *DurableObject) Get(ctx context.Context) ([]byte, error) {
	v, err := o.Read(ctx)
	return bytes.Clone(v.Bytes), err
}

// View calls fn with the value at one instant of the call, nil if there is none, and returns its error. fn must not change the value; it may keep it, and
// may use this object and others.
func (o *DurableObject) View(ctx context.Context, fn func(value []byte) error) error {
	v, err := o.Read(ctx)
	if err != nil {
		return err
	}
	return fn(v.Bytes)
}

// ReadStale returns what was last seen here of the object, however old, and how long ago it was known to be its present value. ok is false if
// nothing was seen, or is not kept any more. It sends nothing.
func (o *DurableObject) ReadStale() (v Value, age time.Duration, ok bool) {
	if o.err != nil {
		return Value{}, 0, false
	}
	f, age, ok := o.object.Stale()
	return valueOf(f), age, ok
}

// A WriteOption is a condition of a write, or says for how long it counts.
type WriteOption func(*copies.Write) error

// IfVersion has a write take place only if the object has this version; 0 is an object that was never written.
func IfVersion(v Version) WriteOption {
	return func(w *copies.Write) error { w.Expect, w.Wanted = durable.Exact, v; return nil }
}

// IfAbsent has a write take place only if the object does not exist.
func IfAbsent() WriteOption {
	return func(w *copies.Write) error { w.Expect, w.Wanted = durable.Absent, 0; return nil }
}

// WithTTL has the object deleted when it was not written for so long. It is never deleted earlier by any clock, and later by at most one ttl per change of
// the group's leader. Times from [store.TTLMin] to [store.TTLMax], else [ErrTTL].
func WithTTL(ttl time.Duration) WriteOption {
	return func(w *copies.Write) error {
		if ttl < store.TTLMin || ttl > store.TTLMax {
			return fmt.Errorf("%w: %v; give one from %v to %v", ErrTTL, ttl, store.TTLMin, store.TTLMax)
		}
		w.TTL = ttl
		return nil
	}
}

// Write writes a copy of value, of at most [protocol.ValueMax] bytes, and returns the version it made. It returns when the group has it, and no copy of
// what was there before can be read any more. Errors: [ErrConflict].
func (o *DurableObject) Write(ctx context.Context, value []byte, opts ...WriteOption) (Version, error) {
	w := copies.Write{}
	for _, opt := range opts {
		if err := opt(&w); err != nil {
			return 0, err
		}
	}
	c, err := cellOf(value)
	if err != nil {
		return 0, err
	}
	w.Value = c
	return o.write(ctx, w)
}

func cellOf(value []byte) (*protocol.Cell, error) {
	if len(value) > protocol.ValueMax {
		return nil, fmt.Errorf("%w: %d bytes, of %d", ErrTooLarge, len(value), protocol.ValueMax)
	}
	b := make([]byte, len(value)) // with no room behind it, so that nobody appends to it in place
	copy(b, value)
	return &protocol.Cell{Bytes: b}, nil
}

func (o *DurableObject) write(ctx context.Context, w copies.Write) (Version, error) {
	if o.err != nil {
		return 0, o.err
	}
	f, made, err := o.object.Write(ctx, w)
	switch {
	case err != nil:
		return 0, err
	case !made:
		return 0, &ConflictError{o.name, valueOf(f)}
	}
	return f.Version, nil
}

// Set is [DurableObject.Write] whatever is there.
func (o *DurableObject) Set(ctx context.Context, value []byte) error {
	_, err := o.Write(ctx, value)
	return err
}

// CompareAndSwap writes value if the object has version old, and returns the one it made. Errors: [ErrConflict].
func (o *DurableObject) CompareAndSwap(ctx context.Context, old Version, value []byte) (Version, error) {
	return o.Write(ctx, value, IfVersion(old))
}

// Delete deletes the object and reports whether it was there. Its version rises. With [IfVersion], [ErrConflict] if it has another one.
func (o *DurableObject) Delete(ctx context.Context, opts ...WriteOption) (existed bool, err error) {
	w := copies.Write{Delete: true}
	for _, opt := range opts {
		if err := opt(&w); err != nil {
			return false, err
		}
	}
	if w.Expect != durable.Any || w.TTL != 0 {
		if w.Expect == durable.Absent || w.TTL != 0 {
			return false, fmt.Errorf("coherence: %q is not deleted: a delete takes no option but a version", o.name)
		}
		// What was deleted has a version too.
		if v, err := o.Read(ctx); err != nil || !v.Exists && v.Version == w.Wanted {
			return false, err
		}
		_, err := o.write(ctx, w)
		return err == nil, err
	}
	for {
		v, err := o.Read(ctx)
		if err != nil || !v.Exists {
			return false, err
		}
		w.Expect, w.Wanted = durable.Exact, v.Version
		if _, err := o.write(ctx, w); !errors.Is(err, ErrConflict) {
			return err == nil, err
		}
	}
}

const (
	// conflictsMax is how often an Update may be outrun before it waits for its turn, and slowUpdate for how long its function may take then.
	conflictsMax = 2
	slowUpdate   = 5 * time.Millisecond
)

// Update replaces the value, nil if there is none, by what fn makes of it, with no write of anybody in between. An error of fn leaves the value, and is
// returned; if fn panics, that is an [access.PanicError].
//
// fn runs on what is here, and again if somebody else has written meanwhile. After two such conflicts, or one if fn is slow, the update waits for its
// turn to write, in which nobody else does; it would wait in vain for an Update of the same object in fn. fn must not change the value it is given.
func (o *DurableObject) Update(ctx context.Context, fn func(value []byte) ([]byte, error)) error {
	v, err := o.Read(ctx)
	if err != nil {
		return err
	}
	for range conflictsMax {
		began := time.Now()
		w, err := made(fn, v)
		if err != nil {
			return err
		}
		slow := time.Since(began) > slowUpdate
		_, err = o.write(ctx, w)
		var conflict *ConflictError
		if !errors.As(err, &conflict) {
			return err
		}
		if v = conflict.Found; slow {
			break
		}
	}
	for {
		if err := o.turn(ctx, fn); !errors.Is(err, ErrConflict) {
			return err
		}
	}
}

// UpdateOnce is [DurableObject.Update] with fn run once at most: it waits for its turn first. If the turn is lost while fn runs, since this peer was not
// heard of for a lease, and somebody else has written, nothing is written: [ErrConflict].
func (o *DurableObject) UpdateOnce(ctx context.Context, fn func(value []byte) ([]byte, error)) error {
	if o.err != nil {
		return o.err
	}
	return o.turn(ctx, fn)
}

func (o *DurableObject) turn(ctx context.Context, fn func([]byte) ([]byte, error)) error {
	h, err := o.Hold(ctx)
	if err != nil {
		return err
	}
	defer h.Release()
	w, err := made(fn, h.Value())
	if err != nil {
		return err
	}
	_, err = h.write(ctx, w)
	return err
}

// made runs fn, whatever it does, and returns the write of what it makes.
func made(fn func([]byte) ([]byte, error), v Value) (w copies.Write, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &access.PanicError{Value: p, Stack: debug.Stack()}
		}
	}()
	value, err := fn(v.Bytes)
	if err != nil {
		return w, err
	}
	w.Expect, w.Wanted = durable.Exact, v.Version
	w.Value, err = cellOf(value)
	return w, err
}

// DurableHold is the turn to write an object. It keeps all others from writing, not from reading, as long as this peer is heard of; a write in it takes
// place only if nobody else has written.
type DurableHold struct {
	o    *DurableObject
	v    Value
	once sync.Once
}

// Hold waits for the turn to write. It is to be released.
func (o *DurableObject) Hold(ctx context.Context) (*DurableHold, error) {
	if o.err != nil {
		return nil, o.err
	}
	f, err := o.object.Lock(ctx)
	if err != nil {
		return nil, err
	}
	return &DurableHold{o: o, v: valueOf(f)}, nil
}

// Value returns what the object was when the turn came.
func (h *DurableHold) Value() Value { return h.v }

// Commit writes a copy of value and ends the turn. It takes no option but [WithTTL]: its condition is the version that the turn began with.
// Errors: [ErrConflict] if the turn was lost and somebody else has written.
func (h *DurableHold) Commit(ctx context.Context, value []byte, opts ...WriteOption) (Version, error) {
	w := copies.Write{}
	for _, opt := range opts {
		if err := opt(&w); err != nil {
			return 0, err
		}
	}
	if w.Expect != durable.Any {
		return 0, fmt.Errorf("coherence: %q is not written: a turn's write takes no other condition than the version it began with", h.o.name)
	}
	c, err := cellOf(value)
	if err != nil {
		return 0, err
	}
	defer h.Release()
	w.Expect, w.Wanted, w.Value = durable.Exact, h.v.Version, c
	return h.write(ctx, w)
}

func (h *DurableHold) write(ctx context.Context, w copies.Write) (Version, error) {
	w.Holds = true
	return h.o.write(ctx, w)
}

// Release ends the turn.
func (h *DurableHold) Release() { h.once.Do(h.o.object.Unlock) }

// Change is what a watch tells.
type Change struct {
	Value
	// Lagged says that versions between this and the one told before are missing: they followed each other too fast.
	Lagged bool
}

// watchEvery bounds how often a watch asks for what a write in progress makes of the object.
const (
	watchFirst = 2 * time.Millisecond
	watchMost  = 100 * time.Millisecond
)

// Watch calls fn with what the object is, and then with every version that comes after it, in their order, or with a later one and Lagged, until
// ctx ends or fn returns an error, which it returns. With after above 0 it begins with what comes after that version: [ErrVersion] if the object has
// not come to it; an object that nobody wrote, or of which nobody remembers that it was deleted, is told, and Lagged. No version is told
// before all copies of former ones are gone. It goes on when the group's leader changes, and when the group does not answer for a while.
func (o *DurableObject) Watch(ctx context.Context, after Version, fn func(Change) error) error {
	if o.err != nil {
		return o.err
	}
	return watch(ctx, o.name, o.object, after, func(f copies.Found, lagged bool) error { return fn(Change{valueOf(f), lagged}) })
}

func watch(ctx context.Context, name string, o *copies.Object, after Version, fn func(copies.Found, bool) error) error {
	o.Pin()
	defer o.Unpin()
	timer := time.NewTimer(0)
	defer timer.Stop()
	told, last, wait := false, after, watchFirst
	for {
		changed := o.Changed() // before it is read
		f, err := o.Get(ctx)
		if err != nil {
			return err
		}
		if !told && f.Version > 0 && f.Version < after {
			return fmt.Errorf("%w: %q has version %d, and a watch after version %d would miss what comes before that", ErrVersion, name, f.Version, after)
		}
		// Where nothing is there is no version either, once a deletion is forgotten: who saw one before has something to hear.
		first := !told && (after == 0 || f.Version == 0)
		if f.Version > last || first {
			lagged := first && after > 0 || !first && f.Version != last+1 && (last > 0 || f.Version.Counter() != 1) // the first of a group is of its generation
			told, last, wait = true, f.Version, watchFirst
			if err := fn(f, lagged); err != nil {
				return err
			}
		}
		if now, ok := o.Load(); ok && now.Version == last {
			timer.Reset(o.Lease() / 4) // what tells that the lease is over is the clock alone
		} else {
			timer.Reset(wait)
			wait = min(2*wait, watchMost)
			changed = nil
		}
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Directory is the listing of the objects whose names begin with its name and have no further slash. It changes in the same instant in which one is
// created or deleted, and not when one is written. Safe for concurrent use.
type Directory struct {
	name   string
	object *copies.Object
	err    error
}

// Directory returns the directory of a name, with a slash at its end or without; an empty name is that of the objects whose names have none.
func (d *Durable) Directory(name string) *Directory {
	name = strings.TrimSuffix(name, "/")
	l := &Directory{}
	if name != "" {
		if l.err = CheckDurableName(name); l.err != nil {
			return l
		}
		l.name = name + "/"
	}
	if len(l.name) > NameBytesMax {
		l.err = fmt.Errorf("%w: the name of a directory has %d bytes, and %d are allowed", ErrName, len(l.name), NameBytesMax)
		return l
	}
	l.object = d.object(l.name)
	return l
}

// Name returns the directory's name, which is empty or ends with a slash.
func (l *Directory) Name() string { return l.name }

// Listing is what was in a directory at one instant.
type Listing struct {
	Names   []string // without the directory's, rising
	More    bool     // there are more, after the last of them
	Version Version
}

// List returns names after a given one, at most limit of them; an empty name is before all, and a limit of 0 is none. Pages of one version are of one
// instant. It is read, kept and renewed here like an object.
func (l *Directory) List(ctx context.Context, after string, limit int) (Listing, error) {
	if l.err != nil {
		return Listing{}, l.err
	}
	f, err := l.object.Get(ctx)
	if err != nil {
		return Listing{}, err
	}
	return listed(f, after, limit), nil
}

func listed(f copies.Found, after string, limit int) Listing {
	list := Listing{Version: f.Version}
	if f.Value == nil {
		return list
	}
	all := strings.Split(strings.TrimSuffix(string(f.Value.Bytes), "\n"), "\n")
	if after != "" {
		i, found := slices.BinarySearch(all, after)
		if found {
			i++
		}
		all = all[i:]
	}
	if list.More = limit > 0 && len(all) > limit; list.More {
		all = all[:limit]
	}
	list.Names = all
	return list
}

// Watch calls fn with the whole listing, and again when it has changed, as [DurableObject.Watch] does.
func (l *Directory) Watch(ctx context.Context, after Version, fn func(list Listing, lagged bool) error) error {
	if l.err != nil {
		return l.err
	}
	return watch(ctx, l.name, l.object, after, func(f copies.Found, lagged bool) error { return fn(listed(f, "", 0), lagged) })
}

// DurableStats returns what this node has done with durable objects.
func (s *Service) DurableStats() copies.Stats { return s.durable.Stats() }
