package table

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"pgregory.net/rapid"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
)

var testConfig = Config{TTLMin: time.Second, TTLMax: time.Minute}

// by is the caller of a one-letter client.
func by(name byte) Caller { return Caller{Client: Client{name}, Peer: keyspace.NodeID{name}} }

// step runs a command and tests every invariant after it.
func step(tb testing.TB, t *Table, now time.Duration, client byte, cmd Command) (Answer, []Grant) {
	tb.Helper()
	ans, out := t.Step(now, by(client), cmd, nil)
	if err := t.check(); err != nil {
		tb.Fatalf("after %#v of %c: %v", cmd, client, err)
	}
	return ans, out
}

func printAnswer(a Answer) string {
	s := a.Kind.String()
	switch a.Kind {
	case Granted, Held:
		s += fmt.Sprintf(" token=%d", a.Token)
		if a.Waited {
			s += " waited"
		}
	case Queued:
		s += fmt.Sprintf(" position=%d", a.Position)
	case Locked:
		s += fmt.Sprintf(" waiting=%d", a.Position)
		if a.Holder != (Holder{}) {
			s += fmt.Sprintf(" holder=%c left=%v", a.Holder.Session[0], a.Holder.Left)
		}
	case Refused:
		s += ": " + a.Reason.String()
		if a.Reason == BadMode {
			s += fmt.Sprintf(" permits=%d", a.Permits)
		}
	case Broken:
		s += fmt.Sprintf(" holder=%c", a.Holder.Session[0])
	}
	return s + "\n"
}

func printGrants(gs []Grant) string {
	var b strings.Builder
	for _, g := range gs {
		fmt.Fprintf(&b, "->%c granted %s req=%d token=%d\n", g.Client[0], g.Name, g.Req, g.Token)
	}
	return b.String()
}

func shared(is bool) string {
	if is {
		return " shared"
	}
	return ""
}

// TestTraces replays the stories in testdata/traces. Every directive may say its log time with at=, and its client with by=.
func TestTraces(t *testing.T) {
	datadriven.Walk(t, "testdata/traces", func(t *testing.T, path string) {
		table := New(testConfig)
		now := time.Duration(0)
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			arg := func(key, def string) string {
				for _, a := range d.CmdArgs {
					if a.Key == key && len(a.Vals) > 0 {
						return a.Vals[0]
					}
				}
				return def
			}
			span := func(key, def string) time.Duration {
				v, err := time.ParseDuration(arg(key, def))
				if err != nil {
					t.Fatal(err)
				}
				return v
			}
			num := func(key string) (n uint64) {
				fmt.Sscan(arg(key, "0"), &n)
				return n
			}
			now = span("at", now.String())
			name, ttl, client := arg("lock", "a"), span("ttl", "10s"), arg("by", "X")[0]
			run := func(c Command) string {
				ans, out := step(t, table, now, client, c)
				return printGrants(out) + printAnswer(ans)
			}
			switch d.Cmd {
			case "config":
				cfg := testConfig
				cfg.Drift = automaton.Drift(num("drift"))
				cfg.OverlayGen, cfg.GroupGen, cfg.Fresh = uint8(num("overlay")), uint16(num("group")), span("fresh", "0s")
				table = New(cfg)
				table.counter = num("counter")
				return ""
			case "acquire", "try":
				return run(Acquire{Name: name, Req: num("req"), TTL: ttl, Try: d.Cmd == "try",
					Shared: d.HasArg("shared"), Permits: int(num("permits")), Delay: span("delay", "0s"), Value: arg("value", "")})
			case "break":
				return run(Break{Name: name, Token: Token(num("token")), At: int64(num("wall"))})
			case "renew":
				return run(Renew{Name: name, Req: num("req"), Token: Token(num("token")), TTL: ttl})
			case "release":
				return run(Release{Name: name, Req: num("req"), Token: Token(num("token"))})
			case "tick":
				return printGrants(table.Tick(now, nil))
			case "ended":
				return printGrants(table.SessionEnded(now, by(client).Client, nil))
			case "resend":
				return printGrants(table.Resend(nil))
			case "deadline":
				at, ok := table.Deadline()
				if !ok {
					return "none\n"
				}
				return fmt.Sprintln(at)
			case "restart":
				again, err := Restore(table.cfg, table.State())
				if err != nil {
					t.Fatal(err)
				}
				table = again
				return ""
			case "info":
				info := table.Info(now, name)
				var b strings.Builder
				if info.Permits > 0 {
					fmt.Fprintf(&b, "semaphore of %d\n", info.Permits)
				}
				for _, h := range info.Holders {
					fmt.Fprintf(&b, "%c req=%d token=%d ttl=%v left=%v confirmed=%v%s", h.Client[0], h.Req, h.Token, h.TTL, h.Left, h.Confirmed, shared(h.Shared))
					if h.Value != "" {
						fmt.Fprintf(&b, " value=%s", h.Value)
					}
					b.WriteString("\n")
				}
				if info.Delay > 0 {
					fmt.Fprintf(&b, "nobody for %v\n", info.Delay)
				}
				for i, w := range info.Waiters {
					fmt.Fprintf(&b, "%d: %c req=%d ttl=%v since %v%s\n", i, w.Client[0], w.Req, w.TTL, w.Since, shared(w.Shared))
				}
				for _, x := range info.Breaks {
					fmt.Fprintf(&b, "broken: token=%d of %c (%d) by %c at %v, %d\n", x.Token, x.Holder.Client[0], x.Holders, x.By.Client[0], x.Now, x.At)
				}
				fmt.Fprintf(&b, "%d locks, %d waiters in all\n", info.Locks, info.Waiting)
				return b.String()
			}
			t.Fatalf("unknown directive %q", d.Cmd)
			return ""
		})
		if err := table.check(); err != nil {
			t.Error(err)
		}
	})
}

