package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht/keyspace"
	"latchkey/lockservice"
	"latchkey/node/api"
	"latchkey/replicagroup"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/placement"
)

// rootName is how people name the root group.
const rootName = "root"

// groupTimeout bounds the question to the root where a group stands, in [Node.GroupStanding]: one that is away leaves time to tell what is
// known without it.
const groupTimeout = 2 * time.Second

// HostedGroups implements [api.Node]: the groups this peer takes part in. It asks its replicas, which answer at once unless they are
// overloaded; ctx ends the wait.
func (n *Node) HostedGroups(ctx context.Context) ([]api.HostedGroup, error) {
	groups, err := n.groups.Status(ctx)
	if err != nil {
		return nil, err
	}
	return n.hostedGroups(groups), nil
}

// hostedGroups tells people of this host's replicas, by group.
func (n *Node) hostedGroups(groups []replicagroup.ReplicaStatus) []api.HostedGroup {
	slices.SortFunc(groups, func(a, b replicagroup.ReplicaStatus) int { return a.Group.Compare(b.Group) })
	all := make([]api.HostedGroup, 0, len(groups))
	for _, r := range groups {
		g := api.HostedGroup{
			Prefix: r.Group.Prefix.String(), Generation: r.Group.Gen, View: r.Status.View.Num, Role: order.Voter.String(),
			Voters: []string{}, Lag: r.Status.Commit - min(r.Status.Applied, r.Status.Commit), Quiesced: r.Status.Quiesced,
		}
		for _, m := range r.Status.View.Members {
			if m.Role != order.Learner {
				g.Voters = append(g.Voters, peer.ID(m.PeerID).String())
			}
			switch {
			case m.ID == r.Status.Self && r.Status.Leading:
				g.Role = "leader"
			case m.ID == r.Status.Self:
				g.Role = m.Role.String()
			}
			if m.ID == r.Status.Leader {
				g.Leader = peer.ID(m.PeerID).String()
			}
			if r.Status.Leading && m.Role != order.Learner {
				g.Lag = max(g.Lag, r.Status.Behind[m.ID])
			}
		}
		if r.Leaves {
			g.Role = order.Leaving.String()
		}
		if r.Leaderless > 0 {
			g.Leaderless = time.Now().Add(-r.Leaderless)
		}
		g.Unleased, g.Key, g.Sealed = r.Unleased, r.Key, r.Phase == placement.OwnSealed
		all = append(all, g)
	}
	return all
}

// GroupStanding implements [api.Node]: how a group stands. of is a prefix of the overlay, "root", or the name of a lock, whose group is meant.
// The root is asked who the members are, and each of them whether it is there. It makes no group. It blocks for [standingTime] when
// some do not answer, and for some seconds when the root does not; ctx ends it.
func (n *Node) GroupStanding(ctx context.Context, of string) (api.GroupStanding, error) {
	p, err := n.prefixOf(of)
	if err != nil {
		return api.GroupStanding{}, err
	}
	var g api.GroupStanding
	if own, ok := n.ownOf(ctx, of); ok {
		p, g.Key = own, of
	}
	if placement.IsOwn(order.GroupID{Prefix: p}) {
		g.Parent = n.genesis.PrefixOf(keyspace.Key(p.Bits)).String()
	}
	d, _ := n.groups.Known(p)
	if p.Len > 0 {
		ask, cancel := context.WithTimeout(ctx, groupTimeout)
		child, err := n.groups.Child(ask, p)
		cancel()
		switch {
		case ctx.Err() != nil:
			return g, context.Cause(ctx)
		case err == nil:
			g.Directory, g.Former = true, child.Former.Gen
			if placement.Newer(child.Descriptor, d) {
				d = child.Descriptor
			}
			if child.State == placement.Reviving && child.Group == d.Group {
				g.State = api.GroupReviving
			}
		case errors.Is(err, replicagroup.ErrNoGroup) && g.Parent != "":
			return g, fmt.Errorf("%w: this key has none of its own; that of its prefix is %s", api.ErrNoGroup, g.Parent)
		case errors.Is(err, replicagroup.ErrNoGroup):
			return g, fmt.Errorf("%w: no lock under prefix %v was ever taken%s", api.ErrNoGroup, p, n.takenFor(of))
		case d.IsZero():
			return g, fmt.Errorf("%w: the root does not answer, and this peer knows no group of prefix %v%s: %w", lockservice.ErrNoQuorum, p, n.takenFor(of), err)
		}
	}
	ask, cancel := context.WithTimeout(ctx, standingTime)
	roll := n.groups.Roll(ask, d)
	cancel()
	if ctx.Err() != nil {
		return g, context.Cause(ctx)
	}
	d = roll.Descriptor
	g.Prefix, g.Generation, g.View = d.Group.Prefix.String(), d.Group.Gen, d.View.Num
	g.Answering, g.Voters = roll.Voters()
	led := false
	for i, m := range d.View.Members {
		a := roll.Present[i]
		v := api.GroupMember{Peer: peer.ID(d.Peers[i].ID).String(), Role: m.Role.String(), State: api.MemberAnswers, View: a.View}
		switch {
		case a.Away:
			v.State = api.MemberSilent
		case !a.Answers:
			v.State = api.MemberWithout
		case a.Leading:
			v.Role, led = "leader", true
		}
		g.Members = append(g.Members, v)
	}
	switch {
	case !roll.Majority() && g.State == "":
		g.State = api.GroupDown
	case g.State != "":
	case led:
		g.State = api.GroupServing
	default:
		g.State = api.GroupLeaderless
	}
	return g, nil
}

