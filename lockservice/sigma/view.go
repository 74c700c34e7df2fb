package sigma

import (
	"bytes"
	"math/bits"
	"slices"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/internal/invariant"
)

// frozen is the sealed table of a view. It never changes again.
type frozen struct {
	true  bool // there is one: the replica was settled in that view and not under embargo (S2)
	view  ViewID
	locks map[string]*lock
	names []string // live ones, rising; [ReportEntriesMax] of them make a piece
	until automaton.Instant
}

// incoming is a report on its way. Its pieces are merged as they come, but for those of a view that has not ended here yet.
type incoming struct {
	view    ViewID
	inc     uint64
	got     []bool
	missing int
	asked   int          // the first piece of the window asked for last
	moving  bool         // a piece has come since everybody was pulled last
	early   [][]reported // of a view that has not ended here
}

// reported is an entry with the instant of its arrival: leases run from there.
type reported struct {
	ReportEntry
	at automaton.Instant
}

// follow takes over a new state of the log, with the modes of names: of those that have changed, or of all.
func (r *Replica) follow(next LogState, modes []NameMode, whole bool, out []Action) []Action {
	if next.View.Compare(r.log.View) < 0 {
		return out
	}
	old := r.log
	if next.View == old.View {
		r.log = next
		out = r.setModes(modes, whole, out)
		if r.booting {
			return out
		}
		if next.Ceil > old.Ceil {
			r.asked[EntryRaise-EntryView] = 0
		}
		if next.Cap > old.Cap {
			r.asked[EntryRaiseTTL-EntryView], r.wantCap = 0, 0
		}
		if next.Ceil > old.Ceil || next.Cap > old.Cap {
			out = r.grantAll(out)
		}
		return out
	}
	return r.begin(next, modes, whole, out)
}

// begin is S2: it seals the present view and opens the next.
func (r *Replica) begin(next LogState, modes []NameMode, whole bool, out []Action) []Action {
	old := r.log
	successor := next.View == ViewID{old.View.Gen, old.View.Num + 1}
	if !r.booting {
		for _, name := range r.names() { // Tick; nothing is granted any more in this view
			r.expire(r.locks[name])
		}
	}
	can := r.settled && !r.booting && r.now >= r.embargo && has(old.Members, r.cfg.Self)
	if r.cfg.mutant == mutantEmptyReport {
		can = has(old.Members, r.cfg.Self)
	}
	r.frozen = frozen{}
	if can && successor {
		names := r.unseal(r.names())
		r.frozen = frozen{true: true, view: old.View, locks: r.locks, names: names, until: r.now.Add(r.cfg.Drift.Stretch(r.cfg.TTLMax))}
	}
	r.log, r.settled = next, false
	for _, l := range r.dirty {
		l.dirty = false
	}
	clear(r.dirty)
	r.dirty, r.backlog, r.tracking, r.headDue = r.dirty[:0], nil, untracked, false
	r.locks, r.due, r.idle = make(map[string]*lock), nil, idleList{}
	r.queued = 0
	clear(r.perPeer)
	for name, h := range r.modes {
		h.lock, h.sealed = nil, false
		if r.cfg.mutant == mutantModesForgotten {
			delete(r.modes, name)
		}
	}
	if r.cfg.mutant != mutantModesForgotten {
		out = r.setModes(modes, whole, out)
	}
	r.floor = next.Base // A: numbers of a view are above all of those before, whatever the reports say
	if r.cfg.mutant == mutantSmallBase {
		r.floor = old.Base
	}
	r.suspended, r.suspendAt = false, automaton.Never
	r.asked, r.wantCap = [3]automaton.Instant{}, 0
	clear(r.reported)
	r.whole = 0
	for n, in := range r.incoming {
		if in.view != old.View || !has(next.Prev, n) {
			delete(r.incoming, n)
		}
	}
	if r.booting {
		r.born = r.now
		return out // S8: the barrier comes first
	}
	// S8: a View ends the embargo. No lease of the views before outlasts this (S4(b), 10.2).
	r.embargo = 0
	r.settleAt = r.now.Add(r.cfg.Drift.Stretch(SuspendAfter + next.Cap))
	if !has(next.Members, r.cfg.Self) {
		r.settled = true // it has nothing to settle
		r.pullAt = automaton.Never
		return r.push(r.unpark(out))
	}
	r.pullAt = r.now.Add(pullEvery)
	if r.frozen.true {
		for i, n := 0, r.chunks(); i < n; i++ {
			for _, e := range r.piece(i).Entries {
				r.merge(r.cfg.Self, reported{e, r.now})
			}
		}
		out = r.complete(r.cfg.Self, out)
	}
	for _, n := range sortedKeys(r.incoming) { // early ones
		in := r.incoming[n]
		for _, p := range in.early {
			out = r.take(n, p, out)
		}
		if in.early = nil; in.missing == 0 {
			out = r.complete(n, out)
		}
	}
	return r.push(r.unpark(out)) // names that are asked for come before tables
}

