package host

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"latchkey/coherence/durable"
	"latchkey/coherence/durable/pb"
	"latchkey/coherence/durable/store"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/replicagroup"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/session"
)

var group = order.GroupID{Prefix: keyspace.Prefix{}, Gen: 3<<32 | 5}

// write makes a write of a value of some bytes.
func write(node byte, object string, seq durable.Seq, n int) *store.Command {
	return &store.Command{
		Object: object, By: protocol.NodeRef{ID: keyspace.NodeID{node}, Inc: 1}, Seq: seq, Value: &protocol.Cell{Bytes: bytes.Repeat([]byte{node}, n)},
	}
}

func entries(t testing.TB, of proposal, c *store.Command) [][]byte {
	t.Helper()
	es, err := entriesOf(of, c)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range es {
		if len(e) > order.DataBytesMax {
			t.Fatalf("an entry of %d bytes", len(e))
		}
	}
	return es
}

// log executes entries on a machine.
type log1 struct {
	m      *Machine
	index  uint64
	posted []executed
}

func (l *log1) apply(entries ...[]byte) {
	for _, e := range entries {
		l.index++
		l.m.ApplyOwn(session.Context{Index: l.index, Post: func(v any) { l.posted = append(l.posted, v.(executed)) }}, e)
	}
}

func (l *log1) size(name string) int {
	o := l.m.store.Lookup(name)
	if o.Value == nil {
		return -1
	}
	return len(o.Value.Bytes)
}

func TestACommandOfSeveralEntriesIsExecutedWithTheLast(t *testing.T) {
	for _, n := range []int{0, 1, order.DataBytesMax - 200, order.DataBytesMax, 2 * PieceBytesMax, protocol.ValueMax} {
		l := &log1{m: NewMachine(group)}
		es := entries(t, proposal{7, 1}, write(1, "a/x", 1, n))
		if (n < order.DataBytesMax-100) != (len(es) == 1) {
			t.Errorf("%d bytes take %d entries", n, len(es))
		}
		l.apply(es[:len(es)-1]...)
		if len(l.posted) > 0 || l.size("a/x") >= 0 {
			t.Fatalf("%d bytes: executed early", n)
		}
		if len(es) > 1 { // whoever has its state from a snapshot of now goes on the same way
			k := NewMachine(group)
			if err := k.Restore(l.m.Snapshot()); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(k.Snapshot(), l.m.Snapshot()) {
				t.Fatal("another state")
			}
			l.m = k
		}
		l.apply(es[len(es)-1])
		if len(l.posted) != 1 || l.posted[0].result.Outcome != store.Applied || l.size("a/x") != n {
			t.Errorf("%d bytes: %d posted, value of %d", n, len(l.posted), l.size("a/x"))
		}
		if v := l.m.store.Lookup("a/x").Version; v != durable.Base(3, 5<<6)+1 {
			t.Errorf("version %x", uint64(v))
		}
	}
}

// What is lost, or comes from another attempt, makes nothing of what was gathered.
func TestPiecesOfOneAttemptGoTogether(t *testing.T) {
	a, b := entries(t, proposal{7, 1}, write(1, "a/x", 1, 200_000)), entries(t, proposal{7, 2}, write(1, "a/x", 1, 200_000))
	later := entries(t, proposal{8, 1}, write(1, "a/x", 1, 200_000))
	small := entries(t, proposal{7, 3}, write(2, "a/y", 1, 1))
	for what, log := range map[string][][]byte{
		"one is lost":             {a[0], a[2], a[3]},
		"the first is lost":       a[1:],
		"out of order":            {a[0], a[2], a[1], a[3]},
		"twice":                   {a[0], a[0], a[2], a[3]},
		"of another attempt":      {a[0], a[1], b[2], b[3]},
		"of another leader":       {a[0], a[1], later[2], later[3]},
		"something comes between": {a[0], a[1], small[0], a[2], a[3]},
		"nothing comes between":   {a[0], a[1], {}, a[2], a[3]},
		"cut":                     {a[0], a[1], a[2][:pieceHeader], a[3]},
		"another kind":            {a[0], a[1], {9}, a[2], a[3]},
	} {
		l := &log1{m: NewMachine(group)}
		l.apply(log...)
		if l.size("a/x") >= 0 {
			t.Errorf("%s: executed", what)
		}
		l.apply(b...)
		if l.size("a/x") != 200_000 || l.m.pieces.data != nil {
			t.Errorf("%s: the next attempt comes to %d bytes", what, l.size("a/x"))
		}
	}
	huge := append([]byte(nil), a[0]...)
	copy(huge[17:], []byte{0xff, 0xff, 0xff, 0xff})
	l := &log1{m: NewMachine(group)}
	l.apply(huge)
	if l.m.pieces.data != nil {
		t.Error("room for four gigabytes")
	}
}

