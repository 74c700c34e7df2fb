package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// patience is for what should not take long.
const patience = time.Minute

// block cuts w off from the remote end of near.
func block(t testing.TB, w *Wire, near net.Conn) {
	t.Helper()
	set(t, w, Rules{Blocked: []string{near.RemoteAddr().String()}})
}

func set(t testing.TB, w *Wire, r Rules) {
	t.Helper()
	if err := w.SetRules(r); err != nil {
		t.Fatal(err)
	}
}

func send(t testing.TB, c net.Conn, text string) {
	t.Helper()
	c.SetWriteDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

func receive(t testing.TB, c net.Conn, want string) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("received %q, %v; want %q", got[:n], err, want)
	}
}

// silent checks that c gets neither a byte nor an error for a while.
func silent(t testing.TB, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("not silent: %d bytes, %v", n, err)
	}
}

func TestABlockedConnectionIsSilentAndGoesOnInOrderWhenHealed(t *testing.T) {
	w := New()
	defer w.Cut()
	near, far := pair(t, w)
	for range 5 { // each time from plain to shaped and back
		send(t, near, "before ")
		receive(t, far, "before ") // it may be shaped still, and hold this when the block comes
		block(t, w, near)
		send(t, near, "held ")
		send(t, far, "so is this ")
		silent(t, far)
		silent(t, near)
		set(t, w, Rules{})
		send(t, near, "after")
		send(t, far, "and this")
		receive(t, far, "held after")
		receive(t, near, "so is this and this")
	}
	// Healed and idle, it is a plain connection again.
	d := near.(*dialled)
	plain := func(h *half) bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return !h.shaped && !h.pumping && h.bytes == 0
	}
	until(t, "the connection is plain", func() bool {
		send(t, near, ".")
		receive(t, far, ".")
		send(t, far, ".")
		receive(t, near, ".")
		return plain(&d.in.half) && plain(&d.out.half)
	})
}

func TestOnlyTheBlockedAddressIsCutOff(t *testing.T) {
	w := New()
	defer w.Cut()
	a, farA := pair(t, w)
	b, farB := pair(t, w)
	block(t, w, a)
	send(t, b, "hello")
	receive(t, farB, "hello")
	send(t, a, "hello")
	silent(t, farA)
	block(t, w, b) // replaces
	receive(t, farA, "hello")
	send(t, b, "hello")
	silent(t, farB)
}

// What the kernel was busy with when the rules came must stop too: a writer and a reader that were blocked in it already.
func TestCallsUnderWayAreBlockedToo(t *testing.T) {
	w := New()
	defer w.Cut()
	near, far := pair(t, w)
	text := strings.Repeat("0123456789abcdef", 1<<20) // more than the kernel takes
	wrote, read := make(chan error, 1), make(chan string, 1)
	go func() {
		_, err := io.WriteString(near, text)
		wrote <- err
	}()
	go func() {
		b := make([]byte, 8)
		n, err := io.ReadFull(near, b)
		read <- fmt.Sprint(string(b[:n]), err)
	}()
	// Part of the text is in the kernel, and the writer waits for room. Wait until it got there: 1 MiB can be received.
	receive(t, far, text[:1<<20])
	block(t, w, near)
	// What the kernel has may come, and no more.
	got := 1 << 20
	for b := make([]byte, 1<<20); ; {
		far.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		n, err := far.Read(b)
		if got += n; err != nil {
			break
		}
	}
	if got == len(text) {
		t.Fatal("everything got through")
	}
	send(t, far, "an answe")
	silent(t, far)
	select {
	case err := <-wrote:
		t.Fatal("the write is over:", err)
	case s := <-read:
		t.Fatal("the read got", s)
	default:
	}
	set(t, w, Rules{})
	if s := <-read; s != "an answe<nil>" {
		t.Error("read", s)
	}
	receive(t, far, text[got:])
	if err := <-wrote; err != nil {
		t.Error(err)
	}
}

func TestABlockedWriterWaitsOnceTheLineIsFull(t *testing.T) {
	w := New()
	defer w.Cut()
	near, far := pair(t, w)
	block(t, w, near)
	near.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
	n, err := near.Write(make([]byte, 2*LineBytesMax))
	if !errors.Is(err, os.ErrDeadlineExceeded) || n > LineBytesMax || n == 0 {
		t.Fatalf("wrote %d bytes, %v", n, err)
	}
	near.SetWriteDeadline(time.Time{})
	small := 0
	for near.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)); err == nil; small++ {
		_, err = near.Write([]byte{1})
	}
	if small > 1 {
		t.Errorf("a full line took %d more bytes", small)
	}
	set(t, w, Rules{})
	receive(t, far, string(make([]byte, n)))
}

