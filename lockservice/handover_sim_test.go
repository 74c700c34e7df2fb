package lockservice

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/internal/invariant"
	"latchkey/internal/sim"
	"latchkey/lockservice/sigma"
	sigmapb "latchkey/lockservice/sigma/pb"
	"latchkey/lockservice/table"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/quorum"
	"latchkey/replicagroup/session"
)

// The world of this file is one group whose voters lock by protocol sigma, with its log and clients of both protocols for the same names
// (lock-protocols.md section 10.1). The log is an abstract sequencer, as in the simulation of package sigma: entries are committed once
// a majority of the voters they apply to has them; hosts apply them when they like.

// handFault is a planted mistake.
type handFault struct {
	table table.Mutant
	sigma sigma.Mutant
}

type handConfig struct {
	seed    uint64
	fault   handFault
	pool    int
	clients int
	names   int
	ttl     time.Duration
	hold    time.Duration
	think   time.Duration
	change  time.Duration
	lag     time.Duration
	group   float64 // share of wishes by protocol group
	sizes   []int
	faults  sim.Faults
}

// drawHand draws a world; a harsh one for mutants.
func drawHand(seed uint64, f handFault, harsh bool) handConfig {
	r := rand.New(rand.NewPCG(seed, 0x4a17))
	pick := func(d ...time.Duration) time.Duration { return d[r.IntN(len(d))] }
	c := handConfig{
		seed: seed, fault: f, pool: 3 + r.IntN(3), clients: 3 + r.IntN(3), names: 1 + r.IntN(2), ttl: pick(time.Second, 2*time.Second),
		hold: pick(30*time.Millisecond, 400*time.Millisecond, 1500*time.Millisecond), think: pick(5*time.Millisecond, 300*time.Millisecond),
		change: pick(0, 700*time.Millisecond, 2*time.Second), lag: pick(20*time.Millisecond, 500*time.Millisecond, 4*time.Second),
		group: []float64{0.05, 0.3}[r.IntN(2)], sizes: [][]int{{3}, {1, 3}, {3, 5}}[r.IntN(3)],
	}
	c.faults = sim.Draw(seed, sim.Scale{Delay: 60 * time.Millisecond, Timeout: 700 * time.Millisecond, Heal: 14 * time.Second, Drift: automaton.DriftDefault})
	if harsh { // one name, leases that run out
		c.names, c.clients, c.ttl, c.hold = 1, 2+r.IntN(3), time.Second, pick(400*time.Millisecond, 1200*time.Millisecond)
		c.think, c.group, c.change = pick(300*time.Millisecond, 900*time.Millisecond), 0.4, pick(400*time.Millisecond, 1200*time.Millisecond)
		c.faults.Reorder, c.faults.ReorderBy = 0.3, 1200*time.Millisecond
		c.faults.Loss = []float64{0, 0.05, 0.2}[r.IntN(3)]
		c.sizes = [][]int{{3}, {1, 3}}[r.IntN(2)]
		if c.faults.CrashEvery = 0; r.IntN(2) == 0 {
			c.faults.CrashEvery, c.faults.CrashFor = 700*time.Millisecond, 100*time.Millisecond
		}
	}
	return c
}

type handEntry struct {
	kind   string // view, own, cmd, end, tick
	view   order.View
	from   sigma.ViewID // view: the one that it ends
	author keyspace.NodeID
	client order.ClientID
	data   []byte
	now    time.Duration // log time
	null   bool
	done   func([]byte)
}

type handWorld struct {
	cfg     handConfig
	sim     *sim.World
	rand    *rand.Rand
	rates   []int64
	disks   []handDisk
	hosts   []*handHost
	clients []*handClient

	first   order.View
	log     []handEntry
	commit  int
	truth   *Machine     // what is committed; it answers clients
	voters  []sim.NodeID // as of the end of the log
	viewNum uint64       // as of the end of the log
	closing bool

	tokens map[string]map[sigma.Token]string
	last   map[string]sigma.Token
	report handReport
}

