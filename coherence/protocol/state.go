package protocol

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
)

// StateVersion is the first byte of every snapshot of a manager. Another one is refused: states are not converted.
const StateVersion = 3

// ErrState is matched by every error about a snapshot that no manager can have written.
var ErrState = errors.New("coherence: malformed state")

// StateReader takes the parts of a state's canonical form off its front, as the Append methods write them. It keeps the first error and reads
// zeros from then on, so that who reads checks once, at the [StateReader.End].
type StateReader struct {
	rest []byte
	err  error
}

// ReadState begins to read a manager's snapshot: its version is the first thing.
func ReadState(b []byte) *StateReader { return ReadVersion(b, StateVersion) }

// ReadVersion begins to read a state whose first byte is its version.
func ReadVersion(b []byte, version byte) *StateReader {
	r := &StateReader{rest: b}
	if v := r.Byte(); r.err == nil && v != version {
		r.Fail("of version %d, and this build reads version %d", v, version)
	}
	return r
}

// Fail notes why the state is refused.
func (r *StateReader) Fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: "+format, append([]any{ErrState}, args...)...)
	}
}

// End returns the first error, or that something is left.
func (r *StateReader) End() error {
	if len(r.rest) > 0 {
		r.Fail("%d bytes follow", len(r.rest))
	}
	return r.err
}

// Fill reads as many bytes as b has.
func (r *StateReader) Fill(b []byte) {
	if r.err == nil && len(r.rest) < len(b) {
		r.Fail("it ends early")
	}
	if r.err == nil {
		r.rest = r.rest[copy(b, r.rest):]
	}
}

// Byte reads a byte.
func (r *StateReader) Byte() byte {
	var b [1]byte
	r.Fill(b[:])
	return b[0]
}

// Bool reads a truth value.
func (r *StateReader) Bool() bool {
	b := r.Byte()
	if b > 1 {
		r.Fail("truth value %d", b)
	}
	return b == 1
}

// Uint reads a number.
func (r *StateReader) Uint() uint64 {
	if r.err != nil {
		return 0
	}
	v, n := binary.Uvarint(r.rest)
	if n <= 0 || n > 1 && r.rest[n-1] == 0 { // one number has one form
		r.Fail("a number is cut off, too long or not in its shortest form")
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

// Entries counts n entries from 0, most at most, for a loop that reads each. It ends at the first error.
func (r *StateReader) Entries(n uint64, most int) iter.Seq[int] {
	if n > uint64(most) {
		r.Fail("%d entries, at most %d", n, most)
	}
	return func(yield func(int) bool) {
		for i := 0; uint64(i) < n && r.err == nil && yield(i); i++ {
		}
	}
}

// Node reads a node.
func (r *StateReader) Node() (n NodeRef) {
	r.Fill(n.ID[:])
	n.Inc = r.Uint()
	return n
}

// Nodes reads n nodes, most at most, each after the one before it.
func (r *StateReader) Nodes(n uint64, most int) []NodeRef {
	var ns []NodeRef
	for i := range r.Entries(n, most) {
		ns = append(ns, r.Node())
		if i > 0 && ns[i-1].Compare(ns[i]) >= 0 {
			r.Fail("nodes out of order")
		}
	}
	return ns
}

// Suspects reads what [Suspects.Append] has written.
func (r *StateReader) Suspects() Suspects {
	var s Suspects
	for r.Bool() {
		q := suspicion{node: r.Node(), final: r.Bool()}
		if n := len(s.list); n >= NodesMax || n > 0 && s.list[n-1].node.Compare(q.node) >= 0 {
			r.Fail("suspicions out of order, or more than %d", NodesMax)
		}
		s.list = append(s.list, q)
	}
	return s
}
