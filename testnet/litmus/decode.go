package litmus

import (
	"bufio"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// Limits of a file. What is beyond is refused, with its line.
const (
	linesMax      = 16384
	lineBytesMax  = 1024
	programsMax   = 1024
	nameBytesMax  = 32 // of programs, objects and registers
	peersMax      = 12
	statementsMax = 32 // of a program
	objectsMax    = 16
	neverMax      = 16 // lines of a program
	valueMax      = 999
	statesMax     = 1 << 15 // on the way through all orders of a program
	statesFileMax = 1 << 18 // of all programs of a file
)

// ErrMalformed is matched by errors about a file that is none of litmus programs.
var ErrMalformed = errors.New("litmus: malformed")

//go:embed shapes.txt
var shapes string

// Builtin returns the classic shapes, and some of our own. They are decoded from a file like any other, shapes.txt in this
// package, which also tells what each is about.
func Builtin() []*Program {
	all, err := Decode(strings.NewReader(shapes))
	if err != nil {
		panic(err)
	}
	return all
}

// Decode reads programs in the form of the package comment. Errors match [ErrMalformed] and name the line, or are r's own.
func Decode(r io.Reader) ([]*Program, error) {
	d := &decoder{}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, lineBytesMax)
	for lines.Scan() {
		d.line++
		if d.line > linesMax {
			return nil, d.errorf("more than %d lines", linesMax)
		}
		text, _, _ := strings.Cut(lines.Text(), "#")
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		if err := d.take(text); err != nil {
			return nil, err
		}
	}
	switch err := lines.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		d.line++
		return nil, d.errorf("longer than %d bytes", lineBytesMax)
	case err != nil:
		return nil, fmt.Errorf("litmus: line %d: %w", d.line+1, err)
	}
	if err := d.finish(); err != nil {
		return nil, err
	}
	return d.programs, nil
}

type decoder struct {
	line       int
	programs   []*Program
	at         *Program // under way, also the last of programs
	begun      int      // its line
	statements int
	states     int // of all programs
	never      []never
}

// never is a line that is understood when the whole program is known.
type never struct {
	line int
	text string
}

func (d *decoder) errorf(format string, args ...any) error {
	return fmt.Errorf("%w: line %d: %s", ErrMalformed, d.line, fmt.Sprintf(format, args...))
}

// take reads one line that is not empty.
func (d *decoder) take(text string) error {
	word, rest := text, ""
	if i := strings.IndexAny(text, " \t:"); i >= 0 {
		if text[i] == ':' {
			i++
		}
		word, rest = text[:i], strings.TrimSpace(text[i:])
	}
	if word == "litmus" {
		if err := d.finish(); err != nil {
			return err
		}
		return d.begin(rest)
	}
	if d.at == nil {
		return d.errorf("%q before the first litmus NAME", word)
	}
	switch word {
	case "peer:":
		return d.peer(rest)
	case "finally:":
		return d.finally(rest)
	case "never:":
		if len(d.never) == neverMax {
			return d.errorf("more than %d outcomes that never occur", neverMax)
		}
		d.never = append(d.never, never{d.line, rest})
		return nil
	}
	return d.errorf("%q is none of litmus, peer:, finally: and never:", word)
}

func (d *decoder) begin(rest string) error {
	name, about, _ := strings.Cut(rest, " ")
	if name == "" || len(name) > nameBytesMax || strings.ContainsFunc(name, func(c rune) bool {
		return !letter(c) && !digit(c) && !strings.ContainsRune("+-._", c)
	}) {
		return d.errorf("name %q: 1 to %d letters, digits, or of + - . _", name, nameBytesMax)
	}
	if slices.ContainsFunc(d.programs, func(p *Program) bool { return p.Name == name }) {
		return d.errorf("another program is called %s", name)
	}
	if len(d.programs) == programsMax {
		return d.errorf("more than %d programs", programsMax)
	}
	d.at = &Program{Name: name, About: strings.TrimSpace(about)}
	d.programs = append(d.programs, d.at)
	d.begun, d.statements, d.never = d.line, 0, nil
	return nil
}

