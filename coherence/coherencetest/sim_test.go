package coherencetest

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"latchkey/coherence/appmanager"
	"latchkey/coherence/cachedcopy"
	"latchkey/coherence/manager"
	"latchkey/coherence/protocol"
	"latchkey/internal/sim"
	"latchkey/replicagroup/order"
)

var (
	seedsFlag = flag.Uint64("seeds", 500, "how many worlds the simulation draws")
	seedFlag  = flag.Uint64("seed", 0, "the world that TestReplay runs")
	raftFlag  = flag.Bool("raft", false, "with real replica groups")
)

// simulated is an application on hosts that crash, whose managers are replicated on the same hosts. The groups' logs are abstract: what a member
// proposes is ordered at once, as long as a majority of the view has the group's state, and every replica applies it when it likes.
type simulated struct {
	cfg    simConfig
	sim    *sim.World
	rand   *rand.Rand
	hosts  []*host
	groups []*simGroup  // the application's, then the objects'
	raft   []*raftGroup // instead of them, where cfg.raft is not 0
	saved  map[protocol.Hash]appmanager.Manifest
	last   map[epochObject]uint32
	begun  map[protocol.CheckpointID]sim.Time // when a checkpoint was first seen
	done   map[protocol.ThreadID]int          // accesses since the healing
	healed bool
	report simReport
}

type simReport struct{ accesses, epochs, checkpoints, views, blanks, migrations, leaders, entries int }

type simConfig struct {
	seed                   uint64
	direct                 bool // nodes ask whoever is likely to have the master first
	hosts, objects, guests int
	raft                   int // how many real replica groups keep the managers; 0: abstract ones, one for each
	f                      int
	faults                 sim.Faults
	crash, down            time.Duration // mean times between crashes, 0 is never, and until the return
	view                   time.Duration // between view changes, 0 is never
	checkpoint             time.Duration // 0 is never
	doubt                  float64       // of a detector about somebody who lives, at each look
	patient                bool          // the application's detector is never wrong
	lag, lagMax            time.Duration // of applying: mostly, at most
	shuttle                bool          // one thread moves, between two hosts
	roles                  bool          // a host reads only, writes only, or both
	idle                   int           // hosts that nobody uses objects on, but for those that have moved there
	move                   float64       // of a thread, instead of an access
	blanks                 bool          // objects' groups may lose their state
	think                  time.Duration
	look                   time.Duration   // of a detector, every so often
	threads                int             // of each host that is not a guest
	late                   []protocol.Kind // messages that come late, or twice, by up to lateBy
	lateBy                 time.Duration
	hold                   float64 // of a write, to be in two steps, between which nothing takes the right away
	hasty                  float64 // of a guest, to leave at once, whatever it waits for
	mutant                 protocol.Mutant
	bytes                  bool // messages, events and managers' states go through bytes
}

// shape is what a world has too much of. Half of the worlds have too much of nothing.
type shape int

const (
	lateObjects shape = iota
	lateThreads
	hastyGuests
	quickReturns
	shapes = 8
)

func drawConfig(seed uint64) simConfig { return drawShaped(seed, shape(seed%shapes)) }

// drawShaped draws a world.
func drawShaped(seed uint64, shape shape) simConfig {
	r := rand.New(rand.NewPCG(seed, 0xe1))
	pick := func(d ...time.Duration) time.Duration { return d[r.IntN(len(d))] }
	c := simConfig{
		seed: seed, direct: seed%2 == 1, hosts: 4 + r.IntN(4), objects: 1 + r.IntN(3), guests: r.IntN(2), f: 1,
		crash: pick(0, 2*time.Second, 5*time.Second), down: pick(300*time.Millisecond, 3*time.Second),
		view: pick(0, time.Second, 4*time.Second), checkpoint: pick(0, 500*time.Millisecond, 3*time.Second),
		doubt: []float64{0, 0, 0.02, 0.1}[r.IntN(4)], lag: 5 * time.Millisecond, lagMax: pick(5*time.Millisecond, 300*time.Millisecond),
		move: []float64{0, 0.05, 0.3}[r.IntN(3)], blanks: r.IntN(4) == 0, think: pick(2*time.Millisecond, 50*time.Millisecond),
	}
	if c.hosts >= 5 && r.IntN(2) == 0 {
		c.f = 2
	}
	c.faults = sim.Draw(seed, sim.Scale{Delay: 40 * time.Millisecond, Timeout: 500 * time.Millisecond, Heal: 5 * time.Second})
	c.faults.CrashEvery = 0 // crashes are ours: up to f of a group in a window
	c.look, c.threads, c.hold = 400*time.Millisecond, 1+r.IntN(2), []float64{0, 0.2}[r.IntN(2)]
	few := func(kinds ...protocol.Kind) { // hosts, and a quick network that keeps and doubles messages of drawn kinds
		c.hosts, c.f, c.guests, c.threads, c.objects, c.crash, c.view, c.checkpoint, c.blanks = 4, 1, 0, 1, 1, 0, 0, 0, false
		c.faults = sim.Faults{DelayMax: time.Millisecond, Heal: 4 * time.Second}
		c.lag, c.lagMax, c.move, c.think = time.Millisecond/2, time.Millisecond, 0, 2*time.Millisecond
		c.lateBy = pick(20*time.Millisecond, 150*time.Millisecond)
		for _, i := range r.Perm(len(kinds))[:2+r.IntN(2)] {
			c.late = append(c.late, kinds[i])
		}
	}
	switch shape {
	case lateObjects:
		if r.IntN(2) == 0 {
			few(protocol.Read, protocol.ForwardedRead, protocol.Copy, protocol.ReadAck)
		} else {
			few(protocol.Write, protocol.WriteConfirm, protocol.Invalidate, protocol.InvalidateAck, protocol.ForwardedWrite, protocol.Copy, protocol.WriteAck)
		}
		c.doubt, c.roles, c.idle, c.think = 0, true, 2, pick(2*time.Millisecond, 20*time.Millisecond)
	case lateThreads: // and detectors that are wrong all the time, about hosts that threads leave and come back to
		few(protocol.Moved, protocol.Migrate, protocol.Grant, protocol.Transfer, protocol.Arrived, protocol.Terminated, protocol.Invalidate, protocol.Query)
		c.look, c.doubt, c.patient, c.move, c.shuttle, c.idle = 30*time.Millisecond, 0.3, true, 0.5, true, 1
	case hastyGuests: // they leave before they have what they came for, and objects that nobody has touched
		c.objects, c.guests, c.hasty = 8, c.hosts/2, 0.5
	case quickReturns: // hosts are back before anybody notices
		c.crash, c.down, c.doubt, c.look = time.Second, 20*time.Millisecond, 0, 3*time.Second
	}
	return c
}

