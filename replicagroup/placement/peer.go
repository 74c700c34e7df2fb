package placement

import (
	"fmt"

	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
)

// Peer is a peer as messages between peers name it: its id and where to reach it.
type Peer struct {
	ID    string   // the bytes of its libp2p peer id, not their text form
	Addrs []string // multiaddresses in text form; may be empty, then the id has to be looked up
}

// Node returns the peer's point in the key space.
func (p Peer) Node() keyspace.NodeID { return keyspace.NodeIDOf(p.ID) }

// check says what is wrong with p, if anything.
func (p Peer) check() error {
	if p.ID == "" || len(p.ID) > PeerIDBytesMax {
		return fmt.Errorf("peer id of %d bytes (1 to %d)", len(p.ID), PeerIDBytesMax)
	}
	if len(p.Addrs) > AddrsMax {
		return fmt.Errorf("peer with %d addresses (at most %d)", len(p.Addrs), AddrsMax)
	}
	for _, a := range p.Addrs {
		if a == "" || len(a) > AddrBytesMax {
			return fmt.Errorf("address of %d bytes (1 to %d)", len(a), AddrBytesMax)
		}
		for i := range len(a) {
			if a[i] <= ' ' || a[i] > '~' {
				return fmt.Errorf("address %q has characters that no address has", a)
			}
		}
	}
	return nil
}

// Host is a peer with the store in which it keeps its replicas. A group's members and an overlay's founders are hosts.
type Host struct {
	Peer
	Store order.StoreID
}

// checkHosts says what keeps hosts from being the voters of a group that tolerates f crashes.
func checkHosts(hosts []Host, f int) error {
	if n := len(hosts); n%2 == 0 || n > 2*f+1 {
		return fmt.Errorf("%d voters (an odd number, at most %d)", n, 2*f+1)
	}
	for i, h := range hosts {
		if err := h.check(); err != nil {
			return err
		}
		if h.Store == (order.StoreID{}) {
			return fmt.Errorf("peer %v has no store", h.Node())
		}
		for _, g := range hosts[:i] {
			if g.ID == h.ID || g.Store == h.Store {
				return fmt.Errorf("peers %v and %v are the same or share a store", g.Node(), h.Node())
			}
		}
	}
	return nil
}

// firstView returns the view a group of these voters begins with: view 0, replica ids from 1 in the order given.
func firstView(hosts []Host) order.View {
	v := order.View{Next: order.ReplicaID(len(hosts) + 1)}
	for i, h := range hosts {
		v.Members = append(v.Members, order.Member{
			ID: order.ReplicaID(i + 1), Peer: h.Node(), Store: h.Store, Role: order.Voter, PeerID: h.ID,
		})
	}
	return v
}

func peersOf(hosts []Host) []Peer {
	peers := make([]Peer, len(hosts))
	for i, h := range hosts {
		peers[i] = h.Peer
	}
	return peers
}
