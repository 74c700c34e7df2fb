package demo

import (
	"strings"
	"testing"
	"time"

	"latchkey/internal/history"
)

// good is a correct run of two clients with two increments each.
func good() counter {
	c, _ := parseCounter(nil, 2)
	for i, w := range []struct{ client, n int }{{0, 1}, {1, 1}, {1, 2}, {0, 2}} {
		c = c.increment(uint64(10*(i+1)), w.client, w.n)
	}
	return c
}

// verdict fails the test unless err contains want, or is nil when want is empty.
func verdict(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case err == nil && want != "":
		t.Errorf("passed; want an error about %q", want)
	case err != nil && (want == "" || !strings.Contains(err.Error(), want)):
		t.Errorf("%v; want %q", err, want)
	}
}

func TestCounterCheckCatchesLostAndDoubledIncrements(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(c *counter)
		want  string
	}{
		"a correct run":           {func(c *counter) {}, ""},
		"an increment lost":       {func(c *counter) { c.Value--; c.Writes = c.Writes[:3] }, "counter is 3 after 4"},
		"an increment doubled":    {func(c *counter) { *c = c.increment(50, 0, 3) }, "counter is 5 after 4"},
		"a write of no increment": {func(c *counter) { c.Writes = c.Writes[:3] }, "3 writes made it"},
		"an update overwritten":   {func(c *counter) { c.Writes[2].Value = 2 }, "write 3, by client 1, made the counter 2"},
	} {
		t.Run(name, func(t *testing.T) {
			c := good()
			tc.spoil(&c)
			verdict(t, checkCounter(c, 2, 2), tc.want)
		})
	}
}

func TestClientsCheckCatchesWhoMadeTooFewTooManyOrTheWrongOnes(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(c *counter)
		want  string
	}{
		"a correct run":              {func(c *counter) {}, ""},
		"one client makes all":       {func(c *counter) { c.Writes[0].Client, c.Writes[0].N = 1, 1; c.Writes[1].N = 2; c.Writes[2].N = 3 }, "client 0 made increment 2 after increment 0"},
		"an increment made twice":    {func(c *counter) { c.Writes[2].N = 1 }, "client 1 made increment 1 after increment 1"},
		"an increment left out":      {func(c *counter) { c.Writes[1].N = 2 }, "client 1 made increment 2 after increment 0"},
		"a client stops too early":   {func(c *counter) { c.Writes = c.Writes[:3]; c.Last[0] = 1 }, "client 0 made 1 of 2"},
		"a client makes one more":    {func(c *counter) { *c = c.increment(50, 0, 3) }, "client 0 made 3 of 2"},
		"an unknown client":          {func(c *counter) { c.Writes[0].Client = 2 }, "client 2 does not exist"},
		"file and journal disagree":  {func(c *counter) { c.Last[0] = 1 }, "the file says [1 2]"},
		"a negative client's number": {func(c *counter) { c.Writes[0].Client = -1 }, "client -1 does not exist"},
	} {
		t.Run(name, func(t *testing.T) {
			c := good()
			tc.spoil(&c)
			verdict(t, checkClients(c, 2, 2), tc.want)
		})
	}
}

func TestTokenCheckCatchesEqualFallingAndMissingTokens(t *testing.T) {
	for name, tc := range map[string]struct {
		tokens []uint64
		want   string
	}{
		"rising with gaps": {[]uint64{1, 2, 7, 1 << 60}, ""},
		"none":             {nil, ""},
		"the same twice":   {[]uint64{1, 2, 2}, "token 2 after 2"},
		"falling":          {[]uint64{1, 3, 2}, "token 2 after 3"},
		"missing":          {[]uint64{0, 1}, "token 0 after 0"},
	} {
		t.Run(name, func(t *testing.T) {
			var ws []write
			for _, tok := range tc.tokens {
				ws = append(ws, write{Token: tok})
			}
			verdict(t, checkTokens(ws), tc.want)
		})
	}
}

