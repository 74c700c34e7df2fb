package ordertest

import (
	"fmt"
	"time"

	"latchkey/internal/sim"
	"latchkey/replicagroup/order"
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
		for n := range c.slow { // what waits for its disk would take for ever
			c.world.Crash(n)
			c.world.Restart(n)
		}
		c.slow, c.syncTime = nil, patience/100
		return c.stopAndFinish()
	})
}

// carry moves a snapshot to a member piece by piece, beside other messages, and tells the engine how that goes. It ends when one of
// the two stops.
func (m *member) carry(to sim.NodeID, s order.Send) {
	const piece = patience / 4
	left := len(s.Snapshot)
	receiver := m.c.running[to]
	m.c.carrying++
	var next func()
	next = func() {
		switch {
		case m.c.running[to] != receiver || receiver == nil:
			m.step(order.Carried{To: s.To, State: order.Failed})
		case left <= 0:
			m.c.carried++
			m.env.Send(to, frame{from: m.id, to: s.To, store: m.disk.store, msg: s.Whole()})
			m.step(order.Carried{To: s.To, State: order.Arrived})
		default:
			left -= m.c.carry / int(patience/piece)
			m.step(order.Carried{To: s.To, State: order.Underway})
			m.env.After(piece, next)
		}
	}
	m.env.After(piece, next)
}

// lateJoiner is test 9, without the pieces, which are the driver's: a group has executed thousands of commands and kept few of them;
// a new member needs its snapshot, which takes three seconds and more to carry. The sender dies in the middle of that, and another begins anew. The
// snapshot comes through once or twice, not again and again, and the member catches up and becomes a voter.
func lateJoiner(s suite) error {
	return parallel(s.count(4), func(i int) error {
		u := setup{
			seed: s.seed + 9_000 + uint64(i), members: 3, spares: 1, clients: 8, keys: 40, faults: calm, think: patience / 100, quiet: true,
			ballast: 1 << 20, carry: (1 << 20) / (3 + i%3),
		}
		c := newCluster(s, u)
		c.compactEvery, c.applyTime = 200, 0
		if err := c.warm(60); err != nil {
			return err
		}
		leader := c.leader()
		m := c.running[leader]
		st := m.engine.Status()
		if st.First < c.first+100 {
			return fmt.Errorf("the log was not cut: it begins at %d (%v, %v)", st.First, c, c.world)
		}
		c.askChange(m, order.Change{From: st.View.Num, Learn: &order.Newcomer{Peer: peerOf(3), Store: c.disks[3].store}})
		if err := c.await(10*patience, "no learner", func() bool { return len(c.view.Members) == 4 && c.running[3].id != 0 }); err != nil {
			return err
		}
		if err := c.pass(patience/4 + time.Duration(c.rand.Int64N(int64(patience)))); err != nil {
			return err
		}
		if c.carried > 0 || c.carrying == 0 {
			return fmt.Errorf("%d snapshots are under way, %d have arrived (%v, %v)", c.carrying, c.carried, c, c.world)
		}
		c.world.Crash(leader)
		behind := func() uint64 {
			if n := c.leader(); n >= 0 {
				if b, ok := c.running[n].engine.Status().Behind[4]; ok {
					return b
				}
			}
			return 1 << 40
		}
		if err := c.await(20*patience, "the new member does not catch up", func() bool { return behind() < 64 }); err != nil {
			return err
		}
		if c.carrying > 2 {
			return fmt.Errorf("%d snapshots for one member (%v, %v)", c.carrying, c, c.world)
		}
		c.world.Restart(leader)
		if err := c.await(30*patience, "the new member is not promoted", func() bool {
			if n := c.leader(); n >= 0 && n != leader && !c.view.Joint() && c.view.Members[len(c.view.Members)-1].Role == order.Learner {
				c.askChange(c.running[n], order.Change{From: c.view.Num, Promote: []order.ReplicaID{4}, Remove: []order.ReplicaID{c.disks[leader].self}})
			}
			_, stays := c.view.Member(c.disks[leader].self)
			return !stays && !c.view.Joint()
		}); err != nil {
			return err
		}
		return c.stopAndFinish()
	})
}

// backPressure is test 15: a member a hundred times slower than the others. They go on as if it were well, and neither what waits at
// it nor the log that is kept for it grows without bound.
func backPressure(s suite) error {
	const waitingMax = 2 << 20 // bytes that wait for a disk or a machine; what the clients write in the time is some times that
	return parallel(s.count(2), func(i int) error {
		u := setup{
			seed: s.seed + 15_000 + uint64(i), members: 3 + 2*(i%2), clients: 12, keys: 100, faults: calm, quiet: true,
			pad: 8 << 10, sync: time.Millisecond, quiesce: -1,
		}
		c := newCluster(s, u)
		c.compactEvery, c.applyTime = 100, time.Millisecond
		if err := c.warm(3); err != nil {
			return err
		}
		// answered counts the answers of a while.
		answered := func() (int, error) {
			before := c.answersSoFar()
			err := c.pass(2 * patience)
			return c.answersSoFar() - before, err
		}
		well, err := answered()
		if err != nil {
			return err
		}
		slow := c.others(c.leader())[c.rand.IntN(u.members-1)]
		c.slow = map[sim.NodeID]int{slow: 100}
		for range 2 {
			most := 0
			c.world.Check = func() error {
				for _, m := range c.running {
					most = max(most, m.waiting())
				}
				return nil
			}
			with, err := answered()
			if err != nil {
				return err
			}
			c.world.Check = nil
			switch log := c.running[c.leader()].engine.Status(); {
			case with < well*2/3:
				return fmt.Errorf("%d answers beside a slow member, %d without (%v, %v)", with, well, c, c.world)
			case most > waitingMax:
				return fmt.Errorf("%d bytes wait at a member, at most %d (%v, %v)", most, waitingMax, c, c.world)
			case log.Last-log.First > 4*c.compactEvery:
				return fmt.Errorf("%d entries are kept (%v, %v)", log.Last-log.First, c, c.world)
			}
		}
		c.slow = nil
		return c.stopAndFinish()
	})
}

// waiting returns the bytes that wait for the member's disk and machine.
func (m *member) waiting() (n int) {
	for _, p := range m.writing {
		for _, r := range p.Records {
			n += len(r.Data)
		}
	}
	for _, t := range m.todo {
		if e, ok := t.(order.Entry); ok {
			n += len(e.Cmd.Data)
		}
	}
	for _, h := range m.held {
		n += len(h.Msg)
	}
	return n
}

// gracefulLeave is test 17: every member is replaced by another, and hands leadership over before it goes. No client ever waits
// for longer than half an election time-out.
func gracefulLeave(s suite) error {
	return parallel(s.count(8), func(i int) error {
		u := setup{seed: s.seed + 17_000 + uint64(i), members: 3 + 2*(i%2), clients: 6, keys: 5, faults: calm, think: patience / 50, quiet: true, retry: patience / 20}
		u.spares = u.members
		u.churn = &churn{every: patience / 10, until: 200 * patience, once: true, polite: true}
		c := newCluster(s, u)
		if err := c.warm(3); err != nil {
			return err
		}
		c.slowest = 0
		c.plan()
		err := c.await(u.churn.until, "not every founder was replaced", func() bool {
			return !c.view.Joint() && c.view.Members[0].ID > order.ReplicaID(u.members)
		})
		if err != nil {
			return err
		}
		if c.slowest > patience/2 {
			return fmt.Errorf("a client waited for %v while members left (%v, %v)", c.slowest, c, c.world)
		}
		return c.stopAndFinish()
	})
}
