package session

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
)

// ErrMalformed is matched by every error about bytes of this package that cannot be read.
var ErrMalformed = errors.New("session: malformed")

const (
	opOpen byte = iota + 1
	opKeepAlive
	opClose
)

// OpenData is the command that opens a session with this time to live, or keeps it alive when it is open.
func OpenData(ttl time.Duration) []byte {
	return binary.BigEndian.AppendUint64([]byte{opOpen}, uint64(ttl))
}

// KeepAliveData is the command that keeps a session alive.
func KeepAliveData() []byte { return []byte{opKeepAlive} }

// CloseData is the command that ends a session.
func CloseData() []byte { return []byte{opClose} }

func decodeSessionData(b []byte) (op byte, ttl time.Duration, err error) {
	switch {
	case len(b) == 9 && b[0] == opOpen:
		return opOpen, time.Duration(binary.BigEndian.Uint64(b[1:])), nil
	case len(b) == 1 && (b[0] == opKeepAlive || b[0] == opClose):
		return b[0], 0, nil
	}
	return 0, 0, fmt.Errorf("%w: session command of %d bytes", ErrMalformed, len(b))
}

// Sizes of the encoding. Counts are checked against the bytes that are left before anything is allocated for them.
const (
	snapshotVersion = 1
	sessionFixed    = 16 + keyspace.Size + 8 + 8 + 8 + 1
	resultFixed     = 8 + 1 + 4
)

// Snapshot returns the canonical encoding of the whole state, services included: equal states give equal bytes.
func (t *Table) Snapshot() []byte {
	b := []byte{snapshotVersion}
	u64 := func(v uint64) { b = binary.BigEndian.AppendUint64(b, v) }
	u32 := func(n int) { b = binary.BigEndian.AppendUint32(b, uint32(n)) }
	u64(t.index)
	u64(uint64(t.now))
	u64(t.stamp.Boot)
	u64(uint64(t.stamp.At))
	u32(len(t.sessions))
	ids := slices.SortedFunc(maps.Keys(t.sessions), func(x, y order.ClientID) int { return bytes.Compare(x[:], y[:]) })
	for _, id := range ids {
		s := t.sessions[id]
		b = append(b, id[:]...)
		b = append(b, s.peer[:]...)
		u64(uint64(s.ttl))
		u64(uint64(s.ends))
		u64(s.acked)
		b = append(b, byte(len(s.results)))
		for _, seq := range slices.Sorted(maps.Keys(s.results)) {
			r := s.results[seq]
			u64(seq)
			b = append(b, byte(r.status))
			u32(len(r.data))
			b = append(b, r.data...)
		}
	}
	u32(len(t.ended))
	for _, id := range t.ended {
		b = append(b, id[:]...)
	}
	used, at := byte(0), len(b)
	b = append(b, 0)
	for _, s := range t.services {
		d := s.Snapshot()
		if len(d) == 0 {
			continue
		}
		used++
		b = append(b, byte(len(s.name)))
		b = append(b, s.name...)
		u32(len(d))
		b = append(b, d...)
	}
	b[at] = used
	return b
}

// Restore replaces the state by the one in a snapshot, which must hold no other services than this table. After an error,
// which matches [ErrMalformed] or comes from a service, the table is not to be used any more.
func (t *Table) Restore(snapshot []byte) error {
	t.clear()
	r := reader{b: snapshot}
	if v := r.u8(); v != snapshotVersion && r.err == nil {
		return fmt.Errorf("%w snapshot: version %d, this program reads %d", ErrMalformed, v, snapshotVersion)
	}
	t.index, t.now = r.u64(), r.duration()
	t.stamp = order.Stamp{Boot: r.u64(), At: r.duration()}
	r.sessions(t)
	r.ended(t)
	blobs := r.services(t.names())
	if r.err == nil && len(r.b) > 0 {
		r.fail("%d bytes left over", len(r.b))
	}
	if r.err != nil {
		return r.err
	}
	for i, s := range t.services {
		n := s.name
		if err := s.Restore(blobs[i]); err != nil {
			return fmt.Errorf("session: restore service %q: %w", n, err)
		}
	}
	return nil
}

// reader takes an encoding apart. After the first error everything it returns is zero.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%w snapshot: %s", ErrMalformed, fmt.Sprintf(format, args...))
	}
}

func (r *reader) take(n int) []byte {
	if r.err == nil && n > len(r.b) {
		r.fail("%d bytes wanted, %d left", n, len(r.b))
	}
	if r.err != nil {
		return nil
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) u8() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u64() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (r *reader) duration() time.Duration {
	d := time.Duration(r.u64())
	if d < 0 {
		r.fail("time below zero")
	}
	return d
}

// count reads a number of things of at least size bytes each, at most limit.
func (r *reader) count(limit, size int) int {
	b := r.take(4)
	if b == nil {
		return 0
	}
	n := uint64(binary.BigEndian.Uint32(b))
	if n > uint64(limit) || n*uint64(size) > uint64(len(r.b)) {
		r.fail("%d things, at most %d, with %d bytes left", n, limit, len(r.b))
		return 0
	}
	return int(n)
}

func (r *reader) sessions(t *Table) {
	var last order.ClientID
	for range r.count(SessionsMax, sessionFixed) {
		s := &entry{results: make(map[uint64]stored)}
		copy(s.id[:], r.take(len(s.id)))
		copy(s.peer[:], r.take(len(s.peer)))
		s.ttl, s.ends, s.acked = r.duration(), r.duration(), r.u64()
		if bytes.Compare(s.id[:], last[:]) <= 0 || s.ttl < TTLMin || s.ttl > TTLMax || t.perPeer[s.peer] >= SessionsPerPeerMax {
			r.fail("session %v out of order or bounds", s.id)
		}
		last = s.id
		r.results(s)
		if r.err != nil {
			return
		}
		t.insert(s)
	}
}

func (r *reader) results(s *entry) {
	last := s.acked
	for range r.u8() {
		seq, status := r.u64(), Status(r.u8())
		data := bytes.Clone(r.take(r.count(ResultBytesMax, 1)))
		if seq <= last || seq-s.acked > WindowSize || status >= statusEnd || s.bytes >= ResultsBytesMax {
			r.fail("result %d of session %v out of order or bounds", seq, s.id)
		}
		if r.err != nil {
			return
		}
		last = seq
		s.results[seq] = stored{status, data}
		s.bytes += len(data)
	}
}

func (r *reader) ended(t *Table) {
	for range r.count(EndedMax, len(order.ClientID{})) {
		var id order.ClientID
		copy(id[:], r.take(len(id)))
		_, twice := t.isEnded[id]
		if _, live := t.sessions[id]; live || twice {
			r.fail("session %v ended twice, or is live", id)
		}
		t.ended = append(t.ended, id)
		t.noteEnded(id)
	}
}

// services reads the state of each service in the order of names, nil for one that is not mentioned.
func (r *reader) services(names []string) [][]byte {
	n := int(r.u8())
	blobs := make([][]byte, len(names))
	for i, want := range names {
		if n == 0 || r.err != nil {
			break
		}
		before := r.b
		if name := string(r.take(int(r.u8()))); name != want {
			r.b = before
			continue
		}
		if blobs[i] = r.take(r.count(len(r.b), 1)); len(blobs[i]) == 0 {
			r.fail("service %q without a state", want)
		}
		n--
	}
	if n > 0 {
		r.fail("%d services that this group does not have, or out of order", n)
	}
	return blobs
}
