package lockservice

import (
	"fmt"
	"time"
	"unicode"
	"unicode/utf8"
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
)

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
