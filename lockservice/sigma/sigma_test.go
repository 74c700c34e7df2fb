package sigma

import (
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
)

// desk is a small world driven by hand: replicas, clients, one clock, and every message on its way in a list.
type desk struct {
	t     testing.TB
	now   automaton.Instant
	log   LogState
	reps  map[keyspace.NodeID]*Replica
	cls   map[keyspace.NodeID]*Client
	inbox []letter
	acts  map[keyspace.NodeID][]Action // what is no message, newest last
	lost  func(letter) bool
}

type letter struct {
	from, to keyspace.NodeID
	msg      Message
}

func id(b byte) keyspace.NodeID { return keyspace.NodeID{b} }

func ids(bs ...byte) (ms []keyspace.NodeID) {
	for _, b := range bs {
		ms = append(ms, id(b))
	}
	return ms
}

const deskTTL = 3 * time.Second

func newDesk(t testing.TB, members ...byte) *desk {
	d := &desk{
		t: t, now: 1, reps: make(map[keyspace.NodeID]*Replica), cls: make(map[keyspace.NodeID]*Client), acts: make(map[keyspace.NodeID][]Action),
		log: LogState{Descriptor: Descriptor{View: ViewID{1, 1}, Members: ids(members...)}, Base: 100, Ceil: 100 + Block, Cap: CapFor(deskTTL)},
	}
	for _, b := range members {
		d.replica(b, ReplicaConfig{})
	}
	return d
}

func (d *desk) replica(b byte, cfg ReplicaConfig) *Replica {
	cfg.Self, cfg.TTLMin, cfg.TTLMax, cfg.Drift = id(b), time.Millisecond, 20*time.Second, automaton.DriftDefault
	cfg.Inc = max(cfg.Inc, 1)
	d.reps[id(b)] = NewReplica(cfg, d.log)
	return d.reps[id(b)]
}

func (d *desk) client(b byte, cfg ClientConfig) *Client {
	if cfg.TTL == 0 {
		cfg.TTL = deskTTL
	}
	cfg.Name, cfg.Req, cfg.Drift = "n", Req{Session{b}, max(cfg.Req.Seq, 1)}, automaton.DriftDefault
	if cfg.View.Members == nil {
		cfg.View = d.log.Descriptor
	}
	d.cls[id(b)] = NewClient(cfg)
	return d.cls[id(b)]
}

func (d *desk) step(n keyspace.NodeID, ev Event) {
	ev.Now = d.now
	var out []Action
	if r := d.reps[n]; r != nil {
		out = r.Step(ev, nil)
		if err := r.Check(); err != nil {
			d.t.Fatalf("replica %x: %v", n[:1], err)
		}
	} else if c := d.cls[n]; c != nil {
		out = c.Step(ev, nil)
	}
	for _, a := range out {
		if a.Kind == Send {
			if l := (letter{n, a.To, a.Msg}); d.lost == nil || !d.lost(l) {
				d.inbox = append(d.inbox, l)
			}
		} else {
			d.acts[n] = append(d.acts[n], a)
		}
	}
}

func (d *desk) begin(b byte)    { d.step(id(b), Event{Kind: Begin}) }
func (d *desk) giveBack(b byte) { d.step(id(b), Event{Kind: GiveBack}) }

// deliver delivers everything, and what that brings, in order.
func (d *desk) deliver() {
	for n := 0; len(d.inbox) > 0; n++ {
		if n > 10_000 {
			d.t.Fatalf("messages without end: %+v", d.inbox[0])
		}
		l := d.inbox[0]
		d.inbox = d.inbox[1:]
		d.step(l.to, Event{Kind: Receive, From: l.from, Msg: &l.msg})
	}
}

// pass lets time pass: everybody's timer is tried at the end.
func (d *desk) pass(t time.Duration) {
	d.now = d.now.Add(t)
	for b := range byte(255) {
		d.step(id(b), Event{Kind: Timer})
	}
}

func (d *desk) apply(e Entry, bs ...byte) {
	if next, did := d.log.Apply(e); did {
		d.log = next
	}
	next := d.log
	for _, b := range bs {
		d.step(id(b), Event{Kind: Applied, State: &next})
	}
}

func (d *desk) saw(b byte, k ActionKind) *Action {
	for i := len(d.acts[id(b)]) - 1; i >= 0; i-- {
		if a := &d.acts[id(b)][i]; a.Kind == k {
			return a
		}
	}
	return nil
}

func (d *desk) want(b byte, s ClientState) {
	d.t.Helper()
	if c := d.cls[id(b)]; c.state != s {
		d.t.Errorf("client %d is %v, want %v", b, c.state, s)
	}
}

func TestAFreeLockIsHeldAfterOneRoundTrip(t *testing.T) {
	d := newDesk(t, 1, 2, 3)
	c := d.client(10, ClientConfig{})
	d.begin(10)
	if len(d.inbox) != 3 {
		t.Fatalf("%d messages, want one to each replica", len(d.inbox))
	}
	d.now = d.now.Add(50 * time.Millisecond)
	d.deliver()
	d.want(10, ClientHeld)
	if c.Token() != 101 || c.Deadline() != automaton.Instant(1).Add(automaton.DriftDefault.Shrink(deskTTL)) {
		t.Errorf("token %d until %v", c.Token(), c.Deadline())
	}
	d.giveBack(10)
	d.deliver()
	d.client(11, ClientConfig{})
	d.begin(11)
	d.deliver()
	d.want(11, ClientHeld)
	if tok := d.cls[id(11)].Token(); tok != 102 {
		t.Errorf("the next token is %d", tok)
	}
}