type handDisk struct {
	appended int
	inc      uint64
}

type handReport struct{ Acquired, BySigma, Claims, Lost, Handovers, Back, Views int }

func (r *handReport) add(s handReport) {
	r.Acquired, r.BySigma, r.Claims, r.Lost = r.Acquired+s.Acquired, r.BySigma+s.BySigma, r.Claims+s.Claims, r.Lost+s.Lost
	r.Handovers, r.Back, r.Views = r.Handovers+s.Handovers, r.Back+s.Back, r.Views+s.Views
}

func handNode(i sim.NodeID) keyspace.NodeID { return keyspace.NodeID{byte(i + 1)} }

func (w *handWorld) machine() *Machine {
	m := NewMachine(MachineConfig{TTLMax: 4 * time.Second, Drift: automaton.DriftDefault, Sigma: w.cfg.ttl})
	table.Sabotage(m.table, w.cfg.fault.table)
	m.FirstView(w.first)
	return m
}

func runHand(c handConfig) (rep handReport, err error) {
	w := &handWorld{
		cfg: c, rand: rand.New(rand.NewPCG(c.seed, 0x5eed)), disks: make([]handDisk, c.pool), hosts: make([]*handHost, c.pool),
		clients: make([]*handClient, c.clients), tokens: make(map[string]map[sigma.Token]string), last: make(map[string]sigma.Token),
		rates: make([]int64, c.pool+c.clients),
	}
	w.draw()
	w.first, w.viewNum = w.view(), 1
	w.truth = w.machine()
	w.sim = sim.New(sim.Config{Seed: c.seed, Nodes: c.pool + c.clients, Faults: c.faults, CrashLimit: c.pool/2 + c.clients/2}, w.boot)
	for i := range w.rates {
		if b := int64(c.faults.Drift); b > 0 {
			w.rates[i] = []int64{-b, b, w.rand.Int64N(2*b+1) - b}[w.rand.IntN(3)]
		}
		w.sim.SetRate(sim.NodeID(i), w.rates[i])
	}
	w.recur()
	w.tick()
	defer func() {
		rep = w.report
		if p := recover(); p != nil {
			err = fmt.Errorf("invariant: %v", p)
		}
		if err != nil {
			err = fmt.Errorf("%w\n%+v", err, c)
		}
	}()
	if err := w.sim.Run(c.faults.Heal + 2*time.Second); err != nil {
		return w.report, err
	}
	w.closing = true
	limit := c.faults.Heal + 90*time.Second
	idle := func() bool {
		return !slices.ContainsFunc(w.clients, func(c *handClient) bool { return c == nil || c.cur != nil })
	}
	if err := w.sim.RunUntil(limit, idle); err != nil {
		return w.report, err
	}
	if !idle() {
		return w.report, fmt.Errorf("I8: not everybody was served by %v: %v", limit, w.clients)
	}
	return w.report, nil
}

// draw chooses the voters of the next view.
func (w *handWorld) draw() {
	n := w.cfg.sizes[w.rand.IntN(len(w.cfg.sizes))]
	for n > w.cfg.pool {
		n -= 2
	}
	w.voters = nil
	for _, i := range w.rand.Perm(w.cfg.pool)[:n] {
		w.voters = append(w.voters, sim.NodeID(i))
	}
	slices.Sort(w.voters)
}

func (w *handWorld) view() (v order.View) {
	for _, i := range w.voters {
		v.Members = append(v.Members, order.Member{ID: order.ReplicaID(i + 1), Peer: handNode(i), Role: order.Voter})
	}
	return v
}

