package replicagroup

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/internal/driver"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/pb"
	"latchkey/replicagroup/placement"
)

// creator drives the parent leader's side of creating groups: it carries out what placement.Creator asks for and feeds it
// what comes of that. It idles on peers whose root replica does not lead.
type creator struct {
	host *Host
	box  *driver.Mailbox[creatorEvent]
	ring *keyring // whose it is; nil: it makes the groups of the overlay's prefixes, for the root

	// The rest belongs to the goroutine of run.
	core    *placement.Creator
	ensures map[uint64]*dht.Request
	own     map[uint64]order.GroupID // revivals that this leader wants itself: nobody waits for them
	asking  map[peer.ID]int          // how many of ensures are whose
	nextRef uint64
	wake    automaton.Instant
}

// creatorEvent is an event for the core; req is the request behind an Ensure.
type creatorEvent struct {
	ev  placement.CreatorEvent // nil: the creator ends
	req *dht.Request
}

// ensureEvent asks the root's replica for a prefix's group.
type ensureEvent struct {
	prefix keyspace.Prefix
	req    *dht.Request
}

func newCreator(h *Host, core *placement.Creator) *creator {
	return &creator{
		host: h, box: driver.NewMailbox[creatorEvent](mailboxMax), core: core,
		ensures: make(map[uint64]*dht.Request), asking: make(map[peer.ID]int), own: make(map[uint64]order.GroupID), wake: automaton.Never,
	}
}

func (c *creator) start() {
	c.host.spawn(c.run)
}

func (c *creator) run() {
	defer context.AfterFunc(c.host.ctx, c.box.Close)()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var batch []creatorEvent
	var out []placement.CreatorAction
	for {
		wait := time.Hour
		if c.wake != automaton.Never {
			wait = max(0, c.wake.Sub(c.host.clock.Now()))
		}
		timer.Reset(wait)
		select {
		case <-c.box.Wake():
		case <-timer.C:
		}
		var closed bool
		if batch, closed = c.box.Take(batch); closed {
			return
		}
		now := c.host.clock.Now()
		out = out[:0]
		ends := false
		for _, e := range batch {
			switch ev := e.ev.(type) {
			case nil:
				ends = true
				continue
			case placement.Ensure:
				if !c.admit(e.req) {
					continue
				}
				ev.Ref = c.await(e.req)
				e.ev = ev
			case placement.ReviveLost:
				if e.req != nil && !c.admit(e.req) {
					continue
				}
				ev.Ref = c.await(e.req)
				if e.ev = ev; e.req == nil {
					c.own[ev.Ref] = ev.Known.Group
				}
			}
			out = c.core.Step(e.ev, now, out)
		}
		if c.wake <= now {
			c.wake = automaton.Never
			out = c.core.Step(placement.Wake{}, now, out)
		}
		for _, a := range out {
			c.perform(a)
		}
		clear(out)
		if ends {
			c.end()
			return
		}
	}
}

// end answers those who came too late, and takes nothing further.
func (c *creator) end() {
	c.box.Close()
	rest, _ := c.box.Take(nil)
	for _, e := range rest {
		if e.req != nil {
			e.req.Reply(marshal(busy()))
		}
	}
}

// admit counts an Ensure of a peer in, or answers that it has too many under way.
func (c *creator) admit(req *dht.Request) bool {
	if c.asking[req.From] >= ensuresPerPeerMax {
		c.host.counters.busy.Add(1)
		c.host.refuse(req, busy())
		return false
	}
	c.asking[req.From]++
	return true
}

// await remembers who waits for an AnswerEnsure.
func (c *creator) await(req *dht.Request) uint64 {
	c.nextRef++
	c.ensures[c.nextRef] = req
	return c.nextRef
}

// feed gives the core an event that was asked for, so its number is bounded.
func (c *creator) feed(ev placement.CreatorEvent) { c.box.Put(creatorEvent{ev: ev}) }

