package sim

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"latchkey/internal/automaton"
)

// recorder is a process that writes down what reaches it.
type recorder struct {
	env    *Env
	on     func(r *recorder, from NodeID, msg any)
	killed *int
}

func (r *recorder) Receive(from NodeID, msg any) {
	if r.on != nil {
		r.on(r, from, msg)
	}
}

func (r *recorder) Killed() {
	if r.killed != nil {
		*r.killed++
	}
}

type arrival struct {
	at   Time
	from NodeID
	msg  any
}

// collect makes a world whose nodes write down arrivals, per node.
func collect(cfg Config) (*World, *[]*Env, *[][]arrival) {
	envs, got := make([]*Env, cfg.Nodes), make([][]arrival, cfg.Nodes)
	var w *World
	w = New(cfg, func(e *Env) Process {
		envs[e.ID()] = e
		return &recorder{env: e, on: func(r *recorder, from NodeID, msg any) {
			got[e.ID()] = append(got[e.ID()], arrival{w.Now(), from, msg})
		}}
	})
	return w, &envs, &got
}

func run(t testing.TB, w *World, until Time) {
	t.Helper()
	if err := w.Run(until); err != nil {
		t.Fatal(err)
	}
}

func TestEventsOfOneInstantRunInTheOrderOfScheduling(t *testing.T) {
	w, _, _ := collect(Config{})
	var got []int
	for i := range 100 {
		w.At(time.Second*Time(i%3), func() { got = append(got, i) })
	}
	run(t, w, time.Minute)
	want := slices.Clone(got)
	slices.SortFunc(want, func(a, b int) int {
		if a%3 != b%3 {
			return a%3 - b%3
		}
		return a - b
	})
	if !slices.Equal(got, want) {
		t.Errorf("order %v", got)
	}
}

func TestPerfectNetworkDeliversEverythingOnceAndInOrder(t *testing.T) {
	w, envs, got := collect(Config{Nodes: 3, Faults: Faults{DelayMin: time.Millisecond, DelayMax: time.Second}})
	run(t, w, 0)
	for i := range 200 {
		(*envs)[0].Send(2, i)
	}
	run(t, w, 10*time.Second)
	for i, a := range (*got)[2] {
		if a.msg != i || a.from != 0 || a.at < time.Millisecond || a.at > time.Second {
			t.Fatalf("arrival %d: %+v", i, a)
		}
	}
	if len((*got)[2]) != 200 || len((*got)[1]) != 0 {
		t.Errorf("%d and %d arrivals", len((*got)[2]), len((*got)[1]))
	}
}

func TestLinkFaultsHappenAtTheirRateAndEndAtHeal(t *testing.T) {
	const n = 2000
	f := Faults{DelayMax: time.Millisecond, Heal: time.Minute, Loss: .2, Duplicate: .3, Reorder: .2, ReorderBy: time.Second}
	w, envs, got := collect(Config{Seed: 3, Nodes: 2, Faults: f})
	phase := func(at Time) (distinct, twice, overtaken int) {
		run(t, w, at)
		(*got)[1] = nil
		for i := range n {
			(*envs)[0].Send(1, i)
		}
		run(t, w, at+10*time.Second)
		seen, newest := map[any]int{}, -1
		for _, a := range (*got)[1] {
			if seen[a.msg]++; seen[a.msg] == 2 {
				twice++
			}
			if a.msg.(int) < newest {
				overtaken++
			}
			newest = max(newest, a.msg.(int))
		}
		return len(seen), twice, overtaken
	}
	if d, tw, o := phase(0); d < n*75/100 || d > n*85/100 || tw < n*18/100 || tw > n*30/100 || o == 0 {
		t.Errorf("with faults: %d of %d arrived, %d twice, %d overtaken", d, n, tw, o)
	}
	if d, tw, o := phase(time.Minute); d != n || tw != 0 || o != 0 {
		t.Errorf("healed: %d of %d arrived, %d twice, %d overtaken", d, n, tw, o)
	}
}

