//go:build unix

package api

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// ownerOnly gives the socket its mode before bind makes it appear, so that there is no moment in which others may connect.
// Only Linux takes the mode from there; elsewhere the call fails, harmlessly.
func ownerOnly(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) { unix.Fchmod(int(fd), 0o600) })
}

// refused reports whether err says that nobody listens at an existing socket.
func refused(err error) bool { return errors.Is(err, unix.ECONNREFUSED) }
