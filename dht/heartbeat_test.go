package dht

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht/detector"
	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/internal/driver"
	"latchkey/testnet/wire"
)

// told is one call of an OnSuspect function.
type told struct {
	p         peer.ID
	suspected bool
	at        time.Duration
}

// bench is drivers in one bubble, whose messages take a millisecond.
type bench struct {
	start time.Time
	ahead atomic.Int64 // of the clocks, as after a suspend

	mu     sync.Mutex
	beats  map[peer.ID]*heartbeats
	frozen map[peer.ID]bool // takes nothing and sends nothing
	heard  map[[2]peer.ID]bool
	told   map[peer.ID][]told
	alarms int
	sent   atomic.Int64
}

func newBench(t *testing.T, names ...peer.ID) *bench {
	t.Helper()
	w := &bench{start: time.Now(), beats: map[peer.ID]*heartbeats{}, frozen: map[peer.ID]bool{}, heard: map[[2]peer.ID]bool{}, told: map[peer.ID][]told{}}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	for i, me := range names {
		b := &heartbeats{
			ended: func(peer.ID) {},
			now: func() automaton.Instant {
				return automaton.Instant(time.Since(w.start) + time.Duration(w.ahead.Load()))
			},
			nonce: uint64(i + 1),
			send:  func(to peer.ID, msg []byte) { w.carry(me, to, msg) },
			heard: func(p peer.ID) bool {
				w.mu.Lock()
				defer w.mu.Unlock()
				was := w.heard[[2]peer.ID{me, p}]
				delete(w.heard, [2]peer.ID{me, p})
				return was
			},
			change: func(p peer.ID, suspected bool, _ time.Duration) {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.told[me] = append(w.told[me], told{p, suspected, time.Since(w.start)})
			},
			alarm: func(peer.ID) {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.alarms++
			},
			box: driver.NewMailbox[detector.Event](heartbeatsMax), watched: make(map[peer.ID]struct{}),
		}
		w.beats[me] = b
		running.Go(func() { b.run(ctx) })
	}
	return w
}

func (w *bench) carry(from, to peer.ID, msg []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent.Add(1)
	if w.frozen[from] || w.frozen[to] {
		return
	}
	time.AfterFunc(time.Millisecond, func() {
		w.mu.Lock()
		frozen := w.frozen[to]
		w.heard[[2]peer.ID{to, from}] = !frozen
		w.mu.Unlock()
		if m, err := decodeHeartbeat(msg); err == nil && !frozen {
			w.beats[to].received(from, m)
		}
	})
}

func (w *bench) freeze(p peer.ID, on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.frozen[p] = on
}

// last returns what p was told last, and how often it was told.
func (w *bench) last(p peer.ID) (told, int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.told[p]); n > 0 {
		return w.told[p][n-1], n
	}
	return told{}, 0
}

func (w *bench) watch(me, p peer.ID, active bool) {
	w.beats[me].box.Put(detector.Watch{Peer: detector.Peer(p), Active: active})
}

func TestTheDriverNoticesWhoStopsAndWhoGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newBench(t, "a", "b", "c")
		w.watch("a", "b", true)
		w.watch("a", "c", false)
		time.Sleep(time.Minute)
		if _, n := w.last("a"); n > 0 {
			t.Fatal("somebody was suspected while all answered")
		}
		w.freeze("b", true)
		w.freeze("c", true)
		frozen := time.Since(w.start)
		time.Sleep(time.Second)
		b, n := w.last("a")
		if n != 1 || b.p != "b" || !b.suspected || b.at-frozen > 600*time.Millisecond {
			t.Errorf("a second after both stopped: told %d times, at last %+v", n, b)
		}
		time.Sleep(1500 * time.Millisecond)
		if c, n := w.last("a"); n != 2 || c.p != "c" || !c.suspected {
			t.Errorf("after two and a half seconds: told %d times, at last %+v", n, c)
		}
		w.freeze("b", false)
		time.Sleep(1100 * time.Millisecond)
		if b, n := w.last("a"); n != 3 || b.p != "b" || b.suspected {
			t.Errorf("b goes on: told %d times, at last %+v", n, b)
		}
		w.beats["a"].box.Put(detector.Unwatch{Peer: "b"})
		w.beats["a"].box.Put(detector.Unwatch{Peer: "c"})
		time.Sleep(time.Second) // what is under way
		before := w.sent.Load()
		time.Sleep(time.Hour)
		if w.sent.Load() != before {
			t.Errorf("%d messages though nobody is watched", w.sent.Load()-before)
		}
	})
}

func TestWhateverComesIsASignOfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newBench(t, "a", "b")
		w.watch("a", "b", true)
		time.Sleep(time.Second)
		w.freeze("b", true) // as to heartbeats
		for range 100 {
			w.mu.Lock()
			w.heard[[2]peer.ID{"a", "b"}] = true
			w.mu.Unlock()
			time.Sleep(300 * time.Millisecond)
		}
		if _, n := w.last("a"); n > 0 {
			t.Error("suspected")
		}
	})
}

func TestTheDriverIsToldOfLostConnectionsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newBench(t, "a", "b")
		w.watch("a", "b", true)
		time.Sleep(10*time.Second + 10*time.Millisecond)
		w.freeze("b", true)
		w.mu.Lock()
		w.heard[[2]peer.ID{"a", "b"}] = true // came just before
		w.mu.Unlock()
		lost := time.Since(w.start)
		w.beats["a"].link("b", false)
		time.Sleep(time.Second)
		if b, n := w.last("a"); n != 1 || !b.suspected || b.at != lost {
			t.Errorf("told %d times, at last %+v, lost at %v", n, b, lost)
		}
		w.beats["a"].link("b", true)
		synctest.Wait()
		if b, _ := w.last("a"); b.suspected {
			t.Error("suspected though connected again")
		}
	})
}

// The clock goes on while the machine sleeps, timers do not.
func TestAMachineThatSleptSuspectsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newBench(t, "a", "b")
		w.watch("a", "b", true)
		for i := range 60 {
			time.Sleep(time.Second + 7*time.Duration(i)*time.Millisecond)
			w.ahead.Add(int64(time.Duration(i) * time.Minute))
		}
		time.Sleep(10 * time.Second)
		if _, n := w.last("a"); n > 0 {
			t.Error("suspected")
		}
		w.freeze("b", true)
		time.Sleep(time.Second)
		if b, _ := w.last("a"); !b.suspected {
			t.Error("a peer that stopped then is not suspected")
		}
	})
}

func TestTheDriverAlarmsOfACopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newBench(t, "a", "b")
		w.watch("a", "b", true)
		for i := range uint64(20) {
			time.Sleep(time.Second)
			w.beats["a"].received("b", heartbeat{nonce: 100 + i%2})
		}
		synctest.Wait()
		if w.alarms == 0 {
			t.Error("no alarm")
		}
	})
}

// wiredHost returns a host on a wire.
func wiredHost(t *testing.T, seed uint64) (host.Host, *wire.Wire) {
	t.Helper()
	var s [ed25519.SeedSize]byte
	binary.BigEndian.PutUint64(s[:], seed)
	key, err := crypto.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed(s[:]))
	if err != nil {
		t.Fatal(err)
	}
	w := wire.New()
	h, err := libp2p.New(libp2p.Identity(key), libp2p.Transport(w.Transport), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableRelay(),
		libp2p.DisableMetrics(), libp2p.ResourceManager(&network.NullResourceManager{}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.Cut()
		h.Close()
	})
	return h, w
}

// cutOff silences what runs between two wired hosts, or lets it go on.
func cutOff(t *testing.T, on bool, hosts [2]host.Host, wires [2]*wire.Wire) {
	t.Helper()
	for i, w := range wires {
		var r wire.Rules
		if on {
			for _, a := range hosts[1-i].Addrs() {
				port, err := a.ValueForProtocol(6) // TCP
				if err != nil {
					t.Fatal(err)
				}
				r.Blocked = append(r.Blocked, "127.0.0.1:"+port)
			}
		}
		if err := w.SetRules(r); err != nil {
			t.Fatal(err)
		}
	}
}

