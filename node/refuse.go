package node

import (
	"sync"
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// Refusal is why somebody was turned away.
type Refusal string

// The refusals that are counted.
const (
	// RefusedHandshake: an inbound connection that never showed who it is: another swarm key or none, something that is not
	// libp2p, or somebody who gave up.
	RefusedHandshake Refusal = "handshake"
	// RefusedLimits: an inbound connection beyond the host's limits.
	RefusedLimits Refusal = "limits"
	// RefusedOverlay: a peer of other overlays only.
	RefusedOverlay Refusal = "other overlay"
	// RefusedVersion: a peer of this overlay with which we have no protocol version in common.
	RefusedVersion Refusal = "other version"
	// RefusedHello: a peer whose hello we did not accept.
	RefusedHello Refusal = "hello refused"
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
