package coherence

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	"latchkey/coherence/protocol"
)

// Limits of threads.
const (
	// KindBytesMax bounds the name of a kind of threads, KindsMax how many a node registers for one application.
	KindBytesMax = 256
	KindsMax     = 256
	// ArgsBytesMax bounds what a thread is created with.
	ArgsBytesMax = 64 << 10
	// StateBytesMax bounds the state that a thread saves: with what it was created with, it is one chunk.
	StateBytesMax = 1<<20 - ArgsBytesMax - 4<<10
)

// ErrThreadState matches the error about a thread's saved state that cannot be read.
var ErrThreadState = errors.New("coherence: malformed state of a thread")

// saved is what a thread is begun from: the content of its chunk.
//
//	version, length of the name, name, of the kind, kind, of the peer it prefers, that, of the arguments, arguments; and the state, if there is one:
//	1, length, state; 0 otherwise
type saved struct {
	name, kind, prefers string
	args                []byte
	state               []byte
	begun               bool // there is a state
}

const savedVersion = 1

func (s *saved) encode() []byte {
	b := []byte{savedVersion}
	for _, part := range [...]string{s.name, s.kind, s.prefers, string(s.args)} {
		b = append(binary.AppendUvarint(b, uint64(len(part))), part...)
	}
	if !s.begun {
		return append(b, 0)
	}
	return append(binary.AppendUvarint(append(b, 1), uint64(len(s.state))), s.state...)
}

// peerBytesMax is above what the id of a peer can be.
const peerBytesMax = 128

// decodeSaved reads what encode has written. It refuses anything else.
func decodeSaved(b []byte) (*saved, error) {
	r := &reader{b: b}
	if v := r.byte(); r.err == nil && v != savedVersion {
		r.fail("version %d, this program reads %d", v, savedVersion)
	}
	part := func(what string, most int) []byte {
		n := r.uint()
		if n > uint64(most) {
			r.fail("%s of %d bytes, at most %d", what, n, most)
		}
		return r.take(n)
	}
	s := &saved{name: string(part("name", NameBytesMax)), kind: string(part("kind", KindBytesMax)), prefers: string(part("peer", peerBytesMax))}
	s.args = part("arguments", ArgsBytesMax)
	switch v := r.byte(); v {
	case 0:
	case 1:
		s.begun = true
		s.state = part("state", StateBytesMax)
	default:
		r.fail("truth value %d", v)
	}
	if err := r.end(); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrThreadState, err)
	}
	if checkName("a thread", s.name) != nil || checkKind(s.kind) != nil {
		return nil, fmt.Errorf("%w: thread %.80q of kind %.80q", ErrThreadState, s.name, s.kind)
	}
	return s, nil
}

func checkKind(kind string) error {
	if kind == "" || len(kind) > KindBytesMax || !utf8.ValidString(kind) {
		return fmt.Errorf("%w: a kind of threads has a name of 1 to %d bytes of UTF-8, and %.80q is none", ErrName, KindBytesMax, kind)
	}
	return nil
}

// threadName is the part of a thread's id that its name gives.
func threadName(name string) (b [protocol.ThreadNameBytes]byte) {
	h := sha256.Sum256([]byte("thread/" + name))
	copy(b[:], h[:])
	return b
}

// newThreadID draws the id of a thread.
func newThreadID(name string) (id protocol.ThreadID) {
	b := threadName(name)
	rand.Read(id[copy(id[:], b[:]):])
	return id
}

// toBytes encodes arguments and states: bytes as they are, what can marshal itself by that, all else as JSON. nil is nothing.
func toBytes(v any) ([]byte, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case []byte:
		return v, nil
	case encoding.BinaryMarshaler:
		return v.MarshalBinary()
	}
	return json.Marshal(v)
}

// fromBytes decodes what toBytes has encoded, into what v points to.
func fromBytes(b []byte, v any) error {
	switch v := v.(type) {
	case *[]byte:
		*v = append((*v)[:0], b...)
		return nil
	case encoding.BinaryUnmarshaler:
		return v.UnmarshalBinary(b)
	}
	if len(b) == 0 {
		return nil
	}
	return json.Unmarshal(b, v)
}
