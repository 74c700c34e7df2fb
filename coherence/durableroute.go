package coherence

import (
	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/coherence/durable"
	"latchkey/coherence/durable/cachedobject"
	"latchkey/coherence/durable/copies"
	durablepb "latchkey/coherence/durable/pb"
	"latchkey/coherence/protocol"
	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/internal/driver"
)

// startDurable makes the node's part in durable objects.
func (s *Service) startDurable() {
	s.durable = copies.New(copies.Config{
		Self: protocol.NodeRef{ID: s.overlay.Node(), Inc: s.draw()}, Clock: driver.NewClock(), Params: durable.ParamsOf(s.genesis.Drift), Router: durableRouter{s},
	})
}

// durableRouter carries what a node says of durable objects to their groups. Who leads is known as it is for the managers of volatile ones.
type durableRouter struct{ s *Service }

// Whither implements [copies.Router].
func (r durableRouter) Whither(g keyspace.Prefix, all bool) cachedobject.Whither {
	s := r.s
	d, ok := s.groups.Known(g)
	if !ok {
		return cachedobject.Whither{Reach: cachedobject.Nobody}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	leader, known := s.leaders[g]
	if all { // who leads does not answer
		delete(s.leaders, g)
	}
	id := dht.NodeIDOf(leader)
	if _, member := d.View.MemberAt(id); known && member && !all {
		return cachedobject.Whither{Voter: id}
	}
	return cachedobject.Whither{Reach: cachedobject.Several}
}

// Send implements [copies.Router].
func (r durableRouter) Send(g keyspace.Prefix, to cachedobject.Whither, msgs []durable.Message) {
	s := r.s
	d, ok := s.groups.Known(g)
	if !ok || to.Reach == cachedobject.Nobody {
		s.seek(keyspace.Key(g.Bits), false, waiterBytes, func() { s.durable.Again(g) })
		return
	}
	var voters []peer.ID
	for _, id := range d.View.Voters() {
		if p, _ := d.Peer(id); to.Reach == cachedobject.Several || p.Node() == to.Voter {
			voters = append(voters, peer.ID(p.ID))
		}
	}
	for len(msgs) > 0 {
		n, bytes := 0, 0
		for n < len(msgs) && n < durablepb.FrameMessagesMax {
			size := 128 + len(msgs[n].Object)
			if v := msgs[n].Value; v != nil {
				size += len(v.Bytes)
			}
			if bytes += size; n > 0 && bytes > durablepb.FrameBytesSoft {
				break
			}
			n++
		}
		frame, err := durablepb.EncodePacket(nil, &durablepb.Packet{Prefix: g, Gen: d.Group.Gen, Messages: msgs[:n]})
		msgs = msgs[n:]
		if err != nil {
			log.Errorw("messages about durable objects are not sent", "err", err)
			continue
		}
		for _, p := range voters {
			if err := s.overlay.Send(p, keyspace.Key{}, durablepb.ServiceLeader, frame); err != nil {
				log.Debugw("messages about durable objects are lost", "peer", p, "err", err)
			}
		}
	}
}

// Seek implements [copies.Router].
func (r durableRouter) Seek(g keyspace.Prefix) {
	r.s.seek(keyspace.Key(g.Bits), true, waiterBytes, func() { r.s.durable.Again(g) })
}

// receiveDurable takes what a voter says of durable objects. Only members of their group do.
func (s *Service) receiveDurable(req *dht.Request) {
	p, err := durablepb.DecodePacket(req.Data, s.overlay.Node(), false)
	switch {
	case err != nil:
		req.Misbehaved("malformed message about a durable object")
		return
	case !req.OneWay():
		req.Misbehaved("a message about a durable object awaits an answer")
		return
	case int(p.Prefix.Len) != s.genesis.Depth || s.durable == nil:
		return
	}
	key := keyspace.Key(p.Prefix.Bits)
	if s.member(req.From, key) {
		s.takeDurable(req.From, &p)
		return
	}
	// The group may have moved on, or is not known here.
	s.seek(key, true, waiterBytes+len(req.Data), func() {
		if s.member(req.From, key) {
			s.takeDurable(req.From, &p)
		}
	})
}

// takeDurable takes what a member of a group says.
func (s *Service) takeDurable(from peer.ID, p *durablepb.Packet) {
	if len(p.Messages) > 0 {
		s.mu.Lock()
		s.leaders[p.Prefix] = from
		s.mu.Unlock()
		s.durable.Receive(p.Prefix, p.Messages)
	}
	if p.Where == nil {
		return
	}
	switch p.Where.Status {
	case durablepb.NotLeader:
		if s.followHint(from, p) {
			s.durable.Again(p.Prefix)
		}
	case durablepb.NotHere, durablepb.Moved:
		durableRouter{s}.Seek(p.Prefix)
	}
}

// followHint notes who leads a group, as a member that does not lead it believes, and reports whether that is news.
func (s *Service) followHint(from peer.ID, p *durablepb.Packet) bool {
	d, ok := s.groups.Known(p.Prefix)
	if !ok {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	was, known := s.leaders[p.Prefix]
	if known && was != from { // somebody else has answered since
		return false
	}
	m, ok := d.View.MemberAt(p.Where.Leader)
	if !ok || p.Where.Leader == dht.NodeIDOf(from) {
		delete(s.leaders, p.Prefix) // all are asked, at the next repeat
		return false
	}
	at, _ := d.Peer(m.ID)
	s.leaders[p.Prefix] = peer.ID(at.ID)
	return true
}
