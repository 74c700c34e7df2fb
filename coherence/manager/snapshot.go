package manager

import (
	"fmt"

	"latchkey/coherence/protocol"
)

// Snapshot returns the whole state but what [Config] holds: what a replica that joins is given, and what a restart begins from. Equal states have
// equal snapshots.
func (m *Manager) Snapshot() []byte { return m.Append([]byte{protocol.StateVersion}) }

// Restore makes a manager in the state of a [Manager.Snapshot], which it does not keep. The epoch of cfg does not count. A state that no manager
// can be in, and one of another version, match [protocol.ErrState].
func Restore(cfg Config, snapshot []byte) (*Manager, error) {
	m := New(cfg)
	r := protocol.ReadState(snapshot)
	if m.state = State(r.Byte()); m.state > WaitWriteAck {
		r.Fail("state %d", uint8(m.state))
		m.state = Idle
	}
	m.epoch = protocol.Epoch(r.Uint())
	for range r.Entries(r.Uint(), CopiesMax) {
		q := Request{Kind: protocol.Kind(r.Byte()), Requester: r.Node(), Seq: protocol.ReqSeq(r.Uint())}
		if q.Kind != protocol.Read && q.Kind != protocol.Write || q.Requester.IsZero() {
			r.Fail("%v waits for %v", q.Requester, q.Kind)
		}
		m.pending = append(m.pending, q)
	}
	m.owner, m.newOwner = r.Node(), r.Node()
	m.currentWrite, m.lastInv, m.reports = protocol.ReqSeq(r.Uint()), protocol.InvSeq(r.Uint()), protocol.ReqSeq(r.Uint())
	m.copySet = r.Nodes(r.Uint(), CopiesMax)
	for i := range r.Entries(r.Uint(), CopiesMax) {
		m.waiting = append(m.waiting, reader{r.Node(), protocol.ReqSeq(r.Uint())})
		if i > 0 && m.waiting[i-1].node.Compare(m.waiting[i].node) >= 0 {
			r.Fail("readers out of order")
		}
	}
	m.suspects = r.Suspects()
	m.touched, m.asked = r.Bool(), r.Bool()
	if err := r.End(); err != nil {
		return nil, fmt.Errorf("manager: %w", err)
	}
	if err := m.Check(); err != nil {
		return nil, fmt.Errorf("%w: %w", protocol.ErrState, err)
	}
	return m, nil
}
