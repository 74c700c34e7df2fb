package disk

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"latchkey/replicagroup"
	"latchkey/replicagroup/order"
)

// Options say what store is expected.
type Options struct {
	Overlay order.OverlayID // whose store it must be

	moved bool // see [Adopt]

	// For tests.
	fs            vfs.FS              // nil: the file system
	fileID        func(string) uint64 // nil: fileID, on the file system
	reclaimAfter  time.Duration       // zero: reclaimAfter
	memtableBytes uint64              // zero: memtableBytes
	chunkBytes    int                 // zero: ChunkBytesMax
	noCompactions bool
}

func (o Options) fill() Options {
	if o.fs == nil {
		o.fs = vfs.Default
		if o.fileID == nil {
			o.fileID = fileID
		}
	}
	if o.fileID == nil {
		o.fileID = func(string) uint64 { return 0 }
	}
	if o.chunkBytes == 0 {
		o.chunkBytes = ChunkBytesMax
	}
	return o
}

// Boot names one opening of a store.
type Boot = replicagroup.Boot

// Store keeps replicas on disk. It implements [replicagroup.Store]. Safe for concurrent use.
type Store struct {
	dir    string
	o      Options
	fence  *fence
	lock   *pebble.Lock
	self   record // as it is in the database
	marker marker // as STORE was found

	closing  chan struct{} // closed by Close
	watching sync.WaitGroup
	inflight sync.WaitGroup // batches that were applied and are not settled

	mu         sync.Mutex // also gives batches their order
	closed     bool
	db         *pebble.DB // nil once shut
	replicas   map[order.Life]*replica
	tombstones map[order.GroupID]order.ReplicaID
	graves     map[grave]burial
	nextSlot   uint64
	touched    []*replica // while mu is held
}

var _ replicagroup.Store = (*Store)(nil)

// grave names a buried replica.
type grave struct {
	group order.GroupID
	self  order.ReplicaID
}

// Create makes an empty store in a directory, which it makes too if there is none. A zero id stands for a random one; any
// other must be one that no store has borne: a founder's first store has the id that the genesis document names.
//
// A directory that holds a store matches [fs.ErrExist]. What an interrupted Create left is started anew.
func Create(dir string, overlay order.OverlayID, id order.StoreID) error {
	return create(dir, id, Options{Overlay: overlay}.fill())
}

