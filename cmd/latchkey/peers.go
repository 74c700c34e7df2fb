package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"latchkey/node/api"
)

func peersVerb(a *app) *cobra.Command {
	c := group(&cobra.Command{
		Use:   "peers",
		Short: "list the peers this one knows; connect to one, disconnect, tell addresses",
		Long: `peers lists the peers of the overlay that this one knows, connected or away.

A peer finds the others by itself and keeps the connections it needs, so the verbs below are for looking into things.`,
		Example: `  latchkey peers
  latchkey peers connect /ip4/192.0.2.1/tcp/4701/p2p/12D3KooW...`,
	})
	c.RunE = func(c *cobra.Command, _ []string) error {
		return a.call(c, func(ctx context.Context, daemon *api.Client) error {
			peers, err := daemon.Peers(ctx)
			if err != nil {
				return err
			}
			return a.list("peers", anys(peers), func(w io.Writer) {
				if len(peers) == 0 {
					fmt.Fprintln(w, "no other peers")
				}
				for _, p := range peers {
					state := "away"
					if p.Connected {
						state = "connected"
					}
					fmt.Fprintf(w, "%s\t%s\t%s\n", p.Peer, state, strings.Join(p.Addrs, " "))
				}
			})
		})
	}
	c.AddCommand(peersConnectVerb(a), peersDisconnectVerb(a), peersAddrsVerb(a))
	return c
}

func peersConnectVerb(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "connect PEER|MULTIADDR",
		Short: "connect to a peer, and tell why not where it cannot be",
		Long: `connect connects this peer to another: at a multiaddr that ends in /p2p/ and the peer's id, or at the addresses that are
known of an id. Where nothing comes of it, it says why: nobody answers, another swarm key, another overlay, or not let in.`,
		Example: `  latchkey peers connect /ip4/192.0.2.1/tcp/4701/p2p/12D3KooW...
  latchkey peers connect 12D3KooW...`,
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.call(c, func(ctx context.Context, daemon *api.Client) error {
				v, err := daemon.Connect(ctx, args[0])
				if err != nil {
					return err
				}
				how := "connected"
				if v.Already {
					how = "connected already"
				}
				return a.value(v, func(w io.Writer) { fmt.Fprintf(w, "%s\t%s\t%s\n", v.Peer, how, v.Addr) })
			})
		},
	}
}

func peersDisconnectVerb(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "disconnect PEER",
		Short: "end the connections with a peer",
		Long: `disconnect ends the connections with a peer. Either side may connect again at once, and does when it needs to: to keep a
peer out there are allow-lists ("latchkey overlay admin revoke").`,
		Example: `  latchkey peers disconnect 12D3KooW...`,
		Args:    exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.call(c, func(ctx context.Context, daemon *api.Client) error {
				n, err := daemon.Disconnect(ctx, args[0])
				if err != nil {
					return err
				}
				v := struct {
					Peer        string `json:"peer"`
					Connections int    `json:"connections"`
				}{args[0], n}
				return a.value(v, func(w io.Writer) { fmt.Fprintf(w, "%s\t%d connections ended\n", args[0], n) })
			})
		},
	}
}

func peersAddrsVerb(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "addrs [PEER]",
		Short: "list the addresses that are known of each peer, or of one",
		Long:  `addrs lists the addresses that are known of each peer, one a line, as "peers connect" takes them. Its own are in "latchkey id".`,
		Example: `  latchkey peers addrs
  latchkey peers addrs 12D3KooW...`,
		Args: atMost(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.call(c, func(ctx context.Context, daemon *api.Client) error {
				peers, err := daemon.Peers(ctx)
				if err != nil {
					return err
				}
				type known struct {
					Peer  string   `json:"peer"`
					Addrs []string `json:"addrs"`
				}
				var all []known
				for _, p := range peers {
					if len(args) == 1 && args[0] != p.Peer {
						continue
					}
					k := known{p.Peer, []string{}}
					for _, addr := range p.Addrs {
						k.Addrs = append(k.Addrs, addr+"/p2p/"+p.Peer)
					}
					all = append(all, k)
				}
				if len(args) == 1 && len(all) == 0 {
					return exitf(exitNotFound, "peers addrs: no peer %q is known; latchkey peers lists those that are", args[0])
				}
				return a.list("peers", anys(all), func(w io.Writer) {
					for _, k := range all {
						for _, addr := range k.Addrs {
							fmt.Fprintln(w, addr)
						}
					}
				})
			})
		},
	}
}

