package placement

import (
	"encoding/binary"
	"fmt"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
)

// OwnService is the name under which a prefix's group runs its [Keys], and a key's own group its [Own].
const OwnService = "own"

// Limits of the own groups of one prefix.
const (
	OwnGroupsMax = 64        // keys of one prefix that have groups of their own; TooMany
	KeyNameMax   = 1024      // bytes of a key's preimage
	KeyGenMax    = 1<<6 - 1  // generations of one key in one generation of its prefix: a token has six bits for it; Exhausted
	OwnLivesMax  = 1<<16 - 1 // own groups that one generation of a prefix's group ever makes, removed ones included; Exhausted
	PartBytesMax = 60 << 10  // what is handed over for one key ([session.PartBytesMax])
)

// An own group's generation tells its lives apart: overlay generation 32 | prefix 10 | key 6 | life 16 bits. The first three are
// what tokens hold; the last counts the own groups that the prefix's group has made, so that a key that is given a group of its own
// for the second time does not get one that members of the first take for theirs.
const (
	lifeBits    = 16
	keyGenShift = lifeBits
	keyGenBits  = 6
)

// OwnGen returns the generation of the own group of a key.
func OwnGen(parent uint64, key, life uint64) uint64 {
	return parent&^(1<<32-1) | uint64(uint32(parent))<<(keyGenShift+keyGenBits) | key<<keyGenShift | life
}

// ParentGen returns the generation of the prefix's group that made an own group, or of one before it where the key's group was made
// anew.
func ParentGen(own uint64) uint64 {
	return own&^(1<<32-1) | uint64(uint32(own)>>(keyGenShift+keyGenBits))
}

// KeyGen returns the generation of a key that its own group is of.
func KeyGen(own uint64) uint64 { return own >> keyGenShift & KeyGenMax }

// IsOwn reports whether a group is a key's own.
func IsOwn(g order.GroupID) bool { return g.Prefix.Len == keyspace.PrefixBitsMax }

// KeyPrefix returns the prefix of one key.
func KeyPrefix(k keyspace.Key) keyspace.Prefix { return keyspace.PrefixOf(k, keyspace.PrefixBitsMax) }

// Parts takes keys out of the machines of a group, and puts them back; a session table is one.
type Parts interface {
	Prepare(name string) bool
	Carve(name string) ([]byte, error)
	Graft(part []byte) error
}

// KeyCommand is a command of [Keys] (and Begin and Seal of [Own]). The leader of the prefix's group proposes it; a host takes none from
// anybody else, but for Update.
type KeyCommand struct {
	Kind KeyKind
	Name string // the key's preimage; of Change only where the own group tells of itself
	// Members of Out are the voters, as in a Create; Gen of Adopt, Begun and Seal is that of the own group; Part of Adopt and Begin is
	// what is handed over.
	Members []Host
	Gen     uint64
	Part    []byte
	Change  []byte // a [Command] about the own group of a key: Reported, Update or Revive
}

// KeyKind says what a [KeyCommand] asks for.
type KeyKind uint8

// Kinds of key commands.
const (
	Out    KeyKind = iota + 1 // the key gets a group of its own, of Members: from here on it is served there
	Begun                     // the own group has what it was given
	Adopt                     // the own group was sealed, and left Part: the key is served here again
	Change                    // as in a Directory
	Begin                     // to the own group: go on with Part
	Seal                      // to the own group: serve nothing more
	keyKindEnd
)

// Encode returns the bytes of c. Errors match [ErrMalformed].
func (c KeyCommand) Encode() ([]byte, error) {
	if len(c.Name) > KeyNameMax || len(c.Part) > PartBytesMax || len(c.Members) > MembersMax || c.Kind == 0 || c.Kind >= keyKindEnd {
		return nil, fmt.Errorf("%w: key command %d, name of %d bytes, part of %d, %d members", ErrMalformed, c.Kind, len(c.Name), len(c.Part), len(c.Members))
	}
	for _, h := range c.Members {
		if err := h.check(); err != nil {
			return nil, fmt.Errorf("%w: %v", ErrMalformed, err)
		}
	}
	b := binary.BigEndian.AppendUint16([]byte{byte(c.Kind)}, uint16(len(c.Name)))
	if b = append(b, c.Name...); c.Kind == Change {
		return append(b, c.Change...), nil
	}
	b = binary.BigEndian.AppendUint64(b, c.Gen)
	return append(appendHosts(b, c.Members), c.Part...), nil
}

