package durabletest

import (
	"flag"
	"slices"
	"testing"
	"time"
)

var (
	exploreFlag = flag.Int("explore", 1_000, "how many states each exploration visits at most; 0 is all")
	onlyFlag    = flag.String("explore.only", "", "the one configuration to explore")
)

// exploration visits every state that a world can reach, the nearest first, and keeps how it came to each.
type exploration struct {
	max   int
	live  bool // also check that from every state all calls can be answered without further faults
	ids   map[digest]uint32
	from  []uint32
	by    []uint16
	preds [][]uint32
	good  []bool
	edges int
	depth int
}

type result struct {
	states, edges, depth int
	complete             bool
	err                  error
	path                 []move
}

func explore(s *setup, most int, live bool) result {
	s.fixed = true
	first := newWorld(s)
	x := &exploration{max: most, live: live, ids: map[digest]uint32{}}
	complete, bad, err := x.run(first)
	r := result{states: len(x.from), edges: x.edges, depth: x.depth, complete: complete, err: err}
	if err != nil {
		r.path = x.path(first, bad)
	}
	return r
}

func (x *exploration) add(w *world, from uint32, by int) (uint32, bool) {
	d := w.digest()
	if id, ok := x.ids[d]; ok {
		return id, false
	}
	id := uint32(len(x.from))
	x.ids[d] = id
	x.from, x.by = append(x.from, from), append(x.by, uint16(by))
	if x.live {
		x.preds, x.good = append(x.preds, nil), append(x.good, w.answered())
	}
	return id, true
}

type queued struct {
	id uint32
	w  *world
}

func (x *exploration) run(first *world) (complete bool, bad uint32, err error) {
	x.add(first, 0, 0)
	level := []queued{{0, first}}
	for ; len(level) > 0; x.depth++ {
		var next []queued
		for at, q := range level {
			level[at].w = nil
			moves, quiet := q.w.moves()
			for i, m := range moves {
				if q.id == 0 && m.node > 0 && !q.w.absent && !q.w.apart && q.w.rates == nil {
					continue // nodes are alike: let the first one begin
				}
				v := q.w.apply(m)
				x.edges++
				id, fresh := x.add(v, q.id, i)
				if x.live && i < quiet {
					x.preds[id] = append(x.preds[id], q.id)
				}
				if !fresh {
					continue
				}
				if v.broken != nil {
					return false, id, v.broken
				}
				next = append(next, queued{id, v})
			}
			if x.max > 0 && len(x.from) > x.max {
				return false, 0, nil
			}
		}
		level = next
	}
	if x.live {
		bad, err = x.stuck()
	}
	return true, bad, err
}

// stuck looks for a state from which nothing that goes well ends with everybody answered.
func (x *exploration) stuck() (uint32, error) {
	var todo []uint32
	for id, g := range x.good {
		if g {
			todo = append(todo, uint32(id))
		}
	}
	for len(todo) > 0 {
		id := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, p := range x.preds[id] {
			if !x.good[p] {
				x.good[p] = true
				todo = append(todo, p)
			}
		}
	}
	if id := slices.Index(x.good, false); id >= 0 {
		return uint32(id), errStuck
	}
	return 0, nil
}

// path replays how a state was reached.
func (x *exploration) path(first *world, id uint32) []move {
	var by []int
	for at := id; at != 0; at = x.from[at] {
		by = append(by, int(x.by[at]))
	}
	slices.Reverse(by)
	var ms []move
	w := first
	for _, i := range by {
		moves, _ := w.moves()
		m := moves[i]
		ms = append(ms, m)
		w = w.apply(m)
	}
	return ms
}

func logPath(t *testing.T, s *setup, path []move) {
	w := newWorld(s)
	t.Logf("%s", w.state())
	for _, m := range path {
		if m.kind == deliver || m.kind == duplicate || m.kind == lose {
			m.text = w.net[m.post].msg.String()
		}
		w = w.apply(m)
		t.Logf("%v\n\t%s", m, w.state())
	}
	for _, p := range w.net {
		t.Logf("travels: %v", &p.msg)
	}
}

// configuration is a world to explore. Those of durable-objects.md section 11 have its words for a name.
type configuration struct {
	name string
	setup
	whole int // it has so many states, and all are visited however few are asked for
}

