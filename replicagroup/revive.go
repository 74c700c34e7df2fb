package replicagroup

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/pb"
	"latchkey/replicagroup/placement"
	"latchkey/replicagroup/quorum"
)

// Present is what a member of a group said when it was asked whether it is there.
type Present struct {
	Answers bool // it runs its replica
	Away    bool // it did not answer at all
	Leading bool // it leads, as far as it knows
	Leader  keyspace.NodeID
	View    uint64
}

// Roll tells who of a group's members is there. A group of which no majority of the voters is serves nobody.
type Roll struct {
	Descriptor placement.Descriptor // the latest view that anybody who was asked knows
	Present    []Present            // Present[i] is of Descriptor.View.Members[i]
}

// Voters returns how many voters there are and how many of them answer.
func (r Roll) Voters() (answering, all int) {
	for i, m := range r.Descriptor.View.Members {
		if m.Role == order.Learner {
			continue
		}
		if all++; r.Present[i].Answers {
			answering++
		}
	}
	return answering, all
}

// Majority reports whether a majority of the voters answers.
func (r Roll) Majority() bool {
	answering, all := r.Voters()
	return answering >= quorum.Majority(all)
}

// String says for people who answers and who does not.
func (r Roll) String() string {
	var here, gone []string
	for i, m := range r.Descriptor.View.Members {
		switch name := peer.ID(r.Descriptor.Peers[i].ID).String(); {
		case m.Role == order.Learner:
		case r.Present[i].Answers:
			here = append(here, name)
		case r.Present[i].Away:
			gone = append(gone, name+" (does not answer)")
		default:
			gone = append(gone, name+" (has no replica of it)")
		}
	}
	names := func(s []string) string {
		if len(s) == 0 {
			return "none"
		}
		return strings.Join(s, ", ")
	}
	return fmt.Sprintf("of its voters answer: %s; and not: %s", names(here), names(gone))
}

// Child returns what the root's directory says of a prefix's group, by a linearizable read. It creates nothing: a prefix without a
// group is [ErrNoGroup]. It blocks until the root answers or ctx ends ([ErrNoQuorum]).
func (h *Host) Child(ctx context.Context, p keyspace.Prefix) (placement.Child, error) {
	if _, known := h.locator.cached(h.parentOf(p)); !known { // to ask a prefix's group that does not exist would make it
		if _, err := h.Child(ctx, h.parentOf(p)); err != nil {
			return placement.Child{}, err
		}
	}
	res, _, err := h.lookup(ctx, p)
	switch {
	case err != nil:
		return placement.Child{}, err
	case res.Status == placement.NotFound:
		return placement.Child{}, fmt.Errorf("%w: %v", ErrNoGroup, p)
	case res.Status != placement.OK:
		return placement.Child{}, fmt.Errorf("%w: prefix %v: %v; this overlay's prefixes have %d bits", ErrRefused, p, res.Status, h.genesis.Depth)
	}
	return res.Child, nil
}

// Known returns the descriptor that this host has of a prefix's group, of the root for the whole key space. It asks nobody.
func (h *Host) Known(p keyspace.Prefix) (placement.Descriptor, bool) { return h.locator.cached(p) }

// Children returns what the root's directory holds, by rising prefix. It blocks until the root answers or ctx ends ([ErrNoQuorum]).
func (h *Host) Children(ctx context.Context) ([]placement.Summary, error) {
	var all []placement.Summary
	for after, more := (keyspace.Prefix{}), true; more; {
		data, err := h.internal.query(ctx, keyspace.Prefix{}, placement.Service, placement.ListQuery(after))
		if err != nil {
			return nil, err
		}
		l, err := placement.DecodeListing(data)
		if err != nil {
			return nil, err
		}
		if more = l.More && len(l.Children) > 0; len(l.Children) > 0 {
			after = l.Children[len(l.Children)-1].Prefix
		}
		all = append(all, l.Children...)
	}
	return all, nil
}

