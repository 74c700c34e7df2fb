package dht

import (
	"bufio"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/encoding/protowire"

	"latchkey/dht/keyspace"
)

// start names the nth start of the store with which tests run.
func start(count, nonce uint64) Boot {
	return Boot{Store: [16]byte{0xaa, 1}, Count: count, Nonce: nonce}
}

// judged is an overlay with what it was told.
type judged struct {
	*Overlay
	alarms  chan Alarm
	accused chan peer.ID
}

func newJudged(t *testing.T, h host.Host, opts ...Option) judged {
	t.Helper()
	j := judged{alarms: make(chan Alarm, 64), accused: make(chan peer.ID, 64)}
	j.Overlay = newOverlay(t, h, func(o *Overlay) {
		o.OnAlarm(func(a Alarm) { j.alarms <- a })
		o.OnAccused(func(by peer.ID) {
			select {
			case j.accused <- by:
			default:
			}
		})
	}, opts...)
	return j
}

// echoes asks another for an echo.
func (j judged) echoes(t *testing.T, of peer.ID) error {
	t.Helper()
	_, err := j.Call(within(t), of, keyspace.Key{}, "echo", []byte("hello"))
	return err
}

// hears expects something to come.
func hears[T any](t *testing.T, what string, c chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-within(t).Done():
		t.Fatalf("never came: %s", what)
	}
	return v
}

// Two processes run with one directory's identity and store.
func TestTwoStartsOfOneStoreAreRefused(t *testing.T) {
	suspected := make(chan bool, 64)
	p := newJudged(t, newHost(t, 1))
	watcher := newOverlay(t, newHost(t, 3), func(o *Overlay) { o.OnSuspect(func(_ peer.ID, s bool) { suspected <- s }) })
	original := newJudged(t, newHost(t, 2), WithBoot(start(4, 77)))
	twin := newJudged(t, newHost(t, 2), WithBoot(start(6, 78)))
	id := original.Self()
	for _, j := range []judged{original, twin} {
		j.Learn(infoOf(p.host))
		j.Learn(infoOf(watcher.host))
	}
	watcher.Watch(id, true)
	talk := func(j judged) { // as a member of groups does
		for _, o := range []peer.ID{p.Self(), watcher.Self()} {
			j.Go(o, keyspace.Key{}, "echo", nil, time.Second, func([]byte, error) {})
		}
	}
	if err := original.echoes(t, p.Self()); err != nil {
		t.Fatal(err)
	}
	if err := twin.echoes(t, p.Self()); err != nil {
		t.Fatalf("a later start alone is nothing unusual: %v", err)
	}
	eventually(t, "the original is heard again, and both are refused", func() bool {
		talk(original)
		return p.Refuses(id, start(0, 0).Store) && p.refused(id)
	})
	if a := hears(t, "alarm", p.alarms); a.Peer != id || a.Other != "" || a.Store != start(0, 0).Store || !strings.Contains(a.String(), id.String()) ||
		!strings.Contains(a.String(), "--restored") {
		t.Errorf("%+v: %s", a, a)
	}
	if by := hears(t, "accusation of the original", original.accused); by != p.Self() && by != watcher.Self() {
		t.Errorf("accused by %v", by)
	}
	eventually(t, "accusation of the twin", func() bool {
		talk(twin)
		return len(twin.accused) > 0
	})
	for _, j := range []judged{original, twin} {
		if err := j.echoes(t, p.Self()); err == nil {
			t.Error("a refused one is answered")
		}
	}
	if err := p.echoes(t, id); err == nil {
		t.Error("a refused one is called")
	}
	eventually(t, "suspicion", func() bool {
		talk(original)
		talk(twin)
		return watcher.refused(id)
	})
	for !hears(t, "suspicion", suspected) {
	}
	if n := len(p.alarms); n > 0 || p.Stats().Alarms != 1 || len(p.Alarms()) != 1 {
		t.Errorf("%d more alarms, %d counted, %d kept", n, p.Stats().Alarms, len(p.Alarms()))
	}

	// Both stop, and one comes back with a store of its own.
	original.Close()
	twin.Close()
	back := newJudged(t, newHost(t, 2), WithBoot(Boot{Store: [16]byte{0xbb}, Count: 1, Nonce: 5}))
	back.Learn(infoOf(p.host))
	eventually(t, "an answer", func() bool { return back.echoes(t, p.Self()) == nil })
	if p.refused(id) || !p.Refuses(id, start(0, 0).Store) {
		t.Error("the peer is refused with its new store, or not with its old one")
	}
}

