// Package apps runs applications of several peers on a testnet of its own, each thread on a real peer and all by package coherence alone, compares
// what comes out with what one process finds, and says how long both took. Meanwhile a peer can be killed after a checkpoint, another one join and
// take over a thread, and one leave with what it has. The applications are packages sor and tsp below this one.
package apps

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/coherence"
	"latchkey/coherence/protocol"
	"latchkey/testnet"
)

// Limits of [Options].
const (
	PeersDefault = 3
	// PeersMin is the least number of peers: with fewer no group outlives the one that is killed.
	PeersMin = 3
	// PeersMax bounds the peers, all of which are in this process.
	PeersMax = 32
	// EventTotalMin is the least that there is to do where something is to happen meanwhile.
	EventTotalMin = 8
)

// poll is how often the driver looks how far the workers are.
const poll = 10 * time.Millisecond

var (
	// ErrDiffers matches the error of a run whose result is not that of one process.
	ErrDiffers = errors.New("apps: the result differs from that of one process")
	// ErrOptions matches the error about options that cannot be.
	ErrOptions = errors.New("apps: options")
)

// Job is an application, as its driver sees it.
type Job interface {
	// Register says on a peer what its threads do. The driver calls it at every peer.
	Register(app *coherence.App) error
	// Name returns the name of a thread.
	Name(worker int) string
	// Start creates the threads, on peers in turn. It is called again after it has failed.
	Start(ctx context.Context, app *coherence.App, peers []peer.ID) error
	// Gate says how far the threads may go for now: at most to so many of Total; 0 is all the way.
	Gate(ctx context.Context, app *coherence.App, upTo int) error
	// Total returns how much there is to do, and Done how much is.
	Total() int
	Done(ctx context.Context, app *coherence.App) (int, error)
	// Alone does all of it in this process, without peers.
	Alone(ctx context.Context) error
	// Compare compares what the objects hold with what Alone found, and returns how many of how many parts differ. Unit says parts of what.
	Compare(ctx context.Context, app *coherence.App) (differ, of int, err error)
	Unit() string
}

// Options of [Run].
type Options struct {
	Name    string // of the application
	N       int    // peers; 0 is PeersDefault
	Workers int    // threads of the job
	Kill    bool   // the last peer, after a checkpoint, while the threads go on
	Join    bool   // a further peer joins, and takes over a thread
	Leave   bool   // peer 1 leaves, and hands over what it has
	// Progress, when set, is told how far it is.
	Progress func(testnet.Progress)
}

// Report is what came out. Its JSON form is part of the command line's contract.
type Report struct {
	App         string   `json:"app"`
	Peers       int      `json:"peers"` // at first
	Workers     int      `json:"workers"`
	Equal       bool     `json:"equal"`
	Differ      int      `json:"differ"`
	Of          int      `json:"of"`
	Unit        string   `json:"unit"`
	Alone       float64  `json:"alone_seconds"`
	Shared      float64  `json:"shared_seconds"`
	Speedup     float64  `json:"speedup"` // alone over shared; below 1 it is slower
	Checkpoints int      `json:"checkpoints"`
	Restarts    int      `json:"restarts"`
	Events      []string `json:"events"`
}

// Text writes the report for people, in columns separated by tabs.
func (r *Report) Text(w io.Writer) {
	fmt.Fprintf(w, "%s\t%d workers on %d peers\n", r.App, r.Workers, r.Peers)
	for _, e := range r.Events {
		fmt.Fprintf(w, "meanwhile\t%s\n", e)
	}
	fmt.Fprintf(w, "one process alone\t%.3f s\n", r.Alone)
	faults := ""
	if len(r.Events) > 0 {
		faults = ", with what happened meanwhile"
	}
	fmt.Fprintf(w, "%d peers\t%.3f s%s\n", r.Peers, r.Shared, faults)
	if r.Speedup > 1 {
		fmt.Fprintf(w, "speed-up\t%.2f\n", r.Speedup)
	} else {
		fmt.Fprintf(w, "speed-up\tnone: %.1f times slower than one process\n", 1/r.Speedup)
	}
	if r.Equal {
		fmt.Fprintf(w, "result\tequal to that of one process, bit by bit: %d %s\n", r.Of, r.Unit)
	} else {
		fmt.Fprintf(w, "result\tDIFFERS from that of one process: %d of %d %s\n", r.Differ, r.Of, r.Unit)
	}
}

// Validate says what is wrong with options. The error matches [ErrOptions].
func (o Options) Validate() error {
	if o.N < PeersMin || o.N > PeersMax {
		return fmt.Errorf("%w: %d peers: give %d to %d", ErrOptions, o.N, PeersMin, PeersMax)
	}
	stay := o.N - 1
	if o.Kill {
		stay--
	}
	if o.Join {
		stay++
	}
	if o.Leave && stay < PeersMin {
		return fmt.Errorf("%w: a peer leaves only if %d others stay, and %d would: give more peers", ErrOptions, PeersMin, stay)
	}
	return nil
}

