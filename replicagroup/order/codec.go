package order

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// Limits of a command. A host refuses a larger one with ErrTooLarge before it is proposed.
const (
	ServiceBytesMax = 32       // length of Command.Service
	DataBytesMax    = 64 << 10 // length of Command.Data
)

var (
	// ErrMalformed is matched by every error about an encoded command that cannot be read.
	ErrMalformed = errors.New("order: malformed command")
	// ErrTooLarge is matched when a command passes a limit.
	ErrTooLarge = errors.New("order: command too large")
)

const (
	codecVersion  = 1
	codecFixed    = 1 + 8 + 8 + 16 + 8 + 8 + 32 + 1
	codecBytesMax = codecFixed + ServiceBytesMax + DataBytesMax
)

// AppendCommand appends the encoding of a stamped command, which is what engines put into their logs. A command over the
// limits matches [ErrTooLarge].
func AppendCommand(b []byte, s Stamp, c Command) ([]byte, error) {
	if len(c.Service) > ServiceBytesMax || len(c.Data) > DataBytesMax {
		return b, fmt.Errorf("%w: service name of %d bytes (at most %d), data of %d bytes (at most %d)",
			ErrTooLarge, len(c.Service), ServiceBytesMax, len(c.Data), DataBytesMax)
	}
	b = append(b, codecVersion)
	b = binary.BigEndian.AppendUint64(b, s.Boot)
	b = binary.BigEndian.AppendUint64(b, uint64(s.At))
	b = append(b, c.Client[:]...)
	b = binary.BigEndian.AppendUint64(b, c.Seq)
	b = binary.BigEndian.AppendUint64(b, c.Acked)
	b = append(b, c.Author[:]...)
	b = append(b, byte(len(c.Service)))
	b = append(b, c.Service...)
	return append(b, c.Data...), nil
}

// DecodeCommand reads what [AppendCommand] wrote. Data aliases b. Errors match [ErrMalformed].
func DecodeCommand(b []byte) (Stamp, Command, error) {
	s, c, service, err := decode(b)
	c.Service = string(service)
	return s, c, err
}

// CheckCommand returns the error that [DecodeCommand] has for b, if any. It allocates nothing when there is none.
func CheckCommand(b []byte) error {
	_, _, _, err := decode(b)
	return err
}

// Own reports whether b is a command of the group itself: of no client, and with data. The empty one of no client tells nothing but
// the time. It looks no further, and b need not be a command.
func Own(b []byte) bool {
	const client = 1 + 8 + 8
	return len(b) > codecFixed && [16]byte(b[client:]) == ClientID{} && len(b) > codecFixed+int(b[codecFixed-1])
}

// decode reads a command but for its service's name, which aliases b.
func decode(b []byte) (s Stamp, c Command, service []byte, err error) {
	if len(b) < codecFixed || len(b) > codecBytesMax {
		return s, c, nil, fmt.Errorf("%w: %d bytes", ErrMalformed, len(b))
	}
	if b[0] != codecVersion {
		return s, c, nil, fmt.Errorf("%w: version %d, this program reads %d", ErrMalformed, b[0], codecVersion)
	}
	b = b[1:]
	u64 := func() uint64 { v := binary.BigEndian.Uint64(b); b = b[8:]; return v }
	s.Boot, s.At = u64(), time.Duration(u64())
	b = b[copy(c.Client[:], b):]
	c.Seq, c.Acked = u64(), u64()
	b = b[copy(c.Author[:], b):]
	n := int(b[0])
	if b = b[1:]; n > ServiceBytesMax || n > len(b) {
		return s, c, nil, fmt.Errorf("%w: service name of %d bytes with %d left", ErrMalformed, n, len(b))
	}
	service = b[:n]
	if b = b[n:]; len(b) > DataBytesMax {
		return s, c, nil, fmt.Errorf("%w: data of %d bytes", ErrMalformed, len(b))
	}
	if s.At < 0 {
		return s, c, nil, fmt.Errorf("%w: stamp before its boot", ErrMalformed)
	}
	c.Data = b
	return s, c, service, nil
}
