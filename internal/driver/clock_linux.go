package driver

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// suspendAware reads CLOCK_BOOTTIME, which Go's own monotonic clock is not. It never blocks, so the scheduler need not be told
// of the call, which halves its price.
func suspendAware() (nanoseconds int64, ok bool) {
	var ts unix.Timespec
	if _, _, errno := unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_BOOTTIME, uintptr(unsafe.Pointer(&ts)), 0); errno != 0 {
		return 0, false
	}
	return ts.Nano(), true
}
