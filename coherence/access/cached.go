package access

import (
	"latchkey/coherence/cachedcopy"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
)

// Cached is the [Copy] of an object that is shared with other nodes: the automaton of its cached copy. Safe for concurrent use,
// but for the methods of Copy.
type Cached struct {
	object *Object
	copy   *cachedcopy.Copy
	send   func(protocol.Message)
	guess  func() protocol.NodeRef
	out    []cachedcopy.Action
}

// NewCached makes an object of an epoch, and its copy. What the copy has to say is given to send, in its order and under the
// object's mutex: send does not block, nor use the object.
//
// A host steps the copy for each message of the object and the epoch. One of a newer epoch is for the host itself: it ends the
// old epoch, and gives it to an object of the new one. If it does not, the copy finds out and ends the epoch.
func NewCached(e *Epoch, key keyspace.Key, c *cachedcopy.Copy, send func(protocol.Message)) (*Object, *Cached) {
	k := &Cached{copy: c, send: send}
	k.object = New(e, key, func(*Object) Copy { return k })
	return k.object, k
}

// Guess has f say, when a thread is about to read what the copy knows nothing of, who may have the master: nobody, if it has no idea. It is called
// under the object's mutex, which is not in use yet.
func (k *Cached) Guess(f func() protocol.NodeRef) { k.guess = f }

// Step has the copy take an event.
func (k *Cached) Step(ev cachedcopy.Event) { k.object.Apply(func() { k.step(ev) }) }

// Inspect has f look at the copy, under the object's mutex, such as at what it wants or waits for. f must not step it.
func (k *Cached) Inspect(f func(*cachedcopy.Copy)) {
	k.object.mu.Lock()
	defer k.object.mu.Unlock()
	f(k.copy)
}

// step performs the actions in their order, so that what tells others of a right's loss leaves after the loss.
func (k *Cached) step(ev cachedcopy.Event) {
	k.out = k.copy.Step(ev, k.out[:0])
	for i := range k.out {
		switch a := &k.out[i]; a.Kind {
		case cachedcopy.Send:
			k.send(a.Msg)
		case cachedcopy.SetRight:
			k.object.SetRight(a.Right, a.Value)
		case cachedcopy.Destroyed:
			k.object.epoch.End()
		}
	}
	clear(k.out) // the buffer keeps no value
}

// ReadFault asks for the right to read.
func (k *Cached) ReadFault() {
	ev := cachedcopy.Event{Kind: cachedcopy.ReadFault}
	if k.guess != nil && k.copy.State() == cachedcopy.Invalid && k.copy.Likely().IsZero() {
		ev.Node = k.guess()
	}
	k.step(ev)
}

// WriteFault asks for the right to write.
func (k *Cached) WriteFault() { k.step(cachedcopy.Event{Kind: cachedcopy.WriteFault}) }

// Store replaces the value.
func (k *Cached) Store(c *protocol.Cell) bool { return k.copy.Store(c) }

// Hold keeps the right.
func (k *Cached) Hold() { k.step(cachedcopy.Event{Kind: cachedcopy.Hold}) }

// Release lets it go.
func (k *Cached) Release() { k.step(cachedcopy.Event{Kind: cachedcopy.Release}) }
