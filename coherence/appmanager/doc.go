// Package appmanager is the application manager of RR-5059 as an automaton (section 3.2; design: coherence-automata.md sections 6 and 8.2), and
// the node's side of it. There is one [Manager] for each application; it is replicated, and its replica group orders its inputs. A [Node] is
// what one node knows of the application's threads.
//
// # What it is for
//
// It knows which node executes a thread, and so which copies can be counted on: it acknowledges for nodes that execute none ([protocol.Query]),
// finds new owners for masters whose node has no thread left (injection), and begins a new epoch, a new execution from the last complete
// checkpoint, when a thread or a master is lost. Epochs keep executions apart; nothing waits for the old one to end.
//
// # States
//
//	RUNNING --Begin--> STOPPING --all threads stopped--> READING --all read: the cut--> SAVING --Saved--> RUNNING
//	STOPPING, READING, SAVING --Abort, a suspicion--> RUNNING
//	any --a thread's node suspected, an object lost--> RESTARTING --every thread is there--> RUNNING
//
// The checkpoint is one more reader: READ of every touched object, with its INVALIDATE_ACKs withheld until all are read (checkpoint.go).
//
// # What a host does
//
// It steps every replica with the inputs in the order of the group's log, and performs, at the leader only, what [Manager.Step] returns once the
// input is committed. [Manager.Resend] says again what the state waits for; it changes nothing. A COPY that comes for the manager carries the hash of the
// value's chunk, which the owner's driver has stored. Failure detectors watch [Manager.Concerns]; an opinion is repeated while it is held, since
// the manager may ask for it again. Choosing places for threads, and when to begin and give up a checkpoint, are inputs.
//
// On each node a driver steps the [Node] and performs its actions in their order: Leave is done before what follows it is sent (R10).
//
// # Guests
//
// Somebody who uses objects without being a thread has copies too, so the manager must not acknowledge for his node. He is created as a guest: a
// thread without a state, which neither moves nor stops for checkpoints, and which a restart does not create again.
//
// # Departures from the paper
//
// R9, R10, R12, R13, R15 and R16, at the lines that are them and in docs/deviations.md. START, THREAD, MOVED, MIGRATION_FAILED, TERMINATED and CREATE
// are acknowledged and repeated. A message of an older epoch is answered with DESTROY.
package appmanager
