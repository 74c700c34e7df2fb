package lockservice

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"testing"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/lockservice/pb"
	"latchkey/replicagroup"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/session"
)

// world is one replica group in this process: a real session table with a real lock machine behind it, whose log is the
// order of the calls. Messages take delay each way. Tests run it under virtual time.
type world struct {
	tb    testing.TB
	delay time.Duration // set before use

	mu      sync.Mutex
	table   *session.Table
	clock   *testClock // of the leader: it stamps entries
	index   uint64
	clients map[order.ClientID]*groupClient
	timer   *time.Timer // for the next tick of log time; nil once the world has ended
}

const (
	worldTTLMax = time.Minute
	sessionTTL  = 10 * time.Second
)

func newWorld(tb testing.TB) *world {
	w := &world{tb: tb, delay: 5 * time.Millisecond, clock: newTestClock(0), clients: make(map[order.ClientID]*groupClient)}
	w.timer = time.AfterFunc(time.Hour, w.tick)
	w.restart()
	tb.Cleanup(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.timer.Stop()
		w.timer = nil
	})
	return w
}

func worldMachine() *Machine {
	return NewMachine(MachineConfig{TTLMax: worldTTLMax, Drift: automaton.DriftDefault})
}

func (w *world) newTable() *session.Table {
	return session.NewTable(automaton.DriftDefault, map[string]session.Machine{ServiceName: worldMachine()})
}

// restart makes the table anew from its snapshot, as a replica does that joins or starts again.
func (w *world) restart() {
	w.mu.Lock()
	defer w.mu.Unlock()
	fresh := w.newTable()
	if w.table != nil {
		if err := fresh.Restore(w.table.Snapshot()); err != nil {
			w.tb.Fatalf("restore: %v", err)
		}
		if fresh.Digest() != w.table.Digest() {
			w.tb.Error("a restored replica has another state")
		}
	}
	w.table = fresh
}

func (w *world) tick() {
	w.apply(order.Command{Service: session.TickService})
}

// apply executes a command at the end of the log and delivers what it pushes.
func (w *world) apply(c order.Command) session.Result {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer == nil {
		return session.Result{Status: session.Session}
	}
	var out session.Outputs
	w.index++
	now := order.Stamp{Boot: 1, At: time.Duration(w.clock.Now())}
	res := w.table.Apply(order.Entry{Index: w.index, Kind: order.Normal, Stamp: now, Cmd: c}, &out)
	if after, ok := w.table.NextTick(now); ok {
		w.timer.Reset(w.clock.real(after))
	}
	for _, o := range out.List {
		if to := w.clients[o.Client]; to != nil && !to.deaf {
			time.AfterFunc(w.delay, func() { to.hear(o.Data) })
		}
	}
	return res
}

// endSession lets a client's session end at once.
func (w *world) endSession(c *groupClient) {
	w.apply(order.Command{Client: c.id, Author: c.peer, Service: session.Service, Data: session.CloseData()})
}

// groupClient is one session with the world's group: a [Groups].
type groupClient struct {
	world *world
	peer  keyspace.NodeID
	keep  *time.Timer

	mu       sync.Mutex
	id       order.ClientID
	seq      uint64
	cut      bool // nothing gets through; calls wait for their context
	down     bool // calls fail with ErrNoQuorum at once
	mute     bool // answers get lost
	lapsed   bool // the group has forgotten the session, and the next command with it
	closed   bool
	sent     int // commands
	notify   func(order.GroupID, []byte)
	sessions uint64

	deaf bool // pushes get lost; guarded by world.mu
}

func (w *world) client(n byte) *groupClient {
	c := &groupClient{world: w, peer: keyspace.NodeIDOf(fmt.Sprint("peer ", n))}
	c.open()
	c.keep = time.AfterFunc(sessionTTL/3, c.keepAlive)
	w.tb.Cleanup(func() { c.keep.Stop() })
	return c
}

// open begins the client's next session.
func (c *groupClient) open() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sessions++
	copy(c.id[:], c.peer[:8])
	binary.BigEndian.PutUint64(c.id[8:], c.sessions)
	c.seq = 0
	if r := c.world.apply(order.Command{Client: c.id, Author: c.peer, Service: session.Service, Data: session.OpenData(sessionTTL)}); r.Status != session.OK {
		c.world.tb.Errorf("open: %v", r.Status)
	}
	c.world.mu.Lock()
	defer c.world.mu.Unlock()
	c.world.clients[c.id] = c
}

func (c *groupClient) keepAlive() {
	c.mu.Lock()
	cut, id := c.cut || c.down, c.id
	c.mu.Unlock()
	if !cut {
		c.world.apply(order.Command{Client: id, Author: c.peer, Service: session.Service, Data: session.KeepAliveData()})
	}
	c.keep.Reset(sessionTTL / 3)
}

