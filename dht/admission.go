package dht

import (
	"errors"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

// errNotAdmitted is why we open no stream to a peer.
var errNotAdmitted = errors.New("dht: peer is not admitted to the overlay")

// WithAdmission asks admits, which must not block, whether a peer may be in the overlay, for each stream that either side opens, those of
// Kademlia included (but not those of a Kademlia handed over with [WithDHT]). Where it may not the stream is reset before any of its bytes
// are read, and counted as [ReasonRefused]. Where we may not be in it ourselves we speak with nobody: neither with others, nor with our
// own services, which might otherwise go on serving by themselves what others have brought back elsewhere. Whoever changes what admits
// says calls [Overlay.Dismiss], of ourselves too.
func WithAdmission(admits func(peer.ID) bool) Option { return func(c *config) { c.admits = admits } }

func (o *Overlay) admitted(p peer.ID) bool {
	return o.admits == nil || !o.shutOut.Load() && o.admits(p)
}

// turnAway resets a stream whose peer is not admitted, and reports whether it did.
func (o *Overlay) turnAway(s network.Stream) bool {
	p := s.Conn().RemotePeer()
	if o.admitted(p) {
		return false
	}
	o.count.reset(ReasonRefused)
	log.Debugw("stream of a peer that is not admitted", "peer", p, "protocol", s.Protocol())
	s.ResetWithError(network.StreamGated)
	return true
}

// Reconsider takes note of whether we are admitted ourselves: while we are not, nobody is, and our messages to ourselves, those under way
// too, fail with [ErrUnreachable] or [ErrLinkLost]. It does not block. [Overlay.Dismiss] of ourselves then ends what we have with others.
func (o *Overlay) Reconsider() {
	o.considering.Lock()
	defer o.considering.Unlock()
	out := o.admits != nil && !o.admits(o.self)
	switch {
	case o.shutOut.Swap(out) == out || !o.up.Load():
	case out:
		log.Warnw("we are not admitted to the overlay any more")
		o.local.shutOut()
	default:
		log.Warnw("we are admitted to the overlay again")
		o.meetAgain()
	}
}

// meetAgain takes up the peers that stayed connected while we were not admitted, which nobody tells us of again. It does not block.
func (o *Overlay) meetAgain() {
	for _, p := range o.host.Network().Peers() {
		if protocols, err := o.host.Peerstore().GetProtocols(p); err == nil {
			o.speaks(p, protocols)
		}
	}
	if o.kadID != "" {
		if err := o.kad.Bootstrap(o.ctx); err != nil { // it looks at those that are connected
			log.Debugw("kademlia", "err", err)
		}
	}
	o.changed()
}

// Dismiss ends the streams of a peer that is not admitted any more: its calls fail with [ErrLinkLost], and it leaves the routing table and
// the replica sets. Connections stay open: they are the host's. For a peer that is admitted it does nothing.
// Ourselves it reconsiders, and ends the streams of all if we are not admitted.
func (o *Overlay) Dismiss(p peer.ID) {
	if p == o.self {
		o.Reconsider()
		o.dismissAll()
		return
	}
	if o.admitted(p) || !o.up.Load() {
		return
	}
	o.unreachable(p)
	o.changed()
	o.linksMu.RLock()
	l := o.links[p]
	o.linksMu.RUnlock()
	if l == nil {
		return
	}
	l.mu.Lock()
	var any *stream
	for i := range l.lanes {
		for _, s := range []*stream{l.lanes[i].opened, l.lanes[i].accepted} {
			if s != nil {
				any = s
			}
		}
	}
	l.mu.Unlock()
	if any != nil {
		any.close(&badFrame{ReasonRefused, "not admitted any more"})
	}
}

// dismissAll ends what we have with others while we are not admitted ourselves.
func (o *Overlay) dismissAll() {
	if !o.shutOut.Load() || !o.up.Load() {
		return
	}
	peers := o.kad.RoutingTable().ListPeers()
	o.linksMu.RLock()
	for p := range o.links {
		peers = append(peers, p)
	}
	o.linksMu.RUnlock()
	for _, p := range peers {
		o.Dismiss(p)
	}
}
