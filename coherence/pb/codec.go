package pb

import (
	"errors"
	"fmt"
	"math"

	"google.golang.org/protobuf/proto"

	"latchkey/coherence/appmanager"
	"latchkey/coherence/manager"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
)

// Service is the overlay's service by which frames travel, as one-way messages.
const Service = "coherence"

// Limits of what is decoded. What is longer is malformed.
const (
	// FrameBytesMax is above what a frame with a value of protocol.ValueMax can be: the rest of a message is shorter than 1 KiB.
	FrameBytesMax = 1<<20 + 1<<10
	// EventBytesMax is above what an event with PlacesMax places can be, 64 bytes each at most.
	EventBytesMax = 1 << 17
	// PlacesMax bounds the places of one event. Who has more orders several.
	PlacesMax = 1 << 10
)

// ErrMalformed is matched by every error of this package.
var ErrMalformed = errors.New("coherence: malformed message")

// EncodeFrame appends the bytes of a message of an application to b. A message that the automata do not send, and one whose value is longer than
// protocol.ValueMax, matches [ErrMalformed].
func EncodeFrame(b []byte, app keyspace.Key, m *protocol.Message) ([]byte, error) {
	p, err := messageOf(m)
	if err != nil {
		return b, err
	}
	return encode(b, &Frame{App: app[:], Message: p})
}

// DecodeFrame reads a message and the application it is of. A value aliases nothing of b. Fields it does not know are ignored, for messages of
// later versions. The error matches [ErrMalformed].
func DecodeFrame(b []byte) (app keyspace.Key, m protocol.Message, err error) {
	var p Frame
	if err := decode(b, FrameBytesMax, &p); err != nil {
		return app, m, err
	}
	var d decoder
	d.fill(app[:], p.App, "application")
	if m = d.message(p.Message); d.err != nil {
		return keyspace.Key{}, protocol.Message{}, d.err
	}
	return app, m, nil
}

// EncodeObjectEvent returns the bytes of an event of the manager of an object. Equal events have equal bytes.
func EncodeObjectEvent(ev manager.Event) ([]byte, error) {
	return encodeEvent(&Event{Kind: EventKind(ev.Kind), Node: nodeOf(ev.Node)}, ev.Msg)
}

// DecodeObjectEvent reads what [EncodeObjectEvent] wrote. The error matches [ErrMalformed].
func DecodeObjectEvent(b []byte) (manager.Event, error) {
	ev, err := decodeEvent(b)
	if err != nil {
		return manager.Event{}, err
	}
	if k := manager.EventKind(ev.Kind); k > manager.Trust || ev.Msg != nil && ev.Msg.To.Party != protocol.ObjectManager {
		return manager.Event{}, fmt.Errorf("%w: event of kind %d for the manager of an object", ErrMalformed, k)
	}
	return manager.Event{Kind: manager.EventKind(ev.Kind), Msg: ev.Msg, Node: ev.Node}, nil
}

// EncodeAppEvent returns the bytes of an event of the manager of an application. Equal events have equal bytes.
func EncodeAppEvent(ev appmanager.Event) ([]byte, error) {
	p := &Event{Kind: EventKind(ev.Kind), Node: nodeOf(ev.Node), Checkpoint: uint64(ev.Checkpoint), Hash: bytesOf(ev.Hash[:]), Epoch: uint64(ev.Epoch), At: uint64(max(ev.At, 0))}
	for i := range ev.Places {
		p.Places = append(p.Places, &Place{Thread: ev.Places[i].Thread[:], Node: nodeOf(ev.Places[i].Node)})
	}
	return encodeEvent(p, ev.Msg)
}

// DecodeAppEvent reads what [EncodeAppEvent] wrote. The error matches [ErrMalformed].
func DecodeAppEvent(b []byte) (appmanager.Event, error) {
	ev, err := decodeEvent(b)
	if err == nil && ev.Msg != nil && ev.Msg.To.Party != protocol.AppManager {
		err = fmt.Errorf("%w: a message to %v for the manager of an application", ErrMalformed, ev.Msg.To)
	}
	if err != nil {
		return appmanager.Event{}, err
	}
	return ev, nil
}

func encodeEvent(p *Event, m *protocol.Message) (_ []byte, err error) {
	if m != nil {
		if p.Message, err = messageOf(m); err != nil {
			return nil, err
		}
	}
	if len(p.Places) > PlacesMax {
		return nil, fmt.Errorf("%w: %d places", ErrMalformed, len(p.Places))
	}
	return encode(nil, p)
}

