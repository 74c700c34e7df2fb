// Package durabletest explores and simulates the automata of durable objects together, as they are shipped: a group's log and store, one leader
// with its register per term, of which those that were deposed are never told, and nodes. For tests of those who drive the nodes there is a [Leader] that runs in this process.
package durabletest
