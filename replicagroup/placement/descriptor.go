package placement

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"

	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
)

// Engine names what orders a group's commands.
type Engine uint8

// EngineRaft is the default engine, and the only one yet.
const EngineRaft Engine = 1

// String returns the engine's name.
func (e Engine) String() string {
	if e == EngineRaft {
		return "raft"
	}
	return fmt.Sprintf("Engine(%d)", uint8(e))
}

// DescriptorBytesMax bounds an encoded descriptor.
const DescriptorBytesMax = 1 + 32 + 2 + keyspace.Size + 8 + 1 + 8 + 8 + 1 +
	MembersMax*(8+1+16+1+PeerIDBytesMax+1+AddrsMax*(1+AddrBytesMax))

const descriptorVersion = 1

// ErrDescriptor is matched by every error about a descriptor that contradicts itself.
var ErrDescriptor = errors.New("placement: descriptor")

// Descriptor says who the members of a group are. It is a hint about whom to ask, never authority: the members themselves
// know their view. The zero value describes no group.
type Descriptor struct {
	Group  order.GroupID
	View   order.View
	Peers  []Peer // Peers[i] is the peer of View.Members[i]
	Engine Engine
}

// IsZero reports whether d describes no group.
func (d Descriptor) IsZero() bool { return len(d.View.Members) == 0 }

// Peer returns the peer that runs replica id.
func (d Descriptor) Peer(id order.ReplicaID) (Peer, bool) {
	for i, m := range d.View.Members {
		if m.ID == id {
			return d.Peers[i], true
		}
	}
	return Peer{}, false
}

// Validate says how d contradicts itself, if it does. Errors match [ErrDescriptor].
func (d Descriptor) Validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrDescriptor}, args...)...)
	}
	n := len(d.View.Members)
	switch {
	case d.Engine != EngineRaft:
		return bad("unknown engine %v", d.Engine)
	case !d.Group.Prefix.Valid():
		return bad("malformed prefix")
	case n == 0 || n > MembersMax:
		return bad("%d members (1 to %d)", n, MembersMax)
	case len(d.Peers) != n:
		return bad("%d peers for %d members", len(d.Peers), n)
	case len(d.View.Voters()) == 0:
		return bad("nobody votes")
	}
	last := order.ReplicaID(0)
	for i, m := range d.View.Members {
		if err := d.Peers[i].check(); err != nil {
			return bad("%v", err)
		}
		switch {
		case m.ID <= last || m.ID >= d.View.Next:
			return bad("replica ids do not rise below %d", d.View.Next)
		case m.Role != order.Voter && m.Role != order.Learner:
			return bad("replica %d has %v", m.ID, m.Role)
		case m.Store == order.StoreID{}:
			return bad("replica %d has no store", m.ID)
		case m.Peer != d.Peers[i].Node() || m.PeerID != d.Peers[i].ID:
			return bad("replica %d is at another node than its peer", m.ID)
		}
		for _, o := range d.View.Members[:i] {
			if o.Store == m.Store {
				return bad("replicas %d and %d share a store", o.ID, m.ID)
			}
			if o.Peer == m.Peer && o.Role == order.Voter && m.Role == order.Voter {
				return bad("replicas %d and %d vote at one peer", o.ID, m.ID)
			}
		}
		last = m.ID
	}
	return nil
}

// Encode returns the canonical encoding, at most [DescriptorBytesMax] bytes. Errors match [ErrDescriptor].
func (d Descriptor) Encode() ([]byte, error) {
	if err := d.Validate(); err != nil {
		return nil, err
	}
	return appendDescriptor(nil, d), nil
}

// DecodeDescriptor reads what [Descriptor.Encode] wrote. Errors match [ErrMalformed] or [ErrDescriptor].
func DecodeDescriptor(b []byte) (Descriptor, error) {
	if len(b) > DescriptorBytesMax {
		return Descriptor{}, fmt.Errorf("%w: descriptor of %d bytes (at most %d)", ErrMalformed, len(b), DescriptorBytesMax)
	}
	r := reader{b: b}
	d := r.descriptor()
	if err := r.end(); err != nil {
		return Descriptor{}, err
	}
	return d, nil
}

// appendDescriptor appends the encoding of a valid descriptor. A member's node is left out: it is the hash of its peer id.
func appendDescriptor(b []byte, d Descriptor) []byte {
	b = append(b, descriptorVersion)
	b = appendGroup(b, d.Group)
	b = append(b, byte(d.Engine))
	b = binary.BigEndian.AppendUint64(b, d.View.Num)
	b = binary.BigEndian.AppendUint64(b, uint64(d.View.Next))
	b = append(b, byte(len(d.View.Members)))
	for i, m := range d.View.Members {
		b = binary.BigEndian.AppendUint64(b, uint64(m.ID))
		b = append(b, byte(m.Role))
		b = append(b, m.Store[:]...)
		b = appendPeer(b, d.Peers[i])
	}
	return b
}

func (r *reader) descriptor() (d Descriptor) {
	if v := r.u8(); r.err == nil && v != descriptorVersion {
		r.fail("descriptor of version %d, this program reads %d", v, descriptorVersion)
	}
	d.Group = r.group()
	d.Engine = Engine(r.u8())
	d.View.Num = r.u64()
	d.View.Next = order.ReplicaID(r.u64())
	for range r.count("members", MembersMax) {
		m := order.Member{ID: order.ReplicaID(r.u64()), Role: order.Role(r.u8())}
		r.fixed(m.Store[:])
		p := r.peer()
		m.Peer, m.PeerID = p.Node(), p.ID
		d.View.Members = append(d.View.Members, m)
		d.Peers = append(d.Peers, p)
	}
	if r.err == nil {
		if err := d.Validate(); err != nil {
			r.err = err
		}
	}
	if r.err != nil {
		return Descriptor{}
	}
	return d
}

// Newer reports whether a is later news of a group than b: a higher generation, or a higher view of the same one. Anything is
// newer than nothing; descriptors of different prefixes or overlays are never newer than each other.
func Newer(a, b Descriptor) bool {
	switch {
	case a.IsZero() || b.IsZero():
		return !a.IsZero()
	case a.Group.Overlay != b.Group.Overlay || a.Group.Prefix != b.Group.Prefix:
		return false
	}
	return cmp.Or(cmp.Compare(a.Group.Gen, b.Group.Gen), cmp.Compare(a.View.Num, b.View.Num)) > 0
}

// describe returns the descriptor of a group that begins with these voters.
func describe(group order.GroupID, hosts []Host) Descriptor {
	return Descriptor{Group: group, View: firstView(hosts), Peers: peersOf(hosts), Engine: EngineRaft}
}
