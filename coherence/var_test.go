package coherence_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"latchkey/coherence"
	"latchkey/coherence/access"
	"latchkey/coherence/cachedcopy"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
)

// owner is the copy of a node that owns its object for ever.
type owner struct{}

func (owner) ReadFault()                {}
func (owner) WriteFault()               {}
func (owner) Store(*protocol.Cell) bool { return true }
func (owner) Hold()                     {}
func (owner) Release()                  {}

func object() (*access.Object, *access.Epoch) {
	e := access.NewEpoch(access.Config{})
	o := access.New(e, keyspace.Key{}, func(*access.Object) access.Copy { return owner{} })
	o.Apply(func() { o.SetRight(cachedcopy.ReadWrite, &protocol.Cell{}) })
	return o, e
}

type point struct{ X, Y int }

func ExampleVar() {
	o, _ := object() // of an application
	ctx := context.Background()
	v := coherence.NewVar(o, coherence.JSON[point]{})
	v.Store(ctx, point{1, 2})
	v.Update(ctx, func(p point) (point, error) { p.X++; return p, nil })
	swapped, _ := v.CompareAndSwap(ctx, point{2, 2}, point{5, 5})
	p, _ := v.Load(ctx)
	fmt.Println(p, swapped)
	// Output: {5 5} true
}

func TestVarHoldsTheZeroValueAtFirst(t *testing.T) {
	o, _ := object()
	v := coherence.NewVar(o, coherence.JSON[point]{})
	if p, err := v.Load(t.Context()); err != nil || p != (point{}) {
		t.Error(p, err)
	}
	for _, c := range []struct {
		old, next, then point
		ok              bool
	}{{point{9, 9}, point{1, 1}, point{}, false}, {point{}, point{1, 1}, point{1, 1}, true}, {point{}, point{2, 2}, point{1, 1}, false}} {
		ok, err := v.CompareAndSwap(t.Context(), c.old, c.next)
		if p, _ := v.Load(t.Context()); ok != c.ok || err != nil || p != c.then {
			t.Errorf("%v: %v, %v, then %v", c, ok, err, p)
		}
	}
}

func TestVarUpdatesAreNotLost(t *testing.T) {
	o, _ := object()
	v := coherence.NewVar(o, coherence.JSON[int]{})
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 50 {
				if err := v.Update(t.Context(), func(n int) (int, error) { return n + 1, nil }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if n, err := v.Load(t.Context()); n != 400 || err != nil {
		t.Error(n, err)
	}
}

func TestVarErrorsLeaveTheValue(t *testing.T) {
	o, e := object()
	ctx := t.Context()
	v := coherence.NewVar(o, coherence.JSON[any]{})
	if err := v.Store(ctx, "kept"); err != nil {
		t.Fatal(err)
	}
	wrong := errors.New("wrong")
	var unsupported *json.UnsupportedTypeError
	if err := v.Update(ctx, func(any) (any, error) { return nil, wrong }); err != wrong {
		t.Error(err)
	}
	if err := v.Update(ctx, func(any) (any, error) { return make(chan int), nil }); !errors.As(err, &unsupported) {
		t.Error(err)
	}
	if err := v.Store(ctx, make(chan int)); !errors.As(err, &unsupported) {
		t.Error(err)
	}
	for _, pair := range [][2]any{{make(chan int), 1}, {1, make(chan int)}} {
		if ok, err := v.CompareAndSwap(ctx, pair[0], pair[1]); ok || !errors.As(err, &unsupported) {
			t.Error(ok, err)
		}
	}
	if err := v.Store(ctx, strings.Repeat("x", protocol.ValueMax)); !errors.Is(err, coherence.ErrTooLarge) {
		t.Error(err)
	}
	if got, err := v.Load(ctx); got != "kept" || err != nil {
		t.Error(got, err)
	}
	other := coherence.NewVar(o, coherence.JSON[int]{})
	var mismatch *json.UnmarshalTypeError
	if n, err := other.Load(ctx); n != 0 || !errors.As(err, &mismatch) {
		t.Error(n, err)
	}
	if err := other.Update(ctx, func(int) (int, error) { return 1, nil }); !errors.As(err, &mismatch) {
		t.Error(err)
	}
	e.End()
	if got, err := v.Load(ctx); got != nil || !errors.Is(err, coherence.ErrRestarted) {
		t.Error(got, err)
	}
	if ok, err := v.CompareAndSwap(ctx, "kept", "new"); ok || !errors.Is(err, coherence.ErrRestarted) {
		t.Error(ok, err)
	}
}
