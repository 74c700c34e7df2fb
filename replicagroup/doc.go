// Package replicagroup runs the replica groups of one peer and finds those of others.
//
// A [Host] keeps a replica of every group this peer is a member of: an ordering engine (package raft), a table of sessions
// and services (package session), and a part of the peer's [Store]. A [Client] talks to groups wherever they are: it finds
// the group that owns a key, keeps a session with it, and has commands executed once, in order ([Client.Do]), or reads
// linearizably ([Client.Query]).
//
// # Who runs what
//
// Replicas are spread over shards, one goroutine each, which own everything of their replicas. A shard works in turns: it
// takes all events that have arrived, steps the engines, writes what all of them want stored in one batch, then lets go of
// the messages, one batch per peer. Stream readers, timers and clients only put events into its mailbox. A leader's plan of view
// changes (rule G6) runs there too. The creation of groups has two more goroutines: one for the parent leader's side, one for a
// member's (package placement). Large snapshots travel on streams of their own (package transfer). Groups that have nothing to do
// sleep, without timers and messages.
//
// # What is promised
//
//   - Nothing leaves that depends on a record before the record is stored (invariant I12).
//   - A command is answered after it was applied, and by a leader; the author of a command is the peer on whose
//     authenticated stream it came. Hosts forward nothing.
//   - A replica exists because the parent's log, or for a later member the group's own, says so, in the store that log names, and
//     only there.
//   - A peer whose store fails stops its replicas at once.
//
// # Departures from the design text
//
// A replica serves requests in whatever view they were sent, and tells who had another one in mind of the present one with the
// answer: the log gives commands their order in any view, so a stale cache costs nothing. The root is a group like any other, but
// that nobody outside of it is believed about it while one of its members answers. docs/deviations.md has the rest.
package replicagroup
