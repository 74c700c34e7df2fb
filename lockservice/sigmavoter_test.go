package lockservice

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	libp2ppeer "github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/internal/driver"
	"latchkey/lockservice/sigma"
	sigmapb "latchkey/lockservice/sigma/pb"
	"latchkey/lockservice/voterlog"
	"latchkey/replicagroup"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/placement"
	"latchkey/replicagroup/session"
)

// hosts is an overlay of real peers on the loopback, in which locks are taken by protocol sigma.
type hosts struct {
	tb      testing.TB
	genesis placement.Genesis
	plan    placement.PlanTimes
	fixed   bool
	all     []*sigmaHost
}

// sigmaHost is one peer, which is a client of locks and may be a voter.
type sigmaHost struct {
	w       *hosts
	host    host.Host
	store   *replicagroup.MemoryStore
	log     *voterlog.Log
	overlay *dht.Overlay
	groups  *replicagroup.Host
	sigma   *Sigma
	locks   *Service
	voters  *SigmaVoters
	// mute loses every frame of protocol sigma that this peer's voters send. They hear all that comes, and raft and heartbeats go on.
	mute atomic.Bool
	// grants says how many grants this peer's locks have had of each voter.
	grants struct {
		sync.Mutex
		of map[keyspace.NodeID]int
	}
}

const (
	hostsTTL    = 2 * time.Second // of every lock here
	hostsTTLMax = 4 * time.Second
	// hostsWait bounds every wait of these tests for what should come, and on an idle machine does within seconds.
	hostsWait = time.Minute
)

// newHosts starts n peers, of which the first three have founded the overlay. Groups have three voters.
func newHosts(tb testing.TB, n int, change func(*hosts)) *hosts {
	tb.Helper()
	w := &hosts{tb: tb, genesis: placement.Defaults()}
	g := &w.genesis
	g.Name, g.F, g.RootKey, g.TTLMax = tb.Name(), 1, make(ed25519.PublicKey, ed25519.PublicKeySize), hostsTTLMax
	rand.Read(g.Nonce[:])
	change(w)
	for i := range n {
		h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableRelay(), libp2p.DisableMetrics())
		if err != nil {
			tb.Fatal(err)
		}
		p := &sigmaHost{w: w, host: h, store: replicagroup.NewMemoryStore(), log: voterlog.NewMemory()}
		p.grants.of = make(map[keyspace.NodeID]int)
		w.all = append(w.all, p)
		if i < 3 {
			founder := placement.Peer{ID: string(h.ID())}
			for _, a := range h.Addrs() {
				founder.Addrs = append(founder.Addrs, a.String())
			}
			g.Founders = append(g.Founders, placement.Host{Peer: founder, Store: p.store.ID()})
		}
	}
	for i, p := range w.all {
		if i < 3 {
			if err := replicagroup.Found(p.store, *g, dht.NodeIDOf(p.host.ID())); err != nil {
				tb.Fatal(err)
			}
		}
		p.start()
	}
	tb.Cleanup(func() {
		for _, p := range w.all {
			p.stop()
			p.host.Close()
		}
	})
	for _, p := range w.all {
		if err := p.overlay.WaitPeers(w.ctx(), n-1); err != nil {
			tb.Fatal(err)
		}
	}
	return w
}

func (w *hosts) ctx() context.Context {
	ctx, cancel := context.WithTimeout(w.tb.Context(), hostsWait)
	w.tb.Cleanup(cancel)
	return ctx
}

