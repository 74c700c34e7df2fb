package lockservice

import (
	"fmt"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/protofield"
	"latchkey/lockservice/pb"
	"latchkey/lockservice/sigma"
	"latchkey/lockservice/table"
)

// Commands and their results are encoded and decoded by hand, being what every lock costs; the bytes are those of pb.Command
// and pb.Result. Replicas keep results, so equal results have equal bytes.

// Fields of pb.Command.
const (
	fieldAcquire = 1 + iota
	fieldRenew
	fieldRelease
	fieldBreak
)

var (
	acquireField, renewField = protofield.Bytes(fieldAcquire), protofield.Bytes(fieldRenew)
	releaseField, breakField = protofield.Bytes(fieldRelease), protofield.Bytes(fieldBreak)
)

// commandOverhead is room for what an encoded command or result has beside the lock's name and text for people.
const commandOverhead = 144

func encodeAcquire(a table.Acquire) []byte {
	b, at := protofield.Open(make([]byte, 0, commandOverhead+len(a.Name)+len(a.Value)), fieldAcquire)
	b = protofield.AppendBytes(b, 1, a.Name)
	b = protofield.AppendUint(b, 2, a.Req)
	b = protofield.AppendUint(b, 3, uint64(a.TTL))
	b = protofield.AppendBool(b, 4, a.Try)
	b = protofield.AppendBool(b, 5, a.Shared)
	b = protofield.AppendUint(b, 6, uint64(a.Permits))
	b = protofield.AppendUint(b, 7, uint64(a.Delay))
	b = protofield.AppendBytes(b, 8, a.Value)
	if a.Wish != (sigma.Req{}) {
		var wish int
		b, wish = protofield.Open(b, 9)
		b = protofield.AppendBytes(b, 1, a.Wish.Session[:])
		b = protofield.AppendUint(b, 2, a.Wish.Seq)
		b = protofield.Close(b, wish)
	}
	b = protofield.AppendUint(b, 10, uint64(a.Held))
	return protofield.Close(b, at)
}

func encodeRenew(r table.Renew) []byte {
	b, at := protofield.Open(make([]byte, 0, commandOverhead+len(r.Name)), fieldRenew)
	b = protofield.AppendBytes(b, 1, r.Name)
	b = protofield.AppendUint(b, 2, r.Req)
	b = protofield.AppendUint(b, 3, uint64(r.Token))
	b = protofield.AppendUint(b, 4, uint64(r.TTL))
	return protofield.Close(b, at)
}

func encodeRelease(r table.Release) []byte {
	b, at := protofield.Open(make([]byte, 0, commandOverhead+len(r.Name)), fieldRelease)
	b = protofield.AppendBytes(b, 1, r.Name)
	b = protofield.AppendUint(b, 2, r.Req)
	b = protofield.AppendUint(b, 3, uint64(r.Token))
	return protofield.Close(b, at)
}

func encodeBreak(r table.Break) []byte {
	b, at := protofield.Open(make([]byte, 0, commandOverhead+len(r.Name)), fieldBreak)
	b = protofield.AppendBytes(b, 1, r.Name)
	b = protofield.AppendUint(b, 2, uint64(r.Token))
	b = protofield.AppendUint(b, 3, uint64(r.At))
	return protofield.Close(b, at)
}

// decodeCommand reads a command of a client. Its error matches errMalformed or [ErrName].
func decodeCommand(b []byte) (table.Command, error) {
	if len(b) > commandBytesMax {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", errMalformed, len(b), commandBytesMax)
	}
	var kind protofield.Field
	var body commandBody
	r := protofield.Read(b)
	for r.Next() {
		switch f := r.Field(); f {
		case acquireField, renewField, releaseField, breakField:
			if f != kind { // the last of them counts
				kind, body = f, commandBody{}
			}
			if err := body.read(kind, r.Bytes()); err != nil {
				return nil, fmt.Errorf("%w: %v", errMalformed, err)
			}
		}
	}
	if err := r.Err(); err != nil {
		return nil, fmt.Errorf("%w: %v", errMalformed, err)
	}
	if kind == 0 {
		return nil, fmt.Errorf("%w: command of an unknown kind", errMalformed)
	}
	if err := CheckName(body.name); err != nil {
		return nil, err
	}
	switch kind {
	case acquireField:
		return table.Acquire{
			Name: body.name, Req: body.second, TTL: time.Duration(body.third), Try: body.fourth != 0,
			Shared: body.shared, Permits: permitsOf(body.permits), Delay: time.Duration(body.delay), Value: body.value,
			Wish: body.wish, Held: table.Token(body.held),
		}, nil
	case renewField:
		return table.Renew{Name: body.name, Req: body.second, Token: table.Token(body.third), TTL: time.Duration(body.fourth)}, nil
	case breakField:
		return table.Break{Name: body.name, Token: table.Token(body.second), At: int64(body.third)}, nil
	}
	return table.Release{Name: body.name, Req: body.second, Token: table.Token(body.third)}, nil
}

