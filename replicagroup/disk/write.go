package disk

import (
	"errors"
	"fmt"
	"math"

	"github.com/cockroachdb/pebble/v2"

	"latchkey/replicagroup"
	"latchkey/replicagroup/order"
)

// replica is what an open store remembers of a replica, so that writing needs no reading.
type replica struct {
	slot uint64
	self order.ReplicaID

	loaded bool   // extent is known
	extent extent // as of the last batch that was applied

	staged  extent // as of the batch that is being made
	touched bool   // staged counts
}

// extent says which keys a replica has.
type extent struct {
	first, next uint64 // entries first to next-1
	chunks      uint32 // of the snapshot
}

func (e extent) empty() bool { return e.first == e.next }

// errGap is what a store answers to records that do not continue what it has.
var errGap = errors.New("disk: entries do not continue the stored log")

// Write implements [replicagroup.Store]: all groups' records become one batch of the database and, with sync set, one sync,
// which concurrent callers share. Records that make no sense are refused, none of the batch is written then, and the store
// stays usable. After any other error the store has failed.
//
// One Write takes records of up to [BatchBytesMax] and snapshots of up to [SnapshotBytesMax].
func (s *Store) Write(batch []replicagroup.Write, sync bool) error {
	if err := fits(batch); err != nil {
		return err
	}
	s.mu.Lock()
	if err := s.usable(); err != nil {
		s.mu.Unlock()
		return err
	}
	b := s.db.NewBatch()
	err := s.stage(b, batch)
	if err == nil && sync && b.Empty() {
		err = b.LogData(nil, nil) // there may be something unsynced before it
	}
	if err != nil {
		s.forget()
		s.mu.Unlock()
		return errors.Join(fmt.Errorf("%w: %w", replicagroup.ErrStore, err), b.Close())
	}
	s.apply(b, sync)
	for _, r := range s.touched {
		r.extent = r.staged
	}
	s.forget()
	s.mu.Unlock()
	return s.settle(b, sync)
}

// fits refuses a batch that is too large.
func fits(batch []replicagroup.Write) error {
	total := 0
	for _, w := range batch {
		for _, r := range w.Records {
			if total += len(r.Data) + 64; total > BatchBytesMax || len(r.Data) > SnapshotBytesMax {
				return fmt.Errorf("%w: %w: group %v: record of %d bytes in a batch of at least %d (at most %d and %d)",
					replicagroup.ErrStore, replicagroup.ErrTooLarge, w.Group, len(r.Data), total, SnapshotBytesMax, BatchBytesMax)
			}
		}
	}
	return nil
}

// stage adds records to a batch. The replicas it touches know what they will have.
func (s *Store) stage(b *pebble.Batch, batch []replicagroup.Write) error {
	for _, w := range batch {
		r, ok := s.replicaOf(w.Group)
		if !ok {
			return fmt.Errorf("no replica of group %v was created", w.Group)
		}
		if err := s.load(r); err != nil {
			s.fence.fail(err)
			return err
		}
		if !r.touched {
			r.touched, r.staged = true, r.extent
			s.touched = append(s.touched, r)
		}
		for _, rec := range w.Records {
			if err := r.put(b, rec, s.o.chunkBytes); err != nil {
				return fmt.Errorf("group %v, record at %d: %w", w.Group, rec.Index, err)
			}
		}
	}
	return nil
}

// forget ends what stage began.
func (s *Store) forget() {
	for _, r := range s.touched {
		r.touched = false
	}
	clear(s.touched)
	s.touched = s.touched[:0]
}

// put adds one record by the meaning of its kind (see [order.RecordKind]).
func (r *replica) put(b *pebble.Batch, rec order.Record, chunkBytes int) error {
	switch rec.Kind {
	case order.RecordState:
		return put(b, slotKey(r.slot, dataState), rec.Data)
	case order.RecordEntry:
		return r.putEntry(b, rec)
	case order.RecordSnapshot:
		return r.putSnapshot(b, rec, chunkBytes)
	}
	return fmt.Errorf("unknown kind %d", rec.Kind)
}

