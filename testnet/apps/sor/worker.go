package sor

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/coherence"
)

// kind is that of the workers.
const kind = "sor-worker"

// look is how long a worker waits before it comes to a safe point again.
const look = 20 * time.Millisecond

// args is what a worker is created with.
type args struct {
	Problem
	Worker int `json:"worker"`
}

// state is what a worker saves.
type state struct {
	Half    int  `json:"half"`    // 0 writes the rows as they are at first; then two a step
	Arrived bool `json:"arrived"` // its part of that is done
}

type worker struct {
	args
	state
	t     *coherence.Thread
	bytes []byte // of a row
}

// number is an object that holds one.
func number(o *coherence.Object) *coherence.Var[int] {
	return coherence.NewVar(o, coherence.JSON[int]{})
}

// work is what threads of the kind do.
func work(ctx context.Context, t *coherence.Thread) error {
	w := &worker{t: t}
	if err := t.Args(&w.args); err != nil {
		return err
	}
	if err := errors.Join(w.Validate(), w.check()); err != nil {
		return err
	}
	if _, err := t.State(&w.state); err != nil {
		return err
	}
	for halves := 1 + 2*w.Steps; w.Half < halves; w.Half, w.Arrived = w.Half+1, false {
		if !w.Arrived {
			if err := w.passGate(ctx); err != nil {
				return err
			}
			if err := w.half(ctx); err != nil {
				return err
			}
			if err := w.arrive(ctx); err != nil {
				return err
			}
		}
		if err := w.await(ctx, "barrier/open", func(open int) bool { return open > w.Half }); err != nil {
			return err
		}
	}
	return nil
}

func (w *worker) check() error {
	if w.Worker < 0 || w.Worker >= w.Workers {
		return fmt.Errorf("%w: worker %d of %d", ErrProblem, w.Worker, w.Workers)
	}
	return nil
}

// passGate waits, before a step, until it may be done. It begins with a safe point in any case.
func (w *worker) passGate(ctx context.Context) error {
	if w.Half%2 == 0 {
		return w.t.SafePoint(ctx, w.state)
	}
	return w.await(ctx, "gate", func(steps int) bool { return steps == 0 || w.Half/2 < steps })
}

// half writes the worker's cells of one colour, or its rows as they are at first.
func (w *worker) half(ctx context.Context) error {
	first, end := w.block(w.Worker)
	var rows [3][]float64 // above, the row, below
	for i := range rows {
		rows[i] = make([]float64, w.Cols)
	}
	for row := first; row < end; row++ {
		above, cells, below := rows[(row+2)%3], rows[row%3], rows[(row+1)%3]
		switch {
		case w.Half == 0:
			w.first(row, cells)
		case row == 0 || row == w.Rows-1:
			continue
		default:
			if row == max(first, 1) {
				if err := errors.Join(w.read(ctx, row-1, above), w.read(ctx, row, cells)); err != nil {
					return err
				}
			}
			if err := w.read(ctx, row+1, below); err != nil {
				return err
			}
			relax(above, cells, below, row, (w.Half-1)%2)
		}
		w.bytes = encode(w.bytes[:0], cells)
		if err := w.t.Object(w.object(row)).Set(ctx, w.bytes); err != nil {
			return err
		}
	}
	return nil
}

func (w *worker) read(ctx context.Context, row int, cells []float64) error {
	return w.t.Object(w.object(row)).View(ctx, func(b []byte) error { return decode(b, cells) })
}

// arrive says that the worker's part of the half is done. There is no safe point between that and what the last one does.
func (w *worker) arrive(ctx context.Context) error {
	last := false
	err := number(w.t.Object("barrier/arrived")).Update(ctx, func(n int) (int, error) {
		last = n+1 == w.Workers*(w.Half+1)
		return n + 1, nil
	})
	w.Arrived = err == nil
	if err != nil || !last {
		return err
	}
	return number(w.t.Object("barrier/open")).Store(ctx, w.Half+1)
}

var errReady = errors.New("sor: ready")

// await waits until the number in an object is as it should be, with a safe point each time it looks.
func (w *worker) await(ctx context.Context, object string, ready func(int) bool) error {
	o := w.t.Object(object)
	for {
		if err := w.t.SafePoint(ctx, w.state); err != nil {
			return err
		}
		within, cancel := context.WithTimeout(ctx, look)
		err := o.Watch(within, func(b []byte) error {
			n := 0
			if len(b) > 0 {
				var err error
				if n, err = (coherence.JSON[int]{}).Unmarshal(b); err != nil {
					return err
				}
			}
			if ready(n) {
				return errReady
			}
			return nil
		})
		late := within.Err() != nil
		cancel()
		switch {
		case errors.Is(err, errReady):
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !late:
			return err
		}
	}
}

// Job is a problem as the driver of an application sees it (package apps).
type Job struct {
	Problem
	alone [][]float64
}

// Register says what the workers do. Every peer that is to have some calls it.
func (j *Job) Register(app *coherence.App) error { return app.Register(kind, work) }

// Name returns the name of a worker.
func (j *Job) Name(worker int) string { return fmt.Sprintf("sor-%d", worker) }

// Start creates the workers, one on each of peers in turn. It may be called again when it has failed.
func (j *Job) Start(ctx context.Context, app *coherence.App, peers []peer.ID) error {
	for i := range j.Workers {
		err := app.Go(ctx, j.Name(i), kind, args{j.Problem, i}, coherence.At(peers[i%len(peers)]))
		if err != nil && !errors.Is(err, coherence.ErrThreadExists) {
			return err
		}
	}
	return nil
}

// Gate allows the workers so many steps for now; 0 is all.
func (j *Job) Gate(ctx context.Context, app *coherence.App, steps int) error {
	return number(app.Object("gate")).Store(ctx, steps)
}

// Total returns how many steps there are.
func (j *Job) Total() int { return j.Steps }

// Done returns how many steps all workers have done.
func (j *Job) Done(ctx context.Context, app *coherence.App) (int, error) {
	open, err := number(app.Object("barrier/open")).Load(ctx)
	return max(open-1, 0) / 2, err
}

// Alone solves the problem in this process, to compare.
func (j *Job) Alone(ctx context.Context) (err error) {
	j.alone, err = j.Solve(ctx)
	return err
}

// Compare compares the objects with what Alone found, bit by bit: how many of how many cells differ.
func (j *Job) Compare(ctx context.Context, app *coherence.App) (differ, of int, err error) {
	cells := make([]float64, j.Cols)
	for row, want := range j.alone {
		err := app.Object(j.object(row)).View(ctx, func(b []byte) error { return decode(b, cells) })
		if err != nil {
			return 0, 0, err
		}
		for col := range cells {
			if math.Float64bits(cells[col]) != math.Float64bits(want[col]) {
				differ++
			}
		}
	}
	return differ, j.Rows * j.Cols, nil
}

// Unit is what the result consists of.
func (j *Job) Unit() string { return "cells" }
