package testnet

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/node/api"
)

// Times of asking peers who they are connected to: between two rounds of questions, for each peer that is asked, so that the
// questions cost many peers no more than few; and until an answer.
const (
	meshPoll = 5 * time.Millisecond
	meshAsk  = 2 * time.Second
)

// awaitMesh waits until every peer that is up now is connected to those others of them that it must be ([closestPlaces]), and calls
// progress with how many of how many are. Who is killed, leaves or is paused meanwhile is waited for no longer; a process that ends by itself is an error,
// and so is the end of ctx, which tells who is behind.
func (p *Processes) awaitMesh(ctx context.Context, progress func(done, total int)) error {
	var late []*meshPeer
	for _, s := range p.hearing(nil) {
		c, err := api.Dial(s.apiSocket())
		if err != nil {
			return describe(s, err)
		}
		defer c.Close()
		late = append(late, &meshPeer{place: s, client: c})
	}
	all := late
	for {
		if err := p.fallen(all); err != nil {
			return err
		}
		late = p.behind(ctx, late)
		progress(len(all)-len(late), len(all))
		if len(late) == 0 {
			return nil
		}
		select {
		case <-time.After(time.Duration(len(late)) * meshPoll):
		case <-ctx.Done():
			var numbers []int
			for _, m := range late {
				numbers = append(numbers, m.index)
			}
			return fmt.Errorf("testnet: peers %v are not connected to the others: %w", numbers, context.Cause(ctx))
		case <-p.life.Done():
			return ErrClosed
		}
	}
}

// meshPeer is a peer that is asked for its connections.
type meshPeer struct {
	*place
	client *api.Client
}

// fallen returns how the first of these ended that did so by itself.
func (p *Processes) fallen(all []*meshPeer) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range all {
		if m.child == nil && m.fault != "" {
			return describe(m.place, fmt.Errorf("its process ended: %s", m.fault))
		}
	}
	return nil
}

// hearing returns the peers that serve and are not paused; with a place given, those among them that it can reach.
func (p *Processes) hearing(from *place) (live []*place) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.places {
		reached := from == nil || s != from && p.standing.sideOf(s.index) == p.standing.sideOf(from.index)
		if s.child != nil && s.ready && !s.paused && reached {
			live = append(live, s)
		}
	}
	return live
}

// behind returns those that are up and not connected to all that they must be.
func (p *Processes) behind(ctx context.Context, late []*meshPeer) (still []*meshPeer) {
	ctx, cancel := context.WithTimeout(ctx, meshAsk)
	defer cancel()
	connected := make([]bool, len(late))
	var wg sync.WaitGroup
	for i, m := range late {
		wg.Go(func() { connected[i] = p.seesAll(ctx, m) })
	}
	wg.Wait()
	for i, m := range late {
		if !connected[i] {
			still = append(still, m)
		}
	}
	return still
}

// seesAll reports whether a peer is connected to all that it must be, or is not to be waited for.
func (p *Processes) seesAll(ctx context.Context, m *meshPeer) bool {
	p.mu.Lock()
	gone := m.child == nil || m.paused
	p.mu.Unlock()
	if gone {
		return true
	}
	peers, err := m.client.Peers(ctx)
	if err != nil {
		return false
	}
	connected := map[string]bool{}
	for _, q := range peers {
		connected[q.Peer] = q.Connected
	}
	for _, s := range closestPlaces(m.id, p.hearing(m.place)) {
		if !connected[s.id.String()] {
			return false
		}
	}
	return true
}

// closestPlaces returns those that a peer must be connected to of the places it can reach: the closeMax closest to it in the key
// space. An overlay of more never becomes a full mesh, so nobody may wait for one.
func closestPlaces(to peer.ID, places []*place) []*place {
	byNode := make(map[keyspace.NodeID]*place, len(places))
	nodes := make([]keyspace.NodeID, 0, len(places))
	for _, s := range places {
		node := dht.NodeIDOf(s.id)
		byNode[node] = s
		nodes = append(nodes, node)
	}
	keyspace.SortByDistance(keyspace.Key(dht.NodeIDOf(to)), nodes)
	closest := make([]*place, 0, closeMax)
	for _, node := range nodes[:min(closeMax, len(nodes))] {
		closest = append(closest, byNode[node])
	}
	return closest
}
