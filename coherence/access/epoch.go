package access

import (
	"bytes"
	"cmp"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"latchkey/dht/keyspace"
)

// UpdateHold is how long an [Object.Update] may keep others from the object, unless [Config] says otherwise.
const UpdateHold = time.Second

// Config of an [Epoch].
type Config struct {
	UpdateHold time.Duration // 0 is [UpdateHold]
	Mutant     Mutant        // of all objects; for tests
	Counters   *Counters     // nil: nobody counts
}

// Counters count what is done with objects, of as many epochs as they are given to.
type Counters struct {
	hits                  atomic.Uint64 // in samples of hitSample
	Misses, Invalidations atomic.Uint64 // calls that waited for other nodes; copies that were given up because others wrote
}

// hitSample is how many hits one stands for that is counted. Which one it is chance decides, so that goroutines which read the same objects share
// nothing that is written at each read.
const hitSample = 64

// Hits returns about how many reads found a copy here.
func (c *Counters) Hits() uint64 { return c.hits.Load() * hitSample }

func (c *Counters) hit() {
	if rand.Uint32()%hitSample == 0 {
		c.hits.Add(1)
	}
}

// Epoch is one execution of an application on one node: what its objects there have in common. Safe for concurrent use.
type Epoch struct {
	updateHold time.Duration
	mutant     Mutant
	counters   *Counters
	over       atomic.Bool
	done       chan struct{} // closed when it is over

	holding atomic.Int32 // len(holds): most waits need not look
	mu      sync.Mutex
	holds   []*hold
}

// NewEpoch begins an epoch.
func NewEpoch(c Config) *Epoch {
	if c.Counters == nil {
		c.Counters = new(Counters)
	}
	return &Epoch{mutant: c.Mutant, updateHold: cmp.Or(max(c.UpdateHold, 0), UpdateHold), counters: c.Counters, done: make(chan struct{})}
}

// End ends the epoch: when it returns, no call on any of its objects succeeds any more, and those that wait fail. It may be
// called again, by anybody.
func (e *Epoch) End() {
	if e.over.CompareAndSwap(false, true) {
		close(e.done)
	}
}

// hold is an update that keeps the right to its object while its function runs.
type hold struct {
	object *Object
	timer  *time.Timer
	lasts  time.Duration // at most; 0: as long as the epoch says
	keeps  bool          // it does not end for who waits for another object
	ended  chan struct{} // closed at the end; nil: nobody waits for it

	expired bool // under the object's mutex: it ended because it had lasted too long
}

func (e *Epoch) add(h *hold) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.holds = append(e.holds, h)
	e.holding.Store(int32(len(e.holds)))
}

func (e *Epoch) remove(h *hold) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.holds = slices.DeleteFunc(e.holds, func(g *hold) bool { return g == h })
	e.holding.Store(int32(len(e.holds)))
}

// yield ends the holds of objects with greater keys, since somebody waits for the object with this one. No mutex of an object
// is held.
func (e *Epoch) yield(key keyspace.Key) {
	if e.holding.Load() == 0 {
		return
	}
	e.mu.Lock()
	var above []*hold
	for _, h := range e.holds {
		if !h.keeps && bytes.Compare(h.object.key[:], key[:]) > 0 {
			above = append(above, h)
		}
	}
	e.mu.Unlock()
	for _, h := range above {
		h.object.end(h, false)
	}
}
