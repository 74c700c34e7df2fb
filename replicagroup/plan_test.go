package replicagroup

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/pb"
	"latchkey/replicagroup/transfer"
)

// grow starts a further peer, which is told of those that run.
func (w *world) grow(t testing.TB) *testPeer {
	t.Helper()
	var others []peer.AddrInfo
	for _, o := range w.peers {
		others = append(others, peer.AddrInfo{ID: o.host.ID(), Addrs: o.host.Addrs()})
	}
	p := w.add(t)
	w.start(t, p, others)
	return p
}

// settled waits until the leader of a prefix's group is in a settled view that ok accepts, and returns it with its status.
func (w *world) settled(t testing.TB, ctx context.Context, prefix keyspace.Prefix, what string, ok func(order.View) bool) (*testPeer, ReplicaStatus) {
	t.Helper()
	last := "nobody leads"
	for {
		for _, p := range w.peers {
			all, err := p.groups.Status(ctx)
			if err != nil {
				continue // it was killed
			}
			for _, r := range all {
				if r.Group.Prefix != prefix || !r.Status.Leading {
					continue
				}
				if !r.Status.View.Joint() && ok(r.Status.View) {
					return p, r
				}
				last = fmt.Sprintf("replica %d leads in %v", r.Status.Self, showView(r.Status.View))
			}
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			t.Fatalf("group %v: waiting for %s: %v (%s)%s", prefix, what, err, last, w.show())
		}
	}
}

// show tells what every replica of every peer thinks.
func (w *world) show() (s string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for i, p := range w.peers {
		all, err := p.groups.Status(ctx)
		s += fmt.Sprintf("\npeer %d %v store %v: %d replicas, %v", i, p.overlay.Node(), p.store.ID(), len(all), err)
		for _, r := range all {
			st := r.Status
			s += fmt.Sprintf("\n  %v replica %d term %d leader %d commit %d applied %d of %d, leaderless %v, halted %v, %v", r.Group, st.Self,
				st.Term, st.Leader, st.Commit, st.Applied, st.Last, r.Leaderless, r.Halted, showView(st.View))
		}
	}
	return s
}

func showView(v order.View) string {
	s := fmt.Sprintf("view %d:", v.Num)
	for _, m := range v.Members {
		s += fmt.Sprintf(" %d=%v/%v", m.ID, m.Role, m.Peer)
	}
	return s
}

// voters accepts a view of n voters.
func voters(n int) func(order.View) bool {
	return func(v order.View) bool { return len(v.Voters()) == n }
}

// without accepts a view of n voters in which a peer is no member.
func without(n int, gone *testPeer) func(order.View) bool {
	return func(v order.View) bool {
		_, member := v.MemberAt(gone.overlay.Node())
		return !member && len(v.Voters()) == n
	}
}

// judgeGaps has tests judge how long a group was silent while its members changed, which says more of the machine than of the group where
// others use it too. Without it they tell.
var judgeGaps = flag.Bool("gaps", false, "judge how long groups are silent while members leave or die: for a machine with nothing else to do")

// judge complains of what took longer than it may, where times are judged.
func judge(t testing.TB, what string, took, most, usual time.Duration) {
	t.Helper()
	if most += 10 * usual; *judgeGaps && took > most {
		t.Errorf("%s: %v, longer than %v", what, took, most)
	}
}

// leave has a peer leave its groups. On a busy machine that may take longer than it will wait; its groups then find out that it is gone.
func (p *testPeer) leave(t testing.TB, ctx context.Context) {
	t.Helper()
	if err := p.groups.Leave(ctx); errors.Is(err, errLeaveTimeout) && !*judgeGaps {
		t.Log(err)
	} else if err != nil {
		t.Error(err)
	}
}

// workload adds one to a counter again and again, by one client at each of some peers, and takes note of what was acknowledged.
type workload struct {
	t    testing.TB
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu      sync.Mutex
	acked   uint64
	unknown uint64
	last    time.Time
	gap     time.Duration // the longest time in which nothing was acknowledged
	slowest time.Duration // the longest that one command took
}

func (w *world) load(t testing.TB, key keyspace.Key, pause time.Duration, from ...*testPeer) *workload {
	ctx, stop := context.WithCancel(t.Context())
	l := &workload{t: t, stop: stop, last: time.Now()}
	for _, p := range from {
		c := p.groups.NewClient()
		l.wg.Go(func() {
			tick := time.NewTicker(pause)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				begin := time.Now()
				_, err := c.Do(ctx, key, "count", number(1))
				now := time.Now()
				l.mu.Lock()
				if err != nil {
					if l.unknown++; ctx.Err() == nil {
						t.Errorf("a command failed after %v: %v", now.Sub(begin), err)
					}
				} else {
					l.acked++
					l.gap = max(l.gap, now.Sub(l.last))
					l.last = now
					l.slowest = max(l.slowest, now.Sub(begin))
				}
				l.mu.Unlock()
			}
		})
	}
	return l
}

