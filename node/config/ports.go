package config

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"

	ma "github.com/multiformats/go-multiaddr"
)

// The ports from which one is drawn for a new peer: below those that systems hand out by themselves.
const (
	PortMin = 20000
	PortMax = 31999

	portTries = 64
)

// DrawPorts returns c with one port in place of every 0 among its listen addresses: drawn at random from [PortMin] to
// [PortMax], and free on this machine now, so that the addresses stay good over restarts. A c without a 0 comes back as it
// is. Listen addresses must be valid ([Config.Validate]).
func (c Config) DrawPorts() (Config, error) {
	c = c.Clone()
	var open []socket // without a port
	for _, s := range c.Network.Listen {
		if k, ok := socketOf(s); ok && k.port == 0 {
			open = append(open, k)
		}
	}
	if len(open) == 0 {
		return c, nil
	}
	port, err := freePort(open, func() int { return PortMin + rand.IntN(PortMax-PortMin+1) })
	if err != nil {
		return c, err
	}
	for i, s := range c.Network.Listen {
		c.Network.Listen[i] = withPort(s, port)
	}
	return c, nil
}

// freePort draws ports until it has one that can be listened at by all of these sockets; those of a kind that this machine does not have, as
// of IPv6, do not count.
func freePort(sockets []socket, draw func() int) (int, error) {
	var usable []socket
	for _, k := range sockets {
		if l, err := k.listen(); err == nil {
			l.Close()
			usable = append(usable, k)
		}
	}
	for range portTries {
		if port := draw(); allFree(usable, port) {
			return port, nil
		}
	}
	return 0, fmt.Errorf("config: no free port among %d tried from %d to %d; name one in network.listen", portTries, PortMin, PortMax)
}

func allFree(sockets []socket, port int) bool {
	for _, k := range sockets {
		k.port = port
		l, err := k.listen()
		if err != nil {
			return false
		}
		l.Close()
	}
	return true
}

// socket is what a listen address begins with.
type socket struct {
	network string // tcp4, tcp6, udp4 or udp6
	host    string // with the zone
	port    int
}

func (k socket) listen() (io.Closer, error) {
	addr := net.JoinHostPort(k.host, strconv.Itoa(k.port))
	if k.network[0] == 'u' {
		return net.ListenPacket(k.network, addr)
	}
	return net.Listen(k.network, addr)
}

// socketOf reads a listen address.
func socketOf(s string) (socket, bool) {
	a, err := ma.NewMultiaddr(s)
	if err != nil || checkListen(a) != nil {
		return socket{}, false
	}
	var k socket
	zone := ""
	for _, c := range a {
		switch v := c.Value(); c.Protocol().Code {
		case ma.P_IP6ZONE:
			zone = v
		case ma.P_IP4:
			k.host, k.network = v, "4"
		case ma.P_IP6:
			k.host, k.network = v, "6"
		case ma.P_TCP, ma.P_UDP:
			k.network = c.Protocol().Name + k.network
			k.port, err = strconv.Atoi(v)
			if zone != "" {
				k.host += "%" + zone
			}
			return k, err == nil
		}
	}
	return socket{}, false
}

// withPort replaces port 0 in a listen address.
func withPort(s string, port int) string {
	a, err := ma.NewMultiaddr(s)
	if err != nil {
		return s
	}
	for i, c := range a {
		if code := c.Protocol().Code; (code == ma.P_TCP || code == ma.P_UDP) && c.Value() == "0" {
			if with, err := ma.NewComponent(c.Protocol().Name, strconv.Itoa(port)); err == nil {
				a[i] = *with
			}
		}
	}
	return a.String()
}
