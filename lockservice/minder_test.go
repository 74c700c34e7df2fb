package lockservice

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A signal is given once, and who asks for its channel before and who asks after it see the same.
func TestSignalIsGivenOnce(t *testing.T) {
	var s signal
	before := s.given()
	select {
	case <-before:
		t.Fatal("it had not happened")
	default:
	}
	if !s.give() || s.give() {
		t.Error("the first give, and no other, is the first")
	}
	<-before
	<-s.given()
	var unheard signal
	unheard.give()
	<-unheard.given()
}

// The context of a hold carries the values of the call that took it, not its end, and tells why it ended also to who asks only then.
func TestContextOfAHoldIsMadeWhenAskedFor(t *testing.T) {
	type key struct{}
	call, end := context.WithCancel(context.WithValue(t.Context(), key{}, "value"))
	defer end()
	cause := errors.New("cause")
	for _, early := range []bool{false, true} {
		c := holdContext{values: call}
		var ctx context.Context
		if early {
			if ctx = c.context(); ctx.Err() != nil {
				t.Error("it has ended with the call")
			}
		}
		end()
		if c.ended() || early && ctx.Err() != nil {
			t.Error("it has ended with the call")
		}
		c.end(cause)
		c.end(errors.New("later"))
		if ctx = c.context(); !c.ended() || context.Cause(ctx) != cause || ctx.Err() == nil || ctx.Value(key{}) != "value" {
			t.Errorf("early %v: %v, %v, %v", early, ctx.Err(), context.Cause(ctx), ctx.Value(key{}))
		}
		<-ctx.Done()
	}
	c := holdContext{values: call}
	c.end(nil)
	if err := c.context().Err(); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// One timer begins the loop of every hold when that is due, whatever the order, and of none that was dropped.
func TestMinderBeginsWhatIsDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m minder
		var mu sync.Mutex
		begun := make(map[*keeper]time.Duration)
		start := time.Now()
		m.begin = func(k *keeper) {
			mu.Lock()
			defer mu.Unlock()
			begun[k] = time.Since(start)
		}
		var all []*keeper
		waits := []time.Duration{30, 10, 20, 10, 40, 5, 0}
		for _, w := range waits {
			k := new(keeper)
			all = append(all, k)
			m.put(k, w*time.Millisecond)
		}
		dropped := map[int]bool{0: true, 3: true, 5: true}
		for i := range dropped {
			m.drop(all[i])
			m.drop(all[i])
		}
		time.Sleep(time.Second)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		for i, k := range all {
			at, ok := begun[k]
			if ok == dropped[i] || ok && at != waits[i]*time.Millisecond {
				t.Errorf("hold %d, due after %v ms, dropped %v: begun %v after %v", i, int64(waits[i]), dropped[i], ok, at)
			}
		}
		if m.holds != (keepers{}) || !m.wakes.IsZero() {
			t.Errorf("left: %+v, %v", m.holds, m.wakes)
		}
		m.stop()
	})
}
