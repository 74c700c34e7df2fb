// Package filelock locks by a file: one holder at a time, in this process or another. The system drops the lock when the process
// ends, however it ends.
package filelock

import (
	"errors"
	"fmt"
	"os"
)

// ErrHeld is matched when somebody else has the lock.
var ErrHeld = errors.New("filelock: held by another")

// attemptsMax bounds how often Take opens the file anew because a former holder has just removed it.
const attemptsMax = 100

// Lock is a held lock. Its methods are not safe for concurrent use.
type Lock struct {
	path string
	file *os.File // nil once it is given up
}

// Take takes the lock of the file at path, which it makes if needed, for this user alone. It does not wait: errors match [ErrHeld]
// or tell what the system has against it.
func Take(path string) (*Lock, error) {
	for range attemptsMax {
		f, err := open(path)
		if err != nil {
			return nil, fmt.Errorf("filelock: %w", err)
		}
		if err := lock(f); err != nil {
			f.Close()
			if errors.Is(err, errHeld) {
				return nil, fmt.Errorf("%w: %s", ErrHeld, path)
			}
			return nil, fmt.Errorf("filelock: lock %s: %w", path, err)
		}
		l := &Lock{path, f}
		if l.current() {
			return l, nil
		}
		// Its holder has removed it after we had opened it: others lock another file by now.
		if err := l.Release(); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: %s, again and again", ErrHeld, path)
}

// current reports whether the file is the one that its path names.
func (l *Lock) current() bool {
	ours, err := l.file.Stat()
	if err != nil {
		return false
	}
	named, err := os.Lstat(l.path)
	return err == nil && os.SameFile(ours, named)
}

// Release gives the lock up and leaves the file. Further calls do nothing.
func (l *Lock) Release() error {
	if l.file == nil {
		return nil
	}
	f := l.file
	l.file = nil
	// Closing alone leaves the lock to a process that is being started at this moment: until it runs its program, it has our files
	// open.
	if err := errors.Join(unlock(f), f.Close()); err != nil {
		return fmt.Errorf("filelock: unlock %s: %w", l.path, err)
	}
	return nil
}

// Remove gives the lock up and removes the file, unless somebody needs it already. Whoever has opened the file before finds in Take
// that it has gone, and begins anew, so two never hold the lock of one path.
func (l *Lock) Remove() error {
	if l.file == nil {
		return nil
	}
	if removesOpen && l.current() {
		if err := os.Remove(l.path); err != nil {
			return errors.Join(fmt.Errorf("filelock: %w", err), l.Release())
		}
	}
	err := l.Release()
	if !removesOpen {
		_ = os.Remove(l.path) // fails while somebody else has it open
	}
	return err
}
