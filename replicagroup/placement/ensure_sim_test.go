package placement

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/internal/sim"
	"latchkey/replicagroup/order"
)

var seeds = flag.Int("seeds", 300, "how many worlds TestEnsureMakesOneChild draws")

// The world of conformance test 38: nine peers, of which the first three are the parent group, and a hundred clients on a
// node of their own. Peers crash, lose their disks, are cut off and paused. The parent's ordering engine is a model: a log
// that cannot be lost, one true leader at a time, deposed leaders that learn of it late, proposals whose fate stays unknown.
const (
	simPeers   = 9
	simParents = 3
	simClients = 100
	simHeal    = 20 * time.Second
	simEnd     = 120 * time.Second
	nobody     = sim.NodeID(-1)
)

// Messages of this world.
type (
	ensureMsg struct {
		client int
		prefix keyspace.Prefix
	}
	ensureReply struct {
		client int
		answer AnswerEnsure
	}
	askMsg       struct{ prefix keyspace.Prefix }
	startMsg     struct{ descriptor Descriptor }
	confirmMsg   struct{ group order.GroupID }
	confirmReply struct{ confirmed Confirmed }
)

type runKey struct {
	group   order.GroupID
	replica order.ReplicaID
	store   order.StoreID
}

// simPrefix spreads what client i asks for over six prefixes.
func simPrefix(i int) keyspace.Prefix { return prefix(i % 6 * 43) }

// disk is what a peer keeps through a crash, unless it is lost.
type disk struct {
	store  order.StoreID
	hosted []Hosted
}

type ensureWorld struct {
	*sim.World
	t      *testing.T
	g      Genesis
	chance *rand.Rand
	peers  [simPeers]Peer
	index  map[keyspace.NodeID]sim.NodeID
	disks  [simPeers]*disk
	procs  [simPeers]*simPeer

	// The parent's log, and its replicas' directories. first is what the first Create of each prefix made.
	log     [][]byte
	applied [simParents]int
	dirs    [simParents]*Directory
	leader  sim.NodeID
	first   map[keyspace.Prefix]Child

	runs     map[runKey]int
	answered [simClients]Descriptor
	left     int
}

func newEnsureWorld(t *testing.T, seed uint64) *ensureWorld {
	w := &ensureWorld{t: t, g: genesis(simParents), chance: rand.New(rand.NewPCG(seed, 38)), index: make(map[keyspace.NodeID]sim.NodeID),
		leader: nobody, first: make(map[keyspace.Prefix]Child), runs: make(map[runKey]int), left: simClients}
	for i := range w.peers {
		h := host(i)
		w.peers[i], w.disks[i] = h.Peer, &disk{store: h.Store}
		w.index[h.Node()] = sim.NodeID(i)
	}
	for i := range w.dirs {
		w.dirs[i] = NewDirectory(w.g, order.GroupID{})
	}
	faults := sim.Draw(seed, sim.Scale{Delay: 50 * time.Millisecond, Timeout: 2 * time.Second, Heal: simHeal})
	w.World = sim.New(sim.Config{Seed: seed, Nodes: simPeers + 1, Faults: faults, CrashLimit: simPeers, Spare: []sim.NodeID{simPeers}}, w.boot)
	w.At(0, w.elect)
	return w
}

func (w *ensureWorld) boot(e *sim.Env) sim.Process {
	if e.ID() == simPeers {
		return newSimClients(w, e)
	}
	p := &simPeer{w: w, env: e, disk: w.disks[e.ID()], creator: NewCreator(w.g, w.peers[:simParents])}
	p.hosting = NewHosting(HostingConfig{Genesis: w.g, Self: w.peers[e.ID()].Node(), Store: p.disk.store, Hosted: p.disk.hosted})
	w.procs[e.ID()] = p
	return p
}

