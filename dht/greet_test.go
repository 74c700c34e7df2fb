package dht

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"latchkey/dht/keyspace"
	"latchkey/dht/pb"
)

// met returns a host that is connected to h.
func met(t *testing.T, seed uint64, h host.Host) host.Host {
	t.Helper()
	g := newHost(t, seed)
	if err := g.Connect(within(t), infoOf(h)); err != nil {
		t.Fatal(err)
	}
	return g
}

func TestGreetMeetsARunningPeerAndLeavesNothing(t *testing.T) {
	o := newOverlay(t, newHost(t, 1), nil)
	if o.protocols[Control] != ControlProtocol(testOverlay) {
		t.Fatalf("the overlay speaks %s, Greet %s", o.protocols[Control], ControlProtocol(testOverlay))
	}
	g := met(t, 2, o.host)
	for n := range 3 {
		if err := Greet(within(t), g, testOverlay, o.Self()); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the greeted peer has accepted one hello more, and keeps nothing of it", func() bool {
			o.linksMu.RLock()
			defer o.linksMu.RUnlock()
			return o.Stats().StreamsAccepted == uint64(n+1) && o.links[g.ID()] == nil
		})
	}
	// The greeted peer speaks to the greeter's overlay afterwards as if nothing had been.
	late := newOverlay(t, g, nil)
	if _, err := late.Call(within(t), o.Self(), keyspace.Key{}, "echo", nil); err != nil {
		t.Error(err)
	}
	if resets := o.Stats().StreamsReset; len(resets) != 0 {
		t.Errorf("%v", resets)
	}
}

func TestGreetSaysWhoRefusedWhat(t *testing.T) {
	picky := newOverlay(t, newHost(t, 1), nil, WithHello(nil, func(peer.ID, []byte) error { return errors.New("not you") }))
	other := testOverlay
	other[31]++ // the same protocol ids
	double := newOverlay(t, newHost(t, 2), nil, WithOverlayID(other))
	next := newHost(t, 3)
	next.SetStreamHandler(ControlProtocol(testOverlay), func(s network.Stream) {
		b, _ := proto.Marshal(&pb.Frame{Hello: &pb.Hello{Version: protocolVersion + 1, Overlay: testOverlay[:], Session: 1}})
		s.Write(framed(b))
	})
	g := newHost(t, 4)
	for _, c := range []struct {
		at     host.Host
		reason Reason
		ours   bool
	}{
		{picky.host, ReasonRefused, true}, {double.host, ReasonVersion, true}, {next, ReasonVersion, false},
	} {
		if err := g.Connect(within(t), infoOf(c.at)); err != nil {
			t.Fatal(err)
		}
		err := Greet(within(t), g, testOverlay, c.at.ID())
		var hello *HelloError
		if !errors.As(err, &hello) || hello.Peer != c.at.ID() || hello.Reason != c.reason || hello.Ours != c.ours {
			t.Errorf("%v; want %q, ours %v", err, c.reason, c.ours)
		}
	}
}

func TestGreetDoesNotHang(t *testing.T) {
	mute := newHost(t, 1)
	got := make(chan struct{}, 1)
	mute.SetStreamHandler(ControlProtocol(testOverlay), func(network.Stream) { got <- struct{}{} })
	g := met(t, 2, mute)
	ctx, cancel := context.WithCancelCause(within(t))
	enough := errors.New("enough")
	go func() { <-got; cancel(enough) }()
	if err := Greet(ctx, g, testOverlay, mute.ID()); !errors.Is(err, enough) {
		t.Errorf("a peer that says nothing: %v", err)
	}
	stranger := newHost(t, 3)
	ctx, stop := context.WithTimeout(within(t), time.Second)
	defer stop()
	if err := g.Connect(ctx, infoOf(stranger)); err != nil {
		t.Fatal(err)
	}
	if err := Greet(ctx, g, testOverlay, stranger.ID()); !errors.Is(err, ErrUnreachable) {
		t.Errorf("a peer of no overlay: %v", err)
	}
}