// naive is the lock table written without regard for cost, to hold the real one against.
type naive struct {
	cfg     Config
	counter uint64
	locks   map[string]*naiveLock
}

type naiveLock struct {
	permits int
	until   time.Duration  // nobody is granted it before; 0: at once
	reqs    []naiveRequest // in the order in which they came; the owners, which have a token, are the first
}

type naiveRequest struct {
	client Client
	req    uint64
	ttl    time.Duration
	shared bool
	delay  time.Duration
	token  uint64
	ends   time.Duration
	known  bool // granted at once, or confirmed
	heard  time.Duration

	granted time.Duration // out of the queue
}

func (l *naiveLock) owners() (n int) {
	for _, r := range l.reqs {
		if r.token > 0 {
			n++
		}
	}
	return n
}

// room reports whether a request may own the lock now, if nobody waits before it.
func (l *naiveLock) room(shared bool) bool {
	n := l.owners()
	switch {
	case l.until > 0:
		return false
	case l.permits > 0:
		return n < l.permits
	}
	return n == 0 || shared && l.reqs[0].shared
}

func (n *naive) find(name string, c Client, req uint64) int {
	if n.locks[name] == nil {
		return -1
	}
	return slices.IndexFunc(n.locks[name].reqs, func(r naiveRequest) bool { return r.client == c && r.req == req })
}

// settle grants a lock to all who can have it. waited says whether they have been in the queue.
func (n *naive) settle(now time.Duration, name string, waited bool) {
	l := n.locks[name]
	for i := l.owners(); i < len(l.reqs) && l.room(l.reqs[i].shared); i++ {
		r := &l.reqs[i]
		if now-r.heard > r.ttl/2+2*time.Second {
			n.drop(name, i)
			i--
			continue
		}
		if i > 0 && l.permits == 0 {
			r.token = l.reqs[0].token
		} else {
			n.counter++
			r.token = n.counter
		}
		if r.ends, r.known = now+n.cfg.Drift.Stretch(r.ttl), !waited; waited {
			r.ends, r.granted = min(r.ends, now+3*time.Second), now
		}
	}
	if len(l.reqs) == 0 && (l.until == 0 || now < n.cfg.Fresh) {
		delete(n.locks, name)
	}
}

func (n *naive) drop(name string, i int) {
	n.locks[name].reqs = slices.Delete(n.locks[name].reqs, i, i+1)
}

// over ends a hold as its lease does.
func (n *naive) over(now time.Duration, name string, i int) {
	l := n.locks[name]
	if d := l.reqs[i].delay; d > 0 {
		l.until = max(l.until, now+d)
	}
	n.drop(name, i)
}

func (n *naive) tick(now time.Duration) {
	for _, name := range slices.Sorted(maps.Keys(n.locks)) {
		n.settle(now, name, true) // what the end of a session has left
	}
	for { // ends by rising (end, name, request), since the order decides who gets which token
		type event struct {
			at     time.Duration
			name   string
			place  int // -1: the lock is to be settled
			token  uint64
			client Client
			req    uint64
		}
		var all []event
		for name, l := range n.locks {
			if l.until > 0 && l.until <= now {
				all = append(all, event{at: l.until, name: name, place: -1})
			}
			for i, r := range l.reqs {
				if r.token > 0 && r.ends <= now {
					all = append(all, event{r.ends, name, i, r.token, r.client, r.req})
				}
			}
		}
		if len(all) == 0 {
			return
		}
		e := slices.MinFunc(all, func(a, b event) int {
			return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.name, b.name), cmp.Compare(min(a.place, 0), min(b.place, 0)),
				cmp.Compare(a.token, b.token), bytes.Compare(a.client[:], b.client[:]), cmp.Compare(a.req, b.req))
		})
		if e.place < 0 {
			n.locks[e.name].until = 0
		} else {
			r, l := n.locks[e.name].reqs[e.place], n.locks[e.name]
			if !r.known {
				l.reqs[e.place].delay = 0
			}
			n.over(now, e.name, e.place)
			if !r.known {
				var behind []naiveRequest
				for i := l.owners(); i < len(l.reqs); i++ {
					if w := l.reqs[i]; w.client == r.client && w.heard <= r.granted {
						behind = append(behind, w)
						n.drop(e.name, i)
						i--
					}
				}
				l.reqs = append(l.reqs, behind...)
			}
		}
		n.settle(now, e.name, true)
	}
}

