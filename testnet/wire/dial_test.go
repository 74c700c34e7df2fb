//go:build unix

package wire

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"
)

// travelling starts a dial to address under a latency, and returns when it is on its way.
func travelling(t *testing.T, w *Wire, address string, latency time.Duration) (ended chan error) {
	t.Helper()
	set(t, w, Rules{Latency: latency})
	ended = make(chan error, 1)
	began := make(chan struct{})
	go func() {
		close(began)
		c, err := w.Dial(t.Context(), "tcp", address)
		if err == nil {
			c.Close()
		}
		ended <- err
	}()
	<-began
	return ended
}

// blockOnTheWay has a test block a dial some quarters of a round trip after it began. A machine that is busy elsewhere may be late with
// that, and the dial be through: then it is tried again under a larger latency. try returns how long after the dial's begin the block
// was in force, and what went wrong if it was in time.
func blockOnTheWay(t *testing.T, quarters int, try func(latency, after time.Duration) (blocked time.Duration, err error)) {
	t.Helper()
	for latency := 60 * time.Millisecond; latency < patience; latency *= 2 {
		after := time.Duration(quarters) * latency / 2
		if blocked, err := try(latency, after); blocked < 2*latency {
			if err != nil {
				t.Errorf("blocked after %v of %v: %v", blocked, 2*latency, err)
			}
			return
		}
	}
	t.Fatal("the block always comes too late")
}

func TestADialOnItsWayIsHeldByABlockAndGoesOnWhenHealed(t *testing.T) {
	for _, quarters := range []int{1, 2, 3} { // on the way there, in the middle, and on the way back
		blockOnTheWay(t, quarters, func(d, after time.Duration) (time.Duration, error) {
			w := New()
			defer w.Cut()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			accepted := make(chan time.Time, 1)
			go func() {
				c, err := l.Accept()
				if err == nil {
					accepted <- time.Now()
					c.Close()
				}
			}()
			start := time.Now()
			ended := travelling(t, w, l.Addr().String(), d)
			time.Sleep(after)
			set(t, w, Rules{Latency: d, Blocked: []string{l.Addr().String()}})
			at := time.Now()
			blocked := at.Sub(start)
			select {
			case err := <-ended:
				return blocked, fmt.Errorf("the dial ended %v later: %v", time.Since(at), err)
			case <-time.After(3 * d):
			}
			if blocked < d { // it was still on its way there
				select {
				case came := <-accepted:
					return blocked, fmt.Errorf("accepted %v later", came.Sub(at))
				default:
				}
			}
			set(t, w, Rules{})
			return blocked, <-ended
		})
	}
}

func TestARefusalIsHeldByABlock(t *testing.T) {
	for _, quarters := range []int{1, 3} {
		blockOnTheWay(t, quarters, func(d, after time.Duration) (time.Duration, error) {
			w := New()
			defer w.Cut()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			l.Close()
			start := time.Now()
			ended := travelling(t, w, l.Addr().String(), d)
			time.Sleep(after)
			set(t, w, Rules{Latency: d, Blocked: []string{l.Addr().String()}})
			blocked := time.Since(start)
			select {
			case err := <-ended:
				return blocked, fmt.Errorf("the dial ended: %v", err)
			case <-time.After(3 * d):
			}
			set(t, w, Rules{})
			if err := <-ended; !errors.Is(err, syscall.ECONNREFUSED) {
				return blocked, fmt.Errorf("healed: %v", err)
			}
			return blocked, nil
		})
	}
}

// Whatever the instant at which a block comes, nobody is accepted after it.
func TestNoDialSlipsThroughAsABlockComes(t *testing.T) {
	w := New()
	defer w.Cut()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	addr := l.Addr().String()
	set(t, w, Rules{Blocked: []string{addr}})
	const dials = 4
	for range 100 {
		ended := make(chan error, dials)
		for range dials {
			go func() {
				c, err := w.Dial(t.Context(), "tcp", addr)
				if err == nil {
					c.Close()
				}
				ended <- err
			}()
		}
		set(t, w, Rules{})
		set(t, w, Rules{Blocked: []string{addr}})
		// What has come in may be in the queue of the kernel. After it nothing comes.
		tl := l.(*net.TCPListener)
		accept := func(wait time.Duration) (n int) {
			for {
				tl.SetDeadline(time.Now().Add(wait))
				c, err := l.Accept()
				if err != nil {
					return n
				}
				c.Close()
				n++
			}
		}
		first := accept(time.Millisecond)
		if n := accept(2 * time.Millisecond); n != 0 {
			t.Fatalf("%d before the block, %d after it", first, n)
		}
		set(t, w, Rules{})
		for range dials {
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
		}
		accept(0)
		set(t, w, Rules{Blocked: []string{addr}})
	}
}

// A dial that waits in the kernel for an end that says nothing holds no rules up, and is held itself.
func TestRulesDoNotWaitForAConnectInTheKernel(t *testing.T) {
	w := New()
	silent := silentAddress(t)
	ended := make(chan error, 1)
	go func() {
		_, err := w.Dial(t.Context(), "tcp", silent)
		ended <- err
	}()
	under := func(n int) func() bool {
		return func() bool { w.mu.Lock(); defer w.mu.Unlock(); return len(w.connects) == n }
	}
	until(t, "it is in the kernel", under(1))
	set(t, w, Rules{Latency: time.Millisecond})
	set(t, w, Rules{Blocked: []string{silent}})
	if !under(0)() {
		t.Error("the connect goes on under a block")
	}
	set(t, w, Rules{})
	until(t, "it connects again", under(1))
	w.Cut()
	if err := <-ended; !errors.Is(err, ErrCut) {
		t.Error(err)
	}
}

func TestAddressesThatNoRuleCouldNameAreNotDialled(t *testing.T) {
	w := New()
	defer w.Cut()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	for _, host := range []string{"0.0.0.0", "[::]", "[::ffff:0.0.0.0]", "[::%lo]", "localhost", ""} {
		if c, err := w.Dial(t.Context(), "tcp", host+":"+port); !errors.Is(err, ErrAddress) {
			t.Errorf("%s: %v, %v", host, c, err)
		}
	}
}
