package demo

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"latchkey/coherence"
	"latchkey/coherence/access"
	"latchkey/internal/history"
	"latchkey/testnet"
)

// SabotageStaleCopy has peers go on reading copies that others have overwritten.
const SabotageStaleCopy = "stale-copy"

const (
	// objectTurns is how many turns each sharer has to get between two parts of the play.
	objectTurns = 10
	// objectPause is between two turns of a sharer.
	objectPause = 4 * time.Millisecond
	// objectLeisure is what the lock's clients rest between two turns while sharers catch up, so that work is left for later.
	objectLeisure = time.Minute
	// objectCloseMax bounds how long a peer may take to hand over what it owns.
	objectCloseMax = 5 * time.Second
	// commonObject is what all sharers update. Each has one of its own besides, which only it updates, and so owns.
	commonObject = "common"
)

// sharing is the part of the run about shared objects: at every peer but the first victim a sharer reads and updates objects of one application.
// The group that keeps their managers is that of the lock, so that its leader is killed too.
type sharing struct {
	d     *demo
	app   string
	peers []int
	stop  context.CancelFunc
	all   sync.WaitGroup

	mu         sync.Mutex
	executions map[uint64]*execution // by epoch
	turns      map[int]map[uint64]int
	failure    error
	changed    chan struct{}

	before, after uint64 // epochs: when an owner was killed, and when all had gone on
	leader        int    // turns of the slowest sharer in the same execution after a leader was killed
	owner         int    // peer that was killed and owned an object; -1: none
	leaderless    time.Duration
	restartTook   time.Duration
}

// execution is what was seen in one.
type execution struct {
	history *history.History
	updates map[string]int // that returned
	begun   map[string]int
	last    map[string]uint64 // the highest version seen
}

// share begins the sharers.
func (d *demo) share(ctx context.Context, at placing) *sharing {
	ctx, stop := context.WithCancel(ctx)
	s := &sharing{
		d: d, app: d.appLikeLock(), stop: stop, owner: -1, executions: make(map[uint64]*execution), turns: make(map[int]map[uint64]int), changed: make(chan struct{}),
	}
	for _, i := range d.alive(at.leader) {
		p, err := d.net.Peer(i)
		if err != nil {
			continue
		}
		s.peers = append(s.peers, i)
		s.turns[i] = make(map[uint64]int)
		s.all.Go(func() {
			err := s.run(ctx, p)
			select {
			case <-p.Killed():
				return
			default:
			}
			if ctx.Err() == nil {
				s.mu.Lock()
				s.failure = errors.Join(s.failure, fmt.Errorf("demo: the sharer at peer %d: %w", i, err))
				s.notifyLocked()
				s.mu.Unlock()
			}
		})
	}
	d.tell("%d peers share %d objects of an application, whose managers the same group keeps: each updates one of its own and a common one, and reads all",
		len(s.peers), len(s.peers)+1)
	return s
}

// appLikeLock returns the name of an application whose managers the group keeps that keeps the lock.
func (d *demo) appLikeLock() string {
	g := d.net.Genesis()
	want := g.PrefixOf(lockKey(d.lock))
	for k := 0; ; k++ {
		name := fmt.Sprintf("demo-%d", k)
		if g.PrefixOf(coherence.AppKey(name)) == want {
			return name
		}
	}
}

// object returns an object's full name, in a directory that the group keeps which keeps the lock.
func (s *sharing) object(name string) string {
	g := s.d.net.Genesis()
	want := g.PrefixOf(lockKey(s.d.lock))
	for k := 0; ; k++ {
		if full := fmt.Sprintf("%d/%s", k, name); g.PrefixOf(coherence.ObjectKey(s.app, full)) == want {
			return full
		}
	}
}

func (s *sharing) notifyLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// run takes part in one execution of the application after the other.
func (s *sharing) run(ctx context.Context, p *testnet.Peer) error {
	var opts []coherence.Option
	if s.d.opts.Sabotage == SabotageStaleCopy {
		opts = append(opts, coherence.WithMistake(access.Stale))
	}
	for {
		app, err := p.Node().Objects().Open(ctx, s.app, opts...)
		if err != nil {
			return err
		}
		if err := s.use(ctx, p, app); !errors.Is(err, coherence.ErrRestarted) {
			if ctx.Err() != nil {
				closing, cancel := context.WithTimeout(context.Background(), objectCloseMax)
				defer cancel()
				return errors.Join(err, app.Close(closing))
			}
			return err
		}
	}
}