func (n *naive) step(now time.Duration, c Client, cmd Command) string {
	n.tick(now)
	answer := func(name string, i int, kind string) string {
		r := n.locks[name].reqs[i]
		switch {
		case r.token == 0:
			return fmt.Sprintf("queued position=%d\n", i-n.locks[name].owners())
		case kind == "granted" && !r.known:
			return fmt.Sprintf("granted token=%d waited\n", r.token)
		}
		return fmt.Sprintf("%s token=%d\n", kind, r.token)
	}
	switch x := cmd.(type) {
	case Acquire:
		i, l := n.find(x.Name, c, x.Req), n.locks[x.Name]
		switch {
		case i >= 0:
			l.reqs[i].heard = now
		case x.Shared && x.Permits > 0:
			return "refused: so many permits cannot be\n"
		case l != nil && l.permits != x.Permits:
			return fmt.Sprintf("refused: in use as something else permits=%d\n", l.permits)
		case x.Try && (now < n.cfg.Fresh || l != nil && (l.owners() < len(l.reqs) || !l.room(x.Shared))):
			return "locked"
		default:
			if l == nil {
				l = &naiveLock{permits: x.Permits}
				if now < n.cfg.Fresh {
					l.until = n.cfg.Fresh
				}
				n.locks[x.Name] = l
			}
			i = len(l.reqs)
			l.reqs = append(l.reqs, naiveRequest{client: c, req: x.Req, ttl: x.TTL, shared: x.Shared, delay: x.Delay, heard: now})
			n.settle(now, x.Name, false)
		}
		return answer(x.Name, i, "granted")
	case Renew:
		i := n.find(x.Name, c, x.Req)
		if i < 0 || uint64(x.Token) != 0 && uint64(x.Token) != n.locks[x.Name].reqs[i].token {
			return "not-held\n"
		}
		r := &n.locks[x.Name].reqs[i]
		if r.ttl, r.heard = x.TTL, now; r.token > 0 {
			r.ends, r.known = max(r.ends, now+n.cfg.Drift.Stretch(x.TTL)), true
		}
		return answer(x.Name, i, "held")
	case Release:
		i := n.find(x.Name, c, x.Req)
		if i < 0 || n.locks[x.Name].reqs[i].token > 0 && x.Token != 0 && uint64(x.Token) != n.locks[x.Name].reqs[i].token {
			return "not-held\n"
		}
		n.drop(x.Name, i)
		n.settle(now, x.Name, true)
		return "released\n"
	case Break:
		l, ended := n.locks[x.Name], ""
		if l == nil || x.Token == 0 {
			return "not-held\n"
		}
		for i := 0; i < len(l.reqs); i++ {
			if l.reqs[i].token == uint64(x.Token) {
				if ended == "" {
					ended = fmt.Sprintf("broken holder=%c\n", l.reqs[i].client[0])
				}
				n.over(now, x.Name, i)
				i--
			}
		}
		if ended == "" {
			return "not-held\n"
		}
		n.settle(now, x.Name, true)
		return ended
	}
	return ""
}

