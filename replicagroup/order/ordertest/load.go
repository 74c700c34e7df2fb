package ordertest

import (
	"time"

	"latchkey/internal/sim"
)

// slowDisks is test 20: writes take about as long as elections, one member's ten times longer, and leaders are cut off again and
// again. So the disk reports writes of terms that are over, of entries that another leader has replaced since, and of votes in
// elections that somebody else has won.
func slowDisks(s suite) error {
	return parallel(s.count(24), func(i int) error {
		u := setup{seed: s.seed + 20_000 + uint64(i), members: 3 + 2*(i%2), clients: 3, keys: 3, faults: calm, think: patience / 20}
		u.sync = time.Duration(1+i%5) * patience / 5
		c := newCluster(s, u)
		c.slow = map[sim.NodeID]int{sim.NodeID(c.rand.IntN(u.members)): 1 + 9*(i%2)}
		for range 12 {
			if err := c.pass(patience + time.Duration(c.rand.Int64N(int64(5*patience)))); err != nil {
				return err
			}
			cut := sim.NodeID(c.rand.IntN(u.members))
			for _, m := range c.running {
				if m != nil && m.leader == m.id && c.rand.IntN(4) > 0 {
					cut = m.env.ID()
				}
			}
			switch c.rand.IntN(4) {
			case 0:
				c.world.SetCut(sim.OneWay([]sim.NodeID{cut}, c.others(cut)))
			case 1:
				c.world.SetCut(sim.Split([]sim.NodeID{cut}, c.others(cut)))
			case 2:
				c.world.Crash(cut)
			default: // it comes back with less than it had, and somebody who knows is away
				c.world.Crash(cut)
				c.world.Restart(cut)
				away := c.others(cut)[c.rand.IntN(u.members-1)]
				c.world.SetCut(sim.Split([]sim.NodeID{away}, c.others(away)))
			}
			if err := c.pass(patience/2 + time.Duration(c.rand.Int64N(int64(3*patience)))); err != nil {
				return err
			}
			c.world.SetCut(nil)
			c.restartEveryone()
		}
		c.slow, c.syncTime = nil, patience/100
		return c.stopAndFinish()
	})
}