// push sends the first pieces of the sealed table to the members of the new view.
func (r *Replica) push(out []Action) []Action {
	if !r.frozen.true {
		return out
	}
	for _, n := range r.log.Members {
		if n != r.cfg.Self {
			out = r.pushReport(n, 0, out)
		}
	}
	return out
}

// expire ends what is over, without granting.
func (r *Replica) expire(l *lock) {
	if l.owned && r.now >= l.exp {
		r.consume(l)
		l.delay = r.now.Add(l.owner.delay)
		r.disown(l)
	}
	l.candidates = slices.DeleteFunc(l.candidates, func(c candidate) bool {
		if r.now < c.until {
			return false
		}
		l.delay = max(l.delay, r.now.Add(c.delay))
		r.unpeer(c.node)
		r.mark(l)
		return true
	})
}

func (r *Replica) unpark(out []Action) []Action {
	parked := r.parked
	r.parked, r.parkedN = make(map[string][]parkedMessage), 0
	names := make([]string, 0, len(parked))
	for name := range parked {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		for i := range parked[name] {
			out = r.receive(parked[name][i].from, &parked[name][i].msg, out)
		}
	}
	return out
}

func (r *Replica) chunks() int {
	return max(1, (len(r.frozen.names)+r.cfg.piece-1)/r.cfg.piece)
}

// piece makes a piece of the frozen table as it is now: leases that are over are left out, remaining times are those of the
// sending.
func (r *Replica) piece(i int) Report {
	rep := Report{Inc: r.cfg.Inc, Chunk: i, Chunks: r.chunks()}
	from := min(i*r.cfg.piece, len(r.frozen.names))
	for _, name := range r.frozen.names[from:min(from+r.cfg.piece, len(r.frozen.names))] {
		rep.Entries = append(rep.Entries, r.entry(name, r.frozen.locks[name], ReportQueueMax))
	}
	return rep
}

// entry says of a name who may hold it and who waits, so many at most, as of now. Leases that are over are left out.
func (r *Replica) entry(name string, l *lock, waiters int) ReportEntry {
	e := ReportEntry{Name: name}
	if l == nil {
		return e
	}
	e.DelayLeft = max(0, l.delay.Sub(r.now))
	if l.owned && l.exp > r.now {
		e.Parties = append(e.Parties, r.party(&l.owner, l.exp, l.prop))
	} else if l.owned {
		e.DelayLeft = max(e.DelayLeft, l.exp.Add(l.owner.delay).Sub(r.now))
	}
	for j := range l.candidates {
		if c := &l.candidates[j]; c.until > r.now && len(e.Parties) < CandidatesMax {
			e.Parties = append(e.Parties, r.party(&c.wish, c.until, max(c.tok, c.offered)))
		}
	}
	for j := range l.queue[:min(len(l.queue), waiters)] {
		e.Queue = append(e.Queue, r.party(&l.queue[j], 0, 0))
	}
	for _, q := range l.ended[max(0, len(l.ended)-ReportEndedMax):] {
		e.Ended = append(e.Ended, q.Req)
	}
	return e
}

// party describes a request whose lease, if it has one, ends at an instant.
func (r *Replica) party(w *wish, end automaton.Instant, tok Token) ReportParty {
	return ReportParty{Req: w.req, ReqTS: w.reqTS, Node: w.node, CS: w.cs, TTL: w.ttl, Delay: w.delay, Left: max(0, end.Sub(r.now)), Tok: tok}
}

