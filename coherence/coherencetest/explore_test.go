package coherencetest

import (
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
)

// exploration visits every state that a world can reach, the nearest first, and keeps how it came to each.
type exploration struct {
	max   int  // states, 0 for all
	live  bool // also check that from every state all requests can be answered without further faults (L)
	ids   map[digest]uint32
	from  []uint32 // the state each was first reached from
	by    []uint16 // and which of its moves
	preds [][]uint32
	good  []bool
	edges int
	depth int
}

type result struct {
	states, edges, depth int
	complete             bool
	err                  error
	path                 []move // to the violation
}

func explore(s *setup, max int, live bool) result {
	first := newWorld(s)
	x := &exploration{max: max, live: live, ids: map[digest]uint32{}}
	complete, bad, err := x.run(first)
	r := result{states: len(x.from), edges: x.edges, depth: x.depth, complete: complete, err: err}
	if err != nil {
		r.path = x.path(first, bad)
	}
	return r
}

// add notes a state, and reports whether it is new.
func (x *exploration) add(w *world, from uint32, by int) (uint32, bool) {
	d := w.digest()
	if id, ok := x.ids[d]; ok {
		return id, false
	}
	id := uint32(len(x.from))
	x.ids[d] = id
	x.from = append(x.from, from)
	x.by = append(x.by, uint16(by))
	if x.live {
		x.preds = append(x.preds, nil)
		x.good = append(x.good, w.settled())
	}
	return id, true
}

type queued struct {
	id uint32
	w  *world
}

func (x *exploration) run(first *world) (complete bool, bad uint32, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	x.add(first, 0, 0)
	if err := first.check(); err != nil {
		return false, 0, err
	}
	level, next := []queued{{0, first}}, []queued(nil)
	for ; len(level) > 0; level, next = next, nil {
		x.depth++
		for at, q := range level {
			level[at].w = nil
			moves, quiet := q.w.moves()
			for i, m := range moves {
				if q.id == 0 && !q.w.full && m.node > 0 {
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
				if err := v.check(); err != nil {
					return false, id, err
				}
				next = append(next, queued{id, v})
			}
			if quiet == 0 && !q.w.settled() {
				return false, q.id, errors.New("L: nothing can happen, and somebody waits")
			}
		}
		if x.max > 0 && len(x.from) > x.max {
			return false, 0, nil
		}
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
	for id, g := range x.good {
		if !g {
			return uint32(id), errors.New("L: somebody waits, and nothing that goes well helps")
		}
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
		m := w.label(moves[i])
		ms = append(ms, m)
		w = w.apply(m)
	}
	return ms
}
