package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"latchkey/lockservice"
	"latchkey/node/api"
)

// ownTimeout is how long group own waits when nobody set --timeout: as a rule it takes less than a second, but members may have to start.
const ownTimeout = 30 * time.Second

func groupOwnVerb(a *app) *cobra.Command {
	var yes, remove bool
	c := &cobra.Command{
		Use:   "own NAME",
		Short: "give a lock a group of its own, or take it back with --remove",
		Long: `own gives the lock NAME a replica group of its own, of the peers closest to it, away from the group of its prefix, which it shares with
other locks. It is for a lock that is much used. With --remove the group of the prefix serves the lock again, and the lock's own
group ends.

The lock keeps its holder, its waiters and what is left of its lease, and its tokens go on rising. While it moves it does not answer: some
tens of milliseconds, or seconds where peers fail just then. Whoever of them stops, the move is finished by the next leader.

Only an overlay that was founded with "latchkey init --own-groups" has such groups; of each prefix at most 64 locks can have one. An
own group that has lost its majority comes back like any other: latchkey group revive NAME. It cannot be removed before that.

You are asked to type the name, unless --yes is given.`,
		Example: `  latchkey group own nightly
  latchkey group own nightly --yes -o json
  latchkey group info nightly
  latchkey group own --remove nightly`,
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := lockservice.CheckName(args[0]); err != nil {
				return usagef("group own: %w", err)
			}
			return a.callLong(c, ownTimeout, func(ctx context.Context, daemon *api.Client) error {
				return a.own(ctx, c.InOrStdin(), daemon, args[0], remove, yes)
			})
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	c.Flags().BoolVar(&remove, "remove", false, "have the group of its prefix serve the lock again, and end its own")
	return c
}

func (a *app) own(ctx context.Context, in io.Reader, daemon *api.Client, name string, remove, yes bool) error {
	if !yes {
		what := "gets a replica group of its own"
		if remove {
			what = "goes back to the group of its prefix, and its own group ends"
		}
		fmt.Fprintf(a.err, "Lock %s %s. It keeps its holder and its waiters, and does not answer for a moment.\nType the name to go on: ", plain(name), what)
		if err := a.typed(ctx, in, "group own", name); err != nil {
			return err
		}
	}
	v, err := daemon.OwnGroup(hear(ctx), name, remove)
	if err != nil {
		return rootFirst(err)
	}
	return a.value(v, func(w io.Writer) {
		fmt.Fprintf(w, "lock\t%s\ngroup\t%s, generation %s\n", plain(name), v.Prefix, generation(v.Generation))
		for _, m := range v.Members {
			fmt.Fprintf(w, "voter\t%s\n", m)
		}
	})
}
