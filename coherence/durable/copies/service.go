package copies

import (
	"cmp"
	"context"
	"sync"
	"sync/atomic"
	"time"

	"latchkey/coherence/durable"
	"latchkey/coherence/durable/cachedobject"
	"latchkey/coherence/durable/hit"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/internal/driver"
)

// Limits of what a node keeps, of all groups together, unless [Config] says otherwise.
const (
	ObjectsMax = 1 << 16
	BytesMax   = 256 << 20
)

// Periods.
const (
	turn = 50 * time.Millisecond // of the goroutine that looks after groups
	// A request is said again after repeatFirst, then after twice as long, at most after repeatMost; and to all voters once nothing
	// was heard from a leader for silentAfter. seekEvery is how often a group that is silent is looked up anew.
	repeatFirst = 250 * time.Millisecond
	repeatMost  = time.Second
	silentAfter = 500 * time.Millisecond
	seekEvery   = time.Second
	// againEvery is how often a hint who leads has a group's requests said again at once.
	againEvery = 50 * time.Millisecond
)

// Router carries messages to groups. Its methods do not block, and may lose what they are given.
type Router interface {
	// Whither returns where messages to the group of a prefix go: to who is known to lead it; to all its voters if nobody is, or if all.
	Whither(g keyspace.Prefix, all bool) cachedobject.Whither
	// Send carries messages there. It keeps nothing of the slice.
	Send(g keyspace.Prefix, to cachedobject.Whither, msgs []durable.Message)
	// Seek looks up who leads the group, and has [Service.Again] called when that is known.
	Seek(g keyspace.Prefix)
}

// Config of a [Service].
type Config struct {
	Self   protocol.NodeRef
	Clock  *driver.Clock
	Params durable.Params
	Router Router

	ObjectsMax int   // 0: [ObjectsMax]
	BytesMax   int64 // 0: [BytesMax]
}

// Service is what a node has of durable objects. Safe for concurrent use.
type Service struct {
	cfg  Config
	ctx  context.Context
	end  context.CancelFunc
	wg   sync.WaitGroup
	wake chan struct{}

	mu     sync.Mutex // after those of groups
	groups map[keyspace.Prefix]*group
	awake  map[*group]struct{} // that want to be looked after

	misses, invalidations, renewals    atomic.Uint64
	leases, refused, evictions, stores atomic.Uint64
	waiting                            atomic.Int64

	clock clockRing
}

// New makes a service. It does something once one of its objects is used. It is to be closed.
func New(cfg Config) *Service {
	cfg.ObjectsMax, cfg.BytesMax = cmp.Or(cfg.ObjectsMax, ObjectsMax), cmp.Or(cfg.BytesMax, BytesMax)
	s := &Service{cfg: cfg, wake: make(chan struct{}, 1), groups: make(map[keyspace.Prefix]*group), awake: make(map[*group]struct{})}
	s.ctx, s.end = context.WithCancel(context.Background())
	s.wg.Go(s.run)
	return s
}

// Close ends all calls with [ErrClosed]. Writes that were sent may take place.
func (s *Service) Close() {
	s.end()
	s.wg.Wait()
}

// Params returns what all groups have in common.
func (s *Service) Params() durable.Params { return s.cfg.Params }

// Stats tells what a node has done with durable objects.
type Stats struct {
	Objects       int    // that it has copies of, that may be read or not
	Bytes         int64  // of their values
	Hits          uint64 // reads that asked nobody; an estimate, since one in 64 is counted
	Misses        uint64 // that asked the group
	Refused       uint64 // misses that found a copy, and were not given it: its lease was over, or might be
	Invalidations uint64 // copies that were taken away since somebody writes
	Stores        uint64 // writes that took place
	Renewals      uint64 // that were asked for
	Leases        uint64 // copies and renewals that came with a lease
	Evictions     uint64
	Waiting       int // calls that wait now
}

// Stats returns what the node has done so far.
func (s *Service) Stats() Stats {
	objects, bytes := s.clock.size()
	hits := uint64(0)
	s.mu.Lock()
	for _, g := range s.groups {
		hits += g.lease.Hits()
	}
	s.mu.Unlock()
	return Stats{
		Objects: objects, Bytes: bytes, Hits: hits, Misses: s.misses.Load(), Refused: s.refused.Load(),
		Invalidations: s.invalidations.Load(), Stores: s.stores.Load(), Renewals: s.renewals.Load(), Leases: s.leases.Load(),
		Evictions: s.evictions.Load(), Waiting: int(s.waiting.Load()),
	}
}

