package replicagroup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/pb"
	"latchkey/replicagroup/placement"
	"latchkey/replicagroup/session"
)

// In an overlay with own groups a key can have a group of its own (rule G7; docs/protocols/own-group.md). Its parent is the group of its
// prefix, as the root is that of all others: it makes it, revives it, and knows where it is.

// ownPrefix reports whether a prefix is a whole key, in an overlay where such have groups.
func (h *Host) ownPrefix(p keyspace.Prefix) bool {
	return h.genesis.OwnGroups && p.Len == keyspace.PrefixBitsMax
}

// parentOf returns the prefix of the group that makes the group of a prefix.
func (h *Host) parentOf(p keyspace.Prefix) keyspace.Prefix {
	if h.ownPrefix(p) {
		return h.genesis.PrefixOf(keyspace.Key(p.Bits))
	}
	return keyspace.Prefix{}
}

// register is the service with which a parent keeps the group of a prefix.
func (h *Host) registry(p keyspace.Prefix) string {
	if h.ownPrefix(p) {
		return placement.OwnService
	}
	return placement.Service
}

// lookup reads linearizably what the parent says of a prefix's group, and which generation of the parent has said it.
func (h *Host) lookup(ctx context.Context, p keyspace.Prefix) (res placement.Result, by order.GroupID, err error) {
	parent := h.parentOf(p)
	d, err := h.locator.locate(ctx, parent, false)
	if err != nil {
		return res, by, noQuorum(err, order.GroupID{Prefix: parent}, nil)
	}
	data, by, err := h.queryAt(ctx, d, h.registry(p), placement.LookupQuery(p))
	if err == nil {
		res, err = placement.DecodeResult(data)
	}
	return res, by, err
}

// tellParent has the parent take over the view of a group. name is the key's of an own group that the parent may not know.
func (h *Host) tellParent(ctx context.Context, d placement.Descriptor, name string) (placement.Result, error) {
	p := d.Group.Prefix
	data, err := placement.Command{Kind: placement.Update, Prefix: p, Descriptor: d}.Encode()
	if err == nil && h.ownPrefix(p) {
		data, err = placement.KeyCommand{Kind: placement.Change, Name: name, Change: data}.Encode()
	}
	if err == nil {
		data, err = h.internal.do(ctx, h.parentOf(p), h.registry(p), data)
	}
	if err != nil {
		return placement.Result{}, err
	}
	return placement.DecodeResult(data)
}

// parentGroup decodes which group is asked about a key's own group: one of its prefix.
func (h *Host) parentGroup(g *pb.Group, p keyspace.Prefix) (order.GroupID, error) {
	parent, err := h.decode.group(g)
	if err == nil && parent.Prefix != h.parentOf(p) {
		err = malformed("group %v is asked about key %v", parent, p)
	}
	return parent, err
}

// withParent calls then with whether a peer is a member of the group that makes the group of a prefix. Of the root that is known at
// once; the group of another prefix may have to be found first, and then it is called later, on another goroutine.
func (h *Host) withParent(from peer.ID, of keyspace.Prefix, then func(parent bool)) {
	if !h.ownPrefix(of) {
		then(h.fromParent(from))
		return
	}
	p := h.parentOf(of)
	member := func() bool {
		d, _ := h.locator.cached(p)
		_, is := d.View.MemberAt(dht.NodeIDOf(from))
		return is
	}
	if from == h.overlay.Self() || member() {
		then(true)
		return
	}
	select {
	case h.seeking <- struct{}{}:
	default:
		then(false)
		return
	}
	seek := func() {
		defer func() { <-h.seeking }()
		ctx, cancel := context.WithTimeout(h.ctx, askTimeout)
		defer cancel()
		_, _ = h.locator.locate(ctx, p, true)
		then(member())
	}
	if !h.spawn(seek) {
		<-h.seeking
	}
}

// commandOwn takes a command of another peer about own groups: to an own group of a member of its parent, to a prefix's group the word of
// a voter of an own group about its view. All else only a leader's own host commands.
func (h *Host) commandOwn(e *commandEvent, req *dht.Request) {
	if h.ownPrefix(e.group.Prefix) {
		h.withParent(req.From, e.group.Prefix, func(parent bool) {
			e.foreign = !parent
			h.submit(e.group, e, req)
		})
		return
	}
	e.foreign = !isKeyUpdate(e.cmd)
	h.submit(e.group, e, req)
}

