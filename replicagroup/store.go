package replicagroup

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"latchkey/replicagroup/order"
)

// Store keeps what replicas must not forget. One store belongs to one peer; its id names this life of it.
//
// Methods are safe for concurrent use. An error of any of them means that the store is no longer to be relied on.
type Store interface {
	// ID returns the random id the store got when it was empty.
	ID() order.StoreID
	// Replicas returns what every replica of this store had persisted, by group.
	Replicas() ([]StoredReplica, error)
	// Create records that a replica exists, before it persists anything. A group that was created here before, under whatever
	// replica id up to this one, is refused with an error: ids are never used twice.
	Create(r Identity) error
	// Retire drops a group's replica with all it has persisted; its id stays used. It is durable when Retire returns. It is
	// idempotent; a group that never had a replica here is an error.
	Retire(g order.GroupID) error
	// Bury puts a group's replica aside with all it has persisted: it is not among Replicas any more and takes no writes; its id
	// stays used. It is durable when Bury returns. It is idempotent; a group that never had a replica here is an error.
	Bury(g order.GroupID) error
	// Retired returns the groups whose replicas here were retired, each with the highest id of them.
	Retired() (map[order.GroupID]order.ReplicaID, error)
	// Write makes the records durable, all of them or none, in order; when sync is set they have reached the disk when it
	// returns. The store copies nothing: callers do not change the records afterwards.
	Write(batch []Write, sync bool) error
}

// Identity names a replica of a store: who it is in which group, and the descriptor it was started by.
type Identity struct {
	Group      order.GroupID
	Self       order.ReplicaID
	Descriptor []byte
}

// StoredReplica is one replica's part of a store.
type StoredReplica struct {
	Identity
	Image order.Image
}

// GravesMax bounds the replicas that a store keeps buried. Of one more, the one that was buried first is dropped: what was put aside is
// for an operator to look at, and must not fill a disk for ever.
const GravesMax = 256

// Grave is a replica that was buried.
type Grave struct {
	Identity
	Buried time.Time // zero: by a program that took no note of it
	Bytes  int64     // of what it had persisted, about; 0 likewise
}

// Graveyard is a [Store] that tells of its buried replicas. Both of ours are.
type Graveyard interface {
	// Graves returns who is buried, by group and id.
	Graves() ([]Grave, error)
	// Purge drops a buried replica with what it had persisted. Its id stays used. It is durable when Purge returns, and idempotent.
	Purge(g order.GroupID, self order.ReplicaID) error
}

// ByGrave orders graves by group and id.
func ByGrave(a, b Grave) int {
	return cmp.Or(a.Group.Compare(b.Group), cmp.Compare(a.Self, b.Self))
}

// Oldest returns which of the graves was buried first, -1 if there are none.
func Oldest(graves []Grave) int {
	first := -1
	for i, g := range graves {
		if first < 0 || g.Buried.Before(graves[first].Buried) {
			first = i
		}
	}
	return first
}

// Write is what one replica persists in one turn.
type Write struct {
	Group   order.GroupID
	Records []order.Record
}

// MemoryStore is a store in memory, for daemons without a disk and for testnets. It belongs to whoever keeps it, not to the
// peer that uses it: a testnet hands it to a restarted peer, which finds what the killed one had persisted and nothing else.
type MemoryStore struct {
	disk  *memoryDisk
	lease uint64 // which attachment of the disk this handle is
	nonce uint64 // of the start that uses it
}

type memoryDisk struct {
	id order.StoreID

	mu       sync.Mutex
	attached uint64
	replicas map[order.GroupID]*memoryReplica
	used     map[order.GroupID]order.ReplicaID // the highest id of a retired or buried replica
	graves   []memoryGrave                     // in the order of their burial
}

type memoryGrave struct {
	group order.GroupID
	*memoryReplica
	at    time.Time
	bytes int64
}

type memoryReplica struct {
	self       order.ReplicaID
	descriptor []byte
	state      []byte
	snapshot   *order.Record
	entries    []order.Record
}

