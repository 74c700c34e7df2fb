package raft

import (
	"errors"
	"testing"
	"time"

	"latchkey/replicagroup/order"
)

// mishaps runs the group for d with proposals, reads, snapshots, crashes, cuts and bad links, whose mix is drawn from the seed
// as well; then it heals everything and demands progress and agreement.
func (w *world) mishaps(d time.Duration) {
	w.tb.Helper()
	chance := func(p float64) bool { return w.rng.Float64() < p }
	if chance(0.5) {
		w.loss = w.rng.Float64() * 0.2
	}
	if chance(0.5) {
		w.dup = w.rng.Float64() * 0.2
	}
	if chance(0.5) {
		w.jitter = w.some(HeartbeatDefault)
	}
	crashes, cuts := w.rng.Float64()*0.05, w.rng.Float64()*0.05
	for _, id := range w.ids() {
		n := w.nodes[id]
		if chance(0.5) {
			n.compactAt = 1 + uint64(w.rng.IntN(40))
		}
		n.applyDelay = w.some(20 * time.Millisecond)
	}
	w.startAll()
	ref := uint64(0)
	for end := w.now + d; w.now < end; {
		w.pass(w.some(HeartbeatDefault))
		for _, id := range w.ids() {
			n := w.nodes[id]
			switch {
			case n.up && chance(crashes):
				w.crash(id)
			case !n.up && chance(0.2):
				w.start(id)
			case n.up:
				for range w.rng.IntN(4) {
					ref++
					w.propose(n, ref)
				}
				ref++
				w.step(n, order.Read{Ref: ref})
				if chance(0.05) {
					w.step(n, order.Suspect{Member: w.ids()[w.rng.IntN(len(w.nodes))]})
				}
				if chance(0.05) {
					w.step(n, order.Link{To: w.ids()[w.rng.IntN(len(w.nodes))], Up: chance(0.5)})
				}
			}
		}
		switch {
		case chance(cuts):
			var sides [2][]order.ReplicaID
			for _, id := range w.ids() {
				i := w.rng.IntN(2)
				sides[i] = append(sides[i], id)
			}
			w.split(sides[0], sides[1])
		case chance(0.1):
			w.split()
		}
	}
	w.loss, w.dup, w.jitter = 0, 0, 4*time.Millisecond
	w.split()
	for _, id := range w.ids() {
		w.nodes[id].applyDelay = 0
		if !w.nodes[id].up {
			w.start(id)
		}
	}
	// A snapshot that was lost without a word is sent again after this much patience.
	w.pass(3 * electionTimeout)
	lead := w.awaitLeader(5 * electionTimeout)
	w.commit(lead, ref+1, ref+3)
	w.agree(5 * electionTimeout)
}

func TestGroupsSurviveMishaps(t *testing.T) {
	seeds := 60 // which takes a second; of fewer, some drop no command
	if !testing.Short() {
		seeds = max(seeds, *seedsFlag*3/100)
	}
	var snaps, dropped, reads, ok int
	for seed := range uint64(seeds) {
		w := newWorld(t, seed, 3+2*int(seed%2), int(seed%3)/2)
		w.cfg.Quiesce = [...]time.Duration{0, HeartbeatDefault, -1}[seed/2%3] // with one idle heartbeat it sleeps in the middle of everything
		w.cfg.LeaseReads = seed/6%2 == 1
		w.mishaps(5 * time.Second)
		// What was acknowledged stands in the log of all: agree has compared the machines, the log holds what they saw.
		at := map[string]bool{}
		for _, e := range w.log {
			at[string(e.Cmd.Data)] = true
		}
		for _, n := range w.nodes {
			snaps += n.sent["MsgSnap"]
			reads += len(n.reads)
			for ref, d := range n.done {
				switch {
				case d.Err == nil:
					if ok++; !at[string(command(ref).Data)] {
						t.Fatalf("seed %d: acknowledged command %d is lost", seed, ref)
					}
				case errors.Is(d.Err, order.ErrDropped):
					dropped++
				case !errors.Is(d.Err, order.ErrNotLeader) && !errors.Is(d.Err, order.ErrBusy):
					t.Fatalf("seed %d: %v", seed, d.Err)
				}
			}
		}
	}
	t.Logf("%d commands and %d reads done, %d dropped, %d snapshots sent", ok, reads, dropped, snaps)
	if ok < 20*seeds || snaps == 0 || dropped == 0 || reads < 20*seeds {
		t.Error("too little happened for the test to mean anything")
	}
}
