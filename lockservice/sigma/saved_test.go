package sigma

import (
	"slices"
	"testing"
	"time"

	"latchkey/internal/automaton"
)

// records are what one replica has had recorded, and what it has said beyond.
type records struct {
	t *testing.T
	r *Replica
	disk
	voids  int
	grants []Message
}

func (c *records) step(ev Event) {
	out := c.r.Step(ev, nil)
	if err := c.r.Check(); err != nil {
		c.t.Fatal(err)
	}
	c.record(c.r, out)
	for _, a := range out {
		switch {
		case a.Kind == Void:
			c.voids++
		case a.Kind == Send && a.Msg.Kind == Grant:
			c.grants = append(c.grants, a.Msg)
		}
	}
}

func (c *records) ask(from byte, name string, at automaton.Instant) {
	c.step(Event{Kind: Receive, Now: at, From: id(from), Msg: &Message{
		Kind: Request, View: c.r.log.View, Name: name, Req: Req{Session{from}, 1}, TS: 1, ReqTS: uint64(from), CS: 1, TTL: deskTTL, Delay: time.Second,
	}})
}

func recorded(t *testing.T, m mutant, members ...byte) *records {
	log := LogState{Descriptor: Descriptor{View: ViewID{1, 1}, Members: ids(members...)}, Base: 100, Ceil: 100 + Block, Cap: CapFor(deskTTL)}
	return &records{t: t, r: NewReplica(ReplicaConfig{Self: id(members[0]), Inc: 1, TTLMin: time.Millisecond, TTLMax: 20 * time.Second, mutant: m}, log)}
}

// again is the next life of the host, which begins with what is recorded, d after now.
func (c *records) again(d time.Duration) *records {
	t := c.last()
	if t == nil {
		c.t.Fatal("there is no table")
	}
	state, ok := t.State(c.r.log)
	if !ok {
		c.t.Fatalf("a table of %v is of no use in %v", t.Head.View, c.r.log.View)
	}
	cfg := c.r.cfg
	cfg.Inc, cfg.Table = cfg.Inc+1, t
	next := &records{t: c.t, r: NewReplica(cfg, state), disk: c.disk}
	next.step(Event{Kind: Timer, Now: c.r.now.Add(d)})
	return next
}

func TestATableIsTakenUpAgain(t *testing.T) {
	t.Parallel()
	for _, m := range []mutant{mutantNone, mutantInstallUnsaved} {
		c := recorded(t, m, 1)
		c.ask(2, "held", 10)
		c.ask(3, "held", 20)
		c.ask(3, "free", 30)
		c.ask(4, "raised", 40)
		free, raised := c.grants[1], c.grants[2]
		c.step(Event{Kind: Receive, Now: 50, From: id(4), Msg: &Message{Kind: Install, View: c.r.log.View, Name: "raised", Req: raised.Req, TS: 1, GID: raised.GID, CS: 2, Tok: 170}})
		c.step(Event{Kind: Receive, Now: 60, From: id(3), Msg: &Message{Kind: Release, View: c.r.log.View, Name: "free", Req: free.Req, TS: 1, Tok: 150}})

		n := c.again(time.Hour)
		now := n.r.now
		held, _ := n.r.Saved("held")
		if was, _ := c.r.Saved("held"); held.Owner.Req != was.Owner.Req || held.GID != was.GID || held.Owner.Tok != was.Owner.Tok || held.Owner.Left != deskTTL {
			t.Errorf("%+v, before %+v", held, was)
		}
		n.ask(5, "free", now)
		if g := n.grants[len(n.grants)-1]; g.Tok != 151 || g.GID.Inc != 2 {
			t.Errorf("what was released with 150 is granted anew with %d, gid %v", g.Tok, g.GID)
		}
		if s, _ := n.r.Saved("raised"); (s.Owner.Tok == 170) != (m == mutantNone) {
			t.Errorf("mutant %v: a grant that was raised to 170 offers %d", m, s.Owner.Tok)
		}
		// Nobody has heard of them in this life. Their leases end, with their delays, and their numbers are used.
		n.ask(6, "held", now.Add(deskTTL-1))
		before := len(n.grants)
		n.step(Event{Kind: Timer, Now: now.Add(deskTTL)})
		if len(n.grants) != before {
			t.Error("granted before the lock-delay is over")
		}
		n.step(Event{Kind: Timer, Now: now.Add(deskTTL + time.Second)})
		if g := n.grants[len(n.grants)-1]; len(n.grants) == before || g.Req.Session != (Session{6}) || g.Tok <= held.Owner.Tok {
			t.Errorf("%+v", n.grants[before:])
		}
	}
}

