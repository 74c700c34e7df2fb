package dht

import (
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"latchkey/dht/keyspace"
	"latchkey/dht/pb"
)

// Items are encoded and decoded by hand, because they are every message's path; the bytes are those of pb.Frame. The decoder
// is stricter than protobuf asks: unknown fields, fields that come twice and fields that a kind does not use are refused, since
// what their sender meant by them cannot be known. Another version says so in its hello.

// badFrame is why a frame is refused.
type badFrame struct {
	reason Reason
	detail string
}

func (e *badFrame) Error() string { return fmt.Sprintf("dht: %s: %s", e.reason, e.detail) }

func malformed(format string, args ...any) error {
	return &badFrame{ReasonMalformed, fmt.Sprintf(format, args...)}
}

// item is one message or one piece of one. After decoding, service and payload alias the frame.
type item struct {
	kind    pb.Kind
	cause   pb.Cause
	id      uint64
	service []byte
	key     keyspace.Key
	payload []byte
	total   uint64
}

// appendItem appends it to a frame's body.
func appendItem(b []byte, it *item) []byte {
	b = protowire.AppendTag(b, 2, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(it.size()))
	b = protowire.AppendTag(b, 1, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(it.kind))
	if it.id != 0 {
		b = protowire.AppendTag(b, 2, protowire.VarintType)
		b = protowire.AppendVarint(b, it.id)
	}
	if len(it.service) > 0 {
		b = protowire.AppendTag(b, 3, protowire.BytesType)
		b = protowire.AppendBytes(b, it.service)
	}
	if it.key != (keyspace.Key{}) {
		b = protowire.AppendTag(b, 4, protowire.BytesType)
		b = protowire.AppendBytes(b, it.key[:])
	}
	if len(it.payload) > 0 {
		b = protowire.AppendTag(b, 5, protowire.BytesType)
		b = protowire.AppendBytes(b, it.payload)
	}
	if it.total != 0 {
		b = protowire.AppendTag(b, 6, protowire.VarintType)
		b = protowire.AppendVarint(b, it.total)
	}
	if it.cause != 0 {
		b = protowire.AppendTag(b, 7, protowire.VarintType)
		b = protowire.AppendVarint(b, uint64(it.cause))
	}
	return b
}

// size returns the length of the item's encoding, without its tag and length in the frame. Every field's tag is one byte.
func (it *item) size() int {
	n := 1 + protowire.SizeVarint(uint64(it.kind))
	if it.id != 0 {
		n += 1 + protowire.SizeVarint(it.id)
	}
	if len(it.service) > 0 {
		n += 1 + protowire.SizeBytes(len(it.service))
	}
	if it.key != (keyspace.Key{}) {
		n += 1 + protowire.SizeBytes(len(it.key))
	}
	if len(it.payload) > 0 {
		n += 1 + protowire.SizeBytes(len(it.payload))
	}
	if it.total != 0 {
		n += 1 + protowire.SizeVarint(it.total)
	}
	if it.cause != 0 {
		n += 1 + protowire.SizeVarint(uint64(it.cause))
	}
	return n
}

// decodeFrame reads the items of a frame's body into items[:0]. Nothing of a frame is used before all of it was found good.
// The items alias b. Errors are *badFrame.
func decodeFrame(b []byte, class Class, items []item) ([]item, error) {
	items = items[:0]
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return items, malformed("tag: %v", protowire.ParseError(n))
		}
		if num == 1 && typ == protowire.BytesType {
			return items, &badFrame{ReasonSecondHello, "after the first frame"}
		}
		if num != 2 || typ != protowire.BytesType {
			return items, malformed("field %d of type %d in a frame", num, typ)
		}
		b = b[n:]
		body, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return items, malformed("item: %v", protowire.ParseError(n))
		}
		b = b[n:]
		if len(items) == itemsPerFrameMax {
			return items, malformed("more than %d items", itemsPerFrameMax)
		}
		items = append(items, item{})
		if err := items[len(items)-1].decode(body, class); err != nil {
			return items, err
		}
	}
	if len(items) == 0 {
		return items, malformed("empty frame")
	}
	return items, nil
}

