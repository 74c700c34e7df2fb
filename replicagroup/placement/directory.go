package placement

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/invariant"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/quorum"
)

// Service is the name under which a parent group runs its directory.
const Service = "directory"

// PrefixGenMax is the last generation of a prefix in one generation of the overlay: a token has ten bits for it
// (replica-groups.md section 6.6). A group that would need another one cannot be revived.
const PrefixGenMax = 1<<10 - 1

// listMax is how many children one answer to a List query holds; the asker goes on after the last one.
const listMax = 256

// CommandKind says what a [Command] asks for.
type CommandKind uint8

// Kinds of commands.
const (
	Create   CommandKind = iota + 1 // Prefix gets a group of Members, unless it has one
	Reported                        // Replica, with Store, of Prefix's group has started
	Update                          // Prefix's group has moved on to the view of Descriptor
	Revive                          // Prefix's group, whose generation is Gen, is lost: the next generation begins with Members
)

// Command is a command of the directory. The parent's leader proposes it; a host takes none from anybody else.
type Command struct {
	Kind       CommandKind
	Prefix     keyspace.Prefix
	Members    []Host          // of Create and Revive: the voters, in the order in which they get replica ids from 1
	Gen        uint64          // of Reported: the generation the replica is of; of Revive: the one that is lost
	Replica    order.ReplicaID // of Reported
	Store      order.StoreID   // of Reported
	Descriptor Descriptor      // of Update: of Prefix's group
}

// Encode returns the bytes of c. It does not judge c: the directory does, and refuses with a [Status]. Errors match
// [ErrMalformed] when c cannot be written at all.
func (c Command) Encode() ([]byte, error) {
	b := appendPrefix([]byte{byte(c.Kind)}, c.Prefix)
	switch c.Kind {
	case Create, Revive:
		if len(c.Members) > MembersMax {
			return nil, fmt.Errorf("%w: %d members (at most %d)", ErrMalformed, len(c.Members), MembersMax)
		}
		for _, h := range c.Members {
			if err := h.check(); err != nil {
				return nil, fmt.Errorf("%w: %v", ErrMalformed, err)
			}
		}
		if c.Kind == Revive {
			b = binary.BigEndian.AppendUint64(b, c.Gen)
		}
		return appendHosts(b, c.Members), nil
	case Reported:
		b = binary.BigEndian.AppendUint64(b, uint64(c.Replica))
		b = append(b, c.Store[:]...)
		if c.Gen != 0 { // the first generation is written as it always was
			b = binary.BigEndian.AppendUint64(b, c.Gen)
		}
		return b, nil
	case Update:
		if err := c.Descriptor.Validate(); err != nil || c.Descriptor.Group.Prefix != c.Prefix {
			return nil, fmt.Errorf("%w: update of prefix %v to %v: %v", ErrMalformed, c.Prefix, c.Descriptor.Group, err)
		}
		return appendDescriptor(b, c.Descriptor), nil
	}
	return nil, fmt.Errorf("%w: unknown command %d", ErrMalformed, c.Kind)
}

// DecodeCommand reads what [Command.Encode] wrote. Errors match [ErrMalformed].
func DecodeCommand(b []byte) (Command, error) {
	r := reader{b: b}
	c := Command{Kind: CommandKind(r.u8()), Prefix: r.prefix()}
	switch c.Kind {
	case Create, Revive:
		if c.Kind == Revive {
			c.Gen = r.u64()
		}
		c.Members = r.hosts()
		for _, h := range c.Members {
			if err := h.check(); err != nil {
				r.fail("%v", err)
			}
		}
	case Reported:
		c.Replica = order.ReplicaID(r.u64())
		r.fixed(c.Store[:])
		if len(r.b) > 0 {
			if c.Gen = r.u64(); c.Gen == 0 {
				r.fail("generation 0 written out")
			}
		}
	case Update:
		c.Descriptor = r.descriptor()
		if r.err == nil && c.Descriptor.Group.Prefix != c.Prefix {
			r.fail("update of prefix %v to %v", c.Prefix, c.Descriptor.Group)
		}
	default:
		r.fail("unknown command %d", c.Kind)
	}
	if err := r.end(); err != nil {
		return Command{}, err
	}
	return c, nil
}

// Status says how a command or query of the directory ended.
type Status uint8

