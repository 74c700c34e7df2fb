package store

import (
	"maps"
	"slices"
	"strings"
	"time"

	"latchkey/coherence/durable"
	"latchkey/coherence/protocol"
)

// Limits of a store. What would exceed one is refused with the reason beside it. Together they keep a snapshot below what an ordering engine takes
// (48 MiB): 24 MiB of values, 12 of names (a listing has them once more), and 64 bytes for each object and each writer.
const (
	ObjectsMax         = 1 << 16  // objects and tombstones, listings included; Full
	ValueBytesTotalMax = 24 << 20 // of all values; Full
	NameBytesTotalMax  = 6 << 20  // of all names; Full. Those of one directory make a value, which is at most [protocol.ValueMax]
	WritersMax         = 1 << 16  // remembered, of all objects; Full
	WritersPerObject   = 64       // within WriterLife; Busy
	ExceptionsMax      = 16       // of a mark

	WriterLife    = 10 * time.Minute // for how long a repeated STORE is known for what it is, in log time
	TombstoneLife = 24 * time.Hour   // for how long a deleted object keeps a version of its own
	purgeEvery    = time.Minute      // how often what is too old is looked for

	TTLMin = time.Second
	TTLMax = 10 * 365 * 24 * time.Hour
)

// Config is what all replicas of a group have in common.
type Config struct {
	Base durable.Version // of the group's generation, see [durable.Base]
}

// Mark says which writes are settled: those up to Index, but for the objects in Except (D13). What it says stays true for ever.
type Mark struct {
	Index  uint64
	Except []string // rising
}

// Command is an entry of the log. One without an object is a mark alone.
type Command struct {
	Object string
	By     protocol.NodeRef // whose write it is; nobody's is an expiry: the object is deleted if its version is Wanted, and it has a TTL
	Seq    durable.Seq
	Expect durable.Expect
	Wanted durable.Version
	Delete bool
	Value  *protocol.Cell // nil with Delete
	TTL    time.Duration
	Mark   Mark
}

// Outcome says what became of a command.
type Outcome uint8

// The outcomes.
const (
	Nothing    Outcome = iota // a mark, or an expiry that came too late
	Applied                   // the object has the result's version now
	Conflicted                // its condition failed
	Repeated                  // it had been executed already, with the result that [Store.Last] tells
	Refused                   // for the result's reason
)

// Result of a command.
type Result struct {
	Outcome Outcome
	Version durable.Version // of Applied
	Listing bool            // of Applied: the directory's listing changed too
	Reason  durable.Reason  // of Refused
}

// Store is what one group keeps. Not safe for concurrent use, but values may be read by anybody at any time.
type Store struct {
	cfg     Config
	now     time.Duration // log time of the last command
	purged  time.Duration // and of the last look for what is too old
	index   uint64        // of the last command
	written uint64        // of the last one that made a write
	mark    Mark
	floor   durable.Version // no forgotten object had a greater version
	objects map[string]*object
	bytes   int // of values
	names   int // bytes of names of objects
	writers int // remembered, of all objects
	mutant  durable.Mutant
}

type object struct {
	value   *protocol.Cell // nil: none
	version durable.Version
	index   uint64        // of the entry that last wrote it
	since   time.Duration // log time of that
	ttl     time.Duration
	writers []writer // by rising node
	// members are the names of what stands in a listing, without the directory's, rising. Nil of other objects.
	members []string
	// listed is how many bytes they make as a listing's value.
	listed int
	// listing is the value they make, once somebody has asked for it.
	listing *protocol.Cell
}

// writer remembers the last request of a node.
type writer struct {
	node   protocol.NodeRef
	seq    durable.Seq
	result durable.Version // that it made; 0 if its condition failed
	at     time.Duration
}

// New returns the store of a group that has no objects.
func New(cfg Config) *Store { return &Store{cfg: cfg, objects: map[string]*object{}} }

// Sabotage plants a mistake. It is for tests.
func (s *Store) Sabotage(m durable.Mutant) { s.mutant = m }

// Apply executes the entry of the log at an index and log time. The command's value is kept, and must not be changed.
func (s *Store) Apply(index uint64, now time.Duration, c Command) Result {
	s.now = max(s.now, now)
	s.purge()
	r := s.write(index, c)
	s.index = max(s.index, index)
	if c.Mark.Index > s.mark.Index && c.Mark.Index < index && len(c.Mark.Except) <= ExceptionsMax { // D13
		s.mark = Mark{c.Mark.Index, slices.Clone(c.Mark.Except)}
	}
	return r
}

