package session

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"pgregory.net/rapid"

	"latchkey/dht/keyspace"
	"latchkey/internal/automaton"
	"latchkey/replicagroup/order"
)

// player turns a client and prints what it asks for.
type player struct {
	c   *Client
	now automaton.Instant
}

func node(name string) keyspace.NodeID {
	if name == "" {
		return keyspace.NodeID{}
	}
	return keyspace.NodeID{name[0]}
}

func (p *player) step(ev ClientEvent) string {
	var b strings.Builder
	for _, a := range p.c.Step(ev, p.now, nil) {
		switch a := a.(type) {
		case SendTo:
			what := fmt.Sprintf("%s %q", a.Cmd.Service, a.Cmd.Data)
			if a.Cmd.Service == Service {
				what = map[byte]string{opOpen: "open", opKeepAlive: "keep-alive", opClose: "close"}[a.Cmd.Data[0]]
			}
			fmt.Fprintf(&b, "->%c call=%d session=%d seq=%d acked=%d %s\n", a.To[0], a.Call, a.Cmd.Client[0], a.Cmd.Seq, a.Cmd.Acked, what)
		case Arm:
			if a.At == automaton.Never {
				fmt.Fprintf(&b, "timer off\n")
			} else {
				fmt.Fprintf(&b, "timer at %v\n", time.Duration(a.At))
			}
		case Done:
			if a.Err != nil {
				fmt.Fprintf(&b, "done ref=%d: %v\n", a.Ref, a.Err)
			} else {
				fmt.Fprintf(&b, "done ref=%d %q\n", a.Ref, a.Data)
			}
		case Relocate:
			fmt.Fprintln(&b, "relocate")
		case Lost:
			fmt.Fprintln(&b, "lost")
		}
	}
	return b.String()
}

var statuses = map[string]Status{
	"ok": OK, "session": Session, "window": Window, "stale": Stale, "unknown-service": UnknownService, "refused": Refused, "limit": Limit, "too-large": TooLarge,
	"moved": Moved,
}

// TestClientTraces replays the conversations in testdata/client. The first directive of a line may pass time with +duration.
func TestClientTraces(t *testing.T) {
	datadriven.Walk(t, "testdata/client", func(t *testing.T, path string) {
		p := &player{c: NewClient(ClientConfig{})}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			arg := func(key string) string {
				for _, a := range d.CmdArgs {
					if a.Key == key && len(a.Vals) > 0 {
						return a.Vals[0]
					}
				}
				return ""
			}
			num := func(key string) (n uint64) {
				fmt.Sscan(arg(key), &n)
				return n
			}
			if at := arg("at"); at != "" {
				d, err := time.ParseDuration(at)
				if err != nil {
					t.Fatal(err)
				}
				p.now = automaton.Instant(d)
			}
			switch d.Cmd {
			case "identity":
				return p.step(Identity{ID: order.ClientID{byte(num("id"))}})
			case "submit":
				var b strings.Builder
				for ref := num("ref"); ref <= max(num("ref"), num("to")); ref++ {
					b.WriteString(p.step(Submit{Ref: ref, Service: "tape", Data: fmt.Appendf(nil, "c%d", ref)}))
				}
				return b.String()
			case "abandon":
				return p.step(Abandon{Ref: num("ref")})
			case "keep":
				return p.step(KeepAlive{On: arg("on") == "true"})
			case "located":
				l := Located{Leader: node(arg("leader"))}
				for _, v := range arg("voters") {
					l.Voters = append(l.Voters, node(string(v)))
				}
				return p.step(l)
			case "answer":
				return p.step(Answer{Call: num("call"), Status: statuses[arg("status")], Data: []byte(arg("data"))})
			case "not-leader":
				return p.step(NotLeader{Call: num("call"), Hint: node(arg("hint"))})
			case "no-answer":
				return p.step(NoAnswer{Call: num("call")})
			case "timer":
				return p.step(Timer{})
			case "close":
				return p.step(Close{})
			case "gone":
				return p.step(Gone{})
			}
			t.Fatalf("unknown directive %q", d.Cmd)
			return ""
		})
	})
}

