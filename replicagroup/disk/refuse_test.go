package disk

import (
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

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
	copyDir(t, moved, live) // while it is in use, which Pebble's files allow in a quiet moment
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

// written makes a store in memory that has flushed some of a script and not all, and returns what it held after each step.
func written(t *testing.T, close bool) (*vfs.MemFS, []string) {
	t.Helper()
	steps, states := script(42, 60)
	disk := vfs.NewCrashableMem()
	s, _ := fresh(t, small.on(disk))
	if err := new(play).run(s, steps); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if !close { // as if it had crashed at the end
		if err := removeIfThere(disk, "/store", cleanFile); err != nil {
			t.Fatal(err)
		}
	}
	return disk, states
}

// Any file is changed, cut short or removed. The store is refused, or it holds what it held: nothing in between. After a crash
// the last log may have been cut off by it, so there the store may be as of an earlier step. It is never as it never was.
func TestDamageIsRefusedOrHarmless(t *testing.T) {
	for _, closed := range []bool{true, false} {
		disk, states := written(t, closed)
		names, err := disk.List("/store")
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(names)
		refusals, harmless, shorter := 0, 0, 0
		if n := newest(t, disk, names); n < 1000 {
			t.Errorf("the last log has %d bytes, too few to damage", n)
		}
		try := func(what string, change func(f *vfs.MemFS)) {
			t.Helper()
			f := disk.CrashClone(vfs.CrashCloneCfg{})
			change(f)
			s, err := Open("/store", small.on(f))
			var got string
			if err == nil {
				got, err = contents(s)
				s.Close()
			}
			switch i := slices.Index(states, got); {
			case err != nil:
				if strings.Contains(err.Error(), "\n") {
					t.Errorf("%s: more than one line: %q", what, err)
				}
				if !errors.Is(err, ErrDamaged) && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrVersion) && !errors.Is(err, ErrCopied) {
					t.Errorf("%s: %v", what, err)
				}
				refusals++
			case got == states[len(states)-1]:
				harmless++
			case i >= 0 && !closed && strings.Contains(what, ".log"):
				shorter++
			default:
				t.Errorf("closed %v, %s: the store is as of step %d of %d", closed, what, i, len(states)-1)
			}
		}
		for _, name := range names {
			path := "/store/" + name
			data := content(t, disk, path)
			if name != cleanFile { // without it a store looks like one that crashed
				try("no "+name, func(f *vfs.MemFS) { f.Remove(path) })
			}
			for _, at := range places(len(data)) {
				if name != cleanFile || at > 0 {
					try(name+" cut", func(f *vfs.MemFS) { replace(t, f, path, data[:at]) })
				}
				changed := slices.Clone(data)
				changed[at] ^= 1 << (at % 8)
				try(name+" changed", func(f *vfs.MemFS) { replace(t, f, path, changed) })
			}
		}
		t.Logf("closed %v: %d refused, %d harmless, %d as of an earlier step", closed, refusals, harmless, shorter)
		if refusals < 50 {
			t.Errorf("only %d refusals", refusals)
		}
	}
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

// newest returns the length of the last log.
func newest(t *testing.T, f vfs.FS, names []string) (n int) {
	for _, name := range names {
		if strings.HasSuffix(name, ".log") {
			n = len(content(t, f, "/store/"+name))
		}
	}
	return n
}

// places returns where to change or cut a file of n bytes.
func places(n int) (at []int) {
	for i := 0; i < n; i += 1 + n/16 {
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
	if err := writeSmall(f, path, data); err != nil {
		t.Fatal(err)
	}
}