func TestDeadlinesCloseAndCutEndBlockedCalls(t *testing.T) {
	for name, end := range map[string]struct {
		do   func(w *Wire, c net.Conn)
		want error
	}{
		"deadline": {func(_ *Wire, c net.Conn) { c.SetDeadline(time.Now().Add(20 * time.Millisecond)) }, os.ErrDeadlineExceeded},
		"past":     {func(_ *Wire, c net.Conn) { c.SetDeadline(time.Unix(1, 0)) }, os.ErrDeadlineExceeded},
		"close":    {func(_ *Wire, c net.Conn) { c.Close() }, net.ErrClosed},
		"cut":      {func(w *Wire, _ net.Conn) { w.Cut() }, ErrCut},
	} {
		for _, rules := range []string{"before", "under way"} {
			t.Run(name+", rules "+rules, func(t *testing.T) {
				w := New()
				defer w.Cut()
				near, _ := pair(t, w)
				if rules == "before" {
					block(t, w, near)
				}
				calls := make(chan error, 2)
				go func() {
					_, err := near.Read(make([]byte, 1))
					calls <- err
				}()
				go func() {
					_, err := near.Write(make([]byte, 64<<20))
					calls <- err
				}()
				block(t, w, near)
				end.do(w, near)
				for range 2 {
					select {
					case err := <-calls:
						if !errors.Is(err, end.want) {
							t.Errorf("ended by %v, want %v", err, end.want)
						}
					case <-time.After(patience):
						t.Fatal("still blocked")
					}
				}
			})
		}
	}
}

func TestAnEndIsHeldLikeEverythingElse(t *testing.T) {
	w := New()
	defer w.Cut()
	near, far := pair(t, w)
	block(t, w, near)
	send(t, near, "last words")
	near.Close()
	if err := near.Close(); !errors.Is(err, net.ErrClosed) {
		t.Error("second close:", err)
	}
	silent(t, far)
	set(t, w, Rules{})
	receive(t, far, "last words")
	if _, err := far.Read(make([]byte, 1)); err == nil {
		t.Error("no end after the heal")
	}

	near, far = pair(t, w)
	block(t, w, near)
	send(t, far, "last words")
	far.Close()
	silent(t, near)
	set(t, w, Rules{})
	receive(t, near, "last words")
	if _, err := near.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("no end after the heal:", err)
	}
	near.Close()
	until(t, "connections close", func() bool { return w.Conns() == 0 })
}

