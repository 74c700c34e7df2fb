package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"latchkey/testnet"
	"latchkey/testnet/curves"
)

// simReport is what "testnet sim lock -o json" prints.
type simReport struct {
	Seed   uint64         `json:"seed"`
	Points []curves.Point `json:"points"`
}

func testnetSimVerb(a *app) *cobra.Command {
	c := group(&cobra.Command{
		Use:     "sim",
		Short:   "simulate protocols in virtual time: lock",
		Long:    `sim runs the protocols that peers run in a simulator with virtual time. It starts no peers and needs none.`,
		Example: `  latchkey testnet sim lock --seed 1 --svg curves.svg > curves.csv`,
	})
	c.AddCommand(testnetSimLockVerb(a))
	return c
}

func testnetSimLockVerb(a *app) *cobra.Command {
	var (
		o   curves.Options
		svg string
	)
	c := &cobra.Command{
		Use:   "lock",
		Short: "how one lock does as ever more clients want it, as a table and a drawing",
		Long: `lock simulates 1 to 256 clients that want one lock, on a network with delays like the Internet's, and prints a table in CSV:
holds a second, messages for each hold, waits, fairness. It has the rule that latchkey ships (sigma-y2), that of the paper (sigma-y1), and
the strawman the paper sets out from: ask all, and when refused give back and try again after a random while.

n replicas keep the lock, m of them make a holder; clients keep it for hold_ms. In a loop each client wants it again at once; in a burst each
wants it once, all from the same moment on. Nothing fails. Equal flags give equal bytes.`,
		Example: `  latchkey testnet sim lock --seed 1 > curves.csv
  latchkey testnet sim lock --seed 1 --svg curves.svg > curves.csv`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if o.Time <= 0 || o.Worlds <= 0 {
				return usagef("testnet sim lock: --for and --worlds must be positive")
			}
			ctx, release := interruptible(c.Context())
			defer release()
			if bar := a.progressBar(); bar != nil {
				o.Progress = func(done, total int) { bar(testnet.Progress{Stage: "worlds", Done: done, Total: total}) }
			} else {
				o.Progress = linesOf(a.err, progressEvery)
			}
			points, err := curves.Sweep(ctx, o)
			if errors.Is(err, curves.ErrOptions) {
				return usagef("testnet sim lock: %w", err)
			}
			if err != nil {
				return err
			}
			if svg != "" {
				if err := writeDrawing(svg, points); err != nil {
					return fmt.Errorf("testnet sim lock: --svg: %w", err)
				}
			}
			var told error
			err = a.value(simReport{o.Seed, points}, func(w io.Writer) { told = curves.WriteCSV(w, points) })
			return errors.Join(told, err)
		},
	}
	c.Flags().Uint64Var(&o.Seed, "seed", testnet.SeedDefault, "what delays and chance come from")
	c.Flags().DurationVar(&o.Time, "for", curves.TimeDefault, "how long each loop lasts, in virtual time")
	c.Flags().IntVar(&o.Worlds, "worlds", curves.WorldsDefault, "how many worlds, each with delays of its own, a figure is the mean of")
	c.Flags().StringVar(&svg, "svg", "", "also draw the curves into this file")
	return c
}

// progressEvery is how often somebody who may look at a file or a pipe is told that there is progress.
const progressEvery = 5 * time.Second

// linesOf returns what tells w of progress, one line at a time.
func linesOf(w io.Writer, every time.Duration) func(done, total int) {
	last := time.Now()
	return func(done, total int) {
		if now := time.Now(); now.Sub(last) >= every {
			last = now
			fmt.Fprintf(w, "worlds %d/%d\n", done, total)
		}
	}
}

func writeDrawing(name string, points []curves.Point) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return curves.WriteSVG(f, points)
}
