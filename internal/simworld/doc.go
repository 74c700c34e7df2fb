// Package simworld wires latchkey's automata onto internal/sim and checks what they promise.
//
// # The world of locks
//
// Some nodes are replicas of one group: an ordering engine, a session.Table on its log, a lock table behind that. The others
// are clients: a session.Client and several hold.Hold each, that acquire, hold, release and give up at drawn times. Clocks
// drift, replicas and clients crash, messages are lost, doubled, overtaken and cut off, all drawn from one seed.
//
// Two engines turn the same world: [Ideal], a log that decides at once and only loses answers and leaders, so that thousands of
// worlds a minute try the rules of sessions and leases; and [Raft], the real engine on simulated disks.
//
// # What is checked
//
//   - Exclusion: while clocks keep their bound, no two clients believe at one true time that they hold one lock; and
//     nobody acquires it before the former holder was told of its loss, unless that holder's whole machine stood still.
//   - Tokens rise strictly with the grants of one lock, whatever the clocks do.
//   - The queue is first come, first granted, for those who stay in it.
//   - A command takes effect at most once, and its client is told what it really gave.
//   - Replicas that executed the same entries got the same results and have the same state.
//   - Once the faults are over everybody who wants a lock gets it.
//
// # Mutants
//
// A checker that never fails proves nothing: [Mutants] are deliberate mistakes, each of which the simulator has to catch.
package simworld
