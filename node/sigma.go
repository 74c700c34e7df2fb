package node

import (
	"context"

	"latchkey/dht/keyspace"
	"latchkey/lockservice"
	sigmapb "latchkey/lockservice/sigma/pb"
	"latchkey/lockservice/voterlog"
)

// sigmaParts are the node's ends of protocol sigma.
type sigmaParts struct {
	voters  *lockservice.SigmaVoters
	clients *lockservice.Sigma
}

// newSigma makes both ends, and has answers that come for the clients given to them.
func (n *Node) newSigma(log *voterlog.Log) *sigmaParts {
	limits := lockservice.LimitsOf(n.genesis.TTLMax, int64(n.genesis.Drift))
	p := &sigmaParts{
		voters: lockservice.NewSigmaVoters(lockservice.SigmaVotersConfig{Limits: limits, Log: log}),
		clients: lockservice.NewSigma(lockservice.SigmaConfig{
			Net: sigmaNet{n}, Depth: n.genesis.Depth, Limits: limits, Clock: n.clock, Self: n.host.ID().String(), PeerName: n.peerName,
			Prefixes: n.prefixes, Meter: &n.meter,
		}),
	}
	p.voters.OnAnswer(p.clients.Deliver)
	return p
}

// sigmaNet is the overlay as clients of protocol sigma see it.
type sigmaNet struct{ n *Node }

// Locate implements [lockservice.SigmaNet].
func (s sigmaNet) Locate(ctx context.Context, key keyspace.Key, fresh bool) (g lockservice.SigmaGroup, err error) {
	locate := s.n.groups.Locate
	if fresh {
		locate = s.n.groups.Relocate
	}
	d, err := locate(ctx, key)
	if err != nil {
		return g, err
	}
	g.Group = sigmapb.Group{Prefix: d.Group.Prefix, Gen: d.Group.Gen}
	for _, id := range d.View.Voters() {
		m, _ := d.View.Member(id)
		g.Voters = append(g.Voters, m.Peer)
	}
	return g, nil
}

// Send implements [lockservice.SigmaNet].
func (s sigmaNet) Send(to keyspace.NodeID, key keyspace.Key, frame []byte) {
	p, ok := s.n.overlay.PeerOf(to)
	if !ok {
		return // a look-up will tell
	}
	if err := s.n.overlay.Send(p, key, sigmapb.Service, frame); err != nil {
		log.Debugw("a frame is lost", "peer", p, "err", err)
	}
}

// SigmaStats counts what the node's clients of protocol sigma have done: nothing where the overlay does not run it.
func (n *Node) SigmaStats() lockservice.SigmaStats {
	if n.sigma == nil {
		return lockservice.SigmaStats{}
	}
	return n.sigma.clients.Stats()
}
