package coherence

import (
	"latchkey/coherence/appmanager"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
)

// What a machine posts, for who drives machines without a [Service]: simulations do. They tell a machine things by
// [Machine.ApplyOwn], whose input is the application's key, the object's or zero, and an event as package pb encodes it.

// Messages returns what managers of an application say.
func (s said) Messages() []protocol.Message { return s.messages }

// Concerns calls f for each node that a manager counts on: that of an object, or the application's where that is zero. suspected says what the
// manager thinks.
func (s said) Concerns(f func(object keyspace.Key, n protocol.NodeRef, suspected bool)) {
	for _, c := range s.concerns {
		f(c.object, c.node, c.suspected)
	}
}

// Duty returns what the manager of an application has its leader's host do; ok is false if that is nothing.
func (s said) Duty() (d Duty, ok bool) {
	if s.duty == nil {
		return Duty{}, false
	}
	d = Duty{Epoch: s.duty.epoch, Checkpoint: s.duty.checkpoint, Save: s.duty.save}
	for _, u := range s.duty.places {
		d.Unplaced = append(d.Unplaced, u.thread)
	}
	if s.duty.collect {
		d.Saved, d.Roots = s.duty.saved, s.duty.roots
	}
	return d, true
}

// Duty is what the manager of an application has its leader's host do.
type Duty struct {
	Epoch      protocol.Epoch
	Unplaced   []protocol.ThreadID   // threads that a restart needs places for
	Checkpoint protocol.CheckpointID // that is under way, 0 for none
	Save       *appmanager.Manifest  // its cut, once it is there. Not to be changed
	Saved      protocol.CheckpointID // that is complete now, so that only Roots count; 0 for none
	Roots      []protocol.Hash       // none: the application is over
}