// NewMemoryStore makes an empty store with a fresh id.
func NewMemoryStore() *MemoryStore {
	var id order.StoreID
	rand.Read(id[:])
	return NewMemoryStoreAs(id)
}

// NewMemoryStoreAs makes an empty store with a given id, which must be one that no store has borne: a founder's first store
// has the id that the genesis document names.
func NewMemoryStoreAs(id order.StoreID) *MemoryStore {
	return &MemoryStore{nonce: drawNonce(), disk: &memoryDisk{id: id, replicas: make(map[order.GroupID]*memoryReplica), used: make(map[order.GroupID]order.ReplicaID)}}
}

// Detach takes the disk away from whoever uses this or an earlier handle, in the midst of whatever they are doing, and
// returns a new handle on it. Every later operation of the old handles fails with [ErrStore] and leaves no trace: so a
// testnet makes sure that a killed peer writes no more.
func (s *MemoryStore) Detach() *MemoryStore {
	s.disk.mu.Lock()
	defer s.disk.mu.Unlock()
	s.disk.attached++
	return &MemoryStore{disk: s.disk, lease: s.disk.attached, nonce: drawNonce()}
}

// BootNonce names the start that uses this handle: each one, as [MemoryStore.Detach] returns them, is for another start.
func (s *MemoryStore) BootNonce() Boot { return Boot{s.lease + 1, s.nonce} }

func drawNonce() uint64 {
	var b [8]byte
	rand.Read(b[:])
	return max(binary.BigEndian.Uint64(b[:]), 1)
}

// ID implements [Store].
func (s *MemoryStore) ID() order.StoreID { return s.disk.id }

// ErrTakenOver is matched, beside [ErrStore], when a store has another user now: who is told so is the dead one of the two, and nothing
// is wrong with the store.
var ErrTakenOver = errors.New("taken over")

// lockDisk locks the disk for this handle; the caller unlocks it when there was no error.
func (s *MemoryStore) lockDisk() error {
	s.disk.mu.Lock()
	if s.lease != s.disk.attached {
		s.disk.mu.Unlock()
		return fmt.Errorf("%w: %w by a later start of its peer: store %v", ErrStore, ErrTakenOver, s.disk.id)
	}
	return nil
}

// Replicas implements [Store].
func (s *MemoryStore) Replicas() ([]StoredReplica, error) {
	if err := s.lockDisk(); err != nil {
		return nil, err
	}
	defer s.disk.mu.Unlock()
	return s.disk.stored(), nil
}

// Create implements [Store].
func (s *MemoryStore) Create(id Identity) error {
	if err := s.lockDisk(); err != nil {
		return err
	}
	defer s.disk.mu.Unlock()
	used := s.disk.used[id.Group]
	if old, ok := s.disk.replicas[id.Group]; ok {
		used = max(used, old.self)
	}
	if used >= id.Self {
		return fmt.Errorf("replicagroup: store %v already has had replica %d of group %v; %d would be used twice",
			s.disk.id, used, id.Group, id.Self)
	}
	s.disk.replicas[id.Group] = &memoryReplica{self: id.Self, descriptor: id.Descriptor}
	return nil
}

// Retire implements [Store].
func (s *MemoryStore) Retire(g order.GroupID) error { return s.remove(g, false) }

// Bury implements [Store].
func (s *MemoryStore) Bury(g order.GroupID) error { return s.remove(g, true) }

// Graves implements [Graveyard].
func (s *MemoryStore) Graves() ([]Grave, error) {
	if err := s.lockDisk(); err != nil {
		return nil, err
	}
	defer s.disk.mu.Unlock()
	var all []Grave
	for _, r := range s.disk.graves {
		all = append(all, Grave{Identity: r.identity(r.group), Buried: r.at, Bytes: r.bytes})
	}
	slices.SortFunc(all, ByGrave)
	return all, nil
}

