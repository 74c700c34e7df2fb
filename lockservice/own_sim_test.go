package lockservice

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/lockservice/pb"
	"latchkey/lockservice/table"
	"latchkey/replicagroup"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/placement"
	"latchkey/replicagroup/session"
)

// The world of this file has one prefix's group and the own groups that it makes of one of its keys, each reduced to its log: what an
// ordering engine makes sure of is taken for granted, and leaders that change, replicas that restart and groups that are lost are
// faults of it. Whoever moves the key may stop after any step, be followed by another, and have its commands arrive twice and late.

// ownSeeds is what other packages' tests take, whose worlds are smaller: one of these takes as long as some two hundred of theirs.
var ownSeeds = flag.Int("seeds", 5000, "TestOwnGroupsInSimulation draws one world for each 200 of these")

const (
	simTTL  = time.Second
	simStep = 10 * time.Millisecond
)

// ownFault is a planted mistake; zero: none.
type ownFault struct {
	keys   placement.KeyMutant
	table  table.Mutant
	noSeal bool // a key is taken back from a group that serves it still
	hasty  bool // a later generation of the prefix's group grants as soon as its own leases are over
}

type simGroup struct {
	id     order.GroupID
	table  *session.Table
	locks  *Machine
	keys   *placement.Keys
	own    *placement.Own
	boot   uint64
	index  uint64
	snap   []byte
	tail   []order.Entry // since snap
	dead   bool          // for good
	paused time.Duration // until then nobody hears of it
	adminN uint64
}

type ownWorld struct {
	rng     *rand.Rand
	now     time.Duration
	genesis placement.Genesis
	fault   ownFault
	moved   string // the key that moves
	stays   string
	prefix  *simGroup
	groups  map[order.GroupID]*simGroup
	born    []*simGroup // all of groups, in the order in which they were made
	boots   uint64
	clients []*simClient
	highest map[string]uint64 // token
	granted map[string]uint64 // by client and request
	holds   int
	stale   []staleCommand
	counts  map[string]int
	calm    bool
	err     error
}

type staleCommand struct {
	group order.GroupID
	data  []byte
}

func simGenesis() placement.Genesis {
	g := placement.Defaults()
	g.TTLMax, g.Lease, g.F, g.OwnGroups = 2*time.Second, 6*time.Second, 1, true
	return g
}

// siblings returns two names whose keys one prefix's group owns.
func siblings(depth int) (a, b string) {
	a = "moves"
	for i := 0; ; i++ {
		b = fmt.Sprintf("stays-%d", i)
		if keyspace.PrefixOf(keyspace.Preimage(b).Key(), depth) == keyspace.PrefixOf(keyspace.Preimage(a).Key(), depth) {
			return a, b
		}
	}
}

func newOwnWorld(seed uint64, fault ownFault) *ownWorld {
	w := &ownWorld{
		rng: rand.New(rand.NewPCG(seed, 7)), genesis: simGenesis(), fault: fault, groups: make(map[order.GroupID]*simGroup),
		highest: make(map[string]uint64), granted: make(map[string]uint64), counts: make(map[string]int),
	}
	w.moved, w.stays = siblings(w.genesis.Depth)
	w.prefix = w.group(order.GroupID{Prefix: w.genesis.PrefixOf(keyspace.Preimage(w.moved).Key())})
	for n := range 3 {
		w.clients = append(w.clients, &simClient{world: w, n: byte(n + 1), seqs: make(map[order.GroupID]uint64)})
		w.clients[n].fresh()
	}
	return w
}