// Receive takes what a member of a prefix's group says, in its order. It does not block.
func (s *Service) Receive(g keyspace.Prefix, msgs []durable.Message) {
	s.mu.Lock()
	p := s.groups[g]
	s.mu.Unlock()
	if p != nil { // else it is for somebody who was here before
		p.receive(msgs)
	}
}

// Again says again what waits for a group, since somebody else seems to lead it. It does not block.
func (s *Service) Again(g keyspace.Prefix) {
	s.mu.Lock()
	p := s.groups[g]
	s.mu.Unlock()
	if p != nil {
		p.again()
	}
}

func (s *Service) group(prefix keyspace.Prefix) *group {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.groups[prefix]
	if g == nil {
		g = &group{
			s: s, prefix: prefix, lease: hit.NewLease(s.cfg.Clock), entries: make(map[string]*entry), calls: make(map[uint64]chan cachedobject.Action),
			core: cachedobject.New(cachedobject.Config{Self: s.cfg.Self, Params: s.cfg.Params}), jumps: s.cfg.Clock.Jumps(),
		}
		s.groups[prefix] = g
	}
	return g
}

// run looks after the groups that want it.
func (s *Service) run() {
	timer := time.NewTimer(turn)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-s.wake:
			timer.Reset(turn)
			continue
		case <-s.ctx.Done():
			return
		}
		s.mu.Lock()
		awake := make([]*group, 0, len(s.awake))
		for g := range s.awake {
			awake = append(awake, g)
		}
		s.mu.Unlock()
		for _, g := range awake {
			g.look()
		}
		s.mu.Lock()
		if len(s.awake) > 0 {
			timer.Reset(turn)
		}
		s.mu.Unlock()
	}
}

