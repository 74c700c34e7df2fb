package cachedobject

import (
	"maps"
	"slices"
	"time"

	"latchkey/coherence/durable"
	"latchkey/coherence/protocol"
	"latchkey/internal/automaton"
)

// State of an object.
type State uint8

// The states while a request is under way. Idle is INVALID, SHARED or EXCLUSIVE. A READ may be under way beside a WRITE, so that an object may be in
// WaitCopy and WaitExclusive at a time.
const (
	Idle State = iota
	WaitCopy
	WaitStore
	WaitExclusive
)

// Config of a node.
type Config struct {
	Self   protocol.NodeRef
	Params durable.Params
	First  durable.Seq // requests of this incarnation were numbered up to here
	// Fixed keeps READs and WRITEs from getting new numbers. It is for exploration, which has to end.
	Fixed bool
}

// Node is one node's side of one group. Not safe for concurrent use.
type Node struct {
	cfg    Config
	mutant durable.Mutant

	now       automaton.Instant
	tenure    durable.Tenure // the newest that a copy was cached of
	ssn       durable.Session
	held      bool // a lease was held
	leaseEnd  automaton.Instant
	seq       durable.Seq // the last one given out
	renewal   durable.Seq // the RENEW under way
	renewSent automaton.Instant

	objects map[string]*object
	owned   map[string]struct{} // objects with the exclusive right
	waiting map[string]struct{} // objects with a request under way
	dropped []dropped
	calls   int
	doomed  []string // of a mutant

	reach Reach // of what this step sends
	out   []Action
}

type dropped struct {
	object string
	seq    durable.Seq
}

type object struct {
	cell *Cell       // as published; readable only with the lease's tags
	fill durable.Seq // of the request that brought it
	// retained is the last value that was seen, for revalidation and stale reads.
	retained *Cell
	seenAt   automaton.Instant

	state   State // Idle, or what is done about call
	request request
	call    Call // of WaitStore and WaitExclusive
	given   bool // that call is waited for no longer

	reading bool // a READ is under way; never with WaitStore
	read    request
	first   []uint64 // Gets that were there when it was first sent

	queue []Call

	owned    durable.Seq // of the grant of the exclusive right; 0: none
	locked   bool        // somebody here uses it
	recalled durable.Message
}

// request is one that is under way.
type request struct {
	seq    durable.Seq
	sentAt automaton.Instant // when it was first sent
	sent   int               // how many voters, one or several times
	lastAt automaton.Instant // when it was last sent
	floor  durable.Version   // what is older must not be cached
}

// New returns the node's side of a group of which it has nothing.
func New(cfg Config) *Node {
	return &Node{
		cfg: cfg, seq: cfg.First, ssn: durable.Session{Inc: cfg.Self.Inc, N: 1},
		objects: map[string]*object{}, owned: map[string]struct{}{}, waiting: map[string]struct{}{},
	}
}

// Sabotage plants a mistake. It is for tests.
func (n *Node) Sabotage(m durable.Mutant) { n.mutant = m }

// Lease is to be published after each step.
func (n *Node) Lease() Lease { return Lease{n.tenure, n.ssn, n.leaseEnd, n.held} }

// Seq returns the number of the last request.
func (n *Node) Seq() durable.Seq { return n.seq }

// Waits reports whether a request is under way: then it needs [Repeat].
func (n *Node) Waits() bool { return n.calls > 0 }

// Knows reports whether anything is kept of an object: it is, until an [Evict] that finds nothing under way.
func (n *Node) Knows(name string) bool { return n.objects[name] != nil }

// Stale returns the last value that was seen of an object, and when it was known to be the present one.
func (n *Node) Stale(name string) (c *Cell, seenAt automaton.Instant) {
	if o := n.objects[name]; o != nil {
		return o.retained, o.seenAt
	}
	return nil, 0
}

