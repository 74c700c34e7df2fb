package replicagroup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/pb"
	"latchkey/replicagroup/placement"
	"latchkey/replicagroup/raft"
	"latchkey/replicagroup/session"
)

// ErrReseed: a reseed document is not to be believed, or names no newer root than is known.
var ErrReseed = errors.New("replicagroup: reseed document refused")

// reseedable is what a host knows of reseed documents. An overlay whose root group is lost for good gets another one by such a document,
// which the root key alone can sign (placement.Reseed). Every host that has one passes it on to whomever it meets.
type reseedable struct {
	onReseed func(doc, state []byte) error
	doc      atomic.Pointer[reseedDoc] // nil: the root is the genesis document's

	reseeding sync.Mutex // held while a document is taken over
	// inherits is the snapshot of a former root's directory, with which the root that a document makes here may begin. It was found by
	// ProposeRoot, or kept since; guarded by reseeding.
	inherits []byte
	linked   map[peer.ID]bool // peers in reach; guarded by Host.mu
	told     turns            // who was told what the root's replica here has applied
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

// seed begins with a document that this peer has kept, if any, and with the state that was kept with it.
func (h *Host) seed(doc, state []byte) error {
	if doc == nil {
		return nil
	}
	r, err := placement.OpenReseed(h.genesis, doc)
	if err != nil {
		return fmt.Errorf("replicagroup: the reseed document that was kept: %w", err)
	}
	h.doc.Store(&reseedDoc{doc, r})
	h.inherits = state
	return nil
}

// founds returns this peer's replica in the root that a document makes.
func (h *Host) founds(r placement.Reseed) (order.ReplicaID, bool) {
	m, ok := r.RootDescriptor().View.MemberAt(h.overlay.Node())
	return m.ID, ok && h.store != nil && m.Store == h.storeID
}

// beginning returns what the root of a document begins with: nothing, or what was left of the former root's state. The caller holds
// reseeding, or is Start.
func (h *Host) beginning(r placement.Reseed) (order.Image, error) {
	if !r.Inherits() {
		return order.Image{}, nil
	}
	if sha256.Sum256(h.inherits) != r.State {
		return order.Image{}, fmt.Errorf("%w: the new root is to begin with what was left of the former one's state, and this peer has not got that "+
			"(any more): propose another document", ErrReseed)
	}
	d, err := placement.Inherit(h.genesis, r.RootGroup(), h.inherits)
	if err != nil {
		return order.Image{}, fmt.Errorf("%w: what was left of the former root's state: %w", ErrReseed, err)
	}
	t := session.NewTable(h.genesis.Drift, map[string]session.Machine{placement.Service: directoryMachine{Directory: d}})
	return raft.Beginning(r.RootGroup(), r.RootDescriptor().View, t.Snapshot()), nil
}

// found writes the beginning of a document's root into the store. A root begins in one act: if that is cut short, what is there is
// nothing yet, and begin is called again.
func (h *Host) found(r placement.Reseed, self order.ReplicaID) (StoredReplica, error) {
	image, err := h.beginning(r)
	if err != nil {
		return StoredReplica{}, err
	}
	id := Identity{Group: r.RootGroup(), Self: self, Descriptor: encodeDescriptor(r.RootDescriptor())}
	if err := h.store.Create(id); err != nil {
		return StoredReplica{}, err
	}
	return StoredReplica{id, image}, h.begin(id.Group, image)
}

// begin makes durable what a root begins with.
func (h *Host) begin(root order.GroupID, image order.Image) error {
	if image.Snapshot == nil {
		return nil // the engine writes the empty beginning itself
	}
	return h.store.Write([]Write{{Group: root, Records: []order.Record{*image.Snapshot, {Kind: order.RecordState, Data: image.State}}}}, true)
}

// foundReseeded writes the beginning of the newest root into the store, where the document names this peer with this very store and the
// host ended before it could. Like the genesis document's, a root begins once in a store, and only in the one that is named.
func (h *Host) foundReseeded(known []StoredReplica, retired map[order.GroupID]order.ReplicaID) ([]StoredReplica, error) {
	d := h.doc.Load()
	if d == nil {
		return known, nil
	}
	g := d.RootGroup()
	self, ok := h.founds(d.Reseed)
	if _, was := retired[g]; was || !ok {
		return known, nil
	}
	at := slices.IndexFunc(known, func(r StoredReplica) bool { return r.Group == g })
	if at >= 0 && (known[at].Image.Snapshot != nil || !d.Inherits()) {
		return known, nil
	}
	image, err := h.beginning(d.Reseed)
	switch {
	case err != nil:
		log.Errorw("the overlay's root does not begin here, though this peer was named for it: latchkey group revive root makes another one", "root", g, "err", err)
		return slices.DeleteFunc(known, func(r StoredReplica) bool { return r.Group == g }), nil
	case at < 0:
		r, err := h.found(d.Reseed, self)
		return append(known, r), err
	}
	known[at].Image = image // the write of it was cut short
	return known, h.begin(g, image)
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
	self, founds := h.founds(r)
	if founds {
		if _, err := h.beginning(r); err != nil {
			return err
		}
	}
	doc = bytes.Clone(doc)
	if h.onReseed != nil {
		var state []byte
		if founds && r.Inherits() {
			state = h.inherits
		}
		if err := h.onReseed(doc, state); err != nil {
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
		if founds {
			root, err := h.found(r, self)
			if err == nil {
				err = h.run(r.RootDescriptor(), self, root.Image, false, false)
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

// RootProposal is a reseed document, not yet signed, and what its root would begin with.
type RootProposal struct {
	placement.Reseed
	Survivor peer.ID // whose replica of the former root knew most; empty: nobody who answers has one
	Groups   int     // that it knew
}

// ProposeRoot returns the document, not yet signed, that would make this peer the founder of the overlay's next root, which then grows as
// the first one did. It asks the members of the present root for what they know, this peer included. The new root begins with what the
// one knows that has applied most of the root's log; where there is none, it knows nothing and waits for groups to tell it of themselves.
// A peer without a store cannot found. It blocks for [rollTime] and the time of a question to each; ctx ends it earlier.
func (h *Host) ProposeRoot(ctx context.Context) (RootProposal, error) {
	if h.store == nil {
		return RootProposal{}, fmt.Errorf("%w: a client keeps no replicas, so it cannot found a root", ErrReseed)
	}
	former := h.rootGroup()
	gen := former.Gen >> 32
	if gen >= placement.OverlayGenMax {
		return RootProposal{}, fmt.Errorf("%w: the overlay has had %d generations, as many as tokens can tell apart", ErrReseed, gen+1)
	}
	self := peerOfInfo(h.overlay.Info(h.overlay.Self()))
	p := RootProposal{Reseed: placement.Reseed{
		Overlay: h.id, OverlayGen: uint8(gen + 1), Founders: []placement.Host{{Peer: self, Store: h.storeID}},
	}}
	known, ok := h.locator.cached(keyspace.Prefix{})
	if !ok || known.Group != former {
		return p, nil
	}
	var best *pb.RootStateReply
	for _, s := range h.survivors(ctx, known) {
		if best != nil && s.state.Index <= best.Index {
			continue
		}
		d, err := placement.Inherit(h.genesis, p.RootGroup(), s.state.Directory)
		if err != nil {
			log.Warnw("what a member of the former root knows is passed over", "peer", s.peer, "err", err)
			continue
		}
		best, p.Survivor, p.Groups = s.state, s.peer, d.Len()
	}
	if ctx.Err() != nil {
		return p, context.Cause(ctx)
	}
	if best != nil {
		p.State = sha256.Sum256(best.Directory)
		h.reseeding.Lock()
		h.inherits = best.Directory
		h.reseeding.Unlock()
	}
	return p, nil
}

// survivor is a member of a root that has lost its majority, and what it has of its state.
type survivor struct {
	peer  peer.ID
	state *pb.RootStateReply
}

// survivors asks the members of a root what they have applied, those that do not say so again and again for [rollTime].
func (h *Host) survivors(ctx context.Context, root placement.Descriptor) (all []survivor) {
	roll := h.Roll(ctx, root)
	ctx, cancel := context.WithTimeout(ctx, rollTime)
	defer cancel()
	var asking sync.WaitGroup
	var mu sync.Mutex // guards all while asking
	for i, p := range roll.Descriptor.Peers {
		if !roll.Present[i].Answers {
			continue
		}
		asking.Go(func() {
			m, err := h.survivor(ctx, peer.ID(p.ID), root.Group)
			for err != nil && pause(ctx, rollPause) == nil { // it may have been asked a moment ago
				m, err = h.survivor(ctx, peer.ID(p.ID), root.Group)
			}
			if err != nil || !m.Present {
				log.Warnw("a member of the root does not tell what it knows", "peer", peer.ID(p.ID), "err", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, survivor{peer.ID(p.ID), m})
		})
	}
	asking.Wait()
	return all
}

// survivor asks one.
func (h *Host) survivor(ctx context.Context, p peer.ID, root order.GroupID) (*pb.RootStateReply, error) {
	b, err := h.overlay.Call(ctx, p, keyspace.Key{}, serviceRootState, marshal(&pb.RootStateRequest{Gen: root.Gen}))
	if err != nil {
		return nil, err
	}
	return decodeRootState(b)
}

// What a root has applied is a long answer to a short question, which anybody in the overlay may ask: whoever is to found the next root
// need not be known to a member of this one.
const (
	// rootStatePause is the shortest time between two answers to one peer. A question in between is answered that it came too soon.
	rootStatePause = time.Second
	// rootStateAskMax bounds the question.
	rootStateAskMax = 64
	// rootStateBytesMax bounds the directory in an answer: as much as a snapshot of the root may hold (raft.SnapshotBytesMax).
	rootStateBytesMax = 48 << 20
)

// turns says whose turn it is. The zero value has given nobody a turn. It remembers those of the last [rootStatePause] only.
type turns struct {
	mu   sync.Mutex
	last map[peer.ID]automaton.Instant
}

// take reports whether a peer has not had a turn for [rootStatePause], and if so it has one now.
func (t *turns) take(p peer.ID, now automaton.Instant) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.DeleteFunc(t.last, func(_ peer.ID, at automaton.Instant) bool { return now.Sub(at) >= rootStatePause })
	if _, had := t.last[p]; had {
		return false
	}
	if t.last == nil {
		t.last = make(map[peer.ID]automaton.Instant)
	}
	t.last[p] = now
	return true
}

// rootStateEvent asks what the root's replica here has applied.
type rootStateEvent struct {
	root order.GroupID
	req  *dht.Request
}

func (h *Host) handleRootState(req *dht.Request) error {
	g, err := h.decode.rootStateAsk(req.Data)
	if err != nil {
		return err
	}
	if !h.told.take(req.From, h.clock.Now()) || !h.shardOf(g).box.TryPut(rootStateEvent{g, req}) {
		h.counters.busy.Add(1)
		req.Fail(ErrBusy)
	}
	return nil
}

func (e rootStateEvent) handle(s *shard) {
	var m pb.RootStateReply
	if r, ok := s.replicas[e.root.Life()]; ok {
		m.Present, m.Index, m.Directory = true, r.applied, r.directory().Snapshot()
	}
	if len(m.Directory) > rootStateBytesMax {
		e.req.Fail(ErrTooLarge)
		return
	}
	e.req.Reply(marshal(&m))
}

// rootStateAsk decodes the question what the root of a generation has applied.
func (d decoder) rootStateAsk(b []byte) (order.GroupID, error) {
	if len(b) > rootStateAskMax {
		return order.GroupID{}, malformed("root state: a question of %d bytes", len(b))
	}
	var m pb.RootStateRequest
	if err := proto.Unmarshal(b, &m); err != nil {
		return order.GroupID{}, malformed("root state: %v", err)
	}
	return order.GroupID{Overlay: d.overlay, Gen: m.Gen}, nil
}

// decodeRootState decodes the answer. The directory in it is not looked at.
func decodeRootState(b []byte) (*pb.RootStateReply, error) {
	m := new(pb.RootStateReply)
	if err := proto.Unmarshal(b, m); err != nil {
		return nil, malformed("root state: %v", err)
	}
	if len(m.Directory) > rootStateBytesMax || !m.Present && (m.Index != 0 || len(m.Directory) > 0) {
		return nil, malformed("root state: present %v, index %d, a directory of %d bytes", m.Present, m.Index, len(m.Directory))
	}
	return m, nil
}

// register tells a new root of the groups led here that it does not know: it adopts them. children is what it does know.
func (h *Host) register(children []placement.Summary) error {
	if !h.reseeded() {
		return nil
	}
	known := make(map[keyspace.Prefix]uint64, len(children))
	for _, c := range children {
		if known[c.Prefix] = c.Gen + 1; c.State == placement.Inherited {
			known[c.Prefix] = c.Gen // it wants to hear that it lives
		}
	}
	ctx, cancel := context.WithTimeout(h.ctx, registerTimeout)
	defer cancel()
	groups, err := h.Status(ctx)
	if err != nil {
		return err
	}
	for _, r := range groups {
		p := r.Group.Prefix
		if !r.Status.Leading || p.Len == 0 || placement.IsOwn(r.Group) || r.Group.Gen>>32 >= h.rootGroup().Gen>>32 || known[p] > r.Group.Gen {
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