// elect makes another parent replica lead, now and then nobody.
func (w *ensureWorld) elect() {
	old := w.leader
	w.leader = nobody
	var up []sim.NodeID
	for i := range sim.NodeID(simParents) {
		if w.Up(i) {
			up = append(up, i)
		}
	}
	if len(up) > simParents/2 {
		w.leader = up[w.chance.IntN(len(up))]
		w.catchUp(w.leader)
		w.procs[w.leader].create(LeaderChange{Leading: true, Unstarted: w.dirs[w.leader].Unstarted()})
	}
	if old != nobody && old != w.leader {
		p := w.procs[old]
		w.At(w.Now()+time.Duration(w.chance.Int64N(int64(2*time.Second))), func() {
			if p.env.Alive() && w.leader != old {
				p.create(LeaderChange{})
			}
		})
	}
	next := time.Duration(w.chance.Int64N(int64(3 * time.Second)))
	if w.Now() < simHeal || w.leader == nobody {
		w.At(w.Now()+next, w.elect)
	}
}

func (w *ensureWorld) catchUp(i sim.NodeID) {
	for ; w.applied[i] < len(w.log); w.applied[i]++ {
		w.dirs[i].Apply(0, w.log[w.applied[i]])
	}
}

// commit appends a command to the log, as the true leader.
func (w *ensureWorld) commit(c Command) Result {
	w.log = append(w.log, mustEncode(w.t, c))
	w.applied[w.leader]++
	res, err := DecodeResult(w.dirs[w.leader].Apply(0, w.log[len(w.log)-1]))
	if err != nil {
		w.Fail(err)
	}
	if _, ok := w.first[c.Prefix]; !ok && res.Status == OK {
		w.first[c.Prefix] = res.Child
	}
	if !same(res.Child.Descriptor, w.first[c.Prefix].Descriptor) {
		w.Fail(fmt.Errorf("prefix %v got a second child: %v", c.Prefix, res.Child.View))
	}
	return res
}

// same compares what this world never changes of a group.
func same(a, b Descriptor) bool {
	if a.Group != b.Group || len(a.View.Members) != len(b.View.Members) {
		return false
	}
	for i := range a.View.Members {
		if a.View.Members[i] != b.View.Members[i] {
			return false
		}
	}
	return true
}

// starter is who sent a Start, and for which group.
type starter struct {
	from  sim.NodeID
	group order.GroupID
}

type simPeer struct {
	w        *ensureWorld
	env      *sim.Env
	disk     *disk
	creator  *Creator
	hosting  *Hosting
	disarm   func()
	ensures  []ensureMsg // by Ref of the Ensure
	starters []starter   // by Ref of the StartReplica
}

func (p *simPeer) Killed() {
	if p.w.leader == p.env.ID() {
		p.w.leader = nobody
	}
	if p.w.chance.IntN(5) == 0 { // the disk goes too
		d := &disk{}
		for i := range d.store {
			d.store[i] = byte(p.w.chance.UintN(256))
		}
		p.w.disks[p.env.ID()] = d
	}
}

func (p *simPeer) Receive(from sim.NodeID, msg any) {
	sender := keyspace.NodeID{}
	if from < simPeers {
		sender = p.w.peers[from].Node()
	}
	switch m := msg.(type) {
	case ensureMsg:
		if p.env.ID() >= simParents {
			p.env.Send(from, ensureReply{m.client, AnswerEnsure{Err: ErrNotLeader}})
			return
		}
		p.ensures = append(p.ensures, m)
		known, _ := p.w.dirs[p.env.ID()].Lookup(m.prefix)
		p.create(Ensure{Prefix: m.prefix, Ref: uint64(len(p.ensures) - 1), Known: known})
	case askMsg:
		for _, a := range p.hosting.Step(WillYouHost{Prefix: m.prefix}, nil) {
			a := a.(AnswerHost)
			p.env.Send(from, HostAnswer{Prefix: m.prefix, Peer: p.w.peers[p.env.ID()].Node(), Store: a.Store, OK: a.OK})
		}
	case HostAnswer:
		if m.Peer == sender {
			p.create(m)
		}
	case startMsg:
		p.starters = append(p.starters, starter{from, m.descriptor.Group})
		p.host(StartReplica{Parent: true, Ref: uint64(len(p.starters) - 1), Descriptor: m.descriptor})
	case Started:
		p.create(m)
	case confirmMsg:
		if p.w.leader == p.env.ID() { // a linearizable read
			ch, _ := p.w.dirs[p.env.ID()].Lookup(m.group.Prefix)
			p.env.Send(from, confirmReply{Confirmed{Group: m.group, Child: ch}})
		}
	case confirmReply:
		p.host(m.confirmed)
	}
}