// Step takes an event and appends what has to be done to out. A message that no rule takes is late or a duplicate, and is dropped.
func (n *Node) Step(ev Event, out []Action) []Action {
	n.out = out
	n.now, n.reach = max(n.now, ev.Now), ev.Reach
	for _, name := range n.doomed {
		n.publish(name, n.objects[name], nil)
	}
	n.doomed = nil
	if n.held && n.now >= n.leaseEnd || ev.Kind == Jump { // D7, before anything else; a lease that is under way counts from before the jump
		n.lapse()
	}
	switch ev.Kind {
	case Begin:
		n.begin(ev.Object, ev.Call)
	case GiveUp:
		n.giveUp(ev.Object, ev.Call.ID)
	case Unlock:
		if o := n.objects[ev.Object]; o != nil && o.locked {
			o.locked = false
			n.release(ev.Object, o)
			n.proceed(ev.Object, o)
		}
	case Receive:
		n.receive(ev.Msg)
	case Extend:
		n.extend()
	case Repeat:
		n.repeat(ev.Since)
	case Evict:
		n.evict(ev.Object)
	}
	out, n.out = n.out, nil
	return out
}

// lapse ends the session: what was granted in it is not used again, whatever comes.
func (n *Node) lapse() {
	n.held, n.leaseEnd = false, 0
	if n.mutant != durable.NoNewSession {
		n.ssn.N++
	}
	n.loseRights()
	n.dropped = nil
}

func (n *Node) loseRights() {
	for name := range n.owned {
		o := n.objects[name]
		o.owned, o.recalled = 0, durable.Message{}
	}
	clear(n.owned)
}

func (n *Node) readable(o *object) bool {
	l := n.Lease()
	return l.Allows(o.cell, n.now)
}

func (n *Node) at(name string) *object {
	o := n.objects[name]
	if o == nil {
		o = &object{}
		n.objects[name] = o
	}
	return o
}

func (n *Node) publish(name string, o *object, c *Cell) {
	if o != nil && o.cell != c {
		o.cell = c
		n.out = append(n.out, Action{Kind: Publish, Object: name, Cell: c})
	}
}

func (n *Node) done(a Action) {
	a.Kind = Done
	n.calls--
	n.out = append(n.out, a)
}

func (n *Node) send(m durable.Message) {
	m.Node = n.cfg.Self.ID
	n.out = append(n.out, Action{Kind: Send, Msg: m})
}

func (n *Node) begin(name string, c Call) {
	n.calls++
	if n.calls > CallsMax {
		n.done(Action{Call: c.ID, Outcome: Overloaded})
		return
	}
	o := n.at(name)
	if c.Kind == Holder {
		o.queue = slices.Insert(o.queue, 0, c)
	} else {
		o.queue = append(o.queue, c)
	}
	n.proceed(name, o)
}

// proceed begins with what waits, as far as nothing else is under way.
func (n *Node) proceed(name string, o *object) {
	if n.readable(o) && o.state != WaitStore {
		n.hit(name, o)
	}
	for {
		i := n.next(o)
		if i < 0 {
			return
		}
		c := o.queue[i]
		switch c.Kind {
		case Get:
			n.ask(name, o, WaitCopy)
		case Lock:
			o.queue = slices.Delete(o.queue, i, i+1)
			if o.owned != 0 && n.readable(o) && o.recalled.Seq == 0 {
				o.locked = true
				n.done(Action{Call: c.ID, Outcome: Locked, Version: o.cell.Version, Value: o.cell.Value})
				continue
			}
			o.call, o.given = c, false
			n.ask(name, o, WaitExclusive)
		default:
			o.queue, o.call, o.given = slices.Delete(o.queue, i, i+1), c, false
			if n.mutant != durable.ReadOwnMeanwhile {
				n.publish(name, o, nil) // reads wait for the write from here on
			}
			n.ask(name, o, WaitStore)
		}
	}
}

// next returns the first of the calls that wait that may begin; -1 if there is none. Who waits for a turn, which may take long, keeps nobody here from
// reading, and readers, however many, do not make it ask anew. It overtakes no write that waits for a READ alone: that write would wait for the turn too.
func (n *Node) next(o *object) int {
	writes := false // there is a write before
	return slices.IndexFunc(o.queue, func(c Call) bool {
		switch c.Kind {
		case Get:
			return !o.reading && o.state != WaitStore
		case Lock:
			return o.state == Idle && !o.locked && !writes
		}
		writes = true
		return o.state == Idle && !o.reading && (c.Kind == Holder || !o.locked)
	})
}

// hit serves the Gets that wait from a copy that may be read.
func (n *Node) hit(name string, o *object) {
	o.queue = slices.DeleteFunc(o.queue, func(c Call) bool {
		if c.Kind == Get {
			n.done(Action{Call: c.ID, Outcome: Found, Version: o.cell.Version, Value: o.cell.Value})
		}
		return c.Kind == Get
	})
}

