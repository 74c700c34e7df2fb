package raft

import (
	"bytes"

	etcd "go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"

	"latchkey/internal/invariant"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/quorum"
)

// A group that nobody asks anything sleeps (replica-groups.md section 3.3): no replica of it has a timer set, and it costs
// its nodes nothing but memory. That its members live is then noticed by the driver's failure detector, once for each pair of
// nodes instead of once for each group.
//
// Falling asleep. A leader that has had nothing to do for [Config].Quiesce, and whose members all have acknowledged the whole
// log, which is committed and applied, sends Quiesce{term, commit} after its last append and stops its timer. A follower takes
// it for a heartbeat, too. If it then has the same term and commit index, nothing beyond, and everything on its disk, and its
// detector does not suspect the leader, it stops its timer as well; otherwise it goes on and says so by a Wake.
//
// A member that is gone, by the detector's word, keeps nobody awake, whatever it lacks, as long as enough others to be a majority with the
// leader have acknowledged everything: a group would never sleep otherwise between the death of a member and its return, which may take
// days where no other peer can have its place. It is told to sleep like the others, and objects if it can hear that after all.
//
// What sleeps is small. A follower that has applied its whole log lets go of the library's part of it, which is made anew when it
// wakes, and so does a leader (resume.go). A follower's could be lost in a crash at any time, so nothing of it can matter but what the engine knows anyway: term, vote and
// commit index, which it takes from here and not from the disk (the commit index there may be older), the log, the configuration,
// and that there is a leader, which the library is told by a heartbeat. For the others nothing of that can be seen: nobody is sent
// anything, and no promise is forgotten that the disk does not hold. It is no restart for the driver either: a machine goes on, and
// the log time of its group with it.
//
// Waking up. Who leads wakes by a proposal, read, change or transfer, and by any message but a late answer to what was over
// before it slept, and when the detector trusts a member again that lacks something; where it was not asked for anything it sends heartbeats
// at once. Who follows wakes by the same, by a suspicion of the leader,
// and by a link to the leader that broke or came back, and a leader by any link that came back; unless it was woken by the leader, it wakes the leader in turn. It waits
// the whole election time-out from then on: a late message wakes, and deposes nobody. Only a suspicion lets it forget the leader
// and campaign, as it does awake.
//
// What may go wrong:
//
//   - A Quiesce is lost. Its follower hears nothing more and would campaign. Two heartbeats before it forgets the leader it
//     sends a Wake, which a leader that is awake ignores. So the whole group wakes, and sleeps again later.
//   - A suspicion comes before the follower falls asleep. It is remembered until the detector takes it back, and nobody falls
//     asleep under a leader that he suspects: a dead one's last Quiesce may be late.
//   - The leader restarts, and is a follower now. It campaigns as every voter does that knows no leader, and goes on; who
//     sleeps gives up a leader that campaigns, and wakes.
//   - A follower restarts. Its first campaign is refused by those that sleep, since they know a leader, and wakes them all; the
//     leader's heartbeat ends it.
//   - A member that lacks something is back while the leader sleeps. Its voter has no leader that it hears, campaigns, and so wakes
//     everybody; a learner's node is trusted again, or its link comes back, whichever the leader hears of first.
//   - Another leader was elected while this one sleeps, cut off. That one cannot put the group to sleep before this one, too,
//     has acknowledged its log, and so has woken up and stepped down.
//   - The leader's replica is gone while its node lives on. Whoever asks a follower for something wakes it, and it finds out.
//
// In short: a voter that is awake and has no leader campaigns again and again, and thereby wakes everybody; a replica that
// sleeps has a leader whose node the detector watches.

// Messages of the engine's own: numbers that the library does not use.
const (
	// msgQuiesce says that the leader of a term falls asleep, and everything up to commit with it.
	msgQuiesce pb.MessageType = 0x40
	// msgWake says that the sender is awake and takes the receiver for its leader.
	msgWake pb.MessageType = 0x41
)

// quiesce counts a leader's idle heartbeats, and puts the group to sleep after enough of them.
func (e *Engine) quiesce(out *order.Actions) bool {
	if e.role != etcd.StateLeader || e.cfg.Quiesce < 0 {
		return false
	}
	if !e.nothingToDo() {
		e.idle = 0
		return false
	}
	if e.idle++; e.idle < int32((e.cfg.Quiesce+e.cfg.Heartbeat-1)/e.cfg.Heartbeat) {
		return false
	}
	for _, m := range e.view.Members {
		if m.ID != e.cfg.Self {
			e.tell(msgQuiesce, m.ID, out)
		}
	}
	e.sleep(out)
	return true
}