// machines makes a group's session table as a host does.
func (w *ownWorld) machines(g *simGroup) {
	own := placement.IsOwn(g.id)
	cfg := MachineConfig{Gen: g.id.Gen, TTLMax: w.genesis.TTLMax, Drift: w.genesis.Drift, Own: own, Wait: placement.KeysQuarantine(w.genesis)}
	if w.fault.hasty {
		cfg.Wait = 0
	}
	g.locks = NewMachine(cfg)
	table.Sabotage(g.locks.table, w.fault.table)
	services := map[string]session.Machine{ServiceName: g.locks}
	if own {
		g.own = placement.NewOwn(g.id)
		g.own.Sabotage(w.fault.keys)
		services[placement.OwnService] = replicagroup.OwnMachine(g.own)
	} else {
		g.keys = placement.NewKeys(w.genesis, g.id)
		g.keys.Sabotage(w.fault.keys)
		services[placement.OwnService] = replicagroup.KeysMachine(g.keys)
	}
	g.table = session.NewTable(w.genesis.Drift, services)
}

func (w *ownWorld) group(id order.GroupID) *simGroup {
	g := &simGroup{id: id}
	w.machines(g)
	w.groups[id], w.born = g, append(w.born, g)
	w.lead(g)
	return g
}

// lead gives a group a leader with another clock.
func (w *ownWorld) lead(g *simGroup) {
	w.boots++
	g.boot = w.boots
	w.apply(g, order.Command{Service: session.TickService})
}

func (w *ownWorld) apply(g *simGroup, cmd order.Command) session.Result {
	g.index++
	e := order.Entry{Index: g.index, Cmd: cmd, Kind: order.Normal, Stamp: order.Stamp{Boot: g.boot, At: w.now}}
	g.tail = append(g.tail, e)
	return g.table.Apply(e, new(session.Outputs))
}

// restart brings every replica of a group back from disk: a snapshot and the log behind it.
func (w *ownWorld) restart(g *simGroup) {
	before := g.table.Digest()
	w.machines(g)
	if g.snap != nil {
		if err := g.table.Restore(g.snap); err != nil {
			w.fail("group %v: %v", g.id, err)
			return
		}
		table.Sabotage(g.locks.table, w.fault.table)
	}
	for _, e := range g.tail {
		g.table.Apply(e, new(session.Outputs))
	}
	if g.table.Digest() != before {
		w.fail("group %v: replay differs from what was", g.id)
	}
	w.lead(g)
}

func (w *ownWorld) compact(g *simGroup) { g.snap, g.tail = g.table.Snapshot(), nil }

func (w *ownWorld) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf("at %v: "+format, append([]any{w.now}, args...)...)
	}
}

func (w *ownWorld) hears(g *simGroup) bool { return g != nil && !g.dead && g.paused <= w.now }

// admin has a command of a leader's host executed.
func (w *ownWorld) admin(g *simGroup, c placement.KeyCommand) []byte {
	data, err := c.Encode()
	if err != nil {
		w.fail("encode: %v", err)
	}
	return w.adminData(g, data)
}

func (w *ownWorld) adminData(g *simGroup, data []byte) []byte {
	if len(w.stale) < 64 {
		w.stale = append(w.stale, staleCommand{g.id, data})
	} else {
		w.stale[w.rng.IntN(64)] = staleCommand{g.id, data}
	}
	id := order.ClientID{0xad}
	w.apply(g, order.Command{Client: id, Author: keyspace.NodeID{0xad}, Service: session.Service, Data: session.OpenData(session.TTLMax)})
	g.adminN++
	res := w.apply(g, order.Command{Client: id, Author: keyspace.NodeID{0xad}, Seq: g.adminN, Acked: g.adminN - 1, Service: placement.OwnService, Data: data})
	if res.Status != session.OK {
		w.fail("admin command: %v", res.Status)
	}
	return res.Data
}

func (w *ownWorld) change(g *simGroup, name string, c placement.Command) placement.Result {
	data, err := c.Encode()
	if err != nil {
		w.fail("encode: %v", err)
	}
	return w.result(w.admin(g, placement.KeyCommand{Kind: placement.Change, Name: name, Change: data}))
}

func (w *ownWorld) result(b []byte) placement.Result {
	res, err := placement.DecodeResult(b)
	if err != nil {
		w.fail("result: %v", err)
	}
	return res
}

func (w *ownWorld) hosts() []placement.Host {
	list := make([]placement.Host, 3)
	for i := range list {
		list[i] = placement.Host{Peer: placement.Peer{ID: fmt.Sprintf("peer-%d", i)}}
		list[i].Store[0] = byte(i + 1)
	}
	return list
}

