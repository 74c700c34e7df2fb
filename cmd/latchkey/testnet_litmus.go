package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"latchkey/testnet"
	"latchkey/testnet/litmus"
	"latchkey/testnet/memory"
)

// litmusReport is what "testnet litmus" prints with -o json.
type litmusReport struct {
	OK       bool             `json:"ok"`
	Shapes   *memory.Report   `json:"shapes,omitempty"`
	Mistakes []*memory.Report `json:"mistakes,omitempty"`
}

func (r *litmusReport) Text(w io.Writer) {
	if r.Shapes != nil {
		r.Shapes.Text(w)
	}
	for _, m := range r.Mistakes {
		shown := "shows nothing forbidden: a run that cannot fail proves nothing"
		for _, s := range m.Shapes {
			for outcome, n := range s.Forbidden {
				shown = fmt.Sprintf("shows %s: %s, in %d of %d runs", s.Name, outcome, n, s.Runs)
			}
		}
		fmt.Fprintf(w, "mistake %s\t%s\n", m.Mistake, shown)
	}
}

func testnetLitmusVerb(a *app) *cobra.Command {
	o := memory.Options{}
	var sabotage string
	var names []string
	for _, m := range memory.Mistakes {
		names = append(names, m.Name)
	}
	c := &cobra.Command{
		Use:   "litmus [FILE]...",
		Short: "run small programs on the shared objects of real peers: no forbidden outcome may come out",
		Long: `litmus starts peers of its own, which share objects, and runs small programs of reads and writes on them, with drawn delays:
the classic shapes (SB, MP, LB, IRIW, 2+2W and so on), or those of the files. An outcome that no sequentially consistent
memory has must not come out. Then it plants mistakes in the same peers, one after the other, and each has to show such an
outcome: ` + strings.Join(names, ", ") + `.
With files no mistake is planted, unless --sabotage names one.

A file is text; # begins a comment:

  litmus MP who sees the flag sees what it announces
  peer: x = 1; y = 1
  peer: a = y; b = x
  never: a=1 b=0

"finally: OBJECT..." adds what objects hold at the end to the outcome. It exits 0 only if all came out as it has to. It needs no
daemon and no running testnet, and touches neither.`,
		Example: `  latchkey testnet litmus
  latchkey testnet litmus --runs 2000 -o json
  latchkey testnet litmus --sabotage stale-copy
  latchkey testnet litmus my-shapes.txt`,
		RunE: func(c *cobra.Command, files []string) error {
			var planted []memory.Mistake
			switch i := slices.Index(names, sabotage); {
			case sabotage == "" && len(files) == 0:
				planted = memory.Mistakes
			case sabotage == "":
			case i < 0:
				return usagef("testnet litmus: --sabotage %s: use %s", sabotage, strings.Join(names, ", "))
			default:
				planted = memory.Mistakes[i : i+1]
			}
			if o.N < 2 {
				return usagef("testnet litmus: -n %d: give at least 2 peers", o.N)
			}
			if o.Runs < 1 || o.Runs > memory.RunsMax {
				return usagef("testnet litmus: --runs %d: give 1 to %d", o.Runs, memory.RunsMax)
			}
			for _, name := range files {
				programs, err := readLitmus(name)
				if err != nil {
					return err
				}
				o.Programs = append(o.Programs, programs...)
			}
			if !c.Flags().Changed("seed") {
				o.Seed = uint64(time.Now().UnixNano()) % 1_000_000
			}
			ctx, release := interruptible(c.Context())
			defer release()
			o.Progress = a.progressBar()
			report, failures := &litmusReport{}, error(nil)
			if sabotage == "" {
				r, err := memory.Run(ctx, o)
				if report.Shapes = r; r == nil {
					return litmusFailure(ctx, err)
				}
				failures = err
			}
			for i := range planted {
				o := o
				o.Mistake = &planted[i]
				r, err := memory.Run(ctx, o)
				if r == nil {
					return litmusFailure(ctx, err)
				}
				report.Mistakes = append(report.Mistakes, r)
				failures = errors.Join(failures, err)
			}
			report.OK = failures == nil
			if err := a.value(report, report.Text); err != nil {
				return err
			}
			return failures
		},
	}
	c.Flags().IntVarP(&o.N, "nodes", "n", memory.PeersDefault, "how many peers")
	c.Flags().IntVar(&o.Runs, "runs", memory.RunsDefault, "how often each program is run")
	c.Flags().Uint64Var(&o.Seed, "seed", 0, "what delays and places are drawn from (default: another one each time)")
	c.Flags().DurationVar(&o.Delay, "delay", 200*time.Microsecond, "longest delay before a statement")
	c.Flags().DurationVar(&o.Latency, "latency", 0, "delay between two peers, each way")
	c.Flags().StringVar(&sabotage, "sabotage", "", "only plant this mistake, which has to show: "+strings.Join(names, ", "))
	return c
}

func litmusFailure(ctx context.Context, err error) error {
	if errors.Is(err, testnet.ErrOptions) {
		return usagef("testnet litmus: %w", err)
	}
	return interruption(ctx, err)
}

func readLitmus(name string) ([]*litmus.Program, error) {
	f, err := os.Open(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, usagef("testnet litmus: there is no such file as %s", name)
	case err != nil:
		return nil, usagef("testnet litmus: cannot read the programs: %w", err)
	}
	defer f.Close()
	programs, err := litmus.Decode(f)
	if err != nil {
		return nil, usagef("testnet litmus: %s: %w", name, err)
	}
	if len(programs) == 0 {
		return nil, usagef("testnet litmus: %s: there is no program in it", name)
	}
	return programs, nil
}