func TestCutsBlockWhatTheySayAndOnlyThat(t *testing.T) {
	for _, c := range []struct {
		name string
		cut  Cut
		open string // the open links, as from>to
	}{
		{"none", nil, "0>1 0>2 1>0 1>2 2>0 2>1"},
		{"split", Split([]NodeID{0, 1}, []NodeID{2}), "0>1 1>0"},
		{"unlisted", Split([]NodeID{0, 1}), "0>1 1>0"},
		{"one way", OneWay([]NodeID{0}, []NodeID{1, 2}), "1>0 1>2 2>0 2>1"},
		{"bridge", Bridged(1, []NodeID{0}, []NodeID{2}), "0>1 1>0 1>2 2>1"},
	} {
		w, envs, got := collect(Config{Nodes: 3})
		w.SetCut(c.cut)
		run(t, w, 0)
		for _, e := range *envs {
			for j := range *envs {
				e.Send(NodeID(j), "m")
			}
		}
		run(t, w, time.Second)
		var open []string
		for to, as := range *got {
			own := false
			for _, a := range as {
				if a.from == NodeID(to) {
					own = true
					continue
				}
				open = append(open, fmt.Sprintf("%d>%d", a.from, to))
			}
			if !own {
				t.Errorf("%s: node %d cannot reach itself", c.name, to)
			}
		}
		slices.Sort(open)
		if s := strings.Join(open, " "); s != c.open {
			t.Errorf("%s: open %s, want %s", c.name, s, c.open)
		}
	}
}

func TestCutLosesWhatIsTravelling(t *testing.T) {
	w, envs, got := collect(Config{Nodes: 2, Faults: Faults{DelayMin: time.Second, DelayMax: time.Second}})
	run(t, w, 0)
	(*envs)[0].Send(1, "m")
	w.At(time.Second/2, func() { w.SetCut(Split([]NodeID{0}, []NodeID{1})) })
	run(t, w, 2*time.Second)
	if len((*got)[1]) != 0 {
		t.Error("arrived through a cut link")
	}
}

func TestCrashEndsTheRunAtOnceAndRestartBeginsAnother(t *testing.T) {
	killed := 0
	var lives []uint64
	var old *Env
	fired := 0
	w := New(Config{Nodes: 1}, func(e *Env) Process {
		lives = append(lives, e.Life())
		e.After(time.Second, func() { fired++ })
		if old == nil {
			old = e
		}
		return &recorder{env: e, killed: &killed}
	})
	run(t, w, time.Second/2)
	w.Crash(0)
	w.Crash(0)
	if old.Alive() || w.Up(0) || w.Down() != 1 || killed != 1 {
		t.Errorf("after the crash: alive %v, up %v, down %d, killed %d", old.Alive(), w.Up(0), w.Down(), killed)
	}
	old.Send(0, "m")
	old.After(time.Millisecond, func() { t.Error("a dead run's timer fired") })
	run(t, w, 3*time.Second)
	if fired != 0 {
		t.Error("a timer of the dead run fired")
	}
	w.Restart(0)
	w.Restart(0)
	run(t, w, 6*time.Second)
	if !slices.Equal(lives, []uint64{1, 2}) || fired != 1 || old.Alive() {
		t.Errorf("lives %v, %d timers, old alive %v", lives, fired, old.Alive())
	}
}

func TestCrashDuringBootKillsTheProcess(t *testing.T) {
	killed := 0
	var w *World
	w = New(Config{Nodes: 1}, func(e *Env) Process {
		w.Crash(0)
		return &recorder{env: e, killed: &killed}
	})
	run(t, w, time.Second)
	if killed != 1 || w.Up(0) {
		t.Errorf("killed %d times, up %v", killed, w.Up(0))
	}
}

