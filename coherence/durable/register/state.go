package register

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"latchkey/coherence/durable"
	"latchkey/coherence/durable/store"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
)

// What a search through the states of the automata needs. Nobody else calls it.

// Clone returns a register in the same state that reads s and shares nothing with r that changes.
func (r *Register) Clone(s *store.Store) *Register {
	k := *r
	k.store, k.dirty, k.out = s, nil, nil
	k.unsettled = maps.Clone(r.unsettled)
	k.busy, k.expiries, k.renewals = maps.Clone(r.busy), maps.Clone(r.expiries), maps.Clone(r.renewals)
	k.loads = maps.Clone(r.loads)
	k.sessions = make(map[keyspace.NodeID]*session, len(r.sessions))
	for n, s := range r.sessions {
		c := *s
		c.copies, c.owned = maps.Clone(s.copies), maps.Clone(s.owned)
		k.sessions[n] = &c
	}
	ops := make(map[*op]*op)
	k.objects = make(map[string]*object, len(r.objects))
	for name, o := range r.objects {
		c := *o
		c.reads, c.queue, c.behind = slices.Clone(o.reads), slices.Clone(o.queue), slices.Clone(o.behind)
		c.copies = make(map[keyspace.NodeID]*copied, len(o.copies))
		for n, p := range o.copies {
			q := *p
			c.copies[n] = &q
		}
		if o.op != nil {
			if ops[o.op] == nil {
				p := *o.op
				p.parts = slices.Clone(p.parts)
				ops[o.op] = &p
			}
			c.op = ops[o.op]
		}
		k.objects[name] = &c
	}
	return &k
}

// Append writes the state in canonical form: states with equal futures give equal bytes, whatever the time is.
func (r *Register) Append(b []byte) []byte {
	b = protocol.AppendBools(b, r.leads)
	if !r.leads {
		return b
	}
	// Ages beyond which nothing changes are all the same.
	age := func(t automaton.Instant) uint64 { return uint64(min(max(0, r.now.Sub(t)), r.cfg.Arbiter())) }
	left := func(t automaton.Instant) uint64 { return uint64(max(0, t.Sub(r.now))) }
	b = protocol.AppendBools(b, r.anchored, r.confirming)
	b = binary.AppendUvarint(binary.AppendUvarint(b, r.tenure.Term), left(r.waitUntil))
	if r.anchored {
		b = binary.AppendUvarint(b, age(r.anchor))
	}
	for _, n := range slices.SortedFunc(maps.Keys(r.sessions), compareNodes) {
		s := r.sessions[n]
		b = append(append(b, 1), n[:]...)
		for _, v := range [...]uint64{s.ssn.Inc, s.ssn.N, age(s.base)} {
			b = binary.AppendUvarint(b, v)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.objects)) {
		o := r.objects[name]
		b = append(append(b, 2), name...)
		for _, n := range slices.SortedFunc(maps.Keys(o.copies), compareNodes) {
			b = append(append(b, 3), n[:]...)
			b = protocol.AppendBools(binary.AppendUvarint(b, uint64(o.copies[n].seq)), o.copies[n].invalidated)
		}
		b = append(append(b, 4), o.owner.node[:]...)
		for _, v := range [...]uint64{o.owner.ssn.Inc, o.owner.ssn.N, uint64(o.owner.seq), uint64(len(o.reads)), uint64(len(o.queue))} {
			b = binary.AppendUvarint(b, v)
		}
		for i := range o.reads {
			b = o.reads[i].Append(b)
		}
		for i := range o.queue {
			b = o.queue[i].Append(b)
		}
		for _, n := range o.behind {
			b = append(append(b, 8), n...)
		}
		if p := o.op; p != nil && p.cmd.Object == name {
			b = p.msg.Append(protocol.AppendBools(append(b, 5), p.proposed, p.committed))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.expiries)) {
		b = binary.AppendUvarint(append(append(b, 6), name...), left(r.expiries[name].at))
	}
	for _, n := range slices.SortedFunc(maps.Keys(r.renewals), compareNodes) {
		m := r.renewals[n]
		b = m.Append(append(b, 7))
	}
	return b
}

