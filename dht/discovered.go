package dht

import (
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// finds are the peers that somebody says belong to the overlay. Anybody may have said so: they have dials and memory of their own, and
// take none from the peers that we were told of or have met.
type finds struct {
	mu    sync.Mutex
	all   map[peer.ID]*find // at most foundMax
	dials int               // under way, at most foundDialsMax
}

type find struct {
	info    peer.AddrInfo
	due     bool // to be dialled
	dialled bool // being dialled
}

func newFinds() *finds { return &finds{all: make(map[peer.ID]*find)} }

// Discovered tells of a peer that may belong to the overlay, as a search of the local network finds it, whoever says so: it is dialled
// soon unless it is connected, and again while nobody else is known. At most 64 that were not reached are remembered, and 8 are dialled
// at once. One that is reached and speaks our protocols is remembered as by [Overlay.Remember]. It does not block.
func (o *Overlay) Discovered(p peer.AddrInfo) {
	if p.ID == o.self || p.ID.Validate() != nil || len(p.Addrs) == 0 || o.host.Network().Connectedness(p.ID) == network.Connected {
		return
	}
	p.Addrs = slices.Clone(p.Addrs[:min(len(p.Addrs), learnAddrsMax)])
	o.finds.add(p)
	o.dialFinds()
}

// add remembers a find that is to be dialled. When there are too many, one drawn by lot goes: a flood of others does not make sure
// that it is this one.
func (f *finds) add(p peer.AddrInfo) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if known := f.all[p.ID]; known != nil {
		known.info, known.due = p, true
		return
	}
	for id, other := range f.all { // in an order that differs each time
		if len(f.all) < foundMax {
			break
		}
		if !other.dialled {
			delete(f.all, id)
		}
	}
	f.all[p.ID] = &find{info: p, due: true}
}

// again has all of them dialled once more.
func (f *finds) again() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.all {
		p.due = true
	}
}

// next returns one that is to be dialled now, with a few of its addresses, and counts the dial.
func (f *finds) next() (peer.AddrInfo, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dials >= foundDialsMax {
		return peer.AddrInfo{}, false
	}
	for _, p := range f.all {
		if !p.due || p.dialled {
			continue
		}
		p.due, p.dialled = false, true
		f.dials++
		addrs := slices.Clone(p.info.Addrs)
		rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
		return peer.AddrInfo{ID: p.info.ID, Addrs: addrs[:min(len(addrs), foundAddrsMax)]}, true
	}
	return peer.AddrInfo{}, false
}

// over counts a dial out, and forgets the find when it was reached.
func (f *finds) over(p peer.ID, reached bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dials--
	if f.all[p].dialled = false; reached {
		delete(f.all, p)
	}
}

// dialFinds begins to dial as many as may be dialled at once; each that ends makes room for the next.
func (o *Overlay) dialFinds() {
	for o.up.Load() {
		p, ok := o.finds.next()
		if !ok {
			return
		}
		if !o.spawn(func() { o.dialFind(p); o.dialFinds() }) {
			o.finds.over(p.ID, false)
			return
		}
	}
}

// dialFind dials p. Who answers has authenticated, and counts as a peer of the overlay if it speaks our control protocol. Of who does
// not answer nothing stays in the host's address book, where the addresses would stand in the way of its true ones.
func (o *Overlay) dialFind(p peer.AddrInfo) {
	book := o.host.Peerstore()
	known := book.Addrs(p.ID)
	err := o.connect(p)
	o.finds.over(p.ID, err == nil)
	if err != nil {
		book.SetAddrs(p.ID, slices.DeleteFunc(p.Addrs, func(a ma.Multiaddr) bool { return slices.ContainsFunc(known, a.Equal) }), 0)
		return
	}
	o.boot.reached(p.ID)
	if ours, err := book.SupportsProtocols(p.ID, o.protocols[Control]); err == nil && len(ours) > 0 {
		o.boot.remember(p)
	}
}
