package replicagroup

import (
	"time"

	"latchkey/replicagroup/order"
	"latchkey/replicagroup/placement"
	"latchkey/replicagroup/session"
)

// directoryMachine makes placement's directory a service of the root group. It pushes nothing, and ends nothing by time but the wait of
// a new root.
type directoryMachine struct {
	*placement.Directory
	moved func(placement.Child) // is told of a child that has a later view
}

func newDirectoryMachine(g placement.Genesis, root order.GroupID, moved func(placement.Child)) directoryMachine {
	return directoryMachine{placement.NewDirectory(g, root), moved}
}

// Apply executes a command of the leader's own host, or of a member of a group that tells of its view; hosts take none from
// anybody else (see [Host.handleCommand]).
func (m directoryMachine) Apply(c session.Context, data []byte) []byte {
	result := m.Directory.Apply(c.Now, data)
	if len(data) > 0 && placement.CommandKind(data[0]) == placement.Update {
		if res, err := placement.DecodeResult(result); err == nil && res.Status == placement.OK {
			m.moved(res.Child)
		}
	}
	return result
}

// isUpdate reports whether a command of the directory is one that its author, who is a voter of the group it is about, may give.
func isUpdate(c order.Command) bool {
	if len(c.Data) == 0 || placement.CommandKind(c.Data[0]) != placement.Update {
		return false
	}
	u, err := placement.DecodeCommand(c.Data)
	if err != nil {
		return false
	}
	m, ok := u.Descriptor.View.MemberAt(c.Author)
	return ok && m.Role == order.Voter
}

func (m directoryMachine) Query(_ session.Context, data []byte) []byte {
	return m.Directory.Query(data)
}

func (m directoryMachine) Tick(c session.Context)                     { m.Pass(c.Now) }
func (directoryMachine) SessionEnded(session.Context, order.ClientID) {}

// Deadline asks for the entry that moves log time past the quarantine, since nobody else may.
func (m directoryMachine) Deadline() (time.Duration, bool) {
	return m.Quarantine(), !m.Open()
}

func (directoryMachine) Resend(session.Context) {}