// isKeyUpdate is isUpdate of a command about own groups.
func isKeyUpdate(c order.Command) bool {
	k, err := placement.DecodeKeyCommand(c.Data)
	if err != nil || k.Kind != placement.Change {
		return false
	}
	c.Data = k.Change
	return isUpdate(c)
}

// searchOwn finds a key's own group: its parent knows it. Where that does not answer, those may that are known to have been members.
func (l *locator) searchOwn(ctx context.Context, p keyspace.Prefix) (placement.Descriptor, error) {
	h := l.host
	known, _ := l.cached(p)
	half, cancel := context.WithTimeout(ctx, askTimeout)
	res, _, err := h.lookup(half, p)
	cancel()
	if err == nil && res.Status != placement.OK {
		return placement.Descriptor{}, fmt.Errorf("%w: %v", ErrNoGroup, p)
	}
	found := res.Child.Descriptor
	if err != nil && !known.IsZero() {
		var members []peer.ID
		for _, m := range known.Peers {
			members = append(members, peer.ID(m.ID))
		}
		found, _ = h.askPeers(ctx, p, slices.DeleteFunc(members, func(id peer.ID) bool { return id == h.overlay.Self() }))
		if err = nil; !placement.Newer(found, known) {
			found = known
		}
	}
	if err != nil {
		return found, err
	}
	l.put(found)
	return found, nil
}

// follow asks the group that serves a key: the one of its prefix, or, where one is known, the key's own. One that does not serve it says
// so and names the own group, if there is one; so what this host knows of it may be out of date, and costs a question then.
// ask is called with the own group's descriptor, or with none, until it gives anything but errMoved.
func (h *Host) follow(ctx context.Context, key keyspace.Key, ask func(own placement.Descriptor) ([]byte, error)) ([]byte, error) {
	p := placement.KeyPrefix(key)
	wait := movingMin
	for turn := 1; ; turn++ {
		own, _ := h.locator.cached(p)
		data, err := ask(own)
		if !errors.Is(err, errMoved) {
			return data, err
		}
		if !own.IsZero() {
			h.locator.forget(own.Group)
		}
		if turn%2 == 0 { // both have said that the other one serves it: it is on its way
			if err := pause(ctx, wait); err != nil {
				return nil, noQuorum(err, order.GroupID{Prefix: p}, errors.New("the key is on its way from one group to another"))
			}
			wait = min(2*wait, movingMax)
		}
	}
}

// movedTo takes note of the own group that a prefix's group has named.
func (h *Host) movedTo(by order.GroupID, r reply) {
	if p := r.descriptor.Group.Prefix; !r.descriptor.IsZero() && h.ownPrefix(p) && h.parentOf(p) == by.Prefix {
		h.locator.put(r.descriptor)
	}
}

// doOwn has a command executed by a key's own group. It matches errMoved where that does not serve the key.
func (c *Client) doOwn(ctx context.Context, own placement.Descriptor, service string, data []byte) ([]byte, error) {
	if err := checkRequest(service, data); err != nil {
		return nil, err
	}
	parent, err := c.session(order.GroupID{Prefix: c.host.parentOf(own.Group.Prefix)})
	if err != nil {
		return nil, err
	}
	s, err := c.session(own.Group)
	if err != nil {
		return nil, err
	}
	parent.touch() // the key may come back, and what the client holds with it
	return s.do(ctx, service, data)
}

// queryOwn reads from a key's own group. It matches errMoved where that does not serve the key, or is over.
func (c *Client) queryOwn(ctx context.Context, own placement.Descriptor, service string, data []byte) ([]byte, error) {
	if err := checkRequest(service, data); err != nil {
		return nil, err
	}
	for {
		ask, cancel := context.WithTimeout(ctx, ownPatience)
		result, by, err := c.host.queryAt(ask, own, service, data)
		cancel()
		switch {
		case err == nil || ctx.Err() != nil || !errors.Is(err, ErrNoQuorum):
			return result, err
		case by.Gen > own.Group.Gen:
			return nil, errMoved // ask the one that has followed it
		}
		if _, over, err := c.host.standing(ctx, own.Group); err == nil && over {
			return nil, errMoved
		}
	}
}

