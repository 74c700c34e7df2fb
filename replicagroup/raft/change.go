package raft

import (
	"encoding/binary"
	"errors"

	etcd "go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"latchkey/internal/invariant"
	"latchkey/replicagroup/order"
)

// An entry of the library's type ConfChangeV2 changes the view: an empty one ends a joint view, which the library proposes by
// itself, any other begins a change. Its data has the library's form, since the library looks into what is proposed; the
// context in it holds the [order.Change], and that alone counts. Which view comes of it is computed when the entry is
// delivered, from the present view, by every replica alike; one that cannot be applied then does nothing.

// viewAt is a view and the index from which on it holds.
type viewAt struct {
	index uint64
	view  order.View
}

// isChange reports whether an entry changes the view.
func isChange(ent *pb.Entry) bool { return ent.GetType() == pb.EntryConfChangeV2 }

// encodeChange returns the data of the entry that begins a change.
func encodeChange(c order.Change) ([]byte, error) {
	b := binary.AppendUvarint([]byte{codecVersion}, c.From)
	if c.Learn != nil {
		b = append(b, 1)
		b = append(b, c.Learn.Peer[:]...)
		b = append(b, c.Learn.Store[:]...)
		b = append(b, byte(len(c.Learn.PeerID)))
		b = append(b, c.Learn.PeerID...)
	} else {
		b = append(b, 0)
		for _, ids := range [][]order.ReplicaID{c.Promote, c.Remove} {
			b = append(b, byte(len(ids)))
			for _, id := range ids {
				b = binary.AppendUvarint(b, uint64(id))
			}
		}
	}
	// The library reads from the number of changes whether a joint view ends, and nothing else.
	return proto.Marshal(&pb.ConfChangeV2{Changes: []*pb.ConfChangeSingle{{}}, Context: b})
}

// decodeChange reads what [encodeChange] wrote. Errors match [ErrMalformed].
func decodeChange(data []byte) (c order.Change, err error) {
	if len(data) > changeBytesMax {
		return c, malformed("change of %d bytes", len(data))
	}
	var cc pb.ConfChangeV2
	if err := proto.Unmarshal(data, &cc); err != nil {
		return c, malformed("change: %v", err)
	}
	r := reader{b: cc.GetContext()}
	if v := r.byte(); v != codecVersion {
		return c, malformed("change version %d", v)
	}
	c.From = r.uvarint()
	switch r.byte() {
	case 1:
		c.Learn = new(order.Newcomer)
		copy(c.Learn.Peer[:], r.bytes(uint64(len(c.Learn.Peer))))
		copy(c.Learn.Store[:], r.bytes(uint64(len(c.Learn.Store))))
		c.Learn.PeerID = string(r.bytes(uint64(r.byte())))
	case 0:
		for _, ids := range []*[]order.ReplicaID{&c.Promote, &c.Remove} {
			n := r.byte()
			if n > order.MembersMax {
				r.fail("change of too many members")
			}
			for range n {
				if r.err != nil {
					break
				}
				*ids = append(*ids, order.ReplicaID(r.uvarint()))
			}
		}
	default:
		r.fail("unknown change")
	}
	if len(r.b) > 0 {
		r.fail("bytes left over")
	}
	return c, r.err
}

// confChange returns a change as the library applies it to a view that it can be applied to.
func confChange(v order.View, c order.Change) *pb.ConfChangeV2 {
	cc := new(pb.ConfChangeV2)
	add := func(t pb.ConfChangeType, id order.ReplicaID) {
		cc.Changes = append(cc.Changes, &pb.ConfChangeSingle{Type: t.Enum(), NodeId: new(uint64(id))})
	}
	if c.Learn != nil {
		add(pb.ConfChangeAddLearnerNode, v.Next)
		return cc
	}
	voters := len(c.Promote) > 0
	for _, id := range c.Promote {
		add(pb.ConfChangeAddNode, id)
	}
	for _, id := range c.Remove {
		m, _ := v.Member(id)
		voters = voters || m.Role == order.Voter
		add(pb.ConfChangeRemoveNode, id)
	}
	if voters {
		cc.Transition = pb.ConfChangeTransitionJointImplicit.Enum() // the library leaves the joint view when it is applied
	}
	return cc
}

// change proposes the next view.
func (e *Engine) change(c order.Change, out *order.Actions) {
	refuse := func(err error) { out.Done = append(out.Done, order.Outcome{Ref: c.Ref, Err: err}) }
	switch _, err := e.view.Change(c); {
	case e.role != etcd.StateLeader:
		refuse(order.ErrNotLeader)
		return
	case c.From != e.view.Num:
		refuse(err)
		return
	case !e.leading() || e.changing() || e.writes.len() >= persistsMax:
		// A fresh leader does not know yet whether a change is under way.
		refuse(order.ErrBusy)
		return
	case err != nil:
		refuse(err)
		return
	}
	data, err := encodeChange(c)
	invariant.Check(err == nil && len(data) <= changeBytesMax, "a change that can be made can be written down", err)
	entry := &pb.Entry{Type: pb.EntryConfChangeV2.Enum(), Data: data}
	if e.raft.Step(&pb.Message{Type: pb.MsgProp.Enum(), Entries: []*pb.Entry{entry}}) != nil {
		refuse(order.ErrBusy) // too much is uncommitted, or leadership is being handed over
		return
	}
	e.changeAt = e.log.last() + 1
	e.proposals.push(proposal{ref: c.Ref, index: e.changeAt})
	e.drain(out)
}

