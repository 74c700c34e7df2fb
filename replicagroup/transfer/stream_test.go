package transfer

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

func testBody(n int, seed uint64) []byte {
	b := make([]byte, n)
	rng := rand.New(rand.NewPCG(seed, 0))
	for i := 0; i < n; i += 8 {
		v := rng.Uint64()
		for j := i; j < min(i+8, n); j++ {
			b[j] = byte(v >> (8 * (j - i)))
		}
	}
	return b
}

// wire is one stream between two ends that take turns. Frames go through change, which may alter, drop (nil) or cut (false) them; every
// frame of both directions is counted.
type wire struct {
	body   []byte
	head   []byte
	out    *Outgoing
	in     *Incoming
	change func(n int, f Frame) (*Frame, bool)
	frames int
	bytes  int // of the body, that went over
}

// pass carries a frame. It is false when the stream was cut.
func (w *wire) pass(f Frame) (*Frame, bool) {
	w.frames++
	if w.change == nil {
		return &f, true
	}
	return w.change(w.frames, f)
}

// run carries frames until the stream ends, and returns the message, if it came, and the ends' errors.
func (w *wire) run(t *testing.T) (msg []byte, sender, receiver error) {
	t.Helper()
	var toIn, toOut []Frame
	write := func(s Sends) {
		for _, p := range s.Pieces {
			w.bytes += p.Bytes
			toIn = append(toIn, Frame{Kind: KindChunk, Offset: p.Offset, Sum: p.Sum, Data: w.body[p.Offset : p.Offset+p.Bytes]})
		}
		if s.Finish {
			toIn = append(toIn, Frame{Kind: KindFinish, Data: w.head})
		}
	}
	cut := errors.New("cut")
	toOut = append(toOut, w.in.Begin())
	for steps := 0; len(toIn)+len(toOut) > 0; steps++ {
		if steps > 10000 {
			t.Fatal("it does not end")
		}
		for _, f := range toOut {
			g, ok := w.pass(f)
			if !ok {
				return msg, cut, cut
			}
			if g == nil {
				continue
			}
			s := w.out.Step(*g)
			write(s)
			if s.Over {
				return msg, s.Err, receiver
			}
		}
		toOut = nil
		if receiver != nil { // it is gone
			return nil, cut, receiver
		}
		frames := toIn
		toIn = nil
		for _, f := range frames {
			g, ok := w.pass(f)
			if !ok {
				return nil, cut, cut
			}
			if g == nil {
				continue
			}
			r := w.in.Step(*g)
			toOut = append(toOut, r.Reply...)
			receiver = r.Err
			if r.Head != nil {
				msg = w.in.Message(r.Head)
				toOut = append(toOut, Frame{Kind: KindDone})
			}
			if r.Over {
				break
			}
		}
	}
	return msg, cut, receiver
}

var bodySizes = []int{1, ChunkBytes - 1, ChunkBytes, ChunkBytes + 1, 3 * ChunkBytes, (AheadMax+2)*ChunkBytes + 5}

func TestTransferCarriesBodyAndHead(t *testing.T) {
	for _, n := range bodySizes {
		body := testBody(n, 1)
		d := DigestOf(body)
		w := &wire{body: body, head: []byte("head"), out: NewOutgoing(d), in: NewIncoming(d.Content(), n)}
		msg, sender, receiver := w.run(t)
		if sender != nil || receiver != nil || !bytes.Equal(msg, append([]byte("head"), body...)) {
			t.Errorf("%d bytes: %d came, %v, %v", n, len(msg), sender, receiver)
		}
		if w.bytes != n || w.out.Moved() != n || w.out.Acked() != n {
			t.Errorf("%d bytes: %d were sent, %d counted", n, w.bytes, w.out.Moved())
		}
	}
}

