package replicagroup

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht/keyspace"
	"latchkey/internal/protofield"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/pb"
	"latchkey/replicagroup/placement"
)

// A replica's view changes as its group's log says; what other peers say about it is news, which can only make this replica
// listen to members that its own log does not name yet, or prepare it for its removal.

// setView takes over a view that the engine has reached.
func (r *replica) setView(n order.ViewNote) {
	r.view = n.View
	if r.later != nil && n.View.Num >= r.later.View.Num {
		r.later = nil
	}
	r.meet()
	r.doubt()
	if n.Joint || n.View.Num <= r.descriptor.View.Num {
		return // who asks is told of the view before; a replica that catches up knows of a later one
	}
	if d, ok := r.describe(n.View); ok {
		if r.descriptor = d; r.rare != nil {
			r.rare.encoded = nil
		}
		r.shard.host.locator.keep(d)
	}
	if r.leading {
		r.shard.host.counters.views.Add(1)
		log.Infow("view changed", "group", r.group, "view", n.View.Num, "voters", len(n.View.Voters()), "members", len(n.View.Members))
	}
}

// describe returns the descriptor of a settled view, with the addresses that the overlay knows, else those that the last
// descriptor had. ok is false where a member has no name, as in tests that make views by hand.
func (r *replica) describe(v order.View) (_ *placement.Descriptor, ok bool) {
	d := placement.Descriptor{Group: r.group, View: v, Engine: placement.EngineRaft, Peers: make([]placement.Peer, len(v.Members))}
	for i, m := range v.Members {
		p := peerOfInfo(r.shard.host.overlay.Info(peer.ID(m.PeerID)))
		for _, old := range []*placement.Descriptor{r.later, r.descriptor} {
			if old == nil {
				continue
			}
			if o, known := old.Peer(m.ID); known && len(p.Addrs) == 0 {
				p.Addrs = o.Addrs
			}
		}
		d.Peers[i] = p
	}
	if err := d.Validate(); err != nil {
		log.Errorw("a view of the group cannot be described", "group", r.group, "view", v.Num, "err", err)
		return nil, false
	}
	d = r.shard.host.kin.share(d)
	return &d, true
}

// former returns the settled view that came before a joint one, which is what a replica that restarts within it tells others.
func former(v order.View) order.View {
	if !v.Joint() {
		return v
	}
	f := order.View{Num: v.Num - 1, Members: slices.Clone(v.Members), Next: v.Next}
	for i := range f.Members {
		switch f.Members[i].Role {
		case order.Joining:
			f.Members[i].Role = order.Learner
		case order.Leaving:
			f.Members[i].Role = order.Voter
		}
	}
	return f
}

// member returns a member of this replica's view, or of a later one that it has heard of.
func (r *replica) member(id order.ReplicaID) (order.Member, bool) {
	if m, ok := r.view.Member(id); ok || id < r.view.Next || r.later == nil {
		return m, ok
	}
	return r.later.View.Member(id)
}

// meet makes the host listen to, and watch, the peers of the group as this replica knows it now.
func (r *replica) meet() {
	var peers []peer.ID
	members := r.view.Members
	if r.later != nil {
		members = slices.Concat(members, r.later.View.Members)
	}
	for _, m := range members {
		if p := peer.ID(m.PeerID); p != r.shard.host.overlay.Self() && !slices.Contains(peers, p) {
			peers = append(peers, p)
		}
	}
	r.shard.host.meet(r.fellows, peers, r.awake)
	r.fellows = peers
}

// meet exchanges a replica's peers for others: engine messages are taken from peers of some replica only, and they are watched,
// closely while the replica is awake.
func (h *Host) meet(former, peers []peer.ID, awake bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || h.failed != nil {
		return // what is watched was let go
	}
	known := h.fellows.Load()
	changed := false
	if awake {
		for _, p := range peers {
			h.activateLocked(p, true)
		}
		for _, p := range former {
			h.activateLocked(p, false)
		}
	}
	for _, p := range peers {
		if h.meetings[p]++; h.meetings[p] == 1 {
			h.watchLocked(p)
			changed = true
		}
	}
	for _, p := range former {
		if h.meetings[p]--; h.meetings[p] == 0 {
			delete(h.meetings, p)
			h.unwatchLocked(p)
			changed = true
		}
	}
	if changed || known == nil {
		fellows := make(map[peer.ID]bool, len(h.meetings))
		for p := range h.meetings {
			fellows[p] = true
		}
		h.fellows.Store(&fellows)
	}
}

// fellow reports whether a peer has a replica of a group that has one here.
func (h *Host) fellow(p peer.ID) bool {
	fellows := h.fellows.Load()
	return fellows != nil && (*fellows)[p]
}

// informing is a caller that has asked with an old view in mind: it gets the present one with its answer.
type informing struct {
	caller
	descriptor []byte
}

func (c informing) Reply(data []byte) {
	// Fields of a message may stand in any order, and a later one counts.
	b := make([]byte, 0, len(data)+len(c.descriptor)+8)
	c.caller.Reply(protofield.AppendBytes(append(b, data...), 4, c.descriptor))
}