// sharer is one peer's part in one execution.
type sharer struct {
	*sharing
	client int
	app    *coherence.App
	e      *execution
	peer   int
	writes uint64
}

// use has a peer's sharer take turns until the execution is over, or ctx.
func (s *sharing) use(ctx context.Context, p *testnet.Peer, app *coherence.App) error {
	epoch := uint64(app.Epoch())
	c := &sharer{sharing: s, client: p.Index(), app: app, peer: p.Index()}
	s.mu.Lock()
	if c.e = s.executions[epoch]; c.e == nil {
		c.e = &execution{history.New(), make(map[string]int), make(map[string]int), make(map[string]uint64)}
		s.executions[epoch] = c.e
	}
	s.mu.Unlock()
	names := map[int]string{-1: s.object(commonObject)}
	for _, i := range s.peers {
		names[i] = s.object(fmt.Sprintf("of-%d", i))
	}
	pause := time.NewTicker(objectPause)
	defer pause.Stop()
	for {
		for _, name := range []string{names[p.Index()], names[-1]} {
			if err := c.update(ctx, name); err != nil {
				return err
			}
		}
		for _, i := range slices.Sorted(maps.Keys(names)) {
			if err := c.read(ctx, names[i]); err != nil {
				return err
			}
		}
		s.mu.Lock()
		s.turns[p.Index()][epoch]++
		s.notifyLocked()
		s.mu.Unlock()
		select {
		case <-pause.C:
		case <-p.Killed():
			return context.Canceled
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// An object holds its version, which every update raises by one, and what was written, which nobody else writes.
func (c *sharer) update(ctx context.Context, name string) error {
	c.writes++
	value := uint64(c.client+1)<<32 | c.writes
	c.mu.Lock()
	c.e.begun[name]++
	c.mu.Unlock()
	op := c.e.history.Call(c.client, history.Write(name, value))
	var version uint64
	err := c.app.Object(name).Update(ctx, func(b []byte) ([]byte, error) {
		was, _ := versioned(b)
		version = was + 1
		return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, version), value), nil
	})
	if err == nil {
		c.e.history.Return(op, history.Answer{Version: version})
		c.seen(name, version, 1)
	}
	return err
}

func (c *sharer) read(ctx context.Context, name string) error {
	op := c.e.history.Call(c.client, history.Read(name))
	b, err := c.app.Object(name).Get(ctx)
	if err == nil {
		version, value := versioned(b)
		c.e.history.Return(op, history.Answer{Value: value, Version: version})
		c.seen(name, version, 0)
	}
	return err
}

func (c *sharer) seen(name string, version uint64, updates int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.e.updates[name] += updates
	c.e.last[name] = max(c.e.last[name], version)
}

func versioned(b []byte) (version, value uint64) {
	if len(b) < 16 {
		return 0, 0
	}
	return binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])
}

// await waits until cond holds, which it asks with s.mu held after every change.
func (s *sharing) await(ctx context.Context, cond func() bool) error {
	for {
		s.mu.Lock()
		ok, failure, changed := cond(), s.failure, s.changed
		s.mu.Unlock()
		switch {
		case failure != nil:
			return failure
		case ok:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("demo: those who share objects do not go on: %w", context.Cause(ctx))
		}
	}
}

// living returns the sharers that are left.
func (s *sharing) living() (all []int) {
	up := s.d.alive(-1)
	for _, i := range s.peers {
		if slices.Contains(up, i) {
			all = append(all, i)
		}
	}
	return all
}

// settled waits until every sharer has had some turns in one execution.
func (s *sharing) settled(ctx context.Context) error {
	living := s.living()
	return s.await(ctx, func() bool {
		for s.before = range s.executions {
			if !slices.ContainsFunc(living, func(i int) bool { return s.turns[i][s.before] < objectTurns }) {
				return true
			}
		}
		return false
	})
}