func (w *handWorld) recur() {
	if w.cfg.change == 0 {
		return
	}
	w.sim.At(w.sim.Now()+time.Duration(w.rand.ExpFloat64()*float64(w.cfg.change))+time.Millisecond, func() {
		if w.sim.Now() > w.cfg.faults.Heal {
			return
		}
		if w.commit == len(w.log) {
			e := handEntry{kind: "view", from: sigma.ViewID{Num: w.viewNum}}
			was := slices.Clone(w.voters)
			if w.draw(); w.rand.IntN(3) == 0 || slices.Equal(was, w.voters) {
				w.voters, e.null = was, true
			}
			e.view = w.view()
			w.viewNum++
			w.append(e)
		}
		w.recur()
	})
}

// tick has an entry when log time brings something.
func (w *handWorld) tick() {
	w.sim.At(w.sim.Now()+50*time.Millisecond, func() {
		if d, ok := w.truth.Deadline(); ok && d <= w.sim.Now() {
			w.append(handEntry{kind: "tick"})
		}
		w.tick()
	})
}

func (w *handWorld) append(e handEntry) {
	e.now = w.sim.Now() // by the leader's clock, which keeps time
	w.log = append(w.log, e)
	for _, h := range w.hosts {
		if h != nil {
			h.fetch()
		}
	}
}

// advance commits what a majority of the voters has.
func (w *handWorld) advance() {
	was := w.commit
	for w.commit < len(w.log) {
		members := w.truth.Sigma().Members
		n := 0
		for i := range w.disks {
			if slices.Contains(members, handNode(sim.NodeID(i))) && w.disks[i].appended > w.commit {
				n++
			}
		}
		if n < quorum.Majority(len(members)) {
			break
		}
		e := &w.log[w.commit]
		w.commit++
		before := w.truth.table.Len()
		if e.kind == "view" {
			w.report.Views++
		}
		res := e.execute(w.truth, w.emit)
		if now := w.truth.table.Len(); now > before {
			w.report.Handovers++
		} else if now < before {
			w.report.Back += before - now
		}
		if e.done != nil {
			e.done(res)
		}
	}
	if w.commit > was {
		for _, h := range w.hosts {
			if h != nil {
				h.catchUp()
			}
		}
	}
}

// execute gives an entry to a machine, and returns what it answers.
func (e *handEntry) execute(m *Machine, emit func(order.ClientID, []byte)) []byte {
	c := session.Context{Now: e.now, Client: e.client, Author: e.author, Emit: emit}
	switch e.kind {
	case "view":
		if e.null {
			m.ApplyOwn(c, mustEntry(&sigma.Entry{Kind: sigma.EntryView, From: m.Sigma().View}))
		} else {
			m.NextView(c, e.view)
		}
	case "own":
		m.ApplyOwn(c, e.data)
	case "end":
		m.SessionEnded(c, e.client)
		m.Tick(c)
	case "tick":
		m.Tick(c)
	case "cmd":
		return m.Apply(c, e.data)
	}
	return nil
}

func mustEntry(e *sigma.Entry) []byte {
	b, err := sigmapb.EncodeEntry(e)
	invariant.Check(err == nil, "an entry has bytes", err)
	return b
}

// emit pushes a grant to its client, unless it is lost.
func (w *handWorld) emit(id order.ClientID, data []byte) {
	for _, c := range w.clients {
		if c == nil || c.id != id || w.rand.IntN(5) == 0 {
			continue
		}
		g, err := decodeGranted(data)
		if err != nil {
			w.sim.Fail(err)
			return
		}
		c.env.After(time.Duration(w.rand.Int64N(int64(40*time.Millisecond))), func() { c.pushed(g.Req) })
	}
}

func (w *handWorld) boot(e *sim.Env) sim.Process {
	if int(e.ID()) >= w.cfg.pool {
		return w.bootClient(e)
	}
	d := &w.disks[e.ID()]
	d.inc++
	h := &handHost{w: w, env: e, machine: w.machine(), restarted: d.inc > 1}
	w.hosts[e.ID()] = h
	h.follow()
	h.fetch()
	if h.restarted {
		e.After(h.draw(100*time.Millisecond), func() { // the barrier's read
			h.barrier, h.reading = w.commit, true
			h.catchUp()
			h.passed()
		})
	}
	return h
}

