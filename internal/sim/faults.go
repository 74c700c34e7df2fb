package sim

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"time"

	"latchkey/internal/automaton"
)

// Faults is the shape of what goes wrong in a world. The zero value is a perfect network without delay.
type Faults struct {
	// DelayMin and DelayMax bound how long a message travels; every length between is equally likely. They hold always.
	DelayMin, DelayMax time.Duration
	// Drift bounds how far the rate of each node's clock is from true time. It holds always.
	Drift automaton.Drift

	// The rest holds from Begin until Heal. At Heal every cut ends and every node that is down boots.
	Begin, Heal Time
	Loss        float64       // probability that a message is lost
	Duplicate   float64       // probability that it arrives twice
	Reorder     float64       // probability that it takes up to ReorderBy longer and may be overtaken
	ReorderBy   time.Duration // otherwise a link keeps its order

	CutEvery time.Duration // mean time from the end of a cut to the next; 0 is never
	CutFor   time.Duration // mean length of a cut
	Cuts     []CutKind     // the kinds that occur

	CrashEvery time.Duration // mean time between crashes; 0 is never
	CrashFor   time.Duration // mean time a node stays down

	PauseEvery time.Duration // mean time between pauses; 0 is never
	PauseFor   time.Duration // mean length of a pause
}

// CutKind is a kind of partition.
type CutKind uint8

// The kinds of partition.
const (
	CutSplit  CutKind = iota // two sides
	CutAlone                 // one node against the rest
	CutOneWay                // one side's messages to the other are lost, not the answers
	CutBridge                // two sides and one node that reaches both
	cutKinds
)

// String returns the kind as failures print it.
func (k CutKind) String() string {
	return [...]string{"split", "alone", "one-way", "bridge"}[k]
}

// active reports whether the faults that come and go hold at t.
func (f *Faults) active(t Time) bool { return t >= f.Begin && t < f.Heal }

// String lists the faults that are on.
func (f Faults) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "delay=%v..%v", f.DelayMin, f.DelayMax)
	if f.Drift > 0 {
		fmt.Fprintf(&b, " drift=%dppm", int64(f.Drift))
	}
	fmt.Fprintf(&b, " faults=%v..%v", f.Begin, f.Heal)
	for _, p := range []struct {
		name string
		p    float64
	}{{"loss", f.Loss}, {"duplicate", f.Duplicate}, {"reorder", f.Reorder}} {
		if p.p > 0 {
			fmt.Fprintf(&b, " %s=%.3f", p.name, p.p)
		}
	}
	if f.Reorder > 0 {
		fmt.Fprintf(&b, " by=%v", f.ReorderBy)
	}
	if f.CutEvery > 0 {
		fmt.Fprintf(&b, " cut=%v/%v%v", f.CutFor, f.CutEvery, f.Cuts)
	}
	if f.CrashEvery > 0 {
		fmt.Fprintf(&b, " crash=%v/%v", f.CrashFor, f.CrashEvery)
	}
	if f.PauseEvery > 0 {
		fmt.Fprintf(&b, " pause=%v/%v", f.PauseFor, f.PauseEvery)
	}
	return b.String()
}

// Scale says what "long" is for the protocol under test, so that drawn faults bite.
type Scale struct {
	Delay   time.Duration   // a slow message; delays are drawn up to it
	Timeout time.Duration   // the protocol's patience: cuts, downtimes and pauses are a few of these
	Heal    Time            // when faults end at the latest; they end between half of it and it
	Drift   automaton.Drift // the bound on clocks
}