func TestAnUnusedMachineHasNoSnapshot(t *testing.T) {
	m := NewMachine(group)
	if b := m.Snapshot(); len(b) != 0 || m.Restore(nil) != nil {
		t.Errorf("%x", b)
	}
	l := &log1{m: m}
	l.apply(entries(t, proposal{}, write(1, "a/x", 1, 5))...)
	before := m.Snapshot()
	for what, b := range map[string][]byte{
		"version": {9}, "nothing": {snapshotVersion}, "none": {snapshotVersion, 0}, "long": append(bytes.Clone(before), 1), "short": before[:len(before)-1],
		"too much": {snapshotVersion, 0xff, 0xff, 0xff, 0xff, 0x0f, 1, 1, 1, 1}, "all": {snapshotVersion, 2, 1, 1, 2, 1, 1}, "none of it": {snapshotVersion, 2, 1, 1, 0},
	} {
		if err := m.Restore(b); !errors.Is(err, ErrSnapshot) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if !bytes.Equal(m.Snapshot(), before) {
		t.Error("what was refused has changed something")
	}
}

func TestInfoTellsOfAnObject(t *testing.T) {
	l := &log1{m: NewMachine(group)}
	c := write(1, "a/x", 1, 5)
	c.TTL = time.Minute
	l.apply(entries(t, proposal{}, c)...)
	i, err := DecodeInfo(l.m.Query(session.Context{}, InfoQuery("a/x")))
	if want := (Info{Exists: true, Version: durable.Base(3, 5<<6) + 1, Size: 5, TTL: time.Minute, Objects: 1, Bytes: 5}); err != nil || i != want {
		t.Errorf("%+v, %v", i, err)
	}
	i, err = DecodeInfo(l.m.Query(session.Context{}, InfoQuery("b/x")))
	if want := (Info{Settled: true, Objects: 1, Bytes: 5}); err != nil || i != want {
		t.Errorf("%+v, %v", i, err)
	}
	for _, b := range [][]byte{nil, {4}, {1}, {1, 1, 1, 1, 1, 1, 1}} {
		if _, err := DecodeInfo(b); err == nil {
			t.Errorf("%x is read", b)
		}
	}
}

// table is a desk whose log and clock are the test's.
type bench struct {
	t        *testing.T
	log      log1
	l        *leader
	now      automaton.Instant
	proposed []struct {
		n       uint64
		entries [][]byte
	}
	full      bool
	confirms  int
	armed     automaton.Instant
	sent      map[keyspace.NodeID][]durable.Message
	frames    int
	dismissed []keyspace.NodeID
	lone      bool // questions are answered at once
	refused   bool // questions are
}

func (b *bench) Group() order.GroupID       { return group }
func (b *bench) Term() uint64               { return 9 }
func (b *bench) Now() automaton.Instant     { return b.now }
func (b *bench) Machine() session.Machine   { return b.log.m }
func (b *bench) Dismiss(to keyspace.NodeID) { b.dismissed = append(b.dismissed, to) }
func (b *bench) Arm(at automaton.Instant)   { b.armed = at }
func (b *bench) Send(to keyspace.NodeID, frame []byte) {
	p, err := pb.DecodePacket(frame, to, false)
	if err != nil || p.Prefix != group.Prefix || p.Gen != group.Gen {
		b.t.Fatalf("%+v, %v", p, err)
	}
	b.frames++
	b.sent[to] = append(b.sent[to], p.Messages...)
}
func (b *bench) Confirm() {
	switch b.confirms++; {
	case b.refused:
		b.l.Unconfirmed()
	case b.lone:
		b.l.Confirmed(b.now)
	}
}
func (b *bench) Propose(n uint64, es ...[]byte) bool {
	if b.full {
		return false
	}
	b.proposed = append(b.proposed, struct {
		n       uint64
		entries [][]byte
	}{n, es})
	return true
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, log: log1{m: NewMachine(group)}, sent: map[keyspace.NodeID][]durable.Message{}, armed: automaton.Never}
	b.l = New(automaton.DriftDefault).lead(b, 0, 0)
	return b
}