// opened returns a client with an open session at replica a.
func opened(t testing.TB) *player {
	p := &player{c: NewClient(ClientConfig{})}
	p.step(Identity{ID: order.ClientID{1}})
	p.step(Submit{Ref: 1 << 20, Service: "tape"})
	p.step(Located{Voters: []keyspace.NodeID{node("a"), node("b"), node("c")}})
	p.step(Answer{Call: 1})
	p.step(Answer{Call: 2})
	if !p.c.Idle() || !p.c.open {
		t.Fatal("not open")
	}
	return p
}

func TestNoMoreThanAWindowIsInFlight(t *testing.T) {
	p := opened(t)
	sent := 0
	for ref := range uint64(WindowSize + 10) {
		sent += strings.Count(p.step(Submit{Ref: ref, Service: "tape"}), "->")
	}
	if sent != WindowSize {
		t.Fatalf("%d sent", sent)
	}
	// The answer to a later command moves nothing while the first is open: the group could not know how far to forget.
	if got := p.step(Answer{Call: 4}); strings.Contains(got, "->") {
		t.Errorf("sent beyond the window: %s", got)
	}
	if got := p.step(Answer{Call: 3}); strings.Count(got, "->") != 2 || !strings.Contains(got, "acked=3") {
		t.Errorf("after the first two answers:\n%s", got)
	}
}

func TestQueueIsBounded(t *testing.T) {
	p := opened(t)
	for ref := range uint64(WindowSize + QueueMax) {
		if got := p.step(Submit{Ref: ref, Service: "tape"}); strings.Contains(got, "done") {
			t.Fatalf("command %d: %s", ref, got)
		}
	}
	if got := p.step(Submit{Ref: 5000, Service: "tape"}); got != "done ref=5000: "+ErrBusy.Error()+"\n" {
		t.Errorf("one more: %s", got)
	}
}

func TestWhatNoGroupTakesIsNotSent(t *testing.T) {
	p := opened(t)
	for _, c := range []struct {
		s    Submit
		want error
	}{
		{Submit{Service: Service}, ErrRefused},
		{Submit{Service: TickService}, ErrRefused},
		{Submit{Service: strings.Repeat("s", order.ServiceBytesMax+1)}, ErrTooLarge},
		{Submit{Service: "tape", Data: make([]byte, order.DataBytesMax+1)}, ErrTooLarge},
	} {
		got := p.c.Step(c.s, 0, nil)
		if d, ok := got[0].(Done); !ok || len(got) != 1 || !errors.Is(d.Err, c.want) {
			t.Errorf("%.20s: %v", c.s.Service, got)
		}
	}
}

func TestUnansweredCallsAreBounded(t *testing.T) {
	p := opened(t)
	for ref := range uint64(WindowSize) {
		p.step(Submit{Ref: ref, Service: "tape"})
	}
	most := 0
	for range 20 { // a leader that answers one call and no other, and is gone again
		p.now = p.now.Add(time.Minute)
		out := p.step(NoAnswer{Call: p.c.lastID}) + p.step(Timer{})
		p.now = p.now.Add(time.Minute)
		out += p.step(Timer{}) + p.step(Answer{Call: p.c.lastID, Status: Window})
		p.now = p.now.Add(time.Minute)
		out += p.step(Timer{})
		if !strings.Contains(out, "->") && len(p.c.calls) < CallsMax {
			t.Fatalf("nothing is repeated with %d unanswered calls", len(p.c.calls))
		}
		most = max(most, len(p.c.calls))
	}
	if most != CallsMax {
		t.Errorf("%d unanswered calls, at most %d", most, CallsMax)
	}
}

