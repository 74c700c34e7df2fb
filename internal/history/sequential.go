package history

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
)

// SequentialStatesMax is how many states [History.CheckSequential] searches when it is not told otherwise.
const SequentialStatesMax = 1 << 20

const (
	// clocksMax bounds the vector clocks of one judgement, entries of four bytes.
	clocksMax = 1 << 25
	// passesMax bounds how often orders are derived from orders. What is not derived the search finds out.
	passesMax = 64
)

// CheckSequential judges every Read, Write and CAS of all keys together: is there one order of all of them that keeps the order
// of each client, and in which every read finds what was written last? That is sequential consistency; when an operation was
// called or returned counts only against the others of its client. Of operations of one client that overlap neither is first.
//
// It must be known which write a read found. So what is written to one key is written once, and is not 0, which every key
// holds at first; or the service told the versions ([Answer].Version), and then the order asked for is also that of the
// versions. An open operation took effect if somebody read what it wrote.
//
// Orders that must hold are derived first: a read comes after the write it found and before whatever was written next. A
// circle of them is the proof of [Illegal], and with all versions told, its absence the proof of [Ok], in time linear in the
// history. Otherwise an order is searched for in at most states states ([SequentialStatesMax] when 0); [Unknown] says that
// they were not enough.
func (h *History) CheckSequential(states int) Report {
	ops, full := h.snapshot()
	if full {
		return Report{Detail: fmt.Sprintf("more than %d operations: not all were recorded", OperationsMax)}
	}
	if states <= 0 {
		states = SequentialStatesMax
	}
	return judgeSequential(ops, states)
}

func judgeSequential(ops []Operation, states int) Report {
	s := &sequential{}
	if r := s.build(ops); r != nil {
		return *r
	}
	report := func(v Verdict, key int32, detail string) Report {
		r := Report{Verdict: v, Detail: detail, Judged: len(s.ops)}
		if key >= 0 {
			r.Key = s.names[key]
		}
		return r
	}
	for pass := 0; ; pass++ {
		order, circle := s.sort()
		if circle != nil {
			return report(Illegal, s.key[circle[0].to], s.describe(circle))
		}
		if s.versioned {
			return report(Ok, -1, "")
		}
		if len(s.ops)*len(s.chains) > clocksMax {
			return report(Unknown, -1, fmt.Sprintf("%d operations of %d clients without versions are too many", len(s.ops), len(s.chains)))
		}
		s.tick(order)
		if !s.derive() || pass == passesMax {
			break
		}
	}
	switch found, reached := s.search(states); {
	case found:
		return report(Ok, -1, "")
	case reached < 0:
		return report(Unknown, -1, fmt.Sprintf("no verdict within %d states", states))
	default:
		return report(Illegal, -1, fmt.Sprintf("no order of the operations explains the answers; the longest has %d of %d", reached, len(s.ops)))
	}
}

// reason is why one operation must come before another.
type reason uint8

const (
	byProgram reason = iota
	byRead
	byVersion
	byNext    // the read before the write after the one it found
	byDerived // a write known before a read is before the write that the read found, or the read before what follows that
)

var reasons = [...]string{"is by the same client before", "is read by", "has the version before", "finds what was there before", "must come before"}

type edge struct {
	to  int32
	why reason
}

// What an operation found that did not find what another wrote.
const (
	initial int32 = -1 // the 0 that every key holds at first
	nothing int32 = -2 // it does not read
)

// sequential is one judgement. Operations are numbered by their place in ops; a chain is operations of one client of which
// each returned before the next was called.
type sequential struct {
	ops    []Operation
	names  []string // of keys
	key    []int32
	from   []int32 // the write whose value it found, initial or nothing
	writes []bool
	chain  []int32
	pos    []int32 // in its chain
	chains [][]int32

	// versioned: every write has a version, so nothing is left to search for.
	versioned bool
	byKey     [][][]int32 // by key and chain: its writes, in order
	readers   [][]int32   // by write: the last that read it of each chain
	initials  [][]int32   // by key: those that found its first value
	succ      [][]edge
	clocks    []int32 // by operation and chain: how many of the chain come before it for certain
}

func (s *sequential) order(a, b int32, why reason) { s.succ[a] = append(s.succ[a], edge{b, why}) }

// wrote says whether an answered operation changed its key. An open one is asked by its readers.
func wrote(o *Operation) bool {
	return o.Op.Kind == KindWrite || o.Op.Kind == KindCAS && (o.open() || o.Answer.OK)
}