// Statuses.
const (
	OK          Status = iota + 1 // done; of Create: the child was made by this command
	Exists                        // Create: the prefix has a group already; the result holds it
	NotFound                      // the prefix has no group, or no such member
	Malformed                     // the bytes could not be read
	BadPrefix                     // not a prefix of the overlay's depth
	BadMember                     // the members cannot be the voters of a group
	WrongGen                      // Update, Revive: the prefix's group is of another generation; the result holds it
	Stale                         // Update: the directory knows a later view; the result holds it
	Exhausted                     // Revive: the prefix has had as many generations as tokens can tell apart
	Quarantined                   // Create: the root is new, and the prefix's group may have survived and not be known yet; Out alike
	TooMany                       // Out: the prefix has [OwnGroupsMax] own groups
	TooLarge                      // Out, Seal: too much is known of the key, or a service cannot be split by key
	NoRoom                        // Adopt, Begin: there is no room for what is handed over
	NotReady                      // Out, Seal: who has something there is about to be known; ask again in a while
)

var statusNames = [...]string{OK: "ok", Exists: "exists", NotFound: "not found", Malformed: "malformed", BadPrefix: "bad prefix",
	BadMember: "bad member", WrongGen: "wrong generation", Stale: "stale view", Exhausted: "generations exhausted", Quarantined: "in quarantine",
	TooMany: "too many own groups", TooLarge: "too much waits for the key", NoRoom: "no room",
	NotReady: "not known yet who has something there: ask again"}

// holds reports whether a result of this status holds a child.
func (s Status) holds() bool { return s == OK || s == Exists || s == WrongGen || s == Stale }

// String returns the status in words.
func (s Status) String() string {
	if s >= OK && int(s) < len(statusNames) {
		return statusNames[s]
	}
	return fmt.Sprintf("Status(%d)", uint8(s))
}

// ChildState says how a child stands with its parent.
type ChildState uint8

// The states of a child.
const (
	Live      ChildState = iota // created, or revived and a majority of its voters has reported in since
	Reviving                    // revived, and no majority of the new generation's voters has reported in yet
	Inherited                   // known from the former root only: see [Inherit]
	childStateEnd
)

// String returns the state in words.
func (s ChildState) String() string {
	if s >= childStateEnd {
		return fmt.Sprintf("ChildState(%d)", uint8(s))
	}
	return [...]string{"live", "reviving", "inherited"}[s]
}

// Former names the last that a directory knew of the generation before a revived one. The zero value stands for none.
type Former struct {
	Gen  uint64
	View uint64
}

// Child is what a directory knows of one prefix's group. The zero value is no child.
type Child struct {
	Descriptor
	Started uint8 // bit i: View.Members[i] has reported in
	State   ChildState
	Former  Former // of a child that was revived; its generation is below Group.Gen
}

// AllStarted reports whether every member has reported in.
func (c Child) AllStarted() bool { return bits.OnesCount8(c.Started) == len(c.View.Members) }

// unfinished reports whether there are members that have yet to be told to start, or to say that they have. Of what only a former root
// knew nobody is told to start.
func (c Child) unfinished() bool { return !c.AllStarted() && c.State != Inherited }

// majority reports whether a majority of the voters has reported in.
func (c Child) majority() bool {
	voters, running := 0, 0
	for i, m := range c.View.Members {
		if m.Role == order.Voter {
			voters++
			running += int(c.Started >> i & 1)
		}
	}
	return voters > 0 && running >= quorum.Majority(voters)
}

// started returns c with the bit of the member that is replica id in store set; ok is false if there is none.
func (c Child) started(id order.ReplicaID, store order.StoreID) (_ Child, ok bool) {
	for i, m := range c.View.Members {
		if m.ID == id && m.Store == store {
			if c.Started |= 1 << i; c.majority() {
				c.State = Live
			}
			return c, true
		}
	}
	return c, false
}

// moved returns c in a later view of its own. Who has reported in is known still; who came since was started by the group.
func (c Child) moved(d Descriptor) Child {
	started := uint8(0)
	for i, m := range d.View.Members {
		at := slices.IndexFunc(c.View.Members, func(o order.Member) bool { return o.ID == m.ID })
		if at < 0 || c.Started>>at&1 == 1 {
			started |= 1 << i
		}
	}
	c.Descriptor, c.Started = d, started
	if c.majority() {
		c.State = Live
	}
	return c
}

const childVersion = 2