type handHost struct {
	w         *handWorld
	env       *sim.Env
	machine   *Machine
	core      *sigma.Replica
	applied   int
	barrier   int
	reading   bool
	restarted bool
	cancel    func()
}

func (h *handHost) draw(d time.Duration) time.Duration {
	return 1 + time.Duration(h.env.Rand().Int64N(int64(d)))
}

func (h *handHost) fetch() {
	h.env.After(h.draw(30*time.Millisecond), func() {
		d := &h.w.disks[h.env.ID()]
		from := d.appended
		d.appended = max(d.appended, len(h.w.log))
		for i := max(from, h.applied); i < d.appended; i++ {
			if e := &h.w.log[i]; e.kind == "view" {
				h.step(sigma.Event{Kind: sigma.Appended, Entry: &sigma.Entry{Kind: sigma.EntryView, From: e.from}})
			}
		}
		h.w.advance()
		h.catchUp()
	})
}

func (h *handHost) catchUp() {
	lag := 20 * time.Millisecond
	if h.env.Rand().IntN(4) == 0 {
		lag = h.w.cfg.lag
	}
	to := h.w.commit
	h.env.After(h.draw(lag), func() {
		for ; h.applied < to && h.env.Alive(); h.applied++ {
			d := &h.w.disks[h.env.ID()]
			d.appended = max(d.appended, h.applied+1)
			h.w.log[h.applied].execute(h.machine, func(order.ClientID, []byte) {})
			h.follow()
		}
		h.passed()
	})
}

func (h *handHost) follow() {
	ev, ok := h.machine.Follow()
	if !ok {
		return
	}
	if h.core == nil {
		h.core = sigma.NewReplica(sigma.ReplicaConfig{
			Self: handNode(h.env.ID()), Inc: h.w.disks[h.env.ID()].inc, Drift: automaton.DriftDefault, TTLMin: time.Millisecond,
			TTLMax: 4 * time.Second, Restarted: h.restarted,
		}, *ev.State)
		h.core.Sabotage(h.w.cfg.fault.sigma)
	}
	h.step(ev)
}

func (h *handHost) passed() {
	if h.reading && h.applied >= h.barrier && h.env.Alive() {
		h.reading = false
		h.step(sigma.Event{Kind: sigma.Barrier})
	}
}

func (h *handHost) Receive(from sim.NodeID, msg any) {
	m := msg.(sigma.Message)
	h.step(sigma.Event{Kind: sigma.Receive, From: handNode(from), Msg: &m})
}

func (h *handHost) Killed() { h.w.hosts[h.env.ID()] = nil }

func (h *handHost) step(ev sigma.Event) {
	if h.core == nil {
		return
	}
	ev.Now = h.env.Now()
	for _, a := range h.core.Step(ev, nil) {
		switch a.Kind {
		case sigma.Send:
			h.env.Send(sim.NodeID(a.To[0])-1, a.Msg)
		case sigma.Arm:
			if h.cancel != nil {
				h.cancel()
			}
			h.cancel = h.env.After(max(0, a.At.Sub(h.env.Now())), func() { h.step(sigma.Event{Kind: sigma.Timer}) })
		case sigma.Propose:
			b := mustEntry(&a.Entry)
			if h.env.Rand().IntN(10) > 0 {
				h.env.After(h.draw(50*time.Millisecond), func() {
					h.w.append(handEntry{kind: "own", author: handNode(h.env.ID()), data: b})
				})
			}
		}
	}
}

// handClient is one client process: one wish after the other, by either protocol.
type handClient struct {
	w       *handWorld
	env     *sim.Env
	id      order.ClientID
	session sigma.Session
	seq     uint64
	req     uint64 // of the table
	clock   uint64
	view    sigma.Descriptor
	at      map[string]sigma.ViewID // the view in which a voter sent it to the log
	cur     *handWish
	old     map[sigma.Req]*handWish
}

