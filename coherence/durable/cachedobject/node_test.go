package cachedobject

import (
	"testing"
	"time"

	"latchkey/coherence/durable"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
)

var params = durable.Params{Lease: 2 * time.Second, Drift: automaton.DriftDefault}

type fixture struct {
	t    testing.TB
	node *Node
	now  automaton.Instant
	sent []durable.Message
	done map[uint64]Action
	cell map[string]*Cell
	id   uint64
}

func newFixture(t testing.TB) *fixture {
	self := protocol.NodeRef{ID: keyspace.NodeID{1}, Inc: 5}
	return &fixture{t: t, node: New(Config{Self: self, Params: params}), done: map[uint64]Action{}, cell: map[string]*Cell{}}
}

func (f *fixture) step(ev Event) {
	ev.Now = f.now
	for _, a := range f.node.Step(ev, nil) {
		switch a.Kind {
		case Send:
			f.sent = append(f.sent, a.Msg)
		case Publish:
			f.cell[a.Object] = a.Cell
		case Done:
			if _, twice := f.done[a.Call]; twice {
				f.t.Fatalf("call %d ends twice", a.Call)
			}
			f.done[a.Call] = a
		}
	}
	if err := f.node.Check(); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) call(object string, c Call) uint64 {
	f.id++
	c.ID = f.id
	f.step(Event{Kind: Begin, Object: object, Call: c})
	return f.id
}

func (f *fixture) receive(m durable.Message) { f.step(Event{Kind: Receive, Msg: &m}) }

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

// answer is what a leader says to a request.
func answer(k durable.Kind, to durable.Message, v durable.Version, value string) durable.Message {
	m := durable.Message{
		Kind: k, Node: to.Node, Session: to.Session, Seq: to.Seq, Object: to.Object, Tenure: durable.Tenure{Term: 1}, Version: v, Lease: params.Holder(),
	}
	if k != durable.Stored {
		m.Content, m.Value = durable.Whole, &protocol.Cell{Bytes: []byte(value)}
	}
	return m
}

// hit reads as a thread does.
func (f *fixture) hit(object string) *Cell {
	c, l := f.cell[object], f.node.Lease()
	if !l.Allows(c, f.now) {
		return nil
	}
	return c
}

func (f *fixture) fetch(object string, v durable.Version, value string) {
	f.t.Helper()
	id := f.call(object, Call{Kind: Get})
	f.receive(answer(durable.Copy, f.take(durable.Read), v, value))
	if f.done[id].Outcome != Found || f.hit(object) == nil {
		f.t.Fatalf("%+v", f.done[id])
	}
}

func TestAHitEndsWithTheLease(t *testing.T) {
	f := newFixture(t)
	id := f.call("x", Call{Kind: Get})
	r := f.take(durable.Read)
	f.now = f.now.Add(300 * time.Millisecond) // on its way
	f.receive(answer(durable.Copy, r, 3, "v"))
	if a := f.done[id]; a.Outcome != Found || a.Version != 3 || string(a.Value.Bytes) != "v" {
		t.Fatalf("%+v", a)
	}
	f.now = f.now.Add(params.Holder() - 300*time.Millisecond - 1)
	if c := f.hit("x"); c == nil || string(c.Value.Bytes) != "v" {
		t.Fatalf("%+v", c)
	}
	if f.now++; f.hit("x") != nil {
		t.Error("it counts from the answer")
	}
}

// TestNoLeaseOutlivesSleep is conformance test 8: the driver has seen that the wall's clock went on and the other one did not.
func TestNoLeaseOutlivesSleep(t *testing.T) {
	f := newFixture(t)
	f.fetch("x", 1, "v")
	f.fetch("y", 1, "v")
	was := f.node.Lease()
	f.step(Event{Kind: Jump})
	if f.hit("x") != nil || f.hit("y") != nil || f.node.Lease().Session == was.Session {
		t.Error("a lease lives on")
	}
	f.call("x", Call{Kind: Get})
	if m := f.take(durable.Read); m.Version != 1 || m.Session.N != 2 {
		t.Errorf("%v", &m)
	}
}

