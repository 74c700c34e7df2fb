package coherence

import (
	"encoding/binary"
	"errors"
	"fmt"

	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
)

var errSnapshot = errors.New("coherence: malformed snapshot")

// reader takes an encoding apart. After the first error everything it returns is zero.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s", errSnapshot, fmt.Sprintf(format, args...))
	}
}

// take returns the next n bytes, which belong to what is read.
func (r *reader) take(n uint64) []byte {
	if r.err == nil && n > uint64(len(r.b)) {
		r.fail("%d bytes wanted, %d left", n, len(r.b))
	}
	if r.err != nil {
		return nil
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail("no number")
	}
	if r.err != nil {
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) string() string { return string(r.take(r.uint())) }

func (r *reader) key() (k keyspace.Key) {
	copy(k[:], r.take(uint64(len(k))))
	return k
}

func (r *reader) thread() (t protocol.ThreadID) {
	copy(t[:], r.take(uint64(len(t))))
	return t
}

func (r *reader) node() (n protocol.NodeRef) {
	n.ID = keyspace.NodeID(r.key())
	n.Inc = r.uint()
	return n
}

// count reads how many things follow, each of which is as long as a key at least.
func (r *reader) count(most int) int {
	n := r.uint()
	if r.err == nil && (n > uint64(most) || n > uint64(len(r.b)/len(keyspace.Key{}))) {
		r.fail("%d things, at most %d, with %d bytes left", n, most, len(r.b))
	}
	if r.err != nil {
		return 0
	}
	return int(n)
}

// end returns the first error, and one when something is left.
func (r *reader) end() error {
	if r.err == nil && len(r.b) > 0 {
		r.fail("%d bytes left over", len(r.b))
	}
	return r.err
}
