package store

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"latchkey/coherence/durable"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
)

// fixture applies commands one after the other.
type fixture struct {
	*Store
	t     testing.TB
	index uint64
	now   time.Duration
	seq   durable.Seq
}

func newFixture(t testing.TB) *fixture {
	return &fixture{Store: New(Config{Base: durable.Base(1, 2)}), t: t, index: 1}
}

func node(i int) protocol.NodeRef {
	return protocol.NodeRef{ID: keyspace.NodeID{byte(i >> 8), byte(i), 1}, Inc: 1}
}

func value(s string) *protocol.Cell { return &protocol.Cell{Bytes: []byte(s)} }

func (f *fixture) apply(c Command) Result {
	f.index++
	if c.Object != "" && c.Seq == 0 && !c.By.IsZero() {
		f.seq++
		c.Seq = f.seq
	}
	r := f.Apply(f.index, f.now, c)
	if err := f.Check(); err != nil {
		f.t.Fatalf("after %+v: %v", c, err)
	}
	return r
}

func (f *fixture) set(name, v string) Result {
	return f.apply(Command{Object: name, By: node(1), Value: value(v)})
}

func (f *fixture) remove(name string) Result {
	return f.apply(Command{Object: name, By: node(1), Delete: true})
}

func (f *fixture) want(got Result, outcome Outcome, counter uint64) {
	f.t.Helper()
	if got.Outcome != outcome || got.Outcome == Applied && got.Version.Counter() != counter {
		f.t.Errorf("got %+v, want outcome %d with counter %d", got, outcome, counter)
	}
}

func TestConditionsAreCheckedInTheLog(t *testing.T) {
	f := newFixture(t)
	absent := Command{Object: "a", By: node(2), Expect: durable.Absent, Value: value("1")}
	f.want(f.apply(absent), Applied, 1)
	f.want(f.apply(absent), Conflicted, 0)
	exact := Command{Object: "a", By: node(2), Expect: durable.Exact, Wanted: durable.Base(1, 2) + 1, Value: value("2")}
	f.want(f.apply(exact), Applied, 2)
	f.want(f.apply(exact), Conflicted, 0)
	f.want(f.remove("a"), Applied, 3)
	f.want(f.apply(absent), Applied, 4)
	never := Command{Object: "b", By: node(2), Expect: durable.Exact, Value: value("1")}
	f.want(f.apply(never), Applied, 1)
	f.want(f.apply(never), Conflicted, 0)
	if string(f.Lookup("a").Value.Bytes) != "1" {
		t.Errorf("a is %q", f.Lookup("a").Value.Bytes)
	}
	foreign := exact
	foreign.Wanted = durable.Base(1, 1) + 4 // a version of another generation
	f.want(f.apply(foreign), Conflicted, 0)
}

func TestAWriteThatComesTwiceIsMadeOnce(t *testing.T) {
	f := newFixture(t)
	f.seq = 10
	c := Command{Object: "a", By: node(1), Seq: 7, Value: value("1")}
	f.want(f.apply(c), Applied, 1)
	f.want(f.apply(c), Repeated, 0)
	c.Seq = 6
	f.want(f.apply(c), Repeated, 0)
	c.By.Inc++ // another life numbers its requests anew
	f.want(f.apply(c), Applied, 2)
	if seq, made, known := f.Last("a", node(1)); seq != 7 || made.Counter() != 1 || !known {
		t.Errorf("n1 is remembered as %d, %d, %v", seq, made, known)
	}
	// A condition that failed is remembered, whatever becomes of the object.
	c = Command{Object: "a", By: node(3), Seq: 1, Expect: durable.Absent, Value: value("2")}
	f.want(f.apply(c), Conflicted, 0)
	f.want(f.remove("a"), Applied, 3)
	f.want(f.apply(c), Repeated, 0)
	if _, made, known := f.Last("a", node(3)); made != 0 || !known {
		t.Errorf("the failed write is remembered as %d, %v", made, known)
	}
}