// TestClientAgainstAForgetfulNetwork plays a client against a real table, with calls that are lost before or after they are
// executed, replicas that do not lead, and sessions that end. Each command must be executed at most once, and what its
// caller is told must be true.
func TestClientAgainstAForgetfulNetwork(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type executed struct{ times int }
		runs := make(map[string]*executed)
		g := &group{t: nil, tape: new(tape), stamp: order.Stamp{Boot: 1}}
		g.table = NewTable(0, map[string]Machine{"tape": counting{g.tape, func(data string) {
			if runs[data] == nil {
				runs[data] = new(executed)
			}
			runs[data].times++
		}}})
		c := NewClient(ClientConfig{TTL: time.Second, CallTimeout: 400 * time.Millisecond})
		now, ids, refs := automaton.Instant(0), byte(0), uint64(0)
		armed := automaton.Never
		open := make(map[uint64]bool) // refs without a Done
		var calls []SendTo
		var events []ClientEvent
		step := func(ev ClientEvent) {
			events = append(events, ev)
			for len(events) > 0 {
				ev, events = events[0], events[1:]
				for _, a := range c.Step(ev, now, nil) {
					switch a := a.(type) {
					case SendTo:
						calls = append(calls, a)
					case Arm:
						armed = a.At
					case Lost:
						ids++
						events = append(events, Identity{ID: order.ClientID{ids}})
					case Relocate:
						events = append(events, Located{Voters: []keyspace.NodeID{node("a"), node("b")}})
					case Done:
						if !open[a.Ref] {
							t.Fatalf("command %d done twice", a.Ref)
						}
						delete(open, a.Ref)
						ran := runs[fmt.Sprint(a.Ref)]
						switch {
						case a.Err == nil && ran == nil:
							t.Fatalf("command %d: told it was executed", a.Ref)
						case a.Err != nil && !errors.Is(a.Err, ErrOutcomeUnknown) && ran != nil:
							t.Fatalf("command %d: told %v, but it was executed", a.Ref, a.Err)
						}
					}
				}
			}
		}
		ids++
		step(Identity{ID: order.ClientID{ids}})
		execute := func(a SendTo) Result {
			a.Cmd.Author = peerA
			return g.apply(a.Cmd)
		}
		pass := func(d time.Duration) {
			now = now.Add(d)
			g.stamp.At += d
		}
		turn := func(faults bool) {
			kind := 0
			if faults {
				kind = rapid.IntRange(0, 9).Draw(t, "fate")
			}
			if len(calls) > 0 {
				i := 0
				if faults {
					i = rapid.IntRange(0, len(calls)-1).Draw(t, "call")
				}
				a := calls[i]
				calls = slices.Delete(calls, i, i+1)
				switch {
				case kind == 1:
					step(NoAnswer{Call: a.Call})
				case kind == 2:
					execute(a)
					step(NoAnswer{Call: a.Call})
				case kind == 3:
					step(NotLeader{Call: a.Call, Hint: node("b")})
				default:
					r := execute(a)
					step(Answer{Call: a.Call, Status: r.Status, Data: r.Data})
				}
			}
			switch {
			case kind == 4:
				pass(time.Duration(rapid.IntRange(0, 900).Draw(t, "ms")) * time.Millisecond)
			case kind == 5 && refs > 0:
				step(Abandon{Ref: rapid.Uint64Range(1, refs).Draw(t, "ref")})
			case armed != automaton.Never && len(calls) == 0:
				pass(max(0, armed.Sub(now)))
			}
			if now >= armed {
				step(Timer{})
			}
			for data, e := range runs {
				if e.times > 1 {
					t.Fatalf("command %s executed %d times", data, e.times)
				}
			}
		}
		for range rapid.IntRange(1, 80).Draw(t, "turns") {
			if rapid.Bool().Draw(t, "submit") {
				refs++
				open[refs] = true
				step(Submit{Ref: refs, Service: "tape", Data: fmt.Append(nil, refs)})
			}
			turn(true)
		}
		for range 2000 { // the faults are over
			if len(open) == 0 && c.Idle() {
				return
			}
			turn(false)
		}
		t.Fatalf("no progress: %d commands open, %+v", len(open), c)
	})
}

// counting tells of each execution.
type counting struct {
	*tape
	ran func(data string)
}

func (m counting) Apply(c Context, data []byte) []byte {
	m.ran(string(data))
	return data
}

func BenchmarkClientCommand(b *testing.B) {
	p := opened(b)
	var out []ClientAction
	b.ReportAllocs()
	for ref := uint64(0); b.Loop(); ref++ {
		out = p.c.Step(Submit{Ref: ref, Service: "tape"}, p.now, out[:0])
		out = p.c.Step(Answer{Call: p.c.lastID}, p.now, out[:0])
	}
}
