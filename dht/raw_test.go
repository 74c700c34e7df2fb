package dht

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

// copier handles a raw stream by sending back what comes.
func copier(o *Overlay) {
	o.HandleStream("copy", func(s *Stream) {
		io.Copy(s, s)
		s.Close()
	})
}

func openRaw(t *testing.T, o *Overlay, to peer.ID, name string) *Stream {
	t.Helper()
	s, err := o.OpenStream(within(t), to, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Reset)
	return s
}

func TestRawStreamCarriesBytesBothWaysAndIsCounted(t *testing.T) {
	a, b := pair(t, copier)
	s := openRaw(t, a, b.Self(), "copy")
	if s.Peer() != b.Self() {
		t.Errorf("the other end is %v", s.Peer())
	}
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // more than any window
	go func() {
		s.Write(data)
		s.CloseWrite()
	}()
	got, err := io.ReadAll(s)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d of %d bytes came back, %v", len(got), len(data), err)
	}
	s.Close()
	s.Reset() // nothing any more
	n := uint64(len(data))
	if st := a.Stats(); st.RawSent != n || st.RawReceived != n || st.StreamsOpened != 1 || st.FramesSent != 0 {
		t.Errorf("counted here: %+v", st)
	}
	if st := b.Stats(); st.RawSent != n || st.RawReceived != n || st.StreamsAccepted != 1 || len(st.StreamsReset) != 0 {
		t.Errorf("counted there: %+v", st)
	}
	// The kept-open streams know nothing of it: no link is left over.
	a.linksMu.RLock()
	defer a.linksMu.RUnlock()
	if len(a.links) != 0 {
		t.Errorf("%d links", len(a.links))
	}
}

func TestRawStreamBeginsWithHellos(t *testing.T) {
	refuse := errors.New("not you")
	handled := make(chan peer.ID, 16)
	setUp := func(o *Overlay) { o.HandleStream("copy", func(s *Stream) { handled <- s.Peer() }) }
	o := newOverlay(t, newHost(t, 1), setUp, WithHello(func() []byte { return []byte("mine") }, func(_ peer.ID, hello []byte) error {
		if string(hello) == "stranger" {
			return refuse
		}
		return nil
	}))
	refused := newOverlay(t, newHost(t, 2), setUp, WithHello(func() []byte { return []byte("stranger") }, nil))
	refused.Learn(infoOf(o.host))
	if _, err := refused.OpenStream(within(t), o.Self(), "copy"); !errors.Is(err, ErrUnreachable) {
		t.Errorf("a refused peer: %v", err)
	}
	if n := o.Stats().StreamsReset[ReasonRefused]; n != 1 {
		t.Errorf("%d refusals counted", n)
	}
	bare := newHost(t, 3)
	for reason, first := range map[Reason][]byte{
		ReasonOverlay:   framed(mustHello([32]byte{1, 2, 3, 4, 9})),
		ReasonMalformed: framed([]byte("GET / HTTP/1.1")),
		ReasonOversize:  {0xff, 0xff, 0xff, 0xff},
	} {
		if err := bare.Connect(within(t), infoOf(o.host)); err != nil {
			t.Fatal(err)
		}
		s, err := bare.NewStream(within(t), o.Self(), o.rawProtocol("copy"))
		if err != nil {
			t.Fatal(err)
		}
		write(t, s, first)
		wasReset(t, s)
		eventually(t, string(reason), func() bool { return o.Stats().StreamsReset[reason] == 1 })
	}
	if len(handled) != 0 {
		t.Errorf("%v was handled without a hello", <-handled)
	}
}

