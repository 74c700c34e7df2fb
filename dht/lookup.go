package dht

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"latchkey/dht/keyspace"
)

// member is a node that hosts: one that may be in replica sets.
type member struct {
	peer peer.ID
	node keyspace.NodeID
}

// replicaSet is what a look-up found, corrected since.
type replicaSet struct {
	key     keyspace.Key
	members []member // closest first, at most membersMax; replaced, never changed in place
	at      time.Time
	stale   bool // look again
}

// membersMax is how many members of a replica set are kept: what a look-up returns by default, and oneself.
const membersMax = 21

// insert puts m in its place.
func (s *replicaSet) insert(m member) {
	i, found := slices.BinarySearchFunc(s.members, m, func(a, b member) int {
		return keyspace.CompareDistance(s.key, a.node, b.node)
	})
	if found || i == membersMax {
		return
	}
	s.members = slices.Insert(slices.Clip(s.members), i, m)
	s.members = s.members[:min(len(s.members), membersMax)]
}

func (s *replicaSet) has(p peer.ID) bool {
	return slices.ContainsFunc(s.members, func(m member) bool { return m.peer == p })
}

// sets caches replica sets.
type sets struct {
	limit chan struct{} // holds a token for each look-up that runs

	mu       sync.Mutex
	cache    *lru[keyspace.Preimage, *replicaSet]
	flights  map[keyspace.Preimage]*flight
	departed *lru[peer.ID, time.Time] // when peers that have not come back became unreachable
	arrived  *lru[peer.ID, arrival]   // peers that turned out to be members and have not left since
}

// arrival is a peer's, which certainly is a member or may be one.
type arrival struct {
	member
	certain bool
	at      time.Time // zero: it has left
}

// flight is a look-up under way, shared by all who want it.
type flight struct {
	done    chan struct{} // closed when the rest is set
	members []member
	err     error
	dirty   bool // membership changed meanwhile: do not keep the result; guarded by sets.mu
}

func newSets() *sets {
	return &sets{
		limit:    make(chan struct{}, lookupsMax),
		cache:    newLRU[keyspace.Preimage, *replicaSet](replicaSetsMax),
		flights:  make(map[keyspace.Preimage]*flight),
		departed: newLRU[peer.ID, time.Time](departedMax),
		arrived:  newLRU[peer.ID, arrival](departedMax),
	}
}

// joined corrects what is cached when m has become a member.
func (s *sets) joined(m member) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.departed.put(m.peer, time.Time{})
	s.arrived.put(m.peer, arrival{m, true, time.Now()})
	s.cache.all(func(r *replicaSet) { r.insert(m) })
	for _, f := range s.flights {
		f.dirty = true
	}
}

// left corrects what is cached when p is no longer reachable: sets that hold it are looked up again on their next use.
func (s *sets) left(p peer.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.departed.put(p, time.Now())
	s.arrived.put(p, arrival{})
	s.cache.all(func(r *replicaSet) { r.stale = r.stale || r.has(p) })
	for _, f := range s.flights {
		f.dirty = true
	}
}

// departs reports whether a look-up has named a peer that became unreachable a moment ago: somebody it asked has not noticed yet.
func (s *sets) departs(set *replicaSet) bool {
	return slices.ContainsFunc(set.members, func(m member) bool {
		at, ok := s.departed.get(m.peer)
		return ok && set.at.Sub(at) < departedFor
	})
}

// complete puts those in the set who arrived a moment ago, and reports whether nobody is missing. A look-up may not come across them: Kademlia,
// here and elsewhere, takes a peer into its table only when it has answered a question of its own.
func (s *sets) complete(set *replicaSet) bool {
	whole := true
	s.arrived.all(func(a arrival) {
		if a.at.IsZero() || set.at.Sub(a.at) >= arrivedFor || set.has(a.peer) {
			return
		}
		with := replicaSet{key: set.key, members: set.members}
		if with.insert(a.member); a.certain {
			set.members = with.members
		} else {
			whole = whole && !with.has(a.peer)
		}
	})
	return whole
}

// ReplicaSet returns the r nodes closest to at's key, the closest first, this node among them when it is one: the candidates to
// host the key's replicas (RR-5059 section 4.2). Fewer than r means that no more are known in the overlay; a node that knows
// no other is alone in the set.
//
// The first call for a preimage blocks on a Kademlia look-up (of at most 3 s, shared with others who want the same). Its result is used
// for [ReplicaSetLifetime]; a node that joins is put in its place, and a set that holds a node which became unreachable is looked
// up again when it is next asked for. In an overlay larger than a Kademlia bucket (20), changes among nodes this one is not
// connected to are seen when the lifetime ends. r above 21 is answered with 21. Errors match [ErrLookup] or [ErrClosed], or are
// context.Cause(ctx).
func (o *Overlay) ReplicaSet(ctx context.Context, at keyspace.Preimage, r int) ([]peer.AddrInfo, error) {
	members, err := o.closest(ctx, at)
	if err != nil {
		return nil, err
	}
	infos := make([]peer.AddrInfo, min(max(r, 0), len(members)))
	for i := range infos {
		infos[i] = o.addrInfo(members[i].peer)
	}
	return infos, nil
}

func (o *Overlay) addrInfo(p peer.ID) peer.AddrInfo {
	if p == o.self {
		return peer.AddrInfo{ID: p, Addrs: o.host.Addrs()}
	}
	return o.host.Peerstore().PeerInfo(p)
}

