package lockservice

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"latchkey/replicagroup/placement"
)

// byProtocol returns a peer's Lock by one protocol.
func (p *sigmaHost) byProtocol(by Protocol) func(context.Context, string, ...Option) (*Handle, error) {
	return func(ctx context.Context, name string, opts ...Option) (*Handle, error) {
		return p.locks.Lock(ctx, name, append(opts, WithProtocol(by))...)
	}
}

const namesMax = 20

// TestProtocolsExcludeEachOther has clients of both protocols take the same names, alone and to share, while voters leave, crash, restart
// and lead no more. Somebody holds a lock all the time, which others want by the other protocol.
func TestProtocolsExcludeEachOther(t *testing.T) {
	t.Parallel()
	w := newHosts(t, 6, func(w *hosts) {
		w.plan = placement.TestnetPlanTimes()
		w.plan.Every, w.plan.Fail, w.plan.Damp = 250*time.Millisecond, time.Second, 250*time.Millisecond
		w.genesis.TTLMax = 10 * hostsTTL
	})
	voters, other := w.among("n")
	l := newLedger(t)
	// It is held by the log soon, which serves nobody while it has no leader, on a busy machine for some seconds.
	held, err := other.locks.Lock(w.ctx(), w.name(namesMax), WithTTL(w.genesis.TTLMax))
	if err != nil {
		t.Fatal(err)
	}
	l.enter(held)
	ctx, cancel := context.WithCancel(w.ctx())
	defer cancel()
	var load sync.WaitGroup
	var sigma, group, shared atomic.Int64
	counted := func(n *atomic.Int64, enter func(*Handle)) func(*Handle) {
		return func(h *Handle) { n.Add(1); enter(h) }
	}
	// Two names are wanted all the time; the others are idle between two uses, so that they are the voters' again with each view.
	var names []string
	for i := range namesMax {
		names = append(names, w.name(i), w.name(i%2))
	}
	wanted := make(chan *Handle, 2)
	for _, p := range w.all {
		if slices.Contains(voters, p) {
			continue
		}
		for range 2 {
			load.Go(func() { p.busyBy(ctx, l, counted(&sigma, l.enter), p.byProtocol(ProtocolSigma), names...) })
		}
		load.Go(func() { p.busyBy(ctx, l, counted(&group, l.enter), p.byProtocol(ProtocolGroup), names...) })
		load.Go(func() { p.busyBy(ctx, l, counted(&shared, l.share), p.locks.RLock, names...) })
	}
	for _, by := range []Protocol{ProtocolGroup, ProtocolSigma} {
		load.Go(func() {
			h, err := other.byProtocol(by)(w.ctx(), held.Name(), WithTTL(hostsTTL))
			if err != nil {
				t.Error(err)
				return
			}
			l.enter(h)
			l.leave(h)
			mustRelease(t, h)
			wanted <- h
		})
	}
	all := func(what string) {
		t.Helper()
		began := time.Now()
		a, b, c := sigma.Load(), group.Load(), shared.Load()
		w.until(what, func() bool { return sigma.Load() > a+20 && group.Load() > b+10 && shared.Load() > c+10 })
		t.Logf("%s: %v", what, time.Since(began))
		if held.Context().Err() != nil {
			t.Fatalf("the holder has lost its lock: %v", context.Cause(held.Context()))
		}
	}
	all("locks are taken by all")
	w.until("the table knows who holds the lock", func() bool {
		i, err := other.locks.Info(w.ctx(), held.Name())
		return err == nil && i.Held && i.Confirmed && i.Token == held.Token() && i.Waiting == 2 && i.Protocol == ProtocolGroup && named(i.Holder, held)
	})
	voters[0].kill() // which led
	all("locks are taken without the leader")
	w.untilReplaced(voters[0].node())
	all("locks are taken with the new voter")
	voters[0].start()
	gone := voters[1].node()
	if err := voters[1].groups.Leave(w.ctx()); err != nil {
		t.Error(err)
	}
	voters[1].stop()
	w.untilReplaced(gone)
	all("locks are taken after one has left")
	voters[2].kill()
	voters[2].start()
	all("locks are taken after one has restarted")
	select {
	case <-wanted:
		t.Error("the lock that is held was granted to another")
	default:
	}
	l.leave(held)
	mustRelease(t, held)
	<-wanted
	<-wanted
	var voted, followed uint64
	w.until("voters and the table have granted locks", func() bool {
		voted, followed = 0, 0
		for _, p := range w.all {
			s := p.sigma.Stats()
			voted, followed = voted+s.Acquired-s.Followed, followed+s.Followed
		}
		return voted > 20 && followed > 20
	})
	cancel()
	load.Wait()
	t.Logf("%d locks by sigma, %d of them of voters and %d of the table, %d by group, %d shared", sigma.Load(), voted, followed, group.Load(), shared.Load())
}