// changing reports whether a change is under way, as far as a leader that is ready knows: the library takes no other before
// the end of it is applied, and turns what comes earlier into an empty entry without a word.
func (e *Engine) changing() bool { return e.joint || e.changeAt > e.applied }

// transfer hands leadership to a voter. The library gives up after an election time-out. While a change is under way it is not
// begun: a handover would swallow the proposal that ends a joint view.
func (e *Engine) transfer(to order.ReplicaID, out *order.Actions) {
	m, _ := e.view.Member(to)
	if e.role != etcd.StateLeader || m.Role != order.Voter || to == e.cfg.Self || e.changing() {
		return
	}
	if e.raft.BasicStatus().LeadTransferee != uint64(to) {
		e.beats = 0
	}
	e.endLease()
	e.lease.handed = true
	e.raft.TransferLeader(uint64(to))
	e.drain(out)
}

// applyChange carries out an entry that changes the view, at its delivery. It returns why it cannot be applied, if it cannot:
// no honest leader proposes such a one.
func (e *Engine) applyChange(ent *pb.Entry, out *order.Actions) error {
	e.changeAt = max(e.changeAt, ent.GetIndex())
	var next order.View
	cc := new(pb.ConfChangeV2)
	if len(ent.GetData()) == 0 {
		if !e.joint {
			return order.ErrStale
		}
		next = e.view.Settle()
	} else {
		c, err := decodeChange(ent.GetData())
		invariant.Check(err == nil, "only changes that can be read enter the log", err)
		if next, err = e.view.Change(c); err != nil {
			return err
		}
		cc = confChange(e.view, c)
	}
	_, was := e.view.Member(e.cfg.Self)
	e.raft.ApplyConfChange(cc)
	e.setView(next)
	e.views = append(e.views, viewAt{ent.GetIndex(), next})
	out.Views = append(out.Views, order.ViewNote{View: next, Index: ent.GetIndex(), Joint: e.joint})
	e.endLease()
	if e.open {
		// Who confirmed the round may not count any more, and nobody else may be asked.
		e.inRound, e.open = 0, false
	}
	if _, stays := next.Member(e.lead); e.lead != 0 && e.lead != e.cfg.Self && e.lead < next.Next && !stays {
		e.forget(out) // it has stepped down
	}
	switch self, is := next.Member(e.cfg.Self); {
	case was && !is:
		e.linger = int32(lingerElections * e.cfg.ElectionTicks)
	case is && self.Store != e.cfg.Store:
		e.halt("replica id of another store", out)
	}
	return nil
}

// setView takes over a view; the library has the same already.
func (e *Engine) setView(v order.View) {
	peers := make([]peer, len(v.Members))
	for i, m := range v.Members {
		for j, old := range e.view.Members {
			if old.ID == m.ID {
				peers[i] = e.peers[j]
			}
		}
	}
	e.view, e.joint, e.voters, e.peers = v, v.Joint(), v.Voters(), peers
}

// viewOf returns the view that holds after the entry at index, which is not below the snapshot's.
func (e *Engine) viewOf(index uint64) order.View {
	i := len(e.views) - 1
	for i > 0 && e.views[i].index > index {
		i--
	}
	return e.views[i].view
}

// tickRemoved lets a removed replica go on for a while. It leads nothing and never campaigns, but it votes: those that stay may
// not have heard yet that the joint view is over, and count it in elections until they have.
func (e *Engine) tickRemoved(out *order.Actions) {
	if e.linger > 0 {
		if e.linger--; e.linger == 0 {
			e.halt(order.Removed, out)
		}
	}
}

// halt stops the replica for good.
func (e *Engine) halt(reason string, out *order.Actions) {
	e.halted = true
	out.Halt = &order.Halt{Reason: reason}
	out.Timers = append(out.Timers, order.SetTimer{Kind: tickTimer, After: -1})
}

// stepHalted answers what must be answered.
func stepHalted(ev order.Event, out *order.Actions) {
	var ref uint64
	switch ev := ev.(type) {
	case order.Propose:
		ref = ev.Ref
	case order.ProposeAll:
		for _, p := range ev.List {
			stepHalted(p, out)
		}
		return
	case order.Read:
		ref = ev.Ref
	case order.Change:
		ref = ev.Ref
	default:
		return
	}
	out.Done = append(out.Done, order.Outcome{Ref: ref, Err: order.ErrHalted})
}

// standing tells what a view says about a replica and its store.
type standing uint8

const (
	present standing = iota // it is a member
	unknown                 // it is of a later view, if of any
	removed                 // it was removed
	alien                   // its id belongs to another store
)

func stand(v order.View, id order.ReplicaID, store order.StoreID) standing {
	switch m, ok := v.Member(id); {
	case ok && m.Store == store:
		return present
	case ok:
		return alien
	case id < v.Next:
		return removed
	}
	return unknown
}

// ErrRemoved is matched when the group has removed a replica, as far as its store or its configuration knows: it has done its part.
var ErrRemoved = errors.New("raft: replica was removed from the group")

// errNotMember says that a replica cannot run under a view.
var errNotMember = errors.New("replica is not in the view")

// committedChanges returns an index up to which a log is committed for sure: a leader takes a change only after the former one
// was applied, so every change but the last is. A replica that forgot, in a crash, how far its log was committed must not take
// the voters of a view for its own that others have left meanwhile.
func committedChanges(ents []*pb.Entry) (index uint64) {
	last := uint64(0)
	for _, ent := range ents {
		if isChange(ent) {
			index, last = last, ent.GetIndex()
		}
	}
	return index
}
