package dht

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"latchkey/dht/keyspace"
	"latchkey/dht/pb"
	"latchkey/internal/protofield/odd"
)

// drawItem returns an item that is allowed on bulk.
func drawItem(t *rapid.T) item {
	it := item{kind: pb.Kind(rapid.IntRange(1, 5).Draw(t, "kind"))}
	payload := rapid.SliceOfN(rapid.Byte(), 1, 200)
	it.payload = payload.Draw(t, "payload")
	addressed := it.kind == pb.Kind_KIND_ONE_WAY || it.kind == pb.Kind_KIND_REQUEST
	if addressed {
		it.service = []byte(rapid.StringMatching(`[a-zé]{1,20}`).Draw(t, "service"))
		copy(it.key[:], rapid.SliceOfN(rapid.Byte(), 0, keyspace.Size).Draw(t, "key"))
	}
	if it.kind != pb.Kind_KIND_ONE_WAY && it.kind != pb.Kind_KIND_PIECE {
		it.id = rapid.Uint64Min(1).Draw(t, "id")
	}
	switch it.kind {
	case pb.Kind_KIND_ERROR:
		it.payload = []byte(rapid.String().Draw(t, "text"))
		it.cause = pb.Cause(rapid.IntRange(0, 2).Draw(t, "cause"))
	case pb.Kind_KIND_PIECE:
	default:
		if rapid.Bool().Draw(t, "large") {
			it.total = rapid.Uint64Range(uint64(len(it.payload))+1, MessageBytesMax).Draw(t, "total")
		}
	}
	return it
}

// generated returns the item as the generated code has it.
func generated(it *item) *pb.Item {
	p := &pb.Item{Kind: it.kind, Id: it.id, Service: string(it.service), Payload: it.payload, Total: it.total, Cause: it.cause}
	if it.key != (keyspace.Key{}) {
		p.Key = it.key[:]
	}
	return p
}

func sameItem(a, b *item) bool {
	return a.kind == b.kind && a.id == b.id && a.cause == b.cause && a.total == b.total && a.key == b.key &&
		bytes.Equal(a.service, b.service) && bytes.Equal(a.payload, b.payload)
}

func TestFramesAreProtobuf(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		items := rapid.SliceOfN(rapid.Custom(drawItem), 1, 5).Draw(t, "items")
		var ours []byte
		frame := &pb.Frame{}
		for i := range items {
			before := len(ours)
			ours = appendItem(ours, &items[i])
			if size := items[i].size(); len(ours)-before != 1+protowire.SizeBytes(size) {
				t.Fatalf("size says %d, the encoding grew by %d", size, len(ours)-before)
			}
			if over := len(ours) - before - len(items[i].payload); over > itemOverheadMax {
				t.Fatalf("overhead of %d bytes", over)
			}
			frame.Items = append(frame.Items, generated(&items[i]))
		}
		theirs, err := proto.MarshalOptions{Deterministic: true}.Marshal(frame)
		if err != nil || !bytes.Equal(ours, theirs) {
			t.Fatalf("ours %x\nprotobuf's %x, %v", ours, theirs, err)
		}
		decoded, err := decodeFrame(theirs, Bulk, nil)
		if err != nil || !slices.EqualFunc(decoded, items, func(a, b item) bool { return sameItem(&a, &b) }) {
			t.Fatalf("decoded %v, %v", decoded, err)
		}
	})
}

// frameOf encodes a frame as a peer without scruples would.
func frameOf(items ...*pb.Item) []byte {
	b, err := proto.Marshal(&pb.Frame{Items: items})
	if err != nil {
		panic(err)
	}
	return b
}