func (w *ownWorld) movedPrefix() keyspace.Prefix {
	return placement.KeyPrefix(keyspace.Preimage(w.moved).Key())
}

// chance is a probability for each step.
func (w *ownWorld) chance(perSecond float64) bool {
	return w.rng.Float64() < perSecond*simStep.Seconds()
}

func (w *ownWorld) note(what string) { w.counts[what]++ }

// operate is what operators, leaders' hosts and faults do in one step.
func (w *ownWorld) operate() {
	p := w.prefix
	if p.dead {
		if w.chance(2) || w.calm { // the root makes the next generation
			gen := p.id.Gen + 1
			if w.rng.IntN(3) == 0 { // another root makes it, which never knew it
				gen = (p.id.Gen>>32 + 1) << 32
				w.note("prefix made after a reseed")
			}
			w.prefix = w.group(order.GroupID{Prefix: p.id.Prefix, Gen: gen})
			w.note("prefix revived")
		}
		return
	}
	ch, out := p.keys.Lookup(w.movedPrefix())
	child := w.groups[ch.Group]
	if !out && !w.calm && w.chance(1) {
		if res := w.result(w.admin(p, placement.KeyCommand{Kind: placement.Out, Name: w.moved, Members: w.hosts()})); res.Status == placement.OK {
			w.note("out")
		}
		return
	}
	if out && child == nil { // its members are told to start
		child = w.group(ch.Group)
	}
	if out && w.hears(child) {
		w.hand(p, child)
		w.remove(p, child)
	}
	if out && child.dead && w.chance(4) {
		if res := w.change(p, "", placement.Command{Kind: placement.Revive, Prefix: w.movedPrefix(), Gen: ch.Group.Gen, Members: w.hosts()}); res.Status == placement.OK {
			w.note("own revived")
		}
	}
	w.register(p)
	if w.calm {
		return
	}
	for _, g := range []*simGroup{p, child} {
		if g == nil || g.dead {
			continue
		}
		switch {
		case w.chance(0.3):
			w.lead(g)
		case w.chance(0.3):
			w.restart(g)
		case w.chance(0.3):
			w.compact(g)
		case w.chance(0.03):
			g.dead = true
			w.note("lost")
		case placement.IsOwn(g.id) && w.chance(0.05):
			g.paused = w.now + time.Duration(w.rng.Int64N(int64(2*placement.KeysQuarantine(w.genesis))))
		}
	}
	if len(w.stale) > 0 && w.chance(2) {
		if s := w.stale[w.rng.IntN(len(w.stale))]; w.hears(w.groups[s.group]) {
			w.adminData(w.groups[s.group], s.data)
		}
	}
}

// hand gives an own group what waits for it. Whoever does it may stop between the two steps.
func (w *ownWorld) hand(p, child *simGroup) {
	part, err := placement.DecodeKeyPart(p.keys.Query(p.table.Now(), placement.PartQuery(w.movedPrefix())))
	if err != nil || part.Begun || !part.Ready || !w.chance(10) {
		return
	}
	b := w.admin(child, placement.KeyCommand{Kind: placement.Begin, Name: w.moved, Gen: child.id.Gen, Part: part.Part})
	res, err := placement.DecodeOwnResult(b)
	if err != nil || res.Status != placement.OK {
		w.fail("begin: %v %v", res.Status, err)
	}
	if w.chance(50) {
		w.admin(p, placement.KeyCommand{Kind: placement.Begun, Name: w.moved, Gen: child.id.Gen})
		w.note("begun")
	}
}

