//go:build unix

package wire

import (
	"errors"
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

func TestADialOnItsWayIsHeldByABlockAndGoesOnWhenHealed(t *testing.T) {
	const d = 60 * time.Millisecond
	// On the way there, in the middle, and on the way back.
	for _, after := range []time.Duration{d / 2, d, 3 * d / 2} {
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
		blocked := time.Now()
		select {
		case err := <-ended:
			t.Errorf("blocked after %v: the dial ended %v later: %v", after, time.Since(blocked), err)
			continue
		case <-time.After(3 * d):
		}
		if blocked.Sub(start) < d { // it was still on its way there
			select {
			case at := <-accepted:
				t.Errorf("blocked after %v: accepted %v later", after, at.Sub(blocked))
			default:
			}
		}
		set(t, w, Rules{})
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func TestARefusalIsHeldByABlock(t *testing.T) {
	const d = 60 * time.Millisecond
	for _, after := range []time.Duration{d / 2, 3 * d / 2} {
		w := New()
		defer w.Cut()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		ended := travelling(t, w, l.Addr().String(), d)
		time.Sleep(after)
		set(t, w, Rules{Latency: d, Blocked: []string{l.Addr().String()}})
		select {
		case err := <-ended:
			t.Errorf("blocked after %v: %v", after, err)
			continue
		case <-time.After(3 * d):
		}
		set(t, w, Rules{})
		if err := <-ended; !errors.Is(err, syscall.ECONNREFUSED) {
			t.Error(err)
		}
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