func (c *groupClient) hear(data []byte) {
	c.mu.Lock()
	fn := c.notify
	if c.cut || c.closed {
		fn = nil
	}
	c.mu.Unlock()
	if fn != nil {
		fn(order.GroupID{}, data)
	}
}

// set changes the client's faults.
func (c *groupClient) set(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
}

func (c *groupClient) setDeaf(deaf bool) {
	c.world.mu.Lock()
	defer c.world.mu.Unlock()
	c.deaf = deaf
}

func (c *groupClient) commands() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sent
}

// travel takes one message's time.
func (c *groupClient) travel(ctx context.Context) error {
	c.mu.Lock()
	cut, down, closed := c.cut, c.down, c.closed
	c.mu.Unlock()
	switch {
	case closed:
		return replicagroup.ErrClosed
	case down:
		return replicagroup.ErrNoQuorum
	case cut:
		<-ctx.Done()
		return replicagroup.ErrOutcomeUnknown
	}
	if c.world.delay == 0 {
		return nil
	}
	select {
	case <-time.After(c.world.delay):
		return nil
	case <-ctx.Done():
		return replicagroup.ErrOutcomeUnknown
	}
}

// Do takes up a new session when the group has forgotten the old one, as the client of replica groups does: what was refused for
// that was not run.
func (c *groupClient) Do(ctx context.Context, key keyspace.Key, service string, data []byte) ([]byte, error) {
	if err := c.travel(ctx); err != nil {
		return nil, err
	}
	c.mu.Lock()
	if c.lapsed {
		c.lapsed = false
		c.mu.Unlock()
		c.open()
		return nil, replicagroup.ErrOutcomeUnknown
	}
	c.seq++
	c.sent++
	cmd := order.Command{Client: c.id, Seq: c.seq, Acked: c.seq - min(c.seq, 32), Author: c.peer, Service: service, Data: data}
	c.mu.Unlock()
	res := c.world.apply(cmd)
	if res.Status == session.Session {
		c.mu.Lock()
		stale := c.id == cmd.Client
		c.mu.Unlock()
		if stale {
			c.open()
		}
		return c.Do(ctx, key, service, data)
	}
	c.mu.Lock()
	lost := c.mute
	c.mu.Unlock()
	if lost {
		<-ctx.Done()
		return nil, replicagroup.ErrOutcomeUnknown
	}
	if err := c.travel(ctx); err != nil {
		return nil, replicagroup.ErrOutcomeUnknown
	}
	if res.Status != session.OK {
		return nil, fmt.Errorf("%w: %v", replicagroup.ErrRefused, res.Status)
	}
	return res.Data, nil
}

func (c *groupClient) Query(ctx context.Context, key keyspace.Key, service string, data []byte) ([]byte, error) {
	if err := c.travel(ctx); err != nil {
		return nil, err
	}
	c.world.mu.Lock()
	status, res := c.world.table.Query(service, c.peer, data)
	c.world.mu.Unlock()
	if status != session.OK {
		return nil, fmt.Errorf("%w: %v", replicagroup.ErrRefused, status)
	}
	return res, c.travel(ctx)
}

func (c *groupClient) Notify(service string, fn func(order.GroupID, []byte)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.notify = fn
}

// testClock runs at a rate that differs from the world's by some parts per million.
type testClock struct {
	start time.Time
	ppm   int64 // set before use
	mu    sync.Mutex
	jumps uint64
	slept time.Duration
}

func newTestClock(ppm int64) *testClock { return &testClock{start: time.Now(), ppm: ppm} }

func (c *testClock) Now() automaton.Instant {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := time.Since(c.start)
	return automaton.Instant(c.slept + d + time.Duration(float64(d)*float64(c.ppm)/1e6))
}

// real returns how long it takes until the clock has moved by d, rounded up.
func (c *testClock) real(d time.Duration) time.Duration {
	return time.Duration(float64(d)/(1+float64(c.ppm)/1e6)) + time.Microsecond
}

func (c *testClock) Jumps() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.jumps
}

func (c *testClock) jump() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.jumps++
}

// sleep lets the clock go on while everything else stands still.
func (c *testClock) sleep(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.slept += d
}

// answers is a group that answers everything with the same bytes.
type answers struct{ b []byte }

func (a answers) Do(context.Context, keyspace.Key, string, []byte) ([]byte, error) { return a.b, nil }
func (a answers) Query(context.Context, keyspace.Key, string, []byte) ([]byte, error) {
	return a.b, nil
}
func (a answers) Notify(string, func(order.GroupID, []byte)) {}

// decodeGranted reads an output that tells of a grant.
func decodeGranted(b []byte) (*pb.Granted, error) {
	g, ended, err := decodeOutput(b)
	if err == nil && ended != nil {
		err = errMalformed
	}
	return g, err
}
