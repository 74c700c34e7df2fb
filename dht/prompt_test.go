package dht

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"latchkey/dht/keyspace"
)

// A peer that stops reading holds nobody up who posts messages, and when it reads on it gets them all, whole and in order: also those
// that are small enough to be gathered, which must not get into a frame that is written in part.
func TestWhoPostsDoesNotWaitForAPeerThatDoesNotRead(t *testing.T) {
	for _, size := range []int{100 << 10, 5000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) { postUnread(t, size) })
	}
}

func postUnread(t *testing.T, size int) {
	o, h := newOverlay(t, newHost(t, 1), nil), newHost(t, 2)
	s := stranger(t, h, o, Control, true)
	eventually(t, "attached", func() bool { return o.Stats().StreamsAccepted == 1 })
	n, msg := uint64(0), make([]byte, size)
	for {
		o.link(h.ID()).lull.Store(lullMax) // as if it were answering
		err := o.Send(h.ID(), keyspace.Key{}, "note", binary.BigEndian.AppendUint64(msg[:0], n)[:cap(msg)])
		if errors.Is(err, ErrOutboxFull) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	var buf []byte
	var items []item
	r := bufio.NewReader(s)
	for next := uint64(0); next < n; {
		var err error
		if buf, err = readFrame(r, controlFrameBytesMax, buf); err != nil {
			t.Fatal(err)
		}
		if items, err = decodeFrame(buf, Control, items); err != nil {
			t.Fatalf("after %d of %d messages: %v", next, n, err)
		}
		for i := range items {
			if len(items[i].payload) != len(msg) || binary.BigEndian.Uint64(items[i].payload) != next {
				t.Fatalf("%d bytes of message %x in place of %d", len(items[i].payload), items[i].payload[:8], next)
			}
			next++
		}
	}
	eventually(t, "nothing left over", func() bool {
		l := o.link(h.ID())
		l.mu.Lock()
		defer l.mu.Unlock()
		ln := &l.lanes[Control]
		return ln.messages == 0 && ln.bytes == 0 && ln.writer.idle && !ln.writer.hurried
	})
	l, written := o.link(h.ID()), int32(lullMax)
	post := func(want string) {
		t.Helper()
		l.lull.Store(lullMax)
		if err := o.Send(h.ID(), keyspace.Key{}, "note", nil); err != nil {
			t.Fatal(err)
		}
		if got := l.lull.Load(); got != written {
			t.Errorf("%s, %d messages may be written at once, not %d", want, got, written)
		}
		eventually(t, "written", func() bool {
			l.mu.Lock()
			defer l.mu.Unlock()
			return l.lanes[Control].writer.idle
		})
		n++
	}
	post("after it has held somebody up")
	l.mu.Lock()
	l.heldUp = l.heldUp.Add(-promptPause)
	l.mu.Unlock()
	written--
	post("a while later")
	if got := o.Stats().MessagesSent; got != n {
		t.Errorf("%d messages were counted of %d", got, n)
	}
}

// Who is answered one message at a time writes its own; who gets several together leaves that to the writer, which gathers.
func TestPeersThatTalkByTurnsWriteThemselves(t *testing.T) {
	a, b := pair(t, nil)
	lull := func(o *Overlay, n int32) {
		t.Helper()
		if got := o.link(otherOf(o, a, b).Self()).lull.Load(); got != n {
			t.Errorf("%d messages may be written at once, not %d", got, n)
		}
	}
	for range 3 {
		if _, err := a.Call(within(t), b.Self(), keyspace.Key{}, "echo", []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	lull(a, lullMax)
	lull(b, lullMax-1) // it has written its answer
	a.link(b.Self()).mayPrompt(false)
	if err := a.Send(b.Self(), keyspace.Key{}, "note", nil); err != nil {
		t.Fatal(err)
	}
	lull(a, 0)
}

func otherOf(o, a, b *Overlay) *Overlay {
	if o == a {
		return b
	}
	return a
}
