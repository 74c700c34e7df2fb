package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	flag.Set("test.parallel", "4") // they wait for leases and for groups to settle, more than for a processor
	debug.SetGCPercent(400)        // their heaps are small: with Go's default much of their time is spent on collecting them
	goleak.VerifyTestMain(m)
}

// play runs a small demo with its story in the test's log.
func play(t *testing.T, opts Options) *Report {
	t.Helper()
	opts.Each, opts.TTL = 10, time.Second
	var story []string
	opts.Story = func(line string) { story = append(story, line) }
	r, err := Run(t.Context(), opts)
	t.Log("\n" + strings.Join(story, "\n"))
	if err != nil {
		t.Fatal(err)
	}
	var table bytes.Buffer
	if err := r.Table(&table); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + table.String())
	return r
}

func TestEveryIncrementSurvivesTheKills(t *testing.T) {
	t.Parallel()
	r := play(t, Options{})
	for _, c := range r.Checks {
		if !c.OK {
			t.Errorf("%s: %v", c.Name, c.err)
		}
	}
	if !r.OK || r.Peers != 7 || r.Increments != 80 || r.Kills != 2 || len(r.FailoverMS) != 2 || r.LockP50us <= 0 ||
		r.ObjectOps < 1000 || r.LeaderMS <= 0 || r.AnewMS <= 0 || r.DurableOps < 200 || r.DurableMS <= 0 || r.JoinMS <= 0 || r.LeaveMS <= 0 || r.RestartMS <= 0 || r.Kept != keptLocks {
		t.Errorf("report: %+v", r)
	}
}

// A demo that cannot fail proves nothing.
func TestWithoutTheLockTheDemoFails(t *testing.T) {
	t.Parallel()
	r := play(t, Options{Sabotage: SabotageNoLock})
	var failed []string
	for _, c := range r.Checks {
		if !c.OK {
			failed = append(failed, c.Name)
		}
	}
	if r.OK || !slices.Contains(failed, "tokens of the writes strictly rising") || !slices.Contains(failed, "history of acquire and release linearizable") {
		t.Errorf("ok is %v, failed: %q", r.OK, failed)
	}
}

func TestWithStaleCopiesTheDemoFails(t *testing.T) {
	t.Parallel()
	r := play(t, Options{Sabotage: SabotageStaleCopy})
	for _, c := range r.Checks {
		if failed := !c.OK; failed != (c.Name == "shared objects sequentially consistent") {
			t.Errorf("%s: %v", c.Name, c.err)
		}
	}
}

func TestReportHasTheShapeThatScriptsLeanOn(t *testing.T) {
	b, err := json.Marshal(&Report{OK: true, Peers: 7, Increments: 400, Kills: 2, LockP50us: 5, FailoverMS: []int64{1, 2}, JoinMS: 3, LeaveMS: 4, RestartMS: 6, Kept: 5, ObjectOps: 7, LeaderMS: 8, AnewMS: 9, DurableOps: 10, DurableMS: 11,
		Checks: []Check{{Name: "x", OK: true}}, took: time.Second})
	want := `{"ok":true,"peers":7,"increments":400,"kills":2,"lock_p50_us":5,"failover_ms":[1,2],"join_ms":3,"leave_ms":4,"restart_ms":6,"kept":5,"object_ops":7,"object_leader_ms":8,"object_restart_ms":9,"durable_ops":10,"durable_leader_ms":11,"checks":[{"name":"x","ok":true}]}`
	if err != nil || string(b) != want {
		t.Errorf("%s, %v; want %s", b, err, want)
	}
}

func TestUnknownSabotageAndACancelledRunAreErrors(t *testing.T) {
	if _, err := Run(t.Context(), Options{Sabotage: "everything"}); err == nil || !strings.Contains(err.Error(), "no-lock") {
		t.Errorf("unknown sabotage: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(context.Canceled)
	if _, err := Run(ctx, Options{}); err == nil {
		t.Error("a cancelled run returned a report")
	}
}
