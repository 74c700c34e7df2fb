package config

import (
	"math/rand/v2"
	"net"
	"reflect"
	"strings"
	"testing"
)

func TestDrawnPortIsOneAndFixed(t *testing.T) {
	c := mustDefault(t, Public)
	c.Network.Listen = append(c.Network.Listen, "/ip4/127.0.0.1/tcp/80", "/ip4/127.0.0.1/tcp/0/ws")
	d, err := c.DrawPorts()
	if err != nil {
		t.Fatal(err)
	}
	k, ok := socketOf(d.Network.Listen[0])
	if !ok || k.port < PortMin || k.port > PortMax {
		t.Fatalf("drew %+v", k)
	}
	for i, s := range d.Network.Listen {
		want := withPort(c.Network.Listen[i], k.port)
		if s != want || strings.Contains(s, "/0/") && !strings.Contains(s, "/80") {
			t.Errorf("%s became %s", c.Network.Listen[i], s)
		}
	}
	if d.Network.Listen[4] != "/ip4/127.0.0.1/tcp/80" {
		t.Errorf("a fixed port became %s", d.Network.Listen[4])
	}
	if again, err := d.DrawPorts(); err != nil || !reflect.DeepEqual(again, d) {
		t.Errorf("drawn again: %v, %v", again.Network.Listen, err)
	}
	if c.Network.Listen[0] != "/ip4/0.0.0.0/tcp/0" {
		t.Errorf("the original changed: %v", c.Network.Listen)
	}
}

func TestTakenPortIsNotDrawn(t *testing.T) {
	for _, s := range []string{"/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"} {
		k, ok := socketOf(s)
		if !ok {
			t.Fatal(s)
		}
		l, err := k.listen()
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		var port int
		switch l := l.(type) {
		case net.Listener:
			port = l.Addr().(*net.TCPAddr).Port
		case net.PacketConn:
			port = l.LocalAddr().(*net.UDPAddr).Port
		}
		drawn := 0
		got, err := freePort([]socket{k}, func() int {
			if drawn++; drawn < 3 {
				return port
			}
			return 0 // is always free
		})
		if err != nil || got != 0 {
			t.Errorf("%s: drew %d, %v, and %d was taken", s, got, err, port)
		}
		if got, err = freePort([]socket{k}, func() int { return port }); err == nil {
			t.Errorf("%s: drew %d, which is taken", s, got)
		}
	}
}

// A machine without IPv6, say, still draws a port for IPv4.
func TestSocketsThatCannotBeDoNotCount(t *testing.T) {
	port, err := freePort([]socket{{network: "tcp4", host: "192.0.2.1"}, {network: "tcp4", host: "127.0.0.1"}}, func() int { return PortMin + rand.IntN(1000) })
	if err != nil || port < PortMin {
		t.Errorf("%d, %v", port, err)
	}
}
