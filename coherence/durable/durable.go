package durable

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
)

// Version numbers the writes of one object, deletes included: overlay generation 8 bits | group generation 16 | counter 40. It rises for ever, also
// over a delete and a revival of the group. Zero is an object that was never written.
type Version uint64

const (
	counterBits = 40
	// CounterMax is the last counter of a generation. An object that has it is written no more until the next generation.
	CounterMax = 1<<counterBits - 1
)

// Base is the version before the first of a generation.
func Base(overlay uint8, group uint16) Version {
	return Version(overlay)<<56 | Version(group)<<counterBits
}

// Generation is v without its counter.
func (v Version) Generation() Version { return v &^ CounterMax }

// Counter is v within its generation.
func (v Version) Counter() uint64 { return uint64(v & CounterMax) }

// Session numbers what a node holds of one group: copies and rights of an earlier session are never used again (D7). It is chosen by the node.
// Inc is the node's incarnation.
type Session struct{ Inc, N uint64 }

// Compare orders the sessions of one node by age.
func (s Session) Compare(o Session) int {
	return cmp.Or(cmp.Compare(s.Inc, o.Inc), cmp.Compare(s.N, o.N))
}

// After reports whether s is the later of two.
func (s Session) After(o Session) bool { return s.Compare(o) > 0 }

// String prints both numbers.
func (s Session) String() string { return fmt.Sprintf("%d.%d", s.Inc, s.N) }

// Seq numbers the requests of one incarnation of a node, over all objects and kinds, from 1. It also names the copy that the request brought.
type Seq uint64

// Tenure is one leader's time: the group's generation, and the term. A leader that starts again has another one.
type Tenure struct{ Gen, Term uint64 }

// Compare orders tenures.
func (t Tenure) Compare(o Tenure) int {
	return cmp.Or(cmp.Compare(t.Gen, o.Gen), cmp.Compare(t.Term, o.Term))
}

// Params are what all of a group have in common.
type Params struct {
	Lease time.Duration   // d: for how long a leader that is confirmed may grant
	Drift automaton.Drift // ρ
}

// Bounds of a lease.
const (
	LeaseMin     = time.Second
	LeaseMax     = time.Minute
	LeaseDefault = 2 * time.Second
)

// ParamsOf returns those of every group of an overlay with such clocks.
func ParamsOf(drift automaton.Drift) Params { return Params{Lease: LeaseDefault, Drift: drift} }

// Holder is d(1-ρ), rounded down: for how long a lease lasts by the clock of whoever uses it.
func (p Params) Holder() time.Duration { return p.Lease - p.slack() }

// Arbiter is d(1+ρ), rounded up: how long whoever waits for its end waits by its own clock.
func (p Params) Arbiter() time.Duration { return p.Lease + p.slack() }

func (p Params) slack() time.Duration {
	const million = 1_000_000
	d := p.Lease
	return d/million*time.Duration(p.Drift) + (d%million*time.Duration(p.Drift)+million-1)/million
}

// ObjectBytesMax bounds the full name of an object: that of its application, a slash, and its own.
const ObjectBytesMax = 2*1024 + 1

// Directory returns the name of the listing that an object stands in: its own up to the last slash. It is empty for an object without one.
func Directory(object string) string { return object[:strings.LastIndexByte(object, '/')+1] }

// IsListing reports whether a name is that of a directory's listing. It is read like an object, and written by creating and deleting others.
func IsListing(object string) bool { return strings.HasSuffix(object, "/") }

// KeyOf returns the key whose group has an object: that of its directory, so that a directory's members and its listing are in one group.
func KeyOf(object string) keyspace.Key { return sha256.Sum256([]byte("durable/" + Directory(object))) }

// Expect is the condition of a write.
type Expect uint8

// The conditions.
const (
	Any    Expect = iota // write whatever is there
	Exact                // write if the version is this one; 0 is an object that was never written
	Absent               // write if there is no value
	expects
)

// Fits reports whether e is a condition.
func (e Expect) Fits() bool { return e < expects }

// Content says what an answer tells of a value.
type Content uint8

// The contents.
const (
	None  Content = iota // there is no value: deleted, or never written
	Same                 // the one you have
	Whole                // the one that comes along
	contents
)

// Fits reports whether c is a content.
func (c Content) Fits() bool { return c < contents }

// Reason says why a write was refused. It has not taken place, and its message will not make it so.
type Reason uint8

// The reasons.
const (
	Busy      Reason = iota + 1 // too many nodes have written the object in the last minutes
	Full                        // the group holds as much as it may
	Exhausted                   // its versions are used up until the group's next generation
	Bad                         // no such write can be
	reasons
)

// Fits reports whether r is a reason.
func (r Reason) Fits() bool { return r > 0 && r < reasons }

// String names the reason.
func (r Reason) String() string {
	if r >= reasons {
		return fmt.Sprintf("Reason(%d)", uint8(r))
	}
	return [...]string{"none", "busy", "full", "exhausted", "bad"}[r]
}

// Kind says what a message is.
type Kind uint8