func TestADialToABlockedAddressHangsUntilItsContextTheHealOrTheCut(t *testing.T) {
	w := New()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	addr := l.Addr().String()
	set(t, w, Rules{Blocked: []string{addr}})

	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := w.Dial(ctx, "tcp", addr); !errors.Is(err, context.DeadlineExceeded) || ctx.Err() == nil {
		t.Error("blocked dial:", err)
	}
	dial := func() chan error {
		ended := make(chan error, 1)
		go func() {
			c, err := w.Dial(t.Context(), "tcp", addr)
			if err == nil {
				c.Close()
			}
			ended <- err
		}()
		return ended
	}
	hung := func(ended chan error) {
		select {
		case err := <-ended:
			t.Fatal("the dial ended:", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
	healed := dial()
	hung(healed)
	set(t, w, Rules{Blocked: []string{addr, "127.0.0.1:1"}}) // still
	hung(healed)
	set(t, w, Rules{})
	if err := <-healed; err != nil {
		t.Error(err)
	}
	set(t, w, Rules{Blocked: []string{"[::ffff:127.0.0.1]:" + addr[strings.LastIndex(addr, ":")+1:]}}) // the same address
	cut := dial()
	hung(cut)
	w.Cut()
	if err := <-cut; !errors.Is(err, ErrCut) {
		t.Error(err)
	}
	if err := w.SetRules(Rules{}); !errors.Is(err, ErrCut) {
		t.Error(err)
	}
}

func TestLatencyIsTakenEachWayAndKeepsOrder(t *testing.T) {
	const d = 60 * time.Millisecond
	w := New()
	defer w.Cut()
	near, far := pair(t, w)
	set(t, w, Rules{Latency: d})
	for _, way := range []struct{ from, to net.Conn }{{near, far}, {far, near}} {
		for range 3 {
			start := time.Now()
			send(t, way.from, "there")
			receive(t, way.to, "there")
			if took := time.Since(start); took < d || took > d+patience/2 {
				t.Errorf("one way took %v, want %v", took, d)
			}
		}
		// Bytes travel side by side: a hundred pieces take hardly longer than one.
		start := time.Now()
		want := ""
		for i := range 100 {
			send(t, way.from, fmt.Sprint(i, " "))
			want += fmt.Sprint(i, " ")
		}
		receive(t, way.to, want)
		if took := time.Since(start); took < d || took > 50*d {
			t.Errorf("a hundred pieces took %v with a latency of %v", took, d)
		}
	}
	// A dial takes a round trip, and so does the news that the other end is gone.
	start := time.Now()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := w.Dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < 2*d {
		t.Errorf("a dial took %v", took)
	}
	c.Close()
	start = time.Now()
	near.Close()
	far.SetReadDeadline(time.Now().Add(patience))
	if _, err := far.Read(make([]byte, 1)); err == nil || time.Since(start) < d {
		t.Errorf("the end was seen after %v: %v", time.Since(start), err)
	}
	near, far = pair(t, w)
	start = time.Now()
	far.Close()
	near.SetReadDeadline(time.Now().Add(patience))
	if _, err := near.Read(make([]byte, 1)); err == nil || time.Since(start) < d {
		t.Errorf("the end was seen after %v: %v", time.Since(start), err)
	}
	near.Close()
	until(t, "connections close", func() bool { return w.Conns() == 0 })
}

func TestWhatIsUnderWayIsHeldToo(t *testing.T) {
	const d = 50 * time.Millisecond
	w := New()
	defer w.Cut()
	near, far := pair(t, w)
	set(t, w, Rules{Latency: d})
	send(t, near, "there")
	send(t, far, "and back")
	in := &near.(*dialled).in
	until(t, "it is under way", func() bool { in.mu.Lock(); defer in.mu.Unlock(); return in.bytes > 0 })
	set(t, w, Rules{Latency: d, Blocked: []string{near.RemoteAddr().String()}})
	for start := time.Now(); time.Since(start) < 2*d; {
		silent(t, far)
		silent(t, near)
	}
	set(t, w, Rules{Latency: d})
	receive(t, far, "there")
	receive(t, near, "and back")
}

func TestDeadlinesOutliveTheRules(t *testing.T) {
	w := New()
	defer w.Cut()
	near, _ := pair(t, w) // the far end reads nothing
	block(t, w, near)
	near.SetDeadline(time.Now().Add(100 * time.Millisecond))
	set(t, w, Rules{})
	if _, err := near.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("read:", err)
	}
	near.SetDeadline(time.Now().Add(100 * time.Millisecond))
	block(t, w, near)
	set(t, w, Rules{})
	if _, err := near.Write(make([]byte, 64<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("write:", err)
	}
}

// What a closed connection has still to say is bounded in time when the other end takes nothing.
func TestAClosedConnectionDoesNotWaitForASlowReader(t *testing.T) {
	w := New()
	defer w.Cut()
	near, _ := pair(t, w)
	set(t, w, Rules{Latency: time.Millisecond})
	near.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := near.Write(make([]byte, 64<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	near.Close()
	until(t, "the connection closes", func() bool { return w.Conns() == 0 })
}

func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: ", what)
		}
	}
}

// A slow reader holds a fast writer up, so the line stays bounded both ways.
func TestLatencyHoldsNoMoreThanItsBound(t *testing.T) {
	w := New()
	defer w.Cut()
	near, far := pair(t, w)
	set(t, w, Rules{Latency: time.Millisecond})
	d := near.(*dialled)
	for _, c := range []net.Conn{near, far} {
		var last, stuck int
		sent := make(chan struct{})
		var total atomic.Int64
		c.SetWriteDeadline(time.Time{})
		go func() {
			defer close(sent)
			for chunk := make([]byte, 64<<10); ; {
				n, err := c.Write(chunk)
				total.Add(int64(n))
				if err != nil {
					return
				}
			}
		}()
		until(t, "the writer is held up", func() bool {
			time.Sleep(20 * time.Millisecond)
			now := int(total.Load())
			if now == last && now > 0 {
				stuck++
			} else {
				stuck = 0
			}
			last = now
			return stuck == 3
		})
		for _, h := range []*half{&d.in.half, &d.out.half} {
			h.mu.Lock()
			if h.bytes > LineBytesMax+pumpBytesMax+parcelBytes {
				t.Errorf("%d bytes in line", h.bytes)
			}
			h.mu.Unlock()
		}
		c.SetWriteDeadline(time.Now())
		<-sent
	}
}

// Bytes must come out as they went in whatever the rules do meanwhile, and each connection must work afterwards.
func TestRulesThatChangeAllTheTimeLoseAndReorderNothing(t *testing.T) {
	w := New()
	defer w.Cut()
	var wg sync.WaitGroup
	stop := make(chan struct{})
	var addrs []string
	for range 4 {
		near, far := pair(t, w)
		addrs = append(addrs, near.RemoteAddr().String())
		for _, way := range []struct{ from, to net.Conn }{{near, far}, {far, near}} {
			rng := rand.New(rand.NewPCG(1, 2))
			data := make([]byte, 4<<20)
			for i := range data {
				data[i] = byte(rng.Uint32())
			}
			wg.Go(func() {
				for rest := data; len(rest) > 0; {
					n := min(len(rest), 1+rng.IntN(20_000))
					way.from.SetWriteDeadline(time.Now().Add(time.Duration(rng.IntN(5)) * time.Millisecond))
					n, err := way.from.Write(rest[:n])
					if rest = rest[n:]; err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
						t.Error(err)
						return
					}
				}
			})
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(3, 4))
				var got bytes.Buffer
				for got.Len() < len(data) {
					b := make([]byte, 1+rng.IntN(20_000))
					way.to.SetReadDeadline(time.Now().Add(time.Duration(rng.IntN(5)) * time.Millisecond))
					n, err := way.to.Read(b)
					if got.Write(b[:n]); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
						t.Error(err)
						return
					}
				}
				if !bytes.Equal(got.Bytes(), data) {
					t.Error("the bytes came out otherwise")
				}
			})
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		rng := rand.New(rand.NewPCG(5, 6))
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(rng.IntN(2000)) * time.Microsecond):
			}
			r := Rules{Latency: time.Duration(rng.IntN(3)) * time.Millisecond}
			for _, a := range addrs {
				if rng.IntN(3) == 0 {
					r.Blocked = append(r.Blocked, a)
				}
			}
			if rng.IntN(3) == 0 {
				r = Rules{}
			}
			if err := w.SetRules(r); err != nil {
				t.Error(err)
			}
		}
	}()
	wg.Wait()
	close(stop)
	<-done
}

