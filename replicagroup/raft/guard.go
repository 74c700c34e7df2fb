package raft

import (
	"encoding/binary"
	"errors"
	"fmt"

	etcd "go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"

	"latchkey/replicagroup/order"
)

// errRefused is matched when a message can be read and is not one an honest member would send here.
var errRefused = errors.New("raft: refused")

func refused(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errRefused, fmt.Sprintf(format, args...))
}

// recv takes a message from another member, or drops it.
func (e *Engine) recv(r order.Recv, out *order.Actions) {
	m, err := e.admit(r)
	if err != nil {
		e.dropped++
		return
	}
	switch m.GetType() {
	case msgQuiesce:
		e.onQuiesce(m, out)
		return
	case msgWake:
		e.onWake(r.From, out)
		return
	}
	woken := e.asleep && !e.lateAnswer(m)
	if woken {
		e.wake(out)
	}
	if t := m.GetType(); (t == pb.MsgPreVote || t == pb.MsgVote) && m.GetTerm() > e.term {
		if r.From == e.lead {
			// A leader does not campaign: it has restarted, and there is nobody left to be loyal to.
			_ = e.raft.ForgetLeader()
		} else if e.promised() && !transferVote(m) {
			if woken {
				e.passOn(r.From, out)
			}
			return
		}
	}
	e.noteAck(m)
	if e.raft == nil {
		return // a late answer, which is of no use
	}
	e.inward(m)
	e.probing = m.GetType() == pb.MsgHeartbeatResp
	e.feed(m)
	e.drain(out)
	e.probing = false
	switch m.GetType() {
	case pb.MsgApp, pb.MsgHeartbeat, pb.MsgSnap:
		if e.role == etcd.StateFollower && e.lead == r.From && e.term == m.GetTerm() {
			e.clock.rest(e.cfg)
			e.promise()
		}
	}
	if woken {
		e.passOn(r.From, out)
	}
}

// admit decodes a message and tests everything the library takes for granted. The library panics where its own state and a
// message cannot both be right; each such place is named at the rule that keeps it out of reach. Rules hold whatever the
// sender's reason: a member whose disk lies is as unwelcome as one that does.
func (e *Engine) admit(r order.Recv) (*pb.Message, error) {
	// A voter that lags behind depends on members of later views: one of them may be the only one fit to lead. Who they are the
	// driver must know, and has checked.
	s := stand(e.view, r.From, r.Store)
	switch {
	case s == removed || r.From == e.cfg.Self || etcd.IsLocalMsgTarget(uint64(r.From)):
		return nil, refused("sender %d", r.From)
	case s == alien:
		return nil, refused("store %v of %d, which has another", r.Store, r.From)
	case e.writes.len() >= persistsMax:
		return nil, refused("%d writes under way", e.writes.len())
	}
	m, err := decodeMessage(r.Msg)
	if err != nil {
		return nil, err
	}
	switch {
	case m.GetFrom() != uint64(r.From) || m.GetTo() != uint64(e.cfg.Self):
		return nil, refused("message from %d to %d came from %d", m.GetFrom(), m.GetTo(), r.From)
	case m.GetTerm() == 0: // the library's mark of a message from inside the process
		return nil, refused("no term")
	case m.GetTerm() > termMax || m.GetTerm() > e.term+termLeapMax:
		return nil, refused("term %d in term %d", m.GetTerm(), e.term)
	case m.GetIndex() > indexMax || m.GetCommit() > indexMax || m.GetRejectHint() > indexMax: // sums of these may not wrap
		return nil, refused("index out of range")
	case m.GetLogTerm() > m.GetTerm():
		return nil, refused("log of term %d in term %d", m.GetLogTerm(), m.GetTerm())
	}
	if err := e.admitType(m); err != nil {
		return nil, err
	}
	return m, nil
}

