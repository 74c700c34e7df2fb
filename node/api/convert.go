package api

import (
	"math"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"latchkey/lockservice"
	latchkeyv1 "latchkey/node/api/latchkey/v1"
)

func encodeGrant(g lockservice.Grant) *latchkeyv1.Grant {
	return &latchkeyv1.Grant{Name: g.Name, Token: uint64(g.Token), Ttl: durationpb.New(g.TTL), Holder: g.Holder, Req: g.Req, Waited: g.Waited}
}

func decodeGrant(g *latchkeyv1.Grant) lockservice.Grant {
	return lockservice.Grant{
		Name: g.Name, Token: lockservice.Token(g.Token), TTL: g.Ttl.AsDuration(), Holder: g.Holder, Req: g.Req, Waited: g.Waited,
	}
}

// protocols are those of package lockservice by their numbers here. A number of a later version is none that anybody has.
var protocols = []lockservice.Protocol{lockservice.ProtocolAuto, lockservice.ProtocolSigma, lockservice.ProtocolGroup}

func protocolOf(p latchkeyv1.Protocol) lockservice.Protocol {
	if p < 0 || int(p) >= len(protocols) {
		return math.MaxUint8
	}
	return protocols[p]
}

func encodeProtocol(p lockservice.Protocol) latchkeyv1.Protocol {
	if i := slices.Index(protocols, p); i >= 0 {
		return latchkeyv1.Protocol(i)
	}
	return math.MaxUint8 // refused by whoever reads it
}

// encodeParty returns nil for nobody.
func encodeParty(p lockservice.Party) *latchkeyv1.Party {
	if p == (lockservice.Party{}) {
		return nil
	}
	return &latchkeyv1.Party{Session: p.Session, Peer: p.Peer}
}

func decodeParty(p *latchkeyv1.Party) lockservice.Party {
	return lockservice.Party{Session: p.GetSession(), Peer: p.GetPeer()}
}

func encodeInfo(i lockservice.Info) *latchkeyv1.InfoResponse {
	res := &latchkeyv1.InfoResponse{
		Name: i.Name, Held: i.Held, Holder: encodeParty(i.Holder), Token: uint64(i.Token),
		Ttl: durationpb.New(i.TTL), LeaseLeft: durationpb.New(i.LeaseLeft), Confirmed: i.Confirmed, Waiting: int64(i.Waiting),
	}
	res.Value, res.Permits, res.Shared, res.Holding, res.DelayLeft = i.Value, uint32(i.Permits), i.Shared, int64(i.Holding), durationpb.New(i.DelayLeft)
	res.Protocol, res.TakenOver = encodeProtocol(i.Protocol), i.TakenOver
	for _, h := range i.Holders {
		res.Holders = append(res.Holders, &latchkeyv1.Holder{
			Party: encodeParty(h.Party), Token: uint64(h.Token), Ttl: durationpb.New(h.TTL), LeaseLeft: durationpb.New(h.LeaseLeft), Confirmed: h.Confirmed,
		})
	}
	for _, w := range i.Waiters {
		res.Waiters = append(res.Waiters, &latchkeyv1.Waiter{Party: encodeParty(w.Party), Ttl: durationpb.New(w.TTL), Shared: w.Shared})
	}
	for _, b := range i.Breaks {
		res.Breaks = append(res.Breaks, &latchkeyv1.Broken{
			Token: uint64(b.Token), Holder: encodeParty(b.Holder), Holders: int64(b.Holders), By: encodeParty(b.By), At: encodeTime(b.At),
		})
	}
	return res
}

