package ordertest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/history"
	"latchkey/internal/sim"
	"latchkey/replicagroup/order"
)

// mistakes are wrong drivers. Each is planted by the package's own tests, which demand that the suite finds it.
type mistakes struct {
	storedEarly   bool // reports Stored before the disk has it
	neverSyncs    bool // takes every persist for one that need not be synced
	sendEarly     bool // messages do not wait for their persist
	dropState     bool // the disk keeps the first state record for ever
	dropEntries   bool // the disk loses entry records
	deliverTwice  bool // hands an entry to the machine twice, now and then
	deliverSkips  bool // leaves an entry out, now and then
	readAtOnce    bool // answers reads without a read point
	answerEarly   bool // answers a command before its entry was delivered
	forgetful     bool // its machine executes repeats again
	keepStoreID   bool // a member that lost its disk goes on under the old store id
	staleSnapshot bool // hands the engine a snapshot older than it says
	sleepsDeaf    bool // does not report a suspicion to an engine that sleeps
}

// setup describes a cluster and its workload.
type setup struct {
	seed    uint64
	members int // founders of the group
	spares  int // peers beside them that may become members
	churn   *churn
	clients int
	ops     int // each client's; 0 is without end, until halt
	keys    int
	think   time.Duration // mean time between an answer and the client's next operation
	locks   bool          // the workload uses locks beside registers
	triple  bool          // clients send each command through three members at once

	faults     sim.Faults
	crashLimit int
	// crashAt lists crash points: the member that reaches the i-th point of the run dies there. See cluster.point.
	crashAt []int

	trace bool // keep the digest of every step
	// fork: the first and the last member never reach each other, and at a crash whoever leads is cut off. The last
	// member has then heard of no election: it may ask the one that crashed for the vote that it gave before.
	fork bool
	// impostor: a member that lost its disk starts an engine as if it had not; its frames still carry its new store id.
	impostor bool

	quiet   bool               // no stale timers, false suspicions and link reports
	slow    map[sim.NodeID]int // how many times longer a member's disk and machine take
	retry   time.Duration      // when a client asks elsewhere; 0 is clientRetry
	pad     int                // bytes that every command has beside what it says
	ballast int                // bytes that every snapshot has beside what the machine knows
	// carry is how many bytes of a snapshot the driver moves in a second, apart from messages; 0 is all, with its message.
	carry int
	// leases lets leaders answer reads on a lease.
	leases bool
	// sync is how long a write takes on an ordinary disk; 0 draws it from the seed.
	sync time.Duration
	// quiesce is [Config].Quiesce; 0 draws it from the seed.
	quiesce time.Duration
}

// groupID is the group of every cluster; an engine must not care.
var groupID = order.GroupID{Overlay: order.OverlayID{0xc0, 0xde}, Prefix: keyspace.PrefixOf(keyspace.Preimage("conformance").Key(), 8)}

