package main

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"latchkey/node"
	"latchkey/node/api"
)

func idVerb(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "id",
		Short: "tell who this peer is",
		Example: `  latchkey id
  latchkey id -o json | jq -r .peer`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.call(c, func(ctx context.Context, daemon *api.Client) error {
				i, err := daemon.ID(ctx)
				if err != nil {
					return err
				}
				return a.value(i, func(w io.Writer) {
					fmt.Fprintf(w, "peer\t%s\nnode\t%s\noverlay\t%s %s\nstore\t%s\nversion\t%s\n", i.Peer, i.Node, i.Overlay, i.OverlayName, i.Store, i.Version)
					for _, addr := range i.Addrs {
						fmt.Fprintf(w, "listens\t%s\n", addr)
					}
				})
			})
		},
	}
}

func keyVerb(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "key NAME",
		Short:   "tell where the lock of this name lives: its hash, the closest peers, its group",
		Example: `  latchkey key nightly`,
		Args:    exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.callGroup(c, args[0], func(ctx context.Context, daemon *api.Client) error {
				k, err := daemon.Key(ctx, args[0])
				if err != nil {
					return err
				}
				id, err := daemon.ID(ctx)
				if err != nil {
					return err
				}
				peers, err := daemon.Peers(ctx)
				if err != nil {
					return err
				}
				v := keyPlaceOf(k, connectedTo(id, peers))
				return a.value(v, func(w io.Writer) { v.write(w) })
			})
		},
	}
}

// keyPlace is where a key lives, and how its group stands.
type keyPlace struct {
	api.KeyInfo
	Group *groupPlace `json:"group"` // in place of the daemon's; null while there is none
}

type groupPlace struct {
	api.GroupInfo
	Bears     int      `json:"bears_failures"`    // of members
	Connected []string `json:"members_connected"` // to the daemon, which is connected to itself
}

func keyPlaceOf(k api.KeyInfo, connected map[string]bool) keyPlace {
	p := keyPlace{KeyInfo: k}
	if k.Group == nil {
		return p
	}
	p.Group = &groupPlace{GroupInfo: *k.Group, Bears: max(0, len(k.Group.Members)-1) / 2, Connected: []string{}}
	for _, m := range k.Group.Members {
		if connected[m] {
			p.Group.Connected = append(p.Group.Connected, m)
		}
	}
	return p
}

func (p keyPlace) write(w io.Writer) {
	fmt.Fprintf(w, "name\t%s\nhash\t%s\n", p.Name, p.Hash)
	for i, id := range p.Closest {
		fmt.Fprintf(w, "closest %d\t%s\n", i+1, id)
	}
	g := p.Group
	if g == nil {
		fmt.Fprintf(w, "group\tnone yet: the first lock under this key's prefix makes it\n")
		return
	}
	away := ""
	if n := len(g.Members) - len(g.Connected); n > 0 {
		away = fmt.Sprintf(", of which it has %d if who is not connected here is down", n)
	}
	fmt.Fprintf(w, "group\t%s, generation %d, view %d, bears %s%s\n", g.ID, g.Generation, g.View, plural(g.Bears, "failure"), away)
	for _, m := range g.Members {
		role, connected := "member", "no"
		if m == g.Leader {
			role = "leader"
		}
		if slices.Contains(g.Connected, m) {
			connected = "yes"
		}
		fmt.Fprintf(w, "%s\t%s, connected %s\n", role, m, connected)
	}
	if g.Leader == "" {
		fmt.Fprintf(w, "leader\tnone answers\n")
	}
}

// plural counts things whose plural is regular.
func plural(n int, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return fmt.Sprintf("%d %s", n, thing)
}

func shutdownVerb(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "shutdown",
		Short:   "stop the daemon and wait until it has stopped",
		Example: `  latchkey shutdown`,
		Args:    exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.call(c, func(ctx context.Context, daemon *api.Client) error {
				if err := daemon.Shutdown(ctx); err != nil {
					return err
				}
				return untilGone(ctx, daemon)
			})
		},
	}
}

// untilGone waits until nobody answers, which is when the daemon has given up its directory.
func untilGone(ctx context.Context, daemon *api.Client) error {
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for {
		if _, err := daemon.Version(ctx); exitCode(err) == exitUnreachable {
			return nil
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func versionVerb(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "tell which build this is; needs no daemon",
		Example: `  latchkey version -o json`,
		Args:    exactly(0),
		RunE: func(*cobra.Command, []string) error {
			v := struct {
				api.Version
				Revision string `json:"revision"` // of the checkout it was built from; empty when unknown
			}{api.Version{Version: buildVersion(), Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}, node.Revision()}
			return a.value(v, func(w io.Writer) { fmt.Fprintln(w, buildLine()) })
		},
	}
}

// buildLine tells in one line which build this is.
func buildLine() string {
	revision := ""
	if r := node.Revision(); r != "" {
		revision = "revision " + r + ", "
	}
	return fmt.Sprintf("latchkey %s (%s%s, %s/%s)", buildVersion(), revision, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// buildVersion is the module's version, which Go derives from the checkout it built.
func buildVersion() string {
	if b, ok := debug.ReadBuildInfo(); ok && b.Main.Version != "" {
		return b.Main.Version
	}
	return "(unknown)"
}

func completionVerb(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "print a completion script for a shell",
		Example: `  source <(latchkey completion bash)
  latchkey completion fish > ~/.config/fish/completions/latchkey.fish`,
		ValidArgs: []string{"bash", "zsh", "fish"},
		Args:      exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			switch root := c.Root(); args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.out, true)
			case "zsh":
				return root.GenZshCompletion(a.out)
			case "fish":
				return root.GenFishCompletion(a.out, true)
			}
			return usagef("completion %s: use bash, zsh or fish", args[0])
		},
	}
}

func helpVerb(*app) *cobra.Command {
	return &cobra.Command{
		Use:     "help [VERB...]",
		Short:   "explain a verb, as its --help does",
		Example: `  latchkey help lock`,
		RunE: func(c *cobra.Command, args []string) error {
			topic, rest, err := c.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return usagef("help: unknown verb %q; latchkey --help lists them", strings.Join(args, " "))
			}
			return topic.Help()
		},
	}
}
