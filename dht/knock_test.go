package dht

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"latchkey/dht/keyspace"
	"latchkey/testnet/wire"
)

// relay stands between a peer and whoever dials it at the relay's address.
type relay struct {
	addr ma.Multiaddr

	mu    sync.Mutex
	mute  chan struct{} // closed when what it carries falls silent, for ever
	conns []net.Conn
}

// relayTo returns a relay to a host.
func relayTo(t *testing.T, h host.Host) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{mute: make(chan struct{})}
	if r.addr, err = manet.FromNetAddr(l.Addr()); err != nil {
		t.Fatal(err)
	}
	_, to, err := manet.DialArgs(h.Addrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	var carrying sync.WaitGroup
	carrying.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			d, err := net.Dial("tcp", to)
			if err != nil {
				c.Close()
				continue
			}
			r.mu.Lock()
			r.conns = append(r.conns, c, d)
			mute := r.mute
			r.mu.Unlock()
			carrying.Go(func() { carry(c, d, mute) })
			carrying.Go(func() { carry(d, c, mute) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		r.mu.Lock()
		for _, c := range r.conns {
			c.Close()
		}
		r.mu.Unlock()
		carrying.Wait()
	})
	return r
}

// carry carries what comes from one end to the other, until it is mute: then what comes is lost.
func carry(to, from net.Conn, mute chan struct{}) {
	defer to.Close()
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		select {
		case <-mute:
			_, _ = io.Copy(io.Discard, from)
			return
		default:
		}
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
	}
}

// hush silences the connections that it carries. New ones are carried.
func (r *relay) hush() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.mute)
	r.mute = make(chan struct{})
}

// A connection stays mute after a cut, as the kernel waits ever longer between its attempts, though the network is whole again: the peer
// is reached beside it, and the connection made anew. Without that it would stay silent until libp2p gives it up.
func TestAMuteConnectionIsMadeAnew(t *testing.T) {
	t.Parallel()
	ha, hb := newHost(t, 1), newHost(t, 2)
	changes := make(chan bool, 64)
	a := newOverlay(t, ha, func(o *Overlay) { o.OnSuspect(func(_ peer.ID, suspected bool) { changes <- suspected }) })
	b := newOverlay(t, hb, nil)
	r := relayTo(t, hb)
	a.Learn(peer.AddrInfo{ID: hb.ID(), Addrs: []ma.Multiaddr{r.addr}})
	ctx := within(t)
	a.Watch(b.Self(), true)
	echo := func() error { _, err := a.Call(ctx, b.Self(), keyspace.Key{}, "echo", nil); return err }
	eventually(t, "it answers", func() bool { return echo() == nil && a.host.Network().Connectedness(b.Self()) == network.Connected })
	for len(changes) > 0 {
		<-changes
	}
	r.hush()
	for _, want := range []bool{true, false} {
		select {
		case got := <-changes:
			if got != want {
				t.Fatalf("told of suspected %v, not %v", got, want)
			}
		case <-ctx.Done():
			t.Fatalf("never told of suspected %v", want)
		}
	}
	if err := echo(); err != nil {
		t.Error(err)
	}
	if n := a.Stats().Renewed; n != 1 {
		t.Errorf("renewed %d times", n)
	}
}

// One that is silent on every connection is left alone ever longer, so that a suspicion of it lasts. What was long ago counts for nothing.
func TestRenewalsOfAPeerGrowRare(t *testing.T) {
	var k knocks
	now := time.Now()
	is := func(want time.Duration) {
		t.Helper()
		if got := k.wait("p", now); got != want {
			t.Errorf("left alone for %v, not %v", got, want)
		}
	}
	is(knockAfter)
	for _, want := range []time.Duration{renewPauseMin, 2 * renewPauseMin, 4 * renewPauseMin, 8 * renewPauseMin, 16 * renewPauseMin, renewPauseMax, renewPauseMax} {
		k.renew("p", now)
		is(want)
		now = now.Add(want - 2*knockAfter)
		is(2 * knockAfter)
		now = now.Add(3 * knockAfter)
		is(knockAfter)
	}
	now = now.Add(renewPauseMax)
	k.renew("p", now)
	is(renewPauseMin)
	if k.forget("p"); len(k.renewed) > 0 {
		t.Error("a peer that is not watched is remembered")
	}
}

// Who answers where it is asked keeps its connections, whatever its overlay does; who answers nowhere, as one that is frozen or cut off, too.
func TestOnlyMuteConnectionsAreMadeAnew(t *testing.T) {
	t.Parallel()
	ctx := within(t)
	conns := func(a, b *Overlay) []network.Conn {
		if _, err := a.Call(ctx, b.Self(), keyspace.Key{}, "echo", nil); err != nil {
			t.Fatal(err)
		}
		return a.host.Network().ConnsToPeer(b.Self())
	}
	t.Run("it answers", func(t *testing.T) {
		t.Parallel()
		a, b := pair(t, nil)
		if alive, reached := a.mute(ctx, b.Self(), conns(a, b)); !alive || reached {
			t.Errorf("alive %v, reached %v", alive, reached)
		}
	})
	t.Run("its overlay is over", func(t *testing.T) {
		t.Parallel()
		a, b := pair(t, nil)
		list := conns(a, b)
		b.Close()
		if alive, reached := a.mute(ctx, b.Self(), list); !alive || reached {
			t.Errorf("alive %v, reached %v", alive, reached)
		}
	})
	t.Run("cut off", func(t *testing.T) {
		t.Parallel()
		ha, wa := wiredHost(t, 1)
		hb, wb := wiredHost(t, 2)
		a, b := newOverlay(t, ha, nil), newOverlay(t, hb, nil)
		a.Learn(infoOf(hb))
		list := conns(a, b)
		hosts, wires := [2]host.Host{ha, hb}, [2]*wire.Wire{wa, wb}
		cutOff(t, true, hosts, wires)
		if alive, reached := a.mute(ctx, b.Self(), list); alive || reached {
			t.Errorf("alive %v, reached %v", alive, reached)
		}
		cutOff(t, false, hosts, wires)
		if alive, reached := a.mute(ctx, b.Self(), list); !alive || reached {
			t.Errorf("healed: alive %v, reached %v", alive, reached)
		}
	})
	t.Run("mute", func(t *testing.T) {
		t.Parallel()
		a, b := newOverlay(t, newHost(t, 1), nil), newOverlay(t, newHost(t, 2), nil)
		r := relayTo(t, b.host)
		a.Learn(peer.AddrInfo{ID: b.Self(), Addrs: []ma.Multiaddr{r.addr}})
		list := conns(a, b)
		r.hush()
		if alive, reached := a.mute(ctx, b.Self(), list); alive || !reached {
			t.Errorf("alive %v, reached %v", alive, reached)
		}
		over, cancel := context.WithCancel(ctx)
		cancel()
		if alive, reached := a.mute(over, b.Self(), list); alive || reached {
			t.Errorf("heard meanwhile: alive %v, reached %v", alive, reached)
		}
	})
}