// Roll calls the roll of a group: it asks every member of d, and of later views that they know, whether it is there. It needs no
// majority of anything. It blocks for [rollTime] at most when somebody does not answer; ctx ends it earlier.
func (h *Host) Roll(ctx context.Context, d placement.Descriptor) Roll {
	ctx, cancel := context.WithTimeout(ctx, rollTime)
	defer cancel()
	if known, ok := h.locator.cached(d.Group.Prefix); ok && known.Group == d.Group && placement.Newer(known, d) {
		d = known
	}
	answers := make(map[string]Present) // by peer id
	for {
		var ask []placement.Peer
		for _, p := range d.Peers {
			if a, asked := answers[p.ID]; !asked || a.Away {
				ask = append(ask, p)
			}
		}
		var asking sync.WaitGroup
		var mu sync.Mutex // guards answers and newest while asking
		newest := d
		for _, p := range ask {
			h.learn(p)
			asking.Go(func() {
				a, told := h.present(ctx, peer.ID(p.ID), d.Group)
				mu.Lock()
				defer mu.Unlock()
				if answers[p.ID] = a; told.Group == d.Group && placement.Newer(told, newest) {
					newest = told
				}
			})
		}
		asking.Wait()
		r := Roll{Descriptor: d}
		away := false
		for _, p := range d.Peers {
			r.Present = append(r.Present, answers[p.ID])
			away = away || answers[p.ID].Away
		}
		switch {
		case placement.Newer(newest, d):
			d = newest
		case !away || pause(ctx, rollPause) != nil:
			return r
		}
	}
}

// present asks one peer whether it runs a replica of a group.
func (h *Host) present(ctx context.Context, p peer.ID, g order.GroupID) (Present, placement.Descriptor) {
	var m pb.PresentReply
	b, err := h.overlay.Call(ctx, p, keyspace.Key{}, servicePresent, marshal(&pb.PresentRequest{Group: groupToPB(g)}))
	if err == nil {
		err = proto.Unmarshal(b, &m)
	}
	if err != nil {
		return Present{Away: true}, placement.Descriptor{}
	}
	if !m.Present {
		return Present{}, placement.Descriptor{}
	}
	a := Present{Answers: true, Leading: m.Leading}
	d, err := h.decode.descriptor(m.Descriptor_)
	if err == nil && d.Group == g {
		a.View = d.View.Num
	}
	if len(m.Leader) == len(a.Leader) {
		copy(a.Leader[:], m.Leader)
	}
	return a, d
}

// presentEvent asks whether a replica is here.
type presentEvent struct {
	group order.GroupID
	req   *dht.Request
}

func (h *Host) handlePresent(req *dht.Request) error {
	var m pb.PresentRequest
	if err := proto.Unmarshal(req.Data, &m); err != nil {
		return malformed("present: %v", err)
	}
	g, err := h.decode.group(m.Group)
	if err != nil {
		return err
	}
	if !h.shardOf(g).box.TryPut(presentEvent{g, req}) {
		h.counters.busy.Add(1) // without an answer the asker does not know, which is true
	}
	return nil
}

func (e presentEvent) handle(s *shard) {
	var m pb.PresentReply
	if r, ok := s.replicas[e.group.Life()]; ok && !r.halted {
		m.Present, m.Leading, m.Descriptor_ = true, r.leading, encodeDescriptor(*r.descriptor)
		leader, _ := r.engine.Leader()
		if l, ok := r.view.Member(leader); ok {
			m.Leader = l.Peer[:]
		}
	} else {
		s.host.rumour(e.group)
	}
	e.req.Reply(marshal(&m))
}

// leaves reports whether the group has removed this replica, which goes on for a little while: nobody leads it any more, and that
// says nothing about the group.
func (r *replica) leaves() bool {
	m, ok := r.view.Member(r.self)
	return r.parting || !ok || m.Role == order.Leaving
}

// silence is for how long no leader has been known, or the group has slept without one, or without a majority.
func (r *replica) silence() time.Duration {
	if r.halted || r.leaves() {
		return 0
	}
	since := r.leaderless
	if r.led {
		var lost bool
		if since, lost = r.lost(); !lost {
			return 0
		}
	}
	return max(r.shard.host.clock.Now().Sub(since), 1)
}

