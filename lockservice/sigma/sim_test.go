package sigma

import (
	"encoding/binary"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/internal/sim"
	"latchkey/replicagroup/quorum"
)

var (
	seedsFlag  = flag.Uint64("seeds", 500, "how many worlds the simulation draws")
	seedFlag   = flag.Uint64("seed", 0, "the world that TestReplay runs")
	mutantFlag = flag.String("mutant", "none", "its mutant")
)

// world is one simulated group with its clients. The group's log is an abstract sequencer: entries are committed once a majority
// of the voters they apply to has them, and every replica applies them when it likes.
type world struct {
	cfg     worldConfig
	sim     *sim.World
	rand    *rand.Rand
	rates   []int64
	disks   []disk
	reps    []*simReplica
	clients []*simClient

	log      []Entry
	states   []LogState // before entry i; one more than entries
	commit   int        // entries
	closing  bool
	viewBusy bool

	tokens map[string]map[Token]bool
	last   map[string]Token
	gids   map[gidKey]string
	ranges map[ViewID]LogState // base of each view
	report worldReport
}

type gidKey struct {
	node keyspace.NodeID
	gid  GID
}

type worldReport struct {
	Events, Acquired, Lost, Views, Settled, OneRound int
	Raises                                           int
	TakenUp                                          int // tables
}

type worldConfig struct {
	seed    uint64
	mutant  mutant
	pool    int
	clients int
	names   int
	drift   automaton.Drift
	faults  sim.Faults
	ttls    []time.Duration
	hold    time.Duration
	think   time.Duration
	change  time.Duration // mean time between view changes; 0 is never
	lag     time.Duration // of applying, at most
	delay   time.Duration // lock-delay
	block   Token
	sizes   []int
	hasty   bool // view changes do not wait for the former one to settle
	cap     time.Duration
	y1      bool
	piece   int  // names in a piece of a report
	doubts  bool // replicas take clients for dead that may not be
	keep    int  // of ten crashes of a replica, how many leave its host the records of its table
}

func drawWorld(seed uint64, m mutant) worldConfig {
	r := rand.New(rand.NewPCG(seed, 0x51a))
	pick := func(d ...time.Duration) time.Duration { return d[r.IntN(len(d))] }
	c := worldConfig{
		seed: seed, mutant: m, pool: 3 + r.IntN(4), clients: 2 + r.IntN(4), names: 1 + r.IntN(2),
		drift:  []automaton.Drift{automaton.DriftDefault, 100_000}[r.IntN(2)],
		ttls:   [][]time.Duration{{time.Second}, {time.Second, 2500 * time.Millisecond}, {2 * time.Second}}[r.IntN(3)],
		hold:   pick(50*time.Millisecond, 500*time.Millisecond, 2*time.Second),
		think:  pick(5*time.Millisecond, 300*time.Millisecond),
		change: pick(0, 500*time.Millisecond, 2*time.Second, 5*time.Second),
		lag:    pick(20*time.Millisecond, 500*time.Millisecond, 6*time.Second),
		delay:  pick(0, 0, 0, 300*time.Millisecond),
		block:  []Token{4, 16, Block}[r.IntN(3)],
		sizes:  [][]int{{3}, {1, 3}, {1, 3, 5}, {3, 5}}[r.IntN(4)],
		hasty:  r.IntN(3) == 0,
		y1:     r.IntN(8) == 0,
	}
	if c.piece = 1 + r.IntN(2); c.piece == 1 {
		c.names += r.IntN(3)
	}
	c.keep = []int{0, 5, 10}[r.IntN(3)]
	c.cap = CapFor(slices.Min(c.ttls))
	c.faults = sim.Draw(seed, sim.Scale{Delay: 60 * time.Millisecond, Timeout: 700 * time.Millisecond, Heal: 16 * time.Second, Drift: c.drift})
	if r.IntN(8) == 0 {
		c.faults.Drift = 3 * c.drift // beyond the bound: exclusion may break, tokens are never repeated
	}
	c.doubts = r.IntN(3) == 0
	return c
}

