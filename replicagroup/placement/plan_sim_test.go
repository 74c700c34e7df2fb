package placement

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/internal/sim"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/quorum"
)

// The world of conformance tests 45 and 46: an overlay grows from its founder to 7 and to 50 peers and shrinks back, while
// peers crash, lose their disks, leave, and detectors suspect those that are well. The ordering engine is a model: views that
// cannot be lost, one leader at a time, joint changes in two halves, changes whose fate stays unknown. Leaders come and go.
const (
	planPeers  = 50
	planGroups = 3
	nowhere    = -1
)

// planGroup is one group: its true view, and the plan of whoever leads it.
type planGroup struct {
	point   keyspace.Key
	anchor  keyspace.Preimage
	prefix  keyspace.Prefix
	view    order.View
	old     order.View
	next    []order.Member // the members once the joint phase is over; nil outside
	target  []order.Member // the members that the change in flight would lead to
	applied [planPeers]order.View

	leader  int
	term    uint64
	plan    *Planner
	since   sim.Time // this leadership
	told    map[int]sim.Time
	busy    bool // a change of this leadership is in flight
	caught  map[order.ReplicaID]sim.Time
	changed sim.Time // end of the last change of voters
	began   sim.Time // begin of it
	changes int
	learned int
}

type planWorld struct {
	*sim.World
	f       int
	chance  *rand.Rand
	peers   [planPeers]Host
	index   map[keyspace.NodeID]int
	booted  [planPeers]sim.Time
	client  [planPeers]bool
	leaving [planPeers]sim.Time // 0, or when it last said so
	wished  [planPeers]sim.Time // when it last said so, though it may have stayed
	flaps   map[[2]int]sim.Time // observer, observed: until when it is suspected wrongly
	groups  [planGroups]*planGroup
	calm    bool // no crashes, no false suspicions, no lost messages
	loss    float64
	rests   int // of plans whose group sleeps
	// Of worlds that do not spare groups: peers stop whoever needs them, so that groups lose their majority and stand still.
	ruthless bool
	roots    bool // groups choose their voters as the root does
}

type bystander struct{}

func (bystander) Receive(sim.NodeID, any) {}
func (bystander) Killed()                 {}

func newPlanWorld(seed uint64) *planWorld {
	w := &planWorld{chance: rand.New(rand.NewPCG(seed, 45)), index: make(map[keyspace.NodeID]int), flaps: make(map[[2]int]sim.Time)}
	w.f = 1 + w.chance.IntN(2)
	w.loss = w.chance.Float64() * 0.1
	w.World = sim.New(sim.Config{Seed: seed, Nodes: planPeers}, func(e *sim.Env) sim.Process { return bystander{} })
	for i := range w.peers {
		w.peers[i] = host(i)
		w.index[host(i).Node()] = i
		w.client[i] = i > 6 && w.chance.IntN(8) == 0
	}
	for i := range w.groups {
		g := &planGroup{prefix: prefix(40 * i), leader: nowhere, caught: make(map[order.ReplicaID]sim.Time)}
		g.anchor, _ = Anchor(genesis(3).ID(), g.prefix)
		g.point = g.anchor.Key()
		g.view = firstView([]Host{w.peers[0]})
		w.groups[i] = g
		w.every(500*time.Millisecond, func() { w.tend(g) })
	}
	w.At(0, func() {
		for i := 1; i < planPeers; i++ {
			w.Crash(sim.NodeID(i))
		}
	})
	w.every(time.Second, w.flap)
	return w
}

func (w *planWorld) every(d time.Duration, f func()) {
	w.At(w.Now()+d, func() { f(); w.every(d, f) })
}

func (w *planWorld) upTo(d time.Duration) time.Duration {
	return time.Duration(w.chance.Int64N(int64(d) + 1))
}

func (w *planWorld) up(i int) bool { return w.Up(sim.NodeID(i)) }

// live reports whether a replica is there: its peer is up and has the store it was made in.
func (w *planWorld) live(m order.Member) bool {
	i := w.index[m.Peer]
	return w.up(i) && w.peers[i].Store == m.Store
}