// Revive brings back the group of a prefix that has lost its majority for good: the root makes the generation after gen, with new
// members and without what the old ones knew. Locks count as released then; tokens go on rising, and no lock is granted before
// every lease of the old generation is over. It returns the new group's descriptor once a majority of it runs.
//
// The root's leader first calls the roll of the old generation: when a majority of its voters answers, that is [ErrAlive], unless
// force is set. A majority that is merely cut off from the root goes on serving its own side; there, only the token protects.
// A prefix without a group is [ErrNoGroup]. Revive may be repeated: what answers then is the generation after gen, whoever made it.
// It blocks until the new group runs or ctx ends ([ErrNoQuorum]).
func (h *Host) Revive(ctx context.Context, p keyspace.Prefix, gen uint64, force bool) (placement.Descriptor, error) {
	var last error
	for {
		if _, err := h.Child(ctx, p); err != nil { // finds the parent's leader, too
			return placement.Descriptor{}, noQuorum(err, h.rootGroup(), last)
		}
		parent, _ := h.locator.cached(h.parentOf(p))
		leader, ok := parent.View.MemberAt(h.locator.leader(parent.Group))
		if ok {
			req := &pb.ReviveRequest{Prefix: groupToPB(order.GroupID{Prefix: p}).Prefix, Gen: gen, Force: force}
			if h.ownPrefix(p) {
				req.Parent = groupToPB(parent.Group)
			}
			to, _ := parent.Peer(leader.ID)
			d, again, err := h.reviveAt(ctx, peer.ID(to.ID), marshal(req))
			if !again {
				return d, err
			}
			last = err
		}
		if err := pause(ctx, retryPause); err != nil {
			return placement.Descriptor{}, noQuorum(err, parent.Group, last)
		}
	}
}

// reviveAt asks the root's leader; again says that it may not be that any more.
func (h *Host) reviveAt(ctx context.Context, leader peer.ID, req []byte) (d placement.Descriptor, again bool, err error) {
	b, err := h.overlay.Call(ctx, leader, keyspace.Key{}, serviceRevive, req)
	if err != nil {
		return d, true, err
	}
	r, err := h.decode.reply(b)
	if err != nil {
		return d, true, err
	}
	switch r.status {
	case pb.Status_OK:
		h.news(r.descriptor)
		return r.descriptor, false, nil
	case pb.Status_ALIVE:
		return d, false, fmt.Errorf("%w: %s", ErrAlive, r.data)
	case pb.Status_REFUSED:
		return d, false, fmt.Errorf("%w: %s", ErrRefused, r.data)
	case pb.Status_NOT_HERE:
		return d, false, ErrNoGroup
	}
	return d, true, fmt.Errorf("%v answered %v %s", leader, r.status, r.data)
}

// reviveEvent asks the root's replica to revive a prefix's group.
type reviveEvent struct {
	prefix keyspace.Prefix
	gen    uint64
	force  bool
	req    *dht.Request
}

// handleRevive passes a Revive to the root's replica, if it is here.
func (c *creator) handleRevive(req *dht.Request) error {
	var m pb.ReviveRequest
	if err := proto.Unmarshal(req.Data, &m); err != nil {
		return malformed("revive: %v", err)
	}
	p, err := decodePrefix(m.Prefix)
	if err != nil {
		return err
	}
	e := reviveEvent{p, m.Gen, m.Force, req}
	if c.host.ownPrefix(p) {
		parent, err := c.host.parentGroup(m.Parent, p)
		if err == nil {
			c.host.submit(parent, reviveOwn{parent, e}, req)
		}
		return err
	}
	c.host.submit(c.host.rootGroup(), e, req)
	return nil
}

func (e reviveEvent) handle(s *shard) {
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
	switch {
	case !ok:
		e.req.Reply(marshal(&pb.Reply{Status: pb.Status_NOT_HERE}))
	case known.Group.Gen > e.gen: // done already; whoever asks waits until it runs
		h.creator.take(placement.Ensure{Prefix: e.prefix, Known: known}, e.req)
	case known.Group.Gen < e.gen:
		e.req.Reply(marshal(&pb.Reply{Status: pb.Status_REFUSED, Data: fmt.Appendf(nil, "it is of generation %d, and no generation %d was ever made", known.Group.Gen, e.gen)}))
	default:
		if !h.spawn(func() { h.creator.revive(known, "", e.force, e.req) }) {
			e.req.Reply(marshal(busy()))
		}
	}
}