func TestTheOldestRequestWins(t *testing.T) {
	for _, y1 := range []bool{false, true} {
		d := newDesk(t, 1, 2, 3)
		for b := byte(10); b < 13; b++ {
			d.client(b, ClientConfig{Y1: y1})
			d.begin(b)
		}
		// Each replica hears another client first.
		var mixed []letter
		for i := range 3 {
			for j := range 3 {
				mixed = append(mixed, d.inbox[3*((i+j)%3)+i])
			}
		}
		d.inbox = mixed
		d.deliver()
		d.want(10, ClientHeld)
		for b := byte(10); b < 12; b++ {
			d.giveBack(b)
			d.deliver()
			d.want(b+1, ClientHeld)
		}
	}
}

func TestALostYieldIsRepeated(t *testing.T) {
	for _, m := range []mutant{mutantNone, mutantYieldOnce} {
		d := newDesk(t, 1, 2, 3)
		d.client(10, ClientConfig{mutant: m})
		d.client(11, ClientConfig{mutant: m})
		d.lost = func(l letter) bool { return l.msg.Kind == Yield || l.to == id(3) }
		d.begin(10)
		d.begin(11)
		in := d.inbox
		d.inbox = []letter{in[0], in[3], in[2], in[1]} // each has one replica
		if len(in) != 4 {
			t.Fatal(len(in))
		}
		d.deliver()
		d.lost = func(l letter) bool { return l.to == id(3) }
		for range 20 {
			d.pass(time.Second)
			d.deliver()
		}
		if held := d.saw(10, Acquired) != nil; held != (m == mutantNone) {
			t.Errorf("%v: the older client held: %v", m, held)
		}
	}
}

func TestALateInstallDoesNotRaiseAnother(t *testing.T) {
	for _, m := range []mutant{mutantNone, mutantAnyInstall} {
		d := newDesk(t, 1)
		r := d.replica(1, ReplicaConfig{mutant: m})
		ask := func(b byte, mm Message) {
			mm.View, mm.Name, mm.TTL = d.log.View, "n", deskTTL
			mm.Req = Req{Session{b}, 1}
			d.step(id(1), Event{Kind: Receive, From: id(b), Msg: &mm})
		}
		ask(10, Message{Kind: Request, ReqTS: 1})
		gid := r.locks["n"].gid
		ask(10, Message{Kind: Release})
		ask(11, Message{Kind: Request, ReqTS: 2})
		ask(10, Message{Kind: Install, GID: gid, Tok: 150})
		if raised := r.locks["n"].prop == 150; raised != (m == mutantAnyInstall) {
			t.Errorf("%v: offered %d", m, r.locks["n"].prop)
		}
	}
}

// TestLongerLeasesWaitForTheLog is 10.2: a voter grants or renews no lease longer than the cap it has applied.
func TestLongerLeasesWaitForTheLog(t *testing.T) {
	for _, m := range []mutant{mutantNone, mutantNoCap} {
		d := newDesk(t, 1, 2, 3)
		for b := byte(1); b < 4; b++ {
			d.replica(b, ReplicaConfig{mutant: m})
		}
		d.client(10, ClientConfig{TTL: 10 * time.Second})
		d.begin(10)
		d.deliver()
		if m == mutantNoCap {
			d.want(10, ClientHeld)
			continue
		}
		d.want(10, ClientWaiting)
		a := d.saw(1, Propose)
		if a == nil || a.Entry.Kind != EntryRaiseTTL || a.Entry.Cap < 10*time.Second {
			t.Fatalf("asked the log for %+v", a)
		}
		d.client(11, ClientConfig{}) // a short one does not wait for the log
		d.begin(11)
		d.deliver()
		d.want(11, ClientHeld)
		d.giveBack(11)
		d.deliver()
		d.apply(a.Entry, 1, 2, 3)
		d.deliver()
		d.want(10, ClientHeld)
	}
}

func TestAHolderLivesThroughAViewChange(t *testing.T) {
	d := newDesk(t, 1, 2, 3)
	c := d.client(10, ClientConfig{})
	d.client(11, ClientConfig{})
	d.begin(10)
	d.deliver()
	d.begin(11)
	d.deliver()
	d.replica(4, ReplicaConfig{})
	d.replica(5, ReplicaConfig{})
	tok := c.Token()
	for _, next := range [][]byte{{1, 2, 4}, {1, 2, 4}, {3, 4, 5}, {1}} {
		d.apply(Entry{Kind: EntryView, From: d.log.View, Members: ids(next...)}, 1, 2, 3, 4, 5)
		d.deliver()
		d.now = d.now.Add(deskTTL / 5)
		d.pass(time.Millisecond)
		d.deliver()
		d.want(10, ClientHeld)
		d.want(11, ClientWaiting)
		if c.view.View != d.log.View || c.Token() != tok {
			t.Fatalf("view %v of %v, token %d of %d", c.view.View, d.log.View, c.Token(), tok)
		}
	}
	d.giveBack(10)
	d.deliver()
	d.want(11, ClientHeld)
	if n := d.cls[id(11)].Token(); n <= d.log.Base {
		t.Errorf("token %d is not of this view, above %d", n, d.log.Base)
	}
}

// TestAClaimDoesNotOverruleARival is S6; it replays the schedule in which a claim that overrules a silent rival makes two holders.
func TestAClaimDoesNotOverruleARival(t *testing.T) {
	for _, m := range []mutant{mutantNone, mutantClaimOverrules} {
		d := newDesk(t, 1, 2, 3)
		for b := byte(1); b < 4; b++ {
			d.replica(b, ReplicaConfig{mutant: m})
		}
		d.client(10, ClientConfig{})
		d.client(11, ClientConfig{})
		d.begin(10)
		in := d.inbox
		d.inbox = []letter{in[0], in[2]} // X holds through 1 and 3
		d.deliver()
		d.want(10, ClientHeld)
		d.begin(11)
		in = d.inbox
		d.inbox = []letter{in[1]} // Y owns 2
		d.deliver()
		d.lost = func(l letter) bool { return l.to == id(11) || l.from == id(11) } // Y is silent
		d.apply(Entry{Kind: EntryView, From: d.log.View, Members: ids(1)}, 1, 2)   // 3 is late
		d.deliver()
		granted := d.reps[id(1)].locks["n"].owned
		if granted != (m == mutantClaimOverrules) {
			t.Errorf("%v: granted to the claim beside a rival: %v", m, granted)
		}
	}
}