// drawHarsh draws a world for mutants: short of time, one name, leases that run out, clocks that keep their bound.
func drawHarsh(seed uint64, m mutant) worldConfig {
	c := drawWorld(seed, m)
	r := rand.New(rand.NewPCG(seed, 0x4a5))
	c.names, c.clients, c.y1, c.drift, c.doubts = 1, 4+r.IntN(2), false, 100_000, false
	c.hold, c.think, c.delay = []time.Duration{100 * time.Millisecond, 1500 * time.Millisecond}[r.IntN(2)], 5*time.Millisecond, 0
	c.sizes = [][]int{{3}, {1, 3}}[r.IntN(2)]
	c.change = []time.Duration{0, 800 * time.Millisecond, 3 * time.Second}[r.IntN(3)]
	c.ttls, c.cap = []time.Duration{time.Second}, CapFor(time.Second)
	if r.IntN(2) == 0 {
		c.ttls = []time.Duration{time.Second, 3 * time.Second}
	}
	f := &c.faults
	f.Drift = c.drift
	f.CrashEvery, f.CrashFor = 0, 100*time.Millisecond
	if r.IntN(2) == 0 {
		f.CrashEvery = 600 * time.Millisecond
	}
	f.Reorder, f.ReorderBy = 0.3, 1500*time.Millisecond
	f.Loss = []float64{0, 0.05, 0.2}[r.IntN(3)]
	return c
}

// drawKept draws a world whose voters crash often and come back at once with what they have recorded: either in one view, with leases that run
// out and numbers that differ, or while views change faster than reports of many pieces come through.
func drawKept(seed uint64, m mutant) worldConfig {
	c := drawHarsh(seed, m)
	r := rand.New(rand.NewPCG(seed, 0x6b3))
	pick := func(d ...time.Duration) time.Duration { return d[r.IntN(len(d))] }
	c.keep, c.piece, c.names, c.clients, c.sizes = 10, 1, 3+r.IntN(6), 4+r.IntN(4), []int{3}
	c.think, c.lag = pick(time.Millisecond, 20*time.Millisecond, 200*time.Millisecond), pick(20*time.Millisecond, 500*time.Millisecond)
	f := &c.faults
	if r.IntN(2) == 0 {
		c.change, c.hold = 0, time.Second
		f.Loss = []float64{0, 0.1, 0.3}[r.IntN(3)]
	} else {
		c.change, c.hold = pick(200*time.Millisecond, 800*time.Millisecond), pick(5*time.Millisecond, 100*time.Millisecond, time.Second)
		f.Loss = []float64{0.1, 0.3, 0.5}[r.IntN(3)]
	}
	f.CrashEvery, f.CrashFor = pick(60*time.Millisecond, 150*time.Millisecond), pick(2*time.Millisecond, 20*time.Millisecond, 300*time.Millisecond)
	f.Reorder, f.ReorderBy = []float64{0, 0.3}[r.IntN(2)], pick(200*time.Millisecond, 1500*time.Millisecond)
	return c
}

// draw draws a world of the campaign.
func draw(seed uint64, m mutant) worldConfig {
	if seed%8 == 0 {
		return drawKept(seed, m)
	}
	return drawWorld(seed, m)
}

func (c *worldConfig) bounded() bool { return c.faults.Drift <= c.drift }

// disk is what a replica's host keeps over a crash: how much of the log it has, its boot counter, and often what was recorded of its
// table.
type disk struct {
	appended int
	inc      uint64
	table    *Table
	older    *Table // what was recorded when the life before this one ended
}

// record carries out what a replica says is to be recorded.
func (d *disk) record(r *Replica, out []Action) {
	for i := range out {
		switch a := &out[i]; a.Kind {
		case Void:
			d.table = nil
		case Save:
			if d.table == nil {
				d.table = &Table{Names: make(map[string]Saved)}
			}
			if s, ok := r.Saved(a.Msg.Name); ok {
				d.table.Names[a.Msg.Name] = s
			} else {
				delete(d.table.Names, a.Msg.Name)
			}
		case SaveHead:
			if d.table == nil {
				d.table = &Table{Names: make(map[string]Saved)}
			}
			d.table.Head = r.Head()
		}
	}
}

// last returns what is recorded, where it is whole.
func (d *disk) last() *Table {
	if d.table == nil || d.table.Head == (Head{}) {
		return nil
	}
	return &Table{Head: d.table.Head, Names: maps.Clone(d.table.Names)}
}