// TestADelayIsTakenUpAgain: a lock-delay that runs outlives the process too, and the numbers of names that were forgotten do.
func TestADelayIsTakenUpAgain(t *testing.T) {
	t.Parallel()
	c := recorded(t, mutantNone, 1)
	c.ask(2, "n", 10)
	over := automaton.Instant(10).Add(deskTTL)
	c.step(Event{Kind: Timer, Now: over})
	n := c.again(time.Millisecond)
	n.ask(3, "n", n.r.now)
	if len(n.grants) > 0 {
		t.Error("granted while the delay runs")
	}
	n.ask(3, "n", n.r.now.Add(time.Second))
	if len(n.grants) == 0 || n.grants[0].Tok != 102 {
		t.Errorf("%+v", n.grants)
	}

	c.step(Event{Kind: Timer, Now: over.Add(time.Minute)})
	if len(c.r.locks) > 0 || len(c.table.Names) > 0 {
		t.Fatalf("%d locks and %d records are left", len(c.r.locks), len(c.table.Names))
	}
	n = c.again(0)
	n.ask(3, "n", n.r.now)
	if n.grants[0].Tok != 102 {
		t.Errorf("%+v", n.grants)
	}
}

// TestWhatIsRecordedOfAViewIsVoidOnceTheNextGrants: names are granted before the whole view is settled, and such a grant must not be
// forgotten for a table of the view before.
func TestWhatIsRecordedOfAViewIsVoidOnceTheNextGrants(t *testing.T) {
	t.Parallel()
	for _, m := range []mutant{mutantNone, mutantNoVoid} {
		c := recorded(t, m, 1, 2, 3)
		c.ask(4, "a", 10)
		if c.last() == nil {
			t.Fatal("no table of a view that is settled")
		}
		next := c.r.log
		next.View.Num++
		next.Prev, next.Base, next.Ceil = next.Members, next.Ceil, next.Ceil+Block
		c.step(Event{Kind: Applied, Now: 20, State: &next})
		if table := c.last(); table == nil || table.Head.View.Num != 1 || len(table.Names) != 1 {
			t.Fatalf("before anything is granted: %+v", table)
		}
		if again := c.again(0); again.r.Step(Event{Kind: Jumped, Now: 20, State: &next}, nil) == nil || !again.r.frozen.true || len(again.r.frozen.names) != 1 {
			t.Errorf("the table that is taken up is not sealed: %+v", again.r.frozen)
		}
		// The word of one other on one name settles that name.
		c.ask(5, "b", 30)
		c.step(Event{Kind: Receive, Now: 40, From: id(2), Msg: &Message{Kind: Reported, View: ViewID{1, 1}, Name: "b", TS: 1, Report: &Report{Inc: 1, Chunks: 1, Entries: []ReportEntry{{Name: "b"}}}}})
		if len(c.grants) != 2 || c.r.settled {
			t.Fatalf("%d grants, settled %v", len(c.grants), c.r.settled)
		}
		if gone := c.last() == nil; gone != (m == mutantNone) {
			t.Errorf("mutant %v: the table of the view before is of use: %v", m, !gone)
		}
		// The rest settles, and is recorded in one piece.
		c.step(Event{Kind: Receive, Now: 50, From: id(3), Msg: &Message{Kind: Reported, View: ViewID{1, 1}, TS: 1, Report: &Report{Inc: 1, Chunks: 1}}})
		table := c.last()
		if table == nil || table.Head.View.Num != 2 {
			t.Fatalf("%+v", table)
		}
		if s, ok := table.Names["b"]; !ok || !s.Owned {
			t.Errorf("%+v", table.Names)
		}
		if s, ok := table.Names["a"]; !ok || len(s.Candidates) != 1 {
			t.Errorf("%+v", table.Names)
		}
		if _, ok := table.State(LogState{Descriptor: Descriptor{View: ViewID{1, 4}}}); ok {
			t.Error("a table of a view long past is of use")
		}
	}
}

// TestATableOfManyNamesIsRecordedInTurns, so that no message waits for all of them.
func TestATableOfManyNamesIsRecordedInTurns(t *testing.T) {
	t.Parallel()
	c := recorded(t, mutantNone, 1, 2, 3)
	next := c.r.log
	next.View.Num++
	next.Prev, next.Base, next.Ceil = next.Members, next.Ceil, next.Ceil+Block
	names := make([]string, 3*savedAtOnce)
	for i := range names {
		names[i] = string(rune('a'+i/676)) + string(rune('a'+i/26%26)) + string(rune('a'+i%26))
		c.ask(4, names[i], 10)
	}
	c.step(Event{Kind: Applied, Now: 20, State: &next})
	c.step(Event{Kind: Receive, Now: 50, From: id(3), Msg: &Message{Kind: Reported, View: ViewID{1, 1}, TS: 1, Report: &Report{Inc: 1, Chunks: 1}}})
	for i := 0; c.last() == nil || c.last().Head.View.Num != 2; i++ {
		if i > 3 {
			t.Fatalf("%d of %d are recorded after %d turns", len(c.table.Names), len(names), i)
		}
		if n := len(c.table.Names); n > (i+1)*savedAtOnce {
			t.Errorf("%d are recorded in %d turns", n, i+1)
		}
		c.step(Event{Kind: Timer, Now: 51})
	}
	if len(c.table.Names) != len(names) || !slices.IsSorted(names) || c.voids != 2 {
		t.Errorf("%d of %d are recorded, voided %d times", len(c.table.Names), len(names), c.voids)
	}
}
