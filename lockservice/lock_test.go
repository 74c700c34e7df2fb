package lockservice

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"latchkey/internal/automaton"
)

// peer is one client of a world: a service over a group backend, with a clock of its own.
type peer struct {
	*Service
	client *groupClient
	clock  *testClock
}

func (w *world) peer(n byte) *peer { return w.peerWithDrift(n, 0) }

func (w *world) peerWithDrift(n byte, ppm int64) *peer {
	p := &peer{client: w.client(n), clock: newTestClock(ppm)}
	b := NewGroupBackend(p.client, GroupConfig{Limits: LimitsOf(worldTTLMax, int64(automaton.DriftDefault))})
	p.Service = New(b, WithClock(p.clock))
	w.tb.Cleanup(func() { p.Close() })
	return p
}

// inWorld runs a test in virtual time.
func inWorld(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newWorld(t)) })
}

func mustLock(t testing.TB, p *peer, name string, opts ...Option) *Handle {
	t.Helper()
	h, err := p.Lock(t.Context(), name, opts...)
	if err != nil {
		t.Fatalf("lock %q: %v", name, err)
	}
	return h
}

func mustRelease(t testing.TB, h *Handle) {
	t.Helper()
	if err := h.Release(context.Background()); err != nil {
		t.Errorf("release %q: %v", h.Name(), err)
	}
}

func mustInfo(t testing.TB, p *peer, name string) Info {
	t.Helper()
	info, err := p.Info(t.Context(), name)
	if err != nil {
		t.Fatalf("info %q: %v", name, err)
	}
	return info
}

func TestLockIsHeldUntilItIsReleased(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		p := w.peer(1)
		if i := mustInfo(t, p, "n"); i.Held || i.Waiting != 0 {
			t.Errorf("before: %+v", i)
		}
		type key struct{}
		ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "value"))
		h, err := p.NetworkLock(ctx, "n", WithTTL(10*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		synctest.Wait()
		if h.Context().Err() != nil || h.Context().Value(key{}) != "value" {
			t.Errorf("the end of Lock's context ended the hold, or its values are gone: %v", context.Cause(h.Context()))
		}
		if h.Name() != "n" || h.Token() == 0 || h.TTL() != 10*time.Second {
			t.Errorf("handle: %q, token %v, TTL %v", h.Name(), h.Token(), h.TTL())
		}
		i := mustInfo(t, p, "n")
		if !i.Held || !i.Confirmed || i.Token != h.Token() || i.Holder.String() != h.Holder() || i.TTL != h.TTL() ||
			!strings.HasPrefix(i.Holder.Peer, p.client.peer.String()) || i.LeaseLeft < 9*time.Second {
			t.Errorf("while held by %q: %+v", h.Holder(), i)
		}
		if left := h.Remaining(); left <= 9*time.Second || left >= 10*time.Second {
			t.Errorf("%v remain of a fresh lease", left)
		}
		mustRelease(t, h)
		if !errors.Is(context.Cause(h.Context()), ErrNotHeld) || h.Remaining() != 0 {
			t.Errorf("after the release: context %v, %v remain", context.Cause(h.Context()), h.Remaining())
		}
		if i := mustInfo(t, p, "n"); i.Held {
			t.Errorf("after the release: %+v", i)
		}
	})
}

func TestUncontendedLockTakesOneRoundTrip(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		p, before := w.peer(1), time.Now()
		h := mustLock(t, p, "n")
		if d := time.Since(before); d != 2*w.delay || p.client.commands() != 1 {
			t.Errorf("took %v and %d commands, one round trip takes %v", d, p.client.commands(), 2*w.delay)
		}
		mustRelease(t, h)
	})
}

func TestHeldLockIsRenewedForAsLongAsItIsHeld(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		p := w.peer(1)
		h := mustLock(t, p, "n", WithTTL(3*time.Second))
		for range 100 {
			time.Sleep(time.Second)
			if h.Context().Err() != nil || h.Remaining() < time.Second {
				t.Fatalf("lost: %v, %v remain", context.Cause(h.Context()), h.Remaining())
			}
		}
		if n := p.client.commands(); n < 90 || n > 110 {
			t.Errorf("%d commands in 100 s with a renewal due each second", n)
		}
		mustRelease(t, h)
	})
}