const (
	simRepeat = 250 * time.Millisecond
	simLook   = 400 * time.Millisecond // until somebody who was refused asks again
)

type simGroup struct {
	object  int // -1 is the application
	life    protocol.Life
	members []sim.NodeID
	log     []simInput
	first   int // entries that some replica has applied
}

// simInput is an entry of a group's log.
type simInput struct {
	om manager.Event
	am appmanager.Event
}

type replica struct {
	om      *manager.Manager
	am      *appmanager.Manager
	life    protocol.Life
	applied int
	removed bool // it is no member any more, and does not know
}

type host struct {
	w        *simulated
	env      *sim.Env
	at       int
	self     protocol.NodeRef
	node     *appmanager.Node
	copies   []*cachedcopy.Copy
	threads  map[protocol.ThreadID]*simThread
	replicas []*replica // by group, nil where it has none
	guests   uint16
	writes   float64 // how much of what it does
	holds    []bool  // by object: a thread has seen its right to write there, and stores later (R17)
	leaves   bool    // WithoutR10: the copies have not heard yet that the threads are gone
}

type simThread struct {
	runs, guest, holds bool
	wants              cachedcopy.Right
	object             int
}

func versionCell(v uint32) *protocol.Cell {
	return &protocol.Cell{Bytes: binary.BigEndian.AppendUint32(nil, v)}
}
func versionOf(c *protocol.Cell) uint32 { return binary.BigEndian.Uint32(c.Bytes) }

func runSeed(c simConfig) (rep simReport, err error) {
	w := &simulated{
		cfg: c, rand: rand.New(rand.NewPCG(c.seed, 0x5eed)), hosts: make([]*host, c.hosts), saved: map[protocol.Hash]appmanager.Manifest{},
		last: map[epochObject]uint32{}, begun: map[protocol.CheckpointID]sim.Time{}, done: map[protocol.ThreadID]int{},
	}
	w.found()
	for i := range c.objects + 1 {
		if c.raft > 0 {
			break
		}
		g := &simGroup{object: i - 1, life: 1}
		for _, m := range w.rand.Perm(c.hosts)[:2*c.f+1] {
			g.members = append(g.members, sim.NodeID(m))
		}
		w.groups = append(w.groups, g)
	}
	w.sim = sim.New(sim.Config{Seed: c.seed, Nodes: c.hosts, Faults: c.faults}, w.boot)
	defer func() {
		rep = w.report
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
		if err != nil {
			err = fmt.Errorf("%w\n%+v\nreplay: go test ./coherence/coherencetest -run TestReplay -seed %d -raft=%v -v", err, c, c.seed, c.raft > 0)
		}
	}()
	if c.raft > 0 {
		w.recur(c.crash, w.crashRaft)
		w.recur(c.view, w.changeRaft)
	} else {
		w.recur(c.crash, w.crash)
		w.recur(c.view, w.changeView)
	}
	if c.blanks {
		w.recur(3*time.Second, w.blank)
	}
	if err := w.sim.Run(c.faults.Heal); err != nil {
		return w.report, err
	}
	for i := range w.hosts {
		w.sim.Restart(sim.NodeID(i))
	}
	w.healed = true
	limit := c.faults.Heal + 200*time.Second
	if err := w.sim.RunUntil(limit, w.progressed); err != nil {
		return w.report, err
	}
	if !w.progressed() {
		return w.report, fmt.Errorf("L: no progress after the healing by %v: %v of %d threads: %s", limit, w.done, w.threads(), w.picture())
	}
	if c.patient && c.crash == 0 && !c.blanks && c.raft == 0 && w.report.epochs > 1 {
		return w.report, fmt.Errorf("R12: %d restarts, and nobody has failed", w.report.epochs-1)
	}
	return w.report, nil
}

