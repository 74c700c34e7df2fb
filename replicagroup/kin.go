package replicagroup

import (
	"encoding/binary"
	"slices"
	"sync"

	"latchkey/replicagroup/order"
	"latchkey/replicagroup/placement"
)

// kinMax bounds the memberships that [kin] remembers. When there are more it begins anew: what is shared stays so.
const kinMax = 4096

// kin lets groups with the same members share what their descriptors say of them. A peer that keeps ten thousand groups keeps them
// with the same few others, and the members of a group take more room than the rest of its descriptor. The zero value is ready. It
// is safe for concurrent use.
type kin struct {
	mu    sync.Mutex
	known map[string]membership // by all they hold
}

// membership is what a descriptor says of members. Nobody changes it.
type membership struct {
	members []order.Member
	peers   []placement.Peer
}

// share returns d with its members in common with earlier ones of the same. Neither may be changed afterwards.
func (k *kin) share(d placement.Descriptor) placement.Descriptor {
	var b []byte
	text := func(s string) { b = append(binary.AppendUvarint(b, uint64(len(s))), s...) }
	for _, m := range d.View.Members {
		b = binary.AppendUvarint(b, uint64(m.ID))
		b = append(append(append(b, m.Peer[:]...), m.Store[:]...), byte(m.Role))
		text(m.PeerID)
	}
	for _, p := range d.Peers {
		text(p.ID)
		b = binary.AppendUvarint(b, uint64(len(p.Addrs)))
		for _, a := range p.Addrs {
			text(a)
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	same, ok := k.known[string(b)]
	if !ok {
		if k.known == nil || len(k.known) >= kinMax {
			k.known = make(map[string]membership)
		}
		same = membership{slices.Clip(d.View.Members), slices.Clip(d.Peers)}
		k.known[string(b)] = same
	}
	d.View.Members, d.Peers = same.members, same.peers
	return d
}
