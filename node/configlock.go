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
	return lockWait(ctx, filepath.Join(dir, configLockFile), "latchkey config set or edit")
}

// lockWait takes the lock of a file, and waits for another who has it until ctx ends.
func lockWait(ctx context.Context, path, who string) (unlock func() error, err error) {
	for {
		unlock, err := lockPath(path)
		if !errors.Is(err, ErrInUse) {
			return unlock, err
		}
		select {
		case <-time.After(configLockPoll):
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: another %s holds %s and does not end: %w", ErrInUse, who, path, context.Cause(ctx))
		}
	}
}