func (s *Store) write(index uint64, c Command) Result {
	if c.Object == "" {
		return Result{}
	}
	o := s.objects[c.Object]
	if c.By.IsZero() { // an expiry
		if o == nil || o.value == nil || o.ttl == 0 || o.version != c.Wanted {
			return Result{}
		}
		c.Delete, c.Value, c.TTL = true, nil, 0
	} else {
		if seq, _, known := s.Last(c.Object, c.By); known && c.Seq <= seq && s.mutant != durable.NoDedup {
			return Result{Outcome: Repeated}
		}
		if reason := s.refuses(o, &c); reason != 0 {
			return Result{Outcome: Refused, Reason: reason}
		}
		if !s.Meets(c.Object, c.Expect, c.Wanted) && s.mutant != durable.NoCondition {
			// Whoever asked will be told. So it is remembered: a copy of the message that comes later, when the condition holds, must not
			// make the write after all.
			if s.mutant != durable.ForgetConflict {
				s.remember(s.at(c.Object), c.By, c.Seq, 0)
			}
			return Result{Outcome: Conflicted}
		}
	}
	r := Result{Outcome: Applied, Version: s.Next(c.Object)}
	o = s.at(c.Object)
	s.written = index
	was := o.value != nil
	s.bytes += size(c.Value) - size(o.value)
	o.value, o.version, o.index, o.since, o.ttl = c.Value, r.Version, index, s.now, c.TTL
	if !c.By.IsZero() {
		s.remember(o, c.By, c.Seq, r.Version)
	}
	if is := o.value != nil; is != was {
		r.Listing = s.list(index, c.Object, is)
	}
	return r
}

// refuses returns why a command cannot be executed, whatever its condition; 0 if it can.
func (s *Store) refuses(o *object, c *Command) durable.Reason {
	switch {
	case c.Object == "" || len(c.Object) > durable.ObjectBytesMax || durable.IsListing(c.Object) || strings.Contains(c.Object, "\n") || !c.Expect.Fits() || c.Seq == 0,
		c.Delete != (c.Value == nil), size(c.Value) > protocol.ValueMax, c.Wanted != 0 && c.Expect != durable.Exact,
		c.TTL != 0 && (c.Delete || c.TTL < TTLMin || c.TTL > TTLMax):
		return durable.Bad
	}
	var old *protocol.Cell
	if o != nil {
		old = o.value
	}
	grows := 0
	if o == nil {
		grows = 1
	}
	if d := durable.Directory(c.Object); d != "" && s.objects[d] == nil {
		grows++
	}
	known := false
	if o != nil {
		_, known = o.writer(c.By)
	}
	switch {
	case !known && o != nil && len(o.writers) >= WritersPerObject && o.oldest(s.now) == 0:
		return durable.Busy
	case !known && s.writers >= WritersMax, s.bytes+size(c.Value)-size(old) > ValueBytesTotalMax,
		len(s.objects)+grows > ObjectsMax, grows > 0 && s.names+len(c.Object)+len(durable.Directory(c.Object)) > NameBytesTotalMax:
		return durable.Full
	case s.Next(c.Object).Generation() != s.cfg.Base:
		return durable.Exhausted
	}
	if d := durable.Directory(c.Object); d != "" {
		if s.Next(d).Generation() != s.cfg.Base {
			return durable.Exhausted
		}
		// A listing is read like any other value.
		if l := s.objects[d]; l != nil && old == nil && !c.Delete && l.listed+len(c.Object)-len(d)+1 > protocol.ValueMax {
			return durable.Full
		}
	}
	return 0
}

func size(c *protocol.Cell) int {
	if c == nil {
		return 0
	}
	return len(c.Bytes)
}

// at returns an object's record, which it makes if there is none.
func (s *Store) at(name string) *object {
	o := s.objects[name]
	if o == nil {
		o = &object{since: s.now}
		s.objects[name] = o
		s.names += len(name)
	}
	return o
}

// list notes in the directory of an object that it is there now, or not.
func (s *Store) list(index uint64, name string, is bool) bool {
	d := durable.Directory(name)
	if d == "" {
		return false
	}
	version := s.Next(d)
	o := s.at(d)
	base := name[len(d):]
	i, found := slices.BinarySearch(o.members, base)
	switch {
	case is && !found:
		o.members, o.listed = slices.Insert(o.members, i, base), o.listed+len(base)+1
	case !is && found:
		o.members, o.listed = slices.Delete(o.members, i, i+1), o.listed-len(base)-1
	}
	o.listing, o.version, o.index, o.since = nil, version, index, s.now
	return true
}

func (o *object) writer(n protocol.NodeRef) (int, bool) {
	return slices.BinarySearchFunc(o.writers, n, func(w writer, n protocol.NodeRef) int { return w.node.Compare(n) })
}

// oldest returns how many writers are too old to be remembered.
func (o *object) oldest(now time.Duration) (n int) {
	for _, w := range o.writers {
		if w.at+WriterLife <= now {
			n++
		}
	}
	return n
}

func (s *Store) remember(o *object, n protocol.NodeRef, seq durable.Seq, result durable.Version) {
	i, found := o.writer(n)
	if !found {
		if len(o.writers) >= WritersPerObject {
			s.forget(o)
			i, _ = o.writer(n)
		}
		o.writers = slices.Insert(o.writers, i, writer{})
		s.writers++
	}
	o.writers[i] = writer{n, seq, result, s.now}
}