// pingGap is the pause between two pings.
const pingGap = time.Second

func pingVerb(a *app) *cobra.Command {
	var count int
	c := &cobra.Command{
		Use:   "ping PEER|MULTIADDR",
		Short: "measure round trips from this peer to another",
		Long: `ping measures round trips from this peer to another, one a second, and connects to it first where that is needed. It exits
with 1 when an answer is missing.`,
		Example: `  latchkey ping 12D3KooW...
  latchkey ping -n 3 -o jsonl 12D3KooW...`,
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			if count < 1 || count > numberMax {
				return usagef("ping: -n %d: want 1 to %d", count, numberMax)
			}
			ctx, release := interruptible(c.Context())
			defer release()
			daemon, err := a.dial()
			if err != nil {
				return err
			}
			defer daemon.Close()
			return interruption(ctx, a.explain(a.ping(ctx, daemon, args[0], count)))
		},
	}
	c.Flags().IntVarP(&count, "count", "n", 4, "how often")
	return c
}

// ping does what the verb does.
func (a *app) ping(ctx context.Context, daemon *api.Client, who string, count int) error {
	report := struct {
		Pings []api.Pong `json:"pings"`
		Least int64      `json:"least_us"`
		Mean  int64      `json:"mean_us"`
		Most  int64      `json:"most_us"`
	}{Pings: []api.Pong{}}
	var sum time.Duration
	for i := range count {
		if i > 0 {
			select {
			case <-time.After(pingGap):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		once, cancel := a.bounded(ctx)
		p, err := daemon.Ping(once, who)
		cancel()
		if err != nil {
			return err
		}
		us := p.RoundTripUS
		if i == 0 {
			report.Least = us
		}
		sum += p.RoundTrip
		report.Pings = append(report.Pings, p)
		report.Least, report.Most, report.Mean = min(report.Least, us), max(report.Most, us), (sum / time.Duration(i+1)).Microseconds()
		if a.format == formatJSON {
			continue
		}
		if err := a.event(p, fmt.Sprintf("%v from %s at %s", p.RoundTrip.Round(time.Microsecond), p.Peer, p.Addr)); err != nil {
			return err
		}
	}
	if a.format == formatJSONL {
		return nil
	}
	return a.value(report, func(w io.Writer) {
		us := func(n int64) time.Duration { return time.Duration(n) * time.Microsecond }
		fmt.Fprintf(w, "%d answers, least %v, mean %v, most %v\n", len(report.Pings), us(report.Least), us(report.Mean), us(report.Most))
	})
}

func logVerb(a *app) *cobra.Command {
	c := group(&cobra.Command{
		Use:     "log",
		Short:   "see and change what a running daemon logs",
		Example: `  latchkey log level latchkey/dht debug`,
	})
	c.AddCommand(&cobra.Command{
		Use:   "level [SUBSYSTEM [LEVEL]]",
		Short: "list from which level on each part of the daemon logs, or set it",
		Long: `level lists from which level on each part of the daemon logs, or sets it until the daemon ends: debug, info, warn or error.

SUBSYSTEM is a name, the beginning of several names and *, or all. The parts of latchkey are called latchkey/..., the
others are libraries', and come up as those begin to log. A daemon's levels at its start are --log-level, and for libraries
the variable GOLOG_LOG_LEVEL. At debug much is logged, names of locks among it, and the daemon is slower.`,
		Example: `  latchkey log level
  latchkey log level latchkey/dht debug
  latchkey log level 'latchkey/*' info
  latchkey log level all error`,
		Args: atMost(2),
		RunE: func(c *cobra.Command, args []string) error {
			return a.call(c, func(ctx context.Context, daemon *api.Client) error {
				pattern := ""
				if len(args) > 0 {
					if pattern = args[0]; pattern == "" {
						return usagef("log level: an empty SUBSYSTEM; all is for all of them")
					}
				}
				levels, err := daemon.LogLevels(ctx, pattern)
				if len(args) == 2 {
					levels, err = daemon.SetLogLevel(ctx, pattern, args[1])
				}
				if err != nil {
					return err
				}
				return a.list("levels", anys(levels), func(w io.Writer) {
					for _, l := range levels {
						fmt.Fprintf(w, "%s\t%s\n", l.Subsystem, l.Level)
					}
				})
			})
		},
	})
	return c
}