func create(dir string, id order.StoreID, o Options) (err error) {
	if id == (order.StoreID{}) {
		id = newID()
	}
	f := newFence(o.fs, dir)
	defer func() {
		if failure := f.failure(); failure != nil {
			err = failure
		}
		if err != nil {
			err = fmt.Errorf("disk: cannot create a store in %s: %w", dir, err)
		}
	}()
	if err := errors.Join(f.MkdirAll(dir, 0o700), f.failure()); err != nil {
		return err
	}
	lock, err := lockDir(f, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if err := f.prepare(dir); err != nil {
		return err
	}
	unfinished := f.PathJoin(dir, unfinishedFile)
	err = errors.Join(syncDir(f, f.PathDir(dir)), writeSmall(f, unfinished, marker{overlay: o.Overlay}.encode()), syncDir(f, dir))
	if err != nil {
		return err
	}
	po := o.pebble(f, lock)
	po.ErrorIfExists = true
	db, err := pebble.Open(dir, po)
	if err != nil {
		return err
	}
	b := db.NewBatch()
	self := record{overlay: o.Overlay, id: id, file: o.fileID(unfinished)}
	err = errors.Join(put(b, storeKey, self.encode()), b.Commit(pebble.Sync), b.Close())
	if err = errors.Join(err, db.Close()); err != nil {
		return err
	}
	return errors.Join(f.Rename(unfinished, f.PathJoin(dir, markerFile)), syncDir(f, dir))
}

// prepare refuses a directory that holds anything, and removes what an interrupted create left.
func (f *fence) prepare(dir string) error {
	names, err := f.List(dir)
	if err != nil {
		return err
	}
	has := make(map[string]bool)
	for _, name := range names {
		has[name] = true
	}
	delete(has, lockFile)
	switch {
	case has[markerFile]:
		return fmt.Errorf("it holds one already: %w", fs.ErrExist)
	case has[unfinishedFile]:
		delete(has, unfinishedFile)
		for name := range has {
			if err := f.Remove(f.PathJoin(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return syncDir(f, dir)
	case len(has) > 0:
		return fmt.Errorf("it is not empty and holds no store: name an empty directory, or none: %w", fs.ErrExist)
	}
	return nil
}

func newID() (id order.StoreID) {
	rand.Read(id[:])
	return id
}

// Open opens the store in a directory and draws its [Boot]. The directory stays locked until Close.
//
// Errors match [fs.ErrNotExist] (no store there, or one whose Create was interrupted), [ErrForeign], [ErrVersion],
// [ErrInUse], [ErrDamaged], [ErrCopied], or [replicagroup.ErrStore] when the disk fails.
func Open(dir string, o Options) (*Store, error) { return openStore(dir, o.fill(), false) }

// Reidentify gives a store that was copied, restored or moved a new id, which it returns, and buries its replicas: what they
// promised under the old id binds them no more, and what they knew can still be read. The peer joins its groups anew.
func Reidentify(dir string, o Options) (order.StoreID, error) {
	s, err := openStore(dir, o.fill(), true)
	if err != nil {
		return order.StoreID{}, err
	}
	return s.ID(), s.Close()
}

// Adopt makes the store of a directory that was moved in a way that looks like a copy, to another machine or file system, one that
// [Open] takes. Who calls it vouches that the original has not run since and never will again: two that run under one id can
// vote against each other, which loses acknowledged commands. A copy whose files are of different ages is refused all the
// same. Errors are those of Open.
func Adopt(dir string, o Options) error {
	o.moved = true
	s, err := openStore(dir, o.fill(), false)
	if err != nil {
		return err
	}
	return s.Close()
}

func openStore(dir string, o Options, anew bool) (*Store, error) {
	f := newFence(o.fs, dir)
	s := &Store{
		dir: dir, o: o, fence: f, closing: make(chan struct{}),
		replicas: make(map[order.Life]*replica), tombstones: make(map[order.GroupID]order.ReplicaID), graves: make(map[grave]burial),
	}
	err := s.open(anew)
	if failure := f.failure(); failure != nil {
		err = failure
	}
	if err != nil {
		s.closed = true
		s.shut()
		if s.lock != nil {
			s.lock.Close()
		}
		return nil, fmt.Errorf("%w; store directory %s", err, dir)
	}
	s.watching.Go(s.watch)
	return s, nil
}

// open does the work of openStore, which cleans up after it.
func (s *Store) open(anew bool) error {
	f := s.fence
	if _, err := f.Stat(f.PathJoin(s.dir, markerFile)); err != nil {
		return s.absent(err)
	}
	var err error
	if s.lock, err = lockDir(f, s.dir); err != nil {
		return err
	}
	m, err := s.readMarker()
	if err != nil {
		return err
	}
	// A store of version 1 has no FILES before it is opened.
	if err := f.ledger.read(f); errors.Is(err, fs.ErrNotExist) && m.version > 1 {
		return damaged("there is no file %s beside %s", filesFile, markerFile)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := errors.Join(s.checkClean(), s.checkTail()); err != nil {
		return err
	}
	po := s.o.pebble(f, s.lock)
	po.ErrorIfNotExists = true
	if s.db, err = pebble.Open(s.dir, po); err != nil {
		if f.failure() == nil {
			err = rotten(err)
		}
		return err
	}
	if err := s.readSelf(m, anew); err != nil {
		return err
	}
	if err := s.readDirectory(); err != nil {
		return err
	}
	return s.begin(anew)
}

// absent says what is in a directory without STORE.
func (s *Store) absent(cause error) error {
	if !errors.Is(cause, fs.ErrNotExist) {
		return cause
	}
	cause = fmt.Errorf("disk: no store: %w", cause)
	names, err := s.o.fs.List(s.dir)
	if err != nil {
		return cause
	}
	if slices.Contains(names, unfinishedFile) {
		return fmt.Errorf("disk: no store: its creation was interrupted before anything was stored, create it again: %w", fs.ErrNotExist)
	}
	for _, name := range names {
		if name != lockFile {
			return damaged("there is no file %s beside %s", markerFile, name)
		}
	}
	return cause
}

func lockDir(f *fence, dir string) (*pebble.Lock, error) {
	lock, err := pebble.LockDirectory(dir, f)
	if err == nil {
		return lock, nil
	}
	// A lock that is held is a bare error number or text; what cannot be opened names its path.
	if path := (*fs.PathError)(nil); errors.As(err, &path) {
		return nil, failed(err)
	}
	if number := syscall.Errno(0); errors.As(err, &number) || err.Error() == "lock held by current process" {
		return nil, fmt.Errorf("%w: stop the process that uses %s first: %w", ErrInUse, dir, err)
	}
	return nil, failed(err)
}

// readMarker checks that the directory is what it should be, before anything in it changes.
func (s *Store) readMarker() (marker, error) {
	b, err := readSmall(s.fence, s.fence.PathJoin(s.dir, markerFile), smallBytesMax)
	if err != nil {
		return marker{}, err
	}
	m, err := decodeMarker(b)
	if err != nil {
		return m, fmt.Errorf("%s: %w", markerFile, err)
	}
	if m.overlay != s.o.Overlay {
		return m, fmt.Errorf("%w: it is of overlay %v and this is overlay %v: use the directory of this overlay, or a new one", ErrForeign, m.overlay, s.o.Overlay)
	}
	return m, nil
}

// checkClean compares logs and manifests with what the last Close left, and forgets that: from here on they may change.
func (s *Store) checkClean() error {
	b, err := readSmall(s.fence, s.fence.PathJoin(s.dir, cleanFile), smallBytesMax)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	want, err := decodeClean(b)
	if err != nil {
		return fmt.Errorf("%s: %w", cleanFile, err)
	}
	got, err := survey(s.fence, s.dir)
	if err != nil {
		return err
	}
	switch {
	case got.files == want.files && got.length == want.length && got != want:
		return damaged("logs and manifests have other contents than when the store was closed")
	case got != want:
		return damaged("logs and manifests are not as they were when the store was closed: %d files with %d bytes, had %d with %d", got.files, got.length, want.files, want.length)
	}
	return removeIfThere(s.fence, s.dir, cleanFile)
}

// readSelf reads the store's record and compares it with STORE. With anew set a copy will do.
func (s *Store) readSelf(m marker, anew bool) error {
	v, err := s.get(storeKey)
	if err != nil {
		return err
	}
	if s.self, err = decodeRecord(v); err != nil {
		return err
	}
	if s.self.overlay != m.overlay {
		return damaged("%s is of overlay %v, the database of overlay %v", markerFile, m.overlay, s.self.overlay)
	}
	file := s.o.fileID(s.fence.PathJoin(s.dir, markerFile))
	is := func(boots, recorded uint64) bool {
		return m.boots == boots && (recorded == 0 || file == 0 || recorded == file || s.o.moved)
	}
	// The database is written first: a crash in between leaves the former STORE.
	if anew || is(s.self.boot.Count, s.self.file) || is(s.self.formerBoots, s.self.formerFile) {
		s.marker = m
		return nil
	}
	return fmt.Errorf("%w: its replicas may live elsewhere too. If it was moved here, the original did not run since and never will "+
		"again: daemon --moved; if it is a backup, whose original has run since, and never will again: daemon --restored", ErrCopied)
}

// get reads a value of the database that must be there.
func (s *Store) get(key []byte) ([]byte, error) {
	v, closer, err := s.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, damaged("record %x is missing", key)
	}
	if err != nil {
		return nil, readError(err)
	}
	defer closer.Close()
	v, err = open(key, v)
	return append([]byte(nil), v...), err
}

// each calls do with every record of the kinds from to to. Keys and values are valid until it returns.
func (s *Store) each(from, to byte, do func(key, value []byte) error) error {
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: []byte{from}, UpperBound: []byte{to + 1}})
	if err != nil {
		return readError(err)
	}
	defer it.Close()
	for it.First(); it.Valid(); it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return readError(err)
		}
		if v, err = open(it.Key(), v); err != nil {
			return err
		}
		if err := do(it.Key(), v); err != nil {
			return err
		}
	}
	if err := it.Error(); err != nil {
		return readError(err)
	}
	return nil
}

