package lockservice

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// FileBytesMax bounds the data of a [FileGuard]: the whole file is held in memory and written anew by every write.
const FileBytesMax = 16 << 20

// A guarded file is one line for people and programs, then the data as given:
//
//	latchkey-guard 1 token=17 bytes=5 sha256=<64 hexadecimal digits, of the data>\n
//
// Numbers are decimal without leading zeros, so that a file has one encoding.
const (
	guardMagic         = "latchkey-guard"
	guardVersion       = "1"
	guardHeaderBytes   = 256 // a header is shorter than this
	guardFileMode      = 0o644
	guardLockSuffix    = ".lock"
	guardPendingSuffix = ".new"
)

// FileGuard is a [Guard] for the contents of one file. Token and data live in the same file and change together: each write
// makes a new file beside it, syncs it, renames it over the old one and syncs the directory. So after a crash the file
// holds what some write left, whole, with that write's token, and a token once written is not forgotten.
//
// Every process that uses the file must go through a FileGuard; they exclude each other by a lock of the operating system on
// a file beside it (path + ".lock"), which vanishes with a process that dies. Where the system has no such lock, writes
// fail with [errors.ErrUnsupported]. It does not span machines: file locks of network file systems are not relied on.
//
// A missing file has token 0 and no data. A file it did not write, or a damaged one, is refused with [ErrGuardFile] and left
// alone. Methods are safe for concurrent use; they block on the disk and on other writers.
type FileGuard struct{ path string }

// NewFileGuard guards the file at path. The file need not exist; its directory must.
func NewFileGuard(path string) *FileGuard { return &FileGuard{path: path} }

// Read returns the data and the token it was written under. It does not wait for writers.
func (g *FileGuard) Read() (Token, []byte, error) {
	f, err := os.Open(g.path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil, nil
	}
	if err != nil {
		return 0, nil, fmt.Errorf("lockservice: read guarded file: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, guardHeaderBytes+FileBytesMax+1))
	if err != nil {
		return 0, nil, fmt.Errorf("lockservice: read guarded file: %w", err)
	}
	token, data, err := decodeGuardFile(b)
	if err != nil {
		return 0, nil, fmt.Errorf("%w: %s: %w; move it away to start anew", ErrGuardFile, g.path, err)
	}
	return token, data, nil
}

// Claim makes token the file's, if it is not stale, and returns the data: from then on no older token writes. Who reads, works
// and writes back must begin with it. After a mere Read, a former holder's late write could still land, and the write that
// follows from what was read would undo it.
func (g *FileGuard) Claim(token Token) (data []byte, err error) {
	err = g.Update(token, func(old []byte) ([]byte, error) {
		data = old
		return bytes.Clone(old), nil
	})
	if err != nil {
		return nil, err
	}
	return data, nil
}

// Write replaces the data if token is not stale, else returns [ErrStaleToken] and changes nothing. When it returns nil the
// data is durable.
func (g *FileGuard) Write(token Token, data []byte) error {
	return g.Update(token, func([]byte) ([]byte, error) { return data, nil })
}

// Update replaces the data by what fn makes of it, if token is not stale; other writers wait meanwhile. When fn fails nothing
// changes and its error is returned. After an error of the disk the file holds the old data or the new, whole. fn owns what
// it is given.
func (g *FileGuard) Update(token Token, fn func(old []byte) ([]byte, error)) (err error) {
	unlock, err := lockFile(g.path + guardLockSuffix)
	if err != nil {
		return fmt.Errorf("lockservice: lock guarded file: %w", err)
	}
	defer func() { err = errors.Join(err, unlock()) }()
	highest, old, err := g.Read()
	if err != nil {
		return err
	}
	if err := checkToken(token, highest); err != nil {
		return err
	}
	data, err := fn(old)
	if err != nil {
		return err
	}
	if len(data) > FileBytesMax {
		return fmt.Errorf("%w: %d bytes of data in one guarded file, at most %d", ErrLimit, len(data), FileBytesMax)
	}
	if err := replaceFile(g.path, encodeGuardFile(token, data)); err != nil {
		return fmt.Errorf("lockservice: write guarded file: %w", err)
	}
	return nil
}

// replaceFile puts b in the place of path, durably and in one step. Callers exclude each other, so the name of the pending
// file can be fixed; what a crash left there is removed.
func replaceFile(path string, b []byte) error {
	pending := path + guardPendingSuffix
	if err := os.Remove(pending); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	mode := fs.FileMode(guardFileMode)
	if old, err := os.Stat(path); err == nil {
		mode = old.Mode().Perm()
	}
	// O_EXCL: nothing that appears under this name meanwhile, such as a symbolic link, is followed.
	f, err := os.OpenFile(pending, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(pending))
	}
	if err := os.Rename(pending, path); err != nil {
		return errors.Join(err, os.Remove(pending))
	}
	return syncDir(filepath.Dir(path))
}

func encodeGuardFile(token Token, data []byte) []byte {
	sum := sha256.Sum256(data)
	head := fmt.Sprintf("%s %s token=%d bytes=%d sha256=%x\n", guardMagic, guardVersion, uint64(token), len(data), sum)
	return append([]byte(head), data...)
}

// decodeGuardFile reads what encodeGuardFile wrote and nothing else. The data aliases b.
func decodeGuardFile(b []byte) (Token, []byte, error) {
	end := bytes.IndexByte(b[:min(len(b), guardHeaderBytes)], '\n')
	if end < 0 || !bytes.HasPrefix(b, []byte(guardMagic+" ")) {
		return 0, nil, errors.New("it does not begin with a guard's header")
	}
	fields := strings.Split(string(b[:end]), " ")
	if fields[1] != guardVersion {
		return 0, nil, fmt.Errorf("format version %.20q, this program reads %s", fields[1], guardVersion)
	}
	if len(fields) != 5 {
		return 0, nil, errors.New("damaged header")
	}
	token, okToken := headerNumber(fields[2], "token=")
	size, okSize := headerNumber(fields[3], "bytes=")
	sum, okSum := strings.CutPrefix(fields[4], "sha256=")
	data := b[end+1:]
	switch {
	case !okToken || !okSize || !okSum || token == 0:
		return 0, nil, errors.New("damaged header")
	case size > FileBytesMax:
		return 0, nil, fmt.Errorf("%d bytes of data, at most %d", size, FileBytesMax)
	case uint64(len(data)) != size:
		return 0, nil, fmt.Errorf("%d bytes of data and the header says %d", len(data), size)
	}
	if got := sha256.Sum256(data); sum != hex.EncodeToString(got[:]) {
		return 0, nil, errors.New("the data is not what was written: checksum differs")
	}
	return Token(token), data, nil
}

// headerNumber reads a decimal number in its one spelling.
func headerNumber(field, name string) (uint64, bool) {
	digits, ok := strings.CutPrefix(field, name)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, err == nil && strconv.FormatUint(n, 10) == digits
}