// build takes in the operations and orders what is in order by itself. It returns a report if there is nothing to judge then.
func (s *sequential) build(all []Operation) *Report {
	type value struct {
		key string
		v   uint64
	}
	byValue, byVersion := map[value][]*Operation{}, map[value]*Operation{}
	judged := 0
	illegal := func(o Operation, format string, args ...any) *Report {
		return &Report{Verdict: Illegal, Key: o.Op.Key, Judged: judged, Detail: fmt.Sprintf(format, args...)}
	}
	for i := range all {
		o := &all[i]
		switch o.Op.Kind {
		case KindRead, KindWrite, KindCAS:
		default:
			continue
		}
		if o.NoEffect {
			continue
		}
		judged++
		if !wrote(o) {
			continue
		}
		byValue[value{o.Op.Key, o.Op.Value}] = append(byValue[value{o.Op.Key, o.Op.Value}], o)
		if v := (value{o.Op.Key, o.Answer.Version}); v.v != 0 && !o.open() {
			if other := byVersion[v]; other != nil {
				return illegal(*o, "one version for two writes: %v and %v", *other, *o)
			}
			byVersion[v] = o
		}
	}
	// found returns the write that o says it found, nil for the first value.
	found := func(o *Operation) (*Operation, *Report) {
		v, version := o.Answer.Value, o.Answer.Version
		if o.Op.Kind == KindCAS && o.open() {
			v = o.Op.Old
		}
		if o.Op.Kind == KindCAS && wrote(o) {
			version = 0 // that of what it wrote
		}
		if w := byVersion[value{o.Op.Key, version}]; version != 0 && w != nil {
			if w.Op.Value != v {
				return nil, illegal(*o, "value of another version: %v, where %v", *o, *w)
			}
			return w, nil
		}
		candidates := byValue[value{o.Op.Key, v}]
		if version != 0 { // the write's own answer was lost, or there is none
			candidates = slices.DeleteFunc(slices.Clone(candidates), func(w *Operation) bool { return !w.open() && w.Answer.Version != 0 })
		}
		switch {
		case v == 0 && version == 0 && len(candidates) == 0:
			return nil, nil
		case len(candidates) == 1 && (v != 0 || version != 0):
			return candidates[0], nil
		case len(candidates) == 0:
			return nil, illegal(*o, "nobody wrote what it found: %v", *o)
		}
		return nil, &Report{Key: o.Op.Key, Judged: judged, Detail: fmt.Sprintf("what it found was written more than once, or at first, and versions are not told: %v", *o)}
	}

	// Open operations count as far as somebody found what they wrote, and those found by them in turn.
	counts := make(map[*Operation]*Operation) // with what each found
	count := func(o *Operation) *Report {
		for o != nil {
			if _, done := counts[o]; done {
				return nil
			}
			counts[o] = nil
			if o.Op.Kind == KindWrite {
				return nil
			}
			if o.Op.Kind == KindCAS && !o.open() && o.Answer.OK != (o.Answer.Value == o.Op.Old) {
				return illegal(*o, "it swaps if and only if the old value is there: %v", *o)
			}
			w, r := found(o)
			if r != nil {
				return r
			}
			counts[o] = w
			o = w
		}
		return nil
	}
	for i := range all {
		o := &all[i]
		if o.open() || o.NoEffect || o.Op.Kind != KindRead && o.Op.Kind != KindWrite && o.Op.Kind != KindCAS {
			continue
		}
		if r := count(o); r != nil {
			return r
		}
	}

	// Numbers, keys and chains.
	number, keys := make(map[*Operation]int32, len(counts)), make(map[string]int32)
	type lane struct {
		chain int32
		free  int64 // when its last returned
	}
	lanes := make(map[int][]lane)
	s.versioned = true
	for i := range all {
		o := &all[i]
		if _, ok := counts[o]; !ok {
			continue
		}
		n := int32(len(s.ops))
		number[o] = n
		s.ops = append(s.ops, *o)
		k, ok := keys[o.Op.Key]
		if !ok {
			k = int32(len(keys))
			keys[o.Op.Key] = k
			s.names = append(s.names, o.Op.Key)
		}
		s.key = append(s.key, k)
		s.writes = append(s.writes, wrote(o))
		s.versioned = s.versioned && (!wrote(o) || !o.open() && o.Answer.Version != 0)
		s.succ = append(s.succ, nil)
		mine, at := lanes[o.Client], -1
		for j, l := range mine {
			chain := s.chains[l.chain]
			if l.free < o.Call {
				if at < 0 {
					at = j
				}
				s.order(chain[len(chain)-1], n, byProgram)
			} else if len(chain) > 1 { // which had returned before the last of its lane was called
				s.order(chain[len(chain)-2], n, byProgram)
			}
		}
		if at < 0 {
			at = len(mine)
			mine = append(mine, lane{chain: int32(len(s.chains))})
			s.chains = append(s.chains, nil)
		}
		c := mine[at].chain
		mine[at].free = o.end()
		lanes[o.Client] = mine
		s.chain, s.pos = append(s.chain, c), append(s.pos, int32(len(s.chains[c])))
		s.chains[c] = append(s.chains[c], n)
	}

	// Who found what.
	s.byKey = make([][][]int32, len(keys))
	for k := range s.byKey {
		s.byKey[k] = make([][]int32, len(s.chains))
	}
	s.initials, s.readers, s.from = make([][]int32, len(keys)), make([][]int32, len(s.ops)), make([]int32, len(s.ops))
	for _, chain := range s.chains {
		for _, n := range chain {
			if s.writes[n] {
				s.byKey[s.key[n]][s.chain[n]] = append(s.byKey[s.key[n]][s.chain[n]], n)
			}
		}
	}
	for o, n := range number {
		switch w := counts[o]; {
		case o.Op.Kind == KindWrite:
			s.from[n] = nothing
		case w == nil:
			s.from[n] = initial
		default:
			s.from[n] = number[w]
		}
	}
	for n := range int32(len(s.ops)) {
		switch w := s.from[n]; w {
		case nothing:
		case initial:
			s.initials[s.key[n]] = append(s.initials[s.key[n]], n)
		default:
			s.order(w, n, byRead)
			s.readers[w] = append(s.readers[w], n)
		}
	}
	s.known()
	return nil
}