// readDirectory reads which replicas there are, and were.
func (s *Store) readDirectory() error {
	slots := make(map[uint64]bool)
	own := func(g order.GroupID, l listing) error {
		if l.slot == 0 || l.slot == math.MaxUint64 || slots[l.slot] {
			return damaged("replica of group %v in slot %d", g, l.slot)
		}
		slots[l.slot], s.nextSlot = true, max(s.nextSlot, l.slot)
		return nil
	}
	err := s.each(keyReplica, keyBurial, func(key, value []byte) error {
		g, err := groupOf(key, s.self.overlay)
		if err != nil {
			return err
		}
		if key[0] == keyTombstone {
			s.tombstones[g], err = decodeTombstone(value)
			return err
		}
		if key[0] == keyBurial {
			at := grave{g, order.ReplicaID(binary.BigEndian.Uint64(key[len(key)-8:]))}
			d, err := decodeBurial(value)
			if known, ok := s.graves[at]; ok { // else an older program has purged it
				d.slot = known.slot
				s.graves[at] = d
			}
			return err
		}
		l, err := decodeListing(value)
		if err != nil {
			return err
		}
		if key[0] == keyGrave {
			s.graves[grave{g, l.self}] = burial{slot: l.slot}
		} else {
			s.replicas[g.Life()] = &replica{slot: l.slot, self: l.self}
		}
		return own(g, l)
	})
	s.nextSlot++
	return err
}