// ask begins a request.
func (n *Node) ask(name string, o *object, s State) {
	n.waiting[name] = struct{}{}
	if s == WaitCopy {
		o.reading = true
		n.number(&o.read)
		n.gather(o)
	} else {
		o.state = s
		n.number(&o.request)
	}
	n.say(name, o, s)
}

// number gives a request a new number.
func (n *Node) number(r *request) {
	n.seq++
	*r = request{seq: n.seq, sentAt: n.now}
}

// gather has all Gets that wait be answered by the READ that is sent now (D14).
func (n *Node) gather(o *object) {
	o.queue = slices.DeleteFunc(o.queue, func(c Call) bool {
		if c.Kind == Get {
			o.first = append(o.first, c.ID)
		}
		return c.Kind == Get
	})
}

func (n *Node) say(name string, o *object, s State) {
	r := &o.request
	m := durable.Message{Session: n.ssn, Object: name}
	switch s {
	case WaitStore:
		c := &o.call
		m.Kind, m.Expect, m.Wanted, m.Delete, m.Value, m.TTL = durable.Store, c.Expect, c.Wanted, c.Delete, c.Value, c.TTL
	case WaitExclusive:
		m.Kind = durable.Write
	default:
		m.Kind, r = durable.Read, &o.read
	}
	if s != WaitStore && o.retained != nil && o.retained.Value != nil {
		m.Version = o.retained.Version
	}
	m.Seq, r.lastAt = r.seq, n.now
	switch n.reach {
	case One:
		r.sent++
	case Several:
		r.sent += 2
	}
	n.send(m)
}

func (n *Node) receive(m *durable.Message) {
	if m.Node != n.cfg.Self.ID || m.Session.Inc != n.cfg.Self.Inc {
		return // it is for an earlier incarnation
	}
	switch m.Kind {
	case durable.Copy:
		n.copied(m)
	case durable.Stored, durable.Conflict, durable.Refused:
		n.written(m)
	case durable.Invalidate:
		n.invalidate(m)
	case durable.Recall:
		n.recall(m)
	case durable.Lease:
		// D10. What was dropped before is known to the leader, or lost.
		if n.held && m.Tenure == n.tenure && m.Session == n.ssn && m.Seq == n.renewal && m.Lease > 0 {
			from := n.renewSent
			if n.mutant == durable.LeaseFromReply {
				from = n.now
			}
			n.leaseEnd = max(n.leaseEnd, from.Add(min(m.Lease, n.cfg.Params.Holder())))
		}
	}
}

// copied takes the answer to a READ or WRITE.
func (n *Node) copied(m *durable.Message) {
	o := n.objects[m.Object]
	var r *request // that it answers
	switch {
	case o == nil:
	case m.Exclusive && o.state == WaitExclusive && m.Seq == o.request.seq:
		r = &o.request
	case !m.Exclusive && o.reading && m.Seq == o.read.seq:
		r = &o.read
	}
	if r == nil { // D12
		if m.Exclusive && !(o != nil && o.owned == m.Seq && n.tenure == m.Tenure) {
			n.giveBack(m)
		}
		return
	}
	if m.Tenure.Compare(n.tenure) < 0 { // D12: the repeat goes to the newer leader
		return
	}
	c := &Cell{m.Value, m.Version, m.Tenure, m.Session}
	switch {
	case m.Content == durable.None:
		c.Value = nil
	case m.Content == durable.Same:
		if o.retained == nil || o.retained.Version != m.Version {
			return // it is not there any more: the repeat does not name it
		}
		c.Value = o.retained.Value
	}
	n.see(o, c, r)
	if !m.Exclusive {
		o.reading = false
		for _, id := range o.first { // D14
			n.done(Action{Call: id, Outcome: Found, Version: c.Version, Value: c.Value})
		}
		o.first = nil
		n.cache(m.Object, o, m, c, r)
		n.proceed(m.Object, o)
		return
	}
	o.state = Idle
	if n.cache(m.Object, o, m, c, r) && !o.given {
		o.owned, o.locked, o.recalled = m.Seq, true, durable.Message{}
		n.owned[m.Object] = struct{}{}
		n.done(Action{Call: o.call.ID, Outcome: Locked, Version: c.Version, Value: c.Value})
	} else {
		n.giveBack(m)
		if !o.given {
			o.queue = slices.Insert(o.queue, 0, o.call)
		}
	}
	n.proceed(m.Object, o)
}

