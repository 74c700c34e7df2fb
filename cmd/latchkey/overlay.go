package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/spf13/cobra"

	"latchkey/node"
	"latchkey/node/allowlist"
	"latchkey/node/api"
)

func overlayVerb(a *app) *cobra.Command {
	c := group(&cobra.Command{
		Use:   "overlay",
		Short: "say who may be in the overlay",
		Long:  `overlay is about the overlay as a whole. Its only verb is admin, which keeps the allow-list: the peers that may be in the overlay.`,
		Example: `  latchkey overlay admin ls
  latchkey overlay admin --help`,
	})
	admin := group(&cobra.Command{
		Use:   "admin",
		Short: "keep the overlay's allow-list: who may be in it",
		Long: `An overlay without an allow-list is open to whoever has its swarm key, for good. "overlay admin init" gives it a list of peer ids,
signed by an admin key, and from then on whoever is not on the list is refused by all, before any protocol is spoken.

The admin key is the file admin.key in --path, made and needed on one machine only: allow, revoke and invite work there. Their change
is in effect there at once when the daemon runs, and the daemon tells the other peers; those that are away hear of it when they
come back. No peer ever goes back to a list older than its file allow.list; if somebody puts an older file there, or removes it, the
peer is without the newer list until it meets a peer that has it. Copying admin.key into another peer's directory hands on the right, but two
that change the list at the same moment make one of the changes be lost.

A peer that is revoked is given the list that says so and disconnected by everybody, its groups replace it as one that is down (after
half a minute), and the locks that it holds run out. From the moment it knows it serves nobody, itself included; a group that it kept by itself
is brought back by "latchkey group revive", or goes on when the peer is allowed again.`,
		Example: `  latchkey overlay admin init
  latchkey invite --expires 1h --single-use
  latchkey overlay admin revoke 12D3KooW...`,
	})
	admin.AddCommand(adminInitVerb(a), adminAllowVerb(a), adminRevokeVerb(a), adminLsVerb(a))
	c.AddCommand(admin)
	return c
}

func adminInitVerb(a *app) *cobra.Command {
	var rootKey string
	var peers []string
	var alone, anew bool
	c := &cobra.Command{
		Use:   "init",
		Short: "make the admin key and the first allow-list: from then on nobody else is let in",
		Long: `init makes the overlay's admin key, admin.key in --path, and its first allow-list. On the list are this peer, the peers that its
daemon is connected to, and those given by --peer; a peer that is away just now has to be given, or allowed later. With --alone
it is this peer only, and those of --peer.

It needs the overlay's root key, which vouches for the admin key: root.key in --path, where the overlay was founded, or a copy
(--root-key). With --new-key it makes another admin key for an overlay whose admin key is lost; the list stays as it is,
and the former key counts no more.`,
		Example: `  latchkey overlay admin init
  latchkey overlay admin init --peer 12D3KooW... --root-key /media/key/root.key`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.adminInit(c.Context(), rootKey, peers, alone, anew)
		},
	}
	c.Flags().StringVar(&rootKey, "root-key", "", "the overlay's root key (default root.key in --path)")
	c.Flags().StringArrayVar(&peers, "peer", nil, "peer id to allow besides; repeatable")
	c.Flags().BoolVar(&alone, "alone", false, "do not allow the peers that the daemon is connected to")
	c.Flags().BoolVar(&anew, "new-key", false, "make another admin key; the list stays as it is")
	return c
}

func (a *app) adminInit(ctx context.Context, rootKey string, peers []string, alone, anew bool) error {
	dir, err := a.peekDir()
	if err != nil {
		return err
	}
	if rootKey == "" {
		rootKey = node.RootKeyFile(a.path)
	}
	root, err := node.ReadRootKey(rootKey)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("overlay admin init: there is no root key at %s: run this where the overlay was founded, or name a copy of its root.key by --root-key", rootKey)
	} else if err != nil {
		return err
	}
	var members []peer.ID
	for _, p := range peers {
		id, err := peerID("overlay admin init: --peer", p)
		if err != nil {
			return err
		}
		members = append(members, id)
	}
	unknown := false
	if !alone && !anew {
		now, err := a.whereabouts(ctx, dir.ID)
		if err != nil {
			return err
		}
		for _, p := range now {
			members = append(members, p.ID)
		}
		unknown = now == nil && len(peers) == 0
	}
	l, err := node.InitAdmin(ctx, a.path, root, members, anew)
	if err != nil {
		return err
	}
	a.tellDaemon(ctx, dir.ID, l)
	if unknown {
		fmt.Fprintln(a.err, "latchkey: note: the daemon is not running, so nobody else is on the list; peers that are in the overlay already are let in again by: latchkey overlay admin allow")
	}
	return a.printList(l)
}

func adminAllowVerb(a *app) *cobra.Command {
	var note string
	c := &cobra.Command{
		Use:   "allow PEER...",
		Short: "put peers on the allow-list",
		Long: `allow puts peer ids on the overlay's allow-list, with the admin key in --path. A peer that was revoked is let in again. A peer that
does not exist yet is better invited: see "latchkey invite --help".`,
		Example: `  latchkey overlay admin allow 12D3KooW... --note build-7`,
		Args:    atLeastOne,
		RunE: func(c *cobra.Command, args []string) error {
			return a.editList(c.Context(), args, func(l *allowlist.Draft, p peer.ID) error { return l.Allow(p, note) })
		},
	}
	c.Flags().StringVar(&note, "note", "", fmt.Sprintf("what to remember about them, up to %d bytes", allowlist.NoteBytesMax))
	return c
}

