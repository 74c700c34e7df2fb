package raft

import (
	"time"

	etcd "go.etcd.io/raft/v3"

	"latchkey/replicagroup/order"
)

// Reads on a lease (replica-groups.md section 3.4, [Config].LeaseReads). A replica that hears its leader promises to help elect
// nobody else for an election time-out T by its own clock, from when it heard. A leader whose round of heartbeats a majority has
// answered knows that those promises hold until T after it sent the round, whatever it hears from then on: every majority that
// could elect another has a member in common with the one that answered. So it answers reads at once for T, shrunk by what the two
// clocks may differ. After half of that a read begins another round besides.
//
// The promise holds on every path. Who has made one neither forgets its leader, for a suspicion or because a view has left it
// out, nor campaigns, nor votes, before the time is over. It may have made one in a former life, so a replica that starts again
// keeps still for T first. There are two exceptions. A leader that campaigns leads no more. And a transfer of leadership is the
// leader's own wish: its voters are told so and keep no promise. That order may take its time on the way, so a leader that has
// given it has no lease in this term any more, also when the transfer fails.
//
// A majority means the present voters': from the proposal of a change of the view until after the last of its entries a leader
// has no lease. Nor does it have one asleep, or from an earlier sleep: a follower's promise may be over.
type lease struct {
	now   time.Duration // the newest reading of the driver's clock
	until time.Duration // when our promise ends

	// Of leaders, but for giveUp.
	began     time.Duration // when the round under way did
	confirmed time.Duration // when the newest round did that a majority has confirmed, with held set
	giveUp    bool          // forget the leader at until
	held      bool
	renew     bool // begin a round though no read waits for one
	handed    bool // leadership was to be handed over, in this term
}

// noteTime takes the time from an event that tells it.
func (e *Engine) noteTime(ev order.Event) {
	var now time.Duration
	switch ev := ev.(type) {
	case order.Recv:
		now = ev.Now
	case order.Timer:
		now = ev.Now
	case order.Read:
		now = ev.Now
	case order.Suspect:
		now = ev.Now
	case order.Rand:
		now = ev.Now
	}
	if e.cfg.LeaseReads {
		e.lease.now = max(e.lease.now, now)
	}
}

// promise is made when the leader is heard.
func (e *Engine) promise() {
	if e.cfg.LeaseReads {
		e.lease.until, e.lease.giveUp = e.lease.now+e.cfg.patience(), false
	}
}

func (e *Engine) promised() bool { return e.lease.now < e.lease.until }

// giveUp forgets a leader that could not be forgotten before. It reports whether it did.
func (e *Engine) giveUp(out *order.Actions) bool {
	if !e.lease.giveUp || e.promised() {
		return false
	}
	e.lease.giveUp = false
	if e.role != etcd.StateFollower {
		return false
	}
	e.arm(out) // a learner's next run
	e.forget(out)
	e.drain(out)
	return true
}

// leaseHolds reports whether a leader may answer a read without a round.
func (e *Engine) leaseHolds() bool {
	l := &e.lease
	return l.held && e.leading() && !e.changing() && l.now < l.confirmed+e.cfg.Drift.Shrink(e.cfg.patience())
}

// renewLease reports whether it is time for another round, and has it begin.
func (e *Engine) renewLease() bool {
	l := &e.lease
	l.renew = !e.open && l.now >= l.confirmed+e.cfg.Drift.Shrink(e.cfg.patience())/2
	return l.renew
}

// confirmLease takes note that a majority has answered the round under way. A driver that tells no time gets no lease.
func (e *Engine) confirmLease() {
	l := &e.lease
	if e.cfg.LeaseReads && !l.handed && !e.changing() && l.began > 0 {
		l.held, l.confirmed = true, l.began
	}
}

// endLease gives up the lease; of a leader that steps down also what is known of its term.
func (e *Engine) endLease() {
	e.lease.held, e.lease.renew = false, false
	if e.role != etcd.StateLeader {
		e.lease.handed = false
	}
}
