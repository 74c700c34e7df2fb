// Package copies is a node's part in durable objects: it drives the automata of package cachedobject, one for each group that the node uses objects of,
// and lets threads call them (design: durable-objects.md sections 4.2, 5 and 7).
//
// A read that finds a copy which may be read takes no lock, sends nothing and allocates nothing (package hit). Every other call is a step of its
// group's automaton, under the group's short mutex; user code never runs under it, nor is anything encoded or sent. What a step takes away is taken
// away before the mutex is free, and what tells others of it is sent afterwards.
//
// Time comes from one goroutine, which sleeps while no call waits and no lease is held: it says again what is not answered, first to who
// leads the group and then to all its voters, and renews the lease of groups whose copies are hit, watched or held. Copies that are not lapse silently;
// the next read asks whether the value is still the same one.
//
// A node keeps so many copies, and so many bytes of them, as [Config] says. What is too much is forgotten by CLOCK: what was not hit since the hand last
// came by goes first. What waits for an answer, or is held, stays.
package copies