// A stream cut at any frame is gone on with on the next, by the same sender or by another that has the same bytes and another head,
// without sending again what was acknowledged.
func TestTransferCutAnywhereIsResumedByAnySender(t *testing.T) {
	for _, n := range bodySizes {
		body := testBody(n, 1)
		d := DigestOf(body)
		for at := 1; ; at++ {
			in := NewIncoming(d.Content(), n)
			first := &wire{body: body, head: []byte("old"), out: NewOutgoing(d), in: in}
			first.change = func(k int, f Frame) (*Frame, bool) { return &f, k < at }
			msg, err, _ := first.run(t)
			if err == nil {
				break // it ended before
			}
			has, early := in.Has(), msg
			if early != nil { // the message was handed over already, and only the last word was lost
				if has != n {
					t.Fatalf("%d bytes, cut at frame %d: %d came, %d are kept", n, at, len(msg), has)
				}
			} else if has < first.out.Acked() || has > first.bytes {
				t.Fatalf("%d bytes, cut at frame %d: %d here, %d sent, %d acknowledged", n, at, has, first.bytes, first.out.Acked())
			}
			second := &wire{body: body, head: []byte("new"), out: NewOutgoing(d), in: in}
			msg, sender, receiver := second.run(t)
			if sender != nil || receiver != nil || !bytes.Equal(msg, append([]byte("new"), body...)) {
				t.Fatalf("%d bytes, cut at frame %d: %d came, %v, %v", n, at, len(msg), sender, receiver)
			}
			if early != nil && !bytes.Equal(early, append([]byte("old"), body...)) {
				t.Fatalf("%d bytes, cut at frame %d: what was handed over has changed", n, at)
			}
			if second.bytes != n-has || second.out.Moved() != n-has {
				t.Errorf("%d bytes, cut at frame %d with %d here: %d sent again, %d counted", n, at, has, second.bytes, second.out.Moved())
			}
		}
	}
}

func TestTransferCutManyTimesEnds(t *testing.T) {
	body := testBody(7*ChunkBytes+9, 3)
	d := DigestOf(body)
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 1))
		in := NewIncoming(d.Content(), len(body))
		sent := 0
		var msg []byte
		for try := 0; msg == nil; try++ {
			if try > 200 {
				t.Fatalf("seed %d: no end", seed)
			}
			w := &wire{body: body, head: []byte("head"), out: NewOutgoing(d), in: in}
			at := 2 + rng.IntN(12)
			w.change = func(k int, f Frame) (*Frame, bool) { return &f, k < at }
			msg, _, _ = w.run(t)
			sent += w.out.Moved()
		}
		if !bytes.Equal(msg, append([]byte("head"), body...)) || sent > len(body) {
			t.Errorf("seed %d: %d bytes came, %d were acknowledged", seed, len(msg), sent)
		}
	}
}

func TestAChunkThatWasSpoiltOrLostIsAskedForAgain(t *testing.T) {
	const n = 5*ChunkBytes + 77
	body := testBody(n, 1)
	d := DigestOf(body)
	spoil := map[string]func(f Frame) *Frame{
		"lost": func(Frame) *Frame { return nil },
		"bytes": func(f Frame) *Frame {
			f.Data = bytes.Clone(f.Data)
			f.Data[len(f.Data)/2] ^= 1
			return &f
		},
		"hash": func(f Frame) *Frame { f.Sum[3] ^= 1; return &f },
	}
	for what, spoil := range spoil {
		for chunk := range 6 {
			for times := 1; times <= RepeatsMax+1; times++ {
				if what == "lost" && (chunk == 5 || times > 1) {
					continue // nothing need come after it to show that it is missing: the stall does
				}
				spoilt := 0
				var texts []string
				w := &wire{body: body, head: []byte("head"), out: NewOutgoing(d), in: NewIncoming(d.Content(), n)}
				w.change = func(_ int, f Frame) (*Frame, bool) {
					switch {
					case f.Kind == KindChunk && f.Offset == chunk*ChunkBytes && spoilt < times:
						spoilt++
						return spoil(f), true
					case f.Kind == KindRepeat:
						texts = append(texts, f.Text)
					}
					return &f, true
				}
				msg, sender, receiver := w.run(t)
				name := fmt.Sprintf("chunk %d, %s, %d times", chunk, what, times)
				if times <= RepeatsMax {
					if sender != nil || receiver != nil || !bytes.Equal(msg, append([]byte("head"), body...)) {
						t.Fatalf("%s: %d came, %v, %v", name, len(msg), sender, receiver)
					}
					if len(texts) != times || !strings.Contains(texts[0], fmt.Sprintf("the chunk at %d", chunk*ChunkBytes)) {
						t.Errorf("%s: asked for again with %q", name, texts)
					}
				} else {
					var r *RefusedError
					if !errors.As(receiver, &r) || r.Code != Corrupt || msg != nil || sender == nil {
						t.Errorf("%s: %v, %v", name, receiver, sender)
					}
					if has := w.in.Has(); has != chunk*ChunkBytes {
						t.Errorf("%s: %d bytes are kept of it", name, has)
					}
				}
			}
		}
	}
}

