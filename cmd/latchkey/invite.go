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
	"latchkey/node/api"
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
gets another key. It cannot expire or be bound to one peer yet: who holds the swarm key is not kept out by what an
invitation says. That takes a list of who may join, which overlays of this version have not.`,
		Example: `  latchkey invite | ssh other-machine latchkey join -
  (umask 077; latchkey invite > invitation)`,
		Args: exactly(0),
	}
	// They exist to be refused.
	c.Flags().Duration("expires", 0, "how long it is good for; needs an allow-list, which there is not yet")
	c.Flags().Bool("single-use", false, "good for one machine only; needs an allow-list, which there is not yet")
	c.Flags().String("peer", "", "good for this peer id only; needs an allow-list, which there is not yet")
	c.RunE = func(c *cobra.Command, _ []string) error {
		for _, name := range []string{"expires", "single-use", "peer"} {
			if c.Flags().Changed(name) {
				return usagef("invite: --%s: it needs an allow-list, and this overlay has none: who holds its swarm key cannot be kept out by what an invitation says", name)
			}
		}
		return a.invite(c.Context())
	}
	return c
}

func (a *app) invite(ctx context.Context) error {
	dir, err := a.peekDir()
	if err != nil {
		return err
	}
	now, err := a.whereabouts(ctx, dir.ID)
	if err != nil {
		return err
	}
	i, err := node.Invitation(a.path, now)
	if err != nil {
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
	}{token, i.Genesis.ID().Hex(), i.Genesis.Name, i.Private(), now != nil, []string{}}
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
	if !v.Daemon {
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
	daemon, err := api.Dial(a.socket())
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
