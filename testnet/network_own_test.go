package testnet

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"latchkey/dht/keyspace"
	"latchkey/lockservice"
)

// A lock that is held, and waited for, moves to a group of its own and back: its holder keeps it, those who wait are served in their
// order, and tokens rise. What a holder and a stranger see of the move is a pause.
func TestALockMovesToItsOwnGroupAndBackWhileItIsHeld(t *testing.T) {
	t.Parallel()
	n := up(t, Options{N: 7, F: 1, OwnGroups: true, NoSigma: true})
	const name = "moves"
	key := keyspace.Preimage(name)
	locks := func(i int) *lockservice.Service { return peerAt(t, n, i).Node().Locks() }
	held, err := locks(0).Lock(patient(t), name, lockservice.WithTTL(5*time.Second))
	must(t, err)

	// Waiters, in this order.
	type grant struct {
		peer  int
		token lockservice.Token
	}
	granted := make(chan grant, 3)
	whole := patient(t) // or who waits would do so for ever where another one fails
	var waiting sync.WaitGroup
	for _, i := range []int{3, 5, 6} {
		queued := make(chan struct{}, 16)
		waiting.Go(func() {
			h, err := locks(i).Lock(whole, name, lockservice.WithTTL(5*time.Second), lockservice.WithQueued(func(int) {
				select {
				case queued <- struct{}{}:
				default:
				}
			}))
			if err != nil {
				t.Error(err)
				return
			}
			granted <- grant{i, h.Token()}
			if err := h.Release(whole); err != nil {
				t.Errorf("release by %d: %v", i, err)
			}
		})
		select {
		case <-queued:
		case <-whole.Done():
			t.Fatalf("peer %d does not wait", i)
		}
	}
	info := func(i int) lockservice.Info {
		t.Helper()
		info, err := locks(i).Info(patient(t), name)
		must(t, err)
		return info
	}
	before := info(1)
	if before.Waiting != 3 || before.Token != held.Token() {
		t.Fatalf("before: %+v", before)
	}

	operator := peerAt(t, n, 4).Node().Groups()
	start := time.Now()
	own, err := operator.GiveOwnGroup(patient(t), key)
	must(t, err)
	t.Logf("own group %v after %v", own.Group, time.Since(start))
	start = time.Now()
	after := info(1)
	t.Logf("info after %v", time.Since(start))
	if after.Waiting != 3 || after.Token != held.Token() || after.Holder != before.Holder || !after.Held {
		t.Errorf("at its own group: %+v, before %+v", after, before)
	}
	for i, w := range after.Waiters {
		if w.Party != before.Waiters[i].Party {
			t.Errorf("waiter %d was %v and is %v", i, before.Waiters[i].Party, w.Party)
		}
	}
	low := after.LeaseLeft       // it may have been renewed a moment ago, and be whole
	eventually(t, func() error { // the holder finds its way
		left := info(1).LeaseLeft
		if left <= low {
			low = left
			return fmt.Errorf("%v left of the lease after the move, and %v now: it was not renewed", after.LeaseLeft, left)
		}
		return nil
	})

	start = time.Now()
	must(t, operator.TakeBackKey(patient(t), key))
	t.Logf("back after %v", time.Since(start))
	if back := info(2); back.Waiting != 3 || back.Token != held.Token() || back.Holder != before.Holder {
		t.Errorf("back at its prefix's group: %+v, before %+v", back, before)
	}
	must(t, held.Release(patient(t)))
	last := held.Token()
	for _, want := range []int{3, 5, 6} {
		var g grant
		select {
		case g = <-granted:
		case <-whole.Done():
			t.Fatalf("peer %d is not granted the lock", want)
		}
		if g.peer != want || g.token <= last {
			t.Errorf("peer %d was granted the lock under %v, want peer %d above %v", g.peer, g.token, want, last)
		}
		last = g.token
	}
	waiting.Wait()
}
