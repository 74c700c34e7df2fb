package api

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"time"

	"latchkey/internal/filelock"
)

// ErrInUse is matched when another daemon answers at the address.
var ErrInUse = errors.New("api: address in use")

// lockSuffix is what the name of a socket's lock file has more than the socket's. Two that would listen there both see the socket
// of a dead daemon, and the slower would remove that of the other: so only the holder of the lock looks, removes and listens.
const lockSuffix = ".lock"

// Listen opens the unix socket that addr names ([ParseAddr]) so that only its owner can connect. A socket that a dead
// daemon left behind is replaced. One that still answers is refused with [ErrInUse], and so is a file of any other kind.
// Closing the listener removes the socket, and the lock file beside it, which has the socket's name and ".lock".
func Listen(addr string) (net.Listener, error) {
	path, err := ParseAddr(addr)
	if err != nil {
		return nil, err
	}
	lock, err := filelock.Take(path + lockSuffix)
	switch {
	case errors.Is(err, filelock.ErrHeld):
		return nil, fmt.Errorf("%w: a daemon has %s already; stop it with latchkey shutdown, or choose another --path or --api", ErrInUse, path)
	case err != nil:
		return nil, fmt.Errorf("api: cannot listen at %s: %w", path, err)
	}
	l, err := listen(path)
	if err != nil {
		return nil, errors.Join(err, lock.Remove())
	}
	return &listener{Listener: l, unlock: sync.OnceValue(lock.Remove)}, nil
}

// listener holds a socket's lock until its end.
type listener struct {
	net.Listener
	unlock func() error
}

func (l *listener) Close() error { return errors.Join(l.Listener.Close(), l.unlock()) }

// listen does what Listen does for one whose turn it is.
func listen(path string) (net.Listener, error) {
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
