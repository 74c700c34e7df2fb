package register

import (
	"fmt"
	"testing"
	"time"

	"latchkey/coherence/durable"
	"latchkey/coherence/durable/store"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
)

var params = durable.Params{Lease: 2 * time.Second, Drift: automaton.DriftDefault}

// fixture is a leader whose proposals are committed at once when a test says so.
type fixture struct {
	t     testing.TB
	store *store.Store
	reg   *Register
	now   automaton.Instant
	index uint64
	sent  []durable.Message
	cmds  []store.Command
	asked int // for a round
}

func newFixture(t testing.TB) *fixture {
	f := &fixture{t: t, store: store.New(store.Config{})}
	f.index = 1
	f.store.Apply(1, 0, store.Command{})
	f.reg = New(params, f.store)
	f.step(Event{Kind: Lead, Tenure: durable.Tenure{Term: 1}})
	f.pass(params.Arbiter())
	f.confirm()
	f.sent = nil
	return f
}

func (f *fixture) step(ev Event) {
	ev.Now = f.now
	for _, a := range f.reg.Step(ev, nil) {
		switch a.Kind {
		case Send:
			f.sent = append(f.sent, a.Msg)
		case Propose:
			f.cmds = append(f.cmds, a.Cmd)
		case Confirm:
			f.asked++
		}
	}
	if err := f.reg.Check(); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) pass(d time.Duration) {
	f.now = f.now.Add(d)
	f.step(Event{Kind: Tick})
}

func (f *fixture) confirm() { f.step(Event{Kind: Confirmed, At: f.now}) }

func (f *fixture) receive(m durable.Message) { f.step(Event{Kind: Receive, Msg: &m}) }

// commit puts what was proposed into the log.
func (f *fixture) commit() {
	cmds := f.cmds
	f.cmds = nil
	for i := range cmds {
		f.index++
		res := f.store.Apply(f.index, time.Duration(f.now), cmds[i])
		f.step(Event{Kind: Committed, Cmd: &cmds[i], Result: res})
	}
}

// take returns the one message that was sent.
func (f *fixture) take(k durable.Kind) durable.Message {
	f.t.Helper()
	if len(f.sent) != 1 || f.sent[0].Kind != k {
		f.t.Fatalf("sent %v, want one %v", f.sent, k)
	}
	m := f.sent[0]
	f.sent = nil
	return m
}

func (f *fixture) none() {
	f.t.Helper()
	if len(f.sent) > 0 {
		f.t.Fatalf("sent %v", f.sent)
	}
}

func from(n int, k durable.Kind, object string, seq durable.Seq) durable.Message {
	return durable.Message{Kind: k, Node: keyspace.NodeID{byte(n >> 8), byte(n), 1}, Session: durable.Session{Inc: 1, N: 1}, Object: object, Seq: seq}
}

func put(n int, object string, seq durable.Seq, value string) durable.Message {
	m := from(n, durable.Store, object, seq)
	m.Value = &protocol.Cell{Bytes: []byte(value)}
	return m
}

func TestALeaseLastsFromTheConfirmedRound(t *testing.T) {
	f := newFixture(t)
	f.pass(500 * time.Millisecond)
	f.receive(from(1, durable.Read, "x", 1))
	if m := f.take(durable.Copy); m.Lease != params.Holder()-500*time.Millisecond || m.Content != durable.None {
		t.Errorf("%v", &m)
	}
	f.pass(params.Holder() - 500*time.Millisecond) // nothing is left of the anchor
	f.receive(from(2, durable.Read, "x", 1))
	f.none()
	if f.asked == 0 {
		t.Fatal("no round is asked for")
	}
	f.confirm()
	if m := f.take(durable.Copy); m.Lease != params.Holder() {
		t.Errorf("%v", &m)
	}
}

func TestALeaderThatIsConfirmedLateAsksForAnotherRound(t *testing.T) {
	f := newFixture(t)
	f.receive(from(1, durable.Read, "x", 1))
	f.take(durable.Copy)
	if f.asked > 0 {
		t.Fatal("a round is asked for at once")
	}
	f.pass(params.Holder()/2 + 1)
	f.receive(from(1, durable.Read, "y", 2))
	f.take(durable.Copy)
	if f.asked != 1 {
		t.Fatalf("%d rounds are asked for", f.asked)
	}
}