// Draw draws the shape of the faults from the seed: each kind is on or off by its own coin, and its strength goes over two
// orders of magnitude. Equal arguments give equal faults.
func Draw(seed uint64, s Scale) Faults {
	r := stream(seed, streamShape)
	f := Faults{Drift: s.Drift}
	f.DelayMax = logUniform(r, s.Delay/50, s.Delay)
	f.DelayMin = time.Duration(r.Float64() * float64(f.DelayMax))
	f.Heal = s.Heal/2 + time.Duration(r.Int64N(int64(s.Heal/2)+1))
	f.Begin = time.Duration(r.Int64N(int64(f.Heal/4) + 1))
	on := func() bool { return r.IntN(2) == 0 }
	if on() {
		f.Loss = math.Exp(math.Log(0.003) + r.Float64()*math.Log(100)) // 0.3 % to 30 %
	}
	if on() {
		f.Duplicate = math.Exp(math.Log(0.003) + r.Float64()*math.Log(100))
	}
	if on() {
		f.Reorder = math.Exp(math.Log(0.01) + r.Float64()*math.Log(50))
		f.ReorderBy = logUniform(r, s.Delay, 4*s.Timeout)
	}
	if on() {
		f.CutEvery, f.CutFor = logUniform(r, s.Timeout/2, 10*s.Timeout), logUniform(r, s.Timeout/4, 8*s.Timeout)
		for k := range cutKinds {
			if on() {
				f.Cuts = append(f.Cuts, k)
			}
		}
		if len(f.Cuts) == 0 {
			f.Cuts = []CutKind{CutKind(r.IntN(int(cutKinds)))}
		}
	}
	if on() {
		f.CrashEvery, f.CrashFor = logUniform(r, s.Timeout/2, 10*s.Timeout), logUniform(r, s.Timeout/20, 5*s.Timeout)
	}
	if on() {
		f.PauseEvery, f.PauseFor = logUniform(r, s.Timeout, 10*s.Timeout), logUniform(r, s.Timeout/20, 5*s.Timeout)
	}
	return f
}

// logUniform draws a length whose logarithm is uniform between those of lo and hi.
func logUniform(r *rand.Rand, lo, hi time.Duration) time.Duration {
	lo, hi = max(lo, 1), max(hi, 1)
	return time.Duration(float64(lo) * math.Exp(r.Float64()*math.Log(float64(hi)/float64(lo))))
}

// scheduleFaults starts the drawn crashes, pauses and cuts, and the healing. It draws from its own stream, so faults fall
// at the same times whatever the protocol does.
func (w *World) scheduleFaults() {
	f := &w.cfg.Faults
	if f.Heal == 0 {
		return
	}
	w.recur(f.Begin, f.CrashEvery, func() time.Duration {
		id, down := w.pick(), w.expo(f.CrashFor)
		if w.nodes[id].spare || !w.Up(id) || w.Down() >= w.cfg.CrashLimit {
			return 0
		}
		w.Crash(id)
		w.At(w.now+down, func() { w.Restart(id) })
		return 0
	})
	w.recur(f.Begin, f.PauseEvery, func() time.Duration {
		id, d := w.pick(), w.expo(f.PauseFor)
		if !w.nodes[id].spare {
			w.Pause(id, min(d, f.Heal-w.now))
		}
		return 0
	})
	w.recur(f.Begin, f.CutEvery, func() time.Duration {
		w.SetCut(w.drawCut())
		d := w.expo(f.CutFor)
		w.At(w.now+d, func() { w.SetCut(nil) })
		return d
	})
	w.At(f.Heal, func() {
		w.SetCut(nil)
		for i := range w.nodes {
			w.Restart(NodeID(i))
		}
	})
}

// recur runs f again and again from t until the healing, with a mean of every between the end of one and the next. f
// returns how long what it began lasts.
func (w *World) recur(t Time, every time.Duration, f func() time.Duration) {
	if every <= 0 {
		return
	}
	next := t + w.expo(every)
	if next >= w.cfg.Faults.Heal {
		return
	}
	w.At(next, func() { w.recur(w.now+f(), every, f) })
}

func (w *World) expo(mean time.Duration) time.Duration {
	return 1 + time.Duration(w.faults.ExpFloat64()*float64(mean))
}

func (w *World) pick() NodeID { return NodeID(w.faults.IntN(len(w.nodes))) }

// drawCut draws one partition of a kind that is on.
func (w *World) drawCut() Cut {
	kinds := w.cfg.Faults.Cuts
	kind, special := kinds[w.faults.IntN(len(kinds))], w.pick()
	var a, b []NodeID
	for i := range w.nodes {
		switch id := NodeID(i); {
		case kind == CutAlone && id == special, kind != CutAlone && w.faults.IntN(2) == 0:
			a = append(a, id)
		default:
			b = append(b, id)
		}
	}
	switch kind {
	case CutOneWay:
		return OneWay(a, b)
	case CutBridge:
		return Bridged(special, a, b)
	}
	return Split(a, b)
}
