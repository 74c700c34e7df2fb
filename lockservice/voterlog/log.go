package voterlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	logging "github.com/ipfs/go-log/v2"
)

var log = logging.Logger("latchkey/voterlog")

const (
	// LiveBytesMax bounds what is recorded of all voters together. Beyond it nothing is recorded any more.
	LiveBytesMax = 256 << 20
	// fileSlack is how much more than twice what it needs a file may have before it is written anew.
	fileSlack = 1 << 20
	// fileBytesMax is above what a file can have.
	fileBytesMax = 2*LiveBytesMax + fileSlack + frameBytesMax
	// frameBytesMax bounds one write.
	frameBytesMax = 64 << 20

	frameHead = 8 // length and checksum
)

var magic = []byte("lkvoters\x01") // the last byte is the version

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrFailed is matched by the errors of [Log.Write]: what voters promise cannot be recorded, so they must not promise it.
var ErrFailed = errors.New("voterlog: what voters promise cannot be recorded")

// Life names one start of a host.
type Life struct {
	Store []byte // the id of the host's store; at most 255 bytes
	Start uint64 // how often it was started, this time included
	Boot  string // of the operating system ([BootID]); empty where that is not known; at most 255 bytes
}

// Log is the file of one life. Safe for concurrent use. Its methods block for a write to the operating system at most.
type Log struct {
	path string
	life Life

	mu     sync.Mutex
	file   *os.File // nil: nothing is recorded any more, or in memory only
	memory bool
	stale  error // what Write answers then
	failed chan struct{}
	size   int64
	live   int64
	voters map[string]*voter
	frame  []byte
	spare  []byte // storage of a record that was deleted last
	closed bool
}

// voter is what is recorded of one.
type voter struct {
	head  []byte // nil: none
	names map[string][]byte
}

// Open takes over the file at path for a life, and makes it where there is none. It blocks for two syncs. An error means that the disk
// cannot be used; a file that is of no use is none.
func Open(path string, life Life) (*Log, error) {
	if len(life.Store) > 255 || len(life.Boot) > 255 {
		return nil, fmt.Errorf("voterlog: a store id of %d bytes and a boot id of %d", len(life.Store), len(life.Boot))
	}
	l := &Log{path: path, life: life, voters: make(map[string]*voter), failed: make(chan struct{})}
	if err := l.read(); err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			log.Warnw("nothing is known of what this host's voters have promised: they wait until no lease of theirs can last", "file", path, "err", err)
		}
		l.voters, l.live = make(map[string]*voter), 0
	}
	if err := l.rewrite(true); err != nil {
		return nil, fmt.Errorf("voterlog: %w", err)
	}
	return l, nil
}

// NewMemory returns a log that is in memory, for peers that live in one process and are killed there.
func NewMemory() *Log {
	return &Log{memory: true, voters: make(map[string]*voter), failed: make(chan struct{})}
}

// Detach returns the log of the next life of a peer whose log is in memory. The former one takes nothing any more.
func (l *Log) Detach() *Log {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := &Log{memory: l.memory, voters: l.voters, live: l.live, failed: make(chan struct{})}
	if l.stale = fmt.Errorf("%w: another life has it", ErrFailed); !l.memory {
		next = NewMemory()
	}
	l.drop()
	return next
}

// read reads the file of the life before.
func (l *Log) read() error {
	f, err := os.Open(l.path)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, fileBytesMax+1))
	if err != nil {
		return err
	}
	clean, err := l.decode(b)
	switch {
	case err != nil:
		return err
	case !clean && l.life.Boot == "":
		return errors.New("it was not closed in good order, and whether the system has run on since is not known here")
	}
	return nil
}

// decode reads the bytes of a file.
func (l *Log) decode(b []byte) (clean bool, err error) {
	if len(b) > fileBytesMax {
		return false, fmt.Errorf("more than %d bytes", fileBytesMax)
	}
	head, b, err := nextFrame(b)
	if err != nil {
		return false, err
	}
	last, err := decodeLife(head)
	if err != nil {
		return false, err
	}
	for len(b) > 0 && !clean {
		var frame []byte
		if frame, b, err = nextFrame(b); err != nil {
			return false, err
		}
		if clean = len(frame) == 0; clean {
			break
		}
		if err := l.take(frame); err != nil {
			return false, err
		}
	}
	switch {
	case len(b) > 0:
		return false, errors.New("something follows its end")
	case !bytes.Equal(last.Store, l.life.Store):
		return false, fmt.Errorf("it is of store %x", last.Store)
	case last.Start+1 != l.life.Start:
		return false, fmt.Errorf("it is of start %d, and this is start %d", last.Start, l.life.Start)
	case !clean && last.Boot != l.life.Boot:
		return false, errors.New("it was not closed in good order, and the system has been started anew since")
	}
	return clean, nil
}