// ownPatience is how long a query waits for an own group before its parent is asked whether it is over.
const ownPatience = 4 * time.Second

// standing reads from the parent how an own group stands: what the parent knows of the key, zero for nothing, and whether this group is
// over. One of an earlier generation of the parent than the one that answers may survive it, and is not over for not being known.
func (h *Host) standing(ctx context.Context, g order.GroupID) (known placement.Child, over bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, locateTimeout)
	defer cancel()
	res, by, err := h.lookup(ctx, g.Prefix)
	if err != nil {
		return known, false, err
	}
	if res.Status == placement.OK {
		return res.Child, res.Child.Group.Gen > g.Gen, nil
	}
	return known, placement.ParentGen(g.Gen) >= by.Gen, nil
}

// touch keeps a session alive that is in use by way of another one.
func (s *groupSession) touch() {
	todo := newTasks()
	s.mu.Lock()
	if s.used = s.client.host.clock.Now(); !s.keep && !s.closed {
		s.keep = true
		s.stepLocked(session.KeepAlive{On: true}, s.used, todo)
	}
	s.mu.Unlock()
	s.run(todo)
}

// servedBy takes note of who has executed a command of the session.
func (s *groupSession) servedBy(g order.GroupID) {
	if s.client.host.genesis.OwnGroups {
		s.mu.Lock()
		s.served = g
		s.mu.Unlock()
	}
}

// seekOwn finds the own group of a session for its automaton, or ends the session if that group is over: at once, unless a command may
// have been executed there. Its members go on to say so for a while, if they live.
func (s *groupSession) seekOwn() {
	h := s.client.host
	known, over, err := h.standing(h.ctx, s.own)
	now := h.clock.Now()
	s.mu.Lock()
	d, gone := *s.descriptor, false
	missing := func(patience time.Duration) {
		if s.missing == 0 {
			s.missing = now
		}
		gone = now.Sub(s.missing) >= patience
	}
	switch {
	case err != nil:
		log.Debugw("the group of its prefix does not say where the key's own group is", "group", s.own, "err", err)
		s.missing = 0 // nobody says that it is over
	case over && s.core.Unsure():
		missing(overPatience)
	case over:
		gone = true
	case known.Group == s.own:
		d, s.missing = known.Descriptor, 0
	default: // it may survive its parent, which is new, and hear of it before long. Else it never will
		missing(2 * placement.KeysQuarantine(h.genesis))
	}
	s.mu.Unlock()
	if gone {
		s.gone()
		return
	}
	if known.Group == s.own {
		h.locator.put(d)
	}
	if c, ok := h.locator.cached(s.prefix); ok && c.Group == s.own && placement.Newer(c, d) {
		d = c
	}
	s.located(d)
}

// overPatience is how long an own group that is over is asked what became of a command.
const overPatience = 5 * time.Second

// gone ends a session with an own group that is over. The client makes another with what follows it.
func (s *groupSession) gone() {
	c := s.client
	c.mu.Lock()
	if c.sessions[s.own] == s {
		delete(c.sessions, s.own)
		c.overLocked(s.own)
	}
	c.mu.Unlock()
	s.end(session.Gone{})
}

// overLocked takes note that a session with an own group was given up.
func (c *Client) overLocked(g order.GroupID) {
	if len(c.over) >= overMax {
		for _, gen := range c.over {
			c.formerly = max(c.formerly, gen)
		}
		clear(c.over)
	}
	c.over[g.Prefix] = max(c.over[g.Prefix], g.Gen)
}

// isOverLocked reports whether a session with an own group may have been given up before. One that never was may be taken for one when
// there have been many: its session has an id of its own then, under which it does not hold what it held before.
func (c *Client) isOverLocked(g order.GroupID) bool {
	return g.Gen <= max(c.over[g.Prefix], c.formerly)
}

