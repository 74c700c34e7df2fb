// Package driver turns the crank of automata in a running node: a clock that does not stop while the machine sleeps, and
// a loop in which one goroutine owns one set of automata.
//
// Everything else reaches the owned state as an event through a bounded [Mailbox]. So the automata need no lock, and the
// order in which they see events is the order in which the mailbox took them.
package driver
