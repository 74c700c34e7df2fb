package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"latchkey/coherence"
	"latchkey/node/api"
)

func appVerb(a *app) *cobra.Command {
	c := group(&cobra.Command{
		Use:   "app",
		Short: "applications that share objects: who has them open, checkpoints, restarts",
		Long: `An application is what shared objects belong to. It begins when the first peer opens it, and ends with the last that has it open. If one of
them fails it begins anew, in its next execution, whose number is the epoch, from its last checkpoint or with empty objects; see
"latchkey object --help". Threads are of Go programs (package coherence). The command line runs only
those of the applications that come with it ("latchkey app run --help"), on peers of their own.`,
		Example: `  latchkey app ls
  latchkey app info demo
  latchkey app checkpoint demo
  latchkey app close demo
  latchkey app run sor --kill --join`,
	})
	c.AddCommand(appLsVerb(a), appInfoVerb(a), appCheckpointVerb(a), appRestartVerb(a), appCloseVerb(a), appRunVerb(a))
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
		Long: `info asks the group that keeps the application. If that has begun anew, it tells when the last time was, since whom or what, and from
which checkpoint: the peer did not answer for three seconds, has begun again, or left threads behind; somebody asked for it; an object needed what a lost
peer had; or the group of an object has lost its state. It ends with 4 where nobody has the application open.`,
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
					text := fmt.Sprintf("nobody has application %q open", args[0])
					if i.Anew != nil {
						text += "; it had to begin anew " + anewText(i.Anew, time.Now())
					}
					return exitf(exitNotFound, "%s", text)
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
					saved := "none"
					if i.Saved > 0 {
						saved = fmt.Sprintf("%d, of %d objects", i.Saved, i.SavedObjs)
					}
					fmt.Fprintf(w, "manager\t%s\ncheckpoint\t%s\n", i.State, saved)
					fmt.Fprintf(w, "open at\t%s\n", strings.Join(i.Peers, ", "))
					if i.Anew != nil {
						fmt.Fprintf(w, "begun anew\t%s\n", anewText(i.Anew, time.Now()))
					}
				})
			})
		},
	}
}

// anewText tells why an application began anew.
func anewText(a *api.AppAnew, now time.Time) string {
	var text string
	if !a.At.IsZero() {
		text = fmt.Sprintf("%s, %s ago, ", a.At.Local().Format(time.DateTime), ago(now, a.At))
	}
	if a.Checkpoint > 0 {
		text += fmt.Sprintf("from checkpoint %d, ", a.Checkpoint)
	} else {
		text += "with empty objects, "
	}
	text += fmt.Sprintf("in execution %d: ", a.Epoch)
	switch a.Cause {
	case "silent":
		return text + fmt.Sprintf("peer %s did not answer", a.Peer)
	case "returned":
		return text + fmt.Sprintf("peer %s had begun again, or left threads behind that no other could run", a.Peer)
	case "asked":
		return text + fmt.Sprintf("somebody asked for it at peer %s", a.Peer)
	case "needed":
		return text + fmt.Sprintf("object %s needed what peer %s had, which is lost", a.Object, a.Peer)
	case "blank":
		return text + fmt.Sprintf("the group of object %s had lost its state", a.Object)
	}
	return text + inLine(a.Cause)
}

func appCheckpointVerb(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "checkpoint APP",
		Short: "save an application as it is at one instant",
		Long: `checkpoint saves the values of all objects, and the states of all threads, as they are at one instant, at the 2f+1 peers closest to each piece.
Reads go on meanwhile, and writes wait. When the application begins anew it does so from its last checkpoint. One that takes longer than thirty seconds is
given up, with the threads named that came to no safe point; the one before stays in force. Checkpoints end with the application.`,
		Example: `  latchkey app checkpoint demo`,
		Args:    exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := coherence.CheckNames(args[0], "any"); err != nil {
				return err
			}
			return a.callObject(c, "application "+args[0], func(ctx context.Context, daemon *api.Client) error {
				id, err := daemon.Checkpoint(ctx, args[0])
				if err != nil {
					return err
				}
				return a.value(struct {
					App        string `json:"app"`
					Checkpoint uint64 `json:"checkpoint,string"`
				}{args[0], id}, func(w io.Writer) { fmt.Fprintf(w, "application %q saved, checkpoint %d\n", args[0], id) })
			})
		},
	}
}

func appRestartVerb(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "restart APP",
		Short: "have an application begin anew, from its last checkpoint",
		Long: `restart ends this execution of an application, as a failure would, and has the next one begin from the last checkpoint, or with empty objects if there
is none. Everybody who has it open is told. It ends with 4 where nobody has the application open.`,
		Example: `  latchkey app restart demo`,
		Args:    exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := coherence.CheckNames(args[0], "any"); err != nil {
				return err
			}
			return a.callObject(c, "application "+args[0], func(ctx context.Context, daemon *api.Client) error {
				epoch, err := daemon.RestartApp(ctx, args[0])
				if err != nil {
					return err
				}
				return a.value(struct {
					App   string `json:"app"`
					Epoch uint64 `json:"epoch,string"`
				}{args[0], epoch}, func(w io.Writer) { fmt.Fprintf(w, "application %q begins anew, in execution %d\n", args[0], epoch) })
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
