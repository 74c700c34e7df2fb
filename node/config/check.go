package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// among makes the check of a field that has one of these values.
func among[S ~string](values []S) func(any) error {
	return func(v any) error {
		if !slices.Contains(values, S(v.(string))) {
			return fmt.Errorf("want %s", oneOf(values))
		}
		return nil
	}
}

// within makes the check of a number.
func within(low, high int) func(any) error {
	return func(v any) error {
		if n := v.(int); n < low || n > high {
			return fmt.Errorf("want %d to %d", low, high)
		}
		return nil
	}
}

// addrList makes the check of a list of low to high addresses.
func addrList(low, high int, entry func(ma.Multiaddr) error) func(any) error {
	return func(v any) error {
		list := v.([]string)
		if len(list) < low || len(list) > high {
			return fmt.Errorf("%d addresses; want %d to %d", len(list), low, high)
		}
		for _, s := range list {
			if err := checkAddr(s, entry); err != nil {
				if len(list) == 1 { // it is quoted as the field's value
					return err
				}
				return fmt.Errorf("%s: %w", excerpt(s), err)
			}
		}
		return nil
	}
}

func checkAddr(s string, entry func(ma.Multiaddr) error) error {
	if len(s) > addrBytesMax {
		return fmt.Errorf("longer than %d bytes", addrBytesMax)
	}
	a, err := ma.NewMultiaddr(s)
	if err != nil {
		return errors.New("want a multiaddr like /ip4/192.0.2.1/tcp/4701")
	}
	return entry(a)
}

// checkHostPort wants HOST:PORT, with an IP address or "localhost" or nothing for a host; or [NoMetrics].
func checkHostPort(v any) error {
	s := v.(string)
	if s == NoMetrics {
		return nil
	}
	if len(s) > addrBytesMax {
		return fmt.Errorf("longer than %d bytes", addrBytesMax)
	}
	host, port, err := net.SplitHostPort(s)
	if err == nil && host != "" && host != "localhost" {
		_, err = netip.ParseAddr(host)
	}
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return errors.New("want HOST:PORT like 127.0.0.1:9464, with an IP address for a host, or " + NoMetrics)
	}
	return nil
}

// checkFile wants what may be a file's name, or [NoAPI].
func checkFile(v any) error {
	if s := v.(string); s == "" || len(s) > 4096 || strings.ContainsRune(s, 0) {
		return errors.New("want the path of a file, or " + NoAPI)
	}
	return nil
}

// checkHosts wants names of hosts.
func checkHosts(v any) error {
	list := v.([]string)
	if len(list) > HostsMax {
		return fmt.Errorf("%d names; want at most %d", len(list), HostsMax)
	}
	for _, s := range list {
		if len(s) > addrBytesMax || s == "" || strings.ContainsAny(s, "/: \t*") {
			return fmt.Errorf("%s: want a host name without scheme, port or stars", excerpt(s))
		}
	}
	return nil
}

// onLoopback reports whether HOST:PORT is an address of the loopback.
func onLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	if host == "" || host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// checkListen wants an address of this machine: an IP address and a port.
func checkListen(a ma.Multiaddr) error {
	codes := codesOf(a)
	if codes[0] == ma.P_IP6ZONE {
		codes = codes[1:]
	}
	if len(codes) < 2 || codes[0] != ma.P_IP4 && codes[0] != ma.P_IP6 || codes[1] != ma.P_TCP && codes[1] != ma.P_UDP {
		return errors.New("want an IP address and a port, like /ip4/0.0.0.0/tcp/4701")
	}
	return nil
}

// checkAnnounce wants an address without a peer id: it is this peer's.
func checkAnnounce(a ma.Multiaddr) error {
	if codes := codesOf(a); codes[len(codes)-1] == ma.P_P2P {
		return errors.New("want an address without /p2p/ and a peer id, which is added")
	}
	return nil
}

func checkBootstrap(a ma.Multiaddr) error {
	if i, err := peer.AddrInfoFromP2pAddr(a); err != nil || len(i.Addrs) == 0 {
		return errors.New("want an address that ends in /p2p/ and a peer id")
	}
	return nil
}

