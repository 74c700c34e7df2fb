// Package keyspace is the 256-bit space that keys and nodes share: SHA-256 points, XOR distance and prefixes.
//
// It is Kademlia's metric. A [Preimage] is what people name; its [Key] is the SHA-256 of it. A [NodeID] is the SHA-256
// of a libp2p peer id. Kademlia look-ups hash their argument at both ends, so only a point whose preimage is known can be
// looked up: hence anchors are made from preimages (see [Anchor]).
package keyspace

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"
)

// Size is the length of a [Key] and of a [NodeID] in bytes.
const Size = sha256.Size

// PrefixBitsMax is the length of the longest prefix: a whole key.
const PrefixBitsMax = Size * 8

// AnchorBitsMax bounds the prefixes for which [Anchor] searches a preimage (about 2^bits hashes).
const AnchorBitsMax = 24

// ErrPrefix is matched by every error about a malformed prefix.
var ErrPrefix = errors.New("keyspace: bad prefix")

// Preimage is a string whose SHA-256 is a point of the key space, such as a lock's name.
type Preimage string

// Key returns the point of the preimage.
func (p Preimage) Key() Key { return sha256.Sum256([]byte(p)) }

// Key is a point of the key space at which something lives. The zero value is the all-zero point.
type Key [Size]byte

// NodeID is the point of the key space at which a node lives. The zero value stands for no node.
type NodeID [Size]byte

// NodeIDOf returns the id of the node whose libp2p peer id has these bytes.
func NodeIDOf(peerID string) NodeID {
	var space [64]byte // holds any that libp2p makes itself: every message's path comes by here
	return sha256.Sum256(append(space[:0], peerID...))
}

// String returns the key in hexadecimal.
func (k Key) String() string { return hex.EncodeToString(k[:]) }

// String returns the first eight hexadecimal digits, which is what people compare.
func (n NodeID) String() string { return hex.EncodeToString(n[:4]) }

// Hex returns the whole id in hexadecimal.
func (n NodeID) Hex() string { return hex.EncodeToString(n[:]) }

// IsZero reports whether n stands for no node.
func (n NodeID) IsZero() bool { return n == NodeID{} }

// Compare orders node ids as numbers.
func (n NodeID) Compare(m NodeID) int { return bytes.Compare(n[:], m[:]) }

// Closer reports whether a is strictly closer to k than b is, by XOR distance.
func Closer(k Key, a, b NodeID) bool { return CompareDistance(k, a, b) < 0 }

// CompareDistance orders a and b by their XOR distance to k: negative when a is the closer one, 0 only when they are equal.
func CompareDistance(k Key, a, b NodeID) int {
	for i := range k {
		if x, y := a[i]^k[i], b[i]^k[i]; x != y {
			return int(x) - int(y)
		}
	}
	return 0
}

// SortByDistance orders nodes in place, the closest to k first.
func SortByDistance(k Key, nodes []NodeID) {
	slices.SortFunc(nodes, func(a, b NodeID) int { return CompareDistance(k, a, b) })
}

// CommonPrefixBits returns how many leading bits a and b share, 0 to 256.
func CommonPrefixBits(a, b [Size]byte) int {
	for i := range a {
		if x := a[i] ^ b[i]; x != 0 {
			return i*8 + bits.LeadingZeros8(x)
		}
	}
	return PrefixBitsMax
}

// Prefix is a range of keys: all that begin with the same Len bits. It is comparable; bits beyond Len are zero. The zero
// value is the whole key space.
type Prefix struct {
	Bits [Size]byte
	Len  uint16
}

// PrefixOf returns the range of length n that holds k. It panics if n is outside 0 to 256: lengths come from constants or
// from decoded values that were checked.
func PrefixOf(k Key, n int) Prefix {
	if n < 0 || n > PrefixBitsMax {
		panic(fmt.Sprintf("keyspace: prefix length %d", n))
	}
	p := Prefix{Len: uint16(n)}
	copy(p.Bits[:], k[:(n+7)/8])
	if n%8 != 0 {
		p.Bits[n/8] &= 0xff << (8 - n%8)
	}
	return p
}