// nextFrame takes a frame off b.
func nextFrame(b []byte) (frame, rest []byte, err error) {
	if len(b) < frameHead {
		return nil, nil, errors.New("it ends early")
	}
	n := binary.LittleEndian.Uint32(b)
	if n > frameBytesMax || uint64(len(b)-frameHead) < uint64(n) {
		return nil, nil, errors.New("it ends early")
	}
	frame, rest = b[frameHead:frameHead+n], b[frameHead+n:]
	if crc32.Update(crc32.Checksum(b[:4], castagnoli), castagnoli, frame) != binary.LittleEndian.Uint32(b[4:]) {
		return nil, nil, errors.New("wrong checksum")
	}
	return frame, rest, nil
}

// closeFrame fills in the head of the frame that begins at.
func closeFrame(b []byte, at int) []byte {
	binary.LittleEndian.PutUint32(b[at:], uint32(len(b)-at-frameHead))
	binary.LittleEndian.PutUint32(b[at+4:], crc32.Update(crc32.Checksum(b[at:at+4], castagnoli), castagnoli, b[at+frameHead:]))
	return b
}

func openFrame(b []byte) ([]byte, int) { return append(b, make([]byte, frameHead)...), len(b) }

func encodeLife(b []byte, l Life) []byte {
	b, at := openFrame(b)
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint64(b, l.Start)
	b = appendBytes(b, l.Store)
	b = appendBytes(b, l.Boot)
	return closeFrame(b, at)
}

func decodeLife(b []byte) (l Life, err error) {
	if !bytes.HasPrefix(b, magic) || len(b) < len(magic)+8 {
		return l, errors.New("it is no file of voters that this program can read")
	}
	b = b[len(magic):]
	l.Start, b = binary.LittleEndian.Uint64(b), b[8:]
	store, b, ok := takeBytes(b)
	boot, b, ok2 := takeBytes(b)
	if !ok || !ok2 || len(b) > 0 {
		return l, errors.New("its head cannot be read")
	}
	l.Store, l.Boot = store, string(boot)
	return l, nil
}

func appendBytes[T []byte | string](b []byte, v T) []byte {
	return append(binary.AppendUvarint(b, uint64(len(v))), v...)
}

func takeBytes(b []byte) (v, rest []byte, ok bool) {
	n, k := binary.Uvarint(b)
	if k <= 0 || n > uint64(len(b)-k) {
		return nil, nil, false
	}
	return b[k : k+int(n)], b[k+int(n):], true
}

// Batch is what is to be recorded of one voter as one. The zero value is empty and can be used.
type Batch struct{ b []byte }

// The parts of a batch.
const (
	opVoid byte = iota + 1
	opHead
	opSave
	opDelete
)

// Empty reports whether there is nothing in it.
func (b *Batch) Empty() bool { return len(b.b) == 0 }

// Reset empties it.
func (b *Batch) Reset() { b.b = b.b[:0] }

// Void deletes all that is recorded.
func (b *Batch) Void() { b.b = append(b.b[:0], opVoid) }

// Head records the voter's head.
func (b *Batch) Head(head []byte) { b.b = appendBytes(append(b.b, opHead), head) }

// Save records a name.
func (b *Batch) Save(name string, value []byte) {
	b.b = appendBytes(appendBytes(append(b.b, opSave), name), value)
}

// Delete deletes a name.
func (b *Batch) Delete(name string) { b.b = appendBytes(append(b.b, opDelete), name) }

// take takes a frame into the index.
func (l *Log) take(frame []byte) error {
	key, b, ok := takeBytes(frame)
	if !ok || len(key) == 0 {
		return errors.New("a record of nobody")
	}
	v := l.voters[string(key)]
	if v == nil {
		v = new(voter) // without names, as most are
		l.voters[string(key)] = v
		l.live += int64(len(key))
	}
	for len(b) > 0 {
		op := b[0]
		b = b[1:]
		var name, value []byte
		ok := true
		switch op {
		case opVoid:
			for n, was := range v.names {
				l.live -= int64(len(n) + len(was))
			}
			l.live -= int64(len(v.head))
			v.head = nil
			clear(v.names)
		case opHead:
			if value, b, ok = takeBytes(b); ok {
				l.live += int64(len(value) - len(v.head))
				v.head = append(v.head[:0], value...)
			}
		case opSave:
			if name, b, ok = takeBytes(b); !ok {
				break
			}
			if value, b, ok = takeBytes(b); !ok {
				break
			}
			was, had := v.names[string(name)]
			if v.names == nil {
				v.names = make(map[string][]byte)
			}
			if !had {
				l.live += int64(len(name))
			}
			l.live += int64(len(value) - len(was))
			if had && cap(was) >= len(value) {
				v.names[string(name)] = append(was[:0], value...)
			} else {
				v.names[string(name)] = append(l.spare[:0], value...)
				l.spare = nil
			}
		case opDelete:
			if name, b, ok = takeBytes(b); ok {
				if was, had := v.names[string(name)]; had {
					l.live -= int64(len(name) + len(was))
					delete(v.names, string(name))
					l.spare = was
				}
			}
		default:
			ok = false
		}
		if !ok {
			return errors.New("a record that cannot be read")
		}
	}
	return nil
}

