// Package hold is the holder's side of a leased lock as an automaton: it asks, waits, confirms, renews, and says in time that
// a hold may be lost (lock-protocols.md sections 3 and 3.1).
//
// # States
//
//	IDLE       --Begin-------------------> ACQUIRING
//	ACQUIRING  --granted, in time--------> HELD
//	ACQUIRING  --granted, from the queue or too late to use--> CONFIRMING
//	ACQUIRING  --queued------------------> WAITING
//	ACQUIRING  --locked (try), refused---> DONE
//	WAITING    --pushed------------------> CONFIRMING
//	WAITING    --poll answered held------> HELD        (the poll is a renewal)
//	WAITING    --poll answered not held--> ACQUIRING   (the place is gone; a new request)
//	CONFIRMING --renewal answered held---> HELD
//	CONFIRMING --not held----------------> ACQUIRING   (a new request)
//	HELD       --deadline near, not held, jump--> LOST
//	HELD, LOST, CONFIRMING, WAITING, ACQUIRING --Release--> RELEASING --> DONE
//
// # The clock rules
//
//   - The deadline D of a hold is the instant before the first sending of the call that granted or renewed it, plus
//     shrink(TTL). The table's lease runs from when that call is executed, for stretch(TTL) of log time: with clocks within the
//     drift bound the holder stops first.
//   - D is moved by a confirmed renewal's own sending only. An acquire that is repeated counts from its first sending, because
//     the first copy may be the one that took effect.
//   - A grant that comes out of the queue was made at an unknown time. It is confirmed by a renewal and counted from that.
//   - A renewal is due TTL/3 after the sending of the last confirmed one; an unanswered one is repeated after TTL/30, as a
//     new call with a sending of its own.
//   - The loss is reported at D minus the guard (a tenth of the TTL), so that well-behaved work stops while the lease is still
//     ours. What is lost stays lost: a renewal that is answered later is dropped.
//   - Once a clock has jumped, no sending before it counts any more.
package hold
