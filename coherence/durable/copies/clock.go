package copies

import (
	"sync"
	"sync/atomic"

	"latchkey/coherence/durable/cachedobject"
	"latchkey/coherence/durable/hit"
)

// entry is what a group has of one object. It stays as long as the automaton knows the object.
type entry struct {
	group *group
	name  string
	copy  *hit.Copy
	hit   atomic.Bool // since the hand last came by

	changed chan struct{} // closed when the copy comes or goes; nil: nobody wants to know. Under the group's mutex
	bytes   int64         // that were counted; under the group's mutex
	at      int           // in the ring; under its mutex
}

// entry returns what there is of an object, which it makes if there is nothing. The mutex is held.
func (g *group) entry(name string) *entry {
	e := g.entries[name]
	if e == nil {
		e = &entry{group: g, name: name, copy: hit.NewCopy(g.lease)}
		e.hit.Store(true)
		g.entries[name] = e
		g.s.clock.add(e)
	}
	return e
}

// entryBytes is what an entry costs beside its value and its name.
const entryBytes = 256

// measure counts the bytes of an object anew. The mutex is held.
func (g *group) measure(name string) {
	e := g.entries[name]
	if e == nil {
		return
	}
	bytes := int64(entryBytes + len(name))
	if c, _ := g.core.Stale(name); c != nil && c.Value != nil {
		bytes += int64(len(c.Value.Bytes))
	}
	g.s.clock.bytes.Add(bytes - e.bytes)
	e.bytes = bytes
}

// clockRing is the objects of a node, and a hand that goes around among them.
type clockRing struct {
	evicting sync.Mutex // held by who evicts
	bytes    atomic.Int64

	mu   sync.Mutex // after those of groups
	ring []*entry
	hand int
}

func (c *clockRing) size() (objects int, bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.ring), c.bytes.Load()
}

func (c *clockRing) add(e *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.at = len(c.ring)
	c.ring = append(c.ring, e)
}

func (c *clockRing) remove(e *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	last := len(c.ring) - 1
	moved := c.ring[last]
	c.ring[e.at], moved.at = moved, e.at
	c.ring[last] = nil
	c.ring = c.ring[:last]
}

// next moves the hand to what was not hit since it last came by.
func (c *clockRing) next() *entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range 2 * len(c.ring) {
		if c.hand >= len(c.ring) {
			c.hand = 0
		}
		e := c.ring[c.hand]
		c.hand++
		if !e.hit.Swap(false) {
			return e
		}
	}
	return nil
}

// evict forgets objects until the node keeps no more than it may, as far as nothing is under way with them. One does it for all.
func (s *Service) evict() {
	objects, bytes := s.clock.size()
	if objects <= s.cfg.ObjectsMax && bytes <= s.cfg.BytesMax || !s.clock.evicting.TryLock() {
		return
	}
	defer s.clock.evicting.Unlock()
	for range 2 * objects {
		if n, b := s.clock.size(); n <= s.cfg.ObjectsMax && b <= s.cfg.BytesMax {
			return
		}
		e := s.clock.next()
		if e == nil {
			return
		}
		g := e.group
		g.mu.Lock()
		if g.entries[e.name] != e {
			g.mu.Unlock()
			continue
		}
		send := g.whither(false)
		g.step(cachedobject.Event{Kind: cachedobject.Evict, Object: e.name}, &send)
		if !g.core.Knows(e.name) {
			delete(g.entries, e.name)
			s.clock.remove(e)
			s.clock.bytes.Add(-e.bytes)
			if e.changed != nil {
				close(e.changed)
				e.changed = nil
			}
			s.evictions.Add(1)
		}
		g.mu.Unlock()
		g.send(send)
	}
}
