package manager

import (
	"fmt"
	"slices"

	"latchkey/coherence/protocol"
)

// Check tests what the fields' comments promise. Tests call it after every step.
func (m *Manager) Check() error {
	switch {
	case (m.state == Idle || m.state == WaitReadAck) != m.newOwner.IsZero():
		return fmt.Errorf("manager: new owner %v in %v", m.newOwner, m.state)
	case (m.state == WaitReadAck) != (len(m.waiting) > 0):
		return fmt.Errorf("manager: %d readers waited for in %v", len(m.waiting), m.state)
	case m.owner.IsZero() && (m.lastInv > 0 || len(m.copySet) > 0):
		return fmt.Errorf("manager: no owner, but last_inv %d and %d copies", m.lastInv, len(m.copySet))
	case m.HasCopy(m.owner):
		return fmt.Errorf("manager: the owner %v is in the copy set", m.owner)
	case !slices.IsSortedFunc(m.copySet, protocol.NodeRef.Compare):
		return fmt.Errorf("manager: copy set %v out of order", m.copySet)
	case m.asked && m.mutant != protocol.LateTouch && (m.state != Idle || !m.owner.IsZero()):
		return fmt.Errorf("manager: a first touch is reported in %v", m.state)
	}
	for i, r := range m.pending {
		if slices.ContainsFunc(m.pending[:i], func(q Request) bool { return q.Requester.ID == r.Requester.ID }) {
			return fmt.Errorf("R2: two requests of %v wait", r.Requester)
		}
	}
	return nil
}