func simNode(i sim.NodeID) keyspace.NodeID { return keyspace.NodeID{byte(i + 1)} }
func nodeOf(n keyspace.NodeID) sim.NodeID  { return sim.NodeID(n[0]) - 1 }

func runWorld(c worldConfig) (rep worldReport, err error) {
	w := &world{
		cfg: c, rand: rand.New(rand.NewPCG(c.seed, 0x5eed)), disks: make([]disk, c.pool), reps: make([]*simReplica, c.pool),
		clients: make([]*simClient, c.clients), tokens: make(map[string]map[Token]bool), last: make(map[string]Token),
		gids: make(map[gidKey]string), ranges: make(map[ViewID]LogState), rates: make([]int64, c.pool+c.clients),
	}
	first := LogState{Descriptor: Descriptor{View: ViewID{1, 0}, Members: w.members()}, Base: 1 << 40, Ceil: 1<<40 + c.block, Cap: c.cap}
	w.states = []LogState{first}
	w.ranges[first.View] = first
	w.sim = sim.New(sim.Config{Seed: c.seed, Nodes: c.pool + c.clients, Faults: c.faults, CrashLimit: c.pool/2 + c.clients/2}, w.boot)
	for i := range w.rates {
		if b := int64(c.faults.Drift); b > 0 {
			w.rates[i] = []int64{-b, b, w.rand.Int64N(2*b+1) - b}[w.rand.IntN(3)]
		}
		w.sim.SetRate(sim.NodeID(i), w.rates[i])
	}
	if c.change > 0 {
		w.recur()
	}
	defer func() {
		w.report.Events = int(w.sim.Events())
		rep = w.report
		if p := recover(); p != nil {
			err = fmt.Errorf("invariant: %v", p)
		}
		if err != nil {
			err = fmt.Errorf("%w\n%+v\nreplay: go test ./lockservice/sigma -run TestReplay -seed %d -mutant %v -v", err, c, c.seed, c.mutant)
		}
	}()
	if err := w.sim.Run(c.faults.Heal + 2*time.Second); err != nil {
		return w.report, err
	}
	w.closing = true
	limit := c.faults.Heal + 100*time.Second
	if err := w.sim.RunUntil(limit, w.idle); err != nil {
		return w.report, err
	}
	if !w.idle() {
		return w.report, fmt.Errorf("I8: not everybody was served by %v: %v", limit, w.clients)
	}
	return w.report, nil
}

func (w *world) idle() bool {
	return !slices.ContainsFunc(w.clients, func(c *simClient) bool { return c == nil || c.cur != nil })
}

func (w *world) members() []keyspace.NodeID {
	n := w.cfg.sizes[w.rand.IntN(len(w.cfg.sizes))]
	for n > w.cfg.pool {
		n -= 2
	}
	var ms []keyspace.NodeID
	for _, i := range w.rand.Perm(w.cfg.pool)[:n] {
		ms = append(ms, simNode(sim.NodeID(i)))
	}
	slices.SortFunc(ms, func(a, b keyspace.NodeID) int { return int(a[0]) - int(b[0]) })
	return ms
}

// recur proposes view changes until the faults are over.
func (w *world) recur() {
	w.sim.At(w.sim.Now()+time.Duration(w.rand.ExpFloat64()*float64(w.cfg.change))+time.Millisecond, func() {
		if w.sim.Now() > w.cfg.faults.Heal {
			return
		}
		end := w.states[len(w.states)-1]
		if !w.viewBusy && (w.cfg.hasty || w.settled(end)) {
			ms := w.members()
			if w.rand.IntN(3) == 0 { // a null change, or one replaced voter
				ms = end.Members
			}
			w.viewBusy = true
			w.append(Entry{Kind: EntryView, From: end.View, Members: ms})
		}
		w.recur()
	})
}

func (w *world) settled(s LogState) bool {
	n := 0
	for _, m := range s.Members {
		if p := w.reps[nodeOf(m)]; p != nil && p.core != nil && p.core.log.View == s.View && p.core.Settled() {
			n++
		}
	}
	return n >= quorum.Majority(len(s.Members))
}