// remove brings a key back, a step at a time.
func (w *ownWorld) remove(p, child *simGroup) {
	phase, _ := child.own.Phase()
	switch {
	case phase == placement.OwnServes && (w.calm || w.chance(0.7)):
		if w.fault.noSeal {
			copied := &simGroup{id: child.id}
			w.machines(copied)
			if err := copied.table.Restore(child.table.Snapshot()); err != nil {
				w.fail("copy: %v", err)
			}
			copied.index, copied.adminN = child.index, child.adminN
			w.admin(copied, placement.KeyCommand{Kind: placement.Seal, Name: w.moved, Gen: child.id.Gen})
			w.adopt(p, child, copied.own.Query(nil))
			return
		}
		w.admin(child, placement.KeyCommand{Kind: placement.Seal, Name: w.moved, Gen: child.id.Gen})
	case phase == placement.OwnSealed && w.chance(10):
		w.adopt(p, child, child.own.Query(nil))
	}
}

func (w *ownWorld) adopt(p, child *simGroup, sealed []byte) {
	res, err := placement.DecodeOwnResult(sealed)
	if err != nil {
		w.fail("sealed: %v", err)
	}
	if res := w.result(w.admin(p, placement.KeyCommand{Kind: placement.Adopt, Name: w.moved, Gen: child.id.Gen, Part: res.Part})); res.Status == placement.Quarantined {
		return
	} else if res.Status != placement.OK {
		w.fail("adopt: %v", res.Status)
	}
	w.note("adopted")
}

// register has the own groups that the prefix's group does not know tell of themselves, as their leaders do from time to time.
func (w *ownWorld) register(p *simGroup) {
	for _, g := range w.born {
		if !placement.IsOwn(g.id) || !w.hears(g) || !w.chance(2) {
			continue
		}
		known, ok := p.keys.Lookup(g.id.Prefix)
		if ok && known.Group == g.id {
			continue
		}
		if placement.ParentGen(g.id.Gen) == p.id.Gen || ok && known.Group.Gen > g.id.Gen {
			g.dead = true // over: its members put it aside
			continue
		}
		d := placement.Descriptor{Group: g.id, Engine: placement.EngineRaft}
		for i, h := range w.hosts() {
			d.Peers = append(d.Peers, h.Peer)
			d.View.Members = append(d.View.Members, order.Member{ID: order.ReplicaID(i + 1), Role: order.Voter, Store: h.Store, Peer: h.Node(), PeerID: h.ID})
			d.View.Next = order.ReplicaID(i + 2)
		}
		_, name := g.own.Phase()
		switch res := w.change(p, name, placement.Command{Kind: placement.Update, Prefix: g.id.Prefix, Descriptor: d}); res.Status {
		case placement.OK:
			w.note("survived")
		case placement.TooLarge:
		case placement.NotFound, placement.WrongGen:
			g.dead = true
			w.note("too late")
		}
	}
}

// simClient takes one lock after another. It has one session with every group, under one id, and one call at a time.
type simClient struct {
	world *ownWorld
	n     byte
	id    order.ClientID
	lives byte
	seqs  map[order.GroupID]uint64
	at    *simGroup // where it believes that name is served

	name  string
	req   uint64
	state int // of simIdle, simAsking, simQueued, simHolding, simLeaving
	token uint64
	until time.Duration // holds in its own belief before this
	next  time.Duration // when it does something
	leave time.Duration

	cmd     order.Command // of the call under way
	calling bool
	to      *simGroup
	sent    time.Duration // first sending
	tries   int
}

const (
	simIdle = iota
	simAsking
	simQueued
	simHolding
	simLeaving
)

// fresh begins another session: what it had is lost.
func (c *simClient) fresh() {
	c.lives++
	c.id = order.ClientID{c.n, c.lives}
	c.seqs = make(map[order.GroupID]uint64)
	c.state, c.until, c.calling, c.token = simIdle, 0, false, 0
}

func (c *simClient) step() {
	w := c.world
	if c.calling {
		c.try()
		return
	}
	if w.now < c.next {
		return
	}
	switch c.state {
	case simIdle:
		c.name = w.moved
		if w.rng.IntN(4) == 0 {
			c.name = w.stays
		}
		c.req++
		c.state = simAsking
		c.call(encodeAcquire(table.Acquire{Name: c.name, Req: c.req, TTL: simTTL}))
	case simQueued:
		c.call(encodeRenew(table.Renew{Name: c.name, Req: c.req, TTL: simTTL}))
	case simHolding:
		if w.now >= c.leave {
			c.state, c.until = simLeaving, 0
			c.call(encodeRelease(table.Release{Name: c.name, Req: c.req, Token: table.Token(c.token)}))
			return
		}
		c.call(encodeRenew(table.Renew{Name: c.name, Req: c.req, Token: table.Token(c.token), TTL: simTTL}))
	}
}