// DecodeKeyCommand reads what [KeyCommand.Encode] wrote. Errors match [ErrMalformed].
func DecodeKeyCommand(b []byte) (KeyCommand, error) {
	r := reader{b: b}
	c := KeyCommand{Kind: KeyKind(r.u8())}
	if r.err == nil && (c.Kind == 0 || c.Kind >= keyKindEnd) {
		r.fail("unknown key command %d", c.Kind)
	}
	if c.Name = r.name(); c.Kind == Change {
		c.Change = r.b
		return c, r.err
	}
	c.Gen = r.u64()
	c.Members = r.hosts()
	for _, h := range c.Members {
		if err := h.check(); err != nil {
			r.fail("%v", err)
		}
	}
	if len(r.b) > PartBytesMax {
		r.fail("part of %d bytes", len(r.b))
	}
	c.Part = r.b
	if r.err != nil {
		return KeyCommand{}, r.err
	}
	return c, nil
}

func (r *reader) name() string {
	n := int(r.u16())
	if n > KeyNameMax {
		r.fail("name of %d bytes (at most %d)", n, KeyNameMax)
		return ""
	}
	return string(r.take(n))
}

// keyState is what a prefix's group knows of an own group, beside its [Child].
type keyState struct {
	name string
	// part waits to be handed over. It is dropped when the own group has it.
	begun bool
	part  []byte
	// until is the log time before which a group that was made anew is not given its part: until then leases of the lost one may last.
	until time.Duration
}

// Keys is the state machine with which a prefix's group keeps the own groups of its keys (rule G7). It is the gate of its group: a key
// that is out is not served there. Deterministic like [Directory], whose rules for views and generations it shares. Not safe for
// concurrent use.
type Keys struct {
	parent order.GroupID
	dir    *Directory // of the own groups, by full key
	states map[keyspace.Key]*keyState
	lives  uint64 // own groups made so far
	keyGen uint64 // the highest generation of a key that has come back: tokens here are of that one
	// wait is how long the leases of a lost own group may last.
	wait time.Duration
	now  time.Duration // log time up to which waits were ended

	mutant KeyMutant
}

// KeyMutant is a deliberate mistake of [Keys] or [Own]. The simulator plants each one and has to catch it; nobody else uses them.
type KeyMutant uint8

// The mistakes.
const (
	MutantServeBoth  KeyMutant = iota + 1 // a key that is out is served all the same
	MutantNoSeal                          // an own group goes on after it was sealed
	MutantSameKeyGen                      // a lost own group is made anew under the tokens it had
	MutantAdoptLate                       // an own group of a lost prefix's group is adopted whenever it comes
	MutantNoWait                          // a group made anew begins while leases of the lost one last
	MutantBeginTwice                      // an own group takes what it is given each time it is given it
)

// Sabotage plants a mistake into k.
func (k *Keys) Sabotage(m KeyMutant) { k.mutant = m }

// Sabotage plants a mistake into o.
func (o *Own) Sabotage(m KeyMutant) { o.mutant = m }

// NewKeys returns the keys of a prefix's group, all of which it serves itself. A group that is not the first of its prefix, or whose
// overlay had another root before, does not know which keys had own groups; those may live on. It gives no key away, and grants nothing,
// before stretch(Lease) of log time, nor before the leases of its predecessor are over; own groups that tell of themselves until then are
// adopted, later ones are over.
func NewKeys(g Genesis, parent order.GroupID) *Keys {
	d := &Directory{overlay: parent.Overlay, depth: keyspace.PrefixBitsMax, f: g.F, gen: parent.Gen >> 32, children: make(map[keyspace.Prefix]Child)}
	k := &Keys{parent: parent, dir: d, states: make(map[keyspace.Key]*keyState), wait: g.Drift.Stretch(g.TTLMax)}
	if parent.Gen != 0 {
		d.quarantine = KeysQuarantine(g)
	}
	return k
}

// KeysQuarantine is the log time for which the group of a later generation of a prefix neither gives keys away nor serves any.
func KeysQuarantine(g Genesis) time.Duration {
	return max(g.Drift.Stretch(g.Lease), g.Drift.Stretch(g.TTLMax))
}

// Open reports that every key is served here.
func (k *Keys) Open() bool { return len(k.states) == 0 }

// Away reports whether a key is served by a group of its own.
func (k *Keys) Away(key keyspace.Key) bool {
	return k.states[key] != nil && k.mutant != MutantServeBoth
}

