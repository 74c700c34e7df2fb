package dht

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	kb "github.com/libp2p/go-libp2p-kbucket"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	ma "github.com/multiformats/go-multiaddr"

	"latchkey/dht/keyspace"
)

// nodeMap remembers which peer a node id belongs to.
type nodeMap struct {
	mu    sync.Mutex
	peers *lru[keyspace.NodeID, peer.ID]
}

func newNodeMap() *nodeMap { return &nodeMap{peers: newLRU[keyspace.NodeID, peer.ID](nodesMax)} }

func (m *nodeMap) add(p peer.ID) keyspace.NodeID {
	n := NodeIDOf(p)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.peers.put(n, p)
	return n
}

// PeerOf returns the peer whose node id is n, if it was seen: by a look-up, on a stream, or by [Overlay.Learn].
func (o *Overlay) PeerOf(n keyspace.NodeID) (peer.ID, bool) {
	if n == o.node {
		return o.self, true
	}
	o.nodes.mu.Lock()
	defer o.nodes.mu.Unlock()
	return o.nodes.peers.get(n)
}

// Learn remembers a peer's addresses for a day, and its node id.
func (o *Overlay) Learn(p peer.AddrInfo) {
	if p.ID == o.self || p.ID.Validate() != nil {
		return
	}
	o.host.Peerstore().AddAddrs(p.ID, p.Addrs[:min(len(p.Addrs), learnAddrsMax)], learnTTL)
	o.nodes.add(p.ID)
}

// watch follows the host's events: connections that come and go, and peers that turn out to speak our protocols.
func (o *Overlay) watch() {
	up := make(map[peer.ID]bool)
	change := func(p peer.ID, now bool) {
		if up[p] == now {
			return
		}
		if up[p] = now; !now {
			delete(up, p)
		}
		o.linkChanged(p, now)
	}
	// What was connected before the subscription has no event. An event for the same change then changes nothing.
	for _, p := range o.host.Network().Peers() {
		change(p, true)
		if protocols, err := o.host.Peerstore().GetProtocols(p); err == nil {
			o.speaks(p, protocols)
		}
	}
	for {
		select {
		case <-o.ctx.Done():
			return
		case e, ok := <-o.events.Out():
			if !ok {
				return // the host is closed
			}
			switch e := e.(type) {
			case event.EvtPeerConnectednessChanged:
				change(e.Peer, e.Connectedness == network.Connected)
			case event.EvtPeerIdentificationCompleted:
				o.speaks(e.Peer, e.Protocols)
			case event.EvtPeerIdentificationFailed:
				o.unidentified(e.Peer)
			case event.EvtPeerProtocolsUpdated:
				o.speaks(e.Peer, e.Added)
				o.speaksNoMore(e.Peer, e.Removed)
			case event.EvtLocalReachabilityChanged:
				o.reached(e.Reachability)
			}
		}
	}
}

// linkChanged takes note of a connection that came up, or of the last one to a peer that went.
func (o *Overlay) linkChanged(p peer.ID, up bool) {
	switch {
	case up:
		o.linkUp(p)
	case o.host.Network().Connectedness(p) != network.Connected: // it may be back already
		o.lost(p)
		o.unreachable(p)
		o.changed()
	default:
		o.sets.left(p)
	}
	if !up || !o.refused(p) { // it is as good as gone
		o.beats.link(p, up)
	}
	for _, f := range o.onLink {
		f(p, up)
	}
}

// lost remembers where a peer of the overlay was, for the case that we lose all.
func (o *Overlay) lost(p peer.ID) {
	protocols, err := o.host.Peerstore().GetProtocols(p)
	if err != nil {
		return
	}
	if may, _ := o.hosts(protocols); !may {
		return
	}
	if info := o.host.Peerstore().PeerInfo(p); len(info.Addrs) > 0 {
		info.Addrs = info.Addrs[:min(len(info.Addrs), learnAddrsMax)]
		o.boot.remember(info)
	}
}

// speaks takes note of the protocols of a connected peer.
func (o *Overlay) speaks(p peer.ID, protocols []protocol.ID) {
	may, certain := o.hosts(protocols)
	if !may || p == o.self || !o.admitted(p) {
		return
	}
	m := member{p, o.nodes.add(p)}
	if certain {
		o.sets.joined(m)
	} else {
		o.sets.mayHaveJoined(m)
	}
	o.changed()
}

// unidentified closes the connections to a peer that did not say in time what it speaks, as happens where a machine is very busy. The
// host asks once for each connection, so neither Kademlia nor we would hear of the peer for as long as one lasts; whoever needs the other
// makes a new one. A connection that failed earlier did so for its own reasons, and a younger one is still being asked.
func (o *Overlay) unidentified(p peer.ID) {
	if protocols, err := o.host.Peerstore().GetProtocols(p); err == nil && len(protocols) > 0 {
		return // it has said so on another
	}
	for _, c := range o.host.Network().ConnsToPeer(p) {
		if time.Since(c.Stat().Opened) >= identify.DefaultTimeout {
			log.Infow("a peer did not say what it speaks: its connection is closed, to be made anew", "peer", p)
			o.spawn(func() { _ = c.Close() })
		}
	}
}