func (c *simClient) call(data []byte) {
	if c.at == nil || c.name == c.world.stays {
		c.at = c.world.prefix
	}
	c.calling, c.to, c.tries, c.sent = true, c.at, 0, c.world.now
	c.cmd = order.Command{Service: ServiceName, Data: data}
	c.number()
}

// number gives the call the next number of its session with the group it goes to.
func (c *simClient) number() {
	c.seqs[c.to.id]++
	seq := c.seqs[c.to.id]
	c.cmd.Client, c.cmd.Author, c.cmd.Seq, c.cmd.Acked = c.id, keyspace.NodeID{c.n}, seq, seq-1
}

// try sends the call, which may be lost, and its answer too, and either may come twice.
func (c *simClient) try() {
	w := c.world
	if w.now < c.next {
		return
	}
	c.tries++
	c.next = w.now + time.Duration(20+w.rng.IntN(100))*time.Millisecond
	if !w.hears(c.to) {
		if c.tries > 20 { // the group does not answer; nobody knows what became of the call
			c.fresh()
			c.at = nil
		}
		return
	}
	if !w.calm && w.rng.IntN(10) == 0 {
		return
	}
	res := w.apply(c.to, c.cmd)
	for range w.rng.IntN(2) {
		w.apply(c.to, c.cmd)
	}
	if !w.calm && w.rng.IntN(6) == 0 {
		return
	}
	c.next = w.now + time.Duration(w.rng.IntN(30))*time.Millisecond
	switch res.Status {
	case session.Session:
		open := w.apply(c.to, order.Command{Client: c.id, Author: c.cmd.Author, Service: session.Service, Data: session.OpenData(5 * time.Second)})
		if open.Status != session.OK || c.tries > 3 && c.to.id != w.prefix.id {
			c.fresh()
		}
	case session.Moved:
		c.redirect()
	case session.OK:
		c.calling = false
		c.answered(res.Data)
	default:
		w.fail("client %d: %v", c.n, res.Status)
	}
}

// redirect asks the group that the other one names, under a number of the session there.
func (c *simClient) redirect() {
	w := c.world
	c.at = w.prefix
	if !placement.IsOwn(c.to.id) {
		if ch, ok := c.to.keys.Lookup(placement.KeyPrefix(keyspace.Preimage(c.name).Key())); ok && w.groups[ch.Group] != nil {
			c.at = w.groups[ch.Group]
		}
	}
	if c.to = c.at; c.to.dead {
		c.fresh()
		c.at = nil
		return
	}
	c.number()
}

func (c *simClient) answered(b []byte) {
	w := c.world
	res, err := decodeResult(b)
	if err != nil {
		w.fail("result: %v", err)
		return
	}
	c.next = w.now + 200*time.Millisecond
	switch {
	case c.state == simLeaving:
		c.state = simIdle
	case res.status == pb.Status_STATUS_GRANTED && res.waited:
		c.state, c.next = simQueued, w.now // confirm it first
	case res.status == pb.Status_STATUS_GRANTED, res.status == pb.Status_STATUS_HELD:
		c.holds(uint64(res.token))
	case res.status == pb.Status_STATUS_QUEUED:
		c.state = simQueued
	case res.status == pb.Status_STATUS_NOT_HELD:
		c.state, c.until = simIdle, 0
	default:
		w.fail("client %d: %v %s", c.n, res.status, res.detail)
	}
}

