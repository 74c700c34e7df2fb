// Package protocol holds the words that the automata of the Rilling-Morin coherence protocol exchange: who speaks, in which epoch, and the
// messages of RR-5059's appendix A with those that its prose and our corrections add (design: coherence-automata.md sections 1, 6 and 8.2).
//
// Messages are values, and print as the paper spells them. Values of objects are not copied: a message points at an immutable [Cell].
//
// Every message carries the epoch. Before anything else a receiver applies rule E: what is older is discarded, and what is newer shows it to
// be a survivor of an execution that is over. Then it applies R6: what was sent to an earlier incarnation of a node is refused, since its
// numbers would pass for those of this one.
//
// Departures from the paper are rules R1 to R17; docs/deviations.md lists them with the traces that show each. Each rule can be switched off
// by a [Mutant], so that tests can show what it is for.
package protocol
