package session

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/replicagroup/order"
)

// tape is a machine that writes down what happens to it and answers with how much there is.
type tape struct {
	lines    []string
	deadline time.Duration // 0 is none
	answer   []byte        // instead of the length
	echo     bool          // emit what comes in
}

func (m *tape) note(format string, args ...any) {
	m.lines = append(m.lines, fmt.Sprintf(format, args...))
}

func (m *tape) Apply(c Context, data []byte) []byte {
	m.note("apply %s by %v from %v at %v", data, c.Client, c.Author, c.Now)
	if m.echo {
		c.Emit(c.Client, data)
		c.Emit(order.ClientID{99}, data)
	}
	if m.answer != nil {
		return m.answer
	}
	return fmt.Appendf(nil, "%d", len(m.lines))
}
func (m *tape) Query(c Context, data []byte) []byte { return fmt.Appendf(nil, "%s at %v", data, c.Now) }
func (m *tape) Tick(c Context)                      { m.note("tick at %v", c.Now); m.deadline = 0 }
func (m *tape) SessionEnded(c Context, client order.ClientID) {
	m.note("ended %v at %v", client, c.Now)
}
func (m *tape) Deadline() (time.Duration, bool) { return m.deadline, m.deadline > 0 }
func (m *tape) Resend(c Context)                { c.Emit(order.ClientID{1}, []byte("again")) }
func (m *tape) Snapshot() []byte                { return []byte(strings.Join(m.lines, "\n")) }
func (m *tape) Restore(b []byte) error {
	if bytes.Contains(b, []byte("poison")) {
		return errors.New("poisoned")
	}
	m.lines = nil
	if len(b) > 0 {
		m.lines = strings.Split(string(b), "\n")
	}
	return nil
}

// group is a table with a log and a leader's clock.
type group struct {
	t     testing.TB
	table *Table
	tape  *tape
	index uint64
	stamp order.Stamp
	out   Outputs
}

func newGroup(t testing.TB) *group {
	m := new(tape)
	return &group{t: t, tape: m, table: NewTable(0, map[string]Machine{"tape": m}), stamp: order.Stamp{Boot: 1}}
}

var (
	alice = order.ClientID{1}
	bob   = order.ClientID{2}
	peerA = keyspace.NodeID{0xa}
	peerB = keyspace.NodeID{0xb}
)

func (g *group) apply(c order.Command) Result {
	g.index++
	return g.table.Apply(order.Entry{Index: g.index, View: 1, Kind: order.Normal, Stamp: g.stamp, Cmd: c}, &g.out)
}

func (g *group) do(client order.ClientID, seq, acked uint64, data string) Result {
	return g.apply(order.Command{Client: client, Author: peerA, Seq: seq, Acked: acked, Service: "tape", Data: []byte(data)})
}

func (g *group) session(client order.ClientID, peer keyspace.NodeID, data []byte) Status {
	return g.apply(order.Command{Client: client, Author: peer, Service: Service, Data: data}).Status
}

func (g *group) open(client order.ClientID) {
	g.t.Helper()
	if s := g.session(client, peerA, OpenData(time.Second)); s != OK {
		g.t.Fatalf("open %v: %v", client, s)
	}
}

// pass lets the leader's clock go on and commits a tick.
func (g *group) pass(d time.Duration) {
	g.stamp.At += d
	g.apply(order.Command{Service: TickService})
}

func (g *group) want(got Result, status Status, data string) {
	g.t.Helper()
	if got.Status != status || string(got.Data) != data {
		g.t.Errorf("got %v %q, want %v %q", got.Status, got.Data, status, data)
	}
}

func TestRepeatGetsTheStoredResultAndDoesNotRunAgain(t *testing.T) {
	g := newGroup(t)
	g.open(alice)
	g.want(g.do(alice, 1, 0, "x"), OK, "1")
	g.want(g.do(alice, 3, 0, "z"), OK, "2") // commands of one session may overtake each other
	g.want(g.do(alice, 1, 0, "x"), OK, "1")
	g.want(g.do(alice, 2, 1, "y"), OK, "3")
	g.want(g.do(alice, 3, 1, "z"), OK, "2")
	g.want(g.do(alice, 1, 0, "x"), Stale, "")
	g.want(g.do(alice, 0, 0, "x"), Stale, "")
	g.want(g.do(alice, 9, 9, "x"), Stale, "")
	if len(g.tape.lines) != 3 {
		t.Errorf("ran %q", g.tape.lines)
	}
}