func (c *creator) perform(a placement.CreatorAction) {
	h := c.host
	switch a := a.(type) {
	case placement.LookUp:
		h.spawn(func() { c.lookUp(a) })
	case placement.AskHost:
		msg := marshal(&pb.HostRequest{Prefix: groupToPB(order.GroupID{Prefix: a.Prefix}).Prefix})
		node := a.Peer.Node()
		h.learn(a.Peer)
		h.overlay.Go(peer.ID(a.Peer.ID), keyspace.Key{}, serviceHost, msg, askTimeout, func(b []byte, err error) {
			var m pb.HostReply
			answer := placement.HostAnswer{Prefix: a.Prefix, Peer: node}
			if err == nil {
				err = proto.Unmarshal(b, &m)
			}
			if answer.OK = m.Ok; err == nil && m.Ok {
				err = fixed(answer.Store[:], m.Store, "store id")
			}
			if err != nil {
				c.feed(placement.NoAnswer{Prefix: a.Prefix, Peer: node})
				return
			}
			c.feed(answer)
		})
	case placement.Propose:
		h.spawn(func() { c.propose(a.Ref, a.Command) })
	case placement.ProposeKey:
		h.spawn(func() { c.ring.propose(a) })
	case placement.SendStart:
		msg := marshal(&pb.StartRequest{Descriptor_: encodeDescriptor(a.Descriptor)})
		h.overlay.Go(peer.ID(a.Peer.ID), keyspace.Key{}, serviceStart, msg, askTimeout, func(b []byte, err error) {
			var m pb.StartReply
			if err != nil || proto.Unmarshal(b, &m) != nil || !m.Started {
				return // the core repeats it
			}
			if member, ok := a.Descriptor.View.MemberAt(a.Peer.Node()); ok {
				c.feed(placement.Started{Group: a.Descriptor.Group, Peer: member.Peer, Replica: member.ID, Store: member.Store})
			}
		})
	case placement.AnswerEnsure:
		req := c.ensures[a.Ref]
		delete(c.ensures, a.Ref)
		if g, own := c.own[a.Ref]; own {
			delete(c.own, a.Ref)
			if a.Err != nil {
				log.Warnw("a lost group was not revived; that is tried again", "group", g, "err", a.Err)
			}
			h.shardOf(h.rootGroup()).box.Put(grantEvent{placement.RevivalEnded{Group: g}})
			return
		}
		if c.asking[req.From]--; c.asking[req.From] == 0 {
			delete(c.asking, req.From)
		}
		if c.ring != nil && a.Err == nil {
			c.ring.ensured(a.Descriptor, req)
			return
		}
		req.Reply(marshal(c.ensured(a)))
	case placement.Arm:
		c.wake = a.At
	}
}

func (c *creator) ensured(a placement.AnswerEnsure) *pb.Reply {
	switch {
	case a.Err == nil:
		return &pb.Reply{Status: pb.Status_OK, Descriptor_: encodeDescriptor(a.Descriptor)}
	case errors.Is(a.Err, placement.ErrNotLeader):
		return &pb.Reply{Status: pb.Status_NOT_LEADER}
	case errors.Is(a.Err, placement.ErrPrefix):
		return &pb.Reply{Status: pb.Status_REFUSED}
	case errors.Is(a.Err, placement.ErrRefused):
		return &pb.Reply{Status: pb.Status_REFUSED, Data: []byte(strings.TrimPrefix(a.Err.Error(), placement.ErrRefused.Error()+": "))}
	case errors.Is(a.Err, placement.ErrUndecided):
		return &pb.Reply{Status: pb.Status_DROPPED}
	}
	log.Infow("a group could not be created", "err", a.Err)
	return &pb.Reply{Status: pb.Status_BUSY, Data: []byte(a.Err.Error())}
}

func (c *creator) lookUp(a placement.LookUp) {
	ctx, cancel := context.WithTimeout(c.host.ctx, locateTimeout) // above what one frozen peer can make a look-up last
	defer cancel()
	found := placement.Closest{Prefix: a.Prefix}
	infos, err := c.host.overlay.ReplicaSet(ctx, a.Anchor, a.N)
	if err != nil {
		log.Debugw("look-up failed", "prefix", a.Prefix, "err", err)
	}
	for _, i := range infos {
		found.Peers = append(found.Peers, peerOfInfo(i))
	}
	c.feed(found)
}

// peerOfInfo is a peer as descriptors name it.
func peerOfInfo(i peer.AddrInfo) placement.Peer {
	p := placement.Peer{ID: string(i.ID)}
	for _, a := range i.Addrs[:min(len(i.Addrs), placement.AddrsMax)] {
		if s := a.String(); len(s) <= placement.AddrBytesMax {
			p.Addrs = append(p.Addrs, s)
		}
	}
	return p
}

