package coherence_test

import (
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/coherence"
	"latchkey/coherence/pb"
	"latchkey/coherence/protocol"
	"latchkey/dht/keyspace"
	"latchkey/internal/history"
	"latchkey/node"
	"latchkey/testnet"
)

// up starts a testnet of n peers.
func up(t *testing.T, n int) (*testnet.Network, context.Context) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	net, err := testnet.Up(ctx, testnet.Options{N: n, Depth: 4})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { net.Close() })
	return net, ctx
}

// open opens an application on a peer.
func open(t *testing.T, ctx context.Context, net *testnet.Network, peer int, name string) *coherence.App {
	t.Helper()
	p, err := net.Peer(peer)
	if err != nil {
		t.Fatal(err)
	}
	app, err := p.Node().Objects().Open(ctx, name)
	if err != nil {
		t.Fatalf("peer %d opens %q: %v", peer, name, err)
	}
	return app
}

func number(b []byte) uint64 {
	if len(b) < 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

// add increments an object.
func add(ctx context.Context, o *coherence.Object) error {
	return o.Update(ctx, func(b []byte) ([]byte, error) { return binary.BigEndian.AppendUint64(nil, number(b)+1), nil })
}

func TestNodesShareAnObject(t *testing.T) {
	t.Parallel()
	net, ctx := up(t, 3)
	var objects []*coherence.Object
	for i := range 3 {
		objects = append(objects, open(t, ctx, net, i, "count").Object("n"))
	}
	const rounds = 20
	start := time.Now()
	for i := range 3 * rounds {
		if err := add(ctx, objects[i%3]); err != nil {
			t.Fatalf("increment %d: %v", i, err)
		}
	}
	t.Logf("%v an increment", time.Since(start)/(3*rounds))
	for i, o := range objects {
		b, err := o.Get(ctx)
		if err != nil || number(b) != 3*rounds {
			t.Fatalf("peer %d reads %d, %v", i, number(b), err)
		}
	}
	if _, err := func() (*coherence.App, error) {
		p, _ := net.Peer(0)
		return p.Node().Objects().Open(ctx, "count")
	}(); !errors.Is(err, coherence.ErrOpen) {
		t.Errorf("opened twice: %v", err)
	}
}

// leader returns the peer that leads the group of a key.
func leader(t *testing.T, ctx context.Context, net *testnet.Network, key keyspace.Key) int {
	t.Helper()
	p, err := net.Peer(0)
	if err != nil {
		t.Fatal(err)
	}
	l, err := p.Node().Groups().Leader(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	return net.IndexOf(peer.ID(l.ID).String())
}

// client reads and writes objects of an application and records what it sees. An object holds how often it was written, and what was written last.
type client struct {
	id     int
	app    *coherence.App
	h      *history.History
	writes map[string]uint64
}

func (c *client) read(ctx context.Context, name string) error {
	op := c.h.Call(c.id, history.Read(name))
	b, err := c.app.Object(name).Get(ctx)
	if err == nil {
		c.h.Return(op, history.Answer{Value: second(b), Version: number(b)})
	}
	return err
}

func (c *client) write(ctx context.Context, name string) error {
	c.writes[name]++
	value := uint64(c.id+1)<<32 | c.writes[name]
	op := c.h.Call(c.id, history.Write(name, value))
	var version uint64
	err := c.app.Object(name).Update(ctx, func(b []byte) ([]byte, error) {
		version = number(b) + 1
		return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, version), value), nil
	})
	if err == nil {
		c.h.Return(op, history.Answer{Version: version})
	}
	return err
}

func second(b []byte) uint64 {
	if len(b) < 16 {
		return 0
	}
	return binary.BigEndian.Uint64(b[8:])
}

