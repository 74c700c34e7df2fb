package memory

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/coherence"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
	"latchkey/internal/history"
	"latchkey/testnet"
)

var faultsFlag = flag.Int("memory.faults", 3, "faults under which objects are used")

const faultsApp = "faults"

var faultsObjects = []string{"a/x", "a/y", "b/z"}

// value is what an object holds: its version, and a number that nobody writes twice.
type value struct{ version, number uint64 }

func decodeValue(b []byte) (v value) {
	if len(b) == 16 {
		v = value{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}
	}
	return v
}

func (v value) encode() []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, v.version), v.number)
}

// execution is what was recorded of one epoch.
type execution struct {
	*history.History
	mu    sync.Mutex
	first map[string]value // what objects held at first, as far as somebody has seen
	wrote map[uint64]bool  // numbers that were written in it
	err   error
}

// judge is who is told everything.
type judge struct {
	mu         sync.Mutex
	executions map[protocol.Epoch]*execution
	clients    atomic.Int64
	numbers    atomic.Uint64
	saved      atomic.Int64
}

func (j *judge) of(e protocol.Epoch) *execution {
	j.mu.Lock()
	defer j.mu.Unlock()
	x := j.executions[e]
	if x == nil {
		x = &execution{History: history.New(), first: make(map[string]value), wrote: make(map[uint64]bool)}
		j.executions[e] = x
	}
	return x
}

// newest returns the last execution that somebody takes part in.
func (j *judge) newest() (last protocol.Epoch) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for e := range j.executions {
		last = max(last, e)
	}
	return last
}

// found notes a value that was in an object: one that nobody wrote in this execution was there at first.
func (x *execution) found(object string, v value) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.wrote[v.number] {
		return
	}
	if was, ok := x.first[object]; ok && was != v && x.err == nil {
		x.err = fmt.Errorf("%s held %v at first, and %v", object, was, v)
	}
	x.first[object] = v
}

// verdict judges all executions: each by itself, and that what it began with is the state at one point of the execution before it.
func (j *judge) verdict() (operations int, err error) {
	epochs := slices.Sorted(maps.Keys(j.executions))
	var errs []error
	for i := len(epochs) - 2; i >= 0; i-- { // what nobody touched in an execution was there at first as it was in the next one
		x := j.executions[epochs[i]]
		for o, v := range j.executions[epochs[i+1]].first {
			if _, ok := x.first[o]; !ok && !x.wrote[v.number] {
				x.first[o] = v
			}
		}
	}
	for i, e := range epochs {
		x := j.executions[e]
		if x.err != nil {
			errs = append(errs, fmt.Errorf("epoch %d: %w", e, x.err))
		}
		var next *execution
		if i+1 < len(epochs) {
			next = j.executions[epochs[i+1]]
		}
		for _, op := range x.Operations() {
			if v := op.Answer.Version; op.Op.Kind == history.KindWrite && v > 0 && v <= x.first[op.Op.Key].version {
				errs = append(errs, fmt.Errorf("epoch %d: %v made version %d, and %v was there at first", e, op, v, x.first[op.Op.Key]))
			}
		}
		before, after := int(j.clients.Add(1)), int(j.clients.Add(1))
		alone := copied(x.begun(before, true), x.History)
		if next != nil {
			for range 2 { // who finds the same in all of them twice has seen them at one point
				for _, o := range slices.Sorted(maps.Keys(next.first)) {
					v := next.first[o]
					alone.Return(alone.Call(after, history.Read(o)), history.Answer{Value: v.number, Version: v.version})
				}
			}
		}
		r := alone.CheckSequential(0)
		operations += r.Judged
		if err := r.Err(); err != nil {
			errs = append(errs, fmt.Errorf("epoch %d: %w", e, err))
		}
		if r := copied(x.begun(before, false), x.History).CheckRegister(30 * time.Second); r.Err() != nil {
			errs = append(errs, fmt.Errorf("epoch %d, object by object: %w", e, r.Err()))
		}
	}
	return operations, errors.Join(errs...)
}

// begun is a history in which somebody has written what the objects held at first.
func (x *execution) begun(client int, versions bool) *history.History {
	h := history.New()
	for _, o := range slices.Sorted(maps.Keys(x.first)) {
		if v := x.first[o]; v.version > 0 {
			a := history.Answer{}
			if versions {
				a.Version = v.version
			}
			h.Return(h.Call(client, history.Write(o, v.number)), a)
		}
	}
	return h
}

// copied appends what was recorded in from.
func copied(to, from *history.History) *history.History {
	type event struct {
		at   int64
		call bool
		op   int
	}
	ops := from.Operations()
	var events []event
	for i, o := range ops {
		events = append(events, event{o.Call, true, i})
		if o.Return > 0 {
			events = append(events, event{o.Return, false, i})
		}
	}
	slices.SortFunc(events, func(a, b event) int { return int(a.at - b.at) })
	ids := make([]int, len(ops))
	for _, ev := range events {
		if ev.call {
			ids[ev.op] = to.Call(ops[ev.op].Client, ops[ev.op].Op)
		} else if ops[ev.op].NoEffect {
			to.NoEffect(ids[ev.op])
		} else {
			to.Return(ids[ev.op], ops[ev.op].Answer)
		}
	}
	return to
}

