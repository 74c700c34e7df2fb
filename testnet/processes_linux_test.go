package testnet

import "testing"

func TestAPausedPeerStandsStillWhenPauseReturns(t *testing.T) {
	p := one(t, "echo READY x; while :; do :; done")
	c := p.places[0].child
	for range 20 {
		if ok, err := still(c.process); ok || err != nil {
			t.Fatalf("a running process stands still: %v, %v", ok, err)
		}
		if err := p.Pause(0); err != nil {
			t.Fatal(err)
		}
		for range 2 { // asking changes nothing
			if ok, err := still(c.process); !ok || err != nil {
				t.Fatalf("stands still: %v, %v", ok, err)
			}
		}
		if err := p.Resume(0); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Pause(0); err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(0); err != nil {
		t.Fatal(err)
	}
	if err := p.awaitStill(0, c); err != nil {
		t.Errorf("of a process that has ended: %v", err)
	}
}