func (p *sigmaHost) start() {
	w := p.w
	w.tb.Helper()
	first := w.all[0]
	if p == first {
		first = w.all[1]
	}
	boot := p.store.BootNonce()
	var err error
	p.overlay, err = dht.New(p.host, dht.WithOverlayID(w.genesis.ID()), dht.WithBootstrap(libp2ppeer.AddrInfo{ID: first.host.ID(), Addrs: first.host.Addrs()}),
		dht.WithBoot(dht.Boot{Store: p.store.ID(), Count: boot.Count, Nonce: boot.Nonce}))
	if err != nil {
		w.tb.Fatal(err)
	}
	limits := LimitsOf(w.genesis.TTLMax, int64(w.genesis.Drift))
	clock := driver.NewClock()
	p.voters = NewSigmaVoters(SigmaVotersConfig{Limits: limits, IdleFor: time.Second, Log: p.log})
	p.groups, err = replicagroup.New(replicagroup.Config{
		Genesis: w.genesis, Overlay: lossy{p.overlay, p}, Store: p.store, Clock: clock, Plan: w.plan, Fixed: w.fixed, Voters: p.voters,
		Services: map[string]replicagroup.MachineFactory{ServiceName: func(g order.GroupID) session.Machine {
			return NewMachine(MachineConfig{Gen: g.Gen, TTLMax: w.genesis.TTLMax, Drift: w.genesis.Drift, Sigma: hostsTTL})
		}},
	})
	if err != nil {
		w.tb.Fatal(err)
	}
	p.sigma = NewSigma(SigmaConfig{Net: p, Depth: w.genesis.Depth, Limits: limits, Clock: clock, Self: p.host.ID().String(), Prefixes: func(ctx context.Context) (all []keyspace.Prefix, err error) {
		children, err := p.groups.Children(ctx)
		for _, c := range children {
			all = append(all, c.Prefix)
		}
		return all, err
	}})
	client := p.sigma
	p.voters.OnAnswer(func(from keyspace.NodeID, g sigmapb.Group, m *sigma.Message) {
		if m.Kind == sigma.Grant {
			p.grants.Lock()
			p.grants.of[from]++
			p.grants.Unlock()
		}
		client.Deliver(from, g, m)
	})
	p.locks = New(p.sigma.NewBackend(p.groups.NewClient()), WithClock(clock))
	if err := errors.Join(p.groups.Start(w.tb.Context()), p.overlay.Start(w.tb.Context())); err != nil {
		w.tb.Fatal(err)
	}
}

// stop ends the peer without a word to anybody.
func (p *sigmaHost) stop() {
	if p.overlay == nil {
		return
	}
	p.sigma.Close()
	p.locks.Close()
	p.groups.Close()
	p.overlay.Close()
	p.overlay = nil
}

// kill ends the peer as the death of its process does: what it has stored or recorded stays.
func (p *sigmaHost) kill() {
	disk, log := p.store.Detach(), p.log.Detach()
	p.stop()
	p.store, p.log = disk, log
}

// cut ends the peer as a power cut does: what was not synced is lost.
func (p *sigmaHost) cut() {
	p.kill()
	p.log = voterlog.NewMemory()
}

func (p *sigmaHost) node() keyspace.NodeID { return dht.NodeIDOf(p.host.ID()) }

// lossy is an overlay that loses what mute voters send.
type lossy struct {
	*dht.Overlay
	peer *sigmaHost
}

func (o lossy) Send(to libp2ppeer.ID, key keyspace.Key, service string, msg []byte) error {
	if service == sigmapb.Service && o.peer.mute.Load() {
		return nil
	}
	return o.Overlay.Send(to, key, service, msg)
}

// Locate implements [SigmaNet].
func (p *sigmaHost) Locate(ctx context.Context, key keyspace.Key, fresh bool) (SigmaGroup, error) {
	d, err := p.groups.Locate(ctx, key)
	g := SigmaGroup{Group: sigmapb.Group{Prefix: d.Group.Prefix, Gen: d.Group.Gen}}
	for _, id := range d.View.Voters() {
		m, _ := d.View.Member(id)
		g.Voters = append(g.Voters, m.Peer)
	}
	return g, err
}

// Send implements [SigmaNet].
func (p *sigmaHost) Send(to keyspace.NodeID, key keyspace.Key, frame []byte) {
	if id, ok := p.overlay.PeerOf(to); ok {
		_ = p.overlay.Send(id, key, sigmapb.Service, frame)
	}
}

