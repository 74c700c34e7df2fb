package disk

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// fileID returns the number by which the file system knows a file, which a copy does not share, or 0 where such numbers do
// not last over remounts or are not known to.
func fileID(path string) uint64 {
	var system unix.Statfs_t
	if unix.Statfs(path, &system) != nil {
		return 0
	}
	switch uint32(system.Type) {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC, unix.TMPFS_MAGIC:
	default:
		return 0
	}
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return stat.Ino
	}
	return 0
}
