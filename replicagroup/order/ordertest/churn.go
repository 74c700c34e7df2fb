package ordertest

import (
	"fmt"
	"slices"
	"time"

	"latchkey/internal/sim"
	"latchkey/replicagroup/order"
)

// churn asks for changes of the membership while a cluster runs: a learner, and when it has caught up, the change that puts it
// in a voter's place, and so on. What it asks may come too early, twice or of a member that does not lead.
type churn struct {
	every, until time.Duration // mean pause between two questions; when it ends
	once         bool          // every founder is replaced by a peer that was no member before, two seconds apart, and that is all
	polite       bool          // who leads is never asked to leave: it hands leadership over first
	hasty        bool          // now and then two plans at once, or a learner promoted that has nothing
}

// plan asks for the next step and comes again.
func (c *cluster) plan() {
	if c.world.Now() > c.churn.until {
		return
	}
	if n := c.leader(); n >= 0 {
		c.askChange(c.running[n], c.step(c.running[n]))
		if c.churn.hasty && c.rand.IntN(3) == 0 {
			c.askChange(c.running[n], c.step(c.running[n]))
			if other := c.running[c.rand.IntN(c.hosts)]; other != nil && other.engine != nil {
				c.askChange(other, c.step(other))
			}
		}
	}
	c.world.At(c.world.Now()+time.Duration(c.rand.ExpFloat64()*float64(c.churn.every)), c.plan)
}

// step draws what a member should be asked for next, nil for nothing.
func (c *cluster) step(m *member) order.Event {
	v := m.engine.Status().View
	if v.Joint() && !c.churn.hasty {
		return nil
	}
	var learners, victims []order.ReplicaID
	for _, x := range v.Members {
		switch x.Role {
		case order.Learner:
			learners = append(learners, x.ID)
		case order.Voter:
			if c.churn.once && int(x.ID) > c.members {
				continue
			}
			if c.disks[c.home[x.ID]].store != x.Store {
				victims = []order.ReplicaID{x.ID} // lost
				continue
			}
			if len(victims) != 1 || c.disks[c.home[victims[0]]].store == c.ids[victims[0]].Store {
				victims = append(victims, x.ID)
			}
		}
	}
	if len(victims) == 0 {
		return nil
	}
	if c.churn.once && c.world.Now() < c.settled+2*patience {
		return nil
	}
	if len(learners) == 0 {
		return c.learn(v)
	}
	learner, victim := learners[c.rand.IntN(len(learners))], victims[c.rand.IntN(len(victims))]
	if c.churn.once {
		victim = victims[0]
	}
	if behind, ok := m.engine.Status().Behind[learner]; (!ok || behind > 64) && !(c.churn.hasty && c.rand.IntN(4) == 0) {
		return nil
	}
	if victim == m.id && (c.churn.polite || c.rand.IntN(4) > 0) {
		to := v.Voters()
		return order.Transfer{To: to[c.rand.IntN(len(to))]}
	}
	if c.churn.hasty && c.rand.IntN(8) == 0 {
		return order.Change{From: v.Num, Remove: []order.ReplicaID{learner}}
	}
	return order.Change{From: v.Num, Promote: []order.ReplicaID{learner}, Remove: []order.ReplicaID{victim}}
}

// learn draws a newcomer: a peer that is no member with the store it has now.
func (c *cluster) learn(v order.View) order.Event {
	var free []sim.NodeID
	for n := range sim.NodeID(c.hosts) {
		if _, member := v.At(peerOf(n), c.disks[n].store); !member && !(c.churn.once && c.disks[n].self != 0) {
			free = append(free, n)
		}
	}
	if len(free) == 0 {
		return nil
	}
	n := free[c.rand.IntN(len(free))]
	return order.Change{From: v.Num, Learn: &order.Newcomer{Peer: peerOf(n), Store: c.disks[n].store}}
}

// askChange puts a question to a member's engine.
func (c *cluster) askChange(m *member, ev order.Event) {
	if ch, ok := ev.(order.Change); ok {
		m.nextRef++
		ch.Ref = m.nextRef
		m.changing[ch.Ref] = ch.From
		ev = ch
	}
	if ev != nil {
		m.step(ev)
	}
}

