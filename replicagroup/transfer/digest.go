package transfer

import (
	"crypto/sha256"
	"encoding/hex"
)

// Sum is a SHA-256 of the first bytes of a body; of all of them, it names the content.
type Sum [sha256.Size]byte

// String returns the first eight hexadecimal digits.
func (s Sum) String() string { return hex.EncodeToString(s[:4]) }

// emptySum is the hash of no bytes.
var emptySum = Sum(sha256.Sum256(nil))

// Digest holds the hash of every prefix of a body that ends with a chunk. The zero value is that of an empty body.
type Digest struct {
	size int
	sums []Sum // sums[i] of the first i+1 chunks
}

// DigestOf reads all of body.
func DigestOf(body []byte) Digest {
	d := Digest{size: len(body)}
	h := sha256.New()
	for at := 0; at < len(body); at += ChunkBytes {
		h.Write(body[at:min(at+ChunkBytes, len(body))])
		d.sums = append(d.sums, Sum(h.Sum(nil)))
	}
	return d
}

// Size returns the body's length.
func (d Digest) Size() int { return d.size }

// Content returns the hash of the whole body.
func (d Digest) Content() Sum {
	s, _ := d.Prefix(d.size)
	return s
}

// Prefix returns the hash of the first n bytes. It is false if n is not the end of a chunk.
func (d Digest) Prefix(n int) (Sum, bool) {
	switch {
	case n == 0:
		return emptySum, true
	case n < 0 || n > d.size || n%ChunkBytes != 0 && n != d.size:
		return Sum{}, false
	}
	return d.sums[(n-1)/ChunkBytes], true
}