var badFrames = []struct {
	name   string
	class  Class
	body   []byte
	reason Reason
}{
	{"no items", Control, []byte{}, ReasonMalformed},
	{"garbage", Control, []byte("not protobuf at all"), ReasonMalformed},
	{"item cut short", Control, frameOf(&pb.Item{Kind: 1, Service: "echo"})[:4], ReasonMalformed},
	{"unknown field in the frame", Control, protowire.AppendVarint(protowire.AppendTag(nil, 9, protowire.VarintType), 1), ReasonMalformed},
	{"unknown field in an item", Control, []byte{0x12, 4, 0x08, 1, 0x48, 1}, ReasonMalformed},
	{"a hello", Control, mustHello(testOverlay), ReasonSecondHello},
	{"no kind", Control, frameOf(&pb.Item{Service: "echo"}), ReasonKind},
	{"kind 6", Control, frameOf(&pb.Item{Kind: 6, Service: "echo"}), ReasonKind},
	{"kind 1 and 2^32", Control, append([]byte{0x12, 12, 0x08}, append(protowire.AppendVarint(nil, 1<<32|1), 0x1a, 4, 'e', 'c', 'h', 'o')...), ReasonKind},
	{"no service", Control, frameOf(&pb.Item{Kind: 1}), ReasonMalformed},
	{"long service name", Control, frameOf(&pb.Item{Kind: 1, Service: strings.Repeat("s", ServiceNameBytesMax+1)}), ReasonMalformed},
	{"service name not UTF-8", Control, []byte{0x12, 5, 0x08, 1, 0x1a, 1, 0xff}, ReasonMalformed},
	{"two service names, the first not UTF-8", Control, []byte{0x12, 8, 0x08, 1, 0x1a, 1, 0xff, 0x1a, 1, 's'}, ReasonMalformed},
	{"service in a reply", Control, frameOf(&pb.Item{Kind: 3, Id: 1, Service: "echo"}), ReasonMalformed},
	{"request without id", Control, frameOf(&pb.Item{Kind: 2, Service: "echo"}), ReasonMalformed},
	{"one-way with id", Control, frameOf(&pb.Item{Kind: 1, Id: 1, Service: "echo"}), ReasonMalformed},
	{"short key", Control, frameOf(&pb.Item{Kind: 1, Service: "echo", Key: []byte{1}}), ReasonMalformed},
	{"key in a reply", Control, frameOf(&pb.Item{Kind: 3, Id: 1, Key: bytes.Repeat([]byte{1}, 32)}), ReasonMalformed},
	{"cause in a reply", Control, frameOf(&pb.Item{Kind: 3, Id: 1, Cause: 1}), ReasonMalformed},
	{"cause 3", Control, frameOf(&pb.Item{Kind: 4, Id: 1, Cause: 3}), ReasonMalformed},
	{"long error text", Control, frameOf(&pb.Item{Kind: 4, Id: 1, Payload: make([]byte, errorTextBytesMax+1)}), ReasonMalformed},
	{"too many items", Control, frameOf(manyItems(itemsPerFrameMax + 1)...), ReasonMalformed},
	{"total on control", Control, frameOf(&pb.Item{Kind: 1, Service: "echo", Payload: []byte{1}, Total: 2}), ReasonPiece},
	{"piece on control", Control, frameOf(&pb.Item{Kind: 5, Payload: []byte{1}}), ReasonPiece},
	{"piece of nothing", Bulk, frameOf(&pb.Item{Kind: 5, Payload: []byte{1}}), ReasonPiece},
	{"empty piece", Bulk, frameOf(&pb.Item{Kind: 5}), ReasonPiece},
	{"total too large", Bulk, frameOf(&pb.Item{Kind: 1, Service: "echo", Payload: []byte{1}, Total: MessageBytesMax + 1}), ReasonPiece},
	{"total of what is there", Bulk, frameOf(&pb.Item{Kind: 1, Service: "echo", Payload: []byte{1}, Total: 1}), ReasonPiece},
	{"beyond its total", Bulk, frameOf(&pb.Item{Kind: 1, Service: "echo", Payload: []byte{1}, Total: 2}, &pb.Item{Kind: 5, Payload: []byte{1, 2}}), ReasonPiece},
	{"between the pieces", Bulk, frameOf(&pb.Item{Kind: 1, Service: "echo", Payload: []byte{1}, Total: 2}, &pb.Item{Kind: 1, Service: "echo"}), ReasonPiece},
}

func manyItems(n int) []*pb.Item {
	return slices.Repeat([]*pb.Item{{Kind: 1, Service: "echo"}}, n)
}

func mustHello(overlay [32]byte) []byte {
	b, err := encodeHello(overlay, hello{session: 1})
	if err != nil {
		panic(err)
	}
	return b
}

