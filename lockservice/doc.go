// Package lockservice takes locks by name that hold across machines: one holder at a time among all peers of an overlay.
//
// [Service] takes them for a program, over a [Backend]: the replica groups of an overlay ([NewGroupBackend]) or a daemon's API.
// A [Handle] is one held lock. [Machine] is the other side, a state machine of every replica group. [Guard] and [FileGuard]
// stand before the resource.
//
// # A lock is a lease
//
// What this package can promise, and what it cannot. A lock is granted for a time, its TTL, and renewed in the background. A
// holder that crashes, or is cut off from the group, loses it when the time is over; otherwise nobody else could ever have
// it. Hence:
//
//   - While [Handle.Context] has not ended, nobody else has been granted the lock, if the clocks of the holder and of the
//     group's leader keep their rates within the overlay's bound. A holder counts its lease from before it sent the request,
//     less the drift, and its context ends a tenth of the TTL earlier still; the group counts from when it executed the
//     request, plus the drift. No clock is compared with another, and wall time is not used.
//   - Code that looks at the context, or at [Handle.Remaining], and then acts, can be held up in between for any time: by
//     the garbage collector, the scheduler, a suspended machine, a packet in a queue. The lease may be over when the effect
//     happens. No lock service can prevent this from its side.
//   - Only the resource can: pass [Handle.Token] along, and let the resource refuse a token lower than one it has seen. Tokens
//     rise strictly with every grant of a lock, whatever clocks do. With that check, a delayed holder does no harm. A resource
//     that cannot check tokens is exactly as safe as the assumption about clocks and delays.
//
// Locks are granted in the order in which requests reach the group; nobody starves. They are not re-entrant: who asks again
// for what it holds queues behind itself. Contenders in one process are to each other as strangers are. A graceful
// [Service.Close] releases what is held; a crash lets the leases run out.
//
// # Protocol group
//
// The lock's name is hashed to a key; the replica group that owns the key keeps the lock as part of its replicated state
// (package lockservice/table), and acquire, renew and release are commands of its log. Leases are counted in the log's own
// time. The holder's rules are the automaton of package lockservice/hold; this package turns its crank with one goroutine
// per lock. An uncontended lock takes one round trip to the group, a hand-over one and a half: the leader pushes the grant to
// the next waiter, which confirms it by a renewal before it holds. Pushes may be lost, so waiters also ask, each fifth of
// their TTL (0.2 s to 5 s).
//
// Source: lock-protocols.md sections 2.5 (guards), 3 and 3.1 (time), 7 (semantics); product.md section 3.
package lockservice