func (w *simulated) picture() string {
	s := ""
	for _, g := range w.raft {
		s += g.String()
	}
	for _, g := range w.groups {
		if r := w.leads(g); r >= 0 {
			p := w.hosts[r].replicas[g.object+1]
			if g.object < 0 {
				s += "\nam " + p.am.String()
			} else {
				s += "\nom " + p.om.String()
			}
		}
	}
	for _, h := range w.hosts {
		if h != nil {
			s += fmt.Sprintf("\n%v%v %v", h.self, h.node, h.copies)
		}
	}
	return s
}

// progressed: every thread has done something since the healing.
func (w *simulated) progressed() bool {
	n := 0
	for t := range w.done {
		if w.done[t] >= 3 {
			n++
		}
	}
	return n >= w.threads()
}

// threads is how many there are that a restart creates again.
func (w *simulated) threads() int {
	if w.cfg.threads == 0 {
		return w.cfg.hosts // a guest on each
	}
	return (w.cfg.hosts - w.cfg.guests - w.cfg.idle) * w.cfg.threads
}

func (w *simulated) recur(every time.Duration, f func()) {
	if every == 0 {
		return
	}
	w.sim.At(w.sim.Now()+time.Millisecond+time.Duration(w.rand.ExpFloat64()*float64(every)), func() {
		if w.sim.Now() < w.cfg.faults.Heal {
			f()
			w.recur(every, f)
		}
	})
}

// has counts the members of a group that have its state.
func (w *simulated) has(g *simGroup, without int) int {
	n := 0
	for _, m := range g.members {
		if h := w.hosts[m]; int(m) != without && h != nil && h.replicas[g.object+1] != nil && !h.replicas[g.object+1].removed {
			n++
		}
	}
	return n
}

// crash ends a host, if no group loses more than f of its members by it: those that are back and have not caught up count as lost.
func (w *simulated) crash() {
	i := w.rand.IntN(w.cfg.hosts)
	for _, g := range w.groups {
		if slices.Contains(g.members, sim.NodeID(i)) && w.has(g, i) < w.cfg.f+1 {
			return
		}
	}
	w.sim.Crash(sim.NodeID(i))
	w.sim.At(w.sim.Now()+time.Duration(w.rand.ExpFloat64()*float64(w.cfg.down)), func() { w.sim.Restart(sim.NodeID(i)) })
}

// changeView replaces a member, when a majority of the view has the state.
func (w *simulated) changeView() {
	g := w.groups[w.rand.IntN(len(w.groups))]
	to := sim.NodeID(w.rand.IntN(w.cfg.hosts))
	if w.has(g, -1) < w.cfg.f+1 || slices.Contains(g.members, to) || w.hosts[to] == nil {
		return
	}
	at := w.rand.IntN(len(g.members))
	if out := g.members[at]; w.has(g, int(out)) < w.cfg.f+1 {
		return // the joiner has nothing yet: the others are the window's majority
	} else if h := w.hosts[out]; h != nil && h.replicas[g.object+1] != nil {
		h.replicas[g.object+1].removed = true
	}
	g.members = slices.Clone(g.members)
	g.members[at] = to
	w.report.views++
	w.hosts[to].replicas[g.object+1] = nil
	w.hosts[to].join(g)
}

// blank takes the state of an object's group away from all members at once, which is more than f of them.
func (w *simulated) blank() {
	g := w.groups[1+w.rand.IntN(w.cfg.objects)]
	g.life++
	w.report.blanks++
	for _, m := range g.members {
		if h := w.hosts[m]; h != nil {
			h.replicas[g.object+1] = w.fresh(g)
		}
	}
}

// leads is the member that leads a group, -1 for none.
func (w *simulated) leads(g *simGroup) int {
	for _, m := range g.members {
		if h := w.hosts[m]; h != nil && h.replicas[g.object+1] != nil && !h.replicas[g.object+1].removed {
			return int(m)
		}
	}
	return -1
}

func (w *simulated) fail(format string, args ...any) { w.sim.Fail(fmt.Errorf(format, args...)) }

func (w *simulated) boot(e *sim.Env) sim.Process {
	h := &host{w: w, env: e, at: int(e.ID()), self: protocol.NodeRef{ID: nodeID(int(e.ID()) + 1), Inc: e.Life()},
		threads: map[protocol.ThreadID]*simThread{}, replicas: make([]*replica, len(w.groups)), holds: make([]bool, w.cfg.objects)}
	w.hosts[h.at] = h
	if h.writes = 0.5; w.cfg.roles {
		h.writes = []float64{0, 0.5, 1}[e.Rand().IntN(3)]
	}
	h.node = appmanager.NewNode(appmanager.NodeConfig{Self: h.self, App: appKey})
	h.node.Sabotage(w.cfg.mutant)
	for o := range w.cfg.objects {
		c := cachedcopy.New(cachedcopy.Config{Self: h.self, App: appKey, Object: objectKey(o + 1), Epoch: 1, Direct: w.cfg.direct})
		c.Sabotage(w.cfg.mutant)
		h.copies = append(h.copies, c)
	}
	for _, g := range w.groups {
		if slices.Contains(g.members, e.ID()) {
			if len(g.log) == 0 && e.Life() == 1 {
				h.replicas[g.object+1] = w.fresh(g)
			} else {
				h.join(g)
			}
		}
	}
	h.bootRaft()
	e.After(h.draw(simRepeat), h.repeats)
	e.After(h.draw(w.cfg.look), h.looks)
	e.After(h.draw(10*time.Millisecond), h.create)
	return h
}

