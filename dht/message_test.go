package dht

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"latchkey/dht/keyspace"
	"latchkey/dht/pb"
)

func errorHas(err error, text string) bool { return err != nil && strings.Contains(err.Error(), text) }

func TestCallReachesKeyAndServiceAndComesBack(t *testing.T) {
	a, b := pair(t, func(o *Overlay) {
		o.Handle("where", func(r *Request) {
			if r.Node() != NodeIDOf(r.From) {
				t.Errorf("%s is %v, not %v", r.From, NodeIDOf(r.From), r.Node())
			}
			go r.Reply(append([]byte(r.Service+" "+string(r.From)+" "), r.Key[:]...)) // later, elsewhere
		})
	})
	key := keyspace.Preimage("a lock").Key()
	for name, from := range map[string]*Overlay{"remote": a, "local": b} {
		reply, err := from.Call(within(t), b.Self(), key, "where", nil)
		if want := "where " + string(from.Self()) + " " + string(key[:]); err != nil || string(reply) != want {
			t.Errorf("%s: %q, %v", name, reply, err)
		}
	}
}

func TestMessagesAreCopiedWhenTaken(t *testing.T) {
	got := make(chan []byte, 2)
	a, b := pair(t, func(o *Overlay) { o.Handle("note", func(r *Request) { got <- r.Data }) })
	for _, to := range []*Overlay{a, b} {
		msg := []byte("as it was")
		if err := a.Send(to.Self(), keyspace.Key{}, "note", msg); err != nil {
			t.Fatal(err)
		}
		copy(msg, "changed!!")
		data := <-got
		if err := a.Send(to.Self(), keyspace.Key{}, "note", []byte("in place?")); err != nil {
			t.Fatal(err)
		}
		<-got // Data belongs to the handler, whatever comes after it
		if string(data) != "as it was" {
			t.Errorf("arrived as, or became, %q", data)
		}
	}
}

// The storage of a one-way message is the next one's; that of a request is its handler's.
func TestABriefHandlerHasEachMessageForItsCall(t *testing.T) {
	heard := make(chan string, 64)
	var asked []byte
	a, b := pair(t, func(o *Overlay) {
		o.HandleBrief("brief", func(r *Request) {
			if !r.OneWay() {
				asked = r.Data
			}
			heard <- fmt.Sprint(r.Service, r.OneWay(), r.From == o.Self(), r.Key[0], len(r.Data), string(r.Data[:1]))
			r.Reply(r.Data)
		})
	})
	for _, to := range []*Overlay{a, b} {
		for i, n := range []int{1, 100, ControlBytesMax + 1, 1} {
			msg := bytes.Repeat([]byte{'a' + byte(i)}, n)
			if err := a.Send(to.Self(), keyspace.Key{byte(i)}, "brief", msg); err != nil {
				t.Fatal(err)
			}
			if got, want := <-heard, fmt.Sprint("brief", true, to == a, i, n, string(msg[:1])); got != want {
				t.Errorf("heard %q, want %q", got, want)
			}
		}
		if back, err := a.Call(t.Context(), to.Self(), keyspace.Key{}, "brief", []byte("asked")); err != nil || string(back) != "asked" {
			t.Fatalf("answered %q, %v", back, err)
		}
		<-heard
		if err := a.Send(to.Self(), keyspace.Key{}, "brief", []byte("after")); err != nil {
			t.Fatal(err)
		}
		<-heard
		if string(asked) != "asked" {
			t.Errorf("what was asked became %q", asked)
		}
	}
}

