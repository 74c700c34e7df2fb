package durablefile

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// Errors of [Read].
var (
	ErrNotAFile = errors.New("not a regular file")
	ErrTooLong  = errors.New("file too long")
)

// Read returns what a regular file holds, if that is at most bytesMax bytes. Where there is something else, such as a pipe that
// nobody writes to or a device that never ends, it does not wait for it. Errors match [ErrNotAFile], [ErrTooLong] or are those
// of the system, [io/fs.ErrNotExist] among them.
func Read(path string, bytesMax int64) (_ []byte, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %w", path, ErrNotAFile)
	}
	b, err := io.ReadAll(io.LimitReader(f, bytesMax+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > bytesMax {
		return nil, fmt.Errorf("%s: %w: more than %d bytes", path, ErrTooLong, bytesMax)
	}
	return b, nil
}
