package raft

import (
	"slices"
	"time"

	etcd "go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"

	"latchkey/replicagroup/order"
)

// tickTimer is the engine's only timer: the heartbeat of a leader, the patience of everyone else.
const tickTimer order.TimerKind = 1

// electionClock is the follower's side of an election (replica-groups.md section 3.1). The library draws its election
// time-out from a random source of its own, so followers and candidates never tick it; the engine counts here and tells it
// when to forget a leader and when to campaign.
//
// A limit is a whole number of heartbeats but for the last one, which is cut to a random length: replicas whose timers run in
// step would otherwise campaign in the same instant once in T elections.
type electionClock struct {
	rng     uint64 // state of a splitmix64 generator
	elapsed int32  // heartbeats since the leader was heard
	limit   int32  // campaign when elapsed gets here
	tail    time.Duration
	tries   int // campaigns since the leader was heard
	epoch   uint64
}

func (c *electionClock) seed(bits uint64) {
	c.rng ^= bits
	c.next()
}

// next is splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
func (c *electionClock) next() uint64 {
	c.rng += 0x9e3779b97f4a7c15
	z := c.rng
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// draw chooses when to campaign. After a leader's silence that is between T+1 and 2T-2: not before the others, whose patience
// ends at T by clocks one heartbeat coarse, have forgotten it too, and early enough for a repetition within 2T. The first
// repetition comes soon: a campaign fails mostly because two met or because a voter had not lost patience yet, and both are
// over within a heartbeat or two. Later ones are slow again, since where messages take long a repetition disturbs the
// campaign it repeats.
func (c *electionClock) draw(cfg config) {
	t := cfg.ElectionTicks
	if c.tries == 1 {
		c.limit = 2 + int32(c.next()%uint64(max(t/3, 1)))
	} else {
		c.limit = int32(t) + 2 + int32(c.next()%uint64(max(t-3, 1)))
	}
	c.tail = 1 + time.Duration(c.next()%uint64(cfg.Heartbeat))
}

// rest starts a new wait: a leader was heard, or a vote given.
func (c *electionClock) rest(cfg config) {
	c.elapsed = 0
	if c.tries > 0 {
		c.tries = 0
		c.draw(cfg)
	}
}

// hasten brings the next campaign forward: the timer's next run brings it, whenever that is.
func (c *electionClock) hasten() { c.elapsed = max(c.elapsed, c.limit-1) }

// arm sets the timer for its next run.
func (e *Engine) arm(out *order.Actions) {
	after := e.cfg.Heartbeat
	if e.role != etcd.StateLeader && e.clock.elapsed+1 == e.clock.limit {
		after = e.clock.tail
	}
	if e.lease.giveUp && e.promised() {
		after = min(after, e.lease.until-e.lease.now)
	}
	e.armIn(after, out)
}

func (e *Engine) armIn(after time.Duration, out *order.Actions) {
	e.clock.epoch++
	out.Timers = append(out.Timers, order.SetTimer{
		Kind: tickTimer, Epoch: e.clock.epoch, After: after, Beat: after == e.cfg.Heartbeat,
	})
}

// tick is one run of the timer.
func (e *Engine) tick(out *order.Actions) {
	if e.role == etcd.StateLeader {
		e.beats = (e.beats + 1) % int32(e.cfg.ElectionTicks)
		e.raft.Tick()
		e.tickSnapshots()
		return
	}
	e.clock.elapsed++
	if e.clock.elapsed == int32(max(e.cfg.ElectionTicks-2, 1)) {
		e.wakeLeader(out) // it may sleep, and we have not heard that
	}
	if e.promised() {
		return
	}
	if e.clock.elapsed >= int32(e.cfg.ElectionTicks) {
		// The promise not to help depose this leader (PreVote, CheckQuorum) is over.
		_ = e.raft.ForgetLeader()
	}
	if e.clock.elapsed >= e.clock.limit {
		e.campaign()
	}
}

// campaign asks the voters for leadership; a learner only waits on. No leader is known at this point: either the time-out has
// passed, or a suspicion or campaign has made the engine forget it, and hearing of one puts the campaign off.
func (e *Engine) campaign() {
	e.clearBallots()
	e.clock.elapsed = 0
	e.clock.tries = min(e.clock.tries+1, 2)
	e.clock.draw(e.cfg)
	if e.rank(0) >= 0 && e.term < termMax {
		_ = e.raft.Campaign()
	}
}

// rank returns this replica's place among the voters without one of them, -1 for a learner.
func (e *Engine) rank(without order.ReplicaID) int {
	i := slices.Index(e.voters, e.cfg.Self)
	if without != 0 && without < e.cfg.Self && slices.Contains(e.voters, without) {
		i--
	}
	return i
}

// begin chooses when to campaign for the first time. Nobody is known to lead, so the voters start as after a suspicion, one
// heartbeat later: a group that comes up leads itself at once, and where there is a leader its followers refuse the pre-vote.
// A lone voter does not wait at all.
func (e *Engine) begin(out *order.Actions) {
	e.clock.draw(e.cfg)
	rank := e.rank(0)
	if rank < 0 {
		e.arm(out)
		return
	}
	if e.promised() {
		e.arm(out)
		return
	}
	e.clock.hasten()
	if len(e.voters) == 1 {
		e.armIn(0, out)
		return
	}
	e.armIn(e.cfg.Heartbeat+e.stagger(rank), out)
}

// stagger is how long the voter of this rank lets those before it try alone: half a heartbeat for each, 50 ms by default.
func (e *Engine) stagger(rank int) time.Duration { return time.Duration(rank) * e.cfg.Heartbeat / 2 }

// suspect forgets a leader that the node's detector takes for dead, and campaigns soon: the voter with the smallest id at
// once, the k-th after it k staggers later. A wrong suspicion of one node deposes nobody, since the others still hold to the
// leader and refuse the pre-vote; the next heartbeat ends it. Hearing of the same leader again changes nothing before that,
// so a detector that repeats itself cannot put the campaign off.
func (e *Engine) suspect(m order.ReplicaID, out *order.Actions) {
	e.setSuspected(m, true)
	if m == 0 || m != e.lead || m == e.cfg.Self {
		return
	}
	e.wake(out)
	e.forget(out)
	e.drain(out)
}

// forget forgets a leader that is gone, and campaigns soon if this is a voter.
func (e *Engine) forget(out *order.Actions) {
	if e.promised() {
		e.lease.giveUp = true
		e.arm(out)
		return
	}
	_ = e.raft.ForgetLeader()
	if rank := e.rank(e.lead); rank >= 0 {
		e.clock.hasten()
		e.armIn(e.stagger(rank), out)
	}
}

// link lets a leader find out what a member has, once messages to it were lost or flow again: the library probes it, beginning
// with the next heartbeat's answer, instead of counting on appends and snapshots that went astray.
//
// Where the group sleeps nothing was under way. A follower makes sure then that the leader is still there, and still leads; and a
// leader that can be heard again, that it still does: the group may have gone on without it, and left it out even, so that nobody
// would tell it.
func (e *Engine) link(l order.Link, out *order.Actions) {
	if e.asleep {
		switch _, ok := e.view.Member(l.To); {
		case !ok || l.To == e.cfg.Self:
		case l.To == e.lead:
			e.called(out)
		case l.Up && e.role == etcd.StateLeader:
			e.wake(out)
			e.passOn(l.To, out)
		}
		return
	}
	if _, ok := e.view.Member(l.To); !ok || l.To == e.cfg.Self || e.role != etcd.StateLeader {
		return
	}
	e.raft.ReportUnreachable(uint64(l.To))
	e.raft.ReportSnapshot(uint64(l.To), etcd.SnapshotFailure)
	e.drain(out)
}

// carried takes note of how a snapshot fares that the driver carries apart. While it does, it is not given up. One that the
// driver has given up is found missing by the next heartbeat's answer, and sent anew.
func (e *Engine) carried(c order.Carried, out *order.Actions) {
	if e.role != etcd.StateLeader {
		return
	}
	for i, m := range e.view.Members {
		if m.ID != c.To || m.ID == e.cfg.Self {
			continue
		}
		e.peers[i].snapTicks = 0
		if e.asleep { // it is about a member that lacks something, and not gone
			e.wake(out)
			e.passOn(m.ID, out)
		}
		if c.State == order.Failed {
			e.raft.ReportSnapshot(uint64(m.ID), etcd.SnapshotFailure)
			e.drain(out)
		}
	}
}

// tickSnapshots gives up snapshots that were not acknowledged in time, nor reported to be under way: the library itself waits for ever.
func (e *Engine) tickSnapshots() {
	i := 0 // members are visited by rising id, as they stand in the view
	e.raft.WithProgress(func(_ uint64, _ etcd.ProgressType, pr tracker.Progress) {
		if pr.State == tracker.StateSnapshot {
			e.peers[i].snapTicks++
			e.peers[i].pursuing = true
		} else {
			e.peers[i].snapTicks = 0
			e.peers[i].pursuing = e.peers[i].pursuing && pr.Match+trailingEntriesMax/2 < e.log.last()
		}
		i++
	})
	patience := 2*e.cfg.ElectionTicks + snapshotTicksPerMiB*(len(e.log.snap)>>20)
	for i, m := range e.view.Members {
		if int(e.peers[i].snapTicks) > patience {
			e.peers[i].snapTicks = 0
			e.raft.ReportSnapshot(uint64(m.ID), etcd.SnapshotFailure)
		}
	}
}

// needed returns the index after which members still need the log that were sent a snapshot, at most index.
func (e *Engine) needed(index uint64) uint64 {
	if e.raft == nil {
		return index // it sleeps
	}
	i := 0
	e.raft.WithProgress(func(_ uint64, _ etcd.ProgressType, pr tracker.Progress) {
		if pr.State == tracker.StateSnapshot {
			index = min(index, pr.PendingSnapshot)
		} else if i < len(e.peers) && e.peers[i].pursuing {
			index = min(index, pr.Match)
		}
		i++
	})
	return index
}
