package litmus

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// plain is a memory with one lock.
type plain struct {
	mu     sync.Mutex
	values map[string]int
}

func (m *plain) Read(_ context.Context, _ int, object string) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.values[object], nil
}

func (m *plain) Write(_ context.Context, _ int, object string, value int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.values[object] = value
	return nil
}

// weakness is one thing that a caching memory does wrong.
type weakness string

const (
	none weakness = "none"
	// buffered: a write returns before it is performed. Its own peer finds it meanwhile.
	buffered weakness = "buffered"
	// acknowledged: an invalidation is acknowledged before the copy is dropped.
	acknowledged weakness = "acknowledged"
	// unpinned: the right to write is checked, and the value stored afterwards whatever became of the right.
	unpinned weakness = "unpinned"
	// accepted: a copy that was overtaken by an invalidation is taken all the same.
	accepted weakness = "accepted"
)

const (
	noRight = iota
	mayRead
	mayWrite
)

// caching is a memory with a copy of each object at each peer that used it, kept coherent by invalidation, and late messages.
type caching struct {
	weakness
	mu      sync.Mutex // never held while time passes
	draw    *rand.Rand
	objects map[string]*shared
	buffers [][]store // by peer, when buffered

	background sync.WaitGroup // what a weakness leaves for later
}

type shared struct {
	turn   chan struct{} // held by the peer whose fault is served; may be held while time passes
	owner  int
	copies []struct{ right, value int } // by peer
}

type store struct {
	object string
	value  int
}

func newCaching(w weakness, peers int, seed uint64) *caching {
	return &caching{weakness: w, draw: rand.New(rand.NewPCG(seed, 9)), objects: make(map[string]*shared), buffers: make([][]store, peers)}
}

// late lets a message travel.
func (m *caching) late() {
	m.mu.Lock()
	d := time.Duration(m.draw.Int64N(int64(time.Millisecond)))
	m.mu.Unlock()
	time.Sleep(d)
}

func (m *caching) object(name string) *shared {
	m.mu.Lock()
	defer m.mu.Unlock()
	o := m.objects[name]
	if o == nil {
		o = &shared{turn: make(chan struct{}, 1), copies: make([]struct{ right, value int }, len(m.buffers))}
		o.copies[0].right = mayWrite
		m.objects[name] = o
	}
	return o
}

func (m *caching) locked(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

func (m *caching) Read(_ context.Context, peer int, name string) (v int, _ error) {
	o := m.object(name)
	hit := false
	look := func() {
		for _, s := range m.buffers[peer] {
			if s.object == name {
				hit, v = true, s.value
			}
		}
		if c := o.copies[peer]; !hit && c.right >= mayRead {
			hit, v = true, c.value
		}
	}
	if m.locked(look); hit {
		return v, nil
	}
	o.turn <- struct{}{}
	if m.locked(look); hit {
		<-o.turn
		return v, nil
	}
	m.late()
	m.locked(func() {
		o.copies[o.owner].right = mayRead
		v = o.copies[o.owner].value
	})
	if m.weakness == accepted {
		<-o.turn
	}
	m.late()
	m.locked(func() {
		if m.weakness != accepted || o.owner != peer {
			o.copies[peer].right, o.copies[peer].value = mayRead, v
		}
	})
	if m.weakness != accepted {
		<-o.turn
	}
	return v, nil
}

func (m *caching) Write(_ context.Context, peer int, name string, value int) error {
	if m.weakness != buffered {
		m.perform(peer, name, value)
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.buffers[peer] = append(m.buffers[peer], store{name, value})
	if len(m.buffers[peer]) == 1 {
		m.background.Go(func() { m.drain(peer) })
	}
	return nil
}

// drain performs what a peer has buffered, the oldest first.
func (m *caching) drain(peer int) {
	for left := 1; left > 0; {
		m.late()
		var next store
		m.locked(func() { next = m.buffers[peer][0] })
		m.perform(peer, next.object, next.value)
		m.locked(func() {
			m.buffers[peer] = m.buffers[peer][1:]
			left = len(m.buffers[peer])
		})
	}
}

func (m *caching) perform(peer int, name string, value int) {
	o := m.object(name)
	for {
		owned := false
		m.locked(func() {
			if owned = o.copies[peer].right == mayWrite; owned && m.weakness != unpinned {
				o.copies[peer].value = value
			}
		})
		if owned {
			if m.weakness == unpinned {
				m.late()
				m.locked(func() { o.copies[peer].value = value })
			}
			return
		}
		o.turn <- struct{}{}
		m.own(o, peer)
		<-o.turn
	}
}

// own invalidates all other copies and makes peer the owner.
func (m *caching) own(o *shared, peer int) {
	for i := range o.copies {
		has := false
		m.locked(func() { has = i != peer && o.copies[i].right != noRight })
		switch {
		case !has:
		case m.weakness == acknowledged:
			m.locked(func() { o.copies[i].right = mayRead }) // what it had, for a while
			m.background.Go(func() {
				m.late()
				m.locked(func() {
					if o.owner != i {
						o.copies[i].right = noRight
					}
				})
			})
		default:
			m.late()
			m.locked(func() { o.copies[i].right = noRight })
		}
	}
	m.late()
	m.locked(func() {
		if o.owner != peer {
			o.copies[peer].value = o.copies[o.owner].value
			o.owner = peer
		}
		o.copies[peer].right = mayWrite
	})
}