// inform returns a caller that is told of the present view with its answer, if it asked with another one in mind.
func (r *replica) inform(view uint64, call caller) caller {
	if view >= r.descriptor.View.Num {
		return call
	}
	return informing{call, r.encoded()}
}

// encoded returns the descriptor as it is sent. It is not to be changed.
func (r *replica) encoded() []byte {
	rare := r.rarely()
	if rare.encoded == nil {
		rare.encoded = encodeDescriptor(*r.descriptor)
	}
	return rare.encoded
}

// newsEvent is a descriptor of a group that a member of it, or its parent, has vouched for.
type newsEvent struct{ descriptor placement.Descriptor }

func (e newsEvent) handle(s *shard) {
	if r, ok := s.replicas[e.descriptor.Group.Life()]; ok {
		r.news(e.descriptor)
	}
}

// news tells the host of a descriptor that is to be believed.
func (h *Host) news(d placement.Descriptor) {
	d = h.kin.share(d)
	h.locator.put(d)
	h.rumour(d.Group)
	h.shardOf(d.Group).box.Put(newsEvent{d})
}

// news makes a replica listen to the members of a later view, or, where it has no place in that view, count the days it has
// left: those that stay may still need its vote for a while, as after a removal that it has seen itself.
func (r *replica) news(d placement.Descriptor) {
	if r.halted || !placement.Newer(d, *r.descriptor) || r.later != nil && !placement.Newer(d, *r.later) {
		return
	}
	r.decide()
	r.later = &d
	r.meet()
	if _, is := d.View.Member(r.self); !is && r.self < d.View.Next && !r.parting {
		r.parting = true
		r.shard.timers.Set(timerKey{r, timerParting}, r.shard.now.Add(partingTime))
	}
}

// noteLeader keeps the timer by which a replica that hears of no leader asks what has become of its group: it may have been
// removed while it was away, or the members that lead now may have joined while it was.
func (r *replica) noteLeader(leader order.ReplicaID) {
	known := leader != 0
	if known == r.led {
		return
	}
	r.led, r.leaderless = known, r.shard.now
	key := timerKey{r, timerNews}
	if known || r.halted {
		r.shard.timers.Stop(key)
		return
	}
	r.asked = 0
	r.shard.timers.Set(key, r.shard.now.Add(newsAfter))
}

// askNews asks for news of the group, when its turn comes: a peer may keep thousands of groups that lost their leader together.
func (r *replica) askNews() {
	if !r.inLine {
		r.shard.host.inquiries.begin(r)
	}
}

// inquiries are the questions for news that are under way, at most newsMax, and the replicas that wait for their turn, each once. The
// zero value is ready. It is safe for concurrent use.
type inquiries struct {
	mu      sync.Mutex
	running int
	line    []*replica
}

// begin gives a replica its turn, at once or when those before it have had theirs.
func (q *inquiries) begin(r *replica) {
	q.mu.Lock()
	now := q.running < newsMax
	if now {
		q.running++
	} else {
		q.line, r.inLine = append(q.line, r), true
	}
	q.mu.Unlock()
	if now {
		r.inquireNews()
	}
}

// end ends a turn, and gives it to who waits for longest.
func (q *inquiries) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.line) == 0 {
		q.running--
		return
	}
	next := q.line[0]
	q.line[0] = nil
	if q.line = q.line[1:]; len(q.line) == 0 {
		q.line = nil
	}
	next.shard.box.Put(newsTurn{next})
}

// newsTurn says that it is a replica's turn to ask for news.
type newsTurn struct{ replica *replica }

func (e newsTurn) handle(s *shard) {
	e.replica.inLine = false
	if r := e.replica; r.halted || r.led || s.replicas[r.group.Life()] != r {
		s.host.inquiries.end() // it has no need any more
	} else {
		r.inquireNews()
	}
}

// inquireNews asks the members for a newer descriptor, and the parent when none of them answers. It is this replica's turn.
func (r *replica) inquireNews() {
	h, d, peers := r.shard.host, *r.descriptor, slices.Clone(r.fellows)
	wait := min(newsAfter<<min(r.asked, 8), newsEvery)
	// Members that are as lost as this one know nothing of a generation that the parent has made without them.
	parent := r.asked%2 == 1
	r.asked++
	r.shard.timers.Set(timerKey{r, timerNews}, r.shard.now.Add(wait))
	h.spawn(func() {
		defer h.inquiries.end()
		ctx, cancel := context.WithTimeout(h.ctx, askTimeout)
		defer cancel()
		newest, answered := h.askPeers(ctx, d.Group.Prefix, peers)
		if (!answered || parent && !placement.Newer(newest, d)) && d.Group != h.rootGroup() {
			newest, _ = h.askParent(ctx, d.Group.Prefix)
		}
		if placement.Newer(newest, d) {
			h.news(newest)
		}
	})
}

