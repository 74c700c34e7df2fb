// Package session makes the commands of a group's log take effect at most once, and keeps the group's log time.
//
// It is the part of a group's state machine that all services share (replica-groups.md section 2, "State machine side").
// A [Table] stands between the log and the services: every replica of a group feeds it the same entries in the same order
// and so holds the same table. A [Client] is the other end: one session in one group, as an automaton that a driver turns.
//
// # Log time
//
// The leader's host stamps every entry with its boot nonce and the time since that boot on a clock that goes on during
// suspend. Apply adds the difference of two consecutive stamps of one boot; a stamp of another boot, or one that goes back,
// adds nothing. Log time hence never runs faster than the clock of the leader it passes under, and a change of leader only
// lengthens what is measured with it. Leases and sessions end by log time only; a proposer's own clock is never looked at.
//
// # Sessions
//
// A session is opened by a command of its peer, which is bound to it: the same id from another peer is refused. It lives on by
// any command of its own and ends when stretch(TTL) of log time has passed without one, or when it is closed. The ids of
// the last [EndedMax] ended sessions are remembered, so that a late copy of an open does not bring a session back to life
// with an empty memory of what it has done; a copy delayed past that many ends would.
//
// Results are kept for the commands above Acked, at most [WindowSize] of them; a repeat gets the stored result.
//
// # Keys that another group serves
//
// A service that is a [Gate] says which keys are served elsewhere; commands about them, of services that can tell ([Splitter]), get [Moved]
// as their result, once and for all. While it runs it may take a key out of the other services, with the sessions of who has something
// there, and put back what came so from another group ([Parts]).
//
// # What one entry does, in order
//
//	log time advances
//	sessions that are over end, by rising (deadline, id); each service hears of each, by rising service name
//	Tick, for the services whose deadline has come, by rising name
//	the command runs, or is refused
//
// Sessions end before the services' deadlines so that a lock is not handed to a waiter whose session is over at the same
// entry.
package session