// TestTableAgreesWithTheNaiveOne draws commands of a few clients on a few locks, with time that passes in steps, sessions that
// end and snapshots in between, and compares every answer. Tokens of one lock must rise with its grants, whoever gets it.
func TestTableAgreesWithTheNaiveOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := testConfig
		cfg.Drift = automaton.Drift(rapid.SampledFrom([]int{0, 10_000, 200_000}).Draw(t, "drift"))
		cfg.Fresh = time.Duration(rapid.SampledFrom([]int{0, 0, 30}).Draw(t, "fresh")) * time.Second
		table := New(cfg)
		model := &naive{cfg: cfg, locks: make(map[string]*naiveLock)}
		now := time.Duration(0)
		last := make(map[string]Grant)
		joined := make(map[string]bool) // the last grant of a lock was one that shares
		told := make(map[Grant]bool)    // a request may be told its token again
		note := func(out []Grant) {
			for _, g := range out {
				if told[g] {
					continue
				}
				told[g] = true
				shares := slices.ContainsFunc(table.Info(now, g.Name).Holders, func(h Holder) bool { return h.Shared && h.Token == g.Token })
				if was, ok := last[g.Name]; ok && g.Token <= was.Token && !(shares && joined[g.Name] && g.Token == was.Token) {
					t.Fatalf("%v granted after %v", g, was)
				}
				last[g.Name], joined[g.Name] = g, shares
			}
		}
		for range rapid.IntRange(1, 100).Draw(t, "steps") {
			now += time.Duration(rapid.SampledFrom([]int{0, 0, 0, 1, 5, 40}).Draw(t, "pass")) * time.Second
			c := by("XYZ"[rapid.IntRange(0, 2).Draw(t, "client")])
			name := rapid.SampledFrom([]string{"a", "b", ""}).Draw(t, "lock")
			req := rapid.Uint64Range(1, 3).Draw(t, "req")
			ttl := time.Duration(rapid.IntRange(1, 20).Draw(t, "ttl")) * time.Second
			tok := Token(rapid.Uint64Range(max(model.counter, 3)-3, model.counter+1).Draw(t, "token"))
			if rapid.Bool().Draw(t, "any") {
				tok = 0
			}
			var cmd Command
			var out []Grant
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0, 1, 2:
				a := Acquire{Name: name, Req: req, TTL: ttl, Try: rapid.IntRange(0, 4).Draw(t, "try") == 0}
				a.Shared = rapid.Bool().Draw(t, "shared")
				a.Permits = rapid.SampledFrom([]int{0, 0, 0, 2, 3}).Draw(t, "permits")
				a.Delay = time.Duration(rapid.SampledFrom([]int{0, 0, 0, 3, 60}).Draw(t, "delay")) * time.Second
				cmd = a
			case 9:
				// By itself first: who is granted and broken in one step holds nothing after it, and cannot be seen to share.
				note(table.Tick(now, nil))
				model.tick(now)
				cmd = Break{Name: name, Token: tok}
			case 3, 4:
				cmd = Renew{Name: name, Req: req, Token: tok, TTL: ttl}
			case 5, 6:
				cmd = Release{Name: name, Req: req, Token: tok}
			case 7:
				out = table.SessionEnded(now, c.Client, nil)
				for _, name := range slices.Sorted(maps.Keys(model.locks)) {
					for i := len(model.locks[name].reqs) - 1; i >= 0; i-- {
						if r := model.locks[name].reqs[i]; r.client == c.Client && r.token == 0 {
							model.drop(name, i)
						}
					}
				}
				if rapid.Bool().Draw(t, "restart") { // before what the end of the session has left is settled
					again, err := Restore(cfg, table.State())
					if err != nil {
						t.Fatalf("restore: %v", err)
					}
					table = again
				}
				out = table.Tick(now, out)
				model.tick(now)
			case 8:
				again, err := Restore(cfg, table.State())
				if err != nil {
					t.Fatalf("restore: %v", err)
				}
				if table = again; !reflect.DeepEqual(again.State(), table.State()) {
					t.Fatal("a restored table has another state")
				}
			}
			if cmd != nil {
				var ans Answer
				ans, out = table.Step(now, c, cmd, nil)
				got, want := printAnswer(ans), model.step(now, c.Client, cmd)
				if ans.Kind == Locked {
					got = "locked"
				}
				if got != want {
					t.Fatalf("%v, %#v of %v: got %s, want %s", now, cmd, c.Client, got, want)
				}
				if a, ok := cmd.(Acquire); ok && ans.Kind == Granted {
					out = append(out, Grant{c.Client, a.Name, a.Req, ans.Token})
				}
			}
			note(out)
			if err := table.check(); err != nil {
				t.Fatalf("%v, after %#v of %v: %v", now, cmd, c.Client, err)
			}
			if table.counter != model.counter {
				t.Fatalf("%d tokens given out, want %d", table.counter, model.counter)
			}
		}
	})
}

// crowd returns who makes the i-th request when clients and peers are to stay within their own limits.
func crowd(kind byte, i int) Caller {
	return Caller{Client: Client{kind, byte(i >> 10)}, Peer: keyspace.NodeID{kind, byte(i >> 12)}}
}

