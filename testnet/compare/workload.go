package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"latchkey/dht/rawbench"
)

// turn is how long one system works before the other has its turn, so that both see the machine in the same state.
const turn = 500 * time.Millisecond

// errOverlap says that two clients had one lock at a time: no figure counts then.
var errOverlap = errors.New("two clients held the lock at the same time")

// side is one system with the clients of a workload.
type side struct {
	system  system
	names   []string // client i wants names[i % len(names)]
	clients []client
	tally   tally
	holders []atomic.Int32 // of each name
}

func newSide(ctx context.Context, s system, clients int, names []string) (*side, error) {
	d := &side{system: s, names: names, holders: make([]atomic.Int32, len(names))}
	d.tally.each = make([]int, clients)
	for range clients {
		c, err := s.client(ctx)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("a client of %s: %w", s.name(), err), d.close())
		}
		d.clients = append(d.clients, c)
	}
	return d, nil
}

func (d *side) close() error {
	var errs []error
	for _, c := range d.clients {
		errs = append(errs, c.close())
	}
	return errors.Join(errs...)
}

// work lets every client take and give back its lock until the turn is over. Counted says whether the turn goes into the figures.
func (d *side) work(ctx context.Context, length time.Duration, counted bool) error {
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
		over atomic.Bool
		gap  gaps
	)
	start, cpu := time.Now(), rawbench.CPUTime()
	stop := time.AfterFunc(length, func() { over.Store(true) })
	defer stop.Stop()
	for i, c := range d.clients {
		wg.Go(func() {
			var took []time.Duration
			n := i % len(d.names)
			for !over.Load() {
				overlap := false
				t, err := c.hold(ctx, d.names[n], func() {
					overlap = d.holders[n].Add(1) != 1
					runtime.Gosched() // so that another has a chance to be there too
					d.holders[n].Add(-1)
				})
				if overlap {
					err = errors.Join(errOverlap, err)
				}
				if err != nil {
					over.Store(true)
					mu.Lock()
					errs = append(errs, fmt.Errorf("%s, client %d: %w", d.system.name(), i, err))
					mu.Unlock()
					return
				}
				took = append(took, t)
				gap.hold(time.Now())
			}
			mu.Lock()
			defer mu.Unlock()
			if counted {
				d.tally.acquires = append(d.tally.acquires, took...)
				d.tally.each[i] += len(took)
			}
		})
	}
	wg.Wait()
	if counted {
		d.tally.wall += time.Since(start)
		d.tally.cpu += rawbench.CPUTime() - cpu
		d.tally.longest = max(d.tally.longest, gap.longest)
	}
	return errors.Join(errs...)
}

// gaps keeps the longest time between two holds, whoever had them.
type gaps struct {
	mu      sync.Mutex
	last    time.Time
	longest time.Duration
}

func (g *gaps) hold(now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.last.IsZero() {
		g.longest = max(g.longest, now.Sub(g.last))
	}
	g.last = now
}

// compare lets the sides work in turns until each has worked for length.
func compare(ctx context.Context, length time.Duration, sides ...*side) error {
	for _, d := range sides { // streams, sessions and groups are made in the first turn
		if err := d.work(ctx, min(turn, length), false); err != nil {
			return err
		}
	}
	for done := time.Duration(0); done < length; done += turn {
		for _, d := range sides {
			if err := d.work(ctx, min(turn, length), true); err != nil {
				return err
			}
		}
	}
	return nil
}
