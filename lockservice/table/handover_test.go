package table

import (
	"errors"
	"testing"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/lockservice/sigma"
)

// handing is a table of a group with three voters.
type handing struct {
	t     *testing.T
	table *Table
	now   time.Duration
	out   []Grant
}

func newHanding(t *testing.T, m Mutant) *handing {
	cfg := testConfig
	cfg.Voters = true
	h := &handing{t: t, table: New(cfg)}
	Sabotage(h.table, m)
	h.view()
	h.table.Modes()
	return h
}

func (h *handing) done() {
	h.t.Helper()
	if err := h.table.check(); err != nil {
		h.t.Error(err)
	}
	cfg := h.table.cfg
	again, err := Restore(cfg, h.table.State())
	if err != nil {
		h.t.Errorf("its own state: %v", err)
		return
	}
	if err := again.check(); err != nil {
		h.t.Errorf("restored: %v", err)
	}
}

func (h *handing) view() {
	h.table.Reserve(uint64(sigma.Block)) // as the machine does
	h.out = h.table.View(h.now, 2, h.out)
	h.done()
}

func (h *handing) pass(d time.Duration) {
	h.now += d
	h.out = h.table.Tick(h.now, h.out)
	h.done()
}

func (h *handing) step(c byte, cmd Command) Answer {
	h.t.Helper()
	var ans Answer
	ans, h.out = h.table.Step(h.now, by(c), cmd, h.out)
	h.done()
	return ans
}

func (h *handing) report(voter byte, parties ...sigma.ReportParty) {
	h.out = h.table.Report(h.now, keyspace.NodeID{voter}, sigma.ReportEntry{Name: "n", Parties: parties}, h.out)
	h.done()
}

func wish(c byte) sigma.Req { return sigma.Req{Session: sigma.Session{c, 'w'}, Seq: 1} }

func party(c byte, left time.Duration, tok sigma.Token) sigma.ReportParty {
	return sigma.ReportParty{Req: wish(c), Node: by(c).Peer, Left: left, Tok: tok}
}

func (h *handing) has(c byte) bool {
	for _, x := range h.table.Info(h.now, "n").Holders {
		if x.Client == by(c).Client {
			return true
		}
	}
	return false
}

func (h *handing) want(what string, got, want any) {
	h.t.Helper()
	if got != want {
		h.t.Errorf("%s: %v, want %v", what, got, want)
	}
}

var exclusive = Acquire{Name: "n", Req: 1, TTL: 2 * time.Second}

func claim(c byte, tok Token) Acquire {
	return Acquire{Name: "n", Req: 1, TTL: 2 * time.Second, Wish: wish(c), Held: tok}
}

// TestHandoverWaitsForCandidates: M1 to M4, and what goes wrong where one of the rules is broken.
func TestHandoverWaitsForCandidates(t *testing.T) {
	run := func(t *testing.T, m Mutant) (broken bool) {
		h := newHanding(t, m)
		h.want("mode", h.table.Mode("n"), sigma.ModeSigma)
		h.want("acquire", h.step('G', exclusive).Kind, Queued)
		h.want("mode", h.table.Mode("n"), sigma.ModePending)
		h.report(1, party('X', time.Second, 7), party('Y', 3*time.Second, 8))
		h.report(1)
		h.want("claim while pending", h.step('X', claim('X', 7)).Kind, Queued)
		if m != MutantOneModeReport {
			h.want("mode after one voter's reports", h.table.Mode("n"), sigma.ModePending)
		}
		h.report(2, party('X', 500*time.Millisecond, 7))
		h.want("mode", h.table.Mode("n"), sigma.ModeGroup)
		h.report(3, party('Z', time.Hour, 9)) // too late to add anybody
		h.want("reports", len(h.table.Info(h.now, "n").Candidates), 2)
		broken = broken || h.has('X') // Y is silent, and may hold
		h.pass(700 * time.Millisecond)
		broken = broken || h.step('X', claim('X', 7)).Kind == NotHeld // the longest lease reported of it counts
		h.step('Y', Acquire{Name: "n", Req: 1, TTL: time.Second, Wish: wish('Y')})
		broken = broken || !h.has('X')
		if x := h.table.Info(h.now, "n").Holder; x.Client == by('X').Client {
			h.want("its name", x.Session, Client(wish('X').Session))
		}
		if broken {
			return true
		}
		h.want("X renews", h.step('X', Renew{Name: "n", Req: 1, Token: 7, TTL: 2 * time.Second}).Token, Token(7))
		h.step('X', Release{Name: "n", Req: 1, Token: 7})
		info := h.table.Info(h.now, "n")
		h.want("next", info.Holder.Client, by('Y').Client) // who was at the voters before
		return info.Holder.Token <= Token(sigma.Block)
	}
	if run(t, MutantNone) {
		t.Error("broken")
	}
	for _, m := range []Mutant{MutantClaimOverrules, MutantShortestLease, MutantReportedToken} {
		if quiet := new(testing.T); !run(quiet, m) {
			t.Errorf("mutant %d is not caught", m)
		}
	}
}

