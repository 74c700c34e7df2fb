package litmus

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"latchkey/internal/history"
)

func TestOutcomesOfShapes(t *testing.T) {
	want := map[string][]string{
		"SB":    {"a=0 b=1", "a=1 b=0", "a=1 b=1"},
		"MP":    {"a=0 b=0", "a=0 b=1", "a=1 b=1"},
		"LB":    {"a=0 b=0", "a=0 b=1", "a=1 b=0"},
		"2+2W":  {"x=1 y=1", "x=1 y=2", "x=2 y=1"},
		"S":     {"a=0 x=1", "a=0 x=2", "a=1 x=1"},
		"R":     {"a=0 y=1", "a=1 y=1", "a=1 y=2"},
		"CoRR":  {"a=0 b=0", "a=0 b=1", "a=1 b=1"},
		"CoWW":  {"x=2"},
		"CoRW1": {"a=0"},
		"CoRW":  {"a=0 x=1", "a=0 x=2", "a=2 x=1"},
		"CoWR":  {"a=1 x=1", "a=1 x=2", "a=2 x=2"},
	}
	for _, p := range Builtin() {
		var got []string
		for _, o := range p.Allowed() {
			got = append(got, p.Text(o))
		}
		if w, ok := want[p.Name]; ok && !slices.Equal(got, w) {
			t.Errorf("%s: %v, want %v", p.Name, got, w)
		}
		delete(want, p.Name)
		if p.Name == "IRIW" && len(got) != 15 {
			t.Errorf("IRIW: %d of 16 outcomes", len(got))
		}
		if len(p.Never) == 0 {
			t.Errorf("%s does not say what never occurs", p.Name)
		}
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
}

// What this package finds by going through all orders, the checker of recorded histories decides from the values alone. Every
// outcome that anybody could think of is put to both.
func TestOutcomesAgreeWithTheCheckerOfHistories(t *testing.T) {
	t.Parallel()
	for _, p := range Builtin() {
		values := make([][]int, len(p.Objects)) // that an object can hold
		for i := range values {
			values[i] = []int{0}
		}
		objects := make([]int, len(p.Registers)) // that each is read from
		for _, statements := range p.Peers {
			for _, s := range statements {
				if s.Writes() {
					values[s.Object] = append(values[s.Object], s.Value)
				} else {
					objects[s.Register] = s.Object
				}
			}
		}
		objects = append(objects, p.Finally...)
		outcome, judged := make(Outcome, len(objects)), 0
		var each func(i int)
		each = func(i int) {
			if i == len(outcome) {
				judged++
				h := recorded(p, outcome)
				if r := h.CheckSequential(0); r.Verdict == history.Unknown || (r.Verdict == history.Ok) != p.Allows(outcome) {
					t.Errorf("%s: %s: allowed is %v, but the checker says %v", p.Name, p.Text(outcome), p.Allows(outcome), r.Verdict)
				}
				return
			}
			for _, v := range values[objects[i]] {
				outcome[i] = v
				each(i + 1)
			}
		}
		each(0)
		if judged < len(p.Allowed()) {
			t.Errorf("%s: %d outcomes", p.Name, judged)
		}
	}
}

// recorded is the history of a run with this outcome. Each peer reads the objects that count finally when it has ended: if all
// find the same then no write came later.
func recorded(p *Program, o Outcome) *history.History {
	h := history.New()
	for peer, statements := range p.Peers {
		for _, s := range statements {
			if name := p.Objects[s.Object]; s.Writes() {
				h.Return(h.Call(peer, history.Write(name, uint64(s.Value))), history.Answer{})
			} else {
				h.Return(h.Call(peer, history.Read(name)), history.Answer{Value: uint64(o[s.Register])})
			}
		}
		for i, object := range p.Finally {
			h.Return(h.Call(peer, history.Read(p.Objects[object])), history.Answer{Value: uint64(o[len(p.Registers)+i])})
		}
	}
	return h
}

func TestDecode(t *testing.T) {
	all, err := Decode(strings.NewReader("# two\r\n\nlitmus A-1 what it is about # not this\n peer: x=1 ;b_2 =  y\npeer:y = 999\n" +
		"finally: y  x\nnever: b_2=5 x=1\nnever: x=0\nlitmus B\npeer: a = x"))
	if err != nil || len(all) != 2 {
		t.Fatal(all, err)
	}
	p := all[0]
	if p.Name != "A-1" || p.About != "what it is about" || fmt.Sprint(p.Objects, p.Registers, p.Observed(), p.Peers, p.Never) !=
		"[x y] [b_2] [b_2 y x] [[{0 -1 1} {1 0 0}] [{1 -1 999}]] [[{0 5} {2 1}] [{2 0}]]" {
		t.Errorf("%+v", p)
	}
	if got := p.Text(p.Allowed()[0]); len(p.Allowed()) != 2 || got != "b_2=0 y=999 x=1" {
		t.Errorf("allowed: %v", p.Allowed())
	}
	if all[1].Name != "B" || len(all[1].Allowed()) != 1 {
		t.Errorf("%+v", all[1])
	}
	if all, err := Decode(strings.NewReader("\n# nothing\n")); err != nil || len(all) != 0 {
		t.Errorf("an empty file: %v, %v", all, err)
	}
}

func TestMalformedFilesAreRefused(t *testing.T) {
	const head = "litmus A\npeer: x = 1; a = x\n"
	for _, c := range []struct{ text, want string }{
		{"peer: x = 1", `line 1: "peer:" before the first litmus NAME`},
		{"litmus", "line 1: name"},
		{"litmus a/b", "line 1: name"},
		{"litmus A\n\nlitmus B", "line 1: A has no peer"},
		{"litmus A\npeer: x = 1", "line 1: A observes nothing"},
		{head + "litmus A", "line 3: another program is called A"},
		{head + "peers: x = 1", `line 3: "peers:" is none of`},
		{head + "peer:", `line 3: statement ""`},
		{head + "peer: y = 1;", `line 3: statement ""`},
		{head + "peer: y", `line 3: statement "y"`},
		{head + "peer: 1 = y", `line 3: statement "1 = y"`},
		{head + "peer: y = -1", `line 3: statement "y = -1"`},
		{head + "peer: y = 1000", "line 3: value 1000: 0 to 999"},
		{head + "peer: y = 99999999999999999999", "line 3: value"},
		{head + "peer: a = y", "line 3: register a is read into twice"},
		{head + "peer: x = y", "line 3: x is an object"},
		{head + "peer: a = 1", "line 3: a is a register"},
		{head + "peer: b = a", "line 3: a is a register"},
		{head + "peer: b = b", "line 3: b is a register"},
		{head + "finally:", "line 3: finally: no object"},
		{head + "finally: y", `line 3: finally: no peer reads or writes "y"`},
		{head + "finally: x x", "line 3: finally: x twice"},
		{head + "never:", "line 3: never: no outcome"},
		{head + "never: x=1", `line 3: never: "x" is not observed: a`},
		{head + "never: a", `line 3: never: "a": NAME=NUMBER`},
		{head + "never: a=0 a=0", "line 3: never: a twice"},
		{head + "never: a=0\nnever: a=1", "line 4: never: a=1 is sequentially consistent"},
	} {
		all, err := Decode(strings.NewReader(c.text))
		if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, %v; want %q", c.text, all, err, c.want)
		}
	}
	if _, err := Decode(iotest.ErrReader(io.ErrUnexpectedEOF)); !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, ErrMalformed) {
		t.Errorf("a file that cannot be read: %v", err)
	}
}