func TestMessagesToADownNodeAreLost(t *testing.T) {
	w, envs, got := collect(Config{Nodes: 2, Faults: Faults{DelayMin: time.Second, DelayMax: time.Second}})
	run(t, w, 0)
	w.Crash(1)
	(*envs)[0].Send(1, "m")
	run(t, w, 2*time.Second)
	w.Restart(1)
	run(t, w, 4*time.Second)
	if len((*got)[1]) != 0 {
		t.Error("a message waited for a node that was down")
	}
}

func TestTimersRunByTheNodesOwnClockAndNeverEarly(t *testing.T) {
	const bound = 10_000
	for _, rate := range []int64{-bound, -1, 0, 1, 7777, bound} {
		w, envs, _ := collect(Config{Nodes: 1})
		w.SetRate(0, rate)
		run(t, w, 0)
		for _, d := range []time.Duration{0, 1, 3, 999_999, time.Second, time.Hour} {
			e := (*envs)[0]
			begin, trueBegin := e.Now(), w.Now()
			fired := false
			e.After(d, func() {
				fired = true
				if got := e.Now().Sub(begin); got < d || got > d+3 {
					t.Errorf("rate %d: a timer of %v fired after %v of its clock", rate, d, got)
				}
				if got := w.Now() - trueBegin; got < d-d/90-2 || got > d+d/90+4 {
					t.Errorf("rate %d: a timer of %v fired after %v of true time", rate, d, got)
				}
			})
			run(t, w, w.Now()+2*d+10)
			if !fired {
				t.Errorf("rate %d: a timer of %v never fired", rate, d)
			}
		}
	}
}

func TestCancelledTimerDoesNotFire(t *testing.T) {
	w, envs, _ := collect(Config{Nodes: 1})
	run(t, w, 0)
	cancel := (*envs)[0].After(time.Second, func() { t.Error("fired") })
	cancel()
	run(t, w, time.Minute)
}

func TestDrawnClocksStayWithinTheBoundAndReachIt(t *testing.T) {
	w, _, _ := collect(Config{Seed: 1, Nodes: 500, Faults: Faults{Drift: 10_000}})
	lo, hi := int64(0), int64(0)
	for i := range w.nodes {
		lo, hi = min(lo, w.nodes[i].rate), max(hi, w.nodes[i].rate)
	}
	if lo != -10_000 || hi != 10_000 {
		t.Errorf("rates from %d to %d", lo, hi)
	}
}

func TestClockStartsAnewAtEachBoot(t *testing.T) {
	w, envs, _ := collect(Config{Nodes: 1})
	run(t, w, time.Hour)
	w.Crash(0)
	w.Restart(0)
	if now := (*envs)[0].Now(); now != 0 {
		t.Errorf("the clock of a new run reads %v", now)
	}
	run(t, w, time.Hour+time.Second)
	if now := (*envs)[0].Now(); now != automaton.Instant(time.Second) {
		t.Errorf("after a second it reads %v", now)
	}
}

func TestPausedNodeGetsEverythingLaterInOrder(t *testing.T) {
	w, envs, got := collect(Config{Nodes: 2})
	run(t, w, 0)
	w.Pause(1, time.Minute)
	for i := range 10 {
		w.At(Time(i)*time.Second, func() { (*envs)[0].Send(1, i) })
	}
	w.At(time.Minute, func() { (*envs)[0].Send(1, 10) })
	run(t, w, 2*time.Minute)
	for i, a := range (*got)[1] {
		if a.msg != i || a.at != time.Minute {
			t.Errorf("arrival %d: %+v", i, a)
		}
	}
	if n := len((*got)[1]); n != 11 {
		t.Errorf("%d arrivals", n)
	}
}