func (w *simulated) fresh(g *simGroup) *replica {
	r := &replica{life: g.life, applied: len(g.log)}
	if g.object < 0 {
		r.am = appmanager.New(appmanager.Config{App: appKey})
		r.am.Sabotage(w.cfg.mutant)
	} else {
		r.om = manager.New(manager.Config{App: appKey, Object: objectKey(g.object + 1), Epoch: 1, Life: g.life})
		r.om.Sabotage(w.cfg.mutant)
	}
	return r
}

// join takes the state from a member that has it. If none has, the group has lost it, and begins anew.
func (h *host) join(g *simGroup) {
	h.env.After(h.draw(50*time.Millisecond), func() {
		if h.replicas[g.object+1] != nil || !slices.Contains(g.members, h.env.ID()) {
			return
		}
		lead := h.w.leads(g)
		if lead < 0 {
			h.join(g)
			return
		}
		from := h.w.hosts[lead].replicas[g.object+1]
		r := *from
		if r.om != nil {
			r.om = r.om.Clone()
		} else {
			r.am = r.am.Clone()
		}
		h.replicas[g.object+1] = &r
		h.apply(g)
	})
}

func (h *host) draw(d time.Duration) time.Duration {
	return 1 + time.Duration(h.env.Rand().Int64N(int64(d)))
}

// Killed implements sim.Process.
func (h *host) Killed() {
	h.w.hosts[h.at] = nil
	h.killedRaft()
}

// Receive implements sim.Process.
func (h *host) Receive(_ sim.NodeID, msg any) {
	if f, ok := msg.(raftFrame); ok {
		if r := h.w.raft[f.group].running[f.to]; r != nil && r.h == h {
			r.step(order.Recv{From: f.from, Store: f.store, Msg: f.msg, Now: time.Duration(h.env.Now())})
		}
		return
	}
	m := msg.(protocol.Message)
	if h.w.cfg.raft > 0 && m.To.Party != protocol.Node {
		h.inputRaft(&m)
		return
	}
	switch m.To.Party {
	case protocol.AppManager:
		h.propose(h.w.groups[0], simInput{am: appmanager.Event{Kind: appmanager.Receive, Msg: &m}})
	case protocol.ObjectManager:
		h.propose(h.w.groups[objectOf(m.Object)+1], simInput{om: manager.Event{Kind: manager.Receive, Msg: &m}})
	default:
		h.deliver(&m)
	}
}

func (h *host) propose(g *simGroup, in simInput) {
	r := h.replicas[g.object+1]
	if r == nil || r.removed || h.w.has(g, -1) < h.w.cfg.f+1 {
		return
	}
	g.log = append(g.log, in)
	for _, m := range g.members {
		if o := h.w.hosts[m]; o != nil && o.replicas[g.object+1] != nil {
			o.apply(g)
		}
	}
}

// apply brings a replica up to date after a while.
func (h *host) apply(g *simGroup) {
	lag := h.w.cfg.lag
	if h.env.Rand().IntN(10) == 0 {
		lag = h.w.cfg.lagMax
	}
	to := len(g.log)
	h.env.After(h.draw(lag), func() {
		r := h.replicas[g.object+1]
		for r != nil && !r.removed && r.life == g.life && r.applied < to {
			in := g.log[r.applied]
			r.applied++
			speaks := h.w.leads(g) == h.at || h.env.Rand().IntN(20) == 0 // one that has led may go on speaking
			if h.w.cfg.bytes {
				h.w.restored(g, r, &in)
			}
			if g.object >= 0 {
				out := r.om.Step(in.om, nil)
				if err := r.om.Check(); err != nil {
					h.w.fail("%w", err)
				}
				for _, m := range out {
					if speaks {
						h.send(m)
					}
				}
				g.first = max(g.first, r.applied)
				continue
			}
			was := r.am.State()
			out := r.am.Step(in.am, nil)
			if err := r.am.Check(); err != nil {
				h.w.fail("%w", err)
			}
			if r.applied > g.first { // the first to get here
				g.first = r.applied
				h.w.noteApp(r.am, was, out)
			}
			if speaks {
				h.perform(out)
			}
		}
	})
}