// askPeers asks peers what they know of a prefix's group and returns the newest answer, and whether any has answered at all.
func (h *Host) askPeers(ctx context.Context, p keyspace.Prefix, peers []peer.ID) (newest placement.Descriptor, answered bool) {
	req := marshal(&pb.LocateRequest{Prefix: groupToPB(order.GroupID{Prefix: p}).Prefix})
	type answer struct {
		d  placement.Descriptor
		ok bool
	}
	answers := make(chan answer, len(peers))
	for _, id := range peers {
		go func() {
			var a answer
			if b, err := h.overlay.Call(ctx, id, keyspace.Key{}, serviceLocate, req); err == nil {
				a.ok = true
				if r, err := h.decode.reply(b); err == nil && r.status == pb.Status_OK && r.descriptor.Group.Prefix == p {
					a.d = r.descriptor
				}
			}
			answers <- a
		}()
	}
	for range peers {
		a := <-answers
		answered = answered || a.ok
		if placement.Newer(a.d, newest) {
			newest = a.d
		}
	}
	return newest, answered
}

// askParent reads linearizably what the parent's directory says of a prefix.
func (h *Host) askParent(ctx context.Context, p keyspace.Prefix) (placement.Descriptor, error) {
	res, _, err := h.lookup(ctx, p)
	return res.Child.Descriptor, err
}

// retireEvent ends a replica that has no place in its group any more, and tells done.
type retireEvent struct {
	group order.GroupID
	below order.ReplicaID // ends a replica with a lower id only
	aside bool            // its generation is over: what it had is put aside
	spare bool            // unless it is of a sealed own group, which lingers
	done  chan<- error
}

func (e retireEvent) handle(s *shard) {
	r, ok := s.replicas[e.group.Life()]
	if !ok || r.self >= e.below || e.spare && r.sealed() {
		e.done <- nil
		return
	}
	rare := r.rarely()
	rare.partings = append(rare.partings, e.done)
	r.aside = r.aside || e.aside
	r.part()
}

// retire ends this peer's replica of a group if its id is below another one's: the group has removed it and taken the peer in
// again since. It returns when the replica is out of the store.
func (h *Host) retire(g order.GroupID, below order.ReplicaID) error {
	return h.end(retireEvent{group: g, below: below})
}

// bury ends this peer's replica of a generation that is over. It returns when what the replica had is put aside.
func (h *Host) bury(g order.GroupID, self order.ReplicaID) error {
	return h.end(retireEvent{group: g, below: self + 1, aside: true})
}

// supersede is bury of a generation that another one has followed. One of an own group that is sealed goes on until [Host.auditOwn] ends it,
// since it was not lost: who asks what became of a command shall be answered.
func (h *Host) supersede(g order.GroupID, self order.ReplicaID) error {
	return h.end(retireEvent{group: g, below: self + 1, aside: true, spare: true})
}

func (h *Host) end(e retireEvent) error {
	done := make(chan error, 1)
	e.done = done
	if !h.shardOf(e.group).box.Put(e) {
		return ErrClosed
	}
	select {
	case err := <-done:
		return err
	case <-h.ctx.Done():
		return context.Cause(h.ctx)
	}
}

// part stops a replica that its group has removed; at the end of the turn it leaves the store.
func (r *replica) part() {
	r.halt(order.Removed)
	if !slices.Contains(r.shard.parting, r) {
		r.shard.parting = append(r.shard.parting, r)
	}
}

// bury takes the replicas that have stopped for good in this turn out of the store. Nothing of theirs waits to be written.
func (s *shard) bury() error {
	for _, r := range s.parting {
		delete(s.replicas, r.group.Life())
		s.host.meet(r.fellows, nil, r.awake)
		r.fellows = nil
		remove := s.host.store.Retire
		if r.aside {
			remove = s.host.store.Bury
		}
		err := remove(r.group)
		if err == nil {
			s.host.left(r.group, r.self, r.aside)
		}
		for _, done := range r.rarely().partings {
			done <- err
		}
		if err != nil {
			return err
		}
	}
	clear(s.parting)
	s.parting = s.parting[:0]
	return nil
}

// left forgets a replica that is out of the store, and remembers that it must never run again.
func (h *Host) left(g order.GroupID, self order.ReplicaID, aside bool) {
	h.mu.Lock()
	delete(h.hosted, g.Life())
	h.mu.Unlock()
	h.hosting.box.Put(hostingEvent{ev: placement.Retired{Tombstone: placement.Tombstone{Group: g, Replica: self}}})
	if aside {
		h.counters.buried.Add(1)
		log.Warnw("replica buried: its group was revived without it, under a later generation; what it knew is put aside",
			"group", g, "replica", self)
		return
	}
	log.Infow("replica retired: its group has removed it", "group", g, "replica", self)
}

// Times of replicas whose group moves on without them.
const (
	// newsAfter is how long a replica hears of no leader before it asks the other members what has become of the group. It asks
	// again after twice the time, and so on up to newsEvery.
	newsAfter = 2 * time.Second
	newsEvery = 30 * time.Second
	// newsMax bounds the replicas of a host that ask at a time. Further ones wait for their turn.
	newsMax = 32
	// partingTime is how long a replica goes on after it has heard from others that it was removed. It is as long as an engine
	// goes on that has seen its removal itself, for the same reason.
	partingTime = 30 * time.Second
)
