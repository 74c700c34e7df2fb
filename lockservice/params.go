package lockservice

import (
	"fmt"
	"time"
	"unicode"
	"unicode/utf8"

	"latchkey/lockservice/table"
)

// ServiceName is the service of a group that keeps locks. The key of a lock is the hash of its name.
const ServiceName = "locks"

// Limits of what callers may ask. A group has more of its own, about how much it keeps (package lockservice/table).
const (
	// NameBytesMax bounds a lock's name.
	NameBytesMax = 1024
	// TTLMin is the shortest lease: ten round trips of a slow network must fit into it (lock-protocols.md section 3).
	TTLMin = time.Second
	// TTLDefault is the lease of a lock that asks for none, where the overlay's maximum allows it.
	TTLDefault = 15 * time.Second
	// PermitsMax bounds the permits of a semaphore. One more than so many that share a lock waits.
	PermitsMax = table.HoldersPerLockMax
	// LockDelayMax is the longest lock delay.
	LockDelayMax = table.DelayMax
	// ValueBytesMax bounds what a holder says of itself.
	ValueBytesMax = table.ValueBytesMax
)

// checkShape reports whether a request asks for something that exists. The error matches [ErrShape].
func checkShape(r Request) error {
	switch {
	case r.Permits < 0 || r.Permits > PermitsMax:
		return fmt.Errorf("%w: %d permits; a semaphore has 1 to %d", ErrShape, r.Permits, PermitsMax)
	case r.Shared && r.Permits > 0:
		return fmt.Errorf("%w: a permit of a semaphore is not shared", ErrShape)
	case r.Delay < 0 || r.Delay > LockDelayMax:
		return fmt.Errorf("%w: lock delay %v; it is 0 to %v", ErrShape, r.Delay, LockDelayMax)
	case len(r.Value) > ValueBytesMax:
		return fmt.Errorf("%w: a value of %d bytes, at most %d", ErrShape, len(r.Value), ValueBytesMax)
	case !utf8.ValidString(r.Value):
		return fmt.Errorf("%w: the value is not UTF-8; encode it", ErrShape)
	}
	return checkProtocol(r)
}

// CheckName reports whether a lock may bear this name: 1 to [NameBytesMax] bytes of valid UTF-8 without control characters
// (Unicode's category Cc, so also tab, line ends and U+0080 to U+009F). The error matches [ErrName] and says which rule is
// broken and what to do.
func CheckName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%w: it is empty; give the lock a name of 1 to %d bytes", ErrName, NameBytesMax)
	case len(name) > NameBytesMax:
		return fmt.Errorf("%w: it has %d bytes and %d are allowed; use a shorter one, or a hash of it", ErrName, len(name), NameBytesMax)
	}
	for i := 0; i < len(name); {
		r, n := utf8.DecodeRuneInString(name[i:])
		switch {
		case r == utf8.RuneError && n <= 1:
			return fmt.Errorf("%w: byte 0x%02x at offset %d is not UTF-8; encode the name, for instance in hexadecimal", ErrName, name[i], i)
		case unicode.IsControl(r):
			return fmt.Errorf("%w: control character %U at offset %d; remove or replace it", ErrName, r, i)
		}
		i += n
	}
	return nil
}
