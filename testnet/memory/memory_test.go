package memory

import (
	"bytes"
	"errors"
	"flag"
	"slices"
	"strings"
	"testing"

	"latchkey/testnet"
	"latchkey/testnet/litmus"
)

var runsFlag = flag.Int("runs", 5, "runs of each shape")

// shapes returns some of the built-in ones; all of them when there are many runs.
func shapes() []*litmus.Program {
	return slices.DeleteFunc(litmus.Builtin(), func(p *litmus.Program) bool {
		return *runsFlag <= 5 && !slices.Contains([]string{"SB", "MP", "IRIW", "2+2W"}, p.Name)
	})
}

func TestNoForbiddenOutcomeOnRealPeers(t *testing.T) {
	t.Parallel()
	told := 0
	r, err := Run(t.Context(), Options{N: 4, Runs: *runsFlag, Programs: shapes(), Shape: func(Shape) { told++ }})
	if err != nil {
		t.Fatal(err)
	}
	if r.Forbidden > 0 || r.Failed > 0 || r.Runs != *runsFlag*len(shapes()) || told != len(shapes()) {
		t.Errorf("%+v, %d shapes told", r, told)
	}
	var text bytes.Buffer
	if r.Text(&text); strings.Count(text.String(), "\n") != len(shapes())+2 {
		t.Errorf("the report:\n%s", text.String())
	}
}

func TestEachMistakeShowsAForbiddenOutcome(t *testing.T) {
	t.Parallel()
	mistakes := Mistakes
	if *runsFlag <= 5 {
		mistakes = mistakes[len(mistakes)-1:] // each has a testnet of its own
	}
	for _, m := range mistakes {
		r, err := Run(t.Context(), Options{N: 3, Runs: 200, Programs: shapes(), Mistake: &m})
		if err != nil || r.Forbidden == 0 {
			t.Errorf("%s: %+v, %v", m.Name, r, err)
		}
	}
}

// TestVerdicts: what each report comes to.
func TestVerdicts(t *testing.T) {
	good, bad, failed := Shape{Name: "good", Runs: 3}, Shape{Name: "bad", Runs: 3, Forbidden: map[string]int{"a=0 b=0": 2}}, Shape{Name: "failed", Failed: 1, Failure: "down"}
	for _, c := range []struct {
		shapes  []Shape
		planted bool
		want    error
		text    string
	}{
		{shapes: []Shape{good}}, {shapes: []Shape{good, bad}, want: litmus.ErrForbidden}, {shapes: []Shape{failed}, text: "down"},
		{shapes: []Shape{bad}, planted: true}, {shapes: []Shape{good}, planted: true, want: ErrMissed},
	} {
		var r Report
		for _, s := range c.shapes {
			r.add(s)
		}
		err := r.err(c.planted)
		if c.want != nil && !errors.Is(err, c.want) || c.want == nil && c.text == "" && err != nil || c.text != "" && (err == nil || !strings.Contains(err.Error(), c.text)) {
			t.Errorf("%+v, planted %v: %v", c.shapes, c.planted, err)
		}
	}
	for _, o := range []Options{{N: 1}, {Runs: RunsMax + 1}, {Runs: -1}} {
		if _, err := Run(t.Context(), o); !errors.Is(err, testnet.ErrOptions) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}
