package curves

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/internal/sim"
	"latchkey/lockservice/sigma"
)

// Protocol is how clients contend.
type Protocol string

// The protocols.
const (
	Y2          Protocol = "sigma-y2"
	Y1          Protocol = "sigma-y1"
	Exponential Protocol = "strawman-exponential" // window of 320 ms, doubled to 41 s
	Fixed       Protocol = "strawman-fixed"       // window of 1.6 s
)

// Protocols are all of them, in the order of columns and legends.
var Protocols = []Protocol{Y2, Y1, Exponential, Fixed}

// Setting is one point of a curve: so many clients that each want the lock again as soon as they have given it back.
type Setting struct {
	Protocol Protocol      `json:"protocol"`
	N        int           `json:"n"`       // replicas
	M        int           `json:"m"`       // of which so many make a holder
	Clients  int           `json:"clients"` // from 1
	Hold     time.Duration `json:"hold_ns"` // how long a client keeps the lock
	Time     time.Duration `json:"time_ns"` // that the world runs
	Seed     uint64        `json:"-"`
	// Once has each client want the lock once, all of them from the same moment on.
	Once bool `json:"once"`
}

// Point is what came of a setting. Times are in seconds of virtual time.
type Point struct {
	Setting
	Holds    int     `json:"holds"`
	PerS     float64 `json:"holds_per_s"`
	Messages float64 `json:"messages_per_hold"` // of everybody
	WaitP50  float64 `json:"wait_p50_s"`        // from the request to the entry
	WaitP99  float64 `json:"wait_p99_s"`
	Jain     float64 `json:"jain"`            // fairness of the holds of the clients
	Yields   float64 `json:"yields_per_hold"` // grants given back without having been used
	Overlaps int     `json:"overlaps"`        // holds that began while another lasted: a lock has none
	Served   float64 `json:"all_served_s"`    // when the last of those that want it once had been served; 0 when somebody has not been

	sent int // messages
}

const (
	lockName  = "curve"
	ttl       = 30 * time.Second
	pairShape = 3.6
	pairHalf  = 69 * time.Millisecond // median
	jitter    = 0.1
)

// world is one run.
type world struct {
	s       Setting
	sim     *sim.World
	pairs   []time.Duration // delay from node i to node j at i*nodes+j
	log     sigma.LogState
	members []keyspace.NodeID

	messages, yields int
	waits            []time.Duration
	each             []int
	holding          int
	overlaps         int
	served           time.Duration // when the last hold ended
}

func nodeID(i sim.NodeID) keyspace.NodeID { return keyspace.NodeID{byte(i >> 8), byte(i), 1} }
func simID(n keyspace.NodeID) sim.NodeID  { return sim.NodeID(n[0])<<8 | sim.NodeID(n[1]) }

// Run runs one world. Above 30,000 nodes or with an M that is no majority it panics: who draws a curve knows better.
func Run(s Setting) Point {
	nodes := s.N + s.Clients
	w := &world{s: s, each: make([]int, s.Clients), pairs: make([]time.Duration, nodes*nodes)}
	r := rand.New(rand.NewPCG(s.Seed, 0xc0e5))
	for i := range nodes {
		for j := range i {
			d := logLogistic(r)
			w.pairs[i*nodes+j], w.pairs[j*nodes+i] = d, d
		}
	}
	for i := range s.N {
		w.members = append(w.members, nodeID(sim.NodeID(i)))
	}
	w.log = sigma.LogState{
		Descriptor: sigma.Descriptor{View: sigma.ViewID{Num: 1}, Members: w.members},
		Ceil:       sigma.CounterMax, Cap: sigma.CapFor(ttl),
	}
	w.sim = sim.New(sim.Config{Seed: s.Seed, Nodes: nodes, Delay: func(r *rand.Rand, from, to sim.NodeID) time.Duration {
		d := float64(w.pairs[int(from)*nodes+int(to)])
		return time.Duration(d * (1 - jitter + 2*jitter*r.Float64()))
	}}, w.boot)
	if err := w.sim.Run(s.Time); err != nil {
		panic(err) // nothing here fails a world
	}
	return w.point()
}

// logLogistic draws the delay of a pair.
func logLogistic(r *rand.Rand) time.Duration {
	u := r.Float64()
	return time.Duration(float64(pairHalf) * math.Pow(u/(1-u), 1/pairShape))
}

func (w *world) boot(e *sim.Env) sim.Process {
	strawman := w.s.Protocol == Exponential || w.s.Protocol == Fixed
	switch i := int(e.ID()); {
	case i < w.s.N && strawman:
		return &strawReplica{w: w, env: e}
	case i < w.s.N:
		return &sigmaReplica{w: w, env: e, core: sigma.NewReplica(sigma.ReplicaConfig{
			Self: nodeID(e.ID()), Inc: 1, Drift: automaton.DriftDefault, TTLMin: time.Millisecond, TTLMax: 2 * ttl,
		}, w.log)}
	case strawman:
		c := &strawClient{w: w, env: e, index: i - w.s.N}
		c.begin()
		return c
	default:
		c := &sigmaClient{w: w, env: e, index: i - w.s.N, old: make(map[sigma.Req]*sigma.Client)}
		c.session[0], c.session[1], c.session[2] = byte(i>>8), byte(i), 1
		c.begin()
		return c
	}
}

func (w *world) send(e *sim.Env, to sim.NodeID, msg any) {
	w.messages++
	e.Send(to, msg)
}

// enter counts a hold, and leave ends it.
func (w *world) enter(client int, waited time.Duration) {
	if w.holding++; w.holding > 1 {
		w.overlaps++
	}
	w.each[client]++
	w.waits = append(w.waits, waited)
}

// leave ends a hold, and reports whether its client wants another.
func (w *world) leave(now automaton.Instant) bool {
	w.holding--
	w.served = time.Duration(now)
	return !w.s.Once
}

func (w *world) point() Point {
	p := Point{Setting: w.s, Holds: len(w.waits), Overlaps: w.overlaps, sent: w.messages}
	if p.Holds == 0 {
		return p
	}
	slices.Sort(w.waits)
	at := func(q float64) float64 { return w.waits[min(p.Holds-1, int(q*float64(p.Holds)))].Seconds() }
	p.WaitP50, p.WaitP99 = at(0.5), at(0.99)
	n := float64(p.Holds)
	if w.s.Once && p.Holds == w.s.Clients {
		p.Served = w.served.Seconds()
	}
	p.PerS, p.Messages, p.Yields = n/w.s.Time.Seconds(), float64(w.messages)/n, float64(w.yields)/n
	var squares float64
	for _, x := range w.each {
		squares += float64(x) * float64(x)
	}
	p.Jain = n * n / (float64(len(w.each)) * squares)
	return p
}