func TestWindowIsCountedFromWhatIsAcknowledged(t *testing.T) {
	g := newGroup(t)
	g.open(alice)
	g.want(g.do(alice, WindowSize, 0, "x"), OK, "1")
	g.want(g.do(alice, WindowSize+1, 0, "x"), Window, "")
	g.want(g.do(alice, math.MaxUint64, 0, "x"), Window, "")
	g.want(g.do(alice, WindowSize+1, 1, "x"), OK, "2")
	g.want(g.do(alice, WindowSize+2, 0, "x"), Window, "") // an acknowledgement is never taken back
	g.want(g.do(alice, math.MaxUint64, math.MaxUint64-1, "x"), OK, "3")
}

func TestCommandsWithoutTheirSessionAreNeverRun(t *testing.T) {
	g := newGroup(t)
	g.want(g.do(alice, 1, 0, "x"), Session, "")
	g.open(alice)
	g.want(g.apply(order.Command{Client: alice, Author: peerB, Seq: 1, Service: "tape"}), Refused, "")
	g.want(g.apply(order.Command{Client: alice, Author: peerA, Seq: 1, Service: TickService}), Refused, "")
	if s := g.session(alice, peerB, OpenData(time.Second)); s != Refused {
		t.Errorf("another peer opens the same session: %v", s)
	}
	if s := g.session(alice, peerB, CloseData()); s != Refused {
		t.Errorf("another peer closes it: %v", s)
	}
	if r := g.apply(order.Command{Author: peerA, Seq: 1, Service: "tape"}); r.Status != OK || r.Data != nil || r.Seq != 0 {
		t.Errorf("no client: %+v", r)
	}
	for _, data := range [][]byte{nil, {0}, {opOpen}, {opClose, 0}, make([]byte, 9), {opKeepAlive, 1}} {
		if s := g.session(alice, peerA, data); s != Refused {
			t.Errorf("session command %x: %v", data, s)
		}
	}
	g.want(g.apply(order.Command{Client: alice, Author: peerA, Seq: 2, Service: "nobody"}), UnknownService, "")
	if len(g.tape.lines) != 0 {
		t.Errorf("ran %q", g.tape.lines)
	}
}

func TestSessionLivesByItsOwnCommandsAndEndsOnTime(t *testing.T) {
	g := newGroup(t)
	g.pass(0)
	g.open(alice)
	g.open(bob)
	g.pass(600 * time.Millisecond)
	g.do(alice, 1, 0, "x")
	if s := g.session(bob, peerB, KeepAliveData()); s != Refused {
		t.Errorf("another peer keeps it alive: %v", s)
	}
	g.pass(399 * time.Millisecond)
	if n := g.table.Sessions(); n != 2 {
		t.Fatalf("%d sessions a millisecond before the end of one", n)
	}
	g.pass(time.Millisecond)
	if n := g.table.Sessions(); n != 1 {
		t.Fatalf("%d sessions at the end of one", n)
	}
	if d, ok := g.table.Deadline(); !ok || d != 1600*time.Millisecond {
		t.Errorf("deadline %v %v", d, ok)
	}
	g.stamp.At += 600 * time.Millisecond
	g.want(g.do(alice, 2, 0, "too late"), Session, "") // the entry that ends a session does not run in it
	if got := g.tape.lines[len(g.tape.lines)-1]; got != "ended 01000000 at 1.6s" {
		t.Errorf("last line %q", got)
	}
}

func TestLateOpenDoesNotReviveASession(t *testing.T) {
	g := newGroup(t)
	g.pass(0)
	g.open(alice)
	g.do(alice, 1, 0, "x")
	if s := g.session(alice, peerA, CloseData()); s != OK {
		t.Fatalf("close: %v", s)
	}
	for _, data := range [][]byte{OpenData(time.Second), KeepAliveData(), CloseData()} {
		if s := g.session(alice, peerA, data); s != Session {
			t.Errorf("after the end, command %x: %v", data, s)
		}
	}
	g.want(g.do(alice, 1, 0, "x"), Session, "")
	// The memory of ended sessions is bounded: the oldest is forgotten first.
	for i := range EndedMax {
		id := order.ClientID{7, byte(i), byte(i >> 8)}
		g.open(id)
		g.session(id, peerA, CloseData())
	}
	if s := g.session(alice, peerA, OpenData(time.Second)); s != OK {
		t.Errorf("open after %d other ends: %v", EndedMax, s)
	}
	if s := g.session(order.ClientID{7}, peerA, OpenData(time.Second)); s != Session {
		t.Errorf("open of the oldest remembered: %v", s)
	}
}