func TestLimitsHoldAtTheirEdge(t *testing.T) {
	t.Run("waiters of one lock", func(t *testing.T) {
		table := New(testConfig)
		ask := func(i int) Answer {
			c := Caller{Client: Client{1, byte(i), byte(i >> 8)}}
			ans, _ := table.Step(0, c, Acquire{Name: "a", Req: 1, TTL: time.Second}, nil)
			return ans
		}
		for i := range WaitersPerLockMax + 1 {
			if ans := ask(i); ans.Kind == Refused {
				t.Fatalf("request %d: %v", i, ans.Reason)
			}
		}
		if ans := ask(WaitersPerLockMax + 1); ans.Reason != TooManyWaiters {
			t.Errorf("one more: %+v", ans)
		}
		if ans := ask(7); ans.Kind != Queued || ans.Position != 6 {
			t.Errorf("a live one asks again: %+v", ans)
		}
		if _, err := Restore(testConfig, table.State()); err != nil {
			t.Errorf("full, restored: %v", err)
		}
	})
	t.Run("requests of one session", func(t *testing.T) {
		table := New(testConfig)
		for i := range RequestsPerSessionMax {
			if ans, _ := table.Step(0, by('X'), Acquire{Name: fmt.Sprint(i % 600), Req: uint64(i), TTL: time.Second}, nil); ans.Kind == Refused {
				t.Fatalf("request %d: %v", i, ans.Reason)
			}
		}
		if ans, _ := table.Step(0, by('X'), Acquire{Name: "new", Req: 9999, TTL: time.Second}, nil); ans.Reason != TooManyRequests {
			t.Errorf("one more: %+v", ans)
		}
		if ans, _ := step(t, table, 0, 'Y', Acquire{Name: "new", Req: 1, TTL: time.Second}); ans.Kind != Granted {
			t.Errorf("another session: %+v", ans)
		}
	})
	t.Run("requests of one peer", func(t *testing.T) {
		table := New(testConfig)
		ask := func(i int, peer byte) Answer {
			c := Caller{Client: Client{4, byte(i >> 9), peer}, Peer: keyspace.NodeID{peer}}
			ans, _ := table.Step(0, c, Acquire{Name: fmt.Sprint(i / 2), Req: uint64(i), TTL: time.Second}, nil)
			return ans
		}
		for i := range RequestsPerPeerMax { // half of them wait
			if ans := ask(i, 1); ans.Kind == Refused {
				t.Fatalf("request %d: %v", i, ans.Reason)
			}
		}
		if ans := ask(RequestsPerPeerMax, 1); ans.Reason != TooManyRequests {
			t.Errorf("one more: %+v", ans)
		}
		if ans := ask(0, 1); ans.Kind != Granted {
			t.Errorf("a live one asks again: %+v", ans)
		}
		if ans := ask(RequestsPerPeerMax+2, 2); ans.Kind != Granted {
			t.Errorf("another peer: %+v", ans)
		}
		if err := table.check(); err != nil {
			t.Error(err)
		}
		state := table.State()
		if _, err := Restore(testConfig, state); err != nil {
			t.Errorf("full, restored: %v", err)
		}
		state.Locks[0].Queue = append(state.Locks[0].Queue, WaiterState{Client: Client{5}, Peer: keyspace.NodeID{1}, TTL: time.Second})
		if _, err := Restore(testConfig, state); err == nil {
			t.Error("one more, restored")
		}
		table.Step(0, Caller{Client: Client{4, 0, 1}, Peer: keyspace.NodeID{1}}, Release{Name: "0", Req: 1}, nil)
		if ans := ask(RequestsPerPeerMax+4, 1); ans.Kind != Granted {
			t.Errorf("after one has left: %+v", ans)
		}
		table.Tick(time.Hour, nil)
		if table.Tick(2*time.Hour, nil); len(table.perPeer) != 0 {
			t.Errorf("%d peers remembered when nobody wants any", len(table.perPeer))
		}
	})
	t.Run("name bytes", func(t *testing.T) {
		table := New(testConfig)
		long := strings.Repeat("n", 1<<10)
		for i := range NameBytesTotalMax >> 10 {
			c := crowd(2, i)
			if ans, _ := table.Step(0, c, Acquire{Name: fmt.Sprintf("%08d", i) + long[8:], Req: uint64(i), TTL: time.Second}, nil); ans.Kind != Granted {
				t.Fatalf("lock %d: %+v", i, ans)
			}
		}
		if ans, _ := table.Step(0, by('X'), Acquire{Name: "x", TTL: time.Second}, nil); ans.Reason != TooManyLocks {
			t.Errorf("a byte more: %+v", ans)
		}
		first := crowd(2, 0)
		if ans, _ := table.Step(0, first, Release{Name: fmt.Sprintf("%08d", 7) + long[8:], Req: 7}, nil); ans.Kind != Released {
			t.Fatalf("release: %+v", ans)
		}
		if ans, _ := table.Step(0, by('X'), Acquire{Name: "x", TTL: time.Second}, nil); ans.Kind != Granted {
			t.Errorf("after a release: %+v", ans)
		}
		if _, err := Restore(testConfig, table.State()); err != nil {
			t.Errorf("its own state: %v", err)
		}
	})
	t.Run("waiters", func(t *testing.T) {
		table := New(testConfig)
		ask := func(i int) Answer {
			name := fmt.Sprint(i / WaitersPerLockMax)
			ans, _ := table.Step(0, Caller{Client: Client{3, byte(i), byte(i >> 8)}, Peer: crowd(3, i).Peer}, Acquire{Name: name, Req: uint64(i), TTL: time.Second}, nil)
			return ans
		}
		// One request of each lock is granted, all others wait.
		i := 0
		for ; table.waiting < WaitersMax; i++ {
			if ans := ask(i); ans.Kind == Refused {
				t.Fatalf("request %d: %+v", i, ans)
			}
		}
		if ans, _ := table.Step(0, by('X'), Acquire{Name: "0", Req: 1, TTL: time.Second}, nil); ans.Reason != TooManyWaiters {
			t.Errorf("one more: %+v", ans)
		}
	})
	t.Run("locks", func(t *testing.T) {
		table := New(testConfig)
		for i := range LocksMax {
			c := crowd(1, i)
			if ans, _ := table.Step(0, c, Acquire{Name: fmt.Sprint(i), Req: uint64(i), TTL: time.Second}, nil); ans.Kind != Granted {
				t.Fatalf("lock %d: %+v", i, ans)
			}
		}
		if ans, _ := table.Step(0, by('X'), Acquire{Name: "new", TTL: time.Second}, nil); ans.Reason != TooManyLocks {
			t.Errorf("one more: %+v", ans)
		}
		if ans, _ := table.Step(0, by('X'), Acquire{Name: "7", TTL: time.Second}, nil); ans.Kind != Queued {
			t.Errorf("a lock that exists: %+v", ans)
		}
		if err := table.check(); err != nil {
			t.Error(err)
		}
		table.Tick(time.Hour, nil)
		if table.Tick(2*time.Hour, nil); len(table.locks) != 0 || len(table.requests) != 0 {
			t.Errorf("%d locks, %d clients remembered when nobody wants any", len(table.locks), len(table.requests))
		}
	})
	t.Run("holders", func(t *testing.T) {
		table := New(testConfig)
		ask := func(i int, shared bool, permits int) Answer {
			c := Caller{Client: Client{6, byte(i), byte(i >> 8)}}
			ans, _ := table.Step(0, c, Acquire{Name: fmt.Sprint(permits), Req: 1, TTL: time.Second, Shared: shared, Permits: permits}, nil)
			return ans
		}
		for i := range HoldersPerLockMax {
			if s, p := ask(i, true, 0), ask(i, false, HoldersPerLockMax); s.Kind != Granted || p.Kind != Granted {
				t.Fatalf("request %d: %+v, %+v", i, s, p)
			}
		}
		if s, p := ask(HoldersPerLockMax, true, 0), ask(HoldersPerLockMax, false, HoldersPerLockMax); s.Kind != Queued || p.Kind != Queued {
			t.Errorf("one more: %+v, %+v", s, p)
		}
		if ans := ask(0, false, HoldersPerLockMax+1); ans.Reason != BadPermits {
			t.Errorf("a semaphore of one more: %+v", ans)
		}
		if ans := ask(0, false, -1); ans.Reason != BadPermits {
			t.Errorf("fewer than none: %+v", ans)
		}
		if err := table.check(); err != nil {
			t.Error(err)
		}
		if _, err := Restore(testConfig, table.State()); err != nil {
			t.Errorf("full, restored: %v", err)
		}
	})
	t.Run("values", func(t *testing.T) {
		table := New(testConfig)
		value := strings.Repeat("v", ValueBytesMax)
		for i := range ValueBytesTotalMax / ValueBytesMax {
			if ans, _ := table.Step(0, crowd(5, i), Acquire{Name: fmt.Sprint(i / 2), Req: uint64(i), TTL: time.Second, Value: value}, nil); ans.Kind == Refused {
				t.Fatalf("request %d: %+v", i, ans)
			}
		}
		for value, want := range map[string]Reason{"": 0, "x": TooManyValues, value + "x": BadValue} {
			if ans, _ := table.Step(0, by('X'), Acquire{Name: "new", Req: uint64(len(value)), TTL: time.Second, Value: value}, nil); ans.Reason != want {
				t.Errorf("%d bytes more: %+v", len(value), ans)
			}
		}
		table.Step(0, crowd(5, 0), Release{Name: "0", Req: 0}, nil)
		if ans, _ := step(t, table, 0, 'X', Acquire{Name: "other", Req: 2, TTL: time.Second, Value: value}); ans.Kind != Granted {
			t.Errorf("after one has left: %+v", ans)
		}
	})
	t.Run("requests", func(t *testing.T) {
		table := New(testConfig)
		table.waiting = WaitersMax // as if
		table.owners = LocksMax - 1
		ask := func(req uint64) Answer {
			ans, _ := table.Step(0, by('X'), Acquire{Name: fmt.Sprint(req), Req: req, TTL: time.Second}, nil)
			return ans
		}
		if a, b := ask(1), ask(2); a.Kind != Granted || b.Reason != TooManyWaiters {
			t.Errorf("the last one %+v, and one more %+v", a, b)
		}
	})
	t.Run("breaks", func(t *testing.T) {
		table := New(testConfig)
		for i := range BreaksMax + 1 {
			ans, _ := step(t, table, 0, 'X', Acquire{Name: "a", Req: uint64(i), TTL: time.Second})
			step(t, table, 0, 'Y', Break{Name: "a", Token: ans.Token})
		}
		if all := table.Info(0, "a").Breaks; len(all) != BreaksMax || all[0].Token != 2 {
			t.Errorf("%d breaks, the oldest %+v", len(all), all[0])
		}
	})
	t.Run("lock delay", func(t *testing.T) {
		for d, want := range map[time.Duration]Reason{0: 0, DelayMax: 0, DelayMax + 1: BadDelay, -1: BadDelay} {
			if ans, _ := step(t, New(testConfig), 0, 'X', Acquire{Name: "a", Req: 1, TTL: time.Second, Delay: d}); ans.Reason != want {
				t.Errorf("%v: %+v", d, ans)
			}
		}
	})
	t.Run("TTL", func(t *testing.T) {
		for _, c := range []struct {
			ttl  time.Duration
			want Reason
		}{{time.Second, 0}, {time.Second - 1, BadTTL}, {time.Minute, 0}, {time.Minute + 1, BadTTL}, {-1, BadTTL}, {math.MaxInt64, BadTTL}} {
			table := New(testConfig)
			if ans, _ := step(t, table, 0, 'X', Acquire{Name: "a", Req: 1, TTL: c.ttl}); ans.Reason != c.want {
				t.Errorf("acquire for %v: %+v", c.ttl, ans)
			}
			step(t, table, 0, 'X', Acquire{Name: "a", Req: 1, TTL: time.Second})
			if ans, _ := step(t, table, 0, 'X', Renew{Name: "a", Req: 1, TTL: c.ttl}); ans.Reason != c.want {
				t.Errorf("renew for %v: %+v", c.ttl, ans)
			}
		}
	})
}

