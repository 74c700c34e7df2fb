package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"latchkey/testnet"
)

func TestMain(m *testing.M) {
	if os.Getenv(peerVariable) != "" {
		if err := GroupPeer(context.Background(), os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	flag.Set("test.parallel", "4") // they wait for groups to sleep and to follow their peers, more than for a processor
	goleak.VerifyTestMain(m)
}

// peerVariable makes this test's program a peer of [Groups].
const peerVariable = "LATCHKEY_TEST_GROUP_PEER"

func groupPeerCommand(ctx context.Context) *exec.Cmd {
	c := exec.CommandContext(ctx, os.Args[0])
	c.Env, c.Stderr = append(os.Environ(), peerVariable+"=1"), os.Stderr
	return c
}

// No figure is judged here: that is for people, on a machine that does nothing else.
func TestBenchesFillInEveryFigure(t *testing.T) {
	for name, bench := range map[string]func(context.Context, Options) (*Result, error){"route": Route, "lock": LockGroup} {
		t.Run(name, func(t *testing.T) {
			r, err := bench(t.Context(), Options{Time: 200 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			var text bytes.Buffer
			r.Text(&text)
			t.Log("\n" + text.String())
			if r.Bench != name || r.Peers != 7 || r.Operations == 0 || r.P50us <= 0 || r.P99us < r.P50us || r.OpsPerS <= 0 ||
				r.RatioToRaw <= 0 || r.MessagesOp <= 0 || r.AllocsOp <= 0 || r.RawP50us <= 0 || r.RawCPUusOp < 0 {
				t.Errorf("%+v", r)
			}
			// Neither is on the path of an operation. A busy machine may have peers suspect each other for a moment.
			if (r.lookups > 0 || r.streams > 0) && r.suspicions == 0 {
				t.Errorf("%d look-ups and %d new streams in %d repeated operations", r.lookups, r.streams, r.Operations)
			}
			b, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			for _, field := range []string{"p50_us", "p99_us", "ops_per_s", "ratio_to_raw", "messages_per_op", "allocs_per_op", "raw_p50_us", "raw_cpu_us_per_op", "load"} {
				if !strings.Contains(string(b), `"`+field+`":`) {
					t.Errorf("%s lacks %s", b, field)
				}
			}
		})
	}
}

func TestABenchEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Route(ctx, Options{}); err == nil {
		t.Error("a cancelled bench returned a result")
	}
}

func TestOrderFillsInEveryFigure(t *testing.T) {
	var steps []testnet.Progress
	dir := t.TempDir()
	r, err := Order(t.Context(), OrderOptions{
		Callers: 2 * perSession, Time: 100 * time.Millisecond, Dir: dir, Progress: func(p testnet.Progress) { steps = append(steps, p) },
	})
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	r.Text(&text)
	t.Log("\n" + text.String())
	measured := uint64(0)
	filled := func(name string, l OrderLoad, messages bool) {
		if l.Operations == 0 || l.OpsPerS <= 0 || l.P50us <= 0 || l.P99us < l.P50us || l.CPUusOp < 0 || l.AllocsOp <= 0 || l.MessagesOp > 0 != messages {
			t.Errorf("%s: %+v", name, l)
		}
		if messages {
			measured += uint64(l.Operations)
		}
	}
	for name, l := range map[string]OrderLoads{"no sync": r.NoSync, "disk": r.Disk, "sync": r.Sync} {
		filled(name+", batched", l.Batched, true)
		filled(name+", paced", l.Paced, true)
		if want := 50; l.Paced.Operations != want {
			t.Errorf("%s: %d paced commands in 50 ms, want %d", name, l.Paced.Operations, want)
		}
	}
	filled("bare raft", r.BareRaft, false)
	if r.Bench != "order" || r.Voters != 3 || r.Callers != 2*perSession || r.Payload != 64 || r.Rate != 1000 || r.Errors != 0 {
		t.Errorf("%+v", r)
	}
	if n := len(steps); n != 4 || steps[n-1].Done != steps[n-1].Total {
		t.Errorf("progress %+v", steps)
	}
	if want := r.NoSync.Batched.OpsPerS / r.BareRaft.OpsPerS; r.Ratio != want { // of one turn
		t.Errorf("ratio %v, want %v", r.Ratio, want)
	}
	if want := r.BareRaft.CPUusOp / max(r.NoSync.Batched.CPUusOp, 0.1); r.CPURatio != want {
		t.Errorf("ratio by CPU %v, want %v", r.CPURatio, want)
	}
	if r.Commands < measured { // the warm-up comes on top
		t.Errorf("%d commands executed, %d measured", r.Commands, measured)
	}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{"no_sync", "disk_no_sync", "disk_sync", "bare_raft", "batched", "paced", "ops_per_s", "p50_us", "p99_us", "cpu_us_per_op",
		"allocs_per_op", "messages_per_op", "ratio_to_bare_raft", "cpu_ratio_to_bare_raft", "commands", "errors", "load"} {
		if !strings.Contains(string(b), `"`+field+`":`) {
			t.Errorf("%s lacks %s", b, field)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("stores left behind: %v, %v", left, err)
	}
}

func TestOrderRefusesCallersThatWouldBeTurnedAway(t *testing.T) {
	for _, n := range []int{-1, CallersMax + 1} {
		if _, err := Order(t.Context(), OrderOptions{Callers: n}); err == nil {
			t.Errorf("%d callers were taken", n)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Order(ctx, OrderOptions{Callers: CallersMax}); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled bench: %v", err)
	}
}

func TestGroupsFillInEveryFigure(t *testing.T) {
	t.Parallel()
	for name, onDisk := range map[string]bool{"memory": false, "disk": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var last testnet.Progress
			dir := t.TempDir()
			r, err := Groups(t.Context(), GroupsOptions{
				Groups: 20, Disk: onDisk, Time: 100 * time.Millisecond, Settle: time.Millisecond, Dir: dir, Peer: groupPeerCommand, Progress: func(p testnet.Progress) { last = p },
			})
			if err != nil {
				t.Fatal(err)
			}
			var text bytes.Buffer
			r.Text(&text)
			t.Log("\n" + text.String())
			if r.Bench != "groups" || r.Groups != 20 || r.Peers != 3 || r.Store == "" || r.HeapMB <= 0 || r.HeapEmptyMB <= 0 || r.BytesReplica == 0 || r.RSSMB == 0 || r.CPUPercent < 0 ||
				r.CPUEmpty < 0 || r.MessagesS < 0 || r.AsleepS <= 0 || r.StartCPUms < 0 {
				t.Errorf("%+v", r)
			}
			if r.LedAgainS <= 0 || r.AsleepAgainS < r.LedAgainS || r.StatusMs <= 0 || r.DeathCPUms <= 0 || r.CPUOneDead < 0 || r.HeapDeadMB <= 0 {
				t.Errorf("after a death: %+v", r)
			}
			if want := 2 * 21; last.Done != want || last.Total != want { // the root sleeps, too
				t.Errorf("%+v, want %d replicas asleep", last, want)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("stores left behind: %v, %v", left, err)
			}
		})
	}
	for _, n := range []int{-1, GroupsMax + 1} {
		if _, err := Groups(t.Context(), GroupsOptions{Groups: n}); err == nil {
			t.Errorf("%d groups were taken", n)
		}
	}
}

// Groups of a testnet have up to five voters, so each takes in a fifth peer.
func TestJoinTellsWhatItMoved(t *testing.T) {
	t.Parallel()
	r, err := Join(t.Context(), JoinOptions{N: 4, Groups: 4, quiet: 6 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	r.Text(&text)
	t.Log("\n" + text.String())
	if r.Bench != "join" || r.Peers != 4 || r.Groups < 4 || r.SettledS < 0 || r.IdleBytesS <= 0 {
		t.Errorf("%+v", r)
	}
	if r.Touched == 0 || r.Gained == 0 || r.Gained > r.Groups || int(r.Views) < r.Touched || r.Bytes <= 0 || r.Messages <= 0 || r.BytesTouched <= 0 {
		t.Errorf("a fifth peer that joins groups of up to five: %+v", r)
	}
	for _, n := range []int{-1, JoinGroupsMax + 1} {
		if _, err := Join(t.Context(), JoinOptions{Groups: n}); err == nil {
			t.Errorf("%d groups were taken", n)
		}
	}
}

func TestBareRaftOrdersForAllCallers(t *testing.T) {
	const callers, each = 4, 3 * bareCompactEvery / 4 // beyond a compaction
	b, err := newBareRaft(t.Context(), callers)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			for range each {
				if err := b.do(t.Context(), i, make([]byte, payloadBytes)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.close()
	m := b.members[0] // the others may be behind
	last, err := m.log.LastIndex()
	if err != nil || last < callers*each {
		t.Errorf("the leader has %d entries, %v", last, err)
	}
	if first, _ := m.log.FirstIndex(); first <= 2 || last-first > 2*bareCompactEvery {
		t.Errorf("the leader keeps %d to %d", first, last)
	}
}
