package sim_test

import (
	"fmt"
	"time"

	"latchkey/internal/sim"
)

// echo answers what node 0 sends until an answer came; the automaton is so small that it sits in the wiring.
type echo struct {
	env      *sim.Env
	attempts int
	answered *bool
}

func (p *echo) Receive(from sim.NodeID, msg any) {
	if p.env.ID() == 0 {
		*p.answered = true
		return
	}
	p.env.Send(from, msg)
}

func (p *echo) Killed() {}

func (p *echo) ask() {
	if *p.answered {
		return
	}
	p.attempts++
	p.env.Send(1, p.attempts)
	p.env.After(100*time.Millisecond, p.ask)
}

// A client asks over a network that is bad for ten seconds and whose badness is drawn from the seed.
func Example() {
	const seed = 7
	answered := false
	faults := sim.Draw(seed, sim.Scale{Delay: 20 * time.Millisecond, Timeout: time.Second, Heal: 10 * time.Second})
	w := sim.New(sim.Config{Seed: seed, Nodes: 2, Faults: faults, CrashLimit: 1}, func(e *sim.Env) sim.Process {
		p := &echo{env: e, answered: &answered}
		if e.ID() == 0 {
			e.After(time.Millisecond, p.ask)
		}
		return p
	})
	w.Check = func() error { return nil } // what must hold after every event
	if err := w.Run(11 * time.Second); err != nil {
		fmt.Println(err) // names the seed and the faults
	}
	fmt.Println(answered)
	// Output: true
}