// spare returns how many voters more than a majority of members are live.
func (w *planWorld) spare(members []order.Member, without int) int {
	n, up := 0, 0
	for _, m := range members {
		if m.Role == order.Voter {
			n++
			if w.live(m) && w.index[m.Peer] != without {
				up++
			}
		}
	}
	return up - quorum.Majority(n)
}

// mayStop reports whether no group loses its majority when a peer stops, whatever becomes of the change in flight.
func (w *planWorld) mayStop(i int) bool {
	for _, g := range w.groups {
		for _, members := range [][]order.Member{g.view.Members, g.next, g.target, g.asked()} {
			if members != nil && w.spare(members, i) < 0 {
				return false
			}
		}
	}
	return true
}

// asked returns what the change under inquiry would lead to.
func (g *planGroup) asked() []order.Member {
	if g.plan == nil || g.plan.asking == nil || g.plan.asking.step.kind != stepVoters {
		return nil
	}
	var remove []order.ReplicaID
	for _, r := range g.plan.asking.step.remove {
		remove = append(remove, r.Member)
	}
	return altered(g.view.Members, g.plan.asking.step.promote, remove)
}

// altered returns members after a change of voters.
func altered(members []order.Member, promote, remove []order.ReplicaID) []order.Member {
	members = without(members, remove...)
	for k := range members {
		if slices.Contains(promote, members[k].ID) {
			members[k].Role = order.Voter
		}
	}
	return members
}

func (w *planWorld) stop(i int) bool {
	if !w.up(i) || !w.ruthless && !w.mayStop(i) {
		return false
	}
	w.Crash(sim.NodeID(i))
	w.leaving[i] = 0
	for _, g := range w.groups {
		if g.leader == i {
			g.leader, g.plan = nowhere, nil
		}
	}
	return true
}

func (w *planWorld) start(i int) {
	if w.up(i) {
		return
	}
	if w.chance.IntN(4) == 0 { // its disk is lost
		for b := range w.peers[i].Store {
			w.peers[i].Store[b] = byte(w.chance.UintN(256))
		}
	}
	w.Restart(sim.NodeID(i))
	w.booted[i] = w.Now()
	for _, g := range w.groups { // who notices does so before the peer can answer
		if g.plan != nil && w.chance.IntN(2) == 0 {
			w.step(g, Appeared{Peer: w.peers[i].Node()})
		}
	}
}

// leave asks every group to let the peer go, for 10 s at most, and stops it.
func (w *planWorld) leave(i int) {
	if !w.up(i) || w.leaving[i] != 0 {
		return
	}
	end := w.Now() + 10*time.Second
	boot := w.booted[i]
	may := make(map[*planGroup]bool)
	var ask func()
	ask = func() {
		if !w.up(i) || w.booted[i] != boot {
			return
		}
		free := 0
		for _, g := range w.groups {
			_, member := g.view.MemberAt(w.peers[i].Node())
			if !member || may[g] {
				free++
				continue
			}
			if g.plan != nil && w.chance.Float64() >= w.loss {
				w.tell(g, LeaveWish{Peer: w.peers[i].Node()}, func(a PlanAction) {
					if m, ok := a.(MayGo); ok && m.Peer == w.peers[i].Node() {
						may[g] = true
					}
				})
			}
		}
		if free == planGroups || w.Now() >= end {
			if w.stop(i) {
				return
			}
			if w.Now() > end+5*time.Minute { // the others need it too much: it stays
				w.leaving[i] = 0
				return
			}
		}
		w.leaving[i], w.wished[i] = w.Now(), w.Now()
		w.At(w.Now()+time.Second, ask)
	}
	w.leaving[i] = max(1, w.Now())
	ask()
}

