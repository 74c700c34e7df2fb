package coherence

import (
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht"
)

// detecting is an overlay of which only the failure detector is used.
type detecting struct {
	Overlay
	suspect func(peer.ID, bool)
	ended   func(peer.ID)
}

func (o *detecting) Handle(string, dht.Handler)      {}
func (o *detecting) OnSuspect(f func(peer.ID, bool)) { o.suspect = f }
func (o *detecting) OnUnwatch(f func(peer.ID))       { o.ended = f }

// Who was suspected when the detector ceased to watch it was suspected for ever: the replica groups' part of the node began the next watch, and
// the detector did not say that it is well. Each time it opened an application led here, this one began anew.
func TestASuspicionEndsWithTheWatch(t *testing.T) {
	o := new(detecting)
	s := NewService(o, nil)
	o.suspect("p", true)
	o.suspect("q", true)
	if _, down := s.down["p"]; !down {
		t.Fatal("no suspicion")
	}
	o.ended("p")
	if _, down := s.down["p"]; down {
		t.Error("a suspicion of before the watch ended")
	}
	if _, down := s.down["q"]; !down {
		t.Error("the end of another watch took a suspicion back")
	}
}
