package dht

import (
	"errors"
	"sync/atomic"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"latchkey/dht/keyspace"
)

// Whoever is not admitted is turned away at the door, whatever it came for: before it has said a word, with a code that says why, and
// counted. The handlers behind would only find it out later, or never.
func TestWhoIsNotAdmittedIsTurnedAwayAtTheDoor(t *testing.T) {
	host, stranger := newHost(t, 1), newHost(t, 2)
	o := newOverlay(t, host, func(o *Overlay) {
		o.HandleStream("raw", func(*Stream) { t.Error("a handler was called") })
	}, WithAdmission(func(p peer.ID) bool { return p != stranger.ID() }))
	if err := stranger.Connect(within(t), infoOf(host)); err != nil {
		t.Fatal(err)
	}
	doors := []protocol.ID{o.protocols[Control], o.protocols[Bulk], o.rawProtocol("raw"), protocol.ID(o.connTag + "/kad/1.0.0")}
	for i, door := range doors {
		s, err := stranger.NewStream(within(t), host.ID(), door)
		if err == nil { // else the answer to what the stream is for was overtaken
			_, err = s.Read(make([]byte, 1))
		}
		var reset *network.StreamError
		if !errors.As(err, &reset) || !reset.Remote || reset.ErrorCode != network.StreamGated {
			t.Errorf("%s: %v", door, err)
		}
		if n := o.Stats().StreamsReset; n[ReasonRefused] != uint64(i+1) || len(n) != 1 {
			t.Errorf("%s: counted %v", door, n)
		}
	}
}

// Who may not be in the overlay itself serves nobody, itself included, as soon as it knows: neither what is asked from then on, nor what
// was asked before. It goes on when it may again.
func TestWhoIsShutOutSpeaksWithNobody(t *testing.T) {
	var out atomic.Bool
	host := newHost(t, 1)
	held := make(chan *Request, 1)
	a := newOverlay(t, host, func(o *Overlay) {
		o.Handle("hold", func(r *Request) { held <- r })
	}, WithAdmission(func(p peer.ID) bool { return p != host.ID() || !out.Load() }))
	b := newOverlay(t, newHost(t, 2), nil)
	a.Learn(infoOf(b.host))
	b.Learn(infoOf(a.host))
	calls := func(want error) {
		t.Helper()
		for _, c := range []struct {
			from *Overlay
			to   peer.ID
		}{{a, a.Self()}, {a, b.Self()}, {b, a.Self()}} {
			eventually(t, "the call ends as it should", func() bool { // a stream that was reset is noticed at the other end in a moment
				_, err := c.from.Call(within(t), c.to, keyspace.Key{}, "echo", []byte("x"))
				return want == nil && err == nil || want != nil && errors.Is(err, want)
			})
		}
	}
	calls(nil)
	if err := a.WaitPeers(within(t), 1); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := a.Call(within(t), a.Self(), keyspace.Key{}, "hold", nil)
		ended <- err
	}()
	before := <-held
	out.Store(true)
	a.Dismiss(a.Self())
	if err := <-ended; !errors.Is(err, ErrLinkLost) {
		t.Errorf("what was asked before: %v", err)
	}
	before.Reply([]byte("granted"))
	calls(ErrUnreachable)
	if err := a.Send(a.Self(), keyspace.Key{}, "hold", nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("a message to itself: %v", err)
	}
	eventually(t, "it knows nobody", func() bool { // a question that was under way may have been answered after that
		a.Dismiss(a.Self())
		return a.DHT().RoutingTable().Size() == 0
	})
	out.Store(false)
	a.Dismiss(a.Self())
	calls(nil)
	if err := a.WaitPeers(within(t), 1); err != nil { // whom the host was connected to all the time
		t.Error(err)
	}
}