func TestErrorsNameTheSeedAndTheFaults(t *testing.T) {
	wrong := errors.New("two owners")
	w, _, _ := collect(Config{Seed: 4711, Nodes: 2, Faults: Faults{Heal: time.Minute, Loss: .25}})
	w.At(time.Second, func() { w.Check = func() error { return wrong } })
	w.At(time.Hour, func() { t.Error("the run went on") })
	err := w.Run(2 * time.Hour)
	if !errors.Is(err, wrong) || !strings.Contains(err.Error(), "seed=4711") || !strings.Contains(err.Error(), "loss=0.250") {
		t.Errorf("%v", err)
	}
	if again := w.Run(3 * time.Hour); !errors.Is(again, wrong) {
		t.Errorf("a failed world runs on: %v", again)
	}
}

func TestRunUntilStopsWhenItIsDone(t *testing.T) {
	w, _, _ := collect(Config{})
	hits := 0
	for i := range 10 {
		w.At(Time(i)*time.Second, func() { hits++ })
	}
	if err := w.RunUntil(time.Hour, func() bool { return hits == 4 }); err != nil || hits != 4 || w.Now() != 3*time.Second {
		t.Errorf("%d hits at %v, %v", hits, w.Now(), err)
	}
}

func TestTimersThatWaitedForAPauseFireInTheirOrder(t *testing.T) {
	w, envs, _ := collect(Config{Nodes: 1})
	run(t, w, 0)
	w.Pause(0, time.Minute)
	var got []int
	(*envs)[0].After(50*time.Second, func() { got = append(got, 50) })
	(*envs)[0].After(40*time.Second, func() { got = append(got, 40) })
	run(t, w, time.Minute)
	if !slices.Equal(got, []int{40, 50}) {
		t.Errorf("order %v", got)
	}
}

func TestRestartedNodeIsNotPausedAndHasNoOldTimers(t *testing.T) {
	w, envs, _ := collect(Config{Nodes: 1})
	run(t, w, 0)
	(*envs)[0].After(time.Second, func() { t.Error("a timer of the dead run fired in the next") })
	w.Pause(0, time.Hour)
	w.Crash(0)
	w.Restart(0)
	fired := false
	(*envs)[0].After(time.Minute, func() { fired = true })
	run(t, w, 2*time.Minute)
	if !fired {
		t.Error("the new run is paused")
	}
}

func TestEachLifeDrawsAnew(t *testing.T) {
	w, envs, _ := collect(Config{Nodes: 2})
	run(t, w, 0)
	drawn := map[uint64]bool{}
	for range 3 {
		drawn[(*envs)[0].Rand().Uint64()], drawn[(*envs)[1].Rand().Uint64()] = true, true
		for id := range NodeID(2) {
			w.Crash(id)
			w.Restart(id)
		}
	}
	if len(drawn) != 6 {
		t.Errorf("%d different draws of 6", len(drawn))
	}
}

func TestCutLosesWhatIsSentThoughItHealsBeforeTheArrival(t *testing.T) {
	w, envs, got := collect(Config{Nodes: 2, Faults: Faults{DelayMin: time.Second, DelayMax: time.Second}})
	run(t, w, 0)
	w.SetCut(Split([]NodeID{0}, []NodeID{1}))
	(*envs)[0].Send(1, "m")
	w.SetCut(nil)
	run(t, w, 2*time.Second)
	if len((*got)[1]) != 0 {
		t.Error("what was sent into a cut arrived")
	}
}

// gossip is a busy workload for the tests below: every node forwards a counter to a node of its choice, with timers.
func gossip(seed uint64, nodes int, f Faults) *World {
	return New(Config{Seed: seed, Nodes: nodes, Faults: f, CrashLimit: nodes / 2}, func(e *Env) Process {
		var beat func()
		beat = func() {
			e.Send(NodeID(e.Rand().IntN(nodes)), 8)
			e.After(10*time.Millisecond, beat)
		}
		beat()
		return &recorder{env: e, on: func(_ *recorder, _ NodeID, msg any) {
			if left := msg.(int); left > 0 {
				e.Send(NodeID(e.Rand().IntN(nodes)), left-1)
			}
		}}
	})
}