// noteApp checks a cut at the instant in which the first replica makes it.
func (w *simulated) noteApp(am *appmanager.Manager, was appmanager.State, out []appmanager.Action) {
	w.report.epochs = max(w.report.epochs, int(am.Epoch()))
	if am.State() == appmanager.Stopping && was == appmanager.Running {
		w.begun[am.Checkpoint()] = w.sim.Now()
	}
	if am.State() != appmanager.Saving || was == appmanager.Saving {
		return
	}
	w.report.checkpoints++
	i := slices.IndexFunc(out, func(a appmanager.Action) bool { return a.Kind == appmanager.Save })
	before, _ := am.Saved()
	for o := range w.cfg.objects {
		live, touched := w.last[epochObject{am.Epoch(), o}]
		if !touched {
			h := before.Objects[objectKey(o+1)]
			live = binary.BigEndian.Uint32(h[1:])
		}
		h := out[i].Manifest.Objects[objectKey(o+1)]
		if v := binary.BigEndian.Uint32(h[1:]); v != live {
			w.fail("C5: checkpoint %d has version %d of x%d, and the last write made %d", am.Checkpoint(), v, o+1, live)
		}
	}
	for _, h := range w.hosts {
		if h == nil || h.node.Epoch() != am.Epoch() {
			continue
		}
		for t, s := range h.threads {
			if s.runs && !s.guest {
				w.fail("C3: %v runs at %v at the cut", t, h.self)
			}
		}
	}
}

// send routes to a node, or to some member of a group.
func (h *host) send(m protocol.Message) {
	if m.Kind == protocol.Copy && m.To.Party == protocol.AppManager {
		m.Hash = protocol.Hash{1}
		binary.BigEndian.PutUint32(m.Hash[1:], versionOf(m.Value))
		m.Value = nil
	}
	if h.w.cfg.bytes {
		m = h.w.overTheWire(m)
	}
	if slices.Contains(h.w.cfg.late, m.Kind) && !h.w.healed {
		if h.env.Rand().IntN(2) == 0 {
			h.env.After(h.draw(h.w.cfg.lateBy), func() { h.carry(m) })
		}
		if h.env.Rand().IntN(3) == 0 {
			return
		}
	}
	h.carry(m)
}

func (h *host) carry(m protocol.Message) {
	if m.To.Party == protocol.Node {
		h.env.Send(sim.NodeID(nodeOf(m.To.Node)), m)
		return
	}
	if h.w.cfg.raft > 0 {
		h.routeRaft(m)
		return
	}
	g := h.w.groups[0]
	if m.To.Party == protocol.ObjectManager {
		g = h.w.groups[objectOf(m.Object)+1]
	}
	h.env.Send(g.members[h.env.Rand().IntN(len(g.members))], m)
}

func (h *host) perform(out []appmanager.Action) {
	for _, a := range out {
		switch a.Kind {
		case appmanager.Send:
			h.send(a.Msg)
		case appmanager.Save:
			name := protocol.Hash{2, byte(a.Checkpoint >> 8), byte(a.Checkpoint)}
			h.w.saved[name] = a.Manifest
			h.env.After(h.draw(100*time.Millisecond), func() {
				h.propose(h.w.groups[0], simInput{am: appmanager.Event{Kind: appmanager.Saved, Checkpoint: a.Checkpoint, Hash: name}})
			})
		case appmanager.Choose:
			h.env.After(h.draw(50*time.Millisecond), func() {
				var ps []appmanager.Placement
				for _, t := range a.Threads {
					if o := h.w.hosts[h.env.Rand().IntN(len(h.w.hosts))]; o != nil {
						ps = append(ps, appmanager.Placement{Thread: t, Node: o.self})
					}
				}
				h.propose(h.w.groups[0], simInput{am: appmanager.Event{Kind: appmanager.Place, Epoch: a.Epoch, Places: ps}})
			})
		}
	}
}

// repeats fires the timers of a host: what it waits for itself, and what its replicas do where it leads, or thinks so.
func (h *host) repeats() {
	h.nodeStep(appmanager.NodeEvent{Kind: appmanager.NodeRepeat})
	for o, c := range h.copies {
		if c.Waits() {
			h.copyStep(o, cachedcopy.Event{Kind: cachedcopy.Repeat})
		}
	}
	for _, g := range h.w.groups {
		r := h.replicas[g.object+1]
		if r == nil || h.w.leads(g) != h.at && h.env.Rand().IntN(20) > 0 {
			continue
		}
		if r.om != nil {
			for _, m := range r.om.Resend(nil) {
				h.send(m)
			}
		} else {
			h.perform(r.am.Resend(nil))
			h.checkpoints(r.am)
		}
	}
	for _, g := range h.w.raft {
		for _, id := range g.view.Voters() {
			if r := g.running[id]; r != nil && r.h == h && r.leads() {
				r.resend()
			}
		}
	}
	h.env.After(simRepeat/2+h.draw(simRepeat), h.repeats)
}

