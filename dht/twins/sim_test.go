package twins

import (
	"fmt"
	"testing"
	"time"

	"latchkey/internal/automaton"
	"latchkey/internal/sim"
)

// Nodes of a universe: those who judge, those who are judged, and one machine that a copy may run on.
const (
	witnesses = 3
	members   = 3
	spare     = witnesses + members
	nodes     = spare + 1
)

const interval = 200 * time.Millisecond

// machine is what a member's disk has.
type machine struct {
	identity Peer
	store    [16]byte
	count    uint64
	stopped  bool // nobody starts it
}

type (
	// question is a witness's, at its own instant in its own life.
	question struct {
		life uint64
		at   automaton.Instant
	}
	// word is what a member says of itself, unasked or in answer.
	word struct {
		who      Peer
		boot     Boot
		question question
	}
)

// universe is witnesses that judge members by whatever arrives, in whatever order.
type universe struct {
	*sim.World
	mutant   Mutant
	machines [nodes]machine
	judges   [witnesses]*witness
	members  [nodes]*member
	nonces   uint64
	alarms   int
}

type witness struct {
	u   *universe
	env *sim.Env
	j   Judge
}

type member struct {
	u    *universe
	env  *sim.Env
	boot Boot
}

func newUniverse(cfg sim.Config, mutant Mutant) *universe {
	u := &universe{mutant: mutant}
	for i := witnesses; i < spare; i++ {
		u.machines[i] = machine{identity: Peer(rune('A' + i)), store: store(byte(i))}
	}
	u.machines[spare].stopped = true
	cfg.Nodes = nodes
	u.World = sim.New(cfg, func(e *sim.Env) sim.Process {
		if e.ID() < witnesses {
			w := &witness{u: u, env: e}
			Sabotage(&w.j, mutant)
			u.judges[e.ID()] = w
			w.ask()
			return w
		}
		m := &member{u: u, env: e}
		if d := &u.machines[e.ID()]; !d.stopped {
			u.nonces++
			d.count++
			m.boot = Boot{d.store, d.count, u.nonces}
			u.members[e.ID()] = m
			m.speak()
		}
		return m
	})
	return u
}

func (w *witness) Killed() {}
func (m *member) Killed()  {}

// ask asks every identity, that is whoever answers to it.
func (w *witness) ask() {
	for i := sim.NodeID(witnesses); i < nodes; i++ {
		w.env.Send(i, question{w.env.Life(), w.env.Now()})
	}
	w.env.After(interval, w.ask)
}

func (w *witness) Receive(_ sim.NodeID, msg any) {
	m := msg.(word)
	s := Sighting{Peer: m.who, Boot: m.boot}
	if m.question.life == w.env.Life() {
		s.Asked = m.question.at
	} else if m.question.life != 0 {
		return // by a connection that ended with our former life
	}
	if _, alarm := w.j.See(s, w.env.Now()); alarm != nil {
		w.u.alarms++
	}
}

// speak tells everybody, unasked.
func (m *member) speak() {
	for i := range sim.NodeID(witnesses) {
		m.env.Send(i, m.word(question{}))
	}
	m.env.After(interval, m.speak)
}

func (m *member) word(q question) word {
	return word{m.u.machines[m.env.ID()].identity, m.boot, q}
}

func (m *member) Receive(from sim.NodeID, msg any) {
	if q, ok := msg.(question); ok && m.boot != (Boot{}) {
		m.env.Send(from, m.word(q))
	}
}

// copyTo puts a copy of a member's disk into the spare machine and starts it.
func (u *universe) copyTo(from sim.NodeID, identity Peer, starts uint64) {
	u.Crash(spare)
	u.machines[spare] = machine{identity: identity, store: u.machines[from].store, count: u.machines[from].count + starts - 1}
	u.Restart(spare)
}

// drawn returns faults of all kinds, with messages that come up to ten seconds late.
func drawn(seed uint64) sim.Faults {
	f := sim.Draw(seed, sim.Scale{Delay: 200 * time.Millisecond, Timeout: time.Second, Heal: 40 * time.Second, Drift: automaton.DriftDefault})
	f.Reorder, f.ReorderBy = max(f.Reorder, 0.05), 10*time.Second
	f.CrashEvery, f.CrashFor = 2*time.Second, 300*time.Millisecond
	return f
}

// innocent runs members that crash, pause and restart, each at home.
func innocent(seed uint64, mutant Mutant) error {
	u := newUniverse(sim.Config{Seed: seed, Faults: drawn(seed), CrashLimit: 3}, mutant)
	// One is killed and started again twenty times in a row.
	for i := range 20 {
		u.At(time.Duration(10_000+150*i)*time.Millisecond, func() {
			u.Crash(witnesses)
			u.Restart(witnesses)
		})
	}
	u.Check = func() error {
		if u.alarms > 0 {
			return fmt.Errorf("an alarm, and nothing was copied")
		}
		return nil
	}
	if err := u.Run(70 * time.Second); err != nil {
		return err
	}
	if n := u.machines[witnesses].count; n <= 20 {
		return fmt.Errorf("a member started %d times: the run shows nothing", n)
	}
	for i := witnesses; i < spare; i++ {
		for _, w := range u.judges {
			if w.j.Refused(u.machines[i].identity) {
				return fmt.Errorf("member %d is refused", i)
			}
		}
	}
	return nil
}

