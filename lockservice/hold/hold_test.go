package hold

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"pgregory.net/rapid"

	"latchkey/internal/automaton"
)

func at(i automaton.Instant) string {
	if i == automaton.Never {
		return "never"
	}
	return time.Duration(i).String()
}

func printActions(acts []Action) string {
	var b strings.Builder
	for _, a := range acts {
		switch a := a.(type) {
		case Call:
			fmt.Fprintf(&b, "-> %v call=%d attempt=%d", a.Kind, a.ID, a.Attempt)
			if a.Kind != Acquire {
				fmt.Fprintf(&b, " token=%d", a.Token)
			}
			if a.Try {
				b.WriteString(" try")
			}
			b.WriteString("\n")
		case Abandon:
			fmt.Fprintf(&b, "abandon call=%d\n", a.Call)
		case Arm:
			fmt.Fprintf(&b, "timer at %s\n", at(a.At))
		case Waiting:
			fmt.Fprintf(&b, "waiting behind %d\n", a.Position)
		case Acquired:
			fmt.Fprintf(&b, "ACQUIRED token=%d until %s\n", a.Token, at(a.Deadline))
		case Renewed:
			fmt.Fprintf(&b, "renewed until %s\n", at(a.Deadline))
		case Lost:
			fmt.Fprintf(&b, "LOST %v\n", a.Cause)
		case Done:
			fmt.Fprintf(&b, "done: %v\n", a.Err)
		}
	}
	return b.String()
}

var kinds = map[string]AnswerKind{
	"granted": Granted, "queued": Queued, "locked": Locked, "held": Held, "not-held": NotHeld, "released": Released, "refused": Refused,
}

// TestTraces replays the stories in testdata/traces. The TTL is 30 s and there is no drift unless a story says otherwise, so
// that a renewal is due after 10 s, repeated after 1 s, and a loss is reported 3 s before D. Every directive may say its
// instant with at=; the state follows what the hold asks for.
func TestTraces(t *testing.T) {
	datadriven.Walk(t, "testdata/traces", func(t *testing.T, path string) {
		h := New(Config{TTL: 30 * time.Second})
		now := automaton.Instant(0)
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
			if s := arg("at"); s != "" {
				d, err := time.ParseDuration(s)
				if err != nil {
					t.Fatal(err)
				}
				now = automaton.Instant(d)
			}
			var ev Event
			switch d.Cmd {
			case "config":
				h = New(Config{TTL: 30 * time.Second, Drift: automaton.Drift(num("drift")), Try: arg("try") == "true"})
				now = 0
				return ""
			case "begin":
				ev = Begin{}
			case "answer":
				a := Answer{Call: num("call"), Kind: kinds[arg("kind")], Token: num("token"), Waited: arg("waited") == "true", Position: int(num("position"))}
				if a.Kind == Refused {
					a.Err = errors.New("refused")
				}
				ev = a
			case "failed":
				ev = Failed{Call: num("call")}
			case "pushed":
				ev = Pushed{Attempt: num("attempt"), Token: num("token")}
			case "doubt":
				ev = Doubt{}
			case "timer":
				ev = Timer{}
			case "release":
				ev = Release{}
			case "jump":
				ev = Jump{}
			default:
				t.Fatalf("unknown directive %q", d.Cmd)
			}
			return printActions(h.Step(ev, now, nil)) + h.State().String() + "\n"
		})
	})
}