// takes reports whether an output from this node is to be believed: it must come from a member of a group with which the client has the
// session that it names.
func (c *Client) takes(o output, from keyspace.NodeID) bool {
	g := o.group
	if !placement.IsOwn(g) {
		g = order.GroupID{Prefix: g.Prefix}
	}
	c.mu.Lock()
	s := c.sessions[g]
	c.mu.Unlock()
	return s != nil && s.takes(o, from)
}

// keys returns the own groups that this replica of a prefix's group knows; only its shard's goroutine may touch them.
func (r *replica) keys() (*placement.Keys, bool) {
	m, ok := r.state().Machine(placement.OwnService).(keysMachine)
	return m.Keys, ok
}

// own returns the beginning and end of the own group that this replica is of; only its shard's goroutine may touch them.
func (r *replica) own() (*placement.Own, bool) {
	if !placement.IsOwn(r.group) {
		return nil, false
	}
	m, ok := r.state().Machine(placement.OwnService).(ownMachine)
	return m.Own, ok
}

// phase tells how far an own group is, and whose it is.
func (r *replica) phase() (placement.OwnPhase, string) {
	if own, ok := r.own(); ok {
		return own.Phase()
	}
	return 0, ""
}

// sealed reports whether this replica knows that it is of an own group that serves nothing more.
func (r *replica) sealed() bool {
	if !placement.IsOwn(r.group) {
		return false
	}
	phase, _ := r.phase()
	return phase == placement.OwnSealed && !r.halted
}

// settled answers a command from what a sealed own group knows for good, if it is of one. Members end one by one when the key gets its next
// own group, so that neither a leader nor a majority may be left; one that lingers is enough.
func (r *replica) settled(e *commandEvent) bool {
	if !r.sealed() {
		return false
	}
	status, data, ok := r.state().Outcome(e.cmd)
	switch {
	case !ok:
		return false
	case status == session.Moved:
		e.call.Reply(marshal(r.keyMoved(e.cmd.Service, e.cmd.Data, false)))
	default:
		e.call.Reply(appendResult(nil, statusToPB(status), data))
	}
	return true
}

// keyMoved is the answer to a command or query about a key that another group serves: it names the key's own group, if there is one.
func (r *replica) keyMoved(service string, data []byte, query bool) *pb.Reply {
	reply := &pb.Reply{Status: pb.Status_KEY_MOVED}
	keys, ok := r.keys()
	split, is := r.state().Machine(service).(session.Splitter)
	if !ok || !is {
		return reply
	}
	if key, ok := split.KeyOf(data, query); ok {
		if ch, ok := keys.Lookup(placement.KeyPrefix(key)); ok {
			reply.Descriptor_ = encodeDescriptor(ch.Descriptor)
		}
	}
	return reply
}

// GiveOwnGroup gives the key of a name a group of its own, of the 2f+1 peers closest to it, and returns it once it serves the key. What
// is known of the key goes along: a lock keeps its holder, its waiters and what is left of its lease. For a moment no group serves
// it. The group of its prefix, which is created if there is none, makes the new one; it has room for [placement.OwnGroupsMax].
//
// It blocks until then or until ctx ends ([ErrNoQuorum]); it may be repeated after that. Errors: [ErrNoOwnGroups] where the overlay
// has none, [ErrHasOwn] when the key has one already, [ErrRefused] with the reason.
func (h *Host) GiveOwnGroup(ctx context.Context, name keyspace.Preimage) (placement.Descriptor, error) {
	var d placement.Descriptor
	p, err := h.ownOf(name)
	if err != nil {
		return d, err
	}
	if ch, err := h.Child(ctx, p); err == nil && ch.Group.Prefix == p {
		return ch.Descriptor, ErrHasOwn
	} else if err != nil && !errors.Is(err, ErrNoGroup) {
		return d, err
	}
	parent, err := h.locator.locate(ctx, h.parentOf(p), false)
	if err != nil {
		return d, noQuorum(err, order.GroupID{Prefix: h.parentOf(p)}, nil)
	}
	req := func(d placement.Descriptor) []byte {
		return marshal(&pb.EnsureRequest{Prefix: groupToPB(order.GroupID{Prefix: p}).Prefix, Parent: groupToPB(d.Group), Name: []byte(name)})
	}
	err = h.askLeader(ctx, parent, keyspace.Key{}, serviceEnsure, req, func(r reply) (bool, error) {
		switch {
		case r.status == pb.Status_REFUSED:
			return true, fmt.Errorf("%w: %s", ErrRefused, r.data)
		case r.status != pb.Status_OK:
			return false, nil
		case r.descriptor.Group.Prefix != p:
			return false, malformed("ensure %v was answered with group %v", p, r.descriptor.Group)
		}
		d = r.descriptor
		h.locator.put(d)
		return true, nil
	})
	return d, err
}

