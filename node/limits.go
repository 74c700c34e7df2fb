package node

import (
	"math"
	"net/netip"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/x/rate"

	"latchkey/node/config"
)

// Limits of a host made with [HostOptions], kept by libp2p's resource manager. What goes over a limit is refused: a
// connection is closed, a stream is reset. An honest peer of the overlay has one or two connections to us and about a dozen streams.
const (
	// connsPerPeerMax bounds the connections with one peer.
	connsPerPeerMax = 8
	// streamsInPerPeerMax and streamsPerPeerMax bound one peer's streams, those it opened and all.
	streamsInPerPeerMax = 64
	streamsPerPeerMax   = 192
	// streamsInPerProtocolMax bounds the streams that one peer opened with one protocol, streamsPerProtocolMax both sides'.
	// libp2p's own protocols (identify, ping, relay and others) have tighter ones of their own.
	streamsInPerProtocolMax = 32
	streamsPerProtocolMax   = 64
	// memoryPerPeerMax bounds the receive windows of one peer's streams. Each stream begins with 256 KiB of it.
	memoryPerPeerMax = 32 << 20

	// connsPerIPMax and connsPerIPRate (a second, in the long run) bound the connections that one address outside of the
	// local networks opens; a whole /56 counts as one address in IPv6.
	connsPerIPMax  = 64
	connsPerIPRate = 4

	// connsPendingMax and streamsPendingMax bound those that have not shown who or what they are yet, and memoryPendingMax
	// their windows.
	connsPendingMax   = 128
	streamsPendingMax = 512
	memoryPendingMax  = 64 << 20

	// All peers together, by conns_high, from which the connection manager closes idle connections: twice as many and
	// connsSpare connections, streamsPerConn streams for each, and memoryPerConn of windows for each of conns_high beside
	// memoryBase: 448 MiB by default. Windows are what peers may have us hold, not what is held: an idle peer takes a few MiB.
	connsSpare     = 128
	streamsPerConn = 8
	memoryBase     = 64 << 20
	memoryPerConn  = 2 << 20
)

// localNetworks are where many peers at one address are nothing strange: the loopback, and private and link-local networks.
var localNetworks = []netip.Prefix{
	netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("fc00::/7"), netip.MustParsePrefix("fe80::/10"),
}

// newResourceManager returns a resource manager that keeps the limits above.
func newResourceManager(n config.Network) (network.ResourceManager, error) {
	conns := 2*n.ConnsHigh + connsSpare
	limit := func(x int) rcmgr.LimitVal { return rcmgr.LimitVal(x) }
	partial := rcmgr.PartialLimitConfig{
		System: rcmgr.ResourceLimits{
			Conns: limit(conns), ConnsInbound: limit(conns), ConnsOutbound: limit(conns), FD: limit(conns),
			Streams: limit(streamsPerConn * conns), StreamsInbound: limit(streamsPerConn * conns), StreamsOutbound: limit(streamsPerConn * conns),
			Memory: rcmgr.LimitVal64(memoryBase + memoryPerConn*int64(n.ConnsHigh)),
		},
		Transient: rcmgr.ResourceLimits{
			Conns: 2 * connsPendingMax, ConnsInbound: connsPendingMax, ConnsOutbound: connsPendingMax, FD: 2 * connsPendingMax,
			Streams: 2 * streamsPendingMax, StreamsInbound: streamsPendingMax, StreamsOutbound: streamsPendingMax,
			Memory: memoryPendingMax,
		},
		PeerDefault: rcmgr.ResourceLimits{
			Conns: connsPerPeerMax, ConnsInbound: connsPerPeerMax, ConnsOutbound: connsPerPeerMax, FD: connsPerPeerMax,
			Streams: streamsPerPeerMax, StreamsInbound: streamsInPerPeerMax, StreamsOutbound: streamsPerPeerMax,
			Memory: memoryPerPeerMax,
		},
		ProtocolDefault: rcmgr.ResourceLimits{
			Streams: limit(4 * conns), StreamsInbound: limit(4 * conns), StreamsOutbound: limit(4 * conns),
			Memory: rcmgr.LimitVal64(memoryBase + memoryPerConn*int64(n.ConnsHigh)),
		},
		ProtocolPeerDefault: rcmgr.ResourceLimits{
			Streams: streamsPerProtocolMax, StreamsInbound: streamsInPerProtocolMax, StreamsOutbound: streamsPerProtocolMax,
			Memory: memoryPerPeerMax,
		},
	}
	defaults := rcmgr.DefaultLimits
	libp2p.SetDefaultServiceLimits(&defaults)
	var count4, count6 []rcmgr.NetworkPrefixLimit
	var rates []rate.PrefixLimit
	for _, p := range localNetworks {
		rates = append(rates, rate.PrefixLimit{Prefix: p}) // no limit
		if p.Addr().Is4() {
			count4 = append(count4, rcmgr.NetworkPrefixLimit{Network: p, ConnCount: math.MaxInt})
		} else {
			count6 = append(count6, rcmgr.NetworkPrefixLimit{Network: p, ConnCount: math.MaxInt})
		}
	}
	perIP := rate.Limit{RPS: connsPerIPRate, Burst: connsPerIPMax}
	return rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(partial.Build(defaults.Scale(0, 0))),
		rcmgr.WithMetricsDisabled(),
		rcmgr.WithNetworkPrefixLimit(count4, count6),
		rcmgr.WithLimitPerSubnet([]rcmgr.ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: connsPerIPMax}},
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 56, ConnCount: connsPerIPMax}}),
		rcmgr.WithConnRateLimiters(&rate.Limiter{
			NetworkPrefixLimits: rates,
			SubnetRateLimiter: rate.SubnetLimiter{
				IPv4SubnetLimits: []rate.SubnetLimit{{PrefixLength: 32, Limit: perIP}},
				IPv6SubnetLimits: []rate.SubnetLimit{{PrefixLength: 56, Limit: perIP}},
			},
		}))
}
