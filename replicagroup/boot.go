package replicagroup

import (
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/replicagroup/order"
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
	fellows := h.fellows.Load()
	if h.store == nil || !(fellows != nil && (*fellows)[by]) && !h.fromParent(by) {
		log.Warnw("a peer refuses us, since our store runs in two places, and is not believed: we share no group", "peer", by)
		return
	}
	h.spawn(func() {
		h.fail(fmt.Errorf("%w: peer %s has heard two starts of store %v with this peer's identity, and refuses both: the directory was copied, "+
			"or set back to an earlier state. Stop the other one too, wherever it runs; then start the one to be kept, once, with daemon --restored",
			ErrTwin, by, h.storeID))
	})
}

// distrusted reports whether a peer's store was heard in two places: nothing said in its name counts, and a member that has it is
// as good as gone.
func (h *Host) distrusted(p peer.ID, s order.StoreID) bool {
	return h.distrusts != nil && h.distrusts(p, s)
}
