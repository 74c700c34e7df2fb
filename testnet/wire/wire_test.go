package wire

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"
)

// A server that has refused a body before its end keeps the connection for half a second, so that the client gets the answer, and goleak's
// patience is shorter: whether the test that has one refused comes last is up to the shuffle.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait"))
}

// pair returns a connection on w and its remote end, which is on no wire.
func pair(t testing.TB, w *Wire) (near, far net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err = w.Dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

// A writer that goes on after the cut marks its bytes; none of the marked ones may arrive, and the remote end must see
// a reset rather than an orderly end.
func TestNothingWrittenAfterTheCutArrives(t *testing.T) {
	for range 20 {
		w := New()
		near, far := pair(t, w)
		var cut atomic.Bool
		go func() {
			for end := time.Now().Add(patience); time.Now().Before(end); {
				late := cut.Load()
				b := []byte{'.'}
				if late {
					b[0] = 'X'
				}
				if _, err := near.Write(b); err != nil && late {
					near.Close()
					return
				}
			}
		}()
		first := make([]byte, 1)
		if _, err := io.ReadFull(far, first); err != nil {
			t.Fatal(err)
		}
		w.Cut()
		cut.Store(true)
		far.SetReadDeadline(time.Now().Add(patience))
		got, err := io.ReadAll(far)
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("remote end saw %v, want a reset", err)
		}
		if bytes.ContainsRune(got, 'X') {
			t.Fatal("a byte written after the cut arrived")
		}
	}
}

func TestUnsentBytesVanishAndABlockedWriterIsFreed(t *testing.T) {
	w := New()
	near, far := pair(t, w)
	var accepted atomic.Int64
	done := make(chan error, 1)
	go func() {
		chunk := make([]byte, 64<<10)
		for {
			n, err := near.Write(chunk)
			accepted.Add(int64(n))
			if err != nil {
				done <- err
				return
			}
		}
	}()
	// The remote end reads nothing, so the writer blocks once the kernel's buffers are full.
	for last := int64(-1); last != accepted.Load() || last == 0; time.Sleep(20 * time.Millisecond) {
		last = accepted.Load()
	}
	w.Cut()
	select {
	case err := <-done:
		if err == nil {
			t.Fatal("the blocked write succeeded")
		}
	case <-time.After(patience):
		t.Fatal("the blocked writer is still blocked")
	}
	far.SetReadDeadline(time.Now().Add(patience))
	got, err := io.Copy(io.Discard, far)
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("remote end saw %v, want a reset", err)
	}
	if got >= accepted.Load() {
		t.Fatalf("all %d bytes arrived: what was in flight should be lost", got)
	}
}

func TestACutWireRefusesEverything(t *testing.T) {
	w := New()
	near, far := pair(t, w)
	l, err := w.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	far.Write([]byte("too late to be read"))
	w.Cut()
	w.Cut()
	if _, err := near.Read(make([]byte, 1)); !errors.Is(err, ErrCut) {
		t.Errorf("read after the cut: %v", err)
	}
	if _, err := near.Write([]byte{1}); !errors.Is(err, ErrCut) {
		t.Errorf("write after the cut: %v", err)
	}
	if _, err := w.Dial(t.Context(), "tcp", far.LocalAddr().String()); !errors.Is(err, ErrCut) {
		t.Errorf("dial after the cut: %v", err)
	}
	if _, err := w.Listen("tcp", "127.0.0.1:0"); !errors.Is(err, ErrCut) {
		t.Errorf("listen after the cut: %v", err)
	}
	accepted := make(chan error, 1)
	go func() { _, err := l.Accept(); accepted <- err }()
	select {
	case err := <-accepted:
		t.Errorf("accept after the cut told the dead host: %v", err)
	case <-time.After(20 * time.Millisecond):
		l.Close()
		if err := <-accepted; !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept after cut and close: %v", err)
		}
	}
	if _, err := net.Dial("tcp", l.Addr().String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial to a cut listener: %v, want refused", err)
	}
	if n := w.Conns(); n != 0 {
		t.Errorf("%d connections left", n)
	}
}

// newHost makes a libp2p host on w alone.
func newHost(t testing.TB, w *Wire, key crypto.PrivKey, listen string) host.Host {
	t.Helper()
	opts := []libp2p.Option{libp2p.Transport(w.Transport), libp2p.ListenAddrStrings(listen), libp2p.DisableRelay(),
		libp2p.DisableMetrics(), libp2p.ResourceManager(&network.NullResourceManager{})}
	if key != nil {
		opts = append(opts, libp2p.Identity(key))
	}
	h, err := libp2p.New(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func TestAKilledHostIsNoticedSaysNoGoodbyeAndComesBackOnItsPort(t *testing.T) {
	key, _, err := crypto.GenerateEd25519Key(bytes.NewReader(make([]byte, 64)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	w, wb := New(), New()
	a := newHost(t, w, key, "/ip4/127.0.0.1/tcp/0")
	b := newHost(t, wb, nil, "/ip4/127.0.0.1/tcp/0")
	addr := a.Addrs()[0]

	got, begun := make(chan error, 1), make(chan struct{})
	b.SetStreamHandler("/test", func(s network.Stream) {
		io.ReadFull(s, make([]byte, 5))
		close(begun)
		_, err := io.Copy(io.Discard, s)
		s.Reset()
		got <- err
	})
	sub, err := b.EventBus().Subscribe(new(event.EvtPeerConnectednessChanged))
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	if err := b.Connect(ctx, peer.AddrInfo{ID: a.ID(), Addrs: a.Addrs()}); err != nil {
		t.Fatal(err)
	}
	s, err := a.NewStream(ctx, b.ID(), "/test")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}

	<-begun
	start := time.Now()
	w.Cut()
	for gone := false; !gone; {
		select {
		case ev := <-sub.Out():
			e := ev.(event.EvtPeerConnectednessChanged)
			gone = e.Peer == a.ID() && e.Connectedness == network.NotConnected
		case <-ctx.Done():
			t.Fatal("the kill was never noticed")
		}
	}
	t.Logf("noticed %v after the cut", time.Since(start))
	if err := <-got; err == nil {
		t.Error("the stream ended in an orderly way: a goodbye got out")
	}
	a.Close() // whatever it does reaches nobody
	if _, err := a.NewStream(ctx, b.ID(), "/test"); err == nil {
		t.Error("a dead host opened a stream")
	}

	again := newHost(t, New(), key, addr.String())
	if err := b.Connect(ctx, peer.AddrInfo{ID: again.ID(), Addrs: again.Addrs()}); err != nil {
		t.Fatalf("connect after the restart on %v: %v", addr, err)
	}
	if again.ID() != a.ID() {
		t.Error("identity changed")
	}
}