// flap makes some member or leader suspect somebody who is well: often for a moment, now and then for long.
func (w *planWorld) flap() {
	if w.calm {
		for k, until := range w.flaps {
			w.flaps[k] = min(until, w.Now())
		}
		return
	}
	for _, g := range w.groups {
		if w.chance.IntN(3) > 0 {
			continue
		}
		m := g.view.Members[w.chance.IntN(len(g.view.Members))]
		o := g.view.Members[w.chance.IntN(len(g.view.Members))]
		d := w.upTo(8 * time.Second)
		if w.chance.IntN(20) == 0 {
			d = w.upTo(2 * time.Minute)
		}
		if m.ID != o.ID {
			w.flaps[[2]int{w.index[o.Peer], w.index[m.Peer]}] = w.Now() + d
		}
	}
}

// suspects is what peer o's detector says of peer i.
func (w *planWorld) suspects(o, i int) bool { return !w.up(i) || w.flaps[[2]int{o, i}] > w.Now() }

// tend does for a group what goes by itself: elections, joint phases, replication, detector reports.
func (w *planWorld) tend(g *planGroup) {
	if w.ruthless && (w.spare(g.view.Members, nowhere) < 0 || g.next != nil && w.spare(g.next, nowhere) < 0) {
		g.leader, g.plan = nowhere, nil
		return
	}
	if g.leader == nowhere {
		if w.chance.IntN(3) == 0 {
			w.elect(g)
		}
		return
	}
	if !w.calm && w.chance.IntN(600) == 0 {
		g.leader, g.plan = nowhere, nil
		return
	}
	if w.chance.IntN(20) == 0 {
		w.step(g, Sleeping{On: w.chance.IntN(4) > 0})
	}
	for i := range w.peers {
		_, told := g.told[i]
		if now := w.suspects(g.leader, i); now != told {
			if g.told[i] = w.Now(); !now {
				delete(g.told, i)
			}
			w.step(g, PeerState{Peer: w.peers[i].Node(), Live: !now})
		}
		if g.plan == nil {
			return
		}
	}
	for _, m := range g.view.Members {
		if g.plan == nil {
			return
		}
		p := Progress{Member: m.ID, Commit: 10_000 + uint64(w.Now()/time.Second), Match: 5}
		if at, ok := g.caught[m.ID]; m.Role == order.Voter || ok && at <= w.Now() {
			p.Match = p.Commit - uint64(w.chance.IntN(100))
		} else if ok {
			p.Moved = uint64(w.Now() / time.Second)
		}
		if w.live(m) {
			w.step(g, p)
		}
	}
}

func (w *planWorld) elect(g *planGroup) {
	members := g.view.Members
	if g.next != nil {
		members = g.next
	}
	var able []int
	for _, m := range members {
		if m.Role == order.Voter && w.live(m) {
			able = append(able, w.index[m.Peer])
		}
	}
	if len(able) > 0 {
		w.lead(g, able[w.chance.IntN(len(able))])
	}
}

// lead makes a voter the leader of a group; it finishes a joint phase that it finds.
func (w *planWorld) lead(g *planGroup, i int) {
	g.term++
	g.leader, g.since, g.told, g.busy, g.target = i, w.Now(), make(map[int]sim.Time), false, nil
	times := DefaultPlanTimes()
	prefix := g.prefix
	if w.roots {
		prefix = keyspace.Prefix{}
	}
	g.plan = NewPlanner(PlannerConfig{Prefix: prefix, Anchor: g.anchor, F: w.f, Self: w.peers[i].Node(), Term: g.term, Times: &times})
	w.step(g, ViewSeen{View: g.view, Joint: g.next != nil})
	if g.next != nil {
		w.finish(g)
	}
}

// later runs f unless the leadership that asked for it is over.
func (w *planWorld) later(g *planGroup, d time.Duration, f func()) {
	term := g.term
	w.At(w.Now()+d, func() {
		if g.term == term && g.plan != nil {
			f()
		}
	})
}

func (w *planWorld) step(g *planGroup, ev PlanEvent) { w.tell(g, ev, nil) }

