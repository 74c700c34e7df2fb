package rawbench

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"
)

// MeasureMany has n callers repeat op for d, each one call after another. op is told which caller it serves, from 0. The first error
// of any of them, or the end of ctx, ends it early; callers finish the call they are in.
func MeasureMany(ctx context.Context, d time.Duration, n int, op func(caller int) error) (Result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	samples := make([][]time.Duration, n)
	for i := range samples {
		samples[i] = make([]time.Duration, 0, 1<<6)
	}
	most := max(samplesMax/max(n, 1), 1)
	return measured(func(start time.Time) ([]time.Duration, error) {
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				for now := start; now.Sub(start) < d && len(samples[i]) < most && ctx.Err() == nil; {
					if err := op(i); err != nil {
						cancel(err)
						return
					}
					then := time.Now()
					samples[i] = append(samples[i], then.Sub(now))
					now = then
				}
			})
		}
		wg.Wait()
		var all []time.Duration
		for _, s := range samples {
			all = append(all, s...)
		}
		return all, context.Cause(ctx)
	})
}

// MeasurePaced begins one op every 1/rate of a second for d, whether or not those before have ended, and waits for them all; op is told
// how many began before it. An operation's time counts from when it was begun, which on a busy machine is later than it was due; it
// makes up for that, so that the rate is kept. The first error or the end of ctx ends it early.
func MeasurePaced(ctx context.Context, d time.Duration, rate int, op func(i int) error) (Result, error) {
	if rate <= 0 {
		return Result{}, errors.New("rawbench: a rate must be positive")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	n := min(max(int(d.Seconds()*float64(rate)), 1), samplesMax)
	samples := make([]time.Duration, n)
	return measured(func(start time.Time) ([]time.Duration, error) {
		var wg sync.WaitGroup
		timer := time.NewTimer(0)
		defer timer.Stop()
		for i := range n {
			timer.Reset(time.Until(start.Add(time.Duration(i) * time.Second / time.Duration(rate))))
			select {
			case <-timer.C:
			case <-ctx.Done():
				wg.Wait()
				return nil, context.Cause(ctx)
			}
			began := time.Now()
			wg.Go(func() {
				if err := op(i); err != nil {
					cancel(err)
					return
				}
				samples[i] = time.Since(began)
			})
		}
		wg.Wait()
		return samples, context.Cause(ctx)
	})
}

// measured runs a load and takes the process's time and allocations meanwhile. Without error it has samples of operations that have ended.
func measured(load func(start time.Time) ([]time.Duration, error)) (Result, error) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	cpu, start := CPUTime(), time.Now()
	samples, err := load(start)
	r := Result{Samples: samples, Wall: time.Since(start), CPU: CPUTime() - cpu}
	runtime.ReadMemStats(&after)
	r.Allocs = after.Mallocs - before.Mallocs
	return r, err
}