// propose has a command of the directory executed, in a session of this host like any other client's.
func (c *creator) propose(ref uint64, cmd placement.Command) {
	ctx, cancel := context.WithTimeout(c.host.ctx, locateTimeout)
	defer cancel()
	data, err := cmd.Encode()
	var res placement.Result
	if err == nil {
		if data, err = c.host.internal.do(ctx, keyspace.Prefix{}, placement.Service, data); err == nil {
			res, err = placement.DecodeResult(data)
		}
	}
	if cmd.Kind != placement.Create && cmd.Kind != placement.Revive {
		return
	}
	revived := cmd.Kind == placement.Revive && res.Status == placement.WrongGen && res.Child.Group.Gen > cmd.Gen
	switch {
	case err != nil:
		c.feed(placement.NotCommitted{Prefix: cmd.Prefix, Ref: ref, Err: err})
	case res.Status == placement.OK, res.Status == placement.Exists, revived:
		log.Infow("group created", "group", res.Child.Group, "status", res.Status, "voters", len(res.Child.View.Members))
		c.feed(placement.Committed{Child: res.Child})
	default:
		c.feed(placement.NotCommitted{Prefix: cmd.Prefix, Ref: ref, Err: fmt.Errorf("%w: %v", placement.ErrRefused, res.Status)})
	}
}

// handleEnsure passes an Ensure to the root's replica, if it is here.
func (c *creator) handleEnsure(req *dht.Request) error {
	var m pb.EnsureRequest
	if err := proto.Unmarshal(req.Data, &m); err != nil {
		return malformed("ensure: %v", err)
	}
	p, err := decodePrefix(m.Prefix)
	if err != nil {
		return err
	}
	if c.host.ownPrefix(p) {
		parent, err := c.host.parentGroup(m.Parent, p)
		if err == nil {
			c.host.submit(parent, ensureOwn{parent, p, keyspace.Preimage(m.Name), req}, req)
		}
		return err
	}
	c.host.submit(c.host.rootGroup(), ensureEvent{p, req}, req)
	return nil
}

func (e ensureEvent) handle(s *shard) {
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
	if left := r.directory().Quarantine() - r.state().Now(); !ok && left > 0 {
		e.req.Reply(marshal(&pb.Reply{Status: pb.Status_BUSY, Data: fmt.Appendf(nil,
			"the root is new, and waits %v more for a group of prefix %v that may have survived", left.Round(time.Second), e.prefix)}))
		return
	}
	h.creator.take(placement.Ensure{Prefix: e.prefix, Known: known}, e.req)
}

// directory is the root replica's directory; only its shard's goroutine may touch it.
func (r *replica) directory() *placement.Directory {
	return r.state().Machine(placement.Service).(directoryMachine).Directory
}

// hosting drives a member's side of creating groups.
type hosting struct {
	host *Host
	box  *driver.Mailbox[hostingEvent]

	// The rest belongs to the goroutine of run.
	core    *placement.Hosting
	waiting map[uint64]*dht.Request
	nextRef uint64
}

type hostingEvent struct {
	ev  placement.HostingEvent
	req *dht.Request
}

func newHosting(h *Host) *hosting {
	return &hosting{host: h, box: driver.NewMailbox[hostingEvent](mailboxMax), waiting: make(map[uint64]*dht.Request)}
}

// start begins with the replicas that the store holds.
func (m *hosting) start(known []StoredReplica, retired map[order.GroupID]order.ReplicaID) {
	cfg := placement.HostingConfig{Genesis: m.host.genesis, Self: m.host.overlay.Node(), Store: m.host.storeID, Declines: m.host.declines || m.host.store == nil}
	for _, r := range known {
		cfg.Hosted = append(cfg.Hosted, placement.Hosted{Group: r.Group, Replica: r.Self})
	}
	for g, id := range retired {
		cfg.Tombstones = append(cfg.Tombstones, placement.Tombstone{Group: g, Replica: id})
	}
	m.core = placement.NewHosting(cfg)
	m.host.wg.Go(m.run)
	context.AfterFunc(m.host.ctx, m.box.Close)
}

func (m *hosting) run() {
	var batch []hostingEvent
	var out []placement.HostingAction
	for {
		<-m.box.Wake()
		var closed bool
		if batch, closed = m.box.Take(batch); closed {
			return
		}
		out = out[:0]
		for _, e := range batch {
			if e.req != nil {
				m.nextRef++
				m.waiting[m.nextRef] = e.req
			}
			switch ev := e.ev.(type) {
			case placement.WillYouHost:
				ev.Ref = m.nextRef
				e.ev = ev
			case placement.Probe:
				ev.Ref = m.nextRef
				e.ev = ev
			case placement.StartReplica:
				ev.Ref = m.nextRef
				e.ev = ev
			}
			out = m.core.Step(e.ev, out)
		}
		for _, a := range out {
			m.perform(a)
		}
		clear(out)
	}
}

