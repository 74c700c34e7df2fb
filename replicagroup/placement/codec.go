package placement

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
)

// Limits of what a peer may say of itself and of groups. An encoded [Descriptor] then stays below 16 KiB, which is the
// bound on a command's result.
const (
	PeerIDBytesMax = order.PeerIDBytesMax
	AddrsMax       = 7   // addresses of one peer
	AddrBytesMax   = 255 // one address in its text form
	MembersMax     = 8   // members of a group: 2·FMax+1 voters and one that is joining
)

// ErrMalformed is matched by every error about bytes that cannot be read: truncated, too long, or not in the one form the
// encoder writes.
var ErrMalformed = errors.New("placement: malformed")

// reader takes values off a byte slice. After the first failure every value is zero and err says what was wrong, so a
// decoder checks once, at its end.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: "+format, append([]any{ErrMalformed}, args...)...)
	}
	r.b = nil
}

func (r *reader) take(n int) []byte {
	if len(r.b) < n {
		r.fail("%d bytes where %d are needed", len(r.b), n)
		return make([]byte, n)
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) u8() uint8               { return r.take(1)[0] }
func (r *reader) u16() uint16             { return binary.BigEndian.Uint16(r.take(2)) }
func (r *reader) u32() uint32             { return binary.BigEndian.Uint32(r.take(4)) }
func (r *reader) u64() uint64             { return binary.BigEndian.Uint64(r.take(8)) }
func (r *reader) duration() time.Duration { return time.Duration(r.u64()) }
func (r *reader) fixed(dst []byte)        { copy(dst, r.take(len(dst))) }

func (r *reader) bool() bool {
	v := r.u8()
	if v > 1 {
		r.fail("%d where 0 or 1 is needed", v)
	}
	return v == 1
}

// text reads a string of at most limit bytes behind one byte of length.
func (r *reader) text(what string, limit int) string {
	n := int(r.u8())
	if n > limit {
		r.fail("%s of %d bytes (at most %d)", what, n, limit)
		return ""
	}
	return string(r.take(n))
}

// count reads a number of elements, at most limit.
func (r *reader) count(what string, limit int) int {
	n := int(r.u8())
	if n > limit {
		r.fail("%d %s (at most %d)", n, what, limit)
		return 0
	}
	return n
}

func (r *reader) prefix() keyspace.Prefix {
	if r.err != nil {
		return keyspace.Prefix{}
	}
	p, rest, err := keyspace.DecodePrefix(r.b)
	if err != nil {
		r.fail("%v", err)
		return keyspace.Prefix{}
	}
	r.b = rest
	return p
}

func (r *reader) group() (g order.GroupID) {
	r.fixed(g.Overlay[:])
	g.Prefix = r.prefix()
	g.Gen = r.u64()
	return g
}

func (r *reader) peer() (p Peer) {
	p.ID = r.text("peer id", PeerIDBytesMax)
	for range r.count("addresses", AddrsMax) {
		p.Addrs = append(p.Addrs, r.text("address", AddrBytesMax))
	}
	return p
}

// end reports the first failure, or bytes left over.
func (r *reader) end() error {
	if r.err == nil && len(r.b) > 0 {
		r.fail("%d bytes too many", len(r.b))
	}
	return r.err
}

func appendText(b []byte, s string) []byte { return append(append(b, byte(len(s))), s...) }

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

func appendPrefix(b []byte, p keyspace.Prefix) []byte {
	b, _ = p.AppendBinary(b) // never fails
	return b
}

func appendGroup(b []byte, g order.GroupID) []byte {
	b = append(b, g.Overlay[:]...)
	b = appendPrefix(b, g.Prefix)
	return binary.BigEndian.AppendUint64(b, g.Gen)
}

func appendPeer(b []byte, p Peer) []byte {
	b = append(appendText(b, p.ID), byte(len(p.Addrs)))
	for _, a := range p.Addrs {
		b = appendText(b, a)
	}
	return b
}

func appendHosts(b []byte, hosts []Host) []byte {
	b = append(b, byte(len(hosts)))
	for _, h := range hosts {
		b = append(appendPeer(b, h.Peer), h.Store[:]...)
	}
	return b
}

func (r *reader) hosts() (hosts []Host) {
	for range r.count("hosts", MembersMax) {
		h := Host{Peer: r.peer()}
		r.fixed(h.Store[:])
		hosts = append(hosts, h)
	}
	return hosts
}
