package dht

import "github.com/libp2p/go-libp2p/core/network"

// OnMode registers a function that is told when the node's mode changes: hosting is whether it may be in replica sets from now
// on. It is called in order, by one goroutine, and must not block. Call it before [Overlay.Start].
func (o *Overlay) OnMode(f func(hosting bool)) {
	o.life.Lock()
	defer o.life.Unlock()
	if o.started {
		panic("dht: OnMode after Start")
	}
	o.onMode = append(o.onMode, f)
}

// Hosting reports whether this node may be in replica sets now: true in server mode, false in client mode, and in auto mode what
// the host's reachability makes it.
func (o *Overlay) Hosting() bool { return o.hosting.Load() }

// Auto reports whether the node's mode follows its reachability.
func (o *Overlay) Auto() bool { return o.auto }

// Reachability tells whether peers of the public internet reach this node, as far as its host's AutoNAT knows. It is unknown before
// [Overlay.Start].
func (o *Overlay) Reachability() network.Reachability { return network.Reachability(o.reach.Load()) }

// reached takes note of whether others reach us, and in auto mode becomes a server or a client accordingly.
func (o *Overlay) reached(r network.Reachability) {
	o.reach.Store(int32(r))
	hosting := r == network.ReachabilityPublic
	if !o.auto || o.hosting.Swap(hosting) == hosting {
		return
	}
	log.Infow("mode changed", "hosting", hosting, "reachability", r)
	if hosting {
		o.sets.joined(member{o.self, o.node})
	} else {
		o.sets.left(o.self)
	}
	o.changed()
	for _, f := range o.onMode {
		f(hosting)
	}
}
