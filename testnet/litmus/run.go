package litmus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"
)

// Memory is what a program runs on: objects that several peers share. An object that nobody has written holds 0. Its methods
// are called by several goroutines at once, also for one peer; each goroutine is one thread, with the order of its own calls.
type Memory interface {
	// Read returns what object holds, as peer finds it.
	Read(ctx context.Context, peer int, object string) (int, error)
	// Write has peer set object. An error says that it is not known whether it did.
	Write(ctx context.Context, peer int, object string, value int) error
}

// ErrForbidden matches the error of a result with an outcome that no sequentially consistent memory has.
var ErrForbidden = errors.New("litmus: forbidden outcome")

// Options of [Run].
type Options struct {
	Runs  int           // default 1000
	Peers int           // of the memory; default as many as the program has
	Seed  uint64        // what is drawn is drawn from it, for each run anew
	Delay time.Duration // the longest before a statement; half of them have none. Default 200 µs, negative for none at all
	// Prefix begins the names of all objects, after which come the program, the run and the object.
	Prefix string
}

// Result is what the runs of a program came to.
type Result struct {
	Program *Program
	Runs    int            // that came to an end
	Failed  int            // in which the memory returned an error; they have no outcome
	Failure error          // the first of these errors
	Counts  map[string]int // of runs, by the text of their outcome
}

// Run runs p on m. It returns early, with what there is, when ctx ends; that is the result's Failure then.
func Run(ctx context.Context, p *Program, m Memory, o Options) *Result {
	o.Runs = cmp.Or(max(o.Runs, 0), 1000)
	o.Peers = cmp.Or(max(o.Peers, 0), len(p.Peers))
	o.Delay = cmp.Or(o.Delay, 200*time.Microsecond)
	r := &Result{Program: p, Counts: make(map[string]int)}
	for i := range o.Runs {
		outcome, err := once(ctx, p, m, o, i)
		if err != nil {
			r.Failed++
			if r.Failure == nil {
				r.Failure = fmt.Errorf("run %d: %w", i, err)
			}
			if ctx.Err() != nil {
				return r
			}
			continue
		}
		r.Runs++
		r.Counts[p.Text(outcome)]++
	}
	return r
}

// once is one run.
func once(ctx context.Context, p *Program, m Memory, o Options, run int) (Outcome, error) {
	draw := rand.New(rand.NewPCG(o.Seed, uint64(run)))
	names := make([]string, len(p.Objects))
	for i, object := range p.Objects {
		names[i] = fmt.Sprintf("%s%s.%d.%s", o.Prefix, p.Name, run, object)
	}
	if err := prepare(ctx, m, names, o.Peers, draw); err != nil {
		return nil, err
	}
	places := draw.Perm(max(o.Peers, len(p.Peers)))[:len(p.Peers)]
	scattered := o.Peers >= len(p.Peers) && draw.IntN(2) == 0
	var (
		registers = make([]int, len(p.Registers)) // each written by one goroutine
		start     = make(chan struct{})
		failures  = make([]error, len(p.Peers))
		all       sync.WaitGroup
	)
	for i, statements := range p.Peers {
		peer := places[i]
		if !scattered {
			peer = draw.IntN(o.Peers)
		}
		pauses := make([]time.Duration, len(statements))
		for j := range pauses {
			if o.Delay > 0 && draw.IntN(2) == 0 {
				pauses[j] = time.Duration(draw.Int64N(int64(o.Delay)))
			}
		}
		all.Go(func() {
			<-start
			for j, s := range statements {
				if failures[i] = pause(ctx, pauses[j]); failures[i] != nil {
					return
				}
				var err error
				if s.Writes() {
					err = m.Write(ctx, peer, names[s.Object], s.Value)
				} else {
					registers[s.Register], err = m.Read(ctx, peer, names[s.Object])
				}
				if err != nil {
					failures[i] = fmt.Errorf("peer %d, statement %d: %w", i, j, err)
					return
				}
			}
		})
	}
	close(start)
	all.Wait()
	if err := errors.Join(failures...); err != nil {
		return nil, err
	}
	outcome := Outcome(registers)
	for _, object := range p.Finally {
		v, err := m.Read(ctx, draw.IntN(o.Peers), names[object])
		if err != nil {
			return nil, fmt.Errorf("finally %s: %w", p.Objects[object], err)
		}
		outcome = append(outcome, v)
	}
	return outcome, nil
}

// prepare leaves each object with an owner and copies at drawn peers, or untouched. It still holds 0.
func prepare(ctx context.Context, m Memory, names []string, peers int, draw *rand.Rand) error {
	for _, name := range names {
		if draw.IntN(4) > 0 {
			if err := m.Write(ctx, draw.IntN(peers), name, 0); err != nil {
				return fmt.Errorf("before: %w", err)
			}
		}
		for peer := range peers {
			if draw.IntN(2) == 0 {
				continue
			}
			if v, err := m.Read(ctx, peer, name); err != nil {
				return fmt.Errorf("before: %w", err)
			} else if v != 0 {
				return fmt.Errorf("before: object %s holds %d at first, not 0", name, v)
			}
		}
	}
	return nil
}

// pause waits for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	if d == 0 {
		return ctx.Err()
	}
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Forbidden returns the outcomes that came out and must not, sorted.
func (r *Result) Forbidden() []string {
	allowed := r.allowed()
	var found []string
	for text := range r.Counts {
		if _, ok := allowed[text]; !ok {
			found = append(found, text)
		}
	}
	slices.Sort(found)
	return found
}

// Seen returns how many of the allowed outcomes came out, and how many there are.
func (r *Result) Seen() (seen, allowed int) {
	for text := range r.allowed() {
		if r.Counts[text] > 0 {
			seen++
		}
	}
	return seen, len(r.Program.Allowed())
}

func (r *Result) allowed() map[string]struct{} {
	all := make(map[string]struct{}, len(r.Program.Allowed()))
	for _, o := range r.Program.Allowed() {
		all[r.Program.Text(o)] = struct{}{}
	}
	return all
}

// Err returns nil if every run came to an end with an outcome that is allowed. Otherwise its error matches [ErrForbidden] if one
// was not, or the failure of the memory; no run at all is an error too.
func (r *Result) Err() error {
	switch forbidden := r.Forbidden(); {
	case len(forbidden) > 0:
		return fmt.Errorf("%w: %s: %s, in %d of %d runs", ErrForbidden, r.Program.Name, forbidden[0], r.Counts[forbidden[0]], r.Runs)
	case r.Failure != nil:
		return fmt.Errorf("litmus: %s: %d of %d runs failed, the first: %w", r.Program.Name, r.Failed, r.Failed+r.Runs, r.Failure)
	case r.Runs == 0:
		return fmt.Errorf("litmus: %s: no run", r.Program.Name)
	}
	return nil
}

// Table prints the outcomes: how often each came out, and which did not or must not.
func (r *Result) Table() string {
	var b strings.Builder
	seen, allowed := r.Seen()
	fmt.Fprintf(&b, "%s: %d runs, %d failed, %d of %d allowed outcomes seen, %d forbidden\n", r.Program.Name, r.Runs, r.Failed, seen, allowed, len(r.Forbidden()))
	for _, o := range r.Program.Allowed() {
		text := r.Program.Text(o)
		fmt.Fprintf(&b, "%8d  %s\n", r.Counts[text], text)
	}
	for _, text := range r.Forbidden() {
		fmt.Fprintf(&b, "%8d  %s  FORBIDDEN\n", r.Counts[text], text)
	}
	return b.String()
}