func TestBadFramesAreRefusedForTheirReason(t *testing.T) {
	for _, c := range badFrames {
		items, err := decodeFrame(c.body, c.class, nil)
		joined := assembler{budget: new(budget)}
		for i := range items {
			if err == nil {
				_, err = joined.add(&items[i])
			}
		}
		if reason, ok := asBadFrame(err); !ok || reason != c.reason {
			t.Errorf("%s: %v, want %q", c.name, err, c.reason)
		}
	}
	if _, err := decodeFrame(frameOf(manyItems(itemsPerFrameMax)...), Control, nil); err != nil {
		t.Errorf("a full batch: %v", err)
	}
}

func TestBudgetHoldsOneLargestMessage(t *testing.T) {
	var b budget
	begin := func(total uint64) item {
		return item{kind: pb.Kind_KIND_ONE_WAY, service: []byte("s"), payload: []byte{1}, total: total}
	}
	first, second := assembler{budget: &b}, assembler{budget: &b}
	largest, small := begin(MessageBytesMax), begin(2)
	if whole, err := first.add(&largest); whole || err != nil {
		t.Fatalf("the largest message: %v, %v", whole, err)
	}
	_, err := second.add(&small)
	if reason, _ := asBadFrame(err); reason != ReasonBudget {
		t.Fatalf("beyond the budget: %v", err)
	}
	first.drop()
	if _, err = second.add(&small); err != nil {
		t.Fatalf("after the budget was given back: %v", err)
	}
	last := item{kind: pb.Kind_KIND_PIECE, payload: []byte{2}}
	whole, err := second.add(&last)
	if !whole || err != nil || string(last.service) != "s" || !bytes.Equal(last.payload, []byte{1, 2}) || b.used.Load() != 0 {
		t.Fatalf("completed: %v, %v, %+v, %d bytes kept", whole, err, last, b.used.Load())
	}
}

// What a peer may have us keep of a message that it never ends is what it has sent of it, whatever it cuts it into.
func TestAHalfReceivedMessageTakesTheRoomOfWhatHasCome(t *testing.T) {
	msg := bytes.Repeat([]byte("latchkey"), 3*pieceBytesMax/8+1)
	for _, piece := range []int{1, 1000, pieceBytesMax - 1, pieceBytesMax} {
		first := item{kind: pb.Kind_KIND_ONE_WAY, service: []byte("s"), payload: msg[:piece], total: uint64(len(msg))}
		joined := assembler{budget: new(budget)}
		next, sent := &first, 0
		for whole := false; !whole; {
			sent += len(next.payload)
			var err error
			if whole, err = joined.add(next); err != nil {
				t.Fatal(err)
			}
			room := 0
			for _, c := range joined.chunks {
				room += cap(c)
			}
			if !whole && (joined.held != sent || room > sent+pieceBytesMax) {
				t.Fatalf("pieces of %d bytes: %d sent, %d held in room for %d", piece, sent, joined.held, room)
			}
			if whole && !bytes.Equal(next.payload, msg) {
				t.Errorf("pieces of %d bytes make another message", piece)
			}
			next = &item{kind: pb.Kind_KIND_PIECE, payload: msg[sent:min(sent+piece, len(msg))]}
			if piece == 1 && sent > pieceBytesMax { // enough of those
				next.payload = msg[sent:]
			}
		}
	}
}

func TestPiecesJoinToTheMessage(t *testing.T) {
	for _, n := range []int{ControlBytesMax + 1, pieceBytesMax, pieceBytesMax + 1, 3*pieceBytesMax + 7} {
		msg := bytes.Repeat([]byte("latchkey"), n/8+1)[:n]
		joined := assembler{budget: new(budget)}
		var got *item
		for _, f := range pieces(&item{kind: pb.Kind_KIND_REPLY, id: 7, payload: msg}) {
			body, err := readFrame(bufio.NewReader(bytes.NewReader(f.bytes())), bulkFrameBytesMax, nil)
			if err != nil {
				t.Fatal(err)
			}
			items, err := decodeFrame(body, Bulk, nil)
			if err != nil || len(items) != 1 || got != nil {
				t.Fatalf("%d items, %v, whole before the end %v", len(items), err, got != nil)
			}
			if whole, err := joined.add(&items[0]); err != nil {
				t.Fatal(err)
			} else if whole {
				got = &items[0]
			}
		}
		if got == nil || got.kind != pb.Kind_KIND_REPLY || got.id != 7 || !bytes.Equal(got.payload, msg) {
			t.Errorf("%d bytes did not come through", n)
		}
	}
}