func TestWhatANodeHasIsNotSentAgain(t *testing.T) {
	f := newFixture(t)
	f.receive(put(1, "x", 1, "v"))
	f.commit()
	if m := f.take(durable.Stored); m.Version != 1 || m.Lease <= 0 {
		t.Fatalf("%v", &m)
	}
	r := from(2, durable.Read, "x", 1)
	r.Version = 1
	f.receive(r)
	if m := f.take(durable.Copy); m.Content != durable.Same || m.Value != nil {
		t.Errorf("%v", &m)
	}
	r.Version, r.Seq = 7, 2
	f.receive(r)
	if m := f.take(durable.Copy); m.Content != durable.Whole || string(m.Value.Bytes) != "v" {
		t.Errorf("%v", &m)
	}
}

func TestALostRaceCostsNoEntry(t *testing.T) {
	f := newFixture(t)
	f.receive(put(1, "x", 1, "v"))
	f.commit()
	f.take(durable.Stored)
	m := put(2, "x", 1, "w")
	m.Expect = durable.Exact // 0
	f.receive(m)
	if got := f.take(durable.Conflict); got.Version != 1 || string(got.Value.Bytes) != "v" || got.Lease <= 0 {
		t.Errorf("%v", &got)
	}
	if len(f.cmds) > 0 {
		t.Errorf("%d commands are proposed", len(f.cmds))
	}
}

// TestCreatingAndListing: the copies of a listing are gone before a new object is shown.
func TestCreatingAndListing(t *testing.T) {
	f := newFixture(t)
	f.receive(from(1, durable.Read, "d/", 1))
	f.take(durable.Copy)
	f.receive(put(2, "d/a", 1, "v"))
	f.receive(put(3, "d/b", 1, "v")) // waits for the listing
	inv := f.take(durable.Invalidate)
	if inv.Object != "d/" || len(f.cmds) != 1 {
		t.Fatalf("%v, %d commands", &inv, len(f.cmds))
	}
	f.commit()
	f.none()
	r := from(3, durable.Read, "d/a", 2)
	f.receive(r)
	if m := f.take(durable.Copy); m.Content != durable.None || m.Lease != 0 {
		t.Errorf("%v", &m)
	}
	ack := inv
	ack.Kind = durable.InvalidateAck
	f.receive(ack)
	f.take(durable.Stored)
	f.commit() // of d/b
	f.take(durable.Stored)
	if got := string(f.store.Lookup("d/").Value.Bytes); got != "a\nb\n" {
		t.Errorf("the listing is %q", got)
	}
}

// TestTTLIsNeverEarly is conformance test 16: by no clock within the drift, whoever leads.
func TestTTLIsNeverEarly(t *testing.T) {
	f := newFixture(t)
	m := put(1, "x", 1, "v")
	m.TTL = 10 * time.Second
	f.receive(m)
	f.commit()
	f.take(durable.Stored)
	// The fastest clock, of this leader, counts 1.01/0.99 while the slowest counts 1.
	f.pass(10*time.Second*101/99 - time.Microsecond)
	if len(f.cmds) > 0 {
		t.Fatal("it is deleted too early by the slowest clock")
	}
	f.pass(2 * time.Microsecond)
	if len(f.cmds) != 1 || !f.cmds[0].By.IsZero() || !f.cmds[0].Delete {
		t.Fatalf("proposed: %+v", f.cmds)
	}
	// A new leader counts the whole TTL anew; the former one's entry came to nothing.
	f.cmds = nil
	f.step(Event{Kind: Lead, Tenure: durable.Tenure{Term: 2}, At: f.now})
	f.pass(10 * time.Second)
	if len(f.cmds) > 0 {
		t.Fatal("a new leader deletes it too early")
	}
	f.pass(time.Second)
	// A write that is there first wins.
	f.cmds = nil
	f.step(Event{Kind: Lead, Tenure: durable.Tenure{Term: 3}, At: f.now})
	f.pass(5 * time.Second)
	f.confirm()
	f.receive(put(1, "x", 2, "w"))
	f.commit()
	f.pass(time.Minute)
	if len(f.cmds) > 0 {
		t.Errorf("an object without a TTL is deleted: %+v", f.cmds)
	}
}

