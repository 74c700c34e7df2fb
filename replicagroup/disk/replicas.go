package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"latchkey/replicagroup"
	"latchkey/replicagroup/order"
)

// Create implements [replicagroup.Store]. The replica is on the disk when it returns. An id that a retired or buried replica
// of the group had, or a lower one, is refused too. An earlier replica of the group is dropped with all its data.
func (s *Store) Create(id replicagroup.Identity) error {
	switch {
	case id.Group.Overlay != s.self.overlay:
		return fmt.Errorf("%w: group %v is of overlay %v, the store of overlay %v", ErrForeign, id.Group, id.Group.Overlay, s.self.overlay)
	case !id.Group.Prefix.Valid():
		return fmt.Errorf("disk: group %v has no valid prefix", id.Group)
	case len(id.Descriptor) > DescriptorBytesMax:
		return fmt.Errorf("disk: %w: descriptor of %d bytes (at most %d)", replicagroup.ErrTooLarge, len(id.Descriptor), DescriptorBytesMax)
	}
	return s.change(func(b *pebble.Batch) (func(), error) {
		used := s.tombstones[id.Group]
		old := s.replicas[id.Group.Life()]
		if old != nil {
			used = max(used, old.self)
		}
		if used >= id.Self {
			return nil, fmt.Errorf("disk: store %v already has had replica %d of group %v; %d would be used twice", s.self.id, used, id.Group, id.Self)
		}
		if old != nil {
			from, to := slotKeys(old.slot)
			if err := drop(b, from, to); err != nil {
				return nil, err
			}
		}
		r := &replica{slot: s.nextSlot, self: id.Self, loaded: true}
		l := listing{slot: r.slot, self: id.Self, descriptor: id.Descriptor}
		return func() { s.replicas[id.Group.Life()], s.nextSlot = r, s.nextSlot+1 }, put(b, groupKey(keyReplica, id.Group), l.encode())
	})
}

// Retire drops a group's replica: its log, state and snapshot are gone, and its id stays used. It is on the disk when Retire
// returns. It is idempotent; a group that never had a replica here is an error.
func (s *Store) Retire(g order.GroupID) error {
	return s.change(func(b *pebble.Batch) (func(), error) {
		r, ok := s.replicaOf(g)
		if !ok {
			return nil, s.gone(g)
		}
		from, to := slotKeys(r.slot)
		err := errors.Join(drop(b, from, to), b.Delete(groupKey(keyReplica, g), nil), s.bar(b, g, r.self))
		return func() { s.remove(g) }, err
	})
}

// Retired implements [replicagroup.Store]. Buried replicas are among them. It does not read the disk.
func (s *Store) Retired() (map[order.GroupID]order.ReplicaID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return nil, err
	}
	return maps.Clone(s.tombstones), nil
}

// Bury puts a group's replica aside: it is not among [Store.Replicas] any more and takes no writes, its id stays used, and
// its data stays until [Store.Purge], or until there are more than [replicagroup.GravesMax], of which the one that was buried first goes.
// So members of a generation that is over keep what they knew. It is on the disk when Bury returns. It is idempotent; a group that never had a replica here is an error.
func (s *Store) Bury(g order.GroupID) error {
	return s.change(func(b *pebble.Batch) (func(), error) {
		r, ok := s.replicaOf(g)
		if !ok {
			return nil, s.gone(g)
		}
		d, err := s.burialOf(r.slot)
		if err != nil {
			return nil, err
		}
		first, err := s.room(b)
		if err != nil {
			return nil, err
		}
		return func() {
			if first != nil {
				delete(s.graves, *first)
			}
			s.graves[grave{g, r.self}] = d
			s.remove(g)
		}, errors.Join(s.bury(b, g), put(b, burialKey(g, r.self), d.encode()))
	})
}

// burialOf makes the burial, now, of the replica in a slot.
func (s *Store) burialOf(slot uint64) (burial, error) {
	d := burial{slot: slot, at: time.Now()}
	from, to := slotKeys(slot)
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: to})
	if err != nil {
		return d, readError(err)
	}
	defer it.Close()
	for it.First(); it.Valid(); it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return d, readError(err)
		}
		d.bytes += int64(len(it.Key()) + len(v))
	}
	if err := it.Error(); err != nil {
		return d, readError(err)
	}
	return d, nil
}

// room adds to a batch what makes room for one more grave, and returns which one goes, if any.
func (s *Store) room(b *pebble.Batch) (*grave, error) {
	if len(s.graves) < replicagroup.GravesMax {
		return nil, nil
	}
	all := make([]replicagroup.Grave, 0, len(s.graves))
	for g, d := range s.graves {
		all = append(all, replicagroup.Grave{Identity: replicagroup.Identity{Group: g.group, Self: g.self}, Buried: d.at})
	}
	slices.SortFunc(all, replicagroup.ByGrave)
	first := all[replicagroup.Oldest(all)]
	g := grave{first.Group, first.Self}
	return &g, s.purge(b, g)
}