// A machine that sleeps while a request is under way takes its answer for younger than it is.
func TestNoAnswerOutlivesSleep(t *testing.T) {
	f := newFixture(t)
	f.call("x", Call{Kind: Get})
	read := f.take(durable.Read)
	f.step(Event{Kind: Jump})
	m := answer(durable.Copy, read, 1, "v")
	f.receive(m)
	if f.hit("x") != nil {
		t.Error("it is kept, though it was asked for before the clock stood still")
	}
}

func TestALapsedCopyIsRevalidated(t *testing.T) {
	f := newFixture(t)
	f.fetch("x", 3, "v")
	f.now = f.now.Add(time.Minute)
	id := f.call("x", Call{Kind: Get})
	r := f.take(durable.Read)
	if r.Version != 3 {
		t.Fatalf("%v", &r)
	}
	same := answer(durable.Copy, r, 3, "")
	same.Content, same.Value = durable.Same, nil
	f.receive(same)
	if a := f.done[id]; string(a.Value.Bytes) != "v" || f.hit("x") == nil {
		t.Errorf("%+v", a)
	}
}

func TestALateReaderIsNotAnsweredByAnEarlierRequest(t *testing.T) {
	f := newFixture(t)
	first := f.call("x", Call{Kind: Get})
	r := f.take(durable.Read)
	late := f.call("x", Call{Kind: Get})
	a := answer(durable.Copy, r, 1, "old")
	a.Lease = 0
	f.receive(a)
	if f.done[first].Outcome != Found || f.done[late].Outcome != 0 {
		t.Fatalf("%+v %+v", f.done[first], f.done[late])
	}
	if r2 := f.take(durable.Read); r2.Seq == r.Seq {
		t.Error("under the same number")
	}
}

func TestAStoreKeepsItsNumberAndEndsUnknown(t *testing.T) {
	f := newFixture(t)
	id := f.call("x", Call{Kind: Put, Value: &protocol.Cell{Bytes: []byte("v")}})
	s := f.take(durable.Store)
	for f.now < automaton.Instant(StoreHorizon) {
		if f.done[id].Outcome != 0 {
			t.Fatalf("at %d: %+v", f.now, f.done[id])
		}
		f.now = f.now.Add(time.Minute)
		f.step(Event{Kind: Repeat})
		for _, m := range f.sent {
			if m.Seq != s.Seq || m.Kind != durable.Store {
				t.Fatalf("%v", &m)
			}
		}
		f.sent = nil
	}
	if f.done[id].Outcome != Unknown {
		t.Errorf("%+v", f.done[id])
	}
	f.receive(answer(durable.Stored, s, 1, "")) // late
	if f.hit("x") != nil {
		t.Error("a write of unknown outcome is cached")
	}
}

func TestAReadTakesANewNumberAfterALease(t *testing.T) {
	f := newFixture(t)
	f.call("x", Call{Kind: Get})
	r := f.take(durable.Read)
	f.now = f.now.Add(params.Lease - 1)
	f.step(Event{Kind: Repeat})
	if m := f.take(durable.Read); m.Seq != r.Seq {
		t.Errorf("%v", &m)
	}
	f.now++
	f.step(Event{Kind: Repeat})
	if m := f.take(durable.Read); m.Seq == r.Seq {
		t.Errorf("%v", &m)
	}
}

func TestAWriterCachesWhatItWrote(t *testing.T) {
	f := newFixture(t)
	id := f.call("x", Call{Kind: Put, Value: &protocol.Cell{Bytes: []byte("v")}})
	read := f.call("x", Call{Kind: Get}) // waits for the write
	f.receive(answer(durable.Stored, f.take(durable.Store), 4, ""))
	if a := f.done[id]; a.Outcome != Written || a.Version != 4 {
		t.Errorf("%+v", a)
	}
	if a := f.done[read]; a.Outcome != Found || string(a.Value.Bytes) != "v" || len(f.sent) > 0 {
		t.Errorf("%+v, sent %v", a, f.sent)
	}
}

