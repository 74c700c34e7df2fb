package litmus

import (
	"fmt"
	"slices"
	"strings"
)

// Statement is one read or write.
type Statement struct {
	Object   int // index into Program.Objects
	Register int // index into Program.Registers of what is read into, -1 for a write
	Value    int // what is written
}

// Writes says whether the statement is a write.
func (s Statement) Writes() bool { return s.Register < 0 }

// Term is part of an outcome: an observation and its value.
type Term struct {
	Observed int // index into Program.Observed
	Value    int
}

// Program is a litmus test. Every object holds 0 at first.
type Program struct {
	Name, About string
	Objects     []string // in the order in which they first occur
	Registers   []string // likewise; each is read into by one statement
	Peers       [][]Statement
	Finally     []int    // objects whose value at the end is observed, as indexes into Objects
	Never       [][]Term // parts of outcomes that are forbidden: [Decode] has made sure of that
	outcomes    []Outcome
}

// Observed names what an outcome tells: the registers, then the objects whose value at the end counts.
func (p *Program) Observed() []string {
	names := slices.Clone(p.Registers)
	for _, o := range p.Finally {
		names = append(names, p.Objects[o])
	}
	return names
}

// Outcome is what one run observed: the values of [Program.Observed], in that order.
type Outcome []int

// Text prints an outcome of p, such as "a=1 b=0".
func (p *Program) Text(o Outcome) string {
	var b strings.Builder
	for i, name := range p.Observed() {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%s=%d", name, o[i])
	}
	return b.String()
}

// Allowed returns the outcomes that some order of all statements explains, the order of each peer's kept: exactly those of a
// sequentially consistent memory, sorted. The caller must not change them.
func (p *Program) Allowed() []Outcome { return p.outcomes }

// Allows says whether o is one of [Program.Allowed].
func (p *Program) Allows(o Outcome) bool {
	_, ok := slices.BinarySearchFunc(p.outcomes, o, slices.Compare)
	return ok
}

// includes says whether all terms hold in o.
func (o Outcome) includes(terms []Term) bool {
	return !slices.ContainsFunc(terms, func(t Term) bool { return o[t.Observed] != t.Value })
}

// enumerate finds the outcomes of all orders, and returns how many states are on the way; false when more than statesMax.
func (p *Program) enumerate() (states int, ok bool) {
	// A state is how far each peer is, what the objects hold and what the registers do: 16 bits each.
	at, objects := 0, len(p.Peers)
	registers := objects + len(p.Objects)
	state := make([]uint16, registers+len(p.Registers))
	key := func() string {
		b := make([]byte, 0, 2*len(state))
		for _, v := range state {
			b = append(b, byte(v), byte(v>>8))
		}
		return string(b)
	}
	met := make(map[string]bool)
	var walk func() bool
	walk = func() bool {
		k := key()
		if met[k] {
			return true
		}
		if len(met) == statesMax {
			return false
		}
		met[k] = true
		over := true
		for i, statements := range p.Peers {
			pc := &state[at+i]
			if int(*pc) == len(statements) {
				continue
			}
			over = false
			s := statements[*pc]
			cell, found := &state[objects+s.Object], state[objects+s.Object]
			*pc++
			if s.Writes() {
				*cell = uint16(s.Value)
			} else {
				state[registers+s.Register] = found
			}
			ok := walk()
			*cell = found
			if !s.Writes() {
				state[registers+s.Register] = 0 // only this statement reads into it
			}
			*pc--
			if !ok {
				return false
			}
		}
		if over {
			o := make(Outcome, 0, len(p.Registers)+len(p.Finally))
			for r := range p.Registers {
				o = append(o, int(state[registers+r]))
			}
			for _, f := range p.Finally {
				o = append(o, int(state[objects+f]))
			}
			p.outcomes = append(p.outcomes, o)
		}
		return true
	}
	if !walk() {
		return len(met), false
	}
	slices.SortFunc(p.outcomes, slices.Compare)
	p.outcomes = slices.CompactFunc(p.outcomes, slices.Equal)
	return len(met), true
}