func TestOneReportDoesNotSettle(t *testing.T) {
	for _, m := range []mutant{mutantNone, mutantOneReport} {
		d := newDesk(t, 1, 2, 3)
		for b := byte(1); b < 4; b++ {
			d.replica(b, ReplicaConfig{mutant: m})
		}
		d.apply(Entry{Kind: EntryView, From: d.log.View, Members: ids(1, 2, 3)}, 1)
		d.deliver()
		if r := d.reps[id(1)]; r.Settled() != (m == mutantOneReport) {
			t.Errorf("%v: settled by its own report: %v", m, r.Settled())
		}
	}
}

// TestARestartedReplicaReportsNothing is S2 and S8: an empty table is no table.
func TestARestartedReplicaReportsNothing(t *testing.T) {
	for _, m := range []mutant{mutantNone, mutantEmptyReport} {
		d := newDesk(t, 1, 2, 3)
		d.replica(1, ReplicaConfig{Restarted: true, Inc: 2, mutant: m})
		d.step(id(1), Event{Kind: Barrier})
		d.apply(Entry{Kind: EntryView, From: d.log.View, Members: ids(1, 2, 3)}, 1)
		if got := d.reps[id(1)].frozen.true; got != (m == mutantEmptyReport) {
			t.Errorf("%v: reports: %v", m, got)
		}
	}
}

// TestARestartedReplicaOffersNoOldNumber is 2.3 and S8: what it has offered before it cannot know, so it waits for the log.
func TestARestartedReplicaOffersNoOldNumber(t *testing.T) {
	for _, m := range []mutant{mutantNone, mutantCounterZero} {
		d := newDesk(t, 1)
		d.client(10, ClientConfig{})
		d.begin(10)
		d.deliver()
		tok := d.cls[id(10)].Token()
		delete(d.cls, id(10)) // it dies, and its number with it
		d.replica(1, ReplicaConfig{Restarted: true, Inc: 2, mutant: m})
		d.step(id(1), Event{Kind: Barrier})
		d.pass(10 * time.Second)
		d.client(11, ClientConfig{})
		d.begin(11)
		d.deliver()
		if a := d.saw(1, Propose); m == mutantNone && (a == nil || a.Entry.Kind != EntryRaise) {
			t.Fatalf("asked the log for %+v", a)
		}
		d.apply(Entry{Kind: EntryRaise, From: d.log.View}, 1)
		d.deliver()
		d.want(11, ClientHeld)
		if again := d.cls[id(11)].Token() == tok; again != (m == mutantCounterZero) {
			t.Errorf("%v: token %d after %d", m, d.cls[id(11)].Token(), tok)
		}
	}
}

// TestCandidatesOfReports is S3: all of them, each for the longest of the leases that the reports tell.
func TestCandidatesOfReports(t *testing.T) {
	for _, m := range []mutant{mutantNone, mutantShortestLease, mutantHalfLease, mutantOneCandidate} {
		d := newDesk(t, 1, 2, 3)
		r := d.replica(4, ReplicaConfig{mutant: m})
		d.apply(Entry{Kind: EntryView, From: d.log.View, Members: ids(4)}, 4)
		report := func(from byte, left time.Duration, sessions ...byte) {
			e := ReportEntry{Name: "n"}
			for _, s := range sessions {
				e.Parties = append(e.Parties, ReportParty{Req: Req{Session{s}, 1}, Node: id(s), TTL: deskTTL, Left: left})
			}
			d.step(id(4), Event{Kind: Receive, From: id(from), Msg: &Message{
				Kind: Reported, View: ViewID{1, 1}, Report: &Report{Inc: 1, Chunks: 1, Entries: []ReportEntry{e}},
			}})
		}
		report(1, time.Second, 10)
		report(2, 2*time.Second, 10, 11)
		cs := r.locks["n"].candidates
		right := len(cs) == 2 && cs[0].until == d.now.Add(automaton.DriftDefault.Stretch(2*time.Second))
		if right != (m == mutantNone) {
			t.Errorf("%v: candidates %+v", m, cs)
		}
	}
}

// TestTwoRequestsOfASessionInReports: voters that heard a session at different times name different requests of it. The newer
// one shows that the older is over. Seed 9268 of the simulation kept both.
func TestTwoRequestsOfASessionInReports(t *testing.T) {
	for _, order := range [][2]byte{{1, 2}, {2, 1}} {
		d := newDesk(t, 1, 2, 3)
		r := d.replica(4, ReplicaConfig{})
		d.apply(Entry{Kind: EntryView, From: d.log.View, Members: ids(4)}, 4)
		for _, seq := range order {
			d.step(id(4), Event{Kind: Receive, From: id(seq), Msg: &Message{
				Kind: Reported, View: ViewID{1, 1}, Report: &Report{Inc: 1, Chunks: 1, Entries: []ReportEntry{{
					Name: "n", Parties: []ReportParty{{Req: Req{Session{10}, uint64(seq)}, Node: id(10), TTL: deskTTL, Left: deskTTL}},
				}}},
			}})
		}
		if cs := r.locks["n"].candidates; len(cs) != 1 || cs[0].req.Seq != 2 {
			t.Errorf("candidates %+v", cs)
		}
	}
}

