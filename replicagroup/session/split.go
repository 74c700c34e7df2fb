package session

import (
	"bytes"
	"container/heap"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
)

// A key can have a group of its own (replica-groups.md rule G7). What the machines of its prefix's group know of it is carved out of
// them by an entry of that group's log, and grafted into those of its own group by one of that group's, and the other way round
// when it comes back. The clients that have something there go along: their sessions are open at the other group under the ids
// they have, so that a lock's holder is its holder still.
//
// What does not go along are the results of commands. A command is of one group, whose log says whether it stands before the entry that
// carved its key out: then it was executed there, and its result is there; or behind it: then it was not, its result says [Moved],
// there and for ever, and its client asks the other group under a number of that session. So each takes effect at most once.

// PartBytesMax bounds what can be carved out for one key: it has to fit into one command ([order.DataBytesMax]). More is [ErrPartTooLarge].
const PartBytesMax = 60 << 10

// PartClientsMax bounds the sessions that go along with one key.
const PartClientsMax = 2048

// Errors of [Parts].
var (
	// ErrPartTooLarge: too many clients wait for the key, or have something there. Nothing was changed.
	ErrPartTooLarge = errors.New("session: the key's state is too large to move")
	// ErrIndivisible: a service of the group cannot be split by key. Nothing was changed.
	ErrIndivisible = errors.New("session: a service of the group cannot be split by key")
	// ErrNoRoom: the machines have no room for what comes, or know the key already. Nothing was changed.
	ErrNoRoom = errors.New("session: no room for the key's state")
)

// Splitter is a [Machine] whose state can be split by key.
type Splitter interface {
	Machine
	// KeyOf returns the key that a command or query is about; ok is false when it is about none, and then it is executed wherever it
	// comes to.
	KeyOf(data []byte, query bool) (key keyspace.Key, ok bool)
	// Carve takes what the machine knows of a name's key out of it, and returns it, with those who have something in it. Part of what
	// it returns is whatever must never go back, such as the highest token, also for a key of which nothing is known. Carve after
	// Graft, at the same log time, returns what Graft was given.
	Carve(c Context, name string) (part []byte, clients []PartClient)
	// Graft takes over what another group's machine has carved. After an error nothing has changed.
	Graft(c Context, part []byte) error
}

// Preparer is a [Splitter] that cannot carve every name at any time.
type Preparer interface {
	Splitter
	// Prepare reports whether Carve of a name can be called. Where it cannot, Prepare has begun what makes it so.
	Prepare(c Context, name string) bool
}

// PartClient is a client that has something in what was carved.
type PartClient struct {
	ID order.ClientID
	// Keep is for how long its session shall stay besides its own time to live: it may not learn earlier where to ask.
	Keep time.Duration
}

// Gate is the [Machine] of a group that says which keys other groups serve. A group has at most one.
type Gate interface {
	Machine
	// Away reports whether commands and queries about a key are to be answered with [Moved].
	Away(key keyspace.Key) bool
	// Open reports that Away is false for every key, which saves looking.
	Open() bool
}

// Parts lets a running machine take keys out of the others, and put them back. A [Table] is one.
type Parts interface {
	// Prepare reports whether a key can be carved out now. Where it cannot, Prepare has begun what makes it so.
	Prepare(name string) bool
	Carve(name string) ([]byte, error)
	Graft(part []byte) error
}

const partVersion = 1

// away reports whether another group serves what a command or query is about.
func (t *Table) away(m Machine, data []byte, query bool) bool {
	if t.gate == nil || t.gate.Open() {
		return false
	}
	s, ok := m.(Splitter)
	if !ok {
		return false
	}
	key, ok := s.KeyOf(data, query)
	return ok && t.gate.Away(key)
}

// Prepare implements [Parts].
func (t *Table) Prepare(name string) bool {
	ready := true
	for _, s := range t.services {
		if p, ok := s.Machine.(Preparer); ok {
			ready = p.Prepare(t.inner(s.name), name) && ready
		}
	}
	return ready
}

// Carve implements [Parts].
func (t *Table) Carve(name string) ([]byte, error) {
	var split []service
	for _, s := range t.services {
		if _, ok := s.Machine.(Splitter); ok {
			split = append(split, s)
		} else if s.Machine != Machine(t.gate) {
			return nil, fmt.Errorf("%w: %s", ErrIndivisible, s.name)
		}
	}
	parts := make([][]byte, len(split))
	keep := make(map[order.ClientID]time.Duration)
	for i, s := range split {
		var clients []PartClient
		parts[i], clients = s.Machine.(Splitter).Carve(t.inner(s.name), name)
		for _, c := range clients {
			keep[c.ID] = max(keep[c.ID], c.Keep)
		}
	}
	b := t.encodePart(split, parts, keep)
	if len(b) <= PartBytesMax && len(keep) <= PartClientsMax {
		return b, nil
	}
	for i, s := range split {
		if err := s.Machine.(Splitter).Graft(t.inner(s.name), parts[i]); err != nil {
			panic(fmt.Sprintf("session: service %s does not take back what it gave: %v", s.name, err))
		}
	}
	return nil, ErrPartTooLarge
}

