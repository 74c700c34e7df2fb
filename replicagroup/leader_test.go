package replicagroup

import (
	"fmt"
	"reflect"
	"slices"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/internal/driver"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/session"
)

// posting is a machine that posts what its group's own commands say.
type posting struct{ counter }

func (m *posting) FirstView(order.View)                        {}
func (m *posting) NextView(session.Context, order.View)        {}
func (m *posting) ApplyOwn(c session.Context, data []byte)     { m.sum++; c.Post(string(data)) }
func (m *posting) Apply(c session.Context, data []byte) []byte { return nil }

// ruled is an engine that does what it is told.
type ruled struct {
	slowEngine
	leads, asleep bool
	reads         []uint64
	then          order.Actions // with the next step
}

func (e *ruled) Step(ev order.Event, out *order.Actions) {
	e.slowEngine.Step(ev, out)
	if r, ok := ev.(order.Read); ok {
		e.reads = append(e.reads, r.Ref)
	}
	out.ReadOK, out.Done = append(out.ReadOK, e.then.ReadOK...), append(out.Done, e.then.Done...)
	e.then = order.Actions{}
}
func (e *ruled) Leader() (order.ReplicaID, bool) { return 1, e.leads }
func (e *ruled) Quiesced() bool                  { return e.asleep }
func (e *ruled) Status() order.Status            { return order.Status{Term: 7} }

// leading notes what it hears.
type leading struct {
	desk  *Desk
	heard *[]string
	idle  bool
}

func (l *leading) note(format string, args ...any) {
	*l.heard = append(*l.heard, fmt.Sprintf(format, args...))
}
func (l *leading) Executed(posted any)              { l.note("executed %v", posted) }
func (l *leading) Failed(n uint64)                  { l.note("failed %d", n) }
func (l *leading) Confirmed(at automaton.Instant)   { l.note("confirmed") }
func (l *leading) Unconfirmed()                     { l.note("unconfirmed") }
func (l *leading) Receive(_ keyspace.NodeID, m any) { l.note("receive %v", m) }
func (l *leading) Expire()                          { l.note("expire") }
func (l *leading) Idle() bool                       { return l.idle }
func (l *leading) End()                             { l.note("end") }

type leaderService struct {
	heard []string
	last  *leading
}

func (*leaderService) Service() string { return "count" }
func (*leaderService) Asks() string    { return "asks" }
func (*leaderService) Answers() string { return "answers" }
func (*leaderService) Read(keyspace.NodeID, []byte) (order.GroupID, any, error) {
	return order.GroupID{}, nil, errMalformed
}
func (s *leaderService) New(d *Desk, elected, confirmed automaton.Instant) Leader {
	s.last = &leading{desk: d, heard: &s.heard}
	s.last.note("begin %d", d.Term())
	return s.last
}
func (*leaderService) Used(m session.Machine) bool { return m.(*posting).sum > 0 }
func (s *leaderService) Decline(_ order.GroupID, e Elsewhere) []byte {
	s.heard = append(s.heard, fmt.Sprintf("decline %d", e.Why))
	return nil
}

// mute is an overlay that knows nobody.
type mute struct{ watcher }

func (*mute) PeerOf(keyspace.NodeID) (peer.ID, bool) { return "", false }

func newLed(t *testing.T) (*shard, *replica, *ruled, *leaderService) {
	d := testDescriptor()
	d.View.Members[0].PeerID = testMember(1).PeerID
	ls := new(leaderService)
	h := &Host{clock: driver.NewClock(), id: d.Group.Overlay, overlay: &mute{watcher{watched: map[peer.ID]bool{}}}, leaders: ls,
		watched: map[peer.ID]int{}, active: map[peer.ID]int{}, meetings: map[peer.ID]int{}}
	h.locator = newLocator(h)
	s, e := newShard(h), new(ruled)
	h.shards = []*shard{s}
	r := newReplica(1, &d, e, map[string]session.Machine{"count": new(posting)}, 1)
	s.now = h.clock.Now()
	startEvent{replica: r}.handle(s)
	return s, r, e, ls
}

func (e *ruled) lead(r *replica, leads bool) {
	e.leads = leads
	r.step(order.Timer{})
}

func (s *leaderService) expect(t *testing.T, want ...string) {
	t.Helper()
	if !reflect.DeepEqual(s.heard, want) && len(s.heard)+len(want) > 0 {
		t.Errorf("heard %q, want %q", s.heard, want)
	}
	s.heard = nil
}

