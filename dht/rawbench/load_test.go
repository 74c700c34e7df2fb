package rawbench

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"
)

func TestMeasureManyCountsEveryCall(t *testing.T) {
	const callers = 8
	var calls [callers]atomic.Int64
	r, err := MeasureMany(t.Context(), 5*time.Millisecond, callers, func(i int) error {
		calls[i].Add(1)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	total := int64(0)
	for i := range calls {
		if calls[i].Load() == 0 {
			t.Errorf("caller %d never called", i)
		}
		total += calls[i].Load()
	}
	if total != int64(len(r.Samples)) || r.Wall < 5*time.Millisecond {
		t.Errorf("%d samples of %d calls in %v", len(r.Samples), total, r.Wall)
	}
}

func TestMeasurePacedBeginsEveryCallWithoutWaitingForOthers(t *testing.T) {
	all := make(chan struct{})
	var begun atomic.Int64
	r, err := MeasurePaced(t.Context(), 20*time.Millisecond, 1000, func(int) error {
		if begun.Add(1) == 20 {
			close(all)
		}
		<-all // the first ends only after the last has begun
		return nil
	})
	if err != nil || len(r.Samples) != 20 || begun.Load() != 20 {
		t.Fatalf("%d samples, %d begun, %v", len(r.Samples), begun.Load(), err)
	}
	if r.Wall < 19*time.Millisecond { // the last one is not due before
		t.Errorf("20 calls at 1000 a second took %v", r.Wall)
	}
	if _, err := MeasurePaced(t.Context(), time.Second, 0, nil); err == nil {
		t.Error("a rate of zero was taken")
	}
}

func TestLoadsEndWithTheErrorOrTheContext(t *testing.T) {
	broken := errors.New("broken")
	gone, cancel := context.WithCancelCause(t.Context())
	cancel(broken)
	fail := func(int) error { return broken }
	fine := func(int) error { return nil }
	for name, run := range map[string]func() (Result, error){
		"many, error":    func() (Result, error) { return MeasureMany(t.Context(), time.Hour, 3, fail) },
		"many, context":  func() (Result, error) { return MeasureMany(gone, time.Hour, 3, fine) },
		"paced, error":   func() (Result, error) { return MeasurePaced(t.Context(), 10*time.Second, 1000, fail) },
		"paced, context": func() (Result, error) { return MeasurePaced(gone, 10*time.Second, 1000, fine) },
	} {
		if _, err := run(); !errors.Is(err, broken) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
