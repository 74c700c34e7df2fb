package config

import (
	"errors"
	"fmt"
	"slices"
)

// Profile names a set of defaults for a kind of peer. The zero value is no profile.
type Profile string

// The profiles.
const (
	// Private is a peer of an overlay that keeps strangers out with a pre-shared key: on every interface, over TCP.
	Private Profile = "private"
	// Public is a peer of an overlay that anybody may join, over TCP and QUIC, through NATs where there are any.
	Public Profile = "public"
	// Server is a private peer on a machine with a fixed address: it asks no local network for peers and keeps more
	// connections.
	Server Profile = "server"
	// Client is a private peer that uses the overlay and hosts nothing for it.
	Client Profile = "client"
	// Lowpower is a client that keeps few connections and asks no local network for peers.
	Lowpower Profile = "lowpower"
	// Test is a peer that listens on the loopback only, with or without a key.
	Test Profile = "test"
)

// Profiles returns every profile, the default one first.
func Profiles() []Profile { return []Profile{Private, Public, Server, Client, Lowpower, Test} }

// Keyed tells whether the profile's overlays are private ones: their peers have a swarm key. [Test] works with and without.
func (p Profile) Keyed() bool { return p != Public }

// Mode is what a peer is for its overlay. The zero value is no mode.
type Mode string

// The modes.
const (
	// ModeServer hosts replicas and answers lookups.
	ModeServer Mode = "server"
	// ModeClient hosts nothing and is found by nobody.
	ModeClient Mode = "client"
	// ModeAuto is a client until other peers have reached the peer at an address of its own, and a server from then on.
	ModeAuto Mode = "auto"
)

// Config is the configuration of one peer. It is a value: the slices in it are not shared with this package.
type Config struct {
	Profile Profile `koanf:"profile"`
	Network Network `koanf:"network"`
	Store   Store   `koanf:"store"`
	Metrics Metrics `koanf:"metrics"`
	API     API     `koanf:"api"`
}

// API says whether the peer answers clients on TCP too, which need a token there.
type API struct {
	Listen  string   `koanf:"listen"`   // HOST:PORT, on the loopback where HOST is empty; or [NoAPI]
	TLSCert string   `koanf:"tls_cert"` // file of the certificate chain; [NoAPI]: no TLS, on the loopback only
	TLSKey  string   `koanf:"tls_key"`  // and of its private key
	Pprof   bool     `koanf:"pprof"`    // answer net/http/pprof too
	Hosts   []string `koanf:"hosts"`    // names it may be asked by, beside localhost and IP addresses
}

// NoAPI in place of an address says that the peer answers on its unix socket only, and in place of a file that there is none.
const NoAPI = "none"

// Metrics says whether the peer tells monitoring how it is doing.
type Metrics struct {
	Listen string `koanf:"listen"` // HOST:PORT, on the loopback where HOST is empty; or [NoMetrics]
}

// Store says where the peer keeps its replicas. The zero value is the disk.
type Store struct {
	Volatile bool `koanf:"volatile"` // in memory: they end with the process
}

// Network says how the peer reaches others and is reached.
type Network struct {
	Listen    []string `koanf:"listen"`     // multiaddrs to listen at; port 0 is another one at each start
	Announce  []string `koanf:"announce"`   // multiaddrs told to others in place of those listened at; empty: those
	Bootstrap []string `koanf:"bootstrap"`  // multiaddrs with /p2p/ID of peers to dial when nobody is known
	MDNS      bool     `koanf:"mdns"`       // look for peers of the overlay on the local network
	Mode      Mode     `koanf:"mode"`       //
	NAT       bool     `koanf:"nat"`        // port mapping, AutoNAT, relay and hole punching
	ConnsLow  int      `koanf:"conns_low"`  // connections left after closing idle ones
	ConnsHigh int      `koanf:"conns_high"` // connections from which idle ones are closed
}

// NoMetrics in place of an address says that the peer tells monitoring nothing.
const NoMetrics = "none"

// Limits of the values.
const (
	AddrsMax     = 16  // listen and announce addresses
	BootstrapMax = 64  // bootstrap peers' addresses
	ConnsMax     = 1e5 // either water mark
	HostsMax     = 16  // names in api.hosts

	addrBytesMax = 256
)

// ErrInvalid is matched by every error about a value, a field or a file that cannot be.
var ErrInvalid = errors.New("config: invalid")

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, args...)...)
}

// Default returns the configuration of a profile. Its ports are 0: whoever makes a peer draws one ([Config.DrawPorts]). Errors
// match [ErrInvalid].
func Default(p Profile) (Config, error) {
	c := Config{Profile: p, Network: Network{
		Listen: []string{"/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/0"}, Announce: []string{}, Bootstrap: []string{},
		MDNS: true, Mode: ModeServer, ConnsLow: 96, ConnsHigh: 192,
	}, Metrics: Metrics{Listen: NoMetrics}, API: API{Listen: NoAPI, TLSCert: NoAPI, TLSKey: NoAPI, Hosts: []string{}}}
	n := &c.Network
	switch p {
	case Private:
	case Public:
		n.Listen = append(n.Listen, "/ip4/0.0.0.0/udp/0/quic-v1", "/ip6/::/udp/0/quic-v1")
		n.NAT, n.Mode = true, ModeAuto
	case Server:
		n.MDNS, n.ConnsLow, n.ConnsHigh = false, 600, 900
	case Client:
		n.Mode = ModeClient
	case Lowpower:
		n.Mode, n.MDNS, n.ConnsLow, n.ConnsHigh = ModeClient, false, 8, 24
	case Test:
		n.Listen, n.MDNS = []string{"/ip4/127.0.0.1/tcp/0"}, false
	default:
		return Config{}, invalid("profile: %q: want %s", p, oneOf(Profiles()))
	}
	return c, nil
}

// Clone returns a copy that shares no slice with c.
func (c Config) Clone() Config {
	n := &c.Network
	n.Listen, n.Announce, n.Bootstrap = slices.Clone(n.Listen), slices.Clone(n.Announce), slices.Clone(n.Bootstrap)
	c.API.Hosts = slices.Clone(c.API.Hosts)
	return c
}
