package chunks

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"latchkey/coherence/appmanager"
	"latchkey/coherence/pb"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
)

// BytesMax bounds a chunk: a value, a thread's state, or a part of a manifest.
const BytesMax = 1 << 20

const (
	objectBytes = keyspace.Size + 32
	threadBytes = 16 + 32
	// entriesPerPart keeps a part below BytesMax.
	entriesPerPart = 1 << 13
	partsMax       = (protocol.ObjectsMax+protocol.ThreadsMax)/entriesPerPart + 2
)

// ErrManifest matches the errors about a manifest that cannot be what was written.
var ErrManifest = errors.New("chunks: malformed manifest")

// Name returns the name of a chunk: its SHA-256.
func Name(chunk []byte) protocol.Hash { return sha256.Sum256(chunk) }

// encodeManifest returns a manifest as chunks, the root last. Equal manifests of one checkpoint have equal chunks; parts that have not changed since
// another checkpoint, too.
func encodeManifest(app keyspace.Key, id protocol.CheckpointID, m appmanager.Manifest) ([][]byte, error) {
	if len(m.Objects) > protocol.ObjectsMax || len(m.Threads) > protocol.ThreadsMax {
		return nil, fmt.Errorf("%w: %d objects and %d threads", ErrManifest, len(m.Objects), len(m.Threads))
	}
	var parts []*pb.ManifestPart
	for keys := range slices.Chunk(slices.SortedFunc(maps.Keys(m.Objects), func(a, b keyspace.Key) int { return bytes.Compare(a[:], b[:]) }), entriesPerPart) {
		p := new(pb.ManifestPart)
		for _, o := range keys {
			h := m.Objects[o]
			p.Objects = append(p.Objects, append(bytes.Clone(o[:]), h[:]...))
		}
		parts = append(parts, p)
	}
	for ids := range slices.Chunk(slices.SortedFunc(maps.Keys(m.Threads), func(a, b protocol.ThreadID) int { return bytes.Compare(a[:], b[:]) }), entriesPerPart) {
		p := new(pb.ManifestPart)
		for _, t := range ids {
			h := m.Threads[t]
			p.Threads = append(p.Threads, append(bytes.Clone(t[:]), h[:]...))
		}
		parts = append(parts, p)
	}
	root := &pb.ManifestRoot{App: app[:], Checkpoint: uint64(id)}
	var out [][]byte
	for _, p := range parts {
		b, err := marshal(p)
		if err != nil {
			return nil, err
		}
		h := Name(b)
		root.Parts = append(root.Parts, h[:])
		out = append(out, b)
	}
	b, err := marshal(root)
	return append(out, b), err
}

func marshal(m proto.Message) ([]byte, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("chunks: encode: %w", err)
	}
	return b, nil
}

// decodeRoot reads the root of a manifest of an application.
func decodeRoot(app keyspace.Key, b []byte) (id protocol.CheckpointID, parts []protocol.Hash, err error) {
	p := new(pb.ManifestRoot)
	if err := unmarshal(b, p); err != nil {
		return 0, nil, err
	}
	if !bytes.Equal(p.App, app[:]) {
		return 0, nil, fmt.Errorf("%w: it is of another application", ErrManifest)
	}
	parts, err = hashes(p.Parts, partsMax)
	return protocol.CheckpointID(p.Checkpoint), parts, err
}

// decodePart adds a part to a manifest.
func decodePart(b []byte, m *appmanager.Manifest) error {
	p := new(pb.ManifestPart)
	if err := unmarshal(b, p); err != nil {
		return err
	}
	if len(p.Objects)+len(p.Threads) > entriesPerPart {
		return fmt.Errorf("%w: a part of %d entries", ErrManifest, len(p.Objects)+len(p.Threads))
	}
	for _, e := range p.Objects {
		if len(e) != objectBytes {
			return fmt.Errorf("%w: an object of %d bytes", ErrManifest, len(e))
		}
		m.Objects[keyspace.Key(e[:keyspace.Size])] = protocol.Hash(e[keyspace.Size:])
	}
	for _, e := range p.Threads {
		if len(e) != threadBytes {
			return fmt.Errorf("%w: a thread of %d bytes", ErrManifest, len(e))
		}
		m.Threads[protocol.ThreadID(e[:16])] = protocol.Hash(e[16:])
	}
	return nil
}

func unmarshal(b []byte, p proto.Message) error {
	if len(b) > BytesMax {
		return fmt.Errorf("%w: %d bytes", ErrManifest, len(b))
	}
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, p); err != nil {
		return fmt.Errorf("%w: %v", ErrManifest, err)
	}
	return nil
}

func hashes(bs [][]byte, most int) ([]protocol.Hash, error) {
	if len(bs) > most {
		return nil, fmt.Errorf("%w: %d names, at most %d", ErrManifest, len(bs), most)
	}
	out := make([]protocol.Hash, 0, len(bs))
	for _, b := range bs {
		if len(b) != len(protocol.Hash{}) {
			return nil, fmt.Errorf("%w: a name of %d bytes", ErrManifest, len(b))
		}
		out = append(out, protocol.Hash(b))
	}
	return out, nil
}