// revive calls the roll of a group that is said to be lost, and has it revived if it is. name is that of a key's own group.
func (c *creator) revive(known placement.Child, name keyspace.Preimage, force bool, req *dht.Request) {
	roll := c.host.Roll(c.host.ctx, known.Descriptor)
	if roll.Majority() && !force {
		req.Reply(marshal(&pb.Reply{Status: pb.Status_ALIVE, Data: []byte(roll.String())}))
		return
	}
	log.Warnw("reviving a group", "group", known.Group, "force", force, "roll", roll.String())
	if h := c.host; h.leases != nil { // the lease it may have has to be over first
		h.shardOf(h.rootGroup()).box.Put(doomEvent{reviveEvent{known.Group.Prefix, known.Group.Gen, force, req}})
		return
	}
	c.take(placement.ReviveLost{Known: known, Name: name}, req)
}

// take gives the core an event that a request stands behind, or answers that there is no room.
func (c *creator) take(ev placement.CreatorEvent, req *dht.Request) {
	if !c.box.TryPut(creatorEvent{ev: ev, req: req}) {
		req.Reply(marshal(busy()))
	}
}

// moved tells the core of a child that has a later view, if there is room: it only spares it Starts to members that are gone.
func (c *creator) moved(ch placement.Child) {
	c.box.TryPut(creatorEvent{ev: placement.Committed{Child: ch}})
}

// rumour has the parent asked about a generation that somebody spoke of, if a replica of an earlier one is here. It may be a lie, so
// nothing else comes of it, and not often.
func (h *Host) rumour(g order.GroupID) {
	if g.Gen == 0 || h.store == nil {
		return
	}
	now, last := h.clock.Now(), h.rumoured.Load()
	if now.Sub(automaton.Instant(last)) < rumourPause || !h.rumoured.CompareAndSwap(last, int64(now)) || !h.outlived(g) {
		return
	}
	h.hosting.box.TryPut(hostingEvent{ev: placement.HeardOf{Group: g}})
}

// outlived reports whether a replica of an earlier generation of the group's prefix runs here.
func (h *Host) outlived(g order.GroupID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for old := range h.hosted {
		if old.Prefix == g.Prefix && old.Gen < g.Gen {
			return true
		}
	}
	return false
}

// auditDue asks for an [Host.audit].
func (h *Host) auditDue() {
	select {
	case h.audits <- struct{}{}:
	default:
	}
}

// audit compares the groups hosted here with what the parent's directory says, at the start and whenever a member of the root comes
// into reach: a group may have been revived while this peer, or its side of a divided network, was away. While the parent does
// not answer, the replicas go on.
func (h *Host) audit() {
	for {
		select {
		case <-h.audits:
		case <-h.ctx.Done():
			return
		}
		for wait := auditPause; pause(h.ctx, wait) == nil && h.hostsPrefixes(); wait = auditRetry {
			ctx, cancel := context.WithTimeout(h.ctx, locateTimeout)
			children, err := h.Children(ctx)
			cancel()
			if errors.Is(err, ErrClosed) {
				return
			}
			if err != nil {
				log.Debugw("the groups here were not compared with the directory", "err", err)
				continue
			}
			if err := h.register(children); err != nil {
				log.Debugw("the root was not told of the groups led here", "err", err)
				continue
			}
			for _, c := range children {
				if g := (order.GroupID{Overlay: h.id, Prefix: c.Prefix, Gen: c.Gen}); c.Gen > 0 && h.outlived(g) {
					h.hosting.box.Put(hostingEvent{ev: placement.Superseded{Live: g}})
				}
			}
			break
		}
	}
}

// hostsPrefixes reports whether a replica of any group but the root is here.
func (h *Host) hostsPrefixes() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for g := range h.hosted {
		if g != h.rootGroup().Life() {
			return true
		}
	}
	return false
}
