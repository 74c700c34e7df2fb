package chunks

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/coherence/appmanager"
	"latchkey/coherence/protocol"
	"latchkey/dht"
	"latchkey/dht/keyspace"
	"latchkey/replicagroup/disk"
	"latchkey/replicagroup/order"
)

// sink is a service that takes what it is sent.
const sink = "sink"

type real struct {
	host    host.Host
	overlay *dht.Overlay
	liar    atomic.Bool // it answers with what was not asked for
	lies    atomic.Int32
	*Service
}

// mayLie is the overlay of a keeper that keeps chunks, and answers with others while it lies.
type mayLie struct {
	*dht.Overlay
	p *real
}

func (o mayLie) Handle(name string, h dht.Handler) {
	o.Overlay.Handle(name, func(r *dht.Request) {
		q, err := decodeRequest(r.Data)
		if err != nil || kindOf(&q) != "get" || !o.p.liar.Load() {
			h(r)
			return
		}
		o.p.lies.Add(1)
		b, err := (&reply{chunk: []byte("what nobody stored")}).encode()
		if err != nil {
			panic(err)
		}
		r.Reply(b)
	})
}

// newReal starts peers on the loopback, with their chunks in the stores that open returns.
func newReal(tb testing.TB, peers int, open func(i int) Store) []*real {
	var all []*real
	ctx, cancel := context.WithTimeout(tb.Context(), time.Minute)
	defer cancel()
	for i := range peers {
		h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableRelay(), libp2p.DisableMetrics())
		if err != nil {
			tb.Fatal(err)
		}
		var known []peer.AddrInfo
		if i > 0 {
			known = []peer.AddrInfo{{ID: all[0].host.ID(), Addrs: all[0].host.Addrs()}}
		}
		overlay := must[*dht.Overlay](tb)(dht.New(h, dht.WithOverlayID([32]byte{1}), dht.WithBootstrap(known...)))
		p := &real{host: h, overlay: overlay}
		p.Service = New(mayLie{overlay, p}, 1, must[*Keeper](tb)(NewKeeper(open(i))))
		overlay.Handle(sink, func(r *dht.Request) { r.Reply(nil) })
		tb.Cleanup(func() { p.Service.Close(); overlay.Close(); h.Close() })
		if err := overlay.Start(ctx); err != nil {
			tb.Fatal(err)
		}
		all = append(all, p)
	}
	for _, p := range all {
		if err := p.overlay.WaitPeers(ctx, peers-1); err != nil {
			tb.Fatal(err)
		}
	}
	return all
}

func openDisk(tb testing.TB, dir string) *disk.Store {
	s := must[*disk.Store](tb)(disk.Open(dir, disk.Options{}))
	tb.Cleanup(func() { s.Close() })
	return s
}

// TestACheckpointOnRealPeers: stored on disks by way of libp2p, read back by another peer, collected, and there after the store was opened anew.
func TestACheckpointOnRealPeers(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dir := filepath.Join(t.TempDir(), "store")
	if err := disk.Create(dir, order.OverlayID{}, order.StoreID{}); err != nil {
		t.Fatal(err)
	}
	kept := openDisk(t, dir)
	all := newReal(t, 4, func(i int) Store {
		if i == 0 {
			return kept
		}
		return new(MemoryStore)
	})
	m := appmanager.Manifest{Objects: make(map[keyspace.Key]protocol.Hash)}
	values := make(map[keyspace.Key][]byte)
	for i := range 6 {
		key := keyspace.Key{byte(i)}
		values[key] = value(i, i*100_000)
		m.Objects[key] = must[protocol.Hash](t)(all[i%4].Put(ctx, app, 1, values[key]))
	}
	root := must[protocol.Hash](t)(all[1].Save(ctx, app, 1, m))
	for _, p := range all {
		got := must[appmanager.Manifest](t)(p.Load(ctx, app, root))
		for key, want := range values {
			if b := must[[]byte](t)(p.Get(ctx, app, got.Objects[key])); !bytes.Equal(b, want) {
				t.Errorf("%v reads %d bytes of %d", p.host.ID(), len(b), len(want))
			}
		}
	}
	if err := all[2].Collect(ctx, app, 1, root); err != nil {
		t.Error(err)
	}
	before, _ := all[0].Usage()
	if err := kept.Close(); err != nil {
		t.Fatal(err)
	}
	again := must[*Keeper](t)(NewKeeper(openDisk(t, dir)))
	if n, _ := again.Usage(); n != before || n == 0 {
		t.Errorf("%d chunks are there after a restart, %d were", n, before)
	}
}

