package coherencetest

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"latchkey/coherence/cachedcopy"
	"latchkey/coherence/protocol"
)

var rewriteFlag = flag.Bool("rewrite", false, "write what the traces print into their files")

// A trace file tells a story. Lines that begin with # are prose. Every other line that does not begin with a space is a command, and the lines
// below it, indented, are what it prints: what is sent, and the state. The first command is
//
//	world nodes=2 objects=1 threads=0
//
// with an application manager if there are threads. Then come the moves of move_test.go; a message is named by a part of what it prints, the
// way it goes first. x1 and what there is only one of may be left out. Moreover:
//
//	flush [except PART]  everything arrives, as it was sent, what it causes too
//	settle               everything arrives, timers fire and detectors find out, until nothing happens
//	giveup n1            a caller no longer waits
//	without R1           the same from the beginning without a rule: what breaks, or how else it ends
type traceRun struct {
	w     *world
	setup setup
	done  []string // commands so far
	fired map[string]bool
}

func TestTraces(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no traces", err)
	}
	fired := map[string]bool{}
	shown := map[string]bool{}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			got := runTrace(t, string(text), fired, shown)
			if *rewriteFlag {
				if err := os.WriteFile(f, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != string(text) {
				t.Errorf("the trace prints otherwise; -rewrite shows it as a difference of the file:\n%s", difference(string(text), got))
			}
		})
	}
	for m := protocol.NoMutant + 1; m < protocol.Mutants; m++ {
		if !shown[m.String()] {
			t.Errorf("no trace shows what happens without %v", m)
		}
	}
}

// TestPaperTransitions lists the numbered transitions of appendix A that no trace fires. There are none: where a rule of ours replaces a part of
// a transition, the rest of it is there.
func TestPaperTransitions(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	fired := map[string]bool{}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		runTrace(t, string(text), fired, map[string]bool{})
	}
	for side, last := range map[string]int{"om": 15, "node": 26} {
		var missing []string
		for i := 1; i <= last; i++ {
			if !fired[fmt.Sprint(side, " ", i)] {
				missing = append(missing, strconv.Itoa(i))
			}
		}
		if len(missing) > 0 {
			t.Errorf("%s: no trace fires transitions %s", side, strings.Join(missing, ", "))
		}
	}
	if !fired["om 15'"] {
		t.Error("om: no trace fires 15'")
	}
}

func difference(a, b string) string {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range min(len(x), len(y)) {
		if x[i] != y[i] {
			return fmt.Sprintf("line %d:\n%s\n%s", i+1, x[i], y[i])
		}
	}
	return fmt.Sprintf("%d and %d lines", len(x), len(y))
}

func runTrace(t *testing.T, text string, fired, shown map[string]bool) string {
	r := &traceRun{fired: fired}
	var out strings.Builder
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if strings.HasPrefix(line, " ") {
			continue
		}
		out.WriteString(line + "\n")
		if line == "" || line[0] == '#' {
			continue
		}
		says, err := r.command(line)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if rule, ok := strings.CutPrefix(line, "without "); ok {
			if strings.HasPrefix(says, "the same") {
				t.Errorf("%q makes no difference", line)
			}
			shown[rule] = true
		}
		for l := range strings.Lines(says) {
			out.WriteString("    " + strings.TrimRight(l, "\n") + "\n")
		}
	}
	if err := r.w.check(); err != nil {
		t.Errorf("with all rules: %v", err)
	}
	return out.String()
}

// command runs one line and returns what it prints.
func (r *traceRun) command(line string) (string, error) {
	f := strings.Fields(line)
	if f[0] == "without" {
		return r.without(f[1])
	}
	r.done = append(r.done, line)
	if f[0] == "world" {
		s := setup{objects: 1, nodes: 2}
		for _, a := range f[1:] {
			k, v, _ := strings.Cut(a, "=")
			n, err := strconv.Atoi(v)
			switch {
			case err == nil && k == "nodes":
				s.nodes = n
			case err == nil && k == "objects":
				s.objects = n
			case err == nil && k == "threads":
				s.threads, s.full = n, true
			case a == "held":
				s.twoStep = true
			case a == "direct":
				s.direct = true
			default:
				return "", fmt.Errorf("no such property: %s", a)
			}
		}
		s.mutant = r.setup.mutant
		if r.fired != nil {
			s.observe = func(side, transition string) { r.fired[side+" "+transition] = true }
		}
		r.setup = s
		r.w = newWorld(&r.setup)
		return r.w.state(), nil
	}
	if r.w == nil {
		return "", fmt.Errorf("the first command is world")
	}
	before := r.w
	if err := r.move(f, line); err != nil {
		return "", err
	}
	var b strings.Builder
	if f[0] != "settle" && f[0] != "flush" {
		old := map[digest]int{}
		for _, p := range before.net {
			old[p.digest]++
		}
		for _, p := range r.w.net {
			if old[p.digest]--; old[p.digest] < 0 {
				fmt.Fprintln(&b, wire(&p.msg))
			}
		}
	}
	b.WriteString(r.w.state())
	return b.String(), r.w.check()
}

