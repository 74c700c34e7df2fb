package dht

import (
	"bufio"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/encoding/protowire"

	"latchkey/dht/keyspace"
	"latchkey/dht/pb"
)

// framed puts the length in front.
func framed(body []byte) []byte {
	return append(protowire.AppendVarint(nil, uint64(len(body))), body...)
}

// stranger opens a raw stream to o from a host that is no overlay, and says hello if asked.
func stranger(t *testing.T, h host.Host, o *Overlay, class Class, hello bool) network.Stream {
	t.Helper()
	if err := h.Connect(within(t), infoOf(o.host)); err != nil {
		t.Fatal(err)
	}
	s, err := h.NewStream(within(t), o.Self(), o.protocols[class])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Reset() })
	if hello {
		write(t, s, framed(mustHello(testOverlay)))
		body, err := readFrame(bufio.NewReaderSize(s, 16), helloFrameBytesMax, nil)
		if err != nil {
			t.Fatalf("no hello came back: %v", err)
		}
		if _, err := decodeHello(body, testOverlay); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func write(t *testing.T, s network.Stream, b []byte) {
	t.Helper()
	if _, err := s.Write(b); err != nil {
		t.Fatal(err)
	}
}

// wasReset waits for the other side to reset s.
func wasReset(t *testing.T, s network.Stream) {
	t.Helper()
	s.SetReadDeadline(time.Now().Add(waitMax))
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, network.ErrReset) {
		t.Errorf("not reset: %v", err)
	}
}

func TestBadBytesResetTheStreamAndNothingElse(t *testing.T) {
	served := make(chan string, 64)
	setUp := func(o *Overlay) { o.Handle("note", func(r *Request) { served <- string(r.Data) }) }
	o, healthy := pair(t, setUp)
	h := newHost(t, 3)
	call := func() {
		t.Helper()
		if _, err := healthy.Call(within(t), o.Self(), keyspace.Key{}, "echo", []byte("still here")); err != nil {
			t.Fatal(err)
		}
	}
	call()

	type bad struct {
		name   string
		class  Class
		hello  bool
		bytes  []byte
		finish bool // close our writing side afterwards
		reason Reason
	}
	cases := []bad{
		{"items before hello", Control, false, framed(frameOf(&pb.Item{Kind: 1, Service: "note"})), false, ReasonNoHello},
		{"garbage before hello", Control, false, framed([]byte("GET / HTTP/1.1")), false, ReasonMalformed},
		{"oversize hello", Control, false, protowire.AppendVarint(nil, helloFrameBytesMax+1), false, ReasonOversize},
		{"hello cut short", Control, false, framed(mustHello(testOverlay))[:9], true, ReasonTruncated},
		{"another overlay", Control, false, framed(mustHello([32]byte{1, 2, 3, 4, 9})), false, ReasonOverlay},
		{"second hello", Control, true, framed(mustHello(testOverlay)), false, ReasonSecondHello},
		{"second hello on bulk", Bulk, true, framed(mustHello(testOverlay)), false, ReasonSecondHello},
		{"oversize on control", Control, true, protowire.AppendVarint(nil, controlFrameBytesMax+1), false, ReasonOversize},
		{"oversize on bulk", Bulk, true, protowire.AppendVarint(nil, bulkFrameBytesMax+1), false, ReasonOversize},
		{"cut inside a frame", Control, true, framed(frameOf(&pb.Item{Kind: 1, Service: "note"}))[:5], true, ReasonTruncated},
		{"a bad item behind a good one", Control, true, framed(frameOf(&pb.Item{Kind: 1, Service: "note", Payload: []byte("must not be served")}, &pb.Item{Kind: 9})), false, ReasonKind},
	}
	for _, c := range badFrames {
		cases = append(cases, bad{c.name, c.class, true, framed(c.body), false, c.reason})
	}
	for _, c := range cases {
		before := o.Stats().StreamsReset[c.reason]
		s := stranger(t, h, o, c.class, c.hello)
		write(t, s, c.bytes)
		if c.finish {
			s.CloseWrite()
		}
		wasReset(t, s)
		eventually(t, fmt.Sprintf("%s: counted as %q once", c.name, c.reason), func() bool {
			return o.Stats().StreamsReset[c.reason] == before+1
		})
		call()
	}
	total := uint64(0)
	for _, n := range o.Stats().StreamsReset {
		total += n
	}
	if total != uint64(len(cases)) {
		t.Errorf("%d resets counted for %d bad streams: %v", total, len(cases), o.Stats().StreamsReset)
	}
	if st := healthy.Stats(); st.StreamsOpened != 1 || len(st.StreamsReset) != 0 {
		t.Errorf("the healthy peer noticed: %d streams opened, resets %v", st.StreamsOpened, st.StreamsReset)
	}
	if len(served) != 0 {
		t.Errorf("%q was served out of a bad frame", <-served)
	}
}

func TestSilentStreamIsGivenUp(t *testing.T) {
	o, err := New(newHost(t, 1), WithOverlayID(testOverlay))
	if err != nil {
		t.Fatal(err)
	}
	o.hello = 20 * time.Millisecond
	if err := o.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.Close() })
	s := stranger(t, newHost(t, 2), o, Control, false)
	write(t, s, []byte{200}) // the first byte makes the stream known to the other side
	wasReset(t, s)
	eventually(t, "counted", func() bool { return o.Stats().StreamsReset[ReasonNoHello] == 1 })
}