// standingTime is how long members are waited for that do not answer where somebody only wants to know. A revival, which is for good, takes
// the time that [replicagroup.Host.Roll] takes.
const standingTime = time.Second

// prefixOf returns the prefix that people mean.
func (n *Node) prefixOf(of string) (keyspace.Prefix, error) {
	p, err := keyspace.ParsePrefix(of)
	switch {
	case of == rootName, err == nil && p.Len == 0:
		return keyspace.Prefix{}, nil
	case err == nil && n.genesis.OwnGroups && p.Len == keyspace.PrefixBitsMax:
		return p, nil
	case err == nil && int(p.Len) != n.genesis.Depth:
		return p, fmt.Errorf("%w: %v: its prefixes have %d bits", api.ErrPrefix, p, n.genesis.Depth)
	case err == nil:
		return p, nil
	}
	if err := lockservice.CheckName(of); err != nil {
		return p, err
	}
	return n.genesis.PrefixOf(keyspace.Preimage(of).Key()), nil
}

// ownOf returns the prefix of the own group of what people named, if that is a lock's name, and it has one.
func (n *Node) ownOf(ctx context.Context, of string) (keyspace.Prefix, bool) {
	if _, err := keyspace.ParsePrefix(of); err == nil || of == rootName || !n.genesis.OwnGroups {
		return keyspace.Prefix{}, false
	}
	p := placement.KeyPrefix(keyspace.Preimage(of).Key())
	ask, cancel := context.WithTimeout(ctx, groupTimeout)
	defer cancel()
	_, err := n.groups.Child(ask, p)
	if err != nil && !errors.Is(err, replicagroup.ErrNoGroup) {
		_, known := n.groups.Known(p) // the group of its prefix does not answer
		return p, known
	}
	return p, err == nil
}

// OwnGroup implements [api.Node]: it gives the key of a lock's name a group of its own, or takes it back with remove
// ([replicagroup.Host.GiveOwnGroup], [replicagroup.Host.TakeBackKey]). It blocks until the lock is served again, which as a rule takes
// less than a second, or ctx ends.
func (n *Node) OwnGroup(ctx context.Context, name string, remove bool) (api.Served, error) {
	if err := lockservice.CheckName(name); err != nil {
		return api.Served{}, err
	}
	at := keyspace.Preimage(name)
	var d placement.Descriptor
	var err error
	if remove {
		if err = n.groups.TakeBackKey(ctx, at); err == nil {
			d, err = n.groups.Locate(ctx, at.Key())
		}
	} else {
		d, err = n.groups.GiveOwnGroup(ctx, at)
	}
	switch {
	case errors.Is(err, replicagroup.ErrNoOwnGroups):
		return api.Served{}, fmt.Errorf("%w: this overlay was founded without own groups of locks; only one of \"latchkey init --own-groups\" has them", api.ErrOwn)
	case errors.Is(err, replicagroup.ErrHasOwn):
		return api.Served{}, fmt.Errorf("%w: lock %q has a group of its own already; latchkey group info %q shows it", api.ErrOwn, name, name)
	case errors.Is(err, replicagroup.ErrNoOwn):
		return api.Served{}, fmt.Errorf("%w: lock %q has no group of its own; that of its prefix serves it", api.ErrOwn, name)
	case errors.Is(err, replicagroup.ErrRefused):
		return api.Served{}, fmt.Errorf("%w: lock %q: %s", api.ErrOwn, name, strings.TrimPrefix(err.Error(), replicagroup.ErrRefused.Error()+": "))
	case errors.Is(err, replicagroup.ErrNoQuorum):
		return api.Served{}, fmt.Errorf("%w: %w", lockservice.ErrNoQuorum, err)
	case err != nil:
		return api.Served{}, err
	}
	v := api.Served{Name: name, Prefix: d.Group.Prefix.String(), Generation: d.Group.Gen, Members: []string{}}
	for _, m := range d.Peers {
		v.Members = append(v.Members, peer.ID(m.ID).String())
	}
	return v, nil
}

