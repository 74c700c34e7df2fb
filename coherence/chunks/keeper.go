package chunks

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
)

// Limits of a keeper. What is beyond is refused with [ErrFull].
const (
	KeptBytesMax = 4 << 30 // of all chunks together
	KeptMax      = 1 << 19 // chunks; what a keeper remembers of each, some 100 bytes, is in memory
)

// Errors.
var (
	// ErrFull matches the error of a keeper that has no room.
	ErrFull = errors.New("chunks: no room")
	// ErrTooLarge matches the error about a chunk above BytesMax.
	ErrTooLarge = errors.New("chunks: chunk too large")
)

// Reserved is the space of a [Store] that is no application's: others keep a little there.
var Reserved = [32]byte(Name([]byte("latchkey: not an application")))

// Store is where a [Keeper] has its chunks: blobs in the space of an application, each with a note. *disk.Store is one. What was written may be lost
// with the process until SyncBlobs has returned.
type Store interface {
	// Blobs calls f with the note of everything that is there, valid until f returns.
	Blobs(f func(space, name [32]byte, note []byte)) error
	// PutBlob stores a blob and its note; with a nil blob, the note of one that is there.
	PutBlob(space, name [32]byte, note, blob []byte) error
	// Blob returns a blob, nil when it is not there.
	Blob(space, name [32]byte) ([]byte, error)
	DropBlobs(space [32]byte, names [][32]byte) error
	SyncBlobs() error
}

// kept is what a keeper knows of a chunk: its size, and the last checkpoint that it was wanted for.
type kept struct {
	checkpoint protocol.CheckpointID
	size       int
}

func (k kept) note() []byte {
	return binary.AppendUvarint(binary.AppendUvarint(nil, uint64(k.checkpoint)), uint64(k.size))
}

func readNote(b []byte) (k kept, ok bool) {
	id, n := binary.Uvarint(b)
	if n <= 0 {
		return k, false
	}
	size, m := binary.Uvarint(b[n:])
	return kept{protocol.CheckpointID(id), int(size)}, m > 0 && n+m == len(b) && size <= BytesMax
}

// Keeper keeps chunks for an application's nodes. Not safe for concurrent use. The zero value is not usable; see [NewKeeper].
type Keeper struct {
	store Store
	apps  map[keyspace.Key]map[protocol.Hash]kept
	count int
	bytes int64

	countMax int
	bytesMax int64
}

// NewKeeper makes a keeper of what is in a store.
func NewKeeper(store Store) (*Keeper, error) {
	k := &Keeper{store: store, apps: make(map[keyspace.Key]map[protocol.Hash]kept), countMax: KeptMax, bytesMax: KeptBytesMax}
	var bad error
	err := store.Blobs(func(space, name [32]byte, note []byte) {
		if space == Reserved {
			return
		}
		c, ok := readNote(note)
		if !ok {
			bad = fmt.Errorf("the store has a note %x", note)
			return
		}
		k.note(space, name, c)
	})
	if err = errors.Join(err, bad); err != nil {
		return nil, fmt.Errorf("chunks: %w", err)
	}
	return k, nil
}

// note puts a chunk on the list.
func (k *Keeper) note(app keyspace.Key, name protocol.Hash, c kept) {
	of := k.apps[app]
	if of == nil {
		of = make(map[protocol.Hash]kept)
		k.apps[app] = of
	}
	if _, ok := of[name]; !ok {
		k.count++
		k.bytes += int64(c.size)
	}
	of[name] = c
}

// Usage returns how many chunks there are, and their bytes.
func (k *Keeper) Usage() (chunks int, bytes int64) { return k.count, k.bytes }

// Has reports whether a chunk is there, and has it stay for a checkpoint if it is.
func (k *Keeper) Has(app keyspace.Key, name protocol.Hash, id protocol.CheckpointID) (bool, error) {
	c, ok := k.apps[app][name]
	if !ok || c.checkpoint >= id {
		return ok, nil
	}
	c.checkpoint = id
	if err := k.store.PutBlob(app, name, c.note(), nil); err != nil {
		return false, err
	}
	k.note(app, name, c)
	return true, nil
}

