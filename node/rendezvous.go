package node

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	kaddht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/discovery"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/routing"
	routingdiscovery "github.com/libp2p/go-libp2p/p2p/discovery/routing"
)

// ErrRendezvous is matched by errors about a Kademlia network that cannot serve as a rendezvous ([WithRendezvous]).
var ErrRendezvous = errors.New("node: no rendezvous")

// Limits and times of the rendezvous.
const (
	// rendezvousTake is how many peers one search takes, and rendezvousTimeout bounds it, and one advertisement.
	rendezvousTake    = 64
	rendezvousTimeout = time.Minute
	// rendezvousMin is the first pause after a search that has not ended the loneliness, or an advertisement that failed; each further one
	// is twice as long, up to rendezvousMax.
	rendezvousMin = time.Second
	rendezvousMax = 10 * time.Minute
	// rendezvousEvery is the pause between searches while others of the overlay are connected: there may be more of it elsewhere.
	rendezvousEvery = 15 * time.Minute
	// rendezvousAgain is the first pause after an advertisement that went well. Those it was left with may have been few, as when the
	// application has just begun; each further one is twice as long, up to rendezvousRenew parts in 8 of the time for which it is kept.
	rendezvousAgain = time.Minute
	rendezvousRenew = 7
	// rendezvousLook is how often it is looked whether the node is alone, or is to be advertised at all.
	rendezvousLook = 5 * time.Second
)

// WithRendezvous has the node find others of its overlay by way of a Kademlia network that the application is in anyway, with whom of it
// speaks no latchkey: d, on the same host, which keeps provider records, as it does unless told otherwise. A node that hosts replicas
// leaves word there, under the overlay's id, and every node looks there for others: at once and, with growing pauses, as long as it is
// alone, and now and then after that. What it finds is treated as what the local network tells ([WithMDNS]): anybody may have left it,
// few of it is dialled at a time, who is not on the overlay's allow-list is not dialled at all, and who answers must speak the overlay's
// protocols. The network is not used for anything else; the caller closes it, after the node.
//
// Who is in d and knows the overlay's id learns which peers are in the overlay.
func WithRendezvous(d *kaddht.IpfsDHT) Option { return func(c *options) { c.rendezvous = d } }

// rendezvousName is what peers of an overlay leave word under.
func rendezvousName(overlay [32]byte) string {
	return "/latchkey/" + hex.EncodeToString(overlay[:]) + "/rendezvous"
}

// checkRendezvous tells why a Kademlia network does not serve, without using it.
func checkRendezvous(d *kaddht.IpfsDHT, self peer.ID) error {
	if d.PeerID() != self {
		return fmt.Errorf("%w: WithRendezvous: the Kademlia network belongs to another host, %s", ErrRendezvous, d.PeerID())
	}
	if errors.Is(withNothing(d.FindProviders), routing.ErrNotSupported) {
		return fmt.Errorf("%w: WithRendezvous: the Kademlia network keeps no provider records; make it without kaddht.DisableProviders", ErrRendezvous)
	}
	return nil
}

// withNothing asks for nothing in particular, which fails without a message.
func withNothing[Key, Found any](find func(context.Context, Key) (Found, error)) error {
	var none Key
	_, err := find(context.Background(), none)
	return err
}

// rendezvous leaves word of the node where others look for it, and looks for others there.
type rendezvous struct {
	at         discovery.Discovery
	name       string
	advertises func() bool         // whether the node is to be found
	alone      func() bool         // whether it knows nobody
	dials      func(peer.ID) bool  // whether a find is of interest
	found      func(peer.AddrInfo) // must not block

	searches, finds atomic.Uint64 // searches that have ended, and peers found in all

	mu      sync.Mutex
	stopped bool
	cancel  context.CancelFunc
	wg      sync.WaitGroup
}