// checkpoints begins and gives up.
func (h *host) checkpoints(am *appmanager.Manager) {
	w := h.w
	if am.State() == appmanager.Running && w.cfg.checkpoint > 0 && !w.healed && h.env.Rand().Int64N(int64(w.cfg.checkpoint)) < int64(simRepeat) {
		h.propose(w.groups[0], simInput{am: appmanager.Event{Kind: appmanager.Begin}})
	}
	if s := am.State(); (s == appmanager.Stopping || s == appmanager.Reading || s == appmanager.Saving) && w.sim.Now()-w.begun[am.Checkpoint()] > 4*time.Second {
		h.propose(w.groups[0], simInput{am: appmanager.Event{Kind: appmanager.Abort, Checkpoint: am.Checkpoint()}})
	}
}

// looks is the failure detector of the groups that the host leads.
func (h *host) looks() {
	for _, g := range h.w.groups {
		r := h.replicas[g.object+1]
		if r == nil || h.w.leads(g) != h.at {
			continue
		}
		var m interface {
			Concerns() []protocol.NodeRef
			Suspects(protocol.NodeRef) bool
		} = r.am
		if r.om != nil {
			m = r.om
		}
		if r.om != nil && !r.om.Waits() {
			continue
		}
		for _, n := range m.Concerns() {
			lives := h.w.hosts[nodeOf(n)] != nil // in whichever incarnation: it hears the host, not the program
			doubts := lives && (g.object >= 0 || !h.w.cfg.patient) && !h.w.healed && h.env.Rand().Float64() < h.w.cfg.doubt
			switch {
			case !lives || doubts:
				h.propose(g, simInput{manager.Event{Kind: manager.Suspect, Node: n}, appmanager.Event{Kind: appmanager.Suspect, Node: n}})
			case m.Suspects(n):
				h.propose(g, simInput{manager.Event{Kind: manager.Trust, Node: n}, appmanager.Event{Kind: appmanager.Trust, Node: n}})
			}
		}
	}
	h.env.After(h.w.cfg.look/2+h.draw(h.w.cfg.look), h.looks)
}

// create has the application know of the host's thread, or of a guest.
func (h *host) create() {
	ev := appmanager.NodeEvent{Kind: appmanager.NewThread, Node: h.self, Hash: protocol.Hash{1}}
	if h.at >= h.w.cfg.hosts-h.w.cfg.guests {
		h.guests++
		ev.Guest = true
		ev.Thread = threadID(h.at + 1)
		ev.Thread[4], ev.Thread[5], ev.Thread[6] = byte(h.env.Life()), byte(h.guests>>8), byte(h.guests)
		h.nodeStep(ev)
		return
	}
	for i := range h.w.cfg.threads {
		if h.at >= h.w.cfg.hosts-h.w.cfg.guests-h.w.cfg.idle {
			return
		}
		ev.Thread = threadID(h.at + 1 + 32*i)
		h.nodeStep(ev)
	}
}

func (h *host) deliver(m *protocol.Message) {
	switch m.Kind {
	case protocol.Destroy, protocol.Checkpoint, protocol.Resume, protocol.Unfreeze, protocol.Start, protocol.Created, protocol.Grant,
		protocol.Transfer, protocol.Arrived, protocol.Moved, protocol.MigrationFailed, protocol.Terminated:
		h.nodeStep(appmanager.NodeEvent{Kind: appmanager.NodeReceive, Msg: m})
		return
	}
	if m.Epoch > h.node.Epoch() {
		h.nodeStep(appmanager.NodeEvent{Kind: appmanager.NodeReceive, Msg: &protocol.Message{Epoch: m.Epoch, To: protocol.At(h.self)}})
	}
	h.copyStep(objectOf(m.Object), cachedcopy.Event{Kind: cachedcopy.Receive, Msg: m})
}

func (h *host) nodeStep(ev appmanager.NodeEvent) {
	told := false
	for _, a := range h.node.Step(ev, nil) {
		switch a.Kind {
		case appmanager.NodeSend:
			if a.Msg.Kind == protocol.Moved {
				h.w.report.migrations++
			}
			h.send(a.Msg)
			told = true
		case appmanager.Enter:
			h.goneLate()
			h.allCopies(cachedcopy.Event{Kind: cachedcopy.ThreadsHere})
		case appmanager.Leave:
			if told && h.w.cfg.mutant == protocol.WithoutR10 {
				h.leaves = true
				h.env.After(h.draw(500*time.Millisecond), h.goneLate)
				continue
			}
			h.allCopies(cachedcopy.Event{Kind: cachedcopy.ThreadsGone, Node: a.Node})
		case appmanager.NewEpoch:
			if h.w.cfg.raft > 0 {
				h.w.report.epochs = max(h.w.report.epochs, int(a.Epoch)-1)
			}
			h.threads = map[protocol.ThreadID]*simThread{}
			clear(h.holds)
			h.allCopies(cachedcopy.Event{Kind: cachedcopy.Destroy, Epoch: a.Epoch})
			h.env.After(h.draw(20*time.Millisecond), h.create)
		case appmanager.Run:
			h.runs(a.Thread, false)
		case appmanager.Halt:
			h.threads[a.Thread].runs = false
		case appmanager.CreatedHere:
			if a.Refused {
				h.env.After(h.draw(simLook), h.create)
			} else if a.Thread[4] > 0 {
				h.runs(a.Thread, true)
			}
		}
	}
	for t := range h.threads { // those that have left
		if _, ok := h.node.Phase(t); !ok {
			delete(h.threads, t)
		}
	}
}