func decodeInfo(r *latchkeyv1.InfoResponse) lockservice.Info {
	i := lockservice.Info{
		Name: r.Name, Held: r.Held, Holder: decodeParty(r.Holder), Token: lockservice.Token(r.Token),
		TTL: r.Ttl.AsDuration(), LeaseLeft: r.LeaseLeft.AsDuration(), Confirmed: r.Confirmed, Waiting: int(r.Waiting),
	}
	i.Value, i.Permits, i.Shared, i.Holding, i.DelayLeft = r.Value, int(r.Permits), r.Shared, int(r.Holding), r.DelayLeft.AsDuration()
	i.Protocol, i.TakenOver = protocolOf(r.Protocol), r.TakenOver
	for _, h := range r.Holders {
		i.Holders = append(i.Holders, lockservice.Holder{
			Party: decodeParty(h.Party), Token: lockservice.Token(h.Token), TTL: h.Ttl.AsDuration(), LeaseLeft: h.LeaseLeft.AsDuration(), Confirmed: h.Confirmed,
		})
	}
	for _, w := range r.Waiters {
		i.Waiters = append(i.Waiters, lockservice.Waiter{Party: decodeParty(w.Party), TTL: w.Ttl.AsDuration(), Shared: w.Shared})
	}
	for _, b := range r.Breaks {
		i.Breaks = append(i.Breaks, lockservice.BrokenLock{
			Token: lockservice.Token(b.Token), Holder: decodeParty(b.Holder), Holders: int(b.Holders), By: decodeParty(b.By), At: decodeTime(b.At),
		})
	}
	return i
}