func (p *simPeer) create(ev CreatorEvent) {
	for _, a := range p.creator.Step(ev, p.env.Now(), nil) {
		switch a := a.(type) {
		case LookUp:
			p.env.After(time.Duration(p.env.Rand().Int64N(int64(time.Second))), func() { p.create(Closest{a.Prefix, p.glimpse()}) })
		case AskHost:
			p.env.Send(p.w.index[a.Peer.Node()], askMsg{a.Prefix})
		case Propose:
			p.env.After(time.Duration(p.env.Rand().Int64N(int64(100*time.Millisecond))), func() { p.propose(a) })
		case SendStart:
			p.env.Send(p.w.index[a.Peer.Node()], startMsg{a.Descriptor})
		case AnswerEnsure:
			p.env.Send(simPeers, ensureReply{p.ensures[a.Ref].client, a})
		case Arm:
			if p.disarm != nil {
				p.disarm()
				p.disarm = nil
			}
			if a.At != automaton.Never {
				p.disarm = p.env.After(a.At.Sub(p.env.Now()), func() { p.create(Wake{}) })
			}
		}
	}
}

// glimpse is a look-up that misses peers and names dead ones.
func (p *simPeer) glimpse() []Peer {
	var seen []Peer
	for _, peer := range p.w.peers {
		if p.env.Rand().IntN(4) > 0 {
			seen = append(seen, peer)
		}
	}
	return seen
}

func (p *simPeer) propose(a Propose) {
	c := a.Command
	fate := p.env.Rand().IntN(10)
	switch {
	case p.w.leader != p.env.ID():
		p.create(NotCommitted{c.Prefix, a.Ref, order.ErrNotLeader})
	case fate == 0: // lost
		p.create(NotCommitted{c.Prefix, a.Ref, order.ErrDropped})
	case fate == 1: // committed, and nobody hears of it
		p.w.commit(c)
		p.create(NotCommitted{c.Prefix, a.Ref, order.ErrDropped})
	case fate == 2: // committed when the creator has given up, and nobody hears of it
		p.env.After(proposeWait+time.Duration(p.env.Rand().Int64N(int64(proposeWait))), func() {
			if p.w.leader == p.env.ID() {
				p.w.commit(c)
			}
		})
	case c.Kind == Reported:
		p.w.commit(c)
	default:
		switch res := p.w.commit(c); res.Status {
		case OK, Exists:
			p.create(Committed{res.Child})
		default:
			p.w.Fail(fmt.Errorf("the creator proposed what the directory refuses: %v", res.Status))
		}
	}
}

func (p *simPeer) host(ev HostingEvent) {
	for _, a := range p.hosting.Step(ev, nil) {
		switch a := a.(type) {
		case Confirm:
			for i := range sim.NodeID(simParents) {
				p.env.Send(i, confirmMsg{a.Group})
			}
			p.env.After(time.Second, func() { p.host(Confirmed{Group: a.Group, Err: errors.New("no answer")}) })
		case Run:
			p.run(a)
		case AnswerStart:
			if to := p.starters[a.Ref]; a.Err == nil && to.from < simPeers {
				p.env.Send(to.from, Started{Group: to.group, Peer: p.w.peers[p.env.ID()].Node(), Replica: a.Replica, Store: a.Store})
			}
		}
	}
}