// known orders what needs no derivation: the versions of a key, and readers of its first value before whoever writes it.
func (s *sequential) known() {
	for k := range s.byKey {
		var told []int32
		for _, writes := range s.byKey[k] {
			for _, n := range writes {
				if s.ops[n].Answer.Version != 0 && !s.ops[n].open() {
					told = append(told, n)
				}
			}
			if len(writes) == 0 {
				continue
			}
			if !s.versioned {
				for _, r := range s.initials[k] {
					if r != writes[0] {
						s.order(r, writes[0], byNext)
					} else if len(writes) > 1 {
						s.order(r, writes[1], byNext)
					}
				}
			}
		}
		slices.SortFunc(told, func(a, b int32) int { return cmp.Compare(s.ops[a].Answer.Version, s.ops[b].Answer.Version) })
		before := func(readers []int32, next int32) {
			for _, r := range readers {
				if r != next {
					s.order(r, next, byNext)
				}
			}
		}
		if len(told) > 0 {
			before(s.initials[k], told[0])
		}
		for i := 1; i < len(told); i++ {
			s.order(told[i-1], told[i], byVersion)
			before(s.readers[told[i-1]], told[i])
		}
	}
	for w, readers := range s.readers { // from here on the last of each chain will do
		last := make(map[int32]int32)
		for _, r := range readers {
			if n, ok := last[s.chain[r]]; !ok || s.pos[r] > s.pos[n] {
				last[s.chain[r]] = r
			}
		}
		if len(last) < len(readers) {
			s.readers[w] = slices.DeleteFunc(readers, func(r int32) bool { return last[s.chain[r]] != r })
		}
	}
}