// leaderKilled waits until every sharer has had turns since the death of a leader, and notes whether the execution was the same.
func (s *sharing) leaderKilled(ctx context.Context, killed time.Time) error {
	s.d.pace(objectLeisure)
	defer s.d.pace(0)
	s.mu.Lock()
	had := make(map[int]int)
	for i, t := range s.turns {
		for _, n := range t {
			had[i] += n
		}
	}
	s.mu.Unlock()
	living := s.living()
	least := func() int {
		least := -1
		for _, i := range living {
			n := -had[i]
			for _, k := range s.turns[i] {
				n += k
			}
			if least < 0 || n < least {
				least = n
			}
		}
		return least
	}
	if err := s.await(ctx, func() bool { return least() >= objectTurns }); err != nil {
		return err
	}
	s.mu.Lock()
	s.leaderless = time.Since(killed)
	s.leader = least()
	same := len(s.executions) == 1
	s.mu.Unlock()
	if same {
		s.d.tell("the objects' managers have another leader, and their application is in the same execution: %d turns each within %v", objectTurns, round(s.leaderless))
	} else {
		s.d.tell("the application of the objects BEGAN ANEW when a leader was killed that had no part in it")
	}
	return nil
}

// ownerKilled waits until the sharers that are left have gone on in another execution, and ends them.
func (s *sharing) ownerKilled(ctx context.Context, victim int, killed time.Time) error {
	s.d.pace(objectLeisure)
	defer s.d.pace(0)
	if slices.Contains(s.peers, victim) {
		s.owner = victim
	}
	living := s.living()
	var epoch uint64
	if err := s.await(ctx, func() bool {
		for epoch = range s.executions {
			if epoch > s.before && !slices.ContainsFunc(living, func(i int) bool { return s.turns[i][epoch] < objectTurns }) {
				return true
			}
		}
		return false
	}); err != nil {
		return err
	}
	s.mu.Lock()
	s.after, s.restartTook = epoch, time.Since(killed)
	s.mu.Unlock()
	s.d.tell("with peer %d its objects are gone: the application began anew, all %d others were told, and go on after %v with empty objects", victim, len(living), round(s.restartTook))
	s.stop()
	s.all.Wait()
	return nil
}

// end ends the sharers, whatever has become of the run.
func (s *sharing) end() {
	if s != nil {
		s.stop()
		s.all.Wait()
	}
}

// operations returns how many were recorded.
func (s *sharing) operations() (n int) {
	if s == nil {
		return 0
	}
	for _, e := range s.executions {
		n += len(e.history.Operations())
	}
	return n
}

// checkCoherent: in each execution there is one order of all reads and updates that keeps the order of every peer, and in which each read finds
// what was written last.
func (s *sharing) checkCoherent() error {
	if s == nil || len(s.executions) == 0 {
		return errors.New("no objects were shared")
	}
	var errs []error
	for _, epoch := range slices.Sorted(maps.Keys(s.executions)) {
		if err := s.executions[epoch].history.CheckSequential(0).Err(); err != nil {
			errs = append(errs, fmt.Errorf("execution %d: %w", epoch, err))
		}
	}
	return errors.Join(errs...)
}

// checkUpdates: no update of an object is lost, and none is made twice. Those that were cut off may have been made or not.
func (s *sharing) checkUpdates() error {
	if s == nil || len(s.executions) == 0 {
		return errors.New("no objects were shared")
	}
	for _, epoch := range slices.Sorted(maps.Keys(s.executions)) {
		e := s.executions[epoch]
		for _, name := range slices.Sorted(maps.Keys(e.begun)) {
			if last := int(e.last[name]); last < e.updates[name] || last > e.begun[name] {
				return fmt.Errorf("execution %d: %s has version %d after %d updates that returned, of %d", epoch, name, last, e.updates[name], e.begun[name])
			}
		}
	}
	return nil
}

// checkKills: the death of a leader had no effect but a pause, and that of an owner began the application anew, which all others heard of.
func (s *sharing) checkKills() error {
	switch {
	case s == nil || s.leader < objectTurns:
		return errors.New("not all who share objects went on after a leader was killed")
	case s.owner < 0:
		return errors.New("no owner of an object was killed")
	case s.after <= s.before:
		return errors.New("the application did not begin anew with the death of an owner")
	case len(s.executions) != 2:
		return fmt.Errorf("the application began %d times; two are what one death of an owner makes", len(s.executions))
	}
	return nil
}
