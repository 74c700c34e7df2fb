package coherence_test

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"latchkey/coherence"
	"latchkey/internal/history"
)

// TestDurableObjectsAreLinearizableWhateverHappens (durable-objects.md section 14, tests 13, 15 and 18): who leads the objects' group, who writes and who has
// copies dies, starts again, leaves and is cut off while all read, write, compare, create, delete and watch. What was written blindly and
// whose outcome nobody knows may have taken place once, at any time. No peer sees a version fall, and no watch skips one without saying so.
func TestDurableObjectsAreLinearizableWhateverHappens(t *testing.T) {
	t.Parallel()
	const peers = 6
	net, ctx := up(t, peers)
	names := []string{"d/x", "d/y", "z"}
	h := history.New()
	// A client is one life of a user of one peer: it ends where that dies.
	type user struct {
		cancel context.CancelFunc
		wg     sync.WaitGroup
	}
	var clients atomic.Int64
	var calls, unknown, conflicts, changes atomic.Int64
	var mu sync.Mutex
	made := map[string]map[coherence.Version]uint64{} // what the version of an object is, as everybody has to find it
	found := func(o *coherence.DurableObject, v coherence.Version, value uint64) {
		mu.Lock()
		defer mu.Unlock()
		m := made[o.Name()]
		if m == nil {
			m = map[coherence.Version]uint64{}
			made[o.Name()] = m
		}
		if was, ok := m[v]; ok && was != value {
			t.Errorf("%s: version %d is %d and %d", o.Name(), v, was, value)
		}
		m[v] = value
	}
	valueOf := func(b []byte) uint64 {
		if len(b) < 8 {
			return 0
		}
		return binary.BigEndian.Uint64(b)
	}
	start := func(peer int) *user {
		d := durableApp(t, net, peer)
		ctx, cancel := context.WithCancel(ctx)
		u := &user{cancel: cancel}
		watched := names[peer%len(names)]
		u.wg.Go(func() {
			var last coherence.Version
			first := true
			d.Object(watched).Watch(ctx, 0, func(c coherence.Change) error {
				changes.Add(1)
				if !first && (c.Version <= last || last > 0 && c.Version != last+1 && !c.Lagged || last == 0 && c.Lagged != (c.Version.Counter() != 1)) {
					t.Errorf("peer %d is told of version %d of %s after %d, lagged %v", peer, c.Version, watched, last, c.Lagged)
				}
				first, last = false, c.Version
				found(d.Object(watched), c.Version, valueOf(c.Bytes))
				return nil
			})
		})
		for range 2 {
			client := int(clients.Add(1))
			u.wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(client), 7))
				seen := map[string]coherence.Version{}
				for j := uint64(1); ctx.Err() == nil; j++ {
					o := d.Object(names[rng.IntN(len(names))])
					value := uint64(client)<<32 | j
					raw := binary.BigEndian.AppendUint64(nil, value)
					see := func(v coherence.Version) {
						if v < seen[o.Name()] {
							t.Errorf("client %d: version %d of %s after %d", client, v, o.Name(), seen[o.Name()])
						}
						seen[o.Name()] = v
					}
					limited, cancel := ctx, context.CancelFunc(func() {})
					if rng.IntN(8) == 0 { // somebody is in a hurry
						limited, cancel = context.WithTimeout(ctx, time.Duration(rng.IntN(5000))*time.Microsecond)
					}
					var err error
					switch k := rng.IntN(10); {
					case k < 6:
						id := h.Call(client, history.Read(o.Name()))
						var v coherence.Value
						if v, err = o.Read(limited); err == nil {
							see(v.Version)
							found(o, v.Version, valueOf(v.Bytes))
							h.Return(id, history.Answer{Value: valueOf(v.Bytes)})
						} else {
							h.NoEffect(id)
						}
					case k < 9:
						if k == 8 { // 0 is what there is where nothing is
							value, raw = 0, nil
						}
						id := h.Call(client, history.Write(o.Name(), value))
						var v coherence.Version
						v, err = o.Write(limited, raw)
						switch {
						case err == nil:
							see(v)
							found(o, v, value)
							h.Return(id, history.Answer{})
						case errors.Is(err, coherence.ErrOutcomeUnknown):
							unknown.Add(1)
						default:
							h.NoEffect(id)
						}
					default:
						var v coherence.Value
						if v, err = o.Read(limited); err != nil {
							break
						}
						id := h.Call(client, history.CAS(o.Name(), valueOf(v.Bytes), value))
						var n coherence.Version
						n, err = o.CompareAndSwap(limited, v.Version, raw)
						var conflict *coherence.ConflictError
						switch {
						case err == nil:
							see(n)
							found(o, n, value)
							h.Return(id, history.Answer{OK: true, Value: valueOf(v.Bytes)})
						case errors.Is(err, coherence.ErrOutcomeUnknown):
							unknown.Add(1)
						case errors.As(err, &conflict):
							conflicts.Add(1)
							see(conflict.Found.Version)
							now := valueOf(conflict.Found.Bytes)
							if found(o, conflict.Found.Version, now); now != valueOf(v.Bytes) {
								h.Return(id, history.Answer{Value: now})
							} else {
								h.NoEffect(id)
							}
						default:
							h.NoEffect(id)
						}
					}
					cancel()
					calls.Add(1)
					select {
					case <-ctx.Done():
					case <-time.After(4 * time.Millisecond): // what there is to judge is bounded
					}
				}
			})
		}
		return u
	}
	for _, n := range names { // the leader of a new group waits before its first write returns
		if _, err := durableApp(t, net, 0).Object(n).Delete(ctx); err != nil {
			t.Fatal(err)
		}
	}
	users := make([]*user, peers)
	for i := range users {
		users[i] = start(i)
	}
	end := func(i int) {
		users[i].cancel()
		users[i].wg.Wait()
	}
	await := func(n int64) {
		t.Helper()
		for until := calls.Load() + n; calls.Load() < until; {
			select {
			case <-ctx.Done():
				t.Fatal(ctx.Err())
			case <-time.After(time.Millisecond):
			}
		}
	}
	fatal := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	await(100)
	lead := leaderOf(ctx, t, net, 0, "app/d/x")
	holder, gone := (lead+1)%peers, (lead+2)%peers
	fatal(net.Partition(ctx, []int{holder})) // its copies last for a lease, and cost a writer no more
	await(100)
	fatal(net.Heal(ctx)) // one at a time: of three voters one may fail
	fatal(net.WaitReady(ctx))
	fatal(net.Kill(lead))
	end(lead)
	await(100)
	fatal(net.Restart(ctx, lead))
	users[lead] = start(lead)
	fatal(net.Kill(gone)) // who writes, and has copies
	end(gone)
	await(100)
	fatal(net.Restart(ctx, gone))
	users[gone] = start(gone)
	now := leaderOf(ctx, t, net, gone, "app/d/x")
	leaving := make(chan error)
	go func() { leaving <- net.Leave(ctx, now) }()
	await(100)
	fatal(<-leaving)
	end(now)
	await(100)
	for i := range users {
		users[i].cancel()
	}
	for i := range users {
		users[i].wg.Wait()
	}
	r := h.CheckRegister(time.Minute)
	t.Logf("%d calls, %d unknown, %d conflicts, %d changes, %d judged", calls.Load(), unknown.Load(), conflicts.Load(), changes.Load(), r.Judged)
	if err := r.Err(); err != nil {
		t.Error(err)
	}
}
