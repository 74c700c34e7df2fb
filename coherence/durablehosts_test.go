package coherence_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"latchkey/coherence"
	"latchkey/coherence/durable"
	"latchkey/dht"
	"latchkey/internal/history"
	"latchkey/testnet"
)

func durableApp(t *testing.T, net *testnet.Network, peer int) *coherence.Durable {
	t.Helper()
	p, err := net.Peer(peer)
	if err != nil {
		t.Fatal(err)
	}
	d, err := p.Node().Objects().Durable("app")
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// replaced waits until no replica on the other peers has gone among its group's members.
func replaced(t *testing.T, ctx context.Context, net *testnet.Network, gone int) {
	t.Helper()
	in := func() bool {
		for i := range net.N() {
			p, err := net.Peer(i)
			if i == gone || err != nil {
				continue
			}
			groups, err := p.Node().Groups().Status(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for _, g := range groups {
				if _, is := g.Status.View.MemberAt(dht.NodeIDOf(net.ID(gone))); is && !g.Leaves && !g.Halted {
					return true
				}
			}
		}
		return false
	}
	for in() {
		select {
		case <-ctx.Done():
			t.Fatal("a peer that is cut off is not replaced")
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func plusOne(b []byte) ([]byte, error) {
	n, _ := strconv.Atoi(string(b))
	return strconv.AppendInt(nil, int64(n)+1, 10), nil
}

// TestDurableObjectsBetweenPeers goes through what there is on a real overlay.
func TestDurableObjectsBetweenPeers(t *testing.T) {
	t.Parallel()
	net, ctx := up(t, 3)
	x, y := durableApp(t, net, 0).Object("dir/x"), durableApp(t, net, 1).Object("dir/x")
	v, err := x.Write(ctx, []byte("1"), coherence.IfAbsent())
	if err != nil {
		t.Fatal(err)
	}
	watched, cancel := context.WithCancel(ctx)
	defer cancel()
	changes := make(chan coherence.Change, 100)
	go durableApp(t, net, 2).Object("dir/x").Watch(watched, 0, func(c coherence.Change) error { changes <- c; return nil })
	if c := <-changes; string(c.Bytes) != "1" || c.Version != v {
		t.Errorf("%+v", c)
	}
	for i := range 20 {
		if err := x.Set(ctx, fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
		if b, err := y.Get(ctx); err != nil || string(b) != fmt.Sprint(i) {
			t.Errorf("%s, %v; written was %d", b, err, i)
		}
	}
	for last := v; last != v+20; {
		c := <-changes
		if c.Version <= last || c.Version != last+1 && !c.Lagged {
			t.Errorf("%d after %d, lagged %v", c.Version, last, c.Lagged)
		}
		last = c.Version
	}
	var conflict *coherence.ConflictError
	if _, err := y.CompareAndSwap(ctx, v, nil); !errors.As(err, &conflict) || string(conflict.Found.Bytes) != "19" {
		t.Error(err)
	}
	large := make([]byte, 1<<20)
	if err := y.Set(ctx, large); err != nil {
		t.Errorf("a large value: %v", err)
	}
	if b, err := x.Get(ctx); err != nil || len(b) != len(large) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if l, err := durableApp(t, net, 2).Directory("dir").List(ctx, "", 0); err != nil || fmt.Sprint(l.Names) != "[x]" {
		t.Errorf("%+v, %v", l, err)
	}
	if existed, err := y.Delete(ctx); !existed || err != nil {
		t.Errorf("%v, %v", existed, err)
	}
	if l, err := durableApp(t, net, 2).Directory("dir").List(ctx, "", 0); err != nil || len(l.Names) != 0 {
		t.Errorf("%+v, %v", l, err)
	}
}

// TestDurableObjectsOutliveTheirLeader (durable-objects.md section 14, test 13 in small): peers count together while who leads the object's group dies.
// Nothing is lost, and nothing counted twice.
func TestDurableObjectsOutliveTheirLeader(t *testing.T) {
	t.Parallel()
	net, ctx := up(t, 5)
	const each = 10
	lead := leader(t, ctx, net, durable.KeyOf("app/n"))
	var wg sync.WaitGroup
	for i := range 5 {
		if i == lead {
			continue
		}
		o := durableApp(t, net, i).Object("n")
		wg.Go(func() {
			for j := range each {
				update := o.Update
				if j%2 == 0 {
					update = o.UpdateOnce
				}
				if err := update(ctx, plusOne); err != nil {
					t.Error(err)
					return
				}
				if j == 3 && i == (lead+1)%5 {
					if err := net.Kill(lead); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	for i := range 5 {
		if i != lead {
			if b, err := durableApp(t, net, i).Object("n").Get(ctx); err != nil || string(b) != fmt.Sprint(4*each) {
				t.Errorf("peer %d reads %s, %v; want %d", i, b, err, 4*each)
			}
		}
	}
}

// TestDurableObjectsStaySequentiallyConsistent (test 18, on real peers): through the partition of who reads them and the death of who leads their group,
// over several objects. Who is cut off reads nothing stale, and costs a writer a lease at most.
func TestDurableObjectsStaySequentiallyConsistent(t *testing.T) {
	t.Parallel()
	net, ctx := up(t, 5)
	names := []string{"d/x", "d/y", "z"}
	lead := leader(t, ctx, net, durable.KeyOf("app/d/x"))
	lonely := (lead + 1) % 5
	h := history.New()
	stop := make(chan struct{})
	cut, stopCut := context.WithCancel(ctx)
	done := make(chan struct{}, 1<<16)
	await := func(calls int) {
		for range calls {
			select {
			case <-done:
			case <-ctx.Done():
				t.Fatal(ctx.Err())
			}
		}
	}
	for _, name := range append(names, "w") { // the leaders of new groups wait before their first writes return
		if err := durableApp(t, net, lonely).Object(name).Set(ctx, nil); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for i := range 5 {
		if i == lead {
			continue
		}
		d := durableApp(t, net, i)
		ctx := ctx
		if i == lonely {
			ctx = cut
		}
		wg.Go(func() {
			for j := 0; ; j++ {
				select {
				case <-stop:
					return
				default:
				}
				o := d.Object(names[(i+j)%len(names)])
				var err error
				if j%4 == 0 && i != lonely {
					value := uint64(i+1)<<32 | uint64(j+1)
					op := h.Call(i, history.Write(o.Name(), value))
					var n uint64
					err = o.Update(ctx, func(b []byte) ([]byte, error) {
						n = number(b) + 1
						return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, n), value), nil
					})
					if err == nil {
						h.Return(op, history.Answer{Version: n})
					}
				} else {
					op := h.Call(i, history.Read(o.Name()))
					var b []byte
					if b, err = o.Get(ctx); err == nil {
						h.Return(op, history.Answer{Value: second(b), Version: number(b)})
					}
				}
				if err != nil {
					if i != lonely || cut.Err() == nil {
						t.Errorf("peer %d: %v", i, err)
					}
					return
				}
				done <- struct{}{}
				time.Sleep(5 * time.Millisecond) // what there is to judge is bounded
			}
		})
	}
	await(100)
	if err := net.Partition(ctx, []int{lonely}); err != nil {
		t.Fatal(err)
	}
	o := durableApp(t, net, (lead+2)%5).Object("w")
	if err := o.Set(ctx, nil); err != nil {
		t.Error(err)
	}
	await(100)
	stopCut()
	replaced(t, ctx, net, lonely) // or two of a group's three would be gone
	if err := net.Kill(lead); err != nil {
		t.Fatal(err)
	}
	if err := o.Set(ctx, nil); err != nil {
		t.Error(err)
	}
	await(100)
	close(stop)
	wg.Wait()
	check(t, h)
	if err := h.CheckRegister(time.Minute).Err(); err != nil { // each object by itself is even linearizable
		t.Error(err)
	}
}
