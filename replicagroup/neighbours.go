package replicagroup

import (
	"container/list"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/internal/driver"
	"latchkey/replicagroup/pb"
	"latchkey/replicagroup/placement"
)

// neighbours finds the peers around anchors and asks them about themselves, for the plans of all groups that are led here. What a
// peer says of itself does not depend on the group, so it is asked once for all of them, and few look-ups run at a time, however
// many groups a leader has just come to lead.
type neighbours struct {
	host *Host

	mu      sync.Mutex
	looks   []look // waiting for their turn
	running int
	probes  map[peer.ID]*probe
	whole   *whole    // nil: not known
	links   uint64    // counts peers that came and went
	resting list.List // of rested: plans, the one that rests for longest first
	patrols bool      // patrol runs
}

// whole is the overlay, where it is so small that one look-up has found all of it: another would find the same, whatever its anchor.
type whole struct {
	peers []peer.AddrInfo
	nodes []keyspace.NodeID // of peers
	at    automaton.Instant // when the look-up began
}

// rested is a plan that rests, on whose shard, and since when.
type rested struct {
	plan  *plan
	box   *driver.Mailbox[shardEvent]
	since automaton.Instant
}

// look is a look-up that was asked for: the n peers closest to anchor. found must not block.
type look struct {
	anchor keyspace.Preimage
	n      int
	found  func([]peer.AddrInfo, error)
}

// probe is what a peer last said of itself, or the question under way.
type probe struct {
	neighbour placement.Neighbour
	room      bool
	answered  bool
	at        automaton.Instant // of the answer, or of its failing to come
	waiting   []func(*probe)    // nil when no question is under way
}

func newNeighbours(h *Host) *neighbours {
	return &neighbours{host: h, probes: make(map[peer.ID]*probe)}
}

// lookUp finds the peers closest to an anchor, soon.
func (n *neighbours) lookUp(l look) {
	n.mu.Lock()
	n.looks = append(n.looks, l)
	begin := n.running < looksMax
	if begin {
		n.running++
	}
	n.mu.Unlock()
	if begin && !n.host.spawn(n.work) {
		n.mu.Lock()
		n.running--
		n.mu.Unlock()
	}
}

// work carries out look-ups until none waits.
func (n *neighbours) work() {
	for {
		n.mu.Lock()
		if len(n.looks) == 0 || n.host.ctx.Err() != nil {
			n.running--
			n.mu.Unlock()
			return
		}
		l := n.looks[0]
		n.looks[0] = look{}
		n.looks = n.looks[1:]
		n.mu.Unlock()
		l.found(n.around(l, n.host.clock.Now()))
	}
}

// around carries out a look-up, unless one has found the whole overlay a moment ago and nobody came or went since.
func (n *neighbours) around(l look, now automaton.Instant) ([]peer.AddrInfo, error) {
	n.mu.Lock()
	w, links := n.whole, n.links
	n.mu.Unlock()
	if w != nil && now < w.at.Add(n.host.plan.Every/2) && len(w.peers) < l.n {
		return w.around(l.anchor.Key()), nil
	}
	ctx, cancel := context.WithTimeout(n.host.ctx, locateTimeout)
	defer cancel()
	infos, err := n.host.overlay.ReplicaSet(ctx, l.anchor, l.n)
	switch {
	case err != nil:
		log.Debugw("look-up around an anchor failed", "err", err)
	case len(infos) < l.n:
		w := &whole{peers: infos, at: now}
		for _, i := range infos {
			w.nodes = append(w.nodes, dht.NodeIDOf(i.ID))
		}
		n.mu.Lock()
		if links == n.links {
			n.whole = w
		}
		n.mu.Unlock()
	}
	return infos, err
}

// around returns all peers, those closest to point first.
func (w *whole) around(point keyspace.Key) []peer.AddrInfo {
	place := make([]int, len(w.peers))
	for i := range place {
		place[i] = i
	}
	slices.SortFunc(place, func(i, j int) int { return keyspace.CompareDistance(point, w.nodes[i], w.nodes[j]) })
	sorted := make([]peer.AddrInfo, len(place))
	for i, at := range place {
		sorted[i] = w.peers[at]
	}
	return sorted
}

// linked forgets what a peer that came or went makes wrong.
func (n *neighbours) linked() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.whole = nil
	n.links++
}

// rest puts a plan that rests at the end of the patrol: one after the other is roused, to look whether everything is still as it was,
// none sooner than after [placement.PlanTimes].Idle and at most [patrolShare] in that time.
func (n *neighbours) rest(p *plan, now automaton.Instant) *list.Element {
	n.mu.Lock()
	at := n.resting.PushBack(rested{p, p.replica.shard.box, now})
	begin := !n.patrols
	n.patrols = true
	n.mu.Unlock()
	if begin && !n.host.spawn(n.patrol) {
		n.strike(at) // the host is closed
	}
	return at
}

// strike takes a plan off the patrol, if its turn has not come yet.
func (n *neighbours) strike(at *list.Element) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.resting.Remove(at)
}

// patrol rouses plans until none rests.
func (n *neighbours) patrol() {
	for {
		r, wait, ok := n.turn(n.host.clock.Now())
		if !ok {
			return
		}
		if r.plan != nil {
			r.box.Put(rouseEvent{r.plan})
		}
		if pause(n.host.ctx, wait) != nil {
			return
		}
	}
}