// TestAViewCancelsAHandover: M5. A voter's table of the new view need not be what it was in the old one.
func TestAViewCancelsAHandover(t *testing.T) {
	for _, m := range []Mutant{MutantNone, MutantKeptReports} {
		h := newHanding(t, m)
		h.step('G', exclusive)
		h.report(1)
		h.view()
		h.want("mode", h.table.Mode("n"), sigma.ModePending)
		h.report(2)
		if early := h.has('G'); early != (m == MutantKeptReports) {
			t.Errorf("mutant %d: granted after one report of this view: %v", m, early)
		}
		h.report(3)
		h.want("granted", h.has('G'), true)
	}
}

func TestNamesGoBackWhenAViewEnds(t *testing.T) {
	h := newHanding(t, MutantNone)
	h.step('G', exclusive)
	h.report(1)
	h.report(2)
	h.view()
	h.want("mode of a name in use", h.table.Mode("n"), sigma.ModeGroup)
	h.step('G', Release{Name: "n", Req: 1})
	h.want("mode inside the view", h.table.Mode("n"), sigma.ModeGroup)
	h.want("idle", h.table.Idle(), 1)
	h.table.Changes()
	h.view()
	h.want("mode", h.table.Mode("n"), sigma.ModeSigma)
	h.want("changes", len(h.table.Changes()), 1)
	h.want("a wish of the voters'", h.step('X', claim('X', 0)).Kind, Elsewhere)
	h.want("mode", h.table.Mode("n"), sigma.ModeSigma)
}

func TestWhoeverSpeaksUpIsNoCandidate(t *testing.T) {
	for what, say := range map[string]func(h *handing){
		"waits": func(h *handing) {
			h.step('X', Acquire{Name: "n", Req: 1, TTL: time.Second, Wish: wish('X')})
		},
		"is refused": func(h *handing) {
			h.step('X', Acquire{Name: "n", Req: 1, TTL: time.Second, Wish: wish('X'), Permits: 2})
		},
		"told a voter that it is over": func(h *handing) { h.out = h.table.Over(h.now, "n", wish('X'), by('X').Peer, h.out) },
		"gives its claim back": func(h *handing) {
			h.step('X', claim('X', 7))
			h.step('X', Release{Name: "n", Req: 1})
		},
		"outlived its lease": func(h *handing) { h.pass(2 * time.Second) },
	} {
		for _, before := range []bool{true, false} {
			h := newHanding(t, MutantNone)
			h.step('G', exclusive)
			h.report(1)
			if before {
				say(h) // M3: counts also before the report that names it
			}
			h.report(2, party('X', time.Second, 7))
			if !before {
				h.want(what+": granted beside a candidate", h.has('G'), false)
				say(h)
			} else if what == "outlived its lease" {
				continue
			}
			next := byte('G')
			if what == "waits" { // it did so before
				next = 'X'
			}
			h.want(what+": granted", h.has(next), true)
		}
	}
}

func TestClaims(t *testing.T) {
	h := newHanding(t, MutantNone)
	h.step('G', Acquire{Name: "n", Req: 1, TTL: time.Second, Permits: 3})
	h.want("a token that nobody was offered", h.step('X', claim('X', Token(sigma.Block)+1)).Kind, NotHeld)
	h.report(1, party('X', time.Second, 7))
	h.report(2)
	h.want("a claim of nobody's", h.step('Y', claim('Y', 7)).Kind, NotHeld)
	h.want("another's", h.step('Y', claim('X', 7)).Kind, NotHeld)
	h.want("the candidate's", h.step('X', claim('X', 7)).Kind, Granted)
	h.want("permits wanted before", h.step('G', Renew{Name: "n", Req: 1, TTL: time.Second}).Kind, NotHeld)
	h.want("and now", h.step('G', Acquire{Name: "n", Req: 2, TTL: time.Second, Permits: 3}).Reason, BadMode)
	h.pass(5 * time.Second)
	h.want("a claim when nobody may hold", h.step('X', claim('X', 7)).Kind, NotHeld)
}