func (p *sigmaHost) lock(name string) *Handle {
	p.w.tb.Helper()
	h, err := p.locks.Lock(p.w.ctx(), name, WithTTL(hostsTTL))
	if err != nil {
		p.w.tb.Fatalf("lock %q: %v", name, err)
	}
	return h
}

// untilGrants waits until this peer's locks have had twenty more grants of a voter.
func (p *sigmaHost) untilGrants(voter keyspace.NodeID) {
	p.w.tb.Helper()
	granted := func() int {
		p.grants.Lock()
		defer p.grants.Unlock()
		return p.grants.of[voter]
	}
	before := granted()
	p.w.until("a voter grants locks", func() bool { return granted() > before+20 })
}

// replica returns the state of a peer's replica of the group of a name.
func (p *sigmaHost) replica(name string) (replicagroup.ReplicaStatus, bool) {
	all, err := p.groups.Status(p.w.ctx())
	if err != nil {
		p.w.tb.Fatal(err)
	}
	i := slices.IndexFunc(all, func(r replicagroup.ReplicaStatus) bool {
		return r.Group.Prefix == p.w.genesis.PrefixOf(keyspace.Preimage(name).Key())
	})
	if i < 0 {
		return replicagroup.ReplicaStatus{}, false
	}
	return all[i], true
}

// name returns the i-th of the names whose group is that of "n".
func (w *hosts) name(i int) string {
	for j := 0; ; j++ {
		name := fmt.Sprint("n", j)
		if w.genesis.PrefixOf(keyspace.Preimage(name).Key()) == w.genesis.PrefixOf(keyspace.Preimage("n").Key()) {
			if i--; i < 0 {
				return name
			}
		}
	}
}

// among returns the voters of a name's group, the leader first, and a peer that is none.
func (w *hosts) among(name string) (voters []*sigmaHost, other *sigmaHost) {
	w.tb.Helper()
	key := keyspace.Preimage(name).Key()
	var leader placement.Peer
	w.until("the group of a name has a leader", func() (ok bool) {
		var err error
		leader, err = w.all[0].groups.Leader(w.ctx(), key) // on a busy machine its founding takes longer than one question waits
		return err == nil
	})
	d, err := w.all[0].groups.Locate(w.ctx(), key)
	if err != nil {
		w.tb.Fatal(err)
	}
	for _, p := range w.all {
		switch m, ok := d.View.MemberAt(p.node()); {
		case ok && m.Role == order.Voter && string(p.host.ID()) == leader.ID:
			voters = slices.Insert(voters, 0, p)
		case ok && m.Role == order.Voter:
			voters = append(voters, p)
		default:
			other = p
		}
	}
	return voters, other
}