func TestHistoryCheckCatchesWhatNoLockDoes(t *testing.T) {
	acquire := func(h *history.History, client int, token uint64) {
		h.Return(h.Call(client, history.Acquire(LockName)), history.Answer{Token: token})
	}
	release := func(h *history.History, client int, token uint64, ok bool) {
		h.Return(h.Call(client, history.Release(LockName, token)), history.Answer{OK: ok})
	}
	for name, tc := range map[string]struct {
		play func(h *history.History)
		want string
	}{
		"one after the other": {func(h *history.History) {
			acquire(h, 1, 1)
			release(h, 1, 1, true)
			acquire(h, 2, 2)
		}, ""},
		"a holder is killed and its lease runs out": {func(h *history.History) {
			acquire(h, 1, 1)
			h.Killed(1)
			acquire(h, 2, 2)
		}, ""},
		"an acquire cut off by a kill stays open": {func(h *history.History) {
			h.Call(1, history.Acquire(LockName))
			h.Killed(1)
			acquire(h, 2, 2)
		}, ""},
		"a release cut off by a kill stays open": {func(h *history.History) {
			acquire(h, 1, 1)
			h.Call(1, history.Release(LockName, 1))
			h.Killed(1)
			acquire(h, 2, 2)
		}, ""},
		"two holders at once":        {func(h *history.History) { acquire(h, 1, 1); acquire(h, 2, 2) }, "illegal"},
		"a token twice":              {func(h *history.History) { acquire(h, 1, 1); release(h, 1, 1, true); acquire(h, 2, 1) }, "illegal"},
		"a token that falls":         {func(h *history.History) { acquire(h, 1, 2); release(h, 1, 2, true); acquire(h, 2, 1) }, "illegal"},
		"a stranger's release works": {func(h *history.History) { acquire(h, 1, 1); release(h, 2, 1, true) }, "illegal"},
		"a lease that ends under a live holder": {func(h *history.History) {
			acquire(h, 1, 1)
			acquire(h, 2, 2)
			release(h, 1, 1, false)
		}, "illegal"},
	} {
		t.Run(name, func(t *testing.T) {
			h := history.New()
			tc.play(h)
			verdict(t, checkHistory(h, time.Minute), tc.want)
		})
	}
}

func TestAnUndecidedHistoryIsNoPass(t *testing.T) {
	h := history.New()
	h.Return(h.Call(1, history.Acquire(LockName)), history.Answer{Token: 1})
	verdict(t, checkHistory(h, time.Nanosecond), "undecided")
}

func TestFaultCheckCatchesARunThatWasTooEasyOrTooHard(t *testing.T) {
	voters, root := []int{1, 2, 5}, []int{0, 1, 2}
	leader := fault{kind: killLeader, peer: 5, leader: 5, holder: -1, voters: voters, root: root}
	holder := fault{kind: killHolder, peer: 3, leader: -1, holder: 3, voters: voters, root: root}
	back := fault{kind: restart, peer: 5}
	with := func(f fault, change func(f *fault)) fault { change(&f); return f }
	for name, tc := range map[string]struct {
		faults []fault
		want   string
	}{
		"as planned":                       {[]fault{leader, holder, back}, ""},
		"restarted before the second kill": {[]fault{leader, back, with(holder, func(f *fault) { f.peer, f.holder = 1, 1 })}, ""},
		"nothing happened":                 {nil, "one of each is the least"},
		"nobody came back":                 {[]fault{leader, holder}, "one of each is the least"},
		"no holder was killed":             {[]fault{leader, back}, "one of each is the least"},
		"no leader was killed":             {[]fault{holder, with(back, func(f *fault) { f.peer = 3 })}, "before the leader"},
		"the leader was another":           {[]fault{with(leader, func(f *fault) { f.leader = 1 }), holder, back}, "which was 1"},
		"the holder was another":           {[]fault{leader, with(holder, func(f *fault) { f.holder = -1 }), back}, "which was -1"},
		"two voters of the lock's group":   {[]fault{leader, with(holder, func(f *fault) { f.peer, f.holder = 1, 1 }), back}, "2 of the voters [1 2 5] are down"},
		"two voters of the root": {[]fault{with(leader, func(f *fault) { f.peer, f.leader = 2, 2 }),
			with(holder, func(f *fault) { f.peer, f.holder = 0, 0 }), back}, "2 of the voters [0 1 2] are down"},
		"a restart of one who was up": {[]fault{leader, holder, with(back, func(f *fault) { f.peer = 6 })}, "which was up"},
		"one is killed twice":         {[]fault{leader, with(holder, func(f *fault) { f.peer, f.holder = 5, 5 }), back}, "which was down"},
	} {
		t.Run(name, func(t *testing.T) { verdict(t, checkFaults(tc.faults, 1), tc.want) })
	}
}