// cluster is one simulated group with its clients, and what is known about it that no member knows.
type cluster struct {
	suite
	setup
	world   *sim.World
	rand    *rand.Rand     // of the driver and disk; fixed by the seed
	founded order.View     // the first view
	view    order.View     // the newest that anybody told of
	hosts   int            // members and spares: nodes below this have disks
	peers   []order.Member // by node: its Peer
	disks   []*disk
	running []*member // nil while down
	callers []*client
	history *history.History

	// How the drivers of this cluster are, drawn from the seed.
	syncTime, applyTime time.Duration
	compactEvery        uint64

	// The log as the first member to get there saw it: what every other one must see.
	first   uint64 // index of the first entry; 0 before there is one
	entries []uint64
	chains  []uint64
	effects map[commandID]uint64 // where each command took effect
	issued  map[commandID]uint64 // digest of what the client asked

	// What is known of views: by number, and who every id was given to and where it lives.
	views          map[uint64]order.View
	ids            map[order.ReplicaID]order.Member
	home           map[order.ReplicaID]sim.NodeID
	placed         map[order.ReplicaID]bool             // it was given a replica
	changes        map[uint64]uint64                    // by index of a ViewChange entry, the view's number
	answeredChange map[uint64]uint64                    // by number of the view that was changed, the index
	onView         func(m *member, note order.ViewNote) // a view is told of for the first time

	settled         sim.Time // when a joint view was left last
	slowest         sim.Time // the longest that a client waited for an answer
	gap, answeredAt sim.Time // the longest time without an answer to any client, and when the last came

	written   map[uint64]uint64          // by key, the newest value whose write was answered
	leaders   map[uint64]order.ReplicaID // by term
	topTerm   uint64
	elections []election // by rising time
	acked     uint64     // the highest index behind an answer given to a client
	points    int
	carrying  int                 // snapshots that were sent apart
	carried   int                 // snapshots that came through
	hushed    bool                // clients begin nothing
	sent      int                 // messages of engines
	doubted   map[sim.NodeID]bool // by detectors
	refused   int                 // engines that their factory refused
	trail     []uint64            // digests, with trace
	answers   func(m *member, cl *client) error
}

type commandID struct {
	client order.ClientID
	seq    uint64
}

// clientRetry is when a client asks elsewhere.
const clientRetry = patience / 2

func newCluster(s suite, u setup) *cluster {
	c := &cluster{
		suite: s, setup: u, rand: rand.New(rand.NewPCG(u.seed, 1<<40)), history: history.New(),
		effects: make(map[commandID]uint64), issued: make(map[commandID]uint64),
		leaders: make(map[uint64]order.ReplicaID), written: make(map[uint64]uint64),
		hosts: u.members + u.spares, running: make([]*member, u.members+u.spares),
		views: make(map[uint64]order.View), ids: make(map[order.ReplicaID]order.Member), home: make(map[order.ReplicaID]sim.NodeID),
		placed: make(map[order.ReplicaID]bool), changes: make(map[uint64]uint64), answeredChange: make(map[uint64]uint64),
		doubted: make(map[sim.NodeID]bool),
	}
	if c.quiesce == 0 { // a group with something to do all the time sleeps only if it does so at once
		c.quiesce = [...]time.Duration{patience / 5, -1, 0}[u.seed%3]
	}
	c.syncTime = time.Duration(50_000 * (1 + c.rand.IntN(200)))
	if c.rand.IntN(2) == 0 {
		c.applyTime = time.Duration(c.rand.Int64N(int64(20 * time.Millisecond)))
	}
	if c.rand.IntN(2) == 0 {
		c.compactEvery = 5 + uint64(c.rand.IntN(200))
	}
	if c.retry == 0 {
		c.retry = clientRetry
	}
	if u.sync > 0 {
		c.syncTime = u.sync
	}
	c.view = order.View{Num: 1, Next: order.ReplicaID(u.members + 1)}
	for i := range c.hosts {
		d := &disk{}
		for j := range d.store {
			d.store[j] = byte(c.rand.Uint32())
		}
		c.disks = append(c.disks, d)
		c.peers = append(c.peers, order.Member{Peer: peerOf(sim.NodeID(i))})
		if i >= u.members {
			continue
		}
		m := order.Member{ID: idOf(sim.NodeID(i)), Peer: peerOf(sim.NodeID(i)), Store: d.store, Role: order.Voter}
		d.self = m.ID
		c.view.Members = append(c.view.Members, m)
		c.ids[m.ID], c.home[m.ID], c.placed[m.ID] = m, sim.NodeID(i), true
	}
	c.founded, c.views[c.view.Num] = c.view, c.view
	var spare []sim.NodeID
	for i := range u.clients {
		spare = append(spare, sim.NodeID(c.hosts+i))
	}
	c.callers = make([]*client, u.clients)
	c.world = sim.New(sim.Config{
		Seed: u.seed, Nodes: c.hosts + u.clients, Faults: u.faults, CrashLimit: u.crashLimit, Spare: spare,
	}, func(e *sim.Env) sim.Process {
		if int(e.ID()) < c.hosts {
			return c.boot(e)
		}
		cl := newClient(c, e)
		c.callers[int(e.ID())-c.hosts] = cl
		return cl
	})
	return c
}