// order executes what was proposed.
func (b *bench) order() {
	ps := b.proposed
	b.proposed = nil
	for _, p := range ps {
		b.log.apply(p.entries...)
		for _, e := range b.log.posted {
			b.l.Executed(e)
		}
		b.log.posted = nil
	}
}

// pass lets time pass, and the timer run out as often as that takes.
func (b *bench) pass(d time.Duration) {
	end := b.now.Add(d)
	for b.armed <= end {
		b.now = max(b.now, b.armed)
		b.armed = automaton.Never
		b.l.Expire()
	}
	b.now = end
}

func (b *bench) say(n byte, m durable.Message) {
	m.Node, m.Session = keyspace.NodeID{n}, durable.Session{Inc: 1, N: 1}
	frame, err := pb.EncodePacket(nil, &pb.Packet{Prefix: group.Prefix, Gen: group.Gen, Messages: []durable.Message{m}})
	if err != nil {
		b.t.Fatal(err)
	}
	to, msg, err := b.l.service.Read(m.Node, frame)
	if err != nil || to != group {
		b.t.Fatal(to, err)
	}
	b.l.Receive(m.Node, msg)
}

// heard returns what a node has been told.
func (b *bench) heard(n byte) (kinds []durable.Kind, last durable.Message) {
	ms := b.sent[keyspace.NodeID{n}]
	delete(b.sent, keyspace.NodeID{n})
	for _, m := range ms {
		kinds, last = append(kinds, m.Kind), m
	}
	return kinds, last
}

func (b *bench) expect(n byte, want ...durable.Kind) durable.Message {
	b.t.Helper()
	kinds, last := b.heard(n)
	if !reflect.DeepEqual(kinds, want) {
		b.t.Errorf("node %d hears %v, want %v", n, kinds, want)
	}
	return last
}

func put(object string, seq durable.Seq, n int) durable.Message {
	return durable.Message{Kind: durable.Store, Object: object, Seq: seq, Value: &protocol.Cell{Bytes: make([]byte, n)}}
}

// TestARoundThatFailsIsAskedForAgain: a READ has a leader ask for a round for those who come next, with nobody who waits. It is refused. Whoever comes
// next does not wait for the time of repeats.
func TestARoundThatFailsIsAskedForAgain(t *testing.T) {
	for _, next := range []durable.Kind{durable.Read, durable.Renew} {
		b := newBench(t)
		p := durable.ParamsOf(automaton.DriftDefault)
		b.pass(p.Arbiter())
		b.l.Confirmed(b.now)
		b.pass(p.Holder()/2 + 1)
		b.refused = true
		b.say(1, durable.Message{Kind: durable.Read, Object: "a/x", Seq: 1})
		if m := b.expect(1, durable.Copy); m.Lease <= 0 || b.confirms != 1 {
			t.Fatalf("%v, %d rounds", &m, b.confirms)
		}
		b.refused, b.lone = false, true
		m := durable.Message{Kind: next, Seq: 2}
		want := durable.Lease
		if m.Tenure = (durable.Tenure{Gen: group.Gen, Term: 9}); next == durable.Read {
			m.Object, m.Tenure, want = "a/x", durable.Tenure{}, durable.Copy
			b.pass(p.Holder() / 2)
		}
		b.say(1, m)
		if m := b.expect(1, want); m.Lease != p.Holder() || b.confirms != 2 {
			t.Errorf("%v, %d rounds", &m, b.confirms)
		}
	}
	// Who waits has it asked for with the next repeat, and not all the time.
	b := newBench(t)
	b.refused = true
	b.pass(durable.ParamsOf(automaton.DriftDefault).Arbiter())
	b.say(1, durable.Message{Kind: durable.Read, Object: "a/x", Seq: 1})
	b.pass(4 * repeatEvery)
	if b.confirms < 2 || b.confirms > 6 {
		t.Errorf("%d rounds are asked for", b.confirms)
	}
	b.refused, b.lone = false, true
	b.pass(repeatEvery)
	b.expect(1, durable.Copy)
}