// Contenders of several peers, and several of one, get the lock one at a time, in the order of their requests, with rising
// tokens; the counter they share needs no other lock.
func TestContendersTakeTurns(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var wg sync.WaitGroup
		var holders, counter int
		var last Token
		var order []int
		peers := []*peer{w.peer(1), w.peer(2), w.peer(3)}
		for n := range 9 {
			wg.Go(func() {
				p := peers[n%3]
				time.Sleep(time.Duration(n+1) * time.Millisecond) // requests reach the group in this order
				for round := range 5 {
					h, err := p.Lock(t.Context(), "n", WithTTL(5*time.Second))
					if err != nil {
						t.Error(err)
						return
					}
					if holders++; holders != 1 || h.Token() <= last {
						t.Errorf("%d holders; token %v after %v", holders, h.Token(), last)
					}
					last = h.Token()
					if round == 0 {
						order = append(order, n)
					}
					c := counter
					time.Sleep(100 * time.Millisecond)
					counter = c + 1
					holders--
					mustRelease(t, h)
				}
			})
		}
		wg.Wait()
		if counter != 45 || !slices.IsSorted(order) || len(order) != 9 {
			t.Errorf("counter %d of 45, first turns in order %v", counter, order)
		}
	})
}

func TestHandOverTakesOneRoundTripAndAHalf(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.peer(1), w.peer(2)
		h := mustLock(t, a, "n")
		got := make(chan time.Time, 1)
		go func() {
			h := mustLock(t, b, "n")
			got <- time.Now()
			mustRelease(t, h)
		}()
		time.Sleep(time.Second)
		released := time.Now()
		mustRelease(t, h)
		// The release travels, the push travels, and the renewal that confirms it goes there and back.
		if d := (<-got).Sub(released); d != 4*w.delay {
			t.Errorf("handed over after %v, want %v", d, 4*w.delay)
		}
	})
}

func TestLostPushIsMadeUpForByPolling(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.peer(1), w.peer(2)
		h := mustLock(t, a, "n")
		got := make(chan *Handle, 1)
		go func() { got <- mustLock(t, b, "n") }()
		time.Sleep(time.Second)
		b.client.setDeaf(true)
		mustRelease(t, h)
		released := time.Now()
		h = <-got
		if d := time.Since(released); d > pollEvery(TTLDefault)+6*w.delay {
			t.Errorf("handed over after %v, though it polls every %v", d, pollEvery(TTLDefault))
		}
		mustRelease(t, h)
	})
}

func TestQueuedIsToldEveryChangeOfPlace(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b, c := w.peer(1), w.peer(2), w.peer(3)
		h := mustLock(t, a, "n")
		var wg sync.WaitGroup
		wg.Go(func() { mustRelease(t, mustLock(t, b, "n")) })
		time.Sleep(time.Second)
		var places []int
		wg.Go(func() {
			h := mustLock(t, c, "n", WithQueued(func(n int) { places = append(places, n) }))
			time.Sleep(10 * time.Second)
			mustRelease(t, h)
		})
		time.Sleep(time.Second)
		i := mustInfo(t, a, "n")
		if i.Waiting != 2 || len(i.Waiters) != 2 || i.Waiters[0].WaitingFor < time.Second || i.Waiters[0].TTL != TTLDefault ||
			!strings.HasPrefix(i.Waiters[1].Peer, c.client.peer.String()) {
			t.Errorf("with two waiters: %+v", i)
		}
		mustRelease(t, h)
		wg.Wait()
		if len(places) == 0 || places[0] != 2 || !slices.IsSortedFunc(places, func(a, b int) int { return b - a }) {
			t.Errorf("places: %v", places)
		}
	})
}