func TestAnExpiryInvalidatesLikeAWrite(t *testing.T) {
	f := newFixture(t)
	m := put(1, "x", 1, "v")
	m.TTL = 10 * time.Second
	f.receive(m)
	f.commit()
	f.take(durable.Stored)
	f.pass(9 * time.Second)
	f.confirm()
	f.receive(from(2, durable.Read, "x", 1))
	f.take(durable.Copy)
	f.pass(1500 * time.Millisecond)
	f.take(durable.Invalidate)
	f.commit()
	f.confirm()
	f.receive(from(3, durable.Read, "x", 1))
	if got := f.take(durable.Copy); got.Content != durable.Whole || got.Lease != 0 {
		t.Errorf("before the copy is gone: %v", &got)
	}
	f.pass(params.Arbiter())
	f.confirm()
	f.receive(from(3, durable.Read, "x", 2))
	if got := f.take(durable.Copy); got.Content != durable.None || got.Lease == 0 {
		t.Errorf("afterwards: %v", &got)
	}
}

// TestOneSlowHolderDoesNotHoldBackTheMark: what waits for it is an exception (D13), up to sixteen; beyond them the mark stays behind.
func TestOneSlowHolderDoesNotHoldBackTheMark(t *testing.T) {
	f := newFixture(t)
	for i := range store.ExceptionsMax + 2 {
		name := fmt.Sprintf("x%02d", i)
		f.receive(from(10+i, durable.Read, name, 1))
		f.receive(put(2, name, durable.Seq(i+1), "v"))
		f.commit() // not settled: nobody acknowledges
	}
	f.sent = nil
	f.receive(put(2, "y", 100, "v"))
	f.commit()
	f.take(durable.Stored)
	f.receive(put(2, "z", 101, "v"))
	mark := f.cmds[0].Mark
	// The entries of x00 to x17 are 2 to 19.
	if len(mark.Except) != store.ExceptionsMax || mark.Except[0] != "x00" || mark.Except[15] != "x15" || mark.Index != 17 {
		t.Errorf("%+v", mark)
	}
	f.pass(params.Arbiter()) // the sessions are over
	f.cmds, f.sent = nil, nil
	f.step(Event{Kind: Repeat})
	f.receive(put(2, "w", 102, "v"))
	if mark := f.cmds[len(f.cmds)-1].Mark; len(mark.Except) != 0 || mark.Index != f.index {
		t.Errorf("afterwards: %+v at %d", mark, f.index)
	}
}

func TestAnIdleLeaderLeavesOneMark(t *testing.T) {
	f := newFixture(t)
	f.receive(put(1, "x", 1, "v"))
	f.commit()
	f.step(Event{Kind: Repeat}) // something has happened since the last
	if len(f.cmds) > 0 {
		t.Fatal("it is in a hurry")
	}
	f.step(Event{Kind: Repeat})
	if len(f.cmds) != 1 || f.cmds[0].Object != "" {
		t.Fatalf("%+v", f.cmds)
	}
	f.commit()
	if !f.store.Settled("x") {
		t.Error("the log does not say that x is settled")
	}
	for range 5 {
		f.step(Event{Kind: Repeat})
	}
	if len(f.cmds) > 0 {
		t.Errorf("another one: %+v", f.cmds)
	}
}

func TestAProposalThatCameToNothingIsMadeAgain(t *testing.T) {
	f := newFixture(t)
	f.receive(put(1, "x", 1, "v"))
	cmd := f.cmds[0]
	f.cmds = nil
	f.step(Event{Kind: Failed, Cmd: &cmd})
	f.step(Event{Kind: Repeat})
	if len(f.cmds) != 1 || f.cmds[0].Seq != 1 {
		t.Fatalf("%+v", f.cmds)
	}
	f.cmds = append(f.cmds, cmd) // the first was not lost after all
	f.commit()
	f.take(durable.Stored)
	if v := f.store.Lookup("x").Version; v != 1 {
		t.Errorf("version %d", v)
	}
}