// until waits for a condition.
func (w *hosts) until(what string, ok func() bool) {
	w.tb.Helper()
	ctx, cancel := context.WithTimeout(w.tb.Context(), hostsWait)
	defer cancel()
	for !ok() {
		select {
		case <-ctx.Done():
			w.tb.Fatalf("in vain: %s", what)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// untilReplaced waits until the group of "n" has three voters of which a node is none.
func (w *hosts) untilReplaced(gone keyspace.NodeID) {
	w.tb.Helper()
	w.until("a view without the voter that has gone", func() bool {
		for _, p := range w.all {
			if p.overlay == nil {
				continue
			}
			r, _ := p.replica("n")
			if _, is := r.Status.View.MemberAt(gone); r.Status.Leading && !is && !r.Status.View.Joint() && len(r.Status.View.Voters()) == 3 {
				return true
			}
		}
		return false
	})
}

// ledger checks that a name has one holder at a time, by tokens that rise. Holders write to it while they hold.
type ledger struct {
	tb      testing.TB
	mu      sync.Mutex
	holders map[string]*Handle
	sharing map[string]map[*Handle]bool
	last    map[string]Token
	holds   int
}

func newLedger(tb testing.TB) *ledger {
	return &ledger{tb: tb, holders: make(map[string]*Handle), sharing: make(map[string]map[*Handle]bool), last: make(map[string]Token)}
}

// enter takes note of a hold.
func (l *ledger) enter(h *Handle) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if other := l.holders[h.Name()]; other != nil && other.Context().Err() == nil && h.Context().Err() == nil {
		l.tb.Errorf("%q has two holders, by tokens %v and %v", h.Name(), other.Token(), h.Token())
	}
	for s := range l.sharing[h.Name()] {
		if s.Context().Err() == nil && h.Context().Err() == nil {
			l.tb.Errorf("%q is shared, by token %v, and held by token %v", h.Name(), s.Token(), h.Token())
		}
	}
	if last := l.last[h.Name()]; h.Token() <= last {
		l.tb.Errorf("%q: token %v after %v", h.Name(), h.Token(), last)
	}
	l.holders[h.Name()], l.last[h.Name()] = h, h.Token()
	l.holds++
}

// share takes note of a hold that is shared.
func (l *ledger) share(h *Handle) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if other := l.holders[h.Name()]; other != nil && other.Context().Err() == nil && h.Context().Err() == nil {
		l.tb.Errorf("%q is held, by token %v, and shared by token %v", h.Name(), other.Token(), h.Token())
	}
	if last := l.last[h.Name()]; h.Token() < last {
		l.tb.Errorf("%q: token %v, shared, after %v", h.Name(), h.Token(), last)
	}
	if l.sharing[h.Name()] == nil {
		l.sharing[h.Name()] = make(map[*Handle]bool)
	}
	l.sharing[h.Name()][h], l.last[h.Name()] = true, h.Token()
	l.holds++
}

func (l *ledger) leave(h *Handle) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.sharing[h.Name()], h)
	if l.holders[h.Name()] == h {
		delete(l.holders, h.Name())
	}
}

func (l *ledger) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.holds
}

// busy has a peer take and give back names until the end of ctx. Each hold is in the ledger.
func (p *sigmaHost) busy(ctx context.Context, l *ledger, names ...string) {
	p.busyBy(ctx, l, l.enter, p.locks.Lock, names...)
}

// busyBy is busy with one way to take locks.
func (p *sigmaHost) busyBy(ctx context.Context, l *ledger, enter func(*Handle), lock func(context.Context, string, ...Option) (*Handle, error), names ...string) {
	for i := 0; ctx.Err() == nil; i++ {
		h, err := lock(ctx, names[i%len(names)], WithTTL(hostsTTL))
		if err != nil {
			if ctx.Err() == nil && !errors.Is(err, ErrClosed) {
				l.tb.Errorf("lock: %v", err)
			}
			return
		}
		enter(h)
		time.Sleep(5 * time.Millisecond) // it works
		l.leave(h)
		if err := h.Release(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, ErrNotHeld) && !errors.Is(err, ErrLost) && !errors.Is(err, ErrClosed) &&
			!errors.Is(err, ErrOutcomeUnknown) { // a voter has died of three that changed meanwhile
			l.tb.Errorf("release: %v", err)
		}
	}
}

// TestSigmaVotersOfAGroupThatNeedsALease: each voter knows how long its group may answer.
func TestSigmaVotersOfAGroupThatNeedsALease(t *testing.T) {
	t.Parallel()
	w := newHosts(t, 4, func(w *hosts) {
		w.fixed = true
		w.genesis.Regenesis, w.genesis.Lease, w.genesis.DeadAfter = placement.Leased, placement.LeaseMin, 0
	})
	_, other := w.among("n")
	for range 10 {
		mustRelease(t, other.lock("n"))
	}
	// Held for longer than the group's lease, which the voters learn again and again.
	held := other.lock("n")
	begun := time.Now()
	w.until("the group's lease was renewed", func() bool { return time.Since(begun) > w.genesis.Lease*3/2 })
	if held.Context().Err() != nil {
		t.Errorf("the holder has lost its lock: %v", context.Cause(held.Context()))
	}
	mustRelease(t, held)
}