// admitType tests what depends on the message's type.
func (e *Engine) admitType(m *pb.Message) error {
	if n := len(m.GetContext()); n > 0 && m.GetType() != pb.MsgHeartbeat && m.GetType() != pb.MsgHeartbeatResp && !transferVote(m) {
		return refused("context in %v", m.GetType())
	}
	switch m.GetType() {
	case msgQuiesce, msgWake:
		return nil
	case pb.MsgVote, pb.MsgPreVote, pb.MsgVoteResp, pb.MsgPreVoteResp:
		return nil
	case pb.MsgTimeoutNow:
		// Only a leader hands leadership over, and only its own.
		if e.role != etcd.StateFollower || m.GetFrom() != uint64(e.lead) || m.GetTerm() != e.term || e.term >= termMax {
			return refused("order of %d to campaign, %d leads", m.GetFrom(), e.lead)
		}
		return nil
	case pb.MsgApp:
		return checkAppend(m)
	case pb.MsgAppResp:
		// A member that acknowledges more than this leader has would be sent a commit index, later, that it has not: the library
		// panics there ("tocommit is out of range").
		if !m.GetReject() && e.role == etcd.StateLeader && m.GetTerm() == e.term && m.GetIndex() > e.log.last() {
			return refused("acknowledges %d of %d", m.GetIndex(), e.log.last())
		}
		return nil
	case pb.MsgHeartbeat:
		// The library panics if it is told to commit what it does not have.
		if m.GetCommit() > e.log.last() {
			return refused("commits %d of %d", m.GetCommit(), e.log.last())
		}
		return checkContext(m)
	case pb.MsgHeartbeatResp:
		if err := checkContext(m); err != nil {
			return err
		}
		// A position beyond the rounds begun makes the library slice past the end of its reads.
		if c := m.GetContext(); len(c) > 0 && m.GetTerm() == e.term && binary.LittleEndian.Uint64(c) > e.asked {
			return refused("confirms a read round that was not begun")
		}
		return nil
	case pb.MsgSnap:
		return e.checkSnapshot(m)
	}
	// What is left belongs inside one process (the library steps some of it without a look at the sender), or forwards
	// proposals, reads and wishes for another leader, which clients here bring to the leader themselves.
	return refused("type %v", m.GetType())
}

// checkContext: the library reads a context as a number of eight bytes, without a look at its length.
func checkContext(m *pb.Message) error {
	if n := len(m.GetContext()); n != 0 && n != contextBytesMax {
		return refused("context of %d bytes", n)
	}
	return nil
}

// checkAppend tests the entries of an append: terms may not fall nor pass the message's own (the library's logSlice), and
// each must be deliverable. Their indexes follow the message's by the encoding, which keeps "conflict with committed entry"
// and "is out of range" away: the library itself answers an append that begins below its commit index without looking in.
func checkAppend(m *pb.Message) error {
	if m.GetIndex() < genesisIndex {
		return refused("entries after %d, where no log begins", m.GetIndex())
	}
	term := m.GetLogTerm()
	for _, ent := range m.GetEntries() {
		if ent.GetTerm() < max(term, 1) || ent.GetTerm() > m.GetTerm() {
			return refused("entry %d of term %d after %d in term %d", ent.GetIndex(), ent.GetTerm(), term, m.GetTerm())
		}
		if err := checkEntry(ent); err != nil {
			return err
		}
		term = ent.GetTerm()
	}
	return nil
}

// checkSnapshot: the library panics over some configurations it cannot restore, which the decoder refuses. A snapshot's view
// may be older than this replica is, but it may not say that the replica was removed. It gets the configuration here.
func (e *Engine) checkSnapshot(m *pb.Message) error {
	s, err := decodeSnapshot(m.GetSnapshot().GetData())
	switch {
	case err != nil:
		return err
	case s.group != e.cfg.group():
		return refused("snapshot of group %v", s.group)
	case stand(s.view, e.cfg.Self, e.cfg.Store) > unknown:
		return refused("snapshot with view %d, without us", s.view.Num)
	case s.index < genesisIndex || s.index > indexMax || s.term < genesisTerm || s.term > m.GetTerm():
		return refused("snapshot %d of term %d in term %d", s.index, s.term, m.GetTerm())
	}
	m.GetSnapshot().GetMetadata().ConfState = s.conf(e.cfg.Self)
	return nil
}
