package transfer

import (
	"encoding/binary"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"

	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
)

func testKey(n byte) Key {
	return Key{Group: order.GroupID{Overlay: order.OverlayID{1, 2}, Prefix: keyspace.PrefixOf(keyspace.Key{n}, 8), Gen: 3}, To: 4}
}

func testOffer(n byte, d Digest) Offer {
	return Offer{Key: testKey(n), From: 2, FromStore: order.StoreID{5}, ToStore: order.StoreID{6}, Content: d.Content(), Size: d.Size()}
}

// sampleFrames has one of each kind.
func sampleFrames() []Frame {
	d := DigestOf([]byte("body"))
	return []Frame{
		{Kind: KindOffer, Offer: testOffer(7, d)},
		{Kind: KindChunk, Offset: ChunkBytes, Sum: Sum{1}, Data: []byte("data")},
		{Kind: KindFinish, Data: []byte("head")},
		{Kind: KindWait},
		{Kind: KindAccept, Offset: 2 * ChunkBytes, Sum: Sum{2}},
		{Kind: KindAck, Offset: BodyBytesMax},
		{Kind: KindRepeat, Offset: 0, Text: "why"},
		{Kind: KindDone},
		{Kind: KindRefuse, Code: Corrupt, Text: "because"},
	}
}

// body returns a frame without its length.
func bodyOf(f Frame) []byte { return AppendFrame(nil, f)[4:] }

func TestFramesRoundTrip(t *testing.T) {
	kinds := make(map[Kind]bool)
	for _, f := range sampleFrames() {
		b := AppendFrame([]byte("before"), f)[len("before"):]
		n, err := FrameLength([4]byte(b))
		if err != nil || n != len(b)-4 {
			t.Errorf("%v: length %d of %d, %v", f.Kind, n, len(b)-4, err)
		}
		got, err := DecodeFrame(b[4:])
		if err != nil || !reflect.DeepEqual(got, f) {
			t.Errorf("%v: %+v, %v", f.Kind, got, err)
		}
		for cut := range b[4:] {
			if short, err := DecodeFrame(b[4 : 4+cut]); err == nil && (reflect.DeepEqual(short, f) || f.Data == nil && f.Text == "") {
				t.Errorf("%v of %d bytes cut to %d was read", f.Kind, len(b)-4, cut)
			} else if err != nil && !errors.Is(err, ErrMalformed) {
				t.Errorf("%v: %v", f.Kind, err)
			}
		}
		kinds[f.Kind] = true
	}
	if len(kinds) != len(kindNames) {
		t.Errorf("%d kinds of %d tried", len(kinds), len(kindNames))
	}
	head := AppendChunkHead(nil, ChunkBytes, Sum{1}, 4)
	if whole := AppendFrame(nil, sampleFrames()[1]); string(append(head, "data"...)) != string(whole) {
		t.Error("a chunk's head and its bytes are not the chunk")
	}
}

func TestDecodersKeepTheirBounds(t *testing.T) {
	offer := bodyOf(sampleFrames()[0])
	size := func(n uint32) []byte {
		b := append([]byte(nil), offer...)
		binary.BigEndian.PutUint32(b[len(b)-4:], n)
		return b
	}
	other := append([]byte(nil), offer...)
	other[1]++ // version
	long := strings.Repeat("x", textBytesMax+1)
	for name, b := range map[string][]byte{
		"nothing":              {},
		"unknown kind":         {99},
		"kind 0":               {0},
		"offer of nothing":     size(0),
		"offer of too much":    size(BodyBytesMax + 1),
		"offer of 4 GiB":       size(math.MaxUint32),
		"offer of tomorrow":    other,
		"offer and more":       append(append([]byte(nil), offer...), 0),
		"empty chunk":          bodyOf(Frame{Kind: KindChunk}),
		"chunk too long":       bodyOf(Frame{Kind: KindChunk, Data: make([]byte, ChunkBytes+1)}),
		"chunk far out":        append([]byte{byte(KindChunk), 0xff, 0xff, 0xff, 0xff}, make([]byte, 33)...),
		"ack far out":          {byte(KindAck), 0xff, 0xff, 0xff, 0xff},
		"empty head":           bodyOf(Frame{Kind: KindFinish}),
		"head too long":        bodyOf(Frame{Kind: KindFinish, Data: make([]byte, HeadBytesMax+1)}),
		"wait and more":        {byte(KindWait), 1},
		"done and more":        {byte(KindDone), 1},
		"refusal of no code":   {byte(KindRefuse)},
		"refusal of code 0":    {byte(KindRefuse), 0},
		"refusal of code last": {byte(KindRefuse), byte(codeEnd)},
		"refusal of many words": append([]byte{byte(KindRefuse), byte(Busy)},
			long...),
		"repeat of many words": append([]byte{byte(KindRepeat), 0, 0, 0, 0}, long...),
		"too long a frame":     make([]byte, FrameBytesMax+1),
	} {
		if f, err := DecodeFrame(b); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v, %v", name, f.Kind, err)
		}
	}
	for name, b := range map[string][]byte{
		"largest offer":  size(BodyBytesMax),
		"largest chunk":  bodyOf(Frame{Kind: KindChunk, Data: make([]byte, ChunkBytes)}),
		"largest head":   bodyOf(Frame{Kind: KindFinish, Data: make([]byte, HeadBytesMax)}),
		"text cut short": bodyOf(Frame{Kind: KindRefuse, Code: Busy, Text: long + "é"}),
	} {
		if _, err := DecodeFrame(b); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for n, ok := range map[uint32]bool{0: false, 1: true, FrameBytesMax: true, FrameBytesMax + 1: false, math.MaxUint32: false} {
		if _, err := FrameLength([4]byte(binary.BigEndian.AppendUint32(nil, n))); (err == nil) != ok || err != nil && !errors.Is(err, ErrMalformed) {
			t.Errorf("length %d: %v", n, err)
		}
	}
}

func FuzzDecodeFrame(f *testing.F) {
	for _, s := range sampleFrames() {
		f.Add(bodyOf(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := DecodeFrame(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		if again, err := DecodeFrame(bodyOf(got)); err != nil || !reflect.DeepEqual(again, got) {
			t.Fatalf("%+v became %+v, %v", got, again, err)
		}
	})
}

func TestDigestKnowsEveryPrefixThatEndsWithAChunk(t *testing.T) {
	body := testBody(2*ChunkBytes+5, 1)
	d := DigestOf(body)
	for _, n := range []int{0, ChunkBytes, 2 * ChunkBytes, len(body)} {
		if sum, ok := d.Prefix(n); !ok || sum != DigestOf(body[:n]).Content() {
			t.Errorf("the first %d bytes hash to %v, %v", n, sum, ok)
		}
	}
	for _, n := range []int{-1, 1, ChunkBytes - 1, len(body) - 1, len(body) + 1, 3 * ChunkBytes} {
		if _, ok := d.Prefix(n); ok {
			t.Errorf("a hash of the first %d of %d bytes", n, len(body))
		}
	}
	if (Digest{}).Content() != DigestOf(nil).Content() {
		t.Error("the zero digest is not that of nothing")
	}
}