// closest returns the members closest to at's key, from the cache or by a look-up. The slice is not to be changed.
func (o *Overlay) closest(ctx context.Context, at keyspace.Preimage) ([]member, error) {
	switch {
	case !o.up.Load():
		return nil, ErrClosed
	case at == "":
		return nil, fmt.Errorf("%w: empty preimage", ErrLookup)
	}
	s := o.sets
	s.mu.Lock()
	if set, ok := s.cache.get(at); ok && !set.stale && time.Since(set.at) < ReplicaSetLifetime {
		members := set.members
		s.mu.Unlock()
		return members, nil
	}
	f := s.flights[at]
	if f != nil {
		o.count.lookupsShared.Add(1)
	} else {
		f = &flight{done: make(chan struct{})}
		if !o.spawn(func() { o.fly(at, f) }) {
			s.mu.Unlock()
			return nil, ErrClosed
		}
		s.flights[at] = f
	}
	s.mu.Unlock()
	select {
	case <-f.done:
		return f.members, f.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// fly looks at up and keeps the result.
func (o *Overlay) fly(at keyspace.Preimage, f *flight) {
	s := o.sets
	set := &replicaSet{key: at.Key()}
	var keep bool
	select {
	case s.limit <- struct{}{}:
		keep, f.err = o.lookUp(at, set)
		<-s.limit
	case <-o.ctx.Done():
		f.err = ErrClosed
	}
	set.at = time.Now()
	s.mu.Lock()
	if f.err == nil {
		keep = s.complete(set) && keep
	}
	f.members = set.members
	if keep && !f.dirty && !s.departs(set) {
		s.cache.put(at, set)
	}
	delete(s.flights, at)
	s.mu.Unlock()
	close(f.done)
}

// lookUp fills set and reports whether it is worth keeping.
func (o *Overlay) lookUp(at keyspace.Preimage, set *replicaSet) (keep bool, err error) {
	hosting := o.hosting.Load()
	if hosting {
		set.insert(member{o.self, o.node})
	}
	if o.kad.RoutingTable().Size() == 0 {
		if !hosting {
			return false, fmt.Errorf("%w: no other peer of the overlay is known", ErrLookup)
		}
		return false, nil // alone, as far as we know
	}
	o.count.lookups.Add(1)
	ctx, cancel := context.WithTimeout(o.ctx, lookupTimeout)
	defer cancel()
	peers, err := o.kad.GetClosestPeers(ctx, string(at))
	if err != nil {
		o.count.lookupsFailed.Add(1)
		log.Debugw("look-up", "key", set.key, "found", len(peers), "err", err)
		// A frozen peer makes a look-up run into its deadline; it has found the closest peers all the same.
		if len(peers) == 0 || !errors.Is(err, context.DeadlineExceeded) {
			return false, fmt.Errorf("%w: %w", ErrLookup, err)
		}
	}
	for _, p := range peers {
		set.insert(member{p, o.nodes.add(p)})
	}
	if len(set.members) == 0 {
		return false, fmt.Errorf("%w: nobody found", ErrLookup)
	}
	return err == nil, nil
}

// Route sends a request to the entity at's key of a service, on the node closest to the key, and returns the answer: the
// paper's route(k, s, m) with a reply. If that node cannot be reached, nothing was sent: it is forgotten, and the message goes to
// the closest that can be. Errors: those of ReplicaSet and of Call. On any error but [ErrUnreachable] the message may have
// been served.
func (o *Overlay) Route(ctx context.Context, at keyspace.Preimage, service string, msg []byte) ([]byte, error) {
	key := at.Key()
	for tries := 0; ; tries++ {
		members, err := o.closest(ctx, at)
		if err != nil {
			return nil, err
		}
		p := members[0].peer
		reply, err := o.Call(ctx, p, key, service, msg)
		if !errors.Is(err, ErrUnreachable) || tries == routeTriesMax-1 {
			return reply, err
		}
		o.unreachable(p)
	}
}

// RouteReplica sends a request to the entity at's key of a service on each of the r nodes closest to the key, and returns the
// first answer that is not an error: the paper's route_replica(r, k, s, m). The others are served too. When every node fails, the
// error joins theirs. ctx ends the wait.
func (o *Overlay) RouteReplica(ctx context.Context, r int, at keyspace.Preimage, service string, msg []byte) ([]byte, error) {
	members, err := o.closest(ctx, at)
	if err != nil {
		return nil, err
	}
	members = members[:min(max(r, 1), len(members))]
	answers := make(chan answer, len(members))
	timeout := CallTimeoutDefault
	if deadline, ok := ctx.Deadline(); ok {
		timeout = max(time.Until(deadline), time.Nanosecond)
	}
	for _, m := range members {
		o.Go(m.peer, at.Key(), service, msg, timeout, func(data []byte, err error) {
			if errors.Is(err, ErrUnreachable) {
				o.unreachable(m.peer)
			}
			answers <- answer{data, err}
		})
	}
	var errs []error
	for range members {
		select {
		case a := <-answers:
			if a.err == nil {
				return a.data, nil
			}
			errs = append(errs, a.err)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return nil, errors.Join(errs...)
}

// unreachable corrects what we believe about p after we failed to reach it.
func (o *Overlay) unreachable(p peer.ID) {
	o.sets.left(p)
	if o.kadID != "" {
		o.kad.RoutingTable().RemovePeer(p)
	}
}

// hosts reports whether a peer that speaks these protocols may be in replica sets, and whether that is certain.
func (o *Overlay) hosts(protocols []protocol.ID) (may, certain bool) {
	if o.kadID != "" {
		return slices.Contains(protocols, o.kadID), true
	}
	return slices.Contains(protocols, o.protocols[Control]), false
}
