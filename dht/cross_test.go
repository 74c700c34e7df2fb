package dht

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	manet "github.com/multiformats/go-multiaddr/net"

	"latchkey/dht/keyspace"
)

// crossing is an address of b at which the first connections come to nothing after they were taken, as when two peers dial each
// other at once. It counts them all.
func crossing(t *testing.T, b *Overlay, fail int32) (peer.AddrInfo, *atomic.Int32) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	_, target, err := manet.DialArgs(b.host.Addrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	var taken atomic.Int32
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			if taken.Add(1) <= fail {
				in.Read(make([]byte, 1))
				in.Close()
				continue
			}
			out, err := net.Dial("tcp", target)
			if err != nil {
				in.Close()
				continue
			}
			pipe := func(to, from net.Conn) {
				io.Copy(to, from)
				to.Close()
				from.Close()
			}
			go pipe(in, out)
			go pipe(out, in)
		}
	}()
	at, err := manet.FromNetAddr(l.Addr())
	if err != nil {
		t.Fatal(err)
	}
	info := infoOf(b.host)
	info.Addrs = info.Addrs[:0:0]
	info.Addrs = append(info.Addrs, at)
	return info, &taken
}

func TestDialsThatCrossAreTriedAgain(t *testing.T) {
	for _, fail := range []int32{0, openTriesMax - 1, openTriesMax} {
		a, b := newOverlay(t, newHost(t, 1), nil), newOverlay(t, newHost(t, 2), nil)
		info, taken := crossing(t, b, fail)
		a.Learn(info)
		_, err := a.Call(within(t), info.ID, keyspace.Key{}, "echo", nil)
		if want := fail < openTriesMax; want != (err == nil) || !want && !errors.Is(err, ErrUnreachable) {
			t.Errorf("after %d dials that came to nothing: %v", fail, err)
		}
		if n := taken.Load(); n != min(fail+1, openTriesMax) {
			t.Errorf("dialled %d times, %d of them failing", n, fail)
		}
	}
}

func TestRefusedDialIsNotTriedAgain(t *testing.T) {
	a := newOverlay(t, newHost(t, 1), nil)
	h := newHost(t, 2)
	info := infoOf(h)
	h.Close()
	a.Learn(info)
	_, err := a.Call(within(t), info.ID, keyspace.Key{}, "echo", nil)
	if !errors.Is(err, ErrUnreachable) || crossed(err) {
		t.Errorf("got %v", err)
	}
}
