package rawbench

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
)

func newHost(t *testing.T) host.Host {
	t.Helper()
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableRelay(), libp2p.DisableMetrics(),
		libp2p.ResourceManager(&network.NullResourceManager{}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func TestRoundTripCountsWhatItDid(t *testing.T) {
	r, err := RoundTrip(t.Context(), newHost(t), newHost(t), make([]byte, 64), 20*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Samples) == 0 || r.Quantile(0.5) <= 0 || r.Quantile(0.5) > r.Quantile(0.99) || r.Quantile(1) > r.Wall || r.AllocsPerOp() <= 0 ||
		r.OpsPerSecond() <= 0 {
		t.Errorf("%d samples, p50 %v, p99 %v, wall %v, %v allocations", len(r.Samples), r.Quantile(0.5), r.Quantile(0.99), r.Wall, r.AllocsPerOp())
	}
	if CPUTime() > 0 && r.CPUPerOp() <= 0 {
		t.Errorf("CPU per operation %v", r.CPUPerOp())
	}
}

func TestMeasureEndsWithTheErrorOrTheContext(t *testing.T) {
	broken := errors.New("broken")
	if _, err := Measure(t.Context(), time.Hour, func() error { return broken }); err != broken {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(broken)
	if _, err := Measure(ctx, time.Hour, func() error { return nil }); err != broken {
		t.Errorf("%v", err)
	}
}

func TestQuantiles(t *testing.T) {
	var r Result
	if r.Quantile(0.5) != 0 || r.CPUPerOp() != 0 || r.AllocsPerOp() != 0 || r.OpsPerSecond() != 0 {
		t.Error("the zero value holds none")
	}
	r.Add(Result{Samples: []time.Duration{5, 1, 3}, Wall: 3 * time.Second, CPU: 8, Allocs: 4})
	r.Add(Result{Samples: []time.Duration{2, 4}, Wall: 2 * time.Second, CPU: 2, Allocs: 6})
	for q, want := range map[float64]time.Duration{0: 1, 0.5: 3, 0.99: 5, 1: 5} {
		if got := r.Quantile(q); got != want {
			t.Errorf("quantile %v = %d", q, got)
		}
	}
	if r.CPUPerOp() != 2 || r.AllocsPerOp() != 2 || r.OpsPerSecond() != 1 {
		t.Errorf("%v, %v, %v", r.CPUPerOp(), r.AllocsPerOp(), r.OpsPerSecond())
	}
}
