// Package durable holds the words that the automata of the durable mode exchange: who asks in which session, what a leader answers in which
// tenure, and for how long (design: durable-objects.md).
//
// The value of a durable object lives in its replica group. Three automata keep it coherent:
//
//   - [latchkey/coherence/durable/store] is the group's replicated machine: values and versions. Every write is an entry of its log, and whether
//     a write takes place is decided there and nowhere else.
//   - [latchkey/coherence/durable/register] is at the group's leader, in memory: who has copies, until when, and which write waits for whom.
//   - [latchkey/coherence/durable/cachedobject] is on every node that uses objects of the group.
//
// Leases protect reads from a node's own copy, and nothing else. They assume that every clock runs between 1-ρ and 1+ρ of real time; clocks are
// never compared. Messages may be lost, doubled, delayed and reordered.
//
// Rules are D1 to D18 of the design, named at the lines that are them. Each can be taken away by a [Mutant], so that tests can show what it is
// for. docs/deviations.md lists what is different here. Package host has the first two run in replica groups, and package copies the third on nodes.
package durable