func codesOf(a ma.Multiaddr) []int {
	var codes []int
	for _, c := range a {
		codes = append(codes, c.Protocol().Code)
	}
	return codes
}

// problem is what is wrong with a field.
type problem struct {
	field, value string
	err          error
}

// Validate says what is wrong with the configuration of a peer: a value out of its range, or values that do not go together.
// private tells whether the peer has a swarm key. Errors match [ErrInvalid].
func (c Config) Validate(private bool) error { return Loaded{Config: c}.Validate(private) }

// Validate does what [Config.Validate] does, and its errors name the source.
func (l Loaded) Validate(private bool) error {
	p := l.outOfRange()
	if p == nil {
		p = l.contradiction(private)
	}
	return l.explain(p)
}

func (l Loaded) explain(p *problem) error {
	if p == nil {
		return nil
	}
	if from, ok := l.sources[p.field]; ok {
		return invalid("%s: %s (%s): %w", p.field, excerpt(p.value), from, p.err)
	}
	return invalid("%s: %s: %w", p.field, excerpt(p.value), p.err)
}

// outOfRange finds a field that is wrong by itself.
func (c Config) outOfRange() *problem {
	for _, f := range fields {
		v := f.Value(c)
		if err := f.inRange(v); err != nil {
			return &problem{f.Name, text(v), err}
		}
	}
	return nil
}

// contradiction finds a field that does not go with another, or with the swarm key or its absence.
func (c Config) contradiction(private bool) *problem {
	n := c.Network
	switch {
	case private && c.Profile == Public:
		return &problem{"profile", string(c.Profile), errors.New("it is for overlays without a swarm key, and here is a swarm.key")}
	case !private && c.Profile != Public && c.Profile != Test:
		return &problem{"profile", string(c.Profile), errors.New("it is for overlays with a swarm key, and here is no swarm.key; restore it from a copy or from another peer")}
	case (c.API.TLSCert == NoAPI) != (c.API.TLSKey == NoAPI):
		return &problem{"api.tls_cert", c.API.TLSCert, errors.New("it goes together with api.tls_key; set both or none")}
	case c.API.Listen != NoAPI && c.API.TLSCert == NoAPI && !onLoopback(c.API.Listen):
		return &problem{"api.listen", c.API.Listen, errors.New("beyond the loopback a token would travel in the clear; set api.tls_cert and api.tls_key, or listen at 127.0.0.1")}
	case n.ConnsLow > n.ConnsHigh:
		return &problem{"network.conns_low", text(n.ConnsLow), fmt.Errorf("above network.conns_high, which is %d", n.ConnsHigh)}
	case n.Mode == ModeAuto && !n.NAT:
		return &problem{"network.mode", string(n.Mode), errors.New("it needs network.nat, without which a peer never learns that others reach it; use server or client")}
	}
	for _, s := range n.Listen {
		if err := checkTransport(s, private); err != nil {
			return &problem{"network.listen", s, err}
		}
	}
	return nil
}

// checkTransport refuses an address to listen at whose transport the peer's host would not have.
func checkTransport(s string, private bool) error {
	a, err := ma.NewMultiaddr(s)
	if err != nil {
		return err
	}
	codes := codesOf(a)
	i := slices.IndexFunc(codes, func(c int) bool { return c == ma.P_TCP || c == ma.P_UDP })
	switch rest := codes[i:]; {
	case slices.Equal(rest, []int{ma.P_TCP}), slices.Equal(rest, []int{ma.P_TCP, ma.P_WS}):
		return nil
	case private:
		return errors.New("an overlay with a swarm key works over TCP and WebSocket only: QUIC, WebTransport and WebRTC cannot keep strangers out by a key")
	case slices.Equal(rest, []int{ma.P_UDP, ma.P_QUIC_V1}):
		return nil
	default:
		return errors.New("no such transport; there are /tcp/PORT, /tcp/PORT/ws and /udp/PORT/quic-v1")
	}
}
