package raft

import (
	"encoding/binary"

	etcd "go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"

	"latchkey/internal/invariant"
	"latchkey/replicagroup/order"
)

// A leader that sleeps lets go of the library's part, too, and makes it anew when it wakes. The library starts nobody as a leader, so it is
// led there: it is shown the log without its last entry, and elected in the term before by the voters' answers as they might have come; the
// empty entry with which it then begins its term stands where the last entry does, which is of that term, and is taken for it as
// soon as it is reported durable. Then the members acknowledge what they had acknowledged. All that it wants sent and stored meanwhile is
// dropped: it was sent, and is durable. Nothing of this is seen outside, and what comes of it is checked against what is known.
//
// One thing of a leader's is lost: at which number its rounds of reads stand, by which a member's answer says what it confirms.
// An answer that is late would confirm a round that was begun after it. So the library's numbers travel with those of all rounds
// before added to them.

// rest lets go of the library in a leader that has nothing to do.
func (e *Engine) rest() {
	last := e.log.last()
	term, err := e.log.term(last)
	invariant.Check(err == nil && term == e.term && e.vote == uint64(e.cfg.Self), "a leader's last entry is its own", e.state)
	i := 0
	e.raft.WithProgress(func(_ uint64, _ etcd.ProgressType, pr tracker.Progress) {
		e.peers[i].match, e.peers[i].snapTicks, e.peers[i].pursuing = pr.Match, 0, false
		i++
	})
	e.beats, e.idle = 0, 0
	if last > e.log.base && !e.sleepless {
		e.raft = nil
		e.forgetSnapshot()
	}
}

// resume makes it anew.
func (e *Engine) resume() {
	kept := e.raft
	last := e.log.last()
	if last == e.log.base {
		return // a snapshot has taken all entries away, and it was kept
	}
	e.recallSnapshot()
	self := uint64(e.cfg.Self)
	e.log.initial = &initial{state{term: e.term - 1, commit: last - 1}, snapshot{index: e.applied, view: e.view}.conf(e.cfg.Self)}
	e.log.short = true
	rn, err := newNode(&e.cfg, e.log, last-1)
	invariant.Check(err == nil, "a log that fell asleep is one", err)
	say := func(from order.ReplicaID, t pb.MessageType, index uint64) {
		_ = rn.Step(&pb.Message{Type: t.Enum(), From: new(uint64(from)), To: new(self), Term: new(e.term), Index: new(index)})
	}
	drain := func() {
		for rn.HasReady() {
			for _, m := range rn.Ready().Messages {
				if to := m.GetTo(); to == etcd.LocalAppendThread || to == etcd.LocalApplyThread {
					if len(m.GetEntries()) > 0 {
						e.log.short = false
					}
					for _, r := range m.GetResponses() {
						_ = rn.Step(r)
					}
				}
			}
		}
	}
	_ = rn.Campaign()
	drain()
	for _, t := range []pb.MessageType{pb.MsgPreVoteResp, pb.MsgVoteResp} {
		for _, id := range e.voters {
			if id != e.cfg.Self {
				say(id, t, 0)
			}
		}
		drain()
	}
	for i, m := range e.view.Members {
		if m.ID != e.cfg.Self && e.peers[i].match == last {
			say(m.ID, pb.MsgAppResp, last)
		}
	}
	drain()
	for i, m := range e.view.Members {
		if match := e.peers[i].match; m.ID != e.cfg.Self && 0 < match && match < last {
			say(m.ID, pb.MsgAppResp, match)
		}
		if m.ID != e.cfg.Self && e.peers[i].match < last { // it is found out what it has before anything else
			rn.ReportUnreachable(uint64(m.ID))
			rn.ReportSnapshot(uint64(m.ID), etcd.SnapshotFailure)
		}
	}
	drain()
	st := rn.BasicStatus()
	invariant.Check(!e.log.short && st.RaftState == etcd.StateLeader && st.Lead == self && st.HardState.GetTerm() == e.term && st.HardState.GetVote() == self &&
		st.HardState.GetCommit() == e.commit && st.Applied == e.applied && st.LeadTransferee == 0, "a leader wakes as it fell asleep", st)
	i := 0
	rn.WithProgress(func(id uint64, _ etcd.ProgressType, pr tracker.Progress) {
		match := e.peers[i].match
		invariant.Check(id == uint64(e.view.Members[i].ID) && pr.Match == match && (pr.State == tracker.StateReplicate) == (match == last),
			"a leader knows what its members have", pr)
		i++
	})
	if kept != nil {
		invariant.Check(sameLeader(kept, rn, last), "a leader that slept is as one that did not", [2]etcd.Status{kept.Status(), rn.Status()})
	}
	e.raft, e.before = rn, e.asked
}

// sameLeader compares what two instances of the library know of members that have the log up to last.
func sameLeader(a, b *etcd.RawNode, last uint64) bool {
	x, y := a.Status(), b.Status()
	same := x.GetTerm() == y.GetTerm() && x.GetVote() == y.GetVote() && x.GetCommit() == y.GetCommit() && x.Applied == y.Applied &&
		x.SoftState == y.SoftState && len(x.Progress) == len(y.Progress)
	for id, p := range x.Progress {
		q := y.Progress[id]
		same = same && p.Match == q.Match && p.IsLearner == q.IsLearner
		if p.Match == last && p.State == tracker.StateReplicate {
			same = same && p.Next == q.Next && p.State == q.State && p.Inflights.Count() == q.Inflights.Count()
		}
	}
	return same
}

// outward numbers the round of reads that a heartbeat asks about as all rounds of this leadership are.
func (e *Engine) outward(m *pb.Message) {
	if c := m.GetContext(); e.before > 0 && m.GetType() == pb.MsgHeartbeat && len(c) > 0 { // of which others have the same bytes
		m.Context = binary.LittleEndian.AppendUint64(nil, binary.LittleEndian.Uint64(c)+e.before)
	}
}

// inward numbers the round that an answer confirms as the library does, and takes the number away if that one was over before it was made.
func (e *Engine) inward(m *pb.Message) {
	c := m.GetContext()
	if e.before == 0 || m.GetType() != pb.MsgHeartbeatResp || len(c) == 0 || m.GetTerm() != e.term {
		return
	}
	m.Context = nil
	if n := binary.LittleEndian.Uint64(c); n > e.before {
		m.Context = binary.LittleEndian.AppendUint64(nil, n-e.before)
	}
}
