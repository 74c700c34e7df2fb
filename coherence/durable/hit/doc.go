// Package hit is how threads read a node's copies of durable objects without a step of the automaton: two loads and one look at the clock, no lock,
// no message and no allocation (design: durable-objects.md sections 5 and 9).
//
// A copy may be read if it is of the tenure and session of the lease, and the lease is not over. The copy is loaded first, then the lease, and
// the clock is read last: so the right was held at the moment in which the copy was loaded, which is the read's point in time. A clock that
// somebody else keeps up to date would not do: after a stop of the process a reader may run before it.
//
// The lease ends by monotonic time, which stands while the machine sleeps; wall time does not. Where the two have moved against each other
// since the lease was published, a hit is no hit: the automaton, whose driver asks the system's clock that counts sleep, decides and publishes
// anew. So does whoever sets the wall clock, which costs a step.
package hit