// nothingToDo reports whether a leader has neither anything to do for anybody nor anything that a member might lack.
func (e *Engine) nothingToDo() bool {
	if !e.leading() || e.changing() || e.applied != e.log.last() || e.commit != e.log.last() ||
		e.proposals.len()+len(e.reads)+e.writes.len() > 0 || e.open || e.raft.BasicStatus().LeadTransferee != 0 {
		return false
	}
	settled, behind, there := true, false, 0
	i := 0 // members are visited by rising id, as they stand in the view
	e.raft.WithProgress(func(id uint64, kind etcd.ProgressType, pr tracker.Progress) {
		gone := e.peers[i].suspected && id != uint64(e.cfg.Self)
		whole := pr.Match == e.log.last() && pr.State == tracker.StateReplicate
		if settled, behind = settled && (whole || gone), behind || !whole; whole && !gone && kind == etcd.ProgressTypePeer {
			there++
		}
		i++
	})
	return settled && (!behind || there >= quorum.Majority(len(e.voters)))
}

func (e *Engine) sleep(out *order.Actions) {
	e.asleep = true
	e.endLease()
	e.applyResp, e.scratch, e.offering = nil, nil, nil
	e.writes.rest()
	e.unapplied.rest()
	e.proposals.rest()
	e.clock.epoch++ // a timer that ran out already means nothing
	out.Timers = append(out.Timers, order.SetTimer{Kind: tickTimer, Epoch: e.clock.epoch, After: -1})
	if e.role == etcd.StateLeader {
		e.rest()
	}
	e.log.fold()
	e.doze()
}

// forgetSnapshot lets go of a snapshot that holds nothing but the view, as that of a group's beginning does.
func (e *Engine) forgetSnapshot() {
	if e.log.snap != nil && bytes.Equal(e.log.snap, e.bareSnapshot()) {
		e.log.snap = nil
	}
}

// recallSnapshot makes it again.
func (e *Engine) recallSnapshot() {
	if e.log.snap == nil {
		e.log.snap = e.bareSnapshot()
	}
}

// bareSnapshot is the record of a snapshot at the present one's index, of a machine without a state.
func (e *Engine) bareSnapshot() []byte {
	return encodeSnapshot(snapshot{group: e.cfg.group(), index: e.log.snapIndex, term: e.log.snapTerm, view: e.views[0].view})
}

// doze lets go of the library in a follower that sleeps and has nothing under way.
func (e *Engine) doze() {
	if e.role == etcd.StateFollower && e.lead != 0 && !e.joint && e.applied == e.log.last() && e.commit == e.log.last() &&
		e.writes.len()+e.unapplied.len() == 0 && !e.sleepless {
		e.raft = nil
		e.forgetSnapshot()
	}
}

// rouse makes the library anew where it was let go of: what has happened since it would not have noticed.
func (e *Engine) rouse() {
	if e.role == etcd.StateLeader {
		e.resume()
		return
	}
	if e.raft != nil {
		return
	}
	e.recallSnapshot()
	e.log.initial = &initial{e.state, snapshot{index: e.applied, view: e.view}.conf(e.cfg.Self)}
	rn, err := newNode(&e.cfg, e.log, e.applied)
	invariant.Check(err == nil, "a log that fell asleep is one", err)
	_ = rn.Step(&pb.Message{
		Type: pb.MsgHeartbeat.Enum(), From: new(uint64(e.lead)), To: new(uint64(e.cfg.Self)), Term: new(e.term), Commit: new(e.commit),
	})
	rd := rn.Ready()
	for _, m := range rd.Messages { // its answer, which nobody waits for
		invariant.Check(m.GetType() == pb.MsgHeartbeatResp, "a replica wakes as it fell asleep", m)
	}
	invariant.Check(len(rd.Entries) == 0 && rd.HardState == nil && rd.SoftState != nil && rd.SoftState.Lead == uint64(e.lead),
		"a replica wakes as it fell asleep", rd)
	e.raft = rn
}