func (w *planWorld) tell(g *planGroup, ev PlanEvent, see func(PlanAction)) {
	for _, a := range g.plan.Step(ev, automaton.Instant(w.Now()), nil) {
		w.Mix(fmt.Append(nil, a))
		if see != nil {
			see(a)
		}
		switch a := a.(type) {
		case LookUp:
			w.later(g, w.upTo(time.Second), func() { w.step(g, w.found(g)) })
		case Arm:
			if a.At != automaton.Never {
				w.later(g, time.Duration(a.At)-w.Now(), func() {
					if g.plan.armed <= automaton.Instant(w.Now()) {
						w.step(g, Wake{})
					}
				})
			}
		case Rests: // the patrol may take its time
			w.rests++
			w.later(g, time.Minute+w.upTo(time.Minute), func() { w.step(g, Rouse{}) })
		case Endorse:
			w.endorse(g, a)
		case Learn:
			i := w.index[a.Peer]
			if w.client[i] {
				w.Fail(fmt.Errorf("peer %d hosts nothing and was asked to learn", i))
			}
			m := order.Member{ID: g.view.Next, Peer: a.Peer, Store: a.Store, Role: order.Learner}
			w.change(g, a.Ref, a.From, append(slices.Clone(g.view.Members), m))
			g.learned++
		case DropLearner:
			m, _ := g.view.Member(a.Member)
			if m.Role != order.Learner {
				w.Fail(fmt.Errorf("replica %d is no learner and is dropped", a.Member))
			}
			w.change(g, a.Ref, a.From, without(g.view.Members, a.Member))
		case ChangeVoters:
			w.judge(g, a)
			w.change(g, a.Ref, a.From, altered(g.view.Members, a.Promote, a.Remove))
		case TransferTo:
			m, ok := g.view.Member(a.Member)
			if !ok || m.Role != order.Voter || g.next != nil {
				w.Fail(fmt.Errorf("leadership offered to %d in view %v", a.Member, g.view))
			}
			if w.chance.IntN(4) > 0 {
				w.later(g, w.upTo(time.Second), func() {
					if w.live(m) && !g.busy && g.next == nil {
						w.lead(g, w.index[m.Peer])
					}
				})
			}
		}
	}
}

func without(members []order.Member, ids ...order.ReplicaID) []order.Member {
	return slices.DeleteFunc(slices.Clone(members), func(m order.Member) bool { return slices.Contains(ids, m.ID) })
}

// found is a look-up: it misses some, and some that are gone are not noticed at once.
func (w *planWorld) found(g *planGroup) (c Candidates) {
	var near []int
	for i := range w.peers {
		if w.up(i) && (w.calm || w.chance.IntN(10) > 0) {
			near = append(near, i)
		}
	}
	slices.SortFunc(near, func(a, b int) int { return keyspace.CompareDistance(g.point, w.peers[a].Node(), w.peers[b].Node()) })
	for _, i := range near[:min(len(near), CandidatesMax)] {
		c.Peers = append(c.Peers, Neighbour{Peer: w.peers[i].Node(), Store: w.peers[i].Store, Up: w.Now() - w.booted[i], Hosts: !w.client[i]})
	}
	return c
}

// endorse carries a question to a voter, which may know an older view, and its answer back.
func (w *planWorld) endorse(g *planGroup, a Endorse) {
	m, _ := g.view.Member(a.To)
	i := w.index[m.Peer]
	if w.chance.Float64() < w.loss && !w.calm {
		return
	}
	w.later(g, w.upTo(300*time.Millisecond), func() {
		if !w.live(m) {
			return
		}
		v := a.Question.Endorses(g.applied[i], g.point, func(n keyspace.NodeID) Reach {
			if w.suspects(i, w.index[n]) {
				return Suspected
			}
			return Reached
		})
		q := a.Question
		w.later(g, w.upTo(300*time.Millisecond), func() {
			w.step(g, EndorseAnswer{Term: q.Term, Round: q.Round, View: q.View, From: a.To, Verdict: v})
		})
	})
}