// TestASealedTableIsDead is S2: nothing of the old view is granted or renewed.
func TestASealedTableIsDead(t *testing.T) {
	for _, m := range []mutant{mutantNone, mutantNoSeal} {
		d := newDesk(t, 1, 2, 3)
		r := d.replica(1, ReplicaConfig{mutant: m})
		c := d.client(10, ClientConfig{})
		d.begin(10)
		d.deliver()
		d.apply(Entry{Kind: EntryView, From: d.log.View, Members: ids(1, 2, 3)}, 1)
		exp := r.frozen.locks["n"].exp
		d.now = d.now.Add(deskTTL / 3)
		d.step(id(1), Event{Kind: Receive, From: id(10), Msg: &Message{Kind: Request, View: ViewID{1, 1}, Name: "n", Req: c.cfg.Req, TTL: deskTTL, Tok: c.tok}})
		if renewed := r.frozen.locks["n"].exp > exp; renewed != (m == mutantNoSeal) {
			t.Errorf("%v: renewed in a sealed table: %v", m, renewed)
		}
	}
}

// TestAReplicaBehindItsLogStops is S1.
func TestAReplicaBehindItsLogStops(t *testing.T) {
	for _, m := range []mutant{mutantNone, mutantNoSuspend} {
		d := newDesk(t, 1, 2, 3)
		d.replica(1, ReplicaConfig{mutant: m})
		e := Entry{Kind: EntryView, From: d.log.View, Members: ids(1, 2, 3)}
		d.step(id(1), Event{Kind: Appended, Entry: &e})
		d.pass(SuspendAfter)
		ask := func() int {
			d.inbox = nil
			d.step(id(1), Event{Kind: Receive, From: id(10), Msg: &Message{Kind: Request, View: d.log.View, Name: "n", Req: Req{Session{10}, 1}, TTL: deskTTL}})
			return len(d.inbox)
		}
		if answers := ask(); (answers > 0) != (m == mutantNoSuspend) {
			t.Errorf("%v: %d answers while suspended", m, answers)
		}
		d.step(id(1), Event{Kind: Truncated})
		if ask() == 0 {
			t.Error("no answer after the entry was truncated")
		}
	}
}

func TestWithoutReportsAViewSettlesByTime(t *testing.T) {
	for _, m := range []mutant{mutantNone, mutantNoSettleByTime} {
		d := newDesk(t, 1, 2, 3)
		r := d.replica(1, ReplicaConfig{mutant: m})
		d.apply(Entry{Kind: EntryView, From: d.log.View, Members: ids(1, 2, 3)}, 1)
		wait := automaton.DriftDefault.Stretch(SuspendAfter + d.log.Cap)
		d.pass(wait - 1)
		if r.Settled() {
			t.Error("settled too early")
		}
		d.pass(1)
		if r.Settled() != (m == mutantNone) {
			t.Errorf("%v: settled by time: %v", m, r.Settled())
		}
	}
}

func TestReportsComeInPieces(t *testing.T) {
	d := newDesk(t, 1, 2, 3)
	const names = 20*ReportEntriesMax + 5
	for i := range names {
		for b := byte(1); b < 4; b++ {
			d.step(id(b), Event{Kind: Receive, From: id(10), Msg: &Message{
				Kind: Request, View: d.log.View, Name: fmt.Sprintf("n%05d", i), Req: Req{Session{10}, 1}, TTL: deskTTL,
			}})
		}
	}
	d.inbox = nil
	d.replica(4, ReplicaConfig{})
	d.apply(Entry{Kind: EntryView, From: d.log.View, Members: ids(1, 2, 4)}, 1, 2, 3, 4)
	for _, l := range d.inbox {
		if l.msg.Kind == Reported && len(l.msg.Report.Entries) > ReportEntriesMax {
			t.Fatalf("a piece of %d names", len(l.msg.Report.Entries))
		}
	}
	d.deliver()
	if r := d.reps[id(4)]; !r.Settled() || len(r.locks) != names {
		t.Errorf("settled %v with %d names of %d", r.Settled(), len(r.locks), names)
	}
}

// TestANameIsSettledBeforeTheTable: who asks for a name is served after one round trip to the voters of the former view, however long
// their tables are (section 9.9). Pieces are lost here. The holder's claim and a free name are served; nobody else gets what is held.
func TestANameIsSettledBeforeTheTable(t *testing.T) {
	d := newDesk(t, 1, 2, 3)
	ask := func(to byte, name string, from byte, v ViewID, tok Token) {
		d.step(id(to), Event{Kind: Receive, From: id(from), Msg: &Message{
			Kind: Request, View: v, Name: name, Req: Req{Session{from}, 1}, TTL: deskTTL, Tok: tok,
		}})
	}
	for i := range 3 * ReportEntriesMax {
		for b := byte(1); b < 4; b++ {
			ask(b, fmt.Sprintf("n%05d", i), 10, d.log.View, 0)
		}
	}
	d.inbox = nil
	d.replica(4, ReplicaConfig{})
	d.apply(Entry{Kind: EntryView, From: d.log.View, Members: ids(1, 2, 4)}, 1, 2, 4) // voter 3 is late
	r := d.reps[id(4)]
	next := func() { // delivers all but pieces
		was := d.inbox
		d.inbox = nil
		for _, l := range was {
			if rep := d.reps[l.to]; rep != nil && (l.msg.Kind != Reported || l.msg.Name != "") {
				d.step(l.to, Event{Kind: Receive, From: l.from, Msg: &l.msg})
			}
		}
	}
	next()
	ask(4, "n00007", 10, d.log.View, 101)
	ask(4, "free", 11, d.log.View, 0)
	ask(4, "n00008", 11, d.log.View, 0)
	pulls := 0
	for _, l := range d.inbox {
		if l.msg.Kind == Pull && l.msg.Name != "" {
			pulls++
		}
	}
	if pulls != 9 {
		t.Errorf("%d pulls of three names", pulls)
	}
	ask(4, "free", 11, d.log.View, 0) // again, before there was an answer
	next()
	next()
	for name, want := range map[string]byte{"n00007": 10, "free": 11, "n00008": 0} {
		l := r.locks[name]
		if l == nil || !l.settled || l.owned != (want != 0) || l.owned && l.owner.req.Session[0] != want {
			t.Errorf("%s: %+v", name, l)
		}
	}
	if r.settled || r.locks["n00009"] != nil {
		t.Errorf("settled %v; a name that nobody asked for is known", r.settled)
	}
	// The late voter answers what it was asked, once it has ended the view. It names nobody else.
	d.apply(Entry{Kind: EntryView, From: ViewID{1, 1}, Members: ids(1, 2, 4)}, 3)
	next()
	if l := r.locks["n00008"]; r.reports(l) != 3 {
		t.Errorf("%d reports of a name", r.reports(l))
	}
}

