package access

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing/synctest"
	"time"

	"latchkey/coherence/cachedcopy"
	"latchkey/coherence/protocol"
)

// cluster is nodes that share objects by a protocol far simpler than the real one: each object has a home that serves one request
// at a time. What matters here is what becomes of rights while threads use them; pause is where messages travel.
type cluster struct {
	nodes  int
	epochs []*Epoch
	pause  func(name string)
	mutant Mutant
	// hasty: copies acknowledge the loss of a right before they take the value away. A copy's weakness, not the object's.
	hasty bool

	mu      sync.Mutex
	objects map[string]*home
}

func newCluster(nodes int, pause func(string)) *cluster {
	c := &cluster{nodes: nodes, pause: pause, objects: make(map[string]*home)}
	for range nodes {
		c.epochs = append(c.epochs, NewEpoch(Config{}))
	}
	return c
}

// at returns an object as node has it. The first time, one of the nodes owns it.
func (c *cluster) at(node int, name string) *Object {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.objects[name]
	if h == nil {
		h = &home{cluster: c, name: name, turn: make(chan struct{}, 1), owner: len(c.objects) % c.nodes}
		for i := range c.nodes {
			s := &standIn{home: h, node: i}
			s.object = New(c.epochs[i], sha256.Sum256([]byte(name)), func(*Object) Copy { return s })
			s.object.Sabotage(c.mutant)
			h.copies = append(h.copies, s)
		}
		first := h.copies[h.owner]
		first.object.Apply(func() { first.set(cachedcopy.ReadWrite, &protocol.Cell{Bytes: []byte{}}) })
		c.objects[name] = h
	}
	return h.copies[node].object
}

// home serves the requests for one object.
type home struct {
	*cluster
	name     string
	turn     chan struct{} // held while a request is served
	owner    int           // with turn
	copies   []*standIn
	requests int // under cluster.mu
}

// standIn is one node's copy. What is not the home's is under the mutex of its object.
type standIn struct {
	*home
	node     int
	object   *Object
	right    cachedcopy.Right
	cell     *protocol.Cell
	asked    cachedcopy.Right
	held     bool
	deferred []func()
	grants   int // how often it was given a right
}

func (s *standIn) set(r cachedcopy.Right, c *protocol.Cell) {
	s.right, s.cell = r, c
	s.object.SetRight(r, c)
}

func (s *standIn) ReadFault()  { s.ask(cachedcopy.ReadOnly) }
func (s *standIn) WriteFault() { s.ask(cachedcopy.ReadWrite) }

func (s *standIn) Store(c *protocol.Cell) bool {
	if s.right != cachedcopy.ReadWrite {
		return false
	}
	s.cell = c
	return true
}

func (s *standIn) Hold() { s.held = true }

func (s *standIn) Release() {
	s.held = false
	todo := s.deferred
	s.deferred = nil
	for _, f := range todo {
		f()
	}
}

func (s *standIn) ask(r cachedcopy.Right) {
	if s.asked >= r {
		return
	}
	s.asked = r
	s.cluster.mu.Lock()
	s.requests++
	name := fmt.Sprintf("%s.%d", s.name, s.requests)
	s.cluster.mu.Unlock()
	go s.serve(name, s.node, r)
}

// serve takes rights from the others and gives one to node.
func (h *home) serve(name string, node int, r cachedcopy.Right) {
	h.pause(name + "a")
	select {
	case h.turn <- struct{}{}:
	default:
		h.turn <- struct{}{}
		h.pause(name + "t") // so that it does not go on at the same time as who made room
	}
	defer func() { <-h.turn }()
	var value *protocol.Cell
	for i, s := range h.copies {
		if left := cachedcopy.ReadOnly; i == h.owner && i != node {
			if r == cachedcopy.ReadWrite {
				left = cachedcopy.NoAccess
			}
			value = s.revoke(name+"b", left)
		} else if r == cachedcopy.ReadWrite && i != node {
			s.revoke(name+"c", cachedcopy.NoAccess)
		}
	}
	s := h.copies[node]
	if r == cachedcopy.ReadWrite {
		h.owner = node
	}
	h.pause(name + "d")
	s.object.Apply(func() {
		if s.asked == r {
			s.asked = cachedcopy.NoAccess
		}
		if r <= s.right {
			return
		}
		if value == nil { // it owned it
			value = s.cell
		}
		s.set(r, value)
		s.grants++
	})
}