// TakeBackKey has the group of a name's prefix serve its key again, and ends the key's own group. What that knows goes along, as in
// [Host.GiveOwnGroup]. The replicas of the own group go on for a little while, for clients that ask what became of a command.
//
// It blocks until the key is back or ctx ends ([ErrNoQuorum]); it may be repeated after that. An own group that has lost its majority
// must be revived first ([Host.Revive]). Errors: [ErrNoOwnGroups] where the overlay has none, [ErrNoOwn] when the key has none,
// [ErrRefused] with the reason.
func (h *Host) TakeBackKey(ctx context.Context, name keyspace.Preimage) error {
	p, err := h.ownOf(name)
	if err != nil {
		return err
	}
	ch, err := h.Child(ctx, p)
	switch {
	case errors.Is(err, ErrNoGroup):
		return ErrNoOwn
	case err != nil:
		return err
	}
	return h.takeBack(ctx, ch.Group)
}

// takeBack has this very own group ended: a request that comes late does nothing to the next one.
func (h *Host) takeBack(ctx context.Context, g order.GroupID) error {
	p := g.Prefix
	parent, err := h.locator.locate(ctx, h.parentOf(p), false)
	if err != nil {
		return noQuorum(err, order.GroupID{Prefix: h.parentOf(p)}, nil)
	}
	req := func(d placement.Descriptor) []byte {
		return marshal(&pb.ReturnRequest{Parent: groupToPB(d.Group), Prefix: groupToPB(order.GroupID{Prefix: p}).Prefix, Gen: g.Gen})
	}
	return h.askLeader(ctx, parent, keyspace.Key{}, serviceReturn, req, func(r reply) (bool, error) {
		if r.status == pb.Status_REFUSED {
			return true, fmt.Errorf("%w: %s", ErrRefused, r.data)
		}
		return r.status == pb.Status_OK, nil
	})
}

// ownOf returns the prefix of the own group that the key of a name may have.
func (h *Host) ownOf(name keyspace.Preimage) (keyspace.Prefix, error) {
	switch {
	case !h.genesis.OwnGroups:
		return keyspace.Prefix{}, ErrNoOwnGroups
	case name == "" || len(name) > placement.KeyNameMax:
		return keyspace.Prefix{}, fmt.Errorf("%w: a name of %d bytes (1 to %d)", ErrRefused, len(name), placement.KeyNameMax)
	}
	return placement.KeyPrefix(name.Key()), nil
}

// handleReturn passes the wish to take a key back to the replica of its prefix's group, if it is here.
func (h *Host) handleReturn(req *dht.Request) error {
	var m pb.ReturnRequest
	if err := proto.Unmarshal(req.Data, &m); err != nil {
		return malformed("return: %v", err)
	}
	p, err := decodePrefix(m.Prefix)
	if err != nil {
		return err
	}
	if !h.ownPrefix(p) {
		return malformed("return of prefix %v", p)
	}
	parent, err := h.parentGroup(m.Parent, p)
	if err == nil {
		h.submit(parent, returnOwn{parent, p, m.Gen, req}, req)
	}
	return err
}

