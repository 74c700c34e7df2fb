package node

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/pnet"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/crypto/salsa20"
)

// answer is what the first bytes tell about who sends them.
type answer uint8

const (
	silent  answer = iota // nothing came
	hangsUp               // nothing came, and the connection ended
	open                  // libp2p, without a swarm key
	keyed                 // libp2p, under another swarm key than ours
	perhaps               // what may be the begin of libp2p under any swarm key
	ours                  // libp2p, under ours
	foreign               // something else
)

const (
	// greeting is what a libp2p peer says first, in the clear or under a swarm key.
	greeting = "\x13/multistream/1.0.0\n"
	// nonceBytes is what comes first under a swarm key, in the clear.
	nonceBytes = 24

	lookBytesMax = 64
	// lookMax is how long we wait for the first byte, and lookPause for more.
	lookMax   = 700 * time.Millisecond
	lookPause = 200 * time.Millisecond
)

// errNoLook says that nothing can be looked at: the address is not one of plain TCP.
var errNoLook = errors.New("node: not an address of plain TCP")

// lookAt connects to a TCP address without a swarm key and without libp2p, says what libp2p says first, and tells from the
// answer who is there. No byte of ours depends on a key. Errors are [errNoLook] and those of dialling.
func lookAt(ctx context.Context, at ma.Multiaddr, psk pnet.PSK) (answer, error) {
	rest, _ := ma.SplitFunc(at, func(c ma.Component) bool {
		code := c.Code()
		return code != ma.P_IP4 && code != ma.P_IP6 && code != ma.P_IP6ZONE && code != ma.P_TCP && code != ma.P_DNS && code != ma.P_DNS4 && code != ma.P_DNS6
	})
	if len(rest) != len(at) || !has(at, ma.P_TCP) {
		return silent, errNoLook
	}
	network, addr, err := manet.DialArgs(at)
	if err != nil {
		return silent, errNoLook
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, network, addr)
	if err != nil {
		return silent, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	return firstBytes(conn, psk), nil
}

// firstBytes says the greeting and judges what comes back.
func firstBytes(conn net.Conn, psk pnet.PSK) answer {
	conn.SetWriteDeadline(time.Now().Add(lookMax))
	conn.Write([]byte(greeting)) // who hangs up instead of reading may have answered before
	got := make([]byte, 0, lookBytesMax)
	conn.SetReadDeadline(time.Now().Add(lookMax))
	for {
		n, err := conn.Read(got[len(got):cap(got)])
		got = got[:len(got)+n]
		switch {
		case len(got) == 0 && (errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed)):
			return silent
		case len(got) == 0 && err != nil:
			return hangsUp
		case err != nil, len(got) == cap(got), bytes.HasPrefix(got, []byte(greeting)):
			return judge(got, psk)
		}
		conn.SetReadDeadline(time.Now().Add(lookPause))
	}
}

// judge tells who says these bytes first. Under a swarm key that is a nonce, and in most implementations the greeting after it;
// then they wait for a nonce of ours.
func judge(got []byte, psk pnet.PSK) answer {
	const withGreeting = nonceBytes + len(greeting)
	switch {
	case bytes.HasPrefix(got, []byte(greeting)):
		return open
	case len(got) != nonceBytes && len(got) != withGreeting, printable(got):
		return foreign
	case len(got) == nonceBytes:
		return perhaps
	case len(psk) == 32:
		clear := make([]byte, len(greeting))
		salsa20.XORKeyStream(clear, got[nonceBytes:], got[:nonceBytes], (*[32]byte)(psk))
		if string(clear) == greeting {
			return ours
		}
	}
	return keyed
}

// printable reports whether bytes are lines of ASCII text. A nonce is not.
func printable(b []byte) bool {
	return !slices.ContainsFunc(b, func(c byte) bool { return (c < ' ' || c > '~') && c != '\r' && c != '\n' && c != '\t' })
}
