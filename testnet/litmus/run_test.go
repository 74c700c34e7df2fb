package litmus

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestMemoryWithOneLockHasNothingForbidden(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := &plain{values: make(map[string]int)}
		for _, p := range Builtin() {
			r := Run(t.Context(), p, m, Options{Runs: 100, Seed: 1})
			if err := r.Err(); err != nil || r.Runs != 100 || r.Failed != 0 {
				t.Errorf("%v\n%s", err, r.Table())
			}
			if seen, allowed := r.Seen(); seen == 1 && allowed > 1 {
				t.Errorf("always the same: nothing is tried\n%s", r.Table())
			}
		}
	})
}

// A memory of cached copies that does everything right has nothing forbidden; with any of its weaknesses it shows what must not
// be, in each of the shapes that are made for it.
func TestPlantedWeaknessesShowForbiddenOutcomes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		weakness
		shapes []string
	}{
		{buffered, []string{"SB", "R", "RWC", "3.SB", "SB+RR"}},
		{acknowledged, []string{"SB", "MP", "S", "2+2W", "MP+R"}},
		{unpinned, []string{"CoWR"}},
		{accepted, []string{"MP+R", "MP+W"}},
	} {
		for _, name := range c.shapes {
			t.Run(string(c.weakness)+"/"+name, func(t *testing.T) {
				if r := cached(t, c.weakness, name, 1000); len(r.Forbidden()) == 0 || !errors.Is(r.Err(), ErrForbidden) {
					t.Errorf("%v\n%s", r.Err(), r.Table())
				}
			})
		}
	}
	for _, p := range Builtin() {
		t.Run(string(none)+"/"+p.Name, func(t *testing.T) {
			if r := cached(t, none, p.Name, 50); r.Err() != nil {
				t.Errorf("%v\n%s", r.Err(), r.Table())
			}
		})
	}
}

// cached runs a built-in shape on a memory of four peers with this weakness, in virtual time, until it has shown what is forbidden.
func cached(t *testing.T, w weakness, name string, runs int) (r *Result) {
	all := Builtin()
	p := all[slices.IndexFunc(all, func(p *Program) bool { return p.Name == name })]
	synctest.Test(t, func(t *testing.T) {
		for seed := uint64(0); runs > 0; seed++ {
			n := min(runs, 50)
			m := newCaching(w, 4, seed)
			r = Run(t.Context(), p, m, Options{Runs: n, Peers: 4, Seed: seed, Delay: 2 * time.Millisecond})
			m.background.Wait()
			if r.Runs != n || len(r.Forbidden()) > 0 {
				return
			}
			runs -= n
		}
	})
	return r
}

// failing fails every third write.
type failing struct {
	plain
	writes int
}

func (m *failing) Write(ctx context.Context, peer int, object string, value int) error {
	m.mu.Lock()
	m.writes++
	fails := m.writes%3 == 0
	m.mu.Unlock()
	if fails {
		return errors.ErrUnsupported
	}
	return m.plain.Write(ctx, peer, object, value)
}

func TestFailuresOfTheMemoryAreNoPass(t *testing.T) {
	p := Builtin()[0]
	r := Run(t.Context(), p, &failing{plain: plain{values: make(map[string]int)}}, Options{Runs: 60, Delay: -1})
	if r.Failed == 0 || r.Runs+r.Failed != 60 || !errors.Is(r.Err(), errors.ErrUnsupported) || len(r.Forbidden()) > 0 {
		t.Errorf("%v\n%s", r.Err(), r.Table())
	}
	cause := errors.New("that is enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	r = Run(ctx, p, &plain{values: make(map[string]int)}, Options{})
	if r.Runs != 0 || r.Failed != 1 || r.Err() == nil {
		t.Errorf("%v\n%s", r.Err(), r.Table())
	}
	if err := (&Result{Program: p}).Err(); err == nil {
		t.Error("no run at all passes")
	}
	dirty := &plain{values: make(map[string]int)}
	for _, object := range []string{"x", "y"} {
		dirty.values["SB.0."+object] = 3
	}
	seed := uint64(0) // one by which some peer looks before anybody has written
	for ; Run(t.Context(), p, &plain{values: map[string]int{"SB.0.x": 3, "SB.0.y": 3}}, Options{Runs: 1, Seed: seed}).Failure == nil; seed++ {
	}
	if err := Run(t.Context(), p, dirty, Options{Runs: 1, Seed: seed}).Err(); err == nil || !strings.Contains(err.Error(), "holds 3 at first") {
		t.Errorf("objects that are not new: %v", err)
	}
}

func TestTable(t *testing.T) {
	p := Builtin()[0]
	r := &Result{Program: p, Runs: 111, Failed: 1, Counts: map[string]int{"a=0 b=1": 10, "a=1 b=1": 100, "a=0 b=0": 1}}
	want := `SB: 111 runs, 1 failed, 2 of 3 allowed outcomes seen, 1 forbidden
      10  a=0 b=1
       0  a=1 b=0
     100  a=1 b=1
       1  a=0 b=0  FORBIDDEN
`
	if got := r.Table(); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}