// speaksNoMore takes note of the protocols that a connected peer has given up, as one does that goes into client mode.
func (o *Overlay) speaksNoMore(p peer.ID, protocols []protocol.ID) {
	if might, _ := o.hosts(protocols); !might || p == o.self {
		return
	}
	o.sets.left(p) // Kademlia has an eye on its own protocol, and drops p from its table
	o.changed()
}

// mayHaveJoined marks the sets that m would be in.
func (s *sets) mayHaveJoined(m member) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.departed.put(m.peer, time.Time{})
	s.arrived.put(m.peer, arrival{m, false, time.Now()})
	s.cache.all(func(r *replicaSet) {
		with := replicaSet{key: r.key, members: r.members}
		with.insert(m)
		r.stale = r.stale || !r.has(m.peer) && with.has(m.peer)
	})
	for _, f := range s.flights {
		f.dirty = true
	}
}

// changed makes the neighbour set be looked at soon.
func (o *Overlay) changed() {
	select {
	case o.kick <- struct{}{}:
	default:
	}
}

func (o *Overlay) lookUpSelf() {
	o.count.selfLookups.Add(1)
	ctx, cancel := context.WithTimeout(o.ctx, lookupTimeout)
	defer cancel()
	peers, err := o.kad.GetClosestPeers(ctx, string(o.self))
	if err != nil {
		log.Debugw("looking for neighbours", "err", err)
	}
	for _, p := range peers {
		o.nodes.add(p)
	}
}

// endPause lets the host dial a peer at once. Its own pause after a failed dial is longer than we can wait for a restarted
// peer; ours replaces it. (Forcing a direct dial would skip the pause too, but crashes a host that is being closed in go-libp2p
// v0.51, and would keep relays out.)
func (o *Overlay) endPause(p peer.ID) {
	if s, ok := o.host.Network().(*swarm.Swarm); ok {
		s.Backoff().Clear(p)
	}
}

// WaitPeers waits until the routing table holds at least n peers. In an overlay of up to 20 nodes, once every node's holds all
// others, every look-up is right. Errors: context.Cause(ctx), [ErrClosed].
func (o *Overlay) WaitPeers(ctx context.Context, n int) error {
	ticker := time.NewTicker(waitInterval)
	defer ticker.Stop()
	for {
		if !o.up.Load() {
			return ErrClosed
		}
		size := o.kad.RoutingTable().Size()
		if size >= n {
			return nil
		}
		select {
		case <-ticker.C:
		case <-o.ctx.Done():
		case <-ctx.Done():
			return fmt.Errorf("dht: %d of %d peers known: %w", size, n, context.Cause(ctx))
		}
	}
}

// NeighbourSet returns the n known nodes closest to this one in the key space, the closest first, without oneself: the paper's
// neighbour set. It asks nobody: the set is kept up to date by look-ups of this node's own id, soon after peers come or go
// and at least once a minute.
func (o *Overlay) NeighbourSet(n int) []peer.ID {
	if !o.up.Load() || n <= 0 {
		return nil
	}
	return o.kad.RoutingTable().NearestPeers(kb.ConvertPeerID(o.self), n)
}

// PeerInfo is what this node knows of another one of the overlay.
type PeerInfo struct {
	ID        peer.ID
	Node      keyspace.NodeID
	Addrs     []ma.Multiaddr
	Connected bool
	Routing   bool          // in the routing table, thus hosting
	Streams   int           // open between us
	RTT       time.Duration // smoothed; 0: not measured
}

// Peers returns the peers in the routing table and those we have a stream with, by node id, without oneself.
func (o *Overlay) Peers() []PeerInfo {
	if !o.up.Load() {
		return nil
	}
	known := make(map[peer.ID]*PeerInfo)
	at := func(p peer.ID) *PeerInfo {
		if known[p] == nil {
			known[p] = &PeerInfo{ID: p, Node: NodeIDOf(p)}
		}
		return known[p]
	}
	for _, p := range o.kad.RoutingTable().ListPeers() {
		at(p).Routing = true
	}
	o.linksMu.RLock()
	for p, l := range o.links {
		l.mu.Lock()
		if l.streams > 0 {
			at(p).Streams = l.streams
		}
		l.mu.Unlock()
	}
	o.linksMu.RUnlock()
	infos := make([]PeerInfo, 0, len(known))
	for p, i := range known {
		i.Addrs = o.host.Peerstore().Addrs(p)
		i.Connected = o.host.Network().Connectedness(p) == network.Connected
		i.RTT = o.host.Peerstore().LatencyEWMA(p)
		infos = append(infos, *i)
	}
	slices.SortFunc(infos, func(a, b PeerInfo) int { return bytes.Compare(a.Node[:], b.Node[:]) })
	return infos
}

// Info returns a peer's id with the addresses that are known of it; our own are those that we tell others. It does not block on the
// network. It is safe for concurrent use.
func (o *Overlay) Info(p peer.ID) peer.AddrInfo {
	if p == o.self {
		return peer.AddrInfo{ID: p, Addrs: o.host.Addrs()}
	}
	return peer.AddrInfo{ID: p, Addrs: o.host.Peerstore().Addrs(p)}
}
