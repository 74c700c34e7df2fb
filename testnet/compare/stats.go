package main

import (
	"slices"
	"time"
)

// Figures are what a workload found for one system.
type Figures struct {
	Holds   int     `json:"holds"`
	PerS    float64 `json:"holds_per_s"`
	P50ms   float64 `json:"acquire_p50_ms"`
	P99ms   float64 `json:"acquire_p99_ms"`
	CPUms   float64 `json:"cpu_ms_per_hold"`
	Jain    float64 `json:"jain"`
	Longest float64 `json:"longest_gap_ms"` // between the ends of two holds that follow each other, whoever had them
}

// tally gathers a workload's holds, over several turns.
type tally struct {
	wall, cpu time.Duration
	acquires  []time.Duration
	each      []int // holds of each client
	longest   time.Duration
}

// figures sums up. A tally without holds gives zeros.
func (t *tally) figures() Figures {
	n := len(t.acquires)
	if n == 0 {
		return Figures{}
	}
	slices.Sort(t.acquires)
	at := func(q float64) float64 { return ms(t.acquires[min(n-1, int(q*float64(n)))]) }
	return Figures{
		Holds: n, PerS: float64(n) / t.wall.Seconds(), P50ms: at(0.5), P99ms: at(0.99),
		CPUms: ms(t.cpu) / float64(n), Jain: jain(t.each), Longest: ms(t.longest),
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// jain returns Jain's index of fairness, 0 when nobody had anything.
func jain(each []int) float64 {
	var sum, squares float64
	for _, n := range each {
		sum += float64(n)
		squares += float64(n) * float64(n)
	}
	if sum == 0 {
		return 0
	}
	return sum * sum / (float64(len(each)) * squares)
}