func appendChild(b []byte, c Child) []byte {
	b = append(b, childVersion, c.Started, byte(c.State))
	b = binary.BigEndian.AppendUint64(b, c.Former.Gen)
	b = binary.BigEndian.AppendUint64(b, c.Former.View)
	return appendDescriptor(b, c.Descriptor)
}

func (r *reader) child() Child {
	if v := r.u8(); r.err == nil && v != childVersion {
		r.fail("child of version %d, this program reads %d", v, childVersion)
	}
	c := Child{Started: r.u8(), State: ChildState(r.u8()), Former: Former{Gen: r.u64(), View: r.u64()}}
	c.Descriptor = r.descriptor()
	r.checkChild(c)
	return c
}

// child1 reads a child as version 1 of the snapshot has it: none was ever revived.
func (r *reader) child1() Child {
	c := Child{Started: r.u8()}
	c.Descriptor = r.descriptor()
	r.checkChild(c)
	return c
}

func (r *reader) checkChild(c Child) {
	switch {
	case r.err != nil:
	case int(c.Started)>>len(c.View.Members) != 0:
		r.fail("more members started than there are")
	case c.State >= childStateEnd, c.State == Reviving && c.majority():
		r.fail("child %v is %v with members %b started", c.Group, c.State, c.Started)
	case c.Former != (Former{}) && c.Former.Gen >= c.Group.Gen, c.State == Reviving && c.Group.Gen == 0:
		r.fail("child %v follows generation %d", c.Group, c.Former.Gen)
	}
}

// Result is the directory's answer to a command or to a Lookup.
type Result struct {
	Status Status
	Child  Child // with OK, Exists, WrongGen and Stale
}

// Encode returns the bytes of r, at most [DescriptorBytesMax] + 20.
func (r Result) Encode() []byte {
	b := []byte{byte(r.Status)}
	if r.Status.holds() {
		b = appendChild(b, r.Child)
	}
	return b
}

// DecodeResult reads what [Result.Encode] wrote. Errors match [ErrMalformed] or [ErrDescriptor].
func DecodeResult(b []byte) (Result, error) {
	r := reader{b: b}
	res := Result{Status: Status(r.u8())}
	switch {
	case res.Status.holds():
		res.Child = r.child()
	case res.Status < OK || int(res.Status) >= len(statusNames):
		r.fail("unknown status %d", res.Status)
	}
	if err := r.end(); err != nil {
		return Result{}, err
	}
	return res, nil
}

// Query kinds.
const (
	queryLookup = 1
	queryList   = 2
)

// LookupQuery returns the bytes of the query for p's group. Its answer is a [Result]: OK with the child, NotFound or
// BadPrefix.
func LookupQuery(p keyspace.Prefix) []byte { return appendPrefix([]byte{queryLookup}, p) }

// ListQuery returns the bytes of the query for the children after prefix after in order, or all from the first one if after
// is the zero prefix. Its answer is a [Listing].
func ListQuery(after keyspace.Prefix) []byte { return appendPrefix([]byte{queryList}, after) }

// Summary is one line of a [Listing].
type Summary struct {
	Prefix  keyspace.Prefix
	Gen     uint64
	View    uint64
	Members uint8
	Started uint8
	State   ChildState
}

// Listing is the answer to a List query: the next children by rising prefix. With More, ask again after the last one.
type Listing struct {
	Children []Summary
	More     bool
}

func (l Listing) encode() []byte {
	b := binary.BigEndian.AppendUint16(appendBool(nil, l.More), uint16(len(l.Children)))
	for _, s := range l.Children {
		b = appendPrefix(b, s.Prefix)
		b = binary.BigEndian.AppendUint64(b, s.Gen)
		b = binary.BigEndian.AppendUint64(b, s.View)
		b = append(b, s.Members, s.Started, byte(s.State))
	}
	return b
}

// DecodeListing reads the answer to a List query. Errors match [ErrMalformed].
func DecodeListing(b []byte) (Listing, error) {
	r := reader{b: b}
	l := Listing{More: r.bool()}
	n := int(r.u16())
	if n > listMax {
		r.fail("%d children (at most %d)", n, listMax)
	}
	for i := 0; i < n && r.err == nil; i++ {
		l.Children = append(l.Children, Summary{Prefix: r.prefix(), Gen: r.u64(), View: r.u64(), Members: r.u8(), Started: r.u8(), State: ChildState(r.u8())})
	}
	if err := r.end(); err != nil {
		return Listing{}, err
	}
	return l, nil
}

