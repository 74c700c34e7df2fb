// Package history records what clients asked and what they were told, and judges whether a correct register or lock could
// have told them that.
//
// A [History] is safe for concurrent use. [History.Call] and [History.Return] take their places in one sequence under a
// mutex; so if one operation returned before another was called, the record says so. An operation that never returns stays
// open: it may have taken effect at any later time, or not at all.
//
// Linearizability is decided by porcupine, key by key. The verdict has three values: [Unknown] means that the time ran out
// before a decision and is never a pass; it is the zero value.
//
// # Several objects
//
// [History.CheckRegister] takes each key for itself: linearizable registers are linearizable together. A memory that promises
// less, that is sequential consistency, cannot be judged key by key: [History.CheckSequential] takes all keys at once.
//
// # Locks
//
// A lock is a lease with a fencing token, so a hold ends in one of these ways:
//
//   - a Release that was answered with success: it must name the token that holds, and be the holder's;
//   - a Release that stays open, or that found the lock not held: its client does not use the lock any more, so the hold
//     may have ended at any time since the call;
//   - [History.Lost]: the holder was told that its hold is over. From then on the lease may run out silently;
//   - [History.Killed]: the client is gone. From then on each of its leases may run out silently, and answers to
//     what it had open are not heard any more.
//
// Until one of these happened nobody else may be granted the lock: a lease that runs out under a holder who was not told
// makes the history illegal, which is the promise of the clock rules (lock-protocols.md section 3). Tokens must rise with
// every grant; gaps are allowed. An Acquire that stays open, whether it took effect or not, is left out: nobody knows its
// token, so nobody can release it, and the only traces it can leave are a gap and a wait, which are both allowed.
package history