func TestRawStreamsOfOnePeerAreBounded(t *testing.T) {
	served := make(chan struct{}, 2*rawPerPeerMax)
	setUp := func(o *Overlay) {
		o.HandleStream("hold", func(s *Stream) {
			served <- struct{}{}
			io.Copy(io.Discard, s)
		})
	}
	a, b := pair(t, setUp)
	other := newOverlay(t, newHost(t, 3), setUp)
	other.Learn(infoOf(b.host))
	open := []*Stream{}
	for range rawPerPeerMax {
		open = append(open, openRaw(t, a, b.Self(), "hold"))
		<-served
	}
	if _, err := a.OpenStream(within(t), b.Self(), "hold"); !errors.Is(err, ErrUnreachable) {
		t.Errorf("stream %d: %v", rawPerPeerMax+1, err)
	}
	if n := b.Stats().StreamsReset[ReasonStreams]; n != 1 {
		t.Errorf("%d counted", n)
	}
	openRaw(t, other, b.Self(), "hold") // another peer's are its own
	open[0].Reset()
	eventually(t, "room for another", func() bool {
		s, err := a.OpenStream(within(t), b.Self(), "hold")
		if err == nil {
			t.Cleanup(s.Reset)
		}
		return err == nil
	})
	// All together.
	r := &rawService{peers: make(map[peer.ID]int)}
	for i := range rawTotalMax {
		if !r.enter(peer.ID([]byte{byte(i / rawPerPeerMax)})) {
			t.Fatalf("stream %d of %d had no room", i+1, rawTotalMax)
		}
	}
	if r.enter("other") {
		t.Error("one too many was let in")
	}
	r.leave(peer.ID([]byte{0}))
	if !r.enter("other") {
		t.Error("no room after one had gone")
	}
}

func TestRawStreamThatStallsEndsAtItsDeadline(t *testing.T) {
	silent := make(chan struct{})
	a, b := pair(t, func(o *Overlay) { o.HandleStream("silent", func(s *Stream) { <-silent }) })
	defer close(silent)
	s := openRaw(t, a, b.Self(), "silent")
	s.SetReadDeadline(time.Now().Add(time.Millisecond))
	if _, err := s.Read(make([]byte, 1)); !Stalled(err) {
		t.Errorf("read: %v", err)
	}
	s.SetWriteDeadline(time.Now().Add(time.Millisecond))
	if _, err := s.Write(make([]byte, 32<<20)); !Stalled(err) { // more than the window
		t.Errorf("write: %v", err)
	}
	if Stalled(io.EOF) {
		t.Error("an end was taken for a stall")
	}
}

func TestRawStreamsEndWithTheOverlay(t *testing.T) {
	ended := make(chan error, 1)
	in := make(chan struct{})
	a, b := pair(t, func(o *Overlay) {
		o.HandleStream("hold", func(s *Stream) {
			close(in)
			_, err := s.Read(make([]byte, 1))
			ended <- err
		})
	})
	s := openRaw(t, a, b.Self(), "hold")
	<-in
	b.Close() // waits for the handler
	if len(ended) != 1 || <-ended == nil {
		t.Error("the handler was not waited for, or read something")
	}
	var reset *network.StreamError
	if _, err := s.Read(make([]byte, 1)); err == nil || errors.As(err, &reset) && !reset.Remote {
		t.Errorf("the other end: %v", err)
	}
	a.Close()
	if _, err := a.OpenStream(within(t), b.Self(), "hold"); !errors.Is(err, ErrClosed) {
		t.Errorf("open after Close: %v", err)
	}
}

func TestRawStreamErrorsSayWhatFailed(t *testing.T) {
	a, b := pair(t, copier)
	if _, err := a.OpenStream(within(t), b.Self(), "nobody"); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "stream nobody") {
		t.Errorf("no such stream: %v", err)
	}
	if _, err := a.OpenStream(within(t), b.Self(), ""); !errors.Is(err, ErrService) {
		t.Errorf("no name: %v", err)
	}
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if _, err := a.OpenStream(ctx, b.Self(), "copy"); !errors.Is(err, cause) {
		t.Errorf("under an ended context: %v", err)
	}
	// A handler that returns without a word resets.
	s := openRaw(t, a, b.Self(), "copy")
	s.Misbehaved("test", "on purpose")
	if n := a.Stats().StreamsReset["test"]; n != 1 {
		t.Errorf("misbehaviour counted %d times", n)
	}
	for name, mistake := range map[string]func(){
		"twice": func() { o, _ := New(newHost(t, 9), WithOverlayID(testOverlay)); defer o.Close(); copier(o); copier(o) },
		"late":  func() { a.HandleStream("new", func(*Stream) {}) },
		"no name": func() {
			o, _ := New(newHost(t, 9), WithOverlayID(testOverlay))
			defer o.Close()
			o.HandleStream("", nil)
		},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			mistake()
		}()
	}
}
