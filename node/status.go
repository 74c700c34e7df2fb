package node

import (
	"context"
	"slices"
	"strings"

	"github.com/libp2p/go-libp2p/core/network"

	"latchkey/dht"
	"latchkey/node/api"
	"latchkey/node/config"
	"latchkey/replicagroup/order"
)

// Refused returns how many this node has turned away since its host or itself was made, by reason; reasons without any are absent.
func (n *Node) Refused() map[Refusal]uint64 {
	counts := n.refusals.Counts()
	resets := n.overlay.Stats().StreamsReset
	for why, reason := range map[Refusal]dht.Reason{
		RefusedOverlay: dht.ReasonOverlay, RefusedVersion: dht.ReasonVersion, RefusedHello: dht.ReasonRefused,
		RefusedTwin: dht.ReasonTwin,
	} {
		if resets[reason] > 0 {
			counts[why] += resets[reason]
		}
	}
	return counts
}

// Status implements [api.Node]: how this peer is doing. It takes in first what has changed about the allow-list in the peer's directory,
// so that whoever has changed it knows that it is in effect. It asks its replicas, which answer at once unless they are overloaded; ctx
// ends the wait.
func (n *Node) Status(ctx context.Context) (api.Status, error) {
	s := api.Status{
		Peer: n.host.ID().String(), Overlay: n.genesis.ID().Hex(), OverlayName: n.genesis.Name, Version: Version(), Started: n.started,
		Mode: string(n.mode()), Hosting: n.overlay.Hosting(), Reachability: strings.ToLower(n.overlay.Reachability().String()),
		Bootstrap: []api.BootstrapPeer{}, Refused: []api.Refused{}, Alarms: []api.Alarm{}, Down: []api.HostedGroup{}, Revision: Revision(),
	}
	if l := n.access.newest(); l != nil {
		s.AllowList = &api.AllowList{AdminKey: l.Admin(), Number: l.Number()}
	}
	s.ShutOut = n.access.shutOut()
	for _, p := range n.overlay.Peers() {
		s.PeersKnown++
		if p.Connected {
			s.PeersConnected++
		}
	}
	groups, err := n.groups.Status(ctx)
	if err != nil {
		return api.Status{}, err
	}
	s.Groups = len(groups)
	for _, g := range n.hostedGroups(groups) {
		if !g.Leaderless.IsZero() {
			s.GroupsLeaderless++
			s.Down = append(s.Down, g)
		}
	}
	slices.SortStableFunc(s.Down, func(a, b api.HostedGroup) int { return a.Leaderless.Compare(b.Leaderless) })
	s.Down = s.Down[:min(len(s.Down), api.DownMax)]
	objects := n.objects.Stats()
	s.Applications, s.ObjectCopies = objects.Applications, objects.Copies
	durables := n.objects.DurableStats()
	s.DurableObjects, s.DurableHits, s.DurableMisses, s.DurableRefused = durables.Objects, durables.Hits, durables.Misses, durables.Refused
	for _, b := range n.overlay.Bootstrap() {
		s.Bootstrap = append(s.Bootstrap, bootstrapStatus(b, n.host.Network().Connectedness(b.Info.ID) == network.Connected))
	}
	for _, a := range n.overlay.Alarms() {
		s.Alarms = append(s.Alarms, alarmStatus(a, n.overlay.Refuses(a.Peer, a.Store)))
	}
	for why, count := range n.Refused() {
		s.Refused = append(s.Refused, api.Refused{Reason: string(why), Count: count})
	}
	slices.SortFunc(s.Refused, func(a, b api.Refused) int { return strings.Compare(a.Reason, b.Reason) })
	return s, nil
}

// bootstrapStatus tells of one bootstrap peer. Why the last attempt failed is over once the peer is connected: it may have dialled us.
func bootstrapStatus(b dht.BootstrapPeer, connected bool) api.BootstrapPeer {
	p := api.BootstrapPeer{Peer: b.Info.ID.String(), Connected: connected, Tried: b.At}
	for _, a := range b.Info.Addrs {
		p.Addrs = append(p.Addrs, a.String())
	}
	if b.Err != nil && !connected {
		p.Error = strings.Join(strings.Fields(b.Err.Error()), " ")
	}
	return p
}

func alarmStatus(a dht.Alarm, refused bool) api.Alarm {
	s := api.Alarm{Peer: a.Peer.String(), At: a.At, Refused: refused, Text: a.String()}
	if a.Other != "" {
		s.Other = a.Other.String()
	}
	if a.Store != [16]byte{} {
		s.Store = order.StoreID(a.Store).String()
	}
	return s
}

// mode is what the node was made to be.
func (n *Node) mode() config.Mode {
	switch {
	case n.overlay.Auto():
		return config.ModeAuto
	case n.overlay.Hosting():
		return config.ModeServer
	}
	return config.ModeClient
}