// pushReport sends the pieces of a window, from piece i.
func (r *Replica) pushReport(to keyspace.NodeID, i int, out []Action) []Action {
	for end := min(i+reportWindow, r.chunks()); i < end; i++ {
		rep := r.piece(i)
		out = append(out, Action{Kind: Send, To: to, Msg: Message{Kind: Reported, View: r.frozen.view, TS: r.clock, Report: &rep}})
	}
	return out
}

// receivePull answers who lacks pieces, or wants to know of one name at once. One that comes before this replica has ended the view
// waits for that.
func (r *Replica) receivePull(from keyspace.NodeID, m *Message, out []Action) []Action {
	switch {
	case m.Name != "" && m.View == r.log.View && has(r.log.Members, r.cfg.Self):
		r.park(from, m)
		return out
	case !r.frozen.true || m.View != r.frozen.view || m.Chunk < 0 || m.Chunk >= r.chunks() || !has(r.log.Members, from):
		return out
	case m.Name == "":
		return r.pushReport(from, m.Chunk, out)
	}
	rep := Report{Inc: r.cfg.Inc, Chunks: 1, Entries: []ReportEntry{r.entry(m.Name, r.frozen.locks[m.Name], ReportQueueMax)}}
	return append(out, Action{Kind: Send, To: from, Msg: Message{Kind: Reported, View: r.frozen.view, Name: m.Name, TS: r.clock, Report: &rep}})
}

// pullName asks those of the view before for one name that somebody wants, before their whole reports come (section 9.9).
func (r *Replica) pullName(l *lock, out []Action) []Action {
	if r.known(l) || r.now < l.pullAt {
		return out
	}
	l.pullAt = r.now.Add(pullEvery)
	for i, n := range r.log.Prev {
		if n != r.cfg.Self && (l.word|r.whole)&(1<<i) == 0 {
			out = append(out, Action{Kind: Send, To: n, Msg: Message{Kind: Pull, View: r.sealed(), Name: l.name, TS: r.clock}})
		}
	}
	return out
}

// sealed returns the view before the present one.
func (r *Replica) sealed() ViewID { return ViewID{r.log.View.Gen, r.log.View.Num - 1} }

// known reports whether everybody who may hold a name is known: the view is settled, or m reports of the name are in (S4, of one name).
func (r *Replica) known(l *lock) bool { return r.settled || l.settled }

// reports counts whose word of a name is in.
func (r *Replica) reports(l *lock) int {
	if r.cfg.mutant == mutantCountedTwice {
		return bits.OnesCount32(l.word) + bits.OnesCount32(r.whole)
	}
	return bits.OnesCount32(l.word | r.whole)
}

// pull asks again for what has not come. Where pieces come there is no need to.
func (r *Replica) pull(out []Action) []Action {
	r.pullAt = automaton.Never
	if r.booting || !has(r.log.Members, r.cfg.Self) || r.settled && !r.contested() {
		return out
	}
	r.pullAt = r.now.Add(pullEvery)
	moving, missing := false, false
	for _, n := range r.log.Prev {
		missing = missing || !r.reported[n]
		if in := r.incoming[n]; in != nil && in.moving {
			moving, in.moving = true, false
		}
	}
	if !missing {
		r.pullAt = automaton.Never
	}
	if moving {
		return out
	}
	for _, n := range r.log.Prev {
		if n == r.cfg.Self || r.reported[n] {
			continue
		}
		i := 0
		if in := r.incoming[n]; in != nil && in.view == r.sealed() {
			i = in.first()
			in.asked = i
		}
		out = append(out, Action{Kind: Send, To: n, Msg: Message{Kind: Pull, View: r.sealed(), TS: r.clock, Chunk: i}})
	}
	return out
}

// wants reports whether the next pieces of a report are of use: m reports settle the view, and those that are furthest come first.
func (r *Replica) wants(n keyspace.NodeID) bool {
	if r.settled {
		return r.contested()
	}
	before := 0
	for _, o := range sortedKeys(r.incoming) {
		if in := r.incoming[o]; o != n && (in.missing < r.incoming[n].missing || in.missing == r.incoming[n].missing && bytes.Compare(o[:], n[:]) < 0) {
			before++
		}
	}
	return bits.OnesCount32(r.whole)+before < r.majorityPrev()
}

