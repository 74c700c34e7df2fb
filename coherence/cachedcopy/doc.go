// Package cachedcopy is one node's copy of one object as an automaton (RR-5059 section 3.1, transitions of appendix A.2, cited at the line by
// their numbers; design: coherence-automata.md sections 3, 6.4 and 8).
//
// # States
//
//	                       read  write
//	INVALID                 no    no
//	WAIT_COPY_READ          no    no    READ sent
//	WAIT_COPY_WRITE         no    no    WRITE sent
//	SHARED                  yes   no
//	OWNER_SHARED            yes   no    master
//	WAIT_WRITE              yes   no    master, WRITE sent
//	OWNER_EXCLUSIVE         yes   yes   master
//
// # What the access path does
//
// The automaton belongs to whoever holds the copy's short mutex. That mutex is the pin of R17: a step under it changes rights and value at one
// instant, as threads see it.
//
//   - A read hit does not come here. The driver keeps an atomic pointer to the cell for it, nil while [Copy.Right] is [NoAccess], and stores it as the
//     [SetRight] action says, before it performs any later action of the same step: what acknowledges the loss of a right leaves after the
//     loss.
//   - A write hit takes the mutex, calls [Copy.Store] with a new cell, which says whether the right to write was there, and stores the pointer.
//   - A miss steps [ReadFault] or [WriteFault] and waits for a SetRight that suffices. Steps may be repeated; a fault that is under way is not
//     asked for twice (transitions 20 to 23). A caller that gives up tells nobody.
//   - Freezing, and the long hold of an Update, are [Hold] and [Release]. Between them nothing takes a right away: events that would are kept and
//     taken up by Release, in their order. How long is for the driver to bound. Threads that waited are served between the SetRight and the
//     next step, or under a Hold.
//   - [Destroy], or a message of a newer epoch, ends everything, a Hold too: the [Destroyed] action fails the calls of the old epoch. It comes
//     before what the new epoch brings in the same step.
//   - FIRST_TOUCH makes the object with its initial value, or the one of the checkpoint the epoch began from. The driver puts it into the message
//     when [Copy.Wants] says that it will be used; an object that never had a value has an empty one, not nil.
//   - When the last thread leaves the node, the driver steps [ThreadsGone] at every copy before the node tells the application manager (R10), and
//     [ThreadsHere] when one is there again. Callers without a thread of their own count as one: the application manager knows their node by
//     a guest (package appmanager). A node that wants to leave waits until [Copy.Leavable].
//   - [Repeat] says again what the copy waits for; the driver steps it now and then while [Copy.Waits].
//
// # Readers that the manager does not know of
//
// A copy that knows, or guesses, where the master is asks there first (Config.Direct). The master serves such a reader at once, keeps it in a list of its
// own, and takes its copy back before it obeys a FORWARDED_WRITE. Whoever is not the master says NONE, and the reader asks the manager, as the paper has it.
//
// # Departures from the paper
//
// R3, R4, R5, R6, R8 (the bound flag), R11, R14 and R17, at the lines that are them, and in docs/deviations.md. A REFUSED for a COPY goes to
// the object's manager, which can act on it, and not to the owner that sent the COPY. An owner that has handed over asks the manager whether
// the value it retains is needed still, by a TRANSFER_DONE of its own, so that a lost one costs nothing for long.
package cachedcopy
