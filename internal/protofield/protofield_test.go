package protofield

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

// sample is a message with a field of every kind, one of them a message of its own.
func sample(text string) []byte {
	b := AppendUint(nil, 1, 300)
	b = AppendBytes(b, 2, text)
	b, at := Open(b, 3)
	b = AppendBool(b, 1, true)
	b, inner := Open(b, 2)
	b = AppendBytes(b, 1, []byte(text))
	b = Close(b, inner)
	b = Close(b, at)
	return AppendUint(b, 4, 1<<63)
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	// Lengths on both sides of where the length's own length changes.
	for _, n := range []int{0, 1, 119, 120, 121, 122, 123, 124, 125, 126, 127, 128, 16380, 16384, 1 << 21} {
		text := strings.Repeat("x", n)
		var number, last uint64
		var got, inner string
		var flag bool
		r := Read(sample(text))
		for r.Next() {
			switch r.Field() {
			case Number(1):
				number = r.Uint()
			case Bytes(2):
				got = r.String()
			case Bytes(3):
				f := Read(r.Bytes())
				for f.Next() {
					switch f.Field() {
					case Number(1):
						flag = f.Bool()
					case Bytes(2):
						g := Read(f.Bytes())
						for g.Next() {
							inner = g.String()
						}
						if g.Err() != nil {
							t.Errorf("%d: %v", n, g.Err())
						}
					}
				}
				if f.Err() != nil {
					t.Errorf("%d: %v", n, f.Err())
				}
			case Number(4):
				last = r.Uint()
			}
		}
		if r.Err() != nil || number != 300 || got != text || inner != text || !flag || last != 1<<63 {
			t.Errorf("%d: read %d, %d bytes, %d bytes, %v, %d, %v", n, number, len(got), len(inner), flag, last, r.Err())
		}
	}
}

func TestZeroValuesAreNotWritten(t *testing.T) {
	if b := AppendBytes(AppendBool(AppendUint(nil, 1, 0), 2, false), 3, ""); len(b) != 0 {
		t.Errorf("%x", b)
	}
	b, at := Open(nil, 1)
	if b = Close(b, at); !bytes.Equal(b, []byte{0x0a, 0}) {
		t.Errorf("an empty message in a field: %x", b)
	}
}

func TestBrokenMessagesAreRefused(t *testing.T) {
	whole := sample("text")
	all := func(b []byte) error {
		r := Read(b)
		for r.Next() {
		}
		return r.Err()
	}
	ends := map[int]bool{}
	for r := Read(whole); r.Next(); {
		ends[len(whole)-len(r.rest)] = true
	}
	for n := 1; n < len(whole); n++ {
		if err := all(whole[:n]); errors.Is(err, ErrMalformed) == ends[n] {
			t.Errorf("cut after %d bytes: %v", n, err)
		}
	}
	for name, c := range map[string]struct {
		b   []byte
		get func(*Reader)
	}{
		"number where bytes are due": {AppendUint(nil, 1, 1), func(r *Reader) { r.Bytes() }},
		"bytes where a number is":    {AppendBytes(nil, 1, "x"), func(r *Reader) { r.Uint() }},
		"text that is not UTF-8":     {AppendBytes(nil, 1, "\xff"), func(r *Reader) { _ = r.String() }},
	} {
		r := Read(append(c.b, c.b...))
		if !r.Next() {
			t.Fatal(name)
		}
		c.get(&r)
		if !errors.Is(r.Err(), ErrMalformed) || r.Next() {
			t.Errorf("%s: %v, and goes on", name, r.Err())
		}
	}
}

func TestUnknownFieldsAreSkipped(t *testing.T) {
	b := protowire.AppendFixed32(protowire.AppendTag(nil, 9, protowire.Fixed32Type), 7)
	b = protowire.AppendFixed64(protowire.AppendTag(b, 9, protowire.Fixed64Type), 7)
	b = AppendUint(b, 1, 5)
	b = AppendBytes(b, 1, "of another wire type")
	got := uint64(0)
	r := Read(b)
	for r.Next() {
		if r.Field() == Number(1) {
			got = r.Uint()
		}
	}
	if r.Err() != nil || got != 5 {
		t.Errorf("%d, %v", got, r.Err())
	}
}

func TestReadingAllocatesNothing(t *testing.T) {
	b := sample("text")
	if n := testing.AllocsPerRun(100, func() {
		r := Read(b)
		for r.Next() {
			if r.Field() == Bytes(2) {
				r.Bytes()
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzRead holds what is well-formed against the protobuf library.
func FuzzRead(f *testing.F) {
	f.Add(sample("text"))
	f.Add(protowire.AppendTag(nil, 1, protowire.EndGroupType))
	f.Add([]byte{0x0b, 0x08, 0x01, 0x0c})                                                    // a group
	f.Add([]byte{0x0b, 0x08, 0x01, 0x14})                                                    // which another one ends
	f.Add([]byte{0x07})                                                                      // wire type 7
	f.Add([]byte{0x00, 0x00})                                                                // field 0
	f.Add(protowire.AppendVarint(nil, uint64(protowire.MaxValidNumber+1)<<3))                // and none there is either
	f.Add(append(protowire.AppendVarint(nil, uint64(protowire.MaxValidNumber+1)<<3), 0))     // with a value
	f.Add(append(protowire.AppendVarint(nil, uint64(protowire.MaxValidNumber)<<3), 0))       // the last one there is
	f.Add([]byte{0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})          // the largest number
	f.Add([]byte{0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02})          // one too large
	f.Add([]byte{0x88, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00, 0x01, 0x88, 0}) // numbers longer than need be
	f.Fuzz(func(t *testing.T, b []byte) {
		r, fields := Read(b), 0
		for ; r.Next(); fields++ {
			switch r.typ {
			case protowire.VarintType:
				r.Uint()
			case protowire.BytesType:
				r.Bytes()
			}
		}
		if fields > len(b) {
			t.Errorf("%d fields in %d bytes", fields, len(b))
		}
		if err := proto.Unmarshal(b, new(emptypb.Empty)); (err == nil) != (r.Err() == nil) {
			t.Errorf("%x: %v; the library: %v", b, r.Err(), err)
		}
	})
}
