// Package curves measures in virtual time how a lock does as ever more clients want it: Sigma by itself (lock-protocols.md section 1) with the
// rule Y2 that we ship and the paper's Y1, and the strawman that the paper sets out from, in which a client that cannot get m of n
// replicas gives everything back and tries again after a random while. It reproduces the reference curves of section 6.
//
// The automata are those that peers run; the strawman's are here. A world is the simulator's, without faults: n replicas and the clients,
// each a node of its own. Equal seeds give equal results to the last digit.
//
// # The network
//
// The delay between two nodes, one way, is drawn once for the pair from the log-logistic distribution with median 69 ms and shape 3.6: mean
// 79, 99th percentile 247, 99.9th 470 ms, which is what section 6 states (80, 246, 491) as far as it says how. Each message takes up to a
// tenth more or less. How far clients are from replicas decides how long an uncontended lock takes, so figures are the means of
// several worlds, each with delays of its own.
//
// # The strawman
//
// It asks all n replicas; each grants to one client and refuses others. With m grants it holds. Once m cannot be reached any more it gives
// back what it got and waits: for a random part of a window, either of fixed length or doubled with each failure in a row.
package curves