func (p *simPeer) run(r Run) {
	ch, ok := p.w.first[r.Descriptor.Group.Prefix]
	m, member := r.Descriptor.View.Member(r.Replica)
	key := runKey{r.Descriptor.Group, r.Replica, p.disk.store}
	p.w.runs[key]++
	switch {
	case !ok || !same(ch.Descriptor, r.Descriptor):
		p.w.Fail(fmt.Errorf("node %d runs %v, which was never committed", p.env.ID(), key))
	case !member || m.Peer != p.w.peers[p.env.ID()].Node() || m.Store != p.disk.store:
		p.w.Fail(fmt.Errorf("node %d runs %v, which is another's", p.env.ID(), key))
	case p.w.runs[key] > 1:
		p.w.Fail(fmt.Errorf("node %d runs %v a second time", p.env.ID(), key))
	}
	p.disk.hosted = append(p.disk.hosted, Hosted{Group: r.Descriptor.Group, Replica: r.Replica})
	p.host(Running{Group: r.Descriptor.Group})
}

// clientNode asks for groups until it knows them, and forges Starts meanwhile.
type clientNode struct {
	w   *ensureWorld
	env *sim.Env
}

func newSimClients(w *ensureWorld, e *sim.Env) *clientNode {
	c := &clientNode{w, e}
	for i := range simClients {
		e.After(time.Duration(e.Rand().Int64N(int64(simHeal/2))), func() { c.ask(i) })
	}
	e.After(time.Second, c.forge)
	return c
}

func (c *clientNode) Killed() {}

func (c *clientNode) ask(i int) {
	if !c.w.answered[i].IsZero() {
		return
	}
	c.env.Send(sim.NodeID(c.env.Rand().IntN(simParents+1)), ensureMsg{i, simPrefix(i)})
	c.env.After(time.Second+time.Duration(c.env.Rand().Int64N(int64(2*time.Second))), func() { c.ask(i) })
}

// forge tells peers to start replicas of groups that nobody created: as a wrong leader would, with their true stores.
func (c *clientNode) forge() {
	p := simPrefix(c.env.Rand().IntN(6))
	var members []Host
	for _, i := range c.env.Rand().Perm(simPeers)[:3] {
		members = append(members, Host{Peer: c.w.peers[i], Store: c.w.disks[i].store})
	}
	d := describe(order.GroupID{Overlay: c.w.g.ID(), Prefix: p}, members)
	for _, m := range members {
		c.env.Send(c.w.index[m.Node()], startMsg{d})
	}
	if c.env.Now() < automaton.Instant(simHeal) {
		c.env.After(time.Second, c.forge)
	}
}

func (c *clientNode) Receive(_ sim.NodeID, msg any) {
	r := msg.(ensureReply)
	if r.answer.Err != nil || !c.w.answered[r.client].IsZero() {
		return
	}
	d := r.answer.Descriptor
	if ch, ok := c.w.first[simPrefix(r.client)]; !ok || !same(ch.Descriptor, d) {
		c.w.Fail(fmt.Errorf("client %d was told of %v, which is not the child", r.client, d.View))
	}
	c.w.answered[r.client] = d
	c.w.left--
}

// settled reports whether every client knows its group and every member that still can runs its replica.
func (w *ensureWorld) settled() bool {
	if w.left > 0 {
		return false
	}
	for _, ch := range w.first {
		for _, m := range ch.View.Members {
			if w.disks[w.index[m.Peer]].store == m.Store && w.runs[runKey{ch.Group, m.ID, m.Store}] != 1 {
				return false
			}
		}
	}
	return true
}

// Conformance test 38: Ensure from 100 clients with stale views, under partition and parent leader changes: one child.
func TestEnsureMakesOneChild(t *testing.T) {
	n := *seeds
	if testing.Short() {
		n = 30
	}
	for seed := range uint64(n) {
		w := newEnsureWorld(t, seed)
		if err := w.RunUntil(simEnd, func() bool { return w.Now() > simHeal && w.settled() }); err != nil {
			t.Fatal(err)
		}
		if !w.settled() {
			t.Fatalf("%v: %d of %d clients wait still, children %d", w, w.left, simClients, len(w.first))
		}
	}
}