func TestALeaderWaitsAnswersAndInvalidates(t *testing.T) {
	b := newBench(t)
	p := durable.ParamsOf(automaton.DriftDefault)
	b.say(1, put("a/x", 1, protocol.ValueMax))
	b.order()
	b.pass(p.Arbiter() - 1)
	b.expect(1) // a lease of a former leader may last
	b.pass(1)
	if m := b.expect(1, durable.Stored); m.Tenure != (durable.Tenure{Gen: group.Gen, Term: 9}) || m.Lease != 0 {
		t.Errorf("%v", &m)
	}
	b.say(2, durable.Message{Kind: durable.Read, Object: "a/x", Seq: 1})
	if b.expect(2); b.confirms == 0 {
		t.Error("its first anchor is too old, and it does not ask for another")
	}
	b.l.Confirmed(b.now)
	if m := b.expect(2, durable.Copy); m.Lease != p.Holder() || len(m.Value.Bytes) != protocol.ValueMax {
		t.Errorf("%v", &m)
	}
	b.say(1, put("a/x", 2, 1))
	b.order()
	if m := b.expect(2, durable.Invalidate); m.Version == 0 {
		t.Errorf("%v", &m)
	}
	b.expect(1)
	b.pass(repeatEvery)
	b.expect(2, durable.Invalidate)
	b.pass(p.Arbiter())
	if m := b.expect(1, durable.Stored); m.Version != durable.Base(3, 5<<6)+2 {
		t.Errorf("%v", &m)
	}
	b.l.End()
	b.l.Receive(keyspace.NodeID{}, []durable.Message{{Kind: durable.Read, Object: "a/x"}})
}

// What an engine could not take, or may have lost, is proposed again, all pieces of it.
func TestALostProposalIsMadeAgain(t *testing.T) {
	b := newBench(t)
	b.lone = true
	b.pass(3 * time.Second)
	b.full = true
	b.say(1, put("a/x", 1, 200_000))
	b.full = false
	b.pass(repeatEvery)
	if len(b.proposed) != 1 || len(b.proposed[0].entries) != 4 {
		t.Fatalf("%d proposals", len(b.proposed))
	}
	first := b.proposed[0]
	b.log.apply(first.entries[:2]...) // the others get lost
	b.proposed = nil
	b.l.Failed(first.n)
	b.l.Failed(first.n) // of each of them
	b.pass(repeatEvery)
	if len(b.proposed) != 1 || len(b.proposed[0].entries) != 4 || b.proposed[0].n == first.n {
		t.Fatalf("%d proposals", len(b.proposed))
	}
	b.order()
	if m := b.expect(1, durable.Stored); m.Version.Counter() != 1 {
		t.Errorf("%v", &m)
	}
	b.log.apply(first.entries...) // which were not lost after all: nothing is made twice
	if v := b.log.m.store.Lookup("a/x").Version; v.Counter() != 1 || len(b.l.objects)+len(b.l.attempts) > 0 {
		t.Errorf("version %d; %v", v.Counter(), b.l.objects)
	}
	// Once everything is settled the log says so, and nothing is left to do.
	b.pass(5 * time.Second)
	b.order()
	b.pass(5 * time.Second)
	b.order()
	if b.pass(5 * time.Second); !b.l.Idle() || b.armed != automaton.Never || len(b.proposed) > 0 {
		t.Errorf("idle %v, armed %v, %d proposed", b.l.Idle(), b.armed, len(b.proposed))
	}
	if !b.log.m.store.Settled("a/x") || !b.l.service.Used(b.log.m) || b.l.service.Used(NewMachine(group)) {
		t.Error("not marked as settled")
	}
}