// Directory is the state machine with which a parent group keeps its children: at most one group per prefix, the one of the
// first Create that was committed, or the latest generation that a Revive made of it. It is deterministic: the same commands in the same order give the same answers and
// snapshots at every replica. Bounds: one child per prefix of the overlay's depth, at most 2^[DepthMax]. Not safe for
// concurrent use.
type Directory struct {
	overlay    order.OverlayID
	depth      int
	f          int
	gen        uint64        // of the overlay
	quarantine time.Duration // log time until which nothing is created; 0 in the overlay's first generation
	open       bool          // log time has passed the quarantine, as far as was heard; not part of the state
	// children holds one valid descriptor per prefix, with Group.Overlay == overlay and Prefix.Len == depth.
	children map[keyspace.Prefix]Child

	mutant mutant
}

// NewDirectory returns the empty directory of a root group. g must be valid.
//
// The root of a later generation of the overlay (see [Reseed]) has lost the directory of the one before, whose groups may live on.
// An Update of such a group adopts it, with its generation and state. So that no prefix gets a second group while its first is on its way to
// be adopted, nothing is created before the overlay's Lease, stretched, has passed in log time; a group that comes later than that,
// and finds another in its place, is over. Nor may a lease be granted before: one of the former root may last as long.
func NewDirectory(g Genesis, root order.GroupID) *Directory {
	d := &Directory{overlay: g.ID(), depth: g.Depth, f: g.F, gen: root.Gen >> 32, children: make(map[keyspace.Prefix]Child)}
	if d.gen > 0 {
		d.quarantine = g.Drift.Stretch(g.Lease)
	}
	return d
}

// Apply executes one command at a log time and returns its encoded [Result].
func (d *Directory) Apply(now time.Duration, data []byte) []byte {
	d.Pass(now)
	c, err := DecodeCommand(data)
	if err != nil {
		return Result{Status: Malformed}.Encode()
	}
	switch c.Kind {
	case Create:
		return d.create(now, c).Encode()
	case Reported:
		return d.reported(c).Encode()
	case Update:
		return d.update(c).Encode()
	}
	return d.revive(c).Encode()
}

// Inherit returns the directory of a root that begins with what a replica of the former root knew: former is the snapshot of that
// replica's directory, which must be of an earlier generation of the overlay. Errors match [ErrMalformed] or [ErrDescriptor].
//
// What such a replica has applied was committed, so it happened; but more may have happened that it never heard of. So each of its groups
// is [Inherited]: its generation is a lower bound, below which nothing is adopted; its members are where to ask. Nobody is told to start
// it, since a later generation may live elsewhere; nothing is created in its place, since it may live itself; and it is itself again when a
// member tells of it by an Update, or it is revived.
func Inherit(g Genesis, root order.GroupID, former []byte) (*Directory, error) {
	d := NewDirectory(g, root)
	return d, d.inherit(former)
}

func (d *Directory) inherit(former []byte) error {
	if err := d.Restore(former); err != nil {
		return err
	}
	for p, ch := range d.children {
		if ch.Group.Gen>>32 >= d.gen {
			return fmt.Errorf("%w: group %v is not of a root before that of generation %d", ErrMalformed, ch.Group, d.gen)
		}
		if ch.State = Inherited; d.mutant == mutantInheritLive {
			ch.State = Live
		}
		d.children[p] = ch
	}
	return nil
}

// Pass tells the directory of the log time.
func (d *Directory) Pass(now time.Duration) { d.open = d.open || now >= d.quarantine }

// Open reports whether log time has passed the quarantine, as far as [Directory.Pass] was told and commands were executed.
func (d *Directory) Open() bool { return d.open || d.quarantine == 0 }

func (d *Directory) create(now time.Duration, c Command) Result {
	if int(c.Prefix.Len) != d.depth {
		return Result{Status: BadPrefix}
	}
	if ch, ok := d.children[c.Prefix]; ok && (ch.State != Inherited || d.mutant != mutantInheritFree) { // the first commit wins
		return Result{Status: Exists, Child: ch}
	}
	if checkHosts(c.Members, d.f) != nil {
		return Result{Status: BadMember}
	}
	if now < d.quarantine && d.mutant != mutantNoQuarantine {
		return Result{Status: Quarantined}
	}
	ch := Child{Descriptor: describe(order.GroupID{Overlay: d.overlay, Prefix: c.Prefix, Gen: d.gen << 32}, c.Members)}
	d.children[c.Prefix] = ch
	invariant.Check(len(d.children) <= 1<<d.depth, "one child per prefix", len(d.children))
	return Result{Status: OK, Child: ch}
}

