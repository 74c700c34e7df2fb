package main

import (
	"context"
	"errors"
	"math"
	"os"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if spec := os.Getenv(memberEnv); spec != "" {
		_ = beMember(spec)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// The whole comparison, shortened: both systems do every workload and exclude, and what is printed has a row for each.
func TestBothSystemsDoEveryWorkload(t *testing.T) {
	r, err := run(t.Context(), options{length: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Workloads) != len(workloads) {
		t.Fatalf("%d workloads of %d", len(r.Workloads), len(workloads))
	}
	for _, w := range r.Workloads {
		for name, f := range map[string]Figures{"latchkey": w.Latchkey, "by group": w.Group, "etcd": w.Etcd} {
			if f.Holds == 0 || f.PerS <= 0 || f.P50ms <= 0 || f.P99ms < f.P50ms || f.CPUms <= 0 || f.Jain <= 0 || f.Jain > 1+1e-9 {
				t.Errorf("%s with %d clients, %s: %+v", w.Name, w.Clients, name, f)
			}
		}
	}
	var b strings.Builder
	if err := r.text(&b); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(b.String(), "contended"); got < 3*3 {
		t.Errorf("%d rows of contention in\n%s", got, b.String())
	}
}

// A system that does not exclude is found out, whatever its figures.
func TestOverlapIsFoundOut(t *testing.T) {
	d, err := newSide(t.Context(), lawless{}, 2, []string{"one"})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.work(t.Context(), time.Minute, true); !errors.Is(err, errOverlap) {
		t.Fatalf("two clients in one lock: %v", err)
	}
}

// lawless grants everything at once, and waits inside for the other client to come in too.
type lawless struct{}

func (lawless) name() string { return "lawless" }
func (lawless) client(context.Context) (client, error) {
	return lawlessClient{}, nil
}
func (lawless) close() error { return nil }

type lawlessClient struct{}

func (lawlessClient) hold(_ context.Context, _ string, inside func()) (time.Duration, error) {
	inside()
	return time.Microsecond, nil
}
func (lawlessClient) close() error { return nil }

func TestJain(t *testing.T) {
	for _, c := range []struct {
		each []int
		want float64
	}{
		{nil, 0}, {[]int{0, 0}, 0}, {[]int{5, 5, 5, 5}, 1}, {[]int{8, 0, 0, 0}, 0.25}, {[]int{3, 1}, 0.8},
	} {
		if got := jain(c.each); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("jain(%v) = %v, want %v", c.each, got, c.want)
		}
	}
}

func TestGaps(t *testing.T) {
	var g gaps
	start := time.Now()
	for _, at := range []time.Duration{0, 1, 4, 6} {
		g.hold(start.Add(at * time.Second))
	}
	if g.longest != 3*time.Second {
		t.Errorf("longest gap %v", g.longest)
	}
}

func TestTallyOfNothing(t *testing.T) {
	if f := (&tally{}).figures(); f != (Figures{}) {
		t.Errorf("figures of nothing: %+v", f)
	}
}
