package curves

import (
	"cmp"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
)

// Defaults and limits of [Options].
const (
	TimeDefault   = 120 * time.Second
	WorldsDefault = 4
	TimeMax       = 24 * time.Hour // of virtual time
	WorldsMax     = 1000
)

// ErrOptions is matched by the error about options outside their limits.
var ErrOptions = errors.New("curves: options")

// Options says what to measure. The zero value stands for the defaults.
type Options struct {
	Seed   uint64
	Time   time.Duration // of virtual time that each world with clients that come again runs: above 0, at most TimeMax; 0 is TimeDefault
	Worlds int           // that a figure is the mean of; at most WorldsMax; 0 is WorldsDefault
	// Progress, when set, is told of finished worlds, one call at a time.
	Progress func(done, total int)
}

// Sizes are the settings of n and m that section 6 has, and Holds the times for which clients keep the lock.
var (
	Sizes = [][2]int{{5, 3}, {32, 24}}
	Holds = []time.Duration{0, 160 * time.Millisecond}
)

// loops and bursts are the numbers of clients.
var (
	loops  = []int{1, 2, 4, 8, 16, 32, 64, 128, 256}
	bursts = []int{4, 16, 64, 256}
)

// burstTime is how long a burst may last; Sigma needs a quarter of that at most.
const burstTime = 400 * time.Second

// settings lists all points in the order of the table, Seed left out.
func (o Options) settings() (all []Setting) {
	for _, once := range []bool{false, true} {
		clients, length := loops, cmp.Or(o.Time, TimeDefault)
		if once {
			clients, length = bursts, burstTime
		}
		for _, size := range Sizes {
			for _, hold := range Holds {
				for _, p := range Protocols {
					if once && p == Fixed {
						continue
					}
					for _, n := range clients {
						all = append(all, Setting{Protocol: p, N: size[0], M: size[1], Clients: n, Hold: hold, Time: length, Once: once})
					}
				}
			}
		}
	}
	return all
}

// Sweep measures every point, the mean of several worlds each. Equal options give equal points. It blocks, on all processors, for half a
// minute with the defaults; ctx ends it. Errors: [ErrOptions], and context.Cause(ctx).
func Sweep(ctx context.Context, o Options) ([]Point, error) {
	worlds := cmp.Or(o.Worlds, WorldsDefault)
	if o.Time < 0 || o.Time > TimeMax {
		return nil, fmt.Errorf("%w: %v of virtual time: above 0 and at most %v", ErrOptions, o.Time, TimeMax)
	}
	if worlds < 0 || worlds > WorldsMax {
		return nil, fmt.Errorf("%w: %d worlds: 1 to %d", ErrOptions, worlds, WorldsMax)
	}
	return sweep(ctx, o.settings(), o.Seed, worlds, o.Progress)
}

// sweep measures settings, each in worlds of its own.
func sweep(ctx context.Context, settings []Setting, seed uint64, worlds int, progress func(done, total int)) ([]Point, error) {
	points := make([][]Point, len(settings))
	done := make(chan struct{})
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0) + 1)
	g.Go(func() error {
		for i := range len(settings) * worlds {
			<-done
			if progress != nil {
				progress(i+1, len(settings)*worlds)
			}
		}
		return nil
	})
	for i, s := range settings {
		points[i] = make([]Point, worlds)
		for j := range worlds {
			g.Go(func() error {
				s.Seed = seed + uint64(j)
				if ctx.Err() == nil {
					points[i][j] = Run(s)
				}
				done <- struct{}{}
				return nil
			})
		}
	}
	_ = g.Wait() // no world fails
	if err := context.Cause(ctx); err != nil {
		return nil, fmt.Errorf("curves: %w", err)
	}
	means := make([]Point, len(settings))
	for i, all := range points {
		means[i] = mean(settings[i], all)
	}
	return means, nil
}

// mean returns the mean of worlds that differ in their seed. Messages and yields are those of all worlds for each hold of all of them;
// a burst that was not served in one world counts as not served.
func mean(s Setting, all []Point) Point {
	m := Point{Setting: s}
	n := float64(len(all))
	served := true
	var messages, yields float64
	for _, p := range all {
		m.Holds += p.Holds
		m.Overlaps += p.Overlaps
		m.PerS += p.PerS / n
		m.WaitP50 += p.WaitP50 / n
		m.WaitP99 += p.WaitP99 / n
		m.Jain += p.Jain / n
		m.Served += p.Served / n
		messages += float64(p.sent)
		yields += p.Yields * float64(p.Holds)
		served = served && p.Served > 0
	}
	if !served {
		m.Served = 0
	}
	if m.Holds > 0 {
		m.Messages, m.Yields = messages/float64(m.Holds), yields/float64(m.Holds)
	}
	return m
}

// columns of the table.
var columns = []string{
	"workload", "n", "m", "hold_ms", "protocol", "clients", "holds", "holds_per_s", "messages_per_hold", "wait_p50_s", "wait_p99_s",
	"jain", "yields_per_hold", "all_served_s", "overlaps",
}

// WriteCSV writes points as a table with a head. A figure that there is none of, as everything is where nobody ever held the lock, is
// empty.
func WriteCSV(w io.Writer, points []Point) error {
	c := csv.NewWriter(w)
	_ = c.Write(columns) // errors come with Flush
	for _, p := range points {
		num := func(x float64, decimals int) string {
			if p.Holds == 0 {
				return ""
			}
			return strconv.FormatFloat(x, 'f', decimals, 64)
		}
		workload, served := "loop", ""
		if p.Once {
			workload = "burst"
			if p.Served > 0 {
				served = num(p.Served, 2)
			}
		}
		perS := num(p.PerS, 3)
		if p.Once {
			perS = ""
		}
		_ = c.Write([]string{
			workload, strconv.Itoa(p.N), strconv.Itoa(p.M), strconv.FormatInt(p.Hold.Milliseconds(), 10), string(p.Protocol), strconv.Itoa(p.Clients),
			strconv.Itoa(p.Holds), perS, num(p.Messages, 1), num(p.WaitP50, 3), num(p.WaitP99, 3), num(p.Jain, 4), num(p.Yields, 2), served,
			strconv.Itoa(p.Overlaps),
		})
	}
	c.Flush()
	return c.Error()
}