// TestARefusedWriteThatWasRepeatedIsUnknown: only one message that went to one voter, and was refused there, can make no write any more. See
// TestARefusalIsOneLeaders of coherence/durable/register.
func TestARefusedWriteThatWasRepeatedIsUnknown(t *testing.T) {
	for _, c := range []struct {
		sent []Reach // where it went, the first time and then
		want Outcome
	}{
		{[]Reach{One}, Rejected},
		{[]Reach{One, One}, Unknown},
		{[]Reach{Several}, Unknown},
		{[]Reach{Nobody, One}, Rejected},
		{[]Reach{Nobody, Several}, Unknown},
	} {
		f := newFixture(t)
		f.step(Event{Kind: Begin, Object: "x", Call: Call{ID: 1, Kind: Put, Value: &protocol.Cell{}}, Reach: c.sent[0]})
		s := f.take(durable.Store)
		for _, r := range c.sent[1:] {
			f.step(Event{Kind: Repeat, Reach: r})
		}
		f.receive(durable.Message{Kind: durable.Refused, Node: s.Node, Session: s.Session, Seq: s.Seq, Object: "x", Reason: durable.Busy})
		if a := f.done[1]; a.Outcome != c.want || a.Reason != durable.Busy {
			t.Errorf("sent %v: %+v", c.sent, a)
		}
	}
}

// TestReadersGoBesideWhoWaitsForATurn: neither waits for the other, and however many read, the WRITE keeps its number, and so the grant that is on its way.
func TestReadersGoBesideWhoWaitsForATurn(t *testing.T) {
	f := newFixture(t)
	lock := f.call("x", Call{Kind: Lock})
	write := f.take(durable.Write)
	once := func(read durable.Message, v durable.Version) { // while somebody else writes
		m := answer(durable.Copy, read, v, "v")
		m.Lease = 0
		f.receive(m)
	}
	first := f.call("x", Call{Kind: Get})
	read := f.take(durable.Read)
	second, third := f.call("x", Call{Kind: Get}), f.call("x", Call{Kind: Get})
	if len(f.sent) > 0 {
		t.Fatalf("sent %v", f.sent)
	}
	once(read, 1)
	if f.done[first].Outcome != Found || f.done[second].Outcome != 0 {
		t.Fatalf("%+v, %+v", f.done[first], f.done[second])
	}
	read = f.take(durable.Read) // of the two others, at once
	grant := answer(durable.Copy, write, 2, "w")
	grant.Exclusive = true
	f.receive(grant)
	if f.done[lock].Outcome != Locked || f.hit("x") == nil {
		t.Fatalf("%+v", f.done[lock])
	}
	put := f.call("x", Call{Kind: Holder, Expect: durable.Exact, Wanted: 2, Value: &protocol.Cell{Bytes: []byte("x")}})
	if len(f.sent) > 0 {
		t.Fatalf("a STORE goes beside a READ: %v", f.sent)
	}
	once(read, 1)
	if f.done[second].Outcome != Found || f.done[third].Outcome != Found || f.hit("x") != nil {
		t.Errorf("%+v, %+v; there is a copy during a STORE: %v", f.done[second], f.done[third], f.hit("x") != nil)
	}
	f.receive(answer(durable.Stored, f.take(durable.Store), 3, ""))
	if f.done[put].Outcome != Written || f.hit("x") == nil {
		t.Errorf("%+v", f.done[put])
	}
}