// takenFor says that what people named was taken for a lock's name, if it was: they may have meant a prefix.
func (n *Node) takenFor(of string) string {
	if _, err := keyspace.ParsePrefix(of); err == nil {
		return ""
	}
	meant, err := keyspace.ParsePrefix(fmt.Sprintf("%s/%d", of, n.genesis.Depth))
	if err != nil {
		return fmt.Sprintf(" (%.80q was taken for a lock's name; a prefix is written like %v)", of, n.genesis.PrefixOf(keyspace.Key{0xa3}))
	}
	return fmt.Sprintf(" (%.80q was taken for a lock's name; the prefix is written %v)", of, meant)
}

// ReviveGroup implements [api.Node]: it makes the generation after gen of a prefix's group, which has lost its majority for good
// ([replicagroup.Host.Revive]). It blocks until the new group runs, which takes some seconds, or ctx ends.
func (n *Node) ReviveGroup(ctx context.Context, prefix string, gen uint64, force bool) (api.Revived, error) {
	p, err := keyspace.ParsePrefix(prefix)
	own := n.genesis.OwnGroups && p.Len == keyspace.PrefixBitsMax
	if err != nil || int(p.Len) != n.genesis.Depth && !own {
		return api.Revived{}, fmt.Errorf("%w: %.80q: its prefixes have %d bits, and are written like %v",
			api.ErrPrefix, prefix, n.genesis.Depth, n.genesis.PrefixOf(keyspace.Key{0xa3}))
	}
	d, err := n.groups.Revive(ctx, p, gen, force)
	switch {
	case errors.Is(err, replicagroup.ErrAlive):
		return api.Revived{}, fmt.Errorf("%w: %w", api.ErrAlive, err)
	case errors.Is(err, replicagroup.ErrNoGroup):
		return api.Revived{}, fmt.Errorf("%w: %w", api.ErrNoGroup, err)
	case errors.Is(err, replicagroup.ErrNoQuorum):
		return api.Revived{}, fmt.Errorf("%w: the root, which alone can revive a group: %w", lockservice.ErrNoQuorum, err)
	case errors.Is(err, replicagroup.ErrRefused):
		return api.Revived{}, fmt.Errorf("node: group %v is not revived: %s; see latchkey group info %v", p, strings.TrimPrefix(err.Error(), replicagroup.ErrRefused.Error()+": "), p)
	case err != nil:
		return api.Revived{}, err
	}
	v := api.Revived{Prefix: d.Group.Prefix.String(), Generation: d.Group.Gen, Embargo: n.genesis.Drift.Stretch(n.genesis.TTLMax)}
	if n.genesis.OwnGroups && !own { // own groups may have survived it
		v.Embargo = placement.KeysQuarantine(n.genesis)
	}
	v.EmbargoMS = v.Embargo.Milliseconds()
	for _, m := range d.Peers {
		v.Members = append(v.Members, peer.ID(m.ID).String())
	}
	return v, nil
}

// Graves implements [api.Node]: what this peer has put aside of generations that are over.
func (n *Node) Graves(context.Context) (api.Graveyard, error) {
	y := api.Graveyard{Graves: []api.Grave{}, Most: replicagroup.GravesMax}
	yard, ok := n.store.(replicagroup.Graveyard)
	if !ok {
		return y, nil
	}
	all, err := yard.Graves()
	for _, g := range all {
		y.Graves = append(y.Graves, graveOf(g))
	}
	return y, err
}

func graveOf(g replicagroup.Grave) api.Grave {
	return api.Grave{Prefix: g.Group.Prefix.String(), Generation: g.Group.Gen, Replica: uint64(g.Self), Buried: g.Buried, Bytes: g.Bytes}
}