func TestSigmaVotersTakeLocksWithoutTheLog(t *testing.T) {
	t.Parallel()
	w := newHosts(t, 4, func(w *hosts) { w.fixed = true })
	voters, other := w.among("n")
	mustRelease(t, other.lock("n"))
	w.until("the group sleeps", func() bool {
		for _, p := range voters {
			if r, ok := p.replica("n"); !ok || !r.Status.Quiesced {
				return false
			}
		}
		return true
	})
	r, _ := voters[0].replica("n")
	last := Token(0)
	for range 100 {
		h := other.lock("n")
		if h.Token() <= last {
			t.Errorf("token %v after %v", h.Token(), last)
		}
		last = h.Token()
		mustRelease(t, h)
	}
	for i, p := range voters {
		if now, _ := p.replica("n"); !now.Status.Quiesced || now.Status.Commit != r.Status.Commit {
			t.Errorf("voter %d: the log went from %d to %d, it sleeps: %v", i, r.Status.Commit, now.Status.Commit, now.Status.Quiesced)
		}
	}

	// When nobody has had a lock for long the machines are put away, and nobody who locks then can tell.
	w.until("machines are put away that no voter needs", func() bool {
		for _, p := range voters {
			if p.groups.Counters().Parked == 0 {
				return false
			}
		}
		return true
	})
	for range 3 {
		h := other.lock("n")
		if h.Token() <= last {
			t.Errorf("token %v after %v", h.Token(), last)
		}
		last = h.Token()
		mustRelease(t, h)
	}
	if _, err := other.locks.Info(w.ctx(), "n"); err != nil {
		t.Error(err)
	}
}

func TestSigmaLocksGoOnWithoutTheLeadersVoter(t *testing.T) {
	t.Parallel()
	for _, mute := range []bool{false, true} { // or its voter is heard no more, while it goes on leading
		t.Run(fmt.Sprintf("mute %v", mute), func(t *testing.T) {
			t.Parallel()
			w := newHosts(t, 4, func(w *hosts) { w.fixed = true })
			voters, other := w.among("n")
			held := other.lock("n")
			if mute {
				voters[0].mute.Store(true)
			} else {
				voters[0].kill()
			}
			// A lock is taken at once, from a majority of two, and one that is held stays so for longer than its lease.
			l := newLedger(t)
			begun := time.Now()
			for i := 0; time.Since(begun) < 2*hostsTTL; i++ {
				h := other.lock(w.name(i % 4))
				l.enter(h)
				l.leave(h)
				mustRelease(t, h)
			}
			if held.Context().Err() != nil {
				t.Errorf("the holder has lost its lock: %v", context.Cause(held.Context()))
			}
			mustRelease(t, held)
		})
	}
}

func TestSigmaVoterThatRestartsServesAgain(t *testing.T) {
	t.Parallel()
	w := newHosts(t, 4, func(w *hosts) { w.fixed = true })
	voters, other := w.among("n")
	held := other.lock("n")
	l := newLedger(t)
	ctx, cancel := context.WithCancel(w.ctx())
	var load sync.WaitGroup
	for range 3 {
		load.Go(func() { other.busy(ctx, l, w.name(0), w.name(1)) })
	}
	voters[1].cut()
	voters[1].start()
	// Once it has caught up the leader begins a new view for it, and the others tell it who holds what.
	w.until("a new view", func() bool { // other has heard of
		other.sigma.mu.Lock()
		defer other.sigma.mu.Unlock()
		p := other.sigma.places[w.genesis.PrefixOf(keyspace.Preimage("n").Key())]
		return p != nil && p.view.View.Num >= 2
	})
	before := l.count()
	w.until("locks are taken in the new view", func() bool { return l.count() > before+20 })
	voters[2].kill() // so that nothing goes on without the one that has restarted
	before = l.count()
	w.until("locks are taken by the one that has restarted", func() bool { return l.count() > before+20 })
	cancel()
	load.Wait()
	if held.Context().Err() != nil {
		t.Errorf("the holder has lost its lock: %v", context.Cause(held.Context()))
	}
	mustRelease(t, held)
}

