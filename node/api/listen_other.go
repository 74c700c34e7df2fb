//go:build !unix

package api

import (
	"errors"
	"syscall"
)

// ownerOnly leaves the access list as the directory hands it down.
func ownerOnly(_, _ string, _ syscall.RawConn) error { return nil }

// refused reports whether err says that nobody listens at an existing socket.
func refused(err error) bool {
	const connRefused = syscall.Errno(10061) // WSAECONNREFUSED
	return errors.Is(err, connRefused) || errors.Is(err, syscall.ECONNREFUSED)
}
