package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"latchkey/coherence"
	"latchkey/node/api"
)

func appVerb(a *app) *cobra.Command {
	c := group(&cobra.Command{
		Use:   "app",
		Short: "applications that share objects: who has them open, and ending this peer's part in one",
		Long: `An application is what shared objects belong to. It begins when the first peer opens it, and ends with the last that has it open. If one of
them fails it begins anew, in its next execution, whose number is the epoch; see "latchkey object --help".`,
		Example: `  latchkey app ls
  latchkey app info demo
  latchkey app close demo`,
	})
	c.AddCommand(appLsVerb(a), appInfoVerb(a), appCloseVerb(a))
	return c
}

func appLsVerb(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "list the applications that are open on this peer",
		Long: `ls lists the applications that are open on this peer. Nobody knows of all: other peers may have others open, which "app info APP" finds by
their names.`,
		Example: `  latchkey app ls
  latchkey app ls -o jsonl | jq -r .app`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.call(c, func(ctx context.Context, daemon *api.Client) error {
				all, err := daemon.Apps(ctx)
				if err != nil {
					return err
				}
				type listed struct {
					App    string `json:"app"`
					Epoch  uint64 `json:"epoch,string"`
					Copies int    `json:"copies"`
				}
				apps := make([]listed, len(all))
				for i, v := range all {
					apps[i] = listed{v.App, v.Epoch, v.Copies}
				}
				return a.list("apps", anys(apps), func(w io.Writer) {
					if len(apps) == 0 {
						fmt.Fprintln(w, "no application is open on this peer")
						return
					}
					fmt.Fprintln(w, "APP\tEXECUTION\tCOPIES HERE")
					for _, v := range apps {
						fmt.Fprintf(w, "%s\t%d\t%d\n", inLine(v.App), v.Epoch, v.Copies)
					}
				})
			})
		},
	}
}

func appInfoVerb(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "info APP",
		Short: "tell which execution of an application it is, and who has it open",
		Long:  `info asks the group that keeps the application. It ends with 4 where nobody has it open.`,
		Example: `  latchkey app info demo
  latchkey app info demo -o json | jq -r .epoch`,
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := coherence.CheckNames(args[0], "any"); err != nil {
				return err
			}
			return a.callObject(c, "application "+args[0], func(ctx context.Context, daemon *api.Client) error {
				i, err := daemon.App(ctx, args[0])
				if err != nil {
					return err
				}
				if !i.Open {
					return exitf(exitNotFound, "nobody has application %q open", args[0])
				}
				return a.value(i, func(w io.Writer) {
					here := "not open"
					if i.Here {
						here = fmt.Sprintf("open, %d copies", i.Copies)
					}
					if i.Restarted {
						here = "it has begun anew since it was opened here, and the next command through this daemon says so"
					}
					fmt.Fprintf(w, "application\t%s\nexecution\t%d\nthreads\t%d, with those who have it open\nhere\t%s\n", inLine(i.App), i.Epoch, i.Threads, here)
					fmt.Fprintf(w, "open at\t%s\n", strings.Join(i.Peers, ", "))
				})
			})
		},
	}
}

func appCloseVerb(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "close APP",
		Short: "end this peer's part in an application",
		Long: `close ends this peer's part in an application. It waits until others have what this peer owns. With the last that has it open the
application ends, and its objects are gone. It ends with 4 where the application is not open on this peer.`,
		Example: `  latchkey app close demo`,
		Args:    exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.callObject(c, "application "+args[0], func(ctx context.Context, daemon *api.Client) error {
				if err := daemon.CloseApp(ctx, args[0]); err != nil {
					return err
				}
				return a.quietly(map[string]string{"closed": args[0]})
			})
		},
	}
}