// goneLate is what R10 is there for.
func (h *host) goneLate() {
	if h.leaves {
		h.leaves = false
		h.allCopies(cachedcopy.Event{Kind: cachedcopy.ThreadsGone})
	}
}

func (h *host) runs(t protocol.ThreadID, guest bool) {
	for _, o := range h.w.hosts {
		if o != nil && o != h && o.node.Epoch() == h.node.Epoch() && o.threads[t] != nil && o.threads[t].runs {
			h.w.fail("R9: %v runs at %v and %v", t, h.self, o.self)
		}
	}
	s := &simThread{runs: true, guest: guest}
	h.threads[t] = s
	h.later(t, s)
}

// later has a thread go on after a while.
func (h *host) later(t protocol.ThreadID, s *simThread) {
	h.env.After(1+time.Duration(h.env.Rand().ExpFloat64()*float64(h.w.cfg.think)), func() {
		if h.threads[t] == s && s.runs && s.wants == cachedcopy.NoAccess {
			h.act(t, s)
		}
	})
}

// act is a thread between two accesses: it is at a safe point, and may migrate, end or go on.
func (h *host) act(t protocol.ThreadID, s *simThread) {
	r := h.env.Rand()
	h.nodeStep(appmanager.NodeEvent{Kind: appmanager.SafePoint, Thread: t, Hash: protocol.Hash{1}})
	if !s.runs || h.threads[t] != s {
		return
	}
	to := h.w.hosts[r.IntN(len(h.w.hosts))]
	if h.w.cfg.shuttle {
		to = h.w.hosts[r.IntN(2)]
	}
	switch {
	case s.guest && r.IntN(20) == 0:
		h.nodeStep(appmanager.NodeEvent{Kind: appmanager.End, Thread: t})
		h.env.After(h.draw(200*time.Millisecond), h.create)
		return
	case !s.guest && to != nil && to != h && (!h.w.cfg.shuttle || t == threadID(1)) && !h.w.healed && r.Float64() < h.w.cfg.move:
		h.nodeStep(appmanager.NodeEvent{Kind: appmanager.Move, Thread: t, Node: to.self, Hash: protocol.Hash{1}})
		h.env.After(h.draw(3*time.Second), func() { h.nodeStep(appmanager.NodeEvent{Kind: appmanager.Stay, Thread: t}) })
		return
	}
	s.object, s.wants = r.IntN(h.w.cfg.objects), cachedcopy.ReadOnly
	if r.Float64() < h.writes {
		s.wants = cachedcopy.ReadWrite
	}
	if h.serve(t, s) {
		return
	}
	ev := cachedcopy.Event{Kind: cachedcopy.ReadFault}
	if s.wants == cachedcopy.ReadWrite {
		ev.Kind = cachedcopy.WriteFault
	}
	h.copyStep(s.object, ev)
	if s.guest && r.Float64() < h.w.cfg.hasty {
		h.env.After(h.draw(10*time.Millisecond), func() {
			if !s.holds {
				h.nodeStep(appmanager.NodeEvent{Kind: appmanager.End, Thread: t})
			}
		})
		h.env.After(h.draw(200*time.Millisecond), h.create)
		return
	}
	if s.wants > 0 && r.IntN(50) == 0 { // its caller gives up
		h.env.After(h.draw(time.Second), func() {
			if h.threads[t] == s && s.wants > 0 && !s.holds {
				s.wants = cachedcopy.NoAccess
				h.later(t, s)
			}
		})
	}
}

// serve performs a thread's access if the right is there.
func (h *host) serve(t protocol.ThreadID, s *simThread) bool {
	c := h.copies[s.object]
	if s.wants == cachedcopy.NoAccess || c.Right() < s.wants || s.holds || s.wants == cachedcopy.ReadWrite && h.holds[s.object] {
		return false
	}
	if s.wants == cachedcopy.ReadWrite && h.env.Rand().Float64() < h.w.cfg.hold {
		s.holds, h.holds[s.object] = true, true
		h.copyStep(s.object, cachedcopy.Event{Kind: cachedcopy.Hold})
		h.env.After(h.draw(20*time.Millisecond), func() { h.release(t, s) })
		return true
	}
	h.access(t, s)
	return true
}

// release stores what a hold was for.
func (h *host) release(t protocol.ThreadID, s *simThread) {
	if h.threads[t] != s || !s.holds {
		return // the execution is over, and the copy with it
	}
	s.holds, h.holds[s.object] = false, false
	o := s.object
	h.access(t, s)
	h.copyStep(o, cachedcopy.Event{Kind: cachedcopy.Release})
	for _, t := range h.sorted() { // those that the hold kept out
		if s := h.threads[t]; s.object == o {
			h.serve(t, s)
		}
	}
}

