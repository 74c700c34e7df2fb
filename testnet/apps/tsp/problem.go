package tsp

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
)

// Limits of problems.
const (
	// CitiesMin is the least that there is something to search in.
	CitiesMin = 5
	// CitiesMax bounds the cities: what takes minutes is no example any more.
	CitiesMax = 20
	// WorkersMax bounds the workers.
	WorkersMax = 64
	// splitBelow is how many cities a beginning has that is searched; shorter ones are split.
	splitBelow = 3
)

// ErrProblem matches the error about a problem that is none.
var ErrProblem = errors.New("tsp: no such problem")

// Problem says what is to be solved, and by how many.
type Problem struct {
	Cities  int    `json:"cities"`
	Seed    uint64 `json:"seed,string"` // what the map is drawn from
	Workers int    `json:"workers"`
}

// Validate says what is wrong with a problem. The error matches [ErrProblem].
func (p Problem) Validate() error {
	if p.Cities < CitiesMin || p.Cities > CitiesMax {
		return fmt.Errorf("%w: %d cities: give %d to %d", ErrProblem, p.Cities, CitiesMin, CitiesMax)
	}
	if p.Workers < 1 || p.Workers > WorkersMax {
		return fmt.Errorf("%w: %d workers: give 1 to %d", ErrProblem, p.Workers, WorkersMax)
	}
	return nil
}

// elements returns how many elements the queue has in all.
func (p Problem) elements() int {
	level, all := 1, 1
	for have := 1; have < splitBelow; have++ {
		level *= p.Cities - have
		all += level
	}
	return all
}

// Trip is a round trip: it begins and ends at city 0.
type Trip struct {
	Length uint64
	Cities []byte
}

// none is longer than any.
var none = Trip{Length: math.MaxUint64}

// better reports whether t is to be preferred to u.
func (t Trip) better(u Trip) bool {
	return cmp.Or(cmp.Compare(t.Length, u.Length), slices.Compare(t.Cities, u.Cities)) < 0
}

// encode writes a trip: 8 bytes of length, then the cities.
func (t Trip) encode() []byte {
	return append(binary.BigEndian.AppendUint64(nil, t.Length), t.Cities...)
}

// decodeTrip reads a trip through so many cities. An empty object holds none.
func decodeTrip(b []byte, cities int) (Trip, error) {
	switch len(b) {
	case 0:
		return none, nil
	case 8 + cities:
		return Trip{binary.BigEndian.Uint64(b), slices.Clone(b[8:])}, nil
	}
	return none, fmt.Errorf("tsp: a trip of %d bytes, not %d", len(b), 8+cities)
}

// search looks for trips.
type search struct {
	dist     [][]uint64
	shortest []uint64               // way out of each city
	bound    func() (uint64, error) // length of the best trip so far
	found    func(Trip) error       // a trip that is no longer than that
	trip     []byte
	been     uint32
}

// search prepares to look for trips on the problem's map.
func (p Problem) search() *search {
	x := p.Seed
	draw := func() int64 { // splitmix64
		x += 0x9e3779b97f4a7c15
		z := (x ^ x>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		return int64((z ^ z>>31) % 1000)
	}
	at := make([][2]int64, p.Cities)
	for i := range at {
		at[i] = [2]int64{draw(), draw()}
	}
	s := &search{dist: make([][]uint64, p.Cities), shortest: make([]uint64, p.Cities)}
	for i := range at {
		s.dist[i], s.shortest[i] = make([]uint64, p.Cities), math.MaxUint64
		for j := range at {
			dx, dy := at[i][0]-at[j][0], at[i][1]-at[j][1]
			s.dist[i][j] = uint64(max(dx, -dx) + max(dy, -dy)) // whole numbers, so that sums are exact, along the streets
			if i != j {
				s.shortest[i] = min(s.shortest[i], s.dist[i][j])
			}
		}
	}
	return s
}

// begin sets the beginning of the trips, and returns its length.
func (s *search) begin(trip []byte) (length uint64, err error) {
	s.trip, s.been = slices.Grow(slices.Clone(trip), len(s.dist)), 0
	for i, c := range trip {
		if int(c) >= len(s.dist) || s.been&(1<<c) != 0 || i == 0 && c != 0 {
			return 0, fmt.Errorf("tsp: %v begins no trip", trip)
		}
		if s.been |= 1 << c; i > 0 {
			length += s.dist[trip[i-1]][c]
		}
	}
	return length, nil
}

// from searches all trips that begin as s.trip does, which is of that length.
func (s *search) from(length uint64) error {
	last := s.trip[len(s.trip)-1]
	if len(s.trip) == len(s.dist) {
		return s.found(Trip{length + s.dist[last][0], s.trip})
	}
	least := length + s.shortest[last]
	for c := range s.dist {
		if s.been&(1<<c) == 0 {
			least += s.shortest[c]
		}
	}
	if bound, err := s.bound(); err != nil || least > bound { // not if it is the same: there may be a better one of that length
		return err
	}
	for c := range s.dist {
		if s.been&(1<<c) != 0 {
			continue
		}
		s.trip, s.been = append(s.trip, byte(c)), s.been|1<<c
		err := s.from(length + s.dist[last][c])
		s.trip, s.been = s.trip[:len(s.trip)-1], s.been&^(1<<c)
		if err != nil {
			return err
		}
	}
	return nil
}

// Solve does all of it alone. It fails with the cause of ctx.
func (p Problem) Solve(ctx context.Context) (Trip, error) {
	best, s := none, p.search()
	cities := 0
	s.bound = func() (uint64, error) {
		if cities++; cities%4096 == 0 && ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		return best.Length, nil
	}
	s.found = func(t Trip) error {
		if t.better(best) {
			best = Trip{t.Length, slices.Clone(t.Cities)}
		}
		return nil
	}
	length, err := s.begin([]byte{0})
	if err == nil {
		err = s.from(length)
	}
	return best, err
}