func TestRestoreRefusesImpossibleStates(t *testing.T) {
	good := func() State {
		table := New(testConfig)
		step(t, table, time.Second, 'X', Acquire{Name: "a", Req: 1, TTL: time.Second})
		step(t, table, time.Second, 'Y', Acquire{Name: "a", Req: 1, TTL: time.Second})
		step(t, table, time.Second, 'Y', Acquire{Name: "b", Req: 2, TTL: time.Second})
		return table.State()
	}
	if _, err := Restore(testConfig, good()); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*State){
		"log time below zero":   func(s *State) { s.Now = -1 },
		"counter above its end": func(s *State) { s.Counter = lowMax + 1 },
		"locks out of order":    func(s *State) { s.Locks[0], s.Locks[1] = s.Locks[1], s.Locks[0] },
		"one lock twice":        func(s *State) { s.Locks[1].Name = "a" },
		"a lock of nobody":      func(s *State) { s.Locks[1].Owners = nil },
		"two owners":            func(s *State) { s.Locks[0].Owners = append(s.Locks[0].Owners, s.Locks[1].Owners...) },
		"who shares beside who does not": func(s *State) {
			o := s.Locks[0].Owners[0]
			o.Shared, o.Client = true, Client{'Z'}
			s.Locks[0].Owners = append(s.Locks[0].Owners, o)
		},
		"two tokens of who share": func(s *State) {
			s.Locks[1].Owners[0].Shared = true
			o := s.Locks[1].Owners[0]
			o.Client, o.Counter = Client{'Z'}, 1
			s.Locks[1].Owners = append(s.Locks[1].Owners, o)
		},
		"more owners than permits": func(s *State) {
			s.Locks[1].Permits = 1
			o := s.Locks[1].Owners[0]
			o.Client, o.Counter = Client{'Z'}, s.Counter+1
			s.Counter++
			s.Locks[1].Owners = append(s.Locks[1].Owners, o)
		},
		"a shared permit":           func(s *State) { s.Locks[1].Permits, s.Locks[1].Owners[0].Shared = 2, true },
		"permits below zero":        func(s *State) { s.Locks[1].Permits = -1 },
		"too many permits":          func(s *State) { s.Locks[1].Permits = HoldersPerLockMax + 1 },
		"delay below zero":          func(s *State) { s.Locks[0].Queue[0].Delay = -1 },
		"delay too long":            func(s *State) { s.Locks[0].Queue[0].Delay = DelayMax + 1 },
		"value too long":            func(s *State) { s.Locks[1].Owners[0].Value = strings.Repeat("v", ValueBytesMax+1) },
		"a wait that is over":       func(s *State) { s.Locks[1].Until = s.Now },
		"a wait too long":           func(s *State) { s.Locks[1].Until = s.Now + DelayMax + 1 },
		"a wait below zero":         func(s *State) { s.Locks[1].Until = -1 },
		"a break of nobody":         func(s *State) { s.Breaks = []BreakState{{Name: "a", Token: 1}} },
		"a break of no token":       func(s *State) { s.Breaks = []BreakState{{Name: "a", Holders: 1}} },
		"a break of the future":     func(s *State) { s.Breaks = []BreakState{{Name: "a", Token: 1, Holders: 1, Now: s.Now + 1}} },
		"too many breaks":           func(s *State) { s.Breaks = make([]BreakState, BreaksMax+1) },
		"turns of no voters":        func(s *State) { s.Locks[0].Turns, s.Locks[0].TurnsUntil = []Turn{{Wish: wish('a')}}, s.Now+1 },
		"no turns for a while":      func(s *State) { s.Locks[0].TurnsUntil = s.Now + 1 },
		"token above the counter":   func(s *State) { s.Locks[0].Owners[0].Counter = s.Counter + 1 },
		"no token":                  func(s *State) { s.Locks[0].Owners[0].Counter = 0 },
		"lease over already":        func(s *State) { s.Locks[0].Owners[0].Ends = s.Now },
		"owner's TTL out of bounds": func(s *State) { s.Locks[0].Owners[0].TTL = 0 },
		"owner in the queue":        func(s *State) { s.Locks[0].Queue[0].Client = s.Locks[0].Owners[0].Client },
		"waiter twice":              func(s *State) { s.Locks[0].Queue = append(s.Locks[0].Queue, s.Locks[0].Queue[0]) },
		"waiter's TTL":              func(s *State) { s.Locks[0].Queue[0].TTL = time.Hour },
		"waiter from the future":    func(s *State) { s.Locks[0].Queue[0].Since = s.Now + 1 },
		"heard of in the future":    func(s *State) { s.Locks[0].Queue[0].Heard = s.Now + 1 },
		"too many waiters":          func(s *State) { s.Locks[0].Queue = make([]WaiterState, WaitersPerLockMax+1) },
		"too many locks":            func(s *State) { s.Locks = make([]LockState, LocksMax+1) },
	} {
		s := good()
		spoil(&s)
		if _, err := Restore(testConfig, s); !errors.Is(err, ErrState) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestStateSharesNothingWithTheTable(t *testing.T) {
	table := New(testConfig)
	step(t, table, 0, 'X', Acquire{Name: "a", Req: 1, TTL: time.Second})
	step(t, table, 0, 'Y', Acquire{Name: "a", Req: 1, TTL: time.Second})
	s := table.State()
	s.Locks[0].Owners[0].Ends, s.Locks[0].Queue[0].Req = 0, 99
	again, err := Restore(testConfig, table.State())
	if err != nil {
		t.Fatal(err)
	}
	step(t, again, 0, 'X', Renew{Name: "a", Req: 1, TTL: time.Minute})
	if got := table.Info(0, "a"); got.Holder.Left != time.Second || got.Waiters[0].Req != 1 {
		t.Errorf("changed through its state: %+v", got)
	}
}

func BenchmarkStep(b *testing.B) {
	b.Run("acquire and release", func(b *testing.B) {
		table := New(testConfig)
		var ans Answer
		var out []Grant
		b.ReportAllocs()
		for req := uint64(1); b.Loop(); req++ {
			ans, out = table.Step(0, by('X'), Acquire{Name: "a", Req: req, TTL: time.Second}, out[:0])
			_, out = table.Step(0, by('X'), Release{Name: "a", Req: req, Token: ans.Token}, out[:0])
		}
	})
	b.Run("renew among 10,000 locks", func(b *testing.B) {
		table := New(testConfig)
		for i := range 10_000 {
			table.Step(0, Caller{Client: Client{byte(i), byte(i >> 8)}}, Acquire{Name: fmt.Sprint(i), Req: 1, TTL: time.Minute}, nil)
		}
		var out []Grant
		now := time.Duration(0)
		b.ReportAllocs()
		for b.Loop() {
			now++
			_, out = table.Step(now, Caller{Client: Client{7}}, Renew{Name: "7", Req: 1, TTL: time.Minute}, out[:0])
		}
	})
}