func (m *hosting) perform(a placement.HostingAction) {
	switch a := a.(type) {
	case placement.AnswerHost:
		m.reply(a.Ref, marshal(&pb.HostReply{Ok: a.OK, Store: a.Store[:]}))
	case placement.AnswerProbe:
		up := m.host.clock.Now().Sub(m.host.since) / time.Millisecond
		reply := &pb.ProbeReply{UpMs: uint64(max(up, 0)), Hosts: a.Hosts, Room: a.Room}
		if m.host.store != nil {
			reply.Store = a.Store[:]
		}
		m.reply(a.Ref, marshal(reply))
	case placement.AnswerStart:
		if a.Err != nil {
			log.Infow("refused to start a replica", "err", a.Err)
		}
		m.reply(a.Ref, marshal(&pb.StartReply{Started: a.Err == nil}))
	case placement.Confirm:
		m.host.spawn(func() { m.confirm(a.Group) })
	case placement.Bury:
		if err := m.host.supersede(a.Group, a.Replica); err != nil {
			log.Warnw("replica of a generation that is over could not be put aside", "group", a.Group, "err", err)
		}
	case placement.Run:
		err := m.begin(a)
		if err != nil {
			log.Warnw("replica did not start", "group", a.Descriptor.Group, "err", err)
		}
		m.box.Put(hostingEvent{ev: placement.Running{Group: a.Descriptor.Group, Err: err}})
	}
}

func (m *hosting) reply(ref uint64, data []byte) {
	req := m.waiting[ref]
	delete(m.waiting, ref)
	req.Reply(data)
}

// begin puts a replica into the store, then runs it.
func (m *hosting) begin(a placement.Run) error {
	if err := m.host.retire(a.Descriptor.Group, a.Replica); err != nil {
		return err
	}
	err := m.host.store.Create(Identity{Group: a.Descriptor.Group, Self: a.Replica, Descriptor: encodeDescriptor(a.Descriptor)})
	if err != nil {
		return err
	}
	return m.host.run(a.Descriptor, a.Replica, order.Image{}, a.Join, false)
}

// confirm reads linearizably what the parent's directory says of a group. The root has no parent; a read of it brings what this
// peer knows of the root up to date.
func (m *hosting) confirm(g order.GroupID) {
	ctx, cancel := context.WithTimeout(m.host.ctx, askTimeout)
	defer cancel()
	res, _, err := m.host.lookup(ctx, g.Prefix)
	if g == m.host.rootGroup() {
		res.Child.Descriptor, _ = m.host.locator.cached(g.Prefix)
	}
	m.box.Put(hostingEvent{ev: placement.Confirmed{Group: g, Child: res.Child, Err: err}})
}

func (m *hosting) handleHost(req *dht.Request) error {
	var r pb.HostRequest
	if err := proto.Unmarshal(req.Data, &r); err != nil {
		return malformed("host: %v", err)
	}
	p, err := decodePrefix(r.Prefix)
	if err != nil {
		return err
	}
	m.host.withParent(req.From, p, func(parent bool) {
		if !parent {
			m.decline(req)
			return
		}
		m.submit(hostingEvent{placement.WillYouHost{Prefix: p}, req})
	})
	return nil
}

func (m *hosting) handleStart(req *dht.Request) error {
	var r pb.StartRequest
	if err := proto.Unmarshal(req.Data, &r); err != nil {
		return malformed("start: %v", err)
	}
	d, err := m.host.decode.descriptor(r.Descriptor_)
	if err != nil {
		return err
	}
	m.host.withParent(req.From, d.Group.Prefix, func(parent bool) {
		from := dht.NodeIDOf(req.From)
		if _, member := d.View.MemberAt(from); !member && !parent {
			m.decline(req)
			return
		}
		m.submit(hostingEvent{placement.StartReplica{From: from, Parent: parent, Descriptor: d}, req})
	})
	return nil
}

// submit takes a request, or declines when there is no room: the asker tries again, or another.
func (m *hosting) submit(e hostingEvent) {
	if !m.box.TryPut(e) {
		m.decline(e.req)
	}
}

// decline answers no: by an empty HostReply or StartReply. Whoever belongs neither to the parent nor, for a Start, to the group
// that it describes is declined: each Start costs a question to the parent, and few are under way at a time.
func (m *hosting) decline(req *dht.Request) {
	m.host.counters.busy.Add(1)
	req.Reply(nil)
}
