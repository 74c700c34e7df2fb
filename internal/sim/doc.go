// Package sim is a deterministic discrete-event simulator: a virtual clock, a network and nodes that fail, all drawn from
// one seed. It knows no protocol. Whoever wires automata onto it (internal/simworld, replicagroup/order/ordertest) decides
// what a message is, what a disk keeps and what must hold after every step.
//
// # Wiring an automaton
//
// A [Process] is one run of a program on a node, from its boot to its crash. The world asks for one through the boot
// function given to [New]: at the start and again at every restart. The process acts through the [Env] it was booted with:
// it reads its own drifting clock, sends, and arms timers. After a crash that Env is inert, so a process that dies in the
// middle of performing its actions simply has no further effect; what it wrote to a simulated disk before stays, because
// the disk belongs to the wiring, outside the process.
//
//	type server struct {
//		env  *sim.Env
//		core *pingpong.Server // the automaton
//	}
//
//	func (s *server) Receive(from sim.NodeID, msg any) { s.perform(s.core.Step(msg.(pingpong.Message))) }
//	func (s *server) Killed()                          {} // memory is gone; here a disk would drop what was not synced
//
//	func (s *server) perform(out []pingpong.Action) {
//		for _, a := range out {
//			switch a := a.(type) {
//			case pingpong.Send:
//				s.env.Send(sim.NodeID(a.To), a.Msg)
//			case pingpong.Arm:
//				s.env.After(a.After, func() { s.perform(s.core.Step(pingpong.Timeout{ID: a.ID})) })
//			}
//		}
//	}
//
// See Example for the whole of it.
//
// # Faults
//
// [Faults] says which faults there are, how strong, when they begin and when the network heals. [Draw] draws that shape
// itself from the seed (swarm testing): a world with few kinds of faults, each strong, goes where an even mix never does.
// Safety is checked after every event ([World.Check]); after [Faults.Heal] every node is up and every link works, so a
// test can also demand progress. Every error that [World.Run] returns carries the seed and the drawn faults.
//
// # Repeatability
//
// One goroutine runs a world. Events at one instant run in the order in which they were scheduled. Chance comes from PCG
// streams derived from the seed, one for the network, one for the faults, and one for each life of each node, so what a
// protocol draws does not shift what the network does. [World.Hash] digests the run so far: equal seeds give equal hashes,
// as long as the processes keep their side (no map order, no clock, no goroutine).
package sim
