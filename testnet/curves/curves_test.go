package curves

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

// some are settings of every protocol, small enough for a test.
func some() (all []Setting) {
	for _, size := range Sizes {
		for _, p := range Protocols {
			for _, n := range []int{1, 2, 8} {
				all = append(all, Setting{Protocol: p, N: size[0], M: size[1], Clients: n, Time: 5 * time.Second},
					Setting{Protocol: p, N: size[0], M: size[1], Clients: n, Hold: Holds[1], Time: 20 * time.Second, Once: true})
			}
		}
	}
	return all
}

func TestEqualSeedsGiveEqualBytes(t *testing.T) {
	t.Parallel()
	table := func(seed uint64) string {
		points, err := sweep(t.Context(), some(), seed, 2, nil)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := errors.Join(WriteCSV(&b, points), WriteSVG(&b, points)); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	first := table(1)
	if table(1) != first {
		t.Error("the same seed has given other bytes")
	}
	if table(2) == first {
		t.Error("another seed has given the same bytes")
	}
}

// The reference curves of section 6: throughput that does not fall with the number of clients, at most so many messages, everybody as
// often as everybody else, and nobody beside a holder. Single points of the reference stray by a tenth and more from their
// neighbours, as one draw of delays does, so whole curves are compared.
func TestSigmaReproducesTheReferenceCurves(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		protocol Protocol
		n, m     int
		hold     time.Duration
		perS     []float64 // at 2, 8, 32, 128 clients
		messages []float64
	}{
		{Y2, 5, 3, 0, []float64{6.40, 7.27, 6.55, 7.00}, []float64{22, 35, 32, 42}},
		{Y1, 5, 3, 0, []float64{6.35, 6.05, 5.92, 5.94}, []float64{22, 34, 34, 54}},
		{Y2, 5, 3, 160 * time.Millisecond, []float64{3.16, 3.31, 3.27, 3.32}, []float64{20, 30, 30, 60}},
		{Y2, 32, 24, 0, []float64{6.06, 5.93, 5.70, 5.65}, []float64{136, 200, 200, 328}},
		{Y1, 32, 24, 0, []float64{5.16, 4.89, 4.58, 4.64}, []float64{146, 217, 217, 347}},
		{Y2, 32, 24, 160 * time.Millisecond, []float64{3.09, 3.04, 2.98, 2.97}, []float64{128, 192, 192, 448}},
	} {
		var settings []Setting
		for _, k := range []int{2, 8, 32, 128} {
			settings = append(settings, Setting{Protocol: c.protocol, N: c.n, M: c.m, Hold: c.hold, Clients: k, Time: 80 * time.Second})
		}
		points, err := sweep(t.Context(), settings, 1, 2, nil)
		if err != nil {
			t.Fatal(err)
		}
		var perS, messages float64 // means of ours to the reference
		slowest, fastest := points[0].PerS, points[0].PerS
		for i, p := range points {
			perS += p.PerS / c.perS[i] / float64(len(points))
			messages += p.Messages / c.messages[i] / float64(len(points))
			slowest, fastest = min(slowest, p.PerS), max(fastest, p.PerS)
			if p.Overlaps > 0 {
				t.Errorf("%+v: %d holds beside another", p.Setting, p.Overlaps)
			}
			if p.Jain < 0.95 {
				t.Errorf("%+v: fairness %.3f", p.Setting, p.Jain)
			}
		}
		if perS < 0.9 || messages > 1.1 {
			t.Errorf("%s, n=%d, held for %v: %.2f of the reference's throughput and %.2f of its messages", c.protocol, c.n, c.hold, perS, messages)
		}
		if slowest < 0.8*fastest {
			t.Errorf("%s, n=%d, held for %v: throughput between %.2f and %.2f", c.protocol, c.n, c.hold, slowest, fastest)
		}
	}
}

// The strawman, which is what the curves are there to be compared with: unfair with exponential windows, collapsed with fixed ones.
func TestStrawmanIsWhatItIsSaidToBe(t *testing.T) {
	t.Parallel()
	run := func(p Protocol, n, m, clients int) Point {
		q := Run(Setting{Protocol: p, N: n, M: m, Clients: clients, Time: 60 * time.Second, Seed: 1})
		if q.Overlaps > 0 {
			t.Errorf("%+v: %d holds beside another", q.Setting, q.Overlaps)
		}
		return q
	}
	if p := run(Exponential, 5, 3, 16); p.Jain > 0.2 || p.PerS < 4 {
		t.Errorf("exponential: %.2f a second, fairness %.3f: want many for one", p.PerS, p.Jain)
	}
	if few, many := run(Fixed, 5, 3, 4), run(Fixed, 5, 3, 64); many.PerS > few.PerS/3 {
		t.Errorf("fixed window: %.2f a second of 4 clients, %.2f of 64: no collapse", few.PerS, many.PerS)
	}
	if p := run(Fixed, 32, 24, 32); p.Holds > 10 {
		t.Errorf("fixed window, n=32: %d holds", p.Holds)
	}
}

