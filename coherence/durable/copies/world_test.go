package copies

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"latchkey/coherence/durable"
	"latchkey/coherence/durable/register"
	"latchkey/coherence/durable/store"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
	"latchkey/internal/driver"
)

var (
	params = durable.Params{Lease: 2 * time.Second, Drift: 10_000}
	prefix = keyspace.PrefixOf(keyspace.Key{}, 4)
)

// world is a group whose leader is the real automata in this process, and whose network is goroutines. All runs in virtual time.
type world struct {
	t     testing.TB
	ctx   context.Context
	clock *driver.Clock

	mu     sync.Mutex
	term   uint64
	dead   bool // nobody leads
	store  *store.Store
	reg    *register.Register
	index  uint64
	nodes  map[keyspace.NodeID]*Service
	cut    map[keyspace.NodeID]bool
	loss   float64
	rand   *rand.Rand
	sent   map[durable.Kind]int
	all    int // sent to all voters
	sought int
}

func play(t *testing.T, f func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		w := &world{
			t: t, ctx: ctx, clock: driver.NewClock(), store: store.New(store.Config{}), nodes: map[keyspace.NodeID]*Service{},
			cut: map[keyspace.NodeID]bool{}, rand: rand.New(rand.NewPCG(1, 2)), sent: map[durable.Kind]int{},
		}
		w.elect()
		go w.run()
		time.Sleep(3 * time.Second) // the first leader waits too
		defer func() {              // also after a t.Fatal
			for _, s := range w.nodes {
				s.Close()
			}
			cancel()
			time.Sleep(time.Second) // what is on its way arrives
		}()
		f(w)
	})
}

// node makes a node's part.
func (w *world) node(n byte, change ...func(*Config)) *Service {
	c := Config{Self: protocol.NodeRef{ID: keyspace.NodeID{n}, Inc: uint64(w.clock.Now()) + 1}, Clock: w.clock, Params: params}
	c.Router = link{w, c.Self.ID}
	for _, f := range change {
		f(&c)
	}
	s := New(c)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nodes[c.Self.ID] = s
	return s
}

func (w *world) elect() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.term++
	w.index++
	w.dead = false
	w.store.Apply(w.index, time.Duration(w.clock.Now()), store.Command{})
	w.reg = register.New(params, w.store)
	w.step(register.Event{Kind: register.Lead, Tenure: durable.Tenure{Term: w.term}, At: w.clock.Now()})
}

func (w *world) run() {
	for i := 0; ; i++ {
		select {
		case <-w.ctx.Done():
			return
		case <-time.After(50 * time.Millisecond):
		}
		k := register.Tick
		if i%5 == 0 {
			k = register.Repeat
		}
		w.mu.Lock()
		w.step(register.Event{Kind: k})
		w.mu.Unlock()
	}
}

// step is called with the mutex held.
func (w *world) step(ev register.Event) {
	if w.dead {
		return
	}
	events := []register.Event{ev}
	for len(events) > 0 {
		ev := events[0]
		events = events[1:]
		ev.Now = w.clock.Now()
		for _, a := range w.reg.Step(ev, nil) {
			switch a.Kind {
			case register.Send:
				w.post(a.Msg)
			case register.Propose:
				w.index++
				res := w.store.Apply(w.index, time.Duration(w.clock.Now()), a.Cmd)
				events = append(events, register.Event{Kind: register.Committed, Cmd: &a.Cmd, Result: res})
			case register.Confirm:
				events = append(events, register.Event{Kind: register.Confirmed, At: w.clock.Now()})
			}
		}
		if err := w.reg.Check(); err != nil {
			w.t.Error(err)
		}
	}
}

func (w *world) lost(n keyspace.NodeID) bool { return w.cut[n] || w.rand.Float64() < w.loss }

// post sends to a node, with the mutex held.
func (w *world) post(m durable.Message) {
	if w.lost(m.Node) {
		return
	}
	w.sent[m.Kind]++
	delay := time.Duration(w.rand.IntN(int(time.Millisecond)))
	go func() {
		time.Sleep(delay)
		w.mu.Lock()
		s := w.nodes[m.Node]
		w.mu.Unlock()
		if s != nil {
			s.Receive(prefix, []durable.Message{m})
		}
	}()
}

// link is a node's way to the group.
type link struct {
	w    *world
	self keyspace.NodeID
}

func (l link) Send(g keyspace.Prefix, msgs []durable.Message, all bool) {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	if all {
		l.w.all++
	}
	for _, m := range msgs {
		if m.Node != l.self {
			l.w.t.Errorf("%v is sent by another", &m)
		}
		if l.w.lost(l.self) {
			continue
		}
		l.w.sent[m.Kind]++
		delay := time.Duration(l.w.rand.IntN(int(time.Millisecond)))
		go func() {
			time.Sleep(delay)
			l.w.mu.Lock()
			defer l.w.mu.Unlock()
			l.w.step(register.Event{Kind: register.Receive, Msg: &m})
		}()
	}
}

func (l link) Seek(keyspace.Prefix) {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	l.w.sought++
}

func (w *world) count(k durable.Kind) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sent[k]
}

func (w *world) with(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func value(s string) *protocol.Cell { return &protocol.Cell{Bytes: []byte(s)} }

func number(n uint64) *protocol.Cell {
	return &protocol.Cell{Bytes: binary.BigEndian.AppendUint64(nil, n)}
}

func numberOf(c *protocol.Cell) uint64 {
	if c == nil {
		return 0
	}
	return binary.BigEndian.Uint64(c.Bytes)
}

// soon is a context that ends after a while.
func soon(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	context.AfterFunc(ctx, cancel)
	return ctx
}

func (w *world) get(o *Object, want string) Found {
	w.t.Helper()
	f, err := o.Get(soon(10 * time.Second))
	if err != nil || f.Value == nil || !bytes.Equal(f.Value.Bytes, []byte(want)) {
		w.t.Fatalf("%q: %+v, %v; want %q", o.Name(), f, err, want)
	}
	return f
}

func (w *world) set(o *Object, v string) durable.Version {
	w.t.Helper()
	f, made, err := o.Write(soon(10*time.Second), Write{Value: value(v)})
	if err != nil || !made {
		w.t.Fatalf("%q: %v, %v", o.Name(), made, err)
	}
	return f.Version
}
