package replicagroup

import (
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/replicagroup/order"
)

// A replica that has nothing to do sleeps (see package raft): it has no timer here, and its peers are told nothing. Whether
// they live is then the failure detector's business alone, once for each pair of peers and not for each group. It looks closely
// at peers that share a group with this one that is awake, and now and then at the others.

// stir notices that a replica fell asleep or woke up, and reports whether it did.
func (r *replica) stir() bool {
	awake := !r.halted && !r.engine.Quiesced()
	if awake == r.awake {
		return false
	}
	if r.awake = awake; !awake {
		r.lighten()
	}
	h := r.shard.host
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range r.fellows {
		h.activateLocked(p, awake)
	}
	return true
}

// lighten lets go of storage that a replica which sleeps does not need: there may be ten thousand of them.
func (r *replica) lighten() {
	if len(r.waiting)+len(r.proposals) == 0 {
		r.waiting, r.proposals = nil, nil
	}
	if len(r.reads) == 0 {
		r.reads = nil
	}
	if r.contention != nil && len(r.shares) == 0 {
		r.contention = nil
	}
	if len(r.events) == 0 {
		r.events = nil
	}
	if len(r.held) == 0 {
		r.held = nil
	}
	if len(r.blocked) == 0 {
		r.blocked = nil
	}
	if r.later != nil && r.later.View.Num <= r.view.Num {
		r.later = nil
	}
}

// activateLocked counts the reasons to watch a peer closely.
func (h *Host) activateLocked(p peer.ID, more bool) {
	before := h.active[p]
	switch {
	case more:
		h.active[p]++
	case before > 1:
		h.active[p]--
	default:
		delete(h.active, p)
	}
	if now := h.active[p]; h.watched[p] > 0 && (before == 0) != (now == 0) {
		h.overlay.Watch(p, now > 0)
	}
}

// watchLocked and unwatchLocked count reasons to watch a peer at all; with the first one the watch begins, with the last it ends.
func (h *Host) watchLocked(p peer.ID) {
	if h.watched[p]++; h.watched[p] > 1 {
		return
	}
	for _, s := range h.shards {
		s.box.Put(watchEvent{dht.NodeIDOf(p)})
	}
	h.overlay.Watch(p, h.active[p] > 0)
}

func (h *Host) unwatchLocked(p peer.ID) {
	if h.watched[p]--; h.watched[p] <= 0 {
		delete(h.watched, p)
		h.overlay.Unwatch(p)
	}
}

// watchEvent says that the detector begins to watch a peer. It knows nothing of what it said about it before, and will not take
// it back.
type watchEvent struct{ peer keyspace.NodeID }

func (e watchEvent) handle(s *shard) {
	if s.down[e.peer] {
		suspectEvent{peer: e.peer}.handle(s)
	}
}

// doubt tells a replica's engine of the members that are suspected already: one that has just started, or has just heard of them.
func (r *replica) doubt() {
	for _, m := range r.view.Members {
		if m.ID != r.self && r.shard.down[m.Peer] {
			r.step(order.Suspect{Member: m.ID, Now: time.Duration(r.shard.now)})
		}
	}
}

// due returns when a timer that is set now runs out. Those of heartbeats do at the same moments for all groups, so that what they
// send to one peer travels in one batch.
func (s *shard) due(t order.SetTimer) automaton.Instant {
	at := s.now.Add(t.After)
	if t.Beat {
		at -= at % automaton.Instant(t.After)
	}
	return at
}