func idOf(n sim.NodeID) order.ReplicaID { return order.ReplicaID(n + 1) } // of a founder
func peerOf(n sim.NodeID) keyspace.NodeID {
	return keyspace.NodeIDOf(fmt.Sprintf("peer %d", n))
}

// String names the cluster so that a failure can be replayed.
func (c *cluster) String() string {
	return fmt.Sprintf("members=%d clients=%d ops=%d crashAt=%v", c.members, c.clients, c.ops, c.crashAt)
}

// fail ends the run; the first failure counts.
func (c *cluster) fail(format string, args ...any) {
	c.world.Fail(fmt.Errorf(format+" (%v)", append(args, c)...))
}

// run lets the world go on until done reports true, at most to until. An engine that panics fails the run.
func (c *cluster) run(until sim.Time, done func() bool) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("at %v: panic: %v (%v, %v)\n%s", c.world.Now(), p, c, c.world, stack())
		}
	}()
	return c.world.RunUntil(until, done)
}

// stack returns the innermost frames of a panic.
func stack() string {
	lines := strings.Split(string(debug.Stack()), "\n")
	return strings.Join(lines[:min(len(lines), 30)], "\n")
}

// pass lets d of time pass.
func (c *cluster) pass(d time.Duration) error {
	return c.run(c.world.Now()+d, func() bool { return false })
}

// errStuck says that something that had to happen did not.
var errStuck = errors.New("no progress")

// await lets the world go on until done, or fails after d.
func (c *cluster) await(d time.Duration, what string, done func() bool) error {
	if done() {
		return nil
	}
	over := false
	if err := c.run(c.world.Now()+d, func() bool { over = done(); return over }); err != nil || over {
		return err
	}
	return fmt.Errorf("at %v: %w: %s within %v (%v, %v)", c.world.Now(), errStuck, what, d, c, c.world)
}

// finish is the end of every run: once the network is well, all clients get their answers, all members execute the same
// log, and the history is linearizable.
func (c *cluster) finish() error {
	if left := c.faults.Heal - c.world.Now(); left > 0 {
		if err := c.run(c.faults.Heal, c.finished); err != nil {
			return err
		}
	}
	if c.world.Now() < c.faults.Heal {
		if err := c.run(c.faults.Heal, func() bool { return false }); err != nil {
			return err
		}
	}
	bound := 30*patience + time.Duration(c.ops)*patience/10
	if err := c.await(bound, "not every command was answered", c.finished); err != nil {
		return err
	}
	if err := c.await(30*patience, "not every member caught up", c.caughtUp); err != nil {
		return err
	}
	return c.judge()
}

func (c *cluster) finished() bool {
	for _, cl := range c.callers {
		if cl == nil || !cl.finished() {
			return false
		}
	}
	return true
}

// caughtUp reports whether every member that runs has executed everything that any member has, and nobody lags behind an
// answer.
func (c *cluster) caughtUp() bool {
	for _, m := range c.running {
		if m != nil && m.counts() && m.machine.index != c.last() {
			return false
		}
	}
	return true
}

// judge checks what can be judged only at the end.
func (c *cluster) judge() error {
	for _, check := range []error{
		c.history.CheckRegister(time.Minute).Err(), c.history.CheckLock(time.Minute).Err(), c.history.CheckTokens(),
	} {
		if check != nil {
			return fmt.Errorf("I9: %w (%v, %v)", check, c, c.world)
		}
	}
	for _, m := range c.running {
		if m == nil || !m.counts() {
			continue
		}
		if v := m.engine.Status().View; fmt.Sprint(v) != fmt.Sprint(c.view) {
			return fmt.Errorf("I10: replica %d is in view %v, the group in %v", m.id, v, c.view)
		}
	}
	return nil
}