func (r *traceRun) move(f []string, line string) error {
	_, rest, _ := strings.Cut(line, " ")
	switch f[0] {
	case "flush":
		return r.w.flush(strings.TrimPrefix(strings.TrimPrefix(rest, "except"), " "), &r.w)
	case "settle":
		r.w.settle(&r.w)
		return nil
	case "giveup":
		v := r.w.clone()
		m, err := parse(f)
		if err != nil {
			return err
		}
		v.edit(m.node).wants = [2]cachedcopy.Right{}
		v.edit(m.node).seal(m.node)
		r.w = v
		return nil
	}
	m, err := parse(f)
	if err != nil {
		return err
	}
	if m.op == opDeliver || m.op == opDup || m.op == opLose {
		m.post = r.w.find(rest)
		if m.post < 0 {
			if r.setup.mutant != protocol.NoMutant || strings.HasPrefix(rest, "?") {
				return nil // it is part of the other story
			}
			return fmt.Errorf("no such message travels")
		}
	}
	r.w = r.w.apply(m)
	return nil
}

// find looks for a message by a part of its text. A ? before it says that it need not be there.
func (w *world) find(part string) int {
	part = strings.TrimSpace(strings.TrimPrefix(part, "?"))
	return slices.IndexFunc(w.net, func(p *post) bool { return strings.Contains(wire(&p.msg), part) })
}

// parse reads the arguments of a move: nodes, objects and threads.
func parse(f []string) (move, error) {
	m := move{op: f[0]}
	switch m.op {
	case opDeliver, opDup, opLose:
		return m, nil
	}
	for _, a := range f[1:] {
		n, err := strconv.Atoi(a[1:])
		if err != nil || n < 1 {
			return m, fmt.Errorf("argument %s", a)
		}
		switch a[0] {
		case 'n':
			m.node = n - 1
		case 'x', 't':
			m.arg = n - 1
		default:
			return m, fmt.Errorf("argument %s", a)
		}
	}
	return m, nil
}

// flush delivers everything that does not contain a part.
func (w *world) flush(except string, at **world) error {
	for range 1000 {
		i := slices.IndexFunc(w.net, func(p *post) bool { return except == "" || !strings.Contains(wire(&p.msg), except) })
		if i < 0 {
			*at = w
			return nil
		}
		w = w.apply(move{op: opDeliver, post: i})
		*at = w
		if err := w.check(); err != nil {
			return err
		}
	}
	return fmt.Errorf("L: it never ends")
}

// settle makes what goes well happen until everybody has what was asked for and nobody waits for a timer. It reports whether that came.
func (w *world) settle(at **world) bool {
	for range 40 {
		for again := true; again; {
			if w.flush("", at) != nil {
				return false
			}
			w, again = *at, false
			for _, m := range w.list(true) {
				if m.op == opDeliver || m.op == opRepeat || m.op == opResendOM || m.op == opResendAM {
					continue
				}
				w = w.apply(m) // what a store, a detector, a policy or a thread does in time
				*at, again = w, true
				break
			}
		}
		if err := w.check(); err != nil {
			return false
		}
		if w.settled() && w.idle() {
			return true
		}
		for i := range w.peers {
			if w.peers[i].up {
				w = w.apply(move{op: opRepeat, node: i})
			}
		}
		for o := range w.oms {
			w = w.apply(move{op: opResendOM, arg: o})
		}
		if w.am != nil {
			w = w.apply(move{op: opResendAM})
		}
		*at = w
	}
	return false
}

// idle reports whether timers would say nothing.
func (w *world) idle() bool {
	for _, p := range w.peers {
		if p.up && (p.node != nil && p.node.Waits() || slices.ContainsFunc(p.copies, (*cachedcopy.Copy).Waits)) {
			return false
		}
	}
	return true
}

// picture is the state and what travels.
func (w *world) picture() string {
	var ms []string
	for _, p := range w.net {
		ms = append(ms, "\n"+wire(&p.msg))
	}
	slices.Sort(ms)
	return w.state() + strings.Join(ms, "")
}

// without replays the story without a rule.
func (r *traceRun) without(rule string) (string, error) {
	i := slices.IndexFunc(mutants(), func(m protocol.Mutant) bool { return m.String() == rule })
	if i < 0 {
		return "", fmt.Errorf("no such rule")
	}
	o := &traceRun{setup: setup{mutant: mutants()[i]}}
	for _, line := range r.done {
		if _, err := o.command(line); err != nil {
			return err.Error(), nil
		}
	}
	end := o.w
	if !o.w.settle(&end) {
		if err := end.check(); err != nil {
			return err.Error(), nil
		}
		return "L: somebody waits for ever\n" + end.state(), nil
	}
	if o.w.picture() != r.w.picture() {
		return "it goes otherwise\n" + o.w.picture(), nil
	}
	return "the same", nil
}

func mutants() (ms []protocol.Mutant) {
	for m := range protocol.Mutants {
		ms = append(ms, m)
	}
	return ms
}