// purge adds to a batch what removes a buried replica.
func (s *Store) purge(b *pebble.Batch, g grave) error {
	from, to := slotKeys(s.graves[g].slot)
	return errors.Join(drop(b, from, to), b.Delete(graveKey(g.group, g.self), nil), b.Delete(burialKey(g.group, g.self), nil))
}

// bury adds to a batch what makes a replica a buried one.
func (s *Store) bury(b *pebble.Batch, g order.GroupID) error {
	v, err := s.get(groupKey(keyReplica, g))
	if err != nil {
		return err
	}
	self := s.replicas[g.Life()].self
	return errors.Join(b.Delete(groupKey(keyReplica, g), nil), put(b, graveKey(g, self), v), s.bar(b, g, self))
}

// bar adds to a batch that ids up to this one are used.
func (s *Store) bar(b *pebble.Batch, g order.GroupID, id order.ReplicaID) error {
	return put(b, groupKey(keyTombstone, g), binary.BigEndian.AppendUint64(nil, uint64(max(id, s.tombstones[g]))))
}

// replicaOf returns what is known of a group's replica. The store has only those of its own overlay.
func (s *Store) replicaOf(g order.GroupID) (*replica, bool) {
	r, ok := s.replicas[g.Life()]
	return r, ok && g.Overlay == s.self.overlay
}

// gone answers a request to remove a replica that is not there.
func (s *Store) gone(g order.GroupID) error {
	if _, ok := s.tombstones[g]; ok {
		return errNothing
	}
	return fmt.Errorf("disk: no replica of group %v was created in store %v", g, s.self.id)
}

// remove takes a replica out of the directory in memory.
func (s *Store) remove(g order.GroupID) {
	s.tombstones[g] = max(s.replicas[g.Life()].self, s.tombstones[g])
	delete(s.replicas, g.Life())
}

// errNothing says that there is nothing to change.
var errNothing = errors.New("nothing to change")

// change writes and syncs what plan adds to a batch, then calls what it returned, before anybody else sees the store.
func (s *Store) change(plan func(*pebble.Batch) (func(), error)) error {
	s.mu.Lock()
	if err := s.usable(); err != nil {
		s.mu.Unlock()
		return err
	}
	b := s.db.NewBatch()
	done, err := plan(b)
	if err != nil {
		s.mu.Unlock()
		err = errors.Join(err, b.Close())
		if errors.Is(err, ErrDamaged) {
			s.fence.fail(err)
		}
		if failure := s.fence.failure(); failure != nil {
			return failure
		}
		if errors.Is(err, errNothing) {
			return nil
		}
		return err
	}
	s.apply(b, true)
	done()
	s.mu.Unlock()
	return s.settle(b, true)
}

// Replicas implements [replicagroup.Store]. It reads the whole store and checks every record of it. Buried replicas are left
// out. Errors match [replicagroup.ErrStore], and [ErrDamaged] when a record is not what was written; the store has failed then.
func (s *Store) Replicas() ([]replicagroup.StoredReplica, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return nil, err
	}
	all, err := s.readReplicas()
	if err != nil {
		s.fence.fail(err)
		return nil, s.fence.failure()
	}
	return all, nil
}