// contested reports whether further reports can help: somebody is a candidate (S5(iv)).
func (r *Replica) contested() bool {
	for _, l := range r.due {
		if len(l.candidates) > 0 {
			return true
		}
	}
	return false
}

func (in *incoming) first() int {
	return max(0, slices.Index(in.got, false))
}

// receiveReport is S3, as far as it is about pieces. A report of the present view is one for the next that this replica does not
// know of yet.
func (r *Replica) receiveReport(from keyspace.NodeID, m *Message, out []Action) []Action {
	rep := m.Report
	early := m.View == r.log.View
	late := m.View == r.sealed()
	reporters := r.log.Prev
	if early {
		reporters = r.log.Members
	}
	switch {
	case rep == nil || rep.Chunks < 1 || rep.Chunks > ChunksMax || rep.Chunk < 0 || rep.Chunk >= rep.Chunks,
		len(rep.Entries) > ReportEntriesMax, !early && !late, !has(reporters, from), from == r.cfg.Self, late && r.reported[from]:
		return out
	case m.Name != "":
		if late && len(rep.Entries) == 1 && rep.Entries[0].Name == m.Name {
			out = r.take(from, []reported{{rep.Entries[0], r.now}}, out)
		}
		return out
	}
	in := r.incoming[from]
	if in == nil || in.view != m.View || in.inc != rep.Inc || len(in.got) != rep.Chunks {
		if in != nil && (in.view.Compare(m.View) > 0 || in.view == m.View && in.inc > rep.Inc) {
			return out
		}
		in = &incoming{view: m.View, inc: rep.Inc, got: make([]bool, rep.Chunks), missing: rep.Chunks}
		r.incoming[from] = in
	}
	if !in.got[rep.Chunk] {
		piece := make([]reported, 0, len(rep.Entries))
		for _, e := range rep.Entries {
			piece = append(piece, reported{e, r.now})
		}
		in.got[rep.Chunk], in.moving = true, true
		in.missing--
		if late {
			out = r.take(from, piece, out)
		} else {
			in.early = append(in.early, piece)
		}
	}
	if in.missing == 0 || late && r.cfg.mutant == mutantPieceIsAll {
		if late {
			out = r.complete(from, out)
		}
		return out
	}
	if i := in.first(); i >= in.asked+reportWindow && (early || r.wants(from)) { // the window has arrived: the next one
		in.asked = i
		out = append(out, Action{Kind: Send, To: from, Msg: Message{Kind: Pull, View: m.View, TS: r.clock, Chunk: i}})
	}
	return out
}

// take takes some names of a report, and settles those that m reports have said all of (section 9.9).
func (r *Replica) take(from keyspace.NodeID, piece []reported, out []Action) []Action {
	for _, e := range piece {
		if l := r.merge(from, e); l != nil {
			out = r.settleName(l, out)
		}
	}
	return out
}

// complete takes note that a whole report is in: of names that it has not named nobody has anything to say there.
func (r *Replica) complete(from keyspace.NodeID, out []Action) []Action {
	delete(r.incoming, from)
	i := slices.Index(r.log.Prev, from)
	if i < 0 || r.reported[from] {
		return out
	}
	r.reported[from] = true
	r.whole |= 1 << i
	if out = r.trySettle(out); bits.OnesCount32(r.whole) == 1 && r.majorityPrev() > 1 && from == r.cfg.Self {
		return out // the first to say anything
	}
	for _, name := range r.names() {
		out = r.settleName(r.locks[name], out)
	}
	return out
}

// settleName settles a name that m reports have said all of. One that is settled may have a candidate less (S5(iv)).
func (r *Replica) settleName(l *lock, out []Action) []Action {
	switch need := r.majorityPrev(); {
	case r.known(l):
		r.prune(l)
		return r.rest(l, r.grant(l, out))
	case r.reports(l) >= need || r.cfg.mutant == mutantOneNameReport && l.word != 0:
		return r.open(l, out)
	}
	return out
}

