package transfer

import (
	"errors"
	"fmt"
)

// RefusedError is the end of a stream by the receiver's word.
type RefusedError struct {
	Code Code
	Text string
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("transfer: refused: %v: %s", e.Code, e.Text)
}

// ErrGivenUp is matched when a chunk was asked for too often.
var ErrGivenUp = errors.New("transfer: given up")

// Piece is a part of the body to be sent as a chunk.
type Piece struct {
	Offset, Bytes int
	Sum           Sum
}

// Sends is what an [Outgoing] wants written, in this order; and how it ended.
type Sends struct {
	Pieces []Piece
	Finish bool // the head, after the pieces
	Waits  bool // the receiver has no room yet
	Over   bool // nothing more comes; Err tells a failure
	Err    error
}

// Outgoing is the sender's end of one stream. Its driver writes the offer, hands every frame that comes to [Outgoing.Step], and
// writes what that asks for before it reads on.
type Outgoing struct {
	digest   Digest
	accepted bool
	from     int // where it began on this stream
	next     int // the first byte not sent
	acked    int // bytes that the receiver has
	repeats  int // since acked rose
	finished bool
	over     bool
}

// NewOutgoing begins a stream for a body.
func NewOutgoing(d Digest) *Outgoing { return &Outgoing{digest: d} }

// Acked returns how many bytes of the body the receiver has, by its own word.
func (o *Outgoing) Acked() int { return o.acked }

// Moved returns how many of them went over this stream.
func (o *Outgoing) Moved() int { return o.acked - o.from }

// Step takes a frame of the receiver. It never blocks.
func (o *Outgoing) Step(f Frame) Sends {
	if o.over {
		return Sends{Over: true}
	}
	switch f.Kind {
	case KindRefuse:
		return o.end(&RefusedError{f.Code, f.Text})
	case KindWait:
		if !o.accepted {
			return Sends{Waits: true}
		}
	case KindAccept:
		if o.accepted {
			break
		}
		o.accepted = true
		// What the receiver has may be the beginning of another body of which somebody said that it is this one.
		if own, ok := o.digest.Prefix(f.Offset); ok && own == f.Sum {
			o.from, o.acked, o.next = f.Offset, f.Offset, f.Offset
		}
		return o.advance()
	case KindAck:
		if !o.accepted || f.Offset <= o.acked || f.Offset > o.next || !o.whole(f.Offset) {
			break
		}
		o.acked, o.repeats = f.Offset, 0
		return o.advance()
	case KindRepeat:
		if !o.accepted || o.finished || f.Offset != o.acked {
			break
		}
		if o.repeats++; o.repeats > RepeatsMax {
			return o.end(fmt.Errorf("%w: the chunk at %d was asked for %d times: %s", ErrGivenUp, f.Offset, o.repeats, f.Text))
		}
		o.next = o.acked
		return o.advance()
	case KindDone:
		if o.finished {
			return o.end(nil)
		}
	}
	return o.end(malformed("%v of offset %d, %d of %d bytes sent, %d acknowledged", f.Kind, f.Offset, o.next, o.digest.size, o.acked))
}

func (o *Outgoing) whole(n int) bool {
	_, ok := o.digest.Prefix(n)
	return ok
}

// advance sends on, as far as the window goes.
func (o *Outgoing) advance() (s Sends) {
	for o.next < o.digest.size && o.next-o.acked < AheadMax*ChunkBytes {
		n := min(ChunkBytes, o.digest.size-o.next)
		sum, _ := o.digest.Prefix(o.next + n)
		s.Pieces = append(s.Pieces, Piece{Offset: o.next, Bytes: n, Sum: sum})
		o.next += n
	}
	if o.acked == o.digest.size && !o.finished {
		o.finished, s.Finish = true, true
	}
	return s
}

func (o *Outgoing) end(err error) Sends {
	o.over = true
	return Sends{Over: true, Err: err}
}