func TestSixtyFourWritersInTenMinutes(t *testing.T) {
	f := newFixture(t)
	for i := range WritersPerObject {
		f.want(f.apply(Command{Object: "a", By: node(i), Value: value("v")}), Applied, uint64(i+1))
	}
	f.now = WriterLife - 1
	late := Command{Object: "a", By: node(1000), Value: value("v")}
	if r := f.apply(late); r.Outcome != Refused || r.Reason != durable.Busy {
		t.Errorf("the 65th is answered %+v", r)
	}
	f.want(f.apply(Command{Object: "a", By: node(3), Value: value("v")}), Applied, 65) // one of the 64 goes on
	f.now = WriterLife
	f.want(f.apply(late), Applied, 66)
	if _, _, known := f.Last("a", node(3)); !known {
		t.Error("a writer of a moment ago is forgotten")
	}
	if _, _, known := f.Last("a", node(5)); known {
		t.Error("a writer of ten minutes ago is remembered")
	}
}

// TestVersionsRiseForEver is conformance test 17: delete, recreate, forget, revive.
func TestVersionsRiseForEver(t *testing.T) {
	f := newFixture(t)
	last := durable.Version(0)
	step := func(r Result) {
		t.Helper()
		if r.Outcome != Applied || r.Version <= last {
			t.Errorf("%+v after version %x", r, uint64(last))
		}
		last = r.Version
	}
	step(f.set("d/a", "1"))
	step(f.remove("d/a"))
	step(f.set("d/a", "2"))
	step(f.remove("d/a"))
	f.now += TombstoneLife - time.Minute
	f.set("other", "x")
	if f.objects["d/a"] == nil {
		t.Fatal("the tombstone is gone too early")
	}
	f.now += 2 * time.Minute
	f.set("other", "y")
	if f.objects["d/a"] != nil || f.objects["d/"] != nil {
		t.Fatal("the tombstone, or that of its directory, is kept for ever")
	}
	step(f.set("d/a", "3"))
	// The group is lost after its last checkpoint, in which d/a has its third life's version, and revived.
	old := f.Snapshot()
	step(f.set("d/a", "4"))
	s, err := Restore(Config{Base: durable.Base(1, 3)}, old)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Lookup("d/a"); got.Version <= last || string(got.Value.Bytes) != "3" {
		t.Errorf("the revived object is %q of version %x, after %x", got.Value.Bytes, uint64(got.Version), uint64(last))
	}
	if s.Settled("d/a") {
		t.Error("a revived object counts as settled")
	}
	f.Store, f.index = s, 1
	step(f.set("d/a", "5"))
	if _, err := Restore(Config{Base: durable.Base(1, 2)}, f.Snapshot()); !errors.Is(err, protocol.ErrState) {
		t.Errorf("an earlier generation takes a later one's state: %v", err)
	}
}

func TestAnExhaustedObjectIsRefused(t *testing.T) {
	f := newFixture(t)
	f.set("d/a", "1")
	f.objects["d/a"].version |= durable.CounterMax
	if r := f.set("d/a", "2"); r.Outcome != Refused || r.Reason != durable.Exhausted {
		t.Errorf("%+v", r)
	}
	f.objects["d/"].version |= durable.CounterMax
	if r := f.set("d/b", "2"); r.Outcome != Refused || r.Reason != durable.Exhausted {
		t.Errorf("%+v in a directory whose versions are used up", r)
	}
}

// TestTTL is the store's part of conformance test 16: an expiry that races a write loses to it.
func TestTTL(t *testing.T) {
	f := newFixture(t)
	r := f.apply(Command{Object: "a", By: node(1), Value: value("1"), TTL: time.Minute})
	expiry := Command{Object: "a", Delete: true, Wanted: r.Version}
	r2 := f.apply(Command{Object: "a", By: node(1), Value: value("2"), TTL: time.Minute})
	f.want(f.apply(expiry), Nothing, 0)
	expiry.Wanted = r2.Version
	f.want(f.apply(expiry), Applied, 3)
	f.want(f.apply(expiry), Nothing, 0)
	r = f.set("a", "3")
	f.want(f.apply(Command{Object: "a", Delete: true, Wanted: r.Version}), Nothing, 0) // it has no TTL
	for _, ttl := range []time.Duration{-1, 1, TTLMin - 1, TTLMax + 1} {
		if r := f.apply(Command{Object: "a", By: node(1), Value: value("4"), TTL: ttl}); r.Reason != durable.Bad {
			t.Errorf("a TTL of %v is answered %+v", ttl, r)
		}
	}
	for _, ttl := range []time.Duration{TTLMin, TTLMax} {
		if r := f.apply(Command{Object: "a", By: node(1), Value: value("4"), TTL: ttl}); r.Outcome != Applied {
			t.Errorf("a TTL of %v is answered %+v", ttl, r)
		}
	}
}