// turn takes the plan off the patrol whose turn has come, if one's has, and says how long to wait for the next. ok is false when none
// rests, and the patrol then ends.
func (n *neighbours) turn(now automaton.Instant) (r rested, wait time.Duration, ok bool) {
	idle := n.host.plan.Idle
	n.mu.Lock()
	defer n.mu.Unlock()
	first := n.resting.Front()
	if n.patrols = first != nil; !n.patrols {
		return r, 0, false
	}
	r = first.Value.(rested)
	if wait = r.since.Add(idle).Sub(now); wait > 0 {
		return rested{}, wait, true
	}
	n.resting.Remove(first)
	return r, idle / patrolShare, true
}

// around is what an inquiry among the peers around an anchor has found.
type around struct {
	answered []placement.Neighbour
	silent   []keyspace.NodeID
	failed   bool // the look-up failed: only those were asked that are known
}

// candidates finds the peers closest to an anchor and asks them, the members of its group, those that were known before and this
// peer what they say of themselves. done must not block.
func (n *neighbours) candidates(anchor keyspace.Preimage, count int, members, before []peer.ID, done func(around)) {
	n.lookUp(look{anchor, count, func(infos []peer.AddrInfo, err error) {
		member := map[peer.ID]bool{}
		for _, m := range members {
			member[m] = true
		}
		ask := slices.Concat([]peer.ID{n.host.overlay.Self()}, members, before)
		for _, i := range infos {
			ask = append(ask, i.ID)
		}
		asked := make(map[peer.ID]bool)
		var mu sync.Mutex
		found := around{failed: err != nil}
		left := 1 // for this loop, until it has asked everybody
		answer := func(id peer.ID, p *probe) {
			mu.Lock()
			switch {
			case p == nil:
			case !p.answered:
				found.silent = append(found.silent, dht.NodeIDOf(id))
			default:
				// A member stays fit when there is no room for further groups; a stranger does not.
				c := p.neighbour
				c.Hosts = c.Hosts && (member[id] || p.room)
				c.Up += n.host.clock.Now().Sub(p.at)
				found.answered = append(found.answered, c)
			}
			left--
			over := left == 0
			mu.Unlock()
			if over {
				done(found)
			}
		}
		for _, id := range ask {
			if asked[id] {
				continue
			}
			asked[id] = true
			mu.Lock()
			left++
			mu.Unlock()
			n.probe(id, func(p *probe) { answer(id, p) })
		}
		answer("", nil)
	}})
}

// probe asks a peer about itself, unless that was done a moment ago. done gets a copy.
func (n *neighbours) probe(id peer.ID, done func(*probe)) {
	now := n.host.clock.Now()
	n.mu.Lock()
	p := n.probes[id]
	switch {
	case p != nil && p.waiting != nil:
		p.waiting = append(p.waiting, done)
		n.mu.Unlock()
		return
	case p != nil && now < p.at.Add(n.host.plan.Every/2):
		known := *p
		n.mu.Unlock()
		done(&known)
		return
	case p == nil:
		n.forgetLocked(now)
		p = new(probe)
		n.probes[id] = p
	}
	p.waiting = []func(*probe){done}
	n.mu.Unlock()
	n.host.overlay.Go(id, keyspace.Key{}, serviceProbe, nil, askTimeout, func(b []byte, err error) {
		said, ok := decodeProbe(b)
		n.mu.Lock()
		before := p.neighbour
		p.answered, p.at = err == nil && ok, n.host.clock.Now()
		if p.answered {
			p.neighbour, p.room = said.neighbour, said.room
			p.neighbour.Peer = dht.NodeIDOf(id)
		}
		now := p.neighbour
		waiting, known := p.waiting, *p
		p.waiting, known.waiting = nil, nil
		n.mu.Unlock()
		// What one look-up has found concerns all groups around: one that leads thousands waits long for their turns in the patrol.
		if first := before.Peer.IsZero(); first && known.answered && !n.host.fellow(id) || !first && (before.Store != now.Store || before.Hosts != now.Hosts) {
			for _, s := range n.host.shards {
				s.box.Put(appearedEvent{now.Peer})
			}
		}
		for _, f := range waiting {
			f(&known)
		}
	})
}

// forgetLocked makes room where many peers are known, by forgetting what is too old to be used again.
func (n *neighbours) forgetLocked(now automaton.Instant) {
	if len(n.probes) < probesMax {
		return
	}
	for id, p := range n.probes {
		if p.waiting == nil && now >= p.at.Add(n.host.plan.Every/2) {
			delete(n.probes, id)
		}
	}
}

// decodeProbe reads a peer's answer. One without a store hosts nothing.
func decodeProbe(b []byte) (p probe, ok bool) {
	var m pb.ProbeReply
	if proto.Unmarshal(b, &m) != nil || m.UpMs > uint64(upMax/time.Millisecond) {
		return p, false
	}
	if len(m.Store) > 0 && fixed(p.neighbour.Store[:], m.Store, "store id") != nil || len(m.Store) == 0 && m.Hosts {
		return p, false
	}
	p.neighbour.Up, p.neighbour.Hosts, p.room = time.Duration(m.UpMs)*time.Millisecond, m.Hosts, m.Room
	return p, true
}

// upMax is how long a process can have been up; who claims more is not believed.
const upMax = 100 * 365 * 24 * time.Hour

// handleProbe tells any peer about this one.
func (m *hosting) handleProbe(req *dht.Request) error {
	if len(req.Data) > 0 {
		return malformed("probe with %d bytes", len(req.Data))
	}
	if !m.box.TryPut(hostingEvent{placement.Probe{}, req}) {
		m.host.counters.busy.Add(1)
		req.Fail(ErrBusy)
	}
	return nil
}
