package node

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
)

// Refusal is why somebody was turned away.
type Refusal string

// The refusals that are counted.
const (
	// RefusedHandshake: an inbound connection that never showed who it is: another swarm key or none, something that is not
	// libp2p, or somebody who gave up. Of the last there are some in every overlay that grows: when two peers dial each other
	// at the same moment, one connection is enough.
	RefusedHandshake Refusal = "handshake"
	// RefusedLimits: an inbound connection beyond the host's limits.
	RefusedLimits Refusal = "limits"
	// RefusedOverlay: a peer of other overlays only.
	RefusedOverlay Refusal = "other overlay"
	// RefusedVersion: a peer of this overlay with which we have no protocol version in common.
	RefusedVersion Refusal = "other version"
	// RefusedHello: a peer whose hello we did not accept.
	RefusedHello Refusal = "hello refused"
	// RefusedTwin: a peer whose store runs in two places.
	RefusedTwin Refusal = "store in two places"
)

// Refusals counts those whom a peer turned away, by reason. The zero value is ready to use; methods are safe for concurrent
// use. One is given both to [HostOptions], which lets it see connections, and to [WithRefusals].
type Refusals struct {
	mu     sync.Mutex
	counts map[Refusal]uint64
}

func (r *Refusals) add(why Refusal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.counts == nil {
		r.counts = make(map[Refusal]uint64)
	}
	r.counts[why]++
}

// Counts returns how many were refused so far, by reason; reasons without any are absent.
func (r *Refusals) Counts() map[Refusal]uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	counts := make(map[Refusal]uint64, len(r.counts))
	for why, n := range r.counts {
		counts[why] = n
	}
	return counts
}

// watch returns m with an eye on inbound connections. A connection gater would see them come but not fail: only the resource manager
// is told of every end.
func (r *Refusals) watch(m network.ResourceManager) network.ResourceManager {
	return &watchedResources{m, r}
}

type watchedResources struct {
	network.ResourceManager
	refusals *Refusals
}

// GetConnLimit lets libp2p compare the limits of resource manager and connection manager.
func (w *watchedResources) GetConnLimit() int {
	if l, ok := w.ResourceManager.(interface{ GetConnLimit() int }); ok {
		return l.GetConnLimit()
	}
	return int(^uint(0) >> 1)
}

// OpenConnection opens a connection's scope.
func (w *watchedResources) OpenConnection(dir network.Direction, usefd bool, at ma.Multiaddr) (network.ConnManagementScope, error) {
	scope, err := w.ResourceManager.OpenConnection(dir, usefd, at)
	if dir != network.DirInbound {
		return scope, err
	}
	if err != nil {
		w.refusals.add(RefusedLimits)
		return nil, err
	}
	return &inboundScope{ConnManagementScope: scope, refusals: w.refusals}, nil
}

// inboundScope is the scope of an inbound connection: it gets a peer once the peer is authenticated, and ends with the connection.
type inboundScope struct {
	network.ConnManagementScope
	refusals *Refusals
	known    atomic.Bool
	done     sync.Once
}

// SetPeer names the authenticated peer.
func (s *inboundScope) SetPeer(p peer.ID) error {
	s.known.Store(true)
	return s.ConnManagementScope.SetPeer(p)
}

// Done ends the scope.
func (s *inboundScope) Done() {
	s.done.Do(func() {
		if !s.known.Load() {
			s.refusals.add(RefusedHandshake)
		}
	})
	s.ConnManagementScope.Done()
}

// strangers follows what the host's peers say they speak, and refuses those that are of another overlay.
type strangers struct {
	host     host.Host
	prefix   string      // of our overlay's protocols
	control  protocol.ID // ours
	refusals *Refusals
	close    bool // end the connections
	watcher
}

// strangerGrace is how long a peer of another overlay stays connected, so that it learns from our protocols whom it has met. It never
// reaches a handler of ours.
const strangerGrace = 500 * time.Millisecond

const (
	// strangersMax is how many peers are waiting for that to pass. Others are looked for again when these have gone; where none is
	// disconnected, they are counted at once.
	strangersMax = 256
	// closesMax is how many peers are asked, and their connections closed, at once: to close one may take 100 ms, when the peer reads
	// nothing. While so many are, the next one is tried again after closePause.
	closesMax  = 16
	closePause = 20 * time.Millisecond
	// askTimeout bounds the question whether a peer speaks our protocol after all.
	askTimeout = 5 * time.Second
)

