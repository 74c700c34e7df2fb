package coherence_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"latchkey/coherence"
	"latchkey/coherence/protocol"
	"latchkey/internal/history"
)

// step is a call of a thread, and what it saw.
type step struct {
	call   history.Op
	answer history.Answer
}

// record has what threads did in each execution: what an execution that began from a checkpoint inherits of an earlier one, and what it did.
type record struct {
	mu   sync.Mutex
	logs map[string]map[protocol.Epoch][]step
	bad  error
	stop atomic.Bool
}

// position is the state of a thread: how many steps it had done, in which execution.
type position struct {
	Epoch protocol.Epoch
	Steps int
}

// begin notes that a thread goes on from a position, in an execution.
func (r *record) begin(name string, at position, e protocol.Epoch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.logs[name] == nil {
		r.logs[name] = make(map[protocol.Epoch][]step)
	}
	before := r.logs[name][at.Epoch]
	if len(before) < at.Steps || at.Epoch == e && len(before) != at.Steps {
		r.bad = errors.Join(r.bad, fmt.Errorf("thread %s begins in epoch %d at %+v, where it had done %d steps", name, e, at, len(before)))
		return
	}
	if at.Epoch != e && len(r.logs[name][e]) > 0 {
		r.bad = errors.Join(r.bad, fmt.Errorf("thread %s begins twice in epoch %d", name, e))
		return
	}
	r.logs[name][e] = append([]step(nil), before[:at.Steps]...)
}

func (r *record) note(name string, e protocol.Epoch, s step) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.logs[name][e] = append(r.logs[name][e], s)
	return len(r.logs[name][e])
}

// kind is of threads that read and write objects until they are to stop. What they write nobody else writes, in any execution.
func (r *record) kind(names []string) coherence.ThreadFunc {
	return func(ctx context.Context, t *coherence.Thread) error {
		var at position
		if _, err := t.State(&at); err != nil {
			return err
		}
		e := t.Epoch()
		r.begin(t.Name(), at, e)
		at.Epoch = e
		draw := rand.New(rand.NewPCG(uint64(t.Name()[1]), uint64(at.Steps)))
		for !r.stop.Load() {
			if err := t.SafePoint(ctx, at); err != nil {
				return err
			}
			for range 1 + draw.IntN(3) {
				s, err := touch(ctx, t.Object(names[draw.IntN(len(names))]), uint64(t.Name()[1])<<56|uint64(e)<<48|uint64(at.Steps+1), draw.IntN(3) == 0)
				if err != nil {
					return err
				}
				at.Steps = r.note(t.Name(), e, s)
			}
			time.Sleep(time.Duration(draw.IntN(1000)) * time.Microsecond) // as much work as a checker can judge
		}
		return nil
	}
}

// touch reads or writes an object.
func touch(ctx context.Context, o *coherence.Object, value uint64, write bool) (s step, err error) {
	if !write {
		b, err := o.Get(ctx)
		return step{history.Read(o.Name()), history.Answer{Value: second(b), Version: number(b)}}, err
	}
	var version uint64
	err = o.Update(ctx, func(b []byte) ([]byte, error) {
		version = number(b) + 1
		return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, version), value), nil
	})
	return step{history.Write(o.Name(), value), history.Answer{Version: version}}, err
}

// judge returns an error if what an execution and those before it that it inherits from have done is not one sequentially consistent history.
func (r *record) judge(e protocol.Epoch) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := history.New()
	client := 0
	for _, logs := range r.logs {
		for _, s := range logs[e] {
			h.Return(h.Call(client, s.call), s.answer)
		}
		client++
	}
	res := h.CheckSequential(0)
	return res.Judged, errors.Join(r.bad, res.Err())
}

// TestARestartShowsOneCut has threads read and write while checkpoints are made and given up, threads move, executions end, and a host dies in the midst
// of a checkpoint. What each execution did, after what its checkpoint says that the one before had done, is one sequentially consistent history.
func TestARestartShowsOneCut(t *testing.T) {
	t.Parallel()
	net, ctx := up(t, 7)
	lead := leader(t, ctx, net, coherence.AppKey("app"))
	r := &record{logs: make(map[string]map[protocol.Epoch][]step)}
	names := []string{"a", "b", "c/d", "c/e"}
	var peers []int
	var app *coherence.App
	for i := range 7 {
		if i != lead && len(peers) < 4 {
			peers = append(peers, i)
			app = open(t, ctx, net, i, "app")
			register(t, app, "k", r.kind(names))
		}
	}
	first, err := net.Peer(peers[0])
	if err != nil {
		t.Fatal(err)
	}
	objects := first.Node().Objects()
	wait := func(e protocol.Epoch) protocol.Epoch {
		t.Helper()
		for {
			i, err := objects.Info(ctx, "app")
			if err != nil {
				t.Fatal(err)
			}
			if i.Epoch >= e && i.State.String() == "RUNNING" {
				return i.Epoch
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	for i := range 4 {
		if err := app.Go(ctx, fmt.Sprint("t", i), "k", nil); err != nil {
			t.Fatal(err)
		}
	}
	saved, aborted := 0, 0
	checkpoint := func(within time.Duration) {
		short, cancel := context.WithTimeout(ctx, within)
		defer cancel()
		switch _, err := objects.Checkpoint(short, "app"); {
		case err == nil:
			saved++
		case errors.Is(err, coherence.ErrAborted):
			aborted++
		case !errors.Is(err, coherence.ErrRestarted):
			t.Error(err)
		}
	}
	var epochs []protocol.Epoch
	for round := range 3 {
		checkpoint(20 * time.Second)
		var all sync.WaitGroup
		for i := range 4 { // moves, and a checkpoint among them
			all.Go(func() {
				to, _ := net.Peer(peers[(i+round)%3])
				objects.Migrate(ctx, "app", fmt.Sprint("t", i), to.Node().ID())
			})
		}
		checkpoint(time.Duration(round) * 10 * time.Millisecond)
		all.Wait()
		all.Go(func() { checkpoint(20 * time.Second) })
		if round == 1 {
			if err := net.Kill(peers[3]); err != nil {
				t.Fatal(err)
			}
			epochs = append(epochs, wait(epochs[len(epochs)-1]+1))
		} else {
			e, err := objects.Restart(ctx, "app")
			if err != nil {
				t.Fatal(err)
			}
			epochs = append(epochs, wait(e))
		}
		all.Wait()
	}
	checkpoint(20 * time.Second)
	r.stop.Store(true)
	last := open2(t, ctx, objects, "app")
	for i := range 4 {
		if err := last.Wait(ctx, fmt.Sprint("t", i)); err != nil && !errors.Is(err, coherence.ErrNoThread) {
			t.Error(err)
		}
	}
	for _, e := range append(epochs, last.Epoch()) {
		n, err := r.judge(e)
		t.Logf("epoch %d: %d operations", e, n)
		if err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d checkpoints saved, %d given up", saved, aborted)
	if saved < 3 {
		t.Errorf("%d checkpoints were saved", saved)
	}
}

// open2 opens an application on a node, where it may have gone on by itself.
func open2(t *testing.T, ctx context.Context, s *coherence.Service, name string) *coherence.App {
	t.Helper()
	for {
		app, err := s.Open(ctx, name)
		if errors.Is(err, coherence.ErrOpen) {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		return app
	}
}
