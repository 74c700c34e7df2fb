package lockservice

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"
)

// lockFile takes the exclusive lock of the file at path, made if need be, and waits for it. The lock belongs to this handle,
// so it also excludes other goroutines of the process, and it ends with the process.
func lockFile(path string) (unlock func() error, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, guardFileMode)
	if err != nil {
		return nil, err
	}
	const wholeFile = ^uint32(0)
	if err := windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK, 0, wholeFile, wholeFile, new(windows.Overlapped)); err != nil {
		return nil, errors.Join(&os.PathError{Op: "LockFileEx", Path: path, Err: err}, f.Close())
	}
	return f.Close, nil
}

// syncDir does nothing: the system offers no sync of a directory, and journals renames itself.
func syncDir(string) error { return nil }
