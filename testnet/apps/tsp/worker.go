package tsp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/coherence"
)

// kind is that of the workers.
const kind = "tsp-worker"

// look is how long a worker waits before it comes to a safe point again.
const look = 20 * time.Millisecond

// ends says where the queue begins and ends: elements from First to before End are in it, and all before were taken.
type ends struct {
	First int `json:"first"`
	End   int `json:"end"`
}

// state is what a worker saves.
type state struct {
	Took    bool `json:"took"` // an element
	Element int  `json:"element"`
}

type worker struct {
	Problem
	state
	t *coherence.Thread
	s *search
}

// number is an object that holds one.
func number(o *coherence.Object) *coherence.Var[int] {
	return coherence.NewVar(o, coherence.JSON[int]{})
}

func item(n int) string { return fmt.Sprint("queue/items/", n) }

// work is what threads of the kind do.
func work(ctx context.Context, t *coherence.Thread) error {
	w := &worker{t: t}
	if err := t.Args(&w.Problem); err != nil {
		return err
	}
	if err := w.Validate(); err != nil {
		return err
	}
	if _, err := t.State(&w.state); err != nil {
		return err
	}
	w.s = w.search()
	w.s.bound, w.s.found = func() (uint64, error) { return w.bound(ctx) }, func(trip Trip) error { return w.found(ctx, trip) }
	for {
		if over, err := w.take(ctx); err != nil || over {
			return err
		}
		trip, err := w.element(ctx)
		if err != nil {
			return err
		}
		if err := w.treat(ctx, trip); err != nil { // no safe point from here
			return err
		}
		w.state = state{} // to here
	}
}

// take takes the first element of the queue, if the worker has none. It reports whether all were.
func (w *worker) take(ctx context.Context) (over bool, err error) {
	for {
		if err := w.t.SafePoint(ctx, w.state); err != nil || w.Took {
			return false, err
		}
		gate, err := number(w.t.Object("gate")).Load(ctx)
		if err != nil {
			return false, err
		}
		queue := coherence.NewVar(w.t.Object("queue/ends"), coherence.JSON[ends]{})
		now, err := queue.Load(ctx) // a read, which disturbs nobody
		if err != nil {
			return false, err
		}
		if left := now.First < w.elements(); left && now.End > 0 && (now.First >= now.End || gate > 0 && now.First >= gate) {
			if err := w.change(ctx, "queue/ends"); err != nil {
				return false, err
			}
			continue
		}
		err = queue.Update(ctx, func(e ends) (ends, error) {
			if e.End == 0 { // nobody has been here: the first element is the beginning of all trips
				e.End = 1
			}
			w.state, over = state{}, e.First >= w.elements()
			if e.First < e.End && (gate == 0 || e.First < gate) {
				w.state = state{true, e.First}
				e.First++
				return e, nil
			}
			return e, errNothing
		})
		switch {
		case err == nil:
			return false, nil
		case !errors.Is(err, errNothing):
			return false, err
		case over:
			return true, nil
		}
		if err := w.change(ctx, "queue/ends"); err != nil {
			return false, err
		}
	}
}

var errNothing = errors.New("tsp: nothing is to be taken")

// element reads the element that the worker has taken. Who added it may not have written it yet.
func (w *worker) element(ctx context.Context) (trip []byte, err error) {
	if w.Element == 0 {
		return []byte{0}, nil
	}
	for {
		if trip, err = w.t.Object(item(w.Element)).Get(ctx); err != nil || len(trip) > 0 {
			return trip, err
		}
		if err := w.change(ctx, item(w.Element)); err != nil {
			return nil, err
		}
		if err := w.t.SafePoint(ctx, w.state); err != nil {
			return nil, err
		}
	}
}

var errChanged = errors.New("tsp: changed")

// change waits for an object to change, and not for long.
func (w *worker) change(ctx context.Context, object string) error {
	within, cancel := context.WithTimeout(ctx, look)
	defer cancel()
	times := 0
	err := w.t.Object(object).Watch(within, func([]byte) error {
		if times++; times > 1 {
			return errChanged
		}
		return nil
	})
	switch {
	case errors.Is(err, errChanged):
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case within.Err() != nil:
		return nil
	}
	return err
}