// handWish is a wish. One of protocol group goes to the log at once, and has no name at the voters.
type handWish struct {
	core   *sigma.Client
	name   string
	shared bool
	group  bool
	req    sigma.Req
	reqs   map[uint64]uint64 // of the table, by attempt
	cancel func()
	ended  bool
}

func (w *handWorld) bootClient(e *sim.Env) sim.Process {
	i := int(e.ID()) - w.cfg.pool
	if old := w.clients[i]; old != nil { // its session ends when nobody has heard of it for a while
		id := old.id
		w.sim.At(w.sim.Now()+time.Second, func() { w.append(handEntry{kind: "end", client: id}) })
	}
	c := &handClient{w: w, env: e, old: make(map[sigma.Req]*handWish), at: make(map[string]sigma.ViewID), view: w.truth.Sigma().Descriptor}
	binary.LittleEndian.PutUint64(c.session[:], e.Rand().Uint64())
	binary.LittleEndian.PutUint64(c.session[8:], e.Life()<<8|uint64(e.ID()))
	copy(c.id[:], c.session[:])
	w.clients[i] = c
	e.After(time.Millisecond, c.wishNext)
	return c
}

func (c *handClient) Killed() {}

func (c *handClient) String() string {
	if c.cur == nil {
		return "idle"
	}
	return fmt.Sprintf("{%v %s %v group %v in %v}", c.cur.core.State(), c.cur.name, c.cur.req, c.cur.group, c.cur.core.View().View)
}

func (c *handClient) wishNext() {
	if c.w.closing || c.cur != nil {
		return
	}
	r := c.env.Rand()
	c.seq++
	x := &handWish{name: fmt.Sprintf("lock%d", r.IntN(c.w.cfg.names)), req: sigma.Req{Session: c.session, Seq: c.seq}, reqs: make(map[uint64]uint64)}
	if c.w.sim.Now() < c.w.cfg.faults.Heal {
		x.group = r.Float64() < c.w.cfg.group
		x.shared = x.group && r.IntN(3) == 0
	}
	cfg := sigma.ClientConfig{
		Name: x.name, Req: x.req, TTL: c.w.cfg.ttl, Drift: automaton.DriftDefault, View: c.view, Clock: c.clock, Repeat: true,
		Try: r.IntN(20) == 0, Logged: x.group || c.at[x.name] == c.view.View,
	}
	x.core = sigma.NewClient(cfg)
	x.core.Sabotage(c.w.cfg.fault.sigma)
	c.cur, c.old[x.req] = x, x
	delete(c.old, sigma.Req{Session: c.session, Seq: c.seq - 8})
	c.step(x, sigma.Event{Kind: sigma.Begin})
	if r.IntN(5) == 0 {
		c.env.After(time.Duration(r.ExpFloat64()*float64(time.Second)), func() { c.step(x, sigma.Event{Kind: sigma.GiveBack}) })
	}
}

func (c *handClient) Receive(from sim.NodeID, msg any) {
	m := msg.(sigma.Message)
	if x := c.old[m.Req]; x != nil {
		was := x.core.Logged()
		c.step(x, sigma.Event{Kind: sigma.Receive, From: handNode(from), Msg: &m})
		if x.core.Logged() && !was {
			c.at[x.name] = x.core.View().View
		}
	}
}

func (c *handClient) pushed(req uint64) {
	if x := c.cur; x != nil {
		for attempt, r := range x.reqs {
			if r == req {
				c.step(x, sigma.Event{Kind: sigma.Pushed, Answer: sigma.Answer{Attempt: attempt}})
			}
		}
	}
}

