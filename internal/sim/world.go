package sim

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"time"

	"latchkey/internal/automaton"
)

// Time is true time: how long the world has run. Nodes never see it; they have [Env.Now].
type Time = time.Duration

// NodeID numbers the nodes of a world from 0.
type NodeID int

// Process is one run of a program on a node, from a boot to a crash. The world calls it from one goroutine.
type Process interface {
	// Receive hands over a message that arrived. A duplicated message is handed over twice as the same value, so
	// nobody changes a message after it was sent.
	Receive(from NodeID, msg any)
	// Killed reports that this run is over. The Env is already inert. A simulated disk decides here what happens to
	// writes that were not synced.
	Killed()
}

// Boot starts a program on a node.
type Boot func(e *Env) Process

// Config describes a world.
type Config struct {
	Seed   uint64
	Nodes  int
	Faults Faults
	// CrashLimit bounds how many nodes the drawn faults keep down at once. [World.Crash] is not bound by it.
	CrashLimit int
	// Spare lists nodes that the drawn faults never crash or pause, such as those that only drive a workload.
	Spare []NodeID
	// Delay, when set, says how long a message travels, in place of Faults.DelayMin and DelayMax. It draws from r and nothing else.
	Delay func(r *rand.Rand, from, to NodeID) time.Duration
}

// World is one simulated universe. It is not safe for concurrent use.
type World struct {
	// Check, when set, runs after every event. Its error ends the run.
	Check func() error

	cfg    Config
	now    Time
	queue  queue
	seq    uint64
	events uint64
	hash   uint64
	nodes  []node
	boot   Boot
	net    network
	faults *rand.Rand
	failed error
}

// node is one machine: its clock and the run that is on it.
type node struct {
	env    *Env // nil while down
	lives  uint64
	rate   int64 // its clock runs at (1e6+rate)/1e6 of true time
	paused Time  // what reaches it before this time waits until then
	spare  bool
}

// New makes a world and schedules the boot of every node at time zero, in order, and the faults.
func New(cfg Config, boot Boot) *World {
	w := &World{
		cfg: cfg, boot: boot, hash: fnvOffset,
		nodes:  make([]node, cfg.Nodes),
		net:    network{rand: stream(cfg.Seed, streamNetwork), last: make(map[link]Time)},
		faults: stream(cfg.Seed, streamFaults),
	}
	for _, id := range cfg.Spare {
		w.nodes[id].spare = true
	}
	for i := range w.nodes {
		w.nodes[i].rate = w.drawRate()
		w.At(0, func() { w.Restart(NodeID(i)) })
	}
	w.scheduleFaults()
	return w
}

// Streams of chance derived from one seed. Lives of nodes use streamLives and up.
const (
	streamNetwork = iota
	streamFaults
	streamShape
	streamLives
)

func stream(seed, n uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, n)) }

// Now returns the true time.
func (w *World) Now() Time { return w.now }

// Events returns how many events have run.
func (w *World) Events() uint64 { return w.events }

// Hash digests every event so far and everything given to [World.Mix].
func (w *World) Hash() uint64 { return w.hash }

// Mix adds to the digest something that the wiring saw and that must repeat too, such as the hash of an automaton.
func (w *World) Mix(b []byte) {
	for ; len(b) >= 8; b = b[8:] {
		w.mix(binary.LittleEndian.Uint64(b))
	}
	for _, c := range b {
		w.mix(uint64(c))
	}
}

// FNV-1a over words: it finds differences, which is all it is for.
const (
	fnvOffset = 14695981039346656037
	fnvPrime  = 1099511628211
)

func (w *World) mix(v uint64) {
	h := (w.hash ^ v) * fnvPrime
	w.hash = h ^ h>>29
}

// String names the world so that a failure can be replayed: its seed, size and faults.
func (w *World) String() string {
	return fmt.Sprintf("seed=%d nodes=%d %v", w.cfg.Seed, w.cfg.Nodes, w.cfg.Faults)
}

// Fail ends the run with an error that something outside [World.Check] found. The first one counts.
func (w *World) Fail(err error) {
	if w.failed == nil {
		w.failed = err
	}
}

// At runs f when the world reaches true time t, or as the next event when t has passed. It belongs to no node: it runs
// whether nodes are up or down.
func (w *World) At(t Time, f func()) {
	w.push(event{at: max(t, w.now), kind: worldEvent, node: -1, run: f})
}

// Run executes every event up to and including true time until, and leaves the clock there. It returns the first error of
// Check or Fail, wrapped with the time and what names this world.
func (w *World) Run(until Time) error { return w.RunUntil(until, func() bool { return false }) }

// RunUntil is [World.Run] that also stops, with the clock where it is, once done reports true after an event.
func (w *World) RunUntil(until Time, done func() bool) error {
	for w.failed == nil && len(w.queue) > 0 && w.queue[0].at <= until {
		w.step()
		if w.Check != nil && w.failed == nil {
			w.Fail(w.Check())
		}
		if w.failed == nil && done() {
			return nil
		}
	}
	if w.failed != nil {
		return fmt.Errorf("at %v, event %d: %w (%v)", w.now, w.events, w.failed, w)
	}
	w.now = max(w.now, until)
	return nil
}