// judge holds what the plan asks for against what it may know: changes are 20 s apart but for voters that leave, failed or
// lost their store; and nobody is removed as failed whom a majority of the voters reaches.
func (w *planWorld) judge(g *planGroup, a ChangeVoters) {
	excused := false
	for _, id := range a.Remove {
		m, _ := g.view.Member(id)
		i := w.index[m.Peer]
		since, suspected := g.told[i]
		pressing := suspected && w.Now()-since >= 30*time.Second
		left := w.leaving[i] != 0 || w.wished[i] > 0 && w.wished[i]+time.Minute > w.Now() || w.booted[i]+time.Minute > w.Now() || !w.up(i)
		excused = excused || pressing || left || w.peers[i].Store != m.Store
		closer := slices.ContainsFunc(a.Promote, func(id order.ReplicaID) bool {
			c, _ := g.view.Member(id)
			return keyspace.Closer(g.point, c.Peer, m.Peer)
		})
		if reach := w.reaching(g, i); pressing && w.live(m) && !closer && !left && !w.client[i] && reach >= quorum.Majority(len(g.view.Voters())) {
			w.Fail(fmt.Errorf("group %v removes replica %d as failed, and %d voters reach it", g.prefix, id, reach))
		}
	}
	if gap := w.Now() - max(g.changed, g.began); g.changes > 0 && gap < 20*time.Second && !excused {
		w.Fail(fmt.Errorf("group %v changes its voters %v after the last time, for no pressing reason: %+v", g.prefix, gap, a))
	}
}

// reaching counts the voters that have reached peer i for a while.
func (w *planWorld) reaching(g *planGroup, i int) (n int) {
	for _, m := range g.view.Members {
		o := w.index[m.Peer]
		if until, ok := w.flaps[[2]int{o, i}]; m.Role == order.Voter && o != i && w.live(m) && (!ok || until+3*time.Second < w.Now()) {
			n++
		}
	}
	return n
}

// change is the engine: one change at a time, for the present view, of an uncertain fate.
func (w *planWorld) change(g *planGroup, ref, from uint64, members []order.Member) {
	if g.busy {
		w.Fail(fmt.Errorf("I13: a second change of group %v in one leadership", g.prefix))
	}
	if g.next != nil {
		w.Fail(fmt.Errorf("I13: a change of group %v in its joint phase", g.prefix))
	}
	g.busy, g.target = true, members
	fate := w.chance.IntN(20)
	done := func(ok bool) {
		w.later(g, w.upTo(200*time.Millisecond), func() { w.step(g, ChangeDone{Ref: ref, OK: ok}) })
	}
	w.later(g, w.upTo(300*time.Millisecond), func() {
		switch {
		case fate < 2 || from != g.view.Num:
			g.busy, g.target = false, nil
			done(false)
			return
		case slices.Equal(order.View{Members: members}.Voters(), g.view.Voters()):
			g.busy, g.target = false, nil
			w.install(g, members)
		default:
			g.began, g.next, g.target = w.Now(), members, nil
			g.view.Num++
			w.step(g, ViewSeen{View: g.view, Joint: true})
			w.finish(g)
		}
		done(fate > 3)
	})
}

// finish ends the joint phase.
func (w *planWorld) finish(g *planGroup) {
	w.later(g, w.upTo(500*time.Millisecond), func() {
		members := g.next
		if members == nil {
			return
		}
		g.next, g.busy, g.changed = nil, false, w.Now()
		g.changes++
		w.install(g, members)
	})
}

// install makes members the next view; others hear of it a little later.
func (w *planWorld) install(g *planGroup, members []order.Member) {
	g.old = g.view
	g.view.Num++
	g.view.Members = members
	for _, m := range members {
		g.view.Next = max(g.view.Next, m.ID+1)
		if _, ok := g.caught[m.ID]; !ok && m.Role == order.Learner {
			if w.chance.IntN(10) > 0 || w.calm { // the others never get there
				g.caught[m.ID] = w.Now() + w.upTo(20*time.Second)
			}
		}
	}
	if n := len(g.view.Voters()); n%2 == 0 || n > 2*w.f+1 {
		w.Fail(fmt.Errorf("I13: group %v has %d voters", g.prefix, n))
	}
	if w.spare(members, nowhere) < 0 && !w.ruthless {
		w.Fail(fmt.Errorf("group %v has lost its majority by a change from %v to %v", g.prefix, g.old, g.view))
	}
	v := g.view
	for i := range g.applied {
		w.At(w.Now()+w.upTo(time.Second), func() {
			if g.applied[i].Num <= v.Num {
				g.applied[i] = v
			}
		})
	}
	if _, ok := v.MemberAt(w.peers[g.leader].Node()); !ok || !slices.ContainsFunc(members, func(m order.Member) bool {
		return m.Peer == w.peers[g.leader].Node() && m.Role == order.Voter
	}) {
		g.leader, g.plan = nowhere, nil // it removed itself
		return
	}
	w.later(g, w.upTo(100*time.Millisecond), func() {
		if g.view.Num == v.Num {
			w.step(g, ViewSeen{View: v})
		}
	})
}

