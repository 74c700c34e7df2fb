package replicagroup

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/replicagroup/order"
	"latchkey/replicagroup/pb"
	"latchkey/replicagroup/placement"
)

// publisher tells others of the views of groups that are led here (rule G5): at once those who keep descriptors, and the parent
// within [updateEvery]. Nobody depends on it: who hears nothing asks, and pays a retry.
type publisher struct {
	host *Host

	mu      sync.Mutex
	last    map[order.Life]*placement.Descriptor // what was published, of groups led here; its members hear of the next view
	updates map[order.Life]*placement.Descriptor // the parent has not heard of
	told    map[order.Life]time.Time             // when the parent was told last
	running bool                                 // somebody tells the parent
}

func newPublisher(h *Host) *publisher {
	return &publisher{
		host: h, last: make(map[order.Life]*placement.Descriptor),
		updates: make(map[order.Life]*placement.Descriptor), told: make(map[order.Life]time.Time),
	}
}

// publish pushes a descriptor to its members, those of the view before, and the peers closest to the anchor, and sees to it that
// the parent hears of it. It does not block.
func (h *Host) publish(d *placement.Descriptor) {
	p := h.publisher
	p.mu.Lock()
	to := make(map[peer.ID]bool)
	for _, known := range []*placement.Descriptor{p.last[d.Group.Life()], d} {
		if known == nil {
			continue
		}
		for _, m := range known.Peers {
			to[peer.ID(m.ID)] = true
		}
	}
	p.last[d.Group.Life()] = d
	if d.Group.Prefix != (keyspace.Prefix{}) && d.View.Num > 0 { // the first view is the parent's own
		p.updates[d.Group.Life()] = d
		if !p.running {
			p.running = h.spawn(p.update)
		}
	}
	p.mu.Unlock()
	msg := marshal(&pb.DescriptorPush{Descriptor_: encodeDescriptor(*d)})
	send := func(to peer.ID) {
		if to == h.overlay.Self() {
			return
		}
		if err := h.overlay.Send(to, keyspace.Key{}, serviceDescriptor, msg); err != nil {
			log.Debugw("descriptor not sent", "group", d.Group, "view", d.View.Num, "peer", to, "err", err)
		}
	}
	for id := range to {
		send(id)
	}
	anchor, err := h.locator.anchor(d.Group.Prefix)
	if err != nil {
		return // who asks for a key's own group hears of it from the group of its prefix
	}
	h.neighbours.lookUp(look{anchor, placement.CandidatesMax, func(infos []peer.AddrInfo, _ error) {
		for _, i := range infos {
			if !to[i.ID] {
				send(i.ID)
			}
		}
	}})
}

// unpublish forgets a group that is not led here any more.
func (h *Host) unpublish(g order.GroupID) {
	p := h.publisher
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.last, g.Life())
	delete(p.updates, g.Life())
	delete(p.told, g.Life())
}

// update tells the parent of the children that have changed, each at most every [updateEvery], until it knows them all.
func (p *publisher) update() {
	for {
		d, wait, ok := p.next()
		if !ok {
			return
		}
		if wait > 0 {
			if pause(p.host.ctx, min(wait, updateLook)) != nil {
				return
			}
			continue
		}
		err := p.tell(d)
		p.mu.Lock()
		if _, led := p.last[d.Group.Life()]; led {
			p.told[d.Group.Life()] = time.Now()
			if known := p.updates[d.Group.Life()]; err == nil && known != nil && known.View.Num == d.View.Num {
				delete(p.updates, d.Group.Life())
			}
		}
		p.mu.Unlock()
		if err != nil {
			log.Debugw("the parent was not told of a view", "group", d.Group, "view", d.View.Num, "err", err)
		}
	}
}

// next returns whom the parent should be told of now, or how long that has to wait; ok is false when there is nobody, and the
// caller then ends.
func (p *publisher) next() (d *placement.Descriptor, wait time.Duration, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.updates) == 0 {
		p.running = false
		return d, 0, false
	}
	wait = updateEvery
	for _, g := range slices.SortedFunc(maps.Keys(p.updates), order.Life.Compare) {
		w := time.Duration(0)
		if told, before := p.told[g]; before {
			w = max(0, updateEvery-time.Since(told))
		}
		if w == 0 {
			return p.updates[g], 0, true
		}
		wait = min(wait, w)
	}
	return d, wait, true
}

// tell has the parent's directory take over a child's view.
func (p *publisher) tell(d *placement.Descriptor) error {
	ctx, cancel := context.WithTimeout(p.host.ctx, locateTimeout)
	defer cancel()
	res, err := p.host.tellParent(ctx, *d, "")
	if err == nil && res.Status != placement.OK {
		log.Debugw("the parent knows better", "group", d.Group, "view", d.View.Num, "status", res.Status)
	}
	return err
}

// handleDescriptor takes note of a group's new view. It believes a member of a view that it knows of the same life of the group,
// and anybody about a group of which it knows nothing: descriptors are hints.
func (h *Host) handleDescriptor(req *dht.Request) error {
	d, err := h.decode.push(req.Data)
	if err != nil || !req.OneWay() {
		return malformed("descriptor: %v", err)
	}
	known, ok := h.locator.cached(d.Group.Prefix)
	from := dht.NodeIDOf(req.From)
	if ok && known.Group == d.Group {
		if _, member := known.View.MemberAt(from); !member {
			return nil
		}
	} else if _, member := d.View.MemberAt(from); ok && (!member || d.Group.Gen < known.Group.Gen || d.Group.Prefix == keyspace.Prefix{}) {
		return nil // of the root, nobody can make up another life
	}
	h.news(d)
	return nil
}

// push decodes a pb.DescriptorPush.
func (d decoder) push(data []byte) (placement.Descriptor, error) {
	var m pb.DescriptorPush
	if err := proto.Unmarshal(data, &m); err != nil {
		return placement.Descriptor{}, malformed("descriptor: %v", err)
	}
	return d.descriptor(m.Descriptor_)
}