var testScale = Scale{Delay: 50 * time.Millisecond, Timeout: time.Second, Heal: 10 * time.Second, Drift: automaton.DriftDefault}

func TestSameSeedGivesTheSameRunBitForBit(t *testing.T) {
	hashes := map[uint64]uint64{}
	for seed := range uint64(30) {
		var h [2]uint64
		for i := range h {
			w := gossip(seed, 7, Draw(seed, testScale))
			run(t, w, 2*time.Second)
			h[i] = w.Hash()
		}
		if h[0] != h[1] {
			t.Errorf("seed %d: %x and %x", seed, h[0], h[1])
		}
		if other, dup := hashes[h[0]]; dup {
			t.Errorf("seeds %d and %d give the same run", seed, other)
		}
		hashes[h[0]] = seed
	}
}

func TestDrawnShapesDifferInKind(t *testing.T) {
	kinds, cuts := map[string]int{}, map[CutKind]int{}
	const seeds = 400
	for seed := range uint64(seeds) {
		f := Draw(seed, testScale)
		if f.Heal > testScale.Heal || f.Begin >= f.Heal || f.DelayMin > f.DelayMax || f.DelayMax > testScale.Delay {
			t.Fatalf("seed %d: %v", seed, f)
		}
		for name, on := range map[string]bool{
			"loss": f.Loss > 0, "duplicate": f.Duplicate > 0, "reorder": f.Reorder > 0,
			"cut": f.CutEvery > 0, "crash": f.CrashEvery > 0, "pause": f.PauseEvery > 0,
		} {
			if on {
				kinds[name]++
			}
			if on != strings.Contains(f.String(), name+"=") {
				t.Errorf("%s on=%v is not what %q says", name, on, f)
			}
		}
		for _, k := range f.Cuts {
			cuts[k]++
		}
	}
	for name, n := range kinds {
		if n < seeds*4/10 || n > seeds*6/10 {
			t.Errorf("%s is on in %d of %d seeds", name, n, seeds)
		}
	}
	if len(kinds) != 6 || len(cuts) != int(cutKinds) {
		t.Errorf("kinds %v, cuts %v", kinds, cuts)
	}
}

func TestCrashLimitAndSparedNodesHold(t *testing.T) {
	f := Faults{DelayMax: time.Millisecond, Heal: time.Hour, CrashEvery: time.Second, CrashFor: 10 * time.Second}
	w, _, _ := collect(Config{Seed: 2, Nodes: 5, Faults: f, CrashLimit: 2, Spare: []NodeID{4}})
	most := 0
	run(t, w, 0)
	w.Check = func() error {
		most = max(most, w.Down())
		if !w.Up(4) {
			return errors.New("the spared node is down")
		}
		return nil
	}
	run(t, w, time.Hour)
	if most != 2 {
		t.Errorf("at most %d nodes were down, want 2", most)
	}
	if w.Down() != 0 {
		t.Errorf("%d nodes are down after the healing", w.Down())
	}
}

func TestSimulatorIsFastEnough(t *testing.T) {
	if testing.Short() {
		t.Skip("measures time")
	}
	w := gossip(1, 7, Faults{DelayMax: 10 * time.Millisecond})
	begin := time.Now()
	run(t, w, 30*time.Second)
	if rate := float64(w.Events()) / time.Since(begin).Seconds(); rate < 1e5 {
		t.Errorf("%.0f events/s, want 100000", rate)
	}
}

func BenchmarkEvents(b *testing.B) {
	w := gossip(1, 7, Faults{DelayMax: 10 * time.Millisecond})
	b.ReportAllocs()
	for b.Loop() {
		if err := w.RunUntil(1<<62, func() bool { return true }); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(w.Events())/b.Elapsed().Seconds(), "events/s")
}
