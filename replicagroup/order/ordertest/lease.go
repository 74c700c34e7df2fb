package ordertest

import (
	"fmt"
	"time"

	"latchkey/internal/automaton"
	"latchkey/internal/sim"
	"latchkey/replicagroup/order"
)

// driftMax is how far clocks are off in half of test 21: so far that a lease that does not allow for it is found to.
const driftMax automaton.Drift = 200_000

// partings is how a leader may lose touch, alone with a client that reads from it again and again.
var partings = []func(c *cluster, old sim.NodeID, alone, rest []sim.NodeID){
	func(c *cluster, old sim.NodeID, alone, rest []sim.NodeID) { c.world.SetCut(sim.Split(alone, rest)) },
	func(c *cluster, old sim.NodeID, alone, rest []sim.NodeID) { // others hear it still
		c.world.SetCut(sim.OneWay(rest, alone))
	},
	func(c *cluster, old sim.NodeID, alone, rest []sim.NodeID) { // who has made promises restarts
		c.world.SetCut(sim.Split(alone, rest))
		for _, n := range c.others(old) {
			if c.rand.IntN(3) > 0 {
				c.world.Crash(n)
				c.world.Restart(n)
			}
		}
	},
	func(c *cluster, old sim.NodeID, alone, rest []sim.NodeID) { // it has just begun to hand leadership over
		to := c.others(old)[c.rand.IntN(c.members-1)]
		c.running[old].step(order.Transfer{To: c.disks[to].self})
		c.world.At(c.world.Now()+time.Duration(c.rand.Int64N(int64(patience/100))), func() { c.world.SetCut(sim.Split(alone, rest)) })
	},
	func(c *cluster, old sim.NodeID, alone, rest []sim.NodeID) { // it stands still, with its clock going on
		c.world.Pause(old, time.Duration(c.rand.Int64N(int64(3*patience))))
	},
	func(c *cluster, old sim.NodeID, alone, rest []sim.NodeID) { // it restarts, cut off
		c.world.SetCut(sim.Split(alone, rest))
		c.world.Crash(old)
		c.world.Restart(old)
	},
	func(c *cluster, old sim.NodeID, alone, rest []sim.NodeID) {
		// Somebody who is cut off has promised nothing, and lacks nothing as nobody writes. It comes back to members that have
		// just restarted.
		for _, cl := range c.callers[1:] {
			cl.paused = true
		}
		away := c.others(old)[c.rand.IntN(c.members-1)]
		c.world.At(c.world.Now()+patience/10, func() {
			c.world.SetCut(func(from, to sim.NodeID) bool { return (from == away) != (to == away) })
		})
		c.world.At(c.world.Now()+2*patience, func() {
			c.world.SetCut(sim.Split(alone, rest))
			for _, n := range c.others(old) {
				if n != away {
					c.world.Crash(n)
					c.world.Restart(n)
				}
			}
			for _, cl := range c.callers {
				cl.paused = false
			}
		})
	},
}

// leaseReads is test 21: a leader answers reads on a lease while others, suspicious at once, elect another and write as soon as they
// may; clocks run as differently as they may. The history shows whether a lease ever outlived the promises that it rests on.
func leaseReads(s suite) error {
	return parallel(s.count(32), func(i int) error {
		u := setup{
			seed: s.seed + 21_000 + uint64(i), members: 3 + 2*(i%2), clients: 4, keys: 1, faults: calm, think: patience / 50, quiet: true,
			leases: true, retry: patience / 50, quiesce: [...]time.Duration{patience / 5, -1}[i/2%2],
		}
		u.faults.Drift = [...]automaton.Drift{automaton.DriftDefault, driftMax}[i/4%2]
		c := newCluster(s, u)
		for n := range u.members {
			c.world.SetRate(sim.NodeID(n), int64(u.faults.Drift)*int64(1-2*c.rand.IntN(2)))
		}
		if err := c.warm(2); err != nil {
			return err
		}
		reader := c.callers[0]
		if err := c.leaseIsUsed(reader); err != nil {
			return err
		}
		for range 4 {
			if err := c.await(30*patience, "no leader", func() bool { return c.leader() >= 0 }); err != nil {
				return err
			}
			old := c.leader()
			reader.reads, reader.target = old, old
			if err := c.pass(patience/4 + time.Duration(c.rand.Int64N(int64(patience)))); err != nil {
				return err
			}
			if c.leader() != old {
				continue
			}
			rest := c.everyone()
			delete(rest, old)
			delete(rest, reader.env.ID())
			partings[c.rand.IntN(len(partings))](c, old, []sim.NodeID{old, reader.env.ID()}, list(rest))
			c.doubted[old] = true
			for _, n := range c.others(old) {
				c.suspectAt(patience/50+time.Duration(c.rand.Int64N(int64(patience))), old, n)
			}
			if err := c.pass(3*patience + time.Duration(c.rand.Int64N(int64(2*patience)))); err != nil {
				return err
			}
			c.world.SetCut(nil)
			c.trust(old)
			if err := c.pass(time.Duration(c.rand.Int64N(int64(patience)))); err != nil {
				return err
			}
		}
		reader.reads = -1
		return c.stopAndFinish()
	})
}

// leaseIsUsed demands that a leader with nothing else to do answers reads for less than a round of messages each.
func (c *cluster) leaseIsUsed(reader *client) error {
	leader := c.leader()
	reader.reads, reader.target = leader, leader
	for _, cl := range c.callers {
		cl.paused = cl != reader
	}
	if err := c.pass(patience / 2); err != nil {
		return err
	}
	sent, answers := c.sent, reader.answers
	if err := c.pass(2 * patience); err != nil {
		return err
	}
	sent, answers = c.sent-sent, reader.answers-answers
	if c.leader() == leader && (answers < 20 || sent > answers*c.members) {
		return fmt.Errorf("%d reads cost %d messages (%v, %v)", answers, sent, c, c.world)
	}
	for _, cl := range c.callers {
		cl.paused = false
	}
	return nil
}
