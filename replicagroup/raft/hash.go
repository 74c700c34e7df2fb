package raft

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"

	etcd "go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"

	"latchkey/replicagroup/order"
)

// sameView compares two views by their encoding.
func sameView(a, b order.View) bool {
	return bytes.Equal(appendView(nil, a), appendView(nil, b))
}

// Values of peer.ballot.
const (
	ballotNone = iota
	ballotGranted
	ballotRefused
)

func (e *Engine) clearBallots() {
	for i := range e.peers {
		e.peers[i].ballot = ballotNone
	}
}

// noteBallot and noteAck keep a copy of what the library hides and [Engine.Hash] must cover: who answered in the election
// under way, and which read round each member has confirmed.
func (e *Engine) noteBallot(m *pb.Message) {
	switch t := m.GetType(); {
	case t == pb.MsgPreVoteResp && e.role == etcd.StatePreCandidate, t == pb.MsgVoteResp && e.role == etcd.StateCandidate:
		for i, member := range e.view.Members {
			if uint64(member.ID) == m.GetFrom() && e.peers[i].ballot == ballotNone {
				e.peers[i].ballot = ballotGranted
				if m.GetReject() {
					e.peers[i].ballot = ballotRefused
				}
			}
		}
	}
}

func (e *Engine) noteAck(m *pb.Message) {
	if c := m.GetContext(); m.GetType() == pb.MsgHeartbeatResp && len(c) > 0 && m.GetTerm() == e.term {
		for i, member := range e.view.Members {
			if uint64(member.ID) == m.GetFrom() {
				e.peers[i].acked = max(e.peers[i].acked, binary.LittleEndian.Uint64(c))
			}
		}
	}
}

// snapshotBytes is how long the snapshot's record is.
func (e *Engine) snapshotBytes() int {
	if e.log.snap == nil {
		return len(e.bareSnapshot())
	}
	return len(e.log.snap)
}

// Hash digests the whole protocol state: the log and snapshot, the library's state as far as it shows or is mirrored here,
// and every queue of the engine. It costs some microseconds, and once more what was added to the log since the last call.
func (e *Engine) Hash() [32]byte {
	if e.scratch == nil {
		e.scratch = new([]byte)
	}
	b := (*e.scratch)[:0]
	num := func(vs ...uint64) {
		for _, v := range vs {
			b = binary.BigEndian.AppendUint64(b, v)
		}
	}
	log := e.log.digest()
	b = append(b, log[:]...)
	num(uint64(e.cfg.Self), e.view.Num, uint64(e.role), uint64(e.lead), e.term, e.vote, e.commit, e.log.last(),
		e.log.snapIndex, e.log.snapTerm, uint64(e.snapshotBytes()))
	num(e.clock.rng, uint64(e.clock.elapsed), uint64(e.clock.limit), uint64(e.clock.tail), uint64(e.clock.tries), e.clock.epoch,
		flag(e.asleep), uint64(e.idle))
	l := &e.lease
	num(uint64(l.now), uint64(l.until), flag(l.giveUp), uint64(l.began), uint64(l.confirmed), flag(l.held), flag(l.renew), flag(l.handed), flag(e.open))
	for _, v := range e.views {
		num(v.index)
		b = appendView(b, v.view)
	}
	var transferee uint64 // only leaders have one
	if e.role == etcd.StateLeader && e.raft != nil {
		transferee = e.raft.BasicStatus().LeadTransferee
	}
	num(uint64(e.linger), flag(e.halted), e.changeAt, transferee)
	num(e.seq, e.stored, e.delivered, e.applied, uint64(e.unapplied.len()), flag(e.started))
	num(uint64(e.writes.len()))
	for _, w := range e.writes.all() {
		num(w.seq, uint64(len(w.self)), flag(w.install != nil), flag(w.view != nil))
		for _, m := range w.self {
			num(uint64(m.GetType()), m.GetTerm(), m.GetIndex(), m.GetLogTerm(), flag(m.GetReject()))
		}
	}
	num(e.ready, e.rounds, e.asked, e.before, uint64(e.beats), uint64(e.proposals.len()))
	for _, p := range e.proposals.all() {
		num(p.ref, p.index)
	}
	num(uint64(e.inRound), uint64(len(e.reads)))
	num(e.reads...)
	for _, p := range e.peers {
		num(uint64(p.snapTicks), flag(p.pursuing), uint64(p.ballot), p.acked, flag(p.suspected))
	}
	if e.role == etcd.StateLeader && e.asleep { // the library is made anew from this
		for _, p := range e.peers {
			num(p.match)
		}
	} else if e.role == etcd.StateLeader {
		e.raft.WithProgress(func(id uint64, _ etcd.ProgressType, pr tracker.Progress) {
			num(id, pr.Match, pr.Next, uint64(pr.State), pr.PendingSnapshot, flag(pr.RecentActive), flag(pr.MsgAppFlowPaused))
		})
	}
	*e.scratch = b
	return sha256.Sum256(b)
}

func flag(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}
