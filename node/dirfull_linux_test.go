package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// On a disk that is full after any number of blocks, init says so and leaves nothing, and works once there is room.
func TestFullDiskLeavesNothing(t *testing.T) {
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=4k"); err != nil {
		t.Skipf("it mounts a file system, which takes root: %v", err)
	}
	defer unix.Unmount(disk, unix.MNT_DETACH)
	dir, s := filepath.Join(disk, "peer"), founderSpec(t)
	page := os.Getpagesize()
	for blocks := 1; ; blocks += 1 + blocks/16 {
		if err := unix.Mount("tmpfs", disk, "tmpfs", unix.MS_REMOUNT, fmt.Sprintf("size=%d", blocks*page)); err != nil {
			t.Fatal(err)
		}
		err := CreateDir(dir, s)
		if err == nil {
			if blocks < len(madeFiles) {
				t.Errorf("%d files fit in %d blocks: the disk was not full", len(madeFiles), blocks)
			}
			if err := unix.Mount("tmpfs", disk, "tmpfs", unix.MS_REMOUNT, "size=64m"); err != nil {
				t.Fatal(err)
			}
			checkHolds(t, dir, s)
			return
		}
		if !errors.Is(err, syscall.ENOSPC) || blocks > 4096 {
			t.Fatalf("%d blocks: %v", blocks, err)
		}
		for _, name := range append(slices.Clone(madeFiles), unfinishedFile) {
			if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
				t.Errorf("%d blocks: %s is left", blocks, name)
			}
		}
	}
}
