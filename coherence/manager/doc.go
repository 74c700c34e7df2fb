// Package manager is the object manager of RR-5059 as an automaton (section 3.1, transitions of appendix A.1, cited at the line by their
// numbers; design: coherence-automata.md sections 2 and 6.3). There is one for each object; it is replicated, and its replica group orders its
// inputs.
//
// # States
//
//	IDLE --2 first touch----------------------------------------> WAIT_WRITE_ACK --3--> IDLE
//	IDLE --5 reads--> WAIT_READ_ACK --7 all acknowledged--------> IDLE
//	IDLE --8 a write--> WAIT_CONFIRM --9--> WAIT_INV_ACK --11--> WAIT_WRITE_ACK --3--> IDLE
//	                    WAIT_CONFIRM --15 no longer wanted------> IDLE
//
// # What a host does
//
// It steps every replica with the inputs in the order of the group's log, and sends, at the leader only, what [Manager.Step] returns once the
// input is committed. It never has to know whether a message arrived: [Manager.Resend] says again what the present state waits for, and
// receivers absorb duplicates. It watches the nodes of [Manager.Concerns] and orders its detectors' opinions as inputs. A snapshot is the whole
// state ([Manager.Snapshot], [Restore]). A group that has lost its state begins with a greater [protocol.Life].
//
// # Departures from the paper
//
// R1, R2, R3, R5, R7, R8, R12, R15 and R16, at the lines that are them, and in docs/deviations.md. NONE answers a checkpoint that reads an
// object nobody has. A node whose message is of an older epoch is told by DESTROY.
package manager
