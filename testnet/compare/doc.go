// Command compare runs the same workloads on latchkey's locks and on etcd's (concurrency.Mutex over three embedded members), in turns in the
// same run, and prints the figures side by side. It is a module of its own, so that nobody who imports latchkey gets etcd.
//
//	cd testnet/compare && go run . -h
//
// # What is compared
//
// Both have three voters, TCP on loopback, and clients that vote in nothing; members and clients share the machine. Without sync, latchkey
// keeps its stores in memory and etcd its own in files that it does not sync; with -sync both write to disk and sync before they answer. Each
// client of etcd has a session of its own, as separate programs would, and all talk to the member that leads, which is the fastest there
// is: asked through another, etcd takes a hop more. Each client of latchkey has a session of its own too, over one peer that is not
// in the lock's group.
//
// Latchkey stands there twice: by protocol sigma, whose voters keep locks in memory by design and write nothing for one, whether -sync is given or
// not; and by protocol group, whose every acquire is an entry of the group's log.
//
// # Workloads
//
//   - uncontended: one client takes and gives back one lock.
//   - names: sixteen clients, each with a name of its own.
//   - contended: 2, 32 and 128 clients want one lock. Each hold checks that nobody else has it.
//   - failover: members as processes of their own, on disk, with sync on both sides; one client takes and gives back one lock while the member
//     that leads is killed (SIGKILL), and in another run frozen (SIGSTOP). The figure is the longest time between two holds.
//
// Latencies are of the acquire alone and rates of acquire and release. Jain's index of fairness is over the holds of each client: 1 when all had as many,
// 1/n when one had all. CPU time is that of all members and clients together.
package main
