package pb

import (
	"fmt"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/internal/protofield"
	"latchkey/lockservice/sigma"
)

// Frames of messages between clients and replicas are what every lock costs, so they are encoded and decoded by hand. The bytes are
// those of the library, and what is read from any bytes is what the library reads: tests compare the two.

// frameRoom is room for what a frame has beside a name and members, as a rule.
const frameRoom = 160

// appendMessage appends the bytes of a message that carries no report.
func appendMessage(b []byte, m *sigma.Message) []byte {
	b = protofield.AppendUint(b, 1, uint64(m.Kind))
	b = protofield.AppendUint(b, 2, uint64(m.View.Gen))
	b = protofield.AppendUint(b, 3, m.View.Num)
	b = protofield.AppendBytes(b, 4, m.Name)
	b = appendReq(b, 5, &m.Req)
	b = protofield.AppendUint(b, 6, m.TS)
	b = protofield.AppendUint(b, 7, m.ReqTS)
	b = protofield.AppendUint(b, 8, uint64(m.CS))
	b = protofield.AppendUint(b, 9, uint64(m.TTL))
	b = protofield.AppendUint(b, 10, uint64(m.Delay))
	b = protofield.AppendUint(b, 11, uint64(m.Tok))
	if m.GID != (sigma.GID{}) {
		var at int
		b, at = protofield.Open(b, 12)
		b = protofield.AppendUint(b, 1, m.GID.Inc)
		b = protofield.AppendUint(b, 2, m.GID.N)
		b = protofield.Close(b, at)
	}
	b = protofield.AppendBool(b, 13, m.Older)
	b = protofield.AppendBool(b, 14, m.Ack)
	b = appendReq(b, 15, &m.Owner)
	b = protofield.AppendUint(b, 16, uint64(uint32(m.Position)))
	b = protofield.AppendUint(b, 17, uint64(m.Wait))
	b = protofield.AppendUint(b, 18, uint64(m.Embargo))
	for i := range m.Members {
		b = protofield.AppendBytes(b, 19, m.Members[i][:])
	}
	b = protofield.AppendUint(b, 20, uint64(m.Reason))
	b = protofield.AppendUint(b, 22, uint64(uint32(m.Chunk)))
	b = protofield.AppendUint(b, 23, uint64(m.Mode))
	return protofield.AppendBool(b, 24, m.Patient)
}

func appendReq(b []byte, num int, q *sigma.Req) []byte {
	if *q == (sigma.Req{}) {
		return b
	}
	b, at := protofield.Open(b, num)
	b = protofield.AppendBytes(b, 1, q.Session[:])
	b = protofield.AppendUint(b, 2, q.Seq)
	return protofield.Close(b, at)
}

// appendFrame appends the bytes of a frame whose message carries no report.
func appendFrame(b []byte, g Group, m *sigma.Message) ([]byte, error) {
	if !utf8.ValidString(m.Name) {
		return b, fmt.Errorf("sigma: encode: the name is not UTF-8")
	}
	var room [keyspace.Size + 2]byte
	prefix, err := g.Prefix.AppendBinary(room[:0])
	if err != nil {
		return b, fmt.Errorf("sigma: encode: %w", err)
	}
	if b == nil {
		b = make([]byte, 0, frameRoom+len(m.Name)+len(m.Members)*(keyspace.Size+2))
	}
	b = protofield.AppendBytes(b, 1, prefix)
	b = protofield.AppendUint(b, 2, g.Gen)
	b, at := protofield.Open(b, 3)
	return protofield.Close(appendMessage(b, m), at), nil
}

// readFrame reads a frame as [EncodeFrame] writes it, of one of the messages that every lock costs. It answers false, and leaves m in an
// undefined state, for all others and where anything is out of the ordinary: the library says what becomes of those.
func readFrame(b []byte, g *Group, m *sigma.Message) bool {
	c := cursor{rest: b}
	if c.tag() != tagOf(1, protowire.BytesType) {
		return false
	}
	p, rest, err := keyspace.DecodePrefix(c.bytes())
	if err != nil || len(rest) > 0 {
		return false
	}
	*g = Group{Prefix: p}
	tag := c.tag()
	if tag == tagOf(2, protowire.VarintType) {
		g.Gen = c.uint()
		tag = c.tag()
	}
	if tag != tagOf(3, protowire.BytesType) {
		return false
	}
	message := c.bytes()
	return !c.bad && len(c.rest) == 0 && readMessage(message, m) && m.View.Gen == g.ViewGen()
}

// hot are the kinds that readMessage reads.
const hot = 1<<sigma.Request | 1<<sigma.Yield | 1<<sigma.Release | 1<<sigma.Install | 1<<sigma.Grant | 1<<sigma.Inquire | 1<<sigma.Queued | 1<<sigma.Released

