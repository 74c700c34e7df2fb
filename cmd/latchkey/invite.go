package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/spf13/cobra"

	"latchkey/node"
	"latchkey/node/allowlist"
	"latchkey/node/api"
	"latchkey/node/invite"
)

// inviteWait is how long the daemon may take to say where it is; without it the configuration says so nearly as well.
const inviteWait = 2 * time.Second

func inviteVerb(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "invite",
		Short: "print an invitation to the overlay: one line, for latchkey join on another machine",
		Long: `invite prints one line that holds all another machine needs to join: the overlay's genesis document, its swarm key if it
has one, and the addresses of peers. Any peer of the overlay can invite. It works without a running daemon too; then
the addresses are those of the configuration, and of peers met before.

An invitation to a private overlay is a secret: whoever reads it can join, as often as they like, until the overlay
gets another key. To let it expire, or be good once or for one peer, the overlay needs an allow-list ("latchkey overlay
admin --help"): who holds the swarm key is not kept out by a date in an invitation.

In an overlay with an allow-list an invitation enrols the peer that joins. It is made where the admin key is, whose
daemon has to run when the peer joins. It expires after 24 hours unless --expires says otherwise. For --peer, the other
machine tells its peer id before it joins: latchkey join --prepare.`,
		Example: `  latchkey invite | ssh other-machine latchkey join -
  (umask 077; latchkey invite > invitation)
  latchkey invite --expires 1h --single-use --note build-7`,
		Args: exactly(0),
	}
	var o node.InviteOptions
	var peerText string
	c.Flags().DurationVar(&o.Life, "expires", 0, "how long it is good for; needs an allow-list (default 24h in an overlay with one)")
	c.Flags().BoolVar(&o.Once, "single-use", false, "good for one machine only; needs an allow-list")
	c.Flags().StringVar(&peerText, "peer", "", "good for this peer id only; needs an allow-list")
	c.Flags().StringVar(&o.Note, "note", "", "what the allow-list says of who joins by it; needs one")
	c.RunE = func(c *cobra.Command, _ []string) error {
		var asked string // a flag that needs an allow-list
		for _, name := range []string{"expires", "single-use", "peer", "note"} {
			if c.Flags().Changed(name) && asked == "" {
				asked = name
			}
		}
		if c.Flags().Changed("expires") && (o.Life < time.Second || o.Life > allowlist.InvitationLifeMax) {
			return usagef("invite: --expires %v: want 1s to %v", o.Life, allowlist.InvitationLifeMax)
		}
		if c.Flags().Changed("peer") {
			var err error
			if o.Peer, err = peerID("invite: --peer", peerText); err != nil {
				return err
			}
		}
		return a.invite(c.Context(), o, asked)
	}
	return c
}

