package node

import (
	"encoding/hex"
	"slices"
	"sync"
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
	rate  findRate
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

// HandlePeerFound implements mdns.Notifee. Anybody on the local network may have sent p, as often as they like; who answers there must
// still authenticate as p. Only literal addresses are taken, so that nobody makes us ask name servers or relays.
func (n *neighbours) HandlePeerFound(p peer.AddrInfo) {
	p.Addrs = slices.DeleteFunc(slices.Clone(p.Addrs), func(a ma.Multiaddr) bool { return !nearby(a) })
	if p.ID == n.host.ID() || len(p.Addrs) == 0 || !n.rate.allows(time.Now()) {
		return
	}
	log.Debugw("found on the local network", "peer", p.ID, "addrs", p.Addrs)
	n.found(p)
}

// nearby reports whether a is an address that a peer of the local network may have.
func nearby(a ma.Multiaddr) bool {
	if len(a) == 0 || a[0].Code() != ma.P_IP4 && a[0].Code() != ma.P_IP6 {
		return false
	}
	if _, err := a.ValueForProtocol(ma.P_CIRCUIT); err == nil {
		return false
	}
	ip, err := manet.ToIP(a)
	return err == nil && !ip.IsLoopback() && !ip.IsUnspecified() && !ip.IsMulticast()
}

// Finds are taken findsPerSecond times a second in the long run, and findsBurst at once: the neighbours that answer a first question.
const (
	findsBurst     = 64
	findsPerSecond = 8
)

// findRate bounds how many finds are taken. The zero value is ready to use; methods are safe for concurrent use.
type findRate struct {
	mu   sync.Mutex
	used float64 // of the burst
	at   time.Time
}

// allows reports whether one more is taken at that time.
func (r *findRate) allows(now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if passed := now.Sub(r.at); passed > 0 {
		r.used, r.at = max(0, r.used-findsPerSecond*passed.Seconds()), now
	}
	if r.used > findsBurst-1 {
		return false
	}
	r.used++
	return true
}
