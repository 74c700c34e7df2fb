package tsp

import (
	"context"
	"errors"
	"slices"
	"testing"
)

// TestSolveFindsTheBestTrip compares with all trips there are.
func TestSolveFindsTheBestTrip(t *testing.T) {
	for seed := range uint64(20) {
		p := Problem{Cities: 7, Seed: seed, Workers: 1}
		s, best := p.search(), none
		var all func(trip []byte)
		all = func(trip []byte) {
			if len(trip) == p.Cities {
				length, err := s.begin(trip)
				if err != nil {
					t.Fatal(err)
				}
				if u := (Trip{length + s.dist[trip[len(trip)-1]][0], trip}); u.better(best) {
					best = Trip{u.Length, slices.Clone(trip)}
				}
				return
			}
			for c := range p.Cities {
				if !slices.Contains(trip, byte(c)) {
					all(append(slices.Clone(trip), byte(c)))
				}
			}
		}
		all([]byte{0})
		if got, err := p.Solve(t.Context()); err != nil || got.Length != best.Length || !slices.Equal(got.Cities, best.Cities) {
			t.Errorf("seed %d: %v, and the best is %v", seed, got, best)
		}
		back := slices.Clone(best.Cities)
		slices.Reverse(back[1:])
		if u := (Trip{best.Length, back}); u.better(best) || !best.better(u) {
			t.Errorf("seed %d: there and back are both the best", seed)
		}
	}
}

func TestSolveIsInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (Problem{Cities: CitiesMax, Seed: 1}).Solve(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestProblemsHaveLimits(t *testing.T) {
	for _, p := range []Problem{{CitiesMin, 0, 1}, {CitiesMax, 7, WorkersMax}} {
		if err := p.Validate(); err != nil {
			t.Errorf("%+v: %v", p, err)
		}
	}
	for _, p := range []Problem{{}, {CitiesMin - 1, 0, 1}, {CitiesMax + 1, 0, 1}, {9, 0, 0}, {9, 0, WorkersMax + 1}} {
		if err := p.Validate(); !errors.Is(err, ErrProblem) {
			t.Errorf("%+v: %v", p, err)
		}
	}
	if n := (Problem{Cities: 9}).elements(); n != 1+8+8*7 {
		t.Errorf("%d elements", n)
	}
	s := Problem{Cities: 5}.search()
	for _, trip := range [][]byte{{1}, {0, 0}, {0, 5}, {0, 200}, {0, 1, 1}} {
		if _, err := s.begin(trip); err == nil {
			t.Errorf("%v begins a trip", trip)
		}
	}
	if _, err := decodeTrip(make([]byte, 9), 5); err == nil {
		t.Error("a short trip is read")
	}
}
