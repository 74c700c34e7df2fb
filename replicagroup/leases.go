package replicagroup

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/pb"
	"latchkey/replicagroup/placement"
	"latchkey/replicagroup/quorum"
)

// Under policy lease a replica of a prefix's group answers only while it holds a lease of the root, and the root revives by itself
// a group that has had none for too long (package placement has the rule). Under policy manual nothing of this file runs.

// doomsMax bounds the operators who wait for one group's lease to be over; more are answered BUSY.
const doomsMax = 64

// leases keeps the leases of the groups that are led on this host.
type leases struct {
	host *Host

	mu    sync.Mutex
	core  *placement.LeaseHolder
	out   []placement.HolderAction
	cells map[order.GroupID]*leaseCell
	sent  uint64 // Jumps of the clock when the round under way was sent
	timer *time.Timer
}

// leaseCell is what a replica knows of its lease; nil: it has none. Its shard reads it, and leases writes it.
type leaseCell = atomic.Pointer[heldLease]

type heldLease struct {
	from, until automaton.Instant
	jumps       uint64 // of the clock, up to when the lease was asked for
}

func newLeases(h *Host) *leases {
	l := &leases{host: h, core: placement.NewLeaseHolder(h.genesis), cells: make(map[order.GroupID]*leaseCell)}
	l.timer = time.AfterFunc(time.Hour, func() { l.step(placement.Wake{}) })
	context.AfterFunc(h.ctx, func() { l.timer.Stop() })
	return l
}

// lead tells that a replica leads, or no more. It drops the lease it had at once.
func (l *leases) lead(r *replica, leads bool) {
	r.lease.Store(nil)
	if leads {
		l.mu.Lock()
		l.cells[r.group] = r.lease
		l.mu.Unlock()
		l.step(placement.Lead{Group: r.group})
		return
	}
	l.step(placement.Follow{Group: r.group})
	l.mu.Lock()
	delete(l.cells, r.group)
	l.mu.Unlock()
}

// step feeds one event to the automaton and carries out what it asks for. Who calls it does not hold the host's mutex.
func (l *leases) step(ev placement.HolderEvent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.host.ctx.Err() != nil {
		return
	}
	now := l.host.clock.Now()
	l.out = l.core.Step(ev, now, l.out[:0])
	for _, a := range l.out {
		switch a := a.(type) {
		case placement.SendRenew:
			l.sent = l.host.clock.Jumps()
			l.host.spawn(func() { l.renew(a) })
		case placement.Hold:
			cell := l.cells[a.Group]
			switch {
			case cell == nil:
			case a.Until == 0:
				cell.Store(nil)
			default:
				cell.Store(&heldLease{a.From, a.Until, l.sent})
			}
		case placement.Refused:
			log.Infow("the parent grants no lease", "group", a.Group)
			l.host.auditDue() // it was revived without us, perhaps
		case placement.Arm:
			wait := time.Hour
			if a.At != automaton.Never {
				wait = max(0, a.At.Sub(now))
			}
			l.timer.Reset(wait)
		}
	}
	clear(l.out)
}

// renew asks the root's leader for leases.
func (l *leases) renew(a placement.SendRenew) {
	h := l.host
	ctx, cancel := context.WithTimeout(h.ctx, h.genesis.Lease/3)
	defer cancel()
	m := new(pb.RenewRequest)
	for _, g := range a.Groups {
		m.Groups = append(m.Groups, groupToPB(g))
	}
	req := marshal(m)
	var refused []order.GroupID
	d, err := h.locator.locate(ctx, keyspace.Prefix{}, false)
	if err == nil {
		err = h.askLeader(ctx, d, keyspace.Key{}, serviceRenew, func(placement.Descriptor) []byte { return req }, func(r reply) (bool, error) {
			if r.status != pb.Status_OK {
				return false, nil
			}
			refused, err = refusals(r.data, a.Groups)
			return err == nil, nil
		})
	}
	if err != nil {
		log.Debugw("leases were not renewed", "groups", len(a.Groups), "err", err)
		l.step(placement.NotRenewed{Round: a.Round})
		return
	}
	l.step(placement.Renewed{Round: a.Round, Refused: refused})
}

// leased reports whether answers may leave: always, but under policy lease in a prefix's group only as long as its lease lasts.
func (r *replica) leased() bool {
	if r.lease == nil {
		return true
	}
	l, c := r.lease.Load(), r.shard.host.clock
	if l == nil {
		return false
	}
	// Where the clock does not count suspended time, a jump says that it may have missed some.
	now := c.Now()
	return now >= l.from && now < l.until && c.Jumps() == l.jumps
}

// errNoLease is why a group that is well does not answer.
var errNoLease = errors.New("its lease has run out, and the overlay's root does not renew it")

