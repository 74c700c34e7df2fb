package api

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"
)

// ErrInUse is matched when another daemon answers at the address.
var ErrInUse = errors.New("api: address in use")

// Listen opens the unix socket that addr names ([ParseAddr]) so that only its owner can connect. A socket that a dead
// daemon left behind is replaced. One that still answers is refused with [ErrInUse], and so is a file of any other kind.
// Closing the listener removes the socket.
func Listen(addr string) (net.Listener, error) {
	path, err := ParseAddr(addr)
	if err != nil {
		return nil, err
	}
	if err := clearStale(path); err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: ownerOnly}
	l, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("api: cannot listen at %s: %w", path, err)
	}
	// Where ownerOnly cannot say so before the socket appears, this closes what the process's umask left open.
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("api: cannot keep others out of %s: %w", path, err)
	}
	return l, nil
}

// clearStale removes the socket of a daemon that is gone.
func clearStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("api: cannot listen at %s: %w", path, err)
	case info.Mode()&fs.ModeSocket == 0:
		return fmt.Errorf("%w: %s exists and is no socket; remove it or choose another --api", ErrInUse, path)
	}
	conn, err := net.DialTimeout("unix", path, 2*time.Second)
	if err == nil {
		conn.Close()
		return fmt.Errorf("%w: a daemon answers at %s already; stop it with latchkey shutdown, or choose another --path or --api", ErrInUse, path)
	}
	if !refused(err) {
		return fmt.Errorf("%w: %s: cannot tell whether a daemon lives there: %v", ErrInUse, path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("api: cannot remove the socket that a dead daemon left: %w", err)
	}
	return nil
}
