package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"latchkey/replicagroup"
	"latchkey/replicagroup/order"
)

// refused checks that a store is refused in one line, with an error that matches want and text that says what to do.
func refused(t *testing.T, dir string, o Options, want error, text string) {
	t.Helper()
	s, err := Open(dir, o)
	if err == nil {
		s.Close()
		t.Fatalf("opened, want %v", want)
	}
	if !errors.Is(err, want) || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "\n") {
		t.Errorf("refused with %q, want %v and %q in one line", err, want, text)
	}
	for _, other := range []error{ErrForeign, ErrVersion, ErrInUse, ErrDamaged, ErrCopied, fs.ErrNotExist, replicagroup.ErrStore} {
		if other != want && errors.Is(err, other) {
			t.Errorf("%q matches %v too", err, other)
		}
	}
}

// onDisk makes a store on the file system with a replica of group a, and closes it.
func onDisk(t *testing.T) (dir string, o Options) {
	t.Helper()
	dir, o = filepath.Join(t.TempDir(), "store"), Options{Overlay: overlay}
	if err := Create(dir, overlay, order.StoreID{9}); err != nil {
		t.Fatal(err)
	}
	s := reopen(t, dir, o)
	mustCreate(t, s, group("a"), 1)
	write(t, s, group("a"), state("s"), entry(1, "one"), entry(2, "two"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, o
}

func TestStoresThatAreNotOursAreRefused(t *testing.T) {
	dir, o := onDisk(t)
	marker := filepath.Join(dir, markerFile)
	good, err := os.ReadFile(marker)
	if err != nil {
		t.Fatal(err)
	}
	put := func(b []byte) {
		t.Helper()
		if err := os.WriteFile(marker, b, 0o600); err != nil { // in place: the file keeps its number
			t.Fatal(err)
		}
	}
	refused(t, dir, Options{Overlay: order.OverlayID{4}}, ErrForeign, "use the directory of this overlay")
	newer := binary.BigEndian.AppendUint32(slices.Clone(magic[:]), FormatVersion+1)
	put(append(sum(newer), "whatever a newer version says"...))
	refused(t, dir, o, ErrVersion, "use the program that wrote it")
	put(append(newer, "xxxx"...))
	refused(t, dir, o, ErrDamaged, markerFile)
	put(nil)
	refused(t, dir, o, ErrDamaged, markerFile)
	put(good)
	s := reopen(t, dir, o)
	refused(t, dir, o, ErrInUse, "stop the process")
	if err := create(dir, order.StoreID{}, o.fill()); !errors.Is(err, ErrInUse) {
		t.Errorf("create in a directory in use: %v", err)
	}
	if got := dump(t, s); !strings.Contains(got, "two") {
		t.Errorf("after all that: %s", got)
	}
	s.Close()
	if err := Create(dir, overlay, order.StoreID{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("create over a store: %v", err)
	}
	if err := os.Remove(marker); err != nil {
		t.Fatal(err)
	}
	refused(t, dir, o, ErrDamaged, markerFile)
	if err := Create(dir, overlay, order.StoreID{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("create over what was a store: %v", err)
	}
}

func TestNoStore(t *testing.T) {
	dir, o := t.TempDir(), Options{Overlay: overlay}
	refused(t, filepath.Join(dir, "nowhere"), o, fs.ErrNotExist, "no store")
	refused(t, dir, o, fs.ErrNotExist, "no store")
	if err := os.WriteFile(filepath.Join(dir, "letter"), []byte("dear"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Create(dir, overlay, order.StoreID{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("create among strangers: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "letter")); err != nil {
		t.Error(err)
	}
	// A creation that was cut off holds nothing, whatever lies there, and is done again.
	half := filepath.Join(dir, "half")
	if err := os.Mkdir(half, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{unfinishedFile, "MANIFEST-000001", "000002.log"} {
		if err := os.WriteFile(filepath.Join(half, name), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	refused(t, half, o, fs.ErrNotExist, "create it again")
	if err := Create(half, overlay, order.StoreID{}); err != nil {
		t.Fatal(err)
	}
	s := reopen(t, half, o)
	if s.ID() == (order.StoreID{}) || dump(t, s) != "" {
		t.Errorf("store %v: %s", s.ID(), dump(t, s))
	}
	if info, err := os.Stat(half); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// Ids are random, boots are counted, and both are kept.
func TestEachOpeningIsABootOfItsOwn(t *testing.T) {
	s, o := fresh(t, Options{})
	seen := make(map[uint64]bool)
	for n := uint64(1); n < 6; n++ {
		b := s.BootNonce()
		if b.Count != n || b.Nonce == 0 || seen[b.Nonce] || b != s.BootNonce() {
			t.Errorf("opening %d has %+v", n, b)
		}
		seen[b.Nonce] = true
		s.Close()
		s = reopen(t, "/store", o)
	}
}

func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func TestStoreThatWasMovedIsAdoptedAsItIs(t *testing.T) {
	dir, o := onDisk(t)
	if fileID(filepath.Join(dir, markerFile)) == 0 {
		t.Skip("file numbers of this file system are not known to last")
	}
	s := reopen(t, dir, o)
	id, want := s.ID(), dump(t, s)
	s.Close()
	there := dir + ".there"
	copyDir(t, dir, there)
	refused(t, there, o, ErrCopied, "daemon --moved")
	if err := Adopt(there, o); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, there, o)
	if s.ID() != id || dump(t, s) != want || want == "" {
		t.Errorf("store %v has %s, was %v with %s", s.ID(), dump(t, s), id, want)
	}
	s.Close()
	// Of a mixture of ages nobody can vouch.
	old, err := os.ReadFile(filepath.Join(dir, markerFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(there, markerFile), old, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Adopt(there, o); !errors.Is(err, ErrCopied) {
		t.Errorf("a mixture of ages: %v", err)
	}
}

func TestCopiesAreRefusedAndMovesAreNot(t *testing.T) {
	dir, o := onDisk(t)
	if fileID(filepath.Join(dir, markerFile)) == 0 {
		t.Skip("file numbers of this file system are not known to last")
	}
	moved, twin, live := dir+".moved", dir+".copy", dir+".live"
	if err := os.Rename(dir, moved); err != nil {
		t.Fatal(err)
	}
	copyDir(t, moved, twin)
	refused(t, twin, o, ErrCopied, "daemon --restored")
	s := reopen(t, moved, o)
	write(t, s, group("a"), entry(3, "three"))
	s.db.TestOnlyWaitForCleaning()
	copyDir(t, moved, live) // while it is in use, which Pebble's files allow when none of them is about to be removed
	refused(t, live, o, ErrCopied, "daemon --restored")
	s.Close()
	// A backup put in place of the store: the copy of a file is another file.
	if err := errors.Join(os.RemoveAll(moved), os.Rename(twin, moved)); err != nil {
		t.Fatal(err)
	}
	refused(t, moved, o, ErrCopied, "daemon --restored")

	id, err := Reidentify(moved, o)
	if err != nil || id == (order.StoreID{}) || id == (order.StoreID{9}) {
		t.Fatalf("new id %v, %v", id, err)
	}
	for range 2 {
		s = reopen(t, moved, o)
		if s.ID() != id || dump(t, s) != "" {
			t.Errorf("store %v has %s", s.ID(), dump(t, s))
		}
		if r, err := s.Exhume(group("a"), 1); err != nil || len(r.Image.Entries) != 2 || string(r.Image.State) != "s" {
			t.Errorf("buried: %+v, %v", r, err)
		}
		if s.Create(replicagroup.Identity{Group: group("a"), Self: 1}) == nil {
			t.Error("the buried replica's id was given again")
		}
		s.Close()
	}
}

// Only parts of a backup put back: STORE and the database are of different ages.
func TestPartsOfDifferentAgesAreRefused(t *testing.T) {
	dir, o := onDisk(t)
	o.fileID = func(string) uint64 { return 0 } // as on a file system whose numbers do not last
	marker := filepath.Join(dir, markerFile)
	old, err := os.ReadFile(marker)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		reopen(t, dir, o).Close()
	}
	if err := os.WriteFile(marker, old, 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, dir, o, ErrCopied, "daemon --restored")
}

// wreck is what a store left.
type wreck struct {
	name   string
	disk   *vfs.MemFS
	states []string // what it held after each step of its script
	closed bool     // in good order
}

// written makes a store in memory that has flushed some of a script and not all, by itself.
func written(t *testing.T, closed bool) wreck {
	t.Helper()
	steps, states := script(42, 60)
	w := wreck{fmt.Sprint("closed ", closed), vfs.NewCrashableMem(), states, closed}
	s, _ := fresh(t, small.on(w.disk))
	if err := new(play).run(s, steps); err != nil {
		t.Fatal(err)
	}
	w.finish(t, s)
	return w
}

func (w wreck) finish(t *testing.T, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if !w.closed { // as if it had crashed at the end
		if err := removeIfThere(w.disk, "/store", cleanFile); err != nil {
			t.Fatal(err)
		}
	}
}

// plain returns steps of which each makes or fills a replica of its own, so that to the others it makes no difference whether it
// was taken: only a comparison with the states tells that one between them is missing.
func plain(n int) (steps []step, states []string) {
	m := newModel()
	states = append(states, m.String())
	for i := range n {
		g := group("")
		g.Gen = uint64(i / 2) // any will do that is another one
		id := replicagroup.Identity{Group: g, Self: 1, Descriptor: fmt.Append(nil, i)}
		st := step{do: func(s *Store) error { return s.Create(id) },
			then: func(m *model) { m.replicas[g] = replicagroup.StoredReplica{Identity: id} }}
		if rec := state(strings.Repeat(fmt.Sprint(i), 200)); i%2 == 1 {
			st.do = func(s *Store) error {
				return s.Write([]replicagroup.Write{{Group: g, Records: []order.Record{rec}}}, true)
			}
			st.then = func(m *model) { m.replicas[g] = taken(m.replicas[g], rec) }
		}
		st.then(m)
		steps, states = append(steps, st), append(states, m.String())
	}
	return steps, states
}

// flushed makes a store in memory that has flushed when a number of steps of a script were done, and at no other time, and
// crashed after the last step. Nothing was compacted, so every table that was ever written is still there, as far as the manifest
// goes; the logs of what was flushed are not.
func flushed(t *testing.T, at ...int) wreck {
	t.Helper()
	steps, states := plain(60)
	w := wreck{fmt.Sprint("flushed at ", at), vfs.NewCrashableMem(), states, false}
	s, _ := fresh(t, Options{noCompactions: true}.on(w.disk))
	for i, st := range steps {
		if err := st.do(s); err != nil {
			t.Fatal(err)
		}
		if slices.Contains(at, i+1) {
			if err := s.db.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.finish(t, s)
	return w
}

// flushing makes a store in memory that crashed while a flush was under way, with one log of what was being flushed and one of
// what came after. Half of what came before was flushed already.
func flushing(t *testing.T, began, crashed int) wreck {
	t.Helper()
	steps, states := plain(crashed)
	w := wreck{fmt.Sprintf("crashed at %d in a flush from %d on", crashed, began), vfs.NewCrashableMem(), states, false}
	held, let := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var hold atomic.Bool
	slow := errorfs.Wrap(w.disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if hold.Load() && op.Kind == errorfs.OpCreate && strings.HasSuffix(op.Path, ".sst") {
			once.Do(func() { close(held) })
			<-let
		}
		return nil
	}))
	s, _ := fresh(t, Options{}.on(slow))
	for i, st := range steps {
		if err := st.do(s); err != nil {
			t.Fatal(err)
		}
		switch i + 1 {
		case began / 2:
			if err := s.db.Flush(); err != nil {
				t.Fatal(err)
			}
		case began:
			hold.Store(true)
			if _, err := s.db.AsyncFlush(); err != nil {
				t.Fatal(err)
			}
			<-held
		}
	}
	if err := s.Write(nil, true); err != nil {
		t.Fatal(err)
	}
	left := w.disk.CrashClone(vfs.CrashCloneCfg{})
	close(let)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	w.disk = left
	return w
}

// A log that a crash left is damaged before the last writes that were synced. Pebble would take that for its end, and forget what comes
// after it, however much was stored since.
func TestDamageBeforeTheEndOfALogIsRefused(t *testing.T) {
	steps, states := plain(60)
	w := wreck{"crashed", vfs.NewCrashableMem(), states, false}
	s, _ := fresh(t, small.on(w.disk))
	ends := []int{0} // of the log, after each step
	for _, st := range steps {
		if err := st.do(s); err != nil {
			t.Fatal(err)
		}
		names, err := w.disk.List("/store")
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, len(content(t, w.disk, "/store/"+newest(names))))
	}
	left := w.disk.CrashClone(vfs.CrashCloneCfg{})
	s.Close()
	names, err := left.List("/store")
	if err != nil {
		t.Fatal(err)
	}
	path := "/store/" + newest(names)
	data := content(t, left, path)
	end := ends[len(ends)-3] // what the last write but one was written after
	if len(data) > logBlockBytes || end < 1000 || end > len(data) {
		t.Fatalf("a log of %d bytes, %d before the last two writes: it should be one block", len(data), end)
	}
	for at := 0; at < end; at += 3 { // all of them take the race detector half a minute, and what one chunk is spared the next one is not
		f := left.CrashClone(vfs.CrashCloneCfg{})
		changed := slices.Clone(data)
		changed[at] ^= 1 << (at % 8)
		replace(t, f, path, changed)
		if s, err := Open("/store", small.on(f)); !errors.Is(err, ErrDamaged) {
			if err == nil {
				s.Close()
			}
			t.Fatalf("byte %d of %d changed: %v, want %v", at, len(data), err, ErrDamaged)
		}
	}
	for _, at := range places(len(data), 64) { // what a crash does is none
		f := left.CrashClone(vfs.CrashCloneCfg{})
		replace(t, f, path, data[:at])
		s, err := Open("/store", small.on(f))
		if err != nil && strings.Contains(err.Error(), "more was stored after that") {
			t.Errorf("cut at %d: %v", at, err)
		} else if err == nil {
			s.Close()
		}
	}
}

// Any file is changed, cut short or removed. The store is refused, or it holds what it held: nothing in between. After a crash
// the last log may have been cut off by it, so there the store may be as of an earlier step. It is never as it never was.
func TestDamageIsRefusedOrHarmless(t *testing.T) {
	for _, w := range []wreck{
		written(t, true), written(t, false),
		flushed(t), flushed(t, 20), flushed(t, 10, 20, 30, 40, 50),
		flushing(t, 40, 60),
	} {
		names, err := w.disk.List("/store")
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(names)
		refusals, harmless, shorter := 0, 0, 0
		last := newest(names)
		if n := len(content(t, w.disk, "/store/"+last)); n < 1000 {
			t.Errorf("%s: the last log has %d bytes, too few to damage", w.name, n)
		}
		try := func(name, what string, change func(f *vfs.MemFS)) {
			t.Helper()
			f := w.disk.CrashClone(vfs.CrashCloneCfg{})
			change(f)
			s, err := Open("/store", small.on(f))
			var got string
			if err == nil {
				got, err = contents(s)
				s.Close()
			}
			switch i := slices.Index(w.states, got); {
			case err != nil:
				if strings.Contains(err.Error(), "\n") {
					t.Errorf("%s, %s %s: more than one line: %q", w.name, name, what, err)
				}
				if !errors.Is(err, ErrDamaged) && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrVersion) && !errors.Is(err, ErrCopied) {
					t.Errorf("%s, %s %s: %v", w.name, name, what, err)
				}
				refusals++
			case got == w.states[len(w.states)-1]:
				harmless++
			case i >= 0 && !w.closed && name == last && what != "removed":
				shorter++
			default:
				t.Errorf("%s, %s %s: the store is as of step %d of %d", w.name, name, what, i, len(w.states)-1)
			}
		}
		if try("nothing", "changed", func(*vfs.MemFS) {}); harmless != 1 {
			t.Errorf("%s: refused as it is", w.name)
		}
		for _, name := range names {
			path := "/store/" + name
			data := content(t, w.disk, path)
			if name != cleanFile { // without it a store looks like one that crashed
				try(name, "removed", func(f *vfs.MemFS) { f.Remove(path) })
			}
			n := 16
			if strings.HasPrefix(name, "MANIFEST-") {
				n = 64 // it is short, and each of its records matters in its own way
			}
			for _, at := range places(len(data), n) {
				if name != cleanFile || at > 0 {
					try(name, fmt.Sprintf("cut at %d", at), func(f *vfs.MemFS) { replace(t, f, path, data[:at]) })
				}
				changed := slices.Clone(data)
				changed[at] ^= 1 << (at % 8)
				try(name, fmt.Sprintf("changed at %d", at), func(f *vfs.MemFS) { replace(t, f, path, changed) })
			}
		}
		t.Logf("%s: %d refused, %d harmless, %d as of an earlier step", w.name, refusals, harmless, shorter)
		if refusals < 50 {
			t.Errorf("%s: only %d refusals", w.name, refusals)
		}
	}
}

// A store of version 1 has no FILES. It becomes one of this version when it is opened.
func TestStoresOfVersionOneAreTaken(t *testing.T) {
	s, o := fresh(t, Options{})
	mustCreate(t, s, group("a"), 1)
	write(t, s, group("a"), state("s"), entry(1, "one"))
	want := dump(t, s)
	boots := s.BootNonce().Count
	s.Close()
	one := sum(binary.BigEndian.AppendUint32(slices.Clone(magic[:]), 1))
	one = sum(binary.BigEndian.AppendUint64(append(one, overlay[:]...), boots))
	if err := errors.Join(writeSmall(o.fs, "/store/"+markerFile, one), o.fs.Remove("/store/"+filesFile)); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, "/store", o)
	if got := dump(t, s); got != want || want == "" {
		t.Errorf("have %s, want %s", got, want)
	}
	s.Close()
	if err := o.fs.Remove("/store/" + filesFile); err != nil {
		t.Fatal(err)
	}
	refused(t, "/store", o, ErrDamaged, filesFile)
}

// The database says that all is well, and yet a record is not what was written, or is missing, or is nobody's.
func TestRecordsThatCannotBeAreRefused(t *testing.T) {
	g := group("a")
	key := groupKey(keyReplica, g)
	for name, change := range map[string]func(b *pebble.Batch) error{
		"another entry":       func(b *pebble.Batch) error { return b.Set(entryKey(1, 2), []byte("other....."), nil) },
		"an entry of another": func(b *pebble.Batch) error { return b.Set(entryKey(1, 2), sum([]byte("two")), nil) },
		"an empty entry":      func(b *pebble.Batch) error { return b.Set(entryKey(1, 2), nil, nil) },
		"no entry":            func(b *pebble.Batch) error { return b.Delete(entryKey(1, 2), nil) },
		"another state":       func(b *pebble.Batch) error { return b.Set(slotKey(1, dataState), []byte("12345"), nil) },
		"no chunk":            func(b *pebble.Batch) error { return b.Delete(chunkKey(1, 1), nil) },
		"no last chunk":       func(b *pebble.Batch) error { return b.Delete(chunkKey(1, 2), nil) },
		"another chunk":       func(b *pebble.Batch) error { return put(b, chunkKey(1, 1), []byte("chunk of an earlier snapshot")) },
		"one more chunk":      func(b *pebble.Batch) error { return put(b, chunkKey(1, 3), []byte("x")) },
		"no head":             func(b *pebble.Batch) error { return b.Delete(slotKey(1, dataHead), nil) },
		"a slot of nobody":    func(b *pebble.Batch) error { return put(b, entryKey(7, 1), []byte("x")) },
		"a key of no kind":    func(b *pebble.Batch) error { return put(b, slotKey(1, 9), []byte("x")) },
		"no replica":          func(b *pebble.Batch) error { return b.Delete(key, nil) },
		"another slot":        func(b *pebble.Batch) error { return put(b, key, listing{slot: 2, self: 1}.encode()) },
		"a slot twice":        func(b *pebble.Batch) error { return put(b, graveKey(g, 1), listing{slot: 1, self: 1}.encode()) },
		"a group that is none": func(b *pebble.Batch) error {
			bad := slices.Clone(key)
			bad[len(bad)-9] = 1 // the length of the prefix
			return put(b, bad, listing{slot: 3}.encode())
		},
		"no store": func(b *pebble.Batch) error { return b.Delete(storeKey, nil) },
		"a store of another overlay": func(b *pebble.Batch) error {
			return put(b, storeKey, record{id: order.StoreID{1}, boot: Boot{Count: 1}}.encode())
		},
	} {
		s, o := fresh(t, small)
		o.chunkBytes = 10
		s.o.chunkBytes = 10
		mustCreate(t, s, g, 1)
		write(t, s, g, state("s"), snapshot(0, "a snapshot of three chunks"), entry(1, "one"), entry(2, "two"), entry(3, "three"))
		b := s.db.NewBatch()
		if err := errors.Join(change(b), b.Commit(pebble.Sync), b.Close()); err != nil {
			t.Fatal(err)
		}
		s.Close()
		s, err := Open("/store", o)
		if err == nil {
			_, err = s.Replicas()
			if again := s.Create(replicagroup.Identity{Group: group("b"), Self: 1}); err != nil && !errors.Is(again, ErrDamaged) {
				t.Errorf("%s: the store goes on: %v", name, again)
			}
			s.Close()
		}
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// newest returns the name of the last log.
func newest(names []string) (name string) {
	for _, n := range names {
		if strings.HasSuffix(n, ".log") {
			name = max(name, n)
		}
	}
	return name
}

// places returns where to change or cut a file of n bytes, about as many as parts.
func places(n, parts int) (at []int) {
	for i := 0; i < n; i += 1 + n/parts {
		at = append(at, i)
	}
	return at
}

func content(t *testing.T, f vfs.FS, path string) []byte {
	t.Helper()
	file, err := f.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	data, err := io.ReadAll(struct{ io.Reader }{file})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func replace(t *testing.T, f vfs.FS, path string, data []byte) {
	t.Helper()
	if err := writeSmall(f, path, slices.Clone(data)); err != nil { // Pebble's file system spoils what it was given, where the race detector is
		t.Fatal(err)
	}
}
