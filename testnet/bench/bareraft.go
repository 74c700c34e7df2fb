package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log"
	"sync"

	etcd "go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"latchkey/internal/driver"
)

// bareRaft is what ordered commands are measured against: three members of the etcd raft library in one process, each with a goroutine
// and a log in memory, that hand each other messages by pointer. Nothing is encoded, stored, authenticated or executed, there are
// no sessions, and who proposes gets no result beyond that the command is committed. The members do what the library is good at: a
// turn takes all that has come, and one Ready all that comes of it.
type bareRaft struct {
	members [3]*bareMember
	wg      sync.WaitGroup
	waiting []chan error // by caller; room for one
}

type bareMember struct {
	raft *bareRaft
	id   uint64
	box  *driver.Mailbox[bareEvent]
	node *etcd.RawNode
	log  *etcd.MemoryStorage
	kept uint64 // index of the last compaction
}

// bareEvent is a message of another member, a proposal, or the call to an election.
type bareEvent struct {
	message  *raftpb.Message
	proposal []byte
}

const (
	bareCompactEvery = 8192 // as a replica does
	bareBoxMax       = 1 << 20
	bareIDBytes      = 8 // in front of a proposal's payload
)

// newBareRaft starts the members and waits until the first of them leads.
func newBareRaft(ctx context.Context, callers int) (*bareRaft, error) {
	b := &bareRaft{waiting: make([]chan error, callers)}
	for i := range b.waiting {
		b.waiting[i] = make(chan error, 1)
	}
	for i := range b.members {
		s := etcd.NewMemoryStorage()
		err := s.ApplySnapshot(&raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
			Index: new(uint64(1)), Term: new(uint64(1)), ConfState: &raftpb.ConfState{Voters: []uint64{1, 2, 3}},
		}})
		if err != nil {
			return nil, err
		}
		node, err := etcd.NewRawNode(&etcd.Config{
			ID: uint64(i + 1), ElectionTick: 10, HeartbeatTick: 1, Storage: s, Applied: 1, MaxSizePerMsg: 1 << 20, MaxInflightMsgs: 256,
			Logger: &etcd.DefaultLogger{Logger: log.New(io.Discard, "", 0)},
		})
		if err != nil {
			return nil, err
		}
		b.members[i] = &bareMember{raft: b, id: uint64(i + 1), box: driver.NewMailbox[bareEvent](bareBoxMax), node: node, log: s, kept: 1}
	}
	for _, m := range b.members {
		b.wg.Go(m.run)
	}
	b.members[0].box.Put(bareEvent{})
	for { // until there is a leader, which is a matter of microseconds
		err := b.do(ctx, 0, make([]byte, payloadBytes))
		if !errors.Is(err, etcd.ErrProposalDropped) {
			if err != nil {
				b.close()
			}
			return b, err
		}
	}
}

// do has a command ordered and returns when it is committed and the leader would execute it. One call of each caller may be
// under way; after an end of ctx the caller makes no other.
func (b *bareRaft) do(ctx context.Context, caller int, payload []byte) error {
	data := binary.BigEndian.AppendUint64(make([]byte, 0, bareIDBytes+len(payload)), uint64(caller))
	b.members[0].box.Put(bareEvent{proposal: append(data, payload...)})
	select {
	case err := <-b.waiting[caller]:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (b *bareRaft) close() {
	for _, m := range b.members {
		m.box.Close()
	}
	b.wg.Wait()
}

func (m *bareMember) run() {
	var batch []bareEvent
	for range m.box.Wake() {
		var closed bool
		if batch, closed = m.box.Take(batch); closed {
			return
		}
		for _, e := range batch {
			switch {
			case e.message != nil:
				_ = m.node.Step(e.message)
			case e.proposal != nil:
				if err := m.node.Propose(e.proposal); err != nil {
					m.raft.waiting[binary.BigEndian.Uint64(e.proposal)] <- err
				}
			default:
				_ = m.node.Campaign()
			}
		}
		for m.node.HasReady() {
			m.perform(m.node.Ready())
		}
	}
}

func (m *bareMember) perform(rd etcd.Ready) {
	if rd.HardState != nil {
		_ = m.log.SetHardState(rd.HardState)
	}
	_ = m.log.Append(rd.Entries)
	for _, msg := range rd.Messages {
		m.raft.members[msg.GetTo()-1].box.Put(bareEvent{message: msg})
	}
	for _, e := range rd.CommittedEntries {
		if data := e.GetData(); m.id == 1 && len(data) > bareIDBytes {
			m.raft.waiting[binary.BigEndian.Uint64(data)] <- nil
		}
		if e.GetIndex() >= m.kept+bareCompactEvery {
			m.kept = e.GetIndex()
			_ = m.log.Compact(m.kept - bareCompactEvery/8)
		}
	}
	m.node.Advance(rd)
}