// Apply executes one command at a log time and returns its encoded [Result].
func (k *Keys) Apply(now time.Duration, parts Parts, data []byte) []byte {
	c, err := DecodeKeyCommand(data)
	if err != nil {
		return Result{Status: Malformed}.Encode()
	}
	switch c.Kind {
	case Out:
		return k.out(now, parts, c).Encode()
	case Begun:
		return k.begun(c).Encode()
	case Adopt:
		return k.adopt(now, parts, c).Encode()
	case Change:
		return k.change(now, parts, c).Encode()
	}
	return Result{Status: Malformed}.Encode()
}

func (k *Keys) out(now time.Duration, parts Parts, c KeyCommand) Result {
	key := keyspace.Preimage(c.Name).Key()
	p := KeyPrefix(key)
	if !k.parent.Prefix.Contains(key) || c.Name == "" {
		return Result{Status: BadPrefix}
	}
	if ch, ok := k.dir.children[p]; ok { // the first commit wins
		return Result{Status: Exists, Child: ch}
	}
	switch {
	case checkHosts(c.Members, k.dir.f) != nil:
		return Result{Status: BadMember}
	case now < k.dir.quarantine:
		return Result{Status: Quarantined}
	case len(k.states) >= OwnGroupsMax:
		return Result{Status: TooMany}
	case k.lives >= OwnLivesMax:
		return Result{Status: Exhausted}
	}
	if !parts.Prepare(c.Name) {
		return Result{Status: NotReady}
	}
	part, err := parts.Carve(c.Name)
	if err != nil {
		return Result{Status: TooLarge}
	}
	k.lives++
	g := order.GroupID{Overlay: k.parent.Overlay, Prefix: p, Gen: OwnGen(k.parent.Gen, k.keyGen, k.lives)}
	ch := Child{Descriptor: describe(g, c.Members)}
	k.dir.children[p] = ch
	k.states[key] = &keyState{name: c.Name, part: part}
	return Result{Status: OK, Child: ch}
}

// find returns a key's own group if it is of this generation.
func (k *Keys) find(c KeyCommand) (keyspace.Key, Child, Status) {
	key := keyspace.Preimage(c.Name).Key()
	ch, ok := k.dir.children[KeyPrefix(key)]
	switch {
	case !ok:
		return key, ch, NotFound
	case ch.Group.Gen != c.Gen:
		return key, ch, WrongGen
	}
	return key, ch, OK
}

func (k *Keys) begun(c KeyCommand) Result {
	key, ch, status := k.find(c)
	if status != OK {
		return Result{Status: status, Child: ch}
	}
	s := k.states[key]
	s.begun, s.part = true, nil
	return Result{Status: OK, Child: ch}
}

// adopt takes a key back. A repeat finds nothing, which says the same.
func (k *Keys) adopt(now time.Duration, parts Parts, c KeyCommand) Result {
	key, ch, status := k.find(c)
	if status != OK {
		return Result{Status: status, Child: ch}
	}
	if now < k.dir.quarantine { // nothing is granted here yet, also of this key
		return Result{Status: Quarantined}
	}
	if err := parts.Graft(c.Part); err != nil {
		return Result{Status: NoRoom}
	}
	k.keyGen = max(k.keyGen, KeyGen(ch.Group.Gen))
	delete(k.states, key)
	delete(k.dir.children, KeyPrefix(key))
	return Result{Status: OK, Child: ch}
}

// change executes what a directory does with a child.
func (k *Keys) change(now time.Duration, parts Parts, kc KeyCommand) Result {
	c, err := DecodeCommand(kc.Change)
	if err != nil || c.Kind == Create {
		return Result{Status: Malformed}
	}
	key := keyspace.Key(c.Prefix.Bits)
	ch, known := k.dir.children[c.Prefix]
	switch c.Kind {
	case Reported:
		return k.dir.reported(c)
	case Revive:
		return k.revive(now, c, key)
	}
	own := c.Descriptor.Group
	survives := own.Overlay == k.parent.Overlay && IsOwn(own) && k.parent.Prefix.Contains(key) &&
		ParentGen(own.Gen) < k.parent.Gen && (!known || ch.Group.Gen < own.Gen && ParentGen(ch.Group.Gen) < k.parent.Gen)
	if !survives {
		return k.dir.update(c)
	}
	// Its prefix's group was lost, and did not take it along.
	switch {
	case now >= k.dir.quarantine && k.mutant != MutantAdoptLate:
		return Result{Status: NotFound}
	case len(k.states) >= OwnGroupsMax && !known:
		return Result{Status: TooMany}
	case keyspace.Preimage(kc.Name).Key() != key:
		return Result{Status: BadPrefix}
	}
	// Nothing was granted here yet. Who has queued here meanwhile asks the own group.
	if _, err := parts.Carve(kc.Name); err != nil {
		return Result{Status: TooLarge}
	}
	ch = Child{Descriptor: c.Descriptor, Started: uint8(1<<len(c.Descriptor.View.Members) - 1)}
	k.dir.children[c.Prefix] = ch
	k.states[key] = &keyState{name: kc.Name, begun: true}
	return Result{Status: OK, Child: ch}
}

