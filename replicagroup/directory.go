package replicagroup

import (
	"time"

	"latchkey/replicagroup/order"
	"latchkey/replicagroup/placement"
	"latchkey/replicagroup/session"
)

// directoryMachine makes placement's directory a service of the root group. It ends nothing by time and pushes nothing.
type directoryMachine struct{ *placement.Directory }

func newDirectoryMachine(g placement.Genesis) directoryMachine {
	return directoryMachine{placement.NewDirectory(g)}
}

// Apply executes a command of the leader's own host; hosts take none from anybody else (see [Host.handleCommand]).
func (m directoryMachine) Apply(_ session.Context, data []byte) []byte {
	return m.Directory.Apply(data)
}

func (m directoryMachine) Query(_ session.Context, data []byte) []byte {
	return m.Directory.Query(data)
}

func (directoryMachine) Tick(session.Context)                         {}
func (directoryMachine) SessionEnded(session.Context, order.ClientID) {}
func (directoryMachine) Deadline() (time.Duration, bool)              { return 0, false }
func (directoryMachine) Resend(session.Context)                       {}
