package demo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"latchkey/internal/history"
	"latchkey/lockservice"
	"latchkey/testnet"
)

// LockName begins the name of the lock that the clients contend for.
const LockName = "demo-counter"

// Defaults and bounds of [Options].
const (
	ClientsDefault = 8
	EachDefault    = 50
	// TTLDefault is short: a lost holder stops everybody for that long, and the demo loses one.
	TTLDefault = 2 * time.Second
	// timeMax bounds the run up to the judging.
	timeMax = 50 * time.Second
)

// SabotageNoLock makes clients increment without taking the lock.
const SabotageNoLock = "no-lock"

// Sabotages lists what [Options.Sabotage] can be.
var Sabotages = []string{SabotageNoLock, SabotageStaleCopy}

// Options configures [Run]. The zero value stands for the defaults.
type Options struct {
	Clients int           // 0 is ClientsDefault
	Each    int           // increments of each client; 0 is EachDefault
	TTL     time.Duration // of the lock; 0 is TTLDefault
	Seed    uint64        // of the peers' identities
	// Sabotage breaks the run on purpose; one of [Sabotages]. A run so broken must fail.
	Sabotage string
	// Story, when set, is told what happens, a line at a time, from one goroutine at a time. It must not block for long.
	Story func(line string)
}

// demo is one run.
type demo struct {
	opts    Options
	net     *testnet.Network
	file    *lockservice.FileGuard
	history *history.History
	start   time.Time
	lock    string       // that the clients contend for
	lives   atomic.Int64 // of clients, begun so far

	clients sync.WaitGroup

	// Of the director's goroutine.
	faults []fault
	kills  []time.Time
	gaps   []time.Duration // by kill: the longest time without a grant
	took   time.Duration   // up to the end of the play
	moves  moves
	// sharing is set once the sharers have begun.
	sharing *sharing
	// keeping is set once those have begun who use durable objects.
	keeping *keeping

	mu       sync.Mutex
	grants   []time.Time     // when a client was granted the lock
	waits    []time.Duration // how long it had waited
	writes   int             // increments written
	running  map[*client]bool
	finished []int         // clients whose work is done
	leisure  time.Duration // what every client waits between two turns
	leaving  int           // peer whose clients end with their turn; -1: none
	moved    []int         // clients that did
	failure  error         // the first error of a client that is none of the expected ones
	changed  chan struct{}
	eligible []int   // peers whose next holder is to be stopped; nil: none
	caught   *heldBy // who was stopped so
}

// heldBy tells who was stopped while it held the lock.
type heldBy struct {
	client *client
	token  uint64
}

// Run runs the demo and judges it. The error is about the run itself, such as a testnet that does not start, or about ctx;
// a run that fails its checks returns a report that says so.
func Run(ctx context.Context, opts Options) (*Report, error) {
	opts.Clients, opts.Each, opts.TTL = cmp.Or(opts.Clients, ClientsDefault), cmp.Or(opts.Each, EachDefault), cmp.Or(opts.TTL, TTLDefault)
	if opts.Sabotage != "" && !slices.Contains(Sabotages, opts.Sabotage) {
		return nil, fmt.Errorf("demo: sabotage %q is unknown; known are %q", opts.Sabotage, Sabotages)
	}
	dir, err := os.MkdirTemp("", "latchkey-demo-")
	if err != nil {
		return nil, fmt.Errorf("demo: %w", err)
	}
	defer os.RemoveAll(dir)
	d := newDemo(opts, filepath.Join(dir, "counter"))
	run, cancel := context.WithTimeoutCause(ctx, timeMax, fmt.Errorf("demo: not done within %v", timeMax))
	defer cancel()
	d.net, err = testnet.Up(run, testnet.Options{Seed: opts.Seed, StoreDir: filepath.Join(dir, "stores")})
	if err != nil {
		return nil, err
	}
	d.tell("%d peers are up and see each other; f = %d", d.net.N(), d.net.F())
	runErr := d.direct(run)
	if runErr != nil {
		d.tell("the run was cut short: %v", runErr)
	}
	d.took = time.Since(d.start)
	cancel()
	closeErr := d.net.Close()
	d.clients.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if closeErr != nil {
		return nil, closeErr
	}
	return d.judge(runErr)
}

// newDemo returns a run that has no testnet yet, with the counter at path.
func newDemo(opts Options, path string) *demo {
	return &demo{
		opts: opts, file: lockservice.NewFileGuard(path), history: history.New(), start: time.Now(),
		lock: LockName, leaving: -1, running: map[*client]bool{}, changed: make(chan struct{}),
	}
}

// tell adds a line to the story.
func (d *demo) tell(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.opts.Story != nil {
		d.opts.Story(fmt.Sprintf("%6.2fs  %s", time.Since(d.start).Seconds(), fmt.Sprintf(format, args...)))
	}
}

// notifyLocked wakes those who wait for a change of what d.mu guards.
func (d *demo) notifyLocked() {
	close(d.changed)
	d.changed = make(chan struct{})
}

// await waits until cond holds, which it asks with d.mu held after every change.
func (d *demo) await(ctx context.Context, cond func() bool) error {
	for {
		d.mu.Lock()
		ok, failure, changed := cond(), d.failure, d.changed
		d.mu.Unlock()
		switch {
		case failure != nil:
			return failure
		case ok:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// granted notes that a client was granted the lock after waiting so long.
func (d *demo) granted(waited time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.grants = append(d.grants, time.Now())
	d.waits = append(d.waits, waited)
	d.notifyLocked()
}

// incremented notes that the file was written.
func (d *demo) incremented() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.writes++
	d.notifyLocked()
}

// hold is called by every client that holds the lock. When the director wants to kill a holder and c's peer may be killed, it
// does not return before that has happened.
func (d *demo) hold(c *client, token uint64) {
	d.mu.Lock()
	stop := slices.Contains(d.eligible, c.peer.Index())
	if stop {
		d.eligible, d.caught = nil, &heldBy{c, token}
		d.notifyLocked()
	}
	d.mu.Unlock()
	if stop {
		<-c.peer.Killed()
	}
}

// begin starts a life of client id at peer i.
func (d *demo) begin(ctx context.Context, id, i int) error {
	p, err := d.net.Peer(i)
	if err != nil {
		return err
	}
	c := d.newClient(id, p)
	d.mu.Lock()
	d.running[c] = true
	d.mu.Unlock()
	d.clients.Go(func() {
		err := c.run(ctx)
		d.mu.Lock()
		defer d.mu.Unlock()
		if !d.running[c] {
			return // killed
		}
		delete(d.running, c)
		if errors.Is(err, errMoved) {
			d.moved = append(d.moved, c.id)
		} else if err != nil && ctx.Err() == nil {
			d.failure = errors.Join(d.failure, fmt.Errorf("demo: client %d at peer %d: %w", c.id, i, err))
		} else if err == nil {
			d.finished = append(d.finished, c.id)
		}
		d.notifyLocked()
	})
	return nil
}

// kill kills peer i and returns its clients, which stopped in mid-work.
func (d *demo) kill(i int) (stopped []int, err error) {
	err = d.net.Kill(i, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		for c := range d.running {
			if c.peer.Index() == i {
				delete(d.running, c)
				d.history.Killed(c.name)
				stopped = append(stopped, c.id)
			}
		}
	})
	slices.Sort(stopped)
	return stopped, err
}