func (k *Keys) revive(now time.Duration, c Command, key keyspace.Key) Result {
	gen := c.Gen
	switch {
	case k.mutant == MutantSameKeyGen:
		gen++ // another life, and the tokens of the lost one
	case ParentGen(gen) < k.parent.Gen: // the prefix's generation is above all that the lost one gave out
		gen = OwnGen(k.parent.Gen, k.keyGen, k.lives+1)
	case KeyGen(gen) >= KeyGenMax:
		return Result{Status: Exhausted}
	default:
		gen += 1 << keyGenShift
	}
	if k.lives >= OwnLivesMax {
		return Result{Status: Exhausted}
	}
	res := k.dir.reviveAs(c, gen)
	if res.Status != OK {
		return res
	}
	k.lives++
	s := k.states[key]
	if s.until = now + k.wait; k.mutant == MutantNoWait {
		s.until = now
	}
	s.begun, s.part = false, nil
	return res
}

// Part returns what waits to be handed over to a key's own group. ready is false while leases of a lost one may last. For a group
// that was made anew the part is nil: it begins with nothing but tokens of its generation.
func (k *Keys) Part(now time.Duration, p keyspace.Prefix) (s KeyPart, ok bool) {
	ch, ok := k.dir.children[p]
	if !ok {
		return KeyPart{}, false
	}
	st := k.states[keyspace.Key(p.Bits)]
	return KeyPart{Status: OK, Child: ch, Name: st.name, Begun: st.begun, Ready: now >= st.until, Part: st.part}, true
}

// KeyPart is what [Keys] has of a key's own group.
type KeyPart struct {
	Status Status // OK, NotFound or Malformed; the rest is of OK
	Child  Child
	Name   string // empty of one that was adopted
	Begun  bool
	Ready  bool
	Part   []byte
}

// Unfinished returns the own groups of which a member has not reported in or which have not begun, by rising key.
func (k *Keys) Unfinished() (starting []Child, handing []Child) {
	for _, p := range k.dir.sorted() {
		ch := k.dir.children[p]
		if !ch.AllStarted() {
			starting = append(starting, ch)
		}
		if !k.states[keyspace.Key(p.Bits)].begun {
			handing = append(handing, ch)
		}
	}
	return starting, handing
}

// Lookup returns the own group of a key.
func (k *Keys) Lookup(p keyspace.Prefix) (Child, bool) { return k.dir.Lookup(p) }

// Quarantine returns the log time before which no key is given away; 0 in the first group of a prefix.
func (k *Keys) Quarantine() time.Duration { return k.dir.quarantine }

// Deadline returns when a wait is over of which somebody wants to know.
func (k *Keys) Deadline() (time.Duration, bool) {
	first, any := time.Duration(0), false
	note := func(at time.Duration) {
		if at > k.now && (!any || at < first) {
			first, any = at, true
		}
	}
	note(k.dir.quarantine)
	for _, s := range k.states {
		if !s.begun {
			note(s.until)
		}
	}
	return first, any
}

// Tick tells that the log time has come to now.
func (k *Keys) Tick(now time.Duration) { k.now = max(k.now, now) }

// PartQuery returns the bytes of the query for what is to be handed over to the own group of p's key. Its answer is a [KeyPart].
func PartQuery(p keyspace.Prefix) []byte { return appendPrefix([]byte{queryPart}, p) }

const queryPart = 0x10

// Query answers a read-only query at a log time: a [KeyPart] for a PartQuery, others as a [Directory] does, for the own groups' full keys.
func (k *Keys) Query(now time.Duration, data []byte) []byte {
	if len(data) == 0 || data[0] != queryPart {
		return k.dir.Query(data)
	}
	r := reader{b: data[1:]}
	p := r.prefix()
	if r.end() != nil {
		return KeyPart{Status: Malformed}.Encode()
	}
	part, ok := k.Part(now, p)
	if !ok {
		return KeyPart{Status: NotFound}.Encode()
	}
	return part.Encode()
}