// A body that is not what was offered is refused and nothing of it is kept, whoever sent which part of it.
func TestAnotherBodyThanTheOfferedIsRefused(t *testing.T) {
	const n = 3*ChunkBytes + 1
	honest, lie := testBody(n, 1), testBody(n, 2)
	d := DigestOf(honest)
	in := NewIncoming(d.Content(), n)
	w := &wire{body: lie, head: []byte("head"), out: NewOutgoing(DigestOf(lie)), in: in}
	msg, sender, receiver := w.run(t)
	var r *RefusedError
	if msg != nil || !errors.As(receiver, &r) || r.Code != Corrupt || !errors.As(sender, &r) {
		t.Fatalf("%d bytes came, %v, %v", len(msg), sender, receiver)
	}
	if in.Has() != 0 {
		t.Errorf("%d bytes of it are kept", in.Has())
	}
	// A liar that breaks off leaves a prefix that the next sender does not go on from.
	for at := 2; at < 12; at++ {
		in := NewIncoming(d.Content(), n)
		first := &wire{body: lie, head: []byte("head"), out: NewOutgoing(DigestOf(lie)), in: in}
		first.change = func(k int, f Frame) (*Frame, bool) { return &f, k < at }
		first.run(t)
		second := &wire{body: honest, head: []byte("head"), out: NewOutgoing(d), in: in}
		msg, sender, receiver := second.run(t)
		if sender != nil || receiver != nil || !bytes.Equal(msg, append([]byte("head"), honest...)) || second.bytes != n {
			t.Errorf("liar cut at %d: %d came of %d sent, %v, %v", at, len(msg), second.bytes, sender, receiver)
		}
	}
}

func TestFramesAgainstTheRulesEndTheStream(t *testing.T) {
	const n = 3*ChunkBytes + 100
	body := testBody(n, 1)
	d := DigestOf(body)
	chunk := func(i int) Frame {
		p := body[i*ChunkBytes : min((i+1)*ChunkBytes, n)]
		sum, _ := d.Prefix(i*ChunkBytes + len(p))
		return Frame{Kind: KindChunk, Offset: i * ChunkBytes, Sum: sum, Data: p}
	}
	with := func(f Frame, change func(*Frame)) Frame { change(&f); return f }
	for name, frames := range map[string][]Frame{
		"finish too early":        {{Kind: KindFinish, Data: []byte("h")}},
		"finish after one":        {chunk(0), {Kind: KindFinish, Data: []byte("h")}},
		"a receiver's frame":      {{Kind: KindAck}},
		"a second offer":          {{Kind: KindOffer, Offer: testOffer(1, d)}},
		"a chunk again":           {chunk(0), chunk(1), chunk(0)},
		"a short chunk":           {with(chunk(0), func(f *Frame) { f.Data = f.Data[1:] })},
		"a long last chunk":       {chunk(0), chunk(1), chunk(2), with(chunk(3), func(f *Frame) { f.Data = body[:101] })},
		"beyond the end":          {with(chunk(0), func(f *Frame) { f.Offset = BodyBytesMax - ChunkBytes; f.Data = make([]byte, ChunkBytes) })},
		"not where a chunk ends":  {with(chunk(1), func(f *Frame) { f.Offset--; f.Data = f.Data[:1] }), chunk(0), with(chunk(1), func(f *Frame) { f.Offset-- })},
		"after everything, again": {chunk(0), chunk(1), chunk(2), chunk(3), chunk(3)},
	} {
		in := NewIncoming(d.Content(), n)
		in.Begin()
		var last Receipt
		for _, f := range frames {
			last = in.Step(f)
		}
		ends := last.Over && errors.Is(last.Err, ErrMalformed)
		if name == "beyond the end" { // it only shows that what comes before is missing
			ends = !last.Over && len(last.Reply) == 1 && last.Reply[0].Kind == KindRepeat
		}
		if !ends {
			t.Errorf("receiver, %s: %+v", name, last)
		}
		if last.Over && !in.Step(chunk(0)).Over {
			t.Errorf("receiver, %s: it goes on", name)
		}
	}
	accept := NewIncoming(d.Content(), n).Begin()
	for name, frames := range map[string][]Frame{
		"ack too early":       {{Kind: KindAck, Offset: ChunkBytes}},
		"ack of nothing":      {accept, {Kind: KindAck}},
		"ack of half a chunk": {accept, {Kind: KindAck, Offset: 10}},
		"ack of what is not":  {accept, {Kind: KindAck, Offset: BodyBytesMax}},
		"ack again":           {accept, {Kind: KindAck, Offset: ChunkBytes}, {Kind: KindAck, Offset: ChunkBytes}},
		"accepted twice":      {accept, accept},
		"waits when accepted": {accept, {Kind: KindWait}},
		"done too early":      {accept, {Kind: KindDone}},
		"repeat of the past":  {accept, {Kind: KindAck, Offset: ChunkBytes}, {Kind: KindRepeat}},
		"repeat after all":    {accept, {Kind: KindAck, Offset: n}, {Kind: KindRepeat, Offset: n}},
		"a sender's frame":    {accept, chunk(0)},
	} {
		out := NewOutgoing(d)
		var last Sends
		for _, f := range frames {
			last = out.Step(f)
		}
		if !last.Over || !errors.Is(last.Err, ErrMalformed) {
			t.Errorf("sender, %s: %+v", name, last)
		}
		if s := out.Step(accept); !s.Over || len(s.Pieces) > 0 {
			t.Errorf("sender, %s: it goes on", name)
		}
	}
}

