package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"
)

// Times of [Node.ExplainSolitude]: how often it looks whether other peers are known, after how long alone it asks why, and the
// longest pause between two rounds of questions; the pauses double.
const (
	aloneLook   = 250 * time.Millisecond
	aloneGrace  = 3 * time.Second
	aloneEvery  = 5 * time.Second
	aloneMax    = time.Minute
	aloneRefuse = 8 // refusing peers told of in one round; the others are as likely of the same kind
)

// ExplainSolitude tells an operator why the node knows no other peer of its overlay: while that is so, it asks the bootstrap
// peers ([Diagnose]) and logs each verdict that is new as one line at Warn, and one more once a peer is met. It returns when ctx ends. psk is the overlay's swarm
// key, nil for a public one. A node without bootstrap peers has nobody to ask, as the first of an overlay.
func (n *Node) ExplainSolitude(ctx context.Context, psk pnet.PSK) {
	s := solitude{
		alone: func() bool { return len(n.overlay.Peers()) == 0 },
		peers: func() (all []peer.AddrInfo) {
			for _, b := range n.overlay.Bootstrap() {
				all = append(all, b.Info)
			}
			return all
		},
		ask: func(ctx context.Context, p peer.AddrInfo) error { return Diagnose(ctx, n.host, n.genesis, psk, p) },
		tell: func(what string, err error) {
			log.Warnw(what, "err", err)
		},
		// At the level of the warnings that it ends: who has read those must see it.
		over: func() { log.Warnw("a peer of the overlay is met; what was said of bootstrap peers before is over") },
	}
	s.run(ctx)
}

// solitude is what ExplainSolitude remembers and does.
type solitude struct {
	alone func() bool
	peers func() []peer.AddrInfo
	ask   func(context.Context, peer.AddrInfo) error
	tell  func(what string, err error)
	over  func() // ends what was told

	told map[peer.ID]int // the verdict last told of each refusing peer
	lost bool            // it was told that nobody answers
}

func (s *solitude) run(ctx context.Context) {
	look := time.NewTicker(aloneLook)
	defer look.Stop()
	due, pause := time.Now().Add(aloneGrace), aloneEvery
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
		switch {
		case !s.alone():
			if s.lost || len(s.told) > 0 {
				s.over()
			}
			s.told, s.lost = nil, false
			due, pause = time.Now().Add(aloneGrace), aloneEvery
		case time.Now().After(due):
			s.round(ctx)
			due, pause = time.Now().Add(pause), min(2*pause, aloneMax)
		}
	}
}

// round asks everybody once.
func (s *solitude) round(ctx context.Context) {
	peers := s.peers()
	verdicts := make([]error, len(peers))
	var asks sync.WaitGroup
	for i, p := range peers {
		asks.Go(func() { verdicts[i] = s.ask(ctx, p) })
	}
	asks.Wait()
	if ctx.Err() != nil || !s.alone() {
		return
	}
	refusals, answers, silent := 0, 0, error(nil)
	for i, v := range verdicts {
		switch id := peers[i].ID; {
		case v == nil: // it is about to be known
			answers++
		case errors.Is(v, ErrUnreachable):
			silent = v
		case refusals < aloneRefuse:
			refusals++
			if told, ok := s.told[id]; ok && told == tells(v) {
				continue
			}
			if s.told == nil {
				s.told = make(map[peer.ID]int)
			}
			s.told[id] = tells(v)
			s.tell("a bootstrap peer is none of ours", v)
		}
	}
	if silent == nil || s.lost || refusals+answers > 0 {
		return
	}
	s.lost = true
	if n := len(peers) - 1; n > 0 {
		silent = fmt.Errorf("%w; other bootstrap peers that do not answer: %d", silent, n)
	}
	s.tell("no peer of the overlay answers yet; trying on", silent)
}