func TestOneWayMessagesArriveInOrder(t *testing.T) {
	const n = 20_000
	done := make(chan error, 2)
	next := make(map[string]uint64)
	var mu sync.Mutex
	a, b := pair(t, func(o *Overlay) {
		o.Handle("count", func(r *Request) {
			r.Reply(nil) // of no effect
			mu.Lock()
			defer mu.Unlock()
			want := next[string(r.From)]
			if got := binary.BigEndian.Uint64(r.Data); got != want || !r.OneWay() {
				done <- errors.New("out of order")
				want = n
			}
			if next[string(r.From)] = want + 1; want == n-1 {
				done <- nil
			}
		})
	})
	// Both sides begin at the same moment, so that both may open a stream.
	for _, pair := range [][2]*Overlay{{a, b}, {b, a}} {
		go func() {
			for i := uint64(0); i < n; {
				switch err := pair[0].Send(pair[1].Self(), keyspace.Key{}, "count", binary.BigEndian.AppendUint64(nil, i)); {
				case err == nil:
					i++
				case !errors.Is(err, ErrOutboxFull):
					done <- err
					return
				default:
					// The outbox is full: a call is answered after what is before it.
					pair[0].Call(t.Context(), pair[1].Self(), keyspace.Key{}, "echo", nil)
				}
			}
		}()
	}
	for range 2 {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
		case <-within(t).Done():
			t.Fatal("messages are missing")
		}
	}
	for _, o := range []*Overlay{a, b} {
		if st := o.Stats(); st.StreamsOpened > 1 || st.FramesSent >= st.MessagesSent || len(st.StreamsReset) > 0 {
			t.Errorf("%d streams opened, %d messages in %d frames, resets %v", st.StreamsOpened, st.MessagesSent, st.FramesSent, st.StreamsReset)
		}
	}
}

func TestBothStreamsOpenedAtOnceStay(t *testing.T) {
	a, b := pair(t, nil)
	// Each side is made to open one by taking the way on which the other's would come first.
	s := stranger(t, a.host, b, Control, true) // a's: now b writes on it
	link := a.link(b.Self())
	read := newStream(link, Control, s, true)
	if reply, err := a.Call(within(t), b.Self(), keyspace.Key{}, "echo", []byte("own")); err != nil || string(reply) != "own" {
		// a opens another, which replaces the first at b: one from each side.
		t.Fatalf("%q, %v", reply, err)
	}
	wasReset(t, read.net)
	// b opens one of its own while a's is there.
	own, err := b.link(a.Self()).dialRegardless(Control)
	if err != nil {
		t.Fatal(err)
	}
	if !b.spawn(own.read) {
		t.Fatal("closed")
	}
	eventually(t, "a has both", func() bool {
		link.mu.Lock()
		defer link.mu.Unlock()
		return link.streams == 2 && link.lanes[Control].accepted != nil && link.lanes[Control].writer == link.lanes[Control].opened
	})
	for range 10 {
		for _, p := range [][2]*Overlay{{a, b}, {b, a}} {
			if reply, err := p[0].Call(within(t), p[1].Self(), keyspace.Key{}, "echo", []byte("both")); err != nil || string(reply) != "both" {
				t.Fatalf("%q, %v", reply, err)
			}
		}
	}
}

// dialRegardless opens a stream as if the peer's had not come.
func (l *link) dialRegardless(class Class) (*stream, error) {
	ns, err := l.o.host.NewStream(context.Background(), l.peer, l.o.protocols[class])
	if err != nil {
		return nil, err
	}
	s := newStream(l, class, ns, true)
	if err := s.greet(); err != nil {
		return nil, err
	}
	return s, l.attach(s)
}

func TestStreamOfAnotherSessionReplacesTheOthers(t *testing.T) {
	o := newOverlay(t, newHost(t, 1), nil)
	h := newHost(t, 2)
	first := stranger(t, h, o, Control, true)
	l := o.link(h.ID())
	eventually(t, "it is in use", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.streams == 1 }) // or the call opens one
	done := make(chan error, 1)
	o.Go(h.ID(), keyspace.Key{}, "echo", nil, time.Hour, func(_ []byte, err error) { done <- err })
	same := stranger(t, h, o, Bulk, true)
	eventually(t, "both are in use", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.streams == 2 })
	l.mu.Lock()
	l.theirs++ // as if both had come from a session before
	l.mu.Unlock()
	stranger(t, h, o, Control, true)
	if err := <-done; !errors.Is(err, ErrLinkLost) {
		t.Errorf("a call of the former session: %v", err)
	}
	for _, s := range []network.Stream{first, same} {
		s.SetReadDeadline(time.Now().Add(waitMax))
		if _, err := io.Copy(io.Discard, s); !errors.Is(err, network.ErrReset) {
			t.Errorf("a stream of the former session: %v", err)
		}
	}
	l.mu.Lock()
	ln := &l.lanes[Control]
	if l.streams != 1 || ln.accepted == nil || ln.writer != ln.accepted {
		t.Errorf("%d streams, lane %+v", l.streams, ln)
	}
	stale := &stream{link: l, ours: l.session + 1, theirs: l.theirs, mine: true}
	l.mu.Unlock()
	if err := l.attach(stale); err != errStale {
		t.Errorf("a stream greeted in a session of ours that is over: %v", err)
	}
}

