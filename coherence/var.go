package coherence

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"latchkey/coherence/access"
)

var (
	// ErrRestarted matches the error of every call of an execution of the application that is over.
	ErrRestarted = access.ErrRestarted
	// ErrBusy matches the error of a call that gave up: too many waited already, or an update took too long. It was not performed.
	ErrBusy = access.ErrBusy
	// ErrTooLarge matches the error of a write of more bytes than an object holds. It was not performed.
	ErrTooLarge = access.ErrTooLarge
)

// Accessor is what a [Var] needs of a shared object: an [Object] is one.
type Accessor interface {
	View(ctx context.Context, fn func(value []byte) error) error
	Set(ctx context.Context, value []byte) error
	Update(ctx context.Context, fn func(value []byte) ([]byte, error)) error
}

// Codec turns values into bytes and back. Equal values must have equal bytes if CompareAndSwap is used. What Unmarshal returns
// must not share memory with the bytes.
type Codec[T any] interface {
	Marshal(T) ([]byte, error)
	Unmarshal([]byte) (T, error)
}

// JSON is the codec of encoding/json.
type JSON[T any] struct{}

// Marshal encodes v.
func (JSON[T]) Marshal(v T) ([]byte, error) { return json.Marshal(v) }

// Unmarshal decodes what Marshal returned.
func (JSON[T]) Unmarshal(b []byte) (v T, err error) { return v, json.Unmarshal(b, &v) }

// Var is a variable of type T in a shared object. An object that nobody has written, or that is empty, holds the zero value.
// Safe for concurrent use. Its methods block and fail as those of the object do, or with the codec's error.
type Var[T any] struct {
	object Accessor
	codec  Codec[T]
}

// NewVar returns the variable in an object. All who use the object must use one codec.
func NewVar[T any](o Accessor, c Codec[T]) *Var[T] { return &Var[T]{o, c} }

// Load returns the value at one instant of the call.
func (v *Var[T]) Load(ctx context.Context) (value T, err error) {
	err = v.object.View(ctx, func(b []byte) (err error) {
		value, err = v.decode(b)
		return err
	})
	if err != nil {
		var zero T // not what was found by a call that failed afterwards
		return zero, err
	}
	return value, nil
}

// Store writes value. It returns when no other copy has the old one any more.
func (v *Var[T]) Store(ctx context.Context, value T) error {
	b, err := v.encode(value)
	if err != nil {
		return err
	}
	return v.object.Set(ctx, b)
}

// Update replaces the value by what fn makes of it, with no write of anybody in between. An error of fn leaves the value, and is
// returned. fn may run more than once.
func (v *Var[T]) Update(ctx context.Context, fn func(T) (T, error)) error {
	return v.object.Update(ctx, func(b []byte) ([]byte, error) {
		value, err := v.decode(b)
		if err != nil {
			return nil, err
		}
		if value, err = fn(value); err != nil {
			return nil, err
		}
		return v.encode(value)
	})
}

// errOther ends a CompareAndSwap that found another value.
var errOther = errors.New("another value")

// CompareAndSwap writes next if the value is old, and reports whether it was. Values are compared by their bytes. When it was not,
// nothing is written.
func (v *Var[T]) CompareAndSwap(ctx context.Context, old, next T) (bool, error) {
	was, err := v.encode(old)
	if err != nil {
		return false, err
	}
	will, err := v.encode(next)
	if err != nil {
		return false, err
	}
	err = v.object.Update(ctx, func(b []byte) ([]byte, error) {
		if len(b) == 0 {
			var zero T
			if b, err = v.encode(zero); err != nil {
				return nil, err
			}
		}
		if !bytes.Equal(b, was) {
			return nil, errOther
		}
		return will, nil
	})
	if err == errOther {
		return false, nil
	}
	return err == nil, err
}

func (v *Var[T]) decode(b []byte) (value T, err error) {
	if len(b) == 0 {
		return value, nil
	}
	if value, err = v.codec.Unmarshal(b); err != nil {
		return value, fmt.Errorf("coherence: decode %d bytes: %w", len(b), err)
	}
	return value, nil
}

func (v *Var[T]) encode(value T) ([]byte, error) {
	b, err := v.codec.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("coherence: encode: %w", err)
	}
	return b, nil
}
