package replicagroup

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/pb"
	"latchkey/replicagroup/placement"
	"latchkey/replicagroup/session"
)

// locator finds the group that owns a prefix (rule G4): its cache, then the peers closest to the prefix's anchor, then the
// root, which creates the group if there is none. What it finds is a hint; replicas say when it is wrong.
type locator struct {
	host *Host

	mu      sync.Mutex
	known   map[keyspace.Prefix]*list.Element // of knownGroup
	recent  list.List                         // most recently used first
	flights map[keyspace.Prefix]*flight
	anchors map[keyspace.Prefix]keyspace.Preimage
	wanted  []wantedAnchor // the first one is under way; at most one for each leadership that began
}

type knownGroup struct {
	descriptor *placement.Descriptor // nobody changes it
	leader     keyspace.NodeID       // who answered last, or was named, or is next after one that was silent; zero when nobody was
}

// flight is one search, shared by all who want its prefix.
type flight struct {
	done chan struct{}
	d    placement.Descriptor
	err  error
}

func newLocator(h *Host) *locator {
	l := &locator{
		host:    h,
		known:   make(map[keyspace.Prefix]*list.Element),
		flights: make(map[keyspace.Prefix]*flight),
		anchors: make(map[keyspace.Prefix]keyspace.Preimage),
	}
	l.put(h.firstRoot())
	return l
}

// cached returns what is known of a prefix's group.
func (l *locator) cached(p keyspace.Prefix) (placement.Descriptor, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e, ok := l.known[p]; ok {
		return *e.Value.(*knownGroup).descriptor, true
	}
	return placement.Descriptor{}, false
}

// put remembers a descriptor unless a newer one is known. Its peers become known to the overlay.
func (l *locator) put(d placement.Descriptor) { l.keep(&d) }

// keep is put of a descriptor that others keep, too, and nobody may change.
func (l *locator) keep(d *placement.Descriptor) {
	if d.Group.Prefix.Len == 0 && d.Group != l.host.rootGroup() {
		return // only the root key makes another root
	}
	l.mu.Lock()
	e, ok := l.known[d.Group.Prefix]
	switch {
	case !ok:
		l.known[d.Group.Prefix] = l.recent.PushFront(&knownGroup{descriptor: d})
		l.evictLocked()
	case placement.Newer(*d, *e.Value.(*knownGroup).descriptor):
		if l.host.genesis.OwnGroups && d.Group.Gen > e.Value.(*knownGroup).descriptor.Group.Gen {
			l.host.ownAuditDue() // it may not know of own groups that are here
		}
		*e.Value.(*knownGroup) = knownGroup{descriptor: d}
	default:
		l.mu.Unlock()
		return
	}
	l.mu.Unlock()
	for _, p := range d.Peers {
		l.host.learn(p)
	}
}

// evictLocked drops the descriptor that was not used for longest, never the root's.
func (l *locator) evictLocked() {
	for len(l.known) > descriptorsMax {
		e := l.recent.Back()
		if e.Value.(*knownGroup).descriptor.Group == l.host.rootGroup() {
			l.recent.MoveToFront(e)
			continue
		}
		l.recent.Remove(e)
		delete(l.known, e.Value.(*knownGroup).descriptor.Group.Prefix)
	}
}

// forget forgets a group that was found not to serve, unless a later one of its prefix is known by now.
func (l *locator) forget(g order.GroupID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e, ok := l.known[g.Prefix]; ok && e.Value.(*knownGroup).descriptor.Group == g {
		l.recent.Remove(e)
		delete(l.known, g.Prefix)
	}
}

// leader returns who is believed to lead a group.
func (l *locator) leader(g order.GroupID) keyspace.NodeID {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e, ok := l.known[g.Prefix]; ok && e.Value.(*knownGroup).descriptor.Group == g {
		return e.Value.(*knownGroup).leader
	}
	return keyspace.NodeID{}
}

