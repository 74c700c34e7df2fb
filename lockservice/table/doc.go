// Package table is the lock table of protocol "group": the automaton that every replica of a group runs on its log
// (lock-protocols.md sections 3.1 and 7). It knows locks, not bytes: lockservice turns commands and snapshots into both.
//
// A name is a lock, which one has alone or several share, or a semaphore, of which so many have a permit each, for as long as anybody
// has it or waits for it. Requests are granted in the order in which they stand in the log, and none is overtaken: who shares waits
// behind who came earlier and does not, so a writer waits for those before it only. Nothing here reads a clock: the caller
// says at which log time a command is executed, and a lease ends at the first step whose log time is at least that of its last
// renewal plus stretch(TTL).
//
// # States of a request
//
// A request is named by its client (a session) and a number the client never uses twice.
//
//	        Acquire, free                       Renew
//	none ------------------------> GRANTED ---------------> CONFIRMED
//	  |  Acquire, taken            ^ unconfirmed               |
//	  +-----------> QUEUED --------+                           |
//	                  | head of the queue when the lock falls free
//	                  |
//	Release, SessionEnded: leaves    Release, lease over: the next one is granted
//
// A grant that came out of the queue is told by an output, which may be lost, and is not a hold yet: its waiter confirms it
// by a Renew and counts its lease from the sending of that. Until that stands in the log nobody holds by the grant, so the table takes it
// back after [ClaimWithin]: a waiter that is gone costs no more, and what else its session waits for there, unless it was asked for since, goes
// behind the others. A waiter that has not asked where it stands for half of its TTL and 2 s is passed over when its turn comes, and is in the
// queue no more. A session that ends takes its queue entries along and lets its leases run out, because its
// program may live on and believe in them.
//
// # Delays and breaks
//
// A hold that ends by its lease may leave a lock delay, for which nobody is granted the lock. [Break] ends holds by their token, as
// their leases would; the table remembers the last few. The end of a session may make room for those who stood behind its waiters;
// they are granted by the next step, so that none of them is of a session that ends at the same entry.
//
// # Tokens
//
// overlay generation 8 | group generation 16 | counter 40 bits (replica-groups.md section 6.6). The counter belongs to the
// whole table and rises with every grant (those who share a lock at a time have one token), so a lock that nobody wants can be
// forgotten without a trace. It never wraps: a table that has used it up refuses with [TokensExhausted].
//
// # Departures
//
// An unconfirmed grant ends after [ClaimWithin], not after its TTL, and without a lock delay; waiters that are silent are passed over
// (lock-protocols.md section 3.1 has neither: a dead peer with n waiters then costs n times the TTL, until its sessions end). Both
// only take back what nobody holds, so they are no matter of safety.
//
// Release with token 0 gives up whatever its request has, also a confirmed grant: a client sends it only when it has given up
// that request for good, and it may not know that its last poll confirmed a grant. Likewise any Release takes its request out
// of the queue, where a late copy of an acquire may have put it again. Requests are named, so no other one is ever touched.
package table
