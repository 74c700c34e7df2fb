package main

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/spf13/cobra"

	"latchkey/testnet"
	"latchkey/testnet/bench"
)

func benchVerb(a *app) *cobra.Command {
	c := group(&cobra.Command{
		Use:   "bench",
		Short: "measure a fresh testnet on this machine: route, lock",
		Long: `bench starts a testnet of its own, measures, and prints the figures beside those of a raw libp2p round trip between
the same two hosts, taken in turns in the same run. It needs no daemon.

On a machine that does other things too, trust the ratio, the counts and the CPU time; the load average tells.`,
		Example: `  latchkey bench route
  latchkey bench lock --protocol group -o json`,
	})
	c.AddCommand(benchRouteVerb(a), benchLockVerb(a))
	return c
}

// benchFlags are the flags that all benches have.
func benchFlags(c *cobra.Command, o *bench.Options) {
	c.Flags().IntVarP(&o.N, "nodes", "n", testnet.PeersDefault, "how many peers")
	c.Flags().DurationVar(&o.Time, "for", bench.TimeDefault, "how long to measure")
}

// bench runs one bench and prints what it found.
func (a *app) bench(c *cobra.Command, o bench.Options, measure func(context.Context, bench.Options) (*bench.Result, error)) error {
	switch {
	case o.N <= 0:
		return usagef("bench: -n %d: it must be positive", o.N)
	case o.Time <= 0 || o.Time > time.Hour:
		return usagef("bench: --for %v: give a time of up to an hour", o.Time)
	}
	ctx, release := interruptible(c.Context())
	defer release()
	o.Progress = a.progressBar()
	r, err := measure(ctx, o)
	if errors.Is(err, testnet.ErrOptions) {
		return usagef("%w", err)
	}
	if err != nil {
		return err
	}
	return a.value(r, func(w io.Writer) { r.Text(w) })
}

func benchRouteVerb(a *app) *cobra.Command {
	var o bench.Options
	c := &cobra.Command{
		Use:     "route",
		Short:   "a message to the owner of a key and its reply",
		Example: `  latchkey bench route -o json`,
		Args:    exactly(0),
		RunE:    func(c *cobra.Command, _ []string) error { return a.bench(c, o, bench.Route) },
	}
	benchFlags(c, &o)
	return c
}

func benchLockVerb(a *app) *cobra.Command {
	var o bench.Options
	var protocol string
	c := &cobra.Command{
		Use:     "lock",
		Short:   "acquire and release of a free lock",
		Example: `  latchkey bench lock --protocol group -o json`,
		Args:    exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if protocol != "group" {
				return usagef("bench lock: --protocol %s: use group", protocol)
			}
			return a.bench(c, o, bench.LockGroup)
		},
	}
	benchFlags(c, &o)
	c.Flags().StringVar(&protocol, "protocol", "group", "how the lock is kept: group")
	return c
}