// led remembers who leads a group.
func (l *locator) led(g order.GroupID, leader keyspace.NodeID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e, ok := l.known[g.Prefix]; ok && e.Value.(*knownGroup).descriptor.Group == g {
		e.Value.(*knownGroup).leader = leader
	}
}

// silent remembers that a voter who may lead a group did not answer: next is asked first from now on. Otherwise every search
// that ends early would begin, and end, with the same voter that is cut off.
func (l *locator) silent(g order.GroupID, who, next keyspace.NodeID) {
	if leader := l.leader(g); leader == who || leader.IsZero() {
		l.led(g, next)
	}
}

// locate returns the descriptor of the group that owns a prefix. It answers from the cache unless fresh is set, which asks
// the overlay again because the cached members did not answer.
func (l *locator) locate(ctx context.Context, p keyspace.Prefix, fresh bool) (placement.Descriptor, error) {
	l.mu.Lock()
	if e, ok := l.known[p]; ok && !fresh {
		l.recent.MoveToFront(e)
		d := *e.Value.(*knownGroup).descriptor
		l.mu.Unlock()
		return d, nil
	}
	f, ok := l.flights[p]
	if !ok {
		f = &flight{done: make(chan struct{})}
		fly := func() {
			f.d, f.err = l.search(p)
			l.mu.Lock()
			delete(l.flights, p)
			l.mu.Unlock()
			close(f.done)
		}
		if !l.host.spawn(fly) {
			l.mu.Unlock()
			return placement.Descriptor{}, ErrClosed
		}
		l.flights[p] = f
	}
	l.mu.Unlock()
	select {
	case <-f.done:
		return f.d, f.err
	case <-ctx.Done():
		return placement.Descriptor{}, context.Cause(ctx)
	}
}

// search asks the overlay.
func (l *locator) search(p keyspace.Prefix) (placement.Descriptor, error) {
	ctx, cancel := context.WithTimeoutCause(l.host.ctx, locateTimeout,
		fmt.Errorf("%w: the group of prefix %v was not found in %v", ErrNoQuorum, p, locateTimeout))
	defer cancel()
	if l.host.ownPrefix(p) {
		return l.searchOwn(ctx, p)
	}
	before, known := l.cached(p)
	found, ok := l.askClosest(ctx, p)
	if ok {
		l.put(found)
	}
	if ok && (!known || p == keyspace.Prefix{} || placement.Newer(found, before)) {
		return found, nil
	}
	// Nobody knows more than what did not answer. The root does, if it has revived the group since.
	if p == (keyspace.Prefix{}) {
		root, _ := l.cached(p) // nobody else makes it
		return root, nil
	}
	d, err := l.ensure(ctx, p)
	if err != nil {
		// What was known may still be right, and its members back by now; whoever asks them finds out.
		if known, ok := l.cached(p); ok {
			return known, nil
		}
		return d, err
	}
	l.put(d)
	return d, nil
}

// anchorBitsMax is the length of the longest prefix whose anchor is found within tens of microseconds: each bit doubles the time.
const anchorBitsMax = 9