// Purge implements [Graveyard].
func (s *MemoryStore) Purge(g order.GroupID, self order.ReplicaID) error {
	if err := s.lockDisk(); err != nil {
		return err
	}
	defer s.disk.mu.Unlock()
	s.disk.graves = slices.DeleteFunc(s.disk.graves, func(r memoryGrave) bool { return r.group == g && r.self == self })
	return nil
}

func (r *memoryReplica) identity(g order.GroupID) Identity {
	return Identity{Group: g, Self: r.self, Descriptor: r.descriptor}
}

// size is about how much a replica has persisted.
func (r *memoryReplica) size() int64 {
	n := len(r.state) + len(r.descriptor)
	if r.snapshot != nil {
		n += len(r.snapshot.Data)
	}
	for _, e := range r.entries {
		n += len(e.Data)
	}
	return int64(n)
}

func (s *MemoryStore) remove(g order.GroupID, aside bool) error {
	if err := s.lockDisk(); err != nil {
		return err
	}
	defer s.disk.mu.Unlock()
	r, ok := s.disk.replicas[g]
	if !ok {
		if _, was := s.disk.used[g]; was {
			return nil
		}
		return fmt.Errorf("replicagroup: no replica of group %v was created in store %v", g, s.disk.id)
	}
	if aside {
		if n := len(s.disk.graves); n >= GravesMax {
			s.disk.graves = slices.Delete(s.disk.graves, 0, n-GravesMax+1)
		}
		s.disk.graves = append(s.disk.graves, memoryGrave{g, r, time.Now(), r.size()})
	}
	s.disk.used[g] = r.self
	delete(s.disk.replicas, g)
	return nil
}

// Retired implements [Store].
func (s *MemoryStore) Retired() (map[order.GroupID]order.ReplicaID, error) {
	if err := s.lockDisk(); err != nil {
		return nil, err
	}
	defer s.disk.mu.Unlock()
	return maps.Clone(s.disk.used), nil
}

// errGap is what a store answers to records that do not continue what it has.
var errGap = errors.New("replicagroup: entries do not continue the stored log")

// Write implements [Store]. Memory needs no sync.
func (s *MemoryStore) Write(batch []Write, sync bool) error {
	if err := s.lockDisk(); err != nil {
		return err
	}
	defer s.disk.mu.Unlock()
	for _, w := range batch {
		r, ok := s.disk.replicas[w.Group]
		if !ok {
			return fmt.Errorf("%w: no replica of group %v was created", ErrStore, w.Group)
		}
		for _, rec := range w.Records {
			if err := r.put(rec); err != nil {
				return fmt.Errorf("%w: group %v, record at %d: %w", ErrStore, w.Group, rec.Index, err)
			}
		}
	}
	return nil
}

// put applies one record by the meaning of its kind (see [order.RecordKind]).
func (r *memoryReplica) put(rec order.Record) error {
	switch rec.Kind {
	case order.RecordState:
		r.state = rec.Data
	case order.RecordEntry:
		if n := len(r.entries); n > 0 {
			first, next := r.entries[0].Index, r.entries[n-1].Index+1
			if rec.Index < first || rec.Index > next {
				return fmt.Errorf("%w: have %d to %d", errGap, first, next-1)
			}
			r.entries = r.entries[:rec.Index-first]
		}
		if n := len(r.entries); n < 8 { // there may be ten thousand short logs, and each takes what it needs
			r.entries = append(make([]order.Record, 0, n+1), r.entries...)
		}
		r.entries = append(r.entries, rec)
	case order.RecordSnapshot:
		r.snapshot = &order.Record{Kind: rec.Kind, Index: rec.Index, Data: rec.Data}
		keep := 0
		for keep < len(r.entries) && r.entries[keep].Index <= rec.Index {
			keep++
		}
		// A copy lets the dropped entries go.
		r.entries = slices.Clone(r.entries[keep:])
	default:
		return fmt.Errorf("unknown kind %d", rec.Kind)
	}
	return nil
}