// revoke leaves a copy with no more than this right, and returns its value when that is so.
func (s *standIn) revoke(name string, left cachedcopy.Right) (value *protocol.Cell) {
	done := make(chan struct{})
	s.object.Apply(func() {
		take := func() {
			defer close(done)
			value = s.cell
			switch {
			case s.right <= left:
			case s.hasty && left == cachedcopy.NoAccess:
				grants := s.grants
				go func() {
					for range 8 { // long enough for the writer to go on
						s.pause(name + "!")
					}
					s.object.Apply(func() {
						if s.grants == grants {
							s.set(cachedcopy.NoAccess, nil)
						}
					})
				}()
			case left == cachedcopy.NoAccess:
				s.set(cachedcopy.NoAccess, nil)
			default:
				s.set(left, s.cell)
			}
		}
		if s.held {
			s.deferred = append(s.deferred, take)
		} else {
			take()
		}
	})
	select {
	case <-done:
	default:
		<-done
		s.pause(name + "w") // likewise
	}
	return value
}

// Read and Write make a cluster the memory of litmus programs.
func (c *cluster) Read(ctx context.Context, node int, object string) (v int, _ error) {
	err := c.at(node, object).View(ctx, func(b []byte) error {
		v = number(b)
		return nil
	})
	return v, err
}

func (c *cluster) Write(ctx context.Context, node int, object string, v int) error {
	return c.at(node, object).Set(ctx, encode(v))
}

func encode(v int) []byte { return binary.AppendUvarint(nil, uint64(v)) }

func number(b []byte) int {
	v, _ := binary.Uvarint(b)
	return int(v)
}

// drawn lets messages travel for drawn times.
func drawn(seed uint64) func(string) {
	var mu sync.Mutex
	r := rand.New(rand.NewPCG(seed, 3))
	return func(string) {
		mu.Lock()
		d := time.Duration(r.Int64N(int64(time.Millisecond)))
		mu.Unlock()
		time.Sleep(d)
	}
}

// schedule runs goroutines one at a time, each from one pause to the next. The first depth are chosen as path says, by their names,
// and where it is too short the first of these; after them goes who has paused for longest. It must be used within a bubble of synctest, whose clock stands still meanwhile.
type schedule struct {
	path    []int
	depth   int
	widths  []int // how many there were at each
	stepMax int

	mu     sync.Mutex
	paused map[string]chan struct{}
	since  []string
}

func (s *schedule) pause(name string) {
	ch := make(chan struct{})
	s.mu.Lock()
	if s.paused[name] != nil {
		panic("two pauses named " + name)
	}
	s.paused[name] = ch
	s.since = append(s.since, name)
	s.mu.Unlock()
	<-ch
}

// run goes on until nobody pauses any more, and returns how many steps that took, or false if they were too many.
func (s *schedule) run() (steps int, ok bool) {
	for ; ; steps++ {
		synctest.Wait()
		s.mu.Lock()
		if len(s.paused) == 0 {
			s.mu.Unlock()
			return steps, true
		}
		if steps == s.stepMax {
			s.mu.Unlock()
			return steps, false
		}
		var name string
		if steps < s.depth {
			names := slices.Sorted(slices.Values(s.since))
			if name = names[0]; steps < len(s.path) {
				name = names[s.path[steps]]
			}
		} else {
			name = s.since[0]
		}
		s.widths = append(s.widths, len(s.paused))
		ch := s.paused[name]
		delete(s.paused, name)
		s.since = slices.DeleteFunc(s.since, func(n string) bool { return n == name })
		s.mu.Unlock()
		close(ch)
	}
}
