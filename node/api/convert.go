package api

import (
	"google.golang.org/protobuf/types/known/durationpb"

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
	for _, w := range i.Waiters {
		res.Waiters = append(res.Waiters, &latchkeyv1.Waiter{Party: encodeParty(w.Party), Ttl: durationpb.New(w.TTL)})
	}
	return res
}

func decodeInfo(r *latchkeyv1.InfoResponse) lockservice.Info {
	i := lockservice.Info{
		Name: r.Name, Held: r.Held, Holder: decodeParty(r.Holder), Token: lockservice.Token(r.Token),
		TTL: r.Ttl.AsDuration(), LeaseLeft: r.LeaseLeft.AsDuration(), Confirmed: r.Confirmed, Waiting: int(r.Waiting),
	}
	for _, w := range r.Waiters {
		i.Waiters = append(i.Waiters, lockservice.Waiter{Party: decodeParty(w.Party), TTL: w.Ttl.AsDuration()})
	}
	return i
}