// Contains reports whether k begins with p.
func (p Prefix) Contains(k Key) bool { return CommonPrefixBits(p.Bits, k) >= int(p.Len) }

// Valid reports whether p is canonical: its length fits and no bit beyond it is set.
func (p Prefix) Valid() bool {
	return p.Len <= PrefixBitsMax && PrefixOf(Key(p.Bits), int(p.Len)) == p
}

// String prints the prefix as its bits in hexadecimal, a slash and its length, such as "a3/8". The whole space is "/0".
func (p Prefix) String() string {
	return fmt.Sprintf("%s/%d", hex.EncodeToString(p.Bits[:(int(p.Len)+7)/8]), p.Len)
}

// ParsePrefix reads what [Prefix.String] prints. Errors match [ErrPrefix].
func ParsePrefix(s string) (Prefix, error) {
	bits, length, ok := strings.Cut(s, "/")
	n, err := strconv.ParseUint(length, 10, 16)
	b, hexErr := hex.DecodeString(bits)
	if !ok || err != nil || hexErr != nil || n > PrefixBitsMax || len(b) != (int(n)+7)/8 {
		return Prefix{}, fmt.Errorf("%w: %.80q: write it like a3/8, its bits in hexadecimal and how many they are", ErrPrefix, s)
	}
	p := Prefix{Len: uint16(n)}
	copy(p.Bits[:], b)
	if p.String() != s || !p.Valid() {
		return Prefix{}, fmt.Errorf("%w: %.80q: bits beyond its length, or not in the one form", ErrPrefix, s)
	}
	return p, nil
}

// Compare orders prefixes by their bits, then by length, so that an enclosing range comes first.
func (p Prefix) Compare(q Prefix) int {
	if c := bytes.Compare(p.Bits[:], q.Bits[:]); c != 0 {
		return c
	}
	return int(p.Len) - int(q.Len)
}

// AppendBinary appends the canonical encoding: two bytes of length, then the bytes that hold the bits.
func (p Prefix) AppendBinary(b []byte) ([]byte, error) {
	b = binary.BigEndian.AppendUint16(b, p.Len)
	return append(b, p.Bits[:(int(p.Len)+7)/8]...), nil
}

// DecodePrefix reads what [Prefix.AppendBinary] wrote and returns the rest of b. Errors match [ErrPrefix].
func DecodePrefix(b []byte) (Prefix, []byte, error) {
	if len(b) < 2 {
		return Prefix{}, nil, fmt.Errorf("%w: %d bytes", ErrPrefix, len(b))
	}
	p := Prefix{Len: binary.BigEndian.Uint16(b)}
	n := (int(p.Len) + 7) / 8
	if p.Len > PrefixBitsMax || len(b) < 2+n {
		return Prefix{}, nil, fmt.Errorf("%w: length %d with %d bytes", ErrPrefix, p.Len, len(b)-2)
	}
	copy(p.Bits[:], b[2:2+n])
	if !p.Valid() {
		return Prefix{}, nil, fmt.Errorf("%w: bits set beyond its length %d", ErrPrefix, p.Len)
	}
	return p, b[2+n:], nil
}

// Anchor returns a preimage whose key lies under p, so that Kademlia can look up the nodes closest to the prefix: salt, the
// prefix and the smallest counter that does it (replica-groups.md section 6.3). Equal arguments give equal anchors on every
// node. It takes about 2^p.Len hashes; callers cache it. Prefixes longer than [AnchorBitsMax] match [ErrPrefix].
func Anchor(salt string, p Prefix) (Preimage, error) {
	if p.Len > AnchorBitsMax || !p.Valid() {
		return "", fmt.Errorf("%w: no anchor for %v: at most %d bits", ErrPrefix, p, AnchorBitsMax)
	}
	b := append([]byte("anchor"), salt...)
	b, _ = p.AppendBinary(b)
	n := len(b)
	for c := uint64(0); ; c++ {
		b = binary.BigEndian.AppendUint64(b[:n], c)
		if p.Contains(sha256.Sum256(b)) {
			return Preimage(b), nil
		}
	}
}
