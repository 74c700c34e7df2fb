package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"latchkey/node"
	"latchkey/node/api"
	"latchkey/node/config"
	"latchkey/node/invite"
)

func joinVerb(a *app) *cobra.Command {
	var o node.JoinOptions
	var prepare bool
	c := &cobra.Command{
		Use:   "join TOKEN|-",
		Short: "make a peer in --path that belongs to an overlay you were invited to",
		Long: `join makes a peer in --path from an invitation, which "latchkey invite" prints on a machine of the overlay. With -
it reads the invitation from standard input, whatever stands around it; as an argument everybody on this machine could see it in the list of
processes, and an invitation to a private overlay is a secret.

First it asks the peers that the invitation names. If one answers, all is well. If those that answer refuse, because
of another swarm key or another overlay, say, it makes no peer and ends with 1 (by an allow-list: the key that it asked with stays in --path, for the next try). If nobody answers, it makes the
peer all the same and says so: its daemon goes on trying. It never overwrites anything.

In an overlay with an allow-list the peer that made the invitation enrols this one, and has to run for that. A join that was
interrupted is repeated with the same invitation. For an invitation that is to be good for this machine only, --prepare
prints the peer id it will have, to be told to whoever invites.

Profiles are those of "latchkey init", and client and lowpower: peers that use the overlay and host nothing for it.`,
		Example: `  latchkey invite | ssh other-machine latchkey join -
  latchkey join - --profile client < invitation
  latchkey join - --path /var/lib/latchkey --listen /ip4/0.0.0.0/tcp/4701`,
		Args: func(c *cobra.Command, args []string) error {
			if prepare && len(args) > 0 {
				return errors.New("join: --prepare: it takes no invitation: it prints the peer id to make one for")
			}
			if !prepare && len(args) != 1 {
				return fmt.Errorf("join: got %d arguments; want an invitation, or - to read one from standard input", len(args))
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if prepare {
				return a.prepareJoin()
			}
			i, err := a.invitation(args[0])
			if err != nil {
				return err
			}
			return a.join(c.Context(), i, o)
		},
	}
	c.Flags().BoolVar(&prepare, "prepare", false, "print the peer id that a later join in --path will have, and do nothing else")
	profileFlag(c, &o.Profile, "private or public, as the overlay is")
	listenFlag(c, &o.Listen, "the profile's, at a port that is drawn once")
	return c
}

// invitation reads the argument of join.
func (a *app) invitation(arg string) (invite.Invite, error) {
	if arg == "-" {
		if isTerminal(os.Stdin) {
			return a.pasted(os.Stdin)
		}
		i, err := invite.Read(os.Stdin)
		if errors.Is(err, invite.ErrNotToken) {
			return i, noInvitation(err)
		}
		return i, err
	}
	i, err := invite.Parse(arg)
	if errors.Is(err, invite.ErrNotToken) {
		if _, statErr := os.Stat(arg); statErr == nil {
			return i, usagef("join: %s is a file; to read the invitation in it: latchkey join - < %s", arg, shellWord(arg))
		}
		return i, noInvitation(err)
	}
	if err == nil && i.Private() {
		fmt.Fprintln(a.err, "latchkey: note: arguments show in the list of processes, and this one is a secret; next time: latchkey join -")
	}
	return i, err
}

// noInvitation is wrong usage, wherever the text came from.
func noInvitation(err error) error {
	return usagef("join: %s", strings.TrimPrefix(err.Error(), "invite: "))
}

// prepareJoin tells the peer id that a join will have.
func (a *app) prepareJoin() error {
	id, err := node.PrepareDir(a.path)
	if err != nil {
		return err
	}
	v := struct {
		Peer string `json:"peer"`
	}{id.String()}
	return a.value(v, func(w io.Writer) { fmt.Fprintln(w, v.Peer) })
}

func (a *app) join(ctx context.Context, i invite.Invite, o node.JoinOptions) error {
	ctx, release := interruptible(ctx)
	defer release()
	if _, err := api.ParseAddr(a.socket()); err != nil && !api.IsHTTP(a.socket()) {
		return err
	}
	j, err := node.JoinDir(ctx, a.path, i, o)
	if errors.Is(err, config.ErrInvalid) || errors.Is(err, node.ErrNotInvited) {
		return usagef("join: %w", err)
	} else if err != nil {
		return err
	}
	v := struct {
		made
		Joined bool   `json:"joined"`
		Met    string `json:"met"` // empty unless joined
	}{made{a.path, j.ID.String(), i.Genesis.ID().Hex(), i.Genesis.Name, i.Private(), i.Genesis.Regenesis.String(), i.Genesis.Reads(), i.Genesis.OwnGroups, i.Genesis.Sigma, string(j.Config.Profile), j.Config.Network.Listen, ""}, j.Met != "", ""}
	if v.Joined {
		v.Met = j.Met.String()
	}
	if err := a.value(v, func(w io.Writer) {
		v.write(w)
		if v.Joined {
			fmt.Fprintf(w, "joined\tyes: %s answered\n", v.Met)
		} else {
			fmt.Fprintf(w, "joined\tnot tried out: nobody answered; the daemon goes on trying\n")
		}
		fmt.Fprintf(w, "next\tlatchkey daemon%s\n", a.pathFlag())
	}); err != nil {
		return err
	}
	if !v.Joined {
		fmt.Fprintf(a.err, "latchkey: note: %s\n", oneLine(j.Silent))
	}
	return nil
}
