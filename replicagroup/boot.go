package replicagroup

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/pb"
)

// Boot names one start of a store. Of two starts of one store id that are both alive, or heard in the wrong order, one is a copy's
// (replica-groups.md section 3.6). It is comparable.
type Boot struct {
	Count uint64 // rises with each start, from 1
	Nonce uint64 // random, never zero
}

// Accused says that a peer refuses this one, since it has heard its store in two places. Who shares a group with us, or is of the root,
// is believed, as it is in everything its groups decide: the host stops with [ErrTwin], because neither of the two stores has all
// promises that were given under its id. Others are not: whoever was, could stop any peer it likes. It does not block.
func (h *Host) Accused(by peer.ID) {
	if h.store == nil || !h.believes(by) {
		log.Warnw("a peer refuses us, since our store runs in two places, and is not believed: we share no group", "peer", by)
		return
	}
	h.spawn(func() {
		if fellows := h.fellows.Load(); fellows != nil {
			h.tell(*fellows, notice{h.overlay.Self(), h.storeID}) // who accuses us may share no group with them
		}
		h.fail(fmt.Errorf("%w: peer %s has heard two starts of store %v with this peer's identity, and refuses both: the directory was copied, "+
			"or set back to an earlier state. Stop the other one too, wherever it runs; then start the one to be kept, once, with daemon --restored",
			ErrTwin, by, h.storeID))
	})
}

// believes reports whether a peer shares a group with us, or is of the root.
func (h *Host) believes(p peer.ID) bool {
	fellows := h.fellows.Load()
	return fellows != nil && (*fellows)[p] || h.fromParent(p)
}

const (
	// noticesMax bounds the stores that fellows are told about; the oldest goes first.
	noticesMax = 64
	// noticePause is how often they are told again, as long as the store's peer is a fellow: a message may be lost, and who has just
	// joined a group could not know yet whom to believe.
	noticePause = 2 * time.Second
	// strangerNoticesMax is how often they are told of a store whose peer is none: it may be one of theirs.
	strangerNoticesMax = 30
)

// notices are the stores that were heard in two places, as they are told to fellows.
type notices struct {
	mu      sync.Mutex
	list    []pending
	telling bool
}

// pending is a notice that is still told.
type pending struct {
	notice
	told int // times, while its peer was no fellow
}

// due returns what is to be told now.
func (n *notices) due(fellows map[peer.ID]bool) (list []notice) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range n.list {
		p := &n.list[i]
		if !fellows[p.peer] {
			if p.told == strangerNoticesMax {
				continue
			}
			p.told++
		}
		list = append(list, p.notice)
	}
	return list
}

type notice struct {
	peer  peer.ID
	store order.StoreID
}

// Distrusted says that a peer's store was heard in two places, here or by a fellow. All fellows are told, again and again until the peer is
// none any more: one who has heard only one of the two would go on counting it. A peer that is none of ours may be one of theirs, and once
// it has stopped on our word, they never hear but its copy: of such they are told for a while. It does not block.
func (h *Host) Distrusted(p peer.ID, s order.StoreID) {
	n := notice{p, s}
	h.notices.mu.Lock()
	h.notices.list = append(slices.DeleteFunc(h.notices.list, func(o pending) bool { return o.notice == n }), pending{notice: n})
	h.notices.list = h.notices.list[max(0, len(h.notices.list)-noticesMax):]
	if !h.notices.telling {
		h.notices.telling = h.spawn(h.tellFellows)
	}
	h.notices.mu.Unlock()
}

func (h *Host) tellFellows() {
	tick := time.NewTicker(noticePause)
	defer tick.Stop()
	for {
		if fellows := h.fellows.Load(); fellows != nil {
			for _, n := range h.notices.due(*fellows) {
				h.tell(*fellows, n)
			}
		}
		select {
		case <-tick.C:
		case <-h.ctx.Done():
			return
		}
	}
}

func (h *Host) tell(fellows map[peer.ID]bool, n notice) {
	msg := marshal(&pb.TwinNotice{Peer: []byte(n.peer), Store: n.store[:]})
	for to := range fellows {
		if to == h.overlay.Self() || to == n.peer {
			continue
		}
		if err := h.overlay.Send(to, keyspace.Key{}, serviceTwin, msg); err != nil {
			log.Debugw("notice of a twin dropped", "peer", to, "err", err)
		}
	}
}

// handleTwin takes the word of those who would be believed in the groups' own matters, and about fellows only.
func (h *Host) handleTwin(req *dht.Request) error {
	n, err := decodeNotice(req.Data)
	if err != nil || !req.OneWay() {
		return malformed("notice of a twin: %v", err)
	}
	fellows := h.fellows.Load()
	switch {
	case !h.believes(req.From):
		h.counters.strayMessages.Add(1)
	case n.peer == h.overlay.Self() && n.store == h.storeID:
		h.Accused(req.From)
	case h.distrust != nil && fellows != nil && (*fellows)[n.peer]:
		h.distrust(n.peer, n.store)
	}
	return nil
}

func decodeNotice(b []byte) (n notice, err error) {
	var m pb.TwinNotice
	if err := proto.Unmarshal(b, &m); err != nil {
		return n, malformed("%v", err)
	}
	if len(m.Peer) == 0 || len(m.Peer) > order.PeerIDBytesMax {
		return n, malformed("peer id of %d bytes", len(m.Peer))
	}
	n.peer = peer.ID(m.Peer)
	err = fixed(n.store[:], m.Store, "store id")
	return n, err
}

// distrusted reports whether a peer's store was heard in two places: nothing said in its name counts, and a member that has it is
// as good as gone.
func (h *Host) distrusted(p peer.ID, s order.StoreID) bool {
	return h.distrusts != nil && h.distrusts(p, s)
}