// TestSigmaGroupThatRestartsKeepsItsLocks: all voters are killed at once, while somebody holds and others take turns.
func TestSigmaGroupThatRestartsKeepsItsLocks(t *testing.T) {
	t.Parallel()
	w := newHosts(t, 4, func(w *hosts) { w.fixed = true })
	voters, other := w.among("n")
	l := newLedger(t)
	held := other.lock("n")
	l.enter(held)
	ctx, cancel := context.WithCancel(w.ctx())
	var load sync.WaitGroup
	for range 3 {
		load.Go(func() { other.busy(ctx, l, w.name(0), w.name(1)) })
	}
	n := l.count()
	w.until("locks are taken", func() bool { return l.count() > n+20 })
	for range 2 {
		for _, p := range voters {
			p.kill()
		}
		started := time.Now()
		for _, p := range voters {
			p.start()
		}
		n = l.count()
		w.until("locks are taken again", func() bool { return l.count() > n+20 })
		t.Logf("20 more %v after the restart", time.Since(started))
		for i, p := range voters {
			w.until(fmt.Sprintf("voter %d has taken its table up", i), func() bool { return p.voters.tables.Load() > 0 })
		}
	}
	cancel()
	load.Wait()
	try, err := voters[0].locks.TryLock(w.ctx(), "n", WithTTL(hostsTTL))
	switch {
	case held.Context().Err() != nil: // the lease is short, and the machine may be busy
		t.Logf("the holder has lost its lock: %v", context.Cause(held.Context()))
		if err == nil {
			l.enter(try)
			l.leave(try)
			mustRelease(t, try)
		}
		return
	case !errors.Is(err, ErrLocked):
		t.Errorf("what is held is granted: %v", err)
	}
	l.leave(held)
	mustRelease(t, held)
}