// step runs the next event.
func (w *World) step() {
	ev := w.queue.pop()
	w.now = ev.at
	if ev.kind == worldEvent {
		w.count(ev)
		ev.run()
		return
	}
	n := &w.nodes[ev.node]
	switch {
	case ev.kind == messageEvent && (n.env == nil || w.net.blocked(ev.from, ev.node)):
		return // nobody there, or the link was cut while it travelled
	case ev.kind == timerEvent && n.env != ev.env:
		return // the run that armed it is over
	case n.paused > w.now:
		ev.at = n.paused
		w.push(ev) // behind what reached the node before
		return
	}
	w.count(ev)
	if ev.kind == messageEvent {
		n.env.proc.Receive(ev.from, ev.msg)
		return
	}
	ev.run()
}

func (w *World) count(ev event) {
	w.events++
	w.mix(uint64(ev.at))
	w.mix(uint64(ev.kind)<<56 ^ uint64(ev.node)<<28 ^ uint64(ev.from))
	w.mix(ev.seq)
}

func (w *World) push(ev event) {
	w.seq++
	ev.seq = w.seq
	w.queue.push(ev)
}

// Crash ends the run on a node: no goodbye, its timers are void, its Env is inert at once, even when the process itself is
// on the stack. What it sent before is still in the network. Nothing happens to a node that is down.
func (w *World) Crash(id NodeID) {
	n := &w.nodes[id]
	if n.env == nil {
		return
	}
	e := n.env
	n.env, n.paused = nil, 0
	w.mix(^uint64(id))
	if e.proc != nil { // nil while its boot function runs
		e.proc.Killed()
	}
}

// Restart boots a node that is down. Nothing happens to a node that is up.
func (w *World) Restart(id NodeID) {
	n := &w.nodes[id]
	if n.env != nil {
		return
	}
	n.lives++
	e := &Env{
		world: w, id: id, life: n.lives, booted: w.now,
		rand: stream(w.cfg.Seed, streamLives+n.lives*uint64(len(w.nodes))+uint64(id)),
	}
	n.env = e
	if p := w.boot(e); n.env == e {
		e.proc = p
	} else {
		p.Killed() // it crashed during its boot
	}
}

// Up reports whether a program runs on the node.
func (w *World) Up(id NodeID) bool { return w.nodes[id].env != nil }

// Down returns how many nodes have no program running.
func (w *World) Down() int {
	down := 0
	for i := range w.nodes {
		if w.nodes[i].env == nil {
			down++
		}
	}
	return down
}

// Pause stops a node for d of true time: what reaches it waits, its clock goes on, as under SIGSTOP or a long collection.
func (w *World) Pause(id NodeID, d time.Duration) {
	if n := &w.nodes[id]; n.env != nil {
		n.paused = max(n.paused, w.now+d)
	}
}

// SetRate makes the node's clock run at (1e6+ppm)/1e6 of true time. Call it before the node boots: a clock that has
// begun is not continued but computed anew from its boot.
func (w *World) SetRate(id NodeID, ppm int64) { w.nodes[id].rate = ppm }

func (w *World) drawRate() int64 {
	bound := int64(w.cfg.Faults.Drift)
	switch {
	case bound == 0:
		return 0
	case w.faults.IntN(3) == 0: // the bound itself is where off-by-one errors live
		return bound * int64(1-2*w.faults.IntN(2))
	}
	return w.faults.Int64N(2*bound+1) - bound
}

// Env is what one run of a program sees of the world. After the run's crash its methods have no effect.
type Env struct {
	world  *World
	id     NodeID
	life   uint64
	booted Time
	proc   Process
	rand   *rand.Rand
}

// ID returns the node this run is on.
func (e *Env) ID() NodeID { return e.id }

// Alive reports whether this run goes on.
func (e *Env) Alive() bool { return e.world.nodes[e.id].env == e }

// Life returns which run on its node this is, from 1.
func (e *Env) Life() uint64 { return e.life }

// Now reads the node's own clock: what it counted since this boot. It drifts, and goes on through pauses.
func (e *Env) Now() automaton.Instant {
	return automaton.Instant(scale(e.world.now-e.booted, 1_000_000+e.world.nodes[e.id].rate, 1_000_000))
}

// Rand returns this run's own stream of chance, different in each life.
func (e *Env) Rand() *rand.Rand { return e.rand }

// Send gives a message to the network. The network may lose, delay, duplicate and reorder it; msg is handed over as it
// is and must not be changed. A message to oneself is delivered later too, and is never lost.
func (e *Env) Send(to NodeID, msg any) {
	if e.Alive() {
		e.world.send(e.id, to, msg)
	}
}

// After runs f when the node's own clock has counted d more (at least one nanosecond of true time later), unless the run
// ends first. The returned function cancels it.
func (e *Env) After(d time.Duration, f func()) (cancel func()) {
	if !e.Alive() {
		return func() {}
	}
	cancelled := false
	w := e.world
	// One more than rounded down: a timer never fires before the node's own clock shows that its time has come.
	real := max(1, scale(d, 1_000_000, 1_000_000+w.nodes[e.id].rate)+1)
	w.push(event{at: w.now + real, kind: timerEvent, node: e.id, env: e, run: func() {
		if !cancelled {
			f()
		}
	}})
	return func() { cancelled = true }
}

// scale computes d·num/den, rounded down, without overflow for every d up to a century. d is not negative.
func scale(d time.Duration, num, den int64) time.Duration {
	return d/time.Duration(den)*time.Duration(num) + d%time.Duration(den)*time.Duration(num)/time.Duration(den)
}