func TestTryLockDoesNotQueue(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.peer(1), w.peer(2)
		h, err := a.TryLock(t.Context(), "n")
		if err != nil {
			t.Fatal(err)
		}
		before := time.Now()
		_, err = b.TryLock(t.Context(), "n")
		var locked *LockedError
		if !errors.Is(err, ErrLocked) || !errors.As(err, &locked) || locked.Holder.String() != h.Holder() || locked.Name != "n" {
			t.Errorf("got %v", err)
		}
		if d := time.Since(before); d != 2*w.delay {
			t.Errorf("took %v", d)
		}
		if _, err := a.TryLock(t.Context(), "n"); !errors.Is(err, ErrLocked) {
			t.Errorf("the holder's own second try: %v", err)
		}
		if i := mustInfo(t, a, "n"); i.Waiting != 0 {
			t.Errorf("a try left a place in the queue: %+v", i)
		}
		mustRelease(t, h)
	})
}

func TestEndOfContextLeavesTheQueue(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.peer(1), w.peer(2)
		h := mustLock(t, a, "n")
		why := errors.New("changed my mind")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(why) })
		before := time.Now()
		if _, err := b.Lock(ctx, "n"); !errors.Is(err, why) {
			t.Errorf("got %v", err)
		}
		if d := time.Since(before); d != time.Second {
			t.Errorf("returned after %v", d)
		}
		time.Sleep(2 * w.delay)
		if i := mustInfo(t, a, "n"); i.Waiting != 0 {
			t.Errorf("still queued: %+v", i)
		}
		mustRelease(t, h)
		// And nobody has to wait for a lease of the one that left.
		before = time.Now()
		mustRelease(t, mustLock(t, a, "n"))
		if d := time.Since(before); d != 4*w.delay {
			t.Errorf("lock and release took %v", d)
		}
	})
}

// The caller leaves at each moment of a hand-over, one after the other. Whatever it is, the lock is free soon after.
func TestLeavingDuringTheHandOverGivesTheLockBack(t *testing.T) {
	for after := time.Duration(0); after <= 30*time.Millisecond; after += 2500 * time.Microsecond {
		t.Run(fmt.Sprint(after), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				a, b := w.peer(1), w.peer(2)
				h := mustLock(t, a, "n")
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() {
					defer close(done)
					if h, err := b.Lock(ctx, "n"); err == nil {
						mustRelease(t, h)
					} else if !errors.Is(err, context.Canceled) {
						t.Error(err)
					}
				}()
				time.Sleep(time.Second)
				time.AfterFunc(after, cancel)
				mustRelease(t, h)
				<-done
				cancel()
				time.Sleep(10 * w.delay)
				if i := mustInfo(t, a, "n"); i.Held || i.Waiting != 0 {
					t.Errorf("left behind: %+v", i)
				}
			})
		})
	}
}

// The group falls silent after it has pushed the grant and before it has confirmed it: the caller need not wait for it.
func TestEndOfContextEndsTheConfirmationToo(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b, c := w.peer(1), w.peer(2), w.peer(3)
		h := mustLock(t, a, "n", WithTTL(5*time.Second))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := b.Lock(ctx, "n", WithTTL(5*time.Second))
			done <- err
		}()
		time.Sleep(time.Second)
		time.AfterFunc(2*w.delay+w.delay/2, func() { b.client.set(func() { b.client.cut = true }) })
		mustRelease(t, h)
		time.Sleep(time.Second)
		cancel()
		synctest.Wait()
		select {
		case err := <-done:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		default:
			t.Error("still waiting")
		}
		b.client.set(func() { b.client.cut = false })
		mustRelease(t, mustLock(t, c, "n"))
	})
}

func TestWaitLimitIsToldApart(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.peer(1), w.peer(2)
		h := mustLock(t, a, "n")
		before := time.Now()
		_, err := b.Lock(t.Context(), "n", WithWait(2*time.Second))
		if !errors.Is(err, ErrWait) || !errors.Is(err, ErrLocked) || time.Since(before) != 2*time.Second {
			t.Errorf("after %v: %v", time.Since(before), err)
		}
		mustRelease(t, h)
		b.client.set(func() { b.client.cut = true })
		_, err = b.Lock(t.Context(), "m", WithWait(2*time.Second))
		if !errors.Is(err, ErrWait) || errors.Is(err, ErrLocked) {
			t.Errorf("without an answer: %v", err)
		}
	})
}