func decodeEvent(b []byte) (ev appmanager.Event, err error) {
	var p Event
	if err := decode(b, EventBytesMax, &p); err != nil {
		return ev, err
	}
	var d decoder
	ev = appmanager.Event{
		Kind: appmanager.EventKind(p.Kind), Node: d.node(p.Node), Checkpoint: protocol.CheckpointID(p.Checkpoint), Epoch: protocol.Epoch(p.Epoch),
		At: int64(min(p.At, math.MaxInt64)),
	}
	d.fillMay(ev.Hash[:], p.Hash, "hash")
	if p.Message != nil {
		m := d.message(p.Message)
		ev.Msg = &m
	}
	if len(p.Places) > PlacesMax {
		d.fail("%d places", len(p.Places))
	}
	for _, x := range p.Places[:min(len(p.Places), PlacesMax)] {
		at := appmanager.Placement{Node: d.node(x.Node)}
		d.fill(at.Thread[:], x.Thread, "thread")
		ev.Places = append(ev.Places, at)
	}
	k := appmanager.EventKind(p.Kind)
	if p.Kind <= 0 || p.Kind > EventKind_EVENT_KIND_PLACE || (k == appmanager.Receive) != (ev.Msg != nil) ||
		(k == appmanager.Suspect || k == appmanager.Trust) == ev.Node.IsZero() || (k == appmanager.Abort || k == appmanager.Saved) != (ev.Checkpoint > 0) ||
		(k == appmanager.Saved) != (ev.Hash != protocol.Hash{}) || (k == appmanager.Place) != (ev.Epoch > 0) || k != appmanager.Place && len(ev.Places) > 0 {
		d.fail("event of kind %d with other fields than its own", p.Kind)
	}
	if d.err != nil {
		return appmanager.Event{}, d.err
	}
	return ev, nil
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

func messageOf(m *protocol.Message) (*Message, error) {
	if !wellFormed(m) || m.Value != nil && len(m.Value.Bytes) > protocol.ValueMax {
		return nil, fmt.Errorf("%w: %v from %v to %v is never sent", ErrMalformed, m.Kind, m.From, m.To)
	}
	p := &Message{
		Kind: Kind(m.Kind), From: Party(m.From.Party), FromNode: nodeOf(m.From.Node), To: Party(m.To.Party), ToNode: nodeOf(m.To.Node),
		Epoch: uint64(m.Epoch), Object: bytesOf(m.Object[:]), Requester: nodeOf(m.Requester), Seq: uint64(m.Seq), LastInv: uint64(m.LastInv),
		Master: m.Copy == protocol.MasterCopy, Ack: Kind(m.Ack), Life: uint64(m.Life), Thread: bytesOf(m.Thread[:]), Migration: uint64(m.Migration),
		Node: nodeOf(m.Node), Checkpoint: uint64(m.Checkpoint), Hash: bytesOf(m.Hash[:]), Manifest: bytesOf(m.Manifest[:]),
		Parent: bytesOf(m.Parent[:]), Flag: m.Flag,
	}
	if m.Value != nil {
		if p.Value = m.Value.Bytes; p.Value == nil {
			p.Value = []byte{} // an empty value is one, too
		}
	}
	return p, nil
}

func nodeOf(n protocol.NodeRef) *NodeRef {
	if n.IsZero() {
		return nil
	}
	return &NodeRef{Id: n.ID[:], Inc: n.Inc}
}

// bytesOf leaves zeros out.
func bytesOf(b []byte) []byte {
	for _, x := range b {
		if x != 0 {
			return b
		}
	}
	return nil
}

// decoder keeps the first error.
type decoder struct{ err error }

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: "+format, append([]any{ErrMalformed}, args...)...)
	}
}

// fill copies what has to be there.
func (d *decoder) fill(to, b []byte, what string) {
	if len(b) != len(to) {
		d.fail("%s of %d bytes", what, len(b))
		return
	}
	copy(to, b)
}

// fillMay copies what may be absent, which stands for zeros.
func (d *decoder) fillMay(to, b []byte, what string) {
	if len(b) > 0 {
		d.fill(to, b, what)
	}
}

func (d *decoder) node(p *NodeRef) (n protocol.NodeRef) {
	if p != nil {
		n.Inc = p.Inc
		d.fill(n.ID[:], p.Id, "node")
	}
	return n
}

func (d *decoder) message(p *Message) protocol.Message {
	if p == nil {
		d.fail("no message")
		return protocol.Message{}
	}
	m := protocol.Message{
		Kind: protocol.Kind(d.small(int32(p.Kind))), Epoch: protocol.Epoch(p.Epoch),
		From:      protocol.Address{Party: protocol.Party(d.small(int32(p.From))), Node: d.node(p.FromNode)},
		To:        protocol.Address{Party: protocol.Party(d.small(int32(p.To))), Node: d.node(p.ToNode)},
		Requester: d.node(p.Requester), Seq: protocol.ReqSeq(p.Seq), LastInv: protocol.InvSeq(p.LastInv),
		Ack: protocol.Kind(d.small(int32(p.Ack))), Life: protocol.Life(p.Life), Migration: protocol.MigSeq(p.Migration),
		Node: d.node(p.Node), Checkpoint: protocol.CheckpointID(p.Checkpoint), Flag: p.Flag,
	}
	if p.Master {
		m.Copy = protocol.MasterCopy
	}
	if p.Value != nil {
		m.Value = &protocol.Cell{Bytes: p.Value}
	}
	d.fillMay(m.Object[:], p.Object, "object")
	d.fillMay(m.Thread[:], p.Thread, "thread")
	d.fillMay(m.Hash[:], p.Hash, "hash")
	d.fillMay(m.Manifest[:], p.Manifest, "manifest")
	d.fillMay(m.Parent[:], p.Parent, "parent")
	switch {
	case d.err != nil:
	case len(p.Value) > protocol.ValueMax:
		d.fail("value of %d bytes, at most %d", len(p.Value), protocol.ValueMax)
	case !wellFormed(&m):
		d.fail("%v from party %d to %d with the fields of another kind", m.Kind, m.From.Party, m.To.Party)
	}
	return m
}

// small reads an enum, whose numbers are those of the automata's types.
func (d *decoder) small(n int32) uint8 {
	if n < 0 || n > 255 {
		d.fail("number %d in place of a name", n)
		return 0
	}
	return uint8(n)
}
