package placement

import (
	"encoding/binary"
	"fmt"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
)

// OwnPhase says how far a key's own group is.
type OwnPhase uint8

// The phases of an own group. Each is entered by an entry of its log, and none a second time.
const (
	OwnEmpty  OwnPhase = iota // it has not been given what its key's prefix's group knew: it serves nothing yet
	OwnServes                 // it serves its key
	OwnSealed                 // it was told to end: it serves nothing any more, and what it knew waits to be adopted
	ownPhaseEnd
)

// String returns the phase in words.
func (p OwnPhase) String() string {
	if p >= ownPhaseEnd {
		return fmt.Sprintf("OwnPhase(%d)", uint8(p))
	}
	return [...]string{"empty", "serves", "sealed"}[p]
}

// Own is the state machine with which a key's own group begins and ends (rule G7). It is the gate of its group: it serves nothing but
// between Begin and Seal. Both may be repeated. Deterministic. Not safe for concurrent use.
type Own struct {
	group order.GroupID
	phase OwnPhase
	name  string
	part  []byte // of OwnSealed

	mutant KeyMutant
}

// NewOwn returns the machine of an own group that has not begun.
func NewOwn(g order.GroupID) *Own { return &Own{group: g} }

// Open reports whether the group serves its key.
func (o *Own) Open() bool {
	return o.phase == OwnServes || o.phase == OwnSealed && o.mutant == MutantNoSeal
}

// Away reports whether a key is served elsewhere: any but its own, and that one but between Begin and Seal.
func (o *Own) Away(key keyspace.Key) bool { return !o.Open() || KeyPrefix(key) != o.group.Prefix }

// Phase returns how far the group is, and its key's preimage once it has begun.
func (o *Own) Phase() (OwnPhase, string) { return o.phase, o.name }

// Apply executes a Begin or Seal and returns its encoded [OwnResult].
func (o *Own) Apply(parts Parts, data []byte) []byte {
	c, err := DecodeKeyCommand(data)
	if err != nil || c.Kind != Begin && c.Kind != Seal {
		return OwnResult{Status: Malformed, Phase: o.phase}.Encode()
	}
	res := OwnResult{Status: OK}
	switch {
	case c.Gen != o.group.Gen, KeyPrefix(keyspace.Preimage(c.Name).Key()) != o.group.Prefix:
		res.Status = WrongGen
	case c.Kind == Begin && (o.phase == OwnEmpty || o.mutant == MutantBeginTwice):
		if len(c.Part) > 0 && parts.Graft(c.Part) != nil {
			res.Status = NoRoom
			break
		}
		o.phase, o.name = OwnServes, c.Name
	case c.Kind == Seal && o.phase == OwnEmpty:
		res.Status = NotFound // what it shall be given is still its parent's
	case c.Kind == Seal && o.phase == OwnServes && !parts.Prepare(c.Name):
		res.Status = NotReady
	case c.Kind == Seal && o.phase == OwnServes:
		part, err := parts.Carve(c.Name)
		if err != nil {
			res.Status = TooLarge
			break
		}
		if o.phase, o.part = OwnSealed, part; o.mutant == MutantNoSeal && parts.Graft(part) != nil {
			res.Status = NoRoom
		}
	}
	res.Phase, res.Name = o.phase, o.name
	return res.Encode()
}

// OwnResult is the answer to a Begin, a Seal, and to every query, which alone brings the part of a sealed group.
type OwnResult struct {
	Status Status
	Phase  OwnPhase
	Name   string
	Part   []byte
}

// Encode returns the bytes of r.
func (r OwnResult) Encode() []byte {
	b := binary.BigEndian.AppendUint16([]byte{byte(r.Status), byte(r.Phase)}, uint16(len(r.Name)))
	return append(append(b, r.Name...), r.Part...)
}

// DecodeOwnResult reads what [OwnResult.Encode] wrote. Errors match [ErrMalformed].
func DecodeOwnResult(b []byte) (OwnResult, error) {
	r := reader{b: b}
	res := OwnResult{Status: Status(r.u8()), Phase: OwnPhase(r.u8()), Name: r.name()}
	if r.err == nil && (res.Phase >= ownPhaseEnd || res.Status < OK || int(res.Status) >= len(statusNames) || len(r.b) > PartBytesMax) {
		r.fail("status %d, phase %d, part of %d bytes", res.Status, res.Phase, len(r.b))
	}
	if r.err != nil {
		return OwnResult{}, r.err
	}
	if len(r.b) > 0 {
		res.Part = append([]byte(nil), r.b...)
	}
	return res, nil
}

// Query answers every query alike, with the part of a sealed group.
func (o *Own) Query([]byte) []byte {
	return OwnResult{Status: OK, Phase: o.phase, Name: o.name, Part: o.part}.Encode()
}

// Deadline is never.
func (o *Own) Deadline() (time.Duration, bool) { return 0, false }

const ownVersion = 1

// Snapshot returns the whole state.
func (o *Own) Snapshot() []byte {
	b := binary.BigEndian.AppendUint16([]byte{ownVersion, byte(o.phase)}, uint16(len(o.name)))
	return append(append(b, o.name...), o.part...)
}

// Restore replaces the state by a snapshot. On an error, which matches [ErrMalformed], the state is as it was.
func (o *Own) Restore(b []byte) error {
	r := reader{b: b}
	if v := r.u8(); r.err == nil && v != ownVersion {
		r.fail("own group of version %d, this program reads %d", v, ownVersion)
	}
	phase, name := OwnPhase(r.u8()), r.name()
	switch {
	case r.err != nil:
	case phase >= ownPhaseEnd, len(r.b) > PartBytesMax, phase != OwnSealed && len(r.b) > 0:
		r.fail("phase %d, part of %d bytes", phase, len(r.b))
	case (phase == OwnEmpty) != (name == ""), name != "" && KeyPrefix(keyspace.Preimage(name).Key()) != o.group.Prefix:
		r.fail("phase %v with name %q", phase, name)
	}
	if r.err != nil {
		return r.err
	}
	o.phase, o.name, o.part = phase, name, append([]byte(nil), r.b...)
	return nil
}