// A holder that is cut off stops by its own clock, a guard before D, and nobody else is granted the lock before D; also
// with clocks as far apart as the overlay's drift allows, in either direction.
func TestCutOffHolderStopsBeforeAnyoneElseIsGranted(t *testing.T) {
	const drift = int64(automaton.DriftDefault)
	for _, ppm := range [][2]int64{{0, 0}, {-drift, drift}, {drift, -drift}} {
		t.Run(fmt.Sprint(ppm), func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.clock.ppm = ppm[1]
				a, b := w.peerWithDrift(1, ppm[0]), w.peer(2)
				const ttl = 10 * time.Second
				h := mustLock(t, a, "n", WithTTL(ttl))
				time.Sleep(20 * time.Second)
				left := h.Remaining()
				a.client.set(func() { a.client.cut = true })
				cut := time.Now()
				type stop struct{ lost, d time.Time }
				stopped := make(chan stop, 1)
				go func() {
					<-h.Context().Done()
					lost := time.Now()
					time.Sleep(a.clock.real(ttl / 10)) // the guard: what is left of its lease
					stopped <- stop{lost, time.Now()}
				}()
				next := mustLock(t, b, "n", WithTTL(ttl))
				granted := time.Now()
				s := <-stopped
				if !granted.After(s.d) {
					t.Errorf("granted to another at %v, while the holder's lease lasts until %v", granted.Sub(cut), s.d.Sub(cut))
				}
				if lost, want := s.lost.Sub(cut), a.clock.real(left-ttl/10); lost < want-time.Millisecond || lost > want+checkEvery(ttl)/100 {
					t.Errorf("the loss was reported after %v with %v left, want %v", lost, left, want)
				}
				var e *LostError
				if cause := context.Cause(h.Context()); !errors.Is(cause, ErrLost) || !errors.As(cause, &e) || e.Token != h.Token() ||
					e.Name != "n" || e.Since < 8*time.Second || e.Since > 9*time.Second {
					t.Errorf("cause: %v", cause)
				}
				if h.Remaining() != 0 {
					t.Errorf("%v remain of a lost lock", h.Remaining())
				}
				if next.Token() <= h.Token() {
					t.Errorf("token %v after %v", next.Token(), h.Token())
				}
				if granted.Sub(cut) > 11*time.Second {
					t.Errorf("a dead holder blocked others for %v", granted.Sub(cut))
				}
				mustRelease(t, next)
			})
		})
	}
}

func TestLossIsReportedInTimeHoweverTheBackendFails(t *testing.T) {
	for name, fault := range map[string]func(*groupClient){
		"nothing gets through":   func(c *groupClient) { c.cut = true },
		"no quorum":              func(c *groupClient) { c.down = true },
		"answers get lost":       func(c *groupClient) { c.mute = true },
		"the backend was closed": func(c *groupClient) { c.closed = true },
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				p := w.peer(1)
				h := mustLock(t, p, "n", WithTTL(6*time.Second))
				time.Sleep(61 * time.Second) // between two renewals
				left := h.Remaining()
				p.client.set(func() { fault(p.client) })
				before := time.Now()
				<-h.Context().Done()
				if d, want := time.Since(before), left-h.TTL()/10; d < want-time.Millisecond || d > want+time.Millisecond {
					t.Errorf("lost after %v, want %v", d, want)
				}
				cause := context.Cause(h.Context())
				if !errors.Is(cause, ErrLost) || errors.Is(cause, ErrNotHeld) {
					t.Errorf("cause: %v", cause)
				}
				p.client.set(func() { p.client.cut, p.client.down, p.client.mute, p.client.closed = false, false, false, false })
			})
		})
	}
}

func TestShortOutageDoesNotLoseTheLock(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		p := w.peer(1)
		h := mustLock(t, p, "n", WithTTL(10*time.Second))
		for range 5 {
			p.client.set(func() { p.client.down = true })
			time.Sleep(5 * time.Second)
			p.client.set(func() { p.client.down = false })
			time.Sleep(time.Second)
			if h.Context().Err() != nil || h.Remaining() < 8*time.Second {
				t.Fatalf("lost: %v, %v remain", context.Cause(h.Context()), h.Remaining())
			}
		}
		mustRelease(t, h)
	})
}