// access reads or writes.
func (h *host) access(t protocol.ThreadID, s *simThread) {
	c := h.copies[s.object]
	at := epochObject{c.Epoch(), s.object}
	if c.Right() < s.wants {
		h.w.fail("R17: %v at %v may not do any more what it was about to do with x%d", t, h.self, s.object+1)
		return
	}
	if v := versionOf(c.Value()); v != h.w.last[at] {
		h.w.fail("I3: %v at %v finds version %d of x%d, and the last write made %d", t, h.self, v, s.object+1, h.w.last[at])
	}
	if s.wants == cachedcopy.ReadWrite {
		h.w.last[at]++
		c.Store(versionCell(h.w.last[at]))
	}
	s.wants = cachedcopy.NoAccess
	h.w.report.accesses++
	if h.w.healed && !s.guest {
		h.w.done[t]++
	} else if h.w.healed && h.w.cfg.threads == 0 {
		h.w.done[threadID(h.at+1)]++
	}
	h.later(t, s)
}

func (h *host) sorted() []protocol.ThreadID {
	return slices.SortedFunc(maps.Keys(h.threads), func(a, b protocol.ThreadID) int { return bytes.Compare(a[:], b[:]) })
}

func (h *host) allCopies(ev cachedcopy.Event) {
	for o := range h.copies {
		h.copyStep(o, ev)
	}
}

func (h *host) copyStep(o int, ev cachedcopy.Event) {
	c := h.copies[o]
	if ev.Kind == cachedcopy.Receive && ev.Msg.Kind == protocol.FirstTouch {
		m := *ev.Msg
		manifest, ok := h.w.saved[h.node.Manifest()]
		if name := h.node.Manifest(); !ok && name != (protocol.Hash{}) && int(h.node.Epoch())-1 == h.w.report.epochs && h.w.cfg.raft > 0 {
			h.w.fail("C5: %v begins from a checkpoint that was collected", h.self)
		}
		hash := manifest.Objects[objectKey(o+1)]
		v := binary.BigEndian.Uint32(hash[1:])
		m.Value = versionCell(v)
		ev.Msg = &m
		if at := (epochObject{m.Epoch, o}); c.Wants(&m) && h.w.last[at] == 0 {
			h.w.last[at] = v
		}
	}
	out := c.Step(ev, nil)
	h.w.checkObject(o, c.Epoch())
	if err := c.Check(); err != nil {
		h.w.fail("%w", err)
	}
	for _, a := range out {
		switch a.Kind {
		case cachedcopy.Send:
			h.send(a.Msg)
		case cachedcopy.SetRight:
			if a.Right == c.Right() && a.Right > cachedcopy.NoAccess {
				for _, t := range h.sorted() {
					if s := h.threads[t]; s.object == o {
						h.serve(t, s)
					}
				}
			}
		}
	}
	for _, t := range h.sorted() { // who waits may find its right gone again: it asks again
		if s := h.threads[t]; s != nil && s.object == o && s.wants > c.Right() && c.State() == cachedcopy.Invalid && h.node.Executes() {
			kind := cachedcopy.ReadFault
			if s.wants == cachedcopy.ReadWrite {
				kind = cachedcopy.WriteFault
			}
			h.copyStep(o, cachedcopy.Event{Kind: kind})
		}
	}
}

// checkObject tests I1 and I2 over all hosts of an epoch.
func (w *simulated) checkObject(o int, e protocol.Epoch) {
	masters, exclusive, readable := 0, 0, 0
	for _, h := range w.hosts {
		if h == nil || h.copies[o].Epoch() != e {
			continue
		}
		c := h.copies[o]
		if c.Right() > cachedcopy.NoAccess {
			readable++
		}
		if c.State().Master() {
			masters++
		}
		if c.State() == cachedcopy.OwnerExclusive {
			exclusive++
		}
	}
	if masters > 1 {
		w.fail("I2 (lemma 5): %d masters of x%d in epoch %d", masters, o+1, e)
	}
	if exclusive > 0 && readable > 1 {
		w.fail("I1 (lemma 4): x%d is OWNER_EXCLUSIVE, and %d copies are readable", o+1, readable)
	}
}

// TestSimulation draws worlds with replicated managers, and demands safety always and progress after the healing.
func TestSimulation(t *testing.T) {
	t.Parallel()
	seeds := *seedsFlag
	if testing.Short() {
		seeds = min(seeds, 50)
	}
	var sum simReport
	for seed := uint64(1); seed <= seeds; seed++ {
		r, err := runSeed(drawConfig(seed))
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		sum.accesses += r.accesses
		sum.epochs += r.epochs - 1
		sum.checkpoints += r.checkpoints
		sum.views += r.views
		sum.blanks += r.blanks
		sum.migrations += r.migrations
	}
	t.Logf("%d worlds: %d accesses, %d restarts, %d checkpoints, %d views, %d groups lost, %d migrations", seeds, sum.accesses, sum.epochs,
		sum.checkpoints, sum.views, sum.blanks, sum.migrations)
}

// TestReplay runs one world: -seed.
func TestReplay(t *testing.T) {
	if *seedFlag == 0 {
		t.Skip("replays the world of -seed")
	}
	c := drawConfig(*seedFlag)
	if *raftFlag {
		c = drawRaft(*seedFlag)
	}
	r, err := runSeed(c)
	t.Logf("%+v", r)
	if err != nil {
		t.Error(err)
	}
}
