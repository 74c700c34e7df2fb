package dht

import (
	"context"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// Limits of what one peer may ask of the overlay's Kademlia network. A look-up asks a peer once or twice, so that honest peers
// stay far below; kad-dht itself sets no limits, and takes messages of 4 MiB.
const (
	// kadStreamsMax bounds the Kademlia streams of one peer; one more is reset.
	kadStreamsMax = 8
	// kadMessageMax bounds one question. A longer one resets its stream. Those that are answered here have some 50 bytes.
	kadMessageMax = 4 << 10
	// kadRate is how many questions of one peer are answered in a second, in the long run, after kadBurst at once. Further ones
	// wait unread.
	kadRate  = 250
	kadBurst = 250
)

// guardedHost is the host as Kademlia sees it. What other peers ask is bounded, per peer.
type guardedHost struct {
	host.Host
	o *Overlay
}

// SetStreamHandler registers a handler that is called for streams within the bounds.
func (h guardedHost) SetStreamHandler(id protocol.ID, handler network.StreamHandler) {
	guard := &kadGuard{o: h.o, peers: make(map[peer.ID]*kadAsker)}
	h.Host.SetStreamHandler(id, func(s network.Stream) {
		if h.o.turnAway(s) {
			return
		}
		a := guard.enter(s.Conn().RemotePeer())
		if a == nil {
			h.o.count.reset(ReasonStreams)
			s.ResetWithError(network.StreamResourceLimitExceeded)
			return
		}
		defer guard.leave(a)
		handler(&kadStream{Stream: s, guard: guard, asker: a})
	})
}

// Connect dials a peer, unless it is not admitted.
func (h guardedHost) Connect(ctx context.Context, p peer.AddrInfo) error {
	if !h.o.admitted(p.ID) {
		return errNotAdmitted
	}
	return h.Host.Connect(ctx, p)
}

// NewStream opens a stream, unless the peer is not admitted.
func (h guardedHost) NewStream(ctx context.Context, p peer.ID, ids ...protocol.ID) (network.Stream, error) {
	if !h.o.admitted(p) {
		return nil, errNotAdmitted
	}
	s, err := h.Host.NewStream(ctx, p, ids...)
	if err != nil {
		return nil, err
	}
	return &askingStream{s, h.o}, nil
}

// askingStream is one that Kademlia has opened, and keeps for further questions: none is asked of a peer that is not admitted any more, or
// it would be back in the routing table at once.
type askingStream struct {
	network.Stream
	o *Overlay
}

func (s *askingStream) Write(b []byte) (int, error) {
	if !s.o.admitted(s.Conn().RemotePeer()) {
		s.ResetWithError(network.StreamGated)
		return 0, errNotAdmitted
	}
	return s.Stream.Write(b)
}

// kadGuard knows who asks.
type kadGuard struct {
	o     *Overlay
	mu    sync.Mutex
	peers map[peer.ID]*kadAsker // with a stream, or not rested yet
}

// kadAsker is one peer that asks. Its fields are guarded by the guard's mu.
type kadAsker struct {
	peer    peer.ID
	streams int
	// free is when the next question would be free of waiting if there were no burst: a question is answered no sooner than
	// kadBurst questions before that.
	free time.Time
}

// enter counts a stream in, or answers nil.
func (g *kadGuard) enter(p peer.ID) *kadAsker {
	g.mu.Lock()
	defer g.mu.Unlock()
	a := g.peers[p]
	if a == nil {
		if len(g.peers) >= peersIdleMax {
			for _, idle := range g.peers {
				if idle.streams == 0 {
					delete(g.peers, idle.peer)
				}
			}
		}
		a = &kadAsker{peer: p}
		g.peers[p] = a
	}
	if a.streams >= kadStreamsMax {
		return nil
	}
	a.streams++
	return a
}

func (g *kadGuard) leave(a *kadAsker) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if a.streams--; a.streams == 0 && !a.free.After(time.Now()) {
		delete(g.peers, a.peer)
	}
}

// turn waits until the peer's next question may be answered. It returns early when the overlay closes.
func (g *kadGuard) turn(a *kadAsker) {
	g.mu.Lock()
	now := time.Now()
	if a.free.Before(now) {
		a.free = now
	}
	wait := a.free.Sub(now) - kadBurst*time.Second/kadRate
	a.free = a.free.Add(time.Second / kadRate)
	g.mu.Unlock()
	if wait <= 0 {
		return
	}
	ctx, cancel := context.WithTimeout(g.o.ctx, wait)
	defer cancel()
	<-ctx.Done()
}

// kadStream follows the length prefixes of what Kademlia reads.
type kadStream struct {
	network.Stream
	guard *kadGuard
	asker *kadAsker

	// Of the reading goroutine.
	left   uint64 // bytes of the message under way
	length uint64 // of its prefix, as far as it is here
	shift  uint
}

func (s *kadStream) Read(b []byte) (int, error) {
	n, err := s.Stream.Read(b)
	if n > 0 && !s.guard.o.admitted(s.asker.peer) { // any more
		s.guard.o.count.reset(ReasonRefused)
		s.Stream.ResetWithError(network.StreamGated)
		return 0, errNotAdmitted
	}
	for rest := b[:n]; len(rest) > 0; {
		if s.left > 0 {
			skip := min(s.left, uint64(len(rest)))
			s.left -= skip
			rest = rest[skip:]
			continue
		}
		c := rest[0]
		rest = rest[1:]
		s.length |= uint64(c&0x7f) << s.shift
		s.shift += 7
		if s.length > kadMessageMax || s.shift > 21 {
			s.guard.o.count.reset(ReasonOversize)
			s.Stream.ResetWithError(network.StreamProtocolViolation)
			return 0, network.ErrReset
		}
		if c < 0x80 {
			s.left, s.length, s.shift = s.length, 0, 0
			s.guard.turn(s.asker)
		}
	}
	return n, err
}
