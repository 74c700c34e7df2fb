package node

import (
	"fmt"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
)

func TestNoMorePeersThanTheLimitAreRememberedForShuttingUsOut(t *testing.T) {
	t.Parallel()
	var told tellers
	name := func(i int) peer.ID { return peer.ID(fmt.Sprintf("p%03d", i)) }
	for i := range shutOutPeersMax + 1 {
		told.add(name(i), gatedUnlisted)
	}
	if n, _, _ := told.all(); n != shutOutPeersMax {
		t.Errorf("%d are remembered, want %d", n, shutOutPeersMax)
	}
	told.add(name(shutOutPeersMax), gatedRevoked) // there is no room for it
	if _, p, code := told.all(); p != name(0) || code != gatedUnlisted {
		t.Errorf("%q says %x", p, code)
	}
	told.add(name(7), gatedRevoked) // one that is remembered may say something else
	if n, p, code := told.all(); n != shutOutPeersMax || p != name(7) || code != gatedRevoked {
		t.Errorf("%d, %q says %x", n, p, code)
	}
	told.met(name(7))
	told.add(name(shutOutPeersMax), gatedRevoked)
	if n, p, _ := told.all(); n != shutOutPeersMax || p != name(shutOutPeersMax) {
		t.Errorf("%d, %q", n, p)
	}
}
