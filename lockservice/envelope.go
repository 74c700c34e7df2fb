package lockservice

import (
	"fmt"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/protofield"
	"latchkey/lockservice/pb"
	"latchkey/lockservice/table"
)

// Commands and their results are encoded and decoded by hand, being what every lock costs; the bytes are those of pb.Command
// and pb.Result. Replicas keep results, so equal results have equal bytes.

// Fields of pb.Command.
const (
	fieldAcquire = 1 + iota
	fieldRenew
	fieldRelease
)

// commandOverhead is room for what an encoded command or result has beside the lock's name and text for people.
const commandOverhead = 96

func encodeAcquire(a table.Acquire) []byte {
	b, at := protofield.Open(make([]byte, 0, commandOverhead+len(a.Name)), fieldAcquire)
	b = protofield.AppendBytes(b, 1, a.Name)
	b = protofield.AppendUint(b, 2, a.Req)
	b = protofield.AppendUint(b, 3, uint64(a.TTL))
	b = protofield.AppendBool(b, 4, a.Try)
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

// decodeCommand reads a command of a client. Its error matches errMalformed or [ErrName].
func decodeCommand(b []byte) (table.Command, error) {
	if len(b) > commandBytesMax {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", errMalformed, len(b), commandBytesMax)
	}
	kind, body := 0, []byte(nil)
	r := protofield.Read(b)
	for r.Next() {
		switch n := r.Num(); n {
		case fieldAcquire, fieldRenew, fieldRelease:
			kind, body = n, r.Bytes()
		}
	}
	if err := r.Err(); err != nil {
		return nil, fmt.Errorf("%w: %v", errMalformed, err)
	}
	// The three have their first two fields in common.
	var name string
	var req, third, fourth uint64
	r = protofield.Read(body)
	for r.Next() {
		switch n := r.Num(); n {
		case 1:
			name = r.String()
		case 2:
			req = r.Uint()
		case 3:
			third = r.Uint()
		case 4:
			if kind != fieldRelease {
				fourth = r.Uint()
			}
		}
	}
	if err := r.Err(); err != nil {
		return nil, fmt.Errorf("%w: %v", errMalformed, err)
	}
	if kind == 0 {
		return nil, fmt.Errorf("%w: command of an unknown kind", errMalformed)
	}
	if err := CheckName(name); err != nil {
		return nil, err
	}
	switch kind {
	case fieldAcquire:
		return table.Acquire{Name: name, Req: req, TTL: time.Duration(third), Try: fourth != 0}, nil
	case fieldRenew:
		return table.Renew{Name: name, Req: req, Token: table.Token(third), TTL: time.Duration(fourth)}, nil
	}
	return table.Release{Name: name, Req: req, Token: table.Token(third)}, nil
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
	r := protofield.Read(b)
	for r.Next() {
		switch r.Num() {
		case 1:
			res.status = pb.Status(r.Uint())
		case 2:
			res.token = Token(r.Uint())
		case 3:
			res.position = uint32(r.Uint())
		case 4:
			res.holder, err = readParty(r.Bytes())
		case 5:
			res.waited = r.Bool()
		case 6:
			res.detail = r.String()
		}
		if err != nil {
			break
		}
	}
	if err == nil {
		err = r.Err()
	}
	if err != nil {
		return groupResult{}, fmt.Errorf("%w: %v", errMalformed, err)
	}
	return res, nil
}

func readParty(b []byte) (p party, err error) {
	var client, peer []byte
	r := protofield.Read(b)
	for r.Next() {
		switch r.Num() {
		case 1:
			client = r.Bytes()
		case 2:
			peer = r.Bytes()
		}
	}
	if err = r.Err(); err == nil {
		err = setParty(client, peer, &p.client, &p.peer)
	}
	return p, err
}
