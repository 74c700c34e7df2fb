//go:build unix

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// permissionAdvice says what stands in the way of an operation that the system did not permit, and what to do; "" where err is no such
// error, or does not say what was touched.
func permissionAdvice(err error) string {
	if !errors.Is(err, fs.ErrPermission) {
		return ""
	}
	var file *fs.PathError
	var socket *net.OpError
	var path string
	switch {
	case errors.As(err, &file):
		path = file.Path
	case errors.As(err, &socket) && socket.Addr != nil && socket.Addr.Network() == "unix":
		path = socket.Addr.String()
	}
	if !filepath.IsAbs(path) {
		return ""
	}
	// What is not there, or not to be seen, is so because of the directory above.
	info, statErr := os.Lstat(path)
	for ; statErr != nil && path != "/"; info, statErr = os.Lstat(path) {
		path = filepath.Dir(path)
	}
	stat, ok := sysStat(info)
	switch {
	case !ok:
		return ""
	case int(stat.Uid) == os.Geteuid():
		return fmt.Sprintf("%s is yours and has mode %#o: change that with chmod u+rwX", path, info.Mode().Perm())
	}
	owner := userName(stat.Uid)
	return fmt.Sprintf("%s belongs to user %s, and this is user %s: say it as user %[2]s, or give what is there to user %[3]s (chown), or name another --path",
		path, owner, userName(uint32(os.Geteuid())))
}

func sysStat(info fs.FileInfo) (*syscall.Stat_t, bool) {
	if info == nil {
		return nil, false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return stat, ok
}

// userName returns a user's name, or number where it has none.
func userName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}