// last returns the index of the newest entry that any member delivered.
func (c *cluster) last() uint64 { return c.first + uint64(len(c.entries)) - 1 }

// delivered checks an entry handed to a member's machine: I1 and I3.
func (c *cluster) delivered(m *member, e order.Entry) {
	if c.first == 0 {
		c.first = e.Index
	}
	switch digest := digestEntry(e); {
	case e.Index < c.first:
		c.fail("I2: replica %d delivers %d, the log begins at %d", m.id, e.Index, c.first)
	case e.Index > c.last()+1:
		c.fail("I2: replica %d delivers %d, nobody has %d", m.id, e.Index, c.last()+1)
	case e.Index == c.last()+1:
		c.entries = append(c.entries, digest)
	case c.entries[e.Index-c.first] != digest:
		c.fail("I1: replica %d delivers another entry at %d than was delivered elsewhere: %+v", m.id, e.Index, e)
	}
	if e.Kind == order.Normal {
		if asked, ok := c.issued[commandID{e.Cmd.Client, e.Cmd.Seq}]; !ok || asked != digestCommand(e.Cmd) {
			c.fail("I3: replica %d delivers at %d a command that nobody issued: %+v", m.id, e.Index, e.Cmd)
		}
	}
}

// executed checks a member's machine after an entry: I4, and that machines agree.
func (c *cluster) executed(m *member, e order.Entry, effect bool) {
	if effect {
		id := commandID{e.Cmd.Client, e.Cmd.Seq}
		if at, ok := c.effects[id]; ok && at != e.Index {
			c.fail("I4: replica %d executes (%v, %d) at %d, it took effect at %d", m.id, id.client, id.seq, e.Index, at)
		}
		c.effects[id] = e.Index
	}
	switch i := int(e.Index - c.first); {
	case i == len(c.chains):
		c.chains = append(c.chains, m.machine.chain)
	case i < len(c.chains) && c.chains[i] != m.machine.chain:
		c.fail("I1: the machine of replica %d differs after %d", m.id, e.Index)
	}
}

// digestCommand digests what the client fixed about a command: not Acked, which moves on between retries.
func digestCommand(cmd order.Command) uint64 {
	cmd.Acked = 0
	return digestEntry(order.Entry{Cmd: cmd})
}

// answered notes that an answer for the entry at index leaves for a client.
func (c *cluster) answered(index uint64) { c.acked = max(c.acked, index) }

// election is when somebody knew first who leads in a term.
type election struct {
	term uint64
	at   sim.Time
}

// confirms checks what a leader's read point says of the moment when it was asked for: I16.
func (c *cluster) confirms(m *member, asked sim.Time) {
	term := m.engine.Status().Term
	for _, e := range c.elections {
		if e.term > term && e.at < asked {
			c.fail("I16: replica %d gives a read point in term %d to a read of %v, and term %d had a leader at %v", m.id, term, asked, e.term, e.at)
		}
	}
}

// leads checks a member that has begun to lead: I6, and I5 once it says that it is up to date.
func (c *cluster) leads(m *member, ready bool) {
	st := m.engine.Status()
	if other, ok := c.leaders[st.Term]; ok && other != m.id {
		c.fail("I6: replicas %d and %d both lead in term %d", other, m.id, st.Term)
	}
	if _, ok := c.leaders[st.Term]; !ok {
		c.elections = append(c.elections, election{st.Term, c.world.Now()})
	}
	c.leaders[st.Term] = m.id
	c.topTerm = max(c.topTerm, st.Term)
	if ready && st.Term == c.topTerm && st.Commit < c.acked {
		c.fail("I5: replica %d leads in term %d with commit %d, entry %d was acknowledged", m.id, st.Term, st.Commit, c.acked)
	}
}