func TestRulesThatMakeNoSenseAreRefusedAndTheFormerStay(t *testing.T) {
	w := New()
	defer w.Cut()
	near, far := pair(t, w)
	block(t, w, near)
	for _, r := range []Rules{{Latency: -1}, {Latency: LatencyMax + 1}, {Blocked: []string{"localhost:1"}}, {Blocked: []string{""}},
		{Blocked: []string{"127.0.0.1"}}, {Blocked: make([]string, BlockedMax+1)}} {
		if err := w.SetRules(r); !errors.Is(err, ErrRules) {
			t.Errorf("%.100v: %v", r, err)
		}
	}
	send(t, near, "hello")
	silent(t, far)
}

// BenchmarkRoundTrip times a byte there and back. A wire without rules should cost next to nothing over a bare connection.
func BenchmarkRoundTrip(b *testing.B) {
	for name, dial := range map[string]func(w *Wire, network, address string) (net.Conn, error){
		"bare": func(_ *Wire, network, address string) (net.Conn, error) { return net.Dial(network, address) },
		"wire": func(w *Wire, network, address string) (net.Conn, error) { return w.Dial(b.Context(), network, address) },
		"shaped": func(w *Wire, network, address string) (net.Conn, error) {
			c, err := w.Dial(b.Context(), network, address)
			if err == nil {
				err = w.SetRules(Rules{Latency: 1})
			}
			return c, err
		},
	} {
		b.Run(name, func(b *testing.B) {
			w := New()
			defer w.Cut()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			near, err := dial(w, "tcp", l.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			defer near.Close()
			far, err := l.Accept()
			if err != nil {
				b.Fatal(err)
			}
			defer far.Close()
			go io.Copy(far, far)
			b.ReportAllocs()
			for buf := []byte{1}; b.Loop(); {
				if _, err := near.Write(buf); err != nil {
					b.Fatal(err)
				}
				if _, err := near.Read(buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
