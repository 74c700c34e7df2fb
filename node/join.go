package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"

	"latchkey/node/config"
	"latchkey/node/invite"
	"latchkey/replicagroup/placement"
)

// JoinWait is how long [JoinDir] waits for a peer of the overlay to answer.
const JoinWait = 3 * time.Second

// JoinOptions say what kind of peer joins. The zero value is a server of the overlay.
type JoinOptions struct {
	Profile config.Profile // default: private or public, as the overlay is
	Listen  []string       // multiaddrs, in place of the profile's; a port that is 0 is drawn once, for good
}

// Joined is what [JoinDir] made.
type Joined struct {
	ID     peer.ID
	Config config.Config // as it was written
	Met    peer.ID       // the peer of the overlay that answered; empty: nobody did, so nothing was tried out
	Silent error         // then: why, in one line; it matches [ErrUnreachable]
}

// JoinDir makes a peer of an existing overlay in an empty or absent directory, from an invitation. First it asks the peers that
// the invitation names, for [JoinWait] at most. When one answers as a peer of the overlay, or none answers at all, it writes
// the directory, as [CreateDir] does and with its errors. In an overlay with an allow-list the peer is enrolled first, so that somebody
// has to answer, and the peer's key is in the directory before: whoever is interrupted after that repeats the join with the same
// invitation, and is enrolled already. When all that answer refuse, it writes nothing and returns what
// tells most, a verdict of [Diagnose]. A profile that does not go with the overlay is config.ErrInvalid. When ctx ends
// before anything is written, it returns context.Cause(ctx).
func JoinDir(ctx context.Context, dir string, i invite.Invite, o JoinOptions) (Joined, error) {
	if err := checkVacant(dir); err != nil {
		return Joined{}, err
	}
	c, err := joinerConfig(i, o)
	if err != nil {
		return Joined{}, err
	}
	if i.Listed() {
		return joinListed(ctx, dir, i, c)
	}
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return Joined{}, fmt.Errorf("node: join: %w", err)
	}
	j := Joined{Config: c}
	if j.ID, err = peer.IDFromPrivateKey(key); err != nil {
		return Joined{}, fmt.Errorf("node: join: %w", err)
	}
	j.Met, err = meet(ctx, key, i)
	switch {
	case ctx.Err() != nil:
		return Joined{}, context.Cause(ctx)
	case errors.Is(err, ErrUnreachable):
		j.Silent = err
	case err != nil:
		return Joined{}, fmt.Errorf("%w; nothing was written: check that the peer's daemon is the one you mean, or ask for a new invitation", err)
	}
	if err := CreateDir(dir, DirSpec{Key: key, Genesis: i.Genesis, SwarmKey: i.SwarmKey, Config: c}); err != nil {
		return Joined{}, err
	}
	return j, nil
}

// joinerConfig is the configuration of a peer that joins.
func joinerConfig(i invite.Invite, o JoinOptions) (config.Config, error) {
	p := o.Profile
	switch {
	case p == "" && i.Private():
		p = config.Private
	case p == "":
		p = config.Public
	}
	c, err := config.Default(p)
	switch {
	case err != nil:
		return c, err
	case i.Private() && !p.Keyed():
		return c, fmt.Errorf("%w: profile: %s: the invitation is to a private overlay, it carries a swarm key; choose another profile, or none", config.ErrInvalid, p)
	case !i.Private() && p.Keyed() && p != config.Test:
		return c, fmt.Errorf("%w: profile: %s: the invitation is to a public overlay, it carries no swarm key; choose profile %s, or none", config.ErrInvalid, p, config.Public)
	}
	if len(o.Listen) > 0 {
		c.Network.Listen = slices.Clone(o.Listen)
	}
	for _, info := range i.Bootstrap {
		addrs, err := peer.AddrInfoToP2pAddrs(&info)
		if err != nil {
			return c, fmt.Errorf("node: join: %w", err)
		}
		for _, a := range addrs {
			c.Network.Bootstrap = append(c.Network.Bootstrap, a.String())
		}
	}
	if err := c.Validate(i.Private()); err != nil {
		return c, err
	}
	return c.DrawPorts()
}

// meet asks all peers that the invitation knows of at once, and returns the first that answers as one of the overlay, or the
// verdict that tells most.
func meet(ctx context.Context, key crypto.PrivKey, i invite.Invite) (peer.ID, error) {
	peers := named(i)
	if len(peers) == 0 {
		return "", fmt.Errorf("%w: the invitation names no address", ErrUnreachable)
	}
	h, err := newAsker(key, i.SwarmKey)
	if err != nil {
		return "", err
	}
	defer h.Close()
	ctx, cancel := context.WithTimeout(ctx, JoinWait)
	defer cancel()
	return meetOne(ctx, h, i.Genesis, i.SwarmKey, peers)
}

// named are the peers that an invitation says where to find.
func named(i invite.Invite) []peer.AddrInfo {
	peers := slices.Clone(i.Bootstrap)
	for _, f := range founders(i.Genesis, "") {
		if !slices.ContainsFunc(peers, func(p peer.AddrInfo) bool { return p.ID == f.ID }) {
			peers = append(peers, f)
		}
	}
	return peers
}

func meetOne(ctx context.Context, h host.Host, g placement.Genesis, psk pnet.PSK, peers []peer.AddrInfo) (peer.ID, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type finding struct {
		peer    peer.ID
		verdict error
	}
	found := make(chan finding)
	for _, p := range peers {
		go func() { found <- finding{p.ID, Diagnose(ctx, h, g, psk, p)} }()
	}
	var met peer.ID
	var verdict error
	for range peers { // all of them: the host is about to be closed
		switch f := <-found; {
		case f.verdict == nil && met == "":
			met = f.peer
			cancel()
		case f.verdict != nil && (verdict == nil || tells(f.verdict) > tells(verdict)):
			verdict = f.verdict
		}
	}
	if met != "" {
		return met, nil
	}
	if n := len(peers) - 1; n > 0 && errors.Is(verdict, ErrUnreachable) {
		return "", fmt.Errorf("%w; other peers of the invitation that do not answer: %d", verdict, n)
	}
	return "", verdict
}

// newAsker makes a host that listens nowhere.
func newAsker(key crypto.PrivKey, psk pnet.PSK) (host.Host, error) {
	opts := []libp2p.Option{
		libp2p.Identity(key), libp2p.NoListenAddrs, libp2p.DisableRelay(), libp2p.DisableMetrics(), libp2p.UserAgent("latchkey/" + Version()),
	}
	if psk != nil {
		opts = append(opts, libp2p.PrivateNetwork(psk))
	}
	h, err := libp2p.New(opts...)
	if err != nil {
		return nil, fmt.Errorf("node: join: %w", err)
	}
	return h, nil
}
