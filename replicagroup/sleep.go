package replicagroup

import (
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/quorum"
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
	r.epochs = nil // no timer of the engine is set
	if len(r.held) == 0 {
		r.held = nil
	}
	if len(r.lagging) == 0 {
		r.lagging = nil
	}
	if r.rare != nil && len(r.rare.links)+len(r.rare.partings)+len(r.rare.blocked) == 0 {
		r.rare = nil
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
	if s.suspects(e.peer) {
		suspectEvent{peer: e.peer}.handle(s)
	}
}

// suspects reports whether the failure detector takes a peer for dead.
func (s *shard) suspects(n keyspace.NodeID) bool { _, is := s.down[n]; return is }

// A peer that dies, or whose connections do, may have led thousands of groups that sleep, and each that wakes elects a leader; one that
// comes back wakes those that are led here, and lacks what they did without it. So they are roused in a line, as fast as [rousesMax] and [stirringMax] allow, by the order of
// their names, which all their members keep; one that is asked for something, or hears of a member, is at once. Meanwhile it says since
// when its leader has been gone (silence).

// hesitate puts a replica in the line of those that have to be told of a suspicion, if that can wait: it sleeps, and the suspicion
// would wake it.
func (s *shard) hesitate(r *replica, suspect order.ReplicaID) bool {
	leader, leading := r.engine.Leader()
	if r.hesitates {
		return true // it is told of all of them
	}
	if !r.engine.Quiesced() || leader != suspect && !(leading && r.lease != nil) {
		return false
	}
	s.line(r)
	return true
}

// line puts a replica in the line, unless it is in it.
func (s *shard) line(r *replica) {
	if !r.hesitates {
		r.hesitates = true
		s.drowsy = append(s.drowsy, r)
	}
}

// lineUp sorts the line when it had so many before, and lets its first ones decide if there was none.
func (s *shard) lineUp(before int) {
	if len(s.drowsy) > before {
		slices.SortFunc(s.drowsy, func(a, b *replica) int { return a.group.Compare(b.group) })
	}
	if before == 0 {
		s.rouse()
	}
}

// unheard keeps what has become of a link for a replica that hesitates. Of each member that is the last loss and what came after it:
// who hears of both knows all that matters.
func (r *replica) unheard(l order.Link) {
	rare := r.rarely()
	if !l.Up {
		rare.links = slices.DeleteFunc(rare.links, func(o order.Link) bool { return o.To == l.To })
	} else if slices.Contains(rare.links, l) {
		return
	}
	rare.links = append(rare.links, l)
}

// decide has a replica that rests begin, and tells one that hesitates who is suspected by now and who is not, and which links came and went.
func (r *replica) decide() {
	if r.resting {
		r.resting = false
		r.launch()
	}
	if !r.hesitates {
		return
	}
	r.hesitates = false
	var links []order.Link
	if r.rare != nil {
		links, r.rare.links = r.rare.links, nil
	}
	r.doubt()
	if r.trusts {
		r.trusts = false
		for _, m := range r.view.Members {
			if m.ID != r.self && !r.shard.suspects(m.Peer) {
				r.step(order.Trust{Member: m.ID})
			}
		}
	}
	for _, l := range links {
		r.step(l)
	}
	if r.leading {
		r.poll()
	}
}

// rouse lets as many of those that hesitate decide as may at a time.
func (s *shard) rouse() {
	n := 0
	for room := s.room(rousesMax); n < len(s.drowsy) && room > 0; n++ {
		r := s.drowsy[n]
		s.drowsy[n] = nil
		if r.hesitates {
			r.decide()
			s.stirs(r)
			room--
		}
	}
	if s.drowsy = s.drowsy[n:]; len(s.drowsy) == 0 {
		s.drowsy = nil
		return
	}
	s.timers.Set(timerKey{kind: timerRouse}, s.now.Add(rouseEvery))
}

// Where elections take long, because the machine is busy with all of them, more of them would only take longer. So both lines stand still
// while as many of their groups as [stirringMax] are without a leader.

// stirring is a replica that was roused, or has begun, and has no leader yet.
type stirring struct {
	replica *replica
	since   automaton.Instant
}

// stirs counts a replica among them.
func (s *shard) stirs(r *replica) {
	if !r.led {
		s.stirring = append(s.stirring, stirring{r, s.now})
	}
}

// room returns how many of a line may go on, at most so many.
func (s *shard) room(most int) int {
	s.stirring = slices.DeleteFunc(s.stirring, func(st stirring) bool {
		r := st.replica
		return r.led || r.halted || s.replicas[r.group.Life()] != r || s.now >= st.since.Add(stirringPatience) || len(r.gone()) > r.expendable()
	})
	return min(most, stirringMax-len(s.stirring))
}

// A peer that comes back with ten thousand groups would have all of them elect leaders at once. Those beyond the first few of a shard
// rest: their engines begin in a line, by the order of their names, as that of their other members does; one that is asked for
// something, or hears of a member, begins at once. To the others it looks like a peer that takes longer to come back. Never the root's
// nor a key's own, which say more of themselves than who leads them.

// rest puts a replica that has started in the line of those whose engines are to begin.
func (r *replica) rest() {
	s := r.shard
	r.resting, r.led, r.leaderless = true, false, s.now
	if s.resting = append(s.resting, r); len(s.resting) == 1 {
		s.timers.Set(timerKey{kind: timerBegin}, s.now.Add(rouseEvery))
	}
}

// begin lets as many engines of those that rest begin as may at a time.
func (s *shard) begin() {
	n := 0
	for room := s.room(startsMax); n < len(s.resting) && room > 0; n++ {
		if r := s.resting[n]; r.resting {
			if s.replicas[r.group.Life()] == r {
				r.decide()
				s.stirs(r)
				room--
			} else {
				r.resting = false // it has ended meanwhile
			}
		}
		s.resting[n] = nil
	}
	if s.resting = s.resting[n:]; len(s.resting) == 0 {
		s.resting = nil
		return
	}
	s.timers.Set(timerKey{kind: timerBegin}, s.now.Add(rouseEvery))
}

// lost reports whether the detector leaves so few of the voters of a group that sleeps that they are no majority, or suspects its leader,
// and since when. Nobody would notice before somebody asked.
func (r *replica) lost() (since automaton.Instant, is bool) {
	if r.awake {
		return 0, false // then the engine knows better
	}
	s := r.shard
	leader, _ := r.engine.Leader()
	if m, ok := r.view.Member(leader); ok && leader != r.self && s.suspects(m.Peer) {
		return s.down[m.Peer], true
	}
	gone, most := r.gone(), r.expendable()
	if len(gone) <= most {
		return 0, false
	}
	slices.Sort(gone)
	return gone[most], true
}

// gone returns since when the detector has suspected those of the voters that it suspects.
func (r *replica) gone() (since []automaton.Instant) {
	for _, m := range r.view.Members {
		if m.Role != order.Learner && m.ID != r.self && r.shard.suspects(m.Peer) {
			since = append(since, r.shard.down[m.Peer])
		}
	}
	return since
}

// expendable is how many voters may be gone.
func (r *replica) expendable() int {
	n := len(r.view.Voters())
	return n - quorum.Majority(n)
}

// doubt tells a replica's engine of the members that are suspected already: one that has just started, or has just heard of them.
func (r *replica) doubt() {
	for _, m := range r.view.Members {
		if m.ID != r.self && r.shard.suspects(m.Peer) {
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