// noLease is the answer to what was not begun for want of a lease.
func noLease() *pb.Reply { return &pb.Reply{Status: pb.Status_NO_LEASE} }

// nobody is a caller that does not listen.
type nobody struct{}

func (nobody) Reply([]byte) {}

// poll makes a leader that has lost sight of the majority of its voters find out whether it leads still. One that sleeps would go on
// renewing the lease of a group that serves nobody.
func (r *replica) poll() {
	if r.lease == nil || !r.leading {
		return
	}
	seen, voters := 0, r.view.Voters()
	for _, id := range voters {
		if m, _ := r.view.Member(id); !r.shard.suspects(m.Peer) {
			seen++
		}
	}
	if seen < quorum.Majority(len(voters)) {
		r.inquire(nobody{})
	}
}

// inquire has a read confirm that this replica leads, and that it has applied what was committed before. to hears its answer on the
// shard's goroutine.
func (r *replica) inquire(to caller) {
	r.waiters++
	r.read(&queryEvent{group: r.group, service: placement.Service, data: placement.LookupQuery(keyspace.Prefix{}), call: to})
}

// granting is the root replica's side of leases. It belongs to the replica's shard.
type granting struct {
	replica  *replica
	core     *placement.LeaseGrantor
	events   []placement.GrantorEvent // to be stepped
	stepping bool
	nextRef  uint64
	renewals map[uint64]renewal
	dooms    map[order.GroupID][]*dht.Request
}

// renewal is a renewal that waits for its answer.
type renewal struct {
	groups []order.GroupID
	req    *dht.Request
}

func newGranting(g placement.Genesis, r *replica) *granting {
	return &granting{replica: r, core: placement.NewLeaseGrantor(g, r.directory()),
		renewals: make(map[uint64]renewal), dooms: make(map[order.GroupID][]*dht.Request)}
}

// step feeds one event to the automaton and carries out what it asks for, and so on with the events that come of that.
func (g *granting) step(ev placement.GrantorEvent) {
	g.events = append(g.events, ev)
	if g.stepping {
		return
	}
	g.stepping = true
	for i := 0; i < len(g.events); i++ {
		for _, a := range g.core.Step(g.events[i], g.replica.shard.host.clock.Now(), nil) {
			g.perform(a)
		}
	}
	clear(g.events)
	g.events = g.events[:0]
	g.stepping = false
}

func (g *granting) perform(a placement.GrantorAction) {
	r, h := g.replica, g.replica.shard.host
	switch a := a.(type) {
	case placement.StartRound:
		r.inquire(roundEnd{g, a.Round})
	case placement.AnswerRenew:
		g.answer(a)
	case placement.CallRoll:
		h.spawn(func() {
			roll := h.Roll(h.ctx, a.Child.Descriptor)
			log.Infow("a group does not renew its lease", "group", a.Child.Group, "roll", roll.String())
			r.shard.box.Put(grantEvent{placement.RollCalled{Group: a.Child.Group, Majority: roll.Majority()}})
		})
	case placement.Regenerate:
		log.Warnw("reviving a group whose lease is over", "group", a.Child.Group)
		waiting := g.dooms[a.Child.Group]
		delete(g.dooms, a.Child.Group)
		h.creator.box.Put(creatorEvent{ev: placement.ReviveLost{Known: a.Child}})
		for _, req := range waiting {
			h.creator.take(placement.ReviveLost{Known: a.Child}, req)
		}
	case placement.Arm:
		if key := (timerKey{r, timerLease}); a.At == automaton.Never {
			r.shard.timers.Stop(key)
		} else {
			r.shard.timers.Set(key, a.At)
		}
	}
}

func (g *granting) answer(a placement.AnswerRenew) {
	w := g.renewals[a.Ref]
	delete(g.renewals, a.Ref)
	if !a.OK {
		w.req.Reply(marshal(&pb.Reply{Status: pb.Status_DROPPED}))
		return
	}
	m := new(pb.RenewAnswer)
	for i, group := range w.groups {
		if n := len(m.Refused); n < len(a.Refused) && a.Refused[n] == group {
			m.Refused = append(m.Refused, uint32(i))
		}
	}
	w.req.Reply(marshal(&pb.Reply{Status: pb.Status_OK, Data: marshal(m)}))
}

// lead tells that the root's replica leads, or no more.
func (g *granting) lead(leads bool) {
	g.step(placement.Leads{On: leads})
	for _, waiting := range g.dooms {
		for _, req := range waiting {
			req.Reply(marshal(g.replica.notLeader()))
		}
	}
	clear(g.dooms)
}

