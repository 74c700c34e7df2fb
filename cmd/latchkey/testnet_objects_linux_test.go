package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"latchkey/internal/history"
	"latchkey/node/api"
	"latchkey/testnet"
)

const sharedApp = "shared"

var sharedObjects = []string{"a/x", "a/y", "z"}

// sharers read and write objects through the daemons of some peers, and record what they see, execution by execution.
type sharers struct {
	n       *liveNet
	mu      sync.Mutex
	epochs  map[uint64]*history.History
	numbers atomic.Uint64
	clients atomic.Int64
	calls   map[int]*atomic.Int64 // that succeeded, by peer
	all     sync.WaitGroup
	stop    context.CancelFunc
}

func share(n *liveNet, peers ...int) *sharers {
	ctx, stop := context.WithCancel(n.t.Context())
	s := &sharers{n: n, epochs: make(map[uint64]*history.History), calls: make(map[int]*atomic.Int64), stop: stop}
	status := n.status()
	for _, i := range peers {
		s.calls[i] = new(atomic.Int64)
		s.all.Go(func() { s.use(ctx, i, status.Peers[i].API) })
	}
	return s
}

// use goes on until ctx ends, whatever happens to the daemon.
func (s *sharers) use(ctx context.Context, peer int, socket string) {
	pace := time.NewTicker(5 * time.Millisecond)
	defer pace.Stop()
	for ctx.Err() == nil {
		<-pace.C
		c, err := api.Dial(socket)
		if err != nil {
			continue
		}
		s.execution(ctx, peer, c, pace)
	}
}

// execution takes part in one execution of the application.
func (s *sharers) execution(ctx context.Context, peer int, c *api.Client, pace *time.Ticker) {
	_, epoch, err := c.GetObject(ctx, api.Target{App: sharedApp, Name: "any"})
	if err != nil {
		if _, err = c.SetObject(ctx, api.Target{App: sharedApp, Name: "any"}, nil); err != nil { // it may have to be founded
			return
		}
		return
	}
	s.mu.Lock()
	h := s.epochs[epoch]
	if h == nil {
		h = history.New()
		s.epochs[epoch] = h
	}
	s.mu.Unlock()
	id := int(s.clients.Add(1))
	for i := 0; ; i++ {
		<-pace.C
		at := api.Target{App: sharedApp, Name: sharedObjects[(peer+i)%len(sharedObjects)], Epoch: epoch}
		if i%3 == 0 {
			v := s.numbers.Add(1)
			op := h.Call(id, history.Write(at.Name, v))
			if _, err := c.SetObject(ctx, at, strconv.AppendUint(nil, v, 10)); err != nil {
				return // it may have been performed
			}
			h.Return(op, history.Answer{})
		} else {
			op := h.Call(id, history.Read(at.Name))
			b, _, err := c.GetObject(ctx, at)
			if err != nil {
				return
			}
			v := uint64(0)
			if len(b) > 0 {
				if v, err = strconv.ParseUint(string(b), 10, 64); err != nil {
					s.n.t.Errorf("%s holds %q", at.Name, b)
				}
			}
			h.Return(op, history.Answer{Value: v})
		}
		s.calls[peer].Add(1)
	}
}

// goOn waits until all but some have done more.
func (s *sharers) goOn(after string, but ...int) {
	t := s.n.t
	t.Helper()
	was := make(map[int]int64)
	for i, c := range s.calls {
		was[i] = c.Load()
	}
	start := time.Now()
	eventually(t, "all go on after "+after, func() bool {
		for i, c := range s.calls {
			if !slices.Contains(but, i) && c.Load() < was[i]+10 {
				return false
			}
		}
		return true
	})
	t.Logf("%s: all go on after %v", after, time.Since(start).Round(time.Millisecond))
}

// leader returns the peer that leads the group which keeps an object's manager, as another one sees it.
func (s *sharers) leader(ask int) (leader int) {
	t, peers := s.n.t, s.n.status().Peers
	t.Helper()
	daemon, err := api.Dial(peers[ask].API)
	if err != nil {
		t.Fatal(err)
	}
	defer daemon.Close()
	eventually(t, "the objects' managers have a leader", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), waitMax)
		defer cancel()
		info, err := daemon.Object(ctx, api.Target{App: sharedApp, Name: sharedObjects[0]})
		if err != nil || info.Group == nil {
			return false
		}
		leader = slices.IndexFunc(peers, func(p testnet.PeerStatus) bool { return p.Peer == info.Group.Leader })
		return leader >= 0 && s.n.status().Peers[leader].Up
	})
	return leader
}

// judge ends the use, and judges each execution by itself.
func (s *sharers) judge() {
	s.stop()
	s.all.Wait()
	operations := 0
	for _, e := range slices.Sorted(maps.Keys(s.epochs)) {
		r, o := s.epochs[e].CheckSequential(0), s.epochs[e].CheckRegister(time.Minute)
		operations += r.Judged
		if err := errors.Join(r.Err(), o.Err()); err != nil {
			s.n.t.Errorf("epoch %d: %v", e, err)
		}
	}
	s.n.t.Logf("%d operations in %d executions", operations, len(s.epochs))
}

// TestObjectsAreCoherentUnderKills has processes share objects while the one that leads their managers is killed and frozen, and one of those that
// read and write is killed: what is read and written is sequentially consistent in each execution, and linearizable object by object.
func TestObjectsAreCoherentUnderKills(t *testing.T) {
	t.Parallel()
	const peers = 6
	n := upLive(t, socketDir(t), "--mode", "process", "-n", fmt.Sprint(peers), "--depth", "1")
	s := share(n, 0, 1, 2)
	s.goOn("the beginning")
	for range *loadRounds {
		leader := s.leader(3)
		n.verb(exitOK, fmt.Sprint("kill ", leader))
		s.goOn("a leader was killed", leader)
		n.verb(exitOK, fmt.Sprint("restart ", leader))
		leader = s.leader(4)
		n.verb(exitOK, fmt.Sprint("pause ", leader))
		s.goOn("a leader was frozen", leader)
		n.verb(exitOK, fmt.Sprint("resume ", leader))
		n.verb(exitOK, "kill 1")
		s.goOn("one that reads and writes was killed", 1)
		n.verb(exitOK, "restart 1")
		s.goOn("it is back")
	}
	s.judge()
}
