package detector

import (
	"fmt"
	"testing"
	"time"

	"latchkey/internal/automaton"
	"latchkey/internal/sim"
)

// beat is what the simulated peers say to each other.
type beat struct {
	to     uint64 // the life of the receiver that the connection is with
	nonce  uint64
	answer bool
	at     automaton.Instant
}

// opinion is one node's about another, as it changed last.
type opinion struct {
	suspected bool
	at        sim.Time
}

// universe is nodes that all watch each other.
type universe struct {
	*sim.World
	procs  []*proc
	nonces uint64

	opinions         [][]opinion // [watcher][watched]
	stopped, resumed []sim.Time  // of each node, last: begin and end of a pause or of being down
	suspicions       int
	wrong            int // those of peers that were not frozen a moment ago; drawn faults do not tell
	alarms           int
}

type proc struct {
	u     *universe
	env   *sim.Env
	nonce uint64
	d     Detector
	tick  func()
	out   []Action
}

func name(id sim.NodeID) Peer { return Peer(rune('A' + id)) }
func id(p Peer) sim.NodeID    { return sim.NodeID([]rune(p)[0] - 'A') }
func (p *proc) Killed()       { p.tick() }
func (p *proc) self() int     { return int(p.env.ID()) }

func newUniverse(cfg sim.Config) *universe {
	u := &universe{procs: make([]*proc, cfg.Nodes), stopped: make([]sim.Time, cfg.Nodes), resumed: make([]sim.Time, cfg.Nodes)}
	for range cfg.Nodes {
		u.opinions = append(u.opinions, make([]opinion, cfg.Nodes))
	}
	u.World = sim.New(cfg, func(e *sim.Env) sim.Process {
		u.nonces++
		p := &proc{u: u, env: e, nonce: u.nonces, tick: func() {}}
		u.procs[e.ID()] = p
		for i := range cfg.Nodes {
			u.opinions[e.ID()][i] = opinion{at: u.Now()}
			if sim.NodeID(i) != e.ID() {
				p.step(Watch{name(sim.NodeID(i)), true})
			}
		}
		p.arm()
		return p
	})
	return u
}

func (p *proc) arm() {
	p.tick()
	p.tick = p.env.After(max(p.d.Next().Sub(p.env.Now()), 0), func() {
		p.step(Tick{})
		p.arm()
	})
}

func (p *proc) Receive(from sim.NodeID, msg any) {
	b := msg.(beat)
	if b.to != p.nonce {
		return // by a connection that ended with our former life
	}
	if !b.answer {
		p.send(from, true, b.at)
	}
	p.step(Beat{name(from), b.nonce, b.answer, b.at})
}

func (p *proc) send(to sim.NodeID, answer bool, at automaton.Instant) {
	if q := p.u.procs[to]; q != nil {
		p.env.Send(to, beat{q.nonce, p.nonce, answer, at})
	}
}

func (p *proc) step(ev Event) {
	u := p.u
	p.out = p.d.Step(ev, p.env.Now(), p.out[:0])
	for _, a := range p.out {
		switch a := a.(type) {
		case Ping:
			p.send(id(a.Peer), false, p.env.Now())
		case Suspect:
			u.opinions[p.self()][id(a.Peer)] = opinion{true, u.Now()}
			u.suspicions++
			if q := id(a.Peer); u.Up(q) && u.running(q, u.Now()-400*time.Millisecond) {
				u.wrong++
			}
		case Trust:
			u.opinions[p.self()][id(a.Peer)] = opinion{false, u.Now()}
		case Alarm:
			u.alarms++
		}
	}
}

// running reports whether the node was neither paused nor down since t.
func (u *universe) running(q sim.NodeID, t sim.Time) bool {
	return u.Up(q) && u.resumed[q] <= max(t, 0)
}

// freeze pauses a node, and takes note of it.
func (u *universe) freeze(q sim.NodeID, d time.Duration) {
	u.stopped[q], u.resumed[q] = u.Now(), u.Now()+d
	u.Pause(q, d)
}

// Pauses up to three seconds on a network of any delay up to 100 ms: whoever is suspected was paused, never the one that suspects.
func TestOnlyThePausedAreSuspected(t *testing.T) {
	seeds := uint64(100)
	if testing.Short() {
		seeds = 30
	}
	suspicions := 0
	for seed := range seeds {
		f := sim.Draw(seed, sim.Scale{Delay: 100 * time.Millisecond, Timeout: time.Second, Heal: time.Minute, Drift: automaton.DriftDefault})
		u := newUniverse(sim.Config{Seed: seed, Nodes: 4, Faults: sim.Faults{DelayMin: f.DelayMin, DelayMax: f.DelayMax, Drift: f.Drift}})
		for i := range 40 {
			q, d := sim.NodeID((uint64(i)*7+seed)%4), time.Duration(1+(uint64(i)*seed*2654435761)%uint64(3*time.Second))
			u.At(sim.Time(i)*3*time.Second+5*time.Second, func() { u.freeze(q, d) })
		}
		u.Check = func() error {
			if u.wrong > 0 {
				return fmt.Errorf("a running peer was suspected: %+v", u.opinions)
			}
			return nil
		}
		if err := u.Run(2 * time.Minute); err != nil {
			t.Fatal(err)
		}
		suspicions += u.suspicions
		if u.alarms > 0 {
			t.Fatalf("%v: %d alarms", u, u.alarms)
		}
	}
	t.Logf("%d suspicions in %d runs, all right", suspicions, seeds)
	if suspicions == 0 {
		t.Error("nobody was ever suspected: the test shows nothing")
	}
}