// changed checks the answer to a change: nil stands for an entry that changed the view, once for each view.
func (c *cluster) changed(m *member, from uint64, d order.Outcome) {
	if d.Err != nil {
		return
	}
	if num, ok := c.changes[d.Index]; !ok || num != from+1 {
		c.fail("I13: replica %d says that a change of view %d stands at %d, where none is", m.id, from, d.Index)
	}
	if other, ok := c.answeredChange[from]; ok {
		c.fail("I13: view %d was changed by the entries at %d and %d", from, other, d.Index)
	}
	c.answeredChange[from] = d.Index
}

// noted checks a view that a member tells of: I10, I11 and I13. Whoever is new in it gets a replica.
func (c *cluster) noted(m *member, note order.ViewNote) {
	v := note.View
	switch {
	case note.Index >= m.next:
		c.fail("I10: replica %d tells of a view at %d, delivered is %d", m.id, note.Index, m.next-1)
	case note.Joint != v.Joint():
		c.fail("I10: replica %d says joint %v of view %v", m.id, note.Joint, v)
	}
	if at := slices.Index(m.owed, note.Index); at >= 0 {
		m.owed = slices.Delete(m.owed, at, at+1)
		if c.changes[note.Index] != v.Num || v.Num != m.view.Num+1 && m.view.Num != 0 {
			c.fail("I10: replica %d goes from view %d to %d by the entry at %d", m.id, m.view.Num, v.Num, note.Index)
		}
	} else if m.installed != note.Index {
		c.fail("I10: replica %d tells of view %d at %d, where nothing changes it", m.id, v.Num, note.Index)
	}
	m.view = v
	if known, ok := c.views[v.Num]; ok {
		if fmt.Sprint(known) != fmt.Sprint(v) {
			c.fail("I10: replica %d has view %v, elsewhere it is %v", m.id, v, known)
		}
		return
	}
	if why := follows(c.view, v); why != "" {
		c.fail("%s: replica %d has view %v after %v", why, m.id, v, c.view)
		return
	}
	if c.view.Joint() {
		c.settled = c.world.Now()
	}
	c.view, c.views[v.Num] = v, v
	for _, x := range v.Members {
		if !c.placed[x.ID] {
			c.place(x, v)
		}
	}
	if c.onView != nil {
		c.onView(m, note)
	}
}

// follows says which invariant does not hold if next comes after v, in words of its own.
func follows(v, next order.View) string {
	before := make(map[order.ReplicaID]order.Member)
	joint := false
	for _, m := range v.Members {
		before[m.ID] = m
		joint = joint || m.Role == order.Joining || m.Role == order.Leaving
	}
	fresh, gone, turned, odd := 0, len(v.Members), 0, 0
	for _, m := range next.Members {
		old, known := before[m.ID]
		switch {
		case !known && m.ID != v.Next:
			return "I11" // an id that was used, or left out
		case !known && m.Role == order.Learner && next.Next == v.Next+1:
			fresh++
			continue
		case !known:
			return "I10"
		case old.Peer != m.Peer || old.Store != m.Store:
			return "I11"
		}
		gone--
		switch [2]order.Role{old.Role, m.Role} {
		case [2]order.Role{order.Learner, order.Joining}, [2]order.Role{order.Voter, order.Leaving}:
			if joint {
				return "I13"
			}
			turned++
		case [2]order.Role{order.Joining, order.Voter}:
		case [2]order.Role{order.Voter, order.Voter}, [2]order.Role{order.Learner, order.Learner}:
		default:
			return "I10"
		}
		if m.Role == order.Voter {
			odd++
		}
	}
	leaving := 0
	for _, m := range v.Members {
		if m.Role == order.Leaving {
			leaving++
		}
	}
	switch {
	case next.Num != v.Num+1 || fresh == 0 && next.Next != v.Next:
		return "I10"
	case joint && (fresh > 0 || gone != leaving):
		return "I13"
	case !joint && fresh+turned == 0 && gone != 1, fresh > 0 && turned+gone > 0:
		return "I10"
	case turned == 0 && odd%2 == 0:
		return "I13"
	}
	return ""
}

// introduce makes the members of a view known that are not.
func (c *cluster) introduce(v order.View) {
	for _, x := range v.Members {
		if _, ok := c.ids[x.ID]; !ok {
			c.ids[x.ID] = x
			c.home[x.ID] = sim.NodeID(slices.IndexFunc(c.peers, func(p order.Member) bool { return p.Peer == x.Peer }))
		}
	}
}