// merge is S3 for one name: the first word of a reporter counts. One that comes after the settling adds nobody: whoever may hold is
// named by every majority of reports. It returns nil where there is nothing to do.
func (r *Replica) merge(from keyspace.NodeID, e reported) *lock {
	i := slices.Index(r.log.Prev, from)
	if h := r.modes[e.Name]; i < 0 || h != nil && (h.mode == ModeGroup || h.sealed) {
		return nil
	}
	l := r.locks[e.Name]
	if l == nil {
		if r.settled {
			return nil
		}
		l = &lock{name: e.Name, rec: r.floor, at: -1, idleAt: r.now}
		r.locks[e.Name] = l
		r.idle.push(l)
	}
	if (l.word|r.whole)&(1<<i) != 0 {
		return nil
	}
	known := r.known(l)
	l.word |= 1 << i
	for _, q := range e.Ended {
		l.end(q, e.at)
	}
	r.sweep(l)
	if !known {
		l.delay = max(l.delay, e.at.Add(min(e.DelayLeft, DelayMax)))
	}
	for _, p := range e.Parties {
		left := r.cfg.Drift.Stretch(min(max(0, p.Left), r.cfg.Drift.Stretch(r.cfg.TTLMax)))
		if r.cfg.mutant == mutantHalfLease {
			left /= 2
		}
		until := e.at.Add(left)
		i := slices.IndexFunc(l.candidates, func(c candidate) bool { return c.req == p.Req })
		switch {
		case i >= 0 && r.cfg.mutant == mutantShortestLease:
			c := &l.candidates[i]
			c.until, c.votes = min(c.until, until), c.votes+1
		case i >= 0:
			c := &l.candidates[i]
			c.until, c.votes, c.offered = max(c.until, until), c.votes+1, max(c.offered, p.Tok)
			r.mark(l)
		case !known && !l.over(p.Req):
			if r.cfg.mutant == mutantOneCandidate && len(l.candidates) > 0 {
				break
			}
			if j := l.candidate(p.Req.Session); j >= 0 { // two requests of one session: the older is over (S5(ii))
				old := l.candidates[j].req
				if old.Seq > p.Req.Seq {
					l.end(p.Req, e.at)
					break
				}
				l.end(old, e.at)
				r.dropCandidate(l, j)
			}
			l.candidates = append(l.candidates, candidate{wish: p.wish(r.now), until: until, votes: 1, offered: p.Tok})
			r.perPeer[p.Node]++
			r.mark(l)
		}
	}
	if !known {
		for _, p := range e.Queue {
			if l.waiter(p.Req.Session) < 0 && !l.over(p.Req) && len(l.queue) < WaitersPerLockMax {
				r.enqueue(l, p.wish(r.now))
			}
		}
	}
	r.watch(l, r.wakeOf(l))
	return l
}

// sweep drops what is now known to be over: a RELEASE is final wherever it was heard. What an owner was offered counts as used,
// since the report does not say.
func (r *Replica) sweep(l *lock) { r.dropOver(l, func(Req) bool { return true }) }

// sweepOf is sweep after the end of a request of one session, by which no other session's can be over. With many waiters, to look for all
// of them among all that have ended took longer than the rest of a hand-over.
func (r *Replica) sweepOf(l *lock, s Session) {
	if !r.known(l) { // I9 does not hold yet
		r.sweep(l)
		return
	}
	r.dropOver(l, func(q Req) bool { return q.Session == s })
}

// dropOver drops those requests that are known to be over, of those that may be.
func (r *Replica) dropOver(l *lock, may func(Req) bool) {
	if l.owned && may(l.owner.req) && l.over(l.owner.req) {
		r.consume(l)
		r.disown(l)
	}
	for i := 0; i < len(l.candidates); {
		if q := l.candidates[i].req; may(q) && l.over(q) {
			r.dropCandidate(l, i)
			continue
		}
		i++
	}
	for i := 0; i < len(l.queue); {
		if q := l.queue[i].req; may(q) && l.over(q) {
			r.dequeue(l, i)
			continue
		}
		i++
	}
}

func (p *ReportParty) wish(now automaton.Instant) wish {
	return wish{req: p.Req, reqTS: p.ReqTS, node: p.Node, ttl: p.TTL, delay: p.Delay, cs: p.CS, seen: now}
}

// prune is S5(iv): a candidate that too many reports do not name cannot have had a quorum.
func (r *Replica) prune(l *lock) {
	for i := 0; i < len(l.candidates); {
		if c := &l.candidates[i]; c.votes+len(r.log.Prev)-r.reports(l) < r.majorityPrev() {
			r.candidateWaits(l, i, true)
			continue
		}
		i++
	}
}

