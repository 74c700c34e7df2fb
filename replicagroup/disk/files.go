package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Pebble takes a manifest or a log that ends early, wherever it ends, for one that a crash cut off. A manifest that ends before
// the place where it says that a log is done with would then be followed by a replay of the logs that are left, without the one
// that is gone: a store that holds some batches and not others between them. So before a log or a manifest is removed, or
// written over, the file FILES says what those that stay must hold, and an opening compares.
//
// FILES lists every log and manifest there is, and of each the part that was on the disk for good when FILES was written: of a
// log that has a successor all, of a manifest every edit that any removal before the next FILES can rely on. It is written when
// a log is begun, before Pebble writes into it, and before one of the files listed goes. So a crash leaves no less than FILES
// says. It takes three syncs, twice for each memtable that is flushed.

// part is a beginning of a file.
type part struct {
	length int64
	crc    uint32
}

// listed says of a file that it exists and begins with a part.
type listed struct {
	name string
	part
}

// Bounds of FILES. Pebble has a handful of such files; more are not listed, which harms nothing.
const (
	listedMax     = 128
	listedNameMax = 32
	filesBytesMax = headBytes + 2 + listedMax*(1+listedNameMax+8+4) + crcBytes
)

// watched reports whether FILES lists files of this name.
func watched(name string) bool {
	return len(name) <= listedNameMax && !strings.ContainsAny(name, `/\`) &&
		(isLog(name) || strings.HasPrefix(name, "MANIFEST-"))
}

func isLog(name string) bool { return strings.HasSuffix(name, ".log") }

func encodeFiles(files []listed) []byte {
	b := binary.BigEndian.AppendUint16(head(), uint16(len(files)))
	for _, f := range files {
		b = append(append(b, byte(len(f.name))), f.name...)
		b = binary.BigEndian.AppendUint64(b, uint64(f.length))
		b = binary.BigEndian.AppendUint32(b, f.crc)
	}
	return sum(b)
}

// decodeFiles reads what encodeFiles wrote. Errors match [ErrVersion] or [ErrDamaged].
func decodeFiles(b []byte) ([]listed, error) {
	_, b, err := body(b, len(b))
	if err != nil {
		return nil, err
	}
	if len(b) < 2 {
		return nil, damaged("list of files without a length")
	}
	n := binary.BigEndian.Uint16(b)
	b = b[2:]
	var files []listed
	for range n {
		if len(b) < 1 || len(b) < 1+int(b[0])+12 {
			return nil, damaged("list of files ends early")
		}
		end := 1 + int(b[0])
		f := listed{name: string(b[1:end])}
		b = b[end:]
		f.length, f.crc = int64(binary.BigEndian.Uint64(b)), binary.BigEndian.Uint32(b[8:])
		b = b[12:]
		if !watched(f.name) || f.length < 0 || len(files) > 0 && files[len(files)-1].name >= f.name {
			return nil, damaged("list of files names %q", f.name)
		}
		files = append(files, f)
	}
	if len(b) != 0 || len(files) > listedMax {
		return nil, damaged("list of %d files with %d bytes more", len(files), len(b))
	}
	return files, nil
}

// ledger writes FILES of a directory. Its methods are safe for concurrent use.
type ledger struct {
	fs  vfs.FS
	dir string

	mu     sync.Mutex
	files  map[string]*growing // that exist
	listed map[string]bool     // in FILES as it is on the disk
}

// growing is how much of a file was written, by one writer, and how much of that is on the disk for good.
type growing struct {
	mu            sync.Mutex
	written, safe part
}

func newLedger(f vfs.FS, dir string) *ledger {
	return &ledger{fs: f, dir: dir, files: make(map[string]*growing), listed: make(map[string]bool)}
}

// name returns a path's name if FILES lists such files.
func (l *ledger) name(path string) (string, bool) {
	name := l.fs.PathBase(path)
	return name, watched(name) && l.fs.PathDir(path) == l.fs.PathDir(l.fs.PathJoin(l.dir, name))
}

// read compares the directory with FILES and goes on from there. f is the file system to read. A file that is missing or not
// what it was matches [ErrDamaged], a directory without FILES [fs.ErrNotExist].
func (l *ledger) read(f vfs.FS) error {
	b, err := readSmall(f, f.PathJoin(l.dir, filesFile), filesBytesMax)
	if err != nil {
		return err
	}
	files, err := decodeFiles(b)
	if err != nil {
		return fmt.Errorf("%s: %w", filesFile, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, want := range files {
		h := crc32.New(castagnoli)
		n, err := readInto(h, f, f.PathJoin(l.dir, want.name), want.length)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return damaged("%s is missing", want.name)
		case err != nil:
			return err
		case n != want.length:
			return damaged("%s ends after %d bytes and had %d", want.name, n, want.length)
		case h.Sum32() != want.crc:
			return damaged("%s is not what was written into it", want.name)
		}
		l.files[want.name], l.listed[want.name] = &growing{written: want.part, safe: want.part}, true
	}
	return nil
}

// begun notes that a file was begun, and returns where to note what is written into it. A log is listed at once.
func (l *ledger) begun(name string) (*growing, error) {
	g := new(growing)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.files[name] = g
	if !isLog(name) {
		return g, nil
	}
	return g, l.write()
}

// lists reports whether FILES lists a file, which is so from before a crash if it is about to be made.
func (l *ledger) lists(path string) bool {
	name, ok := l.name(path)
	l.mu.Lock()
	defer l.mu.Unlock()
	return ok && l.listed[name]
}

// lose notes that a file is about to be removed, renamed or written over. Before a log is, FILES is written in any case: that it
// may go is in the manifest.
func (l *ledger) lose(path string) error {
	name, ok := l.name(path)
	if !ok {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.files, name)
	if !l.listed[name] && !isLog(name) {
		return nil
	}
	return l.write()
}

// write writes FILES. The caller holds mu. Errors are those of the disk.
func (l *ledger) write() error {
	names := slices.Sorted(maps.Keys(l.files))
	files := make([]listed, 0, len(names))
	for _, name := range names[:min(len(names), listedMax)] {
		g := l.files[name]
		g.mu.Lock()
		files = append(files, listed{name, g.safe})
		g.mu.Unlock()
	}
	path, fresh := l.fs.PathJoin(l.dir, filesFile), l.fs.PathJoin(l.dir, filesNew)
	err := writeSmall(l.fs, fresh, encodeFiles(files))
	if err == nil {
		err = syncDir(l.fs, l.dir) // the names that it lists, too
	}
	if err == nil {
		err = l.fs.Rename(fresh, path)
	}
	if err == nil {
		err = syncDir(l.fs, l.dir)
	}
	if err != nil && usual(err) { // to Pebble it would be an answer
		return fmt.Errorf("disk: %s cannot be written: %v", filesFile, err)
	}
	if err == nil {
		clear(l.listed)
		for _, f := range files {
			l.listed[f.name] = true
		}
	}
	return err
}

// write notes that p was appended once do has succeeded, which may leave anything in p.
func (g *growing) write(p []byte, do func() error) error {
	g.mu.Lock()
	after := part{g.written.length + int64(len(p)), crc32.Update(g.written.crc, castagnoli, p)}
	g.mu.Unlock()
	if err := do(); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.written = after
	return nil
}

// sync notes that what was written before do is on the disk for good once do has succeeded.
func (g *growing) sync(do func() error) error {
	g.mu.Lock()
	before := g.written
	g.mu.Unlock()
	if err := do(); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if before.length > g.safe.length {
		g.safe = before
	}
	return nil
}

// readInto copies a file, or the first max bytes of it.
func readInto(w io.Writer, f vfs.FS, path string, max int64) (int64, error) {
	file, err := f.Open(path)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	return io.Copy(w, io.LimitReader(struct{ io.Reader }{file}, max))
}
