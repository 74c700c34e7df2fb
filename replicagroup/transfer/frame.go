package transfer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
)

// ErrMalformed is matched by every error about a frame that cannot be read, or that no honest peer sends where it came.
var ErrMalformed = errors.New("transfer: malformed")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

// version is in every offer; a peer of another one is refused as malformed.
const version = 1

// Key names a transfer: a node has at most one of each to send, and one to receive.
type Key struct {
	Group order.GroupID
	To    order.ReplicaID
}

// String names group and replica.
func (k Key) String() string { return fmt.Sprintf("group %v to replica %d", k.Group, k.To) }

// Offer begins a transfer.
type Offer struct {
	Key
	From               order.ReplicaID
	FromStore, ToStore order.StoreID
	Content            Sum
	Size               int // of the body, 1 to BodyBytesMax
}

// Kind is a kind of frame.
type Kind uint8

// The kinds; see the package comment. Odd ones come from the sender, even ones from the receiver.
const (
	KindOffer  Kind = 1
	KindChunk  Kind = 3
	KindFinish Kind = 5
	KindWait   Kind = 2
	KindAccept Kind = 4
	KindAck    Kind = 6
	KindRepeat Kind = 8
	KindDone   Kind = 10
	KindRefuse Kind = 12
)

var kindNames = map[Kind]string{
	KindOffer: "offer", KindChunk: "chunk", KindFinish: "finish", KindWait: "wait", KindAccept: "accept", KindAck: "ack",
	KindRepeat: "repeat", KindDone: "done", KindRefuse: "refuse",
}

// String returns the kind's name.
func (k Kind) String() string {
	if n, ok := kindNames[k]; ok {
		return n
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Code says why a receiver refuses.
type Code uint8

// The codes.
const (
	Busy       Code = iota + 1 // too many wait already: come again
	Superseded                 // a newer offer of the same transfer takes its place
	Stray                      // no such replica here, or the sender is no member of its group
	Corrupt                    // the bytes are not what was offered, or a chunk was wrong too often
	Closing                    // the receiver ends
	codeEnd
)

// String names the code.
func (c Code) String() string {
	switch c {
	case Busy:
		return "busy"
	case Superseded:
		return "superseded"
	case Stray:
		return "no such replica, or not a member"
	case Corrupt:
		return "corrupt"
	case Closing:
		return "closing"
	}
	return fmt.Sprintf("code %d", uint8(c))
}

// Frame is one message of a transfer's stream. Only the fields of its kind are set.
type Frame struct {
	Kind   Kind
	Offer  Offer  // of an Offer
	Offset int    // of Chunk, Accept, Ack and Repeat
	Sum    Sum    // of Chunk and Accept
	Data   []byte // of Chunk: bytes of the body; of Finish: the head
	Code   Code   // of Refuse
	Text   string // of Repeat and Refuse
}

// AppendFrame appends f with its length in front.
func AppendFrame(b []byte, f Frame) []byte {
	at := len(b)
	b = append(b, 0, 0, 0, 0, byte(f.Kind))
	switch f.Kind {
	case KindOffer:
		b = appendOffer(b, f.Offer)
	case KindChunk:
		b = binary.BigEndian.AppendUint32(b, uint32(f.Offset))
		b = append(append(b, f.Sum[:]...), f.Data...)
	case KindFinish:
		b = append(b, f.Data...)
	case KindAccept:
		b = binary.BigEndian.AppendUint32(b, uint32(f.Offset))
		b = append(b, f.Sum[:]...)
	case KindAck:
		b = binary.BigEndian.AppendUint32(b, uint32(f.Offset))
	case KindRepeat:
		b = binary.BigEndian.AppendUint32(b, uint32(f.Offset))
		b = append(b, cutText(f.Text)...)
	case KindRefuse:
		b = append(b, byte(f.Code))
		b = append(b, cutText(f.Text)...)
	}
	binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-4))
	return b
}

// AppendChunkHead appends what stands before the n bytes of a chunk.
func AppendChunkHead(b []byte, offset int, sum Sum, n int) []byte {
	at := len(b)
	b = AppendFrame(b, Frame{Kind: KindChunk, Offset: offset, Sum: sum})
	binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-4+n))
	return b
}

func cutText(s string) string {
	s = strings.ToValidUTF8(s, "?")
	return strings.ToValidUTF8(s[:min(len(s), textBytesMax)], "")
}