func TestSessionsEndByDeadlineThenID(t *testing.T) {
	g := newGroup(t)
	g.pass(0)
	for _, id := range []byte{3, 1, 2} {
		g.open(order.ClientID{id})
	}
	g.session(order.ClientID{4}, peerA, OpenData(500*time.Millisecond))
	g.tape.deadline = time.Second
	g.pass(time.Minute)
	want := []string{"ended 04000000 at 1m0s", "ended 01000000 at 1m0s", "ended 02000000 at 1m0s", "ended 03000000 at 1m0s", "tick at 1m0s"}
	if fmt.Sprint(g.tape.lines) != fmt.Sprint(want) {
		t.Errorf("got %q", g.tape.lines)
	}
}

func TestLogTimeIsTheLeadersOwnProgress(t *testing.T) {
	table := NewTable(0, nil)
	for i, s := range []struct {
		boot uint64
		at   time.Duration
		now  time.Duration
	}{
		{1, time.Hour, 0},                 // the first stamp is a reference
		{1, time.Hour + 5, 5},             //
		{1, time.Hour + 3, 5},             // back: nothing, and the highest stays the reference
		{1, time.Hour + 6, 6},             //
		{0, 2 * time.Hour, 6},             // no stamp
		{2, time.Second, 6},               // another clock
		{2, time.Second + 4, 10},          //
		{1, 2 * time.Hour, 10},            // the former leader again: what passed in between does not count
		{1, 2*time.Hour + 1, 11},          //
		{3, 0, 11},                        //
		{3, math.MaxInt64, math.MaxInt64}, // it ends, and does not wrap
		{4, 0, math.MaxInt64},             //
		{4, math.MaxInt64, math.MaxInt64}, //
	} {
		table.Apply(order.Entry{Index: uint64(i + 1), Kind: order.Normal, Stamp: order.Stamp{Boot: s.boot, At: s.at}}, new(Outputs))
		if table.Now() != s.now {
			t.Errorf("stamp %d (%d, %v): log time %v, want %v", i, s.boot, s.at, table.Now(), s.now)
		}
	}
}

func TestNextTickWaitsForTheDeadlineByTheLeadersClock(t *testing.T) {
	g := newGroup(t)
	if _, ok := g.table.NextTick(g.stamp); ok {
		t.Error("something to wait for in an empty table")
	}
	g.stamp.At = time.Hour
	g.pass(0)
	g.open(alice)
	now := g.stamp
	for _, c := range []struct{ passed, want time.Duration }{{0, time.Second}, {300 * time.Millisecond, 700 * time.Millisecond}, {2 * time.Second, 0}, {-time.Second, time.Second}} {
		s := now
		s.At += c.passed
		if got, ok := g.table.NextTick(s); !ok || got != c.want {
			t.Errorf("%v after the last stamp: wait %v (%v), want %v", c.passed, got, ok, c.want)
		}
	}
	if got, ok := g.table.NextTick(order.Stamp{Boot: 2, At: 5}); !ok || got != 0 {
		t.Errorf("a clock the log does not know: wait %v (%v), want none", got, ok)
	}
}

func TestLimitsHoldAtTheirEdge(t *testing.T) {
	for _, c := range []struct {
		ttl  time.Duration
		want Status
	}{{TTLMin, OK}, {TTLMin - 1, Limit}, {TTLMax, OK}, {TTLMax + 1, Limit}, {-1, Limit}, {0, Limit}} {
		if s := newGroup(t).session(alice, peerA, OpenData(c.ttl)); s != c.want {
			t.Errorf("TTL %v: %v, want %v", c.ttl, s, c.want)
		}
	}
	g := newGroup(t)
	for i := range SessionsMax {
		var id order.ClientID
		binary.BigEndian.PutUint32(id[:], uint32(i+1))
		peer := keyspace.NodeID{1, byte(i / SessionsPerPeerMax)}
		if s := g.session(id, peer, OpenData(time.Second)); s != OK {
			t.Fatalf("session %d: %v", i, s)
		}
		if i == SessionsPerPeerMax-1 {
			open := order.Command{Client: bob, Author: peer, Service: Service, Data: OpenData(time.Second)}
			if !g.table.Refuses(open) {
				t.Error("one more of a peer need not be ordered, and the table does not say so")
			}
			if s := g.session(bob, peer, OpenData(time.Second)); s != Limit {
				t.Errorf("one more of a peer: %v", s)
			}
			again, keep, others := open, open, open
			again.Client, keep.Data, others.Author = id, KeepAliveData(), peerB
			if g.table.Refuses(again) || g.table.Refuses(keep) || g.table.Refuses(others) {
				t.Error("what must be ordered is refused: an open session's commands, or another peer's")
			}
		}
	}
	if s := g.session(bob, peerB, OpenData(time.Second)); s != Limit {
		t.Errorf("one more of all: %v", s)
	}
	other := NewTable(0, map[string]Machine{"tape": new(tape)})
	if err := other.Restore(g.table.Snapshot()); err != nil {
		t.Errorf("a full table does not restore: %v", err)
	}
	g.session(order.ClientID{0, 0, 0, 1}, keyspace.NodeID{1, 0}, CloseData())
	if s := g.session(bob, peerB, OpenData(time.Second)); s != OK {
		t.Errorf("after one has ended: %v", s)
	}
}