// The two ends see the loss of a stream at different times, and with two streams the other end may answer on the lost one.
func TestCallRightAfterALossIsAnsweredOrFailsAtOnce(t *testing.T) {
	a, b := pair(t, nil)
	rounds, answered := 30, 0
	for i := range rounds {
		// One stream from each side, in either order.
		first, second := []*Overlay{a, b}[i%2], []*Overlay{a, b}[1-i%2]
		if _, err := first.Call(within(t), second.Self(), keyspace.Key{}, "echo", nil); err != nil && !errors.Is(err, ErrLinkLost) {
			t.Fatal(err)
		}
		if s, err := second.link(first.Self()).dialRegardless(Control); err == nil && !second.spawn(s.read) {
			t.Fatal("closed")
		}
		l := a.link(b.Self())
		l.mu.Lock()
		lose := []*stream{l.lanes[Control].opened, l.lanes[Control].accepted}[i/2%2]
		l.mu.Unlock()
		if lose != nil {
			lose.close(errors.New("test"))
		}
		for _, size := range []int{1, ControlBytesMax + 1} {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			_, err := a.Call(ctx, b.Self(), keyspace.Key{}, "echo", make([]byte, size))
			cancel()
			switch {
			case err == nil:
				answered++
			case !errors.Is(err, ErrLinkLost) && !errors.Is(err, ErrUnreachable):
				t.Fatalf("round %d: %v", i, err)
			}
		}
	}
	if answered < rounds {
		t.Errorf("%d of %d calls were answered", answered, 2*rounds)
	}
}