// The messages. Those of the volatile mode by the same name mean the same.
const (
	Read          Kind = iota + 1 // READ: node to leader, wants a copy
	Write                         // WRITE: node to leader, wants the exclusive right to write
	Release                       // RELEASE: node to leader, gives it back
	Store                         // STORE: node to leader, a write
	InvalidateAck                 // INVALIDATE_ACK: node to leader, nobody can be given the old copy any more
	Renew                         // RENEW: node to leader, for all copies of the session
	Dropped                       // DROPPED: node to leader, a copy was given up
	Copy                          // COPY: leader to node, answers READ and WRITE
	Stored                        // STORED: leader to node, the write is settled
	Conflict                      // CONFLICT: leader to node, the condition failed; here is what is there
	Refused                       // REFUSED: leader to node, the write was not made
	Invalidate                    // INVALIDATE: leader to node, drop copies older than this version
	Recall                        // RECALL: leader to node, give the right back
	Lease                         // LEASE: leader to node, answers RENEW
	kinds
)

// ToLeader reports whether a node says it.
func (k Kind) ToLeader() bool { return k >= Read && k <= Dropped }

// Fits reports whether k is a kind.
func (k Kind) Fits() bool { return k > 0 && k < kinds }

var kindNames = [kinds]string{"Kind(0)", "READ", "WRITE", "RELEASE", "STORE", "INVALIDATE_ACK", "RENEW", "DROPPED",
	"COPY", "STORED", "CONFLICT", "REFUSED", "INVALIDATE", "RECALL", "LEASE"}

// String spells the kind as the design does.
func (k Kind) String() string {
	if k < kinds {
		return kindNames[k]
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// Message is what a node and a leader tell each other. Fields that a kind does not need are zero. It may be compared.
type Message struct {
	Kind    Kind
	Node    keyspace.NodeID // the one of the two that is no leader
	Tenure  Tenure          // of what leaders say, and of InvalidateAck, Renew, Dropped, Release
	Session Session
	Seq     Seq // of the request or renewal that it is or answers; of Recall, Release and Dropped of the grant or copy
	Object  string
	Version Version        // what there is; of Read and Write what the node has; of Invalidate and InvalidateAck the coming one
	Content Content        // of Copy and Conflict
	Value   *protocol.Cell // of Store, and of answers with Content Whole
	Lease   time.Duration  // for how long the copy may be used, counted from the request's sending; 0: once

	Exclusive bool // of Copy: with the right to write

	Expect Expect        // of Store
	Wanted Version       // of Store: the version expected by Exact
	Delete bool          // of Store
	TTL    time.Duration // of Store: delete it after that long; 0 never

	Reason Reason // of Refused
}

// Writer is the incarnation of a node that a message is of.
func (m *Message) Writer() protocol.NodeRef { return protocol.NodeRef{ID: m.Node, Inc: m.Session.Inc} }

// Append writes m in canonical form: equal messages give equal bytes.
func (m *Message) Append(b []byte) []byte {
	b = append(append(b, byte(m.Kind)), m.Node[:]...)
	for _, v := range [...]uint64{m.Tenure.Gen, m.Tenure.Term, m.Session.Inc, m.Session.N, uint64(m.Seq), uint64(m.Version), uint64(m.Lease),
		uint64(m.Wanted), uint64(m.TTL), uint64(len(m.Object))} {
		b = binary.AppendUvarint(b, v)
	}
	b = append(b, m.Object...)
	b = append(b, byte(m.Content), byte(m.Expect), byte(m.Reason))
	return protocol.AppendBools(m.Value.Append(b), m.Exclusive, m.Delete)
}

// String prints the fields that are set.
func (m *Message) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v %v ssn=%v", m.Kind, protocol.NodeRef{ID: m.Node}, m.Session)
	if m.Object != "" {
		fmt.Fprintf(&b, " %q", m.Object)
	}
	if m.Seq > 0 {
		fmt.Fprintf(&b, " seq=%d", m.Seq)
	}
	if m.Tenure != (Tenure{}) {
		fmt.Fprintf(&b, " tenure=%d.%d", m.Tenure.Gen, m.Tenure.Term)
	}
	if m.Version > 0 {
		fmt.Fprintf(&b, " v=%d", m.Version)
	}
	switch m.Kind {
	case Store:
		fmt.Fprintf(&b, " %s", [...]string{"any", "exact", "absent"}[m.Expect%expects])
		if m.Expect == Exact {
			fmt.Fprintf(&b, "=%d", m.Wanted)
		}
		if m.Delete {
			b.WriteString(" delete")
		}
	case Copy, Conflict:
		fmt.Fprintf(&b, " %s", [...]string{"none", "same", "whole"}[m.Content%contents])
	case Refused:
		fmt.Fprintf(&b, " %v", m.Reason)
	}
	if m.Exclusive {
		b.WriteString(" exclusive")
	}
	switch m.Kind {
	case Copy, Stored, Conflict, Lease:
		fmt.Fprintf(&b, " l=%v", m.Lease)
	}
	return b.String()
}