// sort returns the operations so that none comes before one that must be before it, or a circle that makes it impossible.
func (s *sequential) sort() (order []int32, circle []edge) {
	waits := s.indegrees()
	order = make([]int32, 0, len(s.ops))
	for n := range s.ops {
		if waits[n] == 0 {
			order = append(order, int32(n))
		}
	}
	for i := 0; i < len(order); i++ {
		for _, e := range s.succ[order[i]] {
			if waits[e.to]--; waits[e.to] == 0 {
				order = append(order, e.to)
			}
		}
	}
	if len(order) == len(s.ops) {
		return order, nil
	}
	// Whatever waits waits for another that waits: go back until one comes again. Steps that need no derivation first.
	pred := make([]edge, len(s.ops)) // to is the predecessor here
	for n := range pred {
		pred[n] = edge{-1, math.MaxUint8}
	}
	for n := range s.ops {
		if waits[n] == 0 {
			continue
		}
		for _, e := range s.succ[n] {
			if waits[e.to] > 0 && e.why < pred[e.to].why {
				pred[e.to] = edge{int32(n), e.why}
			}
		}
	}
	at := int32(slices.IndexFunc(waits, func(w int32) bool { return w > 0 }))
	met := make(map[int32]bool)
	for !met[at] {
		met[at] = true
		at = pred[at].to
	}
	for n := at; ; {
		p := pred[n]
		circle = append(circle, edge{n, p.why}) // n comes after what follows it in the circle
		if n = p.to; n == at {
			break
		}
	}
	slices.Reverse(circle)
	return nil, circle
}

func (s *sequential) indegrees() []int32 {
	waits := make([]int32, len(s.ops))
	for _, succ := range s.succ {
		for _, e := range succ {
			waits[e.to]++
		}
	}
	return waits
}

// describe tells a circle: each operation, and why it comes before the next.
func (s *sequential) describe(circle []edge) string {
	const linesMax = 16
	var b strings.Builder
	b.WriteString("each must come before the next, in a circle:")
	for i, e := range circle {
		if i == linesMax {
			fmt.Fprintf(&b, " … (%d more)", len(circle)-linesMax)
			break
		}
		next := circle[(i+1)%len(circle)]
		fmt.Fprintf(&b, " [%v] %s", s.ops[e.to], reasons[next.why])
	}
	return b.String()
}

// tick computes the vector clocks along an order of all operations.
func (s *sequential) tick(order []int32) {
	width := len(s.chains)
	s.clocks = slices.Grow(s.clocks[:0], len(s.ops)*width)[:len(s.ops)*width]
	clear(s.clocks)
	for _, n := range order {
		mine := s.clock(n)
		for _, e := range s.succ[n] {
			next := s.clock(e.to)
			for c, v := range mine {
				next[c] = max(next[c], v)
			}
			next[s.chain[n]] = max(next[s.chain[n]], s.pos[n]+1)
		}
	}
}

func (s *sequential) clock(n int32) []int32 {
	width := len(s.chains)
	return s.clocks[int(n)*width : (int(n)+1)*width]
}

// before says whether a comes before b for certain, as far as the clocks know.
func (s *sequential) before(a, b int32) bool { return s.clock(b)[s.chain[a]] > s.pos[a] }

// lastWrite returns the last write to key k among the first count operations of a chain, other than those listed.
func (s *sequential) lastWrite(k int32, chain int, count int32, but int32) (int32, bool) {
	writes := s.byKey[k][chain]
	i, _ := slices.BinarySearchFunc(writes, count, func(n, count int32) int { return cmp.Compare(s.pos[n], count) })
	for i--; i >= 0; i-- {
		if writes[i] != but {
			return writes[i], true
		}
	}
	return 0, false
}

// derive adds orders that follow from those that the clocks know, and says whether there was one.
func (s *sequential) derive() bool {
	added := false
	add := func(a, b int32) {
		if a != b && !s.before(a, b) {
			s.order(a, b, byDerived)
			added = true
		}
	}
	for n := range int32(len(s.ops)) {
		clock, k := s.clock(n), s.key[n]
		for chain := range s.chains {
			if w := s.from[n]; w >= 0 { // who wrote before a read wrote before what it found
				if other, ok := s.lastWrite(k, chain, clock[chain], w); ok {
					add(other, w)
				}
			}
			if s.writes[n] { // who found what was written before a write found it before that
				if w, ok := s.lastWrite(k, chain, clock[chain], n); ok {
					for _, r := range s.readers[w] {
						add(r, n)
					}
				}
			}
		}
	}
	return added
}

