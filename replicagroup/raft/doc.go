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
// and dropped.
//
// # Changing the members
//
// A [order.Change] is an entry of the log; the view changes where it is delivered, at every replica. Learners come and go by
// one entry. A change of voters takes two: the first begins a joint view, in which commits and elections need a majority of the
// former voters and one of the coming; whoever leads when it is applied proposes the second, which ends it. A view is known by
// what was delivered, so a replica that starts again knows its snapshot's and learns the later ones as it delivers. What it may
// have forgotten is how far its log was committed. It must not take former voters for its own after others have left them, and
// does not: a second change in the log says that the first was committed (committedChanges).
//
// A new member starts with [Config].Join and an empty log. It gets the leader's snapshot, which may be older than itself.
//
// A removed replica goes on for thirty election time-outs, leading nothing and voting, and halts with
// [order.Removed]. Those who stay may not have heard that the joint view is over, when the one who knew died, and count it
// until they have. One that was cut off while it was removed hears nothing more from the others; its driver must ask.
// [order.Transfer] hands leadership over beforehand; a leader that is removed steps down.
package raft