// encodeTime returns nil for no time at all.
func encodeTime(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func decodeTime(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

func encodeStatus(s Status) *latchkeyv1.StatusResponse {
	res := &latchkeyv1.StatusResponse{
		Peer: s.Peer, Overlay: s.Overlay, OverlayName: s.OverlayName, Version: s.Version, Started: encodeTime(s.Started),
		Mode: s.Mode, Hosting: s.Hosting, Reachability: s.Reachability,
		PeersConnected: uint32(s.PeersConnected), PeersKnown: uint32(s.PeersKnown),
		Groups: uint32(s.Groups), GroupsLeaderless: uint32(s.GroupsLeaderless), Revision: s.Revision,
		Applications: uint32(s.Applications), ObjectCopies: uint32(s.ObjectCopies), ShutOut: s.ShutOut,
		DurableObjects: uint32(s.DurableObjects), DurableHits: s.DurableHits, DurableMisses: s.DurableMisses, DurableRefused: s.DurableRefused,
	}
	if l := s.AllowList; l != nil {
		res.AllowList = &latchkeyv1.AllowList{AdminKey: l.AdminKey, Number: l.Number}
	}
	for _, b := range s.Bootstrap {
		res.Bootstrap = append(res.Bootstrap, &latchkeyv1.BootstrapPeer{
			Peer: b.Peer, Addrs: b.Addrs, Connected: b.Connected, Tried: encodeTime(b.Tried), Error: b.Error,
		})
	}
	for _, r := range s.Refused {
		res.Refused = append(res.Refused, &latchkeyv1.Refused{Reason: r.Reason, Count: r.Count})
	}
	for _, a := range s.Alarms {
		res.Alarms = append(res.Alarms, &latchkeyv1.Alarm{
			Peer: a.Peer, Other: a.Other, Store: a.Store, At: encodeTime(a.At), Refused: a.Refused, Text: a.Text,
		})
	}
	res.Down = encodeHosted(s.Down)
	return res
}

func encodeHosted(groups []HostedGroup) []*latchkeyv1.HostedGroup {
	all := make([]*latchkeyv1.HostedGroup, len(groups))
	for i, g := range groups {
		all[i] = &latchkeyv1.HostedGroup{
			Prefix: g.Prefix, Generation: g.Generation, View: g.View, Role: g.Role, Leader: g.Leader, Voters: g.Voters,
			Lag: g.Lag, Quiesced: g.Quiesced, Leaderless: encodeTime(g.Leaderless),
			Unleased: g.Unleased, Key: g.Key, Sealed: g.Sealed,
		}
	}
	return all
}

func decodeHosted(groups []*latchkeyv1.HostedGroup) []HostedGroup {
	all := make([]HostedGroup, len(groups))
	for i, g := range groups {
		all[i] = HostedGroup{
			Prefix: g.Prefix, Generation: g.Generation, View: g.View, Role: g.Role, Leader: g.Leader, Voters: list(g.Voters),
			Lag: g.Lag, Quiesced: g.Quiesced, Leaderless: decodeTime(g.Leaderless),
			Unleased: g.Unleased, Key: g.Key, Sealed: g.Sealed,
		}
	}
	return all
}

func encodeGraves(graves []Grave) []*latchkeyv1.Grave {
	all := make([]*latchkeyv1.Grave, len(graves))
	for i, g := range graves {
		all[i] = &latchkeyv1.Grave{Prefix: g.Prefix, Generation: g.Generation, Replica: g.Replica, Buried: encodeTime(g.Buried), Bytes: uint64(g.Bytes)}
	}
	return all
}

func decodeGraves(graves []*latchkeyv1.Grave) []Grave {
	all := make([]Grave, len(graves))
	for i, g := range graves {
		all[i] = Grave{Prefix: g.Prefix, Generation: g.Generation, Replica: g.Replica, Buried: decodeTime(g.Buried), Bytes: int64(g.Bytes)}
	}
	return all
}

func encodeStanding(g GroupStanding) *latchkeyv1.GroupResponse {
	res := &latchkeyv1.GroupResponse{
		Prefix: g.Prefix, Generation: g.Generation, View: g.View, State: g.State, Voters: uint32(g.Voters), Answering: uint32(g.Answering),
		Directory: g.Directory, Former: g.Former, Parent: g.Parent, Key: g.Key,
	}
	for _, m := range g.Members {
		res.Members = append(res.Members, &latchkeyv1.GroupMember{Peer: m.Peer, Role: m.Role, State: m.State, View: m.View})
	}
	return res
}

func decodeStanding(r *latchkeyv1.GroupResponse) GroupStanding {
	g := GroupStanding{
		Prefix: r.Prefix, Generation: r.Generation, View: r.View, State: r.State, Voters: int(r.Voters), Answering: int(r.Answering),
		Directory: r.Directory, Former: r.Former, Parent: r.Parent, Key: r.Key, Members: make([]GroupMember, len(r.Members)),
	}
	for i, m := range r.Members {
		g.Members[i] = GroupMember{Peer: m.Peer, Role: m.Role, State: m.State, View: m.View}
	}
	return g
}

func decodeStatus(r *latchkeyv1.StatusResponse) Status {
	s := Status{
		Peer: r.Peer, Overlay: r.Overlay, OverlayName: r.OverlayName, Version: r.Version, Started: decodeTime(r.Started),
		Mode: r.Mode, Hosting: r.Hosting, Reachability: r.Reachability,
		PeersConnected: int(r.PeersConnected), PeersKnown: int(r.PeersKnown),
		Groups: int(r.Groups), GroupsLeaderless: int(r.GroupsLeaderless),
		Bootstrap: make([]BootstrapPeer, len(r.Bootstrap)), Refused: make([]Refused, len(r.Refused)), // empty, not null, in JSON
		Alarms: make([]Alarm, len(r.Alarms)), Revision: r.Revision,
		Applications: int(r.Applications), ObjectCopies: int(r.ObjectCopies), ShutOut: r.ShutOut,
		DurableObjects: int(r.DurableObjects), DurableHits: r.DurableHits, DurableMisses: r.DurableMisses, DurableRefused: r.DurableRefused,
	}
	if l := r.AllowList; l != nil {
		s.AllowList = &AllowList{AdminKey: l.AdminKey, Number: l.Number}
	}
	for i, b := range r.Bootstrap {
		s.Bootstrap[i] = BootstrapPeer{Peer: b.Peer, Addrs: list(b.Addrs), Connected: b.Connected, Tried: decodeTime(b.Tried), Error: b.Error}
	}
	s.Down = decodeHosted(r.Down)
	for i, f := range r.Refused {
		s.Refused[i] = Refused{Reason: f.Reason, Count: f.Count}
	}
	for i, a := range r.Alarms {
		s.Alarms[i] = Alarm{Peer: a.Peer, Other: a.Other, Store: a.Store, At: decodeTime(a.At), Refused: a.Refused, Text: a.Text}
	}
	return s
}
