package dht

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// However often a peer was refused, it is held up in short pieces, and not for long.
func TestARefusedPeerIsReadMoreSlowlyForAWhile(t *testing.T) {
	for refusals, want := range map[int]time.Duration{0: 0, 1: refusedPause, 30: 30 * refusedPause, 10_000: owedMax} {
		synctest.Test(t, func(t *testing.T) {
			l, start := &link{o: new(Overlay)}, time.Now()
			for range refusals {
				l.refused()
			}
			for l.owed.Load() > 0 {
				before := time.Now()
				l.pause()
				if d := time.Since(before); d > pauseMax {
					t.Errorf("a pause of %v", d)
				}
			}
			l.pause()
			if d := time.Since(start); d != want {
				t.Errorf("%d refusals: %v, want %v", refusals, d, want)
			}
		})
	}
}

// Nobody who asks itself is held up: there is no stream.
func TestOurOwnRequestsCostNoPause(t *testing.T) {
	l := &link{o: new(Overlay)}
	(&Request{link: l}).Refused()
	if l.owed.Load() != 0 {
		t.Error("we owe ourselves a pause")
	}
	(&Request{link: l, stream: new(stream)}).Refused()
	if l.owed.Load() != int64(refusedPause) {
		t.Errorf("a peer owes %v", time.Duration(l.owed.Load()))
	}
}

func TestWhoIsSparedIsNotReadMoreSlowly(t *testing.T) {
	o := new(Overlay)
	o.Spare(func(p peer.ID) bool { return p == "fellow" })
	for p, want := range map[peer.ID]time.Duration{"fellow": 0, "stranger": refusedPause} {
		l := newLink(o, p)
		l.refused()
		if got := time.Duration(l.owed.Load()); got != want {
			t.Errorf("a %s owes %v, want %v", p, got, want)
		}
	}
}