// DeleteGrave implements [api.Node]: it deletes what was put aside of one generation of a group. It blocks until that is durable.
func (n *Node) DeleteGrave(_ context.Context, of string, gen uint64) ([]api.Grave, error) {
	p, err := keyspace.ParsePrefix(of)
	switch {
	case of == rootName:
		p = keyspace.Prefix{}
	case err != nil:
		return nil, fmt.Errorf("%w: %.80q: its prefixes have %d bits, and are written like %v", api.ErrPrefix, of, n.genesis.Depth, n.genesis.PrefixOf(keyspace.Key{0xa3}))
	}
	yard, ok := n.store.(replicagroup.Graveyard)
	var gone []api.Grave
	if ok {
		all, err := yard.Graves()
		if err != nil {
			return nil, err
		}
		for _, g := range all {
			if g.Group.Prefix != p || g.Group.Gen != gen {
				continue
			}
			if err := yard.Purge(g.Group, g.Self); err != nil {
				return gone, err
			}
			gone = append(gone, graveOf(g))
		}
	}
	if len(gone) == 0 {
		return nil, fmt.Errorf("%w: nothing of generation %d.%d of %v was put aside here", api.ErrNoGroup, gen>>32, uint32(gen), p)
	}
	return gone, nil
}

// ProposeRoot implements [api.Node]: the reseed document, not yet signed, that makes this peer the founder of a new root.
func (n *Node) ProposeRoot(ctx context.Context) (api.RootProposal, error) {
	r, err := n.groups.ProposeRoot(ctx)
	if cause := context.Cause(ctx); cause != nil {
		return api.RootProposal{}, cause
	}
	if err != nil {
		return api.RootProposal{}, fmt.Errorf("%w: %w", api.ErrReseed, err)
	}
	doc, err := r.Propose(n.genesis)
	if err != nil {
		return api.RootProposal{}, fmt.Errorf("%w: %w", api.ErrReseed, err)
	}
	_, volatile := n.store.(*replicagroup.MemoryStore)
	v := api.RootProposal{Document: doc, Generation: uint32(r.OverlayGen), Volatile: volatile, Groups: r.Groups}
	if r.Survivor != "" {
		v.Survivor = r.Survivor.String()
	}
	return v, nil
}

// Reseed implements [api.Node]: it gives an overlay whose root group is lost for good another one, by a document that the root key has
// signed ([replicagroup.Host.Reseed]), unless a majority of the root's voters answers and force is not set. Where the document names
// this peer, it blocks until the new root leads here, or ctx ends.
func (n *Node) Reseed(ctx context.Context, doc []byte, force bool) (api.Reseeded, error) {
	r, err := placement.OpenReseed(n.genesis, doc)
	if err != nil {
		return api.Reseeded{}, fmt.Errorf("%w: %w", api.ErrReseed, err)
	}
	root, _ := n.groups.Known(keyspace.Prefix{})
	if root.Group != r.RootGroup() { // else it is a repeat
		roll := n.groups.Roll(ctx, root)
		if ctx.Err() != nil {
			return api.Reseeded{}, context.Cause(ctx)
		}
		if roll.Majority() && !force {
			return api.Reseeded{}, fmt.Errorf("%w: of the root's voters: %s", api.ErrAlive, roll)
		}
	}
	if err := n.groups.Reseed(doc); errors.Is(err, replicagroup.ErrReseed) {
		return api.Reseeded{}, fmt.Errorf("%w: %w", api.ErrReseed, err)
	} else if err != nil {
		return api.Reseeded{}, err
	}
	v := api.Reseeded{
		Generation: uint32(r.OverlayGen), Founder: peer.ID(r.Founders[0].ID).String(), Quarantine: n.genesis.Drift.Stretch(n.genesis.Lease),
	}
	v.QuarantineMS = v.Quarantine.Milliseconds()
	poll := time.NewTicker(leadPoll)
	defer poll.Stop()
	for r.Founders[0].ID == string(n.host.ID()) {
		groups, err := n.groups.Status(ctx)
		if err != nil {
			return v, err
		}
		if slices.ContainsFunc(groups, func(g replicagroup.ReplicaStatus) bool { return g.Group == r.RootGroup() && g.Status.Leading }) {
			break
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return v, fmt.Errorf("%w: the new root does not lead yet: %w", lockservice.ErrNoQuorum, context.Cause(ctx))
		}
	}
	return v, nil
}

// leadPoll is how often Reseed looks whether the new root leads.
const leadPoll = 20 * time.Millisecond