// use has clients read and write objects, each until it has done so many calls and stop is closed, or one fails. It returns the first failure.
func use(ctx context.Context, clients []*client, names []string, calls int, stop <-chan struct{}) error {
	var all sync.WaitGroup
	errs := make([]error, len(clients))
	for i, c := range clients {
		all.Go(func() {
			for j := 0; errs[i] == nil && j < 20_000; j++ {
				select {
				case <-stop:
					if j >= calls {
						return
					}
				default:
				}
				name := names[(i+j)%len(names)]
				if j%3 == 0 {
					errs[i] = c.write(ctx, name)
				} else {
					errs[i] = c.read(ctx, name)
				}
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

func clientsOf(h *history.History, apps ...*coherence.App) (cs []*client) {
	for i, a := range apps {
		cs = append(cs, &client{i, a, h, make(map[string]uint64)})
	}
	return cs
}

func check(t *testing.T, h *history.History) {
	t.Helper()
	r := h.CheckSequential(0)
	t.Logf("%d operations", r.Judged)
	if err := r.Err(); err != nil {
		t.Error(err)
	}
}

func closed() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

func TestWhoLeadsTheManagersMayDie(t *testing.T) {
	t.Parallel()
	net, ctx := up(t, 7)
	victim := leader(t, ctx, net, coherence.ObjectKey("app", "d/x"))
	var apps []*coherence.App
	for i := range 7 {
		if i != victim && len(apps) < 3 {
			apps = append(apps, open(t, ctx, net, i, "app"))
		}
	}
	h := history.New()
	names := []string{"d/x", "d/y", "z"}
	cs := clientsOf(h, apps...)
	if err := use(ctx, cs, names, 30, closed()); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	done := make(chan error)
	go func() { done <- use(ctx, cs, names, 60, stop) }()
	start := time.Now()
	if err := net.Kill(victim); err != nil {
		t.Fatal(err)
	}
	if err := add(ctx, apps[0].Object("d/w")); err != nil {
		t.Fatal(err)
	}
	t.Logf("%v after its leader died, the group grants a first touch", time.Since(start))
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	check(t, h)
	if e := apps[0].Epoch(); e != apps[2].Epoch() || e != 1 {
		t.Errorf("the application began anew: epoch %d", e)
	}
}

func TestAnApplicationBeginsAnewWhenAnOwnerDies(t *testing.T) {
	t.Parallel()
	net, ctx := up(t, 7)
	key := coherence.AppKey("app")
	victim := (leader(t, ctx, net, key) + 1) % 7
	other := (victim + 2) % 7
	lost, kept := open(t, ctx, net, victim, "app"), open(t, ctx, net, other, "app")
	h := history.New()
	if err := use(ctx, clientsOf(h, lost, kept), []string{"x", "y"}, 20, closed()); err != nil {
		t.Fatal(err)
	}
	check(t, h)
	if err := lost.Object("x").Set(ctx, []byte("gone with its owner")); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := net.Kill(victim); err != nil {
		t.Fatal(err)
	}
	for {
		err := kept.Object("x").Set(ctx, []byte("late"))
		if errors.Is(err, coherence.ErrRestarted) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%v until it is told", time.Since(start))
	<-kept.Restarted()
	p, err := net.Peer(other)
	if err != nil {
		t.Fatal(err)
	}
	why, err := p.Node().Objects().Anew(ctx, "app")
	if err != nil || why == nil || why.Cause != coherence.Silent || why.Node != lost.Self() || why.Epoch != kept.Epoch()+1 || why.From != 0 || why.At.IsZero() {
		t.Errorf("it began anew since %+v, %v", why, err)
	}
	gone := net.ID(victim).String()
	if err := p.Node().Objects().RestartedSince(ctx, "app"); !errors.Is(err, coherence.ErrRestarted) || !strings.Contains(err.Error(), gone+", which has it open, does not answer") {
		t.Errorf("who is told: %v", err)
	}
	again := open(t, ctx, net, other, "app")
	if again.Epoch() <= kept.Epoch() {
		t.Errorf("epoch %d after %d", again.Epoch(), kept.Epoch())
	}
	if b, err := again.Object("x").Get(ctx); err != nil || len(b) != 0 {
		t.Errorf("x is %q, %v in the new execution", b, err)
	}
	if _, err := kept.Object("x").Get(ctx); !errors.Is(err, coherence.ErrRestarted) {
		t.Errorf("a call of the old execution: %v", err)
	}
}

func TestWhoLeavesHandsOver(t *testing.T) {
	t.Parallel()
	net, ctx := up(t, 5)
	apps := []*coherence.App{open(t, ctx, net, 1, "app"), open(t, ctx, net, 2, "app"), open(t, ctx, net, 3, "app")}
	for _, name := range []string{"a", "b", "c"} {
		if err := apps[0].Object(name).Set(ctx, []byte(name)); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := apps[1].Object("a").Get(ctx); err != nil || string(b) != "a" {
		t.Fatalf("%q, %v", b, err)
	}
	start := time.Now()
	if err := apps[0].Close(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("left in %v", time.Since(start))
	if _, err := apps[0].Object("a").Get(ctx); !errors.Is(err, coherence.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	for _, a := range apps[1:] {
		for _, name := range []string{"a", "b", "c"} {
			if b, err := a.Object(name).Get(ctx); err != nil || string(b) != name {
				t.Errorf("%s is %q, %v after its owner left", name, b, err)
			}
		}
		if err := a.Object("d").Update(ctx, func(b []byte) ([]byte, error) { return append(b, 'd'), nil }); err != nil {
			t.Error(err)
		}
	}
	epoch := apps[1].Epoch()
	for _, a := range apps[1:] {
		if err := a.Close(ctx); err != nil {
			t.Error(err)
		}
	}
	again := open(t, ctx, net, 1, "app")
	if b, err := again.Object("a").Get(ctx); err != nil || len(b) != 0 || again.Epoch() <= epoch {
		t.Errorf("founded again in epoch %d after %d, a is %q, %v", again.Epoch(), epoch, b, err)
	}
}

func TestWhoIsCutOffIsToldLater(t *testing.T) {
	t.Parallel()
	net, ctx := up(t, 7)
	lead := leader(t, ctx, net, coherence.AppKey("app"))
	lonely := (lead + 3) % 7
	for {
		if l := leader(t, ctx, net, coherence.ObjectKey("app", "x")); l != lonely {
			break
		}
		lonely = (lonely + 1) % 7
	}
	others := []int{(lonely + 1) % 7, (lonely + 2) % 7}
	cut := open(t, ctx, net, lonely, "app")
	rest := []*coherence.App{open(t, ctx, net, others[0], "app"), open(t, ctx, net, others[1], "app")}
	if err := cut.Object("x").Set(ctx, []byte("before")); err != nil {
		t.Fatal(err)
	}
	if err := net.Partition(ctx, []int{lonely}); err != nil {
		t.Fatal(err)
	}
	// The majority goes on in another execution.
	for i, a := range rest {
		<-a.Restarted()
		rest[i] = open(t, ctx, net, others[i], "app")
	}
	if err := rest[0].Object("x").Set(ctx, []byte("after")); err != nil {
		t.Fatal(err)
	}
	if b, err := rest[1].Object("x").Get(ctx); err != nil || string(b) != "after" {
		t.Fatalf("%q, %v", b, err)
	}
	// Who is cut off has what it had, and cannot get anything else.
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if b, err := cut.Object("y").Get(short); !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, coherence.ErrRestarted) {
		t.Errorf("who is cut off reads %q, %v", b, err)
	}
	if err := net.Heal(ctx); err != nil {
		t.Fatal(err)
	}
	<-cut.Restarted()
	again := open(t, ctx, net, lonely, "app")
	if b, err := again.Object("x").Get(ctx); err != nil || string(b) != "after" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := cut.Object("x").Get(ctx); !errors.Is(err, coherence.ErrRestarted) {
		t.Errorf("a call of the old execution: %v", err)
	}
}

func BenchmarkView(b *testing.B) {
	ctx := b.Context()
	net, err := testnet.Up(ctx, testnet.Options{N: 3})
	if err != nil {
		b.Fatal(err)
	}
	defer net.Close()
	p, err := net.Peer(0)
	if err != nil {
		b.Fatal(err)
	}
	app, err := p.Node().Objects().Open(ctx, "app")
	if err != nil {
		b.Fatal(err)
	}
	o := app.Object("x")
	if err := o.Set(ctx, make([]byte, 64)); err != nil {
		b.Fatal(err)
	}
	n := 0
	read := func(v []byte) error { n += len(v); return nil }
	b.ReportAllocs()
	for b.Loop() {
		if err := o.View(ctx, read); err != nil {
			b.Fatal(err)
		}
	}
}

func TestAWatcherSeesTheLastValue(t *testing.T) {
	t.Parallel()
	net, ctx := up(t, 3)
	reader, writer := open(t, ctx, net, 0, "app").Object("x"), open(t, ctx, net, 1, "app").Object("x")
	seen := make(chan uint64)
	done := make(chan error, 1)
	end := errors.New("enough")
	go func() {
		done <- reader.Watch(ctx, func(b []byte) error {
			if number(b) == 21 {
				return end
			}
			seen <- number(b)
			return nil
		})
	}()
	last := <-seen
	if last != 0 {
		t.Fatalf("sees %d before anybody has written", last)
	}
	for want := uint64(1); want <= 20; want++ {
		if err := add(ctx, writer); err != nil {
			t.Fatal(err)
		}
		for last != want {
			n := <-seen
			if n < last || n > want {
				t.Fatalf("sees %d after %d, and %d was written last", n, last, want)
			}
			last = n
		}
	}
	if err := add(ctx, writer); err != nil {
		t.Fatal(err)
	}
	for {
		select {
		case n := <-seen: // the same once more, or what comes between
			if n < last || n > 21 {
				t.Fatalf("sees %d after %d, and 21 was written last", n, last)
			}
			last = n
			continue
		case err := <-done:
			if err != end {
				t.Error(err)
			}
		}
		return
	}
}

// TestNobodySpeaksForManagersButTheirGroup has a peer that is no member of an application's group end its execution, and take its object away.
func TestNobodySpeaksForManagersButTheirGroup(t *testing.T) {
	t.Parallel()
	net, ctx := up(t, 7)
	app, object := coherence.AppKey("app"), coherence.ObjectKey("app", "x")
	first := open(t, ctx, net, 0, "app")
	x := first.Object("x")
	if err := x.Set(ctx, []byte("mine")); err != nil {
		t.Fatal(err)
	}
	to, err := net.Peer(0)
	if err != nil {
		t.Fatal(err)
	}
	member := func(n *node.Node) bool {
		for _, key := range []keyspace.Key{app, object} {
			d, err := to.Node().Groups().Locate(ctx, key)
			if err != nil {
				t.Fatal(err)
			}
			if _, is := d.View.MemberAt(n.Overlay().Node()); is {
				return true
			}
		}
		return false
	}
	var liar *node.Node
	for i := range 7 {
		if p, err := net.Peer(i); err == nil && i > 0 && !member(p.Node()) {
			liar = p.Node()
		}
	}
	if liar == nil {
		t.Fatal("all peers are members")
	}
	self := first.Self()
	for _, m := range []protocol.Message{
		{Kind: protocol.Destroy, From: protocol.Address{Party: protocol.AppManager}, Epoch: 99},
		{Kind: protocol.Destroy, From: protocol.Address{Party: protocol.ObjectManager}, Epoch: 99, Object: object},
		{Kind: protocol.ForwardedWrite, From: protocol.Address{Party: protocol.ObjectManager}, Epoch: first.Epoch(), Object: object,
			Requester: protocol.NodeRef{ID: liar.Overlay().Node(), Inc: 1}, Seq: 1, LastInv: 9},
		{Kind: protocol.Copy, From: protocol.At(protocol.NodeRef{ID: self.ID, Inc: 7}), Epoch: first.Epoch(), Object: object, Seq: 1, Value: new(protocol.Cell)},
	} {
		m.To = protocol.At(self)
		frame, err := pb.EncodeFrame(nil, app, &m)
		if err != nil {
			t.Fatal(err)
		}
		if err := liar.Overlay().Send(to.Node().ID(), keyspace.Key{}, pb.Service, frame); err != nil {
			t.Fatal(err)
		}
	}
	// Behind them on the same stream, and so after them; the last of them has reset it, so it may take another one.
	for {
		if _, err := liar.Overlay().Call(ctx, to.Node().ID(), keyspace.Key{}, "coherence/who", self.ID[:]); err == nil {
			break
		} else if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
	other := open(t, ctx, net, 1, "app")
	if b, err := other.Object("x").Get(ctx); err != nil || string(b) != "mine" || other.Epoch() != first.Epoch() {
		t.Errorf("another node reads %q, %v", b, err)
	}
	if err := x.Set(ctx, []byte("still")); err != nil {
		t.Error(err)
	}
	if err := x.Set(ctx, make([]byte, protocol.ValueMax)); err != nil {
		t.Errorf("the longest value: %v", err)
	}
	if err := x.Set(ctx, make([]byte, protocol.ValueMax+1)); !errors.Is(err, coherence.ErrTooLarge) {
		t.Errorf("a longer value: %v", err)
	}
	if b, err := other.Object("x").Get(ctx); err != nil || len(b) != protocol.ValueMax {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// TestClientsShareObjects has an owner send copies to nodes that it has never met.
func TestClientsShareObjects(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	newHost := func() host.Host {
		h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { h.Close() })
		return h
	}
	founder := newHost()
	genesis, store, err := node.Found(founder, node.FoundOptions{Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	start := func(h host.Host, opts ...node.Option) *node.Node {
		n, err := node.New(h, append(opts, node.WithOverlay(genesis))...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.Close() })
		if err := n.Start(ctx); err != nil {
			t.Fatal(err)
		}
		return n
	}
	start(founder, node.WithStore(store))
	var apps []*coherence.App
	for range 3 {
		app, err := start(newHost(), node.ClientOnly()).Objects().Open(ctx, "app")
		if err != nil {
			t.Fatal(err)
		}
		apps = append(apps, app)
	}
	h := history.New()
	if err := use(ctx, clientsOf(h, apps...), []string{"x", "y"}, 20, closed()); err != nil {
		t.Fatal(err)
	}
	check(t, h)
	for _, a := range apps {
		if err := a.Close(ctx); err != nil {
			t.Error(err)
		}
	}
}
