//go:build unix

package durablefile

import (
	"errors"
	"os"
)

// SyncDir waits until the names in a directory are on the disk.
func SyncDir(dir string) (err error) {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return f.Sync()
}
