package dht

import (
	"errors"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
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
		if err != nil {
			t.Fatalf("%s: %v", door, err)
		}
		var reset *network.StreamError
		if _, err := s.Read(make([]byte, 1)); !errors.As(err, &reset) || !reset.Remote || reset.ErrorCode != network.StreamGated {
			t.Errorf("%s: %v", door, err)
		}
		if n := o.Stats().StreamsReset; n[ReasonRefused] != uint64(i+1) || len(n) != 1 {
			t.Errorf("%s: counted %v", door, n)
		}
	}
}
