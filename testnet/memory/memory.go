// Package memory runs litmus programs (package litmus) on the shared objects of real peers: a testnet of its own, each of whose peers has an
// application open. No outcome may come out that no sequentially consistent memory has. A planted mistake must show one, or the run proves nothing.
package memory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"latchkey/coherence"
	"latchkey/coherence/access"
	"latchkey/testnet"
	"latchkey/testnet/litmus"
)

// Defaults of [Options].
const (
	PeersDefault = 5
	RunsDefault  = 100
	// together is how many runs of a program are under way at a time: they have objects of their own.
	together = 16
	// RunsMax bounds the runs of one program, whose objects all are of one application.
	RunsMax = 10_000
)

// Mistakes are those that can be planted.
var Mistakes = []Mistake{
	{"buffered-write", "a write returns before it is performed", access.Buffered},
	{"hasty-invalidation", "an invalidation is acknowledged while the copy is still read", access.Hasty},
	{"stale-copy", "a copy is read after it was invalidated", access.Stale},
}

// Mistake is one that can be planted.
type Mistake struct {
	Name, Text string
	mutant     access.Mutant
}

// ErrMissed matches the error of a run with a planted mistake that no forbidden outcome shows.
var ErrMissed = errors.New("litmus: a planted mistake shows no forbidden outcome")

// Options of [Run]. The zero value stands for the defaults.
type Options struct {
	N       int // peers; 0 is PeersDefault
	Runs    int // of each program; 0 is RunsDefault
	Seed    uint64
	Delay   time.Duration // the longest before a statement; 0 is litmus.Options's default
	Latency time.Duration // between peers
	// Mistake, when set, is planted at every peer. Run ends at the first forbidden outcome then.
	Mistake  *Mistake
	Programs []*litmus.Program // nil: the built-in shapes
	Progress func(testnet.Progress)
	Shape    func(Shape) // told of each program when it has been run
}

// Report is what came out. Its JSON form is part of the command line's contract.
type Report struct {
	Peers     int     `json:"peers"`
	Seed      uint64  `json:"seed"`
	Mistake   string  `json:"mistake,omitempty"`
	Runs      int     `json:"runs"`
	Failed    int     `json:"failed"` // runs that a memory ended with an error
	Forbidden int     `json:"forbidden"`
	Seconds   float64 `json:"seconds"`
	Shapes    []Shape `json:"shapes"`
}

// Shape is what came out of one program.
type Shape struct {
	Name      string         `json:"name"`
	Runs      int            `json:"runs"`
	Failed    int            `json:"failed"`
	Failure   string         `json:"failure,omitempty"`
	Seen      int            `json:"seen"`    // allowed outcomes that came out
	Allowed   int            `json:"allowed"` // that there are
	Forbidden map[string]int `json:"forbidden"`
	Outcomes  map[string]int `json:"outcomes"`
}

// Run starts a testnet, runs programs on its peers' shared objects and ends it again. The error matches [litmus.ErrForbidden] when an outcome came out
// that must not, and with a planted mistake [ErrMissed] when none did. There is a report beside those.
func Run(ctx context.Context, o Options) (*Report, error) {
	o.N, o.Runs = cmp.Or(o.N, PeersDefault), cmp.Or(o.Runs, RunsDefault)
	if o.N < 2 || o.Runs < 0 || o.Runs > RunsMax {
		return nil, fmt.Errorf("%w: %d peers and %d runs: at least 2 peers, and 1 to %d runs", testnet.ErrOptions, o.N, o.Runs, RunsMax)
	}
	if o.Programs == nil {
		o.Programs = litmus.Builtin()
	}
	n, err := testnet.Up(ctx, testnet.Options{N: o.N, Latency: o.Latency, Progress: o.Progress})
	if err != nil {
		return nil, err
	}
	defer func() {
		for i := range o.N {
			n.Kill(i) // nobody needs what the objects hold, so nothing is handed over
		}
		n.Close()
	}()
	if err := n.WaitReady(ctx); err != nil {
		return nil, err
	}
	r := &Report{Peers: o.N, Seed: o.Seed, Shapes: make([]Shape, 0, len(o.Programs))}
	if o.Mistake != nil {
		r.Mistake = o.Mistake.Name
	}
	begun := time.Now()
	for i, p := range o.Programs {
		m, err := open(ctx, n, o, fmt.Sprintf("litmus/%d", i))
		if err != nil {
			return nil, err
		}
		s := m.run(ctx, p, o)
		if ctx.Err() != nil {
			return r, context.Cause(ctx)
		}
		r.add(s)
		if o.Shape != nil {
			o.Shape(s)
		}
		if o.Mistake != nil && r.Forbidden > 0 {
			break
		}
	}
	r.Seconds = time.Since(begun).Seconds()
	return r, r.err(o.Mistake != nil)
}