func TestEndOfTheSessionLosesItsLocks(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		p := w.peer(1)
		h := mustLock(t, p, "n", WithTTL(15*time.Second))
		w.endSession(p.client)
		before := time.Now()
		<-h.Context().Done()
		if cause := context.Cause(h.Context()); !errors.Is(cause, ErrLost) || !errors.Is(cause, ErrNotHeld) {
			t.Errorf("cause: %v", cause)
		}
		if d := time.Since(before); d > 6*time.Second {
			t.Errorf("noticed after %v, though renewals are due every 5 s", d)
		}
	})
}

func TestWaiterWhoseSessionEndsQueuesAgain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.peer(1), w.peer(2)
		h := mustLock(t, a, "n")
		got := make(chan *Handle, 1)
		go func() { got <- mustLock(t, b, "n") }()
		time.Sleep(time.Second)
		for range 6 {
			w.endSession(b.client)
			time.Sleep(10 * time.Second)
			if i := mustInfo(t, a, "n"); i.Waiting != 1 {
				t.Errorf("%d wait", i.Waiting)
			}
		}
		mustRelease(t, h)
		mustRelease(t, <-got)
	})
}

func TestJumpOfTheClockLosesTheLock(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		p := w.peer(1)
		h := mustLock(t, p, "n")
		p.clock.jump()
		if h.Remaining() != 0 {
			t.Errorf("%v remain after a jump", h.Remaining())
		}
		before := time.Now()
		<-h.Context().Done()
		if d := time.Since(before); !errors.Is(context.Cause(h.Context()), ErrLost) || d > 500*time.Millisecond {
			t.Errorf("after %v: %v", d, context.Cause(h.Context()))
		}
	})
}

// The machine sleeps: the suspend-aware clock goes on while Go's timers stand still.
func TestSuspendIsNoticedWithoutATimer(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		p := w.peer(1)
		h := mustLock(t, p, "n", WithTTL(time.Minute))
		p.clock.sleep(time.Hour)
		if h.Remaining() != 0 {
			t.Errorf("%v remain after an hour's sleep", h.Remaining())
		}
		before := time.Now()
		<-h.Context().Done()
		var e *LostError
		if d := time.Since(before); d > 500*time.Millisecond || !errors.As(context.Cause(h.Context()), &e) || e.Since < time.Hour {
			t.Errorf("noticed after %v: %v", d, context.Cause(h.Context()))
		}
	})
}

func TestReleaseIsIdempotentAndNeverTouchesALaterHold(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.peer(1), w.peer(2)
		first := mustLock(t, a, "n", WithTTL(5*time.Second))
		mustRelease(t, first)
		second := mustLock(t, a, "n", WithTTL(5*time.Second)) // of the same session
		sent := a.client.commands()
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() { mustRelease(t, first) })
		}
		wg.Wait()
		if n := a.client.commands(); n != sent {
			t.Errorf("releasing again sent %d commands", n-sent)
		}
		if i := mustInfo(t, b, "n"); !i.Held || i.Token != second.Token() || second.Context().Err() != nil {
			t.Errorf("the second hold is gone: %+v", i)
		}
		// A hold that is lost while another one has the lock since.
		a.client.set(func() { a.client.cut = true })
		third := mustLock(t, b, "n", WithTTL(5*time.Second))
		a.client.set(func() { a.client.cut = false })
		if err := second.Release(t.Context()); !errors.Is(err, ErrLost) {
			t.Errorf("release of a lost lock: %v", err)
		}
		if err := second.Release(t.Context()); !errors.Is(err, ErrLost) {
			t.Errorf("and again: %v", err)
		}
		if i := mustInfo(t, b, "n"); i.Token != third.Token() || third.Context().Err() != nil {
			t.Errorf("the third hold is gone: %+v", i)
		}
		mustRelease(t, third)
	})
}

func TestReleaseOfALostLockLetsOthersIn(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.peer(1), w.peer(2)
		h := mustLock(t, a, "n", WithTTL(time.Minute))
		a.clock.jump()
		<-h.Context().Done()
		if err := h.Release(t.Context()); !errors.Is(err, ErrLost) {
			t.Errorf("got %v", err)
		}
		before := time.Now()
		mustRelease(t, mustLock(t, b, "n"))
		if d := time.Since(before); d > time.Second {
			t.Errorf("the next one waited %v", d)
		}
	})
}