func TestResultsAreBounded(t *testing.T) {
	g := newGroup(t)
	g.open(alice)
	g.tape.answer = make([]byte, ResultBytesMax+1)
	g.want(g.do(alice, 1, 0, "x"), TooLarge, "")
	g.want(g.do(alice, 1, 0, "x"), TooLarge, "") // it ran: it does not run again
	g.tape.answer = make([]byte, ResultBytesMax)
	for seq := uint64(2); seq < 2+ResultsBytesMax/ResultBytesMax; seq++ {
		if r := g.do(alice, seq, 1, "x"); r.Status != OK || len(r.Data) != ResultBytesMax {
			t.Fatalf("command %d: %v", seq, r.Status)
		}
	}
	g.want(g.do(alice, 6, 1, "x"), Window, "")
	g.tape.answer = []byte{}
	g.want(g.do(alice, 6, 2, "x"), OK, "")
	if n := len(g.tape.lines); n != 6 {
		t.Errorf("%d commands ran", n)
	}
}

func TestOutputsGoToTheSessionsPeer(t *testing.T) {
	g := newGroup(t)
	g.open(alice)
	g.tape.echo = true
	g.do(alice, 1, 0, "hello")
	want := Output{Peer: peerA, Client: alice, Service: "tape", Data: []byte("hello")}
	if len(g.out.List) != 1 || fmt.Sprint(g.out.List[0]) != fmt.Sprint(want) {
		t.Errorf("got %v", g.out.List)
	}
	g.out.Reset()
	g.table.Resend(&g.out)
	if len(g.out.List) != 1 || string(g.out.List[0].Data) != "again" {
		t.Errorf("resent %v", g.out.List)
	}
}

func TestQueryReadsThePresent(t *testing.T) {
	g := newGroup(t)
	g.pass(0)
	g.pass(time.Second)
	if s, d := g.table.Query("tape", peerA, []byte("what")); s != OK || string(d) != "what at 1s" {
		t.Errorf("got %v %q", s, d)
	}
	if s, _ := g.table.Query("nobody", peerA, nil); s != UnknownService {
		t.Errorf("unknown service: %v", s)
	}
}

func TestReservedNamesAreRefused(t *testing.T) {
	for _, name := range []string{Service, TickService, "", strings.Repeat("x", order.ServiceBytesMax+1)} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("service %q accepted", name)
				}
			}()
			NewTable(0, map[string]Machine{name: new(tape)})
		}()
	}
}

// drawEntry draws an entry that has a fair chance to do something.
func drawEntry(t *rapid.T, index uint64) order.Entry {
	e := order.Entry{Index: index, Kind: order.Normal}
	if rapid.IntRange(0, 19).Draw(t, "noop") == 0 {
		e.Kind = order.Noop
		return e
	}
	e.Stamp = order.Stamp{Boot: rapid.Uint64Range(0, 2).Draw(t, "boot"), At: time.Duration(rapid.IntRange(0, 3000).Draw(t, "at")) * time.Millisecond}
	e.Cmd = order.Command{
		Client: order.ClientID{rapid.Byte().Draw(t, "client") % 4}, Author: keyspace.NodeID{rapid.Byte().Draw(t, "peer") % 2},
		Seq: rapid.Uint64Range(0, 8).Draw(t, "seq"), Acked: rapid.Uint64Range(0, 4).Draw(t, "acked"),
		Service: rapid.SampledFrom([]string{"tape", "tape", "nobody", Service, Service, TickService}).Draw(t, "service"),
		Data:    []byte("x"),
	}
	if e.Cmd.Service == Service {
		e.Cmd.Data = rapid.SampledFrom([][]byte{OpenData(time.Second), OpenData(TTLMin), KeepAliveData(), CloseData(), {9}}).Draw(t, "op")
	}
	return e
}