// append puts an entry at the end of the log and sends it to everybody.
func (w *world) append(e Entry) {
	end := w.states[len(w.states)-1]
	next, did := end.apply(e, w.cfg.block)
	if !did {
		w.viewBusy = w.viewBusy && e.Kind != EntryView
		return
	}
	if e.Kind == EntryRaise {
		w.report.Raises++
	}
	w.log = append(w.log, e)
	w.states = append(w.states, next)
	w.ranges[next.View] = next
	for _, p := range w.reps {
		if p != nil {
			p.fetch()
		}
	}
}

// advance commits what a majority of the voters has.
func (w *world) advance() {
	was := w.commit
	for w.commit < len(w.log) {
		n := 0
		for _, m := range w.states[w.commit].Members {
			if w.disks[nodeOf(m)].appended > w.commit {
				n++
			}
		}
		if n < quorum.Majority(len(w.states[w.commit].Members)) {
			break
		}
		if w.log[w.commit].Kind == EntryView {
			w.viewBusy = false
			w.report.Views++
		}
		w.commit++
	}
	if w.commit > was {
		for _, p := range w.reps {
			if p != nil {
				p.catchUp()
			}
		}
	}
}

func (w *world) boot(e *sim.Env) sim.Process {
	if int(e.ID()) >= w.cfg.pool {
		c := &simClient{w: w, env: e, old: make(map[Req]*Client)}
		w.clients[int(e.ID())-w.cfg.pool] = c
		binary.LittleEndian.PutUint64(c.session[:], e.Rand().Uint64())
		binary.LittleEndian.PutUint64(c.session[8:], e.Life()<<8|uint64(e.ID()))
		c.view = w.states[0].Descriptor
		if w.commit > 0 && e.Rand().IntN(2) == 0 {
			c.view = w.states[w.commit].Descriptor
		}
		c.env.After(time.Millisecond, c.wishNext)
		return c
	}
	d := &w.disks[e.ID()]
	d.inc++
	p := &simReplica{w: w, env: e}
	w.reps[e.ID()] = p
	table := d.last()
	if old := d.older; old != nil && w.cfg.mutant == mutantOldTable {
		table = old
	}
	d.older = d.last()
	if table == nil || e.Rand().IntN(10) >= w.cfg.keep {
		d.table = nil
		p.core = NewReplica(p.config(d.inc > 1), w.states[0])
	}
	p.fetch()
	if p.w.cfg.doubts {
		p.doubt()
	}
	if born := e.Now(); d.inc > 1 {
		e.After(p.draw(100*time.Millisecond), func() { // the barrier's read
			p.barrier = w.commit
			p.passing = func() { p.begin(table, born) }
			p.catchUp()
			p.passed()
		})
	}
	return p
}

func (p *simReplica) config(restarted bool) ReplicaConfig {
	return ReplicaConfig{
		Self: simNode(p.env.ID()), Inc: p.w.disks[p.env.ID()].inc, Drift: p.w.cfg.drift, TTLMin: time.Millisecond, TTLMax: 4 * time.Second,
		Restarted: restarted, block: p.w.cfg.block, piece: p.w.cfg.piece, mutant: p.w.cfg.mutant,
	}
}

// begin is the barrier of a replica that has restarted. One whose table was kept begins with it.
func (p *simReplica) begin(t *Table, born automaton.Instant) {
	if p.core != nil {
		p.step(Event{Kind: Barrier})
		return
	}
	now := p.w.states[p.applied]
	if s, ok := t.State(now); ok {
		p.w.report.TakenUp++
		c := p.config(false)
		c.Table, c.Waited = t, p.env.Now().Sub(born)
		p.core = NewReplica(c, s)
		p.step(Event{Kind: Jumped, State: &now})
	} else {
		c := p.config(true)
		c.Waited = p.env.Now().Sub(born)
		p.core = NewReplica(c, now)
		p.step(Event{Kind: Barrier})
	}
	for i := p.applied; i < p.w.disks[p.env.ID()].appended; i++ {
		p.step(Event{Kind: Appended, Entry: &p.w.log[i]})
	}
}

