package attack

import (
	"strings"
	"testing"
	"time"
)

// BenchmarkAttack reports how much slower honest rounds of lock and release become while a peer is attacked: the ratio of the
// medians and of the 99th percentiles, during to before. The first, a machine that is as busy and no attack, is what to
// compare the others with: on a small machine the attackers' own work is part of the ratio.
func BenchmarkAttack(b *testing.B) {
	for _, s := range scenarios {
		b.Run(strings.ReplaceAll(s.name, " ", "-"), func(b *testing.B) {
			w := newWorld(b)
			var before, during []time.Duration
			for b.Loop() {
				o := w.run(b, s, max(*attackTime, time.Second))
				before, during = append(before, o.before...), append(during, o.during...)
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(ratio(before, during, 0.5), "p50-ratio")
			b.ReportMetric(ratio(before, during, 0.99), "p99-ratio")
		})
	}
}