// Owed is an acknowledgement that a write waits for.
type Owed struct {
	Node    keyspace.NodeID
	Session durable.Session
	Object  string
	Version durable.Version
}

// Owed returns the acknowledgements that are awaited, and the anchor of the newest grant to each session. As long as one is awaited its anchor
// does not move: a writer waits for one lease at most.
func (r *Register) Owed() map[Owed]automaton.Instant {
	m := map[Owed]automaton.Instant{}
	for name, o := range r.objects {
		for n, c := range o.copies {
			if c.invalidated {
				m[Owed{n, r.sessions[n].ssn, name, o.op.part(name).next}] = r.sessions[n].base
			}
		}
	}
	return m
}

// Owner returns who has the exclusive right to write an object.
func (r *Register) Owner(name string) (n keyspace.NodeID, has bool) {
	if o := r.objects[name]; o != nil && o.owner.seq != 0 {
		return o.owner.node, true
	}
	return n, false
}

// Check tests what the fields' comments promise. Tests call it after every step.
func (r *Register) Check() error {
	copies, queued, held := 0, 0, 0
	loads := map[keyspace.NodeID]load{}
	count := func(m *durable.Message) {
		l := loads[m.Node]
		loads[m.Node] = load{l.requests + 1, l.bytes + weight(m)}
		queued, held = queued+1, held+weight(m)
	}
	outstanding := map[keyspace.NodeID]int{}
	awaited := map[*op]int{}
	for name, o := range r.objects {
		copies += len(o.copies)
		for i := range o.reads {
			count(&o.reads[i])
		}
		for i := range o.queue {
			count(&o.queue[i])
		}
		if p := o.op; p != nil && p.cmd.Object == name && p.msg.Kind != 0 {
			count(&p.msg)
		}
		for n, c := range o.copies {
			s := r.sessions[n]
			if s == nil {
				return fmt.Errorf("register: %v has a copy of %q and no session", n, name)
			}
			if _, has := s.copies[name]; !has {
				return fmt.Errorf("register: the session of %v does not have its copy of %q", n, name)
			}
			if c.invalidated {
				if o.op == nil {
					return fmt.Errorf("register: %q is invalidated for no write", name)
				}
				outstanding[n]++
				awaited[o.op]++
			}
		}
		if o.op != nil && awaited[o.op] == 0 {
			awaited[o.op] = 0
		}
		if _, un := r.unsettled[name]; un != (o.op != nil && o.op.committed) {
			return fmt.Errorf("register: %q counts as unsettled: %v", name, un)
		}
		if s := r.sessions[o.owner.node]; o.owner.seq != 0 && r.mutant == durable.NoMutant {
			if s == nil || s.ssn != o.owner.ssn {
				return fmt.Errorf("register: the owner of %q has no session", name)
			}
			if _, has := s.owned[name]; !has {
				return fmt.Errorf("register: the owner of %q does not have it", name)
			}
		}
		if _, busy := r.busy[name]; !busy && (o.op != nil || len(o.reads)+len(o.queue)+len(o.behind) > 0) {
			return fmt.Errorf("register: %q is busy, and nobody knows", name)
		}
	}
	if copies != r.copies || queued != r.queued || held != r.held || !maps.Equal(loads, r.loads) {
		return fmt.Errorf("register: %d copies, %d requests and %d bytes counted as %d, %d and %d", copies, queued, held, r.copies, r.queued, r.held)
	}
	for n, s := range r.sessions {
		if s.outstanding != outstanding[n] {
			return fmt.Errorf("register: %v owes %d acknowledgements, counted as %d", n, outstanding[n], s.outstanding)
		}
		for name := range s.copies {
			if o := r.objects[name]; o == nil || o.copies[n] == nil {
				return fmt.Errorf("register: the session of %v has a copy of %q, and the object does not", n, name)
			}
		}
	}
	for p, n := range awaited {
		if p.awaited != n {
			return fmt.Errorf("register: a write of %q awaits %d acknowledgements, counted as %d", p.cmd.Object, n, p.awaited)
		}
	}
	return nil
}