func (it *item) decode(b []byte, class Class) error {
	var seen uint8 // bit n: field n was there
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return malformed("tag: %v", protowire.ParseError(n))
		}
		b = b[n:]
		var value uint64
		var bytes []byte
		switch {
		case typ == protowire.VarintType && (num == 1 || num == 2 || num == 6 || num == 7):
			value, n = protowire.ConsumeVarint(b)
		case typ == protowire.BytesType && num >= 3 && num <= 5:
			bytes, n = protowire.ConsumeBytes(b)
		default:
			return malformed("field %d of type %d in an item", num, typ)
		}
		if n < 0 {
			return malformed("field %d: %v", num, protowire.ParseError(n))
		}
		if seen&(1<<num) != 0 {
			return malformed("field %d twice in an item", num)
		}
		seen |= 1 << num
		b = b[n:]
		switch num {
		case 1:
			if value < uint64(pb.Kind_KIND_ONE_WAY) || value > uint64(pb.Kind_KIND_PIECE) {
				return &badFrame{ReasonKind, fmt.Sprint(value)}
			}
			it.kind = pb.Kind(value)
		case 2:
			it.id = value
		case 3:
			it.service = bytes
		case 4:
			if len(bytes) != keyspace.Size {
				return malformed("key of %d bytes", len(bytes))
			}
			it.key = keyspace.Key(bytes)
		case 5:
			it.payload = bytes
		case 6:
			it.total = value
		case 7:
			if value > uint64(pb.Cause_CAUSE_BUSY) {
				return malformed("cause %d", value)
			}
			it.cause = pb.Cause(value)
		}
	}
	return it.validate(class)
}

// validate checks what a kind uses against what is there.
func (it *item) validate(class Class) error {
	addressed, correlated := false, false
	switch it.kind {
	case pb.Kind_KIND_ONE_WAY:
		addressed = true
	case pb.Kind_KIND_REQUEST:
		addressed, correlated = true, true
	case pb.Kind_KIND_REPLY:
		correlated = true
	case pb.Kind_KIND_ERROR:
		correlated = true
		if len(it.payload) > errorTextBytesMax || !utf8.Valid(it.payload) || it.total != 0 {
			return malformed("error text of %d bytes", len(it.payload))
		}
	case pb.Kind_KIND_PIECE:
		if class != Bulk || len(it.payload) == 0 || it.total != 0 {
			return &badFrame{ReasonPiece, "empty, with a total, or not on bulk"}
		}
	default:
		return &badFrame{ReasonKind, "absent"}
	}
	switch {
	case addressed != (len(it.service) > 0), len(it.service) > ServiceNameBytesMax, !utf8.Valid(it.service):
		return malformed("service name of %d bytes", len(it.service))
	case !addressed && it.key != keyspace.Key{}:
		return malformed("a key in %v", it.kind)
	case correlated != (it.id != 0):
		return malformed("id %d in %v", it.id, it.kind)
	case it.cause != 0 && it.kind != pb.Kind_KIND_ERROR:
		return malformed("a cause in %v", it.kind)
	case it.total != 0 && (class != Bulk || it.total > MessageBytesMax || it.total <= uint64(len(it.payload)) || len(it.payload) == 0):
		return &badFrame{ReasonPiece, fmt.Sprintf("%d of %d bytes", len(it.payload), it.total)}
	}
	return nil
}

// assembler joins the pieces of the messages that arrive on one stream, one message at a time. The zero value is ready.
type assembler struct {
	budget *budget // what all streams of the peer may announce together
	stream *stream // whose messages these are; nil: nobody's, and not counted among all peers'
	begun  item    // kind, id, service, key and total of the message under way; kind 0: none

	// What has come of it, in chunks of pieceBytesMax of which only the last has room. One buffer that grows would leave three times as much
	// behind for the garbage collector, of a message that may never be complete.
	chunks [][]byte
	held   int // bytes in chunks
}

// add takes the next item and reports whether it is a whole message, or completes one, which then replaces *it and belongs to
// the receiver. Errors are *badFrame.
func (a *assembler) add(it *item) (whole bool, err error) {
	switch {
	case it.kind == pb.Kind_KIND_PIECE:
		if a.begun.kind == 0 || uint64(a.held+len(it.payload)) > a.begun.total {
			return false, &badFrame{ReasonPiece, "of no message, or beyond its total"}
		}
	case a.begun.kind != 0:
		return false, &badFrame{ReasonPiece, "another item between the pieces"}
	case it.total == 0:
		return true, nil
	default:
		if !a.budget.take(int64(it.total)) {
			return false, &badFrame{ReasonBudget, fmt.Sprintf("%d bytes more", it.total)}
		}
		a.begun = *it
		a.begun.service = append([]byte(nil), it.service...)
		a.begun.payload = nil
	}
	a.take(it.payload)
	if a.stream != nil {
		if err := a.stream.link.o.half.grow(a, len(it.payload)); err != nil {
			return false, err
		}
	}
	if uint64(a.held) < a.begun.total {
		return false, nil
	}
	*it = a.begun
	it.payload = slices.Concat(a.chunks...)
	a.drop()
	return true, nil
}

