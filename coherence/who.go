package coherence

import (
	"encoding/json"
	"fmt"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht"
	"latchkey/dht/keyspace"
)

// An owner is told by a manager who is to have a copy, by its point of the key space alone, and may never have met it: clients are in nobody's routing
// table. Nor has a new leader met those whom its predecessor served. The voters of the group have: a node's first request goes to all of them.

// serviceWho is the overlay's service by which a peer that is known by its node id only is asked for. The question is the id; the answer is a
// [peer.AddrInfo] in JSON, and empty where the peer is not known.
const serviceWho = "coherence/who"

const (
	// whoBytesMax bounds an answer.
	whoBytesMax = 4 << 10
	// whoAddrsMax bounds the addresses in one.
	whoAddrsMax = 16
	// askingMax bounds the questions of a host that are under way. What would ask more is dropped, and repeated.
	askingMax = 256
)

// answerWho says where a peer is.
func (s *Service) answerWho(req *dht.Request) {
	var id keyspace.NodeID
	if len(req.Data) != copy(id[:], req.Data) || len(req.Data) != len(id) || req.OneWay() {
		req.Misbehaved("malformed question about a node")
		return
	}
	var answer []byte
	if p, ok := s.overlay.PeerOf(id); ok {
		info := s.overlay.Info(p)
		info.Addrs = info.Addrs[:min(len(info.Addrs), whoAddrsMax)]
		if b, err := json.Marshal(info); err == nil && len(b) <= whoBytesMax {
			answer = b
		}
	}
	req.Reply(answer)
}

// decodeWho reads an answer about a node. Whoever gives it can name no other peer: a node's id is the hash of its peer's.
func decodeWho(id keyspace.NodeID, b []byte) (info peer.AddrInfo, err error) {
	if len(b) > whoBytesMax {
		return info, fmt.Errorf("coherence: %d bytes about a node", len(b))
	}
	if err := json.Unmarshal(b, &info); err != nil {
		return info, fmt.Errorf("coherence: about a node: %w", err)
	}
	if dht.NodeIDOf(info.ID) != id || len(info.Addrs) > whoAddrsMax {
		return info, fmt.Errorf("coherence: peer %v with %d addresses is not the node asked for", info.ID, len(info.Addrs))
	}
	return info, nil
}

// introduce asks the voters of a key's group for a node, and calls then when the first has named it. It does not block.
func (s *Service) introduce(key keyspace.Key, id keyspace.NodeID, then func(peer.ID)) {
	d, ok := s.groups.Known(s.genesis.PrefixOf(key))
	if !ok {
		return
	}
	var once sync.Once
	for _, voter := range d.View.Voters() {
		p, _ := d.Peer(voter)
		if peer.ID(p.ID) == s.overlay.Self() {
			continue
		}
		s.mu.Lock()
		room := s.asking < askingMax
		if room {
			s.asking++
		}
		s.mu.Unlock()
		if !room {
			return
		}
		s.overlay.Go(peer.ID(p.ID), keyspace.Key{}, serviceWho, id[:], repeatMost*repeatEvery, func(b []byte, err error) {
			s.mu.Lock()
			s.asking--
			s.mu.Unlock()
			if err != nil || len(b) == 0 {
				return
			}
			info, err := decodeWho(id, b)
			if err != nil {
				log.Debugw("a node is not introduced", "node", id, "err", err)
				return
			}
			once.Do(func() {
				s.overlay.Learn(info)
				then(info.ID)
			})
		})
	}
}
