package dht

import (
	"sync"
	"testing"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/dht/rawbench"
)

// BenchmarkCall compares a call and its answer with a raw libp2p stream kept open between the same two hosts, in alternating
// slices of one run. Aim: ratio 1.5 at most.
func BenchmarkCall(b *testing.B) {
	x, y := pair(b, nil)
	echo, err := rawbench.Open(b.Context(), x.host, y.host)
	if err != nil {
		b.Fatal(err)
	}
	defer echo.Close()
	payload := make([]byte, 64)
	call := func() error {
		_, err := x.Call(b.Context(), y.Self(), keyspace.Key{1}, "echo", payload)
		return err
	}
	raw := func() error { return echo.Do(payload) }
	var ours, theirs rawbench.Result
	measure := func(sum *rawbench.Result, op func() error) {
		r, err := rawbench.Measure(b.Context(), 50*time.Millisecond, op)
		if err != nil {
			b.Fatal(err)
		}
		sum.Add(r)
	}
	measure(new(rawbench.Result), call)
	measure(new(rawbench.Result), raw)
	for b.Loop() {
		measure(&ours, call)
		measure(&theirs, raw)
	}
	us := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
	b.ReportMetric(us(ours.Quantile(0.5)), "call-p50-us")
	b.ReportMetric(us(theirs.Quantile(0.5)), "raw-p50-us")
	b.ReportMetric(us(ours.Quantile(0.5))/us(theirs.Quantile(0.5)), "ratio")
	b.ReportMetric(us(ours.CPUPerOp()), "call-cpu-us")
	b.ReportMetric(us(theirs.CPUPerOp()), "raw-cpu-us")
	b.ReportMetric(ours.AllocsPerOp(), "call-allocs")
	b.ReportMetric(theirs.AllocsPerOp(), "raw-allocs")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkCallParallel shows what batching gains: many callers share the two streams.
func BenchmarkCallParallel(b *testing.B) {
	x, y := pair(b, nil)
	payload := make([]byte, 64)
	if _, err := x.Call(b.Context(), y.Self(), keyspace.Key{1}, "echo", payload); err != nil {
		b.Fatal(err)
	}
	b.SetParallelism(32)
	b.ReportAllocs()
	before := x.Stats()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := x.Call(b.Context(), y.Self(), keyspace.Key{1}, "echo", payload); err != nil {
				b.Error(err)
				return
			}
		}
	})
	after := x.Stats()
	b.ReportMetric(float64(after.MessagesSent-before.MessagesSent)/float64(after.FramesSent-before.FramesSent), "messages/frame")
}

// BenchmarkCallsInStep is many callers whose answers come together, as those of a group's commands do. One frame should hold what all of
// them ask next.
func BenchmarkCallsInStep(b *testing.B) {
	const callers = 64
	var mu sync.Mutex
	var held []*Request
	x, y := pair(b, func(o *Overlay) {
		o.Handle("step", func(r *Request) {
			mu.Lock()
			defer mu.Unlock()
			if held = append(held, r); len(held) == callers {
				for _, r := range held {
					r.Reply(r.Data)
				}
				held = held[:0]
			}
		})
	})
	payload := make([]byte, 64)
	if _, err := x.Call(b.Context(), y.Self(), keyspace.Key{1}, "echo", payload); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.ResetTimer()
	before := x.Stats()
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for range b.N {
				if _, err := x.Call(b.Context(), y.Self(), keyspace.Key{1}, "step", payload); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	after := x.Stats()
	b.ReportMetric(float64(after.MessagesSent-before.MessagesSent)/float64(after.FramesSent-before.FramesSent), "messages/frame")
}

func BenchmarkCachedReplicaSet(b *testing.B) {
	os := mesh(b, 7, nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := os[0].ReplicaSet(b.Context(), "lock", 3); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFrame(b *testing.B) {
	it := item{kind: 2, id: 1 << 60, service: []byte("replicagroup"), key: keyspace.Key{1}, payload: make([]byte, 64)}
	var buf []byte
	var items []item
	b.ReportAllocs()
	for b.Loop() {
		buf = buf[:0]
		for range 8 {
			buf = appendItem(buf, &it)
		}
		var err error
		if items, err = decodeFrame(buf, Control, items); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSevenUp times seven hosts in one process until every one answers every look-up right.
func BenchmarkSevenUp(b *testing.B) {
	for b.Loop() {
		os := mesh(b, 7, nil)
		b.StopTimer()
		for _, o := range os {
			o.Close()
			o.host.Close()
		}
		b.StartTimer()
	}
}
