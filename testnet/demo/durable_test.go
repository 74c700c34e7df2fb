package demo

import (
	"errors"
	"testing"
)

// The checkers of durable objects catch what cannot be.
func TestDurableChecksCatchWhatCannotBe(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(r *record, final map[int]int)
		want  string
	}{
		"a correct run":                  {func(*record, map[int]int) {}, ""},
		"one may have been made":         {func(r *record, final map[int]int) { r.unknown++; final[0], final[1] = 4, 4 }, ""},
		"an old copy is read":            {func(r *record, _ map[int]int) { r.read(1, 3, 2) }, "peer 1 reads 2 after 3"},
		"two increments make the same":   {func(r *record, _ map[int]int) { r.increment(1, 2, 3) }, "peers 0 and 1 both make 3"},
		"an increment is of an old copy": {func(r *record, _ map[int]int) { r.increment(1, 5, 4) }, "peer 1 makes 4 after 5"},
		"an increment is lost":           {func(_ *record, final map[int]int) { final[1] = 2 }, "peer 1 finds 2 after 3 increments"},
		"an increment is made twice":     {func(_ *record, final map[int]int) { final[0] = 4 }, "peer 0 finds 4 after 3 increments"},
		"an old listing":                 {func(r *record, _ map[int]int) { r.list(1, []string{"a"}, nil, nil) }, "does not find a"},
		"one is deleted meanwhile":       {func(r *record, _ map[int]int) { r.members["a"].deleting = true; r.list(1, []string{"a"}, nil, nil) }, ""},
		"a deleted one":                  {func(r *record, _ map[int]int) { r.list(1, nil, []string{"b"}, []string{"a", "b"}) }, "finds b, which was deleted"},
		"one of nobody's":                {func(r *record, _ map[int]int) { r.list(1, nil, nil, []string{"c"}) }, "finds c, which nobody"},
		"nobody reads":                   {func(_ *record, final map[int]int) { clear(final) }, "nobody has counted"},
	} {
		t.Run(name, func(t *testing.T) {
			r, final := newRecord(), map[int]int{0: 3, 1: 3}
			r.members["a"] = &member{creating: true, created: true}
			r.members["b"] = &member{creating: true, created: true, deleting: true, deleted: true}
			if in, out := r.sure(); len(in) != 1 || in[0] != "a" || len(out) != 1 || out[0] != "b" {
				t.Errorf("%v, %v", in, out)
			}
			r.increment(0, 0, 1)
			r.increment(1, 1, 2)
			r.increment(0, 1, 3)
			r.read(1, 2, 3)
			r.list(0, []string{"a"}, []string{"b"}, []string{"a"})
			tc.spoil(&r, final)
			k := &keeping{record: r, final: final}
			verdict(t, errors.Join(k.checkSeen(), k.checkCounted()), tc.want)
		})
	}
	verdict(t, (&keeping{leader: true, killed: 2}).checkOutlived(), "")
	verdict(t, (&keeping{leader: true, killed: 1}).checkOutlived(), "1 peers")
	verdict(t, (&keeping{killed: 2}).checkOutlived(), "not all")
}