// A leader that has nothing to say again sleeps until the first lease or TTL is over. And one that nobody asks for anything says what is settled when it
// has waited, before it sleeps.
func TestALeaderSleepsUntilSomethingIsOver(t *testing.T) {
	b := newBench(t)
	b.lone = true
	if !b.log.m.store.Settled("a/x") || b.armed != automaton.Never {
		t.Errorf("there is nothing to do, and it wakes at %v", b.armed)
	}
	m := put("a/x", 1, 1)
	m.TTL = time.Hour
	b.say(1, m)
	b.order()
	wakes := func(d time.Duration) (n int) { // within a time, in which all that is proposed is ordered
		for end := b.now.Add(d); ; n++ {
			if b.armed > end {
				b.now = end
				return n
			}
			b.now, b.armed = max(b.now, b.armed), automaton.Never
			b.l.Expire()
			b.order()
		}
	}
	wakes(10 * time.Second)
	b.expect(1, durable.Stored)
	if b.l.Idle() || !b.log.m.store.Settled("a/x") {
		t.Error("what is to be deleted is forgotten, or nobody says that it is settled")
	}
	if n := wakes(59 * time.Minute); n != 0 {
		t.Errorf("it wakes %d times", n)
	}
	b.say(2, durable.Message{Kind: durable.Read, Object: "a/y", Seq: 1})
	b.expect(2, durable.Copy)
	if n := wakes(20 * time.Second); n > 2 {
		t.Errorf("it wakes %d times for a lease that is over", n)
	}
	if wakes(2 * time.Minute); b.log.size("a/x") >= 0 || !b.l.Idle() || b.armed != automaton.Never {
		t.Errorf("%d bytes are left; idle %v", b.log.size("a/x"), b.l.Idle())
	}

	// The next leader has nothing to do but to say that all is settled, if the log does not.
	b.log.apply(entries(t, proposal{9, 9}, write(1, "a/x", 9, 5))...)
	b.log.posted = nil
	b.l = New(automaton.DriftDefault).lead(b, b.now, b.now)
	b.l.end()
	if b.l.Idle() {
		t.Error("it may end before it has said what is settled")
	}
	if wakes(10 * time.Second); !b.log.m.store.Settled("a/x") || !b.l.Idle() {
		t.Errorf("settled %v, idle %v", b.log.m.store.Settled("a/x"), b.l.Idle())
	}
}

func TestMessagesToANodeAreFramedTogether(t *testing.T) {
	b := newBench(t)
	b.lone = true
	b.pass(3 * time.Second)
	b.l.Confirmed(b.now)
	var reads []durable.Message
	for i := range 3000 {
		reads = append(reads, durable.Message{
			Kind: durable.Read, Node: keyspace.NodeID{1}, Session: durable.Session{Inc: 1, N: 1}, Object: fmt.Sprint("a/", i), Seq: durable.Seq(i + 1),
		})
	}
	b.l.Receive(keyspace.NodeID{1}, reads)
	if kinds, _ := b.heard(1); len(kinds) != 3000 || b.frames < 3 || b.frames > 12 {
		t.Errorf("%d messages in %d frames", len(kinds), b.frames)
	}
	b.l.End()
	if len(b.dismissed) != 1 {
		t.Errorf("%v are told that it is over", b.dismissed)
	}
}