// user uses objects at one peer for as long as the peer lives.
type user struct {
	peer  int
	calls atomic.Int64 // that succeeded
	stop  context.CancelFunc
	done  chan struct{}
}

// use opens the application again and again, and reads and writes.
func (j *judge) use(ctx context.Context, net *testnet.Network, u *user) error {
	defer close(u.done)
	pace := time.NewTicker(3 * time.Millisecond)
	defer pace.Stop()
	for ctx.Err() == nil {
		p, err := net.Peer(u.peer)
		if err != nil {
			return nil // it was killed
		}
		app, err := p.Node().Objects().Open(ctx, faultsApp)
		if err != nil {
			select {
			case <-pace.C:
			case <-ctx.Done():
			}
			continue
		}
		x, id := j.of(app.Epoch()), int(j.clients.Add(1))
		for i := 0; ; i++ {
			<-pace.C
			object := faultsObjects[(u.peer+i)%len(faultsObjects)]
			if i%3 == 0 {
				err = j.write(ctx, x, id, app, object)
			} else {
				err = j.read(ctx, x, id, app, object)
			}
			if err != nil {
				break
			}
			u.calls.Add(1)
		}
		switch {
		case errors.Is(err, coherence.ErrRestarted), ctx.Err() != nil:
		case errors.Is(err, coherence.ErrClosed):
		default:
			return fmt.Errorf("peer %d: %w", u.peer, err)
		}
	}
	return nil
}

func (j *judge) read(ctx context.Context, x *execution, id int, app *coherence.App, object string) error {
	op := x.Call(id, history.Read(object))
	b, err := app.Object(object).Get(ctx)
	if err != nil {
		return err
	}
	v := decodeValue(b)
	x.found(object, v)
	x.Return(op, history.Answer{Value: v.number, Version: v.version})
	return nil
}

func (j *judge) write(ctx context.Context, x *execution, id int, app *coherence.App, object string) error {
	v := value{number: j.numbers.Add(1)}
	x.mu.Lock()
	x.wrote[v.number] = true
	x.mu.Unlock()
	op := x.Call(id, history.Write(object, v.number))
	err := app.Object(object).Update(ctx, func(b []byte) ([]byte, error) {
		was := decodeValue(b)
		x.found(object, was)
		v.version = was.version + 1
		return v.encode(), nil
	})
	if err == nil {
		x.Return(op, history.Answer{Version: v.version})
	}
	return err
}