// run is a run under way.
type run struct {
	Options
	job     Job
	net     *testnet.Network
	objects *coherence.Service // of peer 0, which nobody kills
	app     *coherence.App     // there
	r       *Report

	fail    context.CancelCauseFunc
	watched sync.WaitGroup // who wait for threads
}

// Run runs a job on a testnet of its own, and ends that again. The error matches [ErrDiffers] when the result is another one than that of one process;
// there is a report beside that.
func Run(ctx context.Context, job Job, o Options) (*Report, error) {
	o.N = cmp.Or(o.N, PeersDefault)
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if o.Progress == nil {
		o.Progress = func(testnet.Progress) {}
	}
	u := &run{Options: o, job: job, r: &Report{App: o.Name, Peers: o.N, Workers: o.Workers, Unit: job.Unit(), Events: []string{}}}
	if (o.Kill || o.Join || o.Leave) && job.Total() < EventTotalMin {
		return nil, fmt.Errorf("%w: nothing can happen meanwhile where there is so little to do: %d, at least %d", ErrOptions, job.Total(), EventTotalMin)
	}
	begun := time.Now()
	if err := job.Alone(ctx); err != nil {
		return nil, err
	}
	u.r.Alone = time.Since(begun).Seconds()

	net, err := testnet.Up(ctx, testnet.Options{N: o.N, Depth: 4, Progress: o.Progress})
	if err != nil {
		return nil, err
	}
	defer func() {
		for i := range net.N() {
			net.Kill(i) // nobody needs what the objects hold, so nothing is handed over
		}
		net.Close()
	}()
	u.net = net
	if err := u.run(ctx); err != nil {
		return nil, err
	}
	if !u.r.Equal {
		return u.r, fmt.Errorf("%w: %d of %d %s", ErrDiffers, u.r.Differ, u.r.Of, u.r.Unit)
	}
	return u.r, nil
}