// doubt takes some client for dead now and then, be it or not.
func (p *simReplica) doubt() {
	p.env.After(p.draw(4*time.Second), func() {
		if p.w.sim.Now() < p.w.cfg.faults.Heal {
			p.step(Event{Kind: Gone, From: simNode(sim.NodeID(p.w.cfg.pool + p.env.Rand().IntN(p.w.cfg.clients)))})
			p.doubt()
		}
	})
}

type simReplica struct {
	w       *world
	env     *sim.Env
	core    *Replica // nil: it has a table to begin with, and is before the barrier
	applied int
	barrier int
	passing func() // at the barrier
	cancel  func()
	out     []Action
}

func (p *simReplica) draw(d time.Duration) time.Duration {
	return 1 + time.Duration(p.env.Rand().Int64N(int64(d)))
}

// fetch brings the log's end to this replica's own log after a while.
func (p *simReplica) fetch() {
	p.env.After(p.draw(30*time.Millisecond), func() {
		d := &p.w.disks[p.env.ID()]
		from := d.appended
		d.appended = max(d.appended, len(p.w.log))
		for i := max(from, p.applied); i < d.appended; i++ {
			p.step(Event{Kind: Appended, Entry: &p.w.log[i]})
		}
		p.w.advance()
		p.catchUp()
	})
}

// catchUp applies what is committed after a while, long for a replica that lags.
func (p *simReplica) catchUp() {
	lag := 20 * time.Millisecond
	if p.env.Rand().IntN(4) == 0 {
		lag = p.w.cfg.lag
	}
	to := p.w.commit
	p.env.After(p.draw(lag), func() {
		for ; p.applied < to && p.env.Alive(); p.applied++ {
			d := &p.w.disks[p.env.ID()]
			d.appended = max(d.appended, p.applied+1)
			p.step(Event{Kind: Applied, State: &p.w.states[p.applied+1]})
		}
		p.passed()
	})
}

func (p *simReplica) passed() {
	if f := p.passing; f != nil && p.applied >= p.barrier && p.env.Alive() {
		p.passing = nil
		f()
	}
}

func (p *simReplica) Receive(from sim.NodeID, msg any) {
	m := msg.(Message)
	p.step(Event{Kind: Receive, From: simNode(from), Msg: &m})
}

func (p *simReplica) Killed() { p.w.reps[p.env.ID()] = nil }

func (p *simReplica) step(ev Event) {
	if p.core == nil {
		return
	}
	ev.Now = p.env.Now()
	p.out = p.core.Step(ev, p.out[:0])
	p.w.disks[p.env.ID()].record(p.core, p.out)
	if err := p.core.Check(); err != nil {
		p.w.sim.Fail(err)
	}
	for i := range p.out {
		switch a := &p.out[i]; a.Kind {
		case Send:
			p.sent(&a.Msg)
			p.env.Send(nodeOf(a.To), a.Msg)
		case Arm:
			if p.cancel != nil {
				p.cancel()
			}
			p.cancel = p.env.After(max(0, a.At.Sub(p.env.Now())), func() { p.step(Event{Kind: Timer}) })
		case Propose:
			e := a.Entry
			p.env.After(p.draw(50*time.Millisecond), func() { p.w.append(e) })
		case Settled:
			p.w.report.Settled++
		}
	}
}

// sent checks what a replica says.
func (p *simReplica) sent(m *Message) {
	if m.Kind != Grant && m.Kind != Inquire {
		return
	}
	k := gidKey{p.core.cfg.Self, m.GID}
	what := fmt.Sprintf("%s of %v", m.Name, m.Req)
	if was, ok := p.w.gids[k]; ok && was != what {
		p.w.fail("I1: gid %v of replica %d is a grant of %s and of %s", m.GID, p.env.ID(), was, what)
	}
	p.w.gids[k] = what
}

func (w *world) fail(format string, args ...any) { w.sim.Fail(fmt.Errorf(format, args...)) }

// simClient is one client process: one wish after the other.
type simClient struct {
	w       *world
	env     *sim.Env
	session Session
	seq     uint64
	clock   uint64
	view    Descriptor
	cur     *Client // not done
	name    string
	old     map[Req]*Client
	order   []Req
	cancel  func()
	asks    int
}

