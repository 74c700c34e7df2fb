package replicagroup

import (
	"fmt"
	"slices"

	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
)

// MemoryImage is what a [MemoryStore] held at one moment.
type MemoryImage struct {
	ID       order.StoreID
	Starts   uint64          // that have used it
	Replicas []StoredReplica // by group
	Retired  []RetiredReplica
}

// RetiredReplica is the highest id that a retired replica of a group had.
type RetiredReplica struct {
	Group order.GroupID
	Self  order.ReplicaID
}

// CopyMemory returns what several stores hold, of one testnet's peers, all as of one moment: what a peer has told others on the
// strength of its store by then is in its own image. Nobody writes meanwhile; readers wait too. Each store must be given once, by
// the handle that is attached.
//
// With one store after the other that would not be so: the image of the first could have forgotten what others had heard of it since.
func CopyMemory(stores ...*MemoryStore) ([]MemoryImage, error) {
	for i, s := range stores {
		if err := s.lockDisk(); err != nil {
			for _, locked := range stores[:i] {
				locked.disk.mu.Unlock()
			}
			return nil, err
		}
	}
	var all []MemoryImage
	for _, s := range stores {
		m := MemoryImage{ID: s.disk.id, Starts: s.disk.attached + 1, Replicas: s.disk.stored()}
		for g, id := range s.disk.used {
			m.Retired = append(m.Retired, RetiredReplica{g, id})
		}
		slices.SortFunc(m.Retired, func(a, b RetiredReplica) int { return a.Group.Compare(b.Group) })
		all = append(all, m)
	}
	for _, s := range stores {
		s.disk.mu.Unlock()
	}
	return all, nil
}

// NewMemoryStoreOf makes a store that holds what an image says. It takes over the image's slices. The store that the image was made
// of must not be used any more, or not in the same overlay: their replicas would be twins. An image that is none is refused.
func NewMemoryStoreOf(m MemoryImage) (*MemoryStore, error) {
	s := NewMemoryStoreAs(m.ID)
	s.disk.attached, s.lease = m.Starts, m.Starts // the next one is later than all these
	for _, r := range m.Replicas {
		if r.Group.Prefix.Len > keyspace.Size*8 {
			return nil, fmt.Errorf("replicagroup: image of store %v: a prefix of %d bits", m.ID, r.Group.Prefix.Len)
		}
		if err := s.Create(r.Identity); err != nil {
			return nil, err
		}
		w := Write{Group: r.Group}
		if r.Image.State != nil {
			w.Records = append(w.Records, order.Record{Kind: order.RecordState, Data: r.Image.State})
		}
		if r.Image.Snapshot != nil {
			w.Records = append(w.Records, *r.Image.Snapshot)
		}
		w.Records = append(w.Records, r.Image.Entries...)
		if err := s.Write([]Write{w}, true); err != nil {
			return nil, err
		}
	}
	for _, r := range m.Retired {
		s.disk.used[r.Group] = max(s.disk.used[r.Group], r.Self)
	}
	return s, nil
}

// stored returns the disk's replicas, by group. Called with mu held.
func (d *memoryDisk) stored() []StoredReplica {
	var all []StoredReplica
	for g, r := range d.replicas {
		all = append(all, StoredReplica{Identity: r.identity(g), Image: order.Image{
			State: r.state, Snapshot: r.snapshot, Entries: slices.Clone(r.entries),
		}})
	}
	slices.SortFunc(all, func(a, b StoredReplica) int { return a.Group.Compare(b.Group) })
	return all
}