// TestBreakingWhatVotersGranted: the token is consumed, and it is remembered who did it.
func TestBreakingWhatVotersGranted(t *testing.T) {
	h := newHanding(t, MutantNone)
	h.want("break", h.step('O', Break{Name: "n", Token: 7}).Kind, Queued)
	h.report(1, party('X', time.Minute/6, 7))
	h.want("again", h.step('O', Break{Name: "n", Token: 7}).Kind, Queued)
	h.report(2)
	h.want("another token", h.step('O', Break{Name: "n", Token: 8}).Kind, NotHeld)
	ans := h.step('O', Break{Name: "n", Token: 7, At: 5})
	h.want("at last", ans.Kind, Broken)
	h.want("holder", ans.Holder.Peer, by('X').Peer)
	h.want("remembered", len(h.table.Info(h.now, "n").Breaks), 1)
	h.want("its claim", h.step('X', claim('X', 7)).Kind, NotHeld)
	if got := h.step('G', exclusive); got.Kind != Granted || got.Token <= Token(sigma.Block) {
		t.Errorf("the next one: %+v", got)
	}
}

func TestTryWaitsForTheModeOnly(t *testing.T) {
	for _, held := range []bool{false, true} {
		h := newHanding(t, MutantNone)
		try := exclusive
		try.Try = true
		h.want("try", h.step('G', try).Kind, Queued)
		if h.report(1); held {
			h.report(2, party('X', time.Second, 7))
			h.want("claim", h.step('X', claim('X', 7)).Kind, Granted)
		} else {
			h.report(2)
		}
		h.want("granted", h.has('G'), !held)
		if held {
			h.want("poll", h.step('G', Renew{Name: "n", Req: 1, TTL: time.Second}).Kind, NotHeld)
			try.Req = 2
			h.want("again", h.step('G', try).Kind, Locked)
		}
	}
}

func TestCandidatesBeyondTheLimitAreWaitedFor(t *testing.T) {
	h := newHanding(t, MutantNone)
	h.step('G', exclusive)
	var many []sigma.ReportParty
	for i := range CandidatesMax + 1 {
		p := party(byte(i), time.Second, 7)
		p.Req.Session[1] = 1
		many = append(many, p)
	}
	h.report(1, many...)
	h.report(2)
	h.want("candidates", len(h.table.Info(h.now, "n").Candidates), CandidatesMax)
	h.pass(900 * time.Millisecond)
	h.want("granted", h.has('G'), false)
	h.pass(time.Second)
	h.want("granted", h.has('G'), true)
}

func TestWhatIsSaidBeyondTheLimitIsForgotten(t *testing.T) {
	h := newHanding(t, MutantNone)
	h.step('G', exclusive)
	for i := range SaidMax + 1 {
		h.out = h.table.Over(h.now, "n", wish(byte(i+1)), by('X').Peer, h.out)
	}
	h.want("said", len(h.table.State().Locks[0].Hand.Said), SaidMax)
}

// TestACarvedNameStaysAway: a name that another group has is not the voters', whatever views come.
func TestACarvedNameStaysAway(t *testing.T) {
	h := newHanding(t, MutantNone)
	h.want("ready", h.table.Prepare("n"), false)
	h.report(1, party('X', time.Second, 7))
	h.report(2)
	h.want("ready", h.table.Prepare("n"), true)
	part := h.table.Carve("n")
	h.view()
	h.done()
	h.want("mode", h.table.Mode("n"), sigma.ModeGroup)
	own := New(testConfig)
	if err := own.Graft(part); err != nil {
		t.Fatal(err)
	}
	ans, _ := own.Step(0, by('G'), exclusive, nil)
	h.want("beside a candidate", ans.Kind, Queued)
	ans, _ = own.Step(0, by('X'), claim('X', 7), nil)
	h.want("its claim", ans.Kind, Granted)
	own.Step(0, by('X'), Release{Name: "n", Req: 1}, nil)
	own.Step(0, by('G'), Release{Name: "n", Req: 1}, nil)
	if err := h.table.Graft(own.Carve("n")); err != nil {
		t.Fatal(err)
	}
	h.done()
	h.want("mode", h.table.Mode("n"), sigma.ModeGroup)
	h.view()
	h.want("mode", h.table.Mode("n"), sigma.ModeSigma)
}