// TestRestoredTableIsTheSameTable: a replica that starts from a snapshot goes on like one that executed everything.
func TestRestoredTableIsTheSameTable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		machine := func() *Table {
			return NewTable(automaton.DriftDefault, map[string]Machine{"tape": new(tape), "other": new(tape)})
		}
		a, b := machine(), machine()
		n := rapid.IntRange(1, 60).Draw(t, "entries")
		at := rapid.IntRange(0, n).Draw(t, "snapshot")
		for i := range n {
			if i == at {
				if err := b.Restore(a.Snapshot()); err != nil {
					t.Fatalf("restore: %v", err)
				}
			}
			e := drawEntry(t, uint64(i+1))
			var outA, outB Outputs
			ra := a.Apply(e, &outA)
			if i >= at {
				if rb := b.Apply(e, &outB); fmt.Sprint(ra, outA) != fmt.Sprint(rb, outB) {
					t.Fatalf("entry %+v: %+v %+v, restored %+v %+v", e, ra, outA, rb, outB)
				}
				if a.Digest() != b.Digest() {
					t.Fatalf("entry %+v: states differ", e)
				}
			}
			if err := a.check(); err != nil {
				t.Fatalf("after %+v: %v", e, err)
			}
		}
	})
}

func TestRestoreRefusesWhatNoTableWrites(t *testing.T) {
	g := newGroup(t)
	g.pass(0)
	g.open(alice)
	g.open(bob)
	g.do(alice, 1, 0, "x")
	g.session(bob, peerA, CloseData())
	good := g.table.Snapshot()
	fresh := func(names ...string) *Table {
		m := make(map[string]Machine)
		for _, n := range names {
			m[n] = new(tape)
		}
		return NewTable(0, m)
	}
	if err := fresh("tape").Restore(good); err != nil {
		t.Fatalf("the good one: %v", err)
	}
	for i := range good {
		if err := fresh("tape").Restore(good[:i]); !errors.Is(err, ErrMalformed) {
			t.Errorf("%d of %d bytes: %v", i, len(good), err)
		}
	}
	if err := fresh("tape").Restore(append(bytes.Clone(good), 0)); !errors.Is(err, ErrMalformed) {
		t.Errorf("a byte more: %v", err)
	}
	if err := fresh("rope", "tape", "zebra").Restore(good); err != nil {
		t.Errorf("a table with services that nobody had used: %v", err)
	}
	for _, names := range [][]string{{}, {"rope"}} {
		if err := fresh(names...).Restore(good); !errors.Is(err, ErrMalformed) {
			t.Errorf("services %q: %v", names, err)
		}
	}
	for name, spoil := range map[string]func(*Table, *entry){
		"result outside the window": func(_ *Table, s *entry) { s.results[s.acked+WindowSize+1] = stored{} },
		"result acknowledged":       func(_ *Table, s *entry) { s.acked = 1 },
		"unknown status":            func(_ *Table, s *entry) { s.results[2] = stored{status: statusEnd} },
		"result too long":           func(_ *Table, s *entry) { s.results[2] = stored{data: make([]byte, ResultBytesMax+1)} },
		"TTL too long":              func(_ *Table, s *entry) { s.ttl = TTLMax + 1 },
		"time below zero":           func(_ *Table, s *entry) { s.ends = -1 },
		"an open session has ended": func(t *Table, s *entry) { t.ended = append(t.ended, s.id) },
		"a session has ended twice": func(t *Table, _ *entry) { t.ended = append(t.ended, bob) },
		"a session of no client":    func(t *Table, s *entry) { t.sessions[order.ClientID{}] = s },
		"too many sessions have ended": func(t *Table, _ *entry) {
			for i := range EndedMax {
				t.ended = append(t.ended, order.ClientID{7, byte(i), byte(i >> 8)})
			}
		},
		"too many results of one session": func(_ *Table, s *entry) {
			for seq := range uint64(6) {
				s.results[seq+2] = stored{data: make([]byte, ResultBytesMax)}
			}
		},
	} {
		bad := fresh("tape")
		if err := bad.Restore(good); err != nil {
			t.Fatal(err)
		}
		spoil(bad, bad.sessions[alice])
		if err := fresh("tape").Restore(bad.Snapshot()); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	g.do(alice, 2, 0, "poison")
	if err := fresh("tape").Restore(g.table.Snapshot()); err == nil || errors.Is(err, ErrMalformed) {
		t.Errorf("a machine's refusal: %v", err)
	}
}

func FuzzDecodeSnapshot(f *testing.F) {
	g := newGroup(f)
	g.pass(0)
	f.Add(g.table.Snapshot())
	g.open(alice)
	g.open(bob)
	g.do(alice, 1, 0, "x")
	g.do(alice, 3, 1, "y")
	g.session(bob, peerA, CloseData())
	f.Add(g.table.Snapshot())
	f.Fuzz(func(t *testing.T, b []byte) {
		table := NewTable(0, map[string]Machine{"tape": new(tape)})
		if table.Restore(b) != nil {
			return
		}
		if err := table.check(); err != nil {
			t.Errorf("accepted %x: %v", b, err)
		}
		if again := table.Snapshot(); !bytes.Equal(again, b) {
			t.Errorf("%x encodes again to %x", b, again)
		}
	})
}

func FuzzDecodeSessionCommand(f *testing.F) {
	for _, b := range [][]byte{OpenData(time.Second), KeepAliveData(), CloseData(), nil} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		op, ttl, err := decodeSessionData(b)
		if err != nil {
			return
		}
		again := map[byte][]byte{opOpen: OpenData(ttl), opKeepAlive: KeepAliveData(), opClose: CloseData()}[op]
		if !bytes.Equal(again, b) {
			t.Errorf("%x encodes again to %x", b, again)
		}
	})
}