// TestHistoriesUnderFaults uses objects at several peers while the manager's leader is killed, an owner, f peers at once, and while peers are cut off, join
// and leave, with checkpoints in between. Each execution has to be sequentially consistent as a whole and linearizable object by object, and has to begin
// with the state at one point of the one before it.
func TestHistoriesUnderFaults(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute+time.Duration(*faultsFlag)*30*time.Second)
	defer cancel()
	const peers, f = 7, 2
	net, err := testnet.Up(ctx, testnet.Options{N: peers, F: f, Depth: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { net.Close() })
	if err := net.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	j := &judge{executions: make(map[protocol.Epoch]*execution)}
	users := make(map[int]*user)
	var all sync.WaitGroup
	begin := func(i int) {
		c, stop := context.WithCancel(ctx)
		u := &user{peer: i, stop: stop, done: make(chan struct{})}
		users[i] = u
		all.Go(func() {
			if err := j.use(c, net, u); err != nil && c.Err() == nil {
				t.Error(err)
			}
		})
	}
	// progress waits until every user who lives has done something more.
	progress := func(after string) {
		t.Helper()
		at := make(map[int]int64)
		for i, u := range users {
			at[i] = u.calls.Load()
		}
		start := time.Now()
		for i, u := range users {
			for u.calls.Load() < at[i]+10 {
				select {
				case <-time.After(time.Millisecond):
				case <-ctx.Done():
					t.Fatalf("%s: peer %d does not go on: %v", after, i, context.Cause(ctx))
				}
			}
		}
		t.Logf("%s: all go on after %v", after, time.Since(start).Round(time.Millisecond))
	}
	end := func(i int) {
		if u := users[i]; u != nil {
			delete(users, i)
			u.stop()
			<-u.done
		}
	}
	kill := func(is ...int) {
		for _, i := range is {
			if err := net.Kill(i); err != nil {
				t.Fatal(err)
			}
		}
		for _, i := range is {
			end(i)
		}
	}
	restart := func(is ...int) {
		for _, i := range is {
			if err := net.Restart(ctx, i); err != nil {
				t.Fatal(err)
			}
			begin(i)
		}
	}
	leads := func(key keyspace.Key) int {
		for i := range peers {
			if p, err := net.Peer(i); err == nil {
				if l, err := p.Node().Groups().Leader(ctx, key); err == nil {
					return net.IndexOf(peer.ID(l.ID).String())
				}
			}
		}
		t.Fatal("no leader is found")
		return 0
	}
	checkpoint := func() {
		p, err := net.Peer(slices.Min(slices.Collect(maps.Keys(users))))
		if err != nil {
			return
		}
		c, stop := context.WithTimeout(ctx, 10*time.Second)
		defer stop()
		if _, err := p.Node().Objects().Checkpoint(c, faultsApp); err == nil {
			j.saved.Add(1)
		} else {
			t.Logf("a checkpoint: %v", err)
		}
	}
	for i := range 4 {
		begin(i)
	}
	progress("at first")
	r := rand.New(rand.NewPCG(1, uint64(*faultsFlag)))
	for n := range *faultsFlag {
		if n%2 == 0 {
			checkpoint()
		}
		switch n % 6 {
		case 0:
			victim := leads(coherence.ObjectKey(faultsApp, faultsObjects[0]))
			kill(victim)
			progress("the leader of an object's managers was killed")
			restart(victim)
		case 1: // who has just written owns the object
			victim := slices.Sorted(maps.Keys(users))[r.IntN(len(users))]
			p, _ := net.Peer(victim)
			go p.Node().Objects().Checkpoint(ctx, faultsApp) // one that is likely to be under way
			for was := users[victim].calls.Load(); users[victim].calls.Load() < was+3; {
				select {
				case <-time.After(time.Millisecond):
				case <-ctx.Done():
					t.Fatal("nobody writes")
				}
			}
			kill(victim)
			progress("an owner was killed")
			restart(victim)
		case 2:
			victims := []int{slices.Sorted(maps.Keys(users))[r.IntN(len(users))], leads(coherence.AppKey(faultsApp))}
			slices.Sort(victims)
			victims = slices.Compact(victims)[:f]
			kill(victims...)
			progress(fmt.Sprintf("%d peers were killed at once", len(victims)))
			restart(victims...)
		case 3:
			lonely := slices.Sorted(maps.Keys(users))[r.IntN(len(users))]
			if err := net.Partition(ctx, []int{lonely}); err != nil {
				t.Fatal(err)
			}
			u := users[lonely]
			delete(users, lonely)
			for was := j.newest(); j.newest() == was; { // the others go on in an execution of their own
				select {
				case <-time.After(time.Millisecond):
				case <-ctx.Done():
					t.Fatal("a peer is cut off, and nobody cares")
				}
			}
			progress("a peer is cut off")
			if err := net.Heal(ctx); err != nil {
				t.Fatal(err)
			}
			users[lonely] = u
			progress("it is back")
		case 4: // the groups change their views
			victim := leads(coherence.ObjectKey(faultsApp, faultsObjects[2]))
			end(victim)
			if err := net.Leave(ctx, victim); err != nil {
				t.Fatal(err)
			}
			progress("a leader has left")
			restart(victim)
		case 5:
			i, err := net.Join(ctx)
			if err == nil {
				begin(i)
				progress("somebody has joined")
			}
		}
	}
	progress("at last")
	for _, u := range users {
		u.stop()
	}
	all.Wait()
	operations, err := j.verdict()
	if err != nil {
		t.Error(err)
	}
	t.Logf("%d operations in %d executions, %d checkpoints", operations, len(j.executions), j.saved.Load())
}

// TestVerdictsOfExecutions: an execution that begins with what was never there together is found out.
func TestVerdictsOfExecutions(t *testing.T) {
	for _, c := range []struct {
		name string
		next map[string]value
		ok   bool
	}{
		{"the state in between", map[string]value{"x": {1, 11}, "y": {}}, true},
		{"the last state", map[string]value{"x": {1, 11}, "y": {1, 12}}, true},
		{"nothing", map[string]value{"x": {}, "y": {}}, true},
		{"a torn state", map[string]value{"x": {}, "y": {1, 12}}, false},
		{"what nobody wrote", map[string]value{"x": {2, 13}}, false},
		{"what nobody has touched since", map[string]value{"x": {}, "z": {5, 14}}, true},
	} {
		j := &judge{executions: make(map[protocol.Epoch]*execution)}
		x := j.of(1)
		for i, o := range []string{"x", "y"} {
			x.wrote[uint64(11+i)] = true
			x.Return(x.Call(1, history.Write(o, uint64(11+i))), history.Answer{Version: 1})
		}
		next := j.of(2)
		for o, v := range c.next {
			next.found(o, v)
			next.Return(next.Call(2, history.Read(o)), history.Answer{Value: v.number, Version: v.version})
		}
		j.clients.Store(9)
		if _, err := j.verdict(); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	x := new(judge)
	x.executions = make(map[protocol.Epoch]*execution)
	x.of(1).found("x", value{3, 7})
	if x.of(1).found("x", value{4, 8}); x.of(1).err == nil {
		t.Error("an object held two things at first")
	}
}
