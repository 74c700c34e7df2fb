package pb

import (
	"fmt"

	"latchkey/coherence/durable"
	"latchkey/dht/keyspace"
)

// The overlay's services by which frames travel, one way. A frame may be lost, doubled, late, or come after one that left later.
const (
	ServiceLeader = "durable/leader" // from nodes to the voter that they take for the leader
	ServiceNode   = "durable/node"   // from voters to nodes
)

// Limits of a frame.
const (
	// FrameBytesSoft is where whoever sends cuts a frame. One message that is longer goes alone.
	FrameBytesSoft = 64 << 10
	// FrameBytesMax is above what such a frame can be. What is longer is malformed.
	FrameBytesMax = MessageBytesMax + FrameBytesSoft
	// FrameMessagesMax bounds the messages of a frame.
	FrameMessagesMax = 1024
	// DescriptorBytesMax bounds the descriptor that goes along with a [Where].
	DescriptorBytesMax = 64 << 10
)

// Status says why a voter has not taken a frame.
type Status uint8

// The statuses.
const (
	NotLeader Status = iota + 1 // it does not lead
	NotHere                     // it has no replica of that group
	Moved                       // that generation of the group is over
	Busy                        // too much of that node waits here
	statuses
)

// String names the status.
func (s Status) String() string {
	if s == 0 || s >= statuses {
		return fmt.Sprintf("Status(%d)", uint8(s))
	}
	return [...]string{"", "not leader", "not here", "moved", "busy"}[s]
}

// Whereabouts are what a voter says of a group instead of taking a frame.
type Whereabouts struct {
	Status     Status
	Leader     keyspace.NodeID // zero: it does not know
	Descriptor []byte          // of the group as far as it knows, for placement.DecodeDescriptor; empty where it does not
}

// Packet is a frame that is read or to be written: of one generation of a prefix's group.
type Packet struct {
	Prefix   keyspace.Prefix
	Gen      uint64
	Messages []durable.Message
	Where    *Whereabouts // of voters; nil: none
}

// EncodePacket appends the bytes of a frame to b. Of its messages, the nodes are left out. One that is never sent matches [ErrMalformed].
func EncodePacket(b []byte, f *Packet) ([]byte, error) {
	prefix, _ := f.Prefix.AppendBinary(nil) // never fails
	p := &Frame{Prefix: prefix, Generation: f.Gen, Messages: make([]*Message, len(f.Messages))}
	toLeader := len(f.Messages) > 0 && f.Messages[0].Kind.ToLeader()
	for i := range f.Messages {
		m, err := messageToPB(&f.Messages[i])
		if err != nil {
			return b, err
		}
		p.Messages[i] = m
	}
	if w := f.Where; w != nil {
		p.Where = &Where{Status: uint32(w.Status), Descriptor_: w.Descriptor}
		if w.Leader != (keyspace.NodeID{}) {
			p.Where.Leader = w.Leader[:]
		}
	}
	if why := flawOfPacket(f, toLeader); why != "" {
		return b, fmt.Errorf("%w: a frame is never sent: %s", ErrMalformed, why)
	}
	return encode(b, p)
}

// DecodePacket reads a frame that a node has sent to a leader, or got from a voter: what kinds of messages may be in it differs. The error
// matches [ErrMalformed].
func DecodePacket(b []byte, node keyspace.NodeID, toLeader bool) (Packet, error) {
	var p Frame
	if err := decode(b, FrameBytesMax, &p); err != nil {
		return Packet{}, err
	}
	prefix, rest, err := keyspace.DecodePrefix(p.Prefix)
	if err != nil || len(rest) > 0 {
		return Packet{}, fmt.Errorf("%w: a frame of no prefix", ErrMalformed)
	}
	f := Packet{Prefix: prefix, Gen: p.Generation}
	if len(p.Messages) > FrameMessagesMax {
		return Packet{}, fmt.Errorf("%w: %d messages in a frame, at most %d", ErrMalformed, len(p.Messages), FrameMessagesMax)
	}
	for _, q := range p.Messages {
		m, err := messageOf(q, node)
		if err != nil {
			return Packet{}, err
		}
		f.Messages = append(f.Messages, m)
	}
	if p.Where != nil {
		f.Where = &Whereabouts{Status: Status(small(uint64(p.Where.Status))), Descriptor: p.Where.Descriptor_}
		if n := len(p.Where.Leader); n != 0 && n != len(node) {
			return Packet{}, fmt.Errorf("%w: a leader of %d bytes", ErrMalformed, n)
		}
		copy(f.Where.Leader[:], p.Where.Leader)
	}
	if why := flawOfPacket(&f, toLeader); why != "" {
		return Packet{}, fmt.Errorf("%w: a frame: %s", ErrMalformed, why)
	}
	return f, nil
}

// flawOfPacket says why nobody sends f, nothing if somebody may.
func flawOfPacket(f *Packet, toLeader bool) string {
	switch {
	case len(f.Messages) > FrameMessagesMax:
		return "too many messages"
	case len(f.Messages) == 0 && f.Where == nil:
		return "nothing in it"
	case f.Where != nil && (toLeader || f.Where.Status == 0 || f.Where.Status >= statuses || len(f.Where.Descriptor) > DescriptorBytesMax):
		return "whereabouts that no voter tells"
	}
	for i := range f.Messages {
		if f.Messages[i].Kind.ToLeader() != toLeader {
			return "messages of the other side"
		}
	}
	return ""
}