// candidateWaits turns a candidate into a waiter, or drops it when it has not been heard of and waits is false.
func (r *Replica) candidateWaits(l *lock, i int, waits bool) {
	w := l.candidates[i].wish
	r.dropCandidate(l, i)
	if waits && l.waiter(w.req.Session) < 0 && !l.over(w.req) {
		r.enqueue(l, w)
	}
}

func (r *Replica) dropCandidate(l *lock, i int) {
	r.mark(l)
	r.unpeer(l.candidates[i].node)
	l.candidates = slices.Delete(l.candidates, i, i+1)
}

// candidateSays handles the REQ of a session that has a candidate. It reports whether nothing is left to do.
func (r *Replica) candidateSays(l *lock, i int, from keyspace.NodeID, m *Message, out []Action) (bool, []Action) {
	c := &l.candidates[i]
	switch {
	case c.node != from || c.req.Seq > m.Req.Seq:
		return true, out
	case !r.known(l): // kept with the queue until all candidates are known (S4)
		return false, out
	case c.req != m.Req: // S5(ii)
		l.end(c.req, r.now)
		r.dropCandidate(l, i)
		return false, out
	case m.Tok == 0: // S5(i): it waits in this view, so it has left the former one without having entered
		r.dropCandidate(l, i)
		return false, out
	}
	c.claimed, c.tok, c.cs, c.seen, c.heard = true, m.Tok, max(c.cs, m.CS), r.now, true // S6
	c.ttl, c.delay = m.TTL, m.Delay
	out = r.grant(l, out)
	return true, r.answer(l, m.Req, out)
}

// trySettle is S4(a).
func (r *Replica) trySettle(out []Action) []Action {
	need := r.majorityPrev()
	if r.cfg.mutant == mutantOneReport {
		need = 1
	}
	if r.settled || r.booting || len(r.reported) < need {
		return out
	}
	return r.settle(out)
}

// settleByTime is S4(b): every lease of the views before is over.
func (r *Replica) settleByTime(out []Action) []Action {
	for _, name := range r.names() {
		l := r.locks[name]
		for len(l.candidates) > 0 {
			r.dropCandidate(l, 0)
		}
	}
	return r.settle(out)
}

// settle opens the view: every name that is not open yet.
func (r *Replica) settle(out []Action) []Action {
	invariant.Check(has(r.log.Members, r.cfg.Self), "only members settle", r.log)
	names := r.names()
	r.settled = true
	out = append(out, Action{Kind: Settled})
	for _, name := range names {
		if l := r.locks[name]; l != nil && !l.settled {
			out = r.open(l, out)
		}
	}
	for _, name := range r.pending() { // of which nobody knew anything
		out = r.seal(name, r.modes[name], out)
	}
	return out
}

// open opens a name: what was said while it was not settled counts now, those who have not spoken are told where to, and then it is
// granted.
func (r *Replica) open(l *lock, out []Action) []Action {
	l.settled = true
	r.sweep(l)
	for i := 0; i < len(l.candidates); {
		c := &l.candidates[i]
		j := l.waiter(c.req.Session)
		switch {
		case j < 0:
		case l.queue[j].req.Seq > c.req.Seq: // S5(ii), said here or in a report
			l.end(c.req, r.now)
			r.dropCandidate(l, i)
			continue
		case l.queue[j].req.Seq < c.req.Seq:
			l.end(l.queue[j].req, r.now)
			r.dequeue(l, j)
		case l.queue[j].heard && l.queue[j].tok == 0: // S5(i)
			r.dropCandidate(l, i)
			continue
		case l.queue[j].heard: // S6
			c.claimed = true
			c.wish = l.queue[j]
			r.dequeue(l, j)
		default: // another replica had it in its queue
			r.dequeue(l, j)
		}
		i++
	}
	r.sweep(l)
	if h := r.modes[l.name]; h != nil {
		return r.seal(l.name, h, out)
	}
	for i := range l.candidates {
		if c := &l.candidates[i]; !c.heard {
			out = r.moved(c.node, l.name, c.req, out)
		}
	}
	for j := range l.queue {
		if w := &l.queue[j]; !w.heard {
			out = r.moved(w.node, l.name, w.req, out)
		}
	}
	return r.rest(l, r.tick(l, out))
}
