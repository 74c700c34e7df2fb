package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

// configLockFile is locked while somebody reads the configuration to write it back changed. A daemon does not mind.
const configLockFile = "config.lock"

const configLockPoll = 5 * time.Millisecond

// LockConfig keeps others who call it, in this process or another, from changing the configuration of a directory until unlock. It
// waits for them until ctx ends: [ErrInUse]. The directory must exist.
func LockConfig(ctx context.Context, dir string) (unlock func() error, err error) {
	path := filepath.Join(dir, configLockFile)
	for {
		unlock, err := lockPath(path)
		if !errors.Is(err, ErrInUse) {
			return unlock, err
		}
		select {
		case <-time.After(configLockPoll):
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: another latchkey config set or edit holds %s and does not end: %w", ErrInUse, path, context.Cause(ctx))
		}
	}
}