// wake sets the timer again. Whatever the time was before, patience with the leader begins anew.
func (e *Engine) wake(out *order.Actions) {
	if e.asleep {
		e.rouse()
		e.asleep, e.idle = false, 0
		e.clock.rest(e.cfg)
		e.arm(out)
	}
}

// called wakes a replica that its driver asks for something.
func (e *Engine) called(out *order.Actions) {
	if e.idle = 0; e.asleep {
		e.wake(out)
		e.wakeLeader(out)
	}
}

// passOn tells the others that this replica was woken by a message: a leader by its heartbeat, a follower its leader.
func (e *Engine) passOn(from order.ReplicaID, out *order.Actions) {
	if e.role == etcd.StateLeader {
		e.tick(out)
		e.drain(out)
	} else if from != e.lead {
		e.wakeLeader(out)
	}
}

// wakeLeader makes sure that the leader, if this replica follows one, is awake.
func (e *Engine) wakeLeader(out *order.Actions) {
	if e.lead != 0 && e.lead != e.cfg.Self {
		e.tell(msgWake, e.lead, out)
	}
}

// tell sends a message of the engine's own.
func (e *Engine) tell(t pb.MessageType, to order.ReplicaID, out *order.Actions) {
	e.send(out, &pb.Message{
		Type: t.Enum(), From: new(uint64(e.cfg.Self)), To: new(uint64(to)), Term: new(e.term), Commit: new(e.commit),
	}, 0)
}

// onQuiesce falls asleep with the leader, or objects.
func (e *Engine) onQuiesce(m *pb.Message, out *order.Actions) {
	from := order.ReplicaID(m.GetFrom())
	inStep := func() bool {
		return e.role == etcd.StateFollower && e.lead == from && e.term == m.GetTerm() && e.commit == m.GetCommit()
	}
	if e.asleep && inStep() {
		return // it came twice
	}
	woken := e.asleep
	e.wake(out)
	if beat := m.GetCommit(); !inStep() && beat <= e.log.last() {
		e.feed(&pb.Message{Type: pb.MsgHeartbeat.Enum(), From: m.From, To: m.To, Term: m.Term, Commit: m.Commit})
		e.drain(out)
	}
	if inStep() {
		e.clock.rest(e.cfg)
		e.promise()
		if e.commit == e.log.last() && e.writes.len() == 0 && e.linger == 0 && !e.suspects(from) {
			e.sleep(out)
			return
		}
	}
	e.tell(msgWake, from, out)
	if woken {
		e.passOn(from, out)
	}
}

// onWake wakes up for a member that is awake.
func (e *Engine) onWake(from order.ReplicaID, out *order.Actions) {
	if e.asleep {
		e.wake(out)
		e.passOn(from, out)
	}
}

// lateAnswer reports whether a message answers something that was over before this replica fell asleep. A member that lacked something
// then is back.
func (e *Engine) lateAnswer(m *pb.Message) bool {
	if e.lacks(order.ReplicaID(m.GetFrom())) {
		return false
	}
	switch m.GetType() {
	case pb.MsgAppResp:
		return m.GetTerm() <= e.term && !m.GetReject()
	case pb.MsgHeartbeatResp, pb.MsgVoteResp, pb.MsgPreVoteResp:
		return m.GetTerm() <= e.term
	}
	return false
}

// setSuspected takes note of what the detector says of a member.
func (e *Engine) setSuspected(id order.ReplicaID, suspected bool) {
	for i, m := range e.view.Members {
		if m.ID == id {
			e.peers[i].suspected = suspected
		}
	}
}

// trust takes a suspicion back. A leader that sleeps wakes for a member that lacks something.
func (e *Engine) trust(id order.ReplicaID, out *order.Actions) {
	e.setSuspected(id, false)
	if e.lacks(id) {
		e.wake(out)
		e.passOn(id, out)
	}
}

// lacks reports whether this replica leads, sleeps, and knows that a member lacks something.
func (e *Engine) lacks(id order.ReplicaID) bool {
	if e.asleep && e.role == etcd.StateLeader {
		for i, m := range e.view.Members {
			if m.ID == id {
				return e.peers[i].match < e.log.last()
			}
		}
	}
	return false
}

func (e *Engine) suspects(id order.ReplicaID) bool {
	for i, m := range e.view.Members {
		if m.ID == id {
			return e.peers[i].suspected
		}
	}
	return false
}
