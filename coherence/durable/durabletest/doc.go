// Package durabletest explores and simulates the automata of durable objects together, as they are shipped: a group's log and store, one leader
// with its register per term, of which those that were deposed are never told, and nodes. It has tests only.
package durabletest