// anchored reports whether the anchor of a prefix is known, or found in no time. If not it is looked for, and then is called, from a
// goroutine of the host that looks for one after the other: a peer that comes to lead a thousand groups needs as many anchors.
func (l *locator) anchored(p keyspace.Prefix, then func()) bool {
	if p.Len <= anchorBitsMax || l.host.ownPrefix(p) {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.anchors[p]; ok {
		return true
	}
	if l.wanted = append(l.wanted, wantedAnchor{p, then}); len(l.wanted) == 1 && !l.host.spawn(l.seekAnchors) {
		l.wanted = nil // the host is closed
	}
	return false
}

// wantedAnchor is an anchor that is looked for.
type wantedAnchor struct {
	prefix keyspace.Prefix
	then   func()
}

// seekAnchors finds the anchors that are wanted.
func (l *locator) seekAnchors() {
	for l.host.ctx.Err() == nil {
		l.mu.Lock()
		w := l.wanted[0]
		l.mu.Unlock()
		if _, err := l.anchor(w.prefix); err == nil {
			w.then()
		}
		l.mu.Lock()
		l.wanted = l.wanted[1:]
		done := len(l.wanted) == 0
		if done {
			l.wanted = nil
		}
		l.mu.Unlock()
		if done {
			return
		}
	}
}

// anchor returns the point at which a prefix's group should live.
func (l *locator) anchor(p keyspace.Prefix) (keyspace.Preimage, error) {
	if l.host.ownPrefix(p) { // it would be counted for until the end of time: such a group lives at its key, whose preimage it knows
		return "", fmt.Errorf("%w: %v is a whole key", placement.ErrPrefix, p)
	}
	l.mu.Lock()
	a, ok := l.anchors[p]
	l.mu.Unlock()
	if ok {
		return a, nil
	}
	a, err := placement.Anchor(l.host.id, p)
	if err != nil {
		return "", err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.anchors) >= descriptorsMax {
		clear(l.anchors)
	}
	l.anchors[p] = a
	return a, nil
}

// askClosest asks the peers closest to the prefix's anchor, who are its members unless peers came and went, and the members
// this peer has heard of, and takes the newest answer. One of the closest that is frozen holds up the look-up, so those it
// has heard of must do where that takes long: if they know nothing, the root does.
//
// The root's descriptor is where all others come from. Where a member of the root as this peer knows it answers, nobody else is
// believed about it; others are when all of those are gone.
func (l *locator) askClosest(ctx context.Context, p keyspace.Prefix) (newest placement.Descriptor, ok bool) {
	a, err := l.anchor(p)
	if err != nil {
		return newest, false
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	known, heard := l.cached(p)
	patience := askTimeout
	if heard {
		patience = lookupPatience
	}
	look, enough := context.WithTimeout(ctx, patience)
	defer enough()
	n := 2*l.host.genesis.F + 1
	if p == (keyspace.Prefix{}) {
		n = placement.CandidatesMax // anybody may know where the root is
	}
	closest, err := l.host.overlay.ReplicaSet(look, a, n)
	if err != nil && !heard {
		return newest, false
	}
	var members, others []peer.ID
	for _, m := range known.Peers {
		if id := peer.ID(m.ID); id != l.host.overlay.Self() {
			members = append(members, id)
		}
	}
	for _, c := range closest {
		if c.ID != l.host.overlay.Self() && !slices.Contains(members, c.ID) {
			others = append(others, c.ID)
		}
	}
	answers := make(chan placement.Descriptor, 1)
	go func() {
		d, _ := l.host.askPeers(ctx, p, others)
		answers <- d
	}()
	newest, answered := l.host.askPeers(ctx, p, members)
	if p == (keyspace.Prefix{}) && answered {
		return newest, !newest.IsZero()
	}
	if d := <-answers; placement.Newer(d, newest) {
		newest = d
	}
	return newest, !newest.IsZero()
}

// ensure asks the root for the prefix's group.
func (l *locator) ensure(ctx context.Context, p keyspace.Prefix) (placement.Descriptor, error) {
	req := marshal(&pb.EnsureRequest{Prefix: groupToPB(order.GroupID{Prefix: p}).Prefix})
	root, _ := l.cached(keyspace.Prefix{})
	var d placement.Descriptor
	always := func(placement.Descriptor) []byte { return req }
	err := l.host.askLeader(ctx, root, keyspace.Key{}, serviceEnsure, always, func(r reply) (bool, error) {
		if r.status != pb.Status_OK {
			return false, nil
		}
		if r.descriptor.Group.Prefix != p {
			return false, malformed("ensure %v was answered with group %v", p, r.descriptor.Group)
		}
		d = r.descriptor
		return true, nil
	})
	return d, err
}

// handleLocate tells another peer what this one knows of a prefix.
func (l *locator) handleLocate(req *dht.Request) error {
	var m pb.LocateRequest
	if err := proto.Unmarshal(req.Data, &m); err != nil {
		return malformed("locate: %v", err)
	}
	p, err := decodePrefix(m.Prefix)
	if err != nil {
		return err
	}
	r := &pb.Reply{Status: pb.Status_NOT_HERE}
	if d, ok := l.cached(p); ok {
		r.Status, r.Descriptor_ = pb.Status_OK, encodeDescriptor(d)
	}
	req.Reply(marshal(r))
	return nil
}

// corrected remembers the descriptor that came with an answer of a member of d's group, if it is of the same prefix: nobody is
// believed about the groups of others. It reports whether there was one.
func (h *Host) corrected(d placement.Descriptor, r reply) bool {
	if r.descriptor.IsZero() || r.descriptor.Group.Prefix != d.Group.Prefix {
		return false
	}
	h.locator.put(r.descriptor)
	return true
}

// askLeader puts one request to the leader of the group that d describes, or of what that group has become, going round the voters
// until use accepts an answer or ctx ends. Requests sent this way may arrive more than once.
func (h *Host) askLeader(ctx context.Context, d placement.Descriptor, key keyspace.Key, service string, req func(placement.Descriptor) []byte,
	use func(r reply) (done bool, err error)) error {
	round := newRound(d, h.locator.leader(d.Group))
	var last error
	for turns := 0; ; {
		if now, ok := h.locator.cached(d.Group.Prefix); ok && placement.Newer(now, d) {
			d, round = now, newRound(now, h.locator.leader(now.Group))
		}
		member, ok := round.next()
		if !ok {
			if err := pause(ctx, retryPause); err != nil {
				return noQuorum(err, d.Group, last)
			}
			if turns++; turns%lostTurns == 0 {
				// Perhaps all that this peer knows of have left.
				if _, err := h.locator.locate(ctx, d.Group.Prefix, true); err != nil && ctx.Err() != nil {
					return noQuorum(err, d.Group, last)
				}
			}
			continue
		}
		ask, cancel := context.WithTimeout(ctx, commandTimeout)
		b, err := h.overlay.Call(ask, peer.ID(member.peer.ID), key, service, req(d))
		cancel()
		if err != nil {
			h.locator.silent(d.Group, member.node, round.after(member.node))
			if last = err; ctx.Err() != nil {
				return noQuorum(context.Cause(ctx), d.Group, last)
			}
			continue
		}
		r, err := h.decode.reply(b)
		if err != nil {
			last = err
			continue
		}
		h.corrected(d, r)
		if r.status == pb.Status_NOT_LEADER {
			if !errors.Is(last, errNoLease) { // who leads has said already what is the matter
				last = fmt.Errorf("no leader known at %v", member.node)
			}
			round.hint(r.leader)
			continue
		}
		done, err := use(r)
		if err != nil {
			return err
		}
		if done {
			h.locator.led(d.Group, member.node)
			return nil
		}
		if last = fmt.Errorf("%v answered %v", member.node, r.status); r.status == pb.Status_NO_LEASE {
			last = fmt.Errorf("%w: says %v", errNoLease, member.node)
		} else if len(r.data) > 0 {
			last = fmt.Errorf("%w: %s", last, r.data)
		}
	}
}

// pause waits unless ctx ends first.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// noQuorum says that a group did not answer before ctx ended.
func noQuorum(cause error, g order.GroupID, last error) error {
	if errors.Is(cause, ErrClosed) || errors.Is(cause, ErrNoQuorum) || errors.Is(cause, ErrStore) {
		return cause
	}
	if last == nil {
		return fmt.Errorf("%w: group %v: %w", ErrNoQuorum, g, cause)
	}
	return fmt.Errorf("%w: group %v: %w (last: %v)", ErrNoQuorum, g, cause, last)
}

// round goes round a group's voters: the believed leader first, then the others, and again after a pause. A hint comes next,
// once per turn of the round, so that two peers naming each other do not keep anyone busy.
type round struct {
	voters []voter
	left   []voter
	hinted bool
}

type voter struct {
	node keyspace.NodeID
	peer placement.Peer
}

func newRound(d placement.Descriptor, leader keyspace.NodeID) *round {
	r := new(round)
	for i, m := range d.View.Members {
		if m.Role == order.Voter {
			r.voters = append(r.voters, voter{m.Peer, d.Peers[i]})
		}
	}
	r.left = append(r.left, r.voters...)
	r.first(leader)
	return r
}

// first moves a voter to the front of what is left, adding it again if it was asked before.
func (r *round) first(n keyspace.NodeID) bool {
	for _, v := range r.voters {
		if v.node != n {
			continue
		}
		left := []voter{v}
		for _, o := range r.left {
			if o.node != n {
				left = append(left, o)
			}
		}
		r.left = left
		return true
	}
	return false
}

func (r *round) hint(n keyspace.NodeID) {
	if !r.hinted && r.first(n) {
		r.hinted = true
	}
}

// after returns the voter that follows n.
func (r *round) after(n keyspace.NodeID) keyspace.NodeID {
	i := slices.IndexFunc(r.voters, func(v voter) bool { return v.node == n })
	return r.voters[(i+1)%len(r.voters)].node
}

// next returns whom to ask now. It answers false once at the end of each turn, where the caller pauses.
func (r *round) next() (voter, bool) {
	if len(r.left) == 0 {
		r.left, r.hinted = append(r.left, r.voters...), false
		return voter{}, false
	}
	v := r.left[0]
	r.left = r.left[1:]
	return v, true
}

// Locate returns the descriptor of the group of a key's prefix, creating the group if there is none. It serves the key unless that has a
// group of its own ([Host.Child]). It is a hint: the group may have moved on. It blocks on look-ups and the root group; ctx ends that.
func (h *Host) Locate(ctx context.Context, key keyspace.Key) (placement.Descriptor, error) {
	return h.locator.locate(ctx, h.genesis.PrefixOf(key), false)
}

// Relocate is Locate for those whom the members that are known do not answer: it asks the overlay again.
func (h *Host) Relocate(ctx context.Context, key keyspace.Key) (placement.Descriptor, error) {
	return h.locator.locate(ctx, h.genesis.PrefixOf(key), true)
}

// Leader asks the group of a key's prefix who leads it: the member that answers confirms by a round to a majority that it
// does. It blocks until one does or ctx ends ([ErrNoQuorum]).
func (h *Host) Leader(ctx context.Context, key keyspace.Key) (placement.Peer, error) {
	d, err := h.Locate(ctx, key)
	if err != nil {
		return placement.Peer{}, err
	}
	return h.LeaderOf(ctx, d)
}

// LeaderOf is [Host.Leader] of a group that is known.
func (h *Host) LeaderOf(ctx context.Context, d placement.Descriptor) (placement.Peer, error) {
	// Any linearizable read will do; the session service has no state to read, and says so only after the round.
	req := func(d placement.Descriptor) []byte {
		return marshal(&pb.QueryRequest{Group: groupToPB(d.Group), View: d.View.Num, Service: session.Service})
	}
	err := h.askLeader(ctx, d, keyspace.Key{}, serviceQuery, req, func(r reply) (bool, error) {
		_, fromTable := statusFromPB(r.status)
		return fromTable, nil
	})
	if err != nil {
		return placement.Peer{}, err
	}
	if now, ok := h.locator.cached(d.Group.Prefix); ok {
		d = now // it may have moved since
	}
	if m, ok := d.View.MemberAt(h.locator.leader(d.Group)); ok {
		p, _ := d.Peer(m.ID)
		return p, nil
	}
	return placement.Peer{}, fmt.Errorf("%w: the leader of group %v changed", ErrNoQuorum, d.Group)
}