// allowed leaves out of what is about to be proposed the end of every generation that may hold a lease still. It is asked in the
// moment of the proposal: whoever wanted it may have waited, and this replica may have granted, or begun to lead anew, since.
func (g *granting) allowed(all []order.Propose) []order.Propose {
	return slices.DeleteFunc(all, func(p order.Propose) bool {
		if p.Cmd.Service != placement.Service || len(p.Cmd.Data) == 0 || placement.CommandKind(p.Cmd.Data[0]) != placement.Revive {
			return false
		}
		c, err := placement.DecodeCommand(p.Cmd.Data)
		group := order.GroupID{Overlay: g.replica.group.Overlay, Prefix: c.Prefix, Gen: c.Gen}
		if err != nil || g.core.MayRevive(group, g.replica.shard.host.clock.Now()) {
			return false
		}
		g.replica.done(order.Outcome{Ref: p.Ref, Err: order.ErrBusy})
		return true
	})
}

// roundEnd hears whether a majority has confirmed that this replica leads.
type roundEnd struct {
	granting *granting
	round    uint64
}

func (e roundEnd) Reply(data []byte) {
	a, err := e.granting.replica.shard.host.decode.reply(data)
	_, machine := statusFromPB(a.status) // the directory was asked at the read point, whatever it said
	e.granting.step(placement.RoundEnded{Round: e.round, OK: err == nil && machine, Own: automaton.Never})
}

// grantEvent is an event for the automaton of the root's replica, if it is here.
type grantEvent struct{ ev placement.GrantorEvent }

func (e grantEvent) handle(s *shard) {
	if r, ok := s.replicas[s.host.rootGroup().Life()]; ok && r.granting != nil {
		r.granting.step(e.ev)
	}
}

// renewEvent asks for leases.
type renewEvent struct{ renewal }

// handleRenew passes a renewal to the root's replica, if it is here.
func (h *Host) handleRenew(req *dht.Request) error {
	groups, err := h.decode.renewal(req.Data)
	if err == nil {
		h.submit(h.rootGroup(), renewEvent{renewal{groups, req}}, req)
	}
	return err
}

// renewal decodes the groups of a renewal.
func (d decoder) renewal(b []byte) ([]order.GroupID, error) {
	var m pb.RenewRequest
	if err := proto.Unmarshal(b, &m); err != nil {
		return nil, malformed("renewal: %v", err)
	}
	if len(m.Groups) > placement.RenewGroupsMax {
		return nil, malformed("renewal of %d groups (at most %d)", len(m.Groups), placement.RenewGroupsMax)
	}
	groups := make([]order.GroupID, len(m.Groups))
	for i, g := range m.Groups {
		var err error
		if groups[i], err = d.group(g); err != nil {
			return nil, malformed("renewal: %v", err)
		}
	}
	return groups, nil
}

// refusals decodes which of the groups that were asked for are refused.
func refusals(b []byte, asked []order.GroupID) ([]order.GroupID, error) {
	var m pb.RenewAnswer
	if err := proto.Unmarshal(b, &m); err != nil {
		return nil, malformed("answer to a renewal: %v", err)
	}
	var refused []order.GroupID
	for _, i := range m.Refused {
		if int64(i) >= int64(len(asked)) {
			return nil, malformed("answer about group %d of %d", i, len(asked))
		}
		refused = append(refused, asked[i])
	}
	return refused, nil
}

func (e renewEvent) handle(s *shard) {
	r, ok := s.replicas[s.host.rootGroup().Life()]
	switch {
	case !ok:
		s.host.absent(s.host.rootGroup(), e.req)
	case r.granting == nil:
		e.req.Reply(marshal(&pb.Reply{Status: pb.Status_REFUSED, Data: []byte("the overlay has no leases")}))
	case r.ready(e.req):
		g := r.granting
		g.nextRef++
		g.renewals[g.nextRef] = e.renewal
		g.step(placement.Renew{Ref: g.nextRef, Groups: e.groups})
	}
}

// doomEvent asks for the end of a generation as soon as its lease is over, on an operator's word.
type doomEvent struct{ reviveEvent }

func (e doomEvent) handle(s *shard) {
	h := s.host
	r, ok := s.replicas[h.rootGroup().Life()]
	if !ok {
		h.absent(h.rootGroup(), e.req)
		return
	}
	if !r.ready(e.req) {
		return
	}
	known, ok := r.directory().Lookup(e.prefix)
	if !ok || known.Group.Gen != e.gen { // done by somebody else
		e.reviveEvent.handle(s)
		return
	}
	g := r.granting
	if len(g.dooms[known.Group]) >= doomsMax {
		e.req.Reply(marshal(busy()))
		return
	}
	g.dooms[known.Group] = append(g.dooms[known.Group], e.req)
	g.step(placement.Doom{Group: known.Group})
}