// treat splits a beginning, or searches it.
func (w *worker) treat(ctx context.Context, trip []byte) error {
	length, err := w.s.begin(trip)
	if err != nil {
		return err
	}
	if len(trip) < splitBelow {
		err = w.split(ctx, trip)
	} else {
		err = w.s.from(length)
	}
	if err != nil {
		return err
	}
	return number(w.t.Object("done")).Update(ctx, func(n int) (int, error) { return n + 1, nil })
}

// split adds all beginnings that are one city longer: first it takes their places, then it writes them.
func (w *worker) split(ctx context.Context, trip []byte) error {
	first := 0
	err := coherence.NewVar(w.t.Object("queue/ends"), coherence.JSON[ends]{}).Update(ctx, func(e ends) (ends, error) {
		first = e.End
		e.End += w.Cities - len(trip)
		return e, nil
	})
	if err != nil {
		return err
	}
	for c := range w.Cities {
		if slices.Contains(trip, byte(c)) {
			continue
		}
		if err := w.t.Object(item(first)).Set(ctx, append(slices.Clone(trip), byte(c))); err != nil {
			return err
		}
		first++
	}
	return nil
}

// bound reads the length of the best trip so far.
func (w *worker) bound(ctx context.Context) (length uint64, err error) {
	length = math.MaxUint64
	err = w.t.Object("best").View(ctx, func(b []byte) error {
		if len(b) >= 8 {
			length = binary.BigEndian.Uint64(b)
		}
		return nil
	})
	return length, err
}

var errWorse = errors.New("tsp: there is a better trip")

// found keeps a trip if it is the best so far.
func (w *worker) found(ctx context.Context, trip Trip) error {
	err := w.t.Object("best").Update(ctx, func(b []byte) ([]byte, error) {
		best, err := decodeTrip(b, w.Cities)
		if err != nil {
			return nil, err
		}
		if !trip.better(best) {
			return nil, errWorse
		}
		return trip.encode(), nil
	})
	if errors.Is(err, errWorse) {
		return nil
	}
	return err
}

// Job is a problem as the driver of an application sees it (package apps).
type Job struct {
	Problem
	alone Trip
}

// Register says what the workers do. Every peer that is to have some calls it.
func (j *Job) Register(app *coherence.App) error { return app.Register(kind, work) }

// Name returns the name of a worker.
func (j *Job) Name(worker int) string { return fmt.Sprintf("tsp-%d", worker) }

// Start creates the workers, one on each of peers in turn. It may be called again when it has failed.
func (j *Job) Start(ctx context.Context, app *coherence.App, peers []peer.ID) error {
	for i := range j.Workers {
		err := app.Go(ctx, j.Name(i), kind, j.Problem, coherence.At(peers[i%len(peers)]))
		if err != nil && !errors.Is(err, coherence.ErrThreadExists) {
			return err
		}
	}
	return nil
}

// Gate allows so many elements to be taken for now; 0 is all.
func (j *Job) Gate(ctx context.Context, app *coherence.App, elements int) error {
	return number(app.Object("gate")).Store(ctx, elements)
}

// Total returns how many elements the queue has in all.
func (j *Job) Total() int { return j.elements() }

// Done returns how many have been split or searched.
func (j *Job) Done(ctx context.Context, app *coherence.App) (int, error) {
	return number(app.Object("done")).Load(ctx)
}

// Alone solves the problem in this process, to compare.
func (j *Job) Alone(ctx context.Context) (err error) {
	j.alone, err = j.Solve(ctx)
	return err
}

// Compare compares the best trip with that of Alone: its length, and city by city.
func (j *Job) Compare(ctx context.Context, app *coherence.App) (differ, of int, err error) {
	b, err := app.Object("best").Get(ctx)
	if err != nil {
		return 0, 0, err
	}
	best, err := decodeTrip(b, j.Cities)
	if err != nil {
		return 0, 0, err
	}
	if best.Length != j.alone.Length {
		differ++
	}
	for i, c := range j.alone.Cities {
		if i >= len(best.Cities) || best.Cities[i] != c {
			differ++
		}
	}
	return differ, 1 + j.Cities, nil
}

// Unit is what the result consists of.
func (j *Job) Unit() string { return "numbers, the length of the trip and its cities" }