func (s *Store) readReplicas() ([]replicagroup.StoredReplica, error) {
	all := make([]replicagroup.StoredReplica, 0, len(s.replicas))
	at := make(map[uint64]int, len(s.replicas)) // by slot
	for g, r := range s.replicas {
		at[r.slot] = len(all)
		all = append(all, replicagroup.StoredReplica{Identity: replicagroup.Identity{Group: g.In(s.self.overlay), Self: r.self}})
		r.extent, r.loaded = extent{}, true
	}
	err := s.each(keyReplica, keyReplica, func(key, value []byte) error {
		l, err := decodeListing(value)
		if err != nil {
			return err
		}
		i, ok := at[l.slot]
		if !ok || all[i].Self != l.self {
			return damaged("replica %x has changed", key)
		}
		all[i].Descriptor = append([]byte{}, l.descriptor...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	buried := make(map[uint64]bool, len(s.graves))
	for _, d := range s.graves {
		buried[d.slot] = true
	}
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: []byte{keyData}})
	if err != nil {
		return nil, readError(err)
	}
	defer it.Close()
	for it.First(); it.Valid(); {
		slot, _, _, err := dataOf(it.Key())
		if err != nil {
			return nil, err
		}
		if buried[slot] {
			it.SeekGE(slotKey(slot+1, 0))
			continue
		}
		i, ok := at[slot]
		if !ok {
			return nil, damaged("data in slot %d, which nobody owns", slot)
		}
		r := s.replicas[all[i].Group.Life()]
		if all[i].Image, r.extent, err = readImage(it, slot); err != nil {
			return nil, fmt.Errorf("group %v: %w", all[i].Group, err)
		}
	}
	if err := it.Error(); err != nil {
		return nil, readError(err)
	}
	slices.SortFunc(all, func(a, b replicagroup.StoredReplica) int { return a.Group.Compare(b.Group) })
	return all, nil
}

func (s *Store) listing(key []byte) (listing, error) {
	v, err := s.get(key)
	if err != nil {
		return listing{}, err
	}
	return decodeListing(v)
}

// readImage reads everything of a slot, at which the iterator stands, and leaves it behind that.
func readImage(it *pebble.Iterator, slot uint64) (im order.Image, e extent, err error) {
	var head snapshotHead
	for ; it.Valid(); it.Next() {
		at, kind, number, err := dataOf(it.Key())
		if err != nil {
			return im, e, err
		}
		if at != slot {
			break
		}
		v, err := it.ValueAndErr()
		if err != nil {
			return im, e, readError(err)
		}
		if v, err = open(it.Key(), v); err != nil {
			return im, e, err
		}
		switch kind {
		case dataState:
			im.State = append([]byte{}, v...)
		case dataHead:
			if head, err = decodeHead(v); err != nil {
				return im, e, err
			}
			im.Snapshot = &order.Record{Kind: order.RecordSnapshot, Index: head.index, Data: []byte{}}
		case dataChunk:
			// The buffer grows with what is there, whatever the head says.
			if im.Snapshot == nil || number != uint64(e.chunks) || e.chunks >= head.chunks || len(v) > ChunkBytesMax {
				return im, e, damaged("snapshot chunk %d after %d of %d", number, e.chunks, head.chunks)
			}
			im.Snapshot.Data = append(im.Snapshot.Data, v...)
			e.chunks++
		case dataEntry:
			switch {
			case e.empty():
				e.first = number
			case number != e.next:
				return im, e, damaged("entry %d follows entry %d", number, e.next-1)
			}
			e.next = number + 1
			im.Entries = append(im.Entries, order.Record{Kind: order.RecordEntry, Index: number, Data: append([]byte{}, v...)})
		}
	}
	if err := it.Error(); err != nil {
		return im, e, readError(err)
	}
	if im.Snapshot != nil {
		d := im.Snapshot.Data
		if e.chunks != head.chunks || uint64(len(d)) != head.length || crc32.Checksum(d, castagnoli) != head.crc {
			return im, e, damaged("snapshot at %d: %d of %d bytes in %d of %d chunks, or another content", head.index, len(d), head.length, e.chunks, head.chunks)
		}
	}
	return im, e, nil
}

// Graves implements [replicagroup.Graveyard].
func (s *Store) Graves() ([]replicagroup.Grave, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return nil, err
	}
	var all []replicagroup.Grave
	for g, d := range s.graves {
		l, err := s.listing(graveKey(g.group, g.self))
		if err != nil {
			s.fence.fail(err)
			return nil, s.fence.failure()
		}
		id := replicagroup.Identity{Group: g.group, Self: g.self, Descriptor: l.descriptor}
		all = append(all, replicagroup.Grave{Identity: id, Buried: d.at, Bytes: d.bytes})
	}
	slices.SortFunc(all, replicagroup.ByGrave)
	return all, nil
}

// Exhume returns what a buried replica knew. It stays buried.
func (s *Store) Exhume(g order.GroupID, self order.ReplicaID) (replicagroup.StoredReplica, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := replicagroup.StoredReplica{Identity: replicagroup.Identity{Group: g, Self: self}}
	if err := s.usable(); err != nil {
		return r, err
	}
	d, ok := s.graves[grave{g, self}]
	if !ok {
		return r, fmt.Errorf("disk: replica %d of group %v is not buried in store %v", self, g, s.self.id)
	}
	err := func() error {
		l, err := s.listing(graveKey(g, self))
		if err != nil {
			return err
		}
		r.Descriptor = l.descriptor
		from, to := slotKeys(d.slot)
		it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: to})
		if err != nil {
			return readError(err)
		}
		defer it.Close()
		it.First()
		r.Image, _, err = readImage(it, d.slot)
		return err
	}()
	if err != nil {
		s.fence.fail(err)
		return r, s.fence.failure()
	}
	return r, nil
}

// Purge drops a buried replica with its data. Its id stays used. It is on the disk when Purge returns. It is idempotent.
func (s *Store) Purge(g order.GroupID, self order.ReplicaID) error {
	return s.change(func(b *pebble.Batch) (func(), error) {
		d := grave{g, self}
		if _, ok := s.graves[d]; !ok {
			return nil, errNothing
		}
		return func() { delete(s.graves, d) }, s.purge(b, d)
	})
}