func (d *Directory) reported(c Command) Result {
	ch, ok := d.children[c.Prefix]
	// Replica 1 of this generation may live in the store where replica 1 of the one before did.
	if ok = ok && ch.State != Inherited && (ch.Group.Gen == c.Gen || d.mutant == mutantReportAnyGen); ok {
		ch, ok = ch.started(c.Replica, c.Store)
	}
	if !ok {
		return Result{Status: NotFound}
	}
	d.children[c.Prefix] = ch
	return Result{Status: OK, Child: ch}
}

// adopts reports whether an Update brings a group of an earlier generation of the overlay, which takes the place of what is known of
// its prefix: nothing, an earlier one still, or the same as the former root knew it.
func (d *Directory) adopts(c Command, known Child, ok bool) bool {
	g := c.Descriptor.Group
	if g.Overlay != d.overlay || g.Gen>>32 >= d.gen {
		return false
	}
	switch inherited := ok && known.State == Inherited; {
	case inherited && d.mutant == mutantInheritNoFloor:
		return true
	case inherited && known.Group == g:
		return c.Descriptor.View.Num >= known.View.Num
	}
	return !ok || known.Group.Gen < g.Gen
}

// update takes a later view of the live generation.
func (d *Directory) update(c Command) Result {
	ch, ok := d.children[c.Prefix]
	switch {
	case int(c.Prefix.Len) != d.depth:
		return Result{Status: BadPrefix}
	case d.adopts(c, ch, ok):
		if c.Descriptor.Group != ch.Group {
			ch.Former = Former{}
		}
		ch = Child{Descriptor: c.Descriptor, Started: uint8(1<<len(c.Descriptor.View.Members) - 1), Former: ch.Former}
		d.children[c.Prefix] = ch
		return Result{Status: OK, Child: ch}
	case !ok:
		return Result{Status: NotFound}
	case c.Descriptor.Group != ch.Group && d.mutant != mutantUpdateAnyGen:
		return Result{Status: WrongGen, Child: ch}
	case c.Descriptor.View.Num < ch.View.Num && d.mutant != mutantUpdateBack:
		return Result{Status: Stale, Child: ch}
	case c.Descriptor.View.Num == ch.View.Num: // a repeat
		return Result{Status: OK, Child: ch}
	}
	ch = ch.moved(c.Descriptor)
	d.children[c.Prefix] = ch
	return Result{Status: OK, Child: ch}
}

// revive begins the generation after a lost one, whose number must be named: a late copy of the command, or one of two
// operators at once, finds another generation and changes nothing.
func (d *Directory) revive(c Command) Result {
	ch, ok := d.children[c.Prefix]
	switch {
	case int(c.Prefix.Len) != d.depth:
		return Result{Status: BadPrefix}
	case !ok:
		return Result{Status: NotFound}
	case ch.Group.Gen != c.Gen && d.mutant != mutantReviveAnyGen:
		return Result{Status: WrongGen, Child: ch}
	case checkHosts(c.Members, d.f) != nil:
		return Result{Status: BadMember}
	}
	gen, ok := d.nextGen(ch.Group.Gen)
	if !ok {
		return Result{Status: Exhausted}
	}
	return d.follow(ch, gen, c.Members)
}

// reviveAs is revive with the generation that is to follow.
func (d *Directory) reviveAs(c Command, gen uint64) Result {
	ch, ok := d.children[c.Prefix]
	switch {
	case !ok:
		return Result{Status: NotFound}
	case ch.Group.Gen != c.Gen:
		return Result{Status: WrongGen, Child: ch}
	case checkHosts(c.Members, d.f) != nil:
		return Result{Status: BadMember}
	}
	return d.follow(ch, gen, c.Members)
}

// follow begins a later generation of a child.
func (d *Directory) follow(ch Child, gen uint64, members []Host) Result {
	g := order.GroupID{Overlay: d.overlay, Prefix: ch.Group.Prefix, Gen: gen}
	ch = Child{Descriptor: describe(g, members), State: Reviving, Former: Former{Gen: ch.Group.Gen, View: ch.View.Num}}
	d.children[g.Prefix] = ch
	return Result{Status: OK, Child: ch}
}