// crash ends a peer as a kill does: nobody hears a word of it any more.
func crash(j judged) {
	j.host.Close()
	j.Close()
}

func TestRestartsAreNotAlarming(t *testing.T) {
	p := newJudged(t, newHost(t, 1))
	var id peer.ID
	for i := range uint64(20) {
		h := newHost(t, 2)
		j := newJudged(t, h, WithBoot(start(i+1, 1000-i)))
		id = j.Self()
		j.Learn(infoOf(p.host))
		p.Learn(infoOf(h))
		p.Watch(id, true)
		eventually(t, "answers both ways", func() bool { return j.echoes(t, p.Self()) == nil && p.echoes(t, id) == nil })
		crash(j)
	}
	if s := p.Stats(); s.Alarms > 0 || p.refused(id) {
		t.Errorf("%d alarms, refused %v", s.Alarms, p.refused(id))
	}
}

// says opens a stream from h and says a hello by it. Nothing else is heard of h.
func says(t *testing.T, h host.Host, to *Overlay, b Boot) network.Stream {
	t.Helper()
	h.Peerstore().AddAddrs(to.Self(), to.host.Addrs(), time.Hour)
	s, err := h.NewStream(within(t), to.Self(), ControlProtocol(testOverlay))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Reset() })
	body, err := encodeHello(testOverlay, hello{session: newSession(), boot: b})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write(append(protowire.AppendVarint(nil, uint64(len(body))), body...)); err != nil {
		t.Fatal(err)
	}
	return s
}

// What a process said before it ended arrives after the next one has been heard: it is not used, and accuses nobody. Whoever
// answers is another matter.
func TestTheLateHelloOfAFormerStartProvesNothing(t *testing.T) {
	p := newJudged(t, newHost(t, 1))
	old := newHost(t, 2)
	now := newJudged(t, newHost(t, 2), WithBoot(start(5, 50)))
	now.Learn(infoOf(p.host))
	if err := now.echoes(t, p.Self()); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		s := says(t, old, p.Overlay, start(4, 40))
		_, err := readFrame(bufio.NewReader(s), helloFrameBytesMax, nil)
		var reset *network.StreamError
		if !errors.As(err, &reset) || reset.ErrorCode != network.StreamSupplanted {
			t.Fatalf("the late hello: %v", err)
		}
	}
	eventually(t, "end of the question", func() bool {
		p.linksMu.RLock()
		defer p.linksMu.RUnlock()
		l := p.links[now.Self()]
		return l != nil && !l.asking.Load()
	})
	if err := now.echoes(t, p.Self()); err != nil {
		t.Errorf("the one that runs: %v", err)
	}
	if n := p.Stats().StreamsReset[ReasonFormer]; p.Stats().Alarms > 0 || p.refused(now.Self()) || n != 3 {
		t.Errorf("%d alarms, refused %v, %d late hellos counted", p.Stats().Alarms, p.refused(now.Self()), n)
	}
	// It lives after all.
	newJudged(t, old, WithBoot(start(4, 40)))
	says(t, old, p.Overlay, start(4, 40))
	if a := hears(t, "alarm", p.alarms); a.Peer != now.Self() {
		t.Errorf("%+v", a)
	}
}

