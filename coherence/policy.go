package coherence

import (
	"cmp"
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/coherence/protocol"
)

// Host is a node that has an application open, as a [Policy] sees it.
type Host struct {
	Node    protocol.NodeRef
	Peer    peer.ID
	Kinds   []string // of threads that it can run, in order
	Threads int      // that it runs
	Self    bool     // it is the node that asks
}

// Runs reports whether the host can run threads of a kind.
func (h *Host) Runs(kind string) bool {
	_, ok := slices.BinarySearch(h.Kinds, kind)
	return ok
}

// Wanted is a thread that needs a place.
type Wanted struct {
	Name, Kind string
	Prefers    peer.ID // where its creator wanted it, empty for anywhere
}

// Policy chooses where threads run: when one is created, when its node leaves, and when an application begins anew. It is called by one goroutine
// at a time, and must not block.
type Policy interface {
	// Place returns the index of one of hosts. There is at least one, and all of them can run the thread. Of threads that are placed together, those
	// placed before are counted in Host.Threads. Another index is taken for what [Spread] says.
	Place(w Wanted, hosts []Host) int
}

// PolicyFunc is a function that is a [Policy].
type PolicyFunc func(w Wanted, hosts []Host) int

// Place calls f.
func (f PolicyFunc) Place(w Wanted, hosts []Host) int { return f(w, hosts) }

// Spread is the [Policy] of an application that sets none: the node with the fewest threads; of several, the first in the order of their names.
var Spread Policy = PolicyFunc(func(_ Wanted, hosts []Host) int {
	best := 0
	for i := range hosts {
		if c := cmp.Or(cmp.Compare(hosts[i].Threads, hosts[best].Threads), hosts[i].Node.Compare(hosts[best].Node)); c < 0 {
			best = i
		}
	}
	return best
})

// choose returns the index of the host where a policy wants a thread, -1 if none can run it. Where its creator wanted it comes first.
func choose(p Policy, w Wanted, hosts []Host) int {
	var can []Host
	var at []int
	for i := range hosts {
		if !hosts[i].Runs(w.Kind) {
			continue
		}
		if w.Prefers != "" && hosts[i].Peer == w.Prefers {
			return i
		}
		can, at = append(can, hosts[i]), append(at, i)
	}
	if len(can) == 0 {
		return -1
	}
	i := p.Place(w, slices.Clone(can))
	if i < 0 || i >= len(can) {
		i = Spread.Place(w, can)
	}
	return at[i]
}