func (a *app) invite(ctx context.Context, o node.InviteOptions, asked string) error {
	dir, err := a.peekDir()
	if err != nil {
		return err
	}
	_, err = node.ReadAllowList(a.path)
	listed := err == nil
	switch {
	case err != nil && !errors.Is(err, node.ErrNoList):
		return err
	case !listed && asked != "":
		return usagef("invite: --%s: it needs an allow-list, and this overlay has none: who holds its swarm key cannot be kept out by what an invitation says", asked)
	}
	now, err := a.whereabouts(ctx, dir.ID)
	if err != nil {
		return err
	}
	var i invite.Invite
	if listed {
		if i, err = node.Invite(ctx, a.path, now, o); err == nil && now != nil {
			if l, err := node.ReadAllowList(a.path); err == nil {
				a.tellDaemon(ctx, dir.ID, l)
			}
		}
	} else {
		i, err = node.Invitation(a.path, now)
	}
	if errors.Is(err, node.ErrNoAdminKey) {
		return fmt.Errorf("invite: this overlay has an allow-list, so who joins has to be put on it: %w", err)
	} else if err != nil {
		return err
	}
	token, err := i.Token()
	if err != nil {
		return err
	}
	v := struct {
		Token   string   `json:"token"`
		Overlay string   `json:"overlay"`
		Name    string   `json:"overlay_name"`
		Private bool     `json:"private"`
		Daemon  bool     `json:"daemon"` // whether the addresses are a running daemon's
		Addrs   []string `json:"addrs"`

		Expires *time.Time `json:"expires,omitempty"` // only of an overlay with an allow-list, as the rest
		Once    bool       `json:"single_use,omitempty"`
		Peer    string     `json:"peer,omitempty"`
	}{Token: token, Overlay: i.Genesis.ID().Hex(), Name: i.Genesis.Name, Private: i.Private(), Daemon: now != nil, Addrs: []string{}}
	if i.Listed() {
		v.Expires, v.Once = &i.Expires, i.Once
		if i.Peer != "" {
			v.Peer = i.Peer.String()
		}
	}
	for _, p := range i.Bootstrap {
		for _, addr := range p.Addrs {
			v.Addrs = append(v.Addrs, addr.String()+"/p2p/"+p.ID.String())
		}
	}
	if err := a.value(v, func(w io.Writer) { fmt.Fprintln(w, token) }); err != nil {
		return err
	}
	note := func(format string, args ...any) { fmt.Fprintf(a.err, "latchkey: note: "+format+"\n", args...) }
	if v.Private {
		note("this line is a secret: it holds the key of the overlay")
	}
	switch {
	case !i.Listed():
	case i.Peer != "":
		note("it is good for %s only, until %s", i.Peer, i.Expires.Format(time.RFC3339))
	case i.Once:
		note("it is good for one machine, until %s", i.Expires.Format(time.RFC3339))
	default:
		note("it is good until %s", i.Expires.Format(time.RFC3339))
	}
	if !v.Daemon && i.Listed() {
		note("the daemon is not running, and has to run for others to join: latchkey daemon%s", a.pathFlag())
	} else if !v.Daemon {
		note("the daemon is not running; others can join now, and get in once it runs: latchkey daemon%s", a.pathFlag())
	}
	switch {
	case len(v.Addrs) == 0:
		note("no address is known that others could reach: set network.announce, or a port in network.listen")
	case node.OnlyHere(i):
		note("its addresses are of the loopback: it is of no use on another machine")
	}
	return nil
}

// peekDir reads the peer's directory. A peer of a testnet that shares its process with others has none, only a socket where it
// would be.
func (a *app) peekDir() (*node.DirInfo, error) {
	dir, err := node.PeekDir(a.path)
	if errors.Is(err, node.ErrNotInitialised) {
		if info, statErr := os.Stat(filepath.Join(a.path, "api.sock")); statErr == nil && info.Mode()&os.ModeSocket != 0 {
			return dir, fmt.Errorf("%s has a daemon's socket and no peer: a testnet in one process keeps no keys or configuration of its peers on disk; "+
				"latchkey testnet up --mode process does", a.path)
		}
	}
	return dir, err
}

// whereabouts asks the daemon where it and its peers are; nil when none answers.
func (a *app) whereabouts(ctx context.Context, self peer.ID) ([]peer.AddrInfo, error) {
	daemon, err := a.dial()
	if err != nil {
		return nil, err
	}
	defer daemon.Close()
	ctx, cancel := context.WithTimeout(ctx, inviteWait)
	defer cancel()
	id, err := daemon.ID(ctx)
	var peers []api.Peer
	if err == nil {
		peers, err = daemon.Peers(ctx)
	}
	switch {
	case errors.Is(err, api.ErrUnreachable) || errors.Is(err, context.DeadlineExceeded):
		return nil, nil
	case err != nil:
		return nil, err
	case id.Peer != self.String():
		return nil, fmt.Errorf("invite: the daemon at %s is peer %s, and %s is the directory of %s; name them both, by --api and --path", a.socket(), id.Peer, a.path, self)
	}
	infos := []peer.AddrInfo{{ID: self, Addrs: addrsOf(id.Addrs)}}
	for _, p := range peers {
		if other, err := peer.Decode(p.Peer); err == nil && p.Connected {
			infos = append(infos, peer.AddrInfo{ID: other, Addrs: addrsOf(p.Addrs)})
		}
	}
	return infos, nil
}

// addrsOf reads multiaddrs, without the peer ids that end them.
func addrsOf(texts []string) (addrs []ma.Multiaddr) {
	for _, s := range texts {
		if at := strings.LastIndex(s, "/p2p/"); at > 0 && !strings.Contains(s[at:], "/p2p-circuit") {
			s = s[:at]
		}
		if addr, err := ma.NewMultiaddr(s); err == nil {
			addrs = append(addrs, addr)
		}
	}
	return addrs
}