// take appends a piece. Room is made as pieces come, a chunk at a time, and never for more than the total.
func (a *assembler) take(piece []byte) {
	for len(piece) > 0 {
		last := len(a.chunks) - 1
		if last < 0 || len(a.chunks[last]) == cap(a.chunks[last]) {
			a.chunks = append(a.chunks, make([]byte, 0, min(a.begun.total-uint64(a.held), pieceBytesMax)))
			last++
		}
		c := a.chunks[last]
		n := copy(c[len(c):cap(c)], piece)
		a.chunks[last] = c[:len(c)+n]
		a.held += n
		piece = piece[n:]
	}
}

// drop forgets the message under way and gives back what it had announced.
func (a *assembler) drop() {
	if a.begun.kind != 0 {
		a.budget.give(int64(a.begun.total))
		if a.stream != nil {
			a.stream.link.o.half.forget(a)
		}
	}
	a.begun, a.chunks, a.held = item{}, nil, 0
}

// hello is what a peer says of itself in the first frame of a stream.
type hello struct {
	session     uint64
	boot        Boot
	application []byte
}

// encodeHello returns the body of the first frame.
func encodeHello(overlay [32]byte, h hello) ([]byte, error) {
	m := &pb.Hello{Version: protocolVersion, Overlay: overlay[:], Session: h.session, Application: h.application}
	if b := h.boot; b.Store != [16]byte{} {
		m.Store, m.BootCount, m.BootNonce = b.Store[:], b.Count, b.Nonce
	}
	return proto.Marshal(&pb.Frame{Hello: m})
}

// decodeHello checks the body of the first frame of a stream. Errors are *badFrame.
func decodeHello(b []byte, overlay [32]byte) (hello, error) {
	var f pb.Frame
	if err := proto.Unmarshal(b, &f); err != nil {
		return hello{}, malformed("hello: %v", err)
	}
	h := f.GetHello()
	switch {
	case h == nil, len(f.GetItems()) > 0:
		return hello{}, &badFrame{ReasonNoHello, "in the first frame"}
	case h.GetVersion() != protocolVersion:
		return hello{}, &badFrame{ReasonVersion, fmt.Sprint(h.GetVersion())}
	case string(h.GetOverlay()) != string(overlay[:]):
		return hello{}, &badFrame{ReasonOverlay, fmt.Sprintf("%x", h.GetOverlay())}
	case h.GetSession() == 0:
		return hello{}, malformed("hello without a session")
	case len(h.GetApplication()) > HelloBytesMax:
		return hello{}, &badFrame{ReasonOversize, fmt.Sprintf("application hello of %d bytes", len(h.GetApplication()))}
	}
	boot, err := decodeBoot(h.GetStore(), h.GetBootCount(), h.GetBootNonce())
	return hello{h.GetSession(), boot, h.GetApplication()}, err
}

// decodeBoot checks the start of a store, or of a peer without one.
func decodeBoot(store []byte, count, nonce uint64) (b Boot, err error) {
	if len(store) == 0 && count == 0 && nonce == 0 {
		return b, nil
	}
	if len(store) != len(b.Store) || count == 0 || nonce == 0 {
		return b, malformed("start %d of a store with an id of %d bytes, nonce %x", count, len(store), nonce)
	}
	b = Boot{Count: count, Nonce: nonce}
	if copy(b.Store[:], store); b.Store == [16]byte{} {
		return Boot{}, malformed("a store whose id is zero")
	}
	return b, nil
}

// asBadFrame returns err's reason if it is about the peer's bytes rather than about the stream.
func asBadFrame(err error) (Reason, bool) {
	var bad *badFrame
	if errors.As(err, &bad) {
		return bad.reason, true
	}
	return "", false
}