// TestWhoWaitsForATurnOvertakesNoWrite: a STORE waits for a READ and no longer, so that it goes before a WRITE that came later; and again once the one
// who has the turn is done.
func TestWhoWaitsForATurnOvertakesNoWrite(t *testing.T) {
	f := newFixture(t)
	once := func(read durable.Message, v durable.Version) {
		m := answer(durable.Copy, read, v, "v")
		m.Lease = 0
		f.receive(m)
	}
	put := func() uint64 { return f.call("x", Call{Kind: Put, Value: &protocol.Cell{Bytes: []byte("w")}}) }
	f.call("x", Call{Kind: Get})
	read := f.take(durable.Read)
	first, lock := put(), f.call("x", Call{Kind: Lock})
	if len(f.sent) > 0 {
		t.Fatalf("it goes before the STORE: %v", f.sent)
	}
	once(read, 1)
	f.receive(answer(durable.Stored, f.take(durable.Store), 2, ""))
	write := f.take(durable.Write)
	if f.done[first].Outcome != Written {
		t.Fatalf("%+v", f.done[first])
	}
	f.receive(durable.Message{Kind: durable.Invalidate, Node: write.Node, Session: write.Session, Object: "x", Version: 3})
	f.take(durable.InvalidateAck)
	f.call("x", Call{Kind: Get})
	read = f.take(durable.Read)
	grant := answer(durable.Copy, write, 3, "w")
	grant.Exclusive = true
	f.receive(grant)
	if f.done[lock].Outcome != Locked {
		t.Fatalf("%+v", f.done[lock])
	}
	second, later := put(), f.call("x", Call{Kind: Lock})
	f.step(Event{Kind: Unlock, Object: "x"})
	if len(f.sent) > 0 || f.done[later].Outcome != 0 {
		t.Fatalf("sent %v; %+v", f.sent, f.done[later])
	}
	once(read, 3)
	f.receive(answer(durable.Stored, f.take(durable.Store), 4, ""))
	if f.done[second].Outcome != Written || f.done[later].Outcome != Locked { // it has the right still
		t.Errorf("%+v, %+v", f.done[second], f.done[later])
	}
}

// TestAnAnswerThatWasOvertakenTakesNoCopyAway: two requests of one object are under way, and the first is answered last.
func TestAnAnswerThatWasOvertakenTakesNoCopyAway(t *testing.T) {
	f := newFixture(t)
	f.call("x", Call{Kind: Get})
	read := f.take(durable.Read)
	f.call("x", Call{Kind: Lock})
	write := f.take(durable.Write)
	inv := durable.Message{Kind: durable.Invalidate, Node: read.Node, Session: read.Session, Object: "x", Version: 2}
	f.receive(inv) // of the copy that is on its way with the READ's answer
	f.take(durable.InvalidateAck)
	grant := answer(durable.Copy, write, 2, "w")
	grant.Exclusive = true
	f.receive(grant)
	f.receive(answer(durable.Copy, read, 1, "v"))
	if c := f.hit("x"); c == nil || c.Version != 2 || len(f.sent) > 0 {
		t.Errorf("%+v, sent %v", c, f.sent)
	}
}

// TestAnUpdateInProgressKeepsTheRight (D17): a RECALL is answered when the holder is done, its write included.
func TestAnUpdateInProgressKeepsTheRight(t *testing.T) {
	f := newFixture(t)
	lock := f.call("x", Call{Kind: Lock})
	w := f.take(durable.Write)
	c := answer(durable.Copy, w, 1, "v")
	c.Exclusive = true
	f.receive(c)
	f.receive(c) // once more: it is no grant that nobody waits for
	if f.done[lock].Outcome != Locked || len(f.sent) > 0 {
		t.Fatalf("%+v, sent %v", f.done[lock], f.sent)
	}
	recall := durable.Message{Kind: durable.Recall, Node: w.Node, Session: w.Session, Seq: w.Seq, Object: "x", Tenure: c.Tenure}
	f.receive(recall)
	second := f.call("x", Call{Kind: Lock}) // waits for the first
	if len(f.sent) > 0 {
		t.Fatalf("sent %v", f.sent)
	}
	put := f.call("x", Call{Kind: Holder, Expect: durable.Exact, Wanted: 1, Value: &protocol.Cell{Bytes: []byte("w")}})
	f.receive(answer(durable.Stored, f.take(durable.Store), 2, ""))
	if f.done[put].Outcome != Written || len(f.sent) > 0 {
		t.Fatalf("%+v, sent %v", f.done[put], f.sent)
	}
	f.step(Event{Kind: Unlock, Object: "x"})
	if len(f.sent) != 2 || f.sent[0].Kind != durable.Release || f.sent[0].Seq != w.Seq || f.sent[1].Kind != durable.Write {
		t.Fatalf("sent %v", f.sent)
	}
	if f.done[second].Outcome != 0 {
		t.Errorf("%+v", f.done[second])
	}
}

