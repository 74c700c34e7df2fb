package coherence_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"latchkey/coherence"
	"latchkey/coherence/durable"
	"latchkey/coherence/durable/host"
	"latchkey/coherence/durable/pb"
	"latchkey/dht/keyspace"
	"latchkey/testnet"
)

// durableAt returns the durable application of a peer.
func durableAt(t *testing.T, net *testnet.Network, i int, app string) *coherence.Durable {
	t.Helper()
	p, err := net.Peer(i)
	if err != nil {
		t.Fatal(err)
	}
	d, err := p.Node().Objects().Durable(app)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// leaderOf returns the index of the peer that leads the group of an object, as peer i knows.
func leaderOf(ctx context.Context, t *testing.T, net *testnet.Network, i int, object string) int {
	t.Helper()
	p, err := net.Peer(i)
	if err != nil {
		t.Fatal(err)
	}
	groups := p.Node().Groups()
	d, err := groups.Locate(ctx, durable.KeyOf(object))
	if err != nil {
		t.Fatal(err)
	}
	leader, err := groups.LeaderOf(ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	return net.IndexOf(peer.ID(leader.ID).String())
}

// What a write has returned for outlives the group's leader, and versions rise for everybody: two increment a counter, and a third one
// reads it, while its leader is killed again and again.
func TestADurableCounterOutlivesItsLeaders(t *testing.T) {
	t.Parallel()
	net, ctx := up(t, 5)
	const app, name, kills = "count", "n", 2
	object := app + "/" + name
	if _, err := durableAt(t, net, 0, app).Object(name).Write(ctx, []byte("0"), coherence.IfAbsent()); err != nil {
		t.Fatal(err)
	}
	// The leader and whoever may lead next are killed; the others are users.
	p, err := net.Peer(0)
	if err != nil {
		t.Fatal(err)
	}
	d, err := p.Node().Groups().Locate(ctx, durable.KeyOf(object))
	if err != nil {
		t.Fatal(err)
	}
	voter := map[int]bool{}
	for _, v := range d.Peers {
		voter[net.IndexOf(peer.ID(v.ID).String())] = true
	}
	var users []int
	for i := range net.N() {
		if !voter[i] {
			users = append(users, i)
		}
	}
	if len(users) < 2 {
		t.Fatalf("%d users beside the voters", len(users))
	}
	over := make(chan struct{})
	var all sync.WaitGroup
	var mu sync.Mutex
	done, unknown := 0, 0
	for _, u := range users {
		o := durableAt(t, net, u, app).Object(name)
		all.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				err := o.Update(ctx, func(b []byte) ([]byte, error) {
					n, err := strconv.Atoi(string(b))
					return strconv.AppendInt(nil, int64(n)+1, 10), err
				})
				mu.Lock()
				switch {
				case err == nil:
					done++
				case errors.Is(err, coherence.ErrOutcomeUnknown):
					unknown++
				case ctx.Err() != nil:
				default:
					t.Errorf("an update: %v", err)
				}
				mu.Unlock()
			}
		})
	}
	reader := durableAt(t, net, users[0], app).Object(name)
	all.Go(func() {
		var last coherence.Value
		for {
			select {
			case <-over:
				return
			default:
			}
			mu.Lock()
			before := done
			mu.Unlock()
			v, err := reader.Read(ctx)
			if err != nil {
				if !errors.Is(err, coherence.ErrStale) && ctx.Err() == nil {
					t.Errorf("a read: %v", err)
				}
				continue
			}
			n, _ := strconv.Atoi(string(v.Bytes))
			if n < before || v.Version < last.Version || v.Version == last.Version && !bytes.Equal(v.Bytes, last.Bytes) {
				t.Errorf("version %d has %s after version %d, and %d were made", v.Version, v.Bytes, last.Version, before)
			}
			last = v
		}
	})
	await := func(n int) {
		t.Helper()
		for {
			mu.Lock()
			enough := done >= n
			mu.Unlock()
			if enough {
				return
			}
			select {
			case <-ctx.Done():
				t.Fatalf("%d were made, of %d", done, n)
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	for range kills {
		mu.Lock()
		n := done
		mu.Unlock()
		await(n + 20)
		l := leaderOf(ctx, t, net, users[0], object)
		if err := net.Kill(l); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		n = done
		mu.Unlock()
		await(n + 5)
		if err := net.Restart(ctx, l); err != nil {
			t.Fatal(err)
		}
	}
	close(over)
	all.Wait()
	for _, u := range users {
		v, err := durableAt(t, net, u, app).Object(name).Read(ctx)
		if err != nil {
			t.Fatal(err)
		}
		// Each makes one version, and no version is made by anything else but the founding.
		n, _ := strconv.Atoi(string(v.Bytes))
		if n < done || n > done+unknown || v.Version.Counter() != uint64(n+1) {
			t.Errorf("%d, version %d, and %d were made, %d unknown", n, v.Version, done, unknown)
		}
	}
	t.Logf("%d made, %d unknown", done, unknown)
}

// Values of any size up to the limit stand in the log, in snapshots of it, and at a leader that has just been elected.
func TestALongValueOutlivesItsLeader(t *testing.T) {
	t.Parallel()
	net, ctx := up(t, 3)
	value := func(i int) []byte { return bytes.Repeat([]byte{byte(i)}, 1<<20-i) }
	d := durableAt(t, net, 0, "long")
	const n = 20 // more than a log keeps without a snapshot
	for i := range n {
		if err := d.Object(fmt.Sprint("v", i%4)).Set(ctx, value(i)); err != nil {
			t.Fatal(err)
		}
	}
	l := leaderOf(ctx, t, net, 0, "long/v0")
	if err := net.Kill(l); err != nil {
		t.Fatal(err)
	}
	r := durableAt(t, net, (l+1)%3, "long")
	for i := n - 4; i < n; i++ {
		b, err := r.Object(fmt.Sprint("v", i%4)).Get(ctx)
		if err != nil || !bytes.Equal(b, value(i)) {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
	}
	if err := r.Object("v1").Set(ctx, value(n)); err != nil {
		t.Fatal(err)
	}
	if err := net.Restart(ctx, l); err != nil {
		t.Fatal(err)
	}
	if b, err := durableAt(t, net, l, "long").Object("v1").Get(ctx); err != nil || !bytes.Equal(b, value(n)) {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	p, err := net.Peer(l)
	if err != nil {
		t.Fatal(err)
	}
	c := p.Node().Groups().NewClient()
	defer c.Close()
	b, err := c.Query(ctx, durable.KeyOf("long/v1"), host.ServiceName, host.InfoQuery("long/v1"))
	if err != nil {
		t.Fatal(err)
	}
	if i, err := host.DecodeInfo(b); err != nil || !i.Exists || i.Size != 1<<20-n || i.Objects != 4 {
		t.Errorf("%+v, %v", i, err)
	}
}

// Whoever is no leader of the generation that a frame names says so, with the group that it knows; a frame that no node sends costs its stream.
func TestWhoDoesNotLeadSaysWhoDoes(t *testing.T) {
	t.Parallel()
	net, ctx := up(t, 3)
	if err := durableAt(t, net, 0, "where").Object("x").Set(ctx, nil); err != nil {
		t.Fatal(err)
	}
	l := leaderOf(ctx, t, net, 0, "where/x")
	from, err := net.Peer((l + 1) % 3)
	if err != nil {
		t.Fatal(err)
	}
	other, err := net.Peer((l + 2) % 3)
	if err != nil {
		t.Fatal(err)
	}
	groups := from.Node().Groups()
	d, err := groups.Locate(ctx, durable.KeyOf("where/x"))
	if err != nil {
		t.Fatal(err)
	}
	declined := func() uint64 { return other.Node().Groups().Counters().LedDeclined }
	malformed := func() uint64 { return other.Node().Groups().Counters().Malformed }
	say := func(gen uint64, m durable.Message) {
		t.Helper()
		frame, err := pb.EncodePacket(nil, &pb.Packet{Prefix: d.Group.Prefix, Gen: gen, Messages: []durable.Message{m}})
		if err != nil {
			t.Fatal(err)
		}
		if err := from.Node().Overlay().Send(other.Node().ID(), keyspace.Key{}, pb.ServiceLeader, frame); err != nil {
			t.Fatal(err)
		}
	}
	until := func(what string, is func() bool) {
		t.Helper()
		for !is() {
			select {
			case <-ctx.Done():
				t.Fatal(what)
			case <-time.After(time.Millisecond):
			}
		}
	}
	read := durable.Message{Kind: durable.Read, Session: durable.Session{Inc: 1, N: 1}, Object: "where/x", Seq: 1}
	before := declined()
	say(d.Group.Gen, read)
	say(d.Group.Gen+1, read)
	until("a follower takes frames", func() bool { return declined() == before+2 })
	bad := malformed()
	say(d.Group.Gen, durable.Message{Kind: durable.Lease, Seq: 1, Tenure: durable.Tenure{Term: 1}}) // as if it led
	until("a frame of a leader is taken", func() bool { return malformed() == bad+1 })
}