// Encode returns the bytes of p.
func (p KeyPart) Encode() []byte {
	b := []byte{byte(p.Status)}
	if p.Status != OK {
		return b
	}
	b = appendChild(b, p.Child)
	b = binary.BigEndian.AppendUint16(b, uint16(len(p.Name)))
	b = appendBool(appendBool(append(b, p.Name...), p.Begun), p.Ready)
	return append(b, p.Part...)
}

// DecodeKeyPart reads what [KeyPart.Encode] wrote. Errors match [ErrMalformed] or [ErrDescriptor].
func DecodeKeyPart(b []byte) (KeyPart, error) {
	r := reader{b: b}
	p := KeyPart{Status: Status(r.u8())}
	switch {
	case r.err != nil:
	case p.Status == OK:
		p.Child, p.Name, p.Begun, p.Ready = r.child(), r.name(), r.bool(), r.bool()
		if len(r.b) > PartBytesMax {
			r.fail("part of %d bytes", len(r.b))
		}
		if r.err == nil && len(r.b) > 0 {
			p.Part = append([]byte(nil), r.b...)
		}
	case p.Status != NotFound && p.Status != Malformed || len(r.b) > 0:
		r.fail("status %d, %d bytes left", p.Status, len(r.b))
	}
	if r.err != nil {
		return KeyPart{}, r.err
	}
	return p, nil
}

const keysVersion = 1

// Snapshot returns the whole state. Equal states have equal snapshots.
func (k *Keys) Snapshot() []byte {
	b := binary.BigEndian.AppendUint64([]byte{keysVersion}, k.lives)
	b = binary.BigEndian.AppendUint64(b, k.keyGen)
	b = binary.BigEndian.AppendUint64(b, uint64(k.now))
	b = append(b, byte(len(k.states)))
	for _, p := range k.dir.sorted() {
		s := k.states[keyspace.Key(p.Bits)]
		b = appendChild(b, k.dir.children[p])
		b = binary.BigEndian.AppendUint16(b, uint16(len(s.name)))
		b = appendBool(append(b, s.name...), s.begun)
		b = binary.BigEndian.AppendUint64(b, uint64(s.until))
		b = binary.BigEndian.AppendUint32(b, uint32(len(s.part)))
		b = append(b, s.part...)
	}
	return b
}

// Restore replaces the state by a snapshot. On an error, which matches [ErrMalformed] or [ErrDescriptor], the state is as it was.
func (k *Keys) Restore(b []byte) error {
	r := reader{b: b}
	if v := r.u8(); r.err == nil && v != keysVersion {
		r.fail("keys of version %d, this program reads %d", v, keysVersion)
	}
	lives, keyGen, now := r.u64(), r.u64(), r.duration()
	if lives > OwnLivesMax || keyGen > KeyGenMax || now < 0 {
		r.fail("%d lives, generation %d, log time %v", lives, keyGen, now)
	}
	children, states := make(map[keyspace.Prefix]Child), make(map[keyspace.Key]*keyState)
	var last keyspace.Prefix
	for i := range r.count("own groups", OwnGroupsMax) {
		ch := r.child()
		p := ch.Group.Prefix
		s := &keyState{name: r.name(), begun: r.bool(), until: r.duration()}
		n := int(r.u32())
		switch {
		case r.err != nil:
		case n > PartBytesMax, s.begun && n > 0, s.until < 0:
			r.fail("part of %d bytes", n)
		case ch.Group.Overlay != k.parent.Overlay || !IsOwn(ch.Group) || !k.parent.Prefix.Contains(keyspace.Key(p.Bits)) || ParentGen(ch.Group.Gen) > k.parent.Gen:
			r.fail("own group %v is not of this prefix", ch.Group)
		case s.name != "" && keyspace.Preimage(s.name).Key() != keyspace.Key(p.Bits):
			r.fail("own group %v has another name", ch.Group)
		case i > 0 && last.Compare(p) >= 0:
			r.fail("own groups out of order")
		}
		if r.err != nil {
			break
		}
		if n > 0 {
			s.part = append([]byte(nil), r.take(n)...)
		}
		children[p], states[keyspace.Key(p.Bits)], last = ch, s, p
	}
	if err := r.end(); err != nil {
		return err
	}
	k.lives, k.keyGen, k.now, k.dir.children, k.states = lives, keyGen, now, children, states
	return nil
}
