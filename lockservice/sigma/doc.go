// Package sigma is the Sigma lock protocol over the views of a replica group, as two automata: a [Replica] for what one voter
// keeps of all locks of one group, and a [Client] for one wish for one lock (lock-protocols.md sections 1 to 3 and 9; rules are
// cited at the line by their names there). An uncontended lock costs one round trip to a majority and no consensus.
//
// # How it works
//
// A client asks all n voters of the group's view. Each voter grants a name to one request at a time, with a number it
// proposes for the token, and queues the others by the Lamport time at which they were made. A client that m = a majority of voters
// have granted takes the highest number proposed; once m grants carry it, that is its token and it holds. A client that cannot
// get a majority gives back the grants that somebody older waits for (rule Y2), so the oldest request always wins. Leases cover
// those that die: a client counts from before it sent what a replica echoes, a replica from when it heard it.
//
// The log of the group is needed for two things only. A view change (EntryView) seals the tables of the old view and opens the
// new one empty; a voter grants there once it has the sealed tables of a majority of the old view, and then to nobody who might
// conflict with an owner that a table names, until that one has spoken or its lease is over. And the numbers of tokens come
// in ranges, one for each view, that the log fixes (EntryRaise).
//
// # States of a client
//
//	IDLE      --Begin------------------------------> WAITING
//	WAITING   --m grants carry one number----------> HELD
//	WAITING   --refused by more than n-m, Try------> DONE
//	HELD      --deadline near, replaced, jump------> LOST       (the lock is given back at D)
//	HELD, LOST, WAITING --GiveBack-----------------> RELEASING --acknowledged, or the leases are over--> DONE
//	LOST      --D, with a lock-delay---------------> DONE       (the lease runs out, and the delay with it)
//
// A MOVED to a newer view changes none of them: a waiter drops its grants and asks in the new view with its old place, a holder
// keeps its token and deadline and claims the lock there. A client that is done still answers grants, so its driver keeps it
// for a TTL, and needs no timer for it.
//
// # One name, one mode
//
// A name can be taken over by the table in the group's log (lock-protocols.md section 10.1): for what only the table can do, or to be
// broken. Voters that hear of it from the log stop serving the name, tell its clients by MOVED, and report who may hold it
// (EntryReport). A client that is told asks the table from then on, by [Order] actions, in the state in which it is: a waiter drops its
// grants and waits there; a holder claims, keeping its token and its deadline, and renews there. A name goes back when a view ends and
// nobody has or wants it; a client that hears so by [AnswerElsewhere] asks the voters again.
//
// # States of a replica
//
//	BOOTING   --Barrier----------------------------> SERVING under embargo      (S8)
//	SERVING   --View in the log for T_a------------> SUSPENDED                  (S1)
//	any       --View applied-----------------------> UNSETTLED                  (S2; the old table is frozen)
//	UNSETTLED --m(v) reports, or settleAt----------> SERVING                    (S4)
//
// A name is served before the whole view is settled once m(v) voters have said all they know of it: in a piece of their reports, or because
// somebody wants it and the replica has asked them (PULL of a name, section 9.9).
//
// # What a driver does
//
// It feeds a replica what arrives, timers, what the entries of the group's log add up to, in order as they are applied (Applied: package
// lockservice keeps it), the View
// entries as they are appended and not yet applied (Appended, Truncated), and after a restart the Barrier. It sends what the
// automata send, over authenticated streams: a message speaks for the node it comes from, and the session of a request belongs to
// the node that used it first. It hands Propose actions to the group's leader. Lamport clocks are kept for the process: a client
// that starts at the clock of what its process has heard does not overtake those who came before it.
//
// Time is the node's own, monotonic and counting through sleep, and comes in the event; nothing here reads a clock, draws
// chance or blocks.
package sigma
