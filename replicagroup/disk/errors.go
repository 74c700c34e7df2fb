package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"latchkey/replicagroup"
)

// Errors to match with errors.Is. A directory without a store matches [io/fs.ErrNotExist]. Errors of the disk itself, and
// every error of a store that has failed, match [replicagroup.ErrStore].
var (
	// ErrForeign: the store belongs to another overlay.
	ErrForeign = errors.New("disk: store of another overlay")
	// ErrVersion: a newer program wrote the store, and this one cannot read it.
	ErrVersion = errors.New("disk: store of another format version")
	// ErrInUse: another process has the store open, or this one has twice.
	ErrInUse = errors.New("disk: store in use")
	// ErrDamaged: the store does not hold what was written into it.
	ErrDamaged = errors.New("disk: store damaged")
	// ErrCopied: the directory is a copy or a restored backup of a store, so its replicas may live elsewhere too.
	ErrCopied = errors.New("disk: copy of a store")
)

// errClosed says that a store was used after Close.
var errClosed = errors.New("store closed")

// rotten says that Pebble cannot read what it wrote, in one line. The causes it names are not passed on: a file that is missing
// from a store is no missing store.
func rotten(err error) error { return damaged("%s", strings.ReplaceAll(err.Error(), "\n", "; ")) }

// failed wraps what ended a store's life.
func failed(err error) error {
	if errors.Is(err, replicagroup.ErrStore) {
		return err
	}
	advice := "start again once the disk is well: nothing reported as stored is lost"
	switch {
	case errors.Is(err, ErrDamaged):
		advice = "restore nothing over it: move the directory away and let the peer join anew"
	case errors.Is(err, fs.ErrPermission):
		advice = "nothing is lost: start again as a user who may read and write there"
	case errors.Is(err, syscall.ENOSPC):
		advice = "the disk is full: free space and start again; nothing reported as stored is lost"
	}
	return fmt.Errorf("%w: %w (%s)", replicagroup.ErrStore, err, advice)
}