func BenchmarkApply(b *testing.B) {
	g := newGroup(b)
	g.tape.answer = []byte("ok")
	g.open(alice)
	b.ReportAllocs()
	for seq := uint64(1); b.Loop(); seq++ {
		g.do(alice, seq, seq-1, "x")
		g.tape.lines = g.tape.lines[:0]
	}
}

func BenchmarkSnapshot(b *testing.B) {
	g := newGroup(b)
	for i := range 1000 {
		id := order.ClientID{1, byte(i), byte(i >> 8)}
		g.session(id, keyspace.NodeID{byte(i)}, OpenData(time.Second))
	}
	b.ReportAllocs()
	for b.Loop() {
		g.table.Snapshot()
	}
}

// insider notes what its group tells it.
type insider struct {
	Machine
	heard []string
}

func (m *insider) FirstView(v order.View) { m.heard = append(m.heard, fmt.Sprintf("first %d", v.Num)) }
func (m *insider) NextView(_ Context, v order.View) {
	m.heard = append(m.heard, fmt.Sprintf("next %d", v.Num))
}
func (m *insider) ApplyOwn(c Context, data []byte) {
	m.heard = append(m.heard, fmt.Sprintf("%s of %d at %d", data, c.Author[0], c.Index))
}
func (m *insider) Deadline() (at time.Duration, ok bool) { return 0, false }

func TestAnInsiderHearsOfViewsAndOfItsGroupsCommands(t *testing.T) {
	m := new(insider)
	table := NewTable(0, map[string]Machine{"in": m})
	table.FirstView(order.View{Num: 3})
	own := order.Command{Author: keyspace.NodeID{7}, Service: "in", Data: []byte("own")}
	for i, e := range []order.Entry{
		{Kind: order.Noop}, {Kind: order.ViewChange, Change: &order.View{Num: 4}}, {Kind: order.Normal, Cmd: own},
		{Kind: order.Normal, Cmd: order.Command{Service: TickService}}, {Kind: order.Normal, Cmd: order.Command{Service: "other", Data: []byte("x")}},
	} {
		e.Index = uint64(i + 1)
		if res := table.Apply(e, new(Outputs)); res.Data != nil || res.Client != (order.ClientID{}) {
			t.Errorf("entry %d has a result: %+v", e.Index, res)
		}
	}
	if want := []string{"first 3", "next 4", "own of 7 at 3"}; !slices.Equal(m.heard, want) {
		t.Errorf("heard %q, want %q", m.heard, want)
	}
	status, b := table.Query(IndexService, keyspace.NodeID{}, nil)
	if i, ok := DecodeIndex(b); status != OK || !ok || i != 5 {
		t.Errorf("at %d (%v), %v", i, ok, status)
	}
	if _, ok := DecodeIndex(b[:7]); ok {
		t.Error("half an index was read")
	}
}