// copied runs a member in two places, once all is well.
func copied(seed uint64, mutant Mutant) error {
	f := drawn(seed)
	u := newUniverse(sim.Config{Seed: seed, Faults: f, CrashLimit: 3}, mutant)
	if err := u.Run(f.Heal + 15*time.Second); err != nil {
		return err
	}
	if u.alarms > 0 {
		return fmt.Errorf("%v: an alarm before anything was copied", u)
	}
	for i := range sim.NodeID(spare) {
		u.Restart(i) // who was down
	}
	if err := u.Run(u.Now() + 2*time.Second); err != nil {
		return err
	}
	victim := sim.NodeID(witnesses + seed%members)
	identity := u.machines[victim].identity
	same := seed%4 != 3
	if !same {
		identity = "another"
	}
	u.copyTo(victim, identity, 1+seed%2) // with --moved it is the second start
	if seed%3 == 0 {                     // the original restarts: one count, two nonces
		u.Crash(victim)
		u.Restart(victim)
	}
	if err := u.Run(u.Now() + 5*time.Second); err != nil {
		return err
	}
	if u.alarms != witnesses {
		return fmt.Errorf("%v: %d alarms at %d peers, same identity %v", u, u.alarms, witnesses, same)
	}
	for _, w := range u.judges {
		for i := witnesses; i < spare; i++ {
			if id := u.machines[i].identity; w.j.Refused(id) != (same && sim.NodeID(i) == victim) {
				return fmt.Errorf("%v: member %d is refused: %v", u, i, w.j.Refused(id))
			}
		}
	}
	// Both stop, the store gets a new id, and its peer counts again.
	u.Crash(spare)
	u.machines[spare].stopped = true
	u.Crash(victim)
	u.machines[victim].store, u.machines[victim].count = store(200), 0
	u.Restart(victim)
	if err := u.Run(u.Now() + 12*time.Second); err != nil {
		return err
	}
	for _, w := range u.judges {
		if w.j.Refused(u.machines[victim].identity) || u.alarms != witnesses {
			return fmt.Errorf("%v: still refused, or accused anew, with a new store: %d alarms", u, u.alarms)
		}
	}
	return nil
}

// setBack puts an earlier state of a member's disk back, which only those can notice who have heard of a later start.
func setBack(seed uint64, mutant Mutant) error {
	f := drawn(seed)
	u := newUniverse(sim.Config{Seed: seed, Faults: f, CrashLimit: 3}, mutant)
	if err := u.Run(f.Heal + 15*time.Second); err != nil {
		return err
	}
	if u.alarms > 0 {
		return fmt.Errorf("%v: an alarm before anything was set back", u)
	}
	for i := range sim.NodeID(spare) {
		u.Restart(i)
	}
	victim := sim.NodeID(witnesses + seed%members)
	backup := u.machines[victim].count
	for range 1 + seed%4 {
		u.Crash(victim)
		u.Restart(victim)
		if err := u.Run(u.Now() + time.Second); err != nil {
			return err
		}
	}
	u.Crash(victim)
	u.machines[victim].count = backup - seed%2
	u.Restart(victim)
	if err := u.Run(u.Now() + 5*time.Second); err != nil {
		return err
	}
	for i, w := range u.judges {
		if !w.j.Refused(u.machines[victim].identity) {
			return fmt.Errorf("%v: witness %d noticed nothing, %d alarms", u, i, u.alarms)
		}
	}
	return nil
}

var runs = map[string]func(uint64, Mutant) error{"innocent": innocent, "copied": copied, "set back": setBack}

func TestOnlyCopiesAreAccused(t *testing.T) {
	seeds := uint64(60)
	if testing.Short() {
		seeds = 15
	}
	for name, run := range runs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for seed := range seeds {
				if err := run(seed, MutantNone); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
			}
		})
	}
}

func TestTheSimulatorFindsPlantedMistakes(t *testing.T) {
	for mutant, run := range map[Mutant]string{MutantAnyWord: "innocent", MutantAnyAnswer: "innocent", MutantCountsOnly: "copied"} {
		found := error(nil)
		for seed := uint64(0); seed < 20 && found == nil; seed++ {
			found = runs[run](seed, mutant)
		}
		if found == nil {
			t.Errorf("mutant %d was not caught", mutant)
		} else {
			t.Logf("mutant %d: %v", mutant, found)
		}
	}
}
