package durabletest

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"latchkey/coherence/durable"
)

var (
	seedsFlag = flag.Uint64("seeds", 300, "how many worlds are drawn")
	seedFlag  = flag.Uint64("seed", 0, "the one world to draw, printed")
)

// draw draws a world, and how often what happens in it: with few kinds of faults, each strong, a world goes where an even mix never does.
func draw(seed uint64, m durable.Mutant) (*setup, *rand.Rand, []float64) {
	r := rand.New(rand.NewPCG(seed, 0xd0))
	some := func(n int8) int8 {
		if r.IntN(2) == 0 {
			return 0
		}
		return 1 + int8(r.IntN(int(n)))
	}
	s := &setup{
		mutant: m, bound: true, nodes: 2 + r.IntN(2), objects: 1 + r.IntN(2), terms: 1 + r.IntN(3), lease: []int{5, 10, 12, 12, 15}[r.IntN(5)],
		reads: 1 + r.IntN(4), writes: 1 + r.IntN(3), locks: int(some(2)), anchors: r.IntN(4) == 0, cas: r.IntN(3) == 0, absent: r.IntN(4) == 0,
		budget: budget{dups: some(4), losses: some(4), crashes: some(2), evicts: some(3), giveUps: some(2), renewals: some(6)},
	}
	if s.objects == 2 {
		s.listing = r.IntN(3) == 0
	}
	for i := range s.nodes + s.terms {
		rate := []int{slow, mean, fast}[r.IntN(3)]
		if r.IntN(2) == 0 { // the worst
			if rate = slow; i >= s.nodes {
				rate = fast
			}
		}
		s.rates = append(s.rates, rate)
	}
	weights := []float64{deliver: 3, commit: 3, learn: 3, round: 2, hear: 2, repeatNode: 1, repeatLeader: 1, tick: 2, read: 2, write: 2, lock: 2, unlock: 1,
		evict: 1, extend: 1, elect: 1, duplicate: 1, lose: 0.5, giveUp: 0.5, crash: 0.5}
	for i := range weights {
		weights[i] *= []float64{0.2, 0.5, 1, 1, 2, 5}[r.IntN(6)]
	}
	return s, r, weights
}

// run runs a drawn world, and then lets all go well until everybody is answered.
func run(s *setup, r *rand.Rand, weights []float64, print func(w *world, m move)) (w *world, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	w = newWorld(s)
	for range 40 + r.IntN(80) {
		ms, _ := w.moves()
		byKind := map[moveKind][]move{}
		sum := 0.0
		for _, m := range ms {
			if byKind[m.kind] == nil {
				sum += weights[m.kind]
			}
			byKind[m.kind] = append(byKind[m.kind], m)
		}
		x := r.Float64() * sum
		for k := range moveKind(len(weights)) {
			of := byKind[k]
			if of == nil {
				continue
			}
			if x -= weights[k]; x < 0 {
				m := of[r.IntN(len(of))]
				if m.kind == deliver && len(of) > 1 && r.IntN(2) == 0 { // a leader is more often heard than one that was deposed
					m.leader = w.latest()
				}
				print(w, m)
				w = w.apply(m)
				break
			}
		}
		if w.broken != nil {
			return w, w.broken
		}
	}
	for n := 0; !w.answered(); n++ {
		if n > 2000 {
			return w, errStuck
		}
		ms, quiet := w.moves()
		ms = slices.DeleteFunc(ms[:quiet], func(m move) bool {
			return m.kind == deliver && w.net[m.post].up && m.leader != w.latest()
		})
		for _, n := range w.nodes { // whoever has a lock is done with it
			for _, c := range n.calls {
				if c.kind == 0xff {
					ms = append(ms, move{kind: unlock, node: slices.Index(w.nodes, n), object: c.object})
				}
			}
		}
		slices.SortStableFunc(ms, func(a, b move) int { return healOrder[a.kind] - healOrder[b.kind] })
		print(w, ms[0])
		if w = w.apply(ms[0]); w.broken != nil {
			return w, w.broken
		}
		if n%40 == 39 { // time goes on whatever is repeated
			w = w.apply(move{kind: tick})
		}
	}
	return w, w.broken
}

var healOrder = map[moveKind]int{deliver: 1, commit: 2, learn: 3, round: 4, hear: 5, unlock: 6, repeatNode: 7, repeatLeader: 8, tick: 9}

// TestDrawnPaths runs drawn worlds, in which clocks run at the bounds of their rates, leaders are deposed and not told, and messages are lost,
// doubled, reordered and late without bound.
func TestDrawnPaths(t *testing.T) {
	if *seedFlag != 0 {
		s, r, weights := draw(*seedFlag, durable.NoMutant)
		t.Logf("%+v", *s)
		w, err := run(s, r, weights, func(w *world, m move) {
			if m.kind == deliver || m.kind == duplicate || m.kind == lose {
				m.text = w.net[m.post].msg.String()
			}
			t.Logf("%s\n%v", w.state(), m)
		})
		t.Logf("%s", w.state())
		if err != nil {
			t.Error(err)
		}
		return
	}
	moves := 0
	for seed := range *seedsFlag {
		s, r, weights := draw(seed+1, durable.NoMutant)
		if _, err := run(s, r, weights, func(*world, move) { moves++ }); err != nil {
			t.Fatalf("seed %d: %v\n%+v\nreplay: go test ./coherence/durable/durabletest -run TestDrawnPaths -seed %d -v", seed+1, err, *s, seed+1)
		}
	}
	t.Logf("%d worlds, %d moves", *seedsFlag, moves)
}
