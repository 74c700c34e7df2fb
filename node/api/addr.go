package api

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"syscall"
)

// ErrAddr is matched when an API address cannot be used.
var ErrAddr = errors.New("api: unusable address")

// addrBytesMax bounds an address before anything else is asked of it.
const addrBytesMax = 4096

// socketPathMax is the longest path of a unix socket on this system, in bytes: the kernel's field less its closing zero.
const socketPathMax = len(syscall.RawSockaddrUnix{}.Path) - 1

// ParseAddr returns the path of the unix socket that addr names: a path, or unix:// and an absolute path. The errors match
// [ErrAddr] and say what to do.
func ParseAddr(addr string) (path string, err error) {
	switch rest, isURL := strings.CutPrefix(addr, "unix://"); {
	case addr == "":
		return "", fmt.Errorf("%w: it is empty; give the path of the daemon's socket, like /run/latchkey/api.sock", ErrAddr)
	case len(addr) > addrBytesMax:
		return "", fmt.Errorf("%w: it has %d bytes; give the path of the daemon's socket, at most %d bytes", ErrAddr, len(addr), socketPathMax)
	case strings.ContainsRune(addr, 0):
		return "", fmt.Errorf("%w: %q contains a zero byte", ErrAddr, addr)
	case isURL:
		if !filepath.IsAbs(rest) {
			return "", fmt.Errorf("%w: %q: after unix:// comes an absolute path, like unix:///run/latchkey/api.sock", ErrAddr, addr)
		}
		path = rest
	case strings.Contains(addr, "://"):
		return "", fmt.Errorf("%w: %q: it names no unix socket; use a path or unix:///path, or, for a daemon that listens there, http://HOST:PORT or https://HOST:PORT", ErrAddr, addr)
	default:
		path = addr
	}
	path = filepath.Clean(path)
	if len(path) > socketPathMax {
		return "", fmt.Errorf("%w: the socket path %s has %d bytes and this system allows %d; choose a shorter one with --api, like --api /tmp/latchkey.sock, or a shorter --path",
			ErrAddr, path, len(path), socketPathMax)
	}
	return path, nil
}

// IsHTTP reports whether an address is one of a daemon that answers on TCP: it begins with http:// or https://.
func IsHTTP(addr string) bool {
	return strings.HasPrefix(addr, "http://") || strings.HasPrefix(addr, "https://")
}

// parseHTTP returns the URL that every procedure's begins with. The errors match [ErrAddr].
func parseHTTP(addr string) (string, error) {
	if len(addr) > addrBytesMax {
		return "", fmt.Errorf("%w: it has %d bytes; want http://HOST:PORT or https://HOST:PORT", ErrAddr, len(addr))
	}
	u, err := url.Parse(addr)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		return "", fmt.Errorf("%w: %.200q: want http://HOST:PORT or https://HOST:PORT and nothing else", ErrAddr, addr)
	}
	return u.Scheme + "://" + u.Host, nil
}
