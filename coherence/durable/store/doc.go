// Package store is the replicated machine of a group that keeps durable objects: their values, versions and directories
// (design: durable-objects.md sections 2, 8).
//
// A [Command] is an entry of the group's log. Its condition is checked here, against what all earlier entries have made, so the safety of
// writes rests on nothing else: no lease, no clock, no opinion of a leader. A write that comes twice takes effect once: each object remembers
// what became of the last request of each recent writer, also when that was nothing, since the answer may be under way.
//
// A directory's listing is an object too. Creating and deleting an object changes it in the same entry.
//
// Which writes are settled, that is known to no cache as undone, is the leaders' business (package register). They leave a [Mark] of it in the
// log, so that the next one may show those objects at once (D13).
//
// Log time is that of the group's sessions: it stands while no entry comes. It serves to forget.
package store