func TestADirectoryListsWhatIsThere(t *testing.T) {
	f := newFixture(t)
	listing := func(want string, counter uint64) {
		t.Helper()
		o := f.Lookup("d/")
		got := ""
		if o.Value != nil {
			got = string(o.Value.Bytes)
		}
		if got != want || o.Version.Counter() != counter {
			t.Errorf("the listing is %q of version %d, want %q of %d", got, o.Version.Counter(), want, counter)
		}
	}
	if r := f.set("d/b", "1"); !r.Listing {
		t.Errorf("a create is not listed: %+v", r)
	}
	listing("b\n", 1)
	if r := f.set("d/b", "2"); r.Listing {
		t.Errorf("a write is listed: %+v", r)
	}
	f.set("d/a", "1")
	f.set("d/e/f", "1") // of another directory
	f.set("x", "1")     // of none
	listing("a\nb\n", 2)
	before := f.Lookup("d/").Value
	f.remove("d/b")
	listing("a\n", 3)
	if string(before.Bytes) != "a\nb\n" {
		t.Error("a listing that somebody has is changed")
	}
	f.remove("d/b") // it is not there
	listing("a\n", 3)
	f.remove("d/a")
	listing("", 4)
	if r := f.set("d/", "1"); r.Reason != durable.Bad {
		t.Errorf("a listing can be written: %+v", r)
	}
}

func TestMarks(t *testing.T) {
	f := newFixture(t)
	f.set("a", "1") // index 2
	f.set("b", "1")
	f.set("c", "1")
	settled := func(want string) {
		t.Helper()
		got := ""
		for _, n := range []string{"a", "b", "c", "none"} {
			if f.Settled(n) {
				got += n[:1]
			}
		}
		if got != want {
			t.Errorf("settled: %q, want %q", got, want)
		}
	}
	settled("n")
	f.apply(Command{Mark: Mark{Index: 2}})
	settled("an")
	f.apply(Command{Mark: Mark{Index: 1}}) // what was said stays
	settled("an")
	f.apply(Command{Mark: Mark{Index: 4, Except: []string{"b"}}})
	settled("acn")
	f.apply(Command{Mark: Mark{Index: 100}}) // of what is not there yet
	settled("acn")
	f.set("a", "2")
	settled("cn")
	f.apply(Command{Mark: Mark{Index: 6, Except: make([]string, ExceptionsMax+1)}})
	settled("cn")
}

func TestLimitsOfAStore(t *testing.T) {
	f := newFixture(t)
	big := &protocol.Cell{Bytes: make([]byte, protocol.ValueMax)}
	full := func(c Command) {
		t.Helper()
		c.By = node(1)
		if r := f.apply(c); r.Outcome != Refused || r.Reason != durable.Full {
			t.Errorf("%.20q: %+v", c.Object, r)
		}
	}
	bad := func(c Command) {
		t.Helper()
		c.By = node(1)
		if r := f.apply(c); r.Outcome != Refused || r.Reason != durable.Bad {
			t.Errorf("%.20q: %+v", c.Object, r)
		}
	}
	bad(Command{Object: "a", Value: &protocol.Cell{Bytes: make([]byte, protocol.ValueMax+1)}})
	bad(Command{Object: "d/a\nb", Value: value("v")}) // its directory would list two
	bad(Command{Object: "a"})
	bad(Command{Object: "a", Delete: true, Value: big})
	bad(Command{Object: "a", Value: big, Expect: 3})
	bad(Command{Object: "a", Value: big, Wanted: 1})
	bad(Command{Object: strings.Repeat("a", durable.ObjectBytesMax+1), Value: big})
	for i := range ValueBytesTotalMax / protocol.ValueMax {
		f.want(f.apply(Command{Object: fmt.Sprint("v", i), By: node(1), Value: big}), Applied, 1)
	}
	full(Command{Object: "w", Value: value("1")})
	f.want(f.apply(Command{Object: "v0", By: node(1), Value: big}), Applied, 2) // it takes the place of another
	f.want(f.apply(Command{Object: "v0", By: node(1), Value: value("")}), Applied, 3)
	f.want(f.apply(Command{Object: strings.Repeat("a", durable.ObjectBytesMax), By: node(1), Value: value("1")}), Applied, 1)
}

