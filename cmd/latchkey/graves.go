package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"latchkey/node/api"
)

func groupGravesVerb(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "graves",
		Short: "list what this peer has put aside of generations that are over",
		Long: `graves lists what this peer's replicas had that belong to a generation of their group that is over: the group was lost and
revived without them, or the overlay was given another root. Nothing reads it any more. It is kept for people who look for what was lost, and
takes room in the store until it is deleted. A peer keeps some hundreds; of one more, the first goes.`,
		Example: `  latchkey group graves
  latchkey group graves rm a3/8 0`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.call(c, func(ctx context.Context, daemon *api.Client) error {
				y, err := daemon.Graves(ctx)
				if err != nil {
					return err
				}
				return a.list("graves", anys(y.Graves), func(w io.Writer) { printGraves(w, y.Graves, time.Now()) })
			})
		},
	}
	c.AddCommand(gravesRmVerb(a))
	return c
}

func printGraves(w io.Writer, graves []api.Grave, now time.Time) {
	if len(graves) == 0 {
		fmt.Fprintln(w, "nothing is put aside")
		return
	}
	fmt.Fprintf(w, "PREFIX\tGEN\tREPLICA\tBYTES\tPUT ASIDE\n")
	for _, g := range graves {
		when, bytes := "unknown", "unknown"
		if !g.Buried.IsZero() {
			when, bytes = ago(now, g.Buried)+" ago", fmt.Sprint(g.Bytes)
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\n", g.Prefix, generation(g.Generation), g.Replica, bytes, when)
	}
}

func gravesRmVerb(a *app) *cobra.Command {
	yes := false
	c := &cobra.Command{
		Use:   "rm PREFIX GENERATION",
		Short: "delete what was put aside of one generation of a group",
		Long: `rm deletes for good what this peer has put aside of one generation of a group; PREFIX and GENERATION are as "group graves" prints
them. You are asked to type the prefix, unless --yes is given. The group as it is now is not touched.`,
		Example: `  latchkey group graves rm a3/8 0
  latchkey group graves rm /0 1.0 --yes`,
		Args: exactly(2),
		RunE: func(c *cobra.Command, args []string) error {
			gen, err := parseGeneration(args[1])
			if err != nil {
				return usagef("group graves rm: generation %.40q: want a number, or two with a dot, as \"group graves\" prints it", args[1])
			}
			prefix := args[0]
			if prefix == rootName {
				prefix = rootPrefix
			}
			return a.callLong(c, reviveTimeout, func(ctx context.Context, daemon *api.Client) error {
				y, err := daemon.Graves(ctx)
				if err != nil {
					return err
				}
				bytes, n := int64(0), 0
				for _, g := range y.Graves {
					if g.Prefix == prefix && g.Generation == gen {
						bytes, n = bytes+g.Bytes, n+1
					}
				}
				if n > 0 && !yes { // else the daemon says what is wrong
					fmt.Fprintf(a.err, "What this peer knew of generation %s of %s, some %d bytes, is deleted for good.\nType %s to go on: ", generation(gen), prefix, bytes, prefix)
					if err := a.typed(ctx, c.InOrStdin(), "group graves rm", prefix); err != nil {
						return err
					}
				}
				gone, err := daemon.DeleteGrave(ctx, prefix, gen)
				if err != nil {
					return err
				}
				return a.list("deleted", anys(gone), func(w io.Writer) {
					for _, g := range gone {
						fmt.Fprintf(w, "deleted\t%s, generation %s, replica %d\n", g.Prefix, generation(g.Generation), g.Replica)
					}
				})
			})
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}

// parseGeneration is the inverse of generation.
func parseGeneration(s string) (uint64, error) {
	overlay, own, both := strings.Cut(s, ".")
	if !both {
		overlay, own = "0", s
	}
	high, err := strconv.ParseUint(overlay, 10, 32)
	if err != nil {
		return 0, err
	}
	low, err := strconv.ParseUint(own, 10, 32)
	return high<<32 | low, err
}