// A grant of the exclusive right that comes late is given back and asked for again, for ever. So worlds with locks have no end, and are not
// searched for calls that nobody answers; drawn worlds are.
var configurations = []configuration{
	{"a reader and a writer, D1", setup{nodes: 2, objects: 1, terms: 1, lease: 5, reads: 1, writes: 1, apart: true}, 1_911},
	{"a reader and a writer, D2, loss 1", setup{nodes: 2, objects: 1, terms: 1, lease: 10, reads: 1, writes: 1, apart: true, budget: budget{losses: 1}}, 0},
	{"a reader and a writer, D1, dup 1", setup{nodes: 2, objects: 1, terms: 1, lease: 5, reads: 1, writes: 1, apart: true, budget: budget{dups: 1}}, 0},
	{"a reader and a writer, T2, D1", setup{nodes: 2, objects: 1, terms: 2, lease: 5, reads: 1, writes: 1, apart: true}, 0},
	{"a reader and a writer, T2, 2.4 ticks", setup{nodes: 2, objects: 1, terms: 2, lease: 12, reads: 1, writes: 1, apart: true}, 0},
	{"a reader of two and a writer, T1, 2.4 ticks", setup{nodes: 2, objects: 1, terms: 1, lease: 12, reads: 2, writes: 1, apart: true}, 0},
	{"2 nodes r1 w1, D1", setup{nodes: 2, objects: 1, terms: 1, lease: 5, reads: 1, writes: 1}, 0},
	{"2 nodes r1 w1, D2", setup{nodes: 2, objects: 1, terms: 1, lease: 10, reads: 1, writes: 1}, 0},
	{"2 nodes r1 w1, 2.4 ticks", setup{nodes: 2, objects: 1, terms: 1, lease: 12, reads: 1, writes: 1}, 0},
	{"2 nodes r1 w1, D1, rates turned round", setup{nodes: 2, objects: 1, terms: 1, lease: 5, reads: 1, writes: 1, rates: []int{fast, slow, slow, fast}}, 0},
	{"2 nodes r1 w1, D1, dup 1", setup{nodes: 2, objects: 1, terms: 1, lease: 5, reads: 1, writes: 1, budget: budget{dups: 1}}, 0},
	{"2 nodes r1 w1, D1, loss 1", setup{nodes: 2, objects: 1, terms: 1, lease: 5, reads: 1, writes: 1, budget: budget{losses: 1}}, 0},
	{"2 nodes r1 w1, D1, crash and return 1", setup{nodes: 2, objects: 1, terms: 1, lease: 5, reads: 1, writes: 1, budget: budget{crashes: 1}}, 0},
	{"2 nodes r2 w1, D1, evict 1, give up 1, dup 1", setup{nodes: 2, objects: 1, terms: 1, lease: 5, reads: 2, writes: 1, budget: budget{evicts: 1, giveUps: 1, dups: 1}}, 0},
	{"2 nodes r1 w1, T2, D1", setup{nodes: 2, objects: 1, terms: 2, lease: 5, reads: 1, writes: 1}, 0},
	{"2 nodes r1 w1, T2, D2, old anchors", setup{nodes: 2, objects: 1, terms: 2, lease: 10, reads: 1, writes: 1, anchors: true}, 0},
	{"2 nodes r1 w1, T3, D1", setup{nodes: 2, objects: 1, terms: 3, lease: 5, reads: 1, writes: 1}, 0},
	{"2 nodes r1 w2, T2, dup 1", setup{nodes: 2, objects: 1, terms: 2, lease: 5, reads: 1, writes: 2, budget: budget{dups: 1}}, 0},
	{"2 nodes r2 w1, T2, loss 1, renewal 1", setup{nodes: 2, objects: 1, terms: 2, lease: 5, reads: 2, writes: 1, budget: budget{losses: 1, renewals: 1}}, 0},
	{"2 nodes r1 w1, T2, crash 1, loss 1", setup{nodes: 2, objects: 1, terms: 2, lease: 5, reads: 1, writes: 1, budget: budget{crashes: 1, losses: 1}}, 0},
	{"2 objects, 2 nodes r2 w1, T2, D2", setup{nodes: 2, objects: 2, terms: 2, lease: 10, reads: 2, writes: 1}, 0},
	{"2 objects, 2 nodes r2 w1, crash 1, dup 1", setup{nodes: 2, objects: 2, terms: 1, lease: 5, reads: 2, writes: 1, budget: budget{crashes: 1, dups: 1}}, 0},
	{"2 objects, 2 nodes r2 w1, D2, renewal 1, evict 1", setup{nodes: 2, objects: 2, terms: 1, lease: 10, reads: 2, writes: 1, budget: budget{renewals: 1, evicts: 1}}, 0},
	{"3 nodes r1 w1, T2, D2", setup{nodes: 3, objects: 1, terms: 2, lease: 10, reads: 1, writes: 1}, 0},
	{"3 nodes r1 w1, D1, dup 1", setup{nodes: 3, objects: 1, terms: 1, lease: 5, reads: 1, writes: 1, budget: budget{dups: 1}}, 0},
	{"exclusive, 2 nodes w1, T2", setup{nodes: 2, objects: 1, terms: 2, lease: 10, reads: 0, writes: 1, locks: 1}, 0},
	{"readers beside who waits for a turn, 2 nodes r2", setup{nodes: 2, objects: 1, terms: 1, lease: 10, reads: 2, writes: 0, locks: 1}, 0},
	{"exclusive, 2 nodes, dup 1", setup{nodes: 2, objects: 1, terms: 1, lease: 10, reads: 0, writes: 0, locks: 2, budget: budget{dups: 1}}, 0},
	{"conditional stores, 2 nodes r1 w1, T2", setup{nodes: 2, objects: 1, terms: 2, lease: 5, reads: 1, writes: 1, cas: true}, 0},
	{"create, delete and a directory, 2 nodes r1 w2", setup{nodes: 2, objects: 2, terms: 1, lease: 5, reads: 1, writes: 2, absent: true, listing: true}, 0},
}

// TestExploration visits every state of small worlds, as far as -explore goes, and prints how many they were.
func TestExploration(t *testing.T) {
	for i := range configurations {
		c := &configurations[i]
		if *onlyFlag != "" && c.name != *onlyFlag {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			began := time.Now()
			c.bound = true
			most := *exploreFlag
			if most > 0 {
				most = max(most, c.whole+1)
			}
			r := explore(&c.setup, most, c.locks == 0)
			if c.whole > 0 && r.err == nil && (!r.complete || r.states != c.whole) {
				t.Errorf("it had %d states", c.whole)
			}
			t.Logf("%d states, %d edges, depth %d, complete %v, %v", r.states, r.edges, r.depth, r.complete, time.Since(began).Round(time.Millisecond))
			if r.err != nil {
				t.Errorf("%v", r.err)
				logPath(t, &c.setup, r.path)
			}
		})
	}
}