// forget drops the writers that are too old.
func (s *Store) forget(o *object) {
	had := len(o.writers)
	o.writers = slices.DeleteFunc(o.writers, func(w writer) bool { return w.at+WriterLife <= s.now })
	s.writers -= had - len(o.writers)
}

// purge forgets what is too old, now and then. A forgotten object's version is below the floor.
func (s *Store) purge() {
	if s.now < s.purged+purgeEvery {
		return
	}
	s.purged = s.now
	for name, o := range s.objects {
		s.forget(o)
		if o.value == nil && len(o.members) == 0 && len(o.writers) == 0 && o.since+TombstoneLife <= s.now {
			s.floor = max(s.floor, o.version)
			s.names -= len(name)
			delete(s.objects, name)
		}
	}
}

// Next returns the version that the next write of an object makes.
func (s *Store) Next(name string) durable.Version {
	v := max(s.floor, s.cfg.Base)
	if o := s.objects[name]; o != nil {
		v = max(v, o.version)
	}
	return v + 1
}

// Object is what there is of an object.
type Object struct {
	Value   *protocol.Cell // nil: none
	Version durable.Version
	Index   uint64        // of the entry that last wrote it; 0: none did that is remembered
	TTL     time.Duration // 0: none
}

// Lookup tells of an object or listing. The value of a listing is what [AppendListing] makes of the names in it.
func (s *Store) Lookup(name string) Object {
	o := s.objects[name]
	if o == nil {
		return Object{}
	}
	value := o.value
	if len(o.members) > 0 {
		if o.listing == nil {
			o.listing = &protocol.Cell{Bytes: AppendListing(nil, o.members)}
		}
		value = o.listing
	}
	return Object{value, o.version, o.index, o.ttl}
}

// AppendListing writes names as a listing's value has them: each on a line of its own.
func AppendListing(b []byte, names []string) []byte {
	for _, n := range names {
		b = append(append(b, n...), '\n')
	}
	return b
}

// Last returns the last request of a node that wrote an object, and the version that it made; 0 if its condition failed.
func (s *Store) Last(name string, n protocol.NodeRef) (seq durable.Seq, made durable.Version, known bool) {
	if o := s.objects[name]; o != nil {
		if i, found := o.writer(n); found {
			return o.writers[i].seq, o.writers[i].result, true
		}
	}
	return 0, 0, false
}

// Meets reports whether a condition holds.
func (s *Store) Meets(name string, e durable.Expect, wanted durable.Version) bool {
	o := s.objects[name]
	switch e {
	case durable.Exact:
		return o == nil && wanted == 0 || o != nil && o.version == wanted
	case durable.Absent:
		return o == nil || o.value == nil
	}
	return true
}

// Fails reports whether the condition of a command fails now and for ever, since versions never come back.
func (s *Store) Fails(name string, e durable.Expect, wanted durable.Version) bool {
	o := s.objects[name]
	return e == durable.Exact && o != nil && o.version > wanted
}

// Lists reports whether a command would change the listing of its directory.
func (s *Store) Lists(c *Command) bool {
	o := s.objects[c.Object]
	return durable.Directory(c.Object) != "" && (o != nil && o.value != nil) == c.Delete
}

// Settled reports whether the log says that the last write of an object is settled (D13).
func (s *Store) Settled(name string) bool {
	o := s.objects[name]
	if o == nil {
		return true
	}
	_, except := slices.BinarySearch(s.mark.Except, name)
	return o.index <= s.mark.Index && !except
}

// Mark returns what the log says of settled writes.
func (s *Store) Mark() Mark { return s.mark }

// Written returns the index of the last command that changed an object.
func (s *Store) Written() uint64 { return s.written }

// Index returns the index of the last command.
func (s *Store) Index() uint64 { return s.index }

// Expiring calls f with all objects that have a TTL, by rising name.
func (s *Store) Expiring(f func(name string, o Object)) {
	for _, name := range slices.Sorted(maps.Keys(s.objects)) {
		if o := s.objects[name]; o.ttl > 0 {
			f(name, s.Lookup(name))
		}
	}
}

// Len returns how many objects have a value, and how many bytes those are.
func (s *Store) Len() (objects, bytes int) {
	for _, o := range s.objects {
		if o.value != nil {
			objects++
		}
	}
	return objects, s.bytes
}

// Clone returns a store in the same state that shares nothing with s but values. It is for tests.
func (s *Store) Clone() *Store {
	k := *s
	k.objects = make(map[string]*object, len(s.objects))
	for name, o := range s.objects {
		c := *o
		c.writers, c.members = slices.Clone(o.writers), slices.Clone(o.members)
		k.objects[name] = &c
	}
	return &k
}
