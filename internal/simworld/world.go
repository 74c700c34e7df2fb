package simworld

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/internal/sim"
	"latchkey/lockservice/table"
)

// Engine says what orders the commands of a world.
type Engine uint8

// The engines.
const (
	Ideal Engine = iota
	Raft
)

// String names the engine.
func (e Engine) String() string { return [...]string{"ideal", "raft"}[e] }

// Mutant is a deliberate mistake in one of the automata, or in how they are put together.
type Mutant uint8

// The mutants.
const (
	None          Mutant = iota
	FromArrival          // D is counted from the arrival of the answer
	RetryMoves           // a repeated acquire counts from its last sending
	Unconfirmed          // a grant out of the queue is a hold at once
	IgnoreDrift          // nobody shrinks or stretches: clocks are taken to be perfect
	ForgetResults        // a repeated command runs again
	ForeignStamps        // log time follows whatever clock the leader has
	SameToken            // a hand-over passes the token on
	StaleRelease         // an old release touches a newer hold of its client
	Mixed                // somebody who shares is granted beside somebody who does not
	Impatient            // somebody who does not share is granted beside those who do
	ExtraPermit          // a semaphore has one permit too many
	Overtake             // who shares does not wait for those before him who do not
	mutants
)

// String names the mutant.
func (m Mutant) String() string {
	return [...]string{
		"none", "from-arrival", "retry-moves", "unconfirmed", "ignore-drift", "forget-results", "foreign-stamps", "same-token", "stale-release",
		"mixed", "impatient", "extra-permit", "overtake",
	}[m]
}

// Mutants lists every mistake the simulator has to catch.
func Mutants() []Mutant {
	var all []Mutant
	for m := None + 1; m < mutants; m++ {
		all = append(all, m)
	}
	return all
}

// Config is one drawn world.
type Config struct {
	Seed     uint64
	Engine   Engine
	Mutant   Mutant
	Replicas int
	Clients  int
	Names    int
	Modes    []int           // what each name is used as: 0 alone, [someShare], or a semaphore of so many permits
	Drift    automaton.Drift // the bound the protocol believes in
	Faults   sim.Faults      // Faults.Drift is how far clocks really go
	TTL      []time.Duration // of leases; a hold draws one
	Session  time.Duration   // TTL of sessions
	Patience time.Duration   // of a client with one command before it asks anew; 0 is endless
	Hold     time.Duration   // mean time of holding
	Think    time.Duration   // mean time between two holds
	Commit   time.Duration   // disk and other voters: longest time to decide
	// Heartbeat is of the raft engine; the ideal one has the other three: how long a leader stays, how long the group is
	// without one after a crash, how many proposals get lost.
	Heartbeat       time.Duration
	Reign, Election time.Duration
	Dropped         float64
}

// Draw draws a world from a seed.
func Draw(seed uint64, e Engine, m Mutant) Config {
	r := rand.New(rand.NewPCG(seed, 0x1ccc))
	pick := func(d ...time.Duration) time.Duration { return d[r.IntN(len(d))] }
	c := Config{
		Seed: seed, Engine: e, Mutant: m,
		Replicas: 3 + 2*r.IntN(2), Clients: 2 + r.IntN(4), Names: 1 + r.IntN(2),
		Drift:     []automaton.Drift{automaton.DriftDefault, 100_000, 200_000}[r.IntN(3)],
		Session:   pick(time.Second, 3*time.Second),
		Patience:  pick(0, 200*time.Millisecond, 600*time.Millisecond),
		Hold:      pick(100*time.Millisecond, 500*time.Millisecond, 2*time.Second),
		Think:     pick(10*time.Millisecond, 300*time.Millisecond),
		Commit:    pick(time.Millisecond, 20*time.Millisecond),
		Heartbeat: 100 * time.Millisecond, Reign: pick(500*time.Millisecond, 3*time.Second, time.Hour),
		Election: pick(100*time.Millisecond, time.Second), Dropped: []float64{0, 0.05}[r.IntN(2)],
		TTL: [][]time.Duration{{time.Second}, {time.Second, 3 * time.Second}}[r.IntN(2)],
	}
	c.Faults = sim.Draw(seed, sim.Scale{Delay: 50 * time.Millisecond, Timeout: 600 * time.Millisecond, Heal: 10 * time.Second, Drift: c.Drift})
	if r.IntN(8) == 0 {
		c.Faults.Drift = 3 * c.Drift // beyond the bound: exclusion may break, tokens must not
	}
	for range c.Names {
		mode := []int{0, 0, someShare, 2}[r.IntN(4)]
		if m != None && m < Mixed { // what is wrong with a lock that one has alone shows soonest where all are
			mode = 0
		}
		c.Modes = append(c.Modes, mode)
	}
	return c
}

