package testnet

import (
	"fmt"
	"maps"
	"time"

	"latchkey/testnet/wire"
)

// LatencyMax is the longest latency of a testnet, one way. With 500 ms no group is found any more: each search for one takes longer
// than it may.
const LatencyMax = 300 * time.Millisecond

// faults is what stands between the peers of a testnet: a partition and a latency. The zero value is nothing.
type faults struct {
	latency time.Duration
	side    map[int]int // of the peers that were named; nil without a partition
	sides   int         // that were named; peers in none have this number
}

// partition returns f with another partition of n peers.
func (f faults) partition(n int, sides [][]int) (faults, error) {
	f.side, f.sides = make(map[int]int), len(sides)
	for s, members := range sides {
		if len(members) == 0 {
			return f, fmt.Errorf("%w: side %d is empty", ErrOptions, s)
		}
		for _, i := range members {
			if err := checkNumber(i, n); err != nil {
				return f, err
			}
			if t, twice := f.side[i]; twice && t != s {
				return f, fmt.Errorf("%w: peer %d is on two sides", ErrOptions, i)
			}
			f.side[i] = s
		}
	}
	if len(sides) == 0 || len(sides) == 1 && len(f.side) == n {
		return f, fmt.Errorf("%w: a partition needs two sides, and all peers are on one", ErrOptions)
	}
	return f, nil
}

// heal returns f without a partition.
func (f faults) heal() faults { return faults{latency: f.latency} }

// delay returns f with another latency.
func (f faults) delay(d time.Duration) (faults, error) {
	if d < 0 || d > LatencyMax {
		return f, fmt.Errorf("%w: latency is %v; it can be 0 to %v", ErrOptions, d, LatencyMax)
	}
	f.latency = d
	return f, nil
}

func (f faults) partitioned() bool { return f.side != nil }

// sideOf returns the side that peer i is on: 0 when there is but one.
func (f faults) sideOf(i int) int {
	if s, named := f.side[i]; named || !f.partitioned() {
		return s
	}
	return f.sides
}

// samePartition reports whether f and g divide the peers in the same way.
func (f faults) samePartition(g faults) bool {
	return f.partitioned() == g.partitioned() && f.sides == g.sides && maps.Equal(f.side, g.side)
}

// rules returns those of peer i's wire. addrs are all peers' listening addresses as host:port, by number.
func (f faults) rules(i int, addrs []string) wire.Rules {
	r := wire.Rules{Latency: f.latency}
	for j, addr := range addrs {
		if f.sideOf(j) != f.sideOf(i) {
			r.Blocked = append(r.Blocked, addr)
		}
	}
	return r
}

// checkNumber returns [ErrNoPeer] when no peer of n has number i.
func checkNumber(i, n int) error {
	if i < 0 || i >= n {
		return fmt.Errorf("%w: %d; the peers are 0 to %d", ErrNoPeer, i, n-1)
	}
	return nil
}
