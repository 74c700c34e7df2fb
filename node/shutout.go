package node

import (
	"fmt"
	"sync"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/node/allowlist"
)

// shutOutPeersMax is how many peers we remember of those that say that we may not be in the overlay.
const shutOutPeersMax = 64

// tellers are the peers that have ended our connection with the words that we may not be in the overlay, and have not let us in since.
// Our own list may not say so yet: a peer that was revoked is told of the list that says so once, if it comes through.
type tellers struct {
	notify *network.NotifyBundle

	mu    sync.Mutex
	peers map[peer.ID]network.ConnErrorCode
}

// watch returns what has to hear of the host's connections.
func (t *tellers) watch(x *accessPeers) network.Notifiee {
	t.notify = &network.NotifyBundle{DisconnectedF: func(_ network.Network, c network.Conn) {
		if !x.begin() {
			return
		}
		defer x.busy.Done()
		// Only a peer that may be in the overlay itself, for all we know, is believed.
		if code, told := toldCode(x.ctx, c); told && (code == gatedRevoked || code == gatedUnlisted) && x.access.Admits(c.RemotePeer()) {
			t.add(c.RemotePeer(), code)
		}
	}}
	return t.notify
}

func (t *tellers) unwatch(x *accessPeers) {
	if t.notify != nil {
		x.host.Network().StopNotify(t.notify)
	}
}

func (t *tellers) add(p peer.ID, code network.ConnErrorCode) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.peers == nil {
		t.peers = make(map[peer.ID]network.ConnErrorCode)
	}
	if _, known := t.peers[p]; known || len(t.peers) < shutOutPeersMax {
		t.peers[p] = code
	}
}

// met forgets what a peer has said: it lets us in.
func (t *tellers) met(p peer.ID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.peers, p)
}

// all returns how many there are, and one of them with what it says; one that says we were revoked before others.
func (t *tellers) all() (n int, p peer.ID, code network.ConnErrorCode) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for q, c := range t.peers {
		if p == "" || c > code || c == code && q < p {
			p, code = q, c
		}
	}
	return len(t.peers), p, code
}

// shutOut tells why this peer itself may not be in the overlay, or nothing. Its own list says so, or more peers do than are connected: one
// that has an old list and refuses us means nothing while others do not.
func (x *accessPeers) shutOut() string {
	if v := x.access.Judge(x.host.ID()); v != allowlist.Admitted {
		code, _ := refusalOf(v)
		return gated[code]
	}
	n, p, code := x.told.all()
	connected := 0
	for _, q := range x.overlay.Peers() {
		if q.Connected {
			connected++
		}
	}
	switch {
	case n <= connected:
		return ""
	case n == 1:
		return fmt.Sprintf("%s (so says %s)", gated[code], p)
	}
	return fmt.Sprintf("%s (so say %s and %d more)", gated[code], p, n-1)
}
