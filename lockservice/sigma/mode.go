package sigma

import (
	"maps"
	"slices"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
)

// One name, one mode (lock-protocols.md section 10.1), as far as it is a replica's business: rules M1, M2, and its part of M5 and M6.

// handed is a name that the group's log takes over, or has.
type handed struct {
	mode   Mode
	sealed bool              // this replica's table of it does not change any more in this view
	lock   *lock             // that table; nil when it was not live
	next   automaton.Instant // when to report it again; means something while pending
}

// setModes takes over modes of names.
func (r *Replica) setModes(modes []NameMode, whole bool, out []Action) []Action {
	if whole {
		keep := make(map[string]bool, len(modes))
		for _, m := range modes {
			keep[m.Name] = true
		}
		maps.DeleteFunc(r.modes, func(name string, _ *handed) bool { return !keep[name] })
	}
	for _, m := range modes {
		if m.Mode == ModeSigma {
			delete(r.modes, m.Name)
			continue
		}
		h := r.modes[m.Name]
		if h == nil {
			h = new(handed)
			r.modes[m.Name] = h
		}
		h.mode, h.next = m.Mode, r.now
		if m.Mode == ModeGroup && !r.settled { // what else reports of the view before say of it is of no use any more
			r.drop(m.Name)
		}
		if l := r.locks[m.Name]; r.settled || l != nil && l.settled {
			out = r.seal(m.Name, h, out)
		}
	}
	r.reportAt = automaton.Never
	if len(r.pending()) > 0 {
		r.reportAt = r.now
	}
	return out
}

// seal is M1: the table of a name does not change any more in this view, and those who are in it are told.
func (r *Replica) seal(name string, h *handed, out []Action) []Action {
	if h.sealed {
		return out
	}
	h.sealed, h.next, r.reportAt = true, r.now, r.now
	l := r.locks[name]
	if l == nil {
		return out
	}
	r.expire(l)
	if r.cfg.mutant == mutantNoModeSeal {
		h.lock = l
		return out
	}
	r.drop(name)
	if !l.live() && len(l.ended) == 0 && l.delay <= r.now {
		return out
	}
	h.lock = l
	if l.owned {
		out = r.moved(l.owner.node, name, l.owner.req, out)
	}
	for i := range l.candidates {
		out = r.moved(l.candidates[i].node, name, l.candidates[i].req, out)
	}
	for i := range l.queue {
		out = r.moved(l.queue[i].node, name, l.queue[i].req, out)
	}
	return out
}

// drop takes a name out of the table as it is.
func (r *Replica) drop(name string) {
	l := r.locks[name]
	if l == nil {
		return
	}
	if l.owned {
		r.unpeer(l.owner.node)
	}
	for i := range l.candidates {
		r.unpeer(l.candidates[i].node)
	}
	for i := range l.queue {
		r.unpeer(l.queue[i].node)
	}
	r.queued -= len(l.queue)
	r.idle.remove(l)
	r.due.remove(l)
	delete(r.locks, name)
}

// unseal puts the tables of names that are pending back, for the report of the view that ends: the handover is off (M5). It returns all
// live names, in order.
func (r *Replica) unseal(names []string) []string {
	for name, h := range r.modes {
		if h.mode == ModePending && h.lock != nil && r.cfg.mutant != mutantSealedLeftOut {
			if r.locks[name] = h.lock; h.lock.live() && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names
}

// pending returns the names that this replica is to report, in order.
func (r *Replica) pending() (names []string) {
	for name, h := range r.modes {
		if h.mode == ModePending {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// reportModes is M2: what it proposes may be lost, so it does so again until the log says that enough have.
func (r *Replica) reportModes(out []Action) []Action {
	if r.now < r.reportAt {
		return out
	}
	r.reportAt = automaton.Never
	if !(r.granting() || r.cfg.mutant == mutantEmptyModeReport && r.serving()) { // its table need not be true yet
		if len(r.pending()) > 0 {
			r.reportAt = r.now.Add(proposeEvery)
		}
		return out
	}
	for _, name := range r.pending() {
		h := r.modes[name]
		if h.next <= r.now {
			h.next = r.now.Add(proposeEvery)
			out = append(out, Action{Kind: Propose, Entry: Entry{Kind: EntryReport, From: r.log.View, Node: r.cfg.Self, Report: r.entry(name, h.lock, HandOverQueueMax)}})
		}
		r.reportAt = min(r.reportAt, h.next)
	}
	return out
}

// elsewhere answers what is about a name that is not locked here. A RELEASE is passed on to the log by those whom the log may have heard
// name its request.
func (r *Replica) elsewhere(h *handed, from keyspace.NodeID, m *Message, out []Action) []Action {
	if m.Kind != Release {
		return r.moved(from, m.Name, m.Req, out)
	}
	if l := h.lock; l != nil && (l.owned && l.owner.req == m.Req && l.owner.node == from ||
		slices.ContainsFunc(l.candidates, func(c candidate) bool { return c.req == m.Req && c.node == from })) {
		out = append(out, Action{Kind: Propose, Entry: Entry{Kind: EntryOver, From: r.log.View, Name: m.Name, Req: m.Req, Node: from}})
	}
	if m.Ack {
		out = r.send(from, Message{Kind: Released, Name: m.Name, Req: m.Req}, out)
	}
	return out
}

// inspect tells what is known here of a name: who owns it or may, and who waits, in as many entries as that takes. Position is how many
// wait in all, and Embargo for how long this replica grants nothing and may not know of everybody.
func (r *Replica) inspect(from keyspace.NodeID, m *Message, out []Action) []Action {
	switch c := m.View.Compare(r.log.View); {
	case m.View.Gen != r.log.View.Gen:
		return r.send(from, Message{Kind: WrongGen, Name: m.Name, Req: m.Req}, out)
	case c > 0: // it is asked again
		return out
	case c < 0 || r.modes[m.Name] != nil || !has(r.log.Members, r.cfg.Self):
		return r.moved(from, m.Name, m.Req, out)
	}
	l := r.locks[m.Name]
	answer := Message{Kind: Inspected, Name: m.Name, Req: m.Req, Report: &Report{Inc: r.cfg.Inc, Chunks: 1, Entries: []ReportEntry{r.entry(m.Name, l, ReportQueueMax)}}}
	if l != nil {
		answer.Position = len(l.queue)
		for i := ReportQueueMax; i < min(len(l.queue), InspectQueueMax); i += ReportQueueMax {
			e := ReportEntry{Name: m.Name}
			for j := i; j < min(i+ReportQueueMax, len(l.queue), InspectQueueMax); j++ {
				e.Queue = append(e.Queue, r.party(&l.queue[j], 0, 0))
			}
			answer.Report.Entries = append(answer.Report.Entries, e)
		}
	}
	switch {
	case !r.settled:
		answer.Embargo = max(1, r.settleAt.Sub(r.now))
	case r.now < r.embargo:
		answer.Embargo = r.embargo.Sub(r.now)
	}
	return r.send(from, answer, out)
}