func TestFramesOfOthersAreRefused(t *testing.T) {
	s := New(automaton.DriftDefault)
	far := keyspace.PrefixOf(durable.KeyOf("a/x"), 8)
	far.Bits[0] ^= 0x80
	read := durable.Message{Kind: durable.Read, Object: "a/x", Seq: 1}
	lease := durable.Message{Kind: durable.Lease, Seq: 1, Tenure: durable.Tenure{Term: 1}}
	for what, p := range map[string]pb.Packet{
		"of another prefix": {Prefix: far, Messages: []durable.Message{read}},
		"of a leader":       {Messages: []durable.Message{lease}},
		"whereabouts":       {Where: &pb.Whereabouts{Status: pb.NotHere}},
	} {
		b, err := pb.EncodePacket(nil, &p)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.Read(keyspace.NodeID{1}, b); !errors.Is(err, pb.ErrMalformed) {
			t.Errorf("a frame %s: %v", what, err)
		}
	}
	for why, status := range statuses {
		p, err := pb.DecodePacket(s.Decline(group, replicagroup.Elsewhere{Why: why, Leader: keyspace.NodeID{7}, Descriptor: []byte{1}}), keyspace.NodeID{1}, false)
		if err != nil || p.Gen != group.Gen || p.Where == nil || p.Where.Status != status || p.Where.Leader != (keyspace.NodeID{7}) || len(p.Where.Descriptor) != 1 {
			t.Errorf("%d: %+v, %v", why, p, err)
		}
	}
	if _, err := pb.DecodePacket(s.Decline(group, replicagroup.Elsewhere{Why: replicagroup.TooMuch, Descriptor: make([]byte, pb.DescriptorBytesMax+1)}),
		keyspace.NodeID{1}, false); err != nil {
		t.Error(err)
	}
}

func FuzzRestoreMachine(f *testing.F) {
	l := &log1{m: NewMachine(group)}
	l.apply(entries(f, proposal{1, 1}, write(1, "a/x", 1, 5))...)
	f.Add(l.m.Snapshot())
	l.apply(entries(f, proposal{1, 2}, write(1, "a/x", 2, 100_000))[0])
	l.m.pieces.data = l.m.pieces.data[:8]
	f.Add(l.m.Snapshot())
	f.Fuzz(func(t *testing.T, b []byte) {
		m := NewMachine(group)
		if err := m.Restore(b); err != nil {
			return
		}
		again := m.Snapshot()
		k := NewMachine(group)
		if err := k.Restore(again); err != nil || !bytes.Equal(k.Snapshot(), again) {
			t.Fatalf("%v\n%x\n%x", err, again, k.Snapshot())
		}
		m.ApplyOwn(session.Context{Index: 1 << 40}, entries(t, proposal{}, write(1, "a/x", 1<<40, 3))[0])
		if err := m.store.Check(); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzEntries gives a machine any entries: nothing is gathered beyond what a command may be, and the store stays sound.
func FuzzEntries(f *testing.F) {
	for _, e := range entries(f, proposal{1, 1}, write(1, "a/x", 1, 70_000)) {
		f.Add(e, []byte{1})
	}
	f.Add([]byte{2}, entries(f, proposal{1, 1}, write(1, "a/x", 1, 7))[0])
	f.Fuzz(func(t *testing.T, a, b []byte) {
		l := &log1{m: NewMachine(group)}
		l.apply(a, b, a, b)
		if p := l.m.pieces; cap(p.data) > 2*pb.CommandBytesMax || p.data != nil && len(p.data) >= p.total {
			t.Fatalf("%d of %d gathered", len(p.data), p.total)
		}
		if err := l.m.store.Check(); err != nil {
			t.Fatal(err)
		}
		k := NewMachine(group)
		if err := k.Restore(l.m.Snapshot()); err != nil || !bytes.Equal(k.Snapshot(), l.m.Snapshot()) {
			t.Fatal(err)
		}
	})
}

func FuzzDecodeInfo(f *testing.F) {
	f.Add((&Info{Exists: true, Version: 7, Size: 3}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if i, err := DecodeInfo(b); err == nil && !bytes.Equal(i.encode(), b) {
			t.Errorf("%x comes back as %x", b, i.encode())
		}
	})
}