// place gives a new member its replica, on an empty part of its peer's disk; what was there before stops.
func (c *cluster) place(x order.Member, v order.View) {
	n := c.home[x.ID]
	c.placed[x.ID] = true
	c.world.At(c.world.Now()+time.Duration(c.rand.Int64N(int64(patience/10))), func() {
		if c.disks[n].store != x.Store {
			return // lost meanwhile
		}
		c.world.Crash(n)
		c.disks[n] = &disk{store: x.Store, self: x.ID, join: &v}
		c.world.Restart(n)
	})
}

// replaceAll is test 10: every member is replaced, one by one, under commands; nothing acknowledged is lost and the answers
// pause for less than two seconds.
func replaceAll(s suite) error {
	return parallel(s.count(8), func(i int) error {
		u := setup{seed: s.seed + 10_000 + uint64(i), members: 3 + 2*(i%2), clients: 8, keys: 5, faults: calm, think: patience / 100, quiet: true}
		u.spares = u.members
		u.churn = &churn{every: patience / 10, until: 200 * patience, once: true}
		c := newCluster(s, u)
		if err := c.warm(3); err != nil {
			return err
		}
		c.gap, c.answeredAt = 0, c.world.Now()
		c.plan()
		err := c.await(u.churn.until, "not every founder was replaced", func() bool {
			return !c.view.Joint() && c.view.Members[0].ID > order.ReplicaID(u.members)
		})
		if err != nil {
			return err
		}
		if c.gap >= 2*patience {
			return fmt.Errorf("no answer for %v while members were replaced (%v, %v)", c.gap, c, c.world)
		}
		if err := c.progress(c.everyone()); err != nil {
			return err
		}
		if err := c.stopAndFinish(); err != nil {
			return err
		}
		return c.await(60*patience, "a removed replica goes on", func() bool {
			for n := range u.members {
				if !c.running[n].halted {
					return false
				}
			}
			return true
		})
	})
}

// racingChanges is test 11: plans that come twice and too early, under crashes of leaders in the joint view, cuts and lost
// disks; removed members that were away and come back; peers that return under new ids.
func racingChanges(s suite) error {
	return parallel(s.count(36), func(i int) error {
		u := setup{seed: s.seed + 11_000 + uint64(i), members: 3 + 2*(i%2), clients: 3, keys: 3, think: patience / 20, spares: 2}
		u.faults = calm
		if i%3 > 0 {
			u.faults, u.crashLimit = drawn(u.seed, 30*patience), minority(u.members)
		}
		u.churn = &churn{every: patience / 4, until: 40 * patience, hasty: true}
		c := newCluster(s, u)
		switch i % 6 {
		case 0: // the leader dies in the joint view, and comes back
			c.onView = func(m *member, note order.ViewNote) {
				if n := c.leader(); note.Joint && n >= 0 && c.rand.IntN(2) == 0 {
					c.world.At(c.world.Now()+time.Duration(c.rand.Int64N(int64(patience/50))), func() { c.world.Crash(n) })
					c.world.At(c.world.Now()+time.Duration(c.rand.Int64N(int64(3*patience))), func() { c.world.Restart(n) })
				}
			}
		case 3: // who is to leave is cut off, hears nothing of it and comes back
			c.onView = func(m *member, note order.ViewNote) {
				at := slices.IndexFunc(note.View.Members, func(x order.Member) bool { return x.Role == order.Leaving })
				if at >= 0 && c.rand.IntN(2) == 0 {
					others := c.everyone()
					away := c.home[note.View.Members[at].ID]
					delete(others, away)
					c.world.SetCut(sim.Split([]sim.NodeID{away}, list(others)))
					c.world.At(c.world.Now()+time.Duration(c.rand.Int64N(int64(4*patience))), func() { c.world.SetCut(nil) })
				}
			}
		}
		if i%4 == 1 { // a disk is lost for good: its peer comes back as another replica
			c.world.At(20*patience, func() {
				if n := c.home[c.view.Voters()[0]]; c.world.Down() == 0 {
					c.loseDisk(n)
					c.world.Restart(n)
				}
			})
		}
		c.world.At(2*patience, c.plan)
		if err := c.run(u.churn.until, func() bool { return false }); err != nil {
			return err
		}
		c.onView = nil
		c.world.SetCut(nil)
		for n := range c.hosts {
			c.world.Restart(sim.NodeID(n))
		}
		if c.view.Num < 6 {
			return fmt.Errorf("only %d views: %w (%v, %v)", c.view.Num, errStuck, c, c.world)
		}
		if err := c.await(30*patience, "a joint view is not left", func() bool { return !c.view.Joint() }); err != nil {
			return err
		}
		return c.stopAndFinish()
	})
}