func (d *decoder) peer(rest string) error {
	p := d.at
	if len(p.Peers) == peersMax {
		return d.errorf("more than %d peers", peersMax)
	}
	var statements []Statement
	for text := range strings.SplitSeq(rest, ";") {
		left, right, ok := strings.Cut(text, "=")
		left, right = strings.TrimSpace(left), strings.TrimSpace(right)
		if !ok || !identifier(left) || !identifier(right) && !number(right) {
			return d.errorf("statement %q: OBJECT = NUMBER or REGISTER = OBJECT", strings.TrimSpace(text))
		}
		if d.statements++; d.statements > statementsMax {
			return d.errorf("more than %d statements in a program", statementsMax)
		}
		s, object := Statement{Register: -1}, left
		if number(right) {
			v, err := d.value(right)
			if err != nil {
				return err
			}
			s.Value = v
		} else {
			object = right
			if slices.Contains(p.Registers, left) {
				return d.errorf("register %s is read into twice", left)
			}
			if slices.Contains(p.Objects, left) {
				return d.errorf("%s is an object and cannot be read into", left)
			}
			s.Register = len(p.Registers)
			p.Registers = append(p.Registers, left)
		}
		if slices.Contains(p.Registers, object) {
			return d.errorf("%s is a register, not an object", object)
		}
		s.Object = slices.Index(p.Objects, object)
		if s.Object < 0 {
			if len(p.Objects) == objectsMax {
				return d.errorf("more than %d objects", objectsMax)
			}
			s.Object = len(p.Objects)
			p.Objects = append(p.Objects, object)
		}
		statements = append(statements, s)
	}
	p.Peers = append(p.Peers, statements)
	return nil
}

func (d *decoder) finally(rest string) error {
	names := strings.Fields(rest)
	if len(names) == 0 {
		return d.errorf("finally: no object")
	}
	for _, name := range names {
		o := slices.Index(d.at.Objects, name)
		if o < 0 {
			return d.errorf("finally: no peer reads or writes %q in a line above", name)
		}
		if slices.Contains(d.at.Finally, o) {
			return d.errorf("finally: %s twice", name)
		}
		d.at.Finally = append(d.at.Finally, o)
	}
	return nil
}

// finish completes the program under way.
func (d *decoder) finish() error {
	p := d.at
	if p == nil {
		return nil
	}
	last := d.line
	defer func() { d.line = last }()
	d.line = d.begun
	if len(p.Peers) == 0 {
		return d.errorf("%s has no peer", p.Name)
	}
	if len(p.Registers)+len(p.Finally) == 0 {
		return d.errorf("%s observes nothing: no statement reads, and there is no finally", p.Name)
	}
	states, ok := p.enumerate()
	if !ok {
		return d.errorf("the orders of %s have more than %d states", p.Name, statesMax)
	}
	if d.states += states; d.states > statesFileMax {
		return d.errorf("the orders of all programs have more than %d states", statesFileMax)
	}
	observed := p.Observed()
	for _, n := range d.never {
		d.line = n.line
		var terms []Term
		for _, text := range strings.Fields(n.text) {
			name, value, _ := strings.Cut(text, "=")
			t := Term{Observed: slices.Index(observed, name)}
			if t.Observed < 0 {
				return d.errorf("never: %q is not observed: %s", name, strings.Join(observed, ", "))
			}
			if !number(value) {
				return d.errorf("never: %q: NAME=NUMBER", text)
			}
			v, err := d.value(value)
			if err != nil {
				return err
			}
			if t.Value = v; slices.ContainsFunc(terms, func(u Term) bool { return u.Observed == t.Observed }) {
				return d.errorf("never: %s twice", name)
			}
			terms = append(terms, t)
		}
		if len(terms) == 0 {
			return d.errorf("never: no outcome")
		}
		for _, o := range p.outcomes {
			if o.includes(terms) {
				return d.errorf("never: %s is sequentially consistent", p.Text(o))
			}
		}
		p.Never = append(p.Never, terms)
	}
	return nil
}

// value reads what [number] accepts.
func (d *decoder) value(text string) (int, error) {
	v, err := strconv.Atoi(text)
	if err != nil || v > valueMax {
		return 0, d.errorf("value %s: 0 to %d", text, valueMax)
	}
	return v, nil
}

func letter(c rune) bool { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }
func digit(c rune) bool  { return '0' <= c && c <= '9' }

func number(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(c rune) bool { return !digit(c) })
}

func identifier(s string) bool {
	return s != "" && len(s) <= nameBytesMax && letter(rune(s[0])) &&
		!strings.ContainsFunc(s, func(c rune) bool { return !letter(c) && !digit(c) && c != '_' })
}