// A count has one nonce, and two are proof enough, whenever they were said.
func TestOneCountWithTwoNoncesIsRefusedAtOnce(t *testing.T) {
	p := newJudged(t, newHost(t, 1))
	says(t, newHost(t, 2), p.Overlay, start(5, 1))
	second := newHost(t, 2)
	eventually(t, "first hello", func() bool { return p.Stats().StreamsAccepted == 1 })
	s := says(t, second, p.Overlay, start(5, 2))
	_, err := readFrame(bufio.NewReader(s), helloFrameBytesMax, nil)
	var reset *network.StreamError
	if !errors.As(err, &reset) || reset.ErrorCode != streamTwin {
		t.Errorf("the second hello: %v", err)
	}
	hears(t, "alarm", p.alarms)
}

// The store alone was copied. Both are named, and neither is refused: else anybody could expel a member by claiming its store.
func TestAStoreUnderTwoIdentitiesIsAlarmingAndRefusesNobody(t *testing.T) {
	p := newJudged(t, newHost(t, 1))
	a, b := newJudged(t, newHost(t, 2), WithBoot(start(4, 1))), newJudged(t, newHost(t, 3), WithBoot(start(9, 2)))
	for _, j := range []judged{a, b} {
		j.Learn(infoOf(p.host))
		p.Watch(j.Self(), true) // who shares a group is watched
		if err := j.echoes(t, p.Self()); err != nil {
			t.Fatal(err)
		}
	}
	got := hears(t, "alarm", p.alarms)
	if got.Peer == got.Other || !strings.Contains(got.String(), a.Self().String()) || !strings.Contains(got.String(), b.Self().String()) {
		t.Errorf("%+v: %s", got, got)
	}
	for _, j := range []judged{a, b} {
		if err := j.echoes(t, p.Self()); err != nil || p.refused(j.Self()) || p.Refuses(j.Self(), start(0, 0).Store) {
			t.Errorf("%v is refused: %v, %v", j.Self(), p.refused(j.Self()), err)
		}
	}

	// Our own store at another peer.
	c := newJudged(t, newHost(t, 4), WithBoot(start(2, 3)))
	a.Learn(infoOf(c.host))
	if err := c.Overlay.host.Connect(within(t), infoOf(a.host)); err != nil {
		t.Fatal(err)
	}
	if err := c.echoes(t, a.Self()); err != nil {
		t.Fatal(err)
	}
	for _, j := range []judged{a, c} {
		if got := hears(t, "alarm about our own store", j.alarms); got.Peer != j.Self() && got.Other != j.Self() {
			t.Errorf("%+v", got)
		}
	}
}

func TestAlarmsThatAreKeptAreBounded(t *testing.T) {
	var b boots
	for i := range alarmsMax + 1 {
		for n := range 2 {
			if first := b.keep(Alarm{Peer: peer.ID(strings.Repeat("x", i+1))}); first != (n == 0) {
				t.Errorf("alarm %d of subject %d: first %v", n, i, first)
			}
		}
	}
	if len(b.alarms) != alarmsMax || len(b.alarms[0].Peer) != 2 {
		t.Errorf("%d alarms are kept, the first about %q", len(b.alarms), b.alarms[0].Peer)
	}
}

func TestABadBootIsNoOption(t *testing.T) {
	h := newHost(t, 1)
	for _, b := range []Boot{{Count: 1, Nonce: 1}, {Store: [16]byte{1}, Nonce: 1}, {Store: [16]byte{1}, Count: 1}} {
		if _, err := New(h, WithOverlayID(testOverlay), WithBoot(b)); !errors.Is(err, ErrOption) {
			t.Errorf("%+v: %v", b, err)
		}
	}
	o := newOverlay(t, h, nil)
	for name, register := range map[string]func(){"OnAlarm": func() { o.OnAlarm(nil) }, "OnAccused": func() { o.OnAccused(nil) }} {
		var paniced atomic.Bool
		func() {
			defer func() { paniced.Store(recover() != nil) }()
			register()
		}()
		if !paniced.Load() {
			t.Errorf("%s after Start", name)
		}
	}
}