// auditOwn compares the own groups that have replicas here with what their parents say, from time to time: one that was taken back is
// over, and so is one that a later one has followed; one that has outlived its parent tells it of itself; one that waits to be taken
// back, since whoever sealed it has stopped, has that done. While a parent does not answer, the replicas go on.
func (h *Host) auditOwn() {
	every := min(ownEvery, placement.KeysQuarantine(h.genesis)/4)
	look := time.NewTicker(min(sealedEvery, every))
	defer look.Stop()
	var compared automaton.Instant // when all were last
	over := make(map[order.GroupID]automaton.Instant)
	for {
		all := false
		select {
		case <-look.C:
		case <-h.ownAudits:
			all = true
		case <-h.ctx.Done():
			return
		}
		if !h.hostsOwn() {
			continue
		}
		ctx, cancel := context.WithTimeout(h.ctx, locateTimeout)
		groups, err := h.Status(ctx)
		cancel()
		if err != nil {
			continue
		}
		now := h.clock.Now()
		mute := make(map[keyspace.Prefix]bool) // parents that do not answer
		if all = all || compared == 0 || now.Sub(compared) >= every; all {
			compared = now
		}
		for _, r := range groups {
			if !placement.IsOwn(r.Group) || r.Halted || mute[h.parentOf(r.Group.Prefix)] || !all && r.Phase != placement.OwnSealed {
				continue
			}
			is, followed, err := h.isOver(r)
			if err != nil {
				mute[h.parentOf(r.Group.Prefix)] = true
				log.Debugw("an own group was not compared with what its parent knows", "group", r.Group, "err", err)
			}
			if is {
				if over[r.Group] == 0 {
					over[r.Group] = now
				}
				h.endOwn(r, followed, now.Sub(over[r.Group]))
			}
		}
		for g := range over {
			if !slices.ContainsFunc(groups, func(r ReplicaStatus) bool { return r.Group == g }) {
				delete(over, g)
			}
		}
	}
}

// hostsOwn reports whether a replica of an own group is here.
func (h *Host) hostsOwn() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for g := range h.hosted {
		if placement.IsOwn(g.In(h.id)) {
			return true
		}
	}
	return false
}

// ownAuditDue asks for an [Host.auditOwn] of all.
func (h *Host) ownAuditDue() {
	select {
	case h.ownAudits <- struct{}{}:
	default:
	}
}

// isOver asks the parent about an own group that has a replica here, and reports whether it is over, and whether another one has followed it.
func (h *Host) isOver(r ReplicaStatus) (over, followed bool, err error) {
	known, over, err := h.standing(h.ctx, r.Group)
	followed = over && !known.IsZero()
	switch {
	case err != nil:
		return false, false, err
	case followed:
		h.hosting.box.Put(hostingEvent{ev: placement.Superseded{Live: known.Group}}) // which ends it, unless it is sealed
		return r.Phase == placement.OwnSealed, true, nil
	case over || known.Group == r.Group && r.Phase != placement.OwnSealed:
		return over, false, nil
	}
	ctx, cancel := context.WithTimeout(h.ctx, locateTimeout)
	defer cancel()
	if known.Group == r.Group { // whoever sealed it has stopped before it was adopted
		return false, false, h.takeBack(ctx, r.Group)
	}
	m, ok := r.Descriptor.View.MemberAt(h.overlay.Node())
	if !ok || m.Role != order.Voter {
		return false, false, nil // who has a vote sees to it
	}
	if r.Phase == placement.OwnEmpty {
		return true, false, nil // what it should have begun with was lost with its parent
	}
	res, err := h.tellParent(ctx, r.Descriptor, r.Key)
	if err != nil {
		return false, false, err
	}
	log.Infow("told the group of a prefix of an own group that has outlived its former one", "group", r.Group, "status", res.Status)
	return res.Status == placement.NotFound || res.Status == placement.WrongGen, false, nil
}

// endOwn ends the replica of an own group that has been known to be over for a while. What a sealed one knew has gone where it belongs;
// what another one knew is put aside, also where that cannot be told, since another one has followed.
func (h *Host) endOwn(r ReplicaStatus, followed bool, since time.Duration) {
	id := r.Status.Self
	var err error
	switch {
	case r.Phase == placement.OwnSealed && since < ownLinger:
	case r.Phase == placement.OwnSealed && !followed:
		err = h.retire(r.Group, id+1)
	default:
		err = h.bury(r.Group, id)
	}
	if err != nil {
		log.Warnw("the replica of an own group that is over was not ended", "group", r.Group, "err", err)
	}
}