// permitsOf reads a number of permits. All that are too many are one more than a semaphore has.
func permitsOf(n uint64) int { return int(min(n, table.HoldersPerLockMax+1)) }

// commandBody holds the fields of pb.Acquire, pb.Renew, pb.Release or pb.Break, of which the first is the name in all, and the next are of
// the same wire types. The last two have no fourth; what follows is of pb.Acquire only.
type commandBody struct {
	name                  string
	second, third, fourth uint64
	shared                bool
	permits, delay        uint64
	value                 string
	wish                  sigma.Req
	held                  uint64
}

// read reads the fields that b has of a command of some kind.
func (c *commandBody) read(kind protofield.Field, b []byte) error {
	r := protofield.Read(b)
	for r.Next() {
		switch f := r.Field(); {
		case f == protofield.Bytes(1):
			c.name = r.String()
		case f == protofield.Number(2):
			c.second = r.Uint()
		case f == protofield.Number(3):
			c.third = r.Uint()
		case f == protofield.Number(4):
			c.fourth = r.Uint()
		case kind != acquireField:
		case f == protofield.Number(5):
			c.shared = r.Bool()
		case f == protofield.Number(6):
			c.permits = r.Uint()
		case f == protofield.Number(7):
			c.delay = r.Uint()
		case f == protofield.Bytes(8):
			c.value = r.String()
		case f == protofield.Bytes(9):
			var err error
			if c.wish, err = readWish(r.Bytes()); err != nil {
				return err
			}
		case f == protofield.Number(10):
			c.held = r.Uint()
		}
	}
	return r.Err()
}

// readWish reads the fields of a pb.Wish that b has.
func readWish(b []byte) (q sigma.Req, err error) {
	r := protofield.Read(b)
	for r.Next() {
		switch r.Field() {
		case protofield.Bytes(1):
			if s := r.Bytes(); len(s) != copy(q.Session[:], s) || len(s) != len(q.Session) {
				return q, fmt.Errorf("%w: a session of %d bytes", errMalformed, len(s))
			}
		case protofield.Number(2):
			q.Seq = r.Uint()
		}
	}
	return q, r.Err()
}

// groupResult is what a group answers to a command.
type groupResult struct {
	status   pb.Status
	token    Token
	position uint32
	holder   party // zero when absent
	waited   bool
	detail   string
}

// party is a client of a group, and its peer.
type party struct {
	client table.Client
	peer   keyspace.NodeID
}

func (r groupResult) encode() []byte {
	b := make([]byte, 0, commandOverhead+len(r.detail))
	b = protofield.AppendUint(b, 1, uint64(r.status))
	b = protofield.AppendUint(b, 2, uint64(r.token))
	b = protofield.AppendUint(b, 3, uint64(r.position))
	if r.holder != (party{}) {
		var at int
		b, at = protofield.Open(b, 4)
		b = protofield.AppendBytes(b, 1, r.holder.client[:])
		b = protofield.AppendBytes(b, 2, r.holder.peer[:])
		b = protofield.Close(b, at)
	}
	b = protofield.AppendBool(b, 5, r.waited)
	return protofield.AppendBytes(b, 6, r.detail)
}

// decodeResult reads a result.
func decodeResult(b []byte) (res groupResult, err error) {
	if len(b) > resultBytesMax {
		return res, fmt.Errorf("%w: %d bytes, at most %d", errMalformed, len(b), resultBytesMax)
	}
	var holder bool
	var client, peer []byte
	r := protofield.Read(b)
	for r.Next() {
		switch r.Field() {
		case protofield.Number(1):
			res.status = pb.Status(r.Uint())
		case protofield.Number(2):
			res.token = Token(r.Uint())
		case protofield.Number(3):
			res.position = uint32(r.Uint())
		case protofield.Bytes(4):
			holder = true
			err = readParty(r.Bytes(), &client, &peer)
		case protofield.Number(5):
			res.waited = r.Bool()
		case protofield.Bytes(6):
			res.detail = r.String()
		}
		if err != nil {
			break
		}
	}
	if err == nil {
		err = r.Err()
	}
	if err == nil && holder {
		err = setParty(client, peer, &res.holder.client, &res.holder.peer)
	}
	if err != nil {
		return groupResult{}, fmt.Errorf("%w: %v", errMalformed, err)
	}
	return res, nil
}

// readParty reads the fields of a pb.Party that b has.
func readParty(b []byte, client, peer *[]byte) error {
	r := protofield.Read(b)
	for r.Next() {
		switch r.Field() {
		case protofield.Bytes(1):
			*client = r.Bytes()
		case protofield.Bytes(2):
			*peer = r.Bytes()
		}
	}
	return r.Err()
}