// TestAKeeperThatLiesIsNotBelieved: of three real peers that keep a chunk the first one that is asked answers with another. Who reads holds it against
// the name, and asks the next. When two lie and the third has it no longer, the reader has an error that says who lied, and never what was not stored.
func TestAKeeperThatLiesIsNotBelieved(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	all := newReal(t, 4, func(int) Store { return new(MemoryStore) })
	chunk := value(1, 1000)
	name := must[protocol.Hash](t)(all[0].Put(ctx, app, 1, chunk))
	var keepers []*real // in the order in which they are asked
	for _, id := range must[[]peer.ID](t)(all[0].peers(ctx, name[0], 3)) {
		keepers = append(keepers, all[slices.IndexFunc(all, func(p *real) bool { return p.host.ID() == id })])
	}
	reader := all[slices.IndexFunc(all, func(p *real) bool { return !slices.Contains(keepers, p) })]
	for i, p := range keepers {
		if b, err := reader.Get(ctx, app, name); err != nil || !bytes.Equal(b, chunk) {
			t.Fatalf("%d lie: %q, %v", i, b, err)
		}
		for j, k := range keepers {
			if n := k.lies.Load(); j < i && n != int32(i-j) || j >= i && n != 0 {
				t.Errorf("keeper %d has lied %d times, when %d do", j, n, i)
			}
		}
		if i < 2 {
			p.liar.Store(true)
		}
	}
	last := keepers[2]
	last.mu.Lock()
	_, err := last.keeper.Collect(app, 1, nil)
	last.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	b, err := reader.Get(ctx, app, name)
	if b != nil || !errors.Is(err, ErrAltered) || !strings.Contains(err.Error(), keepers[0].host.ID().String()) || !strings.Contains(err.Error(), keepers[1].host.ID().String()) {
		t.Errorf("%q, %v", b, err)
	}
}

// BenchmarkCheckpoint stores 100 MiB in chunks of 1 MiB at three peers (plain: sends the same bytes to the same peers on the same streams, and
// nothing else), of which the sender is one. It is about chunks in memory: a disk's own speed is another matter.
func BenchmarkCheckpoint(b *testing.B) {
	const total = 100
	all := newReal(b, 3, func(int) Store { return new(MemoryStore) })
	values := make([][]byte, total)
	for i := range values {
		values[i] = value(i, BytesMax)
	}
	send := func(b *testing.B, one func(round, i int) error) {
		b.SetBytes(total * BytesMax)
		for round := 0; b.Loop(); round++ {
			errs := make(chan error, total)
			for i := range values {
				go func() { errs <- one(round, i) }()
			}
			for range values {
				if err := <-errs; err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	b.Run("plain", func(b *testing.B) {
		slots := make(chan struct{}, InFlightMax)
		send(b, func(_, i int) error {
			slots <- struct{}{}
			defer func() { <-slots }()
			errs := make(chan error, 2)
			for _, to := range all[1:] {
				go func() {
					_, err := all[0].overlay.Call(b.Context(), to.host.ID(), keyspace.Key{}, sink, values[i])
					errs <- err
				}()
			}
			return errors.Join(<-errs, <-errs)
		})
	})
	b.Run("chunks", func(b *testing.B) {
		send(b, func(round, i int) error {
			fresh := keyspace.Key{1, byte(round), byte(round >> 8)} // an application of its own, so that nothing is there yet
			_, err := all[0].Put(b.Context(), fresh, 1, values[i])
			if i == total-1 { // memory is not what is measured
				for _, p := range all {
					p.mu.Lock()
					_, err2 := p.keeper.Collect(keyspace.Key{1, byte(round - 1), byte((round - 1) >> 8)}, 1, nil)
					p.mu.Unlock()
					err = errors.Join(err, err2)
				}
			}
			return err
		})
	})
}