// see keeps the newest value that was seen, in the answer to a request. Of two that are under way the later one may be answered first, with the same
// version or an older one: what the earlier one finds was there no earlier.
func (n *Node) see(o *object, c *Cell, r *request) {
	if o.retained == nil || o.retained.Version <= c.Version {
		o.retained, o.seenAt = c, max(o.seenAt, r.sentAt)
	}
}

// cache keeps the copy that answers a request if it may be read for a while (D15), and reports whether that is so. Otherwise there is none, unless a
// request beside this one has brought one.
func (n *Node) cache(name string, o *object, m *durable.Message, c *Cell, r *request) bool {
	from := r.sentAt
	if n.mutant == durable.LeaseFromReply {
		from = n.now
	}
	end := from.Add(min(m.Lease, n.cfg.Params.Holder()))
	lasts := n.now < end || n.mutant == durable.SessionLease && n.held
	if m.Session != n.ssn || m.Lease <= 0 || m.Version < r.floor && n.mutant != durable.NoFloor || !lasts || m.Tenure.Compare(n.tenure) < 0 {
		if !n.readable(o) || n.mutant == durable.ReadOwnMeanwhile {
			n.publish(name, o, nil)
		}
		return false
	}
	if n.tenure != m.Tenure { // the tags of all other copies are of another tenure from here on
		if n.mutant == durable.KeepOverTenure {
			for _, name := range slices.Sorted(maps.Keys(n.objects)) {
				if p := n.objects[name]; n.readable(p) {
					k := *p.cell
					k.Tenure = m.Tenure
					n.publish(name, p, &k)
				}
			}
		}
		n.tenure = m.Tenure
		n.loseRights()
		n.dropped = nil
	}
	n.held, n.leaseEnd = true, max(n.leaseEnd, end)
	n.publish(name, o, c)
	o.fill = m.Seq
	return true
}

// written takes the answer to a STORE.
func (n *Node) written(m *durable.Message) {
	o := n.objects[m.Object]
	if o == nil || o.state != WaitStore || m.Seq != o.request.seq { // D12
		return
	}
	a := Action{Call: o.call.ID, Seq: o.request.seq, Version: m.Version}
	c := &Cell{o.call.Value, m.Version, m.Tenure, m.Session}
	switch m.Kind {
	case durable.Stored:
		a.Outcome = Written
		n.see(o, c, &o.request)
	case durable.Conflict:
		if c.Value = m.Value; m.Content == durable.None {
			c.Value = nil
		}
		a.Outcome, a.Value = Mismatch, c.Value
		n.see(o, c, &o.request)
	case durable.Refused:
		// Had it been sent more than once, or to several voters, another copy of it might find room yet, at a later leader.
		if a.Outcome, a.Reason = Rejected, m.Reason; o.request.sent > 1 && (m.Reason == durable.Busy || m.Reason == durable.Full) {
			a.Outcome = Unknown
		}
		m.Lease = 0
	}
	o.state = Idle
	if !o.given {
		n.done(a)
	}
	n.cache(m.Object, o, m, c, &o.request)
	n.release(m.Object, o)
	n.proceed(m.Object, o)
}

func (n *Node) invalidate(m *durable.Message) {
	if o := n.objects[m.Object]; o != nil {
		// D16: an answer that is under way may be older than this. Where there is none, these are of no request.
		o.request.floor, o.read.floor = max(o.request.floor, m.Version), max(o.read.floor, m.Version)
		if o.cell != nil && o.cell.Version < m.Version {
			if n.mutant == durable.AckBeforeRevoke {
				n.doomed = append(n.doomed, m.Object)
			} else {
				n.publish(m.Object, o, nil)
			}
		}
	}
	n.send(durable.Message{Kind: durable.InvalidateAck, Tenure: m.Tenure, Session: m.Session, Object: m.Object, Version: m.Version})
}

// recall gives the exclusive right back, once it is not in use (D17).
func (n *Node) recall(m *durable.Message) {
	o := n.objects[m.Object]
	switch {
	case o != nil && o.state == WaitExclusive && o.request.seq == m.Seq: // it is granted, and the COPY is under way: it will be recalled again
	case o != nil && o.owned == m.Seq && n.tenure == m.Tenure && n.ssn == m.Session:
		o.recalled = *m
		n.release(m.Object, o)
		n.proceed(m.Object, o)
	default:
		n.giveBack(m)
	}
}