func (c *handClient) step(x *handWish, ev sigma.Event) {
	ev.Now = c.env.Now()
	was := x.core.State()
	out := x.core.Step(ev, nil)
	c.clock = max(c.clock, x.core.Clock())
	for i := range out {
		switch a := &out[i]; a.Kind {
		case sigma.Send:
			c.env.Send(sim.NodeID(a.To[0])-1, a.Msg)
		case sigma.Arm:
			if x.cancel != nil {
				x.cancel()
				x.cancel = nil
			}
			if a.At != automaton.Never && !x.ended {
				x.cancel = c.env.After(max(0, a.At.Sub(c.env.Now())), func() { c.step(x, sigma.Event{Kind: sigma.Timer}) })
			}
		case sigma.Acquired:
			c.acquired(x, a.Tok)
			c.env.After(time.Duration(c.env.Rand().ExpFloat64()*float64(c.w.cfg.hold)), func() { c.step(x, sigma.Event{Kind: sigma.GiveBack}) })
		case sigma.Renewed:
			c.held(x)
		case sigma.Lost:
			c.w.report.Lost++
		case sigma.Lookup:
			d := c.w.truth.Sigma().Descriptor
			c.env.After(20*time.Millisecond, func() {
				c.step(x, sigma.Event{Kind: sigma.Located, State: &sigma.LogState{Descriptor: d}})
			})
		case sigma.Order:
			if a.Order.Kind == sigma.CommandAcquire && was == sigma.ClientHeld {
				c.w.report.Claims++
			}
			c.order(x, a.Order)
		case sigma.Done:
			x.ended = true
			if x == c.cur {
				c.cur = nil
				c.view = x.core.View()
				c.env.After(time.Duration(c.env.Rand().ExpFloat64()*float64(c.w.cfg.think))+time.Microsecond, c.wishNext)
			}
		}
	}
}

// order carries a command to the log: it arrives in a while, and its answer after another one, or not at all.
func (c *handClient) order(x *handWish, o sigma.Command) {
	if x.reqs[o.Attempt] == 0 {
		c.req++
		x.reqs[o.Attempt] = c.req
	}
	req, tok := x.reqs[o.Attempt], table.Token(o.Tok)
	var wish sigma.Req
	if !x.group {
		wish = x.req
	}
	data := encodeOrder(o.Kind, table.Acquire{Name: x.name, Req: req, TTL: c.w.cfg.ttl, Shared: x.shared, Held: tok, Wish: wish})
	r := c.env.Rand()
	answer := func(a sigma.Answer) {
		a.ID = o.ID
		c.env.After(time.Duration(r.Int64N(int64(60*time.Millisecond))), func() { c.step(x, sigma.Event{Kind: sigma.Ordered, Answer: a}) })
	}
	answered := false
	c.env.After(500*time.Millisecond, func() {
		if !answered {
			answered = true
			answer(sigma.Answer{Kind: sigma.AnswerNone})
		}
	})
	c.env.After(time.Duration(r.Int64N(int64(60*time.Millisecond))), func() {
		c.w.append(handEntry{kind: "cmd", client: c.id, author: handNode(c.env.ID()), data: data, done: func(b []byte) {
			if answered || r.IntN(20) == 0 {
				return
			}
			answered = true
			answer(handAnswer(b, c.w.truth.Sigma().Descriptor))
		}})
	})
}

// handAnswer says what a result of the table means to an automaton, where its group's view is d.
func handAnswer(b []byte, d sigma.Descriptor) sigma.Answer {
	res, err := decodeResult(b)
	invariant.Check(err == nil, "a result can be read", err)
	a := answerTo(res)
	if a.Kind == sigma.AnswerElsewhere {
		a.View = d
	}
	return a
}