func TestASilentPeerIsSuspectedAndItsCallsFailWhileConnectionsStay(t *testing.T) {
	t.Parallel()
	ha, wa := wiredHost(t, 1)
	hb, wb := wiredHost(t, 2)
	hosts, wires := [2]host.Host{ha, hb}, [2]*wire.Wire{wa, wb}
	changes, ends := make(chan told, 64), make(chan peer.ID, 64)
	setUp := func(o *Overlay) {
		o.Handle("hold", func(*Request) {})
		if o.Self() == ha.ID() {
			o.OnSuspect(func(p peer.ID, suspected bool) { changes <- told{p: p, suspected: suspected} })
			o.OnUnwatch(func(p peer.ID) { ends <- p })
		}
	}
	a, b := newOverlay(t, ha, setUp), newOverlay(t, hb, setUp)
	a.Learn(infoOf(hb))
	b.Learn(infoOf(ha))
	a.Watch(b.Self(), true)
	a.Watch(a.Self(), true) // nothing comes of it
	ctx := within(t)
	if _, err := a.Call(ctx, b.Self(), keyspace.Key{}, "echo", []byte("hello")); err != nil {
		t.Fatal(err)
	}
	var gone atomic.Int32
	for _, h := range hosts {
		h.Network().Notify(&network.NotifyBundle{DisconnectedF: func(network.Network, network.Conn) { gone.Add(1) }})
	}
	expect := func(suspected bool) {
		t.Helper()
		select {
		case got := <-changes:
			if got.p != b.Self() || got.suspected != suspected {
				t.Fatalf("told %+v", got)
			}
		case <-ctx.Done():
			t.Fatalf("never told of suspected %v", suspected)
		}
	}
	for range 3 {
		failed := make(chan error, 1)
		a.Go(b.Self(), keyspace.Key{}, "hold", nil, waitMax, func(_ []byte, err error) { failed <- err })
		cutOff(t, true, hosts, wires)
		start := time.Now()
		expect(true)
		if err := <-failed; !errors.Is(err, ErrSuspected) {
			t.Errorf("the call under way: %v", err)
		}
		t.Logf("suspected after %v", time.Since(start))
		if _, err := a.Call(ctx, b.Self(), keyspace.Key{}, "echo", nil); !errors.Is(err, ErrSuspected) {
			t.Errorf("a call to a silent peer: %v", err)
		}
		// The pause is over: on the same connection, in order.
		cutOff(t, false, hosts, wires)
		start = time.Now()
		expect(false)
		t.Logf("trusted again after %v", time.Since(start))
		if _, err := a.Call(ctx, b.Self(), keyspace.Key{}, "echo", []byte("hello")); err != nil {
			t.Fatal(err)
		}
	}
	if n := gone.Load(); n > 0 {
		t.Errorf("%d connections ended", n)
	}
	if s := a.Stats(); s.Suspicions < 3 {
		t.Errorf("%d suspicions counted", s.Suspicions)
	}

	// Killed, it is noticed by its reset, long before its silence.
	a.Watch(b.Self(), false)
	wb.Cut()
	start := time.Now()
	expect(true)
	took := time.Since(start)
	t.Logf("a killed peer is suspected after %v", took)
	if took > 10*time.Second {
		t.Error("too late")
	}
	if len(ends) > 0 {
		t.Error("told of the end of a watch that goes on")
	}
	a.Unwatch(b.Self())
	select {
	case p := <-ends: // or the suspicion would be believed for ever
		if p != b.Self() {
			t.Errorf("told of the watch of %v", p)
		}
	case <-ctx.Done():
		t.Error("never told that the watch has ended")
	}
}

// A suspicion that nobody takes back keeps calls from a peer for a moment, and not for ever: not when a frame comes between the detector's
// look and the suspicion, after which no further one is noted, and not when the watch ends. A client that called another peer, and so
// ended its watch of this one, had no answer from it again.
func TestASuspicionDoesNotOutliveItsWatch(t *testing.T) {
	t.Parallel()
	a, b := pair(t, nil)
	ctx := within(t)
	call := func() error {
		_, err := a.Call(ctx, b.Self(), keyspace.Key{}, "echo", []byte("hello"))
		return err
	}
	if err := call(); err != nil { // its answer has come since the detector looked
		t.Fatal(err)
	}
	a.suspect(b.Self(), true, time.Second)
	if err := call(); err != nil {
		t.Errorf("a call to a peer that has just been heard: %v", err)
	}
	a.heard(b.Self())
	a.suspect(b.Self(), true, time.Second)
	if err := call(); !errors.Is(err, ErrSuspected) {
		t.Errorf("a call to a suspected peer: %v", err)
	}
	a.Unwatch(b.Self())
	eventually(t, "a call gets through", func() bool { return call() == nil })
}

func TestABadHeartbeatResetsTheStream(t *testing.T) {
	a, b := pair(t, nil)
	good := heartbeat{nonce: 1, at: 2}.encode()
	for _, msg := range [][]byte{nil, good[:heartbeatBytes-1], append(bytes.Clone(good), 0), append([]byte{2}, good[1:]...), heartbeat{at: 3}.encode(),
		heartbeat{nonce: 1, boot: Boot{Store: [16]byte{1}}}.encode(), heartbeat{nonce: 1, boot: Boot{Count: 1}}.encode()} {
		before := b.Stats().StreamsReset[ReasonHeartbeat]
		if err := a.Send(b.Self(), keyspace.Key{}, serviceHeartbeat, msg); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the reset", func() bool { return b.Stats().StreamsReset[ReasonHeartbeat] > before })
		eventually(t, "the loss is noticed", func() bool {
			_, err := a.Call(within(t), b.Self(), keyspace.Key{}, "echo", []byte("hello"))
			return err == nil
		})
	}
	if _, err := a.Call(within(t), b.Self(), keyspace.Key{}, serviceHeartbeat, good); !errors.Is(err, ErrLinkLost) {
		t.Errorf("a heartbeat as a request: %v", err)
	}
}

func FuzzHeartbeat(f *testing.F) {
	f.Add(heartbeat{answer: true, nonce: 1, at: 2}.encode())
	f.Add(heartbeat{nonce: 1, at: 2, boot: Boot{Store: [16]byte{3}, Count: 4, Nonce: 1}}.encode())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := decodeHeartbeat(b); err == nil && !slices.Equal(m.encode(), b) {
			t.Errorf("%x decodes to %+v", b, m)
		}
	})
}