func TestBadInput(t *testing.T) {
	d := newDesk(t, 1, 2, 3)
	c := d.client(10, ClientConfig{})
	d.begin(10)
	d.deliver()
	l := d.reps[id(1)].locks["n"]
	gid := l.gid
	cases := []struct {
		name string
		from byte
		msg  Message
		want Kind // of the answer; 0 is none
	}{
		{"a foreign node renews", 66, Message{Kind: Request, Req: c.cfg.Req, TTL: deskTTL, Tok: c.tok}, 0},
		{"a foreign node releases", 66, Message{Kind: Release, Req: c.cfg.Req, Tok: c.tok}, 0},
		{"a foreign node releases a later request", 66, Message{Kind: Release, Req: Req{c.cfg.Req.Session, c.cfg.Req.Seq + 1}}, 0},
		{"a foreign node yields", 66, Message{Kind: Yield, Req: c.cfg.Req, GID: gid}, 0},
		{"an old request", 10, Message{Kind: Request, Req: Req{c.cfg.Req.Session, 0}, TTL: deskTTL}, 0},
		{"a token not given out", 11, Message{Kind: Request, Req: Req{Session{11}, 1}, TTL: deskTTL, Tok: d.log.Ceil + 1}, Refused},
		{"a TTL above the bound", 11, Message{Kind: Request, Req: Req{Session{11}, 1}, TTL: time.Hour}, Refused},
		{"no TTL", 11, Message{Kind: Request, Req: Req{Session{11}, 1}}, Refused},
		{"an endless lock-delay", 11, Message{Kind: Request, Req: Req{Session{11}, 1}, TTL: deskTTL, Delay: time.Hour}, Refused},
		{"an older view", 11, Message{Kind: Request, View: ViewID{1, 0}, Req: Req{Session{11}, 1}, TTL: deskTTL}, Moved},
		{"a newer view", 11, Message{Kind: Request, View: ViewID{1, 9}, Req: Req{Session{11}, 1}, TTL: deskTTL}, 0},
		{"another generation", 11, Message{Kind: Request, View: ViewID{2, 1}, Req: Req{Session{11}, 1}, TTL: deskTTL}, WrongGen},
		{"a clock at its end", 11, Message{Kind: Request, TS: 1 << 63, Req: Req{Session{11}, 1}, TTL: deskTTL}, 0},
		{"a report of nobody", 66, Message{Kind: Reported, Report: &Report{Chunks: 1}}, 0},
		{"a report without a body", 2, Message{Kind: Reported}, 0},
		{"an answer to a replica", 2, Message{Kind: Grant}, 0},
	}
	for _, k := range cases {
		d.inbox = nil
		k.msg.Name = "n"
		if k.msg.View == (ViewID{}) {
			k.msg.View = d.log.View
		}
		d.step(id(1), Event{Kind: Receive, From: id(k.from), Msg: &k.msg})
		var got Kind
		if len(d.inbox) > 0 {
			got = d.inbox[0].msg.Kind
		}
		if got != k.want || !l.owned || l.owner.req != c.cfg.Req || l.rec != 100 || len(l.queue) != 0 {
			t.Errorf("%s: answer %v, want %v; owner %v, rec %d, %d wait", k.name, got, k.want, l.owner.req, l.rec, len(l.queue))
		}
	}
}

func TestAFullQueueRefuses(t *testing.T) {
	d := newDesk(t, 1, 2, 3)
	d.client(10, ClientConfig{})
	d.begin(10)
	d.deliver()
	for i := range WaitersPerLockMax {
		for b := byte(1); b < 4; b++ {
			d.step(id(b), Event{Kind: Receive, From: id(11), Msg: &Message{
				Kind: Request, View: d.log.View, Name: "n", ReqTS: 9, Req: Req{Session{11, byte(i), byte(i >> 8)}, 1}, TTL: deskTTL,
			}})
		}
	}
	d.inbox = nil
	d.client(12, ClientConfig{})
	d.begin(12)
	d.deliver()
	if a := d.saw(12, Done); a == nil || !errors.Is(a.Err, ErrRefused) {
		t.Errorf("one waiter too many: %+v", a)
	}
}

func TestWaitersAreToldWhoHasTheLock(t *testing.T) {
	d := newDesk(t, 1, 2, 3)
	d.client(10, ClientConfig{})
	d.client(11, ClientConfig{})
	d.client(12, ClientConfig{Try: true})
	for _, b := range []byte{10, 11, 12} {
		d.begin(b)
		d.deliver()
	}
	w, n := d.saw(11, Waiting), d.saw(12, Done)
	if owner := (Req{Session{10}, 1}); w == nil || w.Msg.Owner != owner || n == nil || n.Msg.Owner != owner || !errors.Is(n.Err, ErrLocked) {
		t.Errorf("the waiter was told %+v, who tried %+v", w, n)
	}
}

