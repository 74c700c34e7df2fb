package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/lockservice"
	"latchkey/node/api"
)

var (
	pauseFor   = flag.Duration("testnet.pause", 5*time.Second, "how long a leader is frozen under load")
	restFor    = flag.Duration("testnet.rest", 20*time.Millisecond, "how long a client under load rests between two locks")
	loadRounds = flag.Int("testnet.rounds", 1, "how often a leader is killed and one frozen under load")
)

// loadDepth makes the overlay of these tests one of four groups beside the root.
const loadDepth = 2

// answerMax is how long a group may be silent after its leader has failed.
const answerMax = 3 * time.Second

// acked is a lock that was granted to somebody who was told so.
type acked struct {
	group     string
	name      string
	token     lockservice.Token
	call, ret time.Time
}

// workload is clients that take and give back locks of all groups through all peers. Each lock's name is new, so that nobody waits for
// a lease but only for groups.
type workload struct {
	n     *liveNet
	peers []string // API sockets, by number
	stop  context.CancelFunc
	ctx   context.Context
	wg    sync.WaitGroup
	names atomic.Int64
	away  []atomic.Bool // peers that clients keep away from

	mu   sync.Mutex
	all  []acked
	last map[string]time.Time // the last answer of each group
	gaps map[string]time.Duration
}

// groupOf names the group that has a lock.
func groupOf(name string) string {
	p := keyspace.PrefixOf(keyspace.Preimage(name).Key(), loadDepth)
	return fmt.Sprintf("%x/%d", p.Bits[0], p.Len)
}

// begin starts so many clients.
func beginLoad(n *liveNet, clients int) *workload {
	l := &workload{n: n, last: map[string]time.Time{}, gaps: map[string]time.Duration{}}
	for _, p := range n.status().Peers {
		l.peers = append(l.peers, p.API)
	}
	l.away = make([]atomic.Bool, len(l.peers))
	l.ctx, l.stop = context.WithCancel(context.Background())
	n.t.Cleanup(l.end)
	for c := range clients {
		l.wg.Go(func() { l.client(c) })
	}
	return l
}

// end stops the clients.
func (l *workload) end() {
	l.stop()
	l.wg.Wait()
}

// client works through one peer after the other: another when one has failed it.
func (l *workload) client(c int) {
	for i := c; l.ctx.Err() == nil; i++ {
		peer := i % len(l.peers)
		if l.away[peer].Load() {
			continue
		}
		daemon, err := api.Dial(l.peers[peer])
		if err != nil {
			l.n.t.Error(err)
			return
		}
		for err == nil && l.ctx.Err() == nil && !l.away[peer].Load() {
			if err = l.turn(daemon); *restFor > 0 {
				select {
				case <-time.After(*restFor):
				case <-l.ctx.Done():
				}
			}
		}
		daemon.Close()
	}
}

// turn takes one lock and gives it back. What fails leaves a name that nobody uses again.
func (l *workload) turn(daemon *api.Client) error {
	ctx, cancel := context.WithTimeout(l.ctx, 2*time.Second)
	defer cancel()
	a := acked{name: fmt.Sprint("load ", l.names.Add(1)), call: time.Now()}
	a.group = groupOf(a.name)
	h, err := daemon.Locks().Lock(ctx, a.name, lockservice.WithTTL(2*time.Second), lockservice.WithProtocol(lockservice.ProtocolGroup))
	if err != nil {
		return err
	}
	a.token, a.ret = h.Token(), time.Now()
	l.mu.Lock()
	l.all = append(l.all, a)
	if was, ok := l.last[a.group]; ok {
		l.gaps[a.group] = max(l.gaps[a.group], a.ret.Sub(was))
	}
	l.last[a.group] = a.ret
	l.mu.Unlock()
	return h.Release(ctx)
}

// answered waits until every group has answered so often from now on.
func (l *workload) answered(times int) {
	l.n.t.Helper()
	from := time.Now()
	eventually(l.n.t, fmt.Sprintf("every group answers %d times", times), func() bool {
		count := make(map[string]int)
		l.mu.Lock()
		defer l.mu.Unlock()
		for i := len(l.all) - 1; i >= 0 && l.all[i].ret.After(from); i-- {
			if l.all[i].call.After(from) {
				count[l.all[i].group]++
			}
		}
		groups := 0
		for _, n := range count {
			if n >= times {
				groups++
			}
		}
		return groups == 1<<loadDepth
	})
}

// silence runs what is done to the testnet under load until every group answers as before, and returns the longest silence of a group.
// What groups are silent for while nothing is done, on a machine that others may use too, is taken off tenfold.
func (l *workload) silence(do func()) time.Duration {
	l.n.t.Helper()
	longest := func() (gap time.Duration) {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, g := range l.gaps {
			gap = max(gap, g)
		}
		clear(l.gaps)
		return gap
	}
	l.answered(3)
	longest()
	l.answered(10)
	usual := longest()
	do()
	l.answered(3)
	gap := longest()
	l.n.t.Logf("silent for %v at most, and for %v while nothing was done", gap.Round(time.Millisecond), usual.Round(time.Millisecond))
	return max(0, gap-10*usual)
}

