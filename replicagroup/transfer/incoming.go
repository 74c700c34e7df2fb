package transfer

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"slices"

	"latchkey/internal/invariant"
)

// Receipt is what an [Incoming] answers to a frame.
type Receipt struct {
	Reply []Frame
	Over  bool   // the stream is over after the replies; Err tells a failure
	Err   error  // matches ErrMalformed where the sender broke the rules
	Head  []byte // of the message, when everything has come; aliases the frame
}

// Incoming is the receiver's end of a transfer. It outlives its stream: a broken one leaves the whole chunks that came, and the next one
// goes on from there (invariants: sum is the hash of body; body ends with a chunk). Memory is taken as bytes come, not when they are
// announced.
type Incoming struct {
	content Sum
	size    int
	buf     []byte // room for the head, and the body so far
	hash    hash.Hash

	// Of the stream.
	first    bool // no chunk has come yet
	skip     int  // chunks under way that were sent before the sender heard of a repetition; 0 when none was asked for
	repeats  int  // since the body grew
	complete bool
	over     bool

	given bool // [Incoming.Message] was called: buf is somebody else's, too
}

// NewIncoming begins with nothing.
func NewIncoming(content Sum, size int) *Incoming {
	in := &Incoming{content: content, size: size}
	in.clear()
	return in
}

func (in *Incoming) clear() { in.buf, in.hash, in.given = nil, sha256.New(), false }

// Has returns how many bytes of the body are here.
func (in *Incoming) Has() int { return max(len(in.buf)-HeadBytesMax, 0) }

func (in *Incoming) sum() Sum { return Sum(in.hash.Sum(nil)) }

// Begin starts a stream: it says what is here already.
func (in *Incoming) Begin() Frame {
	in.first, in.skip, in.repeats, in.complete, in.over = true, 0, 0, in.Has() == in.size, false
	return Frame{Kind: KindAccept, Offset: in.Has(), Sum: in.sum()}
}

// Step takes a frame of the sender. It never blocks, and it copies what it keeps.
func (in *Incoming) Step(f Frame) Receipt {
	switch {
	case in.over:
		return Receipt{Over: true}
	case f.Kind == KindChunk:
		return in.chunk(f)
	case f.Kind == KindFinish && in.complete:
		in.over = true
		return Receipt{Over: true, Head: f.Data}
	}
	return in.end(malformed("%v with %d of %d bytes here", f.Kind, in.Has(), in.size))
}

func (in *Incoming) chunk(f Frame) Receipt {
	if in.first {
		in.first = false
		if f.Offset == 0 && in.Has() > 0 { // the sender has other bytes than those here
			in.clear()
			in.complete = false
		}
	}
	has := in.Has()
	switch {
	case f.Offset > has && in.skip > 0:
		in.skip--
		return Receipt{}
	case f.Offset > has && len(f.Data) <= in.size-has:
		return in.again(fmt.Sprintf("the chunk at %d is missing, one at %d came", has, f.Offset))
	case f.Offset != has || len(f.Data) != min(ChunkBytes, in.size-has):
		return in.end(malformed("chunk of %d bytes at %d, with %d of %d here", len(f.Data), f.Offset, has, in.size))
	}
	next, err := in.hash.(hash.Cloner).Clone()
	invariant.Check(err == nil, "a hash in memory can be copied", err)
	next.Write(f.Data)
	if Sum(next.Sum(nil)) != f.Sum {
		return in.again(fmt.Sprintf("the chunk at %d does not have the hash that came with it", has))
	}
	in.hash = next
	in.keep(f.Data)
	in.skip, in.repeats = 0, 0
	has = in.Has()
	if has == in.size {
		if f.Sum != in.content {
			in.clear() // none of it can be trusted
			return in.refuse(Corrupt, fmt.Sprintf("%d bytes hash to %v, and %v was offered", has, f.Sum, in.content))
		}
		in.complete = true
	}
	return Receipt{Reply: []Frame{{Kind: KindAck, Offset: has}}}
}

// keep appends to the body.
func (in *Incoming) keep(data []byte) {
	if need := max(len(in.buf), HeadBytesMax) + len(data); need > cap(in.buf) {
		bytes := min(max(need, 2*cap(in.buf)), HeadBytesMax+in.size)
		in.buf = append(make([]byte, 0, bytes), in.buf...)
	}
	if len(in.buf) == 0 {
		in.buf = in.buf[:HeadBytesMax]
	}
	in.buf = append(in.buf, data...)
}

// again asks for the next chunk once more.
func (in *Incoming) again(why string) Receipt {
	if in.repeats++; in.repeats > RepeatsMax {
		return in.refuse(Corrupt, why)
	}
	in.skip = AheadMax
	return Receipt{Reply: []Frame{{Kind: KindRepeat, Offset: in.Has(), Text: why}}}
}

func (in *Incoming) refuse(c Code, why string) Receipt {
	in.over = true
	return Receipt{Reply: []Frame{{Kind: KindRefuse, Code: c, Text: why}}, Over: true, Err: &RefusedError{c, why}}
}

func (in *Incoming) end(err error) Receipt {
	in.over = true
	return Receipt{Over: true, Err: err}
}

// Message returns the message that has come, with its head. It is built in place, and nobody may change it: the body stays here, in case the
// sender does not hear that it has come, and offers it again.
func (in *Incoming) Message(head []byte) []byte {
	invariant.Check(in.Has() == in.size && len(head) <= HeadBytesMax, "a message is complete", len(head))
	if in.given {
		in.buf = slices.Clone(in.buf)
	}
	in.given = true
	from := HeadBytesMax - len(head)
	copy(in.buf[from:], head)
	return slices.Clip(in.buf[from:])
}