func (r *replica) putEntry(b *pebble.Batch, rec order.Record) error {
	e := &r.staged
	switch {
	case rec.Index == math.MaxUint64:
		return errors.New("no index after it")
	case e.empty():
		e.first = rec.Index
	case rec.Index < e.first || rec.Index > e.next:
		return fmt.Errorf("%w: have %d to %d", errGap, e.first, e.next-1)
	default:
		if err := r.dropEntries(b, rec.Index+1, e.next); err != nil {
			return err
		}
	}
	e.next = rec.Index + 1
	return put(b, entryKey(r.slot, rec.Index), rec.Data)
}

// dropEntries deletes the entries from to to-1, if there are any.
func (r *replica) dropEntries(b *pebble.Batch, from, to uint64) error {
	switch {
	case from >= to:
		return nil
	case from+1 == to:
		return b.Delete(entryKey(r.slot, from), nil)
	}
	return drop(b, entryKey(r.slot, from), entryKey(r.slot, to))
}

func (r *replica) putSnapshot(b *pebble.Batch, rec order.Record, chunkBytes int) error {
	h, e, rest := headOf(rec, chunkBytes), &r.staged, rec.Data
	for n := range h.chunks {
		chunk := rest[:min(chunkBytes, len(rest))]
		rest = rest[len(chunk):]
		if err := put(b, chunkKey(r.slot, n), chunk); err != nil {
			return err
		}
	}
	if h.chunks < e.chunks {
		if err := drop(b, chunkKey(r.slot, h.chunks), chunkKey(r.slot, e.chunks)); err != nil {
			return err
		}
	}
	e.chunks = h.chunks
	if err := put(b, slotKey(r.slot, dataHead), h.encode()); err != nil {
		return err
	}
	if e.empty() || rec.Index < e.first {
		return nil
	}
	from := e.first
	if rec.Index >= e.next-1 {
		e.first = e.next
	} else {
		e.first = rec.Index + 1
	}
	return r.dropEntries(b, from, e.first)
}

// load finds out what a replica has, once.
func (s *Store) load(r *replica) error {
	if r.loaded {
		return nil
	}
	var e extent
	key := slotKey(r.slot, dataHead)
	switch v, closer, err := s.db.Get(key); {
	case errors.Is(err, pebble.ErrNotFound):
	case err != nil:
		return readError(err)
	default:
		head, err := readHead(key, v)
		if err := errors.Join(err, closer.Close()); err != nil {
			return err
		}
		e.chunks = head.chunks
	}
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: slotKey(r.slot, dataEntry), UpperBound: slotKey(r.slot, dataEntry+1)})
	if err != nil {
		return readError(err)
	}
	defer it.Close()
	if it.First() {
		_, _, first, err := dataOf(it.Key())
		if err != nil {
			return err
		}
		it.Last()
		_, _, last, err := dataOf(it.Key())
		if err != nil {
			return err
		}
		e.first, e.next = first, last+1
	}
	if err := it.Error(); err != nil {
		return readError(err)
	}
	r.extent, r.loaded = e, true
	return nil
}

func readHead(key, value []byte) (snapshotHead, error) {
	v, err := open(key, value)
	if err != nil {
		return snapshotHead{}, err
	}
	return decodeHead(v)
}

// readError says what an error of reading the database means.
func readError(err error) error {
	if pebble.IsCorruptionError(err) {
		return rotten(err)
	}
	return err
}

// apply gives a batch its place after all earlier ones. The caller holds mu and calls settle afterwards, without it.
func (s *Store) apply(b *pebble.Batch, sync bool) {
	s.inflight.Add(1)
	var err error
	if sync {
		err = s.db.ApplyNoSyncWait(b, pebble.Sync)
	} else {
		err = s.db.Apply(b, pebble.NoSync)
	}
	if err != nil {
		s.fence.fail(err)
	}
}

// settle waits until an applied batch is where it should be.
func (s *Store) settle(b *pebble.Batch, sync bool) error {
	defer s.inflight.Done()
	if sync {
		if err := b.SyncWait(); err != nil {
			s.fence.fail(err)
		}
	}
	if err := b.Close(); err != nil {
		s.fence.fail(err)
	}
	return s.fence.failure()
}
