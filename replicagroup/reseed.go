package replicagroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/placement"
)

// ErrReseed: a reseed document is not to be believed, or names no newer root than is known.
var ErrReseed = errors.New("replicagroup: reseed document refused")

// reseedable is what a host knows of reseed documents. An overlay whose root group is lost for good gets another one by such a document,
// which the root key alone can sign (placement.Reseed). Every host that has one passes it on to whomever it meets.
type reseedable struct {
	onReseed func(doc []byte) error
	doc      atomic.Pointer[reseedDoc] // nil: the root is the genesis document's

	reseeding sync.Mutex       // held while a document is taken over
	linked    map[peer.ID]bool // peers in reach; guarded by Host.mu
}

type reseedDoc struct {
	encoded []byte
	placement.Reseed
}

// rootGroup returns the overlay's root group, as far as this host knows.
func (h *Host) rootGroup() order.GroupID {
	if d := h.doc.Load(); d != nil {
		return d.RootGroup()
	}
	return order.GroupID{Overlay: h.id}
}

// reseeded reports whether the root is another one than the genesis document names.
func (h *Host) reseeded() bool { return h.doc.Load() != nil }

// firstRoot returns the root's descriptor as the newest document has it.
func (h *Host) firstRoot() placement.Descriptor {
	if d := h.doc.Load(); d != nil {
		return d.RootDescriptor()
	}
	return h.genesis.RootDescriptor()
}

// seed begins with a document that this peer has kept, if any.
func (h *Host) seed(doc []byte) error {
	if doc == nil {
		return nil
	}
	r, err := placement.OpenReseed(h.genesis, doc)
	if err != nil {
		return fmt.Errorf("replicagroup: the reseed document that was kept: %w", err)
	}
	h.doc.Store(&reseedDoc{doc, r})
	return nil
}

// founds returns this peer's replica in the root that a document makes.
func (h *Host) founds(r placement.Reseed) (order.ReplicaID, bool) {
	m, ok := r.RootDescriptor().View.MemberAt(h.overlay.Node())
	return m.ID, ok && h.store != nil && m.Store == h.storeID
}

// foundReseeded writes the beginning of the newest root into the store, where the document names this peer with this very store and the
// host ended before it could. Like the genesis document's, a root begins once in a store, and only in the one that is named.
func (h *Host) foundReseeded(known []StoredReplica, retired map[order.GroupID]order.ReplicaID) ([]StoredReplica, error) {
	d := h.doc.Load()
	if d == nil {
		return known, nil
	}
	g := d.RootGroup()
	_, was := retired[g]
	for _, r := range known {
		was = was || r.Group == g
	}
	self, ok := h.founds(d.Reseed)
	if !ok || was {
		return known, nil
	}
	id := Identity{Group: g, Self: self, Descriptor: encodeDescriptor(d.RootDescriptor())}
	return append(known, StoredReplica{Identity: id}), h.store.Create(id)
}

// Reseed takes over a reseed document: from now on the root of the overlay is the one it names, here and, before long, at every peer
// that is or comes into reach. A replica of the former root is put aside. Where the document names this peer with its store, the new root
// begins here. Prefix groups go on; those that have a majority are adopted by the new root.
//
// It blocks until the document is durable here. One that is not signed by the overlay's root key, or of no larger generation than
// known, is [ErrReseed]; taking the same one again is no error.
func (h *Host) Reseed(doc []byte) error {
	r, err := placement.OpenReseed(h.genesis, doc)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrReseed, err)
	}
	h.reseeding.Lock()
	defer h.reseeding.Unlock()
	former := h.rootGroup()
	switch known := h.doc.Load(); {
	case known != nil && bytes.Equal(known.encoded, doc):
		return nil
	case known != nil && known.OverlayGen == r.OverlayGen:
		log.Errorw("two roots were made for one generation of the overlay: the first one known here stays; give the overlay a root of a later generation",
			"generation", r.OverlayGen)
		fallthrough
	case r.RootGroup().Gen <= former.Gen:
		return fmt.Errorf("%w: it is of generation %d of the overlay, and %d is known", ErrReseed, r.OverlayGen, former.Gen>>32)
	}
	doc = bytes.Clone(doc)
	if h.onReseed != nil {
		if err := h.onReseed(doc); err != nil {
			return fmt.Errorf("replicagroup: a reseed document cannot be kept, so it is not acted on: %w", err)
		}
	}
	h.doc.Store(&reseedDoc{doc, r})
	log.Warnw("the overlay has a new root", "overlay", h.id, "generation", r.OverlayGen, "founders", len(r.Founders))
	h.locator.put(r.RootDescriptor())
	if h.store != nil {
		// The former root stops before the new one may lead here.
		if err := h.bury(former, ^order.ReplicaID(0)-1); err != nil {
			return err
		}
		if self, ok := h.founds(r); ok {
			d := r.RootDescriptor()
			err := h.store.Create(Identity{Group: d.Group, Self: self, Descriptor: encodeDescriptor(d)})
			if err == nil {
				err = h.run(d, self, order.Image{}, false)
			}
			if err != nil {
				return err
			}
		}
	}
	h.spread(doc)
	h.auditDue()
	return nil
}