// Put keeps a chunk, for a checkpoint. It is stored once the store has been synced.
func (k *Keeper) Put(app keyspace.Key, id protocol.CheckpointID, chunk []byte) error {
	if len(chunk) > BytesMax {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(chunk), BytesMax)
	}
	name := Name(chunk)
	if ok, err := k.Has(app, name, id); ok || err != nil {
		return err
	}
	if k.count >= k.countMax || k.bytes+int64(len(chunk)) > k.bytesMax {
		return fmt.Errorf("%w: %d chunks of %d bytes", ErrFull, k.count, k.bytes)
	}
	c := kept{id, len(chunk)}
	if err := k.store.PutBlob(app, name, c.note(), chunk); err != nil {
		return err
	}
	k.note(app, name, c)
	return nil
}

// Get returns a chunk, nil when it is not there. One that is not what its name says was altered in the store; it is not there any more then, so
// that it is put again.
func (k *Keeper) Get(app keyspace.Key, name protocol.Hash) ([]byte, error) {
	if _, ok := k.apps[app][name]; !ok {
		return nil, nil
	}
	b, err := k.store.Blob(app, name)
	if err != nil {
		return nil, err
	}
	if Name(b) != name {
		return nil, k.drop(app, [][32]byte{name})
	}
	return b, nil
}

// Collect drops an application's chunks that keep does not have and that no checkpoint after last wants, and returns how many.
func (k *Keeper) Collect(app keyspace.Key, last protocol.CheckpointID, keep map[protocol.Hash]struct{}) (int, error) {
	var names [][32]byte
	for name, c := range k.apps[app] {
		if _, ok := keep[name]; !ok && c.checkpoint <= last {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b [32]byte) int { return bytes.Compare(a[:], b[:]) })
	return len(names), k.drop(app, names)
}

func (k *Keeper) drop(app keyspace.Key, names [][32]byte) error {
	if len(names) == 0 {
		return nil
	}
	if err := k.store.DropBlobs(app, names); err != nil {
		return err
	}
	of := k.apps[app]
	for _, name := range names {
		k.count--
		k.bytes -= int64(of[name].size)
		delete(of, name)
	}
	if len(of) == 0 {
		delete(k.apps, app)
	}
	return nil
}

// Sync has everything on the disk that was put before.
func (k *Keeper) Sync() error { return k.store.SyncBlobs() }

// MemoryStore keeps chunks in memory, for peers that store nothing. The zero value is empty. Not safe for concurrent use but by one [Keeper].
type MemoryStore struct{ blobs map[[2][32]byte]blob }

type blob struct{ note, data []byte }

// Blobs implements [Store].
func (s *MemoryStore) Blobs(f func(space, name [32]byte, note []byte)) error {
	for at, b := range s.blobs {
		f(at[0], at[1], b.note)
	}
	return nil
}

// PutBlob implements [Store]. It keeps what it is given.
func (s *MemoryStore) PutBlob(space, name [32]byte, note, data []byte) error {
	if s.blobs == nil {
		s.blobs = make(map[[2][32]byte]blob)
	}
	at := [2][32]byte{space, name}
	if data == nil {
		data = s.blobs[at].data
	}
	s.blobs[at] = blob{note, data}
	return nil
}

// Blob implements [Store]. The result is not changed.
func (s *MemoryStore) Blob(space, name [32]byte) ([]byte, error) {
	return s.blobs[[2][32]byte{space, name}].data, nil
}

// DropBlobs implements [Store].
func (s *MemoryStore) DropBlobs(space [32]byte, names [][32]byte) error {
	for _, name := range names {
		delete(s.blobs, [2][32]byte{space, name})
	}
	return nil
}

// SyncBlobs implements [Store].
func (s *MemoryStore) SyncBlobs() error { return nil }