func (u *run) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var peers []peer.ID
	apps, errs := make([]*coherence.App, u.N), make([]error, u.N)
	var all sync.WaitGroup
	for i := range u.N {
		peers = append(peers, u.net.ID(i))
		all.Go(func() { apps[i], errs[i] = u.open(ctx, i) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	u.app = apps[0]
	p, err := u.net.Peer(0)
	if err != nil {
		return err
	}
	u.objects = p.Node().Objects()
	begun := time.Now()
	total := u.job.Total()
	if u.Kill || u.Join || u.Leave { // what happens, happens before the threads are through
		if err := u.gate(ctx, total/2); err != nil {
			return err
		}
	}
	if err := u.call(ctx, func() error { return u.job.Start(ctx, u.app, peers) }); err != nil {
		return err
	}
	u.fail = cancel
	defer u.watched.Wait()
	defer cancel(nil)
	u.watch(ctx)
	for _, happens := range []struct {
		wanted     bool
		from, upTo int // so much is done then, and not more than so much
		what       func(context.Context) error
	}{{u.Kill, total / 4, total / 2, u.kill}, {u.Join, total / 2, 3 * total / 4, u.join}, {u.Leave, 3 * total / 4, total - 1, u.leave}} {
		if !happens.wanted {
			continue
		}
		if err := u.gate(ctx, happens.upTo); err != nil {
			return err
		}
		if err := u.reach(ctx, happens.from, happens.upTo); err != nil {
			return err
		}
		if err := happens.what(ctx); err != nil {
			return err
		}
	}
	if err := u.gate(ctx, 0); err != nil {
		return err
	}
	if err := u.reach(ctx, total, 0); err != nil {
		return err
	}
	u.r.Shared = time.Since(begun).Seconds()
	u.r.Speedup = u.r.Alone / u.r.Shared
	for i := range u.Workers { // each sees for itself that all is done
		err := u.call(ctx, func() error { return u.app.Wait(ctx, u.job.Name(i)) })
		if err != nil && !errors.Is(err, coherence.ErrNoThread) {
			return err
		}
	}
	return u.call(ctx, func() (err error) {
		u.r.Differ, u.r.Of, err = u.job.Compare(ctx, u.app)
		u.r.Equal = err == nil && u.r.Differ == 0 && u.r.Of > 0
		return err
	})
}

// open opens the application at a peer that can run its threads.
func (u *run) open(ctx context.Context, i int) (*coherence.App, error) {
	p, err := u.net.Peer(i)
	if err != nil {
		return nil, err
	}
	app, err := p.Node().Objects().Open(ctx, u.Name)
	if err != nil {
		return nil, err
	}
	return app, u.job.Register(app)
}

// call calls fn, and again in the next execution when the application begins anew meanwhile.
func (u *run) call(ctx context.Context, fn func() error) error {
	for {
		err := fn()
		if !errors.Is(err, coherence.ErrRestarted) {
			return err
		}
		if err := u.reopen(ctx); err != nil {
			return err
		}
	}
}

// reopen takes part in the next execution, which the peer is in by itself since it can run threads.
func (u *run) reopen(ctx context.Context) error {
	for {
		app, err := u.objects.Open(ctx, u.Name)
		switch {
		case err == nil:
			u.r.Restarts++
			u.app = app
			if u.fail != nil {
				u.watch(ctx)
			}
			return nil
		case !errors.Is(err, coherence.ErrOpen): // that is over, and has not gone yet
			return err
		}
		if err := wait(ctx); err != nil {
			return err
		}
	}
}

func wait(ctx context.Context) error {
	select {
	case <-time.After(poll):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (u *run) gate(ctx context.Context, upTo int) error {
	return u.call(ctx, func() error { return u.job.Gate(ctx, u.app, upTo) })
}

// done returns how much is done.
func (u *run) done(ctx context.Context) (n int, err error) {
	err = u.call(ctx, func() (err error) { n, err = u.job.Done(ctx, u.app); return err })
	return n, err
}

// reach waits until so much is done. After a restart the gate may be one of before, so it is set again.
func (u *run) reach(ctx context.Context, from, gate int) error {
	total, epoch := u.job.Total(), u.app.Epoch()
	for {
		done, err := u.done(ctx)
		if err != nil {
			return cmp.Or(context.Cause(ctx), err)
		}
		u.Progress(testnet.Progress{Stage: u.Name, Done: done, Total: total})
		if done >= from {
			return nil
		}
		if e := u.app.Epoch(); e != epoch {
			epoch = e
			if err := u.gate(ctx, gate); err != nil {
				return err
			}
		}
		if err := wait(ctx); err != nil {
			return err
		}
	}
}

// watch ends the run when a thread of this execution fails.
func (u *run) watch(ctx context.Context) {
	app := u.app
	for i := range u.Workers {
		u.watched.Go(func() {
			if err := app.Wait(ctx, u.job.Name(i)); errors.Is(err, coherence.ErrThread) {
				u.fail(err)
			}
		})
	}
}

func (u *run) event(format string, args ...any) {
	u.r.Events = append(u.r.Events, fmt.Sprintf(format, args...))
}

// kill saves the application, lets the threads go on, and kills the last peer. What they have done since the checkpoint is done again.
func (u *run) kill(ctx context.Context) error {
	total := u.job.Total()
	before, err := u.done(ctx)
	if err != nil {
		return err
	}
	var id protocol.CheckpointID
	err = u.call(ctx, func() (err error) { id, err = u.app.Checkpoint(ctx); return err })
	if err != nil {
		return err
	}
	u.r.Checkpoints++
	after, err := u.done(ctx)
	if err != nil {
		return err
	}
	if err := u.gate(ctx, 3*total/4); err != nil { // not further before it is killed
		return err
	}
	if err := u.reach(ctx, min(after+total/8, 3*total/4), 3*total/4); err != nil {
		return err
	}
	lost, err := u.done(ctx)
	if err != nil {
		return err
	}
	victim, epoch := u.N-1, u.app.Epoch()
	p, err := u.net.Peer(victim)
	if err != nil {
		return err
	}
	var threads []string
	for _, a := range p.Node().Objects().Applications() {
		threads = a.Threads()
	}
	if err := u.net.Kill(victim); err != nil {
		return err
	}
	begun := time.Now()
	for u.app.Epoch() == epoch {
		if _, err := u.done(ctx); err != nil {
			return err
		}
		if err := wait(ctx); err != nil {
			return err
		}
	}
	u.event("checkpoint %d at %d to %d of %d; peer %d killed at %d, with %s; begun anew after %.1f s", id, before, after, total, victim, lost,
		cmp.Or(strings.Join(threads, ", "), "no thread"), time.Since(begun).Seconds())
	return nil
}

// join has a further peer join and take over a thread.
func (u *run) join(ctx context.Context) error {
	i, err := u.net.Join(ctx)
	if err != nil {
		return err
	}
	if _, err := u.open(ctx, i); err != nil {
		return err
	}
	p, err := u.net.Peer(i)
	if err != nil {
		return err
	}
	if err := u.call(ctx, func() error { return p.Node().Objects().Migrate(ctx, u.Name, u.job.Name(0), u.net.ID(i)) }); err != nil {
		return err
	}
	done, err := u.done(ctx)
	u.event("peer %d joined, and took over thread %s, at %d of %d", i, u.job.Name(0), done, u.job.Total())
	return err
}

// leave has peer 1 leave.
func (u *run) leave(ctx context.Context) error {
	done, err := u.done(ctx)
	if err != nil {
		return err
	}
	if err := u.net.Leave(ctx, 1); err != nil {
		return err
	}
	u.event("peer 1 left at %d of %d", done, u.job.Total())
	return nil
}
