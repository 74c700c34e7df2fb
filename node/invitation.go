package node

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"latchkey/node/allowlist"
	"latchkey/node/config"
	"latchkey/node/invite"
)

// How many addresses of one peer an invitation names: of the peer that invites, and of another one.
const (
	ownAddrsMax   = 8
	otherAddrsMax = 3
)

// Invitation returns an invitation to the overlay of a directory's peer. now is what its running daemon knows: the daemon's own
// addresses and those of peers it is connected to; when none runs, now is nil, and the invitation names where the peer will
// listen and whom it met before. A daemon may run on the directory meanwhile. Errors are those of [PeekDir].
//
// An invitation without any address can be written; who joins by it has to find the overlay by other means, as mDNS.
func Invitation(dir string, now []peer.AddrInfo) (invite.Invite, error) {
	info, err := PeekDir(dir)
	if err != nil {
		return invite.Invite{}, err
	}
	i := invite.Invite{Genesis: info.Genesis, SwarmKey: info.SwarmKey}
	candidates := now
	if now == nil {
		own, err := futureAddrs(info.Config)
		if err != nil {
			return invite.Invite{}, err
		}
		candidates = append(candidates, peer.AddrInfo{ID: info.ID, Addrs: own})
		candidates = append(candidates, peersMet(dir)...)
	}
	told, err := multiaddrs("bootstrap", info.Config.Network.Bootstrap)
	if err != nil {
		return invite.Invite{}, err
	}
	for _, a := range told {
		p, err := peer.AddrInfoFromP2pAddr(a)
		if err != nil {
			return invite.Invite{}, fmt.Errorf("%w: network.bootstrap: %w", config.ErrInvalid, err)
		}
		if n := len(candidates) - 1; n >= 0 && candidates[n].ID == p.ID {
			candidates[n].Addrs = append(slices.Clip(candidates[n].Addrs), p.Addrs...)
		} else {
			candidates = append(candidates, *p)
		}
	}
	// A client is found by nobody and tells of nobody, so it is the last to ask.
	rank := func(p peer.AddrInfo) int {
		switch {
		case p.ID != info.ID:
			return 1
		case info.Config.Network.Mode == config.ModeClient:
			return 2
		}
		return 0
	}
	slices.SortStableFunc(candidates, func(a, b peer.AddrInfo) int { return rank(a) - rank(b) })
	room := invite.AddrsMax
	for _, p := range candidates {
		most := min(room, otherAddrsMax)
		if p.ID == info.ID {
			most = min(room, ownAddrsMax)
		}
		addrs := worthTelling(p.Addrs)
		p.Addrs = addrs[:min(len(addrs), most)]
		if len(p.Addrs) == 0 || slices.ContainsFunc(i.Bootstrap, func(q peer.AddrInfo) bool { return q.ID == p.ID }) {
			continue
		}
		room -= len(p.Addrs)
		i.Bootstrap = append(i.Bootstrap, p)
	}
	return i, nil
}

// InvitationLife is how long an invitation to an overlay with an allow-list is good unless somebody says otherwise.
const InvitationLife = 24 * time.Hour

// InviteOptions limit an invitation, which needs an allow-list.
type InviteOptions struct {
	Life time.Duration // zero: [InvitationLife]
	Once bool          // good for one peer
	Peer peer.ID       // good for this peer only; empty: for whoever has the invitation
	Note string        // of the admin, to be found in the list beside the new member
}

// Invite returns an invitation to an overlay with an allow-list, by which a peer can be enrolled: it puts the invitation on the list, with
// the admin key of the directory, and has it expire. now is as for [Invitation]. Errors are those of [EditAllowList]; allowlist.ErrEntry
// for a life out of range, or a peer that is a member already.
func Invite(ctx context.Context, dir string, now []peer.AddrInfo, o InviteOptions) (invite.Invite, error) {
	i, err := Invitation(dir, now)
	if err != nil {
		return invite.Invite{}, err
	}
	if o.Life == 0 {
		o.Life = InvitationLife
	}
	i.Expires = time.Unix(time.Now().Add(o.Life).Unix(), 0)
	i.Once, i.Peer = o.Once || o.Peer != "", o.Peer
	entry := o.Peer
	if entry == "" {
		if _, i.Key, err = ed25519.GenerateKey(rand.Reader); err != nil {
			return invite.Invite{}, fmt.Errorf("node: invite: %w", err)
		}
		key, err := crypto.UnmarshalEd25519PrivateKey(i.Key)
		if err != nil {
			return invite.Invite{}, fmt.Errorf("node: invite: %w", err)
		}
		if entry, err = peer.IDFromPrivateKey(key); err != nil {
			return invite.Invite{}, fmt.Errorf("node: invite: %w", err)
		}
	}
	if _, err := i.Token(); err != nil { // before it is on the list
		return invite.Invite{}, err
	}
	_, err = EditAllowList(ctx, dir, func(l *allowlist.Draft) error { return l.Invite(entry, i.Expires, i.Once, o.Note) })
	return i, err
}

// futureAddrs are the addresses that a daemon with this configuration will tell others.
func futureAddrs(c config.Config) ([]ma.Multiaddr, error) {
	if len(c.Network.Announce) > 0 {
		return multiaddrs("announce", c.Network.Announce)
	}
	listen, err := multiaddrs("listen", c.Network.Listen)
	if err != nil {
		return nil, err
	}
	interfaces, err := manet.InterfaceMultiaddrs()
	if err != nil {
		return nil, fmt.Errorf("node: the addresses of this machine: %w", err)
	}
	var addrs []ma.Multiaddr
	for _, l := range listen {
		if strings.Contains(l.String()+"/", "/tcp/0/") || strings.Contains(l.String()+"/", "/udp/0/") {
			continue // it will be another one each time
		}
		if some, err := manet.ResolveUnspecifiedAddress(l, interfaces); err == nil { // none: an address family this machine has not
			addrs = append(addrs, some...)
		}
	}
	return addrs, nil
}

// peersMet are the peers in a directory's file of known peers. One that cannot be read is the daemon's affair.
func peersMet(dir string) []peer.AddrInfo {
	b, err := readFileMax(dir, peersFile, knownFileBytesMax)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var infos []peer.AddrInfo
	if peers, err := decodeKnownPeers(b); err == nil {
		for _, p := range peers {
			if info, err := p.info(); err == nil {
				infos = append(infos, info)
			}
		}
	}
	return infos
}

// worthTelling leaves out addresses that mean nothing elsewhere, those of the loopback only if there are others, since
// overlays on one machine are overlays too; and repetitions.
func worthTelling(addrs []ma.Multiaddr) []ma.Multiaddr {
	var wide, loopback []ma.Multiaddr
	for _, a := range addrs {
		switch {
		case len(a) == 0, len(a.String()) > invite.AddrBytesMax, manet.IsIPUnspecified(a), manet.IsIP6LinkLocal(a):
		case slices.ContainsFunc(wide, a.Equal), slices.ContainsFunc(loopback, a.Equal):
		case manet.IsIPLoopback(a):
			loopback = append(loopback, a)
		default:
			wide = append(wide, a)
		}
	}
	if len(wide) > 0 {
		return wide
	}
	return loopback
}

// OnlyHere reports whether an invitation is of no use on another machine: every address in it is of the loopback.
func OnlyHere(i invite.Invite) bool {
	for _, p := range i.Bootstrap {
		if slices.ContainsFunc(p.Addrs, func(a ma.Multiaddr) bool { return !manet.IsIPLoopback(a) }) {
			return false
		}
	}
	return len(i.Bootstrap) > 0
}
