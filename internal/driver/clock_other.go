//go:build !linux

package driver

// suspendAware says that this system has no such clock that we use; [Clock.Jumps] detects suspends instead.
func suspendAware() (nanoseconds int64, ok bool) { return 0, false }
