//go:build unix

package filelock

import (
	"os"

	"golang.org/x/sys/unix"
)

// removesOpen says that a file can be removed while it is open, and that it can be while others have it open.
const removesOpen = true

const errHeld = unix.EWOULDBLOCK

// open follows no link, which somebody else may have put there.
func open(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
}

func lock(f *os.File) error   { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }
func unlock(f *os.File) error { return unix.Flock(int(f.Fd()), unix.LOCK_UN) }