func TestObjectsNamesAndWritersAreCounted(t *testing.T) {
	s := New(Config{})
	apply := func(name string, by int) Result {
		return s.Apply(s.index+2, 0, Command{Object: name, By: node(by), Seq: durable.Seq(s.index + 1), Value: value("")})
	}
	for i := range ObjectsMax {
		if r := apply(fmt.Sprint(i), 1); r.Outcome != Applied {
			t.Fatalf("object %d: %+v", i, r)
		}
	}
	if r := apply("more", 1); r.Reason != durable.Full {
		t.Errorf("an object too many: %+v", r)
	}
	if r := apply("0", 2); r.Reason != durable.Full { // as many writers as objects
		t.Errorf("a writer too many: %+v", r)
	}
	if err := s.Check(); err != nil {
		t.Error(err)
	}
	s = New(Config{})
	for i := range NameBytesTotalMax / 2000 {
		if r := apply(fmt.Sprintf("%02000d", i), 1); r.Outcome != Applied {
			t.Fatalf("name %d: %+v", i, r)
		}
	}
	if r := apply(strings.Repeat("z", 2000), 1); r.Reason != durable.Full {
		t.Errorf("a name too many: %+v", r)
	}
}

// drawn returns a store that drawn commands have made.
func drawnStore(t testing.TB, seed uint64) *fixture {
	f, r := newFixture(t), rand.New(rand.NewPCG(seed, 1))
	for range 200 {
		f.now += time.Duration(r.Int64N(int64(20 * time.Minute)))
		c := Command{Object: []string{"a", "d/a", "d/b", "e/f/g"}[r.IntN(4)], By: node(r.IntN(3)), Value: value(fmt.Sprint(r.IntN(100)))}
		switch r.IntN(8) {
		case 0:
			c.Delete, c.Value = true, nil
		case 1:
			c.Expect = durable.Absent
		case 2:
			c.Expect, c.Wanted = durable.Exact, f.Lookup(c.Object).Version
		case 3:
			c.TTL = time.Hour
		case 4:
			c = Command{Object: c.Object, Delete: true, Wanted: f.Lookup(c.Object).Version}
		}
		c.Mark = Mark{Index: r.Uint64N(f.index + 1)}
		if r.IntN(2) == 0 {
			c.Mark.Except = []string{"d/a"}
		}
		f.apply(c)
	}
	return f
}

func TestSnapshotCarriesTheWholeState(t *testing.T) {
	if s, err := Restore(Config{}, nil); err != nil || s.Snapshot() != nil {
		t.Errorf("a store that nobody has used: %v", err)
	}
	for seed := range uint64(20) {
		f := drawnStore(t, seed)
		snapshot := f.Snapshot()
		s, err := Restore(f.cfg, snapshot)
		if err != nil {
			t.Fatal(err)
		}
		if again := s.Snapshot(); !bytes.Equal(again, snapshot) {
			t.Fatal("a restored store has another snapshot")
		}
		g := &fixture{Store: s, t: t, index: f.index, now: f.now, seq: f.seq}
		for _, h := range []*fixture{f, g} {
			h.set("d/z", "1")
			h.now += time.Hour
			h.remove("a")
		}
		if !bytes.Equal(f.Snapshot(), g.Snapshot()) {
			t.Fatal("a restored store goes on in another way")
		}
		if !bytes.Equal(f.Clone().Snapshot(), f.Snapshot()) {
			t.Fatal("a clone has another snapshot")
		}
	}
}

func TestDamagedSnapshotsAreRefused(t *testing.T) {
	f := drawnStore(t, 1)
	snapshot := f.Snapshot()
	for i := range snapshot {
		if _, err := Restore(f.cfg, snapshot[:i]); i > 0 && !errors.Is(err, protocol.ErrState) {
			t.Fatalf("cut off after %d of %d bytes: %v", i, len(snapshot), err)
		}
	}
	if _, err := Restore(f.cfg, append(bytes.Clone(snapshot), 0)); !errors.Is(err, protocol.ErrState) {
		t.Errorf("a byte too many: %v", err)
	}
	other := bytes.Clone(snapshot)
	other[0]++
	if _, err := Restore(f.cfg, other); !errors.Is(err, protocol.ErrState) {
		t.Errorf("another version: %v", err)
	}
}

