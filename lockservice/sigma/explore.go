package sigma

import (
	"encoding/binary"
	"maps"
	"slices"

	"latchkey/dht/keyspace"
)

// What a search through the states of the automata needs, here and in package lockservice: copies, and bytes that are equal where the
// future is. Nobody else calls it.

// Clone returns a replica in the same state that shares nothing with r that changes.
func (r *Replica) Clone() *Replica {
	c := *r
	c.locks = make(map[string]*lock, len(r.locks))
	c.due, c.idle = slices.Clone(r.due), idleList{}
	c.dirty, c.backlog = nil, slices.Clone(r.backlog)
	for n, l := range r.locks {
		k := l.clone()
		k.prev, k.next, k.idle = nil, nil, false
		c.locks[n] = k
		if l.at >= 0 {
			c.due[l.at] = k
		}
	}
	for l := r.idle.first; l != nil; l = l.next {
		c.idle.push(c.locks[l.name])
	}
	c.frozen.locks = maps.Clone(r.frozen.locks)
	for n, l := range c.frozen.locks {
		c.frozen.locks[n] = l.clone()
	}
	c.modes = maps.Clone(r.modes)
	for n, h := range c.modes {
		k := *h
		if k.lock != nil {
			k.lock = k.lock.clone()
		}
		c.modes[n] = &k
	}
	c.perPeer, c.reported, c.parked = maps.Clone(r.perPeer), maps.Clone(r.reported), make(map[string][]parkedMessage)
	for n, p := range r.parked {
		c.parked[n] = slices.Clone(p)
	}
	c.incoming = make(map[keyspace.NodeID]*incoming)
	for n, in := range r.incoming {
		k := *in
		k.got, k.early = slices.Clone(in.got), slices.Clone(in.early)
		c.incoming[n] = &k
	}
	return &c
}

func (l *lock) clone() *lock {
	k := *l
	k.queue, k.candidates, k.ended = slices.Clone(l.queue), slices.Clone(l.candidates), slices.Clone(l.ended)
	return &k
}

// Clone returns a client in the same state that shares nothing with c that changes.
func (c *Client) Clone() *Client {
	k := *c
	k.seats, k.log.calls = slices.Clone(c.seats), slices.Clone(c.log.calls)
	return &k
}

// Stale reports whether a message can do nothing any more to this client, whatever comes: views only rise, and so do the grants of a replica in its
// view.
func (c *Client) Stale(from keyspace.NodeID, m *Message) bool {
	v := m.View.Compare(c.view.View)
	switch {
	case c.cfg.mutant != mutantNone || v > 0:
		return false
	case v < 0:
		return true
	case m.Kind == Moved:
		return m.Mode == ModeSigma || c.logged
	case c.logged:
		return true
	case m.Kind == Grant, m.Kind == Inquire:
		i := slices.IndexFunc(c.seats, func(s seat) bool { return s.node == from })
		return i >= 0 && m.GID.Compare(c.seats[i].gid) < 0
	}
	return false
}

// StaleAnswer is Stale of what comes from the group's log.
func (c *Client) StaleAnswer(ev Event) bool {
	switch {
	case c.cfg.mutant != mutantNone:
		return false
	case ev.Kind == Ordered:
		return !slices.ContainsFunc(c.log.calls, func(l logCall) bool { return l.id == ev.Answer.ID })
	case ev.Kind == Pushed:
		return ev.Answer.Attempt < c.log.attempt || ev.Answer.Attempt == c.log.attempt && c.log.owned || c.state > ClientHeld
	}
	return false
}

// Stale reports whether a message can do nothing any more to this replica, nor to the client that it comes from. told says that it would be no news
// to that client which view this is and who locks the name, now and later.
func (r *Replica) Stale(from keyspace.NodeID, m *Message, told bool) bool {
	v := m.View.Compare(r.log.View)
	switch {
	case r.cfg.mutant != mutantNone || v > 0 || r.booting:
		return false
	case m.Kind == Reported:
		return v < 0 && (m.View != r.sealed() || r.reported[from])
	case m.Kind == Pull:
		return v < 0 && (!r.frozen.true || m.View != r.frozen.view)
	case !told:
		return false
	}
	l := r.locks[m.Name]
	switch m.Kind {
	case Request, Yield, Install:
		switch {
		case v < 0 || r.modes[m.Name] != nil:
			return true
		case l == nil:
			return false
		case m.Kind == Request:
			return l.over(m.Req)
		}
		d := m.GID.Compare(l.gid)
		return d < 0 || d == 0 && !(l.owned && l.owner.req == m.Req)
	case Release:
		return l != nil && !m.Ack && l.over(m.Req) && m.Tok <= l.rec
	}
	return false
}

// stateBytes is a state's name.
type stateBytes []byte

func (b *stateBytes) num(vs ...int64) {
	for _, v := range vs {
		*b = binary.AppendVarint(*b, v)
	}
}

func (b *stateBytes) bit(vs ...bool) {
	for _, v := range vs {
		if v {
			*b = append(*b, 1)
		} else {
			*b = append(*b, 0)
		}
	}
}

func (b *stateBytes) req(q Req) { b.num(int64(q.Session[0]), int64(q.Seq)) }

func (b *stateBytes) wish(w *wish) {
	b.req(w.req)
	b.num(int64(w.reqTS), int64(w.cs), int64(w.tok), int64(w.seen), int64(w.ttl), int64(w.owed))
	b.bit(w.heard)
}