// settled says what is missing until every group consists of the peers it should.
func (w *planWorld) settled() error {
	for _, g := range w.groups {
		var hosts []keyspace.NodeID
		for i := range w.peers {
			if w.up(i) && !w.client[i] {
				hosts = append(hosts, w.peers[i].Node())
			}
		}
		keyspace.SortByDistance(g.point, hosts)
		want := hosts[:min(len(hosts), 2*w.f+1)]
		switch {
		case g.plan == nil || g.next != nil || g.busy:
			return fmt.Errorf("group %v is busy", g.prefix)
		case len(hosts) > 2*w.f:
			for _, m := range g.view.Members {
				if !slices.Contains(want, m.Peer) || m.Role != order.Voter || !w.live(m) {
					return fmt.Errorf("group %v: replica %d at peer %d, %v, should not be there", g.prefix, m.ID, w.index[m.Peer], m.Role)
				}
			}
			if len(g.view.Members) != len(want) {
				return fmt.Errorf("group %v has %d members of %d", g.prefix, len(g.view.Members), len(want))
			}
		default:
			// Small: it survives as many crashes as the largest odd number of voters, and everybody takes part.
			if least := quorum.Tolerated(quorum.Voters(len(hosts), w.f)); w.spare(g.view.Members, nowhere) < least {
				return fmt.Errorf("group %v survives fewer than %d crashes: %v", g.prefix, least, g.view)
			}
			for _, h := range want {
				if m, ok := g.view.MemberAt(h); !ok && len(g.view.Voters()) < len(want) {
					return fmt.Errorf("group %v lacks peer %d %v", g.prefix, w.index[h], m)
				}
			}
		}
	}
	return nil
}

// rest lets the world heal and waits until every group is where it should be: at the latest after the list's 10 minutes and
// the time for a learner and a change for every voter.
func (w *planWorld) rest() error {
	w.calm = true
	defer func() { w.calm = false }()
	// Those that are about to leave go, or stay and are no longer taken for leaving.
	nobody := func() bool { return w.leaving == [planPeers]sim.Time{} }
	if err := w.RunUntil(w.Now()+10*time.Minute, nobody); err != nil {
		return err
	}
	if err := w.Run(w.Now() + 70*time.Second); err != nil {
		return err
	}
	bound := w.Now() + 10*time.Minute + time.Duration(2*w.f+1)*2*time.Minute
	if err := w.RunUntil(bound, func() bool { return w.settled() == nil }); err != nil {
		return err
	}
	if err := w.settled(); err != nil {
		return fmt.Errorf("not settled at %v: %w", w.Now(), err)
	}
	// And then nothing more is done.
	var views [planGroups]uint64
	for i, g := range w.groups {
		views[i] = g.view.Num
	}
	if err := w.Run(w.Now() + 5*time.Minute); err != nil {
		return err
	}
	for i, g := range w.groups {
		if views[i] != g.view.Num {
			return fmt.Errorf("group %v was where it should be and changed from view %d to %v", g.prefix, views[i], g.view)
		}
	}
	return nil
}

// some returns peers that are up, or down, in random order; never the founder when it is the only one.
func (w *planWorld) some(up bool) (list []int) {
	for _, i := range w.chance.Perm(planPeers) {
		if w.up(i) == up {
			list = append(list, i)
		}
	}
	return list
}