// FuzzRestore holds that what is accepted is the canonical form of a state that a store can be in.
func FuzzRestore(f *testing.F) {
	f.Add(drawnStore(f, 2).Snapshot())
	g := newFixture(f)
	g.set("d/a", "1")
	f.Add(g.Snapshot())
	f.Fuzz(func(t *testing.T, b []byte) {
		cfg := Config{Base: durable.Base(1, 2)}
		s, err := Restore(cfg, b)
		if err != nil {
			return
		}
		if err := s.Check(); err != nil {
			t.Fatal(err)
		}
		if again, err := Restore(cfg, s.Snapshot()); err != nil || !bytes.Equal(again.Snapshot(), s.Snapshot()) {
			t.Fatalf("it is another one when it comes back: %v", err)
		}
		s.Apply(s.Index()+1, s.now, Command{Object: "d/a", By: node(1), Seq: 1 << 62, Value: value("x")})
		if err := s.Check(); err != nil {
			t.Fatal(err)
		}
	})
}

// A listing is a value: what would make it longer than one can be is refused, and room comes back.
func TestADirectoryIsNoLongerThanAValue(t *testing.T) {
	s := New(Config{})
	index, by := uint64(1), protocol.NodeRef{ID: keyspace.NodeID{1}, Inc: 1}
	write := func(name string, remove bool) Result {
		index++
		c := Command{Object: name, By: by, Seq: durable.Seq(index), Delete: remove, Value: &protocol.Cell{}}
		if remove {
			c.Value = nil
		}
		return s.Apply(index, 0, c)
	}
	long := strings.Repeat("x", 1<<10-5) // with four digits and the end of the line: 1 KiB
	for i := range protocol.ValueMax >> 10 {
		if r := write(fmt.Sprintf("a/%04d%s", i, long), false); r.Outcome != Applied {
			t.Fatalf("%d: %+v", i, r)
		}
	}
	if n := len(s.Lookup("a/").Value.Bytes); n != protocol.ValueMax {
		t.Fatalf("%d bytes", n)
	}
	if r := write("a/x", false); r.Outcome != Refused || r.Reason != durable.Full {
		t.Errorf("%+v", r)
	}
	if r := write("b/x", false); r.Outcome != Applied {
		t.Errorf("another directory: %+v", r)
	}
	if r := write("a/0001"+long, false); r.Outcome != Applied {
		t.Errorf("one that is there: %+v", r)
	}
	if r := write("a/0000"+long, true); r.Outcome != Applied {
		t.Errorf("%+v", r)
	}
	if r := write("a/x", false); r.Outcome != Applied {
		t.Errorf("there is room again: %+v", r)
	}
	k, err := Restore(Config{}, s.Snapshot())
	if err != nil || k.Check() != nil || s.Check() != nil {
		t.Error(err, k.Check(), s.Check())
	}
}

// TestADirectoryOfAHundredThousandNames: a group has room for so many objects, and refuses the others one by one; what is there stays, and goes.
func TestADirectoryOfAHundredThousandNames(t *testing.T) {
	s := New(Config{})
	by, applied := protocol.NodeRef{ID: keyspace.NodeID{1}, Inc: 1}, 0
	for i := uint64(1); i <= 100_000; i++ {
		r := s.Apply(i, 0, Command{Object: fmt.Sprintf("a/%d", i), By: by, Seq: durable.Seq(i), Value: &protocol.Cell{}})
		switch {
		case r.Outcome == Applied:
			applied++
		case r.Outcome != Refused || r.Reason != durable.Full:
			t.Fatalf("%d: %+v", i, r)
		}
	}
	if names := strings.Count(string(s.Lookup("a/").Value.Bytes), "\n"); applied != ObjectsMax-1 || names != applied { // the listing is one too
		t.Errorf("%d are made, %d are listed", applied, names)
	}
	if r := s.Apply(100_001, 0, Command{Object: "a/7", By: by, Seq: 100_001, Value: &protocol.Cell{}}); r.Outcome != Applied {
		t.Errorf("one that is there: %+v", r)
	}
	if s.Check() != nil {
		t.Error(s.Check())
	}
}
