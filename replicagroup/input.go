package replicagroup

import (
	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
)

// A service whose machine is an automaton of a protocol of its own needs no sessions: the protocol repeats what is lost, and takes what is
// repeated for what it is. Its driver gives the leader's host inputs ([Host.Input]), which the group orders and the machine takes by
// [session.Insider].ApplyOwn; and it gets what the machine posts ([session.Context].Post), at the leader's host alone.

// Outlet takes what the machines of a service post in a group that is led here, in the order of its log. It is called by the goroutines
// that run replicas, several at a time, and must not block.
type Outlet func(g order.GroupID, posted any)

// inputsMax bounds the inputs of one replica that are proposed and not executed. More are dropped; who sent them repeats them.
const inputsMax = 4096

// inputCommand marks the proposals of inputs: nobody waits for them.
const inputCommand = "input"

// Input has the group of a key's prefix order an input of a service, if that group is led here; else it is dropped, as it is when too much of
// the same peer waits here. The driver has made sure that the peer may say this. data is at most [order.DataBytesMax] long, and
// not changed any more. It does not block.
func (h *Host) Input(from peer.ID, key keyspace.Key, service string, data []byte) {
	d, ok := h.locator.cached(h.genesis.PrefixOf(key))
	if !ok || len(data) > order.DataBytesMax {
		return
	}
	e := &inputEvent{peer: from, group: d.Group, service: service, data: data}
	if !h.voterLoads.take(from, len(data)) {
		h.counters.voterDropped.Add(1)
		return
	}
	if !h.shardOf(e.group).box.TryPut(e) {
		h.voterLoads.release(from, len(data))
		h.counters.voterDropped.Add(1)
	}
}

type inputEvent struct {
	peer    peer.ID
	group   order.GroupID
	service string
	data    []byte
}

func (e *inputEvent) handle(s *shard) {
	s.host.voterLoads.release(e.peer, len(e.data))
	r, ok := s.replicas[e.group.Life()]
	if !ok || r.halted {
		return
	}
	r.decide()
	if !r.leading || !r.leased() {
		return
	}
	if r.inputs >= inputsMax {
		s.host.counters.voterDropped.Add(1)
		return
	}
	if r.proposals == nil {
		r.waiting, r.proposals = make(map[commandKey][]caller), make(map[uint64]commandKey)
	}
	r.inputs++
	r.nextRef++
	r.proposals[r.nextRef] = commandKey{session: inputCommand}
	r.gather(order.Propose{Ref: r.nextRef, Stamp: s.stamp(), Cmd: order.Command{Author: dht.NodeIDOf(e.peer), Service: e.service, Data: e.data}})
}

// Watch counts one more reason to watch a peer with the overlay's failure detector, and closely, and Unwatch one less. first says that nobody
// here watched it before, so what was said of it earlier is forgotten. They do not block.
func (h *Host) Watch(p peer.ID) (first bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	first = h.watched[p] == 0
	h.activateLocked(p, true)
	h.watchLocked(p)
	return first
}

// Unwatch undoes one call of Watch.
func (h *Host) Unwatch(p peer.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.activateLocked(p, false)
	h.unwatchLocked(p)
}
