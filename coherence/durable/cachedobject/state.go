package cachedobject

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"latchkey/coherence/durable"
	"latchkey/coherence/protocol"
	"latchkey/internal/automaton"
)

// What a search through the states of the automata needs. Nobody else calls it.

// Clone returns a node in the same state that shares nothing with n but values.
func (n *Node) Clone() *Node {
	k := *n
	k.out = nil
	k.waiting = maps.Clone(n.waiting)
	k.owned, k.dropped, k.doomed = maps.Clone(n.owned), slices.Clone(n.dropped), slices.Clone(n.doomed)
	k.objects = make(map[string]*object, len(n.objects))
	for name, o := range n.objects {
		c := *o
		c.first, c.queue = slices.Clone(o.first), slices.Clone(o.queue)
		k.objects[name] = &c
	}
	return &k
}

// Append writes the state as of a time in canonical form: states with equal futures give equal bytes, whatever the time is.
func (n *Node) Append(b []byte, now automaton.Instant) []byte {
	n.now = max(n.now, now)
	for _, v := range [...]uint64{n.tenure.Term, n.ssn.Inc, n.ssn.N, uint64(max(0, n.leaseEnd.Sub(n.now))), uint64(n.seq), uint64(n.renewal)} {
		b = binary.AppendUvarint(b, v)
	}
	b = protocol.AppendBools(b, n.held)
	if n.renewal > 0 {
		b = binary.AppendUvarint(b, uint64(n.age(n.renewSent)))
	}
	for _, name := range slices.Sorted(maps.Keys(n.objects)) {
		o := n.objects[name]
		b = append(append(b, 1), name...)
		for _, c := range [...]*Cell{o.cell, o.retained} {
			if b = protocol.AppendBools(b, c != nil); c != nil {
				b = c.Value.Append(b)
				for _, v := range [...]uint64{uint64(c.Version), c.Tenure.Term, c.Session.Inc, c.Session.N} {
					b = binary.AppendUvarint(b, v)
				}
			}
		}
		b = append(b, byte(o.state))
		if o.state != Idle {
			b = append(n.appendRequest(b, &o.request), byte(o.call.Kind), byte(o.call.ID))
		}
		if b = protocol.AppendBools(b, o.reading); o.reading {
			b = n.appendRequest(b, &o.read)
		}
		b = binary.AppendUvarint(binary.AppendUvarint(b, uint64(o.fill)), uint64(o.owned))
		b = protocol.AppendBools(b, o.locked, o.recalled.Seq != 0, o.given)
		for _, id := range o.first {
			b = binary.AppendUvarint(append(b, 2), id)
		}
		for _, c := range o.queue {
			b = binary.AppendUvarint(append(b, 3, byte(c.Kind)), c.ID)
		}
	}
	for _, d := range n.dropped {
		b = binary.AppendUvarint(append(append(b, 4), d.object...), uint64(d.seq))
	}
	return append(b, byte(len(n.doomed)))
}

func (n *Node) appendRequest(b []byte, r *request) []byte {
	for _, v := range [...]uint64{uint64(r.seq), uint64(n.age(r.sentAt)), uint64(r.floor)} {
		b = binary.AppendUvarint(b, v)
	}
	return append(b, byte(min(r.sent, 2)))
}

// Readable returns the copy that may be read at a time, nil if there is none.
func (n *Node) Readable(name string, now automaton.Instant) *Cell {
	o, l := n.objects[name], n.Lease()
	if o == nil || !l.Allows(o.cell, now) {
		return nil
	}
	return o.cell
}

// Exclusive reports whether the node believes at a time that it has the right to write an object without being outrun.
func (n *Node) Exclusive(name string, now automaton.Instant) bool {
	o := n.objects[name]
	return o != nil && o.owned != 0 && n.held && now < n.leaseEnd
}

// State returns the state of an object; of two requests that are under way that of the WRITE.
func (n *Node) State(name string) State {
	switch o := n.objects[name]; {
	case o == nil || o.state == Idle && !o.reading:
		return Idle
	case o.state == Idle:
		return WaitCopy
	default:
		return o.state
	}
}

// Check tests what the fields' comments promise. Tests call it after every step.
func (n *Node) Check() error {
	calls := 0
	for name, o := range n.objects {
		calls += len(o.first) + len(o.queue)
		if (o.state == WaitStore || o.state == WaitExclusive) && !o.given {
			calls++
		}
		_, owned := n.owned[name]
		_, waits := n.waiting[name]
		switch {
		case (o.state != Idle || o.reading) && !waits:
			return fmt.Errorf("cachedobject: nobody knows that %q waits", name)
		case owned != (o.owned != 0):
			return fmt.Errorf("cachedobject: %q owned %v by grant %d", name, owned, o.owned)
		case o.state == WaitStore && o.reading:
			return fmt.Errorf("cachedobject: a READ and a STORE of %q are under way", name)
		case !o.reading && len(o.first) > 0:
			return fmt.Errorf("cachedobject: %q waits for no copy, and %d calls do", name, len(o.first))
		case o.state == WaitStore && o.cell != nil && n.mutant == durable.NoMutant:
			return fmt.Errorf("cachedobject: %q has a copy while a STORE is under way", name)
		}
	}
	if calls != n.calls {
		return fmt.Errorf("cachedobject: %d calls counted as %d", calls, n.calls)
	}
	return nil
}
