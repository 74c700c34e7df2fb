package node

import (
	"errors"
	"fmt"

	"latchkey/internal/filelock"
)

// lockPath takes an exclusive lock on a file that the system drops when the process ends, however it ends.
func lockPath(path string) (unlock func() error, err error) {
	l, err := filelock.Take(path)
	switch {
	case errors.Is(err, filelock.ErrHeld):
		return nil, fmt.Errorf("%w: another daemon, or latchkey init or join, holds %s; stop it, or use another directory", ErrInUse, path)
	case err != nil:
		return nil, fmt.Errorf("node: %w", err)
	}
	return l.Release, nil
}