// start begins to follow; stop ends it.
func (s *strangers) start() error {
	return s.watcher.start(s.host, "latchkey/node", []any{new(event.EvtPeerIdentificationCompleted), new(event.EvtPeerProtocolsUpdated)}, s.run)
}

func (s *strangers) run(events <-chan any) {
	type leaving struct {
		peer peer.ID
		at   time.Time
	}
	var queue []leaving // in the order of their times
	missed := false     // somebody, for want of room
	timer := time.NewTimer(0)
	defer timer.Stop()
	closing := make(map[peer.ID]bool) // being asked and sent away
	closed := make(chan peer.ID, closesMax)
	var closes sync.WaitGroup
	defer closes.Wait()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	meet := func(p peer.ID) {
		why, refuse := s.judge(p)
		switch {
		case !refuse || closing[p] || slices.ContainsFunc(queue, func(l leaving) bool { return l.peer == p }):
		case len(queue) >= strangersMax && s.close:
			missed = true
		case len(queue) >= strangersMax:
			s.count(p, why)
		default:
			queue = append(queue, leaving{p, time.Now().Add(strangerGrace)})
			timer.Reset(time.Until(queue[0].at))
		}
	}
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return
			}
			switch e := e.(type) {
			case event.EvtPeerIdentificationCompleted:
				meet(e.Peer)
			case event.EvtPeerProtocolsUpdated:
				meet(e.Peer)
			}
		case p := <-closed:
			delete(closing, p)
		case <-timer.C:
			for len(queue) > 0 && time.Until(queue[0].at) <= 0 && len(closing) < closesMax {
				p := queue[0].peer
				queue = queue[1:]
				if _, refuse := s.judge(p); refuse {
					closing[p] = true
					closes.Go(func() {
						s.refuse(ctx, p)
						closed <- p
					})
				}
			}
			switch {
			case len(queue) > 0:
				timer.Reset(max(time.Until(queue[0].at), closePause))
			case missed && len(closing) > 0: // they are still there, but not to be met again
				timer.Reset(closePause)
			case missed:
				missed = false
				for _, p := range s.host.Network().Peers() {
					meet(p)
				}
			}
		}
	}
}

// judge tells whether a peer is to be refused for what it speaks. One that speaks no latchkey at all is not: it may be a tool that
// looks at us, or somebody about to join.
func (s *strangers) judge(p peer.ID) (why Refusal, refuse bool) {
	protocols, err := s.host.Peerstore().GetProtocols(p)
	if err != nil || !slices.ContainsFunc(protocols, isLatchkey) || slices.Contains(protocols, s.control) {
		return "", false
	}
	if slices.ContainsFunc(protocols, func(id protocol.ID) bool { return strings.HasPrefix(string(id), s.prefix) }) {
		return RefusedVersion, true
	}
	return RefusedOverlay, true
}

// refuse counts p and ends its connections, unless it speaks our protocol by now. Before the verdict it is asked: one that is
// starting opens its protocols one after another, and what it said last need not be what we know. It says so on streams of their
// own, of which libp2p may read an older one after a newer one and then believe that for good. Whoever gives no answer is taken
// at its word.
func (s *strangers) refuse(ctx context.Context, p peer.ID) {
	speaks := s.asked(ctx, p)
	why, refuse := s.judge(p)
	if speaks || !refuse || ctx.Err() != nil {
		return
	}
	s.count(p, why)
	if s.close {
		for _, c := range s.host.Network().ConnsToPeer(p) {
			c.CloseWithError(network.ConnGated)
		}
	}
}

// asked reports whether p agrees to speak our protocol.
func (s *strangers) asked(ctx context.Context, p peer.ID) bool {
	return agrees(ctx, s.host, p, s.control)
}

// agrees opens a stream of a protocol to p, over a connection that is there, and reports whether p agrees to it. If so the host
// knows it from then on.
func agrees(ctx context.Context, h host.Host, p peer.ID, id protocol.ID) bool {
	const why = "a peer may have come to speak our protocol"
	ctx, cancel := context.WithTimeout(network.WithAllowLimitedConn(network.WithNoDial(ctx, why), why), askTimeout)
	defer cancel()
	stream, err := h.NewStream(ctx, p, id)
	if err != nil {
		return false
	}
	stream.Reset()
	return true
}

func (s *strangers) count(p peer.ID, why Refusal) {
	s.refusals.add(why)
	log.Debugw("refused", "peer", p, "reason", why)
}
