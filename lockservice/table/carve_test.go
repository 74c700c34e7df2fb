package table

import (
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"latchkey/dht/keyspace"
)

// carved returns a table, at log time 10 s, in which X holds a and Y and Z wait for it, and W holds b.
func carved(t *testing.T) *Table {
	table := New(testConfig)
	step(t, table, 10*time.Second, 'W', Acquire{Name: "b", Req: 1, TTL: time.Minute})
	step(t, table, 10*time.Second, 'X', Acquire{Name: "a", Req: 1, TTL: 20 * time.Second})
	step(t, table, 12*time.Second, 'Y', Acquire{Name: "a", Req: 2, TTL: 5 * time.Second})
	step(t, table, 14*time.Second, 'Z', Acquire{Name: "a", Req: 3, TTL: 5 * time.Second})
	return table
}

func TestCarvedLockGoesOnInAnotherTable(t *testing.T) {
	from, to := carved(t), New(testConfig)
	s := from.Carve("a")
	if err := from.check(); err != nil || from.Info(0, "a").Held || !from.Info(0, "b").Held {
		t.Fatalf("what is left: %v, %+v", err, from.State())
	}
	to.Tick(time.Second, nil)
	if err := to.Graft(s); err != nil {
		t.Fatal(err)
	}
	info := to.Info(time.Second, "a")
	if info.Holder.Left != 16*time.Second || info.Holder.Token != 2 || len(info.Waiters) != 2 || info.Waiters[0].Client != by('Y').Client {
		t.Fatalf("taken over: %+v", info)
	}
	if _, out := step(t, to, 2*time.Second, 'X', Release{Name: "a", Req: 1}); len(out) != 1 || out[0].Token != 3 || out[0].Client != by('Y').Client {
		t.Errorf("the next holder: %+v", out)
	}
	back := to.Carve("a")
	if err := from.Graft(back); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(from.check(), to.check()); err != nil {
		t.Error(err)
	}
	if ans, _ := step(t, from, 15*time.Second, 'V', Acquire{Name: "c", Req: 1, TTL: time.Second}); ans.Token != 4 {
		t.Errorf("a token after it came back: %d", ans.Token)
	}
}

func TestCarveUndoneLeavesTheTable(t *testing.T) {
	table := carved(t)
	before := table.State()
	if err := table.Graft(table.Carve("a")); err != nil || !reflect.DeepEqual(table.State(), before) {
		t.Errorf("%v: %+v, was %+v", err, table.State(), before)
	}
}

func TestCarveOfNothingTakesTheCounterAlong(t *testing.T) {
	table := carved(t)
	s := table.Carve("nobody asked for this")
	if len(s.Locks) != 1 || !s.Locks[0].bare() || s.Counter != 2 {
		t.Fatalf("%+v", s)
	}
	to := New(testConfig)
	if err := to.Graft(s); err != nil {
		t.Fatal(err)
	}
	if ans, _ := step(t, to, 0, 'X', Acquire{Name: "n", Req: 1, TTL: time.Second}); ans.Token != 3 {
		t.Errorf("token %d", ans.Token)
	}
}

func TestGraftRefusesWhatIsImpossible(t *testing.T) {
	part := func() State { return carved(t).Carve("a") }
	for name, spoil := range map[string]func(*State){
		"log time below zero":     func(s *State) { s.Now = -1 },
		"counter above its end":   func(s *State) { s.Counter = lowMax + 1 },
		"two locks":               func(s *State) { s.Locks = append(s.Locks, s.Locks[0]) },
		"lease over already":      func(s *State) { s.Locks[0].Owners[0].Ends = s.Now },
		"token above the counter": func(s *State) { s.Locks[0].Owners[0].Counter = s.Counter + 1 },
		"waiter from the future":  func(s *State) { s.Locks[0].Queue[0].Since = s.Now + time.Hour },
	} {
		s := part()
		spoil(&s)
		to := New(testConfig)
		if err := to.Graft(s); !errors.Is(err, ErrState) || len(to.State().Locks) != 0 || to.State().Counter != 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	here := carved(t)
	if err := here.Graft(part()); !errors.Is(err, ErrState) {
		t.Errorf("a lock that is here: %v", err)
	}
}

func TestTokensOfALaterGenerationOfTheKeyAreHigher(t *testing.T) {
	cfg := testConfig
	cfg.First = 5 << counterBits
	table := New(cfg)
	if ans, _ := step(t, table, 0, 'X', Acquire{Name: "a", Req: 1, TTL: time.Second}); ans.Token != 5<<counterBits+1 {
		t.Errorf("token %x", ans.Token)
	}
	table.counter = 5<<counterBits | CounterMax
	if ans, _ := step(t, table, 0, 'X', Acquire{Name: "b", Req: 2, TTL: time.Second}); ans.Reason != TokensExhausted {
		t.Errorf("beyond the last token: %+v", ans)
	}
}

// BenchmarkCarveAndGraft is what a move costs the group that has so many other locks: one entry's time to be executed, twice.
func BenchmarkCarveAndGraft(b *testing.B) {
	for _, locks := range []int{1, 1000, LocksMax - 1} {
		b.Run(fmt.Sprint(locks, " locks"), func(b *testing.B) {
			table := New(testConfig)
			for i := range locks {
				c := Caller{Client: Client{byte(i), byte(i >> 8)}, Peer: keyspace.NodeID{byte(i)}}
				if ans, _ := table.Step(0, c, Acquire{Name: fmt.Sprint(i), Req: uint64(i), TTL: time.Minute}, nil); ans.Kind != Granted {
					b.Fatal(ans)
				}
			}
			for b.Loop() {
				if err := table.Graft(table.Carve("0")); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestGraftRefusesWhatThereIsNoRoomFor(t *testing.T) {
	part := carved(t).Carve("a") // a hold of X
	to := New(testConfig)
	for i := range RequestsPerSessionMax {
		to.Step(0, by('X'), Acquire{Name: fmt.Sprint("x", i), Req: uint64(100 + i), TTL: time.Minute}, nil)
	}
	before := to.State()
	if err := to.Graft(part); !errors.Is(err, ErrState) || !reflect.DeepEqual(to.State(), before) {
		t.Errorf("%v", err)
	}
	step(t, to, 0, 'X', Release{Name: "x0", Req: 100})
	if err := to.Graft(part); err != nil || to.check() != nil {
		t.Errorf("at the edge: %v, %v", err, to.check())
	}
}
