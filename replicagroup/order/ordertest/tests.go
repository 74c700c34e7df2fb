package ordertest

import (
	"fmt"
	"math/bits"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"latchkey/internal/automaton"
	"latchkey/internal/sim"
)

// parallel runs f for 0 to n-1 on all processors and returns the error of the smallest number that has one.
func parallel(n int, f func(i int) error) error {
	var next, failed atomic.Int64
	failed.Store(int64(n))
	errs := make([]error, n)
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for {
				i := next.Add(1) - 1
				if i >= failed.Load() {
					return
				}
				if errs[i] = f(int(i)); errs[i] != nil {
					for old := failed.Load(); i < old && !failed.CompareAndSwap(old, i); old = failed.Load() {
					}
				}
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// drawn returns the faults of a seed, which end at heal at the latest.
func drawn(seed uint64, heal time.Duration) sim.Faults {
	return sim.Draw(seed, sim.Scale{Delay: patience / 20, Timeout: patience, Heal: heal, Drift: automaton.DriftDefault})
}

// calm is a network without faults but for a little delay.
var calm = sim.Faults{DelayMin: time.Millisecond, DelayMax: 5 * time.Millisecond}

// minority is how many of n members may be down.
func minority(n int) int { return (n - 1) / 2 }

// determinism is test 1: same seed twice, equal hashes after every step and equal action streams.
func determinism(s suite) error {
	const steps = 300
	return parallel(s.count(1000), func(i int) error {
		u := setup{seed: s.seed + uint64(i), members: 3 + 2*(i%2), clients: 2, ops: 1000, keys: 2, trace: true}
		u.faults, u.crashLimit = drawn(u.seed, 10*patience), u.members
		if i%2 == 1 {
			u.spares, u.churn = 2, &churn{every: patience / 20, until: 20 * patience, hasty: true}
		}
		var runs [2]*cluster
		for k := range runs {
			runs[k] = newCluster(s, u)
			if u.churn != nil {
				runs[k].world.At(0, runs[k].plan)
			}
			if err := runs[k].run(20*patience, func() bool { return len(runs[k].trail) >= steps }); err != nil {
				return err
			}
		}
		a, b := runs[0].trail, runs[1].trail
		for k := range min(len(a), len(b)) {
			if a[k] != b[k] {
				return fmt.Errorf("two runs of one seed differ at step %d (%v, %v)", k+1, runs[0], runs[0].world)
			}
		}
		if len(a) != len(b) || len(a) < steps/2 {
			return fmt.Errorf("two runs of one seed make %d and %d steps (%v, %v)", len(a), len(b), runs[0], runs[0].world)
		}
		return nil
	})
}

// totalOrder is test 2: agreement and total order, 3, 5 and 7 members, four proposers, links as bad as they are drawn.
func totalOrder(s suite) error {
	const each = 140 // 4 clients x 18 worlds x 140 are 10,080 commands
	return parallel(s.count(18), func(i int) error {
		u := setup{seed: s.seed + 2_000 + uint64(i), members: 3 + 2*(i%3), clients: 4, ops: each, keys: 5}
		u.faults = drawn(u.seed, 20*patience)
		u.faults.Loss, u.faults.Duplicate = max(u.faults.Loss, .02), max(u.faults.Duplicate, .02)
		u.faults.Reorder, u.faults.ReorderBy = max(u.faults.Reorder, .02), max(u.faults.ReorderBy, patience/2)
		u.crashLimit = minority(u.members)
		return newCluster(s, u).finish()
	})
}

// noDuplication is test 3: every command goes through three members at once and is repeated over changes of the leader.
func noDuplication(s suite) error {
	return parallel(s.count(24), func(i int) error {
		u := setup{seed: s.seed + 3_000 + uint64(i), members: 3 + 2*(i%2), clients: 3, ops: 40, keys: 2, triple: true}
		u.faults = drawn(u.seed, 20*patience)
		u.faults.CrashEvery, u.faults.CrashFor = 2*patience, patience
		u.crashLimit = minority(u.members)
		return newCluster(s, u).finish()
	})
}

// crashEverywhere is test 4: a script of some hundred events, run again and again with a crash before and after each
// persist and each send; with five members, a second crash follows the first.
func crashEverywhere(s suite) error {
	for _, u := range []setup{
		{seed: s.seed + 4_001, members: 3, clients: 2, ops: 8, keys: 2, faults: calm, quiet: true},
		{seed: s.seed + 4_002, members: 5, clients: 2, ops: 6, keys: 2, faults: calm, quiet: true},
	} {
		whole := newCluster(s, u)
		if err := whole.finish(); err != nil {
			return err
		}
		stride := max(1, int(1/s.effort))
		err := parallel(whole.points/stride, func(i int) error {
			v := u
			at := i * stride
			v.crashAt = []int{at}
			if u.members == 5 {
				v.crashAt = append(v.crashAt, at+1+at*7%61)
			}
			return newCluster(s, v).finish()
		})
		if err != nil {
			return err
		}
	}
	return forks(s)
}

// forks goes through the crash points of the first elections with a member that heard of none of them.
func forks(s suite) error {
	const points = 60
	return parallel(s.count(8*points), func(i int) error {
		u := setup{seed: s.seed + 4_100 + uint64(i/points), members: 3, clients: 2, ops: 4, keys: 2, faults: calm, quiet: true}
		u.fork, u.crashAt = true, []int{i % points}
		c := newCluster(s, u)
		c.world.SetCut(sim.Bridged(1, []sim.NodeID{0, 3}, []sim.NodeID{2, 4}))
		if err := c.pass(6 * patience); err != nil {
			return err
		}
		c.world.SetCut(nil)
		return c.finish()
	})
}

// warm runs the cluster until every client has had answers and a member leads.
func (c *cluster) warm(answers int) error {
	return c.await(60*patience, fmt.Sprintf("%d answers for each client and a leader", answers), func() bool {
		return c.answeredEach(answers) && c.leader() >= 0
	})
}

// answeredEach reports whether every client has had this many answers.
func (c *cluster) answeredEach(n int) bool {
	for _, cl := range c.callers {
		if cl == nil || cl.answers < n {
			return false
		}
	}
	return true
}

// answersSoFar counts the answers that reached clients.
func (c *cluster) answersSoFar() (n int) {
	for _, cl := range c.callers {
		n += cl.answers
	}
	return n
}

// progress demands that clients whose node is in among get answers within a while.
func (c *cluster) progress(among map[sim.NodeID]bool) error {
	before := make(map[*client]int)
	for _, cl := range c.callers {
		if among[cl.env.ID()] {
			before[cl] = cl.answers
		}
	}
	return c.await(30*patience, "clients of a majority had no answer", func() bool {
		for cl, n := range before {
			if cl.answers < n+2 {
				return false
			}
		}
		return true
	})
}

// everyone is all nodes.
func (c *cluster) everyone() map[sim.NodeID]bool {
	all := make(map[sim.NodeID]bool)
	for i := range c.hosts + c.clients {
		all[sim.NodeID(i)] = true
	}
	return all
}

// stopAndFinish ends the workload and judges the run.
func (c *cluster) stopAndFinish() error {
	for _, cl := range c.callers {
		cl.stop()
	}
	return c.finish()
}

// restartEveryone boots whoever is down.
func (c *cluster) restartEveryone() {
	for i := range c.hosts {
		c.world.Restart(sim.NodeID(i))
	}
}

// noAnswers demands that for a long while no answer reaches a client, after what was on its way has arrived.
func (c *cluster) noAnswers(why string) error {
	if err := c.pass(patience / 10); err != nil {
		return err
	}
	before := c.answersSoFar()
	if err := c.pass(20 * patience); err != nil {
		return err
	}
	if n := c.answersSoFar() - before; n > 0 {
		return fmt.Errorf("%d answers although %s (%v, %v)", n, why, c, c.world)
	}
	return nil
}

// majorityDown is test 5: with f+1 members down nothing is acknowledged; one of them back with its disk makes progress.
func majorityDown(s suite) error {
	return parallel(s.count(20), func(i int) error {
		u := setup{seed: s.seed + 5_000 + uint64(i), members: 3 + 2*(i%2), clients: 3, keys: 3, faults: calm, think: patience / 20}
		c := newCluster(s, u)
		if err := c.warm(3); err != nil {
			return err
		}
		// The victims are neighbours on a circle, so that over the seeds the leader is among them and not.
		begin := c.rand.IntN(u.members)
		for k := range minority(u.members) + 1 {
			c.world.Crash(sim.NodeID((begin + k) % u.members))
		}
		if err := c.noAnswers("a majority is down"); err != nil {
			return err
		}
		c.world.Restart(sim.NodeID(begin))
		if err := c.progress(c.everyone()); err != nil {
			return err
		}
		c.restartEveryone()
		return c.stopAndFinish()
	})
}

// restartAll is test 6: all members crash at once, several times; what was acknowledged is there afterwards.
func restartAll(s suite) error {
	return parallel(s.count(30), func(i int) error {
		u := setup{seed: s.seed + 6_000 + uint64(i), members: 3 + 2*(i%2), clients: 4, keys: 3, faults: calm, think: patience / 20}
		c := newCluster(s, u)
		for round := 1; round <= 4; round++ {
			if err := c.warm(4 * round); err != nil {
				return err
			}
			for k := range u.members {
				c.world.Crash(sim.NodeID(k))
			}
			for k := range u.members {
				c.world.At(c.world.Now()+time.Duration(c.rand.Int64N(int64(2*patience))), func() { c.world.Restart(sim.NodeID(k)) })
			}
			if err := c.pass(2 * patience); err != nil {
				return err
			}
		}
		return c.stopAndFinish()
	})
}

// lostDisk is test 7. The last entries are at the leader and one follower. That follower loses its disk and the leader
// goes down: the follower that is left and the one that forgot would be a majority, if the new store counted as the old.
func lostDisk(s suite) error {
	return parallel(s.count(20), func(i int) error {
		u := setup{seed: s.seed + 7_000 + uint64(i), members: 3, clients: 3, keys: 3, faults: calm, think: patience / 20, impostor: i%2 == 0}
		c := newCluster(s, u)
		if err := c.warm(3); err != nil {
			return err
		}
		leader := c.leader()
		behind, victim := (leader+1)%3, (leader+2)%3
		rest := c.everyone()
		delete(rest, behind)
		c.world.SetCut(sim.Split([]sim.NodeID{behind}, list(rest)))
		if err := c.progress(rest); err != nil {
			return err
		}
		if leader != c.leader() {
			leader, victim = victim, leader // it moved: the other two still hold the last entries
		}
		c.world.Crash(leader)
		c.loseDisk(victim)
		c.world.Restart(victim)
		c.world.SetCut(nil)
		if err := c.noAnswers("of two members that are up one has lost its disk"); err != nil {
			return err
		}
		c.world.Restart(leader)
		if err := c.progress(c.everyone()); err != nil {
			return err
		}
		return c.stopAndFinish()
	})
}

func list(set map[sim.NodeID]bool) (nodes []sim.NodeID) {
	for n := range sim.NodeID(64) {
		if set[n] {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// primaryOnly is test 8: every way to cut five members in two and in three, links that fail one way, a node that bridges
// two sides. Only a side with a majority answers what was asked after the cut; healed in any order, all goes on.
func primaryOnly(s suite) error {
	const n = 5
	const all = 1<<n - 1
	type trial struct {
		name string
		cut  func(c *cluster) error
	}
	var trials []trial
	add := func(cut func(c *cluster) error, name string, args ...any) {
		trials = append(trials, trial{fmt.Sprintf(name, args...), cut})
	}
	for a := 1; a < all; a++ {
		rest := all &^ a
		add(func(c *cluster) error { return c.cutOtherwise(sim.OneWay(list(c.side(a)), list(c.side(rest)))) },
			"%05b cannot send to %05b", a, rest)
		if a < rest {
			add(func(c *cluster) error { return c.cutInto(a, rest) }, "%05b | %05b", a, rest)
		}
		for b := a + 1; b < all; b++ {
			third := rest &^ b
			if a&b != 0 || third == 0 {
				continue
			}
			if third&(third-1) == 0 {
				bridge := sim.NodeID(bits.TrailingZeros(uint(third)))
				add(func(c *cluster) error {
					return c.cutOtherwise(sim.Bridged(bridge, list(c.side(a)), list(c.side(b))))
				}, "%05b | %05b, bridge %05b", a, b, third)
			}
			if third < b {
				continue
			}
			for _, heal := range [][3]int{{a, b, third}, {a, third, b}, {b, third, a}} {
				add(func(c *cluster) error {
					if err := c.cutInto(a, b, third); err != nil {
						return err
					}
					return c.cutInto(heal[0]|heal[1], heal[2])
				}, "%05b | %05b | %05b, then %05b | %05b", a, b, third, heal[0]|heal[1], heal[2])
			}
		}
	}
	stride := max(1, int(2/s.effort)) // all with an effort of 2
	return parallel(len(trials)/stride, func(i int) error {
		c := newCluster(s, setup{seed: s.seed + 8_000 + uint64(i), members: n, clients: n, keys: 3, faults: calm, think: patience / 20})
		err := c.warm(2)
		if err == nil {
			err = trials[i*stride].cut(c)
		}
		c.world.SetCut(nil)
		c.answers = nil
		if err == nil {
			err = c.progress(c.everyone())
		}
		if err == nil {
			err = c.stopAndFinish()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", trials[i*stride].name, err)
		}
		return nil
	})
}

// side returns the members in a bit set, each with its client.
func (c *cluster) side(bits int) map[sim.NodeID]bool {
	set := make(map[sim.NodeID]bool)
	for i := range c.members {
		if bits>>i&1 == 1 {
			set[sim.NodeID(i)], set[sim.NodeID(c.hosts+i)] = true, true
		}
	}
	return set
}

// cutInto cuts the cluster into sides for a while and demands that only a majority answers, and that it does.
func (c *cluster) cutInto(sides ...int) error {
	var lists [][]sim.NodeID
	var major map[sim.NodeID]bool
	for _, bits := range sides {
		side := c.side(bits)
		lists = append(lists, list(side))
		if len(side) > c.members { // members and clients together
			major = side
		}
	}
	c.world.SetCut(sim.Split(lists...))
	cutAt := c.world.Now()
	c.answers = func(m *member, cl *client) error {
		if !major[m.env.ID()] && cl.began > cutAt {
			return fmt.Errorf("replica %d answers on the side of a minority", m.id)
		}
		return nil
	}
	if major != nil {
		if err := c.progress(major); err != nil {
			return err
		}
	}
	return c.pass(4 * patience)
}

// cutOtherwise cuts links in a way in which it is not plain who has a majority, for a while.
func (c *cluster) cutOtherwise(cut sim.Cut) error {
	c.world.SetCut(cut)
	return c.pass(6 * patience)
}

// staleReads is test 12: a leader is cut off, alone with a client that reads from it, or half cut off, or paused, while
// the others go on and write. The history shows whether it ever answered with less than was acknowledged.
func staleReads(s suite) error {
	return parallel(s.count(40), func(i int) error {
		u := setup{seed: s.seed + 12_000 + uint64(i), members: 3 + 2*(i%2), clients: 4, keys: 1, faults: calm, think: patience / 20}
		u.faults.Drift = automaton.DriftDefault
		if i%4 >= 2 {
			u.faults.DelayMax = patience / 10
		}
		c := newCluster(s, u)
		if err := c.warm(2); err != nil {
			return err
		}
		reader := c.callers[0]
		for range 6 {
			if err := c.await(30*patience, "no leader", func() bool { return c.leader() >= 0 }); err != nil {
				return err
			}
			old := c.leader()
			others := c.everyone()
			delete(others, old)
			reader.reads, reader.target = old, old
			alone, rest := []sim.NodeID{old}, list(others)
			switch c.rand.IntN(4) {
			case 0:
				delete(others, reader.env.ID())
				c.world.SetCut(sim.Split(append(alone, reader.env.ID()), list(others)))
			case 1:
				c.world.SetCut(sim.OneWay(alone, rest[:c.members-1])) // its answers still reach clients
			case 2:
				c.world.SetCut(sim.OneWay(rest[:c.members-1], alone))
			default:
				c.world.Pause(old, time.Duration(c.rand.Int64N(int64(4*patience))))
			}
			if err := c.pass(patience + time.Duration(c.rand.Int64N(int64(3*patience)))); err != nil {
				return err
			}
			c.world.SetCut(nil)
			if err := c.pass(time.Duration(c.rand.Int64N(int64(patience)))); err != nil {
				return err
			}
		}
		reader.reads = -1
		return c.stopAndFinish()
	})
}

// linearizability is test 13: histories of 10^5 operations on registers and locks with faults of every kind.
func linearizability(s suite) error {
	const clients, ops = 16, 625 // 10 worlds of 10,000 operations, with an effort of 2
	each := max(20, int(ops*min(1, s.effort/2)))
	return parallel(max(10, s.count(10)), func(i int) error {
		u := setup{seed: s.seed + 13_000 + uint64(i), members: 3 + 2*(i%2), clients: clients, ops: each, keys: 24, locks: true}
		u.faults = drawn(u.seed, 60*patience)
		u.crashLimit = u.members // with their disks all may be down
		return newCluster(s, u).finish()
	})
}
