package access

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"latchkey/coherence/cachedcopy"
	"latchkey/coherence/manager"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
)

// overlay is nodes that share objects by the real automata. Messages travel each for itself, so they overtake each other; none is
// lost. Managers are not replicated here.
type overlay struct {
	refs   []protocol.NodeRef
	epochs []*Epoch
	pause  func()
	mutant Mutant // of the objects

	mu      sync.Mutex
	objects map[string]*shared
	travel  sync.WaitGroup
}

// shared is one object.
type shared struct {
	*overlay
	key     keyspace.Key
	mu      sync.Mutex // owns manager
	manager *manager.Manager
	objects []*Object
	copies  []*Cached
}

func newOverlay(nodes int, pause func()) *overlay {
	w := &overlay{pause: pause, objects: make(map[string]*shared)}
	for i := range nodes {
		w.refs = append(w.refs, protocol.NodeRef{ID: keyspace.NodeID{byte(i + 1)}, Inc: 1})
		w.epochs = append(w.epochs, NewEpoch(Config{}))
	}
	return w
}

func (w *overlay) at(node int, name string) *Object {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.objects[name]
	if s == nil {
		s = &shared{overlay: w, key: sha256.Sum256([]byte(name))}
		s.manager = manager.New(manager.Config{Object: s.key, Epoch: 1, Life: 1})
		for i, ref := range w.refs {
			c := cachedcopy.New(cachedcopy.Config{Self: ref, Object: s.key, Epoch: 1, Threads: true})
			o, k := NewCached(w.epochs[i], s.key, c, s.send)
			o.Sabotage(w.mutant)
			s.objects, s.copies = append(s.objects, o), append(s.copies, k)
		}
		w.objects[name] = s
	}
	return s.objects[node]
}

// send lets a message travel.
func (s *shared) send(m protocol.Message) {
	s.travel.Go(func() {
		s.pause()
		switch m.To.Party {
		case protocol.Node:
			s.copies[m.To.Node.ID[0]-1].Receive(&m)
		case protocol.ObjectManager:
			s.mu.Lock()
			out := s.manager.Step(manager.Event{Kind: manager.Receive, Msg: &m}, nil)
			s.mu.Unlock()
			for _, m := range out {
				s.send(m)
			}
		case protocol.AppManager: // which notes the first touch
			m.From, m.To = m.To, m.From
			s.send(m)
		}
	})
}

// Receive has the copy take a message, with the first value where one is wanted.
func (k *Cached) Receive(m *protocol.Message) {
	if m.Kind == protocol.FirstTouch {
		m.Value = &protocol.Cell{}
	}
	k.Step(cachedcopy.Event{Kind: cachedcopy.Receive, Msg: m})
}

func (w *overlay) Read(ctx context.Context, node int, object string) (v int, _ error) {
	err := w.at(node, object).View(ctx, func(b []byte) error {
		v = number(b)
		return nil
	})
	return v, err
}

func (w *overlay) Write(ctx context.Context, node int, object string, v int) error {
	return w.at(node, object).Set(ctx, encode(v))
}

// check tests what the automata promise of themselves.
func (w *overlay) check() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, s := range w.objects {
		masters := 0
		for i, k := range s.copies {
			var err error
			k.Inspect(func(c *cachedcopy.Copy) {
				err = c.Check()
				if c.State().Master() {
					masters++
				}
				if c.Right() != s.objects[i].right || c.Value() != s.objects[i].cell.Load() {
					err = fmt.Errorf("the object has %v, its copy %v", s.objects[i].right, c)
				}
			})
			if err != nil {
				return fmt.Errorf("%s at node %d: %w", name, i, err)
			}
		}
		if masters > 1 {
			return fmt.Errorf("%s: %d masters", name, masters)
		}
	}
	return nil
}

// Every thread of every node gets its turn at an object that all update all the time, before any hold runs out, and no update is
// lost; in virtual time.
func TestHotObjectIsSharedByAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const threads, calls = 2, 15
		pause := drawn(1)
		w := newOverlay(4, func() { pause("") })
		var all sync.WaitGroup
		var ends []time.Duration
		var mu sync.Mutex
		begin := time.Now()
		for node := range w.refs {
			for range threads {
				all.Go(func() {
					for range calls {
						err := w.at(node, "hot").Update(t.Context(), func(b []byte) ([]byte, error) {
							pause("") // so that others always get between
							return encode(number(b) + 1), nil
						})
						if err != nil {
							t.Error(err)
						}
					}
					mu.Lock()
					defer mu.Unlock()
					ends = append(ends, time.Since(begin))
				})
			}
		}
		all.Wait()
		if v, err := w.Read(t.Context(), 0, "hot"); err != nil || v != len(w.refs)*threads*calls {
			t.Errorf("%d after %d updates: %v", v, len(w.refs)*threads*calls, err)
		}
		w.travel.Wait()
		if err := w.check(); err != nil {
			t.Error(err)
		}
		t.Logf("the first thread had its %d after %v, the last after %v", calls, ends[0], ends[len(ends)-1])
		if ends[0] < ends[len(ends)-1]/4 {
			t.Error("one was served long before the others")
		}
	})
}

// Updates nested in all orders of three objects, by the real automata: nobody waits for a hold to run out.
func TestNestedUpdatesOfManyNodes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for seed := range uint64(20) {
			pause := drawn(seed)
			w := newOverlay(3, func() { pause("") })
			var all sync.WaitGroup
			for node, names := range []string{"xy", "yz", "zx"} {
				all.Go(func() {
					err := w.at(node, names[:1]).Update(t.Context(), func(b []byte) ([]byte, error) {
						add := func(b []byte) ([]byte, error) { return encode(number(b) + 1), nil }
						if err := w.at(node, names[1:]).Update(t.Context(), add); err != nil {
							return nil, err
						}
						return add(b)
					})
					if err != nil {
						t.Errorf("seed %d: %v", seed, err)
					}
				})
			}
			begin := time.Now()
			all.Wait()
			if took := time.Since(begin); took >= UpdateHold {
				t.Errorf("seed %d: %v", seed, took)
			}
			w.travel.Wait()
		}
	})
}

// A copy that hears of a newer epoch ends its own, for all objects of the node; other nodes find out by themselves.
func TestMessageOfANewerEpochEndsTheOldOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pause := drawn(1)
		w := newOverlay(2, func() { pause("") })
		ctx := t.Context()
		for node := range w.refs {
			for _, name := range []string{"x", "y"} {
				if err := w.at(node, name).Set(ctx, nil); err != nil {
					t.Error(err)
				}
			}
		}
		w.travel.Wait()
		s := w.objects["x"]
		s.copies[0].Receive(&protocol.Message{Kind: protocol.Invalidate, Epoch: 2, To: protocol.At(w.refs[0]), Object: s.key, LastInv: 1})
		for _, name := range []string{"x", "y"} {
			if _, err := w.at(0, name).Get(ctx); !errors.Is(err, ErrRestarted) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := w.at(1, "y").Get(ctx); err != nil {
			t.Error(err)
		}
		w.travel.Wait()
	})
}