// churn stops, restarts and takes leave of peers for a while, and leads the overlay from its present size towards another.
func (w *planWorld) churn(d time.Duration, size int, pause time.Duration) error {
	end := w.Now() + d
	var next func()
	next = func() {
		if w.Now() >= end {
			return
		}
		up, down := w.some(true), w.some(false)
		switch k := w.chance.IntN(4); {
		case len(up) < size || k == 0 && len(up) < size+3 && len(down) > 0:
			w.start(down[0])
		case k == 1 && len(up) > 1:
			w.leave(up[0])
		case len(up) > size || k == 2 && len(up) > max(1, size-3):
			w.stop(up[0])
		}
		w.At(w.Now()+w.upTo(2*pause), next)
	}
	next()
	return w.Run(end)
}

func planSeeds() uint64 {
	if testing.Short() {
		return 2
	}
	return uint64(max(1, *seeds/50))
}

// Conformance test 45: the overlay grows 1 -> 7 -> 50 and shrinks back.
func TestGroupsFollowAnOverlayThatGrowsAndShrinks(t *testing.T) {
	changes, learned, rests := 0, 0, 0
	for seed := range planSeeds() {
		w := newPlanWorld(seed)
		for _, phase := range []struct {
			size  int
			d     time.Duration
			pause time.Duration
		}{{2, time.Minute, 10 * time.Second}, {7, 10 * time.Minute, 20 * time.Second}, {planPeers, 10 * time.Minute, 5 * time.Second},
			{planPeers - 5, 20 * time.Minute, 8 * time.Second}, {7, 30 * time.Minute, 10 * time.Second}, {3, 10 * time.Minute, 20 * time.Second},
			{1, 10 * time.Minute, 20 * time.Second}, {6, 10 * time.Minute, 20 * time.Second}} {
			err := w.churn(phase.d, phase.size, phase.pause)
			if err == nil {
				err = w.rest()
			}
			if err != nil {
				t.Fatalf("seed %d, f=%d, towards %d peers: %v", seed, w.f, phase.size, err)
			}
		}
		for _, g := range w.groups {
			changes, learned = changes+g.changes, learned+g.learned
		}
		rests += w.rests
	}
	if t.Logf("%d changes of voters, %d learners, %d rests", changes, learned, rests); rests == 0 {
		t.Error("no plan has rested")
	}
}

// Conformance test 46: 30 % of the peers join within 10 s. Each group changes at most once per 20 s (see judge) and never
// loses its majority (see install).
func TestAJoinStormMovesGroupsStepByStep(t *testing.T) {
	for seed := range planSeeds() {
		w := newPlanWorld(1000 + seed)
		w.calm = true
		for i := 1; i < planPeers*7/10; i++ {
			w.At(w.upTo(10*time.Second), func() { w.start(i) })
		}
		if err := w.Run(20 * time.Second); err != nil {
			t.Fatal(err)
		}
		if err := w.rest(); err != nil {
			t.Fatalf("seed %d: before the storm: %v", seed, err)
		}
		for i := planPeers * 7 / 10; i < planPeers; i++ {
			w.At(w.Now()+w.upTo(10*time.Second), func() { w.start(i) })
		}
		before := w.Now()
		if err := w.Run(before + 30*time.Second); err != nil { // joiners are not touched before they are stable
			t.Fatal(err)
		}
		if err := w.settledBefore(before); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if err := w.rest(); err != nil {
			t.Fatalf("seed %d: after the storm: %v", seed, err)
		}
	}
}

// settledBefore says which group has changed since.
func (w *planWorld) settledBefore(since sim.Time) error {
	for _, g := range w.groups {
		if g.changed > since {
			return fmt.Errorf("group %v took in a peer that had just joined", g.prefix)
		}
	}
	return nil
}

// Conformance test 1, for the plan: the same seed gives the same actions.
func TestThePlanRepeats(t *testing.T) {
	run := func() uint64 {
		w := newPlanWorld(7)
		for _, size := range []int{20, 5} {
			if err := w.churn(10*time.Minute, size, 5*time.Second); err != nil {
				t.Fatal(err)
			}
		}
		return w.Hash()
	}
	if a, b := run(), run(); a != b {
		t.Errorf("%x and %x", a, b)
	}
}