// What a receiver holds grows with what has come, not with what was said.
func TestAnOfferedSizeCostsNothing(t *testing.T) {
	body := testBody(ChunkBytes, 1)
	d := DigestOf(body)
	in := NewIncoming(Sum{1}, BodyBytesMax)
	in.Begin()
	if cap(in.buf) != 0 {
		t.Errorf("%d bytes held before anything came", cap(in.buf))
	}
	in.Step(Frame{Kind: KindChunk, Sum: d.Content(), Data: body})
	if in.Has() != ChunkBytes || cap(in.buf) > 2*ChunkBytes {
		t.Errorf("%d bytes held for %d", cap(in.buf), in.Has())
	}
	largest := testBody(BodyBytesMax, 2)
	d = DigestOf(largest)
	in = NewIncoming(d.Content(), BodyBytesMax)
	w := &wire{body: largest, head: make([]byte, HeadBytesMax), out: NewOutgoing(d), in: in}
	msg, sender, receiver := w.run(t)
	if len(msg) != BodyBytesMax+HeadBytesMax || sender != nil || receiver != nil || cap(msg) > BodyBytesMax+HeadBytesMax {
		t.Errorf("the largest: %d bytes in %d, %v, %v", len(msg), cap(msg), sender, receiver)
	}
}

func TestNoMoreThanTheWindowIsUnderWay(t *testing.T) {
	body := testBody((AheadMax+3)*ChunkBytes, 1)
	out := NewOutgoing(DigestOf(body))
	if s := out.Step(Frame{Kind: KindAccept, Sum: emptySum}); len(s.Pieces) != AheadMax {
		t.Errorf("%d chunks at once", len(s.Pieces))
	}
	if s := out.Step(Frame{Kind: KindAck, Offset: ChunkBytes}); len(s.Pieces) != 1 || s.Pieces[0].Offset != AheadMax*ChunkBytes {
		t.Errorf("after one was acknowledged: %+v", s)
	}
}

// Whatever comes, neither end panics, loses count or grows beyond what it may hold.
func FuzzStreamEnds(f *testing.F) {
	for _, s := range sampleFrames() {
		f.Add(AppendFrame(nil, s), uint8(1))
	}
	body := testBody(2*ChunkBytes+50, 1)
	d := DigestOf(body)
	f.Add(AppendFrame(AppendFrame(nil, Frame{Kind: KindAccept, Sum: emptySum}), Frame{Kind: KindAck, Offset: ChunkBytes}), uint8(0))
	f.Fuzz(func(t *testing.T, b []byte, has uint8) {
		in, out := NewIncoming(d.Content(), d.Size()), NewOutgoing(d)
		in.Begin()
		for i := range int(has) % 3 {
			sum, _ := d.Prefix((i + 1) * ChunkBytes)
			in.Step(Frame{Kind: KindChunk, Offset: i * ChunkBytes, Sum: sum, Data: body[i*ChunkBytes : (i+1)*ChunkBytes]})
		}
		for len(b) >= 4 {
			n, err := FrameLength([4]byte(b))
			if err != nil || n > len(b)-4 {
				return
			}
			fr, err := DecodeFrame(b[4 : 4+n])
			b = b[4+n:]
			if err != nil {
				return
			}
			before := in.Has()
			r := in.Step(fr)
			if in.Has() > before+len(fr.Data) || in.Has() > d.Size() || r.Head != nil && in.Has() != d.Size() || cap(in.buf) > HeadBytesMax+d.Size() {
				t.Fatalf("%d bytes after %v, %d before", in.Has(), fr.Kind, before)
			}
			s := out.Step(fr)
			for _, p := range s.Pieces {
				if sum, ok := d.Prefix(p.Offset + p.Bytes); !ok || sum != p.Sum || p.Offset < 0 || p.Bytes > ChunkBytes {
					t.Fatalf("piece %+v", p)
				}
			}
			if out.Acked() > d.Size() || out.Moved() < 0 {
				t.Fatalf("%d acknowledged, %d moved", out.Acked(), out.Moved())
			}
		}
	})
}