func newRendezvous(d *kaddht.IpfsDHT, n *Node) *rendezvous {
	h := n.host
	return &rendezvous{
		at: routingdiscovery.NewRoutingDiscovery(d), name: rendezvousName(n.genesis.ID()),
		advertises: func() bool { return n.overlay.Hosting() && n.access.access.Admits(h.ID()) },
		alone: func() bool {
			for _, p := range n.overlay.Peers() {
				if p.Connected {
					return false
				}
			}
			return true
		},
		dials: func(p peer.ID) bool { return p != h.ID() && n.access.access.dials(p) },
		found: func(p peer.AddrInfo) {
			if len(p.Addrs) == 0 { // whoever told of it assumes that we know
				p.Addrs = h.Peerstore().Addrs(p.ID)
			}
			n.overlay.Discovered(p)
		},
	}
}

// start begins, on goroutines of its own; stop ends it. Of a nil r, neither does anything.
func (r *rendezvous) start() {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped || r.cancel != nil {
		return
	}
	var ctx context.Context
	ctx, r.cancel = context.WithCancel(context.Background())
	r.wg.Go(func() { r.advertise(ctx) })
	r.wg.Go(func() { r.search(ctx) })
}

func (r *rendezvous) stop() {
	if r == nil {
		return
	}
	r.mu.Lock()
	r.stopped = true
	if r.cancel != nil {
		r.cancel()
	}
	r.mu.Unlock()
	r.wg.Wait()
}

// pause waits for about d, or until ctx ends or, looked at now and then, over holds; nil never does.
func (r *rendezvous) pause(ctx context.Context, d time.Duration, over func() bool) {
	end := time.Now().Add(time.Duration(float64(d) * (0.75 + rand.Float64()/2))) // so that nodes started together drift apart
	for left := time.Until(end); left > 0; left = time.Until(end) {
		if over != nil {
			left = min(left, rendezvousLook)
		}
		t := time.NewTimer(left)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		if over != nil && over() {
			return
		}
	}
}

// advertise leaves word, again and again.
func (r *rendezvous) advertise(ctx context.Context) {
	failed, again := rendezvousMin, rendezvousAgain
	for ctx.Err() == nil {
		if !r.advertises() {
			failed, again = rendezvousMin, rendezvousAgain
			r.pause(ctx, rendezvousLook, nil)
			continue
		}
		under, cancel := context.WithTimeout(ctx, rendezvousTimeout)
		kept, err := r.at.Advertise(under, r.name)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			r.pause(ctx, min(again, max(kept, rendezvousAgain)/8*rendezvousRenew), nil)
			failed, again = rendezvousMin, min(2*again, 24*time.Hour)
			continue
		case failed == rendezvousMax:
			log.Warnw("others cannot find this peer by way of the application's Kademlia network", "err", err)
		default:
			log.Debugw("rendezvous: not advertised", "err", err)
		}
		r.pause(ctx, failed, nil)
		failed, again = min(2*failed, rendezvousMax), rendezvousAgain
	}
}

// search looks for others, again and again.
func (r *rendezvous) search(ctx context.Context) {
	next := rendezvousMin
	for ctx.Err() == nil {
		r.look(ctx)
		if r.alone() {
			r.pause(ctx, next, nil)
			next = min(2*next, rendezvousMax)
			continue
		}
		r.pause(ctx, rendezvousEvery, r.alone)
		next = rendezvousMin
	}
}

// look searches once.
func (r *rendezvous) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, rendezvousTimeout)
	defer cancel() // which ends the search
	defer r.searches.Add(1)
	peers, err := r.at.FindPeers(ctx, r.name, discovery.Limit(rendezvousTake))
	if err != nil {
		log.Debugw("rendezvous: no search", "err", err)
		return
	}
	for range rendezvousTake {
		select {
		case p, more := <-peers:
			if !more {
				return
			}
			if r.dials(p.ID) {
				log.Debugw("found by way of the application's Kademlia network", "peer", p.ID, "addrs", p.Addrs)
				r.finds.Add(1)
				r.found(p)
			}
		case <-ctx.Done():
			return
		}
	}
}
