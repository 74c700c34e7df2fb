// Package detector is a failure detector as an automaton: it says which of the peers it watches it suspects of having stopped,
// by their silence. It may be wrong, and a wrong suspicion may cost nothing but time.
//
// # What counts
//
// Anything a peer sends is a sign of life: an answer to a ping, a ping of its own, or any other message ([Heard]). So a peer that
// talks is pinged once a second only, and one that is silent for an interval is pinged once an interval. It is suspected when it has
// been silent for its patience, or at once when the last connection to it is lost ([Lost]), and trusted again at its next sign
// of life.
//
//	TRUSTED    --silent for its patience, lost--> SUSPECTED
//	SUSPECTED  --heard--------------------------> TRUSTED
//
// # Patience
//
// The patience is the interval, for which no ping may have been sent, plus the time an answer may take: the smoothed round trip plus
// four times its mean deviation (Jacobson, Karels: Congestion Avoidance and Control, 1988; RFC 6298), but no less than another
// interval and no more than [AnswerMax]. With an interval of 250 ms that makes 500 ms where answers take up to 150 ms, and more on
// a slower or jittery network, where one lost packet would otherwise look like a stopped peer. A peer that was never heard is given
// [FirstPatience].
//
// We do not compute the probability of a longer silence, as a phi accrual detector does: its estimate of a distribution that nobody
// knows ends in a time-out all the same, and this one is understood by whoever knows TCP.
//
// # Whose silence
//
// Silence is counted in ticks of our own, and a late tick counts as one that was not ([TickSlack] at most is added). Thus a process that
// is short of CPU, whose readers are as late as its timer, is as much more patient as it is slower. A tick that is later than [StallMin]
// says that we were stopped (SIGSTOP, suspended machine, long collection): our pings were not sent and nobody's answers can be missed,
// so every silence begins anew.
//
// # Boot nonces
//
// Pings and their answers carry a random number that the sender drew when it started. A peer that restarts has another one. Two
// numbers that replace each other again and again mean that two processes use one identity: [Alarm]. Whether they use one store,
// which is worse, package twins finds out.
package detector