func TestARefusalIsTold(t *testing.T) {
	f := newFixture(t)
	m := put(1, "x", 1, "v")
	m.TTL = time.Nanosecond
	f.receive(m)
	f.commit()
	if m := f.take(durable.Refused); m.Reason != durable.Bad {
		t.Errorf("%v", &m)
	}
}

// TestARefusalIsOneLeaders: a STORE went to two voters, since nobody knew who leads. The one that leads refuses it for want of room. The other one gets its copy
// late, when it leads and there is room: the write is made. So a node believes a refusal only of what it sent once and to one.
func TestARefusalIsOneLeaders(t *testing.T) {
	f := newFixture(t)
	for n := range store.WritersPerObject {
		f.receive(put(1+n, "x", 1, "v"))
		f.commit()
		for _, m := range f.sent {
			if m.Kind == durable.Invalidate {
				m.Kind = durable.InvalidateAck
				f.receive(m)
			}
		}
		f.sent = nil
	}
	late := put(500, "x", 1, "late")
	f.receive(late)
	f.sent = nil
	f.commit()
	if m := f.take(durable.Refused); m.Reason != durable.Busy {
		t.Fatalf("%v", &m)
	}
	f.now = f.now.Add(store.WriterLife)
	f.reg = New(params, f.store)
	f.step(Event{Kind: Lead, Tenure: durable.Tenure{Term: 2}, At: f.now})
	f.receive(late)
	f.commit()
	f.pass(params.Arbiter())
	f.confirm()
	f.take(durable.Stored)
	if o := f.store.Lookup("x"); string(o.Value.Bytes) != "late" {
		t.Errorf("%q", o.Value.Bytes)
	}
}

func TestLimitsOfARegister(t *testing.T) {
	f := newFixture(t)
	f.reg.copies = CopiesMax
	m := from(1, durable.Read, "x", 1)
	var out []Action
	out = f.reg.Step(Event{Kind: Receive, Now: f.now, Msg: &m}, out)
	if len(out) != 1 || out[0].Msg.Lease != 0 {
		t.Errorf("a copy too many: %+v", out)
	}
	f.reg.copies = 0

	f = newFixture(t)
	f.receive(put(1, "x", 1, "v")) // is not committed
	put1 := func(n int, seq durable.Seq, bytes int) {
		m := put(n, "x", seq, "v")
		m.Value = &protocol.Cell{Bytes: make([]byte, bytes)}
		f.reg.Step(Event{Kind: Receive, Now: f.now, Msg: &m}, nil)
	}
	for i := range QueuedPerNode + 10 {
		put1(2, durable.Seq(i+1), 1)
	}
	if f.reg.queued != 1+QueuedPerNode {
		t.Errorf("%d requests wait", f.reg.queued)
	}
	for i := range QueuedMax + 10 {
		put1(3+i/10, durable.Seq(i+1), 1)
	}
	if f.reg.queued != QueuedMax {
		t.Errorf("%d requests wait", f.reg.queued)
	}
	if err := f.reg.Check(); err != nil {
		t.Error(err)
	}

	f = newFixture(t)
	f.receive(put(1, "x", 1, "v"))
	for i := range QueuedBytesMax/(1<<20) + 20 {
		put1(2+i/20, durable.Seq(i+1), 1<<20)
	}
	// One of each node may have any size where nothing of it waits: 16 of each of the first nodes, and no more.
	if f.reg.queued != QueuedBytesMax/(1<<20) || f.reg.loads[put(2, "", 0, "").Node].requests != QueuedBytesPerNode/(1<<20) {
		t.Errorf("%d requests wait, with %d bytes: %v", f.reg.queued, f.reg.held, f.reg.loads)
	}
	f.commit() // what could not be taken was dropped, and what is done makes room
	f.confirm()
	for f.reg.queued > 0 {
		before := f.reg.queued
		f.pass(params.Arbiter()) // the last writer's copy is over
		if f.commit(); f.reg.queued == before {
			break
		}
	}
	if f.reg.queued != 0 || f.reg.held != 0 || len(f.reg.loads) != 0 {
		t.Errorf("%d requests with %d bytes are left", f.reg.queued, f.reg.held)
	}

	f = newFixture(t)
	for i := range SessionsMax {
		m := from(i, durable.Read, "x", 1)
		f.reg.Step(Event{Kind: Receive, Now: f.now, Msg: &m}, nil)
	}
	f.sent = nil
	f.receive(from(SessionsMax, durable.Read, "x", 1))
	if m := f.take(durable.Copy); m.Lease != 0 {
		t.Errorf("a session too many: %v", &m)
	}
}

