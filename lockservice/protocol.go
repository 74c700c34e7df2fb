package lockservice

import "fmt"

// Protocol says how a lock is kept. Whoever asks for one name by different protocols excludes each other: a name is locked by one of them at
// a time, and the other follows.
type Protocol uint8

// The protocols.
const (
	// ProtocolAuto is sigma where the overlay runs it and it can keep such a lock, else group.
	ProtocolAuto Protocol = iota
	// ProtocolSigma: the voters of the lock's group keep it between them. Locks that one holds at a time, without a value.
	ProtocolSigma
	// ProtocolGroup: the log of the lock's group keeps it.
	ProtocolGroup
	protocols
)

// String returns the protocol as users write it.
func (p Protocol) String() string {
	if p >= protocols {
		return fmt.Sprintf("Protocol(%d)", uint8(p))
	}
	return [...]string{"auto", "sigma", "group"}[p]
}

// ParseProtocol is the inverse of [Protocol.String]. Errors match [ErrShape].
func ParseProtocol(s string) (Protocol, error) {
	for p := range protocols {
		if p.String() == s {
			return p, nil
		}
	}
	if s == "backoff" {
		return 0, fmt.Errorf("%w: protocol backoff is for comparison only: it knows nothing of who holds a name by sigma or group, so it cannot exclude them; use auto", ErrShape)
	}
	return 0, fmt.Errorf("%w: protocol %.32q (auto, sigma or group)", ErrShape, s)
}

// WithProtocol says how the lock is to be kept. Default: [ProtocolAuto]. One that the overlay does not run, or that cannot keep such a lock,
// is refused with [ErrShape].
func WithProtocol(p Protocol) Option { return func(c *config) { c.protocol = p } }

// checkProtocol reports whether a request asks for a protocol that can keep such a lock.
func checkProtocol(r Request) error {
	switch {
	case r.Protocol >= protocols:
		return fmt.Errorf("%w: %v", ErrShape, r.Protocol)
	case r.Protocol == ProtocolSigma && (r.Shared || r.Permits > 0 || r.Value != ""):
		return fmt.Errorf("%w: protocol sigma has exclusive locks only, without a value; use auto or group", ErrShape)
	}
	return nil
}
