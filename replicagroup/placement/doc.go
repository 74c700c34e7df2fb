// Package placement decides which replica group owns a key, and sees to it that there is never more than one
// (replica-groups.md section 6, design B).
//
// The key space is cut into 2^Depth prefixes. The overlay's [Genesis] document names the root group; its hash is the
// overlay's id. The root runs a [Directory], a deterministic state machine, and a prefix's group exists because, and only
// because, a Create command was committed there. What a node believes about distances only decides who is asked to become
// a member. The parts, each pure and owned by one goroutine at a time:
//
//   - [Genesis]: the document of the founding act (rule G1), which writes the root's beginning into the founders' stores. No
//     start ever founds.
//   - [Descriptor]: whom to ask about a group. A hint, never authority.
//   - [Directory]: the parent group's machine (service [Service]).
//   - [Creator]: the parent leader's side of rule G3: look up, ask, propose, send Starts until members report in.
//   - [Hosting]: a member's side of rule G3: confirm with the parent, start once, report in.
//
// One creation, as the [Creator] sees it:
//
//	state      event                                   next       actions
//	-          Ensure                                  lookingUp  LookUp
//	lookingUp  Closest                                 asking     AskHost to the 2f+1 closest
//	asking     HostAnswer no, NoAnswer, ask timed out  asking     AskHost to the next closest
//	asking     2f+1 accepted                           proposing  Propose Create
//	asking     nobody left, fewer than 2f+1 accepted   pausing    (then LookUp again; settles after some rounds)
//	proposing  Committed (ours or an earlier one)      starting   SendStart to the members that have not reported in
//	starting   Started                                 starting   Propose Reported; AnswerEnsure once a majority has reported in
//	starting   Started by the last member              -          the same; the creation is forgotten
//	any        LeaderChange, not leading               -          AnswerEnsure with ErrNotLeader
//
// A group that lost its majority for good is given a next generation in the same way ([ReviveLost] in place of Ensure, Revive
// in place of Create), of other members, without its state. The command names the generation that is lost, so it makes one
// next generation whoever repeats it. A member of an earlier generation puts what it has aside ([Bury]) once the parent
// has told it so.
//
// # Own groups
//
// A single key can have a group of its own (rule G7), made and taken back by the group of its prefix. The parts are alike, one level
// down, and no host runs them yet (docs/protocols/own-group.md):
//
//   - [Keys]: the machine of the prefix's group (service [OwnService]), a Directory of own groups that also holds what is handed over.
//   - [Own]: the machine of the own group, which serves between its Begin and its Seal.
//   - [NewKeyCreator]: a Creator that looks for peers at the key.
//
// # Departures from the design text
//
// The genesis document also lists the founders' addresses and store ids, so that a joiner knows whom to call and the root's
// first view is complete in it. It carries TTLMax, the longest lock lease, because every peer must use the same. A
// descriptor carries no signature: a Start is confirmed by a linearizable read at the parent instead. A member reports in
// by its answer to Start.
package placement