func TestWhoLeadsNoMoreSaysNothing(t *testing.T) {
	f := newFixture(t)
	f.receive(from(1, durable.Read, "x", 1))
	f.sent = nil
	f.step(Event{Kind: Follow})
	f.receive(put(1, "x", 1, "v"))
	f.step(Event{Kind: Repeat})
	if f.none(); len(f.cmds) > 0 || f.reg.Leads() || f.reg.Waits() {
		t.Error("it goes on")
	}
}

func BenchmarkRead(b *testing.B) {
	f := newFixture(b)
	m := from(1, durable.Read, "x", 1)
	b.ReportAllocs()
	var out []Action
	for b.Loop() {
		m.Seq++
		out = f.reg.Step(Event{Kind: Receive, Now: f.now, Msg: &m}, out[:0])
	}
}

// What the log forgets meanwhile raises the version that a write makes: its writer, and those who have copies, are told of the one that it has.
func TestAWriteHasTheVersionThatTheLogGivesIt(t *testing.T) {
	f := newFixture(t)
	for i := range 5 {
		m := put(1, "d/old", durable.Seq(i+1), "v")
		if i == 4 {
			m.Delete, m.Value = true, nil
		}
		f.receive(m)
		f.commit()
	}
	f.now = f.now.Add(store.TombstoneLife + time.Minute)
	f.step(Event{Kind: Tick})
	f.confirm()
	f.sent = nil
	f.receive(from(2, durable.Read, "d/new", 1))
	f.take(durable.Copy)
	f.receive(from(2, durable.Read, "d/", 2))
	f.take(durable.Copy)
	f.receive(put(1, "d/new", 9, "v"))
	f.sent = nil // the log forgets with this write, and not before it
	f.commit()
	if v := f.store.Lookup("d/new").Version; v != 6 {
		t.Fatalf("the log makes version %d", v)
	}
	for len(f.sent) > 0 {
		m := f.sent[0]
		f.sent = f.sent[1:]
		if v := f.store.Lookup(m.Object).Version; m.Kind != durable.Invalidate || m.Version != v {
			t.Fatalf("%v; the log has %d", &m, v)
		}
		f.receive(durable.Message{Kind: durable.InvalidateAck, Node: m.Node, Session: m.Session, Tenure: m.Tenure, Object: m.Object, Version: m.Version})
		if len(f.sent) > 0 && f.sent[0].Kind == durable.Stored {
			break
		}
	}
	if m := f.take(durable.Stored); m.Version != 6 {
		t.Errorf("the writer is told of version %d", m.Version)
	}
}

// Who expects a version that is past fails, also with a leader that does not know yet what is settled: the log may forget what was there before it comes to
// the write, and then it would be made with nobody told to drop his copy.
func TestALostRaceStaysLost(t *testing.T) {
	f := newFixture(t)
	f.receive(put(1, "x", 1, "v"))
	f.commit()
	m := put(1, "x", 2, "")
	m.Delete, m.Value = true, nil
	f.receive(m)
	f.commit()
	f.now = f.now.Add(store.TombstoneLife + time.Minute)
	f.step(Event{Kind: Lead, Tenure: durable.Tenure{Term: 2}, At: f.now})
	f.confirm()
	f.sent = nil
	m = put(2, "x", 3, "w")
	m.Expect = durable.Exact // 0: if it was never written
	f.receive(m)
	f.commit()
	f.none()
	if v := f.store.Lookup("x"); v.Value != nil {
		t.Errorf("it is written over version 2: %+v", v)
	}
	f.pass(params.Arbiter())
	f.confirm()
	if m := f.take(durable.Conflict); m.Version != 2 {
		t.Errorf("%v", &m)
	}
}