// TestHoldKeepsItsPromises feeds drawn events, fitting and not, and checks what no sequence may break: the deadline is never
// later than the sending of a call that was confirmed plus shrink(TTL); it only rises; what is lost stays lost and is
// reported in time; unanswered calls stay few; a timer is always set while one is needed; and a hold that is given back
// comes to its end.
func TestHoldKeepsItsPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := Config{TTL: 30 * time.Second, Drift: automaton.DriftDefault, Try: rapid.Bool().Draw(t, "try")}
		h := New(cfg)
		now := automaton.Instant(rapid.Int64Range(0, 1e9).Draw(t, "start"))
		sent := make(map[uint64]automaton.Instant) // unanswered calls
		kind := make(map[uint64]CallKind)
		armed := automaton.Never
		firstAsk := automaton.Never // of this attempt
		attempt := uint64(0)
		var proven automaton.Instant = -1 // latest sending that some answer confirmed
		void := make(map[uint64]bool)     // calls sent before the clock jumped
		askVoid := false
		believed, lost, done := false, false, false
		deadline := automaton.Instant(0)
		step := func(ev Event) {
			if a, ok := ev.(Answer); ok {
				if s, ok := sent[a.Call]; ok && !void[a.Call] {
					switch {
					case a.Kind == Held && kind[a.Call] == Renew:
						proven = max(proven, s)
					case a.Kind == Granted && kind[a.Call] == Acquire && !a.Waited && !askVoid:
						proven = max(proven, firstAsk)
					}
				}
				delete(sent, a.Call)
			}
			if f, ok := ev.(Failed); ok {
				delete(sent, f.Call)
			}
			if _, ok := ev.(Timer); ok {
				armed = automaton.Never
			}
			if believed && now >= deadline.Add(-Guard(cfg.TTL)) {
				defer func() {
					if believed {
						t.Fatalf("%T at %v: still held with a deadline at %v", ev, now, deadline)
					}
				}()
			}
			for _, a := range h.Step(ev, now, nil) {
				switch a := a.(type) {
				case Call:
					if _, twice := sent[a.ID]; twice || a.ID == 0 {
						t.Fatalf("call %d twice", a.ID)
					}
					if a.Attempt != attempt {
						attempt, firstAsk, askVoid = a.Attempt, now, false
						clear(sent)
					}
					sent[a.ID], kind[a.ID] = now, a.Kind
					if a.Kind == GiveBack {
						believed = false
					}
				case Arm:
					armed = a.At
				case Acquired, Renewed:
					d := h.Deadline()
					if lost || done || d > proven.Add(cfg.Drift.Shrink(cfg.TTL)) || now >= d {
						t.Fatalf("%T at %v until %v, proven by a sending at %v (lost %v, done %v)", a, now, d, proven, lost, done)
					}
					if _, again := a.(Acquired); again == believed {
						t.Fatalf("%T while held is %v", a, believed)
					}
					if believed && d <= deadline {
						t.Fatalf("renewed from %v to %v", deadline, d)
					}
					believed, deadline = true, d
				case Lost:
					if !believed {
						t.Fatal("lost what was not held")
					}
					believed, lost = false, true
				case Done:
					if done {
						t.Fatal("done twice")
					}
					done, believed = true, false
				}
			}
			if n := len(h.calls); n > RenewalsMax+1 {
				t.Fatalf("%d unanswered calls", n)
			}
			if h.State() == StateHeld && (armed > h.guard() || !believed) {
				t.Fatalf("held until %v, timer at %v, believed %v", h.Deadline(), armed, believed)
			}
			if waits := h.State() == StateConfirming || h.State() == StateWaiting; waits && armed == automaton.Never {
				t.Fatalf("%v without a timer", h.State())
			}
		}
		answer := func(id uint64) Event {
			k := map[CallKind][]AnswerKind{
				Acquire:  {Granted, Granted, Granted, Queued, Queued, Locked, Refused},
				Renew:    {Held, Held, Held, Held, Held, Held, Queued, NotHeld},
				GiveBack: {Released, Released, NotHeld, Refused},
			}[kind[id]]
			a := Answer{Call: id, Kind: rapid.SampledFrom(k).Draw(t, "kind"), Token: 7 + attempt, Waited: rapid.Bool().Draw(t, "waited")}
			if a.Kind == Refused {
				a.Err = errors.New("refused")
			}
			return a
		}
		unanswered := func() uint64 {
			return rapid.SampledFrom(slices.Sorted(maps.Keys(sent))).Draw(t, "call")
		}
		step(Begin{})
		for range rapid.IntRange(1, 120).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.SampledFrom([]int{0, 0, 0, 100, 1000, 4000, 11_000, 40_000}).Draw(t, "ms")) * time.Millisecond)
			if armed <= now && rapid.IntRange(0, 9).Draw(t, "late") > 0 {
				step(Timer{})
			}
			switch n := rapid.IntRange(0, 31).Draw(t, "what"); {
			case n < 14 && len(sent) > 0:
				step(answer(unanswered()))
			case n < 17 && len(sent) > 0:
				step(Failed{Call: unanswered()})
			case n < 19:
				step(Pushed{Attempt: attempt - rapid.Uint64Range(0, 1).Draw(t, "old"), Token: 7 + attempt})
			case n < 27:
				if armed != automaton.Never {
					now = max(now, armed)
				}
				step(Timer{})
			case n == 27:
				step(Answer{Call: 9999, Kind: Held, Token: 7})
			case n == 28:
				askVoid = true
				for id := range sent {
					void[id] = true
				}
				step(Jump{})
			case n == 31:
				step(Doubt{})
			case n == 29:
				step(Release{})
			case n == 30:
				step(Begin{})
			}
		}
		step(Release{})
		for range 10 {
			if len(sent) > 0 {
				step(Failed{Call: unanswered()})
			}
			if armed != automaton.Never {
				now = max(now, armed)
				step(Timer{})
			}
			now = now.Add(cfg.TTL)
			step(Timer{})
		}
		if !done || h.State() != StateDone {
			t.Fatalf("given back, and no end: %+v", h)
		}
	})
}

func TestValidEndsAtTheDeadline(t *testing.T) {
	h := New(Config{TTL: 30 * time.Second})
	h.Step(Begin{}, 0, nil)
	if h.Valid(0) {
		t.Error("valid before it is granted")
	}
	h.Step(Answer{Call: 1, Kind: Granted, Token: 7}, automaton.Instant(time.Second), nil)
	d := automaton.Instant(30 * time.Second)
	if !h.Valid(d-1) || h.Valid(d) || h.Deadline() != d || h.Token() != 7 {
		t.Errorf("valid until %v, token %d", h.Deadline(), h.Token())
	}
	h.Step(Release{}, automaton.Instant(2*time.Second), nil)
	if h.Valid(automaton.Instant(2 * time.Second)) {
		t.Error("valid when it was given back")
	}
}

func BenchmarkRenewal(b *testing.B) {
	h := New(Config{TTL: 30 * time.Second, Drift: automaton.DriftDefault})
	out := h.Step(Begin{}, 0, nil)
	out = h.Step(Answer{Call: 1, Kind: Granted, Token: 7}, 0, out[:0])
	now := automaton.Instant(0)
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(10 * time.Second)
		out = h.Step(Timer{}, now, out[:0])
		out = h.Step(Answer{Call: h.lastID, Kind: Held, Token: 7}, now, out[:0])
	}
}
