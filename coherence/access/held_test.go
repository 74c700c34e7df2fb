package access

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"latchkey/coherence/cachedcopy"
	"latchkey/coherence/protocol"
)

func TestHeldObjectIsKeptUntilItIsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := NewEpoch(Config{UpdateHold: time.Second})
		o, q := alone(e, 2)
		q.grant(cachedcopy.ReadWrite, "0")
		h, err := o.Hold(t.Context(), time.Minute)
		if err != nil || string(h.Value()) != "0" {
			t.Fatal(err)
		}
		q.revoke(cachedcopy.NoAccess)
		set := make(chan error, 1)
		go func() { set <- o.Set(t.Context(), []byte("other")) }()
		// Unlike that of an update it is for longer than a second, and for nobody who waits here for an object with a smaller key.
		smaller, p := alone(e, 1)
		read := make(chan struct{})
		go func() { get(t, smaller); close(read) }()
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if q.now() != cachedcopy.ReadWrite || get(t, o) != "0" || len(set) > 0 {
			t.Fatal("it is not held")
		}
		p.grant(cachedcopy.ReadOnly, "")
		<-read
		if err := h.Commit(make([]byte, protocol.ValueMax+1)); !errors.Is(err, ErrTooLarge) {
			t.Error(err)
		}
		if err := h.Commit([]byte("1")); err != nil {
			t.Error(err)
		}
		<-h.Ended()
		if q.now() != cachedcopy.NoAccess {
			t.Error("what was put off did not come")
		}
		// Who waited here was served before that.
		if err := <-set; err != nil {
			t.Error(err)
		}
		if err := h.Commit([]byte("2")); !errors.Is(err, ErrHold) {
			t.Error(err)
		}
		e.End()
	})
}

func TestHoldThatLastsTooLongWritesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := NewEpoch(Config{})
		o, q := alone(e, 1)
		q.grant(cachedcopy.ReadWrite, "0")
		h, err := o.Hold(t.Context(), time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		<-h.Ended()
		if err := h.Commit([]byte("late")); !errors.Is(err, ErrHold) || time.Since(begin) != time.Minute || get(t, o) != "0" {
			t.Errorf("%v after %v: %s", err, time.Since(begin), get(t, o))
		}
		h.Release()
		e.End()
	})
}

func TestHoldEndsWithItsEpochAndWaitsForItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := NewEpoch(Config{})
		o, q := alone(e, 1)
		q.grant(cachedcopy.ReadWrite, "0")
		h, err := o.Hold(t.Context(), HoldMax)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		next := make(chan error, 1)
		go func() {
			_, err := o.Hold(ctx, time.Second)
			next <- err
		}()
		synctest.Wait()
		enough := errors.New("enough")
		cancel(enough)
		if err := <-next; err != enough {
			t.Errorf("who gave up waiting: %v", err)
		}
		e.End()
		<-h.Ended()
		if err := h.Commit([]byte("1")); !errors.Is(err, ErrRestarted) || !bytes.Equal(h.Value(), []byte("0")) {
			t.Error(err)
		}
		for _, d := range []time.Duration{0, -1, HoldMax + 1} {
			if _, err := o.Hold(t.Context(), d); err == nil {
				t.Errorf("held for %v", d)
			}
		}
	})
}

func TestCountersTellOfHitsMissesAndLosses(t *testing.T) {
	var c Counters
	o, q := alone(NewEpoch(Config{Counters: &c}), 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	o.Get(ctx) // it is over before it waits
	waits, stop := context.WithTimeout(t.Context(), time.Millisecond)
	defer stop()
	o.Get(waits)
	q.grant(cachedcopy.ReadOnly, "x")
	for range 100 * hitSample {
		get(t, o)
	}
	q.revoke(cachedcopy.NoAccess)
	if c.Misses.Load() != 1 || c.Invalidations.Load() != 1 {
		t.Errorf("%d misses, %d losses", c.Misses.Load(), c.Invalidations.Load())
	}
	// Of 100 counted ones on the average, with a deviation of 10.
	if n := c.Hits(); n < 30*hitSample || n > 200*hitSample {
		t.Errorf("about %d hits of %d", n, 100*hitSample)
	}
}
