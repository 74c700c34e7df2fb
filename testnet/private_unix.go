//go:build unix

package testnet

import (
	"fmt"
	"os"
	"syscall"
)

// checkPrivate checks that a directory is this user's and not for others to write, who could put sockets of their own there.
func checkPrivate(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("testnet: directory: %w", err)
	}
	switch st, ok := info.Sys().(*syscall.Stat_t); {
	case !info.IsDir():
		return fmt.Errorf("%w: %s is no directory; choose another --dir", ErrOptions, dir)
	case ok && int(st.Uid) != os.Geteuid():
		return fmt.Errorf("%w: %s belongs to another user; choose another --dir", ErrOptions, dir)
	case info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("%w: %s can be written by other users; close it with chmod go-w, or choose another --dir", ErrOptions, dir)
	}
	return nil
}
