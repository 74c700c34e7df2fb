// Package raft is the default ordering engine: [order.Orderer] over the Raft library go.etcd.io/raft/v3, for groups of
// 2f+1 voters of which f may crash (replica-groups.md section 3).
//
// The library is not a deterministic automaton by itself: it draws its election time-outs from a random source of the
// process. So the engine owns the election timer. Leaders tick the library once per heartbeat, which draws nothing;
// followers and candidates never do, and the engine tells the library when to forget a leader and when to campaign
// (election.go). Everything else follows from the events: same image and events, same actions and [Engine.Hash].
//
// # Driving it
//
// The first event a driver sends is a [order.Rand]; the first step, whatever the event, asks for what a start needs: the
// first configuration of a new group to be made durable, the image's snapshot to be handed to the machine ([order.Install];
// none at the very beginning of a group, index 10, where the machine is empty), committed entries above it to be delivered,
// and the timer. A restarted replica thus delivers again what lies above its snapshot.
//
// Reads and proposals are taken by the leader only, others answer [order.ErrNotLeader]. A proposal taken while its leader
// steps down ends in [order.ErrDropped] and may still take effect. Reads that arrive together share one round of heartbeats.
// [order.Status].First is the index after the snapshot, as a store keeps the log; a leader keeps a short tail below it in
// memory for members that are a little behind.
//
// # What it persists
//
// Each write holds a snapshot, entries and the state (term, vote, commit index), in this order and each only if it changed. A
// store that makes a prefix of a write durable and loses the rest leaves a replica that has not seen that write's message,
// which is safe, because nothing that depends on it has left. A lost write under a durable later one is not.
//
// # What it refuses
//
// Members are trusted to follow the protocol, not to be free of bugs or to have kept their disks. The library panics on
// messages no correct member sends, so each message is checked before (guard.go); what fails is counted ([Engine.Dropped])
// and dropped. Changes of membership have no encoding in this version: a group keeps its first view.
package raft
