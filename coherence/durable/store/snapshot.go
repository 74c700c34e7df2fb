package store

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"time"

	"latchkey/coherence/durable"
	"latchkey/coherence/protocol"
)

const snapshotVersion = 1

// Append writes the whole state but the configuration in canonical form: equal states give equal bytes.
func (s *Store) Append(b []byte) []byte {
	for _, v := range [...]uint64{uint64(s.now), uint64(s.purged), s.index, s.mark.Index, uint64(len(s.mark.Except))} {
		b = binary.AppendUvarint(b, v)
	}
	for _, name := range s.mark.Except {
		b = appendString(b, name)
	}
	b = binary.AppendUvarint(b, uint64(s.floor))
	b = binary.AppendUvarint(b, uint64(len(s.objects)))
	for _, name := range slices.Sorted(maps.Keys(s.objects)) {
		o := s.objects[name]
		b = appendString(b, name)
		b = o.value.Append(b)
		for _, v := range [...]uint64{uint64(o.version), o.index, uint64(o.since), uint64(o.ttl), uint64(len(o.writers))} {
			b = binary.AppendUvarint(b, v)
		}
		for _, w := range o.writers {
			b = w.node.Append(b)
			for _, v := range [...]uint64{uint64(w.seq), uint64(w.result), uint64(w.at)} {
				b = binary.AppendUvarint(b, v)
			}
		}
	}
	return b // members follow from the other objects
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// Snapshot returns the whole state, with the generation that it is of; nothing if nobody has used the store.
func (s *Store) Snapshot() []byte {
	if s.index == 0 {
		return nil
	}
	return s.Append(binary.AppendUvarint([]byte{snapshotVersion}, uint64(s.cfg.Base)))
}

// Restore makes a store in the state of a [Store.Snapshot], which it does not keep. A state that no store can be in, and one of another version of
// snapshots, match [protocol.ErrState].
//
// A snapshot of an earlier generation of the group is taken over: versions keep their counter and get this generation's, so that they are above
// all that the earlier one may have made after it. Its objects count as unsettled.
func Restore(cfg Config, snapshot []byte) (*Store, error) {
	s := New(cfg)
	if len(snapshot) == 0 {
		return s, nil
	}
	r := protocol.ReadVersion(snapshot, snapshotVersion)
	base := durable.Version(r.Uint())
	if base.Counter() != 0 || base > cfg.Base {
		r.Fail("it is of generation %x, and this group's is %x", uint64(base), uint64(cfg.Base))
	}
	s.now, s.purged, s.index = duration(r), duration(r), r.Uint()
	s.mark.Index = r.Uint()
	for i := range r.Entries(r.Uint(), ExceptionsMax) {
		s.mark.Except = append(s.mark.Except, text(r))
		if i > 0 && s.mark.Except[i-1] >= s.mark.Except[i] {
			r.Fail("exceptions out of order")
		}
	}
	s.floor = version(r, cfg, base)
	if s.purged > s.now || s.mark.Index > 0 && s.mark.Index >= s.index {
		r.Fail("log time %v, looked through at %v, index %d, mark %d", s.now, s.purged, s.index, s.mark.Index)
	}
	last := ""
	for range r.Entries(r.Uint(), ObjectsMax) {
		name := text(r)
		if name <= last {
			r.Fail("objects out of order")
		}
		last = name
		s.readObject(r, cfg, base, name)
	}
	if err := r.End(); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	s.indexDirectories()
	if err := s.Check(); err != nil {
		return nil, fmt.Errorf("%w: %w", protocol.ErrState, err)
	}
	for _, o := range s.objects {
		if base != cfg.Base {
			o.index = min(o.index, 1)
		}
		s.written = max(s.written, o.index)
	}
	if base != cfg.Base {
		s.index, s.mark = 1, Mark{}
	}
	return s, nil
}

func (s *Store) readObject(r *protocol.StateReader, cfg Config, base durable.Version, name string) {
	o := &object{}
	if n := r.Uint(); n > protocol.ValueMax+1 || s.bytes+int(n) > ValueBytesTotalMax {
		r.Fail("a value of %d bytes", n-1)
	} else if n > 0 {
		o.value = &protocol.Cell{Bytes: make([]byte, n-1)}
		r.Fill(o.value.Bytes)
	}
	o.version, o.index, o.since, o.ttl = version(r, cfg, base), r.Uint(), duration(r), duration(r)
	for range r.Entries(r.Uint(), WritersPerObject) {
		o.writers = append(o.writers, writer{r.Node(), durable.Seq(r.Uint()), version(r, cfg, base), duration(r)})
	}
	s.objects[name] = o
	s.bytes += size(o.value)
	s.names += len(name)
	s.writers += len(o.writers)
	if s.writers > WritersMax || s.names > NameBytesTotalMax {
		r.Fail("%d writers, %d bytes of names", s.writers, s.names)
	}
}

// version reads a version of the generation base, and takes it over into this one.
func version(r *protocol.StateReader, cfg Config, base durable.Version) durable.Version {
	v := durable.Version(r.Uint())
	if v > base|durable.CounterMax {
		r.Fail("version %x in generation %x", uint64(v), uint64(base))
	}
	if v > 0 && base != cfg.Base {
		v = cfg.Base | durable.Version(v.Counter())
	}
	return v
}

func duration(r *protocol.StateReader) time.Duration {
	d := time.Duration(r.Uint())
	if d < 0 {
		r.Fail("a time that is too long")
	}
	return d
}

func text(r *protocol.StateReader) string {
	n := r.Uint()
	if n == 0 || n > durable.ObjectBytesMax {
		r.Fail("a name of %d bytes", n)
		return ""
	}
	b := make([]byte, n)
	r.Fill(b)
	return string(b)
}

// indexDirectories lists all objects that have a value in their directories.
func (s *Store) indexDirectories() {
	for _, name := range slices.Sorted(maps.Keys(s.objects)) { // so that members rise
		d := durable.Directory(name)
		if l := s.objects[d]; l != nil && s.objects[name].value != nil {
			l.members, l.listed = append(l.members, name[len(d):]), l.listed+len(name)-len(d)+1
		}
	}
}

// Check tests what the fields' comments promise. Tests call it after every step.
func (s *Store) Check() error {
	bytes, names, writers := 0, 0, 0
	for name, o := range s.objects {
		bytes, names, writers = bytes+size(o.value), names+len(name), writers+len(o.writers)
		d := durable.Directory(name)
		switch {
		case durable.IsListing(name) && (o.value != nil || o.ttl != 0 || len(o.writers) > 0):
			return fmt.Errorf("store: listing %q has a value, a TTL or writers", name)
		case o.value != nil && (o.version == 0 || o.index == 0):
			return fmt.Errorf("store: %q has a value, version %d and index %d", name, o.version, o.index)
		case o.index > s.index || o.since > s.now || (o.version == 0) != (o.index == 0):
			return fmt.Errorf("store: %q version %d of index %d at %v, after %d and %v", name, o.version, o.index, o.since, s.index, s.now)
		case o.ttl != 0 && (o.value == nil || o.ttl < TTLMin || o.ttl > TTLMax):
			return fmt.Errorf("store: %q has TTL %v", name, o.ttl)
		case o.value != nil && d != "" && !durable.IsListing(name) && !lists(s.objects[d], name[len(d):]):
			return fmt.Errorf("store: %q is not listed", name)
		case len(o.writers) > WritersPerObject || o.version.Counter() == 0 && o.version > 0:
			return fmt.Errorf("store: %q has %d writers and version %d", name, len(o.writers), o.version)
		}
		for i, w := range o.writers {
			if i > 0 && o.writers[i-1].node.Compare(w.node) >= 0 || w.node.IsZero() || w.seq == 0 || w.at > s.now || w.result > o.version {
				return fmt.Errorf("store: %q remembers %v badly", name, w.node)
			}
		}
		listed := 0
		for _, m := range o.members {
			listed += len(m) + 1
			if e := s.objects[name+m]; e == nil || e.value == nil {
				return fmt.Errorf("store: %q lists %q, which is not there", name, m)
			}
		}
		if listed != o.listed || listed > protocol.ValueMax {
			return fmt.Errorf("store: listing %q has %d bytes, counted as %d", name, listed, o.listed)
		}
	}
	if bytes != s.bytes || names != s.names || writers != s.writers {
		return fmt.Errorf("store: %d bytes, %d of names, %d writers counted as %d, %d, %d", bytes, names, writers, s.bytes, s.names, s.writers)
	}
	return nil
}

func lists(l *object, base string) bool {
	if l == nil {
		return false
	}
	_, found := slices.BinarySearch(l.members, base)
	return found
}
