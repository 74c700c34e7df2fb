package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// fence stands between Pebble and the file system. After the first error it lets nothing more through: what is on the disk
// stays as it was at that moment, which is what a crash would have left and what Pebble recovers from.
//
// Pebble itself ends the process when its log or manifest cannot be written, or panics with its locks held. Behind the fence
// it never sees such an error: it believes that all went well, can be closed in good order, and whoever would tell others
// that something was stored asks the fence first ([fence.failure]). So a writer calls failure after Pebble has said yes.
type fence struct {
	vfs.FS
	ghosts *vfs.MemFS // takes the files that are made behind a closed fence
	ledger *ledger    // knows what is written

	mu   sync.RWMutex
	err  error
	dead chan struct{} // closed with the first error
}

// newFence returns a fence before a file system, for the store in dir.
func newFence(under vfs.FS, dir string) *fence {
	return &fence{FS: under, ghosts: vfs.NewMem(), ledger: newLedger(under, dir), dead: make(chan struct{})}
}

// fail closes the fence. Only the first error is kept.
func (f *fence) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = failed(err)
		close(f.dead)
	}
}

// failure returns the error that closed the fence, or nil.
func (f *fence) failure() error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.err
}

// usual reports whether err is an answer rather than a failure.
func usual(err error) bool {
	return err == nil || errors.Is(err, io.EOF) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrExist)
}

// look passes on what a reading operation returned, and closes the fence if it failed.
func (f *fence) look(err error) error {
	if !usual(err) {
		f.fail(err)
	}
	return err
}

// change runs a changing operation unless the fence is closed, and hides its failure.
func (f *fence) change(op func() error) error {
	if f.failure() != nil {
		return nil
	}
	err := op()
	if usual(err) {
		return err
	}
	f.fail(err)
	return nil
}

// make is change for operations that return a file to write to, at a path. What was there is gone.
func (f *fence) make(path string, op func() (vfs.File, error)) (vfs.File, error) {
	var file vfs.File
	var grows *growing
	err := f.change(func() (err error) {
		if f.ledger.lists(path) {
			if err := f.ledger.lose(path); err != nil {
				return err
			}
		}
		if file, err = op(); err != nil {
			return err
		}
		if name, ok := f.ledger.name(path); ok {
			grows, err = f.ledger.begun(name)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if f.failure() != nil {
		if file != nil {
			file.Close()
		}
		if file, err = f.ghosts.Create("/ghost", vfs.WriteCategoryUnspecified); err != nil {
			return nil, fmt.Errorf("disk: file behind the fence: %w", err)
		}
		return file, nil
	}
	return &fencedFile{File: file, fence: f, grows: grows}, nil
}

// lose is change for operations after which what was at a path is there no more.
func (f *fence) lose(path string, op func() error) error {
	return f.change(func() error {
		if err := f.ledger.lose(path); err != nil {
			return err
		}
		return op()
	})
}

// Create makes a file. Pebble makes a file named marker.* to point at another one that it has just made, and trusts the disk
// to keep both or the older one. Nobody promises that about names in a directory, so the older ones are synced first.
func (f *fence) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if strings.HasPrefix(f.PathBase(name), "marker.") {
		if err := syncDir(f, f.PathDir(name)); err != nil && f.failure() == nil {
			return nil, err
		}
	}
	return f.make(name, func() (vfs.File, error) { return f.FS.Create(name, c) })
}

func (f *fence) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	return f.make(name, func() (vfs.File, error) { return f.FS.OpenReadWrite(name, c, o...) })
}

func (f *fence) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return f.make(to, func() (vfs.File, error) {
		if err := f.ledger.lose(from); err != nil {
			return nil, err
		}
		return f.FS.ReuseForWrite(from, to, c)
	})
}

func (f *fence) Link(from, to string) error {
	return f.change(func() error { return f.FS.Link(from, to) })
}

func (f *fence) Rename(from, to string) error {
	return f.lose(from, func() error { return f.FS.Rename(from, to) })
}

func (f *fence) Remove(name string) error {
	return f.lose(name, func() error { return f.FS.Remove(name) })
}

func (f *fence) RemoveAll(name string) error {
	return f.change(func() error { return f.FS.RemoveAll(name) })
}

func (f *fence) MkdirAll(name string, mode os.FileMode) error {
	return f.change(func() error { return f.FS.MkdirAll(name, mode) })
}

func (f *fence) Open(name string, o ...vfs.OpenOption) (vfs.File, error) {
	return f.open(f.FS.Open(name, o...))
}

func (f *fence) OpenDir(name string) (vfs.File, error) { return f.open(f.FS.OpenDir(name)) }

func (f *fence) open(file vfs.File, err error) (vfs.File, error) {
	if f.look(err) != nil {
		return nil, err
	}
	return &fencedFile{File: file, fence: f}, nil
}

func (f *fence) List(dir string) ([]string, error) {
	names, err := f.FS.List(dir)
	return names, f.look(err)
}

func (f *fence) Stat(name string) (vfs.FileInfo, error) {
	info, err := f.FS.Stat(name)
	return info, f.look(err)
}

func (f *fence) Unwrap() vfs.FS { return f.FS }

// fencedFile is a file behind a fence.
type fencedFile struct {
	vfs.File
	fence *fence
	grows *growing // nil: FILES does not list it, or it is read
}

func (f *fencedFile) Read(p []byte) (int, error) {
	n, err := f.File.Read(p)
	return n, f.fence.look(err)
}

func (f *fencedFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(p, off)
	return n, f.fence.look(err)
}

func (f *fencedFile) Stat() (vfs.FileInfo, error) {
	info, err := f.File.Stat()
	return info, f.fence.look(err)
}

func (f *fencedFile) Write(p []byte) (int, error) {
	return len(p), f.fence.change(func() error {
		do := func() error { _, err := f.File.Write(p); return err }
		if f.grows == nil {
			return do()
		}
		return f.grows.write(p, do)
	})
}

func (f *fencedFile) WriteAt(p []byte, off int64) (int, error) {
	return len(p), f.fence.change(func() error { _, err := f.File.WriteAt(p, off); return err })
}

// Preallocate only speeds up later writes, which report what fails.
func (f *fencedFile) Preallocate(off, n int64) error {
	if f.fence.failure() == nil {
		_ = f.File.Preallocate(off, n)
	}
	return nil
}

func (f *fencedFile) Sync() error     { return f.sync(f.File.Sync) }
func (f *fencedFile) SyncData() error { return f.sync(f.File.SyncData) }

func (f *fencedFile) sync(do func() error) error {
	return f.fence.change(func() error {
		if f.grows == nil {
			return do()
		}
		return f.grows.sync(do)
	})
}

func (f *fencedFile) SyncTo(n int64) (full bool, err error) {
	err = f.fence.change(func() (err error) { full, err = f.File.SyncTo(n); return err })
	return full, err
}

// Close always closes.
func (f *fencedFile) Close() error {
	if err := f.File.Close(); !usual(err) {
		f.fence.fail(err)
	}
	return nil
}
