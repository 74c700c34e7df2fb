package main

import (
	"errors"

	"github.com/spf13/cobra"

	"latchkey/testnet/apps"
	"latchkey/testnet/apps/sor"
	"latchkey/testnet/apps/tsp"
)

// appRunLong is what the verbs that run an application have in common.
const appRunLong = `
It starts peers of its own in this process and ends them again; it needs no daemon and no running testnet, and touches neither. The peers share
the machine's processors, and send all they have to tell each other over the loopback: the point is that the result is that of one process, to
the last bit, whatever happens to the peers. How long both took is printed as it is; small problems are slower on several peers, not faster.

--kill makes a checkpoint and kills a peer while the others go on; the application begins anew from the checkpoint. With --join a further peer joins, and a
thread moves there; with --leave a peer leaves, and hands over what it has. It exits 0 only if the results are equal.`

func appRunVerb(a *app) *cobra.Command {
	c := group(&cobra.Command{
		Use:   "run",
		Short: "run an application of several peers, and compare with one process",
		Long: `run runs one of the applications that come with latchkey, which are written with package coherence alone, on peers that it starts itself.
` + appRunLong,
		Example: `  latchkey app run sor --kill --join
  latchkey app run tsp --cities 14`,
	})
	c.AddCommand(appRunSorVerb(a), appRunTspVerb(a))
	return c
}

func appRunSorVerb(a *app) *cobra.Command {
	p, o := sor.Problem{}, apps.Options{Name: "sor"}
	c := &cobra.Command{
		Use:   "sor",
		Short: "solve a grid by successive over-relaxation: rows are objects, workers threads",
		Long: `sor solves a grid by red-black successive over-relaxation. Each row is an object, each worker a thread with a block of rows, and between the two
halves of a step the workers meet at a barrier, which is made of objects too.
` + appRunLong,
		Example: `  latchkey app run sor
  latchkey app run sor --peers 5 --rows 400 --cols 2000 --steps 40
  latchkey app run sor --peers 4 --kill --join --leave -o json`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.Validate(); err != nil {
				return usagef("app run sor: %w", err)
			}
			if p.Workers = o.Workers; !c.Flags().Changed("workers") {
				p.Workers = min(o.N, max(p.Rows, 1))
			}
			if err := p.Validate(); err != nil {
				return usagef("app run sor: %w", err)
			}
			o.Workers = p.Workers
			return a.runJob(c, &sor.Job{Problem: p}, o)
		},
	}
	c.Flags().IntVar(&p.Rows, "rows", 60, "rows of the grid, its border among them")
	c.Flags().IntVar(&p.Cols, "cols", 60, "columns of the grid, its border among them")
	c.Flags().IntVar(&p.Steps, "steps", 40, "steps, of two halves each")
	a.jobFlags(c, &o)
	return c
}

func appRunTspVerb(a *app) *cobra.Command {
	p, o := tsp.Problem{}, apps.Options{Name: "tsp"}
	c := &cobra.Command{
		Use:   "tsp",
		Short: "find the shortest round trip: a queue and a bound of objects, workers are threads",
		Long: `tsp finds the shortest round trip through cities by branch and bound. What is to be searched is in a queue of objects, from which threads take
it, and the best trip so far is an object that all of them read. Of trips of the same length the one whose cities come first in order is the
best, so there is one result.
` + appRunLong,
		Example: `  latchkey app run tsp
  latchkey app run tsp --peers 5 --cities 15 --seed 7
  latchkey app run tsp --peers 4 --kill --join --leave -o json`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.Validate(); err != nil {
				return usagef("app run tsp: %w", err)
			}
			if p.Workers = o.Workers; !c.Flags().Changed("workers") {
				p.Workers = o.N
			}
			if err := p.Validate(); err != nil {
				return usagef("app run tsp: %w", err)
			}
			o.Workers = p.Workers
			return a.runJob(c, &tsp.Job{Problem: p}, o)
		},
	}
	c.Flags().IntVar(&p.Cities, "cities", 12, "how many cities; the time grows much faster than they do")
	c.Flags().Uint64Var(&p.Seed, "seed", 1, "what the map is drawn from")
	a.jobFlags(c, &o)
	return c
}

func (a *app) jobFlags(c *cobra.Command, o *apps.Options) {
	c.Flags().IntVar(&o.N, "peers", apps.PeersDefault, "how many peers")
	c.Flags().IntVar(&o.Workers, "workers", 0, "how many threads (default: one for each peer)")
	c.Flags().BoolVar(&o.Kill, "kill", false, "kill a peer after a checkpoint")
	c.Flags().BoolVar(&o.Join, "join", false, "have a further peer join, and take over a thread")
	c.Flags().BoolVar(&o.Leave, "leave", false, "have a peer leave")
}

// runJob runs an application, and prints what came out.
func (a *app) runJob(c *cobra.Command, job apps.Job, o apps.Options) error {
	ctx, release := interruptible(c.Context())
	defer release()
	o.Progress = a.progressBar()
	r, err := apps.Run(ctx, job, o)
	switch {
	case errors.Is(err, apps.ErrOptions):
		return usagef("app run %s: %w", o.Name, err)
	case r == nil:
		return interruption(ctx, err)
	}
	return errors.Join(a.value(r, r.Text), err)
}