func adminRevokeVerb(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "revoke PEER...",
		Short: "take peers, or invitations, off the allow-list",
		Long: `revoke takes peers off the overlay's allow-list, with the admin key in --path: everybody disconnects them and refuses them from
then on. An invitation that is revoked enrols nobody any more. Whoever was revoked still has the swarm key, which keeps out nobody who
has it; the list does.`,
		Example: `  latchkey overlay admin revoke 12D3KooW...`,
		Args:    atLeastOne,
		RunE: func(c *cobra.Command, args []string) error {
			return a.editList(c.Context(), args, func(l *allowlist.Draft, p peer.ID) error { return l.Revoke(p) })
		},
	}
}

func adminLsVerb(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "list who may be in the overlay, as this peer knows it",
		Example: `  latchkey overlay admin ls
  latchkey overlay admin ls -o json | jq -r '.entries[] | select(.kind == "member") | .peer'`,
		Args: exactly(0),
		RunE: func(*cobra.Command, []string) error {
			l, err := node.ReadAllowList(a.path)
			if errors.Is(err, node.ErrNoList) {
				return exitf(exitNotFound, "%w; until then whoever has the swarm key may be in the overlay", err)
			} else if err != nil {
				return err
			}
			return a.printList(l)
		},
	}
}

// atLeastOne says that a verb takes arguments.
func atLeastOne(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("%s: which peer? usage: %s", strings.TrimPrefix(c.CommandPath(), c.Root().Name()+" "), c.UseLine())
	}
	return nil
}

func peerID(where, text string) (peer.ID, error) {
	id, err := peer.Decode(text)
	if err != nil {
		return "", usagef("%s %.100q: want a peer id, as latchkey id prints it", where, text)
	}
	return id, nil
}

// editList changes the entry of each peer in one step.
func (a *app) editList(ctx context.Context, args []string, change func(*allowlist.Draft, peer.ID) error) error {
	var peers []peer.ID
	for _, arg := range args {
		id, err := peerID("overlay admin:", arg)
		if err != nil {
			return err
		}
		peers = append(peers, id)
	}
	dir, err := a.peekDir()
	if err != nil {
		return err
	}
	l, err := node.EditAllowList(ctx, a.path, func(l *allowlist.Draft) error {
		for _, p := range peers {
			if err := change(l, p); err != nil {
				return err
			}
		}
		if e, ok := l.Find(dir.ID); !ok || e.Kind != allowlist.Member {
			return usagef("overlay admin: %s is the peer of %s itself, which has to stay on the list to tell others of it; do this from another peer's directory that has the admin key", dir.ID, a.path)
		}
		return nil
	})
	switch {
	case errors.Is(err, node.ErrNoList):
		return fmt.Errorf("%w: without one nobody is kept out who has the swarm key, so there is nothing to allow or revoke", err)
	case err != nil:
		return err
	}
	a.tellDaemon(ctx, dir.ID, l)
	return a.printList(l)
}

// takeInMax bounds the wait until the daemon has taken in a list: it reads one file.
const takeInMax = 5 * time.Second

// tellDaemon has the daemon of a changed directory take in the list, and returns when it has, or when there is none.
func (a *app) tellDaemon(ctx context.Context, self peer.ID, l *allowlist.List) {
	daemon, err := a.dial()
	if err != nil {
		return
	}
	defer daemon.Close()
	ctx, cancel := context.WithTimeout(ctx, takeInMax)
	defer cancel()
	s, err := daemon.Status(ctx) // which makes it look
	if errors.Is(err, api.ErrUnreachable) || err == nil && s.Peer != self.String() {
		return
	}
	if has := s.AllowList; err != nil || has == nil || has.AdminKey < l.Admin() || has.AdminKey == l.Admin() && has.Number < l.Number() {
		a.note(fmt.Sprintf("note: the daemon at %s has not taken in the new list yet; latchkey status tells when it has", a.socket()))
	}
}

// listEntry is one line of a list.
type listEntry struct {
	Peer    string     `json:"peer"`
	Kind    string     `json:"kind"` // member, invitation or revoked
	Note    string     `json:"note"`
	Expires *time.Time `json:"expires,omitempty"` // of an invitation
	Once    bool       `json:"single_use,omitempty"`
	UsedBy  string     `json:"used_by,omitempty"`
}

func (a *app) printList(l *allowlist.List) error {
	v := struct {
		Admin   uint64      `json:"admin_key,string"`
		Number  uint64      `json:"number,string"`
		Members int         `json:"members"`
		Entries []listEntry `json:"entries"`
	}{l.Admin(), l.Number(), l.Members(), []listEntry{}}
	now := time.Now()
	for _, e := range l.Entries() {
		q := listEntry{Peer: e.Peer.String(), Kind: e.Kind.String(), Note: e.Note, Once: e.Once}
		if e.Kind == allowlist.Invitation {
			q.Expires = &e.Expires
		}
		if e.UsedBy != "" {
			q.UsedBy = e.UsedBy.String()
		}
		v.Entries = append(v.Entries, q)
	}
	return a.value(v, func(w io.Writer) {
		fmt.Fprintf(w, "list\tnumber %d of admin key %d, %s\n", v.Number, v.Admin, plural(v.Members, "member"))
		for _, e := range v.Entries {
			what := e.Note
			if e.Expires != nil {
				var parts []string
				switch {
				case e.UsedBy != "":
					parts = append(parts, "used by "+e.UsedBy)
				case now.Before(*e.Expires):
					parts = append(parts, "expires in "+e.Expires.Sub(now).Round(time.Second).String())
				default:
					parts = append(parts, "expired")
				}
				if e.Once {
					parts = append(parts, "single use")
				}
				if e.Note != "" {
					parts = append(parts, e.Note)
				}
				what = strings.Join(parts, ", ")
			}
			fmt.Fprintf(w, "%s\t%s\t%s\n", e.Kind, e.Peer, what)
		}
	})
}
