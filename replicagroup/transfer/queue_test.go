package transfer

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"latchkey/internal/automaton"
	"latchkey/replicagroup/order"
)

func at(d time.Duration) automaton.Instant { return automaton.Instant(d) }

func begun(t *testing.T, out *Orders, want ...byte) {
	t.Helper()
	var keys []Key
	for _, n := range want {
		keys = append(keys, testKey(n))
	}
	if !slices.Equal(out.Begin, keys) {
		t.Errorf("begun %v, want %v", out.Begin, keys)
	}
	*out = Orders{}
}

func TestTwoRunAndTheOthersWaitTheirTurn(t *testing.T) {
	var q Queue
	var out Orders
	for n := range byte(5) {
		q.Want(testKey(n), "p", false, at(0), &out)
	}
	begun(t, &out, 0, 1)
	q.Ended(testKey(1), Delivered, at(1), &out)
	if len(out.Told) != 1 || out.Told[0] != (Told{testKey(1), order.Arrived}) {
		t.Errorf("told %v", out.Told)
	}
	begun(t, &out, 2)
	q.Want(testKey(0), "p", true, at(2), &out) // runs already
	q.Want(testKey(4), "p", true, at(2), &out) // waits already
	begun(t, &out)
	q.Drop(testKey(3), at(3), &out)
	q.Ended(testKey(0), Rejected, at(3), &out)
	if len(out.Told) != 1 || out.Told[0] != (Told{testKey(0), order.Failed}) {
		t.Errorf("told %v", out.Told)
	}
	begun(t, &out, 4)
	if q.Len() != 2 || q.Running() != 2 {
		t.Errorf("%d known, %d running", q.Len(), q.Running())
	}
}

func TestABrokenTransferIsTriedAgainUntilNothingMoves(t *testing.T) {
	var q Queue
	var out Orders
	now := at(0)
	q.Want(testKey(1), "p", false, now, &out)
	begun(t, &out, 1)
	// As long as something moves it goes on.
	for range 3 * TriesMax {
		q.Moved(testKey(1))
		q.Ended(testKey(1), Broken, now, &out)
		begun(t, &out)
		now = now.Add(RetryMin)
		q.Tick(now, &out)
		begun(t, &out, 1)
	}
	pause := 2 * RetryMin // the last stream that moved something has failed too
	q.Ended(testKey(1), Broken, now, &out)
	for range TriesMax - 2 {
		q.Tick(now.Add(pause-1), &out)
		begun(t, &out)
		if next := q.Next(); next > now.Add(max(pause, ReportEvery)) {
			t.Errorf("the next try is not waited for but %v", next.Sub(now))
		}
		now = now.Add(pause)
		q.Tick(now, &out)
		begun(t, &out, 1)
		pause *= 2
		q.Ended(testKey(1), Broken, now, &out)
	}
	if !slices.Contains(out.Told, Told{testKey(1), order.Failed}) || q.Len() != 0 || q.Next() != automaton.Never {
		t.Errorf("told %v, %d known", out.Told, q.Len())
	}
}

func TestOtherBytesBeginAnew(t *testing.T) {
	var q Queue
	var out Orders
	q.Want(testKey(1), "p", false, at(0), &out)
	begun(t, &out, 1)
	q.Want(testKey(1), "p", false, at(1), &out)
	q.Want(testKey(1), "p", false, at(1), &out)
	if !slices.Equal(out.Cut, []Key{testKey(1)}) {
		t.Errorf("cut %v", out.Cut)
	}
	out = Orders{}
	q.Ended(testKey(1), Delivered, at(2), &out) // the former bytes did arrive in the end
	if len(out.Told) > 0 {
		t.Errorf("told %v of bytes that nobody wants any more", out.Told)
	}
	begun(t, &out, 1)
	// Dropped while it runs, and wanted again before its end.
	q.Drop(testKey(1), at(3), &out)
	q.Want(testKey(1), "p", true, at(3), &out)
	out = Orders{}
	q.Ended(testKey(1), Broken, at(3), &out)
	begun(t, &out, 1)
	q.Drop(testKey(1), at(4), &out)
	q.Ended(testKey(1), Broken, at(4), &out)
	if len(out.Told) > 0 || q.Len() != 0 {
		t.Errorf("told %v, %d known", out.Told, q.Len())
	}
}

func TestAPlaceAtABusyReceiverIsGivenUpForAnotherPeer(t *testing.T) {
	var q Queue
	var out Orders
	for n, p := range []string{"busy", "busy", "busy", "free"} {
		q.Want(testKey(byte(n)), p, false, at(0), &out)
	}
	begun(t, &out, 0, 1)
	q.Waiting(testKey(0), at(0), &out)
	q.Waiting(testKey(1), at(0), &out)
	q.Waiting(testKey(2), at(0), &out) // has no stream
	q.Tick(at(WaitMax-1), &out)
	if len(out.Cut) > 0 {
		t.Errorf("cut %v before its time", out.Cut)
	}
	if next := q.Next(); next > at(WaitMax) {
		t.Errorf("next at %v", next)
	}
	q.Tick(at(WaitMax), &out)
	if len(out.Cut) > 0 { // the next in line is for the same peer
		t.Errorf("cut %v for one that would have to wait as well", out.Cut)
	}
	q.Drop(testKey(2), at(WaitMax), &out)
	if !slices.Equal(out.Cut, []Key{testKey(0), testKey(1)}) {
		t.Errorf("cut %v", out.Cut)
	}
	out = Orders{}
	q.Ended(testKey(0), Deferred, at(WaitMax), &out)
	begun(t, &out, 3)
	q.Ended(testKey(1), Deferred, at(WaitMax), &out)
	begun(t, &out)
	q.Tick(at(WaitMax+BusyPause), &out)
	begun(t, &out, 0)
	// One that was admitted in the end keeps its place.
	q.Waiting(testKey(0), at(2*WaitMax), &out)
	q.Admitted(testKey(0))
	q.Want(testKey(4), "other", false, at(4*WaitMax), &out)
	if len(out.Cut) > 0 {
		t.Errorf("cut %v", out.Cut)
	}
}