// spread sends a document to every peer in reach.
func (h *Host) spread(doc []byte) {
	h.mu.Lock()
	peers := make([]peer.ID, 0, len(h.linked))
	for p := range h.linked {
		peers = append(peers, p)
	}
	h.mu.Unlock()
	for _, p := range peers {
		h.tellReseed(p, doc)
	}
}

func (h *Host) tellReseed(p peer.ID, doc []byte) {
	if err := h.overlay.Send(p, keyspace.Key{}, serviceReseed, doc); err != nil {
		log.Debugw("reseed document not sent", "peer", p, "err", err)
	}
}

// linkedTo takes note of a peer that came or went. Whoever comes is told of the newest root.
func (h *Host) linkedTo(p peer.ID, up bool) {
	h.mu.Lock()
	if up {
		h.linked[p] = true
	} else {
		delete(h.linked, p)
	}
	h.mu.Unlock()
	if d := h.doc.Load(); up && d != nil {
		h.tellReseed(p, d.encoded)
	}
}

// handleReseed takes a document of anybody. Whoever has an older one is told of ours.
func (h *Host) handleReseed(req *dht.Request) error {
	known := h.doc.Load()
	if known != nil && bytes.Equal(known.encoded, req.Data) {
		return nil
	}
	r, err := placement.OpenReseed(h.genesis, req.Data)
	if err != nil {
		return malformed("reseed: %v", err)
	}
	if known != nil && r.OverlayGen < known.OverlayGen {
		h.tellReseed(req.From, known.encoded)
		return nil
	}
	doc := bytes.Clone(req.Data)
	h.spawn(func() {
		if err := h.Reseed(doc); err != nil {
			log.Warnw("reseed document not taken", "from", req.From, "err", err)
		}
	})
	return nil
}

// ProposeRoot returns the document, not yet signed, that would make this peer the founder of the overlay's next root, which then grows as
// the first one did. A peer without a store cannot found.
func (h *Host) ProposeRoot() (placement.Reseed, error) {
	if h.store == nil {
		return placement.Reseed{}, fmt.Errorf("%w: a client keeps no replicas, so it cannot found a root", ErrReseed)
	}
	gen := h.rootGroup().Gen >> 32
	if gen >= placement.OverlayGenMax {
		return placement.Reseed{}, fmt.Errorf("%w: the overlay has had %d generations, as many as tokens can tell apart", ErrReseed, gen+1)
	}
	self := peerOfInfo(h.overlay.Info(h.overlay.Self()))
	return placement.Reseed{
		Overlay: h.id, OverlayGen: uint8(gen + 1), Founders: []placement.Host{{Peer: self, Store: h.storeID}},
	}, nil
}

// register tells a new root of the groups led here that it does not know: it adopts them. children is what it does know.
func (h *Host) register(children []placement.Summary) error {
	if !h.reseeded() {
		return nil
	}
	known := make(map[keyspace.Prefix]uint64, len(children))
	for _, c := range children {
		known[c.Prefix] = c.Gen + 1
	}
	ctx, cancel := context.WithTimeout(h.ctx, registerTimeout)
	defer cancel()
	groups, err := h.Status(ctx)
	if err != nil {
		return err
	}
	for _, r := range groups {
		p := r.Group.Prefix
		if !r.Status.Leading || p.Len == 0 || r.Group.Gen>>32 >= h.rootGroup().Gen>>32 || known[p] > r.Group.Gen {
			continue
		}
		data, err := placement.Command{Kind: placement.Update, Prefix: p, Descriptor: r.Descriptor}.Encode()
		if err != nil {
			return err
		}
		if data, err = h.internal.do(ctx, keyspace.Prefix{}, placement.Service, data); err != nil {
			return err
		}
		res, err := placement.DecodeResult(data)
		if err != nil {
			return err
		}
		log.Infow("told the new root of a group", "group", r.Group, "status", res.Status)
		if res.Status == placement.WrongGen {
			h.hosting.box.Put(hostingEvent{ev: placement.Superseded{Live: res.Child.Group}})
		}
	}
	return nil
}

// registerTimeout bounds the telling of a new root of all groups led here.
const registerTimeout = 30 * time.Second