func appendOffer(b []byte, o Offer) []byte {
	b = append(b, version)
	b = append(b, o.Group.Overlay[:]...)
	b, _ = o.Group.Prefix.AppendBinary(b) // fails for prefixes only that no replica runs under
	for _, v := range []uint64{o.Group.Gen, uint64(o.From), uint64(o.To)} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	b = append(append(b, o.FromStore[:]...), o.ToStore[:]...)
	b = append(b, o.Content[:]...)
	return binary.BigEndian.AppendUint32(b, uint32(o.Size))
}

// FrameLength reads the length that stands before a frame. Errors match [ErrMalformed].
func FrameLength(b [4]byte) (int, error) {
	n := binary.BigEndian.Uint32(b[:])
	if n == 0 || n > FrameBytesMax {
		return 0, malformed("frame of %d bytes, at most %d", n, FrameBytesMax)
	}
	return int(n), nil
}

// DecodeFrame reads a frame without its length. Data aliases b. Errors match [ErrMalformed].
func DecodeFrame(b []byte) (Frame, error) {
	if len(b) == 0 || len(b) > FrameBytesMax {
		return Frame{}, malformed("frame of %d bytes", len(b))
	}
	f := Frame{Kind: Kind(b[0])}
	r := reader{b: b[1:]}
	switch f.Kind {
	case KindOffer:
		f.Offer = r.offer()
	case KindChunk:
		f.Offset, f.Sum, f.Data = r.offset(), r.sum(), r.take(len(r.b))
		if r.err == nil && (len(f.Data) == 0 || len(f.Data) > ChunkBytes) {
			r.fail("chunk of %d bytes", len(f.Data))
		}
	case KindFinish:
		f.Data = r.take(len(r.b))
		if r.err == nil && (len(f.Data) == 0 || len(f.Data) > HeadBytesMax) {
			r.fail("head of %d bytes", len(f.Data))
		}
	case KindWait, KindDone:
	case KindAccept:
		f.Offset, f.Sum = r.offset(), r.sum()
	case KindAck:
		f.Offset = r.offset()
	case KindRepeat:
		f.Offset, f.Text = r.offset(), r.text()
	case KindRefuse:
		if c := r.take(1); r.err == nil {
			if f.Code = Code(c[0]); f.Code == 0 || f.Code >= codeEnd {
				r.fail("refusal of code %d", f.Code)
			}
		}
		f.Text = r.text()
	default:
		return Frame{}, malformed("%v", f.Kind)
	}
	if r.err == nil && len(r.b) > 0 {
		r.fail("%d bytes after a %v", len(r.b), f.Kind)
	}
	if r.err != nil {
		return Frame{}, r.err
	}
	return f, nil
}

// reader takes fields off the front of b. After the first failure every further one is zero.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = malformed(format, args...)
	}
	r.b = nil
}

// take returns n bytes that alias the frame, none after a failure.
func (r *reader) take(n int) []byte {
	if r.err != nil || n > len(r.b) {
		r.fail("frame cut short")
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) u64() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// offset reads a place in a body that is the end of a chunk, or of the body.
func (r *reader) offset() int {
	b := r.take(4)
	if b == nil {
		return 0
	}
	n := binary.BigEndian.Uint32(b)
	if n > BodyBytesMax {
		r.fail("offset %d", n)
		return 0
	}
	return int(n)
}

func (r *reader) sum() (s Sum) {
	copy(s[:], r.take(len(s)))
	return s
}

func (r *reader) text() string {
	b := r.take(len(r.b))
	if len(b) > textBytesMax {
		r.fail("text of %d bytes", len(b))
		return ""
	}
	return strings.ToValidUTF8(string(b), "?")
}

func (r *reader) offer() (o Offer) {
	if v := r.take(1); r.err != nil || v[0] != version {
		r.fail("offer of another version than %d", version)
		return o
	}
	copy(o.Group.Overlay[:], r.take(len(o.Group.Overlay)))
	if r.err != nil {
		return o
	}
	var err error
	if o.Group.Prefix, r.b, err = keyspace.DecodePrefix(r.b); err != nil {
		r.fail("offer: %v", err)
		return o
	}
	o.Group.Gen, o.From, o.To = r.u64(), order.ReplicaID(r.u64()), order.ReplicaID(r.u64())
	copy(o.FromStore[:], r.take(len(o.FromStore)))
	copy(o.ToStore[:], r.take(len(o.ToStore)))
	o.Content, o.Size = r.sum(), r.offset()
	if r.err == nil && o.Size == 0 {
		r.fail("offer of no bytes")
	}
	return o
}