func TestAGrantThatNobodyWaitsForIsGivenBack(t *testing.T) {
	f := newFixture(t)
	id := f.call("x", Call{Kind: Lock})
	w := f.take(durable.Write)
	f.step(Event{Kind: GiveUp, Object: "x", Call: Call{ID: id}})
	c := answer(durable.Copy, w, 1, "v")
	c.Exclusive = true
	f.receive(c)
	if m := f.take(durable.Release); m.Seq != w.Seq || f.done[id].Outcome != Given {
		t.Errorf("%v, %+v", &m, f.done[id])
	}
}

func TestStaleReadsAreNamedSo(t *testing.T) {
	f := newFixture(t)
	f.now = 1000
	f.fetch("x", 3, "v")
	f.receive(durable.Message{
		Kind: durable.Invalidate, Node: keyspace.NodeID{1}, Session: durable.Session{Inc: 5, N: 1}, Object: "x", Version: 4,
	})
	if m := f.take(durable.InvalidateAck); m.Version != 4 || f.hit("x") != nil {
		t.Errorf("%v", &m)
	}
	if c, at := f.node.Stale("x"); c == nil || c.Version != 3 || at != 1000 {
		t.Errorf("%+v of %d", c, at)
	}
}

// TestWhatIsKnownGrowsNoOlder: a grant comes for a WRITE that was sent before a READ which is answered already.
func TestWhatIsKnownGrowsNoOlder(t *testing.T) {
	for _, v := range []durable.Version{3, 4} { // the same version, and one that was made after the READ
		f := newFixture(t)
		f.now = 1000
		f.call("x", Call{Kind: Lock})
		write := f.take(durable.Write)
		f.now = f.now.Add(params.Lease / 4)
		f.fetch("x", 3, "v")
		grant := answer(durable.Copy, write, v, "v")
		grant.Exclusive = true
		f.receive(grant)
		if c, at := f.node.Stale("x"); c == nil || c.Version != v || at != f.now {
			t.Errorf("%+v of %d, and it is %d", c, at, f.now)
		}
	}
}

func TestWhatIsForAnotherLifeIsDropped(t *testing.T) {
	f := newFixture(t)
	id := f.call("x", Call{Kind: Get})
	m := answer(durable.Copy, f.take(durable.Read), 1, "v")
	m.Session.Inc--
	f.receive(m)
	if f.done[id].Outcome != 0 {
		t.Errorf("%+v", f.done[id])
	}
}

func TestLimitsOfANode(t *testing.T) {
	f := newFixture(t)
	for range CallsMax {
		f.id++
		f.node.Step(Event{Kind: Begin, Object: "x", Call: Call{ID: f.id, Kind: Put, Value: &protocol.Cell{}}}, nil)
	}
	if id := f.call("y", Call{Kind: Get}); f.done[id].Outcome != Overloaded {
		t.Errorf("%+v", f.done[id])
	}
	f = newFixture(t)
	for range DroppedMax + 1 {
		f.fetch("x", 1, "v")
		f.step(Event{Kind: Evict, Object: "x"})
	}
	f.step(Event{Kind: Extend})
	if len(f.sent) != 1+DroppedMax || f.sent[0].Kind != durable.Renew || f.sent[1].Kind != durable.Dropped {
		t.Errorf("%d messages", len(f.sent))
	}
}