func TestHelloIsChecked(t *testing.T) {
	said := func(h *pb.Hello, items ...*pb.Item) []byte {
		b, _ := proto.Marshal(&pb.Frame{Hello: h, Items: items})
		return b
	}
	other := testOverlay
	other[31]++ // the same protocol id
	store := [16]byte{1}
	for name, c := range map[string]struct {
		body   []byte
		reason Reason
	}{
		"garbage":       {[]byte{0xff}, ReasonMalformed},
		"items":         {frameOf(&pb.Item{Kind: 1, Service: "echo"}), ReasonNoHello},
		"with items":    {said(&pb.Hello{Version: protocolVersion, Overlay: testOverlay[:]}, &pb.Item{Kind: 1, Service: "echo"}), ReasonNoHello},
		"other version": {said(&pb.Hello{Version: protocolVersion + 1, Overlay: testOverlay[:]}), ReasonVersion},
		"other overlay": {mustHello(other), ReasonOverlay},
		"no session":    {said(&pb.Hello{Version: protocolVersion, Overlay: testOverlay[:]}), ReasonMalformed},
		"long":          {said(&pb.Hello{Version: protocolVersion, Overlay: testOverlay[:], Session: 1, Application: make([]byte, HelloBytesMax+1)}), ReasonOversize},
		"short store":   {said(&pb.Hello{Version: protocolVersion, Overlay: testOverlay[:], Session: 1, Store: make([]byte, 15), BootCount: 1, BootNonce: 1}), ReasonMalformed},
		"zero store":    {said(&pb.Hello{Version: protocolVersion, Overlay: testOverlay[:], Session: 1, Store: make([]byte, 16), BootCount: 1, BootNonce: 1}), ReasonMalformed},
		"no count":      {said(&pb.Hello{Version: protocolVersion, Overlay: testOverlay[:], Session: 1, Store: store[:], BootNonce: 1}), ReasonMalformed},
		"no nonce":      {said(&pb.Hello{Version: protocolVersion, Overlay: testOverlay[:], Session: 1, Store: store[:], BootCount: 1}), ReasonMalformed},
		"no store":      {said(&pb.Hello{Version: protocolVersion, Overlay: testOverlay[:], Session: 1, BootCount: 1}), ReasonMalformed},
	} {
		_, err := decodeHello(c.body, testOverlay)
		if reason, ok := asBadFrame(err); !ok || reason != c.reason {
			t.Errorf("%s: %v, want %q", name, err, c.reason)
		}
	}
	largest, err := encodeHello(testOverlay, hello{math.MaxUint64, Boot{Store: [16]byte{1}, Count: math.MaxUint64, Nonce: math.MaxUint64}, make([]byte, HelloBytesMax)})
	if err != nil || len(largest) > helloFrameBytesMax {
		t.Errorf("the largest hello takes %d bytes, %v", len(largest), err)
	}
	if h, err := decodeHello(largest, testOverlay); err != nil || len(h.application) != HelloBytesMax || h.boot.Count != math.MaxUint64 {
		t.Errorf("the largest hello: %+v, %v", h, err)
	}
}

func TestReadFrameTellsEndFromTruncation(t *testing.T) {
	read := func(b []byte) error {
		_, err := readFrame(bufio.NewReader(bytes.NewReader(b)), 300, nil)
		return err
	}
	if err := read(nil); err != io.EOF {
		t.Errorf("end between frames: %v", err)
	}
	if err := read(append([]byte{0xac, 2}, make([]byte, 300)...)); err != nil {
		t.Errorf("the largest frame: %v", err)
	}
	for name, c := range map[string]struct {
		b      []byte
		reason Reason
	}{
		"inside the length": {[]byte{0x80}, ReasonTruncated},
		"inside the body":   {[]byte{5, 1, 2}, ReasonTruncated},
		"before the body":   {[]byte{5}, ReasonTruncated},
		"empty":             {[]byte{0}, ReasonMalformed},
		"one too long":      {[]byte{0xad, 2}, ReasonOversize},
		"endless length":    {[]byte{0x80, 0x80, 0x80, 0x80, 0x80, 1}, ReasonOversize},
	} {
		if reason, ok := asBadFrame(read(c.b)); !ok || reason != c.reason {
			t.Errorf("%s: %q", name, reason)
		}
	}
}