// point is a place where a crash is interesting. It reports whether the member lives on.
func (c *cluster) point(m *member) bool {
	if slices.Contains(c.crashAt, c.points) {
		down := time.Duration(c.rand.Int64N(int64(3 * patience)))
		if c.fork || c.rand.IntN(2) == 0 {
			down = time.Duration(c.rand.Int64N(int64(patience / 100))) // it comes back before anybody noticed
		}
		if c.fork {
			c.isolateLeader()
		}
		c.world.Crash(m.env.ID())
		c.world.At(c.world.Now()+down, func() { c.world.Restart(m.env.ID()) })
	}
	c.points++
	return m.env.Alive()
}

// isolateLeader cuts off whoever leads, if anybody does.
func (c *cluster) isolateLeader() {
	for _, m := range c.running {
		if m != nil && m.leader == m.id {
			others := c.everyone()
			delete(others, m.env.ID())
			c.world.SetCut(sim.Split([]sim.NodeID{m.env.ID()}, list(others)))
		}
	}
}

// loseDisk takes a member's disk away; it comes back at its next boot with an empty one under a new store id.
func (c *cluster) loseDisk(n sim.NodeID) {
	c.world.Crash(n)
	old := c.disks[n].store
	c.disks[n] = &disk{store: old, self: c.disks[n].self, join: c.disks[n].join}
	if !c.mistakes.keepStoreID {
		c.disks[n].store[0] ^= 0xff
	}
}

// leader returns the node that leads and is up to date in the newest term, or -1.
func (c *cluster) leader() sim.NodeID {
	best, term := sim.NodeID(-1), uint64(0)
	for _, m := range c.running {
		if m == nil || !m.counts() {
			continue
		}
		if _, ready := m.engine.Leader(); ready {
			if st := m.engine.Status(); st.Term > term {
				best, term = m.env.ID(), st.Term
			}
		}
	}
	return best
}

// digestActions appends everything about actions to b.
func digestActions(b []byte, a *order.Actions) []byte {
	u := func(vs ...uint64) {
		for _, v := range vs {
			b = binary.BigEndian.AppendUint64(b, v)
		}
	}
	flag := func(set bool) uint64 {
		if set {
			return 1
		}
		return 0
	}
	u(uint64(len(a.Persist)), uint64(len(a.Send)), uint64(len(a.Timers)), uint64(len(a.Install)), uint64(len(a.Deliver)),
		uint64(len(a.Done)), uint64(len(a.ReadOK)), flag(a.Halt != nil))
	for _, v := range a.Views {
		b = fmt.Append(b, v)
	}
	for _, p := range a.Persist {
		u(p.Seq, flag(p.Sync), uint64(len(p.Records)))
		for _, r := range p.Records {
			u(uint64(r.Kind), r.Index, mixBytes(0, r.Data))
		}
	}
	for _, s := range a.Send {
		u(uint64(s.To), s.After, mixBytes(0, s.Whole()))
	}
	for _, t := range a.Timers {
		u(uint64(t.Kind), t.Epoch, uint64(t.After))
	}
	for _, in := range a.Install {
		u(in.Index, mixBytes(0, in.Data))
	}
	for _, e := range a.Deliver {
		u(digestEntry(e))
	}
	for _, d := range a.Done {
		u(d.Ref, d.Index, flag(d.Err != nil))
		if d.Err != nil {
			b = append(b, d.Err.Error()...)
		}
	}
	for _, r := range a.ReadOK {
		u(r.Ref, r.Index)
	}
	return b
}

// wrote and lastWritten let clients expect, in a compare-and-set, what may well be there.
func (c *cluster) wrote(key, value uint64) { c.written[key] = value }

func (c *cluster) lastWritten(key uint64) uint64 { return c.written[key] }