func (r *Report) add(s Shape) {
	r.Shapes = append(r.Shapes, s)
	r.Runs += s.Runs
	r.Failed += s.Failed
	for _, n := range s.Forbidden {
		r.Forbidden += n
	}
}

func (r *Report) err(planted bool) error {
	switch {
	case planted && r.Forbidden == 0:
		return fmt.Errorf("%w: %s, in %d runs", ErrMissed, r.Mistake, r.Runs)
	case planted:
		return nil
	case r.Forbidden > 0:
		return fmt.Errorf("%w in %d of %d runs", litmus.ErrForbidden, r.Forbidden, r.Runs)
	}
	for _, s := range r.Shapes {
		if s.Failed > 0 {
			return fmt.Errorf("litmus: %s: %d of %d runs failed, the first: %s", s.Name, s.Failed, s.Failed+s.Runs, s.Failure)
		}
	}
	return nil
}

// Text writes the report for people, in columns separated by tabs.
func (r *Report) Text(w io.Writer) {
	fmt.Fprintln(w, "SHAPE\tRUNS\tFAILED\tALLOWED OUTCOMES SEEN\tFORBIDDEN")
	for _, s := range r.Shapes {
		forbidden := 0
		text := "-"
		for outcome, n := range s.Forbidden {
			if forbidden += n; text == "-" || outcome < text {
				text = outcome
			}
		}
		if forbidden > 0 {
			text = fmt.Sprintf("%d (%s)", forbidden, text)
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%d of %d\t%s\n", s.Name, s.Runs, s.Failed, s.Seen, s.Allowed, text)
	}
	fmt.Fprintf(w, "all\t%d\t%d\tin %.1f s, %d peers, seed %d\t%d\n", r.Runs, r.Failed, r.Seconds, r.Peers, r.Seed, r.Forbidden)
}

// objects is a [litmus.Memory]: an application that is open at every peer.
type objects struct{ apps []*coherence.App }

func open(ctx context.Context, n *testnet.Network, o Options, name string) (*objects, error) {
	m := &objects{apps: make([]*coherence.App, o.N)}
	var opts []coherence.Option
	if o.Mistake != nil {
		opts = append(opts, coherence.WithMistake(o.Mistake.mutant))
	}
	errs := make([]error, o.N)
	var wg sync.WaitGroup
	for i := range o.N {
		p, err := n.Peer(i)
		if err != nil {
			return nil, err
		}
		wg.Go(func() { m.apps[i], errs[i] = p.Node().Objects().Open(ctx, name, opts...) })
	}
	wg.Wait()
	return m, errors.Join(errs...)
}

// Read implements [litmus.Memory].
func (m *objects) Read(ctx context.Context, peer int, object string) (v int, err error) {
	err = m.apps[peer].Object(object).View(ctx, func(b []byte) error {
		if len(b) == 0 {
			return nil // nobody has written it
		}
		v, err = strconv.Atoi(string(b))
		return err
	})
	return v, err
}

// Write implements [litmus.Memory].
func (m *objects) Write(ctx context.Context, peer int, object string, value int) error {
	return m.apps[peer].Object(object).Set(ctx, strconv.AppendInt(nil, int64(value), 10))
}

// run runs a program, several runs at a time.
func (m *objects) run(ctx context.Context, p *litmus.Program, o Options) Shape {
	results := make([]*litmus.Result, min(together, o.Runs))
	var wg sync.WaitGroup
	for i := range results {
		share := o.Runs / len(results)
		if i < o.Runs%len(results) {
			share++
		}
		wg.Go(func() {
			results[i] = litmus.Run(ctx, p, m, litmus.Options{
				Runs: share, Peers: o.N, Seed: o.Seed<<8 | uint64(i), Delay: o.Delay, Prefix: fmt.Sprintf("%d/", i),
			})
		})
	}
	wg.Wait()
	sum := &litmus.Result{Program: p, Counts: make(map[string]int)}
	for _, r := range results {
		sum.Runs += r.Runs
		sum.Failed += r.Failed
		sum.Failure = cmp.Or(sum.Failure, r.Failure)
		for text, n := range r.Counts {
			sum.Counts[text] += n
		}
	}
	s := Shape{Name: p.Name, Runs: sum.Runs, Failed: sum.Failed, Outcomes: sum.Counts, Forbidden: make(map[string]int)}
	s.Seen, s.Allowed = sum.Seen()
	if sum.Failure != nil {
		s.Failure = sum.Failure.Error()
	}
	for _, text := range sum.Forbidden() {
		s.Forbidden[text] = sum.Counts[text]
	}
	return s
}
