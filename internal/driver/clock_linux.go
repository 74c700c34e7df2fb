package driver

import "golang.org/x/sys/unix"

// suspendAware reads CLOCK_BOOTTIME, which Go's own monotonic clock is not.
func suspendAware() (nanoseconds int64, ok bool) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, false
	}
	return ts.Nano(), true
}
