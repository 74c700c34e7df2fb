package replicagroup

import (
	"io"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

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

// BenchmarkTransfer times a snapshot of 32 MiB from one host to another, hashed, cut, checked and handed to the replica's shard, against the
// same bytes copied over a bare libp2p stream between the two hosts in the same run.
func BenchmarkTransfer(b *testing.B) {
	const size = 32 << 20
	w := newWorld(b, 3, 1)
	ctx := deadline(b, time.Minute)
	from, to := w.peers[0], w.peers[1]
	g := w.genesis.RootGroup()
	from.set(func(tr *transfers) { tr.keep = true })
	to.host.SetStreamHandler("/bench", func(s network.Stream) {
		if n, err := io.Copy(io.Discard, s); n == size && err == nil {
			s.Write([]byte{1})
		}
		s.Close()
	})
	var sent, bare []time.Duration
	b.ReportAllocs()
	for b.Loop() {
		body := make([]byte, size) // another one each time, so that it is hashed each time
		before := stats(b, from).Sent
		start := time.Now()
		from.touch(g, func(r *replica) {
			m, _ := r.view.MemberAt(to.overlay.Node())
			from.groups.transfers.send(to.host.ID(), r, order.Send{To: m.ID, Msg: []byte("head"), Snapshot: body}, m.Store)
		})
		awaitStats(b, ctx, "it was sent", from, func(st TransferStats) bool { return st.Sent > before })
		sent = append(sent, time.Since(start))

		start = time.Now()
		s, err := from.host.NewStream(ctx, to.host.ID(), "/bench")
		if err != nil {
			b.Fatal(err)
		}
		if _, err := s.Write(body); err != nil {
			b.Fatal(err)
		}
		s.CloseWrite()
		if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
			b.Fatal(err)
		}
		s.Close()
		bare = append(bare, time.Since(start))
	}
	rate := func(d []time.Duration) float64 { // of the median, since the machine may be busy
		slices.Sort(d)
		return (size >> 20) / d[len(d)/2].Seconds()
	}
	b.ReportMetric(rate(sent), "MiB/s")
	b.ReportMetric(rate(bare), "bare-MiB/s")
	b.ReportMetric(rate(sent)/rate(bare), "ratio_to_bare")
}
