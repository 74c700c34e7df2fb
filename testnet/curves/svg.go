package curves

import (
	"fmt"
	"io"
	"math"
	"strings"
)

// panel is one diagram: a figure over the number of clients.
type panel struct {
	title string
	log   bool // the vertical axis
	value func(Point) float64
}

var loopPanels = []panel{
	{"holds a second", false, func(p Point) float64 { return p.PerS }},
	{"wait, median, s", true, func(p Point) float64 { return p.WaitP50 }},
	{"messages a hold", true, func(p Point) float64 { return p.Messages }},
	{"fairness (Jain)", false, func(p Point) float64 { return p.Jain }},
}

var burstPanels = []panel{
	{"all served after, s", true, func(p Point) float64 { return p.Served }},
	{"messages a hold", true, func(p Point) float64 { return p.Messages }},
}

// Sizes of the drawing, in pixels.
const (
	plotWidth, plotHeight   = 210, 150
	leftRoom, rightRoom     = 52, 14
	topRoom, bottomRoom     = 30, 40
	panelWidth, panelHeight = leftRoom + plotWidth + rightRoom, topRoom + plotHeight + bottomRoom
	headHeight              = 64
	rowTitle                = 22
)

// looks are colour and dash of each protocol.
var looks = map[Protocol][2]string{
	Y2:          {"#0b6e4f", ""},
	Y1:          {"#1f5fa8", "6 3"},
	Exponential: {"#c0392b", "2 3"},
	Fixed:       {"#8e44ad", "8 3 2 3"},
}

// WriteSVG draws points: a row of diagrams for each size and hold, axes labelled, one legend. Points without a value are left out of
// their curve.
func WriteSVG(w io.Writer, points []Point) error {
	d := new(drawing)
	y := headHeight
	columns := max(len(loopPanels), len(burstPanels))
	for _, once := range []bool{false, true} {
		panels, what := loopPanels, "clients that want it again at once"
		if once {
			panels, what = burstPanels, "a burst: each client wants it once, all at the same moment"
		}
		for _, size := range Sizes {
			for _, hold := range Holds {
				row := selectPoints(points, func(p Point) bool { return p.Once == once && p.N == size[0] && p.M == size[1] && p.Hold == hold })
				if len(row) == 0 {
					continue
				}
				d.text(leftRoom, y+15, "start", 13, fmt.Sprintf("n = %d, m = %d, held for %v; %s", size[0], size[1], hold, what))
				for i, p := range panels {
					d.panel(i*panelWidth, y+rowTitle, p, row)
				}
				y += rowTitle + panelHeight
			}
		}
	}
	width := columns * panelWidth
	head := new(drawing)
	head.text(leftRoom, 22, "start", 16, "One lock, ever more clients, in virtual time: one-way delays with median 69 ms")
	for i, p := range Protocols {
		x := leftRoom + i*220
		head.line(x, 44, x+32, 44, looks[p][0], looks[p][1], 2)
		head.text(x+38, 48, "start", 12, string(p))
	}
	_, err := fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif">
<rect width="100%%" height="100%%" fill="white"/>
%s%s</svg>
`, width, y, width, y, head.b.String(), d.b.String())
	return err
}

func selectPoints(points []Point, keep func(Point) bool) (kept []Point) {
	for _, p := range points {
		if keep(p) {
			kept = append(kept, p)
		}
	}
	return kept
}

// drawing gathers elements. Texts are ours and hold nothing that would have to be escaped.
type drawing struct{ b strings.Builder }

func (d *drawing) text(x, y int, anchor string, size int, s string) {
	fmt.Fprintf(&d.b, `<text x="%d" y="%d" text-anchor="%s" font-size="%d">%s</text>`+"\n", x, y, anchor, size, s)
}

func (d *drawing) line(x1, y1, x2, y2 int, colour, dash string, width float64) {
	fmt.Fprintf(&d.b, `<line x1="%d" y1="%d" x2="%d" y2="%d" stroke="%s" stroke-dasharray="%s" stroke-width="%g"/>`+"\n", x1, y1, x2, y2, colour, dash, width)
}

// panel draws one diagram at a corner.
func (d *drawing) panel(left, top int, p panel, row []Point) {
	x0, y0 := left+leftRoom, top+topRoom
	lowest, highest, most := math.Inf(1), 0.0, 1
	for _, q := range row {
		most = max(most, q.Clients)
		if v := p.value(q); v > 0 {
			lowest, highest = min(lowest, v), max(highest, v)
		}
	}
	d.text(x0+plotWidth/2, y0-8, "middle", 12, p.title)
	if highest == 0 {
		return
	}
	a := newAxis(p.log, lowest, highest)
	for _, v := range a.ticks {
		y := y0 + plotHeight - a.at(v)
		d.line(x0, y, x0+plotWidth, y, "#ddd", "", 1)
		d.text(x0-5, y+4, "end", 10, fmt.Sprintf("%g", v))
	}
	across := func(clients int) int {
		return x0 + int(math.Round(plotWidth*math.Log2(float64(clients))/max(1, math.Log2(float64(most)))))
	}
	for n := 1; n <= most; n *= 4 {
		x := across(n)
		d.line(x, y0+plotHeight, x, y0+plotHeight+4, "#000", "", 1)
		d.text(x, y0+plotHeight+16, "middle", 10, fmt.Sprint(n))
	}
	d.text(x0+plotWidth/2, y0+plotHeight+31, "middle", 11, "clients")
	d.line(x0, y0, x0, y0+plotHeight, "#000", "", 1)
	d.line(x0, y0+plotHeight, x0+plotWidth, y0+plotHeight, "#000", "", 1)
	for _, proto := range Protocols {
		var path []string
		for _, q := range selectPoints(row, func(q Point) bool { return q.Protocol == proto }) {
			if v := p.value(q); v > 0 {
				path = append(path, fmt.Sprintf("%d,%d", across(q.Clients), y0+plotHeight-a.at(v)))
			}
		}
		if len(path) > 0 {
			fmt.Fprintf(&d.b, `<polyline points="%s" fill="none" stroke="%s" stroke-dasharray="%s" stroke-width="2"/>`+"\n",
				strings.Join(path, " "), looks[proto][0], looks[proto][1])
		}
	}
}

// axis is a vertical axis.
type axis struct {
	log       bool
	low, high float64
	ticks     []float64
}

func newAxis(log bool, lowest, highest float64) axis {
	if log {
		a := axis{log: true, low: math.Floor(math.Log10(lowest)), high: math.Ceil(math.Log10(highest))}
		a.high = max(a.high, a.low+1)
		for e := a.low; e <= a.high; e++ {
			a.ticks = append(a.ticks, math.Pow(10, e))
		}
		return a
	}
	step := math.Pow(10, math.Floor(math.Log10(highest)))
	for highest/step < 3 {
		step /= 2
	}
	a := axis{high: step * math.Ceil(highest/step-1e-9)}
	for v := 0.0; v <= a.high+step/2; v += step {
		a.ticks = append(a.ticks, math.Round(v*1e6)/1e6)
	}
	return a
}

// at returns how far above its foot a value stands, in pixels.
func (a axis) at(v float64) int {
	if a.log {
		v = math.Log10(v)
	}
	return int(math.Round(plotHeight * (v - a.low) / (a.high - a.low)))
}