func TestSigmaGroupAfterAPowerCutForgetsItsLocksAndNothingElse(t *testing.T) {
	t.Parallel()
	w := newHosts(t, 4, func(w *hosts) { w.fixed = true })
	voters, other := w.among("n")
	l := newLedger(t)
	held := other.lock("n")
	l.enter(held)
	for _, p := range voters {
		p.cut()
	}
	for _, p := range voters {
		p.start()
	}
	granted, told := make(chan *Handle, 1), false
	go func() {
		h, err := other.locks.Lock(w.ctx(), "n", WithTTL(hostsTTL))
		if err != nil {
			t.Error(err)
		}
		granted <- h
	}()
	w.until("a list says that it may lack locks of before, or there are none", func() bool {
		unsure := false
		err := other.locks.List(w.ctx(), "", func(p ListPage) error { unsure = unsure || p.Unsure; return p.Err })
		i, err2 := other.locks.Info(w.ctx(), "n")
		if told = told || unsure; err == nil && err2 == nil && !unsure && !i.Held && i.DelayLeft > 0 {
			t.Errorf("a list of a group that grants nothing for %v yet does not say that it may lack locks of before", i.DelayLeft)
		}
		return told || len(granted) > 0 // a machine that is busy may look too late
	})
	t.Logf("a list said that it may lack locks of before: %v", told)
	h := <-granted
	if h == nil {
		return
	}
	l.enter(h) // the former is lost by now, and its token was smaller
	if held.Context().Err() == nil {
		t.Error("nobody knows of the former hold, and it goes on")
	}
	if err := other.locks.List(w.ctx(), "", func(p ListPage) error {
		if p.Unsure || p.Err != nil {
			t.Errorf("a list when the group grants again: %+v", p)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	mustRelease(t, h)
}

func TestSigmaLocksOutliveTheirVoters(t *testing.T) {
	t.Parallel()
	w := newHosts(t, 6, func(w *hosts) { w.plan = placement.TestnetPlanTimes() })
	voters, other := w.among("n")
	l := newLedger(t)
	held := other.lock("n")
	l.enter(held)
	ctx, cancel := context.WithCancel(w.ctx())
	var load sync.WaitGroup
	for _, p := range w.all {
		if !slices.Contains(voters, p) {
			load.Go(func() { p.busy(ctx, l, w.name(0), w.name(1), w.name(2), w.name(3)) })
		}
	}
	for i := range 3 { // one after the other goes, the leader first, until none of those who granted the lock is left
		gone := voters[i].node()
		if err := voters[i].groups.Leave(w.ctx()); err != nil {
			t.Error(err)
		}
		voters[i].stop()
		w.untilReplaced(gone)
		n := l.count()
		w.until("locks are taken in it", func() bool { return l.count() > n+20 })
	}
	cancel()
	load.Wait()
	if held.Context().Err() != nil {
		t.Errorf("the holder has lost its lock: %v", context.Cause(held.Context()))
	}
	l.leave(held)
	mustRelease(t, held)
}

// TestSigmaLocksOutliveAVoterThatCrashes: nobody has said good-bye, so the others find out, and bring in another voter by themselves.
func TestSigmaLocksOutliveAVoterThatCrashes(t *testing.T) {
	t.Parallel()
	w := newHosts(t, 4, func(w *hosts) {
		w.plan, w.genesis.TTLMax = placement.TestnetPlanTimes(), 5*hostsTTL
		w.plan.Every, w.plan.Fail, w.plan.Damp = 250*time.Millisecond, 2*time.Second, 250*time.Millisecond // on a busy machine a peer that lives is silent for a second
	})
	voters, other := w.among("n")
	l := newLedger(t)
	held, err := other.locks.Lock(w.ctx(), "n", WithTTL(5*hostsTTL)) // on a busy machine nothing is heard of its voters for some seconds
	if err != nil {
		t.Fatal(err)
	}
	l.enter(held)
	ctx, cancel := context.WithCancel(w.ctx())
	var load sync.WaitGroup
	for range 3 {
		load.Go(func() { other.busy(ctx, l, w.name(0), w.name(1), w.name(2)) })
	}
	voters[0].kill() // which led
	crashed := time.Now()
	w.untilReplaced(voters[0].node())
	t.Logf("replaced %v after it crashed", time.Since(crashed))
	// The new voter grants as soon as the others have told it who holds what. Another crash before that would be the second in one view,
	// where three voters bear one.
	other.untilGrants(other.node())
	t.Logf("it grants %v after the crash", time.Since(crashed))
	voters[1].kill() // so that nothing goes on without it
	n, left := l.count(), held.Remaining()
	w.until("locks are taken with the new voter", func() bool { return l.count() > n+20 })
	w.until("the holder renews with it", func() bool {
		now := held.Remaining()
		renewed := now > left || now == 0
		left = now
		return renewed
	})
	cancel()
	load.Wait()
	if held.Context().Err() != nil {
		t.Errorf("the holder has lost its lock: %v", context.Cause(held.Context()))
	}
	l.leave(held)
	mustRelease(t, held)
}

// TestADeadPeersWaitersAreNotWaitedFor: a peer dies whose clients wait for a lock. Its turn is nobody's, and costs no lease: voters hear that its
// connections have gone.
func TestADeadPeersWaitersAreNotWaitedFor(t *testing.T) {
	t.Parallel()
	w := newHosts(t, 5, func(w *hosts) { w.fixed, w.genesis.TTLMax = true, 10*time.Minute })
	_, other := w.among("n")
	var dying *sigmaHost // beside the voters and the other
	for _, p := range w.all {
		if _, votes := p.replica("n"); !votes && p != other {
			dying = p
		}
	}
	held := other.lock("n")
	ctx, cancel := context.WithCancel(w.ctx())
	defer cancel()
	for range 5 {
		go dying.locks.Lock(ctx, "n", WithTTL(10*time.Minute))
	}
	waiting := func(n int) func() bool {
		return func() bool {
			i, err := other.locks.Info(w.ctx(), "n")
			return err == nil && i.Waiting == n
		}
	}
	w.until("its clients wait", waiting(5))
	dying.kill()
	dying.host.Close()
	w.until("the voters let go of them", waiting(0))
	mustRelease(t, held)
	mustRelease(t, other.lock("n"))
}
