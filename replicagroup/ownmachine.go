package replicagroup

import (
	"time"

	"latchkey/replicagroup/order"
	"latchkey/replicagroup/placement"
	"latchkey/replicagroup/session"
)

// keysMachine makes placement's keys a service of a prefix's group, and the gate of its other services.
type keysMachine struct{ *placement.Keys }

// KeysMachine returns the service [placement.OwnService] of a prefix's group: it keeps the own groups of its keys.
func KeysMachine(k *placement.Keys) session.Gate { return keysMachine{k} }

// Apply executes a command of the leader's own host, or of a member of an own group that tells of its view.
func (m keysMachine) Apply(c session.Context, data []byte) []byte {
	return m.Keys.Apply(c.Now, c.Parts, data)
}

func (m keysMachine) Query(c session.Context, data []byte) []byte { return m.Keys.Query(c.Now, data) }
func (m keysMachine) Tick(c session.Context)                      { m.Keys.Tick(c.Now) }
func (keysMachine) SessionEnded(session.Context, order.ClientID)  {}
func (keysMachine) Resend(session.Context)                        {}
func (m keysMachine) Deadline() (logTime time.Duration, ok bool)  { return m.Keys.Deadline() }

// ownMachine makes placement's beginning and end of an own group a service of it, and the gate of its other services.
type ownMachine struct{ *placement.Own }

// OwnMachine returns the service [placement.OwnService] of a key's own group: it begins and ends it.
func OwnMachine(o *placement.Own) session.Gate { return ownMachine{o} }

// Apply executes a Begin or Seal of a member of the prefix's group.
func (m ownMachine) Apply(c session.Context, data []byte) []byte { return m.Own.Apply(c.Parts, data) }

func (m ownMachine) Query(_ session.Context, data []byte) []byte { return m.Own.Query(data) }
func (ownMachine) Tick(session.Context)                          {}
func (ownMachine) SessionEnded(session.Context, order.ClientID)  {}
func (ownMachine) Resend(session.Context)                        {}
