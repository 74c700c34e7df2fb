package node

import (
	"fmt"
	"testing"
	"time"

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

// Who was revoked is given the list once in a while, and not many at a time.
func TestRevokedPeersAreToldInTurns(t *testing.T) {
	var r revokedPeers
	now := time.Now()
	for i := range revokedAtOnce {
		if !r.begin(peer.ID(fmt.Sprint(i)), now) {
			t.Fatalf("peer %d is not told", i)
		}
	}
	if r.begin("one more", now) {
		t.Error("one more is told at the same time")
	}
	r.end()
	if !r.begin("one more", now) {
		t.Error("one more is not told when there is room")
	}
	r.end()
	if r.begin("one more", now.Add(revokedPause-1)) {
		t.Error("it is told again at once")
	}
	if !r.begin("one more", now.Add(revokedPause)) || len(r.at) != 1 {
		t.Errorf("it is not told again later; %d are remembered", len(r.at))
	}
}
