package attack

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// benchBlocks is how many times a benchmark changes between peace and attack, so that what else the machine does falls on both.
const benchBlocks = 4

// BenchmarkAttack reports how much slower honest rounds of lock and release become while a peer is attacked, as ratios of the
// median and of the 99th percentile, to rounds beside a process that keeps both processors as busy as it can at the attackers'
// priority, sends nothing and asks for nothing. Where an attack is a stream of messages, sink-p50-ratio and sink-p99-ratio are those of rounds
// while the attacked process is sent as many of them a second and throws them away: what there is to be read costs that much.
// peak-MiB is the most that the attacked process had resident in an attack, and cores how many processors it took, beside peace-cores
// without one.
func BenchmarkAttack(b *testing.B) {
	for _, s := range scenarios {
		b.Run(strings.ReplaceAll(s.name, " ", "-"), func(b *testing.B) {
			w := newWorld(b)
			var peace, war, control []time.Duration
			var sent, most, blocks int64
			var cores, peaceCores float64
			for b.Loop() {
				for range benchBlocks {
					rounds := func(samples *[]time.Duration) func() {
						return func() {
							w.lockFor(b, within(b), *attackTime/4)
							*samples = append(*samples, w.lockFor(b, within(b), 10**attackTime/benchBlocks)...)
						}
					}
					peaceCores += w.run(b, busy, rounds(&peace)).cpu
					o := w.run(b, s, rounds(&war))
					sent, most, blocks, cores = sent+o.report.Sent, max(most, o.peak), blocks+1, cores+o.cpu
					if s.paced {
						w.sink(b, s, o.report.Rate, rounds(&control))
					}
				}
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(ratio(peace, war, 0.5), "p50-ratio")
			b.ReportMetric(ratio(peace, war, 0.99), "p99-ratio")
			if s.paced {
				b.ReportMetric(ratio(peace, control, 0.5), "sink-p50-ratio")
				b.ReportMetric(ratio(peace, control, 0.99), "sink-p99-ratio")
			}
			b.ReportMetric(quantile(war, 0.5).Seconds()*1e3, "p50-ms")
			b.ReportMetric(quantile(war, 0.99).Seconds()*1e3, "p99-ms")
			b.ReportMetric(slices.Max(war).Seconds()*1e3, "max-ms")
			b.ReportMetric(float64(len(war)), "rounds")
			b.ReportMetric(float64(sent), "sent")
			b.ReportMetric(float64(most>>20), "peak-MiB")
			b.ReportMetric(cores/float64(blocks), "cores")
			b.ReportMetric(peaceCores/float64(blocks), "peace-cores")
		})
	}
}