func TestBurst(t *testing.T) {
	t.Parallel()
	served := make(map[Protocol]float64)
	for _, p := range []Protocol{Y2, Y1, Exponential} {
		q := Run(Setting{Protocol: p, N: 5, M: 3, Clients: 64, Time: burstTime, Seed: 1, Once: true})
		if q.Holds != 64 || q.Served == 0 || q.Overlaps > 0 {
			t.Fatalf("%s: %+v", p, q)
		}
		served[p] = q.Served
	}
	if served[Y2] > 11 || served[Y2] > served[Y1] || served[Y2] > served[Exponential]/4 { // the reference: 9.6, 11.6, 62 s
		t.Errorf("64 clients were served after %v", served)
	}
	if q := Run(Setting{Protocol: Exponential, N: 5, M: 3, Clients: 64, Time: 5 * time.Second, Seed: 1, Once: true}); q.Served != 0 {
		t.Errorf("served after %v s, with %d of 64 served", q.Served, q.Holds)
	}
}

func TestTableHasAllPoints(t *testing.T) {
	t.Parallel()
	points, err := sweep(t.Context(), some(), 1, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	none := Point{Setting: Setting{Protocol: Fixed, N: 5, M: 3, Clients: 256}}
	var b strings.Builder
	if err := WriteCSV(&b, append(points, none)); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	if len(lines) != len(points)+2 {
		t.Fatalf("%d lines for %d points and a head", len(lines), len(points)+1)
	}
	if got, want := lines[len(lines)-1], "loop,5,3,0,strawman-fixed,256,0,,,,,,,,0"; got != want {
		t.Errorf("a point without holds is %q, want %q", got, want)
	}
	for _, l := range lines {
		if n := strings.Count(l, ","); n != len(columns)-1 {
			t.Errorf("%d commas in %q", n, l)
		}
	}
}

// What is drawn is XML, and has a curve for each protocol, labels on both axes and a legend.
func TestDrawing(t *testing.T) {
	t.Parallel()
	points, err := sweep(t.Context(), some(), 1, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := WriteSVG(&b, points); err != nil {
		t.Fatal(err)
	}
	svg := b.String()
	for d := xml.NewDecoder(&b); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range Protocols {
		if !strings.Contains(svg, ">"+string(p)+"<") {
			t.Errorf("the legend lacks %s", p)
		}
		if !strings.Contains(svg, looks[p][0]) {
			t.Errorf("no curve of %s", p)
		}
	}
	for _, want := range []string{">clients<", ">holds a second<", ">wait, median, s<", ">messages a hold<", ">all served after, s<", "<polyline"} {
		if !strings.Contains(svg, want) {
			t.Errorf("the drawing lacks %s", want)
		}
	}
	if strings.Contains(svg, "NaN") || strings.Contains(svg, "Inf") || strings.Contains(svg, "-9223372036854775808") {
		t.Error("the drawing has coordinates that are none")
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]Options{
		"negative time": {Time: -1}, "too long": {Time: TimeMax + 1}, "negative worlds": {Worlds: -1}, "too many worlds": {Worlds: WorldsMax + 1},
	} {
		if _, err := Sweep(t.Context(), o); !errors.Is(err, ErrOptions) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	calls := 0
	if _, err := Sweep(ctx, Options{Progress: func(done, total int) { calls = done }}); !errors.Is(err, why) {
		t.Errorf("cancelled: %v", err)
	}
	if want := len(Options{}.settings()) * WorldsDefault; calls != want {
		t.Errorf("told of %d worlds of %d", calls, want)
	}
}

func TestMean(t *testing.T) {
	t.Parallel()
	m := mean(Setting{Once: true}, []Point{{Holds: 10, PerS: 1, WaitP50: 2, Jain: 1, Served: 4, Yields: 1, sent: 100}, {Holds: 30, PerS: 3, WaitP50: 4, Jain: 0.5, Served: 6, Yields: 0, sent: 140}})
	if m.Holds != 40 || m.PerS != 2 || m.WaitP50 != 3 || m.Jain != 0.75 || m.Served != 5 || m.Messages != 6 || m.Yields != 0.25 {
		t.Errorf("%+v", m)
	}
	if m := mean(Setting{Once: true}, []Point{{Holds: 1, Served: 4}, {Holds: 1}}); m.Served != 0 {
		t.Errorf("served after %v although not in every world", m.Served)
	}
	if m := mean(Setting{}, []Point{{}, {}}); m.Messages != 0 || m.Holds != 0 {
		t.Errorf("of nothing: %+v", m)
	}
}
