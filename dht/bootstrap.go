package dht

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

// BootstrapPeer is a peer of [WithBootstrap] and how the last attempt to connect to it went.
type BootstrapPeer struct {
	Info peer.AddrInfo
	At   time.Time // when the last attempt ended; zero: there was none
	Err  error     // why it failed; nil: it did not
}

// bootstrap is who to dial while nobody is known.
type bootstrap struct {
	// mu guards the fields below. It is taken before life.
	mu      sync.Mutex
	peers   []BootstrapPeer              // told; of each id one
	seen    *lru[peer.ID, peer.AddrInfo] // met, now or in a former life
	dialled map[peer.ID]struct{}         // attempts under way
	checked time.Time                    // when the told ones were dialled last
}

func newBootstrap(infos []peer.AddrInfo) *bootstrap {
	b := &bootstrap{seen: newLRU[peer.ID, peer.AddrInfo](seenMax), dialled: make(map[peer.ID]struct{})}
	for _, info := range infos {
		i := slices.IndexFunc(b.peers, func(p BootstrapPeer) bool { return p.Info.ID == info.ID })
		if i < 0 {
			b.peers = append(b.peers, BootstrapPeer{Info: peer.AddrInfo{ID: info.ID}})
			i = len(b.peers) - 1
		}
		known := &b.peers[i].Info
		for _, a := range info.Addrs {
			if !slices.ContainsFunc(known.Addrs, a.Equal) {
				known.Addrs = append(known.Addrs, a)
			}
		}
	}
	return b
}

// Bootstrap returns the peers of [WithBootstrap] and how the last attempts to connect to them went. They are dialled while nobody
// else is known, and now and then while none of them is connected.
func (o *Overlay) Bootstrap() []BootstrapPeer {
	o.boot.mu.Lock()
	defer o.boot.mu.Unlock()
	return slices.Clone(o.boot.peers)
}

// Remember tells of a peer that was of the overlay when it was met, in a former life of this node perhaps: it is dialled while nobody
// else is known. The latest 64 are remembered, with those that were met since. It does not block.
func (o *Overlay) Remember(p peer.AddrInfo) {
	if p.ID == o.self || p.ID.Validate() != nil || len(p.Addrs) == 0 {
		return
	}
	p.Addrs = slices.Clone(p.Addrs[:min(len(p.Addrs), learnAddrsMax)])
	o.boot.remember(p)
}

func (b *bootstrap) remember(p peer.AddrInfo) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.seen.put(p.ID, p)
}

// maintain keeps the node in the overlay: it dials the bootstrap peers while it knows nobody, and otherwise looks itself up at
// growing intervals. Kademlia's own refresh is not enough: two nodes that join at the same moment can each look themselves
// up just before the other is known, and would miss each other until the next refresh, ten minutes later.
func (o *Overlay) maintain() {
	gap, pause := settleMin, bootstrapMin
	var last, due time.Time
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-o.ctx.Done():
			return
		case <-o.kick:
			if time.Since(last) > quietMin {
				gap = settleMin
			}
			gap = min(gap, settleBusy)
			if at := time.Now().Add(gap); at.Before(due) {
				due = at
				timer.Reset(gap)
			}
			continue
		case <-timer.C:
		}
		var wait time.Duration
		if o.kad.RoutingTable().Size() > 0 {
			o.dialIfIsland()
			o.lookUpSelf()
			last = time.Now()
			wait, gap, pause = gap, min(2*gap, settleMax), bootstrapMin
		} else {
			o.dialAll()
			wait, pause = pause, min(2*pause, bootstrapMax)
		}
		wait = time.Duration(float64(wait) * (0.75 + rand.Float64()/2)) // so that nodes started together drift apart
		due = time.Now().Add(wait)
		timer.Reset(wait)
	}
}

// dialAll begins to dial everybody we have heard of: those we were told of, those we have met, and those that were found.
func (o *Overlay) dialAll() {
	b := o.boot
	b.mu.Lock()
	b.checked = time.Now()
	var all []peer.AddrInfo
	for _, p := range b.peers {
		all = append(all, p.Info)
	}
	b.seen.all(func(p peer.AddrInfo) { all = append(all, p) })
	b.mu.Unlock()
	for _, p := range all {
		o.dial(p)
	}
	o.finds.again()
	o.dialFinds()
}

// dialIfIsland begins to dial the peers we were told of when we are connected to none of them and know few others: while they were
// away, nodes may have found each other elsewhere and made an overlay of their own, which would stay apart for ever.
func (o *Overlay) dialIfIsland() {
	b := o.boot
	b.mu.Lock()
	connected := func(p BootstrapPeer) bool { return o.host.Network().Connectedness(p.Info.ID) == network.Connected }
	if time.Since(b.checked) < islandInterval || o.kad.RoutingTable().Size() > islandMax || slices.ContainsFunc(b.peers, connected) {
		b.mu.Unlock()
		return
	}
	b.checked = time.Now()
	peers := slices.Clone(b.peers)
	b.mu.Unlock()
	for _, p := range peers {
		o.dial(p.Info)
	}
}

// dial begins to connect to p, whom we were told of or have met, unless that is under way. Nobody else's dials keep it from that; as
// there is one for each of them, they are bounded by what the operator told us and seenMax.
func (o *Overlay) dial(p peer.AddrInfo) {
	b := o.boot
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.dialled[p.ID]; ok || !o.spawn(func() { o.dialTold(p) }) {
		return
	}
	b.dialled[p.ID] = struct{}{}
}

// dialTold dials p and notes how it went.
func (o *Overlay) dialTold(p peer.AddrInfo) {
	err := o.connect(p)
	b := o.boot
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.dialled, p.ID)
	if o.ctx.Err() == nil {
		b.noteLocked(p.ID, err)
	}
}

// noteLocked notes how an attempt to connect went, if p is one that we were told of.
func (b *bootstrap) noteLocked(p peer.ID, err error) {
	if i := slices.IndexFunc(b.peers, func(q BootstrapPeer) bool { return q.Info.ID == p }); i >= 0 {
		b.peers[i].At, b.peers[i].Err = time.Now(), err
	}
}

// reached notes that p was reached in another way.
func (b *bootstrap) reached(p peer.ID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.noteLocked(p, nil)
}

// connect dials p, and waits until it has said who it is and what it speaks.
func (o *Overlay) connect(p peer.AddrInfo) error {
	ctx, cancel := context.WithTimeout(o.ctx, dialTimeout)
	defer cancel()
	o.endPause(p.ID)
	err := o.host.Connect(ctx, p)
	if err != nil {
		log.Debugw("bootstrap", "peer", p.ID, "err", err)
	}
	return err
}