func FuzzDecodeFrame(f *testing.F) {
	for _, c := range badFrames {
		f.Add(c.body, c.class == Bulk)
	}
	f.Add(frameOf(&pb.Item{Kind: 2, Id: 9, Service: "echo", Key: make([]byte, 32), Payload: []byte("hi")}, &pb.Item{Kind: 3, Id: 1}), false)
	f.Fuzz(readsAsProtobuf)
}

// readsAsProtobuf holds the decoding by hand against the protobuf library: it refuses more, and reads nothing in another way.
func readsAsProtobuf(t *testing.T, b []byte, bulk bool) {
	t.Helper()
	class := Control
	if bulk {
		class = Bulk
	}
	items, err := decodeFrame(b, class, nil)
	if err != nil {
		if _, ok := asBadFrame(err); !ok {
			t.Fatalf("an error without a reason: %v", err)
		}
		return
	}
	var frame pb.Frame
	if err := proto.Unmarshal(b, &frame); err != nil || len(frame.Items) != len(items) {
		t.Fatalf("protobuf disagrees: %v", err)
	}
	for i := range items {
		if got := frame.Items[i]; len(got.Key) > 0 && keyspace.Key(got.Key) == (keyspace.Key{}) {
			got.Key = nil
		}
		if want := generated(&items[i]); !proto.Equal(want, frame.Items[i]) {
			t.Fatalf("item %d: %v, protobuf says %v", i, want, frame.Items[i])
		}
	}
}

func TestOddFramesAreRefusedOrReadAsProtobufReadsThem(t *testing.T) {
	samples := [][]byte{
		frameOf(&pb.Item{Kind: 2, Id: 9, Service: "echo", Key: bytes.Repeat([]byte{7}, 32), Payload: []byte("hi"), Total: 9}, &pb.Item{Kind: 3, Id: 1}),
		frameOf(&pb.Item{Kind: 1, Service: "\u00e9", Payload: []byte("hi")}),
		frameOf(&pb.Item{Kind: 4, Id: 3, Payload: []byte("no"), Cause: 2}),
		frameOf(&pb.Item{Kind: 5, Payload: []byte("piece")}),
	}
	for _, b := range odd.Encodings(samples...) {
		readsAsProtobuf(t, b, false)
		readsAsProtobuf(t, b, true)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		readsAsProtobuf(t, odd.Draw(rng, samples...), rng.IntN(2) == 0)
	}
}

func FuzzDecodeHello(f *testing.F) {
	f.Add(mustHello(testOverlay))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := decodeHello(b, testOverlay)
		if _, ok := asBadFrame(err); err != nil && !ok || len(h.application) > HelloBytesMax || err == nil && (h.boot.Store == [16]byte{}) != (h.boot == Boot{}) {
			t.Errorf("%+v, %v", h, err)
		}
	})
}

// FuzzDecodeStream reads arbitrary bytes as a bulk stream after its hello.
func FuzzDecodeStream(f *testing.F) {
	var whole []byte
	for _, p := range pieces(&item{kind: pb.Kind_KIND_ONE_WAY, service: []byte("s"), payload: make([]byte, 2)}) {
		whole = append(whole, p.bytes()...)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)-1])
	f.Fuzz(func(t *testing.T, b []byte) {
		r, joined := bufio.NewReader(bytes.NewReader(b)), assembler{budget: new(budget)}
		var buf []byte
		var items []item
		for {
			var err error
			if buf, err = readFrame(r, bulkFrameBytesMax, buf); err == nil {
				items, err = decodeFrame(buf, Bulk, items)
			}
			for i := range items {
				if err == nil {
					_, err = joined.add(&items[i])
				}
			}
			if err != nil {
				if _, ok := asBadFrame(err); !ok && !errors.Is(err, io.EOF) {
					t.Errorf("an error without a reason: %v", err)
				}
				break
			}
		}
		if joined.drop(); joined.budget.used.Load() != 0 {
			t.Error("the budget is not given back")
		}
	})
}
