// Package ordertest is the conformance suite of ordering engines (replica-groups.md section 8): [Run] puts any
// [order.Orderer] under tests 1 to 13, 15 to 17 and 19 to 21, driven in internal/sim.
//
// A cluster is one group: members, each an engine with a simulated driver and disk, and clients that keep proposing under
// one (client, seq) until they are answered. The driver keeps the rules of package order: messages wait for the persist
// they depend on, persists are reported in order, an answer leaves only after its entry was executed. Its disk keeps what
// was persisted and nothing else: a write that was not synced may be lost in a crash, a synced one may not. A driver may
// be slow at anything, may report a stale timer, a link that is down or a suspicion that is wrong; it does all of that.
//
// The invariants of section 7 are checked at every step that could break them: I1 and I2 and I3 at each delivery, I4 at
// each execution, I5 and I6 whenever a member begins to lead, I11 and I12 at each message that leaves, I9 on the recorded
// history at the end of a run; I10, I11 and I13 at each view that a member tells of, and that at the end all are in the newest; and at each read point, I16: no other member had
// been elected when it was asked for ([order.ReadPoint]). What is
// delivered must have been told of before, where package order says so ([order.Prospect]).
// Peers beside the founders may become members; whoever a view names first gets an empty replica on its peer.
//
// Every test is a function that returns an error, so the package's own tests can plant mistakes into drivers and engines
// and demand that the suite finds each.
package ordertest