func TestALeaderBeginsOnceItHasAppliedWhatWasCommitted(t *testing.T) {
	s, r, e, ls := newLed(t)
	say := func(msg string) { (&leadEvent{group: r.group, msg: msg, bytes: 1}).deliver(s) }
	(&leadEvent{msg: "x"}).deliver(s)
	say("early")
	ls.expect(t, "decline 2", "decline 1")
	e.lead(r, true)
	if len(e.reads) > 0 {
		t.Fatal("asks though nobody needs a leader")
	}
	e.cmds, e.refs = nil, nil
	say("a")
	say("b")
	if ls.expect(t); len(e.reads) != 1 {
		t.Fatalf("%d questions under way", len(e.reads))
	}
	e.then.ReadOK = []order.ReadPoint{{Ref: e.reads[0], Index: 1}}
	r.step(order.Timer{})
	ls.expect(t) // it has not applied that
	for i := range openingMax - 1 {
		if say("c"); i < openingMax-2 && len(ls.heard) > 0 {
			t.Fatalf("message %d: %q", i, ls.heard)
		}
	}
	ls.expect(t, "decline 4")
	e.cmds, e.refs = []order.Command{{Service: "count", Data: []byte("one")}}, []uint64{99}
	e.order(r, 1)
	if first := ls.heard[:min(3, len(ls.heard))]; !slices.Equal(first, []string{"begin 458752", "receive a", "receive b"}) || len(ls.heard) != openingMax+1 {
		t.Fatalf("%d, first %q", len(ls.heard), first)
	}
	ls.heard = nil

	// What it proposes comes back in order; what may be lost is named; one question is under way at a time.
	desk := ls.last.desk
	if !desk.Propose(5, []byte("x"), []byte("y")) || !desk.Propose(6, []byte("z")) {
		t.Fatal("refused")
	}
	s.propose()
	e.order(r, 2)
	ls.expect(t, "executed x", "executed y")
	e.then.Done = []order.Outcome{{Ref: e.refs[0], Err: order.ErrDropped}}
	r.step(order.Timer{})
	ls.expect(t, "failed 6")
	e.reads, e.cmds, e.refs = nil, nil, nil
	desk.Confirm()
	desk.Confirm()
	if len(e.reads) != 1 {
		t.Fatalf("%d questions", len(e.reads))
	}
	e.then.Done = []order.Outcome{{Ref: e.reads[0], Err: order.ErrBusy}}
	r.step(order.Timer{})
	ls.expect(t, "unconfirmed")
	desk.Confirm()
	e.then.ReadOK = []order.ReadPoint{{Ref: e.reads[1], Index: 1 << 40}} // only a beginning waits for that
	r.step(order.Timer{})
	ls.expect(t, "confirmed")
	for i := range ledProposalsMax {
		if !desk.Propose(7, []byte("x")) {
			t.Fatalf("command %d is refused", i)
		}
	}
	if desk.Propose(7, []byte("x")) {
		t.Fatal("one too many is taken")
	}
	s.propose()
	e.order(r, ledProposalsMax)
	if len(ls.heard) != ledProposalsMax || desk.proposed != 0 {
		t.Errorf("%d executed, %d counted", len(ls.heard), desk.proposed)
	}
	ls.heard = nil

	// In a group that sleeps it ends when it is idle, and begins again when it is asked for.
	r.parks, e.asleep = true, true
	r.step(order.Timer{})
	if ls.expect(t); r.desk == nil {
		t.Fatal("ended with something to do")
	}
	ls.last.idle = true
	e.asleep = false
	r.step(order.Timer{})
	e.asleep = true
	r.step(order.Timer{})
	if ls.expect(t, "end"); r.desk != nil || r.table != nil {
		t.Fatal("not put away")
	}
	r.parks = false
	h := s.host
	h.services = map[string]MachineFactory{"count": func(order.GroupID) session.Machine { return new(posting) }}
	say("d")
	e.then.ReadOK = []order.ReadPoint{{Ref: e.reads[2], Index: 1}}
	r.step(order.Timer{})
	ls.expect(t, "begin 458752", "receive d")
	if ls.last.desk.Machine().(*posting).sum == 0 {
		t.Error("it has another machine")
	}

	// A clock that has stood still has it begin anew, as a later one. It ends with the leadership, and what waits is told.
	r.desk.jumps++
	say("e")
	ls.expect(t, "end")
	e.then.ReadOK = []order.ReadPoint{{Ref: e.reads[3], Index: 1}}
	r.step(order.Timer{})
	ls.expect(t, "begin 458753", "receive e")
	// What the earlier one has proposed is executed before the later one begins, and the earlier one disturbs it no more.
	before := ls.last.desk
	e.cmds, e.refs = nil, nil
	if !before.Propose(8, []byte("late")) {
		t.Fatal("refused")
	}
	s.propose()
	before.jumps++
	say("h")
	ls.expect(t, "end")
	asked := len(e.reads)
	e.then.ReadOK = []order.ReadPoint{{Ref: e.reads[asked-1], Index: 1}}
	r.step(order.Timer{})
	ls.expect(t) // the entry is under way
	if before.Confirm(); len(e.reads) != asked || before.Propose(9, []byte("x")) {
		t.Error("it asks and proposes, though it has ended")
	}
	e.order(r, 1)
	ls.expect(t, "begin 458754", "receive h")
	e.lead(r, false)
	say("f")
	ls.expect(t, "end", "decline 1")
	e.lead(r, true) // its machine has something: a leader begins unasked
	say("g")
	e.lead(r, false)
	ls.expect(t, "decline 1")
}