func TestTryDoesNotWait(t *testing.T) {
	d := newDesk(t, 1, 2, 3)
	d.client(10, ClientConfig{})
	d.begin(10)
	d.deliver()
	d.client(11, ClientConfig{Try: true})
	d.begin(11)
	d.deliver()
	if a := d.saw(11, Done); a == nil || !errors.Is(a.Err, ErrLocked) {
		t.Errorf("tried a taken lock: %+v", a)
	}
	for n, r := range d.reps {
		if l := r.locks["n"]; len(l.queue) != 0 {
			t.Errorf("replica %x keeps a queue entry", n[:1])
		}
	}
}

func TestALapsedHoldIsLostForGood(t *testing.T) {
	d := newDesk(t, 1, 2, 3)
	c := d.client(10, ClientConfig{})
	d.begin(10)
	d.deliver()
	d.lost = func(l letter) bool { return l.from == id(10) }
	d.pass(deskTTL / 2)
	d.pass(deskTTL)
	if d.cls[id(10)].Valid(d.now) || d.saw(10, Lost) == nil || !errors.Is(d.saw(10, Lost).Err, ErrExpired) {
		t.Fatalf("%v at %v, deadline %v", c.state, d.now, c.deadline)
	}
	l := d.reps[id(1)].locks["n"]
	d.step(id(10), Event{Kind: Receive, From: id(1), Msg: &Message{Kind: Grant, View: d.log.View, Req: c.cfg.Req, GID: l.gid, Tok: c.tok, CS: d.now}})
	if c.state == ClientHeld {
		t.Error("held again")
	}
}

func TestAHolderOnDemandIsRenewedByEachRenewAlone(t *testing.T) {
	d := newDesk(t, 1, 2, 3)
	c := d.client(10, ClientConfig{OnDemand: true})
	d.begin(10)
	d.deliver()
	d.want(10, ClientHeld)
	first := c.deadline
	d.pass(deskTTL / 2)
	d.deliver()
	if c.deadline != first || d.saw(10, Renewed) != nil {
		t.Fatal("renewed though nobody asked")
	}
	d.lost = func(l letter) bool { return l.to != id(1) && l.from == id(10) } // one of three hears it
	d.step(id(10), Event{Kind: Renew})
	d.deliver()
	asked := d.now
	if c.deadline != first {
		t.Fatal("one replica renewed the lock")
	}
	d.lost = nil
	d.pass(deskTTL / repeatPart)
	d.deliver()
	r := d.saw(10, Renewed)
	if r == nil || r.At != c.deadline || c.deadline < asked.Add(c.lease()) {
		t.Fatalf("%+v, deadline %v, renewed at %v", r, c.deadline, asked)
	}
	d.pass(deskTTL)
	d.want(10, ClientDone)
	if l := d.saw(10, Lost); l == nil || !errors.Is(l.Err, ErrExpired) {
		t.Errorf("%+v", l)
	}
	d.step(id(10), Event{Kind: Renew})
	d.want(10, ClientDone)
}

func TestALostHoldWithADelayLapses(t *testing.T) {
	for _, delay := range []time.Duration{0, deskTTL} {
		d := newDesk(t, 1, 2, 3)
		d.client(10, ClientConfig{OnDemand: true, Repeat: true, Delay: delay})
		d.begin(10)
		d.deliver()
		d.client(11, ClientConfig{Repeat: true, TTL: 4 * deskTTL / 3})
		d.begin(11)
		d.deliver()
		d.pass(deskTTL)
		d.pass(deskTTL / 100)
		d.deliver()
		if held := d.cls[id(11)].State() == ClientHeld; held != (delay == 0) {
			t.Errorf("delay %v: the next holds: %v", delay, held)
		}
		for range 4 {
			d.pass(delay / 3)
			d.deliver()
		}
		d.want(11, ClientHeld)
	}
}

func TestAMajorityThatHasHeardOfTheReleaseIsEnough(t *testing.T) {
	d := newDesk(t, 1, 2, 3)
	d.client(10, ClientConfig{Repeat: true})
	d.begin(10)
	d.deliver()
	d.lost = func(l letter) bool { return l.to == id(3) }
	d.giveBack(10)
	d.deliver()
	if d.saw(10, Returned) == nil || d.saw(10, Done) != nil {
		t.Errorf("with one replica silent: %+v", d.acts[id(10)])
	}
	d.lost = nil
	d.pass(deskTTL / 2)
	d.deliver()
	d.want(10, ClientDone)
}

// TestAReplicasSteadyPathAllocatesNothing holds the steady path: a name that is known, buffers that are reused.
func TestAReplicasSteadyPathAllocatesNothing(t *testing.T) {
	d := newDesk(t, 1, 2, 3)
	run := steady(d)
	run()
	if n := testing.AllocsPerRun(200, run); n > 0 {
		t.Errorf("%v allocations for REQ and RELEASE", n)
	}
}

// steady returns one acquire and release as a replica sees it.
func steady(d *desk) func() {
	r := d.reps[id(1)]
	var out []Action
	var m Message
	seq := uint64(0)
	return func() {
		seq++
		d.now++
		m = Message{Kind: Request, View: d.log.View, Name: "n", Req: Req{Session{10}, seq}, TS: 1, ReqTS: 1, CS: 5, TTL: deskTTL}
		out = r.Step(Event{Kind: Receive, Now: d.now, From: id(10), Msg: &m}, out[:0])
		tok := out[0].Msg.Tok
		if r.log.Ceil-tok < Block/2 {
			r.log.Ceil += Block
		}
		m.Kind, m.Tok = Release, tok
		out = r.Step(Event{Kind: Receive, Now: d.now, From: id(10), Msg: &m}, out[:0])
	}
}

func BenchmarkReplicaAcquireRelease(b *testing.B) {
	run := steady(newDesk(b, 1, 2, 3))
	b.ReportAllocs()
	for b.Loop() {
		run()
	}
}

