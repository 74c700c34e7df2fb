// Package protofield reads and writes the protobuf encoding a field at a time. It is for the few messages that every operation
// sends, where the reflection of the protobuf library would cost more than the operation's own work. The bytes are those the
// library makes and takes, so the .proto file stays the description of such a message, and tests compare the two: replicas whose
// builds read a command in different ways would come to different states. To read any bytes as the library does:
//
//   - A field of another wire type than its own is skipped, being an unknown one. [Reader.Field] tells them apart.
//   - Of a field that comes twice the latter counts. Messages are merged: the fields of the latter are read into what the former has
//     left, and both have to be well-formed. The latter of two members of a oneof replaces the former, unless it is the same one.
package protofield

import (
	"errors"
	"fmt"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// ErrMalformed is matched by every error about bytes that cannot be read.
var ErrMalformed = errors.New("protofield: malformed")

// Reader takes the fields of one message off its front:
//
//	for r := protofield.Read(b); r.Next(); {
//		switch r.Field() {
//		case protofield.Bytes(1):
//			name = r.String()
//		}
//	}
//
// ends with r.Err. It allocates nothing but strings and errors. Fields that nobody asks for are skipped, as the library does.
// The zero value reads the empty message. Not safe for concurrent use.
type Reader struct {
	rest  []byte
	num   protowire.Number
	typ   protowire.Type
	value uint64
	bytes []byte
	err   error
}

// Read returns a reader of the message b, which it does not copy.
func Read(b []byte) Reader { return Reader{rest: b} }

// Next goes to the next field. It answers false at the end, and after an error.
func (r *Reader) Next() bool {
	if len(r.rest) == 0 || r.err != nil {
		return false
	}
	num, typ, n := protowire.ConsumeTag(r.rest)
	if num > protowire.MaxValidNumber {
		r.fail("number out of range") // which protowire allows in message sets
		return false
	}
	if n >= 0 {
		r.num, r.typ, r.rest = num, typ, r.rest[n:]
		switch typ {
		case protowire.VarintType:
			r.value, n = protowire.ConsumeVarint(r.rest)
		case protowire.BytesType:
			r.bytes, n = protowire.ConsumeBytes(r.rest)
		default:
			n = protowire.ConsumeFieldValue(num, typ, r.rest)
		}
	}
	if n < 0 {
		r.fail(protowire.ParseError(n).Error())
		return false
	}
	r.rest = r.rest[n:]
	return true
}

// Field is a field's number and wire type.
type Field uint64

// Number returns the field of this number when it is of an integer type, an enum or a bool.
func Number(num int) Field {
	return Field(protowire.EncodeTag(protowire.Number(num), protowire.VarintType))
}

// Bytes returns the field of this number when it is of type bytes or string, or a message.
func Bytes(num int) Field {
	return Field(protowire.EncodeTag(protowire.Number(num), protowire.BytesType))
}

// Field returns which field it is.
func (r *Reader) Field() Field { return Field(protowire.EncodeTag(r.num, r.typ)) }

// Uint returns the value of a field of an integer type.
func (r *Reader) Uint() uint64 {
	if r.typ != protowire.VarintType {
		r.fail("not a number")
		return 0
	}
	return r.value
}

// Bool returns the value of a field of type bool.
func (r *Reader) Bool() bool { return r.Uint() != 0 }

// Bytes returns the value of a field of type bytes, or of a message for another reader. It aliases what is read.
func (r *Reader) Bytes() []byte {
	if r.typ != protowire.BytesType {
		r.fail("not bytes")
		return nil
	}
	return r.bytes[:len(r.bytes):len(r.bytes)]
}

// String returns the value of a field of type string, which is valid UTF-8.
func (r *Reader) String() string {
	b := r.Bytes()
	if !utf8.Valid(b) {
		r.fail("text that is not UTF-8")
		return ""
	}
	return string(b)
}

// Err returns why reading ended early; it matches [ErrMalformed]. It is nil when the whole message was read.
func (r *Reader) Err() error { return r.err }

func (r *Reader) fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: field %d: %s", ErrMalformed, r.num, what)
	}
}

// AppendUint appends a field of an integer type; nothing when it is 0.
func AppendUint(b []byte, num int, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, protowire.Number(num), protowire.VarintType), v)
}

// AppendBool appends a field of type bool; nothing when it is false.
func AppendBool(b []byte, num int, v bool) []byte { return AppendUint(b, num, protowire.EncodeBool(v)) }

// AppendBytes appends a field of type bytes or string; nothing when it is empty.
func AppendBytes[T []byte | string](b []byte, num int, v T) []byte {
	if len(v) == 0 {
		return b
	}
	b = protowire.AppendVarint(protowire.AppendTag(b, protowire.Number(num), protowire.BytesType), uint64(len(v)))
	return append(b, v...)
}

// Open begins a field that is a message: its own fields are appended next, and then [Close] is called with the position that
// Open returned. Such messages may be nested. An empty one is written too.
func Open(b []byte, num int) (_ []byte, at int) {
	b = append(protowire.AppendTag(b, protowire.Number(num), protowire.BytesType), 0) // room for a short length
	return b, len(b)
}

// Close ends the message begun by [Open].
func Close(b []byte, at int) []byte {
	n := len(b) - at
	if more := protowire.SizeVarint(uint64(n)) - 1; more > 0 {
		b = append(b, make([]byte, more)...)
		copy(b[at+more:], b[at:at+n])
	}
	protowire.AppendVarint(b[at-1:at-1], uint64(n))
	return b
}