// Each limit at its edge: so much is taken, and one more is not.
func TestLimitsOfFiles(t *testing.T) {
	const one = "peer: x = 1; a = x\n"
	lines := func(n int, f func(i int) string) string {
		var b strings.Builder
		for i := range n {
			b.WriteString(f(i) + "\n")
		}
		return b.String()
	}
	for _, c := range []struct {
		name, want string
		max        int
		text       func(n int) string
	}{
		{"lines", "lines", linesMax, func(n int) string { return strings.Repeat("\n", n) }},
		{"bytes of a line", "longer than 1024 bytes", lineBytesMax - 1, func(n int) string { return "#" + strings.Repeat("x", n-1) }},
		{"programs", "more than 1024 programs", programsMax, func(n int) string {
			return lines(n, func(i int) string { return fmt.Sprintf("litmus A%d\n%s", i, one) })
		}},
		{"name", "name", nameBytesMax, func(n int) string { return "litmus " + strings.Repeat("n", n) + "\n" + one }},
		{"identifier", "statement", nameBytesMax, func(n int) string { return "litmus A\npeer: a = " + strings.Repeat("n", n) }},
		{"peers", "more than 12 peers", peersMax, func(n int) string {
			return "litmus A\npeer: a = x\n" + lines(n-1, func(i int) string { return "peer: x = 0" })
		}},
		{"statements", "more than 32 statements", statementsMax, func(n int) string {
			return "litmus A\npeer: a = x" + strings.Repeat("; x = 1", n-1)
		}},
		{"objects", "more than 16 objects", objectsMax, func(n int) string {
			return "litmus A\n" + lines(1, func(int) string { return "peer: a = x0" + strings.Repeat("; x1 = 1", 1) }) + "peer: x2 = 0" +
				strings.Join(strings.Split(lines(n-3, func(i int) string { return fmt.Sprintf("; x%d = 0", i+3) }), "\n"), "")
		}},
		{"never", "more than 16 outcomes", neverMax, func(n int) string { return "litmus A\n" + one + strings.Repeat("never: a=7\n", n) }},
	} {
		if _, err := Decode(strings.NewReader(c.text(c.max))); err != nil {
			t.Errorf("%s: %d: %v", c.name, c.max, err)
		}
		if _, err := Decode(strings.NewReader(c.text(c.max + 1))); !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %d: %v", c.name, c.max+1, err)
		}
	}
	// 8 peers of 4 statements each have 5⁸ places to be at.
	many := "litmus A\npeer: a = x; x = 1; x = 2; x = 3\n" + strings.Repeat("peer: x = 0; x = 1; x = 2; x = 3\n", 7)
	if _, err := Decode(strings.NewReader(many)); !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), "more than 32768 states") {
		t.Errorf("states of a program: %v", err)
	}
	// 5 peers of 4 statements have more than a hundredth of what a file may have, and less than all that a program may.
	some := lines(100, func(i int) string {
		return fmt.Sprintf("litmus A%d\npeer: a = x; x = 1; x = 2; x = 3\n%s", i, strings.Repeat("peer: x = 0; x = 1; x = 2; x = 3\n", 4))
	})
	if _, err := Decode(strings.NewReader(some)); !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), "more than 262144 states") {
		t.Errorf("states of a file: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("# Two peers.\nlitmus SB store buffer\npeer: x = 1; a = y\npeer: y = 1; b = x\nnever: a=0 b=0\n")
	f.Add("litmus A\npeer: x = 1; a = x\nfinally: x\nnever: a=7 x=0\n")
	f.Fuzz(func(t *testing.T, text string) {
		all, err := Decode(strings.NewReader(text))
		if err != nil {
			if !errors.Is(err, ErrMalformed) || all != nil {
				t.Fatal(all, err)
			}
			return
		}
		for _, p := range all {
			if len(p.Allowed()) == 0 {
				t.Fatalf("%s: no outcome at all", p.Name)
			}
			for _, o := range p.Allowed() {
				if !p.Allows(o) || len(o) != len(p.Observed()) {
					t.Fatalf("%s: outcome %v", p.Name, o)
				}
				for _, terms := range p.Never {
					if o.includes(terms) {
						t.Fatalf("%s: %v never occurs", p.Name, o)
					}
				}
			}
		}
	})
}
