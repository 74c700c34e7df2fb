package replicagroup

import (
	"context"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/pb"
)

// Times of a graceful leave.
const (
	// LeaveTimeout bounds [Host.Leave]: who cannot be replaced by then goes all the same.
	LeaveTimeout = 10 * time.Second
	// leaveEvery is how often a group's leader is told that this peer wants to leave, and how long it may keep the answer back
	// until the peer may go.
	leaveEvery = time.Second
	// leaveRetry is the pause after an answer that was of no use, as of one that does not lead, and between two looks at what is
	// left.
	leaveRetry = 100 * time.Millisecond
	// leaderless is how long a leaving peer waits for a group that has no leader: there is nobody who could let it go, as when all
	// members are stopped at once.
	leaderless = 3 * time.Second
)

// leaving is what a leave has come to in one group.
type leaving struct {
	asking bool // the leader is being asked
	free   bool // it may go
	next   automaton.Instant
	led    automaton.Instant // when a leader was last known
}

// leaveAnswer is a leader's answer to a wish to leave.
type leaveAnswer struct {
	group order.GroupID
	mayGo bool
	held  bool // it was kept back as long as it may be
}

// errLeaveTimeout ends a leave that has taken as long as one may.
var errLeaveTimeout = fmt.Errorf("replicagroup: leave: %v have passed", LeaveTimeout)

// Leave gives up this peer's place in all its groups: it takes no new replicas, hands over the leadership of groups it leads, and
// asks each group to let it go, which replaces it where another peer can take its place. It returns when every group has let it go or
// has done without a leader for a few seconds, or when ctx or [LeaveTimeout] ends; the error then says how many groups still
// count on this peer. Nothing is lost in any case: a voter that goes unreplaced is like one that crashed, and is welcome when it
// comes back.
//
// The replicas go on meanwhile; the caller closes the host afterwards. After Leave the peer takes no replicas until it starts anew.
func (h *Host) Leave(ctx context.Context) error {
	if h.store == nil || h.neighbours == nil {
		return nil // it is no member of anything, or stays one for good
	}
	ctx, cancel := context.WithTimeoutCause(ctx, LeaveTimeout, errLeaveTimeout)
	defer cancel()
	h.leaving.Store(true)
	h.SetHosting(false)
	groups := make(map[order.GroupID]*leaving)
	answers := make(chan leaveAnswer, groupsMax)
	tick := time.NewTicker(leaveRetry)
	defer tick.Stop()
	left := 0
	for {
		all, err := h.Status(ctx)
		if err != nil {
			return fmt.Errorf("replicagroup: leave: %d groups still count on this peer: %w", left, err)
		}
		now := h.clock.Now()
		left = 0
		for _, r := range all {
			if h.stillIn(r, groups, now, answers) {
				left++
			}
		}
		if left == 0 {
			return nil
		}
		select {
		case a := <-answers:
			g := groups[a.group]
			if g.asking, g.free = false, a.mayGo; !a.held {
				g.next = h.clock.Now().Add(leaveRetry)
			}
		case <-tick.C:
		case <-h.ctx.Done():
			return fmt.Errorf("replicagroup: leave: %d groups still count on this peer: %w", left, context.Cause(h.ctx))
		case <-ctx.Done():
			return fmt.Errorf("replicagroup: leave: %d groups still count on this peer: %w", left, context.Cause(ctx))
		}
	}
}

// stillIn reports whether a group still needs this peer, as far as is known, and asks its leader where nobody is being asked.
func (h *Host) stillIn(r ReplicaStatus, groups map[order.GroupID]*leaving, now automaton.Instant, answers chan<- leaveAnswer) bool {
	g := groups[r.Group]
	if g == nil {
		g = &leaving{led: now}
		groups[r.Group] = g
	}
	_, member := r.Status.View.At(h.overlay.Node(), h.storeID)
	leader, known := r.Status.View.Member(r.Status.Leader)
	if known {
		g.led = now
	}
	switch {
	case g.free, !member, r.Halted, now >= g.led.Add(leaderless):
		return false
	case !known, g.asking, now < g.next:
		return true
	}
	g.asking = true
	req := marshal(&pb.LeaveRequest{Group: groupToPB(r.Group)})
	h.overlay.Go(peer.ID(leader.PeerID), keyspace.Key{}, serviceLeave, req, leaveEvery+askTimeout, func(b []byte, err error) {
		var m pb.LeaveReply
		if err == nil {
			err = proto.Unmarshal(b, &m)
		}
		answers <- leaveAnswer{r.Group, err == nil && m.MayGo, err == nil && m.Leads}
	})
	return true
}

// leaveEvent is the wish of a peer to leave a group.
type leaveEvent struct {
	group order.GroupID
	from  keyspace.NodeID
	call  caller
}

func (h *Host) handleLeave(req *dht.Request) error {
	var m pb.LeaveRequest
	if err := proto.Unmarshal(req.Data, &m); err != nil {
		return malformed("leave: %v", err)
	}
	g, err := h.decode.group(m.Group)
	if err != nil {
		return err
	}
	if !h.shardOf(g).box.TryPut(leaveEvent{g, dht.NodeIDOf(req.From), req}) {
		h.counters.busy.Add(1)
		req.Reply(nil)
	}
	return nil
}

func (e leaveEvent) handle(s *shard) {
	r, ok := s.replicas[e.group.Life()]
	if !ok || r.plan == nil {
		e.call.Reply(nil)
		return
	}
	r.plan.wish(e.from, e.call)
}