// BenchmarkPair is one uncontended acquire and release by all automata of it: one client, three replicas, no network.
func BenchmarkPair(b *testing.B) {
	d := newDesk(b, 1, 2, 3)
	reps := []*Replica{d.reps[id(1)], d.reps[id(2)], d.reps[id(3)]}
	var out, back, rel []Action
	seq := uint64(0)
	b.ReportAllocs()
	for b.Loop() {
		seq++
		d.now++
		c := NewClient(ClientConfig{Name: "n", Req: Req{Session{10}, seq}, TTL: deskTTL, Drift: automaton.DriftDefault, View: d.log.Descriptor})
		out = c.Step(Event{Kind: Begin, Now: d.now}, out[:0])
		for i := range out {
			if a := &out[i]; a.Kind == Send {
				r := reps[a.To[0]-1]
				back = r.Step(Event{Kind: Receive, Now: d.now, From: id(10), Msg: &a.Msg}, back[:0])
				rel = c.Step(Event{Kind: Receive, Now: d.now, From: a.To, Msg: &back[0].Msg}, rel[:0])
			}
		}
		if c.State() != ClientHeld {
			b.Fatal(c.State())
		}
		out = c.Step(Event{Kind: GiveBack, Now: d.now}, out[:0])
		for i := range out {
			if a := &out[i]; a.Kind == Send {
				back = reps[a.To[0]-1].Step(Event{Kind: Receive, Now: d.now, From: id(10), Msg: &a.Msg}, back[:0])
			}
		}
		if r := reps[0]; r.log.Ceil-c.Token() < Block/2 {
			for _, r := range reps {
				r.log.Ceil += Block
			}
		}
	}
}

// TestLimitsAtTheirEdge holds what params.go and docs/limits.md say happens at each bound of a replica.
func TestLimitsAtTheirEdge(t *testing.T) {
	d := newDesk(t, 1)
	r := d.reps[id(1)]
	var out []Action
	send := func(from byte, m Message) *Message {
		if m.View == (ViewID{}) {
			m.View = d.log.View
		}
		m.TTL = deskTTL
		out = r.Step(Event{Kind: Receive, Now: d.now, From: id(from), Msg: &m}, out[:0])
		for i := range out {
			if out[i].Kind == Send {
				return &out[i].Msg
			}
		}
		return nil
	}
	for i := range ParkedPerNameMax + 1 {
		send(10, Message{Kind: Request, Name: "later", View: ViewID{1, 2}, Req: Req{Session{1, byte(i)}, 1}})
	}
	if r.parkedN != ParkedPerNameMax {
		t.Errorf("%d messages of one name are parked", r.parkedN)
	}
	for i := range ParkedMax {
		send(10, Message{Kind: Request, Name: fmt.Sprint("later", i), View: ViewID{1, 2}, Req: Req{Session{1}, 1}})
	}
	if r.parkedN != ParkedMax {
		t.Errorf("%d messages are parked", r.parkedN)
	}
	for i := range EndedPerLockMax + 1 {
		send(10, Message{Kind: Release, Name: "n", Req: Req{Session{2, byte(i), byte(i >> 8)}, 1}})
	}
	if l := r.locks["n"]; len(l.ended) != EndedPerLockMax || l.over(Req{Session{2}, 1}) || !l.over(Req{Session{2, 1}, 1}) {
		t.Errorf("%d finished requests are remembered", len(l.ended))
	}
	for i := range RequestsPerPeerMax {
		if m := send(11, Message{Kind: Request, Name: fmt.Sprint(i), Req: Req{Session{3}, 1}}); m == nil || m.Kind != Grant {
			t.Fatalf("request %d of a peer: %+v", i, m)
		}
	}
	if m := send(11, Message{Kind: Request, Name: "n", Req: Req{Session{3}, 1}}); m == nil || m.Kind != Refused || m.Reason != TooManyRequests {
		t.Errorf("one request too many of a peer: %+v", m)
	}
	if m := send(12, Message{Kind: Request, Name: "n", Req: Req{Session{4}, 1}}); m == nil || m.Kind != Grant {
		t.Errorf("another peer: %+v", m)
	}
	if err := r.Check(); err != nil {
		t.Error(err)
	}
}

// TestAHandoverNamesTheFirstOfTheQueue: what a voter reports to the log has the order of those who wait (M2).
func TestAHandoverNamesTheFirstOfTheQueue(t *testing.T) {
	for _, n := range []int{HandOverQueueMax - 1, HandOverQueueMax, HandOverQueueMax + 1} {
		d := newDesk(t, 1, 2, 3)
		d.client(10, ClientConfig{})
		d.begin(10)
		d.deliver()
		for i := range n {
			d.step(id(1), Event{Kind: Receive, From: id(11), Msg: &Message{
				Kind: Request, View: d.log.View, Name: "n", ReqTS: uint64(2*n - i), Req: Req{Session{11, byte(i)}, 1}, TTL: deskTTL,
			}})
		}
		state := d.log
		d.step(id(1), Event{Kind: Applied, State: &state, Modes: []NameMode{{"n", ModePending}}})
		q := d.saw(1, Propose).Entry.Report.Queue
		if first := (Req{Session{11, byte(n - 1)}, 1}); len(q) != min(n, HandOverQueueMax) || q[0].Req != first || q[0].ReqTS != uint64(n+1) {
			t.Errorf("%d wait: %d are reported, the first is %+v", n, len(q), q[0])
		}
	}
}

// TestIdleNamesMakeRoom: the longest idle name goes, and its number into the floor of all, so that its next token is higher.
func TestIdleNamesMakeRoom(t *testing.T) {
	d := newDesk(t, 1)
	r := d.reps[id(1)]
	l := r.insert("old")
	l.rec = 200
	for i := range LocksMax - 1 {
		r.insert(fmt.Sprint(i))
	}
	if len(r.locks) != LocksMax || r.floor != 100 {
		t.Fatalf("%d names, floor %d", len(r.locks), r.floor)
	}
	r.insert("new")
	if r.locks["old"] != nil || len(r.locks) != LocksMax || r.floor != 200 || r.locks["new"].rec != 200 {
		t.Errorf("old %v, %d names, floor %d", r.locks["old"], len(r.locks), r.floor)
	}
}