func TestStreamsWithoutHelloAreBounded(t *testing.T) {
	o := newOverlay(t, newHost(t, 1), nil)
	h := newHost(t, 2)
	for range greetedMax {
		write(t, stranger(t, h, o, Control, false), []byte{200})
	}
	eventually(t, "all waiting for their hello", func() bool { return o.link(h.ID()).greeted.Load() == greetedMax })
	s := stranger(t, h, o, Control, false)
	write(t, s, []byte{200})
	wasReset(t, s)
	eventually(t, "counted", func() bool { return o.Stats().StreamsReset[ReasonStreams] == 1 })
}

func TestPeerThatReadsNothingIsGivenUp(t *testing.T) {
	o, err := New(newHost(t, 1), WithOverlayID(testOverlay))
	if err != nil {
		t.Fatal(err)
	}
	o.stall = 50 * time.Millisecond
	if err := o.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.Close() })
	h := newHost(t, 2)
	stranger(t, h, o, Control, true)
	eventually(t, "the stream is given up", func() bool {
		if err := o.Send(h.ID(), keyspace.Key{}, "note", make([]byte, 100<<10)); err != nil && !errors.Is(err, ErrOutboxFull) {
			t.Log(err)
		}
		return o.Stats().StreamsReset[ReasonStalled] == 1
	})
}

func TestMisbehavedResetsAndCounts(t *testing.T) {
	a, b := pair(t, func(o *Overlay) {
		o.Handle("strict", func(r *Request) { r.Misbehaved("speaks for another") })
	})
	_, err := a.Call(within(t), b.Self(), keyspace.Key{}, "strict", []byte("x"))
	if !errors.Is(err, ErrLinkLost) {
		t.Errorf("the call of a misbehaving peer: %v", err)
	}
	if n := b.Stats().StreamsReset["speaks for another"]; n != 1 {
		t.Errorf("counted %d times", n)
	}
	if reply, err := a.Call(within(t), b.Self(), keyspace.Key{}, "echo", []byte("again")); err != nil || string(reply) != "again" {
		t.Errorf("a later call: %q, %v", reply, err)
	}
}

func TestUnknownServiceIsAnsweredAndCounted(t *testing.T) {
	a, b := pair(t, nil)
	if _, err := a.Call(within(t), b.Self(), keyspace.Key{}, "from the future", nil); !errors.Is(err, ErrUnknownService) {
		t.Errorf("a request: %v", err)
	}
	if err := a.Send(b.Self(), keyspace.Key{}, "from the future", nil); err != nil {
		t.Error(err)
	}
	eventually(t, "both counted", func() bool { return b.Stats().UnknownService == 2 })
	if _, err := a.Call(within(t), b.Self(), keyspace.Key{}, "echo", nil); err != nil {
		t.Error(err)
	}
	if st := a.Stats(); st.StreamsOpened != 1 {
		t.Errorf("%d streams: the first should have stayed", st.StreamsOpened)
	}
	if n := b.link(a.Self()).serving.Load(); n != 0 {
		t.Errorf("%d requests still in service", n)
	}
}

func TestHelloCanRefuseAPeer(t *testing.T) {
	refused := errors.New("store id of another life")
	seen := make(chan string, 4)
	a := newOverlay(t, newHost(t, 1), nil, WithHello(func() []byte { return []byte("from a") }, nil))
	b := newOverlay(t, newHost(t, 2), nil, WithHello(nil, func(from peer.ID, hello []byte) error {
		seen <- string(hello)
		if from == a.Self() {
			return refused
		}
		return nil
	}))
	a.Learn(infoOf(b.host))
	b.Learn(infoOf(a.host))
	if _, err := a.Call(within(t), b.Self(), keyspace.Key{}, "echo", nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("the refused peer's call: %v", err)
	}
	if hello := <-seen; hello != "from a" {
		t.Errorf("the hello was %q", hello)
	}
	if n := b.Stats().StreamsReset[ReasonRefused]; n != 1 {
		t.Errorf("counted %d times", n)
	}
	if _, err := b.Call(within(t), a.Self(), keyspace.Key{}, "echo", nil); !errors.Is(err, ErrUnreachable) || !errorHas(err, refused.Error()) {
		t.Errorf("the refusing peer's call: %v", err)
	}
}

// A link is not forgotten while a stream is greeted on it: the stream would be reset though its hello is good.
func TestALinkIsKeptWhileAStreamIsGreeted(t *testing.T) {
	o, _ := pair(t, func(*Overlay) {})
	h := newHost(t, 3)
	s := stranger(t, h, o, Control, false)
	write(t, s, framed(mustHello(testOverlay))[:1])
	eventually(t, "its hello is awaited", func() bool { return o.link(h.ID()).greeted.Load() == 1 })
	l := o.link(h.ID())
	o.forget(l) // as when the last stream before it ends
	if o.link(h.ID()) != l {
		t.Error("forgotten")
	}
	write(t, s, framed(mustHello(testOverlay))[1:])
	if _, err := readFrame(bufio.NewReaderSize(s, 16), helloFrameBytesMax, nil); err != nil {
		t.Fatalf("no hello came back: %v", err)
	}
	eventually(t, "the stream is in use, and greeted no more", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.streams == 1 && l.greeted.Load() == 0
	})
	s.Reset()
	eventually(t, "the link of a peer without streams is forgotten", func() bool {
		o.linksMu.RLock()
		defer o.linksMu.RUnlock()
		return o.links[h.ID()] == nil
	})
}
