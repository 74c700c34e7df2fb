package disk

import (
	"golang.org/x/sys/unix"
)

// fileID returns what the file system knows a file by, which a copy does not share, or 0 where that does not last over remounts
// or is not known to. It is made of the file's number and, where the file system keeps it, the moment at which the file was
// made: a number is given out again once its file is gone, and where a directory was removed and a copy put in its place, that may
// be to the very file.
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
	var s unix.Statx_t
	if unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_INO|unix.STATX_BTIME, &s) != nil || s.Mask&unix.STATX_INO == 0 {
		return 0
	}
	if s.Mask&unix.STATX_BTIME == 0 {
		return s.Ino
	}
	// Any mixture will do; numbers are small and moments far apart.
	return max(1, s.Ino<<40^s.Ino>>24^uint64(s.Btime.Sec)*1e9+uint64(s.Btime.Nsec))
}