func (c *handClient) acquired(x *handWish, tok sigma.Token) {
	w := c.w
	if w.report.Acquired++; !x.group {
		w.report.BySigma++
	}
	if w.tokens[x.name] == nil {
		w.tokens[x.name] = make(map[sigma.Token]string)
	}
	kind := fmt.Sprint("shared ", x.shared)
	if was, dup := w.tokens[x.name][tok]; dup && !(x.shared && was == kind) {
		w.sim.Fail(fmt.Errorf("I6 duplicate: %s has token %d twice", x.name, tok))
	}
	w.tokens[x.name][tok] = kind
	if tok < w.last[x.name] || tok == w.last[x.name] && !x.shared {
		w.sim.Fail(fmt.Errorf("I6 order: %s has token %d after %d", x.name, tok, w.last[x.name]))
	}
	w.last[x.name] = max(w.last[x.name], tok)
	c.held(x)
}

// held checks a hold that begins or is prolonged: nobody else has the name, by whatever protocol.
func (c *handClient) held(x *handWish) {
	for _, o := range c.w.clients {
		if o == nil || o.cur == nil || o.cur == x || o.cur.name != x.name || !o.env.Alive() || o.cur.shared && x.shared {
			continue
		}
		if y := o.cur.core; (y.State() == sigma.ClientHeld || y.State() == sigma.ClientLost) && o.env.Now() < y.Deadline() {
			c.w.sim.Fail(fmt.Errorf("I5: clients %d (token %d, group %v) and %d (token %d, group %v) both hold %s", o.env.ID(), y.Token(), o.cur.group,
				c.env.ID(), x.core.Token(), x.group, x.name))
		}
	}
}

// TestNamesHaveOneModeInSimulation draws one world for each 25 of -seeds.
func TestNamesHaveOneModeInSimulation(t *testing.T) {
	t.Parallel()
	n := uint64(max(1, *ownSeeds/25))
	if testing.Short() {
		n /= 10
	}
	var sum handReport
	for seed := uint64(1); seed <= n; seed++ {
		rep, err := runHand(drawHand(seed, handFault{}, seed%3 == 0))
		if err != nil {
			t.Fatal(err)
		}
		sum.add(rep)
	}
	t.Logf("%d worlds: %+v", n, sum)
	if n >= 50 && (sum.Acquired < int(20*n) || sum.BySigma == sum.Acquired || sum.Claims < int(n/4) || sum.Handovers < int(n) || sum.Back < int(n/5)) {
		t.Errorf("%d worlds saw only %+v", n, sum)
	}
}

// TestTheSimulationOfModesCatchesMutants plants each mistake of lock-protocols.md section 10.1 and waits for the check that is there
// for it. Those that random search does not reach in little time have schedules of their own in package table.
func TestTheSimulationOfModesCatchesMutants(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	const worlds = 400
	for name, k := range map[string]struct {
		fault handFault
		check string
		from  uint64 // where little is found, the world before the first
	}{
		"no seal":                {handFault{sigma: sigma.MutantNoModeSeal}, "I5:", 0},
		"reports of one":         {handFault{table: table.MutantOneModeReport}, "I5:", 0},
		"owner ignored":          {handFault{table: table.MutantNoCandidates}, "I5:", 0},
		"grants kept":            {handFault{sigma: sigma.MutantGrantsKept}, "I5:", 700},
		"empty report":           {handFault{sigma: sigma.MutantEmptyModeReport}, "I5:", 0},
		"mode reset by a view":   {handFault{table: table.MutantModeReset}, "I5:", 0},
		"sealed table left out":  {handFault{sigma: sigma.MutantSealedLeftOut}, "I5:", 0},
		"new view ignores modes": {handFault{sigma: sigma.MutantModesForgotten}, "I5:", 0},
		"back inside the view":   {handFault{table: table.MutantBackAtOnce}, "I6 ", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for seed := k.from + 1; seed <= k.from+worlds; seed++ {
				if _, err := runHand(drawHand(seed, k.fault, true)); err != nil && strings.Contains(err.Error(), k.check) {
					t.Logf("seed %d: %.120v", seed, err)
					return
				}
			}
			t.Errorf("not caught in %d worlds", worlds)
		})
	}
}
