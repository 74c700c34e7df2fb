package chunks

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"latchkey/coherence/pb"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
)

// ServiceName is the overlay's service by which chunks travel.
const ServiceName = "chunks"

// Limits of what is decoded.
const (
	// NamesMax bounds the names in one question.
	NamesMax = 1 << 12
	// MessageBytesMax is above what a question with a chunk, or with NamesMax names, can be.
	MessageBytesMax = 1<<20 + 1<<10
	// rootsMax bounds the manifests that count: the last one, and the one before it.
	rootsMax = 2
)

// ErrMalformed matches the errors about questions and answers that cannot be read.
var ErrMalformed = errors.New("chunks: malformed message")

// request is a question to a keeper. Exactly one of have, put, get and roots is there.
type request struct {
	app   keyspace.Key
	id    protocol.CheckpointID
	have  []protocol.Hash
	put   []byte
	get   protocol.Hash
	roots []protocol.Hash

	encoded []byte // of one that is sent to several, which encode it once
}

func (r *request) encode() ([]byte, error) {
	p := &pb.ChunkRequest{App: r.app[:], Checkpoint: uint64(r.id), Put: r.put}
	for i := range r.have {
		p.Have = append(p.Have, r.have[i][:])
	}
	if r.get != (protocol.Hash{}) {
		p.Get = r.get[:]
	}
	for i := range r.roots {
		p.Roots = append(p.Roots, r.roots[i][:])
	}
	return marshal(p)
}

func decodeRequest(b []byte) (r request, err error) {
	p := new(pb.ChunkRequest)
	if err := decode(b, p); err != nil {
		return r, err
	}
	questions := 0
	for _, asked := range []bool{len(p.Have) > 0, p.Put != nil, len(p.Get) > 0, len(p.Roots) > 0} {
		if asked {
			questions++
		}
	}
	if questions != 1 || len(p.App) != len(r.app) || len(p.Put) > BytesMax || len(p.Get) != 0 && len(p.Get) != len(r.get) {
		return r, fmt.Errorf("%w: %d questions of an application of %d bytes, a chunk of %d, a name of %d", ErrMalformed, questions, len(p.App), len(p.Put), len(p.Get))
	}
	r = request{app: keyspace.Key(p.App), id: protocol.CheckpointID(p.Checkpoint), put: p.Put}
	copy(r.get[:], p.Get)
	if r.have, err = hashes(p.Have, NamesMax); err != nil {
		return request{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if r.roots, err = hashes(p.Roots, rootsMax); err != nil {
		return request{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return r, nil
}

// reply answers a request.
type reply struct {
	has        []bool
	chunk      []byte // nil: it is not there
	full, busy bool
}

func (r *reply) encode() ([]byte, error) {
	p := &pb.ChunkReply{Chunk: r.chunk, Full: r.full, Busy: r.busy}
	if len(r.has) > 0 {
		p.Has = make([]byte, (len(r.has)+7)/8)
		for i, has := range r.has {
			if has {
				p.Has[i/8] |= 1 << (i % 8)
			}
		}
	}
	return marshal(p)
}

// decodeReply reads the answer to a question after so many names.
func decodeReply(b []byte, names int) (r reply, err error) {
	p := new(pb.ChunkReply)
	if err := decode(b, p); err != nil {
		return r, err
	}
	if len(p.Has) != (names+7)/8 && !p.Busy || len(p.Chunk) > BytesMax {
		return r, fmt.Errorf("%w: an answer of %d bytes about %d names, a chunk of %d", ErrMalformed, len(p.Has), names, len(p.Chunk))
	}
	r = reply{chunk: p.Chunk, full: p.Full, busy: p.Busy}
	for i := range len(p.Has) * 8 {
		if i < names {
			r.has = append(r.has, p.Has[i/8]&(1<<(i%8)) != 0)
		}
	}
	return r, nil
}

func decode(b []byte, p proto.Message) error {
	if len(b) > MessageBytesMax {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrMalformed, len(b), MessageBytesMax)
	}
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, p); err != nil {
		return fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	return nil
}
