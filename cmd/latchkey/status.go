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

func statusVerb(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "tell how this peer is doing: its mode, its connections, whom it turned away",
		Long: `status tells how the peer is doing.

A peer hosts replicas in mode server, none in mode client, and in mode auto while others reach it from the public
internet. A group without a leader serves nobody until a majority of its members is connected again; "latchkey group
info" tells who is missing, and "latchkey group revive" is for one that has lost them for good. Bootstrap peers are dialled only while too few others are known, so an old error is no trouble when there are peers.

Turned away, since the daemon started: "handshake" is a connection that never showed who it is, for want of the swarm
key or because it was given up, as when two peers dial each other at the same moment; "limits" one too many; "other
overlay" and "other version" are peers that speak another one's protocols; "hello refused" those whose greeting was not
accepted; "store in two places" a peer that an ALARM line names.

SHUT OUT: this peer itself may not be in the overlay, by its own allow-list or as those say that it was in the overlay with.
By its own list, it serves nobody. Nobody tells a peer that was revoked of the lists after that, until one allows it again, so those that it
turns away itself may be let in by all others.

ALARM: a peer's store, or its identity, is in use twice, as when its directory was copied, or was put back from a backup.
While a store runs twice, nothing of it counts here. The line says what to do.`,
		Example: `  latchkey status
  latchkey status -o json | jq .peers_connected`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.call(c, func(ctx context.Context, daemon *api.Client) error {
				s, err := daemon.Status(ctx)
				if err != nil {
					return err
				}
				return a.value(s, func(w io.Writer) { printStatus(w, s, time.Now()) })
			})
		},
	}
}

func printStatus(w io.Writer, s api.Status, now time.Time) {
	mode := s.Mode
	if mode == "auto" {
		mode += ", now a client"
		if s.Hosting {
			mode = "auto, now a server"
		}
	}
	version := s.Version
	if s.Revision != "" {
		version += ", revision " + s.Revision
	}
	fmt.Fprintf(w, "peer\t%s\noverlay\t%s %s\nup\t%s, version %s\n", s.Peer, s.Overlay, s.OverlayName, ago(now, s.Started), version)
	fmt.Fprintf(w, "mode\t%s\nreachability\t%s\npeers\t%d connected, %d known\n", mode, s.Reachability, s.PeersConnected, s.PeersKnown)
	if s.ShutOut != "" {
		fmt.Fprintf(w, "SHUT OUT\t%s\n", s.ShutOut)
	}
	if l := s.AllowList; l != nil {
		old := ""
		if s.ShutOut != "" {
			old = "; there may be a newer one, of which this peer is not told"
		}
		fmt.Fprintf(w, "allow-list\tnumber %d of admin key %d%s\n", l.Number, l.AdminKey, old)
	}
	groups := fmt.Sprintf("%d hosted", s.Groups)
	if s.GroupsLeaderless > 0 {
		groups += fmt.Sprintf(", %d of them without a leader", s.GroupsLeaderless)
	}
	fmt.Fprintf(w, "groups\t%s\n", groups)
	for _, g := range s.Down {
		fmt.Fprintf(w, "down\t%s\n", downLine(g, now))
	}
	if more := s.GroupsLeaderless - len(s.Down); more > 0 && len(s.Down) > 0 {
		fmt.Fprintf(w, "down\tand %d more\n", more)
	}
	if s.Applications > 0 {
		fmt.Fprintf(w, "objects\t%d copies here, of %d applications\n", s.ObjectCopies, s.Applications)
	}
	if s.DurableObjects > 0 || s.DurableMisses > 0 {
		fmt.Fprintf(w, "durable objects\t%d cached here; about %d reads asked nobody, %d asked a group, %d of them since the copy here might have been old\n",
			s.DurableObjects, s.DurableHits, s.DurableMisses, s.DurableRefused)
	}
	for _, b := range s.Bootstrap {
		state := "not tried yet"
		switch {
		case b.Connected:
			state = "connected"
		case b.Error != "":
			state = fmt.Sprintf("failed %s ago: %s", ago(now, b.Tried), b.Error)
		case !b.Tried.IsZero():
			state = fmt.Sprintf("reached %s ago, away now", ago(now, b.Tried))
		}
		fmt.Fprintf(w, "bootstrap\t%s %s\n", b.Peer, state)
	}
	refused := "nobody"
	if len(s.Refused) > 0 {
		var parts []string
		for _, r := range s.Refused {
			parts = append(parts, fmt.Sprintf("%d %s", r.Count, r.Reason))
		}
		refused = strings.Join(parts, ", ")
		if s.ShutOut != "" && s.AllowList != nil {
			refused += fmt.Sprintf(" (by list number %d)", s.AllowList.Number)
		}
	}
	fmt.Fprintf(w, "turned away\t%s\n", refused)
	for _, a := range s.Alarms {
		fmt.Fprintf(w, "ALARM\t%s ago: %s\n", ago(now, a.At), a.Text)
	}
}

// ago tells a past time to the second.
func ago(now, then time.Time) string { return max(0, now.Sub(then)).Round(time.Second).String() }
