package replicagroup

import (
	"slices"
	"testing"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/pb"
)

// BenchmarkDo times one ordered command on a group of three, from a peer that does not lead it, against one round trip of
// the overlay in the same run.
func BenchmarkDo(b *testing.B) {
	w := newWorld(b, 7, 1)
	ctx := deadline(b, time.Minute)
	key := keyspace.Preimage("bench").Key()
	c := w.peers[0].groups.NewClient()
	if _, err := c.Do(ctx, key, "count", number(1)); err != nil {
		b.Fatal(err)
	}
	leader, err := w.peers[0].groups.Leader(ctx, key)
	if err != nil {
		b.Fatal(err)
	}
	from := w.peers[0]
	if string(from.host.ID()) == leader.ID {
		from = w.peers[1]
	}
	to := from.host.ID()
	for _, p := range w.peers {
		if string(p.host.ID()) == leader.ID {
			to = p.host.ID()
		}
	}
	c = from.groups.NewClient()
	ask := marshal(&pb.LocateRequest{Prefix: groupToPB(order.GroupID{}).Prefix})
	var ordered, trip []time.Duration
	b.ReportAllocs()
	for b.Loop() {
		start := time.Now()
		if _, err := c.Do(ctx, key, "count", number(1)); err != nil {
			b.Fatal(err)
		}
		ordered = append(ordered, time.Since(start))
		start = time.Now()
		if _, err := from.overlay.Call(ctx, to, keyspace.Key{}, serviceLocate, ask); err != nil {
			b.Fatal(err)
		}
		trip = append(trip, time.Since(start))
	}
	slices.Sort(ordered)
	slices.Sort(trip)
	p50 := func(d []time.Duration) float64 { return float64(d[len(d)/2]) / 1e3 }
	b.ReportMetric(p50(ordered), "p50-µs")
	b.ReportMetric(p50(trip), "trip-p50-µs")
	b.ReportMetric(p50(ordered)/p50(trip), "trips/op")
}