// reset begins to measure anew and returns what was measured since.
func (l *workload) reset() (gap, slowest time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	gap, slowest = max(l.gap, time.Since(l.last)), l.slowest
	l.gap, l.slowest = 0, 0
	return gap, slowest
}

// calm returns the longest gap and the slowest command of some hundred while nothing is done to the group: what this machine, which others
// may use too, makes of nothing.
func (l *workload) calm(ctx context.Context) (gap, slowest time.Duration) {
	l.t.Helper()
	if !*judgeGaps {
		return l.reset()
	}
	l.reset()
	l.mu.Lock()
	want := l.acked + 200
	l.mu.Unlock()
	for enough := false; !enough; {
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			l.t.Fatal("no commands are acknowledged: ", err)
		}
		l.mu.Lock()
		enough = l.acked >= want
		l.mu.Unlock()
	}
	return l.reset()
}

// end stops the load and checks that the counter holds what was acknowledged and no more than was tried.
func (l *workload) end(ctx context.Context, key keyspace.Key, at *testPeer) {
	l.t.Helper()
	l.stop()
	l.wg.Wait()
	got, err := at.groups.NewClient().Query(ctx, key, "count", nil)
	if err != nil {
		l.t.Fatal(err)
	}
	if sum := binary.BigEndian.Uint64(got); sum < l.acked || sum > l.acked+l.unknown {
		l.t.Errorf("the counter stands at %d; %d were acknowledged, of %d nothing is known", sum, l.acked, l.unknown)
	} else {
		l.t.Logf("%d commands, %d of unknown outcome", l.acked, l.unknown)
	}
}

func TestAFounderAloneGrowsToThreeAndToFiveVotersAndLosesNothing(t *testing.T) {
	t.Parallel()
	w := newPlannedWorld(t, 1, 2, 1)
	ctx := deadline(t, waitMax)
	key := keyspace.Preimage("grows").Key()
	prefix := w.genesis.PrefixOf(key)
	l := w.load(t, key, 5*time.Millisecond, w.peers[0])
	for _, n := range []int{3, 5} {
		begin := time.Now()
		w.grow(t)
		w.grow(t)
		for _, p := range []keyspace.Prefix{{}, prefix} {
			_, r := w.settled(t, ctx, p, fmt.Sprint(n, " voters"), voters(n))
			t.Logf("%v has %d voters %v after two peers came: %s", r.Group, n, time.Since(begin), showView(r.Status.View))
		}
		gap, slowest := l.reset()
		t.Logf("longest gap %v, slowest command %v", gap, slowest)
	}
	l.end(ctx, key, w.peers[4])
	// The founder is one of five now; the others have all it promised.
	w.peers[0].kill()
	got, err := w.peers[3].groups.NewClient().Query(ctx, key, "count", nil)
	if sum := binary.BigEndian.Uint64(got); err != nil || sum < l.acked {
		t.Errorf("without the founder the counter stands at %d, %v; %d were acknowledged", sum, err, l.acked)
	}
}

func TestADeadVoterIsReplaced(t *testing.T) {
	t.Parallel()
	w := newPlannedWorld(t, 4, 1, 3)
	ctx := deadline(t, waitMax)
	key := keyspace.Preimage("repair").Key()
	prefix := w.genesis.PrefixOf(key)
	if _, err := w.peers[0].groups.NewClient().Do(ctx, key, "count", number(0)); err != nil {
		t.Fatal(err)
	}
	w.settled(t, ctx, keyspace.Prefix{}, "three voters", voters(3))
	leader, r := w.settled(t, ctx, prefix, "three voters", voters(3))
	victim := leader
	client := w.peers[slices.IndexFunc(w.peers, func(p *testPeer) bool {
		m, ok := r.Status.View.MemberAt(p.overlay.Node())
		return !ok || m.Role == order.Learner
	})]
	l := w.load(t, key, 5*time.Millisecond, client)
	begin := time.Now()
	victim.kill()
	for _, p := range []keyspace.Prefix{{}, prefix} {
		_, r = w.settled(t, ctx, p, "three voters without the dead one", without(3, victim))
		t.Logf("%v has three voters again after %v: %s", r.Group, time.Since(begin), showView(r.Status.View))
	}
	gap, slowest := l.reset()
	t.Logf("longest gap %v, slowest command %v", gap, slowest)
	l.end(ctx, key, client)
}

