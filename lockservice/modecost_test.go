package lockservice

import (
	"slices"
	"testing"
	"time"
)

// BenchmarkFirstAcquireByTheTable takes names that voters keep by protocol group, whose table has to take each over first, and then once more,
// beside names that stay with the voters: on real peers in one process.
func BenchmarkFirstAcquireByTheTable(b *testing.B) {
	w := newHosts(b, 4, func(w *hosts) { w.fixed = true })
	_, p := w.among("n")
	pair := func(name string, by Protocol) time.Duration {
		before := time.Now()
		h, err := p.locks.Lock(w.ctx(), name, WithTTL(hostsTTL), WithProtocol(by))
		if err != nil {
			b.Fatal(err)
		}
		d := time.Since(before)
		if err := h.Release(w.ctx()); err != nil {
			b.Fatal(err)
		}
		return d
	}
	pair(w.name(0), ProtocolSigma) // it learns of the view
	pair(w.name(1), ProtocolGroup) // and opens its session
	took := make(map[string][]time.Duration)
	n := 1
	for b.Loop() {
		n++
		took["sigma-ns"] = append(took["sigma-ns"], pair(w.name(n), ProtocolSigma))
		took["first-ns"] = append(took["first-ns"], pair(w.name(n), ProtocolGroup))
		took["next-ns"] = append(took["next-ns"], pair(w.name(n), ProtocolGroup))
	}
	for what, ds := range took {
		slices.Sort(ds)
		b.ReportMetric(float64(ds[len(ds)/2]), what)
	}
}