func TestImpossibleHandoversAreRefused(t *testing.T) {
	for what, l := range map[string]LockState{
		"an owner beside a handover": {Owners: []OwnerState{{TTL: time.Second, Ends: time.Second, Counter: 1}}, Hand: &HandoverState{Pending: true}},
		"nothing to wait for":        {Hand: &HandoverState{}},
		"a lease that is over":       {Hand: &HandoverState{Candidates: []CandidateState{{Wish: wish('X')}}}},
		"one of them twice":          {Hand: &HandoverState{Candidates: []CandidateState{{Wish: wish('X'), Until: 1}, {Wish: wish('X'), Until: 1}}}},
		"away and in use":            {Away: true, Hand: &HandoverState{Pending: true}},
		"a claim of nothing":         {Queue: []WaiterState{{TTL: time.Second, Held: 1}}},
	} {
		l.Name = "n"
		cfg := testConfig
		cfg.Voters = true
		if _, err := Restore(cfg, State{Counter: 5, Need: 2, Locks: []LockState{l}}); !errors.Is(err, ErrState) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Nobody speaks for a session of another peer, whichever of its requests is named: a later one would end those before it.
func TestAnotherPeerDoesNotSpeakForACandidate(t *testing.T) {
	h := newHanding(t, MutantNone)
	h.step('G', exclusive)
	h.report(1, party('X', time.Second, 7))
	h.report(2)
	for _, q := range []sigma.Req{wish('X'), {Session: wish('X').Session, Seq: 2}} {
		h.out = h.table.Over(h.now, "n", q, by('Y').Peer, h.out)
		h.want("granted on another's word", h.has('G'), false)
	}
	h.out = h.table.Over(h.now, "n", sigma.Req{Session: wish('X').Session, Seq: 2}, by('X').Peer, h.out)
	h.want("granted", h.has('G'), true)
}

// waits says that a request waits at a voter, made at a Lamport time.
func waits(c byte, at uint64) sigma.ReportParty {
	return sigma.ReportParty{Req: wish(c), Node: by(c).Peer, ReqTS: at}
}

func (h *handing) reportQueue(voter byte, owner sigma.ReportParty, queue ...sigma.ReportParty) {
	h.out = h.table.Report(h.now, keyspace.NodeID{voter}, sigma.ReportEntry{Name: "n", Parties: []sigma.ReportParty{owner}, Queue: queue}, h.out)
	h.done()
}

// queue says who waits, in order.
func (h *handing) queue() (s string) {
	for _, w := range h.table.Info(h.now, "n").Waiters {
		s += string(w.Client[:1])
	}
	return s
}

// TestWaitersKeepTheirOrderWhenTheTableTakesANameOver: those who waited at the voters come first, as they waited there, however late they are heard
// here; what falls free meanwhile is kept for them, for a moment.
func TestWaitersKeepTheirOrderWhenTheTableTakesANameOver(t *testing.T) {
	ask := func(c byte) Acquire {
		return Acquire{Name: "n", Req: 1, TTL: 2 * time.Second, Wish: wish(c)}
	}
	began := func(m Mutant) *handing {
		h := newHanding(t, m)
		h.step('G', exclusive)
		h.step('C', ask('C')) // told before the voters have reported
		holder := party('X', 5*time.Second, 7)
		h.reportQueue(1, holder, waits('A', 1), waits('B', 2), waits('C', 3))
		h.want("while voters are to report", h.queue(), "CG")
		h.reportQueue(2, holder, waits('D', 2), waits('A', 1)) // B is before D by its session
		return h
	}
	h := began(MutantNone)
	h.step('D', ask('D'))
	h.step('B', ask('B'))
	h.want("who has asked", h.queue(), "BDCG")
	h.want("the holder claims", h.step('X', claim('X', 7)).Kind, Granted)
	h.step('X', Release{Name: "n", Req: 1, Token: 7})
	h.want("granted before A has asked", h.has('B'), false)
	h.want("one that comes last", h.step('H', exclusive).Kind, Queued)
	h.want("another's turn", h.step('E', ask('A')).Kind, Queued)
	h.want("A at once", h.step('A', ask('A')).Kind, Granted)
	h.want("the others", h.queue(), "BDCGHE")

	h = began(MutantNone) // A never comes
	h.step('B', ask('B'))
	h.step('X', Release{Name: "n", Req: 1, Token: 7})
	h.out = h.table.Over(h.now, "n", wish('X'), by('X').Peer, h.out)
	h.want("granted at once", h.has('B'), false)
	h.pass(turnsFor)
	h.want("granted in the end", h.has('B'), true)
	h.step('A', ask('A'))
	h.want("A comes last", h.queue(), "CGA")

	h = began(MutantNone) // A comes when nobody waits, and is done before its turn is forgotten
	h.step('C', Release{Name: "n", Req: 1})
	h.step('G', Release{Name: "n", Req: 1})
	h.out = h.table.Over(h.now, "n", wish('X'), by('X').Peer, h.out)
	h.want("A alone", h.step('A', ask('A')).Kind, Granted)
	h.want("B beside it", h.step('B', ask('B')).Kind, Queued)
	h.step('A', Release{Name: "n", Req: 1})
	h.want("when A is done", h.has('B'), true)

	h = began(MutantNone) // A is known to want nothing any more
	h.step('B', ask('B'))
	h.out = h.table.Over(h.now, "n", wish('X'), by('X').Peer, h.out)
	h.out = h.table.Over(h.now, "n", wish('A'), by('B').Peer, h.out)
	h.want("on the word of another", h.has('B'), false)
	h.out = h.table.Over(h.now, "n", wish('A'), by('A').Peer, h.out)
	h.want("on its own word", h.has('B'), true)

	h = began(MutantNone) // the view ends: what its voters say counts
	h.view()
	h.step('B', ask('B'))
	h.want("a new view", h.queue(), "BCG")
	h = newHanding(t, MutantNone)
	h.step('G', exclusive)
	h.step('B', ask('B'))
	h.reportQueue(1, party('X', time.Second, 7), waits('A', 1), waits('B', 2))
	h.view()
	h.want("cancelled", len(h.table.State().Locks[0].Turns), 0)

	if h = began(MutantImpatientTurns); true {
		h.step('B', ask('B'))
		h.out = h.table.Over(h.now, "n", wish('X'), by('X').Peer, h.out)
		h.want("the mistake", h.has('B'), true)
	}
}

func TestTurnsAreBounded(t *testing.T) {
	many := func(n int) (q []sigma.ReportParty) {
		for i := range n {
			p := waits('A', uint64(n-i))
			p.Req.Session[1], p.Req.Session[2] = byte(i), byte(i>>8)
			q = append(q, p)
		}
		return q
	}
	for _, n := range []int{TurnsMax - 1, TurnsMax, TurnsMax + 1} {
		h := newHanding(t, MutantNone)
		h.step('G', exclusive)
		h.reportQueue(1, sigma.ReportParty{}, many(n)...)
		turns := h.table.State().Locks[0].Turns
		h.want("turns", len(turns), min(n, TurnsMax))
		h.want("the first", turns[0].ReqTS, uint64(1))
	}
	h := newHanding(t, MutantNone)
	h.step('G', exclusive)
	h.table.turns = TurnsTotalMax - 1
	h.out = h.table.Report(h.now, keyspace.NodeID{1}, sigma.ReportEntry{Name: "n", Queue: many(3)}, h.out)
	h.want("turns of all", h.table.turns, TurnsTotalMax)
}

func TestTurnsThatCannotBeAreRefused(t *testing.T) {
	h := newHanding(t, MutantNone)
	h.step('G', exclusive)
	h.reportQueue(1, party('X', 5*time.Second, 7), waits('A', 1), waits('B', 2))
	h.report(2)
	for what, change := range map[string]func(l *LockState){
		"for ever":     func(l *LockState) { l.TurnsUntil = 0 },
		"for too long": func(l *LockState) { l.TurnsUntil += time.Hour },
		"over":         func(l *LockState) { l.TurnsUntil = h.now },
		"out of order": func(l *LockState) { l.Turns[0].ReqTS, l.Turns[1].ReqTS = 5, 4 },
		"twice":        func(l *LockState) { l.Turns[1] = l.Turns[0] },
		"nobody's":     func(l *LockState) { l.Turns[0].Wish = sigma.Req{} },
		"too many":     func(l *LockState) { l.Turns = make([]Turn, TurnsMax+1) },
	} {
		s := h.table.State()
		change(&s.Locks[0])
		if _, err := Restore(h.table.cfg, s); !errors.Is(err, ErrState) {
			t.Errorf("turns %s: %v", what, err)
		}
	}
}