func TestReleaseWithoutAnAnswerIsUnknownAndGoesOn(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.peer(1), w.peer(2)
		h := mustLock(t, a, "n", WithTTL(30*time.Second))
		a.client.set(func() { a.client.down = true })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := h.Release(ctx); !errors.Is(err, ErrOutcomeUnknown) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		a.client.set(func() { a.client.down = false })
		before := time.Now()
		mustRelease(t, mustLock(t, b, "n"))
		if d := time.Since(before); d > 2*time.Second {
			t.Errorf("the next one waited %v", d)
		}
		mustRelease(t, h) // found out meanwhile
	})
}

// Whoever waits does so through a partition that its session does not outlive. Who only tries is told that nobody knows.
func TestAcquireOutlivesItsSession(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.peer(1)
		lapse := func() { a.client.set(func() { a.client.lapsed = true }) }
		lapse()
		mustRelease(t, mustLock(t, a, "n"))
		lapse()
		if _, err := a.TryLock(t.Context(), "n"); !errors.Is(err, ErrOutcomeUnknown) {
			t.Errorf("got %v", err)
		}
	})
}

func TestUnansweredAcquireIsTakenBack(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.peer(1), w.peer(2)
		a.client.set(func() { a.client.mute = true })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := a.Lock(ctx, "n"); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrOutcomeUnknown) {
			t.Errorf("got %v", err)
		}
		before := time.Now()
		mustRelease(t, mustLock(t, b, "n"))
		if d := time.Since(before); d > time.Second {
			t.Errorf("the next one waited %v", d)
		}
	})
}

func TestWaiterOutlastsAnOutage(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.peer(1), w.peer(2)
		h := mustLock(t, a, "n", WithTTL(5*time.Second))
		got := make(chan *Handle, 1)
		go func() { got <- mustLock(t, b, "n", WithTTL(5*time.Second)) }()
		time.Sleep(time.Second)
		b.client.set(func() { b.client.down = true })
		b.client.setDeaf(true)
		time.Sleep(3 * time.Second)
		w.restart()
		b.client.set(func() { b.client.down = false })
		mustRelease(t, h)
		mustRelease(t, <-got)
	})
}

// A grant out of the queue whose waiter hears of it too late has lapsed: the waiter asks again instead of holding.
func TestGrantHeardOfTooLateIsNoHold(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b, c := w.peer(1), w.peer(2), w.peer(3)
		h := mustLock(t, a, "n", WithTTL(5*time.Second))
		var wg sync.WaitGroup
		var late *Handle
		wg.Go(func() { late = mustLock(t, b, "n", WithTTL(5*time.Second)) })
		time.Sleep(time.Second)
		b.client.set(func() { b.client.down = true })
		b.client.setDeaf(true)
		mustRelease(t, h)
		time.Sleep(6 * time.Second) // b's grant lapses; its session lives on
		other := mustLock(t, c, "n", WithTTL(5*time.Second))
		b.client.set(func() { b.client.down = false })
		b.client.setDeaf(false)
		time.Sleep(10 * time.Second)
		if other.Context().Err() != nil || late != nil {
			t.Errorf("two holders: %v", context.Cause(other.Context()))
		}
		mustRelease(t, other)
		wg.Wait()
		if late.Token() <= other.Token() {
			t.Errorf("token %v after %v", late.Token(), other.Token())
		}
		mustRelease(t, late)
	})
}

func TestLockWithoutRenewalEndsWithItsLease(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.peer(1), w.peer(2)
		before := time.Now()
		h := mustLock(t, a, "n", WithTTL(10*time.Second), WithoutRenewal())
		<-h.Context().Done()
		if d := time.Since(before); d < 8*time.Second || d > 9*time.Second || !errors.Is(context.Cause(h.Context()), ErrLost) {
			t.Errorf("after %v: %v", d, context.Cause(h.Context()))
		}
		mustRelease(t, mustLock(t, b, "n"))
		// Out of the queue it is confirmed, and then renewed no more.
		h = mustLock(t, a, "n")
		got := make(chan *Handle, 1)
		go func() { got <- mustLock(t, b, "n", WithTTL(10*time.Second), WithoutRenewal()) }()
		time.Sleep(time.Second)
		mustRelease(t, h)
		before = time.Now()
		<-(<-got).Context().Done()
		if d := time.Since(before); d < 8*time.Second || d > 9*time.Second {
			t.Errorf("after %v", d)
		}
	})
}