// judge checks that what was granted could have been granted by one log for each group: a token that was asked for after another
// had been told is larger, and none was granted twice.
func (l *workload) judge() {
	l.n.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	byGroup := make(map[string][]acked)
	for _, a := range l.all {
		byGroup[a.group] = append(byGroup[a.group], a)
	}
	for group, all := range byGroup {
		byCall, tokens := slices.Clone(all), map[lockservice.Token]string{}
		slices.SortFunc(byCall, func(a, b acked) int { return a.call.Compare(b.call) })
		slices.SortFunc(all, func(a, b acked) int { return cmp.Compare(a.ret.UnixNano(), b.ret.UnixNano()) })
		told, next := acked{}, 0 // the largest that had been told
		for _, a := range byCall {
			for ; all[next].ret.Before(a.call); next++ {
				if all[next].token > told.token {
					told = all[next]
				}
			}
			if a.token <= told.token {
				l.n.t.Errorf("group %s: %q has token %d, asked for after %q had been told %d", group, a.name, a.token, told.name, told.token)
			}
			if other, twice := tokens[a.token]; twice {
				l.n.t.Errorf("group %s: %q and %q have both token %d", group, a.name, other, a.token)
			}
			tokens[a.token] = a.name
		}
	}
}

// rate is how many commands were answered in a second since a time.
func (l *workload) rate(since time.Time) float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, a := range l.all {
		if a.ret.After(since) {
			n += 2 // lock and release
		}
	}
	return float64(n) / time.Since(since).Seconds()
}

// leaderOf returns the number of the peer that leads the group of a lock.
func (n *liveNet) leaderOf(name string, ask int) (leader int) {
	n.t.Helper()
	peers := n.status().Peers
	daemon, err := api.Dial(peers[ask].API)
	if err != nil {
		n.t.Fatal(err)
	}
	defer daemon.Close()
	eventually(n.t, "the lock's group has a leader", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), waitMax)
		defer cancel()
		key, err := daemon.Key(ctx, name)
		if err != nil || key.Group == nil || key.Group.Leader == "" {
			return false
		}
		for _, p := range peers {
			if p.Peer == key.Group.Leader {
				leader = p.N
				return p.Up
			}
		}
		return false
	})
	return leader
}

// kept is locks that somebody holds all the time, through a peer that nothing is done to.
type kept struct {
	daemon  *api.Client
	handles map[string]*lockservice.Handle
}

// keep takes a lock of each group through a peer and holds it.
func (n *liveNet) keep(peer int) *kept {
	n.t.Helper()
	daemon, err := api.Dial(n.status().Peers[peer].API)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { daemon.Close() })
	k := &kept{daemon, map[string]*lockservice.Handle{}}
	groups := map[string]bool{}
	for i := 0; len(groups) < 1<<loadDepth; i++ {
		name := fmt.Sprintf("kept by %d, %d", peer, i)
		ctx, cancel := context.WithTimeout(context.Background(), waitMax)
		h, err := daemon.Locks().Lock(ctx, name, lockservice.WithTTL(10*time.Second))
		cancel()
		if err != nil {
			n.t.Fatal(err)
		}
		k.handles[name], groups[groupOf(name)] = h, true
	}
	return k
}

// check checks that all these locks are held as they were granted, asked through any peer.
func (k *kept) check(n *liveNet, peer int) {
	n.t.Helper()
	daemon, err := api.Dial(n.status().Peers[peer].API)
	if err != nil {
		n.t.Fatal(err)
	}
	defer daemon.Close()
	for name, h := range k.handles {
		ctx, cancel := context.WithTimeout(context.Background(), waitMax)
		info, err := daemon.Locks().Info(ctx, name)
		cancel()
		if err != nil || !info.Held || info.Token != h.Token() {
			n.t.Errorf("%s was granted with token %d; now %+v, %v", name, h.Token(), info, err)
		}
	}
}

