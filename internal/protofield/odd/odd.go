// Package odd makes protobuf encodings for tests that hold a decoder against the protobuf library.
package odd

import (
	"math/rand/v2"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

// Encodings returns bytes that two decoders may well read in different ways, made from encoded messages: each of them among fields of
// other wire types or of none that is known, twice, cut off, and merged with the others.
func Encodings(messages ...[]byte) [][]byte {
	var odd [][]byte
	for _, m := range messages {
		odd = append(odd, m, slices.Concat(m, m), m[:len(m)-1])
		for num := protowire.Number(1); num < 8; num++ {
			number := protowire.AppendVarint(protowire.AppendTag(nil, num, protowire.VarintType), 1<<63|7)
			text := protowire.AppendString(protowire.AppendTag(nil, num, protowire.BytesType), "text")
			empty := protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), nil)
			broken := protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), []byte{0x0a, 5, 'x'})
			latin := protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), []byte{0xff})
			fixed := protowire.AppendFixed32(protowire.AppendTag(nil, num, protowire.Fixed32Type), 7)
			group := protowire.AppendTag(protowire.AppendTag(nil, num, protowire.StartGroupType), num, protowire.EndGroupType)
			for _, f := range [][]byte{number, text, empty, broken, latin, fixed, group} {
				odd = append(odd, slices.Concat(m, f), slices.Concat(f, m), slices.Concat(m, f, m))
			}
			// The same inside of a field.
			for _, f := range [][]byte{number, text, empty, fixed} {
				for outer := protowire.Number(1); outer < 5; outer++ {
					odd = append(odd, slices.Concat(m, protowire.AppendBytes(protowire.AppendTag(nil, outer, protowire.BytesType), f)))
				}
			}
		}
		for _, other := range messages {
			odd = append(odd, slices.Concat(m, other), slices.Concat(m, other, m))
		}
	}
	return odd
}

// Draw makes one more encoding of the same kind, by chance: a message whose fields are repeated, left out, exchanged, of other types and
// numbers, merged with those of the others, cut off, or written with more bytes than they need, in it or in a field of it.
func Draw(rng *rand.Rand, messages ...[]byte) []byte {
	m := messages[rng.IntN(len(messages))]
	return draw(rng, m, messages, 3)
}

func draw(rng *rand.Rand, m []byte, messages [][]byte, depth int) []byte {
	fields, rest := split(m)
	at := func() int { return rng.IntN(len(fields) + 1) }
	for range 1 + rng.IntN(3) {
		i := at()
		if i == len(fields) { // a field of another message, or one that no message has
			other, _ := split(messages[rng.IntN(len(messages))])
			if len(other) == 0 || rng.IntN(3) == 0 {
				other = []field{{protowire.Number(1 + rng.IntN(9)), protowire.Type(rng.IntN(6)), number(rng)}}
			}
			fields = slices.Insert(fields, at(), other[rng.IntN(len(other))])
			continue
		}
		f := fields[i]
		switch rng.IntN(6) {
		case 0:
			fields = slices.Insert(fields, at(), f)
		case 1:
			fields = slices.Delete(fields, i, i+1)
		case 2:
			j := rng.IntN(len(fields))
			fields[i], fields[j] = fields[j], f
		case 3:
			f.num = protowire.Number(1 + rng.IntN(9))
			fields[i] = f
		case 4:
			f.typ = protowire.Type(rng.IntN(6))
			fields[i] = f
		case 5:
			f.value = number(rng)
			if body, n := protowire.ConsumeBytes(fields[i].value); f.typ == protowire.BytesType && n > 0 {
				switch rng.IntN(4) {
				case 0:
					body = []byte{0xff}
				case 1:
					body = body[:rng.IntN(len(body)+1)]
				default:
					if depth > 0 {
						body = draw(rng, body, messages, depth-1)
					}
				}
				f.value = append(long(rng, uint64(len(body))), body...)
			}
			fields[i] = f
		}
	}
	var b []byte
	for _, f := range fields {
		b = append(b, long(rng, protowire.EncodeTag(f.num, f.typ))...)
		b = append(b, f.value...)
	}
	if b = append(b, rest...); rng.IntN(8) == 0 {
		b = b[:rng.IntN(len(b)+1)]
	}
	return b
}

// field is a field's tag and the encoding of its value.
type field struct {
	num   protowire.Number
	typ   protowire.Type
	value []byte
}

// split returns the fields of a message, and what is left at the first that is none.
func split(b []byte) (fields []field, rest []byte) {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			break
		}
		m := protowire.ConsumeFieldValue(num, typ, b[n:])
		if m < 0 {
			break
		}
		fields, b = append(fields, field{num, typ, b[n : n+m]}), b[n+m:]
	}
	return fields, b
}

// number returns the encoding of a number at some edge.
func number(rng *rand.Rand) []byte {
	edges := []uint64{0, 1, 2, 3, 7, 127, 128, 1<<31 - 1, 1 << 31, 1 << 32, 1<<32 + 1, 1<<63 - 1, 1 << 63, 1<<64 - 1}
	return long(rng, edges[rng.IntN(len(edges))])
}

// long returns a number's encoding, sometimes with more bytes than it needs, and sometimes with more than a number may have.
func long(rng *rand.Rand, v uint64) []byte {
	b := protowire.AppendVarint(nil, v)
	if rng.IntN(12) == 0 {
		for more := rng.IntN(11); more > 0; more-- {
			b[len(b)-1] |= 0x80
			b = append(b, 0)
		}
	}
	return b
}