func readMessage(b []byte, m *sigma.Message) bool {
	c := cursor{rest: b}
	last, named := 0, false
	*m = sigma.Message{}
	for len(c.rest) > 0 && !c.bad {
		tag := c.tag()
		if tag>>3 <= last { // also where a field comes twice
			return false
		}
		last = tag >> 3
		switch tag {
		case tagOf(1, protowire.VarintType):
			kind := c.uint()
			if kind >= 64 || hot&(1<<kind) == 0 {
				return false
			}
			m.Kind = sigma.Kind(kind)
		case tagOf(2, protowire.VarintType):
			gen := c.uint()
			if m.View.Gen = uint32(gen); uint64(m.View.Gen) != gen {
				return false
			}
		case tagOf(3, protowire.VarintType):
			m.View.Num = c.uint()
		case tagOf(4, protowire.BytesType):
			name := c.bytes()
			if len(name) > NameBytesMax || !utf8.Valid(name) {
				return false
			}
			m.Name = string(name)
		case tagOf(5, protowire.BytesType):
			named = true
			if !readReq(c.bytes(), &m.Req) {
				return false
			}
		case tagOf(6, protowire.VarintType):
			m.TS = c.uint()
		case tagOf(7, protowire.VarintType):
			m.ReqTS = c.uint()
		case tagOf(8, protowire.VarintType):
			m.CS = automaton.Instant(c.uint())
		case tagOf(9, protowire.VarintType):
			m.TTL = c.span()
		case tagOf(10, protowire.VarintType):
			m.Delay = c.span()
		case tagOf(11, protowire.VarintType):
			m.Tok = sigma.Token(c.uint())
		case tagOf(12, protowire.BytesType):
			if !readGID(c.bytes(), &m.GID) {
				return false
			}
		case tagOf(13, protowire.VarintType):
			m.Older = c.uint() != 0
		case tagOf(14, protowire.VarintType):
			m.Ack = c.uint() != 0
		case tagOf(15, protowire.BytesType):
			if !readReq(c.bytes(), &m.Owner) {
				return false
			}
		case tagOf(16, protowire.VarintType):
			position := c.uint()
			if position > sigma.WaitersPerLockMax {
				return false
			}
			m.Position = int(position)
		case tagOf(17, protowire.VarintType):
			m.Wait = c.span()
		case tagOf(18, protowire.VarintType):
			m.Embargo = c.span()
		case tagOf(24, protowire.VarintType):
			m.Patient = c.uint() != 0
		default:
			return false
		}
	}
	return !c.bad && m.Kind != 0 && named && m.Name != ""
}

func readReq(b []byte, q *sigma.Req) bool {
	const sessionHead = 2
	if len(b) < sessionHead+len(q.Session) || int(b[0]) != tagOf(1, protowire.BytesType) || int(b[1]) != len(q.Session) {
		return false
	}
	c := cursor{rest: b[sessionHead+copy(q.Session[:], b[sessionHead:]):]}
	if len(c.rest) > 0 {
		if c.tag() != tagOf(2, protowire.VarintType) {
			return false
		}
		q.Seq = c.uint()
	}
	return !c.bad && len(c.rest) == 0 && *q != sigma.Req{}
}

func readGID(b []byte, g *sigma.GID) bool {
	c := cursor{rest: b}
	if len(c.rest) > 0 && int(c.rest[0]) == tagOf(1, protowire.VarintType) {
		c.rest = c.rest[1:]
		g.Inc = c.uint()
	}
	if len(c.rest) > 0 {
		if c.tag() != tagOf(2, protowire.VarintType) {
			return false
		}
		g.N = c.uint()
	}
	return !c.bad && len(c.rest) == 0
}

// tagOf returns the tag of a field.
func tagOf(num int, typ protowire.Type) int { return num<<3 | int(typ) }

// cursor takes fields off the front of a message. Once it is bad what it answers means nothing.
type cursor struct {
	rest []byte
	bad  bool
}

// tag takes a tag of two bytes at most; 0 is none.
func (c *cursor) tag() int {
	b := c.rest
	switch {
	case len(b) > 0 && b[0] < 0x80:
		c.rest = b[1:]
		return int(b[0])
	case len(b) > 1 && b[1] < 0x80:
		c.rest = b[2:]
		return int(b[0]&0x7f) | int(b[1])<<7
	}
	c.bad = true
	return 0
}

func (c *cursor) uint() uint64 {
	if b := c.rest; len(b) > 0 && b[0] < 0x80 {
		c.rest = b[1:]
		return uint64(b[0])
	}
	v, n := protowire.ConsumeVarint(c.rest)
	if n < 0 {
		c.bad = true
		return 0
	}
	c.rest = c.rest[n:]
	return v
}

func (c *cursor) span() time.Duration {
	v := c.uint()
	c.bad = c.bad || v > uint64(spanMax)
	return time.Duration(v)
}

func (c *cursor) bytes() []byte {
	n := c.uint()
	if n > uint64(len(c.rest)) {
		c.bad = true
		return nil
	}
	b := c.rest[:n]
	c.rest = c.rest[n:]
	return b
}

func (q *Req) read(b []byte) bool {
	r := protofield.Read(b)
	for r.Next() {
		switch r.Field() {
		case protofield.Bytes(1):
			q.Session = r.Bytes()
		case protofield.Number(2):
			q.Seq = r.Uint()
		}
	}
	return r.Err() == nil
}