// Leaders are killed and frozen under load, and then everybody is killed: every group answers again, and nothing that was acknowledged
// is missing or granted twice. With -testnet.pause 30s -testnet.rounds 10 it is a campaign.
func TestGroupsOutliveTheirLeadersUnderLoad(t *testing.T) {
	t.Parallel()
	const peers = 7
	keeper := peers - 1
	n := upLive(t, socketDir(t), "--mode", "process", "-n", fmt.Sprint(peers), "--depth", fmt.Sprint(loadDepth))
	held := n.keep(keeper)
	start := time.Now()
	l := beginLoad(n, 32)
	victim := func() (string, int) { // a leader of a group, and the lock that is kept there
		t.Helper()
		for {
			for name := range held.handles {
				if leader := n.leaderOf(name, keeper); leader != keeper {
					return name, leader
				}
			}
			keeper = (keeper + 1) % peers // who keeps locks leads every group: so another one keeps them
			held = n.keep(keeper)
		}
	}
	for range *loadRounds {
		lock, leader := victim()
		gap := l.silence(func() { n.verb(exitOK, fmt.Sprint("kill ", leader)) })
		t.Logf("killed peer %d, leader of the group of %q: the longest silence of a group was %v", leader, lock, gap.Round(time.Millisecond))
		if gap > answerMax {
			t.Errorf("a group was silent for %v after its leader was killed", gap)
		}
		held.check(n, (leader+1)%peers)
		n.verb(exitOK, fmt.Sprint("restart ", leader))

		lock, leader = victim()
		gap = l.silence(func() {
			n.verb(exitOK, fmt.Sprint("pause ", leader))
			began := time.Now()
			l.answered(3)
			time.Sleep(max(0, *pauseFor-time.Since(began))) // what is tested is a pause of this length
			n.verb(exitOK, fmt.Sprint("resume ", leader))
		})
		t.Logf("froze peer %d, leader of the group of %q, for %v: the longest silence of a group was %v", leader, lock, *pauseFor, gap.Round(time.Millisecond))
		if gap > answerMax {
			t.Errorf("a group was silent for %v while its leader was frozen", gap)
		}
		held.check(n, leader) // which thought that it leads, and must not answer from what it remembers
	}
	t.Logf("%.0f commands a second", l.rate(start))
	for name, h := range held.handles {
		if err := context.Cause(h.Context()); err != nil {
			t.Errorf("%s is lost: %v", name, err)
		}
	}

	// All at once, and no holder renews meanwhile.
	gap := l.silence(func() {
		n.verb(exitOK, fmt.Sprintf("kill 0-%d", peers-1))
		n.verb(exitOK, fmt.Sprintf("restart 0-%d", peers-1))
		held.check(n, 0)
	})
	t.Logf("killed and restarted all: the longest silence of a group was %v", gap.Round(time.Millisecond))
	l.end()
	l.judge()
	n.Process.Signal(syscall.SIGINT)
	if code := n.wait(); code != exitOK || strings.Contains(n.err.String(), "panic") {
		t.Errorf("exit %d, %s", code, n.err.String())
	}
}

// stepMax is how long a group may be silent because one member is replaced.
const stepMax = 2 * time.Second

// membersOf returns the numbers of the peers that keep a lock, as one of them sees it.
func (n *liveNet) membersOf(name string, ask int) (members []int) {
	n.t.Helper()
	peers := n.status().Peers
	daemon, err := api.Dial(peers[ask].API)
	if err != nil {
		n.t.Fatal(err)
	}
	defer daemon.Close()
	ctx, cancel := context.WithTimeout(context.Background(), waitMax)
	defer cancel()
	standing, err := daemon.Group(ctx, name)
	if err != nil {
		n.t.Fatal(err)
	}
	for _, m := range standing.Members {
		if m.Role == "learner" {
			continue
		}
		for _, p := range peers {
			if p.Peer == m.Peer {
				members = append(members, p.N)
			}
		}
	}
	return members
}

// All members of a group leave, one after the other, under load: others take their places, and nothing that was acknowledged goes with
// them.
func TestAllMembersOfAGroupAreReplacedOneByOneUnderLoad(t *testing.T) {
	t.Parallel()
	const peers = 7
	n := upLive(t, socketDir(t), "--mode", "process", "-n", fmt.Sprint(peers), "--depth", fmt.Sprint(loadDepth))
	n.lock(exitOK, 0, "moved")
	founders := n.membersOf("moved", 0)
	keeper := 0
	for slices.Contains(founders, keeper) {
		keeper++
	}
	held := n.keep(keeper)
	l := beginLoad(n, 16)
	for _, leaver := range founders {
		gap := l.silence(func() {
			l.away[leaver].Store(true)
			n.verb(exitOK, fmt.Sprint("leave ", leaver))
			eventually(t, "another has its place", func() bool {
				members := n.membersOf("moved", keeper)
				return len(members) == 3 && !slices.Contains(members, leaver)
			})
		})
		t.Logf("peer %d left: the longest silence of a group was %v", leaver, gap.Round(time.Millisecond))
		if gap > stepMax {
			t.Errorf("a group was silent for %v while peer %d was replaced", gap, leaver)
		}
		held.check(n, keeper)
	}
	l.end()
	l.judge()
	for name, h := range held.handles {
		if err := context.Cause(h.Context()); err != nil {
			t.Errorf("%s is lost: %v", name, err)
		}
	}
	n.Process.Signal(syscall.SIGINT)
	if code := n.wait(); code != exitOK {
		t.Errorf("exit %d, %s", code, n.err.String())
	}
}
