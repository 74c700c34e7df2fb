package pb

import (
	"fmt"
	"unicode/utf8"

	"latchkey/dht/keyspace"
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

// smallMessage is a message without lists. Its parts are put together by who has all of it on its stack.
type smallMessage struct {
	Message
	req, owner                    Req
	gid                           GID
	has, hasReq, hasOwner, hasGID bool
}

// readSmall reads a frame of one message that carries neither a report nor members. It answers false when it does, or cannot be read.
func readSmall(b []byte, f *Frame, m *smallMessage) bool {
	r := protofield.Read(b)
	for r.Next() {
		switch r.Field() {
		case protofield.Bytes(1):
			f.Prefix = r.Bytes()
		case protofield.Number(2):
			f.Gen = r.Uint()
		case protofield.Bytes(3):
			m.has = true
			if !m.read(r.Bytes()) {
				return false
			}
		}
	}
	return r.Err() == nil
}

func (m *smallMessage) read(b []byte) bool {
	r := protofield.Read(b)
	ok := true
	for r.Next() && ok {
		switch r.Field() {
		case protofield.Number(1):
			m.Kind = Kind(int32(r.Uint()))
		case protofield.Number(2):
			m.ViewGen = uint32(r.Uint())
		case protofield.Number(3):
			m.View = r.Uint()
		case protofield.Bytes(4):
			m.Name = r.String()
		case protofield.Bytes(5):
			m.hasReq, ok = true, m.req.read(r.Bytes())
		case protofield.Number(6):
			m.Ts = r.Uint()
		case protofield.Number(7):
			m.ReqTs = r.Uint()
		case protofield.Number(8):
			m.CsNs = int64(r.Uint())
		case protofield.Number(9):
			m.TtlNs = int64(r.Uint())
		case protofield.Number(10):
			m.DelayNs = int64(r.Uint())
		case protofield.Number(11):
			m.Tok = r.Uint()
		case protofield.Bytes(12):
			m.hasGID, ok = true, m.gid.read(r.Bytes())
		case protofield.Number(13):
			m.Older = r.Bool()
		case protofield.Number(14):
			m.Ack = r.Bool()
		case protofield.Bytes(15):
			m.hasOwner, ok = true, m.owner.read(r.Bytes())
		case protofield.Number(16):
			m.Position = uint32(r.Uint())
		case protofield.Number(17):
			m.WaitNs = int64(r.Uint())
		case protofield.Number(18):
			m.EmbargoNs = int64(r.Uint())
		case protofield.Number(20):
			m.Reason = Reason(int32(r.Uint()))
		case protofield.Number(22):
			m.Chunk = uint32(r.Uint())
		case protofield.Number(23):
			m.Mode = Mode(int32(r.Uint()))
		case protofield.Number(24):
			m.Patient = r.Bool()
		case protofield.Bytes(19), protofield.Bytes(21):
			return false
		}
	}
	return ok && r.Err() == nil
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

func (g *GID) read(b []byte) bool {
	r := protofield.Read(b)
	for r.Next() {
		switch r.Field() {
		case protofield.Number(1):
			g.Inc = r.Uint()
		case protofield.Number(2):
			g.N = r.Uint()
		}
	}
	return r.Err() == nil
}