// Outcome returns what became of a command at a group that is sealed: one whose [Gate] has shut, for this key and for ever, by an entry
// that this table has applied. Such a command was executed before that entry, and its result is here, or never will be; so it can be
// asked of any replica, without a leader. ok is false where this table cannot tell, as of a session it does not know.
func (t *Table) Outcome(c order.Command) (status Status, data []byte, ok bool) {
	s, live := t.sessions[c.Client]
	if m := t.Machine(c.Service); !live || s.peer != c.Author || c.Seq <= s.acked || m == nil || !t.away(m, c.Data, false) {
		return 0, nil, false
	}
	if r, done := s.results[c.Seq]; done {
		return r.status, r.data, true
	}
	return Moved, nil, true
}

// inner is the context of a service that is called while another one runs, whose outputs stay its own.
func (t *Table) inner(name string) Context {
	return Context{Index: t.index, Now: t.now, Emit: func(client order.ClientID, data []byte) {
		running := t.running
		t.running = name
		t.doEmit(client, data)
		t.running = running
	}}
}

func (t *Table) encodePart(split []service, parts [][]byte, keep map[order.ClientID]time.Duration) []byte {
	var ids []order.ClientID
	for id := range keep {
		if _, live := t.sessions[id]; live {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(x, y order.ClientID) int { return bytes.Compare(x[:], y[:]) })
	b := binary.BigEndian.AppendUint16([]byte{partVersion}, uint16(min(len(ids), PartClientsMax)))
	for _, id := range ids[:min(len(ids), PartClientsMax)] {
		s := t.sessions[id]
		b = append(append(b, id[:]...), s.peer[:]...)
		b = binary.BigEndian.AppendUint64(b, uint64(s.ttl))
		b = binary.BigEndian.AppendUint64(b, uint64(max(0, keep[id])))
	}
	b = append(b, byte(len(split)))
	for i, s := range split {
		b = append(append(b, byte(len(s.name))), s.name...)
		b = binary.BigEndian.AppendUint32(b, uint32(len(parts[i])))
		b = append(b, parts[i]...)
	}
	return b
}

// part is a decoded part.
type part struct {
	clients []partSession
	blobs   map[string][]byte
}

type partSession struct {
	entry
	keep time.Duration
}

func decodePart(b []byte) (part, error) {
	p := part{blobs: make(map[string][]byte)}
	if len(b) > PartBytesMax {
		return p, fmt.Errorf("%w: part of %d bytes", ErrMalformed, len(b))
	}
	r := reader{b: b}
	if v := r.u8(); v != partVersion && r.err == nil {
		r.fail("part of version %d, this program reads %d", v, partVersion)
	}
	n := 0
	if w := r.take(2); w != nil {
		n = int(binary.BigEndian.Uint16(w))
	}
	if n > PartClientsMax {
		r.fail("part with %d clients", n)
	}
	var last order.ClientID
	for i := 0; i < n && r.err == nil; i++ {
		var s partSession
		copy(s.id[:], r.take(len(s.id)))
		copy(s.peer[:], r.take(len(s.peer)))
		s.ttl, s.keep = r.duration(), r.duration()
		if bytes.Compare(s.id[:], last[:]) <= 0 || s.ttl < TTLMin || s.ttl > TTLMax {
			r.fail("session %v out of order or bounds", s.id)
		}
		last = s.id
		p.clients = append(p.clients, s)
	}
	name := ""
	for i := range int(r.u8()) {
		next := string(r.take(int(r.u8())))
		if r.err != nil {
			break
		}
		if i > 0 && next <= name {
			r.fail("service %q out of order", next)
		}
		name = next
		p.blobs[name] = append([]byte{}, r.take(r.count(PartBytesMax, 1))...)
	}
	if r.err == nil && len(r.b) > 0 {
		r.fail("%d bytes left over", len(r.b))
	}
	return p, r.err
}

// Graft implements [Parts]. The sessions that come along are opened where they are not open; what a client has waiting whose session
// cannot be, or was ended here, is given up as if its session ended now. What its leases hold goes on.
func (t *Table) Graft(b []byte) error {
	p, err := decodePart(b)
	if err != nil {
		return err
	}
	var split []service
	for _, s := range t.services {
		if _, ok := s.Machine.(Splitter); ok && p.blobs[s.name] != nil {
			split = append(split, s)
		}
	}
	if len(split) != len(p.blobs) {
		return fmt.Errorf("%w: a service that this group does not have", ErrNoRoom)
	}
	before := make([][]byte, len(split)) // only what more than one service has to agree on can be half done
	for i, s := range split {
		if len(split) > 1 {
			before[i] = s.Snapshot()
		}
		err := s.Machine.(Splitter).Graft(t.inner(s.name), p.blobs[s.name])
		if err == nil {
			continue
		}
		for j, s := range split[:i] {
			if err := s.Restore(before[j]); err != nil {
				panic(fmt.Sprintf("session: service %s does not read its own snapshot: %v", s.name, err))
			}
		}
		return fmt.Errorf("%w: service %s: %v", ErrNoRoom, s.name, err)
	}
	for _, c := range p.clients {
		ends := later(later(t.now, t.drift.Stretch(c.ttl)), c.keep)
		_, ended := t.isEnded[c.id]
		switch s, live := t.sessions[c.id]; {
		case live && s.peer == c.peer:
			if ends > s.ends {
				s.ends = ends
				heap.Fix(&t.byEnd, s.at)
			}
			continue
		case !live && !ended && t.room(c.peer):
			t.insert(&entry{id: c.id, peer: c.peer, ttl: c.ttl, ends: ends, results: make(map[uint64]stored)})
			continue
		}
		for _, s := range split {
			s.SessionEnded(t.inner(s.name), c.id)
		}
	}
	return nil
}