func TestRepeatedOperationsOpenNothing(t *testing.T) {
	os := mesh(t, 3, nil)
	op := func() {
		t.Helper()
		for _, o := range os {
			if _, err := o.Route(within(t), "lock", "echo", []byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := o.RouteReplica(within(t), 3, "lock", "echo", make([]byte, ControlBytesMax+1)); err != nil {
				t.Fatal(err)
			}
		}
	}
	op()
	for _, o := range os { // RouteReplica does not wait for all
		for _, p := range os {
			if _, err := o.Call(within(t), p.Self(), keyspace.Key{}, "echo", make([]byte, ControlBytesMax+1)); err != nil {
				t.Fatal(err)
			}
		}
	}
	count := func() (lookups, streams uint64) {
		for _, o := range os {
			st := o.Stats()
			lookups, streams = lookups+st.Lookups, streams+st.StreamsOpened+st.StreamsAccepted
		}
		return lookups, streams
	}
	lookups, streams := count()
	if lookups == 0 || streams == 0 {
		t.Fatalf("%d look-ups, %d streams: nothing is counted", lookups, streams)
	}
	for range 20 {
		op()
	}
	if l, s := count(); l != lookups || s != streams {
		t.Errorf("repeating it took %d look-ups and %d streams more", l-lookups, s-streams)
	}
}

func TestLargeMessagesGoByBulk(t *testing.T) {
	a, b := pair(t, nil)
	for _, n := range []int{0, ControlBytesMax, ControlBytesMax + 1, pieceBytesMax + 1, 3 * pieceBytesMax} {
		msg := bytes.Repeat([]byte("0123456789abcdef"), n/16+1)[:n]
		reply, err := a.Call(within(t), b.Self(), keyspace.Key{}, "echo", msg)
		if err != nil || !bytes.Equal(reply, msg) {
			t.Fatalf("%d bytes: %d came back, %v", n, len(reply), err)
		}
		st := a.Stats()
		if want := uint64(1); n > ControlBytesMax {
			want = 2
			if st.StreamsOpened != want {
				t.Errorf("%d bytes: %d streams, want %d", n, st.StreamsOpened, want)
			}
		} else if st.StreamsOpened != want {
			t.Errorf("%d bytes: %d streams, want %d", n, st.StreamsOpened, want)
		}
	}
	if st := a.Stats(); st.MessagesSent != 5 || st.MessagesReceived != 5 {
		t.Errorf("%d sent, %d received: a message in pieces counts once", st.MessagesSent, st.MessagesReceived)
	}
	_, err := a.Call(within(t), b.Self(), keyspace.Key{}, "echo", make([]byte, MessageBytesMax+1))
	if !errors.Is(err, ErrTooLarge) {
		t.Errorf("one byte more: %v", err)
	}
}

func TestServiceErrorsComeBack(t *testing.T) {
	a, b := pair(t, func(o *Overlay) {
		o.Handle("no", func(r *Request) {
			r.Fail(errors.New("table full" + strings.Repeat("é", errorTextBytesMax)))
			r.Reply([]byte("a second answer"))
		})
	})
	for _, to := range []*Overlay{a, b} {
		_, err := a.Call(within(t), to.Self(), keyspace.Key{}, "no", nil)
		var remote *RemoteError
		if !errors.As(err, &remote) || remote.Peer != to.Self() || remote.Service != "no" || !strings.HasPrefix(remote.Text, "table fullé") ||
			len(remote.Text) > errorTextBytesMax {
			t.Errorf("%v", err)
		}
	}
	if n := a.Stats().LateReplies; n != 0 {
		t.Errorf("%d second answers travelled", n)
	}
	if _, err := a.Call(within(t), b.Self(), keyspace.Key{}, strings.Repeat("x", ServiceNameBytesMax+1), nil); !errors.Is(err, ErrService) {
		t.Errorf("a long service name: %v", err)
	}
}

// One timer serves all calls of a link: whatever their order, each ends when its own time is up and none before.
func TestEachCallEndsAtItsOwnTime(t *testing.T) {
	a, b := pair(t, func(o *Overlay) { o.Handle("never", func(*Request) {}) })
	for _, to := range []*Overlay{b, a} {
		start := time.Now()
		type end struct {
			timeout, took time.Duration
			err           error
		}
		ends := make(chan end)
		timeouts := []time.Duration{time.Hour, 30 * time.Millisecond, 60 * time.Millisecond, 10 * time.Millisecond, 60 * time.Millisecond}
		for _, d := range timeouts {
			a.Go(to.Self(), keyspace.Key{}, "never", nil, d, func(_ []byte, err error) {
				select {
				case ends <- end{d, time.Since(start), err}:
				case <-t.Context().Done(): // the one of an hour
				}
			})
		}
		for range len(timeouts) - 1 {
			select {
			case e := <-ends:
				if e.took < e.timeout || e.timeout == time.Hour || !errors.Is(e.err, ErrTimeout) {
					t.Errorf("%+v", e)
				}
			case <-within(t).Done():
				t.Fatal("a call did not end")
			}
		}
		// Once more, now that the timer stands at an hour.
		a.Go(to.Self(), keyspace.Key{}, "never", nil, time.Millisecond, func(_ []byte, err error) { ends <- end{err: err} })
		if e := <-ends; !errors.Is(e.err, ErrTimeout) {
			t.Errorf("after a longer one: %v", e.err)
		}
	}
}

func TestCallsEndWithTheirTime(t *testing.T) {
	asked := make(chan *Request, 4)
	a, b := pair(t, func(o *Overlay) { o.Handle("later", func(r *Request) { asked <- r }) })
	for _, to := range []*Overlay{b, a} {
		cause := errors.New("changed my mind")
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() { r := <-asked; cancel(cause); asked <- r }()
		if _, err := a.Call(ctx, to.Self(), keyspace.Key{}, "later", nil); err != cause {
			t.Errorf("cancelled: %v", err)
		}
		(<-asked).Reply([]byte("too late"))

		done := make(chan error, 1)
		a.Go(to.Self(), keyspace.Key{}, "later", nil, time.Millisecond, func(_ []byte, err error) { done <- err })
		if err := <-done; !errors.Is(err, ErrTimeout) {
			t.Errorf("timed out: %v", err)
		}
		(<-asked).Reply([]byte("too late"))
	}
	eventually(t, "four late replies counted", func() bool { return a.Stats().LateReplies == 4 })
}

func TestGoTellsOffTheCallersStack(t *testing.T) {
	a, b := pair(t, nil)
	var mu sync.Mutex // held while calling: done would wait for ever if it ran here
	for name, call := range map[string]func(done func([]byte, error)){
		"answered":     func(d func([]byte, error)) { a.Go(b.Self(), keyspace.Key{}, "echo", nil, 0, d) },
		"to ourselves": func(d func([]byte, error)) { a.Go(a.Self(), keyspace.Key{}, "echo", nil, 0, d) },
		"refused":      func(d func([]byte, error)) { a.Go(b.Self(), keyspace.Key{}, "", nil, 0, d) },
	} {
		done := make(chan error, 2)
		mu.Lock()
		call(func(_ []byte, err error) {
			mu.Lock()
			defer mu.Unlock()
			done <- err
		})
		mu.Unlock()
		if err := <-done; (err != nil) != (name == "refused") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLostLinkFailsCallsAtOnce(t *testing.T) {
	asked := make(chan *Request, 2)
	a, b := pair(t, func(o *Overlay) { o.Handle("later", func(r *Request) { asked <- r }) })
	done := make(chan error, 1)
	a.Go(b.Self(), keyspace.Key{}, "later", nil, time.Hour, func(_ []byte, err error) { done <- err })
	r := <-asked
	start := time.Now()
	b.host.Close()
	if err := <-done; !errors.Is(err, ErrLinkLost) {
		t.Errorf("%v", err)
	}
	if d := time.Since(start); d > waitMax {
		t.Errorf("it took %v", d)
	}
	r.Reply(nil) // goes nowhere, and breaks nothing
	if _, err := a.Call(within(t), b.Self(), keyspace.Key{}, "echo", nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("a dead peer: %v", err)
	}
	if err := a.Send(b.Self(), keyspace.Key{}, "echo", nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("a moment later: %v", err)
	}
}

func TestRestartedPeerIsReachedAtOnce(t *testing.T) {
	a := newOverlay(t, newHost(t, 1), nil)
	addr := "/ip4/127.0.0.1/tcp/0"
	for range 3 {
		h := newHostAt(t, 2, addr)
		addr = h.Addrs()[0].String()
		b := newOverlay(t, h, nil)
		a.Learn(infoOf(h))
		eventually(t, "answered", func() bool { // a short pause after the failed attempt is in order
			reply, err := a.Call(within(t), b.Self(), keyspace.Key{}, "echo", []byte("x"))
			return err == nil && string(reply) == "x"
		})
		b.Close()
		h.Close()
		for tried := 0; tried < 3; { // the host would stop trying for 5 s after the first
			_, err := a.Call(within(t), b.Self(), keyspace.Key{}, "echo", nil)
			if err == nil || errorHas(err, "backoff") {
				t.Fatalf("a dead peer: %v", err)
			}
			if !errorHas(err, "no attempt for another") {
				tried++
			}
		}
	}
}

func TestOutboxRefusesWhatIsBeyondItsBound(t *testing.T) {
	a, b := pair(t, nil)
	fill := func(class Class, size int) (n int, err error) {
		l := a.link(b.Self())
		l.mu.Lock()
		l.lanes[class].opening = true // so that everything stays in the outbox
		l.mu.Unlock()
		defer func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.lanes[class].opening = false
			l.lanes[class].drop()
		}()
		msg := make([]byte, size)
		for ; err == nil; n++ {
			err = a.Send(b.Self(), keyspace.Key{}, "echo", msg)
		}
		return n - 1, err
	}
	if n, err := fill(Control, 0); n != outboxMessagesMax[Control] || !errors.Is(err, ErrOutboxFull) {
		t.Errorf("%d small messages, then %v", n, err)
	}
	if n, err := fill(Control, 100_000); n != outboxBytesMax[Control]/(100_000+itemOverheadMax) || !errors.Is(err, ErrOutboxFull) {
		t.Errorf("%d larger messages, then %v", n, err)
	}
	if n, err := fill(Bulk, MessageBytesMax); n != 1 || !errors.Is(err, ErrOutboxFull) {
		t.Errorf("%d of the largest messages, then %v", n, err)
	}
	if n := a.Stats().OutboxFull; n != 3 {
		t.Errorf("%d refusals counted", n)
	}
	if _, err := a.Call(within(t), b.Self(), keyspace.Key{}, "echo", nil); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestAnswersHaveRoomBeyondTheMessages(t *testing.T) {
	a, b := pair(t, nil)
	l := a.link(b.Self())
	l.lanes[Control].opening = true // so that everything stays in the outbox
	for range outboxMessagesMax[Control] {
		if err := a.Send(b.Self(), keyspace.Key{}, "echo", nil); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for ; l.post(&item{kind: pb.Kind_KIND_REPLY, id: 1}, nil) == nil; n++ {
	}
	if n != requestsMax {
		t.Errorf("room for %d answers", n)
	}
	l.lanes[Control].opening = false
}

func TestWriterYieldsOnlyAmongSeveralCallers(t *testing.T) {
	for _, c := range []struct {
		messages, calls int
		want            bool
	}{
		{1, 0, false}, // a message without an answer, or an answer
		{1, 1, false}, // a lone caller, whose call this is
		{1, 2, true},  // another waits, and calls again once its answer comes
		{2, 0, true},
		{2, 2, true},
	} {
		l := newLink(nil, "")
		for id := range c.calls {
			l.calls[uint64(id)] = new(call)
		}
		if got := l.crowdedLocked(c.messages); got != c.want {
			t.Errorf("%d messages, %d calls under way: %v", c.messages, c.calls, got)
		}
	}
}

func TestSlowPeerBlocksNobody(t *testing.T) {
	release := make(chan struct{})
	slow := func(o *Overlay) { o.Handle("slow", func(r *Request) { <-release }) }
	a, b := pair(t, slow)
	c := newOverlay(t, newHost(t, 3), nil)
	a.Learn(infoOf(c.host))
	sent := 0
	start := time.Now()
	for ; ; sent++ { // the stream's window fills, then the outbox
		if err := a.Send(b.Self(), keyspace.Key{}, "slow", make([]byte, 10_000)); errors.Is(err, ErrOutboxFull) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if time.Since(start) > waitMax {
			t.Fatal("never full")
		}
	}
	if _, err := a.Call(within(t), c.Self(), keyspace.Key{}, "echo", nil); err != nil {
		t.Errorf("another peer: %v", err)
	}
	close(release)
	eventually(t, "all that was taken has arrived", func() bool { return b.Stats().MessagesReceived == uint64(sent) })
}

func TestRequestsInServiceAreBoundedPerPeer(t *testing.T) {
	var mu sync.Mutex
	var held []*Request
	a, b := pair(t, func(o *Overlay) {
		o.Handle("hold", func(r *Request) { mu.Lock(); held = append(held, r); mu.Unlock() })
	})
	for _, to := range []*Overlay{b, a} {
		held = nil
		answers := make(chan error, requestsMax)
		for range requestsMax {
			a.Go(to.Self(), keyspace.Key{}, "hold", nil, time.Hour, func(_ []byte, err error) { answers <- err })
		}
		if _, err := a.Call(within(t), to.Self(), keyspace.Key{}, "hold", nil); !errors.Is(err, ErrBusy) {
			t.Errorf("one more: %v", err)
		}
		if n := to.Stats().Busy; n != 1 {
			t.Errorf("counted %d times", n)
		}
		mu.Lock()
		all := held
		mu.Unlock()
		for _, r := range all {
			r.Reply(nil)
		}
		for range requestsMax {
			if err := <-answers; err != nil {
				t.Fatal(err)
			}
		}
		if _, err := a.Call(within(t), to.Self(), keyspace.Key{}, "echo", nil); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	}
}

func TestCallsAwaitingAnAnswerAreBounded(t *testing.T) {
	a, b := pair(t, nil)
	for _, l := range []*link{a.link(b.Self()), a.local.link} {
		l.mu.Lock()
		for id := range uint64(callsMax) {
			l.calls[id] = callPool.New().(*call)
		}
		l.mu.Unlock()
		if _, err := a.Call(within(t), l.peer, keyspace.Key{}, "echo", nil); !errors.Is(err, ErrOutboxFull) {
			t.Errorf("%v", err)
		}
		l.take(0)
		if _, err := a.Call(within(t), l.peer, keyspace.Key{}, "echo", nil); err != nil {
			t.Errorf("with room for one: %v", err)
		}
	}
}

func TestCloseEndsEverything(t *testing.T) {
	a, b := pair(t, func(o *Overlay) { o.Handle("later", func(*Request) {}) })
	errs := make(chan error, 2)
	for _, to := range []*Overlay{a, b} {
		a.Go(to.Self(), keyspace.Key{}, "later", nil, time.Hour, func(_ []byte, err error) { errs <- err })
	}
	eventually(t, "both asked", func() bool { return b.Stats().MessagesReceived == 1 && a.local.link.serving.Load() == 1 })
	for range 2 { // the second does nothing
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := <-errs; !errors.Is(err, ErrClosed) {
			t.Errorf("a waiting call: %v", err)
		}
	}
	for _, to := range []*Overlay{a, b} {
		if err := a.Send(to.Self(), keyspace.Key{}, "echo", nil); !errors.Is(err, ErrClosed) {
			t.Errorf("send: %v", err)
		}
	}
	if _, err := a.ReplicaSet(t.Context(), "x", 1); !errors.Is(err, ErrClosed) {
		t.Errorf("look-up: %v", err)
	}
	if err := a.Start(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("start: %v", err)
	}
	if err := a.WaitPeers(t.Context(), 9); !errors.Is(err, ErrClosed) {
		t.Errorf("wait: %v", err)
	}
	if b.host.Network().Connectedness(a.Self()).String() != "Connected" {
		t.Error("the host was closed, but it is the caller's")
	}
}

func TestCloseDoesNotWaitForASilentStream(t *testing.T) {
	o, err := New(newHost(t, 1), WithOverlayID(testOverlay))
	if err != nil {
		t.Fatal(err)
	}
	o.hello = time.Hour
	if err := o.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	h := newHost(t, 2)
	write(t, stranger(t, h, o, Control, false), []byte{200})
	eventually(t, "its hello is awaited", func() bool { return o.link(h.ID()).greeted.Load() == 1 })
	o.Close()
}

func TestCloseWhileEverybodyCalls(t *testing.T) {
	a, b := pair(t, nil)
	var callers sync.WaitGroup
	for i := range 8 {
		callers.Go(func() {
			to := []*Overlay{a, b}[i%2].Self()
			for n := uint64(i); ; n += 8 {
				msg := binary.BigEndian.AppendUint64(nil, n)
				reply, err := a.Call(within(t), to, keyspace.Key{}, "echo", msg)
				switch {
				case errors.Is(err, ErrClosed):
					return
				case err == nil && !bytes.Equal(reply, msg):
					t.Errorf("caller %d got another's answer", i)
					return
				}
			}
		})
	}
	eventually(t, "calls go through", func() bool { return a.Stats().MessagesReceived > 100 })
	a.Close()
	callers.Wait()
}

func TestAnswerToAFormerLifeMatchesNothing(t *testing.T) {
	a, b := pair(t, nil)
	if a.ids.Load() == b.ids.Load() || a.ids.Load() < 1<<20 {
		t.Errorf("request ids start at %d and %d", a.ids.Load(), b.ids.Load())
	}
	r := &Request{id: 7, From: a.Self(), link: b.link(a.Self()), stream: newStream(b.link(a.Self()), Control, nil, false)}
	r.stream.detached.Store(true)
	r.link.serving.Add(1)
	r.answer(&item{kind: pb.Kind_KIND_REPLY})
	if r.link.serving.Load() != 0 {
		t.Error("the request is still in service")
	}
	r.link.mu.Lock()
	defer r.link.mu.Unlock()
	if ln := &r.link.lanes[Control]; ln.messages != 0 || ln.opening {
		t.Error("the answer was queued for another stream")
	}
}

// A handler knows whether its message came with others.
func TestAMessageKnowsWhetherItCameAlone(t *testing.T) {
	alone := make(chan bool, 3)
	o := newOverlay(t, newHost(t, 1), func(o *Overlay) { o.Handle("note", func(r *Request) { alone <- r.Alone() }) })
	s := stranger(t, newHost(t, 2), o, Control, true)
	note := &pb.Item{Kind: 1, Service: "note"}
	write(t, s, framed(frameOf(note)))
	if !<-alone {
		t.Error("the only message is said to have come with others")
	}
	write(t, s, framed(frameOf(note, note)))
	if first, second := <-alone, <-alone; first || second {
		t.Error("one of two messages in a frame is said to have come alone")
	}
}