// rouse has a group looked after. The group's mutex is held.
func (s *Service) rouse(g *group) {
	if g.awake {
		return
	}
	g.awake = true
	s.mu.Lock()
	first := len(s.awake) == 0
	s.awake[g] = struct{}{}
	s.mu.Unlock()
	if first {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// rest lets a group be. The group's mutex is held.
func (s *Service) rest(g *group) {
	g.awake = false
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.awake, g)
}

// group is the node's side of one group.
type group struct {
	s      *Service
	prefix keyspace.Prefix
	lease  *hit.Lease

	mu      sync.Mutex // before those of the router
	core    *cachedobject.Node
	entries map[string]*entry // of every object that core knows, and no others
	calls   map[uint64]chan cachedobject.Action
	last    uint64 // number of a call
	tags    cachedobject.Lease
	out     []cachedobject.Action
	ended   []ended
	jumps   uint64 // of the clock
	awake   bool
	pins    int  // watches, and objects that are held: the lease is renewed for them
	hot     bool // copies were hit since the lease was last renewed

	since    automaton.Instant // when something began to be waited for
	heard    automaton.Instant // when a leader last said something
	repeatAt automaton.Instant
	every    time.Duration // until the repeat after that
	sought   automaton.Instant
	renewed  automaton.Instant
	pressed  automaton.Instant // when a hint last had requests said again
}

// ended is a call that has ended, and with what.
type ended struct {
	to     chan cachedobject.Action
	action cachedobject.Action
}

// post is what is to be sent.
type post struct {
	to   cachedobject.Whither
	msgs []durable.Message
}

// whither says where what the next step says is to go. The mutex is held, so that nothing comes between what a step knows of that and its sending.
func (g *group) whither(all bool) post { return post{to: g.s.cfg.Router.Whither(g.prefix, all)} }

// step has the automaton take an event, does what it says, and adds to p what is to be sent once the mutex is free. It is held.
func (g *group) step(ev cachedobject.Event, p *post) {
	send := p.msgs
	defer func() { p.msgs = send }()
	ev.Now, ev.Reach = g.s.cfg.Clock.Now(), p.to.Reach
	if now := g.s.cfg.Clock.Jumps(); now != g.jumps {
		g.jumps = now
		g.out = g.core.Step(cachedobject.Event{Kind: cachedobject.Jump, Now: ev.Now}, g.out[:0])
		send = g.perform(send, ev.Now)
	}
	waited := g.core.Waits()
	g.out = g.core.Step(ev, g.out[:0])
	send = g.perform(send, ev.Now)
	switch waits := g.core.Waits(); {
	case waits && !waited:
		g.since, g.every = ev.Now, repeatFirst
		g.repeatAt = ev.Now.Add(g.every)
		fallthrough
	case waits || g.tags.Held:
		g.s.rouse(g)
	}
	// Whoever found that a hit is none, though the automaton would give one, has the lease published anew.
	if l := g.core.Lease(); l != g.tags || ev.Kind == cachedobject.Begin {
		g.tags = l
		g.lease.Publish(l)
	}
	for _, e := range g.ended { // who comes back at once finds the lease, and needs nobody
		e.to <- e.action // there is room
	}
	clear(g.ended)
	g.ended = g.ended[:0]
}

// perform does what the automaton said.
func (g *group) perform(send []durable.Message, now automaton.Instant) []durable.Message {
	for i := range g.out {
		a := &g.out[i]
		switch a.Kind {
		case cachedobject.Send:
			send = append(send, a.Msg)
		case cachedobject.Publish:
			e := g.entry(a.Object)
			e.copy.Publish(a.Cell)
			if e.changed != nil {
				close(e.changed)
				e.changed = nil
			}
		case cachedobject.Done:
			if c := g.calls[a.Call]; c != nil {
				delete(g.calls, a.Call)
				g.s.waiting.Add(-1)
				g.ended = append(g.ended, ended{c, *a})
			}
		}
	}
	clear(g.out) // the buffer keeps no value
	return send
}

func (g *group) send(p post) {
	if len(p.msgs) > 0 {
		g.s.cfg.Router.Send(g.prefix, p.to, p.msgs)
	}
}

func (g *group) receive(msgs []durable.Message) {
	g.mu.Lock()
	send := g.whither(false)
	for i := range msgs {
		m := &msgs[i]
		g.heard, g.every = g.s.cfg.Clock.Now(), repeatFirst
		switch {
		case m.Kind == durable.Invalidate && g.entries[m.Object] != nil && g.entries[m.Object].copy.Has():
			g.s.invalidations.Add(1)
		case m.Lease > 0:
			g.s.leases.Add(1)
		}
		g.step(cachedobject.Event{Kind: cachedobject.Receive, Msg: m}, &send)
		g.measure(m.Object)
	}
	g.mu.Unlock()
	g.send(send)
	g.s.evict()
}

func (g *group) again() {
	g.mu.Lock()
	now := g.s.cfg.Clock.Now()
	if !g.core.Waits() || now < g.pressed.Add(againEvery) {
		g.mu.Unlock()
		return
	}
	g.pressed = now
	send := g.whither(false)
	g.step(cachedobject.Event{Kind: cachedobject.Repeat}, &send)
	g.mu.Unlock()
	g.send(send)
}

// look is a turn.
func (g *group) look() {
	g.mu.Lock()
	now := g.s.cfg.Clock.Now()
	silent := now.Sub(max(g.heard, g.since))
	repeats := g.core.Waits() && now >= g.repeatAt
	all := repeats && silent >= silentAfter
	send := g.whither(all)
	if g.lease.Hot() {
		g.hot = true
	}
	l := g.core.Lease()
	d := g.s.cfg.Params.Holder()
	switch {
	case l.Held && now >= l.End:
		g.step(cachedobject.Event{}, &send) // D7
	case l.Held && (g.hot || g.pins > 0) && l.End.Sub(now) <= d/2 && (g.renewed == 0 || now.Sub(g.renewed) >= d/8):
		g.hot, g.renewed = false, now
		g.s.renewals.Add(1)
		g.step(cachedobject.Event{Kind: cachedobject.Extend}, &send)
	}
	seek := false
	if repeats {
		if seek = all && (g.sought == 0 || now.Sub(g.sought) >= seekEvery); seek {
			g.sought = now
		}
		g.every = min(2*g.every, repeatMost)
		g.repeatAt = now.Add(g.every)
		g.step(cachedobject.Event{Kind: cachedobject.Repeat, Since: now.Add(-repeatFirst / 2)}, &send)
	}
	if !g.core.Waits() && !g.core.Lease().Held {
		g.s.rest(g)
	}
	g.mu.Unlock()
	g.send(send)
	if seek {
		g.s.cfg.Router.Seek(g.prefix)
	}
}