// nextGen returns the generation after one, if there is any.
func (d *Directory) nextGen(gen uint64) (uint64, bool) {
	if d.mutant == mutantReviveSameGen {
		return gen, true
	}
	switch {
	case gen>>32 < d.gen:
		return d.gen << 32, true // above all generations that an earlier root made
	case uint32(gen) >= PrefixGenMax:
		return 0, false
	}
	return gen + 1, true
}

// Query answers a read-only query: a [Result] for a Lookup, a [Listing] for a List; bytes it cannot read get a Result with
// Malformed.
func (d *Directory) Query(data []byte) []byte {
	r := reader{b: data}
	kind, p := r.u8(), r.prefix()
	if r.end() != nil || kind != queryLookup && kind != queryList {
		return Result{Status: Malformed}.Encode()
	}
	if kind == queryList {
		return d.list(p).encode()
	}
	if int(p.Len) != d.depth {
		return Result{Status: BadPrefix}.Encode()
	}
	ch, ok := d.Lookup(p)
	if !ok {
		return Result{Status: NotFound}.Encode()
	}
	return Result{Status: OK, Child: ch}.Encode()
}

func (d *Directory) list(after keyspace.Prefix) (l Listing) {
	for _, p := range d.sorted() {
		if after != (keyspace.Prefix{}) && p.Compare(after) <= 0 {
			continue
		}
		if len(l.Children) == listMax {
			l.More = true
			break
		}
		ch := d.children[p]
		l.Children = append(l.Children, Summary{Prefix: p, Gen: ch.Group.Gen, View: ch.View.Num,
			Members: uint8(len(ch.View.Members)), Started: uint8(bits.OnesCount8(ch.Started)), State: ch.State})
	}
	return l
}

// Lookup returns p's group. The caller does not change it.
func (d *Directory) Lookup(p keyspace.Prefix) (Child, bool) {
	ch, ok := d.children[p]
	return ch, ok
}

// Len returns how many groups the directory holds.
func (d *Directory) Len() int { return len(d.children) }

// Quarantine returns the log time before which nothing is created; 0 in a root of the overlay's first generation.
func (d *Directory) Quarantine() time.Duration { return d.quarantine }

// Unstarted returns the children of which a member has not reported in, by rising prefix: what a new leader goes on with.
func (d *Directory) Unstarted() []Child {
	var list []Child
	for _, p := range d.sorted() {
		if ch := d.children[p]; ch.unfinished() {
			list = append(list, ch)
		}
	}
	return list
}

func (d *Directory) sorted() []keyspace.Prefix {
	return slices.SortedFunc(maps.Keys(d.children), keyspace.Prefix.Compare)
}

// snapshotVersion is that of the snapshots written. Version 1, which knows no state of a child, is read still.
const snapshotVersion = 2

// Snapshot returns the whole state. Equal states have equal snapshots.
func (d *Directory) Snapshot() []byte {
	b := binary.BigEndian.AppendUint32([]byte{snapshotVersion}, uint32(len(d.children)))
	for _, p := range d.sorted() {
		b = appendChild(b, d.children[p])
	}
	return b
}

// Restore replaces the state by a snapshot. On an error, which matches [ErrMalformed] or [ErrDescriptor], the state is as it
// was.
func (d *Directory) Restore(b []byte) error {
	r := reader{b: b}
	read := r.child
	switch v := r.u8(); {
	case r.err != nil:
	case v == 1:
		read = r.child1
	case v != snapshotVersion:
		r.fail("directory snapshot of version %d, this program reads 1 to %d", v, snapshotVersion)
	}
	n := int(r.u32())
	if n > 1<<d.depth {
		r.fail("%d children (at most %d)", n, 1<<d.depth)
	}
	children := make(map[keyspace.Prefix]Child)
	var last keyspace.Prefix
	for i := 0; i < n && r.err == nil; i++ {
		ch := read()
		p := ch.Group.Prefix
		switch {
		case r.err != nil:
		case ch.Group.Overlay != d.overlay || int(p.Len) != d.depth || ch.Group.Gen>>32 > d.gen:
			r.fail("child %v is not of this overlay", ch.Group)
		case i > 0 && last.Compare(p) >= 0:
			r.fail("children out of order")
		}
		children[p], last = ch, p
	}
	if err := r.end(); err != nil {
		return err
	}
	d.children = children
	return nil
}