// Of returns what is recorded of a voter: head is nil where nothing is, or where it is not whole. Both are the caller's.
func (l *Log) Of(key string) (head []byte, names map[string][]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := l.voters[key]
	if v == nil || v.head == nil {
		return nil, nil
	}
	names = make(map[string][]byte, len(v.names))
	for n, b := range v.names {
		names[n] = bytes.Clone(b)
	}
	return bytes.Clone(v.head), names
}

// Write records a batch of a voter, whose key is not empty. When it returns nil the operating system has it, or nothing is recorded any
// more ([LiveBytesMax]). Otherwise the error matches [ErrFailed], as those of all later calls do.
func (l *Log) Write(key string, batch *Batch) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil && !l.memory {
		return l.stale
	}
	b, at := openFrame(l.frame[:0])
	b = append(appendBytes(b, key), batch.b...)
	l.frame = closeFrame(b, at)
	if err := l.take(b[frameHead:]); err != nil {
		return l.fail(err)
	}
	switch {
	case len(b) > frameBytesMax || l.live > LiveBytesMax:
		log.Errorw("what voters promise is not recorded any more, so the end of this daemon loses it: they hold too many locks",
			"file", l.path, "bytes", l.live, "most", LiveBytesMax)
		var err error
		if !l.memory {
			err = os.Truncate(l.path, 0)
		}
		if err != nil {
			return l.fail(err)
		}
		l.drop()
	case l.memory:
	case l.size+int64(len(b)) > 2*l.live+fileSlack:
		if err := l.rewrite(false); err != nil {
			return l.fail(err)
		}
	default:
		n, err := l.file.Write(b)
		if err != nil {
			if n > 0 { // what is cut off would make all of it useless
				err = errors.Join(err, l.file.Truncate(l.size))
			}
			return l.fail(err)
		}
		l.size += int64(len(b))
	}
	if cap(l.frame) > fileSlack {
		l.frame = nil
	}
	return nil
}

// fail ends the life of a log whose disk has failed. What it has holds all that was promised.
func (l *Log) fail(err error) error {
	advice := "start again once the disk is well; nothing that was promised is lost"
	if errors.Is(err, syscall.ENOSPC) {
		advice = "the disk is full: free space and start again; nothing that was promised is lost"
	}
	l.stale = fmt.Errorf("%w: %w (%s)", ErrFailed, err, advice)
	l.drop()
	close(l.failed)
	return l.stale
}

// drop ends the recording.
func (l *Log) drop() {
	if l.file != nil {
		l.file.Close()
	}
	l.file, l.memory, l.voters = nil, false, nil
}

// Failed is closed when the disk has failed. [Log.Err] says how.
func (l *Log) Failed() <-chan struct{} { return l.failed }

// Err returns what ended the log's life before its end, or nil.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.failed:
		return l.stale
	default:
		return nil
	}
}

// rewrite writes what is recorded into a new file, which takes the place of the old one.
func (l *Log) rewrite(sync bool) error {
	fresh := l.path + ".new"
	f, err := os.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	size, err := l.dump(f)
	if err == nil && sync {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if l.file != nil {
		l.file.Close() // some systems rename no file that is open, and none over one
	}
	if err = os.Rename(fresh, l.path); err == nil && sync {
		err = syncDir(filepath.Dir(l.path))
	}
	if err == nil {
		f, err = os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND, 0o600)
	}
	if err != nil {
		return err
	}
	l.file, l.size = f, size
	return nil
}

// dump writes all that is recorded.
func (l *Log) dump(w io.Writer) (size int64, err error) {
	b := encodeLife(nil, l.life)
	flush := func() {
		if err == nil {
			_, err = w.Write(b)
			size += int64(len(b))
		}
		b = b[:0]
	}
	for _, key := range slices.Sorted(maps.Keys(l.voters)) {
		v := l.voters[key]
		if v.head == nil && len(v.names) == 0 {
			delete(l.voters, key)
			l.live -= int64(len(key))
			continue
		}
		var at int
		b, at = openFrame(b)
		b = appendBytes(b, key)
		for name, value := range v.names {
			b = appendBytes(appendBytes(append(b, opSave), name), value)
			if len(b) > fileSlack { // a frame holds as much as fits
				b = closeFrame(b, at)
				flush()
				b, at = openFrame(b)
				b = appendBytes(b, key)
			}
		}
		if v.head != nil {
			b = appendBytes(append(b, opHead), v.head)
		}
		if b = closeFrame(b, at); len(b) > fileSlack {
			flush()
		}
	}
	flush()
	return size, err
}

// Close ends the file in good order, and syncs it. The caller has stopped all voters; what is written later is not recorded. It is
// idempotent. An error means that the next life may know nothing of what was promised.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.file == nil {
		l.closed = true
		return nil
	}
	l.closed = true
	b, at := openFrame(nil)
	_, err := l.file.Write(closeFrame(b, at))
	if err == nil {
		err = l.file.Sync()
	}
	if err == nil {
		err = syncDir(filepath.Dir(l.path))
	}
	err = errors.Join(err, l.file.Close())
	l.file, l.voters, l.stale = nil, nil, fmt.Errorf("%w: it is closed", ErrFailed)
	if err != nil {
		return fmt.Errorf("voterlog: %w", err)
	}
	return nil
}
