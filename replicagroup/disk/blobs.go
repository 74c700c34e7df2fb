package disk

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"latchkey/replicagroup"
)

// Blobs are what others than replicas keep in the store: values of up to [BlobBytesMax] under a space and a name, each with a short note that is
// read when the store is opened. Their users know what they are, and check them. A blob that is lost or altered ends nothing: it is an error of the
// call that reads it.

// BlobBytesMax bounds a blob.
const BlobBytesMax = 1 << 20

const blobKeyBytes = 1 + 32 + 32

func blobKey(kind byte, space, name [32]byte) []byte {
	k := append(make([]byte, 0, blobKeyBytes), kind)
	return append(append(k, space[:]...), name[:]...)
}

// Blobs calls f with the note of every blob, valid until f returns.
func (s *Store) Blobs(f func(space, name [32]byte, note []byte)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return err
	}
	return s.each(keyNote, keyNote, func(key, note []byte) error {
		if len(key) != blobKeyBytes {
			return damaged("key %.32x is of no kind", key)
		}
		f([32]byte(key[1:33]), [32]byte(key[33:]), note)
		return nil
	})
}

// PutBlob stores a blob and its note; with a nil blob, the note of one that is there. It may be lost in a crash until [Store.SyncBlobs] has returned.
func (s *Store) PutBlob(space, name [32]byte, note, blob []byte) error {
	if len(blob) > BlobBytesMax || len(note) > BlobBytesMax {
		return fmt.Errorf("%w: %w: blob of %d bytes, at most %d", replicagroup.ErrStore, replicagroup.ErrTooLarge, len(blob), BlobBytesMax)
	}
	return s.writeBlobs(false, func(b *pebble.Batch) error {
		if blob != nil {
			if err := b.Set(blobKey(keyBlob, space, name), blob, nil); err != nil {
				return err
			}
		}
		return put(b, blobKey(keyNote, space, name), note)
	})
}

// Blob returns a blob, nil when there is none.
func (s *Store) Blob(space, name [32]byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return nil, err
	}
	v, closer, err := s.db.Get(blobKey(keyBlob, space, name))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, readError(err)
	}
	defer closer.Close()
	return append([]byte{}, v...), nil
}

// DropBlobs deletes blobs of a space, and their notes.
func (s *Store) DropBlobs(space [32]byte, names [][32]byte) error {
	return s.writeBlobs(false, func(b *pebble.Batch) error {
		for _, name := range names {
			for _, kind := range [...]byte{keyNote, keyBlob} {
				if err := b.Delete(blobKey(kind, space, name), nil); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// SyncBlobs has everything on the disk that was put and dropped before.
func (s *Store) SyncBlobs() error {
	return s.writeBlobs(true, func(b *pebble.Batch) error { return b.LogData(nil, nil) })
}

func (s *Store) writeBlobs(sync bool, fill func(*pebble.Batch) error) error {
	s.mu.Lock()
	if err := s.usable(); err != nil {
		s.mu.Unlock()
		return err
	}
	b := s.db.NewBatch()
	if err := fill(b); err != nil {
		s.mu.Unlock()
		return errors.Join(err, b.Close())
	}
	s.apply(b, sync)
	s.mu.Unlock()
	return s.settle(b, sync)
}
