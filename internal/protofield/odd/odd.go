// Package odd makes protobuf encodings for tests that hold a decoder against the protobuf library.
package odd

import (
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
