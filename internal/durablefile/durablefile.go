// Package durablefile writes files that are whole after a crash, either as they were or as they were to become, and reads them
// without waiting or growing for what is no such file.
package durablefile

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Before, where it is set, is told of each change to the disk before it is made. It is for tests, which end the process there; no program
// sets it.
var Before func(what, path string)

func before(what, path string) {
	if Before != nil {
		Before(what, path)
	}
}

// staleAfter is how old a temporary file must be to be taken for one that a killed process left.
const staleAfter = time.Minute

// Create writes a new file and waits until its content is on the disk; its name is once [SyncDir] has returned too. It
// fails if the file exists, with an error that matches [fs.ErrExist]. After any other error the file may exist in part.
func Create(path string, data []byte, mode fs.FileMode) error {
	before("create", path)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	return write(f, data)
}

func write(f *os.File, data []byte) error {
	return fill(f, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

func fill(f *os.File, content func(io.Writer) error) (err error) {
	defer func() { err = errors.Join(err, f.Close()) }()
	before("write", f.Name())
	if err := content(f); err != nil {
		return err
	}
	before("sync", f.Name())
	return f.Sync()
}

// Remove removes a file. That it is gone outlives a crash once [SyncDir] has returned too.
func Remove(path string) error {
	before("remove", path)
	return os.Remove(path)
}

// Replace puts data in place of a file, or makes it: whoever opens the file sees what it held before or data, also after a
// crash. The file is data's for good when Replace returns. It gets this mode, whatever it had. After an error it holds what
// it held, unless the error came from the last step, the wait for the directory.
func Replace(path string, data []byte, mode fs.FileMode) error {
	return ReplaceWith(path, mode, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// ReplaceWith does what [Replace] does, with what content writes. An error of content is returned and changes nothing.
func ReplaceWith(path string, mode fs.FileMode, content func(io.Writer) error) error {
	dir, name := filepath.Split(path)
	if dir == "" {
		dir = "."
	}
	sweep(dir, name)
	before("create beside", path)
	f, err := os.CreateTemp(dir, "."+name+".*.tmp")
	if err != nil {
		return err
	}
	if err = errors.Join(f.Chmod(mode), fill(f, content)); err == nil {
		before("rename to", path)
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	before("sync the directory of", path)
	return SyncDir(dir)
}

// Sweep removes what calls of [Replace] for a file left beside it that were killed, once it is certain that nobody is at work on that: after
// a minute. Replace does so itself; Sweep is for files that may never be replaced again.
func Sweep(path string) {
	dir, name := filepath.Split(path)
	if dir == "" {
		dir = "."
	}
	sweep(dir, name)
}

// sweep removes what killed calls of Replace left beside a file.
func sweep(dir, name string) {
	old, _ := filepath.Glob(filepath.Join(escape(dir), "."+escape(name)+".*.tmp"))
	for _, path := range old {
		if info, err := os.Lstat(path); err == nil && time.Since(info.ModTime()) > staleAfter {
			os.Remove(path)
		}
	}
}

// escape makes a path a pattern that matches itself only.
func escape(path string) string {
	var b []byte
	for i := range len(path) {
		if c := path[i]; c == '*' || c == '?' || c == '[' {
			b = append(b, '[', c, ']')
		} else {
			b = append(b, c)
		}
	}
	return string(b)
}