func TestCounterFileIsReadAsWritten(t *testing.T) {
	c := good()
	got, err := parseCounter(c.encode(), 2)
	verdict(t, err, "")
	verdict(t, checkCounter(got, 2, 2), "")
	verdict(t, checkClients(got, 2, 2), "")
	_, err = parseCounter([]byte("{"), 2)
	verdict(t, err, "counter file")
	_, err = parseCounter(c.encode(), 3)
	verdict(t, err, "it knows 2 clients")
}

func TestLongestPauseCountsFromTheKillToTheLastGrant(t *testing.T) {
	at := func(ms ...int) (ts []time.Time) {
		for _, m := range ms {
			ts = append(ts, time.UnixMilli(int64(m)))
		}
		return ts
	}
	for _, tc := range []struct {
		grants []int
		want   time.Duration
	}{
		{[]int{0, 50, 110, 300, 310}, 190 * time.Millisecond}, // 110 was still under way at the kill
		{[]int{0, 50, 400}, 300 * time.Millisecond},
		{[]int{0, 50}, 0},
	} {
		if got := longestPause(at(tc.grants...), time.UnixMilli(100)); got != tc.want {
			t.Errorf("grants at %v: %v, want %v", tc.grants, got, tc.want)
		}
	}
}

// ran is what a correct run came to.
func ran() moves {
	return moves{
		newcomer: 7, joined: placing{leader: 1, voters: []int{1, 2, 7}}, joinTook: time.Second,
		leaver: 1, led: true, left: placing{leader: 2, voters: []int{2, 5, 7}}, leaveTook: time.Second, leaveGap: 100 * time.Millisecond,
		stopped: 7, restartTook: time.Second,
		kept: []keptLock{{"a", 3, 3, true, true}, {"b", 4, 4, true, true}},
	}
}

func TestMoveChecksCatchWhatDidNotHappen(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil                func(m *moves)
		join, leave, restart string
	}{
		"a correct run":        {func(*moves) {}, "", "", ""},
		"nothing happened":     {func(m *moves) { *m = moves{} }, "no peer that joined", "no peer that left", "0 peers were stopped"},
		"others were taken in": {func(m *moves) { m.joined.voters = []int{1, 2, 3} }, "peer 7 joined and is none", "", ""},
		"a group that shrank":  {func(m *moves) { m.joined.voters, m.left.voters = []int{1, 7}, []int{2, 7} }, "2 voters", "2 voters", ""},
		"who left was none":    {func(m *moves) { m.leaver = 4 }, "", "was none of the voters", ""},
		"who left is there":    {func(m *moves) { m.left.voters = []int{1, 2, 7} }, "", "left and is one", ""},
		"it took long":         {func(m *moves) { m.leaveGap = 2*time.Second + 1 }, "", "is the most", ""},
		"one was left running": {func(m *moves) { m.stopped = 6 }, "", "", "6 peers were stopped"},
		"no grant afterwards":  {func(m *moves) { m.restartTook = 0 }, "", "", "not granted again"},
		"no lock was held":     {func(m *moves) { m.kept = nil }, "", "", "no lock was held"},
		"a lock was lost":      {func(m *moves) { m.kept[1].held = false }, "", "", "b was held"},
		"a token was lost":     {func(m *moves) { m.kept[0].is = 2 }, "", "", "a was held with token 3"},
		"nobody could tell":    {func(m *moves) { m.kept[0] = keptLock{name: "a", was: 3} }, "", "", "a was held"},
	} {
		t.Run(name, func(t *testing.T) {
			m := ran()
			tc.spoil(&m)
			verdict(t, checkJoin(m, 1), tc.join)
			verdict(t, checkLeave(m, 1), tc.leave)
			verdict(t, checkRestart(m, 7), tc.restart)
		})
	}
}