// ripe waits until every peer has been up for long enough to become a member.
func (w *world) ripe(t testing.TB, ctx context.Context) {
	t.Helper()
	for _, p := range w.peers {
		for p.groups.clock.Now().Sub(p.groups.since) < w.plan.Stable {
			if err := pause(ctx, 10*time.Millisecond); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestAVoterLeavesAndNoRequestWaitsLong(t *testing.T) {
	t.Parallel()
	w := newPlannedWorld(t, 4, 1, 3)
	ctx := deadline(t, waitMax)
	key := keyspace.Preimage("leave").Key()
	prefix := w.genesis.PrefixOf(key)
	if _, err := w.peers[0].groups.NewClient().Do(ctx, key, "count", number(0)); err != nil {
		t.Fatal(err)
	}
	w.ripe(t, ctx)
	leader, _ := w.settled(t, ctx, prefix, "three voters", voters(3))
	var others []*testPeer
	for _, p := range w.peers {
		if p != leader {
			others = append(others, p)
		}
	}
	l := w.load(t, key, 5*time.Millisecond, others...)
	_, usual := l.calm(ctx)
	begin := time.Now()
	leader.leave(t, ctx)
	t.Logf("the leader left within %v", time.Since(begin))
	leader.kill()
	for _, p := range []keyspace.Prefix{{}, prefix} {
		_, r := w.settled(t, ctx, p, "three voters without the one that left", without(3, leader))
		t.Logf("%v: %s after %v", r.Group, showView(r.Status.View), time.Since(begin))
	}
	gap, slowest := l.reset()
	t.Logf("longest gap %v, slowest command %v, before %v", gap, slowest, usual)
	judge(t, "the slowest command", slowest, 500*time.Millisecond, usual)
	l.end(ctx, key, others[0])
}

// others returns the peers but one.
func (w *world) others(not ...*testPeer) []*testPeer {
	var list []*testPeer
	for _, p := range w.peers {
		if !slices.Contains(not, p) {
			list = append(list, p)
		}
	}
	return list
}

// Conformance test 10 of replica-groups.md section 8, on real hosts: every member of a group is replaced under load, by leaving and
// by dying in turn, and nothing acknowledged is lost.
func TestAllMembersAreReplacedOneByOneUnderLoad(t *testing.T) {
	t.Parallel()
	w := newPlannedWorld(t, 6, 1, 3)
	ctx := deadline(t, waitMax)
	key := keyspace.Preimage("replaced").Key()
	prefix := w.genesis.PrefixOf(key)
	if _, err := w.peers[0].groups.NewClient().Do(ctx, key, "count", number(0)); err != nil {
		t.Fatal(err)
	}
	w.ripe(t, ctx)
	var first []*testPeer
	_, r := w.settled(t, ctx, prefix, "three voters", voters(3))
	for _, p := range w.peers {
		if _, ok := r.Status.View.MemberAt(p.overlay.Node()); ok {
			first = append(first, p)
		}
	}
	client := w.others(first...)[0]
	l := w.load(t, key, time.Millisecond, client)
	for i, victim := range first {
		usual, _ := l.calm(ctx)
		begin := time.Now()
		how := "died"
		if i%2 == 0 {
			how = "left"
			victim.leave(t, ctx)
		}
		victim.kill()
		_, r := w.settled(t, ctx, prefix, "three voters without the one that "+how, without(3, victim))
		gap, _ := l.reset()
		w.settled(t, ctx, keyspace.Prefix{}, "three voters without the one that "+how, without(3, victim))
		t.Logf("a voter %s and was replaced within %v, longest gap %v: %s", how, time.Since(begin), gap, showView(r.Status.View))
		judge(t, "nothing was acknowledged", gap, 2*time.Second, usual)
	}
	l.end(ctx, key, client)
}

// frail is a store that is taken away before a write that a test chooses.
type frail struct {
	*MemoryStore
	peer *testPeer
}

func (s frail) Write(batch []Write, sync bool) error {
	if f := s.peer.beforeWrite.Load(); f != nil {
		(*f)(batch)
	}
	return s.MemoryStore.Write(batch, sync)
}

// diesBefore takes the store away before the n-th write for a group from now on, and tells when that was.
func (p *testPeer) diesBefore(n int, g order.GroupID) (dead <-chan struct{}) {
	done := make(chan struct{})
	var once sync.Once
	before := func(batch []Write) {
		if !slices.ContainsFunc(batch, func(w Write) bool { return w.Group == g }) {
			return
		}
		if n--; n == 0 {
			p.store.Detach()
			once.Do(func() { close(done) })
		}
	}
	p.beforeWrite.Store(&before)
	return done
}

// The leader of a group dies in the midst of a change, at this write or that, and comes back with its disk.
func TestAChangeSurvivesItsLeadersDeath(t *testing.T) {
	for _, n := range []int{1, 2, 3, 4} {
		t.Run(fmt.Sprint("before write ", n), func(t *testing.T) {
			t.Parallel()
			w := newPlannedWorld(t, 4, 1, 3)
			ctx := deadline(t, waitMax)
			key := keyspace.Preimage("amid").Key()
			prefix := w.genesis.PrefixOf(key)
			const acked = 20
			for range acked {
				if _, err := w.peers[0].groups.NewClient().Do(ctx, key, "count", number(1)); err != nil {
					t.Fatal(err)
				}
			}
			w.ripe(t, ctx)
			leader, r := w.settled(t, ctx, prefix, "three voters", voters(3))
			var victim *testPeer // a voter that leaves, and does not lead
			for _, p := range w.others(leader) {
				if _, ok := r.Status.View.MemberAt(p.overlay.Node()); ok {
					victim = p
				}
			}
			dead := leader.diesBefore(n, r.Group)
			left := make(chan error, 1)
			go func() { left <- victim.groups.Leave(ctx) }()
			select {
			case <-dead:
			case <-ctx.Done():
				t.Fatal("the change made no such write")
			}
			disk := leader.kill()
			if err := <-left; err != nil && !errors.Is(err, errLeaveTimeout) {
				t.Errorf("leave: %v", err)
			}
			victim.kill()
			leader.beforeWrite.Store(nil)
			w.restart(t, leader, disk)
			_, r = w.settled(t, ctx, prefix, "three voters without the one that left", without(3, victim))
			t.Log(showView(r.Status.View))
			got, err := w.others(leader, victim)[0].groups.NewClient().Query(ctx, key, "count", nil)
			if err != nil || binary.BigEndian.Uint64(got) != acked {
				t.Errorf("the counter stands at %x, %v", got, err)
			}
		})
	}
}

func TestWhenAllLeaveAtOnceTheRestartFindsEverything(t *testing.T) {
	t.Parallel()
	w := newPlannedWorld(t, 4, 1, 3)
	ctx := deadline(t, waitMax)
	keys := []keyspace.Key{keyspace.Preimage("a").Key(), keyspace.Preimage("b").Key(), keyspace.Preimage("c").Key()}
	for i, key := range keys {
		for range i + 1 {
			if _, err := w.peers[i].groups.NewClient().Do(ctx, key, "count", number(1)); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.ripe(t, ctx)
	begin := time.Now()
	var wg sync.WaitGroup
	disks := make([]*MemoryStore, len(w.peers))
	for i, p := range w.peers {
		wg.Go(func() {
			if err := p.groups.Leave(ctx); err != nil {
				t.Logf("peer %d: %v", i, err)
			}
			t.Logf("peer %d may go after %v", i, time.Since(begin))
			disks[i] = p.kill()
		})
	}
	wg.Wait()
	if took := time.Since(begin); took > LeaveTimeout+waitMax/8 {
		t.Errorf("the stop took %v", took)
	}
	for i, p := range w.peers {
		w.restart(t, p, disks[i])
	}
	for i, key := range keys {
		for _, p := range w.peers {
			got, err := p.groups.NewClient().Query(ctx, key, "count", nil)
			if err != nil || binary.BigEndian.Uint64(got) != uint64(i+1) {
				t.Errorf("counter %d stands at %x after the restart, %v", i, got, err)
			}
		}
	}
}

func TestAnOnlyPeerLeavesAtOnce(t *testing.T) {
	t.Parallel()
	w := newPlannedWorld(t, 1, 2, 1)
	ctx := deadline(t, waitMax)
	key := keyspace.Preimage("alone").Key()
	p := w.peers[0]
	if _, err := p.groups.NewClient().Do(ctx, key, "count", number(7)); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := p.groups.Leave(ctx); err != nil || time.Since(begin) > LeaveTimeout/2 {
		t.Errorf("leave took %v: %v", time.Since(begin), err)
	}
	w.restart(t, p, p.kill())
	if got, err := p.groups.NewClient().Query(ctx, key, "count", nil); err != nil || binary.BigEndian.Uint64(got) != 7 {
		t.Errorf("after the restart: %x, %v", got, err)
	}
}

func TestAPeerThatLostItsDiskBecomesAMemberAgain(t *testing.T) {
	t.Parallel()
	w := newPlannedWorld(t, 3, 1, 3)
	ctx := deadline(t, waitMax)
	key := keyspace.Preimage("lost").Key()
	prefix := w.genesis.PrefixOf(key)
	if _, err := w.peers[0].groups.NewClient().Do(ctx, key, "count", number(3)); err != nil {
		t.Fatal(err)
	}
	w.settled(t, ctx, prefix, "three voters", voters(3))
	p := w.peers[2]
	p.kill()
	begin := time.Now()
	w.restart(t, p, NewMemoryStore())
	for _, g := range []keyspace.Prefix{{}, prefix} {
		_, r := w.settled(t, ctx, g, "its new store to vote", func(v order.View) bool {
			m, ok := v.At(p.overlay.Node(), p.store.ID())
			return ok && m.Role == order.Voter && len(v.Members) == 3
		})
		t.Logf("%v: %s after %v", r.Group, showView(r.Status.View), time.Since(begin))
	}
}

func TestTheParentAndTheNeighboursHearOfANewView(t *testing.T) {
	t.Parallel()
	w := newPlannedWorld(t, 1, 1, 1)
	ctx := deadline(t, waitMax)
	key := keyspace.Preimage("told").Key()
	prefix := w.genesis.PrefixOf(key)
	if _, err := w.peers[0].groups.NewClient().Do(ctx, key, "count", number(1)); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		w.grow(t)
	}
	_, r := w.settled(t, ctx, prefix, "three voters", voters(3))
	for _, p := range w.peers { // the fourth, who is no member, among them
		for {
			if d, ok := p.groups.locator.cached(prefix); ok && d.View.Num >= r.Status.View.Num {
				break
			}
			if err := pause(ctx, 10*time.Millisecond); err != nil {
				t.Fatalf("peer %v has not heard of view %d", p.overlay.Node(), r.Status.View.Num)
			}
		}
	}
	for {
		d, err := w.peers[3].groups.askParent(ctx, prefix)
		if err == nil && d.View.Num > 0 { // the last one may come ten seconds after the first
			break
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			t.Fatalf("the parent knows view %d, %v", d.View.Num, err)
		}
	}
	// A stranger is not believed: one that declines replicas, since any other may become a member, of a group that is about to lose one.
	var others []peer.AddrInfo
	for _, o := range w.peers {
		others = append(others, peer.AddrInfo{ID: o.host.ID(), Addrs: o.host.Addrs()})
	}
	to, stranger := w.peers[0], w.add(t)
	w.startWith(t, stranger, others, func(c *Config) { c.Declines = true })
	lie, _ := to.groups.locator.cached(prefix)
	lie.View.Num += 10
	msg := marshal(&pb.DescriptorPush{Descriptor_: encodeDescriptor(lie)})
	if err := stranger.overlay.Send(to.host.ID(), keyspace.Key{}, serviceDescriptor, msg); err != nil {
		t.Fatal(err)
	}
	// What the stranger asks afterwards on the same stream is answered after the lie was taken note of.
	if _, err := stranger.overlay.Call(ctx, to.host.ID(), keyspace.Key{}, serviceProbe, nil); err != nil {
		t.Fatal(err)
	}
	if got, _ := to.groups.locator.cached(prefix); got.View.Num >= lie.View.Num {
		t.Error("a stranger was believed about a group")
	}
}

func TestASnapshotOnItsWayCountsAsMovingOn(t *testing.T) {
	t.Parallel()
	w := newPlannedWorld(t, 2, 1, 1)
	ctx := deadline(t, waitMax)
	p, r := w.settled(t, ctx, keyspace.Prefix{}, "a voter and a learner", func(v order.View) bool { return len(v.Members) == 2 })
	learner := r.Status.View.Members[1].ID
	key := transfer.Key{Group: r.Group, To: learner}
	j := &job{key: key}
	j.moved.Store(5)
	p.touch(r.Group, func(r *replica) {
		h := r.shard.host
		h.transfers.mu.Lock()
		h.transfers.jobs[key] = j
		h.transfers.mu.Unlock()
		if got := r.plan.reports(); len(got) != 1 || got[0].Member != learner || got[0].Moved != 5 {
			t.Errorf("the plan is told %+v", got)
		}
		h.transfers.mu.Lock()
		delete(h.transfers.jobs, key)
		h.transfers.mu.Unlock()
	})
}