// TestWaitersOfADeadPeerAreNotGranted: a replica that hears that a peer has gone lets go of its waiters, and of nothing that it may hold. One that lives
// has its place again when it asks.
func TestWaitersOfADeadPeerAreNotGranted(t *testing.T) {
	r := NewReplica(ReplicaConfig{Self: id(1), Inc: 1, TTLMin: 1, TTLMax: time.Minute}, LogState{
		Descriptor: Descriptor{View: ViewID{1, 1}, Members: ids(1)}, Ceil: Block, Cap: CapFor(time.Minute),
	})
	ask := func(b byte, ts uint64) (to keyspace.NodeID, granted bool) {
		for _, a := range r.Step(Event{Kind: Receive, Now: 1, From: id(b), Msg: &Message{Kind: Request, View: ViewID{1, 1}, Name: "n", Req: Req{Session{b}, 1}, ReqTS: ts, TTL: time.Minute}}, nil) {
			if a.Kind == Send && (a.Msg.Kind == Grant || a.Msg.Kind == Inquire) {
				to, granted = a.To, true
			}
		}
		return to, granted
	}
	gone := func(b byte) { r.Step(Event{Kind: Gone, Now: 1, From: id(b)}, nil) }
	for b := byte(10); b < 14; b++ {
		ask(b, uint64(b))
	}
	for _, b := range []byte{10, 11, 12} {
		gone(b)
	}
	if i := r.Info("n", 1); i.Owner.Session != (Session{10}) || len(i.Waiters) != 1 || i.Waiters[0].Session != (Session{13}) {
		t.Fatalf("owner, first, second gone: %+v", i)
	}
	ask(12, 12) // it was none
	var next keyspace.NodeID
	for _, a := range r.Step(Event{Kind: Receive, Now: 1, From: id(10), Msg: &Message{Kind: Release, View: ViewID{1, 1}, Name: "n", Req: Req{Session{10}, 1}, Tok: 1}}, nil) {
		if a.Kind == Send && a.Msg.Kind == Grant {
			next = a.To
		}
	}
	if next != id(12) {
		t.Errorf("granted to %v, want 12, which asked before 13", next)
	}
	if err := r.Check(); err != nil {
		t.Error(err)
	}
}

// BenchmarkHandOver is one hand-over of a lock for which many wait, who ask again at once, at one replica. Its time must not grow with
// the square of their number.
func BenchmarkHandOver(b *testing.B) {
	for _, clients := range []int{2, 32, 256} {
		b.Run(fmt.Sprint(clients), func(b *testing.B) {
			d := newDesk(b, 1, 2, 3)
			r := d.reps[id(1)]
			var out []Action
			receive := func(kind Kind, client int, seq uint64) {
				d.now++
				out = r.Step(Event{Kind: Receive, Now: d.now, From: id(byte(10 + client%7)), Msg: &Message{
					Kind: kind, View: d.log.View, Name: "n", Req: Req{Session{1, byte(client), byte(client >> 8)}, seq}, ReqTS: uint64(d.now), TTL: deskTTL, Tok: 0,
				}}, out[:0])
			}
			for i := range clients {
				receive(Request, i, 1)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				client, seq := i%clients, uint64(i/clients)+1
				receive(Release, client, seq)
				receive(Request, client, seq+1)
			}
		})
	}
}

// TestAVoterThatBootsSaysThatItMayNotKnow: until it has applied what was committed when it started it has an empty table, and so for an embargo after that.
func TestAVoterThatBootsSaysThatItMayNotKnow(t *testing.T) {
	d := newDesk(t, 1, 2, 3)
	embargo := func() time.Duration {
		_, _, left := d.reps[id(1)].List("", 10)
		return left
	}
	if embargo() != 0 {
		t.Error("one that has forgotten nothing")
	}
	d.replica(1, ReplicaConfig{Restarted: true, Inc: 2})
	d.step(id(1), Event{Kind: Timer})
	if embargo() == 0 {
		t.Error("before the barrier")
	}
	if d.step(id(1), Event{Kind: Barrier}); embargo() <= SuspendAfter {
		t.Errorf("after the barrier: %v", embargo())
	}
}

// A client that is used again knows nothing of what it was.
func TestAClientThatIsResetIsLikeANewOne(t *testing.T) {
	members := []keyspace.NodeID{{1}, {2}, {3}}
	cfg := ClientConfig{Name: "n", Req: Req{Session: Session{1}, Seq: 1}, TTL: time.Second, View: Descriptor{View: ViewID{Num: 1}, Members: members}}
	c := NewClient(cfg)
	for i := range c.seats {
		c.seats[i] = seat{node: members[i], live: true, prop: 5, heard: true}
	}
	c.Step(Event{Kind: Begin, Now: 10}, nil)
	c.Step(Event{Kind: Receive, Now: 11, From: members[0], Msg: &Message{Kind: Grant, View: cfg.View.View, Req: cfg.Req, Name: "n", TS: 9, GID: GID{1, 1}, Tok: 7, CS: 10}}, nil)
	c.Step(Event{Kind: ClockJump, Now: 12}, nil)
	for _, members := range [][]keyspace.NodeID{members, members[:1], {{1}, {2}, {3}, {4}, {5}}} {
		cfg.Req.Seq++
		cfg.Clock, cfg.View.Members = cfg.Clock+100, members
		if c.Reset(cfg); !reflect.DeepEqual(c, NewClient(cfg)) {
			t.Errorf("%+v\nwant %+v", c, NewClient(cfg))
		}
		c.Step(Event{Kind: Begin, Now: 20}, nil)
		c.Step(Event{Kind: GiveBack, Now: 21}, nil)
	}
}
