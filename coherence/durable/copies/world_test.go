package copies

import (
	"bytes"
	"context"
	"encoding/binary"
	"testing"
	"testing/synctest"
	"time"

	"latchkey/coherence/durable"
	"latchkey/coherence/durable/durabletest"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
	"latchkey/internal/driver"
)

var (
	params = durable.Params{Lease: 2 * time.Second, Drift: 10_000}
	prefix keyspace.Prefix
)

// world is a leader and the nodes of a test. All runs in virtual time.
type world struct {
	*durabletest.Leader
	t     testing.TB
	clock *driver.Clock
	nodes []*Service
}

func play(t *testing.T, f func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		w := &world{durabletest.NewLeader(ctx, params, func(err error) { t.Error(err) }), t, driver.NewClock(), nil}
		defer func() { // also after a t.Fatal
			for _, s := range w.nodes {
				s.Close()
			}
			cancel()
			time.Sleep(time.Second) // what is on its way arrives
		}()
		time.Sleep(3 * time.Second) // the first leader waits too
		f(w)
	})
}

// node makes a node's part.
func (w *world) node(n byte, change ...func(*Config)) *Service {
	c := Config{Self: protocol.NodeRef{ID: keyspace.NodeID{n}, Inc: uint64(w.clock.Now()) + 1}, Clock: w.clock, Params: params}
	var s *Service
	c.Router = w.Link(c.Self.ID, func(g keyspace.Prefix, msgs []durable.Message) { s.Receive(g, msgs) })
	for _, f := range change {
		f(&c)
	}
	s = New(c)
	w.nodes = append(w.nodes, s)
	return s
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
