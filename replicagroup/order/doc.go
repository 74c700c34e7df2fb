// Package order says what an ordering engine is: the events it consumes, the actions it asks for, and the words both use
// (groups, views, members, commands, entries).
//
// An [Orderer] is a deterministic automaton (replica-groups.md section 2): the same state and the same event give the same
// actions. It has no goroutine, clock, randomness, disk or network; a driver turns its crank, on libp2p or in the
// simulator. Package ordertest holds the conformance suite every engine must pass.
//
// # Rules for drivers
//
//   - A [Send] with After = s leaves only when [Stored] s has been reported. Persists are reported in order.
//   - Per group and pair of peers the driver keeps messages in order where it can. Engines stay safe when messages are
//     lost, duplicated or reordered.
//   - Deliver is gap-free: entry i+1 follows entry i, or a snapshot at j > i is announced by [Actions.Install].
//   - A driver reports [Applied] after the machine has executed a delivered entry.
//   - A store keeps entries above a snapshot, also those that a snapshot installed from the leader has made void. An engine
//     must tell them from its own when it starts again (engine raft does by their terms).
//   - Slices inside events and actions belong to the receiver from then on; nobody changes them afterwards.
package order