// Completeness: whoever is stopped for good is suspected by all that run, in bounded time; and eventual trust: once the network is
// well again all who run trust each other. In between anything may happen: loss without a transport that repeats, cuts, crashes, pauses.
func TestTheStoppedAreSuspectedAndTheOthersTrustedAgain(t *testing.T) {
	seeds := uint64(150)
	if testing.Short() {
		seeds = 40
	}
	suspicions := 0
	for seed := range seeds {
		const nodes = 5
		f := sim.Draw(seed, sim.Scale{Delay: 150 * time.Millisecond, Timeout: time.Second, Heal: 40 * time.Second, Drift: automaton.DriftDefault})
		u := newUniverse(sim.Config{Seed: seed, Nodes: nodes, Faults: f, CrashLimit: 2})
		if err := u.Run(f.Heal + 10*time.Second); err != nil {
			t.Fatal(err)
		}
		for i := range nodes {
			for j := range nodes {
				if o := u.opinions[i][j]; o.suspected {
					t.Fatalf("%v: ten seconds after all is well, node %d suspects %d since %v", u, i, j, o.at)
				}
			}
		}
		before := u.suspicions
		if err := u.Run(f.Heal + 25*time.Second); err != nil {
			t.Fatal(err)
		}
		if u.suspicions != before {
			t.Fatalf("%v: suspicions though all is well", u)
		}
		suspicions += u.suspicions
		// One is killed without a reset, one frozen.
		dead, frozen, at := sim.NodeID(seed%nodes), sim.NodeID((seed+1)%nodes), u.Now()
		u.Crash(dead)
		u.freeze(frozen, time.Minute)
		if err := u.Run(at + 5*time.Second); err != nil {
			t.Fatal(err)
		}
		for i := range nodes {
			for _, j := range []sim.NodeID{dead, frozen} {
				if sim.NodeID(i) == dead || sim.NodeID(i) == frozen {
					continue
				}
				o := u.opinions[i][j]
				// Delays up to 150 ms each way, and what was under way.
				if took := o.at - at; !o.suspected || took > 1500*time.Millisecond {
					t.Fatalf("%v: node %d suspects stopped node %d: %v, after %v", u, i, j, o.suspected, took)
				}
			}
		}
		if u.alarms > 0 && f.ReorderBy < NonceGrace/2 { // later stragglers than that look like a second process
			t.Fatalf("%v: %d alarms", u, u.alarms)
		}
	}
	t.Logf("%d suspicions while the network was bad in %d runs", suspicions, seeds)
}

// What accuracy costs: a network without faults but a constant loss, which no transport repairs.
func TestWrongSuspicionsOnALossyNetworkAreShort(t *testing.T) {
	for _, loss := range []float64{0, 0.01, 0.05} {
		u := newUniverse(sim.Config{Seed: 1, Nodes: 5, Faults: sim.Faults{
			DelayMin: time.Millisecond, DelayMax: 20 * time.Millisecond, Loss: loss, Heal: 11 * time.Minute,
		}})
		var suspected time.Duration
		last := sim.Time(0)
		u.Check = func() error {
			for i := range u.opinions {
				for j := range u.opinions[i] {
					if u.opinions[i][j].suspected {
						suspected += u.Now() - last
					}
				}
			}
			last = u.Now()
			return nil
		}
		if err := u.Run(10 * time.Minute); err != nil {
			t.Fatal(err)
		}
		share := float64(suspected) / float64(20*10*time.Minute)
		t.Logf("loss %.0f %%: %.2f wrong suspicions per pair and hour, %.4f %% of the time", 100*loss, float64(u.suspicions)/20*6, 100*share)
		if loss == 0 && u.suspicions > 0 || share > 0.05 {
			t.Error("too many")
		}
	}
}

// Two processes with one identity, of which others reach now this and now that one.
func TestACopyIsAlarming(t *testing.T) {
	u := newUniverse(sim.Config{Seed: 1, Nodes: 3, Faults: sim.Faults{DelayMin: time.Millisecond, DelayMax: 10 * time.Millisecond}})
	nonces := [2]uint64{1000, 1001}
	for i := range 30 {
		u.At(sim.Time(i)*time.Second, func() { u.procs[2].nonce = nonces[i%2] })
	}
	if err := u.Run(30 * time.Second); err != nil {
		t.Fatal(err)
	}
	if u.alarms != 2 {
		t.Errorf("%d alarms at two peers", u.alarms)
	}
}

func TestEqualSeedsGiveEqualRuns(t *testing.T) {
	run := func() uint64 {
		f := sim.Draw(3, sim.Scale{Delay: 100 * time.Millisecond, Timeout: time.Second, Heal: 20 * time.Second})
		u := newUniverse(sim.Config{Seed: 3, Nodes: 5, Faults: f, CrashLimit: 2})
		if err := u.Run(30 * time.Second); err != nil {
			t.Fatal(err)
		}
		return u.Hash()
	}
	if a, b := run(), run(); a != b {
		t.Errorf("two runs of one seed differ: %x, %x", a, b)
	}
}
