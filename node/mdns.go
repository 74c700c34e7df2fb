package node

import (
	"encoding/hex"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// mdnsPause is how long addresses have to stay the same before they are shown: a machine that gets a network gets several
// addresses one after another.
const mdnsPause = 2 * time.Second

// mdnsName is the name that peers of an overlay look for each other by on the local network. DNS-SD allows 15 characters and the
// underscore.
func mdnsName(overlay [32]byte) string {
	return "_lk-" + hex.EncodeToString(overlay[:4]) + "._udp"
}

// neighbours looks for peers of the overlay on the local network, and shows ours there, with the addresses that the host listens
// at: anew when these change.
type neighbours struct {
	host  host.Host
	name  string
	found func(peer.AddrInfo) // must not block
	watcher
}

// start begins to look, on a goroutine of its own; stop ends it. That there is no network to look at is no error.
func (n *neighbours) start() error {
	return n.watcher.start(n.host, "latchkey/mdns", []any{new(event.EvtLocalAddressesUpdated)}, n.run)
}

func (n *neighbours) run(events <-chan any) {
	var service mdns.Service
	var shown []ma.Multiaddr
	end := func() {
		if service != nil {
			service.Close()
		}
		service, shown = nil, nil
	}
	defer end()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case _, ok := <-events:
			if !ok {
				return
			}
			timer.Reset(mdnsPause)
		case <-timer.C:
			addrs := n.addrs()
			if slices.EqualFunc(addrs, shown, ma.Multiaddr.Equal) {
				continue
			}
			end()
			if len(addrs) == 0 {
				continue // on the loopback only
			}
			s := mdns.NewMdnsService(n.host, n.name, n)
			if err := s.Start(); err != nil {
				s.Close()
				log.Warnw("peers of the local network are not looked for", "err", err)
				continue
			}
			service, shown = s, addrs
		}
	}
}

// addrs returns, in order, where peers of the local network may reach the host.
func (n *neighbours) addrs() []ma.Multiaddr {
	all, err := n.host.Network().InterfaceListenAddresses()
	if err != nil {
		return nil
	}
	addrs := slices.DeleteFunc(slices.Clone(all), manet.IsIPLoopback)
	slices.SortFunc(addrs, ma.Multiaddr.Compare)
	return addrs
}

// HandlePeerFound implements mdns.Notifee. Anybody on the local network may have sent p; who answers there must still
// authenticate as p.
func (n *neighbours) HandlePeerFound(p peer.AddrInfo) {
	p.Addrs = slices.DeleteFunc(slices.Clone(p.Addrs), func(a ma.Multiaddr) bool {
		return manet.IsIPLoopback(a) || manet.IsIPUnspecified(a)
	})
	if p.ID == n.host.ID() || len(p.Addrs) == 0 {
		return
	}
	log.Debugw("found on the local network", "peer", p.ID, "addrs", p.Addrs)
	n.found(p)
}