// holds begins or prolongs a hold, which counts from when the call was first sent, and judges it.
func (c *simClient) holds(token uint64) {
	w := c.world
	until := c.sent + simTTL
	if until <= w.now {
		if c.state != simHolding {
			c.state = simQueued // a renewal says whether it holds still
		}
		return
	}
	request := fmt.Sprint(c.id, c.req)
	if before, ok := w.granted[request]; ok && before != token {
		w.fail("client %d: request %d granted under tokens %x and %x", c.n, c.req, before, token)
	}
	w.granted[request] = token
	if c.state != simHolding {
		c.state, c.token = simHolding, token
		c.leave = w.now + time.Duration(w.rng.IntN(1500))*time.Millisecond
		for _, o := range w.clients {
			if o != c && o.name == c.name && o.until > w.now {
				w.fail("%s: client %d holds under %x, and client %d under %x", c.name, c.n, token, o.n, o.token)
			}
		}
		if last := w.highest[c.name]; token <= last {
			w.fail("%s: client %d holds under %x after %x", c.name, c.n, token, last)
		}
		w.highest[c.name] = token
		w.holds++
	} else if c.token != token {
		w.fail("client %d: a hold under %x turns into one under %x", c.n, c.token, token)
	}
	c.until = until
	if c.next = w.now + 300*time.Millisecond; c.leave < c.next {
		c.next = max(c.leave, w.now)
	}
}

// run lets time pass, and then looks whether everybody gets on once nothing is disturbed any more.
func (w *ownWorld) run(d time.Duration) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("at %v: %v", w.now, p)
		}
	}()
	until := func(end time.Duration) {
		for ; w.now < end && w.err == nil; w.now += simStep {
			w.operate()
			for _, g := range w.born {
				if !g.dead && w.now%(100*time.Millisecond) == 0 {
					w.apply(g, order.Command{Service: session.TickService})
				}
			}
			for _, c := range w.clients {
				c.step()
			}
		}
	}
	until(d)
	w.calm = true
	for _, g := range w.born {
		g.paused = 0
	}
	until(w.now + 2*placement.KeysQuarantine(w.genesis) + 10*time.Second)
	if holds := w.holds; w.err == nil {
		if until(w.now + 20*time.Second); w.holds < holds+3 {
			w.fail("nobody gets on: %d holds, and %d after a while", holds, w.holds)
		}
	}
	return w.err
}

// Conformance tests 48 and 49 of replica-groups.md section 8, as far as they concern what the logs say: own groups outlive a prefix's
// group that is lost, and one that another root makes, by adoption; none is doubled; tokens of their keys grow. With them the
// moves themselves.
func TestOwnGroupsInSimulation(t *testing.T) {
	t.Parallel()
	counts := make(map[string]int)
	holds := 0
	for seed := range uint64(max(25, *ownSeeds/200)) {
		w := newOwnWorld(seed, ownFault{})
		if err := w.run(60 * time.Second); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		holds += w.holds
		for k, n := range w.counts {
			counts[k] += n
		}
	}
	t.Logf("%d holds, %v", holds, counts)
	for _, k := range []string{"out", "begun", "adopted", "lost", "own revived", "prefix revived", "prefix made after a reseed", "survived", "too late"} {
		if counts[k] == 0 {
			t.Errorf("no run has had: %s", k)
		}
	}
}

func TestOwnGroupMutantsAreCaught(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]ownFault{
		"served by both":                    {keys: placement.MutantServeBoth},
		"own group goes on after its seal":  {keys: placement.MutantNoSeal},
		"taken back without a seal":         {noSeal: true},
		"own group begins below the tokens": {table: table.MutantCarveCounter},
		"taken back below the tokens":       {table: table.MutantGraftCounter},
		"made anew under the tokens it had": {keys: placement.MutantSameKeyGen},
		"made anew while leases last":       {keys: placement.MutantNoWait},
		"adopted whenever it comes":         {keys: placement.MutantAdoptLate},
		"a later prefix's group is hasty":   {hasty: true},
		"begins again with each copy":       {keys: placement.MutantBeginTwice},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(300) {
				if err := newOwnWorld(seed, fault).run(60 * time.Second); err != nil {
					t.Logf("seed %d: %v", seed, err)
					return
				}
			}
			t.Error("not caught")
		})
	}
}