// release gives a recalled right back, unless an update here is in progress.
func (n *Node) release(name string, o *object) {
	if o.recalled.Seq != 0 && !o.locked && o.state != WaitStore {
		n.giveBack(&o.recalled)
		o.owned, o.recalled = 0, durable.Message{}
		delete(n.owned, name)
	}
}

// giveBack answers a RECALL, or a grant that nobody waits for.
func (n *Node) giveBack(m *durable.Message) {
	n.send(durable.Message{Kind: durable.Release, Tenure: m.Tenure, Session: m.Session, Seq: m.Seq, Object: m.Object})
}

func (n *Node) giveUp(name string, id uint64) {
	o := n.objects[name]
	if o == nil {
		return
	}
	if i := slices.IndexFunc(o.queue, func(c Call) bool { return c.ID == id }); i >= 0 {
		o.queue = slices.Delete(o.queue, i, i+1)
		n.done(Action{Call: id, Outcome: Given})
		return
	}
	if i := slices.Index(o.first, id); i >= 0 {
		o.first = slices.Delete(o.first, i, i+1)
		n.done(Action{Call: id, Outcome: Given})
		return
	}
	if o.call.ID != id || o.given {
		return
	}
	switch o.state {
	case WaitStore: // it may still be made: what is read from here on comes from the group
		o.state, o.given = Idle, true
		n.publish(name, o, nil)
		n.done(Action{Call: id, Seq: o.request.seq, Outcome: Unknown})
		n.release(name, o)
		n.proceed(name, o)
	case WaitExclusive: // a grant that comes is given back (D12)
		o.state, o.given = Idle, true
		n.done(Action{Call: id, Outcome: Given})
		n.proceed(name, o)
	}
}

func (n *Node) evict(name string) {
	o := n.objects[name]
	if o == nil || o.state != Idle || o.reading || o.owned != 0 || o.locked || len(o.queue) > 0 {
		return
	}
	if n.readable(o) && len(n.dropped) < DroppedMax { // D18
		n.dropped = append(n.dropped, dropped{name, o.fill})
	}
	n.publish(name, o, nil)
	delete(n.objects, name)
	delete(n.waiting, name)
}

// extend renews the lease on all copies.
func (n *Node) extend() {
	if !n.held {
		return
	}
	n.seq++
	n.renewal, n.renewSent = n.seq, n.now
	n.send(durable.Message{Kind: durable.Renew, Tenure: n.tenure, Session: n.ssn, Seq: n.renewal})
	for _, d := range n.dropped {
		n.send(durable.Message{Kind: durable.Dropped, Tenure: n.tenure, Session: n.ssn, Seq: d.seq, Object: d.object})
	}
	n.dropped = nil
}

// repeat says again what is waited for, unless it was said after since.
func (n *Node) repeat(since automaton.Instant) {
	late := func(r *request) bool { return since == 0 || r.lastAt <= since }
	renew := func(r *request, after time.Duration) bool { return n.now.Sub(r.sentAt) >= after && !n.cfg.Fixed }
	for _, name := range slices.Sorted(maps.Keys(n.waiting)) {
		o := n.objects[name]
		if o.state == Idle && !o.reading {
			delete(n.waiting, name)
			continue
		}
		if o.reading && late(&o.read) {
			if renew(&o.read, n.cfg.Params.Lease) {
				n.number(&o.read)
				n.gather(o)
			}
			n.say(name, o, WaitCopy)
		}
		if o.state == Idle || !late(&o.request) {
			continue
		}
		switch o.state {
		case WaitStore:
			if n.now.Sub(o.request.sentAt) >= StoreHorizon {
				n.giveUp(name, o.call.ID)
				continue
			}
		case WaitExclusive: // its turn may come late, and what it is given then has to last
			if renew(&o.request, n.cfg.Params.Lease/2) {
				n.number(&o.request)
			}
		}
		n.say(name, o, o.state)
	}
}

// age is how long ago t was, up to the longest that matters.
func (n *Node) age(t automaton.Instant) time.Duration {
	return min(max(0, n.now.Sub(t)), n.cfg.Params.Arbiter())
}