// begin draws the boot and writes it, to the database and to STORE.
func (s *Store) begin(anew bool) error {
	f, next := s.fence, s.self
	next.boot = Boot{Count: s.self.boot.Count + 1, Nonce: nonce()}
	path, fresh := f.PathJoin(s.dir, markerFile), f.PathJoin(s.dir, markerNew)
	if err := writeSmall(f, fresh, marker{overlay: next.overlay, boots: next.boot.Count}.encode()); err != nil {
		return err
	}
	next.file, next.formerFile, next.formerBoots = s.o.fileID(fresh), s.o.fileID(path), s.marker.boots
	b := s.db.NewBatch()
	if anew {
		next.id = newID()
		for g := range s.replicas {
			if err := s.bury(b, g.In(s.self.overlay)); err != nil {
				return errors.Join(err, b.Close())
			}
		}
		clear(s.replicas)
	}
	err := errors.Join(put(b, storeKey, next.encode()), b.Commit(pebble.Sync), b.Close())
	if err = errors.Join(err, f.failure()); err != nil {
		return err
	}
	s.self = next
	return errors.Join(f.Rename(fresh, path), syncDir(f, s.dir))
}

func nonce() uint64 {
	var b [8]byte
	for {
		rand.Read(b[:])
		if n := binary.BigEndian.Uint64(b[:]); n != 0 {
			return n
		}
	}
}

// watch shuts the database as soon as the disk has failed, so that it does not go on trying.
func (s *Store) watch() {
	select {
	case <-s.fence.dead:
		log.Errorw("store failed", "dir", s.dir, "store", s.self.id, "err", s.fence.failure())
		s.shut()
	case <-s.closing:
	}
}

// shut closes the database. It waits for batches under way.
func (s *Store) shut() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.db == nil {
		return nil
	}
	s.inflight.Wait()
	err := s.db.Close()
	s.db = nil
	return err
}

// usable says why the store cannot be used, if it cannot. The caller holds mu.
func (s *Store) usable() error {
	if err := s.fence.failure(); err != nil {
		return err
	}
	if s.closed {
		return fmt.Errorf("%w: %w", replicagroup.ErrStore, errClosed)
	}
	return nil
}

// ID implements [replicagroup.Store].
func (s *Store) ID() order.StoreID { return s.self.id }

// BootNonce returns what was drawn when the store was opened. Frames to other peers carry it.
func (s *Store) BootNonce() Boot { return s.self.boot }

// Err returns what ended the store's life, or nil.
func (s *Store) Err() error { return s.fence.failure() }

// Failed is closed when the disk fails, which may be noticed between two calls.
func (s *Store) Failed() <-chan struct{} { return s.fence.dead }

// Close puts everything on the disk and unlocks the directory. It waits for calls under way; later ones fail. It is
// idempotent. An error means that what was not synced may be lost.
func (s *Store) Close() error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	s.mu.Unlock()
	if !first {
		return s.fence.failure()
	}
	close(s.closing)
	s.watching.Wait()
	err := s.shut()
	if err == nil && s.fence.failure() == nil {
		err = s.leaveClean()
	}
	err = errors.Join(err, s.lock.Close())
	if failure := s.fence.failure(); failure != nil {
		return failure
	}
	return err
}

// leaveClean writes CLEAN.
func (s *Store) leaveClean() error {
	c, err := survey(s.fence, s.dir)
	if err != nil {
		return err
	}
	path, fresh := s.fence.PathJoin(s.dir, cleanFile), s.fence.PathJoin(s.dir, cleanNew)
	if err := writeSmall(s.fence, fresh, c.encode()); err != nil {
		return err
	}
	return errors.Join(s.fence.Rename(fresh, path), syncDir(s.fence, s.dir))
}
