package pb

import (
	"errors"
	"fmt"
	"math"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"latchkey/coherence/durable"
	"latchkey/coherence/durable/store"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
)

// Limits of what is decoded. What is longer is malformed.
const (
	// MessageBytesMax is above what a message with a value of protocol.ValueMax can be.
	MessageBytesMax = 1<<20 + 1<<12
	// CommandBytesMax is above what a command with such a value and all exceptions can be.
	CommandBytesMax = 1<<20 + 1<<16
)

// ErrMalformed is matched by every error of this package.
var ErrMalformed = errors.New("durable: malformed message")

// part is a field, or several that go together, of a message.
type part uint16

const (
	object part = 1 << iota
	seq
	tenure
	version
	content // with the value
	lease
	exclusive
	write // what a STORE asks for
	reason
)

// forms are the parts that a message of each kind has, and may have.
var forms = map[durable.Kind]struct{ must, may part }{
	durable.Read:          {object | seq, version},
	durable.Write:         {object | seq, version},
	durable.Release:       {object | seq | tenure, 0},
	durable.Store:         {object | seq, write},
	durable.InvalidateAck: {object | tenure | version, 0},
	durable.Renew:         {seq | tenure, 0},
	durable.Dropped:       {object | seq | tenure, 0},
	durable.Copy:          {object | seq | tenure, version | content | lease | exclusive},
	durable.Stored:        {object | seq | tenure | version, lease},
	durable.Conflict:      {object | seq | tenure, version | content | lease},
	durable.Refused:       {object | seq | tenure | reason, 0},
	durable.Invalidate:    {object | tenure | version, 0},
	durable.Recall:        {object | seq | tenure, 0},
	durable.Lease:         {seq | tenure, lease},
}

// partsOf returns the parts that are in a message. Every message is looked at twice on its way.
func partsOf(m *durable.Message) (p part) {
	has := func(q part, is bool) {
		if is {
			p |= q
		}
	}
	has(object, m.Object != "")
	has(seq, m.Seq != 0)
	has(tenure, m.Tenure.Term != 0)
	has(version, m.Version != 0)
	has(content, m.Content != durable.None)
	has(lease, m.Lease != 0)
	has(exclusive, m.Exclusive)
	has(write, m.Expect != durable.Any || m.Wanted != 0 || m.Delete || m.TTL != 0 || m.Value != nil && m.Content == durable.None)
	has(reason, m.Reason != 0)
	return p
}

// flaw says why no automaton sends m, nothing if one may.
func flaw(m *durable.Message) string {
	f, ok := forms[m.Kind]
	has := partsOf(m)
	switch {
	case !ok:
		return "no such kind"
	case has&f.must != f.must || has&^(f.must|f.may) != 0:
		return "it has the fields of another kind"
	case m.Tenure.Gen != 0 && m.Tenure.Term == 0:
		return "a generation without a term"
	case len(m.Object) > durable.ObjectBytesMax || !utf8.ValidString(m.Object):
		return "its object has no name"
	case !m.Content.Fits() || !m.Expect.Fits() || m.Reason != 0 && !m.Reason.Fits():
		return "a number in place of a name"
	case (m.Content == durable.Whole || m.Kind == durable.Store && !m.Delete) != (m.Value != nil):
		return "a value too few or too many"
	case m.Value != nil && len(m.Value.Bytes) > protocol.ValueMax:
		return "its value is too long"
	case m.Content != durable.None && m.Version == 0, m.Content == durable.Same && m.Kind != durable.Copy:
		return "a value of no version"
	case m.Lease < 0 || m.Lease > durable.LeaseMax || m.TTL < 0 || m.TTL > store.TTLMax:
		return "a time out of range"
	case m.Wanted != 0 && m.Expect != durable.Exact:
		return "a version that is not expected"
	}
	return ""
}

// EncodeMessage appends the bytes of a message to b, but for its node. A message that the automata do not send matches [ErrMalformed].
func EncodeMessage(b []byte, m *durable.Message) ([]byte, error) {
	p, err := messageToPB(m)
	if err != nil {
		return b, err
	}
	return encode(b, p)
}

func messageToPB(m *durable.Message) (*Message, error) {
	if f := flaw(m); f != "" {
		return nil, fmt.Errorf("%w: %v is never sent: %s", ErrMalformed, m.Kind, f)
	}
	return &Message{
		Kind: Kind(m.Kind), Incarnation: m.Session.Inc, Session: m.Session.N, Generation: m.Tenure.Gen, Term: m.Tenure.Term, Seq: uint64(m.Seq),
		Object: m.Object, Version: uint64(m.Version), Content: uint32(m.Content), Value: valueOf(m.Value), LeaseNs: uint64(m.Lease),
		Exclusive: m.Exclusive, Expect: uint32(m.Expect), Wanted: uint64(m.Wanted), Delete: m.Delete, TtlNs: uint64(m.TTL), Reason: uint32(m.Reason),
	}, nil
}

// DecodeMessage reads a message of a node's stream. A value aliases nothing of b. Fields it does not know are ignored, for messages of later
// versions. The error matches [ErrMalformed].
func DecodeMessage(b []byte, node keyspace.NodeID) (durable.Message, error) {
	var p Message
	if err := decode(b, MessageBytesMax, &p); err != nil {
		return durable.Message{}, err
	}
	return messageOf(&p, node)
}