func TestTheOwnerHearsOfWhatIsUnderWay(t *testing.T) {
	var q Queue
	var out Orders
	for n := range byte(4) {
		q.Want(testKey(n), "p", false, at(0), &out)
	}
	out = Orders{}
	q.Moved(testKey(0))
	q.Waiting(testKey(1), at(0), &out)
	q.Tick(q.Next(), &out)
	if len(out.Told) != 4 {
		t.Errorf("told %v", out.Told)
	}
	out = Orders{}
	q.Tick(q.Next(), &out)
	want := []Told{{testKey(1), order.Underway}, {testKey(2), order.Underway}, {testKey(3), order.Underway}}
	if !slices.Equal(out.Told, want) { // nothing moves on the first
		t.Errorf("told %v", out.Told)
	}
}

func TestTheQueueHasAnEnd(t *testing.T) {
	var q Queue
	var out Orders
	key := func(i int) Key { return Key{Group: testKey(1).Group, To: order.ReplicaID(i)} }
	for i := range OutQueueMax {
		q.Want(key(i), "p", false, at(0), &out)
	}
	if len(out.Told) > 0 {
		t.Fatalf("told %v", out.Told[0])
	}
	q.Want(key(OutQueueMax), "p", false, at(0), &out)
	if len(out.Told) != 1 || out.Told[0] != (Told{key(OutQueueMax), order.Failed}) || q.Len() != OutQueueMax {
		t.Errorf("told %v, %d known", out.Told, q.Len())
	}
	q.Want(key(5), "p", true, at(0), &out) // known ones stay
	if len(out.Told) != 1 {
		t.Errorf("told %v", out.Told)
	}
}

// Random lives of a queue: the limits hold after every step, every stream that begins ends once, every transfer ends with one word, and
// none is left when the streams work again.
func TestQueueOnRandomSchedules(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 2))
		var q Queue
		now := at(0)
		streams := make(map[Key]bool)
		open := make(map[Key]bool) // wanted, and neither told the end nor dropped
		step := func(f func(out *Orders)) {
			var out Orders
			f(&out)
			for _, k := range out.Begin {
				if streams[k] {
					t.Fatalf("seed %d: %v begun twice", seed, k)
				}
				streams[k] = true
			}
			for _, k := range out.Cut {
				if !streams[k] {
					t.Fatalf("seed %d: %v cut without a stream", seed, k)
				}
			}
			for _, told := range out.Told {
				if !open[told.Key] {
					t.Fatalf("seed %d: told %v of %v, which nobody wants", seed, told.State, told.Key)
				}
				if told.State != order.Underway {
					delete(open, told.Key)
				}
			}
			if len(streams) > OutMax || q.Running() != len(streams) {
				t.Fatalf("seed %d: %d streams, %d counted", seed, len(streams), q.Running())
			}
		}
		any := func() (Key, bool) {
			keys := slices.SortedFunc(maps.Keys(streams), func(a, b Key) int { return a.Group.Compare(b.Group) })
			if len(keys) == 0 {
				return Key{}, false
			}
			return keys[rng.IntN(len(keys))], true
		}
		for range 400 {
			now = now.Add(time.Duration(rng.IntN(int(300 * time.Millisecond))))
			k := testKey(byte(rng.IntN(6)))
			switch rng.IntN(8) {
			case 0, 1:
				open[k] = true
				step(func(out *Orders) { q.Want(k, fmt.Sprint(k.Group.Prefix.Bits[0]%3), rng.IntN(3) > 0, now, out) })
			case 2:
				delete(open, k)
				step(func(out *Orders) { q.Drop(k, now, out) })
			case 3:
				step(func(out *Orders) { q.Tick(now, out) })
			case 4:
				q.Moved(k)
			case 5:
				step(func(out *Orders) { q.Waiting(k, now, out) })
			default:
				if k, ok := any(); ok {
					delete(streams, k)
					step(func(out *Orders) { q.Ended(k, End(1+rng.IntN(4)), now, out) })
				}
			}
		}
		for steps := 0; q.Len() > 0; steps++ {
			if steps > 1000 {
				t.Fatalf("seed %d: %d are left", seed, q.Len())
			}
			if k, ok := any(); ok {
				delete(streams, k)
				step(func(out *Orders) { q.Ended(k, Delivered, now, out) })
				continue
			}
			if q.Next() == automaton.Never {
				t.Fatalf("seed %d: %d wait for nothing", seed, q.Len())
			}
			now = max(now, q.Next())
			step(func(out *Orders) { q.Tick(now, out) })
		}
		if len(open) > 0 {
			t.Fatalf("seed %d: no end was told of %v", seed, open)
		}
	}
}