func TestCloseReleasesWhatIsHeldAndEndsWhoWaits(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.peer(1), w.peer(2)
		x, y := mustLock(t, a, "x"), mustLock(t, a, "y")
		other := mustLock(t, b, "z")
		waiting := make(chan error, 1)
		go func() {
			_, err := a.Lock(t.Context(), "z")
			waiting <- err
		}()
		time.Sleep(time.Second)
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		if err := a.Close(); err != nil {
			t.Errorf("again: %v", err)
		}
		if err := <-waiting; !errors.Is(err, ErrClosed) {
			t.Errorf("who waited got %v", err)
		}
		for _, h := range []*Handle{x, y} {
			if i := mustInfo(t, b, h.Name()); i.Held || !errors.Is(context.Cause(h.Context()), ErrNotHeld) {
				t.Errorf("%q after Close: %+v, %v", h.Name(), i, context.Cause(h.Context()))
			}
			mustRelease(t, h)
		}
		if i := mustInfo(t, b, "z"); i.Waiting != 0 {
			t.Errorf("still queued: %+v", i)
		}
		if _, err := a.Lock(t.Context(), "x"); !errors.Is(err, ErrClosed) {
			t.Errorf("lock after Close: %v", err)
		}
		if _, err := a.Info(t.Context(), "x"); !errors.Is(err, ErrClosed) {
			t.Errorf("info after Close: %v", err)
		}
		mustRelease(t, other)
	})
}

func TestCloseDoesNotWaitForAGroupThatIsGone(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b := w.peer(1), w.peer(2)
		h := mustLock(t, a, "n", WithTTL(30*time.Second))
		other := mustLock(t, b, "m")
		go a.Lock(t.Context(), "m")
		time.Sleep(time.Second)
		a.client.set(func() { a.client.cut = true })
		before := time.Now()
		if err := a.Close(); !errors.Is(err, ErrOutcomeUnknown) {
			t.Errorf("got %v", err)
		}
		if d := time.Since(before); d > 2*closeTimeout {
			t.Errorf("took %v", d)
		}
		if h.Context().Err() == nil {
			t.Error("the handle's context lives on")
		}
		mustRelease(t, other)
	})
}

func TestAbandonWaitsForNobody(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.peer(1)
		held, asked := mustLock(t, a, "n", WithTTL(30*time.Second)), mustLock(t, a, "m", WithTTL(30*time.Second))
		lasting := mustLock(t, a, "l", WithTTL(3*time.Second))
		time.Sleep(5 * time.Second)
		a.client.set(func() { a.client.cut = true })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := asked.Release(ctx); !errors.Is(err, ErrOutcomeUnknown) {
			t.Errorf("a release that nobody answers: %v", err)
		}
		before := time.Now()
		if a.Abandon(); time.Since(before) > 0 {
			t.Errorf("took %v", time.Since(before))
		}
		for _, h := range []*Handle{held, lasting} {
			if cause := context.Cause(h.Context()); !errors.Is(cause, ErrLost) || !errors.Is(cause, ErrClosed) {
				t.Errorf("the handle of %q: %v", h.Name(), cause)
			}
		}
		if _, err := a.Lock(t.Context(), "n"); !errors.Is(err, ErrClosed) {
			t.Errorf("lock afterwards: %v", err)
		}
	})
}

func TestNoLeaseIsShownAsLongerThanItsTTL(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		h := mustLock(t, w.peer(1), "n", WithTTL(10*time.Second))
		if i := mustInfo(t, w.peer(2), "n"); !i.Held || i.LeaseLeft > i.TTL || i.LeaseLeft < i.TTL-time.Second {
			t.Errorf("%v left of %v", i.LeaseLeft, i.TTL)
		}
		mustRelease(t, h)
	})
}