// someShare is the mode of a name that some share and others do not.
const someShare = -1

// bounded reports whether the clocks keep to what the protocol believes.
func (c *Config) bounded() bool { return c.Faults.Drift <= c.Drift }

// World is one simulated group with its clients.
type World struct {
	cfg     Config
	sim     *sim.World
	rand    *rand.Rand // of the wiring: ideal leaders, torn writes
	servers []*server
	ideal   *idealLog
	disks   []disk
	clients []*client
	check   *checker
	closing bool // no new wishes
}

// Report says what a world saw.
type Report struct {
	Events   uint64
	Acquired int
	Handed   int // of them, out of the queue
	Passed   int // waiters that were passed over since they may be gone
	Lost     int
	Sessions int // lost
	Entries  uint64
	Hash     uint64
}

// Run runs a world to its end. The error names the seed, what was drawn from it, and how to run it again.
func Run(c Config) (Report, error) {
	w := &World{cfg: c, rand: rand.New(rand.NewPCG(c.Seed, 0x10c5)), servers: make([]*server, c.Replicas), disks: make([]disk, c.Replicas),
		clients: make([]*client, c.Clients)}
	w.check = newChecker(w)
	nodes := c.Replicas + c.Clients
	w.sim = sim.New(sim.Config{Seed: c.Seed, Nodes: nodes, Faults: c.Faults, CrashLimit: c.Replicas/2 + c.Clients/2}, w.boot)
	if c.Engine == Ideal {
		w.ideal = newIdealLog(w)
	}
	err := w.run()
	rep := w.check.report
	rep.Events, rep.Hash, rep.Entries = w.sim.Events(), w.sim.Hash(), w.check.frontier
	if err != nil {
		err = fmt.Errorf("%w\n%+v\nreplay: go test ./internal/simworld -run TestReplay -seed %d -engine %v -mutant %v -v",
			err, c, c.Seed, c.Engine, c.Mutant)
	}
	return rep, err
}

const (
	// calm is how long clients go on wishing after the faults are over.
	calm = 2 * time.Second
	// patienceMin is how long they may take to be served then: a few leases and sessions of those that died.
	patienceMin = 60 * time.Second
)

// patience is patienceMin on the slowest clock that there may be.
func (w *World) patience() time.Duration {
	return patienceMin * 1_000_000 / time.Duration(1_000_000-w.cfg.Faults.Drift)
}

func (w *World) run() error {
	if err := w.sim.Run(w.cfg.Faults.Heal + calm); err != nil {
		return err
	}
	w.closing = true
	if err := w.sim.RunUntil(w.cfg.Faults.Heal+calm+w.patience(), w.idle); err != nil {
		return err
	}
	if !w.idle() {
		return fmt.Errorf("no progress: %v after the faults were over not everybody was served: %v (%v)", calm+w.patience(), w.clients, w.sim)
	}
	return nil
}

func (w *World) idle() bool {
	return !slices.ContainsFunc(w.clients, func(c *client) bool { return c == nil || !c.idle() })
}

func (w *World) boot(e *sim.Env) sim.Process {
	id := int(e.ID())
	if id >= w.cfg.Replicas {
		c := newClient(w, e)
		w.clients[id-w.cfg.Replicas] = c
		return c
	}
	s := newServer(w, e)
	w.servers[id] = s
	if w.cfg.Engine == Raft {
		s.engine = bootRaft(s)
	} else {
		s.engine = bootIdeal(s)
	}
	return s
}

// faulty reports whether the faulty phase is not over.
func (w *World) faulty() bool { return w.sim.Now() < w.cfg.Faults.Heal }

func (w *World) peer(id sim.NodeID) keyspace.NodeID { return keyspace.NodeID{byte(id + 1)} }
func (w *World) node(p keyspace.NodeID) sim.NodeID  { return sim.NodeID(p[0]) - 1 }

func (w *World) tableConfig() table.Config {
	return table.Config{Drift: w.protocolDrift(), TTLMin: time.Millisecond, TTLMax: time.Minute}
}

func (w *World) protocolDrift() automaton.Drift {
	if w.cfg.Mutant == IgnoreDrift {
		return 0
	}
	return w.cfg.Drift
}
