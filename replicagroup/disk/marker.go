package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"

	"latchkey/replicagroup/order"
)

// Files of ours beside Pebble's.
const (
	markerFile     = "STORE"            // says what the directory is; written anew at each opening
	markerNew      = "STORE.new"        // becomes STORE
	unfinishedFile = "STORE.unfinished" // what STORE will be, while the store is being made
	cleanFile      = "CLEAN"            // there while the store is closed in good order; see [clean]
	cleanNew       = "CLEAN.new"        // becomes CLEAN
	filesFile      = "FILES"            // what Pebble's logs and manifests must at least hold; see [ledger]
	filesNew       = "FILES.new"        // becomes FILES
	lockFile       = "LOCK"             // Pebble's, and locked all the time
)

// FormatVersion is the version of the stores that this program writes. It reads those from 1 on, which become this version when they
// are opened. Pebble's own format is part of it. Version 2 has the file FILES, which a program of version 1 would not keep.
const FormatVersion = 2

// Every file of ours begins with a head, which all versions share: what it is, its version, and the checksum of both.
var magic = [8]byte{'l', 'k', 's', 't', 'o', 'r', 'e', '\n'}

const (
	crcBytes      = 4
	headBytes     = len(magic) + 4 + crcBytes
	markerBytes   = headBytes + 32 + 8 + crcBytes
	cleanBytes    = headBytes + 8 + 8 + 4 + crcBytes
	smallBytesMax = 4096 // STORE and CLEAN of no version are longer
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrDamaged, fmt.Errorf(format, args...))
}

// head begins an encoding.
func head() []byte {
	b := append([]byte(nil), magic[:]...)
	b = binary.BigEndian.AppendUint32(b, FormatVersion)
	return sum(b)
}

// sum appends the checksum of b.
func sum(b []byte) []byte { return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli)) }

// summed takes a checksum off and reports whether it is right.
func summed(b []byte) ([]byte, bool) {
	if len(b) < crcBytes {
		return nil, false
	}
	body, crc := b[:len(b)-crcBytes], b[len(b)-crcBytes:]
	return body, crc32.Checksum(body, castagnoli) == binary.BigEndian.Uint32(crc)
}

// body checks head and checksum of an encoding of n bytes and returns its version and what is between.
func body(b []byte, n int) (version uint32, between []byte, err error) {
	if len(b) < headBytes {
		return 0, nil, damaged("%d bytes", len(b))
	}
	h, ok := summed(b[:headBytes])
	if !ok || [8]byte(h) != magic {
		return 0, nil, damaged("not a latchkey store")
	}
	v := binary.BigEndian.Uint32(h[len(magic):])
	if v < 1 || v > FormatVersion {
		return v, nil, fmt.Errorf("%w: it has version %d and this program reads versions up to %d: use the program that wrote it", ErrVersion, v, FormatVersion)
	}
	whole, ok := summed(b)
	if !ok || len(b) != n || len(whole) < headBytes {
		return v, nil, damaged("wrong checksum")
	}
	return v, whole[headBytes:], nil
}

// marker is the content of STORE.
type marker struct {
	overlay order.OverlayID
	boots   uint64 // how often the store has been opened
	version uint32 // as it was read
}

func (m marker) encode() []byte {
	b := append(head(), m.overlay[:]...)
	return sum(binary.BigEndian.AppendUint64(b, m.boots))
}

// decodeMarker reads what [marker.encode] wrote. Errors match [ErrVersion] or [ErrDamaged].
func decodeMarker(b []byte) (m marker, err error) {
	if m.version, b, err = body(b, markerBytes); err != nil {
		return m, err
	}
	b = b[copy(m.overlay[:], b):]
	m.boots = binary.BigEndian.Uint64(b)
	return m, nil
}

// clean is the content of CLEAN: what Pebble's logs and manifests were when the store was closed. Pebble takes one that ends
// early for one that a crash cut off, since it cannot know better; with this file we do, so that a store which rots or loses
// files while nobody uses it is noticed.
type clean struct {
	files  uint64 // how many
	length uint64 // of all
	crc    uint32 // over names and contents
}

func (c clean) encode() []byte {
	b := binary.BigEndian.AppendUint64(head(), c.files)
	b = binary.BigEndian.AppendUint64(b, c.length)
	return sum(binary.BigEndian.AppendUint32(b, c.crc))
}

// decodeClean reads what [clean.encode] wrote. Errors match [ErrVersion] or [ErrDamaged].
func decodeClean(b []byte) (c clean, err error) {
	if _, b, err = body(b, cleanBytes); err != nil {
		return c, err
	}
	return clean{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint32(b[16:])}, nil
}

// survey returns what CLEAN should say of a directory that nobody writes to. It reads some megabytes at most.
func survey(f vfs.FS, dir string) (c clean, err error) {
	names, err := f.List(dir)
	if err != nil {
		return c, err
	}
	slices.Sort(names)
	h := crc32.New(castagnoli)
	for _, name := range names {
		if !watched(name) {
			continue
		}
		n, err := readInto(h, f, f.PathJoin(dir, name), math.MaxInt64)
		if err != nil {
			return c, err
		}
		fmt.Fprintf(h, "\n%s %d\n", name, n)
		c.files++
		c.length += uint64(n)
	}
	c.crc = h.Sum32()
	return c, nil
}

// readSmall reads a file of ours that has at most max bytes.
func readSmall(f vfs.FS, path string, max int) ([]byte, error) {
	file, err := f.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, int64(max)+1))
}

// writeSmall makes a file and waits until its content is on the disk.
func writeSmall(f vfs.FS, path string, data []byte) error {
	file, err := f.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	if err == nil {
		err = file.Sync()
	}
	return errors.Join(err, file.Close())
}

// syncDir waits until the names in a directory are on the disk.
func syncDir(f vfs.FS, dir string) error {
	d, err := f.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// removeIfThere removes a file and waits until it is gone for good.
func removeIfThere(f vfs.FS, dir, name string) error {
	err := f.Remove(f.PathJoin(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(err, syncDir(f, dir))
}