func TestBadRequestsAreRefusedBeforeAnythingIsSent(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		p := w.peer(1)
		for _, name := range []string{"", strings.Repeat("x", 1025), "a\nb", "\xff"} {
			if _, err := p.Lock(t.Context(), name); !errors.Is(err, ErrName) {
				t.Errorf("lock %.10q: %v", name, err)
			}
			if _, err := p.TryLock(t.Context(), name); !errors.Is(err, ErrName) {
				t.Errorf("try %.10q: %v", name, err)
			}
			if _, err := p.Info(t.Context(), name); !errors.Is(err, ErrName) {
				t.Errorf("info %.10q: %v", name, err)
			}
		}
		for _, ttl := range []time.Duration{-1, time.Second - 1, worldTTLMax + 1} {
			if _, err := p.Lock(t.Context(), "n", WithTTL(ttl)); !errors.Is(err, ErrTTL) || !strings.Contains(err.Error(), `lock "n"`) {
				t.Errorf("TTL %v: %v", ttl, err)
			}
		}
		if n := p.client.commands(); n != 0 {
			t.Errorf("sent %d commands", n)
		}
		mustRelease(t, mustLock(t, p, strings.Repeat("x", 1024), WithTTL(time.Second)))
		mustRelease(t, mustLock(t, p, "n", WithTTL(worldTTLMax)))
	})
}

// The backend works the same for callers that check nothing, such as a daemon's API.
func TestBackendChecksWhatItIsGiven(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		b := w.peer(1).backend
		if _, err := b.Acquire(t.Context(), Request{Name: "a\tb", TTL: time.Second}); !errors.Is(err, ErrName) {
			t.Errorf("got %v", err)
		}
		if _, err := b.Acquire(t.Context(), Request{Name: "n", TTL: time.Hour}); !errors.Is(err, ErrTTL) {
			t.Errorf("got %v", err)
		}
		for name, call := range map[string]func(Grant) error{
			"renew":   func(g Grant) error { return b.Renew(t.Context(), g) },
			"release": func(g Grant) error { return b.Release(t.Context(), g) },
		} {
			if err := call(Grant{Name: "n", Token: 5, TTL: time.Second, Req: 99}); !errors.Is(err, ErrNotHeld) {
				t.Errorf("%s of what was never granted: %v", name, err)
			}
			if err := call(Grant{Name: "\x00", Token: 5, TTL: time.Second, Req: 99}); !errors.Is(err, ErrName) {
				t.Errorf("%s under a bad name: %v", name, err)
			}
		}
	})
}

func TestTakingBackIsBounded(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		p := w.peer(1)
		b := p.backend.(*groupBackend)
		p.client.set(func() { p.client.cut = true })
		for req := range uint64(leavingMax + 10) {
			b.leave("n", req)
		}
		leaving := func() int {
			synctest.Wait()
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.leaving
		}
		if n := leaving(); n != leavingMax {
			t.Errorf("%d requests are being taken back, at most %d may be", n, leavingMax)
		}
		time.Sleep(leaveTimeout)
		if n := leaving(); n != 0 {
			t.Errorf("%d are left after %v", n, leaveTimeout)
		}
	})
}

// What a lock costs beside the network: the codec, the table, and the automaton of the holder.
func BenchmarkAcquireRelease(b *testing.B) {
	w := newWorld(b)
	w.delay = 0
	p := w.peer(1)
	b.ReportAllocs()
	for b.Loop() {
		h, err := p.Lock(b.Context(), "n")
		if err != nil {
			b.Fatal(err)
		}
		if err := h.Release(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// A service may be closed at the very moment at which a lock is granted: one goroutine at a time touches the hold all the same.
// The race detector is the judge.
func TestCloseMayMeetAGrant(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for i := range 50 {
			p := w.peer(byte(i + 1))
			done := make(chan struct{})
			go func() {
				defer close(done)
				if h, err := p.Lock(t.Context(), fmt.Sprint(i)); err == nil {
					<-h.Context().Done()
				} else if !errors.Is(err, ErrClosed) {
					t.Errorf("lock %d: %v", i, err)
				}
			}()
			time.Sleep(2 * w.delay)
			p.Close()
			<-done
		}
	})
}
