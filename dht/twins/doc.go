// Package twins is an automaton that notices a store which runs in two places: a directory that was copied and started beside its
// original, a backup that was put back, a disk that was set to an earlier state (replica-groups.md section 3.6). Two such processes
// are one member of their groups to everybody else, and can vote against each other.
//
// # What a start is
//
// A store counts its starts, and each draws a random nonce ([Boot]). The count is on the disk before anybody hears of it, and a
// store is in use by one process at a time. So one store that nobody copied or set back obeys two laws:
//
//  1. A count has one nonce.
//  2. Once a start was heard of, every earlier one is over: that process says nothing any more. What it said before may still come.
//
// A [Judge] hears of starts from the peers' own words, and alarms when a law is broken. The first is broken in plain sight. The
// second is, when an earlier start is heard of as alive, and what that means is the whole art: not that its words come late, by
// however much, nor that its connection is still there, but that it has answered a question which we asked after we had heard
// of the later start ([Sighting.Asked]). Only a living process can do that, so a store that nobody copied is never accused: not by
// crashes and restarts, however many and fast, nor by lost, late, doubled or reordered messages, nor by clocks, of which nothing is
// asked but that our own does not go back.
//
//	first heard of, or the count rises   Accept  as a restart should
//	the boot heard of last               Accept
//	an earlier count, not known alive    Late    its message is not used; who must know asks it a question
//	an earlier count, alive              Refuse  alarm
//	the same count, another nonce        Refuse  alarm
//
// Who was refused stays so, as far as memory goes: neither of the two may be believed, since each lacks promises that the other
// has given. A new store id ends it.
//
// # Whose word
//
// A peer's identity is proven, its store is what it says. So a peer can only bring refusal upon itself. That two peers of different
// identity claim one store is alarming by the same laws, but refuses neither: a group's member is a peer and a store together, so the
// copy is no member, and whoever could refuse by a mere claim could expel any member it likes.
//
// # What cannot be noticed
//
// A directory set back to a state of its last start, while nobody ran it: its next start has a count that nobody has heard of.
// A running machine that was copied with its memory: both have one nonce. And whatever nobody hears of, or has forgotten: memory is
// bounded ([PeersMax]).
package twins