func (c *simClient) String() string {
	if c.cur == nil {
		return "idle"
	}
	return fmt.Sprintf("{%v %s of %v in %v}", c.cur.state, c.name, c.cur.cfg.Req, c.cur.view.View)
}

func (c *simClient) Killed() {}

func (c *simClient) wishNext() {
	if c.w.closing || c.cur != nil {
		return
	}
	r := c.env.Rand()
	c.seq++
	c.name = fmt.Sprintf("lock%d", r.IntN(c.w.cfg.names))
	c.cur = NewClient(ClientConfig{
		Name: c.name, Req: Req{c.session, c.seq}, TTL: c.w.cfg.ttls[r.IntN(len(c.w.cfg.ttls))], Drift: c.w.cfg.drift, View: c.view,
		Clock: c.clock, Repeat: true, Y1: c.w.cfg.y1, Delay: c.w.cfg.delay, Try: r.IntN(20) == 0, Patient: c.seq%2 == 0, mutant: c.w.cfg.mutant,
	})
	c.old[c.cur.cfg.Req] = c.cur
	c.order = append(c.order, c.cur.cfg.Req)
	if len(c.order) > 8 {
		delete(c.old, c.order[0])
		c.order = c.order[1:]
	}
	c.asks = 0
	cur := c.cur
	c.step(cur, Event{Kind: Begin})
	if r.IntN(5) == 0 { // gives up
		c.env.After(time.Duration(r.ExpFloat64()*float64(time.Second)), func() { c.step(cur, Event{Kind: GiveBack}) })
	}
}

func (c *simClient) Receive(from sim.NodeID, msg any) {
	m := msg.(Message)
	if cl := c.old[m.Req]; cl != nil {
		c.step(cl, Event{Kind: Receive, From: simNode(from), Msg: &m})
	}
}

func (c *simClient) step(cl *Client, ev Event) {
	ev.Now = c.env.Now()
	out := cl.Step(ev, nil)
	c.clock = max(c.clock, cl.clock)
	for i := range out {
		switch a := &out[i]; a.Kind {
		case Send:
			if a.Msg.Kind == Request && a.Msg.Tok > 0 && c.env.Now() >= cl.deadline {
				c.w.fail("I10: client %d renews %v at %v, deadline %v", c.env.ID(), cl.cfg.Req, c.env.Now(), cl.deadline)
			}
			if a.Msg.Kind == Request {
				c.asks++
			}
			c.env.Send(nodeOf(a.To), a.Msg)
		case Arm:
			if cl != c.cur { // what is over needs no timers
				continue
			}
			if c.cancel != nil {
				c.cancel()
				c.cancel = nil
			}
			if a.At != automaton.Never {
				c.cancel = c.env.After(max(0, a.At.Sub(c.env.Now())), func() { c.step(cl, Event{Kind: Timer}) })
			}
		case Acquired:
			c.acquired(cl, a)
			c.env.After(time.Duration(c.env.Rand().ExpFloat64()*float64(c.w.cfg.hold)), func() { c.step(cl, Event{Kind: GiveBack}) })
		case Renewed:
			c.held(cl)
		case Lost:
			c.w.report.Lost++
		case Lookup:
			if p := c.w.reps[c.env.Rand().IntN(len(c.w.reps))]; p != nil && p.core != nil {
				s := p.core.State()
				c.env.After(20*time.Millisecond, func() { c.step(cl, Event{Kind: Located, State: &s}) })
			}
		case Done:
			if cl == c.cur {
				c.cur = nil
				if c.cancel != nil {
					c.cancel()
					c.cancel = nil
				}
				c.view = cl.view
				c.env.After(time.Duration(c.env.Rand().ExpFloat64()*float64(c.w.cfg.think))+time.Microsecond, c.wishNext)
			}
		}
	}
}