// search looks for an order of all operations. A read goes as soon as it can: it changes nothing for others. So only writes
// are chosen, the one called first first, and a write only when everybody has read what it overwrites. It returns how long the
// longest order was, or -1 when states were not enough.
func (s *sequential) search(states int) (found bool, reached int) {
	w := newWalk(s)
	type frame struct {
		choices []int32
		length  int // of the order when it was entered
	}
	stack := []frame{{w.settle(), 0}}
	failed := make(map[[2]uint64]bool)
	for len(stack) > 0 {
		f := &stack[len(stack)-1]
		reached = max(reached, len(w.trail))
		switch {
		case len(w.trail) == len(s.ops):
			return true, reached
		case len(f.choices) == 0 || failed[w.hash]:
			failed[w.hash] = true
			for len(w.trail) > f.length {
				w.undo()
			}
			stack = stack[:len(stack)-1]
			continue
		case states == 0:
			return false, -1
		}
		states--
		n, length := f.choices[0], len(w.trail)
		f.choices = f.choices[1:]
		w.do(n)
		stack = append(stack, frame{w.settle(), length})
	}
	return false, reached
}

// walk is one order in the making, with all that depends on what is in it already.
type walk struct {
	*sequential
	trail []int32
	under []int32   // by place in trail: who had written the key last before
	at    []int32   // by chain: how many of it are in
	waits []int32   // by operation: those to come before it
	last  []int32   // by key: who wrote it last, or initial
	todo  []int32   // by write: those that found it and are still to come
	first []int32   // by key: those that found its first value and are still to come
	hash  [2]uint64 // of what is in, and of last: wide enough that no two states meet in one
}

func newWalk(s *sequential) *walk {
	w := &walk{sequential: s, at: make([]int32, len(s.chains)), waits: s.indegrees(), todo: make([]int32, len(s.ops)),
		first: make([]int32, len(s.names)), last: make([]int32, len(s.names))}
	for n, from := range s.from {
		if from >= 0 {
			w.todo[from]++
		} else if from == initial {
			w.first[s.key[n]]++
		}
	}
	for k := range w.last {
		w.last[k] = initial
	}
	return w
}

// left returns how many are still to find what key k holds now.
func (w *walk) left(k int32) *int32 {
	if w.last[k] == initial {
		return &w.first[k]
	}
	return &w.todo[w.last[k]]
}

// can says whether operation n may be next.
func (w *walk) can(n int32) bool {
	k, reads := w.key[n], int32(0)
	if w.from[n] != nothing {
		if w.from[n] != w.last[k] {
			return false
		}
		reads = 1
	}
	return w.waits[n] == 0 && (!w.writes[n] || *w.left(k) == reads)
}

func (w *walk) do(n int32) {
	k := w.key[n]
	if w.from[n] != nothing {
		*w.left(k)--
	}
	w.under = append(w.under, w.last[k])
	w.turn(n)
	if w.writes[n] {
		w.last[k] = n
	}
	for _, e := range w.succ[n] {
		w.waits[e.to]--
	}
	w.at[w.chain[n]]++
	w.trail = append(w.trail, n)
}

func (w *walk) undo() {
	i := len(w.trail) - 1
	n := w.trail[i]
	k := w.key[n]
	w.at[w.chain[n]]--
	for _, e := range w.succ[n] {
		w.waits[e.to]++
	}
	w.last[k] = w.under[i]
	w.turn(n)
	if w.from[n] != nothing {
		*w.left(k)++
	}
	w.trail, w.under = w.trail[:i], w.under[:i]
}

// turn takes n into the hash, or out of it. It is called while its key holds what n is to overwrite.
func (w *walk) turn(n int32) {
	flip := func(a, b uint64) {
		v := mix(a<<32 | b)
		w.hash[0] ^= v
		w.hash[1] ^= mix(v + 0x9e3779b97f4a7c15)
	}
	flip(uint64(n)+1, 0)
	if k := uint64(w.key[n]); w.writes[n] {
		flip(k+1, uint64(w.last[k]+2))
		flip(k+1, uint64(n+2))
	}
}

// settle takes in every read that can be, and returns the writes that can, in the order of their calls.
func (w *walk) settle() (choices []int32) {
	for again := true; again; {
		again, choices = false, choices[:0]
		for c, chain := range w.chains {
			for int(w.at[c]) < len(chain) {
				n := chain[w.at[c]]
				if !w.can(n) {
					break
				}
				if w.writes[n] {
					choices = append(choices, n)
					break
				}
				w.do(n)
				again = true
			}
		}
	}
	slices.Sort(choices) // operations are numbered in the order of their calls
	return choices
}

// mix spreads a number over all bits.
func mix(v uint64) uint64 {
	v = (v ^ v>>30) * 0xbf58476d1ce4e5b9
	v = (v ^ v>>27) * 0x94d049bb133111eb
	return v ^ v>>31
}