func messageOf(p *Message, node keyspace.NodeID) (durable.Message, error) {
	m := durable.Message{
		Kind: durable.Kind(small(uint64(max(0, p.Kind)))), Node: node, Session: durable.Session{Inc: p.Incarnation, N: p.Session},
		Tenure: durable.Tenure{Gen: p.Generation, Term: p.Term}, Seq: durable.Seq(p.Seq), Object: p.Object, Version: durable.Version(p.Version),
		Content: durable.Content(small(uint64(p.Content))), Value: cellOf(p.Value), Lease: nanoseconds(p.LeaseNs), Exclusive: p.Exclusive,
		Expect: durable.Expect(small(uint64(p.Expect))), Wanted: durable.Version(p.Wanted), Delete: p.Delete, TTL: nanoseconds(p.TtlNs),
		Reason: durable.Reason(small(uint64(p.Reason))),
	}
	if f := flaw(&m); f != "" {
		return durable.Message{}, fmt.Errorf("%w: %v: %s", ErrMalformed, m.Kind, f)
	}
	return m, nil
}

// flawOf says why no leader proposes c, nothing if one may.
func flawOf(c *store.Command) string {
	mark, expiry := c.Object == "", c.Object != "" && c.By.IsZero()
	switch {
	case mark && (!c.By.IsZero() || c.Seq != 0 || c.Expect != durable.Any || c.Wanted != 0 || c.Delete || c.Value != nil || c.TTL != 0):
		return "a mark that writes"
	case expiry && (c.Seq != 0 || c.Expect != durable.Any || c.Wanted == 0 || !c.Delete || c.Value != nil || c.TTL != 0):
		return "an expiry that writes"
	case !mark && !expiry && (c.Seq == 0 || c.Delete != (c.Value == nil) || c.Wanted != 0 && c.Expect != durable.Exact):
		return "a write of nothing"
	case !c.Expect.Fits():
		return "a number in place of a name"
	case len(c.Object) > durable.ObjectBytesMax || !utf8.ValidString(c.Object):
		return "its object has no name"
	case c.Value != nil && len(c.Value.Bytes) > protocol.ValueMax:
		return "its value is too long"
	case c.TTL < 0 || c.TTL > store.TTLMax:
		return "a time out of range"
	case len(c.Mark.Except) > store.ExceptionsMax:
		return "too many exceptions"
	}
	for i, name := range c.Mark.Except {
		if name == "" || len(name) > durable.ObjectBytesMax || !utf8.ValidString(name) || i > 0 && c.Mark.Except[i-1] >= name {
			return "exceptions out of order"
		}
	}
	return ""
}

// EncodeCommand returns the bytes of an entry of the log. Equal commands have equal bytes. A command that no leader proposes matches
// [ErrMalformed].
func EncodeCommand(c *store.Command) ([]byte, error) {
	if f := flawOf(c); f != "" {
		return nil, fmt.Errorf("%w: a command is never proposed: %s", ErrMalformed, f)
	}
	p := &Command{
		Object: c.Object, Incarnation: c.By.Inc, Seq: uint64(c.Seq), Expect: uint32(c.Expect), Wanted: uint64(c.Wanted), Delete: c.Delete,
		Value: valueOf(c.Value), TtlNs: uint64(c.TTL), Mark: c.Mark.Index, Except: c.Mark.Except,
	}
	if !c.By.IsZero() {
		p.Node = c.By.ID[:]
	}
	return encode(nil, p)
}

// DecodeCommand reads what [EncodeCommand] wrote. The error matches [ErrMalformed].
func DecodeCommand(b []byte) (store.Command, error) {
	var p Command
	if err := decode(b, CommandBytesMax, &p); err != nil {
		return store.Command{}, err
	}
	c := store.Command{
		Object: p.Object, By: protocol.NodeRef{Inc: p.Incarnation}, Seq: durable.Seq(p.Seq), Expect: durable.Expect(small(uint64(p.Expect))),
		Wanted: durable.Version(p.Wanted), Delete: p.Delete, Value: cellOf(p.Value), TTL: nanoseconds(p.TtlNs),
		Mark: store.Mark{Index: p.Mark, Except: p.Except},
	}
	if len(p.Node) > 0 && copy(c.By.ID[:], p.Node) != len(c.By.ID) || len(p.Node) > len(c.By.ID) {
		return store.Command{}, fmt.Errorf("%w: a node of %d bytes", ErrMalformed, len(p.Node))
	}
	if f := flawOf(&c); f != "" {
		return store.Command{}, fmt.Errorf("%w: a command: %s", ErrMalformed, f)
	}
	return c, nil
}

func encode(b []byte, p proto.Message) ([]byte, error) {
	out, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(b, p)
	if err != nil {
		return b, fmt.Errorf("%w: encode: %v", ErrMalformed, err)
	}
	return out, nil
}

func decode(b []byte, most int, p proto.Message) error {
	if len(b) > most {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrMalformed, len(b), most)
	}
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, p); err != nil {
		return fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	return nil
}

// valueOf tells an empty value, which is one too, from none.
func valueOf(c *protocol.Cell) []byte {
	switch {
	case c == nil:
		return nil
	case c.Bytes == nil:
		return []byte{}
	}
	return c.Bytes
}

func cellOf(b []byte) *protocol.Cell {
	if b == nil {
		return nil
	}
	return &protocol.Cell{Bytes: b}
}

// small reads an enum. One that is none of ours becomes one that does not fit.
func small(n uint64) uint8 { return uint8(min(n, math.MaxUint8)) }

// nanoseconds reads a time. One that is too long becomes one that is out of range.
func nanoseconds(n uint64) time.Duration { return time.Duration(min(n, math.MaxInt64)) }