// acquired checks a new hold.
func (c *simClient) acquired(cl *Client, a *Action) {
	w := c.w
	w.report.Acquired++
	if c.asks == len(cl.seats) {
		w.report.OneRound++
	}
	carry := 0
	for i := range cl.seats { // I3, I4
		if s := &cl.seats[i]; s.live && !s.yielded && s.prop == a.Tok && s.echo.Add(cl.lease()) > cl.now {
			carry++
		}
	}
	if carry < cl.majority() {
		w.fail("I3: client %d enters %s with %d of %d grants of %d", c.env.ID(), c.name, carry, len(cl.seats), a.Tok)
	}
	if w.tokens[c.name] == nil {
		w.tokens[c.name] = make(map[Token]bool)
	}
	if w.tokens[c.name][a.Tok] { // whatever the clocks do
		w.fail("I6 duplicate: %s has token %d twice", c.name, a.Tok)
	}
	w.tokens[c.name][a.Tok] = true
	if w.cfg.bounded() && a.Tok <= w.last[c.name] {
		w.fail("I6 order: %s has token %d after %d", c.name, a.Tok, w.last[c.name])
	}
	w.last[c.name] = max(w.last[c.name], a.Tok)
	if s := w.ranges[cl.view.View]; a.Tok <= s.Base || a.Tok > s.Ceil {
		w.fail("9.2: token %d in view %v, whose range is %d to %d", a.Tok, cl.view.View, s.Base, s.Ceil)
	}
	c.held(cl)
}

// held checks a hold that begins or is prolonged: I5 and I7. Time alone only ends holds.
func (c *simClient) held(cl *Client) {
	w := c.w
	if !w.cfg.bounded() {
		return
	}
	for _, o := range w.clients {
		if o == nil || o.cur == nil || o.cur == cl || o.name != c.name || !o.env.Alive() {
			continue
		}
		if x := o.cur; (x.state == ClientHeld || x.state == ClientLost) && o.env.Now() < x.deadline {
			w.fail("I5: clients %d (token %d, view %v) and %d (token %d, view %v) both hold %s", o.env.ID(), x.tok, x.view.View,
				c.env.ID(), cl.tok, cl.view.View, c.name)
		}
	}
	for i := range cl.seats {
		s := &cl.seats[i]
		p := w.reps[nodeOf(s.node)]
		if p == nil || p.core == nil || p.core.log.View != cl.view.View || !s.live || s.yielded || s.prop != cl.tok {
			continue
		}
		l := p.core.locks[c.name]
		if l == nil || !l.owned || l.gid != s.gid {
			continue
		}
		mine := truly(s.echo.Add(cl.lease()).Sub(c.env.Now()), w.rates[c.env.ID()])
		theirs := truly(l.exp.Sub(p.env.Now()), w.rates[p.env.ID()])
		if mine > theirs+time.Microsecond && mine > 0 {
			w.fail("I7: client %d counts on replica %d for %v more, it ends the lease in %v", c.env.ID(), p.env.ID(), mine, theirs)
		}
	}
}

// truly converts a length of a node's own time.
func truly(d time.Duration, rate int64) time.Duration {
	return time.Duration(float64(d) * 1e6 / float64(1_000_000+rate))
}

func TestLocksKeepTheirPromises(t *testing.T) {
	t.Parallel()
	n := *seedsFlag
	if testing.Short() {
		n /= 10
	}
	var sum worldReport
	for seed := uint64(1); seed <= n; seed++ {
		rep, err := runWorld(draw(seed, mutantNone))
		if err != nil {
			t.Fatal(err)
		}
		sum.add(rep)
	}
	t.Logf("%d worlds: %+v", n, sum)
	if n >= 50 && (sum.Acquired < int(20*n) || sum.Lost < int(n/10) || sum.Views < int(n) || sum.Settled < int(n) || sum.Raises == 0 || sum.TakenUp < int(n/4)) {
		t.Errorf("%d worlds saw only %+v", n, sum)
	}
}

func (r *worldReport) add(s worldReport) {
	r.Events += s.Events
	r.Acquired += s.Acquired
	r.Lost += s.Lost
	r.Views += s.Views
	r.Settled += s.Settled
	r.OneRound += s.OneRound
	r.Raises += s.Raises
	r.TakenUp += s.TakenUp
}

func TestReplay(t *testing.T) {
	if *seedFlag == 0 {
		t.Skip("replays the world of -seed")
	}
	for m := mutantNone; m < mutants; m++ {
		if m.String() == *mutantFlag {
			rep, err := runWorld(draw(*seedFlag, m))
			t.Logf("%+v", rep)
			if err != nil {
				t.Error(err)
			}
		}
	}
}
