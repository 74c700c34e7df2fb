//go:build unix

package node

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// lockPath takes an exclusive lock on a file that the system drops when the process ends, however it ends.
func lockPath(path string) (unlock func() error, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: another daemon, or latchkey init or join, holds %s; stop it, or use another directory", ErrInUse, path)
		}
		return nil, fmt.Errorf("node: lock %s: %w", path, err)
	}
	return func() error {
		// Closing alone leaves the lock to a process that is being started at this moment: until it runs its program, it has our
		// files open.
		return errors.Join(unix.Flock(int(f.Fd()), unix.LOCK_UN), f.Close())
	}, nil
}