func (b *stateBytes) lock(l *lock) {
	b.num(int64(l.rec), int64(l.gid.Inc), int64(l.gid.N), int64(l.prop), int64(l.exp), int64(l.delay), int64(l.wake), int64(len(l.queue)), int64(len(l.candidates)), int64(len(l.ended)))
	b.num(int64(l.word), int64(l.pullAt))
	b.bit(l.owned, l.asked, l.idle, l.settled)
	if l.owned {
		b.wish(&l.owner)
	}
	for i := range l.queue {
		b.wish(&l.queue[i])
	}
	for i := range l.candidates {
		c := &l.candidates[i]
		b.wish(&c.wish)
		b.num(int64(c.until), int64(c.votes))
		b.bit(c.claimed)
	}
	for _, e := range l.ended {
		b.req(e.Req)
	}
}

func (b *stateBytes) locks(ls map[string]*lock) {
	b.num(int64(len(ls)))
	for _, n := range slices.Sorted(maps.Keys(ls)) {
		*b = append(*b, n...)
		b.lock(ls[n])
	}
}

func (b *stateBytes) entry(e *ReportEntry) {
	b.num(int64(len(e.Parties)), int64(len(e.Queue)), int64(e.DelayLeft))
	for _, p := range e.Parties {
		b.req(p.Req)
		b.num(int64(p.CS), int64(p.Left), int64(p.Tok))
	}
	for _, p := range e.Queue {
		b.req(p.Req)
		b.num(int64(p.CS))
	}
	for _, q := range e.Ended {
		b.req(q)
	}
}

// AppendState appends bytes to b that are equal for messages which do the same. Lamport clocks are left out, and of a session all but
// its first byte.
func (m *Message) AppendState(b []byte) []byte {
	s := stateBytes(b)
	s = append(s, m.Name...)
	s.num(int64(m.Kind), int64(m.View.Num), int64(m.ReqTS), int64(m.CS), int64(m.Tok), int64(m.GID.Inc), int64(m.GID.N), int64(m.Chunk), int64(m.Mode))
	s.req(m.Req)
	s.req(m.Owner)
	s.bit(m.Older, m.Ack, m.Patient)
	if m.Report != nil {
		s.num(int64(m.Report.Chunk))
		for i := range m.Report.Entries {
			s.entry(&m.Report.Entries[i])
		}
	}
	return s
}

// AppendState appends bytes to b that are equal for entries which do the same.
func (e *Entry) AppendState(b []byte) []byte {
	s := stateBytes(b)
	s.num(int64(e.Kind), int64(e.From.Num), int64(e.Cap), int64(e.Node[0]))
	s.req(e.Req)
	s.entry(&e.Report)
	return s
}

// AppendState appends bytes to b that are equal for replicas of one configuration with equal futures.
func (r *Replica) AppendState(b []byte) []byte {
	s := stateBytes(b)
	s.num(int64(r.log.View.Num), int64(r.log.Ceil), int64(r.floor), int64(r.grants), int64(r.suspendAt), int64(r.settleAt), int64(r.embargo), int64(r.pullAt), int64(r.reportAt))
	s.num(int64(r.asked[0]), int64(r.asked[1]), int64(r.asked[2]))
	s.bit(r.booting, r.settled, r.suspended, r.frozen.true)
	s.locks(r.locks)
	s.locks(r.frozen.locks)
	for _, n := range slices.Sorted(maps.Keys(r.modes)) {
		h := r.modes[n]
		s = append(s, n...)
		s.num(int64(h.mode), int64(h.next))
		if s.bit(h.sealed, h.lock != nil); h.lock != nil {
			s.lock(h.lock)
		}
	}
	for _, n := range sortedKeys(r.reported) {
		s.num(int64(n[0]))
	}
	for _, n := range slices.Sorted(maps.Keys(r.parked)) {
		p := r.parked[n]
		for i := range p {
			s = p[i].msg.AppendState(s)
		}
	}
	for _, n := range sortedKeys(r.incoming) {
		in := r.incoming[n]
		s.num(int64(n[0]), int64(in.view.Num), int64(in.missing))
		s.bit(in.got...)
		for _, p := range in.early {
			for i := range p {
				s.num(int64(p[i].at))
				s.entry(&p[i].ReportEntry)
			}
		}
	}
	return s
}

// AppendState appends bytes to b that are equal for clients of one configuration with equal futures.
func (c *Client) AppendState(b []byte) []byte {
	s := stateBytes(b)
	s.num(int64(c.state), int64(c.view.View.Num), int64(c.tok), int64(c.deadline), int64(c.next), int64(c.asked), int64(c.patient), int64(c.rounds), int64(c.giveUp))
	s.bit(c.logged, c.lapsed, c.free)
	for i := range c.seats {
		t := &c.seats[i]
		s.num(int64(t.gid.Inc), int64(t.gid.N), int64(t.prop), int64(t.echo), int64(t.put), int64(t.ownerGID.N), int64(t.owner.Session[0]))
		s.bit(t.live, t.yielded, t.older, t.heard, t.answered, t.released)
	}
	if l := &c.log; l.attempt > 0 {
		s.num(int64(l.since.Num), int64(l.attempt), int64(l.lastID), int64(l.began), int64(len(l.calls)))
		s.bit(l.known, l.owned)
		for _, k := range l.calls {
			s.num(int64(k.id), int64(k.attempt), int64(k.kind), int64(k.sent))
		}
	}
	return s
}
